"""The functions of vectors against NumPy's and SciPy's in float64."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest

special = pytest.importorskip("scipy.special")
pytest.importorskip("numba")

from rawgrad.kernels import _simd_math as ours  # noqa: E402
from rawgrad.kernels._jit import serial  # noqa: E402
from rawgrad.kernels._simd import simd  # noqa: E402

FUNCTIONS = {
    "exp": ours.exp,
    "expm1": ours.expm1,
    "log1p": ours.log1p,
    "tanh": ours.tanh,
    "normal_cdf": lambda s, x: ours.normal(s, x)[0],
    "bell": lambda s, x: ours.normal(s, x)[1],
}
EXACT = {
    "exp": np.exp,
    "expm1": np.expm1,
    "log1p": np.log1p,
    "tanh": np.tanh,
    "normal_cdf": special.ndtr,
    "bell": lambda x: np.exp(-0.5 * x * x),
}
#: Where something happens: from the first to the last result that is neither zero, one nor infinite, and a bit more.
RANGES = {
    "exp": (-110, 95),
    "expm1": (-25, 95),
    "log1p": (-1.5, 20),
    "tanh": (-12, 12),
    "normal_cdf": (-15, 8),
    "bell": (-15, 15),
}
#: The promised number of units in the last place.
ULPS = {"exp": 2, "expm1": 2, "log1p": 2, "tanh": 3, "normal_cdf": 7, "bell": 2}
every_function = pytest.mark.parametrize("name", FUNCTIONS)


@simd
def apply(s, name, lanes, x, y):
    with s.range(0, 64, lanes) as i:
        y.store(i, FUNCTIONS[name](s, x.load(i, lanes)))


@cache
def compiled(name, lanes):
    @serial
    def over(x, y):
        for row in range(x.shape[0]):
            apply(name, lanes, x[row], y[row])

    return over


def values(name, x, lanes=16):
    x = np.append(x, np.zeros(-x.size % 64, x.dtype)).reshape(-1, 64)
    y = np.empty_like(x)
    compiled(name, lanes)(x, y)
    return y.reshape(-1)


def errors(name, x, y):
    """In units of the last place of the exact result, which may be subnormal; 0 where both are alike."""
    with np.errstate(all="ignore"):
        exact = EXACT[name](x.astype(np.float64))
        rounded = exact.astype(y.dtype)
        error = np.abs(y - exact) / np.spacing(np.abs(rounded)).astype(np.float64)
    return np.where((y == rounded) | (np.isnan(y) & np.isnan(rounded)), 0.0, np.where(np.isnan(error), np.inf, error))


def assert_close(name, x):
    y = values(name, x)[: x.size]
    assert y.dtype == np.float32
    error = errors(name, x, y)
    worst = np.argmax(error)
    assert error[worst] <= ULPS[name], f"{name}({x[worst]!r}) gave {y[worst]!r}: {error[worst]:.3g} ulp"


@every_function
def test_over_the_range(name):
    assert_close(name, np.linspace(*RANGES[name], 1_000_001).astype(np.float32))


@every_function
def test_of_every_magnitude(name):
    """A million bit patterns: both signs, every exponent, subnormal numbers, infinities and NaN."""
    assert_close(name, np.arange(0, 2**32, 4093, dtype=np.uint64).astype(np.uint32).view(np.float32))


@every_function
def test_next_to_zero_and_one(name):
    steps = np.arange(-2000, 2001)
    near_one = (np.float32(1).view(np.int32) + steps).astype(np.int32).view(np.float32)
    near_zero = np.append(np.arange(2000, dtype=np.int32).view(np.float32), (steps * 1e-30).astype(np.float32))
    assert_close(name, np.concatenate([near_one, -near_one, near_zero, -near_zero]))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@every_function
def test_ends(name, dtype):
    x = np.array([-np.inf, np.inf, np.nan, -0.0, 0.0, -1.0, -1e30, 1e30, -2.0], dtype)
    with np.errstate(all="ignore"):
        expected = EXACT[name](x.astype(np.float64)).astype(dtype)
    y = values(name, x)[: x.size]
    np.testing.assert_allclose(y, expected, rtol=4 * np.finfo(dtype).eps)
    zeros = expected == 0
    np.testing.assert_array_equal(np.signbit(y[zeros]), np.signbit(expected[zeros]))


def test_exp_where_results_are_subnormal_and_infinite():
    """The first zero and the first infinity, as rounding to nearest has them."""
    x = np.array([-103.972, -103.9, -87.4, 88.7228, 88.723], np.float32)
    y = values("exp", x)[: x.size]
    np.testing.assert_array_equal(y[[1, 4]], np.array([2.0**-149, np.inf], np.float32))
    assert 0 < y[1] < y[2] < np.finfo(np.float32).tiny
    assert 3e38 < y[3] < np.inf
    np.testing.assert_array_equal(values("exp", np.array([-103.98, -1e4, 1e4], np.float32))[:3], [0, 0, np.inf])


@every_function
def test_float64_is_the_librarys(name):
    x = np.random.default_rng(0).uniform(*RANGES[name], 1000)
    y = values(name, x, 8)[: x.size]
    room = {"normal_cdf": 4 + x * x, "bell": 4 + x * x}.get(name, 4)  # roundings of x^2/2 grow in e^(-x^2/2)
    with np.errstate(all="ignore"):
        exact = EXACT[name](x)
    np.testing.assert_array_equal(np.isnan(y), np.isnan(exact))
    assert not np.any(np.abs(y - exact) > room * np.finfo(float).eps * np.abs(exact))


@every_function
def test_any_number_of_lanes_gives_the_same_bits(name):
    x = np.linspace(*RANGES[name], 1024).astype(np.float32)
    expected = values(name, x, 16).view(np.int32)
    for lanes in (1, 4, 8):
        np.testing.assert_array_equal(values(name, x, lanes).view(np.int32), expected)
