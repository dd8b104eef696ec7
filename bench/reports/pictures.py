"""The pictures of a report, narrow enough for a telephone.

A figure is drawn once and serves everywhere: as PNG on white, and as SVG whose ink is the page's own, so that it is
read on light and on dark.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from ...recipes.curves import figure
from ..growth import Series, fitted
from ..harness import OURS
from ..results import Entry, in_units
from .gather import Machine, Shown, called
from .goals import goal_of

#: Lines and words; in an SVG the colour of the page's text.
INK = "#1f2328"
#: Readable on white and on black: rawgrad ahead, rawgrad behind, goals and failures, peers.
AHEAD, BEHIND, MARK, PEER = "#3b82c4", "#d9822b", "#d1456a", "#8a8f98"
_WIDTH = 4.3
_BAR = 0.27
#: Ticks of ratios, where these differ much and little.
_FAR, _NEAR = [2.0**k for k in range(-8, 9)], [0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1, 1.2, 1.4, 1.7, 2, 2.5]


@contextmanager
def style() -> Iterator[None]:
    """Everything is drawn and saved within."""
    import matplotlib

    colours = ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color")
    settings: dict[Any, Any] = dict.fromkeys(colours, INK)
    settings |= {"font.size": 8, "axes.titlesize": 9, "axes.spines.top": False, "axes.spines.right": False}
    settings |= {"grid.color": PEER, "grid.alpha": 0.3, "svg.fonttype": "none"}
    with matplotlib.rc_context(settings):
        yield


def svg(made: Any, name: str) -> str:
    """The figure as an element of a page; ``name`` sets its identifiers apart from other pictures'."""
    import matplotlib

    text = io.StringIO()
    with style(), matplotlib.rc_context({"svg.hashsalt": name}):
        made.savefig(text, format="svg", transparent=True, metadata={"Date": None})
    inner = text.getvalue()
    inner = re.sub(r"<metadata>.*?</metadata>", "", inner[inner.index("<svg") :], flags=re.DOTALL)
    inner = re.sub(r'<g id="[^"]*"', "<g", inner)  # names that every picture has, and nothing refers to
    return inner.replace(INK, "currentColor")


def png(made: Any, path: Path, dpi: int = 160) -> None:
    """The figure as a file, on white."""
    with style():
        made.savefig(path, dpi=dpi, facecolor="white", metadata={"Software": None})


def over_peer(machine: Machine, shown: Sequence[Shown], peer: str, width: float = _WIDTH, title: str = "") -> Any:
    """rawgrad's time over the peer's: a bar for each row from 1 to its median, with its quartiles, best first.

    Left of 1 rawgrad is ahead.  The goal of a row is a bar of its own across; rows that failed have no bar.
    """
    there = sorted((one for one in shown if peer in one.over_peers), key=lambda one: -one.over_peers[peer].median)
    lines = [*(one for one in shown if one.row.failed is not None and one.could_have(peer)), *there]
    with style():
        made, (axes,) = figure(1, 0.9 + _BAR * len(lines), width=width)
        lowest, highest = 0.7, 1.4
        for y, one in enumerate(lines):
            if one.row.failed is not None:
                axes.annotate("failed", (1, y), xytext=(4, 0), textcoords="offset points", va="center", color=MARK)
                continue
            spread = one.over_peers[peer]
            colour = AHEAD if spread.median <= 1 else BEHIND
            hatch = "////" if one.row.noisy else None
            left, right = sorted((spread.median, 1.0))
            axes.barh(y, right - left, 0.62, left=left, color=colour, hatch=hatch, edgecolor="white", linewidth=0)
            axes.plot([spread.q1, spread.q3], [y, y], color=INK, linewidth=1.2, solid_capstyle="butt")
            goal = _goal(one, machine, peer)
            if goal is not None:
                axes.plot([goal] * 2, [y - 0.42, y + 0.42], color=MARK, linewidth=1.8)
                lowest, highest = min(lowest, goal), max(highest, goal)
            axes.annotate(
                f"{spread.median:.2f} (1 / {1 / spread.median:.1f})", (max(right, spread.q3), y), xytext=(3, 0),
                textcoords="offset points", va="center", fontsize=7,
            )  # fmt: skip
            lowest, highest = min(lowest, spread.q1), max(highest, spread.q3)
        axes.axvline(1, color=INK, linewidth=0.9)
        axes.set_yticks(range(len(lines)), [machine.label(one) for one in lines])
        axes.tick_params(axis="y", length=0)
        axes.set_ylim(-0.6, len(lines) - 0.4)
        axes.set_xscale("log")
        axes.set_xlim(lowest / 1.1, highest * 1.5)
        ticks = _FAR if highest > 3 * lowest else _NEAR
        ticks = [tick for tick in ticks if lowest / 1.1 <= tick <= highest * 1.5]
        axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axes.minorticks_off()
        axes.grid(axis="x")
        axes.set_axisbelow(True)
        goals = [goal for one in there if (goal := _goal(one, machine, peer)) is not None]
        marks = "line: quartiles" + ("; red: goal" if goals else "")
        said = f"rawgrad's time over {called(peer)}'s, log scale: left of 1 is faster\n{marks}"
        axes.set_xlabel(said, fontsize=7.5, loc="right")
        axes.set_title(title, fontsize=9)
    return made


def _goal(one: Shown, machine: Machine, peer: str) -> float | None:
    """The goal of a row, if it is about this peer: rawgrad's time over the peer's, at most."""
    goal = goal_of(one.row, machine.gpu)
    return goal.most if goal is not None and goal.peer == peer else None


def on_roofline(one: Shown) -> bool:
    """Whether a row states what a point on the roofline needs."""
    return bool(one.row.flops and one.row.bytes and one.ours)


def roofline(shown: Sequence[Shown]) -> Any:
    """Operations a second over operations a byte, rows numbered from 1; the roof is the best that was seen beside them.

    Filled: rawgrad; hollow: its peers.  The rows must have the same dtype and threads.
    """
    with style():
        made, (axes,) = figure(1, 3.4, width=_WIDTH)
        intensities = [one.row.flops / one.row.bytes for one in shown]
        heights = [one.row.flops / entry.seconds.median for one in shown for entry in _beside(one)]
        limits = [one.row.limits for one in shown if one.row.limits is not None]
        low, high = min(intensities) / 3, max(intensities) * 3
        if limits:
            bandwidth, peak = max(limit.bandwidth for limit in limits), max(limit.peak for limit in limits)
            low, high = min(low, peak / bandwidth / 3), max(high, peak / bandwidth * 3)
            along = np.geomspace(low, high, 200)
            axes.plot(along, np.minimum(along * bandwidth, peak) / 1e9, color=INK, linewidth=1.2)
            axes.annotate(
                f"copy {bandwidth / 1e9:.0f} GB/s, multiply-adds {peak / 1e9:,.0f} GFLOP/s", (0.03, 0.97),
                xycoords="axes fraction", va="top", fontsize=7,
            )  # fmt: skip
            heights.append(peak)
        for number, (one, x) in enumerate(zip(shown, intensities, strict=True), start=1):
            for entry in _beside(one):
                ours = entry.name == OURS
                axes.plot(
                    x, one.row.flops / entry.seconds.median / 1e9, "o", markersize=5, markeredgewidth=1.0,
                    color=AHEAD if ours else PEER, markerfacecolor=AHEAD if ours else "none",
                )  # fmt: skip
                if ours:
                    at = (x, one.row.flops / entry.seconds.median / 1e9)
                    aside = ((4, 3), (-8, 3), (4, -9), (-8, -9))[number % 4]  # some lie close to each other
                    axes.annotate(str(number), at, xytext=aside, textcoords="offset points", fontsize=7)
        axes.set(xscale="log", yscale="log", xlim=(low, high), ylim=(min(heights) / 3e9, max(heights) * 3e-9))
        axes.grid()
        axes.set_xlabel("operations a byte of the least traffic\nfilled: rawgrad, hollow: peers", fontsize=7.5)
        axes.set_ylabel("GFLOP/s")
    return made


def _beside(one: Shown) -> list[Entry]:
    """rawgrad as it chooses by itself, and its peers."""
    return [entry for entry in one.row.entries if entry.name == OURS or not entry.name.startswith(OURS)]


_BATCH = re.compile(r"(train_step|forward)_(\w+)_batch(\d+)")


def batches(machine: Machine, what: str = "train_step") -> dict[tuple[str, str], list[tuple[int, float]]]:
    """Of (program, way): (batch, images a second), ways being rawgrad and rawgrad captured; of steps or ``forward``."""
    found: dict[tuple[str, str], list[tuple[int, float]]] = {}
    for one in machine.shown:
        match = _BATCH.fullmatch(one.row.name)
        if match is None or match[1] != what or one.row.threads != max(machine.threads):
            continue
        for entry in one.row.entries:
            if entry.name in (OURS, f"{OURS} captured"):
                points = found.setdefault((match[2], entry.name), [])
                points.append((int(match[3]), int(match[3]) / entry.seconds.median))
    return {key: sorted(points) for key, points in found.items()}


def by_batch(all_machines: Sequence[Machine], what: str = "train_step") -> Any:
    """Images that a training step, or ``forward`` alone, takes in a second, by batch size; GPU beside CPU."""
    with style():
        made, (axes,) = figure(1, 3.6, width=_WIDTH)
        programs: dict[str, str] = {}
        lines, marks = ("-", "--", ":", "-."), "osv^D"
        ways: dict[tuple[str, str], int] = {}
        for machine in all_machines:
            for (program, way), points in batches(machine, what).items():
                colour = programs.setdefault(program, f"C{len(programs) % 10}")
                number = ways.setdefault((machine.name, way), len(ways))
                axes.plot(
                    *zip(*points, strict=True), marker=marks[number % len(marks)], markersize=4, color=colour,
                    linestyle=lines[number % len(lines)], linewidth=1.2,
                )  # fmt: skip
        for program, colour in programs.items():
            axes.plot([], [], color=colour, label=program.replace("_", ", ").upper().replace("DROPOUT", "dropout"))
        for (name, way), number in ways.items():
            label = name + way.removeprefix(OURS).replace(" captured", ", captured")
            axes.plot(
                [], [], color=PEER, marker=marks[number % len(marks)], markersize=4,
                linestyle=lines[number % len(lines)], label=label,
            )  # fmt: skip
        axes.set(xscale="log", yscale="log", xlabel="batch", ylabel="images a second")
        sizes = sorted({size for m in all_machines for points in batches(m, what).values() for size, _ in points})
        axes.set_xticks(sizes, [str(size) for size in sizes])
        axes.minorticks_off()
        axes.set_xlim(min(sizes) / 1.5, max(sizes) * 1.5)
        axes.grid()
        made.legend(loc="outside lower center", ncols=3, fontsize=7, frameon=False)
    return made


def growing(found: Sequence[Series]) -> Any:
    """Seconds of a step by size, along one axis; a line is the fitted power."""
    with style():
        made, (axes,) = figure(1, 2.6, width=_WIDTH)
        sizes = sorted({size for one in found for size in one.sizes})
        for one, colour in zip(found, (AHEAD, BEHIND, MARK, PEER), strict=False):
            medians = [spread.median for spread in one.seconds]
            exponent, constant = fitted(one.sizes, medians)
            label = f"{called(one.contestant)}: {one.exponent.median:.2f}"
            axes.plot(one.sizes, medians, "o", color=colour, markersize=4, label=label)
            axes.plot(one.sizes, [constant * size**exponent for size in one.sizes], color=colour, linewidth=1)
        axes.set(xscale="log", yscale="log", xlabel=found[0].axis, ylabel="time of a step")
        axes.set_xticks(sizes, [str(size) for size in sizes])
        low, high = axes.get_ylim()
        ticks = [digit * 10.0**power for power in range(-7, 4) for digit in (1, 2, 5)]
        ticks = [tick for tick in ticks if low <= tick <= high]
        axes.set_yticks(ticks, [in_units(tick) for tick in ticks])
        axes.minorticks_off()
        axes.grid()
        made.legend(loc="outside lower center", ncols=3, fontsize=7, frameon=False, title="exponent", title_fontsize=7)
    return made


def ladder(one: Shown) -> Any:
    """The time of each version of a kernel, the plainest on top; below, what rawgrad chooses, and its peers."""
    entries = [*one.versions.items(), *((entry.name, entry) for entry in _beside(one))]
    with style():
        made, (axes,) = figure(1, 0.8 + _BAR * len(entries), width=_WIDTH)
        unit, scale = _unit(max(entry.seconds.median for _, entry in entries))
        for y, (name, entry) in enumerate(entries):
            peer = not entry.name.startswith(OURS)
            colour = PEER if peer else (INK if name == OURS else AHEAD)
            axes.barh(y, entry.seconds.median / scale, 0.62, color=colour)
            quartiles = [entry.seconds.q1 / scale, entry.seconds.q3 / scale]
            axes.plot(quartiles, [y, y], color=BEHIND, linewidth=1.2)
            axes.annotate(
                in_units(entry.seconds.median), (max(quartiles), y), xytext=(3, 0),
                textcoords="offset points", va="center", fontsize=7,
            )  # fmt: skip
        axes.set_yticks(range(len(entries)), [name for name, _ in entries])
        axes.tick_params(axis="y", length=0)
        axes.invert_yaxis()
        axes.set_xlim(0, 1.18 * max(entry.seconds.q3 for _, entry in entries) / scale)
        axes.grid(axis="x")
        axes.set_axisbelow(True)
        axes.set_title(one.row.name, loc="left")
        axes.set_xlabel(f"{unit}, shorter is faster")
    return made


def _unit(seconds: float) -> tuple[str, float]:
    exponent = min(3, max(0, -math.floor(math.log10(seconds) / 3)))
    return ("s", "ms", "µs", "ns")[exponent], 1000.0**-exponent


#: Draws a picture when it is asked to.
Draw = Callable[[], Any]
