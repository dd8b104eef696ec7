"""Sums, extrema and what is made of them, along any dimensions."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ...kernels import _graph
from ...kernels._dtypes import kind_of, wide
from ...kernels._errors import ArgumentError, DtypeError, ShapeError
from ..function import Function
from ..tensor import Tensor
from ._operands import axes, axis, in_float32, quiet
from .elementwise import where
from .shape import expand, reshape


def _kept(shape: tuple[int, ...], dims: tuple[int, ...]) -> tuple[int, ...]:
    """``shape`` with the reduced dimensions as 1."""
    return tuple(1 if d in dims else size for d, size in enumerate(shape))


def _require_float(operation: str, x: Tensor) -> None:
    if kind_of(x.dtype) != "f":
        raise DtypeError(f"{operation}: takes floating tensors; got {x.dtype}; use .float() first")


def _require_elements(operation: str, x: Tensor, dims: tuple[int, ...]) -> None:
    if math.prod(x.shape[d] for d in dims) == 0:
        raise ShapeError(f"{operation}: nothing to reduce over in shape {tuple(x.shape)}")


class Sum(Function):
    """The sum over some dimensions"""

    @staticmethod
    @quiet
    def forward(ctx: Any, x: Tensor, dims: tuple[int, ...], keepdim: bool) -> Any:
        ctx.shape, ctx.kept = x.shape, _kept(x.shape, dims)
        dtype = np.int64 if x.dtype.kind in "biu" else None
        return x.array.sum(axis=dims, keepdims=keepdim, dtype=dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return expand(reshape(grad, ctx.kept), ctx.shape), None, None


@in_float32
def sum(x: Tensor, dim: Any = None, keepdim: bool = False) -> Tensor:
    """The sum over ``dim`` (all dimensions by default); integers and booleans add up as int64."""
    return Sum.apply(x, axes("sum", dim, x.ndim), keepdim)


@in_float32
def mean(x: Tensor, dim: Any = None, keepdim: bool = False) -> Tensor:
    """The arithmetic mean over ``dim``; NaN over nothing."""
    _require_float("mean", x)
    count = math.prod(x.shape[d] for d in axes("mean", dim, x.ndim))
    return sum(x, dim, keepdim) / (count if count else math.nan)


@in_float32
def var(x: Tensor, dim: Any = None, correction: float = 1, keepdim: bool = False) -> Tensor:
    """The mean squared distance from the mean, over (count - ``correction``)."""
    _require_float("var", x)
    count = math.prod(x.shape[d] for d in axes("var", dim, x.ndim)) - correction
    centred = x - mean(x, dim, keepdim=True)
    return sum(centred * centred, dim, keepdim) / (count if count > 0 else 0.0)


@in_float32
def std(x: Tensor, dim: Any = None, correction: float = 1, keepdim: bool = False) -> Tensor:
    """The square root of :func:`var`; where all elements are equal its gradient is 0, as in torch."""
    variance = var(x, dim, correction, keepdim)
    is_zero = variance == 0
    return where(is_zero, 0.0, where(is_zero, 1.0, variance).sqrt())


class Prod(Function):
    """The product over some dimensions; gradient: the product of all the others, zeros included"""

    @staticmethod
    @quiet
    def forward(ctx: Any, x: Tensor, dims: tuple[int, ...], keepdim: bool) -> Any:
        ctx.dims = dims
        ctx.save_for_backward(x)
        dtype = np.int64 if x.dtype.kind in "biu" else None
        return x.array.prod(axis=dims, keepdims=keepdim, dtype=dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        (x,) = ctx.saved_tensors
        is_zero = x == 0
        zeros = is_zero.sum(ctx.dims, keepdim=True)
        nonzero = where(is_zero, 1.0, x)
        # Without a zero the product of the others is product / x; with one it is not zero there alone.
        others = nonzero.prod(ctx.dims, keepdim=True) / nonzero
        slope = where((zeros == 0) | (is_zero & (zeros == 1)), others, 0.0)
        return reshape(grad, _kept(x.shape, ctx.dims)) * slope, None, None


@in_float32
def prod(x: Tensor, dim: Any = None, keepdim: bool = False) -> Tensor:
    """The product over ``dim`` (all dimensions by default)."""
    return Prod.apply(x, axes("prod", dim, x.ndim), keepdim)


class Extremum(Function):
    """The largest or smallest element; equal ones share the gradient evenly"""

    @staticmethod
    @quiet
    def forward(ctx: Any, x: Tensor, kind: str, dims: tuple[int, ...], keepdim: bool) -> Any:
        ctx.dims = dims
        y = x.array_module.asarray(getattr(x.array, kind)(axis=dims, keepdims=keepdim))
        ctx.save_for_backward(x, y)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        x, y = ctx.saved_tensors
        kept = _kept(x.shape, ctx.dims)
        chosen = (x.detach() == y.detach().reshape(kept)).to(dtype=x.dtype)
        share = chosen / chosen.sum(ctx.dims, keepdim=True)
        return share * reshape(grad, kept), None, None, None


@in_float32
def extremum(x: Tensor, kind: str, dim: Any = None, keepdim: bool = False) -> Tensor:
    """``kind`` ("max", "min") over ``dim``; NaN wins."""
    dims = axes(f"a{kind}", dim, x.ndim)
    _require_elements(f"a{kind}", x, dims)
    return Extremum.apply(x, kind, dims, keepdim)


def arg(name: str, x: Tensor, dim: Any = None, keepdim: bool = False) -> Tensor:
    """``argmax`` or ``argmin``: the position of the first extremum, as int64; in the flat tensor without ``dim``."""
    if _graph.under_way:
        _graph.observe((x,))
    array = x.array.astype(wide(x.dtype), copy=False)
    if dim is None:
        _require_elements(name, x, tuple(range(x.ndim)))
        position = x.array_module.asarray(getattr(array, name)())
        return Tensor(position.reshape((1,) * x.ndim) if keepdim else position)
    where_ = axis(name, dim, x.ndim)
    if x.ndim == 0:
        return Tensor(x.array_module.zeros((), np.int64))
    _require_elements(name, x, (where_,))
    return Tensor(x.array_module.asarray(getattr(array, name)(axis=where_, keepdims=keepdim)))


def logical(name: str, x: Tensor, dim: Any = None, keepdim: bool = False) -> Tensor:
    """``all`` or ``any`` over ``dim``."""
    if _graph.under_way:
        _graph.observe((x,))
    return Tensor(x.array_module.asarray(getattr(x.array, name)(axis=axes(name, dim, x.ndim), keepdims=keepdim)))


@in_float32
def logsumexp(x: Tensor, dim: Any, keepdim: bool = False) -> Tensor:
    """m + log(sum(exp(x - m))) with m the largest element, so that nothing overflows."""
    _require_float("logsumexp", x)
    dims = axes("logsumexp", dim, x.ndim)
    _require_elements("logsumexp", x, dims)
    largest = x.detach().amax(dims, keepdim=True)
    largest = where(largest.isfinite(), largest, 0.0)
    result = (x - largest).exp().sum(dims, keepdim=True).log() + largest
    return result if keepdim else reshape(result, tuple(s for d, s in enumerate(x.shape) if d not in dims))


class CumSum(Function):
    """Running sums along a dimension; the gradient's running sums from the other end"""

    @staticmethod
    @quiet
    def forward(ctx: Any, x: Tensor, dim: int) -> Any:
        ctx.dim = dim
        dtype = np.int64 if x.dtype.kind in "biu" else None
        return x.array_module.cumsum(x.array, axis=dim if x.ndim else None, dtype=dtype).reshape(x.shape)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        if grad.ndim == 0:
            return grad, None
        return cumsum(grad.flip(ctx.dim), ctx.dim).flip(ctx.dim), None


@in_float32
def cumsum(x: Tensor, dim: int) -> Tensor:
    """Running sums along ``dim``."""
    return CumSum.apply(x, axis("cumsum", dim, x.ndim))


class _Norm2(Function):
    """√(Σ x²); the gradient at 0 is 0"""

    @staticmethod
    @quiet
    def forward(ctx: Any, x: Tensor, dims: tuple[int, ...]) -> Any:
        ctx.dims = dims
        y = x.array_module.sqrt(x.array_module.square(x.array).sum(axis=dims, keepdims=True))
        ctx.save_for_backward(x, y)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        x, y = ctx.saved_tensors
        return x * (grad / where(y == 0, 1.0, y)), None


def _root(x: Tensor, p: float) -> Tensor:
    """x^p of elements that are not negative, with the gradient 0 at 0, whatever p > 0."""
    if p < 0:
        return x**p
    is_zero = x == 0
    return where(is_zero, 0.0, where(is_zero, 1.0, x) ** p)


@in_float32
def norm(x: Tensor, p: float = 2, dim: Any = None, keepdim: bool = False) -> Tensor:
    """The vector p-norm over ``dim``; ``inf`` and ``-inf`` give the largest and smallest |x|, 0 counts nonzeros."""
    _require_float("norm", x)
    dims = axes("norm", dim, x.ndim)
    if isinstance(p, bool) or not isinstance(p, int | float):
        raise ArgumentError(f"norm: p must be a number; got {p!r}")
    if p == 2:
        result: Tensor = _Norm2.apply(x, dims)
    elif p == math.inf:
        result = x.abs().amax(dims, keepdim=True)
    elif p == -math.inf:
        result = x.abs().amin(dims, keepdim=True)
    elif p == 0:
        result = (x != 0).to(dtype=x.dtype).sum(dims, keepdim=True)
    elif p == 1:
        result = x.abs().sum(dims, keepdim=True)
    else:
        result = _root((_root(x.abs(), p)).sum(dims, keepdim=True), 1 / p)
    return result if keepdim else reshape(result, tuple(s for d, s in enumerate(x.shape) if d not in dims))
