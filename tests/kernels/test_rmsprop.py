"""RMSProp: the equations written plainly, hand-worked steps, and torch."""

from __future__ import annotations

import numpy as np
import pytest
from _layouts import LAYOUTS, untouched
from _steps import LR, assert_runs_agree, check_refusals, put_lr, start, torch_run

from rawgrad.kernels import rmsprop as ops
from rawgrad.kernels._errors import ArgumentError

OPTIONS = [
    {},
    {"weight_decay": 0.1, "alpha": 0.9},
    {"momentum": 0.9},
    {"centered": True},
    {"centered": True, "momentum": 0.5, "weight_decay": 0.1, "eps": 1e-3, "alpha": 0.5},
]


def plain(dtype, alpha=0.99, eps=1e-8, momentum=0.0, weight_decay=0.0, centered=False):
    """The run in float64, from the values that ``dtype`` can hold."""
    params, grads = start(dtype)
    result = []
    for i, param in enumerate(params):
        theta, s, m, v = param.astype(np.float64), 0.0, 0.0, 0.0
        for of_step in grads:
            g = of_step[i].astype(np.float64) + weight_decay * theta
            s, m = alpha * s + (1 - alpha) * g**2, alpha * m + (1 - alpha) * g
            d = g / ((s - m**2 if centered else s) ** 0.5 + eps)
            v = momentum * v + d
            theta = theta - LR * v
        result.append(theta)
    return result


def run(backend, dtype, layout="C", centered=False, **options):
    host_params, host_grads = start(dtype)
    params = [backend.put(p, layout) for p in host_params]
    squares, buffers, averages = ([backend.put(np.zeros_like(p), layout) for p in host_params] for _ in range(3))
    lr = put_lr(backend)
    for of_step in host_grads:
        grads = [backend.put(g, layout) for g in of_step]
        with untouched(*grads, lr):
            ops.rmsprop_step(
                params,
                grads,
                squares,
                buffers if options.get("momentum") else None,
                averages if centered else None,
                lr,
                **options,
            )
    return params


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_agrees_with_the_equations(backend, options, dtype, layout):
    assert_runs_agree(backend, run(backend, dtype, layout, **options), plain(dtype, **options), dtype)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_agrees_with_torch(backend, options):
    expected = torch_run(lambda torch, tensors: torch.optim.RMSprop(tensors, LR, **options))
    assert_runs_agree(backend, run(backend, np.float64, **options), expected, np.float64)


def test_hand_worked(backend):
    """g = 2, α = 3/4, eps = 0: s = 1, then 7/4; the first step is η 2/1, the second η 2/√(7/4)."""
    params, squares, grads = ([backend.put(np.array([v]))] for v in (1.0, 0.0, 2.0))
    for expected in (0.0, -1 / 1.75**0.5):
        ops.rmsprop_step(params, grads, squares, None, None, put_lr(backend, lr=0.5), alpha=0.75, eps=0.0)
        np.testing.assert_allclose(backend.get(params[0]), [expected], rtol=1e-15, atol=1e-16)
    assert backend.get(squares[0]).tolist() == [1.75]


def test_centered_average_of_a_constant_gradient(backend):
    """s - m² vanishes and may round to less than 0, whose root would be NaN."""
    params, squares, averages = ([backend.put(np.zeros(200, np.float32))] for _ in range(3))
    grads = [backend.put(np.random.default_rng(16).standard_normal(200).astype(np.float32))]
    for _ in range(300):
        ops.rmsprop_step(params, grads, squares, None, averages, put_lr(backend), alpha=0.9, eps=1.0)
    assert np.isfinite(backend.get(params[0])).all()


@pytest.mark.parametrize("n", [1, 9])
def test_a_variance_below_zero_counts_as_zero(backend, n):
    """s = 0 and m = 1, which no gradients make but rounding could: d = g / (0 + eps)."""
    params, grads, squares, averages = ([backend.put(np.full(n, v))] for v in (1.0, 1.0, 0.0, 1.0))
    ops.rmsprop_step(params, grads, squares, None, averages, put_lr(backend, lr=0.25), alpha=0.75, eps=2.0)
    np.testing.assert_array_equal(backend.get(params[0]), np.full(n, 1 - 0.25 / 2))


def test_nan_and_infinity_travel(backend):
    for centered in (False, True):
        params, squares, averages = ([backend.put(np.zeros(3))] for _ in range(3))
        grads = [backend.put(np.array([np.nan, np.inf, 0.0]))]
        ops.rmsprop_step(params, grads, squares, None, averages if centered else None, put_lr(backend))
        np.testing.assert_array_equal(backend.get(params[0]), [np.nan, np.nan, 0.0])


def test_refusals(backend):
    def step_of(lr, step, params, grads, square_avgs, momentum_buffers, grad_avgs):
        ops.rmsprop_step(params, grads, square_avgs, momentum_buffers, grad_avgs, lr, momentum=0.9)

    lists = ["params", "grads", "square_avgs", "momentum_buffers", "grad_avgs"]
    check_refusals(backend, "rmsprop", step_of, lists, step=False)
    one, lr = [backend.put(np.ones(1))], put_lr(backend)
    for name in ("eps", "momentum", "weight_decay"):
        with pytest.raises(ArgumentError, match=f"rmsprop: {name} must be finite and >= 0; got -1"):
            ops.rmsprop_step(one, one, one, None, None, lr, **{name: -1})
    for alpha in (-0.1, 1.0):
        with pytest.raises(ArgumentError, match=r"rmsprop: alpha must be in \[0, 1\); got"):
            ops.rmsprop_step(one, one, one, None, None, lr, alpha=alpha)
    with pytest.raises(ArgumentError, match="momentum_buffers must be None exactly if momentum is 0; got a list"):
        ops.rmsprop_step(one, one, one, one, None, lr)
