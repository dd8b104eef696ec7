"""Records that are no rows, as parts of a report: reading ahead, saving and watching, growth, instructions.

Of each kind the newest record that can be read is shown.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from ...kernels._errors import DataError
from .. import growth, instructions, load
from ..results import Spread, in_units
from . import pictures
from .blocks import Block, Heading, Picture, Table, Text
from .gather import Record, called

Content = Mapping[str, Any]


def _spread(told: Content) -> Spread:
    return Spread(**told)


def _time(told: Content) -> str:
    return in_units(_spread(told).median)


def _quartiles(told: Content) -> str:
    spread = _spread(told)
    return f"{in_units(spread.q1)} – {in_units(spread.q3)}"


def _called(way: str) -> str:
    """``torch, synchronous`` with the library's name as its makers write it."""
    return ", ".join(map(called, way.split(", ")))


def _where(content: Content) -> Text:
    """The machine of a record, and whether others used it too."""
    machine, others = content["machine"], content.get("others_share")
    told = [str(machine["cpu"]), f"{machine['usable_cores']} cores", content["date"][:10]]
    if others is not None and others > load.NOISY:
        told.append(f"noisy: others used {others:.0%}")
    return Text("; ".join(told))


def _reading(content: Content) -> Iterator[Block]:
    yield Heading("Batches read ahead")
    yield _where(content)
    yield Text(
        "The time of a step over the ideal, the longer of reading and computing; reading waits (pipe) or computes "
        "(png). *ratio* is reading's time over computing's."
    )
    names = list(content["sweep"][0]["steps"])
    lines = [
        [
            point["reader"],
            f"{point['ratio']:g}",
            _time(point["reading"]),
            _time(point["computing"]),
            in_units(point["ideal"]),
            *(f"{_spread(point['steps'][name]).median / point['ideal']:.2f}" for name in names),
        ]
        for point in content["sweep"]
    ]
    yield Table(["reader", "ratio", "reading", "computing", "ideal", *map(_called, names)], lines)
    ready = content["ready"]
    yield Table(
        ["a ready batch, by", "median", "99th percentile"],
        [[_called(name), in_units(seen["median"]), in_units(seen["p99"])] for name, seen in ready.items()],
    )
    yield Text(f"The first batch after construction: {_time(content['first_batch'])}.")


def _checkpoints(content: Content) -> Iterator[Block]:
    yield Heading("What saving and watching cost")
    yield _where(content)
    lines = [
        [
            cost["kind"],
            str(cost["every"]),
            _time(cost["step"]),
            f"{_spread(cost['share']).median:.1%} ({_spread(cost['share']).q1:.1%} – {_spread(cost['share']).q3:.1%})",
            f"{cost['share_of_steps']:.1%}",
            _time(cost["kept"]),
            _time(cost["written"]),
            f"{cost['bytes'] / 1024:.0f}",
        ]
        for cost in content["costs"]
    ]
    head = [
        "what",
        "every … steps",
        "a step",
        "whole turns",
        "steps at a save",
        "training waits",
        "until written",
        "KiB",
    ]
    yield Table(head, lines)


def _growth(content: Content) -> Iterator[Block]:
    found = growth.of_content(content, "the record")
    yield Heading("How the time of a step grows")
    yield _where(content)
    yield Text(
        f"Time is about a constant times size to the power of the exponent; {content['rounds']} rounds, threads: "
        f"{content['threads']}. *off the line* is how far the median of a size lies from that at most."
    )
    for axis in dict.fromkeys(one.axis for one in found):
        along = [one for one in found if one.axis == axis]
        name = re.sub(r"[^a-z0-9]+", "-", axis.lower())
        yield Picture(f"growth-{name}", along[0].what, partial(pictures.growing, along))
    head = ["axis", "contestant", "exponent", "quartiles", "off the line", "sizes", "medians"]
    yield Table(head, [growth.cells(one) for one in found])


def _instructions(content: Content) -> Iterator[Block]:
    yield Heading("Instructions of the compiled kernels")
    target = content["target"]
    yield Text(
        f"Of one call in one thread, compiled for {target['NUMBA_CPU_NAME']}, counted by callgrind on "
        f"{content['date'][:10]}: the same on every x86-64 processor with AVX2."
    )
    yield Table(["kernel", "instructions"], [[name, f"{count:,}"] for name, count in content["counts"].items()])


_MAKERS: dict[str, Callable[[Content], Iterator[Block]]] = {
    "reading": _reading,
    "checkpoints": _checkpoints,
    growth.KIND: _growth,
    instructions.KIND: _instructions,
}


def blocks_of(record: Record) -> list[Block] | None:
    """What a report shows of a record; None if it is of no kind that is known here, or lacks something."""
    make = _MAKERS.get(record.kind)
    if make is None:
        return None
    try:
        return list(make(record.content))
    except (KeyError, IndexError, TypeError, AttributeError, ValueError, DataError):  # of another version
        return None


def newest(records: Sequence[Record]) -> list[Record]:
    """The records that are shown: of each kind the newest that can be, in the order of ``_MAKERS``."""
    found = {}
    for record in sorted(records, key=lambda record: str(record.content["date"])):
        if blocks_of(record) is not None:
            found[record.kind] = record
    return [found[kind] for kind in _MAKERS if kind in found]
