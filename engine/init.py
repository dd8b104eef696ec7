"""Initial values of parameters (``nn.init``), in place, from rawgrad's own generator.

All values are drawn on the host in float64, from a stream keyed by (seed, offset), and then copied:
so the same seed gives the same model on every device, and a float64 model is the float32 one but
for rounding.  Names, keywords and formulas as in torch.

Sources: Glorot and Bengio 2010 (xavier), He et al. 2015 (kaiming), Saxe et al. 2014 (orthogonal).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from ..autograd import Tensor
from ..autograd.random import Generator, default_generator
from ..kernels._devices import device_of
from ..kernels._dtypes import kind_of
from ..kernels._errors import ArgumentError, DtypeError, ShapeError

_LINEAR = (
    "linear",
    "conv1d",
    "conv2d",
    "conv3d",
    "conv_transpose1d",
    "conv_transpose2d",
    "conv_transpose3d",
    "sigmoid",
)


def _stream(generator: Generator | None) -> np.random.Generator:
    return (generator or default_generator).numpy()


def _fill(operation: str, tensor: Tensor, values: Any) -> Tensor:
    """Write host ``values`` into ``tensor``, outside any graph."""
    array = tensor.array
    if kind_of(array.dtype) != "f":
        raise DtypeError(f"{operation}: tensor must be of a floating dtype; got {array.dtype}")
    values = np.broadcast_to(np.asarray(values, array.dtype), array.shape)
    array[...] = device_of(array).from_host(values)
    tensor.written()
    return tensor


def uniform_(tensor: Tensor, a: float = 0.0, b: float = 1.0, generator: Generator | None = None) -> Tensor:
    """Fill with values uniform between ``a`` and ``b``."""
    if not a <= b:
        raise ArgumentError(f"uniform_: a must not be greater than b; got {a} and {b}")
    return _fill("uniform_", tensor, _stream(generator).uniform(a, b, tensor.shape))


def normal_(tensor: Tensor, mean: float = 0.0, std: float = 1.0, generator: Generator | None = None) -> Tensor:
    """Fill with normally distributed values."""
    if not std >= 0:
        raise ArgumentError(f"normal_: std must not be negative; got {std}")
    return _fill("normal_", tensor, _stream(generator).normal(mean, std, tensor.shape))


def constant_(tensor: Tensor, val: float) -> Tensor:
    """Fill with ``val``."""
    return _fill("constant_", tensor, val)


def zeros_(tensor: Tensor) -> Tensor:
    """Fill with zeros."""
    return _fill("zeros_", tensor, 0.0)


def ones_(tensor: Tensor) -> Tensor:
    """Fill with ones."""
    return _fill("ones_", tensor, 1.0)


def calculate_gain(nonlinearity: str, param: float | None = None) -> float:
    """The factor by which weights before ``nonlinearity`` are enlarged.

    Args:
        nonlinearity: linear, conv*, sigmoid: 1; tanh: 5/3; relu: sqrt 2; selu: 3/4;
            leaky_relu: sqrt(2 / (1 + slope²)).
        param: the negative slope of leaky_relu, 0.01 if None.
    """
    if nonlinearity in _LINEAR:
        return 1.0
    if nonlinearity == "tanh":
        return 5.0 / 3.0
    if nonlinearity == "relu":
        return math.sqrt(2.0)
    if nonlinearity == "selu":
        return 0.75
    if nonlinearity == "leaky_relu":
        slope = 0.01 if param is None else param
        return math.sqrt(2.0 / (1.0 + slope**2))
    known = ", ".join([*_LINEAR, "tanh", "relu", "leaky_relu", "selu"])
    raise ArgumentError(f"calculate_gain: nonlinearity must be one of {known}; got {nonlinearity!r}")


def fans(shape: Sequence[int]) -> tuple[int, int]:
    """(fan_in, fan_out) of a weight (out, in, *filter): how many terms each output and input meets."""
    if len(shape) < 2:
        raise ShapeError(
            f"init: a tensor needs at least 2 dimensions to have a fan in and out; got shape {tuple(shape)}"
        )
    taps = math.prod(shape[2:])
    return shape[1] * taps, shape[0] * taps


def xavier_uniform_(tensor: Tensor, gain: float = 1.0, generator: Generator | None = None) -> Tensor:
    """Uniform within ±gain·sqrt(6 / (fan_in + fan_out))."""
    bound = gain * math.sqrt(6.0 / max(1, sum(fans(tensor.shape))))
    return uniform_(tensor, -bound, bound, generator)


def xavier_normal_(tensor: Tensor, gain: float = 1.0, generator: Generator | None = None) -> Tensor:
    """Normal with standard deviation gain·sqrt(2 / (fan_in + fan_out))."""
    return normal_(tensor, 0.0, gain * math.sqrt(2.0 / max(1, sum(fans(tensor.shape)))), generator)


def _kaiming_std(tensor: Tensor, a: float, mode: str, nonlinearity: str) -> float:
    if mode not in ("fan_in", "fan_out"):
        raise ArgumentError(f"kaiming: mode must be 'fan_in' or 'fan_out'; got {mode!r}")
    fan = fans(tensor.shape)[mode == "fan_out"]
    return calculate_gain(nonlinearity, a) / math.sqrt(max(1, fan))


def kaiming_uniform_(
    tensor: Tensor,
    a: float = 0.0,
    mode: Literal["fan_in", "fan_out"] = "fan_in",
    nonlinearity: str = "leaky_relu",
    generator: Generator | None = None,
) -> Tensor:
    """Uniform within ±gain·sqrt(3 / fan), with the gain of ``nonlinearity`` (``a`` its slope)."""
    bound = math.sqrt(3.0) * _kaiming_std(tensor, a, mode, nonlinearity)
    return uniform_(tensor, -bound, bound, generator)


def kaiming_normal_(
    tensor: Tensor,
    a: float = 0.0,
    mode: Literal["fan_in", "fan_out"] = "fan_in",
    nonlinearity: str = "leaky_relu",
    generator: Generator | None = None,
) -> Tensor:
    """Normal with standard deviation gain / sqrt(fan)."""
    return normal_(tensor, 0.0, _kaiming_std(tensor, a, mode, nonlinearity), generator)


def trunc_normal_(
    tensor: Tensor,
    mean: float = 0.0,
    std: float = 1.0,
    a: float = -2.0,
    b: float = 2.0,
    generator: Generator | None = None,
) -> Tensor:
    """Normally distributed values, given that they lie in [a, b].

    Rejection from a uniform proposal, which works for every interval, far tails included.
    """
    if not std > 0 or not a < b:
        raise ArgumentError(f"trunc_normal_: std must be positive and a less than b; got std={std}, a={a}, b={b}")
    stream = _stream(generator)
    low, high = (a - mean) / std, (b - mean) / std
    nearest = min(max(0.0, low), high)  # where the density is greatest
    low, high = max(low, nearest - 9.0), min(high, nearest + 9.0)  # less than 1e-18 lies beyond
    values = np.empty(math.prod(tensor.shape))
    open_places = np.arange(values.size)
    while open_places.size:
        proposal = stream.uniform(low, high, open_places.size)
        kept = stream.uniform(size=open_places.size) < np.exp((nearest**2 - proposal**2) / 2)
        values[open_places[kept]] = proposal[kept]
        open_places = open_places[~kept]
    return _fill("trunc_normal_", tensor, np.clip(mean + std * values, a, b).reshape(tensor.shape))


def orthogonal_(tensor: Tensor, gain: float = 1.0, generator: Generator | None = None) -> Tensor:
    """A random (semi-)orthogonal matrix, times ``gain``; dimensions after the first count as columns."""
    if len(tensor.shape) < 2:
        raise ShapeError(f"orthogonal_: tensor must have at least 2 dimensions; got shape {tuple(tensor.shape)}")
    rows, columns = tensor.shape[0], math.prod(tensor.shape[1:])
    normal = _stream(generator).normal(size=(max(rows, columns), min(rows, columns)))
    q, r = np.linalg.qr(normal)
    q *= np.where(np.diag(r) < 0, -1.0, 1.0)  # makes the distribution uniform (Mezzadri 2007)
    return _fill("orthogonal_", tensor, gain * (q if rows >= columns else q.T).reshape(tensor.shape))
