"""The twin of v1_tensor_list of adam.cu.

A block owns the same chunk and each of its threads every 256th element; thread 0 prepares what all share, in
double.  But Numba has no table of pointers, so each tensor takes a launch of its own.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .._errors import ArgumentError
from .._faults import fault_flag, watch
from .._numba_cuda import cuda, device, fma_of, kernel, launch_each, sqrt_of
from .._tensor_list import CHUNK, Arrays, rate_pointers

THREADS = 256


# 1 - beta^t for t >= 0.  With q(n) = 1 - beta^n, q(n + k) = q(n) + q(k) (1 - q(n)): see adam.cu.
@device
def one_minus_power(beta, t):
    q, of_bit = 0.0, 1 - beta  # of_bit = q(1), q(2), q(4), ...
    while t > 0:
        if t & 1:
            q = fma_of(of_bit, 1 - q, q)
        of_bit = fma_of(of_bit, 1 - of_bit, of_bit)
        t >>= 1
    return q


# Block: 256 threads and a chunk of the tensor.  Thread: every 256th element.
@kernel
def adam_step_v1_tensor_list(T):
    def body(theta, g, m, v, lr, lr_double, step, fault, beta1, beta2, eps, weight_decay, decoupled):
        s = cuda.shared.array(5, T)
        s_valid = cuda.shared.array(1, np.int32)
        if cuda.threadIdx.x == 0:
            t = step[0]
            rate = np.float64(lr_double[0] if len(lr_double) != 0 else lr[0])
            s_valid[0] = 1 if t >= 1 else 0
            if t < 1 and cuda.blockIdx.x == 0:
                cuda.atomic.min(fault, 0, t)
            s[0] = T(rate / one_minus_power(beta1, t))
            s[1] = T(1 / sqrt_of(one_minus_power(beta2, t)))
            s[2] = T(eps)
            s[3] = T(1 - rate * weight_decay if decoupled else 1.0)
            s[4] = T(0.0 if decoupled else weight_decay)
        cuda.syncthreads()  # the numbers are there before any thread uses them
        if s_valid[0] == 0:
            return
        b1, rest1, b2, rest2 = T(beta1), T(1 - beta1), T(beta2), T(1 - beta2)
        of_rate, inverse_root, of_eps, keep, decay = s[0], s[1], s[2], s[3], s[4]

        start = cuda.blockIdx.x * CHUNK
        for i in range(start + cuda.threadIdx.x, min(start + CHUNK, len(theta)), THREADS):
            old = keep * theta[i]
            slope = g[i] if decay == T(0) else fma_of(decay, old, g[i])
            new_m = fma_of(b1, m[i], rest1 * slope)
            new_v = fma_of(b2, v[i], rest2 * (slope * slope))
            theta[i] = fma_of(-of_rate, new_m / fma_of(sqrt_of(new_v), inverse_root, of_eps), old)
            m[i] = new_m
            v[i] = new_v

    return body


def adam_step(
    params: Arrays,
    grads: Arrays,
    exp_avgs: Arrays,
    exp_avg_sqs: Arrays,
    lr: Any,
    step: Any,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    decoupled: bool,
) -> None:
    flag = fault_flag(lr)
    rest = (step, flag, beta1, beta2, eps, weight_decay, bool(decoupled))
    launch_each(adam_step_v1_tensor_list, (), [params, grads, exp_avgs, exp_avg_sqs], *rate_pointers(lr), *rest)
    watch(flag, lambda t: ArgumentError(f"adam: step must count from 1; got {t}"))
