"""Ending a training that does not get better."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from ...kernels._errors import ArgumentError, CheckpointError
from .callback import Callback, Training
from .records import Epoch


class EarlyStopping(Callback):
    """End the training when a figure of the epochs has not improved for some of them.

    The best weights are not put back: :class:`~rawgrad.train.Checkpoints` keeps them, and gives them by ``best()``.

    Args:
        monitor: a field of :class:`Epoch`, or the name of a metric.
        patience: epochs without an improvement after which it ends, at least 1.
        min_delta: what counts as an improvement must be larger than this.
        mode: ``"min"`` where less is better, ``"max"`` where more is; by default ``"min"`` for a loss.

    Attributes:
        best: the best figure so far, None before the first.
        waited: epochs since.

    Raises:
        ArgumentError: patience, min_delta or mode is none; an epoch has no such figure.
    """

    name = "early stopping"

    def __init__(
        self, monitor: str = "validation_loss", patience: int = 3, min_delta: float = 0.0, mode: str | None = None
    ) -> None:
        if type(patience) is not int or patience < 1:
            raise ArgumentError(f"EarlyStopping: patience must be an integer of at least 1; got {patience!r}")
        if not min_delta >= 0:
            raise ArgumentError(f"EarlyStopping: min_delta must not be negative; got {min_delta!r}")
        if mode not in (None, "min", "max"):
            raise ArgumentError(f"EarlyStopping: mode must be 'min' or 'max'; got {mode!r}")
        self.monitor, self.patience, self.min_delta = monitor, patience, min_delta
        self.mode = mode or ("min" if "loss" in monitor else "max")
        self.best: float | None = None
        self.waited = 0

    def on_start(self, training: Training) -> None:
        self._judge(training)

    def on_epoch(self, training: Training, epoch: Epoch) -> None:
        figure = epoch.metrics.get(self.monitor, getattr(epoch, self.monitor, None))
        if not isinstance(figure, float) or (self.monitor.startswith("validation") and training.validation is None):
            known = [f.name for f in fields(Epoch) if f.type == "float"] + list(epoch.metrics)
            raise ArgumentError(
                f"EarlyStopping: monitor must be a figure that the epochs have, of {', '.join(known)}"
                f"{' (without a validation set)' * (training.validation is None)}; got {self.monitor!r}"
            )
        sign = 1 if self.mode == "max" else -1
        if self.best is None or sign * (figure - self.best) > self.min_delta or self.best != self.best:
            self.best, self.waited = figure, 0
        else:
            self.waited += 1
        self._judge(training)

    def _judge(self, training: Training) -> None:
        if self.waited >= self.patience:
            training.stop(f"{self.monitor} has not improved on {self.best:.4g} for {self.waited} epochs")

    def state_dict(self) -> dict[str, Any]:
        return {"monitor": self.monitor, "best": self.best, "waited": self.waited}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        try:
            monitor, best, waited = state["monitor"], state["best"], state["waited"]
        except (KeyError, TypeError) as error:
            raise CheckpointError(f"not the state of EarlyStopping: {error!r}") from None
        if monitor != self.monitor or type(waited) is not int or not isinstance(best, float | None):
            raise CheckpointError(f"EarlyStopping: watches {self.monitor}; the state is {dict(state)}")
        self.best, self.waited = best, waited
