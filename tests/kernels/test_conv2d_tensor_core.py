"""conv2d on tensor cores, which round its factors and nothing else."""

from __future__ import annotations

import numpy as np
import pytest
from _conv2d import PRECISIONS, backward_weight, check_rounding
from _versions import skip_unless_there

from rawgrad.kernels import max_pool2d
from rawgrad.kernels._dispatch import precision
from rawgrad.kernels._errors import BackendError
from rawgrad.kernels.conv2d import (
    conv2d_backward_input,
    conv2d_backward_weight,
    conv2d_forward,
    conv2d_relu_pool_forward,
    geometry,
)

pytestmark = pytest.mark.operation("conv2d")


# Why each: channels and taps of P5's second layer; both heights of a tile, filled and not by one; channels that are no
# multiple of what an instruction sums over; classes of dx, one of them without taps; groups and dilation; a plane of
# several rectangles.
@pytest.mark.parametrize(("name", "bits"), PRECISIONS)
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
    skip_unless_there(backend.name, "conv2d", "conv2d_forward", f"v5_tensor_core_{name}")
    check_rounding(backend, name, bits, geometry(x_shape, weight_shape, *options))


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


def test_the_split_of_float32_changes_nothing(backend):
    """conv2d has no version for it, and a permission that a kernel does not use changes nothing."""
    rng = np.random.default_rng(0)
    g = geometry((1, 8, 4, 5), (8, 8, 3, 3), 1, 1)
    x, weight, grad = (
        backend.put(rng.standard_normal(s).astype(np.float32)) for s in (g.x_shape, g.weight_shape, g.y_shape)
    )

    def results():
        return (
            conv2d_forward(x, weight, padding=1),
            conv2d_backward_input(grad, weight, g),
            conv2d_backward_weight(x, grad, g),
        )

    expected = results()
    with precision("float32_split"):
        for found, same in zip(results(), expected, strict=True):
            np.testing.assert_array_equal(backend.get(found), backend.get(same))
