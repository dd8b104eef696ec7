"""A training loop of modest size.

Nothing here is special: :func:`fit` is the loop that a user would write with the same pieces, with
a progress bar, a record of every step, validation after each epoch, two hooks, and its state saved now and then.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass, field, fields
from itertools import islice
from types import TracebackType
from typing import Any

import numpy as np

from ..autograd import Tensor, default_generator, no_grad
from ..autograd.capture import graphed
from ..kernels._errors import ArgumentError, CheckpointError
from .checkpoint import Checkpoint, Checkpoints, Interval, restore, states_of
from .metrics import RunningAverage, accuracy
from .module import Module
from .optim.lr_scheduler import LRScheduler
from .optim.optimizer import Optimizer
from .stopping import Stopping

#: (predictions, targets) -> loss, a tensor of one element.
LossFunction = Callable[[Any, Any], Any]
#: (predictions, targets) -> a number in [0, 1], or NaN where there is no such thing.
Score = Callable[[Any, Any], float]


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

    ``seconds`` is the time of training alone, ``samples_per_second`` what it makes of the samples.
    """

    epoch: int
    loss: float
    accuracy: float
    validation_loss: float
    validation_accuracy: float
    seconds: float
    samples_per_second: float

    def __str__(self) -> str:
        text = f"epoch {self.epoch + 1:3d}  train loss {self.loss:.4f}{_percent(self.accuracy)}"
        if self.validation_loss == self.validation_loss:
            text += f"  validation loss {self.validation_loss:.4f}{_percent(self.validation_accuracy)}"
        return f"{text}  {self.samples_per_second:,.0f} images/s"


def _percent(share: float) -> str:
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
        self.batch, self.seconds = 0, 0.0
        self.losses, self.scores = RunningAverage(), RunningAverage()

    def add(self, record: Step, samples: int) -> None:
        """Count a step that was done."""
        self.history.steps.append(record)
        self.losses.update(record.loss, samples)
        self.scores.update(record.accuracy, samples)
        self.step, self.batch = self.step + 1, self.batch + 1

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
            "steps": self._tables["steps"].of(self.history.steps),
            "epochs": self._tables["epochs"].of(self.history.epochs),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what :meth:`state_dict` gave.

        Raises:
            CheckpointError: it is something else, or contradicts itself.
        """
        try:
            step, epoch, batch = (state[name] for name in ("step", "epoch", "batch"))
            averages = [(float(total), int(count)) for total, count in (state["losses"], state["scores"])]
            seconds = float(state["seconds"])
            history = History(*(_records(kind, state[name]) for name, kind in (("steps", Step), ("epochs", Epoch))))
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"not the progress of a training: {error!r}") from None
        numbers = {"step": step, "epoch": epoch, "batch": batch}
        if not all(type(number) is int and number >= 0 for number in numbers.values()):
            raise CheckpointError(f"step, epoch and batch must be integers, not negative; got {numbers}")
        if (len(history.steps), len(history.epochs)) != (step, epoch) or batch > step:
            raise CheckpointError(
                f"{numbers} must have as many records; there are {len(history.steps)} of steps and "
                f"{len(history.epochs)} of epochs"
            )
        self.step, self.epoch, self.batch, self.seconds = step, epoch, batch, seconds
        self.take(history)
        self.losses, self.scores = RunningAverage(), RunningAverage()
        (self.losses.total, self.losses.count), (self.scores.total, self.scores.count) = averages


class _Table:
    """Records as an array of float64, a row each; what was in it the last time is not converted again."""

    def __init__(self, kind: type) -> None:
        self._rows = np.empty((0, len(fields(kind))))
        self._known = 0

    def of(self, records: Sequence[Any]) -> np.ndarray:
        """The table of ``records``, to which some were added at most."""
        if len(records) > len(self._rows):
            longer = np.empty((2 * len(records), self._rows.shape[1]))
            longer[: self._known] = self._rows[: self._known]
            self._rows = longer
        for row in range(min(self._known, len(records)), len(records)):
            self._rows[row] = astuple(records[row])
        self._known = len(records)
        return self._rows[: self._known]


def _records(kind: type[Any], table: Any) -> list[Any]:
    """The records in a table; fields that are counts become integers again."""
    whole = [f.type == "int" for f in fields(kind)]
    rows = np.asarray(table, np.float64)
    if rows.ndim != 2 or rows.shape[1] != len(whole):
        raise ValueError(f"a table of {kind.__name__} must be (N, {len(whole)}); got {rows.shape}")
    return [kind(*(int(v) if i else v for v, i in zip(row, whole, strict=True))) for row in rows.tolist()]


@dataclass(frozen=True)
class Evaluation:
    """Mean loss and score over ``count`` samples, and how many were read per second."""

    loss: float
    accuracy: float
    count: int
    samples_per_second: float


def evaluate(model: Module, loader: Iterable[Any], loss: LossFunction, score: Score = accuracy) -> Evaluation:
    """Run ``model`` over all of ``loader`` in evaluation mode, recording nothing.

    The model's mode is put back afterwards.  The mean is over samples, so a smaller last batch
    counts for less.
    """
    losses, scores = RunningAverage(), RunningAverage()
    was_training, start = model.training, time.perf_counter()
    model.eval()
    try:
        with no_grad():
            for inputs, targets in loader:
                predictions = model(inputs)
                losses.update(loss(predictions, targets).item(), len(inputs))
                scores.update(score(predictions, targets), len(inputs))
    finally:
        model.train(was_training)
    seconds = time.perf_counter() - start
    return Evaluation(losses.value, scores.value, losses.count, losses.count / max(seconds, 1e-9))


def fit(
    model: Module,
    loader: Any,
    loss: LossFunction,
    optimizer: Optimizer,
    *,
    epochs: int,
    max_steps: int | None = None,
    validation: Iterable[Any] | None = None,
    score: Score = accuracy,
    schedule: LRScheduler | None = None,
    on_step: Callable[[Step], None] | None = None,
    on_epoch: Callable[[Epoch], None] | None = None,
    progress: bool = True,
    capture: bool = False,
    checkpoints: Checkpoints | None = None,
    save_every: int | None = None,
    resume: Checkpoint | None = None,
) -> History:
    """Train ``model`` on ``loader``.

    With ``checkpoints`` the state is saved after each epoch, every ``save_every`` steps, and at the end.  Then
    Ctrl-C and SIGTERM let the step finish, save, and raise.

    Args:
        model: trained in place, left in training mode.
        loader: gives (inputs, targets); its length is asked for.
        loss: a scalar of predictions and targets.
        optimizer: of the model's parameters.
        epochs: the number of the epoch to stop before; epochs are counted from 0.
        max_steps: stop after that many steps in all, in the middle of an epoch if need be.
        validation: gives (inputs, targets); evaluated after each epoch.
        score: the accuracy of predictions; by default the share of right classes.
        schedule: stepped after each training step.
        on_step, on_epoch: called with the record of each, before it is saved.
        progress: draw a bar on stderr, if that is a terminal.
        capture: on a GPU, capture the step and replay it; see :func:`rawgrad.cuda.graphed`.
        checkpoints: where to save; a score is the accuracy on the validation set, or minus the loss.
        save_every: what is on the disk is never more than so many steps behind.
        resume: what such a run saved; this one goes on with it, bit for bit.

    Returns:
        The record of all steps and epochs, those before ``resume`` included.

    Raises:
        ArgumentError: there is nothing to train on, or nowhere to save.
        CheckpointError: ``resume`` is of something else, or what is to be saved could not be written.
        Interrupted, Terminated: as asked, with ``checkpoints``; all is saved.
    """
    if len(loader) == 0:
        raise ArgumentError("fit: the loader has no batches")
    if save_every is not None and checkpoints is None:
        raise ArgumentError("fit: save_every must come with checkpoints, the folder to save in")

    def eager_step(inputs: Any, targets: Any) -> tuple[Any, Any]:
        predictions = model(inputs)
        batch_loss = loss(predictions, targets)
        optimizer.zero_grad()
        batch_loss.backward()
        optimizer.step()
        return batch_loss, predictions

    train_step = graphed(eager_step) if capture else eager_step
    at = Progress()
    parts = {"model": model, "optimizer": optimizer, "schedule": schedule, "random": default_generator, "progress": at}
    if hasattr(loader, "state_dict"):
        parts["loader"] = loader
    elif (checkpoints or resume) and not isinstance(loader, Sequence):
        raise ArgumentError("fit: a loader must have state_dict(), or be a list, for its position to be saved")
    if resume is not None:
        restore(resume, parts)
        if at.batch > len(loader):
            raise CheckpointError(f"{resume.path}: is at batch {at.batch}; this loader has {len(loader)}")
    with _Saver(checkpoints, save_every, parts, at) as saver:
        while at.epoch < epochs and (at.batch == len(loader) or max_steps is None or at.step < max_steps):
            model.train()
            begun = time.perf_counter() - at.seconds
            with _bar(len(loader), at.batch, f"epoch {at.epoch + 1}/{epochs}", progress) as bar:
                for inputs, targets in _rest(loader, at.batch):
                    saver.before_step()
                    batch_loss, predictions = train_step(inputs, targets)
                    record = Step(
                        at.step,
                        at.epoch,
                        batch_loss.item(),
                        score(predictions.detach(), targets),
                        optimizer.param_groups[0]["lr"],
                    )
                    if schedule is not None:
                        schedule.step()
                    at.add(record, len(inputs))
                    at.seconds = time.perf_counter() - begun
                    if on_step is not None:
                        on_step(record)
                    bar.set_postfix_str(f"loss {at.losses.value:.4f}{_percent(at.scores.value)}", refresh=False)
                    bar.update()
                    saver.after_step()
                    if max_steps is not None and at.step >= max_steps:
                        break
            whole = at.batch == len(loader)
            if not whole:  # stopped by max_steps: who goes on does so with the next batch
                saver.save()
            checked = None if validation is None else evaluate(model, saver.watched(validation), loss, score)
            summary = at.summary(checked)
            at.history.epochs.append(summary)
            at.epoch += 1
            at.begin_epoch()
            if on_epoch is not None:
                on_epoch(summary)
            if whole:
                saver.save(_worth(summary))
    return at.history


def _rest(loader: Any, done: int) -> Iterable[Any]:
    """The batches of an epoch of which ``done`` are done."""
    if done and done == len(loader):
        return ()
    return loader if hasattr(loader, "state_dict") else islice(loader, done, None)


def _worth(epoch: Epoch) -> float:
    """The score of a checkpoint: the accuracy, or else minus the loss, on the validation set if there is one."""
    validated = epoch.validation_loss == epoch.validation_loss
    accuracy, loss = (epoch.validation_accuracy, epoch.validation_loss) if validated else (epoch.accuracy, epoch.loss)
    return accuracy if accuracy == accuracy else -loss


class _Saver:
    """Saves a run of :func:`fit` and ends it when that is wished; without a folder it does nothing."""

    def __init__(
        self, checkpoints: Checkpoints | None, every: int | None, parts: Mapping[str, Any], at: Progress
    ) -> None:
        self._checkpoints, self._parts, self._at = checkpoints, parts, at
        self._interval = None if checkpoints is None or every is None else Interval(checkpoints, every, at.step)
        self._stopping = Stopping()

    def __enter__(self) -> _Saver:
        if self._checkpoints is not None:
            self._stopping.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is None and self._checkpoints is not None:
                self._checkpoints.wait()
                self._stop_if_wished()
        finally:
            self._stopping.__exit__(kind, error, trace)

    def before_step(self) -> None:
        if self._interval is not None:
            self._interval.before(self._at.step)

    def after_step(self) -> None:
        if self._stopping.signal is not None:
            self.save()
            self._stop_if_wished()
        if self._interval is not None and self._interval.due(self._at.step):
            self.save()

    def watched(self, batches: Iterable[Any]) -> Iterable[Any]:
        """``batches``, which are left early if the run is to end; before them is a good place to go on."""
        if self._checkpoints is None:
            return batches
        return self._watched(batches)

    def _watched(self, batches: Iterable[Any]) -> Iterator[Any]:
        for batch in batches:
            if self._stopping.signal is not None:
                self.save()
                self._stop_if_wished()
            yield batch

    def save(self, score: float | None = None) -> None:
        if self._checkpoints is not None:
            self._checkpoints.save(states_of(self._parts), step=self._at.step, score=score)

    def _stop_if_wished(self) -> None:
        if self._checkpoints is not None and self._stopping.signal is not None:
            self._checkpoints.wait()
            raise self._stopping.raised(f"step {self._at.step} is saved in {self._checkpoints.folder}")


def _bar(total: int, done: int, title: str, shown: bool) -> Any:
    from tqdm import tqdm

    disable = not (shown and sys.stderr.isatty())
    return tqdm(total=total, initial=done, desc=title, unit="batch", leave=False, disable=disable)


def predictions_of(model: Module, loader: Iterable[Any]) -> tuple[np.ndarray, np.ndarray]:
    """The model's outputs for all samples and their targets, as NumPy arrays, in evaluation mode."""
    was_training = model.training
    model.eval()
    try:
        with no_grad():
            pairs = [(model(inputs).to("cpu").numpy(), _host(targets)) for inputs, targets in loader]
    finally:
        model.train(was_training)
    return np.concatenate([p for p, _ in pairs]), np.concatenate([t for _, t in pairs])


def _host(targets: Any) -> np.ndarray:
    return targets.to("cpu").numpy() if isinstance(targets, Tensor) else np.asarray(targets)
