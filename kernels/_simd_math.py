"""Functions of vectors, for ``@simd`` code: float32 and float64, by polynomials.

Every lane goes through the same instructions; where cases differ, both are computed and one is chosen.  So work is
saved by domains: a function that is only needed of numbers <= 0 says so, and is a quarter shorter for it.

Coefficients are those of least relative error, found by Remez's algorithm.  Errors are in units in the last place,
subnormal results included; ``tests/kernels/test_simd_math.py`` holds the functions to them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from ._simd import Stage, Value

_LOG2_E = 1.4426950408889634


class _Format(NamedTuple):
    """What a format of floating-point numbers needs."""

    #: Bits of the fraction, and what is added to exponents.
    fraction: int
    bias: int
    #: ln 2 in two parts; the product of the first with an integer below 2^11 is exact.
    ln_2: tuple[float, float]
    #: e^r - 1 = r + r^2 (c0 + c1 r + ...) for |r| <= ln 2 / 2; error 1.4e-8 and 1.8e-17.
    expm1: tuple[float, ...]
    #: From where on e^x is infinite, and up to where it is 0; a bit more.
    infinite: float
    zero: float
    #: Where e^-x is next to nothing, beside 1.
    nothing: float
    #: Beyond, e^(-a^2/2) is 0; k, and Phi(-a) e^(a^2/2) = t (c0 + c1 v + ...), t = k/(k + a), v = 1 - 2t, up to there;
    #: error 9e-9 and 1.3e-17.
    bell: float
    k: float
    tail: tuple[float, ...]


_FLOAT32 = _Format(
    fraction=23,
    bias=127,
    ln_2=(0.693359375, -2.1219444005469058e-4),
    expm1=(0.49999998, 0.16666544, 0.0416672, 0.0083665206, 0.0013882522),
    infinite=89.0,
    zero=-104.0,
    nothing=20.0,
    bell=14.5,
    k=4.0,
    tail=(0.18882129, -0.15197414, 0.09678423, -0.04663087, 0.015100941, -0.0018812509, -0.00087801948, 0.00039239749,
          4.4592874e-05, -3.3108368e-05),
)  # fmt: skip
_FLOAT64 = _Format(
    fraction=52,
    bias=1023,
    ln_2=(6.93147180369123816490e-01, 1.90821492927058770002e-10),
    expm1=(0.5000000000000006, 0.16666666666666588, 0.04166666666657611, 0.008333333333389962, 0.0013888888931794944,
           0.00019841269718334206, 2.4801504978878156e-05, 2.755740787212198e-06, 2.7626161440265013e-07,
           2.5053774292813266e-08),
    infinite=710.0,
    zero=-746.0,
    nothing=40.0,
    bell=38.7,
    k=5.0,
    tail=(0.15383860995001258, -0.13307650057801132, 0.09906112319399539, -0.06270663133426299, 0.03300407323407301,
          -0.013823727741195084, 0.004159013360034185, -0.0005986753550773155, -0.0001595738801441016,
          0.00010897982074209827, -1.1875143211585774e-05, -9.9526003364357e-06, 3.3362327061074806e-06,
          7.962943874268821e-07, -5.538202353965137e-07, -6.754420030833853e-08, 8.655107017182805e-08,
          8.721356449728244e-09, -1.3075459406895992e-08, -2.0446162103090514e-09, 1.4404736106444228e-09,
          4.045282608347704e-10),
)  # fmt: skip
# log(1 + m) = m + m^2 (c0 + c1 m + ...) for m in [-1/4, 1/2]; error 5e-9.
_LOG_FLOAT32 = (-0.5, 0.33333454, -0.25000054, 0.19990607, -0.1664777, 0.14482063, -0.13162212, 0.10448285, -0.0449093)
# log((1 + h) / (1 - h)) = 2h + h (c0 h^2 + c1 h^4 + ...) for |h| <= (sqrt 2 - 1) / (sqrt 2 + 1); error 1.3e-18.
_LOG_FLOAT64 = (0.6666666666666735, 0.39999999999412217, 0.28571428743025407, 0.22222198498140455, 0.18183568719416207,
                0.1531392597693837, 0.14797312266931534)  # fmt: skip
_UP, _DOWN = 64, 2.0**-64  # a factor 2^n is normal as 2^(n + _UP), until the result is made


def _format(x: Value) -> _Format:
    return _FLOAT64 if "double" in str(x.element) else _FLOAT32


def exp(s: Stage, x: Value) -> Value:
    """e^x, within 2 ulp; 0 and infinity where it leaves the range, NaN of NaN."""
    of = _format(x)
    x = (x > of.infinite).where(of.infinite, x)
    zero = x < of.zero
    # A product too small for the format takes as long as a hundred others, so there is none where it is not wanted.
    n, p = _reduced(s, zero.where(0.0, x), up=2 * of.bias)
    half = n >> 1  # 2^n in two factors, each of them normal
    return zero.where(0.0, (p + 1.0) * _power_of_2(half) * _power_of_2(n - half))


def exp_of_negative(s: Stage, x: Value) -> Value:
    """e^x of x <= 0, within 2 ulp; 0 where it is too small, NaN of NaN."""
    of = _format(x)
    zero = x < of.zero
    n, p = _reduced(s, zero.where(0.0, x), up=of.bias + _UP)
    large = _power_of_2(n)
    return zero.where(0.0, s.fma(p, large, large) * _DOWN)


def expm1_of_negative(s: Stage, x: Value) -> Value:
    """e^x - 1 of x <= 0, within 2 ulp, with the digits of small x; -1 at the end, NaN of NaN, and never -0.

    With n and p of :func:`_reduced`, it is 2^n p + (2^n - 1).
    """
    of = _format(x)
    n, p = _reduced(s, (x < -of.nothing).where(-of.nothing, x), up=of.bias)
    power = _power_of_2(n)
    return s.fma(power, p, power - 1.0)


def half_of_1_plus_exp(s: Stage, x: Value) -> Value:
    """(1 + e^x) / 2, within 2 ulp; infinite from 2^(bias + 1/2) on, NaN of NaN."""
    of = _format(x)
    end = of.infinite + 0.5  # there 2^(n - 1) is beyond the largest power, as infinity is
    x = (x > end).where(end, x)
    n, p = _reduced(s, (x < -of.nothing).where(-of.nothing, x), up=of.bias - 1)
    return s.fma(p + 1.0, _power_of_2(n), s.like(0.5, x))


def _reduced(s: Stage, x: Value, up: int, lost: Value | None = None) -> tuple[Value, Value]:
    """An integer n and p = e^r - 1 for e^x = 2^n (1 + p), where x = n ln 2 + r with |r| <= ln 2 / 2.

    The reduction is that of Cody and Waite, "Software Manual for the Elementary Functions", 1980.

    Args:
        up: what is added to n, of which only as many last bits are right as sign and exponent of a number have.
        lost: -2 times what x lacks, by rounding.
    """
    of = _format(x)
    rounds = 1.5 * 2**of.fraction + up  # what is added to it loses its fraction, and is an integer in its last bits
    shifted = s.fma(x, s.like(_LOG2_E, x), s.like(rounds, x))
    n = shifted - rounds
    r = s.fma(n, s.like(-of.ln_2[0], x), x)
    r = s.fma(n, s.like(-of.ln_2[1], x), r)
    if lost is not None:
        r = s.fma(lost, s.like(-0.5, x), r)
    return shifted.bits(), s.fma(r * r, polynomial(s, r, of.expm1), r)


def _power_of_2(n: Value) -> Value:
    """2^(n - bias), for 0 < n < 2 bias + 1; for the ends 0 and infinity."""
    return (n << (23 if n.element.width == 32 else 52)).as_float()


def log1p(s: Stage, x: Value) -> Value:
    """log(1 + x) of x >= 0, within 2 ulp, with the digits of small x; infinity and NaN of themselves.

    1 + x = 2^n (1 + m) with an integer n and a small m, taken from the bits of the rounded 1 + x but computed from x,
    so that no digits are lost; then n ln 2 + log(1 + m).  The latter is a polynomial of m in float32.  In float64 it
    is one of h = m / (2 + m): of half the degree, since log(1 + m) = log((1 + h) / (1 - h)) is an odd function of h.
    (The formula for that, in which rounding errors meet small factors, is that of FreeBSD's e_log.c, 1993.)
    """
    of = _format(x)
    double = of is _FLOAT64
    least = math.sqrt(0.5) if double else 0.75  # 1 + m lies between that and twice that
    biased = ((x + 1.0).bits() - s.like(least, x).bits() + (of.bias << of.fraction)) >> of.fraction  # n + bias
    exponent = (biased - of.bias) << of.fraction
    whole = s.like(2.0**of.fraction, x)
    n = (biased | whole.bits()).as_float() - (2.0**of.fraction + of.bias)
    four = (s.like(4.0, x).bits() - exponent).as_float()  # times 2^-n, which is too small a number for the largest n
    scaled = (x.bits() - exponent).as_float()
    m = scaled + s.fma(four, s.like(0.25, x), s.like(-1.0, x))
    if double:
        h = m / (m + 2.0)
        square, half = h * h, m * m * 0.5
        inner = s.fma(h, s.fma(square, polynomial(s, square, _LOG_FLOAT64), half), n * of.ln_2[1])
        value = s.fma(n, s.like(of.ln_2[0], x), m - (half - inner))
    else:
        value = s.fma(m * m, polynomial(s, m, _LOG_FLOAT32), m)
        value = s.fma(n, s.like(math.log(2), x), value)
    return (x < math.inf).where(value, x)


def tanh(s: Stage, x: Value) -> Value:
    """The hyperbolic tangent, within 3 ulp; it is never beyond 1.

    It is -t / (2 + t) with t = e^(-2|x|) - 1, and the sign of x.
    """
    t = expm1_of_negative(s, s.abs(x) * -2.0)
    return s.copysign(t / (t + 2.0), x)


def normal(s: Stage, x: Value) -> tuple[Value, Value]:
    """The distribution function Phi of the standard normal distribution, within 7 ulp, and e^(-x^2/2), within 2.

    Phi(-a) = e^(-a^2/2) t P(t) for a >= 0 with a polynomial P (the form is that of Shepherd and Laframboise,
    "Chebyshev approximation of (1 + 2x) exp(x^2) erfc x", 1981), and Phi(a) = 1 - Phi(-a).
    """
    of = _format(x)
    a = s.abs(x)
    far = a > of.bell
    a = far.where(of.bell, a)
    square = a * a
    lost = s.fma(a, a, -square)  # by rounding, which a large exponent would show
    n, p = _reduced(s, square * -0.5, up=of.bias + _UP, lost=lost)
    large = _power_of_2(n)
    bell = far.where(0.0, s.fma(p, large, large))
    t = s.like(of.k, x) / (a + of.k)
    tail = bell * t * polynomial(s, s.fma(t, s.like(-2.0, x), s.like(1.0, x)), of.tail) * _DOWN
    return (x > 0.0).where(1.0 - tail, tail), bell * _DOWN


def polynomial(s: Stage, x: Value, coefficients: Sequence[float]) -> Value:
    """c0 + c1 x + c2 x^2 + ..., by Horner's rule."""
    value = s.like(coefficients[-1], x)
    for c in coefficients[-2::-1]:
        value = s.fma(value, x, s.like(c, x))
    return value
