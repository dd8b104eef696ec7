// Asynchronous copies; with `mended` each kernel is right.
#include "async.cuh"

struct Box {
  alignas(16) float of[128];
};

// Each thread reads what it copied itself, without or with waiting.
__global__ void reads_too_early(const float* x, float* y, int mended) {
  Box& s = block_shared<Box>();
  copy_async<4>(&s.of[threadIdx.x], &x[threadIdx.x], true);  // COPY
  commit_copies();
  if (mended) wait_copies<0>();
  y[threadIdx.x] = s.of[threadIdx.x];  // EARLY
  wait_copies<0>();
}

// It has waited, but for the group before.
__global__ void waits_for_the_other(const float* x, float* y, int mended) {
  Box& s = block_shared<Box>();
  copy_async<4>(&s.of[threadIdx.x], &x[threadIdx.x], true);
  commit_copies();
  copy_async<4>(&s.of[64 + threadIdx.x], &x[64 + threadIdx.x], true);  // SECOND COPY
  commit_copies();
  wait_copies<1>();
  y[threadIdx.x] = s.of[threadIdx.x];
  if (mended) wait_copies<0>();
  y[64 + threadIdx.x] = s.of[64 + threadIdx.x];  // SECOND READ
  wait_copies<0>();
}

// Each thread has waited for its own copies; what another one copied needs a barrier.
__global__ void no_barrier(const float* x, float* y, int mended) {
  Box& s = block_shared<Box>();
  copy_async<16>(&s.of[4 * threadIdx.x], &x[4 * threadIdx.x], true);  // OWN COPY
  commit_copies();
  wait_copies<0>();
  if (mended) __syncthreads();
  y[threadIdx.x] = s.of[127 - threadIdx.x];  // FOREIGN
}

__global__ void never_waits(const float* x, float* y, int mended) {
  Box& s = block_shared<Box>();
  copy_async<8>(&s.of[2 * threadIdx.x], &x[2 * threadIdx.x], true);  // LOST
  commit_copies();
  y[threadIdx.x] = 1;
  if (mended) wait_copies<0>();
  commit_copies();  // an empty group is nobody's loss
}

// The next tile is copied into a buffer that others may still read.
__global__ void overwrites(const float* x, float* y, int mended) {
  Box& s = block_shared<Box>();
  const int other = 63 - threadIdx.x;
  copy_async<4>(&s.of[threadIdx.x], &x[threadIdx.x], true);
  commit_copies();
  wait_copies<0>();
  __syncthreads();
  const float first = s.of[other];  // OLD
  if (mended) __syncthreads();
  copy_async<4>(&s.of[threadIdx.x], &x[64 + threadIdx.x], true);  // NEW
  commit_copies();
  wait_copies<0>();
  __syncthreads();
  y[threadIdx.x] = first + s.of[other];
}

// Another thread clears the destination while the copy is under way.
__global__ void clears(const float* x, float* y, int mended) {
  Box& s = block_shared<Box>();
  if (threadIdx.x == 0) copy_async<4>(&s.of[0], &x[0], true);  // INTO
  commit_copies();
  __syncthreads();
  if (threadIdx.x == 40) s.of[mended ? 1 : 0] = 0;  // CLEAR
  __syncthreads();
  wait_copies<0>();
  __syncthreads();
  y[threadIdx.x] = s.of[0];
}

// Where nothing is to be copied, zeros arrive.
__global__ void edges(const float* x, float* y, int n) {
  Box& s = block_shared<Box>();
  copy_async<16>(&s.of[4 * threadIdx.x], &x[4 * threadIdx.x], 4 * threadIdx.x < n);
  commit_copies();
  wait_copies<0>();
  __syncthreads();
  for (int e = 0; e < 4; ++e) y[threadIdx.x + 32 * e] = s.of[threadIdx.x + 32 * e];
}

__global__ void misaligned_copy(const float* x, float* y, int mended) {
  Box& s = block_shared<Box>();
  copy_async<16>(&s.of[4 * threadIdx.x], &x[4 * threadIdx.x + (mended ? 0 : 2)], true);  // CROOKED
  commit_copies();
  wait_copies<0>();
  y[threadIdx.x] = s.of[4 * threadIdx.x];
}

// In a `__shared__` variable.
__global__ void into_a_variable(const float* x, float* y, int mended) {
  __shared__ float box[64];
  copy_async<4>(&box[threadIdx.x], &x[threadIdx.x], true);
  commit_copies();
  if (mended) wait_copies<0>();
  y[threadIdx.x] = box[threadIdx.x];  // VARIABLE
  wait_copies<0>();
}

__global__ void into_global_memory(const float* x, float* y, int mended) {
  Box& s = block_shared<Box>();
  copy_async<4>(mended ? &s.of[threadIdx.x] : &y[threadIdx.x], &x[threadIdx.x], true);  // GLOBAL
  commit_copies();
  wait_copies<0>();
  y[threadIdx.x] = s.of[threadIdx.x];
}
