"""The rows of single kernels, at small sizes: every contestant that is here gives the right result."""

from __future__ import annotations

import numpy as np
import pytest
from threadpoolctl import threadpool_info, threadpool_limits

from rawgrad import backend, get_num_threads
from rawgrad.bench import harness, kernels, peers, rows, shapes
from rawgrad.kernels import _threads
from rawgrad.kernels._errors import ArgumentError, BackendError

PEERS = peers.available()
WORKS = {
    "gemm": lambda who: kernels.gemm_work("w", shapes.Gemm(3, 5, 2), who),
    "conv2d": lambda who: kernels.conv2d_work("w", shapes.Conv2d(2, 3, 7, 6, 4, 3, 2, 1), True, who),
    "conv2d first layer": lambda who: kernels.conv2d_work(
        "w", shapes.Conv2d(2, 1, 7, 7, 4, 5, 5, 2, shapes.Pad(2, 2, 2, 2)), False, who
    ),
    "max_pool2d": lambda who: kernels.max_pool2d_work("w", shapes.MaxPool2d(2, 3, 7, 6, 2, 2), who),
    "softmax_cross_entropy": lambda who: kernels.softmax_cross_entropy_work("w", shapes.SoftmaxCrossEntropy(5, 4), who),
}


@pytest.fixture(autouse=True)
def few_input_sets(monkeypatch):
    monkeypatch.setattr(kernels, "sets_past_cache", lambda _: 2)


@pytest.mark.parametrize("name", WORKS)
def test_all_contestants_are_right(name):
    who = ["rawgrad", *PEERS, *(["numpy"] if name == "gemm" else [])]
    work = WORKS[name](who)
    assert [c.name for c in work.contestants] == who
    harness.validate(work)
    for contestant in work.contestants:  # the same numbers for all, other numbers in each set
        assert len(contestant.inputs) == 2
        for mine, first in zip(contestant.inputs, work.contestants[0].inputs, strict=True):
            assert all(np.array_equal(np.asarray(a), b) for a, b in zip(mine, first, strict=True))
        assert not np.array_equal(*(np.asarray(one[0]) for one in contestant.inputs))


@pytest.mark.parametrize("name", WORKS)
def test_a_kernel_that_is_a_little_wrong_is_refused(name):
    work = WORKS[name](["rawgrad"])
    (one,) = work.contestants
    right = one.call

    def wrong(*arguments):
        first, *others = (np.array(part) for part in right(*arguments))
        first[(0,) * first.ndim] *= 1.001
        first[(0,) * first.ndim] += 1e-3
        return [first, *others]

    one.result = lambda: wrong(*one.inputs[0])
    with pytest.raises(harness.WrongResult, match="w: rawgrad"):
        harness.validate(work)


def test_an_unknown_row_and_contestant_are_refused():
    with pytest.raises(ArgumentError, match=r"row must be one of .*gemm_1024.*; got 'gem'"):
        rows.build("gem")
    with pytest.raises(ArgumentError, match="contestant of gemm_1024 must be one of rawgrad, numpy, torch; got 'jax'"):
        rows.build("gemm_1024", ["jax"])


def test_a_missing_peer_is_a_clear_message(monkeypatch):
    monkeypatch.setattr(peers.importlib.util, "find_spec", lambda _: None)
    assert peers.available() == []
    assert rows.contestants("gemm_1024") == ["rawgrad", "numpy"]
    with pytest.raises(BackendError, match="peer 'torch' cannot run here: it is not installed; pip install torch"):
        peers.library.__wrapped__("torch")
    with pytest.raises(BackendError, match="peer 'jax' cannot run here: there is no such peer"):
        peers.library.__wrapped__("jax")


def test_every_kernel_row_has_its_operation():
    for name, spec in rows.ROWS.items():
        assert name.startswith(spec.operation)
        assert name in rows.of_operation(spec.operation)


@pytest.mark.parametrize("count", [1, 2])
def test_all_contestants_get_the_same_number_of_threads(count, monkeypatch):
    """Only as many as there are; NumPy's BLAS too, which the compiled kernels leave one when they are loaded."""
    if count > _threads.most_threads():
        pytest.skip("this machine has one processor")
    monkeypatch.setattr(_threads, "count", _threads.count)
    torch = pytest.importorskip("torch")
    before = torch.get_num_threads()
    with threadpool_limits(3):
        try:
            peers.set_threads(count)
            assert get_num_threads() == count
            assert {p["num_threads"] for p in threadpool_info() if p["user_api"] == "blas"} <= {count}
            assert torch.get_num_threads() == count
            with backend("numpy"):
                peers.set_threads(1)  # does not concern compiled kernels
            peers.set_threads(1, ours=False)
            assert get_num_threads() == count
        finally:
            torch.set_num_threads(before)
    with pytest.raises(ArgumentError, match="set_num_threads: "):
        peers.set_threads(10**6)
