"""How the time of a training step grows with batch, channels, depth and threads, and how that of a peer does.

A series is the same network at several sizes.  For each round a power of the size is fitted to its times, by least
squares of their logarithms: time = constant × size ** exponent.  The exponent's median and quartiles over the rounds
are reported, and how far the medians lie from the line: where that is much, time is no power of the size (small sizes
cost what a call costs; large ones no longer fit into a cache).  All sizes and contestants take turns in each round.

``rawgrad bench growth`` measures; the contestants are proved right at each size as in every row of training steps.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ..kernels._errors import ArgumentError
from ..recipes import machine
from . import load, peers, programs, results, shapes
from .harness import OURS, SETTLE, Clock, Contestant, Work, calibrate, validate
from .options import positive, rate
from .peers import Library
from .progress import Progress
from .results import Spread

KIND = "growth"
_ROUNDS, _MIN_ROUND = 10, 0.05
_SIDE, _WIDTH = 28, 100


@dataclass(frozen=True)
class Axis:
    """Something that grows.

    Attributes:
        what: the work, in words.
        sizes: in increasing order, at least two.
        build: makes the work of a size for contestants.
        threads: whether the size is the number of threads.
    """

    what: str
    sizes: tuple[int, ...]
    build: Callable[[int, Sequence[str]], Work]
    threads: bool = False


@dataclass(frozen=True)
class Series:
    """One contestant along one axis.

    Attributes:
        axis, what, contestant, detail: which.
        sizes: along the axis.
        seconds: of a step at each size.
        exponent: of the fitted power, over the rounds.
        off: the most that a median differs from the power fitted to the medians, as a share of it.
    """

    axis: str
    what: str
    contestant: str
    detail: str
    sizes: list[int]
    seconds: list[Spread]
    exponent: Spread
    off: float


def fitted(sizes: Sequence[float], seconds: Sequence[float]) -> tuple[float, float]:
    """Exponent and constant of the power of ``sizes`` nearest to ``seconds``, by the squares of their logarithms."""
    exponent, constant = np.polyfit(np.log(sizes), np.log(seconds), 1)
    return float(exponent), float(np.exp(constant))


def series(axis: str, what: str, one: Contestant, sizes: Sequence[int], rounds: Sequence[Sequence[float]]) -> Series:
    """From the seconds of each round, a list by size."""
    spreads = [Spread.of(times) for times in zip(*rounds, strict=True)]
    medians = [spread.median for spread in spreads]
    exponent, constant = fitted(sizes, medians)
    off = max(abs(t / (constant * size**exponent) - 1) for size, t in zip(sizes, medians, strict=True))
    exponents = Spread.of([fitted(sizes, times)[0] for times in rounds])
    return Series(axis, what, one.name, one.detail, [*sizes], spreads, exponents, off)


def _convolutions(channels: int) -> programs.Program:
    """Two 3×3 convolutions with as many channels, each with ReLU and pooling; one linear layer."""

    def network(lib: Library) -> Any:
        nn, layers, before = lib.nn, [], 1
        for _ in range(2):
            layers += [nn.Conv2d(before, channels, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
            before = channels
        return nn.Sequential(*layers, nn.Flatten(), nn.Linear(channels * (_SIDE // 4) ** 2, 10))

    return programs.Program(
        f"CNN {channels}-{channels}, 3×3", network, lambda lib, p: lib.optim.SGD(p, lr=0.01), _unstated
    )


def _linears(depth: int) -> programs.Program:
    """784-100-…-100-10 with ``depth`` layers 100-100, ReLU between."""

    def network(lib: Library) -> Any:
        nn, layers, before = lib.nn, [], _SIDE**2
        for _ in range(1 + depth):
            layers += [nn.Linear(before, _WIDTH), nn.ReLU()]
            before = _WIDTH
        return nn.Sequential(*layers, nn.Linear(_WIDTH, 10))

    return programs.Program(
        f"784-100-10 with {depth} layers 100-100 between", network, lambda lib, p: lib.optim.SGD(p, lr=0.01),
        _unstated, flat=True,
    )  # fmt: skip


def _unstated(batch: int) -> shapes.Step:
    """No operations are stated: they are not what is asked."""
    return shapes.Step((), ())


def _p5(batch: int, who: Sequence[str]) -> Work:
    return programs.train_step("p5", batch, who)


def axes() -> dict[str, Axis]:
    """What can grow, by name; threads only where there are several."""
    cores = machine.usable_cores()
    counts = (*(n for n in (1, 2, 4, 8, 16, 32, 64) if n < cores), cores)
    found = {
        "batch": Axis("a training step of P5, by batch", (16, 32, 64, 128, 256), _p5),
        "channels": Axis(
            "a training step of two 3×3 convolutions at batch 32, by their channels",
            (8, 16, 32, 64),
            lambda size, who: programs.work_of(_convolutions(size), f"channels_{size}", 32, who),
        ),
        "depth": Axis(
            "a training step of 784-100-…-100-10 at batch 100, by the layers 100-100",
            (2, 4, 8, 16, 32),
            lambda size, who: programs.work_of(_linears(size), f"depth_{size}", 100, who),
        ),
        "threads": Axis("a training step of P5 at batch 256, by threads", counts, lambda _, who: _p5(256, who), True),
    }
    return {name: axis for name, axis in found.items() if len(axis.sizes) > 1}


def _with_threads(one: Contestant, count: int) -> Contestant:
    """The contestant with a number of threads of its own, set before each of its turns."""
    before = one.reset

    def reset() -> None:
        peers.set_threads(count)
        if before is not None:
            before()

    return replace(one, reset=reset)


def measure(
    name: str,
    axis: Axis,
    who: Sequence[str],
    *,
    threads: int,
    rounds: int = _ROUNDS,
    min_round: float = _MIN_ROUND,
    settle: float = SETTLE,
    clock: Clock = time.perf_counter_ns,
) -> list[Series]:
    """The series of each contestant.

    Args:
        name, axis: which.
        who: the contestants.
        threads: of each, unless they are what grows.
        rounds, min_round, settle, clock: as in :func:`.harness.measure`.

    Raises:
        WrongResult: a contestant's result is wrong.
    """
    points: list[tuple[int, Contestant]] = []
    for size in axis.sizes:
        work = axis.build(size, who)
        peers.set_threads(size if axis.threads else threads)
        if not axis.threads or size == axis.sizes[0]:
            validate(work)
        points += [(size, _with_threads(one, size if axis.threads else threads)) for one in work.contestants]
    calls = [calibrate(one, min_round, clock, settle) for _, one in points]
    seen: dict[str, list[dict[int, float]]] = {one: [] for one in who}
    for r in range(rounds):
        for times in seen.values():
            times.append({})
        for i in range(len(points)):
            at = (i + r) % len(points)
            size, one = points[at]
            seen[one.name][-1][size] = one.turn(calls[at], clock, settle)
    first = {one.name: one for _, one in points}
    return [
        series(name, axis.what, first[one], axis.sizes, [[times[size] for size in axis.sizes] for times in seen[one]])
        for one in who
    ]


def markdown(found: Sequence[Series]) -> str:
    """A table of the exponents."""
    head = ["axis", "contestant", "exponent", "quartiles", "off the line", "sizes", "medians"]
    lines = [head, ["---"] * len(head), *map(cells, found)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def cells(one: Series) -> list[str]:
    """Of one series, for a table."""
    exponent = one.exponent
    return [
        one.axis,
        one.contestant,
        f"{exponent.median:.2f}",
        f"{exponent.q1:.2f} – {exponent.q3:.2f}",
        f"{one.off:.0%}",
        ", ".join(map(str, one.sizes)),
        ", ".join(results.in_units(spread.median) for spread in one.seconds),
    ]


def of_content(content: Mapping[str, Any], path: str) -> list[Series]:
    """The series of a record.

    Raises:
        DataError: it lacks a key, or has one of another type; the message says where.
    """
    return results.parsed(list[Series], content.get("series"), f"{path}: series")


def main(argv: Sequence[str] | None = None) -> int:
    """``rawgrad bench growth``."""
    known = axes()
    parser = argparse.ArgumentParser(
        prog="rawgrad bench growth",
        description="How the time of a training step grows with batch, channels, depth and threads: the exponent of "
        "the power that fits best, for rawgrad and its peers.",
    )
    parser.add_argument("axes", nargs="*", metavar="AXIS", help=f"{', '.join(known)} (default: all)")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write a JSON record")
    parser.add_argument("--rounds", type=positive, default=_ROUNDS, metavar="N", help="(default: %(default)s)")
    parser.add_argument(
        "--min-round", type=rate, default=_MIN_ROUND, metavar="S", help="least seconds of a turn (default: %(default)s)"
    )
    parser.add_argument(
        "--threads", type=positive, default=machine.usable_cores(), metavar="N", help="(default: %(default)s)"
    )
    options = parser.parse_args(argv)
    if unknown := [name for name in options.axes if name not in known]:
        raise ArgumentError(f"bench growth: axis must be one of {', '.join(known)}; got {unknown[0]!r}")
    who = [OURS, *peers.available()]
    for peer in peers.PEERS:
        if reason := peers.problem(peer):
            print(f"rawgrad bench: without {peer}: {reason}", file=sys.stderr)
    names = list(dict.fromkeys(options.axes or known))
    turns = {name: len(who) * len(known[name].sizes) * (options.rounds + 4) for name in names}
    progress = Progress({name: count * (SETTLE + 1.5 * options.min_round) for name, count in turns.items()})
    found, before = list[Series](), load.cpu_times()
    try:
        for name in names:
            progress.begin(name)
            found += measure(
                name, known[name], who, threads=options.threads, rounds=options.rounds, min_round=options.min_round
            )
            progress.end(name)
    finally:
        progress.close()
    others = load.others_share(before, load.cpu_times())
    print(markdown(found), end="")
    if others is not None and others > load.NOISY:
        print(f"\nnoisy: other processes used {others:.0%} of the CPU meanwhile")
    if options.out:
        told = {"kind": KIND, "threads": options.threads, "rounds": options.rounds, "others_share": others}
        results.write({**machine.provenance(), **told, "series": [asdict(one) for one in found]}, options.out)
        print(f"\nwritten: {options.out}")
    return 0
