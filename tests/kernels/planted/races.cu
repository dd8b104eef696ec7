// Kernels with planted races; with `mended` each is right.
#include "common.cuh"

// Block: 64 threads.  Thread 40 hands a value to thread 3, of another warp.
__global__ void shared_between_warps(int* y, int mended) {
  __shared__ int box[64];
  box[threadIdx.x] = 0;
  __syncthreads();
  if (threadIdx.x == 40) box[40] = 7;  // WRITE
  if (mended) __syncthreads();
  if (threadIdx.x == 3) y[0] = box[40];  // READ
}

// Two threads write the same place.
__global__ void shared_writes(int* y, int mended) {
  __shared__ int box[2];
  if (threadIdx.x == 1) box[0] = 1;  // FIRST
  if (mended) __syncthreads();
  if (threadIdx.x == 2) box[0] = 2;  // SECOND
  __syncthreads();
  if (threadIdx.x == 0) y[0] = box[0];
}

// Through a function that is inlined, and a loop: the second round overwrites what the first may still read.
__device__ __forceinline__ void put(int* box, int value) { box[threadIdx.x] = value; }  // PUT
__global__ void two_rounds(int* y, int mended) {
  __shared__ int box[64];
  int sum = 0;
  for (int round = 0; round < 2; ++round) {
    put(box, round + 1);  // CALL
    __syncthreads();
    sum += box[threadIdx.x ^ 32];  // GET
    if (mended) __syncthreads();
  }
  y[threadIdx.x] = sum;
}

// Block: one warp.  Lane 5 hands a value to lane 9.
__global__ void between_lanes(int* y, int mended) {
  __shared__ int box[32];
  box[threadIdx.x] = 0;
  __syncthreads();
  if (threadIdx.x == 5) box[5] = 7;  // LANE WRITE
  if (mended) __syncwarp();
  if (threadIdx.x == 9) y[0] = box[5];  // LANE READ
}

// A shuffle orders nothing.
__global__ void shuffle_is_no_fence(int* y, int mended) {
  __shared__ int box[32];
  box[threadIdx.x] = 0;
  __syncthreads();
  if (threadIdx.x == 5) box[5] = 7;
  __shfl_sync(0xffffffffu, 1, 0);
  if (mended) __syncwarp();
  if (threadIdx.x == 9) y[0] = box[5];
}

// The two halves of a warp hand values over by themselves; then lane 20 reads what lane 3 wrote.
__global__ void halves(int* y, int mended) {
  __shared__ int box[32];
  const unsigned half = threadIdx.x < 16 ? 0x0000ffffu : 0xffff0000u;
  box[threadIdx.x] = threadIdx.x;
  __syncwarp(half);
  y[threadIdx.x] = box[threadIdx.x ^ 1];  // within a half: ordered
  if (mended) __syncwarp();
  if (threadIdx.x == 20) y[20] = box[3];  // HALVES
}

// Lane 0 learns of lane 31 through lane 16: order is passed on.
__global__ void through_a_third(int* y, int mended) {
  __shared__ int box[32];
  if (threadIdx.x == 31) box[31] = 5;
  if (threadIdx.x >= 16) __syncwarp(0xffff0000u);
  if (threadIdx.x <= 16 && mended) __syncwarp(0x0001ffffu);
  if (threadIdx.x == 0) y[0] = box[31];
}

// Lanes that have met often and lanes that have not read the same place; the full warp meets before it is written.
__global__ void uneven_times(int* y, int mended) {
  __shared__ int box[1];
  if (threadIdx.x == 0) box[0] = 1;
  __syncthreads();
  if (threadIdx.x < 16)
    for (int i = 0; i < 5; ++i) __syncwarp(0x0000ffffu);
  int got = box[0];
  if (mended) __syncwarp();
  if (threadIdx.x == 20) box[0] = 2;
  __syncthreads();
  y[threadIdx.x] = got + box[0];
}

// Each block writes its own element; without `mended` the last block also writes the first one's.
__global__ void between_blocks(int* y, int mended) {
  if (threadIdx.x == 0) y[blockIdx.x] = blockIdx.x;  // OWN
  if (threadIdx.x == 1 && blockIdx.x == 2 && !mended) y[0] = 9;  // FOREIGN
}

// All blocks read x[3] and one writes it.
__global__ void many_read_one_writes(int* x, int* y, int mended) {
  y[blockIdx.x] = x[3];  // MANY
  if (blockIdx.x == 2 && !mended) x[3] = 1;  // ONE
}

// Blocks write neighbouring elements, and read what another block wrote.
__global__ void reads_a_neighbour(int* y, int mended) {
  y[2 * blockIdx.x] = 1;  // NEIGHBOUR WRITE
  y[2 * blockIdx.x + 1] = mended ? 1 : y[2 * (blockIdx.x ^ 1)];  // NEIGHBOUR READ
}

// Every thread of every block adds to the same number.
__global__ void all_atomic(int* y) { atomicAdd(&y[0], 1); }

// Thread 33 adds atomically, thread 0 reads plainly.
__global__ void atomic_and_plain(int* y, int mended) {
  __shared__ int count[1];
  if (threadIdx.x == 0) count[0] = 0;
  __syncthreads();
  if (threadIdx.x == 33) atomicAdd(&count[0], 2);  // ATOMIC
  if (mended) __syncthreads();
  if (threadIdx.x == 0) y[0] = count[0];  // PLAIN
}

// Every thread adds, then reads, with nothing between: thread 40's addition is not the last one.
__global__ void reads_after_adding(int* y, int mended) {
  __shared__ int count[1];
  if (threadIdx.x == 0) count[0] = 0;
  __syncthreads();
  atomicAdd(&count[0], 1);
  if (mended) __syncthreads();
  y[threadIdx.x] = count[0];
}

// The same between blocks.
__global__ void reads_after_adding_in_blocks(int* y, int* z, int mended) {
  atomicAdd(&y[0], 1);
  z[blockIdx.x] = mended ? 1 : y[0];
}

// Bytes and pairs of bytes in one word, each written by another thread.
__global__ void neighbouring_bytes(unsigned char* y) {
  __shared__ unsigned char box[64];
  __shared__ unsigned short pairs[64];
  box[threadIdx.x] = threadIdx.x;
  pairs[threadIdx.x] = threadIdx.x;
  __syncthreads();
  y[threadIdx.x] = box[63 - threadIdx.x] + pairs[63 - threadIdx.x];
}

// The same in an array of ints, seen as bytes: no two threads touch the same byte, unless `mended` is missing.
__global__ void bytes_of_ints(int* y, int mended) {
  unsigned char* bytes = reinterpret_cast<unsigned char*>(y);
  bytes[threadIdx.x] = threadIdx.x;
  if (threadIdx.x == 9 && !mended) bytes[10] = 1;  // BYTE
}

// 2, 8 and 16 bytes at once, side by side.
__global__ void wide_neighbours(short* two, double* eight, float4* sixteen) {
  two[threadIdx.x] = threadIdx.x;
  eight[threadIdx.x] = threadIdx.x;
  const float own = threadIdx.x;
  sixteen[threadIdx.x] = make_float4(own, own + 0.25f, own + 0.5f, own + 0.75f);
}

// A 16-byte store meets a 4-byte one.
__global__ void wide_and_narrow(float4* y, int mended) {
  if (threadIdx.x == 0) y[0] = make_float4(1, 2, 3, 4);  // WIDE
  if (threadIdx.x == 1) reinterpret_cast<float*>(y)[mended ? 4 : 2] = 9;  // NARROW
}
