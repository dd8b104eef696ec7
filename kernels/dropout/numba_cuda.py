"""The twins of v1_vector of dropout.cu, and of philox.cuh.

Same blocks, four elements for a thread, the same words and bits.  Numba has no loads of 16 bytes, so a thread
moves its four elements one by one.  Its integers have 64 bits and turn into floating-point numbers where signed
ones meet unsigned ones: everything here is an uint64, cut to 32 bits where the words are.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from .._devices import device_of
from .._launch import ceil_div, empty
from .._numba_cuda import cuda, device, kernel

_THREADS = 256
_PER_BLOCK = 4 * _THREADS

A, B = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
W0, W1 = np.uint64(0x9E3779B9), np.uint64(0xBB67AE85)
LOW, HALF = np.uint64(0xFFFFFFFF), np.uint64(32)


# The four words of block number `block` under the key (seed, offset).
@device
def philox_words(seed, offset, block):
    c0, c1, c2, c3 = block & LOW, block >> HALF, offset & LOW, offset >> HALF
    k0, k1 = seed & LOW, seed >> HALF
    for _ in range(10):
        a, b = A * c0, B * c2
        c0, c1, c2, c3 = (b >> HALF) ^ c1 ^ k0, b & LOW, (a >> HALF) ^ c3 ^ k1, a & LOW
        k0, k1 = (k0 + W0) & LOW, (k1 + W1) & LOW
    return c0, c1, c2, c3


# Block: 256 Philox blocks, 1024 elements.  Thread: four elements.
@kernel
def dropout_forward_v1_vector(T):
    def body(x, y, n, last_dropped, scale, seed, offset):
        block = cuda.blockIdx.x * _THREADS + cuda.threadIdx.x
        words = philox_words(np.uint64(seed), np.uint64(offset[0]), np.uint64(block))
        factor, last = T(scale), np.uint64(last_dropped)
        for e in range(4):
            i = 4 * block + e
            if i < n:
                y[i] = factor * x[i] if words[e] > last else T(0)

    return body


# Block: 256 Philox blocks.  Thread: one, number first_block + its own (mod 2^64).
@kernel
def dropout_philox_v1_vector():
    def body(words, n, seed, offset, first_block):
        block = cuda.blockIdx.x * _THREADS + cuda.threadIdx.x
        own = philox_words(np.uint64(seed), np.uint64(offset[0]), np.uint64(first_block) + np.uint64(block))
        for e in range(4):
            i = 4 * block + e
            if i < n:
                words[i] = own[e]

    return body


def dropout_forward(x: Any, p: float, seed: int, offset: Any) -> Any:
    if p == 0:
        return x.copy()
    if p == 1:
        return device_of(x).array_module.zeros_like(x)
    y = empty(x, x.shape)
    last_dropped = math.ceil(p * 2**32) - 1
    blocks = ceil_div(x.size, _PER_BLOCK)
    dropout_forward_v1_vector[x.dtype](blocks, _THREADS, x, y, x.size, last_dropped, 1 / (1 - p), seed, offset)
    return y


def philox(seed: int, offset: Any, n: int, first_block: int) -> Any:
    words = empty(offset, n, np.uint32)
    dropout_philox_v1_vector(ceil_div(n, _PER_BLOCK), _THREADS, words, n, seed, offset, first_block)
    return words
