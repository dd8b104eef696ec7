"""A row as every contestant has measured it, for tests of what is written and printed."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest

from rawgrad.bench.results import Entry, Limits, Memory, Ratio, Row, Spread


def _row(**changes: object) -> Row:
    memory = Memory(300 * 2**20, 100 * 2**20, 200 * 2**20, "VmHWM", 250 * 2**20, 40 * 2**20)
    ours = Entry("rawgrad", "0.1", 4, Spread.of([0.010, 0.012, 0.011]), [0.010, 0.012, 0.011], None)
    theirs = Entry("torch", "2", 2, Spread.of([0.022]), [0.022], memory, 0.25)
    row = Row(
        name="train_step_p5_batch100",
        description="a step",
        dtype="float32",
        layout="NCHW",
        flops=11_000_000,
        bytes=0,
        threads=2,
        validated_against="the reference",
        load_of_others=0.01,
        noisy=False,
        entries=[ours, theirs],
        ratios=[Ratio("torch", Spread(2.0, 1.9, 2.1, 1.8, 2.2))],
        limits=Limits(2e9, 2e9, 0.0055),
    )
    return dataclasses.replace(row, **changes)  # type: ignore[arg-type]


@pytest.fixture
def a_row() -> Callable[..., Row]:
    """Makes such a row, with these fields changed."""
    return _row
