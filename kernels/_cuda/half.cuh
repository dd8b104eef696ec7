// Numbers of 16 bits, which lie in memory as such and are computed with in float.
//
//   Bf16   the upper half of a float: 8 bits of exponent, 7 of fraction
//   Fp16   5 bits of exponent, 10 of fraction: at most 65504, nothing finer than 2^-24
//
// A float is rounded to nearest, ties to even; beyond the largest number it becomes infinite, NaN stays NaN.
// Source: PTX ISA, "cvt".
#pragma once
#include "vector.cuh"

struct Bf16 {
  uint16_t bits;
};
struct Fp16 {
  uint16_t bits;
};

// What numbers stored as S are computed with in.
template <class S>
struct WideOf {
  using type = S;
};
template <>
struct WideOf<Bf16> {
  using type = float;
};
template <>
struct WideOf<Fp16> {
  using type = float;
};
template <class S>
using Wide = typename WideOf<S>::type;

// ---- one number

__device__ __forceinline__ float widened(float x) { return x; }
__device__ __forceinline__ double widened(double x) { return x; }
__device__ __forceinline__ float widened(Bf16 x) { return __uint_as_float(static_cast<uint32_t>(x.bits) << 16); }
__device__ __forceinline__ float widened(Fp16 x) {
#ifdef RAWGRAD_EMULATED
  const uint32_t sign = (x.bits & 0x8000u) << 16, exponent = x.bits >> 10 & 31u, fraction = x.bits & 1023u;
  if (exponent == 0) {  // a multiple of 2^-24
    const float magnitude = static_cast<float>(fraction) * 5.9604644775390625e-08f;
    return __uint_as_float(sign | __float_as_uint(magnitude));
  }
  const uint32_t raised = exponent == 31 ? 255u : exponent + 112u;
  return __uint_as_float(sign | raised << 23 | fraction << 13);
#else
  float wide;
  asm("cvt.f32.f16 %0, %1;" : "=f"(wide) : "h"(x.bits));
  return wide;
#endif
}

#ifdef RAWGRAD_EMULATED
// The upper 16 bits, to nearest, ties to even.
__device__ __forceinline__ uint32_t bf16_bits(float x) {
  const uint32_t bits = __float_as_uint(x);
  if (x != x) return 0x7fffu;
  return (bits + 0x7fffu + (bits >> 16 & 1)) >> 16;
}
__device__ __forceinline__ uint32_t fp16_bits(float x) {
  const uint32_t bits = __float_as_uint(x), sign = bits >> 16 & 0x8000u, magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return 0x7fffu;
  if (magnitude >= 0x477ff000u) return sign | 0x7c00u;  // 65520 and beyond round to infinity
  if (magnitude < 0x38800000u) {                        // subnormal: a multiple of 2^-24
    const float scaled = __uint_as_float(magnitude) * 16777216.0f;
    return sign | static_cast<uint32_t>(rintf(scaled));
  }
  return sign | ((magnitude - 0x38000000u + 0xfffu + (magnitude >> 13 & 1)) >> 13);
}
#endif

// Two numbers in one register, the first in its lower half.
__device__ __forceinline__ uint32_t pack(Bf16, float low, float high) {
#ifdef RAWGRAD_EMULATED
  return bf16_bits(low) | bf16_bits(high) << 16;
#else
  uint32_t both;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(high), "f"(low));
  return both;
#endif
}
__device__ __forceinline__ uint32_t pack(Fp16, float low, float high) {
#ifdef RAWGRAD_EMULATED
  return fp16_bits(low) | fp16_bits(high) << 16;
#else
  uint32_t both;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(high), "f"(low));
  return both;
#endif
}

// As it is stored.
template <class S>
__device__ __forceinline__ S narrowed(Wide<S> x) {
  if constexpr (sizeof(S) == 2)
    return S{static_cast<uint16_t>(pack(S(), x, 0.0f))};
  else
    return x;
}

// ---- 16 bytes of them

template <class S>
__device__ __forceinline__ void load_wide(Wide<S>* to, const S* from) {
  const Vector<S> stored = load_vector(from);
#pragma unroll
  for (int e = 0; e < Vector<S>::SIZE; ++e) to[e] = widened(stored.of[e]);
}

template <class S>
__device__ __forceinline__ void store_narrowed(S* to, const Wide<S>* from) {
  if constexpr (sizeof(S) == 2) {
    Vector<uint32_t> pairs;
#pragma unroll
    for (int e = 0; e < 4; ++e) pairs.of[e] = pack(S(), from[2 * e], from[2 * e + 1]);
    store_vector(reinterpret_cast<uint32_t*>(to), pairs);
  } else {
    Vector<S> stored;
#pragma unroll
    for (int e = 0; e < Vector<S>::SIZE; ++e) stored.of[e] = from[e];
    store_vector(to, stored);
  }
}
