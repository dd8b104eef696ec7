"""Fault flags: how a kernel that met bad data says so, and when the host looks.

A kernel must not stop at a label out of range.  It lowers a flag to the position of the label and goes on; the
host looks at the flags when it waits for the device anyway, and raises what they mean.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from . import _graph
from ._devices import device_of
from ._launch import _runtimes, runtime_of

#: What a fault flag holds while nothing is wrong; larger than every position.
NO_FAULT = 2**63 - 1

_free_flags: dict[type, list[Any]] = {}


class Watch:
    """A fault flag and what it means when it was lowered.

    Attributes:
        kept: it belongs to a captured graph, whose replays use it again and again.
        waiting: it is going to be looked at.
    """

    __slots__ = ("error", "flag", "kept", "waiting")

    def __init__(self, flag: Any, error: Callable[[int], Exception], kept: bool) -> None:
        self.flag, self.error, self.kept, self.waiting = flag, error, kept, False


#: By type of array and stream on which the kernel was launched.
_watched: dict[tuple[type, int], list[Watch]] = {}
#: So many unchecked launches may be under way before the oldest is waited for.
_MAX_WATCHED = 256


def fault_flag(like: Any) -> Any:
    """A one-element int64 array on the device of ``like``, holding :data:`NO_FAULT`.

    A kernel that meets bad data (a label out of range) lowers it to the position of the data by an
    integer atomicMin and goes on without them; then :func:`watch` the flag.
    """
    free = _free_flags.setdefault(type(like), [])
    if free:
        return free.pop()
    with _graph.outside():  # a fault must outlast the next replay
        return device_of(like).array_module.full(1, NO_FAULT, np.int64)


def watch(flag: Any, error: Callable[[int], Exception]) -> None:
    """Have ``error(position)`` raised if the flag was lowered: on the emulator now, on a GPU at the next check.

    Checks are those moments at which the host waits for the GPU anyway (:func:`check_faults`).  In a capture the
    flag becomes the graph's, which watches it in each replay.
    """
    graph = _graph.current() if _graph.under_way else None
    if graph is not None:
        graph.watches.append(Watch(flag, error, kept=True))
    else:
        watch_again([Watch(flag, error, kept=False)])


def watch_again(watches: Sequence[Watch]) -> None:
    """Wait for faults of kernels that were just launched on the current stream; see :func:`watch`."""
    for one in watches:
        if one.waiting:
            continue
        runtime, kind = runtime_of(one.flag), type(one.flag)
        waiting = _watched.setdefault((kind, runtime.stream()), [])
        waiting.append(one)
        one.waiting = True
        if runtime.synchronous or len(waiting) > _MAX_WATCHED:
            check_faults(kind)


def check_faults(kind: type, every_stream: bool = False) -> None:
    """Raise what the oldest failed :func:`watch` has to say, on arrays of type ``kind``.

    It waits for the current stream and looks at what was launched there; with ``every_stream`` at all,
    which must have come to their end.
    """
    streams = [key for key in tuple(_watched) if key[0] is kind]
    if not streams:
        return
    if not every_stream:
        current = _runtimes[kind].stream()
        streams = [key for key in streams if key[1] == current]
    for key in streams:
        waiting = _watched.pop(key, [])
        if not waiting:
            continue
        device = device_of(waiting[0].flag)
        flags = [one.flag for one in waiting]
        positions = device.to_host(flags[0] if len(flags) == 1 else device.array_module.concatenate(flags))
        lowered = []
        for one, position in zip(waiting, positions, strict=True):
            one.waiting = False
            if position != NO_FAULT:
                lowered.append((one, int(position)))
            elif not one.kept:
                _free_flags.setdefault(kind, []).append(one.flag)
            if one.kept and position != NO_FAULT:
                one.flag[...] = NO_FAULT  # for the next replay
        if lowered:
            first, position = lowered[0]
            raise first.error(position)  # the rest is consequence
