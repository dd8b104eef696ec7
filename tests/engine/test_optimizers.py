"""Optimizers against torch, step by step; groups, skipped parameters, state, refusals."""

from __future__ import annotations

import copy

import numpy as np
import pytest
from engine_cases import OPTIMIZERS, PATTERN, gradients, starts

import rawgrad as rg
from rawgrad import nn, optim
from rawgrad.kernels._errors import ArgumentError, CheckpointError, RawgradError


def parameters():
    return [rg.tensor(value.copy(), requires_grad=True) for value in starts()]


def take_step(optimizer, params, step, tensor, pattern=(1, 1, 1)):
    for p, grad, has in zip(params, gradients(step), pattern, strict=True):
        p.grad = tensor(grad) if has else None
    optimizer.step()


@pytest.mark.parametrize("pattern", [[(1, 1, 1)] * 5, PATTERN], ids=["all", "some"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_agrees_with_torch(name, pattern):
    torch = pytest.importorskip("torch")
    ours = parameters()
    theirs = [torch.tensor(value, requires_grad=True) for value in starts()]
    a, b = OPTIMIZERS[name](optim, ours), OPTIMIZERS[name](torch.optim, theirs)
    for step, present in enumerate(pattern):
        take_step(a, ours, step, rg.tensor, present)
        take_step(b, theirs, step, torch.tensor, present)
        for p, q in zip(ours, theirs, strict=True):
            np.testing.assert_allclose(p.detach().numpy(), q.detach().numpy(), rtol=1e-12, atol=1e-14)
    if not name.startswith("sgd"):
        counts = [int(b.state[q]["step"]) for q in theirs]
        assert [a.state_dict()["state"][i]["step"] for i in range(3)] == counts


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_resumes_bit_for_bit_from_its_state(name):
    params = parameters()
    optimizer = OPTIMIZERS[name](optim, params)
    for step, present in enumerate(PATTERN):
        take_step(optimizer, params, step, rg.tensor, present)
    saved = optimizer.state_dict()
    values = [p.detach().numpy().copy() for p in params]
    frozen = copy.deepcopy(saved)
    for step in range(3):
        take_step(optimizer, params, 50 + step, rg.tensor)
    # The saved state is a copy: the steps since have not touched it.
    np.testing.assert_equal(saved, frozen)

    again = [rg.tensor(value.copy(), requires_grad=True) for value in values]
    other = OPTIMIZERS[name](optim, again)
    other.load_state_dict(saved)
    np.testing.assert_equal(other.state_dict(), saved)
    for step in range(3):
        take_step(other, again, 50 + step, rg.tensor)
    for p, q in zip(params, again, strict=True):
        np.testing.assert_array_equal(p.detach().numpy(), q.detach().numpy())
    np.testing.assert_equal(saved, frozen)


def test_two_steps_of_momentum_by_hand():
    p = rg.tensor(np.array([1.0]), requires_grad=True)
    optimizer = optim.SGD([p], lr=0.5, momentum=0.5)
    for expected in (1 - 0.5 * 2, 0 - 0.5 * (0.5 * 2 + 2)):
        p.grad = rg.tensor(np.array([2.0]))
        optimizer.step()
        assert p.item() == expected


class TestGroups:
    def test_options_of_their_own(self):
        torch = pytest.importorskip("torch")

        def run(o, tensors, tensor):
            opt = o.SGD([{"params": tensors[:1]}, {"params": tensors[1], "lr": 0.5, "momentum": 0.9}], lr=0.1)
            opt.add_param_group({"params": tensors[2:], "weight_decay": 0.2})
            for step in range(4):
                take_step(opt, tensors, step, tensor)
            return opt

        ours, theirs = parameters(), [torch.tensor(v, requires_grad=True) for v in starts()]
        a = run(optim, ours, rg.tensor)
        run(torch.optim, theirs, torch.tensor)
        for p, q in zip(ours, theirs, strict=True):
            np.testing.assert_allclose(p.detach().numpy(), q.detach().numpy(), rtol=1e-12)
        assert [g["lr"] for g in a.param_groups] == [0.1, 0.5, 0.1]
        assert [g["params"] for g in a.state_dict()["param_groups"]] == [[0], [1], [2]]

    def test_the_learning_rate_may_be_set_at_any_time(self):
        p = rg.tensor(np.zeros(1), requires_grad=True)
        optimizer = optim.SGD([p], lr=0.5)
        for lr, expected in ((0.5, -0.5), (0.25, -0.75), (0.25, -1.0), (0, -1.0), (1, -2.0)):
            optimizer.param_groups[0]["lr"] = lr
            p.grad = rg.tensor(np.ones(1))
            optimizer.step()
            assert p.item() == expected
        for bad in (-1.0, float("nan"), "fast"):
            optimizer.param_groups[0]["lr"] = bad
            with pytest.raises(ArgumentError, match="SGD: lr must be a real number, not negative"):
                optimizer.step()
        assert p.item() == -2.0

    def test_the_device_array_is_written_only_when_the_rate_changes(self):
        p = rg.tensor(np.zeros(1), requires_grad=True)
        optimizer = optim.Adam([p], lr=0.5)
        p.grad = rg.tensor(np.ones(1))
        optimizer.step()
        ((value, array),) = optimizer._rates.values()
        array[...] = 0.25  # whoever owns the device's copy: an unchanged rate is left alone
        optimizer.step()
        assert (value, array.item()) == (0.5, 0.25)

    def test_mixed_dtypes_in_one_group(self):
        single = rg.tensor(np.ones(2, np.float32), requires_grad=True)
        double = rg.tensor(np.ones(2), requires_grad=True)
        optimizer = optim.Adam([single, double], lr=0.1)
        for p in (single, double):
            p.grad = rg.tensor(np.ones(2, p.dtype))
        optimizer.step()
        assert (single.dtype, double.dtype) == (np.float32, np.float64)
        np.testing.assert_allclose(double.detach().numpy(), 0.9, rtol=1e-7)
        np.testing.assert_allclose(single.detach().numpy(), 0.9, rtol=1e-6)

    def test_parameters_stepped_together_share_one_count(self):
        params = parameters()
        optimizer = optim.Adam(params)
        take_step(optimizer, params, 0, rg.tensor)
        assert len({id(optimizer.state[p]["step"]) for p in params}) == 1
        take_step(optimizer, params, 1, rg.tensor, (1, 0, 1))
        assert len({id(optimizer.state[p]["step"]) for p in params}) == 2
        assert optimizer.state[params[0]]["step"] is optimizer.state[params[2]]["step"]

    def test_momentum_switched_on_later(self):
        p = rg.tensor(np.zeros(1), requires_grad=True)
        optimizer = optim.SGD([p], lr=1.0)
        p.grad = rg.tensor(np.ones(1))
        optimizer.step()
        optimizer.param_groups[0]["momentum"] = 0.5
        optimizer.step()
        optimizer.step()
        assert p.item() == -1 - 1 - 1.5

    def test_closure_zero_grad_and_repr(self):
        p = rg.tensor(np.full(1, 3.0), requires_grad=True)
        optimizer = optim.SGD([p], lr=0.5)

        def closure():
            optimizer.zero_grad()
            loss = (p * p).sum()
            loss.backward()
            return loss

        with rg.no_grad():
            assert optimizer.step(closure).item() == 9.0
        assert p.item() == 0.0
        optimizer.zero_grad(set_to_none=False)
        assert p.grad.item() == 0.0
        optimizer.zero_grad()
        assert p.grad is None
        assert repr(optimizer).splitlines()[:4] == [
            "SGD (", "Parameter Group 0", "    dampening: 0.0", "    lr: 0.5"]  # fmt: skip

    def test_a_graph_from_before_the_step_is_refused(self):
        p = rg.tensor(np.full(1, 3.0), requires_grad=True)
        loss = (p * p).sum()
        loss.backward(retain_graph=True)
        optim.SGD([p], lr=0.5).step()
        with pytest.raises(RawgradError, match="modified in place"):
            loss.backward()


LEAF = rg.tensor(np.ones(2), requires_grad=True)


@pytest.mark.parametrize(
    ("message", "call"),
    [
        ("SGD: params must not be empty", lambda: optim.SGD([])),
        ("SGD: params must not be empty", lambda: optim.SGD([{"params": []}])),
        ("SGD: params must be an iterable of tensors or of groups; got Tensor", lambda: optim.SGD(LEAF)),
        (r"SGD: params\[0\] must be a tensor; got tuple", lambda: optim.SGD(nn.Linear(1, 1).named_parameters())),
        (r"Adam: params\[1\] of shape \(2,\) is given twice", lambda: optim.Adam([LEAF, LEAF])),
        (r"params\[0\] of shape \(2,\) is given twice", lambda: optim.Adam([{"params": LEAF}, {"params": LEAF}])),
        (r"params\[0\] of shape \(2,\) must be a leaf", lambda: optim.Adam([LEAF * 2])),
        (r"params\[0\] must be of a floating dtype; got int64", lambda: optim.Adam([rg.tensor(np.ones(1, np.int64))])),
        (r"unknown options \['beta'\]", lambda: optim.Adam([{"params": LEAF, "beta": 1}])),
        ("must be a mapping with 'params'", lambda: optim.Adam([{"weights": LEAF}])),
        ("Adam: lr must be a real number, not negative; got -1", lambda: optim.Adam([LEAF], lr=-1)),
        ("Adam: lr must be a real number, not negative; got None", lambda: optim.Adam([LEAF], lr=None)),
        ("Adam: eps must be a real number, not negative; got nan", lambda: optim.Adam([LEAF], eps=float("nan"))),
        ("AdamW: weight_decay must be", lambda: optim.AdamW([LEAF], weight_decay=-1)),
        (r"Adam: betas must be a pair of numbers in \[0, 1\); got 1.0", lambda: optim.Adam([LEAF], betas=(0.9, 1.0))),
        (r"Adam: betas must be a pair of numbers in \[0, 1\); got 0.9", lambda: optim.Adam([LEAF], betas=0.9)),
        (r"RMSprop: alpha must be in \[0, 1\); got 1", lambda: optim.RMSprop([LEAF], alpha=1)),
        ("SGD: momentum must be positive with nesterov; got 0", lambda: optim.SGD([LEAF], nesterov=True)),
        ("SGD: dampening must be 0 with", lambda: optim.SGD([LEAF], momentum=0.9, dampening=0.1, nesterov=True)),
    ],
)
def test_refusals(message, call):
    with pytest.raises(ArgumentError, match=message):
        call()


@pytest.mark.parametrize(
    ("message", "damage"),
    [
        ("not the state of an optimizer", lambda s: s.pop("state")),
        (r"groups must have \[3\] parameters; the state has \[2\]", lambda s: s["param_groups"][0]["params"].pop()),
        ("a group must have the options", lambda s: s["param_groups"][0].pop("eps")),
        ("Adam: lr must be a real number", lambda s: s["param_groups"][0].update(lr=-1.0)),
        ("the state is of a parameter 9 in no group", lambda s: s["state"].update({9: s["state"].pop(0)})),
        ("parameter 1 must have the state step, exp_avg, exp_avg_sq", lambda s: s["state"][1].pop("exp_avg")),
        (r"exp_avg of parameter 0 must be float64 of shape \(3, 4\); got float64 of shape \(2,\)",
         lambda s: s["state"][0].update(exp_avg=np.ones(2))),
    ],
)  # fmt: skip
def test_a_state_that_does_not_fit_changes_nothing(message, damage):
    params = parameters()
    optimizer = optim.Adam(params)
    take_step(optimizer, params, 0, rg.tensor)
    before = optimizer.state_dict()
    wrong = copy.deepcopy(before)
    wrong["param_groups"][0]["eps"] = 0.5
    damage(wrong)
    with pytest.raises(CheckpointError, match=message):
        optimizer.load_state_dict(wrong)
    np.testing.assert_equal(optimizer.state_dict(), before)


class TestClipping:
    @pytest.mark.parametrize("norm_type", [2.0, 1.0, 3, float("inf")])
    @pytest.mark.parametrize("max_norm", [0.0, 0.7, 1e6])
    def test_norm_agrees_with_torch(self, norm_type, max_norm):
        torch = pytest.importorskip("torch")
        ours, theirs = parameters(), [torch.tensor(v, requires_grad=True) for v in starts()]
        for p, q, grad in zip(ours, theirs, gradients(0), strict=True):
            p.grad, q.grad = rg.tensor(grad.copy()), torch.tensor(grad)
        ours.append(rg.tensor(np.ones(1), requires_grad=True))  # no gradient
        total = optim.clip_grad_norm_(iter(ours), max_norm, norm_type)
        expected = torch.nn.utils.clip_grad_norm_(theirs, max_norm, norm_type)
        assert total.item() == pytest.approx(expected.item(), rel=1e-12)
        for p, q in zip(ours, theirs, strict=False):
            np.testing.assert_allclose(p.grad.numpy(), q.grad.numpy(), rtol=1e-10)

    def test_float32_does_not_overflow(self):
        p = rg.tensor(np.zeros(2, np.float32), requires_grad=True)
        p.grad = rg.tensor(np.array([3e30, 4e30], np.float32))
        assert optim.clip_grad_norm_(p, 1.0).item() == pytest.approx(5e30, rel=1e-6)
        np.testing.assert_allclose(p.grad.numpy(), [0.6, 0.8], rtol=1e-6)
        assert p.grad.dtype == np.float32

    def test_not_finite(self):
        p = rg.tensor(np.zeros(2), requires_grad=True)
        p.grad = rg.tensor(np.array([1.0, np.nan]))
        with pytest.raises(rg.NonFiniteError, match="norm is nan"):
            optim.clip_grad_norm_([p], 1.0, error_if_nonfinite=True)
        assert p.grad.numpy()[0] == 1.0
        assert np.isnan(optim.clip_grad_norm_([p], 1.0).item())
        assert np.isnan(p.grad.numpy()).all()

    def test_value(self):
        p, q = parameters()[:2]
        p.grad = rg.tensor(np.array([[-3.0, -0.5, 0.2, np.nan]] * 3))
        optim.clip_grad_value_([p, q], 0.5)
        np.testing.assert_array_equal(p.grad.numpy(), [[-0.5, -0.5, 0.2, np.nan]] * 3)
        assert q.grad is None

    def test_nothing_to_clip_and_refusals(self):
        assert optim.clip_grad_norm_(parameters(), 1.0).item() == 0.0
        for call in (
            lambda: optim.clip_grad_norm_([LEAF], -1.0),
            lambda: optim.clip_grad_norm_([LEAF], 1.0, 0.0),
            lambda: optim.clip_grad_value_([LEAF], -1.0),
        ):
            with pytest.raises(ArgumentError):
                call()
