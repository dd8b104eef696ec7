// Where the numbers of a tile lie in shared memory.
#include "mma_tile.cuh"

template <int BYTES>
struct NumberOf {
  using type = Tf32;
};
template <>
struct NumberOf<2> {
  using type = Bf16;
};

// words[slow][fast]: the word of that number.
template <int BYTES, int ROWS, int DEPTH, bool ALONG_K>
__global__ void places(int* words) {
  using Tile = MmaTile<typename NumberOf<BYTES>::type, ROWS, DEPTH, ALONG_K>;
  for (int i = threadIdx.x; i < ROWS * DEPTH; i += blockDim.x) words[i] = Tile::word_of(i / Tile::FAST, i % Tile::FAST);
}
