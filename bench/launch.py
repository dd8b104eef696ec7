"""What Python costs a kernel launch: everything up to the runtime, with one that does nothing.

``python -m rawgrad.bench.launch`` prints a row for each part.  No GPU is needed: host arrays play the device's.
"""

from __future__ import annotations

import timeit
from collections.abc import Callable
from typing import Any

import numpy as np

from ..kernels import _launch, gemm
from ..kernels._devices import Device, register_device
from ..kernels._epilogue import NOTHING
from ..kernels._layout import contiguous
from ..kernels.gemm import cuda as launcher


class _Array(np.ndarray):
    """An array of the device that does nothing."""


class _Runtime:
    """Takes launches and forgets them."""

    synchronous = False

    def architecture(self) -> int:
        return 80

    def multiprocessors(self) -> int:
        return 108

    def stream(self) -> int:
        return 0

    def address(self, array: Any) -> int:
        return 4096

    def load(self, kernel: Any, expression: str) -> str:
        return expression

    def tensor_map(self, tensor: Any) -> bytes:
        return bytes(128)

    def bind(self, *_: Any) -> Callable[[], None]:
        return _nothing


def _nothing() -> None:
    pass


def _microseconds(call: Callable[[], Any], calls: int = 20_000) -> float:
    """The quickest of seven rounds: what is slower was disturbed."""
    return min(timeit.repeat(call, number=calls, repeat=7)) / calls * 1e6


def rows() -> list[tuple[str, float]]:
    """(what, microseconds) of each part."""
    register_device(Device("cuda", _Array, np, "nothing"))
    _launch._runtimes[_Array] = _Runtime()
    a, b, y = (np.zeros((16, 16), np.float32).view(_Array) for _ in range(3))
    instance = launcher._PLAIN[a.dtype, False, False]
    arguments = (a, b, None, y, 16, 16, 16, 1, 256, 256, NOTHING.packed())
    checked = contiguous(lambda a, b, bias, out: None, lambda a, b, bias, out: None, "c_contiguous")
    return [
        ("is every array contiguous? (2 arrays)", _microseconds(lambda: checked(a, b, None, None))),
        (
            "a launch: types, ranges, sizes, packing (11 arguments)",
            _microseconds(lambda: instance((1, 1, 1), (16, 16), *arguments)),
        ),
        ("the sizes of a matrix product", _microseconds(lambda: gemm.geometry(a.shape, b.shape))),
    ]


if __name__ == "__main__":
    for what, time in rows():
        print(f"{what:56} {time:6.2f} µs")
