"""Compiled convolution: no copy of patches; tiles of sums in registers read the image itself.

Every pass meets an *image in cache*: the rows that a part of the work needs, copied once with their zeros
around them (:func:`_fill`).  A stride of 2 is taken apart by that copy: even and odd columns become images of
their own, so that what a tap of the filter meets for neighbouring outputs always lies side by side.  One number,
the offset, then says where tap (c, r, s) of the window at (0, 0) lies, and the window at (p, q) is `p pitch + q`
further on.  So a table of offsets stands for channels, filter, stride and dilation, and one loop serves them all:

    forward           y[k, v]  = sum over j of w[k, j] image[offset[j] + base[v]]
    backward, input   the same, of the gradient's image and the filter turned round; with a stride, one such sum
                      for each residue of (h, w), over the taps that reach it
    backward, weight  dw[k, j] = sum over rows p of g[k, p, :] . image[offset[j] + p pitch + :]

In the first two a tile is R output channels times V vectors of neighbouring outputs (Tile.outer); vectors begin at
each row, or run on over the zeros between rows where that takes fewer of them (short rows).  In the third it is
5 x 5 pairs of (channel, tap), whose lanes are added at the end (Tile.dot); each part sums its images, and parts
are added in order.

Sources: Zhang, Franchetti and Low, "High performance zero-memory overhead direct convolutions", 2018; Dukhan,
"The indirect convolution algorithm", 2019.
"""

from __future__ import annotations

import math
from functools import cache, lru_cache
from typing import Any, NamedTuple

import numpy as np
from numba import get_thread_id, prange

from .._jit import parallel, serial, thread_slots, workspace
from .._simd import Pointer, Stage, Value, simd, vector_bytes
from .._simd_tile import Tile, registers_fit
from . import Geometry

#: Bytes of an image in cache: with what else a part touches it stays in the second-level cache.
_IMAGE_BYTES = 512 * 1024
#: The tiles among which a shape chooses: output channels, vectors.
_TILES = ((1, 8), (4, 6), (6, 4), (8, 3), (10, 2), (14, 2))
#: Sums of the weight's gradient in one tile: output channels, taps.
_DOT = (5, 5) if registers_fit(5, 5) else (4, 3)


# ---- plans: what depends on the shapes alone


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
    """What :func:`_correlate` is told; see there."""

    R: int
    V: int
    rows: int  # of outputs in a part
    blocks: int  # parts of a plane
    image: Image
    table: np.ndarray  # (grids, 9)
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
    """The tile that spends least on outputs that nobody wants, and on loads."""

    def cost(tile: tuple[int, int]) -> float:
        R, V = tile
        return math.ceil(channels / R) * math.ceil(vectors / V) * (R * V + R + V)

    return min((tile for tile in _TILES if registers_fit(*tile)), key=cost)


def _rows_of_a_part(rows: int, images: int, bytes_of: Any) -> int:
    """How many rows: few enough for the cache and for some parts, if there are few images."""
    share = max(1, math.ceil(rows / max(1, 8 // images)))
    while share > 1 and bytes_of(share) > _IMAGE_BYTES:
        share = math.ceil(share / 2)
    return share


@lru_cache(maxsize=256)
def _plan(g: Geometry, itemsize: int, backward: bool) -> Plan:
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
    table, offsets, bases, taps = [], [], [], []
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
        scratch = max(scratch, R * (count + V) * lanes)
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


# ---- the image in cache


@simd
def _copy_row(
    s: Stage, source: Pointer, at: Value, first: Value, width: Value, image: Pointer, to: Value, count: Value, step: int
) -> None:
    """image[to + j] = row[first + j step], zero outside of the row; up to a vector beyond ``count`` is overwritten."""
    lanes = s.lanes(source)
    columns = s.counting(lanes, 32)
    row, image = source + at, image + to
    low, high = s.splat(s.integer(0).to("int32"), lanes), s.splat(width.to("int32"), lanes)
    with s.range(0, count, lanes) as j:
        parts = []
        for part in range(step):
            begin = first + j * step + part * lanes
            places = columns + s.splat(begin.to("int32"), lanes)
            parts.append(row.load(begin, lanes, (places >= low) & (places < high)))
        vector = parts[0]
        if step == 2:
            vector = parts[0].shuffle(list(range(0, 2 * lanes, 2)), parts[1])
        image.store(j, vector)


@serial
def _fill(source, at, channels, H, W, firsts, step_h, step_w, first_row, height, pitch, image, to):
    """The image in cache, from output row ``first_row`` on; it ends a vector before the next one may begin."""
    for c in range(channels):
        for phase in range(len(firsts)):
            for i in range(height):
                h = firsts[phase, 0] + (first_row + i) * step_h
                w = firsts[phase, 1]
                row = at + (c * H + h) * W
                width = W if 0 <= h < H else 0
                if step_w == 1:
                    _copy_row(source, row, w, width, image, to, pitch, 1)
                elif step_w == 2:
                    _copy_row(source, row, w, width, image, to, pitch, 2)
                else:
                    for j in range(pitch):
                        place = w + j * step_w
                        image[to + j] = source[row + place] if 0 <= place < width else 0
                to += pitch


# ---- forward, and backward to the input


@cache
def _filters(R: int) -> Any:
    @parallel
    def filters(weight, groups, K, C, RS, backward, table, taps, size, panels):
        """Per group, grid and R output channels a panel (steps, R), steps over input channels and taps."""
        rows, channels = (C, K) if backward else (K, C)
        blocks = (rows + R - 1) // R
        for part in prange(groups * len(table) * blocks):
            group, grid, block = part // (len(table) * blocks), part // blocks % len(table), part % blocks
            steps, first_tap, count = table[grid, 1], table[grid, 9], table[grid, 10]
            to = group * size + table[grid, 2] + block * steps * R
            for channel in range(channels):
                for tap in range(count):
                    for i in range(R):
                        row = block * R + i
                        k, c = (channel, row) if backward else (row, channel)
                        place = ((group * K + k) * C + c) * RS + taps[first_tap + tap]
                        panels[to + i] = weight[place] if row < rows else 0
                    to += R

    return filters


@simd
def _sums(
    s: Stage, panels: Pointer, panel: Value, image: Pointer, at: Value, offsets: Pointer, first: Value, steps: Value,
    bases: Pointer, vector: Value, scratch: Pointer, to: Value, pitch: Value, R: int, V: int,
) -> None:  # fmt: skip
    """scratch[i, v] = sum over steps j of panel[j, i] image[offset[j] + base[v]]"""
    tile, lanes = Tile(s, R, V, image), s.lanes(image)
    begins = [at + bases[vector + v] for v in range(V)]
    panels, offsets, scratch = panels + panel, offsets + first, scratch + to
    with s.range(0, steps) as j:
        offset = offsets[j]
        tile.outer(panels + j * R, [image.load(begin + offset, lanes) for begin in begins])
    for i in range(R):
        for v in range(V):
            scratch.store(pitch * i + v * lanes, tile.sums[i][v].value)


@cache
def _correlate(R: int, V: int, lanes: int) -> Any:
    @parallel
    def correlate(
        source, panels, bias, out, N, G, blocks, part_rows, source_size, size, out_step, firsts, step, height, pitch,
        table, offsets, bases, group_panels, images, image_size, scratches, scratch_size,
    ):  # fmt: skip
        """For each image, group and block of rows: the image in cache, then every grid's sums of it."""
        C, H, W = source_size
        K, out_H, out_W = size
        for part in prange(N * G * blocks):
            own, block = part // blocks, part % blocks
            group, p0 = own % G, block * part_rows
            at, scratch = get_thread_id() * image_size, get_thread_id() * scratch_size
            _fill(source, own * C * H * W, C, H, W, firsts, step[0], step[1], p0, height, pitch, images, at)
            for grid in range(len(table)):
                first, steps, weights, rows, columns, start_h, start_w, base, of_row = table[grid, :9]
                rows = min(part_rows, rows - p0)
                row_pitch = of_row * lanes if of_row else pitch
                vectors = rows * of_row if of_row else ((rows - 1) * pitch + columns + lanes - 1) // lanes
                for k in range(0, K if rows > 0 else 0, R):
                    panel = group * group_panels + weights + k * steps
                    scratch_pitch = (vectors + V - 1) // V * V * lanes
                    for v in range(0, vectors, V):
                        _sums(panels, panel, images, at, offsets, first, steps, bases, base + v,
                              scratches, scratch + v * lanes, scratch_pitch, R, V)  # fmt: skip
                    for i in range(min(R, K - k)):
                        b = bias[group * K + k + i] if bias.size else bias.dtype.type(0)
                        plane = (own * K + k + i) * out_H * out_W
                        for p in range(rows):
                            here = scratch + i * scratch_pitch + p * row_pitch
                            to = plane + (start_h + (p0 + p) * out_step[0]) * out_W + start_w
                            if out_step[1] == 1:
                                for q in range(columns):
                                    out[to + q] = scratches[here + q] + b
                            else:
                                for q in range(columns):
                                    out[to + q * out_step[1]] = scratches[here + q] + b

    return correlate


def _run(
    source: np.ndarray, weight: np.ndarray, bias: np.ndarray | None, g: Geometry, backward: bool, out: np.ndarray
) -> None:
    plan = _plan(g, source.itemsize, backward)
    lanes = vector_bytes() // source.itemsize
    panels = workspace("conv2d filters", g.G * plan.weights, source.dtype)
    of_group = g.K // g.G, g.C // g.G
    _filters(plan.R)(
        weight.reshape(-1), g.G, *of_group, g.R * g.S, backward, plan.table, plan.taps, plan.weights, panels
    )
    image_size = plan.image.plane * plan.source[0] + (plan.V + 1) * lanes
    images = workspace("conv2d images", thread_slots() * image_size, source.dtype)
    scratches = workspace("conv2d sums", thread_slots() * plan.scratch, source.dtype)
    _correlate(plan.R, plan.V, lanes)(
        source.reshape(-1), panels, panels[:0] if bias is None else bias, out.reshape(-1), g.N, g.G, plan.blocks,
        plan.rows, plan.source, plan.destination, plan.out_step, plan.image.firsts, plan.image.step, plan.image.height,
        plan.image.pitch, plan.table, plan.offsets, plan.bases, plan.weights, images, image_size, scratches,
        plan.scratch,
    )  # fmt: skip


def conv2d_forward(
    x: np.ndarray, weight: np.ndarray, bias: np.ndarray | None, g: Geometry, out: np.ndarray | None
) -> np.ndarray:
    y = np.empty(g.y_shape, x.dtype) if out is None else out
    if y.size:
        _run(x, weight, bias, g, False, y)
    return y


def conv2d_backward_input(grad: np.ndarray, weight: np.ndarray, g: Geometry, out: np.ndarray | None) -> np.ndarray:
    dx = np.empty(g.x_shape, grad.dtype) if out is None else out
    if dx.size:
        _run(grad, weight, None, g, True, dx)
    return dx


# ---- backward to the weight


class WeightPlan(NamedTuple):
    """What :func:`_correlate_weight` is told."""

    rows: int  # of outputs in a piece, which is an image in cache
    blocks: int  # pieces of a plane
    at_once: int  # pieces in cache
    pieces: int  # of a part
    parts: int  # of the pieces
    channels: int  # of a part
    image: Image
    offsets: np.ndarray  # (taps of those channels,)


@lru_cache(maxsize=256)
def _weight_plan(g: Geometry, itemsize: int) -> WeightPlan:
    C = g.C // g.G
    rows = _rows_of_a_part(g.P, g.N * 8, lambda rows: _forward_image(g, rows)[0].plane * C * itemsize)
    image, shifts = _forward_image(g, rows)
    blocks = math.ceil(g.P / rows)
    pieces = g.N * blocks
    parts, chunks = min(pieces, max(1, 16 // g.G)), 1
    while parts > 1 and parts * g.K * C * g.R * g.S * itemsize > 2**25:  # partial sums take memory
        parts, chunks = math.ceil(parts / 2), min(C, chunks * 2)
    channels = math.ceil(C / chunks)
    of_part = math.ceil(pieces / parts)
    at_once = 1 if blocks > 1 else max(1, min(of_part, _IMAGE_BYTES // (image.plane * channels * itemsize)))
    offsets = [c * image.plane + shift for c in range(channels) for shift in shifts]
    # The last tile's surplus repeats the last tap.
    offsets += offsets[-1:] * _DOT[1]
    return WeightPlan(
        rows, blocks, at_once, of_part, math.ceil(pieces / of_part), channels, image, np.array(offsets, np.int64)
    )


@simd
def _dots(
    s: Stage, grad: Pointer, at: Value, k: Value, K: Value, plane: Value, image: Pointer, image_at: Value,
    offsets: Pointer, first: Value, taps: Value, pieces: Value, grad_step: Value, image_step: Value, rows: Value,
    Q: Value, pitch: Value, sums: Pointer, to: Value, sums_pitch: Value, add: Value, R: int, V: int,
) -> None:  # fmt: skip
    """sums[i, j] = sum over pieces, rows and columns of grad[k + i] image[offset[first + j]]; or that much more."""
    tile, lanes = Tile(s, R, V, grad), s.lanes(grad)
    last = K - k - 1
    of_k = [at + (k + (s.integer(i) > last).where(last, s.integer(i))) * plane for i in range(R)]
    of_tap = [image_at + offsets[first + j] for j in range(V)]
    with s.range(0, pieces) as piece, s.range(0, rows) as p, s.range(0, Q, lanes) as q:
        here = s.first(Q - q, lanes)
        of_grad, of_image = piece * grad_step + p * Q + q, piece * image_step + p * pitch + q
        tile.dot(
            [grad.load(start + of_grad, lanes, here) for start in of_k],
            [image.load(start + of_image, lanes, here) for start in of_tap],
        )
    for i in range(R):
        for j in range(V):
            with s.when((s.integer(i) <= last) & (first + j < taps)):
                place = to + i * sums_pitch + j
                before = s.variable(s.zero(sums))
                with s.when(add > 0):
                    before.value = sums[place]
                sums[place] = before.value + tile.sums[i][j].value.sum()


_ELEMENTS = 4096  # of the gradient, whose parts one part of the second pass adds


@cache
def _correlate_weight(R: int, V: int) -> Any:
    @parallel
    def correlate_weight(
        x, grad, out, N, G, K, source_size, size, RS, rows, blocks, at_once, of_part, parts, channels, firsts, step,
        height, pitch, offsets, images, image_size, partial,
    ):  # fmt: skip
        C, H, W = source_size
        P, Q = size
        chunks, all_taps = (C + channels - 1) // channels, C * RS
        for part in prange(parts * G * chunks):
            share, group, chunk = part // (G * chunks), part // chunks % G, part % chunks
            c0 = chunk * channels
            taps, at = min(channels, C - c0) * RS, get_thread_id() * at_once * image_size
            begin, end = share * of_part, min((share + 1) * of_part, N * blocks)
            for piece in range(begin, end, at_once):
                pieces = min(at_once, end - piece)
                for i in range(pieces):
                    n, block = (piece + i) // blocks, (piece + i) % blocks
                    _fill(x, ((n * G + group) * C + c0) * H * W, taps // RS, H, W, firsts, step[0], step[1],
                          block * rows, height, pitch, images, at + i * image_size)  # fmt: skip
                n, p0 = piece // blocks, piece % blocks * rows
                grad_at = (n * G + group) * K * P * Q + p0 * Q
                for k in range(0, K, R):
                    to = ((share * G + group) * K + k) * all_taps + c0 * RS
                    for j in range(0, taps, V):
                        _dots(grad, grad_at, k, K, P * Q, images, at, offsets, j, taps, pieces, G * K * P * Q,
                              image_size, min(rows, P - p0), Q, pitch, partial, to + j, all_taps, piece - begin,
                              R, V)  # fmt: skip
        for part in prange((out.size + _ELEMENTS - 1) // _ELEMENTS if parts > 1 else 0):
            for e in range(part * _ELEMENTS, min((part + 1) * _ELEMENTS, out.size)):
                total = partial[e]
                for share in range(1, parts):
                    total += partial[share * out.size + e]
                out[e] = total

    return correlate_weight


def conv2d_backward_weight(x: np.ndarray, grad: np.ndarray, g: Geometry, out: np.ndarray | None) -> np.ndarray:
    dw = np.empty(g.weight_shape, x.dtype) if out is None else out
    if not grad.size or not dw.size:
        dw.fill(0)
        return dw
    plan, lanes = _weight_plan(g, x.itemsize), vector_bytes() // x.itemsize
    image_size = plan.image.plane * plan.channels + lanes
    images = workspace("conv2d images", thread_slots() * plan.at_once * image_size, x.dtype)
    flat = dw.reshape(-1)
    partial = flat if plan.parts == 1 else workspace("conv2d partial", plan.parts * dw.size, x.dtype)
    _correlate_weight(*_DOT)(
        x.reshape(-1), grad.reshape(-1), flat, g.N, g.G, g.K // g.G, (g.C // g.G, g.H, g.W), (g.P, g.Q), g.R * g.S,
        plan.rows, plan.blocks, plan.at_once, plan.pieces, plan.parts, plan.channels, plan.image.firsts,
        plan.image.step, plan.image.height, plan.image.pitch, plan.offsets, images, image_size, partial,
    )  # fmt: skip
    return dw


@simd(returns="array")
def _sum(s: Stage, array: Pointer, at: Value, count: Value) -> Value:
    """Of ``count`` elements, in four vectors of sums."""
    lanes = s.lanes(array)
    sums = [s.variable(s.zero(array, lanes)) for _ in range(4)]
    with s.range(0, count, 4 * lanes) as i:
        for part, total in enumerate(sums):
            total.value += array.load(at + i + part * lanes, lanes, s.first(count - i - part * lanes, lanes))
    return ((sums[0].value + sums[1].value) + (sums[2].value + sums[3].value)).sum()


@parallel
def _bias(grad, N, K, plane, out):
    for k in prange(K):
        total = out.dtype.type(0)
        for n in range(N):
            total += _sum(grad, (n * K + k) * plane, plane)
        out[k] = total


def conv2d_backward_bias(grad: np.ndarray, out: np.ndarray | None) -> np.ndarray:
    N, K, P, Q = grad.shape
    db = np.empty(K, grad.dtype) if out is None else out
    _bias(grad.reshape(-1), N, K, P * Q, db)
    return db
