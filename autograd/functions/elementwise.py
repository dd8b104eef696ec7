"""Elementwise arithmetic, on the array module's own functions.

Each class gives one result per element and its derivative; broadcasting and promotion are dealt
with once, in :func:`binary` and :func:`unary`.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import numpy as np

from ...kernels import _graph
from ...kernels._devices import device_named, device_of
from ...kernels._dtypes import is_half, kind_of
from ...kernels._errors import ArgumentError, DtypeError
from ..function import Function
from ..tensor import DEFAULT_FLOAT, Tensor
from ._operands import as_operand, broadcast_shape, promote, quiet, raw, same_device, scalar_dtype, sum_to


def binary(function: type[Function], a: Any, b: Any, *, floating: bool = False) -> Any:
    """Apply a two-argument Function after promotion; one of ``a``, ``b`` is a tensor.

    Args:
        floating: integers become float32 first (division).

    Returns:
        A tensor, or NotImplemented for operands that are no numbers.
    """
    name = function.__name__.lower()
    if not (isinstance(a, Tensor) and isinstance(b, Tensor)):
        tensor = a if isinstance(a, Tensor) else b
        a, b = as_operand(name, a, tensor), as_operand(name, b, tensor)
        if a is None or b is None:
            return NotImplemented
    return function.apply(*prepare(name, a, b, floating))


def prepare(name: str, a: Any, b: Any, floating: bool = False) -> tuple[Any, Any]:
    """Both operands in one dtype and on one device, fit to broadcast; a scalar stays a Python scalar."""
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        a, b = unify(name, a, b)
        if a.array.shape != b.array.shape:
            broadcast_shape(name, a.array.shape, b.array.shape)
    elif isinstance(a, Tensor):
        a = _cast(a, scalar_dtype(a, b))
    else:
        b = _cast(b, scalar_dtype(b, a))
    if floating:
        a, b = _floating(a), _floating(b)
    return a, b


def _cast(x: Tensor, dtype: np.dtype) -> Tensor:
    return x if x.array.dtype == dtype else x.to(dtype=dtype)


def _floating(x: Any) -> Any:
    return x.to(dtype=DEFAULT_FLOAT) if isinstance(x, Tensor) and kind_of(x.array.dtype) != "f" else x


def unify(name: str, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Both tensors in one dtype; :class:`DeviceError` if they are on different devices."""
    if type(a.array) is not type(b.array):
        same_device(name, a, b)
    if a.array.dtype != b.array.dtype:
        dtype = promote(a, b)
        a, b = _cast(a, dtype), _cast(b, dtype)
    return a, b


def unary(function: type[Function], x: Tensor, *, floating: bool = False) -> Tensor:
    """Apply a one-argument Function; ``floating`` makes integers float32 first."""
    return function.apply(_floating(x) if floating else x)


@quiet
def without_gradient(name: str, *operands: Any) -> Any:
    """The array module's function ``name`` (a comparison, a logical or bitwise operation)."""
    tensor = operands[0]
    operands = tuple(as_operand(name, operand, tensor) for operand in operands)
    if any(operand is None for operand in operands):
        return NotImplemented
    if len(operands) == 2:
        operands = prepare(name, *operands)
    xp = tensor.array_module
    try:
        result = Tensor(xp.asarray(getattr(xp, name)(*map(raw, operands))))
        if name == "floor_divide" and is_half(tensor.dtype):  # beside a scalar NumPy gives float32
            result = result.to(dtype=next(x.dtype for x in operands if isinstance(x, Tensor)))
        if _graph.under_way:
            _graph.observe(operands, (result,))
        return result
    except TypeError as error:
        raise DtypeError(f"{name}: {error}") from None


def _shapes(ctx: Any, a: Any, b: Any) -> tuple[Any, Any]:
    """Keep the shapes for :func:`_back` (None for a scalar), and give the arrays."""
    shape_a = shape_b = None
    if isinstance(a, Tensor):
        a = a.array
        shape_a = a.shape
    if isinstance(b, Tensor):
        b = b.array
        shape_b = b.shape
    ctx.shapes = shape_a, shape_b
    return a, b


def _value(function: Callable[[Any, Any], Any], ctx: Any, a: Any, b: Any) -> Any:
    """``function`` of the arrays, with a Python scalar as it is: beside halves NumPy would round it, or widen them."""
    a, b = _shapes(ctx, a, b)
    shape_a, shape_b = ctx.shapes
    if shape_a is None and is_half(b.dtype):
        return function(np.float32(a), b).astype(b.dtype)
    if shape_b is None and is_half(a.dtype):
        return function(a, np.float32(b)).astype(a.dtype)
    return function(a, b)


def _back(ctx: Any, index: int, gradient: Tensor) -> Tensor:
    return sum_to(gradient, ctx.shapes[index])


class Add(Function):
    """a + b"""

    @staticmethod
    @quiet
    def forward(ctx: Any, a: Any, b: Any) -> Any:
        return _value(operator.add, ctx, a, b)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        wanted = ctx.needs_input_grad
        return _back(ctx, 0, grad) if wanted[0] else None, _back(ctx, 1, grad) if wanted[1] else None


class Sub(Function):
    """a - b"""

    @staticmethod
    @quiet
    def forward(ctx: Any, a: Any, b: Any) -> Any:
        if getattr(a, "dtype", None) == np.bool_ or getattr(b, "dtype", None) == np.bool_:
            raise DtypeError("sub: booleans cannot be subtracted; use ^ or ~")
        return _value(operator.sub, ctx, a, b)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        wanted = ctx.needs_input_grad
        return _back(ctx, 0, grad) if wanted[0] else None, _back(ctx, 1, -grad) if wanted[1] else None


class Mul(Function):
    """a · b"""

    @staticmethod
    @quiet
    def forward(ctx: Any, a: Any, b: Any) -> Any:
        wanted = ctx.needs_input_grad
        _keep_others(ctx, a if wanted[1] else None, b if wanted[0] else None)
        return _value(operator.mul, ctx, a, b)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        a, b = _others(ctx)
        wanted = ctx.needs_input_grad
        return _back(ctx, 0, grad * b) if wanted[0] else None, _back(ctx, 1, grad * a) if wanted[1] else None


def _keep_others(ctx: Any, *operands: Any) -> None:
    """Save the operands that are tensors for the backward pass, and keep the scalars."""
    ctx.scalars = [None if isinstance(x, Tensor) else x for x in operands]
    ctx.save_for_backward(*[x if isinstance(x, Tensor) else None for x in operands])


def _others(ctx: Any) -> list[Any]:
    pairs = zip(ctx.saved_tensors, ctx.scalars, strict=True)
    return [scalar if tensor is None else tensor for tensor, scalar in pairs]


class Div(Function):
    """a / b; d/da = 1/b, d/db = -a/b²"""

    @staticmethod
    @quiet
    def forward(ctx: Any, a: Any, b: Any) -> Any:
        _keep_others(ctx, a if ctx.needs_input_grad[1] else None, b)
        return _value(operator.truediv, ctx, a, b)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        a, b = _others(ctx)
        by_b = grad / b
        wanted = ctx.needs_input_grad
        return _back(ctx, 0, by_b) if wanted[0] else None, _back(ctx, 1, -(by_b * (a / b))) if wanted[1] else None


class Remainder(Function):
    """a - b·floor(a/b), with the sign of b; b is taken as constant"""

    @staticmethod
    @quiet
    def forward(ctx: Any, a: Any, b: Any) -> Any:
        if ctx.needs_input_grad[1]:
            raise ArgumentError("remainder: the divisor cannot require gradients; use detach()")
        return _value(operator.mod, ctx, a, b)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return _back(ctx, 0, grad), None


def power(base: Any, exponent: Any) -> Any:
    """``base ** exponent``; an integer raised to a negative integer is refused, as in torch."""
    if isinstance(exponent, int) and not isinstance(exponent, bool) and exponent < 0 and base.dtype.kind in "iu":
        raise ArgumentError("pow: integers cannot be raised to negative powers; make the base a float first")
    return binary(Pow, base, exponent)


class Pow(Function):
    """a^b; d/da = b a^(b-1), d/db = a^b ln a (0 where a = 0 and b >= 0)"""

    @staticmethod
    @quiet
    def forward(ctx: Any, a: Any, b: Any) -> Any:
        _keep_others(ctx, a, b)
        return _value(operator.pow, ctx, a, b)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        a, b = _others(ctx)
        grad_a = grad_b = None
        if ctx.needs_input_grad[0]:
            if isinstance(b, Tensor):
                slope = where(b == 0, 0.0, b * a ** (b - 1))
            else:
                slope = a * 0.0 if b == 0 else b * a ** (b - 1)
            grad_a = _back(ctx, 0, grad * slope)
        if ctx.needs_input_grad[1]:
            base = a if isinstance(a, Tensor) else Tensor(b.array_module.full((), a, b.dtype))
            no_slope = (base == 0) & (b >= 0)
            slope = where(no_slope, 0.0, a**b * where(no_slope, 1.0, base).log())
            grad_b = _back(ctx, 1, grad * slope)
        return grad_a, grad_b


class Maximum(Function):
    """The larger one, NaN if either is; equal elements get half the gradient each, as in torch (all of it at NaN)"""

    NAME = "maximum"

    @classmethod
    @quiet
    def forward(cls, ctx: Any, a: Any, b: Any) -> Any:
        _keep_others(ctx, a, b)
        xp = (a if isinstance(a, Tensor) else b).array_module
        return _value(getattr(xp, cls.NAME), ctx, a, b)

    @classmethod
    def backward(cls, ctx: Any, grad: Tensor) -> Any:
        a, b = _others(ctx)
        a_loses, b_loses = (a < b, a > b) if cls.NAME == "maximum" else (a > b, a < b)
        grad = where(a == b, grad * 0.5, grad)
        wanted = ctx.needs_input_grad
        return (
            _back(ctx, 0, where(a_loses, 0.0, grad)) if wanted[0] else None,
            _back(ctx, 1, where(b_loses, 0.0, grad)) if wanted[1] else None,
        )


class Minimum(Maximum):
    """The smaller one, NaN if either is; equal elements get half the gradient each"""

    NAME = "minimum"


class _Unary(Function):
    """Base of the functions of one argument: saves the argument."""

    @classmethod
    @quiet
    def forward(cls, ctx: Any, x: Tensor) -> Any:
        ctx.save_for_backward(x)
        return cls.value(x.array_module, x.array)

    @classmethod
    def backward(cls, ctx: Any, grad: Tensor) -> Any:
        return cls.gradient(grad, *ctx.saved_tensors)

    @staticmethod
    def value(xp: Any, x: Any) -> Any:
        raise AssertionError

    @staticmethod
    def gradient(grad: Tensor, x: Tensor) -> Tensor | None:
        raise AssertionError


class _UnaryByOutput(_Unary):
    """Base of the functions whose gradient needs the result instead."""

    @classmethod
    @quiet
    def forward(cls, ctx: Any, x: Tensor) -> Any:
        y = x.array_module.asarray(cls.value(x.array_module, x.array))
        ctx.save_for_backward(y)
        return y


class Neg(Function):
    """-x"""

    @staticmethod
    @quiet
    def forward(ctx: Any, x: Tensor) -> Any:
        if x.dtype == np.bool_:
            raise DtypeError("neg: booleans cannot be negated; use ~")
        return -x.array

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return -grad


class Exp(_UnaryByOutput):
    """e^x"""

    @staticmethod
    def value(xp: Any, x: Any) -> Any:
        return xp.exp(x)

    @staticmethod
    def gradient(grad: Tensor, y: Tensor) -> Tensor:
        return grad * y


class Log(_Unary):
    """ln x"""

    @staticmethod
    def value(xp: Any, x: Any) -> Any:
        return xp.log(x)

    @staticmethod
    def gradient(grad: Tensor, x: Tensor) -> Tensor:
        return grad / x


class Log1p(_Unary):
    """ln(1 + x)"""

    @staticmethod
    def value(xp: Any, x: Any) -> Any:
        return xp.log1p(x)

    @staticmethod
    def gradient(grad: Tensor, x: Tensor) -> Tensor:
        return grad / (1 + x)


class Sqrt(_UnaryByOutput):
    """√x"""

    @staticmethod
    def value(xp: Any, x: Any) -> Any:
        return xp.sqrt(x)

    @staticmethod
    def gradient(grad: Tensor, y: Tensor) -> Tensor:
        return grad / (2 * y)


class Abs(_Unary):
    """|x|; the gradient at 0 is 0"""

    @staticmethod
    def value(xp: Any, x: Any) -> Any:
        return xp.abs(x)

    @staticmethod
    def gradient(grad: Tensor, x: Tensor) -> Tensor:
        return grad * x.sign()


class Sin(_Unary):
    """sin x"""

    @staticmethod
    def value(xp: Any, x: Any) -> Any:
        return xp.sin(x)

    @staticmethod
    def gradient(grad: Tensor, x: Tensor) -> Tensor:
        return grad * x.cos()


class Cos(_Unary):
    """cos x"""

    @staticmethod
    def value(xp: Any, x: Any) -> Any:
        return xp.cos(x)

    @staticmethod
    def gradient(grad: Tensor, x: Tensor) -> Tensor:
        return -(grad * x.sin())


class _Step(_Unary):
    """Base of the piecewise constant functions: their gradient is 0."""

    @staticmethod
    def gradient(grad: Tensor, x: Tensor) -> Tensor:
        return grad * 0


class Sign(_Step):
    """-1, 0 or 1"""

    @staticmethod
    def value(xp: Any, x: Any) -> Any:
        return xp.sign(x)


class Floor(_Step):
    """The next integer below"""

    @staticmethod
    def value(xp: Any, x: Any) -> Any:
        return xp.floor(x)


class Ceil(_Step):
    """The next integer above"""

    @staticmethod
    def value(xp: Any, x: Any) -> Any:
        return xp.ceil(x)


class Round(_Step):
    """The nearest integer, the even one of two"""

    @staticmethod
    def value(xp: Any, x: Any) -> Any:
        return xp.round(x)


def clamp(x: Tensor, low: Any, high: Any) -> Tensor:
    """Each element of ``x``, moved into [low, high]; the gradient passes where nothing moved."""
    if low is None and high is None:
        raise ArgumentError("clamp: at least one of min and max must be given")
    if isinstance(low, Tensor) or isinstance(high, Tensor):
        raised = x if low is None else x.maximum(low)
        return raised if high is None else raised.minimum(high)
    return Clamp.apply(x.to(dtype=scalar_dtype(x, (low or 0) + (high or 0))), low, high)


class Clamp(Function):
    """min(max(x, low), high)"""

    @staticmethod
    @quiet
    def forward(ctx: Any, x: Tensor, low: Any, high: Any) -> Any:
        ctx.bounds = low, high
        ctx.save_for_backward(x)
        return x.array_module.clip(x.array, low, high).astype(x.dtype, copy=False)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        (x,), (low, high) = ctx.saved_tensors, ctx.bounds
        inside = (x >= (-np.inf if low is None else low)) & (x <= (np.inf if high is None else high))
        return grad * inside, None, None


def where(condition: Any, a: Any, b: Any) -> Tensor:
    """``a`` where ``condition`` holds and ``b`` elsewhere, broadcast against each other."""
    tensor = next((x for x in (condition, a, b) if isinstance(x, Tensor)), None)
    if tensor is None:
        raise ArgumentError("where: at least one argument must be a tensor")
    condition, a, b = (as_operand("where", x, tensor) for x in (condition, a, b))
    if condition is None or a is None or b is None:
        raise ArgumentError("where: the arguments must be tensors, arrays or numbers")
    if not isinstance(a, Tensor) and not isinstance(b, Tensor):
        scalars = np.asarray(a), np.asarray(b)
        dtype = np.result_type(*scalars)
        a = Tensor(tensor.array_module.full((), a, DEFAULT_FLOAT if dtype.kind == "f" else dtype))
    a, b = prepare("where", a, b)
    if isinstance(condition, Tensor):
        if condition.dtype != np.bool_:
            raise DtypeError(f"where: condition must be boolean; got {condition.dtype}")
        same_device("where", *(x for x in (condition, a, b) if isinstance(x, Tensor)))
    broadcast_shape("where", *(x.shape for x in (condition, a, b) if isinstance(x, Tensor)))
    return Where.apply(condition, a, b)


class Where(Function):
    """a where the condition holds, else b"""

    @staticmethod
    def forward(ctx: Any, condition: Any, a: Any, b: Any) -> Any:
        xp = next(x for x in (condition, a, b) if isinstance(x, Tensor)).array_module
        _keep_others(ctx, condition)
        raw_a, raw_b = _shapes(ctx, a, b)
        dtype = (a if isinstance(a, Tensor) else b).dtype
        chosen = condition.array if isinstance(condition, Tensor) else xp.full((), condition, np.bool_)
        return xp.where(chosen, raw_a, raw_b).astype(dtype, copy=False)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        (condition,) = _others(ctx)
        wanted = ctx.needs_input_grad
        return (
            None,
            _back(ctx, 0, where(condition, grad, 0.0)) if wanted[1] else None,
            _back(ctx, 1, where(condition, 0.0, grad)) if wanted[2] else None,
        )


class Clone(Function):
    """A copy"""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Any:
        return x.array_module.array(x.array, order="C")

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad


class Cast(Function):
    """The same values in another dtype"""

    @staticmethod
    @quiet
    def forward(ctx: Any, x: Tensor, dtype: np.dtype) -> Any:
        ctx.dtype = x.dtype
        return x.array.astype(dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return grad.to(dtype=ctx.dtype), None


class Move(Function):
    """The same values on another device"""

    @staticmethod
    def forward(ctx: Any, x: Tensor, device: str) -> Any:
        ctx.device = x.device
        return device_named(device).from_host(device_of(x.array).to_host(x.array))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return grad.to(device=ctx.device), None
