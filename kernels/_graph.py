"""Capture and replay of a GPU's work: the device's part, the same for CuPy and for the simulated GPU.

While a stream is captured, what is given to it is noted and not run.  A replay runs all of it by one launch, on
the same memory.  So nothing may pass between host and device in between: what the host would read is not
computed yet, and what it would write is not there when a replay runs.  What tensors add to it is in
``autograd/capture.py``.

A capture is of the thread that began it; other threads (a prefetcher) go on as ever.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from ._errors import CaptureError

if TYPE_CHECKING:
    from ._devices import Device

#: How many captures are under way in all threads; where every call counts, look here before :func:`current`.
under_way = 0
_counting = threading.Lock()
_current: ContextVar[Any] = ContextVar("rawgrad_capture", default=None)
#: The graph that this thread is capturing, or None.
current = _current.get


def refuse(what: str, instead: str) -> None:
    """Raise :class:`CaptureError` if this thread is capturing: ``what`` cannot be part of it, ``instead`` can."""
    if under_way and current() is not None:
        raise CaptureError(f"{what} while a step is captured; {instead}")


def observe(used: Any, made: Any = ()) -> None:
    """Tell the graph that is being captured, if one is, of the tensors ``used`` (among other things) and ``made``."""
    graph = current()
    if graph is not None:
        graph.observe(used, made)


@contextmanager
def outside() -> Iterator[None]:
    """Run what is in here at once, also in a capture: for what is set up once and lives on, as a counter does."""
    graph = current() if under_way else None
    if graph is None:
        yield
    else:
        with graph.outer_stream:
            yield


class DeviceGraph:
    """Work that was captured from a stream of its own, with the memory that it uses.

    The memory comes from a private pool, so that nobody else is given what a replay writes into.  The pool lives
    as long as the graph.

    Args:
        device: on which it runs.

    Attributes:
        outer_stream: the stream that was current when warm-up or capture began.
        watches: the fault flags of its kernels; see ``_faults.watch``.
    """

    def __init__(self, device: Device) -> None:
        cuda = device.array_module.cuda
        self.device = device
        self.outer_stream: Any = None
        self.watches: list[Any] = []
        self._cuda = cuda
        self._stream = cuda.Stream(non_blocking=True)  # one that blocks must not be captured beside the null stream
        self._pool = cuda.MemoryPool()
        self._allocate = device.allocator(self._pool)
        self._recorded: Any = None

    @property
    def is_captured(self) -> bool:
        """Whether there is something to replay."""
        return self._recorded is not None

    @contextmanager
    def own_stream(self) -> Iterator[None]:
        """Work on the graph's stream and in its memory, after all that the current stream was given, and before."""
        refuse("a warm-up or capture was begun", "only one can be under way")
        outer = self.outer_stream = self._cuda.get_current_stream()
        self._stream.wait_event(outer.record())
        try:
            with self._cuda.using_allocator(self._allocate), self._stream:
                yield
        finally:
            outer.wait_event(self._stream.record())

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Capture what is in here; if it fails, the graph is as before.

        Raises:
            CaptureError: it was captured already, or another capture is under way; or the device says why it fails.
        """
        global under_way
        if self._recorded is not None:
            raise CaptureError("capture: this graph was captured already; make another one")
        refuse("a capture was begun", "only one can be under way")
        self.device.synchronize()  # reports what earlier kernels met, and gives their fault flags back
        with self.own_stream():
            self._stream.begin_capture()
            token = _current.set(self)
            with _counting:
                under_way += 1
            whole = False
            try:
                yield
                whole = True
            finally:
                with _counting:
                    under_way -= 1
                _current.reset(token)
                self._end(whole)

    def _end(self, whole: bool) -> None:
        """Leave the capture; keep what was recorded if it is the ``whole``."""
        try:
            recorded = self._stream.end_capture()
        except Exception as error:
            if whole:  # else the reason is under way already
                raise CaptureError(f"the capture came to nothing: {error}") from error
            recorded = None
        if whole:
            self._recorded = recorded
        else:
            self.watches.clear()

    def launch(self) -> None:
        """Run what was captured, on the current stream."""
        self._recorded.launch(self._cuda.get_current_stream())
