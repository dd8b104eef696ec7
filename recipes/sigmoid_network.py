"""The network of P1: 784-50-100-10 with sigmoids, from tensors alone, and the four things one may fix in it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np

from ..autograd import Tensor, no_grad, numerical_gradient
from ..autograd import functional as F
from ..engine.metrics import accuracy
from ..engine.optim import SGD

SIZES = (784, 50, 100, 10)
#: Half the step of central differences, as the tutorial has it.
H = 1e-4
#: Where the derivative of the sigmoid is below a hundredth, a unit is called saturated: |z| > 4.585.
SATURATED = 0.01


@dataclass(frozen=True)
class Setting:
    """What may be fixed; the defaults are the network as it was described.

    Attributes:
        scaled_pixels: pixels in [0, 1] instead of 0 to 255.
        softmax_per_row: maximum and sum over the ten classes of each image, not over the whole batch.
        scaled_weights: drawn from N(0, 1/inputs) instead of N(0, 1).
        lr: the learning rate of plain SGD.
    """

    scaled_pixels: bool = False
    softmax_per_row: bool = False
    scaled_weights: bool = False
    lr: float = 0.01

    def pixels(self, images: Any) -> np.ndarray:
        """Raw pixels, of any shape (N, …), as the network reads them: (N, 784) float64."""
        flat = np.asarray(images, np.float64).reshape(len(images), -1)
        return flat / 255 if self.scaled_pixels else flat


#: The four suspects: what fixing each one changes.
FIXES: dict[str, dict[str, Any]] = {
    "pixels": {"scaled_pixels": True},
    "softmax": {"softmax_per_row": True},
    "initialisation": {"scaled_weights": True},
    "learning rate": {"lr": 0.5},
}


def fixed(names: Sequence[str], start: Setting | None = None) -> Setting:
    """The described setting (or ``start``) with these of :data:`FIXES`."""
    setting = Setting() if start is None else start
    for name in names:
        setting = replace(setting, **FIXES[name])
    return setting


class Network:
    """The parameters and what is computed with them; all float64, as in the tutorial's NumPy.

    Args:
        setting: decides the spread of the weights and the kind of softmax.
        rng: draws the weights; the same draws for every setting.
        sizes: inputs, hidden units, …, classes.
        device: where the parameters live.

    Attributes:
        parameters: by name: W1 (50, 784), b1 (50), W2 (100, 50), …
    """

    def __init__(
        self, setting: Setting, rng: np.random.Generator, sizes: Sequence[int] = SIZES, device: str = "cpu"
    ) -> None:
        self.setting, self.depth = setting, len(sizes) - 1
        self.parameters: dict[str, Tensor] = {}
        for layer, (inputs, outputs) in enumerate(pairwise(sizes), 1):
            spread = inputs**-0.5 if setting.scaled_weights else 1.0
            drawn = {"W": spread * rng.standard_normal((outputs, inputs)), "b": np.zeros(outputs)}
            for kind, values in drawn.items():
                self.parameters[f"{kind}{layer}"] = Tensor(values).to(device).requires_grad_()

    def layers(self, x: Tensor) -> list[Tensor]:
        """The outputs of all layers: the sigmoids (N, 50) and (N, 100), then the scores (N, 10)."""
        outputs = [x]
        for layer in range(1, self.depth + 1):
            weight, bias = self.parameters[f"W{layer}"], self.parameters[f"b{layer}"]
            activation = "sigmoid" if layer < self.depth else None
            outputs.append(F.linear(outputs[-1], weight, bias, activation=activation))
        return outputs[1:]

    def loss(self, x: Tensor, target: Tensor) -> Tensor:
        """Cross-entropy of one-hot ``target`` (N, 10), mean over the batch, with the tutorial's 1e-7."""
        scores = self.layers(x)[-1]
        if self.setting.softmax_per_row:
            shares = F.softmax(scores, 1)
        else:  # one maximum and one sum for the whole batch: the shares of all its images add up to 1
            shares = F.softmax(scores.reshape(-1), 0).reshape(scores.shape)
        return -(target * (shares + 1e-7).log()).sum() / len(x)

    def accuracy(self, x: Tensor, labels: Tensor) -> float:
        """Share of images whose highest score is that of their label."""
        with no_grad():
            return accuracy(self.layers(x)[-1], labels)

    def saturation(self, x: Tensor) -> list[float]:
        """For each hidden layer, the share of its sigmoids, over all images, that are saturated."""
        with no_grad():
            slopes = [y * (1 - y) for y in self.layers(x)[:-1]]
            return [float((slope < SATURATED).to(dtype=np.float64).mean()) for slope in slopes]


@dataclass(frozen=True)
class TrainingData:
    """Raw pixels (N, …) and labels (N) int64, to draw batches from and to test on."""

    images: np.ndarray
    labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray


@dataclass(frozen=True)
class Trained:
    """A trained network and its course.

    Attributes:
        network: as it ended.
        losses: of each step's batch.
        checked, accuracies: the steps at which it was tested, the last included, and the test accuracy then.
        saturation: see :meth:`Network.saturation`, at the start, over the first 1,000 test images.
        pull: by name, the norm of the first step's gradient.
        moved: by name, how far each parameter has come, relative to the norm of its start; of the
            biases, which start at 0, the distance itself.
        seconds: of training alone.
    """

    network: Network
    losses: list[float]
    checked: list[int]
    accuracies: list[float]
    saturation: list[float]
    pull: dict[str, float]
    moved: dict[str, float]
    seconds: float

    @property
    def accuracy(self) -> float:
        """On the test images, at the end."""
        return self.accuracies[-1]


def train(
    setting: Setting,
    data: TrainingData,
    *,
    steps: int = 10_000,
    batch_size: int = 100,
    seed: int = 0,
    device: str = "cpu",
    sizes: Sequence[int] = SIZES,
    frozen: Sequence[str] = (),
    gradients: str = "backpropagation",
) -> Trained:
    """Plain SGD; batches are drawn with replacement, the same ones for every setting.

    Args:
        setting: of the network.
        data: what to train and test on.
        steps, batch_size: as they say.
        seed: of the weights and the batches.
        device: where to compute.
        sizes: inputs, hidden units, …, classes.
        frozen: names of parameters that stay as they were drawn.
        gradients: ``"backpropagation"``, or ``"numerical"`` for central differences, as the tutorial did it:
            two evaluations of the loss for each parameter, so minutes for a step.
    """
    weight_rng, batch_rng = (np.random.default_rng([seed, stream]) for stream in (0, 1))
    network = Network(setting, weight_rng, sizes, device)
    for name in frozen:
        network.parameters[name].requires_grad_(False)
    moving = [p for p in network.parameters.values() if p.requires_grad]
    optimizer, find = SGD(moving, lr=setting.lr), GRADIENTS[gradients]
    targets = np.eye(sizes[-1])[data.labels]
    test = Tensor(setting.pixels(data.test_images)).to(device), Tensor(data.test_labels).to(device)
    start = {name: p.detach().clone() for name, p in network.parameters.items()}
    saturation = network.saturation(test[0][:1000])
    losses, checked, accuracies, seconds = [], [0], [network.accuracy(*test)], 0.0
    pull: dict[str, float] = {}
    for step in range(1, steps + 1):
        began = time.perf_counter()
        chosen = batch_rng.integers(len(data.images), size=batch_size)
        x, target = Tensor(setting.pixels(data.images[chosen])).to(device), Tensor(targets[chosen]).to(device)
        optimizer.zero_grad()
        losses.append(find(network, x, target, moving))
        pull = pull or {name: float(p.grad.norm()) for name, p in network.parameters.items() if p.grad is not None}
        optimizer.step()
        seconds += time.perf_counter() - began
        if step % max(steps // 20, 1) == 0 or step == steps:
            checked.append(step)
            accuracies.append(network.accuracy(*test))
    moved = {name: _distance(p, start[name]) for name, p in network.parameters.items()}
    return Trained(network, losses, checked, accuracies, saturation, pull, moved, seconds)


def _by_backpropagation(network: Network, x: Tensor, target: Tensor, parameters: Sequence[Tensor]) -> float:
    loss = network.loss(x, target)
    loss.backward()
    return float(loss.item())


def _by_differences(network: Network, x: Tensor, target: Tensor, parameters: Sequence[Tensor]) -> float:
    found = numerical_gradient(lambda: network.loss(x, target), parameters, H)
    for parameter, gradient in zip(parameters, found, strict=True):
        parameter.grad = gradient
    with no_grad():
        return float(network.loss(x, target).item())


#: Ways to fill the ``.grad`` of parameters; each gives the loss.
GRADIENTS = {"backpropagation": _by_backpropagation, "numerical": _by_differences}


def _distance(now: Tensor, then: Tensor) -> float:
    return float((now.detach() - then).norm()) / (float(then.norm()) or 1.0)
