"""P15: what is learnt by heart without a penalty is not with one; and what is said of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from rawgrad import get_num_threads, nn, set_num_threads
from rawgrad.__main__ import main
from rawgrad.engine.data import Digits
from rawgrad.engine.weights import load_weights
from rawgrad.kernels._errors import ArgumentError, CheckpointError
from rawgrad.recipes import overfitting
from rawgrad.recipes.options import Options
from rawgrad.recipes.overfitting import IMAGES, STRENGTHS, WRONG, Overfitting, gaps, with_wrong_labels
from rawgrad.recipes.training import OPTIMIZERS, Task, train

Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Batches of 20 are too small to be shared, and the bits are the same."""
    before = get_num_threads()
    set_num_threads(1)
    yield
    set_num_threads(before)


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Overfitting:
    """Without a penalty and with 0.03, for a third of the epochs."""
    out = tmp_path_factory.mktemp("overfitting")
    return overfitting.run(Options(out, epochs=50, weight_decay=0.03, quiet=True))


def test_without_a_penalty_it_is_learnt_by_heart(found: Overfitting) -> None:
    epochs = found.results[0.0].history.epochs
    assert epochs[-1].accuracy > 0.95  # of labels a fifth of which are wrong
    points, loss = gaps(found.results[0.0])
    assert points == pytest.approx(100 * (epochs[-1].accuracy - epochs[-1].validation_accuracy)) and points > 10
    assert loss == pytest.approx(epochs[-1].validation_loss - epochs[-1].loss) and loss > 0.4
    lowest = min(epoch.validation_loss for epoch in epochs)
    assert epochs[-1].validation_loss > 1.2 * lowest  # it turned up


def test_with_a_penalty_it_is_not(found: Overfitting) -> None:
    without, with_it = found.results[0.0], found.results[0.03]
    end = with_it.history.epochs[-1]
    assert 0.7 < end.accuracy < 1 - WRONG + 0.05  # the right labels, hardly more
    assert gaps(with_it)[0] < 0 < gaps(without)[0] and gaps(with_it)[1] < 0.2
    assert with_it.test.accuracy > without.test.accuracy + 0.05
    assert end.validation_loss < 1.05 * min(epoch.validation_loss for epoch in with_it.history.epochs)


def test_what_is_printed_says_both_gaps(found: Overfitting) -> None:
    (points, loss), (less, lower) = (gaps(result) for result in found.results.values())
    said = str(found)
    assert (
        f"without L2 {points:.1f} points of accuracy and {loss:.2f} of loss, with 0.03 {less:.1f} and {lower:.2f};"
        in said
    )
    assert f"test accuracy {100 * found.results[0.0].test.accuracy:.2f} and " in said
    out = found.results[0.0].options.out.parent
    assert {path.name for path in out.iterdir()} == {"without-L2", "L2-0.03", "overfitting.png"}


def test_a_row_for_each_strength(tmp_path: Path, capsys: Capture) -> None:
    assert main(["train", "overfitting", "--epochs", "1", "--limit", "10", "--out", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("10 training images, 2 of their labels wrong; adam lr 0.003, 1 epochs")
    rows = [line.split() for line in lines if line.split()[:1] in (["none"], ["0.01"], ["0.03"], ["0.1"])]
    assert len(rows) == len(STRENGTHS) and all(len(row) == 8 for row in rows)
    for _, training, validation, gap, *_ in rows:
        assert float(training) - float(validation) == pytest.approx(float(gap), abs=0.11)
    _, info = load_weights(tmp_path / "L2-0.1" / "weights.safetensors")
    assert info.architecture == "mlp"


def test_a_fifth_of_the_labels_is_wrong_and_always_the_same() -> None:
    labels = Digits("train").labels[:IMAGES]
    before = labels.copy()
    changed = with_wrong_labels(labels)
    wrong = changed != labels
    assert wrong.sum() == WRONG * IMAGES and np.array_equal(labels, before)
    assert np.array_equal(changed, with_wrong_labels(labels))
    assert len(set(labels[wrong])) == 10 and set(changed) == set(range(10))


@pytest.mark.parametrize("decay", [0.0, -1.0, float("nan"), float("inf")])
def test_it_must_be_compared_with_something(decay: float, tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match="--weight-decay must be above 0, for it is compared with none"):
        overfitting.run(Options(tmp_path, weight_decay=decay))


# ---- the option, for any program ---------------------------------------------------------------


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_takes_it(name: str) -> None:
    parameters = list(nn.Linear(2, 2).parameters())
    assert OPTIMIZERS[name](parameters, 0.1, 0.25).param_groups[0]["weight_decay"] == 0.25
    assert OPTIMIZERS[name](parameters, 0.1).param_groups[0]["weight_decay"] == 0


def test_it_is_the_gradient_of_an_l2_penalty(tmp_path: Path) -> None:
    """One step of SGD from the same start: p - lr (g + λ p) instead of p - lr g."""
    task = Task("mlp", {"inputs": 64}, data="digits", lr=0.5, epochs=1)
    weights = []
    for decay, lr in ((None, 0.5), (0.1, 0.5), (None, 1e-30)):
        out = tmp_path / f"{decay}-{lr}"
        train(task, Options(out, steps=1, quiet=True, weight_decay=decay, lr=lr))
        weights.append(load_weights(out / "weights.safetensors")[0])
    for name, start in weights[2].items():
        np.testing.assert_allclose(weights[1][name], weights[0][name] - 0.5 * 0.1 * start, rtol=1e-4, atol=1e-7)


def test_a_run_goes_on_with_the_same_decay_only(tmp_path: Path) -> None:
    task = Task("mlp", {"inputs": 64}, data="digits", lr=0.5, epochs=1, batch_size=300)
    train(task, Options(tmp_path, quiet=True, weight_decay=0.1))
    with pytest.raises(CheckpointError, match=r"weight_decay was 0\.1 and is now 0\.0"):
        train(replace(task, epochs=2), Options(tmp_path, quiet=True, resume=True))


@pytest.mark.parametrize("decay", ["-1", "nan", "inf"])
def test_what_is_no_decay_is_refused(decay: str, tmp_path: Path, capsys: Capture) -> None:
    assert main(["train", "--weight-decay", decay, "--steps", "1", "--out", str(tmp_path)]) == 2
    assert "weight_decay must be a real number, not negative" in capsys.readouterr().err
