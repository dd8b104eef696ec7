// Barriers and warp operations that not everybody reaches; with `mended` each is right.
#include "warp.cuh"

__global__ void returns_early(const int* x, int* y, int n, int mended) {
  __shared__ int box[64];
  if (!mended && threadIdx.x >= n) return;
  box[threadIdx.x] = threadIdx.x < n ? x[threadIdx.x] : 0;
  __syncthreads();  // EARLY
  if (threadIdx.x < n) y[threadIdx.x] = box[n - 1 - threadIdx.x];
}

__global__ void in_a_branch(int* y, int mended) {
  if (mended || threadIdx.x < 40) __syncthreads();  // BRANCH
  y[threadIdx.x] = 1;
}

__global__ void two_barriers(int* y, int mended) {
  if (mended || threadIdx.x < 32) {
    __syncthreads();  // ONE BARRIER
  } else {
    __syncthreads();  // OTHER BARRIER
  }
  y[threadIdx.x] = 1;
}

__global__ void uneven_loop(int* y, int mended) {
  for (int i = 0; i < (mended || threadIdx.x > 0 ? 3 : 2); ++i) __syncthreads();  // LOOP
  y[threadIdx.x] = 1;
}

__global__ void counted(int* y) {
  const int i = threadIdx.x;
  y[3 * i] = __syncthreads_count(i % 3 == 0);
  y[3 * i + 1] = __syncthreads_and(i < 50);
  y[3 * i + 2] = __syncthreads_or(i == 50);
}

__global__ void half_a_warp(int* y, int mended) {
  int sum = threadIdx.x;
  if (mended || threadIdx.x < 16) sum = warp_sum(sum);  // HALF WARP
  y[threadIdx.x] = sum;
}

__global__ void lanes_at_a_barrier(int* y, int mended) {
  if (!mended && threadIdx.x == 7) __syncthreads();  // LANE BARRIER
  else __syncwarp();  // LANE WARP
  if (mended) __syncthreads();
  y[threadIdx.x] = 1;
}

__global__ void not_in_its_mask(int* y, int mended) {
  const unsigned mask = mended ? 0xffffffffu : 0x7fffffffu;
  y[threadIdx.x] = __shfl_sync(mask, static_cast<int>(threadIdx.x), 0);  // MASK
}

__global__ void different_masks(int* y, int mended) {
  const unsigned mask = mended || threadIdx.x < 16 ? 0xffffffffu : 0xffff0001u;
  __syncwarp(mask);  // MASKS
  y[threadIdx.x] = 1;
}

// Block: 20 threads.
__global__ void absent_lane(int* y, int mended) {
  y[threadIdx.x] = __shfl_down_sync(0xffffffffu, static_cast<int>(threadIdx.x), mended ? 1 : 3, 4);
  if (!mended) y[threadIdx.x] = __shfl_sync(0xffffffffu, 1, 25);  // ABSENT
}
__global__ void excluded_lane(int* y, int mended) {
  if (threadIdx.x < 8)
    y[threadIdx.x] = __shfl_sync(0xffu, static_cast<int>(threadIdx.x), mended ? 7 : 8);  // EXCLUDED
}
__global__ void returned_lane(int* y, int mended) {
  if (threadIdx.x == 31 && !mended) return;
  y[threadIdx.x] = __shfl_sync(0xffffffffu, static_cast<int>(threadIdx.x), 31);  // RETURNED
}

// One number per lane and operation: the lanes whose value each lane receives.
__global__ void shuffles(int* y, int width, int by) {
  const int i = threadIdx.x, all = blockDim.x;
  y[i] = __shfl_sync(ALL_LANES, i, by, width);
  y[all + i] = __shfl_up_sync(ALL_LANES, i, by, width);
  y[2 * all + i] = __shfl_down_sync(ALL_LANES, i, by, width);
  y[3 * all + i] = __shfl_xor_sync(ALL_LANES, i, by, width);
}
__global__ void shuffles_of_doubles(double* y) {
  y[threadIdx.x] = __shfl_xor_sync(ALL_LANES, threadIdx.x + 0.125, 3);
}

__global__ void votes(unsigned* y, unsigned below) {
  const int i = threadIdx.x;
  y[i] = __ballot_sync(ALL_LANES, i % 3 == 0);
  y[32 + i] = __any_sync(ALL_LANES, i == 31);
  y[64 + i] = __all_sync(ALL_LANES, i < below);
  unsigned part = 0;
  if (i < 12) part = __ballot_sync(0xfffu, i % 2);
  y[96 + i] = part;
}

__global__ void indices(int* y) {
  const int block = blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z);
  const int thread = threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
  const int all = blockDim.x * blockDim.y * blockDim.z;
  int lane_zero = __shfl_sync(ALL_LANES, thread, 0);
  __syncthreads();
  y[block * all + thread] = block * 10000 + thread * 8 + lane_zero / 32;
}

__global__ void sums(const float* x, float* y) {
  struct Shared {
    WarpValues<float, 1024> values;
  };
  Shared& s = block_shared<Shared>();
  const float sum = block_sum<1024>(x[threadIdx.x], s.values);
  y[threadIdx.x] = sum;
}
