"""AdaGrad: the equations written plainly, hand-worked steps, and torch."""

from __future__ import annotations

import numpy as np
import pytest
from _layouts import LAYOUTS, untouched
from _steps import LR, assert_runs_agree, check_refusals, put_lr, put_step, start, torch_run

from rawgrad.kernels import adagrad as ops
from rawgrad.kernels._errors import ArgumentError

OPTIONS = [{}, {"weight_decay": 0.1}, {"lr_decay": 0.5}, {"eps": 0.1, "lr_decay": 0.1, "weight_decay": 0.2}]


def plain(dtype, lr_decay=0.0, eps=1e-10, weight_decay=0.0):
    """The run in float64, from the values that ``dtype`` can hold."""
    params, grads = start(dtype)
    result = []
    for i, param in enumerate(params):
        theta, s = param.astype(np.float64), 0.0
        for t, of_step in enumerate(grads, 1):
            g = of_step[i].astype(np.float64) + weight_decay * theta
            s = s + g**2
            theta = theta - LR / (1 + (t - 1) * lr_decay) * g / (s**0.5 + eps)
        result.append(theta)
    return result


def run(backend, dtype, layout="C", **options):
    host_params, host_grads = start(dtype)
    params = [backend.put(p, layout) for p in host_params]
    sums = [backend.put(np.zeros_like(p), layout) for p in host_params]
    for t, of_step in enumerate(host_grads, 1):
        grads, lr, step = [backend.put(g, layout) for g in of_step], put_lr(backend), put_step(backend, t)
        with untouched(*grads, lr, step):
            ops.adagrad_step(params, grads, sums, lr, step, **options)
    return params


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_agrees_with_the_equations(backend, options, dtype, layout):
    assert_runs_agree(backend, run(backend, dtype, layout, **options), plain(dtype, **options), dtype)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_agrees_with_torch(backend, options):
    expected = torch_run(lambda torch, tensors: torch.optim.Adagrad(tensors, LR, **options))
    assert_runs_agree(backend, run(backend, np.float64, **options), expected, np.float64)


def test_hand_worked(backend):
    """θ = 1, η = 1, eps = 0, gradients 3 and 4: sums 9 and 25, steps 3/3 and 4/5."""
    params, sums = [backend.put(np.array([1.0]))], [backend.put(np.array([0.0]))]
    for t, (g, expected) in enumerate([(3.0, 0.0), (4.0, -0.8)], 1):
        grads = [backend.put(np.array([g]))]
        ops.adagrad_step(params, grads, sums, put_lr(backend, lr=1.0), put_step(backend, t), eps=0.0)
        np.testing.assert_allclose(backend.get(params[0]), [expected], rtol=1e-15)
    assert backend.get(sums[0]).tolist() == [25.0]


def test_nan_and_infinity_travel(backend):
    params, sums = [backend.put(np.zeros(3))], [backend.put(np.zeros(3))]
    grads = [backend.put(np.array([np.nan, np.inf, 1.0]))]
    ops.adagrad_step(params, grads, sums, put_lr(backend), put_step(backend, 1))
    np.testing.assert_allclose(backend.get(params[0]), [np.nan, np.nan, -LR], rtol=1e-9)
    np.testing.assert_array_equal(backend.get(sums[0]), [np.nan, np.inf, 1.0])


def test_refusals(backend):
    def step_of(lr, step, params, grads, sums):
        ops.adagrad_step(params, grads, sums, lr, step)

    check_refusals(backend, "adagrad", step_of, ["params", "grads", "sums"])
    one = [backend.put(np.ones(1))]
    for name in ("lr_decay", "eps", "weight_decay"):
        with pytest.raises(ArgumentError, match=f"adagrad: {name} must be finite and >= 0; got -1"):
            ops.adagrad_step(one, one, one, put_lr(backend), put_step(backend, 1), **{name: -1})
