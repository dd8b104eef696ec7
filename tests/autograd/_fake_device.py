"""A device whose arrays refuse to mix with NumPy's, to find code that assumes NumPy.

Its arrays are those of the simulated GPU under another name.  Its kernels are the references, run on
the host behind its back, so that it needs no compiler.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rawgrad.kernels import _devices, _dispatch
from rawgrad.kernels._devices import Device
from rawgrad.kernels._emulator.arrays import EmulatedArray, mark_written, on_device, plain
from rawgrad.kernels._emulator.module import ArrayModule

NAME = "fake"


class FakeArray(EmulatedArray):
    """An array of the fake device."""

    PLACE = "device 'fake'"


DEVICE = Device(NAME, FakeArray, ArrayModule(FakeArray))


class _Kernels:
    """The reference kernels of an operation for the fake device."""

    def __init__(self, module: Any) -> None:
        self._module = module

    def __getattr__(self, name: str) -> Any:
        kernel = getattr(self._module, name)

        def call(*arguments: Any) -> Any:
            result = on_device(kernel(*map(plain, arguments)), FakeArray)
            for argument in arguments:  # a kernel may write into its arguments, or into those of a list
                for array in argument if isinstance(argument, list | tuple) else [argument]:
                    mark_written(array)
            return result

        return call


@contextmanager
def registered() -> Iterator[Device]:
    """The device and, on it, the reference kernels as a backend of the same name."""
    original = _dispatch.Operation.module

    def module(self: Any, name: str) -> Any:
        return _Kernels(original(self, "numpy")) if name == NAME else original(self, name)

    _devices.register_device(DEVICE)
    _dispatch.BACKENDS[NAME] = _dispatch.Backend(NAME, NAME, "reference", (), "the reference on a device of the tests")
    _dispatch.Operation.module = module  # type: ignore[method-assign]
    try:
        yield DEVICE
    finally:
        _dispatch.Operation.module = original  # type: ignore[method-assign]
        del _dispatch.BACKENDS[NAME], _devices._by_name[NAME], _devices._by_type[FakeArray]
