"""``Tensor``: an array on some device, with a place on the tape.

A tensor holds a raw array (``.array``: NumPy's on the CPU, another module's elsewhere) and nothing
here assumes which.  Names and meanings are torch's.  The operations themselves live in
``autograd/functions``; the methods below only name them.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from ..kernels import _graph
from ..kernels._devices import device_named, device_of, is_array, known_arrays
from ..kernels._dtypes import BFLOAT16, FLOAT16, kind_of
from ..kernels._errors import ArgumentError, DeviceError, DtypeError, GradientError, ShapeError
from .graph import Node, Version, is_grad_enabled

DEFAULT_FLOAT = np.dtype(np.float32)

# Tensor has methods of these names, which would hide the types inside the class.
_bool = bool
_int = int
_float = float


def zeros_of(shape: tuple[int, ...], dtype: Any, device: str) -> Tensor:
    """A tensor of zeros."""
    return Tensor(device_named(device).array_module.zeros(shape, dtype))


def as_dtype(dtype: Any) -> np.dtype:
    """``dtype`` (``np.float32``, ``"bfloat16"``, ``float``, …) as a NumPy dtype; bool, integer or float."""
    try:
        result = np.dtype(dtype)
    except TypeError:
        raise DtypeError(f"{dtype!r} is not a dtype") from None
    if kind_of(result) not in "biuf":
        raise DtypeError(f"tensors hold booleans, integers or floats; got dtype {result}")
    return result


def apart(target: Any, source: Any) -> Any:
    """What to write into the array ``target``: ``source``, or a copy of it where the two share memory.

    NumPy sees to that by itself; on a GPU one thread would read what another has written already.
    """
    if not is_array(source) or source is target or (source.base is None and target.base is None):
        return source
    return source.copy() if device_of(target).array_module.may_share_memory(target, source) else source


class Tensor:
    """An n-dimensional array that remembers how it was computed.

    Args:
        data: an array of a known device (shared, not copied), a tensor (likewise), or anything
            that :func:`numpy.asarray` takes.  Python floats become float32, as in torch.
        requires_grad: whether gradients with respect to this tensor are wanted.

    Attributes:
        array: the raw array.
        grad: dL/d(this), filled by :meth:`backward`; None before.
        grad_fn: the node that made this tensor, None for a leaf.

    Raises:
        DtypeError: the data are no numbers, or ``requires_grad`` is asked of integers.
    """

    __slots__ = ("__weakref__", "_hooks", "_index", "_node", "_requires_grad", "_version", "array", "grad")
    __array_ufunc__ = None  # NumPy arrays and scalars leave arithmetic with a tensor to the tensor
    __array_priority__ = 1000

    def __init__(self, data: Any, requires_grad: _bool = False) -> None:
        if type(data) not in known_arrays and not is_array(data):
            data = _as_array(data)
        elif data.dtype.kind not in "fiub":
            as_dtype(data.dtype)  # refuses it
        self.array: Any = data
        self.grad: Tensor | None = None
        self._node: Node | None = None
        self._index = 0
        self._version = Version()
        self._hooks: list[Callable[[Tensor], Tensor | None]] | None = None
        self._requires_grad = False
        if requires_grad:
            self.requires_grad = True

    # ---- what it is

    @property
    def shape(self) -> tuple[_int, ...]:
        """The size of each dimension."""
        return self.array.shape

    @property
    def dtype(self) -> np.dtype:
        """The NumPy dtype of the elements."""
        return self.array.dtype

    @property
    def ndim(self) -> _int:
        """The number of dimensions."""
        return self.array.ndim

    @property
    def device(self) -> str:
        """The name of the device, ``"cpu"`` or ``"cuda"``."""
        return device_of(self.array).name

    @property
    def array_module(self) -> Any:
        """The module that makes and combines arrays like this one's (``numpy``, ``cupy``, …)."""
        return device_of(self.array).array_module

    def size(self, dim: _int | None = None) -> Any:
        """The shape, or the size of one dimension."""
        return self.shape if dim is None else self.shape[_axis("size", dim, self.ndim)]

    def dim(self) -> _int:
        """The number of dimensions."""
        return self.ndim

    def numel(self) -> _int:
        """The number of elements."""
        return int(self.array.size)

    def is_contiguous(self) -> _bool:
        """Whether the elements lie in memory in C order."""
        return bool(self.array.flags.c_contiguous)

    def __len__(self) -> _int:
        if self.ndim == 0:
            raise ShapeError("len() of a tensor with no dimensions")
        return self.shape[0]

    def __repr__(self) -> str:
        values = self._host()
        if values.dtype == BFLOAT16:  # NumPy would leave the points out
            values = values.astype(np.float32)
        text = np.array2string(values, separator=", ", prefix="tensor(", threshold=1000)
        parts = [text]
        if self.dtype not in (DEFAULT_FLOAT, np.dtype(np.int64), np.dtype(np.bool_)):
            parts.append(f"dtype={self.dtype}")
        if self.device != "cpu":
            parts.append(f"device={self.device!r}")
        if self._node is not None:
            parts.append(f"grad_fn={self._node!r}")
        elif self._requires_grad:
            parts.append("requires_grad=True")
        return f"tensor({', '.join(parts)})"

    __hash__ = object.__hash__  # comparison is elementwise, identity is what dictionaries want

    # ---- its place on the tape

    @property
    def requires_grad(self) -> _bool:
        """Whether gradients with respect to this tensor are computed."""
        return self._requires_grad

    @requires_grad.setter
    def requires_grad(self, value: _bool) -> None:
        if self._node is not None:
            if not value:
                raise GradientError("requires_grad of a computed tensor cannot be switched off; use detach()")
            return
        if value and kind_of(self.dtype) != "f":
            raise DtypeError(f"only floating tensors can require gradients; this one is {self.dtype}")
        self._requires_grad = bool(value)

    def requires_grad_(self, requires_grad: _bool = True) -> Tensor:
        """Set :attr:`requires_grad` and give the tensor itself."""
        self.requires_grad = requires_grad
        return self

    @property
    def grad_fn(self) -> Node | None:
        """The node that computed this tensor; None for a leaf."""
        return self._node

    @property
    def is_leaf(self) -> _bool:
        """Whether this tensor was made by the user, not computed on the tape."""
        return self._node is None

    @property
    def data(self) -> Tensor:
        """The same memory as a tensor outside the tape."""
        return self.detach()

    @data.setter
    def data(self, value: Any) -> None:
        new = value.array if isinstance(value, Tensor) else Tensor(value).array
        if tuple(new.shape) != tuple(self.shape) or new.dtype != self.dtype:
            raise ShapeError(
                f"data must keep shape {tuple(self.shape)} and dtype {self.dtype}; got {tuple(new.shape)}, {new.dtype}"
            )
        self.array = new
        self._version.value += 1

    def detach(self) -> Tensor:
        """The same memory as a tensor outside the tape; in-place writes to either are noticed."""
        detached = Tensor(self.array)
        detached._version = self._version
        return detached

    def _attach(self, node: Node, index: _int) -> None:
        self._node, self._index, self._requires_grad = node, index, True

    def _edge(self) -> Any:
        """What a gradient with respect to this tensor flows to."""
        if self._node is not None:
            return self._node, self._index
        return self if self._requires_grad else None

    def _same(self) -> Tensor:
        """Another tensor object in this one's place on the tape."""
        same = Tensor(self.array)
        same._version = self._version
        same._node, same._index, same._requires_grad = self._node, self._index, self._requires_grad
        return same

    def backward(self, gradient: Any = None, retain_graph: _bool | None = None, create_graph: _bool = False) -> None:
        """Add dL/dx to ``x.grad`` for every leaf x that this tensor depends on.

        Args:
            gradient: dL/d(this), of its shape; may be left out for a tensor of one element.
            retain_graph: keep the graph, so that it can be used again; follows ``create_graph``.
            create_graph: record the gradients themselves, so that they can be differentiated.

        Raises:
            GradientError: the tensor requires no gradient, has several elements and no gradient was
                given, or its graph was used up.
        """
        from .differentiation import backward

        backward([self], [gradient], retain_graph, create_graph)

    def retain_grad(self) -> None:
        """Fill ``.grad`` of this computed tensor too."""
        if self._node is None:
            if not self._requires_grad:
                raise GradientError("retain_grad: this tensor does not require gradients")
            return
        if self._node._retainers is None:
            self._node._retainers = {}
        self._node._retainers[self._index] = weakref.ref(self)

    def register_hook(self, hook: Callable[[Tensor], Tensor | None]) -> Callable[[], None]:
        """Call ``hook(grad)`` when the gradient of this tensor is known; what it returns replaces it.

        Returns:
            A function that removes the hook.
        """
        if not self._requires_grad:
            raise GradientError("register_hook: this tensor does not require gradients")
        if self._node is None:
            self._hooks = hooks = self._hooks or []
        else:
            self._node._hooks = self._node._hooks or {}
            hooks = self._node._hooks.setdefault(self._index, [])
        hooks.append(hook)
        return lambda: hooks.remove(hook) if hook in hooks else None

    # ---- leaving rawgrad

    def _host(self) -> np.ndarray:
        return device_of(self.array).to_host(self.array)

    def _require_detached(self, what: str) -> None:
        if self._requires_grad:
            raise GradientError(f"{what}: this tensor requires gradients; use tensor.detach() first")

    def numpy(self) -> np.ndarray:
        """The NumPy array that shares this tensor's memory (a copy from another device is refused).

        Raises:
            GradientError: the tensor requires gradients.
            DeviceError: it is not on the CPU; use ``.to("cpu")`` first.
        """
        self._require_detached("numpy()")
        if self.device != "cpu":
            raise DeviceError(f"numpy(): this tensor is on {self.device!r}; use tensor.to('cpu') first")
        return self._host()

    def item(self) -> Any:
        """The single element as a Python number."""
        if self.numel() != 1:
            raise ShapeError(f"item(): the tensor must have one element; got shape {tuple(self.shape)}")
        return self._host().item()

    def tolist(self) -> Any:
        """The elements as (nested) Python lists."""
        return self._host().tolist()

    def __array__(self, dtype: Any = None, copy: _bool | None = None) -> np.ndarray:
        return np.array(self.numpy(), dtype=dtype, copy=copy)

    def __dlpack__(self, *, stream: Any = None, **options: Any) -> Any:
        """A capsule with this tensor's memory, for the ``from_dlpack`` of another library.

        Args:
            stream: the consumer's stream, which then waits for the work that fills this tensor.
            options: further ones of the protocol (``max_version``, ``dl_device``, ``copy``).
        """
        self._require_detached("__dlpack__")
        return self.array.__dlpack__(stream=stream, **options)

    def __dlpack_device__(self) -> Any:
        """(kind of device, its number), as DLPack counts them."""
        return self.array.__dlpack_device__()

    @property
    def __cuda_array_interface__(self) -> Any:
        """Where on the GPU the elements are, with the stream that fills them, for Numba, PyTorch and others.

        Absent on the CPU and on the simulated GPU, where no memory of a GPU is.
        """
        interface = getattr(self.array, "__cuda_array_interface__", None)
        if interface is None:
            raise AttributeError(f"__cuda_array_interface__: this tensor is on {device_of(self.array)}")
        self._require_detached("__cuda_array_interface__")
        return interface

    def __bool__(self) -> _bool:
        if self.numel() != 1:
            raise ArgumentError(
                f"the truth of a tensor of shape {tuple(self.shape)} is ambiguous; use (x == y).all() or .any()"
            )
        return bool(self.item())

    def __float__(self) -> _float:
        return float(self.item())

    def __int__(self) -> _int:
        return int(self.item())

    def __index__(self) -> _int:
        if self.dtype.kind not in "iu":
            raise DtypeError(f"only integer tensors can be used as an index; this one is {self.dtype}")
        return int(self.item())

    def __format__(self, spec: str) -> str:
        return format(self.item(), spec) if spec else str(self)

    def __copy__(self) -> Tensor:
        return self._same()

    def __deepcopy__(self, memo: dict[_int, Any]) -> Tensor:
        if self._node is not None:
            raise GradientError("only leaf tensors can be deep-copied; use tensor.detach() or clone()")
        copied = type(self).__new__(type(self))
        Tensor.__init__(copied, self.array.copy(), self._requires_grad)
        memo[id(self)] = copied
        copied.grad = None if self.grad is None else Tensor(self.grad.array.copy())
        return copied

    def __reduce__(self) -> Any:
        if self._node is not None:
            raise GradientError("only leaf tensors can be pickled; use tensor.detach()")
        return _rebuild, (type(self), self._host(), self.device, self._requires_grad)

    # ---- moving and copying

    def to(self, *args: Any, dtype: Any = None, device: str | None = None) -> Tensor:
        """This tensor with another dtype or on another device; itself if nothing changes.

        Args:
            args: a device, a dtype, or a tensor whose device and dtype are taken.
        """
        for arg in args:
            if isinstance(arg, Tensor):
                device, dtype = arg.device, arg.dtype
            elif isinstance(arg, str) and _is_device(arg):
                device = arg
            elif arg is not None:
                dtype = arg
        result = self
        if dtype is not None and as_dtype(dtype) != self.dtype:
            result = elementwise.Cast.apply(result, as_dtype(dtype))
        if device is not None and device != self.device:
            result = elementwise.Move.apply(result, device)
        return result

    def cpu(self) -> Tensor:
        """This tensor on the CPU; itself if it is there."""
        return self.to(device="cpu")

    def cuda(self) -> Tensor:
        """This tensor on the GPU; itself if it is there."""
        return self.to(device="cuda")

    def float(self) -> Tensor:
        """This tensor as float32."""
        return self.to(dtype=np.float32)

    def double(self) -> Tensor:
        """This tensor as float64."""
        return self.to(dtype=np.float64)

    def half(self) -> Tensor:
        """This tensor as float16."""
        return self.to(dtype=FLOAT16)

    def bfloat16(self) -> Tensor:
        """This tensor as bfloat16, the upper half of a float32."""
        return self.to(dtype=BFLOAT16)

    def long(self) -> Tensor:
        """This tensor as int64."""
        return self.to(dtype=np.int64)

    def int(self) -> Tensor:
        """This tensor as int32."""
        return self.to(dtype=np.int32)

    def bool(self) -> Tensor:
        """Whether each element is not 0."""
        return self.to(dtype=np.bool_)

    def clone(self) -> Tensor:
        """A copy with memory of its own, on the tape."""
        return elementwise.Clone.apply(self)

    def contiguous(self) -> Tensor:
        """This tensor with its elements in C order; itself if they are."""
        return self if self.is_contiguous() else self.clone()

    # ---- arithmetic

    def __add__(self, other: Any) -> Any:
        return elementwise.binary(elementwise.Add, self, other)

    __radd__ = __add__

    def __sub__(self, other: Any) -> Any:
        return elementwise.binary(elementwise.Sub, self, other)

    def __rsub__(self, other: Any) -> Any:
        return elementwise.binary(elementwise.Sub, other, self)

    def __mul__(self, other: Any) -> Any:
        return elementwise.binary(elementwise.Mul, self, other)

    __rmul__ = __mul__

    def __truediv__(self, other: Any) -> Any:
        return elementwise.binary(elementwise.Div, self, other, floating=True)

    def __rtruediv__(self, other: Any) -> Any:
        return elementwise.binary(elementwise.Div, other, self, floating=True)

    def __floordiv__(self, other: Any) -> Any:
        return elementwise.without_gradient("floor_divide", self, other)

    def __mod__(self, other: Any) -> Any:
        return elementwise.binary(elementwise.Remainder, self, other)

    def __pow__(self, exponent: Any) -> Any:
        return elementwise.power(self, exponent)

    def __rpow__(self, base: Any) -> Any:
        return elementwise.power(base, self)

    def __matmul__(self, other: Any) -> Any:
        return matmul.matmul(self, other)

    def __rmatmul__(self, other: Any) -> Any:
        return matmul.matmul(other, self)

    def __neg__(self) -> Tensor:
        return elementwise.unary(elementwise.Neg, self)

    def __pos__(self) -> Tensor:
        return self

    def __abs__(self) -> Tensor:
        return self.abs()

    def __invert__(self) -> Tensor:
        return elementwise.without_gradient("invert", self)

    def __and__(self, other: Any) -> Any:
        return elementwise.without_gradient("bitwise_and", self, other)

    def __or__(self, other: Any) -> Any:
        return elementwise.without_gradient("bitwise_or", self, other)

    def __xor__(self, other: Any) -> Any:
        return elementwise.without_gradient("bitwise_xor", self, other)

    def __eq__(self, other: Any) -> Any:
        return elementwise.without_gradient("equal", self, other)

    def __ne__(self, other: Any) -> Any:
        return elementwise.without_gradient("not_equal", self, other)

    def __lt__(self, other: Any) -> Any:
        return elementwise.without_gradient("less", self, other)

    def __le__(self, other: Any) -> Any:
        return elementwise.without_gradient("less_equal", self, other)

    def __gt__(self, other: Any) -> Any:
        return elementwise.without_gradient("greater", self, other)

    def __ge__(self, other: Any) -> Any:
        return elementwise.without_gradient("greater_equal", self, other)

    def add(self, other: Any, *, alpha: Any = 1) -> Tensor:
        """``self + alpha * other``."""
        return self + (other if alpha == 1 else other * alpha)

    def sub(self, other: Any, *, alpha: Any = 1) -> Tensor:
        """``self - alpha * other``."""
        return self - (other if alpha == 1 else other * alpha)

    def mul(self, other: Any) -> Tensor:
        """``self * other``, broadcast."""
        return self * other

    def div(self, other: Any) -> Tensor:
        """``self / other``, broadcast; integers give float32."""
        return self / other

    def pow(self, exponent: Any) -> Tensor:
        """``self ** exponent``, broadcast."""
        return self**exponent

    def matmul(self, other: Any) -> Tensor:
        """The matrix product of any rank, see ``@``."""
        return self @ other

    def neg(self) -> Tensor:
        """``-self``."""
        return -self

    def eq(self, other: Any) -> Tensor:
        """``self == other``, element by element."""
        return self == other

    def maximum(self, other: Any) -> Tensor:
        """The larger of both, element by element; NaN travels; equal elements share the gradient."""
        return elementwise.binary(elementwise.Maximum, self, other)

    def minimum(self, other: Any) -> Tensor:
        """The smaller of both, element by element; NaN travels; equal elements share the gradient."""
        return elementwise.binary(elementwise.Minimum, self, other)

    def clamp(self, min: Any = None, max: Any = None) -> Tensor:
        """Each element, moved into [min, max]."""
        return elementwise.clamp(self, min, max)

    def exp(self) -> Tensor:
        """e^x; integers give float32, here and in the functions below."""
        return elementwise.unary(elementwise.Exp, self, floating=True)

    def log(self) -> Tensor:
        """The natural logarithm; -inf at 0, NaN below."""
        return elementwise.unary(elementwise.Log, self, floating=True)

    def log1p(self) -> Tensor:
        """ln(1 + x), exact for small x."""
        return elementwise.unary(elementwise.Log1p, self, floating=True)

    def sqrt(self) -> Tensor:
        """The square root; NaN below 0."""
        return elementwise.unary(elementwise.Sqrt, self, floating=True)

    def square(self) -> Tensor:
        """x²."""
        return self * self

    def reciprocal(self) -> Tensor:
        """1/x."""
        return 1 / self

    def abs(self) -> Tensor:
        """|x|; its gradient at 0 is 0."""
        return elementwise.unary(elementwise.Abs, self)

    def sign(self) -> Tensor:
        """-1, 0 or 1."""
        return elementwise.unary(elementwise.Sign, self)

    def sin(self) -> Tensor:
        """The sine, of radians."""
        return elementwise.unary(elementwise.Sin, self, floating=True)

    def cos(self) -> Tensor:
        """The cosine, of radians."""
        return elementwise.unary(elementwise.Cos, self, floating=True)

    def tanh(self) -> Tensor:
        """The hyperbolic tangent."""
        return activation.activation(self, "tanh")

    def sigmoid(self) -> Tensor:
        """1 / (1 + e^-x), safe for any x."""
        return activation.activation(self, "sigmoid")

    def relu(self) -> Tensor:
        """max(x, 0); NaN stays NaN."""
        return activation.activation(self, "relu")

    def floor(self) -> Tensor:
        """The next integer below, in the same dtype."""
        return elementwise.unary(elementwise.Floor, self)

    def ceil(self) -> Tensor:
        """The next integer above, in the same dtype."""
        return elementwise.unary(elementwise.Ceil, self)

    def round(self) -> Tensor:
        """The nearest integer, the even one of two, in the same dtype."""
        return elementwise.unary(elementwise.Round, self)

    def isnan(self) -> Tensor:
        """Where elements are NaN."""
        return elementwise.without_gradient("isnan", self)

    def isinf(self) -> Tensor:
        """Where elements are infinite."""
        return elementwise.without_gradient("isinf", self)

    def isfinite(self) -> Tensor:
        """Where elements are neither NaN nor infinite."""
        return elementwise.without_gradient("isfinite", self)

    def where(self, condition: Tensor, other: Any) -> Tensor:
        """This tensor where ``condition`` holds, ``other`` elsewhere."""
        return elementwise.where(condition, self, other)

    def masked_fill(self, mask: Tensor, value: Any) -> Tensor:
        """This tensor with ``value`` where ``mask`` holds."""
        return elementwise.where(mask, value, self)

    # ---- reductions

    def sum(self, dim: Any = None, keepdim: _bool = False) -> Tensor:
        """The sum over ``dim`` (an integer or several; all by default); integers add up as int64."""
        return reductions.sum(self, dim, keepdim)

    def mean(self, dim: Any = None, keepdim: _bool = False) -> Tensor:
        """The mean over ``dim``; floating tensors only, NaN over nothing."""
        return reductions.mean(self, dim, keepdim)

    def var(self, dim: Any = None, *, correction: Any = 1, keepdim: _bool = False) -> Tensor:
        """The variance; the sum of squares is divided by (count - ``correction``)."""
        return reductions.var(self, dim, correction, keepdim)

    def std(self, dim: Any = None, *, correction: Any = 1, keepdim: _bool = False) -> Tensor:
        """The square root of :meth:`var`."""
        return reductions.std(self, dim, correction, keepdim)

    def prod(self, dim: Any = None, keepdim: _bool = False) -> Tensor:
        """The product over ``dim``; its gradient is right where elements are 0."""
        return reductions.prod(self, dim, keepdim)

    def amax(self, dim: Any = None, keepdim: _bool = False) -> Tensor:
        """The largest element; where several are equal they share the gradient."""
        return reductions.extremum(self, "max", dim, keepdim)

    def amin(self, dim: Any = None, keepdim: _bool = False) -> Tensor:
        """The smallest element; where several are equal they share the gradient."""
        return reductions.extremum(self, "min", dim, keepdim)

    def max(self) -> Tensor:
        """The largest element of all (:meth:`amax` and :meth:`argmax` work along dimensions)."""
        return self.amax()

    def min(self) -> Tensor:
        """The smallest element of all (:meth:`amin` and :meth:`argmin` work along dimensions)."""
        return self.amin()

    def argmax(self, dim: Any = None, keepdim: _bool = False) -> Tensor:
        """The position of the first largest element along ``dim``, int64; in the flat tensor without ``dim``."""
        return reductions.arg("argmax", self, dim, keepdim)

    def argmin(self, dim: Any = None, keepdim: _bool = False) -> Tensor:
        """The position of the first smallest element along ``dim``, int64; in the flat tensor without ``dim``."""
        return reductions.arg("argmin", self, dim, keepdim)

    def all(self, dim: Any = None, keepdim: _bool = False) -> Tensor:
        """Whether all elements along ``dim`` are true."""
        return reductions.logical("all", self, dim, keepdim)

    def any(self, dim: Any = None, keepdim: _bool = False) -> Tensor:
        """Whether any element along ``dim`` is true."""
        return reductions.logical("any", self, dim, keepdim)

    def logsumexp(self, dim: Any, keepdim: _bool = False) -> Tensor:
        """``log(sum(exp(x)))``, safe for large elements."""
        return reductions.logsumexp(self, dim, keepdim)

    def cumsum(self, dim: Any) -> Tensor:
        """Running sums along ``dim``."""
        return reductions.cumsum(self, dim)

    def norm(self, p: Any = 2, dim: Any = None, keepdim: _bool = False) -> Tensor:
        """The vector p-norm, ``sum(|x|^p)^(1/p)``; ``inf`` gives the largest absolute value."""
        return reductions.norm(self, p, dim, keepdim)

    def softmax(self, dim: Any) -> Tensor:
        """e^x along ``dim``, scaled to add up to one."""
        return softmax.softmax(self, dim)

    def log_softmax(self, dim: Any) -> Tensor:
        """The logarithm of :meth:`softmax`, safe for large elements."""
        return softmax.log_softmax(self, dim)

    # ---- shape

    def reshape(self, *size: Any) -> Tensor:
        """The same elements in C order under another shape; one size may be -1."""
        return shape.reshape(self, size)

    def view(self, *size: Any) -> Tensor:
        """:meth:`reshape` that never copies; ShapeError if the memory does not allow it."""
        return shape.view(self, size)

    def view_as(self, other: Tensor) -> Tensor:
        """:meth:`view` in the shape of ``other``."""
        return self.view(other.shape)

    def flatten(self, start_dim: Any = 0, end_dim: Any = -1) -> Tensor:
        """Dimensions ``start_dim`` to ``end_dim`` made one."""
        return shape.flatten(self, start_dim, end_dim)

    def permute(self, *dims: Any) -> Tensor:
        """Dimension i of the result is dimension ``dims[i]`` of this tensor; a view."""
        return shape.permute(self, dims)

    def transpose(self, dim0: Any, dim1: Any) -> Tensor:
        """Two dimensions exchanged; a view."""
        return shape.transpose(self, dim0, dim1)

    def t(self) -> Tensor:
        """A matrix transposed; a vector as it is."""
        if self.ndim > 2:
            raise ShapeError(f"t() takes at most 2 dimensions; got shape {tuple(self.shape)}")
        return self.transpose(0, 1) if self.ndim == 2 else self

    @property
    def T(self) -> Tensor:
        """All dimensions in reverse order."""
        return self.permute(*range(self.ndim)[::-1])

    @property
    def mT(self) -> Tensor:
        """The last two dimensions exchanged."""
        return self.transpose(-2, -1)

    def squeeze(self, dim: Any = None) -> Tensor:
        """Without its dimensions of size 1 (or without those in ``dim`` of size 1)."""
        return shape.squeeze(self, dim)

    def unsqueeze(self, dim: Any) -> Tensor:
        """With a dimension of size 1 inserted at ``dim``."""
        return shape.unsqueeze(self, dim)

    def expand(self, *size: Any) -> Tensor:
        """Dimensions of size 1 repeated without copying; -1 keeps a size."""
        return shape.expand(self, size)

    def expand_as(self, other: Tensor) -> Tensor:
        """:meth:`expand` to the shape of ``other``."""
        return self.expand(*other.shape)

    def flip(self, *dims: Any) -> Tensor:
        """The elements in reverse order along ``dims``."""
        return shape.flip(self, dims)

    def split(self, split_size: Any, dim: Any = 0) -> tuple[Tensor, ...]:
        """Consecutive pieces along ``dim``: of ``split_size`` each, or of the sizes listed; views."""
        return shape.split(self, split_size, dim)

    def chunk(self, chunks: Any, dim: Any = 0) -> tuple[Tensor, ...]:
        """At most ``chunks`` pieces of equal size along ``dim``; views."""
        return shape.chunk(self, chunks, dim)

    def __getitem__(self, index: Any) -> Tensor:
        return indexing.get(self, index)

    def __setitem__(self, index: Any, value: Any) -> None:
        indexing.put(self, index, value)

    def __iter__(self) -> Iterator[Tensor]:
        if self.ndim == 0:
            raise ShapeError("a tensor with no dimensions cannot be iterated over")
        return (self[i] for i in range(self.shape[0]))

    # ---- in place

    def written(self) -> Tensor:
        """Say that ``.array`` was written directly: graphs that saved the old values refuse to be used.

        Code that bypasses the in-place operations, such as an optimizer's kernel, calls this
        afterwards.
        """
        if _graph.under_way:
            _graph.observe((self,))
        self._version.value += 1
        return self

    def _write(self, result: Tensor) -> Tensor:
        """Make this tensor hold ``result``, in its own memory, on the tape and for all its views.

        ``result`` was computed from this tensor by an operation that is not in place.
        """
        if tuple(result.shape) != tuple(self.shape):
            raise ShapeError(
                f"in-place result of shape {tuple(result.shape)} does not fit into shape {tuple(self.shape)}"
            )
        if result.dtype != self.dtype and not _may_hold(self.dtype, result.dtype):
            raise DtypeError(f"in-place result of dtype {result.dtype} cannot be kept in a tensor of {self.dtype}")
        if is_grad_enabled() and (self._requires_grad or result._requires_grad):
            if self._node is None and self._requires_grad:
                raise GradientError("a leaf that requires gradients can be written in place only under no_grad()")
            if self._version.shared_beyond(self):
                raise GradientError(
                    "this tensor shares its memory with a view of it, or is one itself, whose gradient would be wrong "
                    "after an in-place write: write to a clone(), assign to a part (x[i] = …), or use no_grad()"
                )
        if result._node is not None:
            result._node.keep_before_write(self.array)
        if _graph.under_way:
            _graph.observe((self, result))
        self.array[...] = apart(self.array, result.array)
        self._version.value += 1
        if is_grad_enabled():
            if result._node is not None:
                result = result.to(self.dtype)
                assert result._node is not None
                if self._node is not None:
                    self._node.move_retainer(self._index, result._node, result._index)
                self._attach(result._node, result._index)
            elif self._node is not None:  # overwritten by something that does not depend on the tape
                self._node, self._requires_grad = None, False
        return self

    def add_(self, other: Any, *, alpha: Any = 1) -> Tensor:
        """``self += alpha * other``."""
        return self._write(self._same().add(other, alpha=alpha))

    def sub_(self, other: Any, *, alpha: Any = 1) -> Tensor:
        """``self -= alpha * other``."""
        return self._write(self._same().sub(other, alpha=alpha))

    def mul_(self, other: Any) -> Tensor:
        """``self *= other``."""
        return self._write(self._same() * other)

    def div_(self, other: Any) -> Tensor:
        """``self /= other``; an integer tensor is refused."""
        return self._write(self._same() / other)

    def pow_(self, exponent: Any) -> Tensor:
        """``self **= exponent``."""
        return self._write(self._same() ** exponent)

    def clamp_(self, min: Any = None, max: Any = None) -> Tensor:
        """:meth:`clamp` in place."""
        return self._write(self._same().clamp(min, max))

    def relu_(self) -> Tensor:
        """:meth:`relu` in place."""
        return self._write(self._same().relu())

    def copy_(self, source: Any) -> Tensor:
        """Take over the values of ``source``, broadcast and cast."""
        source = source if isinstance(source, Tensor) else Tensor(source)
        return self._write(source.to(dtype=self.dtype, device=self.device).expand(*self.shape))

    def fill_(self, value: Any) -> Tensor:
        """Set every element to ``value``."""
        return self.copy_(value)

    def zero_(self) -> Tensor:
        """Set every element to 0."""
        return self.copy_(0)

    __iadd__ = add_
    __isub__ = sub_
    __imul__ = mul_
    __itruediv__ = div_
    __ipow__ = pow_


def _as_array(data: Any) -> Any:
    if isinstance(data, Tensor):
        return data.array
    if isinstance(data, list | tuple) and any(isinstance(item, Tensor) for item in data):
        data = [item.tolist() if isinstance(item, Tensor) else item for item in data]
    if hasattr(data, "__cuda_array_interface__"):  # an array of another library on the GPU
        return device_named("cuda").array_module.asarray(data)
    try:
        array = np.asarray(data)
    except ValueError as error:
        raise ShapeError(f"tensor: the data do not form an array: {error}") from None
    as_dtype(array.dtype)
    if array.dtype == np.float64 and not isinstance(data, np.ndarray | np.generic) and not hasattr(data, "__array__"):
        array = array.astype(DEFAULT_FLOAT)
    return array


def _is_device(name: str) -> bool:
    try:
        np.dtype(name)
    except TypeError:
        return True
    return False


def _may_hold(target: np.dtype, source: np.dtype) -> bool:
    """Whether in-place results of ``source`` may be kept in ``target``: never floats in integers."""
    order = "biuf".replace("u", "i")
    return order.index(kind_of(target).replace("u", "i")) >= order.index(kind_of(source).replace("u", "i"))


def _axis(operation: str, dim: Any, ndim: Any) -> Any:
    """``dim`` counted from the front."""
    from .functions._operands import axis

    return axis(operation, dim, ndim)


def _rebuild(kind: type[Tensor], array: np.ndarray, device: str, requires_grad: bool) -> Tensor:
    tensor = kind.__new__(kind)
    Tensor.__init__(tensor, device_named(device).from_host(array), requires_grad)
    return tensor


# The functions are Functions of tensors, so they can only be loaded once Tensor exists.
from .functions import activation, elementwise, indexing, matmul, reductions, shape, softmax  # noqa: E402
