"""What the Functions share: dimensions, promotion of dtypes, undoing a broadcast."""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable
from typing import Any

import numpy as np

from ...kernels._devices import device_of, is_array
from ...kernels._dtypes import is_half, kind_of
from ...kernels._errors import ArgumentError, DeviceError, IndexRangeError, ShapeError
from ..tensor import DEFAULT_FLOAT, Tensor

#: A decorator: NaN and infinity travel silently.  (NumPy's warnings are its own affair; others give none.)
quiet = np.errstate(all="ignore")

_CATEGORY = {"b": 0, "i": 1, "u": 1, "f": 2}


def axis(operation: str, dim: Any, ndim: int) -> int:
    """``dim`` counted from the front; a tensor without dimensions takes 0 and -1, as in torch."""
    try:
        number = operator.index(dim)
    except TypeError:
        raise ArgumentError(f"{operation}: dim must be an integer; got {dim!r}") from None
    size = max(ndim, 1)
    if not -size <= number < size:
        raise IndexRangeError(f"{operation}: dim must be in [{-size}, {size - 1}]; got {number}")
    return number % size


def axes(operation: str, dim: Any, ndim: int) -> tuple[int, ...]:
    """``dim`` (None: all, an integer or several) as sorted dimensions counted from the front."""
    if dim is None:
        return tuple(range(ndim))
    several = tuple(dim) if isinstance(dim, list | tuple) else (dim,)
    found = tuple(sorted(axis(operation, d, ndim) for d in several))
    if len(set(found)) != len(found):
        raise ArgumentError(f"{operation}: dim names a dimension twice: {dim}")
    return found if ndim else ()


def promote(a: Any, b: Any) -> np.dtype:
    """The dtype of a result, by torch's rules.

    Booleans, integers and floats are three categories.  Within a category the wider dtype wins; a
    tensor with dimensions is widened neither by a scalar nor by a tensor without dimensions of its
    own category or a lower one.
    """
    ranks = [_CATEGORY[kind_of(x.dtype)] for x in (a, b)]
    if (a.ndim == 0) != (b.ndim == 0):
        scalar = 0 if a.ndim == 0 else 1
        if ranks[scalar] <= ranks[1 - scalar]:
            return (a, b)[1 - scalar].dtype
    if ranks[0] != ranks[1]:
        return (a if ranks[0] > ranks[1] else b).dtype
    if a.dtype != b.dtype and is_half(a.dtype) and is_half(b.dtype):
        return DEFAULT_FLOAT  # the smallest that holds both
    return np.promote_types(a.dtype, b.dtype)


def in_float32(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A decorator for functions of a tensor: halves are computed with in float32, and the result is rounded once."""

    @functools.wraps(function)
    def call(x: Tensor, *args: Any, **options: Any) -> Tensor:
        dtype = x.array.dtype
        if not is_half(dtype):
            return function(x, *args, **options)
        return function(x.to(dtype=DEFAULT_FLOAT), *args, **options).to(dtype=dtype)

    return call


def scalar_dtype(tensor: Tensor, scalar: bool | int | float) -> np.dtype:
    """The dtype of ``tensor`` combined with a Python scalar: only a higher category changes it."""
    dtype: np.dtype = tensor.array.dtype
    if kind_of(dtype) == "f" or isinstance(scalar, bool):
        return dtype
    if isinstance(scalar, int):
        return np.dtype(np.int64) if dtype.kind == "b" else dtype
    return DEFAULT_FLOAT


def as_operand(operation: str, value: Any, like: Tensor) -> Any:
    """``value`` as a tensor, or as a Python scalar; None if it is neither."""
    if isinstance(value, (Tensor, float, int)) and not isinstance(value, np.generic):
        return value
    if isinstance(value, np.generic):
        return value.item()
    if is_array(value):
        operand = Tensor(value)
        same_device(operation, like, operand)
        return operand
    return None


def same_device(operation: str, *tensors: Tensor) -> None:
    """All ``tensors`` must be on one device."""
    first = device_of(tensors[0].array)
    for tensor in tensors:
        device = device_of(tensor.array)
        if device is not first:
            raise DeviceError(f"{operation}: all tensors must be on one device; got {first} and {device}")


def raw(value: Any) -> Any:
    """The array of a tensor, anything else as it is."""
    return value.array if isinstance(value, Tensor) else value


def broadcast_shape(operation: str, *shapes: tuple[int, ...]) -> tuple[int, ...]:
    """The shape that all ``shapes`` broadcast to."""
    longest = max(shapes, key=len)
    result = list(longest)
    for shape in shapes:
        for d, size in enumerate(shape, start=len(longest) - len(shape)):
            if size != result[d] and size != 1:
                if result[d] != 1:
                    listed = " and ".join(str(tuple(s)) for s in shapes)
                    raise ShapeError(
                        f"{operation}: shapes {listed} do not broadcast together; from the last dimension backwards, "
                        "sizes must be equal or 1"
                    )
                result[d] = size
    return tuple(result)


def sum_to(gradient: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The gradient of a broadcast: summed over what was repeated, back to ``shape``."""
    if gradient.shape == shape:
        return gradient
    from .shape import SumTo

    return SumTo.apply(gradient, shape)
