"""Lists of arrays as one argument of one launch: the host side of ``_cuda/tensor_list.cuh``.

An optimizer's step runs at every training step over the same shapes, with other gradients each time.  So all
that depends on the shapes is packed once, and a step packs the addresses alone.
"""

from __future__ import annotations

import itertools
import struct
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from ._contracts import MAX_ELEMENTS
from ._errors import ShapeError
from ._launch import Kernel, Packed, ceil_div, runtime_of

Arrays = Sequence[Any]

#: Threads of a block, and elements of the chunk that it owns: two vectors of four floats for a thread.  Small
#: chunks spread a small model over the whole GPU.
THREADS = 256
CHUNK = 2048
#: The values of the template parameter MAX: with five lists 64 tensors take 3 KB of arguments, 320 take 15 KB.
#: Longer lists take several launches.
ROOMS = (64, 320)

_FLOAT64 = np.dtype(np.float64)


class _Part(NamedTuple):
    """One launch: the struct but for the addresses."""

    tensors: slice
    room: int
    addresses: struct.Struct
    sizes: bytes
    blocks: int


def launch(kernel: Kernel, flags: tuple[bool, ...], lists: Sequence[Arrays], *arguments: Any) -> None:
    """Launch ``kernel[MAX, T, *flags](list, *arguments)`` over all tensors.

    Args:
        lists: lists of C-contiguous arrays of one dtype T on one device, the first the parameters; array i
            of each list has the size of parameter i.
        arguments: those that follow the list.

    Raises:
        ShapeError: an array has more elements than kernels can count.
    """
    for part in _parts(tuple([array.size for array in lists[0]]), len(lists)):
        arrays = [array for each in lists for array in each[part.tensors]]
        address = runtime_of(arrays[0]).address
        packed = Packed(part.addresses.pack(*map(address, arrays)) + part.sizes, arrays)
        kernel[(part.room, arrays[0].dtype, *flags)](part.blocks, THREADS, packed, *arguments)


def rate_pointers(lr: Any) -> tuple[Any, Any]:
    """The learning rate as the two pointers that kernels take, to the parameters' dtype and to double; one is null."""
    return (None, lr) if lr.dtype == _FLOAT64 else (lr, None)


@lru_cache(maxsize=256)
def _parts(sizes: tuple[int, ...], lists: int) -> list[_Part]:
    if max(sizes, default=0) > MAX_ELEMENTS:
        raise ShapeError(f"an array of a step has {max(sizes)} elements; at most {MAX_ELEMENTS} are supported")
    parts = []
    for start in range(0, len(sizes), ROOMS[-1]):
        own = sizes[start : start + ROOMS[-1]]
        room = next(room for room in ROOMS if len(own) <= room)
        *first_blocks, blocks = itertools.accumulate((ceil_div(size, CHUNK) for size in own), initial=0)
        if blocks == 0:
            continue  # empty arrays alone
        unused = room - len(own)
        addresses = struct.Struct("=" + f"{len(own)}Q{8 * unused}x" * lists)
        row = f"{len(own)}i{4 * unused}x"
        tail = struct.pack("=" + 2 * row + "2i", *own, *first_blocks, len(own), CHUNK)
        parts.append(_Part(slice(start, start + len(own)), room, addresses, tail, blocks))
    return parts
