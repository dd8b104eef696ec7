"""Cross-entropy of a softmax: loss and gradient in one pass.

Legend::

    N examples   C classes   z (N, C) logits   p = softmax(z)   w (C,) class weights, or all 1
    ε label smoothing        t (N, C) target probabilities      y (N,) target labels

Targets may be labels or probabilities.  Both are smoothed: t' = (1 - ε) t + ε/C.  For labels, t is
one-hot, so that with m = max z over the classes of an example::

    -log p[n,c] = log sum_k e^(z[n,k] - m[n]) - (z[n,c] - m[n])
    loss[n]     = sum_c w[c] t'[n,c] (-log p[n,c])
                  labels: (1 - ε) w[y] (-log p[n,y]) + ε/C sum_c w[c] (-log p[n,c])

    d loss[n] / dz[n,c] = p[n,c] sum_k w[k] t'[n,k] - w[c] t'[n,c]

The reductions ``sum`` and ``mean`` add over n; ``mean`` then divides both loss and gradient by N for
probabilities, and for labels by the sum of w[y] over the examples that count.

An example whose label is ``ignore_index`` does not count: loss 0, gradient 0, whatever its logits (torch:
NaN for a row of NaN).  When none counts, the
mean is 0/0 = NaN (and its gradient 0), as in torch.  Logits of any finite size are safe.  A logit of
-inf has probability 0, one of +inf gives NaN; where a probability of 0 or a weight of 0 meets an
infinite -log p, their product is NaN: all as in torch.

float16 and bfloat16 are computed with in float32; the loss stays float32, and the gradient is rounded once.  A
gradient below 6e-8 is 0 in float16, which a mean over thousands of examples reaches: take the sum and scale
it, or bfloat16.

Sources: Bridle, 1990 (softmax with cross-entropy); Szegedy et al., "Rethinking the Inception
architecture", 2016 (label smoothing).

Checks: ranks, shapes and dtypes; labels in [0, C) or ignore_index; weights are not checked for sign.
Backends: ``numpy`` (reference.py), ``numba`` (numba_cpu.py), ``cuda`` and ``emulated`` (cuda.py,
softmax_cross_entropy.cu); ``numba_cuda`` (numba_cuda.py, twins of some versions).
"""

from __future__ import annotations

from typing import Any

from .._contracts import check_integer, check_rank, check_shape, common_device, common_float
from .._dispatch import Operation
from .._errors import ArgumentError, IndexRangeError, ShapeError

_operation = Operation(__name__)
_NAME = "softmax_cross_entropy"
REDUCTIONS = ("mean", "sum", "none")


def label_error(position: int, label: int, classes: int, ignore_index: int) -> IndexRangeError:
    """What backends raise for the first label that is neither in [0, classes) nor ignore_index."""
    return IndexRangeError(
        f"{_NAME}: target must hold labels in [0, {classes}) or ignore_index={ignore_index}; "
        f"got {label} at position {position}"
    )


def softmax_cross_entropy_forward(
    logits: Any,
    target: Any,
    *,
    weight: Any = None,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    reduction: str = "mean",
    version: str | None = None,
) -> tuple[Any, Any]:
    """The loss and its gradient by the logits.

    Args:
        logits: (N, C), float32, float64, float16 or bfloat16, C at least 1.
        target: (N,) labels of any integer dtype, or (N, C) probabilities of the dtype of ``logits``.
        weight: (C,) weights of the classes, the dtype of ``logits``; or None.
        ignore_index: label of the examples that do not count; with probabilities it must be negative.
        label_smoothing: ε, in [0, 1].
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.
        version: the version of the kernel to run, by name.

    Returns:
        The loss, of shape () or with ``"none"`` (N,), in float32 where logits are halves; and the gradient (N, C),
        whose row i is with ``"none"`` that of loss[i].

    Raises:
        IndexRangeError: a label is out of range; the message names the first one and its position.
        ShapeError, DtypeError, DeviceError, ArgumentError, BackendError.
    """
    device = common_device(_NAME, logits=logits, target=target, weight=weight)
    check_rank(_NAME, "logits", logits, "N C")
    N, C = logits.shape
    if not C:
        raise ShapeError(f"{_NAME}: logits must have at least one class; got shape {tuple(logits.shape)}")
    if target.ndim == 2:
        common_float(_NAME, halves=True, logits=logits, target=target, weight=weight)
        check_shape(_NAME, "target", target, (N, C), "N C")
        if ignore_index >= 0:
            raise ArgumentError(f"{_NAME}: ignore_index must be negative for probabilities; got {ignore_index}")
    else:
        common_float(_NAME, halves=True, logits=logits, weight=weight)
        check_shape(_NAME, "target", target, (N,), "N")
        check_integer(_NAME, target=target)
    if weight is not None:
        check_shape(_NAME, "weight", weight, (C,), "C")
    if reduction not in REDUCTIONS:
        raise ArgumentError(f"{_NAME}: reduction must be 'mean', 'sum' or 'none'; got {reduction!r}")
    if not 0 <= label_smoothing <= 1:
        raise ArgumentError(f"{_NAME}: label_smoothing must be in [0, 1]; got {label_smoothing!r}")
    return _operation.run(
        f"{_NAME}_forward",
        device,
        logits,
        target,
        weight,
        ignore_index,
        float(label_smoothing),
        reduction,
        version=version,
    )
