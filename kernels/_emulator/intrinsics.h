// CUDA's less frequent device functions, for kernels that people bring along.  Included by device.h.
//
// Functions of the hardware's fast units give the exact result here, rounded as usual.
#pragma once

// ---- constants of math_constants.h

#define CUDART_INF_F __int_as_float(0x7f800000)
#define CUDART_NAN_F __int_as_float(0x7fffffff)
#define CUDART_PI_F 3.141592654f
#define CUDART_INF __longlong_as_double(0x7ff0000000000000ll)
#define CUDART_NAN __longlong_as_double(0xfff8000000000000ll)
#define CUDART_PI 3.1415926535897931

// ---- arithmetic

inline float __sinf(float x) { return sinf(x); }
inline float __cosf(float x) { return cosf(x); }
inline float __tanf(float x) { return tanf(x); }
inline void __sincosf(float x, float* s, float* c) { *s = sinf(x), *c = cosf(x); }
inline float __log10f(float x) { return log10f(x); }
inline float __exp10f(float x) { return powf(10.0f, x); }
inline float __frcp_rn(float x) { return 1.0f / x; }
inline float __fsqrt_rn(float x) { return sqrtf(x); }
inline float __frsqrt_rn(float x) { return static_cast<float>(1.0 / sqrt(static_cast<double>(x))); }
inline float __fdiv_rn(float x, float y) { return x / y; }
inline float __fsub_rn(float x, float y) { return x - y; }
inline double __dsub_rn(double x, double y) { return x - y; }
inline double __ddiv_rn(double x, double y) { return x / y; }
inline double __drcp_rn(double x) { return 1.0 / x; }
inline double __dsqrt_rn(double x) { return sqrt(x); }
inline float fdividef(float x, float y) { return x / y; }
inline float sinpif(float x) { return static_cast<float>(sin(3.14159265358979323846 * remainder(x, 2.0))); }
inline float cospif(float x) { return static_cast<float>(cos(3.14159265358979323846 * remainder(x, 2.0))); }
inline float rcbrtf(float x) { return 1.0f / cbrtf(x); }
inline float rnorm3df(float x, float y, float z) { return 1.0f / sqrtf(x * x + y * y + z * z); }
inline float norm3df(float x, float y, float z) { return sqrtf(x * x + y * y + z * z); }

// ---- conversions: to the nearest (rn, ties to even), down, up, towards zero

#define RAWGRAD_CONVERSION(name, From, To)                                 \
  inline To __##name##_rn(From x) { return static_cast<To>(rint(x)); }    \
  inline To __##name##_rd(From x) { return static_cast<To>(floor(x)); }   \
  inline To __##name##_ru(From x) { return static_cast<To>(ceil(x)); }    \
  inline To __##name##_rz(From x) { return static_cast<To>(x); }
RAWGRAD_CONVERSION(float2int, float, int)
RAWGRAD_CONVERSION(float2uint, float, unsigned)
RAWGRAD_CONVERSION(float2ll, float, long long)
RAWGRAD_CONVERSION(double2int, double, int)
RAWGRAD_CONVERSION(double2ll, double, long long)
#undef RAWGRAD_CONVERSION
inline float __int2float_rn(int x) { return static_cast<float>(x); }
inline float __uint2float_rn(unsigned x) { return static_cast<float>(x); }
inline float __ll2float_rn(long long x) { return static_cast<float>(x); }
inline double __int2double_rn(int x) { return x; }
inline float __double2float_rn(double x) { return static_cast<float>(x); }

// ---- integers

inline int __mul24(int a, int b) { return static_cast<int>(static_cast<unsigned>(a << 8 >> 8) * static_cast<unsigned>(b << 8 >> 8)); }
inline unsigned __umul24(unsigned a, unsigned b) { return (a & 0xffffff) * (b & 0xffffff); }
inline int __mulhi(int a, int b) { return static_cast<int>(static_cast<long long>(a) * b >> 32); }
inline unsigned __brev(unsigned x) {
  unsigned reversed = 0;
  for (int i = 0; i < 32; ++i) reversed |= (x >> i & 1) << (31 - i);
  return reversed;
}
inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
inline int __clzll(long long x) { return x == 0 ? 64 : __builtin_clzll(static_cast<unsigned long long>(x)); }
inline int __ffsll(long long x) { return __builtin_ffsll(x); }
inline unsigned __funnelshift_l(unsigned low, unsigned high, unsigned by) {
  return static_cast<unsigned>(((static_cast<uint64_t>(high) << 32 | low) << (by & 31)) >> 32);
}
inline unsigned __funnelshift_r(unsigned low, unsigned high, unsigned by) {
  return static_cast<unsigned>((static_cast<uint64_t>(high) << 32 | low) >> (by & 31));
}
inline unsigned __byte_perm(unsigned a, unsigned b, unsigned selector) {
  const uint64_t both = static_cast<uint64_t>(b) << 32 | a;
  unsigned chosen = 0;
  for (int i = 0; i < 4; ++i) {
    const unsigned which = selector >> 4 * i & 15;
    unsigned byte = static_cast<unsigned>(both >> 8 * (which & 7)) & 255;
    if (which & 8) byte = byte & 128 ? 255 : 0;  // its sign, repeated
    chosen |= byte << 8 * i;
  }
  return chosen;
}
inline unsigned __sad(int a, int b, unsigned c) { return (a > b ? unsigned(a) - unsigned(b) : unsigned(b) - unsigned(a)) + c; }

// ---- loads and stores with a hint for the caches

#define RAWGRAD_LOAD(name) \
  template <class T>       \
  __forceinline__ T name(const T* place) { return *place; }
RAWGRAD_LOAD(__ldca)
RAWGRAD_LOAD(__ldcg)
RAWGRAD_LOAD(__ldcs)
RAWGRAD_LOAD(__ldcv)
RAWGRAD_LOAD(__ldlu)
#undef RAWGRAD_LOAD
#define RAWGRAD_STORE(name) \
  template <class T>        \
  __forceinline__ void name(T* place, RawgradValue<T> value) { *place = value; }
RAWGRAD_STORE(__stcg)
RAWGRAD_STORE(__stcs)
RAWGRAD_STORE(__stwb)
RAWGRAD_STORE(__stwt)
#undef RAWGRAD_STORE

inline void __nanosleep(unsigned) {}

// ---- warp-wide reductions and comparisons: every lane takes the value of each lane in turn

namespace rawgrad_emulator {
template <class T, class F>
__forceinline__ T over_lanes(unsigned mask, T value, F combine, T start, const char* operation, Place place) {
  T result = start;
  for (int l = 0; l < 32; ++l)
    if (mask >> l & 1) result = combine(result, exchange(mask, value, l, operation, place), l);
  return result;
}
}  // namespace rawgrad_emulator
#define RAWGRAD_REDUCTION(name, Type, start, expression)                                                         \
  __forceinline__ Type name(unsigned mask, Type value, RAWGRAD_PLACE) {                                          \
    return rawgrad_emulator::over_lanes<Type>(                                                                   \
        mask, value, [](Type a, Type b, int) -> Type { return expression; }, Type(start), #name, RAWGRAD_HERE);  \
  }
RAWGRAD_REDUCTION(__reduce_add_sync, unsigned, 0, a + b)
RAWGRAD_REDUCTION(__reduce_min_sync, unsigned, 0xffffffffu, a < b ? a : b)
RAWGRAD_REDUCTION(__reduce_max_sync, unsigned, 0, a > b ? a : b)
RAWGRAD_REDUCTION(__reduce_and_sync, unsigned, 0xffffffffu, a & b)
RAWGRAD_REDUCTION(__reduce_or_sync, unsigned, 0, a | b)
RAWGRAD_REDUCTION(__reduce_xor_sync, unsigned, 0, a ^ b)
RAWGRAD_REDUCTION(__reduce_add_sync, int, 0, static_cast<int>(static_cast<unsigned>(a) + static_cast<unsigned>(b)))
RAWGRAD_REDUCTION(__reduce_min_sync, int, 0x7fffffff, a < b ? a : b)
RAWGRAD_REDUCTION(__reduce_max_sync, int, -0x7fffffff - 1, a > b ? a : b)
#undef RAWGRAD_REDUCTION
template <class T>
__forceinline__ unsigned __match_any_sync(unsigned mask, T value, RAWGRAD_PLACE) {
  unsigned same = 0;
  for (int l = 0; l < 32; ++l)
    if (mask >> l & 1 && rawgrad_emulator::exchange(mask, value, l, "__match_any_sync", RAWGRAD_HERE) == value) same |= 1u << l;
  return same;
}
template <class T>
__forceinline__ unsigned __match_all_sync(unsigned mask, T value, int* all, RAWGRAD_PLACE) {
  unsigned same = 0;
  for (int l = 0; l < 32; ++l)
    if (mask >> l & 1 && rawgrad_emulator::exchange(mask, value, l, "__match_all_sync", RAWGRAD_HERE) == value) same |= 1u << l;
  *all = same == mask;
  return *all ? mask : 0;
}
