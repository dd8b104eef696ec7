"""What the tests of the three normalisations share: the equations of their docstrings, for sizes at which the
derivatives of the definition would take too long, and arrays that no 16-byte load can read."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import pytest
from _tolerance import assert_accurate
from _versions import Version, every_version, versions

from rawgrad.kernels._dispatch import backend as use_backend

EPS = 1e-3


class Problem(NamedTuple):
    """A normalisation in an array whose axes say everything.

    Attributes:
        x, grad: arrays of equal shape.
        weight, bias: as many axes, to be broadcast.
        over: the axes over which means run.
        sums: the axes over which the gradients of weight and bias are summed.
    """

    x: np.ndarray
    weight: np.ndarray
    bias: np.ndarray
    grad: np.ndarray
    over: tuple[int, ...]
    sums: tuple[int, ...]


def problem(shape: tuple[int, ...], over: tuple[int, ...], sums: tuple[int, ...], dtype: Any, seed: int = 0) -> Problem:
    """Random numbers; the weights have the size of x along the axes that are not summed."""
    rng = np.random.default_rng(seed)
    wide = tuple(1 if axis in sums else size for axis, size in enumerate(shape))
    arrays = rng.standard_normal(shape) * 2 + 1, rng.uniform(0.5, 2, wide), rng.standard_normal(wide)
    return Problem(*(a.astype(dtype) for a in arrays), rng.standard_normal(shape).astype(dtype), over, sums)


def statistics(x: np.ndarray, over: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Mean and rstd, with axes of one element in place of those in ``over``."""
    mean = x.mean(axis=over, keepdims=True)
    return mean, 1 / np.sqrt(np.square(x - mean).mean(axis=over, keepdims=True) + x.dtype.type(EPS))


def forward(x, weight, bias, over):
    mean, rstd = statistics(x, over)
    return (x - mean) * rstd * weight + bias


def input_gradient(x, weight, grad, over):
    mean, rstd = statistics(x, over)
    xhat, h = (x - mean) * rstd, weight * grad
    return rstd * (h - h.mean(axis=over, keepdims=True) - xhat * (h * xhat).mean(axis=over, keepdims=True))


def weight_gradient(x, grad, over, sums):
    mean, rstd = statistics(x, over)
    return (grad * ((x - mean) * rstd)).sum(axis=sums)


def assert_equations(p: Problem, y, mean, rstd, dx, dweight, dbias) -> None:
    """Host arrays of any shape, as a kernel made them, against the equations."""
    parameters = np.sum(p.grad, axis=p.sums).shape
    magnitude = np.abs(p.grad).sum(axis=p.sums).max()
    assert_accurate(y.reshape(p.x.shape), forward, p.x, p.weight, p.bias, p.over)
    wide = statistics(p.x, p.over)[0].shape
    assert_accurate(mean.reshape(wide), lambda x: statistics(x, p.over)[0], p.x, scale=2.0)
    assert_accurate(rstd.reshape(wide), lambda x: statistics(x, p.over)[1], p.x)
    assert_accurate(dx.reshape(p.x.shape), input_gradient, p.x, p.weight, p.grad, p.over)
    assert_accurate(dweight.reshape(parameters), weight_gradient, p.x, p.grad, p.over, p.sums, scale=magnitude)
    assert_accurate(dbias.reshape(parameters), lambda grad: grad.sum(axis=p.sums), p.grad, scale=magnitude)


def unaligned(backend: Any, host: np.ndarray) -> Any:
    """``host`` on the device, C-contiguous, but one element behind a multiple of 16 bytes."""
    larger = backend.put(np.concatenate([np.zeros(1, host.dtype), host.reshape(-1)]))
    return larger[1:].reshape(host.shape)


class Single(Version):
    """In place of a version, on the backends that have none."""

    def belongs_to(self, backend: str) -> bool:
        return versions(backend, self.operation, self.function) == [None]


def each_version(operation: str) -> list[Version]:
    """Every version of ``operation``'s forward pass, and what backends without versions run: each kernel once."""
    single = Single("single")
    single.operation, single.function = operation, f"{operation}_forward"
    return [single, *(version for version in every_version(operation, single.function) if version is not None)]


@contextmanager
def pinned(backend: Any, operation: str, version: Version) -> Iterator[None]:
    """Have ``version``, from :func:`each_version`, run; a pin holds for all functions of the operation."""
    with use_backend(backend.name, **({} if isinstance(version, Single) else {operation: version})):
        yield


def traffic(backend: Any, run: Callable[[], Any]) -> list[tuple[int, int]]:
    """What each launch of ``run`` reads from global memory and writes there, in float32 numbers."""
    if backend.name != "emulated":
        pytest.skip("only the emulator counts bytes")
    from rawgrad.kernels._emulator.runtime import record_launches

    with record_launches() as launches:
        run()
    return [(launch.traffic.global_read // 4, launch.traffic.global_written // 4) for launch in launches]


def assert_same_bits(run: Callable[[Callable[[np.ndarray], Any]], Any], backend: Any) -> None:
    """``run(put)`` gives the same bits twice, and from arrays at any address."""
    first, again, elsewhere = (
        [backend.get(a).tobytes() for a in run(put)]
        for put in (backend.put, backend.put, lambda host: unaligned(backend, host))
    )
    assert first == again, "two runs differ"
    assert first == elsewhere, "the address of the arrays makes a difference"


def assert_same_bits_for_any_threads(run: Callable[[], Any]) -> None:
    """``run()`` gives the same bits with one thread and with all; backend ``numba`` must be active."""
    from rawgrad.kernels._jit import get_num_threads, set_num_threads

    results, threads = [], get_num_threads()
    for count in (1, threads):
        set_num_threads(count)
        try:
            results.append([a.tobytes() for a in run()])
        finally:
            set_num_threads(threads)
    assert results[0] == results[-1]
