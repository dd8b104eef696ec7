"""Runs on the bundled digits: records, saving, resuming to the bit, refusing another task's state."""

from __future__ import annotations

import csv
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from rawgrad.engine.checkpoint import Checkpoints
from rawgrad.engine.weights import load_weights, pack
from rawgrad.kernels._dispatch import backend
from rawgrad.kernels._errors import ArgumentError, CheckpointError, DataError
from rawgrad.recipes import curves, repeated
from rawgrad.recipes.networks import build
from rawgrad.recipes.options import Options
from rawgrad.recipes.training import LOSSES, OPTIMIZERS, SCHEDULES, Result, Task, load_model, train

Capture = pytest.CaptureFixture[str]
#: Dropout and batch norm, so that the random state and the buffers must come back too.
TASK = Task("small_cnn", {"channels": 2}, data="digits", optimizer="adam", lr=0.01, epochs=3, batch_size=300)


def quiet(out: Path, **settings: object) -> Options:
    return Options(out, quiet=True, **settings)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Result:
    """Three epochs without a break."""
    return train(TASK, quiet(tmp_path_factory.mktemp("whole")))


def losses(result: Result) -> list[float]:
    return [step.loss for step in result.history.steps]


class TestOptions:
    def test_accumulated_batches_are_larger_ones(self, tmp_path: Path) -> None:
        """Without batch norm and dropout the steps are those of twice the batch, and so is the schedule."""
        task = replace(TASK, network="mlp", arguments={"inputs": 64}, schedule="cosine", epochs=2)
        parts = train(replace(task, batch_size=150), quiet(tmp_path / "parts", accumulate=2))
        joined = train(task, quiet(tmp_path / "joined"))
        np.testing.assert_allclose(losses(parts), losses(joined), rtol=1e-5)
        np.testing.assert_allclose(*([s.lr for s in run.history.steps] for run in (parts, joined)))

    def test_patience(self, tmp_path: Path, capsys: Capture) -> None:
        task = replace(TASK, network="mlp", arguments={"inputs": 64}, lr=0.0, epochs=9)
        result = train(task, Options(tmp_path, patience=2))
        assert len(result.history.epochs) == 3
        assert "ended early: validation_loss has not improved on" in capsys.readouterr().out

    @pytest.mark.parametrize("change", [{"accumulate": 2}, {"clip_norm": 1.0}, {"precision": "tf32"}])
    def test_a_resumed_run_must_have_the_same(self, change: dict[str, object], tmp_path: Path) -> None:
        train(TASK, quiet(tmp_path, epochs=1, limit=20))
        with pytest.raises(CheckpointError, match=f"cannot resume: the {next(iter(change))} was"):
            train(TASK, quiet(tmp_path, resume=True, limit=20, **change))

    @pytest.mark.parametrize("wrong", [{"accumulate": 0}, {"patience": 0}, {"clip_norm": 0.0}])
    def test_wrong_ones(self, wrong: dict[str, object], tmp_path: Path) -> None:
        with pytest.raises(ArgumentError, match=f"--{next(iter(wrong)).replace('_', '-')} must be"):
            quiet(tmp_path, **wrong)


class TestRecords:
    def test_every_step_and_epoch_is_written(self, whole: Result) -> None:
        out = whole.options.out
        steps = list(csv.DictReader((out / "steps.csv").read_text().splitlines()))
        assert len(steps) == 15 == len(whole.history.steps)  # 1,257 images are 5 batches of 300, the last of 57
        np.testing.assert_allclose([float(row["loss"]) for row in steps], losses(whole), rtol=1e-6)
        assert [row["epoch"] for row in csv.DictReader((out / "epochs.csv").read_text().splitlines())] == [
            "0",
            "1",
            "2",
        ]
        assert json.loads((out / "result.json").read_text())["test"]["count"] == 270
        assert (out / "curves.png").read_bytes().startswith(b"\x89PNG")

    def test_the_weights_explain_themselves(self, whole: Result) -> None:
        model, info = load_model(whole.options.out)
        assert (info.architecture, info.input_size, info.classes) == ("small_cnn", (1, 8, 8), list("0123456789"))
        assert info.normalization["frame"]["size"] == 8
        assert info.extra["test_accuracy"] == whole.test.accuracy
        assert not model.training

    def test_it_learns(self, whole: Result) -> None:
        assert losses(whole)[-1] < 0.8 * losses(whole)[0]
        assert f"{100 * whole.test.accuracy:.2f} %" in str(whole)


class TestResume:
    @pytest.mark.parametrize("schedule", [None, "decay to a floor"])
    def test_it_goes_on_bit_for_bit(self, schedule: str | None, tmp_path: Path) -> None:
        """After an epoch, and then after a step in the middle of the next one."""
        task = replace(TASK, schedule=schedule)
        whole, broken = tmp_path / "whole", tmp_path / "broken"
        expected = train(task, quiet(whole))
        train(replace(task, epochs=1), quiet(broken))
        train(task, quiet(broken, resume=True, steps=7))
        resumed = train(task, quiet(broken, resume=True))
        assert losses(resumed) == losses(expected)
        assert [e.validation_loss for e in resumed.history.epochs] == [
            e.validation_loss for e in expected.history.epochs
        ]
        assert resumed.test.loss == expected.test.loss
        assert _everything(broken) == _everything(whole)
        assert (broken / "steps.csv").read_text() == (whole / "steps.csv").read_text()

    def test_an_epoch_left_in_its_middle_is_gone_on_with(self, whole: Result, tmp_path: Path) -> None:
        train(TASK, quiet(tmp_path, steps=7))
        with Checkpoints(tmp_path / "checkpoints") as checkpoints:
            last = checkpoints.load()
        assert last is not None
        assert [last.state["progress"][name] for name in ("step", "epoch", "batch")] == [7, 1, 2]
        result = train(TASK, quiet(tmp_path, resume=True))
        assert losses(result) == losses(whole)
        assert [epoch.epoch for epoch in result.history.epochs] == [0, 1, 2]

    def test_nothing_to_resume_starts_afresh(self, whole: Result, tmp_path: Path) -> None:
        assert losses(train(TASK, quiet(tmp_path / "new", resume=True))) == losses(whole)

    def test_another_run_in_the_folder_is_replaced(self, whole: Result, tmp_path: Path) -> None:
        train(replace(TASK, lr=0.5), quiet(tmp_path))
        train(TASK, quiet(tmp_path, steps=7))
        assert losses(train(TASK, quiet(tmp_path, resume=True))) == losses(whole)

    @pytest.mark.parametrize(
        ("change", "named"), [({"lr": 0.5}, "lr was 0.01 and is now 0.5"), ({"batch_size": 10}, "batch_size")]
    )
    def test_another_task_is_refused(self, change: dict[str, object], named: str, tmp_path: Path) -> None:
        train(replace(TASK, epochs=1), quiet(tmp_path))
        before = _everything(tmp_path)
        with pytest.raises(CheckpointError, match=named):
            train(replace(TASK, **change), quiet(tmp_path, resume=True))  # type: ignore[arg-type]
        assert _everything(tmp_path) == before

    def test_another_seed_is_refused(self, tmp_path: Path) -> None:
        train(replace(TASK, epochs=1), quiet(tmp_path))
        with pytest.raises(CheckpointError, match="seed was 0"):
            train(TASK, quiet(tmp_path, resume=True, seed=1))

    def test_a_damaged_state_is_passed_over(self, whole: Result, tmp_path: Path, capsys: Capture) -> None:
        train(TASK, quiet(tmp_path, steps=7))
        first, second = sorted((tmp_path / "checkpoints").glob("*.safetensors"))
        content = bytearray(second.read_bytes())
        content[len(content) // 2] ^= 1
        second.write_bytes(content)
        assert losses(train(TASK, quiet(tmp_path, resume=True))) == losses(whole)
        said = capsys.readouterr().err
        assert f"{second}: damaged: tensor state.state." in said and f"going back to {first.name}" in said

    def test_another_backend_is_told(self, tmp_path: Path, capsys: Capture) -> None:
        with backend("numpy"):
            train(TASK, quiet(tmp_path, steps=1, limit=10))
        train(TASK, quiet(tmp_path, steps=2, limit=10, resume=True))
        assert "began on backend 'numpy' and is now on 'numba': " in capsys.readouterr().err

    def test_a_state_saved_before_there_were_checkpoints(self, tmp_path: Path) -> None:
        """Three steps of it, and three more: as if they were of one run.

        They were computed on another machine, so that the last bits may differ.
        """
        task = Task(
            "mlp", {"inputs": 64, "hidden": [6], "activation": "relu", "dropout": 0.2}, "digits", optimizer="adam",
            schedule="decay to a floor", epochs=2, batch_size=10,
        )  # fmt: skip
        expected = train(task, quiet(tmp_path / "whole", limit=25))
        (tmp_path / "old").mkdir()
        shutil.copy(Path(__file__).parents[1] / "engine" / "first-format.safetensors", tmp_path / "old" / OLD)
        resumed = train(task, quiet(tmp_path / "old", limit=25, resume=True))
        assert [step.lr for step in resumed.history.steps] == [step.lr for step in expected.history.steps]
        np.testing.assert_allclose(losses(resumed), losses(expected), rtol=1e-5)
        with (
            Checkpoints(tmp_path / "old" / "checkpoints") as new,
            Checkpoints(tmp_path / "whole" / "checkpoints") as whole,
        ):
            found, wanted = new.load(), whole.load()
        assert found is not None and wanted is not None
        for name in ("loader", "random", "schedule"):
            assert found.state[name] == wanted.state[name]

    def test_one_process_has_the_folder(self, tmp_path: Path) -> None:
        with (
            Checkpoints(tmp_path / "checkpoints"),
            pytest.raises(CheckpointError, match=f"checkpoints: in use by process {os.getpid()} on .* since "),
        ):
            train(TASK, quiet(tmp_path))


OLD = "training.safetensors"


def _everything(run: Path) -> dict[str, bytes]:
    """All arrays, numbers and settings of the newest checkpoint and of the weights; but for what tells the time."""
    with Checkpoints(run / "checkpoints") as checkpoints:
        last = checkpoints.load()
    assert last is not None
    last.state["progress"].pop("seconds")
    last.state["progress"]["epochs"] = last.state["progress"]["epochs"][:, :5]  # then seconds, and images in one
    last.settings["task"].pop("epochs")
    packed = pack([last.settings, last.state, last.score, load_weights(run / "weights.safetensors")[0]])
    return {"skeleton": repr(packed.skeleton).encode(), **{n: a.tobytes() for n, a in packed.arrays.items()}}


class TestSettings:
    def test_a_rate_of_the_users_own_stays_constant(self, tmp_path: Path) -> None:
        result = train(replace(TASK, schedule="cosine"), quiet(tmp_path, lr=0.003, epochs=1))
        assert {step.lr for step in result.history.steps} == {0.003}

    def test_an_unknown_optimizer_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(ArgumentError, match=r"sgd, momentum.*'adamax'"):
            train(TASK, quiet(tmp_path, optimizer="adamax"))

    @pytest.mark.parametrize("name", ["epochs", "steps", "batch_size", "seeds"])
    def test_a_number_below_one_is_refused(self, name: str, tmp_path: Path) -> None:
        with pytest.raises(ArgumentError, match=f"--{name.replace('_', '-')} must be at least 1; got 0"):
            quiet(tmp_path, **{name: 0})

    @pytest.mark.parametrize("optimizer", OPTIMIZERS)
    def test_each_optimizer_lowers_the_loss(self, optimizer: str, tmp_path: Path) -> None:
        task = Task("mlp", {"inputs": 64}, data="digits", lr=0.05, batch_size=100, epochs=3)
        result = train(task, quiet(tmp_path, optimizer=optimizer))
        assert result.history.epochs[-1].loss < 0.9 * result.history.epochs[0].loss

    @pytest.mark.parametrize("loss", LOSSES)
    def test_each_loss_can_be_trained(self, loss: str, tmp_path: Path) -> None:
        outputs = 1 if loss == "mse of the label" else 10
        task = Task("mlp", {"inputs": 64, "outputs": outputs}, "digits", loss, lr=0.002, batch_size=100, epochs=2)
        result = train(task, quiet(tmp_path))
        assert result.history.epochs[1].loss < result.history.epochs[0].loss

    def test_the_schedules_end_where_they_should(self) -> None:
        model = build("mlp", {"inputs": 4})
        for name, last in (("cosine", 0.0), ("decay to a floor", 1e-4 + 3e-3 * np.exp(-0.05))):
            optimizer = OPTIMIZERS["sgd"](model.parameters(), 0.0031)
            schedule = SCHEDULES[name](optimizer, 100)
            for _ in range(100):
                schedule.step()
            assert optimizer.param_groups[0]["lr"] == pytest.approx(last, abs=1e-12)

    def test_missing_data_say_what_to_do(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match="train-images"):
            train(Task("cnn"), quiet(tmp_path / "out", data_dir=tmp_path))


def test_an_unknown_network_is_refused() -> None:
    with pytest.raises(CheckpointError, match="network 'vgg' is unknown"):
        build("vgg", {})
    with pytest.raises(CheckpointError, match="does not take"):
        build("cnn", {"depth": 3})


def test_bands_over_seeds(tmp_path: Path) -> None:
    named = (curves.Named("start", 0, 2, 2.3), curves.Named("end", -2, None, 99.0))
    found = repeated.run(replace(TASK, epochs=1), quiet(tmp_path, seeds=2), named, "two seeds")
    assert isinstance(found, repeated.Repeated)
    starts = [losses(result)[:2] for result in found.results]
    assert starts[0] != starts[1]
    assert (found.bands[0].low, found.bands[0].high) == (min(map(min, starts)), max(map(max, starts)))
    assert not found.bands[1].holds
    assert json.loads((tmp_path / "bands.json").read_text())["bands"][1]["holds"] is False
