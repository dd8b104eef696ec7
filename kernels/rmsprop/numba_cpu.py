"""RMSProp, compiled.

One launch for all parameters, cut into parts as in ``_simd_steps.py``.  An element of θ, g, s and, if there are
any, v and m is read once, of all but g written once, a vector of them at a time.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from .._jit import in_parts
from .._simd import Pointer, Stage, Value, simd
from .._simd_steps import Arrays, launch, update_part


def rmsprop_step(
    params: Arrays,
    grads: Arrays,
    square_avgs: Arrays,
    momentum_buffers: Arrays | None,
    grad_avgs: Arrays | None,
    lr: np.ndarray,
    alpha: float,
    eps: float,
    momentum: float,
    weight_decay: float,
) -> None:
    """As the reference's; see the package's docstring."""
    lists = [params, grads, square_avgs, *(arrays for arrays in (momentum_buffers, grad_avgs) if arrays is not None)]
    kernel = _step(int(momentum_buffers is not None), int(grad_avgs is not None))
    launch(kernel, lists, float(lr.item()), weight_decay, alpha, 1 - alpha, eps, momentum)


@functools.cache
def _step(momentum: int, centered: int) -> Any:
    """The kernel with or without the two lists that are optional."""

    @in_parts
    def step(part: int, slot: int, like: Any, objects: Any, table: Any, numbers: Any) -> None:
        _update(like, objects, table, part, numbers, momentum, centered)

    return step


@simd
def _update(
    s: Stage,
    like: Pointer,
    objects: Pointer,
    table: Pointer,
    part: Value,
    numbers: Pointer,
    with_momentum: int,
    centered: int,
) -> None:
    def update(*values: Value) -> tuple[Value | None, ...]:
        theta, g, square, *optional = values[:-6]
        rate, decay, alpha, rest, eps, momentum = values[-6:]
        g = decay.equals(0.0).where(g, theta * decay + g)
        square = square * alpha + g * g * rest
        variance = square
        if centered:
            mean = optional[-1] = optional[-1] * alpha + g * rest
            variance = square - mean * mean
            variance = (variance < 0.0).where(0.0, variance)  # NaN stays
        d = g / (s.sqrt(variance) + eps)
        if with_momentum:
            d = optional[0] = optional[0] * momentum + d
        return theta - d * rate, None, square, *optional

    update_part(s, like, objects, table, part, numbers, update, lists=3 + with_momentum + centered, count=6)
