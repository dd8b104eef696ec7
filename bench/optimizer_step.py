"""A step of Adam over all parameters, on a GPU, beside PyTorch's fused one.

Each set is an optimizer with parameters, gradients and state of its own; the sets are stepped in turn, so that none
finds its arrays in the cache.  A step changes them, and takes as long however often it was done.  What is checked are
the parameters after three steps from the same numbers, the first thousand of each.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..kernels._dispatch import backend
from ..kernels.adam import adam_step
from .harness import OURS
from .peers import Library

_LR = 1e-3
_PROVED_STEPS, _PROVED = 3, 1000
#: Reads and writes of a number: the parameter, its gradient (read alone) and two averages, in float32.
BYTES, OPERATIONS = 28, 20


def numbers(sizes: Sequence[int]) -> list[tuple[np.ndarray, np.ndarray]]:
    """A parameter and its gradient for each size, the same in every run."""
    draw = np.random.default_rng(11)
    return [(draw.standard_normal(n, np.float32), draw.standard_normal(n, np.float32)) for n in sizes]


def optimizer(lib: Library, values: Sequence[tuple[np.ndarray, np.ndarray]]) -> Any:
    """Adam of ``lib`` over parameters that have their gradients."""
    parameters = []
    for value, gradient in values:
        parameter = lib.nn.Parameter(lib.tensor(value.copy()))
        parameter.grad = lib.tensor(gradient)
        parameters.append(parameter)
    return lib.optim.Adam(parameters, lr=_LR, **({} if lib.name == OURS else {"fused": True}))


def result(lib: Library, values: Sequence[tuple[np.ndarray, np.ndarray]]) -> list[np.ndarray]:
    """What some steps make of the parameters."""
    one = optimizer(lib, values)
    for _ in range(_PROVED_STEPS):
        one.step()
    (group,) = one.param_groups
    return [np.array(lib.host(parameter)[:_PROVED]) for parameter in group["params"]]


def reference(values: Sequence[tuple[np.ndarray, np.ndarray]]) -> list[np.ndarray]:
    """The same by the reference, in float64."""
    parameters, gradients = ([pair[i][:_PROVED].astype(np.float64) for pair in values] for i in range(2))
    means, squares = ([np.zeros_like(p) for p in parameters] for _ in range(2))
    with backend("numpy"):
        for t in range(1, 1 + _PROVED_STEPS):
            adam_step(parameters, gradients, means, squares, np.array([_LR]), np.array([t]))
    return parameters
