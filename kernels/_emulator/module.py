"""The array module of the simulated GPU: to its arrays what ``cupy`` is to CuPy's.

It is ``numpy``, restricted to what CuPy has too and rawgrad uses (:data:`NAMES`); the test
``tests/kernels/test_emulated_arrays.py`` compares the list with the real CuPy.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .._devices import Device, register_device
from .._errors import DeviceError
from . import streams
from .arrays import (
    EmulatedArray,
    allocate,
    copied,
    delivered,
    dense,
    mark_written,
    on_device,
    plain,
    plain_index,
    recorded,
    refuse_in_capture,
    refuse_mixed,
    silent,
)
from .memory import pool

#: What rawgrad uses of the array module; all of it exists in CuPy.
NAMES = tuple(
    """abs add arange array asarray ascontiguousarray bitwise_and bitwise_or bitwise_xor broadcast_to ceil clip
    concatenate copyto cos cuda cumsum empty empty_like equal exp flip floor floor_divide from_dlpack full full_like
    get_default_memory_pool greater greater_equal invert isfinite isinf isnan less less_equal log log1p max
    may_share_memory maximum minimum moveaxis not_equal ones ones_like round sign sin sqrt square stack sum tril triu
    where zeros zeros_like""".split()
)

#: Arguments of NumPy's functions that CuPy's lack, in all of them or in many.
_NUMPY_ONLY = {"initial", "like", "subok", "where"}

#: Of more arrays CuPy's concatenate copies the addresses to the GPU (``_concatenate`` in its sources).
_JOINED_WITHOUT_HOST = 8


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

    @recorded()
    def empty(self, shape: Any, dtype: Any = float, order: str = "C") -> Any:
        """A new array that nothing has written."""
        return allocate(self._kind, shape, dtype, order, forgotten=True)

    @recorded()
    def empty_like(self, prototype: Any, dtype: Any = None) -> Any:
        """A new array like ``prototype`` that nothing has written."""
        refuse_mixed("empty_like", self._kind, prototype)
        like = plain(prototype)
        dtype = np.dtype(dtype or like.dtype)
        strides = tuple(s // like.itemsize * dtype.itemsize for s in dense(like))
        return allocate(self._kind, like.shape, dtype, strides, forgotten=True)

    def array(self, obj: Any, dtype: Any = None, copy: bool = True, order: str = "K") -> Any:
        """A copy of ``obj``, a host array, an array of the device, numbers or nested lists of them."""
        if isinstance(obj, EmulatedArray):
            refuse_mixed("array", self._kind, obj)
        elif hasattr(obj, "__cuda_array_interface__"):
            raise DeviceError(
                f"array: {type(obj).__qualname__} is in the memory of a real GPU, out of reach from {self._kind.PLACE}"
            )
        else:
            refuse_in_capture("values of the host were copied to the device")
        if not copy and type(obj) is self._kind and dtype in (None, obj.dtype):
            return obj
        return self._copied(obj, dtype, order)

    @recorded()
    def _copied(self, obj: Any, dtype: Any, order: str) -> Any:
        return copied(np.asarray(plain(obj), dtype=dtype, order=order), self._kind)  # type: ignore[call-overload]

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

    @recorded()
    def where(self, condition: Any, x: Any, y: Any) -> Any:
        """``x`` where ``condition``, an array, holds, and ``y`` elsewhere."""
        refuse_mixed("where", self._kind, condition, x, y)
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

    def __call__(self, *args: Any, **options: Any) -> Any:
        """What CuPy's function gives."""
        if self.__name__ in ("concatenate", "stack") and len(args[0]) > _JOINED_WITHOUT_HOST:
            refuse_in_capture(f"{self.__name__} of {len(args[0])} arrays, whose addresses CuPy copies from the host,")
        return self._called(*args, **options)

    @recorded()
    @silent
    def _called(self, *args: Any, **options: Any) -> Any:
        if _NUMPY_ONLY & options.keys():
            raise TypeError(
                f"{self.__name__}: not every function of CuPy has {', '.join(_NUMPY_ONLY & options.keys())}"
            )
        refuse_mixed(self.__name__, self._kind, args, *options.values())
        out = options.get("out")
        result = self._function(*plain(args), **{key: plain(value) for key, value in options.items()})
        return delivered(result, out, self._kind)

    @recorded(in_place=True)
    def at(self, a: Any, indices: Any, b: Any) -> None:
        """Combine ``b`` into ``a`` at ``indices``, as often as an index comes; ufuncs alone have it."""
        refuse_mixed(f"{self.__name__}.at", self._kind, a, indices, b)
        self._function.at(plain(a), plain_index(indices, a.shape), plain(b))
        mark_written(a)


MODULE = ArrayModule(EmulatedArray)
DEVICE = Device("cuda", EmulatedArray, MODULE, "simulated")
register_device(DEVICE)
