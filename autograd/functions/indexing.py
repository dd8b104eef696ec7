"""Reading and writing parts of a tensor: slices, integers, masks and integer tensors."""

from __future__ import annotations

from typing import Any

import numpy as np

from ...kernels._errors import DeviceError, DtypeError, IndexRangeError, ShapeError
from ..function import Function
from ..graph import is_grad_enabled
from ..tensor import Tensor
from ._operands import as_operand, raw, sum_to


def _raw_index(index: Any) -> Any:
    """``index`` with tensors replaced by their arrays; floats are refused."""
    if isinstance(index, tuple):
        return tuple(map(_raw_index, index))
    if isinstance(index, Tensor) and index.dtype.kind == "f":
        raise DtypeError(f"indexing: index tensors must be integers or booleans; got {index.dtype}")
    return raw(index)


def _is_basic(index: Any) -> bool:
    """Whether ``index`` picks each element at most once by position alone (slices, integers, None, ...)."""
    parts = index if isinstance(index, tuple) else (index,)
    return all(p is None or p is Ellipsis or isinstance(p, slice | int | np.integer) for p in parts) and not any(
        isinstance(p, bool) for p in parts
    )


def _refused(error: Exception, shape: tuple[int, ...]) -> Exception:
    kind = IndexRangeError if isinstance(error, IndexError) else ShapeError
    return kind(f"indexing a tensor of shape {tuple(shape)}: {error}")


class GetItem(Function):
    """x[index]"""

    @staticmethod
    def forward(ctx: Any, x: Tensor, index: Any) -> Any:
        ctx.shape, ctx.index = x.shape, index
        try:
            return x.array[index]
        except (IndexError, ValueError) as error:
            raise _refused(error, x.shape) from None

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return Scatter.apply(grad, ctx.shape, ctx.index), None


class Scatter(Function):
    """Zeros with the argument added at an index: the adjoint of :class:`GetItem`"""

    @staticmethod
    def forward(ctx: Any, x: Tensor, shape: tuple[int, ...], index: Any) -> Any:
        ctx.index = index
        xp = x.array_module
        result = xp.zeros(shape, x.dtype)
        if _is_basic(index):
            result[index] = x.array
        else:
            xp.add.at(result, index, x.array)
        return result

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return GetItem.apply(grad, ctx.index), None, None


class SetItem(Function):
    """A copy of x with x[index] = value"""

    @staticmethod
    def forward(ctx: Any, x: Tensor, value: Any, index: Any) -> Any:
        ctx.index, ctx.value_shape = index, raw(value).shape if isinstance(value, Tensor) else ()
        result = x.array.copy()
        _assign(result, index, raw(value))
        return result

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        wanted = ctx.needs_input_grad
        kept = SetItem.apply(grad, 0.0, ctx.index) if wanted[0] else None
        written = sum_to(GetItem.apply(grad, ctx.index), ctx.value_shape) if wanted[1] else None
        return kept, written, None


def get(x: Tensor, index: Any) -> Tensor:
    """``x[index]``; a view where only slices and integers are used."""
    return GetItem.apply(x, _raw_index(index))


def put(x: Tensor, index: Any, value: Any) -> None:
    """``x[index] = value``, in place."""
    operand = as_operand("indexing", value, x)
    if operand is None:
        operand = Tensor(value)
    if isinstance(operand, Tensor):
        if operand.dtype.kind == "f" and x.dtype.kind != "f":
            raise DtypeError(f"indexing: values of {operand.dtype} cannot be written into a tensor of {x.dtype}")
        if operand.device != x.device:
            raise DeviceError(f"indexing: the tensor is on {x.device!r}, the values on {operand.device!r}")
        operand = operand.to(dtype=x.dtype)
    elif isinstance(operand, float) and x.dtype.kind != "f":
        raise DtypeError(f"indexing: a float cannot be written into a tensor of {x.dtype}")
    raw_index = _raw_index(index)
    on_tape = x.requires_grad or (isinstance(operand, Tensor) and operand.requires_grad)
    if on_tape and is_grad_enabled():
        x._write(SetItem.apply(x._same(), operand, raw_index))
        return
    _assign(x.array, raw_index, raw(operand))
    x.written()


def _assign(array: Any, index: Any, value: Any) -> None:
    try:
        array[index] = value
    except (IndexError, ValueError) as error:
        raise _refused(error, array.shape) from None
