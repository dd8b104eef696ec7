"""AdaGrad in NumPy."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def adagrad_step(
    params: Sequence[np.ndarray],
    grads: Sequence[np.ndarray],
    sums: Sequence[np.ndarray],
    lr: np.ndarray,
    step: np.ndarray,
    lr_decay: float,
    eps: float,
    weight_decay: float,
) -> None:
    rate = float(lr.item()) / (1 + (step.item() - 1) * lr_decay)
    with np.errstate(all="ignore"):
        for param, grad, s in zip(params, grads, sums, strict=True):
            if weight_decay:
                grad = grad + weight_decay * param
            work = np.multiply(grad, grad, out=np.empty_like(param))
            s += work
            np.sqrt(s, out=work)
            work += eps
            np.divide(grad, work, out=work)
            work *= rate
            param -= work
