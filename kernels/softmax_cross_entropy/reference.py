"""Cross-entropy of a softmax in NumPy."""

from __future__ import annotations

from typing import Any

import numpy as np

from .._dtypes import halves_in_float32
from . import label_error


@halves_in_float32(slice(1, 2))  # the loss stays float32
def softmax_cross_entropy_forward(
    logits: np.ndarray,
    target: np.ndarray,
    weight: np.ndarray | None,
    ignore_index: int,
    label_smoothing: float,
    reduction: str,
) -> tuple[np.ndarray, np.ndarray]:
    with np.errstate(all="ignore"):
        z = logits - logits.max(axis=1, keepdims=True)  # (N, C)
        p = np.exp(z)  # (N, C)
        total = p.sum(axis=1, keepdims=True)  # (N, 1)
        p /= total
        log_total = np.log(total)  # (N, 1)
        if target.ndim == 1:
            return _with_labels(z, p, log_total, target, weight, ignore_index, label_smoothing, reduction)
        return _with_probabilities(z, p, log_total, target, weight, label_smoothing, reduction)


def _with_labels(
    z: np.ndarray,
    p: np.ndarray,
    log_total: np.ndarray,
    target: np.ndarray,
    weight: np.ndarray | None,
    ignore_index: int,
    smoothing: float,
    reduction: str,
) -> tuple[np.ndarray, np.ndarray]:
    N, C = z.shape
    ignored = _ignored(target, C, ignore_index)
    if ignored is not None:
        target = np.where(ignored, 0, target)
    at_label = (np.arange(N), target)

    w: Any = 1.0 if weight is None else weight[target]  # 1 or (N,)
    hit: Any = (1 - smoothing) * w  # 1 or (N,)
    loss = (log_total[:, 0] - z[at_label]) * hit  # (N,)
    grad = p
    if smoothing:
        share: Any = smoothing / C if weight is None else smoothing / C * weight  # 1 or (C,)
        loss += ((log_total - z) * share).sum(axis=1)
        mass = hit + (smoothing if weight is None else share.sum())  # sum over k of w[k] t'[k]: 1 or (N,)
        grad *= mass if weight is None else mass[:, None]
        grad -= share
    elif weight is not None:
        grad *= hit[:, None]
    grad[at_label] -= hit

    if ignored is not None:
        loss[ignored] = 0
    if reduction == "mean":
        if weight is not None:
            count = (w if ignored is None else w[~ignored]).sum()
        else:
            count = N if ignored is None else N - np.count_nonzero(ignored)
        grad /= count
        loss = loss.sum() / np.asarray(count, loss.dtype)
    elif reduction == "sum":
        loss = loss.sum()
    if ignored is not None:
        grad[ignored] = 0
    return np.asarray(loss), grad


def _ignored(target: np.ndarray, C: int, ignore_index: int) -> np.ndarray | None:
    """Which examples do not count, or None if all do; refuses labels out of range."""
    outside = target < 0 if target.dtype.kind == "i" else np.zeros(target.shape, bool)
    outside |= target >= C
    if not np.count_nonzero(outside) and not 0 <= ignore_index < C:
        return None
    ignored = target == ignore_index
    outside &= ~ignored
    if np.count_nonzero(outside):
        first = int(outside.argmax())
        raise label_error(first, int(target[first]), C, ignore_index)
    return ignored


def _with_probabilities(
    z: np.ndarray,
    p: np.ndarray,
    log_total: np.ndarray,
    target: np.ndarray,
    weight: np.ndarray | None,
    smoothing: float,
    reduction: str,
) -> tuple[np.ndarray, np.ndarray]:
    N, C = z.shape
    if smoothing:
        target = target * (1 - smoothing) + smoothing / C
    if weight is not None:
        target = target * weight
    loss = ((log_total - z) * target).sum(axis=1)  # (N,)
    grad = p
    grad *= target.sum(axis=1, keepdims=True)
    grad -= target
    if reduction == "mean":
        grad /= N
        loss = loss.sum() / np.asarray(N, loss.dtype)
    elif reduction == "sum":
        loss = loss.sum()
    return np.asarray(loss), grad
