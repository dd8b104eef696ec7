"""Tensors whose memory is (N, H, W, C): convolutions keep them so where they can, and everything else takes them."""

from __future__ import annotations

from typing import Any

import cases
import numpy as np
import pytest
from cases import CASES, Case

import rawgrad as rg
from rawgrad import autograd as ag
from rawgrad import nn
from rawgrad.autograd import Tensor
from rawgrad.autograd import functional as F
from rawgrad.kernels._layout import is_channels_last

pytestmark = pytest.mark.backends("emulated", "cuda")
OF_IMAGES = [case for case in CASES if any(len(spread.shape) == 4 for spread in case.inputs)]


def lasting(tensor: Tensor) -> Tensor:
    """The same numbers, in the other order in memory."""
    return Tensor(tensor.array.transpose(0, 2, 3, 1).copy().transpose(0, 3, 1, 2)).requires_grad_(tensor.requires_grad)


@pytest.mark.parametrize("case", OF_IMAGES, ids=lambda case: case.name)
def test_operations_take_them(backend: Any, case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cases, "constants_on", backend.device.name)

    def run(inputs: list[Tensor]) -> list[np.ndarray]:
        results = case.function(*inputs)
        results = list(results) if isinstance(results, tuple) else [results]
        gradients = ag.grad(sum((r * r).sum() for r in results), inputs, allow_unused=True)
        return [backend.get(t.detach().array) for t in (*results, *gradients) if t is not None]

    inputs = case.tensors(backend.device.name)
    lying = [lasting(x) if x.ndim == 4 else x for x in inputs]
    for found, expected in zip(run(lying), run(inputs), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-12)


def test_they_pass_through_convolutions_as_they_are(backend: Any) -> None:
    """Forward and back, under a precision for which there are kernels of this layout; no other ones run."""
    if backend.name != "emulated":
        pytest.skip("only the emulator tells which kernels ran")
    from rawgrad.kernels._emulator.runtime import record_launches

    rng = np.random.default_rng(0)
    x, first, second = (
        rg.tensor(rng.standard_normal(s).astype(np.float32), device=backend.device.name, requires_grad=True)
        for s in ((2, 8, 5, 6), (12, 8, 3, 3), (8, 12, 1, 1))
    )
    x = lasting(x)
    with rg.precision("tf32"), record_launches() as launches:
        between = F.conv2d(x, first, padding=1, activation="relu")
        y = F.conv2d(between, second)
        (y * y).sum().backward()
    assert is_channels_last(between.array) and is_channels_last(y.array)
    ran = [launch.kernel.partition("_v6_channels_last")[:2] for launch in launches if "sum_slices" not in launch.kernel]
    passes = ["conv2d_forward"] * 2 + ["conv2d_backward_input", "conv2d_backward_weight"] * 2
    assert sorted(ran) == sorted((name, "_v6_channels_last") for name in passes)
    assert first.grad is not None and first.grad.array.flags.c_contiguous


def test_a_network_computes_the_same(backend: Any) -> None:
    """What has no kernel for them takes copies, and goes on in NCHW."""
    rng = np.random.default_rng(0)
    rg.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 8, 3),
        nn.Flatten(), nn.Linear(32, 4),
    ).to(backend.device.name)  # fmt: skip
    images = rg.tensor(rng.standard_normal((2, 3, 8, 8)).astype(np.float32), device=backend.device.name)
    found = []
    with rg.precision("tf32"):
        for x in (images, lasting(images)):
            net.zero_grad()
            y = net(x)
            (y * y).sum().backward()
            found.append([backend.get(t.array) for t in (y, *(p.grad for p in net.parameters()))])
    for one, other in zip(*found, strict=True):  # a sum in another order may be rounded to the next number of tf32
        np.testing.assert_allclose(one, other, atol=2e-3 * np.abs(other).max())
