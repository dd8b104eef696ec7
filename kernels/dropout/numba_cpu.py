"""Compiled Philox4x32-10 and dropout: masks are drawn in vector registers, where they are used.

A vector of 64-bit lanes holds one counter word of as many blocks, in the low halves of its lanes: the processor's
32 x 32 -> 64-bit multiplication looks at these alone, so that nothing has to be masked between the rounds, and a round
of eight blocks (with AVX-512) is two multiplications, two shifts and four exclusive ors.  The four result words are
then interleaved to the order of the elements.

The array is cut into parts of :data:`_PART` elements, whatever the number of threads; each reads x and writes y once.
The first word of a block depends on the block's number alone, so parts need nothing from each other.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from .._jit import in_parts
from .._simd import Pointer, Stage, Value, simd, vector_bytes

_ROUNDS = 10
_A, _B = 0xD2511F53, 0xCD9E8D57
_KEY_STEP = (0x9E3779B9, 0xBB67AE85)
_LOW = 0xFFFFFFFF
_PART = 16384  # elements, a multiple of what a step of any vector makes


def _words(s: Stage, block: Value, seed: Value, offset: Value) -> list[Value]:
    """The words of as many blocks from number ``block`` on as a vector has 64-bit lanes: in two vectors, in order."""
    blocks = vector_bytes() // 8
    number = s.splat(block, blocks) + s.counting(blocks)
    c0, c1 = number, number >> 32
    c2, c3 = s.splat(offset, blocks), s.splat(offset >> 32, blocks)
    k0, k1 = seed, seed >> 32
    for _ in range(_ROUNDS):  # the high halves of c0 .. c3 and of the keys are whatever comes
        of_c0, of_c2 = (c0 & _LOW) * _A, (c2 & _LOW) * _B
        c0, c1, c2, c3 = (of_c2 >> 32) ^ c1 ^ k0, of_c2, (of_c0 >> 32) ^ c3 ^ k1, of_c0
        k0, k1 = k0 + _KEY_STEP[0], k1 + _KEY_STEP[1]
    low, high = (a & _LOW | b << 32 for a, b in ((c0, c1), (c2, c3)))
    order = [lane for i in range(blocks) for lane in (i, blocks + i)]
    return [low.shuffle(part, high).halves() for part in (order[:blocks], order[blocks:])]


@simd
def _philox_part(
    s: Stage, words: Pointer, seed: Value, offset: Pointer, first: Value, start: Value, stop: Value
) -> None:
    """words[start:stop]; ``start`` is a multiple of four."""
    lanes = s.lanes(words)

    def body(i: Value, count: Value | None) -> None:
        for piece, drawn in enumerate(_words(s, first + (i >> 2), seed, offset[0])):
            here = None if count is None else s.first(count - piece * lanes, lanes)
            words.store(i + piece * lanes, drawn, here)

    s.each(start, stop, 2 * lanes, body)


@simd
def _dropout_part(
    s: Stage,
    x: Pointer,
    y: Pointer,
    scale: Value,
    least: Value,
    seed: Value,
    offset: Pointer,
    start: Value,
    stop: Value,
) -> None:
    """y[start:stop]: x times ``scale`` where the word is above ``least``, else 0."""
    lanes, words = s.lanes(x), vector_bytes() // 4
    factor, bound = s.splat(scale.to(x.dtype), lanes), s.splat(least.to("uint32"), words)

    def body(i: Value, count: Value | None) -> None:
        for piece, drawn in enumerate(_words(s, i >> 2, seed, offset[0])):
            kept = drawn.above(bound)
            for at in range(0, words, lanes):
                e = piece * words + at
                here = None if count is None else s.first(count - e, lanes)
                scaled = x.load(i + e, lanes, here) * factor
                y.store(i + e, kept.shuffle(list(range(at, at + lanes))).where(scaled, 0.0), here)

    s.each(start, stop, 2 * words, body)


@in_parts
def _philox(part, slot, words, seed, offset, first):
    start = part * _PART
    _philox_part(words, seed, offset, first, start, min(start + _PART, words.size))


@in_parts
def _dropout(part, slot, x, y, scale, least, seed, offset):
    start = part * _PART
    _dropout_part(x, y, scale, least, seed, offset, start, min(start + _PART, x.size))


def _parts(size: int) -> int:
    return -(-size // _PART)


def _int64(number: int) -> int:
    """The signed integer with the bits of an unsigned one, since kernels are compiled for one type of integer."""
    return number - 2**64 if number >= 2**63 else number


def philox(seed: int, offset: np.ndarray, n: int, first_block: int) -> Any:
    words = np.empty(n, np.uint32)
    _philox(_parts(n), words, _int64(seed), offset.reshape(-1), _int64(first_block))
    return words


def dropout_forward(x: np.ndarray, p: float, seed: int, offset: np.ndarray) -> np.ndarray:
    if p == 0:
        return x.copy()
    if p == 1:
        return np.zeros_like(x)
    y = np.empty_like(x)
    least = math.ceil(p * 2**32) - 1  # of the words that drop, the largest: below 2^32 for any p
    _dropout(_parts(x.size), x.reshape(-1), y.reshape(-1), 1 / (1 - p), least, _int64(seed), offset.reshape(-1))
    return y
