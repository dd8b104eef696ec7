"""AdaGrad, compiled.

One launch for all parameters, cut into parts as in ``_simd_steps.py``.  An element of θ, g and s is read once,
of θ and s written once, a vector of them at a time.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .._jit import in_parts
from .._simd import Pointer, Stage, Value, simd
from .._simd_steps import Arrays, launch, update_part


def adagrad_step(
    params: Arrays,
    grads: Arrays,
    sums: Arrays,
    lr: np.ndarray,
    step: np.ndarray,
    lr_decay: float,
    eps: float,
    weight_decay: float,
) -> None:
    """As the reference's; see the package's docstring."""
    rate = float(lr.item()) / (1 + (step.item() - 1) * lr_decay)
    launch(_step, [params, grads, sums], rate, weight_decay, eps)


@in_parts
def _step(part: int, slot: int, like: Any, objects: Any, table: Any, numbers: Any) -> None:
    _update(like, objects, table, part, numbers)


@simd
def _update(s: Stage, like: Pointer, objects: Pointer, table: Pointer, part: Value, numbers: Pointer) -> None:
    def update(*values: Value) -> tuple[Value | None, ...]:
        theta, g, total, rate, decay, eps = values
        g = decay.equals(0.0).where(g, theta * decay + g)
        total = total + g * g
        return theta - g / (s.sqrt(total) + eps) * rate, None, total

    update_part(s, like, objects, table, part, numbers, update, lists=3, count=3)
