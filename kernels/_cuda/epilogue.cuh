// How a product ends, on the way of its numbers from the registers to y:
//
//   y = f'(saved) dropout(activation(sum + bias))        f the activation `gradient`
//
// Each part may be missing.  Forward there are bias, activation and dropout.  Backward, where the product is dL/d(the
// result of a layer below), there are that layer's dropout, drawn again, and the slope of its activation, so that y is
// dL/d(the argument of the activation) and nothing in between is written.
//
// The bits are those of kernels/dropout and kernels/activation on the product as it is written without them: word
// `at` mod 4 of Philox block `at` div 4 belongs to element `at` of y, whichever thread has it.
//
// All parts are options of one kernel, not template parameters: the branches are the same in all threads, and there is
// one instance where there would be eight.
#pragma once
#include "activation.cuh"
#include "half.cuh"
#include "philox.cuh"

// Packed by kernels/_epilogue.py.  S: how y is stored.
template <class S>
struct Epilogue {
  const S* saved;                    // the result of the activation `gradient`, element for element beside y
  const unsigned long long* offset;  // of dropout's key; null: nothing is dropped
  unsigned long long seed;
  double scale;           // 1 / (1 - p)
  unsigned last_dropped;  // ceil(p 2^32) - 1: the largest word that drops its element
  int activation, gradient;
};

// COUNT numbers that lie side by side in a row of y.
template <class T, int COUNT>
struct Neighbours {
  T of[COUNT];
};

// Bit e says whether dropout keeps element at + e of y; of COUNT of them, at most 4.
template <int COUNT, class S>
__device__ __forceinline__ unsigned kept(const Epilogue<S>& epilogue, unsigned at) {
  const auto bits = [&](unsigned block) {
    const PhiloxWords words = philox_words(epilogue.seed, *epilogue.offset, block);
    unsigned found = 0;
#pragma unroll
    for (unsigned j = 0; j < 4; ++j)
      if (words.of[j] > epilogue.last_dropped) found |= 1u << j;
    return found;
  };
  const unsigned first = at % 4;
  unsigned found = bits(at / 4) >> first;
  if (COUNT > 1 && first + COUNT > 4) found |= bits(at / 4 + 1) << (4 - first);  // where rows are no whole blocks
  return found;
}

// All but the bias, of elements at, at + 1, ... of y, of which `count` are there.  A function of its own, called once:
// in their places these parts would be longer than the loop that multiplies, and while a thread finishes some of its
// numbers, its other sums, up to 128, need their registers.
template <class S, class T, int COUNT>
__device__ __noinline__ Neighbours<T, COUNT> finish_called(const Epilogue<S>& epilogue, Neighbours<T, COUNT> x,
                                                           unsigned at, int count) {
#pragma unroll
  for (int e = 0; e < COUNT; ++e) x.of[e] = activate(epilogue.activation, x.of[e]);  // ReLU twice is ReLU
  if (epilogue.offset != nullptr) {
    const unsigned bits = kept<COUNT>(epilogue, at);
#pragma unroll
    for (int e = 0; e < COUNT; ++e) x.of[e] = bits >> e & 1 ? T(epilogue.scale) * x.of[e] : T(0);
  }
  if (epilogue.gradient != IDENTITY) {
#pragma unroll
    for (int e = 0; e < COUNT; ++e)
      if (e < count) x.of[e] = gradient_by_output(epilogue.gradient, x.of[e], widened(epilogue.saved[at + e]));
  }
  return x;
}

// Whether there is more than a bias and ReLU.
template <class S>
__device__ __forceinline__ bool is_rare(const Epilogue<S>& epilogue) {
  return epilogue.activation > RELU || epilogue.offset != nullptr || epilogue.gradient != IDENTITY;
}

// Elements in columns n, n + 1, ..., of which `count` are there, where the epilogue is not rare: most products.
template <class S, class T, int COUNT>
__device__ __forceinline__ void finish_plainly(const Epilogue<S>& epilogue, const S* __restrict__ bias, T (&x)[COUNT],
                                               int n, int count) {
#pragma unroll
  for (int e = 0; e < COUNT; ++e) {
    if (bias != nullptr && e < count) x[e] += widened(bias[n + e]);
    if (epilogue.activation == RELU) x[e] = x[e] < T(0) ? T(0) : x[e];  // NaN stays
  }
}

// Elements at, at + 1, ... of y, in columns n, n + 1, ..., of which `count` are there.
template <class S, class T, int COUNT>
__device__ __forceinline__ void finish_neighbours(const Epilogue<S>& epilogue, const S* __restrict__ bias,
                                                  T (&x)[COUNT], unsigned at, int n, int count) {
  finish_plainly(epilogue, bias, x, n, count);
  if (is_rare(epilogue)) {
    Neighbours<T, COUNT> all;
#pragma unroll
    for (int e = 0; e < COUNT; ++e) all.of[e] = x[e];
    all = finish_called(epilogue, all, at, count);
#pragma unroll
    for (int e = 0; e < COUNT; ++e) x[e] = all.of[e];
  }
}

// One element, in column n.
template <class S, class T>
__device__ __forceinline__ T finished(const Epilogue<S>& epilogue, const S* __restrict__ bias, T x, unsigned at,
                                      int n) {
  T one[1] = {x};
  finish_neighbours(epilogue, bias, one, at, n, 1);
  return one[0];
}
