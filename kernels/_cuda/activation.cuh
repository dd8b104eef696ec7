// The activations of kernels/activation (its docstring has the equations) and their gradients, for its own
// kernels and for the ends of others.  Numbers as in kernels/activation/cuda.py, KIND_NUMBERS.
//
// Each case gives NaN where the reference does: a comparison with NaN is false, so the branch for "not less"
// or "not greater" is the one that lets NaN through.
#pragma once
#include "math.cuh"

enum Activation { IDENTITY, RELU, LEAKY_RELU, ELU, SIGMOID, TANH, SILU, GELU, GELU_TANH, SOFTPLUS };

// Phi(x); keeps its digits for negative x, where 1 + erf would lose them.
__device__ __forceinline__ float normal_cdf(float x) { return normcdff(x); }
__device__ __forceinline__ double normal_cdf(double x) { return normcdf(x); }

template <class T>
__device__ __forceinline__ T sigmoid(T x) { return T(1) / (T(1) + exp_of(-x)); }  // e^-x may be inf: 0, as it should

// 2u of gelu's tanh approximation.
template <class T>
__device__ __forceinline__ T twice_u(T x) { return T(1.5957691216057308) * x * (T(1) + T(0.044715) * x * x); }

// f(x); `p` and `q` are the options in the order of kernels/activation.
template <class T>
__device__ __forceinline__ T activate(int kind, T x, T p = T(0), T q = T(0)) {
  switch (kind) {
    case RELU: return x < T(0) ? T(0) : x;  // NaN stays
    case LEAKY_RELU: return x < T(0) ? p * x : x;
    case ELU: return x < T(0) ? p * expm1_of(x) : x;
    case SIGMOID: return sigmoid(x);
    case TANH: return tanh_of(x);
    case SILU: return x * sigmoid(x);
    case GELU: return x * normal_cdf(x);
    case GELU_TANH: return x * sigmoid(twice_u(x));
    case SOFTPLUS: {
      const T z = p * x;  // log(1 + e^z) = log(1 + e^-|z|) + max(z, 0) does not overflow
      if (z > q) return x;
      return (log1p_of(exp_of(-abs_of(z))) + (z < T(0) ? T(0) : z)) / p;
    }
    default: return x;
  }
}

// Beyond this Phi and s(2u) are 0 or 1 and their derivatives 0, in double too.  Taking it for larger |x| keeps
// 0 from meeting an infinity.
template <class T>
__device__ __forceinline__ T not_beyond_40(T x) { return x < T(-40) ? T(-40) : x > T(40) ? T(40) : x; }  // NaN stays

// dL/dx from grad = dL/dy and `saved`, which is y or x as kernels/activation says of the kind.
template <class T>
__device__ __forceinline__ T activation_gradient(int kind, T grad, T saved, T p = T(0), T q = T(0)) {
  switch (kind) {
    case RELU: return saved <= T(0) ? T(0) : grad;
    case LEAKY_RELU: return saved > T(0) ? grad : p * grad;
    case ELU: return saved > T(0) ? grad : (saved + p) * grad;
    case SIGMOID: return (T(1) - saved) * saved * grad;
    case TANH: return (T(1) - saved * saved) * grad;
    case SILU: {
      const T s = sigmoid(saved);
      return ((T(1) - s) * saved + T(1)) * s * grad;
    }
    case GELU: {
      const T x = not_beyond_40(saved);
      const T density = exp_of(T(-0.5) * x * x) * T(0.39894228040143268);  // 1 / sqrt(2 pi)
      return (density * x + normal_cdf(x)) * grad;
    }
    case GELU_TANH: {
      const T x = not_beyond_40(saved);
      const T gate = sigmoid(twice_u(x)), rest = sigmoid(twice_u(-x));  // 1 - gate would lose digits
      const T slope = T(1.5957691216057308) * (T(0.134145) * x * x + T(1));  // 2u'
      return (slope * gate * rest * x + gate) * grad;
    }
    case SOFTPLUS: {
      const T z = p * saved;
      return z > q ? grad : sigmoid(z) * grad;
    }
    default: return grad;
  }
}

// The same for those kinds whose gradient is a function of y alone and takes no library function; short enough to
// be unrolled where the whole of the above is not.
template <class T>
__device__ __forceinline__ T gradient_by_output(int kind, T grad, T y) {
  if (kind == RELU) return y <= T(0) ? T(0) : grad;
  if (kind == SIGMOID) return (T(1) - y) * y * grad;
  if (kind == TANH) return (T(1) - y * y) * grad;
  return grad;
}
