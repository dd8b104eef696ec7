"""General matrix multiplication with what usually follows it: bias, activation, dropout, an activation's gradient.

Legend::

    M rows of the result    N columns of the result    K length of the sum
    ...  batch dimensions, broadcast against each other

Forward, with op(a) = a or its transpose in the last two dimensions, op(b) likewise::

    y[..., m, n] = dropout(activation( sum_k op(a)[..., m, k] op(b)[..., k, n]  +  bias[n] ))

With K = 0 the sum is 0.  dropout draws what :mod:`..dropout` draws for an array of y's shape.  Backward, with
g = dL/d(the argument of the activation), which is dL/dy through dropout's gradient and the activation's::

    dL/d op(a) = g op(b)^T        dL/d op(b) = op(a)^T g        dL/dbias = sum of g over all but n

which are this operation again: for y = a b they are ``gemm(g, b, transpose_b=True)`` and
``gemm(a, g, transpose_a=True)``, summed over the dimensions that were broadcast.
:func:`linear_backward` gives all three for y = dropout(activation(a bᵀ + bias)) of matrices, in one call.

Where a = dropout(f(z)) is the result of a layer below, dL/dz is wanted next, and a product may end with that::

    y = f'(saved) dropout( g op(b)^T )        with f the activation ``gradient``, saved its result, and its dropout

:func:`linear_layers_backward` goes down a stack of layers this way.  Of relu, saved may be a itself, since what was
dropped has no gradient whatever its slope; of others it is the result before it went through dropout.

float16 and bfloat16 are multiplied exactly, summed in float32, and y is rounded once, after all that follows the sum.
So is each gradient; g, where there is an activation or dropout, is rounded before it is multiplied.

Backends: ``numpy`` (reference.py); ``numba`` (numba_cpu.py); ``cuda`` and ``emulated`` (cuda.py, gemm.cu);
``numba_cuda`` (numba_cuda.py, twins of some versions).
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any, NamedTuple

import numpy as np

from .._contracts import check_out, check_rank, check_shape, common_device, common_float
from .._dispatch import Operation
from .._errors import ArgumentError, ShapeError
from ..activation import KINDS
from ..dropout import checked_key

_operation = Operation(__name__)

#: Kinds of :mod:`..activation` that may follow the product, with their default options.
ACTIVATIONS = ("relu", "gelu", "silu", "sigmoid", "tanh")
#: Those of them whose gradient is a function of the result, which :func:`linear_backward` takes.
BY_OUTPUT = tuple(kind for kind in ACTIVATIONS if KINDS[kind].saves == "output")
#: Those of them, and none, whose gradient is as well a function of what dropout made of the result.
BEHIND_DROPOUT = (None, "relu")


class Layer(NamedTuple):
    """What follows the product and the bias of one layer."""

    activation: str | None = None
    p: float = 0.0
    seed: int = 0


class Geometry(NamedTuple):
    """All sizes of one product, in the letters of the legend."""

    batch: tuple[int, ...]
    M: int
    N: int
    K: int

    @property
    def y_shape(self) -> tuple[int, ...]:
        return *self.batch, self.M, self.N

    @property
    def operations(self) -> int:
        """A multiplication and an addition for each (m, n, k)."""
        return 2 * prod(self.batch) * self.M * self.N * self.K


def geometry(
    a_shape: tuple[int, ...], b_shape: tuple[int, ...], transpose_a: bool = False, transpose_b: bool = False
) -> Geometry:
    """Check the sizes of a product against each other and give them all.

    Raises:
        ShapeError: fewer than two dimensions, different K, or batch dimensions that don't broadcast.
    """
    for name, shape, legend in (
        ("a", a_shape, "K, M" if transpose_a else "M, K"),
        ("b", b_shape, "N, K" if transpose_b else "K, N"),
    ):
        if len(shape) < 2:
            raise ShapeError(f"gemm: {name} must have at least 2 dimensions (..., {legend}); got shape {tuple(shape)}")
    M, K = a_shape[-2:][::-1] if transpose_a else a_shape[-2:]
    K_of_b, N = b_shape[-2:][::-1] if transpose_b else b_shape[-2:]
    if K_of_b != K:
        flags = f"transpose_a={bool(transpose_a)}, transpose_b={bool(transpose_b)}"
        raise ShapeError(
            f"gemm: a and b must have the same K; got K={K} in a of shape {tuple(a_shape)} and K={K_of_b} in b of "
            f"shape {tuple(b_shape)} with {flags}"
        )
    batch, of_b = a_shape[:-2], b_shape[:-2]
    try:
        if batch != of_b:  # the usual case spares the question, which takes longer than a launch
            batch = np.broadcast_shapes(batch, of_b)
    except ValueError:
        raise ShapeError(
            f"gemm: the batch dimensions of a and b must broadcast; got shapes {tuple(a_shape)} and {tuple(b_shape)}"
        ) from None
    return Geometry(batch, M, N, K)


def gemm(
    a: Any,
    b: Any,
    bias: Any = None,
    *,
    transpose_a: bool = False,
    transpose_b: bool = False,
    activation: str | None = None,
    p: float = 0.0,
    seed: int = 0,
    offset: Any = None,
    gradient: str | None = None,
    saved: Any = None,
    out: Any = None,
    version: str | None = None,
) -> Any:
    """The matrix product of ``a`` and ``b``, plus ``bias``, through ``activation``, dropout and a ``gradient``.

    Args:
        a: (..., M, K), or (..., K, M) with ``transpose_a``; float32, float64, float16 or bfloat16, any strides.
        b: (..., K, N), or (..., N, K) with ``transpose_b``; the dtype of ``a``.
        bias: (N,) or None.
        activation: one of :data:`ACTIVATIONS` or None.
        p, seed, offset: of :func:`..dropout.dropout_forward`; with p = 0 nothing is dropped and no offset is needed.
        gradient: one of :data:`BY_OUTPUT` or None; its slope is the last factor.
        saved: (..., M, N), the result of the activation ``gradient``; needed with one alone.
        out: array of the result's shape and dtype to write into.
        version: the version of the kernel to run, by name.

    Returns:
        (..., M, N), the dtype of ``a``.

    Raises:
        ShapeError, DtypeError, DeviceError, ArgumentError, BackendError.
    """
    transpose_a, transpose_b = bool(transpose_a), bool(transpose_b)
    if not gradient:
        saved = None
    if p == 0:
        p, seed, offset = 0.0, 0, None
    arrays, options = (a, b, bias, saved, offset), (transpose_a, transpose_b, activation, p, seed, gradient)
    if out is None and (kernel := _operation.passed("gemm", arrays, *options, version)) is not None:
        return kernel(*arrays, *options, None)
    device = common_device("gemm", a=a, b=b, bias=bias, saved=saved, offset=offset)
    dtype = common_float("gemm", halves=True, a=a, b=b, bias=bias, saved=saved)
    g = geometry(a.shape, b.shape, transpose_a, transpose_b)
    if bias is not None:
        check_shape("gemm", "bias", bias, (g.N,), "N")
    _check_activation("gemm", activation, ACTIVATIONS)
    _check_activation("gemm", gradient, BY_OUTPUT, "gradient")
    if gradient is not None:
        if saved is None:
            raise ArgumentError(f"gemm: gradient={gradient!r} needs saved, the result of that activation; got None")
        check_shape("gemm", "saved", saved, g.y_shape)
    _check_dropout("gemm", p, seed, offset)
    check_out("gemm", out, g.y_shape, dtype, device, *arrays)
    kernel = _operation.passes("gemm", arrays, *options, version, device=device, version=version)
    return kernel(*arrays, *options, out)


def linear_backward(
    grad: Any,
    a: Any,
    b: Any,
    y: Any = None,
    offset: Any = None,
    *,
    activation: str | None = None,
    p: float = 0.0,
    seed: int = 0,
    wanted: tuple[bool, bool, bool] = (True, True, True),
) -> tuple[Any, Any, Any]:
    """The gradients of y = dropout(activation(a bᵀ + bias)).

    With h = dL/dy through dropout's gradient and the activation's: dL/da = h b, dL/db = hᵀ a, dL/dbias = Σₘ h[m].

    Args:
        grad: dL/dy, (M, N).
        a: (M, K).
        b: (N, K).
        y: (M, N), the result of the activation, for relu also what dropout made of it; needed with one alone.
        activation: one of :data:`BY_OUTPUT` or None.
        p, seed, offset: dropout's, as in the forward pass.
        wanted: which of the three gradients.

    Returns:
        dL/da (M, K), dL/db (N, K), dL/dbias (N,); None for what is not wanted.

    Raises:
        ShapeError, DtypeError, DeviceError, ArgumentError, BackendError.
    """
    y = None if activation is None else y
    if p == 0:
        p, seed, offset = 0.0, 0, None
    wanted = tuple(map(bool, wanted))  # type: ignore[assignment]
    arrays, layer = (grad, a, b, y, offset), Layer(activation, p, seed)
    if (kernel := _operation.passed("linear_backward", arrays, layer, wanted)) is not None:
        return kernel(*arrays, layer, wanted)
    _check_activation("linear_backward", activation, BY_OUTPUT)
    if activation is not None and y is None:
        raise ArgumentError(f"linear_backward: activation={activation!r} needs the result y; got None")
    if len(wanted) != 3:
        raise ArgumentError(f"linear_backward: wanted must be three booleans; got {wanted!r}")
    device = common_device("linear_backward", grad=grad, a=a, b=b, y=y, offset=offset)
    common_float("linear_backward", halves=True, grad=grad, a=a, b=b, y=y)
    check_rank("linear_backward", "a", a, "M K")
    check_rank("linear_backward", "b", b, "N K")
    check_shape("linear_backward", "b", b, (b.shape[0], a.shape[1]), "N K")
    for name, array in (("grad", grad), ("y", y)):
        if array is not None:
            check_shape("linear_backward", name, array, (a.shape[0], b.shape[0]), "M N")
    _check_dropout("linear_backward", p, seed, offset)
    kernel = _operation.passes("linear_backward", arrays, layer, wanted, device=device)
    return kernel(*arrays, layer, wanted)


def linear_layers_backward(
    grad: Any,
    inputs: Sequence[Any],
    weights: Sequence[Any],
    y: Any = None,
    offsets: Sequence[Any] = (),
    *,
    layers: Sequence[Layer],
    wanted: Sequence[bool] | None = None,
) -> tuple[Any, ...]:
    """The gradients of linear layers one above the other: of each, x' = dropout(activation(x wᵀ + bias)).

    The same as :func:`linear_backward` of one layer after the other, from the last to the first, on backends that
    have nothing better; on a GPU the gradient of what lies between two layers is never written.

    Args:
        grad: dL/d(the result of the last layer), (M, N of the last layer).
        inputs: of each layer its input x, (M, K); behind the first they are the results of the layers before.
        weights: of each layer w, (N, K); K is the N of the layer before.
        y: the result of the last layer; needed if that has an activation.
        offsets: of each layer dropout's offset, or None; may be empty if nothing is dropped.
        layers: what follows each product.  With dropout the activation must be one of :data:`BEHIND_DROPOUT`.
        wanted: which gradients: that of the first input, those of the weights, those of the biases.  All by default.

    Returns:
        The gradients in the order of ``wanted``, None for what is not wanted.

    Raises:
        ShapeError, DtypeError, DeviceError, ArgumentError, BackendError.
    """
    name = "linear_layers_backward"
    layers = tuple(layer if layer[1] else Layer(layer[0]) for layer in layers)
    count = len(layers)
    wanted = (True,) * (1 + 2 * count) if wanted is None else tuple(map(bool, wanted))
    offsets = [o if layer.p else None for o, layer in zip(offsets or (None,) * count, layers, strict=False)]
    arrays = grad, y if count and layers[-1].activation else None, *inputs, *weights, *offsets
    if (kernel := _operation.passed(name, arrays, layers, wanted)) is not None:
        return kernel(*arrays[:2], layers, wanted, *arrays[2:])
    if not len(inputs) == len(weights) == len(offsets) == count > 0 or len(wanted) != 1 + 2 * count:
        raise ArgumentError(
            f"{name}: there must be as many inputs, weights, offsets and layers, at least one, and 1 + 2 times as many "
            f"booleans in wanted; got {len(inputs)}, {len(weights)}, {len(offsets)}, {count} and {len(wanted)}"
        )
    numbers: dict[str, Any] = {"grad": grad, "y": arrays[1]}
    numbers |= {f"inputs[{i}]": x for i, x in enumerate(inputs)} | {f"weights[{i}]": w for i, w in enumerate(weights)}
    device = common_device(name, **numbers, **{f"offsets[{i}]": o for i, o in enumerate(offsets)})
    common_float(name, halves=True, **numbers)
    check_rank(name, "inputs[0]", inputs[0], "M K")
    M, N = inputs[0].shape
    for i, (x, w, layer, offset) in enumerate(zip(inputs, weights, layers, offsets, strict=True)):
        _check_activation(name, layer.activation, BY_OUTPUT)
        _check_dropout(name, layer.p, layer.seed, offset)
        if layer.p and layer.activation not in BEHIND_DROPOUT:
            raise ArgumentError(
                f"{name}: the gradient of {layer.activation} needs its result before dropout; layer {i}"
            )
        check_shape(name, f"inputs[{i}]", x, (M, N), "M K")
        check_rank(name, f"weights[{i}]", w, "N K")
        check_shape(name, f"weights[{i}]", w, (w.shape[0], N), "N K")
        N = w.shape[0]
    if layers[-1].activation is not None and y is None:
        raise ArgumentError(
            f"{name}: activation={layers[-1].activation!r} of the last layer needs its result y; got None"
        )
    for argument in ("grad", "y"):
        if numbers[argument] is not None:
            check_shape(name, argument, numbers[argument], (M, N), "M N")
    kernel = _operation.passes(name, arrays, layers, wanted, device=device)
    return kernel(*arrays[:2], layers, wanted, *arrays[2:])


def operations(function: str, arguments: tuple[Any, ...]) -> int:
    """Operations of the products in a call of ``function``, whose ``arguments`` are as backends get them."""
    if function == "gemm":
        a, b, _, _, _, transpose_a, transpose_b, *_ = arguments
        return geometry(a.shape, b.shape, transpose_a, transpose_b).operations
    if function == "linear_backward":
        _, a, b, _, _, _, wanted = arguments
        return sum(wanted[:2]) * Geometry((), len(a), len(b), a.shape[1]).operations
    from ._layers import stack

    _, _, layers, wanted, *arrays = arguments
    s, total = stack(layers, wanted, tuple(arrays)), 0
    for i in range(s.last, len(layers)):
        through = i > s.last or wanted[0]  # dL/d(input), for the layer below or wanted itself
        product = Geometry((), len(s.inputs[i]), len(s.weights[i]), s.inputs[i].shape[1])
        total += (through + s.of_weights[i]) * product.operations
    return total


def _check_activation(function: str, activation: Any, known: tuple[str, ...], argument: str = "activation") -> None:
    if activation is not None and activation not in known:
        raise ArgumentError(f"{function}: {argument} must be one of {', '.join(known)} or None; got {activation!r}")


def _check_dropout(function: str, p: Any, seed: Any, offset: Any) -> None:
    if not p:
        return
    if not 0 <= p <= 1:
        raise ArgumentError(f"{function}: p must be a probability in [0, 1]; got {p!r}")
    if offset is None:
        raise ArgumentError(f"{function}: p={p!r} needs dropout's offset; got None")
    checked_key(function, seed, offset)
