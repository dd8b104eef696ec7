// What the kernels of conv2d share: where a position and a tap meet, inputs behind a ReLU, results with bias and ReLU,
// and the way of both factors to a block's shared memory and on to registers.
//
// Letters and equations are those of conv2d.cu.  Forward and dx are both a Correlation.  dx is gathered, not scattered:
// the rows h of dx that are equal mod sh meet the same taps, and under these taps they are a convolution of g with
// stride 1 (backward_axis below).  So no product is formed for the gaps that a stride leaves.
//
// Source: Dumoulin and Visin, "A guide to convolution arithmetic for deep learning", 2016 (dx as a convolution).
#pragma once
#include "activation.cuh"
#include "async.cuh"
#include "vector.cuh"

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

// ---- where positions and taps meet

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

// How far a rectangle of positions reaches under some taps.
__device__ __forceinline__ int reach(const Axis& axis, int positions, int taps) {
  return (positions - 1) * axis.stride + (taps - 1) * axis.dilation + 1;
}

// ---- to shared memory, and from there to registers

// What a block multiplies comes in pieces, to two places in shared memory in turn: fetch(i) starts the copies of piece i
// to place i % 2.
template <class Fetch>
__device__ __forceinline__ void start_piece(int i, bool exists, const Fetch& fetch) {
  if (!exists) return;
  fetch(i);
  commit_copies();
}

// Wait for piece i, and start the next one, which is under way while this one is multiplied.
template <class Fetch>
__device__ __forceinline__ void await_piece(int i, bool more, const Fetch& fetch) {
  wait_copies<0>();
  // What all threads have copied of this piece has arrived; and all have multiplied the piece before it, which the next
  // one overwrites.
  __syncthreads();
  start_piece(i + 1, more, fetch);
}

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
