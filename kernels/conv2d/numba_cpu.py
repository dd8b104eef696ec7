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
each row, from where they are stored straight into the result, or run on over the zeros between rows where that takes
fewer of them (short rows).  In the third it is pairs of (channel, tap): vectors along rows, whose lanes are added at
the end (Tile.dot), or, where the output channels fill whole vectors, those times numbers of the image (Tile.outer).
For dot products the image holds a plane for each column of the filter, moved by as much, so that every vector begins
a cache line.  Each part sums its images, and the parts' sums are added in order.

numba_plan.py says, from the shapes alone, which tiles, and what is a part.

Sources: Zhang, Franchetti and Low, "High performance zero-memory overhead direct convolutions", 2018; Dukhan,
"The indirect convolution algorithm", 2019.
"""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import numpy as np

from .._jit import in_parts, serial, thread_slots, workspace
from .._simd import Pointer, Stage, Value, simd, vector_bytes
from .._simd_tile import Tile, pack_columns, panel_of_columns, totals
from .._simd_windows import Window
from ..max_pool2d import Geometry as PoolGeometry
from ..max_pool2d.numba_cpu import max_pool2d_forward, pool_row
from . import Geometry
from .numba_plan import Plan, correlation_plan, weight_plan

_WHOLE = np.zeros((1, 2), np.int64)  # the single phase of an image without zeros around it
_NO_CODES = np.empty(0, np.uint8)
#: Elements that one thread has moved before another would have begun.
_LITTLE = 1 << 14


# ---- the image in cache


def _passed(grad: Value, y: Value) -> Value:
    """What a ReLU that gave ``y`` lets through of a gradient; a NaN in y lets it pass."""
    return (y <= 0.0).where(0.0, grad)


@simd
def _copy_planes(
    s: Stage, source: Pointer, y: Pointer, at: Value, W: Value, first: Value, image: Pointer, to: Value, begin: Value,
    end: Value, height: Value, width: Value, pitch: Value, step_h: Value, planes: Value, stride: Value,
    to_stride: Value, STEP: int, RELU: bool,
) -> None:  # fmt: skip
    """image[i, j] = source[at + i step_h W + first + j STEP], zero beyond the row and outside of begin <= i < end.

    Columns from ``width`` to ``pitch`` are zero too.  The same for ``planes`` planes, ``stride`` and ``to_stride``
    apart.  With RELU, and STEP 1, the source is a gradient that passes where y > 0.
    """
    lanes = s.lanes(source)
    columns = s.counting(lanes, 32)
    with s.range(0, pitch, lanes) as j:
        wanted, inside = s.first(pitch - j, lanes), s.first(width - j, lanes)
        there = []
        for part in range(STEP):
            place = columns + s.splat((first + j * STEP + part * lanes).to("int32"), lanes)
            there.append((place >= 0) & (place < s.splat(W.to("int32"), lanes)))
        there = [mask & inside for mask in there] if STEP == 1 else there
        with s.range(0, planes) as plane:
            row, here = at + plane * stride + first + j * STEP, to + plane * to_stride + j
            with s.range(0, begin) as i:
                image.store(here + i * pitch, s.zero(image, lanes), wanted)
            with s.range(begin, end) as i:
                parts = [source.load(row + i * step_h * W + part * lanes, lanes, there[part]) for part in range(STEP)]
                vector = parts[0]
                if STEP == 2:
                    vector = inside.where(vector.shuffle(list(range(0, 2 * lanes, 2)), parts[1]), 0.0)
                if RELU:
                    vector = _passed(vector, y.load(row + i * step_h * W, lanes, there[0]))
                image.store(here + i * pitch, vector, wanted)
            with s.range(end, height) as i:
                image.store(here + i * pitch, s.zero(image, lanes), wanted)


@serial
def _fill(
    source, y, at, planes, stride, H, W, firsts, step_h, step_w, first_row, height, width, pitch, image, to, to_stride,
):  # fmt: skip
    """The image in cache, from output row ``first_row`` on, of ``planes`` planes that are ``stride`` apart.

    If the source is the gradient of a ReLU's output y, which is not empty then, it is the gradient before that.
    """
    for phase in range(len(firsts)):
        h, w = firsts[phase, 0] + first_row * step_h, firsts[phase, 1]
        # Rows begin to end - 1 lie inside the source.
        begin = min(max((-h + step_h - 1) // step_h, 0), height)
        end = max(min((H - h + step_h - 1) // step_h, height), begin)
        start, here = at + h * W, to + phase * height * pitch
        if step_w == 1 and y.size:
            _copy_planes(source, y, start, W, w, image, here, begin, end, height, width, pitch, step_h, planes, stride,
                         to_stride, 1, True)  # fmt: skip
        elif step_w == 1:
            _copy_planes(source, y, start, W, w, image, here, begin, end, height, width, pitch, step_h, planes, stride,
                         to_stride, 1, False)  # fmt: skip
        elif step_w == 2:
            _copy_planes(source, y, start, W, w, image, here, begin, end, height, width, pitch, step_h, planes, stride,
                         to_stride, 2, False)  # fmt: skip
        else:
            for plane in range(planes):
                for i in range(height):
                    for j in range(pitch):
                        place = w + j * step_w
                        inside = begin <= i < end and 0 <= place < W and j < width
                        from_ = start + plane * stride + i * step_h * W + place
                        image[here + plane * to_stride + i * pitch + j] = source[from_] if inside else 0


# ---- forward, and backward to the input


@in_parts
def _filters(part, slot, weight, K, C, RS, backward, table, taps, R, size, panels):
    """Of a group, a grid and R output channels the panel (steps, R), steps over input channels and taps."""
    rows, channels = (C, K) if backward else (K, C)
    blocks = (rows + R - 1) // R
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


@simd
def _sums(
    s: Stage, panels: Pointer, panel: Value, image: Pointer, at: Value, offsets: Pointer, first: Value, steps: Value,
    bases: Pointer, vector: Value, sums: Pointer, initial: Value, to: Value, pitch: Value, low: Value, out: Pointer,
    here: Value, plane: Value, places: Pointer, channels: Value, left: Value, R: int, V: int, DIRECT: bool,
) -> None:  # fmt: skip
    """sums[i, v] = max(bias[i] + sum over steps j of panel[j, i] image[offset[j] + base[v]], low)

    The bias lies at sums[initial + i].  With DIRECT the results go to ``channels`` planes of ``out`` at once, as far
    as ``left`` vectors exist.
    """
    lanes = s.lanes(image)
    tile = Tile(s, R, V, image, lambda i: sums[initial + i])
    begins = [at + bases[vector + v] for v in range(V)]
    panels, offsets = panels + panel, offsets + first
    with s.range(0, steps) as j:
        offset = offsets[j]
        tile.outer((panels + j * R).__getitem__, [image.load(begin + offset, lanes) for begin in begins])
    values = [[(sum_.value <= low).where(low, sum_.value) for sum_ in row] for row in tile.sums]  # a NaN stays
    if not DIRECT:
        for i in range(R):
            for v in range(V):
                sums.store(to + pitch * i + v * lanes, values[i][v])
    else:
        counts = [(left > v).where(places[2 * (vector + v) + 1], 0) for v in range(V)]
        masks = [s.first(count, lanes) for count in counts]
        for i in range(R):
            with s.when(channels > i):
                for v in range(V):
                    out.store(here + plane * i + places[2 * (vector + v)], values[i][v], masks[v])


@simd
def _deliver(
    s: Stage, sums: Pointer, at: Value, pitch: Value, out: Pointer, to: Value, out_pitch: Value, rows: Value,
    columns: Value,
) -> None:  # fmt: skip
    """out[p, q] = sums[p, q]"""
    lanes = s.lanes(out)
    with s.range(0, columns, lanes) as q:
        here = s.first(columns - q, lanes)
        with s.range(0, rows) as p:
            out.store(to + p * out_pitch + q, sums.load(at + p * pitch + q, lanes), here)


@simd
def _deliver_pairs(
    s: Stage, sums: Pointer, even: Value, odd: Value, pitch: Value, odd_pitch: Value, out: Pointer, to: Value,
    out_pitch: Value, rows: Value, columns: Value,
) -> None:  # fmt: skip
    """out[p, 2 q] = even[p, q] and out[p, 2 q + 1] = odd[p, q], below ``columns``."""
    lanes = s.lanes(out)
    order = [i // 2 + i % 2 * lanes for i in range(2 * lanes)]
    with s.range(0, columns, 2 * lanes) as q:
        masks = [s.first(columns - q - half, lanes) for half in (0, lanes)]
        with s.range(0, rows) as p:
            place = q // 2
            a, b = sums.load(even + p * pitch + place, lanes), sums.load(odd + p * odd_pitch + place, lanes)
            for half, mask in enumerate(masks):
                pairs = a.shuffle(order[half * lanes : half * lanes + lanes], b)
                out.store(to + p * out_pitch + q + half * lanes, pairs, mask)


@simd
def _pool(s: Stage, scratch: Pointer, at: Value, sizes: Pointer, out: Pointer, codes: Pointer, to: Value) -> None:
    """The windows of 2 x 2 of a plane of sums."""
    w = Window(sizes, 2, 2, 2)
    with s.range(0, w.P) as p:
        here = to + p * w.Q
        pool_row(s, w, scratch + at, p, out + here, codes + here, True)


@cache
def _correlate(R: int, V: int, lanes: int, KIND: str) -> Any:
    DIRECT, POOL = KIND == "direct", KIND == "pool"

    @in_parts
    def correlate(
        part, slot, source, relu, panels, bias, low, out, codes, pool, G, blocks, part_rows, source_size, size,
        out_step, firsts, step, height, pitch, table, across, offsets, bases, places, group_panels, images,
        image_size, scratches, scratch_size,
    ):  # fmt: skip
        """An image, group and block of rows: the image in cache, then every grid's sums of it.

        No sum is below ``low``.  ``relu`` is a ReLU's output, of which the source is the gradient, or empty.
        With "direct" sums go from registers to their places; else those of ``across`` grids beside each other are
        delivered together, or, with "pool", those of the one grid are pooled as ``pool`` says.
        """
        C, H, W = source_size
        K, out_H, out_W = size
        own, p0 = part // blocks, part % blocks * part_rows
        group = own % G
        at, scratch, initial = slot * image_size, slot * scratch_size, (slot + 1) * scratch_size - R
        _fill(source, relu, own * C * H * W, C, H * W, H, W, firsts, step[0], step[1], p0, height, pitch, pitch,
              images, at, len(firsts) * height * pitch)  # fmt: skip
        for row in range(0, len(table), across):
            rows = min(part_rows, table[row, 3] - p0)
            most = ((rows - 1) * table[row, 8] + table[row, 4] + lanes - 1) // lanes
            sums_pitch = (most + V - 1) // V * V * lanes
            for k in range(0, K if rows > 0 else 0, R):
                for i in range(R):
                    scratches[initial + i] = bias[group * K + k + i] if bias.size and k + i < K else 0
                to = ((own * K + k) * out_H + p0 * out_step[0] + table[row, 5]) * out_W
                for grid in range(row, row + across):
                    first, steps, weights, base = table[grid, 0], table[grid, 1], table[grid, 2], table[grid, 7]
                    vectors = ((rows - 1) * table[grid, 8] + table[grid, 4] + lanes - 1) // lanes
                    panel = group * group_panels + weights + k * steps
                    here = scratch + (grid - row) * R * sums_pitch
                    for v in range(0, vectors, V):
                        _sums(panels, panel, images, at, offsets, first, steps, bases, base + v, scratches, initial,
                              here + v * lanes, sums_pitch, low, out, to, out_H * out_W, places, K - k, vectors - v,
                              R, V, DIRECT)  # fmt: skip
                for i in range(0 if DIRECT else min(R, K - k)):
                    here, there, columns = scratch + i * sums_pitch, to + i * out_H * out_W, table[row, 4]
                    of_grid, out_pitch = R * sums_pitch, out_step[0] * out_W
                    if POOL:
                        _pool(scratches, here, pool, out, codes, (own * K + k + i) * pool[4] * pool[5])
                    elif out_step[1] == 1:
                        _deliver(scratches, here, table[row, 8], out, there, out_pitch, rows, columns)
                    elif out_step[1] == 2 and across == 2:
                        _deliver_pairs(scratches, here, here + of_grid, table[row, 8], table[row + 1, 8], out, there,
                                       out_pitch, rows, columns + table[row + 1, 4])  # fmt: skip
                    else:
                        for grid in range(across):
                            for p in range(rows):
                                for q in range(table[row + grid, 4]):
                                    value = scratches[here + grid * of_grid + p * table[row + grid, 8] + q]
                                    out[there + p * out_pitch + q * out_step[1] + grid] = value

    return correlate


def _run(
    source: np.ndarray,
    weight: np.ndarray,
    bias: np.ndarray | None,
    plan: Plan,
    g: Geometry,
    backward: bool,
    out: np.ndarray,
    relu: bool = False,
    y: np.ndarray | None = None,
    codes: np.ndarray | None = None,
    pool: np.ndarray = _WHOLE,
) -> None:
    lanes, K, C = vector_bytes() // source.itemsize, g.K // g.G, g.C // g.G
    panels = workspace("conv2d filters", g.G * plan.weights, source.dtype)
    parts = g.G * len(plan.table) * math.ceil(plan.destination[0] / plan.R)
    (_filters.here if panels.size < _LITTLE else _filters)(
        parts, weight.reshape(-1), K, C, g.R * g.S, backward, plan.table, plan.taps, plan.R, plan.weights, panels
    )  # fmt: skip
    image_size = plan.image.plane * plan.source[0] + (plan.V + 1) * lanes
    images = workspace("conv2d images", thread_slots() * image_size, source.dtype)
    scratches = workspace("conv2d sums", thread_slots() * plan.scratch, source.dtype)
    low = source.dtype.type(0 if relu else -math.inf)
    kind = "pool" if codes is not None else "direct" if plan.direct else "delivered"
    _correlate(plan.R, plan.V, lanes, kind)(
        g.N * g.G * plan.blocks, source.reshape(-1), _flat(y, source), panels, panels[:0] if bias is None else bias,
        low, out.reshape(-1), _NO_CODES if codes is None else codes.reshape(-1), pool.reshape(-1), g.G, plan.blocks,
        plan.rows, plan.source, plan.destination, plan.out_step, plan.image.firsts, plan.image.step,
        plan.image.height, plan.image.pitch, plan.table, plan.across, plan.offsets, plan.bases, plan.places,
        plan.weights, images, image_size, scratches, plan.scratch,
    )  # fmt: skip


def _flat(array: np.ndarray | None, like: np.ndarray) -> np.ndarray:
    """Its elements; none if there is no array."""
    return np.empty(0, like.dtype) if array is None else array.reshape(-1)


def conv2d_forward(
    x: np.ndarray,
    weight: np.ndarray,
    bias: np.ndarray | None,
    g: Geometry,
    activation: str | None,
    out: np.ndarray | None,
) -> np.ndarray:
    y = np.empty(g.y_shape, x.dtype) if out is None else out
    if y.size:
        _run(x, weight, bias, correlation_plan(g, x.itemsize, False), g, False, y, activation == "relu")
    return y


def conv2d_backward_input(
    grad: np.ndarray, weight: np.ndarray, g: Geometry, y: np.ndarray | None, out: np.ndarray | None
) -> np.ndarray:
    dx = np.empty(g.x_shape, grad.dtype) if out is None else out
    if dx.size:
        _run(grad, weight, None, correlation_plan(g, grad.itemsize, True), g, True, dx, y=y)
    return dx


def conv2d_relu_pool_forward(
    x: np.ndarray, weight: np.ndarray, bias: np.ndarray | None, g: Geometry, p: PoolGeometry
) -> tuple[np.ndarray, np.ndarray]:
    """In one pass for windows of 2 x 2 side by side, where a part has whole planes; else in three."""
    y, codes = np.empty(p.y_shape, x.dtype), np.empty(p.y_shape, p.code_dtype)
    if not y.size:
        return y, codes
    plan = correlation_plan(g, x.itemsize, False)
    halves = (p.R, p.S, p.stride, p.padding, p.dilation) == (2, 2, (2, 2), (0, 0), (1, 1))
    if not halves or (p.P, p.Q) != (g.P // 2, g.Q // 2) or plan.blocks > 1:
        return max_pool2d_forward(conv2d_forward(x, weight, bias, g, "relu", None), p, y)
    row_pitch = int(plan.table[0, 8])
    sizes = np.array([g.P, row_pitch, 2, 2, p.P, p.Q, 2, 2, 0, 0, 1, 1])  # as Window reads them
    _run(x, weight, bias, plan, g, False, y, relu=True, codes=codes, pool=sizes)
    return y, codes


# ---- backward to the weight


@simd(returns="array")
def _sum(s: Stage, array: Pointer, y: Pointer, at: Value, count: Value, RELU: bool) -> Value:
    """Of ``count`` elements, in four vectors of sums; with RELU of what a ReLU that gave y lets through."""
    lanes = s.lanes(array)
    sums = [s.variable(s.zero(array, lanes)) for _ in range(4)]
    with s.range(0, count, 4 * lanes) as i:
        for part, total in enumerate(sums):
            place, here = at + i + part * lanes, s.first(count - i - part * lanes, lanes)
            vector = array.load(place, lanes, here)
            total.value += _passed(vector, y.load(place, lanes, here)) if RELU else vector
    return ((sums[0].value + sums[1].value) + (sums[2].value + sums[3].value)).sum()


@simd
def _pack_passed(
    s: Stage, grad: Pointer, y: Pointer, at: Value, pitch: Value, rows: Value, steps: Value, panel: Pointer, to: Value,
    width: int,
) -> None:  # fmt: skip
    """As pack_columns, what a ReLU that gave y lets through."""
    grad, y, lanes = grad + at, y + at, s.lanes(y)

    def load(i: int, j: Value, here: Value | None) -> Value:
        return _passed(grad.load(pitch * i + j, lanes, here), y.load(pitch * i + j, lanes, here))

    panel_of_columns(s, load, rows, steps, panel + to, width, width)


def _add_or_store(s: Stage, sums: Pointer, to: Value, totals_: list[Value], add: Value) -> None:
    """Write vectors side by side, or add them where ``add`` is not 0."""
    for i, total in enumerate(totals_):
        place, value = to + i * total.lanes, s.variable(total)
        with s.when(add > 0):
            value.value += sums.load(place, total.lanes)
        sums.store(place, value.value)


@simd
def _dots(
    s: Stage, grad: Pointer, at: Value, last: Value, plane: Value, grad_step: Value, image: Pointer, image_at: Value,
    image_step: Value, offsets: Pointer, first: Value, pieces: Value, size: Value, sums: Pointer, to: Value, add: Value,
    K: int, T: int,
) -> None:  # fmt: skip
    """sums[k, t] = sum over pieces and ``size`` elements of rows of grad[min(k, last)] image[offset[first + t]]"""
    tile, lanes = Tile(s, K, T, grad), s.lanes(grad)
    of_k = [at + (last < k).where(last, s.integer(k)) * plane for k in range(K)]
    of_tap = [image_at + offsets[first + t] for t in range(T)]
    with s.range(0, pieces) as piece, s.range(0, size, lanes) as i:
        of_grad, of_image = piece * grad_step + i, piece * image_step + i
        tile.dot(
            [grad.load(start + of_grad, lanes) for start in of_k],
            [image.load(start + of_image, lanes) for start in of_tap],
        )
    every = [sum_.value for row in tile.sums for sum_ in row]
    _add_or_store(s, sums, to, [totals(every[e : e + lanes]) for e in range(0, len(every), lanes)], add)


@simd
def _outers(
    s: Stage, grad: Pointer, at: Value, grad_step: Value, image: Pointer, image_at: Value, image_step: Value,
    pitch: Value, offsets: Pointer, first: Value, pieces: Value, rows: Value, Q: Value, sums: Pointer, to: Value,
    add: Value, K: int, T: int,
) -> None:  # fmt: skip
    """sums[t, k] = sum over pieces and outputs of image[offset[first + t]] grad[k], the k side by side"""
    lanes = s.lanes(grad)
    tile = Tile(s, T, K // lanes, grad)
    of_tap = [image_at + offsets[first + t] for t in range(T)]
    with s.range(0, pieces) as piece, s.range(0, rows) as p, s.range(0, Q) as q:
        of_grad, of_image = at + piece * grad_step + (p * Q + q) * K, piece * image_step + p * pitch + q
        vectors = [grad.load(of_grad + v * lanes, lanes) for v in range(K // lanes)]
        tile.outer(lambda t: image[of_tap[t] + of_image], vectors)
    _add_or_store(s, sums, to, [sum_.value for row in tile.sums for sum_ in row], add)


@simd
def _column_sums(
    s: Stage, panel: Pointer, at: Value, steps: Value, sums: Pointer, to: Value, add: Value, width: int
) -> None:
    """sums[k] = sum over a panel's steps of its k-th number."""
    lanes = s.lanes(panel)
    totals_ = [s.variable(s.zero(panel, lanes)) for _ in range(width // lanes)]
    with s.range(0, steps) as i:
        for v, total in enumerate(totals_):
            total.value += panel.load(at + i * width + v * lanes, lanes)
    _add_or_store(s, sums, to, [total.value for total in totals_], add)


@cache
def _correlate_weight(OUTERS: bool, of_k: int, of_taps: int, lanes: int) -> Any:
    size = (of_k * of_taps + lanes - 1) // lanes * lanes  # elements of a tile's sums

    @in_parts
    def sum_part(
        part, slot, x, grad, relu, N, G, K, source_size, grad_size, RS, rows, blocks, at_once, of_part,
        inputs, together, tiles, firsts, step, height, pitch, offsets, images, image_size, grads, grad_pitch, sums,
        of_bias,
    ):  # fmt: skip
        """A part's images and input channels, tile after tile; ``relu`` as in the other passes.

        Whoever has the first input channels adds up the gradient itself, too, if there is room in ``of_bias``.
        """
        C, H, W = source_size
        P, Q = grad_size
        chunks = (C + inputs - 1) // inputs
        share, group, chunk = part // (G * chunks), part // chunks % G, part % chunks
        begin, end = share * of_part, min((share + 1) * of_part, N * blocks)
        at, plane = slot * at_once * image_size, rows * grad_pitch
        grad_step = (of_k if OUTERS else K) * plane
        image_plane = len(firsts) * height * pitch
        grad_at = slot * at_once * grad_step
        bias_at, with_bias = (share * G + group) * tiles[0] * of_k, of_bias.size > 0 and chunk == 0
        for piece in range(begin, end, at_once):
            pieces, p0 = min(at_once, end - piece), piece % blocks * rows
            heights = min(rows, P - p0)
            for i in range(0 if OUTERS else pieces):
                n = (piece + i) // blocks
                _fill(grad, relu, (n * G + group) * K * P * Q, K, P * Q, P, Q, _WHOLE, 1, 1, p0, rows, Q, grad_pitch,
                      grads, grad_at + i * grad_step, plane)  # fmt: skip
                for k in range(K if with_bias else 0):
                    total = _sum(grads, relu, grad_at + i * grad_step + k * plane, plane, False)
                    of_bias[bias_at + k] = total if piece + i == begin else of_bias[bias_at + k] + total
            for c in range(chunk * inputs, min((chunk + 1) * inputs, C), together):
                channels = min(together, min((chunk + 1) * inputs, C) - c)
                owner = part * ((inputs + together - 1) // together) + (c - chunk * inputs) // together
                from_x = ((piece // blocks * G + group) * C + c) * H * W
                for i in range(channels):
                    _fill(x, relu[:0], from_x + i * H * W, pieces, G * C * H * W, H, W, firsts, step[0], step[1], p0,
                          height, pitch if OUTERS else Q, pitch, images, at + i * image_plane, image_size)  # fmt: skip
                for k in range(0, K, of_k):
                    for i in range(pieces if OUTERS else 0):
                        n = (piece + i) // blocks
                        here = ((n * G + group) * K + k) * P * Q + p0 * Q
                        if relu.size:
                            _pack_passed(grad, relu, here, P * Q, K - k, heights * Q, grads,
                                         grad_at + i * grad_step, of_k)  # fmt: skip
                        else:
                            pack_columns(grad, here, P * Q, K - k, heights * Q, grads, grad_at + i * grad_step, of_k,
                                         of_k)  # fmt: skip
                        if with_bias and c == 0:
                            _column_sums(grads, grad_at + i * grad_step, heights * Q, of_bias, bias_at + k,
                                         piece + i - begin, of_k)  # fmt: skip
                    for j in range(0, channels * RS, of_taps):
                        to = ((owner * tiles[0] + k // of_k) * tiles[1] + j // of_taps) * size
                        if OUTERS:
                            _outers(grads, grad_at, grad_step, images, at, image_size, pitch, offsets, j, pieces,
                                    heights, Q, sums, to, piece - begin, of_k, of_taps)  # fmt: skip
                        else:
                            _dots(grads, grad_at + k * plane, K - k - 1, plane, grad_step, images, at, image_size,
                                  offsets, j, pieces, heights * pitch, sums, to, piece - begin, of_k,
                                  of_taps)  # fmt: skip

    @in_parts
    def add_parts(tile, slot, parts, all_tiles, out, G, K, C, RS, inputs, together, tiles, sums, of_bias, db):
        """A tile's sums of all parts, added in order, to their places in the gradient."""
        chunks, of_chunk = (C + inputs - 1) // inputs, (inputs + together - 1) // together
        at, owner = tile * size, tile // (tiles[0] * tiles[1])
        k, j = tile // tiles[1] % tiles[0] * of_k, tile % tiles[1] * of_taps
        group, chunk, c = owner // of_chunk // chunks, owner // of_chunk % chunks, owner % of_chunk * together
        taps = min(of_taps, min(together, inputs - c, C - chunk * inputs - c) * RS - j)
        for share in range(1, parts if taps > 0 else 0):
            for e in range(size):
                sums[at + e] += sums[share * all_tiles * size + at + e]
        for i in range(min(of_k, K - k)):
            for tap in range(taps):
                e = tap * of_k + i if OUTERS else i * of_taps + tap
                out[((group * K + k + i) * C + chunk * inputs + c) * RS + j + tap] = sums[at + e]
        for i in range(min(of_k, K - k) if db.size and chunk == 0 and c == 0 and j == 0 else 0):
            total = db.dtype.type(0)
            for share in range(parts):
                total += of_bias[(share * G + group) * tiles[0] * of_k + k + i]
            db[group * K + k + i] = total

    return sum_part, add_parts


def conv2d_backward_weight(
    x: np.ndarray, grad: np.ndarray, g: Geometry, y: np.ndarray | None, out: np.ndarray | None
) -> np.ndarray:
    dw = np.empty(g.weight_shape, x.dtype) if out is None else out
    _parameters(x, grad, g, y, dw, np.empty(0, x.dtype))
    return dw


def conv2d_backward_parameters(
    x: np.ndarray, grad: np.ndarray, g: Geometry, y: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    dw, db = np.empty(g.weight_shape, x.dtype), np.empty(g.K, x.dtype)
    _parameters(x, grad, g, y, dw, db)
    return dw, db


def _parameters(x: np.ndarray, grad: np.ndarray, g: Geometry, y: np.ndarray | None, dw: Any, db: Any) -> None:
    """Both gradients, into ``dw``, and ``db`` if that is not empty."""
    if not grad.size or not dw.size:
        dw.fill(0)
        if db.size:
            conv2d_backward_bias(grad, y, db)
        return
    plan, lanes = weight_plan(g, x.itemsize), vector_bytes() // x.itemsize
    K, slots = g.K // g.G, thread_slots() * plan.at_once
    # With room for panels that end beyond the last output channel, and vectors beyond the last element.
    channels = math.ceil(K / plan.channels) * plan.channels
    of_grad = channels * plan.rows * plan.grad_pitch
    image_size = math.ceil((plan.image.plane * plan.together + lanes) / lanes) * lanes
    owners = g.G * math.ceil(g.C // g.G / plan.inputs)  # of tiles: parts of the channels
    tiles = owners * math.ceil(plan.inputs / plan.together) * plan.tiles[0] * plan.tiles[1]
    sum_part, add_parts = _correlate_weight(plan.kind == "outers", plan.channels, plan.taps, lanes)
    sums = workspace(
        "conv2d partial", plan.parts * tiles * math.ceil(plan.channels * plan.taps / lanes) * lanes, x.dtype
    )
    of_bias = workspace("conv2d bias", plan.parts * g.G * channels, x.dtype) if db.size else db
    sum_part(
        plan.parts * owners, x.reshape(-1), grad.reshape(-1), _flat(y, x), g.N, g.G, K,
        (g.C // g.G, g.H, g.W), (g.P, g.Q), g.R * g.S, plan.rows, plan.blocks, plan.at_once, plan.pieces, plan.inputs,
        plan.together, plan.tiles, plan.image.firsts, plan.image.step, plan.image.height, plan.image.pitch,
        plan.offsets, workspace("conv2d images", slots * image_size, x.dtype), image_size,
        workspace("conv2d gradients", slots * of_grad, x.dtype), plan.grad_pitch, sums, of_bias,
    )  # fmt: skip
    (add_parts.here if plan.parts * dw.size < _LITTLE else add_parts)(
        tiles, plan.parts, tiles, dw.reshape(-1), g.G, K, g.C // g.G, g.R * g.S, plan.inputs, plan.together,
        plan.tiles, sums, of_bias, db,
    )  # fmt: skip


@in_parts
def _bias(k, slot, grad, relu, N, K, plane, out):
    total = out.dtype.type(0)
    for n in range(N):
        at = (n * K + k) * plane
        total += _sum(grad, relu, at, plane, True) if relu.size else _sum(grad, relu, at, plane, False)
    out[k] = total


def conv2d_backward_bias(grad: np.ndarray, y: np.ndarray | None, out: np.ndarray | None) -> np.ndarray:
    N, K, P, Q = grad.shape
    db = np.empty(K, grad.dtype) if out is None else out
    _bias(K, grad.reshape(-1), _flat(y, grad), N, K, P * Q, db)
    return db
