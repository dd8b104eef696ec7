// One step of stochastic gradient descent over all parameters, float32 and float64.
//
//   g <- g + decay theta
//   v <- g at the first step, later momentum v + (1 - dampening) g        (MOMENTUM)
//   theta <- theta - rate d,   d = g, with momentum v, with nesterov g + momentum v
//
//   v1_tensor_list   one launch for a list of tensors; a block owns a chunk of one of them (tensor_list.cuh)
//   v2_loads_first   the same, but each thread asks for its elements before thread 0 prepares what all share
//
// Each element of theta, g and v is read once, of theta and v written once.  MAX comes first among the template
// parameters since instances with the same first argument are compiled together: lists of more than 64 tensors
// need CUDA 12.1.

#include "math.cuh"
#include "tensor_list.cuh"

// What a step does to one element: values are theta, g, v.
template <class T, bool MOMENTUM>
struct SgdUpdate {
  T rate, momentum, share, decay;  // share of g in v
  bool first, nesterov;

  template <int LISTS>
  __device__ __forceinline__ void operator()(T (&values)[LISTS]) const {
    const T theta = values[0];
    const T g = decay == T(0) ? values[1] : fma_of(decay, theta, values[1]);
    T d = g;
    if constexpr (MOMENTUM) {
      const T v = first ? g : fma_of(momentum, values[2], share * g);
      d = nesterov ? fma_of(momentum, v, g) : v;
      values[2] = v;
    }
    values[0] = fma_of(-rate, d, theta);
  }
};

// Block: 256 threads and a chunk of one tensor.  Thread 0 also prepares the numbers that all elements share:
// conversions from double are slow on most GPUs.
template <int MAX, class T, bool MOMENTUM>
__global__ void __launch_bounds__(TENSOR_LIST_THREADS)
sgd_step_v1_tensor_list(const __grid_constant__ TensorList<T, MOMENTUM ? 3 : 2, MAX> list, const T* __restrict__ lr,
                        const double* __restrict__ lr_double, const long long* __restrict__ step, double momentum,
                        double dampening, bool nesterov, double weight_decay) {
  struct Shared {
    SgdUpdate<T, MOMENTUM> update;
  };
  Shared& s = block_shared<Shared>();
  if (threadIdx.x == 0)
    s.update = {T(rate_of(lr, lr_double)), T(momentum), T(1 - dampening), T(weight_decay), *step == 1, nesterov};
  __syncthreads();  // the numbers are there before any thread uses them
  const SgdUpdate<T, MOMENTUM> update = s.update;
  update_chunk(chunk_of_block(list), update, update.first ? 2 : -1);
}

// The same block and threads.  But each thread asks for its elements first, and thread 0 for the step and the rate
// before that, so that the block waits for memory once and not twice.  v waits: the step says whether it is read.
template <int MAX, class T, bool MOMENTUM>
__global__ void __launch_bounds__(TENSOR_LIST_THREADS, 4)
sgd_step_v2_loads_first(const __grid_constant__ TensorList<T, MOMENTUM ? 3 : 2, MAX> list, const T* __restrict__ lr,
                        const double* __restrict__ lr_double, const long long* __restrict__ step, double momentum,
                        double dampening, bool nesterov, double weight_decay) {
  constexpr int LISTS = MOMENTUM ? 3 : 2;
  struct Shared {
    SgdUpdate<T, MOMENTUM> update;
  };
  Shared& s = block_shared<Shared>();
  const bool prepares = threadIdx.x == 0;
  const long long t = prepares ? *step : 0;
  const double rate = prepares ? rate_of(lr, lr_double) : 0;
  const Chunk<T, LISTS> chunk = chunk_of_block(list);
  Ahead<T, LISTS> ahead = load_ahead(chunk, 2);
  if (prepares) s.update = {T(rate), T(momentum), T(1 - dampening), T(weight_decay), t == 1, nesterov};
  __syncthreads();  // the numbers are there before any thread uses them
  const SgdUpdate<T, MOMENTUM> update = s.update;
  update_chunk_ahead(chunk, ahead, update, 2, update.first);
}
