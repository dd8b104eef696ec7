"""The arrays of the simulated GPU, and the module that makes and combines them.

:class:`EmulatedArray` is a NumPy array that behaves like CuPy's where the two differ: it does not mix
with arrays of the host, what it computes has dimensions or none but is never a NumPy scalar, its values
reach the host only through ``get``, ``item`` and their like, an index array that is out of range wraps
round, and it has the methods and keyword arguments that CuPy's arrays have and rawgrad uses, no others.
:data:`MODULE` is to these arrays what ``cupy`` is to CuPy's, restricted to :data:`NAMES`.  So code that
runs here has a good chance to run there, and ``tests/kernels/test_emulated_arrays.py`` compares both lists
with the real CuPy.

One gap cannot be closed: ``np.asarray(array)`` asks a subclass of NumPy's array nothing and gives its
memory away, where CuPy refuses.
"""

from __future__ import annotations

import math
import operator
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np

from .._devices import Device, register_device
from .._errors import DeviceError, LaunchError
from . import streams
from .memory import POISON, first_unwritten, mark_written, pool, written_map

__all__ = ["DEVICE", "METHODS", "MODULE", "NAMES", "ArrayModule", "EmulatedArray", "mark_written", "written_map"]

#: What rawgrad uses of the array module; all of it exists in CuPy.
NAMES = tuple(
    """abs add arange array asarray ascontiguousarray bitwise_and bitwise_or bitwise_xor broadcast_to ceil clip
    concatenate copyto cos cuda cumsum empty empty_like equal exp flip floor floor_divide from_dlpack full full_like
    get_default_memory_pool greater greater_equal invert isfinite isinf isnan less less_equal log log1p max
    may_share_memory maximum minimum moveaxis not_equal ones ones_like round sign sin sqrt square stack sum tril triu
    where zeros zeros_like""".split()
)

#: The methods of arrays, each with the arguments that CuPy's has.
METHODS = {
    "all": "axis out keepdims",
    "any": "axis out keepdims",
    "argmax": "axis out dtype keepdims",
    "argmin": "axis out dtype keepdims",
    "argsort": "axis kind",
    "astype": "dtype order casting subok copy",
    "clip": "min max out",
    "copy": "order",
    "cumprod": "axis dtype out",
    "cumsum": "axis dtype out",
    "fill": "value",
    "flatten": "order",
    "get": "stream order out blocking",
    "item": "",
    "max": "axis out keepdims",
    "mean": "axis dtype out keepdims",
    "min": "axis out keepdims",
    "nonzero": "",
    "prod": "axis dtype out keepdims",
    "ravel": "order",
    "repeat": "repeats axis",
    "reshape": "*shape order copy",
    "round": "decimals out",
    "set": "arr stream",
    "sort": "axis kind",
    "squeeze": "axis",
    "std": "axis dtype out ddof keepdims",
    "sum": "axis dtype out keepdims",
    "swapaxes": "axis1 axis2",
    "take": "indices axis out",
    "tobytes": "order",
    "tolist": "",
    "transpose": "*axes",
    "var": "axis dtype out ddof keepdims",
    "view": "dtype",
}
#: Arguments of NumPy's functions that CuPy's lack, in all of them or in many.
_NUMPY_ONLY = {"initial", "like", "subok", "where"}
_SCALARS = (bool, int, float, complex, np.generic)

#: A decorator: a GPU gives no warning of NaN, infinity or a division by zero.
_silent = np.errstate(all="ignore")


# ---- from plain NumPy arrays to the device's and back


def plain(value: Any) -> Any:
    """``value`` with every array of a device in it as the NumPy array on the same memory."""
    if isinstance(value, EmulatedArray):
        return np.ndarray.view(value, np.ndarray)
    if type(value) in (list, tuple):
        return type(value)(map(plain, value))
    return value


def on_device(value: Any, kind: type[EmulatedArray]) -> Any:
    """``value`` with every NumPy array and scalar in it as an array of ``kind``.

    Memory of the device stays where it is; memory of the host is copied into a new allocation.
    """
    if isinstance(value, np.ndarray):
        return np.ndarray.view(value, kind) if pool.block_of(value) is not None else _copied(value, kind)
    if isinstance(value, np.generic):
        return _copied(np.asarray(value), kind)  # a device has no scalars
    if type(value) in (list, tuple):
        return type(value)(on_device(member, kind) for member in value)
    return value


def _allocate(
    kind: type[EmulatedArray], shape: Any, dtype: Any, strides: tuple[int, ...] | str = "C", forgotten: bool = False
) -> Any:
    """A new array on an allocation of its own.

    Args:
        strides: may be the order "C" or "F".
        forgotten: nothing is going to be written at once.
    """
    dtype = np.dtype(dtype)
    if dtype.kind not in "biufc":
        raise ValueError(f"Unsupported dtype {dtype}")  # as CuPy says it
    shape = (operator.index(shape),) if hasattr(shape, "__index__") else tuple(map(operator.index, shape))
    memory, start, block = pool.allocate(math.prod(shape) * dtype.itemsize)
    layout: Any = {"order": strides} if isinstance(strides, str) else {"strides": strides}
    array = np.ndarray.__new__(kind, shape, dtype, buffer=memory, offset=start, **layout)
    block.root = weakref.ref(array)
    if forgotten and block.nbytes:
        memory[start : start + block.nbytes] = POISON
        block.forget()
    return array


def _dense(array: np.ndarray) -> tuple[int, ...]:
    """Strides without gaps, in the order of ``array``'s own (``order="K"``)."""
    strides, step = [0] * array.ndim, array.itemsize
    for axis in sorted(range(array.ndim), key=lambda d: (abs(array.strides[d]), -d)):
        strides[axis] = step
        step *= max(array.shape[axis], 1)
    return tuple(strides)


def _copied(array: np.ndarray, kind: type[EmulatedArray]) -> Any:
    new = _allocate(kind, array.shape, array.dtype, _dense(array))
    np.copyto(plain(new), array)
    return new


def _refuse_mixed(what: str, kind: type[EmulatedArray], *values: Any) -> None:
    """All arrays among ``values``, and in lists among them, must be of ``kind``."""
    for value in values:
        if isinstance(value, np.ndarray):
            if type(value) is not kind:
                other = value.PLACE if isinstance(value, EmulatedArray) else "the host"
                raise TypeError(f"{what}: an array on {kind.PLACE} does not mix with one on {other}")
        elif type(value) in (list, tuple):
            _refuse_mixed(what, kind, *value)


def _refuse_overlap(what: str, target: Any, *sources: Any) -> None:
    """No source may share memory with ``target``, unless it is the very same elements in the same places.

    NumPy takes care of such cases; on a GPU one thread reads what another has written already.
    """
    for source in sources:
        if isinstance(source, np.ndarray) and np.shares_memory(plain(target), plain(source)):
            same = (target.ctypes.data, target.strides) == (source.ctypes.data, source.strides)
            if not same or target.shape != source.shape:
                raise ValueError(f"{what}: source and target overlap, and the order of reads and writes is not defined")


# ---- arrays


class _Pointer:
    """Where an array begins, as ``cupy.cuda.MemoryPointer`` says it."""

    __slots__ = ("ptr",)

    def __init__(self, ptr: int) -> None:
        self.ptr = ptr


class EmulatedArray(np.ndarray):
    """An array on the simulated GPU; made by :data:`MODULE`, never directly."""

    #: For messages.
    PLACE = "device 'cuda' (simulated)"

    MODULE: Any = None  #: the array module of these arrays; an :class:`ArrayModule` sets it

    @property
    def data(self) -> Any:
        """The pointer to the first element: ``array.data.ptr``."""
        return _Pointer(self.ctypes.data)

    @property
    def base(self) -> Any:
        """For a view, the array that its memory was allocated for; None for that array itself."""
        block = pool.block_of(self)
        if block is None or block.root is None:
            return None
        root = block.root()
        return None if root is self else block if root is None else root

    # ---- to the host: these alone show values, so these refuse to show what nothing wrote

    def get(self, stream: Any = None, order: str = "C", out: np.ndarray | None = None, blocking: bool = True) -> Any:
        """A copy on the host.

        Raises:
            LaunchError: nothing has written one of the elements.
        """
        missing = first_unwritten(self)
        if missing is not None:
            raise LaunchError(
                f"an array of shape {self.shape} and dtype {self.dtype} on {self.PLACE} is read, but nothing has "
                f"written its element {missing}: no kernel, no copy"
            )
        if out is None:
            return np.array(plain(self), order=order, copy=True)  # type: ignore[call-overload]
        np.copyto(out, plain(self), casting="no")
        return out

    def item(self) -> Any:  # type: ignore[override]
        """The only element, as a Python number."""
        return self.get().item()

    def tolist(self) -> Any:
        """The elements, as nested lists of Python numbers."""
        return self.get().tolist()

    def tobytes(self, order: Any = "C") -> bytes:
        """The elements' bytes."""
        return self.get().tobytes(order)

    def __bool__(self) -> bool:
        return bool(self.get())

    def __int__(self) -> int:
        return int(self.get())

    def __float__(self) -> float:
        return float(self.get())

    def __index__(self) -> int:
        raise TypeError(f"an array on {self.PLACE} is no integer; use int(array)")  # as with CuPy's

    def __contains__(self, value: Any) -> bool:
        raise TypeError(f"`in` is not for arrays on {self.PLACE}; use (array == value).any()")

    def __imatmul__(self, other: Any) -> Any:  # type: ignore[misc]
        return self @ other  # CuPy has no product in place

    def __complex__(self) -> complex:
        return complex(self.get())

    def __repr__(self) -> str:
        return f"{type(self).__name__}({plain(self)!r})"

    def __str__(self) -> str:
        return str(plain(self))

    def __format__(self, spec: str) -> str:
        return format(self.get(), spec)

    def __array__(self, *args: Any, **kwargs: Any) -> Any:
        raise TypeError(f"an array on {self.PLACE} does not become a host array by itself; use .get()")

    @property
    def __array_interface__(self) -> Any:
        raise AttributeError(f"an array on {self.PLACE} has no __array_interface__")

    __array_struct__: Any = __array_interface__
    __array_namespace__: Any = __array_interface__

    def __dlpack__(self, **options: Any) -> Any:
        raise BufferError("the memory of the simulated GPU cannot be shared through DLPack; copy it with .get()")

    def __dlpack_device__(self) -> Any:
        raise BufferError("DLPack has no number for the simulated GPU; copy its arrays with .get()")

    # ---- from the host

    def set(self, arr: np.ndarray, stream: Any = None) -> None:
        """Take over the values of a host array of the same shape and dtype."""
        if type(arr) is not np.ndarray or arr.dtype != self.dtype or arr.shape != self.shape:
            raise ValueError(
                f"set: expected a host array of shape {self.shape} and dtype {self.dtype}; got {type(arr).__name__} "
                f"of shape {np.shape(arr)} and dtype {getattr(arr, 'dtype', None)}"
            )
        np.copyto(plain(self), arr)
        mark_written(self)

    def __reduce_ex__(self, protocol: Any) -> Any:
        return _unpickled, (type(self), self.get())

    def __copy__(self) -> Any:
        return self.copy()

    def __deepcopy__(self, memo: Any) -> Any:
        return self.copy()

    # ---- reading and writing parts

    def __getitem__(self, index: Any) -> Any:
        _refuse_mixed("indexing", type(self), index)
        return on_device(plain(self)[_plain_index(index, self.shape)], type(self))

    def __setitem__(self, index: Any, value: Any) -> None:
        _refuse_mixed("assignment", type(self), index, value)
        if not isinstance(value, (EmulatedArray, *_SCALARS)):
            raise TypeError(f"assignment: expected an array on {self.PLACE} or a number; got {type(value).__name__}")
        index = _plain_index(index, self.shape)
        target = plain(self)[index]
        _refuse_overlap("assignment", target, value)
        plain(self)[index] = plain(value)
        mark_written(self)

    def view(self, dtype: Any = None) -> Any:  # type: ignore[override]
        """The same memory, read as another dtype."""
        if isinstance(dtype, type) and issubclass(dtype, np.ndarray):
            raise TypeError(f"an array on {self.PLACE} has no view of another class")
        return np.ndarray.view(self) if dtype is None else np.ndarray.view(self, dtype)

    @_silent
    def astype(self, dtype: Any, order: Any = "K", casting: Any = None, subok: Any = None, copy: bool = True) -> Any:  # type: ignore[override]
        """The values as another dtype; without ``copy`` the array itself where nothing changes."""
        if not copy and np.dtype(dtype) == self.dtype and order == "K":
            return self
        return on_device(plain(self).astype(dtype, order=order, casting=casting or "unsafe"), type(self))

    def fill(self, value: Any) -> None:
        """Set every element to ``value``."""
        _refuse_mixed("fill", type(self), value)
        plain(self).fill(plain(value))
        mark_written(self)

    def sort(self, axis: int = -1, kind: Any = None) -> None:  # type: ignore[override]
        """Sort in place."""
        plain(self).sort(axis=axis, kind=kind)
        mark_written(self)

    def take(self, indices: Any, axis: int | None = None, out: Any = None) -> Any:  # type: ignore[override]
        """Elements along an axis; indices out of range wrap round, as in CuPy."""
        _refuse_mixed("take", type(self), indices, out)
        result = plain(self).take(plain(indices), axis=axis, out=plain(out), mode="wrap")
        return _delivered(result, out, type(self))

    # ---- NumPy's protocols

    @_silent
    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, out: Any = (), **options: Any) -> Any:
        kind, name = type(self), ufunc.__name__
        _refuse_mixed(name, kind, inputs, out)
        strange = [type(x).__name__ for x in inputs if not isinstance(x, (EmulatedArray, *_SCALARS))]
        if strange:
            raise TypeError(f"{name}: expected arrays on {kind.PLACE} and numbers; got {strange[0]}")
        if method != "__call__" or not options.keys() <= {"dtype", "casting"}:
            raise TypeError(f"{name}: not every ufunc of CuPy has {method} with the arguments {sorted(options)}")
        if out:
            _refuse_overlap(name, out[0], *inputs)
            options["out"] = plain(out)
        result = ufunc(*plain(inputs), **options)
        return _delivered(result, out[0] if len(out) == 1 else out or None, kind)

    def __array_function__(self, function: Any, types: Any, args: Any, kwargs: Any) -> Any:
        if function.__name__ not in NAMES:
            return NotImplemented
        return getattr(self.MODULE, function.__name__)(*args, **kwargs)


def _unpickled(kind: type[EmulatedArray], host: np.ndarray) -> Any:
    return _copied(host, kind)


def _delivered(result: Any, out: Any, kind: type[EmulatedArray]) -> Any:
    """``out`` (one array or several) if the result went there, else ``result`` on the device."""
    if out is None:
        return on_device(result, kind)
    for array in out if isinstance(out, tuple) else (out,):
        mark_written(array)
    return out


def _plain_index(index: Any, shape: tuple[int, ...]) -> tuple[Any, ...]:
    """``index`` for a plain array, so that indexing does what it does in CuPy.

    Integer arrays wrap round, and the result always has dimensions or none (``x[0]`` of a vector is
    a view without dimensions, not a scalar), for which there must be an ellipsis in the index.
    """
    parts = list(index) if isinstance(index, tuple) else [index]
    if not any(part is Ellipsis for part in parts):
        parts.append(Ellipsis)
    used = sum(_axes_of(part) for part in parts)
    axis, result = 0, []
    for part in parts:
        if isinstance(part, EmulatedArray):
            part = plain(part)
            if part.dtype.kind in "iu" and axis < len(shape) and shape[axis]:
                part = part.astype(np.int64) % shape[axis]
        result.append(part)
        axis += len(shape) - used if part is Ellipsis else _axes_of(part)
    return tuple(result)


def _axes_of(part: Any) -> int:
    """How many dimensions a part of an index stands for."""
    if part is None or part is Ellipsis:
        return 0
    if isinstance(part, bool | np.bool_):
        return 0
    return part.ndim if isinstance(part, np.ndarray) and part.dtype == np.bool_ else 1


def _method(name: str) -> Callable[..., Any]:
    """NumPy's method of that name, on plain arrays."""
    allowed = METHODS[name].split()

    @_silent
    def method(self: EmulatedArray, *args: Any, **options: Any) -> Any:
        if not options.keys() <= set(allowed):
            raise TypeError(f"{name} of CuPy's arrays takes {', '.join(allowed)}; got {', '.join(options)}")
        _refuse_mixed(name, type(self), args, *options.values())
        out = options.get("out")
        result = getattr(plain(self), name)(*plain(args), **{key: plain(value) for key, value in options.items()})
        return _delivered(result, out, type(self))

    method.__name__ = method.__qualname__ = name
    return method


def _absent(name: str) -> property:
    def absent(self: EmulatedArray) -> Any:
        raise AttributeError(f"{name}: rawgrad's arrays on a GPU have no such method (see METHODS in {__name__})")

    return property(absent)


for _name in dir(np.ndarray):
    _own = _name.startswith("_") or _name in vars(EmulatedArray)
    if not _own and (callable(getattr(np.ndarray, _name)) or _name == "flat"):
        setattr(EmulatedArray, _name, _method(_name) if _name in METHODS else _absent(_name))


# ---- the array module


class ArrayModule:
    """``numpy``, as far as CuPy has it and rawgrad uses it (:data:`NAMES`), for arrays of one kind.

    Args:
        kind: :class:`EmulatedArray` or a subclass, whose ``MODULE`` this becomes.
    """

    cuda = streams

    def __init__(self, kind: type[EmulatedArray]) -> None:
        self._kind = kind
        kind.MODULE = self

    @property
    def ndarray(self) -> type[EmulatedArray]:
        """The class of the arrays."""
        return self._kind

    def __getattr__(self, name: str) -> Any:
        if name not in NAMES:
            raise AttributeError(
                f"rawgrad does not use {name!r} on a GPU; if CuPy has it too, it may be added to NAMES in {__name__}"
            )
        value = _Function(name, getattr(np, name), self._kind)
        self.__dict__[name] = value
        return value

    def empty(self, shape: Any, dtype: Any = float, order: str = "C") -> Any:
        """A new array that nothing has written."""
        return _allocate(self._kind, shape, dtype, order, forgotten=True)

    def empty_like(self, prototype: Any, dtype: Any = None) -> Any:
        """A new array like ``prototype`` that nothing has written."""
        _refuse_mixed("empty_like", self._kind, prototype)
        like = plain(prototype)
        dtype = np.dtype(dtype or like.dtype)
        strides = tuple(s // like.itemsize * dtype.itemsize for s in _dense(like))
        return _allocate(self._kind, like.shape, dtype, strides, forgotten=True)

    def array(self, obj: Any, dtype: Any = None, copy: bool = True, order: str = "K") -> Any:
        """A copy of ``obj``, a host array, an array of the device, numbers or nested lists of them."""
        if isinstance(obj, EmulatedArray):
            _refuse_mixed("array", self._kind, obj)
        elif hasattr(obj, "__cuda_array_interface__"):
            raise DeviceError(
                f"array: {type(obj).__qualname__} is in the memory of a real GPU, out of reach from {self._kind.PLACE}"
            )
        if not copy and type(obj) is self._kind and dtype in (None, obj.dtype):
            return obj
        return _copied(np.asarray(plain(obj), dtype=dtype, order=order), self._kind)  # type: ignore[call-overload]

    def asarray(self, a: Any, dtype: Any = None) -> Any:
        """``a`` itself where it is an array of the device and of that dtype, else a copy."""
        return self.array(a, dtype=dtype, copy=False)

    def ascontiguousarray(self, a: Any, dtype: Any = None) -> Any:
        """``a`` itself where it is a C-contiguous array of the device, else a copy; at least one dimension."""
        if type(a) is self._kind and a.ndim and a.flags.c_contiguous and dtype in (None, a.dtype):
            return a
        new = self.array(a, dtype=dtype, order="C")
        return new if new.ndim else new.reshape(1)

    def from_dlpack(self, array: Any) -> Any:
        """Only arrays of the device itself: nothing else shares memory with a simulated GPU."""
        if type(array) is self._kind:
            return array
        raise DeviceError(
            f"from_dlpack: {type(array).__qualname__} cannot share its memory with {self._kind.PLACE}; copy it instead"
        )

    def copyto(self, dst: Any, src: Any) -> None:
        """Write the values of ``src`` into ``dst``."""
        dst[...] = src

    def where(self, condition: Any, x: Any, y: Any) -> Any:
        """``x`` where ``condition``, an array, holds, and ``y`` elsewhere."""
        _refuse_mixed("where", self._kind, condition, x, y)
        if type(condition) is not self._kind:
            raise TypeError(f"where: the condition must be an array on {self._kind.PLACE}; CuPy takes nothing else")
        return on_device(np.where(plain(condition), plain(x), plain(y)), self._kind)

    @staticmethod
    def get_default_memory_pool() -> Any:
        """The account of the device's memory."""
        return pool


class _Function:
    """A function of NumPy for arrays of one kind."""

    def __init__(self, name: str, function: Any, kind: type[EmulatedArray]) -> None:
        self.__name__ = name
        self._function = function
        self._kind = kind

    @_silent
    def __call__(self, *args: Any, **options: Any) -> Any:
        if _NUMPY_ONLY & options.keys():
            raise TypeError(
                f"{self.__name__}: not every function of CuPy has {', '.join(_NUMPY_ONLY & options.keys())}"
            )
        _refuse_mixed(self.__name__, self._kind, args, *options.values())
        out = options.get("out")
        result = self._function(*plain(args), **{key: plain(value) for key, value in options.items()})
        return _delivered(result, out, self._kind)

    def at(self, a: Any, indices: Any, b: Any) -> None:
        """Combine ``b`` into ``a`` at ``indices``, as often as an index comes; ufuncs alone have it."""
        _refuse_mixed(f"{self.__name__}.at", self._kind, a, indices, b)
        self._function.at(plain(a), _plain_index(indices, a.shape), plain(b))
        mark_written(a)


MODULE = ArrayModule(EmulatedArray)
DEVICE = Device("cuda", EmulatedArray, MODULE, "simulated")
register_device(DEVICE)
