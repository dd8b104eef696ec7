"""Launcher of adam.cu."""

from __future__ import annotations

from functools import partial
from typing import Any

from .._errors import ArgumentError
from .._faults import fault_flag, watch
from .._launch import FLOATS, Kernel
from .._tensor_list import ROOMS, Arrays, launch, rate_pointers

_TENSOR_LIST = Kernel(__file__, "adam_step_v1_tensor_list", MAX=ROOMS, T=FLOATS)
_LOADS_FIRST = Kernel(__file__, "adam_step_v2_loads_first", MAX=ROOMS, T=FLOATS)


def adam_step(
    params: Arrays,
    grads: Arrays,
    exp_avgs: Arrays,
    exp_avg_sqs: Arrays,
    lr: Any,
    step: Any,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    decoupled: bool,
    kernel: Kernel = _LOADS_FIRST,
) -> None:
    """As the reference's; see the package's docstring.

    A step below 1 leaves the arrays alone; on a GPU it is reported at the next check, since the host does
    not wait for the value.
    """
    flag = fault_flag(lr)
    rest = (step, flag, beta1, beta2, eps, weight_decay, bool(decoupled))
    launch(kernel, (), [params, grads, exp_avgs, exp_avg_sqs], *rate_pointers(lr), *rest)
    watch(flag, lambda t: ArgumentError(f"adam: step must count from 1; got {t}"))


VERSIONS = {
    "adam_step": {
        "v1_tensor_list": partial(adam_step, kernel=_TENSOR_LIST),
        "v2_loads_first": adam_step,
    }
}
