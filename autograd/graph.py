"""The tape: nodes, modes, and the backward pass.

Each call of a :class:`~rawgrad.autograd.Function` that must be differentiated leaves a
:class:`Node`.  Nodes are numbered as they are made, and a node is always made after the nodes it
depends on; so the backward pass is a heap that hands out the youngest pending node first.  There is
no recursion anywhere: a chain of 100,000 nodes is as good as one of ten.

When :func:`run_backward` is through with a node it frees what the node saved and cuts its edges,
unless the graph is retained.
"""

from __future__ import annotations

import heapq
import itertools
import traceback
from collections.abc import Callable, Iterable, Sequence
from contextlib import ContextDecorator
from contextvars import ContextVar, Token
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..kernels._dispatch import Choice, current_choice, reset_choice, set_choice
from ..kernels._errors import GradientError, NonFiniteError, RawgradError

if TYPE_CHECKING:
    from .function import Function
    from .tensor import Tensor


class Mode:
    """What is recorded in the current context: gradients, and traces for anomaly mode."""

    __slots__ = ("anomaly", "grad")

    def __init__(self, grad: bool, anomaly: bool) -> None:
        self.grad = grad
        self.anomaly = anomaly


_MODES = {(g, a): Mode(g, a) for g in (False, True) for a in (False, True)}
_mode: ContextVar[Mode] = ContextVar("rawgrad_mode", default=_MODES[True, False])
current_mode = _mode.get


class _ModeSwitch(ContextDecorator):
    """A context manager and decorator that changes the mode; instances may be nested and reused."""

    def __init__(self) -> None:
        self._tokens: list[Token[Mode]] = []

    def _change(self, mode: Mode) -> Mode:
        raise AssertionError

    def __enter__(self) -> Any:
        self._tokens.append(_mode.set(self._change(_mode.get())))
        return self

    def __exit__(self, *exception: object) -> None:
        _mode.reset(self._tokens.pop())


class no_grad(_ModeSwitch):
    """Record nothing inside: results do not require gradients."""

    def _change(self, mode: Mode) -> Mode:
        return _MODES[False, mode.anomaly]


class enable_grad(_ModeSwitch):
    """Record again inside a :class:`no_grad` block."""

    def _change(self, mode: Mode) -> Mode:
        return _MODES[True, mode.anomaly]


class detect_anomaly(_ModeSwitch):
    """Check every result and every gradient for NaN and infinity.

    The first one raises :class:`NonFiniteError` with the function, the layer and the line of the
    program that called it.  Costs a pass over every array: for finding trouble, not for training.
    """

    def _change(self, mode: Mode) -> Mode:
        return _MODES[mode.grad, True]


def is_grad_enabled() -> bool:
    """Whether operations are being recorded in the current context."""
    return _mode.get().grad


def is_anomaly_enabled() -> bool:
    """Whether :class:`detect_anomaly` is active in the current context."""
    return _mode.get().anomaly


#: Gives the dotted path of the layer that is running; the engine puts its own here.
layer_path: Callable[[], str] = str

_PACKAGE = Path(__file__).resolve().parent.parent
_INTERNAL = tuple(str(_PACKAGE / room) + "/" for room in ("autograd", "engine", "kernels"))


def _calling_line() -> str:
    """``file:line: source`` of the innermost frame outside rawgrad's own rooms."""
    for frame in reversed(traceback.extract_stack()):
        if not str(Path(frame.filename).resolve()).startswith(_INTERNAL):
            return f"{frame.filename}:{frame.lineno}: {frame.line}"
    return "unknown line"


class Version:
    """How often the memory shared by a tensor and its views was written in place.

    Attributes:
        value: the count; saved tensors remember it, and refuse to be used if it moved on.
        viewed: whether a view that is part of a graph shares this memory.
    """

    __slots__ = ("value", "viewed")

    def __init__(self) -> None:
        self.value = 0
        self.viewed = False


_sequence = itertools.count()

#: What a gradient flows to: a node and the number of its output, a leaf tensor, or nothing.
Edge = "tuple[Node, int] | Tensor | None"


class Node:
    """One recorded call of a Function; also the ``ctx`` that its forward and backward receive.

    A Function may keep whatever it likes as attributes of its ``ctx``; tensors that the gradient
    needs go through :meth:`save_for_backward`, so that they are freed and guarded.

    Attributes:
        function: the Function that was called.
        needs_input_grad: for each argument of ``apply``, whether its gradient is wanted.
        unit_gradient: in backward: the incoming gradient is exactly one, the start of the pass.
        graph_retained: in backward: the graph may be used again, so nothing saved may be given away.
    """

    def __init__(self, function: type[Function], needs_input_grad: tuple[bool, ...]) -> None:
        self.function = function
        self.needs_input_grad = needs_input_grad
        self.unit_gradient = False
        self.graph_retained = True
        self._sequence = next(_sequence)
        self._edges: tuple[Any, ...] | None = ()
        self._outputs: tuple[Any, ...] = ()  # (shape, dtype, device) of each output
        self._to_save: tuple[Any, ...] = ()
        self._saved: tuple[Any, ...] | None = ()
        self._not_differentiable: tuple[Any, ...] = ()
        self._choice: Choice = current_choice()
        self._hooks: dict[int, list[Callable[[Tensor], Tensor | None]]] | None = None
        self._retainers: dict[int, Any] | None = None
        self._origin: tuple[str, str] | None = None  # layer and line, in anomaly mode

    # The three methods that a Function's forward may call.

    def save_for_backward(self, *tensors: Any) -> None:
        """Keep tensors (or arrays, or None) that the gradient needs."""
        self._to_save = tensors

    def mark_non_differentiable(self, *outputs: Any) -> None:
        """Outputs (as returned by forward) that carry no gradient."""
        self._not_differentiable = outputs

    @property
    def saved_tensors(self) -> tuple[Any, ...]:
        """What was saved, as tensors that are part of the graph.

        Raises:
            GradientError: the graph was freed, or one of them was written in place since.
        """
        if self._saved is None:
            raise GradientError(self._freed_message())
        return tuple(None if saved is None else saved.unpack(self) for saved in self._saved)

    # The rest is for the backward pass.

    @property
    def name(self) -> str:
        return self.function.__name__

    def _freed_message(self) -> str:
        return (
            f"{self.name}: the graph was already used by a backward pass, which freed it; "
            "pass retain_graph=True to the first one to use it again"
        )

    def _free(self) -> None:
        self._edges = self._saved = None

    def __repr__(self) -> str:
        return f"<{self.name}>"


def check_finite(node_or_name: Any, tensors: Iterable[Any], what: str, origin: tuple[str, str] | None) -> None:
    """Raise :class:`NonFiniteError` if one of ``tensors`` (None is skipped) holds NaN or infinity."""
    for number, tensor in enumerate(tensors):
        if tensor is None or tensor.array.dtype.kind not in "fc":
            continue
        xp = tensor.array_module
        finite = xp.isfinite(tensor.array)
        if bool(finite.all()):
            continue
        bad = int((~finite).sum())
        layer, line = origin or (layer_path(), _calling_line())
        where = f" in layer {layer}" if layer else ""
        raise NonFiniteError(
            f"{node_or_name}{where}: {what} {number} of shape {tuple(tensor.shape)} has {bad} of {tensor.array.size} "
            f"values that are NaN or infinite; called from {line}"
        )


def origin() -> tuple[str, str]:
    """Layer and source line of the call being made, for anomaly mode."""
    return layer_path(), _calling_line()


def run_backward(
    roots: Sequence[Tensor],
    gradients: Sequence[Tensor],
    *,
    unit: bool = False,
    retain_graph: bool = False,
    create_graph: bool = False,
    inputs: Sequence[Tensor] | None = None,
) -> list[Tensor | None]:
    """Propagate ``gradients`` from ``roots``.

    Args:
        roots: tensors that are part of a graph.
        gradients: dL/droot for each, of its shape.
        unit: the single gradient is exactly one (a scalar loss).
        retain_graph: keep the graph for another pass.
        create_graph: record the pass itself, so that it can be differentiated.
        inputs: None to accumulate into the ``.grad`` of the leaves; otherwise the tensors whose
            gradients are returned, and nothing is accumulated.

    Returns:
        The gradients of ``inputs``, None where no path leads to one; empty without ``inputs``.
    """
    collector = _Collector(inputs, gradients)
    needed = None if inputs is None else _nodes_leading_to(roots, collector)
    buffers: dict[Node, list[Tensor | None]] = {}
    heap: list[tuple[int, Node]] = []

    def send(edge: Any, gradient: Tensor) -> None:
        if isinstance(edge, tuple):
            node, index = edge
            if needed is not None and node not in needed:
                collector.add(edge, gradient)
                return
            buffer = buffers.get(node)
            if buffer is None:
                buffer = buffers[node] = [None] * len(node._outputs)
                heapq.heappush(heap, (-node._sequence, node))
            known = buffer[index]
            buffer[index] = gradient if known is None else known + gradient
        else:
            collector.add(edge, gradient)

    mode = _mode.get()
    token = _mode.set(_MODES[create_graph, mode.anomaly])
    choice_token = set_choice(choice := current_choice())
    try:
        for root, gradient in zip(roots, gradients, strict=True):
            send(root._edge(), gradient)
        while heap:
            node = heapq.heappop(heap)[1]
            arriving = buffers.pop(node)
            if node._edges is None:
                raise GradientError(node._freed_message())
            _notify(node, arriving)
            collector.node(node, arriving)
            if node._choice is not choice:
                set_choice(choice := node._choice)
            node.unit_gradient = unit and arriving[0] is gradients[0]
            node.graph_retained = retain_graph or create_graph
            results = _call_backward(node, arriving)
            if mode.anomaly:
                check_finite(f"backward of {node.name}", results, "gradient", node._origin)
            for edge, result in zip(node._edges, results, strict=True):
                if edge is not None and result is not None:
                    send(edge, result)
            if not (retain_graph or create_graph):
                node._free()
        return collector.finish()
    finally:
        reset_choice(choice_token)
        _mode.reset(token)


def _call_backward(node: Node, arriving: list[Tensor | None]) -> list[Tensor | None]:
    """The gradients of the node's tensor arguments, checked, in the order of its edges."""
    from .tensor import Tensor, zeros_of

    filled = [zeros_of(*node._outputs[i]) if g is None else g for i, g in enumerate(arriving)]
    try:
        results = node.function.backward(node, *filled)
    except RawgradError as error:
        if node._origin and not error.layer:
            error.layer = node._origin[0]
        raise
    if not isinstance(results, tuple):
        results = (results,)
    needs = node.needs_input_grad
    if len(results) != len(needs):
        if len(results) < len(needs) or any(result is not None for result in results[len(needs) :]):
            raise GradientError(
                f"{node.name}.backward must return one gradient (or None) for each of the {len(needs)} arguments of "
                f"forward; it returned {len(results)}"
            )
        results = results[: len(needs)]
    checked: list[Tensor | None] = []
    edges = iter(node._edges or ())
    for number, (result, wanted) in enumerate(zip(results, needs, strict=True)):
        if not wanted:
            continue
        edge = next(edges)
        if result is None:
            checked.append(None)
            continue
        tensor = result if isinstance(result, Tensor) else Tensor(result)
        expected = edge[0]._outputs[edge[1]][0] if isinstance(edge, tuple) else tuple(edge.shape)
        if tuple(tensor.shape) != expected:
            raise GradientError(
                f"{node.name}.backward: the gradient of argument {number} must have its shape {expected}; "
                f"got {tuple(tensor.shape)}"
            )
        checked.append(tensor)
    return checked


def _notify(node: Node, arriving: list[Tensor | None]) -> None:
    """Run tensor hooks on the gradients that arrived, and fill ``.grad`` where it is retained."""
    for index, hooks in (node._hooks or {}).items():
        for hook in hooks:
            gradient = arriving[index]
            if gradient is not None and (replaced := hook(gradient)) is not None:
                arriving[index] = replaced
    for index, reference in (node._retainers or {}).items():
        tensor, gradient = reference(), arriving[index]
        if tensor is not None and gradient is not None:
            tensor.grad = gradient.clone() if tensor.grad is None else tensor.grad + gradient


def _nodes_leading_to(roots: Sequence[Tensor], collector: _Collector) -> set[Node]:
    """The nodes whose backward must run so that every requested input gets its gradient."""
    reachable: dict[Node, None] = {}
    stack = [root._node for root in roots if root._node is not None]
    while stack:
        node = stack.pop()
        if node in reachable:
            continue
        reachable[node] = None
        if node._edges is None:
            raise GradientError(node._freed_message())
        stack.extend(edge[0] for edge in node._edges if isinstance(edge, tuple))
    needed: set[Node] = set()
    for node in sorted(reachable, key=lambda n: n._sequence):
        for edge in node._edges or ():
            if edge is None:
                continue
            wanted = collector.wants(edge)
            if wanted or (isinstance(edge, tuple) and edge[0] in needed):
                needed.add(node)
                break
    return needed


class _Collector:
    """Where gradients end: in the leaves' ``.grad``, or in the list asked for.

    Leaves get their gradient when the pass is complete, so that their hooks see the whole of it and
    a pass that fails leaves every ``.grad`` as it was.
    """

    def __init__(self, inputs: Sequence[Tensor] | None, given: Sequence[Tensor]) -> None:
        self._keys = None if inputs is None else [self._key(tensor._edge()) for tensor in inputs]
        self._wanted = frozenset(self._keys or ())
        self._found: dict[Any, Tensor] = {}
        self._leaves: dict[int, Tensor] = {}
        self._taken = {id(gradient.array) for gradient in given}

    @staticmethod
    def _key(edge: Any) -> Any:
        return edge if isinstance(edge, tuple) else id(edge)

    def wants(self, edge: Any) -> bool:
        return self._key(edge) in self._wanted

    def add(self, edge: Any, gradient: Tensor) -> None:
        """Another contribution to a leaf, or to a node's output that the pass does not go beyond."""
        key = self._key(edge)
        if self._keys is not None and key not in self._wanted:
            return
        if not isinstance(edge, tuple):
            self._leaves[key] = edge
        known = self._found.get(key)
        self._found[key] = gradient if known is None else known + gradient

    def node(self, node: Node, arriving: list[Tensor | None]) -> None:
        """``node``'s outputs have their whole gradients now: keep those that were asked for."""
        for index, gradient in enumerate(arriving):
            if gradient is not None and (node, index) in self._wanted:
                self._found[node, index] = gradient

    def finish(self) -> list[Tensor | None]:
        for key, leaf in self._leaves.items():
            for hook in leaf._hooks or ():
                if (replaced := hook(self._found[key])) is not None:
                    self._found[key] = replaced
        if self._keys is not None:
            return [self._found.get(key) for key in self._keys]
        for key, leaf in self._leaves.items():
            leaf.grad = self._own(self._found[key]) if leaf.grad is None else leaf.grad + self._found[key]
        return []

    def _own(self, gradient: Tensor) -> Tensor:
        """``gradient`` with an array that nothing else uses, copied only where that is in doubt.

        A Function may hand one array, or a view of it, to several of its arguments.
        """
        array = gradient.array
        if array.base is not None or id(array) in self._taken:
            return gradient.clone()
        self._taken.add(id(array))
        return gradient
