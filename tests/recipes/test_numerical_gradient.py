"""P1: the network against the tutorial's formulas in NumPy, all its gradients, training, and the program."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rawgrad.autograd import Tensor
from rawgrad.kernels._errors import ArgumentError
from rawgrad.recipes import numerical_gradient, sigmoid_network
from rawgrad.recipes.options import Options
from rawgrad.recipes.sigmoid_network import FIXES, Network, Setting, TrainingData, fixed, train

GENUINE = Path(os.environ.get("RAWGRAD_DATA", "no such folder"))
SETTINGS = [fixed([]), fixed(list(FIXES))]
IDS = ["as described", "all fixed"]


def digit_like(rng: np.random.Generator, count: int) -> np.ndarray:
    """Raw pixels as MNIST has them: a border of 0, about a fifth lit."""
    images = np.zeros((count, 28, 28), np.uint8)
    lit = rng.random((count, 20, 20)) < 0.35
    images[:, 4:24, 4:24] = lit * rng.integers(1, 256, (count, 20, 20))
    return images


def learnable(rng: np.random.Generator, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Images with a bright bar whose place is the label."""
    labels = rng.integers(0, 10, count)
    images = digit_like(rng, count) // 4
    for image, label in zip(images, labels, strict=True):
        image[4:24, 4 + 2 * label : 6 + 2 * label] = 255
    return images, labels


@pytest.fixture
def data() -> TrainingData:
    rng = np.random.default_rng(5)
    return TrainingData(*learnable(rng, 600), *learnable(rng, 200))


def sigmoid(x: np.ndarray) -> np.ndarray:
    from scipy.special import expit

    return expit(x)


def loss_of_scores(scores: np.ndarray, target: np.ndarray, per_row: bool) -> np.ndarray:
    """The tutorial's loss of scores (…, N, 10), one for each leading index."""
    axes = (-1,) if per_row else (-2, -1)
    powers = np.exp(scores - scores.max(axes, keepdims=True))
    shares = powers / powers.sum(axes, keepdims=True)
    return -(target * np.log(shares + 1e-7)).sum((-2, -1)) / target.shape[0]


def all_differences(network: Network, x: np.ndarray, target: np.ndarray, h: float) -> dict[str, np.ndarray]:
    """Central differences for all parameters, a row of weights (and its bias) at a time, without rawgrad.

    A weight or bias of unit u shifts nothing but that unit's weighted sum, by h times the weight's input.
    """
    p = {name: value.detach().numpy() for name, value in network.parameters.items()}
    per_row = network.setting.softmax_per_row
    inputs, sums = [x], []
    for layer in (1, 2, 3):
        sums.append(inputs[-1] @ p[f"W{layer}"].T + p[f"b{layer}"])
        inputs.append(sigmoid(sums[-1]))

    def losses(layer: int, unit: int, shift: np.ndarray) -> np.ndarray:
        """Of (V, N) shifts of one unit's weighted sum."""
        moved = sums[layer - 1][:, unit] + shift  # (V, N)
        if layer == 3:
            scores = np.broadcast_to(sums[2], (len(shift), *sums[2].shape)).copy()
            scores[:, :, unit] = moved
            return loss_of_scores(scores, target, per_row)
        change = (sigmoid(moved) - inputs[layer][:, unit])[..., None]
        above = sums[layer] + change * p[f"W{layer + 1}"][:, unit]  # (V, N, units of the next layer)
        if layer == 1:
            above = sums[2] + (sigmoid(above) - inputs[2]) @ p["W3"].T
        return loss_of_scores(above, target, per_row)

    found = {}
    for layer in (1, 2, 3):
        step = h / max(1.0, np.abs(x).max()) if layer == 1 else h
        shift = np.vstack([step * inputs[layer - 1].T, np.full((1, len(x)), h)])  # weights, then the bias
        rows = [losses(layer, unit, shift) - losses(layer, unit, -shift) for unit in range(len(p[f"b{layer}"]))]
        found[f"W{layer}"] = np.array(rows)[:, :-1] / (2 * step)
        found[f"b{layer}"] = np.array(rows)[:, -1] / (2 * h)
    return found


@pytest.mark.parametrize("setting", SETTINGS, ids=IDS)
def test_all_45360_gradients_agree_with_differences(setting: Setting) -> None:
    rng = np.random.default_rng(0)
    network = Network(setting, rng)
    images = digit_like(rng, 8)
    if (GENUINE / "mnist").is_dir():
        from rawgrad.engine.data import MNIST

        images = MNIST(GENUINE, "test").data[:8]
    x, target = setting.pixels(images), np.eye(10)[rng.integers(0, 10, 8)]
    loss = network.loss(Tensor(x), Tensor(target))
    loss.backward()
    expected = all_differences(network, x, target, 1e-4)
    assert sum(e.size for e in expected.values()) == 45_360
    for name, parameter in network.parameters.items():
        assert parameter.grad is not None
        gradient = parameter.grad.numpy()
        assert np.abs(gradient).max() > 0, name
        # of 8 images and raw pixels, every sigmoid of the first layer may be saturated: its gradients are
        # then so small that the rounding of the losses shows in the differences
        rounding = 4 * 2.2e-16 * loss.item() / (1e-4 / max(1.0, x.max()) if name == "W1" else 1e-4)
        atol = 1e-6 * np.abs(expected[name]).max() + rounding
        np.testing.assert_allclose(gradient, expected[name], rtol=0, atol=atol, err_msg=name)
        np.testing.assert_allclose(gradient, expected[name], rtol=0, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("setting", [fixed([]), fixed(["softmax"])], ids=["whole batch", "per row"])
def test_loss_is_the_tutorials(setting: Setting) -> None:
    rng = np.random.default_rng(1)
    network = Network(setting, rng, (784, 5, 6, 10))
    x, target = setting.pixels(digit_like(rng, 7)), np.eye(10)[rng.integers(0, 10, 7)]
    p = {name: value.detach().numpy() for name, value in network.parameters.items()}
    scores = sigmoid(sigmoid(x @ p["W1"].T + p["b1"]) @ p["W2"].T + p["b2"]) @ p["W3"].T + p["b3"]
    expected = loss_of_scores(scores, target, setting.softmax_per_row)
    assert network.loss(Tensor(x), Tensor(target)).item() == pytest.approx(float(expected), rel=1e-12)


def test_network_is_as_described() -> None:
    network = Network(Setting(), np.random.default_rng(0))
    assert sum(p.numel() for p in network.parameters.values()) == 45_360
    assert {p.dtype for p in network.parameters.values()} == {np.dtype(np.float64)}
    for name, parameter in network.parameters.items():
        values = parameter.detach().numpy()
        if name[0] == "b":
            assert not values.any()
        else:  # N(0, 1): the standard error of the standard deviation is 1 / sqrt(2 n)
            assert abs(values.std() - 1) < 4 / np.sqrt(2 * values.size)
            assert abs(values.mean()) < 4 / np.sqrt(values.size)
    scaled = Network(fixed(["initialisation"]), np.random.default_rng(0)).parameters
    np.testing.assert_allclose(scaled["W1"].detach().numpy() * 28, network.parameters["W1"].detach().numpy())
    assert Setting().pixels(np.array([[[255]], [[3]]], np.uint8)).tolist() == [[255.0], [3.0]]
    assert fixed(["pixels"]).pixels(np.array([[[255]], [[51]]], np.uint8)).tolist() == [[1.0], [0.2]]


def test_saturation_counts_slopes_below_a_hundredth() -> None:
    network = Network(Setting(), np.random.default_rng(0), (1, 2, 3, 10))
    # sigmoid'(4.5) = 0.0109 and sigmoid'(4.7) = 0.0089: one is saturated, one is not
    network.parameters["W1"].array[:] = [[4.5], [-4.7]]
    network.parameters["W2"].array[:] = 0.0
    assert network.saturation(Tensor(np.ones((5, 1)))) == [0.5, 0.0]


def test_one_step_is_plain_descent_along_the_differences(data: TrainingData) -> None:
    trained = train(Setting(), data, steps=1, batch_size=8, seed=3)
    network = Network(Setting(), np.random.default_rng([3, 0]))
    chosen = np.random.default_rng([3, 1]).integers(600, size=8)
    x, target = data.images[chosen].reshape(8, -1).astype(float), np.eye(10)[data.labels[chosen]]
    gradients = all_differences(network, x, target, 1e-4)
    for name, start in network.parameters.items():
        step = trained.network.parameters[name].detach().numpy() - start.detach().numpy()
        np.testing.assert_allclose(step, -0.01 * gradients[name], atol=1e-8 + 1e-8 * np.abs(gradients[name]).max())
        assert trained.pull[name] == pytest.approx(np.linalg.norm(gradients[name]), rel=1e-6)


def test_training_by_numerical_gradients_is_training_by_backpropagation(data: TrainingData) -> None:
    settings: Any = {"steps": 3, "batch_size": 10, "sizes": (784, 2, 3, 10)}
    fast, slow = (train(fixed(list(FIXES)), data, gradients=g, **settings) for g in ("backpropagation", "numerical"))
    np.testing.assert_allclose(slow.losses, fast.losses, rtol=1e-7)
    for name, parameter in fast.network.parameters.items():
        found = slow.network.parameters[name].detach().numpy()
        np.testing.assert_allclose(found, parameter.detach().numpy(), atol=1e-8)


def test_frozen_parameters_stay_and_the_others_learn(data: TrainingData) -> None:
    trained = train(fixed(list(FIXES)), data, steps=30, frozen=("W1", "b1"))
    assert trained.moved["W1"] == trained.moved["b1"] == 0
    assert trained.moved["W2"] > 0 < trained.moved["W3"]
    assert "W1" not in trained.pull


def test_batches_are_drawn_from_all_images_with_replacement(monkeypatch: pytest.MonkeyPatch) -> None:
    images = np.arange(20, dtype=np.uint8).reshape(20, 1)
    seen: list[np.ndarray] = []
    find = sigmoid_network.GRADIENTS["backpropagation"]

    def spy(network: Network, x: Tensor, target: Tensor, moving: Any) -> float:
        seen.append(x.numpy().ravel())
        return find(network, x, target, moving)

    monkeypatch.setitem(sigmoid_network.GRADIENTS, "backpropagation", spy)
    labels = np.zeros(20, np.int64)
    train(Setting(), TrainingData(images, labels, images, labels), steps=40, batch_size=15, sizes=(1, 2, 3, 10))
    assert {len(batch) for batch in seen} == {15}
    assert set(np.concatenate(seen)) == set(range(20))
    assert any(len(set(batch)) < 15 for batch in seen)


def test_good_setting_learns_where_the_described_one_hardly_does(data: TrainingData) -> None:
    good, described = (train(setting, data, steps=300) for setting in (fixed(list(FIXES)), Setting()))
    assert good.accuracy > 0.95
    assert described.accuracy < 0.6
    assert described.saturation[0] > 0.95 > 0.05 > good.saturation[0]
    assert (good.checked[0], good.checked[-1], len(good.losses)) == (0, 300, 300)


def test_program_leaves_records_and_a_picture(
    data: TrainingData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # a network of 2 and 3 hidden units, since the program evaluates the loss twice for each parameter
    monkeypatch.setattr(sigmoid_network.Network.__init__, "__defaults__", ((784, 2, 3, 10), "cpu"))
    monkeypatch.setitem(train.__kwdefaults__, "sizes", (784, 2, 3, 10))
    monkeypatch.setattr(numerical_gradient, "load_data", lambda options: data)
    found = numerical_gradient.run(Options(out=tmp_path / "run", steps=20, batch_size=10, seeds=2))
    printed = capsys.readouterr().out
    assert list(found.described) == [0, 1]
    assert len(found.ablation) == 16
    for name, run in found.ablation.items():
        fixes = [] if name == "nothing fixed" else name.split(" + ")
        assert run.network.setting == fixed(fixes)
    assert all(check.agrees for checks in found.checks.values() for check in checks.values())
    assert "DIFFER" not in printed
    assert "would take" in printed
    record = json.loads((tmp_path / "run" / "result.json").read_text())
    for name, run in found.ablation.items():
        assert record["ablation"][name]["accuracy"] == run.accuracy
    assert record["checks"]["as described"]["W1"]["elements"] == 2 * 784
    assert (tmp_path / "run" / "ablation.png").stat().st_size > 10_000
    assert str(found).startswith("test accuracy ")


def test_a_wrong_gradient_is_reported(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    network = Network(Setting(), np.random.default_rng(0), (3, 2, 2, 10))
    x, target = Tensor(np.ones((2, 3))), Tensor(np.eye(10)[[1, 2]])
    network.parameters["W2"].register_hook(lambda grad: grad * 1.00001)
    checks = numerical_gradient.check_gradients(network, x, target)
    assert checks["W2"].difference == pytest.approx(1e-5 * checks["W2"].gradient, rel=1e-3)
    assert [name for name, check in checks.items() if not check.agrees] == ["W2"]
    numerical_gradient._print_checks("", checks, Options(out=tmp_path))
    assert capsys.readouterr().out.count("DIFFER") == 1


@pytest.mark.parametrize(
    "options",
    [
        *({"epochs": 3}, {"optimizer": "adam"}, {"resume": True}, {"save_every": 5}),
        *({"watch": True}, {"watch_every": 5}, {"tensorboard": True}),
    ],
)
def test_options_without_a_meaning_are_refused(options: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(
        ArgumentError, match=f"numerical-gradient: --{next(iter(options)).replace('_', '-')} has no meaning here"
    ):
        numerical_gradient.run(Options(out=tmp_path, **options))
