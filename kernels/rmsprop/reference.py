"""RMSProp in NumPy."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def rmsprop_step(
    params: Sequence[np.ndarray],
    grads: Sequence[np.ndarray],
    square_avgs: Sequence[np.ndarray],
    momentum_buffers: Sequence[np.ndarray] | None,
    grad_avgs: Sequence[np.ndarray] | None,
    lr: np.ndarray,
    alpha: float,
    eps: float,
    momentum: float,
    weight_decay: float,
) -> None:
    rate = float(lr.item())
    with np.errstate(all="ignore"):
        for i, (param, grad, s) in enumerate(zip(params, grads, square_avgs, strict=True)):
            if weight_decay:
                grad = grad + weight_decay * param
            work = np.multiply(grad, grad, out=np.empty_like(param))
            work *= 1 - alpha
            s *= alpha
            s += work
            if grad_avgs is None:
                np.sqrt(s, out=work)
            else:
                m = grad_avgs[i]
                np.multiply(grad, 1 - alpha, out=work)
                m *= alpha
                m += work
                np.multiply(m, m, out=work)
                np.subtract(s, work, out=work)
                np.maximum(work, 0, out=work)
                np.sqrt(work, out=work)
            work += eps
            np.divide(grad, work, out=work)
            if momentum_buffers is not None:
                v = momentum_buffers[i]
                v *= momentum
                v += work
                np.multiply(v, rate, out=work)
            else:
                work *= rate
            param -= work
