"""Every row of a single kernel under pytest-benchmark: each operation, pass, backend and peer.

``pytest bench/ --benchmark-json=FILE`` takes minutes; ``-k conv2d`` or ``-k "layer_norm and rawgrad"`` chooses.
"""

from __future__ import annotations

from typing import Any

import pytest

from rawgrad.bench import single


@pytest.mark.parametrize(("row", "contestant"), single.cases())
def test_kernel(benchmark: Any, row: str, contestant: str) -> None:
    """Validated against the reference, then timed."""
    single.run(benchmark, row, contestant)
