"""Stochastic gradient descent in NumPy."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def sgd_step(
    params: Sequence[np.ndarray],
    grads: Sequence[np.ndarray],
    momentum_buffers: Sequence[np.ndarray] | None,
    lr: np.ndarray,
    step: np.ndarray,
    momentum: float,
    dampening: float,
    nesterov: bool,
    weight_decay: float,
) -> None:
    rate, first = float(lr.item()), step.item() == 1
    with np.errstate(all="ignore"):
        for i, (param, grad) in enumerate(zip(params, grads, strict=True)):
            d = np.empty_like(param)  # becomes the direction of the step
            if weight_decay:
                np.multiply(param, weight_decay, out=d)
                d += grad
                grad = d
            if momentum_buffers is None:
                np.multiply(grad, rate, out=d)
                param -= d
                continue
            v = momentum_buffers[i]
            if first:
                v[...] = grad
            else:
                v *= momentum
                v += grad if dampening == 0 else (1 - dampening) * grad
            if nesterov:
                if grad is d:
                    d += momentum * v
                else:
                    np.multiply(v, momentum, out=d)
                    d += grad
                d *= rate
            else:
                np.multiply(v, rate, out=d)
            param -= d
