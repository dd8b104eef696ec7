// The largest value of each window, where in its window it is, and the gradient's way back.
//
//   N batch  C channels  H W input  R S window  P Q output  stride sh sw  padding ph pw  dilation dh dw
//   y[n,c,p,q] = max over r, s of x[n,c, p sh + r dh - ph, q sw + s dw - pw], codes[n,c,p,q] = r S + s of it
//
// Taps outside the input do not count, a NaN is larger than everything, of equals the first tap wins.
// A window without a tap inside the input gives -infinity and the code R S - 1.
//
// The backward pass gathers: an element of dx adds up, for p and then q ascending, the gradients of those
// windows whose code names it.  Nothing is written twice, so there are no atomics and the order is fixed.
//
//   v1_plain          forward: a thread owns one y and reads its R S taps; backward: a thread owns one dx and
//                     reads the gradient and code of every window over it
//   v2_smem_tile      a block owns a tile, and first copies to shared memory, once, what its tile shares:
//                     the rows of x under its windows, or the gradients and codes of the windows over its dx
//   v3_register_tile  a thread owns four neighbours and keeps what they share in registers; loads and stores
//                     of 16 bytes where the address allows; for WINDOW = 2 or 3 (2 x 2 or 3 x 3 windows,
//                     stride 2, no dilation) sizes are constants and all loops are unrolled
//
// In all of them C and N are one: `plane` counts the N C images of H x W.
//
// Source of the gathering backward pass: Jia et al., "Caffe: convolutional architecture for fast feature
// embedding", 2014, whose GPU kernels do it so.

#include "best.cuh"
#include "windows.cuh"

struct Geometry {
  int N, C, H, W, R, S, P, Q;
  int sh, sw, ph, pw, dh, dw;
};

constexpr int THREADS = 256;
// For v3, so many blocks per multiprocessor at least: a thread may then use up to 64 registers.  Left alone,
// ptxas aims at 32 and spills.
constexpr int V3_BLOCKS = 4;
// So many elements of x, or windows, a block of v2 can stage; the launcher chooses tiles by them.
constexpr int STAGED_ELEMENTS = 4096, STAGED_WINDOWS = 2048;
// So many neighbours a thread of v3 owns.
constexpr int OWN = 4;

// ---- forward, v1

// Block: 256 threads and as many results.  Thread: one y[plane, p, q]; neighbours in x are neighbours in q.
template <class T, class Code>
__global__ void __launch_bounds__(THREADS)
max_pool2d_forward_v1_plain(const T* __restrict__ x, T* __restrict__ y, Code* __restrict__ codes, Geometry g) {
  const int i = blockIdx.x * THREADS + threadIdx.x;
  const int q = i % g.Q, p = i / g.Q % g.P, plane = i / g.Q / g.P;
  if (plane >= g.N * g.C) return;
  Best<T> best;
  for (int r = 0; r < g.R; ++r) {
    const int h = p * g.sh + r * g.dh - g.ph;
    if (!inside(h, g.H)) continue;
    const T* row = x + (plane * g.H + h) * g.W;
    for (int s = 0; s < g.S; ++s) {
      const int w = q * g.sw + s * g.dw - g.pw;
      if (inside(w, g.W)) best.meet(row[w], r * g.S + s);
    }
  }
  y[i] = best.value;
  codes[i] = static_cast<Code>(best.found(g.R * g.S));
}

// ---- forward, v2

// Block: a tile of y.  Thread: elements of x to stage, then outputs of the tile, each 256 apart.
template <class T, class Code>
__global__ void __launch_bounds__(THREADS)
max_pool2d_forward_v2_smem_tile(const T* __restrict__ x, T* __restrict__ y, Code* __restrict__ codes, Geometry g,
                                Tile tile) {
  struct Shared {
    T x[STAGED_ELEMENTS];  // (tile.planes, rows, columns)
  };
  Shared& shared = block_shared<Shared>();
  const Corner corner = corner_of_block(tile, g.P, g.Q);
  const int plane0 = corner.plane, p0 = corner.row, q0 = corner.column;

  const int rows = (tile.height - 1) * g.sh + (g.R - 1) * g.dh + 1;
  const int columns = (tile.width - 1) * g.sw + (g.S - 1) * g.dw + 1;
  for (int i = threadIdx.x; i < tile.planes * rows * columns; i += THREADS) {
    const int w = q0 * g.sw - g.pw + i % columns, h = p0 * g.sh - g.ph + i / columns % rows;
    const int plane = plane0 + i / columns / rows;
    if (plane < g.N * g.C && inside(h, g.H) && inside(w, g.W)) shared.x[i] = x[(plane * g.H + h) * g.W + w];
  }
  __syncthreads();  // everything is staged before anyone reads what others have staged

  for (int i = threadIdx.x; i < tile.planes * tile.height * tile.width; i += THREADS) {
    const int q = i % tile.width, p = i / tile.width % tile.height, z = i / tile.width / tile.height;
    if (q0 + q >= g.Q || p0 + p >= g.P || plane0 + z >= g.N * g.C) continue;
    Best<T> best;
    for (int r = 0; r < g.R; ++r) {
      if (!inside((p0 + p) * g.sh + r * g.dh - g.ph, g.H)) continue;
      const T* row = shared.x + (z * rows + p * g.sh + r * g.dh) * columns + q * g.sw;
      for (int s = 0; s < g.S; ++s)
        if (inside((q0 + q) * g.sw + s * g.dw - g.pw, g.W)) best.meet(row[s * g.dw], r * g.S + s);
    }
    const int to = ((plane0 + z) * g.P + p0 + p) * g.Q + q0 + q;
    y[to] = best.value;
    codes[to] = static_cast<Code>(best.found(g.R * g.S));
  }
}

// ---- v3: four neighbours at once

template <class E>
struct alignas(sizeof(E) == 1 ? OWN : 16) Four {  // codes: 4 bytes, or 16
  E of[OWN];
};

template <class Code>
__device__ __forceinline__ bool is_aligned(const Code* place) {
  return reinterpret_cast<uint64_t>(place) % alignof(Four<Code>) == 0;
}

// g with what WINDOW makes constant, so that the compiler can unroll.
template <int WINDOW>
__device__ __forceinline__ Geometry with_constants(Geometry g) {
  if (WINDOW > 0) {
    g.R = g.S = WINDOW;
    g.sh = g.sw = 2;
    g.dh = g.dw = 1;
  }
  return g;
}

// ---- forward, v3

// Block: 256 threads and OWN results of each.
// Thread: the OWN outputs y[plane, p, q0 …].  If WINDOW says how many elements lie under them, it reads each
// once; at the borders, or else, once for each window.
template <class T, class Code, int WINDOW>
__global__ void __launch_bounds__(THREADS, V3_BLOCKS)
max_pool2d_forward_v3_register_tile(const T* __restrict__ x, T* __restrict__ y, Code* __restrict__ codes,
                                    Geometry geometry) {
  const Geometry g = with_constants<WINDOW>(geometry);
  const int strips = ceil_div(g.Q, OWN);
  const int i = blockIdx.x * THREADS + threadIdx.x;
  const int q0 = i % strips * OWN, p = i / strips % g.P, plane = i / strips / g.P;
  if (plane >= g.N * g.C) return;
  const int w0 = q0 * g.sw - g.pw;

  Best<T> best[OWN];
#pragma unroll (WINDOW > 0 ? WINDOW : 1)
  for (int r = 0; r < g.R; ++r) {
    const int h = p * g.sh + r * g.dh - g.ph;
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
          for (int j = 0; j < OWN; ++j) best[j].meet(span[2 * j + s], r * WINDOW + s);
        continue;
      }
    }
#pragma unroll (WINDOW > 0 ? WINDOW : 1)
    for (int s = 0; s < g.S; ++s)
#pragma unroll
      for (int j = 0; j < OWN; ++j) {
        const int w = w0 + j * g.sw + s * g.dw;
        if (inside(w, g.W)) best[j].meet(row[w], r * g.S + s);
      }
  }

  const int to = (plane * g.P + p) * g.Q + q0;
  T values[OWN];
  Four<Code> found;
#pragma unroll
  for (int j = 0; j < OWN; ++j) {
    values[j] = best[j].value;
    found.of[j] = static_cast<Code>(best[j].found(g.R * g.S));
  }
  if (q0 + OWN <= g.Q && is_aligned(codes + to)) {
    store_row(y + to, values);
    *reinterpret_cast<Four<Code>*>(codes + to) = found;
  } else {
#pragma unroll
    for (int j = 0; j < OWN; ++j)
      if (q0 + j < g.Q) {
        y[to + j] = values[j];
        codes[to + j] = found.of[j];
      }
  }
}

// ---- backward, v1

// The row of taps with which the window p meets row h of x, if it does (none: -1).
__device__ __forceinline__ int row_of_taps(int h, int p, const Geometry& g) {
  const int distance = h + g.ph - p * g.sh;
  return distance % g.dh == 0 ? distance / g.dh : -1;
}

// Block: 256 threads and as many results.  Thread: one dx[plane, h, w]; neighbours in x are neighbours in w.
template <class T, class Code>
__global__ void __launch_bounds__(THREADS)
max_pool2d_backward_v1_plain(const T* __restrict__ grad, const Code* __restrict__ codes, T* __restrict__ dx,
                             Geometry g) {
  const int i = blockIdx.x * THREADS + threadIdx.x;
  const int w = i % g.W, h = i / g.W % g.H, plane = i / g.W / g.H;
  if (plane >= g.N * g.C) return;
  const int first_q = first_window(w + g.pw, (g.S - 1) * g.dw, g.sw), last_q = last_window(w + g.pw, g.sw, g.Q);
  const int last_p = last_window(h + g.ph, g.sh, g.P);
  T sum = 0;
  for (int p = first_window(h + g.ph, (g.R - 1) * g.dh, g.sh); p <= last_p; ++p) {
    const int r = row_of_taps(h, p, g);
    if (r < 0) continue;
    for (int q = first_q; q <= last_q; ++q) {
      const int from = (plane * g.P + p) * g.Q + q;
      if (q * g.sw + (codes[from] - r * g.S) * g.dw == w + g.pw) sum += grad[from];
    }
  }
  dx[i] = sum;
}

// ---- backward, v2

// Block: a tile of dx.  Thread: windows to stage, then elements of the tile, each 256 apart.
template <class T, class Code>
__global__ void __launch_bounds__(THREADS)
max_pool2d_backward_v2_smem_tile(const T* __restrict__ grad, const Code* __restrict__ codes, T* __restrict__ dx,
                                 Geometry g, Tile tile) {
  struct Shared {
    T grad[STAGED_WINDOWS];  // (tile.planes, rows, columns)
    Code codes[STAGED_WINDOWS];
  };
  Shared& shared = block_shared<Shared>();
  const Corner corner = corner_of_block(tile, g.H, g.W);
  const int plane0 = corner.plane, h0 = corner.row, w0 = corner.column;

  // The windows that meet the tile.
  const int reach_h = (g.R - 1) * g.dh, reach_w = (g.S - 1) * g.dw;
  const int p0 = first_window(h0 + g.ph, reach_h, g.sh), q0 = first_window(w0 + g.pw, reach_w, g.sw);
  const int rows = last_window(h0 + tile.height - 1 + g.ph, g.sh, g.P) + 1 - p0;
  const int columns = last_window(w0 + tile.width - 1 + g.pw, g.sw, g.Q) + 1 - q0;
  for (int i = threadIdx.x; i < tile.planes * rows * columns; i += THREADS) {
    const int q = q0 + i % columns, p = p0 + i / columns % rows, plane = plane0 + i / columns / rows;
    if (plane >= g.N * g.C) continue;
    shared.grad[i] = grad[(plane * g.P + p) * g.Q + q];
    shared.codes[i] = codes[(plane * g.P + p) * g.Q + q];
  }
  __syncthreads();  // everything is staged before anyone reads what others have staged

  for (int i = threadIdx.x; i < tile.planes * tile.height * tile.width; i += THREADS) {
    const int w = w0 + i % tile.width, h = h0 + i / tile.width % tile.height, z = i / tile.width / tile.height;
    if (w >= g.W || h >= g.H || plane0 + z >= g.N * g.C) continue;
    const int first_q = first_window(w + g.pw, reach_w, g.sw), last_q = last_window(w + g.pw, g.sw, g.Q);
    const int last_p = last_window(h + g.ph, g.sh, g.P);
    T sum = 0;
    for (int p = first_window(h + g.ph, reach_h, g.sh); p <= last_p; ++p) {
      const int r = row_of_taps(h, p, g);
      if (r < 0) continue;
      for (int q = first_q; q <= last_q; ++q) {
        const int from = (z * rows + p - p0) * columns + q - q0;
        if (q * g.sw + (shared.codes[from] - r * g.S) * g.dw == w + g.pw) sum += shared.grad[from];
      }
    }
    dx[((plane0 + z) * g.H + h) * g.W + w] = sum;
  }
}

// ---- backward, v3

// The gradients and codes of the OWN windows from `from` on, of which `count` exist; no code names any tap of the others.
template <class T, class Code>
__device__ __forceinline__ void load_windows(T (&grad)[OWN], int (&code)[OWN], const T* grads, const Code* codes,
                                             int count) {
  if (count >= OWN && is_aligned(codes)) {
    load_row(grad, grads);
    const Four<Code> four = *reinterpret_cast<const Four<Code>*>(codes);
#pragma unroll
    for (int j = 0; j < OWN; ++j) code[j] = four.of[j];
  } else {
#pragma unroll
    for (int j = 0; j < OWN; ++j) {
      grad[j] = j < count ? grads[j] : T(0);
      code[j] = j < count ? codes[j] : -1;
    }
  }
}

// Block: 256 threads.
// Thread, for WINDOW = 2, where no windows share an element: the 2 x 2 OWN elements under the OWN windows
// (p, q0 …).  There are threads for all of dx, so for windows beyond P and Q as well; those give zeros.
// Thread, else: the OWN elements dx[plane, h, w0 …]; the windows over any of them are read once.
template <class T, class Code, int WINDOW>
__global__ void __launch_bounds__(THREADS, V3_BLOCKS)
max_pool2d_backward_v3_register_tile(const T* __restrict__ grad, const Code* __restrict__ codes, T* __restrict__ dx,
                                     Geometry geometry) {
  const Geometry g = with_constants<WINDOW>(geometry);
  const int i = blockIdx.x * THREADS + threadIdx.x;
  if constexpr (WINDOW == 2) {
    const int strips = ceil_div(g.W + g.pw, 2 * OWN), rows = ceil_div(g.H + g.ph, 2);
    const int q0 = i % strips * OWN, p = i / strips % rows, plane = i / strips / rows;
    if (plane >= g.N * g.C) return;
    T of_window[OWN];
    int code[OWN];
    const int from = (plane * g.P + p) * g.Q + q0;
    load_windows(of_window, code, grad + from, codes + from, p < g.P ? g.Q - q0 : 0);
    const int w0 = 2 * q0 - g.pw;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int h = 2 * p - g.ph + r;
      if (!inside(h, g.H)) continue;
      T row[2 * OWN];
#pragma unroll
      for (int e = 0; e < 2 * OWN; ++e) row[e] = code[e / 2] == 2 * r + e % 2 ? T(0) + of_window[e / 2] : T(0);
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
    const int first_q = first_window(w0 + g.pw, (g.S - 1) * g.dw, g.sw);
    const int last_q = last_window(w0 + OWN - 1 + g.pw, g.sw, g.Q);
    const int last_p = last_window(h + g.ph, g.sh, g.P);
    T sum[OWN] = {};
    for (int p = first_window(h + g.ph, (g.R - 1) * g.dh, g.sh); p <= last_p; ++p) {
      const int r = row_of_taps(h, p, g);
      if (r < 0) continue;
      for (int q = first_q; q <= last_q; ++q) {
        const int from = (plane * g.P + p) * g.Q + q;
        const int s = codes[from] - r * g.S;
        if (!inside(s, g.S)) continue;  // the maximum is in another row
        const int w = q * g.sw + s * g.dw - g.pw;
#pragma unroll
        for (int j = 0; j < OWN; ++j)
          if (w == w0 + j) sum[j] += grad[from];
      }
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

// ---- the adjoint of the backward pass

// Block: 256 threads and as many results.  Thread: one y[plane, p, q], the element of x that its code names; 0 if
// that lies outside the input.
template <class T, class Code>
__global__ void __launch_bounds__(THREADS)
max_pool2d_gather(const T* __restrict__ x, const Code* __restrict__ codes, T* __restrict__ y, Geometry g) {
  const int i = blockIdx.x * THREADS + threadIdx.x;
  const int q = i % g.Q, p = i / g.Q % g.P, plane = i / g.Q / g.P;
  if (plane >= g.N * g.C) return;
  const int code = codes[i];
  const int h = p * g.sh + code / g.S * g.dh - g.ph, w = q * g.sw + code % g.S * g.dw - g.pw;
  y[i] = inside(h, g.H) && inside(w, g.W) ? x[(plane * g.H + h) * g.W + w] : T(0);
}
