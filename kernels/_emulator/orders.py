"""Running a launch under several orders of its threads and blocks, and comparing what they write.

A race is found in one run, whatever the order, because the emulator knows what is ordered and what is
not.  But a kernel without races may still give results that depend on the order: floating-point sums by
``atomicAdd``, places in a list handed out by a counter.  rawgrad promises the same bits every time, so::

    with compare_orders():
        kernel(grid, block, x, y)

runs each launch inside the block several times from the same contents of its arrays, and a difference
in what is written is a finding like any other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

import numpy as np

from .arrays import plain, written_map
from .findings import ORDER_KIND, Finding

if TYPE_CHECKING:
    from .._launch import Operand

FORWARD, BACKWARD, SHUFFLED = range(3)
#: Threads and blocks forward, backward, and in three different shuffles.
ORDERS = (FORWARD, BACKWARD, SHUFFLED, SHUFFLED + 1, SHUFFLED + 2)

_compared: ContextVar[tuple[int, ...]] = ContextVar("rawgrad_emulator_orders", default=())


@contextmanager
def compare_orders(orders: Sequence[int] = ORDERS) -> Iterator[None]:
    """Run each launch inside the block under all ``orders``; a difference is a finding, so a LaunchError.

    The arrays are left as the first order leaves them.
    """
    token = _compared.set(tuple(orders))
    try:
        yield
    finally:
        _compared.reset(token)


def compared_orders() -> tuple[int, ...]:
    """The orders that are to be compared in this context; none if nothing is."""
    return _compared.get()


def order_name(order: int) -> str:
    """In words."""
    return ("forward", "backward", "shuffled")[order] if order <= SHUFFLED else f"shuffled ({order - SHUFFLED + 1})"


def run_orders(
    orders: Sequence[int], launch: Callable[[int], list[Finding]], operands: Sequence[Operand]
) -> list[Finding]:
    """Launch once under each order, from the same contents of ``operands``.

    Args:
        launch: runs the kernel under the order that it is given, and gives the findings.

    Returns:
        All findings, each instruction's once; then the differences in what was written between those
        orders that had no finding.
    """
    before = [_contents(operand.array) for operand in operands]
    first: tuple[int, list[Any]] | None = None
    findings: dict[Any, Finding] = {}
    differences: dict[str, Finding] = {}
    left: list[Any] = []
    for order in orders:
        for operand, contents in zip(operands, before, strict=True):
            _restore(operand.array, contents)
        found = launch(order)
        for finding in found:
            findings.setdefault((finding.kind, finding.places, finding.argument), finding)
        after = [_contents(operand.array) for operand in operands]
        left = left or after
        if found:
            continue
        if first is None:
            first = order, after
            continue
        for operand, one, other in zip(operands, first[1], after, strict=True):
            if operand.name not in differences and not np.array_equal(_bytes(one[0]), _bytes(other[0])):
                names = order_name(first[0]), order_name(order)
                differences[operand.name] = _difference(operand.name, one[0], other[0], names)
    for operand, contents in zip(operands, left, strict=True):
        _restore(operand.array, contents)
    return [*findings.values(), *differences.values()]


def _contents(array: Any) -> tuple[np.ndarray, np.ndarray | None]:
    """Copies of the values and of the map of what was written."""
    written, _ = written_map(array)
    return plain(array).copy(), None if written is None else written.copy()


def _restore(array: Any, contents: tuple[np.ndarray, np.ndarray | None]) -> None:
    plain(array)[...] = contents[0]
    written, _ = written_map(array)
    if written is not None and contents[1] is not None:
        written[...] = contents[1]


def _bytes(array: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)


def _difference(name: str, one: np.ndarray, other: np.ndarray, orders: tuple[str, str]) -> Finding:
    different = (_bytes(one) != _bytes(other)).reshape(-1, one.itemsize).any(axis=1)
    element = int(different.argmax())
    index = f" = {[int(i) for i in np.unravel_index(element, one.shape)]}" if one.ndim > 1 else ""
    text = (
        f"{ORDER_KIND}: {name} ({one.dtype}{list(one.shape)}), element {element}{index}\n"
        f"it is {one.flat[element]} when threads run {orders[0]}, and {other.flat[element]} {orders[1]}; "
        f"{int(different.sum())} of {one.size} elements differ"
    )
    return Finding(ORDER_KIND, text, (), name, element, int(different.sum()))
