// One step of Adam or AdamW over all parameters, float32 and float64.
//
//   g <- g + decay theta                     Adam
//   theta <- theta - lr decay theta          AdamW (decoupled)
//   m <- beta1 m + (1 - beta1) g
//   v <- beta2 v + (1 - beta2) g^2
//   theta <- theta - rate m / (sqrt(v) / root + eps),   rate = lr / (1 - beta1^t), root = sqrt(1 - beta2^t)
//
//   v1_tensor_list   one launch for a list of tensors; a block owns a chunk of one of them (tensor_list.cuh)
//   v2_loads_first   the same, but each thread asks for its elements before thread 0 prepares what all share
//
// Each element of theta, g, m and v is read once, all but g written once.  A step t < 1 changes nothing and is
// reported in `fault`.  MAX comes first among the template parameters since instances with the same first
// argument are compiled together: lists of more than 64 tensors need CUDA 12.1.

#include "math.cuh"
#include "tensor_list.cuh"

// What a step does to one element: values are theta, g, m, v.
template <class T>
struct AdamUpdate {
  T beta1, rest1, beta2, rest2;  // rest = 1 - beta
  T rate, inverse_root, eps;
  T keep, decay;  // keep = 1 - lr decay in AdamW, else 1; decay = 0 in AdamW

  __device__ __forceinline__ void operator()(T (&values)[4]) const {
    const T theta = keep * values[0];
    const T g = decay == T(0) ? values[1] : fma_of(decay, theta, values[1]);
    const T m = fma_of(beta1, values[2], rest1 * g);
    const T v = fma_of(beta2, values[3], rest2 * (g * g));
    values[0] = fma_of(-rate, m / fma_of(sqrt_of(v), inverse_root, eps), theta);
    values[2] = m;
    values[3] = v;
  }
};

// 1 - beta^t for t >= 0, in some multiplications per bit of t, where pow() takes hundreds.  With
// q(n) = 1 - beta^n, q(n + k) = q(n) + q(k) (1 - q(n)): sums of numbers that are not negative, so no digits
// cancel, as they do where beta^t is close to 1.
__device__ __forceinline__ double one_minus_power(double beta, long long t) {
  double q = 0, of_bit = 1 - beta;  // of_bit = q(1), q(2), q(4), ...
  for (; t > 0; t >>= 1) {
    if (t & 1) q = fma(of_bit, 1 - q, q);
    of_bit = fma(of_bit, 1 - of_bit, of_bit);
  }
  return q;
}

// The update of step t, all of it worked out in double.
template <class T>
__device__ __forceinline__ AdamUpdate<T> adam_update(long long t, double rate, double beta1, double beta2, double eps,
                                                     double weight_decay, bool decoupled) {
  return {T(beta1),
          T(1 - beta1),
          T(beta2),
          T(1 - beta2),
          T(rate / one_minus_power(beta1, t)),
          T(1 / sqrt(one_minus_power(beta2, t))),
          T(eps),
          T(decoupled ? 1 - rate * weight_decay : 1.0),
          T(decoupled ? 0.0 : weight_decay)};
}

template <class T>
struct AdamShared {
  AdamUpdate<T> update;
  bool valid;
};

// Block: 256 threads and a chunk of one tensor.  Thread 0 also prepares the numbers that all elements share, in
// double: arithmetic in double is slow on most GPUs, and would be done 256 times.
template <int MAX, class T>
__global__ void __launch_bounds__(TENSOR_LIST_THREADS)
adam_step_v1_tensor_list(const __grid_constant__ TensorList<T, 4, MAX> list, const T* __restrict__ lr,
                         const double* __restrict__ lr_double, const long long* __restrict__ step,
                         long long* __restrict__ fault, double beta1, double beta2, double eps, double weight_decay,
                         bool decoupled) {
  AdamShared<T>& s = block_shared<AdamShared<T>>();
  if (threadIdx.x == 0) {
    const long long t = *step;
    s.valid = t >= 1;
    if (!s.valid && blockIdx.x == 0) atomicMin(fault, t);
    s.update = adam_update<T>(t, rate_of(lr, lr_double), beta1, beta2, eps, weight_decay, decoupled);
  }
  __syncthreads();  // the numbers are there before any thread uses them
  if (!s.valid) return;
  const AdamUpdate<T> update = s.update;
  update_chunk(chunk_of_block(list), update);
}

// The same block and threads.  But each thread asks for its elements first, and thread 0 for the step and the rate
// before that, so that the block waits for memory once and not twice.
template <int MAX, class T>
__global__ void __launch_bounds__(TENSOR_LIST_THREADS)
adam_step_v2_loads_first(const __grid_constant__ TensorList<T, 4, MAX> list, const T* __restrict__ lr,
                         const double* __restrict__ lr_double, const long long* __restrict__ step,
                         long long* __restrict__ fault, double beta1, double beta2, double eps, double weight_decay,
                         bool decoupled) {
  AdamShared<T>& s = block_shared<AdamShared<T>>();
  const bool prepares = threadIdx.x == 0;
  const long long t = prepares ? *step : 0;
  const double rate = prepares ? rate_of(lr, lr_double) : 0;
  const Chunk<T, 4> chunk = chunk_of_block(list);
  Ahead<T, 4> ahead = load_ahead(chunk);
  if (prepares) {
    s.valid = t >= 1;
    if (!s.valid && blockIdx.x == 0) atomicMin(fault, t);
    s.update = adam_update<T>(t, rate, beta1, beta2, eps, weight_decay, decoupled);
  }
  __syncthreads();  // the numbers are there before any thread uses them
  if (!s.valid) return;
  const AdamUpdate<T> update = s.update;
  update_chunk_ahead(chunk, ahead, update);
}
