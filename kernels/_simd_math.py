"""Functions of vectors, for ``@simd`` code: float32 by polynomials, float64 by the C library."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ._simd import Stage, Value

_LOG2_E = 1.4426950408889634
# ln 2 in two parts: the first has 11 bits, so that its product with an integer below 2^13 is exact.
_LN_2_HIGH = 0.693359375
_LN_2_LOW = -2.1219444005469058e-4
_ROUNDS = 1.5 * 2**23  # what is added to it loses its fraction
# Least relative error (Remez's algorithm), 1.4e-8: e^r - 1 = r + r^2 (c0 + c1 r + ...) for |r| <= ln 2 / 2.
_EXPM1 = (0.49999998, 0.16666544, 0.0416672, 0.0083665206, 0.0013882522)
# Least relative error, 5e-9: log(1 + m) = m + m^2 (c0 + c1 m + ...) for m in [-1/4, 1/2].
_LOG = (-0.5, 0.33333454, -0.25000054, 0.19990607, -0.1664777, 0.14482063, -0.13162212, 0.10448285, -0.0449093)
# Least relative error, 9e-9: Phi(-a) e^(a^2/2) = t (c0 + c1 v + ...) for a in [0, 14.6], t = 4/(4 + a), v = 1 - 2t.
_TAIL = (0.18882129, -0.15197414, 0.09678423, -0.04663087, 0.015100941, -0.0018812509, -0.00087801948, 0.00039239749,
         4.4592874e-05, -3.3108368e-05)  # fmt: skip


def exp(s: Stage, x: Value) -> Value:
    """e^x, within 2 ulp; 0 and infinity where it leaves the range, NaN of NaN."""
    if "double" in str(x.element):
        return s.library("exp", x)
    x = (x > 89.0).where(89.0, x)  # infinite from 88.73 on
    zero = x < -104.0  # from -103.98 on
    n, p = _reduced(s, zero.where(0.0, x))  # a product too small for a float takes as long as a hundred others
    # 2^n in two factors, each of them normal: n may be as low as -150.
    power = n + 254
    half = power >> 1
    return zero.where(0.0, (p + 1.0) * (half << 23).as_float() * ((power - half) << 23).as_float())


def expm1(s: Stage, x: Value) -> Value:
    """e^x - 1, within 2 ulp, with the digits of small x; -1 and infinity at the ends, NaN of NaN.

    float32: with n and p of :func:`_reduced`, it is 2^n p + (2^n - 1).
    """
    if "double" in str(x.element):
        return s.library("expm1", x)
    high = (x > 89.0).where(89.0, x)  # infinite from 88.73 on
    n, p = _reduced(s, (x < -20.0).where(-20.0, high))  # -1 from -17.33 on
    half = ((n + 126) << 23).as_float()  # of 2^n, since 2^128 is infinite
    value = n.equals(0).where(p, s.fma(half, p, half - 0.5) * 2.0)  # a tiny p has no half
    return s.copysign(value, x)  # of 0 too


def _reduced(s: Stage, x: Value) -> tuple[Value, Value]:
    """An integer n and p = e^r - 1, where x = n ln 2 + r with |r| <= ln 2 / 2, for e^x = 2^n (1 + p).

    The reduction is that of Cody and Waite, "Software Manual for the Elementary Functions", 1980.
    """
    shifted = s.fma(x, s.like(_LOG2_E, x), s.like(_ROUNDS, x))
    n = shifted - _ROUNDS
    r = s.fma(n, s.like(-_LN_2_HIGH, x), x)
    r = s.fma(n, s.like(-_LN_2_LOW, x), r)
    return shifted.bits() - s.like(_ROUNDS, x).bits(), s.fma(r * r, polynomial(s, r, _EXPM1), r)


def log1p(s: Stage, x: Value) -> Value:
    """log(1 + x), within 2 ulp, with the digits of small x; -infinity at -1, NaN below it and of NaN.

    float32: 1 + x = 2^n (1 + m) with an integer n and m in [-1/4, 1/2), taken from the bits of the rounded
    1 + x but computed from x, so that no digits are lost; then n ln 2 + log(1 + m) by a polynomial.
    """
    if "double" in str(x.element):
        return s.library("log1p", x)
    exponent = ((x + 1.0).bits() - s.like(0.75, x).bits()) & -(2**23)  # n, where floats have their exponent
    four = (s.like(4.0, x).bits() - exponent).as_float()  # times 2^-n, which is too small a number for the largest n
    scaled = (x.bits() - exponent).as_float()
    m = scaled + s.fma(four, s.like(0.25, x), s.like(-1.0, x))
    n = exponent.to("float32") * 2.0**-23
    value = s.fma(m * m, polynomial(s, m, _LOG), m)
    value = s.fma(n, s.like(math.log(2), x), value)
    value = (x > -1.0).where(value, x.equals(-1.0).where(s.like(math.inf, x), math.nan))
    return s.copysign(x.equals(math.inf).where(x, value), x)  # of 0 and -1 too


def tanh(s: Stage, x: Value) -> Value:
    """The hyperbolic tangent, within 3 ulp: -t / (2 + t) with t = e^(-2|x|) - 1, and the sign of x."""
    if "double" in str(x.element):
        return s.library("tanh", x)
    t = expm1(s, s.abs(x) * -2.0)
    return s.copysign(t / (t + 2.0), x)


def normal(s: Stage, x: Value) -> tuple[Value, Value]:
    """The distribution function Phi of the standard normal distribution, within 7 ulp, and e^(-x^2/2).

    float32: Phi(-a) = e^(-a^2/2) t P(t) for a >= 0 with a polynomial P (the form is that of Shepherd and
    Laframboise, "Chebyshev approximation of (1 + 2x) exp(x^2) erfc x", 1981), and Phi(a) = 1 - Phi(-a).
    """
    if "double" in str(x.element):
        return s.library("erfc", x * -math.sqrt(0.5)) * 0.5, s.library("exp", x * x * -0.5)
    a = s.abs(x)
    a = (a > 40.0).where(40.0, a)  # so that infinity does not meet itself below
    square = a * a
    lost = s.fma(a, a, -square)  # by rounding, which a large exponent would show
    bell = exp(s, square * -0.5)
    bell = s.fma(bell, lost * -0.5, bell)
    t = s.like(4.0, x) / (a + 4.0)
    tail = bell * t * polynomial(s, s.fma(t, s.like(-2.0, x), s.like(1.0, x)), _TAIL)
    return (x > 0.0).where(1.0 - tail, tail), bell


def polynomial(s: Stage, x: Value, coefficients: Sequence[float]) -> Value:
    """c0 + c1 x + c2 x^2 + ..., by Horner's rule."""
    value = s.like(coefficients[-1], x)
    for c in coefficients[-2::-1]:
        value = s.fma(value, x, s.like(c, x))
    return value
