"""Reading and writing parts of a tensor: slices, integers, masks and integer tensors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from ...kernels import _graph
from ...kernels._devices import is_array
from ...kernels._dtypes import FLOATS, kind_of, wide
from ...kernels._errors import DtypeError, IndexRangeError, ShapeError
from ...kernels.embedding import embedding_backward
from ..function import Function
from ..graph import is_grad_enabled
from ..tensor import Tensor, apart
from ._operands import as_operand, raw, same_device, sum_to


class _Array(int):
    """In an index: stands for the array of this number, which is kept apart, among the saved tensors."""


def _take_apart(x: Tensor, index: Any) -> tuple[Any, list[Tensor]]:
    """``index`` with :class:`_Array` for each array in it, and those arrays as tensors on x's device."""
    parts, arrays = [], []
    for part in index if isinstance(index, tuple) else (index,):
        if isinstance(part, list | np.ndarray | np.bool_):  # from the host to wherever x is
            array = np.asarray(part)
            part = Tensor(array if array.size or array.dtype == np.bool_ else array.astype(np.int64)).to(
                device=x.device
            )
        elif is_array(part):
            part = Tensor(part)
        if isinstance(part, Tensor):
            if kind_of(part.dtype) == "f":
                raise DtypeError(f"indexing: index tensors must be integers or booleans; got {part.dtype}")
            same_device("indexing", x, part)
            arrays.append(part)
            part = _Array(len(arrays) - 1)
        parts.append(part)
    if arrays and x.device != "cpu":  # NumPy looks itself; on a GPU such an index reads another element instead
        _check_range(x.shape, parts, arrays)
    return tuple(parts), arrays


def _check_range(shape: tuple[int, ...], parts: list[Any], arrays: list[Tensor]) -> None:
    """Every integer in ``arrays`` must be in the range of the dimension that it selects from."""
    _graph.refuse("an index tensor was looked through on the host", "F.embedding and where select on the device")

    def dimensions(part: Any) -> int:
        if part is None or part is Ellipsis or isinstance(part, bool):
            return 0
        mask = isinstance(part, _Array) and arrays[part].dtype == np.bool_
        return arrays[part].ndim if mask else 1

    dim, rest = 0, len(shape) - sum(map(dimensions, parts))
    for part in parts:
        if isinstance(part, _Array) and arrays[part].dtype != np.bool_ and dim < len(shape):
            index, size = arrays[part].array.astype(np.int64, copy=False).reshape(-1), shape[dim]
            bad = (index < -size) | (index >= size)
            if index.size and bool(bad.any()):
                first = int(index[int(bad.argmax())])
                raise IndexRangeError(
                    f"indexing a tensor of shape {tuple(shape)}: index {first} is out of bounds for axis {dim} with "
                    f"size {size}"
                )
        dim += rest if part is Ellipsis else dimensions(part)


def _put_together(index: tuple[Any, ...], arrays: Sequence[Tensor]) -> tuple[Any, ...]:
    return tuple(arrays[part].array if isinstance(part, _Array) else part for part in index) if arrays else index


def _refused(error: Exception, shape: tuple[int, ...]) -> Exception:
    kind = IndexRangeError if isinstance(error, IndexError) else ShapeError
    return kind(f"indexing a tensor of shape {tuple(shape)}: {error}")


def _assign(array: Any, index: tuple[Any, ...], value: Any) -> None:
    try:
        array[index] = value
    except (IndexError, ValueError) as error:
        raise _refused(error, array.shape) from None


class GetItem(Function):
    """x[index]"""

    @staticmethod
    def forward(ctx: Any, x: Tensor, index: tuple[Any, ...], *arrays: Tensor) -> Any:
        ctx.shape, ctx.index = x.array.shape, index
        ctx.save_for_backward(*arrays)
        try:
            return x.array[_put_together(index, arrays)]
        except (IndexError, ValueError) as error:
            raise _refused(error, x.shape) from None

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        arrays = ctx.saved_tensors
        return Scatter.apply(grad, ctx.shape, ctx.index, *arrays), None, *(None,) * len(arrays)


class Scatter(Function):
    """Zeros with the argument added at an index: the adjoint of :class:`GetItem`"""

    @staticmethod
    def forward(ctx: Any, x: Tensor, shape: tuple[int, ...], index: tuple[Any, ...], *arrays: Tensor) -> Any:
        ctx.index = index
        ctx.save_for_backward(*arrays)
        xp = x.array_module
        if all(array.dtype == np.bool_ for array in arrays):  # no element is picked twice
            result = xp.zeros(shape, x.dtype)
            result[_put_together(index, arrays)] = x.array
            return result
        if wide(x.dtype) not in FLOATS:
            result = xp.zeros(shape, x.dtype)
            xp.add.at(result, _put_together(index, arrays), x.array)
            return result
        # What is picked several times adds up, always in one order: as the rows of a table do.
        if index == (0,):  # that is, _Array(0) alone: whole rows
            count, places = shape[0], arrays[0].array.astype(np.int64, copy=False)
            places = xp.where(places < 0, places + count, places)
        else:
            count = math.prod(shape)
            places = xp.arange(count).reshape(shape)[_put_together(index, arrays)]
        columns = math.prod(shape) // max(count, 1)
        values = x.array.astype(wide(x.dtype), copy=False).reshape(*places.shape, columns)
        return embedding_backward(values, places, count).reshape(shape).astype(x.dtype, copy=False)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        arrays = ctx.saved_tensors
        return GetItem.apply(grad, ctx.index, *arrays), None, None, *(None,) * len(arrays)


class SetItem(Function):
    """A copy of x with x[index] = value"""

    @staticmethod
    def forward(ctx: Any, x: Tensor, value: Any, index: tuple[Any, ...], *arrays: Tensor) -> Any:
        ctx.index, ctx.value_shape = index, value.shape if isinstance(value, Tensor) else ()
        ctx.save_for_backward(*arrays)
        result = x.array.copy()
        _assign(result, _put_together(index, arrays), raw(value))
        return result

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        arrays, wanted = ctx.saved_tensors, ctx.needs_input_grad
        kept = SetItem.apply(grad, 0.0, ctx.index, *arrays) if wanted[0] else None
        written = sum_to(GetItem.apply(grad, ctx.index, *arrays), ctx.value_shape) if wanted[1] else None
        return kept, written, None, *(None,) * len(arrays)


def get(x: Tensor, index: Any) -> Tensor:
    """``x[index]``; a view where only slices and integers are used."""
    parts, arrays = _take_apart(x, index)
    return GetItem.apply(x, parts, *arrays)


def put(x: Tensor, index: Any, value: Any) -> None:
    """``x[index] = value``, in place."""
    operand = as_operand("indexing", value, x)
    if operand is None:
        operand = Tensor(value)
    if isinstance(operand, Tensor):
        if kind_of(operand.dtype) == "f" and kind_of(x.dtype) != "f":
            raise DtypeError(f"indexing: values of {operand.dtype} cannot be written into a tensor of {x.dtype}")
        same_device("indexing", x, operand)
        operand = operand.to(dtype=x.dtype)
    elif isinstance(operand, float) and kind_of(x.dtype) != "f":
        raise DtypeError(f"indexing: a float cannot be written into a tensor of {x.dtype}")
    parts, arrays = _take_apart(x, index)
    on_tape = x.requires_grad or (isinstance(operand, Tensor) and operand.requires_grad)
    if on_tape and is_grad_enabled():
        x._write(SetItem.apply(x._same(), operand, parts, *arrays))
        return
    _assign(x.array, _put_together(parts, arrays), apart(x.array, raw(operand)))
    x.written()
