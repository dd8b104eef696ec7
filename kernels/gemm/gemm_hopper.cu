// General matrix multiplication on Hopper (sm_90a): y = epilogue(a b^T + bias), float32 rounded to tf32; v12, v13 and v16
// also bf16 and fp16 as they are stored, with float32 sums and y rounded once.
//
//   M N K     sizes: a is (M, K), b is (N, K), y is (M, N)
//   batch     that many independent products; a_many, b_many: whether each has an a, a b, of its own
//   epilogue  what follows the bias: activation, dropout, the slope of another activation (epilogue.cuh)
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
//   v12_wgmma_cluster  two blocks, one below the other, are a cluster: their 256 columns of b are the same, each block
//                 fetches half of them, and the copy lands in both.  A stage is empty when both have multiplied it.
//   v13_wgmma_persistent  as many clusters as fit on the GPU at once take one tile after the other, in bands, so that
//                 what is fetched together stays in the second-level cache.  The next tile's first stages come while
//                 the results are written.  Clusters of two, or of 2 x 2, which share their rows of a as well.
//   v16_wgmma_cluster_slices  for few results of long sums: the blocks of a cluster own the same 64 x 128 of y, and each
//                 a slice of k.  Their sums meet in shared memory: each block adds its share of the rows, in the order
//                 of the slices, and writes it.  No workspace, no second launch.
//
// The tensor cores sum 8 products (of 16 bits 16) in an order of their own, then k ascends.
//
// Sources: NVIDIA, "CUTLASS: efficient GEMM", warp-specialised persistent kernels (a producer warp, a ring of
// mbarriers); PTX ISA on wgmma and cp.async.bulk.tensor.

#include "cluster.cuh"
#include "epilogue.cuh"
#include "tma.cuh"
#include "wgmma.cuh"

// ---- the ring

// Of numbers stored as S.  A row of a tile is 128 bytes, what the swizzle of 128 bytes takes.
template <class S, int TILE_M, int TILE_N, int STAGES>
struct Ring {
  static constexpr int ROW = 128, DEPTH = ROW / sizeof(S), BYTES = (TILE_M + TILE_N) * ROW;
  alignas(1024) S a[STAGES][TILE_M][DEPTH];
  alignas(1024) S b[STAGES][TILE_N][DEPTH];
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

// What a block keeps in shared memory: the ring, and a quarter of each thread's sums while they wait (finish_sums).
template <class S, int TILE_M, int TILE_N, int STAGES>
struct RingAndWaiting {
  static constexpr int WAITING = TILE_N / 8;
  Ring<S, TILE_M, TILE_N, STAGES> ring;
  float waiting[WAITING][2 * TILE_M];
};

// Two neighbouring results of a row, or one where no more are left of it; written at once where both ends allow it.
template <class S>
__device__ __forceinline__ void put_two(S* to, int left, bool both, float first, float second) {
  if (both && left > 1) {
    if constexpr (sizeof(S) == 2)
      *reinterpret_cast<uint32_t*>(to) = pack(S(), first, second);
    else
      *reinterpret_cast<float2*>(to) = make_float2(first, second);
  } else {
    to[0] = narrowed<S>(first);
    if (left > 1) to[1] = narrowed<S>(second);
  }
}

// Finish and write the sums of a thread of a warpgroup, which lie as wgmma.cuh says: of rows g and g + 8 of its warp,
// each 8 columns two.  The first is element `first` of y; behind it `rows` rows and `columns` columns are left.
//
// What is rare needs registers that the sums have.  So a quarter of them at a time goes to shared memory, and from there
// one pair after the other through the epilogue.  The place is the thread's own: there is nobody to wait for.
template <int TILE_N, class S, int WAITING, int THREADS>
__device__ __forceinline__ void finish_sums(const float (&sum)[TILE_N / 2], const Epilogue<S>& epilogue,
                                            const S* __restrict__ bias, S* __restrict__ y, int first, int rows,
                                            int columns, int N, float (&waiting)[WAITING][THREADS]) {
  const bool both = reinterpret_cast<uint64_t>(y) / sizeof(S) % 2 == 0 && N % 2 == 0;
  if (is_rare(epilogue)) {
#pragma unroll
    for (int start = 0; start < TILE_N / 2; start += WAITING) {
#pragma unroll
      for (int i = 0; i < WAITING; ++i) waiting[i][threadIdx.x] = sum[start + i];
#pragma unroll 1
      for (int i = 0; i < WAITING; i += 2) {
        const int j = (start + i) / 4, h = i / 2 % 2, left = columns - j * 8, place = first + h * 8 * N + j * 8;
        if (h * 8 >= rows || left <= 0) continue;
        float two[2] = {waiting[i][threadIdx.x], waiting[i + 1][threadIdx.x]};
        finish_neighbours(epilogue, bias, two, place, N - left, left);
        put_two(y + place, left, both, two[0], two[1]);
      }
    }
    return;
  }
#pragma unroll
  for (int j = 0; j < TILE_N / 8; ++j)
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int left = columns - j * 8, place = first + h * 8 * N + j * 8;
      if (h * 8 >= rows || left <= 0) continue;
      float two[2] = {sum[4 * j + 2 * h], sum[4 * j + 2 * h + 1]};
      finish_plainly(epilogue, bias, two, N - left, left);
      put_two(y + place, left, both, two[0], two[1]);
    }
}

// All of a block's work: GROUPS warpgroups multiply, each 64 rows by TILE_N columns, and one warp more copies.
template <int GROUPS, int TILE_N, int STAGES>
__device__ __forceinline__ void products(const TensorMap& a, const TensorMap& b, const float* __restrict__ bias,
                                         float* __restrict__ y, int M, int N, int K, int batch, bool a_many,
                                         bool b_many, const Epilogue<float>& epilogue) {
  constexpr int TILE_M = 64 * GROUPS, MULTIPLIERS = 4 * GROUPS;  // warps
  using Shared = Ring<float, TILE_M, TILE_N, STAGES>;
  constexpr int DEPTH = Shared::DEPTH;
  auto& shared = block_shared<RingAndWaiting<float, TILE_M, TILE_N, STAGES>>();
  Shared& s = shared.ring;
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
    const int rows = M - m0 - warp * 16 - g, columns = N - n0 - 2 * t, first = (i * M + M - rows) * N + N - columns;
    finish_sums<TILE_N>(sum, epilogue, bias, y, first, rows, columns, N, shared.waiting);
  }
}

// ---- v10

// Block: five warps and a 64 x 128 tile of y.  Warps 0 to 3, a warpgroup: 16 rows of it each, all columns; a
// thread holds 64 results, as wgmma.cuh tells.  Warp 4: its first lane begins the copies.
__global__ void __launch_bounds__(160, 2)
gemm_v10_wgmma_tma(const __grid_constant__ TensorMap a, const __grid_constant__ TensorMap b,
                  const float* __restrict__ bias, float* __restrict__ y, int M, int N, int K, int batch, bool a_many,
                  bool b_many, const __grid_constant__ Epilogue<float> epilogue) {
  products<1, 128, 4>(a, b, bias, y, M, N, K, batch, a_many, b_many, epilogue);
}

// ---- v11

// Block: nine warps and a 128 x 256 tile of y.  Warps 0 to 3 and 4 to 7: 64 rows of it each, 16 a warp; a thread holds
// 128 results.  Warp 8: its first lane begins the copies.
__global__ void __launch_bounds__(288, 1)
gemm_v11_wgmma_two(const __grid_constant__ TensorMap a, const __grid_constant__ TensorMap b,
                  const float* __restrict__ bias, float* __restrict__ y, int M, int N, int K, int batch, bool a_many,
                  bool b_many, const __grid_constant__ Epilogue<float> epilogue) {
  products<2, 256, 4>(a, b, bias, y, M, N, K, batch, a_many, b_many, epilogue);
}

// ---- clusters

// As what the tensor cores take numbers that are stored as S.
template <class S>
struct TakenAs {
  using type = S;
};
template <>
struct TakenAs<float> {
  using type = Tf32;
};

constexpr int SHARED_M = 128, SHARED_N = 256;  // of y, of a block of v12 and v13: two warpgroups multiply

// For one block alone, or for those whose bits are set.
template <int BLOCKS>
__device__ __forceinline__ void fetch(void* to, const TensorMap& map, int x, int y, int z, Barrier& barrier, uint16_t bits) {
  if constexpr (BLOCKS == 1)
    load_box(to, map, x, y, z, barrier);
  else
    load_box_to_blocks(to, map, x, y, z, barrier, bits);
}

// All of a block's work, in a cluster of ROWS x COLUMNS blocks, neighbours in y; rank = row + ROWS column.  Its tiles
// are what `tiles` says, with the same number of them in all blocks of the cluster.
template <class S, int ROWS, int COLUMNS, int STAGES, class Tiles>
__device__ __forceinline__ void shared_products(const TensorMap& a, const TensorMap& b, const S* __restrict__ bias,
                                                S* __restrict__ y, int M, int N, int K, bool a_many, bool b_many,
                                                const Epilogue<S>& epilogue, Tiles tiles) {
  constexpr int MULTIPLIERS = SHARED_M / 16;                                  // warps
  constexpr int SHARERS = ROWS + COLUMNS - 1;                                 // blocks that copy into one block
  constexpr int PART_M = SHARED_M / COLUMNS, PART_N = SHARED_N / ROWS;        // what a block fetches of its tiles
  using Shared = Ring<S, SHARED_M, SHARED_N, STAGES>;
  constexpr int DEPTH = Shared::DEPTH;
  auto& shared = block_shared<RingAndWaiting<S, SHARED_M, SHARED_N, STAGES>>();
  Shared& s = shared.ring;
  const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
  const int rank = cluster_rank(), row = rank % ROWS, column = rank / ROWS;
  if (threadIdx.x == 0) {
    for (int i = 0; i < STAGES; ++i) {
      init_barrier(s.full[i], 1);
      init_barrier(s.empty[i], MULTIPLIERS * SHARERS);
    }
    fence_barrier_init();
  }
  cluster_sync();  // the barriers of all blocks are there before anyone's copies or arrivals come to them
  const int steps = ceil_div(K, DEPTH);
  Place<STAGES> at;

  if (warp == MULTIPLIERS) {
    if (lane != 0) return;
    uint16_t same_rows = 0, same_columns = 0;  // the blocks that need the same rows of a, the same columns of b
    for (int i = 0; i < COLUMNS; ++i) same_rows |= 1 << (row + ROWS * i);
    for (int i = 0; i < ROWS; ++i) same_columns |= 1 << (i + ROWS * column);
    for (; tiles.there(); tiles.next())
      for (int step = 0; step < steps; ++step, at.next()) {
        // Nobody, in no block that the copies go to, multiplies what they overwrite; at first it is empty.
        wait_cluster(s.empty[at.stage], at.parity ^ 1);
        arrive_expect(s.full[at.stage], Shared::BYTES);  // what all blocks together bring here
        fetch<COLUMNS>(s.a[at.stage][column * PART_M], a, step * DEPTH, tiles.m0 + column * PART_M,
                       a_many ? tiles.product : 0, s.full[at.stage], same_rows);
        fetch<ROWS>(s.b[at.stage][row * PART_N], b, step * DEPTH, tiles.n0 + row * PART_N, b_many ? tiles.product : 0,
                    s.full[at.stage], same_columns);
      }
  } else {
    const int g = lane / 4, t = lane % 4;
    // Whom lane i < SHARERS of a warp tells that a stage is empty: those of the block's column, then the rest of its row.
    const int other = lane - ROWS, told = lane < ROWS ? lane + ROWS * column : row + ROWS * (other + (other >= column));
    for (; tiles.there(); tiles.next()) {
      float sum[SHARED_N / 2] = {};
      int before = 0;  // the stage of the step before
      for (int step = 0; step < steps; ++step, at.next()) {
        wait(s.full[at.stage], at.parity);  // both tiles have come, whoever fetched them
        const uint64_t of_a = matrix_descriptor<128>(s.a[at.stage][warp / 4 * 64]), of_b = matrix_descriptor<128>(s.b[at.stage]);
        begin_products();
#pragma unroll
        for (int k = 0; k < Shared::ROW; k += 32)
          multiply_group(typename TakenAs<S>::type(), sum, further(of_a, k), further(of_b, k), true);
        commit_products();
        wait_products<1>(sum);  // those of the step before have ended
        if (step > 0 && lane < SHARERS) arrive_at_block(s.empty[before], told);
        before = at.stage;
      }
      wait_products<0>(sum);  // all have ended
      if (lane < SHARERS) arrive_at_block(s.empty[before], told);
      const int rows = M - tiles.m0 - warp * 16 - g, columns = N - tiles.n0 - 2 * t;
      const int first = (tiles.product * M + M - rows) * N + N - columns;
      finish_sums<SHARED_N>(sum, epilogue, bias, y, first, rows, columns, N, shared.waiting);
    }
  }
  cluster_sync();  // no block ends before the others have arrived at its barriers for the last time
}

// ---- v12

// The tile of y that the grid says, in each product that is the block's.
struct TilesOfGrid {
  const int m0 = blockIdx.x * SHARED_M, n0 = blockIdx.y * SHARED_N, batch;
  int product = blockIdx.z;
  __device__ __forceinline__ explicit TilesOfGrid(int products) : batch(products) {}
  __device__ __forceinline__ bool there() const { return product < batch; }
  __device__ __forceinline__ void next() { product += gridDim.z; }
};

// Cluster: two blocks, one below the other in y.  Block: nine warps and a 128 x 256 tile of y, as in v11; its warp 8
// fetches 128 rows of a for itself, and 128 columns of b for both.
template <class S>
__global__ void __cluster_dims__(2, 1, 1) __launch_bounds__(288, 1)
gemm_v12_wgmma_cluster(const __grid_constant__ TensorMap a, const __grid_constant__ TensorMap b,
                       const S* __restrict__ bias, S* __restrict__ y, int M, int N, int K, int batch, bool a_many,
                       bool b_many, const __grid_constant__ Epilogue<S> epilogue) {
  shared_products<S, 2, 1, 4>(a, b, bias, y, M, N, K, a_many, b_many, epilogue, TilesOfGrid(batch));
}

// ---- v13

// The tiles of y of a block of a cluster.  Clusters take ROWS x COLUMNS tiles at once, the first the first, and each
// the one behind as many as there are clusters.  They go down a band of 16 tiles, then down the next column of it: a
// hundred tiles that are under way together make about a square of y, and ask least of memory.
template <int ROWS, int COLUMNS>
struct TilesInBands {
  int m0, n0, product;
  __device__ __forceinline__ TilesInBands(int M, int N, int batch)
      : rows_(ceil_div(M, ROWS * SHARED_M)), columns_(ceil_div(N, COLUMNS * SHARED_N)), all_(rows_ * columns_ * batch),
        number_(blockIdx.z) {
    find();
  }
  __device__ __forceinline__ bool there() const { return number_ < all_; }
  __device__ __forceinline__ void next() {
    number_ += gridDim.z;
    find();
  }

 private:
  __device__ __forceinline__ void find() {
    constexpr int BAND = 16 / ROWS;
    const int place = number_ % (rows_ * columns_), first = place / (BAND * columns_) * BAND;
    const int in_band = place % (BAND * columns_), height = min(BAND, rows_ - first);  // the last may be lower
    product = number_ / (rows_ * columns_);
    m0 = ((first + in_band % height) * ROWS + blockIdx.x) * SHARED_M;
    n0 = (in_band / height * COLUMNS + blockIdx.y) * SHARED_N;
  }
  int rows_, columns_, all_, number_;
};

// Cluster: 2 x COLUMNS blocks, neighbours in y; there are as many clusters as run at once.  Block: as in v12, tile after
// tile; with two columns its warp 8 fetches half of the rows of a for both.
template <class S, int COLUMNS>
__global__ void __cluster_dims__(2, COLUMNS, 1) __launch_bounds__(288, 1)
gemm_v13_wgmma_persistent(const __grid_constant__ TensorMap a, const __grid_constant__ TensorMap b,
                          const S* __restrict__ bias, S* __restrict__ y, int M, int N, int K, int batch, bool a_many,
                          bool b_many, const __grid_constant__ Epilogue<S> epilogue) {
  shared_products<S, 2, COLUMNS, 4>(a, b, bias, y, M, N, K, a_many, b_many, epilogue,
                                    TilesInBands<2, COLUMNS>(M, N, batch));
}

// ---- v16

constexpr int SLICE_M = 64, SLICE_N = 128;  // of y, of a cluster of v16

// The ring, and in its place, when it is empty, the block's sums.  Lines of 136: the float pairs that 16 lanes write at
// once, of four lines, then fall into all banks.
template <class S, int STAGES>
struct Slice {
  union {
    Ring<S, SLICE_M, SLICE_N, STAGES> ring;
    float sums[SLICE_M][SLICE_N + 8];
  };
};

// Cluster: SLICES blocks, one behind the other along z, and a 64 x 128 tile of y.  Block: five warps, as in v10, and a
// slice of k; then 64 / SLICES rows of the tile.
template <class S, int SLICES>
__global__ void __cluster_dims__(1, 1, SLICES) __launch_bounds__(160, 2)
gemm_v16_wgmma_cluster_slices(const __grid_constant__ TensorMap a, const __grid_constant__ TensorMap b,
                              const S* __restrict__ bias, S* __restrict__ y, int M, int N, int K, int batch, bool a_many,
                              bool b_many, const __grid_constant__ Epilogue<S> epilogue) {
  constexpr int STAGES = 4, MULTIPLIERS = 4, ROWS = SLICE_M / SLICES;  // the last: of y, that a block writes
  using OfSlice = Slice<S, STAGES>;
  constexpr int DEPTH = decltype(OfSlice::ring)::DEPTH;
  OfSlice& shared = block_shared<OfSlice>();
  auto& s = shared.ring;
  static_assert(sizeof(shared.sums) <= sizeof(s.a) + sizeof(s.b), "the barriers stay");
  const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, rank = cluster_rank();
  const int m0 = blockIdx.x * SLICE_M, n0 = blockIdx.y * SLICE_N;
  if (threadIdx.x == 0) {
    for (int i = 0; i < STAGES; ++i) {
      init_barrier(s.full[i], 1);
      init_barrier(s.empty[i], MULTIPLIERS);
    }
    fence_barrier_init();
  }
  __syncthreads();  // the barriers are there before anyone uses them
  const int steps = ceil_div(K, DEPTH), of_slice = ceil_div(steps, SLICES);
  const int first = rank * of_slice, last = min(first + of_slice, steps);  // of no steps, maybe, where K is short
  const int g = lane / 4, t = lane % 4;
  const bool both = reinterpret_cast<uint64_t>(y) / sizeof(S) % 2 == 0 && N % 2 == 0;
  Place<STAGES> at;

  for (int i = blockIdx.z / SLICES; i < batch; i += gridDim.z / SLICES) {
    float sum[SLICE_N / 2] = {};
    if (warp == MULTIPLIERS) {
      if (lane == 0) {
        for (int step = first; step < last; ++step, at.next()) {
          wait(s.empty[at.stage], at.parity ^ 1);  // nobody multiplies what the copies overwrite; at first it is empty
          arrive_expect(s.full[at.stage], s.BYTES);
          load_box(s.a[at.stage], a, step * DEPTH, m0, a_many ? i : 0, s.full[at.stage]);
          load_box(s.b[at.stage], b, step * DEPTH, n0, b_many ? i : 0, s.full[at.stage]);
        }
      }
    } else {
      int before = 0;  // the stage of the step before
      for (int step = first; step < last; ++step, at.next()) {
        wait(s.full[at.stage], at.parity);  // both tiles have come
        const uint64_t of_a = matrix_descriptor<128>(s.a[at.stage]), of_b = matrix_descriptor<128>(s.b[at.stage]);
        begin_products();
#pragma unroll
        for (int k = 0; k < s.ROW; k += 32)
          multiply_group(typename TakenAs<S>::type(), sum, further(of_a, k), further(of_b, k), true);
        commit_products();
        wait_products<1>(sum);  // those of the step before have ended
        if (step > first && lane == 0) arrive(s.empty[before]);
        before = at.stage;
      }
      wait_products<0>(sum);  // all have ended
      if (first < last && lane == 0) arrive(s.empty[before]);
    }
    __syncthreads();  // nobody multiplies what the sums overwrite
    if (warp < MULTIPLIERS) {
#pragma unroll
      for (int j = 0; j < SLICE_N / 8; ++j)
#pragma unroll
        for (int h = 0; h < 2; ++h)
          *reinterpret_cast<float2*>(&shared.sums[warp * 16 + g + h * 8][j * 8 + 2 * t]) =
              make_float2(sum[4 * j + 2 * h], sum[4 * j + 2 * h + 1]);
    }
    cluster_sync();  // the sums of all slices are there before anyone adds them
    for (int pair = threadIdx.x; pair < ROWS * SLICE_N / 2; pair += blockDim.x) {
      const int row = rank * ROWS + pair / (SLICE_N / 2), column = pair % (SLICE_N / 2) * 2;
      const int m = m0 + row, n = n0 + column;
      if (m >= M || n >= N) continue;
      float2 of_all = make_float2(0, 0);
#pragma unroll
      for (int slice = 0; slice < SLICES; ++slice) {
        const float2 part = load_from_block(reinterpret_cast<const float2*>(&shared.sums[row][column]), slice);
        of_all.x += part.x;
        of_all.y += part.y;
      }
      float two[2] = {of_all.x, of_all.y};
      const int place = (i * M + m) * N + n;
      finish_neighbours(epilogue, bias, two, place, n, N - n);
      put_two(y + place, N - n, both, two[0], two[1]);
    }
    fence_async_proxy();  // the copies of the next product come after what was written in their place
    cluster_sync();       // and after all have read it; nor does a block end before
  }
}
