"""Launcher of gemm_hopper.cu: tensor maps, and factors with k running fastest."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from .._devices import device_of
from .._errors import BackendError
from .._launch import Kernel, ceil_div, result, runtime_of
from .._tensor_map import TensorMap
from ..activation.cuda import kind_number
from . import geometry

_SOURCE = Path(__file__).with_name("gemm_hopper.cu")
#: As in the source: the depth of a step, and stages of the ring.
_DEPTH, _STAGES = 32, 4


class _Version(NamedTuple):
    """A kernel, its tile of y, and the threads of its block."""

    kernel: Kernel
    tile_m: int
    tile_n: int
    threads: int

    def shared(self) -> int:
        """Bytes of the ring and its barriers, in whole kilobytes as its alignment has it."""
        return _STAGES * (self.tile_m + self.tile_n) * _DEPTH * 4 + 1024


WGMMA_TMA = _Version(Kernel(_SOURCE, "gemm_v10_wgmma_tma", architectures=("sm_90a",)), 64, 128, 160)
WGMMA_TWO = _Version(Kernel(_SOURCE, "gemm_v11_wgmma_two", architectures=("sm_90a",)), 128, 256, 288)


def wgmma(
    version: _Version,
    most_z: int,
    a: Any,
    b: Any,
    bias: Any,
    transpose_a: bool,
    transpose_b: bool,
    activation: str | None,
    out: Any,
) -> Any:
    """The matrix product, of float32 rounded to tf32, by a grid of at most ``most_z`` layers."""
    if a.dtype != np.float32:
        raise BackendError(f"gemm: the tensor cores' tf32 takes float32; got {a.dtype}")
    g = geometry(a.shape, b.shape, transpose_a, transpose_b)
    y = result(out, a, g.y_shape)
    if y.size == 0:
        return y
    batch = math.prod(g.batch)
    K = max(g.K, 1)  # an empty sum is one over a zero
    of_a, of_b = _k_fastest(a, g.batch, transpose_a), _k_fastest(b, g.batch, not transpose_b)
    a_map = TensorMap(of_a, (1, version.tile_m, _DEPTH), 128, columns=K, to_tf32=True)
    b_map = TensorMap(of_b, (1, version.tile_n, _DEPTH), 128, columns=K, to_tf32=True)
    many = of_a.shape[0] > 1, of_b.shape[0] > 1
    grid = (ceil_div(g.M, version.tile_m), ceil_div(g.N, version.tile_n), min(batch, most_z))
    arguments = a_map, b_map, bias, y, g.M, g.N, K, batch, *many, kind_number(activation)
    version.kernel(grid, version.threads, *arguments, shared=version.shared())
    return y


def _k_fastest(matrix: Any, batch: tuple[int, ...], transpose: bool) -> Any:
    """``matrix`` as (products, rows, k), rows at multiples of 16 bytes: itself where it is so already, else a copy.

    One matrix for all products stays one; other patterns of broadcasting are written out.
    """
    module = device_of(matrix).array_module
    if math.prod(matrix.shape[:-2]) not in (1, math.prod(batch)):
        matrix = module.ascontiguousarray(module.broadcast_to(matrix, (*batch, *matrix.shape[-2:])))
    matrix = matrix.reshape(math.prod(matrix.shape[:-2]), *matrix.shape[-2:])
    K = matrix.shape[-2] if transpose else matrix.shape[-1]
    if not transpose and K and K % 4 == 0 and runtime_of(matrix).address(matrix) % 16 == 0:
        return matrix
    rows = matrix.shape[-1] if transpose else matrix.shape[-2]
    copied = module.zeros((matrix.shape[0], rows, max(ceil_div(K, 4), 1) * 4), matrix.dtype)
    copied[:, :, :K] = module.moveaxis(matrix, -1, -2) if transpose else matrix
    return copied
