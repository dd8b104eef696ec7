"""Launcher of rmsprop.cu."""

from __future__ import annotations

from functools import partial
from typing import Any

from .._launch import BOOLS, FLOATS, Kernel
from .._tensor_list import ROOMS, Arrays, launch, rate_pointers

_TENSOR_LIST = Kernel(__file__, "rmsprop_step_v1_tensor_list", MAX=ROOMS, T=FLOATS, MOMENTUM=BOOLS, CENTERED=BOOLS)
_LOADS_FIRST = Kernel(__file__, "rmsprop_step_v2_loads_first", MAX=ROOMS, T=FLOATS, MOMENTUM=BOOLS, CENTERED=BOOLS)


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
    kernel: Kernel = _LOADS_FIRST,
) -> None:
    """As the reference's; see the package's docstring."""
    given = (params, grads, square_avgs, momentum_buffers, grad_avgs)
    flags = (momentum_buffers is not None, grad_avgs is not None)
    lists = [arrays for arrays in given if arrays is not None]
    launch(kernel, flags, lists, *rate_pointers(lr), alpha, eps, momentum, weight_decay)


VERSIONS = {
    "rmsprop_step": {
        "v1_tensor_list": partial(rmsprop_step, kernel=_TENSOR_LIST),
        "v2_loads_first": rmsprop_step,
    }
}
