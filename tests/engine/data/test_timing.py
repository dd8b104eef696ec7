"""What a pass tells: times that add up, the right culprit, a picture and a trace that open."""

from __future__ import annotations

import json
import time

import numpy as np
import pytest
from PIL import Image

from rawgrad.engine.data import DataLoader, TensorDataset, loader
from rawgrad.engine.data.timing import _COLOURS, Step, Timing
from rawgrad.kernels._errors import ArgumentError


class Slow:
    """Each sample takes ``seconds`` to read."""

    def __init__(self, seconds):
        self.seconds = seconds

    def __len__(self):
        return 24

    def __getitem__(self, index):
        time.sleep(self.seconds)
        return np.zeros(2, np.float32)


def run(reading, computing, workers):
    loader = DataLoader(Slow(reading / 2), 2, num_workers=workers)
    for _ in loader:
        time.sleep(computing)
    return loader.timing


def test_times_add_up():
    timing = run(0.004, 0.008, 1)
    assert len(timing.waiting) == len(timing.reading) == 12 and len(timing.computing) == 11
    assert (timing.reading >= 0.004).all() and (timing.computing >= 0.008).all()
    assert np.median(timing.waiting[3:]) < 0.003 and np.median(timing.ready[3:]) >= 1  # read meanwhile
    total = (timing.steps[-1].taken - timing.steps[0].asked) / 1e9
    assert timing.waiting.sum() + timing.computing.sum() == pytest.approx(total)


def test_who_held_the_run_back():
    slow = run(0.012, 0.002, 1)
    assert slow.held_back_by() == "reading" and "reading held the run back: waiting for data took" in str(slow)
    assert "readers might keep up" in str(slow)
    alone = run(0.004, 0.004, 0)
    assert alone.held_back_by() == "reading" and str(alone).endswith("num_workers=1 would read beside computing")


class Copied:
    def __init__(self, seconds):
        self._seconds = seconds

    def seconds(self):
        return self._seconds


def steps(waiting, computing, reading, copying=None, count=5):
    """A pass in milliseconds."""
    made, now = [], 0
    for number in range(count):
        taken = now + int(waiting * 1e6)
        copied = None if copying is None else Copied(copying / 1e3)
        made.append(Step(number, now, taken, 1, taken - int(reading * 1e6), taken, 0, copied))
        now = taken + int(computing * 1e6)
    return made


@pytest.mark.parametrize(
    ("times", "readers", "sentence"),
    [
        ((0.1, 10, 8), 1, "epoch 2: computing held the run back: waiting for data took 500 µs of 40.5 ms (1%); a batch "
         "took 8 ms to read, 10 ms to compute with"),
        ((10, 10, 40), 2, "epoch 2: reading held the run back: waiting for data took 50 ms of 90 ms (56%); a batch "
         "took 40 ms to read by one of 2 readers, 10 ms to compute with; 4 readers might keep up"),
        ((1000, 1000, 1), 0, "epoch 2: reading held the run back: waiting for data took 5 s of 9 s (56%); a batch "
         "took 1 ms to read, 1 s to compute with; num_workers=1 would read beside computing"),
        ((5, 1, 8, 6), 2, "epoch 2: copying held the run back: waiting for data took 25 ms of 29 ms (86%); a batch "
         "took 8 ms to read by one of 2 readers, 6 ms to copy, 1 ms to compute with"),
        ((5, 1, 2, 6), 1, "epoch 2: copying held the run back: waiting for data took 25 ms of 29 ms (86%); a batch "
         "took 2 ms to read, 6 ms to copy, 1 ms to compute with"),
    ],
)  # fmt: skip
def test_the_sentence(times, readers, sentence):
    assert str(Timing(steps(*times), readers, 2)) == sentence


def test_what_is_quick_needs_no_reader(monkeypatch):
    """Rows of arrays in memory; with num_workers, too, of which none is started then."""
    rows = TensorDataset(np.zeros((24, 2), np.float32))
    for workers in (0, 2):
        rows_loader = DataLoader(rows, 2, num_workers=workers)
        list(rows_loader)
        assert str(rows_loader.timing).endswith("; a batch as quick as that needs no reader")
    monkeypatch.setattr(loader, "_HAND_OVER", 0)  # then nothing is quick
    rows_loader = DataLoader(rows, 2)
    list(rows_loader)
    assert str(rows_loader.timing).endswith("; num_workers=1 would read beside computing")


def test_a_first_step_that_compiles_does_not_hide_how_long_the_others_take():
    slow = steps(1, 4, 5, count=20)
    late = [step._replace(asked=step.asked + 10**9, taken=step.taken + 10**9) for step in slow[1:]]
    sentence = str(Timing([slow[0], *late], 1, 0))
    assert "waiting for data took 20 ms of 1.1 s (2%); a batch took 5 ms to read, 4 ms to compute with" in sentence


def test_short_passes():
    assert "too few batches" in str(Timing([], 1, 0)) and "too few" in str(Timing(steps(1, 1, 1, count=1), 1, 0))
    with pytest.raises(ArgumentError, match="there was none yet"):
        _ = DataLoader([1]).timing
    with pytest.raises(ArgumentError, match="below the 5 batches; got 5"):
        Timing(steps(1, 1, 1), 1, 0).timeline("x.png", first=5)


def test_picture(tmp_path):
    timing = Timing(steps(1, 2, 3, 1), 1, 0)
    timing.timeline(tmp_path / "timeline.png")
    with Image.open(tmp_path / "timeline.png") as picture:
        colours = {pixel for _, pixel in picture.convert("RGB").getcolors(10**6)}
    assert {tuple(bytes.fromhex(colour[1:])) for colour in _COLOURS.values()} <= colours
    for alone in (Timing(steps(1, 2, 1), 0, 0), Timing(steps(1, 1, 1, count=1), 2, 0)):  # no readers; a single batch
        alone.timeline(tmp_path / "timeline.svg")
        assert (tmp_path / "timeline.svg").read_text().rstrip().endswith("</svg>")


def test_trace(tmp_path):
    Timing(steps(1, 2, 3, 1), 1, 0).trace(tmp_path / "trace.json")
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    rows = {event["tid"]: event["args"]["name"] for event in events if event["name"] == "thread_name"}
    assert rows == {1: "reader 0", 2: "copy", 3: "training"}
    spans = [event for event in events if event["ph"] == "X"]
    assert len(spans) == 3 * 5 + 4
    second = {(rows[e["tid"]], e["name"]): (e["ts"], e["dur"]) for e in spans if e["args"]["batch"] == 1}
    # In microseconds from the first reading, which began 2 ms before it was asked for.
    assert second == {
        ("reader 0", "reading 1"): (3000, 3000),
        ("copy", "copying 1"): (6000, 1000),
        ("training", "waiting 1"): (5000, 1000),
        ("training", "computing 1"): (6000, 2000),
    }
    assert [e["args"]["batches"] for e in events if e["ph"] == "C"] == [1] * 5


def test_a_trace_keeps_the_rules_of_its_format(tmp_path):
    """Perfetto: no process or thread 0, and what a thread does nests or comes one after the other."""
    long_copies = steps(0.0013, 0.0007, 0.0011, copying=0.0071)  # nanoseconds that are no whole microseconds
    for timing in (Timing(long_copies, 1, 3), Timing(steps(1, 2, 1), 0, 0), run(0.001, 0.001, 2), Timing([], 1, 0)):
        timing.trace(tmp_path / "trace.json")
        ends: dict = {}
        events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
        for event in sorted((e for e in events if e["ph"] == "X"), key=lambda e: (e["tid"], e["ts"])):
            assert ends.get(event["tid"], 0) <= event["ts"] and event["dur"] >= 0
            ends[event["tid"]] = event["ts"] + event["dur"]
        for event in events:
            assert event["pid"] >= 1 and event["tid"] >= 1 and event["name"] and event["ph"] in "MXC"
            assert event["ph"] == "M" or (isinstance(event["ts"], int) and event["ts"] >= 0)
