// Runs the threads of a block, or of the blocks of a cluster, as fibers, and lets them meet at barriers and warp
// operations.
//
// A fiber is entered once by setcontext and from then on switched by setjmp and longjmp, which save no
// signal mask and are several times faster.  Below each stack lies a page that cannot be touched; a fiber that
// does so anyway has too many local variables, which the signal handler reports.  Compiled without
// instrumentation.
#undef _FORTIFY_SOURCE  // its longjmp refuses to change stacks

#include <algorithm>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <numeric>
#include <random>

#include <pthread.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <ucontext.h>

#include "state.h"

namespace rawgrad_emulator {

Thread* current = nullptr;
Block blocks[MOST_BLOCKS];
int blocks_in_cluster = 1;
uint32_t cluster_serial, block_serial, barrier_epoch;
bool by_actor;
int turn_order;
uint64_t steps, steps_allowed;

namespace {

using Entry = void (*)(const unsigned char*);

Entry entry;
const unsigned char* arguments;
Index grid, block, cluster;
size_t threads_of_block, numbers_of_block;  // the latter in whole warps
int entered;                                // the block of the current thread, or of the last one
std::vector<std::unique_ptr<Thread>> threads;  // those of the cluster that runs, block after block
unsigned char* stacks = nullptr;
size_t stacks_held = 0;
jmp_buf scheduler;
bool abandoned, complete;
uint64_t patience;  // so many accesses may a thread make before it must wait or end
volatile sig_atomic_t interrupted;
uint32_t serials_before;  // those of earlier launches, so that nothing need be wiped between launches
std::vector<Finding> findings;
uint64_t barriers_passed;

uint32_t volume(const Index& i) { return i.x * i.y * i.z; }
Index spread(uint32_t linear, const Index& size) {
  return {linear % size.x, linear / size.x % size.y, linear / size.x / size.y};
}

void leave() {  // the current fiber goes back to the scheduler
  Thread* self = current;
  if (!_setjmp(self->context)) _longjmp(scheduler, 1);
}

Party party_of(const Thread& thread) {  // where it waits
  Party party = {};
  const Index& b = blocks[thread.rank].index;
  party.block[0] = b.x, party.block[1] = b.y, party.block[2] = b.z;
  party.thread[0] = thread.index.x, party.thread[1] = thread.index.y, party.thread[2] = thread.index.z;
  party.file = thread.place.file;
  party.line = thread.place.line;
  party.caller = thread.caller;
  return party;
}

Finding& report_of(FindingKind kind, const Thread& thread) {
  static Finding spare;
  if (findings.size() == MAX_FINDINGS) return spare = Finding();
  findings.emplace_back();
  Finding& finding = findings.back();
  finding.kind = kind;
  finding.space = NOWHERE;
  finding.buffer = -1;
  finding.first = party_of(thread);
  finding.operation = thread.operation;
  finding.times = 1;
  return finding;
}

// A fiber outlives its thread: the thread of the same number in the next block takes it over.
void fiber_main() {
  for (;;) {
    entry(arguments);
    check_copies_finished();
    async_thread_ends();
    current->waiting = FINISHED;
    leave();
  }
}

void resume(Thread* thread) {
  become(thread);
  steps_allowed = interrupted ? 0 : steps + patience;
  if (!_setjmp(scheduler)) {
    if (thread->started) _longjmp(thread->context, 1);
    thread->started = true;
    ucontext_t start;
    getcontext(&start);
    start.uc_stack.ss_sp = thread->stack + GUARD_BYTES;
    start.uc_stack.ss_size = STACK_BYTES - GUARD_BYTES;
    start.uc_link = nullptr;
    makecontext(&start, fiber_main, 0);
    setcontext(&start);
  }
  current = nullptr;
}

bool same_place(const Thread& a, const Thread& b) {
  return a.place.line == b.place.line && strcmp(a.place.file, b.place.file) == 0;
}

// Lanes that wait in a warp operation go on when all lanes of their mask have come to the same one.
bool release_warp(int rank, int warp) {
  bool released = false;
  const int begin = rank * threads_of_block, first = begin + warp * WARP_SIZE;
  const int last = std::min<int>(first + WARP_SIZE, begin + threads_of_block);
  for (int i = first; i < last; ++i) {
    const Thread& one = *threads[i];
    if (one.waiting != AT_WARP) continue;
    bool complete = true;
    for (int j = first; j < last && complete; ++j) {
      const Thread& other = *threads[j];
      if (!(one.mask >> other.lane & 1) || other.waiting == FINISHED) continue;
      complete = other.waiting == AT_WARP && other.mask == one.mask && other.operation == one.operation &&
                 same_place(one, other);
    }
    if (!complete) continue;
    const unsigned mask = one.mask;
    for (int j = first; j < last; ++j)
      if (mask >> threads[j]->lane & 1 && threads[j]->waiting == AT_WARP) threads[j]->waiting = RUNNABLE;
    released = true;
  }
  return released;
}

// Likewise the threads of a warpgroup, four warps that begin at a multiple of four; it needs them all.
bool release_warpgroup(size_t first, size_t last) {
  if (first + 4 * WARP_SIZE > last) return false;
  for (size_t i = first; i < first + 4 * WARP_SIZE; ++i) {
    const Thread& one = *threads[i];
    if (one.waiting != AT_WARPGROUP || one.operation != threads[first]->operation || !same_place(one, *threads[first]))
      return false;
  }
  for (size_t i = first; i < first + 4 * WARP_SIZE; ++i) threads[i]->waiting = RUNNABLE;
  return true;
}

// Threads of a warpgroup wait for others of it.
bool report_warpgroup() {
  for (const auto& waiting : threads) {
    if (waiting->waiting != AT_WARPGROUP) continue;
    const size_t begin = waiting->rank * threads_of_block, first = begin + waiting->warp / 4 * 4 * WARP_SIZE;
    Finding& finding = report_of(WARP_OPERATION, *waiting);
    for (size_t i = first; i < first + 4 * WARP_SIZE; ++i) {
      if (i >= begin + threads_of_block) {
        snprintf(finding.detail, sizeof finding.detail, "the block ends before its four warps do");
        break;
      }
      const Thread& other = *threads[i];
      if (other.waiting == AT_WARPGROUP && other.operation == waiting->operation && same_place(other, *waiting)) continue;
      if (!finding.has_second) {
        finding.second = party_of(other), finding.has_second = 1;
        if (other.waiting == FINISHED) finding.second.file = nullptr, finding.second.caller = nullptr;
      }
      ++finding.count;
    }
    return true;
  }
  return false;
}

// Nobody can go on: say who waits where, and for whom.
void report_deadlock() {
  if (async_report_deadlock() || report_warpgroup()) return;
  for (const auto& waiting : threads) {
    if (waiting->waiting != AT_WARP) continue;
    Finding& finding = report_of(WARP_OPERATION, *waiting);
    for (const auto& other : threads) {
      if (other->rank != waiting->rank || other->warp != waiting->warp || !(waiting->mask >> other->lane & 1) || other->waiting == FINISHED) continue;
      if (other->waiting == AT_WARP && other->operation == waiting->operation && other->mask == waiting->mask &&
          same_place(*other, *waiting))
        continue;
      if (!finding.has_second) {
        finding.second = party_of(*other), finding.has_second = 1;
        if (other->waiting == AT_WARP && other->mask != waiting->mask)
          snprintf(finding.detail, sizeof finding.detail, "their masks are %#x and %#x", waiting->mask, other->mask);
      }
      ++finding.count;
    }
    return;
  }
  const Thread* waiting = nullptr;
  for (const auto& thread : threads)
    if (thread->waiting == AT_BARRIER && waiting == nullptr) waiting = thread.get();
  if (waiting == nullptr) {
    cluster_report_deadlock();
    return;
  }
  Finding& finding = report_of(BARRIER, *waiting);
  for (const auto& other : threads) {
    if (other->rank != waiting->rank || (other->waiting == AT_BARRIER && same_place(*other, *waiting))) continue;
    if (!finding.has_second) {
      finding.second = party_of(*other), finding.has_second = 1;
      if (other->waiting == FINISHED) finding.second.file = nullptr, finding.second.caller = nullptr;
    }
    ++finding.count;
  }
}

// The order in which threads, and blocks, take their turns: 0 forward, 1 backward, from 2 on shuffled.
std::vector<int> turns(size_t count, int order, unsigned seed) {
  std::vector<int> turn(count);
  std::iota(turn.begin(), turn.end(), 0);
  if (order == 1) std::reverse(turn.begin(), turn.end());
  if (order >= 2) {
    std::mt19937 random(seed * 2654435761u + order);
    for (size_t i = count; i > 1; --i) std::swap(turn[i - 1], turn[random() % i]);
  }
  return turn;
}

void prepare_cluster() {
  memory_begin_cluster();
  async_begin_cluster();
  cluster_begin();
  for (size_t i = 0; i < threads.size(); ++i) {
    Thread& thread = *threads[i];
    thread.id = i % threads_of_block;
    thread.rank = i / threads_of_block;
    thread.index = spread(thread.id, block);
    thread.lane = thread.id % WARP_SIZE;
    thread.warp = thread.id / WARP_SIZE;
    thread.number = thread.rank * numbers_of_block + thread.id;
    thread.in_cluster = OUTSIDE_PHASE;
    thread.waiting = RUNNABLE;
    thread.place = {nullptr, 0};
    thread.caller = nullptr;
    thread.operation = "";
    memset(thread.clock, 0, sizeof thread.clock);
    thread.clock[thread.lane] = 1;
    thread.seen = Clock();
    thread.fences.clear();
    thread.async.reset();
    thread.uncommitted.clear();
    thread.groups.clear();
    thread.stack = stacks + i * STACK_BYTES;
  }
}

// Let a block go on whose threads have all come to the same barrier; note its end.  Whether anything happened.
bool release_block(int rank) {
  Block& of = blocks[rank];
  if (of.ended) return false;
  const auto first = threads.begin() + rank * threads_of_block, last = first + threads_of_block;
  if (std::all_of(first, last, [](const auto& t) { return t->waiting == FINISHED; })) {
    of.ended = true;
    async_block_ends(rank);
    cluster_block_ends(rank);
    return true;
  }
  if (!std::all_of(first, last, [&](const auto& t) { return t->waiting == AT_BARRIER && same_place(*t, **first); }))
    return false;
  async_pass_barrier(rank);
  ++of.epoch;
  ++barriers_passed;
  of.barrier_count = std::count_if(first, last, [](const auto& t) { return t->predicate; });
  std::for_each(first, last, [](const auto& t) { t->waiting = RUNNABLE; });
  return true;
}

// False if the launch was abandoned.
bool run_cluster(int order) {
  prepare_cluster();
  const int warps = numbers_of_block / WARP_SIZE;
  const unsigned seed = cluster_serial - serials_before;  // the same in every launch
  const std::vector<int> warp_turn = turns(warps * blocks_in_cluster, order, seed), lane_turn = turns(WARP_SIZE, order, ~seed);
  for (;;) {
    bool progress = false;
    for (int turn : warp_turn) {
      const int rank = turn / warps, warp = turn % warps;
      do {
        for (int lane : lane_turn) {
          const size_t id = warp * WARP_SIZE + lane;
          if (id >= threads_of_block) continue;
          Thread* thread = threads[rank * threads_of_block + id].get();
          if (thread->waiting != RUNNABLE) continue;
          resume(thread);
          progress = true;
          if (abandoned || interrupted) return false;
        }
      } while (release_warp(rank, warp));
    }
    for (int rank = 0; rank < blocks_in_cluster; ++rank)
      for (size_t first = rank * threads_of_block, last = first + threads_of_block; first < last; first += 4 * WARP_SIZE)
        progress |= release_warpgroup(first, last);
    progress |= async_release();
    progress |= cluster_release();
    bool all_ended = true;
    for (int rank = 0; rank < blocks_in_cluster; ++rank) {
      progress |= release_block(rank);
      all_ended &= blocks[rank].ended;
    }
    if (all_ended) return true;
    if (!progress && !async_land()) {  // copies land as late as they may
      report_deadlock();
      return false;
    }
  }
}

}  // namespace

// ---- for the checks

Index thread_of_id(int id) { return spread(id, block); }
Index block_of_serial(uint32_t serial) {
  const uint32_t linear = serial - serials_before - 1, size = volume(cluster);
  const Index of = spread(linear / size, {grid.x / cluster.x, grid.y / cluster.y, grid.z / cluster.z});
  const Index in = spread(linear % size, cluster);
  return {of.x * cluster.x + in.x, of.y * cluster.y + in.y, of.z * cluster.z + in.z};
}
Thread* thread_in_warp(int lane) {
  const size_t id = current->warp * WARP_SIZE + lane;
  const bool there = lane >= 0 && lane < WARP_SIZE && id < threads_of_block;
  return there ? threads[current->rank * threads_of_block + id].get() : nullptr;
}
Thread& thread_at(int i) { return *threads[i]; }
Thread& thread_of(uint32_t serial, int id) { return *threads[(serial - cluster_serial) * threads_of_block + id]; }
Thread& thread_of_number(int number) {
  return *threads[number / numbers_of_block * threads_of_block + number % numbers_of_block];
}
int number_of(uint32_t serial, int id) { return (serial - cluster_serial) * numbers_of_block + id; }
int threads_in_block() { return threads_of_block; }
int threads_in_cluster() { return threads.size(); }
void enter_block(int rank) {
  entered = rank;
  block_serial = blocks[rank].serial;
  barrier_epoch = blocks[rank].epoch;
  arena = arenas + rank * ARENA_STRIDE;
}
void become(Thread* thread) {
  current = thread;
  if (thread) enter_block(thread->rank);
}
int owner_of_stack(const void* place) {
  const unsigned char* p = static_cast<const unsigned char*>(place);
  return p >= stacks && p < stacks + threads.size() * STACK_BYTES ? (p - stacks) / STACK_BYTES : -1;
}
void abandon() {
  abandoned = true;
  _longjmp(scheduler, 1);
}
void out_of_patience(const void* caller) {
  if (!interrupted) report(ENDLESS, caller).limit = patience;
  abandon();
}
Party party_now(Access access, const void* caller) {
  Party party = party_of(*current);
  party.access = access;
  party.caller = caller;
  party.file = nullptr;
  return party;
}
Finding& report(FindingKind kind, const void* caller) {
  Finding& finding = report_of(kind, *current);
  finding.first = party_now(READ, caller);
  return finding;
}
std::vector<Finding>& all_findings() { return findings; }

void wait_in_warp(unsigned mask, const char* operation, Place place, const void* caller) {
  current->mask = mask;
  current->operation = operation;
  current->place = place;
  current->caller = caller;
  if (!(mask >> current->lane & 1)) {
    Finding& finding = report_of(WARP_OPERATION, *current);
    snprintf(finding.detail, sizeof finding.detail, "its mask %#x leaves out its own lane %d", mask, current->lane);
    abandon();
  }
  current->waiting = AT_WARP;
  leave();
}

void wait_in_warpgroup(const char* operation, Place place, const void* caller) {
  current->operation = operation;
  current->place = place;
  current->caller = caller;
  current->waiting = AT_WARPGROUP;
  leave();
}

void wait_at_mbarrier(Mbarrier* barrier, unsigned parity, const void* caller) {
  current->operation = "a wait for an mbarrier";
  current->place = {nullptr, 0};
  current->caller = caller;
  current->awaited = barrier;
  current->awaited_parity = parity;
  current->waiting = AT_MBARRIER;
  leave();
}

void wait_at_cluster(const void* caller) {
  current->operation = "the cluster's barrier";
  current->place = {nullptr, 0};
  current->caller = caller;
  current->waiting = AT_CLUSTER;
  leave();
}

// ---- for the kernels

Index thread_index() { return current->index; }
Index block_index() { return blocks[entered].index; }
Index block_size() { return block; }
Index grid_size() { return grid; }
int lane() { return current->lane; }

#define CALLER __builtin_return_address(0)

int barrier(bool predicate, Place place) {
  current->waiting = AT_BARRIER;
  current->operation = "__syncthreads";
  current->place = place;
  current->caller = CALLER;
  current->predicate = predicate;
  leave();
  return blocks[entered].barrier_count;
}

void trap(Place place) {
  Finding& finding = report(ASSERTION, CALLER);
  finding.first.file = place.file;
  finding.first.line = place.line;
  snprintf(finding.detail, sizeof finding.detail, "__trap()");
  abandon();
}

// ---- signals: a stack that is full, the user's interrupt, a loop that touches nothing

namespace {

constexpr int STUCK_SECONDS = 3;  // of computing without an access, before a thread counts as endless
struct sigaction fault_before, interrupt_before, clock_before;
alignas(16) unsigned char signal_stack[32 << 10];
pthread_t launcher;
uint64_t steps_at_tick;
const Thread* thread_at_tick;
int ticks_stuck;

const void* instruction_of(void* context) {
  const mcontext_t& machine = static_cast<ucontext_t*>(context)->uc_mcontext;
#if defined(__x86_64__)
  return reinterpret_cast<const char*>(machine.gregs[REG_RIP]) + 1;
#elif defined(__aarch64__)
  return reinterpret_cast<const char*>(machine.pc) + 1;
#else
  return nullptr;
#endif
}

void on_fault(int, siginfo_t* info, void* context) {
  const int owner = current ? owner_of_stack(info->si_addr) : -1;
  const size_t depth = owner < 0 ? STACK_BYTES : (static_cast<unsigned char*>(info->si_addr) - stacks) % STACK_BYTES;
  if (depth >= GUARD_BYTES) {  // no stack of ours: whoever was there before deals with it
    sigaction(SIGSEGV, &fault_before, nullptr);
    return;
  }
  const void* place = instruction_of(context);
  report(STACK, is_kernel_code(place) ? place : last_access).limit = STACK_BYTES - GUARD_BYTES;
  abandon();
}

// Code of the kernel itself can be left at any moment, the runtime's own cannot.
void on_interrupt(int number, siginfo_t*, void* context) {
  interrupted = 1;
  steps_allowed = 0;
  if (interrupt_before.sa_handler != SIG_DFL && interrupt_before.sa_handler != SIG_IGN)
    interrupt_before.sa_handler(number);
  if (pthread_self() == launcher && current && is_kernel_code(instruction_of(context))) abandon();
}

// After each second of computing: has anything happened?
void on_tick(int number, siginfo_t*, void* context) {
  if (pthread_self() != launcher) {
    pthread_kill(launcher, number);
    return;
  }
  const bool moved = current == nullptr || current != thread_at_tick || steps != steps_at_tick;
  ticks_stuck = moved ? 0 : ticks_stuck + 1;
  thread_at_tick = current;
  steps_at_tick = steps;
  const void* place = instruction_of(context);
  if (ticks_stuck < STUCK_SECONDS || !is_kernel_code(place)) return;
  report(ENDLESS, place);
  abandon();
}

// Ours while a launch is under way, the process's own before and after.
class Signals {
 public:
  Signals() {
    launcher = pthread_self();
    interrupted = 0;
    ticks_stuck = 0;
    stack_t own = {};
    own.ss_sp = signal_stack;
    own.ss_size = sizeof signal_stack;
    sigaltstack(&own, &stack_before_);
    handle(SIGSEGV, on_fault, &fault_before);
    handle(SIGINT, on_interrupt, &interrupt_before);
    handle(SIGVTALRM, on_tick, &clock_before);
    const itimerval seconds = {{1, 0}, {1, 0}};
    setitimer(ITIMER_VIRTUAL, &seconds, &timer_before_);
  }
  ~Signals() {
    setitimer(ITIMER_VIRTUAL, &timer_before_, nullptr);
    sigaction(SIGVTALRM, &clock_before, nullptr);
    sigaction(SIGSEGV, &fault_before, nullptr);
    sigaction(SIGINT, &interrupt_before, nullptr);
    sigaltstack(&stack_before_, nullptr);
  }

 private:
  static void handle(int signal, void (*handler)(int, siginfo_t*, void*), struct sigaction* before) {
    struct sigaction action = {};
    action.sa_sigaction = handler;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER | SA_RESTART;  // a handler may be left by longjmp
    sigaction(signal, &action, before);
  }
  stack_t stack_before_;
  itimerval timer_before_;
};

// Room for the stacks of `count` threads.
bool prepare_stacks(size_t count) {
  const size_t needed = count * STACK_BYTES;
  if (stacks_held >= needed) return true;
  if (stacks) munmap(stacks, stacks_held);
  threads.clear();  // their fibers had those stacks
  void* got = mmap(nullptr, needed, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  stacks = got == MAP_FAILED ? nullptr : static_cast<unsigned char*>(got);
  stacks_held = stacks ? needed : 0;
  for (size_t i = 0; stacks && i < count; ++i) mprotect(stacks + i * STACK_BYTES, GUARD_BYTES, PROT_NONE);
  return stacks != nullptr;
}

}  // namespace

}  // namespace rawgrad_emulator

using namespace rawgrad_emulator;

extern "C" {

// Run a kernel.  Returns the number of findings.
int rawgrad_launch(Entry kernel, const unsigned char* argument_buffer, const uint32_t* grid_size,
                   const uint32_t* block_size, const uint32_t* cluster_size, uint32_t dynamic_shared_bytes, int order,
                   uint64_t accesses_allowed) {
  patience = accesses_allowed;
  entry = kernel;
  arguments = argument_buffer;
  grid = {grid_size[0], grid_size[1], grid_size[2]};
  block = {block_size[0], block_size[1], block_size[2]};
  cluster = {cluster_size[0], cluster_size[1], cluster_size[2]};
  findings.clear();
  findings.reserve(MAX_FINDINGS);
  abandoned = false;
  barriers_passed = 0;
  turn_order = order;

  blocks_in_cluster = volume(cluster);
  threads_of_block = volume(block);
  numbers_of_block = (threads_of_block + WARP_SIZE - 1) / WARP_SIZE * WARP_SIZE;
  const size_t count = threads_of_block * blocks_in_cluster;
  if (!prepare_stacks(count)) return -1;
  while (threads.size() < count) threads.push_back(std::make_unique<Thread>());
  threads.resize(count);

  const uint32_t count_of_blocks = volume(grid);
  const bool wrapped = serials_before > UINT32_MAX - 2 - count_of_blocks;
  if (wrapped) serials_before = 0;
  memory_begin_launch(dynamic_shared_bytes, wrapped);
  const Signals signals;
  for (int linear : turns(count_of_blocks / blocks_in_cluster, order, 0)) {
    cluster_serial = serials_before + linear * blocks_in_cluster + 1;
    for (int rank = 0; rank < blocks_in_cluster; ++rank) {
      const uint32_t serial = cluster_serial + rank;
      blocks[rank] = {block_of_serial(serial), serial, 0, 0, false};
    }
    enter_block(0);
    complete = run_cluster(order);
    if (!complete) break;
  }
  memory_end_launch();
  serials_before += count_of_blocks;
  current = nullptr;
  if (!std::all_of(threads.begin(), threads.end(), [](const auto& t) { return t->waiting == FINISHED; }))
    threads.clear();  // fibers that stand somewhere in a kernel
  fflush(stdout);  // of the kernel's printf
  return findings.size();
}

const Finding* rawgrad_findings() { return findings.data(); }
uint64_t rawgrad_barriers() { return barriers_passed; }
int rawgrad_complete() { return complete; }  // whether the last launch came to its end
}  // extern "C"
