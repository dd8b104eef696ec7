"""Single rows under pytest-benchmark, which keeps histories and compares runs; see ``bench_*.py``."""

from __future__ import annotations

from itertools import cycle
from typing import Any

from ..recipes import machine
from . import peers, rows
from .harness import OURS, validate

_ROUNDS = 50


def cases(operation: str) -> list[tuple[str, str]]:
    """Each row of ``operation`` with each contestant that is here."""
    return [(row, who) for row in rows.of_operation(operation) for who in rows.contestants(row)]


def run(benchmark: Any, row: str, contestant: str) -> None:
    """Validate the contestant's result, then let the fixture ``benchmark`` time its calls.

    Contestants of a row stand in one group of the report.  Unlike ``rawgrad bench`` they run one
    after the other: quote ratios from there.
    """
    work = rows.build(row, [contestant])
    peers.set_threads(machine.usable_cores(), contestant == OURS)
    validate(work)
    (one,) = work.contestants
    inputs = cycle(one.inputs)
    benchmark.group = row
    benchmark.extra_info.update(detail=one.detail, flops=work.flops, bytes=work.bytes)
    benchmark.pedantic(one.call, setup=lambda: (next(inputs), {}), rounds=_ROUNDS, warmup_rounds=3)
