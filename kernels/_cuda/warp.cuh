// Sums over a warp and over a block, always in the same order.
//
// A warp meets in a butterfly: after the exchange over distance 16, 8, 4, 2, 1 every lane holds the
// result.  Addition is commutative, so all lanes hold the same bits.
#pragma once
#include "common.cuh"

template <class T>
__device__ __forceinline__ T warp_sum(T value) {
#pragma unroll
  for (int distance = WARP / 2; distance > 0; distance /= 2) value += __shfl_xor_sync(ALL_LANES, value, distance);
  return value;
}

// Place for one value per warp; a member of the kernel's Shared struct.
template <class T, int THREADS>
struct WarpValues {
  static_assert(THREADS % WARP == 0 && THREADS <= 1024, "a block is made of whole warps, at most 32");
  T of_warp[THREADS / WARP];
};

// The sum over the THREADS threads of a one-dimensional block, given to all of them.
template <int THREADS, class T>
__device__ __forceinline__ T block_sum(T value, WarpValues<T, THREADS>& values) {
  const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
  value = warp_sum(value);
  if (lane == 0) values.of_warp[warp] = value;
  __syncthreads();  // every warp's sum is written before any thread reads it
  value = T(0);
  for (int w = 0; w < THREADS / WARP; ++w) value += values.of_warp[w];
  __syncthreads();  // all have read before `values` may be written again
  return value;
}
