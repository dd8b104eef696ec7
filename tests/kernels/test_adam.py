"""Adam and AdamW: the equations written plainly, hand-worked steps, and torch."""

from __future__ import annotations

import math

import numpy as np
import pytest
from _layouts import LAYOUTS, untouched
from _steps import LR, assert_runs_agree, check_refusals, put_lr, put_step, start, torch_run

from rawgrad.kernels import adam as ops
from rawgrad.kernels._errors import ArgumentError

OPTIONS = [
    {},
    {"weight_decay": 0.1},
    {"weight_decay": 0.1, "decoupled": True},
    {"betas": (0.5, 0.75), "eps": 0.1},
    {"betas": (0.0, 0.0), "eps": 1.0},
]


def plain(dtype, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0, decoupled=False):
    """The run in float64, from the values that ``dtype`` can hold."""
    params, grads = start(dtype)
    result = []
    for i, param in enumerate(params):
        theta, m, v = param.astype(np.float64), 0.0, 0.0
        for t, of_step in enumerate(grads, 1):
            g = of_step[i].astype(np.float64)
            if decoupled:
                theta = theta - LR * weight_decay * theta
            else:
                g = g + weight_decay * theta
            m = betas[0] * m + (1 - betas[0]) * g
            v = betas[1] * v + (1 - betas[1]) * g**2
            theta = theta - LR * (m / (1 - betas[0] ** t)) / ((v / (1 - betas[1] ** t)) ** 0.5 + eps)
        result.append(theta)
    return result


def run(backend, dtype, layout="C", **options):
    host_params, host_grads = start(dtype)
    params = [backend.put(p, layout) for p in host_params]
    averages, squares = ([backend.put(np.zeros_like(p), layout) for p in host_params] for _ in range(2))
    for t, of_step in enumerate(host_grads, 1):
        grads, lr, step = [backend.put(g, layout) for g in of_step], put_lr(backend), put_step(backend, t)
        with untouched(*grads, lr, step):
            ops.adam_step(params, grads, averages, squares, lr, step, **options)
    return params


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_agrees_with_the_equations(backend, options, dtype, layout):
    assert_runs_agree(backend, run(backend, dtype, layout, **options), plain(dtype, **options), dtype)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_agrees_with_torch(backend, options):
    def make(torch, tensors):
        kind = torch.optim.AdamW if options.get("decoupled") else torch.optim.Adam
        kept = {name: value for name, value in options.items() if name != "decoupled"}
        return kind(tensors, LR, **kept)

    assert_runs_agree(backend, run(backend, np.float64, **options), torch_run(make), np.float64)


def test_hand_worked(backend):
    """The first step of Adam is η times the sign of the gradient; the second here is η 1.5/√1.5."""
    params, averages, squares = ([backend.put(np.full(2, v))] for v in (1.0, 0.0, 0.0))
    grads = [backend.put(np.array([1.0, -1e-5]))]
    half = {"betas": (0.5, 0.5), "eps": 0.0}
    ops.adam_step(params, grads, averages, squares, put_lr(backend, lr=0.25), put_step(backend, 1), **half)
    np.testing.assert_allclose(backend.get(params[0]), [0.75, 1.25], rtol=1e-15)
    # m = .5 · .5 + .5 · 2 = 1.25, v = .5 · .5 + .5 · 4 = 2.25, both over 1 - 1/4
    grads = [backend.put(np.array([2.0, 0.0]))]
    ops.adam_step(params, grads, averages, squares, put_lr(backend, lr=0.25), put_step(backend, 2), **half)
    assert backend.get(averages[0])[0] == 1.25 and backend.get(squares[0])[0] == 2.25
    expected = 0.75 - 0.25 * (1.25 / 0.75) / (2.25 / 0.75) ** 0.5
    np.testing.assert_allclose(backend.get(params[0])[0], expected, rtol=1e-15)


def test_decay_is_decoupled(backend):
    """With no gradient AdamW shrinks by 1 - η λ and keeps its averages at 0; Adam takes λ θ for a gradient."""
    for decoupled, expected in [(True, 4 * (1 - 0.25 * 0.5)), (False, 4 - 0.25)]:
        params, zeros, averages, squares = ([backend.put(np.full(1, v))] for v in (4.0, 0.0, 0.0, 0.0))
        lr, step = put_lr(backend, lr=0.25), put_step(backend, 1)
        ops.adam_step(params, zeros, averages, squares, lr, step, weight_decay=0.5, decoupled=decoupled)
        np.testing.assert_allclose(backend.get(params[0]), expected, rtol=1e-8)
        for average in (averages, squares):
            assert bool(backend.get(average[0])[0]) is not decoupled


def test_nan_and_infinity_travel(backend):
    params, averages, squares = ([backend.put(np.zeros(3))] for _ in range(3))
    grads = [backend.put(np.array([np.nan, np.inf, 1.0]))]
    ops.adam_step(params, grads, averages, squares, put_lr(backend), put_step(backend, 1))
    np.testing.assert_allclose(backend.get(params[0]), [np.nan, np.nan, -LR], rtol=1e-7)


def test_refusals(backend):
    def step_of(lr, step, params, grads, exp_avgs, exp_avg_sqs):
        ops.adam_step(params, grads, exp_avgs, exp_avg_sqs, lr, step)

    check_refusals(backend, "adam", step_of, ["params", "grads", "exp_avgs", "exp_avg_sqs"])
    one, lr, step = [backend.put(np.ones(1))], put_lr(backend), put_step(backend, 1)
    for name in ("eps", "weight_decay"):
        with pytest.raises(ArgumentError, match=f"adam: {name} must be finite and >= 0; got -1"):
            ops.adam_step(one, one, one, one, lr, step, **{name: -1})
    for betas, message in [
        ((1.0, 0.9), r"beta1 must be in \[0, 1\); got 1\.0"),
        ((0.9, -0.1), r"beta2 must be in \[0, 1\); got -0\.1"),
        (0.9, r"betas must be a pair of numbers; got 0\.9"),
        ((0.9,), "betas must be a pair of numbers"),
    ]:
        with pytest.raises(ArgumentError, match=f"adam: {message}"):
            ops.adam_step(one, one, one, one, lr, step, betas=betas)


@pytest.mark.parametrize("t", [0, -3])
def test_steps_count_from_one(backend, t):
    """Nothing is written; a GPU says so when the host next waits for it."""
    arrays = [[backend.put(np.full(3, value))] for value in (1.0, 2.0, 3.0, 4.0)]
    with pytest.raises(ArgumentError, match=f"adam: step must count from 1; got {t}"):
        ops.adam_step(*arrays, put_lr(backend), put_step(backend, t))
        backend.synchronize()
    for (array,), value in zip(arrays, (1.0, 2.0, 3.0, 4.0), strict=True):
        np.testing.assert_array_equal(backend.get(array), np.full(3, value))


@pytest.mark.parametrize("t", [1, 2, 1000, 123_456_789])
@pytest.mark.parametrize("beta", [0.0, 0.9, 0.999, 0.9999999])
def test_corrections_of_early_and_late_steps(backend, t, beta):
    """m = g (1 - β^t) and v = g² (1 - β^t) make a step of η: corrections known to a few units in the last place.

    1 - β^t is computed here from log1p, so that no digits cancel.
    """
    correction = -math.expm1(t * math.log1p(-(1 - beta))) if beta else 1.0
    g, eta = 2.0, 0.25
    before = [(correction - (1 - beta)) * value / beta if beta else 0.0 for value in (g, g * g)]
    params, grads, averages, squares = ([backend.put(np.full(1, v))] for v in (0.0, g, *before))
    ops.adam_step(
        params, grads, averages, squares, put_lr(backend, lr=eta), put_step(backend, t), betas=(beta, beta), eps=0.0
    )
    # the reference takes 1 - β^t of a rounded β^t
    room = 8 * np.finfo(np.float64).eps * (1 + beta**t / correction)
    np.testing.assert_allclose(backend.get(params[0]), [-eta], rtol=room)
