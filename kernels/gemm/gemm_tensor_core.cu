// General matrix multiplication on the tensor cores (sm_80 and newer): y = epilogue(op(a) op(b) + bias), float32;
// v14 of bfloat16 or float16.
//
// Sizes, layouts and arguments are those of gemm.cu.  VECTOR, or is_vector_aligned: a matrix starts at a multiple of
// 16 bytes and so does each of its rows.
//
//   v4_tensor_core            by choice of a lower precision: a and b are rounded to tf32, bf16 or fp16 on their way to
//                             the tensor cores, sums stay float32; the next tiles arrive by cp.async while these are
//                             multiplied
//   v8_tensor_core_pipelined  the same rounding, once for a block instead of once for each warp that reads a number: the
//                             next tiles wait in registers while these are multiplied, and are rounded as they go to
//                             shared memory, where they take half the bytes (bf16, fp16) and lie as ldmatrix reads them;
//                             a block owns up to 128 x 128, and blocks that run at once are neighbours
//   v9_bf16_split             float32's own accuracy: each number is a sum of three in bf16, and of their nine products
//                             the six that count are added up; where a tile holds what cannot be split (infinity, NaN,
//                             2^128 - 2^119 and more) its products are made outside of the tensor cores
//   v14_half_cp_async         all matrices are bf16 or fp16 in memory: nothing is rounded on the way in, so tiles go from
//                             global to shared memory by cp.async, three of them under way, and no register is needed
//                             for them; y is rounded once, from float32; K may be cut into slices
//   v15_split_k               v8 and v9 for results of few tiles: K is cut into slices, with blocks for each;
//                             gemm_sum_splits of gemm.cu adds the slices in their order
//
// The tensor cores sum 8 (tf32) or 16 products in an order of their own, then k ascends.
//
// Sources: PTX ISA (mma.sync, ldmatrix, cp.async); for v9 see multiply_split_tiles in mma_tile.cuh.

#include "async.cuh"
#include "epilogue.cuh"
#include "mma_tile.cuh"

// ---- what these kernels share

template <int PRECISION>
struct TypeOf {
  using type = Tf32;
};
template <>
struct TypeOf<1> {
  using type = Bf16;
};
template <>
struct TypeOf<2> {
  using type = Fp16;
};

// Write a warp's part of product i of the batch, 16 R rows from m and 8 C columns from n on, which lies in its registers
// as mma.cuh says.
template <int R, int C>
__device__ __forceinline__ void finish(const float (&sum)[R][C][4], const float* __restrict__ bias,
                                       float* __restrict__ y, int i, int m0, int n0, int M, int N, int lane,
                                       const Epilogue<float>& epilogue) {
  const int g = lane / 4, t = lane % 4;
#pragma unroll
  for (int r = 0; r < R; ++r)
#pragma unroll
    for (int c = 0; c < C; ++c)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int m = m0 + r * 16 + g + half * 8, n = n0 + c * 8 + 2 * t, at = (i * M + m) * N + n;
        if (m < M && n < N) {
          float two[2] = {sum[r][c][half * 2], sum[r][c][half * 2 + 1]};
          finish_neighbours(epilogue, bias, two, at, n, N - n);
          y[at] = two[0];
          if (n + 1 < N) y[at + 1] = two[1];
        }
      }
}

// ---- v4

// A tile of ROWS x DEPTH in shared memory, stored as its matrix is: with k running fastest (ALONG_K) or the
// rows.  The pitches let the eight g and four t of a fragment's lanes fall into 32 different banks.
template <int ROWS, int DEPTH, bool ALONG_K>
struct Tile {
  static constexpr int FAST = ALONG_K ? DEPTH : ROWS, SLOW = ALONG_K ? ROWS : DEPTH;
  static constexpr int PITCH = FAST + (ALONG_K ? 4 : 8);
  alignas(16) float of[SLOW][PITCH];

  __device__ __forceinline__ float at(int row, int k) const { return ALONG_K ? of[row][k] : of[k][row]; }

  // Start copying the tile at (row0, k0) of a matrix of `rows` x K; zeros beyond its edges.
  template <int THREADS, bool VECTOR>
  __device__ __forceinline__ void start(const float* __restrict__ matrix, int rows, int K, int row0, int k0) {
    constexpr int STEP = VECTOR ? 4 : 1;
    for (int place = threadIdx.x * STEP; place < ROWS * DEPTH; place += THREADS * STEP) {
      const int fast = place % FAST, slow = place / FAST;
      const int row = row0 + (ALONG_K ? slow : fast), k = k0 + (ALONG_K ? fast : slow);
      const bool inside = row < rows && k < K;
      const int from = ALONG_K ? row * K + k : k * rows + row;
      copy_async<STEP * 4>(&of[slow][fast], matrix + (inside ? from : 0), inside);
    }
  }
};

// This lane's part of the 16 x DEPTH of a that begins at `row`, and of the DEPTH x 8 of b that begins at column
// `row`, from k on; DEPTH is 8 for tf32 and 16 for the others.
template <class TILE>
__device__ __forceinline__ void fragment_a(Tf32, uint32_t (&a)[4], const TILE& tile, int row, int k, int g, int t) {
#pragma unroll
  for (int i = 0; i < 4; ++i) a[i] = to_tf32(tile.at(row + g + i % 2 * 8, k + t + i / 2 * 4));
}
template <class TILE>
__device__ __forceinline__ void fragment_b(Tf32, uint32_t (&b)[2], const TILE& tile, int row, int k, int g, int t) {
#pragma unroll
  for (int i = 0; i < 2; ++i) b[i] = to_tf32(tile.at(row + g, k + t + i * 4));
}
template <class TYPE, class TILE>
__device__ __forceinline__ void fragment_a(TYPE type, uint32_t (&a)[4], const TILE& tile, int row, int k, int g, int t) {
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int m = row + g + i % 2 * 8, first = k + 2 * t + i / 2 * 8;
    a[i] = pack(type, tile.at(m, first), tile.at(m, first + 1));
  }
}
template <class TYPE, class TILE>
__device__ __forceinline__ void fragment_b(TYPE type, uint32_t (&b)[2], const TILE& tile, int row, int k, int g, int t) {
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int first = k + 2 * t + i * 8;
    b[i] = pack(type, tile.at(row + g, first), tile.at(row + g, first + 1));
  }
}

// Block: 4 warps and a 64 x 64 tile of y.  Warp: 32 x 32 of it, as 2 x 4 results of 16 x 8.  PRECISION: 0 tf32,
// 1 bf16, 2 fp16.
template <int PRECISION, bool TRANSPOSE_A, bool TRANSPOSE_B, bool VECTOR>
__global__ void __launch_bounds__(128, 3)  // see v3
gemm_v4_tensor_core(const float* __restrict__ a, const float* __restrict__ b, const float* __restrict__ bias,
                    float* __restrict__ y, int M, int N, int K, int batch, int a_step, int b_step,
                    const __grid_constant__ Epilogue<float> epilogue) {
  constexpr int TILE = 64, DEPTH = 16, THREADS = 128;
  using Type = typename TypeOf<PRECISION>::type;
  constexpr int STEP = 32 / BytesOf<Type>::VALUE;  // k of one instruction
  struct Shared {
    Tile<TILE, DEPTH, !TRANSPOSE_A> a[2];
    Tile<TILE, DEPTH, TRANSPOSE_B> b[2];
  };
  Shared& s = block_shared<Shared>();
  const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, g = lane / 4, t = lane % 4;
  const int row = warp / 2 * 32, column = warp % 2 * 32;  // of the warp's part
  const int m0 = blockIdx.x * TILE, n0 = blockIdx.y * TILE;

  for (int i = blockIdx.z; i < batch; i += gridDim.z) {
    const float* ai = a + i * a_step;
    const float* bi = b + i * b_step;
    float sum[2][4][4] = {};
    if (K > 0) {
      s.a[0].template start<THREADS, VECTOR>(ai, M, K, m0, 0);
      s.b[0].template start<THREADS, VECTOR>(bi, N, K, n0, 0);
      commit_copies();
    }
    for (int k0 = 0, stage = 0; k0 < K; k0 += DEPTH, stage ^= 1) {
      wait_copies<0>();
      __syncthreads();  // everyone's copies into this stage have arrived; nobody reads the other stage any more
      if (k0 + DEPTH < K) {
        s.a[stage ^ 1].template start<THREADS, VECTOR>(ai, M, K, m0, k0 + DEPTH);
        s.b[stage ^ 1].template start<THREADS, VECTOR>(bi, N, K, n0, k0 + DEPTH);
        commit_copies();
      }
#pragma unroll
      for (int k = 0; k < DEPTH; k += STEP) {
        uint32_t of_a[2][4], of_b[4][2];
#pragma unroll
        for (int r = 0; r < 2; ++r) fragment_a(Type(), of_a[r], s.a[stage], row + r * 16, k, g, t);
#pragma unroll
        for (int c = 0; c < 4; ++c) fragment_b(Type(), of_b[c], s.b[stage], column + c * 8, k, g, t);
#pragma unroll
        for (int r = 0; r < 2; ++r)
#pragma unroll
          for (int c = 0; c < 4; ++c) multiply(Type(), sum[r][c], of_a[r], of_b[c]);
      }
    }
    __syncthreads();  // everyone has multiplied before the next product's copies overwrite the first stage
    finish(sum, bias, y, i, m0 + row, n0 + column, M, N, lane, epilogue);
  }
}

// ---- v8 and v9: what is on its way from global to shared memory

// Blocks are started in the order of their numbers, some hundred at once.  In bands of eight rows of blocks, those
// share eight strips of a and a few of b, which the second-level cache then serves; in rows, each would have its own b.
struct BlockOfY {
  int m, n;
};
__device__ __forceinline__ BlockOfY block_in_bands() {
  constexpr int BAND = 8;
  const int number = blockIdx.y * gridDim.x + blockIdx.x, of_band = BAND * gridDim.y;
  const int first = number / of_band * BAND, place = number % of_band;
  const int height = min(BAND, static_cast<int>(gridDim.x) - first);  // the last band may be lower
  return {first + place % height, place / height};
}

// A thread's share of a tile, in its registers: every THREADS-th group of four numbers that lie side by side.
template <class TILE, int THREADS>
struct InFlight {
  static constexpr int GROUPS = TILE::FAST / 4, COUNT = TILE::SLOW * GROUPS / THREADS;
  static_assert(TILE::SLOW * GROUPS % THREADS == 0, "every thread has as many");
  Vector<float> of[COUNT];

  // Ask for the tile at (row0, k0) of a matrix of `rows` x K; zeros beyond its edges.  The loads need not have ended.
  __device__ __forceinline__ void fetch(const float* __restrict__ matrix, int rows, int K, int row0, int k0,
                                        bool vector) {
    const int fast_end = TILE::ALONG_K ? K : rows, slow_end = TILE::ALONG_K ? rows : K;
    const int fast0 = TILE::ALONG_K ? k0 : row0, slow0 = TILE::ALONG_K ? row0 : k0;
#pragma unroll
    for (int i = 0; i < COUNT; ++i) {
      const int place = threadIdx.x + i * THREADS, fast = fast0 + place % GROUPS * 4, slow = slow0 + place / GROUPS;
      of[i] = {};
      if (vector) {  // inside as a whole or not at all
        if (slow < slow_end && fast < fast_end) of[i] = load_vector(&matrix[slow * fast_end + fast]);
      } else {
#pragma unroll
        for (int e = 0; e < 4; ++e)
          if (slow < slow_end && fast + e < fast_end) of[i].of[e] = matrix[slow * fast_end + fast + e];
      }
    }
  }

  __device__ __forceinline__ void store(TILE& tile) const {
#pragma unroll
    for (int i = 0; i < COUNT; ++i) {
      const int place = threadIdx.x + i * THREADS;
      tile.store(place / GROUPS, place % GROUPS * 4, of[i]);
    }
  }

  __device__ __forceinline__ bool can_be_split() const {
    bool all = true;
#pragma unroll
    for (int i = 0; i < COUNT; ++i)
#pragma unroll
      for (int e = 0; e < 4; ++e) all = all && ::can_be_split(of[i].of[e]);
    return all;
  }
};

// ---- v8

// Block: TILE x TILE of y (64 or 128), 2 TILE threads.  Warp: TILE / 2 x 32 of it.  PRECISION: 0 tf32, 1 bf16, 2 fp16.
// A large block fills the registers of an SM alone.
// K is cut into `splits` slices of `length`, a multiple of DEPTH; each gives a matrix of its own, y[product][slice].
template <int PRECISION, int TILE, bool TRANSPOSE_A, bool TRANSPOSE_B>
__global__ void __launch_bounds__(2 * TILE, TILE == 128 ? 1 : 3)
gemm_v8_tensor_core_pipelined(const float* __restrict__ a, const float* __restrict__ b, const float* __restrict__ bias,
                              float* __restrict__ y, int M, int N, int K, int batch, int a_step, int b_step,
                              const __grid_constant__ Epilogue<float> epilogue, int splits, int length) {
  using Number = typename TypeOf<PRECISION>::type;
  constexpr int DEPTH = 64 / BytesOf<Number>::VALUE, THREADS = 2 * TILE, R = TILE / 32, C = 4;
  using TileA = MmaTile<Number, TILE, DEPTH, !TRANSPOSE_A>;
  using TileB = MmaTile<Number, TILE, DEPTH, TRANSPOSE_B>;
  struct Shared {
    TileA a[2];
    TileB b[2];
  };
  Shared& s = block_shared<Shared>();
  const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
  const int row = warp % 2 * (TILE / 2), column = warp / 2 * 32;  // of the warp's part
  const BlockOfY block = block_in_bands();
  const int m0 = block.m * TILE, n0 = block.n * TILE;

  for (int z = blockIdx.z; z < batch * splits; z += gridDim.z) {
    const float* ai = a + z / splits * a_step;
    const float* bi = b + z / splits * b_step;
    const int first = z % splits * length, end = min(first + length, K);
    const bool vector_a = is_vector_aligned(ai) && (TRANSPOSE_A ? M : K) % 4 == 0;
    const bool vector_b = is_vector_aligned(bi) && (TRANSPOSE_B ? K : N) % 4 == 0;
    InFlight<TileA, THREADS> next_a;
    InFlight<TileB, THREADS> next_b;
    float sum[R][C][4] = {};
    if (first < end) {
      next_a.fetch(ai, M, K, m0, first, vector_a);
      next_b.fetch(bi, N, K, n0, first, vector_b);
      next_a.store(s.a[0]);
      next_b.store(s.b[0]);
      __syncthreads();  // the first tiles are complete before anyone multiplies
    }
    for (int k0 = first, stage = 0; k0 < end; k0 += DEPTH, stage ^= 1) {
      const bool more = k0 + DEPTH < end;
      if (more) {
        next_a.fetch(ai, M, K, m0, k0 + DEPTH, vector_a);
        next_b.fetch(bi, N, K, n0, k0 + DEPTH, vector_b);
      }
      multiply_tiles<Number>(sum, s.a[stage], s.b[stage], row, column, lane);
      if (more) {
        next_a.store(s.a[stage ^ 1]);
        next_b.store(s.b[stage ^ 1]);
      }
      // The other stage is complete before anyone multiplies it; everyone has multiplied this one before it is
      // overwritten, by the tiles after next or by the next product's first.
      __syncthreads();
    }
    finish(sum, bias, y, z, m0 + row, n0 + column, M, N, lane, epilogue);
  }
}

// ---- v9

// sum += a warp's part of the products of [k0, k_end), read from memory and multiplied in float32.
template <bool TRANSPOSE_A, bool TRANSPOSE_B, int R, int C>
__device__ __forceinline__ void multiply_plainly(float (&sum)[R][C][4], const float* __restrict__ a,
                                                 const float* __restrict__ b, int m0, int n0, int k0, int k_end, int M,
                                                 int N, int K, int lane) {
  const int g = lane / 4, t = lane % 4;
  for (int k = k0; k < k_end; ++k) {
    float of_b[C][2];
#pragma unroll
    for (int c = 0; c < C; ++c)
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const int n = n0 + c * 8 + 2 * t + e;
        of_b[c][e] = n < N ? b[TRANSPOSE_B ? n * K + k : k * N + n] : 0.0f;
      }
#pragma unroll
    for (int r = 0; r < R; ++r)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int m = m0 + r * 16 + g + half * 8;
        const float of_a = m < M ? a[TRANSPOSE_A ? k * M + m : m * K + k] : 0.0f;
#pragma unroll
        for (int c = 0; c < C; ++c)
#pragma unroll
          for (int e = 0; e < 2; ++e) sum[r][c][half * 2 + e] += of_a * of_b[c][e];
      }
  }
}

// Block, warp, slices: as in v8.  The tiles of all three parts are half as deep, so that two stages of them fit.
template <int TILE, bool TRANSPOSE_A, bool TRANSPOSE_B>
__global__ void __launch_bounds__(2 * TILE, TILE == 128 ? 1 : 3)
gemm_v9_bf16_split(const float* __restrict__ a, const float* __restrict__ b, const float* __restrict__ bias,
                   float* __restrict__ y, int M, int N, int K, int batch, int a_step, int b_step,
                   const __grid_constant__ Epilogue<float> epilogue, int splits, int length) {
  constexpr int DEPTH = 16, THREADS = 2 * TILE, R = TILE / 32, C = 4;
  using TileA = SplitTile<TILE, DEPTH, !TRANSPOSE_A>;
  using TileB = SplitTile<TILE, DEPTH, TRANSPOSE_B>;
  struct Shared {
    TileA a[2];
    TileB b[2];
  };
  Shared& s = block_shared<Shared>();
  const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
  const int row = warp % 2 * (TILE / 2), column = warp / 2 * 32;  // of the warp's part
  const BlockOfY block = block_in_bands();
  const int m0 = block.m * TILE, n0 = block.n * TILE;

  for (int z = blockIdx.z; z < batch * splits; z += gridDim.z) {
    const float* ai = a + z / splits * a_step;
    const float* bi = b + z / splits * b_step;
    const int first = z % splits * length, end = min(first + length, K);
    const bool vector_a = is_vector_aligned(ai) && (TRANSPOSE_A ? M : K) % 4 == 0;
    const bool vector_b = is_vector_aligned(bi) && (TRANSPOSE_B ? K : N) % 4 == 0;
    InFlight<TileA, THREADS> next_a;
    InFlight<TileB, THREADS> next_b;
    float sum[R][C][4] = {};
    int splits = 1;  // whether all that the block multiplies now can be split
    if (first < end) {
      next_a.fetch(ai, M, K, m0, first, vector_a);
      next_b.fetch(bi, N, K, n0, first, vector_b);
      next_a.store(s.a[0]);
      next_b.store(s.b[0]);
      splits = __syncthreads_and(next_a.can_be_split() && next_b.can_be_split());  // as in v8
    }
    for (int k0 = first, stage = 0; k0 < end; k0 += DEPTH, stage ^= 1) {
      const bool more = k0 + DEPTH < end;
      if (more) {
        next_a.fetch(ai, M, K, m0, k0 + DEPTH, vector_a);
        next_b.fetch(bi, N, K, n0, k0 + DEPTH, vector_b);
      }
      if (splits)
        multiply_split_tiles(sum, s.a[stage], s.b[stage], row, column, lane);
      else
        multiply_plainly<TRANSPOSE_A, TRANSPOSE_B>(sum, ai, bi, m0 + row, n0 + column, k0, min(k0 + DEPTH, end), M, N, K,
                                                   lane);
      int next_splits = 1;
      if (more) {
        next_a.store(s.a[stage ^ 1]);
        next_b.store(s.b[stage ^ 1]);
        next_splits = next_a.can_be_split() && next_b.can_be_split();
      }
      splits = __syncthreads_and(next_splits);  // as in v8
    }
    finish(sum, bias, y, z, m0 + row, n0 + column, M, N, lane, epilogue);
  }
}

// ---- v14

// How many numbers of a matrix whose rows have `pitch` of them can be copied at once: 8, 2 or 1.
template <class S>
__device__ __forceinline__ int half_step(const S* matrix, int pitch) {
  if (is_vector_aligned(matrix) && pitch % 8 == 0) return 8;
  return reinterpret_cast<uint64_t>(matrix) % 4 == 0 && pitch % 2 == 0 ? 2 : 1;
}

// Begin to copy the tile at (row0, k0) of a matrix of `rows` x K, of which k counts below k_end, to its place in shared
// memory; zeros beyond the edges.  cp.async takes 4 bytes at least: single numbers are read and put there.
template <int THREADS, class S, class TILE>
__device__ __forceinline__ void start_half_tile(TILE& tile, const S* __restrict__ matrix, int rows, int K, int k_end,
                                                int row0, int k0, int step) {
  constexpr int CHUNKS = TILE::CHUNKS, COUNT = TILE::SLOW * CHUNKS / THREADS;
  static_assert(TILE::OF_CHUNK == 8 && TILE::SLOW * CHUNKS % THREADS == 0, "every thread has as many");
  const int pitch = TILE::ALONG_K ? K : rows;
  const int fast_end = TILE::ALONG_K ? k_end : rows, slow_end = TILE::ALONG_K ? rows : k_end;
  const int fast0 = TILE::ALONG_K ? k0 : row0, slow0 = TILE::ALONG_K ? row0 : k0;
  const auto each = [&](int i, auto copy) {  // the i-th chunk of this thread: copy(where to, from where, how many numbers)
    const int place = threadIdx.x + i * THREADS, of_fast = place % CHUNKS * 8, of_slow = place / CHUNKS;
    const int fast = fast0 + of_fast, slow = slow0 + of_slow, count = slow < slow_end ? fast_end - fast : 0;
    copy(&tile.words[TILE::word_of(of_slow, of_fast)], matrix + (count > 0 ? slow * pitch + fast : 0), count);
  };
  if (step == 8) {  // inside as a whole or not at all, and so are pairs
#pragma unroll
    for (int i = 0; i < COUNT; ++i)
      each(i, [](uint32_t* to, const S* from, int count) { copy_async<16>(to, from, count > 0); });
    return;
  }
#pragma unroll 1
  for (int i = 0; i < COUNT; ++i)
    each(i, [&](uint32_t* to, const S* from, int count) {
      Vector<uint32_t> singles = {};
#pragma unroll
      for (int pair = 0; pair < 4; ++pair) {
        const bool inside = 2 * pair < count;
        if (step == 2)
          copy_async<4>(&to[pair], inside ? from + 2 * pair : matrix, inside);
        else if (inside)
          singles.of[pair] = from[2 * pair].bits | (2 * pair + 1 < count ? from[2 * pair + 1].bits << 16 : 0);
      }
      if (step == 1) store_vector(to, singles);
    });
}

// Two neighbours of a row, or one where no more are left of it, together where they can.
template <class S>
__device__ __forceinline__ void put_halves(S* to, int left, bool pairs, float first, float second) {
  const uint32_t both = pack(S(), first, second);
  if (pairs) {
    *reinterpret_cast<uint32_t*>(to) = both;
  } else {
    to[0] = S{static_cast<uint16_t>(both)};
    if (left > 1) to[1] = S{static_cast<uint16_t>(both >> 16)};
  }
}

// As `finish`, to halves.  What is rare needs registers that the sums have: so those of 16 rows at a time wait in shared
// memory, at a place of the thread's own, and are finished from there, one pair after the other.
template <int THREADS, class S, int R, int C>
__device__ __forceinline__ void finish_halves(const float (&sum)[R][C][4], const S* __restrict__ bias,
                                              S* __restrict__ y, int i, int m0, int n0, int M, int N, int lane,
                                              const Epilogue<S>& epilogue, float (&waiting)[4 * C][THREADS]) {
  const bool pairs = N % 2 == 0 && reinterpret_cast<uint64_t>(y) % 4 == 0;
  m0 += lane / 4;
  n0 += lane % 4 * 2;
  if (is_rare(epilogue)) {
#pragma unroll
    for (int r = 0; r < R; ++r) {
#pragma unroll
      for (int e = 0; e < 4 * C; ++e) waiting[e][threadIdx.x] = sum[r][e / 4][e % 4];
#pragma unroll 1
      for (int e = 0; e < 4 * C; e += 2) {
        const int m = m0 + r * 16 + e / 2 % 2 * 8, n = n0 + e / 4 * 8, at = (i * M + m) * N + n;
        if (m >= M || n >= N) continue;
        float two[2] = {waiting[e][threadIdx.x], waiting[e + 1][threadIdx.x]};
        finish_neighbours(epilogue, bias, two, at, n, N - n);
        put_halves(&y[at], N - n, pairs, two[0], two[1]);
      }
    }
    return;
  }
#pragma unroll
  for (int r = 0; r < R; ++r)
#pragma unroll
    for (int c = 0; c < C; ++c)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int m = m0 + r * 16 + half * 8, n = n0 + c * 8;
        if (m >= M || n >= N) continue;
        float two[2] = {sum[r][c][half * 2], sum[r][c][half * 2 + 1]};
        finish_plainly(epilogue, bias, two, n, N - n);
        put_halves(&y[(i * M + m) * N + n], N - n, pairs, two[0], two[1]);
      }
}

// Block: 64 x 64, 128 x 128 or 256 x 128 of y (TILE: the rows).  Warp: 32 x 32, 64 x 32 or 64 x 64 of it.  S: Bf16 or
// Fp16.  K is cut into `splits` slices of `length`, a multiple of 8; of several, each gives a matrix of its own in float32,
// partials[product][slice], without bias and epilogue.
template <class S, int TILE, bool TRANSPOSE_A, bool TRANSPOSE_B>
__global__ void __launch_bounds__(TILE == 64 ? 128 : 256, TILE == 256 ? 1 : TILE == 128 ? 2 : 4)
gemm_v14_half_cp_async(const S* __restrict__ a, const S* __restrict__ b, const S* __restrict__ bias,
                       S* __restrict__ y, float* __restrict__ partials, int M, int N, int K, int batch, int a_step,
                       int b_step, const __grid_constant__ Epilogue<S> epilogue, int splits, int length) {
  constexpr int TILE_N = TILE == 64 ? 64 : 128, WARP_M = TILE == 64 ? 32 : 64, WARP_N = TILE == 256 ? 64 : 32;
  constexpr int WARPS_M = TILE / WARP_M, THREADS = WARPS_M * (TILE_N / WARP_N) * WARP;
  constexpr int DEPTH = 32, STAGES = 3, R = WARP_M / 16, C = WARP_N / 8;
  using TileA = MmaTile<S, TILE, DEPTH, !TRANSPOSE_A>;
  using TileB = MmaTile<S, TILE_N, DEPTH, TRANSPOSE_B>;
  struct Shared {
    TileA a[STAGES];
    TileB b[STAGES];
  };
  Shared& s = block_shared<Shared>();
  const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
  const int row = warp % WARPS_M * WARP_M, column = warp / WARPS_M * WARP_N;  // of the warp's part
  const BlockOfY block = block_in_bands();
  const int m0 = block.m * TILE, n0 = block.n * TILE_N;

  for (int z = blockIdx.z; z < batch * splits; z += gridDim.z) {
    const S* ai = a + z / splits * a_step;
    const S* bi = b + z / splits * b_step;
    const int step_a = half_step(ai, TRANSPOSE_A ? M : K), step_b = half_step(bi, TRANSPOSE_B ? K : N);
    const int first = z % splits * length, end = min(first + length, K);
    const auto start = [&](int stage, int k0) {  // an empty group where the slice has ended: groups are counted
      if (k0 < end) {
        start_half_tile<THREADS>(s.a[stage], ai, M, K, end, m0, k0, step_a);
        start_half_tile<THREADS>(s.b[stage], bi, N, K, end, n0, k0, step_b);
      }
      commit_copies();
    };
    float sum[R][C][4] = {};
#pragma unroll
    for (int ahead = 0; ahead < STAGES - 1; ++ahead) start(ahead, first + ahead * DEPTH);
    for (int k0 = first, stage = 0; k0 < end; k0 += DEPTH) {
      wait_copies<STAGES - 2>();
      __syncthreads();  // everyone's copies into this stage have arrived; nobody reads the stage before it any more
      start(stage == 0 ? STAGES - 1 : stage - 1, k0 + (STAGES - 1) * DEPTH);
      multiply_tiles<S>(sum, s.a[stage], s.b[stage], row, column, lane);
      stage = stage == STAGES - 1 ? 0 : stage + 1;
    }
    __syncthreads();  // everyone has multiplied before the next product's copies overwrite the first stages
    if (partials == nullptr) {
      using Waiting = float[4 * C][THREADS];
      static_assert(sizeof(Shared) >= sizeof(Waiting), "there is room for what waits");
      Waiting& waiting = reinterpret_cast<Waiting&>(s);
      finish_halves(sum, bias, y, z, m0 + row, n0 + column, M, N, lane, epilogue, waiting);
      if (is_rare(epilogue)) __syncthreads();  // nothing waits any more where the next product's copies go
    } else {
      finish(sum, nullptr, partials, z, m0 + row, n0 + column, M, N, lane, Epilogue<float>());
    }
  }
}
