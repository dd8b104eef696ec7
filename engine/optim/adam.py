"""``Adam`` and ``AdamW``."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar

from ...kernels._errors import ArgumentError
from ...kernels.adam import adam_step
from .optimizer import Group, Optimizer, require, require_not_negative


class Adam(Optimizer):
    """Steps from running means of the gradient and of its square, both freed of their bias towards zero.

    With g the gradient, to which weight_decay·p is added first, in step t = 1, 2, …::

        m = beta1·m + (1 - beta1)·g                 v = beta2·v + (1 - beta2)·g²
        p = p - lr · m/(1 - beta1^t) / (sqrt(v/(1 - beta2^t)) + eps)

    Args:
        params: tensors, or groups of them.
        lr: learning rate.
        betas, eps, weight_decay: as above (weight_decay is an L2 penalty).

    Source: Kingma and Ba 2015.
    """

    _decoupled: ClassVar[bool] = False

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    def _check(self, group: Group) -> None:
        require_not_negative(self._name, group, "lr", "eps", "weight_decay")
        betas = group["betas"]
        if not isinstance(betas, tuple | list) or len(betas) != 2:
            raise ArgumentError(f"{self._name}: betas must be a pair of numbers in [0, 1); got {betas!r}")
        for beta in betas:
            require(self._name, "betas", beta, 0 <= beta < 1, "a pair of numbers in [0, 1)")
        group["betas"] = tuple(betas)

    def _slots(self, group: Group) -> tuple[str, ...]:
        return ("exp_avg", "exp_avg_sq")

    def _update(
        self, group: Group, params: list[Any], grads: list[Any], slots: dict[str, list[Any]], lr: Any, step: Any
    ) -> None:
        adam_step(
            params,
            grads,
            slots["exp_avg"],
            slots["exp_avg_sq"],
            lr,
            step,
            betas=group["betas"],
            eps=group["eps"],
            weight_decay=group["weight_decay"],
            decoupled=self._decoupled,
        )


class AdamW(Adam):
    """Adam with decoupled weight decay: p = p - lr·weight_decay·p first, and nothing is added to the gradient.

    Source: Loshchilov and Hutter 2019.
    """

    _decoupled = True

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
    ) -> None:
        super().__init__(params, lr, betas, eps, weight_decay)
