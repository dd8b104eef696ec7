"""Streams, events and pinned memory of the simulated GPU: what rawgrad uses of ``cupy.cuda``.

Work on the simulated device is done at once, by the thread that asks for it, in the order in which
it is asked for.  So every stream is always idle, every event has happened once it is recorded, and
waiting never waits.  What the classes below hold code to is the protocol: an event is recorded before
it is waited for, and the streams of a thread are left in the order in which they were entered.
"""

from __future__ import annotations

import itertools
import threading
from types import TracebackType

import numpy as np

from .._errors import LaunchError

_numbers = itertools.count(1)


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
        self.is_non_blocking = non_blocking

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
        """Whether all work given to the stream is finished: always."""
        return True

    def synchronize(self) -> None:
        """Wait for all work given to the stream."""

    def record(self, event: Event | None = None) -> Event:
        """Let ``event`` (a new one by default) happen once all work given so far is finished."""
        event = event or Event()
        event.record(self)
        return event

    def wait_event(self, event: Event) -> None:
        """Begin later work only after ``event``."""
        event._require_recorded("wait_event")

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


class Event:
    """A point in a stream's work.

    Args:
        block: sleep while waiting, rather than spin.
        disable_timing: keep no time.
    """

    def __init__(self, block: bool = False, disable_timing: bool = False) -> None:
        self._recorded = False

    def record(self, stream: Stream | None = None) -> None:
        """Happen once all work given to ``stream`` (by default the current one) is finished."""
        self._recorded = True

    @property
    def done(self) -> bool:
        """Whether it happened; an event that was never recorded counts as happened, as in CUDA."""
        return True

    def synchronize(self) -> None:
        """Wait until it happened."""
        self._require_recorded("synchronize")

    def _require_recorded(self, what: str) -> None:
        # CUDA lets this pass without waiting, which is never what was meant.
        if not self._recorded:
            raise LaunchError(f"{what}: the event was never recorded, so there is nothing to wait for")


class runtime:
    """What is used of the CUDA runtime itself."""

    @staticmethod
    def deviceSynchronize() -> None:
        """Wait for all work given to the device."""

    @staticmethod
    def getDeviceCount() -> int:
        """One."""
        return 1


def alloc_pinned_memory(size: int) -> np.ndarray:
    """A buffer of ``size`` bytes from which the GPU copies without the CPU; ``np.frombuffer`` makes arrays of it."""
    return np.empty(size, np.uint8)


def is_available() -> bool:
    """Whether there is a device: always."""
    return True


__all__ = ["Event", "Stream", "alloc_pinned_memory", "get_current_stream", "is_available", "runtime"]
