"""Runs of an optimizer step over several steps, and the mistakes that every step must refuse."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from _tolerance import assert_within

from rawgrad.kernels._errors import DeviceError, DtypeError, ShapeError

LR = 0.05
STEPS = 6
# no dimensions; one element; odd; a vector length and one more; no elements; a filter
SHAPES: list[tuple[int, ...]] = [(), (1,), (3, 5), (33,), (0, 4), (4, 2, 3, 3)]


def start(dtype: Any, steps: int = STEPS) -> tuple[list[np.ndarray], list[list[np.ndarray]]]:
    """Parameters, and the gradients of each step."""
    rng = np.random.default_rng(15)
    params = [np.asarray(rng.standard_normal(s), dtype) for s in SHAPES]
    return params, [[np.asarray(rng.standard_normal(s), dtype) for s in SHAPES] for _ in range(steps)]


def put_lr(backend: Any, dtype: Any = np.float64, lr: float = LR) -> Any:
    return backend.put(np.array([lr], dtype))


def put_step(backend: Any, t: int) -> Any:
    return backend.put(np.array([t], np.int64))


def torch_run(make: Callable[[Any, list[Any]], Any], steps: int = STEPS) -> list[np.ndarray]:
    """The parameters after ``steps`` steps in float64 of the optimizer that ``make(torch, tensors)`` gives."""
    torch = pytest.importorskip("torch")
    params, grads = start(np.float64, steps)
    tensors = [torch.tensor(p, requires_grad=True) for p in params]
    optimizer = make(torch, tensors)
    for of_step in grads:
        for tensor, grad in zip(tensors, of_step, strict=True):
            tensor.grad = torch.tensor(grad)
        optimizer.step()
    return [t.detach().numpy() for t in tensors]


def assert_runs_agree(backend: Any, actual: list[Any], expected: list[np.ndarray], dtype: Any) -> None:
    """Parameters of about 1 after STEPS steps: some roundings each, the expected ones in float64."""
    assert len(actual) == len(expected)
    for a, e in zip(actual, expected, strict=True):
        a = backend.get(a)
        assert a.dtype == dtype
        assert_within(a, np.asarray(e), 8 * STEPS * float(np.finfo(dtype).eps))


def check_refusals(backend: Any, operation: str, run: Callable[..., None], lists: list[str], step: bool = True) -> None:
    """What every step refuses.

    Args:
        run: ``run(lr=, step=, **lists)``, each of ``lists`` a list of arrays.
        lists: their names, params first.
        step: whether the operation takes a step.
    """

    def arrays(*shapes: tuple[int, ...], dtype: Any = np.float32) -> list[Any]:
        return [backend.put(np.zeros(s, dtype)) for s in shapes]

    good: dict[str, Any] = {name: arrays((2,), (3, 4)) for name in lists}
    good |= {"lr": put_lr(backend), "step": put_step(backend, 1)}
    run(**good)
    run(**good | {"lr": put_lr(backend, np.float32)})
    run(**good | {name: [] for name in lists})  # an empty list is fine
    for name in lists[1:]:
        with pytest.raises(ShapeError, match=rf"{operation}: {name} must have as many arrays as params, 2; got 1"):
            run(**good | {name: arrays((2,))})
        wrong = rf"{operation}: {name}\[1\] must have the shape of params\[1\], \(3, 4\); got \(4, 3\)"
        with pytest.raises(ShapeError, match=wrong):
            run(**good | {name: arrays((2,), (4, 3))})
        with pytest.raises(DtypeError, match=rf"one dtype; params\[0\] is float32, {name}\[0\] is float64"):
            run(**good | {name: arrays((2,), (3, 4), dtype=np.float64)})
        with pytest.raises(DeviceError, match=rf"{operation}: {name}\[1\]: expected an array"):
            run(**good | {name: [good[name][0], [[0.0] * 4] * 3]})
    with pytest.raises(DtypeError, match=rf"{operation}: params\[0\] must be float32 or float64; got int64"):
        run(**good | {name: arrays((2,), dtype=np.int64) for name in lists})
    with pytest.raises(DtypeError, match=r"params\[0\] is float32, params\[1\] is float64"):
        run(**good | {"params": arrays((2,)) + arrays((3, 4), dtype=np.float64)})
    with pytest.raises(DtypeError, match=f"{operation}: lr must be float64 or float32 like the parameters; got int64"):
        run(**good | {"lr": backend.put(np.array([1]))})
    with pytest.raises(ShapeError, match=rf"{operation}: lr must have one element; got shape \(2,\)"):
        run(**good | {"lr": backend.put(np.ones(2))})
    with pytest.raises(DeviceError, match=f"{operation}: lr: expected an array"):
        run(**good | {"lr": 0.1})
    if step:
        with pytest.raises(DtypeError, match=f"{operation}: step must be int64; got float64"):
            run(**good | {"step": backend.put(np.ones(1))})
        with pytest.raises(ShapeError, match=rf"{operation}: step must have one element; got shape \(0,\)"):
            run(**good | {"step": backend.put(np.ones(0, np.int64))})
