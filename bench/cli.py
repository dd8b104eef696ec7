"""``rawgrad bench``: measure rows, print them as a table, write them into a result file."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from ..kernels._dispatch import BACKENDS
from ..kernels._errors import RawgradError
from ..recipes import machine
from . import load, memory, overhead, peers, results, rows
from .harness import measure
from .options import positive, share


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
        "rawgrad bench profile: where a training step's time goes, kernel by kernel; has options of its own.",
    )
    parser.add_argument(
        "rows",
        nargs="*",
        metavar="ROW",
        help="rows to measure, or operations for all of theirs; by default every row (see --list)",
    )
    parser.add_argument("--list", action="store_true", help="list the rows with their contestants and stop")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write a JSON result file")
    parser.add_argument("--rounds", type=positive, default=20, metavar="N", help="rounds (default: %(default)s)")
    parser.add_argument(
        "--min-round", type=float, default=0.1, metavar="S", help="least seconds of a turn (default: %(default)s)"
    )
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
    for peer in peers.PEERS:
        if reason := peers.problem(peer):
            print(f"\n{peer} takes no part here: {reason}")


def _complain(said: str) -> None:
    print(said, file=sys.stderr, flush=True)


def _measure(name: str, options: argparse.Namespace) -> results.Row:
    if name in rows.TRAININGS:
        from . import time_to_accuracy

        return time_to_accuracy.measure(options.seeds, options.threads, options.accuracy, _complain)
    work, used, rates = rows.build(name), {}, None
    if not options.no_memory:
        alone = [who for who in rows.contestants(name) if who != overhead.OUTSIDE]
        used = {who: memory.measure(name, who, options.threads) for who in alone}
    if not options.no_limits and not BACKENDS["numba"].problem():
        from . import roofline  # before the threads are set: it loads Numba

        rates = partial(roofline.rates, work.dtype, options.threads)
    peers.set_threads(options.threads)
    return measure(
        work, rounds=options.rounds, min_round=options.min_round, threads=options.threads, memory=used, rates=rates
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; 0 if every row was measured, 1 if a row failed (the others are still reported)."""
    arguments = sys.argv[1:] if argv is None else list(argv)
    if arguments[:1] == ["profile"]:
        from .profile import main as profile

        return profile(arguments[1:])
    options = _parser().parse_args(arguments)
    if options.list:
        _list()
        return 0
    names = rows.named(options.rows) if options.rows else list(rows.ROWS)
    for peer in peers.PEERS:
        if reason := peers.problem(peer):
            _complain(f"rawgrad bench: without {peer}: {reason}")
    if (reason := BACKENDS["numba"].problem()) and not options.no_limits:
        _complain(f"rawgrad bench: without the machine's limits, which Numba's code measures: {reason}")
    measured, failed = [], 0
    for name in names:
        _complain(f"{name} …")
        try:
            measured.append(_measure(name, options))
        except RawgradError as error:
            failed += 1
            _complain(f"rawgrad bench: {name}: {error}")
    print(results.markdown(measured), end="")
    for row in measured:
        if said := overhead.summary(row) or results.runs(row):
            print(f"\n{said}")
    if any(row.noisy for row in measured):
        print(f"\nnoisy: other processes used over {load.NOISY:.0%} of the CPU meanwhile")
    if options.out and measured:
        report = results.Report(results.SCHEMA, **machine.provenance(), rows=measured)
        results.write(report, options.out)
        print(f"\nwritten: {options.out}")
    return 1 if failed else 0
