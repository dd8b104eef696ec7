"""A folder of checkpoints: what is kept, what is passed over, who holds it, and what an error leaves."""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import sys
import threading
from contextlib import contextmanager

import numpy as np
import pytest

import rawgrad as rg
from rawgrad import nn, optim
from rawgrad.autograd.random import Generator
from rawgrad.engine import checkpoint, weights
from rawgrad.engine.checkpoint import Checkpoints, Interval, restore, states_of
from rawgrad.engine.weights import pack, save_state
from rawgrad.kernels._errors import ArgumentError, CheckpointError


def filled(folder, scores=(0.5, 0.9, 0.7, 0.6, 0.8), **options):
    """A folder with a save for each score, of steps 10, 20, …; gives the files that are left."""
    with Checkpoints(folder, **options) as checkpoints:
        for number, score in enumerate(scores, 1):
            checkpoints.save({"w": np.full(3, number)}, step=10 * number, score=score)
    return sorted(folder.glob("*.safetensors"))


def steps(folder):
    return sorted(int(path.stem.rpartition("-")[2]) for path in folder.glob("*.safetensors"))


def damage(path):
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


class TestKeeping:
    def test_the_last_and_the_best_are_kept(self, tmp_path):
        filled(tmp_path / "a")
        assert steps(tmp_path / "a") == [20, 30, 40, 50]
        filled(tmp_path / "b", keep=1, keep_best=2)
        assert steps(tmp_path / "b") == [20, 50]  # 0.9, and 0.8 is the last too
        filled(tmp_path / "c", keep=2, keep_best=0)
        assert steps(tmp_path / "c") == [40, 50]
        filled(tmp_path / "d", (0.3, 0.2, 0.1), keep=1, keep_best=9)  # more than there are
        assert steps(tmp_path / "d") == [10, 20, 30]

    def test_what_has_no_score_is_never_the_best_and_of_equals_the_first_is(self, tmp_path):
        filled(tmp_path, (float("nan"), 0.3, None, 0.3, None, None), keep=1)
        assert steps(tmp_path) == [20, 60]
        with Checkpoints(tmp_path) as checkpoints:
            assert checkpoints.best().step == 20

    def test_keeping_goes_on_after_loading(self, tmp_path):
        filled(tmp_path)
        with Checkpoints(tmp_path, keep=2) as checkpoints:
            assert checkpoints.load().step == 50
            checkpoints.save({}, step=55, score=0.1, wait=True)
        assert steps(tmp_path) == [20, 50, 55]
        assert max(path.name for path in tmp_path.glob("*.safetensors")) == "000006-step-55.safetensors"

    def test_without_loading_another_run_is_replaced_once_there_is_something_new(self, tmp_path):
        filled(tmp_path)
        with Checkpoints(tmp_path) as checkpoints:
            assert len(steps(tmp_path)) == 4
            checkpoints.save({}, step=1, wait=True)
            assert steps(tmp_path) == [1]

    def test_what_is_loaded_is_what_was_saved(self, tmp_path):
        state = {"a": [1, (2.5, None)], "w": np.arange(4, dtype=np.float16)}
        with Checkpoints(tmp_path, settings={"lr": 0.1, "name": "ä"}) as checkpoints:
            assert checkpoints.load() is None and checkpoints.best() is None
            checkpoints.save(state, step=7, score=0.25, wait=True)
            found = checkpoints.load()
        assert (found.step, found.score, found.settings) == (7, 0.25, {"lr": 0.1, "name": "ä"})
        np.testing.assert_equal(found.state, state)

    @pytest.mark.parametrize(("option", "value"), [("keep", 0), ("keep", 2.0), ("keep_best", -1), ("keep", True)])
    def test_bad_options(self, option, value, tmp_path):
        with pytest.raises(ArgumentError, match=f"Checkpoints: {option} must be an integer of at least"):
            Checkpoints(tmp_path, **{option: value})


class TestDamage:
    def test_the_newest_whole_one_is_loaded_and_it_is_told(self, tmp_path):
        files, said = filled(tmp_path), []
        damage(files[-1])
        files[-2].write_bytes(files[-2].read_bytes()[:100])
        with Checkpoints(tmp_path, say=said.append) as checkpoints:
            assert checkpoints.load().step == checkpoints.on_disk == 30
        assert len(said) == 2 and all(text.endswith(f"; going back to {files[-3].name}") for text in said)
        assert "tensor state.state.w does not give the SHA-256" in said[0] and "truncated" in said[1]
        assert sorted(tmp_path.glob("*.damaged")) == [path.with_suffix(".damaged") for path in files[-2:]]
        with Checkpoints(tmp_path, say=said.append) as checkpoints:  # told once
            assert checkpoints.load().step == 30
        assert len(said) == 2

    def test_a_warning_tells_it_by_default(self, tmp_path):
        damage(filled(tmp_path)[-1])
        with (
            Checkpoints(tmp_path) as checkpoints,
            pytest.warns(RuntimeWarning, match="000005-step-50.* going back to 000004-step-40"),
        ):
            checkpoints.load()

    def test_none_is_whole(self, tmp_path):
        for path in filled(tmp_path):
            damage(path)
        with Checkpoints(tmp_path) as checkpoints:
            with pytest.warns(RuntimeWarning):
                assert checkpoints.best() is None
            with pytest.raises(CheckpointError, match=r"none of its checkpoints is whole: .*step-50.*; .*step-20"):
                checkpoints.load()

    def test_another_version_is_no_damage(self, tmp_path, monkeypatch):
        """Whoever took an older one instead would throw away what a newer rawgrad did."""
        with Checkpoints(tmp_path) as checkpoints:
            checkpoints.save({}, step=1, wait=True)
            monkeypatch.setattr(weights, "FORMAT", 3)
            checkpoints.save({}, step=2, wait=True)
            monkeypatch.undo()
        with (
            Checkpoints(tmp_path) as checkpoints,
            pytest.raises(CheckpointError, match=f"{tmp_path}/000002-step-2.safetensors: is of format 3, written by"),
        ):
            checkpoints.load()
        assert steps(tmp_path) == [1, 2]

    def test_a_state_of_another_kind_is_passed_over(self, tmp_path):
        filled(tmp_path, (1,))
        save_state(tmp_path / "000002-step-20.safetensors", {"w": 1})
        with Checkpoints(tmp_path, say=lambda text: None) as checkpoints:
            assert checkpoints.load().step == 10

    def test_a_file_of_ours_that_says_nonsense_is_passed_over(self, tmp_path):
        filled(tmp_path, (1,))
        for about in ({"step": float("inf"), "score": 1}, {"step": "x", "score": 1}, {"step": 2}):
            weights.write_packed(tmp_path / "000002-step-20.safetensors", pack({"settings": {}, "state": {}}), about)
            with (
                Checkpoints(tmp_path) as checkpoints,
                pytest.warns(RuntimeWarning, match="is no checkpoint of a folder"),
            ):
                assert checkpoints.load().step == 10

    def test_json_edited_by_hand_is_noticed(self, tmp_path):
        """Of the same length, so that the file is whole in all else."""
        path = filled(tmp_path, (0.5, 0.25), settings={"lr": 0.1})[-1]
        content = path.read_bytes()
        assert content.count(b'\\"score\\": 0.25') == 1
        path.write_bytes(content.replace(b'\\"score\\": 0.25', b'\\"score\\": 0.95'))
        with Checkpoints(tmp_path) as checkpoints, pytest.warns(RuntimeWarning, match="its head .* does not give"):
            assert checkpoints.best().step == checkpoints.load().step == 10

    def test_what_a_killed_writer_left_is_swept_away(self, tmp_path):
        filled(tmp_path)
        (tmp_path / ".000006-step-60.safetensors.77.abcd.partial").write_bytes(b"half")
        with Checkpoints(tmp_path) as checkpoints:
            assert checkpoints.load().step == 50
        assert not list(tmp_path.glob(".*.partial"))


PROGRAM = """
import sys, time
import numpy as np
from rawgrad.engine import checkpoint
from rawgrad.engine.checkpoint import Checkpoints
"""


def start(program, *arguments):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    command = [sys.executable, "-c", PROGRAM + program, *map(str, arguments)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


class TestHolding:
    def test_another_process_is_refused_until_the_holder_is_dead(self, tmp_path):
        holder = start("c = Checkpoints(sys.argv[1]); print('held', flush=True); time.sleep(60)", tmp_path)
        try:
            assert holder.stdout.readline() == "held\n"
            with pytest.raises(CheckpointError, match=f"{tmp_path}: in use by process {holder.pid} on .* since 2"):
                Checkpoints(tmp_path)
        finally:
            holder.send_signal(signal.SIGKILL)
            holder.communicate()
        Checkpoints(tmp_path).close()

    def test_twice_in_one_process_is_refused_too(self, tmp_path):
        with Checkpoints(tmp_path), pytest.raises(CheckpointError, match=f"in use by process {os.getpid()}"):
            Checkpoints(tmp_path)
        Checkpoints(tmp_path).close()

    def test_a_folder_that_cannot_be_written_in(self, tmp_path):
        filled(tmp_path / "c")
        (tmp_path / "c" / ".lock").unlink()
        with unprivileged(tmp_path, tmp_path / "c"):
            with pytest.raises(CheckpointError, match=f"{tmp_path}/c: cannot be written in: Permission denied"):
                Checkpoints(tmp_path / "c")
            with pytest.raises(CheckpointError, match="new/c: cannot be written in: Permission denied"):
                Checkpoints(tmp_path / "new" / "c")
        assert len(steps(tmp_path / "c")) == 4
        (tmp_path / "file").write_text("")
        with pytest.raises(CheckpointError, match="file: cannot be written in: File exists"):
            Checkpoints(tmp_path / "file")


@contextmanager
def unprivileged(*folders):
    """Nobody may write in ``folders`` meanwhile; root, who may everything, is somebody else."""
    modes = {path: path.stat().st_mode for path in folders}
    root = os.geteuid() == 0
    if root:  # the folders above must let that one through
        above = {path: path.stat() for path in folders[0].parents}
        modes |= {p: s.st_mode for p, s in above.items() if s.st_uid == 0 and s.st_mode & 0o111 != 0o111}
    try:
        for path, mode in modes.items():
            path.chmod(0o555 if path in folders else mode | 0o111)
        if root:
            os.seteuid(65534)
        yield
    finally:
        if root:
            os.seteuid(0)
        for path, mode in modes.items():
            path.chmod(mode)


@pytest.fixture
def held_up(monkeypatch):
    """Writing waits for the first event, and says by the second that it has begun."""
    go, begun, write = threading.Event(), threading.Event(), checkpoint.write_packed

    def wait(*arguments):
        begun.set()
        assert go.wait(30)
        write(*arguments)

    monkeypatch.setattr(checkpoint, "write_packed", wait)
    yield go, begun
    go.set()


class TestWritingBeside:
    def test_what_is_saved_is_what_was_when_save_was_called(self, tmp_path, held_up):
        model = nn.Linear(2, 1)
        optimizer = optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        state = {"model": model.state_dict(), "more": [np.ones(2)], "lr": 1.0}
        expected = pack(state).state()
        with Checkpoints(tmp_path) as checkpoints:
            checkpoints.save(state, step=1)
            assert checkpoints.writing and checkpoints.on_disk == 0
            model(rg.ones(1, 2)).sum().backward()
            optimizer.step()
            state["more"][0][:] = 5
            held_up[0].set()
            checkpoints.wait()
            assert not checkpoints.writing and checkpoints.on_disk == 1
            assert not np.array_equal(model.weight.detach().numpy(), expected["model"]["weight"])
            np.testing.assert_equal(checkpoints.load().state, expected)

    def test_there_is_never_more_than_one_under_way(self, tmp_path, held_up):
        go, begun = held_up
        with Checkpoints(tmp_path) as checkpoints:
            checkpoints.save({}, step=1)
            assert begun.wait(30)
            second = threading.Thread(target=lambda: checkpoints.save({}, step=2, wait=True))
            second.start()
            second.join(0.05)
            assert second.is_alive() and checkpoints.begun == 1
            go.set()
            second.join(30)
            assert steps(tmp_path) == [1, 2] and checkpoints.on_disk == 2

    def test_the_writers_error_reaches_who_saves(self, tmp_path, monkeypatch):
        def full(*arguments):
            raise OSError(28, "No space left on device")

        said = "checkpoint of step 2 could not be written: No space left on device; the last one there is 000001-step-1"
        with Checkpoints(tmp_path) as checkpoints:
            checkpoints.save({"w": np.ones(2)}, step=1, wait=True)
            with monkeypatch.context() as patch:
                patch.setattr(checkpoint, "write_packed", full)
                for raising in (checkpoints.wait, lambda: checkpoints.save({}, step=3), checkpoints.load):
                    checkpoints.save({}, step=2)
                    with pytest.raises(CheckpointError, match=said):
                        raising()
                with pytest.raises(CheckpointError, match=said):
                    checkpoints.save({}, step=2, wait=True)
            assert checkpoints.load().step == 1
            checkpoints.save({}, step=4, wait=True)  # there is space again
            assert steps(tmp_path) == [1, 4]
        monkeypatch.setattr(checkpoint, "write_packed", full)
        with pytest.raises(CheckpointError, match="none yet"), Checkpoints(tmp_path / "new") as checkpoints:
            checkpoints.save({}, step=1)
        with pytest.raises(KeyError), Checkpoints(tmp_path / "new") as checkpoints:  # the first error counts
            checkpoints.save({}, step=1)
            raise KeyError

    def test_a_disk_that_is_full_in_the_middle_of_a_save(self, tmp_path):
        """A limit on the size of files cuts the second save off where a full disk would."""
        program = (
            "import resource\n"
            "checkpoints = Checkpoints(sys.argv[1])\n"
            "checkpoints.save({'w': np.ones(1000)}, step=1, wait=True)\n"
            "resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))\n"
            "try:\n"
            "    checkpoints.save({'w': np.ones(10_000)}, step=2, wait=True)\n"
            "except Exception as error:\n"
            "    print(type(error).__name__, error)\n"
        )
        ended = start(program, tmp_path)
        out, err = ended.communicate(timeout=60)
        assert ended.returncode == 0 and err == ""
        assert out.startswith("CheckpointError") and "step 2 could not be written: File too large; the last" in out
        assert {path.name for path in tmp_path.iterdir()} == {".lock", "000001-step-1.safetensors"}
        with Checkpoints(tmp_path) as checkpoints:
            assert checkpoints.load().step == 1

    @pytest.mark.parametrize(
        ("how", "left", "said"),
        [("well", [1], ""), ("full", [], "rawgrad: error: .*step 1 could not be written: No space left.*none yet\n")],
    )
    def test_an_interpreter_that_ends_ends_its_save_first(self, how, left, said, tmp_path):
        program = (
            "write = checkpoint.write_packed\n"
            "def slowly(path, *rest):\n"
            "    time.sleep(0.3)\n"
            "    if sys.argv[2] == 'full': raise OSError(28, 'No space left on device')\n"
            "    write(path, *rest)\n"
            "checkpoint.write_packed = slowly\n"
            "checkpoints = Checkpoints(sys.argv[1])\n"
            "checkpoints.save({'w': np.ones(1000)}, step=1)\n"
        )
        ended = start(program, tmp_path, how)
        _, err = ended.communicate(timeout=60)
        assert ended.returncode == 0 and re.fullmatch(said, err)
        assert steps(tmp_path) == left

    def test_what_cannot_be_saved_is_refused_at_once(self, tmp_path):
        with Checkpoints(tmp_path) as checkpoints, pytest.raises(ArgumentError, match=r"state\.state\.a must be"):
            checkpoints.save({"a": object()}, step=1)


class Pretended:
    """A folder on whose disk a save takes so many steps."""

    def __init__(self, takes):
        self.takes, self.on_disk, self.begun, self.now = takes, 0, 0, 0
        self.ends, self.waited, self.saves = None, 0, 0

    @property
    def writing(self):
        if self.ends is not None and self.now >= self.ends:
            self.on_disk, self.ends = self.begun, None
        return self.ends is not None

    def wait(self):
        self.waited += self.writing
        self.on_disk, self.ends = self.begun, None

    def save(self, step):
        assert not self.writing
        self.begun, self.ends, self.saves = step, step + self.takes(), self.saves + 1


def walked(interval, folder, count, epoch=10**9):
    """Train ``count`` steps, with a save after each ``epoch`` too; gives how far the disk was behind after each."""
    behind = []
    for done in range(count):
        interval.before(done)
        folder.now = done + 1
        behind.append(done + 1 - folder.on_disk)
        if interval.due(done + 1):
            folder.save(done + 1)
        if (done + 1) % epoch == 0:
            folder.wait()
            folder.save(done + 1)
    return behind


class TestInterval:
    @pytest.mark.parametrize("every", [1, 2, 3, 10, 100])
    @pytest.mark.parametrize("longest", [0, 1, 3, 30])
    @pytest.mark.parametrize("epoch", [1, 7, 1000])
    def test_the_disk_is_never_further_behind(self, every, longest, epoch):
        draw = random.Random(every)
        folder = Pretended(lambda: draw.randint(0, longest))
        assert max(walked(Interval(folder, every), folder, 1000, epoch)) <= every

    def test_quick_saves_are_no_more_than_needed_and_not_waited_for(self):
        folder = Pretended(lambda: 1)
        walked(Interval(folder, 100), folder, 10_000)
        assert 100 <= folder.saves <= 105 and folder.waited == 0

    def test_it_starts_where_training_does(self):
        folder = Pretended(lambda: 1)
        interval = Interval(folder, 10, start=500)
        interval.before(500)
        assert not interval.due(501) and interval.due(505)

    @pytest.mark.parametrize("every", [0, -1, 1.5, True])
    def test_bad_intervals(self, every):
        with pytest.raises(ArgumentError, match="Interval: every must be an integer of at least 1"):
            Interval(Pretended(lambda: 1), every)


def parts(kind=optim.Adam, out=3, schedule=True, seed=0):
    rg.manual_seed(seed)
    model = nn.Sequential(nn.Linear(4, out), nn.BatchNorm1d(out))
    optimizer = kind(model.parameters(), lr=0.1)
    return {
        "model": model,
        "optimizer": optimizer,
        "schedule": optim.lr_scheduler.StepLR(optimizer, 2) if schedule else None,
        "random": Generator(3),
    }


def trained(**options):
    made = parts(**options)
    for _ in range(3):
        made["model"](rg.tensor(made["random"].numpy().random((5, 4), np.float32))).sum().backward()
        made["optimizer"].step()
        if made["schedule"] is not None:
            made["schedule"].step()
    return made


def saved(folder, made):
    with Checkpoints(folder) as checkpoints:
        checkpoints.save(states_of(made), step=3, wait=True)
        return checkpoints.load()


class TestRestore:
    def test_all_parts_are_as_they_were(self, tmp_path):
        before = trained()
        after = parts(seed=1)
        restore(saved(tmp_path, before), after)
        np.testing.assert_equal(pack(states_of(after)).state(), pack(states_of(before)).state())
        assert after["optimizer"].param_groups[0]["lr"] == 0.1 * 0.1

    @pytest.mark.parametrize(
        ("here", "said"),
        [
            ({"out": 2}, "its model does not fit: [^~]*0.weight must have shape \\(2, 4\\); got \\(3, 4\\)"),
            ({"kind": optim.AdamW}, "its optimizer does not fit: AdamW.load_state_dict: the state is of Adam"),
            ({"kind": optim.SGD}, "its optimizer does not fit: SGD.load_state_dict: the state is of Adam"),
            ({"schedule": False}, "is of a run with schedule; this one is without"),
        ],
    )
    def test_another_run_is_refused_and_nothing_changed(self, here, said, tmp_path):
        found, after = saved(tmp_path, trained()), trained(seed=1, **here)
        before = pack(states_of(after)).state()
        with pytest.raises(CheckpointError, match=f"{found.path}: {said}"):
            restore(found, after)
        np.testing.assert_equal(pack(states_of(after)).state(), before)

    def test_the_last_part_that_does_not_fit_undoes_the_first(self, tmp_path):
        found, after = saved(tmp_path, trained()), trained(seed=1)
        before = pack(states_of(after)).state()
        for wrong in ({"seed": -1, "offset": 0}, {"seed": 1}, {"seed": 1, "offset": -2}, {"seed": 0, "offset": "1"}):
            found.state["random"] = wrong
            with pytest.raises(CheckpointError, match="its random does not fit: Generator: not the state of"):
                restore(found, after)
            np.testing.assert_equal(pack(states_of(after)).state(), before)

    def test_what_is_no_state_at_all(self, tmp_path):
        with Checkpoints(tmp_path) as checkpoints:
            checkpoints.save([1, 2], step=1, wait=True)
            with pytest.raises(CheckpointError, match="must hold states by name; it holds list"):
                restore(checkpoints.load(), parts())
