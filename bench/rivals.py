"""How each peer is asked for one pass of an operation: three ways, the same for every operation.

A rival gets the operation's forward formula (:mod:`.formulas`) and gives a :class:`Way`: what is made of each set of
inputs beforehand, not timed, and the call that is timed.

======== ========================== ================================================
pass     prepared                   timed
======== ========================== ================================================
forward  –                          y = f(inputs)
backward y = f(inputs), its graph   the gradients of the inputs ``wrt`` from dL/dy
both     –                          y = f(inputs), then its gradients
======== ========================== ================================================
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from .formulas import JaxFormulas, ScipyFormulas, TinygradFormulas, TorchFormulas

Formula = Callable[..., Any]


class Way(NamedTuple):
    """One way to do a pass.

    Attributes:
        call: what is timed; gives an array or several, computed when it returns (on a GPU: queued).
        prepare: from a set of inputs to the arguments of ``call``.
    """

    call: Callable[..., Any]
    prepare: Callable[..., tuple[Any, ...]] = lambda *inputs: inputs


class Rival(Protocol):
    """What a peer has to know.

    Attributes:
        formulas: every operation's forward pass.
    """

    formulas: Any

    def put(self, array: np.ndarray) -> Any:
        """The library's array of the same values, on its device."""
        ...

    def host(self, array: Any) -> np.ndarray:
        """The values on the host."""
        ...

    def forward(self, f: Formula) -> Way:
        """``f`` of the inputs."""
        ...

    def backward(self, f: Formula, wrt: Sequence[int]) -> Way:
        """The gradients of ``f`` by its arguments ``wrt``; the last input is dL/dy."""
        ...

    def both(self, f: Formula, wrt: Sequence[int]) -> Way:
        """The result of ``f`` and its gradients; the last input is dL/dy, left out where ``f`` gives a number."""
        ...


class TorchRival:
    """PyTorch, eager, or with ``f`` compiled, or with other ``formulas`` on its tensors.

    The backward pass is the graph node's own, called without the engine that walks graphs, so that this does not
    count against it; where the graph has several nodes, the engine is used.
    """

    def __init__(self, device: str = "cpu", compiled: bool = False, formulas: Any = None) -> None:
        import torch

        self._torch, self._device, self._compiled = torch, device, compiled
        self.formulas = TorchFormulas() if formulas is None else formulas
        #: Nodes of compiled graphs, and those that Python defines, run in the engine alone.
        self._engine = compiled or formulas is not None
        if compiled:  # else a graph's backward pass may run once only
            from torch._functorch import config

            config.donated_buffer = False

    def put(self, array: np.ndarray) -> Any:
        """A tensor; on the CPU it shares the array's memory."""
        if array.dtype.name == "bfloat16":  # NumPy's is unknown to torch
            return self._torch.from_numpy(array.astype(np.float32)).to(self._device).bfloat16()
        if array.dtype == np.uint64:
            array = array.astype(np.int64)
        return self._torch.from_numpy(array).to(self._device)

    def host(self, array: Any) -> np.ndarray:
        """Its values, bfloat16 as float32."""
        array = array.detach()
        found: np.ndarray = (array.float() if array.dtype == self._torch.bfloat16 else array).cpu().numpy()
        return found

    def _f(self, f: Formula) -> Formula:
        if not self._compiled:
            return f
        self._torch._dynamo.reset()  # else after some shapes of the same formula it would silently run eagerly
        compiled: Formula = self._torch.compile(f, dynamic=False)
        return compiled

    def forward(self, f: Formula) -> Way:
        """No graph is made, since no input asks for gradients."""
        return Way(self._f(f))

    def _leaves(self, inputs: Sequence[Any], wrt: Sequence[int]) -> tuple[list[Any], list[Any]]:
        given = [a.detach().requires_grad_() if i in wrt else a for i, a in enumerate(inputs)]
        return given, [given[i] for i in wrt]

    def _pull(self, y: Any, leaves: Sequence[Any]) -> Callable[[Any], Any]:
        """From dL/dy to the gradients of ``leaves``, any number of times."""
        node = y.grad_fn
        after = [following for following, _ in node.next_functions if following is not None]
        if not self._engine and all(hasattr(following, "variable") for following in after):
            unused = (None,) * (len(node._input_metadata) - 1)  # gradients of the node's other results
            return lambda grad: node(grad, *unused)
        grad_of = self._torch.autograd.grad
        return lambda grad: grad_of(y, leaves, grad, retain_graph=True)

    def backward(self, f: Formula, wrt: Sequence[int]) -> Way:
        """From a graph that stays."""
        made = self._f(f)

        def prepare(*inputs: Any) -> tuple[Any, ...]:
            given, leaves = self._leaves(inputs[:-1], wrt)
            return self._pull(made(*given), leaves), inputs[-1]

        return Way(lambda pull, grad: _present(pull(grad)), prepare)

    def both(self, f: Formula, wrt: Sequence[int]) -> Way:
        """A graph for each call."""
        made, count = self._f(f), _arguments(f)

        def call(*inputs: Any) -> tuple[Any, ...]:
            given, leaves = self._leaves(inputs[:count], wrt)
            y = made(*given)
            if len(inputs) == count:
                return y.detach(), *self._torch.autograd.grad(y, leaves)
            return y.detach(), *_present(self._pull(y, leaves)(inputs[-1]))

        return Way(call)


def _present(gradients: Any) -> tuple[Any, ...]:
    """Those that are there, of one or of several."""
    return tuple(g for g in (gradients if isinstance(gradients, tuple) else (gradients,)) if g is not None)


def _arguments(f: Formula) -> int:
    """How many arrays ``f`` takes."""
    return int(f.__code__.co_argcount)


class JaxRival:
    """JAX, each pass compiled (``jax.jit``), its end waited for on the CPU.

    Args:
        threads: of the pool that XLA makes when JAX starts, one for each processor that it may use then; they stay
            on these processors.
        platform: ``"cpu"`` or ``"cuda"``.
    """

    def __init__(self, threads: int, platform: str = "cpu") -> None:
        usable = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
        if usable and platform == "cpu":
            os.sched_setaffinity(0, usable[:threads])
        elif platform != "cpu":  # leave memory to the others
            os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
        try:
            import jax

            jax.config.update("jax_enable_x64", True)  # float64 stays what it is, and so does float32
            (self._device, *_) = jax.devices(platform)
        finally:
            if usable:
                os.sched_setaffinity(0, usable)
        self._jax, self._platform = jax, platform
        self.formulas = JaxFormulas()
        self.wait: Callable[[Any], Any] = jax.block_until_ready

    def put(self, array: np.ndarray) -> Any:
        """An array on the device."""
        return self._jax.device_put(array, self._device)

    def host(self, array: Any) -> np.ndarray:
        """Its values."""
        return np.asarray(array)

    def _waited(self, compiled: Callable[..., Any]) -> Callable[..., Any]:
        if self._platform != "cpu":  # a turn waits once, at its end
            return compiled
        wait = self.wait
        return lambda *arguments: wait(compiled(*arguments))

    def _vjp(self, f: Formula, wrt: Sequence[int], inputs: Sequence[Any]) -> tuple[Any, Any]:
        """The result, and the function from dL/dy to the gradients."""

        def of_some(*some: Any) -> Any:
            every = list(inputs)
            for i, value in zip(wrt, some, strict=True):
                every[i] = value
            return f(*every)

        y, pull = self._jax.vjp(of_some, *(inputs[i] for i in wrt))
        return y, pull

    def forward(self, f: Formula) -> Way:
        """Compiled for the shapes of the inputs."""
        return Way(self._waited(self._jax.jit(f)))

    def backward(self, f: Formula, wrt: Sequence[int]) -> Way:
        """What the forward pass keeps is an input."""
        forward = self._waited(self._jax.jit(lambda *inputs: self._vjp(f, wrt, inputs)[1]))
        pulled = self._jax.jit(lambda pull, grad: pull(grad))
        return Way(self._waited(pulled), lambda *inputs: (forward(*inputs[:-1]), inputs[-1]))

    def both(self, f: Formula, wrt: Sequence[int]) -> Way:
        """Compiled as one."""
        count = _arguments(f)

        def whole(*inputs: Any) -> tuple[Any, ...]:
            y, pull = self._vjp(f, wrt, inputs[:count])
            grad = inputs[-1] if len(inputs) > count else self._jax.numpy.ones_like(y)
            return y, *pull(grad)

        return Way(self._waited(self._jax.jit(whole)))


class TinygradRival:
    """tinygrad, each pass captured (``TinyJit``), its end waited for.

    Args:
        threads: that its kernels on the CPU are cut for, if it is not loaded yet.
        device: ``"CPU"`` or ``"CUDA"``.
    """

    def __init__(self, threads: int, device: str = "CPU") -> None:
        if "tinygrad" not in sys.modules:
            os.environ["NUM_CPU_THREADS"] = str(threads)
        import tinygrad

        self._tinygrad, self._device = tinygrad, device
        self.formulas = TinygradFormulas()

    def put(self, array: np.ndarray) -> Any:
        """A tensor, there and contiguous."""
        return self._tinygrad.Tensor(array, device=self._device).contiguous().realize()

    def host(self, array: Any) -> np.ndarray:
        """Its values."""
        found: np.ndarray = array.numpy()
        return found

    def _captured(self, f: Callable[..., Sequence[Any]]) -> Way:
        tensor, device = self._tinygrad.Tensor, self._tinygrad.Device[self._device]

        def realized(*inputs: Any) -> tuple[Any, ...]:
            found = tuple(f(*inputs))
            tensor.realize(*found)
            return found

        captured = self._tinygrad.TinyJit(realized)

        def call(*inputs: Any) -> tuple[Any, ...]:
            found: tuple[Any, ...] = captured(*inputs)
            device.synchronize()
            return found

        return Way(call)

    def forward(self, f: Formula) -> Way:
        """Captured at the second call."""
        return self._captured(lambda *inputs: (f(*inputs),))

    def backward(self, f: Formula, wrt: Sequence[int]) -> Way:
        """tinygrad keeps no results of a forward pass between captures: the gradients compute what they need of it."""
        return self._captured(lambda *inputs: f(*inputs[:-1]).gradient(*(inputs[i] for i in wrt), gradient=inputs[-1]))

    def both(self, f: Formula, wrt: Sequence[int]) -> Way:
        """Captured as one."""
        count = _arguments(f)

        def whole(*inputs: Any) -> tuple[Any, ...]:
            y = f(*inputs[:count])
            grad = {"gradient": inputs[-1]} if len(inputs) > count else {}
            return y, *y.gradient(*(inputs[i] for i in wrt), **grad)

        return self._captured(whole)


class ScipyRival:
    """NumPy and SciPy: forward passes of a few operations."""

    def __init__(self) -> None:
        self.formulas = ScipyFormulas()

    def put(self, array: np.ndarray) -> Any:
        """The array itself."""
        return array

    def host(self, array: Any) -> np.ndarray:
        """The array itself."""
        return np.asarray(array)

    def forward(self, f: Formula) -> Way:
        """As it is."""
        return Way(f)

    def backward(self, f: Formula, wrt: Sequence[int]) -> Way:
        """It has no gradients."""
        raise NotImplementedError

    both = backward
