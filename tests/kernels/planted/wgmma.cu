// Products of a warpgroup; with `mended` each kernel is right.
#include "tma.cuh"
#include "wgmma.cuh"

struct Operands {
  alignas(1024) float a[64][32];
  alignas(1024) float b[128][32];
  Barrier barrier;
};

// Where the swizzle of 128 bytes puts an element of a row of 32.
__device__ __forceinline__ int place(int row, int k) { return (k / 4 ^ row % 8) * 4 + k % 4; }

// Fill a with 1 and b with column + 1 (by all 128 threads), as wgmma reads them.
__device__ __forceinline__ Operands& filled() {
  Operands& s = block_shared<Operands>();
  for (int i = threadIdx.x; i < 64 * 32; i += 128) s.a[i / 32][i % 32] = 1;  // FILL A
  for (int i = threadIdx.x; i < 128 * 32; i += 128) s.b[i / 32][i % 32] = i / 32 + 1;
  return s;
}

__device__ __forceinline__ void store(float* y, const float (&d)[32]) {
  const int warp = threadIdx.x / 32, g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
  for (int i = 0; i < 32; ++i) y[(16 * warp + g + i % 4 / 2 * 8) * 64 + i / 4 * 8 + 2 * t + i % 2] = d[i];
}

// y (64 x N) = a (64 x 32) b^T (N x 32) from memory, by TMA.
template <class TYPE, int N, int SWIZZLE>
__device__ __forceinline__ void product(const TensorMap& a, const TensorMap& b, float* y, int bytes) {
  Operands& s = block_shared<Operands>();
  if (threadIdx.x == 0) {
    init_barrier(s.barrier, 1);
    fence_barrier_init();
    arrive_expect(s.barrier, bytes);
    load_box(s.a, a, 0, 0, s.barrier);
    load_box(s.b, b, 0, 0, s.barrier);
  }
  __syncthreads();
  wait(s.barrier, 0);
  const uint64_t of_a = matrix_descriptor<SWIZZLE>(s.a), of_b = matrix_descriptor<SWIZZLE>(s.b);
  float d[N / 2] = {};
  begin_products();
  for (int k = 0; k < SWIZZLE; k += 32) multiply_group(TYPE(), d, further(of_a, k), further(of_b, k), k > 0);
  commit_products();
  wait_products<0>(d);
  const int warp = threadIdx.x / 32, g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
  for (int i = 0; i < N / 2; ++i) y[(16 * warp + g + i % 4 / 2 * 8) * N + i / 4 * 8 + 2 * t + i % 2] = d[i];
}
__global__ void product_tf32(const __grid_constant__ TensorMap a, const __grid_constant__ TensorMap b, float* y) {
  product<Tf32, 128, 128>(a, b, y, 64 * 128 + 128 * 128);
}
__global__ void product_bf16(const __grid_constant__ TensorMap a, const __grid_constant__ TensorMap b, float* y) {
  product<Bf16, 64, 64>(a, b, y, 64 * 64 + 64 * 64);
}
__global__ void product_fp16(const __grid_constant__ TensorMap a, const __grid_constant__ TensorMap b, float* y) {
  product<Fp16, 64, 32>(a, b, y, 64 * 32 + 64 * 32);
}

__global__ void unfenced_operands(float* y, int mended) {
  Operands& s = filled();
  if (mended) fence_async_proxy();
  __syncthreads();
  float d[32] = {};
  begin_products();
  multiply_group(Tf32(), d, matrix_descriptor<128>(s.a), matrix_descriptor<128>(s.b), true);  // UNFENCED
  commit_products();
  wait_products<0>(d);
  store(y, d);
}

__global__ void operands_not_there(const float* x, float* y, int mended) {
  Operands& s = filled();
  if (threadIdx.x == 0) {
    init_barrier(s.barrier, 1);
    fence_barrier_init();
  }
  fence_async_proxy();
  __syncthreads();
  if (threadIdx.x == 0) {
    arrive_expect(s.barrier, 64 * 128);
    load_bytes(s.a, x, 64 * 128, s.barrier);  // OPERAND LOAD
  }
  if (mended) wait(s.barrier, 0);
  __syncthreads();
  float d[32] = {};
  begin_products();
  multiply_group(Tf32(), d, matrix_descriptor<128>(s.a), matrix_descriptor<128>(s.b), true);  // OPERAND USE
  commit_products();
  wait_products<0>(d);
  wait(s.barrier, 0);
  store(y, d);
}

__global__ void overwrites_operands(float* y, int mended) {
  Operands& s = filled();
  fence_async_proxy();
  __syncthreads();
  float d[32] = {};
  begin_products();
  multiply_group(Tf32(), d, matrix_descriptor<128>(s.a), matrix_descriptor<128>(s.b), true);  // READING OPERANDS
  commit_products();
  if (mended) wait_products<0>(d);
  __syncthreads();
  if (threadIdx.x < 32) s.b[7][threadIdx.x] = 0;  // OVERWRITING OPERANDS
  wait_products<0>(d);
  store(y, d);
}

// The barrier comes, but the second group is not waited for.
__global__ void waits_for_the_group_before(float* y, int mended) {
  Operands& s = filled();
  fence_async_proxy();
  __syncthreads();
  float d[32] = {};
  begin_products();
  multiply_group(Tf32(), d, matrix_descriptor<128>(s.a), matrix_descriptor<128>(s.b), true);
  commit_products();
  multiply_group(Tf32(), d, matrix_descriptor<128>(s.a), matrix_descriptor<128>(s.b), true);  // SECOND GROUP
  commit_products();
  if (mended) wait_products<0>(d);
  else wait_products<1>(d);
  store(y, d);  // FIRST ALONE
  wait_products<0>(d);
}

__global__ void without_begin(float* y, int mended) {
  Operands& s = filled();
  fence_async_proxy();
  __syncthreads();
  float d[32] = {};
  if (mended) begin_products();
  multiply_group(Tf32(), d, matrix_descriptor<128>(s.a), matrix_descriptor<128>(s.b), true);  // NO BEGIN
  commit_products();
  wait_products<0>(d);
  store(y, d);
}

__global__ void three_warps(float* y, int mended) {
  Operands& s = filled();
  fence_async_proxy();
  __syncthreads();
  float d[32] = {};
  if (mended || threadIdx.x < 96) {
    begin_products();
    multiply_group(Tf32(), d, matrix_descriptor<128>(s.a), matrix_descriptor<128>(s.b), true);  // THREE WARPS
    commit_products();
    wait_products<0>(d);
  }
  store(y, d);
}

__global__ void operand_in_global_memory(const float* x, float* y, int mended) {
  Operands& s = filled();
  fence_async_proxy();
  __syncthreads();
  float d[32] = {};
  begin_products();
  multiply_group(Tf32(), d, matrix_descriptor<128>(mended ? &s.a[0][0] : x), matrix_descriptor<128>(s.b), true);  // ELSEWHERE
  commit_products();
  wait_products<0>(d);
  store(y, d);
}

// What is no part of block_shared() has no address that the emulator's descriptors could hold.
__global__ void operand_in_a_variable(float* y, int mended) {
  __shared__ __align__(1024) float own[64][32];
  Operands& s = filled();
  for (int i = threadIdx.x; i < 64 * 32; i += 128) own[i / 32][i % 32] = 1;
  fence_async_proxy();
  __syncthreads();
  float d[32] = {};
  begin_products();
  multiply_group(Tf32(), d, matrix_descriptor<128>(mended ? s.a : own), matrix_descriptor<128>(s.b), true);  // VARIABLE
  commit_products();
  wait_products<0>(d);
  store(y, d);
}

// It begins neither at a multiple of eight rows nor within the first.
__global__ void operand_between_patterns(float* y, int mended) {
  Operands& s = filled();
  fence_async_proxy();
  __syncthreads();
  float d[32] = {};
  begin_products();
  multiply_group(Tf32(), d, matrix_descriptor<128>(mended ? s.a[0] : s.a[1]), matrix_descriptor<128>(s.b), true);  // BETWEEN
  commit_products();
  wait_products<0>(d);
  store(y, d);
}

// Beyond the block's own: the second matrix has 128 rows, and its descriptor says more bytes from eight to eight.
__global__ void descriptor_too_wide(float* y, int mended) {
  Operands& s = filled();
  fence_async_proxy();
  __syncthreads();
  float d[32] = {};
  begin_products();
  const uint64_t of_b = matrix_descriptor<128>(s.b);
  multiply_group(Tf32(), d, matrix_descriptor<128>(s.a), mended ? of_b : of_b + (uint64_t(256) << 32), true);  // TOO WIDE
  commit_products();
  wait_products<0>(d);
  store(y, d);
}

// Operands written by threads: swizzled as they are read, or not; numbers alone show it.
__global__ void written_otherwise(const float* a, const float* b, float* y, int mended) {
  Operands& s = block_shared<Operands>();
  for (int i = threadIdx.x; i < 64 * 32; i += 128) {
    const int row = i / 32, k = i % 32;
    s.a[row][mended ? place(row, k) : k] = a[i];
    s.b[row][place(row, k)] = b[i];
  }
  fence_async_proxy();
  __syncthreads();
  float d[32] = {};
  begin_products();
  for (int k = 0; k < 128; k += 32)
    multiply_group(Tf32(), d, further(matrix_descriptor<128>(s.a), k), further(matrix_descriptor<128>(s.b), k), true);
  commit_products();
  wait_products<0>(d);
  store(y, d);
}
