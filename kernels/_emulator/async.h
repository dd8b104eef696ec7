// Mbarriers, copies of the asynchronous proxy, and what a thread has under way there.
#pragma once
#include <map>

#include "state.h"

namespace rawgrad_emulator {

// Its state lies here, not in the eight bytes of shared memory that stand for it.
struct Mbarrier {
  const void* place;
  uint32_t arrivals;         // that a phase needs
  uint32_t missing;          // of them
  int64_t bytes;             // expected, less those that have landed
  int64_t expected;          // in this phase
  uint32_t phase;            // how many have passed
  uint32_t agent;            // whose copies land here
  int initialiser;           // a thread
  bool announced;            // a fence has told the asynchronous proxy of it
  Clock gathering;           // of those who have arrived in this phase
  Clock passed[2];           // of the last phase of each parity
  Clock gathering_of_peers, passed_of_peers[2];  // likewise of the threads of other blocks
};

// What a tensor map says, in the place of the driver's 128 bytes.  Mirrored by kernels/_tensor_map.py.
struct TensorMapText {
  uint64_t magic, address;
  uint64_t strides[4];  // in bytes, of the second dimension and on
  uint32_t rank, element_bytes, swizzle_bytes, to_tf32;
  uint32_t size[5], box[5];  // in elements; the fastest first
};
constexpr uint64_t TENSOR_MAP_MAGIC = 0x70616d20726f736eull;
static_assert(sizeof(TensorMapText) <= 128, "as large as the driver's");

struct Box {
  TensorMapText map;  // of plain bytes: rank 0
  int at[5];
};

// A copy that is under way, either way.
struct BulkCopy {
  Box box;
  unsigned char* shared;
  unsigned char* global;  // of plain bytes
  uint32_t bytes;         // in shared memory
  Mbarrier* barrier;      // null: a store
  int thread;             // its number in the cluster
  const void* caller;
};

struct Accumulators {
  float* place;
  std::vector<float> values;  // what they will be
  uint32_t group;             // of the last wgmma that writes them
  const void* caller;         // which that was
};

struct AsyncState {
  bool fenced = false;       // wgmma.fence since the last wait
  uint32_t groups = 0;       // of wgmma, committed
  std::vector<Accumulators> accumulators;
  uint32_t store_agent = 0, store_groups = 0, stores_done = 0;
  std::vector<BulkCopy> open_stores;
  std::vector<std::vector<BulkCopy>> stores;
};
AsyncState& async_state();  // of the current thread
void wgmma_thread_ends();
extern std::vector<uint32_t> agents_of_warps;  // of this cluster: their tensor cores
inline uint32_t& agent_of_warp() { return agents_of_warps[current->number / WARP_SIZE]; }

// Where 16 bytes at `offset` lie that a swizzle of 128, 64 or 32 bytes has moved; 0 for none.
inline size_t swizzled(size_t offset, uint32_t bytes) { return offset ^ (offset >> 3 & (bytes < 32 ? 0 : bytes - 16)); }

}  // namespace rawgrad_emulator
