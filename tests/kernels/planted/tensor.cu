// One product of a warp's tensor core: d (16 x 8) += a b, with a and b read from memory.
#include "mma.cuh"

// a is (16, 8), b (8, 8).
__global__ void product_of_tf32(const float* a, const float* b, float* d) {
  const int g = threadIdx.x / 4, t = threadIdx.x % 4;
  uint32_t of_a[4], of_b[2];
  for (int i = 0; i < 4; ++i) of_a[i] = to_tf32(a[(g + i % 2 * 8) * 8 + t + i / 2 * 4]);
  for (int i = 0; i < 2; ++i) of_b[i] = to_tf32(b[(t + i * 4) * 8 + g]);
  float own[4];
  for (int e = 0; e < 4; ++e) own[e] = d[(g + e / 2 * 8) * 8 + 2 * t + e % 2];
  multiply(Tf32(), own, of_a, of_b);
  for (int e = 0; e < 4; ++e) d[(g + e / 2 * 8) * 8 + 2 * t + e % 2] = own[e];
}

struct Tiles {
  alignas(16) uint16_t a[16][16], b[16][8];
};

// a is (16, 16), b (16, 8), both of 16 bits; fragments by ldmatrix, of b transposed.  SHIFT moves one lane's row.
template <class Type>
__device__ __forceinline__ void product_of_16_bits(const uint16_t* a, const uint16_t* b, float* d, int shift) {
  Tiles& s = block_shared<Tiles>();
  for (int i = threadIdx.x; i < 256; i += 32) s.a[i / 16][i % 16] = a[i];
  for (int i = threadIdx.x; i < 128; i += 32) s.b[i / 8][i % 8] = b[i];
  __syncwarp();
  const int l = threadIdx.x, g = l / 4, t = l % 4;
  uint32_t of_a[4], of_b[4];
  load_matrices<false>(of_a, &s.a[l % 16][l / 16 * 8 + (l == 5 ? shift : 0)]);  // ROWS OF A
  load_matrices<true>(of_b, &s.b[l % 16][0]);
  float own[4];
  for (int e = 0; e < 4; ++e) own[e] = d[(g + e / 2 * 8) * 8 + 2 * t + e % 2];
  const uint32_t both[2] = {of_b[0], of_b[1]};
  multiply(Type(), own, of_a, both);
  for (int e = 0; e < 4; ++e) d[(g + e / 2 * 8) * 8 + 2 * t + e % 2] = own[e];
}
__global__ void product_of_bf16(const uint16_t* a, const uint16_t* b, float* d, int shift) {
  product_of_16_bits<Bf16>(a, b, d, shift);
}
__global__ void product_of_fp16(const uint16_t* a, const uint16_t* b, float* d, int shift) {
  product_of_16_bits<Fp16>(a, b, d, shift);
}

// Rounding: pairs of floats to 16 bits, and single ones to tf32.
__global__ void rounded(const float* x, uint32_t* bf16, uint32_t* fp16, uint32_t* tf32) {
  const int i = threadIdx.x;
  bf16[i] = pack(Bf16(), x[2 * i], x[2 * i + 1]);
  fp16[i] = pack(Fp16(), x[2 * i], x[2 * i + 1]);
  tf32[2 * i] = to_tf32(x[2 * i]);
  tf32[2 * i + 1] = to_tf32(x[2 * i + 1]);
}

// ldmatrix waits for nobody: without a barrier lane 5's row is another lane's writing.
__global__ void unordered_rows(uint32_t* y, int mended) {
  Tiles& s = block_shared<Tiles>();
  const int l = threadIdx.x;
  for (int i = 0; i < 8; ++i) s.a[l % 16][l / 16 * 8 + i] = l;  // ROW WRITE
  if (mended) __syncwarp();
  uint32_t r[4];
  load_matrices<false>(r, &s.a[(l + 1) % 16][l / 16 * 8]);  // ROW READ
  y[l] = r[0];
}

__global__ void part_of_a_warp(const float* x, float* d, int mended) {
  float own[4] = {};
  const uint32_t a[4] = {to_tf32(x[0]), 0, 0, 0}, b[2] = {to_tf32(x[1]), 0};
  if (mended || threadIdx.x != 9) multiply(Tf32(), own, a, b);  // PART
  d[threadIdx.x] = own[0];
}
