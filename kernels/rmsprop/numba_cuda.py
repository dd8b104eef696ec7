"""The twin of v1_tensor_list of rmsprop.cu; what :mod:`..adam.numba_cuda` says holds here too."""

from __future__ import annotations

from typing import Any

from .._numba_cuda import cuda, fma_of, kernel, launch_each, sqrt_of
from .._tensor_list import CHUNK, Arrays, rate_pointers

THREADS = 256


# Block: 256 threads and a chunk of the tensor.  Thread: every 256th element.
@kernel
def rmsprop_step_v1_tensor_list(T, MOMENTUM, CENTERED):
    def body(theta, g, s, v, m, lr, lr_double, alpha, eps, momentum, weight_decay):
        s_rate = cuda.shared.array(1, T)
        if cuda.threadIdx.x == 0:
            s_rate[0] = T(lr_double[0] if len(lr_double) != 0 else lr[0])
        cuda.syncthreads()  # the number is there before any thread uses it
        rate, of_alpha, rest = s_rate[0], T(alpha), T(1 - alpha)
        of_eps, of_momentum, decay = T(eps), T(momentum), T(weight_decay)

        start = cuda.blockIdx.x * CHUNK
        for i in range(start + cuda.threadIdx.x, min(start + CHUNK, len(theta)), THREADS):
            old = theta[i]
            slope = g[i] if decay == T(0) else fma_of(decay, old, g[i])
            variance = fma_of(of_alpha, s[i], rest * (slope * slope))
            s[i] = variance
            if CENTERED:
                new_m = fma_of(of_alpha, m[i], rest * slope)
                m[i] = new_m
                variance = fma_of(-new_m, new_m, variance)
                if variance < T(0):  # NaN stays
                    variance = T(0)
            d = slope / (sqrt_of(variance) + of_eps)
            if MOMENTUM:
                d = fma_of(of_momentum, v[i], d)
                v[i] = d
            theta[i] = fma_of(-rate, d, old)

    return body


def rmsprop_step(
    params: Arrays,
    grads: Arrays,
    square_avgs: Arrays,
    momentum_buffers: Arrays | None,
    grad_avgs: Arrays | None,
    lr: Any,
    alpha: float,
    eps: float,
    momentum: float,
    weight_decay: float,
) -> None:
    flags = (momentum_buffers is not None, grad_avgs is not None)
    lists = [params, grads, square_avgs, momentum_buffers, grad_avgs]
    rest = (alpha, eps, momentum, weight_decay)
    launch_each(rmsprop_step_v1_tensor_list, flags, lists, *rate_pointers(lr), *rest)
