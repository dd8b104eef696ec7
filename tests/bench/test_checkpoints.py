"""The bench of saving on few steps: it counts the saves, and refuses to time trainings that differ."""

from __future__ import annotations

import json

import numpy as np
import pytest

from rawgrad.bench import checkpoints
from rawgrad.bench.harness import WrongResult
from rawgrad.kernels._dispatch import backend

FEW = "--every 4 8 --watch 6 --rounds 2 --steps 15 --batch 2".split()


def test_a_whole_report(tmp_path, capsys):
    with backend("numpy"):
        assert checkpoints.main([*FEW, "--out", str(tmp_path / "r.json")]) == 0
    costs = json.loads((tmp_path / "r.json").read_text())["costs"]
    kinds = ["saving", "saving", "watching", "watching in TensorBoard"]
    assert [(cost["kind"], cost["every"]) for cost in costs] == list(zip(kinds, (4, 8, 6, 6), strict=True))
    assert [cost["saves"] for cost in costs[2:]] == [2, 2]
    assert costs[0]["saves"] >= 3 and 1 <= costs[1]["saves"] <= 3
    assert all(0 < cost["kept"]["median"] < cost["written"]["high"] for cost in costs)
    assert all(cost["bytes"] > 3 * 4 * 20_000 for cost in costs[:2])  # P5's parameters and Adam's two moments
    assert all(cost["longer"]["low"] <= cost["longer"]["median"] for cost in costs)
    lines = capsys.readouterr().out
    assert (lines.count("saving every"), lines.count("watching every"), lines.count("looks of")) == (2, 1, 2)


def test_what_an_event_adds_is_found_among_steps_of_any_length():
    """Steps of 10 ms, one of 50 ms by chance; each event adds 3 ms to the step after it and 1 ms to the one before."""
    took = np.full(80, 0.010)
    took[33] = 0.050
    for event in (20, 40, 60):
        took[event] += 0.003
        took[event - 1] += 0.001  # a look, before it is noted that the step has ended
    assert checkpoints.longer(np.cumsum(took), [20, 40, 60]) == pytest.approx([0.004] * 3)
    assert checkpoints.longer(np.cumsum(took), [3, 79]) == []  # not all of the steps about these were timed


def test_trainings_that_differ_are_no_measurement(monkeypatch):
    train, turns = checkpoints.train, []

    def wrong(*arguments):
        turns.append(train(*arguments))
        turns[-1].losses[-1] += len(turns)
        return turns[-1]

    monkeypatch.setattr(checkpoints, "train", wrong)
    with backend("numpy"), pytest.raises(WrongResult, match="losses of training with nothing beside it differ"):
        checkpoints.main(FEW)


def test_an_interval_that_never_saves_is_refused():
    with pytest.raises(SystemExit, match="--steps must be above 25"):
        checkpoints.main("--watch --every 20 --steps 25".split())
