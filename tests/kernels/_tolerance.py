"""How far a kernel's result may be from the truth.

The allowed error is a small multiple of the error that a naive evaluation in the same dtype makes
against float64, plus a floor of a few units in the last place.  So a kernel that sums in another
order passes, one that loses digits does not, and nobody chooses a tolerance.

The naive error is always measured in float32 and scaled to float64 by the ratio of their
epsilons, since nothing more exact than float64 is at hand on every machine.

A half (float16, bfloat16) is computed in float32 and rounded once: each element may be off by half a unit in its last
place, on top of what float32 may.

Source: the tests of quack and flash-attention hold their kernels to a multiple of a naive error.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from rawgrad.kernels._dtypes import FLOAT16, HALVES, kind_of, wide

FACTOR = 4.0
FLOOR_ULPS = 4.0


def assert_accurate(
    actual: Any,
    definition: Callable[..., Any],
    *arguments: Any,
    scale: Any = None,
    factor: float = FACTOR,
) -> None:
    """``actual`` must be ``definition(*arguments)`` within the budget of its dtype.

    Args:
        actual: the result of a kernel, of any floating dtype, on the host.
        definition: computes the expected value in the dtype of its arguments, independently of
            the kernel.  It is called with float64 and with float32 copies of ``arguments``.
        arguments: arrays (the floating ones are converted) and anything else (passed as it is).
        scale: magnitude whose last places make the floor; by default the largest expected
            magnitude.  For sums that may cancel pass ``definition`` of the absolute values.
        factor: how many naive errors are allowed.
    """
    actual = np.asarray(actual)
    rounded = [_cast(a, actual.dtype) for a in arguments]  # the numbers that the kernel saw
    exact = np.asarray(definition(*(_cast(a, np.float64) for a in rounded)))
    assert exact.dtype == np.float64, f"the definition must keep float64; it gave {exact.dtype}"
    singles = [_cast(a, np.float32) for a in rounded]
    naive = np.asarray(definition(*singles))
    assert naive.dtype == np.float32, f"the definition must keep float32; it gave {naive.dtype}"
    naive_exact = np.asarray(definition(*(_cast(a, np.float64) for a in singles)))

    naive_error = _largest(naive - naive_exact) / np.finfo(np.float32).eps
    floor = FLOOR_ULPS * (_largest(exact) if scale is None else _largest(np.asarray(scale)))
    budget = (factor * naive_error + floor) * float(np.finfo(wide(actual.dtype)).eps)
    if actual.dtype in HALVES:
        with np.errstate(over="ignore", invalid="ignore"):
            exact = np.where(np.isinf(exact.astype(actual.dtype)), exact.astype(actual.dtype).astype(np.float64), exact)
        digits, smallest = (11, -24) if actual.dtype == FLOAT16 else (8, -133)
        last_place = np.exp2(np.maximum(np.frexp(exact)[1] - digits, smallest))
        budget = budget + np.where(np.isfinite(exact), last_place / 2, 0.0)
    assert_within(actual, exact, budget)


def assert_within(actual: Any, exact: Any, budget: Any) -> None:
    """``|actual - exact| <= budget`` everywhere; NaNs and infinities must be at the same places."""
    actual, exact = np.asarray(actual), np.asarray(exact)
    assert actual.shape == exact.shape, f"shape {actual.shape}, expected {exact.shape}"
    finite = np.isfinite(exact)
    same = finite | (actual == exact) | (np.isnan(actual) & np.isnan(exact))
    with np.errstate(invalid="ignore", over="ignore"):
        error = np.where(finite, np.abs(actual.astype(np.float64) - exact), np.where(same, 0.0, np.inf))
    error = np.where(np.isnan(error), np.inf, error)
    if (error <= budget).all():
        return
    budgets = np.broadcast_to(budget, error.shape)
    with np.errstate(divide="ignore", invalid="ignore"):
        shares = np.where(error <= budgets, 0.0, error / budgets)
    worst = np.unravel_index(np.argmax(shares), error.shape)
    raise AssertionError(
        f"worst at {tuple(map(int, worst))}: {actual[worst]!r}, expected {exact[worst]!r}; error {error[worst]:.3g} is "
        f"{shares[worst]:.3g} times the budget {budgets[worst]:.3g}; {int((error > budget).sum())} of {error.size} "
        "elements exceed it"
    )


def _cast(argument: Any, dtype: Any) -> Any:
    floating = isinstance(argument, np.ndarray | np.generic) and kind_of(argument.dtype) == "f"
    return argument.astype(dtype) if floating else argument


def _largest(values: np.ndarray) -> float:
    values = np.abs(values[np.isfinite(values)])
    return float(values.max()) if values.size else 0.0
