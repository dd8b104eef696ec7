// Group normalisation: each group of channels of each example gets mean 0 and variance 1, then a scale and a
// shift per channel.
//
//   N C L  sizes: x is (N, C, L), L the product of all further dimensions
//   G W    groups of W = C / G neighbouring channels; the D = W L numbers of one group of one example are a
//          *set*, and lie side by side.  There are N G sets
//   w b    (C,) weight and bias, null for 1 and 0;  g = dL/dy;  h = w g
//
//   forward    y = w xhat + b    xhat = (x - mean) rstd    rstd = 1 / sqrt(var + eps), mean and var of the set
//   backward   dx = rstd (h - mean(h) - xhat mean(h xhat))
//              db = sum of g, dw = sum of g xhat, over the examples and positions of a channel
//
// The backward pass first sums g and g xhat over each channel of each example.  Both means of a set are
// made of the sums of its channels, and so are dw and db.
//
//   v1_plain   a block owns a set and reads it once for the mean, once for the variance, once to normalise it.
//              Backward: once for the sums of its channels, a warp per channel, and once for dx
//   v2_slabs   a set of at most 16 KB is copied to shared memory, by 16-byte loads where its length allows
//              (VECTOR), and read once.  A longer one is cut into slabs of 16 KB, so that few sets still fill a
//              GPU: sums of the slabs (of each channel, in the backward pass), their merger by a warp per set,
//              and the result slab by slab
//   v3_cluster up to eight blocks of a cluster keep a longer set in their shared memory, and tell each other their
//              moments, or their sums: one launch, one reading (sm_90 and newer).  A channel that lies across shares is
//              added up by the block in which it begins
//
// The variance is the mean of (x - mean)², never E[x²] - mean²; see reduce.cuh for the order of sums.
//
// Source: Wu and He, "Group normalization", 2018.

#include "shares.cuh"

// Weight and bias of a set's channels, read once for as many neighbouring numbers as share a channel.
template <class T>
struct Affine {
  const T* __restrict__ weight;  // null: 1
  const T* __restrict__ bias;    // null: 0
  int first, L;                  // the first of the set's channels
  int k, l;                      // channel and position of the current number
  T w, b;

  __device__ __forceinline__ Affine(const T* __restrict__ weight, const T* __restrict__ bias, int first, int L)
      : weight(weight), bias(bias), first(first), L(L) {}

  // Go to number m of the set.
  __device__ __forceinline__ void at(int m) {
    k = unsigned(m) / unsigned(L);
    l = m - k * L;
    read();
  }

  // Go on by one number.
  __device__ __forceinline__ void next() {
    if (++l == L) {
      l = 0;
      ++k;
      read();
    }
  }

  __device__ __forceinline__ void read() {
    w = weight == nullptr ? T(1) : weight[first + k];
    b = bias == nullptr ? T(0) : bias[first + k];
  }
};

// What y and dx take of a set: mean and rstd, and in the backward pass the means of h and of h xhat.
template <class T>
struct OfSet {
  T mean, rstd, of_h, of_product;

  __device__ __forceinline__ T normalized(T x, const Affine<T>& channel) const {
    return (x - mean) * rstd * channel.w + channel.b;
  }

  // dx
  __device__ __forceinline__ T gradient(T g, T x, const Affine<T>& channel) const {
    return (g * channel.w - of_h - (x - mean) * rstd * of_product) * rstd;
  }
};

// ---- v1

// Block: 256 threads and a set.  Thread: every 256th number of it.
template <class T>
__global__ void __launch_bounds__(256, 4)
group_norm_forward_v1_plain(const T* __restrict__ x, const T* __restrict__ weight, const T* __restrict__ bias,
                            T* __restrict__ y, T* __restrict__ mean, T* __restrict__ rstd, int G, int W, int L,
                            double eps) {
  struct Shared {
    WarpValues<T, 256> values;
  };
  Shared& s = block_shared<Shared>();
  const int set = blockIdx.x, D = W * L, first = set % G * W;
  const T* xs = x + set * D;

  const T mu = block_sum<256>(long_sum<T>(threadIdx.x, D, 256, [&](int m) { return xs[m]; }), s.values) / T(D);
  const T squares = long_sum<T>(threadIdx.x, D, 256, [&](int m) { return (xs[m] - mu) * (xs[m] - mu); });
  const T r = reciprocal_deviation(block_sum<256>(squares, s.values) / T(D), eps);
  const OfSet<T> of_set{mu, r};
  Affine<T> channel(weight, bias, first, L);
  for (int m = threadIdx.x; m < D; m += 256) {
    channel.at(m);
    y[set * D + m] = of_set.normalized(xs[m], channel);
  }
  if (threadIdx.x == 0) {
    mean[set] = mu;
    rstd[set] = r;
  }
}

// dx, and the sums of g and g xhat over each channel of each example: sums[0, n, c] and sums[1, n, c].
// Block: 256 threads and a set.  Warp: every eighth of its channels; thread: every 256th number of the set for dx.
template <class T>
__global__ void __launch_bounds__(256, 4)
group_norm_backward_v1_plain(const T* __restrict__ grad, const T* __restrict__ x, const T* __restrict__ weight,
                             const T* __restrict__ mean, const T* __restrict__ rstd, T* __restrict__ dx,
                             T* __restrict__ sums, int G, int W, int L) {
  struct Shared {
    WarpValues<Two<T>, 256> values;
  };
  Shared& s = block_shared<Shared>();
  const int set = blockIdx.x, D = W * L, first = set % G * W;
  const T* xs = x + set * D;
  const T* gs = grad + set * D;
  const T mu = mean[set], r = rstd[set];

  const int lane = threadIdx.x % WARP;
  Two<T> of_set;
  for (int k = threadIdx.x / WARP; k < W; k += 256 / WARP) {
    const Two<T> of_channel = warp_sum(long_sum<Two<T>>(k * L + lane, (k + 1) * L, WARP, [&](int m) {
      return Two<T>(gs[m], gs[m] * ((xs[m] - mu) * r));
    }));
    if (lane == 0) {
      const T w = weight == nullptr ? T(1) : weight[first + k];
      of_set += Two<T>(w * of_channel.first, w * of_channel.second);
      sums[set * W + k] = of_channel.first;
      sums[(gridDim.x + set) * W + k] = of_channel.second;
    }
  }
  of_set = block_sum<256>(of_set, s.values);
  const OfSet<T> means{mu, r, of_set.first / T(D), of_set.second / T(D)};
  Affine<T> channel(weight, nullptr, first, L);
  for (int m = threadIdx.x; m < D; m += 256) {
    channel.at(m);
    dx[set * D + m] = means.gradient(gs[m], xs[m], channel);
  }
}

// ---- both versions

// db and dw from the sums of `rows` parts of each channel, sums (2, rows, C).
// Block: 32 x 32 threads; 32 channels (blockIdx.x) of db or of dw (blockIdx.y).
template <class T>
__global__ void __launch_bounds__(1024, 1)
group_norm_parameters(const T* __restrict__ sums, T* __restrict__ dweight, T* __restrict__ dbias, int rows, int C) {
  struct Shared {
    ColumnValues<T> values;
  };
  Shared& s = block_shared<Shared>();
  const int c = blockIdx.x * WARP + threadIdx.x;
  const T* from = sums + blockIdx.y * rows * C;
  const T sum = column_sum<T>(0, c < C ? rows : 0, [&](int row) { return from[row * C + c]; }, s.values);
  if (threadIdx.y == 0 && c < C) (blockIdx.y == 0 ? dbias : dweight)[c] = sum;
}

// ---- v2 and v3: the channels of what a team keeps in shared memory

// From so many positions on, the whole team adds up a channel; below, a warp, whose threads then have a run of 32
// numbers at most, or of a shorter channel a part of a warp, so that its threads read neighbours.
constexpr int LONG_CHANNEL = 1024;

// The sums of g and g xhat over each channel that lies in the numbers begin, ..., end - 1 of a set, which the team has
// staged, as far as it lies there: to body(k, sums), by one thread.
template <int TEAM, class T, class Body>
__device__ __forceinline__ void each_channel(const T* __restrict__ grad, const T* __restrict__ x, T mean, T rstd,
                                             int begin, int end, int L, WarpValues<Two<T>, TEAM>& values, Body body) {
  int width = TEAM;  // threads of a channel
  if (L < LONG_CHANNEL)
    for (width = WARP; width > L;) width /= 2;
  const int rank = threadIdx.x % TEAM, lane = rank % width, beyond = ceil_div(end, L);
  for (int next = begin / L; next < beyond; next += TEAM / width) {
    const int k = next + rank / width;
    const int from = max(k * L, begin), to = min((k + 1) * L, end);  // beyond the last one there is nothing
    Two<T> sums = long_sum<Two<T>>(from - begin + lane, to - begin, width, [&](int m) {
      return Two<T>(grad[m], grad[m] * ((x[m] - mean) * rstd));
    });
    if (width > WARP)
      sums = team_sum<TEAM>(sums, values);
    else
      for (int distance = width / 2; distance > 0; distance /= 2)
        sums += Two<T>(__shfl_xor_sync(ALL_LANES, sums.first, distance),
                       __shfl_xor_sync(ALL_LANES, sums.second, distance));
    if (lane == 0 && k < beyond) body(k, sums);
  }
}

// ---- v2: a set of one slab

// Block: 256 threads and 256 / TEAM sets.  TEAM neighbours own a set, which is at most their share of the slab.
template <class T, int TEAM, bool VECTOR>
__global__ void __launch_bounds__(256, 4)
group_norm_forward_v2_slabs(const T* __restrict__ x, const T* __restrict__ weight, const T* __restrict__ bias,
                            T* __restrict__ y, T* __restrict__ mean, T* __restrict__ rstd, int sets, int G, int W,
                            int L, double eps) {
  constexpr int TEAMS = SLAB_THREADS / TEAM, STEP = Part<T, VECTOR>::SIZE;
  struct Shared {
    alignas(16) T x[TEAMS][SLAB<T> / TEAMS];
    TeamValues<T, TEAM> values;
  };
  Shared& s = block_shared<Shared>();
  const int rank = threadIdx.x % TEAM, team = threadIdx.x / TEAM;
  const int set = blockIdx.x * TEAMS + team, D = W * L, first = set % G * W;
  if (set >= sets) return;  // a whole warp, and only where no barrier of the block follows

  stage<TEAM, VECTOR>(s.x[team], x + set * D, rank, D, [](int m) { return m; });
  team_sync<TEAM>();  // the set is complete before its sums are made
  const Moments<T> moments = staged_moments<TEAM>(s.x[team], rank, D, s.values);
  const OfSet<T> of_set{moments.sum / T(D), reciprocal_deviation(moments.squares / T(D), eps)};
  Affine<T> channel(weight, bias, first, L);
  for (int m = rank * STEP; m < D; m += TEAM * STEP) {
    Part<T, VECTOR> part = load_part<VECTOR>(&s.x[team][m]);
    channel.at(m);
#pragma unroll
    for (int e = 0; e < STEP; ++e) {
      if (e > 0) channel.next();
      part.of[e] = of_set.normalized(part.of[e], channel);
    }
    store_part<VECTOR>(&y[set * D + m], part);
  }
  if (rank == 0) {
    mean[set] = of_set.mean;
    rstd[set] = of_set.rstd;
  }
}

// dx, and the sums of g and g xhat over each channel of each example: sums[0, n, c] and sums[1, n, c].
// Block, team: as in the forward pass.
template <class T, int TEAM, bool VECTOR>
__global__ void __launch_bounds__(256, 4)
group_norm_backward_v2_slabs(const T* __restrict__ grad, const T* __restrict__ x, const T* __restrict__ weight,
                             const T* __restrict__ mean, const T* __restrict__ rstd, T* __restrict__ dx,
                             T* __restrict__ sums, int sets, int G, int W, int L) {
  constexpr int TEAMS = SLAB_THREADS / TEAM, STEP = Part<T, VECTOR>::SIZE;
  struct Shared {
    alignas(16) T grad[TEAMS][SLAB<T> / TEAMS], x[TEAMS][SLAB<T> / TEAMS];
    WarpValues<Two<T>, TEAM> values;
  };
  Shared& s = block_shared<Shared>();
  const int rank = threadIdx.x % TEAM, team = threadIdx.x / TEAM;
  const int set = blockIdx.x * TEAMS + team, D = W * L, first = set % G * W;
  if (set >= sets) return;  // a whole warp, and only where no barrier of the block follows
  const T mu = mean[set], r = rstd[set];

  stage<TEAM, VECTOR>(s.grad[team], grad + set * D, rank, D, [](int m) { return m; });
  stage<TEAM, VECTOR>(s.x[team], x + set * D, rank, D, [](int m) { return m; });
  team_sync<TEAM>();  // the set is complete before its sums are made

  Two<T> of_set;
  each_channel<TEAM>(s.grad[team], s.x[team], mu, r, 0, D, L, s.values, [&](int k, const Two<T>& of_channel) {
    const T w = weight == nullptr ? T(1) : weight[first + k];
    of_set += Two<T>(w * of_channel.first, w * of_channel.second);
    sums[set * W + k] = of_channel.first;
    sums[(sets + set) * W + k] = of_channel.second;
  });
  of_set = team_sum<TEAM>(of_set, s.values);

  const OfSet<T> means{mu, r, of_set.first / T(D), of_set.second / T(D)};
  Affine<T> channel(weight, nullptr, first, L);
  for (int m = rank * STEP; m < D; m += TEAM * STEP) {
    Part<T, VECTOR> part = load_part<VECTOR>(&s.grad[team][m]);
    const Part<T, VECTOR> of_x = load_part<VECTOR>(&s.x[team][m]);
    channel.at(m);
#pragma unroll
    for (int e = 0; e < STEP; ++e) {
      if (e > 0) channel.next();
      part.of[e] = means.gradient(part.of[e], of_x.of[e], channel);
    }
    store_part<VECTOR>(&dx[set * D + m], part);
  }
}

// ---- v2: longer sets

// The moments of each slab: its sum to partial[0, slab, set], the rest to partial[1, ...], the squares to [2, ...].
// Block: 256 threads and slab blockIdx.x / sets of set blockIdx.x % sets.
template <class T, bool VECTOR>
__global__ void __launch_bounds__(256, 4)
group_norm_statistics_v2_slabs(const T* __restrict__ x, T* __restrict__ partial, int sets, int D) {
  struct Shared {
    alignas(16) T x[SLAB<T>];
    TeamValues<T, SLAB_THREADS> values;
  };
  Shared& s = block_shared<Shared>();
  const int set = blockIdx.x % sets, slab = blockIdx.x / sets, count = slab_count<T>(slab, D);
  stage<SLAB_THREADS, VECTOR>(s.x, x + set * D + slab * SLAB<T>, threadIdx.x, count, [](int m) { return m; });
  __syncthreads();  // the slab is complete before its sums are made
  const Moments<T> moments = staged_moments<SLAB_THREADS>(s.x, threadIdx.x, count, s.values);
  if (threadIdx.x == 0) {
    partial[blockIdx.x] = moments.sum;
    partial[gridDim.x + blockIdx.x] = moments.rest;
    partial[2 * gridDim.x + blockIdx.x] = moments.squares;
  }
}

// Mean and rstd of each set from partial (3, slabs, sets).
// Block: 256 threads and 8 sets.  Warp: a set.
template <class T>
__global__ void __launch_bounds__(256, 4)
group_norm_merge_statistics_v2_slabs(const T* __restrict__ partial, T* __restrict__ mean, T* __restrict__ rstd,
                                     int sets, int D, double eps) {
  const int set = blockIdx.x * (SLAB_THREADS / WARP) + threadIdx.x / WARP;
  if (set >= sets) return;  // a whole warp
  const Two<T> moments = merged_moments(partial, set, sets, D);
  if (threadIdx.x % WARP == 0) {
    mean[set] = moments.first;
    rstd[set] = reciprocal_deviation(moments.second, eps);
  }
}

// y.  Block: 256 threads and slab blockIdx.x / sets of set blockIdx.x % sets.
template <class T, bool VECTOR>
__global__ void __launch_bounds__(256, 4)
group_norm_normalize_v2_slabs(const T* __restrict__ x, const T* __restrict__ mean, const T* __restrict__ rstd,
                              const T* __restrict__ weight, const T* __restrict__ bias, T* __restrict__ y, int sets,
                              int G, int W, int L) {
  constexpr int STEP = Part<T, VECTOR>::SIZE;
  const int set = blockIdx.x % sets, slab = blockIdx.x / sets, D = W * L, first = set % G * W;
  const OfSet<T> of_set{mean[set], rstd[set]};
  const int begin = slab * SLAB<T>, end = begin + slab_count<T>(slab, D);
  Affine<T> channel(weight, bias, first, L);
  for (int m = begin + threadIdx.x * STEP; m < end; m += SLAB_THREADS * STEP) {
    Part<T, VECTOR> part = load_part<VECTOR>(&x[set * D + m]);
    channel.at(m);
#pragma unroll
    for (int e = 0; e < STEP; ++e) {
      if (e > 0) channel.next();
      part.of[e] = of_set.normalized(part.of[e], channel);
    }
    store_part<VECTOR>(&y[set * D + m], part);
  }
}

// The sums of g and g xhat over each slab of each channel: sums[0, slab, n, c] and sums[1, slab, n, c].
// Block: 256 threads and 256 / TEAM slabs.  TEAM neighbours own slab number slab of channel c of example n; a warp
// only where a channel is at most its share of the block's slab.  It is staged although it is read once, so that
// every thread adds up the same numbers whether they came by vectors or not.  VECTOR: L is a multiple of their size.
template <class T, int TEAM, bool VECTOR>
__global__ void __launch_bounds__(256, 4)
group_norm_channels_v2_slabs(const T* __restrict__ grad, const T* __restrict__ x, const T* __restrict__ mean,
                             const T* __restrict__ rstd, T* __restrict__ sums, int N, int C, int W, int L) {
  constexpr int TEAMS = SLAB_THREADS / TEAM;
  struct Shared {
    alignas(16) T grad[TEAMS][SLAB<T> / TEAMS], x[TEAMS][SLAB<T> / TEAMS];
    WarpValues<Two<T>, TEAM> values;
  };
  Shared& s = block_shared<Shared>();
  const int rank = threadIdx.x % TEAM, team = threadIdx.x / TEAM;
  const int place = blockIdx.x * TEAMS + team, total = ceil_div(L, SLAB<T>) * N * C;
  if (place >= total) return;  // a whole warp, and only where no barrier of the block follows
  const int nc = place % (N * C), slab = place / (N * C);
  const int begin = nc * L + slab * SLAB<T>, count = slab_count<T>(slab, L);

  stage<TEAM, VECTOR>(s.grad[team], grad + begin, rank, count, [](int m) { return m; });
  stage<TEAM, VECTOR>(s.x[team], x + begin, rank, count, [](int m) { return m; });
  team_sync<TEAM>();  // the slab is complete before its sums are made
  const Two<T> of_slab =
      staged_products<TEAM>(s.grad[team], s.x[team], mean[nc / W], rstd[nc / W], rank, count, s.values);
  if (rank == 0) {
    sums[place] = of_slab.first;
    sums[total + place] = of_slab.second;
  }
}

// The means of h and h xhat over each set, means[0, set] and means[1, set], from sums (2, slabs, N, C).
// Block: 256 threads and 8 sets.  Warp: a set; its W numbers of each slab lie side by side.
template <class T>
__global__ void __launch_bounds__(256, 4)
group_norm_merge_channels_v2_slabs(const T* __restrict__ sums, const T* __restrict__ weight, T* __restrict__ means,
                                   int slabs, int sets, int G, int W, int L) {
  const int set = blockIdx.x * (SLAB_THREADS / WARP) + threadIdx.x / WARP;
  if (set >= sets) return;  // a whole warp
  const int first = set % G * W;
  const Two<T> of_set = warp_sum(long_sum<Two<T>>(threadIdx.x % WARP, slabs * W, WARP, [&](int i) {
    const int slab = i / W, k = i % W;
    const int place = (slab * sets + set) * W + k;
    const T w = weight == nullptr ? T(1) : weight[first + k];
    return Two<T>(w * sums[place], w * sums[slabs * sets * W + place]);
  }));
  if (threadIdx.x % WARP == 0) {
    means[set] = of_set.first / T(W * L);
    means[sets + set] = of_set.second / T(W * L);
  }
}

// dx.  Block: 256 threads and slab blockIdx.x / sets of set blockIdx.x % sets.
template <class T, bool VECTOR>
__global__ void __launch_bounds__(256, 4)
group_norm_input_v2_slabs(const T* __restrict__ grad, const T* __restrict__ x, const T* __restrict__ weight,
                          const T* __restrict__ mean, const T* __restrict__ rstd, const T* __restrict__ means,
                          T* __restrict__ dx, int sets, int G, int W, int L) {
  constexpr int STEP = Part<T, VECTOR>::SIZE;
  const int set = blockIdx.x % sets, slab = blockIdx.x / sets, D = W * L, first = set % G * W;
  const OfSet<T> of_set{mean[set], rstd[set], means[set], means[sets + set]};
  const int begin = slab * SLAB<T>, end = begin + slab_count<T>(slab, D);
  Affine<T> channel(weight, nullptr, first, L);
  for (int m = begin + threadIdx.x * STEP; m < end; m += SLAB_THREADS * STEP) {
    Part<T, VECTOR> part = load_part<VECTOR>(&grad[set * D + m]);
    const Part<T, VECTOR> of_x = load_part<VECTOR>(&x[set * D + m]);
    channel.at(m);
#pragma unroll
    for (int e = 0; e < STEP; ++e) {
      if (e > 0) channel.next();
      part.of[e] = of_set.gradient(part.of[e], of_x.of[e], channel);
    }
    store_part<VECTOR>(&dx[set * D + m], part);
  }
}

// ---- v3: a set for a cluster

// Cluster: a set.  Block: 256 threads and a share of it.
template <class T, int CLUSTER, bool VECTOR>
__global__ void __cluster_dims__(CLUSTER, 1, 1) __launch_bounds__(CLUSTER_THREADS, 3)
group_norm_forward_v3_cluster(const T* __restrict__ x, const T* __restrict__ weight, const T* __restrict__ bias,
                              T* __restrict__ y, T* __restrict__ mean, T* __restrict__ rstd, int G, int W, int L,
                              double eps) {
  constexpr int STEP = Part<T, VECTOR>::SIZE;
  struct Shared {
    alignas(16) T x[KEPT<T>];
    TeamValues<T, CLUSTER_THREADS> values;
    MomentsOfBlocks<T, CLUSTER> of_blocks;
  };
  Shared& s = block_shared<Shared>();
  cluster_arrive();  // this block has begun, and may be written to
  const int set = blockIdx.x / CLUSTER, rank = cluster_rank(), D = W * L, first = set % G * W;
  const Share own = share_of<T>(rank, CLUSTER, D);
  copy_share<VECTOR>(s.x, x + set * D, own, [](int m) { return m; });
  wait_for_share();
  const Moments<T> moments = staged_moments<CLUSTER_THREADS>(s.x, threadIdx.x, own.count, s.values);
  const Two<T> of_cluster = moments_of_cluster<CLUSTER>(moments, D, s.of_blocks);

  const OfSet<T> of_set{of_cluster.first, reciprocal_deviation(of_cluster.second, eps)};
  Affine<T> channel(weight, bias, first, L);
  for (int m = threadIdx.x * STEP; m < own.count; m += CLUSTER_THREADS * STEP) {
    Part<T, VECTOR> part = load_part<VECTOR>(&s.x[m]);
    channel.at(own.first + m);
#pragma unroll
    for (int e = 0; e < STEP; ++e) {
      if (e > 0) channel.next();
      part.of[e] = of_set.normalized(part.of[e], channel);
    }
    store_part<VECTOR>(&y[set * D + own.first + m], part);
  }
  if (rank == 0 && threadIdx.x == 0) {
    mean[set] = of_set.mean;
    rstd[set] = of_set.rstd;
  }
}

// dx, and the sums of g and g xhat over each channel of each example: sums[0, n, c] and sums[1, n, c].
// Cluster, block: as in the forward pass.  A channel belongs to the block in which it begins; what a block has of one
// that began before its share is its *head*, and goes to the channel's block with the sums of the whole share.
template <class T, int CLUSTER, bool VECTOR>
__global__ void __cluster_dims__(CLUSTER, 1, 1) __launch_bounds__(CLUSTER_THREADS, 2)
group_norm_backward_v3_cluster(const T* __restrict__ grad, const T* __restrict__ x, const T* __restrict__ weight,
                               const T* __restrict__ mean, const T* __restrict__ rstd, T* __restrict__ dx,
                               T* __restrict__ sums, int sets, int G, int W, int L) {
  constexpr int STEP = Part<T, VECTOR>::SIZE;
  struct Shared {
    alignas(16) T grad[KEPT_BACKWARD<T>], x[KEPT_BACKWARD<T>];
    WarpValues<Two<T>, CLUSTER_THREADS> values;
    Two<T> head, tail;                          // of this share's first channel and of its last
    SumsOfBlocks<T, CLUSTER> of_shares, heads;  // of h and h xhat; of g and g xhat
  };
  Shared& s = block_shared<Shared>();
  cluster_arrive();  // this block has begun, and may be written to
  const int set = blockIdx.x / CLUSTER, rank = cluster_rank(), D = W * L, first = set % G * W;
  const Share own = share_of<T>(rank, CLUSTER, D);
  const int begin = own.first, end = own.first + own.count;
  copy_share<VECTOR>(s.grad, grad + set * D, own, [](int m) { return m; });
  copy_share<VECTOR>(s.x, x + set * D, own, [](int m) { return m; });
  const T mu = mean[set], r = rstd[set];
  if (threadIdx.x == 0) s.head = Two<T>();
  wait_for_share();

  const int last = (end - 1) / L;  // its last channel, if the share has any
  const bool headed = begin % L != 0;
  const auto keep = [&](int k, const Two<T>& of_channel) {
    sums[set * W + k] = of_channel.first;
    sums[(sets + set) * W + k] = of_channel.second;
  };
  Two<T> of_share;
  each_channel<CLUSTER_THREADS>(s.grad, s.x, mu, r, begin, end, L, s.values, [&](int k, const Two<T>& of_channel) {
    const T w = weight == nullptr ? T(1) : weight[first + k];
    of_share += Two<T>(w * of_channel.first, w * of_channel.second);
    if (headed && k == begin / L)
      s.head = of_channel;
    else if (k == last)
      s.tail = of_channel;
    else
      keep(k, of_channel);
  });
  of_share = block_sum<CLUSTER_THREADS>(of_share, s.values);  // by its barriers head and tail are written, too

  cluster_wait();  // every block has begun before one writes to it
  if (threadIdx.x < CLUSTER) {
    s.of_shares.tell(of_share, threadIdx.x);
    s.heads.tell(s.head, threadIdx.x);
  }
  cluster_sync();  // the sums of every block are written before any block reads them
  const Two<T> of_set = s.of_shares.sum(0, CLUSTER);
  if (threadIdx.x == 0 && own.count > 0 && !(headed && last == begin / L)) {
    int block = rank + 1;  // the last channel goes on in the shares that begin before its end
    while (share_of<T>(block, CLUSTER, D).first < (last + 1) * L) ++block;
    Two<T> of_channel = s.tail;
    keep(last, of_channel += s.heads.sum(rank + 1, block));
  }

  const OfSet<T> means{mu, r, of_set.first / T(D), of_set.second / T(D)};
  Affine<T> channel(weight, nullptr, first, L);
  for (int m = threadIdx.x * STEP; m < own.count; m += CLUSTER_THREADS * STEP) {
    Part<T, VECTOR> part = load_part<VECTOR>(&s.grad[m]);
    const Part<T, VECTOR> of_x = load_part<VECTOR>(&s.x[m]);
    channel.at(own.first + m);
#pragma unroll
    for (int e = 0; e < STEP; ++e) {
      if (e > 0) channel.next();
      part.of[e] = means.gradient(part.of[e], of_x.of[e], channel);
    }
    store_part<VECTOR>(&dx[set * D + own.first + m], part);
  }
}
