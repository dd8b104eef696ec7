"""Where the time of a program goes, kernel by kernel: ``rawgrad.profile``.

Every kernel of ours is called through an :class:`._dispatch.Operation`.  While a profile is on, the three methods by
which that hands out kernels are replaced by those below, which wrap what it hands out; when it ends the plain ones are
back.  So a program that is not profiled pays nothing.

A call that a kernel makes of another belongs to that kernel, and is not counted again.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Any, NamedTuple, Self

import numpy as np

from . import _graph, _trace_events
from ._devices import Device, device_of
from ._dispatch import Operation, current_choice
from ._errors import ArgumentError
from ._text import aligned, duration, quantity
from ._work import arrays_in, bytes_of, operations_of, shapes_of

#: What a replay of a captured step is called.
REPLAY = "(captured step)"
_HEAD = ("kernel", "backend", "calls", "time", "a call", "share", "bytes", "GB/s", "operations", "GFLOP/s")
_clock = time.perf_counter_ns


class Limits(NamedTuple):
    """What a machine can do at most.

    Attributes:
        bandwidth: bytes per second, read plus written.
        peak: operations per second, two for each multiply-add.
    """

    bandwidth: float
    peak: float

    def seconds(self, bytes: int, operations: int) -> float:
        """The least time for so much work (the roofline of Williams, Waterman and Patterson, 2009)."""
        return max(bytes / self.bandwidth, operations / self.peak)


@dataclass(slots=True)
class Call:
    """One call of a kernel.

    Attributes:
        function: of the operation, ``conv2d_forward``; or :data:`REPLAY`.
        backend: whose kernel it was, with the version if one was pinned.
        shapes: of the arrays that it was given; of a list of arrays, as optimizers' steps take them, how many.
        row: the thread that it ran on; on a GPU the stream.
        begin, end: nanoseconds of ``time.perf_counter_ns``.
        bytes, operations: see :mod:`._work`.
        host: such nanoseconds on the host: when it was called, began, had ended, and had been noted.
        events: until the block has ended, those on the GPU at begin and end.
    """

    function: str
    backend: str
    shapes: tuple[Any, ...]
    row: str
    begin: int
    end: int
    bytes: int
    operations: int
    host: tuple[int, int, int, int]
    events: tuple[Device, Any, Any] | None = None


@dataclass(frozen=True)
class Row:
    """All calls of one kernel, or those of them on arrays of the same shapes.

    Attributes:
        function, backend: as in :class:`Call`.
        shapes: of the arrays, in words; ``""`` for calls of all shapes.
        calls: how many.
        seconds: of them all.
        bytes, operations: of them all; see :mod:`._work`.
        least: seconds that they would take at the limits; None without limits.
    """

    function: str
    backend: str
    shapes: str
    calls: int
    seconds: float
    bytes: int
    operations: int
    least: float | None


class profile:
    """Note every call of a kernel in a ``with`` block, in all threads::

        with rg.profile() as p:
            train_step()
        print(p)               # a table, by kernel
        p.trace("trace.json")  # a timeline, for ui.perfetto.dev

    On the CPU the time of a call is the host's.  On a GPU it is that between two events on its stream, so nothing is
    waited for until the block ends; where the GPU is idle until the host has started the kernel, that is in it.  Events
    of the simulated GPU are its simulator's time.

    First calls compile kernels: run a step before.  While a step is captured nothing runs, so nothing is noted; a
    replay is one row, and its kernels are not seen one by one.  Nor are kernels that a program launches by itself
    (``rg.cuda.Kernel``).

    Attributes:
        calls: each call, in the order in which they ended on the host.
        seconds: of the block; a GPU was waited for at its end.

    Raises:
        ArgumentError: another profile is on, or this one is read before its block has ended.
    """

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.seconds: float | None = None
        self._backends: dict[Any, str] = {}
        self._start = 0

    def __enter__(self) -> Self:
        global _on
        with _switching:
            if _on is not None:
                raise ArgumentError("profile: only one can be on at a time; end the other block first")
            self.calls, self.seconds = [], None
            _on = self
            for kind, methods in _OURS.items():
                for name, method in methods.items():
                    setattr(kind, name, method)
        self._start = _clock()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        global _on
        with _switching:
            for owner, methods in _PLAIN.items():
                for name, method in methods.items():
                    setattr(owner, name, method)
            _on = None
        try:
            self._ask_events()
        except Exception:  # a GPU that failed tells no times: what ran on it is left out
            if error is None:
                raise
        finally:
            self.calls = [call for call in self.calls if call.events is None]
            self.seconds = (_clock() - self._start) / 1e9

    def _ask_events(self) -> None:
        """Wait for the GPUs, and turn their events into the host's time."""
        now: dict[int, tuple[Any, int]] = {}
        for call in self.calls:
            if call.events is None:
                continue
            device, *both = call.events
            cuda = device.array_module.cuda
            if id(device) not in now:
                device.synchronize()
                event = cuda.Event()
                event.record()  # happens at once, since there is nothing left to do
                event.synchronize()
                now[id(device)] = event, _clock()
            event, host = now[id(device)]
            call.begin, call.end = (host - round(1e6 * cuda.get_elapsed_time(one, event)) for one in both)
            call.events = None

    # ------------------------------------------------------------ noting

    def _note(self, operation: Operation, function: str, kernel: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
        """Call ``kernel``, which is ``function`` of ``operation``, and note it."""
        called = _clock()
        device = next((device_of(array) for array in arrays_in(arguments)), None)
        timed = _timed(kernel, arguments, device)
        bytes = bytes_of(function, arguments, timed.result)
        operations = operations_of(operation.package, function, arguments)
        backend = self._backend(operation, "cpu" if device is None else device.name)
        self._add(called, timed, function, backend, shapes_of(arguments), bytes, operations)
        return timed.result

    def _note_replay(self, graph: _graph.DeviceGraph, launch: Callable[[_graph.DeviceGraph], None]) -> None:
        called = _clock()
        self._add(called, _timed(launch, (graph,), graph.device), REPLAY, "", (), 0, 0)

    def _add(
        self,
        called: int,
        timed: _Timed,
        function: str,
        backend: str,
        shapes: tuple[Any, ...],
        bytes: int,
        operations: int,
    ) -> None:
        _, row, began, ended, events = timed
        call = Call(function, backend, shapes, row, began, ended, bytes, operations, (called, began, ended, 0), events)
        self.calls.append(call)
        call.host = called, began, ended, _clock()  # last, so that all of this is in it

    def _backend(self, operation: Operation, device: str) -> str:
        choice = current_choice()
        key = operation.name, device, choice
        found = self._backends.get(key)
        if found is None:
            name, pin = operation.backend_for(device), choice.pin_of(operation.name)
            found = self._backends[key] = f"{name} {pin}" if pin else name
        return found

    # ------------------------------------------------------------ what it found

    def _ended(self) -> float:
        if self.seconds is None:
            raise ArgumentError("profile: must be read after its block has ended")
        return self.seconds

    def _parts(self) -> tuple[float, float, float]:
        """Seconds in which a kernel ran, in which else one was noted, and in which neither was."""
        kernels, noting = [], []
        for call in self.calls:
            called, began, ended, noted = call.host
            kernels.append((call.begin, call.end))
            noting += [(called, began), (ended, noted)]
        ran, together = _union(kernels) / 1e9, _union(kernels + noting) / 1e9
        return ran, together - ran, self._ended() - together

    def outside(self) -> float:
        """Seconds in which no kernel ran: Python, NumPy's arithmetic, waiting for data.  Without those of noting."""
        return self._parts()[2]

    def rows(self, limits: tuple[float, float] | None = None, *, shapes: bool = False) -> list[Row]:
        """The calls by kernel, those that took longest first.

        Args:
            limits: what the machine can do at most, as :class:`Limits`: bytes and operations per second.
            shapes: a row for each combination of shapes.
        """
        self._ended()
        most = None if limits is None else _checked(limits)
        together: dict[tuple[str, str, str], list[Call]] = {}
        for call in self.calls:
            words = _in_words(call.shapes) if shapes else ""
            together.setdefault((call.function, call.backend, words), []).append(call)
        rows = [
            Row(
                *key,
                len(calls),
                sum(call.end - call.begin for call in calls) / 1e9,
                sum(call.bytes for call in calls),
                sum(call.operations for call in calls),
                None if most is None else sum(most.seconds(call.bytes, call.operations) for call in calls),
            )
            for key, calls in together.items()
        ]
        return sorted(rows, key=lambda row: -row.seconds)

    def table(self, limits: tuple[float, float] | None = None, *, shapes: bool = False) -> str:
        """A table by kernel: calls, time, share of the whole, bytes, operations, and rates.

        Bytes are those of all arrays that a call reads or writes, each once; operations those of its products, two for
        each multiply-add.

        Args:
            limits, shapes: as in :meth:`rows`.  With limits there is also a column of what share of them is reached:
                the least time for so many bytes and operations over the time taken.  Where the arrays are found in
                a cache it can be above 100 %.
        """
        ran, noting, outside = self._parts()
        whole = ran + outside
        rows = self.rows(limits, shapes=shapes)
        head = _HEAD if limits is None else (*_HEAD, "of the limit")
        lines = [head, *(_cells(row, whole) for row in rows)]
        lines.append(
            ("outside kernels", "", "", duration(outside), "", _percent(outside, whole), *[""] * (len(head) - 6))
        )
        right = set(range(2, len(head)))
        if shapes:
            words = ["shapes", *(row.shapes for row in rows), ""]
            lines = [(*line, word) for line, word in zip(lines, words, strict=True)]
        count = f"{len(self.calls):,} call{'s' if len(self.calls) != 1 else ''} of kernels in {duration(whole)}"
        ended = f"{count}; noting took {duration(noting)} more"
        return "\n".join([*map(str.rstrip, aligned(lines, right)), ended])

    def __str__(self) -> str:
        return "a profile whose block has not ended" if self.seconds is None else self.table()

    def trace(self, path: str | os.PathLike[str]) -> None:
        """Write all calls as trace events, which Perfetto (ui.perfetto.dev) and chrome://tracing open.

        There is a row for each thread, and on a GPU for each stream.
        """
        self._ended()
        spans = [
            _trace_events.Span(
                call.row,
                call.function,
                call.function,
                call.begin,
                call.end,
                {
                    "backend": call.backend,
                    "shapes": _in_words(call.shapes),
                    "microseconds": (call.end - call.begin) / 1e3,
                    "bytes": call.bytes,
                    "operations": call.operations,
                },
            )
            for call in self.calls
        ]
        _trace_events.write(path, "kernels", spans, start=self._start)


class _Timed(NamedTuple):
    """What a kernel gave, on which row of the timeline, between which times of the host, or events on a GPU."""

    result: Any
    row: str
    began: int
    ended: int
    events: tuple[Device, Any, Any] | None


def _timed(kernel: Callable[..., Any], arguments: tuple[Any, ...], device: Device | None) -> _Timed:
    """Call ``kernel``, whose arrays are on ``device``."""
    if device is None or device.array_type is np.ndarray:
        row, events = threading.current_thread().name, None
    else:
        cuda = device.array_module.cuda
        row, events = f"GPU, stream {cuda.get_current_stream().ptr}", (device, cuda.Event(), cuda.Event())
        events[1].record()
    _inside.a_call = True
    try:
        began = _clock()
        result = kernel(*arguments)
        ended = _clock()
    finally:
        _inside.a_call = False
    if events is not None:
        events[2].record()
    return _Timed(result, row, began, ended, events)


#: The profile that is on.
_on: profile | None = None
_switching = threading.Lock()
_inside = threading.local()


def _noted(operation: Operation, function: str, kernel: Callable[..., Any]) -> Callable[..., Any]:
    """``kernel``, noting its calls in the profile that is on."""
    on = _on

    def call(*arguments: Any) -> Any:
        capturing = _graph.under_way and _graph.current() is not None
        if on is None or capturing or getattr(_inside, "a_call", False):
            return kernel(*arguments)
        return on._note(operation, function, kernel, arguments)

    return call


def _run(self: Operation, function: str, device: str, *arguments: Any, version: str | None = None) -> Any:
    return _noted(self, function, self._kernel(function, device, version))(*arguments)


def _passed(self: Operation, function: str, *signature: Any) -> Callable[..., Any] | None:
    kernel = _PLAIN[Operation]["passed"](self, function, *signature)
    return None if kernel is None else _noted(self, function, kernel)


def _passes(self: Operation, function: str, *signature: Any, **options: Any) -> Callable[..., Any]:
    return _noted(self, function, _PLAIN[Operation]["passes"](self, function, *signature, **options))


def _launch(self: _graph.DeviceGraph) -> None:
    plain, on = _PLAIN[_graph.DeviceGraph]["launch"], _on
    if on is None:
        plain(self)
    else:
        on._note_replay(self, plain)


#: What a profile replaces, and by what.
_OURS: dict[type, dict[str, Any]] = {
    Operation: {"run": _run, "passed": _passed, "passes": _passes},
    _graph.DeviceGraph: {"launch": _launch},
}
_PLAIN = {kind: {name: getattr(kind, name) for name in methods} for kind, methods in _OURS.items()}


def _in_words(shapes: tuple[Any, ...]) -> str:
    return " ".join(f"{shape} arrays" if isinstance(shape, int) else str(tuple(shape)) for shape in shapes)


def _checked(limits: tuple[float, float]) -> Limits:
    try:
        most = Limits(*map(float, limits))
        if min(most) > 0:
            return most
    except (TypeError, ValueError):
        pass
    raise ArgumentError(f"profile: limits must be bytes and operations per second, both positive; got {limits!r}")


def _union(spans: list[tuple[int, int]]) -> int:
    """The length of what is covered by any of the ``spans`` (begin, end)."""
    covered, reached = 0, -1
    for begin, end in sorted(spans):
        if end > reached:
            covered += end - max(begin, reached)
            reached = end
    return covered


def _percent(part: float, whole: float) -> str:
    return f"{100 * part / whole:.1f} %" if whole else "-"


def _cells(row: Row, whole: float) -> tuple[str, ...]:
    """A line of the table."""
    per_second = 1e9 * row.seconds if row.seconds else float("inf")
    return (
        row.function,
        row.backend,
        f"{row.calls:,}",
        duration(row.seconds),
        duration(row.seconds / row.calls),
        _percent(row.seconds, whole),
        f"{quantity(row.bytes)}B" if row.bytes else "-",
        f"{row.bytes / per_second:.3g}" if row.bytes else "-",
        quantity(row.operations) if row.operations else "-",
        f"{row.operations / per_second:.3g}" if row.operations else "-",
        *(() if row.least is None else (_percent(row.least, row.seconds) if row.least else "-",)),
    )
