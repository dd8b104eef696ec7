// Loads and stores of 16 bytes at once: four floats or two doubles.
//
// One such instruction moves what four (two) plain ones do; the address must be a multiple of 16.
#pragma once
#include "common.cuh"

template <class T>
struct alignas(16) Vector {
  static constexpr int SIZE = 16 / sizeof(T);
  T of[SIZE];
};

template <class T>
__device__ __forceinline__ Vector<T> load_vector(const T* from) { return *reinterpret_cast<const Vector<T>*>(from); }

template <class T>
__device__ __forceinline__ void store_vector(T* to, const Vector<T>& value) {
  *reinterpret_cast<Vector<T>*>(to) = value;
}

// Whether 16 bytes can be moved at `place` at once.
template <class T>
__device__ __forceinline__ bool is_vector_aligned(const T* place) {
  return reinterpret_cast<uint64_t>(place) % 16 == 0;
}
