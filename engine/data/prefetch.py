"""The prefetcher: a queue of batches that readers fill while training takes from it.

A batch on order is a *ticket*.  Tickets stand in line in the order of the batches; readers (threads)
take them from a second queue, in the same order, and fill them; training takes the first in line
and waits until it is filled::

    orders ──> [ line: ticket 7, ticket 8, ticket 9 ] ──> take()
                         │            ▲
                         ▼ todo       │ filled, done
                   reader 0, reader 1, …

* *In order*: training waits for the first ticket of the line, whoever filled others before.
* *Bounded*: a ticket is ordered when one is taken, so never more than ``ahead`` are in the line.
* *Deterministic*: what goes into a batch is said by its order (a number and indices), not by the
  reader; so neither the number of readers nor their speed can show.
* *Errors* travel in the ticket, with their traceback, and come out at its place in the order.
* *The end*: readers refer to the two things they need, never to the prefetcher.  So a prefetcher
  that nobody refers to any more goes, and its finalizer ends the readers; the same finalizer runs
  on :meth:`Prefetcher.close` and at the interpreter's exit.

Readers that are processes are threads too, each of which speaks to its process (``processes.py``).
"""

from __future__ import annotations

import contextvars
import sys
import threading
import time
import traceback
import warnings
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from queue import Empty, SimpleQueue
from typing import Any

import numpy as np

from ...kernels._errors import DataError
from .timing import Step

#: Seconds that :meth:`Prefetcher.close` waits for its readers.  They are daemons: one that is stuck in
#: a read outlives it, and ends with that read or with the interpreter.
CLOSING = 0.1
#: Seconds of waiting after which a stalled source is reported.
STALLED = 10.0
#: Seconds after which a reader without work looks whether it is still wanted.
_LOOK = 1.0

_now = time.perf_counter_ns

#: Number, indices and epoch of a batch.
Order = tuple[int, np.ndarray, int]


class Ticket:
    """A batch on order, and later the batch.

    Attributes:
        number, indices, epoch: which batch of which epoch, and the samples in it.
        done: a lock that is held until the ticket is filled; to acquire it is to wait for that.
        batch, error: one of them, once it is filled.
        begun, ended: when it was read, in nanoseconds; 0 before.
        copied: when its copy to the device was given and when it ended, if there was one.
        reader: which reader filled it.
        where: what that reader waits for, in messages; None: nothing but its own thread's work.
        missing: samples that were skipped or replaced, with the reason of each.
    """

    __slots__ = (
        "batch", "begun", "copied", "done", "ended", "epoch", "error", "indices", "missing", "number", "reader",
        "where",
    )  # fmt: skip

    def __init__(self, number: int, indices: np.ndarray, epoch: int) -> None:
        self.number, self.indices, self.epoch = number, indices, epoch
        self.done = threading.Lock()
        self.done.acquire()
        self.batch: Any = None
        self.error: BaseException | None = None
        self.begun = self.ended = self.reader = 0
        self.copied: Any = None
        self.where: str | None = None
        self.missing: list[tuple[int, str]] = []

    def fill(self, make: Make, stopped: Callable[[], bool], reader: int) -> None:
        """Read the batch, or note why that failed."""
        self.reader, self.begun = reader, _now()
        try:
            self.batch = make(self, stopped)
        except BaseException as error:
            self.error = error
        self.ended = _now()
        self.done.release()

    @property
    def samples(self) -> str:
        """The samples, for messages."""
        return "samples " + ", ".join(map(str, self.indices[:5])) + (", …" if len(self.indices) > 5 else "")

    def step(self, asked: int, taken: int, ready: int) -> Step:
        """The times of the filled ticket."""
        return Step(self.number, asked, taken, ready, self.begun, self.ended, self.reader, self.copied)

    def opened(self) -> Any:
        """The batch, or its error is raised; the ticket, which a reader may still hold, keeps neither."""
        error, self.error = self.error, None
        batch, self.batch = self.batch, None
        if error is None:
            return batch
        try:
            if isinstance(error, StopIteration):  # would end the caller's loop as if all were read
                raise RuntimeError(f"the reader of batch {self.number} raised StopIteration") from error
            raise error
        finally:
            del error  # it refers to this frame by its traceback


#: Makes the batch of a ticket; asks the second argument now and then whether that is still wanted.
Make = Callable[[Ticket, Callable[[], bool]], Any]


class Stopped(Exception):
    """Raised by what makes batches when they are no longer wanted; nobody sees it."""


def never() -> bool:
    """For who cannot be stopped."""
    return False


class Synchronous:
    """The same interface without readers: a batch is made when it is taken."""

    def __init__(self, orders: Iterator[Order], make: Make) -> None:
        self.orders, self._make, self.readers = orders, make, 0
        self.steps: list[Step] = []

    def take(self) -> tuple[Ticket, Any]:
        """The next ticket and its batch; raises StopIteration after the last."""
        asked = _now()
        ticket = Ticket(*next(self.orders))
        ticket.fill(self._make, never, 0)
        self.steps.append(ticket.step(asked, ticket.ended, 0))
        return ticket, ticket.opened()

    def close(self) -> None:
        """Take no more."""
        self.orders = iter(())


class Prefetcher:
    """Readers at work on the next batches.

    Args:
        orders: number, indices and epoch of each batch, in order.
        makes: what each reader makes batches with; as many readers are started.
        ahead: how many batches may be made that are not taken yet.
        interrupt: called by :meth:`close` before it waits for the readers, to wake those that wait.
        settle: called when they have ended, in whichever way.
        timeout: seconds after which waiting for one batch is an error; None: never.

    Attributes:
        readers: how many there are.
        steps: when each batch was asked for, read, taken (:class:`~.timing.Step`).
    """

    def __init__(
        self,
        orders: Iterator[Order],
        makes: Sequence[Make],
        ahead: int,
        *,
        interrupt: Callable[[], None] | None = None,
        settle: Callable[[], None] | None = None,
        timeout: float | None = None,
    ) -> None:
        self.orders, self.readers = orders, len(makes)
        self.steps: list[Step] = []
        self._timeout = timeout
        self._line: deque[Ticket] = deque()
        self._todo: SimpleQueue[Ticket | None] = SimpleQueue()
        stop = threading.Event()
        context = contextvars.copy_context()  # the active backend, for data sets that compute
        self._threads = [
            threading.Thread(
                target=context.copy().run,
                args=(_read, make, self._todo, stop.is_set, number, weakref.ref(self)),
                name=f"rawgrad reader {number}",
                daemon=True,
            )
            for number, make in enumerate(makes)
        ]
        self._end = weakref.finalize(self, _end, stop, self._todo, self._threads, interrupt, settle)
        for _ in range(ahead):
            self._order_one()
        for thread in self._threads:
            thread.start()

    def _order_one(self) -> None:
        order = next(self.orders, None)
        if order is not None:
            self._line.append(ticket := Ticket(*order))
            self._todo.put(ticket)

    def take(self) -> tuple[Ticket, Any]:
        """The next ticket and its batch, waited for if need be; raises StopIteration after the last.

        Raises:
            DataError: it did not come within ``timeout``.
            BaseException: whatever the reader raised, with its own traceback.
        """
        if not self._line:
            raise StopIteration
        asked = _now()
        ready = 0
        for ticket in self._line:
            ready += ticket.ended > 0
        ticket = self._line.popleft()
        if not ticket.done.acquire(False):
            self._wait(ticket)
        self.steps.append(ticket.step(asked, _now(), ready))
        batch = ticket.opened()
        self._order_one()
        return ticket, batch

    def _wait(self, ticket: Ticket) -> None:
        begun, patience = time.monotonic(), self._timeout
        while not ticket.done.acquire(timeout=STALLED if patience is None else min(STALLED, patience)):
            waited = time.monotonic() - begun
            said = f"DataLoader: waiting for batch {ticket.number} since {waited:.1f} s: {self._at_work(ticket)}"
            if self._timeout is not None:
                patience = self._timeout - waited
                if patience < 1e-3:
                    raise DataError(said)
            warnings.warn(said, RuntimeWarning, stacklevel=5)

    def _at_work(self, ticket: Ticket) -> str:
        """What the reader of ``ticket`` is doing, as far as can be seen from here."""
        if not ticket.begun:
            return f"no reader has begun it ({ticket.samples})"
        said = f"which reads {ticket.samples}"
        if ticket.where is not None:
            return f"{ticket.where}, {said}"
        thread = self._threads[ticket.reader]
        frame = sys._current_frames().get(thread.ident or 0)
        if frame is None:
            return f"{thread.name}, {said}, has ended"
        last = traceback.extract_stack(frame)[-1]
        return f"{thread.name}, {said}, is at {last.filename}:{last.lineno}, in {last.name}: {last.line}"

    def close(self) -> None:
        """End the readers now; what they made is dropped.  Waits for them at most :data:`CLOSING` seconds."""
        self._line.clear()
        self._end()


def _read(
    make: Make,
    todo: SimpleQueue[Ticket | None],
    stopped: Callable[[], bool],
    reader: int,
    owner: Callable[[], Prefetcher | None],
) -> None:
    """What a reader's thread does."""
    while True:
        try:
            ticket = todo.get(timeout=_LOOK)
        except Empty:
            # Should an interrupt have cut off the very call that was to end the readers: they see for themselves.
            if stopped() or owner() is None:
                break
            continue
        if ticket is None:
            break
        if not stopped():
            ticket.fill(make, stopped, reader)
    todo.put(None)  # for the other readers


def _end(
    stop: threading.Event,
    todo: SimpleQueue[Ticket | None],
    threads: list[threading.Thread],
    interrupt: Callable[[], None] | None,
    settle: Callable[[], None] | None,
) -> None:
    """End the readers; runs once, whoever asks for it first."""
    stop.set()
    todo.put(None)
    if interrupt is not None:
        interrupt()
    last = time.monotonic() + CLOSING
    for thread in threads:
        # Not itself: a collection in a reader may be what drops the prefetcher.  Nor one that never started.
        if thread is not threading.current_thread() and thread.ident is not None:
            thread.join(max(0.0, last - time.monotonic()))
    if settle is not None:
        settle()
