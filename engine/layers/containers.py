"""Layers made of layers: ``Sequential`` and ``ModuleList``."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import groupby, islice, takewhile
from typing import Any, Self, overload

from ...autograd import functional as F
from ...autograd import graph
from ...kernels._contracts import pair
from ...kernels._errors import ArgumentError, IndexRangeError, RawgradError
from ..module import Module, indented
from .activation import ReLU, Sigmoid, Tanh
from .conv2d import Conv2d
from .dropout import Dropout
from .linear import Linear
from .max_pool2d import MaxPool2d
from .pad import ZeroPad2d

#: Activations that ``F.linear_layers`` takes over from the layer after a linear one.
_ACTIVATIONS: dict[type, str] = {ReLU: "relu", Sigmoid: "sigmoid", Tanh: "tanh"}

#: The layers that may run together with those behind them.
_FIRST = frozenset((Linear, Conv2d, ZeroPad2d))


def _fusion(layers: list[Module]) -> tuple[Callable[[Any], Any], int, int] | None:
    """One call for the first of ``layers``, of how many, and which one an error concerns; None for no such call."""
    plain = takewhile(_is_plain, layers)
    return _linear_layers(list(plain)) if type(layers[0]) is Linear else _convolution(list(islice(plain, 4)))


def _linear_layers(layers: list[Any]) -> tuple[Callable[[Any], Any], int, int] | None:
    """Linear layers, each with the activation and the dropout behind it that are there, as long as they fit.

    A layer that does not fit the one before it is left to itself, so that its error is its own.
    """
    taken: list[tuple[Any, Any, str | None, float]] = []
    count = 0
    while count < len(layers) and type(layers[count]) is Linear:
        linear: Any = layers[count]
        if taken and not _fits(linear, taken[-1][0]):
            break
        activation = _ACTIVATIONS.get(type(layers[count + 1])) if count + 1 < len(layers) else None
        count += 1 + (activation is not None)
        p = 0.0
        # Behind sigmoid and tanh it is a node of its own, whose gradient is theirs: they need their results.
        if count < len(layers) and type(layers[count]) is Dropout and activation in (None, "relu"):
            p = layers[count].p if layers[count].training else 0.0
            count += 1
        taken.append((linear.weight, linear.bias, activation, p))
    return (lambda x: F.linear_layers(x, taken), count, 0) if count > 1 else None


def _fits(linear: Linear, weight: Any) -> bool:
    """Whether ``linear`` takes what a layer of that weight gives."""
    own, bias = linear.weight, linear.bias
    same = own.array.dtype == weight.array.dtype and type(own.array) is type(weight.array)
    bias_fits = bias is None or (bias.shape == own.shape[:1] and bias.array.dtype == own.array.dtype)
    return same and bias_fits and own.shape[1:] == weight.shape[:1]


def _convolution(layers: list[Any]) -> tuple[Callable[[Any], Any], int, int] | None:
    """A convolution with the zeros in front of it, and the ReLU and pooling behind it, that are there."""
    kinds = [type(layer) for layer in layers]
    first = int(kinds[:1] == [ZeroPad2d])
    if kinds[first : first + 1] != [Conv2d]:
        return None
    conv = layers[first]
    padding = conv.padding
    if first:
        left, right, top, bottom = layers[0].padding
        vertical, horizontal = pair("Conv2d", "padding", conv.padding, 0)
        padding = (top + vertical, bottom + vertical), (left + horizontal, right + horizontal)
    options = conv.weight, conv.bias, conv.stride, padding, conv.dilation, conv.groups
    if kinds[first + 1 : first + 3] == [ReLU, MaxPool2d]:
        pool = layers[first + 2]
        window = {
            "kernel_size": pool.kernel_size,
            "pool_stride": pool.stride,
            "pool_padding": pool.padding,
            "pool_dilation": pool.dilation,
            "ceil_mode": pool.ceil_mode,
        }
        return lambda x: F.conv2d_relu_pool(x, *options, **window), first + 3, first
    if kinds[first + 1 : first + 2] == [ReLU]:
        return lambda x: F.conv2d(x, *options, activation="relu"), first + 2, first
    return (lambda x: F.conv2d(x, *options), 2, 1) if first else None


def _is_plain(layer: Module) -> bool:
    """Whether nobody watches ``layer`` and its forward is its class's."""
    watched = layer._hooks or layer._pre_hooks or layer._backward_hooks or layer._backward_pre_hooks
    return not watched and "forward" not in layer.__dict__


class _Indexed(Module):
    """Children known by their position."""

    def _key(self, index: int) -> str:
        """The name of the child at ``index``, which may count from the end."""
        keys = list(self._modules)
        try:
            return keys[operator.index(index)]
        except IndexError:
            raise IndexRangeError(
                f"{type(self).__name__}: index must lie in [{-len(keys)}, {len(keys)}); got {index}"
            ) from None
        except TypeError:
            raise ArgumentError(f"{type(self).__name__}: index must be an integer or a slice; got {index!r}") from None

    def __len__(self) -> int:
        return len(self._modules)

    def __iter__(self) -> Iterator[Module]:
        return iter(self._modules.values())

    def __setitem__(self, index: int, module: Module) -> None:
        self.add_module(self._key(index), module)

    def __delitem__(self, index: int | slice) -> None:
        keys = list(self._modules)
        gone = set(keys[index]) if isinstance(index, slice) else {self._key(index)}
        self._keep([(key, module) for key, module in self._modules.items() if key not in gone])

    def _keep(self, left: list[tuple[str, Module]]) -> None:
        """Have just the children ``left``; where the names are numbers, count them anew."""
        numbered = all(key.isdigit() for key, _ in left)
        self._modules.clear()
        for i, (key, module) in enumerate(left):
            self.add_module(str(i) if numbered else key, module)

    def append(self, module: Module) -> Self:
        """Add ``module`` at the end, named by its position."""
        self.add_module(str(len(self)), module)
        return self

    def extend(self, modules: Iterable[Module]) -> Self:
        """Add all of ``modules`` at the end."""
        for module in list(modules):
            self.append(module)
        return self

    def insert(self, index: int, module: Module) -> Self:
        """Add ``module`` before position ``index``; positions after it move up."""
        if not isinstance(module, Module):
            raise ArgumentError(f"{type(self).__name__}: must hold Modules; got {type(module).__qualname__}")
        values = list(self._modules.values())
        values.insert(operator.index(index), module)
        self._modules.clear()
        return self.extend(values)


class Sequential(_Indexed):
    """Layers one after the other.

    Args:
        layers: the layers, named ``"0"``, ``"1"``, …; or one mapping of names to layers.

    Slices are Sequentials that share the layers, under the names they have here.

    ``Linear`` layers, one after the other or with activations and ``Dropout`` in between, run as one call of
    ``F.linear_layers``; a ``Conv2d`` with a ``ZeroPad2d`` before it and a ``ReLU`` after it as one of ``F.conv2d``,
    and with a ``MaxPool2d`` after these as one of ``F.conv2d_relu_pool``.  None of them may have hooks, and in anomaly
    mode each runs by itself.

    Attributes:
        fuse: whether they may; settable on an instance or on the class.
    """

    fuse: bool = True

    def __init__(self, *layers: Module | Mapping[str, Module]) -> None:
        super().__init__()
        if len(layers) == 1 and isinstance(layers[0], Mapping):
            named: Mapping[str, Any] = layers[0]
        else:
            named = {str(i): layer for i, layer in enumerate(layers)}
        for name, layer in named.items():
            self.add_module(name, layer)

    @overload
    def __getitem__(self, index: slice) -> Sequential: ...
    @overload
    def __getitem__(self, index: int) -> Module: ...
    def __getitem__(self, index: int | slice) -> Module:
        if isinstance(index, slice):
            return type(self)(dict(list(self._modules.items())[index]))
        return self._modules[self._key(index)]

    def forward(self, input: Any) -> Any:
        layers = list(self._modules.values())
        fuse = self.fuse and not graph.current_mode().anomaly
        index = blamed = 0
        try:
            while index < len(layers):
                layer = layers[index]
                fused = _fusion(layers[index:]) if fuse and type(layer) in _FIRST else None
                call, count, blamed = fused or (layer, 1, 0)
                input = call(input)
                index += count
        except RawgradError as error:
            # A layer may stand here under several names; only here is it known which one failed.
            layer = layers[index + blamed]
            if error.__dict__.get("_module", layer) is layer:
                self._prefix(error, list(self._modules)[index + blamed])
            raise
        return input


class ModuleList(_Indexed):
    """A list of modules, whose parameters the owner has; calling them is up to the owner."""

    def __init__(self, modules: Iterable[Module] = ()) -> None:
        super().__init__()
        self.extend(modules)

    @overload
    def __getitem__(self, index: slice) -> ModuleList: ...
    @overload
    def __getitem__(self, index: int) -> Module: ...
    def __getitem__(self, index: int | slice) -> Module:
        if isinstance(index, slice):
            return type(self)(list(self._modules.values())[index])
        return self._modules[self._key(index)]

    def __repr__(self) -> str:
        lines, start = [], 0
        for text, same in groupby(repr(module) for module in self):
            number = len(list(same))
            name = f"({start}): " if number == 1 else f"({start}-{start + number - 1}): {number} x "
            lines.append(name + indented(text))
            start += number
        return self._repr_with(lines)
