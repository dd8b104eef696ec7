"""The network of P1: 784-50-100-10 with sigmoids, from tensors alone, and the four things one may fix in it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np

from ..autograd import Tensor, no_grad
from ..autograd import functional as F
from ..engine.metrics import accuracy
from ..engine.optim import SGD

SIZES = (784, 50, 100, 10)
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
            slopes = [y.numpy() * (1 - y.numpy()) for y in self.layers(x)[:-1]]
        return [float((slope < SATURATED).mean()) for slope in slopes]


@dataclass(frozen=True)
class Digits60k:
    """MNIST as P1 uses it: raw pixels (N, 784) and labels (N), for training and testing."""

    images: np.ndarray
    labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray


@dataclass(frozen=True)
class Trained:
    """A trained network and its course: the loss of each step, the test accuracy from time to time."""

    network: Network
    losses: list[float]
    checked: list[int]
    accuracies: list[float]
    saturation: list[float]
    moved: dict[str, float]
    seconds: float

    @property
    def accuracy(self) -> float:
        """On the test images, at the end."""
        return self.accuracies[-1]


def train(
    setting: Setting,
    data: Digits60k,
    *,
    steps: int = 10_000,
    batch_size: int = 100,
    seed: int = 0,
    device: str = "cpu",
    frozen: Sequence[str] = (),
) -> Trained:
    """Plain SGD by backpropagation; batches are drawn with replacement, the same ones for every setting.

    Args:
        setting: of the network.
        data: what to train and test on.
        steps, batch_size: as they say.
        seed: of the weights and the batches.
        device: where to compute.
        frozen: names of parameters that stay as they were drawn.

    Returns:
        With ``saturation`` at the start, over the first 1,000 test images, and ``moved``: how far each
        parameter has come, relative to the norm of its start (absolute for the biases, which start at 0).
    """
    weight_rng, batch_rng = (np.random.default_rng([seed, stream]) for stream in (0, 1))
    network = Network(setting, weight_rng, device=device)
    optimizer = SGD([p for name, p in network.parameters.items() if name not in frozen], lr=setting.lr)
    targets = np.eye(10)[data.labels]
    test = Tensor(setting.pixels(data.test_images)).to(device), Tensor(data.test_labels).to(device)
    start = {name: p.detach().clone() for name, p in network.parameters.items()}
    saturation = network.saturation(test[0][:1000])
    losses, checked, accuracies, seconds = [], [0], [network.accuracy(*test)], 0.0
    for step in range(1, steps + 1):
        began = time.perf_counter()
        chosen = batch_rng.integers(len(data.images), size=batch_size)
        x, target = Tensor(setting.pixels(data.images[chosen])).to(device), Tensor(targets[chosen]).to(device)
        loss = network.loss(x, target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        seconds += time.perf_counter() - began
        if step % max(steps // 20, 1) == 0 or step == steps:
            checked.append(step)
            accuracies.append(network.accuracy(*test))
    moved = {name: _distance(p, start[name]) for name, p in network.parameters.items()}
    return Trained(network, losses, checked, accuracies, saturation, moved, seconds)


def _distance(now: Tensor, then: Tensor) -> float:
    """How far a parameter has come, relative to the norm of its start; absolute if that is 0 (biases)."""
    return float((now.detach() - then).norm()) / (float(then.norm()) or 1.0)
