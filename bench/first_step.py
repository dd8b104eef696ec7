"""How long from the start of a process until a library is imported, and until its first training step is done.

Each figure is of a fresh process that runs the script ``first_program``: P5 at batch 100.  rawgrad's compiled kernels
are kept in a folder of this measurement, empty at first: the contestant ``rawgrad, first run`` compiles them, a few
times, each into a folder of its own; for ``rawgrad`` they are there.  Contestants take turns.  Each was started once
before, for its files to be in memory, and the losses of all must be the same.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from ..kernels._errors import ArgumentError
from . import child, load, peers
from .harness import OURS, WrongResult, ratios
from .results import Entry, Row, Spread
from .time_to_accuracy import FIRST

IMPORT, FIRST_STEP = "import", "first_step"
NAMES = (IMPORT, FIRST_STEP)
_PROGRAM = Path(__file__).with_name("first_program.py")
#: Runs of each, and of the one that compiles, which takes the longest by far.
_RUNS, _FIRST_RUNS = 10, 3
#: Seconds of one run, and of one that compiles, as seen on two cores.
_SECONDS, _COMPILING = 2.0, 15.0
#: Losses may differ by this share.
_SAME_LOSS = 1e-5


@dataclass(frozen=True)
class Seen:
    """Of one process: seconds from its start until the import was done, and until the step was; the loss."""

    imported: float
    stepped: float
    loss: float


#: Runs a contestant once; the folder is for its compiled kernels.
Run = Callable[[str, Path], Seen]


def run(threads: int, name: str, cache: Path) -> Seen:
    """Run the script once in a process of its own; a :data:`Run` but for the first argument.

    Raises:
        RawgradError: the process failed, with the end of what it said.
    """
    with tempfile.TemporaryFile("w+") as said:
        start = time.perf_counter()
        # -P: the script's folder, in which we have a `profile`, is no place to import from
        command = [sys.executable, "-P", str(_PROGRAM), name, str(threads)]
        process = child.process(command, stderr=said, RAWGRAD_CACHE=str(cache))
        times, lines = [], []
        try:
            assert process.stdout is not None
            for line in process.stdout:
                times.append(time.perf_counter() - start)
                lines.append(line)
            code = process.wait()
        finally:
            process.kill()  # after an interrupt; one that has ended does not mind
            process.wait()
            process.communicate()  # closes its pipe
        if code:
            said.seek(0)
            raise child.failed(f"the first step of {name} in a process of its own", said.read())
    return Seen(times[0], times[1], float(lines[1]))


def take_turns(once: Run, who: Sequence[str], folder: Path, runs: int, first_runs: int) -> dict[str, list[Seen]]:
    """What was seen of each contestant, and of :data:`FIRST`, by name.

    Raises:
        WrongResult: the losses are not the same.
    """
    for name in who:
        if name != OURS:
            once(name, folder)
    seen: dict[str, list[Seen]] = {name: [] for name in who}
    seen[FIRST] = [once(OURS, folder / str(i)) for i in range(first_runs)]
    for i in range(runs):
        first = i % len(who)
        for name in (*who[first:], *who[:first]):
            seen[name].append(once(name, folder / "0"))
    losses = {name: [one.loss for one in each] for name, each in seen.items()}
    right = losses[OURS][0]
    if not all(abs(loss - right) <= _SAME_LOSS * abs(right) for each in losses.values() for loss in each):
        raise WrongResult(f"{FIRST_STEP}: the losses of the first step must be the same; got {losses}")
    return seen


def expected(name: str, contestants: int) -> float:
    """About how many seconds :func:`measure` takes."""
    return contestants * (_RUNS + 1) * _SECONDS + (1 if name == IMPORT else _FIRST_RUNS) * _COMPILING


def measure(name: str, threads: int, runs: int = _RUNS, first_runs: int = _FIRST_RUNS) -> Row:
    """The row :data:`IMPORT` or :data:`FIRST_STEP`; a call is a whole process, a round is one of each.

    Args:
        name: which.
        threads: of every contestant.
        runs, first_runs: how many of each contestant, and of the one without compiled kernels; at least 1.

    Raises:
        RawgradError, WrongResult: as :func:`run` and :func:`take_turns`.
    """
    if name not in NAMES:
        raise ArgumentError(f"bench: row must be one of {', '.join(NAMES)}; got {name!r}")
    who, before = [OURS, *peers.available()], load.cpu_times()
    with tempfile.TemporaryDirectory(prefix="rawgrad-bench-") as folder:
        seen = take_turns(partial(run, threads), who, Path(folder), runs, 1 if name == IMPORT else first_runs)
    others = load.others_share(before, load.cpu_times())
    if name == IMPORT:
        del seen[FIRST]  # an import compiles nothing
    seconds = {one: [s.imported if name == IMPORT else s.stepped for s in each] for one, each in seen.items()}
    what = {
        IMPORT: "from process start until the library with layers and optimizers is imported; rawgrad loads kernels "
        "only when they are used",
        FIRST_STEP: "from process start to the end of the first training step: P5 at batch 100",
    }
    return Row(
        name=name,
        description=what[name],
        dtype="float32",
        layout="NCHW",
        flops=0,
        bytes=0,
        threads=threads,
        validated_against="equal losses of all contestants",
        load_of_others=others,
        noisy=others is not None and others > load.NOISY,
        entries=[
            Entry(one, "kernels compiled on the way" if one == FIRST else peers.detail(one), 1, Spread.of(s), s, None)
            for one, s in seconds.items()
        ],
        ratios=ratios({one: seconds[one] for one in who}),
    )
