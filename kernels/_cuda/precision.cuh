// The template argument PRECISION of kernels that round float32 on its way to the tensor cores: 0 tf32, 1 bf16, 2 fp16.
#pragma once
#include "mma.cuh"

template <int PRECISION>
struct PrecisionOf;
template <>
struct PrecisionOf<0> {
  using Type = Tf32;
  static constexpr int DEPTH = 8;  // numbers that one instruction sums over
};
template <>
struct PrecisionOf<1> {
  using Type = Bf16;
  static constexpr int DEPTH = 16;
};
template <>
struct PrecisionOf<2> {
  using Type = Fp16;
  static constexpr int DEPTH = 16;
};
