"""``BatchNorm1d`` and ``BatchNorm2d``: each channel to mean 0 and variance 1 over the batch."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from ...autograd import Tensor
from ...autograd import functional as F
from ...kernels._devices import device_of
from ...kernels._errors import ShapeError
from .. import init
from ..module import Module
from ._checks import array_of_zeros, count, number, parameter


class _BatchNorm(Module):
    """What both have in common; see :class:`BatchNorm2d`."""

    _ranks: ClassVar[tuple[int, ...]] = ()
    _legend: ClassVar[str] = ""

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        device: str | None = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        layer = type(self).__name__
        self.num_features = count(layer, "num_features", num_features)
        self.eps = number(layer, "eps", eps, 0.0)
        self.momentum = None if momentum is None else number(layer, "momentum", momentum, 0.0, 1.0)
        self.affine = bool(affine)
        self.track_running_stats = bool(track_running_stats)
        shape = (self.num_features,)
        self.register_parameter("weight", parameter(shape, device, dtype) if affine else None)
        self.register_parameter("bias", parameter(shape, device, dtype) if affine else None)
        mean = var = batches = None
        if track_running_stats:
            mean, var = (Tensor(array_of_zeros(shape, device, dtype)) for _ in range(2))
            batches = Tensor(device_of(mean.array).array_module.zeros((), np.int64))
        self.register_buffer("running_mean", mean)
        self.register_buffer("running_var", var)
        self.register_buffer("num_batches_tracked", batches)
        self.reset_parameters()

    def reset_running_stats(self) -> None:
        """Forget the batches seen so far."""
        if self.track_running_stats:
            init.zeros_(self.running_mean)
            init.ones_(self.running_var)
            self.num_batches_tracked.array[...] = 0

    def reset_parameters(self) -> None:
        """Weights to one, biases to zero, and forget the batches seen so far."""
        self.reset_running_stats()
        if self.affine:
            init.ones_(self.weight)
            init.zeros_(self.bias)

    def forward(self, input: Tensor) -> Tensor:
        if input.ndim not in self._ranks:
            raise ShapeError(f"{type(self).__name__}: input must have shape {self._legend}; got {tuple(input.shape)}")
        update = self.training and self.track_running_stats
        momentum = self.momentum
        if update:
            self.num_batches_tracked.array[...] += 1
            if momentum is None:
                momentum = 1.0 / self.num_batches_tracked.item()
        use_running = self.track_running_stats and (update or not self.training)
        return F.batch_norm(
            input,
            self.running_mean if use_running else None,
            self.running_var if use_running else None,
            self.weight,
            self.bias,
            training=self.training or not self.track_running_stats,
            momentum=0.0 if momentum is None else momentum,
            eps=self.eps,
        )

    def extra_repr(self) -> str:
        return (
            f"{self.num_features}, eps={self.eps}, momentum={self.momentum}, affine={self.affine}, "
            f"track_running_stats={self.track_running_stats}"
        )


class BatchNorm1d(_BatchNorm):
    """Batch normalisation of (N, C) or (N, C, L), and the same out; arguments as :class:`BatchNorm2d`.

    The mean and variance of a channel are over N, and L where there is one.
    """

    _ranks = (2, 3)
    _legend = "(N, C) or (N, C, L)"


class BatchNorm2d(_BatchNorm):
    """Batch normalisation of (N, C, H, W), and the same out.

    y = (x - mean) / sqrt(var + eps) · weight + bias, for each channel over N, H and W.

    In training, mean and variance are those of the batch, and the running ones move towards them by
    ``momentum`` (the running variance by the unbiased one); in evaluation they are the running ones.

    Args:
        num_features: number of channels.
        eps: added to the variance.
        momentum: share of the new value; None for the mean over all batches so far.
        affine: whether there are ``weight`` (ones at first) and ``bias`` (zeros), both (num_features,).
        track_running_stats: whether there are running values; else the batch's are always used.
        device, dtype: of the parameters and buffers; the CPU and float32 by default.

    Source: Ioffe and Szegedy 2015.
    """

    _ranks = (4,)
    _legend = "(N, C, H, W)"
