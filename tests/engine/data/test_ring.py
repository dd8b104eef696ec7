"""The way to the GPU: copies on a stream of their own, and nobody gets at memory that another still uses."""

from __future__ import annotations

import gc
import threading

import numpy as np
import pytest

import rawgrad as rg
from rawgrad.engine.data import DataLoader, Dataset, Subset, TensorDataset
from rawgrad.engine.data import loader as loader_module
from rawgrad.engine.data import ring as module
from rawgrad.kernels._emulator import arrays, copies, runtime, streams
from rawgrad.kernels._errors import ArgumentError, LaunchError

pytestmark = pytest.mark.backends("emulated", "cuda")

X = np.arange(120, dtype=np.float32).reshape(40, 3)
Y = np.arange(40)


class Samples(Dataset):
    """Rows of X one by one, with labels and names."""

    def __len__(self):
        return len(X)

    def __getitem__(self, index):
        return {"x": X[index], "y": index, "name": str(index)}


def rows(loader):
    """What the batches hold, used by the device's stream, and looked at in the end: looking makes the host wait."""
    used = [[part * 1 for part in batch] for batch in loader]
    return [[part.to("cpu").numpy().tolist() for part in batch] for batch in used]


def plain(**options):
    return [
        [part.to("cpu").numpy().tolist() for part in b]
        for b in DataLoader(TensorDataset(X, Y), 4, shuffle=True, **options)
    ]


def ahead(backend, dataset=None, workers=2, **options):
    dataset = TensorDataset(X, Y) if dataset is None else dataset
    return DataLoader(dataset, 4, shuffle=True, seed=3, num_workers=workers, device=backend.device.name, **options)


@pytest.mark.parametrize("workers", [1, 2])
def test_the_same_batches_on_the_device(backend, workers):
    loader = ahead(backend, workers=workers)
    assert rows(loader) == plain(seed=3)
    assert all(part.device == backend.device.name for part in next(iter(loader)))
    assert not [t for t in threading.enumerate() if "reader" in t.name]


def test_structures_and_a_smaller_last_batch(backend):
    loader = DataLoader(Samples(), 7, num_workers=1, device=backend.device.name)
    batches = list(loader)
    assert [b["x"].shape for b in batches][-2:] == [(7, 3), (5, 3)] and batches[-1]["name"][-1] == "39"
    assert np.concatenate([b["x"].to("cpu").numpy() for b in batches]).tolist() == X.tolist()
    assert np.concatenate([b["y"].to("cpu").numpy() for b in batches]).tolist() == Y.tolist()


def test_from_processes(backend):
    with ahead(backend, processes=True, workers=1) as loader:
        assert rows(loader) == plain(seed=3)


def test_batches_that_are_kept_stay_right(backend):
    kept = list(ahead(backend))
    gc.collect()
    assert [[part.to("cpu").numpy().tolist() for part in batch] for batch in kept] == plain(seed=3)
    saved = [x[1:] for x, _ in ahead(backend)]  # parts keep their batch's slot too
    assert [part.to("cpu").numpy().tolist() for part in saved] == [x[1:] for x, _ in plain(seed=3)]


def test_nothing_is_allocated_after_three_batches(backend, monkeypatch):
    made = []
    for name in ("_new_slot", "_pinned_bytes"):
        before = getattr(module.Ring, name)
        monkeypatch.setattr(module.Ring, name, lambda *a, name=name, before=before: (made.append(name), before(*a))[1])
    loader = DataLoader(TensorDataset(np.zeros((800, 3), np.float32)), 4, num_workers=1, device=backend.device.name)
    counts = []
    for (x,) in loader:
        x * 2
        counts.append(len(made))
    assert len(counts) == 200 and made.count("_new_slot") == 2 + 2
    # The pinned ones depend on how far readers were ahead; they are few and bounded.
    assert counts[3] <= counts[-1] <= counts[3] + 3


def test_how_long_copies_took(backend):
    iterator = iter(ahead(backend))
    list(iterator)
    steps = iterator._steps
    assert len(steps) == 10 and all(0 <= step.copied.seconds() < 1 for step in steps)


def test_left_early_the_device_has_its_memory_back(backend):
    device = backend.device
    pool = device.array_module.get_default_memory_pool()
    gc.collect()
    before = pool.used_bytes()
    for _ in ahead(backend):
        assert pool.used_bytes() > before
        break
    del _
    gc.collect()
    assert pool.used_bytes() == before


# ---- what the simulated device catches: each test takes one wait out


@pytest.mark.backends("emulated")
class TestCaught:
    @pytest.fixture(autouse=True)
    def clocks_of_its_own(self, monkeypatch):
        """What a test breaks, it alone sees."""
        fresh = copies.Clocks()
        for user in (copies, arrays, streams, runtime):
            monkeypatch.setattr(user, "clocks", fresh)

    def test_a_slot_that_is_used_again_too_early(self, backend, monkeypatch):
        """Without the event `free`: the copy would overwrite a batch that training still computes with."""
        wait = type(backend.device.array_module.cuda.Stream()).wait_event
        monkeypatch.setattr(
            type(backend.device.array_module.cuda.Stream()),
            "wait_event",
            lambda stream, event: None if stream.is_non_blocking else wait(stream, event),
        )
        with pytest.raises(LaunchError, match="a copy on stream .* writes an array .* stream 0 may still use"):
            rows(ahead(backend))

    def test_an_event_free_that_is_recorded_too_early(self, backend, monkeypatch):
        """Recorded while the batch is still used, it says nothing of what comes after."""
        monkeypatch.setattr(module, "is_alone", lambda slots, position: True)
        with pytest.raises((LaunchError, AssertionError)):
            kept = []
            for x, _y in ahead(backend):
                kept.append(x)
                [one * 1 for one in kept]
            assert [k.to("cpu").numpy().tolist() for k in kept] == [x for x, _ in plain(seed=3)]

    def test_a_batch_that_is_not_waited_for(self, backend, monkeypatch):
        monkeypatch.setattr(module.Ring, "deliver", lambda self, copy: None)
        with pytest.raises(LaunchError, match="is used on stream 0 while a copy on stream .* writes it"):
            rows(ahead(backend))

    def test_a_pinned_buffer_that_is_refilled_too_early(self, backend, monkeypatch):
        def forgets(self, batch):
            loaded, copy = load(self, batch)
            copy.pinned.clear()  # so the buffers count as free at once
            return loaded, copy

        load = module.Ring.load
        monkeypatch.setattr(module.Ring, "load", forgets)
        with pytest.raises(LaunchError, match="pinned host array .* was changed before the asynchronous copy"):
            rows(ahead(backend))


@pytest.mark.backends("emulated")
class TestCopiesOfTheSimulatedGpu:
    def test_they_are_done_when_they_are_waited_for(self, backend):
        xp = backend.device.array_module
        cuda = xp.cuda
        host = np.frombuffer(cuda.alloc_pinned_memory(16), np.float32)
        host[:] = [1, 2, 3, 4]
        side, there, ready = cuda.Stream(non_blocking=True), xp.empty(4, np.float32), cuda.Event()
        there.set(host, stream=side)
        ready.record(side)
        assert not ready.done and not side.done
        with pytest.raises(LaunchError, match="used on stream 0 while a copy"):
            there + 1
        cuda.get_current_stream().wait_event(ready)
        assert ready.done and side.done
        more = there + 1
        other = cuda.Stream(non_blocking=True)
        with other, pytest.raises(LaunchError, match="used on stream"):  # it has waited for nothing
            there + 1
        other.wait_event(cuda.get_current_stream().record())  # what stream 0 knows
        with other:
            assert (there + 1).get().tolist() == more.get().tolist() == [2, 3, 4, 5]

    def test_streams_that_block_wait_for_the_default_stream(self, backend):
        xp = backend.device.array_module
        host = np.frombuffer(xp.cuda.alloc_pinned_memory(4), np.float32)
        side, there = xp.cuda.Stream(), xp.empty(1, np.float32)
        for value in (1, 2):
            xp.cuda.runtime.deviceSynchronize()
            host[:] = value
            there.set(host, stream=side)
            xp.cuda.get_current_stream().synchronize()
            assert (there * 1).get().tolist() == [value]

    def test_from_other_memory_they_are_done_at_once(self, backend):
        xp = backend.device.array_module
        there = xp.empty(2, np.float32)
        there.set(np.ones(2, np.float32), stream=xp.cuda.Stream(non_blocking=True))
        assert there.get().tolist() == [1, 1]


def test_training_through_the_ring(backend):
    """Some steps with batches from the ring change the weights as the same steps with batches of the host do."""
    from rawgrad import functional as F
    from rawgrad import nn, optim

    def train(**options):
        rg.manual_seed(1)
        model = nn.Linear(3, 2).to(backend.device.name)
        optimizer = optim.SGD(model.parameters(), lr=1e-4)
        data = TensorDataset(X[:12], Y[:12] % 2)
        for x, y in DataLoader(data, 4, shuffle=True, seed=3, device=backend.device.name, **options):
            loss = F.cross_entropy(model(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return [p.detach().to("cpu").numpy().tobytes() for p in model.parameters()]

    assert train(num_workers=2) == train()


class TestResident:
    def test_the_whole_data_set_on_the_device(self, backend, monkeypatch):
        copied = []
        from_host = type(backend.device).from_host

        def counted(self, array):
            if self is backend.device:
                copied.append(array.nbytes)
            return from_host(self, array)

        monkeypatch.setattr(type(backend.device), "from_host", counted)
        monkeypatch.setattr(loader_module, "_HAND_OVER", 0)  # however slow batches are, readers are none of its matter
        half = Subset(TensorDataset(X, Y), range(39, 9, -1))
        for dataset in (TensorDataset(X, Y), half):
            loader = ahead(backend, dataset, resident=True)
            expected = DataLoader(dataset, 4, shuffle=True, seed=3)
            copied.clear()
            for _ in range(3):
                assert rows(loader) == [[p.numpy().tolist() for p in batch] for batch in expected]
            # The arrays once, and each epoch its order: nothing for a batch.
            assert copied == [12 * len(dataset), 8 * len(dataset), *3 * [8 * len(dataset)]]
            state = loader.state_dict()
            assert state == expected.state_dict()

    def test_one_that_does_not_fit_goes_through_the_ring(self, backend, monkeypatch):
        monkeypatch.setattr(backend.device.array_module.cuda.runtime, "memGetInfo", lambda: (1000, 2000))
        loader = ahead(backend, resident=True)
        iterator = iter(loader)
        assert rows(iterator) == plain(seed=3) and iterator._ring is not None

    def test_samples_are_refused(self, backend):
        with pytest.raises(ArgumentError, match="resident must be False for a data set without batch"):
            DataLoader(Samples(), device=backend.device.name, resident=True)
        with pytest.raises(ArgumentError, match="resident must be False without a GPU"):
            DataLoader(TensorDataset(X), resident=True)


def test_captured_steps_take_batches_from_everywhere(backend):
    """A step that is replayed reads fixed memory; batches from slots of the ring are copied there like others."""
    from rawgrad import nn, optim
    from rawgrad.engine.train import fit

    def losses(**options):
        rg.manual_seed(0)
        model = nn.Linear(3, 4).to(backend.device.name)
        loader = DataLoader(
            TensorDataset(X, Y % 4), 8, shuffle=True, seed=1, device=backend.device.name, **options
        )  # fmt: skip
        optimizer = optim.SGD(model.parameters(), lr=1e-3)
        return [
            step.loss
            for step in fit(
                model, loader, nn.CrossEntropyLoss(), optimizer, epochs=2, progress=False, capture=True
            ).steps
        ]

    assert losses() == losses(num_workers=2) == losses(resident=True)
