"""Checks of constructor arguments, and the parameters that layers make."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ...kernels._devices import device_named
from ...kernels._dtypes import FLOATS, HALVES
from ...kernels._errors import ArgumentError, DtypeError
from ..module import Parameter


def count(layer: str, argument: str, value: Any, least: int = 1) -> int:
    """``value``, which must be an integer of at least ``least``."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
        raise ArgumentError(f"{layer}: {argument} must be an integer of at least {least}; got {value!r}")
    return int(value)


def axis(layer: str, argument: str, value: Any) -> int:
    """``value``, which must be an integer; negative ones count from the end."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise ArgumentError(f"{layer}: {argument} must be an integer; got {value!r}")
    return int(value)


def number(layer: str, argument: str, value: Any, least: float = -math.inf, most: float = math.inf) -> float:
    """``value``, which must be a finite number in [least, most]."""
    is_number = isinstance(value, int | float | np.number) and not isinstance(value, bool)
    if not is_number or not math.isfinite(value) or not least <= value <= most:
        low, high = (
            f" {sign} {bound:g}" if math.isfinite(bound) else "" for sign, bound in ((">=", least), ("<=", most))
        )
        bounds = f"{low} and{high}" if low and high else low + high
        raise ArgumentError(f"{layer}: {argument} must be a finite number{bounds}; got {value!r}")
    return float(value)


def parameter(shape: tuple[int, ...], device: str | None, dtype: Any) -> Parameter:
    """A parameter of zeros, for an initialisation to fill; on the CPU and in float32 by default."""
    return Parameter(array_of_zeros(shape, device, dtype))


def array_of_zeros(shape: tuple[int, ...], device: str | None, dtype: Any) -> Any:
    """An array of zeros on ``device`` (the CPU if None) of a floating ``dtype`` (float32 if None)."""
    kind = np.dtype(np.float32 if dtype is None else dtype)
    if kind not in (*FLOATS, *HALVES):
        raise DtypeError(f"parameter: dtype must be float32, float64, float16 or bfloat16; got {kind}")
    return device_named(device or "cpu").array_module.zeros(shape, kind)
