"""trace: every call of a layer with what goes in and comes out; looking changes nothing."""

from __future__ import annotations

import traceback
import warnings

import numpy as np
import pytest

import rawgrad as rg
from rawgrad import nn
from rawgrad.autograd.random import default_generator
from rawgrad.engine import trace as trace_module
from rawgrad.engine.trace import Call, Values


def row(call: Call) -> tuple:
    return call.path, call.depth, [v.shape for v in call.inputs], [v.shape for v in call.outputs]


def host(tensor: rg.Tensor) -> np.ndarray:
    return tensor.detach().to("cpu").numpy()


def small_cnn() -> nn.Sequential:
    rg.manual_seed(3)
    return nn.Sequential(
        nn.Conv2d(1, 2, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
        nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Dropout(0.5)), nn.BatchNorm1d(6),
    )  # fmt: skip


@pytest.mark.backends("numba", "numpy", "emulated", "cuda")
def test_every_layer_by_itself_with_the_values_that_really_pass(backend):
    model = small_cnn().to(backend.device.name)
    x = rg.tensor(backend.put(np.random.default_rng(0).standard_normal((3, 1, 4, 4)).astype(np.float32)))
    assert model[0].weight.device == backend.device.name
    found = model.trace(x)
    # Sequential would run 0 to 2 as one call, and 4.0 to 4.2.
    assert [row(call) for call in found.calls] == [
        ("", 0, [(3, 1, 4, 4)], [(3, 6)]),
        ("0", 1, [(3, 1, 4, 4)], [(3, 2, 4, 4)]),
        ("1", 1, [(3, 2, 4, 4)], [(3, 2, 4, 4)]),
        ("2", 1, [(3, 2, 4, 4)], [(3, 2, 2, 2)]),
        ("3", 1, [(3, 2, 2, 2)], [(3, 8)]),
        ("4", 1, [(3, 8)], [(3, 6)]),
        ("4.0", 2, [(3, 8)], [(3, 6)]),
        ("4.1", 2, [(3, 6)], [(3, 6)]),
        ("4.2", 2, [(3, 6)], [(3, 6)]),
        ("5", 1, [(3, 6)], [(3, 6)]),
    ]
    assert [call.kind for call in found.calls[:3]] == ["Sequential", "Conv2d", "ReLU"]
    conv = host(model[0](x))
    [after] = found.calls[1].outputs
    assert (after.low, after.high) == (conv.min(), conv.max())
    assert found.calls[2].inputs == (after,) and found.calls[2].outputs[0].low == 0
    np.testing.assert_allclose(host(found.output), host(model(x)), 1e-5, 1e-6)  # the same mask, and still training
    assert found.trouble == "" and not found.output.requires_grad


def test_times_are_of_the_layer_and_not_of_the_looking(monkeypatch):
    """Each look at the clock adds a second; describing values takes a thousand."""
    now = [0.0]

    def clock():
        now[0] += 1
        return now[0]

    describe = trace_module._described

    def slow(value):
        now[0] += 1000
        return describe(value)

    monkeypatch.setattr(trace_module.time, "perf_counter", clock)
    monkeypatch.setattr(trace_module, "_described", slow)
    found = nn.Sequential(nn.Sequential(nn.ReLU()), nn.ReLU()).trace(rg.ones(2))
    # One from start to end, and for each call within: to its beginning, its own, and from its end.
    assert [call.seconds for call in found.calls] == [7, 3, 1, 1]


def test_nothing_is_changed_by_looking():
    model = small_cnn()
    model[4].eval()
    x = rg.randn(3, 1, 4, 4)
    model(x)  # the running statistics are not the first ones any more
    loss = model(x).sum()  # its graph must outlive the look
    before = {name: value.numpy().copy() for name, value in model.state_dict().items()}
    buffers, random = list(model.buffers()), default_generator.get_state()
    arrays, modes = [b.array for b in buffers], [m.training for m in model.modules()]
    model.trace(x)
    with pytest.raises(rg.ShapeError):
        model.trace(rg.zeros(3, 1, 4, 6))
    for name, value in model.state_dict().items():
        np.testing.assert_array_equal(value.numpy(), before[name], err_msg=name)
    assert all(one is other for one, other in zip(model.buffers(), buffers, strict=True))
    assert all(b.array is array for b, array in zip(model.buffers(), arrays, strict=True))
    assert [m.training for m in model.modules()] == modes and modes[0] and not modes[5]
    assert default_generator.get_state() == random
    assert all("forward" not in m.__dict__ for m in model.modules())
    assert all(p.grad is None for p in model.parameters())
    loss.backward()
    assert all(p.grad is not None for p in model.parameters())


def test_a_buffer_that_a_graph_has_saved_is_not_written():
    class Scales(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("scale", rg.ones(2))

        def forward(self, x):
            if self.training:
                with rg.no_grad():
                    self.scale.copy_(self.scale + 1)
            return x * self.scale

    model = Scales().eval()
    x = rg.ones(2, requires_grad=True)
    loss = model(x).sum()  # needs the scale for its gradient
    assert model.train().trace(x).output.numpy().tolist() == [2, 2]
    loss.backward()
    assert x.grad.numpy().tolist() == [1, 1]


def test_a_forward_of_the_instance_is_used_and_comes_back():
    layer = nn.ReLU()
    own = layer.forward = lambda x: x + 1
    found = layer.trace(rg.zeros(2))
    assert found.calls[0].outputs[0].high == 1
    assert layer.forward is own


class Several(nn.Module):
    """A layer with two inputs, one by name, and results in a tuple with a dict; one layer called twice."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(7, 4)
        self.shared = nn.Linear(4, 4)
        self.again = self.shared
        self.unused = nn.Linear(1, 1)

    def forward(self, tokens, *, scale):
        y = self.again(self.shared(self.embed(tokens)) * scale)
        return y, {"tokens": tokens, "none": None}, [y > 0]


def test_several_inputs_and_outputs_integers_and_a_shared_layer():
    model = Several()
    found = model.trace(rg.tensor(np.array([[1, 2, 6]])), scale=rg.tensor(np.float64(0.5)).to(dtype=np.float32))
    assert [call.path for call in found.calls] == ["", "embed", "shared", "shared"]
    whole, embed, *_ = found.calls
    assert whole.inputs == (Values((1, 3), "int64", 1, 6), Values((), "float32", 0.5, 0.5))
    assert [(v.shape, v.dtype) for v in whole.outputs] == [
        ((1, 3, 4), "float32"), ((1, 3), "int64"), ((1, 3, 4), "bool"),
    ]  # fmt: skip
    assert embed.inputs == (Values((1, 3), "int64", 1, 6),)
    lines = str(found).splitlines()
    assert lines[2].split() == [
        "Several", "(1,", "3)", "int64", "1", "…", "6", "-", "(1,", "3,", "4)", *lines[2].split()[-6:],
    ]  # fmt: skip
    assert lines[3].split()[:5] == ["()", "0.5", "…", "0.5", "-"]  # the second input, below the first
    assert lines[4].split()[:3] == ["(1,", "3,", "4)"] and "bool" in lines[4]  # the third output
    assert lines[5].startswith("  embed: Embedding")


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "bfloat16"])
def test_ranges_are_of_finite_values_and_the_others_are_counted(dtype):
    x = rg.tensor(np.array([1, np.nan, -2, np.inf, -np.inf, np.nan], np.float32)).to(dtype=dtype)
    [values] = nn.Flatten(0).trace(x).calls[0].inputs
    assert values == Values((6,), dtype, -2, 1, nans=2, infinities=2)
    assert values.cells()[1:] == ("-2 … 1", "2 NaN, 2 inf")
    [nothing] = nn.Flatten(0).trace(rg.tensor(np.full(3, np.nan, np.float32))).calls[0].inputs
    assert (nothing.low, nothing.high, nothing.nans) == (None, None, 3)


def test_empty_and_other_results():
    class Odd(nn.Module):
        def forward(self, x):
            return "no tensor"

    [call] = Odd().trace(rg.zeros(0, 3)).calls
    assert call.inputs == (Values((0, 3), "float32", None, None),) and call.outputs == ()
    [call] = nn.ReLU().trace(rg.zeros(0, 3)).calls
    assert call.outputs[0].cells() == ("(0, 3)", "-", "-")


class Log(nn.Module):
    def forward(self, x):
        return x.log()


def test_where_nan_came_up_first():
    model = nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.ReLU(), Log()), nn.Sigmoid())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = model.trace(rg.tensor(np.array([[np.inf, -np.inf], [1, 1]], np.float32)))
        assert found.trouble == "NaN or infinity went into 0 (Linear) and came from no layer before it"
        model[0].weight.array[...] = -1
        model[0].bias.array[...] = 0
        found = model.trace(rg.ones(1, 2))
        assert found.trouble == "NaN or infinity came out of 1.1 (Log) first"
        assert str(found).splitlines()[-1] == found.trouble
        model[0].bias.array[1] = np.nan
        found = model.trace(rg.ones(1, 2))
        assert found.trouble == "NaN or infinity came out of 0 (Linear) first, and is in its bias"


def test_an_error_tells_how_far_it_came():
    model = nn.Sequential(nn.Linear(3, 4), nn.Sequential(nn.ReLU(), nn.Linear(5, 2)), nn.ReLU())
    with pytest.raises(rg.ShapeError, match="in_features = 5") as caught:
        model.trace(rg.zeros(2, 3))
    assert caught.value.layer == "1.1"
    [note] = caught.value.__notes__
    told, _, *lines = note.splitlines()
    assert told == "how far the trace came:"
    first = [line.split()[0] for line in lines[1:-1]]
    assert first == ["Sequential", "0:", "1:", "0:", "1:"]  # not the last layer
    assert lines[2].split()[1:8] == ["Linear", "(2,", "3)", "0", "…", "0", "-"]
    assert lines[5].split()[-1] == "ShapeError" and "(2, 4)" in lines[5]
    assert note in "".join(traceback.format_exception(caught.value))
    with pytest.raises(TypeError, match="unexpected keyword"):  # by Python, before any layer runs
        nn.ReLU().trace(rg.zeros(1), mask=None)


def test_a_layer_that_catches_goes_on():
    class Tries(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.other = nn.Linear(3, 1), nn.Linear(2, 1)

        def forward(self, x):
            try:
                return self.one(x)
            except rg.ShapeError:
                return self.other(x)

    calls = Tries().trace(rg.zeros(1, 2)).calls
    assert [(call.path, call.depth, call.error) for call in calls] == [
        ("", 0, None), ("one", 1, "ShapeError"), ("other", 1, None),
    ]  # fmt: skip


def test_hooks_are_part_of_the_model():
    model = nn.Sequential(nn.ReLU())
    model[0].register_forward_pre_hook(lambda module, inputs: (inputs[0] * 2,))
    found = model.trace(rg.ones(1))
    assert found.calls[1].inputs[0].high == 2 and found.output.item() == 2


@pytest.mark.backends("emulated", "cuda")
def test_a_gpu_reports_bad_data_at_its_layer_and_a_capture_refuses(backend):
    model = nn.Sequential(nn.Flatten(0), nn.Embedding(3, 2), nn.ReLU()).to("cuda")
    with pytest.raises(rg.IndexRangeError) as caught:
        model.trace(rg.tensor(backend.put(np.array([1, 7]))))
    assert "1: Embedding" in caught.value.__notes__[0] and "2: ReLU" not in caught.value.__notes__[0]
    x = rg.tensor(backend.put(np.array([1, 2])))
    with pytest.raises(rg.CaptureError, match="the GPU was waited for"), rg.cuda.Graph().capture():
        model.trace(x)
