// Without a race, but with a result that depends on the order of threads; with `mended` it does not.
#include "common.cuh"

// Rounding makes a sum depend on the order of its terms.  Integers do not round.
__global__ void sums(const float* x, float* y, int mended) {
  atomicAdd(&y[1], mended ? rintf(x[threadIdx.x]) : x[threadIdx.x]);
}

// The places of a list, in the order in which threads ask for them.
__global__ void collects(const float* x, int* list, int* length, int mended) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (x[i] > 0) {
    if (mended) {
      atomicAdd(&length[0], 1);
      list[i] = i;
    } else {
      list[atomicAdd(&length[0], 1)] = i;
    }
  }
}

// Which block comes last, is seen by nobody but itself.
__global__ void last_block(int* ticket, int* y, int mended) {
  const int mine = atomicAdd(&ticket[0], 1);
  if (!mended && mine == gridDim.x - 1) y[0] = blockIdx.x;
  if (mended && mine == gridDim.x - 1) y[0] = mine;
}

// Two faults at once.
__global__ void races_backward(int* y) {
  if (threadIdx.x == 0) y[0] = y[1];
  if (threadIdx.x == 32) y[1] = 5;
}
