"""Functions of tensors, under torch's names (``rawgrad.functional``, usually imported as ``F``).

Shapes: N batch, C channels, H W height and width; integers or (vertical, horizontal) pairs where a
size, stride or padding is asked for.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..kernels import _graph
from ..kernels._errors import ArgumentError, DtypeError, IndexRangeError, ShapeError
from ..kernels.conv2d import Padding
from .functions import activation as _activation
from .functions import avg_pool2d as _avg_pool2d
from .functions import conv2d as _conv2d
from .functions import dropout as _dropout
from .functions import elementwise as _elementwise
from .functions import embedding as _embedding
from .functions import linear as _linear
from .functions import max_pool2d as _max_pool2d
from .functions import norms as _norms
from .functions import softmax as _softmax
from .functions import softmax_cross_entropy as _softmax_cross_entropy
from .functions._operands import axis as _axis
from .functions.indexing import SetItem as _SetItem
from .functions.matmul import matmul
from .functions.shape import cat, chunk, split, stack
from .random import Generator, default_generator
from .tensor import Tensor

__all__ = [
    "avg_pool2d", "batch_norm", "binary_cross_entropy_with_logits", "bmm", "cat", "chunk", "conv2d",
    "cosine_similarity", "cross_entropy", "dropout", "elu", "embedding", "gelu", "group_norm", "l1_loss",
    "layer_norm", "leaky_relu", "linear", "linear_layers", "log_softmax", "matmul", "max_pool2d", "mm", "mse_loss",
    "nll_loss", "one_hot", "pad", "relu", "sigmoid", "silu", "softmax", "softplus", "split", "stack", "tanh", "tril",
    "triu", "where",
]  # fmt: skip


def _tensors(operation: str, **arguments: Any) -> None:
    """Each argument must be a tensor; None stands for one that may be left out."""
    for name, value in arguments.items():
        if not isinstance(value, Tensor) and value is not None:
            kind = f"{type(value).__module__}.{type(value).__qualname__}".removeprefix("builtins.")
            raise DtypeError(f"{operation}: {name} must be a tensor; got {kind}; rg.tensor(...) makes one of it")


# ---- linear maps


def linear(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    activation: str | None = None,
    dropout: float = 0.0,
    generator: Generator | None = None,
) -> Tensor:
    """``dropout(activation(input @ weight.T + bias))``, in one kernel.

    Args:
        input: (..., in_features).
        weight: (out_features, in_features).
        bias: (out_features) or None.
        activation: None or the name of an activation: "relu", "sigmoid", "tanh", "gelu", …
        dropout, generator: the probability with which each element is dropped, and who draws; see :func:`dropout`.

    Returns:
        (..., out_features).
    """
    return _linear_layers("linear", input, [(weight, bias, activation, dropout)], generator)


def linear_layers(input: Tensor, layers: Sequence[_linear.Given], *, generator: Generator | None = None) -> Tensor:
    """:func:`linear` for one layer after the other, as one node: what lies between two of them stays in the kernels.

    Args:
        input: (..., in_features of the first layer).
        layers: of each layer its weight, its bias or None, its activation or None, and its probability of dropout, 0
            for none.
        generator: who draws for all of them; see :func:`dropout`.

    Returns:
        (..., out_features of the last layer).
    """
    return _linear_layers("linear_layers", input, layers, generator)


def _linear_layers(
    operation: str, input: Tensor, layers: Sequence[_linear.Given], generator: Generator | None
) -> Tensor:
    _tensors(operation, input=input)
    for weight, bias, _, p in layers:
        _tensors(operation, weight=weight, bias=bias)
        _probability(operation, "dropout", p)
    return _linear.linear_layers(input, layers, generator or default_generator)


def _probability(operation: str, argument: str, p: Any) -> None:
    if not isinstance(p, int | float) or not 0.0 <= p <= 1.0:
        raise ArgumentError(f"{operation}: {argument} must be a number in [0, 1]; got {p!r}")


def _hashable(option: Any) -> Any:
    """Lists as tuples, which caches of sizes can look up."""
    return tuple(map(_hashable, option)) if isinstance(option, list | tuple) else option


def conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | tuple[int, int] = 1,
    padding: Padding = 0,
    dilation: int | tuple[int, int] = 1,
    groups: int = 1,
    *,
    activation: str | None = None,
) -> Tensor:
    """Two-dimensional convolution; see :mod:`rawgrad.kernels.conv2d` for the equations.

    Args:
        input: (N, C, H, W).  Images that lie in memory as (N, H, W, C), as ``images.permute(0, 3, 1, 2)`` gives them,
            stay so on a GPU's tensor cores (:class:`rawgrad.precision`); elsewhere they are copied.
        weight: (K, C/groups, R, S).
        bias: (K) or None.
        stride, padding, dilation: one integer or (vertical, horizontal); each of the padding's may be a
            pair (before, after).
        activation: None or the name of an activation that follows; "relu" in the same kernel.

    Returns:
        (N, K, P, Q).
    """
    _tensors("conv2d", input=input, weight=weight, bias=bias)
    options = *(_hashable(v) for v in (stride, padding, dilation)), groups
    return _conv2d.conv2d(input, weight, bias, options, activation)


def conv2d_relu_pool(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | tuple[int, int] = 1,
    padding: Padding = 0,
    dilation: int | tuple[int, int] = 1,
    groups: int = 1,
    *,
    kernel_size: int | tuple[int, int],
    pool_stride: int | tuple[int, int] | None = None,
    pool_padding: int | tuple[int, int] = 0,
    pool_dilation: int | tuple[int, int] = 1,
    ceil_mode: bool = False,
) -> Tensor:
    """``max_pool2d(relu(conv2d(...)))`` in one operation, which need not write what lies between.

    Args:
        input, weight, bias, stride, padding, dilation, groups: as in :func:`conv2d`.
        kernel_size, pool_stride, pool_padding, pool_dilation, ceil_mode: as in :func:`max_pool2d`.

    Returns:
        (N, K, P, Q) of the pooling.
    """
    _tensors("conv2d_relu_pool", input=input, weight=weight, bias=bias)
    for name, tensor in (("input", input), ("weight", weight)):
        if tensor.ndim != 4:
            raise ShapeError(f"conv2d_relu_pool: {name} must have 4 dimensions; got shape {tuple(tensor.shape)}")
    options = *(_hashable(v) for v in (stride, padding, dilation)), groups
    pool = *(_hashable(v) for v in (kernel_size, pool_stride, pool_padding, pool_dilation)), ceil_mode
    return _conv2d.Conv2dReluPool.apply(input, weight, bias, options, pool)


def mm(input: Tensor, mat2: Tensor) -> Tensor:
    """The product of two matrices (M, K) and (K, N)."""
    _tensors("mm", input=input, mat2=mat2)
    if input.ndim != 2 or mat2.ndim != 2:
        raise ShapeError(f"mm: takes two matrices; got shapes {tuple(input.shape)} and {tuple(mat2.shape)}")
    return matmul(input, mat2)


def bmm(input: Tensor, mat2: Tensor) -> Tensor:
    """The products of two batches of matrices (B, M, K) and (B, K, N)."""
    _tensors("bmm", input=input, mat2=mat2)
    if input.ndim != 3 or mat2.ndim != 3 or input.shape[0] != mat2.shape[0]:
        raise ShapeError(f"bmm: takes (B, M, K) and (B, K, N); got shapes {tuple(input.shape)} and {tuple(mat2.shape)}")
    return matmul(input, mat2)


# ---- windows


def pad(input: Tensor, pad: Sequence[int], mode: str = "constant", value: float = 0.0) -> Tensor:
    """``input`` with a border.

    Args:
        pad: (before, after) of the last dimension, then of the one before it, …; negative cuts off.
        mode: only "constant".
        value: of the border.
    """
    _tensors("pad", input=input)
    if mode != "constant":
        raise ArgumentError(f"pad: mode must be 'constant'; got {mode!r}")
    if len(pad) % 2 or len(pad) > 2 * input.ndim:
        raise ArgumentError(
            f"pad: must be pairs (before, after) for at most {input.ndim} dimensions, last dimension first; "
            f"got {tuple(pad)}"
        )
    before, after = [0] * input.ndim, [0] * input.ndim
    for i in range(len(pad) // 2):
        before[-1 - i], after[-1 - i] = int(pad[2 * i]), int(pad[2 * i + 1])
    size = tuple(b + s + a for b, s, a in zip(before, input.shape, after, strict=True))
    if min(size, default=0) < 0:
        raise ShapeError(f"pad: {tuple(pad)} cuts more off than shape {tuple(input.shape)} has")
    kept = input[tuple(slice(max(-b, 0), s + min(a, 0)) for b, s, a in zip(before, input.shape, after, strict=True))]
    if all(b <= 0 for b in before) and all(a <= 0 for a in after):
        return kept
    border = Tensor(input.array_module.full(size, value, input.dtype))
    inside = tuple(slice(max(b, 0), max(b, 0) + s) for b, s in zip(before, kept.shape, strict=True))
    return _SetItem.apply(border, kept, inside)


def max_pool2d(
    input: Tensor,
    kernel_size: int | tuple[int, int],
    stride: int | tuple[int, int] | None = None,
    padding: int | tuple[int, int] = 0,
    dilation: int | tuple[int, int] = 1,
    ceil_mode: bool = False,
) -> Tensor:
    """The largest element of each window of (N, C, H, W); ties go to the first, NaN wins."""
    _tensors("max_pool2d", input=input)
    return _max_pool2d.MaxPool2d.apply(input, kernel_size, stride, padding, dilation, ceil_mode)


def avg_pool2d(
    input: Tensor,
    kernel_size: int | tuple[int, int],
    stride: int | tuple[int, int] | None = None,
    padding: int | tuple[int, int] = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Tensor:
    """The mean of each window of (N, C, H, W)."""
    _tensors("avg_pool2d", input=input)
    options = stride, padding, ceil_mode, count_include_pad, divisor_override
    return _avg_pool2d.AvgPool2d.apply(input, kernel_size, options)


# ---- activations


def relu(input: Tensor) -> Tensor:
    """max(x, 0); NaN stays NaN."""
    _tensors("relu", input=input)
    return _activation.activation(input, "relu")


def leaky_relu(input: Tensor, negative_slope: float = 0.01) -> Tensor:
    """x where positive, ``negative_slope`` · x elsewhere."""
    _tensors("leaky_relu", input=input)
    return _activation.activation(input, "leaky_relu", negative_slope=negative_slope)


def elu(input: Tensor, alpha: float = 1.0) -> Tensor:
    """x where positive, ``alpha`` (e^x - 1) elsewhere."""
    _tensors("elu", input=input)
    return _activation.activation(input, "elu", alpha=alpha)


def gelu(input: Tensor, approximate: str = "none") -> Tensor:
    """x Φ(x); ``approximate="tanh"`` for its approximation."""
    _tensors("gelu", input=input)
    return _activation.activation(input, "gelu", approximate=approximate)


def silu(input: Tensor) -> Tensor:
    """x · sigmoid(x)."""
    _tensors("silu", input=input)
    return _activation.activation(input, "silu")


def softplus(input: Tensor, beta: float = 1.0, threshold: float = 20.0) -> Tensor:
    """log(1 + e^(βx)) / β, and x where βx exceeds ``threshold``."""
    _tensors("softplus", input=input)
    return _activation.activation(input, "softplus", beta=beta, threshold=threshold)


def sigmoid(input: Tensor) -> Tensor:
    """1 / (1 + e^-x)."""
    _tensors("sigmoid", input=input)
    return _activation.activation(input, "sigmoid")


def tanh(input: Tensor) -> Tensor:
    """The hyperbolic tangent."""
    _tensors("tanh", input=input)
    return _activation.activation(input, "tanh")


def softmax(input: Tensor, dim: int) -> Tensor:
    """e^x along ``dim``, scaled to add up to one."""
    _tensors("softmax", input=input)
    return _softmax.softmax(input, dim)


def log_softmax(input: Tensor, dim: int) -> Tensor:
    """The logarithm of :func:`softmax`, safe for large elements."""
    _tensors("log_softmax", input=input)
    return _softmax.log_softmax(input, dim)


# ---- losses


def _reduce(operation: str, losses: Tensor, reduction: str) -> Tensor:
    if reduction == "mean":
        return losses.mean()
    if reduction == "sum":
        return losses.sum()
    if reduction == "none":
        return losses
    raise ArgumentError(f"{operation}: reduction must be 'mean', 'sum' or 'none'; got {reduction!r}")


def _same_shape(operation: str, input: Tensor, target: Tensor) -> None:
    _tensors(operation, input=input, target=target)
    # torch broadcasts here with a warning; it is nearly always a mistake ((N, 1) against (N)).
    if input.shape != target.shape:
        raise ShapeError(
            f"{operation}: input and target must have one shape; got {tuple(input.shape)} and {tuple(target.shape)}"
        )


def cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> Tensor:
    """Softmax and cross-entropy in one pass that also gives the gradient.

    Args:
        input: logits (C), (N, C) or (N, C, d1, …).
        target: integer labels (), (N) or (N, d1, …), or probabilities of the shape of ``input``.
        weight: (C), of each class.
        ignore_index: the label whose rows count nothing.
        reduction: "mean" (over the weights of the labels), "sum" or "none".
        label_smoothing: in [0, 1]: that much of each target is spread over all classes.

    Raises:
        IndexRangeError: a label outside [0, C).
    """
    _tensors("cross_entropy", input=input, target=target, weight=weight)
    return _softmax_cross_entropy.cross_entropy(input, target, weight, ignore_index, reduction, label_smoothing)


def nll_loss(
    input: Tensor, target: Tensor, weight: Tensor | None = None, ignore_index: int = -100, reduction: str = "mean"
) -> Tensor:
    """-Σ weight · log-probability of the label.

    Args:
        input: log-probabilities (N, C) or (C).
        target: integer labels (N) or ().
    """
    _tensors("nll_loss", input=input, target=target, weight=weight)
    if input.ndim not in (1, 2) or target.ndim != input.ndim - 1:
        raise ShapeError(
            f"nll_loss: takes input (N, C) with target (N), or (C) with (); got {tuple(input.shape)} and "
            f"{tuple(target.shape)}"
        )
    rows = input if input.ndim == 2 else input.reshape(1, -1)
    labels = target.reshape(-1)
    if len(rows) != len(labels):
        raise ShapeError(f"nll_loss: {len(rows)} rows of input but {len(labels)} labels")
    xp = rows.array_module
    integers = _integers("nll_loss", labels)
    kept = integers != ignore_index
    safe = xp.where(kept, integers, 0)
    _check_labels("nll_loss", Tensor(safe), rows.shape[1])
    picked = rows[Tensor(xp.arange(len(rows))), Tensor(safe)]
    weights = Tensor(kept.astype(rows.dtype)) if weight is None else weight.detach()[Tensor(safe)] * Tensor(kept)
    losses = _elementwise.where(Tensor(kept), -(picked * weights), 0.0)
    if reduction == "mean":
        return losses.sum() / weights.sum()
    losses = _reduce("nll_loss", losses, reduction)
    return losses.reshape(()) if input.ndim == 1 else losses


def _integers(operation: str, labels: Tensor) -> Any:
    """The labels as int64, so that they may be compared with any number of classes and any ``ignore_index``."""
    if labels.dtype.kind not in "iu":
        raise DtypeError(f"{operation}: labels must be integers; got {labels.dtype}")
    return labels.array.astype(np.int64, copy=False)


def _check_labels(operation: str, labels: Tensor, classes: int) -> None:
    if labels.device != "cpu":
        _graph.refuse("labels were looked through on the host", "cross_entropy checks them on the device")
    flat = _integers(operation, labels).reshape(-1)
    bad = (flat < 0) | (flat >= classes)
    if bool(bad.any()):
        first = int(bad.argmax())
        raise IndexRangeError(f"{operation}: label {int(flat[first])} at {first} is outside [0, {classes})")


def mse_loss(input: Tensor, target: Tensor, reduction: str = "mean") -> Tensor:
    """(input - target)²."""
    _same_shape("mse_loss", input, target)
    difference = input - target
    return _reduce("mse_loss", difference * difference, reduction)


def l1_loss(input: Tensor, target: Tensor, reduction: str = "mean") -> Tensor:
    """|input - target|."""
    _same_shape("l1_loss", input, target)
    return _reduce("l1_loss", (input - target).abs(), reduction)


def binary_cross_entropy_with_logits(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    reduction: str = "mean",
    pos_weight: Tensor | None = None,
) -> Tensor:
    """-w (p t log σ(x) + (1 - t) log(1 - σ(x))) with logits x and probabilities t, safe for any x."""
    _same_shape("binary_cross_entropy_with_logits", input, target)
    # -log σ(x) = softplus(-x), -log(1 - σ(x)) = softplus(x) = softplus(-x) + x
    negative = softplus(-input, threshold=sys.float_info.max)
    positive = 1 if pos_weight is None else (pos_weight - 1) * target + 1
    losses = (1 - target) * input + positive * negative
    return _reduce("binary_cross_entropy_with_logits", losses if weight is None else losses * weight, reduction)


def cosine_similarity(x1: Tensor, x2: Tensor, dim: int = 1, eps: float = 1e-8) -> Tensor:
    """⟨x1, x2⟩ / (|x1| |x2|) along ``dim``, each norm at least ``eps``."""
    _tensors("cosine_similarity", x1=x1, x2=x2)
    x1, x2 = x1 + 0 * x2, x2 + 0 * x1
    norms = (x1.norm(2, dim).clamp(min=eps), x2.norm(2, dim).clamp(min=eps))
    return (x1 * x2).sum(dim) / (norms[0] * norms[1])


# ---- normalisation and dropout


def dropout(input: Tensor, p: float = 0.5, training: bool = True, *, generator: Generator | None = None) -> Tensor:
    """Each element 0 with probability ``p``, else scaled by 1/(1-p); ``input`` itself when not training.

    The mask is a function of the generator's seed and offset alone, the same on every backend.
    """
    _tensors("dropout", input=input)
    _probability("dropout", "p", p)
    if not training or p == 0.0:
        return input
    return _dropout.dropout(input, p, generator or default_generator)


def batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """Each channel of (N, C, …) normalised, by the batch's statistics in training, else by the running ones.

    In training the running ones move towards the batch's by ``momentum`` (the variance unbiased),
    in place.
    """
    _tensors("batch_norm", input=input, running_mean=running_mean, running_var=running_var, weight=weight, bias=bias)
    if not training and running_mean is not None and running_var is not None:
        shape = (1, -1, *(1,) * (input.ndim - 2))
        scale = (running_var + eps) ** -0.5
        scale = scale if weight is None else scale * weight
        shift = -running_mean * scale
        shift = shift if bias is None else shift + bias
        if running_mean.shape != input.shape[1:2]:
            raise ShapeError(
                f"batch_norm: the running statistics of {running_mean.shape[0]} channels do not fit input of shape "
                f"{tuple(input.shape)}"
            )
        return input * scale.reshape(shape) + shift.reshape(shape)
    count = input.numel() // max(input.shape[1] if input.ndim > 1 else 1, 1)
    if training and count < 2:
        raise ShapeError(
            f"batch_norm: training needs more than one value per channel; got input of shape {tuple(input.shape)}"
        )
    y, mean, rstd = _norms.BatchNorm.apply(input, weight, bias, None, eps)
    if running_mean is not None and running_var is not None:
        variance = (1.0 / (rstd.array * rstd.array) - eps) * (count / (count - 1))
        for running, current in ((running_mean, mean.array), (running_var, variance)):
            running.array *= 1 - momentum
            running.array += momentum * current
            running.written()
    return y


def layer_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """Normalised over the last dimensions, which must be ``normalized_shape``, then scaled and shifted."""
    _tensors("layer_norm", input=input, weight=weight, bias=bias)
    wanted = tuple(normalized_shape)
    if not wanted or tuple(input.shape[max(input.ndim - len(wanted), 0) :]) != wanted:
        raise ShapeError(
            f"layer_norm: the last sizes of input must be normalized_shape {wanted}; got input of shape "
            f"{tuple(input.shape)}"
        )
    return _norms.LayerNorm.apply(input, weight, bias, len(wanted), eps)


def group_norm(
    input: Tensor, num_groups: int, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5
) -> Tensor:
    """(N, C, …) normalised over each of ``num_groups`` groups of channels, then scaled and shifted by channel."""
    _tensors("group_norm", input=input, weight=weight, bias=bias)
    return _norms.GroupNorm.apply(input, weight, bias, num_groups, eps)


# ---- indices


def embedding(input: Tensor, weight: Tensor, padding_idx: int | None = None) -> Tensor:
    """The rows of ``weight`` (V, D) at the indices ``input``; row ``padding_idx`` gets no gradient."""
    _tensors("embedding", input=input, weight=weight)
    if padding_idx is not None:
        padding_idx = _axis("embedding (padding_idx)", padding_idx, weight.shape[0])
    return _embedding.Embedding.apply(weight, input, padding_idx)


def one_hot(input: Tensor, num_classes: int = -1) -> Tensor:
    """int64 vectors with a single 1 at the label; by default as many classes as the largest label needs."""
    _tensors("one_hot", input=input)
    if num_classes == -1:
        if not input.numel():
            raise ArgumentError("one_hot: num_classes must be given for an empty tensor")
        num_classes = int(input.max()) + 1
    _check_labels("one_hot", input, num_classes)
    xp = input.array_module
    return Tensor((input.array[..., None] == xp.arange(num_classes)).astype(np.int64))


def where(condition: Tensor, input: Any, other: Any) -> Tensor:
    """``input`` where ``condition`` holds, ``other`` elsewhere."""
    return _elementwise.where(condition, input, other)


def _triangle(operation: str, input: Tensor, diagonal: int) -> Tensor:
    _tensors(operation, input=input)
    if input.ndim < 2:
        raise ShapeError(f"{operation}: needs at least 2 dimensions; got shape {tuple(input.shape)}")
    xp = input.array_module
    mask = getattr(xp, operation)(xp.ones(input.shape[-2:], np.bool_), diagonal)
    return _elementwise.where(Tensor(mask), input, 0)


def tril(input: Tensor, diagonal: int = 0) -> Tensor:
    """The lower triangle of the last two dimensions, zeros above ``diagonal``."""
    return _triangle("tril", input, diagonal)


def triu(input: Tensor, diagonal: int = 0) -> Tensor:
    """The upper triangle of the last two dimensions, zeros below ``diagonal``."""
    return _triangle("triu", input, diagonal)
