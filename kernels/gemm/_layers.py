"""The gradients of linear layers one above the other, for backends that take them one by one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from . import Layer


class Stack(NamedTuple):
    """The arguments of ``linear_layers_backward`` as backends get them, sorted.

    Attributes:
        inputs, weights, offsets: of each layer.
        layers: what follows each product.
        of_weights, of_biases: of each layer, whether the gradient is wanted.
        last: the lowest layer through which the gradient has to go.
    """

    inputs: tuple[Any, ...]
    weights: tuple[Any, ...]
    offsets: tuple[Any, ...]
    layers: tuple[Layer, ...]
    of_weights: tuple[bool, ...]
    of_biases: tuple[bool, ...]
    last: int

    def result(self, i: int, y: Any) -> Any:
        """The result of layer i, behind its dropout, if its activation's gradient needs one."""
        if self.layers[i].activation is None:
            return None
        return y if i + 1 == len(self.layers) else self.inputs[i + 1]


def stack(layers: tuple[Layer, ...], wanted: tuple[bool, ...], arrays: tuple[Any, ...]) -> Stack:
    """``arrays`` are the inputs, the weights and the offsets of all layers."""
    n = len(layers)
    of_weights, of_biases = wanted[1 : 1 + n], wanted[1 + n :]
    last = 0 if wanted[0] else next((i for i in range(n) if of_weights[i] or of_biases[i]), n - 1)
    return Stack(arrays[:n], arrays[n : 2 * n], arrays[2 * n :], layers, of_weights, of_biases, last)


def one_by_one(
    linear_backward: Callable[..., tuple[Any, Any, Any]], grad: Any, y: Any, s: Stack, first: bool
) -> tuple[Any, ...]:
    """What ``linear_backward`` of a backend gives for each layer; ``first``: dL/d(the first input) is wanted."""
    of_weights: list[Any] = [None] * len(s.layers)
    of_biases: list[Any] = [None] * len(s.layers)
    for i in range(len(s.layers) - 1, s.last - 1, -1):
        wanted = i > s.last or first, s.of_weights[i], s.of_biases[i]
        grad, of_weights[i], of_biases[i] = linear_backward(
            grad, s.inputs[i], s.weights[i], s.result(i, y), s.offsets[i], s.layers[i], wanted
        )
    return grad if first else None, *of_weights, *of_biases
