// Tensor cores: d += a b for small matrices that a warp holds in its registers (sm_80 and newer).
//
// Lane l of the warp holds, with g = l / 4 and t = l % 4,
//
//   of d (16 x 8, float):   d[0], d[1] = d(g, 2t), d(g, 2t+1);  d[2], d[3] = the same of row g + 8
//   tf32, a (16 x 8):       a[0] = a(g, t),  a[1] = a(g+8, t),  a[2] = a(g, t+4),  a[3] = a(g+8, t+4)
//         b (8 x 8):        b[0] = b(t, g),  b[1] = b(t+4, g)
//   16 bit, a (16 x 16):    a[0] = a(g, 2t and 2t+1),  a[1] = row g+8,  a[2] = a(g, 2t+8 and 2t+9),  a[3] = row g+8
//           b (16 x 8):     b[0] = b(2t and 2t+1, g),  b[1] = b(2t+8 and 2t+9, g)
//
// Two 16-bit numbers share a register, the first in its lower half.  Products are exact and summed in float32.
// Source: PTX ISA, "Warp level matrix multiply-accumulate instructions".
#pragma once
#include "half.cuh"

struct Tf32 {};

// ---- rounding float32 to what the tensor cores take (to 16 bits: half.cuh)

// To nearest, ties away from zero; the low 13 bits are then 0.
__device__ __forceinline__ uint32_t to_tf32(float x) {
#ifdef RAWGRAD_EMULATED
  const uint32_t bits = __float_as_uint(x);
  if ((bits & 0x7f800000u) == 0x7f800000u) return bits & 0x007fffffu ? 0x7fffe000u : bits;
  return (bits + 0x1000u) & 0xffffe000u;
#else
  uint32_t bits;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(x));
  return bits;
#endif
}

// Each of two numbers as a sum of three in bf16: the nearest one to it, the nearest one to what is missing, and again.
// 3 times 8 bits hold float32's 24.  The sum is exact from 2^-103 on; below, a difference that is no normal number may
// be taken for 0, an error of at most 2^-126.  From BEYOND_BF16 on bf16 is infinite, and for that, and for infinity and
// NaN, the parts say nothing.
__device__ __forceinline__ void split(uint32_t (&part)[3], float low, float high) {
#pragma unroll
  for (int p = 0; p < 3; ++p) {
    part[p] = pack(Bf16(), low, high);
    low -= __uint_as_float(part[p] << 16);  // exact: both are multiples of the last place of `low`, and close
    high -= __uint_as_float(part[p] & 0xffff0000u);
  }
}
constexpr uint32_t BEYOND_BF16 = 0x7f7f8000u;  // 2^128 - 2^119
__device__ __forceinline__ bool can_be_split(float x) { return (__float_as_uint(x) & 0x7fffffffu) < BEYOND_BF16; }

// ---- reading fragments of 16-bit matrices from shared memory

// Four 8 x 8 matrices.  Lane l names the row l % 8 of matrix l / 8, 16 bytes at a multiple of 16; r[i] receives
// this lane's part of matrix i: (g, 2t and 2t+1), or with TRANSPOSED (2t and 2t+1, g).
template <bool TRANSPOSED>
__device__ __forceinline__ void load_matrices(uint32_t (&r)[4], const void* row) {
#ifdef RAWGRAD_EMULATED
  rawgrad_emulator::load_matrices(r, 4, row, TRANSPOSED, {__builtin_FILE(), __builtin_LINE()});
#else
  if constexpr (TRANSPOSED)
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(row))
                 : "memory");
  else
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(row))
                 : "memory");
#endif
}

// ---- multiplying

#ifdef RAWGRAD_EMULATED
#define RAWGRAD_MMA(Type, number, instruction)                                                                    \
  __device__ __forceinline__ void multiply(Type, float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) { \
    rawgrad_emulator::multiply_matrices(rawgrad_emulator::number, d, a, b, {__builtin_FILE(), __builtin_LINE()}); \
  }
#else
#define RAWGRAD_MMA(Type, number, instruction)                                                                    \
  __device__ __forceinline__ void multiply(Type, float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) { \
    asm volatile("mma.sync.aligned." instruction " {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"         \
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])                                                 \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));                             \
  }
#endif
RAWGRAD_MMA(Tf32, MMA_TF32, "m16n8k8.row.col.f32.tf32.tf32.f32")
RAWGRAD_MMA(Bf16, MMA_BF16, "m16n8k16.row.col.f32.bf16.bf16.f32")
RAWGRAD_MMA(Fp16, MMA_FP16, "m16n8k16.row.col.f32.f16.f16.f32")
#undef RAWGRAD_MMA
