// Layer normalisation: every row of x gets mean 0 and variance 1, then a scale and a shift per column.
//
//   R D    sizes: x is (R, D), R rows of D numbers
//   w b    (D,) weight and bias, null for 1 and 0;  g = dL/dy (R, D);  h = w g
//
//   forward    y = w xhat + b    xhat = (x - mean) rstd    rstd = 1 / sqrt(var + eps)
//   backward   dx = rstd (h - mean(h) - xhat mean(h xhat))    db = sum over rows of g    dw = ... of g xhat
//
//   v1_plain       a warp owns a row, or a block where rows are long.  It reads the row once for the mean, once
//                  for the variance and once to normalise it.  Backward: once for the two means, once for dx;
//                  dw and db read everything a second time, a block per 32 columns and slice of rows
//   v2_registers   the row is loaded by 16-byte loads and stays in the registers of its warp or block, so x (and
//                  g) cross the bus once.  In the backward pass a thread meets the same columns in row after
//                  row and adds up their dw and db on the way
//   v3_ahead       (backward, rows of a vector for each thread of a block) the next rows are on their way to shared
//                  memory by cp.async while one is worked on: no barrier leaves the memory without requests
//
// The variance is the mean of (x - mean)², never E[x²] - mean².  dw and db are sums over as many slices of rows
// as the shape says (at most 512), which a second kernel adds up.
//
// Sources: Ba, Kiros and Hinton, "Layer normalization", 2016; that dw and db are gathered by the same threads
// that make dx is an idea of NVIDIA's Apex (2019) and of Triton's tutorial on layer norm.

#include "async.cuh"
#include "reduce.cuh"

// How many threads a block has, of which ROW_THREADS own a row together.
template <int ROW_THREADS>
constexpr int BLOCK = ROW_THREADS > 256 ? ROW_THREADS : 256;

// ---- v1

// Block: 256 threads and 256 / ROW_THREADS rows.  ROW_THREADS neighbours own a row, a thread every
// ROW_THREADS-th number of it.
template <class T, int ROW_THREADS>
__global__ void __launch_bounds__(256)
layer_norm_forward_v1_plain(const T* __restrict__ x, const T* __restrict__ weight, const T* __restrict__ bias,
                            T* __restrict__ y, T* __restrict__ mean, T* __restrict__ rstd, int R, int D, double eps) {
  struct Shared {
    WarpValues<T, ROW_THREADS> values;
  };
  Shared& s = block_shared<Shared>();
  const int rank = threadIdx.x % ROW_THREADS;
  const int row = blockIdx.x * (BLOCK<ROW_THREADS> / ROW_THREADS) + threadIdx.x / ROW_THREADS;
  if (row >= R) return;  // a whole warp, and only where no barrier of the block follows
  const T* xr = x + row * D;
  T* yr = y + row * D;

  const T sum = long_sum<T>(rank, D, ROW_THREADS, [&](int j) { return xr[j]; });
  const T mu = team_sum<ROW_THREADS>(sum, s.values) / T(D);
  const T squares = long_sum<T>(rank, D, ROW_THREADS, [&](int j) { return (xr[j] - mu) * (xr[j] - mu); });
  const T r = reciprocal_deviation(team_sum<ROW_THREADS>(squares, s.values) / T(D), eps);
  for (int j = rank; j < D; j += ROW_THREADS) {
    T value = (xr[j] - mu) * r;
    if (weight != nullptr) value *= weight[j];
    if (bias != nullptr) value += bias[j];
    yr[j] = value;
  }
  if (rank == 0) {
    mean[row] = mu;
    rstd[row] = r;
  }
}

// Block, thread: as in the forward pass.
template <class T, int ROW_THREADS>
__global__ void __launch_bounds__(256)
layer_norm_backward_v1_plain(const T* __restrict__ grad, const T* __restrict__ x, const T* __restrict__ weight,
                             const T* __restrict__ mean, const T* __restrict__ rstd, T* __restrict__ dx, int R,
                             int D) {
  struct Shared {
    WarpValues<Two<T>, ROW_THREADS> values;
  };
  Shared& s = block_shared<Shared>();
  const int rank = threadIdx.x % ROW_THREADS;
  const int row = blockIdx.x * (BLOCK<ROW_THREADS> / ROW_THREADS) + threadIdx.x / ROW_THREADS;
  if (row >= R) return;  // a whole warp, and only where no barrier of the block follows
  const T* xr = x + row * D;
  const T* gr = grad + row * D;
  T* dxr = dx + row * D;
  const T mu = mean[row], r = rstd[row];

  Two<T> means = long_sum<Two<T>>(rank, D, ROW_THREADS, [&](int j) {
    const T h = weight == nullptr ? gr[j] : gr[j] * weight[j];
    return Two<T>(h, h * ((xr[j] - mu) * r));
  });
  means = team_sum<ROW_THREADS>(means, s.values);
  const T of_h = means.first / T(D), of_product = means.second / T(D);
  for (int j = rank; j < D; j += ROW_THREADS) {
    const T h = weight == nullptr ? gr[j] : gr[j] * weight[j];
    dxr[j] = (h - of_h - (xr[j] - mu) * r * of_product) * r;
  }
}

// dw and db of one slice of rows: partial[0, slice, :] and partial[1, slice, :].
// Block: 32 x 32 threads; 32 columns (blockIdx.x) of `rows_each` rows (blockIdx.y).  Thread: every 32nd of the
// rows in the column of threadIdx.x.
template <class T>
__global__ void __launch_bounds__(1024, 1)
layer_norm_columns_v1_plain(const T* __restrict__ grad, const T* __restrict__ x, const T* __restrict__ mean,
                            const T* __restrict__ rstd, T* __restrict__ partial, int R, int D, int rows_each) {
  struct Shared {
    ColumnValues<Two<T>> values;
  };
  Shared& s = block_shared<Shared>();
  const int column = blockIdx.x * WARP + threadIdx.x, slice = blockIdx.y, slices = gridDim.y;
  const int first = slice * rows_each, end = R - first < rows_each ? R : first + rows_each;
  const Two<T> sums = column_sum<Two<T>>(first, column < D ? end : first, [&](int row) {
    const T g = grad[row * D + column];
    return Two<T>(g * ((x[row * D + column] - mean[row]) * rstd[row]), g);
  }, s.values);
  if (threadIdx.y == 0 && column < D) {
    partial[slice * D + column] = sums.first;
    partial[(slices + slice) * D + column] = sums.second;
  }
}

// ---- both versions

// The second pass: dw and db from the sums of `slices` slices, partial (2, slices, D).
// Block: 32 x 32 threads; 32 columns (blockIdx.x) of dw or of db (blockIdx.y).
template <class T>
__global__ void __launch_bounds__(1024, 1)
layer_norm_parameters(const T* __restrict__ partial, T* __restrict__ dweight, T* __restrict__ dbias, int slices,
                      int D) {
  struct Shared {
    ColumnValues<T> values;
  };
  Shared& s = block_shared<Shared>();
  const int column = blockIdx.x * WARP + threadIdx.x;
  const T* from = partial + blockIdx.y * slices * D;
  const T sum =
      column_sum<T>(0, column < D ? slices : 0, [&](int slice) { return from[slice * D + column]; }, s.values);
  if (threadIdx.y == 0 && column < D) (blockIdx.y == 0 ? dweight : dbias)[column] = sum;
}

// ---- v2

// Block: 8 rows of a warp each, or one row.  Thread: OWN vectors of a row, vector v begins at column
// (v ROW_THREADS + rank) SIZE; so D <= OWN ROW_THREADS SIZE.  VECTOR: rows and parameters lie at multiples of
// 16 bytes.
template <class T, int ROW_THREADS, int OWN, bool VECTOR>
__global__ void __launch_bounds__(BLOCK<ROW_THREADS>, 1)
layer_norm_forward_v2_registers(const T* __restrict__ x, const T* __restrict__ weight, const T* __restrict__ bias,
                                T* __restrict__ y, T* __restrict__ mean, T* __restrict__ rstd, int R, int D,
                                double eps) {
  constexpr int SIZE = Vector<T>::SIZE;
  struct Shared {
    WarpValues<T, ROW_THREADS> values;
  };
  Shared& s = block_shared<Shared>();
  const int rank = threadIdx.x % ROW_THREADS;
  const int row = blockIdx.x * (BLOCK<ROW_THREADS> / ROW_THREADS) + threadIdx.x / ROW_THREADS;
  if (row >= R) return;  // a whole warp, and only where no barrier of the block follows

  Vector<T> own[OWN];
  T sum = 0;
#pragma unroll
  for (int v = 0; v < OWN; ++v) own[v] = load_within<VECTOR>(x + row * D, (v * ROW_THREADS + rank) * SIZE, D, T(0));
#pragma unroll
  for (int v = 0; v < OWN; ++v)
#pragma unroll
    for (int e = 0; e < SIZE; ++e) sum += own[v].of[e];
  const T mu = team_sum<ROW_THREADS>(sum, s.values) / T(D);

  T squares = 0;
#pragma unroll
  for (int v = 0; v < OWN; ++v)
#pragma unroll
    for (int e = 0; e < SIZE; ++e) {
      own[v].of[e] -= mu;
      if ((v * ROW_THREADS + rank) * SIZE + e < D) squares += own[v].of[e] * own[v].of[e];
    }
  const T r = reciprocal_deviation(team_sum<ROW_THREADS>(squares, s.values) / T(D), eps);

#pragma unroll
  for (int v = 0; v < OWN; ++v) {
    const int column = (v * ROW_THREADS + rank) * SIZE;
    const Vector<T> w = load_within<VECTOR>(weight, column, D, T(1)), b = load_within<VECTOR>(bias, column, D, T(0));
#pragma unroll
    for (int e = 0; e < SIZE; ++e) own[v].of[e] = own[v].of[e] * r * w.of[e] + b.of[e];
    store_within<VECTOR>(y + row * D, column, D, own[v]);
  }
  if (rank == 0) {
    mean[row] = mu;
    rstd[row] = r;
  }
}

// Of a vector, x becomes xhat and g becomes h, and they are added to dw, db and the sums of h and h xhat.
template <class T>
__device__ __forceinline__ void add_up(Vector<T>& xhat, Vector<T>& h, const Vector<T>& w, T mean, T rstd,
                                       Vector<T>& dw, Vector<T>& db, Two<T>& sums) {
#pragma unroll
  for (int e = 0; e < Vector<T>::SIZE; ++e) {
    const T g = h.of[e];
    xhat.of[e] = (xhat.of[e] - mean) * rstd;
    h.of[e] = g * w.of[e];
    dw.of[e] += g * xhat.of[e];
    db.of[e] += g;
    sums += Two<T>(h.of[e], h.of[e] * xhat.of[e]);
  }
}

// h becomes dx, by the means of h and h xhat.
template <class T>
__device__ __forceinline__ void make_input_gradient(Vector<T>& h, const Vector<T>& xhat, T of_h, T of_product, T rstd) {
#pragma unroll
  for (int e = 0; e < Vector<T>::SIZE; ++e) h.of[e] = (h.of[e] - of_h - xhat.of[e] * of_product) * rstd;
}

// dx, and dw and db of the block's rows: partial[0, block, :] and partial[1, block, :].
// Block: `rows_each` times 8 rows, or 1.  Thread: the columns of the forward pass, in
// every row of its ROW_THREADS neighbours.
template <class T, int ROW_THREADS, int OWN, bool VECTOR>
__global__ void __launch_bounds__(BLOCK<ROW_THREADS>, 1)
layer_norm_backward_v2_registers(const T* __restrict__ grad, const T* __restrict__ x, const T* __restrict__ weight,
                                 const T* __restrict__ mean, const T* __restrict__ rstd, T* __restrict__ dx,
                                 T* __restrict__ partial, int R, int D, int rows_each) {
  constexpr int SIZE = Vector<T>::SIZE, TEAMS = BLOCK<ROW_THREADS> / ROW_THREADS;
  constexpr int COLUMNS = TEAMS > 1 ? ROW_THREADS * OWN * SIZE : SIZE;
  struct Shared {
    alignas(16) T dw[COLUMNS], db[COLUMNS];  // only where several rows share the block
    WarpValues<Two<T>, ROW_THREADS> values;
  };
  Shared& s = block_shared<Shared>();
  const int rank = threadIdx.x % ROW_THREADS, team = threadIdx.x / ROW_THREADS;

  Vector<T> dw[OWN] = {}, db[OWN] = {};
  for (int i = 0; i < rows_each; ++i) {
    const int row = (blockIdx.x * rows_each + i) * TEAMS + team;
    if (row >= R) break;  // with all threads of the row
    const T mu = mean[row], r = rstd[row];
    Vector<T> xhat[OWN], h[OWN];
#pragma unroll
    for (int v = 0; v < OWN; ++v) {
      const int column = (v * ROW_THREADS + rank) * SIZE;
      xhat[v] = load_within<VECTOR>(x + row * D, column, D, mu);  // beyond the row xhat and g are 0
      h[v] = load_within<VECTOR>(grad + row * D, column, D, T(0));
    }
    Two<T> means;
#pragma unroll
    for (int v = 0; v < OWN; ++v) {
      const Vector<T> w = load_within<VECTOR>(weight, (v * ROW_THREADS + rank) * SIZE, D, T(1));
      add_up(xhat[v], h[v], w, mu, r, dw[v], db[v], means);
    }
    means = team_sum<ROW_THREADS>(means, s.values);
    const T of_h = means.first / T(D), of_product = means.second / T(D);
#pragma unroll
    for (int v = 0; v < OWN; ++v) {
      make_input_gradient(h[v], xhat[v], of_h, of_product, r);
      store_within<VECTOR>(dx + row * D, (v * ROW_THREADS + rank) * SIZE, D, h[v]);
    }
  }

  T* block_dw = partial + blockIdx.x * D;
  T* block_db = partial + (gridDim.x + blockIdx.x) * D;
  if constexpr (TEAMS == 1) {
#pragma unroll
    for (int v = 0; v < OWN; ++v) {
      store_within<VECTOR>(block_dw, (v * ROW_THREADS + rank) * SIZE, D, dw[v]);
      store_within<VECTOR>(block_db, (v * ROW_THREADS + rank) * SIZE, D, db[v]);
    }
  } else {
    for (int turn = 0; turn < TEAMS; ++turn) {
      if (team == turn) {
#pragma unroll
        for (int v = 0; v < OWN; ++v) {
          const int column = (v * ROW_THREADS + rank) * SIZE;
          Vector<T> w = dw[v], b = db[v];
          if (turn > 0) {
            const Vector<T> w0 = load_vector(&s.dw[column]), b0 = load_vector(&s.db[column]);
#pragma unroll
            for (int e = 0; e < SIZE; ++e) {
              w.of[e] += w0.of[e];
              b.of[e] += b0.of[e];
            }
          }
          store_vector(&s.dw[column], w);
          store_vector(&s.db[column], b);
        }
      }
      __syncthreads();  // this warp's sums are in place before the next warp, or the end, reads them
    }
    for (int j = threadIdx.x; j < D; j += BLOCK<ROW_THREADS>) {
      block_dw[j] = s.dw[j];
      block_db[j] = s.db[j];
    }
  }
}

// ---- v3

// As block_sum(), for one sum after the other: number `turn` of them.  Two places in turns make one barrier enough: who
// writes to a place again has passed the barrier of the sum between, at which all had read what lay there.
template <int THREADS, class T>
__device__ __forceinline__ Two<T> block_sum_in_turns(Two<T> value, WarpValues<Two<T>, THREADS> (&places)[2], int turn) {
  WarpValues<Two<T>, THREADS>& values = places[turn % 2];
  value = warp_sum(value);
  if (threadIdx.x % WARP == 0) values.of_warp[threadIdx.x / WARP] = value;
  __syncthreads();  // every warp's sum is written before any thread reads it
  Two<T> total;
  for (int warp = 0; warp < THREADS / WARP; ++warp) total += values.of_warp[warp];
  return total;
}

// Start copying numbers first, first + 1, ... of a run of `end`, a vector's; as load_within() of reduce.cuh.
template <bool VECTOR, class T>
__device__ __forceinline__ void copy_within(T* to, const T* from, int first, int end) {
  constexpr int STEP = Part<T, VECTOR>::SIZE;
#pragma unroll
  for (int e = 0; e < Vector<T>::SIZE; e += STEP)
    if (first + e < end) copy_async<STEP * sizeof(T)>(to + first + e, from + first + e, true);
}

// dx, and dw and db of the block's rows: partial[0, block, :] and partial[1, block, :].
// Block: `rows_each` rows.  Thread: one vector of every row.  It copies its own numbers of the rows that follow, and
// nobody else reads them: they wait in a ring of STAGES rows for which no barrier is needed.
template <class T, int ROW_THREADS, bool VECTOR>
__global__ void __launch_bounds__(ROW_THREADS, sizeof(T) == 4 ? 1024 / ROW_THREADS : 1)
layer_norm_backward_v3_ahead(const T* __restrict__ grad, const T* __restrict__ x, const T* __restrict__ weight,
                             const T* __restrict__ mean, const T* __restrict__ rstd, T* __restrict__ dx,
                             T* __restrict__ partial, int R, int D, int rows_each) {
  constexpr int SIZE = Vector<T>::SIZE, STAGES = 1 + 512 / ROW_THREADS;  // one row, and 16 KB that follow
  struct Shared {
    alignas(16) T x[STAGES][ROW_THREADS * SIZE], grad[STAGES][ROW_THREADS * SIZE];
    WarpValues<Two<T>, ROW_THREADS> values[2];
  };
  Shared& s = block_shared<Shared>();
  const int column = threadIdx.x * SIZE, first = blockIdx.x * rows_each, rows = min(rows_each, R - first);

  const auto ask = [&](int i) {  // for row number i of the block
    if (i < rows) {
      copy_within<VECTOR>(s.x[i % STAGES], x + (first + i) * D, column, D);
      copy_within<VECTOR>(s.grad[i % STAGES], grad + (first + i) * D, column, D);
    }
    commit_copies();  // a group for each row, even beyond the last one, since groups are counted
  };
  for (int i = 0; i < STAGES - 1; ++i) ask(i);
  const Vector<T> w = load_within<VECTOR>(weight, column, D, T(1));
  T next_mean = mean[first], next_rstd = rstd[first];

  Vector<T> dw = {}, db = {};
  for (int i = 0; i < rows; ++i) {
    const int row = first + i;
    ask(i + STAGES - 1);  // to where row i - 1 was, which this thread has read
    const T mu = next_mean, r = next_rstd;
    if (i + 1 < rows) {
      next_mean = mean[row + 1];
      next_rstd = rstd[row + 1];
    }
    wait_copies<STAGES - 1>();  // row i has arrived
    Vector<T> xhat = load_within<VECTOR>(s.x[i % STAGES], column, D, mu);  // beyond the row xhat and g are 0
    Vector<T> h = load_within<VECTOR>(s.grad[i % STAGES], column, D, T(0));
    Two<T> sums;
    add_up(xhat, h, w, mu, r, dw, db, sums);
    sums = block_sum_in_turns<ROW_THREADS>(sums, s.values, i);
    make_input_gradient(h, xhat, sums.first / T(D), sums.second / T(D), r);
    store_within<VECTOR>(dx + row * D, column, D, h);
  }
  store_within<VECTOR>(partial + blockIdx.x * D, column, D, dw);
  store_within<VECTOR>(partial + (gridDim.x + blockIdx.x) * D, column, D, db);
}
