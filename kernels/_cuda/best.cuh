// The largest of some values and which of them it was, for poolings and for kernels that end in one.
#pragma once
#include "common.cuh"

// The largest tap so far and its code; no tap so far: code < 0.
template <class T>
struct Best {
  T value = -infinity<T>();
  int code = -1;

  __device__ __forceinline__ void meet(T tap, int its_code) {
    const bool larger = !(tap <= value) && !is_nan(value);  // a NaN beats every number, and nothing beats a NaN
    if (code < 0 || larger) {
      value = tap;
      code = its_code;
    }
  }

  // The code to be stored; without a tap inside the input that of the last tap, which then lies outside.
  __device__ __forceinline__ int found(int taps) const { return code < 0 ? taps - 1 : code; }
};
