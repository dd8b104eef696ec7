"""How the CUDA kernels cut their work: what a block takes at once, and into how many slices a long sum goes.

Every tile follows from the sizes of the convolution alone, so that the same call always does the same.  Tiles are
chosen by what they cost in a model, counted instructions mostly, not by measurement; docs/kernels/conv2d.md tells it.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

from .._launch import ceil_div
from ..max_pool2d import Geometry as PoolGeometry
from . import Geometry

#: Threads of a block of v1, v2 and v4; of v4 at most.
THREADS = 256
#: A register tile (v3) has eight times as many rows and 16 times as many columns as one thread owns of it.
ROWS = (2, 3, 4, 8)
COLS = (2, 8)
#: Columns of a register tile where they are positions: one for each of its threads.
WIDTH = 128
#: What ``Stage`` in conv2d.cu (v2) holds: numbers of the patch, and others.
_PATCH, _OTHER = 4096, 2048
#: Bytes of each array of ``DirectStage`` in conv2d_direct.cu (v4), and the channels that a thread owns of its result.
_ROOM, OWN = 12288, 4
#: The sides of filters whose loops v4 unrolls, and the lengths of its runs; the first stands for all others.
SIDES = (0, 3, 5)
RUNS = (1, 3, 5)
#: In conv2d_tensor_core.cu (v5): the channels that one instruction sums over; numbers of a patch and of filters; for dw
#: numbers of a patch, and of positions times filters.
DEPTHS = {"tf32": 8, "bf16": 16, "fp16": 16}
_TENSOR_PATCH, _FILTERS, _FIELD, _GRADIENTS = 4096, 2048, 3456, 2048
#: In conv2d_channels_last.cu (v6): rows and columns of a product, and how deep its tiles are.
LONG, COLUMNS, DEPTH = 128, (32, 64), 16


# ---- the axes of a correlation


class Axis(NamedTuple):
    """One axis of a correlation, as in _cuda/correlation.cuh."""

    positions: int
    taps: int
    stride: int
    dilation: int

    def reach(self, positions: int, taps: int) -> int:
        """How far so many positions reach under so many taps."""
        return (positions - 1) * self.stride + (taps - 1) * self.dilation + 1


def forward_axes(g: Geometry) -> list[Axis]:
    """Those of y, down and across."""
    return [Axis(*sizes) for sizes in zip((g.P, g.Q), (g.R, g.S), g.stride, g.dilation, strict=True)]


def input_axes(g: Geometry) -> list[Axis]:
    """Those of dx, in the class of rows and columns that has the most positions and taps."""
    axes = []
    for size, taps, stride, dilation in zip((g.H, g.W), (g.R, g.S), g.stride, g.dilation, strict=True):
        common = math.gcd(stride, dilation)
        axes.append(Axis(ceil_div(size, stride), ceil_div(taps, stride // common), 1, dilation // common))
    return axes


def classes(g: Geometry) -> int:
    """Classes of rows and columns of dx that meet different taps; a stride beyond the input has empty ones."""
    return min(g.stride[0], g.H) * min(g.stride[1], g.W)


def _taps(axes: list[Axis]) -> list[int]:
    return [axis.taps for axis in axes]


def _patch(axes: list[Axis], positions: list[int], taps: list[int]) -> int:
    """Elements of one channel under these positions."""
    return math.prod(axis.reach(p, t) for axis, p, t in zip(axes, positions, taps, strict=True))


def _parts(size: int, most: int) -> list[int]:
    """What is left of ``size`` if it is cut into 1, 2, 3, … parts, where that is at most `most`."""
    return sorted({ceil_div(size, count) for count in range(1, size + 1)} & set(range(1, most + 1)))


# ---- v2


class Tile(NamedTuple):
    """``Tile`` of conv2d.cu."""

    P: int
    Q: int
    M: int
    C: int
    R: int
    S: int

    @property
    def threads(self) -> int:
        """Of a block in which each owns one result."""
        return self.M * self.P * self.Q


def _fit(positions: list[int], taps: list[int], fits: Callable[[], bool]) -> None:
    """Halve `positions`, and when they are all 1 `taps`, until ``fits()``."""
    while not fits():
        sizes = positions if max(positions) > 1 else taps
        sizes[sizes.index(max(sizes))] //= 2


def _positions(axes: list[Axis]) -> list[int]:
    """Of a tile: equal parts of each axis, at most 16 x 16."""
    return [max(1, ceil_div(axis.positions, max(1, ceil_div(axis.positions, 16)))) for axis in axes]


def _correlation_tile(axes: list[Axis], M: int, C: int) -> Tile:
    """As many result channels as there are threads for, as many input channels as fit."""
    positions, taps = _positions(axes), _taps(axes)
    _fit([1], taps, lambda: math.prod(taps) <= _OTHER)
    _fit(positions, taps, lambda: _patch(axes, positions, taps) <= _PATCH)
    channels = max(1, min(M, THREADS // math.prod(positions), _OTHER // math.prod(taps)))
    depth = min(C, _PATCH // _patch(axes, positions, taps), _OTHER // (channels * math.prod(taps)))
    (P, Q), (R, S) = positions, taps
    return Tile(P, Q, channels, max(1, depth), R, S)


@functools.lru_cache(maxsize=1024)
def smem_forward(g: Geometry) -> Tile:
    """The tile of y."""
    return _correlation_tile(forward_axes(g), g.K // g.G, g.C // g.G)


@functools.lru_cache(maxsize=1024)
def smem_input(g: Geometry) -> Tile:
    """The tile of dx."""
    return _correlation_tile(input_axes(g), g.C // g.G, g.K // g.G)


@functools.lru_cache(maxsize=1024)
def smem_weight(g: Geometry) -> Tile:
    """The tile of dw: as many weights as there are threads, filters and channels about evenly; positions as fit."""
    axes, K, C = forward_axes(g), max(1, g.K // g.G), max(1, g.C // g.G)
    positions, taps = _positions(axes), _taps(axes)
    _fit([1], taps, lambda: math.prod(taps) <= THREADS)
    room = THREADS // math.prod(taps)
    filters = min(K, room // min(C, math.isqrt(room)))
    channels = min(C, room // filters)
    _fit(
        positions,
        taps,
        lambda: channels * _patch(axes, positions, taps) <= _PATCH and filters * math.prod(positions) <= _OTHER,
    )
    (P, Q), (R, S) = positions, taps
    return Tile(P, Q, filters, channels, R, S)


# ---- v3


def register_rows(channels: int) -> int:
    """The rows per thread that cost least: r units for multiplying and about 2 for fetching, per tile."""
    return min(ROWS, key=lambda r: ceil_div(channels, 8 * r) * (r + 2))


def register_cols(taps: int) -> int:
    """The columns per thread, where they are taps, that cost least."""
    return min(COLS, key=lambda c: ceil_div(taps, 16 * c) * (c + 2))


# ---- v4


class Squares(NamedTuple):
    """``Squares`` of conv2d_direct.cu."""

    I: int  # noqa: E741
    J: int
    M: int
    C: int
    down: int
    across: int
    above: int
    left: int

    @property
    def threads(self) -> int:
        """Of a block: whole warps, since a warp copies a row."""
        return 32 * ceil_div(self.I * self.J * self.M, 32)

    @property
    def blocks(self) -> int:
        """Of one plane and all of its channels that one block takes."""
        return ceil_div(self.down, self.I) * ceil_div(self.across, self.J)


def side(axes: list[Axis]) -> int:
    """The template argument TAPS of a direct correlation."""
    square = axes[0].taps == axes[1].taps and all(axis.stride == axis.dilation == 1 for axis in axes)
    return axes[0].taps if square and axes[0].taps in SIDES else 0


def _fours(channels: int) -> int:
    """How many fours of channels a block takes: all, or equal parts of at most eight."""
    fours = max(1, ceil_div(channels, OWN))
    return ceil_div(fours, ceil_div(fours, 8))


def _width_of_fours(fours: int) -> int:
    return (fours | 1) * OWN


def _even_patch(axes: list[Axis], P: int, Q: int) -> int:
    """Elements of one channel under P x Q positions, in rows of an even size."""
    rows, columns = (axis.reach(count, axis.taps) for axis, count in zip(axes, (P, Q), strict=True))
    return rows * 2 * ceil_div(columns, 2)


def _direct_tile(
    axes: list[Axis], M: int, C: int, plane: tuple[int, int], edge: tuple[int, int], itemsize: int
) -> Squares | None:
    """The tile of a direct correlation that costs least, or None if not even one square fits.

    Counted are a warp's instructions: 16 products for each tap and channel, and about ten for each 32 numbers
    that are copied.
    """
    room, taps = _ROOM // itemsize, math.prod(_taps(axes))
    fours = _fours(M)
    while fours > 1 and taps * _width_of_fours(fours) > room:
        fours = ceil_div(fours, 2)
    of_filters = taps * _width_of_fours(fours)
    if of_filters > room:
        return None

    def patch(down: int, across: int) -> int:
        return _even_patch(axes, 2 * down, 2 * across)

    def cost(sides: tuple[int, int]) -> int:
        blocks = ceil_div(plane[0], sides[0]) * ceil_div(plane[1], sides[1])
        warps = ceil_div(math.prod(sides) * fours, 32)
        return int(blocks * (warps * taps * 16 + ceil_div((patch(*sides) + of_filters) * 10, 32)))

    most = THREADS // fours
    every = [(down, across) for down in _parts(plane[0], most) for across in _parts(plane[1], most // down)]
    fitting = [sides for sides in every if patch(*sides) <= room]
    if not fitting:
        return None
    sides = min(fitting, key=cost)
    depth = max(1, min(C, room // patch(*sides), room // of_filters))
    return Squares(*sides, fours, max(1, ceil_div(C, ceil_div(max(C, 1), depth))), *plane, *edge)


@functools.lru_cache(maxsize=1024)
def direct_forward(g: Geometry, itemsize: int) -> Squares | None:
    """The squares of y, or None if not even one fits; so the others below."""
    plane = ceil_div(g.P, 2), ceil_div(g.Q, 2)
    return _direct_tile(forward_axes(g), g.K // g.G, g.C // g.G, plane, (0, 0), itemsize)


@functools.lru_cache(maxsize=1024)
def direct_pool(g: Geometry, p: PoolGeometry, itemsize: int) -> Squares | None:
    """The squares are the windows, if they are 2 x 2 and lie side by side."""
    if (p.R, p.S) != (2, 2) or p.stride != (2, 2) or p.dilation != (1, 1):
        return None
    return _direct_tile(forward_axes(g), g.K // g.G, g.C // g.G, (p.P, p.Q), p.padding, itemsize)


@functools.lru_cache(maxsize=1024)
def direct_input(g: Geometry, itemsize: int) -> Squares | None:
    """The squares of dx."""
    axes = input_axes(g)
    down, across = (ceil_div(axis.positions, 2) for axis in axes)
    return _direct_tile(axes, g.C // g.G, g.K // g.G, (max(1, down), max(1, across)), (0, 0), itemsize)


class Runs(NamedTuple):
    """``Runs`` of conv2d_direct.cu."""

    P: int
    Q: int
    M: int
    U: int
    C: int


@functools.lru_cache(maxsize=1024)
def direct_weight(g: Geometry, itemsize: int) -> Runs | None:
    """Runs as there are threads, whole channels if they are that many; as many positions as fit, or None."""
    room, axes = _ROOM // itemsize, forward_axes(g)
    C, of_channel = max(1, g.C // g.G), g.R * g.S // run(g)
    fours = _fours(g.K // g.G)
    most = THREADS // fours
    if of_channel <= most:
        channels = ceil_div(C, ceil_div(C, most // of_channel))
        runs = channels * of_channel
    else:
        channels, runs = min(C, 2), most
    Q = max(1, ceil_div(g.Q, ceil_div(g.Q, 16)))
    for P in range(min(g.P, 16), 0, -1):
        if channels * _even_patch(axes, P, Q) <= room and P * Q * _width_of_fours(fours) <= room:
            return Runs(ceil_div(g.P, ceil_div(g.P, P)), Q, fours, runs, channels)
    return None


def run(g: Geometry) -> int:
    """The template argument TAPS of the direct gradient of the weights: the taps in one thread's run."""
    return g.S if g.S in RUNS and g.stride[1] == g.dilation[1] == 1 else 1


# ---- v5


class Rectangle(NamedTuple):
    """``Rectangle`` of conv2d_tensor_core.cu."""

    P: int
    Q: int
    taps: int


def warps_high(channels: int) -> int:
    """The template argument WARPS_M: how many times 32 channels a block takes."""
    return 1 if channels <= 32 else 2


def _spaced(plane: int, banks: int) -> int:
    """At least ``plane`` numbers, `banks` more than a multiple of 32: what is so far apart lies in other banks."""
    return ceil_div(max(plane - banks, 0), 32) * 32 + banks


def _tensor_tile(axes: list[Axis], M: int, precision: str) -> Rectangle | None:
    """The tile of a correlation on tensor cores with the fewest blocks, or None if not one position fits."""
    depth, high = DEPTHS[precision], warps_high(M)
    banks, most = 64 // depth, 64 * (4 // high)

    def plane(P: int, Q: int) -> int:
        return _spaced(_patch(axes, [P, Q], _taps(axes)), banks)

    down, across = (axis.positions for axis in axes)
    every = [(P, Q) for P in _parts(down, most) for Q in _parts(across, most // P)]
    fitting = [sides for sides in every if plane(*sides) * depth <= _TENSOR_PATCH]
    if not fitting:
        return None
    P, Q = min(fitting, key=lambda sides: (ceil_div(down, sides[0]) * ceil_div(across, sides[1]), plane(*sides)))
    return Rectangle(P, Q, min(math.prod(_taps(axes)), _FILTERS // (depth * (32 * high + banks))))


@functools.lru_cache(maxsize=1024)
def tensor_forward(g: Geometry, precision: str) -> Rectangle | None:
    """The tile of y."""
    return _tensor_tile(forward_axes(g), g.K // g.G, precision)


@functools.lru_cache(maxsize=1024)
def tensor_input(g: Geometry, precision: str) -> Rectangle | None:
    """The tile of dx."""
    return _tensor_tile(input_axes(g), g.C // g.G, precision)


class Field(NamedTuple):
    """``Field`` of conv2d_tensor_core.cu."""

    P: int
    Q: int
    C: int
    groups: int


@functools.lru_cache(maxsize=1024)
def tensor_weight(g: Geometry, precision: str) -> Field | None:
    """The tile of dw on tensor cores that costs least, or None if not one position fits.

    Counted are a warp's instructions: about ten for each 32 numbers that are copied; for each step of positions the
    16 reads of a fragment of gradients, and for each group its fragment and two products; and 200 to begin a tile.
    """
    axes, depth, high = forward_axes(g), DEPTHS[precision], warps_high(g.K // g.G)
    K, eighths, taps = g.K // g.G, ceil_div(g.C // g.G, 8), g.R * g.S
    banks, most = depth // 2, _GRADIENTS // (32 * high)

    def patch(P: int, Q: int, C: int) -> int:
        plane = _patch(axes, [P, Q], _taps(axes))
        return C * _spaced(plane, banks)

    def cost(field: Field) -> int:
        blocks = ceil_div(eighths * taps, 4 // high * field.groups) * ceil_div(K, 32 * high)
        tiles = ceil_div(g.P, field.P) * ceil_div(g.Q, field.Q)
        copied = patch(field.P, field.Q, field.C) + 32 * high * field.P * field.Q
        steps = ceil_div(field.P * field.Q, depth)
        return int(blocks * tiles * (200 + copied * 10 // 128 + steps * (16 + 8 * field.groups)))

    fields = []
    for groups in (8, 6, 4, 3, 2, 1):
        channels = 8 * min(eighths, (4 // high * groups + taps - 2) // taps + 1)
        for P in _parts(g.P, most):
            fields += [Field(P, Q, channels, groups) for Q in _parts(g.Q, most // P)]
    return min((field for field in fields if patch(*field[:3]) <= _FIELD), key=cost, default=None)


# ---- v6


def columns(channels: int) -> int:
    """The template argument COLUMNS: channels of the result in a block."""
    return COLUMNS[0] if channels <= COLUMNS[0] else COLUMNS[1]


def panel(channels: int) -> int:
    """So many channels are summed under one tap before the next one's turn: equal parts of at most 32, by fours."""
    parts = max(1, ceil_div(channels, 32))
    return 4 * max(1, ceil_div(channels, 4 * parts))


# ---- sums


def slices(units: int, positions: int, blocks: int, size: int, least: int = 128) -> tuple[int, int]:
    """Into how many slices a sum over `positions`, in so many `units`, is cut, and the units of each.

    Enough to fill a large GPU when each takes `blocks`, but none of fewer than `least` positions; and none
    of more than 8192, since a chain of so many additions begins to cost float32 its digits, unless the
    slices of a result of `size` numbers would then take gigabytes.
    """
    filling = min(ceil_div(256, max(1, blocks)), ceil_div(positions, least))
    wanted = max(1, min(max(filling, ceil_div(positions, 8192)), 2**28 // max(1, size)))
    length = max(1, ceil_div(units, wanted))
    return max(1, ceil_div(units, length)), length
