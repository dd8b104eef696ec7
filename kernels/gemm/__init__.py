"""General matrix multiplication with what usually follows it: bias and activation.

Legend::

    M rows of the result    N columns of the result    K length of the sum
    ...  batch dimensions, broadcast against each other

Forward, with op(a) = a or its transpose in the last two dimensions, op(b) likewise::

    y[..., m, n] = activation( sum_k op(a)[..., m, k] op(b)[..., k, n]  +  bias[n] )

With K = 0 the sum is 0.  Backward, with g = dL/d(the argument of the activation)::

    dL/d op(a) = g op(b)^T        dL/d op(b) = op(a)^T g        dL/dbias = sum of g over all but n

which are this operation again: for y = a b they are ``gemm(g, b, transpose_b=True)`` and
``gemm(a, g, transpose_a=True)``, summed over the dimensions that were broadcast.
:func:`linear_backward` gives all three for y = activation(a bᵀ + bias) of matrices, in one call.

float16 and bfloat16 are multiplied exactly, summed in float32, and y is rounded once, after the activation.  So is each
gradient; g, where there is an activation, is rounded before it is multiplied.

Backends: ``numpy`` (reference.py); ``numba`` (numba_cpu.py); ``cuda`` and ``emulated`` (cuda.py, gemm.cu);
``numba_cuda`` (numba_cuda.py, twins of some versions).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from .._contracts import check_out, check_rank, check_shape, common_device, common_float
from .._dispatch import Operation
from .._errors import ArgumentError, ShapeError
from ..activation import KINDS

_operation = Operation(__name__)

#: Kinds of :mod:`..activation` that may follow the product, with their default options.
ACTIVATIONS = ("relu", "gelu", "silu", "sigmoid", "tanh")
#: Those of them whose gradient is a function of the result, which :func:`linear_backward` takes.
BY_OUTPUT = tuple(kind for kind in ACTIVATIONS if KINDS[kind].saves == "output")


class Geometry(NamedTuple):
    """All sizes of one product, in the letters of the legend."""

    batch: tuple[int, ...]
    M: int
    N: int
    K: int

    @property
    def y_shape(self) -> tuple[int, ...]:
        return *self.batch, self.M, self.N


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
    out: Any = None,
    version: str | None = None,
) -> Any:
    """The matrix product of ``a`` and ``b``, plus ``bias``, through ``activation``.

    Args:
        a: (..., M, K), or (..., K, M) with ``transpose_a``; float32, float64, float16 or bfloat16, any strides.
        b: (..., K, N), or (..., N, K) with ``transpose_b``; the dtype of ``a``.
        bias: (N,) or None.
        activation: one of :data:`ACTIVATIONS` or None.
        out: array of the result's shape and dtype to write into.
        version: the version of the kernel to run, by name.

    Returns:
        (..., M, N), the dtype of ``a``.

    Raises:
        ShapeError, DtypeError, DeviceError, ArgumentError, BackendError.
    """
    transpose_a, transpose_b = bool(transpose_a), bool(transpose_b)
    arrays, options = (a, b, bias), (transpose_a, transpose_b, activation, version)
    if out is None and (kernel := _operation.passed("gemm", arrays, *options)) is not None:
        return kernel(a, b, bias, transpose_a, transpose_b, activation, None)
    device = common_device("gemm", a=a, b=b, bias=bias)
    dtype = common_float("gemm", halves=True, a=a, b=b, bias=bias)
    g = geometry(a.shape, b.shape, transpose_a, transpose_b)
    if bias is not None:
        check_shape("gemm", "bias", bias, (g.N,), "N")
    _check_activation("gemm", activation, ACTIVATIONS)
    check_out("gemm", out, g.y_shape, dtype, device, a, b, bias)
    kernel = _operation.passes("gemm", arrays, *options, device=device, version=version)
    return kernel(a, b, bias, transpose_a, transpose_b, activation, out)


def linear_backward(
    grad: Any,
    a: Any,
    b: Any,
    y: Any = None,
    *,
    activation: str | None = None,
    wanted: tuple[bool, bool, bool] = (True, True, True),
) -> tuple[Any, Any, Any]:
    """The gradients of y = activation(a bᵀ + bias).

    With h = dL/dy times the slope of the activation: dL/da = h b, dL/db = hᵀ a, dL/dbias = Σₘ h[m].

    Args:
        grad: dL/dy, (M, N).
        a: (M, K).
        b: (N, K).
        y: (M, N), the result; needed with an activation alone.
        activation: one of :data:`BY_OUTPUT` or None.
        wanted: which of the three gradients.

    Returns:
        dL/da (M, K), dL/db (N, K), dL/dbias (N,); None for what is not wanted.

    Raises:
        ShapeError, DtypeError, DeviceError, ArgumentError, BackendError.
    """
    y = None if activation is None else y
    wanted = tuple(map(bool, wanted))  # type: ignore[assignment]
    arrays = grad, a, b, y
    if (kernel := _operation.passed("linear_backward", arrays, activation, wanted)) is not None:
        return kernel(*arrays, activation, wanted)
    _check_activation("linear_backward", activation, BY_OUTPUT)
    if activation is not None and y is None:
        raise ArgumentError(f"linear_backward: activation={activation!r} needs the result y; got None")
    if len(wanted) != 3:
        raise ArgumentError(f"linear_backward: wanted must be three booleans; got {wanted!r}")
    device = common_device("linear_backward", grad=grad, a=a, b=b, y=y)
    common_float("linear_backward", halves=True, grad=grad, a=a, b=b, y=y)
    check_rank("linear_backward", "a", a, "M K")
    check_rank("linear_backward", "b", b, "N K")
    check_shape("linear_backward", "b", b, (b.shape[0], a.shape[1]), "N K")
    for name, array in (("grad", grad), ("y", y)):
        if array is not None:
            check_shape("linear_backward", name, array, (a.shape[0], b.shape[0]), "M N")
    kernel = _operation.passes("linear_backward", arrays, activation, wanted, device=device)
    return kernel(*arrays, activation, wanted)


def _check_activation(function: str, activation: Any, known: tuple[str, ...]) -> None:
    if activation is not None and activation not in known:
        raise ArgumentError(f"{function}: activation must be one of {', '.join(known)} or None; got {activation!r}")
