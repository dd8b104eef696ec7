"""``Function``: one differentiable operation, and the only way onto the tape.

Subclass it with two static methods, as in torch::

    class Cube(rg.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x * x * x

        @staticmethod
        def backward(ctx, grad):
            (x,) = ctx.saved_tensors
            return 3 * x * x * grad

    y = Cube.apply(x)

``forward`` receives tensors (and whatever else is passed to ``apply``), records nothing, and
returns one or several tensors or arrays.  ``backward`` receives the gradient of each output and
returns one for each argument of ``apply``, None where there is none.  If it is written with tensor
operations and other Functions it can itself be differentiated (``create_graph=True``).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..kernels import _graph
from ..kernels._devices import device_of, is_array
from ..kernels._dtypes import kind_of
from ..kernels._errors import DtypeError, GradientError
from . import graph
from .graph import Node, Version, current_mode, enter_forward, leave_forward
from .tensor import Tensor


class Function:
    """Base class of all differentiable operations; see the module's text."""

    @staticmethod
    def forward(ctx: Any, *args: Any, **kwargs: Any) -> Any:
        """Compute the result; override it."""
        raise GradientError("Function.forward must be overridden")

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        """Give the gradient of each argument of ``apply``; override it."""
        raise GradientError(f"{ctx.name} has no backward")

    @classmethod
    def apply(cls, *args: Any, **kwargs: Any) -> Any:
        """Run ``forward`` and, where a gradient may be wanted, record it.

        Keyword arguments are passed to ``forward`` and are never differentiated.
        """
        mode = current_mode()
        if mode.grad:
            needs = tuple([isinstance(arg, Tensor) and arg._requires_grad for arg in args])
            recording = True in needs
            node = Node(cls, needs)
            token = enter_forward(mode)
            try:
                result = cls.forward(node, *args, **kwargs)
            finally:
                leave_forward(token)
        else:
            recording = False
            node = Node(cls, (False,) * len(args))
            result = cls.forward(node, *args, **kwargs)

        if isinstance(result, tuple):
            results, outputs = result, tuple([_as_output(value, args) for value in result])
        else:
            results, outputs = (result,), (_as_output(result, args),)
        for output in outputs:
            _share_version(output, args)
        if _graph.under_way:
            _graph.observe(args, outputs)
        if recording:
            _record(node, args, results, outputs)
        if mode.anomaly:
            graph.trace_forward(node, outputs)
        return outputs if isinstance(result, tuple) else outputs[0]


def _as_output(value: Any, args: tuple[Any, ...]) -> Tensor:
    """What forward returned, as a tensor of its own."""
    if is_array(value) or isinstance(value, Tensor):
        return Tensor(value)
    # Array modules give scalars where an array of no dimensions is meant.
    first = next((arg for arg in args if isinstance(arg, Tensor)), None)
    return Tensor(value if first is None else first.array_module.asarray(value))


def _share_version(output: Tensor, args: tuple[Any, ...]) -> None:
    """Let an output that is a view of an argument count in-place writes together with it."""
    array = output.array
    base = array.base
    for arg in args:
        if isinstance(arg, Tensor) and (arg.array is array or (base is not None and _overlap(array, base, arg.array))):
            output._version = arg._version
            output._version.share(arg, output)
            return


def _overlap(array: Any, base: Any, other: Any) -> bool:
    """Whether ``array``, a view of ``base``, shares memory with ``other``."""
    if base is not other and base is not other.base:
        return False
    return bool(device_of(array).array_module.may_share_memory(array, other))


def _record(node: Node, args: tuple[Any, ...], results: tuple[Any, ...], outputs: tuple[Tensor, ...]) -> None:
    """Tie ``outputs`` to ``node``, and ``node`` to its arguments."""
    edges = tuple([arg._edge() for arg, needed in zip(args, node.needs_input_grad, strict=True) if needed])
    node.record(edges, outputs)
    constant = node._not_differentiable
    for index, output in enumerate(outputs):
        if kind_of(output.array.dtype) == "f" and not (constant and any(results[index] is other for other in constant)):
            output._attach(node, index)
    if node._to_save:
        node._saved = tuple([None if thing is None else _save(thing, results, outputs) for thing in node._to_save])
        node._to_save = ()


class _Saved:
    """A tensor kept for the backward pass, with the version it had."""

    __slots__ = ("_array", "_count", "_index", "_tensor", "_version")

    def __init__(self, tensor: Tensor | None, array: Any, index: int, version: Version) -> None:
        self._tensor = tensor  # an argument, or anything else that is no output
        self._array = array
        self._index = index  # of the output, -1 for none; an output itself would be a reference cycle
        self._version = version
        self._count = version.value

    def keep_before_write(self, array: Any) -> None:
        """Go on with a copy if it is ``array`` that was saved; see :meth:`Node.keep_before_write`."""
        if self._array is array and self._tensor is not None:
            self._array, self._version = array.copy(), Version()
            self._count = 0
            kept = self._tensor._same()
            kept.array, kept._version = self._array, self._version
            self._tensor = kept

    def unpack(self, node: Node) -> Tensor:
        if self._version.value != self._count:
            raise GradientError(
                f"{node.name}: a tensor of shape {tuple(self._array.shape)} that its gradient needs was modified in "
                f"place after it was used ({self._version.value - self._count} times); use an operation that is not "
                "in place, or clone() the tensor first"
            )
        if self._tensor is not None:
            return self._tensor
        tensor = Tensor(self._array)
        if self._index >= 0:
            tensor._attach(node, self._index)
        tensor._version = self._version
        return tensor


def _save(thing: Any, results: tuple[Any, ...], outputs: tuple[Tensor, ...]) -> _Saved:
    is_tensor = isinstance(thing, Tensor)
    array = thing.array if is_tensor else thing
    for index, output in enumerate(outputs):
        if output.array is array or results[index] is thing:
            return _Saved(None, output.array, index if output._node is not None else -1, output._version)
    if is_tensor:
        # A later in-place operation may tie the caller's tensor to another node: keep one of our own.
        return _Saved(thing if thing._node is None else thing._same(), array, -1, thing._version)
    if not is_array(array):
        raise DtypeError(f"save_for_backward takes tensors, arrays or None; got {type(thing).__name__}")
    return _Saved(None, array, -1, Version())


def differentiate_again(composition: Callable[..., Tensor], inputs: tuple[Any, ...], grad: Tensor) -> list[Any]:
    """Gradients of a fused Function from its unfused ``composition``, for ``create_graph``.

    Args:
        composition: takes ``inputs`` and gives what the fused forward gives, with operations that
            can be differentiated twice.
        inputs: the saved arguments; None stays None.
        grad: dL/d(output).

    Returns:
        dL/d(input) for each input, None for those that need none; recorded if the pass is.
    """
    create_graph = graph.is_grad_enabled()
    with graph.enable_grad():
        # Aliases, because one input may itself be an ancestor of another.
        aliases = [None if tensor is None else Alias.apply(tensor) for tensor in inputs]
        wanted = [alias for alias in aliases if alias is not None and alias.requires_grad]
        result = composition(*aliases)
    found = iter(graph.run_backward([result], [grad], create_graph=create_graph, inputs=wanted))
    return [next(found) if alias is not None and alias.requires_grad else None for alias in aliases]


class Alias(Function):
    """The same values as a tensor of its own."""

    @staticmethod
    def forward(ctx: Node, x: Tensor) -> Any:
        return x.array

    @staticmethod
    def backward(ctx: Node, grad: Tensor) -> Tensor:
        return grad
