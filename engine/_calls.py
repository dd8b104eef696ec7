"""Being there when a model's layers are called."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

from .module import Module


class Place(NamedTuple):
    """Where a call happens.

    Attributes:
        layer: whose forward is called.
        path: its dotted name, the first of them if it has several; ``""`` for the model itself.
        depth: how many calls of other layers it is within; 0 for the model itself.
    """

    layer: Module
    path: str
    depth: int

    @property
    def kind(self) -> str:
        """The name of the layer's class."""
        return type(self.layer).__name__


@contextmanager
def watched(module: Module, watch: Callable[..., Any]) -> Iterator[None]:
    """Within, each call of the forward of ``module``, or of a layer below, goes through ``watch``.

    ``watch(place, forward, *inputs, **options)`` is to call ``forward(*inputs, **options)`` and to give what that
    gives.  No layers run together (``Sequential`` lets alone those whose forward is not their class's).
    """
    layers = list(module.named_modules())
    own = [layer.__dict__.get("forward") for _, layer in layers]
    depth = 0

    def through(layer: Module, path: str, forward: Any, *inputs: Any, **options: Any) -> Any:
        nonlocal depth
        depth += 1
        try:
            return watch(Place(layer, path, depth - 1), forward, *inputs, **options)
        finally:
            depth -= 1

    try:
        for path, layer in layers:
            layer.__dict__["forward"] = partial(through, layer, path, layer.forward)
        yield
    finally:
        for (_, layer), before in zip(layers, own, strict=True):
            if before is None:
                layer.__dict__.pop("forward", None)
            else:
                layer.__dict__["forward"] = before


def label(path: str, kind: str, depth: int) -> str:
    """A layer in the first column of a table."""
    return "  " * depth + (f"{path.rpartition('.')[2]}: {kind}" if path else kind)
