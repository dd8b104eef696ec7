"""What the tests of conv2d share: the definitions of its passes as loops, and small geometries."""

from __future__ import annotations

import numpy as np
from _layouts import LAYOUTS, untouched
from _tolerance import assert_accurate
from _versions import every_version
from hypothesis import strategies as st

from rawgrad.kernels._dispatch import precision
from rawgrad.kernels.activation import activation_backward
from rawgrad.kernels.conv2d import conv2d_backward_input, conv2d_backward_weight, conv2d_forward, geometry

DTYPES = [np.float32, np.float64]
#: The versions that compute in the dtype of their arrays; the three passes that have versions have the same ones.
VERSIONS = [
    version
    for version in every_version("conv2d", "conv2d_forward")
    if not any(rounding in (version or "") for rounding in ("tensor_core", "channels_last"))
]
#: What tensor cores round to, and the bits of its fraction.
PRECISIONS = [("tf32", 10), ("bf16", 7), ("fp16", 10)]


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


# ---- tensor cores


def rounded(x, name, bits):
    """``x`` to nearest with ``bits`` bits of fraction; ties away from zero for tf32, else to even."""
    fraction, exponent = np.frexp(x.astype(np.float64))
    scaled = fraction * 2 ** (bits + 1)
    whole = np.trunc(scaled + np.copysign(0.5, scaled)) if name == "tf32" else np.rint(scaled)
    return np.ldexp(whole / 2 ** (bits + 1), exponent).astype(np.float32)


def check_rounding(backend, name, bits, g, layout="C", version=None):
    """They round both factors, and nothing else: products are exact, sums are float32's; with ReLU the same bits."""
    rng = np.random.default_rng(0)
    x, weight, bias, grad, gate = (
        rng.standard_normal(shape).astype(np.float32)
        for shape in (g.x_shape, g.weight_shape, (g.K,), g.y_shape, g.y_shape)
    )
    device_x, device_grad, device_gate = (backend.put(a, layout) for a in (x, grad, gate))
    device_weight, device_bias = map(backend.put, (weight, bias))
    of = {**options(g), "version": version}
    with precision(name), untouched(device_x, device_weight, device_grad, device_gate):
        y = backend.get(conv2d_forward(device_x, device_weight, device_bias, **of))
        dx = backend.get(conv2d_backward_input(device_grad, device_weight, g, version=version))
        dw = backend.get(conv2d_backward_weight(device_x, device_grad, g, version=version))
        with_relu = backend.get(conv2d_forward(device_x, device_weight, device_bias, **of, activation="relu"))
        np.testing.assert_array_equal(with_relu, np.maximum(y, 0))
        before = backend.put(backend.get(activation_backward(device_grad, device_gate, "relu")), layout)
        np.testing.assert_array_equal(
            backend.get(conv2d_backward_input(device_grad, device_weight, g, y=device_gate, version=version)),
            backend.get(conv2d_backward_input(before, device_weight, g, version=version)),
        )
        np.testing.assert_array_equal(
            backend.get(conv2d_backward_weight(device_x, device_grad, g, y=device_gate, version=version)),
            backend.get(conv2d_backward_weight(device_x, before, g, version=version)),
        )
    for result, definition, factors, exact_factors in (
        (y, forward, (rounded(x, name, bits), rounded(weight, name, bits), bias, g), (x, weight, bias, g)),
        (dx, backward_input, (rounded(grad, name, bits), rounded(weight, name, bits), g), (grad, weight, g)),
        (dw, backward_weight, (rounded(x, name, bits), rounded(grad, name, bits), g), (x, grad, g)),
    ):
        magnitudes = (abs(a) if isinstance(a, np.ndarray) else a for a in factors)
        assert_accurate(result, definition, *factors, scale=definition(*magnitudes))
        if g.N:
            exact = definition(*(a.astype(np.float64) if isinstance(a, np.ndarray) else a for a in exact_factors))
            assert np.abs(result - exact).max() > 2.0**-20, "nothing was rounded"
