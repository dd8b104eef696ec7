// Bulk copies by the tensor memory accelerator (TMA), begun by a single thread (sm_90 and newer).
//
// A copy to shared memory ends on a barrier (mbarrier.cuh): its bytes count, those beyond the tensor's edges too, which
// arrive as zeros.  A copy to global memory belongs to a group of its thread, which waits for it.
//
// These copies, and wgmma, use memory through another path than loads and stores do, the asynchronous proxy: what
// threads have written, it sees only after fence_async_proxy() by them, or by one who has synchronised with them.
//
// A box of a tensor of 2 or 3 dimensions lies in shared memory row after row, at a multiple of 128 bytes.  With a
// swizzle of 128 (64, 32) bytes a row has as many, and the place of its 16-byte pieces is changed: bits 4-6 (4-5, 4)
// of the address are combined with bits 7-9 (7-8, 7) by exclusive or, so that a column falls into all banks; the
// box then begins at a multiple of 1024 (512, 256).
// Source: PTX ISA, "Data movement and conversion instructions: asynchronous copy".
#pragma once
#include "mbarrier.cuh"

// Made by the host (TensorMap of kernels/_launch.py); a kernel's parameter `const __grid_constant__ TensorMap`.
struct alignas(64) TensorMap {
  uint64_t opaque[16];
};

// What this thread has written to shared memory, or has seen there, may be read by the asynchronous proxy.
__device__ __forceinline__ void fence_async_proxy() {
#ifdef RAWGRAD_EMULATED
  rawgrad_emulator::fence_proxy();
#else
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#endif
}

// ---- to shared memory

// The box that begins at element x of row y (of matrix z); x runs fastest in memory.
__device__ __forceinline__ void load_box(void* to, const TensorMap& map, int x, int y, Barrier& barrier) {
#ifdef RAWGRAD_EMULATED
  const int at[] = {x, y};
  rawgrad_emulator::load_box(to, &map, &barrier, 2, at);
#else
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3}], [%4];" ::"r"(
          shared_address(to)),
      "l"(&map), "r"(x), "r"(y), "r"(shared_address(&barrier))
      : "memory");
#endif
}
__device__ __forceinline__ void load_box(void* to, const TensorMap& map, int x, int y, int z, Barrier& barrier) {
#ifdef RAWGRAD_EMULATED
  const int at[] = {x, y, z};
  rawgrad_emulator::load_box(to, &map, &barrier, 3, at);
#else
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3, %4}], "
      "[%5];" ::"r"(shared_address(to)),
      "l"(&map), "r"(x), "r"(y), "r"(z), "r"(shared_address(&barrier))
      : "memory");
#endif
}

// The same to several blocks of the cluster, those whose bits are set in `blocks` (bit r: rank r), by one fetch: the box
// lands at the same place of the shared memory of each, and its bytes count at the same barrier of each, which must
// have been initialised (cluster.cuh).
__device__ __forceinline__ void load_box_to_blocks(void* to, const TensorMap& map, int x, int y, int z, Barrier& barrier,
                                                   uint16_t blocks) {
#ifdef RAWGRAD_EMULATED
  const int at[] = {x, y, z};
  rawgrad_emulator::load_box_many(to, &map, &barrier, 3, at, blocks);
#else
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.multicast::cluster "
      "[%0], [%1, {%2, %3, %4}], [%5], %6;" ::"r"(shared_address(to)),
      "l"(&map), "r"(x), "r"(y), "r"(z), "r"(shared_address(&barrier)), "h"(blocks)
      : "memory");
#endif
}

// Plain bytes, a multiple of 16, between places at multiples of 16.
__device__ __forceinline__ void load_bytes(void* to, const void* from, int bytes, Barrier& barrier) {
#ifdef RAWGRAD_EMULATED
  rawgrad_emulator::load_bytes(to, from, bytes, &barrier);
#else
  asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
                   shared_address(to)),
               "l"(from), "r"(bytes), "r"(shared_address(&barrier))
               : "memory");
#endif
}

// ---- to global memory

__device__ __forceinline__ void store_box(const TensorMap& map, int x, int y, const void* from) {
#ifdef RAWGRAD_EMULATED
  const int at[] = {x, y};
  rawgrad_emulator::store_box(&map, from, 2, at);
#else
  asm volatile("cp.async.bulk.tensor.2d.global.shared::cta.tile.bulk_group [%0, {%2, %3}], [%1];" ::"l"(&map),
               "r"(shared_address(from)), "r"(x), "r"(y)
               : "memory");
#endif
}
__device__ __forceinline__ void store_box(const TensorMap& map, int x, int y, int z, const void* from) {
#ifdef RAWGRAD_EMULATED
  const int at[] = {x, y, z};
  rawgrad_emulator::store_box(&map, from, 3, at);
#else
  asm volatile("cp.async.bulk.tensor.3d.global.shared::cta.tile.bulk_group [%0, {%2, %3, %4}], [%1];" ::"l"(&map),
               "r"(shared_address(from)), "r"(x), "r"(y), "r"(z)
               : "memory");
#endif
}
__device__ __forceinline__ void store_bytes(void* to, const void* from, int bytes) {
#ifdef RAWGRAD_EMULATED
  rawgrad_emulator::store_bytes(to, from, bytes);
#else
  asm volatile("cp.async.bulk.global.shared::cta.bulk_group [%0], [%1], %2;" ::"l"(to), "r"(shared_address(from)), "r"(bytes)
               : "memory");
#endif
}

// The stores begun since the last commit become a group.
__device__ __forceinline__ void commit_stores() {
#ifdef RAWGRAD_EMULATED
  rawgrad_emulator::store_commit();
#else
  asm volatile("cp.async.bulk.commit_group;" ::: "memory");
#endif
}

// Wait until of all but this thread's latest GROUPS_LEFT groups the shared memory has been read, and may be written
// again (and the block may end).
template <int GROUPS_LEFT>
__device__ __forceinline__ void wait_stores() {
#ifdef RAWGRAD_EMULATED
  rawgrad_emulator::store_wait(GROUPS_LEFT);
#else
  asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(GROUPS_LEFT) : "memory");
#endif
}
