// General matrix multiplication on Hopper (sm_90a): y = activation(a b^T + bias), float32 rounded to tf32.
//
//   M N K  sizes: a is (M, K), b is (N, K), y is (M, N)
//   batch  that many independent products; a_many, b_many: whether each has an a, a b, of its own
//
// All matrices are row-major, so that k runs fastest in both factors, as the tensor cores want tf32; the launcher
// transposes what comes otherwise.  Rounding happens on the way to shared memory, sums stay float32.
//
//   v10_wgmma_tma  a block owns 64 x 128 of y.  One warp does nothing but begin copies: the tensor memory accelerator
//                 fetches 64 x 32 of a and 128 x 32 of b by one instruction each, edges included.  The four
//                 others multiply by wgmma, which reads both factors from shared memory itself.  A ring of four
//                 stages lies between them, with two mbarriers each: full (its bytes have come), empty (it has
//                 been multiplied).
//   v11_wgmma_two  two warpgroups multiply, and a block owns 128 x 256: each owns 64 rows, and both read the same b.
//                 A byte of global memory feeds twice as many products; a wgmma of 256 columns reads
//                 5/8 as much of shared memory for each product as one of 128.
//
// The tensor cores sum 8 products in an order of their own, then k ascends.
//
// Sources: NVIDIA, "CUTLASS: efficient GEMM", warp-specialised persistent kernels (a producer warp, a ring of
// mbarriers); PTX ISA on wgmma and cp.async.bulk.tensor.

#include "activation.cuh"
#include "tma.cuh"
#include "wgmma.cuh"

// ---- the ring

// A row of a tile is 128 bytes, what the swizzle of 128 bytes takes.
template <int TILE_M, int TILE_N, int STAGES>
struct Ring {
  static constexpr int DEPTH = 32, BYTES = (TILE_M + TILE_N) * DEPTH * sizeof(float);
  alignas(1024) float a[STAGES][TILE_M][DEPTH];
  alignas(1024) float b[STAGES][TILE_N][DEPTH];
  Barrier full[STAGES], empty[STAGES];
};

// Where in the ring a warp is: the stage, and the parity of the phase that it waits for.
template <int STAGES>
struct Place {
  int stage = 0, parity = 0;
  __device__ __forceinline__ void next() {
    if (++stage == STAGES) stage = 0, parity ^= 1;
  }
};

// All of a block's work: GROUPS warpgroups multiply, each 64 rows by TILE_N columns, and one warp more copies.
template <int GROUPS, int TILE_N, int STAGES>
__device__ __forceinline__ void products(const TensorMap& a, const TensorMap& b, const float* __restrict__ bias,
                                         float* __restrict__ y, int M, int N, int K, int batch, bool a_many,
                                         bool b_many, int activation) {
  constexpr int TILE_M = 64 * GROUPS, MULTIPLIERS = 4 * GROUPS;  // warps
  using Shared = Ring<TILE_M, TILE_N, STAGES>;
  constexpr int DEPTH = Shared::DEPTH;
  Shared& s = block_shared<Shared>();
  const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
  const int m0 = blockIdx.x * TILE_M, n0 = blockIdx.y * TILE_N;
  if (threadIdx.x == 0) {
    for (int i = 0; i < STAGES; ++i) {
      init_barrier(s.full[i], 1);
      init_barrier(s.empty[i], MULTIPLIERS);
    }
    fence_barrier_init();
  }
  __syncthreads();  // the barriers are there before anyone uses them
  const int steps = ceil_div(K, DEPTH);
  Place<STAGES> at;

  if (warp == MULTIPLIERS) {
    if (lane != 0) return;
    for (int i = blockIdx.z; i < batch; i += gridDim.z)
      for (int step = 0; step < steps; ++step, at.next()) {
        wait(s.empty[at.stage], at.parity ^ 1);  // nobody multiplies what the copies overwrite; at first it is empty
        arrive_expect(s.full[at.stage], Shared::BYTES);
        load_box(s.a[at.stage], a, step * DEPTH, m0, a_many ? i : 0, s.full[at.stage]);
        load_box(s.b[at.stage], b, step * DEPTH, n0, b_many ? i : 0, s.full[at.stage]);
      }
    return;
  }

  const int g = lane / 4, t = lane % 4;
  for (int i = blockIdx.z; i < batch; i += gridDim.z) {
    float sum[TILE_N / 2] = {};
    int before = 0;  // the stage of the step before
    for (int step = 0; step < steps; ++step, at.next()) {
      wait(s.full[at.stage], at.parity);  // both tiles have come
      const uint64_t of_a = matrix_descriptor<128>(s.a[at.stage][warp / 4 * 64]), of_b = matrix_descriptor<128>(s.b[at.stage]);
      begin_products();
#pragma unroll
      for (int k = 0; k < DEPTH; k += 8)
        multiply_group(Tf32(), sum, further(of_a, k * 4), further(of_b, k * 4), true);
      commit_products();
      wait_products<1>(sum);  // those of the step before have ended
      if (step > 0 && lane == 0) arrive(s.empty[before]);
      before = at.stage;
    }
    wait_products<0>(sum);  // all have ended
    if (lane == 0) arrive(s.empty[before]);
#pragma unroll
    for (int j = 0; j < TILE_N / 8; ++j)
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const int m = m0 + warp * 16 + g + e / 2 * 8, n = n0 + j * 8 + 2 * t + e % 2;
        if (m < M && n < N) {
          float value = sum[4 * j + e];
          if (bias != nullptr) value += bias[n];
          y[(i * M + m) * N + n] = activate_one_of_many(activation, value);
        }
      }
  }
}

// ---- v10

// Block: five warps and a 64 x 128 tile of y.  Warps 0 to 3, a warpgroup: 16 rows of it each, all columns; a
// thread holds 64 results, as wgmma.cuh tells.  Warp 4: its first lane begins the copies.
__global__ void __launch_bounds__(160, 2)
gemm_v10_wgmma_tma(const __grid_constant__ TensorMap a, const __grid_constant__ TensorMap b,
                  const float* __restrict__ bias, float* __restrict__ y, int M, int N, int K, int batch, bool a_many,
                  bool b_many, int activation) {
  products<1, 128, 4>(a, b, bias, y, M, N, K, batch, a_many, b_many, activation);
}

// ---- v11

// Block: nine warps and a 128 x 256 tile of y.  Warps 0 to 3 and 4 to 7: 64 rows of it each, 16 a warp; a thread holds
// 128 results.  Warp 8: its first lane begins the copies.
__global__ void __launch_bounds__(288, 1)
gemm_v11_wgmma_two(const __grid_constant__ TensorMap a, const __grid_constant__ TensorMap b,
                  const float* __restrict__ bias, float* __restrict__ y, int M, int N, int K, int batch, bool a_many,
                  bool b_many, int activation) {
  products<2, 256, 4>(a, b, bias, y, M, N, K, batch, a_many, b_many, activation);
}
