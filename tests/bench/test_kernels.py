"""The rows of single kernels, at small sizes: every contestant that is here gives the right result."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from threadpoolctl import threadpool_info, threadpool_limits

from rawgrad import backend, get_num_threads
from rawgrad.bench import harness, kernels, optimizer_step, peers, rivals, rows, shapes, single
from rawgrad.bench.small_cases import CASES
from rawgrad.kernels import _threads
from rawgrad.kernels._errors import ArgumentError, BackendError

PEERS = [peer for peer in ("torch", "jax", "tinygrad") if peers.problem(peer) is None]


@pytest.fixture(autouse=True)
def few_input_sets(monkeypatch):
    monkeypatch.setattr(kernels, "sets_past_cache", lambda _: 2)
    monkeypatch.setattr(optimizer_step, "sets_past_cache", lambda _: 2)


@pytest.mark.parametrize("name", CASES)
def test_all_contestants_are_right(name):
    who = ["rawgrad", kernels.REFERENCE, *PEERS, *(["numpy"] if name == "gemm" else [])]
    work = kernels.work("w", CASES[name](), who)
    assert [c.name for c in work.contestants] == who and work.missing == []
    harness.validate(work)
    for contestant in work.contestants:
        assert len(contestant.inputs) == 2


@pytest.mark.parametrize("name", ["conv2d  both", "layer_norm  backward", "gemm"])
def test_results_of_every_set_are_right(name):
    """What is prepared of a set belongs to it."""
    case = CASES[name]()
    inputs = kernels.inputs_of(case, lambda size: 3)
    assert len(inputs) == 3 and not np.array_equal(inputs[0][0], inputs[1][0])
    for one in kernels.work("w", case, ["rawgrad", *PEERS]).contestants:
        for arguments, of_set in zip(one.inputs, inputs, strict=False):
            host = np.asarray if one.name == "rawgrad" else peers.rival(one.name).host
            found = [host(part) for part in kernels.several(one.call(*arguments))]
            case.checked(found, kernels.right_of(case, of_set))


@pytest.mark.parametrize("name", CASES)
def test_a_kernel_that_is_a_little_wrong_is_refused(name):
    work = kernels.work("w", CASES[name](), ["rawgrad"])
    (one,) = work.contestants
    right = one.call

    def wrong(*arguments):
        first, *others = (np.array(part) for part in kernels.several(right(*arguments)))
        worst = np.unravel_index(np.abs(first).argmax(), first.shape)
        first[worst] *= 1.001
        return [first, *others]

    one.result = lambda: wrong(*one.inputs[0])
    with pytest.raises(harness.WrongResult, match="w: rawgrad"):
        harness.validate(work)


def test_dropout_that_drops_too_few_is_refused():
    case = CASES["dropout"]()
    (x, _) = kernels.inputs_of(case, lambda size: 1)[0]
    with pytest.raises(AssertionError, match=r"0\.1 of the elements must be dropped, within 0\.04; got 0"):
        case.checked((x / 0.9,), (x / 0.9,))


def test_scipy_is_right():
    for name in ("softmax  forward", "activation gelu forward", "activation sigmoid forward"):
        work = kernels.work("w", CASES[name](), ["rawgrad", "scipy"])
        assert [c.name for c in work.contestants] == ["rawgrad", "scipy"]
        harness.validate(work)


def test_float64_rows_hold_results_to_float64():
    row = kernels.named()["layer_norm_gpt_768_forward_float64"]
    assert row.make().bytes == 2 * kernels.named()["layer_norm_gpt_768_forward"].make().bytes
    small = kernels.cases.layer_norm_case(shapes.LayerNorm(5, 7, 8), "forward")
    work = kernels.work("w", small, ["rawgrad", *PEERS])
    assert work.dtype == "float64" and work.contestants[0].inputs[0][0].dtype == np.float64
    assert work.missing == []
    harness.validate(work)


def test_a_peer_that_fails_is_named_and_left_out(monkeypatch):
    def refuse(*_):
        raise RuntimeError("no such thing\nand more")

    monkeypatch.setattr(rivals.ScipyRival, "forward", refuse)
    work = kernels.work("w", CASES["softmax  forward"](), ["rawgrad", "scipy"])
    assert [c.name for c in work.contestants] == ["rawgrad"]
    (missing,) = work.missing
    assert (missing.name, missing.reason) == ("scipy", "RuntimeError: no such thing")


def test_a_slow_reference_is_named_with_its_time(monkeypatch):
    monkeypatch.setattr(kernels, "_PATIENCE", 0.0)
    work = kernels.work("w", CASES["softmax  forward"](), ["rawgrad", kernels.REFERENCE])
    row = harness.measure(work, rounds=1, min_round=1e-6, settle=0)
    assert [entry.name for entry in row.entries] == ["rawgrad"] and row.ratios == []
    (missing,) = row.missing
    assert missing.name == "rawgrad numpy" and "over 0 s it is left out" in missing.reason


@pytest.mark.parametrize("kind", ["sgd", "sgd_momentum", "adagrad", "rmsprop", "adam", "adamw"])
def test_steps_of_optimizers_are_right(kind):
    pytest.importorskip("torch")
    who = ["rawgrad", kernels.REFERENCE, *(peer for peer in PEERS if peer != "tinygrad")]
    work = optimizer_step.work("w", shapes.Update(kind, (5, 2100)), who)
    harness.validate(work)
    for one in work.contestants:
        one.call(*one.inputs[0])
    right = work.reference()
    with pytest.raises(AssertionError):
        work.check([part + 1e-5 for part in right], right)


def test_every_row_can_be_drawn_and_states_its_cost():
    for name, row in kernels.named().items():
        case = row.make()
        assert case.bytes > 0 and case.operation == row.operation and name.startswith(row.operation)
    with_every = {rows.ROWS[name].operation for name in rows.USUAL}
    folders = {path.parent.name for path in Path(kernels.__file__).parents[1].glob("kernels/*/reference.py")}
    assert folders <= with_every
    assert {rows.ROWS[row].operation for row, _ in single.cases()} == folders


def test_an_unknown_row_and_contestant_are_refused():
    with pytest.raises(ArgumentError, match=r"row must be one of --list, .*softmax.*near: gemm_1024.*; got 'gem_1024'"):
        rows.build("gem_1024")
    with pytest.raises(ArgumentError, match="contestant of gemm_1024 must be one of rawgrad, numpy, .*; got 'cupy'"):
        rows.build("gemm_1024", ["cupy"])


def test_a_missing_peer_is_a_clear_message(monkeypatch):
    monkeypatch.setattr(peers.importlib.util, "find_spec", lambda _: None)
    assert peers.available() == []
    assert rows.contestants("gemm_1024") == ["rawgrad", "numpy"]
    with pytest.raises(BackendError, match="peer 'torch' cannot run here: it is not installed; pip install torch"):
        peers.library.__wrapped__("torch")
    with pytest.raises(BackendError, match="peer 'jax' cannot run here: it is not installed; pip install jax"):
        peers.rival.__wrapped__("jax")
    with pytest.raises(BackendError, match="peer 'cupy' cannot run here: there is no such peer"):
        peers.library.__wrapped__("cupy")


def test_every_kernel_row_has_its_operation():
    for name, spec in rows.ROWS.items():
        assert name.startswith(spec.operation)
        assert name in rows.of_operation(spec.operation)


def test_peers_that_keep_their_threads_refuse_other_numbers(monkeypatch):
    monkeypatch.setattr(peers, "_planned", [2])
    monkeypatch.setitem(peers.sys.modules, "jax", None)
    peers.plan_threads(2)
    with pytest.raises(ArgumentError, match="bench: threads must be 2, with which jax.* began; got 1"):
        peers.plan_threads(1)


def test_compiled_takes_part_only_if_asked(monkeypatch):
    monkeypatch.setattr(rows, "problem", lambda peer: None)
    assert rows.contestants("layer_norm_odd_forward") == ["rawgrad", "rawgrad numpy", "torch", "jax", "tinygrad"]
    assert "torch compiled" in rows.contestants("layer_norm_odd_forward", compiled=True)
    assert rows.missing("layer_norm_odd_forward") == []
    monkeypatch.setattr(rows, "problem", lambda peer: "no compiler" if peer == "torch compiled" else None)
    (missing,) = rows.missing("layer_norm_odd_forward", compiled=True)
    assert (missing.name, missing.reason) == ("torch compiled", "no compiler")


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
