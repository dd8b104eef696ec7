"""A device whose arrays refuse to mix with NumPy's, to find code that assumes NumPy.

``FakeArray`` is a subclass of ``np.ndarray`` whose ufuncs and functions raise when a host array with
dimensions takes part.  Its array module is a proxy for ``numpy`` that makes such arrays.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from rawgrad.kernels import _devices, _dispatch
from rawgrad.kernels._devices import Device

NAME = "fake"


def _mixed(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return any(map(_mixed, value))
    return type(value) is np.ndarray


def _plain(value: Any) -> Any:
    if isinstance(value, FakeArray):
        return value.view(np.ndarray)
    if type(value) in (list, tuple):
        return type(value)(map(_plain, value))
    return value


def _fake(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return value.view(FakeArray)
    if isinstance(value, np.generic):
        return np.asarray(value).view(FakeArray)  # as CuPy: there are no scalars on a device
    if type(value) in (list, tuple):
        return type(value)(map(_fake, value))
    return value


class FakeArray(np.ndarray):
    """An array of the fake device."""

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, out: Any = (), **kwargs: Any) -> Any:
        if _mixed(inputs) or _mixed(out) or _mixed(tuple(kwargs.values())):
            raise TypeError(f"{ufunc.__name__} mixes arrays of the fake device with the host's")
        if out:
            kwargs["out"] = _plain(out)
        result = getattr(ufunc, method)(*_plain(inputs), **{k: _plain(v) for k, v in kwargs.items()})
        return out[0] if out else _fake(result)

    def __array_function__(self, function: Any, types: Any, args: Any, kwargs: Any) -> Any:
        if _mixed(args) or _mixed(tuple(kwargs.values())):
            raise TypeError(f"{function.__name__} mixes arrays of the fake device with the host's")
        return _fake(function(*_plain(args), **{k: _plain(v) for k, v in kwargs.items()}))

    def __array__(self, *args: Any, **kwargs: Any) -> Any:
        raise TypeError("an array of the fake device is not turned into a host array by itself")

    def __getitem__(self, index: Any) -> Any:
        if _mixed(index):
            raise TypeError("indexing mixes arrays of the fake device with the host's")
        return _fake(super().__getitem__(_plain(index)))

    def __setitem__(self, index: Any, value: Any) -> None:
        if _mixed(index) or _mixed(value):
            raise TypeError("assignment mixes arrays of the fake device with the host's")
        super().__setitem__(_plain(index), _plain(value))

    def get(self) -> np.ndarray:
        """A copy on the host."""
        return self.view(np.ndarray).copy()


def _reduction(name: str) -> Any:
    def method(self: FakeArray, *args: Any, **kwargs: Any) -> Any:
        return _fake(getattr(self.view(np.ndarray), name)(*args, **kwargs))

    return method


for _name in ("sum", "mean", "prod", "max", "min", "argmax", "argmin", "all", "any", "argsort", "cumsum"):
    setattr(FakeArray, _name, _reduction(_name))


class _Module:
    """``numpy``, but what it makes lives on the fake device."""

    def __getattr__(self, name: str) -> Any:
        value = getattr(np, name)
        if isinstance(value, type) or not callable(value):
            return value
        if isinstance(value, np.ufunc):
            return value if name != "add" else _Add()

        def call(*args: Any, **kwargs: Any) -> Any:
            if name not in ("array", "asarray") and (_mixed(args) or _mixed(tuple(kwargs.values()))):
                raise TypeError(f"{name} mixes arrays of the fake device with the host's")
            return _fake(value(*_plain(args), **{k: _plain(v) for k, v in kwargs.items()}))

        return call


class _Add:
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return np.add(*args, **kwargs)

    @staticmethod
    def at(array: Any, index: Any, values: Any) -> None:
        assert not (_mixed(index) or _mixed(values) or _mixed(array))
        np.add.at(_plain(array), _plain(index), _plain(values))


DEVICE = Device(NAME, FakeArray, _Module())


class _Kernels:
    """The reference kernels of an operation for the fake device: on the host, behind its back."""

    def __init__(self, module: Any) -> None:
        self._module = module

    def __getattr__(self, name: str) -> Any:
        kernel = getattr(self._module, name)
        return lambda *args: _fake(kernel(*map(_plain, args)))


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
