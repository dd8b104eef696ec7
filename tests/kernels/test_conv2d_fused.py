"""conv2d with what usually follows it, ReLU and pooling: the same as one after the other."""

from __future__ import annotations

import math

import numpy as np
import pytest
from _conv2d import DTYPES, VERSIONS, convolutions, layouts, options
from _layouts import untouched
from _versions import every_version, skip_unless_there
from hypothesis import given
from hypothesis import strategies as st

from rawgrad.kernels import max_pool2d
from rawgrad.kernels._errors import ShapeError
from rawgrad.kernels.activation import activation_backward, activation_forward
from rawgrad.kernels.conv2d import (
    conv2d_backward_bias,
    conv2d_backward_input,
    conv2d_backward_weight,
    conv2d_forward,
    conv2d_relu_pool_forward,
    geometry,
)

pytestmark = pytest.mark.operation("conv2d")


def check_with_relu(backend, g, dtype, layouts=("C", "C", "C"), seed=0, version=None):
    """The bits of the convolution and of ReLU, one after the other, in all passes."""
    rng = np.random.default_rng(seed)
    x, weight, bias, grad = (
        rng.standard_normal(shape).astype(dtype) for shape in (g.x_shape, g.weight_shape, (g.K,), g.y_shape)
    )
    x, weight, grad = (backend.put(a, layout) for a, layout in zip((x, weight, grad), layouts, strict=True))
    bias = backend.put(bias)
    with untouched(x, weight, bias, grad):
        y = conv2d_forward(x, weight, bias, **options(g), activation="relu", version=version)
    between = conv2d_forward(x, weight, bias, **options(g), version=version)
    np.testing.assert_array_equal(backend.get(y), backend.get(activation_forward(between, "relu")))

    y = backend.get(y).copy()
    y[rng.random(y.shape) < 0.1] = np.nan  # whose gradients pass
    device_y = backend.put(y, layouts[0])
    before = activation_backward(grad, device_y, "relu")
    with untouched(x, weight, grad, device_y):
        pairs = [
            (call(grad, y=device_y), call(before))
            for call in (
                lambda grad, **y: conv2d_backward_input(grad, weight, g, **y, version=version),
                lambda grad, **y: conv2d_backward_weight(x, grad, g, **y, version=version),
                conv2d_backward_bias,
            )
        ]
    for result, expected in pairs:
        np.testing.assert_array_equal(backend.get(result), backend.get(expected))


@given(
    g=convolutions(),
    dtype=st.sampled_from(DTYPES),
    layouts=st.tuples(layouts, layouts, layouts),
    seed=st.integers(0, 2**32 - 1),
)
def test_with_relu_as_one_after_the_other(backend, g, dtype, layouts, seed):
    check_with_relu(backend, g, dtype, layouts, seed)


# Rows of a vector's length and one off; output channels that fill whole vectors; strides; a single image of several
# parts; no images.
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("x_shape", "weight_shape", "stride"),
    [
        ((3, 1, 9, 28), (7, 1, 5, 5), 1),
        ((2, 3, 6, 16), (13, 3, 3, 3), 1),
        ((2, 2, 5, 17), (3, 2, 3, 3), 1),
        ((2, 3, 5, 7), (32, 3, 3, 3), 1),
        ((2, 3, 15, 31), (6, 3, 4, 5), 2),
        ((2, 2, 10, 11), (3, 2, 3, 4), 3),
        ((1, 2, 33, 12), (5, 2, 3, 3), 1),
        ((0, 2, 6, 6), (3, 2, 3, 3), 1),
    ],
)
def test_with_relu_at_the_edges_of_vectors(backend, x_shape, weight_shape, stride, dtype):
    check_with_relu(backend, geometry(x_shape, weight_shape, stride, 1), dtype)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(
    ("x_shape", "weight_shape", "options"),
    [
        ((2, 4, 6, 7), (6, 2, 3, 3), (2, 1, 1, 2)),
        ((3, 3, 8, 6), (9, 3, 5, 5), (1, 2)),
        ((2, 2, 9, 9), (10, 2, 3, 3), (1, 1)),
    ],
)
def test_every_version_with_relu(backend, version, x_shape, weight_shape, options):
    skip_unless_there(backend.name, "conv2d", "conv2d_forward", version)
    check_with_relu(backend, geometry(x_shape, weight_shape, *options), np.float32, version=version)


def test_with_relu_in_as_many_launches_as_without(backend):
    if backend.name != "emulated":
        pytest.skip("only the emulator counts launches")
    from rawgrad.kernels._emulator.runtime import record_launches

    g = geometry((2, 3, 6, 6), (8, 3, 3, 3), 1, 1)
    x, weight, y = (backend.put(np.ones(s, np.float32)) for s in (g.x_shape, g.weight_shape, g.y_shape))
    counts = []
    for relu, of_y in ((None, None), ("relu", y)):
        with record_launches() as launches:
            conv2d_forward(x, weight, padding=1, activation=relu)
            conv2d_backward_input(y, weight, g, y=of_y)
            conv2d_backward_weight(x, y, g, y=of_y)
            conv2d_backward_bias(y, y=of_y)
        counts.append([launch.kernel for launch in launches])
    assert counts[0] == counts[1]


def test_with_relu_nan_and_infinity_travel(backend):
    x = np.array([[[[np.nan, np.inf, -np.inf, 2.0, -3.0]]]], np.float32)
    weight, grad = np.ones((1, 1, 1, 1), np.float32), np.array([[[[1.0, np.nan, np.inf, np.inf, np.nan]]]], np.float32)
    device_x, device_weight, device_grad = map(backend.put, (x, weight, grad))
    y = conv2d_forward(device_x, device_weight, activation="relu")
    np.testing.assert_array_equal(backend.get(y), [[[[np.nan, np.inf, 0, 2, 0]]]])
    dx = conv2d_backward_input(device_grad, device_weight, geometry(x.shape, weight.shape), y=y)
    np.testing.assert_array_equal(backend.get(dx), [[[[1, np.nan, 0, np.inf, 0]]]])


def test_with_relu_into_memory_of_the_caller(backend):
    x, weight = (backend.put(np.arange(-8.0, 8.0).reshape(1, 1, 4, 4)) for _ in range(2))
    out = backend.put(np.full((1, 1, 7, 7), np.nan))
    assert conv2d_forward(x, weight, padding=3, activation="relu", out=out) is out
    np.testing.assert_array_equal(backend.get(out), np.maximum(backend.get(conv2d_forward(x, weight, padding=3)), 0))


# ---- fused with ReLU and pooling


# Why each: planes of even and odd size (a row and a column that no window covers), rows of a vector's length and
# one off, several groups of output channels, a single image (whose planes are cut), strides, windows that overlap or
# are padded, groups, no bias.
@pytest.mark.parametrize(
    ("x_shape", "weight_shape", "options", "pool", "with_bias"),
    [
        ((3, 1, 28, 28), (20, 1, 5, 5), (1, 2), (2,), True),
        ((2, 3, 9, 33), (13, 3, 3, 3), (1, 1), (2,), True),
        ((2, 2, 7, 17), (1, 2, 3, 3), (1, 1), (2,), False),
        ((4, 2, 6, 32), (7, 2, 1, 1), (1, 0), (2,), True),
        ((1, 2, 12, 12), (4, 2, 3, 3), (1, 1), (2,), True),
        ((2, 4, 15, 16), (6, 2, 4, 3), ((2, 1), (1, 2), (1, 2), 2), (2,), True),
        ((2, 2, 9, 10), (3, 2, 3, 3), (1, 1), (3, 2, 1), True),
        ((2, 2, 9, 10), (3, 2, 3, 3), (1, 1), ((2, 3), 1), False),
        ((0, 2, 6, 6), (3, 2, 3, 3), (1, 1), (2,), True),
        ((2, 20, 14, 14), (20, 20, 5, 5), (1, 2), (2,), True),
        ((2, 1, 7, 6), (5, 1, 3, 3), (1, 1), (2, 2, 1), True),
        ((1, 1, 7, 9), (33, 1, 3, 3), (1, 1), (2, 2, 0, 1, True), True),
        ((1, 2, 9, 11), (6, 2, 3, 2), ((1, 2), (2, 1), (2, 1)), (2, 2, (1, 0), 1, True), False),
        ((2, 9, 5, 70), (6, 3, 5, 5), (1, 2, 1, 3), (2,), True),
    ],
)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("version", every_version("conv2d", "conv2d_relu_pool_forward"))
def test_with_relu_and_pooling_as_one_after_the_other(
    backend, version, x_shape, weight_shape, options, pool, with_bias, dtype
):
    rng = np.random.default_rng(0)
    g = geometry(x_shape, weight_shape, *options)
    p = max_pool2d.geometry(g.y_shape, *pool)
    # Whole numbers, so that sums are exact and there are many ties.
    x, weight, bias = (backend.put(rng.integers(-3, 4, shape).astype(dtype)) for shape in (x_shape, weight_shape, g.K))
    bias = bias if with_bias else None
    with untouched(x, weight):
        y, codes = conv2d_relu_pool_forward(x, weight, bias, g, p, version=version)
    options = {"stride": g.stride, "padding": g.padding, "dilation": g.dilation, "groups": g.G}
    between = activation_forward(conv2d_forward(x, weight, bias, **options), "relu")
    window = {"stride": p.stride, "padding": p.padding, "dilation": p.dilation, "ceil_mode": len(pool) > 4}
    expected, expected_codes = max_pool2d.max_pool2d_forward(between, (p.R, p.S), **window)
    assert y.dtype == dtype
    np.testing.assert_array_equal(backend.get(y), backend.get(expected))
    np.testing.assert_array_equal(backend.get(codes), backend.get(expected_codes))


def test_with_relu_and_pooling_nan_travels(backend):
    x = np.zeros((2, 1, 8, 8), np.float32)
    x[0, 0, 3, 5], x[1, 0, 6, 1] = np.nan, np.inf
    weight = np.ones((2, 1, 1, 1), np.float32) * np.float32([1, -1]).reshape(2, 1, 1, 1)
    g = geometry(x.shape, weight.shape)
    y, codes = conv2d_relu_pool_forward(backend.put(x), backend.put(weight), None, g, max_pool2d.geometry(g.y_shape, 2))
    y, codes = backend.get(y), backend.get(codes)
    assert np.isnan(y[0, :, 1, 2]).all() and np.isnan(y).sum() == 2 and (codes[0, :, 1, 2] == 3).all()
    assert y[1, 0, 3, 0] == np.inf and y[1, 1, 3, 0] == 0


def test_with_relu_and_pooling_nothing_is_written_but_the_result(backend):
    """One launch, which writes what is pooled, and no array in between."""
    if backend.name != "emulated":
        pytest.skip("only the emulator counts bytes and launches")
    from rawgrad.kernels._emulator.runtime import record_launches

    for x_shape, weight_shape, stride in (((2, 1, 28, 28), (20, 1, 5, 5), 1), ((1, 3, 9, 9), (4, 3, 3, 2), 2)):
        g = geometry(x_shape, weight_shape, stride, 2)
        p = max_pool2d.geometry(g.y_shape, 2)
        x, weight = (backend.put(np.ones(s, np.float32)) for s in (g.x_shape, g.weight_shape))
        with record_launches() as launches:
            conv2d_relu_pool_forward(x, weight, None, g, p)
        (launch,) = launches
        pooled = math.prod(p.y_shape)
        assert launch.traffic.distinct_written == launch.traffic.global_written == 5 * pooled


def test_with_relu_and_pooling_refuses_a_pooling_of_something_else(backend):
    x, weight = backend.put(np.zeros((1, 1, 4, 4), np.float32)), backend.put(np.zeros((1, 1, 1, 1), np.float32))
    g = geometry(x.shape, weight.shape)
    with pytest.raises(ShapeError, match=r"p must pool the convolution's \(1, 1, 4, 4\); it is of \(1, 1, 6, 4\)"):
        conv2d_relu_pool_forward(x, weight, None, g, max_pool2d.geometry((1, 1, 6, 4), 2))
    with pytest.raises(ShapeError, match=r"conv2d_relu_pool: weight must have shape"):
        conv2d_relu_pool_forward(x, x, None, g, max_pool2d.geometry(g.y_shape, 2))
