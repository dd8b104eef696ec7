// Kernels that touch what they must not; with `mended` each is right.
#include "vector.cuh"

__global__ void behind_the_end(const float* x, float* y, int n, int mended) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (mended ? i < n : i <= n) y[i] = x[i];  // END
}

__global__ void before_the_begin(const float* x, float* y, int n, int mended) {
  const int i = threadIdx.x;
  if (i < n) y[i] = x[mended && i == 0 ? 0 : i - 1];  // BEGIN
}

__global__ void half_outside(float* y, int mended) {
  *reinterpret_cast<double*>(&y[mended ? 0 : 2]) = 0;  // HALF
}

__global__ void through_null(const float* bias, float* y, int mended) {
  y[threadIdx.x] = (mended ? bias != nullptr : true) ? bias[threadIdx.x] : 0.0f;  // NULL
}

__global__ void anothers_variables(int* y, int mended) {
  __shared__ int* address[1];
  int own = 5 + threadIdx.x;
  if (threadIdx.x == 0) address[0] = &own;
  __syncthreads();
  y[threadIdx.x] = mended ? own : *address[0];  // LOCAL
}

struct Tiles {
  float a[4][8], b[4][8];
};
// Beyond the first tile lies the second, so only the index betrays it.
__global__ void beyond_a_tile(float* y, int row, int mended) {
  Tiles& s = block_shared<Tiles>();
  for (int r = 0; r < 4; ++r) s.a[r][threadIdx.x] = s.b[r][threadIdx.x] = r;
  __syncthreads();
  y[threadIdx.x] = s.a[mended ? row - 1 : row][threadIdx.x];  // TILE
}

__global__ void beyond_a_register(const float* x, float* y, int n, int mended) {
  float own[4] = {};
  for (int i = 0; i < (mended ? n : n + 1); ++i) own[i] += x[threadIdx.x];  // REGISTER
  y[threadIdx.x] = own[0] + own[3];
}

__global__ void misaligned_vector(const float* x, float* y, int mended) {
  const Vector<float> v = load_vector(&x[mended ? 4 : 1]);  // VECTOR
  y[threadIdx.x] = v.of[0];
}

// 16 bytes that need no more than 8-byte alignment.
struct Complex {
  double re, im;
};
__global__ void merely_large(const double* x, double* y) {
  const Complex z = *reinterpret_cast<const Complex*>(&x[1]);
  y[0] = z.re;
  y[1] = z.im;
}

__global__ void misaligned_shared(float* y, int mended) {
  __shared__ __align__(16) float box[64];
  box[threadIdx.x] = threadIdx.x;
  __syncthreads();
  y[threadIdx.x] = reinterpret_cast<float2*>(&box[mended ? 2 : 1])->y;  // PAIR
}

__global__ void writes_its_input(const float* x, float* y, int mended) {
  y[threadIdx.x] = 2 * x[threadIdx.x];
  if (threadIdx.x == 2 && !mended) const_cast<float*>(x)[2] = 0;  // CONST
}

__global__ void reads_its_output(float* y, int mended) {
  float sum = 0;
  if (!mended) sum = y[threadIdx.x];  // OUTPUT
  y[threadIdx.x] = sum + 1;
}

// A sum over the tile, of which the last elements were never filled.
__global__ void unfilled(const float* x, float* y, int n, int mended) {
  __shared__ float box[8];
  if (threadIdx.x < n) box[threadIdx.x] = x[threadIdx.x];
  else if (mended) box[threadIdx.x] = 0;
  __syncthreads();
  float sum = 0;
  for (int i = 0; i < 8; ++i) sum += box[i];  // FILL
  y[threadIdx.x] = sum;
}

// What an earlier block left in shared memory is not there.
__global__ void left_behind(int* y, int mended) {
  __shared__ int box[1];
  if (blockIdx.x == 0 || mended) box[0] = 1;
  __syncthreads();
  y[blockIdx.x] = box[0];  // LEFT
}

__global__ void copied_in_bulk(const float* x, float* y, int n, int mended) {
  memcpy(y, x, mended ? n * sizeof(float) : (n + 1) * sizeof(float));  // BULK
}

__global__ void divides(const int* x, int* y, int mended) {
  const int by = x[threadIdx.x];
  y[threadIdx.x] = by == 0 && mended ? 0 : 100 / by;  // DIVIDE
}
__global__ void shifts(const int* x, int* y, int mended) {
  const int by = x[threadIdx.x];
  y[threadIdx.x] = by > 31 && mended ? 0 : 1 << by;  // SHIFT
}
__global__ void converts(const float* x, int* y, int mended) {
  const float value = x[threadIdx.x];
  y[threadIdx.x] = mended ? static_cast<int>(fminf(value, 100.0f)) : static_cast<int>(value);  // CONVERT
}

__global__ void asserts(const int* x, int* y, int mended) {
  const int value = x[threadIdx.x];
  if (!mended) assert(value > 0);  // ASSERT
  y[threadIdx.x] = value;
}
__global__ void traps(int* y, int mended) {
  if (threadIdx.x == 3 && !mended) __trap();  // TRAP
  y[threadIdx.x] = 1;
}

__device__ __noinline__ int deep(int n, volatile int* sum) {
  volatile int own[64];
  for (int i = 0; i < 64; ++i) own[i] = n;
  *sum += own[n % 64];
  return n == 0 ? 0 : 1 + deep(n - 1, sum);  // RECURSION
}
__global__ void recursive(int* y, int mended) {
  int sum = 0;
  y[threadIdx.x] = deep(mended ? 10 : 100000, &sum);
}

__global__ void waits_for_another(volatile int* flag, int* y, int mended) {
  if (threadIdx.x == 0) flag[0] = 1;
  if (mended) __syncthreads();
  if (threadIdx.x == 1)
    while (flag[1] == 0 && !mended) {  // SPIN
    }
  y[threadIdx.x] = flag[0];
}

__global__ void turns_in_circles(int* y, int mended) {
  int i = threadIdx.x;
  while (i != 1000) i = mended ? 1000 : (i + 1) & 127;  // CIRCLE
  y[threadIdx.x] = i;
}

// Dynamic shared memory: 4 bytes for each thread.
extern __shared__ __align__(16) unsigned char anything[];
__global__ void dynamic(int* y) {
  int* box = reinterpret_cast<int*>(anything);
  box[threadIdx.x] = threadIdx.x;  // DYNAMIC
  __syncthreads();
  y[threadIdx.x] = box[blockDim.x - 1 - threadIdx.x];
}
template <class T>
__global__ void dynamic_of_type(T* y) {
  extern __shared__ T box[];
  box[threadIdx.x] = threadIdx.x;
  __syncthreads();
  y[threadIdx.x] = box[blockDim.x - 1 - threadIdx.x];
}
struct Large {
  float of[20000];
};
__global__ void large(float* y) {
  Large& s = block_shared<Large>();  // LARGE
  s.of[threadIdx.x] = 1;
  y[threadIdx.x] = s.of[threadIdx.x];
}

__shared__ int at_file_scope[32];
__global__ void in_variables(float* y, int* z, int n) {
  __shared__ float a[4][8], b[32];
  __shared__ double c;
  a[threadIdx.x / 8][threadIdx.x % 8] = threadIdx.x;
  b[31 - threadIdx.x] = 10 * threadIdx.x;
  at_file_scope[threadIdx.x] = n;
  if (threadIdx.x == 0) c = 0.5;
  __syncthreads();
  y[threadIdx.x] = a[3 - threadIdx.x / 8][threadIdx.x % 8] + b[threadIdx.x] + c;
  z[threadIdx.x] = at_file_scope[31 - threadIdx.x];
}
__global__ void unset_variable(int* y) {
  __shared__ int set, unset;
  if (threadIdx.x == 0) set = 1;
  __syncthreads();
  y[threadIdx.x] = set + unset;  // UNSET
}
__global__ void too_many_variables(float* y) {
  __shared__ float a[8000], b[8000];
  a[threadIdx.x] = b[threadIdx.x] = 1;  // MANY VARIABLES
  y[threadIdx.x] = a[threadIdx.x];
}

// Tables of constants are neither shared nor unwritten.
__constant__ float factors[4] = {1, 2, 4, 8};
template <class T>
__device__ T table(int i) {
  static constexpr T values[4] = {10, 20, 30, 40};
  return values[i];
}
__global__ void constants(float* y) { y[threadIdx.x] = factors[threadIdx.x] + table<float>(3 - threadIdx.x); }

struct Inner {
  int rows, columns;
};
struct Shape {
  int n;
  float scale;
  Inner size;
};
struct Ints {
  int first, second, third;
};
__global__ void structs(int* y, Ints ints, bool flag, unsigned char byte, double number, Ints more) {
  y[0] = ints.first + 10 * ints.second + 100 * ints.third;
  y[1] = flag ? byte : -1;
  y[2] = static_cast<int>(number * 4);
  y[3] = more.third;
}
