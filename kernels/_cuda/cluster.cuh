// Clusters: blocks that run at the same time and reach each other's shared memory (sm_90 and newer).
//
//   __global__ void __cluster_dims__(2, 1, 1) k(...)      the blocks 2 i and 2 i + 1 of the grid are a cluster
//
// A side is a number or a template parameter; at most 8 blocks; the grid must be a multiple of it.  A launch needs
// nothing more.
//
// All blocks have the same layout of shared memory, so that a place in another block's is named by the place in one's
// own and the rank of the other.  It is there from when that block has begun until it ends: so a cluster_sync() comes
// first (when barriers have been initialised, or whatever others will find there), and another one comes last, unless
// something else keeps the blocks whose memory is still used from ending.
//
// Source: PTX ISA, "Cluster of Cooperative Thread Arrays", "barrier.cluster", "mapa", "mbarrier".
#pragma once
#include "mbarrier.cuh"

// Of this block in its cluster, x running fastest.
__device__ __forceinline__ int cluster_rank() {
#ifdef RAWGRAD_EMULATED
  return rawgrad_emulator::cluster_rank();
#else
  int rank;
  asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
#endif
}

__device__ __forceinline__ int cluster_size() {
#ifdef RAWGRAD_EMULATED
  return rawgrad_emulator::cluster_size();
#else
  int size;
  asm("mov.u32 %0, %%cluster_nctarank;" : "=r"(size));
  return size;
#endif
}

// ---- the barrier of all threads of the cluster that have not returned

// What the thread has written before is seen by those who have waited.  Each thread arrives once, then waits once.
__device__ __forceinline__ void cluster_arrive() {
#ifdef RAWGRAD_EMULATED
  rawgrad_emulator::cluster_arrive();
#else
  asm volatile("barrier.cluster.arrive.release;" ::: "memory");
#endif
}
__device__ __forceinline__ void cluster_wait() {
#ifdef RAWGRAD_EMULATED
  rawgrad_emulator::cluster_wait();
#else
  asm volatile("barrier.cluster.wait.acquire;" ::: "memory");
#endif
}
__device__ __forceinline__ void cluster_sync() {
  cluster_arrive();
  cluster_wait();
}

// ---- another block's shared memory

#ifndef RAWGRAD_EMULATED
// The 32-bit address of `place` in the shared memory of block `rank`.
__device__ __forceinline__ uint32_t address_in_block(const void* place, int rank) {
  uint32_t there;
  asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"(shared_address(place)), "r"(rank));
  return there;
}
template <class To, class From>
__device__ __forceinline__ To same_bits(From from) {
  static_assert(sizeof(To) == sizeof(From), "the same bits");
  To to;
  memcpy(&to, &from, sizeof to);
  return to;
}
#endif

// What stands at `place` in the shared memory of block `rank`; T has 4 or 8 bytes.
template <class T>
__device__ __forceinline__ T load_from_block(const T* place, int rank) {
  static_assert(sizeof(T) == 4 || sizeof(T) == 8, "4 or 8 bytes at once");
#ifdef RAWGRAD_EMULATED
  return *static_cast<const T*>(rawgrad_emulator::in_block(place, rank));
#else
  const uint32_t from = address_in_block(place, rank);
  if constexpr (sizeof(T) == 4) {
    uint32_t bits;
    asm volatile("ld.shared::cluster.b32 %0, [%1];" : "=r"(bits) : "r"(from) : "memory");
    return same_bits<T>(bits);
  } else {
    uint64_t bits;
    asm volatile("ld.shared::cluster.b64 %0, [%1];" : "=l"(bits) : "r"(from) : "memory");
    return same_bits<T>(bits);
  }
#endif
}

template <class T>
__device__ __forceinline__ void store_to_block(T* place, int rank, T value) {
  static_assert(sizeof(T) == 4 || sizeof(T) == 8, "4 or 8 bytes at once");
#ifdef RAWGRAD_EMULATED
  *static_cast<T*>(rawgrad_emulator::in_block(place, rank)) = value;
#else
  const uint32_t to = address_in_block(place, rank);
  if constexpr (sizeof(T) == 4)
    asm volatile("st.shared::cluster.b32 [%0], %1;" ::"r"(to), "r"(same_bits<uint32_t>(value)) : "memory");
  else
    asm volatile("st.shared::cluster.b64 [%0], %1;" ::"r"(to), "l"(same_bits<uint64_t>(value)) : "memory");
#endif
}

// ---- another block's mbarriers

// Arrive at the barrier of block `rank` that is `barrier` in one's own.
__device__ __forceinline__ void arrive_at_block(Barrier& barrier, int rank) {
#ifdef RAWGRAD_EMULATED
  rawgrad_emulator::mbarrier_arrive_at(&barrier, rank);
#else
  asm volatile("mbarrier.arrive.release.cluster.shared::cluster.b64 _, [%0];" ::"r"(address_in_block(&barrier, rank))
               : "memory");
#endif
}

// As wait(), for a barrier at which threads of other blocks arrive: what they have done before is seen, too.
__device__ __forceinline__ void wait_cluster(Barrier& barrier, int parity) {
#ifdef RAWGRAD_EMULATED
  rawgrad_emulator::mbarrier_wait_cluster(&barrier, parity);
#else
  uint32_t ended;
  do {
    asm volatile(
        "{\n"
        ".reg .pred ended;\n"
        "mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 ended, [%1], %2;\n"
        "selp.u32 %0, 1, 0, ended;\n"
        "}"
        : "=r"(ended)
        : "r"(shared_address(&barrier)), "r"(parity)
        : "memory");
  } while (!ended);
#endif
}

// Compilers refuse the word for older GPUs even on templates that nobody instantiates there, so a source with kernels
// for both kinds would compile for the newer ones alone.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
#undef __cluster_dims__
#define __cluster_dims__(...)
#endif
