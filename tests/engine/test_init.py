"""Initialisations: formulas by hand, distributions by their moments, determinism from the seed."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import rawgrad as rg
from rawgrad import nn
from rawgrad.autograd.random import Generator
from rawgrad.kernels._errors import ArgumentError, DtypeError, ShapeError

init = nn.init


def empty(*shape, dtype=np.float64):
    return rg.tensor(np.full(shape, np.nan, dtype))


def check_moments(values, mean, std, lowest=None, highest=None):
    n = values.size
    assert abs(values.mean() - mean) < 5 * std / math.sqrt(n)
    assert abs(values.std() - std) < 5 * std / math.sqrt(n)
    if lowest is not None:
        assert lowest <= values.min() < lowest + 0.01 * (highest - lowest)
        assert highest - 0.01 * (highest - lowest) < values.max() <= highest


# A filter of 5x4 over 6 channels: fan_in 120, over 30 filters: fan_out 600.
@pytest.mark.parametrize(
    ("fill", "std", "bound"),
    [
        (lambda t: init.uniform_(t, -2.0, 2.0), 2 / math.sqrt(3), 2.0),
        (lambda t: init.normal_(t, 0.0, 0.3), 0.3, None),
        (lambda t: init.xavier_uniform_(t, gain=2.0), 2 * math.sqrt(2 / 720), 2 * math.sqrt(6 / 720)),
        (lambda t: init.xavier_normal_(t), math.sqrt(2 / 720), None),
        (lambda t: init.kaiming_uniform_(t, a=math.sqrt(5)), math.sqrt(1 / 3 / 120), math.sqrt(1 / 120)),
        (lambda t: init.kaiming_uniform_(t, nonlinearity="relu"), math.sqrt(2 / 120), math.sqrt(6 / 120)),
        (lambda t: init.kaiming_normal_(t, mode="fan_out", nonlinearity="relu"), math.sqrt(2 / 600), None),
        (lambda t: init.kaiming_normal_(t, nonlinearity="tanh"), 5 / 3 / math.sqrt(120), None),
    ],
)
def test_spread(fill, std, bound):
    tensor = empty(30, 6, 5, 4)
    assert fill(tensor) is tensor
    check_moments(tensor.numpy(), 0.0, std, *(() if bound is None else (-bound, bound)))


@pytest.mark.parametrize(
    ("layer", "bound"),
    [(nn.Linear(400, 300), 1 / 20), (nn.Conv2d(32, 40, 5, groups=2), 1 / 20)],
)
def test_default_initialisations(layer, bound):
    for values in (layer.weight, layer.bias):
        values = values.detach().numpy()
        assert np.abs(values).max() <= np.float32(bound)
        assert abs(values.std() - bound / math.sqrt(3)) < 5 * bound / math.sqrt(values.size)


def test_defaults_have_torchs_moments():
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    rg.manual_seed(0)  # the tolerances are for draws that do not change
    for make in (
        lambda lib: lib.Linear(300, 500),
        lambda lib: lib.Conv2d(20, 60, 5),
        lambda lib: lib.Embedding(300, 200),
    ):
        for ours, theirs in zip(make(nn).parameters(), make(torch.nn).parameters(), strict=True):
            a, b = ours.detach().numpy(), theirs.detach().numpy()
            assert a.shape == b.shape
            tolerance = 6 * b.std() / math.sqrt(b.size)
            assert abs(a.std() - b.std()) < tolerance and abs(a.mean() - b.mean()) < 2 * tolerance
            # The largest of n uniform numbers misses the bound by a share of 10/n once in 20,000 draws.
            assert np.abs(a).max() == pytest.approx(np.abs(b).max(), rel=10 / b.size if b.std() < 0.9 else 0.2)


def test_constants():
    np.testing.assert_array_equal(init.constant_(empty(2, 3), 1.5).numpy(), np.full((2, 3), 1.5))
    np.testing.assert_array_equal(init.ones_(empty()).numpy(), 1.0)
    np.testing.assert_array_equal(init.zeros_(empty(0, 2)).numpy(), np.zeros((0, 2)))


@pytest.mark.parametrize(
    ("mean", "std", "a", "b"), [(0, 1, -2, 2), (1, 0.5, 0.9, 3.0), (0, 1, 4, 20), (0, 1, -30, -12)]
)
def test_trunc_normal_against_scipy(mean, std, a, b):
    scipy_stats = pytest.importorskip("scipy.stats")
    values = init.trunc_normal_(empty(20000), mean, std, a, b).numpy()
    assert a <= values.min() and values.max() <= b
    law = scipy_stats.truncnorm((a - mean) / std, (b - mean) / std, loc=mean, scale=std)
    assert scipy_stats.kstest(values, law.cdf).pvalue > 1e-3


@pytest.mark.parametrize("shape", [(5, 5), (3, 8), (8, 3), (4, 2, 3, 1)])
def test_orthogonal(shape):
    matrix = init.orthogonal_(empty(*shape), gain=2.0).numpy().reshape(shape[0], -1)
    gram = matrix @ matrix.T if matrix.shape[0] <= matrix.shape[1] else matrix.T @ matrix
    np.testing.assert_allclose(gram, 4 * np.eye(len(gram)), atol=1e-12)


def test_gains():
    torch = pytest.importorskip("torch")
    for name, param in [("linear", None), ("sigmoid", None), ("tanh", None), ("relu", None), ("leaky_relu", None),
                        ("leaky_relu", 0.2), ("selu", None), ("conv2d", None)]:  # fmt: skip
        assert init.calculate_gain(name, param) == torch.nn.init.calculate_gain(name, param)


@given(st.integers(0, 2**64 - 1), st.tuples(st.integers(1, 4), st.integers(1, 4)))
def test_the_seed_decides_and_float64_is_the_same_draw(seed, shape):
    rg.manual_seed(seed)
    first = init.xavier_normal_(empty(*shape)).numpy().copy()
    second = init.xavier_normal_(empty(*shape)).numpy()
    assert (first != second).all()
    rg.manual_seed(seed)
    single = init.xavier_normal_(empty(*shape, dtype=np.float32)).numpy()
    np.testing.assert_array_equal(single, first.astype(np.float32))
    np.testing.assert_array_equal(init.xavier_normal_(empty(*shape), generator=Generator(seed)).numpy(), first)


def test_parameters_that_require_gradients_and_do_not_record():
    layer = nn.Linear(3, 2)
    init.ones_(layer.weight)
    assert layer.weight.is_leaf and layer.weight.requires_grad
    np.testing.assert_array_equal(layer.weight.detach().numpy(), np.ones((2, 3)))


@pytest.mark.parametrize(
    ("kind", "call"),
    [
        (ShapeError, lambda: init.xavier_uniform_(empty(3))),
        (ShapeError, lambda: init.orthogonal_(empty(3))),
        (DtypeError, lambda: init.zeros_(rg.tensor(np.zeros(2, np.int64)))),
        (ArgumentError, lambda: init.uniform_(empty(2), 1.0, 0.0)),
        (ArgumentError, lambda: init.normal_(empty(2), 0.0, -1.0)),
        (ArgumentError, lambda: init.trunc_normal_(empty(2), a=1.0, b=1.0)),
        (ArgumentError, lambda: init.kaiming_normal_(empty(2, 2), mode="in")),
        (ArgumentError, lambda: init.calculate_gain("swish")),
    ],
)
def test_refusals(kind, call):
    with pytest.raises(kind):
        call()
