"""P18: the house-price model on digits: one linear layer gives the label as a number.  Poor, and why."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..autograd import Tensor
from ..autograd import functional as F
from .curves import figure
from .options import Options
from .training import Result, Task, arrays_of, load_data, load_model, train

TASK = Task("mlp", {"outputs": 1}, loss="mse of the label", lr=0.01, epochs=5)


@dataclass(frozen=True)
class Fit:
    """How well numbers stand for labels: mean squared error, and the share that rounds to the label."""

    mse: float
    accuracy: float

    def __str__(self) -> str:
        return f"MSE {self.mse:.3f}, {100 * self.accuracy:.2f} % round to the label"


@dataclass
class Baseline:
    """The run, and what limits it.

    Attributes:
        result: of training.
        fits: on the test images, by model: a constant, the trained one, the optimum of its kind.
        answers: for each digit, the mean and the standard deviation of the trained model's answers.
    """

    result: Result
    fits: dict[str, Fit]
    answers: list[tuple[float, float]]

    def __str__(self) -> str:
        return f"{self.result}; least squares, its optimum: {100 * self.fits['least squares'].accuracy:.2f} %"


def run(options: Options) -> Baseline:
    """Train; compare with the least-squares solution; draw the three curves into ``options.out``."""
    data = load_data(TASK, options)
    result = train(TASK, options, data)
    model, _ = load_model(options.out)
    (train_images, train_labels), (images, labels) = arrays_of(data["train"]), arrays_of(data["test"])
    answers = model(Tensor(images)).detach().numpy().ravel()
    baseline = Baseline(
        result,
        {
            "always the mean label": _fit(np.full(len(labels), train_labels.mean()), labels),
            "trained model": _fit(answers, labels),
            "least squares": _fit(least_squares(train_images, train_labels, images), labels),
        },
        [(float(answers[labels == d].mean()), float(answers[labels == d].std())) for d in range(10)],
    )
    for name, fit in baseline.fits.items():
        options.say(f"{name:24s} {fit}")
    options.say("digit    " + "".join(f"{digit:7d}" for digit in range(10)))
    options.say("answer   " + "".join(f"{mean:7.2f}" for mean, _ in baseline.answers) + "   mean")
    options.say("       ± " + "".join(f"{spread:7.2f}" for _, spread in baseline.answers) + "   standard deviation")
    options.say("why: labels are names, not amounts. All answers are drawn to the middle, and an image that could be")
    options.say("a 1 or a 9 is best called 5, surely wrong. One output per digit and cross-entropy cure it (P8).")
    record = {"fits": {name: asdict(fit) for name, fit in baseline.fits.items()}, "answers": baseline.answers}
    (options.out / "baseline.json").write_text(json.dumps(record, indent=2) + "\n")
    for name, draw in CURVES.items():
        draw(options.out / name)
        options.say(f"picture: {options.out / name}")
    return baseline


def _fit(answers: np.ndarray, labels: np.ndarray) -> Fit:
    return Fit(float(((answers - labels) ** 2).mean()), float((np.rint(answers) == labels).mean()))


def least_squares(images: np.ndarray, labels: np.ndarray, asked: np.ndarray, ridge: float = 10.0) -> np.ndarray:
    """What the linear model of least squared error on ``images`` with their ``labels`` answers on images ``asked``.

    ``ridge`` keeps small the weights of pixels that hardly any training image lights.
    """
    x, test = (part.reshape(len(part), -1).astype(np.float64) for part in (images, asked))
    centre, mean = x.mean(0), labels.mean()
    x -= centre
    weights = np.linalg.solve(x.T @ x + ridge * np.eye(x.shape[1]), x.T @ (labels - mean))
    return np.asarray((test - centre) @ weights + mean)


# ---- the curves: values and slopes are rawgrad's own -------------------------------------------


def _draw(path: Path, x: np.ndarray, lines: dict[str, np.ndarray], title: str, xlabel: str, marks: Any = ()) -> None:
    made, (axes,) = figure(1)
    for name, y in lines.items():
        axes.plot(x, y, label=name, linewidth=1.8)
    for at, value, text in marks:
        axes.plot(at, value, "o", color="C3", markersize=6)
        axes.annotate(text, (at, value), textcoords="offset points", xytext=(8, 6), fontsize=10)
    axes.axhline(0, color="black", linewidth=0.6)
    axes.set(xlabel=xlabel, title=title, xlim=(x[0], x[-1]))
    axes.grid(alpha=0.3)
    axes.legend()
    made.savefig(path, dpi=110)


def with_slope(function: Any, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The values of ``function`` at the points ``x``, and its derivative there by the backward pass."""
    at = Tensor(np.asarray(x, np.float64), requires_grad=True)
    y = function(at)
    y.sum().backward()
    assert at.grad is not None
    return y.detach().numpy(), at.grad.numpy()


def draw_sigmoid(path: Path) -> None:
    """The sigmoid and its slope."""
    x = np.linspace(-8, 8, 401)
    y, slope = with_slope(F.sigmoid, x)
    _draw(path, x, {"sigmoid(x)": y, "its slope": slope}, "the sigmoid: beyond ±5 it hardly learns", "x")


def draw_minus_log(path: Path) -> None:
    """The loss -ln y of giving the right class the share y."""
    x = np.linspace(0.01, 1, 397)
    y, _ = with_slope(lambda share: -share.log(), x)
    marks = [(at, -float(np.log(at)), f"-ln {at} = {-float(np.log(at)):.2f}") for at in (0.1, 0.6)]
    title, xlabel = "cross-entropy: sure and wrong is dear", "y, the share given to the right class"
    _draw(path, x, {"-ln y": y}, title, xlabel, marks)


def draw_errors(path: Path) -> None:
    """Squared against absolute error."""
    x = np.linspace(-2, 2, 401)
    zero = Tensor(np.zeros_like(x))
    squared, _ = with_slope(lambda error: F.mse_loss(error, zero, reduction="none"), x)
    absolute, _ = with_slope(lambda error: F.l1_loss(error, zero, reduction="none"), x)
    lines = {"squared error": squared, "absolute error": absolute}
    _draw(path, x, lines, "squared error forgives small misses and punishes large ones", "prediction - target")


CURVES = {"sigmoid.png": draw_sigmoid, "minus-log.png": draw_minus_log, "errors.png": draw_errors}
