// One step of RMSProp over all parameters, float32 and float64.
//
//   g <- g + decay theta
//   s <- alpha s + (1 - alpha) g^2
//   m <- alpha m + (1 - alpha) g                               (CENTERED)
//   d  = g / (sqrt(s) + eps),  centered g / (sqrt(max(s - m^2, 0)) + eps)
//   v <- momentum v + d                                        (MOMENTUM)
//   theta <- theta - rate d,  with momentum theta - rate v
//
//   v1_tensor_list   one launch for a list of tensors; a block owns a chunk of one of them (tensor_list.cuh)
//   v2_loads_first   the same, but each thread asks for its elements before thread 0 prepares what all share
//
// Each element of theta, g, s, v and m is read once, all but g written once.  MAX comes first among the template
// parameters since instances with the same first argument are compiled together: lists of more than 64 tensors
// need CUDA 12.1.

#include "math.cuh"
#include "tensor_list.cuh"

// What a step does to one element: values are theta, g, s, then v, then m, as far as they exist.
template <class T, bool MOMENTUM, bool CENTERED>
struct RmspropUpdate {
  T rate, alpha, rest, eps, momentum, decay;  // rest = 1 - alpha

  template <int LISTS>
  __device__ __forceinline__ void operator()(T (&values)[LISTS]) const {
    const T theta = values[0];
    const T g = decay == T(0) ? values[1] : fma_of(decay, theta, values[1]);
    const T s = values[2] = fma_of(alpha, values[2], rest * (g * g));
    T variance = s;
    if constexpr (CENTERED) {
      const T m = values[LISTS - 1] = fma_of(alpha, values[LISTS - 1], rest * g);
      variance = fma_of(-m, m, s);
      if (variance < T(0)) variance = T(0);  // NaN stays
    }
    T d = g / (sqrt_of(variance) + eps);
    if constexpr (MOMENTUM) d = values[3] = fma_of(momentum, values[3], d);
    values[0] = fma_of(-rate, d, theta);
  }
};

// Block: 256 threads and a chunk of one tensor.  Thread 0 also prepares the numbers that all elements share:
// conversions from double are slow on most GPUs.
template <int MAX, class T, bool MOMENTUM, bool CENTERED>
__global__ void __launch_bounds__(TENSOR_LIST_THREADS)
rmsprop_step_v1_tensor_list(const __grid_constant__ TensorList<T, 3 + MOMENTUM + CENTERED, MAX> list,
                            const T* __restrict__ lr, const double* __restrict__ lr_double, double alpha, double eps,
                            double momentum, double weight_decay) {
  struct Shared {
    RmspropUpdate<T, MOMENTUM, CENTERED> update;
  };
  Shared& s = block_shared<Shared>();
  if (threadIdx.x == 0)
    s.update = {T(rate_of(lr, lr_double)), T(alpha), T(1 - alpha), T(eps), T(momentum), T(weight_decay)};
  __syncthreads();  // the numbers are there before any thread uses them
  const RmspropUpdate<T, MOMENTUM, CENTERED> update = s.update;
  update_chunk(chunk_of_block(list), update);
}

// The same block and threads.  But each thread asks for its elements first, and thread 0 for the rate before that,
// so that the block waits for memory once and not twice.
template <int MAX, class T, bool MOMENTUM, bool CENTERED>
__global__ void __launch_bounds__(TENSOR_LIST_THREADS)
rmsprop_step_v2_loads_first(const __grid_constant__ TensorList<T, 3 + MOMENTUM + CENTERED, MAX> list,
                            const T* __restrict__ lr, const double* __restrict__ lr_double, double alpha, double eps,
                            double momentum, double weight_decay) {
  constexpr int LISTS = 3 + MOMENTUM + CENTERED;
  struct Shared {
    RmspropUpdate<T, MOMENTUM, CENTERED> update;
  };
  Shared& s = block_shared<Shared>();
  const bool prepares = threadIdx.x == 0;
  const double rate = prepares ? rate_of(lr, lr_double) : 0;
  const Chunk<T, LISTS> chunk = chunk_of_block(list);
  Ahead<T, LISTS> ahead = load_ahead(chunk);
  if (prepares) s.update = {T(rate), T(alpha), T(1 - alpha), T(eps), T(momentum), T(weight_decay)};
  __syncthreads();  // the numbers are there before any thread uses them
  const RmspropUpdate<T, MOMENTUM, CENTERED> update = s.update;
  update_chunk_ahead(chunk, ahead, update);
}
