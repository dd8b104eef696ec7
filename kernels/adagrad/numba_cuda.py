"""The twin of v1_tensor_list of adagrad.cu; what :mod:`..adam.numba_cuda` says holds here too."""

from __future__ import annotations

from typing import Any

import numpy as np

from .._numba_cuda import cuda, fma_of, kernel, launch_each, sqrt_of
from .._tensor_list import CHUNK, Arrays, rate_pointers

THREADS = 256


# Block: 256 threads and a chunk of the tensor.  Thread: every 256th element.
@kernel
def adagrad_step_v1_tensor_list(T):
    def body(theta, g, s, lr, lr_double, step, lr_decay, eps, weight_decay):
        s_rate = cuda.shared.array(1, T)
        if cuda.threadIdx.x == 0:
            rate = np.float64(lr_double[0] if len(lr_double) != 0 else lr[0])
            s_rate[0] = T(rate / (1 + float(step[0] - 1) * lr_decay))
        cuda.syncthreads()  # the number is there before any thread uses it
        rate_of_all, of_eps, decay = s_rate[0], T(eps), T(weight_decay)

        start = cuda.blockIdx.x * CHUNK
        for i in range(start + cuda.threadIdx.x, min(start + CHUNK, len(theta)), THREADS):
            old = theta[i]
            slope = g[i] if decay == T(0) else fma_of(decay, old, g[i])
            new_s = fma_of(slope, slope, s[i])
            theta[i] = fma_of(-rate_of_all, slope / (sqrt_of(new_s) + of_eps), old)
            s[i] = new_s

    return body


def adagrad_step(
    params: Arrays, grads: Arrays, sums: Arrays, lr: Any, step: Any, lr_decay: float, eps: float, weight_decay: float
) -> None:
    rest = (step, lr_decay, eps, weight_decay)
    launch_each(adagrad_step_v1_tensor_list, (), [params, grads, sums], *rate_pointers(lr), *rest)
