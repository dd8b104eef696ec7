"""Programs and commands on device ``cuda``: on the simulated GPU, and where there is one on an NVIDIA GPU."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import rawgrad
from rawgrad.__main__ import main
from rawgrad.engine.data import MNIST, Digits, Subset, TensorDataset
from rawgrad.engine.train import loop as engine_loop
from rawgrad.engine.weights import load_weights
from rawgrad.kernels._errors import CheckpointError
from rawgrad.recipes import convnet, digits_cnn, five_layer, mnist_cnn, training
from rawgrad.recipes.options import Options
from rawgrad.recipes.reading import Reader, as_file
from rawgrad.recipes.training import Result, Task, load_data, train

Capture = pytest.CaptureFixture[str]
pytestmark = pytest.mark.backends("emulated", "cuda")
GENUINE = Path(os.environ.get("RAWGRAD_DATA", "no such folder"))

#: Batch norm, dropout and Adam with a schedule, on the digits, small.
TASK = Task(
    "small_cnn", {"channels": 2}, data="digits", optimizer="adam", lr=0.01, schedule="cosine", epochs=2, batch_size=4
)


def losses(result: Result) -> list[float]:
    return [step.loss for step in result.history.steps]


def quiet(out: Path, device: str, **settings: Any) -> Options:
    return Options(out, device=device, quiet=True, **settings)


def assert_same_losses(there: list[float], here: list[float]) -> None:
    """Each loss is a mean of logarithms that two float32 computations round differently: a few units apart."""
    np.testing.assert_allclose(there, here, rtol=16 * np.finfo(np.float32).eps)


class TestTraining:
    def test_digits_cnn_has_the_losses_of_the_cpu(self, backend: Any, tmp_path: Path) -> None:
        data = {name: Subset(split, range(2)) for name, split in Digits.splits().items()}

        def run(device: str, name: str) -> Result:
            return train(digits_cnn.TASK, quiet(tmp_path / name, device, batch_size=2, steps=3), data)

        there = run(backend.device.name, "there")
        assert_same_losses(losses(there), losses(run("cpu", "here")))
        assert len(losses(there)) == 3 and there.test.count == 2
        assert losses(run(backend.device.name, "again")) == losses(there)
        first, second = (load_weights(tmp_path / name / "weights.safetensors")[0] for name in ("there", "again"))
        assert {n: a.tobytes() for n, a in first.items()} == {n: a.tobytes() for n, a in second.items()}

    @pytest.mark.mnist
    @pytest.mark.skipif(not (GENUINE / "mnist").is_dir(), reason="RAWGRAD_DATA names no folder with mnist/")
    def test_mnist_cnn_has_the_losses_of_the_cpu(self, backend: Any, tmp_path: Path) -> None:
        sizes = {"train": 4, "validation": 1, "test": 1}
        data = {name: Subset(split, range(sizes[name])) for name, split in MNIST.splits(GENUINE).items()}

        def run(device: str, name: str) -> list[float]:
            return losses(train(mnist_cnn.TASK, quiet(tmp_path / name, device, batch_size=2, steps=3), data))

        there = run(backend.device.name, "there")
        assert_same_losses(there, run("cpu", "here"))
        assert there[-1] < there[0]
        assert run(backend.device.name, "again") == there

    def test_it_resumes_bit_for_bit(self, backend: Any, tmp_path: Path) -> None:
        def run(name: str, **settings: Any) -> list[float]:
            return losses(train(TASK, quiet(tmp_path / name, backend.device.name, limit=8, **settings)))

        whole = run("whole")
        run("broken", steps=3)  # stops within the second epoch
        assert run("broken", resume=True) == whole
        with pytest.raises(CheckpointError, match="cannot resume: the limit was 8"):
            train(TASK, quiet(tmp_path / "broken", backend.device.name, limit=9, resume=True))

    @pytest.mark.parametrize(
        ("optimizer", "loss"), list(zip(training.OPTIMIZERS, cycle(training.LOSSES), strict=False))
    )
    def test_every_optimizer_and_loss(self, backend: Any, optimizer: str, loss: str, tmp_path: Path) -> None:
        outputs = 1 if loss == "mse of the label" else 10
        task = Task("mlp", {"inputs": 64, "hidden": (5,), "outputs": outputs, "dropout": 0.2}, "digits", loss,
                    optimizer, 0.01, batch_size=6)  # fmt: skip
        there, here = (
            losses(train(task, quiet(tmp_path / device, device, limit=12, epochs=2)))
            for device in (backend.device.name, "cpu")
        )
        assert_same_losses(there, here)


#: P5 (with each of its optimizers), all of P9 (sigmoid, ReLU, a decaying learning rate, dropout) and both sizes of
#: P10, the larger one with dropout: the networks in their full sizes, on few and small batches.
PROGRAMS = {
    "P5": mnist_cnn.TASK,
    "P5 SGD": mnist_cnn.SGD,
    **{f"P9 {name}": task for name, task in five_layer.LADDER.items()},
    **{f"P10 {name}": task for name, task in convnet.SIZES.items()},
}


class TestCapture:
    @pytest.fixture
    def data(self) -> dict[str, TensorDataset]:
        """Pictures of noise, as large as MNIST's; an odd one is left for the end of each epoch."""
        draw = np.random.default_rng(5)
        sizes = {"train": 5, "validation": 1, "test": 1}
        return {
            name: TensorDataset(draw.random((n, 1, 28, 28), dtype=np.float32), draw.integers(0, 10, n))
            for name, n in sizes.items()
        }

    @pytest.mark.parametrize("name", PROGRAMS)
    def test_replayed_steps_have_the_losses_of_the_steps(
        self, backend: Any, name: str, data: dict[str, TensorDataset], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        replays = []
        replay = rawgrad.cuda.Graph.replay
        monkeypatch.setattr(rawgrad.cuda.Graph, "replay", lambda graph: (replays.append(graph), replay(graph)))
        monkeypatch.setattr(engine_loop, "graphed", partial(engine_loop.graphed, warmup=1))  # the emulator is slow

        def run(name: str, capture: bool, task: Task) -> list[float]:
            options = quiet(tmp_path / name, backend.device.name, batch_size=2, steps=4, capture=capture)
            return losses(train(replace(task, epochs=2), options, data))

        there = run("captured", True, PROGRAMS[name])
        assert len(replays) == 2 and len(set(replays)) == 1  # the second step and the fourth; the third batch is odd
        assert there == run("not captured", False, PROGRAMS[name]) and len(replays) == 2
        first, second = (load_weights(tmp_path / n / "weights.safetensors")[0] for n in ("captured", "not captured"))
        assert {n: a.tobytes() for n, a in first.items()} == {n: a.tobytes() for n, a in second.items()}


def of(backend: Any) -> list[str]:
    return ["--backend", backend.name]


_runs: dict[str, Path] = {}


@pytest.fixture
def run_folder(backend: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `rawgrad train` leaves after two steps on the device; one run for all tests."""
    if backend.name not in _runs:
        out = tmp_path_factory.mktemp("run")
        options = ["--steps", "2", "--batch-size", "2", "--limit", "4", "--out", str(out), "--quiet"]
        assert main(["train", *of(backend), *options]) == 0
        _runs[backend.name] = out
    return _runs[backend.name]


class TestCommands:
    def test_train(self, run_folder: Path, tmp_path: Path) -> None:
        assert json.loads((run_folder / "result.json").read_text())["test"]["count"] == 4
        expected = train(digits_cnn.TASK, quiet(tmp_path, "cpu", steps=2, batch_size=2, limit=4))
        rows = (run_folder / "steps.csv").read_text().splitlines()[1:]
        assert_same_losses([float(row.split(",")[2]) for row in rows], losses(expected))

    def test_evaluate_and_predict(self, backend: Any, run_folder: Path, tmp_path: Path, capsys: Capture) -> None:
        capsys.readouterr()

        def said(*arguments: str) -> str:
            assert main(arguments) == 0
            return capsys.readouterr().out

        evaluate = ("evaluate", str(run_folder), "--limit", "3")
        assert said(*evaluate, *of(backend)) == said(*evaluate)
        pictures = ("evaluate", str(run_folder), "--pictures", "1")
        assert said(*pictures, *of(backend)) == said(*pictures)
        picture = tmp_path / "digit.png"
        pixels = 255 * Digits("test").images[0, 0]
        picture.write_bytes(as_file(pixels.astype(np.uint8)).getvalue())
        predict = ("predict", str(picture), "--weights", str(run_folder))
        assert said(*predict, *of(backend)) == said(*predict)

    def test_the_network_is_on_the_device(self, backend: Any, run_folder: Path) -> None:
        reader = Reader(run_folder, backend.device.name)
        assert {p.device for p in reader.model.parameters()} == {backend.device.name}
        images = Digits("test").images[:3]
        np.testing.assert_allclose(reader.outputs(images), Reader(run_folder).outputs(images), rtol=1e-4, atol=1e-5)

    def test_doctor(self, backend: Any, capsys: Capture) -> None:
        assert main(["doctor", *of(backend)]) == 0
        said = capsys.readouterr().out
        lines = [" ".join(line.split()) for line in said.splitlines()]
        assert f"cuda available: {backend.device.description}" in lines
        (line,) = [line for line in lines if "chosen;" in line]
        assert line.startswith(f"{backend.name} cuda: runs, ")

    def test_the_variable_chooses_for_a_process(self, backend: Any, run_folder: Path, tmp_path: Path) -> None:
        variables = {**os.environ, "RAWGRAD_BACKEND": backend.name, "RAWGRAD_DEBUG": "1"}

        def ran(*arguments: str) -> set[str]:
            """The backends whose kernels the process says it ran."""
            done = subprocess.run(
                [sys.executable, "-m", "rawgrad", *arguments], env=variables, capture_output=True, text=True, check=True
            )
            return {line.split()[1] for line in done.stderr.splitlines() if line.startswith("conv2d_forward ")}

        out = str(tmp_path / "out")
        assert ran("train", "--steps", "1", "--limit", "1", "--out", out) == {backend.name}
        assert ran("evaluate", str(run_folder), "--limit", "1") == {backend.name}


def refusal(capsys: Capture, *arguments: str) -> str:
    assert main(arguments) == 2
    said = capsys.readouterr()
    assert said.out == "" and said.err.count("\n") == 1 and "Traceback" not in said.err
    return said.err


@pytest.mark.parametrize("arguments", [("train",), ("evaluate",), ("predict", "x.png")])
class TestRefusals:
    def test_a_backend_of_another_device(self, backend: Any, arguments: tuple[str, ...], capsys: Capture) -> None:
        said = refusal(capsys, *arguments, *of(backend), "--device", "cpu")
        assert f"backend {backend.name!r} computes on device 'cuda'; got --device cpu" in said

    @pytest.mark.parametrize("number", ["0", "-3"])
    def test_a_limit_below_one(self, backend: Any, arguments: tuple[str, ...], number: str, capsys: Capture) -> None:
        if arguments[0] != "predict":
            assert "--limit must be at least 1" in refusal(capsys, *arguments, "--limit", number)


class TestProcesses:
    """What only a process of its own can meet; its last word is one message, without a traceback."""

    @pytest.fixture(autouse=True)
    def emulated_alone(self, backend: Any) -> None:
        if backend.name != "emulated":
            pytest.skip("about the simulated GPU")

    @staticmethod
    def said(place: Path, **variables: str) -> str:
        """What `rawgrad train` of the package in ``place`` says on stderr when it is refused."""
        options = ["--backend", "emulated", "--steps", "1", "--limit", "1", "--out", str(place / "out"), "--quiet"]
        done = subprocess.run(
            [sys.executable, "-m", "rawgrad", "train", *options],
            env={**os.environ, "PYTHONPATH": os.pathsep.join([str(place), *sys.path]), **variables},
            cwd=place, capture_output=True, text=True,
        )  # fmt: skip
        assert (done.returncode, done.stdout) == (2, ""), done.stderr
        assert done.stderr.startswith("rawgrad: error: ") and "Traceback" not in done.stderr
        return done.stderr

    def test_out_of_memory(self, tmp_path: Path) -> None:
        said = self.said(tmp_path, RAWGRAD_EMULATED_MEMORY="100000")
        assert re.search(
            r"the simulated GPU is out of memory: asked for [\d,]+ bytes; [\d,]+ of 100,000 are in use in \d+ alloc",
            said,
        )
        assert said.count("\n") == 1
        assert "must be a number of bytes; got 'lots'" in self.said(tmp_path, RAWGRAD_EMULATED_MEMORY="lots")

    def test_no_compiler(self, tmp_path: Path) -> None:
        said = self.said(tmp_path, CXX="/nonexistent")
        assert said.startswith("rawgrad: error: backend 'emulated' cannot run here: it needs a C++ compiler: /nonexist")
        assert said.count("\n") == 1

    def test_a_kernel_with_a_syntax_error(self, tmp_path: Path) -> None:
        package = tmp_path / "rawgrad"
        ignored = shutil.ignore_patterns(".*", "__pycache__", "tests", "docs", "results", "runs")
        shutil.copytree(Path(rawgrad.__file__).parent, package, ignore=ignored)
        source = package / "kernels" / "activation" / "activation.cu"
        lines = source.read_text().splitlines()
        number = next(i for i, line in enumerate(lines) if line.startswith("  ") and line.endswith(";"))
        lines[number] = "  T broken = 1 +;"
        source.write_text("\n".join(lines))
        said = self.said(tmp_path)
        assert f"{source} does not compile:" in said
        assert f"activation.cu:{number + 1}:" in said and "expected primary-expression before" in said
        assert "T broken = 1 +;" in said


class TestSlowness:
    """Nobody should wait for days without having been told."""

    @pytest.fixture(autouse=True)
    def emulated_alone(self, backend: Any) -> None:
        if backend.name != "emulated":
            pytest.skip("a GPU is not slow")

    @pytest.mark.parametrize(
        ("options", "said"),
        [
            # Three passes for each training image, and one for each that is evaluated: 20 epochs are 75,420 + 5,670.
            ({}, "training on 25,140 images and evaluating 5,670 may take 23 hours; --limit N takes only the first N"),
            # 2 batches of the first epoch: 192 + 540.
            ({"steps": 2}, "training on 64 images and evaluating 540 may take 12 minutes; --limit"),
            # The first epoch, of 40 batches, and 10 of the second: 4,731 + 810.
            ({"steps": 50}, "training on 1,577 images and evaluating 810 may take 92 minutes; --limit"),
            ({"limit": 20, "epochs": 2}, "training on 40 images and evaluating 60 may take 3 minutes\n"),
            ({"limit": 10, "epochs": 20, "steps": 3}, "training on 30 images and evaluating 40 may take 2 minutes\n"),
            ({"limit": 10, "epochs": 20, "steps": 1}, None),
        ],
    )
    def test_the_expected_time(
        self,
        options: dict[str, Any],
        said: str | None,
        tmp_path: Path,
        capsys: Capture,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        def stop(*arguments: Any, **others: Any) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr(training, "seconds_per_image", lambda *arguments: 1.0)
        monkeypatch.setattr(training, "fit", stop)
        with pytest.raises(KeyboardInterrupt):
            train(digits_cnn.TASK, quiet(tmp_path, "cuda", **options))
        found = capsys.readouterr().err
        assert (said in found) if said else not found

    def test_the_time_of_an_image_is_measured(self, tmp_path: Path) -> None:
        model = training.build("mlp", {"inputs": 64}).to("cuda").train()
        assert 0 < training.seconds_per_image(model, Digits("test"), "cuda") < 60
        assert model.training

    def test_nothing_is_said_on_the_cpu(self, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(training, "seconds_per_image", lambda *arguments: 1e9)
        train(Task("mlp", {"inputs": 64}, "digits"), quiet(tmp_path, "cpu", steps=1))
        assert capsys.readouterr().err == ""


def test_the_limit_takes_the_first_images(backend: Any, tmp_path: Path) -> None:
    splits = load_data(TASK, quiet(tmp_path, "cpu", limit=5))
    whole = load_data(TASK, quiet(tmp_path, "cpu"))
    for name, split in splits.items():
        images, labels = training.arrays_of(split)
        np.testing.assert_array_equal(images, whole[name].images[:5])
        np.testing.assert_array_equal(labels, whole[name].labels[:5])
    assert {len(split) for split in load_data(TASK, quiet(tmp_path, "cpu", limit=300)).values()} == {270, 300}
