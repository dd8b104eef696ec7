// Sums of many numbers in a fixed order, and the mean and variance of a set of them.
//
// A *set* is what one mean runs over: a row, a group of channels, a channel of a batch.  `at(m)` says
// where number m of a set lies, so that a set need not be contiguous.  What reads a set is a *team* of
// threads, a warp (TEAM = 32) or a whole block; `rank` is a thread's number in it.
//
// Order: a thread adds every TEAM-th number, in runs of 32 that are then added up, so that a chain
// of n additions becomes two of n/32 and 32; the threads meet in the butterfly of warp.cuh.  The order
// is a function of the number of terms alone.
//
// A set too long for a team's registers or shared memory is cut into *slabs*.  A slab of n numbers gives its
// sum, and with its mean m = sum / n the squares q = sum of (x - m)² and the rest r = sum of (x - m), which is
// not 0 because m is rounded.  Then
//
//   mean = (sum of the slabs' sums) / M
//   sum of (x - mean)² = sum over slabs of q + 2 d r + n d²    d = m - mean
//
// is exact whatever m and mean are, and no large numbers are subtracted from each other.  Without r, float32 loses a
// digit of the variance of numbers around 4096: d has the rounding errors of two means.
// Source: Chan, Golub and LeVeque, "Updating formulae and a pairwise algorithm for computing sample
// variances", 1979, here for all slabs at once and with r.
#pragma once
#include "math.cuh"
#include "vector.cuh"
#include "warp.cuh"

// Two sums that are made together.
template <class T>
struct Two {
  T first, second;
  __device__ __forceinline__ Two(T first = T(0), T second = T(0)) : first(first), second(second) {}
  __device__ __forceinline__ Two& operator+=(const Two& other) {
    first += other.first;
    second += other.second;
    return *this;
  }
};

template <class T>
__device__ __forceinline__ Two<T> warp_sum(Two<T> value) {
  return {warp_sum(value.first), warp_sum(value.second)};
}

// term(first) + term(first + step) + ... while the argument is below `end`.  Unsigned, since first + step
// may pass 2^31.
template <class V, class Term>
__device__ __forceinline__ V long_sum(unsigned first, unsigned end, unsigned step, Term term) {
  constexpr unsigned RUN = 32;
  V total{}, rest{};
  unsigned i = first;
  while (i + (RUN - 1) * step < end) {
    V run{};
#pragma unroll 4
    for (unsigned k = 0; k < RUN; ++k, i += step) run += term(i);
    total += run;
  }
  for (; i < end; i += step) rest += term(i);
  return total += rest;
}

// ---- teams

// The sum over the team, given to all of its threads.
template <int TEAM, class V>
__device__ __forceinline__ V team_sum(V value, WarpValues<V, TEAM>& values) {
  if constexpr (TEAM == WARP)
    return warp_sum(value);
  else
    return block_sum<TEAM>(value, values);
}

// Place for both kinds of sums.
template <class T, int TEAM>
struct TeamValues {
  WarpValues<T, TEAM> of_one;
  WarpValues<Two<T>, TEAM> of_two;
};

// A barrier for the team.
template <int TEAM>
__device__ __forceinline__ void team_sync() {
  if constexpr (TEAM == WARP)
    __syncwarp();  // as said where it is called
  else
    __syncthreads();  // as said where it is called
}

// ---- numbers that are moved together: 16 bytes where addresses allow it (VECTOR), else one number

template <class T, bool VECTOR>
struct alignas(VECTOR ? 16 : sizeof(T)) Part {
  static constexpr int SIZE = VECTOR ? 16 / sizeof(T) : 1;
  T of[SIZE];
};

template <bool VECTOR, class T>
__device__ __forceinline__ Part<T, VECTOR> load_part(const T* from) {
  return *reinterpret_cast<const Part<T, VECTOR>*>(from);
}

template <bool VECTOR, class T>
__device__ __forceinline__ void store_part(T* to, const Part<T, VECTOR>& part) {
  *reinterpret_cast<Part<T, VECTOR>*>(to) = part;
}

// A whole vector of numbers first, first + 1, ... of a run of `end`, in one load or several, with `filler` beyond
// the end or where there is no array.  VECTOR: it lies at a multiple of 16 bytes, all inside or all beyond.
template <bool VECTOR, class T>
__device__ __forceinline__ Vector<T> load_within(const T* from, int first, int end, T filler) {
  Vector<T> part;
  if (VECTOR && from != nullptr && first < end) return load_vector(from + first);
#pragma unroll
  for (int e = 0; e < Vector<T>::SIZE; ++e)
    part.of[e] = !VECTOR && from != nullptr && first + e < end ? from[first + e] : filler;
  return part;
}

template <bool VECTOR, class T>
__device__ __forceinline__ void store_within(T* to, int first, int end, const Vector<T>& part) {
  if constexpr (VECTOR) {
    if (first < end) store_vector(to + first, part);
  } else {
#pragma unroll
    for (int e = 0; e < Vector<T>::SIZE; ++e)
      if (first + e < end) to[first + e] = part.of[e];
  }
}

// ---- staging: numbers of a set that a team keeps in shared memory

constexpr int SLAB_THREADS = 256;

// How many numbers fit: 16 KB.
template <class T>
constexpr int SLAB = 16 * 1024 / sizeof(T);

// How many numbers slab number `slab` of a set of M holds.
template <class T>
__device__ __forceinline__ int slab_count(int slab, int M) {
  return M - slab * SLAB<T> < SLAB<T> ? M - slab * SLAB<T> : SLAB<T>;
}

// Copy `count` numbers of a set to shared memory, whose other threads may read them after the team's next
// barrier.  VECTOR: `count` is a multiple of a vector's size, and so is every place of one's first number.
template <int TEAM, bool VECTOR, class T, class At>
__device__ __forceinline__ void stage(T* __restrict__ staged, const T* __restrict__ from, int rank, int count, At at) {
  constexpr int STEP = Part<T, VECTOR>::SIZE;
  for (int m = rank * STEP; m < count; m += TEAM * STEP)
    store_part<VECTOR>(&staged[m], load_part<VECTOR>(&from[at(m)]));
}

// What a slab gives; see above.
template <class T>
struct Moments {
  T sum, rest, squares;
};

// The moments of `count` staged numbers.
template <int TEAM, class T>
__device__ __forceinline__ Moments<T> staged_moments(const T* __restrict__ staged, int rank, int count,
                                                     TeamValues<T, TEAM>& values) {
  const T sum = team_sum<TEAM>(long_sum<T>(rank, count, TEAM, [&](int m) { return staged[m]; }), values.of_one);
  const T mean = sum / T(count);
  const Two<T> about = team_sum<TEAM>(long_sum<Two<T>>(rank, count, TEAM, [&](int m) {
    const T d = staged[m] - mean;
    return Two<T>(d, d * d);
  }), values.of_two);
  return {sum, about.first, about.second};
}

// The sums of g and of g (x - mean) rstd over `count` staged numbers, for a backward pass.
template <int TEAM, class T>
__device__ __forceinline__ Two<T> staged_products(const T* __restrict__ grad, const T* __restrict__ x, T mean, T rstd,
                                                  int rank, int count, WarpValues<Two<T>, TEAM>& values) {
  return team_sum<TEAM>(long_sum<Two<T>>(rank, count, TEAM, [&](int m) {
    return Two<T>(grad[m], grad[m] * ((x[m] - mean) * rstd));
  }), values);
}

// ---- the second pass over slabs: a warp owns a set

// The sum of what `slabs` slabs have written, slab k at partial[k * step].
template <class T>
__device__ __forceinline__ T merged_sum(const T* __restrict__ partial, int slabs, int step) {
  return warp_sum(long_sum<T>(threadIdx.x % WARP, slabs, WARP, [&](int k) { return partial[k * step]; }));
}

// Mean and variance of a set of M numbers from the moments of its slabs, which lie in `partial` (3, slabs, sets).
template <class T>
__device__ __forceinline__ Two<T> merged_moments(const T* __restrict__ partial, int set, int sets, int M) {
  const int slabs = ceil_div(M, SLAB<T>);
  const T* sums = partial + set;
  const T* rests = sums + slabs * sets;
  const T* squares = rests + slabs * sets;
  const T mean = merged_sum(sums, slabs, sets) / T(M);
  const T total = warp_sum(long_sum<T>(threadIdx.x % WARP, slabs, WARP, [&](int k) {
    const T n = T(slab_count<T>(k, M));
    const T d = sums[k * sets] / n - mean;
    return squares[k * sets] + d * (T(2) * rests[k * sets] + n * d);
  }));
  return {mean, total / T(M)};
}

// ---- columns of a matrix: a block of 32 x 32 threads owns 32 of them

constexpr int COLUMN_ROWS = 32;

template <class V>
struct ColumnValues {
  V of[COLUMN_ROWS][WARP];
};

// The sum of term(row) over first <= row < end for the column of threadIdx.x, given to its thread of
// threadIdx.y = 0; the others get 0.  A column beyond the matrix passes end = first.  Called once in a kernel.
template <class V, class Term>
__device__ __forceinline__ V column_sum(int first, int end, Term term, ColumnValues<V>& values) {
  values.of[threadIdx.y][threadIdx.x] = long_sum<V>(first + threadIdx.y, end, COLUMN_ROWS, term);
  __syncthreads();  // all 32 sums of each column are written before one thread adds them up
  V total{};
  if (threadIdx.y == 0)
    for (int r = 0; r < COLUMN_ROWS; ++r) total += values.of[r][threadIdx.x];
  return total;
}

// 1 / sqrt(var + eps)
template <class T>
__device__ __forceinline__ T reciprocal_deviation(T var, double eps) { return T(1) / sqrt_of(var + T(eps)); }
