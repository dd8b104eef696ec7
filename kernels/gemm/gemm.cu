// General matrix multiplication: y = epilogue(op(a) op(b) + bias), float32 and float64.
//
//   M N K     sizes: op(a) is (M, K), op(b) is (K, N), y is (M, N); op transposes or not
//   batch     that many independent products; a_step and b_step elements from one to the next (0: the same)
//   epilogue  what follows the bias: activation, dropout, the slope of another activation (epilogue.cuh)
//
// All matrices are row-major.  TRANSPOSE_A says that a is stored as (K, M), TRANSPOSE_B that b is stored
// as (N, K).  In v1 to v5 every element of y is summed over k in ascending order, so that the result does not
// depend on the shape of the grid; in v6 and v7 the order is as fixed, in several sums that are then added.
//
//   v1_plain           a thread owns one y[m, n] and reads 2 K numbers from global memory for it
//   v2_smem_tile       a block owns 16 x 16 of y; tiles of a and b are read once per block into shared
//                      memory, so global reads fall 16-fold, but each multiplication reads two from there
//   v3_register_tile   a block owns 64 x 64, a thread 4 x 4 in registers: 8 shared reads feed 16
//                      multiplications; tiles arrive by 16-byte loads where the layout allows (VECTOR)
//   v5_warp_tile       a thread owns 8 x 16 (float32), fetched by 16-byte reads of shared memory that no two lanes of a
//                      warp queue for: 6 of them feed 128 multiplications; the tiles after next arrive by cp.async
//   v6_warps_share_k   for results of few tiles: 16 x 16 of y, over whose k the eight warps of a block share out,
//                      each with copies of its own under way
//   v7_split_k         v5 with K cut into slices, blocks for each; a second kernel adds the slices in their order
//
// Those on the tensor cores are in gemm_tensor_core.cu.
//
// Sources: Volkov and Demmel, "Benchmarking GPUs to tune dense linear algebra", 2008 (registers hold the
// result); Nath, Tomov and Dongarra, "An improved MAGMA GEMM for Fermi GPUs", 2010 (two levels of tiles);
// NVIDIA's CUTLASS, "Efficient GEMM in CUDA" (tiles of warps, lanes that share reads, slices of K).

#include "async.cuh"
#include "epilogue.cuh"
#include "reduce.cuh"
#include "vector.cuh"

// ---- v1

// Block: 16 x 16 threads, as many elements of y.  Thread: y[m, n]; neighbours in x are neighbours in n.
template <class T, bool TRANSPOSE_A, bool TRANSPOSE_B>
__global__ void __launch_bounds__(256, 6)
gemm_v1_plain(const T* __restrict__ a, const T* __restrict__ b, const T* __restrict__ bias, T* __restrict__ y, int M,
              int N, int K, int batch, int a_step, int b_step, const __grid_constant__ Epilogue<T> epilogue) {
  const int n = blockIdx.y * 16 + threadIdx.x;
  const int m = blockIdx.x * 16 + threadIdx.y;
  if (m >= M || n >= N) return;
  for (int i = blockIdx.z; i < batch; i += gridDim.z) {
    const T* ai = a + i * a_step;
    const T* bi = b + i * b_step;
    T sum = 0;
    for (int k = 0; k < K; ++k)
      sum += ai[TRANSPOSE_A ? k * M + m : m * K + k] * bi[TRANSPOSE_B ? n * K + k : k * N + n];
    const int at = (i * M + m) * N + n;
    y[at] = finished(epilogue, bias, sum, at, n);
  }
}

// ---- v2

// Block: 16 x 16 threads and a 16 x 16 tile of y.  Thread: one element of it, and one element of each
// tile of a and b to load.
template <class T, bool TRANSPOSE_A, bool TRANSPOSE_B>
__global__ void __launch_bounds__(256)
gemm_v2_smem_tile(const T* __restrict__ a, const T* __restrict__ b, const T* __restrict__ bias, T* __restrict__ y,
                  int M, int N, int K, int batch, int a_step, int b_step,
                  const __grid_constant__ Epilogue<T> epilogue) {
  constexpr int TILE = 16;
  struct Shared {
    T a[TILE][TILE + 1];  // [m][k]; the odd row length spreads a column over the banks
    T b[TILE][TILE + 1];  // [k][n]
  };
  Shared& s = block_shared<Shared>();
  const int x = threadIdx.x, y_ = threadIdx.y;
  const int m0 = blockIdx.x * TILE, n0 = blockIdx.y * TILE;

  for (int i = blockIdx.z; i < batch; i += gridDim.z) {
    const T* ai = a + i * a_step;
    const T* bi = b + i * b_step;
    T sum = 0;
    for (int k0 = 0; k0 < K; k0 += TILE) {
      // Neighbours in x read neighbours in memory, whichever way a matrix is stored.
      if (TRANSPOSE_A) {
        const int m = m0 + x, k = k0 + y_;
        s.a[x][y_] = m < M && k < K ? ai[k * M + m] : T(0);
      } else {
        const int m = m0 + y_, k = k0 + x;
        s.a[y_][x] = m < M && k < K ? ai[m * K + k] : T(0);
      }
      if (TRANSPOSE_B) {
        const int n = n0 + y_, k = k0 + x;
        s.b[x][y_] = n < N && k < K ? bi[n * K + k] : T(0);
      } else {
        const int n = n0 + x, k = k0 + y_;
        s.b[y_][x] = n < N && k < K ? bi[k * N + n] : T(0);
      }
      __syncthreads();  // the tiles are complete before anyone multiplies
#pragma unroll
      for (int k = 0; k < TILE; ++k) sum += s.a[y_][k] * s.b[k][x];
      __syncthreads();  // everyone has multiplied before the next tiles overwrite these
    }
    const int m = m0 + y_, n = n0 + x;
    if (m < M && n < N) {
      const int at = (i * M + m) * N + n;
      y[at] = finished(epilogue, bias, sum, at, n);
    }
  }
}

// ---- v3

// Copy the tile of ROWS x DEPTH elements at (row0, k0) of a matrix of `rows` x K to shared memory as
// tile[k][row], with zeros beyond its edges.  ALONG_K says that the matrix is stored with k running fastest.
template <int ROWS, int DEPTH, int THREADS, bool ALONG_K, bool VECTOR, class T, int PITCH>
__device__ __forceinline__ void load_tile(T (&tile)[DEPTH][PITCH], const T* __restrict__ matrix, int rows, int K,
                                          int row0, int k0) {
  constexpr int STEP = VECTOR ? Vector<T>::SIZE : 1;
  constexpr int FAST = ALONG_K ? DEPTH : ROWS;  // how many run along memory
  for (int place = threadIdx.x * STEP; place < ROWS * DEPTH; place += THREADS * STEP) {
    const int fast = place % FAST, slow = place / FAST;
    const int row = ALONG_K ? slow : fast, k = ALONG_K ? fast : slow;
    const bool inside = row0 + row < rows && k0 + k < K;  // a vector is inside as a whole or not at all
    const int from = ALONG_K ? (row0 + row) * K + k0 + k : (k0 + k) * rows + row0 + row;
    if constexpr (VECTOR) {
      Vector<T> v = {};
      if (inside) v = load_vector(&matrix[from]);
      if (ALONG_K) {
#pragma unroll
        for (int e = 0; e < STEP; ++e) tile[k + e][row] = v.of[e];
      } else {
        store_vector(&tile[k][row], v);
      }
    } else {
      tile[k][row] = inside ? matrix[from] : T(0);
    }
  }
}

// Block: 256 threads and a 64 x 64 tile of y.  Thread: 4 x 4 elements of it.  VECTOR: both matrices start at
// multiples of 16 bytes and so does each of their rows.  With so many blocks on an SM the registers suffice; left to
// itself ptxas aims at more blocks, and spills.
template <class T, bool TRANSPOSE_A, bool TRANSPOSE_B, bool VECTOR>
__global__ void __launch_bounds__(256, sizeof(T) == 4 ? 3 : 2)
gemm_v3_register_tile(const T* __restrict__ a, const T* __restrict__ b, const T* __restrict__ bias,
                      T* __restrict__ y, int M, int N, int K, int batch, int a_step, int b_step,
                      const __grid_constant__ Epilogue<T> epilogue) {
  constexpr int TILE = 64, DEPTH = 16, OWN = 4, SIDE = TILE / OWN, THREADS = SIDE * SIDE;
  constexpr int PITCH = TILE + Vector<T>::SIZE;  // keeps rows aligned, spreads columns over the banks
  struct Shared {
    alignas(16) T a[DEPTH][PITCH];  // [k][m]
    alignas(16) T b[DEPTH][PITCH];  // [k][n]
  };
  Shared& s = block_shared<Shared>();
  const int x = threadIdx.x % SIDE, y_ = threadIdx.x / SIDE;
  const int m0 = blockIdx.x * TILE, n0 = blockIdx.y * TILE;

  for (int i = blockIdx.z; i < batch; i += gridDim.z) {
    T sum[OWN][OWN] = {};
    for (int k0 = 0; k0 < K; k0 += DEPTH) {
      load_tile<TILE, DEPTH, THREADS, !TRANSPOSE_A, VECTOR>(s.a, a + i * a_step, M, K, m0, k0);
      load_tile<TILE, DEPTH, THREADS, TRANSPOSE_B, VECTOR>(s.b, b + i * b_step, N, K, n0, k0);
      __syncthreads();  // the tiles are complete before anyone multiplies
#pragma unroll
      for (int k = 0; k < DEPTH; ++k) {  // beyond K both tiles hold 0
        T of_a[OWN], of_b[OWN];
#pragma unroll
        for (int e = 0; e < OWN; ++e) {
          of_a[e] = s.a[k][y_ * OWN + e];
          of_b[e] = s.b[k][x * OWN + e];
        }
#pragma unroll
        for (int r = 0; r < OWN; ++r)
#pragma unroll
          for (int c = 0; c < OWN; ++c) sum[r][c] += of_a[r] * of_b[c];
      }
      __syncthreads();  // everyone has multiplied before the next tiles overwrite these
    }
#pragma unroll
    for (int r = 0; r < OWN; ++r) {
      const int m = m0 + y_ * OWN + r, n = n0 + x * OWN, at = (i * M + m) * N + n;
      if (m >= M || n >= N) continue;
      finish_neighbours(epilogue, bias, sum[r], at, n, N - n);
#pragma unroll
      for (int c = 0; c < OWN; ++c)
        if (n + c < N) y[at + c] = sum[r][c];
    }
  }
}

// ---- v5

// Start copying the tile of ROWS x DEPTH elements at (row0, k0) of a matrix of `rows` x K to shared memory as
// tile[k][row]; of k only those below `end`, and zeros beyond.  Rows beyond the matrix repeat its last: what they
// give is never written.  `thread` is one of THREADS, that share the work.  VECTOR: 16 bytes by one copy where the
// rows run along memory; where k does (ALONG_K), the tile is transposed on its way, number by number.
template <int ROWS, int DEPTH, int THREADS, bool ALONG_K, bool VECTOR, class T, int PITCH>
__device__ __forceinline__ void start_tile(T (&tile)[DEPTH][PITCH], const T* __restrict__ matrix, int rows, int K,
                                           int end, int row0, int k0, int thread) {
  constexpr int STEP = VECTOR && !ALONG_K ? Vector<T>::SIZE : 1;
  constexpr int FAST = ALONG_K ? DEPTH : ROWS / STEP;  // copies that run along memory
  constexpr int COPIES = ROWS * DEPTH / STEP / THREADS;
  static_assert(THREADS % FAST == 0 && COPIES * THREADS * STEP == ROWS * DEPTH, "every thread copies as much");
  const int fast = thread % FAST;
#pragma unroll
  for (int i = 0; i < COPIES; ++i) {
    const int slow = thread / FAST + i * (THREADS / FAST);
    const int row = ALONG_K ? slow : fast * STEP, k = ALONG_K ? fast : slow;
    const bool inside = k0 + k < end;
    const int from_row = min(row0 + row, rows - STEP), from_k = inside ? k0 + k : 0;
    const int from = ALONG_K ? from_row * K + from_k : from_k * rows + from_row;
    copy_async<STEP * int(sizeof(T))>(&tile[k][row], &matrix[from], inside);
  }
}

// Finish `part`, elements n, n + 1, ... of the row of y that begins at element `row`, and write it as far as the row
// goes; 16 bytes at once if `whole` rows of y begin at multiples of 16 bytes.  One function for all parts of a thread:
// in their places the code would be several times as long as the loop that multiplies.
template <class T>
__device__ __noinline__ void finish_row_part(T* y, int row, int n, int N, bool whole, const T* bias,
                                             const Epilogue<T>& epilogue, Vector<T> part) {
  if (n >= N) return;
  finish_neighbours(epilogue, bias, part.of, row + n, n, N - n);
  if (whole) {
    store_vector(&y[row + n], part);
  } else {
#pragma unroll
    for (int e = 0; e < Vector<T>::SIZE; ++e)
      if (n + e < N) y[row + n + e] = part.of[e];
  }
}

// A thread's share is counted in vectors of 16 bytes: OWN_M x OWN_N of them, each of its rows with each of its
// columns.  The lanes of a warp stand 8 x 4; neighbouring vectors belong to neighbouring lanes, so that one read of
// all lanes is one run of memory, and the thread's next vector lies behind that run.
//
// Block: 4 warps, 2 x 2, and a tile of y: float32 128 x 128 (WIDE) or 128 x 64, float64 half as many rows and
// columns.  Warp: a quarter of it.  Thread: float32 8 x 16 (WIDE) or 8 x 8, float64 4 x 8 or 4 x 4.
//
// K is cut into `splits` slices of `length`, a multiple of DEPTH; each gives a matrix of its own, y[product][slice].
template <class T, bool TRANSPOSE_A, bool TRANSPOSE_B, bool VECTOR, bool WIDE>
__global__ void __launch_bounds__(128, WIDE ? 2 : 3)
gemm_v5_warp_tile(const T* __restrict__ a, const T* __restrict__ b, const T* __restrict__ bias, T* __restrict__ y,
                  int M, int N, int K, int batch, int a_step, int b_step, const __grid_constant__ Epilogue<T> epilogue,
                  int splits, int length) {
  constexpr int SIZE = Vector<T>::SIZE, THREADS = 128, DEPTH = 8, STAGES = 3;
  constexpr int OWN_M = 2, OWN_N = WIDE ? 4 : 2, LANES_M = 8, LANES_N = 4;
  constexpr int WARP_M = LANES_M * OWN_M * SIZE, WARP_N = LANES_N * OWN_N * SIZE;
  constexpr int TILE_M = 2 * WARP_M, TILE_N = 2 * WARP_N;
  // One vector more than a row needs: where a tile is transposed, the 8 k x 4 rows that a warp copies at a time fall
  // into 32 different banks.
  struct Shared {
    alignas(16) T a[STAGES][DEPTH][TILE_M + SIZE];  // [stage][k][m]
    alignas(16) T b[STAGES][DEPTH][TILE_N + SIZE];  // [stage][k][n]
  };
  Shared& s = block_shared<Shared>();
  const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
  // Lanes that differ in bit 0 read the same of a, those that differ in bit 1 the same of b: only then does an SM
  // serve 16-byte reads of half a warp at once, not of a quarter.
  const int lane_m = (lane >> 1 & 1) | (lane >> 2 & 6), lane_n = (lane & 1) | (lane >> 1 & 2);
  const int own_m = warp / 2 * WARP_M + lane_m * SIZE, own_n = warp % 2 * WARP_N + lane_n * SIZE;
  const int m0 = blockIdx.x * TILE_M, n0 = blockIdx.y * TILE_N;
  const bool whole = N % SIZE == 0 && is_vector_aligned(y);

  for (int z = blockIdx.z; z < batch * splits; z += gridDim.z) {
    const T* ai = a + z / splits * a_step;
    const T* bi = b + z / splits * b_step;
    const int first = z % splits * length, end = min(first + length, K);
    const auto start = [&](int stage, int k0) {  // an empty group where the slice has ended: groups are counted
      if (k0 < end) {
        start_tile<TILE_M, DEPTH, THREADS, !TRANSPOSE_A, VECTOR>(s.a[stage], ai, M, K, end, m0, k0, threadIdx.x);
        start_tile<TILE_N, DEPTH, THREADS, TRANSPOSE_B, VECTOR>(s.b[stage], bi, N, K, end, n0, k0, threadIdx.x);
      }
      commit_copies();
    };
    T sum[OWN_M * SIZE][OWN_N * SIZE] = {};
#pragma unroll
    for (int ahead = 0; ahead < STAGES - 1; ++ahead) start(ahead, first + ahead * DEPTH);
    for (int k0 = first, stage = 0; k0 < end; k0 += DEPTH) {
      wait_copies<STAGES - 2>();
      __syncthreads();  // everyone's copies into this stage have arrived; nobody reads the stage before it any more
      start(stage == 0 ? STAGES - 1 : stage - 1, k0 + (STAGES - 1) * DEPTH);
#pragma unroll
      for (int k = 0; k < DEPTH; ++k) {  // beyond the slice both tiles hold 0
        Vector<T> of_a[OWN_M], of_b[OWN_N];
#pragma unroll
        for (int r = 0; r < OWN_M; ++r) of_a[r] = load_vector(&s.a[stage][k][own_m + r * LANES_M * SIZE]);
#pragma unroll
        for (int c = 0; c < OWN_N; ++c) of_b[c] = load_vector(&s.b[stage][k][own_n + c * LANES_N * SIZE]);
#pragma unroll
        for (int r = 0; r < OWN_M * SIZE; ++r)
#pragma unroll
          for (int c = 0; c < OWN_N * SIZE; ++c)
            sum[r][c] += of_a[r / SIZE].of[r % SIZE] * of_b[c / SIZE].of[c % SIZE];
      }
      stage = stage == STAGES - 1 ? 0 : stage + 1;
    }
    __syncthreads();  // everyone has multiplied before the next product's copies overwrite the first stages
#pragma unroll
    for (int r = 0; r < OWN_M * SIZE; ++r) {
      const int m = m0 + own_m + r / SIZE * LANES_M * SIZE + r % SIZE;
      if (m >= M) continue;
#pragma unroll
      for (int c = 0; c < OWN_N; ++c) {
        Vector<T> part;
#pragma unroll
        for (int e = 0; e < SIZE; ++e) part.of[e] = sum[r][c * SIZE + e];
        finish_row_part(y, (z * M + m) * N, n0 + own_n + c * LANES_N * SIZE, N, whole, bias, epilogue, part);
      }
    }
  }
}

// ---- v6

// Block: 8 warps and a 16 x 16 tile of y.  Warp: all of the tile, for every eighth chunk of DEPTH of k, which it
// copies to a place of its own, so that no warp waits for another until its sums are ready.  Thread: 4 x 2 of the
// tile for its warp's k; at the end one element, for which it adds what the warps have, in their order.
// `splits` and `length` as in v5.
template <class T, bool TRANSPOSE_A, bool TRANSPOSE_B>
__global__ void __launch_bounds__(256)
gemm_v6_warps_share_k(const T* __restrict__ a, const T* __restrict__ b, const T* __restrict__ bias,
                      T* __restrict__ y, int M, int N, int K, int batch, int a_step, int b_step,
                      const __grid_constant__ Epilogue<T> epilogue, int splits, int length) {
  constexpr int TILE = 16, DEPTH = 8, STAGES = 16 / sizeof(T), WARPS = 8, OWN_M = 4, OWN_N = 2;
  constexpr int PITCH = TILE + Vector<T>::SIZE;  // for the banks, as in v5
  struct Pieces {
    alignas(16) T a[DEPTH][PITCH];  // [k][m]
    alignas(16) T b[DEPTH][PITCH];  // [k][n]
  };
  union OfWarp {
    Pieces pieces[STAGES];
    T sum[TILE][TILE + 1];  // [m][n]
  };
  struct Shared {
    OfWarp of[WARPS];
  };
  Shared& s = block_shared<Shared>();
  const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
  OfWarp& own = s.of[warp];
  const int own_m = lane / 8 * OWN_M, own_n = lane % 8 * OWN_N;
  const int m0 = blockIdx.x * TILE, n0 = blockIdx.y * TILE;

  for (int z = blockIdx.z; z < batch * splits; z += gridDim.z) {
    const T* ai = a + z / splits * a_step;
    const T* bi = b + z / splits * b_step;
    const int first = z % splits * length + warp * DEPTH, end = min(z % splits * length + length, K);
    const auto start = [&](int stage, int k0) {  // an empty group where the slice has ended: groups are counted
      if (k0 < end) {
        start_tile<TILE, DEPTH, WARP, !TRANSPOSE_A, false>(own.pieces[stage].a, ai, M, K, end, m0, k0, lane);
        start_tile<TILE, DEPTH, WARP, TRANSPOSE_B, false>(own.pieces[stage].b, bi, N, K, end, n0, k0, lane);
      }
      commit_copies();
    };
    T sum[OWN_M][OWN_N] = {};
#pragma unroll
    for (int ahead = 0; ahead < STAGES - 1; ++ahead) start(ahead, first + ahead * WARPS * DEPTH);
    for (int k0 = first, stage = 0; k0 < end; k0 += WARPS * DEPTH) {
      wait_copies<STAGES - 2>();
      __syncwarp();  // all lanes' copies into this stage have arrived; no lane reads the stage before it any more
      start(stage == 0 ? STAGES - 1 : stage - 1, k0 + (STAGES - 1) * WARPS * DEPTH);
      const Pieces& pieces = own.pieces[stage];
#pragma unroll
      for (int k = 0; k < DEPTH; ++k) {  // beyond the slice both pieces hold 0
#pragma unroll
        for (int r = 0; r < OWN_M; ++r)
#pragma unroll
          for (int c = 0; c < OWN_N; ++c) sum[r][c] += pieces.a[k][own_m + r] * pieces.b[k][own_n + c];
      }
      stage = stage == STAGES - 1 ? 0 : stage + 1;
    }
    __syncwarp();  // every lane has multiplied before sums overwrite the warp's pieces
#pragma unroll
    for (int r = 0; r < OWN_M; ++r)
#pragma unroll
      for (int c = 0; c < OWN_N; ++c) own.sum[own_m + r][own_n + c] = sum[r][c];
    __syncthreads();  // the sums of all warps are written before anyone adds them up
    const int row = threadIdx.x / TILE, column = threadIdx.x % TILE;
    const int m = m0 + row, n = n0 + column;
    if (m < M && n < N) {
      T total = s.of[0].sum[row][column];
#pragma unroll
      for (int w = 1; w < WARPS; ++w) total += s.of[w].sum[row][column];
      const int at = (z * M + m) * N + n;
      y[at] = finished(epilogue, bias, total, at, n);
    }
    __syncthreads();  // everyone has added before the next product's copies overwrite the sums
  }
}

// ---- the end of a split K

// y = epilogue(sum of the slices, in their order, + bias).  `partials` is (batch, splits, M, N), MN the elements of one
// product.  Block: 256 elements of y.  Thread: one.
template <class S>
__global__ void __launch_bounds__(256)
gemm_sum_splits(const Wide<S>* __restrict__ partials, const S* __restrict__ bias, S* __restrict__ y, int MN, int N,
                int size, int splits, const __grid_constant__ Epilogue<S> epilogue) {
  using T = Wide<S>;
  const unsigned i = blockIdx.x * 256u + threadIdx.x;  // may pass 2^31 in the last block
  if (i >= unsigned(size)) return;
  const T* from = partials + i / MN * (splits * MN) + i % MN;
  T sum = from[0];
#pragma unroll 4
  for (int slice = 1; slice < splits; ++slice) sum += from[slice * MN];
  y[i] = narrowed<S>(finished(epilogue, bias, sum, i, i % N));
}

// ---- for linear_backward

// h = grad times the activation's slope at its result y, and partial sums of h's columns: sums[slice][n] over the
// slice's `length` rows.  Without y, h is grad; without a place for h it is not written.  Of halves it is h as it is
// rounded that is added up, in float.
// Block: 32 columns of a slice.  Thread: every 32nd row of one column; one thread of each column adds what they have.
template <class S>
__global__ void __launch_bounds__(1024)
gemm_column_sums(const S* __restrict__ grad, const S* __restrict__ y, S* __restrict__ h, Wide<S>* __restrict__ sums,
                 int M, int N, int length, int activation) {
  using T = Wide<S>;
  struct Shared {
    ColumnValues<T> values;
  };
  Shared& s = block_shared<Shared>();
  const int n = blockIdx.x * WARP + threadIdx.x;
  const int first = blockIdx.y * length, end = n < N ? min(first + length, M) : first;
  const T sum = column_sum<T>(first, end, [&](int row) {
    const int at = row * N + n;
    S value = grad[at];
    if (y != nullptr) value = narrowed<S>(gradient_by_output(activation, widened(value), widened(y[at])));
    if (h != nullptr) h[at] = value;
    return widened(value);
  }, s.values);
  if (threadIdx.y == 0 && n < N) sums[blockIdx.y * N + n] = sum;
}
