"""A table of a model's layers: what runs, in which order, what shape comes out, how many parameters."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from ..autograd import Tensor, no_grad
from ..kernels._devices import device_named, device_of
from ..kernels._errors import ArgumentError
from ..kernels._text import aligned
from ._calls import Place, label, watched
from .module import Module


@dataclass
class Row:
    """One call of a layer.

    Attributes:
        path: dotted name of the layer, ``""`` for the model itself.
        kind: its class's name.
        depth: 0 for the model itself.
        output_shape: as computed, the batch included; None if the output is no tensor.
        parameters: of this layer alone; 0 in a second call of the same layer.
    """

    path: str
    kind: str
    depth: int
    output_shape: tuple[int, ...] | None = None
    parameters: int = 0


@dataclass
class Summary:
    """What :func:`summary` found; ``print`` it for the table.

    Attributes:
        rows: one per call of a layer, in the order of the calls, containers before what they contain.
        total: number of parameters, those of layers that were not run included.
        trainable: those of them that require a gradient.
    """

    rows: list[Row]
    total: int
    trainable: int

    def __str__(self) -> str:
        cells = [("layer", "output shape", "parameters")]
        for row in self.rows:
            shape = "" if row.output_shape is None else str(row.output_shape)
            own = f"{row.parameters:,}" if row.parameters else "-"
            cells.append((label(row.path, row.kind, row.depth), shape, own))
        run = sum(row.parameters for row in self.rows)
        rest = [f"of these in layers that did not run: {self.total - run:,}"] if run != self.total else []
        trained = f"{self.total:,} parameters, {self.trainable:,} trainable"
        return "\n".join([*aligned(cells, right={2}), trained, *rest])

    __repr__ = __str__


def summary(module: Module, input_size: Any, dtype: Any = np.float32) -> Summary:
    """Run ``module`` once on zeros, in evaluation mode, and describe each layer that ran.

    Args:
        module: the model.
        input_size: shape of the input with the batch, such as ``(1, 1, 28, 28)``; or a tensor to run
            instead; or a list of either, for a model of several inputs.
        dtype: of the zeros; an integer dtype for a model that begins with an embedding.

    Raises:
        ShapeError and the like: the model does not take such an input; the message has the layer.
    """
    parameters = list(module.parameters())
    place = device_of(parameters[0].array) if parameters else device_named("cpu")

    def given(size: Any) -> Tensor:
        if isinstance(size, Tensor):
            return size
        try:
            shape = tuple(int(n) for n in size)
        except (TypeError, ValueError):
            raise ArgumentError(f"summary: input_size must be a shape or a tensor; got {size!r}") from None
        return Tensor(place.array_module.zeros(shape, dtype))

    several = isinstance(input_size, list) and not all(isinstance(n, int | np.integer) for n in input_size)
    inputs = [given(size) for size in input_size] if several else [given(input_size)]
    rows: list[Row] = []
    counted: set[int] = set()

    def look(place: Place, forward: Any, *inputs: Any, **options: Any) -> Any:
        row = Row(place.path, place.kind, place.depth)
        for parameter in place.layer.parameters(recurse=False):
            if id(parameter) not in counted:
                counted.add(id(parameter))
                row.parameters += prod(parameter.shape)
        rows.append(row)
        output = forward(*inputs, **options)
        row.output_shape = tuple(output.shape) if isinstance(output, Tensor) else None
        return output

    modes = [(m, m.training) for m in module.modules()]
    try:
        module.eval()
        with no_grad(), watched(module, look):
            module(*inputs)
    finally:
        for m, mode in modes:
            m.training = mode
    return Summary(
        rows,
        sum(prod(p.shape) for p in parameters),
        sum(prod(p.shape) for p in parameters if p.requires_grad),
    )
