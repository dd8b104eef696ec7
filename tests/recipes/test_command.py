"""The command line, in this process, on the bundled digits with few steps."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file
from threadpoolctl import threadpool_info, threadpool_limits

from rawgrad import backends, get_num_threads
from rawgrad.__main__ import main
from rawgrad.engine.data import loader
from rawgrad.engine.weights import save_weights
from rawgrad.kernels._threads import most_threads
from rawgrad.recipes import command, predicting
from rawgrad.recipes.programs import OTHER_ROWS, PROGRAMS
from rawgrad.recipes.reading import Reader, as_file, share_read
from rawgrad.recipes.training import load_model

Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a few epochs: good enough to read most digits."""
    out = tmp_path_factory.mktemp("run")
    assert main(["train", "--out", str(out), "--epochs", "4", "--quiet", "--threads", "1"]) == 0
    return out


def refusal(capsys: Capture, *arguments: str) -> str:
    """What is said to a wrong command: on stderr alone, no traceback, code 2."""
    assert main(arguments) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("rawgrad: error: ")
    assert "Traceback" not in said.err
    return said.err


class TestTrain:
    def test_the_last_line_is_the_result(self, tmp_path: Path, capsys: Capture) -> None:
        assert main(["train", "--out", str(tmp_path / "r"), "--steps", "3"]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert re.fullmatch(r"test accuracy \d+\.\d\d % \(270 images\), training [\d,]+ images/s", lines[-1])
        assert "rawgrad predict" in lines[-2]
        assert (tmp_path / "r" / "weights.safetensors").exists()

    def test_lines_of_json(self, tmp_path: Path, capsys: Capture) -> None:
        assert main(["train", "--steps", "2", "--limit", "100", "--json", "--out", str(tmp_path)]) == 0
        lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        assert [line["event"] for line in lines if line["event"] != "step"] == ["start", "epoch", "end", "result"]
        assert lines[-1]["images"] == 100 and 0 <= lines[-1]["accuracy"] <= 1

    def test_quiet_prints_that_line_alone(self, tmp_path: Path, capsys: Capture) -> None:
        assert main(["train", "--out", str(tmp_path), "--steps", "2", "--quiet"]) == 0
        assert capsys.readouterr().out.count("\n") == 1

    def test_workers_read_ahead_and_change_nothing(
        self, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The bundled digits are read too quickly for readers, unless a hand-over is said to cost nothing."""
        train = ["train", "--epochs", "2", "--limit", "96", "--out"]
        weights = []
        for name, options in (("none", []), ("two", ["--workers", "2", "--prefetch", "4"])):
            assert main([*train, str(tmp_path / name), *options]) == 0
            weights.append(load_file(tmp_path / name / "weights.safetensors"))
            said = capsys.readouterr().out
            assert said.count("held the run back: waiting for data took") == (
                2 if options else 1
            )  # each epoch, or once
            assert said.count("by one of 2 readers") == (2 if options else 0)
            assert ("needs no reader" in said) == (not options)
            monkeypatch.setattr(loader, "_HAND_OVER", 0)
        assert weights[0].keys() == weights[1].keys()
        assert all((weights[0][name] == weights[1][name]).all() for name in weights[0])
        assert not [thread for thread in threading.enumerate() if "reader" in thread.name]

    @pytest.mark.parametrize("name", ["numba", "numpy"])
    def test_threads(self, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Of the compiled kernels, or of NumPy's BLAS; afterwards they are what they were."""
        import rawgrad.kernels._jit  # noqa: F401  which would limit BLAS once more when it is loaded
        from rawgrad.recipes import training

        def counts() -> tuple[int, set[int]]:
            return get_num_threads(), {pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"}

        fit, seen = training.fit, []

        def look(*arguments: object, **options: object) -> object:
            seen.append(counts())
            return fit(*arguments, **options)

        monkeypatch.setattr(training, "fit", look)
        command = ["train", "--out", str(tmp_path), "--steps", "1", "--quiet", "--threads", "1", "--backend", name]
        with threadpool_limits(2, user_api="blas"):
            before = counts()
            assert main(command) == 0
            assert seen == [(1, before[1]) if name == "numba" else (before[0], {1})]
            assert counts() == before

    def test_an_interrupt_says_how_to_go_on(
        self, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from rawgrad.recipes import training

        fit = training.fit

        def interrupted(*arguments: object, **options: object) -> None:
            fit(*arguments, **{**options, "epochs": 1})
            raise KeyboardInterrupt

        monkeypatch.setattr(training, "fit", interrupted)
        arguments = ["train", "--out", str(tmp_path / "r"), "--batch-size", "300", "--epochs", "2"]
        assert main(arguments) == 130
        said = capsys.readouterr().err
        assert f"rawgrad {' '.join(arguments)} --resume" in said
        monkeypatch.undo()
        assert main([*arguments, "--resume"]) == 0
        assert "resuming after epoch 1" in capsys.readouterr().out

    @pytest.mark.usefixtures("heeded")
    @pytest.mark.parametrize(("number", "code", "what"), [
        (signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated"),
    ])  # fmt: skip
    def test_a_signal_ends_after_the_step_and_says_how_to_go_on(
        self, number: int, code: int, what: str, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from rawgrad.recipes import training

        fit = training.fit

        def signalled(*arguments: object, **options: object) -> object:
            return fit(*arguments, **options, on_step=lambda step: step.step == 2 and os.kill(os.getpid(), number))

        def evaluated(*arguments: object) -> None:
            os.kill(os.getpid(), number)

        arguments = ["train", "--out", str(tmp_path / "r"), "--batch-size", "300", "--epochs", "1"]
        again = f"To go on:\n  rawgrad {' '.join(arguments)} --resume\n"
        with monkeypatch.context() as patch:
            patch.setattr(training, "fit", signalled)
            assert main(arguments) == code
        assert f"rawgrad: {what}; step 3 is saved in {tmp_path}/r/checkpoints. {again}" in capsys.readouterr().err
        with monkeypatch.context() as patch:  # not in a step: all is saved, there is nothing to finish
            patch.setattr(training, "evaluate", evaluated)
            assert main([*arguments, "--resume"]) == code
        assert (tmp_path / "r" / "weights.safetensors").exists()  # from the thread that saved after the epoch
        said = capsys.readouterr()
        assert "resuming after step 3, in epoch 1" in said.out
        assert f"rawgrad: {what}; what was finished is in {tmp_path}/r. {again}" in said.err
        assert main([*arguments, "--resume"]) == 0
        assert "resuming after epoch 1" in capsys.readouterr().out

    def test_nothing_was_saved_yet(self, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
        from rawgrad.recipes import training

        def interrupted(*arguments: object, **options: object) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr(training, "fit", interrupted)
        assert main(["train", "--out", str(tmp_path / "r")]) == 130
        assert "interrupted; no epoch was finished, so nothing was saved" in capsys.readouterr().err

    @pytest.mark.parametrize(
        ("arguments", "said"),
        [
            (["mnist-cn"], "did you mean mnist-cnn?"),
            (["--epochs", "0"], "--epochs must be at least 1; got 0"),
            (["--epochs", "many"], "invalid int value: 'many'"),
            (["--epoch", "3"], "did you mean --epochs?"),
            (["--device", "tpu"], "device 'tpu' is not available here"),
            (["--backend", "numbs"], "backend 'numbs' does not exist"),
            (["--optimizer", "lion"], "optimizer must be one of sgd"),
            (["--threads", "0"], "--threads must be at least 1"),
            (["--workers", "-1"], "--workers must be at least 0; got -1"),
            (["--workers", "2000"], "num_workers must be an integer from 0 to 1024; got 2000"),
            (["--workers", "many"], "invalid int value: 'many'"),
            (["--workers", "2", "--prefetch", "0"], "--prefetch must be at least 1; got 0"),
            (["--save-every", "0"], "--save-every must be at least 1; got 0"),
            (["--prefetch", "3"], "--prefetch must come with --workers of at least 1"),
            (["--threads", "100000"], f"--threads must be at most {most_threads()}, the processors that this process"),
            (["mnist-cnn", "--data-dir", "nowhere"], "not found in nowhere"),
        ],
    )
    def test_wrong_options_are_refused(
        self, arguments: list[str], said: str, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        assert said in refusal(capsys, "train", *arguments)

    @pytest.mark.skipif(backends()["cuda"] is None, reason="there is a GPU here")
    @pytest.mark.parametrize("command", [("train",), ("evaluate",), ("predict", "x.png")])
    def test_without_a_gpu_it_says_what_to_do(self, command: tuple[str, ...], capsys: Capture) -> None:
        said = refusal(capsys, *command, "--device", "cuda")
        assert said.startswith("rawgrad: error: device 'cuda' is not available here: ") and said.count("\n") == 1
        assert "RAWGRAD_BACKEND=emulated runs the same kernels on a simulated GPU" in said
        assert "backend 'cuda' cannot run here: " in refusal(capsys, *command, "--backend", "cuda")

    def test_a_file_is_no_folder(self, tmp_path: Path, capsys: Capture) -> None:
        (tmp_path / "taken").touch()
        assert "must be a folder" in refusal(capsys, "train", "--out", str(tmp_path / "taken"))


class TestPredict:
    def test_pictures_are_read(self, run_folder: Path, tmp_path: Path, capsys: Capture) -> None:
        digits = Reader(run_folder).load_data("test")
        pixels = (255 * digits.images[:, 0]).astype(np.uint8)
        names = []
        for number in range(10):
            path = tmp_path / f"{number}.png"
            path.write_bytes(as_file(pixels[number]).getvalue())
            names.append(str(path))
        assert main(["predict", *names, "--weights", str(run_folder), "--json"]) == 0
        found = json.loads(capsys.readouterr().out)
        assert sum(row["digit"] == str(label) for row, label in zip(found, digits.labels, strict=False)) >= 9
        assert all(abs(sum(row["probabilities"].values()) - 1) < 1e-9 for row in found)
        assert main(["predict", names[0], "--weights", str(run_folder)]) == 0
        table = capsys.readouterr().out
        assert all(re.search(rf"^  {digit} +\d+\.\d %", table, re.M) for digit in range(10))

    def test_what_is_no_picture_is_refused_and_the_rest_read(
        self, run_folder: Path, tmp_path: Path, capsys: Capture
    ) -> None:
        (tmp_path / "text.png").write_text("not a picture")
        (tmp_path / "good.png").write_bytes(as_file(np.eye(30, dtype=np.uint8) * 255).getvalue())
        names = [str(tmp_path / name) for name in ("text.png", "missing.png", "good.png")]
        assert main(["predict", *names, "--weights", str(run_folder)]) == 2
        said = capsys.readouterr()
        assert "text.png" in said.err
        assert "missing.png" in said.err
        assert said.out.startswith(names[2])

    def test_a_folder_gives_a_line_for_each_picture_below_it(
        self, run_folder: Path, tmp_path: Path, capsys: Capture
    ) -> None:
        digits = Reader(run_folder).load_data("test")
        (tmp_path / "scans" / "deeper").mkdir(parents=True)
        (tmp_path / "scans" / ".hidden").mkdir()
        names = ["scans/1.png", "scans/deeper/2.JPG", "scans/deeper/3.jpeg", "scans/.hidden/4.png", "scans/.5.png"]
        for name, image in zip(names, (255 * digits.images[:5, 0]).astype(np.uint8), strict=True):
            kind = "PNG" if name.endswith("png") else "JPEG"
            (tmp_path / name).write_bytes(as_file(np.kron(image, np.ones((9, 9), np.uint8)), kind).getvalue())
        (tmp_path / "scans" / "notes.txt").write_text("no picture by its name")
        (tmp_path / "scans" / "text.png").write_text("no picture but by its name")
        (tmp_path / "empty").mkdir()
        folders = [str(tmp_path / "empty"), str(tmp_path / "scans")]
        assert main(["predict", *folders, "--weights", str(run_folder)]) == 2
        said = capsys.readouterr()
        lines = said.out.splitlines()
        assert len(lines) == 3
        for line, name, label in zip(lines, names, digits.labels, strict=False):
            assert re.fullmatch(rf"{tmp_path / name}: {label}  \(\d+\.\d %\), else \d \(\d+\.\d %\)", line)
        assert said.err.splitlines() == [
            f"rawgrad: error: predict: {tmp_path}/empty must hold pictures (PNG or JPEG); got none",
            f"rawgrad: error: image: {tmp_path}/scans/text.png must be a picture (PNG or JPEG); got something else",
            "rawgrad: 2 of 5 could not be read",
        ]

    def test_standard_input(
        self, run_folder: Path, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        digits = Reader(run_folder).load_data("test")
        picture = as_file((255 * digits.images[0, 0]).astype(np.uint8)).getvalue()

        terminal: list[bool] = []

        class Input(io.TextIOWrapper):
            def isatty(self) -> bool:
                return bool(terminal)

        def given(data: bytes, *arguments: str) -> int:
            with monkeypatch.context() as patch:
                patch.setattr(sys, "stdin", Input(io.BytesIO(data)))
                return main(["predict", *arguments, "--weights", str(run_folder)])

        assert given(picture, "-", "--json") == 0
        (row,) = json.loads(capsys.readouterr().out)
        assert (row["image"], row["digit"]) == ("-", str(digits.labels[0]))
        for data, reason in (
            (b"", "predict: standard input must be a picture; got nothing"),
            (b"-" * 99, "image: standard input must be a picture (PNG or JPEG); got something else"),
            (picture[:80], "image: standard input cannot be read: "),
            (as_file(np.zeros((9, 9), np.uint8)).getvalue(), "prepare_digit: standard input must show a digit; got "),
        ):
            assert given(data, "-") == 2
            assert capsys.readouterr().err.startswith(f"rawgrad: error: {reason}")
        monkeypatch.setattr(predicting, "MAX_BYTES", 50)
        assert given(picture, "-") == 2
        assert "standard input must have at most 50 bytes" in capsys.readouterr().err
        assert given(picture, "-", "-") == 2
        assert "can be read once only" in capsys.readouterr().err
        terminal.append(True)
        assert given(picture, str(tmp_path / "x.png"), "-") == 2
        said = capsys.readouterr().err
        assert "which is a terminal" in said and "x.png" not in said  # noticed before anything is read
        monkeypatch.setattr(sys, "stdin", None)
        assert main(["predict", "-", "--weights", str(run_folder)]) == 2
        assert "which is closed" in capsys.readouterr().err

    @pytest.mark.parametrize("encoding", ["utf-8", "latin-1", "ascii"])
    def test_what_the_terminal_cannot_show(
        self, encoding: str, run_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The bars, and a name that is no text."""
        path = os.fsencode(tmp_path) + b"/\xff.png"
        Path(os.fsdecode(path)).write_bytes(as_file(np.eye(30, dtype=np.uint8) * 255).getvalue())
        out = io.BytesIO()
        monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(out, encoding, errors="strict"))
        assert main(["predict", os.fsdecode(path), "--weights", str(run_folder)]) == 0
        assert out.getvalue().decode(encoding).startswith(f"{tmp_path}/?.png: ")

    @pytest.mark.parametrize("command", ["predict", "evaluate"])
    def test_a_network_of_nan_is_no_reader(
        self, command: str, run_folder: Path, tmp_path: Path, capsys: Capture
    ) -> None:
        model, info = load_model(run_folder)
        next(iter(model.parameters())).array[:] = np.nan
        save_weights(tmp_path / "weights.safetensors", model, info)
        (tmp_path / "a.png").write_bytes(as_file(np.eye(30, dtype=np.uint8) * 255).getvalue())
        arguments = ["predict", str(tmp_path / "a.png"), "--weights"] if command == "predict" else ["evaluate"]
        assert "the network must give finite numbers; got NaN" in refusal(capsys, *arguments, str(tmp_path))

    @pytest.mark.parametrize("command", ["predict", "evaluate"])
    def test_classes_that_do_not_fit_the_network(
        self, command: str, run_folder: Path, tmp_path: Path, capsys: Capture
    ) -> None:
        model, info = load_model(run_folder)
        save_weights(tmp_path / "weights.safetensors", model, replace(info, classes=list("012345678")))
        (tmp_path / "a.png").write_bytes(as_file(np.eye(30, dtype=np.uint8) * 255).getvalue())
        arguments = ["predict", str(tmp_path / "a.png"), "--weights"] if command == "predict" else ["evaluate"]
        assert "must give 9 numbers for each image" in refusal(capsys, *arguments, str(tmp_path))

    def test_every_variant_of_the_digits_is_read(self, run_folder: Path) -> None:
        reader = Reader(run_folder)
        digits = reader.load_data("test")
        pixels = (255 * digits.images[:60, 0]).astype(np.uint8)
        shares = dict(share_read(reader, pixels, digits.labels[:60]))
        assert shares["unchanged"] == shares["inverted"] >= 0.9
        assert min(shares.values()) >= 0.8  # 8x8 pixels bear little moving

    def test_no_model_says_how_to_make_one(
        self, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        assert "`rawgrad train` makes one" in refusal(capsys, "predict", "x.png")

    def test_foreign_weights_are_refused(self, tmp_path: Path, capsys: Capture) -> None:
        (tmp_path / "w.safetensors").write_bytes(b"\0" * 100)
        assert "w.safetensors" in refusal(capsys, "predict", "x.png", "--weights", str(tmp_path / "w.safetensors"))


class TestOthers:
    def test_trace(self, run_folder: Path, capsys: Capture) -> None:
        def layers(*options: str) -> dict[str, list[str]]:
            assert main(["trace", str(run_folder), "--images", "7", *options]) == 0
            lines = capsys.readouterr().out.splitlines()[2:-1]
            return {line.split()[1]: re.split(" {2,}", line.strip()) for line in lines}

        evaluated, trained = layers(), layers("--train")
        assert (evaluated["Conv2d"][1], evaluated["Conv2d"][4]) == ("(7, 32, 8, 8)", "(7, 64, 8, 8)")  # the second
        assert evaluated["Dropout"][2] == evaluated["Dropout"][5]  # the range: nothing is dropped, nor scaled
        assert trained["Dropout"][2] != trained["Dropout"][5]
        assert "--images must be at least 1" in refusal(capsys, "trace", str(run_folder), "--images", "0")

    def test_evaluate(self, run_folder: Path, capsys: Capture) -> None:
        assert main(["evaluate", str(run_folder)]) == 0
        said = capsys.readouterr().out
        assert "confusion matrix" in said
        rows = [[int(n) if n != "." else 0 for n in line.split()[1:]] for line in said.splitlines()[2:12]]
        right = sum(row[i] for i, row in enumerate(rows))
        assert sum(map(sum, rows)) == 270
        assert f"{100 * right / 270:.2f} %" in said.splitlines()[-1]

    def test_programs_lists_every_row(self, capsys: Capture) -> None:
        assert main(["programs"]) == 0
        said = capsys.readouterr().out
        assert {f"P{n}" for n in range(1, 19)} <= set(said.split())
        assert all(f"rawgrad train {name}" in said for name in PROGRAMS)
        assert not {program.row for program in PROGRAMS.values()} & OTHER_ROWS.keys()

    def test_doctor(self, capsys: Capture) -> None:
        assert main(["doctor"]) == 0
        said = capsys.readouterr().out
        assert re.search(r"numba +cpu: runs, the default", said)
        assert re.search(r"numpy +cpu: runs; ", said)
        assert re.search(r"cuda +cuda: does not run: .+", said)

    def test_data(self, tmp_path: Path, capsys: Capture) -> None:
        assert main(["data", "--out", str(tmp_path / "sheet.png")]) == 0
        assert (tmp_path / "sheet.png").read_bytes().startswith(b"\x89PNG")
        assert "1257" in capsys.readouterr().out.replace(",", "")

    def test_data_that_is_none(self, tmp_path: Path, capsys: Capture) -> None:
        assert "no data set" in refusal(capsys, "data", str(tmp_path))

    @pytest.mark.parametrize("name", command.COMMANDS)
    def test_help_explains(self, name: str, capsys: Capture) -> None:
        assert main([name, "--help"]) == 0
        said = capsys.readouterr().out
        assert f"usage: rawgrad {name}" in said
        assert "examples:" in said

    def test_a_wrong_command(self, capsys: Capture) -> None:
        assert "did you mean train?" in refusal(capsys, "tran")
        assert "`rawgrad train mnist-cnn` runs it" in refusal(capsys, "mnist-cnn")

    def test_as_a_process(self) -> None:
        done = subprocess.run(
            [sys.executable, "-m", "rawgrad", "--version"], capture_output=True, text=True, check=True
        )
        assert re.fullmatch(r"rawgrad \d+\.\d+\.\d+\n", done.stdout)
