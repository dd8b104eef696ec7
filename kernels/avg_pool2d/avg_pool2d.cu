// The mean of each window, and the gradient's way back.
//
//   N batch  C channels  H W input  R S window  P Q output  stride sh sw  padding ph pw
//   y[n,c,p,q]  = 1 / d[p,q] sum over r, s of x[n,c, p sh + r - ph, q sw + s - pw]
//   dx[n,c,h,w] = sum over the windows (p, q) that hold (h, w) of g[n,c,p,q] / d[p,q],   g = dL/dy
//
// Taps outside the input add nothing.  d counts the taps inside it, and with count_include_pad those in its
// padding; a divisor other than 0 replaces it.
//
// Both sums go by ascending taps: y over r and then s, dx over r and then s too, which is p and then q
// descending.  All versions keep that order, so all of them give the same bits.
//
//   v1_plain          forward: a thread owns one y and reads its R S taps; backward: a thread owns one dx and
//                     reads, and divides, the gradient of every window over it
//   v2_smem_tile      a block owns a tile, and first copies to shared memory, once, what its tile shares:
//                     the rows of x under its windows, with zeros outside the input, so that the sums need no
//                     guards; or the gradients of the windows over its dx, already divided
//   v3_register_tile  a thread owns four neighbours and keeps what they share in registers; loads and stores
//                     of 16 bytes where the address allows; for WINDOW = 2 or 3 (2 x 2 or 3 x 3 windows,
//                     stride 2) sizes are constants and all loops are unrolled
//
// In all of them C and N are one: `plane` counts the N C images of H x W.

#include "windows.cuh"

struct Geometry {
  int N, C, H, W, R, S, P, Q;
  int sh, sw, ph, pw;
  int count_include_pad;
};

constexpr int THREADS = 256;
// For v3, so many blocks per multiprocessor at least: a thread may then use up to 64 registers.  Left alone,
// ptxas aims at 32 and may spill.
constexpr int V3_BLOCKS = 4;
// So many elements of x, or gradients, a block of v2 can stage; the launcher chooses tiles by them.
constexpr int STAGED_ELEMENTS = 4096, STAGED_WINDOWS = 2048;
// So many neighbours a thread of v3 owns.
constexpr int OWN = 4;

// How many taps of a window along one axis count: those from `-margin` up to `size + margin`.
__device__ __forceinline__ int counted(int start, int taps, int size, int margin) {
  return min(start + taps, size + margin) - max(start, -margin);
}

// d[p, q].
template <class T>
__device__ __forceinline__ T divisor_of(int p, int q, T divisor, const Geometry& g) {
  if (divisor != T(0)) return divisor;
  const int rows = counted(p * g.sh - g.ph, g.R, g.H, g.count_include_pad ? g.ph : 0);
  const int columns = counted(q * g.sw - g.pw, g.S, g.W, g.count_include_pad ? g.pw : 0);
  return static_cast<T>(rows * columns);
}

// ---- forward, v1

// Block: 256 threads and as many results.  Thread: one y[plane, p, q]; neighbours in x are neighbours in q.
template <class T>
__global__ void __launch_bounds__(THREADS)
avg_pool2d_forward_v1_plain(const T* __restrict__ x, T* __restrict__ y, Geometry g, double divisor) {
  const int i = blockIdx.x * THREADS + threadIdx.x;
  const int q = i % g.Q, p = i / g.Q % g.P, plane = i / g.Q / g.P;
  if (plane >= g.N * g.C) return;
  T sum = 0;
  for (int r = 0; r < g.R; ++r) {
    const int h = p * g.sh + r - g.ph;
    if (!inside(h, g.H)) continue;
    const T* row = x + (plane * g.H + h) * g.W;
    for (int s = 0; s < g.S; ++s) {
      const int w = q * g.sw + s - g.pw;
      if (inside(w, g.W)) sum += row[w];
    }
  }
  y[i] = sum / divisor_of(p, q, static_cast<T>(divisor), g);
}

// ---- forward, v2

// Block: a tile of y.  Thread: elements of x to stage, then outputs of the tile, each 256 apart.
template <class T>
__global__ void __launch_bounds__(THREADS)
avg_pool2d_forward_v2_smem_tile(const T* __restrict__ x, T* __restrict__ y, Geometry g, double divisor, Tile tile) {
  struct Shared {
    T x[STAGED_ELEMENTS];  // (tile.planes, rows, columns)
  };
  Shared& shared = block_shared<Shared>();
  const Corner corner = corner_of_block(tile, g.P, g.Q);
  const int plane0 = corner.plane, p0 = corner.row, q0 = corner.column;

  const int rows = (tile.height - 1) * g.sh + g.R, columns = (tile.width - 1) * g.sw + g.S;
  for (int i = threadIdx.x; i < tile.planes * rows * columns; i += THREADS) {
    const int w = q0 * g.sw - g.pw + i % columns, h = p0 * g.sh - g.ph + i / columns % rows;
    const int plane = plane0 + i / columns / rows;
    const bool exists = plane < g.N * g.C && inside(h, g.H) && inside(w, g.W);
    shared.x[i] = exists ? x[(plane * g.H + h) * g.W + w] : T(0);
  }
  __syncthreads();  // everything is staged before anyone reads what others have staged

  for (int i = threadIdx.x; i < tile.planes * tile.height * tile.width; i += THREADS) {
    const int q = i % tile.width, p = i / tile.width % tile.height, z = i / tile.width / tile.height;
    if (q0 + q >= g.Q || p0 + p >= g.P || plane0 + z >= g.N * g.C) continue;
    T sum = 0;
    for (int r = 0; r < g.R; ++r)
      for (int s = 0; s < g.S; ++s) sum += shared.x[(z * rows + p * g.sh + r) * columns + q * g.sw + s];
    y[((plane0 + z) * g.P + p0 + p) * g.Q + q0 + q] = sum / divisor_of(p0 + p, q0 + q, static_cast<T>(divisor), g);
  }
}

// ---- forward, v3

// g with what WINDOW makes constant, so that the compiler can unroll.
template <int WINDOW>
__device__ __forceinline__ Geometry with_constants(Geometry g) {
  if (WINDOW > 0) {
    g.R = g.S = WINDOW;
    g.sh = g.sw = 2;
  }
  return g;
}

// Block: 256 threads and OWN results of each.
// Thread: the OWN outputs y[plane, p, q0 …].  If WINDOW says how many elements lie under them, it reads each
// once; at the borders, or else, once for each window.
template <class T, int WINDOW>
__global__ void __launch_bounds__(THREADS, V3_BLOCKS)
avg_pool2d_forward_v3_register_tile(const T* __restrict__ x, T* __restrict__ y, Geometry geometry, double divisor) {
  const Geometry g = with_constants<WINDOW>(geometry);
  const int strips = ceil_div(g.Q, OWN);
  const int i = blockIdx.x * THREADS + threadIdx.x;
  const int q0 = i % strips * OWN, p = i / strips % g.P, plane = i / strips / g.P;
  if (plane >= g.N * g.C) return;
  const int w0 = q0 * g.sw - g.pw;

  T value[OWN] = {};
#pragma unroll (WINDOW > 0 ? WINDOW : 1)
  for (int r = 0; r < g.R; ++r) {
    const int h = p * g.sh + r - g.ph;
    if (!inside(h, g.H)) continue;
    const T* row = x + (plane * g.H + h) * g.W;
    if constexpr (WINDOW > 0) {
      constexpr int SPAN = (OWN - 1) * 2 + WINDOW;  // so many elements lie under the OWN windows
      if (w0 >= 0 && w0 + SPAN <= g.W) {
        T span[SPAN];
        load_row(span, row + w0);
#pragma unroll
        for (int s = 0; s < WINDOW; ++s)
#pragma unroll
          for (int j = 0; j < OWN; ++j) value[j] += span[2 * j + s];
        continue;
      }
    }
#pragma unroll (WINDOW > 0 ? WINDOW : 1)
    for (int s = 0; s < g.S; ++s)
#pragma unroll
      for (int j = 0; j < OWN; ++j) {
        const int w = w0 + j * g.sw + s;
        if (inside(w, g.W)) value[j] += row[w];
      }
  }

#pragma unroll
  for (int j = 0; j < OWN; ++j) value[j] /= divisor_of(p, q0 + j, static_cast<T>(divisor), g);
  T* to = y + (plane * g.P + p) * g.Q + q0;
  if (q0 + OWN <= g.Q) {
    store_row(to, value);
  } else {
#pragma unroll
    for (int j = 0; j < OWN; ++j)
      if (q0 + j < g.Q) to[j] = value[j];
  }
}

// ---- backward, v1

// Block: 256 threads and as many results.  Thread: one dx[plane, h, w]; neighbours in x are neighbours in w.
template <class T>
__global__ void __launch_bounds__(THREADS)
avg_pool2d_backward_v1_plain(const T* __restrict__ grad, T* __restrict__ dx, Geometry g, double divisor) {
  const int i = blockIdx.x * THREADS + threadIdx.x;
  const int w = i % g.W, h = i / g.W % g.H, plane = i / g.W / g.H;
  if (plane >= g.N * g.C) return;
  const int first_p = first_window(h + g.ph, g.R - 1, g.sh), last_p = last_window(h + g.ph, g.sh, g.P);
  const int first_q = first_window(w + g.pw, g.S - 1, g.sw), last_q = last_window(w + g.pw, g.sw, g.Q);
  T sum = 0;
  for (int p = last_p; p >= first_p; --p)
#pragma unroll 1  // unrolled divisions cost registers
    for (int q = last_q; q >= first_q; --q)
      sum += grad[(plane * g.P + p) * g.Q + q] / divisor_of(p, q, static_cast<T>(divisor), g);
  dx[i] = sum;
}

// ---- backward, v2

// Block: a tile of dx.  Thread: gradients to stage, then elements of the tile, each 256 apart.
template <class T>
__global__ void __launch_bounds__(THREADS)
avg_pool2d_backward_v2_smem_tile(const T* __restrict__ grad, T* __restrict__ dx, Geometry g, double divisor, Tile tile) {
  struct Shared {
    T share[STAGED_WINDOWS];  // (tile.planes, rows, columns): what a window gives to each of its elements
  };
  Shared& shared = block_shared<Shared>();
  const Corner corner = corner_of_block(tile, g.H, g.W);
  const int plane0 = corner.plane, h0 = corner.row, w0 = corner.column;

  // The windows that meet the tile.
  const int p0 = first_window(h0 + g.ph, g.R - 1, g.sh), q0 = first_window(w0 + g.pw, g.S - 1, g.sw);
  const int rows = last_window(h0 + tile.height - 1 + g.ph, g.sh, g.P) + 1 - p0;
  const int columns = last_window(w0 + tile.width - 1 + g.pw, g.sw, g.Q) + 1 - q0;
  for (int i = threadIdx.x; i < tile.planes * rows * columns; i += THREADS) {
    const int q = q0 + i % columns, p = p0 + i / columns % rows, plane = plane0 + i / columns / rows;
    if (plane < g.N * g.C)
      shared.share[i] = grad[(plane * g.P + p) * g.Q + q] / divisor_of(p, q, static_cast<T>(divisor), g);
  }
  __syncthreads();  // everything is staged before anyone reads what others have staged

  for (int i = threadIdx.x; i < tile.planes * tile.height * tile.width; i += THREADS) {
    const int w = w0 + i % tile.width, h = h0 + i / tile.width % tile.height, z = i / tile.width / tile.height;
    if (w >= g.W || h >= g.H || plane0 + z >= g.N * g.C) continue;
    const int first_p = first_window(h + g.ph, g.R - 1, g.sh), last_p = last_window(h + g.ph, g.sh, g.P);
    const int first_q = first_window(w + g.pw, g.S - 1, g.sw), last_q = last_window(w + g.pw, g.sw, g.Q);
    T sum = 0;
    for (int p = last_p; p >= first_p; --p)
      for (int q = last_q; q >= first_q; --q) sum += shared.share[(z * rows + p - p0) * columns + q - q0];
    dx[((plane0 + z) * g.H + h) * g.W + w] = sum;
  }
}

// ---- backward, v3

// Block: 256 threads.
// Thread, for WINDOW = 2, where no windows share an element: the 2 x 2 OWN elements under the OWN windows
// (p, q0 …).  There are threads for all of dx, so for windows beyond P and Q as well; those give zeros.
// Thread, else: the OWN elements dx[plane, h, w0 …]; the windows over any of them are read once.
template <class T, int WINDOW>
__global__ void __launch_bounds__(THREADS, V3_BLOCKS)
avg_pool2d_backward_v3_register_tile(const T* __restrict__ grad, T* __restrict__ dx, Geometry geometry, double divisor) {
  const Geometry g = with_constants<WINDOW>(geometry);
  const int i = blockIdx.x * THREADS + threadIdx.x;
  if constexpr (WINDOW == 2) {
    const int strips = ceil_div(g.W + g.pw, 2 * OWN), rows = ceil_div(g.H + g.ph, 2);
    const int q0 = i % strips * OWN, p = i / strips % rows, plane = i / strips / rows;
    if (plane >= g.N * g.C) return;
    T share[OWN];
    const T* from = grad + (plane * g.P + p) * g.Q + q0;
    if (p < g.P && q0 + OWN <= g.Q) {
      load_row(share, from);
#pragma unroll
      for (int j = 0; j < OWN; ++j) share[j] /= divisor_of(p, q0 + j, static_cast<T>(divisor), g);
    } else {
#pragma unroll
      for (int j = 0; j < OWN; ++j) {
        const bool exists = p < g.P && q0 + j < g.Q;
        share[j] = exists ? from[j] / divisor_of(p, q0 + j, static_cast<T>(divisor), g) : T(0);
      }
    }
    T row[2 * OWN];
#pragma unroll
    for (int e = 0; e < 2 * OWN; ++e) row[e] = T(0) + share[e / 2];  // a sum, as elsewhere: -0 becomes 0
    const int w0 = 2 * q0 - g.pw;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int h = 2 * p - g.ph + r;
      if (!inside(h, g.H)) continue;
      T* to = dx + ((plane * g.H + h) * g.W + w0);  // one index: after two, nvcc 13 stores single numbers
      if (w0 >= 0 && w0 + 2 * OWN <= g.W) {
        store_row(to, row);
      } else {
#pragma unroll
        for (int e = 0; e < 2 * OWN; ++e)
          if (inside(w0 + e, g.W)) to[e] = row[e];
      }
    }
  } else {
    const int strips = ceil_div(g.W, OWN);
    const int w0 = i % strips * OWN, h = i / strips % g.H, plane = i / strips / g.H;
    if (plane >= g.N * g.C) return;
    const int first_p = first_window(h + g.ph, g.R - 1, g.sh), last_p = last_window(h + g.ph, g.sh, g.P);
    const int first_q = first_window(w0 + g.pw, g.S - 1, g.sw);
    const int last_q = last_window(w0 + OWN - 1 + g.pw, g.sw, g.Q);
    T sum[OWN] = {};
    for (int p = last_p; p >= first_p; --p)
#pragma unroll 1  // unrolled divisions cost registers
      for (int q = last_q; q >= first_q; --q) {
        const T share = grad[(plane * g.P + p) * g.Q + q] / divisor_of(p, q, static_cast<T>(divisor), g);
        const int start = q * g.sw - g.pw;
#pragma unroll
        for (int j = 0; j < OWN; ++j)
          if (inside(w0 + j - start, g.S)) sum[j] += share;
      }
    T* to = dx + (plane * g.H + h) * g.W + w0;
    if (w0 + OWN <= g.W) {
      store_row(to, sum);
    } else {
#pragma unroll
      for (int j = 0; j < OWN; ++j)
        if (w0 + j < g.W) to[j] = sum[j];
    }
  }
}
