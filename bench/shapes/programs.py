"""The programs' layers, and what a training step of each costs.

A training step states no bytes: what one layer writes the next may find in a cache, or never be written, where layers
are fused.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from .layers import Conv2d, Gemm, MaxPool2d, Pad


@dataclass(frozen=True)
class Step:
    """A training step of a program, its layers with many operations only.

    Attributes:
        convolutions, linears: in order; a linear layer is (batch, in) times (in, out).
    """

    convolutions: tuple[Conv2d, ...]
    linears: tuple[Gemm, ...]

    def parameters(self) -> int:
        """Weights and biases."""
        return sum(c.elements[1] + c.K for c in self.convolutions) + sum(g.K * g.N + g.N for g in self.linears)

    def flops(self) -> int:
        """Forward plus both backward products of each layer; the first layer needs no gradient of its input.

        Activations, pools, loss and update are not counted: together under 5 % in these programs.
        """
        total = 0
        for i, conv in enumerate(self.convolutions):
            total += conv.flops_forward() + conv.flops_backward(input_gradient=i > 0)
        for i, linear in enumerate(self.linears):
            total += (2 if i == 0 and not self.convolutions else 3) * linear.flops()
        return total

    def forward_flops(self) -> int:
        """Of the forward pass alone."""
        return sum(c.flops_forward() for c in self.convolutions) + sum(g.flops() for g in self.linears)


def _linears(batch: int, *widths: int) -> tuple[Gemm, ...]:
    return tuple(Gemm(batch, a, b) for a, b in pairwise(widths))


def p5_convolutions(batch: int) -> tuple[Conv2d, ...]:
    """P5: 5×5, 1→20 on 28×28, then 20→20 on 14×14, each followed by ReLU and max-pool 2."""
    pad = Pad(2, 2, 2, 2)
    return Conv2d(batch, 1, 28, 28, 20, 5, 5, 1, pad), Conv2d(batch, 20, 14, 14, 20, 5, 5, 1, pad)


def p5_pools(batch: int) -> tuple[MaxPool2d, ...]:
    """P5: 2×2 on 28×28 and on 14×14, 20 channels."""
    return MaxPool2d(batch, 20, 28, 28, 2, 2), MaxPool2d(batch, 20, 14, 14, 2, 2)


#: P10's zero padding (before, after) keeps 28→28→14→7; TensorFlow calls it "same".
_P10_PADS = {(4, 2): Pad(1, 1, 1, 1), (5, 2): Pad(1, 2, 1, 2), (5, 1): Pad(2, 2, 2, 2), (6, 1): Pad(2, 3, 2, 3)}


def p10_convolutions(batch: int, channels: tuple[int, int, int], first_filter: int) -> tuple[Conv2d, ...]:
    """P10: filters ``first_filter``, 5 (stride 2), 4 (stride 2), each followed by ReLU."""
    layers, C, H = [], 1, 28
    for K, R, stride in zip(channels, (first_filter, 5, 4), (1, 2, 2), strict=True):
        layers.append(Conv2d(batch, C, H, H, K, R, R, stride, _P10_PADS[R, stride]))
        C, H = K, layers[-1].P
    return tuple(layers)


P9_WIDTHS = (784, 200, 100, 60, 30, 10)


def p5(batch: int) -> Step:
    """P5."""
    return Step(p5_convolutions(batch), _linears(batch, 980, 10))


def p8(batch: int) -> Step:
    """P8."""
    return Step((), _linears(batch, 784, 10))


def p9(batch: int) -> Step:
    """P9."""
    return Step((), _linears(batch, *P9_WIDTHS))


def p10(batch: int, channels: tuple[int, int, int], first_filter: int) -> Step:
    """P10."""
    return Step(p10_convolutions(batch, channels, first_filter), _linears(batch, 49 * channels[2], 200, 10))


SMALL_P10 = ((4, 8, 12), 5)
LARGE_P10 = ((6, 12, 24), 6)
