"""The twins of v3_register_tile of max_pool2d.cu, forward and backward, and of the gather.

Same blocks, same strips of four for a thread, same order, so the same bits.  Codes are one byte where they can
be.  Numba has no loads of 16 bytes: neighbours are moved one by one, so where an array starts does not matter.
A struct with a method is a local array for each of its members here, and ``meet`` stands in the loop.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .._launch import ceil_div, empty, result
from .._numba_cuda import cuda, device, kernel
from . import Geometry
from .cuda import _window

THREADS = 256
OWN = 4


@device
def inside(i, size):
    return 0 <= i < size


@device
def first_window(position, reach, stride):
    return 0 if position <= reach else (position - reach - 1) // stride + 1


@device
def last_window(position, stride, count):
    return min(position // stride, count - 1)


# Whether a tap beats the largest so far; the code of none so far is negative.  A NaN beats every number, and nothing
# beats a NaN.
@device
def wins(tap, value, code):
    return code < 0 or (not tap <= value and value == value)


# ---- forward


# Block: 256 threads and OWN results of each.
# Thread: the OWN outputs y[plane, p, q0 …].  If WINDOW says how many elements lie under them, it reads each
# once; at the borders, or else, once for each window.
@kernel
def max_pool2d_forward_v3_register_tile(T, Code, WINDOW):
    SPAN = (OWN - 1) * 2 + WINDOW if WINDOW > 0 else 1  # so many elements lie under the OWN windows
    INFINITY = T(float("inf"))

    def body(x, y, codes, g):
        R, S = (WINDOW, WINDOW) if WINDOW > 0 else (g.R, g.S)
        sh, sw = (2, 2) if WINDOW > 0 else (g.sh, g.sw)
        dh, dw = (1, 1) if WINDOW > 0 else (g.dh, g.dw)
        strips = (g.Q + OWN - 1) // OWN
        i = cuda.blockIdx.x * THREADS + cuda.threadIdx.x
        q0, p, plane = i % strips * OWN, i // strips % g.P, i // strips // g.P
        if plane >= g.N * g.C:
            return
        w0 = q0 * sw - g.pw

        best = cuda.local.array(OWN, T)
        code = cuda.local.array(OWN, np.int32)
        span = cuda.local.array(SPAN, T)
        for j in range(OWN):
            best[j] = -INFINITY
            code[j] = -1
        for r in range(R):
            h = p * sh + r * dh - g.ph
            if not inside(h, g.H):
                continue
            row = (plane * g.H + h) * g.W
            if WINDOW > 0 and w0 >= 0 and w0 + SPAN <= g.W:
                for e in range(SPAN):
                    span[e] = x[row + w0 + e]
                for s in range(WINDOW):
                    for j in range(OWN):
                        if wins(span[2 * j + s], best[j], code[j]):
                            best[j] = span[2 * j + s]
                            code[j] = r * WINDOW + s
                continue
            for s in range(S):
                for j in range(OWN):
                    w = w0 + j * sw + s * dw
                    if inside(w, g.W):
                        tap = x[row + w]
                        if wins(tap, best[j], code[j]):
                            best[j] = tap
                            code[j] = r * S + s

        to = (plane * g.P + p) * g.Q + q0
        for j in range(OWN):
            if q0 + j < g.Q:
                y[to + j] = best[j]
                # Without a tap inside the input the code is that of the last tap, which then lies outside.
                codes[to + j] = Code(R * S - 1 if code[j] < 0 else code[j])

    return body


# ---- backward


# The row of taps with which the window p meets row h of x, if it does (none: -1).
@device
def row_of_taps(h, p, g):
    distance = h + g.ph - p * g.sh
    return distance // g.dh if distance % g.dh == 0 else -1


# Block: 256 threads.
# Thread, for WINDOW = 2, where no windows share an element: the 2 x 2 OWN elements under the OWN windows
# (p, q0 …).  There are threads for all of dx, so for windows beyond P and Q as well; those give zeros.
# Thread, else: the OWN elements dx[plane, h, w0 …]; the windows over any of them are read once.
@kernel
def max_pool2d_backward_v3_register_tile(T, Code, WINDOW):
    def under_windows(grad, codes, dx, g):
        i = cuda.blockIdx.x * THREADS + cuda.threadIdx.x
        strips, rows = (g.W + g.pw + 2 * OWN - 1) // (2 * OWN), (g.H + g.ph + 1) // 2
        q0, p, plane = i % strips * OWN, i // strips % rows, i // strips // rows
        if plane >= g.N * g.C:
            return
        of_window = cuda.local.array(OWN, T)
        code = cuda.local.array(OWN, np.int32)
        start = (plane * g.P + p) * g.Q + q0
        for j in range(OWN):  # no code names any tap of the windows that do not exist
            exists = p < g.P and q0 + j < g.Q
            of_window[j] = grad[start + j] if exists else T(0)
            code[j] = codes[start + j] if exists else -1
        w0 = 2 * q0 - g.pw
        for r in range(2):
            h = 2 * p - g.ph + r
            if not inside(h, g.H):
                continue
            to = (plane * g.H + h) * g.W + w0
            for e in range(2 * OWN):
                if inside(w0 + e, g.W):
                    dx[to + e] = T(0) + of_window[e // 2] if code[e // 2] == 2 * r + e % 2 else T(0)

    def body(grad, codes, dx, g):
        i = cuda.blockIdx.x * THREADS + cuda.threadIdx.x
        strips = (g.W + OWN - 1) // OWN
        w0, h, plane = i % strips * OWN, i // strips % g.H, i // strips // g.H
        if plane >= g.N * g.C:
            return
        first_q = first_window(w0 + g.pw, (g.S - 1) * g.dw, g.sw)
        last_q = last_window(w0 + OWN - 1 + g.pw, g.sw, g.Q)
        first_p = first_window(h + g.ph, (g.R - 1) * g.dh, g.sh)
        last_p = last_window(h + g.ph, g.sh, g.P)
        sum = cuda.local.array(OWN, T)
        for j in range(OWN):
            sum[j] = T(0)
        for p in range(first_p, last_p + 1):
            r = row_of_taps(h, p, g)
            if r < 0:
                continue
            for q in range(first_q, last_q + 1):
                at = (plane * g.P + p) * g.Q + q
                s = int(codes[at]) - r * g.S
                if not inside(s, g.S):
                    continue  # the maximum is in another row
                w = q * g.sw + s * g.dw - g.pw
                for j in range(OWN):
                    if w == w0 + j:
                        sum[j] += grad[at]
        to = (plane * g.H + h) * g.W + w0
        for j in range(OWN):
            if w0 + j < g.W:
                dx[to + j] = sum[j]

    return under_windows if WINDOW == 2 else body


# ---- the adjoint of the backward pass


# Block: 256 threads and as many results.  Thread: one y[plane, p, q], the element of x that its code names; 0 if
# that lies outside the input.
@kernel
def gather(T, Code):
    def body(x, codes, y, g):
        i = cuda.blockIdx.x * THREADS + cuda.threadIdx.x
        q, p, plane = i % g.Q, i // g.Q % g.P, i // g.Q // g.P
        if plane >= g.N * g.C:
            return
        code = int(codes[i])
        h, w = p * g.sh + code // g.S * g.dh - g.ph, q * g.sw + code % g.S * g.dw - g.pw
        y[i] = x[(plane * g.H + h) * g.W + w] if inside(h, g.H) and inside(w, g.W) else T(0)

    return body


# ---- the grids of cuda.py


def max_pool2d_forward(x: Any, g: Geometry, out: Any) -> tuple[Any, Any]:
    window = _window(g)
    y, codes = result(out, x, g.y_shape), empty(x, g.y_shape, g.code_dtype)
    blocks = ceil_div(g.N * g.C * g.P * ceil_div(g.Q, OWN), THREADS)
    max_pool2d_forward_v3_register_tile[x.dtype, g.code_dtype, window](blocks, THREADS, x, y, codes, g)
    return y, codes


def max_pool2d_backward(grad: Any, codes: Any, g: Geometry, out: Any) -> Any:
    window = _window(g)
    dx = result(out, grad, g.x_shape)
    if window == 2:  # a thread owns what lies under a strip of windows
        strips = ceil_div(g.H + g.padding[0], 2) * ceil_div(g.W + g.padding[1], 2 * OWN)
    else:
        strips = g.H * ceil_div(g.W, OWN)
    blocks = ceil_div(g.N * g.C * strips, THREADS)
    max_pool2d_backward_v3_register_tile[grad.dtype, g.code_dtype, window](blocks, THREADS, grad, codes, dx, g)
    return dx


def max_pool2d_gather(x: Any, codes: Any, g: Geometry, out: Any) -> Any:
    _window(g)
    y = result(out, x, g.y_shape)
    gather[x.dtype, g.code_dtype](ceil_div(y.size, THREADS), THREADS, x, codes, y, g)
    return y


VERSIONS = {
    "max_pool2d_forward": {"v3_register_tile": max_pool2d_forward},
    "max_pool2d_backward": {"v3_register_tile": max_pool2d_backward},
}
