"""How the compiled convolution (numba_cpu.py) cuts its work: plain Python, from the shapes alone."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from .._simd import vector_bytes
from .._simd_tile import registers_fit
from . import Geometry

#: Bytes of an image in cache: with what else a part touches it stays in the second-level cache.
_IMAGE_BYTES = 512 * 1024
#: Bytes of what a tile of dot products reads: for the first-level cache.
_TILE_BYTES = 48 * 1024
#: The tiles among which a shape chooses, output channels and vectors, with the time of a multiplication relative to
#: the processor's best (measured with 500 steps): few channels leave each load fewer multiplications.
_TILES = {(1, 8): 2.4, (6, 4): 1.08, (8, 3): 1.03, (10, 2): 1.04, (12, 2): 1.05, (14, 2): 1.04}
if not registers_fit(10, 2):
    _TILES = {(1, 8): 2.4, (4, 2): 1.2, (6, 2): 1.0}
#: The same for dot products, output channels and taps.
_DOTS = {(5, 5): 1.0, (6, 4): 1.0, (4, 6): 1.0, (8, 3): 1.0, (3, 7): 1.05, (4, 3): 1.25, (3, 4): 1.3, (3, 3): 1.5}
_DOTS = {tile: cost for tile, cost in _DOTS.items() if registers_fit(*tile)}


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
    across: int  # grids that lie beside each other
    bases: np.ndarray
    places: np.ndarray  # (vectors, 2): where each goes, from its plane's first row on, and how much of it; if direct
    direct: bool  # whether vectors are stored where they belong
    offsets: np.ndarray
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


def _rows_of_a_part(rows: int, images: int, bytes_of: Callable[[int], int], limit: int = _IMAGE_BYTES) -> int:
    """How many rows: few enough for the cache and for some parts, if there are few images."""
    share = max(1, math.ceil(rows / max(1, 8 // images)))
    while share > 1 and bytes_of(share) > limit:
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
    places: list[tuple[int, int]] = []
    taps: list[int] = []
    weights = 0
    for grid in grids:
        count, of_row = vectors(grid.size[1])
        steps = source[0] * len(grid.taps)
        row_pitch = of_row * lanes or image.pitch
        of_taps = len(taps), len(grid.taps)
        table.append((len(offsets), steps, weights, *grid.size, *grid.start, len(bases), row_pitch, *of_taps))
        offsets += [channel * image.plane + shift for channel in range(source[0]) for shift in grid.shifts]
        own = [v // of_row * image.pitch + v % of_row * lanes if of_row else v * lanes for v in range(count)]
        bases += own + own[-1:] * V  # the last tile may have fewer
        columns, out_pitch = grid.size[1], destination[2] * grids[0].step[0]
        for v in range(count + V if of_row else 0):
            p, q = v // of_row, v % of_row * lanes
            places.append((p * out_pitch + q, max(0, min(lanes, columns - q))))
        taps += grid.taps
        weights += blocks_of_k * steps * R
    across = min(grids[0].step[1], destination[2])
    most = max(vectors(grid.size[1])[0] for grid in grids)
    direct = grids[0].step[1] == 1 and vectors(grids[0].size[1])[1] > 0
    scratch = (across * R * (most + V) + R) * lanes
    return Plan(
        R,
        V,
        rows,
        math.ceil(all_rows / rows),
        image,
        np.array(table),
        across,
        np.array(bases),
        np.array(places, np.int64).reshape(-1, 2),
        direct,
        np.array(offsets, np.int64),
        np.array(taps, np.int64),
        weights,
        scratch,  # its last elements hold a tile's bias
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
    rows: int  # of outputs in a piece, which is an image in cache
    blocks: int  # pieces of a plane
    at_once: int  # pieces in cache
    pieces: int  # of a part
    parts: int  # of the pieces
    inputs: int  # input channels of a part
    together: int  # of those in cache
    tiles: tuple[int, int]  # of these: of output channels, of taps
    image: Image
    offsets: np.ndarray  # (their taps,)
    grad_pitch: int  # of the gradient's rows in cache


class _WeightTile(NamedTuple):
    kind: str
    channels: int
    taps: int
    together: int
    at_once: int


def _weight_tile(g: Geometry, lanes: int) -> _WeightTile:
    """The quickest kind of tile, its output channels and taps, how many input channels and images it meets at once.

    ``dots`` leaves lanes empty at the end of rows, ``outers`` where the output channels are not a multiple of them.
    """
    K, C, RS = g.K // g.G, g.C // g.G, g.R * g.S
    pitch = math.ceil(g.Q / lanes) * lanes
    plane = _shifted_image(g, g.P, pitch)[0].plane

    def images(tile: tuple[int, int], together: int) -> int:
        """As many as the cache holds, up to those that make the sums of lanes short beside the sums over rows."""
        fitting = _TILE_BYTES // ((plane * together + tile[0] * g.P * pitch) * (vector_bytes() // lanes))
        return max(1, min(fitting, math.ceil(64 * lanes / (g.P * pitch))))

    def cost(tile: tuple[int, int], together: int) -> float:
        """In relation to the multiplications that are wanted."""
        taps = C // together * math.ceil(together * RS / tile[1]) + math.ceil(C % together * RS / tile[1])
        computed = math.ceil(K / tile[0]) * tile[0] * taps * tile[1] * pitch / (K * C * RS * g.Q)
        vectors = g.P * pitch / lanes * images(tile, together)
        return computed * _DOTS[tile] * (1 + 8 / vectors)

    choices = [(tile, together) for together in range(1, min(C, 8) + 1) for tile in _DOTS]
    tile, together = min(choices, key=lambda choice: cost(*choice))
    vectors = 1 if K <= lanes else 2 if K <= 2 * lanes else 4
    if math.ceil(K / (vectors * lanes)) * vectors * lanes / K < cost(tile, together):
        R = max(R for R in (2, 6, 12) if registers_fit(R, vectors) or R == 2)
        return _WeightTile("outers", vectors * lanes, R, C, 1)
    return _WeightTile("dots", *tile, together, images(tile, together))


def _shifted_image(g: Geometry, rows: int, pitch: int) -> tuple[Image, list[int]]:
    """An image whose planes hold what each column of the filter meets, in rows as long as the gradient's."""
    down = _places(g.R, g.stride[0], g.dilation[0])
    starts = sorted({a for a, _ in down})
    height = rows + max(i for _, i in down)
    shifts = [((starts.index(a) * g.S + s) * height + i) * pitch for a, i in down for s in range(g.S)]
    firsts = [(a - g.padding[0], s * g.dilation[1] - g.padding[1]) for a in starts for s in range(g.S)]
    return Image(np.array(firsts), g.stride, height, pitch), shifts


@lru_cache(maxsize=256)
def weight_plan(g: Geometry, itemsize: int) -> WeightPlan:
    """Of the backward pass to the weight."""
    K, C, lanes = g.K // g.G, g.C // g.G, vector_bytes() // itemsize
    kind, of_k, of_taps, together, at_once = _weight_tile(g, lanes)
    parts_of_c = 1
    grad_pitch = g.Q if kind == "outers" else math.ceil(g.Q / lanes) * lanes

    def image_of(rows: int) -> tuple[Image, list[int]]:
        return _forward_image(g, rows) if kind == "outers" else _shifted_image(g, rows, grad_pitch)

    def bytes_of(rows: int) -> int:
        """Of what a tile reads, as outer products of all tiles."""
        grads = rows * grad_pitch * (of_k if kind == "dots" else 0)
        return (image_of(rows)[0].plane * together + grads) * itemsize

    limit = _TILE_BYTES if kind == "dots" else _IMAGE_BYTES
    rows = _rows_of_a_part(g.P, g.N * 8, bytes_of, limit)
    image, shifts = image_of(rows)
    blocks = math.ceil(g.P / rows)
    pieces = g.N * blocks
    parts = min(pieces, max(1, 16 // g.G))
    while parts > 1 and parts * g.K * C * g.R * g.S * itemsize > 2**25:  # partial sums take memory
        parts, parts_of_c = math.ceil(parts / 2), min(C, parts_of_c * 2)
    inputs = math.ceil(C / parts_of_c)
    together = min(together, inputs)
    of_part = math.ceil(pieces / parts)
    if kind == "outers":
        at_once = max(1, limit // ((image.plane * inputs + rows * grad_pitch * K) * itemsize))
    at_once = min(of_part, at_once) if blocks == 1 else 1
    offsets = [c * image.plane + shift for c in range(together) for shift in shifts]
    offsets += offsets[-1:] * of_taps  # the last tile's surplus repeats the last tap
    tiles = math.ceil(K / of_k), math.ceil(together * g.R * g.S / of_taps)
    parts = math.ceil(pieces / of_part)
    return WeightPlan(
        kind, of_k, of_taps, rows, blocks, at_once, of_part, parts, inputs, together, tiles, image,
        np.array(offsets, np.int64), grad_pitch,
    )  # fmt: skip
