"""P15: overfitting, shown and then held down by L2 regularisation.

The same network learns few images, of which a fifth have a wrong label planted.  Such a label has no reason, so
what reads it right has learnt it by heart; the validation images' labels are all right.  Without a penalty the
network comes to know every label, and validation gets worse while training gets better.  A penalty λ/2 Σ p² on the
parameters makes learning by heart dear: of several λ, one is too weak, one is about right, one is too strong.

The sign of overfitting is validation that is *worse* than training: an accuracy below it, a loss above it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..engine.data import TensorDataset
from ..kernels._errors import ArgumentError
from .curves import figure
from .options import Options
from .training import Result, Task, arrays_of, limited, load_data, train

#: Training images, and the share of them that gets a wrong label.
IMAGES, WRONG = 200, 0.2
STRENGTHS = (0.0, 0.01, 0.03, 0.1)
TASK = Task(
    "mlp", {"inputs": 64, "hidden": (256,), "activation": "relu"}, data="digits",
    optimizer="adam", lr=0.003, epochs=150, batch_size=20,
)  # fmt: skip


@dataclass
class Overfitting:
    """Results by strength of the penalty, the first without one."""

    results: dict[float, Result]

    def __str__(self) -> str:
        best = max(list(self.results)[1:], key=lambda s: self.results[s].history.epochs[-1].validation_accuracy)
        without, with_it = self.results[0.0], self.results[best]
        (points, loss), (less, lower) = gaps(without), gaps(with_it)
        return (
            f"gap between training and validation: without L2 {points:.1f} points of accuracy and {loss:.2f} of loss, "
            f"with {best:g} {less:.1f} and {lower:.2f}; test accuracy {100 * without.test.accuracy:.2f} and "
            f"{100 * with_it.test.accuracy:.2f} %"
        )


def gaps(result: Result) -> tuple[float, float]:
    """By how much validation ends worse than training: percent of accuracy, and loss."""
    end = result.history.epochs[-1]
    return 100 * (end.accuracy - end.validation_accuracy), end.validation_loss - end.loss


def run(options: Options) -> Overfitting:
    """Train once for each strength (with ``--weight-decay X`` for 0 and X), print the gaps, draw the curves."""
    strengths: tuple[float, ...] = STRENGTHS
    if options.weight_decay is not None:
        if not 0 < options.weight_decay < float("inf"):
            raise ArgumentError(
                f"overfitting: --weight-decay must be above 0, for it is compared with none; got {options.weight_decay}"
            )
        strengths = (0.0, options.weight_decay)
    task = TASK.overridden(options.but(weight_decay=None))
    data = load_data(task, options)
    images, labels = arrays_of(limited(data["train"], IMAGES))
    data["train"] = TensorDataset(images, with_wrong_labels(labels))
    options.say(
        f"{len(labels)} training images, {(data['train'].tensors[1] != labels).sum()} of their labels wrong; "
        f"{task.optimizer} lr {task.lr:g}, {task.epochs} epochs for each penalty\n\n{_HEAD}"
    )
    found = Overfitting({})
    for strength in strengths:
        folder = options.out / (f"L2-{strength:g}" if strength else "without-L2")
        found.results[strength] = train(task, options.but(out=folder, weight_decay=strength, quiet=True), data)
        options.say(_row(strength, found.results[strength]))
    draw(found, options.out / "overfitting.png")
    options.say(
        "\nbelow 0: the network no longer follows the wrong labels, and training accuracy counts them against it"
    )
    options.say(f"picture: {options.out / 'overfitting.png'}")
    return found


_HEAD = """\
               accuracy, %                   loss                          test
L2 penalty     training  validation  gap     training  validation  gap     accuracy, %"""


def _row(strength: float, result: Result) -> str:
    end, (points, loss) = result.history.epochs[-1], gaps(result)
    return (
        f"{strength or 'none':<14} {100 * end.accuracy:8.1f} {100 * end.validation_accuracy:11.1f} {points:+6.1f}"
        f"  {end.loss:8.3f} {end.validation_loss:11.3f} {loss:+6.3f}  {100 * result.test.accuracy:11.2f}"
    )


def with_wrong_labels(labels: np.ndarray) -> np.ndarray:
    """A copy of ``labels`` (N,) in which a share :data:`WRONG`, drawn at random but always the same, is wrong."""
    generator, changed = np.random.default_rng(0), labels.copy()
    wrong = generator.permutation(len(labels))[: int(WRONG * len(labels))]
    changed[wrong] = (labels[wrong] + generator.integers(1, 10, len(wrong))) % 10
    return changed


def draw(found: Overfitting, path: Path) -> None:
    """Accuracy above and loss below for each strength: training, validation, and what lies between, shaded."""
    made, axes = figure(len(found.results), 6, rows=2)
    made.set_size_inches(3.2 * len(found.results), 6)
    for column, (strength, result) in enumerate(found.results.items()):
        top, bottom = axes[column], axes[column + len(found.results)]
        points, loss = gaps(result)
        epochs = result.history.epochs
        accuracies = [(100 * e.accuracy, 100 * e.validation_accuracy) for e in epochs]
        _draw_pair(top, accuracies, 0.2, f"gap {points:+.1f} points")
        _draw_pair(bottom, [(e.loss, e.validation_loss) for e in epochs], 0.9, f"gap {loss:+.2f}")
        top.set_title(f"L2 penalty {strength:g}" if strength else "without L2", fontsize=10)
        top.set(ylim=(0, 102))
        bottom.set(ylim=(0, 2.5), xlabel="epoch")
    axes[0].set_ylabel("accuracy, %")
    axes[len(found.results)].set_ylabel("cross-entropy")
    axes[0].legend(fontsize=8, loc="lower left")
    made.savefig(path, dpi=110)


def _draw_pair(axes: Any, pairs: list[tuple[float, float]], height: float, note: str) -> None:
    training, validation = np.array(pairs).T
    epochs = np.arange(1, len(pairs) + 1)
    axes.plot(epochs, training, color="C0", label="training")
    axes.plot(epochs, validation, color="C3", label="validation")
    axes.fill_between(epochs, training, validation, color="C3", alpha=0.12, linewidth=0)
    axes.text(0.97, height, note, transform=axes.transAxes, ha="right", fontsize=9)
    axes.grid(alpha=0.3)
