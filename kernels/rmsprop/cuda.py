"""Launcher of rmsprop.cu."""

from __future__ import annotations

from typing import Any

from .._launch import BOOLS, FLOATS, Kernel
from .._tensor_list import ROOMS, Arrays, launch, rate_pointers

_STEP = Kernel(__file__, "rmsprop_step_v1_tensor_list", MAX=ROOMS, T=FLOATS, MOMENTUM=BOOLS, CENTERED=BOOLS)


def rmsprop_step(
    params: Arrays,
    grads: Arrays,
    square_avgs: Arrays,
    momentum_buffers: Arrays | None,
    grad_avgs: Arrays | None,
    lr: Any,
    alpha: float,
    eps: float,
    momentum: float,
    weight_decay: float,
) -> None:
    """As the reference's; see the package's docstring."""
    given = (params, grads, square_avgs, momentum_buffers, grad_avgs)
    flags = (momentum_buffers is not None, grad_avgs is not None)
    lists = [arrays for arrays in given if arrays is not None]
    launch(_STEP, flags, lists, *rate_pointers(lr), alpha, eps, momentum, weight_decay)
