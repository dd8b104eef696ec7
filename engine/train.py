"""A training loop of modest size.

Nothing here is special: :func:`fit` is the loop that a user would write with the same pieces, with
a progress bar, a record of every step, validation after each epoch, and two hooks.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..autograd import Tensor, no_grad
from ..autograd.capture import graphed
from ..kernels._errors import ArgumentError
from .metrics import RunningAverage, accuracy
from .module import Module
from .optim.lr_scheduler import LRScheduler
from .optim.optimizer import Optimizer

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
    first_epoch: int = 0,
    validation: Iterable[Any] | None = None,
    score: Score = accuracy,
    schedule: LRScheduler | None = None,
    on_step: Callable[[Step], None] | None = None,
    on_epoch: Callable[[Epoch], None] | None = None,
    progress: bool = True,
    capture: bool = False,
) -> History:
    """Train ``model`` on ``loader``.

    Args:
        model: trained in place, left in training mode.
        loader: gives (inputs, targets); its length is asked for.
        loss: a scalar of predictions and targets.
        optimizer: of the model's parameters.
        epochs: the number of the epoch to stop before; epochs are counted from 0.
        max_steps: stop after that many steps in all, in the middle of an epoch if need be.
        first_epoch: the epoch to begin with, above 0 in a resumed run.
        validation: gives (inputs, targets); evaluated after each epoch.
        score: the accuracy of predictions; by default the share of right classes.
        schedule: stepped after each training step.
        on_step, on_epoch: called with the record of each.
        progress: draw a bar on stderr, if that is a terminal.
        capture: on a GPU, capture the step and replay it; see :func:`rawgrad.cuda.graphed`.

    Returns:
        The record of all steps and epochs.

    Raises:
        ArgumentError: there is nothing to train on.
    """
    if len(loader) == 0:
        raise ArgumentError("fit: the loader has no batches")

    def eager_step(inputs: Any, targets: Any) -> tuple[Any, Any]:
        predictions = model(inputs)
        batch_loss = loss(predictions, targets)
        optimizer.zero_grad()
        batch_loss.backward()
        optimizer.step()
        return batch_loss, predictions

    train_step = graphed(eager_step) if capture else eager_step
    history, step = History(), first_epoch * len(loader)
    for epoch in range(first_epoch, epochs):
        if max_steps is not None and step >= max_steps:
            break
        model.train()
        losses, scores, samples, start = RunningAverage(), RunningAverage(), 0, time.perf_counter()
        with _bar(len(loader), f"epoch {epoch + 1}/{epochs}", progress) as bar:
            for inputs, targets in loader:
                batch_loss, predictions = train_step(inputs, targets)
                record = Step(
                    step,
                    epoch,
                    batch_loss.item(),
                    score(predictions.detach(), targets),
                    optimizer.param_groups[0]["lr"],
                )
                if schedule is not None:
                    schedule.step()
                history.steps.append(record)
                if on_step is not None:
                    on_step(record)
                losses.update(record.loss, len(inputs))
                scores.update(record.accuracy, len(inputs))
                samples, step = samples + len(inputs), step + 1
                bar.set_postfix_str(f"loss {losses.value:.4f}{_percent(scores.value)}", refresh=False)
                bar.update()
                if max_steps is not None and step >= max_steps:
                    break
        seconds = time.perf_counter() - start
        checked = None if validation is None else evaluate(model, validation, loss, score)
        nan = float("nan")
        summary = Epoch(
            epoch,
            losses.value,
            scores.value,
            nan if checked is None else checked.loss,
            nan if checked is None else checked.accuracy,
            seconds,
            samples / max(seconds, 1e-9),
        )
        history.epochs.append(summary)
        if on_epoch is not None:
            on_epoch(summary)
    return history


def _bar(total: int, title: str, shown: bool) -> Any:
    from tqdm import tqdm

    return tqdm(total=total, desc=title, unit="batch", leave=False, disable=not (shown and sys.stderr.isatty()))


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
