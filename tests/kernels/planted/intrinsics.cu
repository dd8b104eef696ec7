// What kernels may call besides the usual; compared with NumPy in test_emulator.py.
#include <cuda_runtime.h>
#include <math_constants.h>

__global__ void of_integers(const unsigned* a, const unsigned* b, unsigned* y, int n) {
  const int i = threadIdx.x;
  y[i] = __brev(a[i]);
  y[n + i] = __popc(a[i]) + 100 * __clz(a[i]) + 10000 * __ffs(a[i]);
  y[2 * n + i] = __umulhi(a[i], b[i]);
  y[3 * n + i] = __mulhi(static_cast<int>(a[i]), static_cast<int>(b[i]));
  y[4 * n + i] = __funnelshift_l(a[i], b[i], 5);
  y[5 * n + i] = __byte_perm(a[i], b[i], 0x7612);
  y[6 * n + i] = __umul24(a[i], b[i]);
}

__global__ void of_floats(const float* x, float* y, int* z, int n) {
  const int i = threadIdx.x;
  y[i] = __sinf(x[i]) + __cosf(x[i]);
  y[n + i] = rsqrtf(fabsf(x[i]) + 1);
  y[2 * n + i] = sinpif(x[i]);
  y[3 * n + i] = __saturatef(x[i]);
  y[4 * n + i] = fminf(x[i], CUDART_INF_F) + CUDART_PI_F;
  z[i] = __float2int_rn(x[i]) + 100 * __float2int_rd(x[i]) + 10000 * __float2int_ru(x[i]);
  z[n + i] = __float2int_rz(x[i]);
}

__global__ void of_warps(const int* x, int* y, int n) {
  const int i = threadIdx.x;
  y[i] = __reduce_add_sync(0xffffffffu, x[i]);
  y[n + i] = __reduce_min_sync(0xffffffffu, x[i]);
  y[2 * n + i] = static_cast<int>(__match_any_sync(0xffffffffu, x[i] % 3));
  int all;
  __match_all_sync(0xffffffffu, 7, &all);
  y[3 * n + i] = all;
  __stcg(&y[4 * n + i], __ldcg(&x[i]));
}
