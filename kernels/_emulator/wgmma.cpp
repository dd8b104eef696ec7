// wgmma: products of a warpgroup, with operands in shared memory.
//
// The product is computed at the instruction, and kept apart: the accumulators are nonsense until the thread waits
// for the group.  What was read counts as read at any time until then.  Compiled without instrumentation.
#include <cmath>
#include <cstdio>
#include <cstring>

#include "async.h"

#define CALLER __builtin_return_address(0)

namespace rawgrad_emulator {

namespace {

constexpr int DEPTH_BYTES = 32;  // of one instruction, along k

// PTX ISA, "Asynchronous warpgroup level matrix instructions", "Matrix descriptor format".
struct Descriptor {
  uint32_t start, leading, stride, swizzle_bytes;
  explicit Descriptor(uint64_t bits)
      : start((bits & 0x3fff) << 4),
        leading((bits >> 16 & 0x3fff) << 4),
        stride((bits >> 32 & 0x3fff) << 4),
        swizzle_bytes(bits >> 62 == 0 ? 0 : 256 >> (bits >> 62)) {}

  // Of the 16 bytes at `byte` (0 or 16) of a row, with k running fastest.
  uint32_t at(int row, int byte) const {
    if (swizzle_bytes == 0) return start + row / 8 * stride + byte / 16 * leading + row % 8 * 16;
    return swizzled(start + row / 8 * stride + row % 8 * swizzle_bytes + byte, swizzle_bytes);
  }
};

void words_of_row(const Descriptor& matrix, int row, uint32_t (&words)[8]) {
  memcpy(words, arena + matrix.at(row, 0), 16);
  memcpy(words + 4, arena + matrix.at(row, 16), 16);
}

void read_row(const Descriptor& matrix, int row, int half, uint32_t group, const void* caller) {
  const uint32_t offset = matrix.at(row, half * 16);
  const uint32_t agent = agent_of_warp();
  // Beyond the arena there may be anything; access to it is refused all the same.
  read_by_agent(arena + offset, 16, agent, group, caller, "wgmma");
}

void complain_of_accumulators(const void* caller, const char* why, const Accumulators* of) {
  for (Finding& known : all_findings())
    if (known.kind == ACCUMULATORS && known.first.caller == caller) {
      ++known.times;
      return;
    }
  Finding& finding = report(ACCUMULATORS, caller);
  snprintf(finding.detail, sizeof finding.detail, "%s", why);
  if (of) finding.second = party_now(WRITE, of->caller), finding.has_second = 1;
}

}  // namespace

uint64_t wgmma_descriptor(const void* place, uint32_t leading_bytes, uint32_t stride_bytes, int swizzle_code) {
  const void* caller = CALLER;
  check_in_shared(place, 16, READ, caller, "wgmma");
  const uint32_t offset = shared_offset(place);
  if (offset >= ARENA_BYTES) {  // a variable of its own
    if (Finding* f = complain_shared(OUTSIDE, place, 16, READ, caller))
      snprintf(f->detail, sizeof f->detail, "the emulator's wgmma reads what block_shared() gave");
    abandon();
  }
  check_alignment(place, 16, 16, READ, caller);
  // With a swizzle the pattern begins at each multiple of eight rows; only a step along k, within a row, may follow.
  const uint32_t row = swizzle_code == 0 ? 16 : 256 >> swizzle_code;
  if (swizzle_code && offset % (8 * row) >= row) misaligned(place, 16, 8 * row, READ, caller);
  return uint64_t(offset >> 4 & 0x3fff) | uint64_t(leading_bytes >> 4 & 0x3fff) << 16 |
         uint64_t(stride_bytes >> 4 & 0x3fff) << 32 | uint64_t(swizzle_code) << 62;
}

void wgmma_multiply(MmaType type, float* d, int columns, uint64_t a_bits, uint64_t b_bits, bool accumulate, Place place) {
  const void* caller = CALLER;
  AsyncState& state = async_state();
  wait_in_warpgroup("wgmma", place, caller);
  uint32_t& agent = agent_of_warp();
  if (agent == 0) agent = new_agent();
  if (!state.fenced) complain_of_accumulators(caller, "no wgmma.fence stands between it and what was done to the registers before", nullptr);
  const Descriptor a(a_bits), b(b_bits);
  const uint32_t group = state.groups + 1;
  const int lane = current->lane, first_row = current->warp % 4 * 16;
  read_row(a, first_row + lane / 2, lane % 2, group, caller);
  for (int i = lane; i < 2 * columns; i += WARP_SIZE) read_row(b, i / 2, i % 2, group, caller);

  Accumulators* own = nullptr;
  for (Accumulators& other : state.accumulators)
    if (other.place == d) own = &other;
  if (own == nullptr) {
    state.accumulators.push_back({d, std::vector<float>(d, d + columns / 2), 0, nullptr});
    own = &state.accumulators.back();
  }
  own->group = group;
  own->caller = caller;

  const int per_word = type == MMA_TF32 ? 1 : 2;
  uint32_t of_a[2][8], of_b[8];
  for (int h = 0; h < 2; ++h) words_of_row(a, first_row + lane / 4 + 8 * h, of_a[h]);
  for (int pair = 0; pair < columns / 4; ++pair) {  // d[4 j + e]: row lane / 4 + 8 (e / 2), column 8 j + 2 (lane % 4) + e % 2
    const int column = pair / 2 * 8 + 2 * (lane % 4) + pair % 2;
    words_of_row(b, column, of_b);
    for (int h = 0; h < 2; ++h) {
      float sum = 0;
      for (int k = 0; k < 8 * per_word; ++k)
        sum += tensor_core_number(type, of_a[h][k / per_word], k % per_word) *
               tensor_core_number(type, of_b[k / per_word], k % per_word);
      float& value = own->values[pair / 2 * 4 + 2 * h + pair % 2];
      value = accumulate ? value + sum : sum;
    }
  }
  memset(d, 0xff, columns / 2 * sizeof *d);
  wait_in_warpgroup("wgmma", place, caller);  // nobody writes before all have read
}

void wgmma_fence() { async_state().fenced = true; }
void wgmma_commit() { ++async_state().groups; }

void wgmma_wait(int groups_left) {
  AsyncState& state = async_state();
  const uint32_t done = state.groups - std::min<uint32_t>(groups_left, state.groups);
  for (size_t i = 0; i < state.accumulators.size();) {
    Accumulators& one = state.accumulators[i];
    if (one.group > done) {
      ++i;
      continue;
    }
    memcpy(one.place, one.values.data(), one.values.size() * sizeof(float));
    state.accumulators.erase(state.accumulators.begin() + i);
  }
  state.fenced = false;
  if (const uint32_t agent = agent_of_warp()) raise(current->seen.agents, agent, done);
}

void touch_own(const void* place, size_t bytes, Access access, const void* caller) {
  const unsigned char* begin = static_cast<const unsigned char*>(place);
  for (const Accumulators& one : current->async->accumulators) {
    const unsigned char* first = reinterpret_cast<const unsigned char*>(one.place);
    if (begin + bytes <= first || begin >= first + one.values.size() * sizeof(float)) continue;
    complain_of_accumulators(caller, access == READ ? "it reads them" : "it writes them", &one);
  }
}

void wgmma_thread_ends() {
  for (const Accumulators& one : current->async->accumulators) {
    complain_of_accumulators(one.caller, "the thread returns without waiting for them", nullptr);
    return;
  }
}

}  // namespace rawgrad_emulator
