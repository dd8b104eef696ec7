"""Group normalisation: its definition with complex-step derivatives, hand-worked values and torch."""

from __future__ import annotations

import math

import numpy as np
import pytest
from _derivative import complex_step
from _layouts import LAYOUTS, untouched
from _tolerance import assert_accurate, assert_within
from hypothesis import given
from hypothesis import strategies as st

from rawgrad.kernels import group_norm as ops
from rawgrad.kernels._errors import ArgumentError, DtypeError, ShapeError

EPS = 1e-3


def definition(x, groups, weight, bias):
    """One group of one example after the other, by the textbook."""
    y = np.empty(x.shape, np.result_type(x, *(a for a in (weight, bias) if a is not None)))
    width = x.shape[1] // groups
    for n in range(x.shape[0]):
        for first in range(0, x.shape[1], width):
            group = x[n, first : first + width]
            count = x.real.dtype.type(group.size)
            mean = group.sum() / count
            var = ((group - mean) ** 2).sum() / count
            y[n, first : first + width] = (group - mean) / np.sqrt(var + x.real.dtype.type(EPS))
        for c in range(x.shape[1]):
            y[n, c] *= 1 if weight is None else weight[c]
            y[n, c] += 0 if bias is None else bias[c]
    return y


def data(shape, dtype, affine):
    rng = np.random.default_rng(14)
    x, grad = rng.standard_normal(shape) * 2 + 1, rng.standard_normal(shape)
    weight, bias = (rng.uniform(0.5, 2, shape[1]), rng.standard_normal(shape[1])) if affine else (None, None)
    return [None if a is None else a.astype(dtype) for a in (x, weight, bias, grad)]


# no positions; one group; instance norm; two groups of three, odd; rank 5; empty batch
SIZES = [((2, 4), 2), ((2, 3, 4), 1), ((2, 3, 2, 3), 3), ((2, 6, 3, 1), 2), ((1, 4, 1, 2, 3), 2), ((0, 4, 2, 2), 2)]


@pytest.mark.parametrize("affine", [True, False], ids=["affine", "plain"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("shape", "groups"), SIZES, ids=str)
def test_forward_and_backward_agree_with_the_definition(backend, affine, dtype, layout, shape, groups):
    host = data(shape, dtype, affine)
    x, weight, bias, grad = (None if a is None else backend.put(a, layout) for a in host)
    with untouched(x, weight, bias, grad):
        y, mean, rstd = ops.group_norm_forward(x, groups, weight, bias, EPS)
        dx, dweight, dbias = ops.group_norm_backward(grad, x, groups, weight, mean, rstd)
    assert mean.shape == rstd.shape == (shape[0], groups)
    assert_accurate(backend.get(y), definition, host[0], groups, *host[1:3], scale=8.0)
    scale = 4.0 * math.sqrt(host[0].size) * float(np.max(backend.get(rstd), initial=1.0))

    def of_x(x, w, b, g):
        return complex_step(lambda moved: definition(moved, groups, w, b), x, g)

    def of_weight(x, w, b, g):
        w = np.ones(x.shape[1], x.dtype) if w is None else w
        return complex_step(lambda moved: definition(x, groups, moved, b), w, g)

    axes = (0, *range(2, len(shape)))
    assert_accurate(backend.get(dx), of_x, *host, scale=scale)
    assert_accurate(backend.get(dweight), of_weight, *host, scale=scale)
    assert_accurate(backend.get(dbias), lambda x, w, b, g: g.sum(axis=axes), *host, scale=scale)


def test_hand_worked(backend):
    x = backend.put(np.array([[1.0, 3.0, -2.0, 8.0]]))  # means 2 and 3, deviations 1 and 5
    weight, bias = backend.put(np.array([1.0, 2.0, 3.0, 4.0])), backend.put(np.array([0.0, 0.0, 10.0, 10.0]))
    y, mean, rstd = ops.group_norm_forward(x, 2, weight, bias, 0)
    np.testing.assert_array_equal(backend.get(mean), [[2, 3]])
    np.testing.assert_array_equal(backend.get(rstd), [[1, 0.2]])
    np.testing.assert_allclose(backend.get(y), [[-1, 2, 7, 14]], rtol=1e-15)


@pytest.mark.parametrize("groups", [1, 2, 3, 6])
def test_agrees_with_torch(backend, groups):
    torch = pytest.importorskip("torch")
    host = data((3, 6, 4, 5), np.float64, True)
    x, w, b = (torch.tensor(a, requires_grad=True) for a in host[:3])
    y = torch.nn.functional.group_norm(x, groups, w, b, eps=1e-5)
    expected = [y.detach(), *torch.autograd.grad(y, (x, w, b), torch.tensor(host[3]))]
    put = [backend.put(a) for a in host]
    forward, mean, rstd = ops.group_norm_forward(put[0], groups, *put[1:3], 1e-5)
    actual = [forward, *ops.group_norm_backward(put[3], put[0], groups, put[1], mean, rstd)]
    for a, e in zip(actual, expected, strict=True):
        assert_within(backend.get(a), e.numpy(), 4e-14)


@given(st.integers(1, 3), st.integers(1, 3), st.integers(1, 3), st.integers(2, 5), st.integers(0, 999))
def test_properties(backend, N, groups, width, positions, seed):
    """Mean 0 and variance 1 in each group; dx has sum 0 and is orthogonal to xhat there."""
    rng = np.random.default_rng(seed)
    host = rng.standard_normal((N, groups * width, positions))
    y, mean, rstd = ops.group_norm_forward(backend.put(host), groups, None, None, 0.0)
    grad = backend.put(rng.standard_normal(host.shape))
    dx = ops.group_norm_backward(grad, backend.put(host), groups, None, mean, rstd)[0]
    y, dx = (backend.get(a).reshape(N, groups, -1) for a in (y, dx))
    atol = 1e-12 * (1 + float(backend.get(rstd).max()))
    np.testing.assert_allclose(y.mean(axis=2), 0, atol=1e-12)
    np.testing.assert_allclose(y.var(axis=2), 1, rtol=1e-12)
    np.testing.assert_allclose(dx.sum(axis=2), 0, atol=atol)
    np.testing.assert_allclose((dx * y).sum(axis=2), 0, atol=atol)


def test_nan_and_infinity_stay_in_their_group(backend):
    x = backend.put(np.array([[np.nan, 1.0, 3.0, 1.0], [3.0, 1.0, 1.0, np.inf]]))
    y, mean, rstd = ops.group_norm_forward(x, 2, None, None, 0.0)
    np.testing.assert_array_equal(backend.get(y), [[np.nan, np.nan, 1, -1], [1, -1, np.nan, np.nan]])
    dx, _, _ = ops.group_norm_backward(x, x, 2, None, mean, rstd)
    np.testing.assert_array_equal(np.isnan(backend.get(dx)), [[True, True, False, False], [False, False, True, True]])


def test_refusals(backend):
    put = backend.put
    x, c = put(np.ones((2, 4, 3))), put(np.ones(4))
    for groups in (0, 3, 8, 2.0):
        with pytest.raises(ArgumentError, match="group_norm: groups must be a divisor of the 4 channels of x; got"):
            ops.group_norm_forward(x, groups, None, None, EPS)
    with pytest.raises(
        ShapeError, match=r"group_norm: x must have at least 2 dimensions \(N, C, \.\.\.\); got shape \(4,\)"
    ):
        ops.group_norm_forward(c, 1, None, None, EPS)
    with pytest.raises(ShapeError, match=r"groups of x must not be empty; got shape \(2, 4, 0\)"):
        ops.group_norm_forward(put(np.ones((2, 4, 0))), 2, None, None, EPS)
    with pytest.raises(ShapeError, match=r"group_norm: bias must have shape \(C\) = \(4,\); got \(3,\)"):
        ops.group_norm_forward(x, 2, c, put(np.ones(3)), EPS)
    with pytest.raises(DtypeError, match="one dtype; x is float64, weight is float32"):
        ops.group_norm_forward(x, 2, put(np.ones(4, np.float32)), c, EPS)
    with pytest.raises(ArgumentError, match="group_norm: eps must be finite and >= 0; got nan"):
        ops.group_norm_forward(x, 2, c, c, math.nan)
    with pytest.raises(
        ShapeError, match=r"group_norm_backward: mean must have shape \(N, groups\) = \(2, 2\); got \(4,\)"
    ):
        ops.group_norm_backward(x, x, 2, c, c, c)
