"""Convolution in NumPy: one matrix product per row of the filter.

``_strips`` copies, for each output column q, the S inputs under one filter row beside each other;
filter row r then meets the strips of the input rows p sh + r dh.  That is the method of Chellapilla,
Puri and Simard (2006, "im2col") with the columns copied S times instead of R S times: the copying
costs more than the multiplying.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from .._contracts import deliver
from ..activation.reference import activation_backward, activation_forward
from ..max_pool2d import Geometry as PoolGeometry
from ..max_pool2d.reference import max_pool2d_forward
from . import Geometry


@np.errstate(invalid="ignore", over="ignore")  # NaN and infinity travel silently
def conv2d_forward(
    x: np.ndarray,
    weight: np.ndarray,
    bias: np.ndarray | None,
    g: Geometry,
    activation: str | None,
    out: np.ndarray | None,
) -> np.ndarray:
    y = _correlate(_padded(x, g), weight, g.G, (g.P, g.Q), g.stride, g.dilation)
    if bias is not None:
        y += bias[:, None, None]
    return deliver(activation_forward(y, activation, (), y) if activation else y, out)


def conv2d_relu_pool_forward(
    x: np.ndarray, weight: np.ndarray, bias: np.ndarray | None, g: Geometry, p: PoolGeometry
) -> tuple[np.ndarray, np.ndarray]:
    return max_pool2d_forward(conv2d_forward(x, weight, bias, g, "relu", None), p, None)


def _before_relu(grad: np.ndarray, y: np.ndarray | None) -> np.ndarray:
    """The gradient in front of the ReLU that gave ``y``, if there is one."""
    return grad if y is None else activation_backward(grad, y, "relu", ())


@np.errstate(invalid="ignore", over="ignore")  # NaN and infinity travel silently
def conv2d_backward_input(
    grad: np.ndarray, weight: np.ndarray, g: Geometry, y: np.ndarray | None, out: np.ndarray | None
) -> np.ndarray:
    """The gradient, spread out by the stride, correlated with the filter turned by 180 degrees."""
    (ph, pw), (dh, dw), (sh, sw) = g.padding, g.dilation, g.stride
    margin_h, margin_w = dh * (g.R - 1), dw * (g.S - 1)
    height, width = (size + sum(zeros) for size, zeros in zip((g.H, g.W), g.paddings, strict=True))
    spread = np.zeros((g.N, g.K, height + margin_h, width + margin_w), grad.dtype)
    spread[:, :, _every(sh, margin_h, g.P), _every(sw, margin_w, g.Q)] = _before_relu(grad, y)
    inside = spread[:, :, ph : ph + g.H + margin_h, pw : pw + g.W + margin_w]  # what meets x, not its padding
    turned = weight.reshape(g.G, g.K // g.G, g.C // g.G, g.R, g.S)[..., ::-1, ::-1].swapaxes(1, 2)
    turned = turned.reshape(g.C, g.K // g.G, g.R, g.S)
    return deliver(_correlate(inside, turned, g.G, (g.H, g.W), (1, 1), g.dilation), out)


@np.errstate(invalid="ignore", over="ignore")  # NaN and infinity travel silently
def conv2d_backward_weight(
    x: np.ndarray, grad: np.ndarray, g: Geometry, y: np.ndarray | None, out: np.ndarray | None
) -> np.ndarray:
    gradient = _before_relu(grad, y).reshape(g.N, g.G, g.K // g.G, g.P * g.Q).swapaxes(2, 3)  # (N, G, PQ, K/G)
    result = np.empty(g.weight_shape, grad.dtype)
    strips = _strips(_padded(x, g), g.G, g.S, (g.P, g.Q), g.R, g.stride, g.dilation)
    for r, strip in enumerate(strips):
        products = np.matmul(strip, gradient).sum(axis=0)  # (G, CS, K/G)
        result[:, :, r] = products.swapaxes(1, 2).reshape(g.K, g.C // g.G, g.S)
    return deliver(result, out)


@np.errstate(invalid="ignore", over="ignore")  # NaN and infinity travel silently
def conv2d_backward_bias(grad: np.ndarray, y: np.ndarray | None, out: np.ndarray | None) -> np.ndarray:
    return deliver(_before_relu(grad, y).sum(axis=(0, 2, 3)), out)


def conv2d_backward_parameters(
    x: np.ndarray, grad: np.ndarray, g: Geometry, y: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    return conv2d_backward_weight(x, grad, g, y, None), conv2d_backward_bias(grad, y, None)


def _correlate(
    x: np.ndarray,
    weight: np.ndarray,
    groups: int,
    size: tuple[int, int],
    stride: tuple[int, int],
    dilation: tuple[int, int],
) -> np.ndarray:
    """The (N, K, P, Q) sums of products of the padded ``x`` with ``weight``; ``size`` is (P, Q)."""
    K, C_of_group, R, S = weight.shape
    y = np.empty((len(x), groups, K // groups, size[0] * size[1]), x.dtype)
    product = np.empty_like(y)  # one for all rows: fresh memory costs more than the product
    for r, strip in enumerate(_strips(x, groups, S, size, R, stride, dilation)):
        row = weight[:, :, r].reshape(groups, K // groups, C_of_group * S)
        np.matmul(row, strip, out=product if r else y)
        if r:
            y += product
    return y.reshape(len(x), K, *size)


def _strips(
    x: np.ndarray,
    groups: int,
    S: int,
    size: tuple[int, int],
    R: int,
    stride: tuple[int, int],
    dilation: tuple[int, int],
) -> Iterator[np.ndarray]:
    """For each filter row r the inputs under it, (N, G, C/G S, P Q); ``x`` is padded already."""
    (P, Q), (sh, sw), (dh, dw) = size, stride, dilation
    N, C, H, _ = x.shape
    windows = sliding_window_view(x, dw * (S - 1) + 1, axis=3)[:, :, :, ::sw, ::dw]  # (N, C, H, Q, S)
    columns = windows.transpose(0, 1, 4, 2, 3).reshape(N, groups, C // groups * S, H, Q)
    for r in range(R):
        yield columns[:, :, :, _every(sh, r * dh, P)].reshape(N, groups, C // groups * S, P * Q)


def _padded(x: np.ndarray, g: Geometry) -> np.ndarray:
    return np.pad(x, ((0, 0), (0, 0), *g.paddings))


def _every(step: int, first: int, count: int) -> slice:
    """``count`` indices from ``first`` on, ``step`` apart."""
    return slice(first, first + step * (count - 1) + 1, step)
