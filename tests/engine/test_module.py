"""Module: the tree, its state, hooks, devices, copies, and the layer path that errors carry."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest

import rawgrad as rg
from rawgrad import nn
from rawgrad.autograd.graph import detect_anomaly
from rawgrad.engine.module import current_layer_path
from rawgrad.kernels._errors import ArgumentError, CheckpointError, RawgradError, ShapeError


def array(*shape, seed=0, dtype=np.float32):
    return np.random.default_rng(seed).normal(size=shape).astype(dtype)


class Block(nn.Module):
    def __init__(self, size=3):
        super().__init__()
        self.fc = nn.Linear(size, size)
        self.act = nn.ReLU()

    def forward(self, x):
        return self.act(self.fc(x))


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(Block(), Block())
        self.scale = nn.Parameter(np.ones((), np.float32))
        self.register_buffer("seen", rg.tensor(np.zeros(2, np.int64)))
        self.register_buffer("scratch", rg.tensor(np.zeros(2, np.float32)), persistent=False)
        self.head = nn.Linear(3, 2, bias=False)

    def forward(self, x):
        return self.head(self.encoder(x)) * self.scale


class TestTree:
    def test_names_are_torchs(self):
        torch = pytest.importorskip("torch")

        class TorchBlock(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.fc = torch.nn.Linear(3, 3)
                self.act = torch.nn.ReLU()

        class TorchNet(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.encoder = torch.nn.Sequential(TorchBlock(), TorchBlock())
                self.scale = torch.nn.Parameter(torch.ones(()))
                self.register_buffer("seen", torch.zeros(2, dtype=torch.int64))
                self.register_buffer("scratch", torch.zeros(2), persistent=False)
                self.head = torch.nn.Linear(3, 2, bias=False)

        ours, theirs = Net(), TorchNet()
        assert list(ours.state_dict()) == list(theirs.state_dict())
        for walk in ("named_parameters", "named_buffers", "named_modules", "named_children"):
            assert [name for name, _ in getattr(ours, walk)()] == [name for name, _ in getattr(theirs, walk)()], walk
        assert repr(ours).replace("Net(", "") == repr(theirs).replace("TorchNet(", "").replace("TorchBlock", "Block")

    @pytest.mark.parametrize("name", ["trace", "summary", "train", "forward"])
    def test_a_layer_must_not_hide_behind_a_method(self, name):
        with pytest.raises(ArgumentError, match=f"Module: {name} is what every module has; choose another name"):
            setattr(nn.Module(), name, nn.Linear(2, 2))
        nn.Module().training = False

    def test_a_shared_parameter_is_counted_once_and_saved_under_each_name(self):
        class Tied(nn.Module):
            def __init__(self):
                super().__init__()
                self.a = nn.Linear(2, 2)
                self.b = self.a
                self.c = nn.Linear(2, 2)
                self.c.weight = self.a.weight

        tied = Tied()
        assert [name for name, _ in tied.named_parameters()] == ["a.weight", "a.bias", "c.bias"]
        assert list(tied.state_dict()) == ["a.weight", "a.bias", "b.weight", "b.bias", "c.weight", "c.bias"]
        assert [name for name, _ in tied.named_modules()] == ["", "a", "c"]

    def test_an_attribute_changes_its_kind(self):
        module = nn.Module()
        module.x = 3
        module.x = nn.Parameter(array(2))
        assert list(dict(module.named_parameters())) == ["x"] and "x" not in vars(module)
        module.x = None
        assert module.x is None and not list(module.parameters())
        module.x = nn.ReLU()
        assert [name for name, _ in module.named_children()] == ["x"] and not module._parameters
        del module.x
        with pytest.raises(AttributeError, match="'Module' object has no attribute 'x'"):
            _ = module.x

    def test_refusals(self):
        class Late(nn.Module):
            def __init__(self):
                self.fc = nn.Linear(1, 1)

        with pytest.raises(AttributeError, match=r"call super\(\).__init__\(\) before assigning 'fc'"):
            Late()
        net = Net()
        with pytest.raises(ArgumentError, match="head must stay a Module or become None; got int"):
            net.head = 3
        with pytest.raises(ArgumentError, match="scale must stay a Parameter"):
            net.scale = rg.tensor(1.0)
        with pytest.raises(ArgumentError, match="without dots"):
            net.add_module("a.b", nn.ReLU())
        with pytest.raises(ArgumentError, match="x must be a Tensor or None; got ndarray"):
            net.register_buffer("x", array(2))
        with pytest.raises(ArgumentError, match="x must be a Parameter or None"):
            net.register_parameter("x", rg.tensor(1.0))
        with pytest.raises(ArgumentError, match="hook: must be callable"):
            net.register_forward_hook(3)
        with pytest.raises(ArgumentError, match=r"no submodule 'encoder\.9'"):
            net.get_submodule("encoder.9")
        assert net.get_submodule("encoder.1.fc") is net.encoder[1].fc

    def test_train_eval_apply_and_gradients(self):
        net = Net()
        assert net.eval() is net and not any(m.training for m in net.modules())
        net.train()
        assert all(m.training for m in net.modules())
        order = []
        net.apply(lambda m: order.append(type(m).__name__))
        assert order == ["Linear", "ReLU", "Block", "Linear", "ReLU", "Block", "Sequential", "Linear", "Net"]
        net(rg.tensor(array(4, 3))).sum().backward()
        assert all(p.grad is not None for p in net.parameters())
        net.zero_grad(set_to_none=False)
        assert all(not p.grad.numpy().any() for p in net.parameters())
        net.zero_grad()
        assert all(p.grad is None for p in net.parameters())
        net.requires_grad_(False)
        assert not net(rg.tensor(array(4, 3))).requires_grad

    def test_double_and_back_keeps_the_parameters_objects(self):
        net = Net()
        before = list(net.parameters())
        net(rg.tensor(array(4, 3))).sum().backward()
        assert net.double() is net
        assert all(p is q for p, q in zip(before, net.parameters(), strict=True))
        assert {p.dtype for p in net.parameters()} | {p.grad.dtype for p in before} == {np.dtype(np.float64)}
        assert net.seen.dtype == np.int64 and net.scratch.dtype == np.float64
        assert net(rg.tensor(array(4, 3, dtype=np.float64))).dtype == np.float64
        assert net.float().scratch.dtype == np.float32
        assert net.to("cpu", np.float64).scale.dtype == np.float64
        with pytest.raises(RawgradError, match="device 'tpu' is not available"):
            net.to("tpu")
        with pytest.raises(ArgumentError, match="dtype must be float32, float64, float16, bfloat16; got int64"):
            net.to(np.int64)

    def test_deepcopy_and_pickle_are_independent(self):
        net = Net()
        net.register_forward_hook(lambda module, inputs, output: output + 1)
        twin = copy.deepcopy(net)
        x = rg.tensor(array(4, 3))
        np.testing.assert_array_equal(twin(x).detach().numpy(), net(x).detach().numpy())
        assert all(isinstance(p, nn.Parameter) and p.requires_grad for p in twin.parameters())
        assert not {id(m) for m in net.modules()} & {id(m) for m in twin.modules()}
        with rg.no_grad():
            twin.scale.copy_(7.0)
        twin._hooks.clear()
        assert net.scale.item() == 1.0 and len(net._hooks) == 1
        shared = nn.Sequential(block := Block(), block)
        assert (copied := copy.deepcopy(shared))[0] is copied[1]
        again = pickle.loads(pickle.dumps(Block()))
        assert [name for name, _ in again.named_parameters()] == ["fc.weight", "fc.bias"]


class TestState:
    def test_state_shares_memory_and_loads_bit_for_bit(self):
        source, target = Net(), Net()
        state = source.state_dict()
        assert not any(value.requires_grad for value in state.values())
        result = target.load_state_dict(state)
        assert result.missing_keys == [] and result.unexpected_keys == []
        for name, value in target.state_dict().items():
            np.testing.assert_array_equal(value.numpy(), state[name].numpy())
        with rg.no_grad():
            source.scale.fill_(3.0)
        assert state["scale"].item() == 3.0 and target.scale.item() == 1.0

    def test_every_problem_in_one_error_and_nothing_changed(self):
        net = Net()
        before = {name: value.numpy().copy() for name, value in net.state_dict().items()}
        state = {name: np.full(value.shape, 9, value.dtype) for name, value in before.items()}
        del state["seen"]
        state["extra.bias"] = array(1)
        state["head.weight"] = array(2, 4)
        state["scale"] = np.ones((), np.float64)
        with pytest.raises(CheckpointError) as caught:
            net.load_state_dict(state)
        text = str(caught.value)
        assert "missing keys: seen\n" in text
        assert "unexpected keys: extra.bias\n" in text
        assert "head.weight must have shape (2, 3); got (2, 4)" in text
        assert "scale must be float32; got float64" in text
        for name, value in net.state_dict().items():
            np.testing.assert_array_equal(value.numpy(), before[name])

    def test_not_strict_passes_over_names_but_not_shapes(self):
        net = Net()
        result = net.load_state_dict({"scale": np.float32(5.0), "other": array(1)}, strict=False)
        assert net.scale.item() == 5.0
        assert result.unexpected_keys == ["other"]
        assert set(result.missing_keys) == set(net.state_dict()) - {"scale"}
        with pytest.raises(CheckpointError, match=r"scale must have shape \(\); got \(1,\)"):
            net.load_state_dict({"scale": array(1)}, strict=False)
        with pytest.raises(CheckpointError, match="scale must be a tensor or an array; got object"):
            net.load_state_dict({"scale": object()}, strict=False)

    def test_loading_from_its_own_memory(self):
        layer = nn.Linear(2, 2)
        weight = layer.weight.detach().numpy().copy()
        layer.load_state_dict({"weight": layer.weight.detach().numpy().T, "bias": layer.bias})
        np.testing.assert_array_equal(layer.weight.detach().numpy(), weight.T)

    def test_a_graph_from_before_the_load_is_refused(self):
        layer = nn.Linear(2, 2)
        x = rg.tensor(array(1, 2), requires_grad=True)
        y = layer(x).sum()
        layer.load_state_dict(nn.Linear(2, 2).state_dict())
        with pytest.raises(RawgradError, match="modified in place"):
            y.backward()


class TestHooks:
    def test_forward_hooks_see_and_replace(self):
        layer, seen = nn.Linear(2, 3), []
        x = rg.tensor(array(1, 2))
        plain = layer(x).detach().numpy()
        first = layer.register_forward_pre_hook(lambda m, inputs: (inputs[0] * 2,))
        second = layer.register_forward_hook(lambda m, inputs, output: seen.append((m, inputs, output)))
        third = layer.register_forward_hook(lambda m, inputs, output: -output)
        doubled = layer(x)
        expected = 2 * plain - layer.bias.detach().numpy()
        np.testing.assert_allclose(doubled.detach().numpy(), -expected, rtol=1e-6)
        assert seen[0][0] is layer
        np.testing.assert_array_equal(seen[0][1][0].numpy(), 2 * x.numpy())
        np.testing.assert_allclose(seen[0][2].detach().numpy(), expected, rtol=1e-6)
        first.remove()
        second.remove()
        second.remove()
        with third:
            np.testing.assert_array_equal(layer(x).detach().numpy(), -plain)
        np.testing.assert_array_equal(layer(x).detach().numpy(), plain)
        assert len(seen) == 1

    def test_full_backward_hooks_agree_with_torch(self):
        torch = pytest.importorskip("torch")
        x, weight = array(4, 2), array(3, 2, seed=1)

        def run(lib, tensor, read):
            layer = lib.Linear(2, 3, bias=False)
            layer.load_state_dict({"weight": tensor(weight)})
            log = []
            layer.register_full_backward_pre_hook(lambda m, go: (go[0] * 3,))
            layer.register_full_backward_hook(lambda m, gi, go: log.append((gi, go)))
            layer.register_full_backward_hook(lambda m, gi, go: (gi[0] * 10,))
            leaf = tensor(x)
            leaf.requires_grad = True
            (layer(leaf) ** 2).sum().backward()
            return [read(t) for t in (log[0][0][0], log[0][1][0], leaf.grad, layer.weight.grad)]

        ours = run(nn, lambda a: rg.tensor(a.copy()), lambda t: t.detach().numpy())
        theirs = run(torch.nn, lambda a: torch.tensor(a), lambda t: t.detach().numpy())
        for a, b in zip(ours, theirs, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5)

    def test_full_backward_hook_where_no_input_needs_a_gradient(self):
        layer, log = nn.Linear(2, 3), []
        layer.register_full_backward_hook(lambda m, gi, go: log.append((gi, go[0].numpy())))
        layer(rg.tensor(array(4, 2))).sum().backward()
        assert log[0][0] == (None,)
        np.testing.assert_array_equal(log[0][1], np.ones((4, 3)))
        with rg.no_grad():
            layer(rg.tensor(array(4, 2)))
        assert len(log) == 1

    def test_a_backward_hook_must_return_as_many_gradients(self):
        layer = nn.Linear(2, 3)
        layer.register_full_backward_hook(lambda m, gi, go: (gi[0], gi[0]))
        with pytest.raises(ArgumentError, match="must return 1 gradients or None; got 2"):
            layer(rg.tensor(array(4, 2), requires_grad=True)).sum().backward()


class TestLayerPath:
    def test_nested(self):
        net = Net()
        net.encoder[1].fc = nn.Linear(5, 3)
        with pytest.raises(ShapeError) as caught:
            net(rg.tensor(array(4, 3)))
        assert caught.value.layer == "encoder.1.fc"
        assert str(caught.value).endswith("[in layer encoder.1.fc]")
        with pytest.raises(ShapeError) as caught:
            net.encoder[1](rg.tensor(array(4, 3)))
        assert caught.value.layer == "fc"
        with pytest.raises(ShapeError) as caught:
            net.encoder[1].fc(rg.tensor(array(4, 3)))
        assert caught.value.layer == ""

    def test_a_layer_shared_in_a_sequential_is_named_by_where_it_failed(self):
        shared = nn.Linear(2, 2)
        model = nn.Sequential({"first": shared, "widen": nn.Linear(2, 3), "again": shared})
        with pytest.raises(ShapeError) as caught:
            nn.Sequential(model)(rg.tensor(array(1, 2)))
        assert caught.value.layer == "0.again"

    def test_a_layer_shared_between_two_parents(self):
        shared = nn.Linear(2, 2)
        model = nn.Sequential(nn.Sequential(shared), nn.Linear(2, 3), nn.Sequential(nn.ReLU(), shared))
        with pytest.raises(ShapeError) as caught:
            model(rg.tensor(array(1, 2)))
        assert caught.value.layer == "2.1"

    def test_containers_that_are_not_called_and_layers_that_are_not_registered(self):
        class Listed(nn.Module):
            def __init__(self):
                super().__init__()
                self.layers = nn.ModuleList([nn.ReLU(), nn.Linear(3, 3)])
                self.hidden = [nn.Linear(4, 4)]

            def forward(self, x, hidden=False):
                return self.hidden[0](x) if hidden else self.layers[1](self.layers[0](x))

        with pytest.raises(ShapeError) as caught:
            Listed()(rg.tensor(array(1, 2)))
        assert caught.value.layer == "layers.1"
        with pytest.raises(ShapeError) as caught:
            Listed()(rg.tensor(array(1, 2)), hidden=True)
        assert caught.value.layer == "Linear"

    def test_what_forward_itself_raises_has_the_callers_path_only(self):
        class Own(nn.Module):
            def forward(self, x):
                raise ShapeError("own: no")

        with pytest.raises(ShapeError) as caught:
            nn.Sequential(nn.ReLU(), nn.Sequential(Own()))(rg.tensor(array(1, 2)))
        assert caught.value.layer == "1.0"

    def test_the_running_layer_in_anomaly_mode(self):
        paths = []

        class Spy(nn.Module):
            def forward(self, x):
                paths.append(current_layer_path())
                return x

        model = nn.Sequential(nn.Sequential(Spy()), Spy())
        with detect_anomaly():
            model(rg.tensor(array(1)))
        model(rg.tensor(array(1)))
        assert paths == ["0.0", "1", "", ""]

    def test_anomaly_mode_names_the_layer(self):
        class Logarithm(nn.Module):
            def forward(self, x):
                return x.log()

        model = nn.Sequential(nn.Identity(), nn.Sequential(Logarithm()))
        with detect_anomaly(), pytest.raises(rg.NonFiniteError, match=r"1\.0") as caught:
            model(rg.tensor(np.zeros(3, np.float32)))
        assert str(caught.value).count("1.0") == 1
