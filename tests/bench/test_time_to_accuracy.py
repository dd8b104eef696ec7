"""Training until an accuracy, on planted digits that a network learns in a few steps."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest

from rawgrad.bench import child, cli, peers, programs, results, rows, time_to_accuracy, to_accuracy
from rawgrad.bench.harness import WrongResult
from rawgrad.bench.results import Run
from rawgrad.bench.to_accuracy import DIGITS, PREDICTIONS, WEIGHTS, Settings
from rawgrad.engine.data import mnist
from rawgrad.kernels._errors import DataError, RawgradError

SETTINGS = Settings(lr=0.002, batch=20, steps=30, every=5, accuracy=0.9, seed=0, threads=1)
LIBRARIES = ["rawgrad", *peers.available()]


def digits(count, seed):
    """Pictures of one bright band each; where it lies is the label."""
    labels = np.random.default_rng(seed).integers(0, 10, count)
    images = np.zeros((count, 28, 28), np.uint8)
    for image, label in zip(images, labels, strict=True):
        image[2 * label : 2 * label + 5] = 255
    return images, labels


@pytest.fixture
def folder(tmp_path):
    images, labels = digits(205, 0)  # the last batch is not full
    test_images, test_labels = digits(60, 1)
    np.savez(tmp_path / DIGITS, images=images, labels=labels, test_images=test_images, test_labels=test_labels)
    shapes = [(20, 1, 5, 5), (20,), (20, 20, 5, 5), (20,), (10, 980), (10,)]
    np.savez(tmp_path / WEIGHTS.format(seed=0), *programs.initial_weights(shapes))
    return tmp_path


def train(name, folder, settings=SETTINGS):
    told = []
    to_accuracy.train(peers.library(name), folder, settings, told.append)
    return told


@pytest.mark.parametrize("name", LIBRARIES)
def test_it_stops_at_the_first_evaluation_that_is_good_enough(name, folder):
    told = train(name, folder)
    assert list(told[0]) == ["loss"]
    steps = [one["step"] for one in told[1:]]
    assert steps == [*range(5, steps[-1] + 1, 5)] and steps[-1] < 30
    assert all(one["accuracy"] < 0.9 for one in told[1:-1]) and told[-1]["accuracy"] >= 0.9
    right = np.load(folder / PREDICTIONS) == digits(60, 1)[1]
    assert right.mean() == told[-1]["accuracy"]


def test_all_libraries_train_on_the_same_numbers(folder):
    """One step each from the same weights, on the same images: the losses agree, and so do those of later steps."""
    if len(LIBRARIES) == 1:
        pytest.skip("no peer is installed")
    settings = replace(SETTINGS, accuracy=1.1, steps=4, every=1)
    ours, theirs = (train(name, folder, settings) for name in LIBRARIES)
    assert ours[0]["loss"] == pytest.approx(theirs[0]["loss"], rel=1e-5)
    assert [one["step"] for one in ours[1:]] == [1, 2, 3, 4] == [one["step"] for one in theirs[1:]]
    other = train("rawgrad", folder, replace(settings, batch=21))
    assert other[0]["loss"] != pytest.approx(ours[0]["loss"], rel=1e-5)


def test_after_the_last_step_it_stops_in_any_case(folder):
    told = train("rawgrad", folder, replace(SETTINGS, accuracy=1.1, steps=7, every=5))
    assert [one["step"] for one in told[1:]] == [5, 7]
    assert (folder / PREDICTIONS).exists()


def test_pixels_are_scaled():
    scaled = to_accuracy._scaled(np.array([[[0, 51, 255]]], np.uint8))
    assert scaled.shape == (1, 1, 1, 3) and scaled.dtype == np.float32
    assert scaled.ravel().tolist() == pytest.approx([0, 0.2, 1])


@pytest.mark.parametrize("name", LIBRARIES)
def test_in_a_process_of_its_own(name, folder, monkeypatch):
    monkeypatch.setattr(time_to_accuracy.child, "start", with_the_usual_cache(child.start))
    run, loss = time_to_accuracy.run(folder, digits(60, 1)[1], name, SETTINGS)
    assert (run.seed, run.steps % 5) == (0, 0) and run.accuracy >= 0.9
    assert run.seconds > 0 and 0 < loss < 10


def with_the_usual_cache(start):
    """Only the real measurement begins with an empty one."""

    def started(*arguments, stderr, RAWGRAD_CACHE):
        assert RAWGRAD_CACHE.endswith("cache")
        return start(*arguments, stderr=stderr)

    return started


def test_a_training_that_fails_is_an_error_with_its_words(tmp_path):
    with pytest.raises(RawgradError, match=r"(?s)training rawgrad .* failed: .*digits\.npz"):
        time_to_accuracy.run(tmp_path, np.zeros(1), "rawgrad", SETTINGS)


@pytest.fixture
def planted(monkeypatch):
    """The program says what the test tells it to; no process is started."""

    def plant(folder, said, predictions):
        np.save(folder / PREDICTIONS, predictions)
        code = f"for told in {[json.dumps(one) for one in said]!r}: print(told)"
        start = child.subprocess.Popen
        monkeypatch.setattr(
            child.subprocess,
            "Popen",
            lambda command, **options: start([command[0], "-c", code], **options),
        )

    return plant


SAID = [{"loss": 2.3}, {"step": 5, "accuracy": 0.75}]


def test_predictions_that_are_worse_than_said_are_a_wrong_result(planted, tmp_path):
    planted(tmp_path, SAID, np.array([1, 2, 0, 0]))
    with pytest.raises(WrongResult, match=r"rawgrad says that 75.00% are right; of its predictions 50.00% are"):
        time_to_accuracy.run(tmp_path, np.array([1, 2, 3, 4]), "rawgrad", replace(SETTINGS, accuracy=0.7))


def test_an_accuracy_that_is_not_reached_is_an_error(planted, tmp_path):
    planted(tmp_path, SAID, np.array([1, 2, 3, 0]))
    with pytest.raises(RawgradError, match=r"seed 0 ends after 5 steps with 75.00%, short of 90.00%"):
        time_to_accuracy.run(tmp_path, np.array([1, 2, 3, 4]), "rawgrad", SETTINGS)


def turns(losses, seeds=(0, 1, 2)):
    """The turns that are taken, and the runs, when the first losses are ``losses[name]``."""
    diary = []

    def train(name, settings):
        diary.append((name, settings.seed, settings.accuracy))
        return Run(settings.seed, len(diary), 5, 0.9), losses[name]

    each = [replace(SETTINGS, seed=seed) for seed in seeds]
    return diary, lambda: time_to_accuracy.take_turns(train, [*losses], each, lambda said: None)


def test_who_begins_changes_from_seed_to_seed():
    diary, take = turns({"rawgrad": 2.3, "torch": 2.30001})
    runs = take()
    assert diary == [
        ("torch", 0, 0.0),  # for its files to be in memory
        ("rawgrad", 0, 0.9),  # the first run
        *(("rawgrad", 0, 0.9), ("torch", 0, 0.9)),
        *(("torch", 1, 0.9), ("rawgrad", 1, 0.9)),
        *(("rawgrad", 2, 0.9), ("torch", 2, 0.9)),
    ]
    assert [run.seconds for run in runs[time_to_accuracy.FIRST]] == [2]
    assert [run.seconds for run in runs["rawgrad"]] == [3, 6, 7]
    assert [run.seconds for run in runs["torch"]] == [4, 5, 8]


@pytest.mark.parametrize("theirs", [2.4, float("nan")])
def test_first_losses_that_differ_are_a_wrong_result(theirs):
    _, take = turns({"rawgrad": 2.3, "torch": theirs})
    with pytest.raises(WrongResult, match="the first losses with seed 0 must be the same"):
        take()


def test_the_row(monkeypatch, tmp_path, capsys):
    """Through the command, with a seconds' watch that knows the contestants."""
    took = {"rawgrad": 40.0, "torch": 100.0}
    seen = []

    def run(folder, labels, name, settings):
        seen.append(settings)
        return Run(settings.seed, took[name] + settings.seed, 1800, 0.9905), 2.3

    monkeypatch.setattr(time_to_accuracy, "prepare", lambda folder, seeds: (50_000, np.zeros(3)))
    monkeypatch.setattr(time_to_accuracy, "run", run)
    monkeypatch.setattr(peers, "available", lambda: ["torch"])
    monkeypatch.setattr(peers, "detail", lambda name: name)
    path = tmp_path / "out.json"
    assert cli.main(["time_to_accuracy", "--seeds", "2", "--threads", "1", "--out", str(path)]) == 0
    (row,) = results.read(path).rows
    ours, theirs, first = row.entries
    assert [ours.name, theirs.name, first.name] == ["rawgrad", "torch", time_to_accuracy.FIRST]
    assert ours.round_seconds == [40, 41] and theirs.runs == [Run(0, 100, 1800, 0.9905), Run(1, 101, 1800, 0.9905)]
    assert len(first.runs) == 1
    (ratio,) = row.ratios
    assert ratio.peer == "torch" and ratio.times.high == 2.5 and ratio.times.low == pytest.approx(101 / 41)
    assert asdict(seen[-1]) == {
        "lr": 0.002,
        "batch": 100,
        "steps": 3000,
        "every": 150,
        "accuracy": 0.99,
        "seed": 1,
        "threads": 1,
    }
    said = capsys.readouterr()
    assert "time_to_accuracy: torch: seed 0 100.0 s (1800 steps, 99.05%), seed 1 101.0 s" in said.out
    assert "time_to_accuracy: rawgrad: seed 1 41.0 s" in said.err


def test_it_runs_only_by_name(capsys):
    assert "time_to_accuracy" not in rows.ROWS
    assert rows.named(["time_to_accuracy", "gemm_1024"]) == ["time_to_accuracy", "gemm_1024"]
    assert cli.main(["--list"]) == 0
    assert "time_to_accuracy" in capsys.readouterr().out


def test_without_mnist_the_message_says_where_it_was_looked_for(monkeypatch, tmp_path):
    monkeypatch.setenv("RAWGRAD_DATA", str(tmp_path / "nowhere"))
    monkeypatch.setattr(mnist, "cache_folder", lambda: tmp_path)
    with pytest.raises(DataError, match="nowhere"):
        time_to_accuracy.prepare(tmp_path, [0])


GENUINE = Path(os.environ.get("RAWGRAD_DATA", "no such folder"))


@pytest.mark.mnist
@pytest.mark.skipif(not (GENUINE / "mnist").is_dir(), reason="RAWGRAD_DATA names no folder with mnist/")
def test_digits_and_weights_are_the_recipes(tmp_path):
    images, labels = time_to_accuracy.prepare(tmp_path, [0, 1])
    assert images == 50_000 and labels.shape == (10_000,)
    written = np.load(tmp_path / DIGITS)
    assert written["images"].shape == (50_000, 28, 28) and written["images"].dtype == np.uint8
    assert np.array_equal(written["test_labels"], labels)
    first, second = ([*np.load(tmp_path / WEIGHTS.format(seed=seed)).values()] for seed in (0, 1))
    assert [w.shape for w in first] == [(20, 1, 5, 5), (20,), (20, 20, 5, 5), (20,), (10, 980), (10,)]
    assert not np.array_equal(first[0], second[0])
