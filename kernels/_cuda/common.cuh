// What every kernel needs: integer types, shared memory, constants, and maxima that keep NaN.
//
// The headers in this folder are the only CUDA sources that know which compiler reads them: NVRTC and
// nvcc for a GPU, or the host's C++ compiler for the emulator (RAWGRAD_EMULATED), which brings its own
// threadIdx, __syncthreads and so on.  A .cu file includes headers of this folder and nothing else.
#pragma once

#ifdef RAWGRAD_EMULATED
#include "device.h"  // of kernels/_emulator
#else
#ifdef __CUDACC_RTC__  // NVRTC has no headers
typedef signed char int8_t;
typedef short int16_t;
typedef int int32_t;
typedef long long int64_t;
typedef unsigned char uint8_t;
typedef unsigned short uint16_t;
typedef unsigned int uint32_t;
typedef unsigned long long uint64_t;
#else
#include <cstdint>
#endif
#endif

constexpr int WARP = 32;
constexpr unsigned ALL_LANES = 0xffffffffu;
// More than this must be asked for at the launch, as dynamic shared memory.
constexpr unsigned STATIC_SHARED_LIMIT = 48 * 1024;

#ifndef RAWGRAD_EMULATED
extern __shared__ __align__(1024) unsigned char rawgrad_dynamic_shared[];

template <class T, bool FITS>
struct SharedStorage {
  static __device__ __forceinline__ T& get() {
    __shared__ __align__(1024) unsigned char bytes[sizeof(T)];
    return *reinterpret_cast<T*>(bytes);
  }
};
template <class T>
struct SharedStorage<T, false> {
  static __device__ __forceinline__ T& get() { return *reinterpret_cast<T*>(rawgrad_dynamic_shared); }
};
#endif

// The block's shared memory, seen as one struct.  A kernel calls it once.
template <class T>
__device__ __forceinline__ T& block_shared() {
#ifdef RAWGRAD_EMULATED
  return *reinterpret_cast<T*>(rawgrad_emulator::shared_memory(sizeof(T), sizeof(T) > STATIC_SHARED_LIMIT));
#else
  return SharedStorage<T, (sizeof(T) <= STATIC_SHARED_LIMIT)>::get();
#endif
}

// The 32-bit address of a place in shared memory, which PTX instructions take.
__device__ __forceinline__ uint32_t shared_address(const void* place) {
#ifdef RAWGRAD_EMULATED
  return rawgrad_emulator::shared_offset(place);
#else
  return static_cast<uint32_t>(__cvta_generic_to_shared(place));
#endif
}

__host__ __device__ constexpr int ceil_div(int a, int b) { return (a + b - 1) / b; }

template <class T>
__device__ __forceinline__ T infinity();
template <>
__device__ __forceinline__ float infinity<float>() { return __int_as_float(0x7f800000); }
template <>
__device__ __forceinline__ double infinity<double>() { return __longlong_as_double(0x7ff0000000000000ll); }

template <class T>
__device__ __forceinline__ T nan_value();
template <>
__device__ __forceinline__ float nan_value<float>() { return __int_as_float(0x7fc00000); }
template <>
__device__ __forceinline__ double nan_value<double>() { return __longlong_as_double(0x7ff8000000000000ll); }

template <class T>
__device__ __forceinline__ bool is_nan(T x) { return x != x; }

// The larger value; a NaN counts as larger than everything (fmax would drop it).
template <class T>
__device__ __forceinline__ T max_nan(T a, T b) { return (a > b || is_nan(a)) ? a : b; }
