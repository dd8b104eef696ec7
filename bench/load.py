"""How busy the machine was with other things while something was measured."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

#: Above this share of the machine's CPU time in other processes, a row is marked as noisy.
NOISY = 0.05


class CpuTimes(NamedTuple):
    """Seconds since some fixed moment, summed over all processors.

    Attributes:
        busy: spent computing by anyone, other virtual machines on the same processors included.
        total: that there were, busy or idle.
        own: spent computing by this process and by its children that have ended.
    """

    busy: float
    total: float
    own: float


def cpu_times() -> CpuTimes | None:
    """The times now, from ``/proc/stat`` and the process's own account; None without ``/proc/stat``.

    The resolution is one clock tick (10 ms): ask about a second or more.
    """
    try:
        line = Path("/proc/stat").read_text(encoding="ascii").split("\n", 1)[0]
    except OSError:
        return None
    # user nice system idle iowait irq softirq steal; what follows (guests) is counted in user already.
    ticks = [int(field) for field in line.split()[1:9]]
    total = sum(ticks)
    idle = ticks[3] + ticks[4]
    scale = os.sysconf("SC_CLK_TCK")
    return CpuTimes((total - idle) / scale, total / scale, sum(os.times()[:4]))


def idle_share(spans: Iterable[tuple[CpuTimes | None, CpuTimes | None]]) -> float | None:
    """The share of all CPU time between pairs of readings that nobody used, from 0 to 1."""
    known = [(before, after) for before, after in spans if before is not None and after is not None]
    total = sum(after.total - before.total for before, after in known)
    if total <= 0:
        return None
    return max(0.0, 1 - sum(after.busy - before.busy for before, after in known) / total)


def others_share(before: CpuTimes | None, after: CpuTimes | None) -> float | None:
    """The share of all CPU time between two readings that was not this process's own, from 0 to 1."""
    if before is None or after is None or after.total <= before.total:
        return None
    others = (after.busy - before.busy) - (after.own - before.own)
    return min(1.0, max(0.0, others / (after.total - before.total)))
