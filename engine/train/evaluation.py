"""How good a model is on a data set, without training."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ...autograd import Tensor
from ..metrics import RunningAverage, accuracy
from ..module import Module, evaluating

#: (predictions, targets) -> loss, a tensor of one element.
LossFunction = Callable[[Any, Any], Any]
#: (predictions, targets) -> a number in [0, 1], or NaN where there is no such thing.
Score = Callable[[Any, Any], float]


@dataclass(frozen=True)
class Evaluation:
    """Mean loss, score and further ``metrics`` over ``count`` samples, and how many were read per second."""

    loss: float
    accuracy: float
    count: int
    samples_per_second: float
    metrics: dict[str, float] = field(default_factory=dict)


def evaluate(
    model: Module,
    loader: Iterable[Any],
    loss: LossFunction,
    score: Score = accuracy,
    metrics: Mapping[str, Score] | None = None,
) -> Evaluation:
    """Run ``model`` over all of ``loader`` in evaluation mode, recording nothing.

    The mode of each layer is put back afterwards.  The mean is over samples, so a smaller last batch
    counts for less.

    Args:
        model: gives predictions.
        loader: gives (inputs, targets).
        loss: a scalar of predictions and targets.
        score: the accuracy of predictions; by default the share of right classes.
        metrics: further functions of predictions and targets, by name; each is the mean over a batch.
    """
    losses, scores = RunningAverage(), RunningAverage()
    others = {name: RunningAverage() for name in metrics or {}}
    start = time.perf_counter()
    with evaluating(model):
        for inputs, targets in loader:
            predictions = model(inputs)
            losses.update(loss(predictions, targets).item(), len(inputs))
            scores.update(score(predictions, targets), len(inputs))
            for name, metric in (metrics or {}).items():
                others[name].update(metric(predictions, targets), len(inputs))
    seconds = time.perf_counter() - start
    means = {name: mean.value for name, mean in others.items()}
    return Evaluation(losses.value, scores.value, losses.count, losses.count / max(seconds, 1e-9), means)


def predictions_of(model: Module, loader: Iterable[Any]) -> tuple[np.ndarray, np.ndarray]:
    """The model's outputs for all samples and their targets, as NumPy arrays, in evaluation mode."""
    with evaluating(model):
        pairs = [(model(inputs).to("cpu").numpy(), _host(targets)) for inputs, targets in loader]
    return np.concatenate([p for p, _ in pairs]), np.concatenate([t for _, t in pairs])


def _host(targets: Any) -> np.ndarray:
    return targets.to("cpu").numpy() if isinstance(targets, Tensor) else np.asarray(targets)
