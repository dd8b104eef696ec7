// Convolution for small filters and few channels: forward, with max-pooling if wanted, and its gradients.
//
// Letters, equations and arguments are those of conv2d.cu.
//
//   v4_direct         patch and filters are staged as in v2, by copies that go on while the piece before is multiplied;
//                     a thread owns a square of 2 x 2 positions in 4 channels (of dw: a row of taps in 4 filters), for
//                     small filters with everything that it multiplies in registers and no index to work out
//
// conv2d_relu_pool_forward_v4_direct ends in max-pooling: the square that a thread owns is the window.

#include "best.cuh"
#include "correlation.cuh"

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
  static constexpr int ROOM = 12288 / sizeof(T);  // tiles.py fits tiles into these
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
  const int rows = reach(f.down, 2 * t.I, R), columns = reach(f.across, 2 * t.J, S);
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
  };

  T sum[OWN][4] = {};  // of the positions (0, 0), (0, 1), (1, 0), (1, 1) of the square
  start_piece(0, f.C > 0, fetch);
  for (int piece = 0; piece * t.C < f.C; ++piece) {
    await_piece(piece, (piece + 1) * t.C < f.C, fetch);
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
  };

  T sum[OWN][TAPS] = {};
  const int first = slice * length, end = min(first + length, g.N * down * across);
  start_piece(first, first < end, fetch);
  for (int tile = first; tile < end; ++tile) {
    await_piece(tile, tile + 1 < end, fetch);
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

