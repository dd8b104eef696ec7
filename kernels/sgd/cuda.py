"""Launcher of sgd.cu."""

from __future__ import annotations

from typing import Any

from .._launch import BOOLS, FLOATS, Kernel
from .._tensor_list import ROOMS, Arrays, launch, rate_pointers

_STEP = Kernel(__file__, "sgd_step_v1_tensor_list", MAX=ROOMS, T=FLOATS, MOMENTUM=BOOLS)


def sgd_step(
    params: Arrays,
    grads: Arrays,
    momentum_buffers: Arrays | None,
    lr: Any,
    step: Any,
    momentum: float,
    dampening: float,
    nesterov: bool,
    weight_decay: float,
) -> None:
    """As the reference's; see the package's docstring."""
    lists = [params, grads] if momentum_buffers is None else [params, grads, momentum_buffers]
    flags = (momentum_buffers is not None,)
    launch(_STEP, flags, lists, *rate_pointers(lr), step, momentum, dampening, bool(nesterov), weight_decay)
