// Many arrays in one launch: a step of an optimizer over all parameters of a model.
//
// The arrays come as lists of equal length and sizes: list 0 the parameters, list 1 their gradients, the others
// what the optimizer remembers.  Each tensor is cut into chunks, and each block owns one chunk: of the same
// elements in every list.  All pointers and sizes travel as one argument by value, so that nothing must be
// copied to the device beforehand; CUDA takes 4 KB of arguments, since 12.1 and sm_70 32 KB.
//
// The idea of chunks and a table in the arguments: multi_tensor_apply of NVIDIA's Apex.
#pragma once
#include "vector.cuh"

constexpr int TENSOR_LIST_THREADS = 256;  // of a block

// Packed by kernels/_tensor_list.py.
template <class T, int LISTS, int MAX>
struct TensorList {
  T* data[LISTS][MAX];   // data[l][i]: tensor i of list l
  int size[MAX];         // elements of tensor i
  int first_block[MAX];  // the first block that owns a chunk of tensor i; of an empty one, the next tensor's
  int tensors;           // how many there are
  int chunk;             // elements of a chunk, a multiple of 4; the last one of a tensor may have fewer
};

// The block's chunk.
template <class T, int LISTS>
struct Chunk {
  T* data[LISTS];
  int size;
};

template <class T, int LISTS, int MAX>
__device__ __forceinline__ Chunk<T, LISTS> chunk_of_block(const TensorList<T, LISTS, MAX>& list) {
  const int block = blockIdx.x;
  int tensor = 0, beyond = list.tensors;  // the last tensor with first_block <= block is in [tensor, beyond)
  while (beyond - tensor > 1) {
    const int middle = (tensor + beyond) / 2;
    if (list.first_block[middle] <= block) tensor = middle;
    else beyond = middle;
  }
  const int start = (block - list.first_block[tensor]) * list.chunk;
  Chunk<T, LISTS> chunk;
#pragma unroll
  for (int l = 0; l < LISTS; ++l) chunk.data[l] = list.data[l][tensor] + start;
  chunk.size = min(list.chunk, list.size[tensor] - start);
  return chunk;
}

// How many of the chunk's elements are read and written as vectors of 16 bytes: those that fill whole ones if all
// its arrays start at a multiple of 16, else none.
template <class T, int LISTS>
__device__ __forceinline__ int elements_in_vectors(const Chunk<T, LISTS>& chunk) {
  constexpr int SIZE = Vector<T>::SIZE;
  bool aligned = true;
#pragma unroll
  for (int l = 0; l < LISTS; ++l) aligned = aligned && is_vector_aligned(chunk.data[l]);
  return aligned ? chunk.size / SIZE * SIZE : 0;
}

// What update(values) makes of a vector of each list, written back at element i of the chunk.
template <class T, int LISTS, class Update>
__device__ __forceinline__ void update_vectors(const Chunk<T, LISTS>& chunk, int i, Vector<T> (&own)[LISTS],
                                               const Update& update) {
#pragma unroll
  for (int e = 0; e < Vector<T>::SIZE; ++e) {
    T values[LISTS];
#pragma unroll
    for (int l = 0; l < LISTS; ++l) values[l] = own[l].of[e];
    update(values);
#pragma unroll
    for (int l = 0; l < LISTS; ++l) own[l].of[e] = values[l];
  }
#pragma unroll
  for (int l = 0; l < LISTS; ++l)
    if (l != 1) store_vector(chunk.data[l] + i, own[l]);
}

// Call update(values) for each element of the chunk, where values[l] is the element in list l, and write back
// what it makes of them, but for list 1: gradients stay.  List `unread` is taken as zeros.
//
// A thread owns every 256th vector of 16 bytes, from its vector number `first_round` on; where an array does not
// start at such a multiple, every 256th element.
template <class T, int LISTS, class Update>
__device__ __forceinline__ void update_chunk(const Chunk<T, LISTS>& chunk, const Update& update, int unread = -1,
                                             int first_round = 0) {
  constexpr int SIZE = Vector<T>::SIZE;
  const int in_vectors = elements_in_vectors(chunk);

  for (int i = (first_round * TENSOR_LIST_THREADS + threadIdx.x) * SIZE; i < in_vectors;
       i += TENSOR_LIST_THREADS * SIZE) {
    Vector<T> own[LISTS];
#pragma unroll
    for (int l = 0; l < LISTS; ++l) own[l] = l == unread ? Vector<T>{} : load_vector(chunk.data[l] + i);
    update_vectors(chunk, i, own, update);
  }

  for (int i = in_vectors + threadIdx.x; i < chunk.size; i += TENSOR_LIST_THREADS) {
    T values[LISTS];
#pragma unroll
    for (int l = 0; l < LISTS; ++l) values[l] = l == unread ? T(0) : chunk.data[l][i];
    update(values);
#pragma unroll
    for (int l = 0; l < LISTS; ++l)
      if (l != 1) chunk.data[l][i] = values[l];
  }
}

// The first vectors of a thread, asked for before the numbers that update() needs are known, so that the memory
// works while thread 0 does: of a chunk of floats all, of one of doubles a quarter (more would cost registers).
template <class T, int LISTS>
struct Ahead {
  static constexpr int ROUNDS = Vector<T>::SIZE / 2;
  Vector<T> of[ROUNDS][LISTS];
};

// List `late` is left out: whether it is to be read is not known yet.
template <class T, int LISTS>
__device__ __forceinline__ Ahead<T, LISTS> load_ahead(const Chunk<T, LISTS>& chunk, int late = -1) {
  constexpr int SIZE = Vector<T>::SIZE;
  const int in_vectors = elements_in_vectors(chunk);
  Ahead<T, LISTS> ahead;
#pragma unroll
  for (int r = 0; r < ahead.ROUNDS; ++r) {
    const int i = (r * TENSOR_LIST_THREADS + threadIdx.x) * SIZE;
#pragma unroll
    for (int l = 0; l < LISTS; ++l)
      ahead.of[r][l] = i < in_vectors && l != late ? load_vector(chunk.data[l] + i) : Vector<T>{};
  }
  return ahead;
}

// As update_chunk(chunk, update), with what load_ahead(chunk, late) has; list `late` is read now, unless `unread`.
template <class T, int LISTS, class Update>
__device__ __forceinline__ void update_chunk_ahead(const Chunk<T, LISTS>& chunk, Ahead<T, LISTS>& ahead,
                                                   const Update& update, int late = -1, bool unread = false) {
  constexpr int SIZE = Vector<T>::SIZE;
  const int in_vectors = elements_in_vectors(chunk);
#pragma unroll
  for (int r = 0; r < ahead.ROUNDS; ++r) {
    const int i = (r * TENSOR_LIST_THREADS + threadIdx.x) * SIZE;
    if (i < in_vectors) {
#pragma unroll
      for (int l = 0; l < LISTS; ++l)
        if (l == late && !unread) ahead.of[r][l] = load_vector(chunk.data[l] + i);
      update_vectors(chunk, i, ahead.of[r], update);
    }
  }
  update_chunk(chunk, update, unread ? late : -1, ahead.ROUNDS);
}

// The learning rate, which lies on the device in the parameters' dtype or as a double: one pointer is null.
template <class T>
__device__ __forceinline__ double rate_of(const T* lr, const double* lr_double) {
  return lr_double != nullptr ? *lr_double : double(*lr);
}
