"""The programs' training steps, and whether the proof before timing would notice a wrong one."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from rawgrad.bench import forward, harness, peers, programs
from rawgrad.kernels._dispatch import backend_of

BATCH = 4


@pytest.fixture
def torch_library():
    pytest.importorskip("torch")
    return peers.library("torch")


@pytest.mark.parametrize("name", programs.PROGRAMS)
def test_sizes_are_the_networks(torch_library, name):
    """``shapes`` describes the network that is trained: parameters, and the shape after every convolution."""
    program = programs.PROGRAMS[name]
    network = program.network(torch_library)
    step = program.step(BATCH)
    assert sum(p.numel() for p in network.parameters()) == step.parameters()
    seen = []
    for layer in network:
        if isinstance(layer, torch_library.nn.Conv2d):
            layer.register_forward_hook(lambda _layer, _inputs, y: seen.append(tuple(y.shape)))
    images, _ = programs.batches(program, BATCH)[0]
    assert tuple(network(torch_library.tensor(images)).shape) == (BATCH, 10)
    assert seen == [(BATCH, c.K, c.P, c.Q) for c in step.convolutions]


@pytest.mark.parametrize("name", programs.PROGRAMS)
def test_float32_agrees_with_float64(torch_library, name):
    program = programs.PROGRAMS[name]
    right = programs.trace(torch_library, program, BATCH, np.float64)
    programs.check(programs.traces(torch_library, program, BATCH), right)
    assert len(set(right.losses)) == len(right.losses)  # it does train, each time on another batch
    assert all(np.linalg.norm(change) > 0 for change in right.changes)


def _rate(lib, parameters):
    return lib.optim.SGD(parameters, lr=0.01001)


def _decay(lib, parameters):
    return lib.optim.SGD(parameters, lr=0.01, weight_decay=0.01)


def _padding(lib):
    nn = lib.nn
    return nn.Sequential(
        *(nn.ZeroPad2d((1, 3, 2, 2)), nn.Conv2d(1, 20, 5), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(20, 20, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(980, 10)),
    )


@pytest.mark.parametrize("wrong", [{"optimizer": _rate}, {"optimizer": _decay}, {"network": _padding}])
def test_the_proof_notices_a_slightly_wrong_step(torch_library, wrong):
    program = programs.PROGRAMS["p5"]
    right = programs.trace(torch_library, program, BATCH, np.float64)
    with pytest.raises(AssertionError):
        programs.check(programs.traces(torch_library, dataclasses.replace(program, **wrong), BATCH), right)


@pytest.mark.parametrize(
    ("losses", "change", "message"),
    [
        ([2.0, np.nan], np.ones(3), r"losses\[1\] must be 1"),
        ([2.0, 1.5], np.ones(3), r"losses\[1\] must be 1"),
        ([2.0], np.ones(3), r"losses must have shape \(2,\); got \(1,\)"),
        ([2.0, 1.0], np.full(3, np.nan), "parameter 0 must be the reference's within .* got nan"),
        ([2.0, 1.0], np.array([1, 1, 1.1]), "parameter 0 must be the reference's within"),
        ([2.0, 1.0], np.ones((1, 3)), r"parameter 0 must have shape \(3,\); got \(1, 3\)"),
    ],
)
@pytest.mark.parametrize("dtype", [0, 1])
def test_the_proof_says_what_is_wrong(losses, change, message, dtype):
    right = programs.Trace([2.0, 1.0], [np.ones(3)])
    programs.check([right, right], right)
    results = [right, right]
    results[dtype] = programs.Trace(losses, [change])
    name = ["float64", "float32"][dtype]
    with pytest.raises(AssertionError, match=f"{name} {message}"):
        programs.check(results, right)


def test_batches_and_weights_are_the_same_in_every_run():
    program = programs.PROGRAMS["p9"]
    for (x, t), (again_x, again_t) in zip(programs.batches(program, 3), programs.batches(program, 3), strict=True):
        assert x.shape == (3, 784) and x.dtype == np.float32 and t.dtype == np.int64
        assert np.array_equal(x, again_x) and np.array_equal(t, again_t)
        assert x.min() >= 0 and x.max() < 1 and 0.7 < np.mean(x == 0) < 0.9
    shapes = [(10, 784), (10,)]
    first, second = programs.initial_weights(shapes), programs.initial_weights(shapes)
    assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))
    assert first[0].std() == pytest.approx(np.sqrt(2 / 784), rel=0.05)


@pytest.mark.parametrize("name", programs.PROGRAMS)
def test_rawgrad_and_its_peer_are_right(name):
    """What ``rawgrad bench`` demands before timing, at a small batch."""
    from rawgrad.bench import rows

    who = rows.contestants(f"train_step_{name}_batch100")
    harness.validate(programs.train_step(name, BATCH, who))


def test_each_turn_trains_from_the_same_weights():
    work = programs.train_step("p9", BATCH, ["rawgrad"])
    (one,) = work.contestants
    losses = []
    for _ in range(2):
        one.reset()
        losses.append([float(one.call(*inputs).item()) for inputs in one.inputs[:3]])
    assert losses[0] == losses[1]
    assert len(set(losses[0])) == 3


@pytest.mark.parametrize("name", ["p5", "p9", "p10"])
def test_forward_alone_is_right_and_a_wrong_network_is_noticed(name):
    from rawgrad.bench import rows

    work = forward.forward(name, BATCH, rows.contestants(f"forward_{name}_batch100"))
    harness.validate(work)
    assert 2 * work.flops < programs.PROGRAMS[name].step(BATCH).flops() < 3 * work.flops
    result = work.contestants[0].checked_result()
    result[1][1] = result[1][1] + 1e-4
    with pytest.raises(AssertionError, match=r"float32 outputs\[1\]"):
        work.check(result, work.reference())


def test_forward_alone_builds_no_graph():
    (one,) = forward.forward("p5", BATCH, ["rawgrad"]).contestants
    assert not one.call(*one.inputs[0]).requires_grad


def test_the_reference_takes_part_on_its_own_backend():
    """In every call, whatever is active around it."""
    seen = []

    def make(lib):
        def note():
            seen.append(backend_of("cpu"))

        return harness.Contestant(lib.name, note, result=note, reset=note)

    one = programs.by_name("rawgrad numpy", make)
    one.call(), one.result(), one.reset()
    assert seen == ["numpy"] * 3 and one.name == "rawgrad numpy" and "backend numpy" in one.detail
    assert programs.by_name("rawgrad", make).call() is None and seen[3] == backend_of("cpu")
