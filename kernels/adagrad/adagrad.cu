// One step of AdaGrad over all parameters, float32 and float64.
//
//   g <- g + decay theta
//   s <- s + g^2
//   theta <- theta - rate g / (sqrt(s) + eps),   rate = lr / (1 + (t - 1) lr_decay)
//
//   v1_tensor_list   one launch for a list of tensors; a block owns a chunk of one of them (tensor_list.cuh)
//   v2_loads_first   the same, but each thread asks for its elements before thread 0 prepares what all share
//
// Each element of theta, g and s is read once, of theta and s written once.  MAX comes first among the template
// parameters since instances with the same first argument are compiled together: lists of more than 64 tensors
// need CUDA 12.1.

#include "math.cuh"
#include "tensor_list.cuh"

// What a step does to one element: values are theta, g, s.
template <class T>
struct AdagradUpdate {
  T rate, eps, decay;

  __device__ __forceinline__ void operator()(T (&values)[3]) const {
    const T theta = values[0];
    const T g = decay == T(0) ? values[1] : fma_of(decay, theta, values[1]);
    const T s = fma_of(g, g, values[2]);
    values[0] = fma_of(-rate, g / (sqrt_of(s) + eps), theta);
    values[2] = s;
  }
};

// Block: 256 threads and a chunk of one tensor.  Thread 0 also prepares the numbers that all elements share, in
// double: arithmetic in double is slow on most GPUs.
template <int MAX, class T>
__global__ void __launch_bounds__(TENSOR_LIST_THREADS)
adagrad_step_v1_tensor_list(const __grid_constant__ TensorList<T, 3, MAX> list, const T* __restrict__ lr,
                            const double* __restrict__ lr_double, const long long* __restrict__ step, double lr_decay,
                            double eps, double weight_decay) {
  struct Shared {
    AdagradUpdate<T> update;
  };
  Shared& s = block_shared<Shared>();
  if (threadIdx.x == 0) {
    const double rate = rate_of(lr, lr_double) / (1 + double(*step - 1) * lr_decay);
    s.update = {T(rate), T(eps), T(weight_decay)};
  }
  __syncthreads();  // the numbers are there before any thread uses them
  const AdagradUpdate<T> update = s.update;
  update_chunk(chunk_of_block(list), update);
}

// The same block and threads.  But each thread asks for its elements first, and thread 0 for the step and the rate
// before that, so that the block waits for memory once and not twice.
template <int MAX, class T>
__global__ void __launch_bounds__(TENSOR_LIST_THREADS)
adagrad_step_v2_loads_first(const __grid_constant__ TensorList<T, 3, MAX> list, const T* __restrict__ lr,
                            const double* __restrict__ lr_double, const long long* __restrict__ step, double lr_decay,
                            double eps, double weight_decay) {
  struct Shared {
    AdagradUpdate<T> update;
  };
  Shared& s = block_shared<Shared>();
  const bool prepares = threadIdx.x == 0;
  const long long t = prepares ? *step : 1;
  const double lr_now = prepares ? rate_of(lr, lr_double) : 0;
  const Chunk<T, 3> chunk = chunk_of_block(list);
  Ahead<T, 3> ahead = load_ahead(chunk);
  if (prepares) s.update = {T(lr_now / (1 + double(t - 1) * lr_decay)), T(eps), T(weight_decay)};
  __syncthreads();  // the numbers are there before any thread uses them
  const AdagradUpdate<T> update = s.update;
  update_chunk_ahead(chunk, ahead, update);
}
