"""Every operation once more, as a user of each peer would write it: the forward pass alone.

One class for each library, one method for each operation, of the same names and arguments.  What a library has, is
used; what it lacks, is put together from what it has.  Gradients are the library's own (see :mod:`.rivals`).
"""

from __future__ import annotations

import math
from typing import Any

#: Added to variances, as everywhere.
EPS = 1e-5


class TorchFormulas:
    """PyTorch."""

    def __init__(self) -> None:
        import torch

        self._torch, self._f = torch, torch.nn.functional

    def gemm(self, a: Any, b: Any) -> Any:
        return self._torch.mm(a, b)

    def linear(self, x: Any, w: Any, b: Any) -> Any:
        return self._f.linear(x, w, b)

    def conv2d(self, x: Any, w: Any, b: Any, stride: int, padding: int, groups: int) -> Any:
        return self._f.conv2d(x, w, b, stride, padding, 1, groups)

    def max_pool2d(self, x: Any, kernel: int, stride: int, padding: int) -> Any:
        return self._f.max_pool2d(x, kernel, stride, padding)

    def avg_pool2d(self, x: Any, kernel: int, stride: int, padding: int) -> Any:
        return self._f.avg_pool2d(x, kernel, stride, padding)

    def cross_entropy(self, x: Any, labels: Any) -> Any:
        return self._f.cross_entropy(x, labels)

    def softmax(self, x: Any) -> Any:
        return self._f.softmax(x, -1)

    def activation(self, x: Any, kind: str) -> Any:
        return getattr(self._torch if kind == "sigmoid" else self._f, kind)(x)

    def dropout(self, x: Any, offset: Any, p: float) -> Any:
        return self._f.dropout(x, p)

    def batch_norm(self, x: Any, w: Any, b: Any) -> Any:
        return self._f.batch_norm(x, None, None, w, b, True, 0.0, EPS)

    def layer_norm(self, x: Any, w: Any, b: Any) -> Any:
        return self._f.layer_norm(x, (x.shape[-1],), w, b, EPS)

    def group_norm(self, x: Any, w: Any, b: Any, groups: int) -> Any:
        return self._f.group_norm(x, groups, w, b, EPS)

    def embedding(self, w: Any, indices: Any) -> Any:
        return self._f.embedding(indices, w)


class LigerFormulas(TorchFormulas):
    """Liger-Kernel, on PyTorch's tensors on a GPU.  Its cross-entropy overwrites the logits with their gradient."""

    def __init__(self) -> None:
        super().__init__()
        from liger_kernel.transformers import functional

        self._liger = functional

    @staticmethod
    def does(operation: str) -> bool:
        """Whether it has a kernel of its own."""
        return operation in ("softmax_cross_entropy", "layer_norm")

    def cross_entropy(self, x: Any, labels: Any) -> Any:
        return self._liger.liger_cross_entropy(x, labels)

    def layer_norm(self, x: Any, w: Any, b: Any) -> Any:
        return self._liger.liger_layer_norm(x, w, b, EPS)


class JaxFormulas:
    """JAX."""

    def __init__(self) -> None:
        import jax

        self._jax, self._np, self._lax = jax, jax.numpy, jax.lax

    def gemm(self, a: Any, b: Any) -> Any:
        return a @ b

    def linear(self, x: Any, w: Any, b: Any) -> Any:
        return x @ w.T + b

    def conv2d(self, x: Any, w: Any, b: Any, stride: int, padding: int, groups: int) -> Any:
        around = [(padding, padding)] * 2
        y = self._lax.conv_general_dilated(x, w, (stride, stride), around, feature_group_count=groups)
        return y + b[:, None, None]

    def _windows(self, x: Any, first: float, combine: Any, kernel: int, stride: int, padding: int) -> Any:
        around = ((0, 0), (0, 0), (padding, padding), (padding, padding))
        return self._lax.reduce_window(x, first, combine, (1, 1, kernel, kernel), (1, 1, stride, stride), around)

    def max_pool2d(self, x: Any, kernel: int, stride: int, padding: int) -> Any:
        return self._windows(x, -math.inf, self._lax.max, kernel, stride, padding)

    def avg_pool2d(self, x: Any, kernel: int, stride: int, padding: int) -> Any:
        return self._windows(x, 0.0, self._lax.add, kernel, stride, padding) / kernel**2

    def cross_entropy(self, x: Any, labels: Any) -> Any:
        chosen = self._np.take_along_axis(self._jax.nn.log_softmax(x), labels[:, None], 1)
        return -chosen.mean()

    def softmax(self, x: Any) -> Any:
        return self._jax.nn.softmax(x)

    def activation(self, x: Any, kind: str) -> Any:
        return self._jax.nn.gelu(x, approximate=False) if kind == "gelu" else getattr(self._jax.nn, kind)(x)

    def dropout(self, x: Any, offset: Any, p: float) -> Any:
        random = self._jax.random
        return self._np.where(random.bernoulli(random.key(offset[0]), 1 - p, x.shape), x / (1 - p), 0)

    def _normalised(self, x: Any, axes: tuple[int, ...]) -> Any:
        centred = x - x.mean(axes, keepdims=True)
        return centred * self._lax.rsqrt((centred**2).mean(axes, keepdims=True) + EPS)

    def batch_norm(self, x: Any, w: Any, b: Any) -> Any:
        return self._normalised(x, (0, 2, 3)) * w[:, None, None] + b[:, None, None]

    def layer_norm(self, x: Any, w: Any, b: Any) -> Any:
        return self._normalised(x, (-1,)) * w + b

    def group_norm(self, x: Any, w: Any, b: Any, groups: int) -> Any:
        y = self._normalised(x.reshape(x.shape[0], groups, -1), (-1,)).reshape(x.shape)
        return y * w[:, None, None] + b[:, None, None]

    def embedding(self, w: Any, indices: Any) -> Any:
        return w[indices]


def jax_update(np: Any, kind: str, lr: float, t: Any, p: Any, g: Any, *state: Any) -> tuple[Any, ...]:
    """An optimizer's step ``t`` for one parameter, with torch's defaults: the parameter and its state anew.

    Args:
        np: ``jax.numpy``.
        kind: as in :data:`.shapes.layers.UPDATES`.
    """
    if kind == "sgd":
        return (p - lr * g,)
    if kind == "sgd_momentum":
        (b,) = state
        b = 0.9 * b + g
        return p - lr * b, b
    if kind in ("adagrad", "rmsprop"):
        (s,) = state
        s, eps = (s + g * g, 1e-10) if kind == "adagrad" else (0.99 * s + 0.01 * g * g, 1e-8)
        return p - lr * g / (np.sqrt(s) + eps), s
    m, v = 0.9 * state[0] + 0.1 * g, 0.999 * state[1] + 0.001 * g * g
    if kind == "adamw":
        p = p * (1 - 0.01 * lr)
    return p - lr * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8), m, v


class TinygradFormulas:
    """tinygrad."""

    def gemm(self, a: Any, b: Any) -> Any:
        return a @ b

    def linear(self, x: Any, w: Any, b: Any) -> Any:
        return x.linear(w.T, b)

    def conv2d(self, x: Any, w: Any, b: Any, stride: int, padding: int, groups: int) -> Any:
        return x.conv2d(w, b, groups, stride, 1, padding)

    def max_pool2d(self, x: Any, kernel: int, stride: int, padding: int) -> Any:
        return x.max_pool2d((kernel, kernel), stride, padding=padding)

    def avg_pool2d(self, x: Any, kernel: int, stride: int, padding: int) -> Any:
        return x.avg_pool2d((kernel, kernel), stride, padding=padding)

    def cross_entropy(self, x: Any, labels: Any) -> Any:
        return x.sparse_categorical_crossentropy(labels)

    def softmax(self, x: Any) -> Any:
        return x.softmax()

    def activation(self, x: Any, kind: str) -> Any:  # its own gelu is the approximate one
        return 0.5 * x * (1 + (x * 0.5**0.5).erf()) if kind == "gelu" else getattr(x, kind)()

    def dropout(self, x: Any, offset: Any, p: float) -> Any:
        return (type(x).rand(*x.shape) >= p).where(x / (1 - p), 0)

    def _normalised(self, x: Any, axes: tuple[int, ...]) -> Any:
        centred = x - x.mean(axes, keepdim=True)
        return centred * (centred.square().mean(axes, keepdim=True) + EPS).rsqrt()

    def batch_norm(self, x: Any, w: Any, b: Any) -> Any:
        return self._normalised(x, (0, 2, 3)) * w.reshape(-1, 1, 1) + b.reshape(-1, 1, 1)

    def layer_norm(self, x: Any, w: Any, b: Any) -> Any:
        return self._normalised(x, (-1,)) * w + b

    def group_norm(self, x: Any, w: Any, b: Any, groups: int) -> Any:
        y = self._normalised(x.reshape(x.shape[0], groups, -1), (-1,)).reshape(*x.shape)
        return y * w.reshape(-1, 1, 1) + b.reshape(-1, 1, 1)

    def embedding(self, w: Any, indices: Any) -> Any:
        return w[indices]


class ScipyFormulas:
    """SciPy and NumPy, for the few operations that they have in one call or two."""

    def __init__(self) -> None:
        import scipy.special

        self._special = scipy.special

    def softmax(self, x: Any) -> Any:
        return self._special.softmax(x, -1)

    def activation(self, x: Any, kind: str) -> Any:
        if kind == "gelu":  # a NumPy scalar would widen to float64
            return x * self._special.ndtr(x)
        return self._special.expit(x)
