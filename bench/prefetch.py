"""P13: training that reads ahead, beside a synchronous loop and PyTorch's DataLoader.

``python -m rawgrad.bench.prefetch`` measures, prints a table, and with ``--out`` writes a result file and
a picture beside it.

*The sweep.*  Readers are real (``readers.py``): a file behind a pipe that lets so many bytes a second
through (reading waits), and PNG pictures that are decoded (reading computes).  Computing is matrix
products, as many as take the reading time divided by the ratio; on one core beside the pipe, on all cores
beside the decoding.  For each ratio from 0.1 to 10 the contestants take turns, round after round, each
turn one epoch of a loader whose first steps are not timed; reading alone and computing alone take their
turns too, so that what is ideal is known from the same minutes: max(reading, computing) where reading
waits, all CPU work over the cores where it computes.

*A timeline.*  ``--timeline FILE`` does none of that, but trains P5 on MNIST's images, which come through slow
pipes, and draws who waited for whom.

*Arrays in memory.*  Rows of 64×784 float32 with a little computing between: with readers asked for, and
without.  *The hand-over*: from which reading time on a reader pays, for batches of growing size; it is where
``_HAND_OVER`` of ``engine/data/loader.py`` comes from.  *A ready batch*: how long ``next()`` takes when the
batch lies ready.  *The first batch*: from the construction of the loader.  *Copies* (with a GPU): which
share of them computing hides.

All batches of the first round are checked against the data before anything is reported.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ..autograd import randn, tensor
from ..engine.data import MNIST, DataLoader, Dataset, TensorDataset, Timing
from ..engine.losses import CrossEntropyLoss
from ..engine.optim import SGD
from ..kernels._dispatch import BACKENDS
from ..kernels._gpu import synchronize
from ..recipes import machine
from ..recipes.networks import build
from . import load, peers
from .harness import OURS, WrongResult
from .readers import PIXELS, Pictures, Pipe, write_pictures, write_rows
from .results import Spread, write

RATIOS = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
SYNCHRONOUS = f"{OURS}, synchronous"
PROCESSES = f"{OURS}, processes"
TORCH = "torch"
TORCH_SYNCHRONOUS = "torch, synchronous"
#: Steps at the head of an epoch that are not timed: readers start, the queue fills.
_HEAD = 5
_SIDE = 160  # of a product: about 0.1 ms on one core


@dataclass
class Point:
    """What was measured at one ratio, in seconds a step.

    Attributes:
        reader: ``"pipe"`` or ``"png"``.
        ratio: reading over computing, as asked for.
        reading, computing: each alone, in the same rounds.
        ideal: what could be reached at best.
        steps: of each contestant.
        idle: the share of the processors' time that nobody used in its turns; None where that is not known.
    """

    reader: str
    ratio: float
    reading: Spread
    computing: Spread
    ideal: float
    steps: dict[str, Spread]
    idle: dict[str, float | None]


class Computing:
    """Matrix products that take so long.

    Args:
        threads: how many do them at a time.
    """

    def __init__(self, threads: int) -> None:
        self._threads = threads
        self._pool = ThreadPoolExecutor(threads) if threads > 1 else None
        self._left = np.random.default_rng(0).random((_SIDE, _SIDE), np.float32)
        self._times = [np.empty_like(self._left) for _ in range(threads)]
        for _ in range(3):
            self(20)
        seconds = []
        for _ in range(7):
            start = time.perf_counter()
            self(20)
            seconds.append((time.perf_counter() - start) / 20)
        self.one = min(seconds)

    def products(self, seconds: float) -> int:
        """How many on each thread take that long."""
        return max(1, round(seconds / self.one))

    def __call__(self, products: int) -> None:
        """So many on each thread."""
        if self._pool is None:
            self._some(0, products)
        else:
            list(self._pool.map(self._some, range(self._threads), [products] * self._threads))

    def _some(self, thread: int, products: int) -> None:
        for _ in range(products):
            np.dot(self._left, self._left, out=self._times[thread])

    def close(self) -> None:
        """End the threads."""
        if self._pool is not None:
            self._pool.shutdown()


def torch_loader(dataset: Any, batch: int, workers: int) -> Iterable[Any]:
    """PyTorch's loader of whole batches: its fastest way for a data set that gives them."""
    from torch.utils.data import BatchSampler, DataLoader, SequentialSampler

    options: dict[str, Any] = {}
    if workers:
        options = {"persistent_workers": True, "multiprocessing_context": "spawn", "prefetch_factor": 2}
    order = BatchSampler(SequentialSampler(dataset), batch, drop_last=False)
    loader: Iterable[Any] = DataLoader(dataset, sampler=order, batch_size=None, num_workers=workers, **options)
    return loader


def loaders(make: Callable[[], Any], batch: int, workers: int, names: Sequence[str]) -> dict[str, Iterable[Any]]:
    """The contestants' loaders, each of a data set of its own that ``make`` gives."""
    ways: dict[str, Callable[[], Iterable[Any]]] = {
        OURS: lambda: DataLoader(make(), batch, num_workers=workers, prefetch=2 * workers),
        SYNCHRONOUS: lambda: DataLoader(make(), batch),
        PROCESSES: lambda: DataLoader(make(), batch, num_workers=workers, prefetch=2 * workers, processes=True),
        TORCH: lambda: torch_loader(make(), batch, workers),
        TORCH_SYNCHRONOUS: lambda: torch_loader(make(), batch, 0),
    }
    return {name: ways[name]() for name in names}


def contestants() -> list[str]:
    """Those that can take part here."""
    return [OURS, SYNCHRONOUS, PROCESSES, *([] if peers.problem(TORCH) else [TORCH, TORCH_SYNCHRONOUS])]


def epoch(loader: Iterable[Any], compute: Callable[[], None]) -> tuple[float, float]:
    """Seconds a step, without the head, and the sum of all that was read."""
    total, steps, start = 0.0, 0, 0.0
    for number, (x, y) in enumerate(loader):
        total += float(x[0].sum()) + float(y.sum())
        compute()
        if number == _HEAD - 1:
            start = time.perf_counter()
        steps = number
    return (time.perf_counter() - start) / (steps + 1 - _HEAD), total


def expected(dataset: Any, batch: int) -> float:
    """The sum that :func:`epoch` must give."""
    parts = [dataset.batch(np.arange(i, min(i + batch, len(dataset)))) for i in range(0, len(dataset), batch)]
    return float(sum(float(x[0].sum()) + float(y.sum()) for x, y in parts))


def checked(name: str, total: float, wanted: float) -> None:
    """Raise :class:`WrongResult` unless the batches were the data's."""
    if not np.isclose(total, wanted, rtol=1e-5):
        raise WrongResult(f"bench: {name} read batches that sum up to {total}; expected {wanted}")


def sweep(
    reader: str,
    make: Callable[[], Any],
    batch: int,
    ratios: Sequence[float],
    rounds: int,
    names: Sequence[str],
    say: Callable[[str], None],
) -> list[Point]:
    """All ratios with one reader."""
    cores = machine.usable_cores()
    waits = reader == "pipe"
    workers = 1 if waits else cores
    computing = Computing(1 if waits else cores)
    dataset = make()
    wanted = expected(dataset, batch)
    alone = [_reading(dataset, batch) for _ in range(3)]
    taking_part = loaders(make, batch, workers, names)
    points = []
    try:
        for ratio in ratios:
            say(f"{reader}, reading/computing {ratio:g} …")
            products = computing.products(min(alone) / ratio)
            seconds: dict[str, list[float]] = {name: [] for name in names}
            used: dict[str, list[tuple[load.CpuTimes | None, load.CpuTimes | None]]] = {name: [] for name in names}
            reading, computed = [], []
            for turn in range(rounds):
                reading.append(_reading(dataset, batch))
                start = time.perf_counter()
                for _ in range(10):
                    computing(products)
                computed.append((time.perf_counter() - start) / 10)
                for name in [*names[turn % len(names) :], *names[: turn % len(names)]]:
                    before = load.cpu_times()
                    took, total = epoch(taking_part[name], partial(computing, products))
                    used[name].append((before, load.cpu_times()))
                    checked(name, total, wanted)
                    seconds[name].append(took)
            r, c = Spread.of(reading), Spread.of(computed)
            ideal = max(r.median, c.median) if waits else (r.median + cores * c.median) / cores
            steps = {name: Spread.of(values) for name, values in seconds.items()}
            idle = {name: load.idle_share(spans) for name, spans in used.items()}
            points.append(Point(reader, ratio, r, c, ideal, steps, idle))
    finally:
        computing.close()
        for loader in taking_part.values():
            if isinstance(loader, DataLoader):
                loader.close()
    return points


def _reading(dataset: Any, batch: int, count: int = 10) -> float:
    """Seconds to read a batch, nothing else going on."""
    start = time.perf_counter()
    for number in range(count):
        dataset.batch(np.arange(number * batch, (number + 1) * batch) % len(dataset))
    return (time.perf_counter() - start) / count


class _Rows(Dataset):
    """Arrays in memory that the loader does not know for such, so that readers bring them."""

    def __init__(self, *arrays: np.ndarray) -> None:
        self.inner = TensorDataset(*arrays)

    def __len__(self) -> int:
        return len(self.inner)

    def __getitem__(self, index: Any) -> Any:
        return tuple(array[index] for array in self.inner.arrays)

    def batch_into(self, indices: np.ndarray, empty: Any) -> Any:
        """Rows of the arrays."""
        return self.inner.batch_into(indices, empty)


def in_memory(rounds: int, names: Sequence[str], batches: int) -> dict[str, Spread]:
    """Seconds a step over arrays in memory, 0.3 ms of computing in each."""
    x = np.random.default_rng(0).random((64 * batches, PIXELS), np.float32)
    data = TensorDataset(x, np.arange(len(x)))
    computing = Computing(1)
    products = computing.products(3e-4)
    ways: dict[str, Iterable[Any]] = {
        OURS: DataLoader(data, 64, shuffle=True, num_workers=1),
        SYNCHRONOUS: DataLoader(data, 64, shuffle=True),
    }
    if TORCH in names:
        ways[TORCH_SYNCHRONOUS] = torch_loader(_Rows(x, np.arange(len(x))), 64, 0)
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(rounds):
        for name in [*list(ways)[turn % len(ways) :], *list(ways)[: turn % len(ways)]]:
            seconds[name].append(epoch(ways[name], partial(computing, products))[0])
    return {name: Spread.of(values) for name, values in seconds.items()}


@dataclass
class HandOver:
    """Rows of arrays in memory, taken by training itself or by a reader, for batches of growing size.

    Attributes:
        rows: in a batch.
        reading: seconds that taking them lasts, when training does it.
        alone, ahead: seconds a step, without and with a reader.
        least: the reading time from which on a reader pays; None if it never did.
    """

    rows: Sequence[int]
    reading: list[float]
    alone: list[float]
    ahead: list[float]
    least: float | None


def hand_over(rounds: int, rows: Sequence[int] = (32, 64, 128, 256, 512, 1024, 2048), batches: int = 60) -> HandOver:
    """From which reading time on a reader pays, with 1 ms of computing in each step."""
    x = np.random.default_rng(0).random((8 * max(rows), PIXELS), np.float32)
    data = _Rows(x, np.arange(len(x)))
    computing = Computing(1)
    compute = partial(computing, computing.products(1e-3))
    found = HandOver(list(rows), [], [], [], 0.0)
    for size in rows:
        order = (np.arange(size * batches) % len(x)).tolist()
        ways = [DataLoader(data, size, sampler=order, num_workers=workers) for workers in (0, 1)]
        seconds: list[list[float]] = [[], []]
        for turn in range(rounds):
            for way in (0, 1) if turn % 2 else (1, 0):
                seconds[way].append(epoch(ways[way], compute)[0])
        found.reading.append(float(np.median(ways[0].timing.reading[_HEAD:])))
        found.alone.append(float(np.median(seconds[0])))
        found.ahead.append(float(np.median(seconds[1])))
    found.least = crossing(found.reading, [a - b for a, b in zip(found.alone, found.ahead, strict=True)])
    return found


def crossing(places: Sequence[float], gains: Sequence[float]) -> float | None:
    """The place from which on all gains are positive, between two of ``places`` by a straight line; None without."""
    lost = [number for number, gain in enumerate(gains) if gain <= 0]
    if not lost:
        return places[0]
    last = lost[-1]
    if last == len(gains) - 1:
        return None
    share = gains[last] / (gains[last] - gains[last + 1])
    return places[last] + share * (places[last + 1] - places[last])


def ready(names: Sequence[str], batches: int) -> dict[str, dict[str, float]]:
    """Median and 99th percentile of the seconds that ``next()`` takes of a batch that is ready."""
    x = np.random.default_rng(0).random((64 * batches, PIXELS), np.float32)
    rows = _Rows(x, np.arange(len(x)))
    computing = Computing(1)
    products = computing.products(1e-3)
    ways: dict[str, Iterable[Any]] = {OURS: DataLoader(rows, 64, shuffle=True, num_workers=1)}
    if TORCH in names:
        ways |= {TORCH_SYNCHRONOUS: torch_loader(rows, 64, 0), TORCH: torch_loader(rows, 64, 1)}
    found = {}
    for name, loader in ways.items():
        iterator, seconds = iter(loader), []
        for _ in range(batches):
            computing(products)
            start = time.perf_counter()
            next(iterator)
            seconds.append(time.perf_counter() - start)
        late = seconds[_HEAD:]
        found[name] = {"median": float(np.median(late)), "p99": float(np.percentile(late, 99))}
        del iterator
    return found


def first_batch(rounds: int) -> Spread:
    """Seconds from the construction of a loader with two readers to its first batch."""
    rows = _Rows(np.zeros((6400, PIXELS), np.float32), np.arange(6400))
    seconds = []
    for _ in range(rounds):
        start = time.perf_counter()
        iterator = iter(DataLoader(rows, 64, shuffle=True, num_workers=2))
        next(iterator)
        seconds.append(time.perf_counter() - start)
        iterator.close()
    return Spread.of(seconds)


@dataclass
class Hidden:
    """How much of the copy to a GPU computing hides.

    Attributes:
        copy, computing, step: seconds a batch.
        share: of the copy that does not show in the step, from 0 to 1.
    """

    copy: float
    computing: float
    step: float
    share: float


def hidden(batch: int = 256, width: int = 12_288, batches: int = 100, products: int = 40, side: int = 2048) -> Hidden:
    """Batches of ``batch`` × ``width`` float32 through the ring, with matrix products on the device between.

    Args:
        products: of side³ a step; so many that computing takes longer than copying.
    """
    distinct = 8 * batch
    rows = _Rows(np.random.default_rng(0).random((distinct, width), np.float32))
    factor = randn(side, side, device="cuda")

    def step(x: Any) -> None:
        for _ in range(products):
            factor @ factor
        x.sum()

    def timed(loader: Iterable[Any]) -> float:
        for number, (x,) in enumerate(loader):
            step(x)
            if number == _HEAD - 1:
                synchronize()
                start = time.perf_counter()
        synchronize()
        return (time.perf_counter() - start) / (batches - _HEAD)

    there = (tensor(rows.inner.arrays[0][:batch], device="cuda"),)
    computing = timed([there] * batches)
    order = (np.arange(batch * batches) % distinct).tolist()
    loader = DataLoader(rows, batch, sampler=order, num_workers=2, device="cuda")
    took = timed(loader)
    copy = float(np.median(loader.timing.copying[_HEAD:]))
    return Hidden(copy, computing, took, float(np.clip(1 - (took - computing) / copy, 0, 1)))


def slow_training(milliseconds: float, readers: int, root: Path | None = None, batches: int = 80) -> Timing:
    """P5 on batches of 100 images of MNIST, each of which takes so long to come through one of ``readers`` pipes.

    Args:
        root: where MNIST is; None: where it is found.
    """
    data = MNIST(root)
    labels = data.labels
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "images")
        path.write_bytes(data.data[: 100 * batches].tobytes())
        pipes = Pipe(path, 100 * batches, 100 * PIXELS / (milliseconds / 1e3), readers)
        model, loss = build("cnn", {}), CrossEntropyLoss()
        optimizer = SGD(model.parameters(), lr=0.01)
        with DataLoader(pipes, 100, num_workers=readers) as loader:
            for x, which in loader:
                predictions = model(x.reshape(-1, 1, 28, 28))
                optimizer.zero_grad()
                loss(predictions, tensor(labels[which.numpy()])).backward()
                optimizer.step()
        return loader.timing


def table(points: Sequence[Point]) -> str:
    """The sweep as a table in Markdown: milliseconds a step, what is over the ideal, how idle the processors were.

    Idle processors matter where reading computes: what is over the ideal is either theirs, or other work's.
    """
    names = list(points[0].steps)
    lines = ["| reader | ratio | reading | computing | ideal | " + " | ".join(names) + " |"]
    lines.append("|" + "---|" * (5 + len(names)))
    for p in points:
        cells = [
            f"{1e3 * s.median:.2f} ({s.median / p.ideal - 1:+.0%}"
            + (")" if p.reader == "pipe" or p.idle[name] is None else f", {p.idle[name]:.0%} idle)")
            for name, s in p.steps.items()
        ]
        numbers = [f"{1e3 * value:.2f}" for value in (p.reading.median, p.computing.median, p.ideal)]
        lines.append(f"| {p.reader} | {p.ratio:g} | " + " | ".join(numbers + cells) + " |")
    return "\n".join(lines)


def draw(points: Sequence[Point], path: Path) -> None:
    """The sweep as one picture: the time of a step over what is ideal."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    titles = {"pipe": "reading waits (a slow pipe)", "png": "reading computes (PNG decoding)"}
    readers = list(dict.fromkeys(p.reader for p in points))
    figure = Figure(figsize=(5.5 * len(readers), 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, reader in zip(figure.subplots(1, len(readers), squeeze=False)[0], readers, strict=True):
        here = [p for p in points if p.reader == reader]
        for name in here[0].steps:
            ys = np.array([[getattr(p.steps[name], k) / p.ideal for k in ("median", "q1", "q3")] for p in here])
            line = axes.plot([p.ratio for p in here], ys[:, 0], marker="o", label=name)[0]
            axes.fill_between([p.ratio for p in here], ys[:, 1], ys[:, 2], alpha=0.2, color=line.get_color())
        axes.axhline(1.05 if reader == "pipe" else 1.10, color="black", linestyle=":", label="goal")
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xticks([p.ratio for p in here], [f"{p.ratio:g}" for p in here])
        axes.minorticks_off()
        axes.yaxis.set_major_formatter("{x:.2g}")
        axes.set_yticks([share for share in (0.7, 1, 1.4, 2, 3) if axes.get_ylim()[0] <= share <= axes.get_ylim()[1]])
        axes.set_xlabel("reading time / computing time")
        axes.set_title(titles[reader])
    figure.axes[0].set_ylabel("time of a step / ideal")
    figure.axes[0].legend(fontsize=8)
    figure.savefig(path, dpi=120)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m rawgrad.bench.prefetch", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--out", type=Path, metavar="FILE.json", help="write a result file, and a picture FILE.png")
    parser.add_argument(
        "--timeline", type=Path, metavar="FILE", help="draw a training with slow reading (.json: a trace)"
    )
    parser.add_argument("--data-dir", type=Path, metavar="DIR", help="for --timeline: where MNIST is")
    parser.add_argument("--rounds", type=int, default=7, metavar="N", help="rounds (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=60, metavar="N", help="timed steps a turn (default: %(default)s)")
    parser.add_argument("--reading", type=float, default=4.0, metavar="MS", help="of a batch, by pipe (default: 4)")
    parser.add_argument("--side", type=int, default=128, metavar="N", help="of a PNG picture (default: %(default)s)")
    parser.add_argument("--ratios", type=float, nargs="+", default=RATIOS, metavar="R")
    parser.add_argument("--contestants", nargs="+", default=contestants(), choices=contestants(), metavar="NAME")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and report."""
    options = _parser().parse_args(argv)
    if options.timeline:
        timing = slow_training(options.reading, 2, options.data_dir)
        if options.timeline.suffix == ".json":
            timing.trace(options.timeline)
        else:
            timing.timeline(options.timeline, first=20, count=24)
        print(timing)
        return 0
    names, batches = options.contestants, options.steps + _HEAD
    before = load.cpu_times()
    peers.set_threads(1, ours=False)

    def say(text: str) -> None:
        print(text, flush=True)

    with tempfile.TemporaryDirectory() as folder:
        rows, pictures = Path(folder, "rows"), Path(folder, "pictures")
        write_rows(rows, 64 * batches)
        write_pictures(pictures, 16 * batches, options.side)
        rate = 64 * PIXELS / (options.reading / 1e3)
        points = sweep(
            "pipe", lambda: Pipe(rows, 64 * batches, rate), 64, options.ratios, options.rounds, names, say
        ) + sweep("png", lambda: Pictures(pictures, 16 * batches), 16, options.ratios, options.rounds, names, say)
    say("arrays in memory …")
    memory = in_memory(options.rounds, names, 10 * batches)
    say("the hand-over …")
    handed = hand_over(options.rounds)
    say("a ready batch …")
    lying, first = ready(names, 10 * batches), first_batch(10 * options.rounds)
    say("\nMilliseconds a step (and over the ideal):\n\n" + table(points))
    share = memory[OURS].median / memory[SYNCHRONOUS].median - 1
    say(f"\narrays in memory, a reader asked for: {share:+.1%} beside none")
    cells = zip(handed.rows, handed.reading, handed.alone, handed.ahead, strict=True)
    say(
        f"a reader {'never pays' if handed.least is None else f'pays from {1e6 * handed.least:.0f} µs of reading on'}: "
        + ", ".join(
            f"{rows} rows {1e6 * r:.0f} µs, {1e6 * a:.0f} alone, {1e6 * b:.0f} ahead" for rows, r, a, b in cells
        )
    )
    for name, seconds in lying.items():
        say(f"a ready batch, {name}: median {1e6 * seconds['median']:.1f} µs, 99 % {1e6 * seconds['p99']:.1f} µs")
    say(f"the first batch: {1e3 * first.median:.2f} ms, at most {1e3 * first.high:.2f} ms")
    covered = None
    if "cuda" in BACKENDS and not BACKENDS["cuda"].problem():
        covered = hidden()
        say(f"copies to the GPU: {1e3 * covered.copy:.2f} ms each, {covered.share:.0%} of it hidden behind computing")
    if options.out:
        report = {
            "kind": "reading",
            "others_share": load.others_share(before, load.cpu_times()),
            "sweep": [asdict(point) for point in points],
            "in_memory": {name: asdict(spread) for name, spread in memory.items()},
            "hand_over": asdict(handed),
            "ready": lying,
            "first_batch": asdict(first),
            "hidden_copies": None if covered is None else asdict(covered),
        }
        write(machine.provenance() | report, options.out)
        draw(points, options.out.with_suffix(".png"))
        say(f"written: {options.out} and {options.out.with_suffix('.png')}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
