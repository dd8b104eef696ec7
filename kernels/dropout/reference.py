"""Philox4x32-10 and dropout in NumPy."""

from __future__ import annotations

import math

import numpy as np

_ROUNDS = 10
_A, _B = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
_KEY_STEP = (0x9E3779B9, 0xBB67AE85)
_LOW = np.uint64(0xFFFFFFFF)
_HALF = np.uint64(32)
#: Blocks that are computed together, so that the six arrays of the rounds stay in the cache.
_CHUNK = 4096


def philox(seed: int, offset: np.ndarray, n: int, first_block: int) -> np.ndarray:
    blocks = (n + 3) // 4
    words = np.empty((blocks, 4), np.uint32)
    for start in range(0, blocks, _CHUNK):
        chunk = words[start : start + _CHUNK]
        number = np.arange(len(chunk), dtype=np.uint64)
        number += np.uint64((first_block + start) % 2**64)
        _rounds(chunk, number, seed, int(offset.item()))
    return words.reshape(-1)[:n]


def _rounds(words: np.ndarray, number: np.ndarray, seed: int, offset: int) -> None:
    """Fill ``words`` (blocks, 4) from the counters (number, offset); all words are held as uint64."""
    c0, c1 = number & _LOW, number >> _HALF
    c2, c3 = np.full_like(number, offset & 0xFFFFFFFF), np.full_like(number, offset >> 32)
    k0, k1 = seed & 0xFFFFFFFF, seed >> 32
    for _ in range(_ROUNDS):
        c0 *= _A  # the 64-bit products take the place of c0 and c2
        c2 *= _B
        c1 ^= c2 >> _HALF
        c1 ^= np.uint64(k0)
        c3 ^= c0 >> _HALF
        c3 ^= np.uint64(k1)
        c2 &= _LOW
        c0 &= _LOW
        c0, c1, c2, c3 = c1, c2, c3, c0
        k0, k1 = (k0 + _KEY_STEP[0]) % 2**32, (k1 + _KEY_STEP[1]) % 2**32
    for j, c in enumerate((c0, c1, c2, c3)):
        words[:, j] = c


def dropout_forward(x: np.ndarray, p: float, seed: int, offset: np.ndarray) -> np.ndarray:
    if p == 0:
        return x.copy(order="K")
    y = np.zeros_like(x)
    if p < 1:
        kept = (philox(seed, offset, x.size, 0) >= math.ceil(p * 2**32)).reshape(x.shape)
        with np.errstate(all="ignore"):
            np.multiply(x, 1 / (1 - p), out=y, where=kept)
    return y
