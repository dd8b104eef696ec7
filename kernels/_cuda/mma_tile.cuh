// Tiles for tensor cores: how two factors lie in shared memory, how a warp reads them into its registers, and the
// multiplication of all that it holds.  For every kernel whose inner loop is a matrix product.
//
// A tile holds ROWS rows of a factor (of a its m, of b its n) by DEPTH of k, rounded to what the tensor cores take.
// It lies as its matrix does in memory, with k running fastest (ALONG_K) or the rows; `fast` and `slow` are the two
// indices in that sense, and a line is all that has one `slow`.
//
// Lines are made of chunks of 16 bytes.  ldmatrix reads the same chunk of eight lines at once, and would meet the same
// four banks eight times; so line s keeps its chunk c at c ^ turn(s), and eight lines in a row have it in eight
// different places of 128 bytes.  Nothing is padded.
// Source: CUTLASS's documents describe such layouts as "permuted shared memory".
#pragma once
#include "mma.cuh"
#include "vector.cuh"

template <class NUMBER>
struct BytesOf {
  static constexpr int VALUE = 2;
};
template <>
struct BytesOf<Tf32> {
  static constexpr int VALUE = 4;
};

struct alignas(8) TwoWords {
  uint32_t of[2];
};

template <class NUMBER, int ROWS_, int DEPTH_, bool ALONG_K_>
struct MmaTile {
  static constexpr int ROWS = ROWS_, DEPTH = DEPTH_, BYTES = BytesOf<NUMBER>::VALUE;
  static constexpr bool ALONG_K = ALONG_K_;
  static constexpr int FAST = ALONG_K ? DEPTH : ROWS, SLOW = ALONG_K ? ROWS : DEPTH;
  static constexpr int OF_CHUNK = 16 / BYTES, CHUNKS = FAST / OF_CHUNK;  // numbers of a chunk, chunks of a line
  static constexpr int STEP = 2 * OF_CHUNK;                             // k of one multiplication: 32 bytes
  static constexpr int TURNS = CHUNKS < 8 ? CHUNKS : 8, LINES = 8 / TURNS;  // lines that fill 128 bytes, all banks
  // ldmatrix transposes numbers of 16 bits alone.  Others that lie the wrong way are read one by one: lane (g, t) reads
  // number g of line t, and four lines must lie in different banks.
  static constexpr bool ONE_BY_ONE = BYTES == 4 && !ALONG_K;
  static_assert(DEPTH % STEP == 0 && ROWS % 16 == 0 && CHUNKS % TURNS == 0, "a tile is made of whole fragments");

  alignas(16) uint32_t words[SLOW * CHUNKS * 4];

  static __device__ __forceinline__ unsigned word_of(unsigned slow, unsigned fast) {
    const unsigned turn = ONE_BY_ONE ? slow % 4 * 2 : slow / LINES % TURNS;
    return (slow * CHUNKS + (fast / OF_CHUNK ^ turn)) * 4 + fast % OF_CHUNK * BYTES / 4;
  }

  // Round four neighbours in memory and put them in their place; `fast` is a multiple of 4.
  __device__ __forceinline__ void store(int slow, int fast, const Vector<float>& four) {
    if constexpr (BYTES == 4) {
      Vector<uint32_t> rounded;
#pragma unroll
      for (int e = 0; e < 4; ++e) rounded.of[e] = to_tf32(four.of[e]);
      store_vector(&words[word_of(slow, fast)], rounded);
    } else {
      store_pairs(slow, fast, pack(NUMBER(), four.of[0], four.of[1]), pack(NUMBER(), four.of[2], four.of[3]));
    }
  }
  __device__ __forceinline__ void store_pairs(int slow, int fast, uint32_t first, uint32_t second) {
    *reinterpret_cast<TwoWords*>(&words[word_of(slow, fast)]) = TwoWords{first, second};
  }

  // This lane's part of the 16 rows from `row` on and of one step of k: r[0], r[1] of its first half and the first and
  // the last eight rows, r[2], r[3] of its second half.  That is a fragment of a, and two of b: r[0], r[2] and r[1],
  // r[3].
  __device__ __forceinline__ void read(uint32_t (&r)[4], int row, int k, int lane) const {
    if constexpr (ONE_BY_ONE) {
#pragma unroll
      for (int i = 0; i < 4; ++i) r[i] = words[word_of(k + lane % 4 + i / 2 * 4, row + lane / 4 + i % 2 * 8)];
    } else {  // lane l names line l % 8 of matrix l / 8
      const int of_row = row + lane / 8 % 2 * 8, of_k = k + lane / 16 * OF_CHUNK;
      load_matrices<!ALONG_K>(r, &words[ALONG_K ? word_of(of_row + lane % 8, of_k) : word_of(of_k + lane % 8, of_row)]);
    }
  }
};

// ---- a warp's share of a product of two tiles: sum[r][c] holds rows `row` + 16 r and columns `column` + 8 c

// The fragments for one step of k.
template <int R, int C>
struct Fragments {
  uint32_t a[R][4], b[C][2];

  template <class A, class B>
  __device__ __forceinline__ void read(const A& of_a, const B& of_b, int row, int column, int k, int lane) {
    static_assert(C % 2 == 0, "columns are read by sixteen");
#pragma unroll
    for (int r = 0; r < R; ++r) of_a.read(a[r], row + 16 * r, k, lane);
#pragma unroll
    for (int c = 0; c < C; c += 2) {
      uint32_t both[4];
      of_b.read(both, column + 8 * c, k, lane);
#pragma unroll
      for (int i = 0; i < 4; ++i) b[c + i % 2][i / 2] = both[i];
    }
  }
};

// sum += a b over the whole depth of the tiles.  While one step is multiplied, the next one's fragments are read.
template <class NUMBER, int R, int C, class A, class B>
__device__ __forceinline__ void multiply_tiles(float (&sum)[R][C][4], const A& a, const B& b, int row, int column,
                                               int lane) {
  constexpr int STEPS = A::DEPTH / A::STEP;
  Fragments<R, C> of[2];
  of[0].read(a, b, row, column, 0, lane);
#pragma unroll
  for (int step = 0; step < STEPS; ++step) {
    if (step + 1 < STEPS) of[(step + 1) % 2].read(a, b, row, column, (step + 1) * A::STEP, lane);
#pragma unroll
    for (int r = 0; r < R; ++r)
#pragma unroll
      for (int c = 0; c < C; ++c) multiply(NUMBER(), sum[r][c], of[step % 2].a[r], of[step % 2].b[c]);
  }
}

// ---- float32 in three parts of bf16 (see split in mma.cuh)

constexpr int PARTS = 3;

template <int ROWS_, int DEPTH_, bool ALONG_K_>
struct SplitTile {
  using Part = MmaTile<Bf16, ROWS_, DEPTH_, ALONG_K_>;
  static constexpr int ROWS = ROWS_, DEPTH = DEPTH_, FAST = Part::FAST, SLOW = Part::SLOW, STEP = Part::STEP;
  static constexpr bool ALONG_K = ALONG_K_;
  Part part[PARTS];

  __device__ __forceinline__ void store(int slow, int fast, const Vector<float>& four) {
    uint32_t first[PARTS], second[PARTS];
    split(first, four.of[0], four.of[1]);
    split(second, four.of[2], four.of[3]);
#pragma unroll
    for (int p = 0; p < PARTS; ++p) part[p].store_pairs(slow, fast, first[p], second[p]);
  }
};

// sum += a b with the six products of parts that count in float32: part i of a by part j of b is of the order of
// 2^-9(i + j), and those with i + j > 2 are left out.  Each step of k is summed on the tensor cores from zero, the small
// products first, and added to `sum` outside of them: they cut off what does not fit where an addition rounds.
// Sources: Henry, Tang and Heinecke, "Leveraging the bfloat16 artificial intelligence datatype for higher-precision
// computations", 2019 (three parts, six products); Ootomo and Yokota, "Recovering single precision accuracy from
// tensor cores while surpassing the FP32 theoretical peak performance", 2022 (the sum outside); Markidis et al.,
// "NVIDIA tensor core programmability, performance and precision", 2018 (the first of these splits).
template <int R, int C, class A, class B>
__device__ __forceinline__ void multiply_split_tiles(float (&sum)[R][C][4], const A& a, const B& b, int row,
                                                     int column, int lane) {
#pragma unroll
  for (int k = 0; k < A::DEPTH; k += A::STEP) {
    uint32_t of_a[PARTS][R][4];
#pragma unroll
    for (int p = 0; p < PARTS; ++p)
#pragma unroll
      for (int r = 0; r < R; ++r) a.part[p].read(of_a[p][r], row + 16 * r, k, lane);
#pragma unroll
    for (int c = 0; c < C; c += 2) {
      uint32_t of_b[PARTS][4];
#pragma unroll
      for (int p = 0; p < PARTS; ++p) b.part[p].read(of_b[p], column + 8 * c, k, lane);
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        float step[R][4] = {};
#pragma unroll
        for (int order = PARTS - 1; order >= 0; --order)
#pragma unroll
          for (int i = 0; i <= order; ++i) {
            const uint32_t part_of_b[2] = {of_b[order - i][half], of_b[order - i][2 + half]};
#pragma unroll
            for (int r = 0; r < R; ++r) multiply(Bf16(), step[r], of_a[i][r], part_of_b);
          }
#pragma unroll
        for (int r = 0; r < R; ++r)
#pragma unroll
          for (int e = 0; e < 4; ++e) sum[r][c + half][e] += step[r][e];
      }
    }
  }
}
