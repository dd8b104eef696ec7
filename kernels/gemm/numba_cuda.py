"""The twins of v2_smem_tile and v3_register_tile of gemm.cu.

Same grids, blocks, tiles and order of sums, so the same bits where multiplication and addition round each by
itself.  The differences: an array has one index, so ``a + i * a_step`` is the number ``ai``; a shared struct is
one array for each member; registers that are indexed are a local array, which the compiler keeps in registers
once it has unrolled the loops; and Numba has no load of 16 bytes, so the template parameter VECTOR is missing.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from .._epilogue import Ending
from .._numba_cuda import cuda, device, kernel, size_of
from ..activation import activation_backward
from ..activation.cuda import kind_number
from ..activation.numba_cuda import activations
from ..dropout import dropout_forward
from ..dropout.numba_cuda import philox_words
from . import Layer, geometry
from . import cuda as launcher
from ._layers import one_by_one, stack

# ---- the epilogue


# finished() of epilogue.cuh: all but the bias, for element `at` of y.  The struct is its members here.
@functools.cache
def _epilogue(T: Any) -> Any:
    activate, activation_gradient = activations(T)

    @device
    def finished(x, at, saved, offset, seed, scale, last_dropped, activation, gradient):
        x = activate(activation, x, T(0), T(0))
        if len(offset) != 0:
            words = philox_words(np.uint64(seed), np.uint64(offset[0]), np.uint64(at // 4))
            x = T(scale) * x if words[at % 4] > np.uint64(last_dropped) else T(0)
        if gradient != 0:
            x = activation_gradient(gradient, x, saved[at], T(0), T(0))
        return x

    return finished


def _members(end: Ending) -> tuple[Any, ...]:
    """What follows a product as the kernels below take it."""
    scale, last_dropped = end.numbers() if end.p else (0.0, 0)
    offset = end.offset if end.p else None
    kinds = kind_number(end.activation), kind_number(end.gradient)
    return end.saved, offset, end.seed, scale, last_dropped, *kinds


# ---- v2


# Block: 16 x 16 threads and a 16 x 16 tile of y.  Thread: one element of it, and one element of each
# tile of a and b to load.
@kernel
def gemm_v2_smem_tile(T, TRANSPOSE_A, TRANSPOSE_B):
    TILE = 16
    PITCH = TILE + 1
    finished = _epilogue(T)

    def body(a, b, bias, y, M, N, K, batch, a_step, b_step, saved, offset, seed, scale, last_dropped, activation,
             gradient):  # fmt: skip
        s_a = cuda.shared.array((TILE, PITCH), T)  # [m][k]; the odd row length spreads a column over the banks
        s_b = cuda.shared.array((TILE, PITCH), T)  # [k][n]
        x, y_ = cuda.threadIdx.x, cuda.threadIdx.y
        m0, n0 = cuda.blockIdx.x * TILE, cuda.blockIdx.y * TILE

        for i in range(cuda.blockIdx.z, batch, cuda.gridDim.z):
            ai, bi = i * a_step, i * b_step
            sum = T(0)
            for k0 in range(0, K, TILE):
                # Neighbours in x read neighbours in memory, whichever way a matrix is stored.
                if TRANSPOSE_A:
                    m, k = m0 + x, k0 + y_
                    s_a[x, y_] = a[ai + k * M + m] if m < M and k < K else T(0)
                else:
                    m, k = m0 + y_, k0 + x
                    s_a[y_, x] = a[ai + m * K + k] if m < M and k < K else T(0)
                if TRANSPOSE_B:
                    n, k = n0 + y_, k0 + x
                    s_b[x, y_] = b[bi + n * K + k] if n < N and k < K else T(0)
                else:
                    n, k = n0 + x, k0 + y_
                    s_b[y_, x] = b[bi + k * N + n] if n < N and k < K else T(0)
                cuda.syncthreads()  # the tiles are complete before anyone multiplies
                for k in range(TILE):
                    sum += s_a[y_, k] * s_b[k, x]
                cuda.syncthreads()  # everyone has multiplied before the next tiles overwrite these
            m, n = m0 + y_, n0 + x
            if m < M and n < N:
                if len(bias) != 0:
                    sum += bias[n]
                at = (i * M + m) * N + n
                y[at] = finished(sum, at, saved, offset, seed, scale, last_dropped, activation, gradient)

    return body


# ---- v3


# Copy the tile of ROWS x DEPTH elements at (row0, k0) of the matrix of `rows` x K that begins at `first` to shared
# memory as tile[k][row], with zeros beyond its edges.  ALONG_K says that the matrix is stored with k running fastest.
@functools.cache
def _loader(ROWS: int, DEPTH: int, THREADS: int, ALONG_K: bool, T: Any) -> Any:
    FAST = DEPTH if ALONG_K else ROWS  # how many run along memory

    @device
    def load_tile(tile, matrix, first, rows, K, row0, k0):
        for place in range(cuda.threadIdx.x, ROWS * DEPTH, THREADS):
            fast, slow = place % FAST, place // FAST
            row, k = (slow, fast) if ALONG_K else (fast, slow)
            inside = row0 + row < rows and k0 + k < K
            at = (row0 + row) * K + k0 + k if ALONG_K else (k0 + k) * rows + row0 + row
            tile[k, row] = matrix[first + at] if inside else T(0)

    return load_tile


# Block: 256 threads and a 64 x 64 tile of y.  Thread: 4 x 4 elements of it.
@kernel
def gemm_v3_register_tile(T, TRANSPOSE_A, TRANSPOSE_B):
    TILE, DEPTH, OWN = 64, 16, 4
    SIDE = TILE // OWN
    THREADS = SIDE * SIDE
    PITCH = TILE + 16 // size_of(T)  # keeps rows aligned, spreads columns over the banks
    load_a = _loader(TILE, DEPTH, THREADS, not TRANSPOSE_A, T)
    load_b = _loader(TILE, DEPTH, THREADS, TRANSPOSE_B, T)
    finished = _epilogue(T)

    def body(a, b, bias, y, M, N, K, batch, a_step, b_step, saved, offset, seed, scale, last_dropped, activation,
             gradient):  # fmt: skip
        s_a = cuda.shared.array((DEPTH, PITCH), T)  # [k][m]
        s_b = cuda.shared.array((DEPTH, PITCH), T)  # [k][n]
        sum = cuda.local.array((OWN, OWN), T)
        of_a = cuda.local.array(OWN, T)
        of_b = cuda.local.array(OWN, T)
        x, y_ = cuda.threadIdx.x % SIDE, cuda.threadIdx.x // SIDE
        m0, n0 = cuda.blockIdx.x * TILE, cuda.blockIdx.y * TILE

        for i in range(cuda.blockIdx.z, batch, cuda.gridDim.z):
            for r in range(OWN):
                for c in range(OWN):
                    sum[r, c] = T(0)
            for k0 in range(0, K, DEPTH):
                load_a(s_a, a, i * a_step, M, K, m0, k0)
                load_b(s_b, b, i * b_step, N, K, n0, k0)
                cuda.syncthreads()  # the tiles are complete before anyone multiplies
                for k in range(DEPTH):  # beyond K both tiles hold 0
                    for e in range(OWN):
                        of_a[e] = s_a[k, y_ * OWN + e]
                        of_b[e] = s_b[k, x * OWN + e]
                    for r in range(OWN):
                        for c in range(OWN):
                            sum[r, c] += of_a[r] * of_b[c]
                cuda.syncthreads()  # everyone has multiplied before the next tiles overwrite these
            for r in range(OWN):
                for c in range(OWN):
                    m, n = m0 + y_ * OWN + r, n0 + x * OWN + c
                    if m < M and n < N:
                        value = sum[r, c]
                        if len(bias) != 0:
                            value += bias[n]
                        at = (i * M + m) * N + n
                        y[at] = finished(value, at, saved, offset, seed, scale, last_dropped, activation, gradient)

    return body


# ---- the launchers are those of cuda.py, with the twins in the place of the kernels


def _smem_tile(a: Any, b: Any, transposes: tuple[bool, bool]) -> Any:
    return launcher._Plan(gemm_v2_smem_tile[a.dtype, *transposes], 16, (16, 16), ending=_members)


def _register_tile(a: Any, b: Any, transposes: tuple[bool, bool]) -> Any:
    return launcher._Plan(gemm_v3_register_tile[a.dtype, *transposes], 64, 256, ending=_members)


def _default(a: Any, b: Any, bias: Any, transpose_a: bool, transpose_b: bool, end: Ending, out: Any) -> Any:
    g = geometry(a.shape, b.shape, transpose_a, transpose_b)
    version = _register_tile if min(g.M, g.N) > 16 else _smem_tile  # as in cuda.py
    return launcher._run(version, a, b, bias, transpose_a, transpose_b, end, out)


def gemm(
    a: Any, b: Any, bias: Any, saved: Any, offset: Any, transpose_a: bool, transpose_b: bool, activation: str | None,
    p: float, seed: int, gradient: str | None, out: Any,
) -> Any:  # fmt: skip
    return _default(a, b, bias, transpose_a, transpose_b, Ending(activation, p, seed, offset, gradient, saved), out)


def linear_backward(
    grad: Any, a: Any, b: Any, y: Any, offset: Any, layer: Layer, wanted: tuple[bool, bool, bool]
) -> tuple[Any, Any, Any]:
    h = dropout_forward(grad, layer.p, layer.seed, offset) if layer.p else grad
    h = h if layer.activation is None else activation_backward(h, y, layer.activation)
    return (
        _default(h, b, None, False, False, Ending(), None) if wanted[0] else None,
        _default(h, a, None, True, False, Ending(), None) if wanted[1] else None,
        h.sum(axis=0) if wanted[2] else None,
    )


def linear_layers_backward(
    grad: Any, y: Any, layers: tuple[Layer, ...], wanted: tuple[bool, ...], *arrays: Any
) -> tuple[Any, ...]:
    return one_by_one(linear_backward, grad, y, stack(layers, wanted, arrays), wanted[0])


VERSIONS = {
    "gemm": {
        "v2_smem_tile": launcher._pinned(_smem_tile),
        "v3_register_tile": launcher._pinned(_register_tile),
    }
}
