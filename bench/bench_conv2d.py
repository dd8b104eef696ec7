"""Rows of ``conv2d`` under pytest-benchmark (``pytest bench/ --benchmark-only``)."""

from __future__ import annotations

from typing import Any

import pytest

from rawgrad.bench import single


@pytest.mark.parametrize(("row", "contestant"), single.cases("conv2d"))
def test_conv2d(benchmark: Any, row: str, contestant: str) -> None:
    """Validated against the reference, then timed."""
    single.run(benchmark, row, contestant)
