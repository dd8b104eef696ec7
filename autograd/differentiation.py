"""Asking for gradients: ``backward`` and ``grad``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..kernels._errors import GradientError, ShapeError
from .graph import run_backward
from .tensor import Tensor


def _start(outputs: Sequence[Tensor], gradients: Sequence[Any]) -> tuple[list[Tensor], bool]:
    """The gradients to start from, and whether it is the single one of a scalar."""
    if len(outputs) != len(gradients):
        raise GradientError(f"backward: {len(outputs)} tensors but {len(gradients)} gradients were given")
    started = []
    for output, gradient in zip(outputs, gradients, strict=True):
        if not output.requires_grad:
            raise GradientError(
                "backward: the tensor does not require gradients: nothing it was computed from does, or it was "
                "computed under no_grad()"
            )
        if gradient is None:
            if output.numel() != 1:
                raise GradientError(
                    f"backward: a gradient must be given for a tensor of shape {tuple(output.shape)}; without one the "
                    "tensor must have a single element (reduce it with .sum() or .mean())"
                )
            gradient = Tensor(output.array_module.ones(output.shape, output.dtype))
        else:
            gradient = gradient if isinstance(gradient, Tensor) else Tensor(gradient)
            gradient = gradient.to(dtype=output.dtype)
            if gradient.shape != output.shape:
                raise ShapeError(
                    f"backward: the gradient must have the tensor's shape {tuple(output.shape)}; "
                    f"got {tuple(gradient.shape)}"
                )
        started.append(gradient)
    return started, len(outputs) == 1 and gradients[0] is None


def backward(
    tensors: Sequence[Tensor],
    gradients: Sequence[Any] | None = None,
    retain_graph: bool | None = None,
    create_graph: bool = False,
) -> None:
    """Add the gradients of all ``tensors`` to the ``.grad`` of their leaves; see :meth:`Tensor.backward`."""
    started, unit = _start(tensors, [None] * len(tensors) if gradients is None else gradients)
    retain = create_graph if retain_graph is None else retain_graph
    run_backward(tensors, started, unit=unit, retain_graph=retain, create_graph=create_graph)


def grad(
    outputs: Tensor | Sequence[Tensor],
    inputs: Tensor | Sequence[Tensor],
    grad_outputs: Any = None,
    retain_graph: bool | None = None,
    create_graph: bool = False,
    allow_unused: bool = False,
) -> tuple[Tensor | None, ...]:
    """The gradients of ``outputs`` with respect to ``inputs``; no ``.grad`` is touched.

    Args:
        outputs: one tensor or several, whose contributions add up.
        inputs: the tensors to differentiate by, leaves or computed.
        grad_outputs: dL/d(output) for each output; ones for scalars by default.
        retain_graph, create_graph: as in :meth:`Tensor.backward`.
        allow_unused: give None, not an error, for an input that no output depends on.

    Raises:
        GradientError: an input requires no gradient, or is unused.
    """
    outputs = [outputs] if isinstance(outputs, Tensor) else list(outputs)
    inputs = [inputs] if isinstance(inputs, Tensor) else list(inputs)
    if grad_outputs is None:
        gradients: list[Any] = [None] * len(outputs)
    else:
        gradients = list(grad_outputs) if isinstance(grad_outputs, list | tuple) else [grad_outputs]
    for number, tensor in enumerate(inputs):
        if not tensor.requires_grad:
            raise GradientError(f"grad: input {number} does not require gradients")
    started, unit = _start(outputs, gradients)
    retain = create_graph if retain_graph is None else retain_graph
    found = run_backward(outputs, started, unit=unit, retain_graph=retain, create_graph=create_graph, inputs=inputs)
    for number, gradient in enumerate(found):
        if gradient is None and not allow_unused:
            raise GradientError(
                f"grad: no output depends on input {number} of shape {tuple(inputs[number].shape)}; pass "
                "allow_unused=True if that is meant"
            )
    return tuple(found)
