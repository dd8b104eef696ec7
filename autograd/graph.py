"""The tape: nodes, modes, and the backward pass.

Each call of a :class:`~rawgrad.autograd.Function` that must be differentiated leaves a
:class:`Node`.  Nodes are numbered as they are made, and a node is always made after the nodes it
depends on; so the backward pass is a heap that hands out the youngest pending node first.  There is
no recursion anywhere: a chain of 100,000 nodes is as good as one of ten.

When :func:`run_backward` is through with a node it frees what the node saved and cuts its edges,
unless the graph is retained.
"""

from __future__ import annotations

import itertools
import sys
import traceback
import weakref
from collections.abc import Callable, Iterable, Sequence
from contextlib import ContextDecorator
from contextvars import ContextVar, Token
from heapq import heappop, heappush
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from ..kernels import _graph
from ..kernels._devices import device_named
from ..kernels._dispatch import Choice, current_choice, reset_choice, set_choice
from ..kernels._dtypes import kind_of
from ..kernels._errors import GradientError, NonFiniteError, RawgradError

if TYPE_CHECKING:
    from .function import Function
    from .tensor import Tensor


class Mode(NamedTuple):
    """What is recorded in the current context: gradients, and traces for anomaly mode."""

    grad: bool
    anomaly: bool


_MODES = {(g, a): Mode(g, a) for g in (False, True) for a in (False, True)}
_mode: ContextVar[Mode] = ContextVar("rawgrad_mode", default=_MODES[True, False])
current_mode = _mode.get


def enter_forward(mode: Mode) -> Token[Mode]:
    """Record nothing from here on; a quicker :class:`no_grad` for :meth:`Function.apply`."""
    return _mode.set(_MODES[False, mode.anomaly])


leave_forward = _mode.reset


class _ModeSwitch(ContextDecorator):
    """A context manager and decorator that changes the mode; instances may be nested and reused."""

    def __init__(self) -> None:
        self._tokens: list[Token[Mode]] = []

    def _recreate_cm(self) -> Self:
        return type(self)()  # each call of a decorated function, since several threads may be inside

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
    """

    __slots__ = ("_next_sweep", "_sharers", "value")

    def __init__(self) -> None:
        self.value = 0
        self._sharers: list[weakref.ref[Tensor]] | None = None  # a tensor and its views, once it has any
        self._next_sweep = 8

    def share(self, base: Tensor, view: Tensor) -> None:
        """Remember that ``view`` was made from ``base`` and shows its memory."""
        sharers = self._sharers
        if sharers is None:
            sharers = self._sharers = [weakref.ref(base)]
        sharers.append(weakref.ref(view))
        if len(sharers) >= self._next_sweep:
            alive = [t for t in (reference() for reference in sharers) if t is not None]
            sharers[:] = map(weakref.ref, {id(t): t for t in (*alive, base)}.values())
            self._next_sweep = 2 * len(sharers) + 8

    def shared_beyond(self, tensor: Tensor) -> bool:
        """Whether a view of ``tensor``, or a tensor of which it is a view, is still there."""
        others = (reference() for reference in self._sharers or ())
        return any(other is not None and other is not tensor for other in others)


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

    unit_gradient = False
    graph_retained = True

    # Defaults of the class, since most nodes never set them and one is made for every operation.
    _sequence = -1
    _edges: tuple[Any, ...] | None = ()
    _outputs: tuple[tuple[tuple[int, ...], Any, str], ...] = ()  # shape, dtype and device of each
    _to_save: tuple[Any, ...] = ()
    _saved: tuple[Any, ...] | None = ()
    _not_differentiable: tuple[Any, ...] = ()
    _choice: Choice
    _hooks: dict[int, list[Callable[[Tensor], Tensor | None]]] | None = None
    _retainers: dict[int, Any] | None = None
    _origin: tuple[str, str] | None = None  # layer and line, in anomaly mode

    def __init__(self, function: type[Function], needs_input_grad: tuple[bool, ...]) -> None:
        self.function = function
        self.needs_input_grad = needs_input_grad

    def record(self, edges: tuple[Any, ...], outputs: tuple[Tensor, ...]) -> None:
        """Take a place on the tape: after all nodes that ``edges`` lead to."""
        self._sequence = next(_sequence)
        self._choice = current_choice()
        self._edges = edges
        self._outputs = tuple([(o.array.shape, o.array.dtype, o.device) for o in outputs])

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
        return tuple([None if saved is None else saved.unpack(self) for saved in self._saved])

    # The rest is for the tape and the backward pass.

    def keep_before_write(self, array: Any) -> None:
        """Copy ``array`` where it is saved, because the operation's result is about to overwrite it."""
        for saved in self._saved or ():
            if saved is not None:
                saved.keep_before_write(array)

    def move_retainer(self, index: int, node: Node, new_index: int) -> None:
        """A tensor that retains its gradient goes on, after an in-place operation, as the output of ``node``."""
        if self._retainers and index in self._retainers:
            node._retainers = {new_index: self._retainers.pop(index)}

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


#: The node whose backward is running, in anomaly mode.
_differentiated: ContextVar[Node | None] = ContextVar("rawgrad_differentiated", default=None)


def trace_forward(node: Node, outputs: Iterable[Tensor]) -> None:
    """Anomaly mode, after a forward: note where the call came from, and check its ``outputs``.

    A call from within the backward of another node inherits that node's place, and is not checked:
    what the backward returns is.
    """
    outer = _differentiated.get()
    if outer is None:
        node._origin = layer_path(), _calling_line()
        _check_finite(node, node.name, "output", outputs)
    else:
        node._origin = outer._origin


def _check_finite(node: Node, name: str, what: str, tensors: Iterable[Tensor | None]) -> None:
    """Raise :class:`NonFiniteError` if one of ``tensors`` (None is skipped) holds NaN or infinity."""
    for number, tensor in enumerate(tensors):
        if tensor is None or kind_of(tensor.array.dtype) != "f":
            continue
        finite = tensor.array_module.isfinite(tensor.array)
        if bool(finite.all()):
            continue
        bad = int((~finite).sum())
        layer, line = node._origin or ("", "an unknown line: the forward pass ran outside detect_anomaly()")
        where = f" in layer {layer}" if layer else ""
        raise NonFiniteError(
            f"{name}{where}: {what} {number} of shape {tuple(tensor.shape)} has {bad} of {tensor.array.size} "
            f"values that are NaN or infinite; called from {line}"
        )


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
    retained = retain_graph or create_graph

    def send(edge: Any, gradient: Tensor) -> None:
        if not isinstance(edge, tuple):
            collector.add(edge, gradient)
            return
        node, index = edge
        buffer = buffers.get(node)
        if buffer is None:
            if needed is not None and node not in needed:
                collector.add(edge, gradient)
                return
            buffer = buffers[node] = [None] * len(node._outputs)
            heappush(heap, (-node._sequence, node))
        known = buffer[index]
        buffer[index] = gradient if known is None else known + gradient

    if _graph.under_way:
        _graph.observe(gradients)
    mode = _mode.get()
    token = _mode.set(_MODES[create_graph, mode.anomaly])
    choice_token = set_choice(choice := current_choice())
    try:
        for root, gradient in zip(roots, gradients, strict=True):
            send(root._edge(), gradient)
        while heap:
            node = heappop(heap)[1]
            arriving = buffers.pop(node)
            edges = node._edges
            if edges is None:
                raise GradientError(node._freed_message())
            if node._hooks or node._retainers:
                collector.shown(_notify(node, arriving))
            if needed is not None:
                collector.node(node, arriving)
            if node._choice is not choice:
                set_choice(choice := node._choice)
            node.unit_gradient = unit and arriving[0] is gradients[0]
            node.graph_retained = retained
            results = (_call_traced if mode.anomaly else _call_backward)(node, edges, arriving)
            if not retained:
                node._free()
            for edge, result in zip(edges, results, strict=True):
                if result is not None:
                    send(edge, result)
        return collector.finish()
    finally:
        reset_choice(choice_token)
        _mode.reset(token)


def _call_backward(node: Node, edges: tuple[Any, ...], arriving: list[Tensor | None]) -> list[Tensor | None]:
    """The gradients of the node's tensor arguments, checked, in the order of its edges."""
    filled = [_zeros(*node._outputs[i]) if g is None else g for i, g in enumerate(arriving)]
    try:
        results = node.function.backward(node, *filled)
    except RawgradError as error:
        if node._origin and not error.layer:
            error.layer = node._origin[0]
        raise
    if not isinstance(results, tuple):
        results = tuple(results) if isinstance(results, list) else (results,)
    if _graph.under_way:
        _graph.observe((), results)
    needs = node.needs_input_grad
    if len(results) != len(needs):
        if len(results) < len(needs) or any(result is not None for result in results[len(needs) :]):
            raise GradientError(
                f"{node.name}.backward must return one gradient (or None) for each of the {len(needs)} arguments of "
                f"forward; it returned {len(results)}"
            )
        results = results[: len(needs)]
    wanted = itertools.compress(results, needs)
    return [
        None if gradient is None else _checked(node, number, edge, gradient)
        for number, (edge, gradient) in enumerate(zip(edges, wanted, strict=True))
    ]


def _call_traced(node: Node, edges: tuple[Any, ...], arriving: list[Tensor | None]) -> list[Tensor | None]:
    """:func:`_call_backward` in anomaly mode."""
    token = _differentiated.set(node)
    try:
        results = _call_backward(node, edges, arriving)
    finally:
        _differentiated.reset(token)
    _check_finite(node, f"backward of {node.name}", "gradient", results)
    return results


def _checked(node: Node, number: int, edge: Any, gradient: Any) -> Tensor:
    """``gradient`` as a tensor that fits what it is the gradient of, the node's differentiable argument ``number``."""
    tensor = gradient if hasattr(gradient, "requires_grad") else _as_tensor(gradient)
    if isinstance(edge, tuple):
        shape, dtype, _ = edge[0]._outputs[edge[1]]
    else:
        shape, dtype = edge.array.shape, edge.array.dtype
    array = tensor.array
    if array.shape != shape:
        raise GradientError(
            f"{node.name}.backward: the gradient of differentiable argument {number} must have its shape "
            f"{tuple(shape)}; got {tuple(array.shape)}"
        )
    if array.dtype != dtype:
        tensor = tensor.to(dtype=dtype)
    return tensor


def _as_tensor(value: Any) -> Tensor:
    from .tensor import Tensor

    return Tensor(value)


def _zeros(shape: tuple[int, ...], dtype: Any, device: str) -> Tensor:
    return _as_tensor(device_named(device).array_module.zeros(shape, dtype))


def _notify(node: Node, arriving: list[Tensor | None]) -> list[Tensor]:
    """Run tensor hooks on the gradients that arrived, and fill ``.grad`` where it is retained.

    Returns:
        The gradients that hooks have seen or given, and may have kept.
    """
    shown: list[Tensor] = []
    for index, hooks in (node._hooks or {}).items():
        for hook in tuple(hooks):
            gradient = arriving[index]
            if gradient is not None:
                arriving[index] = replaced = run_hook(hook, gradient)
                shown += [gradient, replaced]
    for index, reference in (node._retainers or {}).items():
        tensor, gradient = reference(), arriving[index]
        if tensor is not None and gradient is not None:
            tensor.grad = gradient.clone() if tensor.grad is None else tensor.grad + gradient
    return shown


def run_hook(hook: Callable[[Tensor], Tensor | None], gradient: Tensor) -> Tensor:
    """The gradient to go on with: what the hook returned, which must fit, or ``gradient``."""
    replaced = hook(gradient)
    if replaced is None:
        return gradient
    if not isinstance(replaced, type(gradient)) or replaced.shape != gradient.shape:
        shape = getattr(replaced, "shape", None)
        got = type(replaced).__name__ if shape is None else f"{type(replaced).__name__} of shape {tuple(shape)}"
        raise GradientError(
            f"register_hook: a hook must return None or a tensor of the gradient's shape {tuple(gradient.shape)}; "
            f"got {got}"
        )
    return replaced if replaced.dtype == gradient.dtype else replaced.to(dtype=gradient.dtype)


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
        self._passed: set[Node] = set()
        self._taken: dict[int, Any] = {}  # by their ids, arrays that something else may hold
        self.shown(given)

    @staticmethod
    def _key(edge: Any) -> Any:
        return edge if isinstance(edge, tuple) else id(edge)

    def wants(self, edge: Any) -> bool:
        return self._key(edge) in self._wanted

    def shown(self, gradients: Iterable[Tensor]) -> None:
        """The user holds ``gradients``: none of their arrays may become a ``.grad``."""
        for gradient in gradients:
            self._taken[id(gradient.array)] = gradient.array

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
        self._passed.add(node)
        for index, gradient in enumerate(arriving):
            if gradient is not None and (node, index) in self._wanted:
                self._found[node, index] = gradient

    def finish(self) -> list[Tensor | None]:
        for key, leaf in self._leaves.items():
            for hook in tuple(leaf._hooks or ()):
                before = self._found[key]
                self._found[key] = run_hook(hook, before)
                self.shown([before, self._found[key]])
        for key in self._found:
            if isinstance(key, tuple) and key[0] not in self._passed:  # the pass ended at this output
                node, index = key
                arriving: list[Tensor | None] = [None] * len(node._outputs)
                arriving[index] = self._found[key]
                self.shown(_notify(node, arriving))
                self._found[key] = arriving[index]  # type: ignore[assignment]
        if self._keys is not None:
            return [self._own(self._found[key]) if key in self._found else None for key in self._keys]
        for key, leaf in self._leaves.items():
            if leaf.grad is None:
                leaf.grad = self._own(self._found[key])
            elif _graph.under_way and _graph.current() is not None:  # into the same array in each replay
                leaf.grad._write(leaf.grad + self._found[key])
            else:
                leaf.grad = leaf.grad + self._found[key]
        return []

    def _own(self, gradient: Tensor) -> Tensor:
        """``gradient`` with an array that nothing else uses, copied only where that is in doubt.

        A Function may hand one array, or a view of it, to several of its arguments, or give one
        that it has kept.
        """
        if gradient.array.base is not None or _holders(gradient) > _SOLE or id(gradient.array) in self._taken:
            return gradient.clone()
        self._taken[id(gradient.array)] = gradient.array
        return gradient


def _holders(tensor: Any) -> int:
    """How many references there are to the tensor's array."""
    return sys.getrefcount(tensor.array)


_SOLE = _holders(SimpleNamespace(array=object()))
