// mbarriers; with `mended` each kernel is right.
#include "mbarrier.cuh"

struct Meeting {
  int of[32];
  Barrier barrier, other;
};

// The first warp writes and arrives; the second reads, with or without waiting.
__global__ void reads_without_waiting(int* y, int mended) {
  Meeting& s = block_shared<Meeting>();
  if (threadIdx.x == 0) {
    init_barrier(s.barrier, 32);
    fence_barrier_init();
  }
  __syncthreads();
  if (threadIdx.x < 32) {
    s.of[threadIdx.x] = threadIdx.x;  // BEFORE ARRIVING
    arrive(s.barrier);
  } else {
    if (mended) wait(s.barrier, 0);
    y[threadIdx.x - 32] = s.of[63 - threadIdx.x];  // AFTER WAITING
  }
}

// What is written after the arrival is not covered by it.
__global__ void arrives_too_early(int* y, int mended) {
  Meeting& s = block_shared<Meeting>();
  if (threadIdx.x == 0) {
    init_barrier(s.barrier, 32);
    fence_barrier_init();
  }
  __syncthreads();
  if (threadIdx.x < 32) {
    if (!mended) arrive(s.barrier);
    s.of[threadIdx.x] = threadIdx.x;  // TOO LATE
    if (mended) arrive(s.barrier);
  } else {
    wait(s.barrier, 0);
    y[threadIdx.x - 32] = s.of[63 - threadIdx.x];  // SEES TOO LITTLE
  }
}

// Seen through a third: the second warp waits for the first, the third for the second.  Then the first writes again,
// after all have read.
__global__ void through_others(int* y, int mended) {
  Meeting& s = block_shared<Meeting>();
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  if (threadIdx.x == 0) {
    init_barrier(s.barrier, 32);
    init_barrier(s.other, mended ? 32 : 1);
    fence_barrier_init();
  }
  __syncthreads();
  if (warp == 0) {
    s.of[lane] = lane;
    arrive(s.barrier);
    wait(s.other, 0);
    s.of[lane] = 0;  // REUSE
  } else {
    wait(s.barrier, 0);
    y[lane] = s.of[31 - lane];  // USE
    if (mended || lane == 0) arrive(s.other);
  }
}

__global__ void too_few_arrivals(int* y, int mended) {
  Meeting& s = block_shared<Meeting>();
  if (threadIdx.x == 0) {
    init_barrier(s.barrier, mended ? 31 : 32);
    fence_barrier_init();
  }
  __syncthreads();
  if (threadIdx.x > 0) arrive(s.barrier);
  wait(s.barrier, 0);  // FOREVER
  y[threadIdx.x] = 1;
}

// Two arrivals, of which each ends a phase: that of parity 0 is the next one again.
__global__ void phase_run_over(int* y, int mended) {
  Meeting& s = block_shared<Meeting>();
  if (threadIdx.x == 0) {
    init_barrier(s.barrier, mended ? 2 : 1);
    fence_barrier_init();
  }
  __syncthreads();
  if (threadIdx.x < 2) arrive(s.barrier);
  __syncwarp();
  wait(s.barrier, 0);  // RUN OVER
  y[threadIdx.x] = 1;
}

__global__ void not_initialised(int* y, int mended) {
  Meeting& s = block_shared<Meeting>();
  if (threadIdx.x == 0 && mended) {
    init_barrier(s.barrier, 32);
    fence_barrier_init();
  }
  __syncthreads();
  arrive(s.barrier);  // UNKNOWN
  wait(s.barrier, 0);
  y[threadIdx.x] = 1;
}

// Of the phase nothing is missing but bytes, and somebody arrives once more.
__global__ void arrives_again(int* y, int mended) {
  Meeting& s = block_shared<Meeting>();
  if (threadIdx.x == 0) {
    init_barrier(s.barrier, 1);
    fence_barrier_init();
    if (mended) arrive(s.barrier);
    else arrive_expect(s.barrier, 16);
    arrive(s.barrier);  // AGAIN
  }
  y[threadIdx.x] = 1;
}
