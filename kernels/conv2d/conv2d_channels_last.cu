// Convolution of channels-last arrays on the tensor cores (sm_80 and newer): float32, by choice of a lower precision.
//
// Letters and equations are those of conv2d.cu.  In memory x is (n,h,w,c), and y, g and dx are likewise: the channels of
// one place are neighbours.  The weights come as (k,r,s,c), for dx as (c,r,s,k) in each group; dw is (k,c,r,s) as ever.
//
//   v6_channels_last  implicit GEMM, out[position][m] = sum of in[position + tap][c] weight[m][tap][c] over (tap, c), and
//                     dw[k][tap][c] = sum of g[position][k] x[position + tap][c] over positions.  Four channels are
//                     16 bytes: a thread copies four channels of a window at once, by cp.async, straight to where
//                     ldmatrix reads them; two tiles are under way while a third is multiplied; numbers are rounded to
//                     tf32, bf16 or fp16 on their way from shared memory to the tensor cores, and sums stay float32
//
// Where a group's channels are no multiple of four, or a ReLU's y decides about each gradient, copies are of single
// numbers, and places without a number hold zeros; the rest is the same.
//
// The tensor cores sum 8 (tf32) or 16 products in an order of their own; these follow in the order of the tiles.  dw is
// summed in slices of the positions, which conv2d_sum_slices of conv2d.cu adds up.
//
// Sources: PTX ISA (mma.sync, ldmatrix, cp.async); Chetlur et al., "cuDNN: efficient primitives for deep learning", 2014
// (the matrix of windows, tile by tile).

#include "correlation.cuh"
#include "mma_tile.cuh"
#include "precision.cuh"

constexpr int THREADS = 128;
constexpr int BLOCKS = 3;  // on one multiprocessor: registers enough, and room in shared memory
constexpr int LONG = 128;  // rows of a tile: positions; of dw taps and channels
constexpr int DEPTH = 16;  // of a tile: taps and channels; of dw positions
constexpr int STAGES = 3;

// A tile of float32 as it lies in memory, which is rounded when a fragment is read.  A register takes two 16-bit numbers;
// they are those of k = t and t + 4, as ldmatrix finds them, where the instruction says 2t and 2t + 1: both factors name
// the terms of a sum so, and the sum is the same.
template <class NUMBER, int ROWS_, int DEPTH_, bool ALONG_K_>
struct FloatTile : MmaTile<Tf32, ROWS_, DEPTH_, ALONG_K_> {
  using Words = MmaTile<Tf32, ROWS_, DEPTH_, ALONG_K_>;
  static constexpr int STEP = 32 / BytesOf<NUMBER>::VALUE;  // k of one instruction

  __device__ __forceinline__ void read(uint32_t (&r)[4], int row, int k, int lane) const {
    uint32_t of[STEP / Words::STEP][4];
#pragma unroll
    for (int part = 0; part < STEP / Words::STEP; ++part) Words::read(of[part], row, k + part * Words::STEP, lane);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if constexpr (BytesOf<NUMBER>::VALUE == 4)
        r[i] = to_tf32(__uint_as_float(of[0][i]));
      else
        r[i] = pack(NUMBER(), __uint_as_float(of[i / 2][i % 2]), __uint_as_float(of[i / 2][i % 2 + 2]));
    }
  }
};

// Start to copy the four numbers at in[from], of which the first `count` are there, to a place in shared memory, with
// zeros for the others.  `whole`: they are four or none, at a multiple of 16 bytes, and no ReLU stands before them.
template <bool NEAR>
__device__ __forceinline__ void copy_four(uint32_t* to, const Input<float>& in, int from, int count, bool whole) {
  if (whole) {
    copy_async<16, NEAR>(to, &in.values[count > 0 ? from : 0], count > 0);
    return;
  }
#pragma unroll
  for (int e = 0; e < 4; ++e) {
    const bool there = e < count && in.passes(from + e);
    copy_async<4>(&to[e], &in.values[there ? from + e : 0], there);
  }
}
__device__ __forceinline__ bool comes_whole(const Input<float>& in, int channels) {
  return channels % 4 == 0 && in.y == nullptr && is_vector_aligned(in.values);
}

// Four channels under one tap, which a thread copies again and again: where from a position, and how many there are.
struct Four {
  Place tap;
  int count;
};

// The windows as one factor of a product, and what they are multiplied with, in a ring of tiles.  POSITIONS: the rows of
// the first are positions, the columns of the second are channels of the result, and the sum is over taps and channels;
// otherwise the rows are taps and channels, the columns filters, and the sum is over positions.  Either way a line of the
// first tile belongs to a position, and a thread copies the same four channels of each of its lines.
//
// Warp: 64 rows x 32 columns of the product, or 32 x 32 where there are 32 columns.
template <class NUMBER, int COLUMNS, bool POSITIONS>
struct Ring {
  static constexpr int WARPS_DOWN = 128 / COLUMNS, R = LONG / WARPS_DOWN / 16, C = 4;
  using Windows = FloatTile<NUMBER, LONG, DEPTH, POSITIONS>;
  using Other = FloatTile<NUMBER, COLUMNS, DEPTH, POSITIONS>;
  Windows windows[STAGES];
  Other other[STAGES];
  Place places[POSITIONS ? LONG : 2 * LONG];  // of positions

  static __device__ __forceinline__ int row() { return threadIdx.x / WARP % WARPS_DOWN * (LONG / WARPS_DOWN); }
  static __device__ __forceinline__ int column() { return threadIdx.x / WARP / WARPS_DOWN * 32; }

  // Start to copy what lies under `four` at the positions of one tile; the first of them is at places[first].
  __device__ __forceinline__ void copy_windows(int stage, const Correlation& f, const Input<float>& in, int first,
                                               const Four& four, bool whole) {
#pragma unroll
    for (int i = 0; i < Windows::SLOW * Windows::CHUNKS / THREADS; ++i) {
      const int number = threadIdx.x + i * THREADS, line = number / Windows::CHUNKS;
      const Place at = places[first + line];
      const int h = at.h + four.tap.h, w = at.w + four.tap.w;
      const bool inside = unsigned(h) < unsigned(f.down.size) && unsigned(w) < unsigned(f.across.size);
      copy_four<true>(&windows[stage].words[Windows::word_of(line, number % Windows::CHUNKS * 4)], in,
                      at.in + four.tap.in, inside ? four.count : 0, whole);
    }
  }

  // Start to copy a tile of the other factor: of line i < lines the numbers at in[i * pitch + from].
  __device__ __forceinline__ void copy_lines(int stage, const Input<float>& in, int pitch, int lines, int from,
                                             int count, bool whole) {
#pragma unroll
    for (int i = 0; i < Other::SLOW * Other::CHUNKS / THREADS; ++i) {
      const int number = threadIdx.x + i * THREADS, line = number / Other::CHUNKS;
      copy_four<false>(&other[stage].words[Other::word_of(line, number % Other::CHUNKS * 4)], in, line * pitch + from,
                       line < lines ? count : 0, whole);
    }
  }

  // Add to `sum` the products of the tiles of all steps; fetch(step, stage) starts their copies, and may leave places for
  // the step that follows.
  template <class Fetch>
  __device__ __forceinline__ void multiply(int steps, const Fetch& fetch, float (&sum)[R][C][4]) {
    const auto start = [&](int step, int stage) {  // an empty group behind the last step: groups are counted
      if (step < steps) fetch(step, stage);
      commit_copies();
    };
#pragma unroll 1
    for (int step = 0; step < STAGES - 1; ++step) {
      __syncthreads();  // the places that this step needs are complete before anyone reads them
      start(step, step);
    }
    for (int step = 0, stage = 0; step < steps; ++step) {
      wait_copies<STAGES - 2>();
      // Everyone's copies into this stage have arrived, and the next step's places are complete; nobody reads the stage
      // before it any more, which is filled now.
      __syncthreads();
      start(step + STAGES - 1, stage == 0 ? STAGES - 1 : stage - 1);
      multiply_tiles<NUMBER>(sum, windows[stage], other[stage], row(), column(), threadIdx.x % WARP);
      stage = stage == STAGES - 1 ? 0 : stage + 1;
    }
  }
};

// The place of a position (n, i, j) in channels-last arrays: in the first channel of a group, and in channel m there.
__device__ __forceinline__ Place channels_last_position(const Correlation& f, const Digits& of, int group, int m) {
  const int h = of.middle * f.down.stride + f.down.start, w = of.low * f.across.stride + f.across.start;
  const int row = of.middle * f.down.out_step + f.down.out0, column = of.low * f.across.out_step + f.across.out0;
  return {((of.high * f.down.size + h) * f.across.size + w) * f.G * f.C + group * f.C, h, w,
          (of.high * f.out_plane + row * f.out_width + column) * f.G * f.M + group * f.M + m};
}

// Channel c under tap (t, u), and how many of four are there from c on; weights are (m, r, s, c).
__device__ __forceinline__ Four channels_last_tap(const Correlation& f, int t, int u, int c) {
  const int h = t * f.down.dilation, w = u * f.across.dilation;
  const int r = t * f.down.tap_step + f.down.tap0, s = u * f.across.tap_step + f.across.tap0;
  return {{(h * f.across.size + w) * f.G * f.C + c, h, w, (r * f.S + s) * f.C + c}, f.C - c};
}

// ---- y and dx

struct alignas(8) TwoFloats {
  float of[2];
};

// Block: 128 positions (n, i, j) x COLUMNS channels of the result.  The sum is over `panels` of so many channels, in each
// over the taps, and over the panel's channels: what one tap has read, the next one finds in the first-level cache.
// Thread: of each tile, four channels of four positions, and of one or two channels of the result.
template <int PRECISION, int COLUMNS>
__device__ __forceinline__ void correlate_channels_last(const Correlation& f, int panel, const Input<float>& in,
                                                        const float* __restrict__ weight,
                                                        const float* __restrict__ bias, bool relu,
                                                        float* __restrict__ out, int block) {
  using Tiles = Ring<typename PrecisionOf<PRECISION>::Type, COLUMNS, true>;
  Tiles& tiles = block_shared<Tiles>();
  const int m0 = take(block, ceil_div(f.M, COLUMNS)) * COLUMNS;  // neighbours read the same windows
  const int group = take(block, f.G), of_m = group * f.M + m0;
  const int own = block * LONG + threadIdx.x, I = f.down.positions, J = f.across.positions;
  tiles.places[threadIdx.x] = own < f.N * I * J ? channels_last_position(f, digits(own, I, J), group, m0) : NONE;

  const int R = f.down.taps, S = f.across.taps, pitch = f.weights / f.M;
  const Input<float> weights = {weight + of_m * pitch, nullptr};
  const bool whole = comes_whole(in, f.C), whole_weights = comes_whole({weight, nullptr}, f.C);
  int t = 0, u = 0, c0 = 0, c = 0;  // the tap, the panel, and the channel in it, of this thread's four
  const auto go_on = [&](int channels) {
    c += channels;
    while (c >= panel) {
      c -= panel;
      if (++u == S) {
        u = 0;
        if (++t == R) {
          t = 0;
          c0 += panel;
        }
      }
    }
  };
  go_on(threadIdx.x % Tiles::Windows::CHUNKS * 4);
  const int terms = ceil_div(f.C, panel) * R * S * panel;
  float sum[Tiles::R][Tiles::C][4] = {};
  tiles.multiply(
      ceil_div(terms, DEPTH),
      [&](int, int stage) {
        const Four four = channels_last_tap(f, t, u, c0 + c);
        tiles.copy_windows(stage, f, in, 0, four, whole);
        tiles.copy_lines(stage, weights, pitch, f.M - m0, four.tap.at, four.count, whole_weights);
        go_on(DEPTH);
      },
      sum);

  const int lane = threadIdx.x % WARP, column = tiles.column() + lane % 4 * 2;
  const bool pairs = f.M % 2 == 0 && reinterpret_cast<uint64_t>(out) % sizeof(TwoFloats) == 0;
  Bias<float> added[Tiles::C][2];
#pragma unroll
  for (int i = 0; i < Tiles::C; ++i)
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      const int m = column + i * 8 + e;
      added[i][e] = bias_of(m0 + m < f.M ? bias : nullptr, of_m + m);
    }
#pragma unroll
  for (int r = 0; r < 2 * Tiles::R; ++r) {
    const int at = tiles.places[tiles.row() + r * 8 + lane / 4].at;
    if (at < 0) continue;
#pragma unroll
    for (int i = 0; i < Tiles::C; ++i) {
      const int m = column + i * 8;
      TwoFloats two;
#pragma unroll
      for (int e = 0; e < 2; ++e) two.of[e] = finished(sum[r / 2][i][r % 2 * 2 + e], added[i][e], relu);
      if (pairs && m0 + m < f.M) {
        *reinterpret_cast<TwoFloats*>(&out[at + m]) = two;
      } else {
        if (m0 + m < f.M) out[at + m] = two.of[0];
        if (m0 + m + 1 < f.M) out[at + m + 1] = two.of[1];
      }
    }
  }
}

template <int PRECISION, int COLUMNS>
__global__ void __launch_bounds__(THREADS, BLOCKS)
conv2d_forward_v6_channels_last(const float* __restrict__ x, const float* __restrict__ weight,
                                const float* __restrict__ bias, float* __restrict__ y, Geometry g, int panel,
                                bool relu) {
  correlate_channels_last<PRECISION, COLUMNS>(forward_of(g), panel, {x, nullptr}, weight, bias, relu, y, blockIdx.x);
}

template <int PRECISION, int COLUMNS>
__global__ void __launch_bounds__(THREADS, BLOCKS)
conv2d_backward_input_v6_channels_last(const float* __restrict__ grad, const float* __restrict__ y,
                                       const float* __restrict__ weight, float* __restrict__ dx, Geometry g,
                                       int panel) {
  int block = blockIdx.x;
  const Correlation f = backward_of(g, block);
  correlate_channels_last<PRECISION, COLUMNS>(f, panel, {grad, y}, weight, nullptr, false, dx, block);
}

// ---- dw

// Block: 128 of the taps and channels (r, s, c) x COLUMNS filters, and one slice of `length` positions (n, p, q).
// Thread: of each tile, the same four channels under one tap at four positions, and of four filters one or two.
template <int PRECISION, int COLUMNS>
__global__ void __launch_bounds__(THREADS, BLOCKS)
conv2d_backward_weight_v6_channels_last(const float* __restrict__ x, const float* __restrict__ grad,
                                        const float* __restrict__ y, float* __restrict__ partials, Geometry g,
                                        int length) {
  using Tiles = Ring<typename PrecisionOf<PRECISION>::Type, COLUMNS, false>;
  Tiles& tiles = block_shared<Tiles>();
  const Correlation f = forward_of(g);
  const Input<float> in = {x, nullptr}, gradient = {grad, y};
  const int taps = g.R * g.S, padded = ceil_div(f.C, 4) * 4;  // the four that a thread copies are under one tap
  int block = blockIdx.x;
  const int first = take(block, ceil_div(taps * padded, LONG)) * LONG;  // neighbours read the same gradients
  const int k0 = take(block, ceil_div(f.M, COLUMNS)) * COLUMNS;
  const int group = take(block, f.G), slice = block;
  const int begin = slice * length, end = min(begin + length, g.N * g.P * g.Q);

  constexpr int STEPS = LONG / DEPTH;  // whose positions are worked out at once, by a thread each
  const auto write_places = [&](int run) {
    const int own = begin + run * LONG + threadIdx.x;
    tiles.places[run % 2 * LONG + threadIdx.x] =
        own < end ? channels_last_position(f, digits(own, g.P, g.Q), group, 0) : NONE;
  };
  int tap = first + threadIdx.x % Tiles::Windows::CHUNKS * 4;
  const int c = take(tap, padded);
  Four four = channels_last_tap(f, tap / g.S, tap % g.S, c);
  if (tap >= taps) four.count = 0;
  const int k = threadIdx.x % Tiles::Other::CHUNKS * 4, pitch = g.K;
  const bool whole = comes_whole(in, f.C), whole_gradient = comes_whole(gradient, f.M);
  write_places(0);
  float sum[Tiles::R][Tiles::C][4] = {};
  tiles.multiply(
      ceil_div(end - begin, DEPTH),
      [&](int step, int stage) {
        const int position = begin + step * DEPTH;
        tiles.copy_windows(stage, f, in, step / STEPS % 2 * LONG + step % STEPS * DEPTH, four, whole);
        tiles.copy_lines(stage, gradient, pitch, end - position, position * pitch + group * f.M + k0 + k, f.M - k0 - k,
                         whole_gradient);
        if (step % STEPS == STEPS - 1) write_places(step / STEPS + 1);
      },
      sum);

  partials += (slice * g.G + group) * f.weights;
  const int lane = threadIdx.x % WARP, column = k0 + tiles.column() + lane % 4 * 2;
#pragma unroll
  for (int r = 0; r < 2 * Tiles::R; ++r) {
    int of_tap = first + tiles.row() + r * 8 + lane / 4;
    const int of_c = take(of_tap, padded);
    if (of_tap >= taps || of_c >= f.C) continue;
#pragma unroll
    for (int i = 0; i < Tiles::C; ++i)
#pragma unroll
      for (int e = 0; e < 2; ++e)
        if (column + i * 8 + e < f.M)
          partials[(column + i * 8 + e) * f.weight_m + of_c * taps + of_tap] = sum[r / 2][i][r % 2 * 2 + e];
  }
}
