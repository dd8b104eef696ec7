"""``SGD``: plain, with momentum, with Nesterov's momentum."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from ...kernels.sgd import sgd_step
from .optimizer import Group, Optimizer, require, require_not_negative


class SGD(Optimizer):
    """Stochastic gradient descent.

    With g the gradient, to which weight_decay·p is added first::

        v = momentum·v + (1 - dampening)·g      (v = g in the first step)
        p = p - lr·v                            plain: v = g;  nesterov: v = g + momentum·v

    Args:
        params: tensors, or groups of them.
        lr: learning rate.
        momentum, dampening, weight_decay: as above (weight_decay is an L2 penalty).
        nesterov: needs momentum and no dampening.

    Source: Sutskever et al. 2013, in torch's form.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        momentum: float = 0.0,
        dampening: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
    ) -> None:
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "dampening": dampening,
            "weight_decay": weight_decay,
            "nesterov": nesterov,
        }
        super().__init__(params, defaults)

    def _check(self, group: Group) -> None:
        require_not_negative("SGD", group, "lr", "momentum", "weight_decay")
        require("SGD", "dampening", group["dampening"], True, "a real number")
        if group["nesterov"]:
            require("SGD", "momentum", group["momentum"], group["momentum"] > 0, "positive with nesterov")
            require("SGD", "dampening", group["dampening"], group["dampening"] == 0, "0 with nesterov")

    def _slots(self, group: Group) -> tuple[str, ...]:
        return ("momentum_buffer",) if group["momentum"] else ()

    def _update(
        self, group: Group, params: list[Any], grads: list[Any], slots: dict[str, list[Any]], lr: Any, step: Any
    ) -> None:
        sgd_step(
            params,
            grads,
            slots.get("momentum_buffer"),
            lr,
            step,
            momentum=group["momentum"],
            dampening=group["dampening"],
            nesterov=group["nesterov"],
            weight_decay=group["weight_decay"],
        )
