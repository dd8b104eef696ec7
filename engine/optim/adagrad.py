"""``Adagrad``."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from ...kernels.adagrad import adagrad_step
from .optimizer import Group, Optimizer, require_not_negative


class Adagrad(Optimizer):
    """Steps that shrink with the sum of squares of all gradients so far.

    With g the gradient, to which weight_decay·p is added first, in step t = 1, 2, …::

        s = s + g²
        p = p - lr / (1 + (t - 1)·lr_decay) · g / (sqrt(s) + eps)

    Args:
        params: tensors, or groups of them.
        lr: learning rate.
        lr_decay, weight_decay, eps: as above.
        initial_accumulator_value: s before the first step.

    Source: Duchi, Hazan and Singer 2011.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-2,
        lr_decay: float = 0.0,
        weight_decay: float = 0.0,
        initial_accumulator_value: float = 0.0,
        eps: float = 1e-10,
    ) -> None:
        defaults = {
            "lr": lr,
            "lr_decay": lr_decay,
            "weight_decay": weight_decay,
            "initial_accumulator_value": initial_accumulator_value,
            "eps": eps,
        }
        super().__init__(params, defaults)

    def _check(self, group: Group) -> None:
        require_not_negative("Adagrad", group, "lr", "lr_decay", "weight_decay", "initial_accumulator_value", "eps")

    def _slots(self, group: Group) -> tuple[str, ...]:
        return ("sum",)

    def _initial(self, slot: str, group: Group) -> float:
        return float(group["initial_accumulator_value"])

    def _update(
        self, group: Group, params: list[Any], grads: list[Any], slots: dict[str, list[Any]], lr: Any, step: Any
    ) -> None:
        adagrad_step(
            params,
            grads,
            slots["sum"],
            lr,
            step,
            lr_decay=group["lr_decay"],
            eps=group["eps"],
            weight_decay=group["weight_decay"],
        )
