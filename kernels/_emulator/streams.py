"""Streams, events and pinned memory of the simulated GPU: what rawgrad uses of ``cupy.cuda``.

Work on the simulated device is done at once, by the thread that asks for it, in the order in which it is asked
for; unless its stream is being captured, which notes it (:mod:`.graphs`), or it is an asynchronous copy, which is
done when somebody waited for it (:mod:`.copies`).  So waiting never waits.  What the classes below hold code to is
the protocol: an event is recorded before it is waited for, streams that use the array of such a copy have waited
for each other, and the streams of a thread are left in the order in which they were entered.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any

from .._errors import CaptureError, LaunchError
from .copies import Knowledge, Pinned, clocks
from .graphs import Graph
from .memory import allocator, pool

_numbers = itertools.count(1)
_H100 = 80 * 2**30


class _Current(threading.local):
    """Each thread's current stream, and those it comes back to."""

    def __init__(self) -> None:
        self.streams: list[Stream] = [_DEFAULT]


class Stream:
    """A queue of work.

    Args:
        null: the default stream, on which everything runs that names no other.
        non_blocking: do not wait for the default stream (which is what CUDA does otherwise).

    Attributes:
        ptr: the handle; 0 for the default stream.
    """

    null: Stream

    def __init__(self, null: bool = False, non_blocking: bool = False) -> None:
        self.ptr = 0 if null else next(_numbers)
        self.graph: Graph | None = None  # under way
        self.is_non_blocking = non_blocking
        if self.ptr and not non_blocking:
            clocks.blocking.add(self.ptr)

    def __enter__(self) -> Stream:
        _current.streams.append(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if len(_current.streams) < 2 or _current.streams[-1] is not self:
            raise LaunchError("a stream was left that is not the current one")
        _current.streams.pop()

    def use(self) -> Stream:
        """Make this the current stream of the thread, in place of the one that is."""
        _current.streams[-1] = self
        return self

    @property
    def done(self) -> bool:
        """Whether all work given to the stream is finished."""
        return clocks.is_done(clocks.recorded(self.ptr))

    def synchronize(self) -> None:
        """Wait for all work given to the stream."""
        if self.graph is not None:
            raise CaptureError("synchronize: this stream is being captured, and its work does not run")
        clocks.host_waits(clocks.recorded(self.ptr))

    def begin_capture(self) -> None:
        """Note from here on what the stream is given, and run none of it."""
        if self.ptr == 0:
            raise CaptureError("begin_capture: the default stream cannot be captured")
        if self.graph is not None:
            raise CaptureError("begin_capture: this stream is being captured already")
        self.graph = Graph()

    def end_capture(self) -> Graph:
        """What was noted since :meth:`begin_capture`."""
        if self.graph is None:
            raise CaptureError("end_capture: this stream is not being captured")
        graph, self.graph = self.graph, None
        return graph

    def is_capturing(self) -> bool:
        """Whether the stream's work is being noted."""
        return self.graph is not None

    def record(self, event: Event | None = None) -> Event:
        """Let ``event`` (a new one by default) happen once all work given so far is finished."""
        event = event or Event()
        event.record(self)
        return event

    def wait_event(self, event: Event) -> None:
        """Begin later work only after ``event``."""
        event._require_recorded("wait_event")
        clocks.waits(self.ptr, event._knows)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Stream) and other.ptr == self.ptr

    def __hash__(self) -> int:
        return hash(self.ptr)

    def __repr__(self) -> str:
        return f"<Stream {self.ptr} of the simulated GPU>"


_DEFAULT = Stream.null = Stream(null=True)
_current = _Current()


def get_current_stream() -> Stream:
    """The stream on which this thread's work runs."""
    return _current.streams[-1]


def recording() -> Graph | None:
    """What notes the work of the current stream, or None if it runs at once."""
    graph = _current.streams[-1].graph
    return None if graph is None or graph.paused else graph


class MemoryPool:
    """Memory for those who ask for it by :func:`using_allocator`; what a capture was given stays until the pool goes.

    So nobody else is given what a replay writes into.
    """

    def __init__(self) -> None:
        self._kept: list[Any] = []

    def malloc(self, size: int) -> Any:
        """A new block."""
        found = pool.allocate(size)
        if get_current_stream().is_capturing():
            self._kept.append(found[0])
        return found


@contextmanager
def using_allocator(allocate: Callable[[int], Any] | None = None) -> Iterator[None]:
    """Let this thread's new arrays have their memory from ``allocate``, a pool's ``malloc``."""
    before, allocator.allocate = allocator.allocate, allocate or pool.allocate
    try:
        yield
    finally:
        allocator.allocate = before


class Event:
    """A point in a stream's work.

    Args:
        block: sleep while waiting, rather than spin.
        disable_timing: keep no time.
    """

    def __init__(self, block: bool = False, disable_timing: bool = False) -> None:
        self._recorded = False
        self._knows: Knowledge = {}
        self._when = 0.0

    def record(self, stream: Stream | None = None) -> None:
        """Happen once all work given to ``stream`` (by default the current one) is finished."""
        self._recorded = True
        self._knows = clocks.recorded((stream or get_current_stream()).ptr)
        self._when = time.perf_counter()

    @property
    def done(self) -> bool:
        """Whether it happened; an event that was never recorded counts as happened, as in CUDA."""
        return clocks.is_done(self._knows)

    def synchronize(self) -> None:
        """Wait until it happened."""
        self._require_recorded("synchronize")
        clocks.host_waits(self._knows)

    def _require_recorded(self, what: str) -> None:
        # CUDA lets this pass without waiting, which is never what was meant.
        if not self._recorded:
            raise LaunchError(f"{what}: the event was never recorded, so there is nothing to wait for")


class runtime:
    """What is used of the CUDA runtime itself."""

    @staticmethod
    def deviceSynchronize() -> None:
        """Wait for all work given to the device."""
        get_current_stream().synchronize()
        clocks.host_waits()

    @staticmethod
    def memGetInfo() -> tuple[int, int]:
        """Free and total bytes; where ``RAWGRAD_EMULATED_MEMORY`` sets no limit, as much as an H100 has."""
        total = pool.get_limit() or _H100
        return max(0, total - pool.used_bytes()), total

    @staticmethod
    def getDevice() -> int:
        """The current device of this thread: the only one."""
        return 0

    @staticmethod
    def setDevice(device: int) -> None:
        """Make ``device`` the current one of this thread."""
        if device:
            raise LaunchError(f"setDevice: there is one simulated GPU, number 0; got {device}")

    @staticmethod
    def getDeviceCount() -> int:
        """One."""
        return 1


def alloc_pinned_memory(size: int) -> Pinned:
    """A buffer of ``size`` bytes from which the GPU copies without the CPU; ``np.frombuffer`` makes arrays of it."""
    return Pinned(size)


def get_elapsed_time(start_event: Event, end_event: Event) -> float:
    """Milliseconds between two events, of the host's time."""
    return 1000 * (end_event._when - start_event._when)


def is_available() -> bool:
    """Whether there is a device: always."""
    return True


__all__ = [
    "Event",
    "MemoryPool",
    "Stream",
    "alloc_pinned_memory",
    "get_current_stream",
    "get_elapsed_time",
    "is_available",
    "runtime",
    "using_allocator",
]
