// Rows of a matrix, each shared by a team of threads, and the softmax of a row.
//
// A team is a part of a warp (a power of two), a warp, or a whole block of THREADS_OF<TEAM> threads.  It
// reads its row in tiles that it holds in registers; most rows are one tile, so they are read once.
// All sizes and places are unsigned, as threadIdx is: a row may have nearly 2^31 elements, and the end of
// its last tile may lie beyond.
#pragma once
#include "half.cuh"
#include "math.cuh"
#include "warp.cuh"

// The smallest finite number.
template <class T>
__device__ __forceinline__ T lowest();
template <>
__device__ __forceinline__ float lowest<float>() { return -3.40282347e+38f; }
template <>
__device__ __forceinline__ double lowest<double>() { return -1.7976931348623157e+308; }

// ---- the online softmax

// Of the elements z seen so far: m = max z, and the sum of e^(z - m), which cannot overflow.
//
// When a larger element comes, the sum is multiplied by e^(old m - new m).  So one reading finds both,
// and the parts of a row that several threads have seen can be merged.  The maximum starts at the lowest
// finite number: an element of -inf then adds e^-inf = 0, and a row of nothing else ends with the sum 0,
// whose logarithm and inverse give NaN as they should.  NaN and +inf make the sum NaN.
//
// Source: Milakov and Gimelshein, "Online normalizer calculation for softmax", 2018.
template <class T>
struct OnlineSoftmax {
  T max = lowest<T>();
  T sum = T(0);

  __device__ __forceinline__ void add(T z) {
    if (z > max || is_nan(z)) {
      sum = sum * exp_of(max - z) + exp_of(z - z);  // z - z is 0, and NaN for infinity and NaN
      max = z;
    } else {
      sum += exp_of(z - max);
    }
  }
};

// Both together.  One factor is e^0 = 1, and the order of `a` and `b` makes no difference to any bit.
template <class T>
__device__ __forceinline__ OnlineSoftmax<T> merged(const OnlineSoftmax<T>& a, const OnlineSoftmax<T>& b) {
  const bool first = a.max >= b.max || is_nan(a.max);
  const T max = first ? a.max : b.max, lower = first ? b.max : a.max;
  const T sum = first ? a.sum : b.sum, other = first ? b.sum : a.sum;
  return {max, sum + other * exp_of(lower - max)};
}

// What one thread makes of the elements first, first + step, ... below `end`: in runs of 32 that are then put
// together, so that no chain of additions gets long.
constexpr int RUN = 32;

// The softmax of at(c).
template <class T, class At>
__device__ __forceinline__ OnlineSoftmax<T> softmax_in_runs(unsigned first, unsigned end, unsigned step, At at) {
  OnlineSoftmax<T> all;
  for (unsigned c = first; c < end;) {
    OnlineSoftmax<T> run;
    for (int i = 0; i < RUN && c < end; ++i, c += step) run.add(at(c));
    all = merged(all, run);
  }
  return all;
}

// The sum of term(c).
template <class T, class Term>
__device__ __forceinline__ T sum_in_runs(unsigned first, unsigned end, unsigned step, Term term) {
  T all = T(0);
  for (unsigned c = first; c < end;) {
    T run = T(0);
#pragma unroll 4
    for (int i = 0; i < RUN; ++i, c += step)
      if (c < end) run += term(c);
    all += run;
  }
  return all;
}

// ---- teams

template <int TEAM>
constexpr int THREADS_OF = TEAM > WARP ? TEAM : 4 * WARP;  // in a block

// What a team of several warps needs of shared memory; a smaller one needs nothing.
template <class T, int TEAM, bool SEVERAL_WARPS = (TEAM > WARP)>
struct TeamValues {};
template <class T, int TEAM>
struct TeamValues<T, TEAM, true> {
  WarpValues<T, TEAM> max, sum;
};

// The sum over the team's threads, given to all of them; always in the same order.
template <int TEAM, class T>
__device__ __forceinline__ T team_sum(T value, TeamValues<T, TEAM>& values) {
  if constexpr (TEAM > WARP) {
    return block_sum<TEAM>(value, values.sum);
  } else {
#pragma unroll
    for (int distance = TEAM / 2; distance > 0; distance /= 2) value += __shfl_xor_sync(ALL_LANES, value, distance);
    return value;
  }
}

// What the team's threads have seen together, given to all of them.
template <int TEAM, class T>
__device__ __forceinline__ OnlineSoftmax<T> team_merged(OnlineSoftmax<T> own, TeamValues<T, TEAM>& values) {
#pragma unroll
  for (int distance = (TEAM < WARP ? TEAM : WARP) / 2; distance > 0; distance /= 2) {
    const T max = __shfl_xor_sync(ALL_LANES, own.max, distance);
    const T sum = __shfl_xor_sync(ALL_LANES, own.sum, distance);
    own = merged(own, OnlineSoftmax<T>{max, sum});
  }
  if constexpr (TEAM > WARP) {
    if (threadIdx.x % WARP == 0) {
      values.max.of_warp[threadIdx.x / WARP] = own.max;
      values.sum.of_warp[threadIdx.x / WARP] = own.sum;
    }
    __syncthreads();  // what every warp has seen is written before any thread reads it
    own = {values.max.of_warp[0], values.sum.of_warp[0]};
    for (int w = 1; w < TEAM / WARP; ++w)
      own = merged(own, OnlineSoftmax<T>{values.max.of_warp[w], values.sum.of_warp[w]});
    __syncthreads();  // all have read before `values` may be written again
  }
  return own;
}

// ---- tiles

// One thread's part of a tile of SIZE elements that its team holds in registers.
//
// The threads lie side by side along the row, each on STEP elements (VECTOR: 16 bytes, so the row must
// start at a multiple of 16 bytes and have a multiple of STEP elements), and that ITEMS / STEP times.  A
// thread of a large team holds 64 bytes.  S is what rows are made of in memory (half.cuh).
//
// A row of several tiles is first read from the last tile to the first, so that it is the first one that the
// registers hold then; the way back begins with it, and the others are read again.
template <class S, int TEAM, bool VECTOR>
struct RowTile {
  using T = Wide<S>;
  static constexpr int STEP = VECTOR ? Vector<S>::SIZE : 1;
  static constexpr int ITEMS = TEAM < WARP ? (sizeof(S) == 2 ? 8 : 4) : 64 / sizeof(T);
  static constexpr unsigned SIZE = TEAM * ITEMS;

  T of[ITEMS];

  // Tiles in a row.
  static __device__ __forceinline__ unsigned count(unsigned length) { return (length + SIZE - 1) / SIZE; }

  // Call body(i, c) for each element of[i] that this thread holds; its place in the row is c < length.
  template <class Body>
  static __device__ __forceinline__ void each(unsigned base, unsigned length, Body body) {
#pragma unroll
    for (int i = 0; i < ITEMS; i += STEP) {
      const unsigned c = place(base, i);
      if (c < length) {
#pragma unroll
        for (int e = 0; e < STEP; ++e) body(i + e, c + e);
      }
    }
  }

  // Read the tile that begins at `base` from a row of `length` elements; what lies beyond its end stays.
  __device__ __forceinline__ void load(const S* __restrict__ row, unsigned base, unsigned length) {
#pragma unroll
    for (int i = 0; i < ITEMS; i += STEP) {
      const unsigned c = place(base, i);
      if (c < length) {
        if constexpr (VECTOR) {
          load_wide(of + i, row + c);
        } else {
          of[i] = widened(row[c]);
        }
      }
    }
  }

  __device__ __forceinline__ void store(S* __restrict__ row, unsigned base, unsigned length) const {
#pragma unroll
    for (int i = 0; i < ITEMS; i += STEP) {
      const unsigned c = place(base, i);
      if (c < length) {
        if constexpr (VECTOR) {
          store_narrowed(row + c, of + i);
        } else {
          row[c] = narrowed<S>(of[i]);
        }
      }
    }
  }

  // The softmax of the elements that this thread holds.
  __device__ __forceinline__ OnlineSoftmax<T> softmax(unsigned base, unsigned length) const {
    OnlineSoftmax<T> all;
    each(base, length, [&](int i, unsigned) { all.max = max_nan(all.max, of[i]); });
    each(base, length, [&](int i, unsigned) { all.sum += exp_of(of[i] - all.max); });
    return all;
  }

  // The sum of term(i, c) over them.
  template <class Term>
  static __device__ __forceinline__ T sum(unsigned base, unsigned length, Term term) {
    T total = T(0);
    each(base, length, [&](int i, unsigned c) { total += term(i, c); });
    return total;
  }

 private:
  static __device__ __forceinline__ unsigned place(unsigned base, int i) {
    return base + (i / STEP * TEAM + threadIdx.x % TEAM) * STEP;
  }
};
