"""Launcher of conv2d.cu: grids, tiles, slices, and which version for which shape."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from .._dispatch import current_choice
from .._errors import BackendError
from .._launch import FLOATS, Kernel, ceil_div, empty, result
from ..max_pool2d import Geometry as PoolGeometry
from ..max_pool2d.cuda import max_pool2d_forward
from . import Geometry, one_after_the_other

_THREADS = 256  # of a block of v1 and v2
#: A register tile (v3) has eight times as many rows and 16 times as many columns as one thread owns of it.
_ROWS = (2, 3, 4, 8)
_COLS = (2, 8)
#: Columns of a register tile where they are positions: one for each of its threads.
_WIDTH = 128
#: What ``Stage`` in conv2d.cu holds: numbers of the patch, and others.
_PATCH, _OTHER = 4096, 2048
#: Bytes of each array of ``DirectStage`` in conv2d.cu (v4), and the channels that a thread owns of its result.
_ROOM, _OWN = 12288, 4
#: The sides of filters whose loops v4 unrolls; the first stands for all others.
_SIDES = (0, 3, 5)
_RUNS = (1, 3, 5)

_FORWARD_PLAIN = Kernel(__file__, "conv2d_forward_v1_plain", T=FLOATS)
_FORWARD_SMEM = Kernel(__file__, "conv2d_forward_v2_smem_tile", T=FLOATS)
_FORWARD_REGISTER = Kernel(__file__, "conv2d_forward_v3_register_tile", T=FLOATS, ROWS=_ROWS)
_INPUT_PLAIN = Kernel(__file__, "conv2d_backward_input_v1_plain", T=FLOATS)
_INPUT_SMEM = Kernel(__file__, "conv2d_backward_input_v2_smem_tile", T=FLOATS)
_INPUT_REGISTER = Kernel(__file__, "conv2d_backward_input_v3_register_tile", T=FLOATS, ROWS=_ROWS)
_WEIGHT_PLAIN = Kernel(__file__, "conv2d_backward_weight_v1_plain", T=FLOATS)
_WEIGHT_SMEM = Kernel(__file__, "conv2d_backward_weight_v2_smem_tile", T=FLOATS)
_WEIGHT_REGISTER = Kernel(__file__, "conv2d_backward_weight_v3_register_tile", T=FLOATS, ROWS=_ROWS, COLS=_COLS)
_FORWARD_DIRECT = Kernel(__file__, "conv2d_forward_v4_direct", T=FLOATS, TAPS=_SIDES)
_POOL_DIRECT = Kernel(__file__, "conv2d_relu_pool_forward_v4_direct", T=FLOATS, TAPS=_SIDES)
_INPUT_DIRECT = Kernel(__file__, "conv2d_backward_input_v4_direct", T=FLOATS, TAPS=_SIDES)
_WEIGHT_DIRECT = Kernel(__file__, "conv2d_backward_weight_v4_direct", T=FLOATS, TAPS=_RUNS)
#: The template argument PRECISION of conv2d.cu; and for each, the channels that one instruction sums over.
_PRECISIONS = {"tf32": 0, "bf16": 1, "fp16": 2}
_DEPTHS = {"tf32": 8, "bf16": 16, "fp16": 16}
_TENSOR: dict[str, Any] = {"PRECISION": _PRECISIONS.values(), "WARPS_M": (1, 2)}
_FORWARD_TENSOR = Kernel(__file__, "conv2d_forward_v5_tensor_core", **_TENSOR)
_INPUT_TENSOR = Kernel(__file__, "conv2d_backward_input_v5_tensor_core", **_TENSOR)
_WEIGHT_TENSOR = Kernel(__file__, "conv2d_backward_weight_v5_tensor_core", **_TENSOR)
#: Numbers of a patch in shared memory there, and of positions times filters.
_FIELD, _GRADIENTS = 3456, 2048
_BIAS = Kernel(__file__, "conv2d_backward_bias", T=FLOATS)
_SUM_SLICES = Kernel(__file__, "conv2d_sum_slices", T=FLOATS)


# ---- how the work is cut


class _Axis(NamedTuple):
    """One axis of a correlation, as in conv2d.cu."""

    positions: int
    taps: int
    stride: int
    dilation: int


def _forward_axes(g: Geometry) -> list[_Axis]:
    return [_Axis(*sizes) for sizes in zip((g.P, g.Q), (g.R, g.S), g.stride, g.dilation, strict=True)]


def _input_axes(g: Geometry) -> list[_Axis]:
    """Those of dx, in the class of rows and columns that has the most positions and taps."""
    axes = []
    for size, taps, stride, dilation in zip((g.H, g.W), (g.R, g.S), g.stride, g.dilation, strict=True):
        common = math.gcd(stride, dilation)
        axes.append(_Axis(ceil_div(size, stride), ceil_div(taps, stride // common), 1, dilation // common))
    return axes


class _Tile(NamedTuple):
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


def _patch(axes: list[_Axis], positions: list[int], taps: list[int]) -> int:
    """Elements of one channel under these positions."""
    return math.prod(
        (p - 1) * axis.stride + (t - 1) * axis.dilation + 1 for axis, p, t in zip(axes, positions, taps, strict=True)
    )


def _fit(positions: list[int], taps: list[int], fits: Callable[[], bool]) -> None:
    """Halve `positions`, and when they are all 1 `taps`, until ``fits()``."""
    while not fits():
        sizes = positions if max(positions) > 1 else taps
        sizes[sizes.index(max(sizes))] //= 2


def _positions(axes: list[_Axis]) -> list[int]:
    """Of a tile: equal parts of each axis, at most 16 x 16."""
    return [max(1, ceil_div(axis.positions, max(1, ceil_div(axis.positions, 16)))) for axis in axes]


def _correlation_tile(axes: list[_Axis], M: int, C: int) -> _Tile:
    """As many result channels as there are threads for, as many input channels as fit."""
    positions, taps = _positions(axes), [axis.taps for axis in axes]
    _fit([1], taps, lambda: math.prod(taps) <= _OTHER)
    _fit(positions, taps, lambda: _patch(axes, positions, taps) <= _PATCH)
    channels = max(1, min(M, _THREADS // math.prod(positions), _OTHER // math.prod(taps)))
    depth = min(C, _PATCH // _patch(axes, positions, taps), _OTHER // (channels * math.prod(taps)))
    (P, Q), (R, S) = positions, taps
    return _Tile(P, Q, channels, max(1, depth), R, S)


@functools.lru_cache(maxsize=1024)
def _forward_tile(g: Geometry) -> _Tile:
    return _correlation_tile(_forward_axes(g), g.K // g.G, g.C // g.G)


@functools.lru_cache(maxsize=1024)
def _input_tile(g: Geometry) -> _Tile:
    return _correlation_tile(_input_axes(g), g.C // g.G, g.K // g.G)


@functools.lru_cache(maxsize=1024)
def _weight_tile(g: Geometry) -> _Tile:
    """As many weights as there are threads, filters and channels about evenly; positions as fit."""
    axes, K, C = _forward_axes(g), max(1, g.K // g.G), max(1, g.C // g.G)
    positions, taps = _positions(axes), [axis.taps for axis in axes]
    _fit([1], taps, lambda: math.prod(taps) <= _THREADS)
    room = _THREADS // math.prod(taps)
    filters = min(K, room // min(C, math.isqrt(room)))
    channels = min(C, room // filters)
    _fit(
        positions,
        taps,
        lambda: channels * _patch(axes, positions, taps) <= _PATCH and filters * math.prod(positions) <= _OTHER,
    )
    (P, Q), (R, S) = positions, taps
    return _Tile(P, Q, filters, channels, R, S)


class _Squares(NamedTuple):
    """``Squares`` of conv2d.cu."""

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


def _side(axes: list[_Axis]) -> int:
    """The template argument TAPS of a direct correlation."""
    square = axes[0].taps == axes[1].taps and all(axis.stride == axis.dilation == 1 for axis in axes)
    return axes[0].taps if square and axes[0].taps in _SIDES else 0


def _fours(channels: int) -> int:
    """How many fours of channels a block takes: all, or equal parts of at most eight."""
    fours = max(1, ceil_div(channels, _OWN))
    return ceil_div(fours, ceil_div(fours, 8))


def _width_of_fours(fours: int) -> int:
    return (fours | 1) * _OWN


def _parts(size: int, most: int) -> list[int]:
    """What is left of ``size`` if it is cut into 1, 2, 3, … parts, where that is at most `most`."""
    return sorted({ceil_div(size, count) for count in range(1, size + 1)} & set(range(1, most + 1)))


def _direct_tile(
    axes: list[_Axis], M: int, C: int, plane: tuple[int, int], edge: tuple[int, int], itemsize: int
) -> _Squares | None:
    """The tile of a direct correlation that costs least, or None if not even one square fits.

    Counted are a warp's instructions: 16 products for each tap and channel, and about ten for each 32 numbers
    that are copied.
    """
    room, taps = _ROOM // itemsize, math.prod(axis.taps for axis in axes)
    fours = _fours(M)
    while fours > 1 and taps * _width_of_fours(fours) > room:
        fours = ceil_div(fours, 2)
    of_filters = taps * _width_of_fours(fours)
    if of_filters > room:
        return None

    def patch(down: int, across: int) -> int:
        rows, columns = (
            (2 * squares - 1) * axis.stride + (axis.taps - 1) * axis.dilation + 1
            for axis, squares in zip(axes, (down, across), strict=True)
        )
        return int(rows * 2 * ceil_div(columns, 2))

    def cost(sides: tuple[int, int]) -> int:
        blocks = ceil_div(plane[0], sides[0]) * ceil_div(plane[1], sides[1])
        warps = ceil_div(math.prod(sides) * fours, 32)
        return int(blocks * (warps * taps * 16 + ceil_div((patch(*sides) + of_filters) * 10, 32)))

    most = _THREADS // fours
    every = [(down, across) for down in _parts(plane[0], most) for across in _parts(plane[1], most // down)]
    fitting = [sides for sides in every if patch(*sides) <= room]
    if not fitting:
        return None
    sides = min(fitting, key=cost)
    depth = max(1, min(C, room // patch(*sides), room // of_filters))
    return _Squares(*sides, fours, max(1, ceil_div(C, ceil_div(max(C, 1), depth))), *plane, *edge)


@functools.lru_cache(maxsize=1024)
def _direct_forward_tile(g: Geometry, itemsize: int) -> _Squares | None:
    plane = ceil_div(g.P, 2), ceil_div(g.Q, 2)
    return _direct_tile(_forward_axes(g), g.K // g.G, g.C // g.G, plane, (0, 0), itemsize)


@functools.lru_cache(maxsize=1024)
def _direct_pool_tile(g: Geometry, p: PoolGeometry, itemsize: int) -> _Squares | None:
    """The squares are the windows, if they are 2 x 2 and lie side by side."""
    if (p.R, p.S) != (2, 2) or p.stride != (2, 2) or p.dilation != (1, 1):
        return None
    return _direct_tile(_forward_axes(g), g.K // g.G, g.C // g.G, (p.P, p.Q), p.padding, itemsize)


@functools.lru_cache(maxsize=1024)
def _direct_input_tile(g: Geometry, itemsize: int) -> _Squares | None:
    axes = _input_axes(g)
    down, across = (ceil_div(axis.positions, 2) for axis in axes)
    return _direct_tile(axes, g.C // g.G, g.K // g.G, (max(1, down), max(1, across)), (0, 0), itemsize)


class _Rectangle(NamedTuple):
    """``Rectangle`` of conv2d.cu."""

    P: int
    Q: int
    taps: int


def _warps(channels: int) -> int:
    """The template argument WARPS_M: how many times 32 channels a block takes."""
    return 1 if channels <= 32 else 2


def _tensor_tile(axes: list[_Axis], M: int, precision: str) -> _Rectangle | None:
    """The tile of a correlation on tensor cores with the fewest blocks, or None if not one position fits."""
    depth, warps = _DEPTHS[precision], _warps(M)
    banks, most = 64 // depth, 64 * (4 // warps)

    def plane(P: int, Q: int) -> int:
        return ceil_div(max(_patch(axes, [P, Q], [axis.taps for axis in axes]) - banks, 0), 32) * 32 + banks

    down, across = (axis.positions for axis in axes)
    fitting = [(P, Q) for P in _parts(down, most) for Q in _parts(across, most // P) if plane(P, Q) * depth <= _PATCH]
    if not fitting:
        return None
    P, Q = min(fitting, key=lambda sides: (ceil_div(down, sides[0]) * ceil_div(across, sides[1]), plane(*sides)))
    return _Rectangle(P, Q, min(axes[0].taps * axes[1].taps, _OTHER // (depth * (32 * warps + banks))))


@functools.lru_cache(maxsize=1024)
def _tensor_forward_tile(g: Geometry, precision: str) -> _Rectangle | None:
    return _tensor_tile(_forward_axes(g), g.K // g.G, precision)


@functools.lru_cache(maxsize=1024)
def _tensor_input_tile(g: Geometry, precision: str) -> _Rectangle | None:
    return _tensor_tile(_input_axes(g), g.C // g.G, precision)


class _Field(NamedTuple):
    """``Field`` of conv2d.cu."""

    P: int
    Q: int
    C: int
    groups: int


@functools.lru_cache(maxsize=1024)
def _tensor_weight_tile(g: Geometry, precision: str) -> _Field | None:
    """The tile of dw on tensor cores that costs least, or None if not one position fits.

    Counted are a warp's instructions: about ten for each 32 numbers that are copied; for each step of positions the
    16 reads of a fragment of gradients, and for each group its fragment and two products; and 200 to begin a tile.
    """
    axes, depth, warps = _forward_axes(g), _DEPTHS[precision], _warps(g.K // g.G)
    K, eighths, taps = g.K // g.G, ceil_div(g.C // g.G, 8), g.R * g.S
    banks, most = depth // 2, _GRADIENTS // (32 * warps)

    def patch(P: int, Q: int, C: int) -> int:
        plane = _patch(axes, [P, Q], [axis.taps for axis in axes])
        return C * (ceil_div(max(plane - banks, 0), 32) * 32 + banks)

    def cost(field: _Field) -> int:
        blocks = ceil_div(eighths * taps, 4 // warps * field.groups) * ceil_div(K, 32 * warps)
        tiles = ceil_div(g.P, field.P) * ceil_div(g.Q, field.Q)
        copied = patch(field.P, field.Q, field.C) + 32 * warps * field.P * field.Q
        steps = ceil_div(field.P * field.Q, depth)
        return int(blocks * tiles * (200 + copied * 10 // 128 + steps * (16 + 8 * field.groups)))

    fields = []
    for groups in (8, 6, 4, 3, 2, 1):
        channels = 8 * min(eighths, (4 // warps * groups + taps - 2) // taps + 1)
        for P in _parts(g.P, most):
            fields += [_Field(P, Q, channels, groups) for Q in _parts(g.Q, most // P)]
    return min((field for field in fields if patch(*field[:3]) <= _FIELD), key=cost, default=None)


def _tensor_precision(g: Geometry, dtype: Any) -> str | None:
    """The precision that the caller allows, if it is lower and there are channels for the tensor cores."""
    precision = current_choice().precision
    allowed = precision != "float32" and dtype == np.float32 and min(g.C, g.K) // g.G >= 8
    return precision if allowed else None


def _refuse_unfit(dtype: Any, tile: _Rectangle | _Field | None, precision: str) -> None:
    if dtype != np.float32:
        raise BackendError(f"conv2d: the tensor cores' {precision} takes float32; got {dtype}")
    if tile is None:
        raise BackendError("conv2d: the tensor cores' tile has no room for these strides and dilations")


class _Runs(NamedTuple):
    """``Runs`` of conv2d.cu."""

    P: int
    Q: int
    M: int
    U: int
    C: int


@functools.lru_cache(maxsize=1024)
def _direct_weight_tile(g: Geometry, itemsize: int) -> _Runs | None:
    """Runs as there are threads, whole channels if they are that many; as many positions as fit, or None."""
    room, axes = _ROOM // itemsize, _forward_axes(g)
    C, of_channel = max(1, g.C // g.G), g.R * g.S // _run(g)
    fours = _fours(g.K // g.G)
    most = _THREADS // fours
    if of_channel <= most:
        channels = ceil_div(C, ceil_div(C, most // of_channel))
        runs = channels * of_channel
    else:
        channels, runs = min(C, 2), most
    Q = max(1, ceil_div(g.Q, ceil_div(g.Q, 16)))
    for P in range(min(g.P, 16), 0, -1):
        rows, columns = ((n - 1) * a.stride + (a.taps - 1) * a.dilation + 1 for n, a in zip((P, Q), axes, strict=True))
        if channels * rows * 2 * ceil_div(columns, 2) <= room and P * Q * _width_of_fours(fours) <= room:
            return _Runs(ceil_div(g.P, ceil_div(g.P, P)), Q, fours, runs, channels)
    return None


def _run(g: Geometry) -> int:
    """The template argument TAPS of the direct gradient of the weights: the taps in one thread's run."""
    return g.S if g.S in _RUNS and g.stride[1] == g.dilation[1] == 1 else 1


def _slices(units: int, positions: int, blocks: int, size: int, least: int = 128) -> tuple[int, int]:
    """Into how many slices a sum over `positions`, in so many `units`, is cut, and the units of each.

    Enough to fill a large GPU when each takes `blocks`, but none of fewer than `least` positions; and none
    of more than 8192, since a chain of so many additions begins to cost float32 its digits, unless the
    slices of a result of `size` numbers would then take gigabytes.
    """
    filling = min(ceil_div(256, max(1, blocks)), ceil_div(positions, least))
    wanted = max(1, min(max(filling, ceil_div(positions, 8192)), 2**28 // max(1, size)))
    length = max(1, ceil_div(units, wanted))
    return max(1, ceil_div(units, length)), length


def _rows(channels: int) -> int:
    """The rows per thread that cost least: r units for multiplying and about 2 for fetching, per tile."""
    return min(_ROWS, key=lambda r: ceil_div(channels, 8 * r) * (r + 2))


def _cols(taps: int) -> int:
    return min(_COLS, key=lambda c: ceil_div(taps, 16 * c) * (c + 2))


# ---- forward


def _forward_plain(x: Any, weight: Any, bias: Any, g: Geometry, activation: str | None, out: Any) -> Any:
    y = result(out, x, g.y_shape)
    _FORWARD_PLAIN[x.dtype](ceil_div(y.size, _THREADS), _THREADS, x, weight, bias, y, g, activation == "relu")
    return y


def _forward_smem(x: Any, weight: Any, bias: Any, g: Geometry, activation: str | None, out: Any) -> Any:
    y = result(out, x, g.y_shape)
    t = _forward_tile(g)
    blocks = g.N * g.G * ceil_div(g.P, t.P) * ceil_div(g.Q, t.Q) * ceil_div(g.K // g.G, t.M)
    _FORWARD_SMEM[x.dtype](blocks, t.threads, x, weight, bias, y, g, t, activation == "relu")
    return y


def _forward_register(x: Any, weight: Any, bias: Any, g: Geometry, activation: str | None, out: Any) -> Any:
    y = result(out, x, g.y_shape)
    K = g.K // g.G
    rows = _rows(K)
    blocks = g.G * ceil_div(K, 8 * rows) * ceil_div(g.N * g.P * g.Q, _WIDTH)
    _FORWARD_REGISTER[x.dtype, rows](blocks, _WIDTH, x, weight, bias, y, g, activation == "relu")
    return y


def _forward_direct(x: Any, weight: Any, bias: Any, g: Geometry, activation: str | None, out: Any) -> Any:
    t = _direct_forward_tile(g, x.itemsize)
    if t is None:
        return _forward_smem(x, weight, bias, g, activation, out)
    y = result(out, x, g.y_shape)
    blocks = g.N * g.G * t.blocks * ceil_div(g.K // g.G, t.M * _OWN)
    kernel = _FORWARD_DIRECT[x.dtype, _side(_forward_axes(g))]
    kernel(blocks, t.threads, x, weight, bias, y, g, t, activation == "relu")
    return y


def _forward_tensor(precision: str) -> Callable[..., Any]:
    def forward(x: Any, weight: Any, bias: Any, g: Geometry, activation: str | None, out: Any) -> Any:
        t = _tensor_forward_tile(g, precision)
        _refuse_unfit(x.dtype, t, precision)
        assert t is not None
        y = result(out, x, g.y_shape)
        K, warps = g.K // g.G, _warps(g.K // g.G)
        blocks = g.N * g.G * ceil_div(g.P, t.P) * ceil_div(g.Q, t.Q) * ceil_div(K, 32 * warps)
        kernel = _FORWARD_TENSOR[_PRECISIONS[precision], warps]
        kernel(blocks, 128, x, weight, bias, y, g, t, activation == "relu")
        return y

    return forward


def conv2d_forward(x: Any, weight: Any, bias: Any, g: Geometry, activation: str | None, out: Any) -> Any:
    """As the reference's; see the package's docstring."""
    return _forward_chosen(g, x.dtype)(x, weight, bias, g, activation, out)


def _forward_chosen(g: Geometry, dtype: Any) -> Callable[..., Any]:
    precision = _tensor_precision(g, dtype)
    if precision is not None and _tensor_forward_tile(g, precision) is not None:
        return _forward_tensor(precision)
    return _forward_default(g, dtype.itemsize)


@functools.lru_cache(maxsize=1024)
def _forward_default(g: Geometry, itemsize: int) -> Callable[..., Any]:
    if _is_direct(_side(_forward_axes(g)), g.K // g.G, g.C // g.G, _direct_forward_tile(g, itemsize)):
        return _forward_direct
    return _forward_register if _fills_rows(g.K, g.G) else _forward_smem


def _pooled(version: Callable[..., Any]) -> Callable[..., tuple[Any, Any]]:
    """``version`` of the convolution with ReLU, and the pooling in a launch of its own."""

    def forward(x: Any, weight: Any, bias: Any, g: Geometry, p: PoolGeometry) -> tuple[Any, Any]:
        return max_pool2d_forward(version(x, weight, bias, g, "relu", None), p, None)

    return forward


def _pool_direct(x: Any, weight: Any, bias: Any, g: Geometry, p: PoolGeometry) -> tuple[Any, Any]:
    """In one launch where windows are 2 x 2 and lie side by side, else in two."""
    t = _direct_pool_tile(g, p, x.itemsize)
    if t is None:
        return _pooled(_forward_direct)(x, weight, bias, g, p)
    y, codes = empty(x, p.y_shape), empty(x, p.y_shape, p.code_dtype)
    blocks = g.N * g.G * t.blocks * ceil_div(g.K // g.G, t.M * _OWN)
    kernel = _POOL_DIRECT[x.dtype, _side(_forward_axes(g))]
    kernel(blocks, t.threads, x, weight, bias, y, codes, g, t)
    return y, codes


def conv2d_relu_pool_forward(x: Any, weight: Any, bias: Any, g: Geometry, p: PoolGeometry) -> tuple[Any, Any]:
    """As the reference's: in one launch where v4 can, which spares writing and reading what is pooled."""
    if _tensor_precision(g, x.dtype) is None and _direct_pool_tile(g, p, x.itemsize) is not None:
        return _pool_direct(x, weight, bias, g, p)
    return _pooled(_forward_chosen(g, x.dtype))(x, weight, bias, g, p)


def _is_direct(side: int, channels: int, terms: int, tile: Any) -> bool:
    """Whether v4 takes a correlation to so many channels of a group, from so many.

    By instructions in the loop, as counted from the source: of 4 channels at 4 positions, v4 has 16 products
    to 2 or 3 other instructions where loops are unrolled, and to about 7 where they are not; v3 has as many
    others as products, but for 64 channels.  A depthwise channel would leave three of four owners idle.
    """
    return tile is not None and channels > 1 and (side > 0 or terms <= 4)


def _fills_rows(channels: int, groups: int) -> bool:
    """Whether the channels of a group fill at least half of the smallest register tile's 16 rows."""
    return channels // groups >= 8


# ---- gradient of the input


def _input_plain(grad: Any, weight: Any, g: Geometry, y: Any, out: Any) -> Any:
    dx = result(out, grad, g.x_shape)
    _INPUT_PLAIN[grad.dtype](ceil_div(dx.size, _THREADS), _THREADS, grad, y, weight, dx, g)
    return dx


def _input_smem(grad: Any, weight: Any, g: Geometry, y: Any, out: Any) -> Any:
    dx = result(out, grad, g.x_shape)
    t = _input_tile(g)
    down, across = _input_axes(g)
    blocks = _classes(g) * g.N * g.G * ceil_div(down.positions, t.P) * ceil_div(across.positions, t.Q)
    _INPUT_SMEM[grad.dtype](blocks * ceil_div(g.C // g.G, t.M), t.threads, grad, y, weight, dx, g, t)
    return dx


def _input_register(grad: Any, weight: Any, g: Geometry, y: Any, out: Any) -> Any:
    dx = result(out, grad, g.x_shape)
    C = g.C // g.G
    rows = _rows(C)
    down, across = _input_axes(g)
    positions = g.N * down.positions * across.positions
    blocks = _classes(g) * g.G * ceil_div(C, 8 * rows) * ceil_div(positions, _WIDTH)
    _INPUT_REGISTER[grad.dtype, rows](blocks, _WIDTH, grad, y, weight, dx, g)
    return dx


def _input_direct(grad: Any, weight: Any, g: Geometry, y: Any, out: Any) -> Any:
    t = _direct_input_tile(g, grad.itemsize)
    if t is None:
        return _input_smem(grad, weight, g, y, out)
    dx = result(out, grad, g.x_shape)
    blocks = _classes(g) * g.N * g.G * t.blocks * ceil_div(g.C // g.G, t.M * _OWN)
    _INPUT_DIRECT[grad.dtype, _side(_input_axes(g)) if g.stride == (1, 1) else 0](
        blocks, t.threads, grad, y, weight, dx, g, t
    )
    return dx


def _input_tensor(precision: str) -> Callable[..., Any]:
    def backward(grad: Any, weight: Any, g: Geometry, y: Any, out: Any) -> Any:
        t = _tensor_input_tile(g, precision)
        _refuse_unfit(grad.dtype, t, precision)
        assert t is not None
        dx = result(out, grad, g.x_shape)
        C, warps = g.C // g.G, _warps(g.C // g.G)
        down, across = _input_axes(g)
        blocks = _classes(g) * g.N * g.G * ceil_div(down.positions, t.P) * ceil_div(across.positions, t.Q)
        kernel = _INPUT_TENSOR[_PRECISIONS[precision], warps]
        kernel(blocks * ceil_div(C, 32 * warps), 128, grad, y, weight, dx, g, t)
        return dx

    return backward


def _classes(g: Geometry) -> int:
    """Classes of rows and columns of dx that meet different taps; a stride beyond the input has empty ones."""
    return min(g.stride[0], g.H) * min(g.stride[1], g.W)


def conv2d_backward_input(grad: Any, weight: Any, g: Geometry, y: Any, out: Any) -> Any:
    """As the reference's; see the package's docstring."""
    precision = _tensor_precision(g, grad.dtype)
    if precision is not None and _tensor_input_tile(g, precision) is not None:
        return _input_tensor(precision)(grad, weight, g, y, out)
    return _input_default(g, grad.itemsize)(grad, weight, g, y, out)


@functools.lru_cache(maxsize=1024)
def _input_default(g: Geometry, itemsize: int) -> Callable[..., Any]:
    side = _side(_input_axes(g)) if g.stride == (1, 1) else 0
    if _is_direct(side, g.C // g.G, g.K // g.G, _direct_input_tile(g, itemsize)):
        return _input_direct
    return _input_register if _fills_rows(g.C, g.G) else _input_smem


# ---- gradients of the weights and of the bias


def _summed(like: Any, slices: int, dw: Any, launch: Callable[[Any], None]) -> Any:
    """Have `launch` write one partial sum of `dw` per slice, and add them up."""
    partials = dw if slices == 1 else empty(like, (slices, *dw.shape))
    launch(partials)
    if slices > 1:
        _SUM_SLICES[like.dtype](ceil_div(dw.size, 32), (32, 8), partials, dw, slices, dw.size)
    return dw


def _weight_plain(x: Any, grad: Any, g: Geometry, y: Any, out: Any) -> Any:
    dw = result(out, x, g.weight_shape)
    slices, length = _slices(g.N * g.P, g.N * g.P * g.Q, ceil_div(dw.size, _THREADS), dw.size)
    blocks = ceil_div(slices * dw.size, _THREADS)
    kernel = _WEIGHT_PLAIN[x.dtype]
    return _summed(x, slices, dw, lambda partials: kernel(blocks, _THREADS, x, grad, y, partials, g, slices, length))


def _weight_smem(x: Any, grad: Any, g: Geometry, y: Any, out: Any) -> Any:
    dw = result(out, x, g.weight_shape)
    t = _weight_tile(g)
    blocks = g.G * ceil_div(g.K // g.G, t.M) * ceil_div(g.C // g.G, t.C) * ceil_div(g.R, t.R) * ceil_div(g.S, t.S)
    slices, length = _slices(g.N * ceil_div(g.P, t.P) * ceil_div(g.Q, t.Q), g.N * g.P * g.Q, blocks, dw.size)
    kernel = _WEIGHT_SMEM[x.dtype]
    return _summed(
        x, slices, dw, lambda partials: kernel(slices * blocks, _THREADS, x, grad, y, partials, g, t, length)
    )


def _weight_register(x: Any, grad: Any, g: Geometry, y: Any, out: Any) -> Any:
    dw = result(out, x, g.weight_shape)
    K, taps, positions = g.K // g.G, g.C // g.G * g.R * g.S, g.N * g.P * g.Q
    rows, cols = _rows(K), _cols(taps)
    blocks = g.G * ceil_div(K, 8 * rows) * ceil_div(taps, 16 * cols)
    slices, length = _slices(positions, positions, blocks, dw.size)
    kernel = _WEIGHT_REGISTER[x.dtype, rows, cols]
    return _summed(x, slices, dw, lambda partials: kernel(slices * blocks, _WIDTH, x, grad, y, partials, g, length))


def _weight_direct(x: Any, grad: Any, g: Geometry, y: Any, out: Any) -> Any:
    t = _direct_weight_tile(g, x.itemsize)
    if t is None:
        return _weight_smem(x, grad, g, y, out)
    dw = result(out, x, g.weight_shape)
    runs = g.C // g.G * g.R * g.S // _run(g)
    blocks = g.G * ceil_div(g.K // g.G, t.M * _OWN) * ceil_div(runs, t.U)
    slices, length = _slices(g.N * ceil_div(g.P, t.P) * ceil_div(g.Q, t.Q), g.N * g.P * g.Q, blocks, dw.size)
    kernel = _WEIGHT_DIRECT[x.dtype, _run(g)]
    return _summed(
        x, slices, dw, lambda partials: kernel(slices * blocks, _THREADS, x, grad, y, partials, g, t, length)
    )


def _weight_tensor(precision: str) -> Callable[..., Any]:
    def backward(x: Any, grad: Any, g: Geometry, y: Any, out: Any) -> Any:
        t = _tensor_weight_tile(g, precision)
        _refuse_unfit(x.dtype, t, precision)
        assert t is not None
        dw = result(out, x, g.weight_shape)
        K, warps = g.K // g.G, _warps(g.K // g.G)
        groups = ceil_div(g.C // g.G, 8) * g.R * g.S
        blocks = g.G * ceil_div(groups, 4 // warps * t.groups) * ceil_div(K, 32 * warps)
        tiles = g.N * ceil_div(g.P, t.P) * ceil_div(g.Q, t.Q)
        slices, length = _slices(tiles, g.N * g.P * g.Q, blocks, dw.size)
        kernel = _WEIGHT_TENSOR[_PRECISIONS[precision], warps]
        return _summed(x, slices, dw, lambda partials: kernel(slices * blocks, 128, x, grad, y, partials, g, t, length))

    return backward


def conv2d_backward_weight(x: Any, grad: Any, g: Geometry, y: Any, out: Any) -> Any:
    """As the reference's; see the package's docstring."""
    precision = _tensor_precision(g, x.dtype)
    if precision is not None and _tensor_weight_tile(g, precision) is not None:
        return _weight_tensor(precision)(x, grad, g, y, out)
    return _weight_default(g, x.itemsize)(x, grad, g, y, out)


@functools.lru_cache(maxsize=1024)
def _weight_default(g: Geometry, itemsize: int) -> Callable[..., Any]:
    """v4 where a thread has a row of taps, and filters are too few to fill the largest register tile."""
    direct = _run(g) > 1 and 1 < g.K // g.G <= 32 and _direct_weight_tile(g, itemsize) is not None
    if direct:
        return _weight_direct
    return _weight_register if _fills_rows(g.K, g.G) else _weight_smem


def conv2d_backward_bias(grad: Any, y: Any, out: Any) -> Any:
    """As the reference's; see the package's docstring."""
    N, K, P, Q = grad.shape
    db = result(out, grad, (K,))
    slices, length = _slices(N * P * Q, N * P * Q, K, K, least=4 * _THREADS)
    kernel = _BIAS[grad.dtype]
    return _summed(grad, slices, db, lambda p: kernel(slices * K, _THREADS, grad, y, p, N, K, P * Q, length))


conv2d_backward_parameters = one_after_the_other(conv2d_backward_weight, conv2d_backward_bias)

VERSIONS: dict[str, dict[str, Callable[..., Any]]] = {
    "conv2d_relu_pool_forward": {
        "v1_plain": _pooled(_forward_plain),
        "v2_smem_tile": _pooled(_forward_smem),
        "v3_register_tile": _pooled(_forward_register),
        "v4_direct": _pool_direct,
    },
    "conv2d_forward": {
        "v1_plain": _forward_plain,
        "v2_smem_tile": _forward_smem,
        "v3_register_tile": _forward_register,
        "v4_direct": _forward_direct,
        **{f"v5_tensor_core_{name}": _forward_tensor(name) for name in _PRECISIONS},
    },
    "conv2d_backward_input": {
        "v1_plain": _input_plain,
        "v2_smem_tile": _input_smem,
        "v3_register_tile": _input_register,
        "v4_direct": _input_direct,
        **{f"v5_tensor_core_{name}": _input_tensor(name) for name in _PRECISIONS},
    },
    "conv2d_backward_weight": {
        "v1_plain": _weight_plain,
        "v2_smem_tile": _weight_smem,
        "v3_register_tile": _weight_register,
        "v4_direct": _weight_direct,
        **{f"v5_tensor_core_{name}": _weight_tensor(name) for name in _PRECISIONS},
    },
}
VERSIONS["conv2d_backward_parameters"] = {
    name: one_after_the_other(version, conv2d_backward_bias)
    for name, version in VERSIONS["conv2d_backward_weight"].items()
}
