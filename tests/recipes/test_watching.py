"""Runs that are watched: what they leave, and that it changes nothing."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from rawgrad.engine.data import Digits
from rawgrad.engine.train import Looks, predictions_of
from rawgrad.kernels._errors import ArgumentError
from rawgrad.recipes import watching
from rawgrad.recipes.options import Options
from rawgrad.recipes.training import LOSSES, Result, Task, arrays_of, load_model, train

#: Dropout and batch norm; 15 steps.
TASK = Task("small_cnn", {"channels": 2}, data="digits", optimizer="adam", lr=0.01, epochs=3, batch_size=300)


def quiet(out: Path, **settings: object) -> Options:
    return Options(out, quiet=True, **settings)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Result:
    return train(TASK, quiet(tmp_path_factory.mktemp("watched"), watch_every=4, tensorboard=True))


def test_the_losses_are_those_of_a_run_that_nobody_watches(watched: Result, tmp_path: Path) -> None:
    alone = train(TASK, quiet(tmp_path))
    assert [step.loss for step in alone.history.steps] == [step.loss for step in watched.history.steps]
    assert alone.test.loss == watched.test.loss
    assert not (tmp_path / "watch").exists()
    assert not (tmp_path / "tensorboard").exists()


def test_what_a_watched_run_leaves(watched: Result) -> None:
    out = watched.options.out
    looks = Looks(out / "watch")
    assert looks.steps() == [1, 4, 8, 12, 15]
    assert looks.load(15).digits is not None
    [events] = (out / "tensorboard").iterdir()
    assert all(name in events.read_bytes() for name in (b"digits/test", b"confusion_matrix", b"loss/validation"))
    made = json.loads((out / "result.json").read_text())["made"]
    assert {"command", "machine", "versions", "date"} <= set(made)


def test_the_test_is_kept(watched: Result) -> None:
    found = Looks(watched.options.out / "watch").outcome()
    assert found is not None
    model, _ = load_model(watched.options.out)
    images, labels = arrays_of(Digits.splits()["test"])
    with_weights = predictions_of(model, [(watching.Tensor(images), labels)])[0]
    read = with_weights.argmax(1)
    assert (found.count, found.right) == (270, (read == labels).sum())
    assert (found.confusion.sum(), found.confusion.trace()) == (270, found.right)
    wrong = np.flatnonzero(read != labels)
    assert len(wrong) > 10
    shown = found.digits
    assert (shown.truth != shown.read).tolist() == [i < len(wrong) for i in range(50)]
    scores = np.exp(with_weights.astype(float))
    chances = scores / scores.sum(1, keepdims=True)
    first = wrong[np.argsort(chances[wrong, labels[wrong]])][:50]
    np.testing.assert_array_equal(shown.images[: len(first)], np.rint(255 * images[first, 0]))
    np.testing.assert_allclose(shown.probabilities[: len(first)], chances[first].max(1), rtol=1e-4)


def test_by_default_it_is_looked_about_forty_times(tmp_path: Path) -> None:
    train(Task("mlp", {"inputs": 64}, data="digits", epochs=2), quiet(tmp_path, watch=True, batch_size=9, steps=149))
    assert Looks(tmp_path / "watch").steps() == [1, *range(4, 149, 4), 149]


def test_another_run_in_the_folder_forgets_it(tmp_path: Path) -> None:
    few: dict[str, object] = {"limit": 20, "batch_size": 10, "epochs": 1}
    train(TASK, quiet(tmp_path, watch=True, **few))
    train(TASK, quiet(tmp_path, resume=True, **{**few, "epochs": 2}))
    assert Looks(tmp_path / "watch").steps() == [1, 2]  # the same run
    train(TASK, quiet(tmp_path, **few))
    assert Looks(tmp_path / "watch").steps() == []


def test_a_network_that_gives_a_number(tmp_path: Path) -> None:
    task = Task("mlp", {"inputs": 64, "outputs": 1}, data="digits", loss="mse of the label", lr=0.01, epochs=1)
    train(task, quiet(tmp_path, watch=True, limit=30, batch_size=10))
    looks = Looks(tmp_path / "watch")
    found = looks.outcome()
    assert found is not None and found.digits.probabilities is None
    assert found.count == 30 >= found.confusion.sum()
    shown = looks.load(looks.steps()[-1]).digits
    assert shown is not None and shown.read.shape == (10,)
    read = watching.reader_of("mse of the label")
    assert read(np.array([[2.6], [np.nan], [-1.2]])).tolist() == [3, -1, -1]
    assert set(LOSSES) - {"mse of the label"} == {name for name in LOSSES if watching.reader_of(name) is not read}


def test_wrong_options(tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match="--watch-every must be at least 1; got 0"):
        quiet(tmp_path, watch_every=0)
