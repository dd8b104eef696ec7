"""Capturing a whole training step and replaying it: ``rg.cuda.Graph`` and ``rg.cuda.graphed``.

On a GPU a small network's step is a hundred short kernels, and the host takes longer to start them than they
take to run.  A captured step is started by one call.  The tape is built and freed during the capture; a replay
knows nothing of it.  What a replay must do for the tensors that the step touched is noted while it is captured
(:meth:`Graph.observe`): keep their memory, tell that they were written, show the gradients.

The model is CUDA graphs (NVIDIA, CUDA C++ Programming Guide, "CUDA Graphs"), and torch's names for them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from ..kernels import _graph
from ..kernels._devices import device_named
from ..kernels._errors import ArgumentError, CaptureError
from ..kernels._faults import watch_again
from .graph import Version, is_anomaly_enabled
from .random import Generator
from .tensor import Tensor


class _Held(NamedTuple):
    """A tensor that was there before the capture, with what it had when the capture first met it."""

    tensor: Tensor
    array: Any
    grad: Tensor | None


@dataclass
class _Draws:
    """What a captured step draws from a generator: the device counts on by itself."""

    generator: Generator
    seed: int
    offset: Any  # one uint64 on the device: the next draw's
    known: int  # what it holds before the next replay
    count: int = 0  # draws of one replay

    def prepare(self) -> None:
        """Let the device go on where the generator is."""
        if self.generator.offset != self.known:  # others have drawn in between
            self.offset[...] = self.known = self.generator.offset

    def done(self) -> None:
        """Let the generator go on where the device is."""
        self.known += self.count
        self.generator.offset = self.known


class Graph(_graph.DeviceGraph):
    """A step on the GPU, captured once and replayed by one call::

        graph = rg.cuda.Graph()
        for _ in range(3):
            with graph.warm_up():
                step(x, y)
        with graph.capture():
            loss = step(x, y)
        x.copy_(...)
        graph.replay()  # another step; loss.item() is its loss

    The capture runs nothing; each replay does what the step did, on the very same memory.  A new batch is
    written into the tensors that the step read, results are read from those that it returned, and gradients
    from ``.grad``.  What Python did is not repeated: a branch that was taken stays taken, numbers are those of
    the capture.  What does go on are the optimizer's learning rate and step counts, and dropout's masks.

    Raises:
        DeviceError: there is no GPU here, nor is one simulated.
    """

    def __init__(self) -> None:
        super().__init__(device_named("cuda"))
        self.before_replay: list[Callable[[], None]] = []
        self._clear()

    def _clear(self) -> None:
        """Forget what a capture noted."""
        self.before_replay.clear()
        self._held: dict[int, _Held] = {}
        self._versions: dict[int, tuple[Version, int | None]] = {}  # with the count at first, None for one made here
        self._draws: dict[int, _Draws] = {}
        self._written: list[Version] = []
        self._grads: list[tuple[Tensor, Tensor]] = []

    @contextmanager
    def warm_up(self) -> Iterator[None]:
        """Run a step where it is going to be captured: kernels get compiled, and the graph's memory its size."""
        with self.own_stream():
            yield

    @contextmanager
    def capture(self) -> Iterator[None]:
        """Capture the step that is in here.  If it raises, all is as if it had not been tried.

        Raises:
            CaptureError: the graph was captured already, another capture is under way, or the step does what
                cannot be captured: it reads values on the host, or brings some from there.
        """
        if is_anomaly_enabled():
            raise CaptureError("capture: detect_anomaly() looks at every result; leave it first")
        with self._undone_on_error(), self.recording():
            yield
        self._written = [version for version, first in self._versions.values() if version.value != first]
        for tensor, _, _ in self._held.values():
            if tensor.is_leaf and tensor.grad is not None and id(tensor.grad._version) in self._versions:
                self._grads.append((tensor, tensor.grad))

    @contextmanager
    def _undone_on_error(self) -> Iterator[None]:
        if self.is_captured:  # refused; what it has stays
            yield
            return
        try:
            yield
        except BaseException:
            for tensor, _, grad in self._held.values():
                tensor.grad = grad
            self._clear()
            raise

    def observe(self, used: Any, made: Any = ()) -> None:
        """Note tensors that the step uses (other things among them are passed over) and those that it makes."""
        for tensor in used:
            if isinstance(tensor, Tensor):
                version = tensor._version
                _, first = self._versions.setdefault(id(version), (version, version.value))
                if first is not None and id(tensor) not in self._held:
                    self._held[id(tensor)] = _Held(tensor, tensor.array, tensor.grad)
        for tensor in made:
            if isinstance(tensor, Tensor):
                self._versions.setdefault(id(tensor._version), (tensor._version, None))

    def draw(self, generator: Generator) -> Any:
        """The offset of the generator's next draw, counted on the device."""
        draws = self._draws.get(id(generator))
        if draws is None:
            with _graph.outside():
                offset = self.device.array_module.full(1, generator.offset, np.uint64)
            draws = self._draws[id(generator)] = _Draws(generator, generator.seed, offset, generator.offset)
        own = draws.offset.copy()
        draws.offset += 1
        draws.count += 1
        return own

    def replay(self) -> None:
        """Run the captured step once, on the current stream.

        Raises:
            CaptureError: nothing was captured; or something that the capture took for granted has changed: a
                tensor's array was replaced, a generator was seeded anew, an option of the optimizer was set.
        """
        _graph.refuse("a graph was replayed", "replay it before or after")
        if not self.is_captured:
            raise CaptureError("replay: this graph was not captured yet")
        for tensor, array, _ in self._held.values():
            if tensor.array is not array:
                raise CaptureError(
                    f"replay: a tensor of shape {tuple(array.shape)} that the captured step uses has got another array "
                    "since; write into the one that it had (copy_), or capture again"
                )
        for draws in self._draws.values():
            if draws.generator.seed != draws.seed:
                raise CaptureError("replay: the random generator was seeded anew since the capture; capture again")
        for look in self.before_replay:
            look()
        for draws in self._draws.values():
            draws.prepare()
        self.launch()
        for draws in self._draws.values():
            draws.done()
        for version in self._written:
            version.value += 1
        for tensor, grad in self._grads:
            tensor.grad = grad
        watch_again(self.watches)


class Graphed:
    """A step that captures itself; see :func:`graphed`.

    Attributes:
        graph: the captured step, or None while it warms up.
    """

    def __init__(self, function: Callable[..., Any], warmup: int) -> None:
        if isinstance(warmup, bool) or not isinstance(warmup, int) or warmup < 1:
            raise ArgumentError(f"graphed: warmup must be a number of calls, at least 1; got {warmup!r}")
        self._function, self._left = function, warmup
        self._signature: Any = None
        self._warming: Graph | None = None
        self._inputs: list[Tensor] = []
        self._outputs: Any = None
        self.graph: Graph | None = None

    def __call__(self, *inputs: Tensor) -> Any:
        """One step on ``inputs``."""
        for number, tensor in enumerate(inputs):
            if not isinstance(tensor, Tensor) or tensor.requires_grad:
                came = "one that requires gradients" if isinstance(tensor, Tensor) else type(tensor).__name__
                raise ArgumentError(f"graphed: input {number} must be a tensor without gradients; got {came}")
        signature = [(type(tensor.array), tensor.shape, tensor.dtype) for tensor in inputs]
        if any(tensor.device != "cuda" for tensor in inputs) or not inputs:
            return self._function(*inputs)
        if self._signature is None:
            self._signature, self._warming = signature, Graph()
        if signature != self._signature:  # the last batch of an epoch
            return self._function(*inputs)
        if self.graph is None:
            assert self._warming is not None
            if self._left:
                self._left -= 1
                with self._warming.warm_up():
                    return self._function(*inputs)
            self._capture(self._warming, inputs)
        assert self.graph is not None
        for own, tensor in zip(self._inputs, inputs, strict=True):
            own.copy_(tensor)
        self.graph.replay()
        return self._outputs

    def _capture(self, graph: Graph, inputs: tuple[Tensor, ...]) -> None:
        own = [tensor.detach().clone() for tensor in inputs]
        with graph.capture():
            outputs = self._function(*own)
        self.graph, self._inputs, self._outputs = graph, own, _detached(outputs)


def _detached(outputs: Any) -> Any:
    """``outputs`` with tensors off the tape, which is used up."""
    if isinstance(outputs, Tensor):
        return outputs.detach()
    if isinstance(outputs, list | tuple):
        return type(outputs)(map(_detached, outputs))
    return {key: _detached(value) for key, value in outputs.items()} if isinstance(outputs, dict) else outputs


def graphed(function: Callable[..., Any], warmup: int = 3) -> Graphed:
    """``function``, a step of tensors on the GPU, with the work of the host done once::

        step = rg.cuda.graphed(train_step)
        for images, labels in loader:
            loss = step(images, labels)

    The first ``warmup`` calls run as ever.  The next one captures the step, and from then on a call copies its
    inputs into the graph's own and replays it.  Every call is one step, with the results of the function itself,
    bit for bit.  Inputs of another shape or dtype (the odd last batch) and those on the CPU run as ever.

    What a replay returns is the same tensors each time, with new values: read them (``item()``) or ``clone()``
    them before the next call.

    Args:
        function: takes tensors that require no gradients; returns tensors, in lists, tuples or dictionaries.
        warmup: how many calls come before the capture, at least 1.
    """
    return Graphed(function, warmup)
