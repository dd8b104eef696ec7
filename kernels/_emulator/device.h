// What a CUDA source sees when the host's C++ compiler reads it: CUDA's keywords, variables, types and
// intrinsic functions, on top of the emulator's runtime (runtime.h).
//
// This file is compiled together with the kernels, with -fsanitize=thread, so every load and store here
// is reported to the runtime too; functions that must not be are marked UNWATCHED.
#pragma once
#include <assert.h>
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <utility>

#include "runtime.h"

#define __global__
#define __device__
#define __host__
#define __constant__
#define __managed__
// One copy for all threads, which the runtime finds by its name.  "used": or the compiler takes a variable that
// nothing writes for a constant.
#define __shared__ static __attribute__((used))
#define __forceinline__ inline __attribute__((always_inline))
#define __noinline__ __attribute__((noinline))
#define __launch_bounds__(...)
#define __cluster_dims__(...)  // the launcher reads it from the source
#define __grid_constant__
#define __align__(n) __attribute__((aligned(n)))
#define __CUDA_ARCH__ 900

// ---- indices

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};
#define threadIdx (rawgrad_emulator::thread_index())
#define blockIdx (rawgrad_emulator::block_index())
#define blockDim (rawgrad_emulator::block_size())
#define gridDim (rawgrad_emulator::grid_size())
constexpr int warpSize = 32;

// ---- vector types

#define RAWGRAD_VECTOR(type, name, align1, align2, align4)                         \
  struct alignas(align1) name##1 { type x; };                                      \
  struct alignas(align2) name##2 { type x, y; };                                   \
  struct alignas(align4) name##4 { type x, y, z, w; };                             \
  inline name##1 make_##name##1(type x) { return {x}; }                            \
  inline name##2 make_##name##2(type x, type y) { return {x, y}; }                 \
  inline name##3 make_##name##3(type x, type y, type z) { return {x, y, z}; }      \
  inline name##4 make_##name##4(type x, type y, type z, type w) { return {x, y, z, w}; }
#define RAWGRAD_VECTOR3(type, name) struct name##3 { type x, y, z; };
RAWGRAD_VECTOR3(signed char, char)
RAWGRAD_VECTOR3(unsigned char, uchar)
RAWGRAD_VECTOR3(short, short)
RAWGRAD_VECTOR3(unsigned short, ushort)
RAWGRAD_VECTOR3(int, int)
RAWGRAD_VECTOR3(long long, longlong)
RAWGRAD_VECTOR3(unsigned long long, ulonglong)
RAWGRAD_VECTOR3(float, float)
RAWGRAD_VECTOR3(double, double)
#undef RAWGRAD_VECTOR3
RAWGRAD_VECTOR(signed char, char, 1, 2, 4)
RAWGRAD_VECTOR(unsigned char, uchar, 1, 2, 4)
RAWGRAD_VECTOR(short, short, 2, 4, 8)
RAWGRAD_VECTOR(unsigned short, ushort, 2, 4, 8)
RAWGRAD_VECTOR(int, int, 4, 8, 16)
RAWGRAD_VECTOR(unsigned, uint, 4, 8, 16)
RAWGRAD_VECTOR(long long, longlong, 8, 16, 16)
RAWGRAD_VECTOR(unsigned long long, ulonglong, 8, 16, 16)
RAWGRAD_VECTOR(float, float, 4, 8, 16)
RAWGRAD_VECTOR(double, double, 8, 16, 16)
#undef RAWGRAD_VECTOR

// ---- barriers, votes and shuffles
//
// The place of a call is taken from where it stands in the source: `line` and `file` are never given.

#define RAWGRAD_PLACE const char *file = __builtin_FILE(), int line = __builtin_LINE()
#define RAWGRAD_HERE rawgrad_emulator::Place{file, line}
#define UNWATCHED __attribute__((no_sanitize_thread, noinline))

__forceinline__ void __syncthreads(RAWGRAD_PLACE) { rawgrad_emulator::barrier(0, RAWGRAD_HERE); }
__forceinline__ int __syncthreads_count(int predicate, RAWGRAD_PLACE) {
  return rawgrad_emulator::barrier(predicate != 0, RAWGRAD_HERE);
}
__forceinline__ int __syncthreads_or(int predicate, RAWGRAD_PLACE) {
  return rawgrad_emulator::barrier(predicate != 0, RAWGRAD_HERE) != 0;
}
__forceinline__ int __syncthreads_and(int predicate, RAWGRAD_PLACE) {
  return rawgrad_emulator::barrier(predicate == 0, RAWGRAD_HERE) == 0;
}
__forceinline__ void __syncwarp(unsigned mask = 0xffffffffu, RAWGRAD_PLACE) { rawgrad_emulator::sync_warp(mask, RAWGRAD_HERE); }
__forceinline__ void __threadfence() {}
__forceinline__ void __threadfence_block() {}
__forceinline__ void __threadfence_system() {}
[[noreturn]] __forceinline__ void __trap(RAWGRAD_PLACE) { rawgrad_emulator::trap(RAWGRAD_HERE); }

namespace rawgrad_emulator {
template <class T>
__forceinline__ T exchange(unsigned mask, T value, int source, const char* operation, Place place) {
  static_assert(sizeof(T) <= 8, "warp shuffles move at most 8 bytes");
  uint64_t bits = 0;
  memcpy(&bits, &value, sizeof(T));
  bits = exchange_bits(mask, bits, source, operation, place);
  memcpy(&value, &bits, sizeof(T));
  return value;
}
}  // namespace rawgrad_emulator

template <class T>
__forceinline__ T __shfl_sync(unsigned mask, T value, int source, int width = 32, RAWGRAD_PLACE) {
  const int lane = rawgrad_emulator::lane();
  return rawgrad_emulator::exchange(mask, value, lane / width * width + (source & (width - 1)), "__shfl_sync", RAWGRAD_HERE);
}
template <class T>
__forceinline__ T __shfl_xor_sync(unsigned mask, T value, int lane_mask, int width = 32, RAWGRAD_PLACE) {
  const int lane = rawgrad_emulator::lane(), source = lane ^ lane_mask;
  const bool inside = source / width <= lane / width;  // a later part cannot be reached: one's own value
  return rawgrad_emulator::exchange(mask, value, inside ? source : lane, "__shfl_xor_sync", RAWGRAD_HERE);
}
template <class T>
__forceinline__ T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32, RAWGRAD_PLACE) {
  const int lane = rawgrad_emulator::lane(), source = lane + static_cast<int>(delta);
  const bool inside = source / width == lane / width;
  return rawgrad_emulator::exchange(mask, value, inside ? source : lane, "__shfl_down_sync", RAWGRAD_HERE);
}
template <class T>
__forceinline__ T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32, RAWGRAD_PLACE) {
  const int lane = rawgrad_emulator::lane(), source = lane - static_cast<int>(delta);
  const bool inside = source >= lane / width * width;
  return rawgrad_emulator::exchange(mask, value, inside ? source : lane, "__shfl_up_sync", RAWGRAD_HERE);
}
__forceinline__ unsigned __ballot_sync(unsigned mask, int predicate, RAWGRAD_PLACE) {
  return rawgrad_emulator::ballot(mask, predicate != 0, "__ballot_sync", RAWGRAD_HERE);
}
__forceinline__ int __any_sync(unsigned mask, int predicate, RAWGRAD_PLACE) {
  return rawgrad_emulator::ballot(mask, predicate != 0, "__any_sync", RAWGRAD_HERE) != 0;
}
__forceinline__ int __all_sync(unsigned mask, int predicate, RAWGRAD_PLACE) {
  return rawgrad_emulator::ballot(mask, predicate == 0, "__all_sync", RAWGRAD_HERE) == 0;
}

// ---- atomics: one thread runs at a time, so a plain read and write is atomic

namespace rawgrad_emulator {
template <class T, class F>
UNWATCHED T update(T* place, F change) {
  atomic_access(place, sizeof(T), __builtin_return_address(0));
  const T old = *place;
  *place = change(old);
  return old;
}
}  // namespace rawgrad_emulator
template <class T> struct RawgradSame { using type = T; };  // the second argument converts to the first's type
template <class T> using RawgradValue = typename RawgradSame<T>::type;
#define RAWGRAD_ATOMIC_CALLED(name, expression)                                             \
  template <class T>                                                                        \
  __forceinline__ T name(T* place, RawgradValue<T> value) {                                 \
    return rawgrad_emulator::update(place, [=](T old) -> T { return expression; });         \
  }
#define RAWGRAD_ATOMIC(name, expression)           \
  RAWGRAD_ATOMIC_CALLED(name, expression)          \
  RAWGRAD_ATOMIC_CALLED(name##_block, expression)  \
  RAWGRAD_ATOMIC_CALLED(name##_system, expression)
RAWGRAD_ATOMIC(atomicAdd, old + value)
RAWGRAD_ATOMIC(atomicSub, old - value)
RAWGRAD_ATOMIC(atomicExch, ((void)old, value))
RAWGRAD_ATOMIC(atomicMin, value < old ? value : old)
RAWGRAD_ATOMIC(atomicMax, value > old ? value : old)
RAWGRAD_ATOMIC(atomicAnd, old & value)
RAWGRAD_ATOMIC(atomicOr, old | value)
RAWGRAD_ATOMIC(atomicXor, old ^ value)
RAWGRAD_ATOMIC(atomicInc, old >= value ? T(0) : T(old + 1))
RAWGRAD_ATOMIC(atomicDec, old == 0 || old > value ? value : T(old - 1))
#undef RAWGRAD_ATOMIC
#undef RAWGRAD_ATOMIC_CALLED
template <class T>
__forceinline__ T atomicCAS(T* place, RawgradValue<T> compare, RawgradValue<T> value) {
  return rawgrad_emulator::update(place, [=](T old) -> T { return old == compare ? value : old; });
}

// ---- arithmetic

template <class A, class B>
constexpr auto min(A a, B b) -> decltype(a + b) { return b < a ? b : a; }
template <class A, class B>
constexpr auto max(A a, B b) -> decltype(a + b) { return a < b ? b : a; }
inline float min(float a, float b) { return fminf(a, b); }
inline float max(float a, float b) { return fmaxf(a, b); }
inline double min(double a, double b) { return fmin(a, b); }
inline double max(double a, double b) { return fmax(a, b); }

inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }
inline double rsqrt(double x) { return 1.0 / sqrt(x); }
inline float normcdff(float x) { return 0.5f * erfcf(-x * 0.70710678f); }
inline double normcdf(double x) { return 0.5 * erfc(-x * 0.70710678118654752); }
inline float __expf(float x) { return expf(x); }
inline float __logf(float x) { return logf(x); }
inline float __log2f(float x) { return log2f(x); }
inline float __powf(float x, float y) { return powf(x, y); }
inline float __fdividef(float x, float y) { return x / y; }
inline float __fmaf_rn(float x, float y, float z) { return fmaf(x, y, z); }
inline double __fma_rn(double x, double y, double z) { return fma(x, y, z); }
inline float __fadd_rn(float x, float y) { return x + y; }
inline float __fmul_rn(float x, float y) { return x * y; }
inline double __dadd_rn(double x, double y) { return x + y; }
inline double __dmul_rn(double x, double y) { return x * y; }
inline float __saturatef(float x) { return fminf(fmaxf(x, 0.0f), 1.0f); }
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __clz(int x) { return x == 0 ? 32 : __builtin_clz(static_cast<unsigned>(x)); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline unsigned __umulhi(unsigned a, unsigned b) { return static_cast<unsigned>((static_cast<uint64_t>(a) * b) >> 32); }
inline unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
  return static_cast<unsigned long long>((static_cast<unsigned __int128>(a) * b) >> 64);
}

namespace rawgrad_emulator {
template <class To, class From>
__forceinline__ To same_bits(From from) {
  static_assert(sizeof(To) == sizeof(From), "");
  To to;
  memcpy(&to, &from, sizeof(To));
  return to;
}
}  // namespace rawgrad_emulator
inline int __float_as_int(float x) { return rawgrad_emulator::same_bits<int>(x); }
inline unsigned __float_as_uint(float x) { return rawgrad_emulator::same_bits<unsigned>(x); }
inline float __int_as_float(int x) { return rawgrad_emulator::same_bits<float>(x); }
inline float __uint_as_float(unsigned x) { return rawgrad_emulator::same_bits<float>(x); }
inline long long __double_as_longlong(double x) { return rawgrad_emulator::same_bits<long long>(x); }
inline double __longlong_as_double(long long x) { return rawgrad_emulator::same_bits<double>(x); }
template <class T>
__forceinline__ T __ldg(const T* place) { return *place; }

#include "intrinsics.h"

// ---- how a launch enters a kernel: its arguments lie in a buffer as the CUDA driver takes them

namespace rawgrad_emulator {
template <class P>
UNWATCHED P next_argument(const unsigned char* buffer, size_t& offset) {
  offset = (offset + alignof(P) - 1) / alignof(P) * alignof(P);
  alignas(P) unsigned char bytes[sizeof(P)];
  copy_bytes(bytes, buffer + offset, sizeof(P));
  offset += sizeof(P);
  return *reinterpret_cast<P*>(bytes);
}
template <class... P>
UNWATCHED void enter(void (*kernel)(P...), const unsigned char* buffer) {
  size_t offset = 0;
  (void)buffer;
  struct Call {  // braces evaluate in order
    UNWATCHED Call(void (*k)(P...), P... arguments) { k(arguments...); }
  };
  Call{kernel, next_argument<typename std::remove_cv<P>::type>(buffer, offset)...};
}
// Bytes that the kernel's arguments take, so that the launcher can compare them with what it packed.
template <class... P>
size_t argument_bytes(void (*)(P...)) {
  size_t offset = 0;
  (void)std::initializer_list<int>{
      (offset = (offset + alignof(P) - 1) / alignof(P) * alignof(P) + sizeof(P), 0)...};
  return offset;
}
}  // namespace rawgrad_emulator
