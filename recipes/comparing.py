"""``rawgrad compare``: several runs in one picture and one table."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..kernels._errors import ArgumentError, DataError
from .curves import draw
from .pictures import check_ending
from .runs import Run, read_run
from .tables import duration, number, shown


def compare(folders: Sequence[Path], out: Path) -> int:
    """Draw the curves of the runs in ``folders`` into ``out``, and print their figures and what differs in them.

    Raises:
        ArgumentError: there are not two runs, one is named twice, or ``out`` is no name of a picture.
        DataError, CheckpointError: see :func:`read_run`.
    """
    if len(folders) < 2:
        raise ArgumentError("compare: must be given at least two runs; `rawgrad report RUN` shows one")
    places = [folder.resolve() for folder in folders]
    for folder, place in zip(folders, places, strict=True):
        if places.count(place) > 1:
            raise ArgumentError(f"compare: each run must be named once; {folder} is named {places.count(place)} times")
    check_ending("compare", out)
    runs = [read_run(folder) for folder in folders]
    names = [run.name for run in runs]
    if len(set(names)) < len(names):
        names = list(map(str, folders))
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        draw({name: run.history for name, run in zip(names, runs, strict=True)}, out)
    except OSError as error:
        raise DataError(f"compare: cannot write {out}: {error.strerror or error}") from error
    print(_aligned([_HEAD, *(_figures(name, run) for name, run in zip(names, runs, strict=True))]))
    if differ := _differences(runs):
        print("\nsettings that differ")
        print(_aligned([["", *names], *differ]))
    else:
        print("\nall settings are the same")
    print(f"\npicture: {out}")
    return 0


_HEAD = ["run", "test accuracy", "test loss", "best validation", "steps", "epochs", "training", "images/s"]


def _figures(name: str, run: Run) -> list[str]:
    epochs = run.history.epochs
    best = max((e.validation_accuracy for e in epochs if e.validation_accuracy == e.validation_accuracy), default=None)
    speed = sorted(e.samples_per_second for e in epochs)[len(epochs) // 2] if epochs else float("nan")
    accuracy = number(100 * run.figure("test", "accuracy"), ".2f", " %")
    return [
        name, accuracy if run.finished else "not finished", number(run.figure("test", "loss"), ".4f"),
        "" if best is None else f"{100 * best:.2f} %", f"{len(run.history.steps):,}", str(len(epochs)),
        duration(sum(e.seconds for e in epochs)), number(speed, ",.0f"),
    ]  # fmt: skip


def _differences(runs: Sequence[Run]) -> list[list[str]]:
    """A row for each setting that is not the same in all runs: its name, and its values."""
    names = dict.fromkeys(name for run in runs for name in run.settings)
    rows: list[list[str]] = []
    for name in names:
        values: list[Any] = [run.settings.get(name) for run in runs]
        if any(value != values[0] for value in values):
            rows.append([name.replace("_", " "), *map(shown, values)])
    return rows


def _aligned(rows: Sequence[Sequence[str]]) -> str:
    """Columns, the first to the left and the others to the right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = []
    for first, *rest in rows:
        cells = [first.ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(rest, widths[1:], strict=True))]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)
