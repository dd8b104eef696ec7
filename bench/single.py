"""Single rows under pytest-benchmark, which keeps histories and compares runs; see ``bench_kernels.py``."""

from __future__ import annotations

import time
from itertools import cycle
from typing import Any

from ..recipes import machine
from . import kernels, optimizer_step, peers, rows
from .harness import OURS, validate

#: At most so many rounds, and about so many seconds of them.
_ROUNDS, _SECONDS = 50, 2.0


def cases() -> list[tuple[str, str]]:
    """Each row of a single kernel with each contestant that is here."""
    names = (*kernels.named(), *optimizer_step.named())
    return [(row, who) for row in names for who in rows.contestants(row)]


def run(benchmark: Any, row: str, contestant: str) -> None:
    """Validate the contestant's result, then let the fixture ``benchmark`` time its calls.

    Contestants of a row stand in one group of the report.  Unlike ``rawgrad bench`` they run one
    after the other: quote ratios from there.
    """
    work = rows.build(row, [contestant])
    assert not work.missing, work.missing
    peers.set_threads(machine.usable_cores(), contestant.startswith(OURS))
    validate(work)
    (one,) = work.contestants
    inputs = cycle(one.inputs)
    start = time.perf_counter()
    one.call(*next(inputs))
    rounds = int(min(_ROUNDS, max(3, _SECONDS / (time.perf_counter() - start))))
    benchmark.group = row
    benchmark.extra_info.update(
        detail=one.detail, dtype=work.dtype, layout=work.layout, flops=work.flops, bytes=work.bytes
    )
    benchmark.pedantic(one.call, setup=lambda: (next(inputs), {}), rounds=rounds, warmup_rounds=3)
