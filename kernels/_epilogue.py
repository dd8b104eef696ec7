"""How a product ends: the host side of ``_cuda/epilogue.cuh``."""

from __future__ import annotations

import math
import struct
from functools import lru_cache
from typing import Any, NamedTuple

from ._launch import Packed, runtime_of
from .activation.cuda import kind_number

#: As the struct Epilogue lies in memory: saved, offset, seed, scale; last_dropped, activation, gradient; to 8 bytes.
_LAYOUT = struct.Struct("=3QdI2i4x")


class Ending(NamedTuple):
    """What follows a product and its bias; the attributes are those of :func:`.gemm.gemm`."""

    activation: str | None = None
    p: float = 0.0
    seed: int = 0
    offset: Any = None
    gradient: str | None = None
    saved: Any = None

    def numbers(self) -> tuple[float, int]:
        """The factor of what is kept, and the largest word that drops its element."""
        return 1 / (1 - self.p) if self.p < 1 else 0.0, math.ceil(self.p * 2**32) - 1

    def packed(self) -> Packed:
        """The struct of the sources."""
        arrays = [array for array in (self.saved, self.offset if self.p else None) if array is not None]
        if not arrays:
            return _plain(self.activation)
        address = runtime_of(arrays[0]).address
        saved = 0 if self.saved is None else address(self.saved)
        offset, seed, scale, last = 0, 0, 0.0, 0
        if self.p:
            offset, seed, (scale, last) = address(self.offset), self.seed, self.numbers()
        kinds = kind_number(self.activation), kind_number(self.gradient)
        return Packed(_LAYOUT.pack(saved, offset, seed, scale, last, *kinds), arrays, True)


@lru_cache
def _plain(activation: str | None) -> Packed:
    """An activation and nothing else: most products."""
    return Packed(_LAYOUT.pack(0, 0, 0, 0.0, 0, kind_number(activation), 0), (), True)


#: Nothing follows.
NOTHING = Ending()
