"""The arrays of the simulated GPU.

:class:`EmulatedArray` is a NumPy array that behaves like CuPy's where the two differ: it does not mix
with arrays of the host, what it computes has dimensions or none but is never a NumPy scalar, its values
reach the host only through ``get``, ``item`` and their like, an index array that is out of range wraps
round, and it has the methods and keyword arguments that CuPy's arrays have and rawgrad uses
(:data:`METHODS`), no others.  So code that runs here has a good chance to run there.

One gap cannot be closed: ``np.asarray(array)`` asks a subclass of NumPy's array nothing and gives its
memory away, where CuPy refuses.
"""

from __future__ import annotations

import functools
import math
import operator
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np

from .._dtypes import kind_of
from .._errors import CaptureError, LaunchError
from .copies import clocks, pinned
from .memory import POISON, allocator, first_unwritten, mark_written, pool, written_map
from .streams import get_current_stream, recording

__all__ = ["METHODS", "EmulatedArray", "mark_written", "on_device", "plain", "written_map"]

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
_SCALARS = (bool, int, float, complex, np.generic)

#: A decorator: a GPU gives no warning of NaN, infinity or a division by zero.
silent = np.errstate(all="ignore")


def recorded(in_place: bool = False) -> Callable[[Callable[..., Any]], Any]:
    """A decorator of what works on arrays of the device: a stream that is being captured notes the call.

    Args:
        in_place: it writes into its first argument and returns nothing.
    """

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def call(*args: Any, **options: Any) -> Any:
            graph = recording()
            return function(*args, **options) if graph is None else graph.call(function, args, options, in_place)

        return call

    return decorate


def refuse_in_capture(what: str) -> None:
    """Nothing passes between host and device while the current stream is being captured."""
    if recording() is not None:
        raise CaptureError(f"{what} while its stream is being captured")


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
        block = pool.block_of(value)
        if block is None:
            return copied(value, kind)
        view = np.ndarray.view(value, kind)
        view._root = block.root and block.root()  # as in CuPy, a view refers to the array that it is a view of
        return view
    if isinstance(value, np.generic):
        return copied(np.asarray(value), kind)  # a device has no scalars
    if type(value) in (list, tuple):
        return type(value)(on_device(member, kind) for member in value)
    return value


def allocate(
    kind: type[EmulatedArray], shape: Any, dtype: Any, strides: tuple[int, ...] | str = "C", forgotten: bool = False
) -> Any:
    """A new array on an allocation of its own.

    Args:
        strides: may be the order "C" or "F".
        forgotten: nothing is going to be written at once.
    """
    dtype = np.dtype(dtype)
    if kind_of(dtype) not in "biufc":
        raise ValueError(f"Unsupported dtype {dtype}")  # as CuPy says it
    shape = (operator.index(shape),) if hasattr(shape, "__index__") else tuple(map(operator.index, shape))
    memory, start, block = allocator.allocate(math.prod(shape) * dtype.itemsize)
    layout: Any = {"order": strides} if isinstance(strides, str) else {"strides": strides}
    array = np.ndarray.__new__(kind, shape, dtype, buffer=memory, offset=start, **layout)
    block.root = weakref.ref(array)
    if forgotten and block.nbytes:
        memory[start : start + block.nbytes] = POISON
        block.forget()
    return array


def dense(array: np.ndarray) -> tuple[int, ...]:
    """Strides without gaps, in the order of ``array``'s own (``order="K"``)."""
    strides, step = [0] * array.ndim, array.itemsize
    for axis in sorted(range(array.ndim), key=lambda d: (abs(array.strides[d]), -d)):
        strides[axis] = step
        step *= max(array.shape[axis], 1)
    return tuple(strides)


def copied(array: np.ndarray, kind: type[EmulatedArray]) -> Any:
    new = allocate(kind, array.shape, array.dtype, dense(array))
    np.copyto(plain(new), array)
    return new


def refuse_mixed(what: str, kind: type[EmulatedArray], *values: Any) -> None:
    """All arrays among ``values``, and in lists among them, must be of ``kind``; they are used now."""
    for value in values:
        if isinstance(value, np.ndarray):
            if clocks.following:
                clocks.used(value, get_current_stream().ptr)
            if type(value) is not kind:
                other = value.PLACE if isinstance(value, EmulatedArray) else "the host"
                raise TypeError(f"{what}: an array on {kind.PLACE} does not mix with one on {other}")
        elif type(value) in (list, tuple):
            refuse_mixed(what, kind, *value)


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
    _root: Any = None

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
            CaptureError: the current stream is being captured.
        """
        refuse_in_capture("an array was read on the host")
        if clocks.following:
            clocks.used(self, get_current_stream().ptr)
            get_current_stream().synchronize()
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
        refuse_in_capture("an array was printed")
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
        """Take over the values of a host array of the same shape and dtype.

        With a ``stream``, and from pinned memory, some time later (:mod:`.copies`).
        """
        refuse_in_capture("an array was written by the host")
        if type(arr) is not np.ndarray or arr.dtype != self.dtype or arr.shape != self.shape:
            raise ValueError(
                f"set: expected a host array of shape {self.shape} and dtype {self.dtype}; got {type(arr).__name__} "
                f"of shape {np.shape(arr)} and dtype {getattr(arr, 'dtype', None)}"
            )
        source = pinned(arr) if stream is not None and self.nbytes and self.flags.c_contiguous else None
        if source is not None:
            clocks.copy(self, plain(self), source, stream.ptr)
            return
        if clocks.following:
            clocks.used(self, (stream or get_current_stream()).ptr)
        np.copyto(plain(self), arr)
        mark_written(self)

    def __reduce_ex__(self, protocol: Any) -> Any:
        return _unpickled, (type(self), self.get())

    def __copy__(self) -> Any:
        return self.copy()

    def __deepcopy__(self, memo: Any) -> Any:
        return self.copy()

    # ---- reading and writing parts

    @recorded()
    def __getitem__(self, index: Any) -> Any:
        refuse_mixed("indexing", type(self), index)
        return on_device(plain(self)[plain_index(index, self.shape)], type(self))

    @recorded(in_place=True)
    def __setitem__(self, index: Any, value: Any) -> None:
        refuse_mixed("assignment", type(self), self, index, value)
        if not isinstance(value, (EmulatedArray, *_SCALARS)):
            raise TypeError(f"assignment: expected an array on {self.PLACE} or a number; got {type(value).__name__}")
        index = plain_index(index, self.shape)
        target = plain(self)[index]
        _refuse_overlap("assignment", target, value)
        plain(self)[index] = plain(value)
        mark_written(self)

    def view(self, dtype: Any = None) -> Any:  # type: ignore[override]
        """The same memory, read as another dtype."""
        if isinstance(dtype, type) and issubclass(dtype, np.ndarray):
            raise TypeError(f"an array on {self.PLACE} has no view of another class")
        return np.ndarray.view(self) if dtype is None else np.ndarray.view(self, dtype)

    @recorded()
    @silent
    def astype(self, dtype: Any, order: Any = "K", casting: Any = None, subok: Any = None, copy: bool = True) -> Any:
        """The values as another dtype; without ``copy`` the array itself where nothing changes."""
        if not copy and np.dtype(dtype) == self.dtype and order == "K":
            return self
        return on_device(plain(self).astype(dtype, order=order, casting=casting or "unsafe"), type(self))

    @recorded(in_place=True)
    def fill(self, value: Any) -> None:
        """Set every element to ``value``."""
        refuse_mixed("fill", type(self), self, value)
        plain(self).fill(plain(value))
        mark_written(self)

    @recorded(in_place=True)
    def sort(self, axis: int = -1, kind: Any = None) -> None:
        """Sort in place."""
        plain(self).sort(axis=axis, kind=kind)
        mark_written(self)

    @recorded()
    def take(self, indices: Any, axis: int | None = None, out: Any = None) -> Any:
        """Elements along an axis; indices out of range wrap round, as in CuPy."""
        refuse_mixed("take", type(self), self, indices, out)
        result = plain(self).take(plain(indices), axis=axis, out=plain(out), mode="wrap")
        return delivered(result, out, type(self))

    # ---- NumPy's protocols

    @recorded()
    @silent
    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, out: Any = (), **options: Any) -> Any:
        kind, name = type(self), ufunc.__name__
        refuse_mixed(name, kind, inputs, out)
        strange = [type(x).__name__ for x in inputs if not isinstance(x, (EmulatedArray, *_SCALARS))]
        if strange:
            raise TypeError(f"{name}: expected arrays on {kind.PLACE} and numbers; got {strange[0]}")
        if method != "__call__" or not options.keys() <= {"dtype", "casting"}:
            raise TypeError(f"{name}: not every ufunc of CuPy has {method} with the arguments {sorted(options)}")
        if out:
            _refuse_overlap(name, out[0], *inputs)
            options["out"] = plain(out)
        result = ufunc(*plain(inputs), **options)
        return delivered(result, out[0] if len(out) == 1 else out or None, kind)

    def __array_function__(self, function: Any, types: Any, args: Any, kwargs: Any) -> Any:
        ours = getattr(self.MODULE, function.__name__, None)
        return NotImplemented if ours is None else ours(*args, **kwargs)


def _unpickled(kind: type[EmulatedArray], host: np.ndarray) -> Any:
    return copied(host, kind)


def delivered(result: Any, out: Any, kind: type[EmulatedArray]) -> Any:
    """``out`` (one array or several) if the result went there, else ``result`` on the device."""
    if out is None:
        return on_device(result, kind)
    for array in out if isinstance(out, tuple) else (out,):
        mark_written(array)
    return out


def plain_index(index: Any, shape: tuple[int, ...]) -> tuple[Any, ...]:
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

    @silent
    def method(self: EmulatedArray, *args: Any, **options: Any) -> Any:
        if not options.keys() <= set(allowed):
            raise TypeError(f"{name} of CuPy's arrays takes {', '.join(allowed)}; got {', '.join(options)}")
        refuse_mixed(name, type(self), self, args, *options.values())
        out = options.get("out")
        result = getattr(plain(self), name)(*plain(args), **{key: plain(value) for key, value in options.items()})
        return delivered(result, out, type(self))

    method.__name__ = method.__qualname__ = name
    return recorded()(method)


def _absent(name: str) -> property:
    def absent(self: EmulatedArray) -> Any:
        raise AttributeError(f"{name}: rawgrad's arrays on a GPU have no such method (see METHODS in {__name__})")

    return property(absent)


for _name in dir(np.ndarray):
    _own = _name.startswith("_") or _name in vars(EmulatedArray)
    if not _own and (callable(getattr(np.ndarray, _name)) or _name == "flat"):
        setattr(EmulatedArray, _name, _method(_name) if _name in METHODS else _absent(_name))
