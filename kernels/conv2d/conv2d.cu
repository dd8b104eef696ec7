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
// Forward may end in a ReLU, y = max(y, 0), and in max-pooling.  The three gradients may begin behind a ReLU: they are
// then given its y, and take g as 0 where y <= 0 (Input below).
//
// The versions of the first three:
//
//   v1_plain          a thread owns one result and reads two numbers from global memory per multiplication
//   v2_smem_tile      a block owns a rectangle of positions in some channels; the patch of x that lies under it (of g,
//                     for dx) and the filters are staged in shared memory, so that one global read of x serves all taps
//   v3_register_tile  implicit GEMM: the matrix of all windows is never stored, its tiles are gathered from x into
//                     shared memory; a thread owns ROWS x COLS results in registers, so that ROWS + COLS shared reads
//                     feed ROWS COLS multiplications; the next tile is fetched while this one is multiplied
//   v4_direct         patch and filters are staged as in v2, by copies that go on while the piece before is multiplied;
//                     a thread owns a square of 2 x 2 positions in 4 channels (of dw: a row of taps in 4 filters), for
//                     small filters with everything that it multiplies in registers and no index to work out
//   v5_tensor_core    float32 alone, by choice of a lower precision: factors are rounded to tf32, bf16 or fp16 on their
//                     way to the tensor cores, which sum over channels tap by tap (of dw: over positions, 8 channels
//                     under one tap at a time), and read the patch as it is staged; sums stay float32
//
// conv2d_relu_pool_forward_v4_direct ends in max-pooling: the square that a thread owns is the window.
//
// dx is gathered, not scattered: the rows h of dx that are equal mod sh meet the same taps, and under these taps they
// are a convolution of g with stride 1 (backward_axis below).  So forward and dx share their bodies, and no product is
// formed for the gaps that a stride leaves.  dw sums over all positions: slices of them, whose number depends on the
// shape alone, are summed by blocks of their own, and conv2d_sum_slices adds the slices up.
//
// Every sum is taken in an order that the shape fixes, so a result has the same bits in every run.
//
// Sources: Chellapilla, Puri and Simard, "High performance convolutional neural networks for document processing", 2006
// (windows as a matrix); Chetlur et al., "cuDNN: efficient primitives for deep learning", 2014 (the matrix gathered
// tile by tile); Dumoulin and Visin, "A guide to convolution arithmetic for deep learning", 2016 (dx as a convolution).

#include "activation.cuh"
#include "async.cuh"
#include "best.cuh"
#include "mma.cuh"
#include "vector.cuh"
#include "warp.cuh"

struct Geometry {
  int N, C, H, W, K, R, S, P, Q, G, sh, sw, ph, pw, dh, dw;
};

// Divide `rest` by `size` and give the remainder: take the lowest digit off a number.  Nothing is negative here, and
// unsigned division is cheaper.
__device__ __forceinline__ int take(int& rest, int size) {
  const unsigned number = rest;
  rest = number / unsigned(size);
  return number % unsigned(size);
}

// A position (n, p, q) or a tap (c, r, s) as the digits of one running number.
struct Digits {
  int high, middle, low;
};

__device__ __forceinline__ Digits digits(int number, int middles, int lows) {
  const int low = take(number, lows), middle = take(number, middles);
  return {number, middle, low};
}

// What a multiplication reads.  If it is a gradient behind a ReLU, y is what that ReLU gave: the gradient in front of
// it is 0 where y <= 0.
template <class T>
struct Input {
  const T* values;
  const T* y;  // null without a ReLU

  __device__ __forceinline__ T operator[](int i) const {
    const T value = values[i];
    return y == nullptr ? value : activation_gradient(RELU, value, y[i]);
  }
  // Whether this element is not made 0.
  __device__ __forceinline__ bool passes(int i) const { return y == nullptr || !(y[i] <= T(0)); }
  __device__ __forceinline__ Input from(int first) const {
    return {values + first, y == nullptr ? nullptr : y + first};
  }
};

// The bias of result channel k, read once for all of its positions that a thread owns; without biases it is not there.
template <class T>
struct Bias {
  T value;
  bool there;
};
template <class T>
__device__ __forceinline__ Bias<T> bias_of(const T* __restrict__ bias, int k) {
  return {bias != nullptr ? bias[k] : T(0), bias != nullptr};
}

// A sum becomes a result: the bias is added, and `relu` says whether what is below 0 becomes 0.
template <class T>
__device__ __forceinline__ T finished(T sum, const Bias<T>& bias, bool relu) {
  if (bias.there) sum += bias.value;
  return relu ? activate(RELU, sum) : sum;
}

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

// ---- what forward and dx have in common

// One axis of a correlation: position i of the result meets, through its tap t, the input at
// i * stride + t * dilation + start.
struct Axis {
  int size, positions, taps;     // of the input, of the result, of the filter
  int stride, dilation, start;
  int tap0, tap_step;            // tap t is the filter's tap_step * t + tap0
  int out0, out_step;            // position i is the result's row (column) out_step * i + out0
};

__device__ __forceinline__ Axis forward_axis(int H, int P, int R, int sh, int ph, int dh) {
  return {H, P, R, sh, dh, -ph, 0, 1, 0, 1};
}

// The rows h = a, a + sh, a + 2 sh, … of dx.  Row h meets g's row p = (h + ph - r dh) / sh through tap r if that is
// whole: for all these rows the same taps, every step-th from `first` on.  They are taken from the last to the first,
// so that p grows with t.
__device__ __forceinline__ Axis backward_axis(int H, int P, int R, int sh, int ph, int dh, int a) {
  int first = 0, step = 1;
  while (first < R && (a + ph - first * dh) % sh != 0) ++first;
  while (step * dh % sh != 0) ++step;
  const int taps = first < R ? (R - 1 - first) / step + 1 : 0, last = first + (taps - 1) * step;
  return {P, ceil_div(H - a, sh), taps, 1, step * dh / sh, (a + ph - last * dh) / sh, last, -step, a, sh};
}

// Where a position or a tap stands.  A position and a tap together meet the input's element in + in, in row h + h and
// column w + w if that is not outside.
struct alignas(16) Place {
  int in, h, w;
  int at;  // of a position: in the result's first channel; of a tap: among the weights of a result channel
};

// Whatever is added to it lies outside.
constexpr Place NONE = {0, -(1 << 30), 0, -1};

// out[n,m,i,j] = sum over channels c and taps t, u of weights[m,c,t,u] in[n,c,row,column], where i and t meet `row` on
// the axis `down`, j and u meet `column` on the axis `across`; in each group.  For y: m is k, and c is c.  For dx: in
// is g, m is c, and c is k.
struct Correlation {
  Axis down, across;
  int N, G, C, M;                      // images, groups, and channels of a group: of the input, of the result
  int weight_m, weight_c, S, weights;  // steps in the weights: of m, of c, of a filter's row, of a group
  int in_plane, out_plane, out_width;  // sizes

  __device__ __forceinline__ Place position(const Digits& of) const {  // n, i, j
    const int h = of.middle * down.stride + down.start, w = of.low * across.stride + across.start;
    const int row = of.middle * down.out_step + down.out0, column = of.low * across.out_step + across.out0;
    return {of.high * G * C * in_plane + h * across.size + w, h, w,
            of.high * G * M * out_plane + row * out_width + column};
  }
  __device__ __forceinline__ Place tap(const Digits& of) const {  // c, t, u
    const int h = of.middle * down.dilation, w = of.low * across.dilation;
    const int r = of.middle * down.tap_step + down.tap0, s = of.low * across.tap_step + across.tap0;
    return {of.high * in_plane + h * across.size + w, h, w, of.high * weight_c + r * S + s};
  }
  // The element that they meet; `in` is the first channel of the group.
  template <class T>
  __device__ __forceinline__ T under(const Input<T>& in, const Place& a, const Place& b) const {
    const int h = a.h + b.h, w = a.w + b.w;
    return unsigned(h) < unsigned(down.size) && unsigned(w) < unsigned(across.size) ? in[a.in + b.in] : T(0);
  }
};

__device__ __forceinline__ Correlation forward_of(const Geometry& g) {
  const int C = g.C / g.G, K = g.K / g.G, taps = g.R * g.S;
  return {forward_axis(g.H, g.P, g.R, g.sh, g.ph, g.dh), forward_axis(g.W, g.Q, g.S, g.sw, g.pw, g.dw),
          g.N, g.G, C, K,
          C * taps, taps, g.S, K * C * taps,
          g.H * g.W, g.P * g.Q, g.Q};
}

// dx at the rows a, a + sh, … and the columns b, b + sw, …; `block` chooses a and b, and loses them.
__device__ __forceinline__ Correlation backward_of(const Geometry& g, int& block) {
  const int C = g.C / g.G, K = g.K / g.G, taps = g.R * g.S;
  const int b = take(block, min(g.sw, g.W)), a = take(block, min(g.sh, g.H));
  return {backward_axis(g.H, g.P, g.R, g.sh, g.ph, g.dh, a), backward_axis(g.W, g.Q, g.S, g.sw, g.pw, g.dw, b),
          g.N, g.G, K, C,
          taps, C * taps, g.S, K * C * taps,
          g.P * g.Q, g.H * g.W, g.W};
}

// ---- v2

// What a block takes at once, as the launcher fits it into shared memory: positions down and across, result channels,
// input channels, taps down and across.
struct Tile {
  int P, Q, M, C, R, S;
};

template <class T>
struct Stage {
  T patch[4096], other[2048];  // cuda.py fits tiles into these
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

// How far a rectangle of positions reaches under some taps.
__device__ __forceinline__ int reach(const Axis& axis, int positions, int taps) {
  return (positions - 1) * axis.stride + (taps - 1) * axis.dilation + 1;
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

// Copy COUNT numbers from shared memory to registers, 16 bytes at a time if they are that many.
template <int COUNT, class T>
__device__ __forceinline__ void load_run(const T* from, T* to) {
  constexpr int STEP = COUNT % Vector<T>::SIZE == 0 ? Vector<T>::SIZE : 1;
#pragma unroll
  for (int e = 0; e < COUNT; e += STEP)
    if constexpr (STEP == 1)
      to[e] = from[e];
    else {
      const Vector<T> v = load_vector(&from[e]);
#pragma unroll
      for (int i = 0; i < STEP; ++i) to[e + i] = v.of[i];
    }
}

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

// ---- v4

constexpr int DIRECT_THREADS = 256;  // at most
constexpr int OWN = 4;               // result channels of a thread

// What a block takes at once: squares of 2 x 2 positions down and across, fours of result channels, input channels.
// And the squares of a plane: how many down and across, and how far the first hangs over the edge, which it does where
// squares are the windows of a pooling with padding.
struct Squares {
  int I, J, M, C;
  int down, across, above, left;
};

// Two of each: one is filled by copies that are under way while the other is multiplied.
template <class T>
struct DirectStage {
  static constexpr int ROOM = 12288 / sizeof(T);  // cuda.py fits tiles into these
  alignas(16) T patch[2][ROOM];
  alignas(16) T other[2][ROOM];  // filters, or gradients: the OWN numbers that a thread takes at once are neighbours
};

template <class T>
struct alignas(2 * sizeof(T)) Pair {
  T of[2];
};

__device__ __forceinline__ int even(int size) { return (size + 1) / 2 * 2; }

// Numbers between two rows of fours in `other`.  An odd number of fours, so that what a warp writes one row after the
// other lies in eight different banks and not in one.
__device__ __forceinline__ int width_of_fours(int fours) { return (fours | 1) * OWN; }

// Start to copy `planes` planes of the rectangle rows x columns at (h0, w0) of the input, with zeros outside the input,
// beyond its channels, and where a ReLU lets no gradient through.  Element (c, h, w) goes to c * plane + h * pitch + w.
// A warp copies a row: a division for each row, and not for each element.
template <class T>
__device__ __forceinline__ void copy_patch(T* patch, int plane, int pitch, const Input<T>& in, const Axis& down,
                                           const Axis& across, int planes, int channels, int rows, int columns,
                                           int h0, int w0) {
  for (int i = threadIdx.x / WARP; i < planes * rows; i += blockDim.x / WARP) {
    int c = i;
    const int row = take(c, rows), h = h0 + row, start = (c * down.size + h) * across.size + w0;
    const bool row_inside = c < channels && unsigned(h) < unsigned(down.size);
    T* to = &patch[c * plane + row * pitch];
    for (int e = threadIdx.x % WARP; e < columns; e += WARP) {
      const bool inside = row_inside && unsigned(w0 + e) < unsigned(across.size);
      const int from = inside ? start + e : 0;
      copy_async<sizeof(T)>(&to[e], &in.values[from], inside && in.passes(from));
    }
  }
}

// The axis with what TAPS makes constant.
template <int TAPS>
__device__ __forceinline__ Axis with_constants(Axis axis) {
  if (TAPS > 0) {
    axis.taps = TAPS;
    axis.stride = axis.dilation = axis.out_step = 1;
    axis.out0 = 0;
  }
  return axis;
}

// TAPS: filters of TAPS x TAPS, stride and dilation 1, so that loops over taps are unrolled and what lies under a
// square is read once into registers; 0: any.
//
// Block: t.I x t.J squares of one image in t.M fours of result channels; the channels of the input in pieces of t.C.
// Thread: OWN channels of one square.  Channels run fastest, so the threads of a warp share few squares, and read
// most of what they read from the same place.
// POOL: of each square only the largest value and its place are written, to out and codes.
template <int TAPS, bool POOL, class T>
__device__ __forceinline__ void correlate_direct(Correlation f, const Squares& t, const Input<T>& all,
                                                 const T* __restrict__ weight, const T* __restrict__ bias, bool relu,
                                                 T* __restrict__ out, uint8_t* __restrict__ codes, int block) {
  DirectStage<T>& stage = block_shared<DirectStage<T>>();
  f.down = with_constants<TAPS>(f.down);
  f.across = with_constants<TAPS>(f.across);
  const int R = f.down.taps, S = f.across.taps, sh = f.down.stride, sw = f.across.stride;
  const int dh = f.down.dilation, dw = f.across.dilation;

  int rest = threadIdx.x;
  const int m = take(rest, t.M), j = take(rest, t.J), i = rest;
  const bool works = i < t.I;
  const int m0 = take(block, ceil_div(f.M, t.M * OWN)) * t.M * OWN;  // blocks that read the same patch are neighbours
  const int j0 = take(block, ceil_div(t.across, t.J)) * t.J;
  const int i0 = take(block, ceil_div(t.down, t.I)) * t.I;
  const int group = take(block, f.G), n = block;
  const Input<T> in = all.from((n * f.G + group) * f.C * f.in_plane);
  weight += group * f.weights + m0 * f.weight_m;

  const int p0 = 2 * i0 - t.above, q0 = 2 * j0 - t.left;
  const int rows = (2 * t.I - 1) * sh + (R - 1) * dh + 1, columns = (2 * t.J - 1) * sw + (S - 1) * dw + 1;
  const int pitch = even(columns), wide = width_of_fours(t.M), fours = t.M * OWN;
  const Place corner = f.position({0, p0, q0});

  const auto fetch = [&](int piece) {
    const int c0 = piece * t.C, C = min(t.C, f.C - c0);
    copy_patch(stage.patch[piece % 2], rows * pitch, pitch, in.from(c0 * f.in_plane), f.down, f.across, C, C, rows,
               columns, corner.h, corner.w);
    T* filters = stage.other[piece % 2];  // (c, r, s, m)
    for (int e = threadIdx.x % WARP; e < C * R * S; e += WARP) {
      const int at = f.tap(digits(e, R, S)).at + c0 * f.weight_c;
      for (int of_m = threadIdx.x / WARP; of_m < fours; of_m += blockDim.x / WARP) {
        const bool there = m0 + of_m < f.M;
        copy_async<sizeof(T)>(&filters[e * wide + of_m], &weight[there ? of_m * f.weight_m + at : 0], there);
      }
    }
    commit_copies();
  };

  T sum[OWN][4] = {};  // of the positions (0, 0), (0, 1), (1, 0), (1, 1) of the square
  if (f.C > 0) fetch(0);
  for (int piece = 0; piece * t.C < f.C; ++piece) {
    wait_copies<0>();
    // What all threads have copied of this piece has arrived; and all have multiplied the piece before it, which the
    // next one overwrites.
    __syncthreads();
    if ((piece + 1) * t.C < f.C) fetch(piece + 1);  // under way while this piece is multiplied
    if (!works) continue;
    const T* patch = &stage.patch[piece % 2][2 * i * sh * pitch + 2 * j * sw];
    const T* filters = &stage.other[piece % 2][m * OWN];
    const int C = min(t.C, f.C - piece * t.C);
#pragma unroll 1
    for (int c = 0; c < C; ++c, patch += rows * pitch) {
      if constexpr (TAPS > 0) {
        T under[TAPS + 1][TAPS + 1];
#pragma unroll
        for (int r = 0; r <= TAPS; ++r)
#pragma unroll
          for (int s = 0; s <= TAPS; s += 2) {
            const Pair<T> two = *reinterpret_cast<const Pair<T>*>(&patch[r * pitch + s]);
            under[r][s] = two.of[0];
            under[r][s + 1] = two.of[1];
          }
#pragma unroll
        for (int r = 0; r < TAPS; ++r)
#pragma unroll
          for (int s = 0; s < TAPS; ++s, filters += wide) {
            T own[OWN];
            load_run<OWN>(filters, own);
#pragma unroll
            for (int o = 0; o < OWN; ++o)
#pragma unroll
              for (int e = 0; e < 4; ++e) sum[o][e] += own[o] * under[r + e / 2][s + e % 2];
          }
      } else {
        for (int r = 0; r < R; ++r) {
          const T* above = &patch[r * dh * pitch];
          const T* below = above + sh * pitch;
          for (int s = 0; s < S; ++s, filters += wide) {
            const T under[4] = {above[s * dw], above[s * dw + sw], below[s * dw], below[s * dw + sw]};
            T own[OWN];
            load_run<OWN>(filters, own);
#pragma unroll
            for (int o = 0; o < OWN; ++o)
#pragma unroll
              for (int e = 0; e < 4; ++e) sum[o][e] += own[o] * under[e];
          }
        }
      }
    }
  }
  if (!works || i0 + i >= t.down || j0 + j >= t.across) return;

  const int p = p0 + 2 * i, q = q0 + 2 * j;
  bool inside[4];
#pragma unroll
  for (int e = 0; e < 4; ++e)
    inside[e] = unsigned(p + e / 2) < unsigned(f.down.positions) && unsigned(q + e % 2) < unsigned(f.across.positions);
  // Neighbours across are written together, if they lie beside each other at a multiple of their size.
  const bool pairs = f.across.out_step == 1 && f.out_width % 2 == 0 && q % 2 == 0 &&
                     reinterpret_cast<uint64_t>(out) % sizeof(Pair<T>) == 0;
#pragma unroll
  for (int o = 0; o < OWN; ++o) {
    const int of_group = m0 + m * OWN + o, of_m = group * f.M + of_group;
    if (of_group >= f.M) break;
    const Bias<T> own = bias_of(bias, of_m);
    T y[4];
#pragma unroll
    for (int e = 0; e < 4; ++e) y[e] = finished(sum[o][e], own, relu);
    if constexpr (POOL) {
      Best<T> best;
#pragma unroll
      for (int e = 0; e < 4; ++e)
        if (inside[e]) best.meet(y[e], e);
      const int at = ((n * f.G * f.M + of_m) * t.down + i0 + i) * t.across + j0 + j;
      out[at] = best.value;
      codes[at] = static_cast<uint8_t>(best.found(4));
    } else {
#pragma unroll
      for (int a = 0; a < 2; ++a) {
        const int at = of_m * f.out_plane + f.position({n, p + a, q}).at;
        if (pairs && inside[2 * a] && inside[2 * a + 1]) {
          *reinterpret_cast<Pair<T>*>(&out[at]) = {y[2 * a], y[2 * a + 1]};
        } else {
          if (inside[2 * a]) out[at] = y[2 * a];
          if (inside[2 * a + 1]) out[at + f.across.out_step] = y[2 * a + 1];
        }
      }
    }
  }
}

template <class T, int TAPS>
__global__ void __launch_bounds__(DIRECT_THREADS, sizeof(T) == 4 ? 3 : 2)
conv2d_forward_v4_direct(const T* __restrict__ x, const T* __restrict__ weight, const T* __restrict__ bias,
                         T* __restrict__ y, Geometry g, Squares t, bool relu) {
  correlate_direct<TAPS, false, T>(forward_of(g), t, {x, nullptr}, weight, bias, relu, y, nullptr, blockIdx.x);
}

template <class T, int TAPS>
__global__ void __launch_bounds__(DIRECT_THREADS, sizeof(T) == 4 ? 3 : 2)
conv2d_backward_input_v4_direct(const T* __restrict__ grad, const T* __restrict__ y, const T* __restrict__ weight,
                                T* __restrict__ dx, Geometry g, Squares t) {
  int block = blockIdx.x;
  const Correlation f = backward_of(g, block);
  correlate_direct<TAPS, false, T>(f, t, {grad, y}, weight, nullptr, false, dx, nullptr, block);
}

// y and codes are those of the largest values of max(conv, 0) in windows of 2 x 2, which are the squares.
template <class T, int TAPS>
__global__ void __launch_bounds__(DIRECT_THREADS, sizeof(T) == 4 ? 3 : 2)
conv2d_relu_pool_forward_v4_direct(const T* __restrict__ x, const T* __restrict__ weight, const T* __restrict__ bias,
                                   T* __restrict__ y, uint8_t* __restrict__ codes, Geometry g, Squares t) {
  correlate_direct<TAPS, true, T>(forward_of(g), t, {x, nullptr}, weight, bias, true, y, codes, blockIdx.x);
}

// What a block takes at once for dw: positions down and across, fours of filters, runs of taps, and the channels of x
// that these runs meet.
struct Runs {
  int P, Q, M, U, C;
};

// TAPS > 1: filters of TAPS columns, stride and dilation across 1; a run is a row of a filter.  TAPS = 1: any; a run is
// a tap.
//
// Block: 256 threads, t.M fours of filters x t.U runs (c, r, s …), and one slice of the tiles of positions.  Thread: a
// run in OWN filters, and every `teams`-th row of the tiles; at the end the teams are summed.
template <class T, int TAPS>
__global__ void __launch_bounds__(DIRECT_THREADS, sizeof(T) == 4 ? 3 : 2)
conv2d_backward_weight_v4_direct(const T* __restrict__ x, const T* __restrict__ grad, const T* __restrict__ y,
                                 T* __restrict__ partials, Geometry g, Runs t, int length) {
  union Shared {
    DirectStage<T> stage;
    T sums[OWN * TAPS][DIRECT_THREADS];
  };
  Shared& shared = block_shared<Shared>();
  const Correlation f = forward_of(g);
  const int along = g.S / TAPS, runs = f.C * g.R * along;
  int block = blockIdx.x;
  const int u0 = take(block, ceil_div(runs, t.U)) * t.U;  // blocks that read the same gradients are neighbours
  const int k0 = take(block, ceil_div(f.M, t.M * OWN)) * t.M * OWN;
  const int group = take(block, g.G), slice = block;
  const int c0 = u0 / (g.R * along), C = min(t.C, f.C - c0);

  int rest = threadIdx.x;
  const int m = take(rest, t.M), u = take(rest, t.U), team = rest, teams = DIRECT_THREADS / (t.M * t.U);
  const Digits run = digits(u0 + u, g.R, along);  // c, r, and s / TAPS
  const bool works = team < teams && u0 + u < runs;

  const int across = ceil_div(g.Q, t.Q), down = ceil_div(g.P, t.P);
  const int rows = reach(f.down, t.P, g.R), columns = reach(f.across, t.Q, g.S);
  const int pitch = even(columns), wide = width_of_fours(t.M), fours = t.M * OWN;
  const Input<T> in = {x, nullptr}, gradient = {grad, y};

  const auto fetch = [&](int tile) {
    const Digits at = digits(tile, down, across);
    const int n = at.high, p0 = at.middle * t.P, q0 = at.low * t.Q;
    const Place corner = f.position({n, p0, q0});
    copy_patch(shared.stage.patch[tile % 2], rows * pitch, pitch,
               in.from(((n * g.G + group) * f.C + c0) * f.in_plane), f.down, f.across, C, C, rows, columns, corner.h,
               corner.w);
    const Input<T> of_n = gradient.from(((n * g.G + group) * f.M + k0) * f.out_plane);
    T* gradients = shared.stage.other[tile % 2];  // (p, q, k)
    for (int e = threadIdx.x % WARP; e < t.P * t.Q; e += WARP) {
      int p = e;
      const int q = q0 + take(p, t.Q), place = (p0 + p) * g.Q + q;
      const bool inside = p0 + p < g.P && q < g.Q;
      for (int k = threadIdx.x / WARP; k < fours; k += DIRECT_THREADS / WARP) {
        const bool there = inside && k0 + k < f.M;
        const int from = there ? k * f.out_plane + place : 0;
        copy_async<sizeof(T)>(&gradients[e * wide + k], &of_n.values[from], there && of_n.passes(from));
      }
    }
    commit_copies();
  };

  T sum[OWN][TAPS] = {};
  const int first = slice * length, end = min(first + length, g.N * down * across);
  if (first < end) fetch(first);
  for (int tile = first; tile < end; ++tile) {
    wait_copies<0>();
    // What all threads have copied of this tile has arrived; and all have multiplied the tile before it, which the next
    // one overwrites.
    __syncthreads();
    if (tile + 1 < end) fetch(tile + 1);  // under way while this tile is multiplied
    if (!works) continue;
    const Digits at = digits(tile, down, across);
    const int P = min(t.P, g.P - at.middle * t.P), Q = min(t.Q, g.Q - at.low * t.Q);
    for (int p = team; p < P; p += teams) {
      const int of_row = ((run.high - c0) * rows + p * g.sh + run.middle * g.dh) * pitch;
      const T* row = &shared.stage.patch[tile % 2][of_row + run.low * TAPS * g.dw];
      const T* gradients = &shared.stage.other[tile % 2][p * t.Q * wide + m * OWN];
      int q = 0;
      if constexpr (TAPS > 1)
        for (; q + 2 <= Q; q += 2, gradients += 2 * wide) {
          T under[TAPS + 1], own[2][OWN];
#pragma unroll
          for (int s = 0; s <= TAPS; s += 2) {
            const Pair<T> two = *reinterpret_cast<const Pair<T>*>(&row[q + s]);
            under[s] = two.of[0];
            under[s + 1] = two.of[1];
          }
          load_run<OWN>(gradients, own[0]);
          load_run<OWN>(gradients + wide, own[1]);
#pragma unroll
          for (int e = 0; e < 2; ++e)
#pragma unroll
            for (int o = 0; o < OWN; ++o)
#pragma unroll
              for (int s = 0; s < TAPS; ++s) sum[o][s] += own[e][o] * under[e + s];
        }
      for (; q < Q; ++q, gradients += wide) {
        T own[OWN];
        load_run<OWN>(gradients, own);
#pragma unroll
        for (int s = 0; s < TAPS; ++s) {
          const T under = row[q * (TAPS > 1 ? 1 : g.sw) + s];
#pragma unroll
          for (int o = 0; o < OWN; ++o) sum[o][s] += own[o] * under;
        }
      }
    }
  }

  if (teams > 1) {
    __syncthreads();  // everyone has multiplied before sums overwrite the last tiles
#pragma unroll
    for (int o = 0; o < OWN; ++o)
#pragma unroll
      for (int s = 0; s < TAPS; ++s) shared.sums[o * TAPS + s][threadIdx.x] = sum[o][s];
    __syncthreads();  // all teams' sums are written before the first team adds them
  }
  if (!works || team != 0) return;
  partials += slice * g.G * f.weights + (group * f.M + k0 + m * OWN) * f.weight_m;
#pragma unroll
  for (int o = 0; o < OWN; ++o) {
    if (k0 + m * OWN + o >= f.M) break;
#pragma unroll
    for (int s = 0; s < TAPS; ++s) {
      T of_all = sum[o][s];
      for (int other = 1; other < teams; ++other) of_all += shared.sums[o * TAPS + s][other * t.M * t.U + threadIdx.x];
      partials[o * f.weight_m + (u0 + u) * TAPS + s] = of_all;
    }
  }
}

// ---- v5

// What a block takes at once: a rectangle of positions, and taps.
struct Rectangle {
  int P, Q, taps;
};

template <int PRECISION>
struct PrecisionOf;
template <>
struct PrecisionOf<0> {
  using Type = Tf32;
  static constexpr int DEPTH = 8;  // channels that one instruction sums over
};
template <>
struct PrecisionOf<1> {
  using Type = Bf16;
  static constexpr int DEPTH = 16;
};
template <>
struct PrecisionOf<2> {
  using Type = Fp16;
  static constexpr int DEPTH = 16;
};

// This lane's part of a fragment of N registers; at(i, k) is the element of its i-th row (column, of b) for channel k.
template <int N, class At>
__device__ __forceinline__ void fragment(Tf32, uint32_t (&of)[N], int four, const At& at) {
#pragma unroll
  for (int i = 0; i < N; ++i) of[i] = to_tf32(at(N == 4 ? i % 2 : 0, four + (N == 4 ? i / 2 : i) * 4));
}
template <int N, class TYPE, class At>
__device__ __forceinline__ void fragment(TYPE type, uint32_t (&of)[N], int four, const At& at) {
#pragma unroll
  for (int i = 0; i < N; ++i) {
    const int row = N == 4 ? i % 2 : 0, k = 2 * four + (N == 4 ? i / 2 : i) * 8;
    of[i] = pack(type, at(row, k), at(row, k + 1));
  }
}

// Block: 4 warps, and t.P x t.Q positions of one image in 32 WARPS_M channels of the result.  The channels of the input
// come in pieces of DEPTH, whose patch is staged, and under them the taps in pieces of t.taps, whose filters are.
// Warp: 32 channels x 64 of the positions, as 2 x 8 products of tensor cores.  For one tap such a product has the
// channels of the piece as its sum, so a column of b is read from the patch as it lies there: a window is never built.
template <int PRECISION, int WARPS_M>
__device__ __forceinline__ void correlate_tensor_core(const Correlation& f, const Rectangle& t,
                                                      const Input<float>& all, const float* __restrict__ weight,
                                                      const float* __restrict__ bias, bool relu,
                                                      float* __restrict__ out, int block) {
  using Type = typename PrecisionOf<PRECISION>::Type;
  constexpr int DEPTH = PrecisionOf<PRECISION>::DEPTH;
  // From a channel to the next one, so many banks that the lanes of a fragment fall into different ones.
  constexpr int BANKS = 64 / DEPTH, HEIGHT = 32 * WARPS_M, WIDE = HEIGHT + BANKS;
  struct Shared {  // two of each: one is filled by copies that are under way while the other is multiplied
    alignas(16) float patch[2][4096];    // (c, row, column)
    alignas(16) float filters[2][2048];  // (tap, c, m)
  };
  Shared& shared = block_shared<Shared>();
  const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, eighth = lane / 4, four = lane % 4;
  const int row0 = warp % WARPS_M * 32, column0 = warp / WARPS_M * 64;

  const int m0 = take(block, ceil_div(f.M, HEIGHT)) * HEIGHT;  // blocks that read the same patch are neighbours
  const int j0 = take(block, ceil_div(f.across.positions, t.Q)) * t.Q;
  const int i0 = take(block, ceil_div(f.down.positions, t.P)) * t.P;
  const int group = take(block, f.G), n = block;
  const Input<float> in = all.from((n * f.G + group) * f.C * f.in_plane);
  weight += group * f.weights + m0 * f.weight_m;

  const int S = f.across.taps, taps = f.down.taps * S;
  const int rows = reach(f.down, t.P, f.down.taps), columns = reach(f.across, t.Q, S);
  const int plane = ceil_div(max(rows * columns - BANKS, 0), 32) * 32 + BANKS;
  const Place corner = f.position({0, i0, j0});
  const int runs = ceil_div(taps, t.taps), pieces = ceil_div(f.C, DEPTH) * runs;

  const auto fetch = [&](int piece) {
    const int c0 = piece / runs * DEPTH, first = piece % runs * t.taps;
    if (first == 0)
      copy_patch(shared.patch[piece / runs % 2], plane, columns, in.from(c0 * f.in_plane), f.down, f.across, DEPTH,
                 f.C - c0, rows, columns, corner.h, corner.w);
    float* filters = shared.filters[piece % 2];
    for (int e = warp; e < min(t.taps, taps - first) * DEPTH; e += 4) {
      int tap = e;
      const int c = take(tap, DEPTH);
      const int at = f.tap(digits(first + tap, f.down.taps, S)).at + (c0 + c) * f.weight_c;
      for (int m = lane; m < HEIGHT; m += WARP) {
        const bool there = m0 + m < f.M && c0 + c < f.C;
        copy_async<4>(&filters[e * WIDE + m], &weight[there ? m * f.weight_m + at : 0], there);
      }
    }
    commit_copies();
  };

  int under[8];  // where this lane's columns of b begin in the patch; past the rectangle anywhere
#pragma unroll
  for (int e = 0; e < 8; ++e) {
    int i = column0 + e * 8 + eighth;
    const int j = take(i, t.Q);
    under[e] = i < t.P ? i * f.down.stride * columns + j * f.across.stride : 0;
  }

  float sum[2][8][4] = {};
  if (pieces > 0) fetch(0);
  for (int piece = 0; piece < pieces; ++piece) {
    wait_copies<0>();
    // What all threads have copied of this piece has arrived; and all have multiplied the piece before it, which the
    // next one overwrites.
    __syncthreads();
    if (piece + 1 < pieces) fetch(piece + 1);  // under way while this piece is multiplied
    const float* patch = shared.patch[piece / runs % 2];
    const int first = piece % runs * t.taps, last = min(first + t.taps, taps);
    int r = first;
    int s = take(r, S);
    for (int tap = first; tap < last; ++tap) {
      const float* filters = &shared.filters[piece % 2][(tap - first) * DEPTH * WIDE + row0 + eighth];
      const float* of_tap = &patch[r * f.down.dilation * columns + s * f.across.dilation];
      uint32_t a[2][4];
#pragma unroll
      for (int m = 0; m < 2; ++m)
        fragment(Type{}, a[m], four, [&](int i, int c) { return filters[c * WIDE + m * 16 + i * 8]; });
#pragma unroll
      for (int e = 0; e < 8; ++e) {
        uint32_t b[2];
        fragment(Type{}, b, four, [&](int, int c) { return of_tap[c * plane + under[e]]; });
#pragma unroll
        for (int m = 0; m < 2; ++m) multiply(Type{}, sum[m][e], a[m], b);
      }
      if (++s == S) {
        s = 0;
        ++r;
      }
    }
  }

  Bias<float> own[4];
#pragma unroll
  for (int m = 0; m < 4; ++m) {
    const int of_group = m0 + row0 + m * 8 + eighth;
    if (of_group < f.M) own[m] = bias_of(bias, group * f.M + of_group);
  }
#pragma unroll
  for (int e = 0; e < 8; ++e)
#pragma unroll
    for (int beside = 0; beside < 2; ++beside) {
      int i = column0 + e * 8 + 2 * four + beside;
      const int j = take(i, t.Q);
      if (i >= t.P || i0 + i >= f.down.positions || j0 + j >= f.across.positions) continue;
      float* column = &out[f.position({n, i0 + i, j0 + j}).at];
#pragma unroll
      for (int m = 0; m < 4; ++m) {
        const int of_group = m0 + row0 + m * 8 + eighth, of_m = group * f.M + of_group;
        if (of_group < f.M)
          column[of_m * f.out_plane] = finished(sum[m / 2][e][m % 2 * 2 + beside], own[m], relu);
      }
    }
}

template <int PRECISION, int WARPS_M>
__global__ void __launch_bounds__(128, 2)
conv2d_forward_v5_tensor_core(const float* __restrict__ x, const float* __restrict__ weight,
                              const float* __restrict__ bias, float* __restrict__ y, Geometry g, Rectangle t,
                              bool relu) {
  correlate_tensor_core<PRECISION, WARPS_M>(forward_of(g), t, {x, nullptr}, weight, bias, relu, y, blockIdx.x);
}

template <int PRECISION, int WARPS_M>
__global__ void __launch_bounds__(128, 2)
conv2d_backward_input_v5_tensor_core(const float* __restrict__ grad, const float* __restrict__ y,
                                     const float* __restrict__ weight, float* __restrict__ dx, Geometry g,
                                     Rectangle t) {
  int block = blockIdx.x;
  const Correlation f = backward_of(g, block);
  correlate_tensor_core<PRECISION, WARPS_M>(f, t, {grad, y}, weight, nullptr, false, dx, block);
}

// What a block takes at once for dw: positions down and across, the channels of the patch, and groups for each warp.
struct Field {
  int P, Q, C, groups;
};

// A group is 8 channels of x under one tap: number c / 8 * R S + tap.
//
// Block: 4 warps; 32 WARPS_M filters x 4 / WARPS_M times t.groups groups; and one slice of `length` rectangles of
// t.P x t.Q positions, for each of which the patch of x and the part of g are staged.
// Warp: 32 filters x t.groups (at most 8) groups, as 2 x 8 products of tensor cores.  Their sum is over positions, so a
// column of b is one channel under one tap, and is read from the patch as it lies there.
template <int PRECISION, int WARPS_M>
__global__ void __launch_bounds__(128, 2)
conv2d_backward_weight_v5_tensor_core(const float* __restrict__ x, const float* __restrict__ grad,
                                      const float* __restrict__ y, float* __restrict__ partials, Geometry g, Field t,
                                      int length) {
  using Type = typename PrecisionOf<PRECISION>::Type;
  constexpr int DEPTH = PrecisionOf<PRECISION>::DEPTH;  // here positions
  // From a channel (of g: a filter) to the next one, so many banks that the lanes of a fragment fall into different ones.
  constexpr int BANKS = DEPTH / 2, HEIGHT = 32 * WARPS_M, POSITIONS = 64 / WARPS_M, WIDE = POSITIONS + BANKS;
  struct Shared {  // two of each: one is filled by copies that are under way while the other is multiplied
    alignas(16) float patch[2][3456];                // (c, row, column)
    alignas(16) float gradients[2][HEIGHT * WIDE];   // (k, position)
    int under[2][POSITIONS];                         // where a position's window begins in the patch; -1: it is none
  };
  Shared& shared = block_shared<Shared>();
  const Correlation f = forward_of(g);
  const Input<float> in = {x, nullptr}, gradient = {grad, y};
  const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, eighth = lane / 4, four = lane % 4;
  const int row0 = warp % WARPS_M * 32;

  const int taps = g.R * g.S, groups = ceil_div(f.C, 8) * taps, of_block = 4 / WARPS_M * t.groups;
  int block = blockIdx.x;
  const int first_group = take(block, ceil_div(groups, of_block)) * of_block;  // neighbours read the same gradients
  const int k0 = take(block, ceil_div(f.M, HEIGHT)) * HEIGHT;
  const int group = take(block, f.G), slice = block;
  const int c0 = first_group / taps * 8, own_group = first_group + warp / WARPS_M * t.groups;

  const int across = ceil_div(g.Q, t.Q), down = ceil_div(g.P, t.P);
  const int rows = reach(f.down, t.P, g.R), columns = reach(f.across, t.Q, g.S);
  const int plane = ceil_div(max(rows * columns - BANKS, 0), 32) * 32 + BANKS;

  const auto fetch = [&](int tile) {
    const Digits at = digits(tile, down, across);
    const int n = at.high, p0 = at.middle * t.P, q0 = at.low * t.Q;
    const int P = min(t.P, g.P - p0), Q = min(t.Q, g.Q - q0), count = ceil_div(P * Q, DEPTH) * DEPTH;
    const Place corner = f.position({n, p0, q0});
    copy_patch(shared.patch[tile % 2], plane, columns, in.from(((n * g.G + group) * f.C + c0) * f.in_plane), f.down,
               f.across, t.C, f.C - c0, rows, columns, corner.h, corner.w);
    const Input<float> of_n = gradient.from(((n * g.G + group) * f.M + k0) * f.out_plane);
    for (int e = lane; e < count; e += WARP) {
      int p = e;
      const int q = take(p, Q), place = (p0 + p) * g.Q + q0 + q;
      if (warp == 0) shared.under[tile % 2][e] = p < P ? p * g.sh * columns + q * g.sw : -1;
      for (int k = warp; k < HEIGHT; k += 4) {
        const bool there = p < P && k0 + k < f.M;
        const int from = there ? k * f.out_plane + place : 0;
        copy_async<4>(&shared.gradients[tile % 2][k * WIDE + e], &of_n.values[from], there && of_n.passes(from));
      }
    }
    commit_copies();
  };

  int of_group[8];  // where this lane's column of b lies under the first position; past the last group anywhere
#pragma unroll
  for (int e = 0; e < 8; ++e) {
    int c = own_group + e;
    const int tap = take(c, taps);
    const int at = (c * 8 - c0 + eighth) * plane + tap / g.S * g.dh * columns + tap % g.S * g.dw;
    of_group[e] = e < t.groups && own_group + e < groups ? at : 0;
  }

  float sum[2][8][4] = {};
  const int first = slice * length, end = min(first + length, g.N * down * across);
  if (first < end) fetch(first);
  for (int tile = first; tile < end; ++tile) {
    wait_copies<0>();
    // What all threads have copied of this tile has arrived; and all have multiplied the tile before it, which the next
    // one overwrites.
    __syncthreads();
    if (tile + 1 < end) fetch(tile + 1);  // under way while this tile is multiplied
    const Digits at = digits(tile, down, across);
    const int count = min(t.P, g.P - at.middle * t.P) * min(t.Q, g.Q - at.low * t.Q);
    const float* patch = shared.patch[tile % 2];
    const float* gradients = &shared.gradients[tile % 2][(row0 + eighth) * WIDE];
    for (int i0 = 0; i0 < count; i0 += DEPTH) {
      uint32_t a[2][4];
#pragma unroll
      for (int m = 0; m < 2; ++m)
        fragment(Type{}, a[m], four, [&](int i, int k) { return gradients[(m * 16 + i * 8) * WIDE + i0 + k]; });
      const int* under = &shared.under[tile % 2][i0];
#pragma unroll
      for (int e = 0; e < 8; ++e) {
        if (e < t.groups) {
          uint32_t b[2];
          // Beyond the tile's positions g is 0; so must b be there, since 0 times infinity is not.
          fragment(Type{}, b, four, [&](int, int k) { return under[k] < 0 ? 0.0f : patch[of_group[e] + under[k]]; });
#pragma unroll
          for (int m = 0; m < 2; ++m) multiply(Type{}, sum[m][e], a[m], b);
        }
      }
    }
  }

  partials += slice * g.G * f.weights + group * f.weights;
#pragma unroll
  for (int e = 0; e < 8; ++e) {
    int c = own_group + e;
    const int tap = take(c, taps);
    if (e >= t.groups || own_group + e >= groups) continue;
#pragma unroll
    for (int m = 0; m < 4; ++m)
#pragma unroll
      for (int beside = 0; beside < 2; ++beside) {
        const int k = k0 + row0 + m * 8 + eighth, channel = c * 8 + 2 * four + beside;
        if (k < f.M && channel < f.C) partials[k * f.weight_m + channel * taps + tap] = sum[m / 2][e][m % 2 * 2 + beside];
      }
  }
}

// ---- sums

// Block: 32 x 8 threads and 32 columns of partials[slices][size].  Thread: every 8th element of one column; the eight
// sums of a column are added in order.
template <class T>
__global__ void __launch_bounds__(256)
conv2d_sum_slices(const T* __restrict__ partials, T* __restrict__ out, int slices, int size) {
  struct Shared {
    T sums[8][32];
  };
  Shared& s = block_shared<Shared>();
  const int own = blockIdx.x * 32 + threadIdx.x, y = threadIdx.y;
  T sum = 0;
  if (own < size) {
#pragma unroll 4
    for (int slice = y; slice < slices; slice += 8) sum += partials[slice * size + own];
  }
  s.sums[y][threadIdx.x] = sum;
  __syncthreads();  // all eight sums are written before the first row of threads adds them
  if (y != 0 || own >= size) return;
  for (int other = 1; other < 8; ++other) sum += s.sums[other][threadIdx.x];
  out[own] = sum;
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
