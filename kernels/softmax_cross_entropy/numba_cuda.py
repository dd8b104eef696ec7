"""The twins of v2_smem_tile of softmax_cross_entropy.cu, of `labels` and of `sum`: the online softmax.

Same blocks, same tiles, same order of sums.  Numba's simulator has no shuffles, so where the lanes of a warp
exchange numbers there, a tree in shared memory adds the same pairs here; every step of it ends at a barrier.
What the .cu file calls ``all``, the pair (max, sum), is two variables.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from .._numba_cuda import cuda, device, exp_of, kernel, log_of, size_of
from . import cuda as launcher

NO_CLASS = 0xFFFFFFFF  # of an example that does not count
WARP = 32
RUN = 32  # so many elements are put together before they meet the others, so that no chain of additions gets long


# ---- the online softmax: of the elements z seen so far m = max z, and the sum of e^(z - m)


@device
def add(max, sum, z):
    if z > max or z != z:
        return z, sum * exp_of(max - z) + exp_of(z - z)  # z - z is 0, and NaN for infinity and NaN
    return max, sum + exp_of(z - max)


# Both together.  The order of a and b makes no difference to any bit.
@device
def merged(a_max, a_sum, b_max, b_sum):
    if a_max >= b_max or a_max != a_max:
        return a_max, a_sum + b_sum * exp_of(b_max - a_max)
    return b_max, b_sum + a_sum * exp_of(a_max - b_max)


# ---- teams


@functools.cache
def _block_sum(T: Any, THREADS: int) -> Any:
    """The sum over the block's threads, given to all of them; `values` is shared, of THREADS elements."""

    @device
    def block_sum(value, values):
        t = cuda.threadIdx.x
        values[t] = value
        cuda.syncthreads()  # every value is written before any thread adds one
        distance = WARP // 2
        while distance > 0:
            if t % WARP < distance:
                values[t] += values[t + distance]
            cuda.syncthreads()  # all sums over this distance are written before the next ones read them
            distance //= 2
        value = T(0)
        for w in range(0, THREADS, WARP):
            value += values[w]
        cuda.syncthreads()  # all have read before `values` may be written again
        return value

    return block_sum


# What the block's threads have seen together, given to all of them.
@functools.cache
def _block_merged(THREADS: int) -> Any:
    @device
    def block_merged(max, sum, values_max, values_sum):
        t = cuda.threadIdx.x
        values_max[t] = max
        values_sum[t] = sum
        cuda.syncthreads()  # what every thread has seen is written before any merges it with its own
        distance = WARP // 2
        while distance > 0:
            if t % WARP < distance:
                other = t + distance
                max, sum = merged(max, sum, values_max[other], values_sum[other])
                values_max[t] = max
                values_sum[t] = sum
            cuda.syncthreads()  # all pairs over this distance are written before the next ones read them
            distance //= 2
        max, sum = values_max[0], values_sum[0]
        for w in range(WARP, THREADS, WARP):
            max, sum = merged(max, sum, values_max[w], values_sum[w])
        cuda.syncthreads()  # all have read before `values` may be written again
        return max, sum

    return block_merged


# ---- labels


# Block: 1024 examples and their part of the normaliser.  Thread: every 256th of them.
# A label out of range lowers `fault` to its position, and its example does not count.  `ignores` is false
# when the labels' dtype cannot hold the ignore_index.  `shares` (one per block) is null when no normaliser is wanted.
@kernel
def softmax_cross_entropy_labels(T, LABEL):
    THREADS, EXAMPLES = 256, 1024
    block_sum = _block_sum(T, THREADS)

    def body(labels, w, N, C, ignores, ignore_index, classes, shares, fault):
        values = cuda.shared.array(THREADS, T)
        share = T(0)
        for i in range(cuda.threadIdx.x, EXAMPLES, THREADS):
            n = cuda.blockIdx.x * EXAMPLES + i
            if n >= N:
                break
            label = labels[n]
            y = np.int64(NO_CLASS)
            if not ignores or label != LABEL(ignore_index):
                own = np.int64(label)  # a huge one becomes negative
                if 0 <= own < C:
                    y = own
                    share += w[y] if len(w) != 0 else T(1)
                else:
                    cuda.atomic.min(fault, 0, n)
            classes[n] = y
        if len(shares) == 0:
            return
        share = block_sum(share, values)
        if cuda.threadIdx.x == 0:
            shares[cuda.blockIdx.x] = share

    return body


# ---- v2


# Block: one example, of which the first TILE logits and d[c] stay in shared memory.  Thread: every 128th
# class.  It finds again what it put there itself, so no barrier stands between.
@kernel
def softmax_cross_entropy_forward_v2_smem_tile(T):
    THREADS = 128
    TILE = 16 * 1024 // size_of(T)
    LOWEST = np.finfo(T).min
    block_sum, block_merged = _block_sum(T, THREADS), _block_merged(THREADS)

    # d[c], from t[c] and w[c].
    @device
    def asked(t, w, at, c, keep, share):
        d = t[at] * keep + share if len(t) != 0 else share
        return d * w[c] if len(w) != 0 else d

    def body(z, t, classes, w, smoothing, normaliser, divisor, N, C, losses, grad):
        s_z = cuda.shared.array(TILE, T)
        s_d = cuda.shared.array(TILE, T)
        values_max = cuda.shared.array(THREADS, T)
        values_sum = cuda.shared.array(THREADS, T)
        n, first = cuda.blockIdx.x, cuda.threadIdx.x
        row = n * C

        # What the example asks for.
        y = np.int64(classes[n]) if len(t) == 0 else np.int64(NO_CLASS)
        counts = len(t) != 0 or y != NO_CLASS
        spread = len(t) != 0 or smoothing > 0
        keep, share = T(1) - T(smoothing), T(smoothing) / T(C)
        hit = T(0)
        if y != NO_CLASS:
            hit = keep * w[y] if len(w) != 0 else keep
        scale = T(1) / (normaliser[0] if len(normaliser) != 0 else T(divisor))

        max, sum = LOWEST, T(0)
        for begin in range(first, C, RUN * THREADS):
            run_max, run_sum = LOWEST, T(0)
            for c in range(begin, min(begin + RUN * THREADS, C), THREADS):
                logit = z[row + c]
                if c < TILE:
                    s_z[c] = logit
                run_max, run_sum = add(run_max, run_sum, logit)
            max, sum = merged(max, sum, run_max, run_sum)
        max, sum = block_merged(max, sum, values_max, values_sum)
        sum_of_d = T(0)
        if spread:
            for begin in range(first, C, RUN * THREADS):
                run = T(0)
                for c in range(begin, min(begin + RUN * THREADS, C), THREADS):
                    d = asked(t, w, row + c, c, keep, share)
                    if c < TILE:
                        s_d[c] = d
                    run += d
                sum_of_d += run
            sum_of_d = block_sum(sum_of_d, values_sum)
        log_sum, inverse, mass = log_of(sum), T(1) / sum, hit + sum_of_d

        loss = T(0)
        for begin in range(first, C, RUN * THREADS):
            run = T(0)
            for c in range(begin, min(begin + RUN * THREADS, C), THREADS):
                shifted = (s_z[c] if c < TILE else z[row + c]) - max
                part, slope = T(0), exp_of(shifted) * inverse * mass
                if spread:  # 0 times an infinite -log p would be NaN
                    d = s_d[c] if c < TILE else asked(t, w, row + c, c, keep, share)
                    part += (log_sum - shifted) * d
                    slope -= d
                if c == y:
                    part += (log_sum - shifted) * hit
                    slope -= hit
                grad[row + c] = slope * scale if counts else T(0)  # whatever the logits of one that does not count
                run += part
            loss += run
        loss = block_sum(loss, values_sum)
        if first == 0:
            losses[n] = loss if counts else T(0)

    return body


# ---- sum


# Block: 4096 values and their sum, divided by normaliser[0], or if that is null by `divisor`.  Thread: every
# 256th of them.
@kernel
def softmax_cross_entropy_sum(T):
    THREADS, VALUES = 256, 4096
    block_sum = _block_sum(T, THREADS)

    def body(of, count, normaliser, divisor, sums):
        values = cuda.shared.array(THREADS, T)
        sum = T(0)
        for i in range(cuda.threadIdx.x, VALUES, THREADS):
            n = cuda.blockIdx.x * VALUES + i
            if n >= count:
                break
            sum += of[n]
        sum = block_sum(sum, values)
        if cuda.threadIdx.x == 0:
            sums[cuda.blockIdx.x] = sum / (normaliser[0] if len(normaliser) != 0 else T(divisor))

    return body


# ---- the launcher is that of cuda.py, with the twins in the place of the kernels


def _smem_tile(dtype: np.dtype, N: int, C: int, vector: bool) -> tuple[Any, int, int]:
    return softmax_cross_entropy_forward_v2_smem_tile[dtype], N, 128


def softmax_cross_entropy_forward(*arguments: Any) -> tuple[Any, Any]:
    return launcher._run(_smem_tile, *arguments, labels=softmax_cross_entropy_labels, sums=softmax_cross_entropy_sum)


VERSIONS = {"softmax_cross_entropy_forward": {"v2_smem_tile": softmax_cross_entropy_forward}}
