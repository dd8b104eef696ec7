"""P5 with Adam until it knows enough of the test digits: one program text for rawgrad and for PyTorch.

``time_to_accuracy`` runs it in processes of its own.  It reads digits, first weights and settings from files, so that
every library sees the same numbers in the same order, and prints JSON, a line each: the first loss, and the
accuracy on the test digits whenever it was evaluated.  The predictions behind the last line stay in a file.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from . import programs, shapes
from .harness import OURS
from .peers import Library, library, set_threads

#: Files of the folder that the program is given.
DIGITS, WEIGHTS, PREDICTIONS = "digits.npz", "weights-{seed}.npz", "predictions.npy"
_TESTED_AT_ONCE = 500


@dataclass(frozen=True)
class Settings:
    """How to train.

    Attributes:
        lr: at first; it falls to 0 over ``steps`` along a cosine.
        batch: images of a step.
        steps: after which training ends in any case.
        every: steps between evaluations.
        accuracy: share of the test digits that is enough.
        seed: of the order of the images, and of the first weights.
        threads: of the library.
    """

    lr: float
    batch: int
    steps: int
    every: int
    accuracy: float
    seed: int
    threads: int


def train(lib: Library, folder: Path, settings: Settings, say: Callable[[dict[str, Any]], None]) -> None:
    """Train and evaluate until the accuracy or the number of steps is reached; tell ``say`` on the way."""
    digits = np.load(folder / DIGITS)
    images, test_images = (_scaled(digits[name]) for name in ("images", "test_images"))
    labels, test_labels = (digits[name].astype(np.int64) for name in ("labels", "test_labels"))
    program = programs.Program(
        "P5", programs.p5_network, lambda lib, parameters: lib.optim.Adam(parameters, lr=settings.lr), shapes.p5
    )
    training = programs.Training(lib, program, weights=[*np.load(folder / WEIGHTS.format(seed=settings.seed)).values()])
    schedule = lib.optim.lr_scheduler.CosineAnnealingLR(training.optimizer, settings.steps)
    order, step = np.random.default_rng(settings.seed), 0
    while step < settings.steps:
        shuffled = order.permutation(len(images))
        for start in range(0, len(images), settings.batch):
            some = shuffled[start : start + settings.batch]
            loss = training.step(*training.put(images[some], labels[some]))
            schedule.step()
            step += 1
            if step == 1:
                say({"loss": float(loss.item())})
            if step % settings.every == 0 or step == settings.steps:
                predictions = _predictions(lib, training, test_images)
                accuracy = float((predictions == test_labels).mean())
                say({"step": step, "accuracy": accuracy})
                if accuracy >= settings.accuracy or step == settings.steps:
                    np.save(folder / PREDICTIONS, predictions)
                    return


def _scaled(pixels: np.ndarray) -> np.ndarray:
    """(N, 28, 28) bytes as (N, 1, 28, 28) float32 in [0, 1]."""
    return pixels[:, None].astype(np.float32) / np.float32(255)


def _predictions(lib: Library, training: programs.Training, images: np.ndarray) -> np.ndarray:
    """The most likely digit of each image."""
    parts = []
    with lib.no_grad():
        for start in range(0, len(images), _TESTED_AT_ONCE):
            logits = training.network(lib.tensor(images[start : start + _TESTED_AT_ONCE]))
            parts.append(lib.host(logits).argmax(1))
    return np.concatenate(parts)


def _main(name: str, folder: str, settings: str) -> None:
    lib, given = library(name), Settings(**json.loads(settings))
    set_threads(given.threads, name == OURS)
    train(lib, Path(folder), given, lambda told: print(json.dumps(told), flush=True))


if __name__ == "__main__":
    _main(*sys.argv[1:])
