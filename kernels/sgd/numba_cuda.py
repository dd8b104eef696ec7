"""The twin of v1_tensor_list of sgd.cu; what :mod:`..adam.numba_cuda` says holds here too."""

from __future__ import annotations

from typing import Any

from .._numba_cuda import cuda, fma_of, kernel, launch_each
from .._tensor_list import CHUNK, Arrays, rate_pointers

THREADS = 256


# Block: 256 threads and a chunk of the tensor.  Thread: every 256th element.
@kernel
def sgd_step_v1_tensor_list(T, MOMENTUM):
    def body(theta, g, v, lr, lr_double, step, momentum, dampening, nesterov, weight_decay):
        s_rate = cuda.shared.array(1, T)
        if cuda.threadIdx.x == 0:
            s_rate[0] = T(lr_double[0] if len(lr_double) != 0 else lr[0])
        cuda.syncthreads()  # the number is there before any thread uses it
        rate, of_momentum, share, decay = s_rate[0], T(momentum), T(1 - dampening), T(weight_decay)
        first = step[0] == 1

        start = cuda.blockIdx.x * CHUNK
        for i in range(start + cuda.threadIdx.x, min(start + CHUNK, len(theta)), THREADS):
            old = theta[i]
            slope = g[i] if decay == T(0) else fma_of(decay, old, g[i])
            d = slope
            if MOMENTUM:
                new_v = slope if first else fma_of(of_momentum, v[i], share * slope)
                d = fma_of(of_momentum, new_v, slope) if nesterov else new_v
                v[i] = new_v
            theta[i] = fma_of(-rate, d, old)

    return body


def sgd_step(
    params: Arrays,
    grads: Arrays,
    momentum_buffers: Arrays | None,
    lr: Any,
    step: Any,
    momentum: float,
    dampening: float,
    nesterov: bool,
    weight_decay: float,
) -> None:
    rest = (step, momentum, dampening, bool(nesterov), weight_decay)
    lists = [params, grads, momentum_buffers]
    launch_each(sgd_step_v1_tensor_list, (momentum_buffers is not None,), lists, *rate_pointers(lr), *rest)
