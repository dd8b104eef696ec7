"""Which rows a report shows: of every row the newest, machine by machine."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...kernels._errors import DataError
from .. import results, rows
from ..compare import of_peers
from ..harness import OURS
from ..overhead import OUTSIDE
from ..results import Entry, Report, Row, Spread

#: Where the records of this checkout are; an installed rawgrad has none.
RECORDS = Path(__file__).parents[1] / "results"


@dataclass(frozen=True)
class Record:
    """A result file that was read: a table of rows, or a record of another kind, of which a report only tells."""

    path: Path
    kind: str
    content: dict[str, Any]
    report: Report | None


@dataclass(frozen=True)
class Shown:
    """A row, and the file that it is from."""

    row: Row
    path: Path
    report: Report

    @property
    def ours(self) -> Entry | None:
        """rawgrad's own part, with the versions and options that it chooses by itself."""
        return next((entry for entry in self.row.entries if entry.name == OURS), None)

    @property
    def over_peers(self) -> dict[str, Spread]:
        """rawgrad's time over each peer's."""
        return of_peers(self.row)

    @property
    def versions(self) -> dict[str, Entry]:
        """The versions of rawgrad's kernel that took part beside the one it chooses, the plainest first."""
        found = {e.name.removeprefix(f"{OURS} "): e for e in self.row.entries if e.name.startswith(f"{OURS} v")}
        return dict(sorted(found.items(), key=lambda item: _number(item[0])))

    def could_have(self, peer: str) -> bool:
        """Whether ``peer`` does the row's work, as far as the bench knows the row."""
        spec = rows.ROWS.get(self.row.name)
        return spec is None or peer in spec.peers

    @property
    def outside(self) -> float | None:
        """The share of a step outside kernels, in rows that are about that; the step itself is another row."""
        return next((ratio.times.median for ratio in self.row.ratios if ratio.peer == OUTSIDE), None)


def _number(version: str) -> tuple[int, str]:
    digits = version[1:].partition("_")[0]
    return int(digits) if digits.isdigit() else 0, version


@dataclass(frozen=True)
class Machine:
    """Rows that were measured on machines alike: the same GPU, or as many cores of a CPU."""

    name: str
    gpu: bool
    shown: list[Shown]

    @property
    def newest(self) -> Report:
        """The last of the reports."""
        return max((one.report for one in self.shown), key=lambda report: report.date)

    @property
    def threads(self) -> set[int]:
        """Numbers of threads that rows were measured with."""
        return {one.row.threads for one in self.shown}

    def label(self, one: Shown) -> str:
        """A short name of a row, for pictures; it tells the threads where they differ."""
        name = one.row.name
        for long, short in _SHORT:
            name = name.replace(long, short)
        name = name.replace("_", " ")
        name = _NUMBERED.sub(r"\1 \2", _PROGRAM.sub(lambda found: found[0].upper(), name))
        if len(self.threads) > 1 and one.row.threads < max(self.threads):
            name += f", {one.row.threads} thread{'s' if one.row.threads > 1 else ''}"
        return name + (" (noisy)" if one.row.noisy else "")


_PROGRAM, _NUMBERED = re.compile(r"\bp\d+\b"), re.compile(r"\b(layer)(\d)")
_SHORT = (
    ("train_step_", "step "),
    ("_batch", ", batch "),
    ("softmax_cross_entropy_", "cross-entropy "),
    ("max_pool2d_", "max-pool "),
    ("_on_", " on "),
    ("time_to_accuracy", "start to 99 % of MNIST"),
)
_NAMES = {"numpy": "NumPy", "scipy": "SciPy", "torch": "PyTorch", "jax": "JAX", "cupy": "CuPy", "liger": "Liger"}


def called(peer: str) -> str:
    """A peer's name as its makers write it."""
    first, _, rest = peer.partition(" ")
    return " ".join(filter(None, (_NAMES.get(first, first), rest)))


def read(paths: Iterable[Path]) -> list[Record]:
    """The files.

    Raises:
        DataError: one cannot be read, or is no result file.
    """
    found = []
    for path in paths:
        content = results.content_of(path)
        kind = content.get("kind")
        if kind is None:
            report = results.of_content(content, str(path))
            for row in report.rows:
                if wrong := [entry.name for entry in row.entries if entry.name != OUTSIDE and entry.seconds.low <= 0]:
                    raise DataError(f"bench report: {path}: {row.name}: seconds must be positive; not so: {wrong}")
            found.append(Record(path, "rows", content, report))
        elif isinstance(kind, str) and all(isinstance(content.get(key), str) for key in ("date", "command")):
            found.append(Record(path, kind, content, None))
        else:
            raise DataError(f"bench report: {path} must tell its kind, date and command; got kind {kind!r}")
    return found


def recorded(folder: Path = RECORDS) -> list[Path]:
    """The result files of this checkout.

    Raises:
        DataError: there are none.
    """
    found = sorted(folder.glob("*.json"))
    if not found:
        raise DataError(f"bench report: there are no result files in {folder}; name some (rawgrad bench --out FILE)")
    return found


def place(report: Report) -> tuple[str, bool]:
    """What a machine is called, and whether it is a GPU."""
    gpu = report.machine.get("gpu")
    if isinstance(gpu, dict):
        return str(gpu.get("name", "GPU")), True
    cores = report.machine.get("usable_cores") or report.machine.get("cores") or "?"
    return f"CPU, {cores} core{'' if cores == 1 else 's'}", False


def machines(records: Sequence[Record]) -> list[Machine]:
    """The newest of each row (by name and threads) on each machine; GPUs come last."""
    found: dict[tuple[bool, str], dict[tuple[str, int], Shown]] = {}
    for record in sorted((r for r in records if r.report is not None), key=lambda r: r.report.date if r.report else ""):
        assert record.report is not None
        name, gpu = place(record.report)
        here = found.setdefault((gpu, name), {})
        for row in record.report.rows:
            here[row.name, row.threads] = Shown(row, record.path, record.report)
    order = {name: i for i, name in enumerate([*rows.ROWS, *rows.TRAININGS])}
    return [
        Machine(name, gpu, sorted(here.values(), key=lambda s: (order.get(s.row.name, len(order)), -s.row.threads)))
        for (gpu, name), here in sorted(found.items())
    ]
