"""A result file: what was measured, on which machine, from which commit, by which command.

The dataclasses below are the schema: each is a JSON object with exactly these keys.  Times are
seconds per call, memory is bytes, rates are shares of one.  Files live in ``bench/results/``.
"""

from __future__ import annotations

import json
import math
import os
import tempfile
import types
import typing
from collections.abc import Sequence
from dataclasses import MISSING, asdict, dataclass, fields, is_dataclass
from pathlib import Path
from statistics import median, quantiles
from typing import Any, NamedTuple

from ..kernels._errors import DataError

#: Raised by one whenever a key changes its meaning, appears or disappears.
SCHEMA = 3
#: The schemas that can be read.  What an older one lacks are keys that have a default here.
_READABLE = (1, 2, SCHEMA)


@dataclass(frozen=True)
class Spread:
    """The middle and the spread of one figure over the rounds."""

    median: float
    q1: float
    q3: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Median, quartiles (inclusive), least and greatest of ``values`` (at least one)."""
        q1, _, q3 = quantiles(values, n=4, method="inclusive") if len(values) > 1 else (values[0],) * 3
        return cls(median(values), q1, q3, min(values), max(values))


@dataclass(frozen=True)
class Memory:
    """What a process of its own held while it ran one contestant; see ``memory``.

    Attributes:
        peak: most resident bytes of the whole process while the work ran, libraries included.
        baseline: resident bytes just before the first call: libraries, model, inputs.
        work: ``peak - baseline``: activations, gradients, optimizer state, workspaces, and what the
            library loads, or compiles, at its first call.
        method: how it was read.
        steady: most resident bytes of the whole process in calls after the first ones; None without
            ``/proc``.
        step: ``steady`` less what the process held with all its code loaded, but no model and no
            inputs: model, inputs, gradients, optimizer state, activations, workspaces; None without
            ``/proc``.
    """

    peak: int
    baseline: int
    work: int
    method: str
    steady: int | None = None
    step: int | None = None


class Rates(NamedTuple):
    """What the machine does in a second: bytes copied (read plus written), operations of multiply-adds."""

    bandwidth: float
    peak: float


@dataclass(frozen=True)
class Limits:
    """The least time that the machine needs for a row, from what it was seen to do beside it; see ``roofline``.

    Attributes:
        bandwidth: bytes per second, read plus written, of a copy past the caches.
        peak: operations per second, in the row's dtype.
        seconds: the longer of the row's bytes over ``bandwidth`` and its flops over ``peak``.
    """

    bandwidth: float
    peak: float
    seconds: float

    @classmethod
    def of(cls, seen: Sequence[Rates], flops: int, bytes: int) -> Limits:
        """From the best rates that were ``seen`` (at least one)."""
        bandwidth, peak = (max(kind) for kind in zip(*seen, strict=True))
        return cls(bandwidth, peak, max(bytes / bandwidth, flops / peak))


@dataclass(frozen=True)
class Run:
    """One training of a network until it is good enough; see ``time_to_accuracy``.

    Attributes:
        seed: of the first weights and of the order of the images.
        seconds: from the start of the process.
        steps: that it took.
        accuracy: that it reached, of one.
    """

    seed: int
    seconds: float
    steps: int
    accuracy: float

    def __str__(self) -> str:
        return f"seed {self.seed} {self.seconds:.1f} s ({self.steps} steps, {self.accuracy:.2%})"


@dataclass(frozen=True)
class Entry:
    """One contestant's part of a row.

    Attributes:
        name: ``rawgrad``, ``torch``, …
        detail: its version, backend or options.
        inner: calls per round, calibrated to the least round time.
        seconds: per call, over the rounds.
        round_seconds: seconds per call of each round, in order.
        memory: peak memory, or None if it was not measured.
        fraction: of the machine's limit: the row's least time over the median; None without limits.
        runs: where a call is a whole training, each of them.
    """

    name: str
    detail: str
    inner: int
    seconds: Spread
    round_seconds: list[float]
    memory: Memory | None
    fraction: float | None = None
    runs: list[Run] | None = None


@dataclass(frozen=True)
class Ratio:
    """A peer's time over rawgrad's, computed round by round: above 1 rawgrad is ahead."""

    peer: str
    times: Spread


@dataclass(frozen=True)
class Missing:
    """A contestant that took no part, and why: not installed, say, or wrong."""

    name: str
    reason: str


@dataclass(frozen=True)
class Row:
    """One piece of work, done by every contestant.

    Attributes:
        name: as in ``rawgrad bench NAME``.
        description: what one call does.
        dtype, layout: of the arrays, for all contestants.
        flops, bytes: of one call, by the formulas in ``shapes``; 0 where none is stated.
        threads: given to each contestant.
        validated_against: the reference that every contestant's result agreed with before timing.
        load_of_others: share of the machine's CPU time that other processes used during the
            measurement, None where the system does not tell.
        noisy: whether that share was above the limit.
        limits: what the machine can do; None where neither flops nor bytes are stated, or it was not measured.
        failed: why nothing was timed, a wrong result or another error; then there are no entries.
        missing: who took no part; None where that was not noted.
    """

    name: str
    description: str
    dtype: str
    layout: str
    flops: int
    bytes: int
    threads: int
    validated_against: str
    load_of_others: float | None
    noisy: bool
    entries: list[Entry]
    ratios: list[Ratio]
    limits: Limits | None = None
    failed: str | None = None
    missing: list[Missing] | None = None


def not_timed(name: str, reason: str, threads: int = 1, description: str = "") -> Row:
    """The row of a work that was not timed, for this ``reason``."""
    return Row(name, description, "", "", 0, 0, threads, "", None, False, [], [], failed=reason)


@dataclass(frozen=True)
class Report:
    """A result file."""

    schema: int
    date: str
    command: str
    commit: str | None
    dirty: bool | None
    machine: dict[str, Any]
    versions: dict[str, Any]
    rows: list[Row]


def write(report: Report | dict[str, Any], path: Path | str) -> None:
    """Write ``report`` as JSON, whole or not at all (temporary file, fsync, rename).

    What is no table of rows comes as a dict: where it was measured, a ``"kind"`` that says what it is, and keys
    of its own.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    content = asdict(report) if isinstance(report, Report) else report
    text = json.dumps(content, indent=1, allow_nan=False) + "\n"
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
            os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def content_of(path: Path | str) -> dict[str, Any]:
    """The JSON object in ``path``.

    Raises:
        DataError: the file cannot be read, or holds no JSON object.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"bench results: {path} cannot be read: {error.strerror or error}") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"bench results: {path} must be a JSON file; got {error}") from None
    if not isinstance(content, dict):
        raise DataError(f"bench results: {path} must hold a JSON object; got {type(content).__name__}")
    return content


def read(path: Path | str) -> Report:
    """The report in ``path``.

    Raises:
        DataError: as :func:`content_of`; of another schema, or a key is missing, unknown or of another type;
            the message says where.
    """
    return of_content(content_of(path), str(path))


def of_content(content: dict[str, Any], path: str) -> Report:
    """The report that is ``content``; ``path`` is for messages.

    Raises:
        DataError: as :func:`read`.
    """
    if "kind" in content:
        raise DataError(f"bench results: {path} must be a table of rows; got a record of kind {content['kind']!r}")
    schema = content.get("schema")
    if type(schema) is not int or schema not in _READABLE:
        raise DataError(f"bench results: {path} must have schema {SCHEMA}; got {schema!r}")
    report: Report = _parse(Report, content, path, older=schema < SCHEMA)
    return report


def parsed(kind: Any, value: Any, where: str) -> Any:
    """``value``, as JSON gave it, as the type ``kind``: a dataclass, a list of them, a number, …

    Raises:
        DataError: it is of another type; the message names ``where``.
    """
    return _parse(kind, value, where, older=False)


def _parse(kind: Any, value: Any, where: str, older: bool) -> Any:
    """``value``, as JSON gave it, as the type ``kind``.

    Args:
        where: its place, for the message.
        older: whether keys that have a default may be absent.
    """
    if is_dataclass(kind) and isinstance(kind, type):
        if not isinstance(value, dict):
            raise DataError(f"bench results: {where} must be an object ({kind.__name__}); got {value!r}")
        hints = typing.get_type_hints(kind)
        absent = {f.name for f in fields(kind) if older and f.default is not MISSING and f.name not in value}
        names = {field.name for field in fields(kind)} - absent
        if names != set(value):
            missing, unknown = sorted(names - set(value)), sorted(set(value) - names)
            raise DataError(f"bench results: {where} must have exactly its keys; missing {missing}, unknown {unknown}")
        return kind(**{name: _parse(hints[name], value[name], f"{where}: {name}", older) for name in names})
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is types.UnionType:  # X | None
        return None if value is None else _parse(arguments[0], value, where, older)
    if origin is list and isinstance(value, list):
        return [_parse(arguments[0], item, f"{where}[{i}]", older) for i, item in enumerate(value)]
    if origin is dict and isinstance(value, dict):
        return value
    if kind is float and isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        return float(value)
    if kind in (int, str, bool) and type(value) is kind:
        return value
    raise DataError(f"bench results: {where} must be of type {kind}; got {value!r}")


def in_units(seconds: float) -> str:
    """A time in three digits and the unit that suits it."""
    for unit, scale in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if seconds >= scale:
            return f"{seconds / scale:.3g} {unit}" if seconds < 100 * scale else f"{seconds / scale:.0f} {unit}"
    return f"{seconds / 1e-9:.0f} ns"


def _memory(used: Memory | None) -> str:
    if used is None:
        return ""
    return " / ".join("–" if size is None else f"{size / 2**20:.0f}" for size in (used.step, used.work, used.peak))


def _table_row(row: Row, entry: Entry) -> list[str]:
    ratio = next((r.times for r in row.ratios if r.peer == entry.name), None)
    seconds = entry.seconds
    return [
        row.name + (" (noisy)" if row.noisy else ""),
        entry.name,
        in_units(seconds.median),
        f"{in_units(seconds.q1)} – {in_units(seconds.q3)}",
        in_units(seconds.low),
        f"{row.flops / seconds.median / 1e9:.3g}" if row.flops else "",
        f"{row.bytes / seconds.median / 1e9:.3g}" if row.bytes else "",
        "" if entry.fraction is None else f"{100 * entry.fraction:.3g} %",
        _memory(entry.memory),
        f"{ratio.median:.2f} ({ratio.q1:.2f} – {ratio.q3:.2f})" if ratio else "",
    ]


def _failed_row(row: Row, cells: int) -> list[str]:
    said = " ".join((row.failed or "").split()).replace("|", "\\|")
    return [row.name, f"failed: {said}", *[""] * (cells - 2)]


def runs(row: Row) -> str | None:
    """The trainings of a row, a line for each contestant; None for rows of another kind."""
    lines = [f"{row.name}: {e.name}: {', '.join(map(str, e.runs))}" for e in row.entries if e.runs]
    return "\n".join(lines) or None


def markdown(rows: Sequence[Row]) -> str:
    """A Markdown table of ``rows``: one line per contestant.

    GFLOP/s and GB/s are the stated operations and bytes over the median; of the limit is the share of
    what the machine can do.  Memory is in MiB: of a step, of the first calls with what they load and
    compile, and of the whole process at its peak.  The last column is the peer's time over rawgrad's.
    A row that failed has one line, which says why.
    """
    head = (
        "row|contestant|median|quartiles|min|GFLOP/s|GB/s|of the limit|peak MiB (step / first calls / process)|"
        "peer ÷ rawgrad"
    ).split("|")
    lines = [head, ["---"] * len(head)]
    for row in rows:
        lines += [_failed_row(row, len(head))] if row.failed is not None else [_table_row(row, e) for e in row.entries]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)
