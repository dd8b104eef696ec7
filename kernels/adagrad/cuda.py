"""Launcher of adagrad.cu."""

from __future__ import annotations

from functools import partial
from typing import Any

from .._launch import FLOATS, Kernel
from .._tensor_list import ROOMS, Arrays, launch, rate_pointers

_TENSOR_LIST = Kernel(__file__, "adagrad_step_v1_tensor_list", MAX=ROOMS, T=FLOATS)
_LOADS_FIRST = Kernel(__file__, "adagrad_step_v2_loads_first", MAX=ROOMS, T=FLOATS)


def adagrad_step(
    params: Arrays,
    grads: Arrays,
    sums: Arrays,
    lr: Any,
    step: Any,
    lr_decay: float,
    eps: float,
    weight_decay: float,
    kernel: Kernel = _LOADS_FIRST,
) -> None:
    """As the reference's; see the package's docstring."""
    launch(kernel, (), [params, grads, sums], *rate_pointers(lr), step, lr_decay, eps, weight_decay)


VERSIONS = {
    "adagrad_step": {
        "v1_tensor_list": partial(adagrad_step, kernel=_TENSOR_LIST),
        "v2_loads_first": adagrad_step,
    }
}
