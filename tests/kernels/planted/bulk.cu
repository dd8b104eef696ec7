// Bulk copies; with `mended` each kernel is right.
#include "tma.cuh"

struct Boxes {
  alignas(1024) float of[2][8][32];
  Barrier barrier, other;
};

__device__ __forceinline__ Boxes& ready() {
  Boxes& s = block_shared<Boxes>();
  if (threadIdx.x == 0) {
    init_barrier(s.barrier, 1);
    init_barrier(s.other, 1);
    fence_barrier_init();
  }
  __syncthreads();
  return s;
}

__global__ void reads_before_it_waits(const float* x, float* y, int mended) {
  Boxes& s = ready();
  if (threadIdx.x == 0) {
    arrive_expect(s.barrier, 1024);
    load_bytes(s.of[0], x, 1024, s.barrier);  // LOAD
  }
  if (mended) wait(s.barrier, 0);
  __syncthreads();
  y[threadIdx.x] = s.of[0][0][threadIdx.x];  // UNDELIVERED
  wait(s.barrier, 0);
}

// The other thread has waited, this one has not; it only met the other in a shuffle, which orders nothing.
__global__ void another_has_waited(const float* x, float* y, int mended) {
  Boxes& s = ready();
  if (threadIdx.x == 0) {
    arrive_expect(s.barrier, 128);
    load_bytes(s.of[0], x, 128, s.barrier);  // LOAD OF ANOTHER
  }
  if (threadIdx.x == 0 || mended) wait(s.barrier, 0);
  __shfl_sync(ALL_LANES, 0, 0);
  y[threadIdx.x] = s.of[0][0][threadIdx.x];  // READ OF ANOTHER
}

__global__ void expects_too_much(const float* x, float* y, int mended) {
  Boxes& s = ready();
  if (threadIdx.x == 0) {
    arrive_expect(s.barrier, mended ? 128 : 144);
    load_bytes(s.of[0], x, 128, s.barrier);
  }
  wait(s.barrier, 0);  // MORE
  y[threadIdx.x] = s.of[0][0][threadIdx.x];
}

__global__ void expects_too_little(const float* x, float* y, int mended) {
  Boxes& s = ready();
  if (threadIdx.x == 0) {
    arrive_expect(s.barrier, mended ? 128 : 64);
    load_bytes(s.of[0], x, 128, s.barrier);
  }
  wait(s.barrier, 0);  // LESS
  y[threadIdx.x] = s.of[0][0][threadIdx.x];
}

__global__ void unannounced(const float* x, float* y, int mended) {
  Boxes& s = block_shared<Boxes>();
  if (threadIdx.x == 0) {
    init_barrier(s.barrier, 1);
    if (mended) fence_barrier_init();
    arrive_expect(s.barrier, 128);
    load_bytes(s.of[0], x, 128, s.barrier);  // UNANNOUNCED
  }
  __syncthreads();
  wait(s.barrier, 0);
  y[threadIdx.x] = s.of[0][0][threadIdx.x];
}

// Two rounds; the parity stays that of the first.
__global__ void same_parity(const float* x, float* y, int mended) {
  Boxes& s = ready();
  float sum = 0;
  for (int round = 0; round < 2; ++round) {
    if (threadIdx.x == 0) {
      arrive_expect(s.barrier, 128);
      load_bytes(s.of[round], x + 32 * round, 128, s.barrier);  // ROUND
    }
    wait(s.barrier, mended ? round : 0);
    sum += s.of[round][0][threadIdx.x];  // STALE
    __syncwarp();
  }
  wait(s.barrier, 1);
  y[threadIdx.x] = sum;
}

// The next copy begins while others may still read what the last one brought.
__global__ void loads_over_readers(const float* x, float* y, int mended) {
  Boxes& s = ready();
  if (threadIdx.x == 0) {
    arrive_expect(s.barrier, 128);
    load_bytes(s.of[0], x, 128, s.barrier);
  }
  wait(s.barrier, 0);
  const float first = s.of[0][0][threadIdx.x];  // STILL READING
  if (mended) __syncwarp();
  if (threadIdx.x == 0) arrive_expect(s.barrier, 128);
  if (threadIdx.x % 31 == 0) load_bytes(&s.of[0][0][threadIdx.x / 31 * 16], x + 32 + threadIdx.x / 31 * 16, 64, s.barrier);  // NEXT LOAD
  wait(s.barrier, 1);
  y[threadIdx.x] = first + s.of[0][0][threadIdx.x];
}

__global__ void load_never_waited(const float* x, float* y, int mended) {
  Boxes& s = ready();
  if (threadIdx.x == 0) {
    arrive_expect(s.barrier, 128);
    load_bytes(s.of[0], x, 128, s.barrier);  // LOST LOAD
  }
  y[threadIdx.x] = 1;
  if (mended) wait(s.barrier, 0);
}

__global__ void misaligned_load(const float* x, float* y, int mended) {
  Boxes& s = ready();
  if (threadIdx.x == 0) {
    arrive_expect(s.barrier, 128);
    load_bytes(mended ? &s.of[0][0][0] : &s.of[0][0][1], x, 128, s.barrier);  // CROOKED LOAD
  }
  wait(s.barrier, 0);
  y[threadIdx.x] = s.of[0][0][threadIdx.x];
}

__global__ void odd_bytes(const float* x, float* y, int mended) {
  Boxes& s = ready();
  if (threadIdx.x == 0) {
    arrive_expect(s.barrier, mended ? 128 : 120);
    load_bytes(s.of[0], x, mended ? 128 : 120, s.barrier);  // ODD
  }
  wait(s.barrier, 0);
  y[threadIdx.x] = s.of[0][0][threadIdx.x];
}

// A copy overwrites what threads have written there.
__global__ void loads_over_writers(const float* x, float* y, int mended) {
  Boxes& s = ready();
  s.of[0][0][threadIdx.x] = threadIdx.x;  // UNDER THE COPY
  if (mended) fence_async_proxy();
  __syncwarp();
  if (threadIdx.x == 0) {
    arrive_expect(s.barrier, 128);
    load_bytes(s.of[0], x, 128, s.barrier);  // OVER WRITERS
  }
  wait(s.barrier, 0);
  y[threadIdx.x] = s.of[0][0][threadIdx.x];
}

// ---- stores

__global__ void stores_without_a_fence(float* y, int mended) {
  Boxes& s = block_shared<Boxes>();
  s.of[0][0][threadIdx.x] = threadIdx.x;  // WRITTEN
  if (mended) fence_async_proxy();
  __syncwarp();
  if (threadIdx.x == 0) {
    store_bytes(y, s.of[0], 128);  // STORE
    commit_stores();
    wait_stores<0>();
  }
}

__global__ void fences_too_early(float* y, int mended) {
  Boxes& s = block_shared<Boxes>();
  if (!mended) fence_async_proxy();
  s.of[0][0][threadIdx.x] = threadIdx.x;  // WRITTEN AFTER
  if (mended) fence_async_proxy();
  __syncthreads();
  if (threadIdx.x == 0) {
    store_bytes(y, s.of[0], 128);  // STORE BEFORE
    commit_stores();
    wait_stores<0>();
  }
}

// Who begins the store may fence for all, once he has synchronised with them.
__global__ void one_fences_for_all(float* y, int mended) {
  Boxes& s = block_shared<Boxes>();
  s.of[0][0][threadIdx.x] = threadIdx.x;
  __syncthreads();
  if (threadIdx.x == 0) {
    if (mended) fence_async_proxy();
    store_bytes(y, s.of[0], 128);  // FOR ALL
    commit_stores();
    wait_stores<0>();
  }
}

__global__ void writes_while_storing(float* y, int mended) {
  Boxes& s = block_shared<Boxes>();
  s.of[0][0][threadIdx.x] = threadIdx.x;
  fence_async_proxy();
  __syncthreads();
  if (threadIdx.x == 0) {
    store_bytes(y, s.of[0], 128);  // STORING
    commit_stores();
    if (mended) wait_stores<0>();
  }
  __syncthreads();
  s.of[0][0][threadIdx.x] = 0;  // WRITING
  if (threadIdx.x == 0) wait_stores<0>();
}

__global__ void store_never_waited(float* y, int mended) {
  Boxes& s = block_shared<Boxes>();
  s.of[0][0][threadIdx.x] = threadIdx.x;
  fence_async_proxy();
  __syncthreads();
  if (threadIdx.x == 0) {
    store_bytes(y, s.of[0], 128);  // LOST STORE
    commit_stores();
    if (mended) wait_stores<0>();
  }
}

// ---- boxes of tensors

// The box of 8 x 32 floats that begins at (row, column), as it lies in shared memory; and back to y.
__global__ void boxes(const __grid_constant__ TensorMap x, const __grid_constant__ TensorMap back, float* raw, int row,
                      int column) {
  Boxes& s = ready();
  if (threadIdx.x == 0) {
    arrive_expect(s.barrier, 1024);
    load_box(s.of[0], x, column, row, s.barrier);
  }
  wait(s.barrier, 0);
  for (int i = 0; i < 8; ++i) raw[32 * i + threadIdx.x] = s.of[0][i][threadIdx.x];
  if (threadIdx.x == 0) {
    store_box(back, column, row, s.of[0]);
    commit_stores();
    wait_stores<0>();
  }
}

// Of a tensor of three dimensions: a box of 2 x 4 x 32.
__global__ void boxes_of_three(const __grid_constant__ TensorMap x, float* raw, int z, int y, int column) {
  Boxes& s = ready();
  if (threadIdx.x == 0) {
    arrive_expect(s.barrier, 1024);
    load_box(s.of[0], x, column, y, z, s.barrier);
  }
  wait(s.barrier, 0);
  for (int i = 0; i < 8; ++i) raw[32 * i + threadIdx.x] = s.of[0][i][threadIdx.x];
}
