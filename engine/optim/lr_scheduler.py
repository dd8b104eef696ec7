"""Learning-rate schedules.

Each is a pure function of the step and of the learning rate the group had at first
(``group["initial_lr"]``): nothing accumulates rounding, and a resumed run goes on exactly.  Call
``scheduler.step()`` after each optimizer step, or after each epoch: the unit is the caller's.  Names
and keywords are torch's; a learning rate that the user sets in between is overwritten by the next
step.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ...kernels._errors import ArgumentError, CheckpointError
from ...kernels._graph import refuse
from .optimizer import Optimizer


def _count(schedule: str, argument: str, value: Any, least: int = 1) -> int:
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
        raise ArgumentError(f"{schedule}: {argument} must be an integer of at least {least}; got {value!r}")
    return int(value)


def _number(schedule: str, argument: str, value: Any, positive: bool = False) -> float:
    if (
        isinstance(value, bool)
        or not isinstance(value, int | float | np.number)
        or not math.isfinite(value)
        or value < 0
        or (positive and value == 0)
    ):
        expected = "positive" if positive else "a real number, not negative"
        raise ArgumentError(f"{schedule}: {argument} must be {expected}; got {value!r}")
    return float(value)


class LRScheduler:
    """Base of all schedules; a subclass defines :meth:`rate`.

    Args:
        optimizer: whose learning rates are set, at once to those of step 0.

    Attributes:
        base_lrs: the learning rate of each group at the start.
        last_epoch: number of calls of :meth:`step` so far.
    """

    def __init__(self, optimizer: Optimizer) -> None:
        if not isinstance(optimizer, Optimizer):
            raise ArgumentError(f"{self._name}: optimizer must be an Optimizer; got {type(optimizer).__qualname__}")
        self.optimizer = optimizer
        for group in optimizer.param_groups:
            group.setdefault("initial_lr", group["lr"])
        self.base_lrs: list[float] = [float(group["initial_lr"]) for group in optimizer.param_groups]
        self.last_epoch = 0
        self._set()

    @property
    def _name(self) -> str:
        return type(self).__name__

    def rate(self, base: float, step: int, group: int = 0) -> float:
        """The learning rate at ``step`` of group number ``group``, which started with ``base``."""
        raise NotImplementedError

    def _set(self) -> None:
        for number, (group, base) in enumerate(zip(self.optimizer.param_groups, self.base_lrs, strict=False)):
            group["lr"] = float(self.rate(base, self.last_epoch, number))

    def step(self) -> None:
        """Go on to the next learning rate; not in a captured step, but beside it."""
        refuse("a schedule was stepped", "step it after each replay, which reads the new learning rate")
        self.last_epoch += 1
        self._set()

    def get_last_lr(self) -> list[float]:
        """The learning rate of each group now."""
        return [float(group["lr"]) for group in self.optimizer.param_groups]

    def state_dict(self) -> dict[str, Any]:
        """The position in the schedule; its shape is what the constructor was given."""
        return {"schedule": self._name, "last_epoch": self.last_epoch, "base_lrs": list(self.base_lrs)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go to the position that :meth:`state_dict` gave, and set the learning rates.

        Raises:
            CheckpointError: the state is of another schedule or another number of groups.
        """
        try:
            name, epoch, bases = (state_dict[key] for key in ("schedule", "last_epoch", "base_lrs"))
        except (KeyError, TypeError) as error:
            raise CheckpointError(f"{self._name}.load_state_dict: not the state of a schedule: {error!r}") from None
        if name != self._name:
            raise CheckpointError(f"{self._name}.load_state_dict: the state is of a {name}")
        if len(bases) != len(self.base_lrs):
            raise CheckpointError(
                f"{self._name}.load_state_dict: there are {len(self.base_lrs)} groups; the state has {len(bases)}"
            )
        self.last_epoch = int(epoch)
        self.base_lrs = [float(base) for base in bases]
        for group, base in zip(self.optimizer.param_groups, self.base_lrs, strict=False):
            group["initial_lr"] = base
        self._set()


class LambdaLR(LRScheduler):
    """lr = base · lr_lambda(step); one function, or one per group."""

    def __init__(
        self, optimizer: Optimizer, lr_lambda: Callable[[int], float] | Sequence[Callable[[int], float]]
    ) -> None:
        groups = len(optimizer.param_groups)
        self.lr_lambdas = [lr_lambda] * groups if callable(lr_lambda) else list(lr_lambda)
        if len(self.lr_lambdas) != groups or not all(callable(f) for f in self.lr_lambdas):
            raise ArgumentError(f"LambdaLR: lr_lambda must be one function or one for each of the {groups} groups")
        super().__init__(optimizer)

    def rate(self, base: float, step: int, group: int = 0) -> float:
        return base * self.lr_lambdas[group](step)


class ConstantLR(LRScheduler):
    """lr = base · factor until step ``total_iters``, then base; ``factor=1`` leaves it constant."""

    def __init__(self, optimizer: Optimizer, factor: float = 1.0 / 3, total_iters: int = 5) -> None:
        self.factor = _number("ConstantLR", "factor", factor)
        self.total_iters = _count("ConstantLR", "total_iters", total_iters, 0)
        super().__init__(optimizer)

    def rate(self, base: float, step: int, group: int = 0) -> float:
        return base * self.factor if step < self.total_iters else base


class LinearLR(LRScheduler):
    """From base·start_factor to base·end_factor in ``total_iters`` equal steps: a warm-up."""

    def __init__(
        self, optimizer: Optimizer, start_factor: float = 1.0 / 3, end_factor: float = 1.0, total_iters: int = 5
    ) -> None:
        self.start_factor = _number("LinearLR", "start_factor", start_factor)
        self.end_factor = _number("LinearLR", "end_factor", end_factor)
        self.total_iters = _count("LinearLR", "total_iters", total_iters)
        super().__init__(optimizer)

    def rate(self, base: float, step: int, group: int = 0) -> float:
        share = min(step, self.total_iters) / self.total_iters
        return base * (self.start_factor + (self.end_factor - self.start_factor) * share)


class StepLR(LRScheduler):
    """lr = base · gamma^(step // step_size)."""

    def __init__(self, optimizer: Optimizer, step_size: int, gamma: float = 0.1) -> None:
        self.step_size = _count("StepLR", "step_size", step_size)
        self.gamma = _number("StepLR", "gamma", gamma)
        super().__init__(optimizer)

    def rate(self, base: float, step: int, group: int = 0) -> float:
        return base * self.gamma ** (step // self.step_size)


class MultiStepLR(LRScheduler):
    """lr = base · gamma^(number of milestones reached)."""

    def __init__(self, optimizer: Optimizer, milestones: Sequence[int], gamma: float = 0.1) -> None:
        self.milestones = sorted(_count("MultiStepLR", "milestones", m, 0) for m in milestones)
        self.gamma = _number("MultiStepLR", "gamma", gamma)
        super().__init__(optimizer)

    def rate(self, base: float, step: int, group: int = 0) -> float:
        return base * self.gamma ** bisect_right(self.milestones, step)


class ExponentialLR(LRScheduler):
    """lr = base · gamma^step."""

    def __init__(self, optimizer: Optimizer, gamma: float) -> None:
        self.gamma = _number("ExponentialLR", "gamma", gamma)
        super().__init__(optimizer)

    def rate(self, base: float, step: int, group: int = 0) -> float:
        return base * self.gamma**step


class ExponentialDecayToFloor(LRScheduler):
    """lr = floor + (base - floor) · e^(-step / time_constant).

    P9's ``0.0001 + 0.003·e^(-step/2000)`` is an optimizer with ``lr=0.0031`` and ``floor=0.0001,
    time_constant=2000``.
    """

    def __init__(self, optimizer: Optimizer, floor: float, time_constant: float) -> None:
        self.floor = _number("ExponentialDecayToFloor", "floor", floor)
        self.time_constant = _number("ExponentialDecayToFloor", "time_constant", time_constant, positive=True)
        super().__init__(optimizer)

    def rate(self, base: float, step: int, group: int = 0) -> float:
        return self.floor + (base - self.floor) * math.exp(-step / self.time_constant)


class CosineAnnealingLR(LRScheduler):
    """lr = eta_min + (base - eta_min)·(1 + cos(pi·step/T_max)) / 2.

    Source: Loshchilov and Hutter 2017 (SGDR), without restarts.
    """

    def __init__(self, optimizer: Optimizer, T_max: int, eta_min: float = 0.0) -> None:
        self.T_max = _count("CosineAnnealingLR", "T_max", T_max)
        self.eta_min = _number("CosineAnnealingLR", "eta_min", eta_min)
        super().__init__(optimizer)

    def rate(self, base: float, step: int, group: int = 0) -> float:
        return self.eta_min + (base - self.eta_min) * (1 + math.cos(math.pi * step / self.T_max)) / 2


class SequentialLR(LRScheduler):
    """Schedules one after the other, each counting its steps from its own start.

    Args:
        optimizer: the optimizer of all of them.
        schedulers: the schedules; a warm-up is a :class:`LinearLR` as the first.
        milestones: the steps at which the second, third, … takes over; ascending.
    """

    def __init__(self, optimizer: Optimizer, schedulers: Sequence[LRScheduler], milestones: Sequence[int]) -> None:
        self.schedulers = list(schedulers)
        self.milestones = [_count("SequentialLR", "milestones", m) for m in milestones]
        if len(self.milestones) != len(self.schedulers) - 1:
            raise ArgumentError(
                f"SequentialLR: {len(self.schedulers)} schedulers need {len(self.schedulers) - 1} milestones; "
                f"got {len(self.milestones)}"
            )
        if self.milestones != sorted(set(self.milestones)):
            raise ArgumentError(f"SequentialLR: milestones must ascend; got {self.milestones}")
        if any(s.optimizer is not optimizer for s in self.schedulers):
            raise ArgumentError("SequentialLR: all schedulers must be of this optimizer")
        super().__init__(optimizer)

    def rate(self, base: float, step: int, group: int = 0) -> float:
        index = bisect_right(self.milestones, step)
        start = self.milestones[index - 1] if index else 0
        return self.schedulers[index].rate(base, step - start, group)
