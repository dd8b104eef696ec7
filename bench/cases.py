"""Single kernels: one pass of one operation at one shape, and the call that an autograd function of ours would make.

Contestants get raw arrays, no tape.  A case says how inputs are drawn, which of our kernels are called, and which
formula the peers differentiate; :mod:`.kernels` makes contestants of it on the CPU, :mod:`.gpu_rows` on a GPU.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..kernels import (
    activation,
    avg_pool2d,
    batch_norm,
    conv2d,
    dropout,
    embedding,
    gemm,
    group_norm,
    layer_norm,
    max_pool2d,
    softmax,
    softmax_cross_entropy,
)
from . import shapes
from .formulas import EPS
from .harness import assert_close
from .rivals import Rival, Way

Arrays = tuple[np.ndarray, ...]
Call = Callable[..., Any]

#: Share of the largest magnitude by which results of a dtype may differ from float64's.
TOLERANCES = {"float32": 1e-5, "float64": 1e-12, "bfloat16": 1e-2}
_DTYPES = {4: "float32", 8: "float64", 2: "bfloat16"}

FORWARD, BACKWARD, BOTH = "forward", "backward", "both"


@dataclass(frozen=True)
class Case:
    """One pass, or both, of an operation at a shape.

    Attributes:
        operation, function: the folder in ``kernels/``, and whose versions are compared.
        description, flops, bytes, dtype, layout: as in :class:`~rawgrad.bench.results.Row`.
        draw: makes a set of host arrays in float32: the formula's inputs, then dL/dy where it is needed.
        ours: our way.
        kind: forward, backward or both.
        formula: of a peer's formulas, the function of the inputs that it differentiates.
        wrt: by which of them.
        check: as in :class:`~rawgrad.bench.harness.Work`.
        tolerance: share of the largest magnitude by which results may be off; by default that of the dtype.
        right: of the inputs the right result; by default what our way gives with the NumPy reference.
    """

    operation: str
    function: str
    description: str
    flops: int
    bytes: int
    draw: Callable[[np.random.Generator], Arrays]
    ours: Way
    kind: str
    formula: Callable[[Any], Call]
    wrt: tuple[int, ...] = ()
    itemsize: int = shapes.FLOAT
    layout: str = "contiguous"
    check: Callable[[Any, Any], None] | None = None
    right: Call | None = None
    tolerance: float | None = None

    @property
    def dtype(self) -> str:
        """Of its floating-point numbers."""
        return _DTYPES[self.itemsize]

    def way(self, rival: Rival) -> Way:
        """A peer's."""
        f = self.formula(rival.formulas)
        if self.kind == FORWARD:
            return rival.forward(f)
        return (rival.backward if self.kind == BACKWARD else rival.both)(f, self.wrt)

    def checked(self, result: Any, right: Any) -> None:
        """Raises AssertionError, saying where, if the result is not right."""
        if self.check is not None:
            self.check(result, right)
        else:
            assert_close(result, right, TOLERANCES[self.dtype] if self.tolerance is None else self.tolerance)


def several(value: Any) -> tuple[Any, ...]:
    """An array, or several, as a tuple."""
    return tuple(value) if isinstance(value, tuple | list) else (value,)


def _normal(random: np.random.Generator, *shape: int) -> np.ndarray:
    return random.standard_normal(shape, dtype=np.float32)


def _distinct(random: np.random.Generator, *shape: int) -> np.ndarray:
    """Numbers in [-2, 2), no two alike, since libraries differ in what they make of ties; above 2^24 normal ones."""
    count = int(np.prod(shape))
    if count > 2**24:  # float32 has no more
        return _normal(random, *shape)
    return (4 * (random.permutation(count) / count) - 2).astype(np.float32).reshape(shape)


def gemm_case(shape: shapes.Gemm) -> Case:
    """One product of matrices."""
    return Case(
        "gemm",
        "gemm",
        f"({shape.M}, {shape.K}) @ ({shape.K}, {shape.N})",
        shape.flops(),
        shape.bytes(),
        lambda random: (_normal(random, shape.M, shape.K), _normal(random, shape.K, shape.N)),
        Way(lambda a, b: (gemm.gemm(a, b),)),
        FORWARD,
        lambda lib: lambda a, b: lib.gemm(a, b),
        itemsize=shape.itemsize,
    )


def linear_case(shape: shapes.Linear, kind: str) -> Case:
    """A linear layer with bias."""
    forward = kind == FORWARD

    def draw(random: np.random.Generator) -> Arrays:
        x, w, b = _normal(random, shape.M, shape.K), _normal(random, shape.N, shape.K), _normal(random, shape.N)
        return (x, w, b) if forward else (x, w, b, _normal(random, shape.M, shape.N))

    ours = Way(lambda x, w, b: (gemm.gemm(x, w, b, transpose_b=True),))
    if not forward:
        ours = Way(gemm.linear_backward, lambda x, w, b, grad: (grad, x, w))
    return Case(
        "gemm",
        "gemm" if forward else "linear_backward",
        f"linear {shape.K}→{shape.N} of {shape.M} rows, {kind}",
        shape.flops_forward() if forward else shape.flops_backward(),
        shape.bytes_forward() if forward else shape.bytes_backward(),
        draw,
        ours,
        kind,
        lambda lib: lambda x, w, b: lib.linear(x, w, b),
        (0, 1, 2),
        shape.itemsize,
    )


def conv2d_case(shape: shapes.Conv2d, kind: str = BOTH, input_gradient: bool = True) -> Case:
    """Forward with bias; the gradients of the input, where asked, of weight and bias; or both."""
    pad = shape.pad
    assert pad.left == pad.right == pad.top == pad.bottom, "the kernel itself pads equally on all sides"
    options: dict[str, Any] = {"stride": shape.stride, "padding": pad.left, "groups": shape.groups}

    def draw(random: np.random.Generator) -> Arrays:
        x, grad = (shape.N, shape.C, shape.H, shape.W), (shape.N, shape.K, shape.P, shape.Q)
        inputs = _normal(random, *x), _normal(random, *shape.weight_shape), _normal(random, shape.K)
        return inputs if kind == FORWARD else (*inputs, _normal(random, *grad))

    def forward(x: Any, weight: Any, bias: Any) -> tuple[Any, ...]:
        return (conv2d.conv2d_forward(x, weight, bias, **options),)

    def backward(x: Any, weight: Any, bias: Any, grad: Any) -> tuple[Any, ...]:
        g = conv2d.geometry(x.shape, weight.shape, **options)
        dx = (conv2d.conv2d_backward_input(grad, weight, g),) if input_gradient else ()
        return *dx, *conv2d.conv2d_backward_parameters(x, grad, g)

    calls: dict[str, Call] = {
        FORWARD: forward,
        BACKWARD: backward,
        BOTH: lambda x, weight, bias, grad: (*forward(x, weight, bias), *backward(x, weight, bias, grad)),
    }
    flops, moved = shape.flops_backward(input_gradient), shape.bytes_backward(input_gradient)
    of = {FORWARD: (0, 0), BACKWARD: (flops, moved), BOTH: (flops, moved)}[kind]
    with_forward = kind != BACKWARD
    gradients = f"gradients of weight, bias{' and input' if input_gradient else ''}"
    groups = f", {shape.groups} groups" if shape.groups > 1 else ""
    return Case(
        "conv2d",
        "conv2d_backward_input" if kind == BACKWARD else "conv2d_forward",
        f"{shape.C}→{shape.K} {shape.R}×{shape.S} stride {shape.stride}{groups} on {shape.H}×{shape.W}, "
        f"batch {shape.N}: { {FORWARD: 'forward', BACKWARD: gradients, BOTH: f'forward, {gradients}'}[kind] }",
        of[0] + with_forward * shape.flops_forward(),
        of[1] + with_forward * shape.bytes_forward(),
        draw,
        Way(calls[kind]),
        kind,
        lambda lib: lambda x, w, b: lib.conv2d(x, w, b, shape.stride, pad.left, shape.groups),
        (0, 1, 2) if input_gradient else (1, 2),
        shape.itemsize,
        "NCHW",
    )


def _pool_case(
    shape: shapes.MaxPool2d | shapes.AvgPool2d, kind: str, ours: Way, name: str, figures: tuple[int, int]
) -> Case:
    images = f"{shape.kernel}×{shape.kernel} stride {shape.stride} on ({shape.N}, {shape.C}, {shape.H}, {shape.W})"

    def draw(random: np.random.Generator) -> Arrays:
        x = _distinct(random, shape.N, shape.C, shape.H, shape.W)
        return (x,) if kind == FORWARD else (x, _normal(random, shape.N, shape.C, shape.P, shape.Q))

    return Case(
        name,
        f"{name}_backward" if kind == BACKWARD else f"{name}_forward",
        f"{images}: {'forward, backward' if kind == BOTH else kind}",
        *figures,
        draw,
        ours,
        kind,
        lambda lib: lambda x: getattr(lib, name)(x, shape.kernel, shape.stride, shape.padding),
        (0,),
        shape.itemsize,
        "NCHW",
    )


def max_pool2d_case(shape: shapes.MaxPool2d, kind: str = BOTH) -> Case:
    """Forward, backward from its codes, or both."""
    options: dict[str, Any] = {"stride": shape.stride, "padding": shape.padding}
    x_shape = shape.N, shape.C, shape.H, shape.W

    def forward(x: Any) -> tuple[Any, Any]:
        return max_pool2d.max_pool2d_forward(x, shape.kernel, **options)

    def backward(grad: Any, codes: Any) -> tuple[Any, ...]:
        return (max_pool2d.max_pool2d_backward(grad, codes, max_pool2d.geometry(x_shape, shape.kernel, **options)),)

    def both(x: Any, grad: Any) -> tuple[Any, ...]:
        y, codes = forward(x)
        return y, *backward(grad, codes)

    ours = {
        FORWARD: Way(lambda x: (forward(x)[0],)),
        BACKWARD: Way(backward, lambda x, grad: (grad, forward(x)[1])),
        BOTH: Way(both),
    }[kind]
    figures = {
        FORWARD: (shape.flops_forward(), shape.bytes_forward()),
        BACKWARD: (shape.flops_backward(), shape.bytes_backward()),
        BOTH: (shape.flops(), shape.bytes()),
    }[kind]
    return _pool_case(shape, kind, ours, "max_pool2d", figures)


def avg_pool2d_case(shape: shapes.AvgPool2d, kind: str) -> Case:
    """Forward or backward."""
    options: dict[str, Any] = {"stride": shape.stride, "padding": shape.padding}
    if kind == FORWARD:
        ours = Way(lambda x: (avg_pool2d.avg_pool2d_forward(x, shape.kernel, **options),))
        return _pool_case(shape, kind, ours, "avg_pool2d", (shape.flops_forward(), shape.bytes_forward()))
    g = avg_pool2d.geometry((shape.N, shape.C, shape.H, shape.W), shape.kernel, **options)
    ours = Way(lambda grad: (avg_pool2d.avg_pool2d_backward(grad, g),), lambda x, grad: (grad,))
    return _pool_case(shape, kind, ours, "avg_pool2d", (shape.flops_backward(), shape.bytes_backward()))


def softmax_cross_entropy_case(shape: shapes.SoftmaxCrossEntropy) -> Case:
    """Mean loss and the gradient of the logits, in one."""
    return Case(
        "softmax_cross_entropy",
        "softmax_cross_entropy_forward",
        f"({shape.N}, {shape.C}), integer labels: mean loss and gradient",
        shape.flops(),
        shape.bytes(),
        lambda random: (_normal(random, shape.N, shape.C), random.integers(0, shape.C, shape.N)),
        Way(softmax_cross_entropy.softmax_cross_entropy_forward),
        BOTH,
        lambda lib: lambda x, labels: lib.cross_entropy(x, labels),
        (0,),
        shape.itemsize,
    )


def _rows_case(shape: Any, kind: str, operation: str, called: str, ours: dict[str, Way], formula: Any) -> Case:
    """Of a matrix, without parameters."""
    forward = kind == FORWARD
    size = shape.rows, shape.row
    return Case(
        operation,
        f"{operation}_{kind}",
        f"{called}of {size}: {kind}",
        shape.flops_forward() if forward else shape.flops_backward(),
        shape.bytes_forward() if forward else shape.bytes_backward(),
        lambda random: (_normal(random, *size),) if forward else (_normal(random, *size), _normal(random, *size)),
        ours[kind],
        kind,
        formula,
        (0,),
        shape.itemsize,
    )


def softmax_case(shape: shapes.Softmax, kind: str) -> Case:
    """Of each row."""
    ours = {
        FORWARD: Way(lambda x: (softmax.softmax_forward(x, 1),)),
        BACKWARD: Way(
            lambda grad, y: (softmax.softmax_backward(grad, y, 1),),
            lambda x, grad: (grad, softmax.softmax_forward(x, 1)),
        ),
    }
    return _rows_case(shape, kind, "softmax", "each row ", ours, lambda lib: lambda x: lib.softmax(x))


def activation_case(shape: shapes.Activation, kind: str) -> Case:
    """Of a matrix; backward from what the kind of activation saves."""
    which = shape.kind

    def prepare(x: Any, grad: Any) -> tuple[Any, Any]:
        return grad, activation.activation_forward(x, which) if activation.saves(which) == "output" else x

    ours = {
        FORWARD: Way(lambda x: (activation.activation_forward(x, which),)),
        BACKWARD: Way(lambda grad, saved: (activation.activation_backward(grad, saved, which),), prepare),
    }
    return _rows_case(shape, kind, "activation", f"{which} ", ours, lambda lib: lambda x: lib.activation(x, which))


def dropout_case(shape: shapes.Dropout, p: float = 0.1) -> Case:
    """With probability 0.1.  Backward is the same function; every library has random numbers of its own.

    What is checked: each element is dropped or scaled, and as many are dropped as should be.
    """

    def check(result: Any, right: Any) -> None:
        (y,), (scaled,) = result, right
        kept = np.asarray(y) != 0
        assert_close(y, np.where(kept, scaled, 0), TOLERANCES[_DTYPES[shape.itemsize]])
        share, wide = 1 - kept.mean(), 6 * np.sqrt(p * (1 - p) / kept.size)
        assert abs(share - p) <= wide, f"{p:g} of the elements must be dropped, within {wide:.2g}; got {share:.4g}"

    def ours(x: Any, offset: Any) -> tuple[Any, ...]:
        return (dropout.dropout_forward(x, p, 1, offset),)

    return Case(
        "dropout",
        "dropout_forward",
        f"({shape.rows}, {shape.row}), p {p:g}",
        shape.flops(),
        shape.bytes(),
        lambda random: (_normal(random, shape.rows, shape.row), random.integers(0, 99, 1).astype(np.uint64)),
        Way(ours),
        FORWARD,
        lambda lib: lambda x, offset: lib.dropout(x, offset, p),
        itemsize=shape.itemsize,
        check=check,
        right=lambda x, offset: (x / (1 - p),),
    )


def _norm_case(
    shape: Any, kind: str, operation: str, size: tuple[int, ...], parameters: int, forward: Call, backward: Call,
    formula: Any, groups: str = "",
) -> Case:  # fmt: skip
    def draw(random: np.random.Generator) -> Arrays:
        inputs = _normal(random, *size), _normal(random, parameters), _normal(random, parameters)
        return inputs if kind == FORWARD else (*inputs, _normal(random, *size))

    def prepare(x: Any, w: Any, b: Any, grad: Any) -> tuple[Any, ...]:
        return grad, x, w, *forward(x, w, b)[1:]

    ahead = kind == FORWARD
    return Case(
        operation,
        f"{operation}_{kind}",
        f"{size}{groups}, weight and bias: {kind}",
        shape.flops_forward() if ahead else shape.flops_backward(),
        shape.bytes_forward() if ahead else shape.bytes_backward(),
        draw,
        Way(lambda x, w, b: (forward(x, w, b)[0],)) if ahead else Way(backward, prepare),
        kind,
        formula,
        (0, 1, 2),
        shape.itemsize,
        "contiguous" if len(size) == 2 else "NCHW",
    )


def layer_norm_case(shape: shapes.LayerNorm, kind: str) -> Case:
    """Of each row; backward with the gradients of weight and bias."""
    forward = lambda x, w, b: layer_norm.layer_norm_forward(x, w, b, 1, EPS)  # noqa: E731
    backward = lambda grad, x, w, m, r: layer_norm.layer_norm_backward(grad, x, w, m, r, 1)  # noqa: E731
    formula = lambda lib: lambda x, w, b: lib.layer_norm(x, w, b)  # noqa: E731
    return _norm_case(shape, kind, "layer_norm", (shape.rows, shape.row), shape.row, forward, backward, formula)


def batch_norm_case(shape: shapes.BatchNorm, kind: str) -> Case:
    """By the statistics of the batch; backward with the gradients of weight and bias."""
    forward = lambda x, w, b: batch_norm.batch_norm_forward(x, w, b, EPS)  # noqa: E731
    formula = lambda lib: lambda x, w, b: lib.batch_norm(x, w, b)  # noqa: E731
    size = shape.N, shape.C, shape.H, shape.W
    return _norm_case(shape, kind, "batch_norm", size, shape.C, forward, batch_norm.batch_norm_backward, formula)


def group_norm_case(shape: shapes.GroupNorm, kind: str) -> Case:
    """Of groups of channels; backward with the gradients of weight and bias."""
    groups = shape.groups
    forward = lambda x, w, b: group_norm.group_norm_forward(x, groups, w, b, EPS)  # noqa: E731
    backward = lambda grad, x, w, m, r: group_norm.group_norm_backward(grad, x, groups, w, m, r)  # noqa: E731
    formula = lambda lib: lambda x, w, b: lib.group_norm(x, w, b, groups)  # noqa: E731
    size = shape.N, shape.C, shape.H, shape.W
    said = f", {groups} groups"
    return _norm_case(shape, kind, "group_norm", size, shape.C, forward, backward, formula, said)


def embedding_case(shape: shapes.Embedding, kind: str) -> Case:
    """Rows of a table; backward the table's gradient."""
    forward = kind == FORWARD

    def draw(random: np.random.Generator) -> Arrays:
        inputs = _normal(random, shape.V, shape.D), random.integers(0, shape.V, shape.count)
        return inputs if forward else (*inputs, _normal(random, shape.count, shape.D))

    ours = Way(lambda w, indices: (embedding.embedding_forward(w, indices),))
    if not forward:
        call = lambda grad, indices: (embedding.embedding_backward(grad, indices, shape.V),)  # noqa: E731
        ours = Way(call, lambda w, indices, grad: (grad, indices))
    return Case(
        "embedding",
        f"embedding_{kind}",
        f"{shape.count} rows of ({shape.V}, {shape.D}): {kind}",
        shape.flops_forward() if forward else shape.flops_backward(),
        shape.bytes_forward() if forward else shape.bytes_backward(),
        draw,
        ours,
        kind,
        lambda lib: lambda w, indices: lib.embedding(w, indices),
        (0,),
        shape.itemsize,
    )
