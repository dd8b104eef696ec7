"""Processes that import and take a first step: turns, folders of compiled kernels, and losses that differ."""

from __future__ import annotations

import pytest

from rawgrad.bench import first_step, rows
from rawgrad.bench.first_step import FIRST, Seen
from rawgrad.bench.harness import WrongResult
from rawgrad.kernels._cache import cache_folder
from rawgrad.kernels._errors import ArgumentError, RawgradError


class Once:
    """Notes what is run; ``wrong`` gets another loss."""

    def __init__(self, wrong=None):
        self.runs, self.wrong = [], wrong

    def __call__(self, name, folder):
        self.runs.append((name, folder.name))
        return Seen(0.5, 1.0 + len(self.runs), 2.3 if name != self.wrong else 2.31)


def test_only_the_first_run_has_no_kernels_and_contestants_take_turns(tmp_path):
    once = Once()
    seen = first_step.take_turns(once, ["rawgrad", "torch"], tmp_path, runs=2, first_runs=2)
    assert once.runs[:3] == [("torch", tmp_path.name), ("rawgrad", "0"), ("rawgrad", "1")]
    assert once.runs[3:] == [("rawgrad", "0"), ("torch", "0"), ("torch", "0"), ("rawgrad", "0")]
    assert {name: len(each) for name, each in seen.items()} == {"rawgrad": 2, "torch": 2, FIRST: 2}


def test_another_loss_is_no_measurement(tmp_path):
    with pytest.raises(WrongResult, match=r"losses of the first step must be the same; got .*2\.31"):
        first_step.take_turns(Once("torch"), ["rawgrad", "torch"], tmp_path, runs=1, first_runs=1)


def test_the_rows(monkeypatch):
    monkeypatch.setattr(first_step, "run", lambda threads, name, cache: Once()(name, cache))
    for name, which in (("import", 0.5), ("first_step", 2.0)):
        row = first_step.measure(name, 1, runs=3, first_runs=1)
        entries = {entry.name: entry.seconds.median for entry in row.entries}
        assert name in rows.TRAININGS and row.name == name
        assert set(entries.values()) == {which} and (FIRST in entries) == (name == "first_step")
    with pytest.raises(ArgumentError, match="row must be one of import, first_step; got 'last_step'"):
        first_step.measure("last_step", 1)


def test_a_process_of_its_own():
    seen = first_step.run(1, "rawgrad", cache_folder("numba").parent)
    assert 0 < seen.imported < seen.stepped and 1 < seen.loss < 6
    with pytest.raises(RawgradError, match=r"(?s)first step of nonesuch .*No module named 'nonesuch'"):
        first_step.run(1, "nonesuch", cache_folder("numba").parent)
