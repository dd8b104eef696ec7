"""Data sets, subsets and splits."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rawgrad.engine.data import Dataset, Subset, TensorDataset, random_split
from rawgrad.engine.data.dataset import batch_method, random_order
from rawgrad.kernels._errors import ArgumentError, IndexRangeError, ShapeError

X = np.arange(12, dtype=np.float32).reshape(6, 2)
Y = np.array([3, 1, 4, 1, 5, 9])


def test_tensor_dataset():
    dataset = TensorDataset(X, Y)
    assert len(dataset) == 6
    x, y = dataset[2]
    assert x.tolist() == [4, 5] and y == 4
    assert [int(y) for _, y in dataset] == [3, 1, 4, 1, 5, 9]
    x, y = dataset.batch(np.array([5, 0, 5]))
    assert x.tolist() == [[10, 11], [0, 1], [10, 11]] and y.tolist() == [9, 3, 9]
    x[:] = -1
    assert X[5, 0] == 10  # a batch is a copy


def test_tensor_dataset_refuses():
    with pytest.raises(ShapeError, match="argument 0 has 6, argument 1 has 5"):
        TensorDataset(X, Y[:5])
    with pytest.raises(ShapeError, match="at least 1 dimension"):
        TensorDataset(np.array(1.0))
    with pytest.raises(ArgumentError, match="argument 1 must be a Tensor or an array; got list"):
        TensorDataset(X, [1] * 6)
    with pytest.raises(ArgumentError, match="at least one"):
        TensorDataset()


def test_subset_of_a_subset():
    subset = Subset(Subset(TensorDataset(X, Y), [5, 3, 1]), [2, 0])
    assert len(subset) == 2
    assert [int(y) for _, y in subset] == [1, 9]
    _, y = batch_method(subset)(np.array([1, 1, 0]))
    assert y.tolist() == [9, 9, 1]
    assert len(Subset(TensorDataset(X), [])) == 0


@pytest.mark.parametrize("indices", [[0, 6], [-1]])
def test_subset_refuses_indices_outside(indices):
    with pytest.raises(IndexRangeError, match="from 0 to 5; got"):
        Subset(TensorDataset(X), indices)
    with pytest.raises(ArgumentError, match="integers"):
        Subset(TensorDataset(X), [0.5])


def test_a_changed_getitem_is_respected():
    class Doubled(TensorDataset):
        def __getitem__(self, index):
            return (2 * self.arrays[0][index],)

    class Plain(TensorDataset):
        pass

    class Listed(Dataset):
        pass

    assert batch_method(Doubled(X)) is None and batch_method(Subset(Doubled(X), [0])) is None
    assert batch_method(Listed()) is None and batch_method([1, 2]) is None
    assert batch_method(Plain(X)) is not None


def test_random_order_is_fixed_for_ever():
    key, counter = np.array([7, 2], np.uint64), np.array([0, 0, 0, 1], np.uint64)
    words = np.random.Philox(key=key, counter=counter).random_raw(5)
    assert random_order(7, 2, 5).tolist() == sorted(range(5), key=lambda i: words[i])
    assert random_order(7, 2, 0).tolist() == [] and random_order(7, 2, 1).tolist() == [0]
    assert random_order(7, 2, 8).tolist() == [1, 3, 0, 6, 4, 7, 5, 2]  # recorded: an old run must find its order again


@given(st.integers(0, 300), st.integers(0, 2**64 - 1), st.integers(0, 1000))
def test_random_order_is_a_permutation(length, seed, stream):
    order = random_order(seed, stream, length)
    assert sorted(order.tolist()) == list(range(length))
    assert np.array_equal(order, random_order(seed, stream, length))


def test_random_order_depends_on_seed_and_stream():
    orders = {tuple(random_order(seed, stream, 50)) for seed in range(4) for stream in range(4)}
    assert len(orders) == 16
    # Each sample comes first about equally often: 4 of 2000 orders of 4, expected 500 each, sigma 19.
    firsts = np.bincount([random_order(s, 0, 4)[0] for s in range(2000)], minlength=4)
    assert (abs(firsts - 500) < 90).all()


def test_random_split_counts_and_fractions_as_torch():
    torch = pytest.importorskip("torch")
    for total, lengths in [(10, [7, 3]), (10, [0.7, 0.2, 0.1]), (11, [0.5, 0.5]), (7, [0.3, 0.3, 0.4]), (5, [5, 0])]:
        parts = random_split(TensorDataset(np.arange(total)), lengths, seed=1)
        theirs = torch.utils.data.random_split(range(total), lengths)
        assert [len(p) for p in parts] == [len(p) for p in theirs]
        assert sorted(i for part in parts for i in part.indices.tolist()) == list(range(total))


def test_random_split_is_decided_by_its_source():
    dataset = TensorDataset(np.arange(100))
    first, second = (random_split(dataset, [50, 50], seed=s)[0].indices.tolist() for s in (1, 2))
    assert first == random_split(dataset, [50, 50], seed=1)[0].indices.tolist() and first != second
    a, b = (random_split(dataset, [50, 50], np.random.default_rng(3))[0].indices for _ in range(2))
    assert np.array_equal(a, b)


@pytest.mark.parametrize("lengths", [[5, 4], [0.5, 0.4], [], [-1, 11], [11, -1], [float("nan")], ["a"]])
def test_random_split_refuses(lengths):
    with pytest.raises(ArgumentError, match="lengths must"):
        random_split(TensorDataset(np.arange(10)), lengths, seed=0)
    with pytest.raises(ArgumentError, match="not both"):
        random_split(TensorDataset(np.arange(10)), [10], np.random.default_rng(0), seed=0)
