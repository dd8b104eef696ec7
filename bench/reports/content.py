"""A report as a list of blocks; ``pages`` makes files of them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import compress

from .. import load
from ..harness import OURS
from ..results import Spread, in_units, runs
from . import others, pictures
from .blocks import Block, Heading, Listing, Picture, Table, Text
from .gather import Machine, Record, Shown, called
from .goals import goal_of

NO_GPU = "There is no record of a GPU yet: what follows is the CPU alone."


def report(records: Sequence[Record], machines: Sequence[Machine]) -> Iterator[Block]:
    """The whole report."""
    cpus, gpus = ([m for m in machines if m.gpu == gpu] for gpu in (False, True))
    if not gpus:
        yield Text(NO_GPU)
    yield Text(
        "Times are medians over rounds in which the contestants took turns, each after its result was found right. "
        "rawgrad's time over a peer's below 1 means that rawgrad is ahead. *of the limit* is the share of what the "
        "machine was seen to do at most beside the row. A row is *noisy* if other processes used over "
        f"{load.NOISY:.0%} of the CPU."
    )
    for machine in machines:
        yield from _machine(machine)
    if any(pictures.batches(machine) for machine in machines):
        yield Heading("Training by batch size" + (", GPU beside CPU" if gpus and cpus else ""))
        if not gpus:
            yield Text(NO_GPU)
        title = "images that a training step takes in a second, by batch size"
        yield Picture("batches", title, partial(pictures.by_batch, machines))
    if any(pictures.batches(machine, "forward") for machine in machines):
        title = "images that the forward pass alone takes in a second, by batch size"
        yield Picture("batches-forward", title, partial(pictures.by_batch, machines, "forward"))
    for record in others.newest(records):
        yield from others.blocks_of(record) or []
    yield Heading("Records")
    shown = [one.path for machine in machines for one in machine.shown]
    yield Listing([_source(record, shown.count(record.path), others.newest(records)) for record in records])


def _source(record: Record, shown: int, of_others: Sequence[Record]) -> str:
    """A record, with how many rows of it are shown."""
    content = record.content
    commit = f", commit {str(content.get('commit'))[:10]}" if content.get("commit") else ", no commit known"
    changed = " with changes" if content.get("dirty") else ""
    told = f"about {record.kind}" + ("" if record in of_others else ", not shown")
    if record.report:
        told = f"{shown} of {len(record.report.rows)} rows shown"
    return f"`{record.path.name}` ({told}): {content['date']}{commit}{changed}, `{content['command']}`"


def _machine(machine: Machine) -> Iterator[Block]:
    yield Heading(machine.name)
    newest = machine.newest
    chip = newest.machine.get("gpu") if machine.gpu else {"CPU": newest.machine.get("cpu")}
    told = {**(chip if isinstance(chip, dict) else {}), "system": newest.machine.get("system")}
    versions = {k: v for k, v in newest.versions.items() if isinstance(v, str)}
    yield Text("; ".join(f"{key}: {value}" for key, value in told.items() if value is not None))
    yield Text("Versions: " + ", ".join(f"{key} {value}" for key, value in versions.items()) + ".")
    peers = list(dict.fromkeys(peer for one in machine.shown for peer in one.over_peers))
    steps = [one for one in machine.shown if one.outside is None]
    for line in _absent(machine):
        yield Text(line)
    for peer in dict.fromkeys(peer for one in steps for peer in one.over_peers):
        title = f"{machine.name}: rawgrad's time over {called(peer)}'s"
        yield Picture(_file_name(machine.name, peer), title, partial(pictures.over_peer, machine, steps, peer))
    for dtype, threads in dict.fromkeys((one.row.dtype, one.row.threads) for one in machine.shown):
        points = [one for one in machine.shown if (one.row.dtype, one.row.threads) == (dtype, threads)]
        points = [one for one in points if pictures.on_roofline(one)]
        if points:
            yield Picture(
                _file_name(machine.name, "roofline", dtype, str(threads)),
                f"{machine.name}: roofline, {dtype}" + ("" if machine.gpu else f", threads: {threads}"),
                partial(pictures.roofline, points),
                [machine.label(one) for one in points],
            )
    for one in machine.shown:
        if one.versions:
            title = f"{machine.name}: {one.row.name}, version by version"
            yield Picture(_file_name(machine.name, "ladder", one.row.name), title, partial(pictures.ladder, one))
    yield Table(*_table(machine, peers))
    versions_of = [line for one in machine.shown for line in _versions(one)]
    if versions_of:
        yield Heading(f"{machine.name}: versions of the kernels", 3)
        yield Table(["row", "version", "median", "quartiles", "its time over the chosen one's"], versions_of)
    ways = [line for one in machine.shown for line in _ways(one)]
    if ways:
        yield Heading(f"{machine.name}: rawgrad in other ways", 3)
        yield Table(["row", "threads", "way", "median", "quartiles", "its time over rawgrad's own", "what"], ways)
    for one in machine.shown:
        if said := runs(one.row):
            yield Listing(said.splitlines())


def _file_name(*parts: str) -> str:
    """Small letters, digits, _ and - alone: the parts come from result files."""
    return re.sub(r"[^a-z0-9_]+", "-", " ".join(parts).lower()).strip("-")


def _absent(machine: Machine) -> Iterator[str]:
    """Who took no part in which rows, and why, as far as the records tell."""
    found: dict[tuple[str, str], list[str]] = {}
    for one in machine.shown:
        for missing in one.row.missing or []:
            found.setdefault((missing.name, missing.reason), []).append(one.row.name)
    for (name, reason), where in found.items():
        rows = f"{len(where)} rows" if len(where) > 3 else ", ".join(f"`{row}`" for row in where)
        yield f"Missing: {called(name)} in {rows}: {reason}"


def _ratio(spread: Spread) -> str:
    return f"{spread.median:.2f} ({spread.q1:.2f} – {spread.q3:.2f})"


def _table(machine: Machine, peers: Sequence[str]) -> tuple[list[str], list[list[str]]]:
    head = ["row", "threads", "rawgrad", "quartiles", "of the limit"]
    for peer in peers:
        head += [called(peer), f"rawgrad's time over {called(peer)}'s"]
    head += ["goal", "MiB of a step", "note", "what"]
    lines = [_line(machine, one, peers) for one in machine.shown]
    told = [any(column) for column in zip(*lines, strict=True)]  # columns in which something stands
    return list(compress(head, told)), [list(compress(line, told)) for line in lines]


def _line(machine: Machine, one: Shown, peers: Sequence[str]) -> list[str]:
    row, ours = one.row, one.ours
    cells = [f"`{row.name}`", str(row.threads), *_ours(one)]
    for peer in peers:
        entry = next((e for e in row.entries if e.name == peer), None)
        ratio = one.over_peers.get(peer)
        cells += [in_units(entry.seconds.median) if entry else "", _ratio(ratio) if ratio else ""]
    notes = []
    if row.failed is not None:
        notes.append(f"failed: {' '.join(row.failed.split())}")
    if row.noisy:
        notes.append("noisy" + ("" if row.load_of_others is None else f": others used {row.load_of_others:.0%}"))
    notes += [f"{called(missing.name)} missing" for missing in row.missing or []]
    if not machine.gpu and (cpu := one.report.machine.get("cpu")) != machine.newest.machine.get("cpu"):
        notes.append(f"on {cpu}")
    if one.outside is not None:
        notes.append(f"{one.outside:.0%} of rawgrad's step is outside kernels")
    memory = ours.memory.step if ours and ours.memory else None
    memory_cell = "" if memory is None else f"{memory / 2**20:.0f}"
    return [*cells, _goal(machine, one), memory_cell, "; ".join(notes), row.description]


def _ours(one: Shown) -> list[str]:
    ours = one.ours
    if ours is None:
        return ["", "", ""]
    seconds = ours.seconds
    limit = "" if ours.fraction is None else f"{ours.fraction:.0%}"
    return [in_units(seconds.median), f"{in_units(seconds.q1)} – {in_units(seconds.q3)}", limit]


def _goal(machine: Machine, one: Shown) -> str:
    """The goal, and whether it is reached."""
    goal = goal_of(one.row, machine.gpu)
    if goal is None:
        return ""
    ratio, ours = one.over_peers.get(goal.peer), one.ours
    verdict = "not measured" if ratio is None else "reached" if ratio.median <= goal.most else "short"
    said = f"≤ {goal.most:.2f} of {called(goal.peer)}'s: {verdict}"
    if goal.fraction is not None:
        fraction = None if ours is None else ours.fraction
        verdict = "not measured" if fraction is None else "reached" if fraction >= goal.fraction else "short"
        said += f"; ≥ {goal.fraction:.0%} of the limit: {verdict}"
    return said


def _ways(one: Shown) -> Iterator[list[str]]:
    """What rawgrad does otherwise in a row: on another backend, captured, at its first run."""
    for entry in one.row.entries:
        if entry.name != OURS and entry.name.startswith(OURS) and entry not in one.versions.values():
            seconds = entry.seconds
            over = f"{seconds.median / one.ours.seconds.median:.2f}" if one.ours else ""
            quartiles = f"{in_units(seconds.q1)} – {in_units(seconds.q3)}"
            name = entry.name.removeprefix(OURS).strip(", ")
            time = in_units(seconds.median)
            yield [f"`{one.row.name}`", str(one.row.threads), name, time, quartiles, over, entry.detail]


def _versions(one: Shown) -> Iterator[list[str]]:
    ours = one.ours
    for name, entry in [*one.versions.items(), *([(OURS, ours)] if ours and one.versions else [])]:
        seconds = entry.seconds
        over = f"{seconds.median / ours.seconds.median:.2f}" if ours else ""
        quartiles = f"{in_units(seconds.q1)} – {in_units(seconds.q3)}"
        yield [f"`{one.row.name}`", name, in_units(seconds.median), quartiles, over]
