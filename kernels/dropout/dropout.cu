// Dropout, float32 and float64, and the random words of its masks.
//
//   y[i] = scale x[i]  where word[i] > last_dropped, else 0;   scale = 1 / (1 - p)
//
//   n             number of elements
//   seed, offset  the key; word[i] is word i mod 4 of Philox block i div 4 (philox.cuh)
//   last_dropped  ceil(p 2^32) - 1, for 0 < p < 1: the largest word that drops its element
//
//   v1_vector  a thread owns a whole Philox block of four elements
//   v2_ahead   a thread owns two, and asks for all its elements before it computes the words: they are on their way
//              meanwhile, and twice as many
//
// The mask is never stored: the backward pass is the same function of dL/dy and computes the same words
// again.  No word is computed and thrown away but at the end.

#include "philox.cuh"
#include "vector.cuh"

// Block: 256 Philox blocks, 1024 elements.  Thread: four elements, moved 16 bytes at a time; one by one if
// they are the last and not four, or if an array does not start at a multiple of 16 bytes.
template <class T>
__global__ void __launch_bounds__(256)
dropout_forward_v1_vector(const T* __restrict__ x, T* __restrict__ y, int n, unsigned last_dropped, double scale,
                          unsigned long long seed, const unsigned long long* __restrict__ offset) {
  const unsigned block = blockIdx.x * 256u + threadIdx.x, first = 4 * block;  // may pass 2^31 at the end
  const PhiloxWords words = philox_words(seed, *offset, block);
  const T factor = T(scale);
  if (first + 4 <= unsigned(n) && is_vector_aligned(x) && is_vector_aligned(y)) {
    constexpr int SIZE = Vector<T>::SIZE;
#pragma unroll
    for (int start = 0; start < 4; start += SIZE) {
      Vector<T> v = load_vector(x + first + start);
#pragma unroll
      for (int e = 0; e < SIZE; ++e) v.of[e] = words.of[start + e] > last_dropped ? factor * v.of[e] : T(0);
      store_vector(y + first + start, v);
    }
  } else {
#pragma unroll
    for (unsigned e = 0; e < 4; ++e)  // unrolled, so that the words stay in registers
      if (first + e < unsigned(n)) y[first + e] = words.of[e] > last_dropped ? factor * x[first + e] : T(0);
  }
}

// Block: 512 Philox blocks, 2048 elements.  Thread: two, 256 apart, each as in v1.
template <class T>
__global__ void __launch_bounds__(256)
dropout_forward_v2_ahead(const T* __restrict__ x, T* __restrict__ y, int n, unsigned last_dropped, double scale,
                         unsigned long long seed, const unsigned long long* __restrict__ offset) {
  constexpr unsigned OWN = 2, SIZE = Vector<T>::SIZE, PARTS = 4 / SIZE;
  const unsigned first_block = blockIdx.x * 256u * OWN + threadIdx.x, end = unsigned(n);
  const unsigned long long number = *offset;
  const bool aligned = is_vector_aligned(x) && is_vector_aligned(y);
  Vector<T> own[OWN][PARTS];
#pragma unroll
  for (unsigned b = 0; b < OWN; ++b) {
    const unsigned first = 4 * (first_block + b * 256);
#pragma unroll
    for (unsigned part = 0; part < PARTS; ++part)
      if (aligned && first + 4 <= end) own[b][part] = load_vector(x + first + part * SIZE);
  }
  const T factor = T(scale);
#pragma unroll
  for (unsigned b = 0; b < OWN; ++b) {
    const unsigned first = 4 * (first_block + b * 256);
    if (first >= end) return;
    const PhiloxWords words = philox_words(seed, number, first_block + b * 256);
    if (aligned && first + 4 <= end) {
#pragma unroll
      for (unsigned part = 0; part < PARTS; ++part) {
        Vector<T> v = own[b][part];
#pragma unroll
        for (unsigned e = 0; e < SIZE; ++e)
          v.of[e] = words.of[part * SIZE + e] > last_dropped ? factor * v.of[e] : T(0);
        store_vector(y + first + part * SIZE, v);
      }
    } else {
#pragma unroll
      for (unsigned e = 0; e < 4; ++e)  // unrolled, so that the words stay in registers
        if (first + e < end) y[first + e] = words.of[e] > last_dropped ? factor * x[first + e] : T(0);
    }
  }
}

// Block: 256 Philox blocks.  Thread: one, number first_block + its own (mod 2^64), stored at once if whole.
// `words` starts at a multiple of 16 bytes.
__global__ void __launch_bounds__(256)
dropout_philox_v1_vector(unsigned* __restrict__ words, int n, unsigned long long seed,
                         const unsigned long long* __restrict__ offset, unsigned long long first_block) {
  const unsigned block = blockIdx.x * 256u + threadIdx.x, first = 4 * block;
  const PhiloxWords own = philox_words(seed, *offset, first_block + block);
  if (first + 4 <= unsigned(n)) {
    store_vector(words + first, Vector<unsigned>{{own.of[0], own.of[1], own.of[2], own.of[3]}});
  } else {
#pragma unroll
    for (unsigned e = 0; e < 4; ++e)
      if (first + e < unsigned(n)) words[first + e] = own.of[e];
  }
}
