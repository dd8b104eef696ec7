// Clusters of two; with `mended` each kernel is right.  A block has 32 threads, and gives y its own part.
#include "cluster.cuh"
#include "tma.cuh"

struct Meeting {
  int of[32];
  Barrier barrier;
};

struct Halves {
  alignas(1024) float of[2][8][32];
  Barrier barrier, other;
};

// Each block writes, and reads what the other has written.
__global__ void __cluster_dims__(2, 1, 1) reads_a_peer(int* y, int mended) {
  Meeting& s = block_shared<Meeting>();
  const int t = threadIdx.x, rank = cluster_rank();
  cluster_sync();
  s.of[t] = 100 * rank + t;  // OF A BLOCK
  if (mended) cluster_sync();
  else __syncthreads();
  y[blockIdx.x * 32 + t] = load_from_block(&s.of[31 - t], 1 - rank);  // BY ITS PEER
  cluster_sync();
}

// What is written between arriving and waiting is not covered.
__global__ void __cluster_dims__(2, 1, 1) arrives_before_it_writes(int* y, int mended) {
  Meeting& s = block_shared<Meeting>();
  const int t = threadIdx.x;
  cluster_sync();
  if (!mended) cluster_arrive();
  store_to_block(&s.of[t], 1 - cluster_rank(), t);  // NOT COVERED
  if (mended) cluster_arrive();
  cluster_wait();
  y[blockIdx.x * 32 + t] = s.of[31 - t];  // NOT SEEN
}

// The other block may not have begun.
__global__ void __cluster_dims__(2, 1, 1) begins_alone(int* y, int mended) {
  Meeting& s = block_shared<Meeting>();
  const int t = threadIdx.x;
  if (mended) cluster_sync();
  store_to_block(&s.of[t], 1 - cluster_rank(), t);  // TOO EARLY
  cluster_sync();
  y[blockIdx.x * 32 + t] = s.of[31 - t];
}

// The other block may have ended.
__global__ void __cluster_dims__(2, 1, 1) ends_alone(int* y, int mended) {
  Meeting& s = block_shared<Meeting>();
  const int t = threadIdx.x;
  s.of[t] = t;
  cluster_sync();
  y[blockIdx.x * 32 + t] = load_from_block(&s.of[31 - t], 1 - cluster_rank());  // TOO LATE
  if (mended) cluster_sync();
}

__global__ void __cluster_dims__(2, 1, 1) asks_for_a_third(int* y, int mended) {
  Meeting& s = block_shared<Meeting>();
  const int t = threadIdx.x;
  s.of[t] = t;
  cluster_sync();
  y[blockIdx.x * 32 + t] = load_from_block(&s.of[t], mended ? 1 - cluster_rank() : 2);  // A THIRD
  cluster_sync();
}

// One thread of one block waits elsewhere.
__global__ void __cluster_dims__(2, 1, 1) one_stays_away(int* y, int mended) {
  if (threadIdx.x == 7 && cluster_rank() == 1 && !mended) __syncthreads();  // ELSEWHERE
  cluster_sync();  // IN VAIN
  y[blockIdx.x * 32 + threadIdx.x] = 1;
}

__global__ void __cluster_dims__(2, 1, 1) arrives_twice(int* y, int mended) {
  cluster_arrive();
  if (mended) cluster_wait();
  cluster_arrive();  // TWICE
  cluster_wait();
  y[blockIdx.x * 32 + threadIdx.x] = 1;
}

__global__ void __cluster_dims__(2, 1, 1) waits_without_arriving(int* y, int mended) {
  if (mended) cluster_arrive();
  cluster_wait();  // UNARRIVED
  y[blockIdx.x * 32 + threadIdx.x] = 1;
}

// Each writes to the other, and arrives there; a wait that looks at the own block alone does not see what was written.
__global__ void __cluster_dims__(2, 1, 1) sees_its_own_block_alone(int* y, int mended) {
  Meeting& s = block_shared<Meeting>();
  const int t = threadIdx.x, peer = 1 - cluster_rank();
  if (t == 0) {
    init_barrier(s.barrier, 32);
    fence_barrier_init();
  }
  cluster_sync();
  store_to_block(&s.of[t], peer, t);  // FROM A PEER
  arrive_at_block(s.barrier, peer);
  if (mended) wait_cluster(s.barrier, 0);
  else wait(s.barrier, 0);
  y[blockIdx.x * 32 + t] = s.of[31 - t];  // SEEN TOO LITTLE
}

// An arrival at a block that need not wait for it.
__global__ void __cluster_dims__(2, 1, 1) arrives_at_the_departed(int* y, int mended) {
  Meeting& s = block_shared<Meeting>();
  const int rank = cluster_rank();
  if (threadIdx.x == 0) {
    init_barrier(s.barrier, 32);
    fence_barrier_init();
  }
  cluster_sync();
  if (rank == 1) arrive_at_block(s.barrier, 0);  // LAST ARRIVAL
  else if (mended) wait(s.barrier, 0);
  y[blockIdx.x * 32 + threadIdx.x] = 1;
}

// The cluster's barrier orders global memory, too.
__global__ void __cluster_dims__(2, 1, 1) through_global_memory(int* y, int mended) {
  const int place = blockIdx.x * 32 + threadIdx.x;
  y[place] = threadIdx.x;  // INTO GLOBAL MEMORY
  if (mended) cluster_sync();
  else __syncthreads();
  const int read = y[place ^ 32 ^ 31];  // OUT OF GLOBAL MEMORY
  cluster_sync();
  y[place] = read;
}

// What another block has written here, a bulk store sees only after a fence.
__global__ void __cluster_dims__(2, 1, 1) stores_what_a_peer_wrote(int* y, int mended) {
  Halves& s = block_shared<Halves>();
  int* of = reinterpret_cast<int*>(s.of);
  const int t = threadIdx.x;
  cluster_sync();
  store_to_block(&of[31 - t], 1 - cluster_rank(), t);  // WRITTEN BY A PEER
  cluster_sync();
  if (t == 0) {
    if (mended) fence_async_proxy();
    store_bytes(y + blockIdx.x * 32, of, 128);  // STORED UNFENCED
    commit_stores();
    wait_stores<0>();
  }
}

// ---- multicast: each block fetches four rows of eight, for both

__device__ __forceinline__ Halves& ready(int arrivals_at_other = 2) {
  Halves& s = block_shared<Halves>();
  if (threadIdx.x == 0) {
    init_barrier(s.barrier, 1);
    init_barrier(s.other, arrivals_at_other);
    fence_barrier_init();
  }
  return s;
}

__global__ void __cluster_dims__(2, 1, 1) fetches_half(const __grid_constant__ TensorMap x, float* y, int mended) {
  Halves& s = ready();
  const int t = threadIdx.x, rank = cluster_rank();
  cluster_sync();
  if (t == 0) {
    arrive_expect(s.barrier, mended ? 1024 : 512);
    load_box_to_blocks(s.of[0][4 * rank], x, 0, 4 * rank, 0, s.barrier, 3);  // EACH A HALF
  }
  wait(s.barrier, 0);
  for (int i = 0; i < 8; ++i) y[(blockIdx.x * 8 + i) * 32 + t] = s.of[0][i][t];  // HALF
  cluster_sync();
}

__global__ void __cluster_dims__(2, 1, 1) fetches_before_the_other_is_ready(const __grid_constant__ TensorMap x, float* y,
                                                                            int mended) {
  Halves& s = ready();
  const int t = threadIdx.x, rank = cluster_rank();
  if (mended) cluster_sync();
  else __syncthreads();
  if (t == 0) {
    arrive_expect(s.barrier, 1024);
    load_box_to_blocks(s.of[0][4 * rank], x, 0, 4 * rank, 0, s.barrier, 3);  // NOT READY
  }
  wait(s.barrier, 0);
  for (int i = 0; i < 8; ++i) y[(blockIdx.x * 8 + i) * 32 + t] = s.of[0][i][t];
  cluster_sync();
}

// Twice: the second time over what the other block may still read.
__global__ void __cluster_dims__(2, 1, 1) fetches_over_a_reader(const __grid_constant__ TensorMap x, float* y, int mended) {
  Halves& s = ready();
  const int t = threadIdx.x, rank = cluster_rank();
  cluster_sync();
  float sum[8] = {};
  for (int round = 0; round < 2; ++round) {
    if (t == 0) {
      if (round && mended) wait_cluster(s.other, 0);
      arrive_expect(s.barrier, 1024);
      load_box_to_blocks(s.of[0][4 * rank], x, 0, 4 * rank, 0, s.barrier, 3);  // NEXT ROUND
    }
    wait(s.barrier, round);
    for (int i = 0; i < 8; ++i) sum[i] += s.of[0][i][t];
    __syncwarp();
    if (t < 2) arrive_at_block(s.other, t);
  }
  for (int i = 0; i < 8; ++i) y[(blockIdx.x * 8 + i) * 32 + t] = sum[i];
  cluster_sync();
}

__global__ void __cluster_dims__(2, 1, 1) fetches_for_the_departed(const __grid_constant__ TensorMap x, float* y, int mended) {
  Halves& s = ready();
  const int t = threadIdx.x, rank = cluster_rank();
  cluster_sync();
  if (t == 0) arrive_expect(s.barrier, 512);
  if (t == 0 && rank == 0) load_box_to_blocks(s.of[0], x, 0, 0, 0, s.barrier, 3);  // TO ONE WHO ENDS
  if (rank == 0 || mended) wait(s.barrier, 0);
  y[blockIdx.x * 32 + t] = rank == 0 || mended ? s.of[0][0][t] : 0;
}

__global__ void __cluster_dims__(2, 1, 1) fetches_for_a_third(const __grid_constant__ TensorMap x, float* y, int mended) {
  Halves& s = ready();
  const int t = threadIdx.x, rank = cluster_rank();
  cluster_sync();
  if (t == 0) arrive_expect(s.barrier, 512);
  if (t == 0 && rank == 0) load_box_to_blocks(s.of[0], x, 0, 0, 0, s.barrier, mended ? 3 : 6);  // TO A THIRD
  wait(s.barrier, 0);
  y[blockIdx.x * 32 + t] = s.of[0][0][t];
  cluster_sync();
}

// ---- what is right

// Who has returned is not waited for.  Grids of two dimensions, clusters too: each block gives its rank and its size, and
// the x, y of the block of rank 0, which it asks from there.
__global__ void __cluster_dims__(2, 2, 1) ranks(int* y) {
  struct Shared {
    int x, y;
    unsigned long long both;
  };
  Shared& s = block_shared<Shared>();
  if (threadIdx.x == 0) {
    s.x = blockIdx.x;
    s.y = blockIdx.y;
    s.both = (unsigned long long)blockIdx.x << 32 | blockIdx.y;
  }
  if (threadIdx.x == 31) return;
  cluster_sync();
  if (threadIdx.x == 0) {
    int* of = y + 5 * (blockIdx.y * gridDim.x + blockIdx.x);
    of[0] = cluster_rank();
    of[1] = cluster_size();
    of[2] = load_from_block(&s.x, 0);
    of[3] = load_from_block(&s.y, 0);
    of[4] = load_from_block(&s.both, 3) == ((unsigned long long)(of[2] + 1) << 32 | (of[3] + 1));
  }
  cluster_sync();
}

// The sum over a cluster of SIZE blocks: each gives its number to all others, and adds what it was given in order.
template <int SIZE>
__global__ void __cluster_dims__(SIZE, 1, 1) sums(const float* x, float* y) {
  struct Shared {
    float of[SIZE];
  };
  Shared& s = block_shared<Shared>();
  const int t = threadIdx.x, rank = cluster_rank();
  cluster_sync();
  if (t < SIZE) store_to_block(&s.of[rank], t, x[blockIdx.x]);
  cluster_sync();
  float sum = 0;
  for (int i = 0; i < SIZE; ++i) sum += s.of[i];
  if (t == 0) y[blockIdx.x] = sum;
}

// Without __cluster_dims__ a block is a cluster of its own.
__global__ void alone(int* y) {
  Meeting& s = block_shared<Meeting>();
  s.of[threadIdx.x] = threadIdx.x;
  cluster_sync();
  y[threadIdx.x] = load_from_block(&s.of[31 - threadIdx.x], cluster_rank()) + cluster_size();
}

// The emulator has such a variable once.
__global__ void __cluster_dims__(2, 1, 1) own_variable(int* y) {
  __shared__ int of[32];
  of[threadIdx.x] = threadIdx.x;
  __syncthreads();
  y[threadIdx.x] = of[31 - threadIdx.x];
}
