"""Checks that the optimizer steps share: lists of arrays, and the one-element arrays lr and step.

They run at every training step, where small models notice microseconds.  So :func:`_fit` says quickly
that all is as it should be; what it does not vouch for is checked one by one, and refused by name.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ._contracts import FLOATS, MAX_ELEMENTS, common_device, common_float
from ._devices import device_of, is_array
from ._errors import ArgumentError, DtypeError, ShapeError

_INT64 = np.dtype(np.int64)
_FLOAT64 = np.dtype(np.float64)
Arrays = Sequence[Any]


def check_lists(operation: str, lr: Any, step: Any = None, **lists: Arrays | None) -> str:
    """Check the arguments of an optimizer step against each other.

    Args:
        lr: one element of float64 or the parameters' dtype.
        step: one int64, or None if the operation takes none.
        lists: ``params`` first, then lists (None is skipped) of as many arrays of the same shapes;
            all arrays are of one floating dtype, on the device of ``lr``.

    Returns:
        The name of the device.
    """
    if _fit(lr, step, lists):
        return device_of(lr).name
    device = common_device(operation, lr=lr, step=step)
    for argument, scalar in (("lr", lr), ("step", step)):
        if scalar is not None and scalar.size != 1:
            raise ShapeError(f"{operation}: {argument} must have one element; got shape {tuple(scalar.shape)}")
    if step is not None and step.dtype != _INT64:
        raise DtypeError(f"{operation}: step must be int64; got {step.dtype}")
    params = lists["params"]
    assert params is not None
    given = [(name, arrays) for name, arrays in lists.items() if arrays is not None]
    for name, arrays in given:
        if len(arrays) != len(params):
            raise ShapeError(
                f"{operation}: {name} must have as many arrays as params, {len(params)}; got {len(arrays)}"
            )
    dtype = _FLOAT64
    if params:
        common_device(operation, lr=lr, **{"params[0]": params[0]})
        dtype = common_float(operation, **{"params[0]": params[0]})
    if lr.dtype != _FLOAT64 and lr.dtype != dtype:
        raise DtypeError(f"{operation}: lr must be float64 or {dtype} like the parameters; got {lr.dtype}")
    kind = type(lr)
    for name, arrays in given:
        for array, param in zip(arrays, params, strict=True):
            if type(array) is not kind or array.dtype != dtype or array.shape != param.shape:
                _refuse(operation, lr, name, arrays, params)
    return device


def _fit(lr: Any, step: Any, lists: dict[str, Arrays | None]) -> bool:
    """Whether the arguments are right beyond doubt; dtypes are, if they are the very objects that NumPy has."""
    params = lists["params"]
    if not params or not is_array(lr) or type(params[0]) is not type(lr):
        return False
    kind, dtype = type(lr), params[0].dtype
    if dtype not in FLOATS or params[0].size > MAX_ELEMENTS:
        return False
    if lr.size != 1 or (lr.dtype is not _FLOAT64 and lr.dtype is not dtype):
        return False
    if step is not None and (type(step) is not kind or step.size != 1 or step.dtype is not _INT64):
        return False
    shapes = None
    for arrays in lists.values():
        if arrays is None:
            continue
        for array in arrays:
            if type(array) is not kind or array.dtype is not dtype:
                return False
        of_list = [array.shape for array in arrays]
        shapes = shapes or of_list
        if of_list != shapes:
            return False
    return True


def _refuse(operation: str, lr: Any, name: str, arrays: Arrays, params: Arrays) -> None:
    """Raise the error about the first array of list ``name`` that does not fit."""
    for i, (array, param) in enumerate(zip(arrays, params, strict=True)):
        argument = f"{name}[{i}]"
        common_device(operation, lr=lr, **{argument: array})
        if array is not params[0]:
            common_float(operation, **{"params[0]": params[0], argument: array})
        if array.shape != param.shape:
            raise ShapeError(
                f"{operation}: {argument} must have the shape of params[{i}], {tuple(param.shape)}; "
                f"got {tuple(array.shape)}"
            )


def check_options(operation: str, **options: float) -> None:
    """Each option must be finite and at least 0."""
    for name, value in options.items():
        if not 0 <= value < float("inf"):
            raise ArgumentError(f"{operation}: {name} must be finite and >= 0; got {value!r}")


def check_decay_rates(operation: str, **options: float) -> None:
    """Each option, the share of the past in a running average, must be in [0, 1)."""
    for name, value in options.items():
        if not 0 <= value < 1:
            raise ArgumentError(f"{operation}: {name} must be in [0, 1); got {value!r}")
