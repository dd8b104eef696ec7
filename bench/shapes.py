"""What is measured: the shapes of the programs and of single kernels, with operations and bytes.

A multiplication and an addition are two operations; comparisons, exponentials and the like count
one each.  Bytes are the least that must travel to and from memory: each pass (forward, backward)
reads every input once and writes every output once.  Both are properties of the work, the same for
every contestant.  A training step states no bytes: what one layer writes the next may find in a cache,
or never be written, where layers are fused.

Letters as in the operations' contracts: N batch, C K channels in and out, H W and P Q height and
width in and out, R S filter height and width.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

from ..kernels import conv2d, gemm

#: Bytes of a float32, of an int64 label, of a max-pool code (one byte up to 256 taps).
FLOAT, LABEL, CODE = 4, 8, 1


class Pad(NamedTuple):
    """Zeros around an image, in the order of ``ZeroPad2d``."""

    left: int
    right: int
    top: int
    bottom: int


_NO_PAD = Pad(0, 0, 0, 0)


@dataclass(frozen=True)
class Conv2d:
    """A convolution with bias."""

    N: int
    C: int
    H: int
    W: int
    K: int
    R: int
    S: int
    stride: int = 1
    pad: Pad = _NO_PAD

    @property
    def P(self) -> int:
        return (self.H + self.pad.top + self.pad.bottom - self.R) // self.stride + 1

    @property
    def Q(self) -> int:
        return (self.W + self.pad.left + self.pad.right - self.S) // self.stride + 1

    @property
    def elements(self) -> tuple[int, int, int]:
        """Elements of x, of weight, of y."""
        return self.N * self.C * self.H * self.W, self.K * self.C * self.R * self.S, self.N * self.K * self.P * self.Q

    @property
    def _products(self) -> int:
        """Of one pass: 2 C R S per output element."""
        padding = (self.pad.top, self.pad.bottom), (self.pad.left, self.pad.right)
        x, weight = (self.N, self.C, self.H, self.W), (self.K, self.C, self.R, self.S)
        return conv2d.geometry(x, weight, self.stride, padding).operations

    def flops_forward(self) -> int:
        """2 C R S per output element for the taps, 1 for the bias."""
        return self._products + self.elements[2]

    def flops_backward(self, input_gradient: bool = True) -> int:
        """2 C R S per output element for each gradient (of x where asked, of weight), 1 for the bias's."""
        return self._products * (1 + input_gradient) + self.elements[2]

    def bytes_forward(self) -> int:
        """x, weight and bias read, y written."""
        return FLOAT * (sum(self.elements) + self.K)

    def bytes_backward(self, input_gradient: bool = True) -> int:
        """dL/dy and x read, dL/dw and dL/db written; for dL/dx weight read and dL/dx written."""
        x, weight, y = self.elements
        return FLOAT * (y + x + weight + self.K + input_gradient * (weight + x))


@dataclass(frozen=True)
class MaxPool2d:
    """A max-pooling without padding."""

    N: int
    C: int
    H: int
    W: int
    kernel: int
    stride: int

    @property
    def P(self) -> int:
        return (self.H - self.kernel) // self.stride + 1

    @property
    def Q(self) -> int:
        return (self.W - self.kernel) // self.stride + 1

    @property
    def elements(self) -> tuple[int, int]:
        """Elements of x, of y."""
        return self.N * self.C * self.H * self.W, self.N * self.C * self.P * self.Q

    def flops(self) -> int:
        """Forward, kernel² - 1 comparisons per output element; backward, one addition each."""
        return self.elements[1] * self.kernel**2

    def bytes(self) -> int:
        """Forward: x read, y and codes written.  Backward: dL/dy and codes read, dL/dx written."""
        x, y = self.elements
        return 2 * (FLOAT * (x + y) + CODE * y)


@dataclass(frozen=True)
class SoftmaxCrossEntropy:
    """Loss and gradient, labels as integers, mean over the batch; C is the number of classes here."""

    N: int
    C: int

    def flops(self) -> int:
        """Per logit: a comparison (maximum), a subtraction, an exponential, an addition, two products."""
        return 6 * self.N * self.C

    def bytes(self) -> int:
        """Logits read, gradient written, labels read."""
        return 2 * FLOAT * self.N * self.C + LABEL * self.N


@dataclass(frozen=True)
class Gemm:
    """(M, K) times (K, N)."""

    M: int
    K: int
    N: int

    def flops(self) -> int:
        """A multiplication and an addition per (m, n, k)."""
        return gemm.Geometry((), self.M, self.N, self.K).operations

    def bytes(self) -> int:
        """Both factors read, the product written."""
        return FLOAT * (self.M * self.K + self.K * self.N + self.M * self.N)


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
