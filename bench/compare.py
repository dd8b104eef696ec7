"""``rawgrad bench compare A B``: which rows moved between two result files by more than the noise of both.

What is compared is rawgrad's time: over each peer's where both files have that peer, since then a machine that is
faster or slower today is no news; in seconds where there is no common peer, and only on the same machine.

A figure has *moved* if its two medians are further apart than both interquartile ranges together, and by more than
``--least`` of the first.  The ranges are those of the rounds: what differs between two runs of the same code on the
same machine (where its arrays lie, how warm it is) is not in them, and was seen to be a few per cent; ``--least``
stands for it.  On the same machine a time over a peer's is only taken for a move of rawgrad's if its seconds moved the
same way: else it was the peer that moved.  Not judged are figures of fewer than three rounds, which have no range,
and rows marked noisy, which have a wrong one.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..kernels._errors import DataError
from . import results
from .harness import OURS
from .options import share
from .results import Report, Row, Spread

#: What makes two machines one: those of its keys that say how fast it is.
_MACHINE = ("cpu", "cores", "usable_cores", "core_quota", "last_level_cache", "gpu")
#: A range needs so many rounds.
_LEAST_ROUNDS = 3
SLOWER, FASTER, SAME, UNJUDGED = "slower", "faster", "within the noise", "not judged"


@dataclass(frozen=True)
class Moved:
    """One figure of a row in both files.

    Attributes:
        row: its name.
        measure: what was compared: a peer's name or seconds.
        before, after: the figure as text.
        change: of rawgrad's time, as a share of the first: above 0 it takes longer; None where it is not known.
        verdict: SLOWER, FASTER, SAME or UNJUDGED.
        why: of a verdict that the figures do not explain.
    """

    row: str
    measure: str
    before: str
    after: str
    change: float | None
    verdict: str
    why: str = ""


def differences(a: Report, b: Report) -> list[str]:
    """What differs in machine and versions, a line each."""
    found = []
    for what, one, other, keys in (
        ("machine", a.machine, b.machine, _MACHINE),
        ("version", a.versions, b.versions, sorted({*a.versions, *b.versions} - {"pools", "backends"})),
    ):
        for key in keys:
            if one.get(key) != other.get(key):
                found.append(f"{what}: {key}: {_text(one.get(key))} before, {_text(other.get(key))} after")
    return found


def _text(value: Any) -> str:
    if isinstance(value, dict):  # a GPU
        return ", ".join(f"{key} {one}" for key, one in value.items())
    return "none" if value is None else str(value)


def same_machine(a: Report, b: Report) -> bool:
    """Whether seconds of one can be compared with seconds of the other."""
    return all(a.machine.get(key) == b.machine.get(key) for key in _MACHINE)


def _verdict(before: Spread, after: Spread, least: float) -> tuple[float, str]:
    """The change and what it is, for figures of which less is better."""
    change = after.median / before.median - 1
    noise = (before.q3 - before.q1) + (after.q3 - after.q1)
    if abs(after.median - before.median) <= noise or abs(change) <= least:
        return change, SAME
    return change, SLOWER if change > 0 else FASTER


def of_peers(row: Row) -> dict[str, Spread]:
    """rawgrad's time over each peer's; rawgrad in another way is no peer."""
    return {
        ratio.peer: Spread(*(1 / getattr(ratio.times, key) for key in ("median", "q3", "q1", "high", "low")))
        for ratio in row.ratios
        if not ratio.peer.startswith(OURS) and ratio.times.low > 0
    }


def _figures(before: Row, after: Row, same: bool, least: float) -> Iterator[Moved]:
    """The figures of a row that both files have, from the ``same`` machine or not."""
    name = before.name
    if before.failed is not None or after.failed is not None:
        old_said, new_said = ("ok" if row.failed is None else "failed" for row in (before, after))
        verdict = {("ok", "failed"): SLOWER, ("failed", "ok"): FASTER}.get((old_said, new_said), UNJUDGED)
        yield Moved(name, "", old_said, new_said, None, verdict, after.failed or before.failed or "")
        return
    one, other = (next((e.seconds for e in row.entries if e.name == OURS), None) for row in (before, after))
    if one is None or other is None or min(one.low, other.low) <= 0:
        yield Moved(name, "", "", "", None, UNJUDGED, "there is no time of rawgrad's")
        return
    unjudged = ""
    if min(len(e.round_seconds) for row in (before, after) for e in row.entries if e.name == OURS) < _LEAST_ROUNDS:
        unjudged = f"fewer than {_LEAST_ROUNDS} rounds"
    elif before.noisy or after.noisy:
        unjudged = "other processes used the CPU " + ("before" if before.noisy else "after")
    in_seconds = _verdict(one, other, least)
    old, new = of_peers(before), of_peers(after)
    for peer in [peer for peer in old if peer in new]:
        change, verdict = _verdict(old[peer], new[peer], least)
        why = unjudged
        if same and verdict not in (SAME, in_seconds[1]):
            why = why or f"rawgrad's seconds moved by {in_seconds[0]:+.1%}, so it was {peer} that moved"
        was, now = (f"{s.median:.3g}" for s in (old[peer], new[peer]))
        yield Moved(name, f"time over {peer}'s", was, now, change, UNJUDGED if why else verdict, why)
    if not set(old) & set(new):
        why = unjudged if same else "another machine, and no peer in both"
        was, now = (results.in_units(s.median) for s in (one, other))
        yield Moved(name, "seconds", was, now, in_seconds[0], UNJUDGED if why else in_seconds[1], why)


@dataclass(frozen=True)
class Comparison:
    """Two result files beside each other: what moved, what only one has, what differs around them."""

    figures: list[Moved]
    only_before: list[str]
    only_after: list[str]
    differences: list[str]

    @property
    def slower(self) -> bool:
        """Whether a row got slower beyond the noise, or fails now."""
        return any(figure.verdict == SLOWER for figure in self.figures)


def compared(a: Report, b: Report, least: float = 0.05) -> Comparison:
    """``a``, before, and ``b``, after, as the head of this module tells.

    Args:
        a, b: the reports; of rows of the same name and number of threads the last counts.
        least: a change by less, as a share, is no move.

    Raises:
        DataError: no row is in both.
    """
    before, after = ({(row.name, row.threads): row for row in report.rows} for report in (a, b))
    both = [key for key in before if key in after]
    if not both:
        raise DataError("bench compare: the two files must have a row of the same name and threads; none is in both")
    order = (SLOWER, FASTER, UNJUDGED, SAME)
    figures = [one for key in both for one in _figures(before[key], after[key], same_machine(a, b), least)]
    return Comparison(
        sorted(figures, key=lambda figure: order.index(figure.verdict)),
        [_named(key) for key in before if key not in after],
        [_named(key) for key in after if key not in before],
        differences(a, b),
    )


def _named(key: tuple[str, int]) -> str:
    return f"{key[0]} ({key[1]} thread{'s' if key[1] > 1 else ''})"


def table(figures: Sequence[Moved]) -> str:
    """The figures, a line of Markdown each: those that got slower first."""
    lines = [["row", "rawgrad's", "before", "after", "change", ""], ["---"] * 6]
    for one in figures:
        change = "" if one.change is None else f"{one.change:+.1%}"
        why = " ".join(one.why.split()).replace("|", "\\|")
        verdict = f"{one.verdict}: {why}" if why else one.verdict
        lines.append([one.row, one.measure, one.before, one.after, change, verdict])
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Compare two files; 0 if nothing got slower beyond the noise, else 1."""
    parser = argparse.ArgumentParser(
        prog="rawgrad bench compare",
        description="Say which rows moved between two result files of rawgrad bench by more than the noise of both: "
        "medians further apart than both interquartile ranges together. Times are taken over each peer's where both "
        "files have that peer. Ends with 1 if a row got slower or fails now. (rawgrad compare is for trainings.)",
    )
    parser.add_argument("before", type=Path, metavar="A", help="result file (rawgrad bench --out)")
    parser.add_argument("after", type=Path, metavar="B", help="a later one")
    parser.add_argument(
        "--least", type=share, default=0.05, metavar="S",
        help="a change by less is no move: about what two runs of the same code differ (default: %(default)s)",
    )  # fmt: skip
    options = parser.parse_args(argv)
    a, b = results.read(options.before), results.read(options.after)
    found = compared(a, b, options.least)
    for name, report in (("before", a), ("after", b)):
        commit = (report.commit or "no commit")[:10] + (", changed since" if report.dirty else "")
        print(f"{name}: {report.date}, {commit}: {report.command}")
    if found.differences:
        print("\nNot measured alike:\n" + "\n".join(f"* {line}" for line in found.differences))
    print(f"\n{table(found.figures)}", end="")
    for which, names in (("before", found.only_before), ("after", found.only_after)):
        if names:
            print(f"\nonly {which}: {', '.join(names)}")
    counts = ", ".join(f"{sum(f.verdict == v for f in found.figures)} {v}" for v in (SLOWER, FASTER, SAME, UNJUDGED))
    print(f"\n{counts}")
    return 1 if found.slower else 0
