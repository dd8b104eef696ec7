// Two-dimensional convolution and its gradients: NCHW, float32 and float64, any stride, padding, dilation, groups.
//
// The letters are those of the contract, kernels/conv2d/__init__.py.  With h = p sh + r dh - ph, w = q sw + s dw - pw,
// c over the channels of k's group, and x zero outside its bounds:
//
//   y[n,k,p,q]   = b[k] + sum_{c,r,s} weight[k,c,r,s] x[n,c,h,w]
//   dx[n,c,h,w]  = sum of weight[k,c,r,s] g[n,k,p,q] over all k and the taps (r,s) for which p and q are whole
//   dw[k,c,r,s]  = sum_{n,p,q} g[n,k,p,q] x[n,c,h,w]
//   db[k]        = sum_{n,p,q} g[n,k,p,q]
//
// Forward may end in a ReLU, y = max(y, 0).  The gradients may begin behind a ReLU: they are then given its y, and take
// g as 0 where y <= 0 (Input in correlation.cuh).
//
// The versions of the first three; the later ones stand in files of their own:
//
//   v1_plain          a thread owns one result and reads two numbers from global memory per multiplication
//   v2_smem_tile      a block owns a rectangle of positions in some channels; the patch of x that lies under it (of g,
//                     for dx) and the filters are staged in shared memory, so that one global read of x serves all taps
//   v3_register_tile  implicit GEMM: the matrix of all windows is never stored, its tiles are gathered from x into
//                     shared memory; a thread owns ROWS x COLS results in registers, so that ROWS + COLS shared reads
//                     feed ROWS COLS multiplications; the next tile is fetched while this one is multiplied
//   v4_direct         conv2d_direct.cu: v2's patch in shared memory, and squares of results in registers
//   v5_tensor_core    conv2d_tensor_core.cu: float32 rounded to what tensor cores take
//   v6_channels_last  conv2d_channels_last.cu: that, of arrays that lie in memory as (n,h,w,c)
//
// Forward and dx share their bodies: both are a Correlation (correlation.cuh).  dw sums over all positions: slices of
// them, whose number depends on the shape alone, are summed by blocks of their own, and conv2d_sum_slices adds the slices
// up.
//
// Every sum is taken in an order that the shape fixes, so a result has the same bits in every run.
//
// Sources: Chellapilla, Puri and Simard, "High performance convolutional neural networks for document processing", 2006
// (windows as a matrix); Chetlur et al., "cuDNN: efficient primitives for deep learning", 2014 (the matrix gathered
// tile by tile).

#include "correlation.cuh"
#include "warp.cuh"

// ---- v1

// Block: 256 threads.  Thread: y[n,k,p,q]; neighbours are neighbours in q.
template <class T>
__global__ void __launch_bounds__(256)
conv2d_forward_v1_plain(const T* __restrict__ x, const T* __restrict__ weight, const T* __restrict__ bias,
                        T* __restrict__ y, Geometry g, bool relu) {
  const unsigned own = blockIdx.x * 256u + threadIdx.x;
  if (own >= unsigned(g.N * g.K * g.P * g.Q)) return;
  int rest = own;
  const int q = take(rest, g.Q), p = take(rest, g.P), k = take(rest, g.K), n = rest;
  const int C = g.C / g.G, c0 = k / (g.K / g.G) * C;
  T sum = 0;
  for (int c = 0; c < C; ++c)
    for (int r = 0; r < g.R; ++r)
      for (int s = 0; s < g.S; ++s) {
        const int h = p * g.sh + r * g.dh - g.ph, w = q * g.sw + s * g.dw - g.pw;
        const bool inside = 0 <= h && h < g.H && 0 <= w && w < g.W;
        const T value = inside ? x[((n * g.C + c0 + c) * g.H + h) * g.W + w] : T(0);
        sum += weight[((k * C + c) * g.R + r) * g.S + s] * value;
      }
  y[own] = finished(sum, bias_of(bias, k), relu);
}

// Block: 256 threads.  Thread: dx[n,c,h,w]; neighbours are neighbours in w.
template <class T>
__global__ void __launch_bounds__(256)
conv2d_backward_input_v1_plain(const T* __restrict__ grad, const T* __restrict__ y, const T* __restrict__ weight,
                               T* __restrict__ dx, Geometry g) {
  const Input<T> in = {grad, y};
  const unsigned own = blockIdx.x * 256u + threadIdx.x;
  if (own >= unsigned(g.N * g.C * g.H * g.W)) return;
  int rest = own;
  const int w = take(rest, g.W), h = take(rest, g.H), c = take(rest, g.C), n = rest;
  const int C = g.C / g.G, K = g.K / g.G, k0 = c / C * K;
  T sum = 0;
  for (int k = k0; k < k0 + K; ++k)
    for (int r = 0; r < g.R; ++r)
      for (int s = 0; s < g.S; ++s) {
        const int down = h + g.ph - r * g.dh, across = w + g.pw - s * g.dw;  // p sh and q sw
        if (down % g.sh != 0 || across % g.sw != 0) continue;  // no output puts this tap here
        const int p = down / g.sh, q = across / g.sw;
        const bool inside = 0 <= p && p < g.P && 0 <= q && q < g.Q;
        const T value = inside ? in[((n * g.K + k) * g.P + p) * g.Q + q] : T(0);
        sum += weight[((k * C + c % C) * g.R + r) * g.S + s] * value;
      }
  dx[own] = sum;
}

// Block: 256 threads.  Thread: partials[slice,k,c,r,s], the sum over `length` of the rows (n,p); it adds up row by row.
template <class T>
__global__ void __launch_bounds__(256)
conv2d_backward_weight_v1_plain(const T* __restrict__ x, const T* __restrict__ grad, const T* __restrict__ y,
                                T* __restrict__ partials, Geometry g, int slices, int length) {
  const Input<T> gradient = {grad, y};
  const int C = g.C / g.G, weights = g.K * C * g.R * g.S;
  const unsigned own = blockIdx.x * 256u + threadIdx.x;
  if (own >= unsigned(slices * weights)) return;
  int rest = own;
  const int s = take(rest, g.S), r = take(rest, g.R), c = take(rest, C), k = take(rest, g.K), slice = rest;
  const int c_of_x = k / (g.K / g.G) * C + c;
  T sum = 0;
  for (int row = slice * length; row < min((slice + 1) * length, g.N * g.P); ++row) {
    const int n = row / g.P, p = row % g.P, h = p * g.sh + r * g.dh - g.ph;
    T sum_of_row = 0;
    for (int q = 0; q < g.Q; ++q) {
      const int w = q * g.sw + s * g.dw - g.pw;
      const bool inside = 0 <= h && h < g.H && 0 <= w && w < g.W;
      const T value = inside ? x[((n * g.C + c_of_x) * g.H + h) * g.W + w] : T(0);
      sum_of_row += gradient[((n * g.K + k) * g.P + p) * g.Q + q] * value;
    }
    sum += sum_of_row;
  }
  partials[own] = sum;
}

// ---- v2

// What a block takes at once, as the launcher fits it into shared memory: positions down and across, result channels,
// input channels, taps down and across.
struct Tile {
  int P, Q, M, C, R, S;
};

template <class T>
struct Stage {
  T patch[4096], other[2048];  // tiles.py fits tiles into these
};

// Copy `channels` planes of the rectangle rows x columns at (h0, w0) of the input, with zeros outside the input.
template <class T>
__device__ __forceinline__ void stage_patch(T* patch, const Input<T>& in, const Axis& down, const Axis& across,
                                            int channels, int rows, int columns, int h0, int w0) {
  for (int e = threadIdx.x; e < channels * rows * columns; e += blockDim.x) {
    int rest = e;
    const int w = w0 + take(rest, columns), h = h0 + take(rest, rows), c = rest;
    const bool inside = 0 <= h && h < down.size && 0 <= w && w < across.size;
    patch[e] = inside ? in[(c * down.size + h) * across.size + w] : T(0);
  }
}

// Block: t.M x t.P x t.Q threads and as many results of one image.  Thread: one of them.
template <class T>
__device__ __forceinline__ void correlate_smem_tile(const Correlation& f, const Tile& t, const Input<T>& all,
                                                    const T* __restrict__ weight, const T* __restrict__ bias,
                                                    bool relu, T* __restrict__ out, int block) {
  Stage<T>& stage = block_shared<Stage<T>>();
  int rest = threadIdx.x;
  const int j = take(rest, t.Q), i = take(rest, t.P), m = rest;
  const int m0 = take(block, ceil_div(f.M, t.M)) * t.M;  // blocks that read the same patch are neighbours
  const int j0 = take(block, ceil_div(f.across.positions, t.Q)) * t.Q;
  const int i0 = take(block, ceil_div(f.down.positions, t.P)) * t.P;
  const int group = take(block, f.G), n = block;
  const Input<T> in = all.from((n * f.G + group) * f.C * f.in_plane);
  weight += group * f.weights;

  T sum = 0;
  for (int c0 = 0; c0 < f.C; c0 += t.C)
    for (int r0 = 0; r0 < f.down.taps; r0 += t.R)
      for (int s0 = 0; s0 < f.across.taps; s0 += t.S) {
        const int C = min(t.C, f.C - c0), R = min(t.R, f.down.taps - r0), S = min(t.S, f.across.taps - s0);
        const int rows = reach(f.down, t.P, R), columns = reach(f.across, t.Q, S);
        const Place corner = f.position({0, i0, j0}), first = f.tap({c0, r0, s0});
        stage_patch(stage.patch, in.from(c0 * f.in_plane), f.down, f.across, C, rows, columns, corner.h + first.h,
                    corner.w + first.w);
        for (int e = threadIdx.x; e < t.M * C * R * S; e += blockDim.x) {
          rest = e;
          const int s = take(rest, S), r = take(rest, R), c = take(rest, C), of_m = m0 + rest;
          stage.other[e] = of_m < f.M ? weight[of_m * f.weight_m + f.tap({c0 + c, r0 + r, s0 + s}).at] : T(0);
        }
        __syncthreads();  // patch and filters are complete before anyone multiplies
        const T* filter = &stage.other[m * C * R * S];
        const T* patch = &stage.patch[i * f.down.stride * columns + j * f.across.stride];
        for (int c = 0; c < C; ++c)
          for (int r = 0; r < R; ++r)
            for (int s = 0; s < S; ++s)
              sum += *filter++ * patch[(c * rows + r * f.down.dilation) * columns + s * f.across.dilation];
        __syncthreads();  // everyone has multiplied before the next pieces overwrite these
      }
  if (m0 + m >= f.M || i0 + i >= f.down.positions || j0 + j >= f.across.positions) return;
  const int of_m = group * f.M + m0 + m;
  out[of_m * f.out_plane + f.position({n, i0 + i, j0 + j}).at] = finished(sum, bias_of(bias, of_m), relu);
}

template <class T>
__global__ void __launch_bounds__(256, 3)
conv2d_forward_v2_smem_tile(const T* __restrict__ x, const T* __restrict__ weight, const T* __restrict__ bias,
                            T* __restrict__ y, Geometry g, Tile t, bool relu) {
  correlate_smem_tile<T>(forward_of(g), t, {x, nullptr}, weight, bias, relu, y, blockIdx.x);
}

template <class T>
__global__ void __launch_bounds__(256, 3)
conv2d_backward_input_v2_smem_tile(const T* __restrict__ grad, const T* __restrict__ y, const T* __restrict__ weight,
                                   T* __restrict__ dx, Geometry g, Tile t) {
  int block = blockIdx.x;
  const Correlation f = backward_of(g, block);
  correlate_smem_tile<T>(f, t, {grad, y}, weight, nullptr, false, dx, block);
}

// Block: 256 threads, t.M filters x t.C channels x t.R x t.S taps, and one slice of the tiles of positions: for each
// tile the patch of x and the part of g.  Thread: one weight, and every `teams`-th row of the tiles; at the end the
// teams are summed.
template <class T>
__global__ void __launch_bounds__(256, 3)
conv2d_backward_weight_v2_smem_tile(const T* __restrict__ x, const T* __restrict__ grad, const T* __restrict__ y,
                                    T* __restrict__ partials, Geometry g, Tile t, int length) {
  const Input<T> in = {x, nullptr}, gradient = {grad, y};
  Stage<T>& stage = block_shared<Stage<T>>();
  const Correlation f = forward_of(g);
  int block = blockIdx.x;
  const int s0 = take(block, ceil_div(g.S, t.S)) * t.S, r0 = take(block, ceil_div(g.R, t.R)) * t.R;
  const int c0 = take(block, ceil_div(f.C, t.C)) * t.C, k0 = take(block, ceil_div(f.M, t.M)) * t.M;
  const int group = take(block, g.G), slice = block;
  const int C = min(t.C, f.C - c0), K = min(t.M, f.M - k0);
  const Place first = f.tap({c0, r0, s0});

  const int weights = t.M * t.C * t.R * t.S, teams = 256 / weights;
  int rest = threadIdx.x;
  const int s = take(rest, t.S), r = take(rest, t.R), c = take(rest, t.C), k = take(rest, t.M), team = rest;
  const bool inside = k < K && c < C && r0 + r < g.R && s0 + s < g.S && team < teams;

  const int across = ceil_div(g.Q, t.Q), down = ceil_div(g.P, t.P);
  const int end = min((slice + 1) * length, g.N * down * across);
  T sum = 0;
  for (int tile = slice * length; tile < end; ++tile) {
    const Digits at = digits(tile, down, across);
    const int n = at.high, p0 = at.middle * t.P, q0 = at.low * t.Q;
    const int P = min(t.P, g.P - p0), Q = min(t.Q, g.Q - q0);
    const int rows = reach(f.down, P, t.R), columns = reach(f.across, Q, t.S);
    const Place corner = f.position({n, p0, q0});
    stage_patch(stage.patch, in.from(((n * g.G + group) * f.C + c0) * f.in_plane), f.down, f.across, C, rows, columns,
                corner.h + first.h, corner.w + first.w);
    for (int e = threadIdx.x; e < K * P * Q; e += blockDim.x) {
      rest = e;
      const int q = q0 + take(rest, Q), p = p0 + take(rest, P), of_k = group * f.M + k0 + rest;
      stage.other[e] = gradient[((n * g.K + of_k) * g.P + p) * g.Q + q];
    }
    __syncthreads();  // patch and gradients are complete before anyone multiplies
    if (inside)
      for (int p = team; p < P; p += teams)
        for (int q = 0; q < Q; ++q)
          sum += stage.other[(k * P + p) * Q + q] *
                 stage.patch[(c * rows + p * g.sh + r * g.dh) * columns + q * g.sw + s * g.dw];
    __syncthreads();  // everyone has multiplied before the next tile overwrites these
  }
  stage.patch[threadIdx.x] = sum;
  __syncthreads();  // all teams' sums are written before the first team adds them
  if (!inside || team != 0) return;
  for (int other = 1; other < teams; ++other) sum += stage.patch[other * weights + threadIdx.x];
  partials[slice * g.G * f.weights + (group * f.M + k0 + k) * f.weight_m + f.tap({c0 + c, r0 + r, s0 + s}).at] = sum;
}

// ---- v3

constexpr int THREADS = 128;
constexpr int BLOCKS = 2;  // at least, on one multiprocessor: 255 registers for each thread, and the compiler uses them

// The windows as a matrix b, with a position for each row and a tap for each column or the other way round, and a
// matrix a that it is multiplied with.  Of their product a block of 16 x 8 threads owns HEIGHT x WIDTH elements, a
// thread ROWS x COLS.  The sum runs over the `terms`, DEPTH at a time; b's `columns` are the same for all of them.
//
// To fill a tile of a, a thread brings every 16th row (in double every 32nd) of column threadIdx.x % DEPTH.  Of b it
// brings the column threadIdx.x if POSITIONS says that columns are positions, and else every 16th column of row
// threadIdx.x % DEPTH: either way, neighbours in a warp read neighbouring positions.
template <class T, int ROWS, int COLS, bool POSITIONS>
struct RegisterTile {
  static constexpr int ACROSS = 16, DOWN = 8, HEIGHT = DOWN * ROWS, WIDTH = ACROSS * COLS, V = Vector<T>::SIZE;
  static constexpr int DEPTH = 2 * V, BESIDE = THREADS / DEPTH;  // for 8 doubles there would not be registers enough
  static constexpr int LOADS_A = ceil_div(HEIGHT, BESIDE), LOADS_B = WIDTH / BESIDE;
  static constexpr int RUN = COLS < V ? COLS : V;  // a thread's columns come in runs of neighbours
  static_assert(ACROSS * DOWN == THREADS && (!POSITIONS || WIDTH == THREADS), "a position for each thread");

  // Two tiles of each: one is filled while the other is multiplied.  The four extra elements keep rows aligned, and put
  // what a warp (in double, half a warp) fills at once, four neighbours of each of DEPTH rows, in different banks.
  alignas(16) T a[2][DEPTH][HEIGHT + 4];
  alignas(16) T b[2][DEPTH][WIDTH + 4];
  Place terms[2][DEPTH], columns[WIDTH];

  // This thread's r-th row and c-th column.
  static __device__ __forceinline__ int row(int r) { return threadIdx.x / ACROSS * ROWS + r; }
  static __device__ __forceinline__ int column(int c) {
    return c / RUN * (ACROSS * RUN) + threadIdx.x % ACROSS * RUN + c % RUN;
  }

  // Add to `sum` the products of `count` terms; term(i) is the place of the i-th.  The row r < rows of a has its
  // element for a term at matrix[r * pitch + term.at].
  template <class Term>
  __device__ __forceinline__ void multiply(const Correlation& f, const Input<T>& in, const Input<T>& matrix,
                                           int pitch, int rows, int count, const Term& term, T (&sum)[ROWS][COLS]) {
    const int t = threadIdx.x, d = t % DEPTH;
    T of_a[LOADS_A], of_b[LOADS_B];
    const auto write_terms = [&](int step) {  // by the first threads, one each
      const int i = step * DEPTH + t;
      if (t < DEPTH) terms[step % 2][t] = i < count ? term(i) : NONE;
    };
    const auto fetch = [&](int step) {
      const Place* now = terms[step % 2];
      const int at = now[d].at;
#pragma unroll
      for (int e = 0; e < LOADS_B; ++e)
        of_b[e] = f.under(in, now[POSITIONS ? e : d], columns[POSITIONS ? t : t / DEPTH + e * BESIDE]);
#pragma unroll
      for (int e = 0; e < LOADS_A; ++e)  // rows past the last are not stored
        of_a[e] = at >= 0 ? matrix[min(t / DEPTH + e * BESIDE, rows - 1) * pitch + at] : T(0);
      write_terms(step + 1);
    };

    write_terms(0);
    __syncthreads();  // columns and terms are complete before anyone reads them
    fetch(0);
    for (int step = 0; step * DEPTH < count; ++step) {
      T(&a_now)[DEPTH][HEIGHT + 4] = a[step % 2];
      T(&b_now)[DEPTH][WIDTH + 4] = b[step % 2];
#pragma unroll
      for (int e = 0; e < LOADS_A; ++e)
        if (t / DEPTH + e * BESIDE < HEIGHT) a_now[d][t / DEPTH + e * BESIDE] = of_a[e];
#pragma unroll
      for (int e = 0; e < LOADS_B; ++e)
        b_now[POSITIONS ? e : d][POSITIONS ? t : t / DEPTH + e * BESIDE] = of_b[e];
      // Tiles and terms are complete before anyone reads them; and whoever writes there again, two steps on, has then
      // waited here for all who still read them.
      __syncthreads();
      fetch(step + 1);  // under way while these tiles are multiplied; past the end it is zeros
#pragma unroll
      for (int k = 0; k < DEPTH; ++k) {
        T left[ROWS], right[COLS];
        load_run<ROWS>(&a_now[k][row(0)], left);
#pragma unroll
        for (int c = 0; c < COLS; c += RUN) load_run<RUN>(&b_now[k][column(c)], &right[c]);
#pragma unroll
        for (int r = 0; r < ROWS; ++r)
#pragma unroll
          for (int c = 0; c < COLS; ++c) sum[r][c] += left[r] * right[c];
      }
    }
  }

  // Write what is finished of `sum`, with bias[r], to out[r * pitch + column.at] for the rows r < rows; 16 bytes at a
  // time, if columns that are neighbours are so in `out` (adjacent) and lie there at a multiple of 16 bytes.
  __device__ __forceinline__ void store(const T (&sum)[ROWS][COLS], const T* __restrict__ bias, bool relu,
                                        T* __restrict__ out, int pitch, int rows, bool adjacent) const {
    const bool vector = RUN == V && adjacent && pitch % V == 0 && is_vector_aligned(out);
#pragma unroll
    for (int r = 0; r < ROWS; ++r) {
      if (row(r) >= rows) break;
      const Bias<T> own = bias_of(bias, row(r));
#pragma unroll
      for (int c = 0; c < COLS; c += RUN) {
        const Place* of = &columns[column(c)];
        Vector<T> v;
#pragma unroll
        for (int e = 0; e < RUN; ++e) v.of[e] = finished(sum[r][c + e], own, relu);
        if (!vector) {
#pragma unroll
          for (int e = 0; e < RUN; ++e)
            if (of[e].at >= 0) out[row(r) * pitch + of[e].at] = v.of[e];
        } else if (of->at >= 0) {
          store_vector(&out[row(r) * pitch + of->at], v);
        }
      }
    }
  }
};

// a: the weights, channel of the result x tap.  b: tap x position.
// Block: HEIGHT channels of the result x 128 positions (n, i, j).
template <int ROWS, class T>
__device__ __forceinline__ void correlate_register_tile(const Correlation& f, const Input<T>& in,
                                                        const T* __restrict__ weight, const T* __restrict__ bias,
                                                        bool relu, T* __restrict__ out, int block) {
  using Tiles = RegisterTile<T, ROWS, 8, true>;
  Tiles& tiles = block_shared<Tiles>();
  const int m0 = take(block, ceil_div(f.M, Tiles::HEIGHT)) * Tiles::HEIGHT;  // neighbours read the same windows
  const int group = take(block, f.G), of_m = group * f.M + m0;
  const int own = block * Tiles::WIDTH + threadIdx.x, I = f.down.positions, J = f.across.positions;
  tiles.columns[threadIdx.x] = own < f.N * I * J ? f.position(digits(own, I, J)) : NONE;

  const int R = f.down.taps, S = f.across.taps;
  T sum[ROWS][8] = {};
  const Input<T> of_weight = {weight + group * f.weights + m0 * f.weight_m, nullptr};
  tiles.multiply(f, in.from(group * f.C * f.in_plane), of_weight, f.weight_m, f.M - m0, f.C * R * S,
                 [&](int i) { return f.tap(digits(i, R, S)); }, sum);
  tiles.store(sum, bias == nullptr ? bias : bias + of_m, relu, out + of_m * f.out_plane, f.out_plane, f.M - m0,
              f.down.out_step == 1 && f.across.out_step == 1);
}

template <class T, int ROWS>
__global__ void __launch_bounds__(THREADS, BLOCKS)
conv2d_forward_v3_register_tile(const T* __restrict__ x, const T* __restrict__ weight, const T* __restrict__ bias,
                                T* __restrict__ y, Geometry g, bool relu) {
  correlate_register_tile<ROWS, T>(forward_of(g), {x, nullptr}, weight, bias, relu, y, blockIdx.x);
}

template <class T, int ROWS>
__global__ void __launch_bounds__(THREADS, BLOCKS)
conv2d_backward_input_v3_register_tile(const T* __restrict__ grad, const T* __restrict__ y,
                                       const T* __restrict__ weight, T* __restrict__ dx, Geometry g) {
  int block = blockIdx.x;
  const Correlation f = backward_of(g, block);
  correlate_register_tile<ROWS, T>(f, {grad, y}, weight, nullptr, false, dx, block);
}

// a: g, filter x position.  b: position x tap.
// Block: HEIGHT filters x WIDTH taps (c, r, s), summed over one slice of `length` positions (n, p, q).
template <class T, int ROWS, int COLS>
__global__ void __launch_bounds__(THREADS, BLOCKS)
conv2d_backward_weight_v3_register_tile(const T* __restrict__ x, const T* __restrict__ grad, const T* __restrict__ y,
                                        T* __restrict__ partials, Geometry g, int length) {
  const Input<T> in = {x, nullptr}, gradient = {grad, y};
  using Tiles = RegisterTile<T, ROWS, COLS, false>;
  Tiles& tiles = block_shared<Tiles>();
  const Correlation f = forward_of(g);
  const int taps = f.weight_m;  // C R S
  int block = blockIdx.x;
  const int k0 = take(block, ceil_div(f.M, Tiles::HEIGHT)) * Tiles::HEIGHT;
  const int own = take(block, ceil_div(taps, Tiles::WIDTH)) * Tiles::WIDTH + threadIdx.x;
  const int group = take(block, g.G), slice = block, of_k = group * f.M + k0;
  if (threadIdx.x < Tiles::WIDTH) tiles.columns[threadIdx.x] = own < taps ? f.tap(digits(own, g.R, g.S)) : NONE;

  const int first = slice * length, count = min(length, g.N * g.P * g.Q - first);
  T sum[ROWS][COLS] = {};
  tiles.multiply(f, in.from(group * f.C * f.in_plane), gradient.from(of_k * f.out_plane), f.out_plane, f.M - k0, count,
                 [&](int i) { return f.position(digits(first + i, g.P, g.Q)); }, sum);
  tiles.store(sum, nullptr, false, partials + (slice * g.K + of_k) * taps, taps, f.M - k0, true);
}

// ---- sums

// Block: 32 x 8 threads, whose columns own columns of a matrix of `size` columns.  Thread: every 8th of the rows first,
// first + 1, … end - 1; the eight sums of a column are added in order.  The first row of threads has the result.
template <class T>
struct ColumnSums {
  T of_rows[8][32];

  __device__ __forceinline__ T add(const Input<T>& matrix, int size, int column, int first, int end) {
    const int x = threadIdx.x, y = threadIdx.y;
    T sum = 0;
    if (column < size) {
#pragma unroll 4
      for (int row = first + y; row < end; row += 8) sum += matrix[row * size + column];
    }
    of_rows[y][x] = sum;
    __syncthreads();  // all eight sums are written before the first row of threads adds them
    if (y == 0)
      for (int other = 1; other < 8; ++other) sum += of_rows[other][x];
    return sum;
  }
};

// Block: 32 columns of partials[slices][size].
template <class T>
__global__ void __launch_bounds__(256)
conv2d_sum_slices(const T* __restrict__ partials, T* __restrict__ out, int slices, int size) {
  const int own = blockIdx.x * 32 + threadIdx.x;
  const T sum = block_shared<ColumnSums<T>>().add({partials, nullptr}, size, own, 0, slices);
  if (threadIdx.y == 0 && own < size) out[own] = sum;
}

// Block: 32 channels and `length` of the positions of a channels-last g: partials[slice,k].
template <class T>
__global__ void __launch_bounds__(256)
conv2d_backward_bias_channels_last(const T* __restrict__ grad, const T* __restrict__ y, T* __restrict__ partials, int K,
                                   int positions, int length) {
  int block = blockIdx.x;
  const int own = take(block, ceil_div(K, 32)) * 32 + threadIdx.x, first = block * length;
  const int end = min(first + length, positions);
  const T sum = block_shared<ColumnSums<T>>().add({grad, y}, K, own, first, end);
  if (threadIdx.y == 0 && own < K) partials[block * K + own] = sum;
}

// Block: 256 threads and `length` of the positions (n, p, q) of one channel: partials[slice,k].  Thread: every 256th.
template <class T>
__global__ void __launch_bounds__(256)
conv2d_backward_bias(const T* __restrict__ grad, const T* __restrict__ y, T* __restrict__ partials, int N, int K,
                     int PQ, int length) {
  const Input<T> gradient = {grad, y};
  struct Shared {
    WarpValues<T, 256> values;
  };
  Shared& s = block_shared<Shared>();
  int block = blockIdx.x;
  const int k = take(block, K), slice = block;
  const int first = slice * length, end = min(first + length, N * PQ);
  T sum = 0;
#pragma unroll 4
  for (int i = first + threadIdx.x; i < end; i += 256) {
    int n = i;
    const int pq = take(n, PQ);
    sum += gradient[(n * K + k) * PQ + pq];
  }
  sum = block_sum<256>(sum, s.values);
  if (threadIdx.x == 0) partials[blockIdx.x] = sum;
}
