"""Learning-rate schedules against torch and by formula."""

from __future__ import annotations

import math

import numpy as np
import pytest

import rawgrad as rg
from rawgrad import optim
from rawgrad.kernels._errors import ArgumentError, CheckpointError
from rawgrad.optim import lr_scheduler as ours_module

CASES = {
    "lambda": lambda s, o: s.LambdaLR(o, lambda step: 0.9**step + step),
    "lambdas": lambda s, o: s.LambdaLR(o, [lambda step: 1 / (step + 1), lambda step: 2.0]),
    "constant": lambda s, o: s.ConstantLR(o, factor=0.4, total_iters=3),
    "linear": lambda s, o: s.LinearLR(o, start_factor=0.1, end_factor=0.8, total_iters=6),
    "step": lambda s, o: s.StepLR(o, 3, gamma=0.2),
    "multistep": lambda s, o: s.MultiStepLR(o, [2, 5, 5, 7], gamma=0.3),
    "exponential": lambda s, o: s.ExponentialLR(o, 0.8),
    "cosine": lambda s, o: s.CosineAnnealingLR(o, T_max=5, eta_min=0.01),
    "warm-up, then cosine": lambda s, o: s.SequentialLR(
        o, [s.LinearLR(o, 0.2, total_iters=4), s.CosineAnnealingLR(o, 6), s.ConstantLR(o, 0.5, 100)], [4, 9]
    ),
}


def optimizer(o=optim, tensor=rg.tensor):
    params = [tensor(np.ones(2), requires_grad=True) for _ in range(2)]
    return o.SGD([{"params": params[:1]}, {"params": params[1:], "lr": 0.5}], lr=0.1)


@pytest.mark.filterwarnings("ignore")  # torch would have optimizer.step() called first
@pytest.mark.parametrize("name", CASES)
def test_agrees_with_torch(name):
    torch = pytest.importorskip("torch")
    a, b = optimizer(), optimizer(torch.optim, torch.tensor)
    ours, theirs = CASES[name](ours_module, a), CASES[name](torch.optim.lr_scheduler, b)
    for step in range(14):
        assert [g["lr"] for g in a.param_groups] == pytest.approx([g["lr"] for g in b.param_groups], rel=1e-12), step
        assert ours.get_last_lr() == [g["lr"] for g in a.param_groups]
        ours.step()
        theirs.step()


def test_p9s_schedule():
    p = rg.tensor(np.ones(1), requires_grad=True)
    opt = optim.Adam([p], lr=0.0031)
    schedule = ours_module.ExponentialDecayToFloor(opt, floor=0.0001, time_constant=2000)
    rates = []
    for _ in range(10001):
        rates.append(opt.param_groups[0]["lr"])
        schedule.step()
    for step in (0, 1, 2000, 10000):
        assert rates[step] == pytest.approx(0.0001 + 0.003 * math.exp(-step / 2000), rel=1e-12)


def test_the_optimizer_uses_it():
    p = rg.tensor(np.zeros(1), requires_grad=True)
    opt = optim.SGD([p], lr=1.0)
    schedule = ours_module.StepLR(opt, 1, gamma=0.5)
    for expected in (-1.0, -1.5, -1.75):
        p.grad = rg.tensor(np.ones(1))
        opt.step()
        schedule.step()
        assert p.item() == expected


@pytest.mark.parametrize("name", CASES)
def test_resumes_exactly(name):
    first, second = optimizer(), optimizer()
    schedule = CASES[name](ours_module, first)
    for _ in range(6):
        schedule.step()
    other = CASES[name](ours_module, second)
    other.load_state_dict(schedule.state_dict())
    for _ in range(6):
        assert other.get_last_lr() == schedule.get_last_lr()
        schedule.step()
        other.step()


def test_refusals():
    opt = optimizer()
    schedule = ours_module.StepLR(opt, 2)
    for call in (
        lambda: ours_module.StepLR(opt, 0),
        lambda: ours_module.StepLR("SGD", 1),
        lambda: ours_module.ExponentialLR(opt, float("nan")),
        lambda: ours_module.LambdaLR(opt, [lambda step: 1.0]),
        lambda: ours_module.CosineAnnealingLR(opt, 2.5),
        lambda: ours_module.LinearLR(opt, -1.0),
        lambda: ours_module.MultiStepLR(opt, [-1]),
        lambda: ours_module.ExponentialDecayToFloor(opt, 0.1, 0),
        lambda: ours_module.SequentialLR(opt, [schedule, schedule], []),
        lambda: ours_module.SequentialLR(opt, [schedule, schedule, schedule], [3, 3]),
        lambda: ours_module.SequentialLR(opt, [schedule, ours_module.StepLR(optimizer(), 2)], [3]),
    ):
        with pytest.raises(ArgumentError):
            call()
    for state, message in (
        ({}, "not the state of a schedule"),
        ({"schedule": "ExponentialLR", "last_epoch": 1, "base_lrs": [1.0, 1.0]}, "of a ExponentialLR"),
        ({"schedule": "StepLR", "last_epoch": 1, "base_lrs": [1.0]}, "2 groups; the state has 1"),
    ):
        with pytest.raises(CheckpointError, match=message):
            schedule.load_state_dict(state)
