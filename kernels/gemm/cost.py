"""Which version takes a product, and in how many slices of K: what a small model of a GPU says.

The model is of an H100, with the numbers below; no number in it was measured by us.  A product is cut into blocks, one
for each tile of y and slice of K.  The busiest multiprocessor (SM) has ``n = ceil(blocks / SMs)`` of them, and the
product takes the longest of

* multiplying: n blocks at the version's share of the SM's peak;
* waiting: blocks that an SM holds at once wait together, those after them later; a lone block needs so long per k;
* fetching: what all blocks ask of the L2 cache, at its rate;

then a launch, and if K is cut, a second launch, and the slices' results are written and read besides y.  Where a
factor must be copied first, so that k runs fastest in it, that is two launches and its bytes twice, from memory.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

from .._launch import ceil_div

#: Multiplications that an SM of an H100 does in a nanosecond in float32: 128 a cycle at 1.7 GHz; float64 has half.
_PEAK = 128 * 1.7
#: Bytes that the L2 cache gives all SMs in a nanosecond, and memory; and the nanoseconds of a launch from Python.
_L2, _MEMORY, _LAUNCH = 5500.0, 3350.0, 3000.0
#: Nanoseconds that the blocks of a cluster need to meet and to add up what each has of a sum, by rule of thumb.
_MEETING = 1500.0
#: SMs of a group (GPC) of an H100 that has the fewest; a cluster lies in one group.
_GROUP = 16
#: Blocks along the second axis of a grid, elements of a workspace, and bytes.
_GRID_Y, _ELEMENTS, _WORKSPACE = 65535, 2**31 - 1, 2**28
#: Slices of K are multiples of the depth of a version's tiles, this of v5 and v6; none is shorter than 32 unless K is.
DEPTH, _SHORTEST = 8, 32
#: Numbers of slices that are tried.
_COUNTS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)


class Way(NamedTuple):
    """What the model knows of a version.

    Attributes:
        rows, columns: of a tile of y, in float32.
        scales: whether float64 halves both.
        share: of the SM's peak outside the tensor cores that it reaches when enough blocks are there: multiplications
            among all instructions, less where shared memory is the narrower way; on the tensor cores a multiple of it.
        resident: blocks that an SM holds at once, in float32 (docs/compile-table.md).
        wait: nanoseconds that a lone block waits for each k: the way to memory, 500, over the k under way.
        cuts: whether K may be cut into slices.
        depth: of its tiles.
        asked: of the rows and columns that a tile needs, the share that its block asks of the L2 cache itself; the
            other blocks of its cluster ask for the rest.
        down, across: tiles of y that a cluster has.
        slices: of k, where the blocks of a cluster have one each.
        by_bytes: whether its stages are of so many bytes, so that of halves twice as many k are under way.
    """

    rows: int
    columns: int
    scales: bool
    share: float
    resident: int
    wait: float
    cuts: bool
    depth: int = DEPTH
    asked: float = 1.0
    down: int = 1
    across: int = 1
    slices: int = 1
    by_bytes: bool = False

    def tile(self, itemsize: int) -> tuple[int, int]:
        """Rows and columns of a tile of y."""
        return (self.rows // 2, self.columns // 2) if self.scales and itemsize == 8 else (self.rows, self.columns)


WAYS = {
    "v3_register_tile": Way(64, 64, False, 0.5, 3, 500 / 16, False),
    "v6_warps_share_k": Way(16, 16, False, 0.5, 4, 500 / 192, True),
    "v5_warp_tile_narrow": Way(128, 64, True, 0.8, 3, 500 / 16, True),
    "v5_warp_tile_wide": Way(128, 128, True, 0.9, 2, 500 / 16, True),
}
#: Those on the tensor cores, which multiply 16 (bf16) and 8 times (tf32) as many numbers in a cycle; mma.sync reaches
#: 63 % of that (docs/kernels/gemm.md), small tiles less.  v9 has six products for one.
TENSOR_CORES = {
    f"{name}_{side}{suffix}": Way(side, side, False, share, 1 if side == 128 else 3, 500 / depth, True, depth)
    for name, suffix, share_of_128, depth in (
        ("v8_tensor_core_pipelined", "_tf32", 5.0, 16),
        ("v8_tensor_core_pipelined", "_bf16", 10.0, 32),
        ("v8_tensor_core_pipelined", "_fp16", 10.0, 32),
        ("v9_bf16_split", "", 1.6, 16),
    )
    for side, share in ((64, 0.75 * share_of_128), (128, share_of_128))
}
#: Of float16 and bfloat16.  Shared memory moves 128 bytes a cycle; for each k it has to move 2816 of them for a tile of
#: 256 x 128, 2048 for one of 128 x 128 and 768 for one of 64 x 64: enough to multiply 1489, 1024 and 683 pairs in a
#: cycle, of which tensor cores fed by warps take 1290.  `_PEAK` counts 256 of them.
HALF_WAYS = {
    "v14_half_cp_async_256": Way(256, 128, False, 5.0, 1, 500 / 64, True),
    "v14_half_cp_async_128": Way(128, 128, False, 4.0, 2, 500 / 64, True),
    "v14_half_cp_async_64": Way(64, 64, False, 2.7, 4, 500 / 64, True),
}
#: Of sm_90 alone, float32 rounded to tf32, and halves.  A tensor core does eight times what the rest of a processor
#: does, with halves sixteen.  Three of four stages of 32 k are on their way, those of v10 and v16 in two blocks.
HOPPER_WAYS = {
    "v13_wgmma_persistent_4": Way(
        128, 256, False, 8.0, 1, 500 / 96, False, asked=1 / 2, down=2, across=2, by_bytes=True
    ),
    "v13_wgmma_persistent_2": Way(128, 256, False, 8.0, 1, 500 / 96, False, asked=2 / 3, down=2, by_bytes=True),
    **{
        f"v16_wgmma_cluster_slices_{n}": Way(64, 128, False, 8.0, 2, 500 / 96, False, slices=n, by_bytes=True)
        for n in (2, 4, 8)
    },
    "v10_wgmma_tma": Way(64, 128, False, 8.0, 2, 500 / 96, False, by_bytes=True),
    "v11_wgmma_two": Way(128, 256, False, 8.0, 1, 500 / 96, False, by_bytes=True),
    "v12_wgmma_cluster": Way(128, 256, False, 8.0, 1, 500 / 96, False, asked=2 / 3, down=2, by_bytes=True),
}
_EVERY = WAYS | TENSOR_CORES | HALF_WAYS | HOPPER_WAYS


def at_once(size: int, processors: int) -> int:
    """Clusters of ``size`` blocks, one on each multiprocessor, that certainly run at the same time.

    An H100 has groups of 16 and of 18 multiprocessors, so four blocks find a place four times in each, two as often as
    there are pairs.  By what is published of the chip, not by measurement.
    """
    return max(1, processors // size if size <= 2 else processors // _GROUP * (_GROUP // size))


def slices(K: int, wanted: int, depth: int = DEPTH) -> tuple[int, int]:
    """How many slices of K there are when about ``wanted`` are, and the length of each but the last."""
    length = max(1, ceil_div(ceil_div(K, max(1, wanted)), depth)) * depth
    return max(1, ceil_div(K, length)), length


def predicted(way: Way, M: int, N: int, K: int, batch: int, itemsize: int, processors: int, splits: int) -> float:
    """Nanoseconds that the product takes by the model."""
    rows, columns = way.tile(itemsize)
    splits, length = slices(K, splits, way.depth)
    k = min(K, length) if way.slices == 1 else ceil_div(K, way.slices)
    tiles = ceil_div(M, rows * way.down) * way.down * ceil_div(N, columns * way.across) * way.across * batch
    size = way.down * way.across * way.slices
    blocks = tiles * splits * way.slices
    busiest = ceil_div(blocks, min(processors, at_once(size, processors) * size) if size > 1 else processors)
    multiplying = busiest * rows * columns * k / (_PEAK * 4 / itemsize * way.share)
    waiting = ceil_div(busiest, way.resident) * k * way.wait * (itemsize / 4 if way.by_bytes else 1)
    fetching = blocks * (rows + columns) * way.asked * k * itemsize / _L2
    moved = 2 * splits * max(itemsize, 4) + itemsize  # bytes for each result: slices of halves are in float32
    after = _LAUNCH + moved * batch * M * N / _L2 if splits > 1 else _MEETING if way.slices > 1 else 0.0
    return _LAUNCH + max(multiplying, waiting, fetching) + after


def _fits(way: Way, M: int, N: int, batch: int, itemsize: int, splits: int) -> bool:
    """Whether the grid and the workspace may be as large."""
    size = batch * M * N * splits
    workspace = splits == 1 or (size <= _ELEMENTS and size * max(itemsize, 4) <= _WORKSPACE)
    return workspace and ceil_div(N, way.tile(itemsize)[1]) <= _GRID_Y


@lru_cache(maxsize=4096)
def choose(
    M: int, N: int, K: int, batch: int, itemsize: int, processors: int, among: tuple[str, ...] = tuple(WAYS)
) -> tuple[str, int]:
    """The version, of those named in ``among``, and the number of slices of K that take least by the model.

    Of equals the one that stands first, with the fewest slices; the last where no grid is large enough.
    """
    return quickest(M, N, K, batch, itemsize, processors, among)[:2]


def quickest(
    M: int, N: int, K: int, batch: int, itemsize: int, processors: int, among: tuple[str, ...]
) -> tuple[str, int, float]:
    """As :func:`choose`, and the nanoseconds."""
    best, least = (among[-1], 1), float("inf")
    for name in among:
        way = _EVERY[name]
        most = max(1, K // _SHORTEST) if way.cuts else 1
        counts = dict.fromkeys(slices(K, wanted, way.depth)[0] for wanted in _COUNTS if wanted <= most)
        for splits in counts:
            if _fits(way, M, N, batch, itemsize, splits):
                time = predicted(way, M, N, K, batch, itemsize, processors, splits)
                if time < least:
                    best, least = (name, splits), time
    return *best, least


@lru_cache(maxsize=4096)
def choose_on_hopper(
    M: int,
    N: int,
    K: int,
    batch: int,
    itemsize: int,
    processors: int,
    others: tuple[str, ...],
    among: tuple[str, ...],
    copied: tuple[int, ...],
) -> str | None:
    """The version of ``among``, which are in :data:`HOPPER_WAYS`, if it takes less than the best of ``others``.

    Args:
        copied: bytes of each factor that must be copied for them.
    """
    name, _, time = quickest(M, N, K, batch, itemsize, processors, among)
    time += sum(2 * _LAUNCH + 2 * size / _MEMORY for size in copied)
    return name if time < quickest(M, N, K, batch, itemsize, processors, others)[2] else None
