"""The folder of a run, read back: what it was to do, what it did, what was seen of it."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any

from ..engine.checkpoint import newest
from ..engine.train import Epoch, History, Looks, Progress, Step
from ..kernels._errors import CheckpointError, DataError


@dataclass(frozen=True)
class Run:
    """A run of ``rawgrad train``.

    Attributes:
        folder: where it is.
        settings: network, data, loss, optimizer, lr, … by name; seed, limit, device and backend if they are known.
        history: all steps and epochs.
        result: what ``result.json`` holds; empty as long as the run is not finished.
        looks: what was seen on the way.
    """

    folder: Path
    settings: dict[str, Any]
    history: History
    result: dict[str, Any]
    looks: Looks

    @property
    def name(self) -> str:
        """The folder's name, with that of the folder round it where it is one of several runs of a program."""
        path = self.folder.resolve()
        one_of_several = (path.parent / "curves.png").exists() and not (path.parent / "result.json").exists()
        return f"{path.parent.name}/{path.name}" if one_of_several else path.name

    @property
    def finished(self) -> bool:
        """Whether it went to its end."""
        return bool(self.result)

    def figure(self, *names: str) -> float:
        """A number in the result, by its path; NaN if it is not there."""
        found: Any = self.result
        for name in names:
            found = found.get(name) if isinstance(found, Mapping) else None
        return float(found) if isinstance(found, int | float) and not isinstance(found, bool) else math.nan


def read_run(folder: Path) -> Run:
    """The run in ``folder``; of one that is not finished what its newest checkpoint tells.

    Raises:
        DataError: there is no run, or a record of it is damaged; it says which, and where.
        CheckpointError: the run is not finished, and its checkpoints are damaged.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: {'is a file' if folder.exists() else 'there is no such folder'}; expected a run's")
    saved, result = folder / "checkpoints", folder / "result.json"
    times = [path.stat().st_mtime for path in saved.glob("*.safetensors")] if saved.is_dir() else []
    if not result.exists() or max(times, default=0.0) > result.stat().st_mtime:
        if (found := newest(saved) if times else None) is not None:
            return _under_way(folder, found.path, found.settings, found.state)
        if not result.exists():
            raise DataError(_no_run(folder))
    what = _json(result)
    history = History(_rows(folder / "steps.csv", Step), _rows(folder / "epochs.csv", Epoch))
    task = what.get("task")
    if not isinstance(task, dict):
        raise DataError(f"{result}: must have the settings of the run as 'task'; got {task!r}")
    return Run(folder, _settings(what), history, what, Looks(folder / "watch"))


def _under_way(folder: Path, path: Path, saved: Any, state: Any) -> Run:
    progress = Progress()
    try:
        settings = _settings(saved)
        progress.load_state_dict(state["progress"])
    except (KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path}: is not of a run of `rawgrad train`: {error!r}") from None
    return Run(folder, settings, progress.history, {}, Looks(folder / "watch"))


def _settings(saved: dict[str, Any]) -> dict[str, Any]:
    """Those of the task, and of the others those that were set."""
    others = ("seed", "limit", "accumulate", "clip_norm", "precision", "device", "backend")
    return {**saved["task"], **{name: saved[name] for name in others if saved.get(name) is not None}}


def _no_run(folder: Path) -> str:
    found = [path.parent for name in ("result.json", "checkpoints") for path in folder.glob(f"*/**/{name}")]
    inside = sorted({path.relative_to(folder) for path in found})
    text = f"{folder}: is not the folder of a run: it has neither result.json nor checkpoints"
    if inside:
        text += f"; these in it have: {', '.join(map(str, inside[:6]))}{', …' if len(inside) > 6 else ''}"
    return text


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: damaged: it is no JSON: {error}") from None
    if not isinstance(found, dict):
        raise DataError(f"{path}: must hold an object; it holds {type(found).__name__}")
    return found


def _rows(path: Path, kind: type[Any]) -> list[Any]:
    """The records in a CSV file; of columns that came later the default, where they are missing."""
    types: dict[Any, Any] = {"int": int, "float": float}
    columns = [f for f in fields(kind) if f.type in types]
    needed = {f.name for f in columns if f.default is MISSING}
    try:
        with open(path, newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            head = list(reader.fieldnames or ())
            if not needed <= set(head):
                raise DataError(f"{path}: must have the columns {', '.join(sorted(needed))}; it has {head}")
            records = []
            for row in reader:
                try:
                    records.append(kind(**{f.name: types[f.type](row[f.name]) for f in columns if f.name in row}))
                except (TypeError, ValueError) as error:
                    raise DataError(f"{path}, line {reader.line_num}: must hold numbers: {error}") from None
            return records
    except FileNotFoundError:
        raise DataError(f"{path}: is missing, though the run is finished") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: damaged: {error}") from None
