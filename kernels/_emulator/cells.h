// What a piece of memory remembers, and which accesses are ordered.
//
// A cell remembers who wrote it last and who has read it since.  Two accesses of which one writes are a race
// unless they are ordered:
//
//   by a barrier of the block        - their barrier epochs differ;
//   by __syncwarp between two lanes  - the later lane's vector clock has seen the earlier access;
//   by an mbarrier, or the cluster's - likewise, the clock over all threads that blocks with mbarriers and
//     barrier                          clusters keep;
//   both are atomic.
//
// What an agent of the asynchronous proxy wrote or read is ordered before what a thread does that has seen the
// agent's time: by waiting for it, or by being ordered after a thread that has.
//
// Nothing orders two clusters of a grid, nor two blocks that are in none.  Method: Flanagan and Freund, "FastTrack", 2009, with barriers in
// the place of most of its clocks.
#pragma once
#include <algorithm>

#include "state.h"

namespace rawgrad_emulator {

constexpr uint32_t NOBODY = 0;

struct Writer {
  uint32_t block;  // serial number; NOBODY if nothing was written in this launch
  uint32_t epoch, clock, code;
  uint16_t thread;
  uint16_t agent;  // who wrote in the thread's name, at the time `clock`; 0: the thread itself
  bool atomic;
};
// Those who have read since the last barrier.  Lanes are kept apart, but not their times: a lane counts as
// having read at the time of the last reader.  That is exact unless lanes that synchronise in different groups
// read the same place.  In a block that keeps clocks over all threads, `set` has each thread's own time.
struct Readers {
  uint32_t block;  // of the last one; NOBODY if nobody has read
  uint32_t epoch, clock, lanes, code;
  uint32_t other_code;
  uint32_t set;  // of this cluster, in `read_sets`; 0: none
  uint16_t thread, other;  // the last one, and the last one of another warp
  bool many_blocks, many_warps, atomic;
  bool peers;  // several blocks of this cluster
};
struct Cell {
  Writer writer;
  Readers readers;
};

extern uintptr_t image_begin, image_end;  // the kernels' own code, constants and static variables

// When each thread has read: in order of their numbers in the cluster, of those that have.
struct ReadSet {
  struct One {
    uint32_t number, time;
  };
  std::vector<One> of;
  void add(uint32_t number, uint32_t time) {
    auto place = std::lower_bound(of.begin(), of.end(), number, [](const One& one, uint32_t n) { return one.number < n; });
    if (place == of.end() || place->number != number) place = of.insert(place, {number, time});
    place->time = std::max(place->time, time);
  }
};
extern std::vector<ReadSet> read_sets;  // of this cluster

inline uint32_t code_of(const void* caller) { return reinterpret_cast<uintptr_t>(caller) - image_begin; }

inline Party party_of(uint32_t block, int thread, Access access, uint32_t code) {
  const Index b = block_of_serial(block), t = thread_of_id(thread);
  const void* caller = reinterpret_cast<const void*>(image_begin + code);
  return {{b.x, b.y, b.z}, {t.x, t.y, t.z}, access, 0, nullptr, caller};
}

// Whether what lane `lane` of the current warp did at its time `clock` was before now.
inline bool seen(int lane, uint32_t clock) { return lane == current->lane || current->clock[lane] >= clock; }

// The same for any thread of the cluster, by its number there.
inline bool seen_thread(int number, uint32_t clock) {
  if (number / WARP_SIZE == current->number / WARP_SIZE && seen(number % WARP_SIZE, clock)) return true;
  return by_actor && at(current->seen.threads, number) >= clock;
}
inline bool seen_agent(uint32_t agent, uint32_t time) { return at(current->seen.agents, agent) >= time; }

inline bool after_writer(const Writer& w, Access access) {
  if (w.block == NOBODY || (w.atomic && access == ATOMIC)) return true;
  if (!in_cluster(w.block)) return false;
  if (w.agent) return seen_agent(w.agent, w.clock);
  if (w.block == block_serial && w.epoch != barrier_epoch) return true;
  return seen_thread(number_of(w.block, w.thread), w.clock);
}

// Whether all readers came before this access or do not mind it; if not, one who minds.  An atomic access counts
// as a reader, so among those who mind a plain read there are all earlier atomic ones, not the last alone.
inline bool after_readers(const Readers& r, Access access, Party& who, int& known) {
  if (r.block == NOBODY || (access == ATOMIC && r.atomic) || (access == READ && !r.atomic)) return true;
  int thread = -1;
  uint32_t code = r.code, block = r.block;
  known = 1;
  if (!in_cluster(r.block)) {
    thread = r.thread;
  } else if (r.many_blocks) {  // some are of other blocks, the last one is not
    thread = r.thread;
    known = 2;
  } else if (r.block == block_serial && !r.peers && r.epoch != barrier_epoch) {
    return true;
  } else if (r.set) {
    for (const ReadSet::One& one : read_sets[r.set].of)
      if (!seen_thread(one.number, one.time)) {
        const Thread& reader = thread_of_number(one.number);
        thread = reader.id;
        block = blocks[reader.rank].serial;
      }
    if (thread < 0) return true;
  } else if (r.thread / WARP_SIZE != current->warp) {
    thread = r.thread;
  } else if (r.many_warps) {
    thread = r.other;
    code = r.other_code;
  } else {
    for (int l = 0; l < WARP_SIZE; ++l)
      if (r.lanes >> l & 1 && !seen(l, r.clock)) thread = current->warp * WARP_SIZE + l;
    if (thread < 0) return true;
  }
  who = party_of(block, thread, r.atomic ? ATOMIC : READ, code);
  return false;
}

// Whether what `w` wrote has passed a fence to the asynchronous proxy, by whomever, that is ordered after the write
// and before now.
bool passed_fence(const Writer& w);

inline void remember(Cell& cell, Access access, const void* caller) {
  const uint32_t clock = current->clock[current->lane];
  if (access != READ) {
    Writer& w = cell.writer;
    w.block = block_serial;
    w.thread = current->id;
    w.agent = 0;
    w.atomic = access == ATOMIC;
    w.epoch = barrier_epoch;
    w.clock = clock;
    w.code = code_of(caller);
  }
  if (access == WRITE) return;
  Readers& r = cell.readers;
  uint32_t set = in_cluster(r.block) ? r.set : 0;
  if (r.block == NOBODY || (r.block == block_serial && !r.many_blocks && !r.peers && r.epoch != barrier_epoch)) {
    r = Readers();  // none, or a barrier has passed since
    if (set) read_sets[set].of.clear();
    r.atomic = true;
  } else if (!in_cluster(r.block)) {
    r.many_blocks = true;
  } else if (r.block != block_serial) {
    r.peers = true;
  } else if (r.thread / WARP_SIZE != current->warp) {
    r.many_warps = true;
    r.other = r.thread;
    r.other_code = r.code;
  }
  if (by_actor) {
    if (set == 0) set = read_sets.size(), read_sets.emplace_back();
    read_sets[set].add(current->number, clock);
  }
  r.set = set;
  r.block = block_serial;
  r.epoch = barrier_epoch;
  r.thread = current->id;
  r.atomic = r.atomic && access == ATOMIC;
  r.lanes |= 1u << current->lane;
  r.clock = std::max(r.clock, clock);
  r.code = code_of(caller);
}

}  // namespace rawgrad_emulator
