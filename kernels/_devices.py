"""Where arrays live: the device of an array, and the array module that belongs to it.

Nothing above this file may assume NumPy.  A device is known by the *type* of its arrays, so asking
for it is one dictionary lookup.  ``cpu`` (NumPy) is always there.  ``cuda`` is one of two devices:
an NVIDIA GPU through CuPy, or the simulated one while the backend ``emulated`` is active (or
``numba_cuda`` in a process in which Numba simulates); which of them, and whether it can be used, is
found out when it is first asked for.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np

from ._errors import DeviceError
from ._graph import refuse

#: What is refused in a capture, and what to do instead.
_FROM_HOST = "values of the host were copied to the GPU", "copy them before, into a tensor that the step reads"
TO_HOST = "values were read on the host (item(), numpy(), print, if)", "nothing is computed yet: read after a replay"
WAITING = "the GPU was waited for", "nothing runs yet: wait after a replay"


@dataclass(frozen=True)
class Device:
    """A place where arrays live.

    Attributes:
        name: ``"cpu"``, ``"cuda"``, …
        array_type: the class of its arrays; exactly this class, subclasses register on their own.
        array_module: the module with NumPy's names that makes and combines them.
        description: which of the devices of that name it is: ``"simulated"``, ``"CuPy on NVIDIA H100"``.
    """

    name: str
    array_type: type
    array_module: ModuleType | Any
    description: str = ""

    def __str__(self) -> str:
        """For messages: ``'cpu'``, ``'cuda' (simulated)``."""
        return f"{self.name!r} ({self.description})" if self.description else repr(self.name)

    def from_host(self, array: np.ndarray) -> Any:
        """A copy of the NumPy array ``array`` on this device; refused in a capture."""
        if self.array_type is not np.ndarray:
            refuse(*_FROM_HOST)
        return self.array_module.array(array)

    def to_host(self, array: Any) -> np.ndarray:
        """The NumPy array that holds ``array``'s values; no copy if it lives on the host already.

        Refused in a capture, where nothing has been computed yet.
        """
        if self.array_type is np.ndarray:
            return array
        refuse(*TO_HOST)
        return array.get()

    def allocator(self, pool: Any) -> Callable[[int], Any]:
        """What takes memory from ``pool``, one of ``array_module.cuda.MemoryPool``."""
        allocate: Callable[[int], Any] = pool.malloc
        return allocate

    def synchronize(self) -> None:
        """Wait until the device has finished all work given to it."""
        if self.array_type is not np.ndarray:
            refuse(*WAITING)
            self.array_module.cuda.runtime.deviceSynchronize()


_by_name: dict[str, Device] = {}
_by_type: dict[type, Device] = {}
#: The types of arrays that have been registered; where every microsecond counts, one look before :func:`is_array`.
known_arrays = _by_type.keys()


def register_device(device: Device) -> None:
    """Make ``device`` known by its name (unless that is ``cuda``) and by the type of its arrays."""
    if device.name != "cuda":
        _by_name[device.name] = device
    _by_type[device.array_type] = device


def device_named(name: str) -> Device:
    """The device called ``name``; :class:`DeviceError` if rawgrad has none of that name here.

    ``"cuda"`` is the simulated GPU where the backend ``emulated`` is active, or ``numba_cuda`` in Numba's
    simulator; else CuPy's.
    """
    try:
        return _by_name[name]
    except (KeyError, TypeError):
        pass
    if name == "cuda":
        return _cuda()
    known = ", ".join(map(repr, _by_name))
    raise DeviceError(f"device {name!r} is not available here; available: {known}")


def _cuda() -> Device:
    from ._cuda.simulator import simulated
    from ._dispatch import current_choice

    chosen = current_choice().for_device("cuda")
    if chosen == "emulated" or (chosen == "numba_cuda" and simulated()):
        from ._emulator.module import DEVICE

        return DEVICE
    from ._cuda.device import cupy_device

    return cupy_device()


def device_of(array: Any) -> Device:
    """The device on which ``array`` lives; :class:`DeviceError` if it is no array of ours."""
    try:
        return _by_type[type(array)]
    except KeyError:
        pass
    if _is_cupy(array):
        return _by_type[type(array)]
    raise DeviceError(f"expected an array of a known device, got {type(array).__module__}.{type(array).__qualname__}")


def is_array(value: Any) -> bool:
    """Whether ``value`` is an array of a known device."""
    return type(value) in _by_type or _is_cupy(value)


def _is_cupy(value: Any) -> bool:
    """Whether ``value`` is an array that a user made with CuPy before rawgrad was asked for the GPU."""
    if type(value).__module__ != "cupy" or type(value).__qualname__ != "ndarray":
        return False
    from ._cuda.device import cupy_device

    return cupy_device().array_type is type(value)


register_device(Device("cpu", np.ndarray, np))
