"""How far a training is: a bar for people, lines of JSON for programs."""

from __future__ import annotations

import json
import math
import sys
import time
from dataclasses import asdict
from typing import Any, TextIO

from .callback import Callback, Training
from .records import Epoch, Step, percent


class ProgressBar(Callback):
    """A bar on stderr for each epoch: loss, accuracy, samples per second, share of waiting for data, time that is left.

    Where stderr is no terminal it draws nothing.
    """

    def __init__(self) -> None:
        self._bar: Any = None
        self._samples = 0

    def on_batch(self, training: Training) -> None:
        if self._bar is None:
            from tqdm import tqdm

            at = training.progress
            self._bar = tqdm(
                total=len(training.loader), initial=at.batch, desc=f"epoch {at.epoch + 1}/{training.epochs}",
                unit="batch", leave=False, disable=not sys.stderr.isatty(),
            )  # fmt: skip

    def on_step(self, training: Training, step: Step) -> None:
        at = training.progress
        rate = at.losses.count / max(at.seconds, 1e-9)
        self._bar.set_postfix_str(
            f"loss {at.losses.value:.4f}{percent(at.scores.value)}, {rate:,.0f}/s, "
            f"waiting {at.waiting / max(at.seconds, 1e-9):.0%}",
            refresh=False,
        )
        self._bar.update(len(training.batches))

    def on_epoch(self, training: Training, epoch: Epoch) -> None:
        self._close()

    def on_end(self, training: Training, error: BaseException | None) -> None:
        self._close()

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None


class JSONLines(Callback):
    """One JSON object a line (jsonlines.org), for scripts; numbers that are not finite are null.

    Each has an ``"event"``: ``"start"``, ``"step"`` at most every ``seconds``, ``"epoch"``, ``"end"``; times are
    in seconds.  ``remaining`` is an estimate from the epochs and steps that are left.

    Args:
        file: where to write; stdout by default.
        seconds: between two lines of steps; 0 for each step.
    """

    def __init__(self, file: TextIO | None = None, seconds: float = 1.0) -> None:
        self._file, self._seconds = file, seconds
        self._last = self._begun = time.perf_counter()
        self._first = 0

    def write(self, event: str, **content: Any) -> None:
        """Write a line."""
        line = {"event": event, **{name: _number(value) for name, value in content.items()}}
        print(json.dumps(line, allow_nan=False), file=self._file or sys.stdout, flush=True)

    def on_start(self, training: Training) -> None:
        self._last = self._begun = time.perf_counter()
        self._first = training.progress.step
        self.write(
            "start", step=self._first, epoch=training.progress.epoch, epochs=training.epochs,
            batches=len(training.loader), parameters=sum(p.numel() for p in training.model.parameters()),
        )  # fmt: skip

    def on_step(self, training: Training, step: Step) -> None:
        now = time.perf_counter()
        if now - self._last < self._seconds:
            return
        self._last, at = now, training.progress
        self.write(
            "step", **asdict(step), samples_per_second=at.losses.count / max(at.seconds, 1e-9),
            waiting=at.waiting, seconds=now - self._begun, remaining=self._remaining(training, now),
        )  # fmt: skip

    def _remaining(self, training: Training, now: float) -> float:
        """Seconds that the steps which are left will take, at the pace of those that were done."""
        at, batches = training.progress, len(training.loader)
        done = at.step - self._first
        left = ((training.epochs - at.epoch) * batches - at.batch) / len(training.batches)
        if training.max_steps is not None:
            left = min(left, training.max_steps - at.step)
        return (now - self._begun) / done * left

    def on_epoch(self, training: Training, epoch: Epoch) -> None:
        content = asdict(epoch)
        metrics = content.pop("metrics")
        self.write("epoch", **{**metrics, **content})

    def on_end(self, training: Training, error: BaseException | None) -> None:
        ended = training.stopped if error is None else f"{type(error).__name__}: {error}"
        self.write("end", step=training.progress.step, seconds=time.perf_counter() - self._begun, stopped=ended)


def _number(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
