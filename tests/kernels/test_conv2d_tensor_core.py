"""conv2d on tensor cores, which round its factors and nothing else."""

from __future__ import annotations

import numpy as np
import pytest
from _conv2d import backward_input, backward_weight, forward
from _layouts import untouched
from _tolerance import assert_accurate
from _versions import skip_unless_there

from rawgrad.kernels import max_pool2d
from rawgrad.kernels._dispatch import precision
from rawgrad.kernels._errors import BackendError
from rawgrad.kernels.activation import activation_backward
from rawgrad.kernels.conv2d import (
    conv2d_backward_input,
    conv2d_backward_weight,
    conv2d_forward,
    conv2d_relu_pool_forward,
    geometry,
)

pytestmark = pytest.mark.operation("conv2d")


def rounded(x, name, bits):
    """``x`` to nearest with ``bits`` bits of fraction; ties away from zero for tf32, else to even."""
    fraction, exponent = np.frexp(x.astype(np.float64))
    scaled = fraction * 2 ** (bits + 1)
    whole = np.trunc(scaled + np.copysign(0.5, scaled)) if name == "tf32" else np.rint(scaled)
    return np.ldexp(whole / 2 ** (bits + 1), exponent).astype(np.float32)


# Why each: channels and taps of P5's second layer; both heights of a tile, filled and not by one; channels that are no
# multiple of what an instruction sums over; classes of dx, one of them without taps; groups and dilation; a plane of
# several rectangles.
@pytest.mark.parametrize(("name", "bits"), [("tf32", 10), ("bf16", 7), ("fp16", 10)])
@pytest.mark.parametrize(
    ("x_shape", "weight_shape", "options"),
    [
        ((1, 20, 5, 4), (20, 20, 5, 5), (1, 2)),
        ((1, 16, 3, 4), (33, 16, 3, 3), (1, 1)),
        ((2, 17, 5, 4), (32, 17, 1, 1), (1, 0)),
        ((1, 9, 8, 9), (65, 9, 2, 1), (2, 1)),
        ((2, 18, 9, 8), (16, 9, 3, 2), ((2, 1), 1, (1, 2), 2)),
        ((1, 8, 9, 33), (8, 8, 1, 3), (1, (0, 1))),
        ((2, 140, 5, 6), (8, 140, 1, 1), ()),  # more channels than a block of dw takes
        ((0, 8, 4, 4), (8, 8, 3, 3), (1, 1)),
    ],
)
def test_tensor_cores(backend, name, bits, x_shape, weight_shape, options):
    """They round both factors, and nothing else: products are exact, sums are float32's."""
    skip_unless_there(backend.name, "conv2d", "conv2d_forward", f"v5_tensor_core_{name}")
    g = geometry(x_shape, weight_shape, *options)
    rng = np.random.default_rng(0)
    x, weight, bias, grad = (
        rng.standard_normal(shape).astype(np.float32) for shape in (g.x_shape, g.weight_shape, (g.K,), g.y_shape)
    )
    device_x, device_weight, device_bias, device_grad = map(backend.put, (x, weight, bias, grad))
    of = {"stride": g.stride, "padding": g.padding, "dilation": g.dilation, "groups": g.G}
    with precision(name), untouched(device_x, device_weight, device_grad):
        y = backend.get(conv2d_forward(device_x, device_weight, device_bias, **of))
        dx = backend.get(conv2d_backward_input(device_grad, device_weight, g))
        dw = backend.get(conv2d_backward_weight(device_x, device_grad, g))
        gate = backend.put(rng.standard_normal(g.y_shape).astype(np.float32))
        with_relu = backend.get(conv2d_forward(device_x, device_weight, device_bias, **of, activation="relu"))
        np.testing.assert_array_equal(with_relu, np.maximum(y, 0))
        np.testing.assert_array_equal(
            backend.get(conv2d_backward_input(device_grad, device_weight, g, y=gate)),
            backend.get(conv2d_backward_input(activation_backward(device_grad, gate, "relu"), device_weight, g)),
        )
        np.testing.assert_array_equal(
            backend.get(conv2d_backward_weight(device_x, device_grad, g, y=gate)),
            backend.get(conv2d_backward_weight(device_x, activation_backward(device_grad, gate, "relu"), g)),
        )
    for result, definition, factors, before in (
        (y, forward, (rounded(x, name, bits), rounded(weight, name, bits), bias, g), (x, weight, bias, g)),
        (dx, backward_input, (rounded(grad, name, bits), rounded(weight, name, bits), g), (grad, weight, g)),
        (dw, backward_weight, (rounded(x, name, bits), rounded(grad, name, bits), g), (x, grad, g)),
    ):
        magnitudes = (abs(a) if isinstance(a, np.ndarray) else a for a in factors)
        assert_accurate(result, definition, *factors, scale=definition(*magnitudes))
        if g.N:
            exact = definition(*(a.astype(np.float64) if isinstance(a, np.ndarray) else a for a in before))
            assert np.abs(result - exact).max() > 2.0**-20, "nothing was rounded"


def test_tensor_cores_pool_too(backend):
    skip_unless_there(backend.name, "conv2d", "conv2d_forward", "v5_tensor_core_tf32")
    rng = np.random.default_rng(0)
    g = geometry((1, 8, 6, 6), (8, 8, 3, 3), 1, 1)
    x, weight = (backend.put(rng.standard_normal(s).astype(np.float32)) for s in (g.x_shape, g.weight_shape))
    with precision("tf32"):
        y, codes = conv2d_relu_pool_forward(x, weight, None, g, max_pool2d.geometry(g.y_shape, 2))
        between = conv2d_forward(x, weight, padding=1, activation="relu")
    expected, expected_codes = max_pool2d.max_pool2d_forward(between, 2)
    np.testing.assert_array_equal(backend.get(y), backend.get(expected))
    np.testing.assert_array_equal(backend.get(codes), backend.get(expected_codes))


def test_tensor_cores_nan_and_infinity_travel(backend):
    skip_unless_there(backend.name, "conv2d", "conv2d_forward", "v5_tensor_core_tf32")
    x = np.zeros((2, 8, 5, 5), np.float32)
    x[0, 3, 0, 0], x[1, 7, 4, 4] = np.nan, np.inf
    weight = np.ones((9, 8, 2, 2), np.float32)
    for name in ("tf32", "bf16", "fp16"):
        with precision(name):
            y = backend.get(conv2d_forward(backend.put(x), backend.put(weight)))
        expected = np.zeros((2, 9, 4, 4), np.float32)
        expected[0, :, 0, 0], expected[1, :, 3, 3] = np.nan, np.inf
        np.testing.assert_array_equal(y, expected)
        g = geometry(x.shape, weight.shape, 2)  # no window reaches the last row; four positions fill half a step
        grad = np.ones(g.y_shape, np.float32)
        with precision(name):
            dw = backend.get(conv2d_backward_weight(backend.put(x), backend.put(grad), g))
        np.testing.assert_array_equal(dw, backward_weight(x, grad, g))


def test_tensor_cores_by_name_refuse_what_they_cannot(backend):
    skip_unless_there(backend.name, "conv2d", "conv2d_forward", "v5_tensor_core_tf32")
    x, weight = (backend.put(np.zeros(s)) for s in ((1, 8, 4, 4), (8, 8, 3, 3)))
    with pytest.raises(BackendError, match="conv2d: the tensor cores' tf32 takes float32; got float64"):
        conv2d_forward(x, weight, version="v5_tensor_core_tf32")
    x, weight = (backend.put(np.zeros(s, np.float32)) for s in ((1, 8, 71, 69), (8, 8, 2, 2)))
    with pytest.raises(BackendError, match="conv2d: the tensor cores' tile has no room"):
        conv2d_forward(x, weight, dilation=(70, 67), version="v5_tensor_core_tf32")
    g = geometry(x.shape, weight.shape, dilation=(70, 67))
    grad = backend.put(np.zeros(g.y_shape, np.float32))
    with pytest.raises(BackendError, match="conv2d: the tensor cores' tile has no room"):
        conv2d_backward_weight(x, grad, g, version="v5_tensor_core_tf32")
    with precision("tf32"):  # a permission, not a command
        assert conv2d_forward(x, weight, dilation=(70, 67)).shape == (1, 8, 1, 2)
        assert conv2d_backward_weight(x, grad, g).shape == (8, 8, 2, 2)
