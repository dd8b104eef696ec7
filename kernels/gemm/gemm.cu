// General matrix multiplication: y = activation(op(a) op(b) + bias), float32 and float64.
//
//   M N K  sizes: op(a) is (M, K), op(b) is (K, N), y is (M, N); op transposes or not
//   batch  that many independent products; a_step and b_step elements from one to the next (0: the same)
//
// All matrices are row-major.  TRANSPOSE_A says that a is stored as (K, M), TRANSPOSE_B that b is stored
// as (N, K).  Every element of y is summed over k in ascending order, so that the result does not
// depend on the shape of the grid.
//
//   v1_plain           a thread owns one y[m, n] and reads 2 K numbers from global memory for it
//   v2_smem_tile       a block owns 16 x 16 of y; tiles of a and b are read once per block into shared
//                      memory, so global reads fall 16-fold, but each multiplication reads two from there
//   v3_register_tile   a block owns 64 x 64, a thread 4 x 4 in registers: 8 shared reads feed 16
//                      multiplications; tiles arrive by 16-byte loads where the layout allows (VECTOR)
//   v4_tensor_core     float32 alone, by choice of a lower precision: a and b are rounded to tf32, bf16 or
//                      fp16 on their way to the tensor cores, sums stay float32; the next tiles arrive by
//                      cp.async while these are multiplied
//
// In v4 the tensor cores sum 8 (tf32) or 16 products in an order of their own, then k ascends.
//
// Sources: Volkov and Demmel, "Benchmarking GPUs to tune dense linear algebra", 2008 (registers hold the
// result); Nath, Tomov and Dongarra, "An improved MAGMA GEMM for Fermi GPUs", 2010 (two levels of tiles).

#include "activation.cuh"
#include "async.cuh"
#include "mma.cuh"
#include "vector.cuh"

// ---- v1

// Block: 16 x 16 threads, as many elements of y.  Thread: y[m, n]; neighbours in x are neighbours in n.
template <class T, bool TRANSPOSE_A, bool TRANSPOSE_B>
__global__ void __launch_bounds__(256)
gemm_v1_plain(const T* __restrict__ a, const T* __restrict__ b, const T* __restrict__ bias, T* __restrict__ y, int M,
              int N, int K, int batch, int a_step, int b_step, int activation) {
  const int n = blockIdx.y * 16 + threadIdx.x;
  const int m = blockIdx.x * 16 + threadIdx.y;
  if (m >= M || n >= N) return;
  for (int i = blockIdx.z; i < batch; i += gridDim.z) {
    const T* ai = a + i * a_step;
    const T* bi = b + i * b_step;
    T sum = 0;
    for (int k = 0; k < K; ++k)
      sum += ai[TRANSPOSE_A ? k * M + m : m * K + k] * bi[TRANSPOSE_B ? n * K + k : k * N + n];
    if (bias != nullptr) sum += bias[n];
    y[(i * M + m) * N + n] = activate(activation, sum);
  }
}

// ---- v2

// Block: 16 x 16 threads and a 16 x 16 tile of y.  Thread: one element of it, and one element of each
// tile of a and b to load.
template <class T, bool TRANSPOSE_A, bool TRANSPOSE_B>
__global__ void __launch_bounds__(256)
gemm_v2_smem_tile(const T* __restrict__ a, const T* __restrict__ b, const T* __restrict__ bias, T* __restrict__ y,
                  int M, int N, int K, int batch, int a_step, int b_step, int activation) {
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
      if (bias != nullptr) sum += bias[n];
      y[(i * M + m) * N + n] = activate(activation, sum);
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
// multiples of 16 bytes and so does each of their rows.  With two blocks on an SM the registers suffice; left to
// itself ptxas aims at more blocks, and spills.
template <class T, bool TRANSPOSE_A, bool TRANSPOSE_B, bool VECTOR>
__global__ void __launch_bounds__(256, 2)
gemm_v3_register_tile(const T* __restrict__ a, const T* __restrict__ b, const T* __restrict__ bias,
                      T* __restrict__ y, int M, int N, int K, int batch, int a_step, int b_step, int activation) {
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
    for (int r = 0; r < OWN; ++r)
#pragma unroll
      for (int c = 0; c < OWN; ++c) {
        const int m = m0 + y_ * OWN + r, n = n0 + x * OWN + c;
        if (m < M && n < N) {
          T value = sum[r][c];
          if (bias != nullptr) value += bias[n];
          y[(i * M + m) * N + n] = activate_one_of_many(activation, value);
        }
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

template <int PRECISION>
struct TypeOf {
  using type = Tf32;
  static constexpr int DEPTH = 8;  // k of one instruction
};
template <>
struct TypeOf<1> {
  using type = Bf16;
  static constexpr int DEPTH = 16;
};
template <>
struct TypeOf<2> {
  using type = Fp16;
  static constexpr int DEPTH = 16;
};

// Block: 4 warps and a 64 x 64 tile of y.  Warp: 32 x 32 of it, as 2 x 4 results of 16 x 8.  PRECISION: 0 tf32,
// 1 bf16, 2 fp16.  VECTOR as in v3.
template <int PRECISION, bool TRANSPOSE_A, bool TRANSPOSE_B, bool VECTOR>
__global__ void __launch_bounds__(128, 4)  // see v3
gemm_v4_tensor_core(const float* __restrict__ a, const float* __restrict__ b, const float* __restrict__ bias,
                    float* __restrict__ y, int M, int N, int K, int batch, int a_step, int b_step, int activation) {
  constexpr int TILE = 64, DEPTH = 16, THREADS = 128;
  using Type = typename TypeOf<PRECISION>::type;
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
      for (int k = 0; k < DEPTH; k += TypeOf<PRECISION>::DEPTH) {
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
#pragma unroll
    for (int r = 0; r < 2; ++r)
#pragma unroll
      for (int c = 0; c < 4; ++c)
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          const int m = m0 + row + r * 16 + g + e / 2 * 8, n = n0 + column + c * 8 + 2 * t + e % 2;
          if (m < M && n < N) {
            float value = sum[r][c][e];
            if (bias != nullptr) value += bias[n];
            y[(i * M + m) * N + n] = activate_one_of_many(activation, value);
          }
        }
  }
}
