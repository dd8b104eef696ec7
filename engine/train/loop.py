"""The training loop."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain, islice
from typing import Any

from ...autograd import default_generator
from ...autograd.capture import graphed
from ...kernels._dispatch import PRECISIONS
from ...kernels._dispatch import precision as use_precision
from ...kernels._errors import ArgumentError, CaptureError, CheckpointError
from ..checkpoint import Checkpoint, Checkpoints, restore
from ..metrics import accuracy
from ..module import Module
from ..optim.clip import clip_grad_norm_
from ..optim.grad_scaler import GradScaler
from ..optim.lr_scheduler import LRScheduler
from ..optim.optimizer import Optimizer
from .callback import Callback, Calling, Training
from .evaluation import LossFunction, Score, evaluate
from .progress import ProgressBar
from .records import Epoch, History, Progress, Step
from .saving import Saver, worth

#: (inputs, targets, inputs, targets, …) -> the loss and the predictions of each batch.
TakeStep = Callable[..., tuple[Sequence[Any], Sequence[Any]]]


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
    metrics: Mapping[str, Score] | None = None,
    schedule: LRScheduler | None = None,
    accumulate: int = 1,
    clip_norm: float | None = None,
    precision: str | None = None,
    callbacks: Sequence[Callback] = (),
    on_step: Callable[[Step], None] | None = None,
    on_epoch: Callable[[Epoch], None] | None = None,
    progress: bool = True,
    capture: bool | None = None,
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
        loss: a scalar of predictions and targets, the mean over a batch.
        optimizer: of the model's parameters.
        epochs: the number of the epoch to stop before; epochs are counted from 0.
        max_steps: stop after that many steps in all, in the middle of an epoch if need be.
        validation: gives (inputs, targets); evaluated after each epoch.
        score: the accuracy of predictions; by default the share of right classes.
        metrics: further figures of the validation set, by name; see :func:`evaluate`.
        schedule: stepped after each training step.
        accumulate: batches whose gradients make one step, weighed by their sizes, as if they were one batch; at
            the end of an epoch it may be fewer.
        clip_norm: the greatest norm of all gradients together; see :func:`rawgrad.optim.clip_grad_norm_`.
        precision: what matrix products may use on a GPU, as :class:`rawgrad.precision`; None leaves it as it is.
            With ``"fp16"`` the loss is scaled (:class:`rawgrad.optim.GradScaler`), and a step whose gradients
            overflow is left out.
        callbacks: told what happens; see :class:`Callback`.
        on_step, on_epoch: functions of the record of each, called before it is saved.
        progress: draw a bar on stderr, if that is a terminal.
        capture: capture the step on the GPU and replay it; see :func:`rawgrad.cuda.graphed`.  None does so unless
            a callback looks inside of steps, the loss is scaled, or the step cannot be captured, which is told.
        checkpoints: where to save; a score is the accuracy on the validation set, or minus the loss.
        save_every: what is on the disk is never more than so many steps behind.
        resume: what such a run saved; this one goes on with it, bit for bit.

    Returns:
        The record of all steps and epochs, those before ``resume`` included.

    Raises:
        ArgumentError: there is nothing to train on, or nowhere to save; an argument that is none.
        CheckpointError: ``resume`` is of something else, or what is to be saved could not be written.
        Interrupted, Terminated: as asked, with ``checkpoints``; all is saved.
    """
    if len(loader) == 0:
        raise ArgumentError("fit: the loader has no batches")
    if save_every is not None and checkpoints is None:
        raise ArgumentError("fit: save_every must come with checkpoints, the folder to save in")
    if type(accumulate) is not int or accumulate < 1:
        raise ArgumentError(f"fit: accumulate must be an integer of at least 1; got {accumulate!r}")
    if precision is not None and precision not in PRECISIONS:
        raise ArgumentError(f"fit: precision must be one of {', '.join(PRECISIONS)}; got {precision!r}")
    if not hasattr(loader, "state_dict") and (checkpoints or resume) and not isinstance(loader, Sequence):
        raise ArgumentError("fit: a loader must have state_dict(), or be a list, for its position to be saved")

    run = Training(model, loader, loss, optimizer, score, schedule, validation, epochs, max_steps)
    told = [*([ProgressBar()] if progress else []), *callbacks, Calling(on_step, on_epoch)]

    def tell(event: str, *what: Any) -> None:
        for callback in told:
            getattr(callback, event)(run, *what)

    scaler = GradScaler() if precision == "fp16" else None
    run.scaled = scaler is not None
    take_step = _captured(_step(run, tell, clip_norm, precision, scaler), run, told, scaler, capture)
    parts = _parts(run, told, scaler)
    if resume is not None:
        _restore(resume, parts, run)
    at = run.progress
    error: BaseException | None = None
    try:
        tell("on_start")
        with Saver(checkpoints, save_every, parts, at) as saver:
            while at.epoch < epochs and not run.stopped and (at.batch == len(loader) or run.steps_left()):
                model.train()
                begun = time.perf_counter() - at.seconds
                for batches in _groups(_rest(loader, at.batch), accumulate, at):
                    run.batches = batches
                    saver.before_step()
                    tell("on_batch")
                    losses, predictions = take_step(*chain.from_iterable(run.batches))
                    run.predictions = [each.detach() for each in predictions]
                    record = _record(run, losses)
                    if schedule is not None:
                        schedule.step()
                    at.add(record, sum(len(inputs) for inputs, _ in run.batches), len(run.batches))
                    at.seconds = time.perf_counter() - begun
                    tell("on_step", record)
                    saver.after_step()
                    if run.stopped or not run.steps_left():
                        break
                whole = at.batch == len(loader)
                if not whole:  # stopped: who goes on does so with the next batch
                    saver.save()
                found = None
                if validation is not None:
                    found = evaluate(model, saver.watched(validation), loss, score, metrics)
                    tell("on_validation", found)
                summary = at.summary(found)
                at.history.epochs.append(summary)
                at.epoch += 1
                at.begin_epoch()
                tell("on_epoch", summary)
                if whole:
                    saver.save(worth(summary))
    except BaseException as raised:
        error = raised
        raise
    finally:
        tell("on_end", error)
    return at.history


def _rest(loader: Any, done: int) -> Iterable[Any]:
    """The batches of an epoch of which ``done`` are done."""
    if done and done == len(loader):
        return ()
    return loader if hasattr(loader, "state_dict") else islice(loader, done, None)


def _groups(batches: Iterable[Any], count: int, at: Progress) -> Iterator[list[Any]]:
    """``count`` batches at a time; the time until they are there is waiting."""
    source = iter(batches)
    while True:
        asked = time.perf_counter()
        group = list(islice(source, count))
        at.waiting += time.perf_counter() - asked
        if not group:
            return
        yield group


def _step(
    run: Training,
    tell: Callable[..., None],
    clip_norm: float | None,
    precision: str | None,
    scaler: GradScaler | None,
) -> TakeStep:
    """A step: forward and backward for each batch, then the optimizer."""
    model, optimizer = run.model, run.optimizer
    parameters = [p for group in optimizer.param_groups for p in group["params"]]

    def step(*flat: Any) -> tuple[list[Any], list[Any]]:
        batches = list(zip(flat[::2], flat[1::2], strict=True))
        total = sum(len(inputs) for inputs, _ in batches)
        losses: list[Any] = []
        predicted: list[Any] = []
        for inputs, targets in batches:
            predictions = model(inputs)
            loss = run.loss_function(predictions, targets)
            tell("on_loss", loss)
            if not losses:
                optimizer.zero_grad()
            share = loss if len(batches) == 1 else loss * (len(inputs) / total)
            (share if scaler is None else scaler.scale(share)).backward()
            losses.append(loss)
            predicted.append(predictions)
        if scaler is not None:
            scaler.unscale_(optimizer)
        if clip_norm is not None:
            clip_grad_norm_(parameters, clip_norm)
        tell("on_gradients")
        if scaler is None:
            optimizer.step()
        else:
            scaler.step(optimizer)
            scaler.update()
        return losses, predicted

    def at_precision(*flat: Any) -> tuple[list[Any], list[Any]]:
        assert precision is not None
        with use_precision(precision):
            return step(*flat)

    return step if precision is None else at_precision


def _captured(
    step: TakeStep, run: Training, told: Sequence[Callback], scaler: GradScaler | None, capture: bool | None
) -> TakeStep:
    """``step``, captured and replayed where that is wished and possible.

    Raises:
        ArgumentError: it is wished and not possible.
    """
    inside = [type(callback).__name__ for callback in told if callback.looks_inside()]
    reason = "the scaled loss" if scaler is not None else f"{inside[0]}, which looks inside" if inside else None
    if capture and reason:
        raise ArgumentError(f"fit: a step cannot be captured with {reason}")
    if capture is False or reason:
        return step
    replayed: TakeStep = graphed(step)
    if capture:
        return replayed

    def tried(*flat: Any) -> tuple[Sequence[Any], Sequence[Any]]:
        nonlocal replayed
        if replayed is not step:
            try:
                return replayed(*flat)
            except CaptureError as error:  # all is as if it had not been tried
                print(f"rawgrad: note: the step is not captured: {error}", file=sys.stderr)
                replayed = step
        return step(*flat)

    return tried


def _record(run: Training, losses: Sequence[Any]) -> Step:
    """The record of the step that was taken."""
    at, sizes = run.progress, [len(inputs) for inputs, _ in run.batches]
    scores = [run.score(p, targets) for p, (_, targets) in zip(run.predictions, run.batches, strict=True)]
    lr = run.optimizer.param_groups[0]["lr"]
    return Step(at.step, at.epoch, _mean([loss.item() for loss in losses], sizes), _mean(scores, sizes), lr)


def _mean(values: Sequence[float], sizes: Sequence[int]) -> float:
    """The mean over samples of what are means over batches; of one batch its very number."""
    if len(values) == 1:
        return values[0]
    return sum(value * size for value, size in zip(values, sizes, strict=True)) / max(sum(sizes), 1)


def _parts(run: Training, told: Sequence[Callback], scaler: GradScaler | None) -> dict[str, Any]:
    """All that has a state, by the names in a checkpoint."""
    parts: dict[str, Any] = {
        "model": run.model, "optimizer": run.optimizer, "schedule": run.schedule, "random": default_generator,
        "progress": run.progress,
    }  # fmt: skip
    if hasattr(run.loader, "state_dict"):
        parts["loader"] = run.loader
    if scaler is not None:
        parts["scaler"] = scaler
    for callback in told:
        if callback.name is not None:
            if callback.name in parts:
                raise ArgumentError(f"fit: two parts of the run are called {callback.name!r}")
            parts[callback.name] = callback
    return parts


def _restore(resume: Checkpoint, parts: Mapping[str, Any], run: Training) -> None:
    """Give the parts their states back; callbacks that are new begin afresh."""
    known = {n: p for n, p in parts.items() if not isinstance(p, Callback) or resume.state.get(n) is not None}
    restore(resume, known)
    if run.progress.batch > len(run.loader):
        raise CheckpointError(f"{resume.path}: is at batch {run.progress.batch}; this loader has {len(run.loader)}")
