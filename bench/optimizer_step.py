"""A step of each optimizer over all parameters, beside PyTorch's.

Each set is an optimizer with parameters, gradients and state of its own; the sets are stepped in turn, so that none
finds its arrays in the cache.  A step changes them, and takes as long however often it was done.  What is checked are
the parameters after three steps from the same numbers, the first thousand of each.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ..kernels._dispatch import backend
from . import shapes
from .harness import OURS, Contestant, Work, assert_close, sets_past_cache
from .peers import Library, detail, library
from .shapes import networks

_LR = 1e-3
_PROVED_STEPS, _PROVED = 3, 1000
#: Class, options, and what torch has its quickest way by: on the CPU fused ones but for RMSprop.
_OPTIMIZERS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "sgd": ("SGD", {}, {"fused": True}),
    "sgd_momentum": ("SGD", {"momentum": 0.9}, {"fused": True}),
    "adagrad": ("Adagrad", {}, {"fused": True}),
    "rmsprop": ("RMSprop", {}, {"foreach": True}),
    "adam": ("Adam", {}, {"fused": True}),
    "adamw": ("AdamW", {}, {"fused": True}),
}
#: The folder in ``kernels/`` of each kind.
OPERATIONS = {kind: {"sgd_momentum": "sgd", "adamw": "adam"}.get(kind, kind) for kind in _OPTIMIZERS}

Values = Sequence[tuple[np.ndarray, np.ndarray]]


def numbers(sizes: Sequence[int]) -> list[tuple[np.ndarray, np.ndarray]]:
    """A parameter and its gradient for each size, the same in every run."""
    draw = np.random.default_rng(11)
    return [(draw.standard_normal(n, np.float32), draw.standard_normal(n, np.float32)) for n in sizes]


def optimizer(lib: Library, kind: str, values: Values) -> Any:
    """An optimizer of ``lib`` over parameters that have their gradients."""
    name, options, of_torch = _OPTIMIZERS[kind]
    if lib.name != OURS:
        # Of Adagrad torch has a fused one for the CPU only.
        options = options | ({"foreach": True} if kind == "adagrad" and lib.device != "cpu" else of_torch)
    parameters = []
    for value, gradient in values:
        parameter = lib.nn.Parameter(lib.tensor(value.copy()))
        parameter.grad = lib.tensor(gradient)
        parameters.append(parameter)
    return getattr(lib.optim, name)(parameters, lr=_LR, **options)


def result(lib: Library, kind: str, values: Values) -> list[np.ndarray]:
    """What some steps make of the parameters."""
    one = optimizer(lib, kind, values)
    for _ in range(_PROVED_STEPS):
        one.step()
    (group,) = one.param_groups
    return [np.array(lib.host(parameter)[:_PROVED]) for parameter in group["params"]]


def reference(kind: str, values: Values) -> list[np.ndarray]:
    """The same by the reference, in float64."""
    first = [(p[:_PROVED].astype(np.float64), g[:_PROVED].astype(np.float64)) for p, g in values]
    with backend("numpy"):
        return result(library(OURS), kind, first)


def figures(name: str, update: shapes.Update, contestants: Sequence[Contestant], values: Values) -> Work:
    """The row of these contestants, each of which gives what :func:`result` does."""
    return Work(
        name,
        f"{update.kind} over {update.count:,} numbers in {len(update.sizes)} tensors",
        contestants,
        reference=lambda: reference(update.kind, values),
        reference_name=f"rawgrad's NumPy reference in float64, {_PROVED_STEPS} steps",
        check=lambda found, right: assert_close(found, right, 1e-6),
        flops=update.flops(),
        bytes=update.bytes(),
    )


def work(name: str, update: shapes.Update, who: Sequence[str]) -> Work:
    """A step on the CPU."""
    values = numbers(update.sizes)
    sets = min(sets_past_cache(update.bytes()), max(2, 2**31 // update.bytes()))

    def contestant(one: str) -> Contestant:
        lib = library(one)
        inputs = [(optimizer(lib, update.kind, values),) for _ in range(sets)]
        step: Callable[[Any], None] = lambda chosen: chosen.step()  # noqa: E731
        return Contestant(one, step, inputs, detail(one), lambda: result(lib, update.kind, values))

    return figures(name, update, [contestant(one) for one in who], values)


def named() -> dict[str, shapes.Update]:
    """The steps that are rows of the CPU: each kind over many tensors, and over large ones."""
    return {
        f"{kind}_{name}": networks.update(kind, name)
        for kind in _OPTIMIZERS
        for name in networks.UPDATE_SIZES
        if name != "1M_in_8" or kind == "adam"
    }
