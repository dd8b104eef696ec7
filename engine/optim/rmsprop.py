"""``RMSprop``."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from ...kernels.rmsprop import rmsprop_step
from .optimizer import Group, Optimizer, require, require_not_negative


class RMSprop(Optimizer):
    """Steps divided by the running root mean square of the gradients.

    With g the gradient, to which weight_decay·p is added first::

        s = alpha·s + (1 - alpha)·g²
        d = g / (sqrt(s) + eps)             centered: s - m² under the root, m = alpha·m + (1 - alpha)·g
        p = p - lr·d                        momentum: b = momentum·b + d;  p = p - lr·b

    Args:
        params: tensors, or groups of them.
        lr: learning rate.
        alpha, eps, weight_decay, momentum, centered: as above.

    Source: Tieleman and Hinton 2012 (lecture 6.5), in torch's form.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-2,
        alpha: float = 0.99,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        momentum: float = 0.0,
        centered: bool = False,
    ) -> None:
        defaults = {
            "lr": lr,
            "alpha": alpha,
            "eps": eps,
            "weight_decay": weight_decay,
            "momentum": momentum,
            "centered": centered,
        }
        super().__init__(params, defaults)

    def _check(self, group: Group) -> None:
        require_not_negative("RMSprop", group, "lr", "alpha", "eps", "weight_decay", "momentum")
        require("RMSprop", "alpha", group["alpha"], group["alpha"] < 1, "in [0, 1)")

    def _slots(self, group: Group) -> tuple[str, ...]:
        momentum = ("momentum_buffer",) if group["momentum"] else ()
        return ("square_avg", *momentum, *(("grad_avg",) if group["centered"] else ()))

    def _update(
        self, group: Group, params: list[Any], grads: list[Any], slots: dict[str, list[Any]], lr: Any, step: Any
    ) -> None:
        rmsprop_step(
            params,
            grads,
            slots["square_avg"],
            slots.get("momentum_buffer"),
            slots.get("grad_avg"),
            lr,
            alpha=group["alpha"],
            eps=group["eps"],
            momentum=group["momentum"],
            weight_decay=group["weight_decay"],
        )
