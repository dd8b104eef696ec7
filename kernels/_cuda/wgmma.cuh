// wgmma: products of a warpgroup, four warps that begin at a multiple of four (sm_90a alone).
//
// d (64 x N, float32 in registers) += a (64 x depth) b (depth x N), with a and b in shared memory; depth is 8 for tf32
// and 16 for bf16 and fp16, 32 bytes each.  Both are stored with k running fastest ("K-major"): rows of 128 (64, 32)
// bytes, as a box of TMA with that swizzle lies there.  Of tf32 the low 13 bits are not looked at.
//
// Lane l of warp w of the group holds, with g = l / 4 and t = l % 4, for each j < N / 8
//
//   d[4 j], d[4 j + 1]      =  d(16 w + g, 8 j + 2 t), d(16 w + g, 8 j + 2 t + 1)
//   d[4 j + 2], d[4 j + 3]  =  the same of row 16 w + g + 8
//
// The products go on while the threads do other things:
//
//   begin_products()      what was done to the registers d comes before the products
//   multiply_group(...)   as often as needed; on the same d they come one after the other
//   commit_products()     those since the last commit become a group
//   wait_products<N>(d)   until at most N groups are under way; only then may d be touched, and a and b be written
//
// All 128 threads take part in each.  Source: PTX ISA, "Asynchronous warpgroup level matrix instructions".
#pragma once
#include "mma.cuh"

// ---- where an operand lies

// A matrix with rows of SWIZZLE bytes that begins at `place`: a multiple of 8 SWIZZLE.
template <int SWIZZLE>
__device__ __forceinline__ uint64_t matrix_descriptor(const void* place) {
  static_assert(SWIZZLE == 128 || SWIZZLE == 64 || SWIZZLE == 32, "the swizzles of TMA");
  constexpr int CODE = SWIZZLE == 128 ? 1 : SWIZZLE == 64 ? 2 : 3;
#ifdef RAWGRAD_EMULATED
  return rawgrad_emulator::wgmma_descriptor(place, 16, 8 * SWIZZLE, CODE);
#else
  // Bits 0-13 the address, 16-29 the step from one column of 8 x 16 bytes to the next (fixed by the swizzle, not read),
  // 32-45 that from eight rows to the next eight, 62-63 the swizzle; all in units of 16 bytes.
  return uint64_t(shared_address(place) >> 4 & 0x3fff) | uint64_t(1) << 16 | uint64_t(8 * SWIZZLE >> 4) << 32 |
         uint64_t(CODE) << 62;
#endif
}

// The same `bytes` further along k: a multiple of 32 within the row.
__device__ __forceinline__ uint64_t further(uint64_t descriptor, int bytes) { return descriptor + (bytes >> 4); }

// ---- the order of things

__device__ __forceinline__ void begin_products() {
#ifdef RAWGRAD_EMULATED
  rawgrad_emulator::wgmma_fence();
#else
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#endif
}

__device__ __forceinline__ void commit_products() {
#ifdef RAWGRAD_EMULATED
  rawgrad_emulator::wgmma_commit();
#else
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
#endif
}

template <int GROUPS_LEFT, int COUNT>
__device__ __forceinline__ void wait_products(float (&d)[COUNT]) {
#ifdef RAWGRAD_EMULATED
  rawgrad_emulator::wgmma_wait(GROUPS_LEFT);
#else
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(GROUPS_LEFT) : "memory");
#pragma unroll
  for (int i = 0; i < COUNT; ++i) asm volatile("" : "+f"(d[i])::"memory");  // no use of d moves before the wait
#endif
}

// ---- multiplying: d = or (with `accumulate`) += a b, for N = 64, 128 and 256, by the size of d

#ifdef RAWGRAD_EMULATED
#define RAWGRAD_WGMMA(Type, number, columns, depth, names, flags)                                                   \
  __device__ __forceinline__ void multiply_group(Type, float (&d)[columns / 2], uint64_t a, uint64_t b,             \
                                                 bool accumulate) {                                                 \
    rawgrad_emulator::wgmma_multiply(rawgrad_emulator::number, d, columns, a, b, accumulate,                        \
                                     {__builtin_FILE(), __builtin_LINE()});                                         \
  }
#else
// The registers of d, in PTX and for the compiler; behind them come a, b and whether to add.
#define RAWGRAD_NAMES_32 \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, %22, %23, " \
  "%24, %25, %26, %27, %28, %29, %30, %31"
#define RAWGRAD_AFTER_32 "%32, %33, "
#define RAWGRAD_KEEP_32 "setp.ne.b32 keep, %34, 0;\n"
#define RAWGRAD_NAMES_64 \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, %22, %23, " \
  "%24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, " \
  "%46, %47, %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define RAWGRAD_AFTER_64 "%64, %65, "
#define RAWGRAD_KEEP_64 "setp.ne.b32 keep, %66, 0;\n"
#define RAWGRAD_NAMES_128 \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, %22, %23, " \
  "%24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, " \
  "%46, %47, %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63, %64, %65, %66, %67, " \
  "%68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, %80, %81, %82, %83, %84, %85, %86, %87, %88, %89, " \
  "%90, %91, %92, %93, %94, %95, %96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, " \
  "%110, %111, %112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127"
#define RAWGRAD_AFTER_128 "%128, %129, "
#define RAWGRAD_KEEP_128 "setp.ne.b32 keep, %130, 0;\n"
#define RAWGRAD_8(i) \
  "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]), "+f"(d[i + 6]), "+f"(d[i + 7])
#define RAWGRAD_REGISTERS_32 RAWGRAD_8(0), RAWGRAD_8(8), RAWGRAD_8(16), RAWGRAD_8(24)
#define RAWGRAD_REGISTERS_64 RAWGRAD_REGISTERS_32, RAWGRAD_8(32), RAWGRAD_8(40), RAWGRAD_8(48), RAWGRAD_8(56)
#define RAWGRAD_REGISTERS_128                                                                                \
  RAWGRAD_REGISTERS_64, RAWGRAD_8(64), RAWGRAD_8(72), RAWGRAD_8(80), RAWGRAD_8(88), RAWGRAD_8(96), RAWGRAD_8(104), \
      RAWGRAD_8(112), RAWGRAD_8(120)
#define RAWGRAD_WGMMA(Type, number, columns, depth, names, flags)                                                   \
  __device__ __forceinline__ void multiply_group(Type, float (&d)[columns / 2], uint64_t a, uint64_t b,             \
                                                 bool accumulate) {                                                 \
    RAWGRAD_WGMMA_ASM(columns, depth, names, flags)                                                                 \
  }
#define RAWGRAD_WGMMA_ASM(columns, depth, names, flags) RAWGRAD_WGMMA_##columns(depth, names, flags)
#define RAWGRAD_WGMMA_64(depth, names, flags) RAWGRAD_WGMMA_OF(64, 32, depth, names, flags)
#define RAWGRAD_WGMMA_128(depth, names, flags) RAWGRAD_WGMMA_OF(128, 64, depth, names, flags)
#define RAWGRAD_WGMMA_256(depth, names, flags) RAWGRAD_WGMMA_OF(256, 128, depth, names, flags)
#define RAWGRAD_WGMMA_OF(columns, count, depth, names, flags)                                                       \
  asm volatile(                                                                                                     \
      "{\n.reg .pred keep;\n" RAWGRAD_KEEP_##count "wgmma.mma_async.sync.aligned.m64n" #columns "k" #depth ".f32." names \
      " {" RAWGRAD_NAMES_##count "}, " RAWGRAD_AFTER_##count "keep, " flags ";\n}"                                   \
      : RAWGRAD_REGISTERS_##count                                                                                   \
      : "l"(a), "l"(b), "r"(static_cast<int>(accumulate)));
#endif
RAWGRAD_WGMMA(Tf32, MMA_TF32, 64, 8, "tf32.tf32", "1, 1")
RAWGRAD_WGMMA(Tf32, MMA_TF32, 128, 8, "tf32.tf32", "1, 1")
RAWGRAD_WGMMA(Tf32, MMA_TF32, 256, 8, "tf32.tf32", "1, 1")
RAWGRAD_WGMMA(Bf16, MMA_BF16, 64, 16, "bf16.bf16", "1, 1, 0, 0")
RAWGRAD_WGMMA(Fp16, MMA_FP16, 64, 16, "f16.f16", "1, 1, 0, 0")
RAWGRAD_WGMMA(Bf16, MMA_BF16, 128, 16, "bf16.bf16", "1, 1, 0, 0")
RAWGRAD_WGMMA(Fp16, MMA_FP16, 128, 16, "f16.f16", "1, 1, 0, 0")
RAWGRAD_WGMMA(Bf16, MMA_BF16, 256, 16, "bf16.bf16", "1, 1, 0, 0")
RAWGRAD_WGMMA(Fp16, MMA_FP16, 256, 16, "f16.f16", "1, 1, 0, 0")
#undef RAWGRAD_WGMMA
