"""Tensor maps: how the tensor memory accelerator (TMA) of sm_90 sees an array.

A kernel takes one as ``const __grid_constant__ TensorMap`` (``_cuda/tma.cuh``); a launch gives a
:class:`TensorMap` for it.  On a GPU the driver encodes it into 128 opaque bytes (``_cuda/tensor_map.py``); for the
emulator they hold the plain description.

Source of the limits: NVIDIA, *CUDA Driver API*, "Tensor Map Object Management", cuTensorMapEncodeTiled.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any

import numpy as np

from ._dtypes import BFLOAT16
from ._errors import ArgumentError, DtypeError, ShapeError

#: Bytes of a map, and of which it must begin at a multiple.
MAP_BYTES, MAP_ALIGNMENT = 128, 64
#: The driver's numbers for element types; that of float32 which becomes tf32 on its way.
DTYPES = {np.dtype(name): code for code, name in enumerate("u1 u2 u4 i4 u8 i8 f2 f4 f8".split())} | {BFLOAT16: 9}
TF32 = 11
#: And for swizzles, by bytes.
SWIZZLES = {0: 0, 32: 1, 64: 2, 128: 3}
_MAGIC = 0x70616D20726F736E
_MOST_DIMENSIONS, _LARGEST_BOX = 5, 256
_TEXT = struct.Struct("<QQ4Q4I5I5I")


class TensorMap:
    """An array of 2 to 5 dimensions, from which boxes are copied to shared memory or back.

    Args:
        array: C-contiguous, on the device.  It begins, and so does each of its rows, at a multiple of 16 bytes.
        box: what one copy moves, in elements, one number for each dimension.
        swizzle: 128, 64, 32: the box has rows of as many bytes, whose pieces of 16 bytes change places as
            ``_cuda/tma.cuh`` tells; 0 for none.
        columns: so many elements of each row belong to the tensor, the rest is padding; by default all.
        to_tf32: float32 numbers are rounded to tf32 on their way to shared memory.
        writes: whether the kernel writes the array through the map.

    Raises:
        ArgumentError, DtypeError, ShapeError: TMA cannot do that.
    """

    def __init__(
        self,
        array: Any,
        box: Sequence[int],
        swizzle: int = 0,
        columns: int | None = None,
        to_tf32: bool = False,
        writes: bool = False,
    ) -> None:
        self.array, self.box, self.swizzle, self.to_tf32, self.writes = array, tuple(box), swizzle, to_tf32, writes
        self.sizes = (*array.shape[:-1], array.shape[-1] if columns is None else columns)
        item = array.itemsize
        if array.dtype not in DTYPES or (to_tf32 and array.dtype != np.float32):
            why = "tf32 is made of float32" if to_tf32 else "no such element"
            raise DtypeError(f"tensor map: {why}: {array.dtype}")
        if not 2 <= array.ndim <= _MOST_DIMENSIONS or not array.flags.c_contiguous:
            raise ShapeError(f"tensor map: needs a C-contiguous array of 2 to 5 dimensions; got shape {array.shape}")
        if min(self.sizes) < 1 or self.sizes[-1] > array.shape[-1]:
            raise ShapeError(f"tensor map: every dimension must have elements, in the array; got {self.sizes}")
        if array.shape[-1] * item % 16:
            raise ShapeError(f"tensor map: rows must be a multiple of 16 bytes; got {array.shape[-1]} of {item} bytes")
        if len(self.box) != array.ndim or not all(1 <= side <= _LARGEST_BOX for side in self.box):
            raise ArgumentError(f"tensor map: a box has {array.ndim} sides of 1 to 256; got {self.box}")
        row = self.box[-1] * item
        if swizzle not in SWIZZLES or row % 16 or (swizzle and row != swizzle):
            raise ArgumentError(f"tensor map: with swizzle {swizzle}, rows of a box cannot have {row} bytes")

    def strides(self) -> list[int]:
        """Bytes from one element to the next, of all dimensions but the last; the fastest first."""
        return list(self.array.strides[-2::-1])

    def type_code(self) -> int:
        """The driver's number of the element type."""
        return TF32 if self.to_tf32 else DTYPES[self.array.dtype]

    def aligned(self, address: int) -> int:
        """``address``, if a tensor may begin there."""
        if address % 16:
            raise ArgumentError(f"tensor map: the array must begin at a multiple of 16 bytes; got {address:#x}")
        return address

    def description(self, address: int) -> bytes:
        """What the emulator reads: ``TensorMapText`` of ``_emulator/async.h``."""
        rank = self.array.ndim

        def five(values: Sequence[int]) -> list[int]:
            return [*reversed(values), *[1] * (5 - rank)]

        strides = [*self.strides(), *[0] * (5 - rank)]
        head = rank, self.array.itemsize, self.swizzle, int(self.to_tf32)
        text = _TEXT.pack(_MAGIC, self.aligned(address), *strides, *head, *five(self.sizes), *five(self.box))
        return text.ljust(MAP_BYTES, b"\0")
