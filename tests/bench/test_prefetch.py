"""The prefetcher's bench on few steps: its readers read, wrong batches are noticed, the report is whole."""

from __future__ import annotations

import json
import pickle
import time

import numpy as np
import pytest
from PIL import Image

from rawgrad.bench import load, prefetch
from rawgrad.bench.harness import OURS, WrongResult
from rawgrad.bench.readers import PIXELS, Pictures, Pipe, write_pictures, write_rows


def test_the_pipe_is_slow_and_gives_the_file(tmp_path):
    write_rows(tmp_path / "rows", 50)
    rows = np.frombuffer((tmp_path / "rows").read_bytes(), np.uint8).reshape(50, PIXELS)
    pipe = Pipe(tmp_path / "rows", 50, rate=20 * PIXELS / 0.05)
    pipe.batch(np.arange(1))  # starts it
    begun = time.monotonic()
    x, y = pipe.batch(np.arange(20, 40))
    assert time.monotonic() - begun >= 0.049
    np.testing.assert_array_equal(np.rint(x * 255), rows[20:40])
    assert y.tolist() == list(range(20, 40)) == pipe[list(range(20, 40))][1].tolist()
    again = pickle.loads(pickle.dumps(pipe))  # as it goes to another process
    np.testing.assert_array_equal(again.batch(np.arange(3))[0], pipe.batch(np.arange(3))[0])


def test_pictures(tmp_path):
    write_pictures(tmp_path, 3, 16)
    x, y = Pictures(tmp_path, 3).batch(np.array([2, 0]))
    with Image.open(tmp_path / "2.png") as picture:
        np.testing.assert_array_equal(np.rint(x[0] * 255), np.asarray(picture))
    assert x.shape == (2, 16, 16) and y.tolist() == [2, 0]


def test_wrong_batches_are_no_measurement(tmp_path):
    write_rows(tmp_path / "rows", 64 * 7)
    pipe = Pipe(tmp_path / "rows", 64 * 7, 1e9)
    wanted = prefetch.expected(pipe, 64)
    for name, loader in prefetch.loaders(lambda: pipe, 64, 1, [OURS, prefetch.SYNCHRONOUS]).items():
        seconds, total = prefetch.epoch(loader, lambda: None)
        prefetch.checked(name, total, wanted)
        assert seconds > 0
        with pytest.raises(WrongResult, match="read batches that sum up to"):
            prefetch.checked(name, total + 64, wanted)


@pytest.mark.parametrize(
    ("gains", "expected"),
    [
        ([1, 2, 3, 4], 10),  # a reader always pays
        ([-1, -2, -3, -4], None),  # never
        ([-5, -1, 3, 4], 22.5),  # a quarter of the way from 20 to 30
        ([-5, 1, -1, 1], 35),  # what paid once by chance does not count
    ],
)
def test_from_where_on_a_reader_pays(gains, expected):
    assert prefetch.crossing([10, 20, 30, 40], gains) == expected


def test_a_whole_report(tmp_path, capsys, monkeypatch):
    out = tmp_path / "results" / "reading.json"
    names = [OURS, prefetch.SYNCHRONOUS]
    few = prefetch.hand_over
    monkeypatch.setattr(prefetch, "hand_over", lambda rounds: few(rounds, (8, 16), 8))
    arguments = "--rounds 2 --steps 8 --reading 1 --side 16 --ratios 0.5 2 --contestants".split()
    assert prefetch.main([*arguments, *names, "--out", str(out)]) == 0
    report = json.loads(out.read_text())
    assert [(p["reader"], p["ratio"]) for p in report["sweep"]] == [(r, q) for r in ("pipe", "png") for q in (0.5, 2)]
    for point in report["sweep"]:
        assert list(point["steps"]) == names and all(0 < s["median"] < 1 for s in point["steps"].values())
        assert 0 < point["ideal"] < 1 and list(point["idle"]) == names
    handed = report["hand_over"]
    assert handed["rows"] == [8, 16] and 0 < min(handed["reading"]) < min(handed["alone"] + handed["ahead"])
    assert set(report["ready"]) == {OURS} and 0 < report["first_batch"]["median"] < 1
    assert {"machine", "versions", "commit", "command", "date"} <= report.keys()
    with Image.open(out.with_suffix(".png")) as picture:
        assert picture.width > 500
    said = capsys.readouterr().out
    assert (" idle) |" in said) == (load.cpu_times() is not None)
    assert "| pipe | 0.5 |" in said and "arrays in memory, a reader asked for" in said
    assert ("a reader never pays: " if handed["least"] is None else "a reader pays from ") in said


def test_a_timeline_of_slow_training(tmp_path, monkeypatch, capsys):
    """Two pipes, so two batches are on their way at a time, and their images are those of the data."""

    class Few:
        def __init__(self, root):
            self.data = np.random.default_rng(0).integers(0, 256, (800, 28, 28), np.uint8)
            self.labels = np.arange(800) % 10

    monkeypatch.setattr(prefetch, "MNIST", Few)
    timing = prefetch.slow_training(20, 2, batches=8)
    assert timing.readers == 2 and len(timing.steps) == 8 and min(timing.reading) >= 0.0199
    both = [step for step in timing.steps if any(o.begun < step.begun < o.ended for o in timing.steps)]
    assert len(both) >= 3
    monkeypatch.setattr(prefetch, "slow_training", lambda *arguments: timing)
    timing.steps *= 4
    for name in ("timeline.png", "trace.json"):
        assert prefetch.main(["--timeline", str(tmp_path / name)]) == 0
        assert (tmp_path / name).stat().st_size > 1000
    assert capsys.readouterr().out.count("held the run back") == 2


@pytest.mark.backends("emulated", "cuda")
def test_hidden_copies(backend):
    """On the simulated GPU the times mean nothing, but it all runs."""
    found = prefetch.hidden(batch=2, width=5, batches=10, products=1, side=4)
    assert found.copy > 0 and found.step > 0 and found.computing > 0 and 0 <= found.share <= 1
