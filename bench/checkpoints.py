"""What saving and watching cost training: steps of P5 with and without, in turns.

``python -m rawgrad.bench.checkpoints`` measures, prints a line for each interval, and with ``--out`` writes a result
file.  A turn is a training of its own by ``fit``, from the same weights on the same random pictures; its first steps
and its last save are not timed.  Who begins changes from round to round.  A round's cost is the time of its steps with
saving (or watching) over the time without, less one; the median over the rounds is reported with quartiles.  Turns of
the same kind already differ by more than a save costs, so the same is also found within a turn: by what the steps at a
save or look take longer than the other steps of that turn.

Beside it stands what a save is made of: the copy, in the thread that trains, and the writing, beside it; and of a look
the time that it keeps training, its writing included.  The losses of all turns must be the same.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..autograd import functional as F
from ..autograd import manual_seed
from ..engine.checkpoint import Checkpoint, Checkpoints
from ..engine.data import DataLoader, TensorDataset
from ..engine.optim import Adam
from ..engine.train import Kept, Looks, TensorBoard, Training, Watched, Watcher, fit
from ..recipes import machine
from ..recipes.networks import build
from . import load
from .harness import WrongResult
from .results import Spread, write

#: Steps at the head of a turn that are not timed.
_HEAD = 5


class _Timed(Checkpoints):
    """Notes how long each save kept the training, and how long it took to write."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, on_saved=self._note)
        self.kept: list[float] = []
        self.written: list[float] = []
        self.at: list[int] = []  # steps that were done
        self._starts: list[float] = []

    def save(self, state: Any, **options: Any) -> None:
        self._starts.append(time.perf_counter())
        self.at.append(options["step"])
        super().save(state, **options)
        self.kept.append(time.perf_counter() - self._starts[-1])

    def _note(self, saved: Checkpoint) -> None:
        self.written.append(time.perf_counter() - self._starts[len(self.written)])


class _TimedWatcher(Watcher):
    """Notes how long each look kept the training, with all that was told of it."""

    def __init__(self, told: list[Watched], every: int) -> None:
        super().__init__(told, every)
        self.kept: list[float] = []
        self.at: list[int] = []

    def _look(self, training: Training) -> None:
        start = time.perf_counter()
        self.at.append(training.progress.step)
        super()._look(training)
        self.kept.append(time.perf_counter() - start)


@dataclass(frozen=True)
class Way:
    """``"saving"``, ``"watching"`` or ``"watching in TensorBoard"``, every so many steps."""

    kind: str
    every: int

    def __str__(self) -> str:
        return f"{self.kind} every {self.every} steps"


@dataclass
class Turn:
    """One training.

    Attributes:
        seconds: of its timed steps.
        losses: of all steps.
        kept: seconds for which each save or look kept the training thread.
        written: seconds until each save was on the disk.
        bytes: of a file.
        longer: seconds by which each made the steps about it longer.
    """

    seconds: float
    losses: list[float]
    kept: list[float]
    written: list[float]
    bytes: int
    longer: list[float]


@dataclass
class Cost:
    """Of saving or watching every so many steps.

    Attributes:
        kind, every: see :class:`Way`.
        share: of the time of a step with nothing beside it.
        step: seconds of one of these.
        saves: saves or looks in a turn.
        kept, written: seconds of each, see :class:`Turn`; a look is on the disk when training goes on.
        bytes: of a file.
        longer: seconds by which each made the steps about it longer.
        share_of_steps: the median of these over the time of all steps between two.
    """

    kind: str
    every: int
    share: Spread
    step: Spread
    saves: int
    kept: Spread
    written: Spread
    bytes: int
    longer: Spread
    share_of_steps: float


def longer(ends: Sequence[float], at: Sequence[int]) -> list[float]:
    """Seconds by which the three steps about each of some events took longer than the others, by their median.

    Args:
        ends: when each step had ended.
        at: how many steps were done at each event.
    """
    took = np.diff(ends)  # took[i]: of step i + 1
    about = {event: [i for i in range(event - 2, event + 1) if _HEAD <= i < len(took)] for event in at}
    others = np.delete(took, sorted({i for steps in about.values() for i in steps} | set(range(_HEAD))))
    usual = float(np.median(others if len(others) else took))
    return [float(took[steps].sum()) - len(steps) * usual for steps in about.values() if len(steps) == 3]


def train(folder: Path, way: Way | None, steps: int, batch: int, device: str, capture: bool) -> Turn:
    """One turn; ``way`` None is one with nothing beside training."""
    draw = np.random.default_rng(0)
    pictures, labels = draw.random((10 * batch, 1, 28, 28), np.float32), draw.integers(0, 10, 10 * batch)
    order = (np.arange(steps * batch) % len(pictures)).tolist()  # one epoch: no saves but those of the interval
    manual_seed(0)
    model = build("cnn", {}).to(device)
    loader = DataLoader(TensorDataset(pictures, labels), batch, sampler=order, device=device)
    times: list[float] = []
    checkpoints = watcher = None
    with ExitStack() as stack:
        if way is not None and way.kind == "saving":
            checkpoints = _Timed(folder)
            stack.enter_context(checkpoints)
        elif way is not None:
            told: list[Watched] = [Kept(Looks(folder))]
            if way.kind == "watching in TensorBoard":
                told.append(stack.enter_context(TensorBoard(folder / "board")))
            watcher = _TimedWatcher(told, way.every)
        history = fit(
            model, loader, F.cross_entropy, Adam(model.parameters(), 1e-3), epochs=1, progress=False, capture=capture,
            on_step=lambda step: times.append(time.perf_counter()), callbacks=[watcher] if watcher else [],
            checkpoints=checkpoints, save_every=way.every if way and checkpoints else None,
        )  # fmt: skip
    seconds, losses = times[-1] - times[_HEAD - 1], [step.loss for step in history.steps]
    if way is None:
        return Turn(seconds, losses, [], [], 0, [])
    size = max(path.stat().st_size for path in folder.glob("*.safetensors"))
    if checkpoints is not None:  # the last is the epoch's
        kept, written, at = checkpoints.kept[:-1], checkpoints.written[:-1], checkpoints.at[:-1]
        return Turn(seconds, losses, kept, written, size, longer(times, at))
    assert watcher is not None
    kept = watcher.kept[1 : 1 + (steps - 1) // way.every]  # neither that of the first step nor that of the end
    return Turn(seconds, losses, kept, kept, size, longer(times, watcher.at[1 : 1 + len(kept)]))


def measure(
    ways: Sequence[Way], rounds: int, steps: int, batch: int, device: str, capture: bool, folder: Path
) -> list[Cost]:
    """The cost of each way.

    Raises:
        WrongResult: the losses with and without it differ.
    """
    turns: dict[Way | None, list[Turn]] = {way: [] for way in (None, *ways)}
    for way in ways:  # compiles the kernels, imports what is needed
        train(folder / f"first {way}", way, max(_HEAD, way.every) + 5, batch, device, capture)
    for turn in range(rounds):
        order = list(turns)
        first = turn % len(order)
        for each in order[first:] + order[:first]:
            turns[each].append(train(folder / f"{turn} {each}", each, steps, batch, device, capture))
    right = turns[None][0].losses
    for each, all_of_it in turns.items():
        if any(turn.losses != right for turn in all_of_it):
            raise WrongResult(f"bench: the losses of training with {each or 'nothing'} beside it differ from the first")
    step = Spread.of([turn.seconds / (steps - _HEAD) for turn in turns[None]])
    costs = []
    for way in ways:
        took = Spread.of([seconds for turn in turns[way] for seconds in turn.longer])
        costs.append(
            Cost(
                way.kind,
                way.every,
                Spread.of([w.seconds / o.seconds - 1 for w, o in zip(turns[way], turns[None], strict=True)]),
                step,
                len(turns[way][0].kept),
                Spread.of([seconds for turn in turns[way] for seconds in turn.kept]),
                Spread.of([seconds for turn in turns[way] for seconds in turn.written]),
                max(turn.bytes for turn in turns[way]),
                took,
                took.median / (way.every * step.median),
            )
        )
    return costs


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m rawgrad.bench.checkpoints", description=(__doc__ or "").split("\n")[0]
    )
    add = parser.add_argument
    add("--out", type=Path, metavar="FILE.json", help="write a result file")
    add("--every", type=int, nargs="+", default=[20, 100], metavar="N", help="steps between saves (default: 20 100)")
    add("--watch", type=int, nargs="*", default=[75], metavar="N", help="steps between looks (default: 75, P5's own)")
    add("--rounds", type=int, default=9, metavar="N", help="rounds (default: %(default)s)")
    add("--steps", type=int, default=405, metavar="N", help="of a turn (default: %(default)s)")
    add("--batch", type=int, default=100, metavar="N", help="pictures in a batch (default: %(default)s)")
    add("--device", default="cpu", metavar="D", help="where to compute (default: cpu)")
    add("--capture", action="store_true", help="on a GPU: replay a captured step")
    add("--folder", type=Path, metavar="DIR", help="on the disk to save to (default: the system's for temporary files)")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and report."""
    options = _parser().parse_args(argv)
    least = _HEAD + max([*options.every, *options.watch])
    if options.steps <= least:
        raise SystemExit(f"--steps must be above {least}, so that each interval comes to its end")
    ways = [Way("saving", every) for every in options.every]
    ways += [Way(kind, every) for kind in ("watching", "watching in TensorBoard") for every in options.watch]
    before = load.cpu_times()
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        costs = measure(ways, options.rounds, options.steps, options.batch, options.device, options.capture, Path(name))
    others = load.others_share(before, load.cpu_times())
    for cost in costs:
        what = "saves" if cost.kind == "saving" else "looks"
        later = f" and is on the disk after {1e3 * cost.written.median:.1f} ms" if cost.kind == "saving" else ""
        print(
            f"{cost.kind} every {cost.every} steps of {1e3 * cost.step.median:.2f} ms costs {cost.share.median:+.2%} "
            f"({cost.share.q1:+.2%} to {cost.share.q3:+.2%}): {cost.saves} {what} of {cost.bytes:,} bytes, each keeps "
            f"training {1e3 * cost.kept.median:.2f} ms{later}; the steps about it take "
            f"{1e3 * cost.longer.median:.2f} ms longer than others, {cost.share_of_steps:+.2%}"
        )
    if others is not None and others > load.NOISY:
        print(f"noisy: other processes used {others:.0%} of the CPU meanwhile")
    if options.out:
        report = {"kind": "checkpoints", "others_share": others, "costs": [asdict(cost) for cost in costs]}
        write(machine.provenance() | report, options.out)
        print(f"written: {options.out}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
