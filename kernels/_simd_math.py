"""Functions of vectors, for ``@simd`` code: float32 by polynomials, float64 by the C library."""

from __future__ import annotations

import math

from ._simd import Stage, Value

_LOG2_E = 1.4426950408889634
# ln 2 in two parts: the first has 11 bits, so that its product with an integer below 2^13 is exact.
_LN_2_HIGH = 0.693359375
_LN_2_LOW = -2.1219444005469058e-4
_ROUNDS = 1.5 * 2**23  # what is added to it loses its fraction


def exp(s: Stage, x: Value) -> Value:
    """e^x, within 2 ulp; 0 and infinity where it leaves the range, NaN of NaN.

    float32: x = n ln 2 + r with an integer n and |r| <= ln 2 / 2 (Cody and Waite, 1980), and
    e^x = 2^n e^r with Taylor's polynomial of degree 7, whose error is below (ln 2 / 2)^8 / 8! = 5e-9.
    """
    if "double" in str(x.element):
        return s.library("exp", x)
    x = (x > 89.0).where(89.0, x)  # infinite from 88.73 on
    x = (x < -104.0).where(-104.0, x)  # zero from -103.98 on
    shifted = s.fma(x, s.like(_LOG2_E, x), s.like(_ROUNDS, x))
    n = shifted - _ROUNDS
    r = s.fma(n, s.like(-_LN_2_HIGH, x), x)
    r = s.fma(n, s.like(-_LN_2_LOW, x), r)
    p = s.like(1 / math.factorial(7), x)
    for k in range(6, -1, -1):
        p = s.fma(p, r, s.like(1 / math.factorial(k), x))
    # 2^n in two factors, each of them normal: n may be as low as -150.
    power = shifted.bits() - s.like(_ROUNDS, x).bits() + 254
    half = power >> 1
    return p * (half << 23).as_float() * ((power - half) << 23).as_float()
