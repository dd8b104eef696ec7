"""``Module``: a tree of layers that owns parameters and buffers.

A module's attributes that are :class:`Parameter`, ``Module`` or registered buffers are kept in three
dictionaries, so that everything below (state, devices, training mode, names) is a walk of the tree.

Errors carry the layer in which they arose: a :class:`RawgradError` that travels out of a module
collects, call by call, the names under which the modules were called, so ``error.layer`` of a
failure deep inside a model is ``encoder.conv1``.  That costs nothing as long as nothing fails.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import numpy as np

from ..autograd import Function, Tensor, default_generator, graph, no_grad
from ..kernels._devices import device_named, device_of
from ..kernels._dtypes import FLOATS, HALVES, kind_of
from ..kernels._errors import ArgumentError, CheckpointError, NonFiniteError, RawgradError

if TYPE_CHECKING:
    from .summary import Summary
    from .trace import Trace


class Parameter(Tensor):
    """A tensor that a module owns and an optimizer changes.

    Args:
        data: the values, a tensor or an array of a known device; not copied.
        requires_grad: whether gradients are accumulated for it.
    """

    def __init__(self, data: Any, requires_grad: bool = True) -> None:
        super().__init__(data, requires_grad)

    def __repr__(self) -> str:
        return f"Parameter containing:\n{super().__repr__()}"


class IncompatibleKeys(NamedTuple):
    """What :meth:`Module.load_state_dict` with ``strict=False`` passed over."""

    missing_keys: list[str]
    unexpected_keys: list[str]


class RemovableHandle:
    """Takes a hook off again: by :meth:`remove`, or at the end of a ``with`` block."""

    def __init__(self, hooks: dict[int, Any], key: int) -> None:
        self._hooks = hooks
        self._key = key

    def remove(self) -> None:
        """Take the hook off; once more does nothing."""
        self._hooks.pop(self._key, None)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.remove()


def _add_hook(hooks: dict[int, Any], hook: Any) -> RemovableHandle:
    if not callable(hook):
        raise ArgumentError(f"hook: must be callable; got {type(hook).__qualname__}")
    key = max(hooks, default=-1) + 1
    hooks[key] = hook
    return RemovableHandle(hooks, key)


# ---------------------------------------------------------------- which layer is running

_DTYPES = (*FLOATS, *HALVES)
_running: ContextVar[tuple[Module, ...]] = ContextVar("rawgrad_running", default=())


def current_layer_path() -> str:
    """The dotted path of the layer that is running, from the outermost model; kept in anomaly mode only.

    A module that its caller knows by several names appears under the first of them.
    """
    running = _running.get()
    return ".".join(outer._name_of(inner) for outer, inner in pairwise(running))


graph.layer_path = current_layer_path


class Module:
    """Base of all layers and models: define ``__init__`` and ``forward``.

    Example:
        >>> class Classifier(Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.fc = Linear(784, 10)
        ...     def forward(self, x):
        ...         return self.fc(x)
    """

    training: bool

    def __init__(self) -> None:
        set_plain = super().__setattr__
        set_plain("training", True)
        set_plain("_parameters", {})
        set_plain("_buffers", {})
        set_plain("_non_persistent", set())
        set_plain("_modules", {})
        set_plain("_pre_hooks", {})
        set_plain("_hooks", {})
        set_plain("_backward_pre_hooks", {})
        set_plain("_backward_hooks", {})

    def forward(self, *inputs: Any, **options: Any) -> Any:
        """What the module computes; subclasses define it."""
        raise NotImplementedError(f"{type(self).__name__} defines no forward()")

    # ------------------------------------------------------------ calling

    def __call__(self, *inputs: Any, **options: Any) -> Any:
        """Run :meth:`forward` with the hooks round it."""
        try:
            if graph.current_mode().anomaly:
                token = _running.set((*_running.get(), self))
                try:
                    return self._call_with_hooks(*inputs, **options)
                finally:
                    _running.reset(token)
            if self._hooks or self._pre_hooks or self._backward_hooks or self._backward_pre_hooks:
                return self._call_with_hooks(*inputs, **options)
            return self.forward(*inputs, **options)
        except RawgradError as error:
            self._locate(error)
            raise

    def _call_with_hooks(self, *inputs: Any, **options: Any) -> Any:
        for hook in tuple(self._pre_hooks.values()):
            replaced = hook(self, inputs)
            if replaced is not None:
                inputs = replaced if isinstance(replaced, tuple) else (replaced,)
        if not (self._backward_hooks or self._backward_pre_hooks):
            return self._call_forward_hooks(inputs, self.forward(*inputs, **options))
        watch = _BackwardWatch(self)
        output = self.forward(*watch.inputs(inputs), **options)
        return watch.outputs(self._call_forward_hooks(inputs, output))

    def _call_forward_hooks(self, inputs: tuple[Any, ...], output: Any) -> Any:
        for hook in tuple(self._hooks.values()):
            replaced = hook(self, inputs, output)
            if replaced is not None:
                output = replaced
        return output

    def _locate(self, error: RawgradError) -> None:
        """Put the name of the child that ``error`` came from in front of ``error.layer``."""
        source = error.__dict__.get("_module")
        if source is not None and source is not self:
            self._prefix(error, self._name_of(source))
        error.__dict__["_module"] = self

    def _prefix(self, error: RawgradError, name: str) -> None:
        """Put ``name``, the child that ``error`` came from, in front of ``error.layer``."""
        if not isinstance(error, NonFiniteError):  # anomaly mode has said the whole path already
            error.layer = f"{name}.{error.layer}" if error.layer else name
        error.__dict__["_module"] = self

    def _name_of(self, module: Module) -> str:
        """The path of ``module`` from here; its class's name if it is not registered below."""
        return next((name for name, known in self.named_modules() if known is module), type(module).__name__)

    # ------------------------------------------------------------ attributes

    def __setattr__(self, name: str, value: Any) -> None:
        if isinstance(value, Parameter):
            self.register_parameter(name, value)
            return
        if isinstance(value, Module):
            self.add_module(name, value)
            return
        owned = self.__dict__
        for kind, wanted in (("_parameters", Parameter), ("_modules", Module), ("_buffers", Tensor)):
            if name in owned.get(kind, ()):
                if value is not None and not isinstance(value, wanted):
                    raise ArgumentError(
                        f"{type(self).__name__}: {name} must stay a {wanted.__name__} or become None; "
                        f"got {type(value).__qualname__}"
                    )
                owned[kind][name] = value
                return
        super().__setattr__(name, value)

    def __getattr__(self, name: str) -> Any:
        own = self.__dict__
        for kind in ("_parameters", "_modules", "_buffers"):
            if kind in own and name in own[kind]:
                return own[kind][name]
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def __delattr__(self, name: str) -> None:
        for kind in ("_parameters", "_modules", "_buffers"):
            if name in self.__dict__[kind]:
                del self.__dict__[kind][name]
                self._non_persistent.discard(name)
                return
        super().__delattr__(name)

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *self._parameters, *self._modules, *self._buffers})

    def _claim(self, name: str, kind: str) -> dict[str, Any]:
        """The dictionary ``kind``, after making sure that ``name`` is free for it."""
        if kind not in self.__dict__:
            raise AttributeError(f"{type(self).__name__}: call super().__init__() before assigning {name!r}")
        if isinstance(name, str) and hasattr(Module, name):  # which would be found first, and silently
            raise ArgumentError(f"{type(self).__name__}: {name} is what every module has; choose another name")
        if not isinstance(name, str) or not name or "." in name:
            raise ArgumentError(f"{type(self).__name__}: a name must be a string without dots, not empty; got {name!r}")
        for other in ("_parameters", "_modules", "_buffers"):
            if other != kind:
                self.__dict__[other].pop(name, None)
        self._non_persistent.discard(name)
        self.__dict__.pop(name, None)
        return self.__dict__[kind]

    def register_parameter(self, name: str, parameter: Parameter | None) -> None:
        """Own ``parameter`` under ``name``; None keeps the name for one that is left out."""
        if parameter is not None and not isinstance(parameter, Parameter):
            raise ArgumentError(
                f"{type(self).__name__}: {name} must be a Parameter or None; got {type(parameter).__qualname__}"
            )
        self._claim(name, "_parameters")[name] = parameter

    def register_buffer(self, name: str, tensor: Tensor | None, persistent: bool = True) -> None:
        """Own ``tensor``, which is state but not a parameter (a running mean).

        Args:
            persistent: whether it is part of :meth:`state_dict`.
        """
        if tensor is not None and not isinstance(tensor, Tensor):
            raise ArgumentError(
                f"{type(self).__name__}: {name} must be a Tensor or None; got {type(tensor).__qualname__}"
            )
        self._claim(name, "_buffers")[name] = tensor
        if not persistent:
            self._non_persistent.add(name)

    def add_module(self, name: str, module: Module | None) -> None:
        """Own ``module`` under ``name``."""
        if module is not None and not isinstance(module, Module):
            raise ArgumentError(f"{type(self).__name__}: {name} must be a Module; got {type(module).__qualname__}")
        self._claim(name, "_modules")[name] = module

    register_module = add_module

    # ------------------------------------------------------------ walking the tree

    def named_children(self) -> Iterator[tuple[str, Module]]:
        """The modules directly below, each once."""
        seen: set[int] = set()
        for name, module in self._modules.items():
            if module is not None and id(module) not in seen:
                seen.add(id(module))
                yield name, module

    def children(self) -> Iterator[Module]:
        """The modules directly below, each once."""
        return (module for _, module in self.named_children())

    def named_modules(self, prefix: str = "", *, remove_duplicate: bool = True) -> Iterator[tuple[str, Module]]:
        """This module (named ``prefix``) and all below it, parents first; each once unless asked otherwise."""
        seen: set[int] = set()

        def walk(path: str, module: Module) -> Iterator[tuple[str, Module]]:
            if remove_duplicate:
                if id(module) in seen:
                    return
                seen.add(id(module))
            yield path, module
            for name, child in module._modules.items():
                if child is not None:
                    yield from walk(f"{path}.{name}" if path else name, child)

        return walk(prefix, self)

    def modules(self) -> Iterator[Module]:
        """This module and all below it, each once."""
        return (module for _, module in self.named_modules())

    def get_submodule(self, target: str) -> Module:
        """The module at the dotted path ``target``, such as the ``layer`` of an error."""
        for path, module in self.named_modules(remove_duplicate=False):
            if path == target:
                return module
        raise ArgumentError(f"{type(self).__name__}: there is no submodule {target!r}")

    def _named(self, kind: str, prefix: str, recurse: bool, unique: bool) -> Iterator[tuple[str, Any]]:
        seen: set[int] = set()
        owners = self.named_modules(prefix, remove_duplicate=unique) if recurse else [(prefix, self)]
        for path, module in owners:
            for name, value in module.__dict__[kind].items():
                if value is None or (unique and id(value) in seen):
                    continue
                seen.add(id(value))
                yield f"{path}.{name}" if path else name, value

    def named_parameters(
        self, prefix: str = "", recurse: bool = True, remove_duplicate: bool = True
    ) -> Iterator[tuple[str, Parameter]]:
        """The parameters with their dotted names; a shared one once, under its first name."""
        return self._named("_parameters", prefix, recurse, remove_duplicate)

    def parameters(self, recurse: bool = True) -> Iterator[Parameter]:
        """The parameters, each once."""
        return (parameter for _, parameter in self.named_parameters(recurse=recurse))

    def named_buffers(
        self, prefix: str = "", recurse: bool = True, remove_duplicate: bool = True
    ) -> Iterator[tuple[str, Tensor]]:
        """The buffers with their dotted names."""
        return self._named("_buffers", prefix, recurse, remove_duplicate)

    def buffers(self, recurse: bool = True) -> Iterator[Tensor]:
        """The buffers, each once."""
        return (buffer for _, buffer in self.named_buffers(recurse=recurse))

    def apply(self, function: Callable[[Module], Any]) -> Self:
        """Call ``function`` on every module below and then on this one."""
        for child in self.children():
            child.apply(function)
        function(self)
        return self

    # ------------------------------------------------------------ state

    def state_dict(self, *, prefix: str = "") -> dict[str, Tensor]:
        """All parameters and persistent buffers by name, detached but sharing their memory.

        A shared parameter appears under each of its names.
        """
        state = {}
        for path, module in self.named_modules(remove_duplicate=False):
            for kind in ("_parameters", "_buffers"):
                for name, value in module.__dict__[kind].items():
                    if value is not None and name not in module._non_persistent:
                        state[f"{prefix}{path}.{name}" if path else f"{prefix}{name}"] = value.detach()
        return state

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True) -> IncompatibleKeys:
        """Copy values into the parameters and persistent buffers; all of them or, on an error, none.

        Args:
            state_dict: tensors or arrays (of any device) by name, as from :meth:`state_dict`.
            strict: whether every name must be there and no other.

        Returns:
            The names that were missing and those that were not expected.

        Raises:
            CheckpointError: names (if strict), shapes or dtypes do not fit; it lists all of them.
        """
        if not isinstance(state_dict, Mapping):
            raise ArgumentError(f"load_state_dict: must be given a mapping; got {type(state_dict).__qualname__}")
        own = self.state_dict()
        missing = [name for name in own if name not in state_dict]
        unexpected = [name for name in state_dict if name not in own]
        problems = []
        if strict and missing:
            problems.append(f"missing keys: {', '.join(missing)}")
        if strict and unexpected:
            problems.append(f"unexpected keys: {', '.join(map(str, unexpected))}")
        values: list[tuple[Tensor, np.ndarray]] = []
        for name, target in own.items():
            if name not in state_dict:
                continue
            try:
                value = Tensor(state_dict[name]).array
            except RawgradError:
                problems.append(f"{name} must be a tensor or an array; got {type(state_dict[name]).__qualname__}")
                continue
            if tuple(value.shape) != tuple(target.shape):
                problems.append(f"{name} must have shape {tuple(target.shape)}; got {tuple(value.shape)}")
            elif value.dtype != target.dtype:
                problems.append(f"{name} must be {target.dtype}; got {value.dtype}")
            else:
                # A copy: the values may share memory with what is about to be written.
                values.append((target, np.array(device_of(value).to_host(value))))
        if problems:
            raise CheckpointError(
                f"load_state_dict: {type(self).__name__} cannot take this state:\n  " + "\n  ".join(problems)
            )
        for target, host in values:
            target.array[...] = device_of(target.array).from_host(host)
            target.written()
        return IncompatibleKeys(missing, unexpected)

    # ------------------------------------------------------------ modes, gradients, devices

    def train(self, mode: bool = True) -> Self:
        """Training mode for this module and all below it (dropout drops, batch norm uses the batch)."""
        for module in self.modules():
            module.training = bool(mode)
        return self

    def eval(self) -> Self:
        """Evaluation mode: ``train(False)``."""
        return self.train(False)

    def requires_grad_(self, requires_grad: bool = True) -> Self:
        """Switch gradients for all parameters on or off."""
        for parameter in self.parameters():
            parameter.requires_grad = requires_grad
        return self

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the gradients of all parameters, or (``set_to_none=False``) fill them with zeros."""
        clear_gradients(self.parameters(), set_to_none)

    def to(self, *target: Any, device: str | None = None, dtype: Any = None) -> Self:
        """Move to a device and/or convert floating parameters and buffers to a dtype, in place.

        ``to("cuda")``, ``to(np.float64)``, ``to("cpu", "bfloat16")``, ``to(device=…, dtype=…)``.
        Parameters stay the same objects, so an optimizer that knows them goes on working, if it has
        no state yet.
        """
        for value in target:
            if isinstance(value, str) and value not in map(str, _DTYPES):
                device = value
            else:
                dtype = value
        place = None if device is None else device_named(device)
        if dtype is not None and np.dtype(dtype) not in _DTYPES:
            raise ArgumentError(f"Module.to: dtype must be {', '.join(map(str, _DTYPES))}; got {np.dtype(dtype)}")

        def moved(array: Any) -> Any:
            if dtype is not None and kind_of(array.dtype) == "f":
                array = array.astype(dtype, copy=False)
            if place is not None and device_of(array) is not place:
                array = place.from_host(device_of(array).to_host(array))
            return array

        for tensor in (*self.parameters(), *self.buffers()):
            tensor.array = moved(tensor.array)
            tensor.written()
            if tensor.grad is not None:
                tensor.grad = Tensor(moved(tensor.grad.array))
        return self

    def float(self) -> Self:
        """Convert to float32."""
        return self.to(dtype=np.float32)

    def double(self) -> Self:
        """Convert to float64."""
        return self.to(dtype=np.float64)

    def half(self) -> Self:
        """Convert to float16."""
        return self.to(dtype="float16")

    def bfloat16(self) -> Self:
        """Convert to bfloat16."""
        return self.to(dtype="bfloat16")

    # ------------------------------------------------------------ hooks

    def register_forward_pre_hook(self, hook: Callable[[Module, tuple[Any, ...]], Any]) -> RemovableHandle:
        """Call ``hook(module, inputs)`` before each forward; what it returns replaces the inputs."""
        return _add_hook(self._pre_hooks, hook)

    def register_forward_hook(self, hook: Callable[[Module, tuple[Any, ...], Any], Any]) -> RemovableHandle:
        """Call ``hook(module, inputs, output)`` after each forward; what it returns replaces the output."""
        return _add_hook(self._hooks, hook)

    def register_full_backward_pre_hook(self, hook: Callable[[Module, tuple[Any, ...]], Any]) -> RemovableHandle:
        """Call ``hook(module, grad_output)`` before the module's backward pass; a returned tuple replaces it."""
        return _add_hook(self._backward_pre_hooks, hook)

    def register_full_backward_hook(
        self, hook: Callable[[Module, tuple[Any, ...], tuple[Any, ...]], Any]
    ) -> RemovableHandle:
        """Call ``hook(module, grad_input, grad_output)`` after the module's backward pass.

        The tuples have one entry per positional input and per output, None where there is no
        gradient.  A returned tuple replaces ``grad_input``.
        """
        return _add_hook(self._backward_hooks, hook)

    # ------------------------------------------------------------ looking at it

    def summary(self, input_size: Any, dtype: Any = np.float32) -> Summary:
        """The layers with their output shapes and parameter counts; see :func:`rawgrad.nn.summary`."""
        from .summary import summary

        return summary(self, input_size, dtype)

    def trace(self, *inputs: Any, **options: Any) -> Trace:
        """Run once and describe what went into each layer and came out; see :func:`rawgrad.nn.trace`."""
        from .trace import trace

        return trace(self, *inputs, **options)

    def extra_repr(self) -> str:
        """What stands in the parentheses of the module's line in ``repr``."""
        return ""

    def __repr__(self) -> str:
        lines = [f"({name}): {indented(repr(module))}" for name, module in self._modules.items()]
        return self._repr_with(lines)

    def _repr_with(self, lines: list[str]) -> str:
        extra = self.extra_repr()
        if not lines:
            return f"{type(self).__name__}({extra})"
        return "\n  ".join([f"{type(self).__name__}({extra}", *lines]) + "\n)"


@contextmanager
def evaluating(module: Module) -> Iterator[None]:
    """A ``with`` block in evaluation mode and without gradients.

    Afterwards each layer has the mode that it had, and the random numbers go on where they were.
    """
    modes, random = [(layer, layer.training) for layer in module.modules()], default_generator.get_state()
    module.eval()
    try:
        with no_grad():
            yield
    finally:
        default_generator.set_state(random)
        for layer, mode in modes:
            layer.training = mode


def outputs_of(layers: Mapping[str, Module], model: Module, inputs: Tensor, seen: Callable[[str, Any], None]) -> None:
    """Run ``model`` once in evaluation mode, and call ``seen(name, output)`` after each call of a named layer."""

    def after(name: str, layer: Module, inputs: Any, output: Any) -> None:
        seen(name, output)

    handles = [layer.register_forward_hook(partial(after, name)) for name, layer in layers.items()]
    try:
        with evaluating(model):
            model(inputs)
    finally:
        for handle in handles:
            handle.remove()


def indented(text: str) -> str:
    """``text`` with all lines but the first moved in by two."""
    return text.replace("\n", "\n  ")


def clear_gradients(tensors: Any, set_to_none: bool) -> None:
    """Set the gradients of ``tensors`` to None, or to zeros where there are any."""
    for tensor in tensors:
        if tensor.grad is None:
            continue
        if set_to_none:
            tensor.grad = None
        else:
            tensor.grad = Tensor(device_of(tensor.grad.array).array_module.zeros_like(tensor.grad.array))


# ---------------------------------------------------------------- full backward hooks


class _Watched(Function):
    """The identity on several tensors; their gradients are shown to a callback on the way back."""

    @staticmethod
    def forward(ctx: Any, callback: Callable[..., Any], *tensors: Any) -> Any:
        ctx.callback = callback
        return tensors

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return (None, *ctx.callback(grads))


class _BackwardWatch:
    """One call of a module that has backward hooks.

    The inputs and the outputs each pass through one identity.  Going back, that of the outputs sees
    grad_output and then that of the inputs sees grad_input, complete.
    """

    def __init__(self, module: Module) -> None:
        self._module = module
        self._grad_output: tuple[Any, ...] = ()
        self._watches_inputs = False
        self._number_of_inputs = 0

    @staticmethod
    def _through(callback: Callable[..., Any], values: tuple[Any, ...]) -> tuple[tuple[Any, ...], list[int]]:
        """``values`` with its differentiable tensors passed through the identity, and their places."""
        places = [i for i, value in enumerate(values) if isinstance(value, Tensor) and value.requires_grad]
        if not places or not graph.is_grad_enabled():
            return values, []
        results = _Watched.apply(callback, *(values[i] for i in places))
        results = results if isinstance(results, tuple) else (results,)
        replaced = list(values)
        for i, result in zip(places, results, strict=True):
            replaced[i] = result
        return tuple(replaced), places

    def inputs(self, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        self._number_of_inputs = len(inputs)
        places: list[int] = []

        def arrived(grads: tuple[Any, ...]) -> tuple[Any, ...]:
            spread: list[Any] = [None] * len(inputs)
            for i, grad in zip(places, grads, strict=True):
                spread[i] = grad
            final = self._call_hooks(tuple(spread))
            return tuple(final[i] for i in places)

        watched, found = self._through(arrived, inputs)
        places.extend(found)
        self._watches_inputs = bool(found)
        return watched

    def outputs(self, output: Any) -> Any:
        outputs = output if isinstance(output, tuple) else (output,)
        places: list[int] = []

        def arrived(grads: tuple[Any, ...]) -> tuple[Any, ...]:
            spread: list[Any] = [None] * len(outputs)
            for i, grad in zip(places, grads, strict=True):
                spread[i] = grad
            grad_output = tuple(spread)
            for hook in tuple(self._module._backward_pre_hooks.values()):
                replaced = hook(self._module, grad_output)
                if replaced is not None:
                    grad_output = replaced if isinstance(replaced, tuple) else (replaced,)
            self._grad_output = grad_output
            if not self._watches_inputs:  # no input has a gradient, so nothing more will arrive
                self._call_hooks((None,) * self._number_of_inputs)
            return tuple(grad_output[i] for i in places)

        watched, found = self._through(arrived, outputs)
        places.extend(found)
        return watched if isinstance(output, tuple) else watched[0]

    def _call_hooks(self, grad_input: tuple[Any, ...]) -> tuple[Any, ...]:
        for hook in tuple(self._module._backward_hooks.values()):
            replaced = hook(self._module, grad_input, self._grad_output)
            if replaced is not None:
                replaced = replaced if isinstance(replaced, tuple) else (replaced,)
                if len(replaced) != len(grad_input):
                    raise ArgumentError(
                        f"{type(self._module).__name__}: a full backward hook must return {len(grad_input)} gradients "
                        f"or None; got {len(replaced)}"
                    )
                grad_input = replaced
        return grad_input
