"""Layers against torch: representation, state, output and gradients; refused arguments."""

from __future__ import annotations

import numpy as np
import pytest
from engine_cases import LAYERS, LOSSES, target_of

import rawgrad as rg
from rawgrad import nn
from rawgrad.kernels._errors import ArgumentError, DtypeError, IndexRangeError, RawgradError, ShapeError


@pytest.mark.parametrize("name", LAYERS)
def test_agrees_with_torch(name):
    torch = pytest.importorskip("torch")
    make, shape = LAYERS[name]
    ours, theirs = make(nn), make(torch.nn).double()
    ours.double()
    stream = np.random.default_rng(1)
    for parameter in ours.parameters():  # no ones and zeros, which would hide mistakes
        parameter.array[...] = stream.normal(size=parameter.shape)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    theirs.load_state_dict({key: torch.tensor(value.numpy()) for key, value in ours.state_dict().items()})
    for step, training in enumerate((True, True, False)):
        ours.train(training)
        theirs.train(training)
        x = stream.normal(size=shape)
        a = rg.tensor(x, requires_grad=True)
        b = torch.tensor(x, requires_grad=True)
        y, z = ours(a), theirs(b)
        np.testing.assert_allclose(
            y.detach().numpy(), z.detach().numpy(), rtol=1e-9, atol=1e-11, err_msg=f"step {step}"
        )
        weight = stream.normal(size=y.shape)
        ours.zero_grad()
        theirs.zero_grad()
        (y * rg.tensor(weight)).sum().backward()
        (z * torch.tensor(weight)).sum().backward()
        np.testing.assert_allclose(a.grad.numpy(), b.grad.numpy(), rtol=1e-7, atol=1e-10)
        for (key, p), q in zip(ours.named_parameters(), theirs.parameters(), strict=True):
            np.testing.assert_allclose(p.grad.numpy(), q.grad.numpy(), rtol=1e-7, atol=1e-10, err_msg=key)
        for (key, s), t in zip(ours.named_buffers(), theirs.buffers(), strict=True):
            np.testing.assert_allclose(s.numpy(), t.numpy(), rtol=1e-12, err_msg=key)


@pytest.mark.parametrize("name", LAYERS)
def test_repr_is_torchs(name):
    torch = pytest.importorskip("torch")
    make, _ = LAYERS[name]
    theirs = repr(make(torch.nn))
    if not name.startswith("l"):  # newer torch tells of a bias option that ours has for LayerNorm and Linear only
        theirs = theirs.replace(", bias=True", "")
        theirs = theirs.replace(", bias=False", "") if "norm" in name else theirs
    assert repr(make(nn)) == theirs


def test_embedding_agrees_with_torch():
    torch = pytest.importorskip("torch")
    ours, theirs = nn.Embedding(6, 3, padding_idx=-2), torch.nn.Embedding(6, 3, padding_idx=-2)
    assert repr(ours) == repr(theirs)
    assert not ours.weight.detach().numpy()[4].any()
    theirs.load_state_dict({"weight": torch.tensor(ours.weight.detach().numpy())})
    index = np.array([[0, 4, 5], [5, 5, 1]])
    y, z = ours(rg.tensor(index)), theirs(torch.tensor(index))
    np.testing.assert_array_equal(y.detach().numpy(), z.detach().numpy())
    (y**2).sum().backward()
    (z**2).sum().backward()
    np.testing.assert_allclose(ours.weight.grad.numpy(), theirs.weight.grad.numpy(), rtol=1e-6)
    assert not ours.weight.grad.numpy()[4].any()


def test_dropout_in_training_and_not():
    rg.manual_seed(3)
    layer, x = nn.Dropout(0.25), rg.tensor(np.ones((100, 100), np.float32))
    y = layer(x).numpy()
    assert set(np.unique(y)) == {np.float32(0), np.float32(1 / 0.75)}
    assert abs((y == 0).mean() - 0.25) < 0.02
    assert (layer(x).numpy() != y).any()
    rg.manual_seed(3)
    np.testing.assert_array_equal(layer(x).numpy(), y)
    np.testing.assert_array_equal(layer.eval()(x).numpy(), x.numpy())
    assert repr(layer) == "Dropout(p=0.25)"


def test_p10s_padding_gives_its_sizes():
    x = rg.tensor(np.zeros((1, 1, 28, 28), np.float32))
    model = nn.Sequential(
        nn.ZeroPad2d((2, 3, 2, 3)), nn.Conv2d(1, 6, 6),
        nn.ZeroPad2d((1, 2, 1, 2)), nn.Conv2d(6, 12, 5, stride=2),
        nn.ZeroPad2d((1, 1, 1, 1)), nn.Conv2d(12, 24, 4, stride=2),
    )  # fmt: skip
    assert [model[:n](x).shape[-1] for n in (2, 4, 6)] == [28, 14, 7]


class TestContainers:
    def test_sequential_like_a_list(self):
        a, b, c, d = nn.ReLU(), nn.Tanh(), nn.Sigmoid(), nn.ELU()
        model = nn.Sequential(a, b).append(c)
        assert [name for name, _ in model.named_children()] == ["0", "1", "2"]
        assert model[-1] is c and list(model) == [a, b, c] and len(model) == 3
        assert list(model[1:]) == [b, c] and isinstance(model[1:], nn.Sequential)
        assert list(model[1:]._modules) == ["1", "2"]
        model[1] = d
        assert list(model) == [a, d, c]
        del model[0]
        assert list(model._modules.items()) == [("0", d), ("1", c)]
        model.insert(0, b).extend([a])
        assert list(model._modules.items()) == [("0", b), ("1", d), ("2", c), ("3", a)]
        del model[1:3]
        assert list(model._modules.items()) == [("0", b), ("1", a)]
        named = nn.Sequential({"act": a, "out": c})
        assert named.act is a and named[1] is c
        del named[0]
        assert list(named._modules) == ["out"]
        x = np.array([-1.0, 2.0], np.float32)
        np.testing.assert_allclose(nn.Sequential(a, b)(rg.tensor(x)).numpy(), np.tanh(np.maximum(x, 0)), rtol=1e-6)
        assert nn.Sequential()(x) is x

    def test_refusals(self):
        model = nn.Sequential(nn.ReLU())
        with pytest.raises(IndexRangeError, match=r"Sequential: index must lie in \[-1, 1\); got 1"):
            model[1]
        with pytest.raises(ArgumentError, match="index must be an integer or a slice; got 'a'"):
            model["a"]
        with pytest.raises(ArgumentError, match="0 must be a Module; got function"):
            nn.Sequential(lambda x: x)
        with pytest.raises(ArgumentError, match="must hold Modules; got int"):
            model.insert(0, 3)

    @pytest.mark.parametrize("activation", [nn.ReLU, nn.Sigmoid, nn.Tanh])
    def test_fused_linear_and_activation(self, activation):
        layers = nn.Linear(5, 4), activation(), nn.Linear(4, 3, bias=False), activation()
        self.check_fusion(nn.Sequential(*layers), (6, 5), "Linear", "Activation")

    @pytest.mark.parametrize("activation", [[], [nn.ReLU()], [nn.Tanh()]])
    def test_fused_linear_layers_with_dropout(self, activation):
        """Behind tanh dropout is a node of its own, and so is what follows; the bits are those of the layers alone."""
        layers = nn.Linear(5, 7), *activation, nn.Dropout(0.3), nn.Linear(7, 6), nn.ReLU(), nn.Dropout(0.5)
        model = nn.Sequential(*layers, nn.Linear(6, 3, bias=False), nn.ReLU())
        x, found = np.random.default_rng(0).normal(size=(2, 4, 5)).astype(np.float32), []
        for fuse in (True, False):
            model.fuse = fuse
            rg.manual_seed(7)
            a = rg.tensor(x, requires_grad=True)
            model.zero_grad()
            y = model(a)
            behind = y.grad_fn.name if fuse else None
            (y**2).sum().backward()
            found.append([t.numpy().tobytes() for t in (y.detach(), a.grad, *(p.grad for p in model.parameters()))])
            assert rg.autograd.random.default_generator.offset == 2  # as many draws, in the same order
            assert behind == ("Reshape" if fuse else None)
        assert found[0] == found[1]

    def test_one_node_for_layers_that_fit(self):
        def nodes(model):
            names, node = [], model(rg.tensor(np.ones((2, 4), np.float32))).grad_fn
            while node is not None:
                names.append(node.name)
                node = next((edge[0] for edge in node._edges if isinstance(edge, tuple)), None)
            return names

        relu, drop = nn.ReLU(), nn.Dropout(0.5)
        layers = nn.Linear(4, 5), relu, drop, nn.Linear(5, 4), nn.Sigmoid(), nn.Linear(4, 4)
        model = nn.Sequential(*layers)
        assert nodes(model) == ["Linear"]
        assert nodes(nn.Sequential(*layers[:4], nn.Tanh(), drop, nn.Linear(4, 2))) == ["Linear", "Dropout", "Linear"]
        with layers[3].register_forward_hook(lambda m, inputs, output: None):
            assert nodes(model) == ["Linear", "Activation", "Linear", "Linear"]
        half = nn.Linear(4, 4).half()
        with pytest.raises(DtypeError) as caught:
            nn.Sequential(*layers, half)(rg.tensor(np.ones((2, 4), np.float32)))
        assert caught.value.layer == "6"
        model.eval()
        y = model(rg.tensor(np.ones((2, 4), np.float32))).detach().numpy()
        assert y.tobytes() == model(rg.tensor(np.ones((2, 4), np.float32))).detach().numpy().tobytes()

    @pytest.mark.parametrize("pool", [nn.MaxPool2d(2), nn.MaxPool2d((3, 2), 1, padding=(1, 0), ceil_mode=True)])
    def test_fused_convolution_relu_and_pooling(self, pool):
        layers = nn.ReLU(), nn.Conv2d(2, 3, 3, padding=1, stride=(1, 2)), nn.ReLU(), pool
        self.check_fusion(nn.Sequential(*layers), (2, 2, 8, 9), "Conv2dReluPool", "MaxPool2d")

    def test_fused_zeros_and_convolution(self):
        layers = nn.ZeroPad2d((1, 2, 0, 3)), nn.Conv2d(2, 3, 4, padding=(1, 0), stride=2)
        self.check_fusion(nn.Sequential(nn.ReLU(), *layers), (2, 2, 8, 9), "Conv2d", "Conv2d of SetItem")

    @pytest.mark.parametrize("zeros", [[], [nn.ZeroPad2d((1, 2, 0, 3))]])
    def test_fused_convolution_and_relu(self, zeros):
        layers = nn.Tanh(), *zeros, nn.Conv2d(2, 3, 4, padding=(1, 0), stride=2), nn.ReLU()
        self.check_fusion(nn.Sequential(*layers), (2, 2, 8, 9), "Conv2dRelu", "Activation")

    def test_fused_zeros_convolution_relu_and_pooling(self):
        layers = nn.Tanh(), nn.ZeroPad2d((1, 2, 0, 3)), nn.Conv2d(2, 3, 4), nn.ReLU(), nn.MaxPool2d(2)
        self.check_fusion(nn.Sequential(*layers), (2, 2, 8, 9), "Conv2dReluPool", "MaxPool2d")

    def test_what_is_left_of_a_fusion_if_a_layer_is_watched(self):
        layers = nn.ZeroPad2d(1), nn.Conv2d(2, 3, 3), nn.ReLU(), nn.MaxPool2d(2)
        model, x = nn.Sequential(*layers), rg.tensor(np.ones((1, 2, 6, 6), np.float32))
        for watched, name in ((0, "Conv2dReluPool"), (1, "MaxPool2d"), (2, "MaxPool2d"), (3, "MaxPool2d")):
            seen = []
            with layers[watched].register_forward_hook(lambda m, inputs, output, seen=seen: seen.append(m)):
                assert model(x).grad_fn.name == name
            assert seen == [layers[watched]]

    @pytest.mark.parametrize("behind", [[], [nn.ReLU()], [nn.ReLU(), nn.MaxPool2d(2)]])
    def test_a_convolution_that_fails_behind_zeros_is_named(self, behind):
        model = nn.Sequential(nn.ZeroPad2d(1), nn.Conv2d(2, 3, 3), *behind)
        with pytest.raises(ShapeError) as caught:
            model(rg.tensor(np.zeros((2, 1, 4, 4), np.float32)))
        assert caught.value.layer == "1"

    def check_fusion(self, model, shape, fused_name, last_name):
        """The last layer is fused; not where it is watched, where it may not, or in anomaly mode."""
        x = np.random.default_rng(0).normal(size=shape).astype(np.float32)
        seen = []

        def run():
            a = rg.tensor(x, requires_grad=True)
            model.zero_grad()
            y = model(a)
            behind = y.grad_fn._edges[0][0].name if isinstance(model[-1], nn.Conv2d) else ""
            seen.append(y.grad_fn.name + (" of SetItem" if behind == "SetItem" else ""))
            (y**2).sum().backward()
            return [y.detach().numpy(), a.grad.numpy(), *(p.grad.numpy().copy() for p in model.parameters())]

        fused = run()
        with model[-1].register_forward_hook(lambda m, inputs, output: seen.append("hook")):
            hooked = run()
        nn.Sequential.fuse = False
        try:
            plain = run()
        finally:
            nn.Sequential.fuse = True
        with rg.autograd.graph.detect_anomaly():
            run()
        assert seen == [fused_name, "hook", last_name, last_name, last_name]
        for a, b, c in zip(fused, hooked, plain, strict=True):
            np.testing.assert_allclose(a, c, rtol=1e-5, atol=1e-6)
            np.testing.assert_allclose(b, c, rtol=1e-5, atol=1e-6)

    def test_a_fused_layer_that_fails_is_named(self):
        model = nn.Sequential(nn.ReLU(), nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(2, 2), nn.Tanh()))
        with pytest.raises(ShapeError) as caught:
            model(rg.tensor(np.zeros((2, 3), np.float32)))
        assert caught.value.layer == "1.2"

    def test_module_list(self):
        torch = pytest.importorskip("torch")

        def make(lib):
            return lib.ModuleList([lib.Linear(2, 2), lib.Linear(2, 2), lib.Sequential(lib.ReLU(), lib.Tanh())])

        assert repr(make(nn)) == repr(make(torch.nn))
        layers = make(nn)
        assert len(layers) == 3 and list(layers[:2]) == [layers[0], layers[1]]
        assert len(list(layers.parameters())) == 4
        with pytest.raises(NotImplementedError, match="ModuleList defines no forward"):
            layers(1)


REFUSED = {
    "Linear: in_features must be an integer of at least 1; got 0": lambda: nn.Linear(0, 1),
    "Linear: out_features must be an integer of at least 1; got 2.0": lambda: nn.Linear(1, 2.0),
    "Conv2d: in_channels must be an integer of at least 1; got True": lambda: nn.Conv2d(True, 1, 1),
    "Conv2d: kernel_size must be integers of at least 1; got 0": lambda: nn.Conv2d(1, 1, 0),
    "Conv2d: padding must be an integer or a pair of integers; got 'same'": lambda: nn.Conv2d(1, 1, 3, padding="same"),
    "Conv2d: padding_mode must be 'zeros'; got 'reflect'": lambda: nn.Conv2d(1, 1, 3, padding_mode="reflect"),
    "Conv2d: groups must divide in_channels and out_channels; got 2, 4, 3": lambda: nn.Conv2d(4, 3, 3, groups=2),
    "MaxPool2d: stride must be integers of at least 1; got 0": lambda: nn.MaxPool2d(2, stride=0),
    "AvgPool2d: divisor_override must be an integer of at least 1; got 0": lambda: nn.AvgPool2d(2, divisor_override=0),
    "ZeroPad2d: padding must be (left, right, top, bottom) or one integer, not negative; got (1, 2)":
        lambda: nn.ZeroPad2d((1, 2)),
    "ZeroPad2d: padding must be (left, right, top, bottom) or one integer, not negative; got -1":
        lambda: nn.ZeroPad2d(-1),
    "GELU: approximate must be 'none' or 'tanh'; got 'erf'": lambda: nn.GELU("erf"),
    "LeakyReLU: negative_slope must be a finite number >= 0; got 'a'": lambda: nn.LeakyReLU("a"),
    "Softplus: beta must be positive; got 0": lambda: nn.Softplus(beta=0),
    "Softmax: dim must be an integer; got None": lambda: nn.Softmax(None),
    "Dropout: p must be a finite number >= 0 and <= 1; got 2": lambda: nn.Dropout(2),
    "Dropout: p must be a finite number >= 0 and <= 1; got nan": lambda: nn.Dropout(float("nan")),
    "BatchNorm2d: num_features must be an integer of at least 1; got 0": lambda: nn.BatchNorm2d(0),
    "BatchNorm1d: momentum must be a finite number >= 0 and <= 1; got 3": lambda: nn.BatchNorm1d(2, momentum=3),
    "LayerNorm: normalized_shape must be an integer or a tuple of integers; got ()": lambda: nn.LayerNorm(()),
    "GroupNorm: num_groups must divide num_channels; got 2 and 3": lambda: nn.GroupNorm(2, 3),
    "Embedding: padding_idx must lie in [-3, 3); got 3": lambda: nn.Embedding(3, 2, padding_idx=3),
    "CrossEntropyLoss: reduction must be one of mean, sum, none; got 'x'": lambda: nn.CrossEntropyLoss(reduction="x"),
    "CrossEntropyLoss: label_smoothing must lie in [0, 1]; got 1.5": lambda: nn.CrossEntropyLoss(label_smoothing=1.5),
}  # fmt: skip


@pytest.mark.parametrize("message", REFUSED)
def test_bad_arguments_are_refused_at_construction(message):
    with pytest.raises(ArgumentError) as caught:
        REFUSED[message]()
    assert str(caught.value) == message


def test_wrong_ranks_dtypes_and_devices():
    with pytest.raises(ShapeError, match=r"BatchNorm2d: input must have shape \(N, C, H, W\); got \(2, 3\)"):
        nn.BatchNorm2d(3)(rg.tensor(np.zeros((2, 3), np.float32)))
    with pytest.raises(DtypeError, match="dtype must be float32, float64, float16 or bfloat16; got int32"):
        nn.Linear(1, 1, dtype=np.int32)
    with pytest.raises(RawgradError, match="device 'tpu' is not available"):
        nn.Linear(1, 1, device="tpu")
    assert nn.Conv2d(1, 1, 1, dtype=np.float64).weight.dtype == np.float64


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("name", LOSSES)
def test_losses_agree_with_torch(name, reduction):
    torch = pytest.importorskip("torch")
    make, kind, _ = LOSSES[name]
    stream = np.random.default_rng(5)
    x = stream.normal(size=(6, 4))
    target = target_of(kind, stream)
    ours = make(nn, rg.tensor, {"reduction": reduction})
    theirs = make(torch.nn, torch.tensor, {"reduction": reduction})
    assert list(ours.state_dict()) == list(theirs.state_dict())
    a, b = rg.tensor(x, requires_grad=True), torch.tensor(x, requires_grad=True)
    y, z = ours(a, rg.tensor(target)), theirs(b, torch.tensor(target))
    assert y.shape == tuple(z.shape)
    np.testing.assert_allclose(y.detach().numpy(), z.detach().numpy(), rtol=1e-10)
    y.sum().backward()
    z.sum().backward()
    np.testing.assert_allclose(a.grad.numpy(), b.grad.numpy(), rtol=1e-8, atol=1e-12)
