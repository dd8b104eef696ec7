"""NaN and infinity: a training that meets them stops before they reach the weights, and says where they come from."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ...autograd import Tensor, default_generator, detect_anomaly
from ...kernels import _graph
from ...kernels._dtypes import kind_of
from ...kernels._errors import CheckpointError, NonFiniteError
from ..module import Module
from ..weights import load_state, save_state
from .callback import Callback, Training
from .evaluation import LossFunction
from .records import Step

#: So many samples of a batch are named in a message.
_NAMED = 8


class NonFiniteGuard(Callback):
    """Ends a training at the first loss or gradient that is NaN or infinite, before the weights change.

    The step is done once more under :class:`~rawgrad.autograd.detect_anomaly`, with the same random numbers, and
    the error says what that finds: layer, operation, line of the program, and which samples were in the batch.

    Of the gradients the one that backward computes last is looked at, since NaN travels: anything else would cost
    a pass over all of them in each step.  What does not travel shows in the next loss; then the message says that
    the weights have it already.  A step that is replayed on the GPU (captured) is judged after it was done: its
    weights may have it then, and where it came from is not known, but no checkpoint is made of it.

    Args:
        folder: where to save what is needed to do that one step again (:func:`replay`); None saves nothing.
        settings: saved with it.
    """

    def __init__(self, folder: str | os.PathLike[str] | None = None, settings: Mapping[str, Any] | None = None) -> None:
        self.folder = None if folder is None else Path(folder)
        self.settings = dict(settings or {})
        self._random: dict[str, Any] = {}
        self._last: Tensor | None = None  # the parameter whose gradient comes last
        self._judged = False

    def looks_inside(self) -> bool:
        """No: where it is not called within a step, it looks after it."""
        return False

    def on_start(self, training: Training) -> None:
        first = [p for p in training.model.parameters() if p.requires_grad][:2]
        self._last = min(first, key=lambda p: p.numel(), default=None)

    def on_batch(self, training: Training) -> None:
        self._random, self._judged = default_generator.state_dict(), False

    def on_loss(self, training: Training, loss: Any) -> None:
        if not _capturing() and not math.isfinite(value := loss.item()):
            self._explain(training, f"the loss is {value}")

    def on_gradients(self, training: Training) -> None:
        if not _capturing():
            self._judged = True
            self._judge_gradient(training)

    def on_step(self, training: Training, step: Step) -> None:
        if self._judged:
            return
        if not math.isfinite(step.loss):
            self._tell_of_replayed(step.step, f"the loss is {step.loss}")
        self._judge_gradient(training, step.step)

    def _judge_gradient(self, training: Training, replayed: int | None = None) -> None:
        gradient = None if self._last is None else self._last.grad
        if gradient is None or training.scaled:  # what overflows under a scale is left out by it
            return
        if not bool(gradient.array_module.isfinite(gradient.array).all()):
            if replayed is not None:
                self._tell_of_replayed(replayed, "a gradient is NaN or infinite")
            self._explain(training, "a gradient is NaN or infinite")

    @staticmethod
    def _tell_of_replayed(step: int, what: str) -> None:
        raise NonFiniteError(
            f"step {step}: {what}; the step was replayed as a whole (captured), so in which layer is not known; from "
            "the last checkpoint on, without capture, it is met again and told (`--resume --no-capture`)"
        )

    def _explain(self, training: Training, what: str) -> None:
        at, random = training.progress, default_generator.state_dict()
        where = f"step {at.step}, batch {at.batch} of epoch {at.epoch}"
        if samples := _samples_of(training):
            where += f" (samples {_listed(samples)})"
        default_generator.load_state_dict(self._random)
        try:
            found = look(training.model, training.loss_function, training.batches)
        finally:
            default_generator.load_state_dict(random)
        message = f"{where}: {what}. {found or 'Done again, the step shows neither NaN nor infinity.'}"
        if self.folder is not None:
            path = self.folder / f"nonfinite-step-{at.step}.safetensors"
            state = {
                "model": training.model.state_dict(),
                "random": self._random,
                "batches": [list(batch) for batch in training.batches],
                "samples": samples,
                "settings": self.settings,
                "message": message,
            }
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
                save_state(path, state)
                message += f" What the step needs is saved in {path}."
            except (OSError, CheckpointError) as error:
                message += f" What the step needs could not be saved: {error}."
        raise NonFiniteError(message)


def _capturing() -> bool:
    return bool(_graph.under_way) and _graph.current() is not None


def _samples_of(training: Training) -> list[int]:
    """Which samples of the data set are in the batches of the step; none if the loader does not tell."""
    if not hasattr(training.loader, "indices"):
        return []
    first = training.progress.batch
    numbers = range(first, first + len(training.batches))
    return [int(index) for number in numbers for index in training.loader.indices(number)]


def _listed(samples: Sequence[int]) -> str:
    more = f", … {len(samples)} in all" if len(samples) > _NAMED else ""
    return f"{', '.join(map(str, samples[:_NAMED]))}{more}"


def look(model: Module, loss_function: LossFunction, batches: Sequence[Sequence[Any]]) -> str | None:
    """Where NaN or infinity comes from in a step of ``model`` on ``batches``; None if there is none."""
    bad = [name for name, parameter in model.named_parameters() if _bad(parameter) is not None]
    if bad:
        return f"The weights have NaN or infinity since an earlier step: {', '.join(bad)}."
    for number, (inputs, _) in enumerate(batches):
        if isinstance(inputs, Tensor) and (rows := _bad(inputs)) is not None:
            of = f" of batch {number}" if len(batches) > 1 else ""
            return f"The inputs have NaN or infinity, in the rows {_listed(rows)}{of}."
    try:
        with detect_anomaly():
            for inputs, targets in batches:
                loss_function(model(inputs), targets).backward()
    except NonFiniteError as error:
        return f"{error}."
    return None


def _bad(tensor: Tensor) -> list[int] | None:
    """The rows in which ``tensor`` has NaN or infinity; None if it has none."""
    if kind_of(tensor.dtype) != "f":
        return None
    xp = tensor.array_module
    wrong = ~xp.isfinite(tensor.array)
    if not bool(wrong.any()):
        return None
    rows = wrong.reshape(len(wrong), -1).any(1) if wrong.ndim else wrong.reshape(1)
    return [int(row) for row in np.flatnonzero(Tensor(rows).to("cpu").numpy())]


class Replay:
    """A step that was saved when it met NaN or infinity.

    Attributes:
        path: the file.
        settings: of the run, as :class:`NonFiniteGuard` was given them.
        message: what was found then.
        samples: the indices of the batch's samples.
        batches: its (inputs, targets), as NumPy arrays.

    Raises:
        CheckpointError: the file is not there, damaged, or something else.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        state = load_state(self.path)
        try:
            self._model, self._random = state["model"], state["random"]
            self.settings, self.message, self.samples = state["settings"], state["message"], state["samples"]
            self.batches = [(inputs, targets) for inputs, targets in state["batches"]]
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"{self.path}: is not a step that met NaN or infinity: {error!r}") from None

    def __call__(
        self, model: Module, loss_function: LossFunction, before: Callable[[Tensor], Any] | None = None
    ) -> str | None:
        """Do the step again, without changing weights; says where NaN or infinity comes from, None if nowhere.

        Args:
            model: of the same architecture; gets the saved weights, and is put in training mode.
            loss_function: as in the training.
            before: called with the inputs of each batch, once the weights are there.
        """
        model.load_state_dict(self._model)
        model.train()
        device = next((p.device for p in model.parameters()), "cpu")
        batches = [tuple(Tensor(np.asarray(part)).to(device) for part in batch) for batch in self.batches]
        random = default_generator.state_dict()
        try:
            if before is not None:
                default_generator.load_state_dict(self._random)
                for inputs, _ in batches:
                    before(inputs)
            default_generator.load_state_dict(self._random)
            return look(model, loss_function, batches)
        finally:
            default_generator.load_state_dict(random)


def replay(path: str | os.PathLike[str], model: Module, loss_function: LossFunction) -> str | None:
    """:class:`Replay` in one call."""
    return Replay(path)(model, loss_function)
