"""What the GPU can do at most: bytes copied in a second, operations of matrix products, and what a launch costs.

They are measured in the run whose rows they judge, before and after each row, since clocks change, and are the best
of several tries.  Bytes are counted as read plus written.  The products are a library's (cuBLAS) at a size that fills
the GPU, in the row's own precision: what a kernel passes is the library, not the hardware.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from ..kernels._devices import device_named
from ..kernels._dtypes import BFLOAT16
from ..kernels.gemm import gemm
from .gpu_contestants import TORCH, Timer, in_tf32, torch_in_tf32
from .results import Rates

_TRIES = 5
#: Bytes that a copy reads, and the side of the products by precision.
COPIED = 2**30
SIDES = {"float32": 4096, "tf32": 8192, "bfloat16": 8192, "float64": 4096}


class GpuLimits:
    """The limits of this GPU; arrays are made when they are first needed, and kept.

    Args:
        timer: times the tries.
        peers: who is here: with torch all products are its, else CuPy's in float32 and float64, and ours.
        copied, sides: as :data:`COPIED` and :data:`SIDES`.
    """

    def __init__(
        self, timer: Timer, peers: Sequence[str], copied: int = COPIED, sides: dict[str, int] | None = None
    ) -> None:
        self._timer, self._peers, self._copied, self._sides = timer, peers, copied, sides or SIDES
        self._device = device_named("cuda")
        self._copy: Callable[[], Any] | None = None
        self._products: dict[str, Callable[[], Any]] = {}

    def _best(self, call: Callable[[], Any]) -> float:
        """Seconds of the quickest of some tries, after one that does not count."""
        return min([self._timer.seconds(call, 1e-4) for _ in range(1 + _TRIES)][1:])

    def bandwidth(self) -> float:
        """Bytes per second of a copy from one array to another."""
        if self._copy is None:
            ones = np.ones(self._copied // 4, np.float32)
            source, target = self._device.from_host(ones), self._device.from_host(ones)
            self._copy = partial(self._device.array_module.copyto, target, source)
        return 2 * self._copied / self._best(self._copy)

    def peak(self, precision: str) -> float:
        """Operations per second of a product in ``precision``, a key of :data:`SIDES`."""
        if precision not in self._products:
            self._products[precision] = self._product(precision)
        return 2 * self._sides[precision] ** 3 / self._best(self._products[precision])

    def _product(self, precision: str) -> Callable[[], Any]:
        side = self._sides[precision]
        drawn = np.random.default_rng(0).standard_normal((side, side), np.float32)
        if TORCH in self._peers:
            import torch

            kind = {"bfloat16": torch.bfloat16, "float64": torch.float64}.get(precision, torch.float32)
            a = torch.from_numpy(drawn).cuda().to(kind)
            call = torch_in_tf32(torch.mm) if precision == "tf32" else torch.mm
            return partial(call, a, a)
        dtype = {"bfloat16": BFLOAT16, "float64": np.dtype("f8")}.get(precision, np.dtype("f4"))
        x = self._device.from_host(drawn.astype(dtype))
        if precision in ("float32", "float64"):
            return lambda: x @ x
        return partial(in_tf32(gemm) if precision == "tf32" else gemm, x, x)

    def rates(self, precision: str) -> Rates:
        """Both, as they are now."""
        return Rates(self.bandwidth(), self.peak(precision))
