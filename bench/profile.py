"""Where a training step's time goes, kernel by kernel, and what share of the machine's limit each kernel reaches.

``rawgrad bench profile [PROGRAM]``, also ``python -m rawgrad.bench.profile``, trains one of the bench's programs for
some steps under :class:`rawgrad.profile`, after some that compile what has to be compiled, and prints the table.  The
limits are those of ``roofline``, measured before and after; of a GPU, and where they are known better, they are given.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from itertools import cycle, islice
from pathlib import Path

from ..kernels._dispatch import BACKENDS, backend_of
from ..kernels._errors import DataError, RawgradError
from ..kernels._profile import Limits, profile
from ..recipes import machine
from . import peers
from .harness import OURS
from .options import positive, rate
from .programs import PROGRAMS, Program, Training, batches
from .results import Rates

#: Steps before the profile.
_WARM_UP = 3


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="rawgrad bench profile",
        description="Profile some training steps by kernel: calls, time, bytes, operations, share of the limit.",
    )
    parser.add_argument(
        "program",
        nargs="?",
        default="p5",
        choices=PROGRAMS,
        metavar="PROGRAM",
        help=f"one of {', '.join(PROGRAMS)} (default: %(default)s)",
    )
    parser.add_argument("--batch", type=positive, default=100, metavar="N", help="images (default: %(default)s)")
    parser.add_argument("--steps", type=positive, default=20, metavar="N", help="(default: %(default)s)")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"), help="(default: %(default)s)")
    parser.add_argument(
        "--threads",
        type=positive,
        default=machine.usable_cores(),
        metavar="N",
        help="of the kernels on the CPU (default: the usable cores, %(default)s)",
    )
    parser.add_argument("--shapes", action="store_true", help="a row for each combination of the arrays' shapes")
    parser.add_argument("--trace", type=Path, metavar="FILE", help="write a timeline for ui.perfetto.dev, as JSON")
    parser.add_argument(
        "--limits",
        type=rate,
        nargs=2,
        metavar=("GB/S", "GFLOP/S"),
        help="what the machine can do at most: bytes read plus written, operations; on the CPU measured by default",
    )
    parser.add_argument("--no-limits", action="store_true", help="do not measure them")
    return parser


def measure(program: Program, batch: int, steps: int, device: str) -> profile:
    """The profile of ``steps`` steps of a program."""
    training = Training(peers.library(OURS, device), program)
    inputs = [training.put(*one) for one in batches(program, batch)]
    for one in inputs[:_WARM_UP]:
        training.step(*one)
    with profile() as found:
        for one in islice(cycle(inputs), steps):
            training.step(*one)
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and give its exit code."""
    options = _parser().parse_args(argv)
    program, on_cpu = PROGRAMS[options.program], options.device == "cpu"
    limits = None if options.limits is None else Limits(*(1e9 * limit for limit in options.limits))
    seen: list[Rates] = []

    def look() -> None:
        if on_cpu and limits is None and not options.no_limits and not BACKENDS["numba"].problem():
            from . import roofline  # before the threads are set: it loads Numba

            seen.append(roofline.rates("float32", options.threads))

    look()
    if on_cpu:
        peers.set_threads(options.threads)
    found = measure(program, options.batch, options.steps, options.device)
    look()
    if seen:
        limits = Limits(max(rates.bandwidth for rates in seen), max(rates.peak for rates in seen))
    threads = f", {options.threads} thread{'s' if options.threads > 1 else ''}" if on_cpu else ""
    print(
        f"{options.program}: {program.description}; batch {options.batch}, {options.steps} steps, "
        f"backend {backend_of(options.device)}{threads}"
    )
    print(found.table(limits, shapes=options.shapes))
    if limits is not None:
        source = "as given" if options.limits else "as measured before and after"
        print(
            f"limits, {source}: {limits.bandwidth / 1e9:.3g} GB/s copied, "
            f"{limits.peak / 1e9:.3g} GFLOP/s of multiply-adds in float32"
        )
    elif not options.no_limits:
        reason = BACKENDS["numba"].problem() if on_cpu else "those of a GPU are not measured"
        print(f"without limits: {reason}; --limits gives them")
    if options.trace:
        try:
            found.trace(options.trace)
        except OSError as error:
            raise DataError(f"bench profile: {options.trace}: {error.strerror or error}") from error
        print(f"written: {options.trace}")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except RawgradError as error:
        print(f"rawgrad: error: {error}", file=sys.stderr)
        sys.exit(2)
