// Embedding: rows of a table chosen by indices, and the gradient of the table, float32 and float64.
//
//   V rows of D elements   w (V, D) table   i (n,) indices   y (n, D)   g = dL/dy
//
//   forward    y[k, :] = w[i[k], :]
//   backward   dw[v, :] = sum of g[k, :] over the places k with i[k] = v
//
// An index out of range lowers `fault` to its place, chooses zeros, and adds to no row.
//
// Backward is a gather, so that no two threads add to the same element: the places are sorted by their
// index, and then the places of a row lie side by side, in ascending order.
//
//   backward_keys      the indices, which may be integers of any type, as 32-bit keys
//   backward_count     how often each digit occurs in each tile of keys      }
//   backward_scan      where the keys of each digit and tile begin            } for each 8 bits of a key
//   backward_scatter   keys and places, moved there                           }
//   backward_starts    where the places of each row begin
//   backward_sum       dw
//
// This is a radix sort by the lowest digit first; it is right because each pass keeps the order of keys
// whose digits are equal.  Sources: Knuth, "The Art of Computer Programming", volume 3, 5.2.5; Satish,
// Harris and Garland, "Designing efficient sorting algorithms for manycore GPUs", 2009.

#include "vector.cuh"
#include "warp.cuh"

// Consecutive elements of a row, moved at once: 16 bytes (VECTOR) or one element.
template <class T, bool VECTOR>
struct Piece {
  static constexpr int SIZE = VECTOR ? Vector<T>::SIZE : 1;
  T of[SIZE] = {};

  static __device__ __forceinline__ Piece read(const T* from) {
    Piece piece;
    if constexpr (VECTOR) {
      const Vector<T> v = load_vector(from);
#pragma unroll
      for (int e = 0; e < SIZE; ++e) piece.of[e] = v.of[e];
    } else {
      piece.of[0] = *from;
    }
    return piece;
  }

  __device__ __forceinline__ void write(T* to) const {
    if constexpr (VECTOR) {
      Vector<T> v;
#pragma unroll
      for (int e = 0; e < SIZE; ++e) v.of[e] = of[e];
      store_vector(to, v);
    } else {
      *to = of[0];
    }
  }

  __device__ __forceinline__ void operator+=(const Piece& other) {
#pragma unroll
    for (int e = 0; e < SIZE; ++e) of[e] += other.of[e];
  }
};

// ---- forward

// Block: 256 pieces of y.  Thread: one of them; the first one of a row reports its index.  A row has at least
// one thread, even if D = 0.  VECTOR: w and y start at multiples of 16 bytes, and so does each of their rows.
template <class T, class INDEX, bool VECTOR>
__global__ void __launch_bounds__(256)
embedding_forward(const T* __restrict__ w, const INDEX* __restrict__ indices, T* __restrict__ y, unsigned n,
                  unsigned V, unsigned D, long long* __restrict__ fault) {
  constexpr int SIZE = Piece<T, VECTOR>::SIZE;
  const unsigned pieces = D > SIZE ? D / SIZE : 1;  // of a row
  const unsigned i = blockIdx.x * 256 + threadIdx.x;
  const unsigned k = i / pieces, c = i % pieces * SIZE;
  if (k >= n) return;
  const INDEX index = indices[k];
  const bool inside = static_cast<unsigned long long>(index) < V;  // a negative one becomes huge
  if (!inside && c == 0) atomicMin(fault, static_cast<long long>(k));
  if (c >= D) return;
  Piece<T, VECTOR> piece;
  if (inside) piece = Piece<T, VECTOR>::read(w + static_cast<unsigned>(index) * D + c);
  piece.write(y + k * D + c);
}

// ---- backward: keys

// Block: 256 places.  Thread: one of them.  The places of row `padding`, and those whose index is out of range,
// get the key V, which no row has.
template <class INDEX>
__global__ void __launch_bounds__(256)
embedding_backward_keys(const INDEX* __restrict__ indices, unsigned n, unsigned V, unsigned padding,
                        unsigned* __restrict__ keys, long long* __restrict__ fault) {
  const unsigned k = blockIdx.x * 256 + threadIdx.x;
  if (k >= n) return;
  const INDEX index = indices[k];
  unsigned key = V;
  if (static_cast<unsigned long long>(index) >= V)  // a negative one becomes huge
    atomicMin(fault, static_cast<long long>(k));
  else if (static_cast<unsigned>(index) != padding)
    key = static_cast<unsigned>(index);
  keys[k] = key;
}

// ---- backward: sorting by one digit

constexpr int THREADS = 256, WARPS = THREADS / WARP;
constexpr int DIGITS = THREADS;  // thread t also speaks for digit t
constexpr unsigned TILE = 8 * THREADS;  // keys of a block

__device__ __forceinline__ unsigned digit_of(unsigned key, unsigned shift) { return key >> shift & (DIGITS - 1); }

// The sum over the threads of the block before this one; `total` becomes that over all.
__device__ __forceinline__ unsigned sum_before(unsigned value, WarpValues<unsigned, THREADS>& values, unsigned& total) {
  const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
  unsigned sum = value;  // over this and more and more lanes before it
  for (int distance = 1; distance < WARP; distance *= 2) {
    const unsigned other = __shfl_up_sync(ALL_LANES, sum, distance);
    if (lane >= distance) sum += other;
  }
  if (lane == WARP - 1) values.of_warp[warp] = sum;
  __syncthreads();  // every warp's sum is written before any thread reads it
  unsigned before = 0;
  total = 0;
  for (int w = 0; w < WARPS; ++w) {
    if (w < warp) before += values.of_warp[w];
    total += values.of_warp[w];
  }
  __syncthreads();  // all have read before `values` may be written again
  return before + sum - value;
}

// Block: one tile of keys.  Thread: every 256th of them, then one digit.
__global__ void __launch_bounds__(THREADS)
embedding_backward_count(const unsigned* __restrict__ keys, unsigned n, unsigned shift, unsigned* __restrict__ counts) {
  struct Shared {
    unsigned of_digit[DIGITS];
  };
  Shared& s = block_shared<Shared>();
  s.of_digit[threadIdx.x] = 0;
  __syncthreads();  // every count is 0 before anyone counts
  for (unsigned i = threadIdx.x; i < TILE; i += THREADS) {
    const unsigned k = blockIdx.x * TILE + i;
    if (k < n) atomicAdd(&s.of_digit[digit_of(keys[k], shift)], 1u);  // of integers, so the order makes no difference
  }
  __syncthreads();  // everyone has counted before the counts are read
  counts[threadIdx.x * gridDim.x + blockIdx.x] = s.of_digit[threadIdx.x];
}

// Block: one digit, whose counts in the `tiles` tiles become sums over the tiles before; its total goes to
// `totals`.  Thread: every 256th tile.
__global__ void __launch_bounds__(THREADS)
embedding_backward_scan(unsigned* __restrict__ counts, unsigned tiles, unsigned* __restrict__ totals) {
  WarpValues<unsigned, THREADS>& values = block_shared<WarpValues<unsigned, THREADS>>();
  unsigned before = 0;
  for (unsigned first = 0; first < tiles; first += THREADS) {
    const unsigned tile = first + threadIdx.x;
    unsigned* count = &counts[blockIdx.x * tiles + tile];
    unsigned total;
    const unsigned sum = sum_before(tile < tiles ? *count : 0, values, total);
    if (tile < tiles) *count = before + sum;
    before += total;
  }
  if (threadIdx.x == 0) totals[blockIdx.x] = before;
}

// Block: the tile of keys that it had in `count`, 256 at a time.  Thread: one key at a time, and one digit.
// `places` null: place k of the keys is k itself.
__global__ void __launch_bounds__(THREADS)
embedding_backward_scatter(const unsigned* __restrict__ keys, const unsigned* __restrict__ places, unsigned n,
                           unsigned shift, const unsigned* __restrict__ counts, const unsigned* __restrict__ totals,
                           unsigned* __restrict__ sorted_keys, unsigned* __restrict__ sorted_places) {
  struct Shared {
    unsigned next[DIGITS];            // where the next key of a digit goes
    unsigned of_warp[WARPS][DIGITS];  // how often a digit occurs among the keys that a warp has at the moment
    WarpValues<unsigned, THREADS> values;
  };
  Shared& s = block_shared<Shared>();
  const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
  unsigned all;
  s.next[threadIdx.x] = sum_before(totals[threadIdx.x], s.values, all) + counts[threadIdx.x * gridDim.x + blockIdx.x];
  for (int w = 0; w < WARPS; ++w) s.of_warp[w][threadIdx.x] = 0;
  __syncthreads();  // places and counts are set before anyone uses them

  for (unsigned i = 0; i < TILE && blockIdx.x * TILE + i < n; i += THREADS) {
    const unsigned k = blockIdx.x * TILE + i + threadIdx.x;
    const bool exists = k < n;
    const unsigned key = exists ? keys[k] : 0;
    const unsigned digit = digit_of(key, shift);
    unsigned same = __ballot_sync(ALL_LANES, exists);  // lanes of this warp whose keys have this digit
    for (int bit = 0; (1 << bit) < DIGITS; ++bit) {
      const bool set = digit >> bit & 1;
      const unsigned vote = __ballot_sync(ALL_LANES, set);
      same &= set ? vote : ~vote;
    }
    const unsigned rank = __popc(same & ((1u << lane) - 1));  // how many of them come before this one
    if (exists && rank == 0) s.of_warp[warp][digit] = __popc(same);
    __syncthreads();  // every warp has counted before anyone reads the counts
    if (exists) {
      unsigned to = s.next[digit] + rank;
      for (int w = 0; w < warp; ++w) to += s.of_warp[w][digit];
      sorted_keys[to] = key;
      sorted_places[to] = places == nullptr ? k : places[k];
    }
    __syncthreads();  // all have found their places before `next` moves on and the counts return to 0
    for (int w = 0; w < WARPS; ++w) {
      s.next[threadIdx.x] += s.of_warp[w][threadIdx.x];
      s.of_warp[w][threadIdx.x] = 0;
    }
    __syncthreads();  // both are done before the next 256 keys use them
  }
}

// ---- backward: sums

// Block: 256 of the V + 1 rows, counting one after the last.  Thread: one of them; starts[v] is how many keys are
// below v.
__global__ void __launch_bounds__(256)
embedding_backward_starts(const unsigned* __restrict__ keys, unsigned n, unsigned V, unsigned* __restrict__ starts) {
  const unsigned v = blockIdx.x * 256 + threadIdx.x;
  if (v > V) return;
  unsigned low = 0, high = n;  // keys before `low` are below v, those from `high` on are not
  while (low < high) {
    const unsigned middle = (low + high) / 2;
    if (keys[middle] < v)
      low = middle + 1;
    else
      high = middle;
  }
  starts[v] = low;
}

constexpr unsigned RUN = 64;

// The sum of the pieces of g at column c over places[begin], ..., places[end - 1]: 64 after the other, and
// then these sums, so that no chain of additions gets long.
template <class T, bool VECTOR>
__device__ __forceinline__ Piece<T, VECTOR> sum_of(const T* __restrict__ g, const unsigned* __restrict__ places,
                                                   unsigned begin, unsigned end, unsigned D, unsigned c) {
  Piece<T, VECTOR> total;
  for (unsigned first = begin; first < end; first += RUN) {
    const unsigned last = end - first < RUN ? end : first + RUN;
    Piece<T, VECTOR> sum;
#pragma unroll 4
    for (unsigned k = first; k < last; ++k) sum += Piece<T, VECTOR>::read(g + places[k] * D + c);
    total += sum;
  }
  return total;
}

// Block: 8 rows of dw, and of these as many columns as a warp has pieces; grid: all columns of the first 8 rows,
// then of the next.  Warp: one of the rows, if it has at most RUN places.  Then all warps share each of the
// other rows among them.  VECTOR: g and dw start at multiples of 16 bytes, and so does each of their rows.
template <class T, bool VECTOR>
__global__ void __launch_bounds__(THREADS)
embedding_backward_sum(const T* __restrict__ g, const unsigned* __restrict__ places,
                       const unsigned* __restrict__ starts, T* __restrict__ dw, unsigned V, unsigned D) {
  using Pieces = Piece<T, VECTOR>;
  struct Shared {
    alignas(16) T of_warp[WARPS][WARP * Pieces::SIZE];
  };
  Shared& s = block_shared<Shared>();
  constexpr unsigned COLUMNS = WARP * Pieces::SIZE;
  const unsigned tiles = (D + COLUMNS - 1) / COLUMNS;
  const unsigned lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
  const unsigned first_row = blockIdx.x / tiles * WARPS;
  const unsigned c = blockIdx.x % tiles * COLUMNS + lane * Pieces::SIZE;

  if (first_row + warp < V && c < D) {
    const unsigned v = first_row + warp;
    const unsigned begin = starts[v], end = starts[v + 1];
    if (end - begin <= RUN) sum_of<T, VECTOR>(g, places, begin, end, D, c).write(dw + v * D + c);
  }
  for (unsigned v = first_row; v < first_row + WARPS && v < V; ++v) {
    const unsigned begin = starts[v], end = starts[v + 1];
    if (end - begin <= RUN) continue;  // the whole block agrees
    const unsigned share = (end - begin + WARPS - 1) / WARPS;
    const unsigned from = begin + warp * share < end ? begin + warp * share : end;
    const unsigned to = end - from < share ? end : from + share;
    if (c < D) sum_of<T, VECTOR>(g, places, from, to, D, c).write(&s.of_warp[warp][lane * Pieces::SIZE]);
    __syncthreads();  // every warp's sum is written before the first warp adds them up
    if (warp == 0 && c < D) {
      Pieces sum;
      for (int w = 0; w < WARPS; ++w) sum += Pieces::read(&s.of_warp[w][lane * Pieces::SIZE]);
      sum.write(dw + v * D + c);
    }
    __syncthreads();  // the first warp has read before the next row's sums are written
  }
}
