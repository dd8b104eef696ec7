"""Looking after a training: what often goes wrong shows early, and has a sentence that says what to try."""

from __future__ import annotations

import math
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...autograd import Tensor
from ...kernels._devices import device_of
from ...kernels._dtypes import kind_of
from ..layers import ReLU
from ..module import Module, outputs_of
from ..optim import SGD
from .callback import Callback, Training
from .records import Epoch, Step

#: Labels of so many batches of an epoch are counted.
_COUNTED = 20


@dataclass(frozen=True)
class Trouble:
    """Something that a check noticed.

    Attributes:
        kind: ``"vanishing gradients"``, ``"exploding gradients"``, ``"dead units"``, ``"loss does not move"``,
            ``"labels do not fit"`` or ``"overfitting"``.
        step: after so many steps.
        sentence: what was seen, and what to try.
    """

    kind: str
    step: int
    sentence: str

    def __str__(self) -> str:
        return f"after step {self.step}: {self.kind}: {self.sentence}"


def _tell(trouble: Trouble) -> None:
    print(f"rawgrad: note: {trouble}", file=sys.stderr)


@dataclass
class Limits:
    """From where on the checks speak.

    Attributes:
        vanishing: the smallest gradient of a layer's weights, relative to these, against the largest of a layer.
        exploding: a step of SGD, relative to the weights that it changes.
        dead: the share of a layer's units that are 0 for all samples, at two looks one after the other.
        still: the loss after ``steps`` against that at first.
        steps: of these two, each a mean over so many.
        ignorant: the loss of an epoch against that of knowing nothing but how frequent each label is.
        worse: the validation loss against its best, for two epochs.
    """

    vanishing: float = 1e-6
    exploding: float = 10.0
    dead: float = 0.6
    still: float = 0.99
    steps: int = 100
    ignorant: float = 0.98
    worse: float = 1.15


class Checks(Callback):
    """Notices gradients that vanish or explode, dead ReLUs, a loss that does not move, labels that do not fit the
    inputs, and a validation loss that turns up; says each once.

    Gradients and units are looked at after the steps 1, 2, 4, 8, …: the gradients that the
    step left, and one more forward pass of its batch in evaluation mode.  Neither changes a bit of the training.

    Args:
        say: told each trouble; by default a line on stderr.
        limits: from where on it is one.

    Attributes:
        found: all troubles so far.
    """

    def __init__(self, say: Callable[[Trouble], None] = _tell, limits: Limits | None = None) -> None:
        self.limits = limits or Limits()
        self.found: list[Trouble] = []
        self._say = say
        self._dead: set[str] = set()  # layers that were at the last look
        self._next = 1
        self._labels: Counter[int] = Counter()  # of the first batches
        self._classes = True  # whether they are classes at all

    def _note(self, training: Training, kind: str, sentence: str) -> None:
        if all(trouble.kind != kind for trouble in self.found):
            self.found.append(Trouble(kind, training.progress.step, sentence))
            self._say(self.found[-1])

    # ------------------------------------------------------------ after a step

    def on_step(self, training: Training, step: Step) -> None:
        if self._classes and training.progress.batch <= _COUNTED:
            self._count_labels(training)
        done = training.progress.step
        if done >= self._next:
            self._next = 2 * done
            self._look_at_gradients(training)
            self._look_at_units(training)
        if done == 2 * self.limits.steps:
            self._look_at_losses(training)

    def _look_at_gradients(self, training: Training) -> None:
        rate = training.optimizer.param_groups[0]["lr"]
        relative: dict[str, float] = {}
        for name, parameter in training.model.named_parameters():
            if parameter.grad is not None and parameter.ndim >= 2:
                weights, gradient = _norm(parameter.array), _norm(parameter.grad.array)
                if isinstance(training.optimizer, SGD):  # these are the weights after the step, which hide its size
                    weights = _norm(parameter.array + rate * parameter.grad.array)
                if weights > 1e-6 * rate * gradient and math.isfinite(gradient):  # not those that began as zeros
                    relative[name] = gradient / weights
        if not relative:
            return
        least, most = min(relative, key=relative.__getitem__), max(relative, key=relative.__getitem__)
        if len(relative) >= 3 and relative[least] < self.limits.vanishing * relative[most]:
            self._note(
                training,
                "vanishing gradients",
                f"relative to its weights, the gradient of {least} is {relative[least] / relative[most]:.0e} of that "
                f"of {most}, so {least} hardly learns: try ReLU in the place of sigmoid or tanh, He's initialisation "
                "(nn.init.kaiming_normal_), batch norm, or fewer layers",
            )
        if isinstance(training.optimizer, SGD) and rate * relative[most] > self.limits.exploding:
            self._note(
                training,
                "exploding gradients",
                f"a step changes {most} by {rate * relative[most]:.0f} times its size: try a smaller learning rate "
                f"(it is {rate:g}), clip_norm, smaller initial weights, or inputs scaled to about 1",
            )

    def _look_at_units(self, training: Training) -> None:
        shares = dead_units(training.model, training.batches[0][0])
        dead = {name for name, share in shares.items() if share > self.limits.dead}
        for name in sorted(dead & self._dead):
            self._note(
                training,
                "dead units",
                f"{shares[name]:.0%} of the units of the ReLU {name or 'of the model'} are 0 for every sample of the "
                "batch, and learn nothing while they are: try a smaller learning rate, LeakyReLU, biases that do not "
                "begin far below 0, or batch norm before it",
            )
        self._dead = dead

    def _look_at_losses(self, training: Training) -> None:
        steps, count = training.history.steps, self.limits.steps
        first, last = (float(np.mean([s.loss for s in part])) for part in (steps[:count], steps[count : 2 * count]))
        if last > self.limits.still * first:
            self._note(
                training,
                "loss does not move",
                f"its mean was {first:.4g} over the first {count} steps and {last:.4g} over the next: try a learning "
                f"rate ten times as large, or a tenth (it is {training.optimizer.param_groups[0]['lr']:g}), look at "
                "inputs and labels (`rawgrad data`), and overfit ten samples first",
            )

    # ------------------------------------------------------------ after an epoch

    def _count_labels(self, training: Training) -> None:
        for _, targets in training.batches:
            if not isinstance(targets, Tensor) or kind_of(targets.dtype) not in "iu" or targets.ndim != 1:
                self._classes = False
                return
            self._labels.update(targets.to("cpu").numpy().tolist())

    def on_epoch(self, training: Training, epoch: Epoch) -> None:
        self._look_at_labels(training, epoch)
        self._look_at_validation(training)

    def _look_at_labels(self, training: Training, epoch: Epoch) -> None:
        shares = np.array(list(self._labels.values()), float)
        if not self._classes or len(shares) < 2 or not 0 <= epoch.accuracy <= 1:
            return
        shares /= shares.sum()
        entropy, commonest = float(-(shares * np.log(shares)).sum()), float(shares.max())
        chance = commonest + 3 * math.sqrt(commonest * (1 - commonest) / self._labels.total())
        enough = training.progress.step >= self.limits.steps
        if enough and epoch.accuracy < chance and abs(epoch.loss / entropy - 1) < 1 - self.limits.ignorant:
            self._note(
                training,
                "labels do not fit",
                f"the loss of the epoch, {epoch.loss:.4g}, is what knowing the frequency of each label gives "
                f"({entropy:.4g}), and the accuracy is that of guessing: nothing was learned of the inputs; do the "
                "labels belong to them (shuffled apart from each other?), and do the inputs differ at all?",
            )

    def _look_at_validation(self, training: Training) -> None:
        epochs = [e for e in training.history.epochs if e.validation_loss == e.validation_loss]
        if len(epochs) < 3:
            return
        best = min(epochs, key=lambda e: e.validation_loss)
        *_, before, last = epochs
        if min(before.validation_loss, last.validation_loss) > self.limits.worse * best.validation_loss and (
            last.loss < best.loss
        ):
            self._note(
                training,
                "overfitting",
                f"the validation loss was best after epoch {best.epoch + 1}, {best.validation_loss:.4g}, and is "
                f"{last.validation_loss:.4g} now, while that of training still falls: try more data or augmentation, "
                "dropout, weight decay, a smaller network, or stop there (EarlyStopping, --patience)",
            )


def _norm(array: Any) -> float:
    xp = device_of(array).array_module
    return float(xp.sqrt(xp.sum(xp.square(array.astype(np.float64)))))


def dead_units(model: Module, inputs: Tensor) -> dict[str, float]:
    """For each ReLU of at least 8 units the share that is 0 for all of ``inputs``, in evaluation mode.

    A unit is a feature, or a channel of a picture.  Buffers and random state stay as they are.
    """
    shares: dict[str, float] = {}

    def seen(name: str, output: Any) -> None:
        alive = (output.array > 0).any((0, *range(2, output.ndim)))
        if alive.size >= 8:
            shares[name] = 1.0 - float(alive.mean())

    units = {name: layer for name, layer in model.named_modules() if isinstance(layer, ReLU)}
    if units:
        outputs_of(units, model, inputs, seen)
    return shares
