"""What the tests of conv2d share: the definitions of its passes as loops, and small geometries."""

from __future__ import annotations

import numpy as np
from _layouts import LAYOUTS
from _versions import every_version
from hypothesis import strategies as st

from rawgrad.kernels.conv2d import geometry

DTYPES = [np.float32, np.float64]
#: The versions that compute in the dtype of their arrays; the three passes that have versions have the same ones.
VERSIONS = [version for version in every_version("conv2d", "conv2d_forward") if "tensor_core" not in (version or "")]


def meetings(g):
    """All (p, q, r, s, h, w) of the definition: output (p, q) meets input (h, w) through tap (r, s)."""
    for p, q, r, s in np.ndindex(g.P, g.Q, g.R, g.S):
        h = p * g.stride[0] + r * g.dilation[0] - g.padding[0]
        w = q * g.stride[1] + s * g.dilation[1] - g.padding[1]
        if 0 <= h < g.H and 0 <= w < g.W:
            yield p, q, r, s, h, w


def pairs(g):
    """All (k, c of the input, c of the weight) that are connected."""
    for k in range(g.K):
        for c in range(g.C // g.G):
            yield k, k // (g.K // g.G) * (g.C // g.G) + c, c


def forward(x, weight, bias, g):
    y = np.zeros(g.y_shape, x.dtype)
    for p, q, r, s, h, w in meetings(g):
        for k, c, c_of_weight in pairs(g):
            y[:, k, p, q] += weight[k, c_of_weight, r, s] * x[:, c, h, w]
    return y if bias is None else y + bias[None, :, None, None]


def backward_input(grad, weight, g):
    dx = np.zeros(g.x_shape, grad.dtype)
    for p, q, r, s, h, w in meetings(g):
        for k, c, c_of_weight in pairs(g):
            dx[:, c, h, w] += weight[k, c_of_weight, r, s] * grad[:, k, p, q]
    return dx


def backward_weight(x, grad, g):
    dw = np.zeros(g.weight_shape, grad.dtype)
    for p, q, r, s, h, w in meetings(g):
        for k, c, c_of_weight in pairs(g):
            dw[k, c_of_weight, r, s] += (x[:, c, h, w] * grad[:, k, p, q]).sum(dtype=grad.dtype)
    return dw


def backward_bias(grad):
    return grad.sum(axis=(0, 2, 3), dtype=grad.dtype)


@st.composite
def convolutions(draw):
    """Geometries small enough for loops; paddings may exceed the filter, strides the input."""
    G, C_of_group, K_of_group = (draw(st.integers(1, 3)) for _ in range(3))
    R, S = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    stride, padding, dilation = ((draw(st.integers(least, 3)), draw(st.integers(least, 3))) for least in (1, 0, 1))
    H, W = (
        max(1, d * (taps - 1) + 1 - 2 * p) + draw(st.integers(0, 4))
        for d, taps, p in zip(dilation, (R, S), padding, strict=True)
    )
    x_shape = draw(st.integers(0, 3)), G * C_of_group, H, W
    return geometry(x_shape, (G * K_of_group, C_of_group, R, S), stride, padding, dilation, G)


layouts = st.sampled_from(list(LAYOUTS))


def options(g):
    return {"stride": g.stride, "padding": g.padding, "dilation": g.dilation, "groups": g.G}
