// Batch normalisation: every channel of x gets mean 0 and variance 1, then its own scale and shift.
//
//   N C L  sizes: x is (N, C, L), L the product of all further dimensions;  M = N L numbers per channel
//   w b    (C,) weight and bias, null for 1 and 0;  g = dL/dy
//
//   forward    y = w xhat + b    xhat = (x - mean) rstd    rstd = 1 / sqrt(var + eps)
//   inference  the same with given mean and var
//   backward   db = sum g    dw = sum g xhat    dx = w rstd (g - db / M - xhat dw / M)
//
// Number m of channel c lies in example n = m / L at position l = m % L, at x[(n C + c) L + l].
//
//   v1_plain   a block owns a channel and reads it once for the mean, once for the variance, once to normalise
//              it.  Backward: once for db and dw, once for dx.  With few channels most of a GPU idles
//   v2_slabs   a channel is cut into slabs of 16 KB.  A slab is copied to shared memory by 16-byte loads where
//              rows allow (VECTOR), so that its mean and its squares cost one reading.  Channels of one slab
//              are done by one kernel, which reads x (and g) once.  Longer ones take three: sums of the slabs,
//              their merger by a warp per channel, and the result slab by slab; few channels still fill a GPU
//   v3_cluster up to eight blocks of a cluster keep a longer channel in their shared memory, and tell each other
//              their moments: one launch, one reading (sm_90 and newer)
//   v4_columns for many examples of few positions, where a channel's runs are shorter than the 32 bytes that are read
//              at once: a cluster owns neighbouring channels, 32 columns of x as a matrix; its blocks share the rows
//
// The variance is the mean of (x - mean)², never E[x²] - mean²; see reduce.cuh for the order of sums.
//
// Source: Ioffe and Szegedy, "Batch normalization", 2015.

#include "shares.cuh"

// Where number m of channel c lies.
__device__ __forceinline__ int place(int m, int c, int C, int L) {
  const unsigned n = unsigned(m) / unsigned(L);
  return (n * C + c) * L + (m - n * L);
}

// y for one number: `scale` is w rstd.
template <class T>
__device__ __forceinline__ T normalized(T x, T mean, T scale, T shift) { return (x - mean) * scale + shift; }

// What dx takes of a channel: dx = scale (g - of_g - xhat of_product).
template <class T>
struct InputGradient {
  T mean, rstd, scale, of_g, of_product;

  __device__ __forceinline__ T operator()(T g, T x) const {
    return (g - of_g - (x - mean) * rstd * of_product) * scale;
  }
};

template <class T>
__device__ __forceinline__ InputGradient<T> input_gradient(T mean, T rstd, const T* __restrict__ weight, int c, T db,
                                                           T dw, int M) {
  return {mean, rstd, weight == nullptr ? rstd : rstd * weight[c], db / T(M), dw / T(M)};
}

// ---- v1

// Block: 256 threads and a channel.  Thread: every 256th number of it.
template <class T>
__global__ void __launch_bounds__(256, 4)
batch_norm_forward_v1_plain(const T* __restrict__ x, const T* __restrict__ weight, const T* __restrict__ bias,
                            T* __restrict__ y, T* __restrict__ mean, T* __restrict__ rstd, int N, int C, int L,
                            double eps) {
  struct Shared {
    WarpValues<T, 256> values;
  };
  Shared& s = block_shared<Shared>();
  const int c = blockIdx.x, M = N * L;

  const T sum = long_sum<T>(threadIdx.x, M, 256, [&](int m) { return x[place(m, c, C, L)]; });
  const T mu = block_sum<256>(sum, s.values) / T(M);
  const T squares = long_sum<T>(threadIdx.x, M, 256, [&](int m) {
    const T d = x[place(m, c, C, L)] - mu;
    return d * d;
  });
  const T r = reciprocal_deviation(block_sum<256>(squares, s.values) / T(M), eps);

  const T scale = weight == nullptr ? r : r * weight[c], shift = bias == nullptr ? T(0) : bias[c];
  for (int m = threadIdx.x; m < M; m += 256) {
    const int i = place(m, c, C, L);
    y[i] = normalized(x[i], mu, scale, shift);
  }
  if (threadIdx.x == 0) {
    mean[c] = mu;
    rstd[c] = r;
  }
}

// Block: 256 threads.  Thread: one number.
template <class T>
__global__ void __launch_bounds__(256, 4)
batch_norm_inference_v1_plain(const T* __restrict__ x, const T* __restrict__ mean, const T* __restrict__ var,
                              const T* __restrict__ weight, const T* __restrict__ bias, T* __restrict__ y, int N,
                              int C, int L, double eps) {
  const unsigned i = blockIdx.x * 256 + threadIdx.x;
  if (i >= unsigned(N * C * L)) return;
  const int c = i / L % C;
  const T r = reciprocal_deviation(var[c], eps);
  y[i] = normalized(x[i], mean[c], weight == nullptr ? r : r * weight[c], bias == nullptr ? T(0) : bias[c]);
}

// Block: 256 threads and a channel.  Thread: every 256th number of it.
template <class T>
__global__ void __launch_bounds__(256, 4)
batch_norm_backward_v1_plain(const T* __restrict__ grad, const T* __restrict__ x, const T* __restrict__ weight,
                             const T* __restrict__ mean, const T* __restrict__ rstd, T* __restrict__ dx,
                             T* __restrict__ dweight, T* __restrict__ dbias, int N, int C, int L) {
  struct Shared {
    WarpValues<Two<T>, 256> values;
  };
  Shared& s = block_shared<Shared>();
  const int c = blockIdx.x, M = N * L;
  const T mu = mean[c], r = rstd[c];

  Two<T> sums = long_sum<Two<T>>(threadIdx.x, M, 256, [&](int m) {
    const int i = place(m, c, C, L);
    return Two<T>(grad[i], grad[i] * ((x[i] - mu) * r));
  });
  sums = block_sum<256>(sums, s.values);
  const InputGradient<T> gradient = input_gradient(mu, r, weight, c, sums.first, sums.second, M);
  for (int m = threadIdx.x; m < M; m += 256) {
    const int i = place(m, c, C, L);
    dx[i] = gradient(grad[i], x[i]);
  }
  if (threadIdx.x == 0) {
    dbias[c] = sums.first;
    dweight[c] = sums.second;
  }
}

// ---- v2: a channel of one slab

// Block: 256 threads and 256 / TEAM channels.  TEAM neighbours own a channel, which is at most their share of
// the slab.
template <class T, int TEAM, bool VECTOR>
__global__ void __launch_bounds__(256, 4)
batch_norm_forward_v2_slabs(const T* __restrict__ x, const T* __restrict__ weight, const T* __restrict__ bias,
                            T* __restrict__ y, T* __restrict__ mean, T* __restrict__ rstd, int N, int C, int L,
                            double eps) {
  constexpr int TEAMS = SLAB_THREADS / TEAM, STEP = Part<T, VECTOR>::SIZE;
  struct Shared {
    alignas(16) T x[TEAMS][SLAB<T> / TEAMS];
    TeamValues<T, TEAM> values;
  };
  Shared& s = block_shared<Shared>();
  const int rank = threadIdx.x % TEAM, team = threadIdx.x / TEAM, M = N * L;
  const int c = blockIdx.x * TEAMS + team;
  if (c >= C) return;  // a whole warp, and only where no barrier of the block follows

  stage<TEAM, VECTOR>(s.x[team], x, rank, M, [&](int m) { return place(m, c, C, L); });
  team_sync<TEAM>();  // the channel is complete before its sums are made
  const Moments<T> moments = staged_moments<TEAM>(s.x[team], rank, M, s.values);
  const T mu = moments.sum / T(M), r = reciprocal_deviation(moments.squares / T(M), eps);

  const T scale = weight == nullptr ? r : r * weight[c], shift = bias == nullptr ? T(0) : bias[c];
  for (int m = rank * STEP; m < M; m += TEAM * STEP) {
    Part<T, VECTOR> part = load_part<VECTOR>(&s.x[team][m]);
#pragma unroll
    for (int e = 0; e < STEP; ++e) part.of[e] = normalized(part.of[e], mu, scale, shift);
    store_part<VECTOR>(&y[place(m, c, C, L)], part);
  }
  if (rank == 0) {
    mean[c] = mu;
    rstd[c] = r;
  }
}

// Block, thread: as in the forward pass.
template <class T, int TEAM, bool VECTOR>
__global__ void __launch_bounds__(256, 4)
batch_norm_backward_v2_slabs(const T* __restrict__ grad, const T* __restrict__ x, const T* __restrict__ weight,
                             const T* __restrict__ mean, const T* __restrict__ rstd, T* __restrict__ dx,
                             T* __restrict__ dweight, T* __restrict__ dbias, int N, int C, int L) {
  constexpr int TEAMS = SLAB_THREADS / TEAM, STEP = Part<T, VECTOR>::SIZE;
  struct Shared {
    alignas(16) T grad[TEAMS][SLAB<T> / TEAMS], x[TEAMS][SLAB<T> / TEAMS];
    WarpValues<Two<T>, TEAM> values;
  };
  Shared& s = block_shared<Shared>();
  const int rank = threadIdx.x % TEAM, team = threadIdx.x / TEAM, M = N * L;
  const int c = blockIdx.x * TEAMS + team;
  if (c >= C) return;  // a whole warp, and only where no barrier of the block follows
  const T mu = mean[c], r = rstd[c];

  stage<TEAM, VECTOR>(s.grad[team], grad, rank, M, [&](int m) { return place(m, c, C, L); });
  stage<TEAM, VECTOR>(s.x[team], x, rank, M, [&](int m) { return place(m, c, C, L); });
  team_sync<TEAM>();  // the channel is complete before its sums are made
  const Two<T> sums = staged_products<TEAM>(s.grad[team], s.x[team], mu, r, rank, M, s.values);

  const InputGradient<T> gradient = input_gradient(mu, r, weight, c, sums.first, sums.second, M);
  for (int m = rank * STEP; m < M; m += TEAM * STEP) {
    Part<T, VECTOR> part = load_part<VECTOR>(&s.grad[team][m]);
    const Part<T, VECTOR> of_x = load_part<VECTOR>(&s.x[team][m]);
#pragma unroll
    for (int e = 0; e < STEP; ++e) part.of[e] = gradient(part.of[e], of_x.of[e]);
    store_part<VECTOR>(&dx[place(m, c, C, L)], part);
  }
  if (rank == 0) {
    dbias[c] = sums.first;
    dweight[c] = sums.second;
  }
}

// ---- v2: longer channels
//
// Block b of the three kernels over slabs has slab b / C of channel b % C, so that neighbours read neighbouring
// channels of the same examples.

// The moments of each slab: its sum to partial[0, slab, c], the rest to partial[1, slab, c], the squares to [2, ...].
// Block: 256 threads and a slab.
template <class T, bool VECTOR>
__global__ void __launch_bounds__(256, 4)
batch_norm_statistics_v2_slabs(const T* __restrict__ x, T* __restrict__ partial, int N, int C, int L) {
  struct Shared {
    alignas(16) T x[SLAB<T>];
    TeamValues<T, SLAB_THREADS> values;
  };
  Shared& s = block_shared<Shared>();
  const int c = blockIdx.x % C, slab = blockIdx.x / C;
  const int first = slab * SLAB<T>, count = slab_count<T>(slab, N * L);
  stage<SLAB_THREADS, VECTOR>(s.x, x, threadIdx.x, count, [&](int m) { return place(first + m, c, C, L); });
  __syncthreads();  // the slab is complete before its sums are made
  const Moments<T> moments = staged_moments<SLAB_THREADS>(s.x, threadIdx.x, count, s.values);
  if (threadIdx.x == 0) {
    partial[blockIdx.x] = moments.sum;
    partial[gridDim.x + blockIdx.x] = moments.rest;
    partial[2 * gridDim.x + blockIdx.x] = moments.squares;
  }
}

// Mean and rstd of each channel from partial (3, slabs, C).
// Block: 256 threads and 8 channels.  Warp: a channel.
template <class T>
__global__ void __launch_bounds__(256, 4)
batch_norm_merge_statistics_v2_slabs(const T* __restrict__ partial, T* __restrict__ mean, T* __restrict__ rstd,
                                     int M, int C, double eps) {
  const int c = blockIdx.x * (SLAB_THREADS / WARP) + threadIdx.x / WARP;
  if (c >= C) return;  // a whole warp
  const Two<T> moments = merged_moments(partial, c, C, M);
  if (threadIdx.x % WARP == 0) {
    mean[c] = moments.first;
    rstd[c] = reciprocal_deviation(moments.second, eps);
  }
}

// y for a slab, by the threads of a block.
template <bool VECTOR, class T>
__device__ __forceinline__ void normalize_slab(const T* __restrict__ x, T* __restrict__ y, T mean, T scale, T shift,
                                               int c, int slab, int N, int C, int L) {
  constexpr int STEP = Part<T, VECTOR>::SIZE;
  const int count = slab_count<T>(slab, N * L);
  for (int m = threadIdx.x * STEP; m < count; m += SLAB_THREADS * STEP) {
    const int i = place(slab * SLAB<T> + m, c, C, L);
    Part<T, VECTOR> part = load_part<VECTOR>(&x[i]);
#pragma unroll
    for (int e = 0; e < STEP; ++e) part.of[e] = normalized(part.of[e], mean, scale, shift);
    store_part<VECTOR>(&y[i], part);
  }
}

// Block: 256 threads and a slab.
template <class T, bool VECTOR>
__global__ void __launch_bounds__(256, 4)
batch_norm_normalize_v2_slabs(const T* __restrict__ x, const T* __restrict__ mean, const T* __restrict__ rstd,
                              const T* __restrict__ weight, const T* __restrict__ bias, T* __restrict__ y, int N,
                              int C, int L) {
  const int c = blockIdx.x % C, slab = blockIdx.x / C;
  const T scale = weight == nullptr ? rstd[c] : rstd[c] * weight[c], shift = bias == nullptr ? T(0) : bias[c];
  normalize_slab<VECTOR>(x, y, mean[c], scale, shift, c, slab, N, C, L);
}

// Block: 256 threads and a slab.
template <class T, bool VECTOR>
__global__ void __launch_bounds__(256, 4)
batch_norm_inference_v2_slabs(const T* __restrict__ x, const T* __restrict__ mean, const T* __restrict__ var,
                              const T* __restrict__ weight, const T* __restrict__ bias, T* __restrict__ y, int N,
                              int C, int L, double eps) {
  const int c = blockIdx.x % C, slab = blockIdx.x / C;
  const T r = reciprocal_deviation(var[c], eps);
  const T scale = weight == nullptr ? r : r * weight[c], shift = bias == nullptr ? T(0) : bias[c];
  normalize_slab<VECTOR>(x, y, mean[c], scale, shift, c, slab, N, C, L);
}

// The sums of g and of g xhat over each slab, to partial[0, slab, c] and partial[1, slab, c].
// Block: 256 threads and a slab.  It is staged although it is read once, so that every thread adds up the same
// numbers whether they came by vectors or not.
template <class T, bool VECTOR>
__global__ void __launch_bounds__(256, 4)
batch_norm_sums_v2_slabs(const T* __restrict__ grad, const T* __restrict__ x, const T* __restrict__ mean,
                         const T* __restrict__ rstd, T* __restrict__ partial, int N, int C, int L) {
  struct Shared {
    alignas(16) T grad[SLAB<T>], x[SLAB<T>];
    WarpValues<Two<T>, SLAB_THREADS> values;
  };
  Shared& s = block_shared<Shared>();
  const int c = blockIdx.x % C, slab = blockIdx.x / C;
  const int first = slab * SLAB<T>, count = slab_count<T>(slab, N * L);
  stage<SLAB_THREADS, VECTOR>(s.grad, grad, threadIdx.x, count, [&](int m) { return place(first + m, c, C, L); });
  stage<SLAB_THREADS, VECTOR>(s.x, x, threadIdx.x, count, [&](int m) { return place(first + m, c, C, L); });
  __syncthreads();  // the slab is complete before its sums are made
  const Two<T> sums = staged_products<SLAB_THREADS>(s.grad, s.x, mean[c], rstd[c], threadIdx.x, count, s.values);
  if (threadIdx.x == 0) {
    partial[blockIdx.x] = sums.first;
    partial[gridDim.x + blockIdx.x] = sums.second;
  }
}

// db and dw of each channel from partial (2, slabs, C).
// Block: 256 threads and 8 channels.  Warp: a channel.
template <class T>
__global__ void __launch_bounds__(256, 4)
batch_norm_merge_sums_v2_slabs(const T* __restrict__ partial, T* __restrict__ dweight, T* __restrict__ dbias,
                               int slabs, int C) {
  const int c = blockIdx.x * (SLAB_THREADS / WARP) + threadIdx.x / WARP;
  if (c >= C) return;  // a whole warp
  const T db = merged_sum(partial + c, slabs, C), dw = merged_sum(partial + slabs * C + c, slabs, C);
  if (threadIdx.x % WARP == 0) {
    dbias[c] = db;
    dweight[c] = dw;
  }
}

// Block: 256 threads and a slab.
template <class T, bool VECTOR>
__global__ void __launch_bounds__(256, 4)
batch_norm_input_v2_slabs(const T* __restrict__ grad, const T* __restrict__ x, const T* __restrict__ weight,
                          const T* __restrict__ mean, const T* __restrict__ rstd, const T* __restrict__ dweight,
                          const T* __restrict__ dbias, T* __restrict__ dx, int N, int C, int L) {
  constexpr int STEP = Part<T, VECTOR>::SIZE;
  const int c = blockIdx.x % C, slab = blockIdx.x / C;
  const InputGradient<T> gradient = input_gradient(mean[c], rstd[c], weight, c, dbias[c], dweight[c], N * L);
  const int count = slab_count<T>(slab, N * L);
  for (int m = threadIdx.x * STEP; m < count; m += SLAB_THREADS * STEP) {
    const int i = place(slab * SLAB<T> + m, c, C, L);
    Part<T, VECTOR> part = load_part<VECTOR>(&grad[i]);
    const Part<T, VECTOR> of_x = load_part<VECTOR>(&x[i]);
#pragma unroll
    for (int e = 0; e < STEP; ++e) part.of[e] = gradient(part.of[e], of_x.of[e]);
    store_part<VECTOR>(&dx[i], part);
  }
}

// ---- v3: a channel for a cluster

// Cluster: a channel.  Block: 256 threads and a share of it.
template <class T, int CLUSTER, bool VECTOR>
__global__ void __cluster_dims__(CLUSTER, 1, 1) __launch_bounds__(CLUSTER_THREADS, 3)
batch_norm_forward_v3_cluster(const T* __restrict__ x, const T* __restrict__ weight, const T* __restrict__ bias,
                              T* __restrict__ y, T* __restrict__ mean, T* __restrict__ rstd, int N, int C, int L,
                              double eps) {
  constexpr int STEP = Part<T, VECTOR>::SIZE;
  struct Shared {
    alignas(16) T x[KEPT<T>];
    TeamValues<T, CLUSTER_THREADS> values;
    MomentsOfBlocks<T, CLUSTER> of_blocks;
  };
  Shared& s = block_shared<Shared>();
  cluster_arrive();  // this block has begun, and may be written to
  const int c = blockIdx.x / CLUSTER, rank = cluster_rank(), M = N * L;
  const Share own = share_of<T>(rank, CLUSTER, M);
  copy_share<VECTOR>(s.x, x, own, [&](int m) { return place(m, c, C, L); });
  const T weight_of_c = weight == nullptr ? T(1) : weight[c], shift = bias == nullptr ? T(0) : bias[c];
  wait_for_share();
  const Moments<T> moments = staged_moments<CLUSTER_THREADS>(s.x, threadIdx.x, own.count, s.values);

  const Two<T> of_channel = moments_of_cluster<CLUSTER>(moments, M, s.of_blocks);
  const T mu = of_channel.first, r = reciprocal_deviation(of_channel.second, eps), scale = r * weight_of_c;

  for (int m = threadIdx.x * STEP; m < own.count; m += CLUSTER_THREADS * STEP) {
    Part<T, VECTOR> part = load_part<VECTOR>(&s.x[m]);
#pragma unroll
    for (int e = 0; e < STEP; ++e) part.of[e] = normalized(part.of[e], mu, scale, shift);
    store_part<VECTOR>(&y[place(own.first + m, c, C, L)], part);
  }
  if (rank == 0 && threadIdx.x == 0) {
    mean[c] = mu;
    rstd[c] = r;
  }
}

// Cluster, block: as in the forward pass.
template <class T, int CLUSTER, bool VECTOR>
__global__ void __cluster_dims__(CLUSTER, 1, 1) __launch_bounds__(CLUSTER_THREADS, 2)
batch_norm_backward_v3_cluster(const T* __restrict__ grad, const T* __restrict__ x, const T* __restrict__ weight,
                               const T* __restrict__ mean, const T* __restrict__ rstd, T* __restrict__ dx,
                               T* __restrict__ dweight, T* __restrict__ dbias, int N, int C, int L) {
  constexpr int STEP = Part<T, VECTOR>::SIZE;
  struct Shared {
    alignas(16) T grad[KEPT_BACKWARD<T>], x[KEPT_BACKWARD<T>];
    WarpValues<Two<T>, CLUSTER_THREADS> values;
    SumsOfBlocks<T, CLUSTER> of_blocks;
  };
  Shared& s = block_shared<Shared>();
  cluster_arrive();  // this block has begun, and may be written to
  const int c = blockIdx.x / CLUSTER, rank = cluster_rank(), M = N * L;
  const Share own = share_of<T>(rank, CLUSTER, M);
  copy_share<VECTOR>(s.grad, grad, own, [&](int m) { return place(m, c, C, L); });
  copy_share<VECTOR>(s.x, x, own, [&](int m) { return place(m, c, C, L); });
  const T mu = mean[c], r = rstd[c];
  wait_for_share();
  const Two<T> of_share = staged_products<CLUSTER_THREADS>(s.grad, s.x, mu, r, threadIdx.x, own.count, s.values);

  cluster_wait();  // every block has begun before one writes to it
  if (threadIdx.x < CLUSTER) s.of_blocks.tell(of_share, threadIdx.x);
  cluster_sync();  // the sums of every block are written before any block reads them
  const Two<T> sums = s.of_blocks.sum(0, CLUSTER);
  const InputGradient<T> gradient = input_gradient(mu, r, weight, c, sums.first, sums.second, M);
  for (int m = threadIdx.x * STEP; m < own.count; m += CLUSTER_THREADS * STEP) {
    Part<T, VECTOR> part = load_part<VECTOR>(&s.grad[m]);
    const Part<T, VECTOR> of_x = load_part<VECTOR>(&s.x[m]);
#pragma unroll
    for (int e = 0; e < STEP; ++e) part.of[e] = gradient(part.of[e], of_x.of[e]);
    store_part<VECTOR>(&dx[place(own.first + m, c, C, L)], part);
  }
  if (rank == 0 && threadIdx.x == 0) {
    dbias[c] = sums.first;
    dweight[c] = sums.second;
  }
}

// ---- v4: 32 columns for a cluster
//
// x is a matrix of N rows and C L columns, L at most 32.  A cluster owns 32 / L neighbouring channels, so that a warp
// reads neighbours; a block owns a share of the rows and keeps it, 32 places to a row.  Thread: a column, in every
// eighth row of the block.

constexpr int COLUMN_WARPS = CLUSTER_THREADS / WARP;

// The column of this thread, and its channel.
struct Column {
  int lane, warp, k, c, at;  // channel k of the cluster's is c; the column is number `at` of a row of x
  bool inside;               // there is such a column, and it is the cluster's

  __device__ __forceinline__ Column(int cluster, int C, int L) : lane(threadIdx.x % WARP), warp(threadIdx.x / WARP) {
    const int channels = WARP / L;
    k = min(lane / L, channels - 1);
    c = cluster * channels + k;
    at = cluster * channels * L + lane;
    inside = lane < channels * L && c < C;
  }

  // Whether it is the first one of its channel.
  __device__ __forceinline__ bool leads(int L) const { return inside && lane == k * L; }
};

// Start copying a block's share of the rows to shared memory.
template <class T>
__device__ __forceinline__ void copy_columns(T* kept, const T* __restrict__ from, const Share& rows,
                                             const Column& column, int width) {
  if (!column.inside) return;
  for (int i = column.warp; i < rows.count; i += COLUMN_WARPS)
    copy_async<sizeof(T)>(&kept[i * WARP + column.lane], &from[(rows.first + i) * width + column.at], true);
}

template <class V>
struct ChannelValues {
  V of[COLUMN_WARPS][WARP];
};

// The sum of term(place in the share) over the numbers of this thread's channel, given to all threads that have it.
template <class V, class Term>
__device__ __forceinline__ V channel_sum(const Share& rows, const Column& column, int L, ChannelValues<V>& values,
                                         Term term) {
  values.of[column.warp][column.lane] = long_sum<V>(column.warp, column.inside ? rows.count : 0, COLUMN_WARPS,
                                                    [&](int i) { return term(i * WARP + column.lane); });
  __syncthreads();  // every thread's sum is written before any thread reads it
  V total{};
  for (int l = 0; l < L; ++l)
    for (int warp = 0; warp < COLUMN_WARPS; ++warp) total += values.of[warp][column.k * L + l];
  return total;
}

// Cluster: 32 / L channels.  Block: 256 threads and a share of the rows.
template <class T, int CLUSTER>
__global__ void __cluster_dims__(CLUSTER, 1, 1) __launch_bounds__(CLUSTER_THREADS, 3)
batch_norm_forward_v4_columns(const T* __restrict__ x, const T* __restrict__ weight, const T* __restrict__ bias,
                              T* __restrict__ y, T* __restrict__ mean, T* __restrict__ rstd, int N, int C, int L,
                              double eps) {
  struct Shared {
    T x[KEPT<T>];
    ChannelValues<T> of_one;
    ChannelValues<Two<T>> of_two;
    MomentsOfBlocks<T, CLUSTER> of_blocks[WARP];  // of each channel
  };
  Shared& s = block_shared<Shared>();
  cluster_arrive();  // this block has begun, and may be written to
  const int rank = cluster_rank(), width = C * L;
  const Column column(blockIdx.x / CLUSTER, C, L);
  const Share own = share_of<T>(rank, CLUSTER, N);
  copy_columns(s.x, x, own, column, width);
  const T weight_of_c = column.inside && weight != nullptr ? weight[column.c] : T(1);
  const T shift = column.inside && bias != nullptr ? bias[column.c] : T(0);
  wait_for_share();

  const T sum = channel_sum<T>(own, column, L, s.of_one, [&](int m) { return s.x[m]; });
  const T mean_of_share = sum / T(own.count * L);
  const Two<T> about = channel_sum<Two<T>>(own, column, L, s.of_two, [&](int m) {
    const T d = s.x[m] - mean_of_share;
    return Two<T>(d, d * d);
  });
  cluster_wait();  // every block has begun before one writes to it
  const Moments<T> moments{sum, about.first, about.second};
  if (column.leads(L) && column.warp < CLUSTER) s.of_blocks[column.k].tell(moments, column.warp);
  cluster_sync();  // the moments of every block are written before any block reads them
  if (!column.inside) return;

  const Two<T> of_channel = s.of_blocks[column.k].merged(N, L);
  const T mu = of_channel.first, r = reciprocal_deviation(of_channel.second, eps), scale = r * weight_of_c;
  for (int i = column.warp; i < own.count; i += COLUMN_WARPS)
    y[(own.first + i) * width + column.at] = normalized(s.x[i * WARP + column.lane], mu, scale, shift);
  if (rank == 0 && column.warp == 0 && column.leads(L)) {
    mean[column.c] = mu;
    rstd[column.c] = r;
  }
}

// Cluster, block, thread: as in the forward pass.
template <class T, int CLUSTER>
__global__ void __cluster_dims__(CLUSTER, 1, 1) __launch_bounds__(CLUSTER_THREADS, 2)
batch_norm_backward_v4_columns(const T* __restrict__ grad, const T* __restrict__ x, const T* __restrict__ weight,
                               const T* __restrict__ mean, const T* __restrict__ rstd, T* __restrict__ dx,
                               T* __restrict__ dweight, T* __restrict__ dbias, int N, int C, int L) {
  struct Shared {
    T grad[KEPT_BACKWARD<T>], x[KEPT_BACKWARD<T>];
    ChannelValues<Two<T>> values;
    SumsOfBlocks<T, CLUSTER> of_blocks[WARP];  // of each channel
  };
  Shared& s = block_shared<Shared>();
  cluster_arrive();  // this block has begun, and may be written to
  const int rank = cluster_rank(), width = C * L;
  const Column column(blockIdx.x / CLUSTER, C, L);
  const Share own = share_of<T>(rank, CLUSTER, N);
  copy_columns(s.grad, grad, own, column, width);
  copy_columns(s.x, x, own, column, width);
  const T mu = column.inside ? mean[column.c] : T(0), r = column.inside ? rstd[column.c] : T(0);
  wait_for_share();

  const Two<T> of_share = channel_sum<Two<T>>(own, column, L, s.values, [&](int m) {
    return Two<T>(s.grad[m], s.grad[m] * ((s.x[m] - mu) * r));
  });
  cluster_wait();  // every block has begun before one writes to it
  if (column.leads(L) && column.warp < CLUSTER) s.of_blocks[column.k].tell(of_share, column.warp);
  cluster_sync();  // the sums of every block are written before any block reads them
  if (!column.inside) return;

  const Two<T> sums = s.of_blocks[column.k].sum(0, CLUSTER);
  const InputGradient<T> gradient = input_gradient(mu, r, weight, column.c, sums.first, sums.second, N * L);
  for (int i = column.warp; i < own.count; i += COLUMN_WARPS) {
    const int m = i * WARP + column.lane;
    dx[(own.first + i) * width + column.at] = gradient(s.grad[m], s.x[m]);
  }
  if (rank == 0 && column.warp == 0 && column.leads(L)) {
    dbias[column.c] = sums.first;
    dweight[column.c] = sums.second;
  }
}
