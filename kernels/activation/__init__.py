"""Elementwise activations.

Legend: x the input, y = f(x) the output, g = dL/dy, s the logistic sigmoid, s(x) = 1 / (1 + e^-x),
Φ and φ the distribution function and the density of the standard normal distribution.

==============  ====================================================  =======================================
kind            y = f(x)                                              dL/dx
==============  ====================================================  =======================================
relu            max(x, 0)                                             0 where y <= 0, else g
leaky_relu      x where x > 0, else a x          (a: negative_slope)  g where y > 0, else a g
elu             x where x > 0, else α (e^x - 1)                       g where y > 0, else g (y + α)
sigmoid         s(x)                                                  g y (1 - y)
tanh            tanh x                                                g (1 - y²)
silu            x s(x)                                                g (s + x s (1 - s)),           s = s(x)
gelu, none      x Φ(x)                                                g (Φ(x) + x φ(x))
gelu, tanh      x s(2u),  u = √(2/π) (x + 0.044715 x³)                g (s + x s (1 - s) 2u'),       s = s(2u)
softplus        log(1 + e^(βx)) / β;  x where βx > threshold          g s(βx);  g where βx > threshold
==============  ====================================================  =======================================

(x s(2u) is x (1 + tanh u) / 2 without its cancellation for negative x.)  The gradients of the first
five are functions of y, so the input need not be kept; this takes a >= 0 and α >= 0.

NaN travels: relu(NaN) is NaN, and its gradient passes g.  Huge inputs give the limits, without
overflow on the way; -inf gives NaN in silu and gelu (∞ times 0), as in torch.

Sources: Clevert et al., "ELUs", 2016; Hendrycks and Gimpel, "GELUs", 2016; Elfwing et al., "SiLU",
2018; Dugas et al., "softplus", 2001.

Checks: kind must be known, options must be its own; float32 or float64 of any shape.
Backends: ``numpy`` (reference.py), ``numba`` (numba_cpu.py), ``cuda`` and ``emulated`` (cuda.py, activation.cu);
``numba_cuda`` (numba_cuda.py, twins of some versions).
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from .._contracts import check_out, check_shape, common_device, common_float
from .._dispatch import Operation
from .._errors import ArgumentError

_operation = Operation(__name__)


class Kind(NamedTuple):
    """What an activation keeps for its backward pass, and its options with their defaults."""

    saves: str
    defaults: dict[str, Any]


KINDS: dict[str, Kind] = {
    "relu": Kind("output", {}),
    "leaky_relu": Kind("output", {"negative_slope": 0.01}),
    "elu": Kind("output", {"alpha": 1.0}),
    "sigmoid": Kind("output", {}),
    "tanh": Kind("output", {}),
    "silu": Kind("input", {}),
    "gelu": Kind("input", {"approximate": "none"}),
    "softplus": Kind("input", {"beta": 1.0, "threshold": 20.0}),
}
_DEFAULTS = {name: tuple(kind.defaults.values()) for name, kind in KINDS.items()}
#: The least value of a number among the options; softplus divides by beta.
_LEAST = {"negative_slope": 0.0, "alpha": 0.0, "beta": math.ulp(0.0), "threshold": -math.inf}


def check_kind(operation: str, kind: str) -> None:
    """``kind`` must be one of :data:`KINDS`."""
    if not isinstance(kind, str) or kind not in KINDS:
        raise ArgumentError(f"{operation}: kind must be one of {', '.join(KINDS)}; got {kind!r}")


def saves(kind: str) -> str:
    """What :func:`activation_backward` takes as ``saved``: ``"output"`` or ``"input"``."""
    check_kind("activation", kind)
    return KINDS[kind].saves


def _checked_options(kind: str, given: dict[str, Any]) -> tuple[Any, ...]:
    """The options of ``kind`` in the order of :data:`KINDS`."""
    check_kind("activation", kind)
    if not given:
        return _DEFAULTS[kind]
    defaults = KINDS[kind].defaults
    for name, value in given.items():
        if name not in defaults:
            known = ", ".join(defaults) or "none"
            raise ArgumentError(f"activation: {name} must be an option of {kind} ({known}); got {name}={value!r}")
        if name == "approximate":
            if value not in ("none", "tanh"):
                raise ArgumentError(f"activation: approximate must be 'none' or 'tanh'; got {value!r}")
            continue
        try:
            valid = bool(_LEAST[name] <= value < math.inf)
        except (TypeError, ValueError):
            valid = False
        if not valid:
            domain = "finite" if name == "threshold" else "finite and positive" if name == "beta" else "finite and >= 0"
            raise ArgumentError(f"activation: {name} must be {domain}; got {value!r}")
    merged = {**defaults, **given}
    return tuple(value if name == "approximate" else float(value) for name, value in merged.items())


def activation_forward(x: Any, kind: str, *, out: Any = None, version: str | None = None, **options: Any) -> Any:
    """``f(x)`` for the activation ``kind``.

    Args:
        x: any shape, float32 or float64.
        kind: one of :data:`KINDS`.
        out: array of x's shape and dtype to write into; it may not overlap ``x``.
        version: the version of the kernel to run, by name.
        options: those of the kind: leaky_relu ``negative_slope=0.01``; elu ``alpha=1.0``; gelu
            ``approximate="none"`` or ``"tanh"``; softplus ``beta=1.0, threshold=20.0``.

    Returns:
        The shape and dtype of ``x``.

    Raises:
        ShapeError, DtypeError, DeviceError, ArgumentError, BackendError.
    """
    checked = _checked_options(kind, options)
    device = common_device("activation", x=x)
    dtype = common_float("activation", x=x)
    if out is not None:
        check_out("activation", out, x.shape, dtype, device, x)
    return _operation.run("activation_forward", device, x, kind, checked, out, version=version)


def activation_backward(grad: Any, saved: Any, kind: str, **options: Any) -> Any:
    """dL/dx from ``grad`` = dL/dy.

    Args:
        grad: dL/dy, the shape and dtype of y.
        saved: y or x, as :func:`saves` says for the kind.
        kind, options: as in the forward pass.
    """
    checked = _checked_options(kind, options)
    device = common_device("activation_backward", grad=grad, saved=saved)
    common_float("activation_backward", grad=grad, saved=saved)
    check_shape("activation_backward", "grad", grad, saved.shape)
    return _operation.run("activation_backward", device, grad, saved, kind, checked)
