"""``rawgrad bench``: measure rows, print them as a table, write them into a result file."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from ..kernels._dispatch import BACKENDS
from ..kernels._errors import RawgradError
from ..recipes import machine
from . import first_step, load, memory, overhead, peers, results, rows
from .harness import measure
from .options import positive, rate, share
from .progress import Progress, expected, expected_trainings

_ROUNDS, _MIN_ROUND = 20, 0.1
#: Of --quick, and the seconds after which it begins no further row: three minutes with that one and a cold cache.
_QUICK_ROUNDS, _QUICK_MIN_ROUND, _QUICK_SECONDS = 7, 0.05, 120.0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="rawgrad bench",
        description="Measure rawgrad and its peers side by side in one process: results are validated first, the "
        "contestants take turns, medians are printed and, with --out, written with machine, versions, commit, command. "
        "Each row tells what share of the machine's limit is reached (a copy past the caches, multiply-adds in "
        "registers, both measured beside it) and the peak memory, measured in processes of its own.",
        epilog="rawgrad bench overhead: what a step of a small network spends outside compiled kernels. rawgrad bench "
        "time_to_accuracy: seconds from the start of a process until P5 knows 99 % of MNIST's test digits, for "
        "rawgrad with its kernels compiled before, for its first run, and for PyTorch; needs MNIST (RAWGRAD_DATA). "
        "rawgrad bench import first_step: seconds from the start of a process until a library is imported, and until a "
        "first training step is done, with compiled kernels and without. "
        "rawgrad bench profile: where a training step's time goes, kernel by kernel. "
        "rawgrad bench growth: how the time of a step grows with batch, channels, depth, threads. "
        "rawgrad bench instructions: how many each compiled kernel executes, beside those recorded. "
        "rawgrad bench report: tables and pictures of result files. rawgrad bench compare A B: which rows moved "
        "between two of them. These have options of their own.",
    )
    parser.add_argument(
        "rows",
        nargs="*",
        metavar="ROW",
        help="rows to measure, or operations for all of theirs (see --list); by default "
        f"{len(rows.USUAL)} rows, in which every operation is",
    )
    parser.add_argument("--all", action="store_true", help=f"all {len(rows.ROWS)} rows, which takes more than an hour")
    parser.add_argument(
        "--compiled", action="store_true", help="PyTorch compiled (torch.compile) as one more peer of single kernels"
    )
    parser.add_argument("--list", action="store_true", help="list the rows with their contestants and stop")
    parser.add_argument(
        "--quick",
        action="store_true",
        help=f"within three minutes: {len(rows.QUICK)} chosen rows (or those named), {_QUICK_ROUNDS} rounds of "
        f"{_QUICK_MIN_ROUND} s, no peak memory",
    )
    parser.add_argument("--out", type=Path, metavar="FILE", help="write a JSON result file")
    parser.add_argument("--rounds", type=positive, metavar="N", help=f"rounds (default: {_ROUNDS})")
    parser.add_argument("--min-round", type=rate, metavar="S", help=f"least seconds of a turn (default: {_MIN_ROUND})")
    parser.add_argument(
        "--threads",
        type=positive,
        default=machine.usable_cores(),
        metavar="N",
        help="threads of every contestant (default: the usable cores, %(default)s)",
    )
    parser.add_argument("--no-memory", action="store_true", help="skip the measurement of peak memory")
    parser.add_argument(
        "--no-limits", action="store_true", help="skip what the machine can do at most: a copy, multiply-adds"
    )
    parser.add_argument(
        "--seeds", type=positive, default=3, metavar="N", help="time_to_accuracy: trainings of each (default: 3)"
    )
    parser.add_argument(
        "--accuracy",
        type=share,
        default=0.99,
        metavar="A",
        help="time_to_accuracy: share of MNIST's test digits that is enough (default: %(default)s)",
    )
    return parser


def _list() -> None:
    for name, spec in rows.ROWS.items():
        print(f"{name:36} against {', '.join(spec.peers)}")
    for name in rows.TRAININGS:
        print(f"{name:36} against torch; takes minutes, only by name")
    print()
    for peer in (*peers.PEERS, *peers.KERNEL_PEERS, peers.COMPILED):
        if reason := peers.problem(peer):
            print(f"{peer} takes no part here: {reason}")


def _options(arguments: Sequence[str]) -> argparse.Namespace:
    """The options, with what --quick changes."""
    options = _parser().parse_args(arguments)
    if options.rounds is None:
        options.rounds = _QUICK_ROUNDS if options.quick else _ROUNDS
    if options.min_round is None:
        options.min_round = _QUICK_MIN_ROUND if options.quick else _MIN_ROUND
    options.no_memory |= options.quick
    return options


def _with_limits(options: argparse.Namespace) -> bool:
    return not options.no_limits and not BACKENDS["numba"].problem()


def _with_memory(name: str, options: argparse.Namespace) -> bool:
    return not options.no_memory and rows.spec(name).memory


def _expected(name: str, options: argparse.Namespace) -> float:
    if name in first_step.NAMES:
        return first_step.expected(name, 1 + len(peers.available()))
    if name in rows.TRAININGS:
        return expected_trainings(1 + len(peers.available()), options.seeds)
    return expected(
        len(rows.contestants(name, options.compiled)),
        options.rounds,
        options.min_round,
        memory=_with_memory(name, options),
        limits=_with_limits(options),
    )


def _measure(name: str, options: argparse.Namespace, progress: Progress) -> results.Row:
    if name in rows.TRAININGS:
        if name in first_step.NAMES:
            done = first_step.measure(name, options.threads)
        else:
            from . import time_to_accuracy

            done = time_to_accuracy.measure(options.seeds, options.threads, options.accuracy, progress.say)
        return replace(done, missing=[results.Missing(p, r) for p in peers.PEERS if (r := peers.problem(p))])
    who = rows.contestants(name, options.compiled)
    work, used, rates = rows.build(name, who), {}, None
    if _with_memory(name, options):
        alone = [one for one in who if one != overhead.OUTSIDE]
        used = {one: memory.measure(name, one, options.threads) for one in alone}
    if _with_limits(options):
        from . import roofline  # before the threads are set: it loads Numba

        rates = partial(roofline.rates, work.dtype, options.threads)
    peers.set_threads(options.threads)
    done = measure(
        work, rounds=options.rounds, min_round=options.min_round, threads=options.threads, memory=used, rates=rates
    )
    for absent in done.missing or []:
        progress.say(f"rawgrad bench: {name}: without {absent.name}: {absent.reason}")
    return replace(done, missing=[*rows.missing(name, options.compiled), *(done.missing or [])])


def _measure_all(names: Sequence[str], options: argparse.Namespace) -> list[results.Row]:
    """The rows, those that failed among them, in the order of ``names``; says on stderr what happens."""
    found, progress = list[results.Row](), Progress({name: _expected(name, options) for name in names})
    try:
        for name in names:
            if options.quick and progress.seconds > _QUICK_SECONDS:
                found.append(results.not_timed(name, "the time of --quick was up", options.threads))
                progress.say(f"rawgrad bench: {name}: {found[-1].failed}")
                progress.end(name)
                continue
            progress.begin(name)
            try:
                found.append(_measure(name, options, progress))
            except RawgradError as error:
                progress.say(f"rawgrad bench: {name}: {error}")
                found.append(results.not_timed(name, str(error), options.threads))
            progress.end(name)
    finally:
        progress.close()
    return found


def _others(name: str) -> Callable[[Sequence[str]], int] | None:
    """The command ``rawgrad bench name`` that has options of its own; None if there is none of the name."""
    if name == "profile":
        from .profile import main
    elif name == "report":
        from .reports.command import main
    elif name == "compare":
        from .compare import main
    elif name == "instructions":
        from .instructions import main
    elif name == "growth":
        from .growth import main
    else:
        return None
    return main


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; 0 if every row was measured, 1 if one was not (the others are still reported)."""
    arguments = sys.argv[1:] if argv is None else list(argv)
    if arguments and (other := _others(arguments[0])):
        return other(arguments[1:])
    options = _options(arguments)
    if options.list:
        _list()
        return 0
    peers.plan_threads(options.threads)
    chosen = tuple(rows.ROWS) if options.all else rows.QUICK if options.quick else rows.USUAL
    names = list(dict.fromkeys(rows.named(options.rows) if options.rows else chosen))
    asked = (*peers.PEERS, *peers.KERNEL_PEERS, *([peers.COMPILED] if options.compiled else []))
    for peer in asked:
        if reason := peers.problem(peer):
            print(f"rawgrad bench: without {peer}: {reason}", file=sys.stderr)
    if not options.no_limits and (reason := BACKENDS["numba"].problem()):
        said = f"rawgrad bench: without the machine's limits, which Numba's code measures: {reason}"
        print(said, file=sys.stderr)
    measured = _measure_all(names, options)
    print(results.markdown(measured), end="")
    for row in measured:
        if said := overhead.summary(row) or results.runs(row) or "":
            print(f"\n{said}")
    if any(row.noisy for row in measured):
        print(f"\nnoisy: other processes used over {load.NOISY:.0%} of the CPU meanwhile")
    if options.out and measured:
        report = results.Report(results.SCHEMA, **machine.provenance(), rows=measured)
        results.write(report, options.out)
        print(f"\nwritten: {options.out}")
    return 1 if any(row.failed is not None for row in measured) else 0
