"""Stochastic gradient descent, compiled.

One launch for all parameters, cut into parts as in ``_simd_steps.py``.  An element of θ, g and, with momentum, v
is read once, of θ and v written once, a vector of them at a time.  Bound by memory.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from .._jit import in_parts
from .._simd import Pointer, Stage, Value, simd
from .._simd_steps import Arrays, launch, update_part


def sgd_step(
    params: Arrays,
    grads: Arrays,
    momentum_buffers: Arrays | None,
    lr: np.ndarray,
    step: np.ndarray,
    momentum: float,
    dampening: float,
    nesterov: bool,
    weight_decay: float,
) -> None:
    """As the reference's; see the package's docstring."""
    numbers = (float(lr.item()), weight_decay, momentum, 1 - dampening, step.item() == 1, nesterov)
    if momentum_buffers is None:
        launch(_step(0), [params, grads], *numbers)
    else:
        launch(_step(1), [params, grads, momentum_buffers], *numbers)


@functools.cache
def _step(momentum: int) -> Any:
    """The kernel without and with momentum."""

    @in_parts
    def step(part: int, slot: int, like: Any, objects: Any, table: Any, numbers: Any) -> None:
        _update(like, objects, table, part, numbers, momentum)

    return step


@simd
def _update(
    s: Stage, like: Pointer, objects: Pointer, table: Pointer, part: Value, numbers: Pointer, with_momentum: int
) -> None:
    def update(*values: Value) -> tuple[Value | None, ...]:
        theta, g, *buffers = values[:-6]
        rate, decay, momentum, share, first, nesterov = values[-6:]
        g = decay.equals(0.0).where(g, theta * decay + g)
        if not with_momentum:
            return theta - g * rate, None
        v = first.equals(1.0).where(g, buffers[0] * momentum + g * share)
        d = nesterov.equals(1.0).where(v * momentum + g, v)
        return theta - d * rate, None, v

    update_part(s, like, objects, table, part, numbers, update, lists=2 + with_momentum, count=6)
