"""`rawgrad report` and `rawgrad compare`: what they show, of what kind of run, and what they refuse."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rawgrad.engine.train import Looks
from rawgrad.engine.train.distributions import distribution
from rawgrad.kernels._errors import ArgumentError, CheckpointError, DataError
from rawgrad.recipes import panels
from rawgrad.recipes.command import main
from rawgrad.recipes.curves import figure
from rawgrad.recipes.options import Options
from rawgrad.recipes.reporting import Report, report
from rawgrad.recipes.runs import read_run
from rawgrad.recipes.tables import duration, number, shown
from rawgrad.recipes.training import Result, Task, train

Capture = pytest.CaptureFixture[str]
TASK = Task("mlp", {"inputs": 64, "hidden": (6,)}, data="digits", optimizer="adam", lr=0.01, epochs=2, batch_size=100)
PANELS = [
    *("Accuracy", "Cross entropy", "Learning rate", "Time of an epoch", "All weights", "All biases"),
    *("Test digits, errors first", "Confusion matrix"),
]


def quiet(out: Path, **settings: object) -> Options:
    return Options(out, quiet=True, **settings)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Result:
    return train(TASK, quiet(tmp_path_factory.mktemp("runs") / "<a> & b", watch_every=5))


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Result:
    return train(replace(TASK, lr=0.03, epochs=1), quiet(tmp_path_factory.mktemp("runs") / "alone"))


@pytest.fixture(scope="module")
def page(watched: Result) -> str:
    assert report(watched.options.out) == 0
    return (watched.options.out / "report.html").read_text()


@pytest.fixture
def broken(watched: Result, tmp_path: Path) -> Path:
    """A copy to be damaged."""
    return Path(shutil.copytree(watched.options.out, tmp_path / "broken"))


def elements(page: str) -> Iterator[ElementTree.Element]:
    head, _, rest = page.partition("\n")
    assert head == "<!DOCTYPE html>"
    return ElementTree.fromstring(rest).iter()


def text_of(page: str) -> str:
    return " ".join("".join(ElementTree.fromstring(page.partition("\n")[2]).itertext()).split())


class TestPage:
    def test_it_is_well_formed_and_needs_nothing_else(self, page: str) -> None:
        assert "http" not in page.casefold()
        assert "@import" not in page
        assert set(re.findall(r"url\((.)", page)) == {"#"}
        tags = Counter()
        ids = Counter()
        for element in elements(page):
            tags[element.tag] += 1
            if "id" in element.attrib:
                ids[element.attrib["id"]] += 1
            for name, value in element.attrib.items():
                assert name != "src" or value.startswith("data:image/png;base64,")
                assert not name.endswith("href") or value.startswith("#")
                assert not name.startswith("on")
        assert not {"script", "link", "iframe", "object", "metadata"} & set(tags)
        assert max(ids.values()) == 1
        assert set(re.findall(r"(?:url\(|href=\")#([\w-]+)", page)) <= set(ids)
        assert len(page) < 2_000_000

    def test_all_panels_are_there(self, page: str, watched: Result) -> None:
        titles = [element.text for element in elements(page) if element.tag == "b"]
        layers = ["1 Linear", "2 Sigmoid", "3 Linear"] + 2 * ["1.weight", "1.bias", "3.weight", "3.bias"]
        steps = ["Digits of step 1", "Digits of step 26"]
        assert set(PANELS) | set(layers) | set(steps) <= set(titles)
        assert Counter(titles)["1.weight"] == Counter(titles)["1.bias"] == 2
        tags = Counter(element.tag for element in elements(page))
        assert (tags["svg"], tags["img"]) == (6 + 3 + 4 + 4, 4)
        assert "--watch" not in page

    def test_its_figures_are_those_of_the_run(self, page: str, watched: Result) -> None:
        words = text_of(page)
        wrong = round(270 * (1 - watched.test.accuracy))
        for expected in (
            f"{100 * watched.test.accuracy:.2f} %test accuracy", f"{wrong}test mistakes",
            f"{watched.test.loss:.4f}test loss", "26steps", "2epochs", "networkmlp", "batch size100",
            f"{wrong} of 270 are read wrong", f"{watched.history.epochs[1].validation_loss:.4f}", "numpy",
        ):  # fmt: skip
            assert expected in words

    def test_drawn_colours_follow_the_page(self, page: str) -> None:
        body = page[page.index("<body>") :]
        assert not [c for c in (panels.INK, panels.GRID, panels.TRAIN, panels.CHECK, panels.BAND) if c in body]
        assert "prefers-color-scheme: dark" in page
        for variable in ("ink", "grid", "train", "check", "band"):
            assert f"var(--{variable})" in body
            assert page.count(f"--{variable}:") == 2

    def test_names_are_escaped(self, page: str) -> None:
        assert "<h1>&lt;a&gt; &amp; b</h1>" in page

    def test_the_picture(self, page: str, watched: Result) -> None:
        content = (watched.options.out / "report.png").read_bytes()
        assert len(content) < 300_000
        with Image.open(io.BytesIO(content)) as image:
            assert (image.width, image.height) == (1260, 660)

    def test_the_picture_has_six_panels(self, watched: Result) -> None:
        titles = [axes.get_title() for axes in Report(read_run(watched.options.out)).draw().axes]
        expected = ["accuracy", "cross entropy", "digits of step 1", "weights", "biases", "test digits, errors first"]
        assert [title.partition(", errors on red")[0].partition(":")[0] for title in titles] == expected


class TestOtherRuns:
    def test_one_that_was_not_watched(self, alone: Result, tmp_path: Path) -> None:
        assert report(alone.options.out, tmp_path / "a.html", tmp_path / "b.png") == 0
        page = (tmp_path / "a.html").read_text()
        assert page.count("`rawgrad train PROGRAM --watch` keeps what is shown here") == 6
        assert f"{round(270 * (1 - alone.test.accuracy))} of 270 are read wrong" in text_of(page)
        assert {path.name for path in tmp_path.iterdir()} == {"a.html", "b.png"}

    def test_one_that_is_under_way(self, broken: Path) -> None:
        for name in ("result.json", "steps.csv", "epochs.csv"):
            (broken / name).unlink()
        words = text_of(Report(read_run(broken)).html())
        assert "26 steps, 2 epochs: not finished" in words
        assert "networkmlp" in words
        assert "the run is not finished" in words

    def test_one_that_runs_again(self, broken: Path) -> None:
        """The records of the last time are older than its checkpoints."""
        (broken / "steps.csv").write_text("old")
        for path in (broken / "checkpoints").glob("*.safetensors"):
            os.utime(path, (2e9, 2e9))
        run = read_run(broken)
        assert (run.finished, len(run.history.steps)) == (False, 26)

    def test_numbers_that_are_not_finite_are_told(self, broken: Path) -> None:
        looks = Looks(broken / "watch")
        for step in (10, 15):
            look = looks.load(step)
            look.distributions["gradients"]["1.weight"] = distribution(np.array([1.0, np.nan]))
            look.distributions["gradients"]["1.bias"] = distribution(np.array([np.inf]))
            looks.save(look)
        panels = "".join(Report(read_run(broken)).layers())
        assert panels.count("NaN or infinite from step 10") == 2

    def test_records_of_an_older_version(self, broken: Path) -> None:
        """Without waiting times, machine and device."""
        rows = [line.rpartition(",")[0] for line in (broken / "epochs.csv").read_text().splitlines()]
        (broken / "epochs.csv").write_text("\n".join(rows))
        kept = json.loads((broken / "result.json").read_text())
        (broken / "result.json").write_text(json.dumps({name: kept[name] for name in ("task", "seed", "test")}))
        found = Report(read_run(broken))
        assert "How long training waited for data was not recorded" in "".join(found.curves())
        assert [name for name, _ in found.figures()][-2:] == ["of training", "images a second"]

    @pytest.mark.parametrize(
        "result",
        [
            {"task": {}},
            {"task": {"loss": 5, "data": "clouds"}, "test": "good", "made": {"machine": 3, "versions": [], "date": 7}},
            {"task": {"network": [{}], "data": "digits"}, "limit": "all", "made": 3, "test": {"accuracy": True}},
        ],
    )
    def test_a_result_that_was_edited_by_hand(self, result: object, broken: Path) -> None:
        shutil.rmtree(broken / "watch")
        (broken / "result.json").write_text(json.dumps(result))
        assert text_of(Report(read_run(broken)).html())

    def test_data_that_are_not_here(self, broken: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setenv("RAWGRAD_DATA", str(tmp_path / "nothing"))
        monkeypatch.setenv("RAWGRAD_CACHE", str(tmp_path / "cache"))
        (broken / "watch" / "test.safetensors").unlink()
        kept = json.loads((broken / "result.json").read_text())
        kept["task"]["data"] = "mnist"
        (broken / "result.json").write_text(json.dumps(kept))
        assert "--data-dir DIR names their folder" in str(Report(read_run(broken)).outcome)


class TestRefused:
    def refused(self, kind: type[Exception], match: str, *arguments: object) -> None:
        with pytest.raises(kind, match=match):
            main(["report", *map(str, arguments)])

    def test_folders_that_are_no_runs(self, watched: Result, tmp_path: Path) -> None:
        self.refused(DataError, "there is no such folder", tmp_path / "nothing")
        (tmp_path / "file").write_text("")
        self.refused(DataError, "is a file; expected a run's", tmp_path / "file")
        self.refused(DataError, "has neither result.json nor checkpoints$", tmp_path)
        self.refused(DataError, "these in it have: <a> & b$", watched.options.out.parent)

    @pytest.mark.parametrize(
        ("name", "content", "match"),
        [
            ("result.json", "{", "result.json: damaged: it is no JSON"),
            ("result.json", "[1]", "result.json: must hold an object; it holds list"),
            ("result.json", "{}", "must have the settings of the run as 'task'"),
            ("result.json", "\udcff", "result.json: damaged"),
            ("steps.csv", None, "steps.csv: is missing, though the run is finished"),
            ("steps.csv", "", "steps.csv: must have the columns accuracy, epoch"),
            ("steps.csv", "step,epoch,loss,accuracy,lr\n0,0,1,1,1\n1,0,high,1,1\n", "steps.csv, line 3: must hold num"),
            ("steps.csv", "step,epoch,loss,accuracy,lr\n0,0,1\n", "steps.csv, line 2: must hold numbers"),
            ("epochs.csv", "\udcff", "epochs.csv: damaged"),
        ],
    )
    def test_damaged_records(self, name: str, content: str | None, match: str, broken: Path) -> None:
        (broken / name).unlink()
        if content is not None:
            (broken / name).write_bytes(content.encode(errors="surrogateescape"))
        (broken / "report.html").unlink(missing_ok=True)
        self.refused(DataError, match, broken)
        assert not (broken / "report.html").exists()

    @pytest.mark.parametrize("name", ["step-000005.safetensors", "test.safetensors"])
    def test_damaged_looks(self, name: str, broken: Path) -> None:
        content = (broken / "watch" / name).read_bytes()
        (broken / "watch" / name).write_bytes(content[:-1])
        self.refused(CheckpointError, f"{name}: ", broken)

    def test_a_run_of_which_no_checkpoint_is_whole(self, broken: Path) -> None:
        (broken / "result.json").unlink()
        for path in (broken / "checkpoints").glob("*.safetensors"):
            path.write_bytes(b"damaged")
        self.refused(CheckpointError, "none of its checkpoints is whole", broken)

    def test_places_that_cannot_be_written(self, watched: Result, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        out = watched.options.out
        self.refused(DataError, r"report: cannot write .*file/a\.html", out, "--out", tmp_path / "file" / "a.html")
        self.refused(ArgumentError, "--out must end with .html; got", out, "--out", tmp_path / "a.pdf")
        self.refused(ArgumentError, "--picture must end with .png; got", out, "--picture", tmp_path / "a.pdf")


class TestCompare:
    def test_a_picture_and_a_table(self, watched: Result, alone: Result, tmp_path: Path, capsys: Capture) -> None:
        picture = tmp_path / "new" / "both.png"
        assert main(["compare", str(watched.options.out), str(alone.options.out), "--out", str(picture)]) == 0
        assert picture.read_bytes().startswith(b"\x89PNG")
        lines = capsys.readouterr().out.splitlines()
        for line, result, name in zip(lines[1:], (watched, alone), ("<a> & b", "alone"), strict=False):
            assert line.startswith(name)
            assert f"{100 * result.test.accuracy:.2f} %" in line
        differ = {line.split("  ")[0].strip(): line.split()[-2:] for line in lines[lines.index("") + 3 : -2]}
        assert differ == {"lr": ["0.01", "0.03"], "epochs": ["2", "1"]}

    def test_runs_of_one_name_and_no_difference(self, watched: Result, broken: Path, capsys: Capture) -> None:
        twin = Path(shutil.copytree(broken, broken.parent / "other" / broken.name))
        (twin / "result.json").unlink()
        assert main(["compare", str(broken), str(twin), "--out", str(broken / "both.svg")]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert lines[1].startswith(str(broken))
        assert lines[2].startswith(str(twin)) and "not finished" in lines[2]
        assert "all settings are the same" in lines

    def test_what_is_refused(self, watched: Result, alone: Result, tmp_path: Path) -> None:
        first, second = watched.options.out, alone.options.out
        (tmp_path / "file").write_text("")
        for kind, match, arguments in (
            (ArgumentError, "at least two runs; `rawgrad report RUN` shows one", [first]),
            (ArgumentError, "named once; .* is named 2 times", [first, second, first / "."]),
            (ArgumentError, "--out must end with .png", [first, second, "--out", tmp_path / "a.txt"]),
            (DataError, "there is no such folder", [first, tmp_path / "nothing"]),
            (DataError, "compare: cannot write", [first, second, "--out", tmp_path / "file" / "a.png"]),
        ):
            with pytest.raises(kind, match=match):
                main(["compare", *map(str, arguments)])


def test_bands_show_the_middle_of_what_has_a_long_tail() -> None:
    values = np.r_[np.random.default_rng(0).standard_normal(1000), 1e6]
    _, (axes,) = figure(1)
    panels.bands(axes, [1, 2], [distribution(values)] * 2)
    low, high = axes.get_ylim()
    assert -10 < low < -3 < 3 < high < 10


@pytest.mark.parametrize(
    ("seconds", "expected"), [(3.21, "3.2 s"), (59.94, "59.9 s"), (245, "4:05 min"), (3723.4, "1:02:03 h")]
)
def test_durations(seconds: float, expected: str) -> None:
    assert duration(seconds) == expected


def test_settings_as_they_are_shown() -> None:
    assert shown({"channels": (6, 12), "start": None, "p": 0.25}) == "channels 6-12, start none, p 0.25"
    assert [shown(value) for value in ({}, None, 1e-4, True)] == ["none", "none", "0.0001", "True"]
    assert (number(float("nan"), ".2f", " %"), number(1.5, ".2f", " %")) == ("", "1.50 %")
