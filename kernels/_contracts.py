"""Checks that every operation makes of its arguments, with messages of one form.

Each message names the operation and the argument, says what was expected and what came:
``conv2d: weight must have 4 dimensions (K, C/groups, R, S); got shape (20, 25)``.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ._devices import device_of
from ._dtypes import FLOATS as FLOATS
from ._dtypes import is_half
from ._errors import ArgumentError, DeviceError, DtypeError, ShapeError

#: Kernels index with 32 bits.
MAX_ELEMENTS = 2**31 - 1
INTEGERS = tuple(np.dtype(t) for t in ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"))


def common_device(operation: str, **arrays: Any) -> str:
    """The name of the one device on which all ``arrays`` (None is skipped) live."""
    device = first = None
    for argument, array in arrays.items():
        if array is None:
            continue
        try:
            here = device_of(array)
        except DeviceError as error:
            raise DeviceError(f"{operation}: {argument}: {error}") from None
        if array.size > MAX_ELEMENTS:
            raise ShapeError(f"{operation}: {argument} has {array.size} elements; at most {MAX_ELEMENTS} are supported")
        if device is None:
            device, first = here, argument
        elif here is not device:  # two devices may have one name: a GPU and the simulated one
            raise DeviceError(
                f"{operation}: all arguments must be on one device; {first} is on {device}, {argument} on {here}"
            )
    if device is None:
        raise ArgumentError(f"{operation}: no array given")
    return device.name


def common_float(operation: str, *, halves: bool = False, **arrays: Any) -> np.dtype:
    """The one floating dtype of all ``arrays`` (None is skipped); kernels refuse mixed dtypes.

    Args:
        halves: whether the operation takes float16 and bfloat16.
    """
    dtype = first = None
    for argument, array in arrays.items():
        if array is None:
            continue
        if array.dtype not in FLOATS and not (halves and is_half(array.dtype)):
            raise float_error(operation, argument, array.dtype, halves)
        if dtype is None:
            dtype, first = array.dtype, argument
        elif array.dtype != dtype:
            raise DtypeError(
                f"{operation}: all arguments must have one dtype; {first} is {dtype}, {argument} is {array.dtype}"
            )
    if dtype is None:
        raise ArgumentError(f"{operation}: no array given")
    return dtype


def float_error(operation: str, argument: str, dtype: np.dtype, halves: bool = False) -> DtypeError:
    """What is raised for an argument that is of no floating dtype that the operation takes."""
    known = "float32, float64, float16 or bfloat16" if halves else "float32 or float64"
    advice = '; it has no kernels for halves: convert by .to("float32") first' if is_half(dtype) else ""
    return DtypeError(f"{operation}: {argument} must be {known}; got {dtype}{advice}")


def check_integer(operation: str, **arrays: Any) -> None:
    """Each array must have an integer dtype."""
    for argument, array in arrays.items():
        if array.dtype not in INTEGERS:
            raise DtypeError(f"{operation}: {argument} must have an integer dtype; got {array.dtype}")


def check_rank(operation: str, argument: str, array: Any, legend: str) -> None:
    """``array`` must have as many dimensions as ``legend`` (``"N C H W"``) has names."""
    names = legend.split()
    if array.ndim != len(names):
        raise ShapeError(
            f"{operation}: {argument} must have {len(names)} dimensions ({', '.join(names)}); "
            f"got shape {tuple(array.shape)}"
        )


def check_shape(operation: str, argument: str, array: Any, expected: tuple[int, ...], legend: str = "") -> None:
    """``array`` must have exactly the shape ``expected``, explained by ``legend``."""
    if tuple(array.shape) != expected:
        meaning = f"({', '.join(legend.split())}) = " if legend else ""
        raise ShapeError(f"{operation}: {argument} must have shape {meaning}{expected}; got {tuple(array.shape)}")


def check_out(operation: str, out: Any, shape: tuple[int, ...], dtype: np.dtype, device: str, *inputs: Any) -> None:
    """``out`` (None is fine) must be able to take the result and must not overlap an input."""
    if out is None:
        return
    if device_of(out).name != device:
        raise DeviceError(f"{operation}: out must be on {device!r} like the inputs; it is on {device_of(out).name!r}")
    check_shape(operation, "out", out, shape)
    if out.dtype != dtype:
        raise DtypeError(f"{operation}: out must be {dtype} like the result; got {out.dtype}")
    module = device_of(out).array_module
    if any(array is not None and module.may_share_memory(out, array) for array in inputs):
        raise ArgumentError(f"{operation}: out overlaps an input in memory")


def pair(operation: str, argument: str, value: int | tuple[int, int], least: int) -> tuple[int, int]:
    """``value`` as (vertical, horizontal) integers, each at least ``least``."""
    both = (value, value) if isinstance(value, int | np.integer) else value
    try:
        vertical, horizontal = both
    except (TypeError, ValueError):
        raise ArgumentError(
            f"{operation}: {argument} must be an integer or a pair of integers; got {value!r}"
        ) from None
    for number in (vertical, horizontal):
        if isinstance(number, bool) or not isinstance(number, int | np.integer) or number < least:
            raise ArgumentError(f"{operation}: {argument} must be integers of at least {least}; got {value!r}")
    return int(vertical), int(horizontal)


def deliver(result: Any, out: Any) -> Any:
    """``result`` itself, or ``out`` with the result written into it."""
    if out is None:
        return result
    out[...] = result
    return out
