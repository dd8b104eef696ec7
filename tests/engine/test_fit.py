"""``fit`` that is stopped, goes on, and is refused: what is saved, and when."""

from __future__ import annotations

import os
import signal
import threading

import numpy as np
import pytest
from _runs import BATCH, EPOCHS, SAMPLES, STEPS, How, Pictures, bits, network, run

import rawgrad as rg
from rawgrad import functional as F
from rawgrad import optim
from rawgrad.engine import checkpoint
from rawgrad.engine.checkpoint import Checkpoint, Checkpoints
from rawgrad.engine.metrics import accuracy
from rawgrad.engine.stopping import Interrupted, Stopping, Terminated
from rawgrad.engine.train import Epoch, Progress, Step, fit
from rawgrad.kernels._errors import ArgumentError, CheckpointError

BATCHES = STEPS // EPOCHS


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    run(folder)
    return bits(folder)


def sends(*signals, at):
    """A hook that sends ``signals`` when step ``at`` is done."""

    def on_step(step):
        if step.step + 1 == at:
            for number in signals:
                os.kill(os.getpid(), number)

    return on_step


def last(folder):
    with Checkpoints(folder) as checkpoints:
        return checkpoints.load()


@pytest.mark.usefixtures("heeded")
class TestSignals:
    @pytest.mark.parametrize(("number", "error"), [(signal.SIGINT, Interrupted), (signal.SIGTERM, Terminated)])
    @pytest.mark.parametrize("at", [1, BATCHES, BATCHES + 3])
    def test_the_step_is_finished_and_saved(self, number, error, at, whole, tmp_path, capfd):
        before = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
        with pytest.raises(error, match=f"step {at} is saved in {tmp_path}") as caught:
            run(tmp_path, on_step=sends(number, at=at))
        assert error is Interrupted or caught.value.code == 143
        assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == before
        assert "finishing this step and saving it" in capfd.readouterr().err
        assert last(tmp_path).step == at
        run(tmp_path, resume=True)
        assert bits(tmp_path) == whole

    def test_validation_is_left_early_and_begun_again(self, whole, tmp_path):
        seen = []

        def score(predictions, targets):
            seen.append(len(targets))
            if len(seen) == BATCHES + 1:  # the first batch of the validation set
                os.kill(os.getpid(), signal.SIGINT)
            return accuracy(predictions, targets)

        with pytest.raises(Interrupted, match=f"step {BATCHES} is saved"):
            run(tmp_path, score=score)
        assert len(seen) == BATCHES + 1
        at = last(tmp_path).state["progress"]
        assert (at["epoch"], at["batch"], len(at["epochs"])) == (0, BATCHES, 0)
        run(tmp_path, resume=True)
        assert bits(tmp_path) == whole

    def test_the_second_time_is_at_once(self, tmp_path):
        seen = []

        def score(predictions, targets):
            seen.append(1)
            if len(seen) == 3:
                os.kill(os.getpid(), signal.SIGINT)
                os.kill(os.getpid(), signal.SIGINT)
            return 0.0

        with pytest.raises(Interrupted) as caught:
            run(tmp_path, score=score)
        assert str(caught.value) == "" and last(tmp_path) is None

    def test_without_a_folder_signals_are_left_alone(self):
        rg.manual_seed(0)
        model, seen = network(), []
        fit(
            model, batches(), F.cross_entropy, optim.SGD(model.parameters(), 0.1), epochs=1, progress=False,
            on_step=lambda step: seen.append(signal.getsignal(signal.SIGINT)),
        )  # fmt: skip
        assert set(seen) == {signal.default_int_handler}

    def test_a_signal_that_is_ignored_stays_so(self):
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            with Stopping() as stopping:
                os.kill(os.getpid(), signal.SIGINT)
                assert stopping.signal is None
            assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
        finally:
            signal.signal(signal.SIGINT, before)

    def test_another_thread_has_no_signals(self, whole, tmp_path):
        thread = threading.Thread(target=run, args=(tmp_path,))
        thread.start()
        thread.join(60)
        assert bits(tmp_path) == whole


def batches():
    images, labels = Pictures().images, Pictures().labels
    return [(rg.tensor(images[i : i + BATCH]), rg.tensor(labels[i : i + BATCH])) for i in range(0, SAMPLES, BATCH)]


class TestSaving:
    def test_the_best_is_by_validation_accuracy(self, tmp_path):
        scores = iter([0.5] * BATCHES + [0.9, 0.7] + [0.6] * BATCHES + [0.3, 0.4] + [0.7] * BATCHES + [0.2, 0.2])
        run(tmp_path, score=lambda p, t: next(scores))
        with Checkpoints(tmp_path) as checkpoints:
            best = checkpoints.best()
        assert best.step == BATCHES and best.score == pytest.approx(0.8)

    def test_every_so_many_steps(self, tmp_path):
        behind = []

        def on_step(step):
            saved = [int(path.stem.rpartition("-")[2]) for path in tmp_path.glob("*.safetensors")]
            behind.append(step.step + 1 - max(saved, default=0))

        run(tmp_path, save_every=3, on_step=on_step)
        assert max(behind) <= 3

    def test_the_writers_error_ends_the_training(self, tmp_path, monkeypatch):
        def full(*arguments):
            raise OSError(28, "No space left on device")

        steps = []
        run(tmp_path, epochs=1)
        monkeypatch.setattr(checkpoint, "write_packed", full)
        with pytest.raises(CheckpointError, match="could not be written: No space left on device; the last one there"):
            run(tmp_path, resume=True, save_every=2, on_step=steps.append)
        assert len(steps) < STEPS - BATCHES
        monkeypatch.undo()
        assert last(tmp_path).step == BATCHES

    def test_a_list_of_batches_goes_on_in_its_middle(self, tmp_path):
        def trained(folder, resume=False, **options):
            rg.manual_seed(0)
            model = network()
            with Checkpoints(folder) as checkpoints:
                fit(
                    model, batches(), F.cross_entropy, optim.SGD(model.parameters(), 0.1, momentum=0.9), epochs=2,
                    progress=False, checkpoints=checkpoints, resume=checkpoints.load() if resume else None, **options,
                )  # fmt: skip
            return bits(folder)

        expected = trained(tmp_path / "whole")
        trained(tmp_path / "broken", max_steps=3)
        assert trained(tmp_path / "broken", resume=True) == expected

    def test_what_cannot_be_saved(self, tmp_path):
        model = network()
        arguments = F.cross_entropy, optim.SGD(model.parameters(), 0.1)
        with pytest.raises(ArgumentError, match="save_every must come with checkpoints"):
            fit(model, batches(), *arguments, epochs=1, save_every=3)

        class Odd:
            def __len__(self):
                return 1

        with Checkpoints(tmp_path) as checkpoints, pytest.raises(ArgumentError, match=r"must have state_dict\(\), or"):
            fit(model, Odd(), *arguments, epochs=1, checkpoints=checkpoints)


class TestResuming:
    def test_other_data_are_refused(self, tmp_path):
        run(tmp_path, max_steps=3)
        with pytest.raises(CheckpointError, match="its loader does not fit: DataLoader: samples must be 30 as in this"):
            run(tmp_path, resume=True, samples=30)
        assert last(tmp_path).step == 3

    def test_readers_may_come_and_go(self, whole, tmp_path):
        run(tmp_path, How(workers=2), max_steps=4)
        run(tmp_path, How(), resume=True, max_steps=9)
        run(tmp_path, How(workers=1, processes=True), resume=True)
        assert bits(tmp_path) == whole

    def test_where_an_epoch_ends_for_want_of_steps(self, whole, tmp_path):
        history = run(tmp_path, max_steps=BATCHES)
        assert len(history.epochs) == 1 and last(tmp_path).score is not None
        run(tmp_path, resume=True)
        assert bits(tmp_path) == whole

    def test_a_shorter_loader(self, tmp_path):
        at = Progress()
        for step in range(5):
            at.add(Step(step, 0, 1.0, 0.5, 0.1), 2)
        model = network()
        optimizer = optim.SGD(model.parameters(), 0.1)
        parts = {"model": model, "optimizer": optimizer, "random": rg.manual_seed(0), "progress": at}
        found = Checkpoint(tmp_path, 5, None, {}, checkpoint.states_of(parts))
        with pytest.raises(CheckpointError, match="is at batch 5; this loader has 3"):
            fit(model, batches()[:3], F.cross_entropy, optimizer, epochs=2, resume=found)

    @pytest.mark.parametrize(
        ("change", "said"),
        [
            ({"step": "3"}, "must be integers, not negative; got {'step': '3'"),
            ({"batch": -1}, "must be integers, not negative"),
            ({"epoch": True}, "must be integers, not negative"),
            ({"step": 4}, "must have as many records; there are 3 of steps and 1 of epochs"),
            ({"batch": 9}, "the epoch under way has 0 records of steps"),
            ({"epoch": 0, "epochs": np.zeros((0, 8))}, "the epoch under way has 3 records of steps"),
            ({"losses": [1.0]}, "not the progress of a training"),
            ({"steps": np.zeros((3, 4))}, r"a table of Step must be \(N, 5\); got \(3, 4\)"),
            ({"seconds": None}, "not the progress of a training"),
        ],
    )
    def test_progress_that_makes_no_sense(self, change, said):
        at = Progress()
        for step in range(3):
            at.add(Step(step, 0, 1.5, float("nan"), 0.1), 2)
        at.history.epochs.append(Epoch(0, 1.0, 0.5, 1.0, 0.5, 2.0, 3.0))
        at.epoch = 1
        at.begin_epoch()
        state = at.state_dict()
        other = Progress()
        other.load_state_dict(state)
        assert repr(other.history) == repr(at.history) and other.step == 3
        np.testing.assert_equal(other.state_dict(), state)
        with pytest.raises(CheckpointError, match=said):
            Progress().load_state_dict({**state, **change})

    def test_the_table_of_a_history_that_was_replaced_is_its_own(self):
        """Rows that were converted once are not converted again; those of another history are."""
        at, other = Progress(), Progress()
        for step in range(3):
            at.add(Step(step, 0, 1.0, 0.5, 0.1), 2)
            other.add(Step(step, 0, 2.0, 0.5, 0.1), 2)
        assert at.state_dict()["steps"][:, 2].tolist() == [1.0] * 3
        at.load_state_dict(other.state_dict())
        assert at.state_dict()["steps"][:, 2].tolist() == [2.0] * 3
        at.add(Step(3, 0, 3.0, 0.5, 0.1), 2)
        assert at.state_dict()["steps"][:, 2].tolist() == [2.0] * 3 + [3.0]
