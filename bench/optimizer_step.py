"""A step of each optimizer over all parameters, beside PyTorch's, and the same equations in JAX.

Each set is an optimizer with parameters, gradients and state of its own; the sets are stepped in turn, so that none
finds its arrays in the cache.  A step changes them, and takes as long however often it was done.  What is checked are
the parameters after three steps from the same numbers, the first thousand of each.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import cache, partial
from typing import Any

import numpy as np

from ..kernels._dispatch import backend
from . import peers, shapes
from .formulas import jax_update
from .harness import OURS, Contestant, Work, assert_close, sets_past_cache
from .kernels import REFERENCE
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


#: Arrays of state per parameter.
_STATES = {"sgd": 0, "sgd_momentum": 1, "adagrad": 1, "rmsprop": 1, "adam": 2, "adamw": 2}


@cache
def _jax_step(kind: str) -> Any:
    """All parameters in one compiled function, which may write where it read."""
    import jax

    def step(t: Any, state: Any, gradients: Any) -> Any:
        update = partial(jax_update, jax.numpy, kind, _LR, t)
        return [update(one[0], g, *one[1:]) for one, g in zip(state, gradients, strict=True)]

    return jax.jit(step, donate_argnums=1)


class JaxOptimizer:
    """Parameters, their state and gradients, in JAX."""

    def __init__(self, kind: str, values: Values) -> None:
        rival: Any = peers.rival("jax")
        self._step, self._host, self._wait, self._t = _jax_step(kind), rival.host, rival.wait, 0
        self._gradients = [rival.put(gradient) for _, gradient in values]
        zeros = [[np.zeros_like(value) for _ in range(_STATES[kind])] for value, _ in values]
        self._state = [
            tuple(rival.put(a.copy()) for a in (value, *rest)) for (value, _), rest in zip(values, zeros, strict=True)
        ]

    def step(self) -> None:
        """One step, its end waited for."""
        self._t += 1
        self._state = self._step(np.float32(self._t), self._state, self._gradients)
        self._wait(self._state)

    def proved(self) -> list[np.ndarray]:
        """The parameters' first numbers after some steps."""
        for _ in range(_PROVED_STEPS):
            self.step()
        return [self._host(one[0])[:_PROVED] for one in self._state]


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
        step: Callable[[Any], None] = lambda chosen: chosen.step()  # noqa: E731
        if one == "jax":
            inputs = [(JaxOptimizer(update.kind, values),) for _ in range(sets)]
            return Contestant(one, step, inputs, detail(one), lambda: JaxOptimizer(update.kind, values).proved())
        within = partial(backend, "numpy") if one == REFERENCE else nullcontext

        def in_backend(chosen: Any) -> None:
            with within():
                chosen.step()

        def proved() -> list[np.ndarray]:
            with within():
                return result(lib, update.kind, values)

        lib = library(OURS if one == REFERENCE else one)
        inputs = [(optimizer(lib, update.kind, values),) for _ in range(sets)]
        return Contestant(one, in_backend if one == REFERENCE else step, inputs, detail(one), proved)

    return figures(name, update, [contestant(one) for one in who], values)


def named() -> dict[str, shapes.Update]:
    """The steps that are rows of the CPU: each kind over many tensors, and over large ones."""
    return {
        f"{kind}_{name}": networks.update(kind, name)
        for kind in _OPTIMIZERS
        for name in networks.UPDATE_SIZES
        if name != "1M_in_8" or kind == "adam"
    }
