"""Launching the Numba twins of CUDA kernels, on a GPU or in Numba's simulator.

A twin is a Python function that says what the kernel of the same name in the operation's ``.cu`` file says,
in Numba-CUDA.  Its template parameters are the parameters of a function around it::

    @kernel
    def activation_forward_v2_vector(T):
        SIZE = 16 // size_of(T)

        def body(x, y, n):
            ...

        return body

    activation_forward_v2_vector[x.dtype](grid, block, x, y, x.size)

Inside, T is the type itself, ``np.float32`` or ``np.float64``; what the ``.cu`` file calls ``constexpr`` is
computed before the body.  An array arrives without a copy and without dimensions, as the pointer of the
``.cu`` file does; ``None``, the null pointer, as an array of no elements.  A named tuple arrives as the
struct that it is there, with pairs taken apart into the letters of the legends.

On a GPU the kernel runs on CuPy's current stream.  In the simulator it sees arrays through :class:`_Pointer`,
which knows where they end and what of them was written.
"""

from __future__ import annotations

from . import _threads  # isort: skip  # noqa: F401  (before Numba is imported, which then decides how many threads it starts)

import collections
import functools
import importlib
import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ._cuda.device import own_folder_hidden
from ._cuda.simulator import simulated
from ._devices import device_of, is_array
from ._dtypes import is_half
from ._errors import BackendError, LaunchError
from ._launch import ceil_div, runtime_of
from ._tensor_list import CHUNK, THREADS, Arrays

with own_folder_hidden():  # the package numba-cuda imports parts of NVIDIA's package `cuda`
    cuda: Any = importlib.import_module("numba.cuda")

__all__ = ["Kernel", "cuda", "device", "erfc_of", "exp_of", "expm1_of", "fma_of", "kernel", "launch_each"]
__all__ += ["log1p_of", "log_of", "size_of", "sqrt_of", "tanh_of"]

SIMULATED = simulated()


# ---- what kernels call


def device(function: Callable[..., Any]) -> Any:
    """What ``__device__`` is in CUDA C++: ``function`` can be called by kernels."""
    return function if SIMULATED else cuda.jit(device=True)(function)


# Functions of real numbers, as in _cuda/math.cuh.  Those of `math` become CUDA's for float and double; the simulator
# calls them as they are, and in Python they compute in double and refuse what overflows.
exp_of = np.exp if SIMULATED else math.exp
expm1_of = np.expm1 if SIMULATED else math.expm1
log_of = np.log if SIMULATED else math.log
log1p_of = np.log1p if SIMULATED else math.log1p
tanh_of = np.tanh if SIMULATED else math.tanh
sqrt_of = np.sqrt if SIMULATED else math.sqrt
erfc_of = math.erfc


def _fma(a: Any, b: Any, c: Any) -> Any:
    return cuda.fma(a, b, c)


def _simulated_fma(a: Any, b: Any, c: Any) -> Any:
    """Of float32 in double, where the product is exact; of float64 rounded twice."""
    return type(a)(float(a) * float(b) + float(c))


fma_of = _simulated_fma if SIMULATED else device(_fma)


def size_of(T: Any) -> int:
    """Bytes of a number."""
    return np.dtype(T).itemsize


# ---- kernels


class Kernel:
    """A kernel in Numba-CUDA; ``kernel[templates]`` is an instance of it.

    Args:
        make: takes the template arguments and gives the function that a thread runs.
    """

    def __init__(self, make: Callable[..., Callable[..., None]]) -> None:
        self._make = make
        self._instances: dict[Any, Instance] = {}
        self.name = make.__name__
        functools.update_wrapper(self, make)

    def __getitem__(self, templates: Any) -> Any:  # an Instance; launchers name the type of the other kernels
        instance = self._instances.get(templates)
        if instance is None:
            values = templates if isinstance(templates, tuple) else (templates,)
            for value in values:
                if isinstance(value, np.dtype) and is_half(value):
                    raise BackendError(f"{self.name}: in Numba it is for float32 and float64; got {value}")
            types = [value.type if isinstance(value, np.dtype) else value for value in values]
            instance = self._instances[templates] = Instance(self.name, self._make(*types))
        return instance

    def __call__(self, grid: Any, block: Any, *arguments: Any) -> None:
        """Launch a kernel that has no template parameters."""
        self[()](grid, block, *arguments)


kernel = Kernel


class Instance:
    """One instance of a kernel: callable with ``(grid, block, *arguments)``, as those of ``_launch.py``.

    Attributes:
        name: the kernel's.
        function: what a thread runs, in Python.
    """

    def __init__(self, name: str, function: Callable[..., None]) -> None:
        self.name = name
        self.function = function
        self._compiled = cuda.jit(function)

    def __call__(self, grid: Any, block: Any, *arguments: Any) -> None:
        """Launch.

        Raises:
            LaunchError: Numba cannot compile the kernel, or the simulator found a fault.
        """
        grid = grid if isinstance(grid, tuple) else (grid,)
        if 0 in grid:
            return  # there is nothing to do
        like = next(argument for argument in arguments if is_array(argument))
        on_cupy = device_of(like).array_type.__module__.partition(".")[0] == "cupy"
        if on_cupy is SIMULATED:
            where = "arrays of CuPy" if on_cupy else "arrays of the simulated GPU"
            what = "the simulator" if SIMULATED else "an NVIDIA GPU"
            raise BackendError(f"{self.name}: Numba runs its kernels on {what} in this process; got {where}")
        (self._simulate if SIMULATED else self._launch)(grid, block, arguments, like)

    def _launch(self, grid: Any, block: Any, arguments: tuple[Any, ...], like: Any) -> None:
        """On the GPU.  Numba is told not to wait for the stream that an array names: it is the one used here."""
        stream = runtime_of(like).stream()
        given = []
        for argument in arguments:
            if argument is None:
                given.append(_null(like.dtype.str))
            elif is_array(argument):
                given.append(cuda.as_cuda_array(argument.reshape(-1), sync=False))
            else:
                given.append(_struct(argument) if isinstance(argument, tuple) else argument)
        try:
            self._compiled[grid, block, cuda.external_stream(stream) if stream else 0](*given)
        except Exception as error:
            if type(error).__module__.partition(".")[0] not in ("numba", "numba_cuda"):
                raise
            raise LaunchError(f"{self.name}: Numba cannot compile or launch it: {error}") from error

    def _simulate(self, grid: Any, block: Any, arguments: tuple[Any, ...], like: Any) -> None:
        """In the simulator.  What overflows or is not a number makes no noise, as on a GPU."""
        pointers: list[_Pointer] = []
        given = []
        for argument in arguments:
            if argument is None or is_array(argument):
                given.append(_Pointer(argument))
                pointers.append(given[-1])
            else:
                given.append(_struct(argument) if isinstance(argument, tuple) else argument)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            try:
                self._compiled[grid, block](*given)
            except Exception as error:  # whatever a thread raised
                raise LaunchError(
                    f"{self.name}, grid {grid}, block {block}: {type(error).__name__}: {error}"
                ) from error
        for pointer in pointers:
            pointer.settle()


def launch_each(kernel: Kernel, templates: tuple[Any, ...], lists: Sequence[Arrays | None], *arguments: Any) -> None:
    """Launch ``kernel[T, *templates](*arrays, *arguments)`` once for each place in the lists, as `_tensor_list.launch`.

    Numba's kernels take no table of pointers, so there is a launch for each tensor; its blocks own the same chunks.
    """
    for i, param in enumerate(lists[0] or ()):
        arrays = [None if each is None else each[i] for each in lists]
        kernel[(param.dtype, *templates)](ceil_div(param.size, CHUNK), THREADS, *arrays, *arguments)


#: The pairs of a Geometry, in the letters of its legend.
_LETTERS = {"stride": ("sh", "sw"), "padding": ("ph", "pw"), "dilation": ("dh", "dw")}


@functools.cache
def _struct_of(kind: Any) -> Any:
    names = [name for field in kind._fields for name in _LETTERS.get(field, (field,))]
    return collections.namedtuple(kind.__name__, names)


def _struct(value: Any) -> Any:
    """A named tuple of numbers and of pairs of numbers as one of numbers."""
    numbers = [number for member in value for number in (member if isinstance(member, tuple) else (member,))]
    kind: Any = type(value)
    return _struct_of(kind)(*numbers)


@functools.cache
def _null(dtype: str) -> Any:
    return cuda.device_array(0, np.dtype(dtype))


class _Pointer:
    """An array as a simulated thread sees it, by one index.

    An index outside, also a negative one, raises IndexError; so does reading what nothing has written.

    Args:
        array: None for a null pointer.
    """

    __slots__ = ("_array", "_flat", "_size", "_written")

    def __init__(self, array: Any) -> None:
        from ._emulator.arrays import plain

        self._array = array
        self._flat = np.empty(0) if array is None else plain(array).reshape(-1)
        self._size = len(self._flat)
        self._written = None if array is None else _written(array)

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, i: Any) -> Any:
        if not 0 <= i < self._size:
            raise IndexError(f"element {i} of an array of {self._size} is read")
        if self._written is not None and not self._written[i]:
            raise IndexError(f"element {i} is read, but nothing has written it")
        return self._flat[i]

    def __setitem__(self, i: Any, value: Any) -> None:
        if not 0 <= i < self._size:
            raise IndexError(f"element {i} of an array of {self._size} is written")
        self._flat[i] = value
        if self._written is not None:
            self._written[i] = True

    def settle(self) -> None:
        """Tell the memory's account what was written."""
        from ._emulator.memory import CELL, written_map

        cells, offset = written_map(self._array)
        if cells is None or self._written is None:
            return
        places = offset + np.flatnonzero(np.repeat(self._written, self._flat.itemsize))
        np.bitwise_or.at(cells, places // CELL, (1 << places % CELL).astype(np.uint8))


def _written(array: Any) -> np.ndarray | None:
    """For each element whether it was written; None if all are."""
    from ._emulator.memory import CELL, written_map

    cells, offset = written_map(array)
    if cells is None:
        return None
    bits = np.unpackbits(cells, bitorder="little").reshape(-1, 8)[:, :CELL].reshape(-1)
    written: Any = bits[offset : offset + array.nbytes].reshape(array.size, array.itemsize).all(1)
    return written
