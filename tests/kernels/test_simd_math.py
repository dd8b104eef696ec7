"""The functions of vectors against the same in a wider format: of float32 in float64, of float64 in long double."""

from __future__ import annotations

import math
from functools import cache

import numpy as np
import pytest

special = pytest.importorskip("scipy.special")
pytest.importorskip("numba")

from rawgrad.kernels import _simd_math as ours  # noqa: E402
from rawgrad.kernels._jit import serial  # noqa: E402
from rawgrad.kernels._simd import simd  # noqa: E402


def square_exponential(x):
    """e^(-x²/2), without the rounding of x²: the square of x with few digits is exact."""
    with np.errstate(all="ignore"):
        few = np.clip(x, -1e4, 1e4).astype(np.float16 if x.dtype == np.float64 else np.float32).astype(x.dtype)
        both = np.exp(few * few * -0.5) * np.exp((x - few) * (x + few) * -0.5)
        return np.where(np.isnan(x), x, np.where(np.abs(x) > 100, 0, both))


def normal_cdf(x):
    """Φ(x): x + x³/3 + x⁵/15 + ... times the density, from 1/2 on; for x < -2 the continued fraction of Laplace."""
    x = np.clip(x, -1e3, 1e3)
    density = square_exponential(x) / np.sqrt(2 * np.arctan2(x.dtype.type(0), x.dtype.type(-1)))
    near, far = np.clip(x, -2, 12), np.maximum(-x, 2)
    term = near
    series = near
    for k in range(3, 400, 2):
        term = term * (near * near / k)
        series = series + term
    fraction = far
    for k in range(200, 0, -1):
        fraction = far + k / fraction
    return np.where(x < -2, density / fraction, np.where(x > 12, 1, np.where(x > 12, 0, density) * series + 0.5))


def plus_one_half(x):
    return (1 + np.exp(x)) / 2


FUNCTIONS = {
    "exp": ours.exp,
    "exp_of_negative": ours.exp_of_negative,
    "expm1_of_negative": ours.expm1_of_negative,
    "half_of_1_plus_exp": ours.half_of_1_plus_exp,
    "log1p": ours.log1p,
    "tanh": ours.tanh,
    "normal_cdf": lambda s, x: ours.normal(s, x)[0],
    "bell": lambda s, x: ours.normal(s, x)[1],
}
EXACT = {
    "exp": np.exp,
    "exp_of_negative": np.exp,
    "expm1_of_negative": np.expm1,
    "half_of_1_plus_exp": plus_one_half,
    "log1p": np.log1p,
    "tanh": np.tanh,
    "normal_cdf": normal_cdf,
    "bell": square_exponential,
}
#: Where something happens: from the first to the last result that is neither zero, one nor infinite, and a bit more.
RANGES = {
    "exp": {"float32": (-110, 95), "float64": (-750, 715)},
    "exp_of_negative": {"float32": (-110, 0), "float64": (-750, 0)},
    "expm1_of_negative": {"float32": (-25, 0), "float64": (-45, 0)},
    "half_of_1_plus_exp": {"float32": (-30, 95), "float64": (-50, 715)},
    "log1p": {"float32": (0, 20), "float64": (0, 20)},
    "tanh": {"float32": (-12, 12), "float64": (-22, 22)},
    "normal_cdf": {"float32": (-15, 8), "float64": (-39, 10)},
    "bell": {"float32": (-15, 15), "float64": (-39, 39)},
}
DOMAINS = {
    "exp_of_negative": lambda x: -np.abs(x),
    "expm1_of_negative": lambda x: -np.abs(x),
    "log1p": np.abs,
}
#: The promised number of units in the last place.
ULPS = {
    "exp": 2,
    "exp_of_negative": 2,
    "expm1_of_negative": 2,
    "half_of_1_plus_exp": 2,
    "log1p": 2,
    "tanh": 3,
    "normal_cdf": 7,
    "bell": 2,
}
every_function = pytest.mark.parametrize("name", FUNCTIONS)
both_formats = pytest.mark.parametrize("dtype", [np.float32, np.float64])
LANES = {4: (1, 4, 8, 16), 8: (1, 2, 4, 8)}


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


def values(name, x, lanes=None):
    size = x.size
    x = np.append(x, np.zeros(-size % 64, x.dtype)).reshape(-1, 64)
    y = np.empty_like(x)
    compiled(name, lanes or LANES[x.itemsize][-1])(x, y)
    return y.reshape(-1)[:size]


def wider(dtype):
    """A format in which the errors of ``dtype`` are seen."""
    if dtype == np.float32:
        return np.float64
    if np.finfo(np.longdouble).nmant < 63:
        pytest.skip("long double is no wider than double here")
    return np.longdouble


def errors(name, x, y):
    """In units of the last place of the exact result, which may be subnormal; 0 where both are alike."""
    with np.errstate(all="ignore"):
        exact = EXACT[name](x.astype(wider(x.dtype)))
        if name == "half_of_1_plus_exp":  # it ends early
            exact = np.where(exact > np.finfo(x.dtype).max / np.sqrt(2), np.inf, exact)
        rounded = exact.astype(y.dtype)
        error = np.abs(y - exact) / np.spacing(np.abs(rounded)).astype(exact.dtype)
    return np.where((y == rounded) | (np.isnan(y) & np.isnan(rounded)), 0.0, np.where(np.isnan(error), np.inf, error))


def assert_close(name, x):
    if name in DOMAINS:
        x = DOMAINS[name](x)
    y = values(name, x)
    assert y.dtype == x.dtype
    error = errors(name, x, y)
    worst = np.argmax(error)
    assert error[worst] <= ULPS[name], f"{name}({x[worst]!r}) gave {y[worst]!r}: {error[worst]:.3g} ulp"


@both_formats
@every_function
def test_over_the_range(name, dtype):
    number = 1_000_001 if dtype == np.float32 or name not in ("normal_cdf", "bell") else 100_001
    assert_close(name, np.linspace(*RANGES[name][np.dtype(dtype).name], number).astype(dtype))


@both_formats
@every_function
def test_where_small_and_large_meet(name, dtype):
    """Around zero, where 2^n changes from 1 to its neighbours."""
    assert_close(name, np.random.default_rng(0).uniform(-3, 3, 100_001).astype(dtype))


@both_formats
@every_function
def test_of_every_magnitude(name, dtype):
    """Bit patterns: both signs, every exponent, subnormal numbers, infinities and NaN."""
    if dtype == np.float32:
        patterns = np.arange(0, 2**32, 4093, dtype=np.uint64).astype(np.uint32)
    else:
        patterns = np.arange(100_000, dtype=np.uint64) * np.uint64(2**64 // 100_000) + np.uint64(12345)
    assert_close(name, patterns.view(dtype))


@both_formats
@every_function
def test_next_to_zero_and_one(name, dtype):
    integer = np.dtype(f"i{dtype().itemsize}")
    steps = np.arange(-2000, 2001)
    near_one = (dtype(1).view(integer) + steps).astype(integer).view(dtype)
    near_zero = np.append(np.arange(2000, dtype=integer).view(dtype), (steps * 1e-30).astype(dtype))
    assert_close(name, np.concatenate([near_one, -near_one, near_zero, -near_zero]))


@both_formats
@every_function
def test_ends(name, dtype):
    x = np.array([-np.inf, np.inf, np.nan, -0.0, 0.0, -1.0, -1e30, 1e30, -2.0], dtype)
    x = np.append(x, np.array([-1, 1], dtype) * np.finfo(dtype).max)
    if name in DOMAINS:
        x = DOMAINS[name](x)
    with np.errstate(all="ignore"):
        expected = EXACT[name](x.astype(wider(dtype))).astype(dtype)
    if name == "expm1_of_negative":
        expected[expected == 0] = 0  # it does not keep the sign of zero
    y = values(name, x)
    np.testing.assert_allclose(y, expected, rtol=(ULPS[name] + 1) * np.finfo(dtype).eps)
    zeros = expected == 0
    np.testing.assert_array_equal(np.signbit(y[zeros]), np.signbit(expected[zeros]))


@pytest.mark.parametrize("name", ["exp", "exp_of_negative"])
@pytest.mark.parametrize(("dtype", "zero", "tiny"), [(np.float32, -103.972, -87.4), (np.float64, -745.133, -708.5)])
def test_exp_where_results_are_subnormal_and_zero(name, dtype, zero, tiny):
    """The first zero, as rounding to nearest has it."""
    least = np.finfo(dtype).smallest_subnormal
    y = values(name, np.array([zero, zero + 0.1, tiny, zero - 0.01, zero - 1, -1e4], dtype))
    assert y[0] == least
    assert least <= y[1] < y[2] < np.finfo(dtype).tiny
    np.testing.assert_array_equal(y[3:], 0)


@pytest.mark.parametrize("name", ["exp", "half_of_1_plus_exp"])
@both_formats
def test_exp_where_results_are_infinite(name, dtype):
    of = np.finfo(dtype)
    end = of.maxexp * math.log(2) + (0.5 * math.log(2) if name != "exp" else 0)
    y = values(name, np.array([end - 2e-5, end + 2e-5, end + 0.3, end + 1, 1e4], dtype))
    assert 0.7 * of.max < y[0] < np.inf
    np.testing.assert_array_equal(y[1:], np.inf)


def test_tanh_is_never_beyond_one():
    for dtype in (np.float32, np.float64):
        y = values("tanh", np.linspace(5, 25, 100_001).astype(dtype))
        assert np.abs(y).max() == 1 and y[-1] == 1


def test_the_distribution_function_that_is_compared_with():
    x = np.linspace(-30, 10, 1001)
    np.testing.assert_allclose(normal_cdf(x), special.ndtr(x), rtol=2e-13)


@both_formats
@every_function
def test_any_number_of_lanes_gives_the_same_bits(name, dtype):
    x = np.linspace(*RANGES[name][np.dtype(dtype).name], 1024).astype(dtype)
    expected = values(name, x)
    for lanes in LANES[x.itemsize][:-1]:
        assert values(name, x, lanes).tobytes() == expected.tobytes()
