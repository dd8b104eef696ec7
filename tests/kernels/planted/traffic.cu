// Kernels whose traffic is counted by hand in test_emulator.py.
#include "async.cuh"
#include "vector.cuh"

__global__ void copies(const float* x, float* y, int n) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n) y[i] = x[i];
}
__global__ void copies_vectors(const double* x, double* y) {
  const int i = 2 * threadIdx.x;
  store_vector(&y[i], load_vector(&x[i]));
}
// Every thread reads the whole of x, and adds to its own element of y three times.
__global__ void rereads(const unsigned char* x, int* y, int n) {
  for (int i = 0; i < n; ++i) {
    y[threadIdx.x] += x[i];
    __syncthreads();
  }
}
__global__ void counts(const int* labels, unsigned* bins) { atomicAdd(&bins[labels[threadIdx.x]], 1u); }
__global__ void through_shared(const float* x, float* y) {
  struct Shared {
    float of[64];
  };
  Shared& s = block_shared<Shared>();
  s.of[threadIdx.x] = x[threadIdx.x];
  __syncthreads();
  y[threadIdx.x] = s.of[threadIdx.x] + s.of[63 - threadIdx.x];
  __syncthreads();
}
__global__ void through_copies(const float* x, float* y) {
  struct Shared {
    alignas(16) float of[64];
  };
  Shared& s = block_shared<Shared>();
  copy_async<16>(&s.of[4 * threadIdx.x], &x[4 * threadIdx.x], threadIdx.x < 12);
  commit_copies();
  wait_copies<0>();
  y[threadIdx.x] = s.of[4 * threadIdx.x];
}
