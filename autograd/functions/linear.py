"""x wᵀ + b with an activation and dropout on top, in one call of ``gemm``; several such layers as one node."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ...kernels._errors import ArgumentError, ShapeError
from ...kernels.gemm import BEHIND_DROPOUT, BY_OUTPUT, Layer, gemm, linear_backward, linear_layers_backward
from ..function import Function, differentiate_again
from ..graph import is_grad_enabled
from ..random import Generator
from ..tensor import Tensor
from ._operands import raw
from .activation import activation as unfused_activation
from .dropout import Dropout, dropout
from .matmul import MatMul


class Linear(Function):
    """x' = dropout(f(x wᵀ + b)) of rows x (M, K), w (N, K), b (N), for one layer after the other.

    With h = dL/dx' through dropout's gradient and f': dL/dx = h w, which is the dL/dx' of the layer below,
    dw = hᵀ x, db = Σ h.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, layers: tuple[Layer, ...], offsets: tuple[Any, ...], *parameters: Any) -> Any:
        """``parameters`` are all weights, then all biases."""
        weights, biases = parameters[: len(layers)], parameters[len(layers) :]
        keep, results = True in ctx.needs_input_grad, [x.array]
        for layer, offset, weight, bias in zip(layers, offsets, weights, biases, strict=True):
            activation, p, seed = layer
            y = gemm(
                results[-1], weight.array, raw(bias), transpose_b=True, activation=activation, p=p, seed=seed,
                offset=offset,
            )  # fmt: skip
            results = [*results, y] if keep else [y]
        ctx.layers, ctx.offsets = layers, offsets
        if keep:
            ctx.save_for_backward(x, *parameters, *results[1:-1], results[-1] if layers[-1].activation else None)
        return results[-1]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        layers, count = ctx.layers, len(ctx.layers)
        x, *saved = ctx.saved_tensors
        parameters, between, y = saved[: 2 * count], saved[2 * count : -1], saved[-1]
        if is_grad_enabled():
            of_x, *others = differentiate_again(
                lambda *given: _unfused(layers, ctx.offsets, *given), (x, *parameters), grad
            )
            return of_x, None, None, *others
        needs, weights = ctx.needs_input_grad, [weight.array for weight in parameters[:count]]
        gradients: tuple[Any, ...]
        if count == 1:
            (activation, p, seed), (offset,) = layers[0], ctx.offsets
            gradients = linear_backward(
                grad.array, x.array, weights[0], raw(y), offset, activation=activation, p=p, seed=seed,
                wanted=(needs[0], *needs[3:]),
            )  # fmt: skip
        else:
            gradients = linear_layers_backward(
                grad.array, [x.array, *map(raw, between)], weights, raw(y), ctx.offsets, layers=layers,
                wanted=(needs[0], *needs[3:]),
            )  # fmt: skip
        of_x, *others = [None if gradient is None else Tensor(gradient) for gradient in gradients]
        return of_x, None, None, *others


def _unfused(layers: tuple[Layer, ...], offsets: tuple[Any, ...], x: Tensor, *parameters: Any) -> Tensor:
    weights, biases = parameters[: len(layers)], parameters[len(layers) :]
    for layer, offset, weight, bias in zip(layers, offsets, weights, biases, strict=True):
        x = MatMul.apply(x, weight, False, True)
        x = x if bias is None else x + bias
        x = unfused_activation(x, layer.activation) if layer.activation else x
        x = Dropout.apply(x, layer.p, layer.seed, offset) if layer.p else x
    return x


#: A layer's weight, its bias or None, its activation or None, and the probability of dropout, 0 for none.
Given = tuple[Tensor, Tensor | None, str | None, float]


def linear_layers(x: Tensor, layers: Sequence[Given], generator: Generator) -> Tensor:
    """See :func:`rawgrad.functional.linear_layers`."""
    if not layers:
        raise ArgumentError("linear_layers: there must be at least one layer; got none")
    start = 0
    for i, (_, _, activation, p) in enumerate(layers):
        # In one node only where its gradient needs no more than what the next layer is given.
        if (activation in BY_OUTPUT and not p) or activation in BEHIND_DROPOUT:
            continue
        if activation in BY_OUTPUT:
            x = dropout(_at_once(x, [*layers[start:i], (*layers[i][:3], 0.0)], generator), p, generator)
        else:
            x = unfused_activation(_at_once(x, [*layers[start:i], (*layers[i][:2], None, 0.0)], generator), activation)
            x = dropout(x, p, generator) if p else x
        start = i + 1
    return _at_once(x, layers[start:], generator) if layers[start:] else x


def _at_once(x: Tensor, layers: Sequence[Given], generator: Generator) -> Tensor:
    """Layers that are one node."""
    features = x.shape[-1:]
    for weight, *_ in layers:
        if weight.ndim != 2:
            raise ShapeError(f"linear: weight must have 2 dimensions (out, in); got shape {tuple(weight.shape)}")
        if features != weight.shape[1:]:
            raise ShapeError(
                f"linear: the last size of input must be in_features = {weight.shape[1]} to match weight of shape "
                f"{tuple(weight.shape)}; got " + _came(x, features, weight)
            )
        features = weight.shape[:1]
    # The random words are drawn in the order of the layers, as if each were a node.
    offsets = tuple([generator.offset_array(x.device) if p else None for *_, p in layers])
    kinds = tuple([Layer(activation, float(p), generator.seed if p else 0) for _, _, activation, p in layers])
    rows = x if x.ndim == 2 else x.reshape(x.numel() // max(x.shape[-1], 1), x.shape[-1])
    y: Tensor = Linear.apply(rows, kinds, offsets, *[given[0] for given in layers], *[given[1] for given in layers])
    return y if x.ndim == 2 else y.reshape(*x.shape[:-1], *features)


def _came(x: Tensor, features: tuple[int, ...], weight: Tensor) -> str:
    """What was given where ``weight`` does not fit."""
    if features != x.shape[-1:]:
        return f"{features[0]} from the layer before"
    advice = "; flatten it first?" if x.ndim > 2 and x.numel() == x.shape[0] * weight.shape[1] else ""
    return f"input of shape {tuple(x.shape)}{advice}"
