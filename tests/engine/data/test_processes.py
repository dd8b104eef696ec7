"""Readers that are processes: the same batches through shared memory, and nothing left of them."""

from __future__ import annotations

import gc
import multiprocessing
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from rawgrad.engine.data import Compose, DataLoader, RandomHorizontalFlip, RandomShift
from rawgrad.engine.data import processes as module
from rawgrad.kernels._errors import ArgumentError, DataError

sys.path.insert(0, str(Path(__file__).parent))  # the processes get it too
from _reading import Growing, Pictures, Reading, descriptors, total


def bits(batches):
    return [tuple(part.numpy().tobytes() for part in batch) for batch in batches]


def processes():
    return [child for child in multiprocessing.active_children() if "rawgrad" in child.name]


@pytest.fixture
def reading():
    """A loader whose processes stay through the test."""
    with DataLoader(Reading(), 3, shuffle=True, seed=4, num_workers=2, processes=True) as loader:
        yield loader
    assert not processes()


def test_the_same_batches_as_without(reading):
    plain = DataLoader(Reading(), 3, shuffle=True, seed=4)
    for _ in range(2):  # the second with the same processes
        kept = list(reading)
        assert bits(kept) == bits(plain)
        assert len(processes()) == 2


def test_a_loop_is_resumed_by_other_readers():
    """The position of two threads, given to processes, to many threads and to none."""
    transform = Compose([RandomShift(1), RandomHorizontalFlip()])
    options = {"batch_size": 2, "shuffle": True, "seed": 7, "transform": transform}
    whole = bits(DataLoader(Pictures(), **options))
    begun = DataLoader(Pictures(), num_workers=2, **options)
    with begun:
        iterator = iter(begun)
        first = bits([next(iterator), next(iterator)])
        state = begun.state_dict()
    for other in ({"num_workers": 2, "processes": True}, {"num_workers": 8}, {}):
        with DataLoader(Pictures(), **{**options, "seed": 1, **other}) as resumed:
            resumed.load_state_dict(state)
            assert first + bits(resumed) == whole


def test_memory_is_shared_and_used_again(reading):
    addresses = set()
    for _ in range(4):
        for x, _ in reading:
            assert not x.array.flags.owndata
            addresses.add(x.array.ctypes.data)
    assert len(addresses) <= 2 * 6  # of 28: of each process, those ahead, under way, taken and the one before


def test_whoever_keeps_many_batches_gets_copies(reading, monkeypatch):
    monkeypatch.setattr(module, "_LENT", 2)
    kept = list(reading)
    assert sum(x.array.flags.owndata for x, _ in kept) >= 2
    reading.set_epoch(reading.epoch - 1)
    assert bits(kept) == bits(reading)


def test_collate_fn_and_arrays_of_its_own():
    plain = list(DataLoader(Reading(6), 3, collate_fn=total))
    with DataLoader(Reading(6), 3, collate_fn=total, num_workers=1, processes=True) as loader:
        for one, other in zip(loader, plain, strict=True):
            assert one["names"] == other["names"]
            np.testing.assert_array_equal(one["sum"].numpy(), other["sum"].numpy())


def test_errors_come_at_their_place_with_the_trace_of_the_process():
    for what, kind, words in (
        ("fail", ZeroDivisionError, "in the reader"),
        ("fail_oddly", DataError, "a reader raised Unhappy: one"),
    ):
        loader, seen = DataLoader(Reading(20, 5, what), 2, num_workers=1, processes=True), []
        with pytest.raises(kind, match=words) as caught:
            for _, y in loader:
                seen.append(y.numpy().tolist())
        assert seen == [[0, 1], [2, 3]]
        assert "In reader process" in caught.value.__notes__[0] and f"in {what}\n" in caught.value.__notes__[0]
        assert not processes()


@pytest.mark.parametrize(("what", "words"), [("die", "died by SIGKILL"), ("leave", "died with exit code 3")])
def test_a_dead_process_is_noticed_within_a_second(what, words):
    loader = DataLoader(Reading(20, 3, what), 2, num_workers=1, processes=True)
    iterator = iter(loader)
    next(iterator)
    begun = time.monotonic()
    with pytest.raises(DataError, match=words + " at batch 1, samples 2, 3"):
        next(iterator)
    assert time.monotonic() - begun < 1
    assert not processes()


def test_left_early_nothing_is_left():
    before = descriptors()
    loader = DataLoader(Reading(2000, 9, "sleep"), 2, num_workers=2, processes=True)
    for _, y in loader:
        if y.numpy()[0] == 6:
            begun = time.monotonic()
            break
    assert time.monotonic() - begun < 0.2 and not processes()
    del y, _
    gc.collect()
    assert descriptors() <= before + 1  # multiprocessing keeps a pipe to a helper of its own


def test_a_dropped_loader_ends_the_processes_that_wait():
    loader = DataLoader(Reading(4), 2, num_workers=2, processes=True)
    list(loader)
    assert len(processes()) == 2
    del loader
    assert not processes()


def test_what_pickle_does_not_take_is_refused():
    with pytest.raises(ArgumentError, match="pickle takes them"):
        list(DataLoader(Reading(), 2, collate_fn=lambda samples: samples, num_workers=1, processes=True))


def test_a_program_that_is_not_to_be_imported_is_told_so(tmp_path):
    """Without the guard each process would begin by reading in processes of its own."""
    program = tmp_path / "program.py"
    program.write_text(
        """
import sys
sys.path.insert(0, sys.argv[1])
from _reading import Reading
from rawgrad.engine.data import DataLoader
print("begun", flush=True)
for _ in DataLoader(Reading(4), 2, num_workers=1, processes=True): pass
"""
    )
    done = subprocess.run(
        [sys.executable, str(program), str(Path(__file__).parent)], capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout) == (1, "begun\nbegun\n")
    assert done.stderr.count("Traceback") == 1  # the program's own
    last = done.stderr.splitlines()[-1]
    assert "died with exit code 1 at batch 0, samples 0, 1, before it began; with processes, a program must" in last
    assert 'under `if __name__ == "__main__":`' in last


def test_memory_is_used_again_in_the_process_though_arrays_are_not_made_there():
    """``total`` makes its arrays itself, so each is copied to a block, and always to one of a few."""
    with DataLoader(Reading(80), 2, collate_fn=total, num_workers=1, processes=True) as loader:
        for batch in loader:
            assert not batch["sum"].array.flags.owndata
        assert 1 <= len(loader._idle[0]._blocks) <= 6


def test_blocks_that_fit_nothing_any_more_are_given_back():
    """Each batch is larger than all before, so each needs a new block."""
    with DataLoader(Growing(), num_workers=1, processes=True) as loader:
        for number, x in enumerate(loader):
            assert x.shape == (1, 1024 * (number + 1)) and (x.numpy() == number).all()
        assert len(loader._idle[0]._blocks) == module._KEPT < number


def test_an_interrupt_of_the_terminal_and_exit_say_nothing(tmp_path):
    """SIGINT goes to the whole group, as from a terminal, while the processes import the program; then the interpreter
    ends in the middle of a loop."""
    program = tmp_path / "program.py"
    program.write_text(
        """
import multiprocessing, os, signal, sys, threading, time
if __name__ != "__main__":
    time.sleep(1.5)
sys.path.insert(0, sys.argv[1])
from _reading import Reading
from rawgrad.engine.data import DataLoader
if __name__ == "__main__":
    loader = DataLoader(Reading(2000, 9, "sleep"), 2, num_workers=2, processes=True)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where tests run in the background
    threading.Timer(1.0, os.killpg, (os.getpgid(0), signal.SIGINT)).start()
    try:
        for _ in loader: pass
    except KeyboardInterrupt:
        print("interrupted", len(multiprocessing.active_children()))
    iterator = iter(loader)
    next(iterator)
    print("left")
"""
    )
    done = subprocess.run(
        [sys.executable, str(program), str(Path(__file__).parent)],
        capture_output=True, text=True, timeout=60, start_new_session=True, env={**os.environ},
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (0, "interrupted 0\nleft\n", "")
