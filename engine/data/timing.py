"""What a pass over a loader tells: when each batch was asked for, read, copied, taken."""

from __future__ import annotations

from typing import Any, NamedTuple


class Step(NamedTuple):
    """One batch's times, in nanoseconds of ``time.perf_counter_ns``.

    Attributes:
        number: which batch of the epoch.
        asked, taken: when training asked for it, and when it had it.
        ready: how many batches lay ready when it asked.
        begun, ended: of reading it.
        reader: who read it.
        copied: what knows the times of its copy to the device; None without one.
    """

    number: int
    asked: int
    taken: int
    ready: int
    begun: int
    ended: int
    reader: int
    copied: Any
