"""The twins of v2_smem_tile of conv2d.cu, all three passes, and of its sums.

Same blocks, same tiles (tiles.py cuts them), same order of sums, so the same bits where multiplication and
addition round each by itself.  The differences: an array has one index, so ``in + i`` is the number ``at``; ``take``
returns what it leaves instead of changing it; of a Place, v2 needs neither ``in`` nor a name; block_sum
is the tree of :mod:`..softmax_cross_entropy.numba_cuda`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from .._launch import ceil_div as up
from .._launch import empty, result
from .._numba_cuda import cuda, device, kernel
from ..activation.numba_cuda import activation_backward, activation_forward
from ..max_pool2d import Geometry as PoolGeometry
from ..max_pool2d.numba_cuda import max_pool2d_forward
from . import Geometry, one_after_the_other, tiles

PATCH, OTHER = 4096, 2048  # tiles.py fits tiles into these
WARP = 32


@device
def ceil_div(a, b):
    return (a + b - 1) // b


# Divide `rest` by `size`: the quotient, and the remainder, which is the lowest digit.
@device
def take(rest, size):
    return rest // size, rest % size


# ---- what forward and dx have in common


class Axis(NamedTuple):
    """As in correlation.cuh: position i meets, through its tap t, the input at i * stride + t * dilation + start."""

    size: int
    positions: int
    taps: int
    stride: int
    dilation: int
    start: int
    tap0: int
    tap_step: int
    out0: int
    out_step: int


class Correlation(NamedTuple):
    """As in correlation.cuh: out[n,m,i,j] = sum over channels c, taps t, u of weights[m,c,t,u] in[n,c,row,column]."""

    down: Axis
    across: Axis
    N: int
    G: int
    C: int
    M: int
    weight_m: int
    weight_c: int
    S: int
    weights: int
    in_plane: int
    out_plane: int
    out_width: int


@device
def forward_axis(H, P, R, sh, ph, dh):
    return Axis(H, P, R, sh, dh, -ph, 0, 1, 0, 1)


# The rows h = a, a + sh, a + 2 sh, … of dx; see correlation.cuh.
@device
def backward_axis(H, P, R, sh, ph, dh, a):
    first, step = 0, 1
    while first < R and (a + ph - first * dh) % sh != 0:
        first += 1
    while step * dh % sh != 0:
        step += 1
    taps = (R - 1 - first) // step + 1 if first < R else 0
    last = first + (taps - 1) * step
    return Axis(P, ceil_div(H - a, sh), taps, 1, step * dh // sh, (a + ph - last * dh) // sh, last, -step, a, sh)


@device
def forward_of(g):
    C, K, taps = g.C // g.G, g.K // g.G, g.R * g.S
    down, across = forward_axis(g.H, g.P, g.R, g.sh, g.ph, g.dh), forward_axis(g.W, g.Q, g.S, g.sw, g.pw, g.dw)
    return Correlation(down, across, g.N, g.G, C, K, C * taps, taps, g.S, K * C * taps, g.H * g.W, g.P * g.Q, g.Q)


# dx at the rows a, a + sh, … and the columns b, b + sw, …; `block` chooses a and b, and what is left of it follows.
@device
def backward_of(g, block):
    C, K, taps = g.C // g.G, g.K // g.G, g.R * g.S
    block, b = take(block, min(g.sw, g.W))
    block, a = take(block, min(g.sh, g.H))
    down, across = backward_axis(g.H, g.P, g.R, g.sh, g.ph, g.dh, a), backward_axis(g.W, g.Q, g.S, g.sw, g.pw, g.dw, b)
    return (
        Correlation(down, across, g.N, g.G, K, C, taps, C * taps, g.S, K * C * taps, g.P * g.Q, g.H * g.W, g.W),
        block,
    )


# The row and column at which a position begins, and where it is in the result's first channel.
@device
def position(f, n, i, j):
    row, column = i * f.down.out_step + f.down.out0, j * f.across.out_step + f.across.out0
    at = n * f.G * f.M * f.out_plane + row * f.out_width + column
    return i * f.down.stride + f.down.start, j * f.across.stride + f.across.start, at


# How far down and across a tap is, and where it is among the weights of a result channel.
@device
def tap(f, c, t, u):
    r, s = t * f.down.tap_step + f.down.tap0, u * f.across.tap_step + f.across.tap0
    return t * f.down.dilation, u * f.across.dilation, c * f.weight_c + r * f.S + s


# ---- v2


# Copy `channels` planes of the rectangle rows x columns at (h0, w0) of the input, with zeros outside the input.
@device
def stage_patch(patch, input, at, down, across, channels, rows, columns, h0, w0, zero):
    for e in range(cuda.threadIdx.x, channels * rows * columns, cuda.blockDim.x):
        rest, w = take(e, columns)
        c, h = take(rest, rows)
        w, h = w0 + w, h0 + h
        inside = 0 <= h and h < down.size and 0 <= w and w < across.size
        patch[e] = input[at + (c * down.size + h) * across.size + w] if inside else zero


# How far a rectangle of positions reaches under some taps.
@device
def reach(axis, positions, taps):
    return (positions - 1) * axis.stride + (taps - 1) * axis.dilation + 1


# Block: t.M x t.P x t.Q threads and as many results of one image.  Thread: one of them.
def _correlate_smem_tile(T: Any) -> Any:
    @device
    def correlate_smem_tile(f, t, input, weight, bias, out, block):
        patch = cuda.shared.array(PATCH, T)
        other = cuda.shared.array(OTHER, T)
        rest, j = take(cuda.threadIdx.x, t.Q)
        m, i = take(rest, t.P)
        block, m0 = take(block, ceil_div(f.M, t.M))  # blocks that read the same patch are neighbours
        block, j0 = take(block, ceil_div(f.across.positions, t.Q))
        block, i0 = take(block, ceil_div(f.down.positions, t.P))
        n, group = take(block, f.G)
        m0, j0, i0 = m0 * t.M, j0 * t.Q, i0 * t.P
        at_in, at_weight = (n * f.G + group) * f.C * f.in_plane, group * f.weights

        sum = T(0)
        for c0 in range(0, f.C, t.C):
            for r0 in range(0, f.down.taps, t.R):
                for s0 in range(0, f.across.taps, t.S):
                    C, R, S = min(t.C, f.C - c0), min(t.R, f.down.taps - r0), min(t.S, f.across.taps - s0)
                    rows, columns = reach(f.down, t.P, R), reach(f.across, t.Q, S)
                    corner_h, corner_w, _ = position(f, 0, i0, j0)
                    first_h, first_w, _ = tap(f, c0, r0, s0)
                    h0, w0 = corner_h + first_h, corner_w + first_w
                    at = at_in + c0 * f.in_plane
                    stage_patch(patch, input, at, f.down, f.across, C, rows, columns, h0, w0, T(0))
                    for e in range(cuda.threadIdx.x, t.M * C * R * S, cuda.blockDim.x):
                        rest, s = take(e, S)
                        rest, r = take(rest, R)
                        rest, c = take(rest, C)
                        of_m = m0 + rest
                        _, _, at_tap = tap(f, c0 + c, r0 + r, s0 + s)
                        other[e] = weight[at_weight + of_m * f.weight_m + at_tap] if of_m < f.M else T(0)
                    cuda.syncthreads()  # patch and filters are complete before anyone multiplies
                    filter = m * C * R * S
                    at_patch = i * f.down.stride * columns + j * f.across.stride
                    for c in range(C):
                        for r in range(R):
                            row = at_patch + (c * rows + r * f.down.dilation) * columns
                            for s in range(S):
                                sum += other[filter] * patch[row + s * f.across.dilation]
                                filter += 1
                    cuda.syncthreads()  # everyone has multiplied before the next pieces overwrite these
        if m0 + m >= f.M or i0 + i >= f.down.positions or j0 + j >= f.across.positions:
            return
        of_m = group * f.M + m0 + m
        _, _, at = position(f, n, i0 + i, j0 + j)
        out[of_m * f.out_plane + at] = sum if len(bias) == 0 else sum + bias[of_m]

    return correlate_smem_tile


@kernel
def conv2d_forward_v2_smem_tile(T):
    correlate_smem_tile = _correlate_smem_tile(T)

    def body(x, weight, bias, y, g, t):
        correlate_smem_tile(forward_of(g), t, x, weight, bias, y, cuda.blockIdx.x)

    return body


@kernel
def conv2d_backward_input_v2_smem_tile(T):
    correlate_smem_tile = _correlate_smem_tile(T)

    def body(grad, weight, null, dx, g, t):
        f, block = backward_of(g, cuda.blockIdx.x)
        correlate_smem_tile(f, t, grad, weight, null, dx, block)

    return body


# Block: 256 threads, t.M filters x t.C channels x t.R x t.S taps, and one slice of the tiles of positions: for each
# tile the patch of x and the part of g.  Thread: one weight, and every `teams`-th row of the tiles; at the end the
# teams are summed.
@kernel
def conv2d_backward_weight_v2_smem_tile(T):
    def body(x, grad, partials, g, t, length):
        patch = cuda.shared.array(PATCH, T)
        gradients = cuda.shared.array(OTHER, T)
        f = forward_of(g)
        block, s0 = take(cuda.blockIdx.x, ceil_div(g.S, t.S))
        block, r0 = take(block, ceil_div(g.R, t.R))
        block, c0 = take(block, ceil_div(f.C, t.C))
        block, k0 = take(block, ceil_div(f.M, t.M))
        slice, group = take(block, g.G)
        s0, r0, c0, k0 = s0 * t.S, r0 * t.R, c0 * t.C, k0 * t.M
        C, K = min(t.C, f.C - c0), min(t.M, f.M - k0)
        first_h, first_w, _ = tap(f, c0, r0, s0)

        weights = t.M * t.C * t.R * t.S
        teams = 256 // weights
        rest, s = take(cuda.threadIdx.x, t.S)
        rest, r = take(rest, t.R)
        rest, c = take(rest, t.C)
        team, k = take(rest, t.M)
        inside = k < K and c < C and r0 + r < g.R and s0 + s < g.S and team < teams

        across, down = ceil_div(g.Q, t.Q), ceil_div(g.P, t.P)
        end = min((slice + 1) * length, g.N * down * across)
        sum = T(0)
        for tile in range(slice * length, end):
            rest, q0 = take(tile, across)
            n, p0 = take(rest, down)
            p0, q0 = p0 * t.P, q0 * t.Q
            P, Q = min(t.P, g.P - p0), min(t.Q, g.Q - q0)
            rows, columns = reach(f.down, P, t.R), reach(f.across, Q, t.S)
            corner_h, corner_w, _ = position(f, n, p0, q0)
            at = ((n * g.G + group) * f.C + c0) * f.in_plane
            h0, w0 = corner_h + first_h, corner_w + first_w
            stage_patch(patch, x, at, f.down, f.across, C, rows, columns, h0, w0, T(0))
            for e in range(cuda.threadIdx.x, K * P * Q, cuda.blockDim.x):
                rest, q = take(e, Q)
                rest, p = take(rest, P)
                of_k = group * f.M + k0 + rest
                gradients[e] = grad[((n * g.K + of_k) * g.P + p0 + p) * g.Q + q0 + q]
            cuda.syncthreads()  # patch and gradients are complete before anyone multiplies
            if inside:
                for p in range(team, P, teams):
                    row = (c * rows + p * g.sh + r * g.dh) * columns + s * g.dw
                    for q in range(Q):
                        sum += gradients[(k * P + p) * Q + q] * patch[row + q * g.sw]
            cuda.syncthreads()  # everyone has multiplied before the next tile overwrites these
        patch[cuda.threadIdx.x] = sum
        cuda.syncthreads()  # all teams' sums are written before the first team adds them
        if not inside or team != 0:
            return
        for other in range(1, teams):
            sum += patch[other * weights + cuda.threadIdx.x]
        _, _, at_tap = tap(f, c0 + c, r0 + r, s0 + s)
        partials[slice * g.G * f.weights + (group * f.M + k0 + k) * f.weight_m + at_tap] = sum

    return body


# ---- sums


# Block: 32 x 8 threads and 32 columns of partials[slices][size].  Thread: every 8th element of one column; the eight
# sums of a column are added in order.
@kernel
def conv2d_sum_slices(T):
    def body(partials, out, slices, size):
        sums = cuda.shared.array((8, 32), T)
        own, y = cuda.blockIdx.x * 32 + cuda.threadIdx.x, cuda.threadIdx.y
        sum = T(0)
        if own < size:
            for slice in range(y, slices, 8):
                sum += partials[slice * size + own]
        sums[y, cuda.threadIdx.x] = sum
        cuda.syncthreads()  # all eight sums are written before the first row of threads adds them
        if y != 0 or own >= size:
            return
        for other in range(1, 8):
            sum += sums[other, cuda.threadIdx.x]
        out[own] = sum

    return body


# conv2d_backward_bias of conv2d.cu, whose name the launcher below has.
# Block: 256 threads and `length` of the positions (n, p, q) of one channel: partials[slice,k].  Thread: every 256th.
@kernel
def bias_kernel(T):
    THREADS = 256

    def body(grad, partials, N, K, PQ, length):
        values = cuda.shared.array(THREADS, T)
        t = cuda.threadIdx.x
        slice, k = take(cuda.blockIdx.x, K)
        first, end = slice * length, min((slice + 1) * length, N * PQ)
        sum = T(0)
        for i in range(first + t, end, THREADS):
            n, pq = take(i, PQ)
            sum += grad[(n * K + k) * PQ + pq]
        values[t] = sum
        cuda.syncthreads()  # every sum is written before any thread adds one
        distance = WARP // 2
        while distance > 0:
            if t % WARP < distance:
                values[t] += values[t + distance]
            cuda.syncthreads()  # all sums over this distance are written before the next ones read them
            distance //= 2
        if t == 0:
            sum = T(0)
            for w in range(0, THREADS, WARP):
                sum += values[w]
            partials[cuda.blockIdx.x] = sum

    return body


# ---- the grids of cuda.py


def _before_relu(grad: Any, y: Any) -> Any:
    """The gradient in front of the ReLU that gave ``y``, if there is one."""
    return grad if y is None else activation_backward(grad, y, "relu", ())


def conv2d_forward(x: Any, weight: Any, bias: Any, g: Geometry, activation: str | None, out: Any) -> Any:
    y = result(out if activation is None else None, x, g.y_shape)
    t = tiles.smem_forward(g)
    blocks = g.N * g.G * up(g.P, t.P) * up(g.Q, t.Q) * up(g.K // g.G, t.M)
    conv2d_forward_v2_smem_tile[x.dtype](blocks, t.threads, x, weight, bias, y, g, t)
    return y if activation is None else activation_forward(y, activation, (), out)


def conv2d_relu_pool_forward(x: Any, weight: Any, bias: Any, g: Geometry, p: PoolGeometry) -> tuple[Any, Any]:
    return max_pool2d_forward(conv2d_forward(x, weight, bias, g, "relu", None), p, None)


def conv2d_backward_input(grad: Any, weight: Any, g: Geometry, y: Any, out: Any) -> Any:
    grad = _before_relu(grad, y)
    dx = result(out, grad, g.x_shape)
    t = tiles.smem_input(g)
    down, across = tiles.input_axes(g)
    blocks = tiles.classes(g) * g.N * g.G * up(down.positions, t.P) * up(across.positions, t.Q) * up(g.C // g.G, t.M)
    conv2d_backward_input_v2_smem_tile[grad.dtype](blocks, t.threads, grad, weight, None, dx, g, t)
    return dx


def _summed(like: Any, slices: int, dw: Any, launch: Callable[[Any], None]) -> Any:
    """Have `launch` write one partial sum of `dw` per slice, and add them up."""
    partials = dw if slices == 1 else empty(like, (slices, *dw.shape))
    launch(partials)
    if slices > 1:
        conv2d_sum_slices[like.dtype](up(dw.size, 32), (32, 8), partials, dw, slices, dw.size)
    return dw


def conv2d_backward_weight(x: Any, grad: Any, g: Geometry, y: Any, out: Any) -> Any:
    grad = _before_relu(grad, y)
    dw = result(out, x, g.weight_shape)
    t = tiles.smem_weight(g)
    blocks = g.G * up(g.K // g.G, t.M) * up(g.C // g.G, t.C) * up(g.R, t.R) * up(g.S, t.S)
    slices, length = tiles.slices(g.N * up(g.P, t.P) * up(g.Q, t.Q), g.N * g.P * g.Q, blocks, dw.size)
    kernel = conv2d_backward_weight_v2_smem_tile[x.dtype]
    return _summed(x, slices, dw, lambda partials: kernel(slices * blocks, 256, x, grad, partials, g, t, length))


def conv2d_backward_bias(grad: Any, y: Any, out: Any) -> Any:
    grad = _before_relu(grad, y)
    N, K, P, Q = grad.shape
    db = result(out, grad, (K,))
    slices, length = tiles.slices(N * P * Q, N * P * Q, K, K, least=4 * 256)
    kernel = bias_kernel[grad.dtype]
    return _summed(grad, slices, db, lambda partials: kernel(slices * K, 256, grad, partials, N, K, P * Q, length))


def conv2d_backward_parameters(x: Any, grad: Any, g: Geometry, y: Any) -> tuple[Any, Any]:
    return conv2d_backward_weight(x, grad, g, y, None), conv2d_backward_bias(grad, y, None)


VERSIONS: dict[str, dict[str, Callable[..., Any]]] = {
    "conv2d_forward": {"v2_smem_tile": conv2d_forward},
    "conv2d_backward_input": {"v2_smem_tile": conv2d_backward_input},
    "conv2d_backward_weight": {"v2_smem_tile": conv2d_backward_weight},
}
VERSIONS["conv2d_backward_parameters"] = {
    name: one_after_the_other(version, conv2d_backward_bias)
    for name, version in VERSIONS["conv2d_backward_weight"].items()
}
