"""What the machine can do: the work whose time is taken is the work that is counted."""

from __future__ import annotations

import numpy as np
import pytest

from rawgrad.bench import roofline
from rawgrad.kernels import _threads
from rawgrad.recipes import machine


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("parts", [1, 3])
def test_every_number_gets_every_multiply_add(dtype, parts):
    x, y = np.array([0.5, 1], dtype), np.zeros(roofline.numbers(dtype, parts), dtype)
    roofline.multiply_adds(parts, x, y, 3)
    assert np.all(y == 1.75)  # 0 → 1 → 1.5 → 1.75
    roofline.multiply_adds(parts, x, y, 1)
    assert np.all(y == 1.875)


@pytest.fixture
def a_second_each(monkeypatch):
    """Every piece of work is done once and takes a second."""
    monkeypatch.setattr(roofline, "_best", lambda work: (work(), 1.0)[1])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_peak_counts_two_for_each(a_second_each, dtype, monkeypatch):
    done = []
    monkeypatch.setattr(roofline, "multiply_adds", lambda parts, x, y, rounds: done.append(y.size * rounds))
    before = _threads.get_num_threads()
    assert roofline.peak(dtype, 1, rounds=10) == 2 * done[0] > 0
    assert _threads.get_num_threads() == before


@pytest.mark.parametrize("threads", [1, 2])
def test_the_bandwidth_counts_reading_and_writing(a_second_each, threads, monkeypatch):
    pieces = []
    monkeypatch.setattr(roofline.np, "copyto", lambda target, source: pieces.append((target.size, source.size)))
    assert roofline.bandwidth(threads, 1001) == 2002
    assert len(pieces) == threads and all(to == of for to, of in pieces) and sum(of for _, of in pieces) == 1001


def test_by_default_the_copy_goes_past_the_caches(a_second_each, monkeypatch):
    monkeypatch.setattr(machine, "cache_bytes", lambda: 2**26 + 5)
    assert roofline.bandwidth(1) == 2 * (2**26 + 5)


def test_the_best_try_counts_and_the_first_one_does_not(monkeypatch):
    now = iter([0, 1, 10, 15, 20, 23, 30, 34, 40, 49, 50, 59])  # 1 s, then 5, 3, 4, 9, 9
    monkeypatch.setattr(roofline.time, "perf_counter", lambda: next(now))
    assert roofline._best(lambda: None) == 3
