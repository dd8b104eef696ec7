"""A lower precision holds for what is computed under it, and for the gradients of that, and for nothing else."""

from __future__ import annotations

import numpy as np
import pytest

import rawgrad as rg
from rawgrad.kernels._dispatch import BACKENDS, current_choice


@pytest.fixture(autouse=True)
def emulated():
    if problem := BACKENDS["emulated"].problem():
        pytest.skip(f"backend 'emulated' cannot run here: {problem}")
    with rg.backend("emulated"):
        yield


def is_rounded(product: np.ndarray, a: np.ndarray, b: np.ndarray) -> bool:
    """Whether the factors were rounded to tf32: float32's own error is a thousand times smaller."""
    error = np.abs(product - a.astype(np.float64) @ b).max() / (np.abs(a).astype(np.float64) @ np.abs(b)).max()
    assert error < 2.0**-9 and (error < 2.0**-22 or error > 2.0**-17), f"neither float32's error nor tf32's: {error}"
    return bool(error > 2.0**-17)


def test_the_graph_remembers_the_precision() -> None:
    rng = np.random.default_rng(0)
    a, b, g = (rng.standard_normal((24, 24)).astype(np.float32) for _ in range(3))
    left, right = (rg.tensor(x, device="cuda", requires_grad=True) for x in (a, b))
    with rg.precision("tf32"):
        y = left @ right
    assert current_choice().precision == "float32"
    assert is_rounded(y.detach().to("cpu").numpy(), a, b)
    y.backward(rg.tensor(g, device="cuda"))
    assert is_rounded(left.grad.to("cpu").numpy(), g, b.T)
    assert is_rounded(right.grad.to("cpu").numpy(), a.T, g)

    left.grad = right.grad = None
    z = left @ right
    with rg.precision("tf32"):  # the forward pass decides, not where the backward pass is called
        z.backward(rg.tensor(g, device="cuda"))
    assert not is_rounded(z.detach().to("cpu").numpy(), a, b)
    assert not is_rounded(left.grad.to("cpu").numpy(), g, b.T)


def test_it_is_a_call_too() -> None:
    setting = rg.precision("bf16")
    assert current_choice().precision == "bf16"
    setting.__exit__(None, None, None)
    assert current_choice().precision == "float32"
