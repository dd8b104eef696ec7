"""How a figure comes about: contestants do the same work side by side in one process.

1. *Validate.*  Each contestant's result is checked against the reference.  A wrong result is an
   error, :class:`WrongResult`: nothing is timed, and the record has the row as failed.
2. *Warm up and calibrate.*  Each contestant is called a few times, then its number of calls per
   round is set so that a round lasts at least ``min_round`` seconds.
3. *Measure in rounds.*  In each round every contestant has one turn; who begins rotates from round
   to round, so that a machine that becomes slower or faster does so for all.  A turn opens with a
   pause of :data:`SETTLE` seconds, in which the idle threads of the one before it stop spinning,
   and with a tenth of its calls, not timed, in which caches and threads become its own.
4. *Report* medians and quartiles over the rounds, and the ratio peer / rawgrad of each round, whose
   median is not moved by what happens to both; and beside them what the machine can do at most, as
   seen before and after the rounds.

Where calls get input sets that are together larger than the caches (:func:`sets_past_cache`), no
call finds its inputs in a cache.  The CPU time that other processes used meanwhile is recorded.
"""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..kernels._errors import ArgumentError, RawgradError
from ..recipes import machine
from . import load
from .results import Entry, Limits, Memory, Missing, Rates, Ratio, Row, Spread

#: The contestant that the ratios compare with.
OURS = "rawgrad"
#: Seconds.  Measured on two cores: OpenBLAS's second thread spins for 45 ms after its last call,
#: OpenMP's for up to 7 ms; without the pause they take a core from whoever comes next.
SETTLE = 0.1
_WARM_UP_CALLS = 3

Clock = Callable[[], int]


class WrongResult(RawgradError, AssertionError):
    """A contestant's result does not agree with the reference, so its time means nothing."""


@dataclass
class Contestant:
    """One way to do the work.

    Attributes:
        name: ``rawgrad`` or the peer's.
        call: the work; called as ``call(*inputs[i])`` with the input sets in turn.
        inputs: one or more sets of arguments.
        detail: version, backend or options, for the record.
        result: gives what is checked, in host arrays; by default the result of the first call.
        reset: called, not timed, before each turn; makes work that has a state start afresh.
        patience: seconds of a call from which on it takes no part, and is named as missing with its time.
    """

    name: str
    call: Callable[..., Any]
    inputs: Sequence[tuple[Any, ...]] = ((),)
    detail: str = ""
    result: Callable[[], Any] | None = None
    reset: Callable[[], None] | None = None
    patience: float = math.inf
    _calls: int = field(default=0, init=False, repr=False)

    def checked_result(self) -> Any:
        """What the check of the work gets."""
        return self.call(*self.inputs[0]) if self.result is None else self.result()

    def turn(self, calls: int, clock: Clock, settle: float) -> float:
        """Seconds per call over ``calls`` calls, after the opening that the head of this module tells of."""
        opening = 1 + calls // 10
        sets = [self.inputs[(self._calls + i) % len(self.inputs)] for i in range(opening + calls)]
        self._calls += len(sets)
        opening_sets, sets = sets[:opening], sets[opening:]
        time.sleep(settle)
        if self.reset is not None:
            self.reset()
        gc.collect()  # the garbage of the one before
        call = self.call
        for arguments in opening_sets:
            call(*arguments)
        return self.timed(sets, clock) / calls / 1e9

    def timed(self, sets: Sequence[tuple[Any, ...]], clock: Clock) -> float:
        """Nanoseconds of a call for each of ``sets``."""
        call = self.call
        start = clock()
        for arguments in sets:
            call(*arguments)
        return clock() - start


@dataclass(frozen=True)
class Work:
    """The same work for several contestants, and how to tell a right result.

    Attributes:
        missing: contestants that could not be made, with the reason.
        name, description, dtype, layout, flops, bytes: as in :class:`~rawgrad.bench.results.Row`.
        contestants: in the order of the first round.
        reference: computes the result that is right.
        reference_name: what that is, for the record.
        check: ``check(result, reference)`` raises AssertionError, saying where, if they disagree.
    """

    name: str
    description: str
    contestants: Sequence[Contestant]
    reference: Callable[[], Any]
    reference_name: str
    check: Callable[[Any, Any], None]
    dtype: str = "float32"
    layout: str = "contiguous"
    flops: int = 0
    bytes: int = 0
    missing: Sequence[Missing] = ()


def sets_past_cache(bytes_of_one: int) -> int:
    """How many input sets of that size are together twice the last-level cache, at least 2, at most 256."""
    return int(min(256, max(2, -(-2 * machine.cache_bytes() // max(1, bytes_of_one)))))


def assert_close(result: Any, reference: Any, tolerance: float, what: str = "result") -> None:
    """Every element of ``result`` within ``tolerance`` times the largest magnitude in ``reference``.

    Tuples, lists and mappings are compared item by item.

    Raises:
        AssertionError: naming the item, the worst index, both values and the share of the budget used.
    """
    if isinstance(reference, Mapping):
        result, reference = list(result.values()), list(reference.values())
    if isinstance(reference, tuple | list):
        assert len(result) == len(reference), f"{what} must have {len(reference)} items; got {len(result)}"
        for i, (one, other) in enumerate(zip(result, reference, strict=True)):
            assert_close(one, other, tolerance, f"{what}[{i}]")
        return
    result, reference = np.asarray(result, np.float64), np.asarray(reference, np.float64)
    assert result.shape == reference.shape, f"{what} must have shape {reference.shape}; got {result.shape}"
    if reference.size == 0:
        return
    error = np.abs(result - reference)
    budget = tolerance * np.abs(reference).max()
    if not error.max() <= budget:  # also when it is NaN
        worst = np.unravel_index(np.argmax(np.where(np.isnan(error), np.inf, error)), error.shape)
        raise AssertionError(
            f"{what}{list(map(int, worst))} must be {reference[worst]:.9g} within {budget:.3g}; got {result[worst]:.9g}"
            f", off by {error[worst]:.3g}"
        )


def validate(work: Work) -> None:
    """Check each contestant's result against the reference.

    Raises:
        WrongResult: names the work, the contestant and the first disagreement.
    """
    reference = work.reference()
    for contestant in work.contestants:
        try:
            work.check(contestant.checked_result(), reference)
        except AssertionError as error:
            raise WrongResult(f"{work.name}: {contestant.name} gives a wrong result: {error}") from error


def calibrate(contestant: Contestant, min_round: float, clock: Clock, settle: float) -> int:
    """Warm up, then find how many calls last at least ``min_round`` seconds."""
    contestant.turn(_WARM_UP_CALLS, clock, settle)
    calls = 1
    while (seconds := contestant.turn(calls, clock, settle) * calls) < min_round:
        # Aim a little higher; at most tenfold, since the first guess may be off.
        calls = max(calls + 1, min(10 * calls, int(1.1 * calls * min_round / max(seconds, 1e-9)) + 1))
    return calls


def ratios(seconds: Mapping[str, Sequence[float]]) -> list[Ratio]:
    """Each peer's time over ours, round by round; none without us."""
    return [
        Ratio(name, Spread.of([peer / ours for peer, ours in zip(theirs, seconds[OURS], strict=True)]))
        for name, theirs in seconds.items()
        if name != OURS and OURS in seconds
    ]


def measure(
    work: Work,
    *,
    rounds: int = 20,
    min_round: float = 0.1,
    settle: float = SETTLE,
    threads: int = 1,
    memory: Mapping[str, Memory] | None = None,
    rates: Callable[[], Rates] | None = None,
    clock: Clock = time.perf_counter_ns,
    cpu_times: Callable[[], load.CpuTimes | None] = load.cpu_times,
) -> Row:
    """Validate and time ``work`` as the head of this module tells.

    Args:
        rounds: how many, at least 1.
        min_round: seconds that each contestant's turn lasts at least.
        settle: seconds of pause before each turn.
        threads: for the record; ``peers.set_threads`` sets them.
        memory: measured before, by contestant (``memory.measure``).
        rates: what the machine can do; asked before and after the rounds, if the work states flops or bytes.
        clock: nanoseconds.
        cpu_times: the load of the machine.

    Raises:
        WrongResult: a contestant's result is wrong.
    """
    if rounds < 1:
        raise ArgumentError(f"bench: rounds must be an integer of at least 1; got {rounds!r}")
    validate(work)
    ask = rates if rates is not None and (work.flops or work.bytes) else None
    seen = [ask()] if ask else []
    calls, contestants, missing = dict[str, int](), list[Contestant](), list(work.missing)
    seconds: dict[str, list[float]] = {}
    gc.collect()
    gc.freeze()  # what is there stays: the collection before each turn need not look at every library's objects
    try:
        for one in work.contestants:
            alone = one.turn(1, clock, settle) if math.isfinite(one.patience) else 0.0
            if alone > one.patience:
                missing.append(Missing(one.name, f"a call takes {alone:.2g} s; over {one.patience:g} s it is left out"))
                continue
            contestants.append(one)
            calls[one.name], seconds[one.name] = calibrate(one, min_round, clock, settle), []
        before = cpu_times()
        for r in range(rounds):
            first = r % len(contestants)
            for contestant in (*contestants[first:], *contestants[:first]):
                seconds[contestant.name].append(contestant.turn(calls[contestant.name], clock, settle))
    finally:
        gc.unfreeze()
    others = load.others_share(before, cpu_times())
    limits = Limits.of([*seen, ask()], work.flops, work.bytes) if ask else None
    spreads = {name: Spread.of(times) for name, times in seconds.items()}
    return Row(
        name=work.name,
        description=work.description,
        dtype=work.dtype,
        layout=work.layout,
        flops=work.flops,
        bytes=work.bytes,
        threads=threads,
        validated_against=work.reference_name,
        load_of_others=others,
        noisy=others is not None and others > load.NOISY,
        entries=[
            Entry(
                name=c.name,
                detail=c.detail,
                inner=calls[c.name],
                seconds=spreads[c.name],
                round_seconds=seconds[c.name],
                memory=(memory or {}).get(c.name),
                fraction=limits.seconds / spreads[c.name].median if limits else None,
            )
            for c in contestants
        ],
        ratios=ratios(seconds),
        limits=limits,
        missing=missing,
    )
