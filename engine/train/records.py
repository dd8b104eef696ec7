"""What a run did, step by step and epoch by epoch, and where it stands."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import MISSING, astuple, dataclass, field, fields
from typing import Any

import numpy as np

from ...kernels._errors import CheckpointError
from ..metrics import RunningAverage
from .evaluation import Evaluation


@dataclass(frozen=True)
class Step:
    """One step of training: its number from 0, the loss and score of its batch, its learning rate."""

    step: int
    epoch: int
    loss: float
    accuracy: float
    lr: float


@dataclass(frozen=True)
class Epoch:
    """One epoch: means over its batches, then over the validation set; NaN without one.

    Attributes:
        epoch: its number, from 0.
        loss, accuracy: of training, while the weights changed.
        validation_loss, validation_accuracy: of the weights after it.
        seconds: of training alone.
        samples_per_second: what these make of the samples.
        waiting: seconds of these in which training waited for the next batch; NaN in records of before.
        metrics: further means over the validation set, by name.
    """

    epoch: int
    loss: float
    accuracy: float
    validation_loss: float
    validation_accuracy: float
    seconds: float
    samples_per_second: float
    waiting: float = float("nan")
    metrics: dict[str, float] = field(default_factory=dict)

    def __str__(self) -> str:
        text = f"epoch {self.epoch + 1:3d}  train loss {self.loss:.4f}{percent(self.accuracy)}"
        if self.validation_loss == self.validation_loss:
            text += f"  validation loss {self.validation_loss:.4f}{percent(self.validation_accuracy)}"
        text += "".join(f"  {name} {value:.4f}" for name, value in self.metrics.items())
        return f"{text}  {self.samples_per_second:,.0f} images/s"


def percent(share: float) -> str:
    """An accuracy as it is shown; nothing for NaN."""
    return "" if share != share else f" accuracy {100 * share:6.2f} %"


@dataclass
class History:
    """What a run did, step by step and epoch by epoch."""

    steps: list[Step] = field(default_factory=list)
    epochs: list[Epoch] = field(default_factory=list)


class Progress:
    """Where a run of :func:`fit` stands: with its model, optimizer, schedule, loader and random state, all it is.

    Attributes:
        step: steps done.
        epoch: the one under way, from 0.
        batch: batches done in it.
        losses, scores: of these.
        seconds: that they took.
        waiting: seconds of these that went by until the next batch was there.
        history: of all steps and of the epochs before.
    """

    def __init__(self) -> None:
        self.step = self.epoch = 0
        self.take(History())
        self.begin_epoch()

    def take(self, history: History) -> None:
        """Go on with the records of ``history``."""
        self.history = history
        self._tables = {"steps": _Table(Step), "epochs": _Table(Epoch)}

    def begin_epoch(self) -> None:
        """Nothing of the epoch is done yet."""
        self.batch, self.seconds, self.waiting = 0, 0.0, 0.0
        self.losses, self.scores = RunningAverage(), RunningAverage()

    def add(self, record: Step, samples: int, batches: int = 1) -> None:
        """Count a step that was done, on so many batches."""
        self.history.steps.append(record)
        self.losses.update(record.loss, samples)
        self.scores.update(record.accuracy, samples)
        self.step, self.batch = self.step + 1, self.batch + batches

    def summary(self, checked: Evaluation | None) -> Epoch:
        """The record of the epoch, with what was found on the validation set."""
        nan = float("nan")
        return Epoch(
            self.epoch,
            self.losses.value,
            self.scores.value,
            nan if checked is None else checked.loss,
            nan if checked is None else checked.accuracy,
            self.seconds,
            self.losses.count / max(self.seconds, 1e-9),
            self.waiting,
            {} if checked is None else checked.metrics,
        )

    def state_dict(self) -> dict[str, Any]:
        """All of it; the records as tables, a row each, in the order of their fields."""
        return {
            "step": self.step,
            "epoch": self.epoch,
            "batch": self.batch,
            "losses": [self.losses.total, self.losses.count],
            "scores": [self.scores.total, self.scores.count],
            "seconds": self.seconds,
            "waiting": self.waiting,
            "steps": self._tables["steps"].of(self.history.steps),
            "epochs": self._tables["epochs"].of(self.history.epochs),
            "metrics": {
                name: np.array([epoch.metrics.get(name, np.nan) for epoch in self.history.epochs])
                for name in dict.fromkeys(name for epoch in self.history.epochs for name in epoch.metrics)
            },
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what :meth:`state_dict` gave.

        Raises:
            CheckpointError: it is something else, or contradicts itself.
        """
        try:
            step, epoch, batch = (state[name] for name in ("step", "epoch", "batch"))
            averages = [(float(total), int(count)) for total, count in (state["losses"], state["scores"])]
            seconds, waiting = float(state["seconds"]), float(state.get("waiting", 0.0))
            history = History(*(_records(kind, state[name]) for name, kind in (("steps", Step), ("epochs", Epoch))))
            for name, values in state.get("metrics", {}).items():
                for record, value in zip(history.epochs, np.asarray(values, np.float64).tolist(), strict=True):
                    record.metrics[name] = value
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"not the progress of a training: {error!r}") from None
        numbers = {"step": step, "epoch": epoch, "batch": batch}
        if not all(type(number) is int and number >= 0 for number in numbers.values()):
            raise CheckpointError(f"step, epoch and batch must be integers, not negative; got {numbers}")
        if (len(history.steps), len(history.epochs)) != (step, epoch):
            raise CheckpointError(
                f"{numbers} must have as many records; there are {len(history.steps)} of steps and "
                f"{len(history.epochs)} of epochs"
            )
        under_way = sum(record.epoch == epoch for record in history.steps)  # a step takes one batch or several
        if batch < under_way or bool(batch) != bool(under_way):
            raise CheckpointError(f"{numbers}: the epoch under way has {under_way} records of steps")
        self.step, self.epoch, self.batch, self.seconds, self.waiting = step, epoch, batch, seconds, waiting
        self.take(history)
        self.losses, self.scores = RunningAverage(), RunningAverage()
        (self.losses.total, self.losses.count), (self.scores.total, self.scores.count) = averages


class _Table:
    """Records as an array of float64, a row each; what was in it the last time is not converted again."""

    def __init__(self, kind: type) -> None:
        self._rows = np.empty((0, len(_columns(kind))))
        self._known = 0

    def of(self, records: Sequence[Any]) -> np.ndarray:
        """The table of ``records``, to which some were added at most."""
        if len(records) > len(self._rows):
            longer = np.empty((2 * len(records), self._rows.shape[1]))
            longer[: self._known] = self._rows[: self._known]
            self._rows = longer
        for row in range(min(self._known, len(records)), len(records)):
            self._rows[row] = astuple(records[row])[: self._rows.shape[1]]
        self._known = len(records)
        return self._rows[: self._known]


def _columns(kind: type) -> list[Any]:
    """The fields of a record that are numbers; they come first."""
    return [f for f in fields(kind) if f.type in ("int", "float")]


def _records(kind: type[Any], table: Any) -> list[Any]:
    """The records in a table; fields that are counts become integers again, later ones may be missing."""
    columns = _columns(kind)
    needed = sum(f.default is MISSING for f in columns)
    rows = np.asarray(table, np.float64)
    if rows.ndim != 2 or not needed <= rows.shape[1] <= len(columns):
        raise ValueError(f"a table of {kind.__name__} must be (N, {len(columns)}); got {rows.shape}")
    whole = [f.type == "int" for f in columns[: rows.shape[1]]]
    return [kind(*(int(v) if i else v for v, i in zip(row, whole, strict=True))) for row in rows.tolist()]
