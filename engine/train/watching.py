"""Watching a training: what cannot be found out later is looked at now and then."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from ...autograd import Tensor
from ...kernels._devices import device_of
from ...kernels._errors import ArgumentError
from ..layers import Dropout, Flatten, ZeroPad2d
from ..module import Module, outputs_of
from .callback import Callback, Training
from .distributions import Distribution, distribution
from .evaluation import Evaluation
from .looks import Look, Looks, SeenDigits
from .records import Epoch, Step

#: Layers that give on what they get.
_MOVERS = (Flatten, Dropout, ZeroPad2d)


class Watched(Callback):
    """A callback that also takes what a :class:`Watcher` sees."""

    def on_look(self, training: Training, look: Look) -> None:
        """After a step at which the watcher looked."""


class Kept(Watched):
    """Keeps each look in a folder; a run that goes on keeps those of before."""

    def __init__(self, looks: Looks) -> None:
        self.looks = looks

    def on_start(self, training: Training) -> None:
        self.looks.keep_until(training.progress.step)

    def on_look(self, training: Training, look: Look) -> None:
        self.looks.save(look)


class Watcher(Callback):
    """Looks at a training after its first step, every so many steps, and at its end, and tells what it saw.

    It changes nothing of the training, and does not look inside of steps, so that they may be captured.  Activations
    are found by running the first inputs of the step once more, in evaluation mode.

    ::

        looks = Looks("runs/mine/watch")
        fit(..., callbacks=[Watcher([Kept(looks), TensorBoard("runs/mine/tensorboard")], every=100)])

    Args:
        told: who is told; each is called as a callback of the training would be, but for what is within steps.
        every: steps between two looks.
        digits: so many inputs of the step are kept as pictures.
        samples: so many are run once more.
        read: gives the classes (N,) that predictions mean; by default the highest of scores (N, C).

    Raises:
        ArgumentError: an argument is none.
    """

    def __init__(
        self,
        told: Iterable[Watched],
        every: int = 100,
        *,
        digits: int = 50,
        samples: int = 8,
        read: Callable[[np.ndarray], np.ndarray | None] | None = None,
    ) -> None:
        for name, value, least in (("every", every, 1), ("digits", digits, 0), ("samples", samples, 0)):
            if type(value) is not int or value < least:
                raise ArgumentError(f"Watcher: {name} must be an integer of at least {least}; got {value!r}")
        self.told, self.every = list(told), every
        self._digits, self._samples, self._read = digits, samples, read or highest
        self._looked = 0

    def on_start(self, training: Training) -> None:
        self._looked = training.progress.step
        self._tell("on_start", training)

    def on_batch(self, training: Training) -> None:
        self._tell("on_batch", training)

    def on_step(self, training: Training, step: Step) -> None:
        self._tell("on_step", training, step)
        done = step.step + 1
        if done == 1 or done % self.every == 0:
            self._look(training)

    def on_validation(self, training: Training, found: Evaluation) -> None:
        self._tell("on_validation", training, found)

    def on_epoch(self, training: Training, epoch: Epoch) -> None:
        self._tell("on_epoch", training, epoch)

    def on_end(self, training: Training, error: BaseException | None) -> None:
        if error is None and training.progress.step > self._looked:
            self._look(training)
        self._tell("on_end", training, error)

    def _look(self, training: Training) -> None:
        self._looked = training.progress.step
        self._tell("on_look", training, self.look(training))

    def _tell(self, event: str, *what: Any) -> None:
        """Tell all; who cannot write is told no more, and the training goes on."""
        for each in tuple(self.told):
            try:
                getattr(each, event)(*what)
            except OSError as error:
                self.told.remove(each)
                place = f" {error.filename}" if error.filename else ""
                print(
                    f"rawgrad: note: {type(each).__name__} cannot write{place}: {error.strerror or error}; the "
                    "training goes on without it",
                    file=sys.stderr,
                )

    def look(self, training: Training) -> Look:
        """What is to be seen after the step that was just done."""
        model, (inputs, targets) = training.model, training.batches[0]
        found: dict[str, dict[str, Distribution]] = {"weights": {}, "biases": {}, "gradients": {}}
        arrays: dict[str, list[Any]] = {"weights": [], "biases": []}
        for name, parameter in model.named_parameters():
            kind = "biases" if name.rpartition(".")[2] == "bias" else "weights"
            found[kind][name] = distribution(parameter.array)
            arrays[kind].append(parameter.array)
            if parameter.grad is not None:
                found["gradients"][name] = distribution(parameter.grad.array)
        for kind, several in arrays.items():
            if several:
                found[kind]["all"] = distribution(*several)
        if self._samples and isinstance(inputs, Tensor):
            found["activations"] = activations(model, inputs[: self._samples])
        digits = None
        if self._digits and training.predictions:
            first = slice(self._digits)
            digits = digits_of(
                _host(inputs[first]), _host(targets[first]), _host(training.predictions[0][first]), self._read
            )
        return Look(training.progress.step, training.history.steps[-1].epoch, found, digits)


def activations(model: Module, inputs: Tensor) -> dict[str, Distribution]:
    """What each layer gives for ``inputs`` in evaluation mode, in the order in which they run.

    Layers that contain others, and those that give on what they get (dropout, flatten, padding), are left out.
    Modes, running statistics and random numbers are as before afterwards.
    """
    found: dict[str, Distribution] = {}

    def seen(name: str, output: Any) -> None:
        if isinstance(output, Tensor) and name not in found:
            found[name] = distribution(output.array)

    layers = {
        f"{path} {type(layer).__name__}".strip(): layer
        for path, layer in model.named_modules()
        if not isinstance(layer, _MOVERS) and next(iter(layer.children()), None) is None
    }
    outputs_of(layers, model, inputs, seen)
    return found


def highest(predictions: np.ndarray) -> np.ndarray | None:
    """The class of the highest of scores (N, C); None where there are no such scores."""
    return predictions.argmax(1) if predictions.ndim == 2 and predictions.shape[1] > 1 else None


def digits_of(
    inputs: np.ndarray,
    targets: np.ndarray,
    predictions: np.ndarray,
    read: Callable[[np.ndarray], np.ndarray | None] = highest,
) -> SeenDigits | None:
    """Inputs with what they were read as; None if they are no pictures of one channel, or the targets no classes.

    Args:
        inputs: (n, 1, H, W) or (n, H, W); what is not in [0, 1] is brought there.
        targets: (n,) integers.
        predictions: of them.
        read: see :class:`Watcher`.
    """
    images = inputs[:, 0] if inputs.ndim == 4 and inputs.shape[1] == 1 else inputs
    classes = read(predictions)
    if images.ndim != 3 or not images.size or targets.shape != images.shape[:1] or targets.dtype.kind not in "iu":
        return None
    if classes is None or classes.shape != targets.shape:
        return None
    images = np.nan_to_num(images.astype(np.float32))
    low, high = min(float(images.min()), 0.0), max(float(images.max()), 1.0)
    pixels = np.rint(255 * ((images - low) / (high - low))).astype(np.uint8)
    return SeenDigits(pixels, targets.astype(np.int64), classes.astype(np.int64))


def _host(values: Any) -> np.ndarray:
    array = values.array if isinstance(values, Tensor) else values
    return np.asarray(device_of(array).to_host(array))
