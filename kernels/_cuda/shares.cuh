// A set of numbers that the blocks of a cluster keep together in their shared memory, and its mean and variance, or its
// sums for a backward pass (sm_90 and newer).  Each block has a share; its moments (reduce.cuh) or its sums go to all
// blocks of the cluster, and every block merges them in the order of the ranks, so that all have the same bits.
#pragma once
#include "async.cuh"
#include "cluster.cuh"
#include "reduce.cuh"

constexpr int CLUSTER_THREADS = 256;  // of a block
// So many numbers a block keeps where a kernel needs one array of them, 64 KB, and of each where a backward pass needs
// two, 96 KB.
template <class T>
constexpr int KEPT = 64 * 1024 / sizeof(T);
template <class T>
constexpr int KEPT_BACKWARD = 48 * 1024 / sizeof(T);

// The numbers of a set of M that a block owns: equal parts, of whole vectors whether they are moved so or not.
struct Share {
  int first, count;
};
template <class T>
__device__ __forceinline__ Share share_of(int block, int blocks, int M) {
  constexpr int SIZE = Vector<T>::SIZE;
  const int part = ceil_div(ceil_div(M, blocks), SIZE) * SIZE, first = min(block * part, M);
  return {first, min(part, M - first)};
}

// Start copying a share to shared memory; its number m lies at from[at(m)].  VECTOR: as for stage().
template <bool VECTOR, class T, class At>
__device__ __forceinline__ void copy_share(T* kept, const T* __restrict__ from, const Share& share, At at) {
  constexpr int STEP = Part<T, VECTOR>::SIZE;
  for (int m = threadIdx.x * STEP; m < share.count; m += CLUSTER_THREADS * STEP)
    copy_async<STEP * sizeof(T)>(&kept[m], &from[at(share.first + m)], true);
}

// What this thread has copied has arrived; what others have, too.
__device__ __forceinline__ void wait_for_share() {
  commit_copies();
  wait_copies<0>();
  __syncthreads();  // all threads' copies have arrived before sums are made of them
}

// The moments of every block's share, each written by that block.
template <class T, int CLUSTER>
struct MomentsOfBlocks {
  T sum[CLUSTER], rest[CLUSTER], squares[CLUSTER];

  // Write this block's to block `to`, as all threads of the cluster have begun.
  __device__ __forceinline__ void tell(const Moments<T>& own, int to) {
    const int rank = cluster_rank();
    store_to_block(&sum[rank], to, own.sum);
    store_to_block(&rest[rank], to, own.rest);
    store_to_block(&squares[rank], to, own.squares);
  }

  // Mean and variance of the set of M times `each` numbers, of which share_of(M) was made.  A cluster_sync() lies
  // between this and what the blocks tell.
  __device__ __forceinline__ Two<T> merged(int M, int each = 1) const {
    T total_sum = 0, total = 0;
    for (int block = 0; block < CLUSTER; ++block) total_sum += sum[block];
    const T mean = total_sum / T(M * each);
    for (int block = 0; block < CLUSTER; ++block) {
      const T n = T(share_of<T>(block, CLUSTER, M).count * each);
      if (n == T(0)) break;  // nor have those after it any
      const T d = sum[block] / n - mean;
      total += squares[block] + d * (T(2) * rest[block] + n * d);
    }
    return {mean, total / T(M * each)};
  }
};

// Mean and variance of the set of M numbers, of which this block's share has the moments `own`.  Every block has called
// cluster_arrive() when it began, and not yet waited.  Afterwards no block touches another one.
template <int CLUSTER, class T>
__device__ __forceinline__ Two<T> moments_of_cluster(const Moments<T>& own, int M, MomentsOfBlocks<T, CLUSTER>& of) {
  cluster_wait();  // every block has begun before one writes to it
  if (threadIdx.x < CLUSTER) of.tell(own, threadIdx.x);
  cluster_sync();  // the moments of every block are written before any block reads them
  return of.merged(M);
}

// Two sums of every block's share, each written by that block.
template <class T, int CLUSTER>
struct SumsOfBlocks {
  T first[CLUSTER], second[CLUSTER];

  // Write this block's to block `to`, as all threads of the cluster have begun.
  __device__ __forceinline__ void tell(const Two<T>& own, int to) {
    const int rank = cluster_rank();
    store_to_block(&first[rank], to, own.first);
    store_to_block(&second[rank], to, own.second);
  }

  // Of the blocks begin, begin + 1, ... below `end`.  A cluster_sync() lies between this and what they tell.
  __device__ __forceinline__ Two<T> sum(int begin, int end) const {
    Two<T> total;
    for (int block = begin; block < end; ++block) total += Two<T>(first[block], second[block]);
    return total;
  }
};
