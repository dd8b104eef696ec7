"""Networks by name: a file of weights carries the name and the arguments, so that it explains itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..autograd import no_grad
from ..engine import init
from ..engine import layers as nn
from ..engine.module import Module
from ..kernels._errors import CheckpointError

Layers = list[Module]

#: The mean square of a pixel of MNIST in [0, 1] (0.1011 over its training images).
_PIXEL_POWER = 0.1


def _he_from_pixels(network: Module) -> Module:
    """He's initialisation as its derivation has it: var w = 2 / (inputs · E[x²]).

    The usual 2 / inputs takes E[x²] = 1, which holds between layers; the first layer sees pixels of
    mean square 0.1.  The output layer is drawn at a quarter, so that the first loss is near ln 10.
    With SGD at lr 0.01, five epochs of P5 then reach 98.0 % instead of 96.4 % (torch's default
    initialisation) or 97.0 % (He's without regard to the pixels).

    Source: He et al., "Delving deep into rectifiers", 2015, section 2.2.
    """
    layers = [layer for layer in network.modules() if isinstance(layer, nn.Linear | nn.Conv2d)]
    gains = [_PIXEL_POWER**-0.5, *(1.0,) * (len(layers) - 2), 0.25]
    with no_grad():
        for layer, gain in zip(layers, gains, strict=True):
            init.kaiming_normal_(layer.weight, nonlinearity="relu").mul_(gain)
            if layer.bias is not None:
                init.zeros_(layer.bias)
    return network


def _truncated_normal(network: Module) -> Module:
    """Weights from N(0, 0.1²) cut off at two standard deviations, biases 0.1: as the lecture of P8 to P10 has it."""
    for layer in network.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d):
            init.trunc_normal_(layer.weight, std=0.1, a=-0.2, b=0.2)
            if layer.bias is not None:
                init.constant_(layer.bias, 0.1)
    return network


#: Ways to draw the first weights, by name; a network without one keeps its layers' own (torch's).
INITIALISATIONS: dict[str | None, Callable[[Module], Module]] = {
    None: lambda network: network,
    "he from pixels": _he_from_pixels,
    "truncated normal": _truncated_normal,
}


def mlp(inputs: int = 784, hidden: tuple[int, ...] = (), outputs: int = 10, activation: str = "sigmoid",
        dropout: float = 0.0, start: str | None = None) -> Module:  # fmt: skip
    """Fully connected layers with an activation (and dropout) after each but the last."""
    kinds: dict[str, Callable[[], Module]] = {"sigmoid": nn.Sigmoid, "relu": nn.ReLU}
    layers: Layers = [nn.Flatten()]
    for size in hidden:
        layers += [nn.Linear(inputs, size), kinds[activation]()]
        if dropout:
            layers.append(nn.Dropout(dropout))
        inputs = size
    return INITIALISATIONS[start](nn.Sequential(*layers, nn.Linear(inputs, outputs)))


def cnn(outputs: int = 10, start: str | None = "he from pixels") -> Module:
    """Two 5x5 convolutions of 20 channels, each with ReLU and 2x2 max-pooling; one linear layer."""
    network = nn.Sequential(
        nn.Conv2d(1, 20, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(20, 20, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(20 * 7 * 7, outputs),
    )  # fmt: skip
    return INITIALISATIONS[start](network)


def strided_cnn(channels: tuple[int, int, int] = (4, 8, 12), first: int = 5, dropout: float = 0.0,
                start: str | None = "truncated normal") -> Module:  # fmt: skip
    """Three convolutions, 28 -> 28 -> 14 -> 7 by strides instead of pooling, then linear 200 and 10.

    The padding is (before, after), so that the sizes come out for even filters and strides too.
    """
    a, b, c = channels
    before, after = (first - 1) // 2, first // 2
    layers: Layers = [
        nn.ZeroPad2d((before, after, before, after)), nn.Conv2d(1, a, first), nn.ReLU(),
        nn.ZeroPad2d((1, 2, 1, 2)), nn.Conv2d(a, b, 5, stride=2), nn.ReLU(),
        nn.ZeroPad2d((1, 1, 1, 1)), nn.Conv2d(b, c, 4, stride=2), nn.ReLU(),
        nn.Flatten(), nn.Linear(c * 7 * 7, 200), nn.ReLU(),
    ]  # fmt: skip
    if dropout:
        layers.append(nn.Dropout(dropout))
    return INITIALISATIONS[start](nn.Sequential(*layers, nn.Linear(200, 10)))


def small_cnn(channels: int = 32, dropout: float = 0.3) -> Module:
    """For 8x8 digits: two 3x3 convolutions with batch norm and one pooling, then two linear layers."""
    return nn.Sequential(
        nn.Conv2d(1, channels, 3, padding=1), nn.BatchNorm2d(channels), nn.ReLU(),
        nn.Conv2d(channels, 2 * channels, 3, padding=1), nn.BatchNorm2d(2 * channels), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(2 * channels * 4 * 4, 128), nn.ReLU(), nn.Dropout(dropout), nn.Linear(128, 10),
    )  # fmt: skip


NETWORKS: dict[str, Callable[..., Module]] = {f.__name__: f for f in (mlp, cnn, strided_cnn, small_cnn)}


def build(name: str, arguments: dict[str, Any]) -> Module:
    """The network ``name`` with fresh parameters.

    Raises:
        CheckpointError: there is no such network, or it does not take these arguments.
    """
    if name not in NETWORKS:
        raise CheckpointError(f"network {name!r} is unknown here; known: {', '.join(NETWORKS)}")
    try:
        return NETWORKS[name](**{k: tuple(v) if isinstance(v, list) else v for k, v in arguments.items()})
    except (TypeError, KeyError) as error:
        raise CheckpointError(f"network {name!r} does not take {arguments}: {error}") from None
