"""The prefetcher under pytest-benchmark (``pytest bench/bench_prefetch.py --benchmark-only``).

One epoch of each contestant at equal reading and computing; the sweep, with its ideal and its picture, is
``python -m rawgrad.bench.prefetch``.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest

from rawgrad.bench import peers, prefetch
from rawgrad.bench.readers import PIXELS, Pipe, write_rows
from rawgrad.engine.data import DataLoader

_ROWS = 64 * 45


@pytest.mark.parametrize("contestant", prefetch.contestants())
def test_prefetch(benchmark: Any, tmp_path: Path, contestant: str) -> None:
    """Its batches are checked, then epochs are timed."""
    peers.set_threads(1, ours=False)
    write_rows(tmp_path / "rows", _ROWS)

    def make() -> Pipe:
        return Pipe(tmp_path / "rows", _ROWS, 64 * PIXELS / 4e-3)

    computing = prefetch.Computing(1)
    compute = partial(computing, computing.products(4e-3))
    loader = prefetch.loaders(make, 64, 1, [contestant])[contestant]
    prefetch.checked(contestant, prefetch.epoch(loader, compute)[1], prefetch.expected(make(), 64))
    benchmark.group = "reading through a pipe, 4 ms, and 4 ms of computing"
    benchmark.pedantic(prefetch.epoch, (loader, compute), rounds=3)
    if isinstance(loader, DataLoader):
        loader.close()
