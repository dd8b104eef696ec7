"""How the compiled convolution (numba_cpu.py) cuts its work: plain Python, from the shapes alone."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from .._simd import vector_bytes
from .._simd_tile import registers_fit
from . import Geometry

#: Bytes of an image in cache: with what else a part touches it stays in the second-level cache.
_IMAGE_BYTES = 512 * 1024
#: The tiles among which a shape chooses, output channels and vectors, with the time of a multiplication relative to
#: the processor's best (measured with 500 steps): few channels leave each load fewer multiplications.
_TILES = {(1, 8): 2.4, (6, 4): 1.08, (8, 3): 1.03, (10, 2): 1.04}
if not registers_fit(10, 2):
    _TILES = {(1, 8): 2.4, (4, 2): 1.2, (6, 2): 1.0}


# ---- images in cache, forward, and backward to the input


class Image(NamedTuple):
    """The image in cache: per channel and phase one plane of (height, pitch)."""

    firsts: np.ndarray  # (phases, 2): the source's row and column that are a phase's first, for output row 0
    step: tuple[int, int]  # from one element of a plane to the next, in the source
    height: int
    pitch: int

    @property
    def plane(self) -> int:
        """Elements of a channel."""
        return len(self.firsts) * self.height * self.pitch


class Grid(NamedTuple):
    """Outputs that sum the same taps: all of the forward pass, or a residue class of the backward pass."""

    taps: list[int]  # their numbers, r S + s
    shifts: list[int]  # where each lies in a channel's planes, for output (0, 0)
    size: tuple[int, int]
    start: tuple[int, int]  # where in the destination
    step: tuple[int, int]


class Plan(NamedTuple):
    """What ``_correlate`` of numba_cpu.py is told; see there."""

    R: int
    V: int
    rows: int  # of outputs in a part
    blocks: int  # parts of a plane
    image: Image
    table: np.ndarray  # (grids, 11): what the loop over ``grids`` in correlation_plan puts together
    offsets: np.ndarray
    bases: np.ndarray
    taps: np.ndarray
    weights: int  # elements of one group's panels
    scratch: int  # elements
    source: tuple[int, int, int]  # channels of a group, height, width
    destination: tuple[int, int, int]
    out_step: tuple[int, int]


def _places(taps: int, stride: int, dilation: int) -> list[tuple[int, int]]:
    """For each tap of one axis its phase, and its place among the elements of that phase."""
    return [(tap * dilation % stride, tap * dilation // stride) for tap in range(taps)]


def _forward_image(g: Geometry, rows: int) -> tuple[Image, list[int]]:
    """The image for ``rows`` rows of y, and the shift of each tap."""
    down, across = _places(g.R, g.stride[0], g.dilation[0]), _places(g.S, g.stride[1], g.dilation[1])
    phases = sorted({(a, b) for a, _ in down for b, _ in across})
    height, pitch = rows + max(i for _, i in down), g.Q + max(j for _, j in across)
    shifts = [(phases.index((a, b)) * height + i) * pitch + j for a, i in down for b, j in across]
    firsts = np.array([(a - g.padding[0], b - g.padding[1]) for a, b in phases])
    return Image(firsts, g.stride, height, pitch), shifts


def _backward_image(g: Geometry, rows: int) -> tuple[Image, list[Grid]]:
    """The image of the gradient for ``rows`` rows of each residue class of dx, and the classes.

    With h + ph = i sh + e, tap r reaches row h where e - r dh is a multiple of sh: from row
    i + (e - r dh) / sh of the gradient.
    """

    def reached(size: int, taps: int, stride: int, padding: int, dilation: int) -> list[tuple[int, int, list[Any]]]:
        classes = []
        for start in range(min(stride, size)):
            e = start + padding
            reaching = [
                (tap, (e - tap * dilation) // stride) for tap in range(taps) if (e - tap * dilation) % stride == 0
            ]
            classes.append((start, len(range(start, size, stride)), reaching))
        return classes

    down = reached(g.H, g.R, g.stride[0], g.padding[0], g.dilation[0])
    across = reached(g.W, g.S, g.stride[1], g.padding[1], g.dilation[1])
    shifts_i = [i for _, _, reaching in down for _, i in reaching] or [0]
    shifts_j = [j for _, _, reaching in across for _, j in reaching] or [0]
    height = rows + max(shifts_i) - min(shifts_i)
    pitch = max(columns for _, columns, _ in across) + max(shifts_j) - min(shifts_j)
    grids = [
        Grid(
            [r * g.S + s for r, _ in of_r for s, _ in of_s],
            [(i - min(shifts_i)) * pitch + j - min(shifts_j) for _, i in of_r for _, j in of_s],
            (rows_of_class, columns),
            (start_h, start_w),
            g.stride,
        )
        for start_h, rows_of_class, of_r in down
        for start_w, columns, of_s in across
    ]
    return Image(np.array([(min(shifts_i), min(shifts_j))]), (1, 1), height, pitch), grids


def _best_tile(channels: int, vectors: int) -> tuple[int, int]:
    """The quickest tile, with the outputs that it computes and nobody wants."""

    def cost(tile: tuple[int, int]) -> float:
        R, V = tile
        return math.ceil(channels / R) * math.ceil(vectors / V) * R * V * _TILES[tile]

    return min(_TILES, key=cost)


def _rows_of_a_part(rows: int, images: int, bytes_of: Any) -> int:
    """How many rows: few enough for the cache and for some parts, if there are few images."""
    share = max(1, math.ceil(rows / max(1, 8 // images)))
    while share > 1 and bytes_of(share) > _IMAGE_BYTES:
        share = math.ceil(share / 2)
    return share


@lru_cache(maxsize=256)
def correlation_plan(g: Geometry, itemsize: int, backward: bool) -> Plan:
    """Of the forward pass, or of the backward pass to the input."""
    lanes = vector_bytes() // itemsize
    source, destination = (g.C // g.G, g.H, g.W), (g.K // g.G, g.P, g.Q)
    if backward:
        source, destination = destination, source
    all_rows = math.ceil(g.H / g.stride[0]) if backward else g.P

    def image_of(rows: int) -> tuple[Image, list[Grid]]:
        if backward:
            return _backward_image(g, rows)
        image, shifts = _forward_image(g, rows)
        return image, [Grid(list(range(g.R * g.S)), shifts, (g.P, g.Q), (0, 0), (1, 1))]

    rows = _rows_of_a_part(all_rows, g.N * g.G, lambda rows: image_of(rows)[0].plane * source[0] * itemsize)
    image, grids = image_of(rows)

    def vectors(columns: int) -> tuple[int, int]:
        """How many a part takes, and how many a row, if they begin with rows; 0 if they run on."""
        of_row, on = math.ceil(columns / lanes), math.ceil(((rows - 1) * image.pitch + columns) / lanes)
        return (on, 0) if on < rows * of_row else (rows * of_row, of_row)

    R, V = _best_tile(destination[0], max(vectors(grid.size[1])[0] for grid in grids))
    blocks_of_k = math.ceil(destination[0] / R)
    table: list[tuple[int, ...]] = []
    offsets: list[int] = []
    bases: list[int] = []
    taps: list[int] = []
    weights = scratch = 0
    for grid in grids:
        count, of_row = vectors(grid.size[1])
        steps = source[0] * len(grid.taps)
        table.append(
            (len(offsets), steps, weights, *grid.size, *grid.start, len(bases), of_row, len(taps), len(grid.taps))
        )
        offsets += [channel * image.plane + shift for channel in range(source[0]) for shift in grid.shifts]
        own = [v // of_row * image.pitch + v % of_row * lanes if of_row else v * lanes for v in range(count)]
        bases += own + own[-1:] * V  # the last tile may have fewer
        taps += grid.taps
        weights += blocks_of_k * steps * R
        scratch = max(scratch, (R * (count + V) + 2) * lanes)  # the last elements hold the tile's bias
    return Plan(
        R,
        V,
        rows,
        math.ceil(all_rows / rows),
        image,
        np.array(table),
        np.array(offsets, np.int64),
        np.array(bases),
        np.array(taps, np.int64),
        weights,
        scratch,
        source,
        destination,
        grids[0].step,
    )


# ---- backward to the weight


class WeightPlan(NamedTuple):
    """What ``_correlate_weight`` of numba_cpu.py is told."""

    kind: str  # "dots" or "outers"
    channels: int  # output channels of a tile
    taps: int  # of a tile
    run: bool  # the taps of a tile lie side by side
    rows: int  # of outputs in a piece, which is an image in cache
    blocks: int  # pieces of a plane
    at_once: int  # pieces in cache
    pieces: int  # of a part
    parts: int  # of the pieces
    inputs: int  # input channels of a part
    tiles: tuple[int, int]  # of a part: of output channels, of taps
    image: Image
    offsets: np.ndarray  # (taps of those input channels,)
    grad_pitch: int  # of the gradient's rows in cache


def _weight_tile(g: Geometry, lanes: int) -> tuple[str, int, int, bool]:
    """The kind of tile, its output channels and taps, and whether these lie side by side: the quicker kind.

    ``dots`` leaves lanes empty at the end of rows, ``outers`` where the output channels are not a multiple of them.
    """
    K = g.K // g.G
    vectors = 1 if K <= lanes else 2 if K <= 2 * lanes else 4
    outers = math.ceil(K / (vectors * lanes)) * vectors * lanes / K
    dots = math.ceil(g.Q / lanes) * lanes / g.Q * 1.15  # vectors of the image lie across cache lines
    if outers < dots:
        return "outers", vectors * lanes, max(R for R in (2, 6, 12) if registers_fit(R, vectors) or R == 2), False
    run = g.stride[1] == g.dilation[1] == 1 and g.S in (3, 5)  # the usual ones: each is compiled for itself
    taps = g.S if run else 5 if registers_fit(5, 5) else 3
    return "dots", max(R for R in range(1, 9) if registers_fit(R, taps)), taps, run


@lru_cache(maxsize=256)
def weight_plan(g: Geometry, itemsize: int) -> WeightPlan:
    """Of the backward pass to the weight."""
    K, C, lanes = g.K // g.G, g.C // g.G, vector_bytes() // itemsize
    kind, of_k, of_taps, run = _weight_tile(g, lanes)
    rows = _rows_of_a_part(g.P, g.N * 8, lambda rows: _forward_image(g, rows)[0].plane * C * itemsize)
    image, shifts = _forward_image(g, rows)
    blocks = math.ceil(g.P / rows)
    pieces = g.N * blocks
    parts, chunks = min(pieces, max(1, 16 // g.G)), 1
    while parts > 1 and parts * g.K * C * g.R * g.S * itemsize > 2**25:  # partial sums take memory
        parts, chunks = math.ceil(parts / 2), min(C, chunks * 2)
    inputs = math.ceil(C / chunks)
    of_part = math.ceil(pieces / parts)
    grad_pitch = g.Q if kind == "outers" else math.ceil(g.Q / lanes) * lanes
    bytes_of_a_piece = (image.plane * inputs + rows * grad_pitch * K) * itemsize
    at_once = 1 if blocks > 1 else max(1, min(of_part, _IMAGE_BYTES // bytes_of_a_piece))
    offsets = [c * image.plane + shift for c in range(inputs) for shift in shifts]
    offsets += offsets[-1:] * of_taps  # the last tile's surplus repeats the last tap
    tiles = math.ceil(K / of_k), math.ceil(inputs * g.R * g.S / of_taps)
    parts = math.ceil(pieces / of_part)
    return WeightPlan(
        kind, of_k, of_taps, run, rows, blocks, at_once, of_part, parts, inputs, tiles, image,
        np.array(offsets, np.int64), grad_pitch,
    )  # fmt: skip
