"""One table of differentiable operations, for the gradient checks and their report.

Each row is an operation at one choice of shapes and options.  Values are spread evenly over an
interval in random order, so that all differ by much more than the step of the differences: no two
elements tie in a maximum, and none is near 0 where an operation has a kink there.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from rawgrad import autograd as ag
from rawgrad.autograd import Tensor
from rawgrad.autograd import functional as F
from rawgrad.autograd.functions import indexing, matmul, max_pool2d, shape


@dataclass(frozen=True)
class Spread:
    """Values of ``shape`` spread evenly over [low, high], in random order."""

    shape: tuple[int, ...]
    low: float = -2.0
    high: float = 2.0

    def array(self, rng: np.random.Generator) -> np.ndarray:
        count = int(np.prod(self.shape))
        values = self.low + (self.high - self.low) * (np.arange(count) + 0.5 + 0.3 * rng.random(count)) / max(count, 1)
        return rng.permutation(np.where(np.abs(values) < 0.05, values + 0.1, values)).reshape(self.shape)


def of(*shape: int) -> Spread:
    return Spread(shape)


def positive(*shape: int) -> Spread:
    return Spread(shape, 0.5, 2.5)


@dataclass(frozen=True)
class Case:
    """A differentiable operation at given shapes.

    Attributes:
        operation: its name in the public face.
        variant: what is special about this row.
        function: takes one tensor per input, gives the result.
        inputs: where the values come from.
        second: whether gradients of gradients are promised (they are for all so far).
    """

    operation: str
    variant: str
    function: Callable[..., Any]
    inputs: tuple[Spread, ...]
    second: bool = True

    @property
    def name(self) -> str:
        return f"{self.operation}-{self.variant}" if self.variant else self.operation

    @property
    def shapes(self) -> str:
        return " ".join("×".join(map(str, spread.shape)) or "()" for spread in self.inputs)

    def tensors(self, device: str = "cpu") -> list[Tensor]:
        rng = np.random.default_rng(zlib.crc32(self.name.encode()))
        return [Tensor(spread.array(rng)).to(device=device).requires_grad_() for spread in self.inputs]


CASES: list[Case] = []


def case(operation: str, variant: str, function: Callable[..., Any], *inputs: Spread) -> None:
    CASES.append(Case(operation, variant, function, inputs))


#: Where the constants of the cases live; the tests of devices change it.
constants_on = "cpu"


def constant(*values: Any, dtype: Any = np.int64) -> Tensor:
    return Tensor(np.array(values, dtype)).to(device=constants_on)


# ---- arithmetic

for name, function in {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
    "maximum": lambda a, b: a.maximum(b),
    "minimum": lambda a, b: a.minimum(b),
}.items():
    case(name, "", function, of(3, 4), of(3, 4))
    case(name, "broadcast both", function, of(3, 1), of(2, 1, 4))
    case(name, "scalar tensor", function, of(2, 3), of())
case("div", "", lambda a, b: a / b, of(3, 4), positive(3, 4))
case("div", "broadcast", lambda a, b: a / b, of(4), positive(3, 1))
case("pow", "", lambda a, b: a**b, positive(3, 4), of(3, 4))
case("pow", "broadcast", lambda a, b: a**b, positive(3, 1), of(4))
for exponent in (0, 1, 2, 3, -1, 0.5, -1.5):
    case("pow", f"exponent {exponent}", lambda a, e=exponent: a**e, positive(3, 2))
case("pow", "negative base", lambda a: a**3, Spread((5,), -2, -0.5))
case("pow", "scalar base", lambda b: 2.5**b, of(3, 2))
case("remainder", "", lambda a: a % 0.75, of(7))
for name, function in {
    "scalar right": lambda a: a * 3 + 1 - 2.5,
    "scalar left": lambda a: 2 - 3 * a,
    "scalar divisor": lambda a: a / 4,
}.items():
    case("arithmetic", name, function, of(3, 2))
case("div", "scalar dividend", lambda a: 4 / a, positive(3, 2))
case("arithmetic", "one tensor used thrice", lambda a: a * a + a / (a * a + 1), of(3, 2))
case("neg", "", lambda a: -a, of(3, 2))
for name in ("abs", "exp", "sin", "cos", "sigmoid", "tanh", "relu", "square", "sign", "floor", "ceil", "round"):
    case(name, "", lambda a, f=name: getattr(a, f)(), Spread((3, 4), -1.9, 1.9))
for name in ("log", "log1p", "sqrt", "reciprocal"):
    case(name, "", lambda a, f=name: getattr(a, f)(), positive(3, 4))
case("clamp", "both", lambda a: a.clamp(-1.0, 1.0), of(4, 5))
case("clamp", "one side", lambda a: a.clamp(min=0.0), of(4, 5))
case("clamp", "tensors", lambda a, low, high: a.clamp(low, high), of(4, 5), Spread((5,), -1.5, -0.5), positive(4, 1))
case("where", "", lambda a, b: F.where(constant(1, 0, 1, dtype=bool), a, b), of(3), of(2, 1))
case("where", "scalars", lambda a: F.where(a.detach() > 0, a, 2.0) + F.where(a.detach() > 1, 0.5, a), of(7))
case("masked_fill", "", lambda a: a.masked_fill(constant(1, 0, 0, dtype=bool), 7.0), of(2, 3))
case("clone", "", lambda a: a.clone(), of(3, 2))
case("to", "there and back", lambda a: a.to(dtype=np.float64) * 2, of(3))

# ---- reductions

for name in ("sum", "mean", "amax", "amin", "logsumexp"):
    for variant, dim, keepdim in (("last", -1, False), ("middle kept", 1, True), ("two", (0, 2), False)):
        case(name, variant, lambda a, f=name, d=dim, k=keepdim: getattr(a, f)(d, keepdim=k), of(2, 3, 4))
for name in ("sum", "mean", "amax", "amin", "prod", "max", "min"):
    case(name, "all", lambda a, f=name: getattr(a, f)(), positive(2, 3))
case("prod", "one dimension", lambda a: a.prod(1, keepdim=True), of(2, 3))
case("prod", "a zero", lambda a: (a * constant(1, 0, 1, dtype=np.float64)).prod(1), of(2, 3))
case("prod", "two zeros", lambda a: (a * constant(1, 0, 0, dtype=np.float64)).prod(1), of(2, 3))
case("var", "all", lambda a: a.var(), of(3, 4))
case("var", "uncorrected", lambda a: a.var((0, 2), correction=0, keepdim=True), of(2, 3, 2))
case("std", "", lambda a: a.std(1), of(3, 4))
for p in (1, 2, 3, 0.5, 2.5, float("inf"), float("-inf")):
    case("norm", f"p = {p}", lambda a, p=p: a.norm(p, 1), of(3, 4))
case("norm", "all", lambda a: a.norm(), of(3, 4))
case("cumsum", "", lambda a: a.cumsum(1), of(2, 4, 2))
case("cumsum", "scalar", lambda a: a.cumsum(0), of())

# ---- shape and indexing

case("reshape", "", lambda a: a.reshape(4, -1) * 2, of(2, 3, 4))
case("view", "", lambda a: a.view(3, 4), of(2, 6))
case("flatten", "", lambda a: a.flatten(1), of(2, 3, 2))
case("permute", "", lambda a: a.permute(2, 0, 1), of(2, 3, 4))
case("transpose", "", lambda a: a.transpose(0, -1), of(2, 3, 4))
case("squeeze", "", lambda a: a.squeeze(1).unsqueeze(0), of(3, 1, 2))
case("expand", "", lambda a: a.expand(2, 3, 4), of(3, 1))
case("flip", "", lambda a: a.flip(0, 2), of(2, 3, 4))
case("cat", "", lambda a, b: F.cat([a, b, a], 1), of(2, 3), of(2, 1))
case("stack", "", lambda a, b: F.stack([a, b], -1), of(2, 3), of(2, 3))
case("split", "", lambda a: a.split([1, 0, 3], 1), of(2, 4))
case("chunk", "", lambda a: a.chunk(3), of(5, 2))
case("tril", "", lambda a: F.tril(a, -1), of(2, 3, 4))
case("triu", "", lambda a: F.triu(a, 1), of(3, 4))
case("pad", "", lambda a: F.pad(a, (1, 2, 0, 1), value=3.0), of(2, 3))
case("pad", "negative", lambda a: F.pad(a, (-1, 2)), of(2, 3))
rows = np.array([2, 0, 2])
for variant, index in {
    "integer": 1,
    "slices": (slice(None, None, -2), slice(1, None)),
    "ellipsis and None": (..., None, 1),
    "mask": np.array([[True, False, True], [False, False, True], [True, True, False]]),
    "repeated rows": rows,
    "pairs": (rows, np.array([1, 1, 1])),
    "mixed": (slice(None), rows[:, None], np.newaxis),
    "empty": (slice(0, 0), slice(None)),
}.items():
    shape_ = (3, 3)
    case("getitem", variant, lambda a, i=index: a[i] * 1.5, of(*shape_))
for variant, index, written in (
    ("slice", (slice(None), slice(0, 2)), (3, 2)),
    ("broadcast", (slice(1, None),), (3,)),
    ("mask", np.eye(3, dtype=bool), (3,)),
    ("rows", np.array([2, 0]), (2, 3)),
):

    def assign(a: Tensor, b: Tensor, i: Any = index) -> Tensor:
        copied = a.clone()
        copied[i] = b
        return copied

    case("setitem", variant, assign, of(3, 3), of(*written))


def accumulate(a: Tensor, b: Tensor) -> Tensor:
    total = a * 1
    for _ in range(3):
        total += b
        total *= a
    return total


case("in place", "", accumulate, of(2, 3), of(3))
case("copy_", "", lambda a, b: (a * 2).copy_(b), of(2, 3), of(3))

# ---- matrix products

for left, right in (
    ((3,), (3,)),
    ((3,), (3, 2)),
    ((2, 3), (3,)),
    ((2, 3), (3, 4)),
    ((2, 2, 3), (3, 2)),
    ((2, 3), (2, 3, 2)),
    ((2, 1, 2, 3), (3, 3, 2)),
    ((3,), (2, 3, 2)),
    ((2, 2, 3), (3,)),
):
    case("matmul", f"{len(left)}-d {len(right)}-d", lambda a, b: a @ b, of(*left), of(*right))
for ta in (False, True):
    for tb in (False, True):
        case(
            "matmul",
            f"transposed {ta:d}{tb:d}",
            lambda a, b, ta=ta, tb=tb: matmul.MatMul.apply(a, b, ta, tb),
            of(*((2, 3, 2) if ta else (2, 2, 3))),
            of(*((4, 3) if tb else (3, 4))),
        )
case("mm", "", F.mm, of(2, 3), of(3, 2))
case("bmm", "", F.bmm, of(2, 2, 3), of(2, 3, 2))
for kind in (None, "relu", "leaky_relu", "elu", "gelu", "silu", "softplus", "sigmoid", "tanh"):
    case("linear", str(kind), lambda x, w, b, k=kind: F.linear(x, w, b, activation=k), of(3, 4), of(2, 4), of(2))
case("linear", "3-d, no bias", lambda x, w: F.linear(x, w), of(2, 3, 4), of(2, 4))
case("linear", "1-d", lambda x, w, b: F.linear(x, w, b), of(4), of(2, 4), of(2))
for kind in (None, "relu", "tanh", "gelu"):
    case(
        "linear", f"{kind}, dropout",
        lambda x, w, b, k=kind: F.linear(x, w, b, activation=k, dropout=0.4, generator=ag.Generator(3)),
        of(3, 4), of(2, 4), of(2),
    )  # fmt: skip
case(
    "linear_layers", "",
    lambda x, v, a, w, u, c: F.linear_layers(x, [(v, a, "tanh", 0.0), (w, None, "sigmoid", 0.0), (u, c, "relu", 0.0)]),
    of(3, 4), of(5, 4), of(5), of(3, 5), of(2, 3), of(2),
)  # fmt: skip
case(
    "linear_layers", "dropout",
    lambda x, v, a, w, u, c: F.linear_layers(
        x, [(v, a, "relu", 0.3), (w, None, None, 0.2), (u, c, "relu", 0.5)], generator=ag.Generator(5)
    ),
    of(3, 4), of(5, 4), of(5), of(3, 5), of(2, 3), of(2),
)  # fmt: skip

# ---- windows

case("conv2d", "", lambda x, w, b: F.conv2d(x, w, b), of(2, 2, 4, 3), of(2, 2, 3, 2), of(2))
case(
    "conv2d", "strides, padding, dilation", lambda x, w: F.conv2d(x, w, None, (2, 1), (1, 2), (1, 2)),
    of(1, 2, 5, 4), of(2, 2, 2, 3),
)  # fmt: skip
case("conv2d", "groups", lambda x, w, b: F.conv2d(x, w, b, padding=1, groups=2), of(1, 4, 3, 3), of(4, 2, 2, 2), of(4))
case(
    "conv2d", "relu", lambda x, w, b: F.conv2d(x, w, b, (1, 2), 1, activation="relu"),
    of(2, 2, 4, 5), of(3, 2, 3, 3), of(3),
)  # fmt: skip
case(
    "conv2d", "relu, groups, no bias", lambda x, w: F.conv2d(x, w, dilation=(1, 2), groups=2, activation="relu"),
    of(1, 4, 3, 5), of(4, 2, 2, 2),
)  # fmt: skip
case("conv2d", "gelu", lambda x, w, b: F.conv2d(x, w, b, activation="gelu"), of(1, 2, 3, 3), of(2, 2, 2, 2), of(2))
case(
    "conv2d_relu_pool", "", lambda x, w, b: F.conv2d_relu_pool(x, w, b, padding=1, kernel_size=2),
    of(2, 2, 4, 5), of(3, 2, 3, 3), of(3),
)  # fmt: skip
case(
    "conv2d_relu_pool", "overlapping windows, no bias",
    lambda x, w: F.conv2d_relu_pool(x, w, stride=(1, 2), kernel_size=(3, 2), pool_stride=1, pool_padding=1),
    of(1, 2, 5, 7), of(2, 2, 2, 3),
)  # fmt: skip
case("max_pool2d", "", lambda x: F.max_pool2d(x, 2), of(2, 2, 4, 5))
case("max_pool2d", "overlapping, padded", lambda x: F.max_pool2d(x, 3, 2, 1, ceil_mode=True), of(1, 2, 5, 5))
case("max_pool2d", "dilated", lambda x: F.max_pool2d(x, (2, 1), (1, 2), 0, 2), of(1, 1, 5, 4))
case("avg_pool2d", "", lambda x: F.avg_pool2d(x, 2), of(2, 2, 4, 5))
case(
    "avg_pool2d", "padded", lambda x: F.avg_pool2d(x, 3, 2, 1, ceil_mode=True, count_include_pad=False), of(1, 2, 4, 5)
)

# ---- activations

for kind, options in (
    ("relu", {}),
    ("leaky_relu", {"negative_slope": 0.2}),
    ("elu", {"alpha": 1.5}),
    ("gelu", {}),
    ("gelu", {"approximate": "tanh"}),
    ("silu", {}),
    ("softplus", {}),
    ("softplus", {"beta": 2.0, "threshold": 1.5}),
    ("sigmoid", {}),
    ("tanh", {}),
):
    variant = ", ".join(f"{k} {v}" for k, v in options.items()) or "functional"
    case(kind, variant, lambda x, k=kind, o=options: getattr(F, k)(x, **o), of(3, 5))
for name in ("softmax", "log_softmax"):
    case(name, "last", lambda x, f=name: getattr(F, f)(x, -1), of(3, 4))
    case(name, "middle", lambda x, f=name: getattr(F, f)(x, 1), of(2, 3, 2))

# ---- losses


def weights() -> Tensor:
    return constant(0.5, 1.0, 2.0, 0.25, dtype=np.float64)


for reduction in ("mean", "sum", "none"):
    case(
        "cross_entropy", f"labels, {reduction}",
        lambda x, r=reduction: F.cross_entropy(
            x, constant(1, -100, 3), weights(), label_smoothing=0.1, reduction=r
        ), of(3, 4),
    )  # fmt: skip
    case(
        "cross_entropy", f"probabilities, {reduction}",
        lambda x, t, r=reduction: F.cross_entropy(x, t, weights(), label_smoothing=0.2, reduction=r),
        of(3, 4), positive(3, 4),
    )  # fmt: skip
    case("nll_loss", reduction, lambda x, r=reduction: F.nll_loss(x, constant(1, 0, 3), weights(), 0, r), of(3, 4))
    case("mse_loss", reduction, lambda x, t, r=reduction: F.mse_loss(x, t, r), of(3, 2), of(3, 2))
    case("l1_loss", reduction, lambda x, t, r=reduction: F.l1_loss(x, t, r), of(3, 2), positive(3, 2))
case("cross_entropy", "positions", lambda x: F.cross_entropy(x, constant([1, 0], [2, 2])), of(2, 3, 2))
case("cross_entropy", "one row", lambda x: F.cross_entropy(x, constant(2).reshape(())), of(3))
case("binary_cross_entropy_with_logits", "", F.binary_cross_entropy_with_logits, of(3, 2), Spread((3, 2), 0.1, 0.9))
case(
    "binary_cross_entropy_with_logits", "weighted",
    lambda x, t: F.binary_cross_entropy_with_logits(
        x, t, constant(0.5, 2.0, dtype=float), "sum", constant(3.0, 0.5, dtype=float)
    ), of(3, 2), Spread((3, 2), 0.1, 0.9),
)  # fmt: skip
case("cosine_similarity", "", F.cosine_similarity, of(3, 4), of(3, 4))
case("cosine_similarity", "broadcast", lambda a, b: F.cosine_similarity(a, b, -1), of(2, 3), of(3))

# ---- normalisation, dropout, tables

for norm, function in {
    "batch_norm": lambda x, w=None, b=None: F.batch_norm(x, None, None, w, b, training=True),
    "layer_norm": lambda x, w=None, b=None: F.layer_norm(x, x.shape[1:2], w, b),
    "group_norm": lambda x, w=None, b=None: F.group_norm(x, 2, w, b),
}.items():
    case(norm, "plain", function, of(3, 4))
    case(norm, "scaled and shifted", function, of(3, 4), of(4), of(4))
case("batch_norm", "4-d", lambda x, w: F.batch_norm(x, None, None, w, training=True), of(2, 2, 2, 3), of(2))
case("layer_norm", "two dimensions", lambda x, w, b: F.layer_norm(x, (2, 3), w, b), of(2, 2, 3), of(2, 3), of(2, 3))
case("group_norm", "4-d", lambda x, w, b: F.group_norm(x, 2, w, b), of(2, 4, 2, 2), of(4), of(4))
case(
    "batch_norm", "running statistics",
    lambda x, w, b: F.batch_norm(
        x, constant(0.5, -1, dtype=float), constant(1.5, 0.5, dtype=float), w, b
    ), of(3, 2, 2), of(2), of(2),
)  # fmt: skip
case("dropout", "", lambda x: F.dropout(x, 0.4, generator=ag.Generator(3)), of(5, 4))
case("embedding", "", lambda w: F.embedding(constant([1, 1], [0, 3]), w), of(4, 3))
# padding_idx changes the gradient and not the value: what must agree is the gradient's own gradient.
case("embedding", "indices 3-d", lambda w: F.embedding(constant([[2], [0]]), w) * 2, of(3, 2))

# ---- adjoints that only gradients of gradients reach, on their own

case("adjoints", "SumTo", lambda x: shape.SumTo.apply(x, (3, 1)), of(2, 3, 4))
case(
    "adjoints", "Scatter", lambda x: indexing.Scatter.apply(x, (3, 2), (indexing._Array(0),), constant(*rows)), of(3, 2)
)


def pooled_gather(x: Tensor) -> Tensor:
    g = max_pool2d.geometry(x.shape, 2, None, 0, 1, False)
    _, codes = max_pool2d.max_pool2d_forward(x.array, 2)
    return max_pool2d.MaxPool2dGather.apply(x, Tensor(codes), g)


case("adjoints", "MaxPool2dGather", pooled_gather, of(1, 1, 4, 4))
