"""A property of every optimizer step: how the elements are cut into arrays changes nothing.

A step over a list of arrays of any shapes and layouts must give, element by element, what the same
step gives over all their elements in one flat array.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from _layouts import LAYOUTS
from _steps import put_lr, put_step
from hypothesis import given
from hypothesis import strategies as st

from rawgrad.kernels import adagrad, adam, rmsprop, sgd

shapes = st.lists(st.lists(st.integers(0, 5), max_size=4).map(tuple), min_size=1, max_size=4)
layouts = st.sampled_from(sorted(LAYOUTS))
dtypes = st.sampled_from([np.float32, np.float64])

#: Calls a step: (params, grads, first state, second state, lr, step).
Step = Callable[[Any, Any, Any, Any, Any, Any], None]


def check(backend: Any, run: Step, sizes: list[tuple[int, ...]], layout: str, dtype: Any) -> None:
    rng = np.random.default_rng(sum(map(sum, sizes)))
    cut = {name: [np.asarray(rng.standard_normal(s), dtype) for s in sizes] for name in "pg"}
    cut |= {name: [np.asarray(rng.random(s), dtype) for s in sizes] for name in "mv"}  # states are not negative
    flat = {name: [np.concatenate([array.ravel() for array in arrays])] for name, arrays in cut.items()}
    results = []
    for arrays, how in ((cut, layout), (flat, "C")):
        on_device = {name: [backend.put(array, how) for array in arrays[name]] for name in "pgmv"}
        for t in (2, 3):
            run(*(on_device[name] for name in "pgmv"), put_lr(backend), put_step(backend, t))
        results.append({n: np.concatenate([backend.get(a).ravel() for a in on_device[n]]) for n in "pgmv"})
    for name in "pgmv":
        np.testing.assert_array_equal(results[0][name], results[1][name], err_msg=name)


@pytest.mark.operation("sgd")
@given(shapes, layouts, dtypes)
def test_sgd(backend: Any, sizes: list[tuple[int, ...]], layout: str, dtype: Any) -> None:
    def run(p: Any, g: Any, m: Any, v: Any, lr: Any, step: Any) -> None:
        sgd.sgd_step(p, g, m, lr, step, momentum=0.9, dampening=0.1, weight_decay=0.01)

    check(backend, run, sizes, layout, dtype)


@pytest.mark.operation("adagrad")
@given(shapes, layouts, dtypes)
def test_adagrad(backend: Any, sizes: list[tuple[int, ...]], layout: str, dtype: Any) -> None:
    def run(p: Any, g: Any, m: Any, v: Any, lr: Any, step: Any) -> None:
        adagrad.adagrad_step(p, g, v, lr, step, lr_decay=0.1, weight_decay=0.01)

    check(backend, run, sizes, layout, dtype)


@pytest.mark.operation("rmsprop")
@given(shapes, layouts, dtypes)
def test_rmsprop(backend: Any, sizes: list[tuple[int, ...]], layout: str, dtype: Any) -> None:
    def run(p: Any, g: Any, m: Any, v: Any, lr: Any, step: Any) -> None:
        rmsprop.rmsprop_step(p, g, v, m, None, lr, momentum=0.9, weight_decay=0.01)

    check(backend, run, sizes, layout, dtype)


@pytest.mark.operation("adam")
@given(shapes, layouts, dtypes, st.booleans())
def test_adam(backend: Any, sizes: list[tuple[int, ...]], layout: str, dtype: Any, decoupled: bool) -> None:
    def run(p: Any, g: Any, m: Any, v: Any, lr: Any, step: Any) -> None:
        adam.adam_step(p, g, m, v, lr, step, weight_decay=0.01, decoupled=decoupled)

    check(backend, run, sizes, layout, dtype)
