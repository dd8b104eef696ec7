"""Compiled cross-entropy of a softmax: loss and gradient while a row is in registers or in cache.

Parts are ranges of examples.  First, for labels, they check these and add up what the mean is divided by, so that
the gradient can be written in its final form.  Then each row of logits is a line of ``softmax/numba_cpu.py``: up to
eight vectors stay in registers; a longer row takes a pass for the maximum, one for the exponentials, which it leaves
where the gradient will be, and one that makes the gradient of them.  Memory sees logits and gradient once.

Every part adds its losses and weights in float64; these sums are added in order.
"""

from __future__ import annotations

from functools import cache, lru_cache
from typing import Any

import numpy as np

from .._dtypes import halves_in_float32
from .._jit import in_parts, serial
from .._simd import Pointer, Stage, Value, simd, vector_bytes
from .._simd_math import log1p
from ..softmax.numba_cpu import PART, Line, exponentials, largest, vectors_of_line
from . import label_error

#: What the targets are: labels; labels with smoothing, which makes a small t' of every class; probabilities.
_LABELS, _SMOOTHED, _PROBABILITIES = range(3)
_LABELS_OF_PART = 16384


@simd(returns="z")
def _row(
    s: Stage, kind: int, V: int, held: bool, z: Pointer, t: Pointer, weight: Pointer, grad: Pointer, at: Value,
    classes: Value, label: Value, hit: Value, mass: Value, keep: Value, share: Value, scale: Value,
) -> Value:  # fmt: skip
    """The loss of an example, and its gradient times ``scale``.

    Args:
        kind: what the targets are.
        V, held: of the :class:`Line`.
        t: of smoothed labels, ε/C w[c] for each class; the probabilities, those of the row from ``at`` on.
        at: where the row begins in z and grad.
        hit: (1 - ε) w[label], the part of t' w that the label has; of probabilities, 0.
        mass: the sum of t' w; computed here for probabilities.
        keep, share: 1 - ε and ε/C, for probabilities.
    """
    z, grad, lanes = z + at, grad + at, s.lanes(z)
    if kind == _PROBABILITIES:
        t = t + at
    wide = V * lanes
    width = classes if held else classes % wide
    line = Line(s, z, V, 1, held, wide, classes // wide, (width > 0).to("int64"), width)
    hit, mass, keep, share, scale = (value.to(z.dtype) for value in (hit, mass, keep, share, scale))

    def of_class(i: Value, here: Value | None) -> Value:
        """t' w, without what the label has of it; 0 in lanes that do not count."""
        given = t.load(i, lanes, here)
        if kind == _SMOOTHED:
            return given
        return (given * s.splat(keep, lanes) + s.splat(share, lanes)) * weight.load(i, lanes, here)

    m = largest(line, z)
    total = exponentials(line, z, m, grad)
    log = line.map(lambda total: log1p(s, total - 1.0), total)
    if kind == _PROBABILITIES:
        mass = line.fold(0.0, lambda so_far, i, v, here: so_far + of_class(i, here))[0].lane(0)
    factor = s.splat(mass, lanes) / total[0]

    def finish(loss: Value, i: Value, v: int, here: Value | None) -> Value:
        is_label = s.counting(lanes, 32).equals(s.splat((label - i).to("int32"), lanes))
        wanted = is_label.where(s.splat(hit, lanes), 0.0)
        if kind != _LABELS:
            weighted = of_class(i, here)
            loss = loss + (log[v] - (z.load(i, lanes, here) - m[v])) * weighted
            wanted = wanted + weighted
        grad.store(i, (line.kept(grad, i, v, here) * factor - wanted) * s.splat(scale, lanes), here)
        return loss

    loss = line.fold(0.0, finish)[0].lane(0)
    if kind == _PROBABILITIES:
        return loss
    return loss + (log[0].lane(0) - (z[label] - m[0].lane(0))) * hit


@in_parts
def _check(part, slot, labels, classes, ignores, ignored, weight, bad, counts):
    """Of a part of the labels: the first one out of range, or -1, and what they add to the divisor of the mean."""
    bad[part], count, sum_of_weights = -1, 0, 0.0
    for n in range(part * _LABELS_OF_PART, min((part + 1) * _LABELS_OF_PART, labels.size)):
        label = labels[n]
        if ignores and label == ignored:
            continue
        if label < 0 or label >= classes:
            bad[part] = n
            return
        count += 1
        if weight.size:
            sum_of_weights += weight[label]
    counts[part] = sum_of_weights if weight.size else count


@serial
def _loss(sums, divisor):
    """The sum, from first to last, divided."""
    total = 0.0
    for value in sums:
        total += value
    return total / divisor


@cache
def _kernel(KIND: int, V: int, HELD: bool) -> Any:
    @in_parts
    def examples(
        part, slot, z, labels, t, weight, grad, losses, sums, ignores, ignored, keep, share, rest, divisor, of_part
    ):
        N, C = z.shape
        total, scale = 0.0, 1 / divisor
        for n in range(part * of_part, min((part + 1) * of_part, N)):
            label, hit = -1, 0.0
            if KIND != _PROBABILITIES:
                label = labels[n]
                if ignores and label == ignored:
                    losses[n] = 0
                    for c in range(C):
                        grad[n, c] = 0
                    continue
                hit = keep * weight[label] if weight.size else keep
            loss = _row(KIND, V, HELD, z, t, weight, grad, n * C, C, label, hit, hit + rest, keep, share, scale)
            losses[n] = loss
            total += loss
        sums[part] = total

    return examples


@lru_cache(256)
def _plan(kind: int, N: int, C: int, itemsize: int) -> tuple[Any, int, int]:
    """The kernel, how many parts, and how many examples are a part."""
    V, held = vectors_of_line(-(-C * itemsize // vector_bytes()), True)
    of_part = max(PART // C, 1)
    return _kernel(kind, V, held), -(-N // of_part), of_part


_NO_LABELS = np.empty(0, np.int64)
_NOTHING = {np.dtype(name): np.empty(0, name) for name in ("float32", "float64")}


@lru_cache(64)
def _ignored(dtype: np.dtype, ignore_index: int) -> tuple[bool, int]:
    """Whether labels of ``dtype`` can be ``ignore_index``, and it in 64 bits with a sign."""
    limits = np.iinfo(dtype)
    ignores = int(limits.min) <= ignore_index <= int(limits.max)
    return ignores, ignore_index - (1 << 64) * (ignore_index >= 1 << 63) if ignores else 0


@halves_in_float32(slice(1, 2))  # the loss stays float32
def softmax_cross_entropy_forward(
    logits: np.ndarray,
    target: np.ndarray,
    weight: np.ndarray | None,
    ignore_index: int,
    label_smoothing: float,
    reduction: str,
) -> tuple[np.ndarray, np.ndarray]:
    N, C = logits.shape
    dtype = logits.dtype
    nothing = _NOTHING[dtype]
    share, rest = label_smoothing / C, 0.0
    if target.ndim == 2:
        kind, labels, ignores, ignored, t = _PROBABILITIES, _NO_LABELS, False, 0, target.reshape(-1)
        w = np.ones(C, dtype) if weight is None else weight
    else:
        kind, t, w = _LABELS, nothing, nothing if weight is None else weight
        ignores, ignored = _ignored(target.dtype, ignore_index)
        # Numbers from 2^63 on turn negative, and stay out of range.
        labels = target.view(np.int64) if target.dtype == np.uint64 else target.astype(np.int64, copy=False)
        if label_smoothing:
            kind, t = _SMOOTHED, np.full(C, share, dtype) if weight is None else weight * dtype.type(share)
            rest = label_smoothing if weight is None else float(t.sum())
    divisor = float(N)
    if kind != _PROBABILITIES:
        parts, divisor = -(-N // _LABELS_OF_PART), 0.0
        bad, counts = np.empty(parts, np.int64), np.empty(parts)
        _check(parts, labels, C, ignores, ignored, w, bad, counts)
        for position, count in zip(bad.tolist(), counts.tolist(), strict=True):
            if position >= 0:
                raise label_error(position, int(target[position]), C, ignore_index)
            divisor += count
    if reduction != "mean":
        divisor = 1.0
    kernel, parts, of_part = _plan(kind, N, C, dtype.itemsize)
    grad, losses, sums = np.empty((N, C), dtype), np.empty(N, dtype), np.empty(parts)
    numbers = ignores, ignored, 1 - label_smoothing, share, rest, divisor, of_part
    kernel(parts, logits, labels, t, w, grad, losses, sums, *numbers)
    return losses if reduction == "none" else np.array(_loss(sums, divisor), dtype), grad
