"""Rows of ``softmax_cross_entropy`` under pytest-benchmark (``pytest bench/ --benchmark-only``)."""

from __future__ import annotations

from typing import Any

import pytest

from rawgrad.bench import single


@pytest.mark.parametrize(("row", "contestant"), single.cases("softmax_cross_entropy"))
def test_softmax_cross_entropy(benchmark: Any, row: str, contestant: str) -> None:
    """Validated against the reference, then timed."""
    single.run(benchmark, row, contestant)
