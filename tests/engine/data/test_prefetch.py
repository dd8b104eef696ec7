"""The prefetcher: order, bounds, determinism, buffers, errors at their place, and that everything ends."""

from __future__ import annotations

import gc
import subprocess
import sys
import threading
import time
import traceback
import tracemalloc
import weakref
from pathlib import Path

import numpy as np
import pytest

from rawgrad.autograd import Tensor
from rawgrad.engine.data import DataLoader, Dataset, TensorDataset, loader, prefetch
from rawgrad.engine.data.buffers import Buffers
from rawgrad.kernels._dispatch import backend, current_choice
from rawgrad.kernels._errors import ArgumentError, DataError

X = np.arange(40, dtype=np.float32).reshape(20, 2)
Y = np.arange(20)


@pytest.fixture(autouse=True)
def nothing_is_left():
    """Every test leaves as many threads as it found."""
    before = threading.active_count()
    yield
    gc.collect()
    until = time.monotonic() + 1
    while threading.active_count() > before and time.monotonic() < until:
        time.sleep(0.01)
    assert threading.active_count() == before


@pytest.fixture
def readers_always(monkeypatch):
    """Arrays in memory are read by readers too, however fast that goes."""
    monkeypatch.setattr(loader, "_HAND_OVER", 0)


class Samples(Dataset):
    """``n`` samples (vector, index); ``act`` may sleep or raise, by index."""

    def __init__(self, n=20, act=None):
        self.n, self.act, self.asked = n, act, []

    def __len__(self):
        return self.n

    def __getitem__(self, index):
        if not 0 <= index < self.n:
            raise IndexError
        self.asked.append(index)
        if self.act is not None:
            self.act(index)
        return np.full(3, index, np.float32), index


def bits(batches):
    return [tuple(part.numpy().tobytes() for part in batch) for batch in batches]


def uneven(index):
    """Later samples of a batch take less time: without an order they would overtake the first."""
    time.sleep(0.004 if index % 4 == 0 else 0)


@pytest.mark.parametrize("workers", [1, 2, 8])
def test_the_same_batches_whatever_the_number_of_workers(workers):
    plain = DataLoader(Samples(), 3, shuffle=True, seed=4)
    ahead = DataLoader(Samples(act=uneven), 3, shuffle=True, seed=4, num_workers=workers)
    for _ in range(2):
        assert bits(ahead) == bits(plain)
    assert ahead.epoch == 2 and ahead.state_dict() == plain.state_dict()


@pytest.mark.parametrize("workers", [1, 2, 8])
def test_arrays_through_readers(readers_always, workers):
    plain = DataLoader(TensorDataset(X, Y), 3, shuffle=True, seed=4)
    ahead = DataLoader(TensorDataset(X, Y), 3, shuffle=True, seed=4, num_workers=workers)
    wanted = bits(plain)
    kept = list(ahead)  # all at once: none may lie in the buffer of another
    assert bits(kept) == wanted


def test_small_batches_of_arrays_get_no_readers_and_large_ones_do():
    small = DataLoader(TensorDataset(X, Y), 2, num_workers=2)
    assert len(list(small)) == 10 and small._cheap is True
    large = DataLoader(TensorDataset(np.zeros((60, 1_000_000), np.uint8)), 10, num_workers=2)
    seen = 0
    for _ in large:
        seen += 1
        # The first three are made by training itself, to see how long that takes.
        assert sum("rawgrad reader" in t.name for t in threading.enumerate()) == (2 if seen >= 3 else 0)
    assert seen == 6 and large._cheap is False


def test_never_more_than_prefetch_batches_ahead():
    data = Samples(40)
    iterator = iter(DataLoader(data, 2, num_workers=3, prefetch=4))
    for taken in range(1, 10):
        next(iterator)
        until = time.monotonic() + 1
        while len(data.asked) < 2 * (taken + 4) and time.monotonic() < until:
            time.sleep(0.001)
        time.sleep(0.005)  # those who would read on have had the time
        assert len(data.asked) == 2 * (taken + 4)
    iterator.close()


@pytest.mark.parametrize("stop", [0, 1, 4, 7])
def test_resumed_in_the_middle_of_an_epoch(stop):
    whole = bits(DataLoader(Samples(), 3, shuffle=True, seed=9, num_workers=2))
    begun = DataLoader(Samples(), 3, shuffle=True, seed=9, num_workers=2)
    iterator = iter(begun)
    for _ in range(stop):
        next(iterator)
    state = begun.state_dict()  # counted at what was taken, not at what was read ahead
    iterator.close()
    assert state["batch"] == (stop if stop < 7 else 0)
    resumed = DataLoader(Samples(), 3, shuffle=True, num_workers=3)
    resumed.load_state_dict(state)
    if stop < 7:
        assert bits(resumed) == whole[stop:]
    else:
        assert resumed.epoch == 1


def test_the_prefetcher_can_be_read_at_one_sitting():
    """With what it needs to be understood: the buffers that batches lie in."""
    files = [Path(prefetch.__file__).with_name(name) for name in ("prefetch.py", "buffers.py")]
    assert sum(len(file.read_text().splitlines()) for file in files) <= 400


class TestBuffers:
    def test_used_again_only_when_nothing_refers_to_them(self):
        buffers = Buffers(lambda size: np.empty(size, np.uint8), 3)
        first = buffers.empty((4, 2), np.float32)
        part = first[1:, ::2].T
        first[:] = 1
        del first
        second = buffers.empty((4, 2), np.float32)  # `part` holds the first
        second[:] = 2
        assert part.tolist() == [[1, 1, 1]] and buffers.made == 2
        address = second.ctypes.data
        del second
        third = buffers.empty((2, 2), np.int64)
        assert third.ctypes.data == address and buffers.made == 2

    def test_sizes_that_do_not_fit(self):
        buffers = Buffers(lambda size: np.empty(size, np.uint8), 1)
        buffers.empty((1000,), np.uint8)[:] = 0
        kept = [buffers.empty((8,), np.uint8), buffers.empty((5000,), np.uint8)]
        assert buffers.made == 3 and len({array.ctypes.data for array in kept}) == 2
        assert buffers.empty((0, 3), np.float32).shape == (0, 3)

    def test_nothing_new_after_the_first_batches(self, readers_always):
        made = []
        reading = DataLoader(TensorDataset(np.zeros((400, 500), np.float32)), 4, num_workers=2)
        for number, (x,) in enumerate(reading):
            if number >= 3:  # the first three are made without readers, to see how long that takes
                made.append(x.array.base.ctypes.data)
        assert len(made) == 97 and len(set(made)) <= 3 + 2 + 2  # ahead, under way, taken and the one before

    def test_saved_tensors_stay_right(self, readers_always):
        rows = np.arange(300, dtype=np.float32)[:, None]
        reading = DataLoader(TensorDataset(rows), 3, num_workers=2)
        saved = [(number, x[1:]) for number, (x,) in enumerate(reading) if number % 7 == 3]
        for number, part in saved:
            assert part.numpy().ravel().tolist() == [3 * number + 1, 3 * number + 2]


def test_a_batch_that_was_taken_is_held_by_nobody():
    class Batch:
        pass

    def collate_fn(samples):
        batch = Batch()
        held.append(weakref.ref(batch))
        return batch

    held: list = []
    iterator = iter(DataLoader(Samples(8), 4, num_workers=2, collate_fn=collate_fn))
    gc.disable()
    try:
        for _ in range(2):
            next(iterator)
        assert len(held) == 2 and all(ref() is None for ref in held)  # while the readers wait for more
    finally:
        gc.enable()
        iterator.close()


def test_all_that_a_batch_needs_is_done_by_readers(monkeypatch):
    """What training does with a batch that is ready is to take it: that is what makes ``next`` quick."""
    by = []
    there = loader._there
    monkeypatch.setattr(loader, "_there", lambda *a: (by.append(threading.current_thread().name), there(*a))[1])
    batches = list(DataLoader(Samples(), 4, num_workers=2, device="cpu"))
    assert all(isinstance(part, Tensor) for batch in batches for part in batch)
    assert len(by) == 2 * len(batches) and set(by) <= {"rawgrad reader 0", "rawgrad reader 1"}


def test_readers_compute_with_the_backend_of_the_loop():
    class Asking(Samples):
        def __getitem__(self, index):
            return str(current_choice().for_device("cpu"))

    for name in ("numpy", "numba"):
        with backend(name):
            assert next(iter(DataLoader(Asking(), 2, num_workers=1))) == [name, name]


def test_arrays_with_gaps_are_not_copied_whole():
    wide = TensorDataset(np.zeros((2000, 2000), np.float32)[:, ::2])
    tracemalloc.start()
    try:
        wide.batch_into(np.arange(2), np.empty)
        assert tracemalloc.get_traced_memory()[1] < 100_000  # of 8 MB
    finally:
        tracemalloc.stop()


class TestErrors:
    def test_at_their_place_with_their_traceback(self):
        def act(index):
            if index == 7:
                raise ZeroDivisionError("sample 7")

        reading = DataLoader(Samples(act=act), 2, num_workers=3)
        seen = []
        with pytest.raises(ZeroDivisionError, match="sample 7") as caught:
            for _, y in reading:
                seen.append(y.numpy().tolist())
        assert seen == [[0, 1], [2, 3], [4, 5]]
        assert "act" in [frame.name for frame in traceback.extract_tb(caught.tb)]
        assert not any("rawgrad reader" in t.name for t in threading.enumerate())
        assert reading.state_dict()["batch"] == 3

    def test_the_loop_is_over_after_an_error(self):
        def act(index):
            raise OSError(index)

        iterator = iter(DataLoader(Samples(act=act), 2, num_workers=2))
        with pytest.raises(OSError):
            next(iterator)
        with pytest.raises(StopIteration):
            next(iterator)

    def test_a_stop_iteration_of_a_reader_does_not_end_the_loop_quietly(self):
        def act(index):
            raise StopIteration

        for workers in (0, 2):
            with pytest.raises(RuntimeError, match="batch 0 raised StopIteration"):
                list(DataLoader(Samples(act=act), 2, num_workers=workers))

    def test_an_error_that_was_handled_is_gone(self):
        class Loud(Exception):
            pass

        def act(index):
            raise Loud

        gc.disable()
        try:
            try:
                list(DataLoader(Samples(act=act), 2, num_workers=1))
            except Loud as error:
                held = weakref.ref(error)
            assert held() is None  # no cycle of error, traceback and ticket
        finally:
            gc.enable()

    def test_a_stalled_source_is_named(self, monkeypatch):
        monkeypatch.setattr(prefetch, "STALLED", 0.03)
        release = threading.Event()

        def act(index):
            if index == 2:
                release.wait(5)

        iterator = iter(DataLoader(Samples(act=act), 2, num_workers=1))
        next(iterator)
        threading.Timer(0.05, release.set).start()
        said = r"batch 1 since .* reader 0, which reads samples 2, 3, is at .*wait"
        with pytest.warns(RuntimeWarning, match=said) as caught:
            next(iterator)
        assert caught[0].filename == __file__  # the line of the loop
        iterator.close()

    def test_timeout(self):
        release = threading.Event()
        reading = DataLoader(Samples(act=lambda index: release.wait(5)), 2, num_workers=1, timeout=0.05)
        begun = time.monotonic()
        with pytest.raises(DataError, match="waiting for batch 0 since 0.1 s"):
            next(iter(reading))
        assert time.monotonic() - begun < 0.5
        release.set()
        with pytest.raises(ArgumentError, match="timeout must be"):
            DataLoader(Samples(), timeout=0)


class TestTheEnd:
    def readers(self):
        return [t for t in threading.enumerate() if "rawgrad reader" in t.name]

    def begun(self):
        reading = DataLoader(Samples(1000, lambda index: time.sleep(0.001)), 4, num_workers=3)
        iterator = iter(reading)
        next(iterator)
        assert len(self.readers()) == 3
        return reading, iterator

    def test_close(self):
        reading, iterator = self.begun()
        begun = time.monotonic()
        reading.close()
        assert time.monotonic() - begun < 0.5 and not self.readers()  # stress.py holds it to 0.1
        assert list(iterator) == []
        assert len(next(iter(reading))) == 2  # it can be used again

    def test_with(self):
        with DataLoader(Samples(1000), 4, num_workers=3) as reading:
            iterator = iter(reading)
            next(iterator)
        assert not self.readers() and list(iterator) == []

    def test_a_loop_left_early(self):
        for _ in DataLoader(Samples(1000), 4, num_workers=3):
            assert self.readers()
            break
        assert not self.readers()

    def test_an_exception_in_the_loop(self):
        with pytest.raises(KeyboardInterrupt):
            for _ in DataLoader(Samples(1000), 4, num_workers=3):
                raise KeyboardInterrupt
        gc.collect()
        assert not self.readers()

    def test_a_dropped_reference(self):
        reading, iterator = self.begun()
        del iterator
        assert not self.readers()
        del reading

    def test_a_long_batch_is_given_up_between_samples(self):
        reading = DataLoader(Samples(1000, lambda index: time.sleep(0.005)), 500, num_workers=1)
        iterator = iter(reading)
        thread = threading.Timer(0.05, iterator.close)
        thread.start()
        thread.join()
        assert not self.readers()

    def test_batches_on_order_are_not_read_any_more(self):
        class Whole(Samples):
            def batch(self, indices):
                self.asked.append(indices)
                time.sleep(0.03)
                return np.zeros(2)

        data = Whole(1000)
        iterator = iter(DataLoader(data, 4, num_workers=1, prefetch=20))
        next(iterator)
        before = len(data.asked)
        begun = time.monotonic()
        iterator.close()
        assert time.monotonic() - begun < 0.5 and len(data.asked) <= before + 1

    def test_should_closing_be_cut_off_readers_end_by_themselves(self, monkeypatch):
        monkeypatch.setattr(prefetch, "_LOOK", 0.02)
        iterator = iter(DataLoader(Samples(), 4, num_workers=3))
        next(iterator)
        iterator._source._end.detach()  # as if an interrupt had come when it was called
        assert len(self.readers()) == 3
        del iterator
        until = time.monotonic() + 2
        while self.readers() and time.monotonic() < until:
            time.sleep(0.01)
        assert not self.readers()

    def test_an_interrupt_while_waiting(self):
        code = """
            import os, signal, sys, threading, time
            import numpy as np
            from rawgrad.engine.data import DataLoader
            class Slow:
                def __len__(self): return 100
                def __getitem__(self, index):
                    time.sleep(0.02)
                    return np.zeros(3)
            signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where tests run in the background
            threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()
            begun = time.monotonic()
            try:
                for _ in DataLoader(Slow(), 50, num_workers=2): pass
            except KeyboardInterrupt:
                print(f"{time.monotonic() - begun:.2f}", sum("reader" in t.name for t in threading.enumerate()))
        """
        seconds, left = run(code).split()
        assert 0.15 < float(seconds) < 0.45 and left == "0"

    def test_exit_in_the_middle_says_nothing(self):
        code = """
            import time
            import numpy as np
            from rawgrad.engine.data import DataLoader
            class Slow:
                def __len__(self): return 100
                def __getitem__(self, index):
                    time.sleep(0.001)
                    return np.zeros(3)
            iterator = iter(DataLoader(Slow(), 5, num_workers=3))
            next(iterator)
            print("left")
        """
        assert run(code) == "left\n"


def run(code, *arguments):
    """What a program prints; it must end well and say nothing on stderr."""
    lines = code.strip("\n").splitlines()
    indent = len(lines[0]) - len(lines[0].lstrip())
    program = "\n".join(line[indent:] for line in lines)
    done = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    return done.stdout
