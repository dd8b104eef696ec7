// Clusters: blocks that run together, wait for each other and reach each other's shared memory.
//
// The order of what they do is told by clocks over all their threads (async.cpp).  Shared memory is there while its
// block runs: who touches it must come after something that the block has done, and before its end, by what is
// ordered and not by what happened in this run.  Compiled without instrumentation.
#include <algorithm>
#include <cstdio>

#include "cells.h"

#define CALLER __builtin_return_address(0)

namespace rawgrad_emulator {

namespace {

// The last access of a thread to the shared memory of another block.
struct Visit {
  uint32_t time = 0;
  const void *place, *caller;
  size_t bytes;
  Access access;
};
std::vector<Visit> visits[MOST_BLOCKS];  // by the numbers of the visitors

Clock gathering, passed;  // of the cluster's barrier
Clock met[MOST_BLOCKS];   // what a block's threads have waited for, whether or not they see what was done before

void misused(const void* caller, const char* why) {
  Finding& finding = report(BARRIER, caller);
  finding.operation = "the cluster's barrier";
  snprintf(finding.detail, sizeof finding.detail, "%s", why);
  abandon();
}

}  // namespace

// ---- for the scheduler

void cluster_begin() {
  const int numbers = blocks_in_cluster > 1 ? number_of(cluster_serial + blocks_in_cluster, 0) : 0;
  for (std::vector<Visit>& of : visits) of.assign(numbers, {});
  for (Clock& clock : met) clock = Clock();
  gathering = passed = Clock();
}

// A phase ends when all threads that have not returned have arrived.
bool cluster_release() {
  bool any = false, complete = true;
  for (int i = 0; i < threads_in_cluster(); ++i) {
    const Thread& thread = thread_at(i);
    any |= thread.in_cluster == ARRIVED;
    complete &= thread.in_cluster == ARRIVED || thread.waiting == FINISHED;
  }
  if (any && complete) {
    passed = std::move(gathering);
    gathering = Clock();
    for (int i = 0; i < threads_in_cluster(); ++i)
      if (thread_at(i).in_cluster == ARRIVED) thread_at(i).in_cluster = COMPLETE;
  }
  bool released = false;
  for (int i = 0; i < threads_in_cluster(); ++i) {
    Thread& thread = thread_at(i);
    if (thread.waiting != AT_CLUSTER || thread.in_cluster != COMPLETE) continue;
    thread.waiting = RUNNABLE;
    released = true;
  }
  return released;
}

bool cluster_report_deadlock() {
  for (int i = 0; i < threads_in_cluster(); ++i) {
    if (thread_at(i).waiting != AT_CLUSTER) continue;
    become(&thread_at(i));
    Finding& finding = report(BARRIER, current->caller);
    for (int j = 0; j < threads_in_cluster(); ++j) {
      Thread& other = thread_at(j);
      if (other.in_cluster == ARRIVED || other.waiting == FINISHED) continue;
      if (!finding.has_second) {
        become(&other);
        finding.second = party_now(READ, other.caller);
        finding.second.file = other.place.file;
        finding.second.line = other.place.line;
        finding.has_second = 1;
      }
      ++finding.count;
    }
    become(nullptr);
    return true;
  }
  return false;
}

// All that others did in its shared memory must have come before something that one of its threads has done.
void cluster_block_ends(int rank) {
  if (blocks_in_cluster == 1) return;
  Clock of_all = met[rank];
  for (int i = rank * threads_in_block(); i < (rank + 1) * threads_in_block(); ++i) {
    fold_clock(thread_at(i));
    of_all.join(thread_at(i).seen);
  }
  for (size_t number = 0; number < visits[rank].size(); ++number) {
    const Visit& last = visits[rank][number];
    if (at(of_all.threads, number) >= last.time) continue;
    become(&thread_of_number(number));
    if (Finding* f = complain_shared(ABSENT_BLOCK, last.place, last.bytes, last.access, last.caller))
      snprintf(f->detail, sizeof f->detail, "nothing says that it has not ended by then");
    become(nullptr);
  }
}

// ---- for the checks

void meet(const Clock& clock) {
  if (blocks_in_cluster > 1) met[current->rank].join(clock);
}

void refuse_block(const void* caller, const char* why, unsigned number) {
  Finding& finding = report(ABSENT_BLOCK, caller);
  const int written = snprintf(finding.detail, sizeof finding.detail, why, number);
  snprintf(finding.detail + written, sizeof finding.detail - written, "; the cluster has %d", blocks_in_cluster);
}

void* place_in_block(const void* place, int rank, const void* caller) {
  if (rank < 0 || rank >= blocks_in_cluster) {
    refuse_block(caller, "it asks for the block of rank %d", rank);
    abandon();
  }
  check_in_shared(place, 1, READ, caller, "an address in another block");
  const unsigned char* own = static_cast<const unsigned char*>(place);
  return const_cast<unsigned char*>(own) + (rank - current->rank) * static_cast<ptrdiff_t>(ARENA_STRIDE);
}

const char* visit(int rank, const void* place, size_t bytes, Access access, const void* caller) {
  visits[rank][current->number] = {current->clock[current->lane], place, caller, bytes, access};
  if (blocks[rank].ended) return "it has ended";
  const int first = number_of(blocks[rank].serial, 0);
  for (int number = first; number < first + threads_in_block(); ++number)
    if (at(current->seen.threads, number)) return nullptr;
  return "nothing says that it has begun";
}

// ---- for the kernels

int cluster_rank() { return current->rank; }
int cluster_size() { return blocks_in_cluster; }
void* in_block(const void* place, int rank) { return place_in_block(place, rank, CALLER); }

void cluster_arrive() {
  const void* caller = CALLER;
  begin_actors();
  if (current->in_cluster != OUTSIDE_PHASE) misused(caller, "it has arrived before, and has not waited since");
  publish(gathering);
  current->in_cluster = ARRIVED;
}

void cluster_wait() {
  const void* caller = CALLER;
  begin_actors();
  if (current->in_cluster == OUTSIDE_PHASE) misused(caller, "it waits without having arrived");
  if (current->in_cluster != COMPLETE) wait_at_cluster(caller);
  current->in_cluster = OUTSIDE_PHASE;
  see(passed);
}

}  // namespace rawgrad_emulator
