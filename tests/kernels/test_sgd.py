"""SGD, momentum and Nesterov: the equations written plainly, hand-worked steps, and torch."""

from __future__ import annotations

import math

import numpy as np
import pytest
from _layouts import LAYOUTS, untouched
from _steps import LR, assert_runs_agree, check_refusals, put_lr, put_step, start, torch_run

from rawgrad.kernels import sgd as ops
from rawgrad.kernels._errors import ArgumentError

OPTIONS = [
    {},
    {"weight_decay": 0.1},
    {"momentum": 0.9},
    {"momentum": 0.9, "dampening": 0.3},
    {"momentum": 0.9, "nesterov": True},
    {"momentum": 0.9, "nesterov": True, "weight_decay": 0.1},
    {"momentum": 0.9, "dampening": 0.3, "weight_decay": 0.1},
]


def plain(dtype, momentum=0.0, dampening=0.0, nesterov=False, weight_decay=0.0):
    """The run in float64, from the values that ``dtype`` can hold."""
    params, grads = start(dtype)
    result = []
    for i, param in enumerate(params):
        theta, v = param.astype(np.float64), None
        for of_step in grads:
            g = of_step[i].astype(np.float64) + weight_decay * theta
            v = g if v is None else momentum * v + (1 - dampening) * g
            theta = theta - LR * (g + momentum * v if nesterov else v if momentum else g)
        result.append(theta)
    return result


def run(backend, dtype, layout="C", lr_dtype=np.float64, **options):
    host_params, host_grads = start(dtype)
    params = [backend.put(p, layout) for p in host_params]
    # the buffers' first contents must not matter
    buffers = [backend.put(np.full_like(p, np.nan), layout) for p in host_params] if options.get("momentum") else None
    lr = put_lr(backend, lr_dtype)
    for t, of_step in enumerate(host_grads, 1):
        grads, step = [backend.put(g, layout) for g in of_step], put_step(backend, t)
        with untouched(*grads, lr, step):
            ops.sgd_step(params, grads, buffers, lr, step, **options)
    return params


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_agrees_with_the_equations(backend, options, dtype, layout):
    assert_runs_agree(backend, run(backend, dtype, layout, **options), plain(dtype, **options), dtype)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_agrees_with_torch(backend, options):
    expected = torch_run(lambda torch, tensors: torch.optim.SGD(tensors, LR, **options))
    assert_runs_agree(backend, run(backend, np.float64, **options), expected, np.float64)


def test_learning_rate_of_the_parameters_dtype(backend):
    assert_runs_agree(backend, run(backend, np.float32, lr_dtype=np.float32), plain(np.float32), np.float32)


def test_hand_worked(backend):
    """θ = 1, g = 2 twice, η = 1/4, μ = 1/2: v = 2, 3; plain θ = 1/2, 0; heavy ball 1/2, -1/4; Nesterov 1/4, -5/8."""
    for options, expected in [
        ({}, [0.5, 0.0]),
        ({"momentum": 0.5}, [0.5, -0.25]),
        ({"momentum": 0.5, "nesterov": True}, [0.25, -0.625]),
        ({"weight_decay": 2.0}, [0.0, -0.5]),
    ]:
        params, grads = [backend.put(np.array([1.0]))], [backend.put(np.array([2.0]))]
        buffers = [backend.put(np.array([7.0]))] if "momentum" in options else None
        for t in (1, 2):
            ops.sgd_step(params, grads, buffers, put_lr(backend, lr=0.25), put_step(backend, t), **options)
            assert backend.get(params[0]).tolist() == [expected[t - 1]]
        assert buffers is None or backend.get(buffers[0]).tolist() == [3.0]


def test_descent_of_programs_p2(backend):
    """100 steps of learning rate 0.1 on x0² + x1² from (-3, 4) end at (-6.11e-10, 8.15e-10)."""
    params = [backend.put(np.array([-3.0, 4.0]))]
    for t in range(1, 101):
        ops.sgd_step(params, [2 * params[0]], None, put_lr(backend, lr=0.1), put_step(backend, t))
    np.testing.assert_allclose(backend.get(params[0]), [-6.11110793e-10, 8.14814391e-10], rtol=1e-8)


def test_the_first_step_does_not_read_the_buffers(backend):
    """Nothing has written them, which the emulator reports where it is read."""
    module = backend.device.array_module
    for n in (1, 9):  # an element alone; vectors and one more
        params, grads = [backend.put(np.ones(n))], [backend.put(np.full(n, 2.0))]
        buffers = [module.empty(n, np.float64)]
        ops.sgd_step(params, grads, buffers, put_lr(backend, lr=0.25), put_step(backend, 1), momentum=0.5)
        np.testing.assert_array_equal(backend.get(params[0]), np.full(n, 0.5))
        np.testing.assert_array_equal(backend.get(buffers[0]), np.full(n, 2.0))


def test_nan_and_infinity_travel(backend):
    params = [backend.put(np.zeros(4))]
    grads = [backend.put(np.array([np.nan, np.inf, -np.inf, 1.0]))]
    buffers = [backend.put(np.zeros(4))]
    ops.sgd_step(params, grads, buffers, put_lr(backend), put_step(backend, 1), momentum=0.9)
    np.testing.assert_array_equal(backend.get(params[0]), [np.nan, -np.inf, np.inf, -LR])


def test_refusals(backend):
    def momentum(lr, step, params, grads, momentum_buffers):
        ops.sgd_step(params, grads, momentum_buffers, lr, step, momentum=0.9)

    check_refusals(backend, "sgd", momentum, ["params", "grads", "momentum_buffers"])
    one = [backend.put(np.ones(1))]
    lr, step = put_lr(backend), put_step(backend, 1)
    for name in ("momentum", "weight_decay"):
        for bad in (-0.1, math.nan, math.inf):
            with pytest.raises(ArgumentError, match=f"sgd: {name} must be finite and >= 0; got"):
                ops.sgd_step(one, one, None, lr, step, **{name: bad})
    with pytest.raises(
        ArgumentError, match=r"momentum_buffers must be None exactly if momentum is 0; got None, momentum=0\.9"
    ):
        ops.sgd_step(one, one, None, lr, step, momentum=0.9)
    with pytest.raises(ArgumentError, match="momentum_buffers must be None exactly if momentum is 0; got a list"):
        ops.sgd_step(one, one, one, lr, step)
    with pytest.raises(ArgumentError, match="nesterov must come with momentum > 0 and dampening 0"):
        ops.sgd_step(one, one, one, lr, step, momentum=0.9, dampening=0.1, nesterov=True)
    with pytest.raises(ArgumentError, match="nesterov must come with momentum > 0"):
        ops.sgd_step(one, one, None, lr, step, nesterov=True)
