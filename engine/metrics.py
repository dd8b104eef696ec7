"""What is counted beside the loss: accuracy, the confusion matrix, running means."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..autograd import Tensor
from ..kernels._devices import device_of, is_array
from ..kernels._errors import ArgumentError, DtypeError, IndexRangeError, ShapeError


def _host(value: Any) -> np.ndarray:
    """The values of a tensor, an array of any device, or a sequence."""
    if isinstance(value, Tensor):
        value = value.array
    return device_of(value).to_host(value) if is_array(value) else np.asarray(value)


def _classes(operation: str, predictions: Any, targets: Any) -> tuple[np.ndarray, np.ndarray]:
    """Predicted and true classes, both (N,); scores (N, C) become the first class of the highest score."""
    predicted, true = _host(predictions), _host(targets)
    if predicted.ndim == 2:
        if predicted.shape[1] == 0:
            raise ShapeError(f"{operation}: predictions must have at least one class; got shape {predicted.shape}")
        predicted = predicted.argmax(axis=1)
    for argument, array in (("predictions", predicted), ("targets", true)):
        if array.dtype.kind not in "iu" and array.size:
            raise DtypeError(
                f"{operation}: {argument} must be integers (or predictions scores (N, C)); got {array.dtype}"
            )
    if predicted.ndim != 1 or true.shape != predicted.shape:
        raise ShapeError(
            f"{operation}: predictions must be (N, C) or (N,) and targets (N,); got {_host(predictions).shape} and "
            f"{true.shape}"
        )
    return predicted.astype(np.int64), true.astype(np.int64)


def accuracy(predictions: Any, targets: Any) -> float:
    """The share of right predictions.

    Args:
        predictions: scores (N, C), of which the highest counts, or classes (N,).
        targets: the true classes (N,).

    Returns:
        A number in [0, 1]; NaN for an empty batch.
    """
    predicted, true = _classes("accuracy", predictions, targets)
    return float(np.mean(predicted == true)) if true.size else float("nan")


def confusion_matrix(predictions: Any, targets: Any, num_classes: int | None = None) -> np.ndarray:
    """How often each true class (row) was taken for each class (column).

    Args:
        predictions: scores (N, C), or classes (N,).
        targets: the true classes (N,).
        num_classes: K; by default C for scores, else the highest class that occurs plus one.

    Returns:
        (K, K) int64, of sum N.

    Raises:
        IndexRangeError: a class is negative or not below K.
    """
    predicted, true = _classes("confusion_matrix", predictions, targets)
    if num_classes is None:
        scores = _host(predictions)
        highest = max(int(predicted.max(initial=-1)), int(true.max(initial=-1))) + 1
        num_classes = scores.shape[1] if scores.ndim == 2 else highest
    if num_classes < 0:
        raise ArgumentError(f"confusion_matrix: num_classes must not be negative; got {num_classes}")
    for argument, classes in (("predictions", predicted), ("targets", true)):
        wrong = np.flatnonzero((classes < 0) | (classes >= num_classes))
        if wrong.size:
            raise IndexRangeError(
                f"confusion_matrix: {argument} must lie in [0, {num_classes}); got {classes[wrong[0]]} at {wrong[0]}"
            )
    pairs = np.bincount(true * num_classes + predicted, minlength=num_classes**2)
    return pairs.astype(np.int64).reshape(num_classes, num_classes)


class RunningAverage:
    """The mean of values that come in batches, each weighted by its size.

    Example:
        >>> loss = RunningAverage()
        >>> loss.update(2.0, 100)
        >>> loss.update(1.0, 50)
        >>> round(loss.value, 4)
        1.6667
    """

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forget everything."""
        self.total = 0.0
        self.count = 0

    def update(self, value: Any, count: int = 1) -> None:
        """Add ``value``, the mean over ``count`` samples (a number or a tensor of one element)."""
        if count < 0:
            raise ArgumentError(f"RunningAverage: count must not be negative; got {count}")
        if count:
            self.total += float(value) * count
            self.count += count

    @property
    def value(self) -> float:
        """The mean so far; NaN before the first value."""
        return self.total / self.count if self.count else float("nan")
