"""Captured work of the simulated GPU: launches, copies, fills and array operations, noted to be run again.

As on a GPU nothing runs while it is noted, but for what decides the shape of a result; such a result is then
forgotten.  A graph does not keep the arrays that it uses: it knows where they lay, and a replay that meets one
that was freed since is refused.  On a GPU it would read and write what somebody else has there by now.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from .._errors import CaptureError
from .memory import POISON, mark_written, pool


class Place:
    """Where an array lies, in memory that this does not keep."""

    def __init__(self, array: Any) -> None:
        owner = pool.owner_of(array)
        assert owner is not None
        self._owner = weakref.ref(owner)
        self._kind, self._shape, self._dtype, self._strides = type(array), array.shape, array.dtype, array.strides
        self._offset = array.ctypes.data - owner.ctypes.data

    def array(self) -> Any:
        """The array again.

        Raises:
            CaptureError: its memory was freed.
        """
        owner = self._owner()
        if owner is None:
            raise CaptureError(
                f"replay: an array of shape {self._shape} and dtype {self._dtype} that the captured work uses was "
                "freed since; on a GPU its memory could be another's by now: keep it as long as the graph"
            )
        layout = (self._shape, self._dtype, owner, self._offset, self._strides)
        return np.ndarray.__new__(self._kind, *layout)

    def write(self, values: Any) -> None:
        """Let the array hold ``values``."""
        array = self.array()
        np.copyto(np.ndarray.view(array, np.ndarray), np.ndarray.view(values, np.ndarray))
        mark_written(array)

    def forget(self) -> None:
        """Take nothing in the array's block as written."""
        array = self.array()
        block, owner = pool.block_of(array), self._owner()
        if block is not None and owner is not None and block.nbytes:
            start = block.address - owner.ctypes.data
            owner[start : start + block.nbytes] = POISON
            block.forget()


class Graph:
    """Work in the order in which it was given; the names are those of ``cupy.cuda.Graph``."""

    def __init__(self) -> None:
        self._work: list[Callable[[], Any]] = []
        self.paused = False  # while an operation runs for the sake of its result's shape

    def add(self, work: Callable[[], Any]) -> None:
        """Note ``work``, which must hold places, and no arrays."""
        self._work.append(work)

    def launch(self, stream: Any = None) -> None:
        """Run it all."""
        for work in self._work:
            work()

    def call(self, function: Callable[..., Any], args: Any, options: dict[str, Any], in_place: bool) -> Any:
        """Note the call of a ``function`` on arrays of the device, and give what it returns.

        Args:
            in_place: it writes into its first argument and returns nothing.
        """
        out = options.get("out")
        outs = out if isinstance(out, tuple) else () if out is None else (out,)
        places, named = _places(args), _places(options)

        def run() -> Any:
            return function(*_arrays(places), **_arrays(named))

        if in_place or outs:
            self.add(run)
            return outs[0] if len(outs) == 1 else outs or None
        name = function.__name__
        if name == "nonzero" or (name == "__getitem__" and any(a.dtype == np.bool_ for a in _found(args[1:]))):
            raise CaptureError(f"{name}: how many elements are true is read on the host while a step is captured")
        self.paused = True
        try:
            result = function(*args, **options)
        finally:
            self.paused = False
        if isinstance(result, np.ndarray):
            block = pool.block_of(result)
            if not any(pool.block_of(a) is block for a in _found((args, options))):  # no view of an argument
                place = Place(result)
                self.add(place.forget if name.startswith("empty") else lambda: place.write(run()))
                place.forget()
        return result


def _places(value: Any) -> Any:
    """``value`` with the places of all arrays in it."""
    if isinstance(value, np.ndarray):
        return Place(value)
    if type(value) in (list, tuple):
        return type(value)(map(_places, value))
    return {key: _places(member) for key, member in value.items()} if type(value) is dict else value


def _arrays(value: Any) -> Any:
    """``value`` with arrays for all places in it."""
    if isinstance(value, Place):
        return value.array()
    if type(value) in (list, tuple):
        return type(value)(map(_arrays, value))
    return {key: _arrays(member) for key, member in value.items()} if type(value) is dict else value


def _found(value: Any) -> Iterator[Any]:
    """All arrays in ``value``."""
    if isinstance(value, np.ndarray):
        yield value
    elif type(value) in (list, tuple, dict):
        for member in value.values() if type(value) is dict else value:
            yield from _found(member)
