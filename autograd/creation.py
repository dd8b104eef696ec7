"""Making tensors."""

from __future__ import annotations

import operator
from typing import Any

import numpy as np

from ..kernels._devices import Device, device_named, device_of, is_array
from ..kernels._dtypes import kind_of
from ..kernels._errors import ArgumentError, DeviceError, DtypeError
from .random import Generator, default_generator
from .tensor import DEFAULT_FLOAT, Tensor, as_dtype


def tensor(data: Any, *, dtype: Any = None, device: str | None = None, requires_grad: bool = False) -> Tensor:
    """A new tensor with a copy of ``data``.

    Args:
        data: numbers, nested lists, a tensor or an array, also one of another library that is on the
            GPU and says so by ``__cuda_array_interface__``.
        dtype: of the result; by default that of an array, float32 for Python floats, int64 for
            Python integers, bool for booleans.
        device: where it lives; by default where ``data`` is, ``"cpu"`` for host data.
        requires_grad: whether gradients with respect to it are wanted.

    Raises:
        DtypeError, ShapeError: ``data`` are no numbers or do not form an array.
        DeviceError: the device does not exist here.
    """
    array = Tensor(data).array
    here = device_of(array)
    where = here if device is None else device_named(device)
    if dtype is not None:
        array = array.astype(as_dtype(dtype))
    if where is not here:
        array = where.from_host(here.to_host(array))
    else:
        array = where.array_module.array(array, order="C")
    return Tensor(array, requires_grad)


def as_tensor(data: Any, *, dtype: Any = None, device: str | None = None) -> Tensor:
    """``data`` as a tensor, sharing its memory where possible."""
    result = data if isinstance(data, Tensor) else Tensor(data)
    return result.to(dtype=dtype, device=device)


def from_numpy(array: np.ndarray) -> Tensor:
    """A tensor that shares the memory of a NumPy array."""
    if not isinstance(array, np.ndarray):
        raise DtypeError(f"from_numpy: expected a NumPy array; got {type(array).__name__}")
    as_dtype(array.dtype)
    return Tensor(np.asarray(array))


#: DLPack's numbers for memory that the CPU can read: its own and pinned; and for an NVIDIA GPU's: its own and managed.
_ON_HOST, _ON_CUDA = (1, 3), (2, 13)


def from_dlpack(source: Any) -> Tensor:
    """A tensor that shares the memory of any CPU or GPU array with ``__dlpack__`` (torch's, JAX's, CuPy's).

    On a GPU the current stream waits for the work that fills the array.

    Raises:
        DtypeError: ``source`` does not offer DLPack, or holds no numbers.
        DeviceError: it lives where rawgrad has no device; the simulated GPU shares no memory.
    """
    if isinstance(source, Tensor):
        source._require_detached("from_dlpack")
        return source.detach()
    if is_array(source):
        return Tensor(source)
    if not (hasattr(source, "__dlpack__") and hasattr(source, "__dlpack_device__")):
        raise DtypeError(f"from_dlpack: expected an array with __dlpack__; got {type(source).__name__}")
    kind = int(source.__dlpack_device__()[0])
    if kind in _ON_HOST:
        try:
            return Tensor(np.from_dlpack(source))
        except (BufferError, RuntimeError) as error:  # NumPy takes no bfloat16 this way
            raise DtypeError(f"from_dlpack: NumPy does not take this {type(source).__name__}: {error}") from None
    if kind in _ON_CUDA:
        return Tensor(device_named("cuda").array_module.from_dlpack(source))
    raise DeviceError(f"from_dlpack: {type(source).__name__} lives on a device of DLPack's kind {kind}, unknown here")


def _size(operation: str, size: tuple[Any, ...]) -> tuple[int, ...]:
    if len(size) == 1 and isinstance(size[0], list | tuple):
        size = tuple(size[0])
    try:
        result = tuple(operator.index(s) for s in size)
    except TypeError:
        raise ArgumentError(f"{operation}: sizes must be integers; got {size}") from None
    if min(result, default=0) < 0:
        raise ArgumentError(f"{operation}: sizes must be at least 0; got {result}")
    return result


def _device(name: str | None) -> Device:
    return device_named("cpu" if name is None else name)


def full(
    size: tuple[int, ...], fill_value: Any, *, dtype: Any = None, device: str | None = None, requires_grad: bool = False
) -> Tensor:
    """A tensor filled with one value."""
    dtype = Tensor(fill_value).dtype if dtype is None else as_dtype(dtype)
    return Tensor(_device(device).array_module.full(_size("full", (size,)), fill_value, dtype), requires_grad)


def zeros(*size: Any, dtype: Any = None, device: str | None = None, requires_grad: bool = False) -> Tensor:
    """A tensor of zeros, float32 by default: ``zeros(2, 3)`` or ``zeros((2, 3))``."""
    return full(_size("zeros", size), 0, dtype=dtype or DEFAULT_FLOAT, device=device, requires_grad=requires_grad)


def ones(*size: Any, dtype: Any = None, device: str | None = None, requires_grad: bool = False) -> Tensor:
    """A tensor of ones, float32 by default."""
    return full(_size("ones", size), 1, dtype=dtype or DEFAULT_FLOAT, device=device, requires_grad=requires_grad)


def full_like(like: Tensor, fill_value: Any, *, dtype: Any = None, requires_grad: bool = False) -> Tensor:
    """A tensor of the shape, dtype and device of ``like``, filled with one value."""
    dtype = like.dtype if dtype is None else dtype
    return full(like.shape, fill_value, dtype=dtype, device=like.device, requires_grad=requires_grad)


def zeros_like(like: Tensor, *, dtype: Any = None, requires_grad: bool = False) -> Tensor:
    """Zeros in the shape, dtype and device of ``like``."""
    return full_like(like, 0, dtype=dtype, requires_grad=requires_grad)


def ones_like(like: Tensor, *, dtype: Any = None, requires_grad: bool = False) -> Tensor:
    """Ones in the shape, dtype and device of ``like``."""
    return full_like(like, 1, dtype=dtype, requires_grad=requires_grad)


def arange(
    start: Any,
    end: Any = None,
    step: Any = 1,
    *,
    dtype: Any = None,
    device: str | None = None,
    requires_grad: bool = False,
) -> Tensor:
    """``start``, ``start + step``, … below ``end``; int64 if all are integers, else float32."""
    start, end = (0, start) if end is None else (start, end)
    if step == 0:
        raise ArgumentError("arange: step must not be 0")
    if dtype is None:
        dtype = np.int64 if all(isinstance(v, int | np.integer) for v in (start, end, step)) else DEFAULT_FLOAT
    return Tensor(_device(device).array_module.arange(start, end, step).astype(as_dtype(dtype)), requires_grad)


def linspace(
    start: float, end: float, steps: int, *, dtype: Any = None, device: str | None = None, requires_grad: bool = False
) -> Tensor:
    """``steps`` evenly spaced values from ``start`` to ``end``, both included."""
    values = np.linspace(start, end, steps).astype(DEFAULT_FLOAT if dtype is None else as_dtype(dtype))
    return Tensor(_device(device).from_host(values), requires_grad)


def eye(n: int, m: int | None = None, *, dtype: Any = None, device: str | None = None) -> Tensor:
    """A matrix (n, m) with ones on its diagonal."""
    values = np.eye(n, m, dtype=DEFAULT_FLOAT if dtype is None else as_dtype(dtype))
    return Tensor(_device(device).from_host(values))


def _drawn(values: np.ndarray, dtype: Any, device: str | None, requires_grad: bool) -> Tensor:
    values = values.astype(as_dtype(dtype), copy=False)
    return Tensor(_device(device).from_host(np.asarray(values)), requires_grad)


def _draw_dtype(operation: str, dtype: Any) -> np.dtype:
    result = DEFAULT_FLOAT if dtype is None else as_dtype(dtype)
    if kind_of(result) != "f":
        raise DtypeError(f"{operation}: dtype must be floating; got {result}")
    return result


def randn(
    *size: Any,
    dtype: Any = None,
    device: str | None = None,
    requires_grad: bool = False,
    generator: Generator | None = None,
) -> Tensor:
    """Independent draws from the standard normal distribution; the same on every device."""
    dtype = _draw_dtype("randn", dtype)
    values = (generator or default_generator).numpy().standard_normal(_size("randn", size))
    return _drawn(np.asarray(values), dtype, device, requires_grad)


def rand(
    *size: Any,
    dtype: Any = None,
    device: str | None = None,
    requires_grad: bool = False,
    generator: Generator | None = None,
) -> Tensor:
    """Independent draws from the uniform distribution on [0, 1); the same on every device."""
    dtype = _draw_dtype("rand", dtype)
    # Drawn in the dtype itself: rounding a double just below 1 to float32 would give 1.
    kind = np.float64 if dtype == np.float64 else np.float32
    values = (generator or default_generator).numpy().random(_size("rand", size), dtype=kind)
    return _drawn(np.asarray(values), dtype, device, requires_grad)


def randint(
    low: int,
    high: int,
    size: tuple[int, ...],
    *,
    dtype: Any = np.int64,
    device: str | None = None,
    generator: Generator | None = None,
) -> Tensor:
    """Independent integers, uniform on [low, high)."""
    if high <= low:
        raise ArgumentError(f"randint: high must be above low; got low={low}, high={high}")
    values = (generator or default_generator).numpy().integers(low, high, _size("randint", (size,)))
    return _drawn(np.asarray(values), dtype, device, False)


def randperm(n: int, *, device: str | None = None, generator: Generator | None = None) -> Tensor:
    """The integers 0 … n-1 in random order."""
    return _drawn((generator or default_generator).numpy().permutation(n), np.int64, device, False)
