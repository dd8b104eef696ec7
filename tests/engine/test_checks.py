"""Each check speaks where its trouble was planted, and only there; ten healthy runs hear nothing."""

from __future__ import annotations

import numpy as np
import pytest
from _runs import bits, run

import rawgrad as rg
from rawgrad import data, nn, optim
from rawgrad import functional as F
from rawgrad.engine.train.checks import dead_units
from rawgrad.recipes.networks import build
from rawgrad.train import Checks, Limits, fit


@pytest.fixture(scope="module")
def digits():
    """Images and labels of training and validation."""
    splits = data.Digits.splits()
    return {name: splits[name].batch(np.arange(len(splits[name]))) for name in ("train", "validation")}


def found(model, digits, optimizer, epochs=3, batch=32, loss=F.cross_entropy, change=None, limits=None, samples=None):
    """The kinds of trouble that a training of ``model`` has."""
    images, labels = (part[:samples].copy() for part in digits["train"])
    if change is not None:
        images, labels = change(images, labels)
    loader = data.DataLoader(data.TensorDataset(images, labels), batch, shuffle=True, seed=1)
    validation = data.DataLoader(data.TensorDataset(*digits["validation"]), 270)
    said = []
    checks = Checks(said.append, limits)
    fit(model, loader, loss, optimizer(model.parameters()), epochs=epochs, validation=validation, progress=False,
        callbacks=[checks])  # fmt: skip
    assert said == checks.found
    return checks.found


def mlp(*sizes, activation=nn.ReLU):
    layers = [nn.Flatten()]
    for inputs, outputs in zip((64, *sizes), (*sizes, 10), strict=True):
        layers += [nn.Linear(inputs, outputs), activation()]
    return nn.Sequential(*layers[:-1])


def seeded(seed, make):
    rg.manual_seed(seed)
    return make()


HEALTHY = {
    "CNN, batch norm, dropout, Adam": (lambda: build("small_cnn", {"channels": 8}), lambda p: optim.Adam(p, 3e-3)),
    "the same, another seed": (lambda: build("small_cnn", {"channels": 8}), lambda p: optim.Adam(p, 1e-3)),
    "CNN, momentum": (lambda: build("small_cnn", {"channels": 4}), lambda p: optim.SGD(p, 0.02, momentum=0.9)),
    "MLP, ReLU, SGD": (lambda: mlp(64, 32), lambda p: optim.SGD(p, 0.1)),
    "MLP, ReLU, Adam": (lambda: mlp(100, 60, 30), lambda p: optim.Adam(p, 3e-3)),
    "MLP, sigmoid, Adam": (lambda: mlp(50, activation=nn.Sigmoid), lambda p: optim.Adam(p, 1e-2)),
    "MLP, tanh, RMSprop": (lambda: mlp(50, 20, activation=nn.Tanh), lambda p: optim.RMSprop(p, 1e-3)),
    "MLP, GELU, AdamW": (lambda: mlp(50, 20, activation=nn.GELU), lambda p: optim.AdamW(p, 3e-3)),
    "MLP, Adagrad": (lambda: mlp(50), lambda p: optim.Adagrad(p, 0.03)),
    "softmax regression, SGD": (lambda: mlp(), lambda p: optim.SGD(p, 0.5)),
}


@pytest.mark.parametrize("name", HEALTHY)
def test_healthy_runs_hear_nothing(name, digits):
    make, optimizer = HEALTHY[name]
    assert not found(seeded(len(name), make), digits, optimizer, epochs=6)


def saturated():
    model = mlp(30, 30, 30, 30, 30, 30, activation=nn.Sigmoid)
    for p in model.parameters():
        p.array *= np.float32(0.1)
    return model


def large():
    model = mlp(30, 30, 30)
    for p in model.parameters():
        p.array *= np.float32(8)
    return model


def drowned():
    model = mlp(64, 32)
    model[1].bias.array[:50] = -1000.0
    return model


def shuffled(images, labels):
    return images, np.random.default_rng(0).permutation(labels)


PLANTED = {
    "vanishing gradients": (saturated, lambda p: optim.SGD(p, 0.1), {"epochs": 1}),
    "exploding gradients": (large, lambda p: optim.SGD(p, 1.0), {"epochs": 1, "loss": lambda p, t: (p * p).mean()}),
    "dead units": (drowned, lambda p: optim.Adam(p, 1e-3), {"epochs": 1}),
    "loss does not move": (lambda: mlp(30), lambda p: optim.SGD(p, 1e-7), {"epochs": 6}),
    "labels do not fit": (lambda: mlp(10), lambda p: optim.SGD(p, 0.01), {"epochs": 5, "change": shuffled}),
    "overfitting": (lambda: mlp(200), lambda p: optim.Adam(p, 1e-2), {"epochs": 60, "samples": 60, "batch": 20}),
}


class TestPlanted:
    @pytest.mark.parametrize("kind", PLANTED)
    @pytest.mark.filterwarnings("ignore::RuntimeWarning")
    def test_each_is_noticed_once(self, kind, digits):
        make, optimizer, options = PLANTED[kind]
        troubles = found(seeded(0, make), digits, optimizer, **options)
        (trouble,) = (trouble for trouble in troubles if trouble.kind == kind)
        assert str(trouble).startswith(f"after step {trouble.step}: {kind}: ") and len(trouble.sentence) > 60

    def test_what_is_said_names_the_layer(self, digits):
        make, optimizer, options = PLANTED["dead units"]
        (trouble,) = found(seeded(0, make), digits, optimizer, **options)
        assert trouble.sentence.startswith("80% of the units of the ReLU 2 are 0") and trouble.step == 2

    def test_limits_can_be_set(self, digits):
        make, optimizer, options = PLANTED["dead units"]
        assert not found(seeded(0, make), digits, optimizer, limits=Limits(dead=0.9), **options)


def test_bits_do_not_change(tmp_path):
    run(tmp_path / "with", callbacks=[Checks()])
    run(tmp_path / "without")
    assert bits(tmp_path / "with") == bits(tmp_path / "without")


def test_labels_that_are_no_classes_are_left_alone(digits, capsys):
    def squared(predictions, targets):
        return F.mse_loss(predictions[:, :1], targets)

    def numbers(images, labels):
        return images, labels[:, None].astype(np.float32)

    images, labels = digits["train"]
    loader = data.DataLoader(data.TensorDataset(*numbers(images, labels)), 64)
    model, checks = seeded(0, mlp), Checks()
    optimizer = optim.SGD(model.parameters(), 0.05)
    fit(
        model, loader, squared, optimizer, epochs=2, progress=False, score=lambda p, t: float("nan"), callbacks=[checks]
    )
    assert not checks.found and not capsys.readouterr().err


def test_on_stderr_by_default(digits, capsys):
    make, optimizer, _ = PLANTED["dead units"]
    model = seeded(0, make)
    images, labels = digits["train"]
    loader = data.DataLoader(data.TensorDataset(images, labels), 32)
    fit(model, loader, F.cross_entropy, optimizer(model.parameters()), epochs=1, progress=False, callbacks=[Checks()])
    assert capsys.readouterr().err.startswith("rawgrad: note: after step 2: dead units: 80% of the units")


def test_dead_units_of_pictures_are_channels_and_nothing_is_touched():
    model = nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.5), nn.Flatten(), nn.Linear(32, 4)
    )
    model[1].bias.array[:3] = -1000.0
    model.train()
    model[1].eval()  # as who fine-tunes leaves it
    before = {name: rg.tensor(value).numpy().copy() for name, value in model.state_dict().items()}
    random = rg.manual_seed(3).state_dict()
    assert dead_units(model, rg.ones(5, 1, 4, 4)) == {"2": pytest.approx(3 / 8)}
    assert [layer.training for layer in model] == [True, False, True, True, True, True]
    assert all((before[name] == rg.tensor(value).numpy()).all() for name, value in model.state_dict().items())
    assert rg.autograd.default_generator.state_dict() == random and not model[2]._hooks
