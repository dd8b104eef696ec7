// mbarriers, bulk copies (TMA), and the clocks that say what they order.
//
// A copy lands as late as it may: when nobody can go on and somebody waits for its mbarrier.  Then it is the oldest,
// the newest or any one, as the order of threads is.  Until then its destination is poisoned.  Stores are carried
// out when the thread waits for their group.  Compiled without instrumentation.
#include "async.h"

#include <algorithm>
#include <cstdio>
#include <cstring>

#include "cells.h"

#define CALLER __builtin_return_address(0)

namespace rawgrad_emulator {

std::vector<uint32_t> agents_of_warps;

namespace {

std::map<const void*, Mbarrier> mbarriers;  // of the blocks that run
std::vector<BulkCopy> landing;
uint32_t agents, random;
constexpr uint32_t MOST_ARRIVALS = (1 << 20) - 1, MOST_BYTES = (1 << 20) - 1;

void complain_of(Mbarrier* barrier, FindingKind kind, const void* place, const void* caller, const char* why) {
  if (Finding* f = complain_shared(kind, place, 8, ATOMIC, caller)) {
    snprintf(f->detail, sizeof f->detail, "%s", why);
    if (barrier) f->count = barrier->phase;
  }
}

Mbarrier& known(void* place, const void* caller, bool of_any_block = false) {
  check_in_shared(place, 8, ATOMIC, caller, "mbarrier", of_any_block);
  check_alignment(place, 8, 8, ATOMIC, caller);
  const auto found = mbarriers.find(place);
  if (found == mbarriers.end()) {
    complain_of(nullptr, MBARRIER, place, caller, "nobody has initialised it");
    abandon();
  }
  access_memory(place, 8, ATOMIC, caller);
  return found->second;
}

bool has_passed(const Mbarrier& barrier, unsigned parity) { return (barrier.phase & 1) != parity; }

// Does the phase end?
void turn(Mbarrier& barrier) {
  if (barrier.missing || barrier.bytes) return;
  Clock& clock = barrier.passed[barrier.phase & 1];
  clock = std::move(barrier.gathering);
  barrier.gathering = Clock();
  barrier.passed_of_peers[barrier.phase & 1] = std::move(barrier.gathering_of_peers);
  barrier.gathering_of_peers = Clock();
  ++barrier.phase;
  raise(clock.agents, barrier.agent, barrier.phase);
  barrier.missing = barrier.arrivals;
  barrier.expected = 0;
}

}  // namespace

// ---- clocks

void publish(Clock& clock) {
  fold_clock(*current);
  clock.join(current->seen);
  ++current->clock[current->lane];
}
void see(const Clock& clock) {
  current->seen.join(clock);
  unfold_clock(*current);
}

void Clock::join(const Clock& other) {
  for (const auto& [mine, theirs] : {std::pair(&threads, &other.threads), std::pair(&agents, &other.agents)}) {
    if (mine->size() < theirs->size()) mine->resize(theirs->size());
    for (size_t i = 0; i < theirs->size(); ++i) (*mine)[i] = std::max((*mine)[i], (*theirs)[i]);
  }
}

void begin_actors() { by_actor = true; }

void fold_clock(Thread& thread) {
  const int first = thread.number - thread.lane;
  const int lanes = std::min(WARP_SIZE, threads_in_block() - thread.warp * WARP_SIZE);
  for (int l = 0; l < lanes; ++l) raise(thread.seen.threads, first + l, thread.clock[l]);
}
void unfold_clock(Thread& thread) {
  for (int l = 0; l < WARP_SIZE; ++l)
    if (l != thread.lane) thread.clock[l] = std::max(thread.clock[l], at(thread.seen.threads, thread.number - thread.lane + l));
}

uint32_t new_agent() { return ++agents; }

AsyncState& async_state() {
  begin_actors();
  if (!current->async) current->async = std::make_shared<AsyncState>();
  return *current->async;
}

bool passed_fence(const Writer& w) {
  const Thread& writer = thread_of(w.block, w.thread);
  const auto by = [&](const Thread& thread) {
    for (const ProxyFence& fence : thread.fences) {
      const bool after = (thread.rank == writer.rank && w.epoch < fence.epoch) ||
                         (&thread == &writer ? w.clock <= fence.time : at(fence.seen, writer.number) >= w.clock);
      const bool before = &thread == current || (thread.rank == current->rank && fence.epoch < barrier_epoch) ||
                          seen_thread(thread.number, fence.time);
      if (after && before) return true;
    }
    return false;
  };
  if (by(writer) || by(*current)) return true;
  for (int i = 0; i < threads_in_cluster(); ++i)
    if (by(thread_at(i))) return true;
  return false;
}

// ---- for the scheduler

void async_begin_cluster() {
  by_actor = blocks_in_cluster > 1;
  mbarriers.clear();
  landing.clear();
  agents = 0;
  random = turn_order;  // the same in every launch
  agents_of_warps.assign((threads_in_block() / WARP_SIZE + 1) * blocks_in_cluster, 0);
}

void async_pass_barrier(int rank) {
  if (!by_actor) return;
  const int first = rank * threads_in_block(), last = first + threads_in_block();
  Clock of_all;
  for (int i = first; i < last; ++i) {
    fold_clock(thread_at(i));
    of_all.join(thread_at(i).seen);
  }
  for (int i = first; i < last; ++i) {
    Thread& thread = thread_at(i);
    thread.seen = of_all;
    unfold_clock(thread);
    ++thread.clock[thread.lane];
  }
}

bool async_release() {
  bool any = false;
  if (mbarriers.empty()) return false;
  for (int i = 0; i < threads_in_cluster(); ++i) {
    Thread& thread = thread_at(i);
    if (thread.waiting != AT_MBARRIER || !has_passed(*thread.awaited, thread.awaited_parity)) continue;
    thread.waiting = RUNNABLE;
    any = true;
  }
  return any;
}

bool async_report_deadlock() {
  std::vector<const Mbarrier*> told;
  for (int i = 0; i < threads_in_cluster(); ++i) {
    const Thread& thread = thread_at(i);
    if (thread.waiting != AT_MBARRIER) continue;
    const Mbarrier& barrier = *thread.awaited;
    if (std::find(told.begin(), told.end(), &barrier) != told.end()) continue;
    told.push_back(&barrier);
    become(&thread_at(i));
    Finding* f = complain_shared(MBARRIER_WAIT, barrier.place, 8, ATOMIC, thread.caller);
    become(nullptr);
    if (f == nullptr) continue;
    f->count = barrier.phase;
    char bytes[80];
    if (barrier.bytes < 0)
      snprintf(bytes, sizeof bytes, "%lld more bytes have landed than expected", static_cast<long long>(-barrier.bytes));
    else
      snprintf(bytes, sizeof bytes, "%lld of %lld expected bytes", static_cast<long long>(barrier.expected - barrier.bytes),
               static_cast<long long>(barrier.expected));
    snprintf(f->detail, sizeof f->detail, "in its phase %u have come %u of %u arrivals; %s%s", barrier.phase,
             barrier.arrivals - barrier.missing, barrier.arrivals, bytes, barrier.bytes < 0 ? "" : " have landed");
  }
  return !told.empty();
}

void async_thread_ends() {
  if (!current->async) return;
  wgmma_thread_ends();
  AsyncState& state = *current->async;
  state.stores.push_back(std::move(state.open_stores));
  for (const auto& group : state.stores)
    for (const BulkCopy& copy : group) {
      report(NEVER_WAITED, copy.caller).bytes = copy.bytes;
      return;
    }
}

void async_block_ends(int rank) {
  for (size_t i = 0; i < landing.size();) {
    const BulkCopy& copy = landing[i];
    if (owner_of_shared(copy.shared) != rank) {
      ++i;
      continue;
    }
    const bool told = std::any_of(all_findings().begin(), all_findings().end(), [&](const Finding& known) {
      return known.kind == NEVER_WAITED && known.first.caller == copy.caller;
    });
    if (!told) {
      become(&thread_of_number(copy.thread));
      Finding& finding = report(NEVER_WAITED, copy.caller);
      finding.bytes = copy.bytes;
      const Index& to = blocks[rank].index;
      if (current->rank != rank)
        snprintf(finding.detail, sizeof finding.detail, "to block (%u, %u, %u), which ends", to.x, to.y, to.z);
      become(nullptr);
    }
    landing.erase(landing.begin() + i);
  }
}

// ---- mbarriers

void mbarrier_init(void* place, uint32_t arrivals) {
  const void* caller = CALLER;
  begin_actors();
  check_in_shared(place, 8, WRITE, caller, "mbarrier");
  check_alignment(place, 8, 8, WRITE, caller);
  access_memory(place, 8, WRITE, caller);
  memset(place, 0, 8);
  if (arrivals == 0 || arrivals > MOST_ARRIVALS) complain_of(nullptr, MBARRIER, place, caller, "it needs 1 to 1,048,575 arrivals");
  const auto before = mbarriers.find(place);
  if (before != mbarriers.end()) {
    const auto used = [&](const BulkCopy& copy) { return copy.barrier == &before->second; };
    bool waited = std::any_of(landing.begin(), landing.end(), used);
    for (int i = 0; i < threads_in_cluster(); ++i)
      waited |= thread_at(i).waiting == AT_MBARRIER && thread_at(i).awaited == &before->second;
    if (waited) complain_of(&before->second, MBARRIER, place, caller, "it is initialised again while threads or copies use it");
  }
  Mbarrier fresh = {};
  fresh.place = place;
  fresh.arrivals = fresh.missing = arrivals;
  fresh.agent = before == mbarriers.end() ? new_agent() : before->second.agent;
  fresh.initialiser = current->number;
  mbarriers[place] = fresh;
}

static void arrive_at(Mbarrier& barrier, void* place, Clock& gathering, const void* caller) {
  if (barrier.missing == 0) {
    complain_of(&barrier, MBARRIER, place, caller, "it has all arrivals of this phase already, and waits for bytes");
    abandon();
  }
  publish(gathering);
  --barrier.missing;
  turn(barrier);
}
void mbarrier_arrive(void* place) {
  const void* caller = CALLER;
  Mbarrier& barrier = known(place, caller);
  arrive_at(barrier, place, barrier.gathering, caller);
}
void mbarrier_arrive_at(void* place, int rank) {
  const void* caller = CALLER;
  check_in_shared(place, 8, ATOMIC, caller, "an arrival at another block");
  void* there = place_in_block(place, rank, caller);
  Mbarrier& barrier = known(there, caller, true);
  arrive_at(barrier, there, rank == current->rank ? barrier.gathering : barrier.gathering_of_peers, caller);
}

void mbarrier_expect(void* place, uint32_t bytes) {
  const void* caller = CALLER;
  Mbarrier& barrier = known(place, caller);
  if (barrier.bytes + bytes > MOST_BYTES) {
    complain_of(&barrier, MBARRIER, place, caller, "it expects more than 1,048,575 bytes");
    abandon();
  }
  barrier.bytes += bytes;
  barrier.expected += bytes;
}

static void wait_at(void* place, uint32_t parity, bool peers, const void* caller) {
  Mbarrier& barrier = known(place, caller);
  if (parity > 1) {
    complain_of(&barrier, MBARRIER, place, caller, "a phase's parity is 0 or 1");
    abandon();
  }
  if (!has_passed(barrier, parity)) wait_at_mbarrier(&barrier, parity, caller);
  see(barrier.passed[parity]);
  meet(barrier.passed_of_peers[parity]);
  if (peers) see(barrier.passed_of_peers[parity]);
}
void mbarrier_wait(void* place, uint32_t parity) { wait_at(place, parity, false, CALLER); }
void mbarrier_wait_cluster(void* place, uint32_t parity) { wait_at(place, parity, true, CALLER); }

void fence_proxy() {
  begin_actors();
  fold_clock(*current);
  // A later fence covers what an earlier one does, but may not have been seen yet; those before 64 others have been.
  if (current->fences.size() == 64) current->fences.erase(current->fences.begin());
  current->fences.push_back({barrier_epoch, current->clock[current->lane], current->seen.threads});
  ++current->clock[current->lane];
}

void fence_mbarriers() {
  for (auto& [place, barrier] : mbarriers)
    if (barrier.initialiser == current->number) barrier.announced = true;
}

// ---- boxes of tensors

namespace {

Box box_of(const void* map, int rank, const int* at, const void* caller) {
  Box box;
  memcpy(&box.map, map, sizeof box.map);
  if (box.map.magic != TENSOR_MAP_MAGIC || static_cast<int>(box.map.rank) != rank) {
    Finding& finding = report(ASSERTION, caller);
    if (box.map.magic != TENSOR_MAP_MAGIC)
      snprintf(finding.detail, sizeof finding.detail, "this is no tensor map");
    else
      snprintf(finding.detail, sizeof finding.detail, "the tensor map has %u dimensions, the copy %d", box.map.rank, rank);
    abandon();
  }
  memcpy(box.at, at, rank * sizeof *at);
  return box;
}

uint32_t bytes_of(const Box& box) {
  uint32_t bytes = box.map.element_bytes;
  for (uint32_t d = 0; d < box.map.rank; ++d) bytes *= box.map.box[d];
  return bytes;
}

// For each row of the box that lies in the tensor: where it begins in shared memory, in bytes from the box's begin;
// where in global memory; and how many bytes of it are inside.
template <class F>
void for_rows(const Box& box, F f) {
  const TensorMapText& map = box.map;
  const uint32_t row_bytes = map.box[0] * map.element_bytes;
  const int64_t first = std::max<int64_t>(box.at[0], 0);
  const int64_t last = std::min<int64_t>(int64_t(box.at[0]) + map.box[0], map.size[0]);
  uint32_t rows = 1;
  for (uint32_t d = 1; d < map.rank; ++d) rows *= map.box[d];
  for (uint32_t row = 0; row < rows && first < last; ++row) {
    uint32_t rest = row;
    uint64_t address = map.address + first * map.element_bytes;
    bool inside = true;
    for (uint32_t d = 1; d < map.rank; ++d) {
      const int64_t i = int64_t(box.at[d]) + rest % map.box[d];
      rest /= map.box[d];
      inside = inside && i >= 0 && i < map.size[d];
      if (inside) address += i * map.strides[d - 1];
    }
    if (inside)
      f(row * row_bytes + (first - box.at[0]) * map.element_bytes, reinterpret_cast<unsigned char*>(address),
        (last - first) * map.element_bytes);
  }
}

// The byte of shared memory at `offset` of the box, as its swizzle moves it.
unsigned char* in_shared(const BulkCopy& copy, size_t offset) {
  unsigned char* own = arenas + owner_of_shared(copy.shared) * ARENA_STRIDE;
  return own + swizzled(copy.shared - own + offset, copy.box.map.swizzle_bytes);
}

uint32_t nearest_tf32(uint32_t bits) {
  if ((bits & 0x7f800000u) == 0x7f800000u) return bits & 0x007fffffu ? 0x7fffe000u : bits;
  return (bits + 0x1000u) & 0xffffe000u;
}

void carry_out(const BulkCopy& copy) {
  const bool store = copy.barrier == nullptr;
  if (copy.box.map.rank == 0) {
    store ? memcpy(copy.global, copy.shared, copy.bytes) : memcpy(copy.shared, copy.global, copy.bytes);
    return;
  }
  if (!store) memset(copy.shared, 0, copy.bytes);
  const uint32_t piece = copy.box.map.element_bytes;
  for_rows(copy.box, [&](size_t offset, unsigned char* global, size_t bytes) {
    for (size_t i = 0; i < bytes; i += piece) {
      unsigned char* shared = in_shared(copy, offset + i);
      if (store) {
        memcpy(global + i, shared, piece);
      } else {
        memcpy(shared, global + i, piece);
        if (copy.box.map.to_tf32) {
          uint32_t bits;
          memcpy(&bits, shared, 4);
          bits = nearest_tf32(bits);
          memcpy(shared, &bits, 4);
        }
      }
    }
  });
}

void check_global(const BulkCopy& copy, Access access) {
  if (copy.box.map.rank == 0) return access_memory(copy.global, copy.bytes, access, copy.caller);
  for_rows(copy.box, [&](size_t, unsigned char* global, size_t bytes) { access_memory(global, bytes, access, copy.caller); });
}

// To the blocks whose bits are set.
void begin_load(BulkCopy copy, void* barrier, uint32_t to_blocks) {
  check_in_shared(barrier, 8, ATOMIC, copy.caller, "a bulk copy");
  check_global(copy, READ);
  unsigned char* const shared = copy.shared;
  for (int rank = 0; rank < MOST_BLOCKS; ++rank) {
    if (!(to_blocks >> rank & 1)) continue;
    void* place = place_in_block(barrier, rank, copy.caller);
    Mbarrier& to = known(place, copy.caller, true);
    if (!to.announced) complain_of(&to, PROXY, place, copy.caller, "the mbarrier was initialised, and no fence_barrier_init() came after it");
    copy.barrier = &to;
    copy.thread = current->number;
    copy.shared = static_cast<unsigned char*>(place_in_block(shared, rank, copy.caller));
    begin_landing(copy.shared, copy.bytes, copy.caller, "a bulk copy");
    // Who sees the end of the phase also comes after this reading of global memory.
    fold_clock(*current);
    raise(to.gathering.threads, current->number, current->clock[current->lane]);
    landing.push_back(copy);
  }
  ++current->clock[current->lane];
}

uint32_t own_bit() { return 1u << current->rank; }

void begin_store(BulkCopy copy) {
  AsyncState& state = async_state();
  if (state.store_agent == 0) state.store_agent = new_agent();
  copy.barrier = nullptr;
  copy.thread = current->number;
  read_by_agent(copy.shared, copy.bytes, state.store_agent, state.store_groups + 1, copy.caller, "a bulk store");
  check_global(copy, WRITE);
  state.open_stores.push_back(copy);
}

BulkCopy plain_copy(void* shared, void* global, uint32_t bytes, const void* caller, Access of_shared) {
  BulkCopy copy = {};
  copy.shared = static_cast<unsigned char*>(shared);
  copy.global = static_cast<unsigned char*>(global);
  copy.bytes = bytes;
  copy.caller = caller;
  check_alignment(shared, bytes, 16, of_shared, caller);
  check_alignment(global, bytes, 16, of_shared == READ ? WRITE : READ, caller);
  if (bytes % 16) {
    if (Finding* f = complain_shared(MISALIGNED, shared, bytes, of_shared, caller)) {
      f->limit = 16;
      snprintf(f->detail, sizeof f->detail, "and a bulk copy moves multiples of 16 bytes; these are %u", bytes);
    }
    abandon();
  }
  return copy;
}

BulkCopy box_copy(const void* shared, const void* map, int rank, const int* at, const void* caller, Access access) {
  BulkCopy copy = {};
  copy.box = box_of(map, rank, at, caller);
  copy.shared = static_cast<unsigned char*>(const_cast<void*>(shared));
  copy.bytes = bytes_of(copy.box);
  copy.caller = caller;
  check_in_shared(shared, copy.bytes, access, caller, "a bulk copy");
  check_alignment(shared, copy.bytes, 128, access, caller);
  return copy;
}

}  // namespace

// Of those for which somebody waits.
bool async_land() {
  std::vector<size_t> due;
  for (size_t i = 0; i < landing.size(); ++i)
    for (int t = 0; t < threads_in_cluster(); ++t)
      if (thread_at(t).waiting == AT_MBARRIER && thread_at(t).awaited == landing[i].barrier) {
        due.push_back(i);
        break;
      }
  if (due.empty()) return false;
  random = random * 1664525u + 1013904223u;
  const size_t chosen = due[turn_order == 0 ? 0 : turn_order == 1 ? due.size() - 1 : random / 65536 % due.size()];
  const BulkCopy copy = landing[chosen];
  landing.erase(landing.begin() + chosen);
  carry_out(copy);
  Mbarrier& barrier = *copy.barrier;
  land(copy.shared, copy.bytes, barrier.agent, barrier.phase + 1);
  barrier.bytes -= copy.bytes;
  turn(barrier);
  return true;
}

void load_box(void* to, const void* map, void* barrier, int rank, const int* at) {
  begin_load(box_copy(to, map, rank, at, CALLER, WRITE), barrier, own_bit());
}
void load_box_many(void* to, const void* map, void* barrier, int rank, const int* at, uint32_t to_blocks) {
  const void* caller = CALLER;
  if (to_blocks == 0 || to_blocks >> blocks_in_cluster) {
    refuse_block(caller, "it goes to blocks of the bits %#x", to_blocks);
    abandon();
  }
  begin_load(box_copy(to, map, rank, at, caller, WRITE), barrier, to_blocks);
}
void load_bytes(void* to, const void* from, uint32_t bytes, void* barrier) {
  begin_load(plain_copy(to, const_cast<void*>(from), bytes, CALLER, WRITE), barrier, own_bit());
}
void store_box(const void* map, const void* from, int rank, const int* at) {
  begin_store(box_copy(from, map, rank, at, CALLER, READ));
}
void store_bytes(void* to, const void* from, uint32_t bytes) {
  begin_store(plain_copy(const_cast<void*>(from), to, bytes, CALLER, READ));
}
void store_commit() {
  AsyncState& state = async_state();
  state.stores.push_back(std::move(state.open_stores));
  state.open_stores.clear();
  ++state.store_groups;
}
void store_wait(int groups_left) {
  AsyncState& state = async_state();
  while (static_cast<int>(state.stores.size()) > groups_left) {
    for (const BulkCopy& copy : state.stores.front()) carry_out(copy);
    state.stores.erase(state.stores.begin());
    ++state.stores_done;
  }
  if (state.store_agent) raise(current->seen.agents, state.store_agent, state.stores_done);
}

}  // namespace rawgrad_emulator
