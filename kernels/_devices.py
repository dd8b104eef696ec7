"""Where arrays live: the device of an array, and the array module that belongs to it.

Nothing above this file may assume NumPy.  A device is known by the *type* of its arrays, so asking
for it is one dictionary lookup.  ``cpu`` (NumPy) is always there; other devices register
themselves when they are first asked for.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np

from ._errors import DeviceError


@dataclass(frozen=True)
class Device:
    """A place where arrays live.

    Attributes:
        name: ``"cpu"``, ``"cuda"``, …
        array_type: the class of its arrays; exactly this class, subclasses register on their own.
        array_module: the module with NumPy's names that makes and combines them.
    """

    name: str
    array_type: type
    array_module: ModuleType | Any

    def from_host(self, array: np.ndarray) -> Any:
        """A copy of the NumPy array ``array`` on this device."""
        return self.array_module.array(array)

    def to_host(self, array: Any) -> np.ndarray:
        """The NumPy array that holds ``array``'s values; no copy if it lives on the host already."""
        if self.array_type is np.ndarray:
            return array
        return array.get()


_by_name: dict[str, Device] = {}
_by_type: dict[type, Device] = {}


def register_device(device: Device) -> None:
    """Make ``device`` known by its name and by the type of its arrays."""
    _by_name[device.name] = device
    _by_type[device.array_type] = device


def device_named(name: str) -> Device:
    """The device called ``name``; :class:`DeviceError` if rawgrad has none of that name here."""
    try:
        return _by_name[name]
    except (KeyError, TypeError):
        known = ", ".join(repr(n) for n in _by_name)
        raise DeviceError(f"device {name!r} is not available here; available: {known}") from None


def device_of(array: Any) -> Device:
    """The device on which ``array`` lives; :class:`DeviceError` if it is no array of ours."""
    try:
        return _by_type[type(array)]
    except KeyError:
        raise DeviceError(
            f"expected an array of a known device, got {type(array).__module__}.{type(array).__qualname__}"
        ) from None


def is_array(value: Any) -> bool:
    """Whether ``value`` is an array of a registered device."""
    return type(value) in _by_type


register_device(Device("cpu", np.ndarray, np))
