"""Launcher of adagrad.cu."""

from __future__ import annotations

from typing import Any

from .._launch import FLOATS, Kernel
from .._tensor_list import ROOMS, Arrays, launch, rate_pointers

_STEP = Kernel(__file__, "adagrad_step_v1_tensor_list", MAX=ROOMS, T=FLOATS)


def adagrad_step(
    params: Arrays, grads: Arrays, sums: Arrays, lr: Any, step: Any, lr_decay: float, eps: float, weight_decay: float
) -> None:
    """As the reference's; see the package's docstring."""
    launch(_STEP, (), [params, grads, sums], *rate_pointers(lr), step, lr_decay, eps, weight_decay)
