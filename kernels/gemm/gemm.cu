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
//
// Those on the tensor cores are in gemm_tensor_core.cu.
//
// Sources: Volkov and Demmel, "Benchmarking GPUs to tune dense linear algebra", 2008 (registers hold the
// result); Nath, Tomov and Dongarra, "An improved MAGMA GEMM for Fermi GPUs", 2010 (two levels of tiles).

#include "activation.cuh"
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
