// What the lanes of a warp do together, and asynchronous copies: __syncwarp, shuffles, votes, cp.async, ldmatrix
// and mma in software.
//
// A warp operation is a meeting: each lane deposits what it brings, waits for the others, takes what it needs,
// and waits again, so that nobody deposits anew before all have taken.  Compiled without instrumentation.
#include <algorithm>
#include <cstdio>
#include <cstring>

#include "state.h"

#define CALLER __builtin_return_address(0)

namespace rawgrad_emulator {

// ---- __syncwarp, shuffles, votes

// Afterwards each of these lanes has seen all that any of them had.  A lane's own time goes on from the latest of
// theirs, so that what it did before is before that, and what it will do is after.
void sync_warp(unsigned mask, Place place) {
  wait_in_warp(mask, "__syncwarp", place, CALLER);
  // All lanes are here, none has gone on with its own time.
  uint32_t seen[WARP_SIZE] = {}, latest = 0;
  Clock of_all;
  for (int l = 0; l < WARP_SIZE; ++l) {
    const Thread* other = mask >> l & 1 ? thread_in_warp(l) : nullptr;
    if (other == nullptr) continue;
    latest = std::max(latest, other->clock[l]);
    for (int k = 0; k < WARP_SIZE; ++k) seen[k] = std::max(seen[k], other->clock[k]);
    if (by_actor) of_all.join(other->seen);
  }
  wait_in_warp(mask, "__syncwarp", place, CALLER);
  for (int k = 0; k < WARP_SIZE; ++k) current->clock[k] = mask >> k & 1 ? latest : seen[k];
  current->clock[current->lane] = latest + 1;
  if (by_actor) current->seen = std::move(of_all);
}

static const Thread& peer(unsigned mask, int source, const char* operation, Place place, const void* caller) {
  const Thread* other = thread_in_warp(source);
  if (other == nullptr || !(mask >> source & 1) || other->waiting == FINISHED) {
    Finding& finding = report(ABSENT_LANE, caller);
    finding.first.file = place.file;
    finding.first.line = place.line;
    finding.count = source;
    finding.operation = operation;
    snprintf(finding.detail, sizeof finding.detail, "%s",
             !(mask >> source & 1) ? "which is not in the mask"
             : other == nullptr     ? "the block has no such thread"
                                    : "which has returned");
    abandon();
  }
  return *other;
}

uint64_t exchange_bits(unsigned mask, uint64_t value, int source, const char* operation, Place place) {
  const void* caller = CALLER;
  current->bits = value;
  wait_in_warp(mask, operation, place, caller);
  const uint64_t taken = peer(mask, source, operation, place, caller).bits;
  wait_in_warp(mask, operation, place, caller);  // nobody deposits anew before all have taken
  return taken;
}

unsigned ballot(unsigned mask, bool predicate, const char* operation, Place place) {
  const void* caller = CALLER;
  current->predicate = predicate;
  wait_in_warp(mask, operation, place, caller);
  unsigned votes = 0;
  for (int l = 0; l < WARP_SIZE; ++l) {
    const Thread* other = mask >> l & 1 ? thread_in_warp(l) : nullptr;
    if (other && other->waiting != FINISHED && other->predicate) votes |= 1u << l;
  }
  wait_in_warp(mask, operation, place, caller);
  return votes;
}

// ---- cp.async

void async_copy(void* to, const void* from, int bytes, int from_source) {
  const AsyncCopy copy{static_cast<unsigned char*>(to), static_cast<const unsigned char*>(from), bytes, from_source, CALLER};
  begin_async(copy);
  current->uncommitted.push_back(copy);
}
void async_commit() {
  current->groups.push_back(std::move(current->uncommitted));
  current->uncommitted.clear();
}
void async_wait(int groups_left) {
  auto& groups = current->groups;
  while (static_cast<int>(groups.size()) > groups_left) {
    for (const AsyncCopy& copy : groups.front()) deliver_async(copy);
    groups.erase(groups.begin());
  }
}

// The thread ends: are copies still under way?  An empty group may be.
void check_copies_finished() {
  current->groups.push_back(std::move(current->uncommitted));
  current->uncommitted.clear();
  for (const auto& group : current->groups) {
    if (group.empty()) continue;
    const void* caller = group.front().caller;
    for (Finding& known : all_findings())
      if (known.kind == NEVER_WAITED && known.first.caller == caller) {
        ++known.times;
        return;
      }
    report(NEVER_WAITED, caller).bytes = group.front().bytes;
    return;
  }
}

// ---- ldmatrix and mma

// A meeting that all 32 lanes must come to, without exception.
static void meet_whole_warp(const char* operation, Place place, const void* caller) {
  wait_in_warp(0xffffffffu, operation, place, caller);
  for (int l = 0; l < WARP_SIZE; ++l) {
    const Thread* other = thread_in_warp(l);
    if (other && other->waiting != FINISHED) continue;
    Finding& finding = report(WARP_OPERATION, caller);
    finding.first.file = place.file;
    finding.first.line = place.line;
    snprintf(finding.detail, sizeof finding.detail, "lane %d %s", l,
             other ? "has returned" : "does not exist: the block has too few threads");
    abandon();
  }
}

void load_matrices(uint32_t* r, int matrices, const void* row, bool transposed, Place place) {
  const void* caller = CALLER;
  if (current->lane < 8 * matrices) {  // the other lanes' rows are not read
    check_in_shared(row, 16, READ, caller, "ldmatrix");
    check_alignment(row, 16, 16, READ, caller);
    access_memory(row, 16, READ, caller);
  }
  current->deposit = row;
  meet_whole_warp("ldmatrix", place, caller);
  for (int m = 0; m < matrices; ++m) {
    uint16_t pair[2];
    for (int e = 0; e < 2; ++e) {
      int of_row = current->lane / 4, column = current->lane % 4 * 2 + e;
      if (transposed) std::swap(of_row, column);
      memcpy(&pair[e], static_cast<const unsigned char*>(thread_in_warp(m * 8 + of_row)->deposit) + 2 * column, 2);
    }
    r[m] = pair[0] | static_cast<uint32_t>(pair[1]) << 16;
  }
  wait_in_warp(0xffffffffu, "ldmatrix", place, caller);
}

float tensor_core_number(MmaType type, uint32_t word, int half) {
  uint32_t bits;
  if (type == MMA_TF32) {
    bits = word & 0xffffe000u;  // the tensor core reads 19 bits
  } else {
    const uint32_t h = half ? word >> 16 : word & 0xffff;
    if (type == MMA_BF16) {
      bits = h << 16;
    } else {
      const uint32_t exponent = h >> 10 & 31, fraction = h & 1023;
      if (exponent == 0) {  // zero or subnormal: fraction * 2^-24
        const float value = static_cast<float>(fraction) / 16777216.0f;
        return h >> 15 ? -value : value;
      }
      bits = (h >> 15) << 31 | (exponent == 31 ? 255 : exponent + 112) << 23 | fraction << 13;
    }
  }
  float value;
  memcpy(&value, &bits, 4);
  return value;
}

// Which lane holds an element of the fragments, and where: PTX ISA, "Matrix fragments for mma.m16n8k16"
// and "... mma.m16n8k8" (.tf32).
void multiply_matrices(MmaType type, float* d, const uint32_t* a, const uint32_t* b, Place place) {
  struct Fragments {
    uint32_t a[4], b[2];
  } own;
  memcpy(own.a, a, sizeof own.a);
  memcpy(own.b, b, sizeof own.b);
  const void* caller = CALLER;
  current->deposit = &own;
  meet_whole_warp("mma", place, caller);
  const int per_word = type == MMA_TF32 ? 1 : 2, depth = 8 * per_word;
  const auto fragments = [&](int lane) -> const Fragments& {
    return *static_cast<const Fragments*>(thread_in_warp(lane)->deposit);
  };
  const auto element_a = [&](int row, int k) {
    const int place_k = k / per_word;  // in words: 8 of them, two registers of four lanes
    return tensor_core_number(type, fragments(row % 8 * 4 + place_k % 4).a[row / 8 + place_k / 4 * 2], k % per_word);
  };
  const auto element_b = [&](int k, int column) {
    const int place_k = k / per_word;
    return tensor_core_number(type, fragments(column * 4 + place_k % 4).b[place_k / 4], k % per_word);
  };
  float sums[4];
  for (int e = 0; e < 4; ++e) {
    const int row = current->lane / 4 + e / 2 * 8, column = current->lane % 4 * 2 + e % 2;
    float sum = 0;
    for (int k = 0; k < depth; ++k) sum += element_a(row, k) * element_b(k, column);
    sums[e] = d[e] + sum;
  }
  wait_in_warp(0xffffffffu, "mma", place, caller);
  memcpy(d, sums, sizeof sums);
}

}  // namespace rawgrad_emulator
