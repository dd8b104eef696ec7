"""conv2d's four passes against their definitions, hand-worked cases, SciPy and torch."""

from __future__ import annotations

import numpy as np
import pytest
from _layouts import LAYOUTS, untouched
from _tolerance import assert_accurate
from hypothesis import given
from hypothesis import strategies as st

from rawgrad.kernels import conv2d
from rawgrad.kernels._errors import ArgumentError, DtypeError, ShapeError
from rawgrad.kernels.conv2d import (
    conv2d_backward_bias,
    conv2d_backward_input,
    conv2d_backward_weight,
    conv2d_forward,
    geometry,
)

DTYPES = [np.float32, np.float64]


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


@given(convolutions(), st.sampled_from(DTYPES), st.tuples(layouts, layouts, layouts), st.integers(0, 2**32 - 1))
def test_all_passes_agree_with_their_definitions(backend, g, dtype, layouts, seed):
    rng = np.random.default_rng(seed)
    x, weight, bias, grad = (
        rng.standard_normal(shape).astype(dtype) for shape in (g.x_shape, g.weight_shape, (g.K,), g.y_shape)
    )
    device_x, device_weight, device_grad = (
        backend.put(a, layout) for a, layout in zip((x, weight, grad), layouts, strict=True)
    )
    device_bias = backend.put(bias)
    with untouched(device_x, device_weight, device_grad, device_bias):
        y = conv2d_forward(
            device_x, device_weight, device_bias, stride=g.stride, padding=g.padding, dilation=g.dilation, groups=g.G
        )
        dx = conv2d_backward_input(device_grad, device_weight, g)
        dw = conv2d_backward_weight(device_x, device_grad, g)
        db = conv2d_backward_bias(device_grad)

    for result, definition, arguments in (
        (y, forward, (x, weight, bias, g)),
        (dx, backward_input, (grad, weight, g)),
        (dw, backward_weight, (x, grad, g)),
        (db, backward_bias, (grad,)),
    ):
        assert result.dtype == dtype
        magnitudes = (abs(a) if isinstance(a, np.ndarray) else a for a in arguments)
        assert_accurate(backend.get(result), definition, *arguments, scale=definition(*magnitudes))


@given(convolutions(), st.integers(0, 2**32 - 1))
def test_the_backward_passes_are_adjoints(backend, g, seed):
    """<grad, w * x> = <dx, x> = <dw, w>, since the convolution is linear in x and in w."""
    rng = np.random.default_rng(seed)
    x, weight, grad = (rng.standard_normal(shape) for shape in (g.x_shape, g.weight_shape, g.y_shape))
    device_x, device_weight, device_grad = map(backend.put, (x, weight, grad))
    y = conv2d_forward(device_x, device_weight, stride=g.stride, padding=g.padding, dilation=g.dilation, groups=g.G)
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
# 1x1; filter as large as the input; P10's asymmetric case after zero padding.
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
    ],
)
def test_all_passes_agree_with_torch(backend, x_shape, weight_shape, stride, padding, dilation, groups):
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    x, weight, bias = (rng.standard_normal(shape) for shape in (x_shape, weight_shape, weight_shape[:1]))
    tensors = [torch.tensor(a, requires_grad=True) for a in (x, weight, bias)]
    expected = torch.nn.functional.conv2d(*tensors, stride, padding, dilation, groups)
    grad = rng.standard_normal(tuple(expected.shape))
    expected.backward(torch.tensor(grad))

    device_x, device_weight, device_bias, device_grad = map(backend.put, (x, weight, bias, grad))
    g = geometry(x_shape, weight_shape, stride, padding, dilation, groups)
    results = (
        conv2d_forward(
            device_x, device_weight, device_bias, stride=stride, padding=padding, dilation=dilation, groups=groups
        ),
        conv2d_backward_input(device_grad, device_weight, g),
        conv2d_backward_weight(device_x, device_grad, g),
        conv2d_backward_bias(device_grad),
    )
    for result, tensor in zip(results, (expected.detach(), *(t.grad for t in tensors)), strict=True):
        np.testing.assert_allclose(backend.get(result), tensor.numpy(), rtol=1e-12, atol=1e-12)


def test_an_empty_batch_has_zero_gradients(backend):
    g = geometry((0, 2, 5, 5), (3, 2, 3, 3))
    x, weight = backend.put(np.zeros(g.x_shape, np.float32)), backend.put(np.ones(g.weight_shape, np.float32))
    grad = backend.put(np.zeros(g.y_shape, np.float32))
    assert conv2d_forward(x, weight).shape == (0, 3, 3, 3)
    assert conv2d_backward_input(grad, weight, g).shape == (0, 2, 5, 5)
    np.testing.assert_array_equal(backend.get(conv2d_backward_weight(x, grad, g)), np.zeros((3, 2, 3, 3)))
    np.testing.assert_array_equal(backend.get(conv2d_backward_bias(grad)), np.zeros(3))


def test_nan_and_infinity_reach_exactly_the_windows_that_hold_them(backend):
    x = np.zeros((2, 1, 5, 5), np.float32)
    x[0, 0, 0, 0], x[1, 0, 4, 4] = np.nan, np.inf
    y = backend.get(conv2d_forward(backend.put(x), backend.put(np.ones((1, 1, 2, 2), np.float32))))
    expected = np.zeros((2, 1, 4, 4), np.float32)
    expected[0, 0, 0, 0], expected[1, 0, 3, 3] = np.nan, np.inf
    np.testing.assert_array_equal(y, expected)


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


def test_same_bits_every_time(backend):
    rng = np.random.default_rng(0)
    g = geometry((20, 20, 14, 14), (20, 20, 5, 5), 1, 2)
    x, weight, grad = (
        backend.put(rng.standard_normal(s).astype(np.float32)) for s in (g.x_shape, g.weight_shape, g.y_shape)
    )

    def bits():
        results = (
            conv2d_forward(x, weight, padding=2),
            conv2d_backward_input(grad, weight, g),
            conv2d_backward_weight(x, grad, g),
            conv2d_backward_bias(grad),
        )
        return [backend.get(r).tobytes() for r in results]

    first = bits()
    assert all(bits() == first for _ in range(3))


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
