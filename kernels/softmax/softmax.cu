// Softmax and its logarithm along one axis, forward and backward, float32 and float64.
//
//   x, y, g (outer, length, inner)  input, output, dL/dy; the axis is the middle one
//   m = max x, s = sum e^(x - m) along it
//
//   forward    softmax  y = e^(x - m) / s          logarithm  y = x - m - log s
//   backward   softmax  dx = y (g - sum g y)       logarithm  dx = g - e^y sum g
//
// `logarithm` says which.  A row is what one maximum and one sum are taken over: `length` elements that lie
// `inner` apart.  m and s come from one reading (OnlineSoftmax of rows.cuh).
//
//   v1_plain           a thread owns a row and reads it twice
//   v2_team            rows that are contiguous (inner = 1): a team of 4, 32 or 256 threads owns a row and
//                      keeps it in registers, so it is read once if it fits in their tile; 16 bytes at a
//                      time where the layout allows (VECTOR)
//   v2_team_columns    the others: 8 threads own a row, and a warp works on 32 neighbouring ones
//
// Source: Milakov and Gimelshein, "Online normalizer calculation for softmax", 2018.

#include "rows.cuh"

// y of one element.
template <class T>
__device__ __forceinline__ T normalised(T x, const OnlineSoftmax<T>& all, T log_sum, T inverse, bool logarithm) {
  return logarithm ? x - all.max - log_sum : exp_of(x - all.max) * inverse;
}

// What of one element the backward pass sums, and dx from the sum.
template <class T>
__device__ __forceinline__ T product(T g, T y, bool logarithm) { return logarithm ? g : g * y; }
template <class T>
__device__ __forceinline__ T derivative(T g, T y, T sum, bool logarithm) {
  return logarithm ? g - exp_of(y) * sum : y * (g - sum);
}

// The place of the first element of row r.
__device__ __forceinline__ unsigned row_start(unsigned r, unsigned length, unsigned inner) {
  return r / inner * length * inner + r % inner;
}

// ---- v1

// Block: 128 rows.  Thread: one of them; neighbours own rows that are neighbours in memory if inner > 1.
template <class T>
__global__ void __launch_bounds__(128, 2)
softmax_forward_v1_plain(const T* __restrict__ x, T* __restrict__ y, unsigned rows, unsigned length, unsigned inner,
                         bool logarithm) {
  const unsigned r = blockIdx.x * 128 + threadIdx.x;
  if (r >= rows) return;
  const unsigned start = row_start(r, length, inner);
  const OnlineSoftmax<T> all = softmax_in_runs<T>(0, length, 1, [&](unsigned c) { return x[start + c * inner]; });
  const T log_sum = log_of(all.sum), inverse = T(1) / all.sum;
  for (unsigned c = 0; c < length; ++c) {
    const unsigned i = start + c * inner;
    y[i] = normalised(x[i], all, log_sum, inverse, logarithm);
  }
}

// As above.
template <class T>
__global__ void __launch_bounds__(128, 2)
softmax_backward_v1_plain(const T* __restrict__ grad, const T* __restrict__ y, T* __restrict__ dx, unsigned rows,
                          unsigned length, unsigned inner, bool logarithm) {
  const unsigned r = blockIdx.x * 128 + threadIdx.x;
  if (r >= rows) return;
  const unsigned start = row_start(r, length, inner);
  const T sum = sum_in_runs<T>(0, length, 1, [&](unsigned c) {
    return product(grad[start + c * inner], y[start + c * inner], logarithm);
  });
  for (unsigned c = 0; c < length; ++c) {
    const unsigned i = start + c * inner;
    dx[i] = derivative(grad[i], y[i], sum, logarithm);
  }
}

// ---- v2, contiguous rows

// Block: THREADS_OF<TEAM> threads in teams, each with one row.  Thread: its part of the team's tile.
// VECTOR: x and y start at multiples of 16 bytes, and so does each row.
template <class T, int TEAM, bool VECTOR>
__global__ void __launch_bounds__(THREADS_OF<TEAM>, 2)
softmax_forward_v2_team(const T* __restrict__ x, T* __restrict__ y, unsigned rows, unsigned length_, bool logarithm) {
  using Tile = RowTile<T, TEAM, VECTOR>;
  TeamValues<T, TEAM>& values = block_shared<TeamValues<T, TEAM>>();
  const unsigned r = blockIdx.x * (THREADS_OF<TEAM> / TEAM) + threadIdx.x / TEAM;
  const unsigned length = r < rows ? length_ : 0;  // a team without a row shuffles along with the others of its warp
  const unsigned start = r < rows ? r * length : 0;

  Tile tile;
  OnlineSoftmax<T> own;
  for (unsigned t = Tile::count(length); t-- > 0;) {  // once, unless the row is longer than a tile
    const unsigned base = t * Tile::SIZE;
    tile.load(x + start, base, length);
    own = merged(own, tile.softmax(base, length));
  }
  const OnlineSoftmax<T> all = team_merged<TEAM>(own, values);
  const T log_sum = log_of(all.sum), inverse = T(1) / all.sum;
  for (unsigned base = 0; base < length; base += Tile::SIZE) {
    if (base > 0) tile.load(x + start, base, length);  // the registers hold the first tile alone
    tile.each(base, length, [&](int i, unsigned) {
      tile.of[i] = normalised(tile.of[i], all, log_sum, inverse, logarithm);
    });
    tile.store(y + start, base, length);
  }
}

// As above; VECTOR holds for grad, y and dx.
template <class T, int TEAM, bool VECTOR>
__global__ void __launch_bounds__(THREADS_OF<TEAM>, 2)
softmax_backward_v2_team(const T* __restrict__ grad, const T* __restrict__ y, T* __restrict__ dx, unsigned rows,
                         unsigned length_, bool logarithm) {
  using Tile = RowTile<T, TEAM, VECTOR>;
  TeamValues<T, TEAM>& values = block_shared<TeamValues<T, TEAM>>();
  const unsigned r = blockIdx.x * (THREADS_OF<TEAM> / TEAM) + threadIdx.x / TEAM;
  const unsigned length = r < rows ? length_ : 0;
  const unsigned start = r < rows ? r * length : 0;

  Tile of_g, of_y;
  T sum = 0;
  for (unsigned t = Tile::count(length); t-- > 0;) {
    const unsigned base = t * Tile::SIZE;
    of_g.load(grad + start, base, length);
    of_y.load(y + start, base, length);
    sum += Tile::sum(base, length, [&](int i, unsigned) { return product(of_g.of[i], of_y.of[i], logarithm); });
  }
  sum = team_sum<TEAM>(sum, values);
  for (unsigned base = 0; base < length; base += Tile::SIZE) {
    if (base > 0) {
      of_g.load(grad + start, base, length);
      of_y.load(y + start, base, length);
    }
    of_g.each(base, length, [&](int i, unsigned) { of_g.of[i] = derivative(of_g.of[i], of_y.of[i], sum, logarithm); });
    of_g.store(dx + start, base, length);
  }
}

// ---- v2, rows whose elements lie apart

// Block: 32 x 8 threads and 32 rows, neighbours in memory within one outer index.  Thread: row threadIdx.x
// of them, every 8th element of it.
template <class T>
__global__ void __launch_bounds__(256, 2)
softmax_forward_v2_team_columns(const T* __restrict__ x, T* __restrict__ y, unsigned rows, unsigned length,
                                unsigned inner, bool logarithm) {
  constexpr int ROWS = 32, PARTS = 8;
  struct Shared {
    T max[PARTS][ROWS];
    T sum[PARTS][ROWS];
  };
  Shared& s = block_shared<Shared>();
  const unsigned r = blockIdx.x * ROWS + threadIdx.x;
  const unsigned start = r < rows ? row_start(r, length, inner) : 0;
  const unsigned end = r < rows ? length : 0;

  OnlineSoftmax<T> all =
      softmax_in_runs<T>(threadIdx.y, end, PARTS, [&](unsigned c) { return x[start + c * inner]; });
  s.max[threadIdx.y][threadIdx.x] = all.max;
  s.sum[threadIdx.y][threadIdx.x] = all.sum;
  __syncthreads();  // all parts of a row are written before any thread of the row reads them
  all = OnlineSoftmax<T>();
  for (int part = 0; part < PARTS; ++part)
    all = merged(all, OnlineSoftmax<T>{s.max[part][threadIdx.x], s.sum[part][threadIdx.x]});
  const T log_sum = log_of(all.sum), inverse = T(1) / all.sum;
  for (unsigned c = threadIdx.y; c < end; c += PARTS) {
    const unsigned i = start + c * inner;
    y[i] = normalised(x[i], all, log_sum, inverse, logarithm);
  }
}

// As above.
template <class T>
__global__ void __launch_bounds__(256, 2)
softmax_backward_v2_team_columns(const T* __restrict__ grad, const T* __restrict__ y, T* __restrict__ dx,
                                 unsigned rows, unsigned length, unsigned inner, bool logarithm) {
  constexpr int ROWS = 32, PARTS = 8;
  struct Shared {
    T sum[PARTS][ROWS];
  };
  Shared& s = block_shared<Shared>();
  const unsigned r = blockIdx.x * ROWS + threadIdx.x;
  const unsigned start = r < rows ? row_start(r, length, inner) : 0;
  const unsigned end = r < rows ? length : 0;

  T sum = sum_in_runs<T>(threadIdx.y, end, PARTS, [&](unsigned c) {
    return product(grad[start + c * inner], y[start + c * inner], logarithm);
  });
  s.sum[threadIdx.y][threadIdx.x] = sum;
  __syncthreads();  // all parts of a row are written before any thread of the row reads them
  sum = 0;
  for (int part = 0; part < PARTS; ++part) sum += s.sum[part][threadIdx.x];
  for (unsigned c = threadIdx.y; c < end; c += PARTS) {
    const unsigned i = start + c * inner;
    dx[i] = derivative(grad[i], y[i], sum, logarithm);
  }
}
