"""Metrics, by hand and against scikit-learn."""

from __future__ import annotations

import math

import numpy as np
import pytest

import rawgrad as rg
from rawgrad.engine.metrics import RunningAverage, accuracy, confusion_matrix
from rawgrad.kernels._errors import ArgumentError, DtypeError, IndexRangeError, ShapeError


def test_accuracy_of_scores_and_of_classes():
    scores = rg.tensor(np.array([[0.1, 0.9], [3.0, -1.0], [0.5, 0.5], [0.0, 1.0]]), requires_grad=True)
    target = rg.tensor(np.array([1, 1, 0, 1]))
    assert accuracy(scores, target) == 0.75  # a tie goes to the first class
    assert accuracy([1, 0, 0], np.array([1, 1, 0], np.uint8)) == pytest.approx(2 / 3)
    assert math.isnan(accuracy(np.zeros((0, 3)), np.zeros(0, np.int64)))


def test_confusion_matrix_by_hand_and_against_sklearn():
    true, predicted = [0, 0, 1, 2, 2, 2], [0, 1, 1, 2, 0, 2]
    expected = [[1, 1, 0], [0, 1, 0], [1, 0, 2]]
    np.testing.assert_array_equal(confusion_matrix(predicted, true), expected)
    assert confusion_matrix(predicted, true, 5).shape == (5, 5)
    assert confusion_matrix(np.zeros((0, 4)), np.zeros(0, np.int64)).sum() == 0
    sklearn = pytest.importorskip("sklearn.metrics")
    stream = np.random.default_rng(0)
    scores, labels = stream.normal(size=(200, 6)), stream.integers(0, 6, 200)
    matrix = confusion_matrix(scores, labels)
    np.testing.assert_array_equal(matrix, sklearn.confusion_matrix(labels, scores.argmax(1), labels=range(6)))
    assert matrix.trace() / matrix.sum() == pytest.approx(accuracy(scores, labels))


def test_running_average_weighs_by_count():
    mean = RunningAverage()
    assert math.isnan(mean.value)
    mean.update(rg.tensor(2.0), 100)
    mean.update(float("nan"), 0)
    mean.update(1.0, 50)
    assert mean.value == pytest.approx(250 / 150)
    mean.reset()
    mean.update(3)
    assert mean.value == 3.0


def test_refusals():
    with pytest.raises(ShapeError, match=r"got \(2, 3\) and \(3,\)"):
        accuracy(np.zeros((2, 3)), [0, 1, 2])
    with pytest.raises(DtypeError, match="targets must be integers"):
        accuracy([0, 1], [0.0, 1.0])
    with pytest.raises(IndexRangeError, match=r"targets must lie in \[0, 2\); got 2 at 1"):
        confusion_matrix([0, 1], [0, 2], 2)
    with pytest.raises(IndexRangeError, match="predictions must lie"):
        confusion_matrix([0, -1], [0, 1])
    with pytest.raises(ArgumentError):
        RunningAverage().update(1.0, -1)
