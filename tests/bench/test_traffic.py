"""The table of traffic says what the kernels of this commit move."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from rawgrad.bench import traffic
from rawgrad.kernels._dispatch import BACKENDS

TABLE = Path(__file__).parents[2] / "docs/traffic.md"


@pytest.fixture(scope="module")
def rows() -> list[traffic.Row]:
    if problem := BACKENDS["emulated"].problem():
        pytest.skip(f"backend 'emulated' cannot run here: {problem}")
    return [row for case in traffic.cases() for row in traffic.measure(case)]


def test_the_committed_table_is_of_these_kernels(rows: list[traffic.Row]) -> None:
    command = "python -m rawgrad.bench.traffic docs/traffic.md"
    assert TABLE.read_text() == traffic.table(rows), (
        f"the kernels move other bytes now; `{command}` writes the table anew"
    )


def test_every_operation_is_in_it(rows: list[traffic.Row]) -> None:
    folders = {path.parent.name for path in Path(traffic.__file__).parents[1].glob("kernels/*/*.cu")}
    assert {row.case.operation for row in rows} == folders


def test_defaults_stay_near_the_floor(rows: list[traffic.Row]) -> None:
    """Elementwise work and pooling ask for each byte once; nothing leaves out a tenth of its inputs and outputs."""
    for row in rows:
        assert row.distinct >= 0.9 * row.floor, row.case.function
        if row.version == "default" and row.case.operation in ("activation", "max_pool2d", "avg_pool2d", "softmax"):
            assert row.asked <= 1.01 * row.floor, row.case.function


def test_the_floor_counts_inputs_outputs_and_what_is_overwritten() -> None:
    if problem := BACKENDS["emulated"].problem():
        pytest.skip(f"backend 'emulated' cannot run here: {problem}")
    ones = np.ones((4, 8), np.float32)
    case = traffic.Case(
        "gemm", "gemm", "", lambda a, b: traffic.gemm.gemm(a, b), (ones, np.ones((8, 2), np.float32)), 5
    )
    assert {row.floor for row in traffic.measure(case)} == {4 * (32 + 16 + 8) + 5}


def test_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert traffic.main([]) == 2
    assert "usage: python -m rawgrad.bench.traffic FILE.md" in capsys.readouterr().err
