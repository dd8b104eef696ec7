"""Asynchronous copies to the simulated GPU, and what streams know of each other.

``array.set(host, stream=s)`` from pinned memory is asynchronous: it returns at once, and the copy is done
some time after.  Here it is done as late as CUDA may do it: when somebody has waited for it.  Until then
the array is poisoned and counts as never written, and the host's buffer must stay as it is.

Who must wait for whom is followed with vector clocks.  Each stream counts its own work, and *knows* up to
which count the work of every other stream is done before its next work begins: it takes over what an event
knew when it is told to wait for it, and what the host knew when the host launches something.  Then, of an
array that such a copy writes,

* work that uses it must know of the copy: else it may read what was there before;
* a copy into it must know of all work that used it: else that work may read what comes after.

Both are refused with the name of what is missing.  Only memory that was the target of such a copy is
followed, so all else costs nothing.

The method is Lamport's and Mattern's: F. Mattern, "Virtual time and global states of distributed systems",
1989.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Any

import numpy as np

from .._errors import LaunchError
from .memory import POISON, Allocation, mark_written, pool

Knowledge = dict[int, int]  # by stream: how much of its work is done


@dataclass
class _Copy:
    """An asynchronous copy that is not done yet."""

    stream: int
    count: int
    target: np.ndarray  # plain
    source: np.ndarray
    promised: np.ndarray  # the source's values when the copy was asked for


class Pinned(bytearray):
    """Memory of the host that the GPU copies from by itself."""


class Clocks:
    """What every stream knows, and which copies are under way."""

    def __init__(self) -> None:
        self._known: dict[int, Knowledge] = {}
        self._host: Knowledge = {}
        self._under_way: list[_Copy] = []
        self._lock = threading.RLock()
        self.blocking: set[int] = set()  #: streams that wait for the default stream, and it for them
        self.following = False  #: whether there was ever an asynchronous copy

    def of(self, stream: int) -> Knowledge:
        """What ``stream``'s next work may rely on."""
        known = self._known.setdefault(stream, {})
        _merge(known, self._host)
        for other in self.blocking if stream == 0 else {0} & self._known.keys() if stream in self.blocking else ():
            _merge(known, self._known.get(other, {}))
        return known

    def _count(self, stream: int) -> Knowledge:
        known = self.of(stream)
        known[stream] = known.get(stream, 0) + 1
        return known

    def recorded(self, stream: int) -> Knowledge:
        """What an event knows that is recorded now."""
        with self._lock:
            return dict(self.of(stream))

    def waits(self, stream: int, event: Knowledge) -> None:
        """``stream`` waits for an event."""
        with self._lock:
            _merge(self.of(stream), event)
            self._land(event)

    def host_waits(self, event: Knowledge | None = None) -> None:
        """The host waits for an event, or for everything."""
        with self._lock:
            for known in list(self._known.values()) if event is None else [event]:
                _merge(self._host, known)
                self._land(known)

    def is_done(self, event: Knowledge) -> bool:
        """Whether nothing that the event waits for is still under way."""
        return not any(event.get(copy.stream, 0) >= copy.count for copy in list(self._under_way))

    def used(self, array: Any, stream: int) -> None:
        """Work of ``stream`` reads or writes ``array``."""
        block = pool.block_of(array)
        if block is None or block.copied is None:
            return
        with self._lock:
            known = self._count(stream)
            by, count = block.copied
            if known.get(by, 0) < count:
                raise LaunchError(
                    f"an array of shape {array.shape} is used on stream {stream} while a copy on stream {by} writes "
                    "it, and nothing makes the one wait: record an event after the copy and let the stream wait for it"
                )
            block.uses[stream] = known[stream]

    def copy(self, target: Any, plain: np.ndarray, source: np.ndarray, stream: int) -> None:
        """An asynchronous copy into ``target``, whose memory is ``plain``."""
        block = pool.block_of(target)
        assert block is not None
        with self._lock:
            self.following = True
            known = self._count(stream)
            self._refuse_early(block, known, target, stream)
            block.copied, block.uses = (stream, known[stream]), {}
            plain.reshape(-1).view(np.uint8).fill(POISON)
            block.forget()
            self._under_way.append(_Copy(stream, known[stream], plain, source, source.copy()))

    def _refuse_early(self, block: Allocation, known: Knowledge, target: Any, stream: int) -> None:
        before = {**block.uses, **({} if block.copied is None else dict([block.copied]))}
        for other, count in before.items():
            if other != stream and known.get(other, 0) < count:
                raise LaunchError(
                    f"a copy on stream {stream} writes an array of shape {target.shape} that work on stream {other} "
                    "may still use: record an event after that work and let the copy's stream wait for it"
                )

    def _land(self, known: Knowledge) -> None:
        changed = None
        for copy in [c for c in self._under_way if known.get(c.stream, 0) >= c.count]:
            self._under_way.remove(copy)
            if copy.source.tobytes() != copy.promised.tobytes():
                changed = changed or copy
            np.copyto(copy.target, copy.source)
            mark_written(copy.target)
        if changed is not None:
            raise LaunchError(
                f"the pinned host array of shape {changed.source.shape} was changed before the asynchronous copy from "
                "it was done: wait for the copy's event first"
            )


clocks = Clocks()


def pinned(array: np.ndarray) -> np.ndarray | None:
    """``array``, a contiguous one in memory of ``alloc_pinned_memory``, without a reference to it; else None.

    Whoever made it must be free to see that nobody refers to it, as CUDA does not.
    """
    memory: Any = array
    while isinstance(memory, np.ndarray | memoryview):
        memory = memory.obj if isinstance(memory, memoryview) else memory.base
    if not isinstance(memory, Pinned) or not array.flags.c_contiguous:
        return None
    offset = array.ctypes.data - np.frombuffer(memory, np.uint8).ctypes.data
    return np.frombuffer(memory, array.dtype, array.size, offset).reshape(array.shape)


def _merge(known: Knowledge, other: Knowledge) -> None:
    for stream, count in list(other.items()):
        if known.get(stream, 0) < count:
            known[stream] = count
