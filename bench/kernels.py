"""Single kernels: the calls that an autograd function would make, and the peer's calls of equal work.

Contestants get raw arrays, no tape.  torch's backward kernels are called by their ATen names where
that is possible, so that its autograd does not count against it.  Inputs rotate past the caches.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ..kernels import conv2d, gemm, max_pool2d, softmax_cross_entropy
from ..kernels._dispatch import backend
from . import shapes
from .harness import OURS, Contestant, Work, assert_close, sets_past_cache
from .peers import detail, library

#: Float32 results may differ from float64's by this share of the largest magnitude.
_TOLERANCE = 1e-5

Arrays = tuple[np.ndarray, ...]
Call = Callable[..., Any]


def _work(
    name: str, description: str, flops: int, traffic: int, draw: Callable[[np.random.Generator], Arrays],
    calls: dict[str, Callable[[], Call]], contestants: Sequence[str], layout: str = "contiguous",
) -> Work:  # fmt: skip
    """A row from the shapes' figures, a way to draw inputs, and for each contestant a way to get its call."""
    random = np.random.default_rng(0)
    first = draw(random)
    inputs = [first, *(draw(random) for _ in range(sets_past_cache(sum(a.nbytes for a in first)) - 1))]

    def contestant(who: str) -> Contestant:
        sets: list[tuple[Any, ...]] = [*inputs]
        if who not in (OURS, "numpy"):
            sets = [tuple(map(library(who).tensor, one)) for one in inputs]
        call = calls[who]()

        def result() -> list[np.ndarray]:
            return [np.asarray(part) for part in call(*sets[0])]

        return Contestant(who, call, sets, detail(who), result)

    def reference() -> list[np.ndarray]:
        with backend("numpy"):
            return [*calls[OURS]()(*(a.astype(np.float64) if a.dtype == np.float32 else a for a in first))]

    return Work(
        name=name,
        description=description,
        contestants=[contestant(who) for who in contestants],
        reference=reference,
        reference_name="rawgrad's NumPy reference in float64",
        check=lambda result, right: assert_close(result, right, _TOLERANCE),
        layout=layout,
        flops=flops,
        bytes=traffic,
    )


def _normal(random: np.random.Generator, *shape: int) -> np.ndarray:
    return random.standard_normal(shape, dtype=np.float32)


def gemm_work(name: str, shape: shapes.Gemm, contestants: Sequence[str]) -> Work:
    """One product of matrices."""

    def torch_call() -> Call:
        import torch

        return lambda a, b: (torch.mm(a, b),)

    return _work(
        name,
        f"({shape.M}, {shape.K}) @ ({shape.K}, {shape.N})",
        shape.flops(),
        shape.bytes(),
        lambda random: (_normal(random, shape.M, shape.K), _normal(random, shape.K, shape.N)),
        {
            OURS: lambda: lambda a, b: (gemm.gemm(a, b),),
            "numpy": lambda: lambda a, b: (a @ b,),
            "torch": torch_call,
        },
        contestants,
    )


def conv2d_work(name: str, shape: shapes.Conv2d, input_gradient: bool, contestants: Sequence[str]) -> Work:
    """Forward with bias, then the gradients of weight, bias and, where asked, of the input."""
    pad = shape.pad
    assert pad.left == pad.right == pad.top == pad.bottom, "the kernel itself pads equally on all sides"
    options: dict[str, Any] = {"stride": shape.stride, "padding": pad.left}

    def ours(x: Any, weight: Any, bias: Any, grad: Any) -> tuple[Any, ...]:
        y = conv2d.conv2d_forward(x, weight, bias, **options)
        g = conv2d.geometry(x.shape, weight.shape, **options)
        dx = (conv2d.conv2d_backward_input(grad, weight, g),) if input_gradient else ()
        return y, *conv2d.conv2d_backward_parameters(x, grad, g), *dx

    def torch_call() -> Call:
        import torch

        aten, stride, padding = torch.ops.aten, [shape.stride] * 2, [pad.left] * 2
        mask = [input_gradient, True, True]

        def call(x: Any, weight: Any, bias: Any, grad: Any) -> tuple[Any, ...]:
            with torch.no_grad():
                y = torch.nn.functional.conv2d(x, weight, bias, stride, padding)
                dx, dw, db = aten.convolution_backward(
                    grad, x, weight, [shape.K], stride, padding, [1, 1], False, [0, 0], 1, mask
                )
            return (y, dw, db, dx) if input_gradient else (y, dw, db)

        return call

    return _work(
        name,
        f"{shape.C}→{shape.K} {shape.R}×{shape.S} stride {shape.stride} on {shape.H}×{shape.W}, batch {shape.N}: "
        f"forward, gradients of weight, bias{' and input' if input_gradient else ''}",
        shape.flops_forward() + shape.flops_backward(input_gradient),
        shape.bytes_forward() + shape.bytes_backward(input_gradient),
        lambda random: (
            _normal(random, shape.N, shape.C, shape.H, shape.W),
            _normal(random, shape.K, shape.C, shape.R, shape.S),
            _normal(random, shape.K),
            _normal(random, shape.N, shape.K, shape.P, shape.Q),
        ),
        {OURS: lambda: ours, "torch": torch_call},
        contestants,
        "NCHW",
    )


def max_pool2d_work(name: str, shape: shapes.MaxPool2d, contestants: Sequence[str]) -> Work:
    """Forward and backward."""

    def ours(x: Any, grad: Any) -> tuple[Any, Any]:
        y, codes = max_pool2d.max_pool2d_forward(x, shape.kernel, stride=shape.stride)
        g = max_pool2d.geometry(x.shape, shape.kernel, stride=shape.stride)
        return y, max_pool2d.max_pool2d_backward(grad, codes, g)

    def torch_call() -> Call:
        import torch

        aten, kernel, stride = torch.ops.aten, [shape.kernel] * 2, [shape.stride] * 2

        def call(x: Any, grad: Any) -> tuple[Any, Any]:
            y, indices = aten.max_pool2d_with_indices(x, kernel, stride)
            return y, aten.max_pool2d_with_indices_backward(grad, x, kernel, stride, [0, 0], [1, 1], False, indices)

        return call

    return _work(
        name,
        f"{shape.kernel}×{shape.kernel} stride {shape.stride} on ({shape.N}, {shape.C}, {shape.H}, {shape.W}): "
        "forward, backward",
        shape.flops(),
        shape.bytes(),
        lambda random: (
            _normal(random, shape.N, shape.C, shape.H, shape.W),
            _normal(random, shape.N, shape.C, shape.P, shape.Q),
        ),
        {OURS: lambda: ours, "torch": torch_call},
        contestants,
        "NCHW",
    )


def softmax_cross_entropy_work(name: str, shape: shapes.SoftmaxCrossEntropy, contestants: Sequence[str]) -> Work:
    """Mean loss and the gradient of the logits.  torch has them only through its autograd."""

    def torch_call() -> Call:
        import torch

        def call(logits: Any, target: Any) -> tuple[Any, Any]:
            logits = logits.detach().requires_grad_()
            loss = torch.nn.functional.cross_entropy(logits, target)
            return loss.detach(), torch.autograd.grad(loss, logits)[0]

        return call

    return _work(
        name,
        f"({shape.N}, {shape.C}), integer labels: mean loss and gradient",
        shape.flops(),
        shape.bytes(),
        lambda random: (_normal(random, shape.N, shape.C), random.integers(0, shape.C, shape.N)),
        {OURS: lambda: softmax_cross_entropy.softmax_cross_entropy_forward, "torch": torch_call},
        contestants,
    )
