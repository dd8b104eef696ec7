"""DataLoader: which samples, in which order, assembled how, and going on from a saved position."""

from __future__ import annotations

from collections import Counter, namedtuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rawgrad.autograd import Tensor, manual_seed, tensor
from rawgrad.engine.data import DataLoader, Dataset, Subset, TensorDataset, collate
from rawgrad.kernels._errors import (
    ArgumentError,
    CheckpointError,
    DataError,
    DeviceError,
    DtypeError,
    IndexRangeError,
    ShapeError,
)

X = np.arange(20, dtype=np.float32).reshape(10, 2)
Y = np.arange(10) * 10


class Listed(Dataset):
    """Any samples, one by one."""

    def __init__(self, samples):
        self.samples = samples

    def __getitem__(self, index):
        return self.samples[index]

    def __len__(self):
        return len(self.samples)


def ids(loader):
    """The samples of each batch of one pass over a loader of TensorDataset(X, Y)."""
    return [[int(label) // 10 for label in y.numpy()] for _, y in loader]


def test_batches_in_order():
    batches = list(DataLoader(TensorDataset(X, Y), 4))
    assert [type(part) for part in batches[0]] == [Tensor, Tensor]
    assert [x.shape for x, _ in batches] == [(4, 2), (4, 2), (2, 2)]
    assert batches[2][0].numpy().tolist() == [[16, 17], [18, 19]] and batches[2][1].numpy().tolist() == [80, 90]
    assert batches[0][0].dtype == np.float32 and batches[0][1].dtype == np.int64
    assert not batches[0][0].requires_grad


@pytest.mark.parametrize(
    ("samples", "batch_size", "drop_last", "sizes"),
    [
        (10, 4, False, [4, 4, 2]),
        (10, 4, True, [4, 4]),
        (8, 4, True, [4, 4]),
        (3, 4, True, []),
        (3, 4, False, [3]),
        (0, 4, False, []),
        (2, 1, False, [1, 1]),
    ],
)
def test_length_and_last_batch(samples, batch_size, drop_last, sizes):
    loader = DataLoader(TensorDataset(X[:samples], Y[:samples]), batch_size, drop_last=drop_last)
    assert len(loader) == len(sizes)
    assert [len(batch) for batch in ids(loader)] == sizes


def test_the_default_batch_is_one_sample():
    assert ids(DataLoader(TensorDataset(X, Y)))[:2] == [[0], [1]]


def test_shuffling_depends_on_seed_and_epoch_alone():
    def passes(seed, count):
        loader = DataLoader(TensorDataset(X, Y), 3, shuffle=True, seed=seed)
        return [ids(loader) for _ in range(count)]

    first = passes(5, 3)
    assert first == passes(5, 3) and first != passes(6, 3)
    assert first[0] != first[1] != first[2]
    assert all(sorted(sum(one, [])) == list(range(10)) for one in first)
    loader = DataLoader(TensorDataset(X, Y), 3, shuffle=True, seed=5)
    np.random.seed(1)  # has no say
    loader.set_epoch(2)
    assert ids(loader) == first[2] and loader.epoch == 3
    # The batch size has no say in the order either.
    assert sum(ids(DataLoader(TensorDataset(X, Y), 7, shuffle=True, seed=5)), []) == sum(first[0], [])


def test_the_recorded_order():
    # Recorded, so that an order never changes: runs are resumed under later versions.
    assert sum(ids(DataLoader(TensorDataset(X, Y), 10, shuffle=True, seed=5)), []) == [6, 5, 9, 8, 1, 7, 4, 0, 3, 2]


def test_manual_seed_is_the_default():
    def order(seed):
        manual_seed(seed)
        return ids(DataLoader(TensorDataset(X, Y), 10, shuffle=True))

    assert order(1) == order(1) != order(2)
    assert order(5) == ids(DataLoader(TensorDataset(X, Y), 10, shuffle=True, seed=5))


def test_a_loop_left_early_is_an_epoch():
    loader = DataLoader(TensorDataset(X, Y), 3, shuffle=True, seed=5)
    orders = [sum(ids(loader), []) for _ in range(3)]
    again = DataLoader(TensorDataset(X, Y), 3, shuffle=True, seed=5)
    for _ in again:
        break
    assert again.epoch == 0
    assert sum(ids(again), []) == orders[1]
    assert sum(ids(again), []) == orders[2]


@given(st.integers(0, 12), st.integers(1, 5), st.booleans(), st.booleans(), st.integers(0, 14))
def test_resuming_from_any_batch(samples, batch_size, shuffle, drop_last, stop):
    """After ``stop`` batches over three epochs, a fresh loader goes on with exactly the rest."""

    def make(seed):
        data = TensorDataset(X.repeat(2, 0)[:samples], np.arange(samples) * 10)
        return DataLoader(data, batch_size, shuffle, drop_last=drop_last, seed=seed)

    def run(loader, state_after=None):
        seen = []
        if state_after == 0:
            return seen, loader.state_dict()
        while loader.epoch < 3:
            for _, y in loader:
                seen.append(y.numpy().tolist())
                if len(seen) == state_after:
                    return seen, loader.state_dict()
        return seen, loader.state_dict()

    whole, _ = run(make(9))
    begun, state = run(make(9), stop)
    resumed = make(0)
    resumed.load_state_dict(state)
    rest, _ = run(resumed)
    assert begun + rest == whole


def test_state_is_plain_and_checked():
    loader = DataLoader(TensorDataset(X, Y), 3, shuffle=True, seed=5)
    iterator = iter(loader)
    next(iterator), next(iterator)
    state = loader.state_dict()
    assert state["epoch"] == 0 and state["batch"] == 2 and state["seed"] == 5
    assert all(type(value) in (int, bool) for value in state.values())
    for other, words in [
        (DataLoader(TensorDataset(X, Y), 4, shuffle=True), "batch_size must be 4 as in this loader; the state has 3"),
        (DataLoader(TensorDataset(X, Y), 3), "shuffle must be False"),
        (DataLoader(TensorDataset(X[1:], Y[1:]), 3, shuffle=True), "samples must be 9"),
    ]:
        with pytest.raises(CheckpointError, match=words):
            other.load_state_dict(state)
    with pytest.raises(CheckpointError, match="must have the entry 'batch'"):
        loader.load_state_dict({"epoch": 1})
    with pytest.raises(CheckpointError, match="from 0 to 4; the state has 5"):
        loader.load_state_dict({**state, "batch": 5})
    with pytest.raises(CheckpointError, match="integers"):
        loader.load_state_dict({**state, "epoch": "1"})
    assert loader.state_dict() == state  # a refused state changes nothing


def test_array_data_sets_are_never_asked_sample_by_sample():
    class Guarded(TensorDataset):
        def __getitem__(self, index):
            raise AssertionError("asked for one sample")

        def batch(self, indices):
            return super().batch(indices)

    guarded = Guarded(X, Y)
    assert ids(DataLoader(guarded, 4)) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    assert ids(DataLoader(Subset(Subset(guarded, [9, 7, 5, 3]), [3, 0]), 4)) == [[3, 9]]


def test_both_ways_of_assembling_agree():
    plain = Listed([(x, int(y)) for x, y in zip(X, Y, strict=True)])
    for (a, b), (c, d) in zip(
        DataLoader(TensorDataset(X, Y), 4, shuffle=True, seed=1),
        DataLoader(plain, 4, shuffle=True, seed=1),
        strict=True,
    ):
        assert np.array_equal(a.numpy(), c.numpy()) and np.array_equal(b.numpy(), d.numpy())
        assert a.dtype == c.dtype and b.dtype == d.dtype


def test_non_contiguous_arrays_and_untouched_inputs():
    x, before = X[::-2, ::-1], X.copy()
    (batch,) = next(iter(DataLoader(TensorDataset(x), 3)))
    assert batch.numpy().tolist() == [[19, 18], [15, 14], [11, 10]]
    batch.numpy()[:] = 0
    assert np.array_equal(X, before)


def test_tensors_as_data():
    (x,) = next(iter(DataLoader(TensorDataset(tensor(X)), 2)))
    assert x.numpy().tolist() == [[0, 1], [2, 3]]
    (x,) = next(iter(DataLoader(Listed([(tensor(row),) for row in X]), 2)))
    assert x.numpy().tolist() == [[0, 1], [2, 3]]


Pair = namedtuple("Pair", "left right")


def test_collate_structures():
    batch = collate(
        [
            {"x": np.float32([1, 2]), "n": 1, "f": 0.5, "b": True, "s": "a", "p": Pair(1, [np.int16(4)])},
            {"x": np.float32([3, 4]), "n": 2, "f": 1.5, "b": False, "s": "b", "p": Pair(2, [np.int16(5)])},
        ]
    )
    assert batch["x"].tolist() == [[1, 2], [3, 4]] and batch["x"].dtype == np.float32
    assert batch["n"].tolist() == [1, 2] and batch["n"].dtype == np.int64
    assert batch["f"].tolist() == [0.5, 1.5] and batch["f"].dtype == np.float32
    assert batch["b"].tolist() == [True, False] and batch["b"].dtype == bool
    assert batch["s"] == ["a", "b"]
    assert isinstance(batch["p"], Pair) and batch["p"].left.tolist() == [1, 2]
    assert batch["p"].right[0].tolist() == [4, 5] and batch["p"].right[0].dtype == np.int16
    (delivered,) = DataLoader(Listed([Pair(1, {"k": 2.0}), Pair(3, {"k": 4.0})]), 2)
    assert isinstance(delivered, Pair) and isinstance(delivered.right["k"], Tensor)
    assert delivered.right["k"].numpy().tolist() == [2, 4]


@pytest.mark.parametrize(
    ("samples", "error", "words"),
    [
        (
            [(np.zeros(2), 0), (np.zeros(3), 0)],
            ShapeError,
            r"sample\[0\] must have one shape.*\(2,\), number 1 has \(3,\)",
        ),
        ([np.zeros(2), np.zeros(2, np.float32)], DtypeError, "one dtype.*float64.*float32"),
        ([(1, 2), (1,)], DataError, "one length.*2, number 1 has 1"),
        ([{"a": 1}, {"b": 1}], DataError, "one keys"),
        ([1, 2.0], DataError, "one type"),
        ([1, np.zeros(1)], DataError, "one type"),
        ([np.zeros(1), 1], DataError, "got int"),
        ([{"k": None}], DataError, r"sample\['k'\] must be an array.*got NoneType"),
    ],
)
def test_collate_refuses(samples, error, words):
    with pytest.raises(error, match=words):
        collate(samples)


def test_collate_fn():
    loader = DataLoader(Listed([1, 2, 3]), 2, collate_fn=lambda samples: {"sum": np.array(sum(samples)), "n": samples})
    first, second = loader
    assert isinstance(first["sum"], Tensor) and first["sum"].item() == 3 and first["n"] == [1, 2]
    assert second["sum"].item() == 3
    # It also replaces the fast way.
    assert list(DataLoader(TensorDataset(Y), 4, collate_fn=len)) == [4, 4, 2]


def test_sampler():
    class Backwards:
        epochs: list[int] = []

        def set_epoch(self, epoch):
            self.epochs.append(epoch)

        def __iter__(self):
            return iter(range(9, -1, -3))

        def __len__(self):
            return 4

    loader = DataLoader(TensorDataset(X, Y), 3, sampler=Backwards())
    assert len(loader) == 2 and ids(loader) == [[9, 6, 3], [0]] and ids(loader) == [[9, 6, 3], [0]]
    assert Backwards.epochs == [0, 1]
    with pytest.raises(ArgumentError, match="shuffle must be False when a sampler"):
        DataLoader(TensorDataset(X), shuffle=True, sampler=[0])
    with pytest.raises(IndexRangeError, match="from 0 to 9; got 10 at position 1"):
        list(DataLoader(TensorDataset(X), sampler=[0, 10]))


@pytest.mark.parametrize(
    ("option", "expected"),
    [
        *(({"batch_size": value}, "an integer of at least 1") for value in (0, 2.5, True, "4")),
        ({"prefetch": -1}, "an integer of at least 0"),
        *(({"num_workers": value}, "an integer from 0 to 1024") for value in (-1, 1025)),
        ({"seed": "x"}, "an integer; got 'x'"),
        *(({"timeout": value}, "seconds above 0, or None") for value in (0, "x", float("nan"))),
        ({"sampler": iter([1])}, "indices with a length, read again each epoch; got list_iterator"),
        ({"dataset": 5}, "a length and samples by index; got int"),
        ({"dataset": iter([5])}, "a length and samples by index; got list_iterator"),
    ],
)
def test_options_outside_their_domain(option, expected):
    with pytest.raises(ArgumentError, match=f"DataLoader: {next(iter(option))} must (be|have) {expected}"):
        DataLoader(**{"dataset": TensorDataset(X), **option})


def test_device():
    (x,) = next(iter(DataLoader(TensorDataset(X), 2, device="cpu")))
    assert x.numpy().tolist() == [[0, 1], [2, 3]]
    with pytest.raises(DeviceError, match="'nowhere' is not available"):
        DataLoader(TensorDataset(X), device="nowhere")
    with pytest.raises(ArgumentError, match="epoch must be"):
        DataLoader(TensorDataset(X)).set_epoch(-1)


def test_uneven_use_of_samples():
    """Every sample exactly once an epoch, for a size that no batch divides."""
    data = TensorDataset(np.arange(1009))
    loader = DataLoader(data, 64, shuffle=True, seed=0)
    counts = Counter(int(i) for _ in range(2) for (batch,) in loader for i in batch.numpy())
    assert set(counts.values()) == {2} and len(counts) == 1009
