"""``rawgrad evaluate``: what it counts, which mistakes it calls the worst, what it draws, folders of pictures."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rawgrad.__main__ import main
from rawgrad.engine.data import Digits
from rawgrad.recipes import evaluating
from rawgrad.recipes.evaluating import Report, draw_report, evaluate, evaluate_arrays, evaluate_folder
from rawgrad.recipes.options import Options
from rawgrad.recipes.reading import Reader
from rawgrad.recipes.training import Task, train

Capture = pytest.CaptureFixture[str]
DIGITS = list("0123456789")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A linear classifier, and a linear layer that gives the label as a number."""
    folders = {"classes": tmp_path_factory.mktemp("classes"), "number": tmp_path_factory.mktemp("number")}
    task = Task("mlp", {"inputs": 64}, data="digits", optimizer="adam", lr=0.02, epochs=6, batch_size=64)
    train(task, Options(folders["classes"], quiet=True))
    number = Task("mlp", {"inputs": 64, "outputs": 1}, data="digits", loss="mse of the label", optimizer="adam",
                  lr=0.02, epochs=6, batch_size=64)  # fmt: skip
    train(number, Options(folders["number"], quiet=True))
    return folders


def test_every_figure_of_a_report_by_hand(runs: dict[str, Path]) -> None:
    reader, test = Reader(runs["classes"]), Digits("test")
    report = evaluate(reader, test)
    outputs = reader.outputs(test.images).astype(np.float64)
    shares = np.exp(outputs) / np.exp(outputs).sum(1, keepdims=True)
    np.testing.assert_array_equal(report.read, shares.argmax(1))
    np.testing.assert_allclose(report.probabilities, shares.max(1), rtol=1e-9)
    np.testing.assert_allclose(report.losses, -np.log(shares[np.arange(270), test.labels]), rtol=1e-6, atol=1e-9)
    assert (report.count, report.right) == (270, (shares.argmax(1) == test.labels).sum())
    assert report.confusion.sum() == 270 and report.confusion.trace() == report.right < 270
    worst = max(np.flatnonzero(report.read != test.labels), key=lambda i: report.losses[i])
    assert report.mistakes(1) == [
        f"image {worst}: {test.labels[worst]} read as {report.read[worst]} ({100 * shares[worst].max():.1f} %)"
    ]
    assert len(report.mistakes(1000)) == 270 - report.right
    said = str(report)
    assert f"  {report.mistakes(1)[0]}\n" in said and f"cross-entropy {report.losses.mean():.4f}" in said


def test_a_network_that_gives_a_number(runs: dict[str, Path], tmp_path: Path) -> None:
    reader, test = Reader(runs["number"]), Digits("test")
    images = 3 * test.images  # so that some numbers are no class
    report = evaluate_arrays(reader, images, test.labels)
    number = reader.outputs(images)[:, 0].astype(np.float64)
    np.testing.assert_allclose(report.losses, (number - test.labels) ** 2)
    assert report.probabilities is None and report.loss_name == "squared error"
    assert report.outside == ((np.rint(number) < 0) | (np.rint(number) > 9)).sum() > 0
    assert report.confusion.sum() == 270 - report.outside
    assert re.fullmatch(r"image \d+: \d read as -?\d+", report.mistakes(1)[0])
    draw_report(report, tmp_path / "number.svg")
    assert (tmp_path / "number.svg").stat().st_size > 10_000


def test_the_worst_mistakes_are_drawn(runs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reader, test = Reader(runs["classes"]), Digits("test")
    report = evaluate(reader, test)
    drawn: list[tuple[np.ndarray, ...]] = []
    draw = evaluating.draw_digits
    monkeypatch.setattr(evaluating, "draw_digits", lambda axes, *given: [drawn.append(given), draw(axes, *given)])
    draw_report(report, tmp_path / "a.png", most=7)
    images, truth, read, sure, classes = drawn[0]
    wrong = np.flatnonzero(report.read != test.labels)
    worst = wrong[np.argsort(-report.losses[wrong])][:7]
    np.testing.assert_array_equal(images, test.images[worst])
    np.testing.assert_array_equal(truth, test.labels[worst])
    np.testing.assert_array_equal(read, report.read[worst])
    np.testing.assert_array_equal(sure, report.probabilities[worst])
    assert (tmp_path / "a.png").stat().st_size > 20_000 and classes == DIGITS


def test_without_mistakes(tmp_path: Path) -> None:
    truth = np.array([3, 1])
    report = Report(np.zeros((2, 1, 8, 8)), truth, truth, np.array([0.1, 0.2]), "loss", np.array([0.9, 0.8]), DIGITS)
    draw_report(report, tmp_path / "a.png")
    assert report.mistakes() == [] and "mistakes" not in str(report) and report.accuracy == 1


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Twenty test digits in a folder for each class, large and dark on light, and what is no picture."""
    test = Digits("test")
    for index in range(20):
        place = tmp_path / "sorted" / str(test.labels[index])
        place.mkdir(parents=True, exist_ok=True)
        sheet = np.pad(np.kron(255 * (1 - test.images[index, 0]), np.ones((9, 9))), 30, constant_values=255)
        Image.fromarray(sheet.astype(np.uint8)).save(place / f"{index}.png")
    return tmp_path / "sorted"


def test_a_folder_of_pictures(runs: dict[str, Path], folder: Path, tmp_path: Path, capsys: Capture) -> None:
    reader = Reader(runs["classes"])
    report, left_out = evaluate_folder(reader, folder)
    assert (report.count, left_out) == (20, 0)
    assert [Path(name).parent.name for name in report.names] == [str(label) for label in report.truth]
    assert report.accuracy >= 0.7
    assert evaluate_folder(reader, folder, 2)[0].names == report.names[:2]
    evaluate_it = ["evaluate", str(runs["classes"]), "--folder", str(folder)]
    assert main([*evaluate_it, "--out", str(tmp_path / "a.png")]) == 0
    said = capsys.readouterr().out
    assert " of 20 images)" in said.splitlines()[-1] and (tmp_path / "a.png").exists()
    (folder / "3" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    assert main(evaluate_it) == 2
    read = capsys.readouterr()
    assert read.out == said.split("\n\n", 1)[1]  # the rest is read as before
    assert "broken.png must be a picture" in read.err
    assert read.err.endswith("rawgrad: 1 of 21 could not be read and are left out\n")
    assert main([*evaluate_it, "--limit", "2"]) == 0
    assert "of 2 images)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--out", "a.gif"], "--out must end with .png, .pdf, .svg; got a.gif"),
        (["--out", "nowhere/a.png"], "--out must lie in a folder that exists; there is no nowhere"),
        (["--out", "a.png", "--pictures"], "--pictures only counts what is read right; it does not go with --out"),
        (["--folder", "x", "--pictures"], "it does not go with --folder"),
        (["--folder", "nowhere"], "root must be a folder; got nowhere"),
        (["--folder", "empty"], "one folder per class; empty holds none"),
        (["--folder", "cats"], "per class, named 0, 1, 2, 3, 4, 5, 6, 7, 8, 9; got one named 'cat'"),
        (["--folder", "none"], "none must hold pictures of digits; got none that can be read"),
        (["--limit", "0"], "--limit must be at least 1; got 0"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused(
    arguments: list[str], reason: str, runs: dict[str, Path], tmp_path: Path, capsys: Capture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    for name in ("empty", "cats/cat", "none/7"):
        (tmp_path / name).mkdir(parents=True)
    assert main(["evaluate", str(runs["classes"]), *arguments]) == 2
    said = capsys.readouterr()
    assert said.out == "" and said.err.startswith("rawgrad: error: ") and reason in said.err


def test_an_unwritable_picture_is_said(runs: dict[str, Path], capsys: Capture) -> None:
    assert main(["evaluate", str(runs["classes"]), "--out", "/proc/a.png"]) == 2
    assert capsys.readouterr().err.startswith("rawgrad: error: /proc/a.png: ")
