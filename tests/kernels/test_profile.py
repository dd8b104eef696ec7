"""The profile: every call of a kernel once, with its work; and nothing is left of it afterwards."""

from __future__ import annotations

import json
import threading
from itertools import pairwise

import numpy as np
import pytest

import rawgrad as rg
from rawgrad import functional as F
from rawgrad import nn, optim
from rawgrad.kernels import _profile
from rawgrad.kernels._dispatch import Operation
from rawgrad.kernels._errors import ArgumentError, IndexRangeError
from rawgrad.kernels._graph import DeviceGraph
from rawgrad.kernels._profile import REPLAY, Call, profile
from rawgrad.kernels._trace_events import Span, write
from rawgrad.kernels.activation import activation_forward
from rawgrad.kernels.adam import adam_step
from rawgrad.kernels.conv2d import (
    conv2d_backward_bias,
    conv2d_backward_input,
    conv2d_backward_parameters,
    conv2d_backward_weight,
    conv2d_forward,
    conv2d_relu_pool_forward,
    geometry,
)
from rawgrad.kernels.embedding import embedding_forward
from rawgrad.kernels.gemm import Layer, gemm, linear_backward, linear_layers_backward
from rawgrad.kernels.gemm import _operation as gemm_operation
from rawgrad.kernels.max_pool2d import geometry as pool_geometry
from rawgrad.kernels.sgd import sgd_step


def ones(*shape: int) -> np.ndarray:
    return np.ones(shape, np.float32)


def work(call, *arguments, **options) -> tuple[int, int]:
    """Bytes and operations of the one call of a kernel that ``call`` makes."""
    with rg.backend("numpy"), profile() as p:
        call(*arguments, **options)
    [noted] = p.calls
    assert noted.function == call.__name__ and noted.backend == "numpy"
    return noted.bytes, noted.operations


def test_products():
    assert work(gemm, ones(2, 3), ones(3, 5)) == (4 * (6 + 15 + 10), 2 * 30)
    assert work(gemm, ones(3, 2), ones(5, 3), ones(5), transpose_a=True, transpose_b=True) == (4 * (31 + 5), 60)
    assert work(gemm, ones(7, 1, 2, 3), ones(4, 3, 5)) == (4 * (42 + 60 + 280), 2 * 7 * 4 * 30)  # broadcast
    square, out = ones(4, 4), ones(4, 4)
    assert work(gemm, square, square, out=out)[0] == 4 * (16 + 16)  # each array once, in whatever roles
    grad, a, b = ones(2, 5), ones(2, 3), ones(5, 3)
    assert work(linear_backward, grad, a, b) == (4 * (10 + 6 + 15 + 6 + 15 + 5), 2 * 60)
    assert work(linear_backward, grad, a, b, wanted=(False, True, True))[1] == 60
    assert work(linear_backward, grad, a, b, wanted=(False, False, True))[1] == 0


@pytest.mark.parametrize(
    ("wanted", "products"),
    [
        (None, [3 * 5, 3 * 5, 5 * 2, 5 * 2]),
        ((False, True, True, True, True), [3 * 5, 5 * 2, 5 * 2]),  # as in a first layer
        ((False, False, True, False, True), [5 * 2]),  # the lower one is frozen
        ((False, True, False, False, False), [3 * 5, 5 * 2]),  # only through the upper one
    ],
)
def test_products_of_layers(wanted, products):
    x, hidden, w, v, grad = ones(7, 3), ones(7, 5), ones(5, 3), ones(2, 5), ones(7, 2)
    layers = (Layer("relu"), Layer())
    found = work(linear_layers_backward, grad, (x, hidden), (w, v), layers=layers, wanted=wanted)
    assert found[1] == 2 * 7 * sum(products)


def test_convolutions():
    x, weight, bias = ones(2, 4, 7, 6), ones(6, 2, 3, 2), ones(6)
    g = geometry(x.shape, weight.shape, (2, 1), 1, groups=2)
    grad = ones(*g.y_shape)
    multiplications = sum(2 * 3 * 2 for _ in np.ndindex(g.y_shape))  # C/G R S of each element of y
    assert g.y_shape == (2, 6, 4, 7)
    sizes = {name: 4 * a.size for name, a in {"x": x, "w": weight, "b": bias, "y": grad}.items()}
    options = {"stride": (2, 1), "padding": 1, "groups": 2}
    assert work(conv2d_forward, x, weight, bias, **options) == (sum(sizes.values()), 2 * multiplications)
    assert work(conv2d_backward_input, grad, weight, g) == (sum(sizes.values()) - sizes["b"], 2 * multiplications)
    assert work(conv2d_backward_weight, x, grad, g)[1] == 2 * multiplications
    assert work(conv2d_backward_parameters, x, grad, g) == (sum(sizes.values()), 2 * multiplications)
    assert work(conv2d_backward_bias, grad) == (sizes["y"] + sizes["b"], 0)
    p = pool_geometry(g.y_shape, 2)
    pooled = 2 * 6 * 2 * 3
    assert work(conv2d_relu_pool_forward, x, weight, bias, g, p) == (
        sum(sizes.values()) - sizes["y"] + 5 * pooled,  # what is pooled is never written; codes are bytes
        2 * multiplications,
    )


def test_steps_and_tables():
    lists = [[ones(3), ones(2, 2)] for _ in range(4)]
    assert work(adam_step, *lists, np.array([0.1]), np.array([1])) == (7 * 4 * 7 + 16, 0)  # all but the gradients twice
    assert work(sgd_step, *lists[:2], None, np.array([0.1]), np.array([1])) == (3 * 4 * 7 + 16, 0)
    table, tokens = ones(1000, 3), np.array([[1, 5], [1, 1]])
    assert work(embedding_forward, table, tokens) == (8 * 4 + 2 * 4 * 12, 0)  # not the 1000 rows


def model_and_step(device: str = "cpu"):
    rg.manual_seed(1)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Dropout(0.25), nn.Linear(8, 3)).to(device)
    adam = optim.Adam(model.parameters(), lr=0.01)
    x, labels = (rg.tensor(a, device=device) for a in (np.arange(24, dtype=np.float32).reshape(4, 6), np.arange(4) % 3))

    def step():
        loss = F.cross_entropy(model(x), labels)
        adam.zero_grad()
        loss.backward()
        adam.step()
        return loss

    return model, step


@pytest.mark.backends("numba", "numpy", "emulated", "cuda")
def test_a_step_is_the_same_and_each_kernel_counts_once(backend):
    plain, step = model_and_step(backend.device.name)
    step(), step()
    watched, step = model_and_step(backend.device.name)
    with profile() as p:
        step(), step()
    for one, other in zip(watched.parameters(), plain.parameters(), strict=True):
        np.testing.assert_array_equal(backend.get(one.array), backend.get(other.array))
    # Dropout is within gemm, also where that calls its kernel, and likewise in the way back.
    rows = {row.function: (row.backend, row.calls) for row in p.rows()}
    assert rows == {
        name: (backend.name, calls)
        for name, calls in {
            "gemm": 4,
            "softmax_cross_entropy_forward": 2,
            "linear_layers_backward": 2,
            "adam_step": 2,
        }.items()
    }
    assert {call.row for call in p.calls} == ({"MainThread"} if backend.device.name == "cpu" else {"GPU, stream 0"})
    assert all(0 <= call.begin - p._start <= call.end - p._start <= 1e9 * p.seconds for call in p.calls)
    assert 0 < p.outside() < p.seconds
    assert p.calls[0].shapes == ((4, 6), (8, 6), (8,), *([(1,)] if len(p.calls[0].shapes) > 3 else []))


def test_a_call_within_a_call_belongs_to_it():
    calls = []

    class Outer(Operation):
        def _kernel(self, function, device, version):
            return lambda x: calls.append(activation_forward(x, "relu")) or calls[-1]

    outer = Outer("rawgrad.kernels.dropout")
    with rg.backend("numpy"), profile() as p:
        outer.run("outer", "cpu", ones(2))
        activation_forward(ones(3), "relu")
    assert [(call.function, call.shapes) for call in p.calls] == [("outer", ((2,),)), ("activation_forward", ((3,),))]
    assert len(calls) == 1


def plain_methods() -> list:
    names = [(Operation, name) for name in ("run", "passed", "passes")]
    return [vars(kind)[name] for kind, name in (*names, (DeviceGraph, "launch"))]


def test_when_it_is_off_nothing_of_it_is_left():
    before, operands = plain_methods(), (ones(3, 4), ones(4, 17))
    with profile() as p, rg.backend("numpy"):
        assert not any(one is other for one, other in zip(plain_methods(), before, strict=True))
        gemm(*operands)  # of a kind that was not checked before
        gemm(*operands)
    assert all(one is other for one, other in zip(plain_methods(), before, strict=True))
    with rg.backend("numpy"):
        gemm(*operands)
    assert len(p.calls) == 2
    assert not any("_noted" in kernel.__qualname__ for kernel in gemm_operation._passed.values())


def test_an_error_ends_it_and_the_next_calls_are_noted():
    before = plain_methods()
    with rg.backend("numpy"), pytest.raises(KeyError), profile() as p:
        with pytest.raises(IndexRangeError):
            embedding_forward(ones(3, 2), np.array([7]))
        gemm(ones(1, 1), ones(1, 1))
        raise KeyError
    assert plain_methods() == before
    assert [call.function for call in p.calls] == ["gemm"]


def test_one_at_a_time_and_read_after_its_end():
    with profile() as p:
        with pytest.raises(ArgumentError, match="profile: only one can be on at a time"), profile():
            pass
        for read in (p.table, p.rows, p.outside, lambda: p.trace("x.json")):
            with pytest.raises(ArgumentError, match="profile: must be read after its block has ended"):
                read()
        assert str(p) == "a profile whose block has not ended"
        activation_forward(ones(1), "relu")
    assert len(p.calls) == 1
    with p:  # afresh
        pass
    assert p.calls == [] and "0 calls of kernels" in str(p)


@pytest.mark.parametrize("limits", [(1,), (0, 1), (1, -1), "ab", 3, (1, 2, 3), (float("nan"), 1)])
def test_limits_must_be_two_rates(limits):
    with profile() as p:
        pass
    with pytest.raises(ArgumentError, match="profile: limits must be bytes and operations per second, both positive"):
        p.table(limits)


def test_every_thread_is_seen_and_has_its_row():
    with rg.backend("numpy"), profile() as p:
        thread = threading.Thread(target=lambda: activation_forward(ones(2), "relu"), name="reader")
        thread.start()
        thread.join()
        activation_forward(ones(2), "relu")
    assert [call.row for call in p.calls] == ["reader", "MainThread"]


def planted() -> profile:
    """100 µs: one kernel from 10 to 30 and, in another thread, from 20 to 40; another from 50 to 60, noted until 65."""
    p = profile()
    p._start, p.seconds = 1_000_000, 1e-4

    def call(function, row, begin, end, noted, bytes, operations, shapes=((2, 3), 4)):
        begin, end, noted = (1_000_000 + 1000 * t for t in (begin, end, noted))
        return Call(function, "numba", shapes, row, begin, end, bytes, operations, (begin, begin, end, noted))

    p.calls = [
        call("gemm", "MainThread", 10, 30, 30, 20_000, 100_000),
        call("gemm", "other", 20, 40, 40, 40_000, 100_000, ((5, 5),)),
        call("adam_step", "MainThread", 50, 60, 65, 100_000, 0),
    ]
    return p


def test_times_that_overlap_count_once_and_noting_is_no_part():
    p = planted()
    assert p.outside() == pytest.approx((100 - 30 - 10 - 5) * 1e-6)
    lines = p.table().splitlines()
    assert lines[2].split() == "gemm numba 2 40 µs 20 µs 42.1 % 60 kB 1.5 200 k 5".split()  # of 95 µs
    assert lines[3].split() == "adam_step numba 1 10 µs 10 µs 10.5 % 100 kB 10 - -".split()
    assert lines[4].split() == "outside kernels 55 µs 57.9 %".split()
    assert lines[-1] == "3 calls of kernels in 95 µs; noting took 5 µs more"


def test_the_share_of_the_limit_is_of_each_calls_slower_side():
    p = planted()
    limits = 4e9, 1e10  # 20 kB take 5 µs, 40 kB 10, 100 kB 25; 100 k operations 10
    gemm_row, adam_row = p.rows(limits)
    assert gemm_row.least == pytest.approx(20e-6) and adam_row.least == pytest.approx(25e-6)
    lines = p.table(limits).splitlines()
    assert lines[0].endswith("of the limit")
    assert lines[2].endswith(" 50.0 %") and lines[3].endswith(" 250.0 %")
    assert all(row.least is None for row in p.rows())


def test_by_shapes():
    p = planted()
    assert [(row.function, row.shapes, row.calls) for row in p.rows(shapes=True)] == [
        ("gemm", "(2, 3) 4 arrays", 1), ("gemm", "(5, 5)", 1), ("adam_step", "(2, 3) 4 arrays", 1),
    ]  # fmt: skip
    assert [line.split("  ")[-1] for line in p.table(shapes=True).splitlines()[2:5]] == [
        "(2, 3) 4 arrays", "(5, 5)", "(2, 3) 4 arrays",
    ]  # fmt: skip


def test_trace_events(tmp_path):
    planted().trace(tmp_path / "trace.json")
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    assert {e["args"]["name"] for e in events if e["name"] == "thread_name"} == {"MainThread", "other"}
    spans = [e for e in events if e["ph"] == "X"]
    assert [(e["name"], e["tid"], e["ts"], e["dur"]) for e in spans] == [
        ("gemm", 1, 10, 20), ("gemm", 2, 20, 20), ("adam_step", 1, 50, 10),
    ]  # fmt: skip
    assert spans[0]["args"] == {
        "backend": "numba", "shapes": "(2, 3) 4 arrays", "microseconds": 20, "bytes": 20_000, "operations": 100_000,
    }  # fmt: skip


def test_trace_events_keep_the_rules_of_their_format(tmp_path):
    """Threads count from 1, and what follows each other to the nanosecond does not overlap."""
    times = [0, 1499, 2998, 4497, 1_000_003]
    spans = [Span("a", str(i), "k", b, e, {}) for i, (b, e) in enumerate(pairwise(times))]
    write(tmp_path / "trace.json", "title", spans, start=0)
    events = [e for e in json.loads((tmp_path / "trace.json").read_text())["traceEvents"] if e["ph"] == "X"]
    assert all(e["tid"] == 1 and isinstance(e["ts"], int) for e in events)
    assert all(one["ts"] + one["dur"] <= other["ts"] for one, other in pairwise(events))


def test_a_pinned_version_is_named(monkeypatch):
    from rawgrad.kernels.gemm import reference

    monkeypatch.setattr(reference, "VERSIONS", {"gemm": {"v1_planted": reference.gemm}}, raising=False)
    with rg.backend("numpy", gemm="v1_planted"), profile() as p:
        gemm(ones(2, 2), ones(2, 2))
    assert p.calls[0].backend == "numpy v1_planted"


@pytest.mark.backends("emulated", "cuda")
def test_a_captured_step_is_one_row(backend):
    _, step = model_and_step("cuda")
    graph = rg.cuda.Graph()
    with graph.warm_up():
        step()
    with profile() as p, graph.capture():
        step()  # runs nothing
    assert p.calls == []
    with profile() as p:
        graph.replay(), graph.replay()
    [row] = p.rows()
    assert (row.function, row.calls, row.bytes) == (REPLAY, 2, 0) and row.seconds > 0
    assert "(captured step)" in str(p)


@pytest.mark.backends("emulated", "cuda")
def test_a_gpu_that_fails_at_the_end_is_an_error_and_leaves_nothing(backend, monkeypatch):
    def fails(device):
        raise rg.LaunchError("the kernel failed")

    before, x = plain_methods(), backend.put(ones(4))
    for error in (rg.LaunchError, KeyError):  # its own, or the one that is under way
        p = profile()
        with monkeypatch.context() as patch, pytest.raises(error), p:
            activation_forward(x, "relu")
            with rg.backend("numpy"):
                activation_forward(ones(1), "relu")
            patch.setattr(type(backend.device), "synchronize", fails)
            if error is KeyError:
                raise KeyError
        assert plain_methods() == before
        assert [call.backend for call in p.calls] == ["numpy"] and "1 call of kernels" in str(p)


@pytest.mark.backends("emulated", "cuda")
def test_on_a_gpu_the_times_are_those_of_its_events(backend, monkeypatch):
    """Between its events a call takes the GPU's time, whatever the host needs to start it."""
    cuda = backend.device.array_module.cuda
    elapsed, x = cuda.get_elapsed_time, backend.put(ones(4))
    with profile() as p:
        activation_forward(x, "relu")
        [call] = p.calls
        start = call.events[1]
        monkeypatch.setattr(cuda, "get_elapsed_time", lambda one, other: 7.0 if one is start else 5.0, raising=False)
    assert call.end - call.begin == 2_000_000 and call.events is None
    monkeypatch.setattr(cuda, "get_elapsed_time", elapsed)
    assert _profile._on is None
