"""Runs that differ in one thing, side by side: one line each, one picture of all."""

from __future__ import annotations

from dataclasses import dataclass

from .curves import draw
from .options import Options
from .training import Result, Task, load_data, train


@dataclass
class Several:
    """Results by name."""

    results: dict[str, Result]

    def __str__(self) -> str:
        best = max(self.results, key=lambda name: self.results[name].test.accuracy)
        return f"best: {best}, {self.results[best]}"


def run(tasks: dict[str, Task], options: Options, title: str, picture: str = "curves.png") -> Several:
    """Train each task in a folder of its own below ``options.out`` and draw all curves into ``picture``."""
    data = load_data(next(iter(tasks.values())), options)
    results = {}
    for name, task in tasks.items():
        options.say(f"--- {name}")
        results[name] = train(task, options.but(out=options.out / name.replace(" ", "-")), data)
    draw({name: result.history for name, result in results.items()}, options.out / picture, title)
    options.say()
    for name, result in results.items():
        options.say(f"{name:32s} {result}")
    options.say(f"picture: {options.out / picture}")
    return Several(results)
