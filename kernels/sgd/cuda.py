"""Launcher of sgd.cu."""

from __future__ import annotations

from functools import partial
from typing import Any

from .._launch import BOOLS, FLOATS, Kernel
from .._tensor_list import ROOMS, Arrays, launch, rate_pointers

_TENSOR_LIST = Kernel(__file__, "sgd_step_v1_tensor_list", MAX=ROOMS, T=FLOATS, MOMENTUM=BOOLS)
_LOADS_FIRST = Kernel(__file__, "sgd_step_v2_loads_first", MAX=ROOMS, T=FLOATS, MOMENTUM=BOOLS)


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
    kernel: Kernel = _LOADS_FIRST,
) -> None:
    """As the reference's; see the package's docstring."""
    lists = [params, grads] if momentum_buffers is None else [params, grads, momentum_buffers]
    flags = (momentum_buffers is not None,)
    launch(kernel, flags, lists, *rate_pointers(lr), step, momentum, dampening, bool(nesterov), weight_decay)


VERSIONS = {
    "sgd_step": {
        "v1_tensor_list": partial(sgd_step, kernel=_TENSOR_LIST),
        "v2_loads_first": sgd_step,
    }
}
