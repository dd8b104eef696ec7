// Numbers of 16 bits to float and back, one by one and by 16 bytes; as many as there are threads.
#include "half.cuh"

template <class S>
__global__ void widen(const S* stored, Wide<S>* one, Wide<S>* eight) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  one[i] = widened(stored[i]);
  Wide<S> all[8];
  load_wide(all, &stored[i / 8 * 8]);
  eight[i] = all[i % 8];
}

template <class S>
__global__ void narrow(const Wide<S>* wide, S* one, S* eight) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  one[i] = narrowed<S>(wide[i]);
  if (i % 8 == 0) {
    Wide<S> all[8];
    for (int e = 0; e < 8; ++e) all[e] = wide[i + e];
    store_narrowed(&eight[i], all);
  }
}
