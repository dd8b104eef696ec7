"""What goes into each layer of a model and what comes out: shapes, ranges, NaN, time."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..autograd import Tensor, no_grad
from ..autograd.random import default_generator
from ..kernels._devices import Device, device_of
from ..kernels._dtypes import is_half, kind_of
from ..kernels._text import aligned, duration
from ._calls import Place, label, watched
from .module import Module

_HEAD = ("layer", "input", "range", "NaN, inf", "output", "range", "NaN, inf", "time")


@dataclass(frozen=True)
class Values:
    """One tensor that went into a layer or came out.

    Attributes:
        shape, dtype: its.
        low, high: the least and the greatest of its finite values; None if there are none.
        nans, infinities: how many values are NaN, and how many infinite.
    """

    shape: tuple[int, ...]
    dtype: str
    low: float | None
    high: float | None
    nans: int = 0
    infinities: int = 0

    @property
    def finite(self) -> bool:
        """Whether there is neither NaN nor infinity."""
        return not self.nans and not self.infinities

    def cells(self) -> tuple[str, str, str]:
        """Shape, range and what is not finite, as the table has them."""
        shape = str(self.shape) if self.dtype == "float32" else f"{self.shape} {self.dtype}"
        extent = "-" if self.low is None else f"{self.low:.3g} … {self.high:.3g}"
        counts = ((self.nans, "NaN"), (self.infinities, "inf"))
        return shape, extent, ", ".join(f"{count:,} {what}" for count, what in counts if count) or "-"


@dataclass
class Call:
    """One call of a layer.

    Attributes:
        path: dotted name of the layer, the first if it has several; ``""`` for the model itself.
        kind: its class's name.
        depth: how many calls of other layers it is within; 0 for the model itself.
        inputs: every tensor among the arguments, those in lists, tuples and dicts included.
        outputs: every tensor of the result; empty until the call has returned.
        seconds: that it took, with the layers that it called, without the time for looking at their values; None
            until it has returned.
        error: the kind of the exception that ended it, or None.
    """

    path: str
    kind: str
    depth: int
    inputs: tuple[Values, ...]
    outputs: tuple[Values, ...] = ()
    seconds: float | None = None
    error: str | None = None

    def _lines(self) -> Iterator[tuple[str, ...]]:
        """The rows of a table: one, or more if several tensors go in or come out."""
        blank = ("", "", "")
        for i in range(max(1, len(self.inputs), len(self.outputs))):
            goes_in = self.inputs[i].cells() if i < len(self.inputs) else blank
            comes_out = self.outputs[i].cells() if i < len(self.outputs) else blank
            first = label(self.path, self.kind, self.depth), "" if self.seconds is None else duration(self.seconds)
            if self.error and not i:
                comes_out = (self.error, "", "")
            name, took = ("", "") if i else first
            yield name, *goes_in, *comes_out, took


@dataclass
class Trace:
    """What :func:`trace` found; ``print`` it for the table.

    Attributes:
        calls: one per call of a layer, in the order in which they began.
        trouble: where NaN or infinity came up first, in a sentence; ``""`` if all is finite.
        output: what the model returned.
    """

    calls: list[Call] = field(default_factory=list)
    trouble: str = ""
    output: Any = field(default=None, repr=False)

    def __str__(self) -> str:
        lines = aligned([_HEAD, *(line for call in self.calls for line in call._lines())], right={7})
        return "\n".join([*map(str.rstrip, lines), *([self.trouble] if self.trouble else [])])

    __repr__ = __str__


def trace(module: Module, *inputs: Any, **options: Any) -> Trace:
    """Run ``module`` once and describe what went into each layer and what came out of it.

    Nothing is recorded for gradients, and the model and the random numbers go on afterwards as if it had not run:
    modes are not touched (in training mode dropout drops), layers write into copies of the buffers (running means),
    and the generator of ``manual_seed`` is put back.  What a layer changes beside that, plain attributes, a generator
    of its own, stays changed.  No layers are fused, so a time is that of the layer alone; on a GPU it is waited for
    before and after each, and on the CPU a first call may compile kernels.

    Args:
        module: the model.
        inputs, options: what it is called with.

    Returns:
        The calls; printing it gives the table.

    Raises:
        What the model raises, with the table up to there as a note: tracebacks show it, and it is in ``__notes__``.
    """
    found = Trace()
    devices = {device_of(t.array) for t in (*module.parameters(), *module.buffers(), *_tensors((inputs, options)))}
    looking = 0.0  # seconds that were spent with values, and not with layers

    def look(place: Place, forward: Any, *inputs: Any, **options: Any) -> Any:
        nonlocal looking
        begun = _now(devices)
        call = Call(place.path, place.kind, place.depth, _described((inputs, options)))
        found.calls.append(call)
        start = _now(devices)
        looking += start - begun
        before = looking
        try:
            output = forward(*inputs, **options)
            end = _now(devices)  # a GPU reports here what it met in the layer
        except Exception as error:
            call.error = type(error).__name__
            raise
        call.seconds = end - start - (looking - before)
        call.outputs = _described(output)
        if not found.trouble:
            found.trouble = _trouble(place, call)
        looking += _now(devices) - end
        return output

    try:
        with no_grad(), _unchanged(module), watched(module, look):
            found.output = module(*inputs, **options)
    except Exception as error:
        if found.calls:
            error.add_note(f"how far the trace came:\n{found}")
        raise
    return found


def _tensors(value: Any) -> Iterator[Tensor]:
    """The tensors in ``value``: itself, or in a list, tuple or dict, at any depth."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple | dict):
        for one in value.values() if isinstance(value, dict) else value:
            yield from _tensors(one)


def _described(value: Any) -> tuple[Values, ...]:
    return tuple(_values(tensor) for tensor in _tensors(value))


def _values(tensor: Tensor) -> Values:
    array = device_of(tensor.array).to_host(tensor.array)
    shape, dtype = tuple(array.shape), str(array.dtype)
    if is_half(array.dtype):
        array = array.astype(np.float32)
    nans = infinities = 0
    if kind_of(array.dtype) == "f":
        finite = np.isfinite(array)
        if not finite.all():
            nans = int(np.isnan(array).sum())
            infinities = int(array.size - finite.sum()) - nans
            array = array[finite]
    low, high = (array.min().item(), array.max().item()) if array.size else (None, None)
    return Values(shape, dtype, low, high, nans, infinities)


def _trouble(place: Place, call: Call) -> str:
    """What is to be said of a call that has returned, if none within it gave NaN or infinity."""
    if all(values.finite for values in call.outputs):
        return ""
    where = f"{call.path or 'the model'} ({call.kind})"
    if not all(values.finite for values in call.inputs):
        return f"NaN or infinity went into {where} and came from no layer before it"
    wrong = [name for name, p in place.layer.named_parameters(recurse=False) if not _values(p).finite]
    if wrong:
        return f"NaN or infinity came out of {where} first, and is in its {' and '.join(wrong)}"
    return f"NaN or infinity came out of {where} first"


def _now(devices: set[Device]) -> float:
    """The time, with nothing left to do for the devices."""
    for device in devices:
        device.synchronize()
    return time.perf_counter()


@contextmanager
def _unchanged(module: Module) -> Iterator[None]:
    """Put buffers and random numbers back at the end as they were."""
    random = default_generator.get_state()
    layers = [(layer, dict(layer._buffers)) for layer in module.modules()]
    buffers = [(buffer, buffer.array, buffer._version.value) for buffer in module.buffers()]
    try:
        for buffer, array, _ in buffers:
            buffer.array = array.copy()
        yield
    finally:
        for layer, before in layers:
            layer._buffers.clear()
            layer._buffers.update(before)
        for buffer, array, version in buffers:
            buffer.array, buffer._version.value = array, version
        default_generator.set_state(random)
