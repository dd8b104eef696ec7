"""conv2d's four passes against their definitions, hand-worked cases, SciPy and torch."""

from __future__ import annotations

import math

import numpy as np
import pytest
from _conv2d import (
    DTYPES,
    VERSIONS,
    backward_bias,
    backward_input,
    backward_weight,
    convolutions,
    forward,
    layouts,
    options,
)
from _layouts import LAYOUTS, untouched
from _tolerance import assert_accurate
from _versions import skip_unless_there
from hypothesis import given
from hypothesis import strategies as st

from rawgrad.kernels import conv2d
from rawgrad.kernels._errors import ArgumentError, DtypeError, ShapeError
from rawgrad.kernels.conv2d import (
    conv2d_backward_bias,
    conv2d_backward_input,
    conv2d_backward_parameters,
    conv2d_backward_weight,
    conv2d_forward,
    geometry,
)


def test_worked_by_hand(backend):
    x = backend.put(np.arange(1.0, 10.0).reshape(1, 1, 3, 3))
    weight = backend.put(np.array([[[[1.0, 2.0], [3.0, 4.0]]]]))
    y = conv2d_forward(x, weight, backend.put(np.array([0.5])))
    np.testing.assert_array_equal(backend.get(y), [[[[37.5, 47.5], [67.5, 77.5]]]])

    g = geometry((1, 1, 3, 3), (1, 1, 2, 2))
    grad = backend.put(np.array([[[[1.0, 0.0], [0.0, 10.0]]]]))
    np.testing.assert_array_equal(
        backend.get(conv2d_backward_input(grad, weight, g)), [[[[1.0, 2.0, 0.0], [3.0, 14.0, 20.0], [0.0, 30.0, 40.0]]]]
    )
    np.testing.assert_array_equal(backend.get(conv2d_backward_weight(x, grad, g)), [[[[51.0, 62.0], [84.0, 95.0]]]])
    np.testing.assert_array_equal(backend.get(conv2d_backward_bias(grad)), [11.0])


def test_padding_stride_and_dilation_by_hand(backend):
    x = backend.put(np.array([[[[1.0, 2.0, 3.0, 4.0]]]]))
    weight = backend.put(np.array([[[[1.0, 10.0]]]]))

    def conv(**options):
        return backend.get(conv2d_forward(x, weight, **options))[0, 0, 0].tolist()

    assert conv() == [21.0, 32.0, 43.0]
    assert conv(stride=(1, 2)) == [21.0, 43.0]
    assert conv(padding=(0, 1)) == [10.0, 21.0, 32.0, 43.0, 4.0]
    assert conv(dilation=(1, 3)) == [41.0]
    assert conv(padding=(0, 3), dilation=(1, 3), stride=(1, 3)) == [10.0, 41.0, 4.0]


@pytest.mark.parametrize("version", VERSIONS)
@given(
    g=convolutions(),
    dtype=st.sampled_from(DTYPES),
    layouts=st.tuples(layouts, layouts, layouts),
    seed=st.integers(0, 2**32 - 1),
)
def test_all_passes_agree_with_their_definitions(backend, version, g, dtype, layouts, seed):
    check_all_passes(backend, version, g, dtype, layouts, seed)


def check_all_passes(backend, version, g, dtype, layouts=("C", "C", "C"), seed=0):
    skip_unless_there(backend.name, "conv2d", "conv2d_forward", version)
    rng = np.random.default_rng(seed)
    x, weight, bias, grad = (
        rng.standard_normal(shape).astype(dtype) for shape in (g.x_shape, g.weight_shape, (g.K,), g.y_shape)
    )
    device_x, device_weight, device_grad = (
        backend.put(a, layout) for a, layout in zip((x, weight, grad), layouts, strict=True)
    )
    device_bias = backend.put(bias)
    with untouched(device_x, device_weight, device_grad, device_bias):
        y = conv2d_forward(device_x, device_weight, device_bias, **options(g), version=version)
        dx = conv2d_backward_input(device_grad, device_weight, g, version=version)
        dw = conv2d_backward_weight(device_x, device_grad, g, version=version)
        db = conv2d_backward_bias(device_grad)

    results = [
        (y, forward, (x, weight, bias, g)),
        (dx, backward_input, (grad, weight, g)),
        (dw, backward_weight, (x, grad, g)),
        (db, backward_bias, (grad,)),
    ]
    if backend.name == "numba":  # where one kernel computes both; the others call the two
        both = conv2d_backward_parameters(device_x, device_grad, g)
        np.testing.assert_array_equal(both[0], dw)
        results.append((both[1], backward_bias, (grad,)))
    for result, definition, arguments in results:
        assert result.dtype == dtype
        magnitudes = (abs(a) if isinstance(a, np.ndarray) else a for a in arguments)
        assert_accurate(backend.get(result), definition, *arguments, scale=definition(*magnitudes))


# Why each: sums of dot products; of outer products, where output channels fill vectors; several of those tiles, in
# groups; planes in several blocks; parts of the input channels, whose first alone adds up the gradient.
@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize(
    ("x_shape", "weight_shape", "padding", "groups"),
    [
        ((3, 2, 9, 7), (5, 2, 3, 3), 1, 1),
        ((2, 3, 6, 6), (32, 3, 3, 3), 0, 1),
        ((2, 4, 5, 5), (140, 2, 2, 2), 1, 2),
        ((1, 1, 200, 150), (3, 1, 2, 2), 0, 1),
        ((2, 1500, 2, 2), (1500, 1500, 2, 2), 0, 1),
    ],
)
def test_both_gradients_of_the_parameters_at_once(backend, x_shape, weight_shape, padding, groups, relu):
    if x_shape[1] == 1500 and backend.name not in ("numba", "numpy"):
        pytest.skip("two kernels compute these gradients")
    rng, g = np.random.default_rng(0), geometry(x_shape, weight_shape, 1, padding, 1, groups)
    x, grad, y = (rng.standard_normal(shape).astype("f") for shape in (x_shape, g.y_shape, g.y_shape))
    device_x, device_grad, device_y = map(backend.put, (x, grad, y))
    given_y = device_y if relu else None
    with untouched(device_x, device_grad, device_y):
        dw, db = conv2d_backward_parameters(device_x, device_grad, g, y=given_y)
    alone = conv2d_backward_weight(device_x, device_grad, g, y=given_y)
    np.testing.assert_array_equal(backend.get(dw), backend.get(alone))
    passed = np.where(y <= 0, 0, grad) if relu else grad
    assert_accurate(backend.get(db), backward_bias, passed, scale=backward_bias(abs(passed)))


# Sizes at which the tiles of the CUDA kernels end, one below, at and above: rectangles of 16 x 16 positions, runs of
# 128; 16, 24, 32 and 64 channels; 8 terms of a sum in float32 and 4 in float64; 32 and 128 taps where they are columns.
# Many images, rather than large ones, keep the definition's loops short.
@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("x_shape", "weight_shape", "padding"),
    [
        ((1, 1, 15, 17), (1, 1, 1, 1), 0),
        ((1, 1, 16, 16), (2, 1, 3, 3), 1),
        ((1, 2, 33, 18), (1, 2, 2, 3), 0),
        ((127, 9, 1, 1), (15, 9, 1, 1), 0),
        ((64, 8, 1, 2), (16, 8, 1, 1), 0),
        ((43, 7, 1, 3), (17, 7, 1, 1), 0),
        ((3, 4, 2, 2), (24, 4, 2, 2), 1),
        ((2, 31, 1, 4), (25, 31, 1, 1), 0),
        ((2, 11, 2, 2), (33, 11, 1, 3), (0, 1)),
        ((1, 64, 1, 3), (65, 64, 1, 2), 0),
        ((2, 65, 1, 1), (64, 65, 1, 2), (0, 1)),
        ((1, 2, 6, 6), (8, 2, 3, 3), 1),  # v2: 36 positions leave threads for 7 channels, the eighth is alone
        # v4: squares of 2 x 2 and fours of channels, which these fill, or do not by one; pieces of channels; pieces of
        # a plane; unrolled filters of 3 x 3 and 5 x 5, and runs of 3 and 5 taps in filters of other heights.
        ((1, 1, 8, 8), (4, 1, 5, 5), 2),
        ((2, 3, 7, 9), (5, 3, 5, 5), 2),
        ((1, 9, 4, 6), (3, 9, 3, 3), 1),
        ((1, 37, 3, 3), (36, 37, 3, 3), 1),
        ((1, 1, 3, 70), (2, 1, 3, 3), (2, 1)),
        ((1, 2, 40, 5), (7, 2, 2, 5), (1, 0)),
        ((2, 2, 6, 7), (4, 2, 5, 3), (0, 2)),
    ],
)
def test_sizes_at_the_edges_of_tiles(backend, version, dtype, x_shape, weight_shape, padding):
    check_all_passes(backend, version, geometry(x_shape, weight_shape, 1, padding), dtype)


# Sizes at which the compiled kernels of the CPU change: rows of one vector, of some, and of one number more; classes
# of columns of different length, that come together in vectors; channels in tiles of 6, 12 and 13; several images, and
# several input channels, that share a tile; a plane in several pieces.
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("x_shape", "weight_shape", "stride", "padding"),
    [
        ((1, 1, 4, 33), (6, 1, 2, 5), 1, (0, 2)),
        ((5, 2, 3, 16), (13, 2, 3, 3), 1, 1),
        ((2, 3, 4, 17), (12, 3, 1, 2), 1, 0),
        ((1, 2, 5, 37), (3, 2, 3, 3), 2, 1),
        ((1, 1, 4, 66), (2, 1, 2, 4), 2, (1, 2)),
        ((1, 1, 3, 35), (2, 1, 2, 3), (1, 3), 1),
        ((1, 1, 40, 9), (1, 1, 2, 2), (2, 1), 0),
        ((1, 1, 1, 600), (5, 1, 1, 7), 1, (0, 3)),
    ],
)
def test_rows_at_the_edges_of_vectors(backend, dtype, x_shape, weight_shape, stride, padding):
    check_all_passes(backend, None, geometry(x_shape, weight_shape, stride, padding), dtype)


# A filter with more taps than a block has threads; one with more than shared memory has room for; a dilation, and a
# stride, that spread four elements over more than it has room for (padding keeps x small); a stride beyond both the
# filter and the input.
@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(
    ("x_shape", "weight_shape", "stride", "padding", "dilation"),
    [
        ((1, 1, 17, 18), (2, 1, 17, 16), 1, 0, 1),
        ((1, 1, 1, 3), (1, 1, 1, 2100), 1, (0, 1049), 1),
        ((1, 1, 71, 69), (1, 1, 2, 2), 1, 0, (70, 67)),
        ((2, 1, 8, 9), (1, 1, 1, 2), (67, 68), 60, 1),
        ((2, 2, 3, 4), (3, 2, 1, 2), (4, 6), (3, 4), 1),
    ],
)
def test_windows_that_no_tile_holds(backend, version, x_shape, weight_shape, stride, padding, dilation):
    check_all_passes(backend, version, geometry(x_shape, weight_shape, stride, padding, dilation), np.float64)


@given(convolutions(), st.integers(0, 2**32 - 1))
def test_the_backward_passes_are_adjoints(backend, g, seed):
    """<grad, w * x> = <dx, x> = <dw, w>, since the convolution is linear in x and in w."""
    rng = np.random.default_rng(seed)
    x, weight, grad = (rng.standard_normal(shape) for shape in (g.x_shape, g.weight_shape, g.y_shape))
    device_x, device_weight, device_grad = map(backend.put, (x, weight, grad))
    y = conv2d_forward(device_x, device_weight, **options(g))
    inner = np.vdot(grad, backend.get(y))
    tolerance = 1e-12 * (1 + np.abs(grad).sum())
    assert abs(np.vdot(backend.get(conv2d_backward_input(device_grad, device_weight, g)), x) - inner) <= tolerance
    assert abs(np.vdot(backend.get(conv2d_backward_weight(device_x, device_grad, g)), weight) - inner) <= tolerance


# The two layers of the tutorial's network, P5: 1 -> 20 and 20 -> 20 channels, 5x5, padding 2.
@pytest.mark.parametrize(("C", "size"), [(1, 28), (20, 14)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_forward_agrees_with_scipy(backend, C, size, dtype):
    from scipy.signal import correlate

    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, C, size, size)).astype(dtype)
    weight = rng.standard_normal((20, C, 5, 5)).astype(dtype)

    def by_scipy(x, weight):
        padded = np.pad(x, ((0, 0), (0, 0), (2, 2), (2, 2)))
        planes = [
            sum(correlate(image[c], w[c], mode="valid", method="direct") for c in range(C))
            for image in padded
            for w in weight
        ]
        return np.stack(planes).reshape(2, 20, size, size)

    y = backend.get(conv2d_forward(backend.put(x), backend.put(weight), padding=2))
    assert_accurate(y, by_scipy, x, weight)
    strided = backend.get(conv2d_forward(backend.put(x), backend.put(weight), padding=2, stride=(2, 3)))
    assert_accurate(strided, lambda *arguments: by_scipy(*arguments)[:, :, ::2, ::3], x, weight)


# Why each: plain; stride that leaves a rest; padding beyond the filter; dilation; groups; depthwise;
# 1x1; filter as large as the input; P10's asymmetric case after zero padding; groups whose channels fill a tile.
@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(
    ("x_shape", "weight_shape", "stride", "padding", "dilation", "groups"),
    [
        ((2, 3, 9, 8), (4, 3, 3, 3), 1, 1, 1, 1),
        ((2, 2, 10, 9), (3, 2, 4, 3), (3, 2), (1, 0), 1, 1),
        ((1, 2, 4, 5), (2, 2, 2, 2), (2, 3), (4, 3), 1, 1),
        ((2, 2, 9, 9), (2, 2, 3, 2), (1, 2), 2, (2, 3), 1),
        ((2, 6, 7, 7), (9, 2, 3, 3), 2, 1, 1, 3),
        ((2, 4, 6, 6), (8, 1, 3, 3), 1, 1, 2, 4),
        ((3, 5, 4, 4), (6, 5, 1, 1), 2, 0, 1, 1),
        ((2, 3, 4, 5), (2, 3, 4, 5), 1, 0, 1, 1),
        ((2, 4, 31, 31), (8, 4, 5, 5), 2, 0, 1, 1),
        ((3, 18, 5, 6), (34, 9, 3, 2), (2, 1), 1, (1, 2), 2),
    ],
)
def test_all_passes_agree_with_torch(backend, version, x_shape, weight_shape, stride, padding, dilation, groups):
    torch = pytest.importorskip("torch")
    skip_unless_there(backend.name, "conv2d", "conv2d_forward", version)
    rng = np.random.default_rng(0)
    x, weight, bias = (rng.standard_normal(shape) for shape in (x_shape, weight_shape, weight_shape[:1]))
    tensors = [torch.tensor(a, requires_grad=True) for a in (x, weight, bias)]
    expected = torch.nn.functional.conv2d(*tensors, stride, padding, dilation, groups)
    grad = rng.standard_normal(tuple(expected.shape))
    expected.backward(torch.tensor(grad))

    device_x, device_weight, device_bias, device_grad = map(backend.put, (x, weight, bias, grad))
    g = geometry(x_shape, weight_shape, stride, padding, dilation, groups)
    results = (
        conv2d_forward(device_x, device_weight, device_bias, **options(g), version=version),
        conv2d_backward_input(device_grad, device_weight, g, version=version),
        conv2d_backward_weight(device_x, device_grad, g, version=version),
        conv2d_backward_bias(device_grad),
    )
    for result, tensor in zip(results, (expected.detach(), *(t.grad for t in tensors)), strict=True):
        np.testing.assert_allclose(backend.get(result), tensor.numpy(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("version", VERSIONS)
def test_an_empty_batch_has_zero_gradients(backend, version):
    skip_unless_there(backend.name, "conv2d", "conv2d_forward", version)
    g = geometry((0, 2, 5, 5), (3, 2, 3, 3))
    x, weight = backend.put(np.zeros(g.x_shape, np.float32)), backend.put(np.ones(g.weight_shape, np.float32))
    grad = backend.put(np.zeros(g.y_shape, np.float32))
    assert conv2d_forward(x, weight, version=version).shape == (0, 3, 3, 3)
    assert conv2d_backward_input(grad, weight, g, version=version).shape == (0, 2, 5, 5)
    dw = conv2d_backward_weight(x, grad, g, version=version)
    np.testing.assert_array_equal(backend.get(dw), np.zeros((3, 2, 3, 3)))
    np.testing.assert_array_equal(backend.get(conv2d_backward_bias(grad)), np.zeros(3))


@pytest.mark.parametrize("version", VERSIONS)
def test_no_channels_and_no_rows(backend, version):
    """Without input channels y is the bias, without filters dx is zero; without rows there is padding alone."""
    skip_unless_there(backend.name, "conv2d", "conv2d_forward", version)
    bias = np.array([1.0, 2.0], np.float32)
    for x_shape, weight_shape in (((1, 0, 3, 3), (2, 0, 2, 2)), ((1, 3, 0, 2), (2, 3, 1, 1))):
        g = geometry(x_shape, weight_shape, padding=1)
        x, weight, grad = (backend.put(np.ones(s, np.float32)) for s in (g.x_shape, g.weight_shape, g.y_shape))
        y = conv2d_forward(x, weight, backend.put(bias), padding=1, version=version)
        np.testing.assert_array_equal(backend.get(y), np.broadcast_to(bias[:, None, None], g.y_shape))
        assert conv2d_backward_input(grad, weight, g, version=version).shape == g.x_shape
        dw = conv2d_backward_weight(x, grad, g, version=version)
        np.testing.assert_array_equal(backend.get(dw), np.zeros(g.weight_shape))
    g = geometry((1, 3, 4, 4), (0, 3, 2, 2))
    weight, grad = (backend.put(np.ones(s, np.float32)) for s in (g.weight_shape, g.y_shape))
    dx = conv2d_backward_input(grad, weight, g, version=version)
    np.testing.assert_array_equal(backend.get(dx), np.zeros(g.x_shape))


@pytest.mark.parametrize("version", VERSIONS)
def test_nan_and_infinity_reach_exactly_the_windows_that_hold_them(backend, version):
    skip_unless_there(backend.name, "conv2d", "conv2d_forward", version)
    x = np.zeros((2, 1, 5, 5), np.float32)
    x[0, 0, 0, 0], x[1, 0, 4, 4] = np.nan, np.inf
    y = backend.get(conv2d_forward(backend.put(x), backend.put(np.ones((1, 1, 2, 2), np.float32)), version=version))
    expected = np.zeros((2, 1, 4, 4), np.float32)
    expected[0, 0, 0, 0], expected[1, 0, 3, 3] = np.nan, np.inf
    np.testing.assert_array_equal(y, expected)

    grad = np.ones((1, 1, 3, 3), np.float32)  # of the windows at 0, 2 and 4; no window at 6, where x is not finite
    x = np.zeros((1, 1, 7, 7), np.float32)
    x[0, 0, 6], x[0, 0, :, 6] = np.inf, np.nan
    g = geometry(x.shape, (1, 1, 2, 2), 2)
    dw = conv2d_backward_weight(backend.put(x), backend.put(grad), g, version=version)
    np.testing.assert_array_equal(backend.get(dw), np.zeros((1, 1, 2, 2)))


@pytest.mark.parametrize("version", VERSIONS)
def test_infinite_factors_meet_the_zeros_of_the_padding(backend, version):
    """x is zero outside its bounds, and 0 times infinity is NaN there, as in the reference; nowhere else."""
    skip_unless_there(backend.name, "conv2d", "conv2d_forward", version)
    from rawgrad.kernels.conv2d import reference

    g = geometry((2, 1, 4, 5), (9, 1, 3, 3), 1, 1)
    rng = np.random.default_rng(0)
    x, weight, grad = (rng.uniform(1, 2, s) for s in (g.x_shape, g.weight_shape, g.y_shape))
    weight[1, 0, 0, 2], grad[1, 2, 0, 1] = np.inf, -np.inf
    device_x, device_weight, device_grad = map(backend.put, (x, weight, grad))
    y = conv2d_forward(device_x, device_weight, padding=1, version=version)
    dx = conv2d_backward_input(backend.put(np.ones(g.y_shape)), device_weight, g, version=version)
    dw = conv2d_backward_weight(device_x, device_grad, g, version=version)
    for result, expected in (
        (y, reference.conv2d_forward(x, weight, None, g, None, None)),
        (dx, reference.conv2d_backward_input(np.ones(g.y_shape), weight, g, None, None)),
        (dw, reference.conv2d_backward_weight(x, grad, g, None, None)),
    ):
        assert np.isnan(expected).any() and not np.isnan(expected).all()
        np.testing.assert_allclose(backend.get(result), expected, rtol=1e-13)


@pytest.mark.parametrize("version", VERSIONS)
def test_long_sums_keep_their_digits(backend, version):
    """20000 positions whose products do not cancel: one chain of float32 additions would lose three digits."""
    skip_unless_there(backend.name, "conv2d", "conv2d_backward_weight", version)
    rng = np.random.default_rng(0)
    x, grad = (rng.uniform(1, 2, (5, 2, 40, 100)).astype(np.float32) for _ in range(2))
    g = geometry(x.shape, (2, 2, 1, 1))
    dw = backend.get(conv2d_backward_weight(backend.put(x), backend.put(grad), g, version=version))
    exact = np.einsum("ncpq,nkpq->kc", x, grad, dtype=np.float64)[:, :, None, None]
    np.testing.assert_allclose(dw, exact, rtol=20 * np.finfo(np.float32).eps)
    db = backend.get(conv2d_backward_bias(backend.put(grad)))
    np.testing.assert_allclose(db, grad.sum((0, 2, 3), dtype=np.float64), rtol=20 * np.finfo(np.float32).eps)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_results_at_any_address(backend, version, dtype):
    """Rows of 4 could be stored 16 bytes at a time, but not one element away from a multiple of 16 bytes."""
    skip_unless_there(backend.name, "conv2d", "conv2d_forward", version)
    rng = np.random.default_rng(0)
    g = geometry((3, 8, 4, 4), (8, 8, 3, 3), 1, 1)
    x, weight, grad = (
        backend.put(rng.standard_normal(s).astype(dtype)) for s in (g.x_shape, g.weight_shape, g.y_shape)
    )
    for call, shape in (
        (lambda **out: conv2d_forward(x, weight, padding=1, version=version, **out), g.y_shape),
        (lambda **out: conv2d_backward_input(grad, weight, g, version=version, **out), g.x_shape),
        (lambda **out: conv2d_backward_weight(x, grad, g, version=version, **out), g.weight_shape),
    ):
        aligned = backend.get(call())
        for offset in (0, 1):
            memory = backend.put(np.full(offset + np.prod(shape), np.nan, dtype))
            out = memory[offset:].reshape(shape)
            assert call(out=out) is out
            np.testing.assert_array_equal(backend.get(out), aligned)


# dx is made class by class, of every stride-th row and column.  Planes of a multiple of 16 bytes, and of columns with
# one position after the other: those of a class are neighbours in memory only where the stride across is 1.
@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("stride", [(1, 2), (2, 1), (1, 1)])
def test_strides_along_one_axis(backend, version, dtype, stride):
    check_all_passes(backend, version, geometry((2, 8, 4, 16), (8, 8, 3, 3), stride, 1), dtype)


def launches_of_all_passes(backend, version, g):
    """What the emulator counts of forward, dx and dw, float32, without the sums of slices."""
    if backend.name != "emulated":
        pytest.skip("only the emulator counts bytes and barriers")
    from rawgrad.kernels._emulator.runtime import record_launches

    x, weight, grad = (backend.put(np.ones(s, np.float32)) for s in (g.x_shape, g.weight_shape, g.y_shape))
    with record_launches() as launches:
        conv2d_forward(x, weight, **options(g), version=version)
        conv2d_backward_input(grad, weight, g, version=version)
        conv2d_backward_weight(x, grad, g, version=version)
    return [launch for launch in launches if "sum_slices" not in launch.kernel]


# Sums of 24, 48, 1 and 32, 20, 8 terms, some of which fill their tiles; 24 rows of a tile, 16 at a time.
@pytest.mark.parametrize(
    ("x_shape", "weight_shape"),
    [((2, 24, 4, 4), (24, 24, 1, 1)), ((1, 24, 5, 5), (24, 24, 2, 1)), ((1, 1, 4, 2), (24, 1, 1, 1))],
)
def test_register_tiles_are_filled_once(backend, x_shape, weight_shape):
    """Of a tile 8 terms deep every number is written once, and no tile holds no terms."""
    g = geometry(x_shape, weight_shape)
    positions, taps = g.N * g.P * g.Q, g.C * g.R * g.S
    for launch, terms, height, width in zip(
        launches_of_all_passes(backend, "v3_register_tile", g),
        (taps, g.K * g.R * g.S, positions),
        (24, 24 if g.C == 24 else 16, 24),
        (128, 128, 32),
        strict=True,
    ):
        blocks, steps = math.prod(launch.grid), -(-terms // 8)
        assert launch.traffic.barriers == blocks * (1 + steps)
        of_places = 16 * (width + (steps + 2) * 8)
        assert launch.traffic.shared_written == blocks * (of_places + steps * 8 * (height + width) * 4)


# Channels and taps that are exactly as many as a block stages at once, twice as many, and others.
@pytest.mark.parametrize(
    ("x_shape", "weight_shape"),
    [((1, 3, 8, 8), (4, 3, 3, 3)), ((1, 128, 9, 9), (2, 128, 2, 2)), ((1, 1, 60, 3), (2, 1, 52, 2))],
)
def test_smem_tiles_are_filled_once(backend, x_shape, weight_shape):
    """A block waits twice for each piece of channels and taps, and each multiplication reads two numbers."""
    g = geometry(x_shape, weight_shape)
    forward, backward, of_weight = launches_of_all_passes(backend, "v2_smem_tile", g)
    from rawgrad.kernels.conv2d import tiles

    for launch, tile, channels in ((forward, tiles.smem_forward(g), g.C), (backward, tiles.smem_input(g), g.K)):
        pieces = -(-channels // tile.C) * -(-g.R // tile.R) * -(-g.S // tile.S)
        assert launch.traffic.barriers == math.prod(launch.grid) * 2 * pieces
    tile = tiles.smem_weight(g)
    weights, teams = tile.M * tile.C * tile.R * tile.S, 256 // (tile.M * tile.C * tile.R * tile.S)
    if weights == math.prod(g.weight_shape):  # one block
        products = weights * g.N * g.P * g.Q
        assert of_weight.traffic.shared_read == 4 * (2 * products + weights * (teams - 1))


# One piece of channels and several; several tiles of squares; a plane of one; groups.
@pytest.mark.parametrize(
    ("x_shape", "weight_shape", "groups"),
    [((2, 20, 14, 14), (20, 20, 5, 5), 1), ((1, 1, 28, 28), (20, 1, 5, 5), 1), ((1, 12, 9, 5), (40, 3, 3, 3), 4)],
)
def test_direct_tiles_are_filled_once(backend, x_shape, weight_shape, groups):
    """A block waits once for each piece of channels; a thread reads what lies under its square once per channel."""
    g = geometry(x_shape, weight_shape, 1, weight_shape[2] // 2, 1, groups)
    forward, backward, of_weight = launches_of_all_passes(backend, "v4_direct", g)
    from rawgrad.kernels.conv2d import tiles

    C, K = g.C // g.G, g.K // g.G
    for launch, t, terms in (
        (forward, tiles.direct_forward(g, 4), C),
        (backward, tiles.direct_input(g, 4), K),
    ):
        assert launch.traffic.barriers == math.prod(launch.grid) * -(-terms // t.C)
        read = (g.R + 1) * (g.S + 1) + 4 * g.R * g.S  # under a square, and of four filters
        assert launch.traffic.shared_read == 4 * math.prod(launch.grid) * t.I * t.J * t.M * terms * read
    t = tiles.direct_weight(g, 4)
    tiles = g.N * -(-g.P // t.P) * -(-g.Q // t.Q)
    per_slice = g.G * -(-K // (4 * t.M)) * -(-C * g.R // t.U)
    teams = 256 // (t.M * t.U)
    assert of_weight.traffic.barriers == per_slice * tiles + 2 * math.prod(of_weight.grid) * (teams > 1)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_out_takes_the_result(backend, layout):
    rng = np.random.default_rng(0)
    g = geometry((2, 3, 6, 5), (4, 3, 3, 2), 1, 1)
    x, weight, grad = (backend.put(rng.standard_normal(s)) for s in (g.x_shape, g.weight_shape, g.y_shape))
    for call, shape in (
        (lambda **out: conv2d_forward(x, weight, padding=1, **out), g.y_shape),
        (lambda **out: conv2d_backward_input(grad, weight, g, **out), g.x_shape),
        (lambda **out: conv2d_backward_weight(x, grad, g, **out), g.weight_shape),
        (lambda **out: conv2d_backward_bias(grad, **out), (4,)),
    ):
        out = backend.put(np.full(shape, np.nan), layout)
        assert call(out=out) is out
        np.testing.assert_array_equal(backend.get(out), backend.get(call()))


@pytest.mark.parametrize("version", VERSIONS)
def test_same_bits_every_time(backend, version):
    skip_unless_there(backend.name, "conv2d", "conv2d_forward", version)
    rng = np.random.default_rng(0)
    N = 1 if backend.name == "emulated" else 20  # each of its launches has another order of threads and blocks
    g = geometry((N, 20, 14, 14), (20, 20, 5, 5), 1, 2)
    x, weight, grad = (
        backend.put(rng.standard_normal(s).astype(np.float32)) for s in (g.x_shape, g.weight_shape, g.y_shape)
    )

    def bits():
        results = (
            conv2d_forward(x, weight, padding=2, version=version),
            conv2d_backward_input(grad, weight, g, version=version),
            conv2d_backward_weight(x, grad, g, version=version),
            conv2d_backward_bias(grad),
        )
        return [backend.get(r).tobytes() for r in results]

    first = bits()
    assert all(bits() == first for _ in range(3))


@given(st.integers(0, 10**7), st.integers(1, 300), st.integers(1, 10**4), st.integers(1, 10**9))
def test_slices_cover_the_sum_and_nothing_twice(units, of_unit, blocks, size):
    from rawgrad.kernels.conv2d import tiles

    slices, length = tiles.slices(units, units * of_unit, blocks, size)
    assert slices >= 1 and length >= 1 and (slices - 1) * length < max(units, 1) <= slices * length
    assert slices == 1 or slices * size <= 2**28
    assert length == 1 or length * of_unit <= 8192 + of_unit or (slices + 1) * size > 2**27


def test_geometry_takes_pairs_lists_and_integers():
    expected = (2, 3, 9, 8, 4, 3, 3, 5, 8, 1, (2, 1), (1, 1), (1, 1))
    assert geometry((2, 3, 9, 8), (4, 3, 3, 3), (2, 1), 1) == expected
    assert geometry((2, 3, 9, 8), (4, 3, 3, 3), [2, 1], [1, 1]) == expected


def zeros(*shape, dtype=np.float32):
    return np.zeros(shape, dtype)


X = zeros(2, 3, 8, 8)
WEIGHT = zeros(4, 3, 3, 3)
G = geometry(X.shape, WEIGHT.shape)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: conv2d_forward(zeros(3, 8, 8), WEIGHT),
            ShapeError,
            r"conv2d: x must have 4 dimensions \(N, C, H, W\); got shape \(3, 8, 8\)",
        ),
        (
            lambda: conv2d_forward(X, zeros(4, 25)),
            ShapeError,
            r"conv2d: weight must have 4 dimensions \(K, C/groups, R, S\); got shape \(4, 25\)",
        ),
        (
            lambda: conv2d_forward(X, zeros(4, 1, 3, 3)),
            ShapeError,
            r"weight must have shape \(K, C/groups, R, S\) = \(4, 3, 3, 3\) .*; got \(4, 1, 3, 3\); this weight "
            r"takes an x of 1 channels",
        ),
        (lambda: conv2d_forward(X, WEIGHT, groups=2), ShapeError, "groups=2 must divide the 3 channels of x"),
        (
            lambda: conv2d_forward(X, zeros(4, 3, 9, 3)),
            ShapeError,
            r"the filter 9x3 with dilation \(1, 1\) does not fit into x of 8x8 with padding \(0, 0\)",
        ),
        (lambda: conv2d_forward(X, WEIGHT, zeros(3)), ShapeError, r"bias must have shape \(K\) = \(4,\); got \(3,\)"),
        (lambda: conv2d_forward(X, WEIGHT, stride=0), ArgumentError, "stride must be integers of at least 1; got 0"),
        (
            lambda: conv2d_forward(X, WEIGHT, stride=1.0),
            ArgumentError,
            "stride must be an integer or a pair .*; got 1.0",
        ),
        (lambda: conv2d_forward(X, WEIGHT, padding=(1, -1)), ArgumentError, r"padding must be .* 0; got \(1, -1\)"),
        (lambda: conv2d_forward(X, WEIGHT, dilation=(1, 1, 1)), ArgumentError, r"pair of integers; got \(1, 1, 1\)"),
        (lambda: conv2d_forward(X, WEIGHT, groups=True), ArgumentError, "groups must be an integer .*; got True"),
        (lambda: conv2d_forward(X, WEIGHT.astype(np.float64)), DtypeError, "x is float32, weight is float64"),
        (lambda: conv2d_forward(X.astype(np.float16), WEIGHT), DtypeError, "x must be float32 or float64; got float16"),
        (
            lambda: conv2d_backward_input(zeros(2, 4, 6, 5), WEIGHT, G),
            ShapeError,
            r"conv2d_backward_input: grad must have shape \(N, K, P, Q\) = \(2, 4, 6, 6\); got \(2, 4, 6, 5\)",
        ),
        (lambda: conv2d_backward_weight(zeros(2, 3, 8, 7), zeros(2, 4, 6, 6), G), ShapeError, "weight: x must have"),
        (
            lambda: conv2d_forward(X, WEIGHT, activation="tanh"),
            ArgumentError,
            "conv2d: activation must be relu or None; got 'tanh'",
        ),
        (
            lambda: conv2d_backward_weight(X, zeros(2, 4, 6, 6), G, y=zeros(2, 4, 6, 5)),
            ShapeError,
            r"conv2d_backward_weight: y must have shape \(N, K, P, Q\) = \(2, 4, 6, 6\); got \(2, 4, 6, 5\)",
        ),
        (
            lambda: conv2d_backward_bias(zeros(2, 4, 6, 6), y=zeros(2, 4, 6, 6, dtype=np.float64)),
            DtypeError,
            "conv2d_backward_bias: .* grad is float32, y is float64",
        ),
        (lambda: conv2d_backward_bias(zeros(4)), ShapeError, "conv2d_backward_bias: grad must have 4 dimensions"),
    ],
)
def test_refusals(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_options_are_checked_even_if_an_equal_number_was_seen_before():
    """1, 1.0 and True are equal as keys of a cache, but only 1 is a stride."""
    geometry(X.shape, WEIGHT.shape, stride=1)
    for wrong in (1.0, True, (1, True)):
        with pytest.raises(ArgumentError, match="stride must be"):
            conv2d.geometry(X.shape, WEIGHT.shape, stride=wrong)


# ---- other zeros before than after


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(
    ("x_shape", "weight_shape", "stride", "padding", "dilation"),
    [
        ((2, 1, 9, 9), (3, 1, 6, 6), 1, ((2, 3), (2, 3)), 1),
        ((2, 3, 8, 7), (4, 3, 5, 5), 2, ((1, 2), (1, 2)), 1),
        ((1, 2, 5, 6), (2, 2, 2, 3), (2, 1), ((0, 3), 2), (1, 2)),
        ((1, 2, 5, 6), (2, 2, 2, 3), 3, (1, (4, 0)), 1),
    ],
)
def test_other_zeros_before_than_after(backend, version, x_shape, weight_shape, stride, padding, dilation):
    skip_unless_there(backend.name, "conv2d", "conv2d_forward", version)
    rng = np.random.default_rng(0)
    g = geometry(x_shape, weight_shape, stride, padding, dilation)
    sides = [(n, n) if isinstance(n, int) else n for n in padding]
    padded_shape = (*x_shape[:2], x_shape[2] + sum(sides[0]), x_shape[3] + sum(sides[1]))
    assert g.y_shape == geometry(padded_shape, weight_shape, stride, 0, dilation).y_shape
    assert geometry(x_shape, weight_shape, stride, g.paddings, dilation) == g
    x, weight, grad = (rng.integers(-4, 5, shape).astype(np.float32) for shape in (x_shape, weight_shape, g.y_shape))
    device_x, device_weight, device_grad = map(backend.put, (x, weight, grad))
    options = {"stride": stride, "padding": padding, "dilation": dilation}
    y = conv2d_forward(device_x, device_weight, **options, version=version)
    np.testing.assert_array_equal(backend.get(y), forward(x, weight, None, g))
    dx = conv2d_backward_input(device_grad, device_weight, g, version=version)
    np.testing.assert_array_equal(backend.get(dx), backward_input(grad, weight, g))
    dw = conv2d_backward_weight(device_x, device_grad, g, version=version)
    np.testing.assert_array_equal(backend.get(dw), backward_weight(x, grad, g))


def test_zeros_that_are_none(backend):
    x, weight = backend.put(np.zeros((1, 1, 4, 4), np.float32)), backend.put(np.zeros((1, 1, 1, 1), np.float32))
    for padding in (((1, 2, 3), 0), ((1, -1), 0), (1, 2, 3), ((0.5, 1), 0), "same"):
        with pytest.raises(ArgumentError, match="conv2d: padding must be"):
            conv2d_forward(x, weight, padding=padding)


@pytest.mark.backends("numpy", "numba")
def test_the_same_bits_for_any_number_of_threads(backend):
    from rawgrad.kernels._threads import get_num_threads, set_num_threads

    rng = np.random.default_rng(0)
    before, results = get_num_threads(), []
    for x_shape, weight_shape in (((9, 3, 14, 14), (20, 3, 5, 5)), ((1, 3, 40, 40), (8, 3, 3, 3))):
        x, weight = rng.standard_normal(x_shape).astype("f"), rng.standard_normal(weight_shape).astype("f")
        g = geometry(x.shape, weight.shape, 1, 2)
        grad = rng.standard_normal(g.y_shape).astype("f")
        try:
            for count in {1, before}:
                set_num_threads(count)
                results.append([
                    conv2d_forward(x, weight, padding=2).tobytes(),
                    conv2d_backward_input(grad, weight, g).tobytes(),
                    conv2d_backward_weight(x, grad, g).tobytes(),
                    conv2d_backward_bias(grad).tobytes(),
                ])  # fmt: skip
        finally:
            set_num_threads(before)
        assert all(result == results[0] for result in results)
        results.clear()
