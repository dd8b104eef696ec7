"""The matrix product in NumPy."""

from __future__ import annotations

import numpy as np

from .._contracts import deliver
from .._dtypes import halves_in_float32
from ..activation import activation_backward, activation_forward
from ..dropout import dropout_forward
from . import Layer
from ._layers import one_by_one, stack


@halves_in_float32()
@np.errstate(invalid="ignore", over="ignore")  # NaN and infinity travel silently
def gemm(
    a: np.ndarray,
    b: np.ndarray,
    bias: np.ndarray | None,
    saved: np.ndarray | None,
    offset: np.ndarray | None,
    transpose_a: bool,
    transpose_b: bool,
    activation: str | None,
    p: float,
    seed: int,
    gradient: str | None,
    out: np.ndarray | None,
) -> np.ndarray:
    y = np.matmul(a.swapaxes(-1, -2) if transpose_a else a, b.swapaxes(-1, -2) if transpose_b else b)
    if bias is not None:
        y += bias
    if activation is not None:
        y = activation_forward(y, activation)
    if p:
        y = dropout_forward(y, p, seed, offset)
    if gradient is not None:
        y = activation_backward(y, saved, gradient)
    return deliver(y, out)


def _product(a: np.ndarray, b: np.ndarray, transpose_a: bool = False) -> np.ndarray:
    return gemm(a, b, None, None, None, transpose_a, False, None, 0.0, 0, None, None)


@np.errstate(invalid="ignore", over="ignore")
def linear_backward(
    grad: np.ndarray,
    a: np.ndarray,
    b: np.ndarray,
    y: np.ndarray | None,
    offset: np.ndarray | None,
    layer: Layer,
    wanted: tuple[bool, bool, bool],
) -> tuple[np.ndarray | None, np.ndarray | None, np.ndarray | None]:
    h = _through(grad, y, offset, layer)
    return (
        _product(h, b) if wanted[0] else None,
        _product(h, a, True) if wanted[1] else None,
        _sum(h) if wanted[2] else None,
    )


def linear_layers_backward(
    grad: np.ndarray, y: np.ndarray | None, layers: tuple[Layer, ...], wanted: tuple[bool, ...], *arrays: np.ndarray
) -> tuple[np.ndarray | None, ...]:
    return one_by_one(linear_backward, grad, y, stack(layers, wanted, arrays), wanted[0])


@halves_in_float32()
def _through(grad: np.ndarray, y: np.ndarray | None, offset: np.ndarray | None, layer: Layer) -> np.ndarray:
    h = dropout_forward(grad, layer.p, layer.seed, offset) if layer.p else grad
    return h if layer.activation is None else activation_backward(h, y, layer.activation)


@halves_in_float32()
def _sum(h: np.ndarray) -> np.ndarray:
    return h.sum(axis=0)
