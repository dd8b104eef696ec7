"""How much work a call of a kernel is: the bytes that it must move, and the multiply-adds that it must do.

Both are properties of what is asked for, the same for every backend, and the least that it takes: every array that
the call is given is read once, every one that it makes is written once.  What a kernel reads twice, or writes to read
it again, is not counted; ``docs/traffic.md`` has that.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

from ._devices import known_arrays

_LISTS = (list, tuple)


def arrays_in(values: Any) -> Iterator[Any]:
    """The arrays among ``values``, those in lists and tuples included."""
    for value in values:
        kind = type(value)
        if kind in known_arrays:
            yield value
        elif kind in _LISTS:
            yield from arrays_in(value)


def shapes_of(arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    """The shapes of the arrays; of a list of arrays, as optimizers' steps take them, how many there are."""
    shapes: list[Any] = []
    for value in arguments:
        kind = type(value)
        if kind in known_arrays:
            shapes.append(value.shape)
        elif kind in _LISTS and value and type(value[0]) in known_arrays:
            shapes.append(len(value))
    return tuple(shapes)


def bytes_of(function: str, arguments: tuple[Any, ...], result: Any) -> int:
    """Bytes of the arrays that a call reads and writes, each once.

    A step of an optimizer reads all of its lists of arrays and overwrites all but the second, the gradients.  An
    embedding reads those rows of its table that it gives.
    """
    if function == "embedding_forward":
        return int(arguments[1].nbytes + 2 * result.nbytes)
    total = sum({id(array): array.nbytes for array in arrays_in((*arguments, result))}.values())
    if function.endswith("_step"):
        params, _, *states = (one for one in arguments if type(one) in _LISTS)
        total += sum(array.nbytes for array in arrays_in((params, *states)))
    return int(total)


def operations_of(package: str, function: str, arguments: tuple[Any, ...]) -> int:
    """Multiplications and additions of a call's products, 0 for operations whose time is not decided by them.

    The formula is the function ``operations`` of the operation's package.  Biases, activations and the like, which
    cost few operations for each byte, are not counted.
    """
    formula = getattr(sys.modules.get(package), "operations", None)
    return 0 if formula is None else int(formula(function, arguments))
