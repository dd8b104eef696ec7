// What the kernels of max_pool2d and avg_pool2d share: where windows are, tiles, and rows held in registers.
#pragma once
#include "vector.cuh"

// Whether 0 <= i < size.
__device__ __forceinline__ bool inside(int i, int size) { return static_cast<unsigned>(i) < static_cast<unsigned>(size); }

// The first window along one axis, with taps at i stride + 0 … reach, that does not end before `position`.
__device__ __forceinline__ int first_window(int position, int reach, int stride) {
  return position <= reach ? 0 : (position - reach - 1) / stride + 1;
}

// The last of `count` windows that does not start behind `position`.
__device__ __forceinline__ int last_window(int position, int stride, int count) {
  return min(position / stride, count - 1);
}

// What one block owns: so many neighbouring planes, rows and columns.  As in kernels/_windows.py.
struct Tile {
  int planes, height, width;
};

struct Corner {
  int plane, row, column;
};

// Where this block's tile begins; tiles lie side by side in planes of height x width.
__device__ __forceinline__ Corner corner_of_block(const Tile& tile, int height, int width) {
  const int across = ceil_div(width, tile.width), down = ceil_div(height, tile.height);
  const int block = blockIdx.x;
  return {block / across / down * tile.planes, block / across % down * tile.height, block % across * tile.width};
}

// COUNT neighbours from memory, 16 bytes at a time where the address allows.
template <int COUNT, class T>
__device__ __forceinline__ void load_row(T (&row)[COUNT], const T* from) {
  constexpr int SIZE = Vector<T>::SIZE, WHOLE = COUNT / SIZE * SIZE;
  if (is_vector_aligned(from)) {
#pragma unroll
    for (int i = 0; i < WHOLE; i += SIZE) {
      const Vector<T> v = load_vector(from + i);
#pragma unroll
      for (int e = 0; e < SIZE; ++e) row[i + e] = v.of[e];
    }
#pragma unroll
    for (int i = WHOLE; i < COUNT; ++i) row[i] = from[i];
  } else {
#pragma unroll
    for (int i = 0; i < COUNT; ++i) row[i] = from[i];
  }
}

// COUNT neighbours to memory likewise.
template <int COUNT, class T>
__device__ __forceinline__ void store_row(T* to, const T (&row)[COUNT]) {
  constexpr int SIZE = Vector<T>::SIZE;
  static_assert(COUNT % SIZE == 0, "whole vectors");
  if (is_vector_aligned(to)) {
#pragma unroll
    for (int i = 0; i < COUNT; i += SIZE) {
      Vector<T> v;
#pragma unroll
      for (int e = 0; e < SIZE; ++e) v.of[e] = row[i + e];
      store_vector(to + i, v);
    }
  } else {
#pragma unroll
    for (int i = 0; i < COUNT; ++i) to[i] = row[i];
  }
}
