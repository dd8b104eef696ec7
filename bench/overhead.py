"""What a training step spends outside compiled kernels: checks, dispatch, graph, optimizer, all of it Python.

The step whole is timed as in any row.  Beside it takes part a contestant of the name :data:`OUTSIDE`: the same
training, whose figure is the time that is not inside a compiled function called from Python.  For its turns alone
every such call is timed by a wrapper, and what that costs, measured on a function that does nothing, is
subtracted.  Numba's own handling of arguments counts as kernel; what NumPy computes for us counts as outside.

A figure taken that way is not moved by threads that wait for each other inside a kernel, as the difference of two
turns would be.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from ..kernels._dispatch import backend_of
from ..kernels._errors import BackendError
from . import programs
from .harness import OURS, Clock, Contestant, Work
from .peers import library
from .results import Row

#: The contestant whose time is that outside compiled kernels.
OUTSIDE = "rawgrad outside kernels"
_ROUNDS, _CALLS = 10, 2_000


@dataclass
class Account:
    """Nanoseconds inside compiled functions, and the number of calls."""

    nanoseconds: int = 0
    calls: int = 0


@contextmanager
def timed_kernels(clock: Clock) -> Iterator[Account]:
    """Time every call of a compiled function from Python, in the whole process, until the block ends."""
    from numba.core import dispatcher

    compiled: Any = dispatcher.Dispatcher
    account, call = Account(), compiled.__call__

    def timed(self: Any, *arguments: Any, **named: Any) -> Any:
        start = clock()
        try:
            return call(self, *arguments, **named)
        finally:
            account.nanoseconds += clock() - start
            account.calls += 1

    compiled.__call__ = timed
    try:
        yield account
    finally:
        del compiled.__call__  # what it inherits is its own again


def _nothing(x: int) -> None:
    pass


def cost_of_timing(clock: Clock) -> float:
    """Nanoseconds that :func:`timed_kernels` spends on a call outside of its two looks at the clock."""
    from ..kernels._jit import serial

    nothing, costs = serial(_nothing), []
    nothing(0)
    for _ in range(_ROUNDS):
        with timed_kernels(clock) as account:
            start = clock()
            for _ in range(_CALLS):
                nothing(0)
            costs.append((clock() - start - account.nanoseconds) / _CALLS)
    return min(costs)  # what is slower was disturbed


@dataclass
class OutsideKernels(Contestant):
    """A contestant whose turns give the seconds outside compiled kernels instead of all.

    Attributes:
        cost: nanoseconds of timing one call of a kernel, measured before the first turn.
    """

    cost: float | None = field(default=None, init=False)

    def timed(self, sets: Sequence[tuple[Any, ...]], clock: Clock) -> float:
        """Nanoseconds outside compiled kernels of a call for each of ``sets``."""
        if self.cost is None:
            self.cost = cost_of_timing(clock)
        with timed_kernels(clock) as account:
            whole = super().timed(sets, clock)
        self.detail = (
            f"{account.calls / len(sets):.3g} calls of compiled functions a step left out, each with "
            f"{self.cost:.0f} ns of timing"
        )
        return whole - account.nanoseconds - account.calls * self.cost


def overhead(name: str, batch: int, contestants: Sequence[str]) -> Work:
    """The row of one program at one batch: whole steps, and of ours what is outside kernels.

    Raises:
        BackendError: the kernels that would run are not Numba's, and so are not seen.
    """
    active = backend_of("cpu")
    if active != "numba":
        raise BackendError(f"bench: overhead times the kernels of backend 'numba'; the active one is {active!r}")
    work = programs.train_step(name, batch, [who for who in contestants if who != OUTSIDE])
    work = replace(work, name=f"overhead_{name}_batch{batch}", flops=0)  # a part of a step does none of its own
    if OUTSIDE not in contestants:
        return work
    ours = programs.contestant(library(OURS), programs.PROGRAMS[name], batch)
    outside = OutsideKernels(OUTSIDE, ours.call, ours.inputs, result=ours.result, reset=ours.reset)
    return replace(work, contestants=[*work.contestants, outside])


def summary(row: Row) -> str | None:
    """In words what a row's step spends outside kernels; None for rows that do not tell."""
    times = {entry.name: entry.seconds.median * 1e6 for entry in row.entries}
    share = next((ratio.times.median for ratio in row.ratios if ratio.peer == OUTSIDE), None)
    if share is None:
        return None
    whole, outside = times.pop(OURS), times.pop(OUTSIDE)
    others = "".join(f"; {name}'s whole step {time:.0f} µs" for name, time in times.items())
    return f"{row.name}: {outside:.0f} of {whole:.0f} µs a step ({share:.0%}) outside kernels{others}"
