// Cross-entropy of a softmax, loss and gradient together.  S is what logits, t, w and the gradient are in memory:
// float32, float64, bfloat16 or float16; T is what they are computed with, and what the losses are in: float for the last
// two.
//
//   N examples   C classes   z (N, C) logits   p = softmax(z)   w (C,) class weights, null: all 1
//   ε label smoothing        t (N, C) target probabilities, or null and y (N,) target labels
//
// With m = max z and s = sum_k e^(z[k] - m), an example has p[c] = e^(z[c] - m) / s and
// -log p[c] = log s - (z[c] - m).  What it asks for is, with labels, hit = (1 - ε) w[y] for its class and
// d[c] = w[c] ε/C for every class; with probabilities hit = 0 and d[c] = w[c] ((1 - ε) t[c] + ε/C).  Then
//
//   loss    = hit (-log p[y]) + sum_c d[c] (-log p[c])
//   grad[c] = (mass p[c] - d[c] - [c = y] hit) / normaliser,     mass = hit + sum_c d[c]
//
// Three kernels follow each other:
//
//   labels   (not for probabilities) checks the labels, which may be integers of any type, writes them as
//            32-bit classes, and adds up w[y]: the normaliser of the mean
//   forward  losses and gradient; every version reads a row for m, s and mass, then goes through it again
//   sum      adds up the losses, and before that what the blocks of `labels` have added
//
//   forward_v1_plain          a thread owns a row and reads it twice from global memory
//   forward_v2_smem_tile      a block owns a row and keeps it in shared memory in between: one reading
//   forward_v3_register_tile  a team of 4 to 256 threads owns a row and keeps it in registers; 16 bytes
//                             at a time where the layout allows (VECTOR)
//   forward_v4_cluster        the blocks of a cluster share a row too long for one, each keeps its part in 64 KB of
//                             shared memory, and they tell each other what they have seen (sm_90 and newer)
//
// Of a longer row, what a block cannot keep is read twice.  Sums run in an order that N and C fix.
// __launch_bounds__(…, 2): with the 2, ptxas spends registers where it would otherwise spill a few.
//
// Sources: Milakov and Gimelshein, "Online normalizer calculation for softmax", 2018 (m and s in one
// reading); Bridle, 1990; Szegedy et al., 2016 (label smoothing).

#include "async.cuh"
#include "cluster.cuh"
#include "rows.cuh"

constexpr unsigned NO_CLASS = 0xffffffffu;  // of an example that does not count

// ---- labels

// Block: 1024 examples and their part of the normaliser.  Thread: every 256th of them.
// A label out of range lowers `fault` to its position, and its example does not count.  `ignores` is false
// when LABEL cannot hold the ignore_index.  `shares` (one per block) is null when no normaliser is wanted.
template <class S, class LABEL>
__global__ void __launch_bounds__(256)
softmax_cross_entropy_labels(const LABEL* __restrict__ labels, const S* __restrict__ w, unsigned N, unsigned C,
                             bool ignores, LABEL ignore_index, unsigned* __restrict__ classes,
                             Wide<S>* __restrict__ shares, long long* __restrict__ fault) {
  using T = Wide<S>;
  constexpr int THREADS = 256, EXAMPLES = 1024;
  WarpValues<T, THREADS>& values = block_shared<WarpValues<T, THREADS>>();
  T share = 0;
  for (unsigned i = threadIdx.x; i < EXAMPLES; i += THREADS) {
    const unsigned n = blockIdx.x * EXAMPLES + i;
    if (n >= N) break;
    const LABEL label = labels[n];
    unsigned y = NO_CLASS;
    if (!ignores || label != ignore_index) {
      if (static_cast<unsigned long long>(label) < C) {  // a negative one becomes huge
        y = static_cast<unsigned>(label);
        share += w == nullptr ? T(1) : widened(w[y]);
      } else {
        atomicMin(fault, static_cast<long long>(n));
      }
    }
    classes[n] = y;
  }
  if (shares == nullptr) return;
  share = block_sum<THREADS>(share, values);
  if (threadIdx.x == 0) shares[blockIdx.x] = share;
}

// ---- what all versions of `forward` do with one row

template <class S>
struct Example {
  using T = Wide<S>;
  const S* t;  // its target probabilities, or null
  const S* w;
  unsigned y;  // its class; with probabilities none
  bool counts;
  bool spread;        // whether there is a d[c]
  T keep, share;      // 1 - ε, ε/C
  T hit;
  T scale;            // 1 / normaliser
  T max, log_sum, inverse, mass;  // m, log s, 1/s

  __device__ __forceinline__ Example(unsigned n, const S* t_, const unsigned* classes, const S* w_, double smoothing,
                                     const T* normaliser, double divisor, unsigned C) {
    t = t_ == nullptr ? nullptr : t_ + n * C;
    w = w_;
    y = t == nullptr ? classes[n] : NO_CLASS;
    counts = t != nullptr || y != NO_CLASS;
    spread = t != nullptr || smoothing > 0;
    keep = T(1) - T(smoothing);
    share = T(smoothing) / T(C);
    hit = y == NO_CLASS ? T(0) : w == nullptr ? keep : keep * widened(w[y]);
    scale = T(1) / (normaliser == nullptr ? T(divisor) : *normaliser);
  }

  // d[c], from t[c] and w[c].
  __device__ __forceinline__ T asked(T of_t, T of_w) const { return (t == nullptr ? share : of_t * keep + share) * of_w; }
  __device__ __forceinline__ T asked(unsigned c) const {
    return asked(t == nullptr ? T(0) : widened(t[c]), w == nullptr ? T(1) : widened(w[c]));
  }

  // Count classes from `first` on: those before it become huge numbers, as NO_CLASS is.
  __device__ __forceinline__ void begin_at(unsigned first) {
    if (t != nullptr) t += first;
    if (w != nullptr) w += first;
    y -= first;
  }

  // Once the row has been read: `all` of it, and the sum of d.
  __device__ __forceinline__ void finish(const OnlineSoftmax<T>& all, T sum_of_d) {
    max = all.max;
    log_sum = log_of(all.sum);
    inverse = T(1) / all.sum;
    mass = hit + sum_of_d;
  }

  // grad[c]; the part of class c in the loss is added to `loss`.
  __device__ __forceinline__ T gradient(unsigned c, T z, T d, T& loss) const {
    const T shifted = z - max;
    T g = exp_of(shifted) * inverse * mass;
    if (spread) {  // 0 times an infinite -log p would be NaN
      loss += (log_sum - shifted) * d;
      g -= d;
    }
    if (c == y) {
      loss += (log_sum - shifted) * hit;
      g -= hit;
    }
    return counts ? g * scale : T(0);  // whatever the logits of one that does not count
  }

  __device__ __forceinline__ T counted(T loss) const { return counts ? loss : T(0); }
};

// ---- v1

// Block: 128 examples.  Thread: one of them.
template <class S>
__global__ void __launch_bounds__(128, 2)
softmax_cross_entropy_forward_v1_plain(const S* __restrict__ z, const S* __restrict__ t,
                                       const unsigned* __restrict__ classes, const S* __restrict__ w, double smoothing,
                                       const Wide<S>* __restrict__ normaliser, double divisor, unsigned N, unsigned C,
                                       Wide<S>* __restrict__ losses, S* __restrict__ grad) {
  using T = Wide<S>;
  const unsigned n = blockIdx.x * 128 + threadIdx.x;
  if (n >= N) return;
  Example<S> example(n, t, classes, w, smoothing, normaliser, divisor, C);
  const S* row = z + n * C;

  const OnlineSoftmax<T> all = softmax_in_runs<T>(0, C, 1, [&](unsigned c) { return widened(row[c]); });
  T sum_of_d = 0;
  if (example.spread) sum_of_d = sum_in_runs<T>(0, C, 1, [&](unsigned c) { return example.asked(c); });
  example.finish(all, sum_of_d);

  const T loss = sum_in_runs<T>(0, C, 1, [&](unsigned c) {
    T part = 0;
    grad[n * C + c] = narrowed<S>(example.gradient(c, widened(row[c]), example.spread ? example.asked(c) : T(0), part));
    return part;
  });
  losses[n] = example.counted(loss);
}

// ---- v2

// Block: one example, of which the first TILE logits and d[c] stay in shared memory.  Thread: every 128th
// class.  It finds again what it put there itself, so no barrier stands between.
template <class S>
__global__ void __launch_bounds__(128, 2)
softmax_cross_entropy_forward_v2_smem_tile(const S* __restrict__ z, const S* __restrict__ t,
                                           const unsigned* __restrict__ classes, const S* __restrict__ w,
                                           double smoothing, const Wide<S>* __restrict__ normaliser, double divisor,
                                           unsigned N, unsigned C, Wide<S>* __restrict__ losses,
                                           S* __restrict__ grad) {
  using T = Wide<S>;
  constexpr int THREADS = 128;
  constexpr unsigned TILE = 16 * 1024 / sizeof(T);
  struct Shared {
    T z[TILE];
    T d[TILE];
    TeamValues<T, THREADS> values;
  };
  Shared& s = block_shared<Shared>();
  const unsigned n = blockIdx.x;
  Example<S> example(n, t, classes, w, smoothing, normaliser, divisor, C);
  const S* row = z + n * C;

  const OnlineSoftmax<T> own = softmax_in_runs<T>(threadIdx.x, C, THREADS, [&](unsigned c) {
    const T logit = widened(row[c]);
    if (c < TILE) s.z[c] = logit;
    return logit;
  });
  const OnlineSoftmax<T> all = team_merged<THREADS>(own, s.values);
  T sum_of_d = 0;
  if (example.spread) {
    sum_of_d = sum_in_runs<T>(threadIdx.x, C, THREADS, [&](unsigned c) {
      const T d = example.asked(c);
      if (c < TILE) s.d[c] = d;
      return d;
    });
    sum_of_d = team_sum<THREADS>(sum_of_d, s.values);
  }
  example.finish(all, sum_of_d);

  T loss = sum_in_runs<T>(threadIdx.x, C, THREADS, [&](unsigned c) {
    const T logit = c < TILE ? s.z[c] : widened(row[c]);
    T d = 0, part = 0;
    if (example.spread) d = c < TILE ? s.d[c] : example.asked(c);
    grad[n * C + c] = narrowed<S>(example.gradient(c, logit, d, part));
    return part;
  });
  loss = team_sum<THREADS>(loss, s.values);
  if (threadIdx.x == 0) losses[n] = example.counted(loss);
}

// ---- v3

// d[c] of the tile that begins at `base`.
template <class S, int TEAM, bool VECTOR>
__device__ __forceinline__ void load_asked(RowTile<S, TEAM, VECTOR>& d, const Example<S>& example, unsigned base,
                                           unsigned length) {
  using T = Wide<S>;
  RowTile<S, TEAM, VECTOR> of_w;
  if (example.t != nullptr) d.load(example.t, base, length);
  if (example.w != nullptr) of_w.load(example.w, base, length);
  d.each(base, length, [&](int i, unsigned) {
    d.of[i] = example.asked(example.t == nullptr ? T(0) : d.of[i], example.w == nullptr ? T(1) : of_w.of[i]);
  });
}

// Block: THREADS_OF<TEAM> threads in teams, each with one example.  Thread: its part of the team's tile.
// VECTOR: z, t, w and grad start at multiples of 16 bytes, and so does each of their rows.
template <class S, int TEAM, bool VECTOR>
__global__ void __launch_bounds__(THREADS_OF<TEAM>, 2)
softmax_cross_entropy_forward_v3_register_tile(const S* __restrict__ z, const S* __restrict__ t,
                                               const unsigned* __restrict__ classes, const S* __restrict__ w,
                                               double smoothing, const Wide<S>* __restrict__ normaliser, double divisor,
                                               unsigned N, unsigned C, Wide<S>* __restrict__ losses,
                                               S* __restrict__ grad) {
  using T = Wide<S>;
  using Tile = RowTile<S, TEAM, VECTOR>;
  TeamValues<T, TEAM>& values = block_shared<TeamValues<T, TEAM>>();
  const unsigned n = blockIdx.x * (THREADS_OF<TEAM> / TEAM) + threadIdx.x / TEAM;
  // A team without an example shuffles along with the others of its warp: it takes the last one, and no class.
  const bool exists = n < N;
  const unsigned length = exists ? C : 0;
  Example<S> example(exists ? n : N - 1, t, classes, w, smoothing, normaliser, divisor, C);
  const S* row = z + (exists ? n : 0) * C;

  Tile logits, d;
  OnlineSoftmax<T> own;
  T sum_of_d = 0;
  for (unsigned tile = Tile::count(length); tile-- > 0;) {  // once, unless the row is longer than a tile
    const unsigned base = tile * Tile::SIZE;
    logits.load(row, base, length);
    own = merged(own, logits.softmax(base, length));
    if (example.spread) {
      load_asked(d, example, base, length);
      sum_of_d += Tile::sum(base, length, [&](int i, unsigned) { return d.of[i]; });
    }
  }
  const OnlineSoftmax<T> all = team_merged<TEAM>(own, values);
  example.finish(all, example.spread ? team_sum<TEAM>(sum_of_d, values) : T(0));

  T loss = 0;
  for (unsigned base = 0; base < length; base += Tile::SIZE) {
    if (base > 0) {  // the registers hold the first tile alone
      logits.load(row, base, length);
      if (example.spread) load_asked(d, example, base, length);
    }
    loss += Tile::sum(base, length, [&](int i, unsigned c) {  // the gradient takes the logit's place
      T part = 0;
      logits.of[i] = example.gradient(c, logits.of[i], example.spread ? d.of[i] : T(0), part);
      return part;
    });
    logits.store(grad + n * C, base, length);
  }
  loss = team_sum<TEAM>(loss, values);
  if (exists && threadIdx.x % TEAM == 0) losses[n] = example.counted(loss);
}

// ---- v4

// Start copying the tile that begins at `base` of a row of `length` to the same places of `kept`.  A thread copies what
// it will read itself.
template <class Tile, class S>
__device__ __forceinline__ void copy_tile(S* kept, const S* __restrict__ row, unsigned base, unsigned length) {
  Tile::each(base, length, [&](int i, unsigned c) {
    if constexpr (Tile::STEP * sizeof(S) == 16) {
      if (i % Tile::STEP == 0) copy_async<16>(&kept[c], &row[c], true);
    } else {
      kept[c] = row[c];
    }
  });
}

// Cluster: one example.  Block: 256 threads and a part of the row, CLUSTER equal ones but for the last, of which the
// first KEPT tiles lie in shared memory between the two readings.  Thread: as in v3.
// A thread finds again what it copied there itself, so its own wait is enough, and no barrier stands between.
template <class S, int CLUSTER, bool VECTOR>
__global__ void __cluster_dims__(CLUSTER, 1, 1) __launch_bounds__(256, VECTOR && sizeof(S) == 4 ? 3 : 2)
softmax_cross_entropy_forward_v4_cluster(const S* __restrict__ z, const S* __restrict__ t,
                                         const unsigned* __restrict__ classes, const S* __restrict__ w,
                                         double smoothing, const Wide<S>* __restrict__ normaliser, double divisor,
                                         unsigned N, unsigned C, Wide<S>* __restrict__ losses, S* __restrict__ grad) {
  using T = Wide<S>;
  constexpr int THREADS = 256;
  using Tile = RowTile<S, THREADS, VECTOR>;
  constexpr unsigned KEPT = 64 * 1024 / sizeof(S) / Tile::SIZE;
  struct Shared {
    alignas(16) S z[KEPT * Tile::SIZE];
    TeamValues<T, THREADS> values;
    T max[CLUSTER], sum[CLUSTER], of_d[CLUSTER], loss[CLUSTER];  // what each block has seen, written by that one
  };
  Shared& s = block_shared<Shared>();
  cluster_arrive();  // this block has begun, and may be written to
  const unsigned n = blockIdx.x / CLUSTER, rank = cluster_rank();
  const unsigned part = (C + CLUSTER * Tile::STEP - 1) / (CLUSTER * Tile::STEP) * Tile::STEP;
  const unsigned begin = min(rank * part, C), length = min(part, C - begin);
  const S* row = z + n * C + begin;
  S* of_grad = grad + n * C + begin;

  for (unsigned tile = KEPT / 2; tile < KEPT; ++tile) copy_tile<Tile>(s.z, row, tile * Tile::SIZE, length);
  commit_copies();
  for (unsigned tile = 0; tile < KEPT / 2; ++tile) copy_tile<Tile>(s.z, row, tile * Tile::SIZE, length);
  commit_copies();

  Example<S> example(n, t, classes, w, smoothing, normaliser, divisor, C);
  example.begin_at(begin);
  Tile logits, d;
  OnlineSoftmax<T> own;
  T sum_of_d = 0;
  for (unsigned tile = Tile::count(length); tile-- > 0;) {  // to the first, whose d[c] the registers hold then
    const unsigned base = tile * Tile::SIZE;
    if (tile < KEPT) {
      if (tile < KEPT / 2) wait_copies<0>();
      else wait_copies<1>();  // the first half is under way while the second is read
      logits.load(s.z, base, length);
    } else {
      logits.load(row, base, length);
    }
    own = merged(own, logits.softmax(base, length));
    if (example.spread) {
      load_asked(d, example, base, length);
      sum_of_d += Tile::sum(base, length, [&](int i, unsigned) { return d.of[i]; });
    }
  }
  own = team_merged<THREADS>(own, s.values);
  if (example.spread) sum_of_d = team_sum<THREADS>(sum_of_d, s.values);

  cluster_wait();  // every block has begun before one writes to it
  if (threadIdx.x < CLUSTER) {
    store_to_block(&s.max[rank], threadIdx.x, own.max);
    store_to_block(&s.sum[rank], threadIdx.x, own.sum);
    store_to_block(&s.of_d[rank], threadIdx.x, sum_of_d);
  }
  cluster_sync();  // what every block has seen is written before any block reads it
  OnlineSoftmax<T> all = {s.max[0], s.sum[0]};
  T sum_of_all = s.of_d[0];
  for (int block = 1; block < CLUSTER; ++block) {
    all = merged(all, OnlineSoftmax<T>{s.max[block], s.sum[block]});
    sum_of_all += s.of_d[block];
  }
  example.finish(all, sum_of_all);

  T loss = 0;
  for (unsigned tile = 0; tile < Tile::count(length); ++tile) {
    const unsigned base = tile * Tile::SIZE;
    if (tile < KEPT) logits.load(s.z, base, length);
    else logits.load(row, base, length);
    if (example.spread && tile > 0) load_asked(d, example, base, length);
    loss += Tile::sum(base, length, [&](int i, unsigned c) {  // the gradient takes the logit's place
      T of_class = 0;
      logits.of[i] = example.gradient(c, logits.of[i], example.spread ? d.of[i] : T(0), of_class);
      return of_class;
    });
    logits.store(of_grad, base, length);
  }
  loss = team_sum<THREADS>(loss, s.values);
  if (threadIdx.x == 0) store_to_block(&s.loss[rank], 0, loss);
  cluster_sync();  // all losses are there before the first block adds them; it does not end before they are
  if (rank != 0 || threadIdx.x != 0) return;
  for (int block = 1; block < CLUSTER; ++block) loss += s.loss[block];
  losses[n] = example.counted(loss);
}

// ---- sum

// Block: 4096 values and their sum, divided by *normaliser, or if that is null by `divisor`.  Thread: every
// 256th of them.
template <class T>
__global__ void __launch_bounds__(256)
softmax_cross_entropy_sum(const T* __restrict__ of, unsigned count, const T* __restrict__ normaliser, double divisor,
                          T* __restrict__ sums) {
  constexpr int THREADS = 256, VALUES = 4096;
  WarpValues<T, THREADS>& values = block_shared<WarpValues<T, THREADS>>();
  T sum = 0;
  for (unsigned i = threadIdx.x; i < VALUES; i += THREADS) {
    const unsigned n = blockIdx.x * VALUES + i;
    if (n >= count) break;
    sum += of[n];
  }
  sum = block_sum<THREADS>(sum, values);
  if (threadIdx.x == 0) sums[blockIdx.x] = sum / (normaliser == nullptr ? T(divisor) : *normaliser);
}
