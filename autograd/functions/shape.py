"""Reshaping, joining and splitting: elements move, nothing is computed.

Where the memory allows it the result is a view of its argument.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from typing import Any

from ...kernels import _graph
from ...kernels._dtypes import wide
from ...kernels._errors import ArgumentError, ShapeError
from ..function import Function
from ..tensor import Tensor
from ._operands import axes, axis, promote, same_device


def _sizes(operation: str, given: tuple[Any, ...]) -> tuple[int, ...]:
    """``x.f(2, 3)``, ``x.f((2, 3))`` and ``x.f([2, 3])`` alike, as integers."""
    if len(given) == 1 and isinstance(given[0], list | tuple):
        given = tuple(given[0])
    try:
        return tuple(operator.index(size) for size in given)
    except TypeError:
        raise ArgumentError(f"{operation}: expected integers; got {given}") from None


class Reshape(Function):
    """The same elements in C order under another shape"""

    @staticmethod
    def forward(ctx: Any, x: Tensor, size: tuple[int, ...]) -> Any:
        ctx.shape = x.shape
        return x.array.reshape(size)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return reshape(grad, ctx.shape), None


def reshape(x: Tensor, size: tuple[Any, ...]) -> Tensor:
    """The same elements in C order under another shape; one size may be -1."""
    wanted = _sizes("reshape", size)
    if wanted == x.shape:
        return x
    known = math.prod(s for s in wanted if s != -1)
    if wanted.count(-1) > 1 or any(s < -1 for s in wanted):
        raise ShapeError(f"reshape: at most one size may be -1, the others at least 0; got {wanted}")
    if -1 in wanted:
        if known == 0 or x.numel() % known:
            raise ShapeError(f"reshape: {x.numel()} elements of shape {tuple(x.shape)} do not fill {wanted}")
        wanted = tuple(x.numel() // known if s == -1 else s for s in wanted)
    elif known != x.numel():
        raise ShapeError(
            f"reshape: shape {tuple(x.shape)} has {x.numel()} elements, the new shape {wanted} has {known}"
        )
    return Reshape.apply(x, wanted)


def view(x: Tensor, size: tuple[Any, ...]) -> Tensor:
    """:func:`reshape` that never copies."""
    result = reshape(x, size)
    if x.numel() and not x.array_module.may_share_memory(result.array, x.array):
        raise ShapeError(
            f"view: shape {tuple(x.shape)} with these strides cannot be seen as {tuple(result.shape)} without a copy; "
            "use reshape()"
        )
    return result


def flatten(x: Tensor, start_dim: int = 0, end_dim: int = -1) -> Tensor:
    """Dimensions ``start_dim`` to ``end_dim`` made one."""
    first, last = axis("flatten", start_dim, x.ndim), axis("flatten", end_dim, x.ndim)
    if first > last:
        raise ArgumentError(f"flatten: start_dim {start_dim} comes after end_dim {end_dim}")
    merged = math.prod(x.shape[first : last + 1])
    return reshape(x, (*x.shape[:first], merged, *x.shape[last + 1 :]))


class Permute(Function):
    """The dimensions in another order"""

    @staticmethod
    def forward(ctx: Any, x: Tensor, dims: tuple[int, ...]) -> Any:
        ctx.dims = dims
        return x.array.transpose(dims)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        inverse = sorted(range(len(ctx.dims)), key=ctx.dims.__getitem__)
        return permute(grad, tuple(inverse)), None


def permute(x: Tensor, dims: tuple[Any, ...]) -> Tensor:
    """Dimension i of the result is dimension ``dims[i]`` of ``x``."""
    order = tuple(axis("permute", d, x.ndim) for d in _sizes("permute", dims))
    if sorted(order) != list(range(x.ndim)):
        raise ArgumentError(f"permute: dims must name each of the {x.ndim} dimensions once; got {dims}")
    return Permute.apply(x, order)


def transpose(x: Tensor, dim0: int, dim1: int) -> Tensor:
    """Two dimensions exchanged."""
    order = list(range(x.ndim))
    a, b = axis("transpose", dim0, x.ndim), axis("transpose", dim1, x.ndim)
    if order:
        order[a], order[b] = order[b], order[a]
    return permute(x, tuple(order))


def squeeze(x: Tensor, dim: Any = None) -> Tensor:
    """Without its dimensions of size 1, or without those among ``dim``."""
    dropped = [d for d in axes("squeeze", dim, x.ndim) if x.shape[d] == 1]
    return reshape(x, tuple(size for d, size in enumerate(x.shape) if d not in dropped))


def unsqueeze(x: Tensor, dim: int) -> Tensor:
    """With a dimension of size 1 inserted at ``dim``."""
    where = axis("unsqueeze", dim, x.ndim + 1)
    return reshape(x, (*x.shape[:where], 1, *x.shape[where:]))


class Expand(Function):
    """Dimensions of size 1 repeated without copying"""

    @staticmethod
    def forward(ctx: Any, x: Tensor, size: tuple[int, ...]) -> Any:
        ctx.shape = x.shape
        return x.array_module.broadcast_to(x.array, size)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return SumTo.apply(grad, ctx.shape), None


def expand(x: Tensor, size: tuple[Any, ...]) -> Tensor:
    """Dimensions of size 1 repeated to ``size``; -1 keeps a size; new ones may come in front."""
    wanted = list(_sizes("expand", size))
    new = len(wanted) - x.ndim
    for d, have in enumerate(x.shape, start=new):
        if d < 0 or (wanted[d] not in (-1, have) and have != 1):
            raise ShapeError(f"expand: shape {tuple(x.shape)} does not expand to {tuple(wanted)}")
        if wanted[d] == -1:
            wanted[d] = have
    if any(s < 0 for s in wanted):
        raise ShapeError(f"expand: a new dimension cannot be -1; got {tuple(wanted)}")
    return x if tuple(wanted) == x.shape else Expand.apply(x, tuple(wanted))


class SumTo(Function):
    """The sum over what a broadcast repeated: the adjoint of :class:`Expand`"""

    @staticmethod
    def forward(ctx: Any, x: Tensor, shape: tuple[int, ...]) -> Any:
        ctx.shape = x.shape
        new = x.ndim - len(shape)
        repeated = tuple(d for d, size in enumerate(shape, start=new) if size == 1 and x.shape[d] != 1)
        values = x.array.astype(wide(x.dtype), copy=False)
        return values.sum(axis=(*range(new), *repeated), keepdims=True).reshape(shape).astype(x.dtype, copy=False)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return expand(grad, ctx.shape), None


class Flip(Function):
    """The elements in reverse order along some dimensions"""

    @staticmethod
    def forward(ctx: Any, x: Tensor, dims: tuple[int, ...]) -> Any:
        ctx.dims = dims
        return x.array_module.flip(x.array, dims).copy()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return Flip.apply(grad, ctx.dims), None


def flip(x: Tensor, dims: tuple[Any, ...]) -> Tensor:
    """The elements in reverse order along ``dims``."""
    return Flip.apply(x, axes("flip", _sizes("flip", dims), x.ndim))


class Cat(Function):
    """Tensors one after the other along a dimension"""

    @staticmethod
    def forward(ctx: Any, dim: int, *tensors: Tensor) -> Any:
        ctx.dim, ctx.lengths = dim, [t.shape[dim] for t in tensors]
        xp, arrays = tensors[0].array_module, [t.array for t in tensors]
        while _graph.under_way and len(arrays) > 8:  # of more at once CuPy copies the addresses from the host
            arrays = [xp.concatenate(arrays[i : i + 8], axis=dim) for i in range(0, len(arrays), 8)]
        return xp.concatenate(arrays, axis=dim)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return None, *split(grad, ctx.lengths, ctx.dim)


def cat(tensors: Sequence[Tensor], dim: int = 0) -> Tensor:
    """Tensors joined along an existing dimension; all other sizes must agree."""
    tensors = list(tensors)
    if not tensors:
        raise ArgumentError("cat: at least one tensor is needed")
    if not all(isinstance(t, Tensor) for t in tensors):
        raise ArgumentError("cat: takes a list of tensors")
    same_device("cat", *tensors)
    where = axis("cat", dim, tensors[0].ndim)
    shapes = [(*t.shape[:where], *t.shape[where + 1 :]) for t in tensors]
    for number, t in enumerate(tensors):
        if t.ndim == 0 or t.ndim != tensors[0].ndim or shapes[number] != shapes[0]:
            raise ShapeError(
                f"cat: all tensors must have the same sizes except along dim {dim}; tensor 0 has shape "
                f"{tuple(tensors[0].shape)}, tensor {number} has {tuple(t.shape)}"
            )
    dtype = tensors[0].dtype
    for t in tensors[1:]:
        dtype = dtype if t.dtype == dtype else promote(Tensor(t.array_module.zeros(1, dtype)), t)
    return Cat.apply(where, *(t.to(dtype=dtype) for t in tensors))


def stack(tensors: Sequence[Tensor], dim: int = 0) -> Tensor:
    """Tensors of one shape joined along a new dimension."""
    tensors = list(tensors)
    if not tensors:
        raise ArgumentError("stack: at least one tensor is needed")
    for number, t in enumerate(tensors):
        if t.shape != tensors[0].shape:
            raise ShapeError(
                f"stack: all tensors must have one shape; tensor 0 has {tuple(tensors[0].shape)}, tensor {number} has "
                f"{tuple(t.shape)}"
            )
    return cat([unsqueeze(t, dim) for t in tensors], axis("stack", dim, tensors[0].ndim + 1))


def split(x: Tensor, split_size: int | Sequence[int], dim: int = 0) -> tuple[Tensor, ...]:
    """Consecutive pieces along ``dim``: of ``split_size`` each (the last may be smaller), or as listed."""
    where = axis("split", dim, x.ndim)
    length = x.shape[where]
    if isinstance(split_size, int):
        if split_size < 1:
            raise ArgumentError(f"split: split_size must be at least 1; got {split_size}")
        lengths = [min(split_size, length - start) for start in range(0, length, split_size)] or [0]
    else:
        lengths = list(split_size)
        if sum(lengths) != length or min(lengths, default=0) < 0:
            raise ShapeError(f"split: sizes {lengths} must add up to the size {length} of dim {dim}")
    pieces, start = [], 0
    for size in lengths:
        pieces.append(x[(slice(None),) * where + (slice(start, start + size),)])
        start += size
    return tuple(pieces)


def chunk(x: Tensor, chunks: int, dim: int = 0) -> tuple[Tensor, ...]:
    """At most ``chunks`` pieces of equal size along ``dim`` (the last may be smaller)."""
    if chunks < 1:
        raise ArgumentError(f"chunk: chunks must be at least 1; got {chunks}")
    length = x.shape[axis("chunk", dim, x.ndim)]
    return split(x, max(-(-length // chunks), 1), dim)
