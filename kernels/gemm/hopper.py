"""Launcher of gemm_hopper.cu: tensor maps, and factors with k running fastest."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from .._devices import device_of
from .._dtypes import HALVES
from .._epilogue import Ending
from .._errors import BackendError
from .._launch import Instance, Kernel, ceil_div, multiprocessors, result, runtime_of
from .._tensor_map import TensorMap
from . import Geometry, geometry
from .cost import HOPPER_WAYS, at_once, choose_on_hopper

_SOURCE = Path(__file__).with_name("gemm_hopper.cu")
#: As in the source: bytes of a row of a tile, and stages of the ring.
_ROW, _STAGES = 128, 4


class Version(NamedTuple):
    """A kernel, its tile of y, and the threads of its block.

    Attributes:
        kernels: its instance for each dtype that it takes.
        rows, columns: of a cluster, in blocks; each fetches such a part of the tiles that it shares.
        slices: of k, where the blocks of a cluster have one each.
        persistent: whether a cluster takes one tile after the other.
    """

    kernels: dict[np.dtype, Instance]
    tile_m: int
    tile_n: int
    threads: int
    rows: int = 1
    columns: int = 1
    persistent: bool = False
    slices: int = 1

    def shared(self) -> int:
        """Bytes of the ring and its barriers, in whole kilobytes as its alignment has it, and a quarter of the sums."""
        waiting = self.tile_m * self.tile_n if self.slices == 1 else 0
        return _STAGES * (self.tile_m + self.tile_n) * _ROW + 1024 + waiting

    def takes(self, dtype: np.dtype) -> bool:
        """Whether there is an instance for arrays of ``dtype``."""
        return dtype in self.kernels

    def grid(self, g: Geometry, batch: int, most_z: int, processors: int) -> tuple[int, int, int]:
        """Whole clusters; of persistent ones as many as there is work for, and as run at once."""
        down, across = ceil_div(g.M, self.tile_m * self.rows), ceil_div(g.N, self.tile_n * self.columns)
        if not self.persistent:
            return down * self.rows, across * self.columns, min(batch, max(1, most_z // self.slices)) * self.slices
        size = self.rows * self.columns
        return self.rows, self.columns, min(down * across * batch, most_z, at_once(size, processors))


_FLOAT32, _SM_90A = np.dtype(np.float32), ("sm_90a",)
_STORED = (_FLOAT32, *HALVES)
_TMA = {_FLOAT32: Kernel(_SOURCE, "gemm_v10_wgmma_tma", architectures=_SM_90A)[()]}
_TWO = {_FLOAT32: Kernel(_SOURCE, "gemm_v11_wgmma_two", architectures=_SM_90A)[()]}
_CLUSTER = Kernel(_SOURCE, "gemm_v12_wgmma_cluster", architectures=_SM_90A, S=_STORED)
_PERSISTENT = Kernel(_SOURCE, "gemm_v13_wgmma_persistent", architectures=_SM_90A, S=_STORED, COLUMNS=(1, 2))
_BY_TWO, _BY_FOUR = ({S: _PERSISTENT[S, columns] for S in _STORED} for columns in (1, 2))
#: 8 is the largest cluster, and what few results want; 2 where 66 tiles are there, or so.
_COUNTS = (2, 4, 8)
_SLICES = Kernel(_SOURCE, "gemm_v16_wgmma_cluster_slices", architectures=_SM_90A, S=_STORED, SLICES=_COUNTS)
VERSIONS = {
    "v10_wgmma_tma": Version(_TMA, 64, 128, 160),
    "v11_wgmma_two": Version(_TWO, 128, 256, 288),
    "v12_wgmma_cluster": Version({S: _CLUSTER[S] for S in _STORED}, 128, 256, 288, rows=2),
    "v13_wgmma_persistent_2": Version(_BY_TWO, 128, 256, 288, rows=2, persistent=True),
    "v13_wgmma_persistent_4": Version(_BY_FOUR, 128, 256, 288, rows=2, columns=2, persistent=True),
    **{
        f"v16_wgmma_cluster_slices_{n}": Version({S: _SLICES[S, n] for S in _STORED}, 64, 128, 160, slices=n)
        for n in _COUNTS
    },
}


def wgmma(
    version: Version,
    most_z: int,
    a: Any,
    b: Any,
    bias: Any,
    transpose_a: bool,
    transpose_b: bool,
    end: Ending,
    out: Any,
) -> Any:
    """The matrix product, of float32 rounded to tf32 or of halves, by a grid of at most ``most_z`` layers."""
    if a.dtype not in version.kernels:
        others = ", and this version float16 and bfloat16" if len(version.kernels) > 1 else ""
        raise BackendError(f"gemm: the tensor cores' tf32 takes float32{others}; got {a.dtype}")
    g = geometry(a.shape, b.shape, transpose_a, transpose_b)
    y = result(out, a, g.y_shape)
    if y.size == 0:
        return y
    batch = math.prod(g.batch)
    K = max(g.K, 1)  # an empty sum is one over a zero
    depth, tf32 = _ROW // a.itemsize, a.dtype == np.float32
    of_a, of_b = _k_fastest(a, g.batch, transpose_a), _k_fastest(b, g.batch, not transpose_b)
    a_map = TensorMap(of_a, (1, version.tile_m // version.columns, depth), _ROW, K, tf32)
    b_map = TensorMap(of_b, (1, version.tile_n // version.rows, depth), _ROW, K, tf32)
    many = of_a.shape[0] > 1, of_b.shape[0] > 1
    grid = version.grid(g, batch, most_z, multiprocessors(a))
    arguments = a_map, b_map, bias, y, g.M, g.N, K, batch, *many, end.packed()
    version.kernels[a.dtype](grid, version.threads, *arguments, shared=version.shared())
    return y


def chosen(
    g: Geometry, a: Any, b: Any, transpose_a: bool, transpose_b: bool, others: tuple[str, ...]
) -> Version | None:
    """The version that the model says, or None if one of ``others`` takes less; no GPU has confirmed it.

    For sm_90, where the numbers of ``a`` may be rounded to tf32 or are halves.
    """
    factors = (a, transpose_a), (b, not transpose_b)
    copied = tuple([matrix.nbytes for matrix, transpose in factors if not _is_k_fastest(matrix, transpose)])
    among = tuple([name for name in HOPPER_WAYS if VERSIONS[name].takes(a.dtype)])
    sizes = g.M, g.N, max(g.K, 1), math.prod(g.batch), a.itemsize, multiprocessors(a)
    name = choose_on_hopper(*sizes, others, among, copied)
    return None if name is None else VERSIONS[name]


def _is_k_fastest(matrix: Any, transpose: bool) -> bool:
    """Whether k runs fastest in ``matrix``, and its rows begin at multiples of 16 bytes."""
    K = matrix.shape[-2] if transpose else matrix.shape[-1]
    return not transpose and K * matrix.itemsize % 16 == 0 < K and runtime_of(matrix).address(matrix) % 16 == 0


def _k_fastest(matrix: Any, batch: tuple[int, ...], transpose: bool) -> Any:
    """``matrix`` as (products, rows, k), rows at multiples of 16 bytes: itself where it is so already, else a copy.

    One matrix for all products stays one; other patterns of broadcasting are written out.
    """
    module = device_of(matrix).array_module
    if math.prod(matrix.shape[:-2]) not in (1, math.prod(batch)):
        matrix = module.ascontiguousarray(module.broadcast_to(matrix, (*batch, *matrix.shape[-2:])))
    matrix = matrix.reshape(math.prod(matrix.shape[:-2]), *matrix.shape[-2:])
    K = matrix.shape[-2] if transpose else matrix.shape[-1]
    piece = 16 // matrix.itemsize
    if _is_k_fastest(matrix, transpose):
        return matrix
    rows = matrix.shape[-1] if transpose else matrix.shape[-2]
    copied = module.zeros((matrix.shape[0], rows, max(ceil_div(K, piece), 1) * piece), matrix.dtype)
    copied[:, :, :K] = module.moveaxis(matrix, -1, -2) if transpose else matrix
    return copied
