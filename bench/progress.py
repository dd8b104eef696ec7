"""How far ``rawgrad bench`` is: which row is under way, and how long it will take yet.

On a terminal that is one line at its lower end, drawn by tqdm when a row begins and not meanwhile, since drawing
would disturb what is timed; elsewhere a line for each row.
"""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

from .harness import SETTLE

#: Seconds, as seen on two cores: to make and check a row's work, for the machine's limits, for the memory of one
#: contestant, for one training until it is good enough.  Estimates to begin with: what has been seen corrects them.
_BUILD, _LIMITS, _MEMORY, _TRAINING = 2.0, 3.0, 7.0, 40.0
#: Turns of a contestant beside those of the rounds, until its number of calls is found.
_CALIBRATION = 4


def expected(contestants: int, rounds: int, min_round: float, *, memory: bool, limits: bool) -> float:
    """About how many seconds a row takes; the arguments are those of :func:`.harness.measure`."""
    turns = (rounds + _CALIBRATION) * (SETTLE + 1.2 * min_round)  # the opening calls are a tenth, a round overshoots
    return _BUILD + contestants * (turns + memory * _MEMORY) + limits * _LIMITS


def expected_trainings(contestants: int, seeds: int) -> float:
    """About how many seconds ``time_to_accuracy`` takes."""
    return _TRAINING * (seeds * contestants + 1)


def _in_words(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


class Progress:
    """Says which row is under way, on stderr.

    Args:
        expected: about how many seconds each row takes, in the order in which they are measured.
        clock: seconds.
    """

    def __init__(self, expected: Mapping[str, float], clock: Callable[[], float] = time.monotonic) -> None:
        self._expected, self._clock = dict(expected), clock
        self._left = sum(expected.values())
        self._begun = clock()
        self._bar: Any = None
        self._count = 0
        if sys.stderr.isatty():
            from tqdm import tqdm

            self._bar = tqdm(
                total=len(expected), miniters=1, leave=False,
                ncols=shutil.get_terminal_size().columns - 1, nrows=24,  # also where a terminal does not tell its size
                bar_format="{n_fmt}/{total_fmt} |{bar:12}| {desc}",
            )  # fmt: skip

    @property
    def seconds(self) -> float:
        """Since the beginning."""
        return self._clock() - self._begun

    @property
    def left(self) -> float:
        """About how many seconds what has not ended will take: as expected, times how far off that was so far."""
        ended = sum(self._expected.values()) - self._left
        return self._left * (self.seconds / ended if ended and self.seconds else 1.0)

    def begin(self, name: str) -> None:
        """``name`` is under way."""
        left = self.left
        self._count += 1
        if self._bar is None:
            self.say(f"[{self._count}/{len(self._expected)}] {name} …, about {_in_words(left)} left")
        else:
            self._bar.set_description_str(f"{name}, about {_in_words(left)} left", refresh=True)

    def end(self, name: str) -> None:
        """``name`` has ended, or is left out."""
        self._left -= self._expected[name]
        if self._bar is not None:
            self._bar.update()

    def say(self, text: str) -> None:
        """A line on stderr that does not spoil the bar."""
        if self._bar is None:
            print(text, file=sys.stderr, flush=True)
        else:
            self._bar.write(text, file=sys.stderr)

    def close(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.close()
