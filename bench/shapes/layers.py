"""The sizes of single layers, and what each pass costs in operations and bytes.

Every shape has the bytes of one of its floating-point numbers, ``itemsize``: 4 for float32, 8 for float64, 2 for
bfloat16.  Where a class has one ``flops`` and ``bytes``, they are of all passes together.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

from ...kernels import conv2d, gemm

#: Bytes of a float32, of an int64 label or index, of a max-pool code (one byte up to 256 taps).
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
    groups: int = 1
    itemsize: int = FLOAT

    @property
    def P(self) -> int:
        return (self.H + self.pad.top + self.pad.bottom - self.R) // self.stride + 1

    @property
    def Q(self) -> int:
        return (self.W + self.pad.left + self.pad.right - self.S) // self.stride + 1

    @property
    def weight_shape(self) -> tuple[int, int, int, int]:
        """(K, C / groups, R, S)."""
        return self.K, self.C // self.groups, self.R, self.S

    @property
    def elements(self) -> tuple[int, int, int]:
        """Elements of x, of weight, of y."""
        return self.N * self.C * self.H * self.W, math.prod(self.weight_shape), self.N * self.K * self.P * self.Q

    @property
    def _products(self) -> int:
        """Of one pass: 2 C/groups R S per output element."""
        padding = (self.pad.top, self.pad.bottom), (self.pad.left, self.pad.right)
        x = self.N, self.C, self.H, self.W
        return conv2d.geometry(x, self.weight_shape, self.stride, padding, groups=self.groups).operations

    def flops_forward(self) -> int:
        """2 C/groups R S per output element for the taps, 1 for the bias."""
        return self._products + self.elements[2]

    def flops_backward(self, input_gradient: bool = True) -> int:
        """The products once for each gradient (of x where asked, of weight), 1 per output element for the bias's."""
        return self._products * (1 + input_gradient) + self.elements[2]

    def bytes_forward(self) -> int:
        """x, weight and bias read, y written."""
        return self.itemsize * (sum(self.elements) + self.K)

    def bytes_backward(self, input_gradient: bool = True) -> int:
        """dL/dy and x read, dL/dw and dL/db written; for dL/dx weight read and dL/dx written."""
        x, weight, y = self.elements
        return self.itemsize * (y + x + weight + self.K + input_gradient * (weight + x))


@dataclass(frozen=True)
class _Pool2d:
    N: int
    C: int
    H: int
    W: int
    kernel: int
    stride: int
    padding: int = 0
    itemsize: int = FLOAT

    @property
    def P(self) -> int:
        return (self.H + 2 * self.padding - self.kernel) // self.stride + 1

    @property
    def Q(self) -> int:
        return (self.W + 2 * self.padding - self.kernel) // self.stride + 1

    @property
    def elements(self) -> tuple[int, int]:
        """Elements of x, of y."""
        return self.N * self.C * self.H * self.W, self.N * self.C * self.P * self.Q


@dataclass(frozen=True)
class MaxPool2d(_Pool2d):
    """A max-pooling of square windows, equally padded on all sides."""

    def flops_forward(self) -> int:
        """A comparison per tap but the first."""
        return self.elements[1] * (self.kernel**2 - 1)

    def flops_backward(self) -> int:
        """An addition per output element."""
        return self.elements[1]

    def flops(self) -> int:
        """Both."""
        return self.flops_forward() + self.flops_backward()

    def bytes_forward(self) -> int:
        """x read, y and codes written."""
        x, y = self.elements
        return self.itemsize * (x + y) + CODE * y

    def bytes_backward(self) -> int:
        """dL/dy and codes read, dL/dx written: as many as forward."""
        return self.bytes_forward()

    def bytes(self) -> int:
        """Both."""
        return self.bytes_forward() + self.bytes_backward()


@dataclass(frozen=True)
class AvgPool2d(_Pool2d):
    """An average-pooling of square windows, zeros of the padding counted."""

    def flops_forward(self) -> int:
        """An addition per tap but the first, a product with the windows' 1/size."""
        return self.elements[1] * self.kernel**2

    def flops_backward(self) -> int:
        """A product, and an addition for each tap, per output element."""
        return self.elements[1] * (1 + self.kernel**2)

    def bytes_forward(self) -> int:
        """x read, y written."""
        return self.itemsize * sum(self.elements)

    def bytes_backward(self) -> int:
        """dL/dy read, dL/dx written."""
        return self.itemsize * sum(self.elements)


@dataclass(frozen=True)
class SoftmaxCrossEntropy:
    """Loss and gradient, labels as integers, mean over the batch; C is the number of classes here."""

    N: int
    C: int
    itemsize: int = FLOAT

    def flops(self) -> int:
        """Per logit: a comparison (maximum), a subtraction, an exponential, an addition, two products."""
        return 6 * self.N * self.C

    def bytes(self) -> int:
        """Logits read, gradient written, labels read."""
        return 2 * self.itemsize * self.N * self.C + LABEL * self.N


@dataclass(frozen=True)
class Gemm:
    """(M, K) times (K, N)."""

    M: int
    K: int
    N: int
    itemsize: int = FLOAT

    def flops(self) -> int:
        """A multiplication and an addition per (m, n, k)."""
        return gemm.Geometry((), self.M, self.N, self.K).operations

    def bytes(self) -> int:
        """Both factors read, the product written."""
        return self.itemsize * (self.M * self.K + self.K * self.N + self.M * self.N)


@dataclass(frozen=True)
class Linear(Gemm):
    """x (M, K) through a layer with weight (N, K) and bias (N,)."""

    def flops_forward(self) -> int:
        """The product, 1 per output for the bias."""
        return self.flops() + self.M * self.N

    def flops_backward(self) -> int:
        """dL/dy with weight and with x, and its sum over the rows."""
        return 2 * self.flops() + self.M * self.N

    def bytes_forward(self) -> int:
        """x, weight, bias read, y written."""
        return self.bytes() + self.itemsize * self.N

    def bytes_backward(self) -> int:
        """dL/dy, x, weight read; dL/dx, dL/dw, dL/db written."""
        return self.itemsize * (self.M * self.N + 2 * self.M * self.K + 2 * self.K * self.N + self.N)


@dataclass(frozen=True)
class _Rows:
    """A matrix of ``rows`` rows."""

    rows: int
    row: int
    itemsize: int = FLOAT

    @property
    def elements(self) -> int:
        return self.rows * self.row


@dataclass(frozen=True)
class Softmax(_Rows):
    """Of each row."""

    def flops_forward(self) -> int:
        """Per element a comparison (maximum), a subtraction, an exponential, an addition, a product with 1/sum."""
        return 5 * self.elements

    def flops_backward(self) -> int:
        """y (dL/dy - Σ y dL/dy): per element a product and an addition, a subtraction, a product."""
        return 4 * self.elements

    def bytes_forward(self) -> int:
        """x read, y written."""
        return 2 * self.itemsize * self.elements

    def bytes_backward(self) -> int:
        """dL/dy and y read, dL/dx written."""
        return 3 * self.itemsize * self.elements


#: Operations per element, forward and backward.  relu: a comparison each.  gelu x/2 (1 + erf(x/√2)): three products,
#: erf, an addition; its gradient dL/dy (Φ + x φ) with Φ = (1 + erf(x/√2))/2 and φ = exp(-x²/2)/√(2π): 4, 4 and 3.
#: sigmoid 1 / (1 + exp(-x)): 4; dL/dy y (1 - y): 3.
ACTIVATION_FLOPS = {"relu": (1, 1), "gelu": (5, 11), "sigmoid": (4, 3)}


@dataclass(frozen=True)
class Activation(_Rows):
    """One kind of activation of a matrix."""

    kind: str = "relu"

    def flops_forward(self) -> int:
        """As in :data:`ACTIVATION_FLOPS`."""
        return ACTIVATION_FLOPS[self.kind][0] * self.elements

    def flops_backward(self) -> int:
        """As in :data:`ACTIVATION_FLOPS`."""
        return ACTIVATION_FLOPS[self.kind][1] * self.elements

    def bytes_forward(self) -> int:
        """x read, y written."""
        return 2 * self.itemsize * self.elements

    def bytes_backward(self) -> int:
        """dL/dy and x or y read, dL/dx written."""
        return 3 * self.itemsize * self.elements


@dataclass(frozen=True)
class Dropout(_Rows):
    """Of a matrix.  The random words are not counted: what makes them differs from library to library."""

    def flops(self) -> int:
        """A comparison and a product per element."""
        return 2 * self.elements

    def bytes(self) -> int:
        """x and the one-element offset read, y written."""
        return 2 * self.itemsize * self.elements + LABEL


@dataclass(frozen=True)
class LayerNorm(_Rows):
    """Of each row, with weight and bias."""

    def flops_forward(self) -> int:
        """Per element: mean 1, variance 3 (difference, square, sum), normalised 2, weight and bias 2."""
        return 8 * self.elements

    def flops_backward(self) -> int:
        """Per element: x normalised 2, its sum with dL/dy 2, dL/dy's sum 1, with weight 1, row sums 3, dL/dx 4."""
        return 13 * self.elements

    def bytes_forward(self) -> int:
        """x, weight, bias read; y, means and 1/deviations written."""
        return self.itemsize * 2 * (self.elements + self.row + self.rows)

    def bytes_backward(self) -> int:
        """dL/dy, x, weight, means, 1/deviations read; dL/dx, dL/dw, dL/db written."""
        return self.itemsize * (3 * self.elements + 3 * self.row + 2 * self.rows)


@dataclass(frozen=True)
class _ChannelNorm:
    N: int
    C: int
    H: int
    W: int
    itemsize: int = FLOAT

    @property
    def elements(self) -> int:
        return self.N * self.C * self.H * self.W

    @property
    def statistics(self) -> int:
        """How many means there are."""
        raise NotImplementedError

    def flops_forward(self) -> int:
        """As of :class:`LayerNorm`."""
        return 8 * self.elements

    def bytes_forward(self) -> int:
        """x, weight, bias read; y, means and 1/deviations written."""
        return self.itemsize * 2 * (self.elements + self.C + self.statistics)

    def bytes_backward(self) -> int:
        """dL/dy, x, weight, means, 1/deviations read; dL/dx, dL/dw, dL/db written."""
        return self.itemsize * (3 * self.elements + 3 * self.C + 2 * self.statistics)


@dataclass(frozen=True)
class BatchNorm(_ChannelNorm):
    """By the statistics of the batch, with weight and bias."""

    @property
    def statistics(self) -> int:
        """A mean per channel."""
        return self.C

    def flops_backward(self) -> int:
        """Per element: normalised x 2, its sum with dL/dy 2, dL/dy's sum 1, dL/dx 4."""
        return 9 * self.elements


@dataclass(frozen=True)
class GroupNorm(_ChannelNorm):
    """Of ``groups`` groups of channels of each example, with weight and bias."""

    groups: int = 1

    @property
    def statistics(self) -> int:
        """A mean per example and group."""
        return self.N * self.groups

    def flops_backward(self) -> int:
        """As of :class:`LayerNorm`."""
        return 13 * self.elements


@dataclass(frozen=True)
class Embedding:
    """``count`` rows chosen from a table (V, D), indices in int64."""

    count: int
    V: int
    D: int
    itemsize: int = FLOAT

    def flops_forward(self) -> int:
        """None: it copies."""
        return 0

    def flops_backward(self) -> int:
        """An addition per number of dL/dy."""
        return self.count * self.D

    def bytes_forward(self) -> int:
        """Indices and the chosen rows read, the result written."""
        return LABEL * self.count + 2 * self.itemsize * self.count * self.D

    def bytes_backward(self) -> int:
        """Indices and dL/dy read, dL/dw written, all of it."""
        return LABEL * self.count + self.itemsize * self.D * (self.count + self.V)


#: Arrays read or written per number, and operations.  sgd: p -= lr g.  sgd_momentum: b = m b + g, p -= lr b.  adagrad:
#: s += g², p -= lr g / (√s + eps).  rmsprop: s = a s + (1-a) g².  adam: two averages, their corrections folded into
#: the rate and one product.  adamw: p shrinks first.  The factors that all numbers share are not counted.
UPDATES = {
    "sgd": (3, 2),
    "sgd_momentum": (5, 4),
    "adagrad": (5, 7),
    "rmsprop": (5, 9),
    "adam": (7, 13),
    "adamw": (7, 14),
}


@dataclass(frozen=True)
class Update:
    """An optimizer's step over tensors of these sizes."""

    kind: str
    sizes: tuple[int, ...]
    itemsize: int = FLOAT

    @property
    def count(self) -> int:
        """Numbers in all tensors."""
        return sum(self.sizes)

    def flops(self) -> int:
        """As in :data:`UPDATES`."""
        return UPDATES[self.kind][1] * self.count

    def bytes(self) -> int:
        """Parameters and state read and written, gradients read."""
        return self.itemsize * UPDATES[self.kind][0] * self.count
