// Elementwise activations y = f(x) and their gradients dL/dx, float32 and float64.
//
//   n     number of elements
//   kind  which f: enum Activation of activation.cuh, where f and its gradient are written down
//   p q   its options (negative_slope, alpha, or beta and threshold)
//
// The kind is an argument and no template parameter: a float32 kernel with every f in it still holds at most
// 32 registers, so that 2048 threads fit on a multiprocessor, and the few comparisons that choose f, the same
// in all threads, are hidden by the memory.  So there is one instance where there would be nine.
//
//   v1_plain   a thread owns one element
//   v2_vector  a thread owns 16 bytes, four floats or two doubles, which one instruction moves for each array;
//              as many threads on the processor have two to four times the bytes under way
//   v3_ahead   a thread owns two such vectors and asks for all of them before it works on any: twice the bytes again
//
// All versions give the same bits.  Forward moves 2 numbers per element, backward 3, each once.

#include "activation.cuh"
#include "vector.cuh"

// ---- v1

// Block: 256 elements.  Thread: one.
template <class T>
__global__ void __launch_bounds__(256)
activation_forward_v1_plain(const T* __restrict__ x, T* __restrict__ y, int n, int kind, double p, double q) {
  const unsigned i = blockIdx.x * 256u + threadIdx.x;  // may pass 2^31 in the last block
  if (i < unsigned(n)) y[i] = activate(kind, x[i], T(p), T(q));
}

// Block: 256 elements.  Thread: one.
template <class T>
__global__ void __launch_bounds__(256)
activation_backward_v1_plain(const T* __restrict__ grad, const T* __restrict__ saved, T* __restrict__ dx, int n,
                             int kind, double p, double q) {
  const unsigned i = blockIdx.x * 256u + threadIdx.x;
  if (i < unsigned(n)) dx[i] = activation_gradient(kind, grad[i], saved[i], T(p), T(q));
}

// ---- v2

// Block: 256 vectors.  Thread: one; element by element if it is the last and not whole, or if an array does
// not start at a multiple of 16 bytes.
template <class T>
__global__ void __launch_bounds__(256)
activation_forward_v2_vector(const T* __restrict__ x, T* __restrict__ y, int n, int kind, double p, double q) {
  constexpr unsigned SIZE = Vector<T>::SIZE;
  const unsigned first = (blockIdx.x * 256u + threadIdx.x) * SIZE, end = unsigned(n);
  if (first + SIZE <= end && is_vector_aligned(x) && is_vector_aligned(y)) {
    Vector<T> v = load_vector(x + first);
#pragma unroll
    for (unsigned e = 0; e < SIZE; ++e) v.of[e] = activate(kind, v.of[e], T(p), T(q));
    store_vector(y + first, v);
  } else {
    for (unsigned i = first; i < min(first + SIZE, end); ++i) y[i] = activate(kind, x[i], T(p), T(q));
  }
}

// Block: 256 vectors.  Thread: one, as in the forward pass.
template <class T>
__global__ void __launch_bounds__(256)
activation_backward_v2_vector(const T* __restrict__ grad, const T* __restrict__ saved, T* __restrict__ dx, int n,
                              int kind, double p, double q) {
  constexpr unsigned SIZE = Vector<T>::SIZE;
  const unsigned first = (blockIdx.x * 256u + threadIdx.x) * SIZE, end = unsigned(n);
  if (first + SIZE <= end && is_vector_aligned(grad) && is_vector_aligned(saved) && is_vector_aligned(dx)) {
    Vector<T> g = load_vector(grad + first);
    const Vector<T> s = load_vector(saved + first);
#pragma unroll
    for (unsigned e = 0; e < SIZE; ++e) g.of[e] = activation_gradient(kind, g.of[e], s.of[e], T(p), T(q));
    store_vector(dx + first, g);
  } else {
    for (unsigned i = first; i < min(first + SIZE, end); ++i)
      dx[i] = activation_gradient(kind, grad[i], saved[i], T(p), T(q));
  }
}

// ---- v3

// Block: 512 vectors.  Thread: two, 256 apart; each as in v2.
template <class T>
__global__ void __launch_bounds__(256)
activation_forward_v3_ahead(const T* __restrict__ x, T* __restrict__ y, int n, int kind, double p, double q) {
  constexpr unsigned SIZE = Vector<T>::SIZE, OWN = 2;
  const unsigned first = (blockIdx.x * 256u * OWN + threadIdx.x) * SIZE, end = unsigned(n);
  const bool aligned = is_vector_aligned(x) && is_vector_aligned(y);
  Vector<T> own[OWN];
#pragma unroll
  for (unsigned v = 0; v < OWN; ++v) {
    const unsigned at = first + v * 256 * SIZE;
    if (aligned && at + SIZE <= end) own[v] = load_vector(x + at);
  }
#pragma unroll
  for (unsigned v = 0; v < OWN; ++v) {
    const unsigned at = first + v * 256 * SIZE;
    if (aligned && at + SIZE <= end) {
#pragma unroll
      for (unsigned e = 0; e < SIZE; ++e) own[v].of[e] = activate(kind, own[v].of[e], T(p), T(q));
      store_vector(y + at, own[v]);
    } else {
      for (unsigned i = at; i < min(at + SIZE, end); ++i) y[i] = activate(kind, x[i], T(p), T(q));
    }
  }
}
