// Convolution on the tensor cores (sm_80 and newer): NCHW, float32, by choice of a lower precision.
//
// Letters, equations and arguments are those of conv2d.cu.
//
//   v5_tensor_core    factors are rounded to tf32, bf16 or fp16 on their way to the tensor cores, which sum over
//                     channels tap by tap (of dw: over positions, 8 channels under one tap at a time), and read the
//                     patch as it is staged; sums stay float32
//
// The tensor cores sum 8 (tf32) or 16 products in an order of their own, then taps and pieces of channels follow in
// theirs.
//
// Source: PTX ISA (mma.sync, cp.async).

#include "correlation.cuh"
#include "precision.cuh"

// What a block takes at once: a rectangle of positions, and taps.
struct Rectangle {
  int P, Q, taps;
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

// At least `size` numbers, `banks` more than a multiple of 32: what is so far apart lies in other banks.
__device__ __forceinline__ int spaced(int size, int banks) { return ceil_div(max(size - banks, 0), 32) * 32 + banks; }

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
  const int plane = spaced(rows * columns, BANKS);
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
  };

  int under[8];  // where this lane's columns of b begin in the patch; past the rectangle anywhere
#pragma unroll
  for (int e = 0; e < 8; ++e) {
    int i = column0 + e * 8 + eighth;
    const int j = take(i, t.Q);
    under[e] = i < t.P ? i * f.down.stride * columns + j * f.across.stride : 0;
  }

  float sum[2][8][4] = {};
  start_piece(0, pieces > 0, fetch);
  for (int piece = 0; piece < pieces; ++piece) {
    await_piece(piece, piece + 1 < pieces, fetch);
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
  const int plane = spaced(rows * columns, BANKS);

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
  start_piece(first, first < end, fetch);
  for (int tile = first; tile < end; ++tile) {
    await_piece(tile, tile + 1 < end, fetch);
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

