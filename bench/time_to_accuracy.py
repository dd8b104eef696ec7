"""How long from the start of a process until a network knows 99 % of MNIST's test digits: rawgrad and PyTorch.

Each training is a fresh process that runs ``to_accuracy``: P5 with Adam at the recipe's learning rate, schedule and
batch, evaluated on the 10,000 test digits every 150 steps.  For each seed all libraries start from the same
weights, drawn by rawgrad's recipe, and see the images in the same order; they take turns, and who begins
changes from seed to seed.  The time runs from the moment the process is started to the line in which it says
that the accuracy is reached, imports and data included.

rawgrad's compiled kernels are kept in a folder of this measurement, empty at first.  The first training of all
fills it; its time is reported as the contestant :data:`FIRST`.  PyTorch is started once before, for its files
to be in memory as well.

The result is checked: the predictions that the program left are counted again here, and for each seed the loss of
the first step must be the same for all.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import numpy as np

from ..autograd import manual_seed
from ..engine.data import MNIST
from ..kernels._errors import RawgradError
from ..recipes.mnist_cnn import TASK
from ..recipes.networks import build
from . import child, load, peers
from .harness import OURS, WrongResult, ratios
from .results import Entry, Row, Run, Spread
from .to_accuracy import DIGITS, PREDICTIONS, WEIGHTS, Settings

NAME = "time_to_accuracy"
#: The contestant with no compiled kernel to begin with.
FIRST = "rawgrad, first run"
_EVERY = 150
#: The first losses of two libraries may differ by this share.
_SAME_LOSS = 1e-4

#: Trains a contestant once; gives what came of it and the loss of the first step.
Train = Callable[[str, Settings], tuple[Run, float]]


def prepare(folder: Path, seeds: Sequence[int]) -> tuple[int, np.ndarray]:
    """Write the digits and the first weights of each seed into ``folder``.

    Returns:
        The number of images to train on, and the labels of the test digits.

    Raises:
        DataError: MNIST is not on this machine; the message says where it was looked for.
    """
    splits = MNIST.splits(raw=True)
    train, test = splits["train"], splits["test"]
    np.savez(folder / DIGITS, images=train.data, labels=train.labels, test_images=test.data, test_labels=test.labels)
    for seed in seeds:
        manual_seed(seed)
        weights = [parameter.detach().numpy() for parameter in build(TASK.network, TASK.arguments).parameters()]
        np.savez(folder / WEIGHTS.format(seed=seed), *weights)
    return len(train), test.labels


def run(folder: Path, test_labels: np.ndarray, name: str, settings: Settings) -> tuple[Run, float]:
    """Train ``name`` once in a process of its own on what lies in ``folder``; a :data:`Train` but for the first two.

    Raises:
        RawgradError: the process failed, with the end of what it said; or the accuracy was not reached.
        WrongResult: the predictions that it left are not as good as it said.
    """
    told: dict[str, float] = {}
    seconds = 0.0
    with tempfile.TemporaryFile("w+") as said:
        start = time.perf_counter()
        process = child.start(
            *("to_accuracy", name, str(folder), json.dumps(asdict(settings))),
            stderr=said,
            RAWGRAD_CACHE=str(folder / "cache"),
        )
        try:
            assert process.stdout is not None
            for line in process.stdout:
                seconds = time.perf_counter() - start
                told |= json.loads(line)
            code = process.wait()
        finally:
            process.kill()  # after an interrupt; one that has ended does not mind
            process.wait()
            process.communicate()  # closes its pipe
        if code:
            said.seek(0)
            raise child.failed(f"training {name} in a process of its own", said.read())
    accuracy = told["accuracy"]
    counted = float((np.load(folder / PREDICTIONS) == test_labels).mean())
    if abs(counted - accuracy) > 1e-9:
        raise WrongResult(f"{NAME}: {name} says that {accuracy:.2%} are right; of its predictions {counted:.2%} are")
    if accuracy < settings.accuracy:
        raise RawgradError(
            f"{NAME}: {name} with seed {settings.seed} ends after {told['step']} steps with {accuracy:.2%}, "
            f"short of {settings.accuracy:.2%}"
        )
    return Run(settings.seed, seconds, int(told["step"]), accuracy), told["loss"]


def take_turns(
    train: Train, who: Sequence[str], each_seed: Sequence[Settings], say: Callable[[str], None]
) -> dict[str, list[Run]]:
    """The runs of every contestant, and of :data:`FIRST`, by name; ``say`` is told of each.

    Raises:
        WrongResult: the first losses of a seed are not the same.
    """
    for name in who:
        if name != OURS:  # up to the first evaluation
            train(name, replace(each_seed[0], every=1, accuracy=0.0))
    runs: dict[str, list[Run]] = {name: [] for name in (*who, FIRST)}

    def add(name: str, done: Run) -> None:
        runs[name].append(done)
        say(f"{NAME}: {name}: {done}")

    add(FIRST, train(OURS, each_seed[0])[0])
    for i, settings in enumerate(each_seed):
        first = i % len(who)
        losses = {}
        for name in (*who[first:], *who[:first]):
            done, losses[name] = train(name, settings)
            add(name, done)
        if not all(abs(loss - losses[OURS]) <= _SAME_LOSS * losses[OURS] for loss in losses.values()):
            raise WrongResult(f"{NAME}: the first losses with seed {settings.seed} must be the same; got {losses}")
    return runs


def measure(seeds: int, threads: int, accuracy: float, say: Callable[[str], None] = print) -> Row:
    """The row: a call is a whole training, a round is a seed.

    Args:
        seeds: how many, from 0.
        threads: of every contestant.
        accuracy: share of the test digits that is enough.
        say: is told of each training that has ended.

    Raises:
        DataError: MNIST is not on this machine.
        RawgradError, WrongResult: as :func:`run` and :func:`take_turns`.
    """
    who, before = [OURS, *peers.available()], load.cpu_times()
    with tempfile.TemporaryDirectory(prefix="rawgrad-bench-") as name:
        images, test_labels = prepare(Path(name), range(seeds))
        steps = TASK.epochs * -(-images // TASK.batch_size)
        each_seed = [
            Settings(TASK.lr, TASK.batch_size, steps, _EVERY, accuracy, seed, threads) for seed in range(seeds)
        ]
        runs = take_turns(partial(run, Path(name), test_labels), who, each_seed, say)
    others = load.others_share(before, load.cpu_times())
    seconds = {name: [done.seconds for done in all_of_it] for name, all_of_it in runs.items()}
    return Row(
        name=NAME,
        description=f"from process start to {accuracy:.4g} of MNIST's test digits: P5 with Adam, evaluated every "
        f"{_EVERY} steps, {seeds} seeds",
        dtype="float32",
        layout="NCHW",
        flops=0,
        bytes=0,
        threads=threads,
        validated_against="the predictions counted again; equal first losses of all contestants",
        load_of_others=others,
        noisy=others is not None and others > load.NOISY,
        entries=[
            Entry(name, detail, 1, Spread.of(seconds[name]), seconds[name], None, runs=runs[name])
            for name, detail in [*((name, peers.detail(name)) for name in who), (FIRST, "kernels compiled on the way")]
        ],
        ratios=ratios({name: seconds[name] for name in who}),
    )
