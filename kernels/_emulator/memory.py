"""The memory of the simulated GPU: allocations, what was written into them, and an optional limit.

Every array of the device stands on one *allocation*: a block of host memory that starts at a multiple
of 256 bytes, as ``cudaMalloc`` promises, and is given back when no array uses it any more.

``empty`` makes no promise about its contents, and code that reads them is wrong on a GPU even where
the bytes happen to be harmless.  So a block from ``empty`` is filled with 0xFF (NaN as a float, -1 as
an integer), and a *map* of what was written goes with it: one byte of the map for four bytes of the
block, bit i of it set once byte i of the four was written.  The kernels' stores set the bits; a write
from Python drops the whole map.

``RAWGRAD_EMULATED_MEMORY`` (bytes) limits the memory in use at one time; beyond it an allocation
raises :class:`OutOfMemoryError`, as on a GPU that is full.
"""

from __future__ import annotations

import gc
import os
import threading
import weakref
from typing import Any

import numpy as np

from .._errors import ArgumentError, OutOfMemoryError

ALIGNMENT = 256
#: Before and behind each block lies as much memory again, within these limits, that belongs to nobody: an index
#: that is not too far wrong meets it, and not another array.
SMALLEST_MARGIN, LARGEST_MARGIN = 4096, 1 << 20
#: What `empty` fills memory with.
POISON = 0xFF
#: How many bytes one byte of a map speaks for.
CELL = 4
_ALL = (1 << CELL) - 1

#: ``ndarray.base`` as NumPy has it; arrays of the device give another answer.
_numpy_base = np.ndarray.base.__get__


class Allocation:
    """One block of the device's memory.

    Attributes:
        address: of its first byte.
        nbytes: its size.
        written: the map of what was written, or None if everything was.
        root: a weak reference to the array for which the block was made.
        copied: the stream of the last asynchronous copy into it, and its number there (:mod:`.copies`).
        uses: by stream, the number of the last work that used it since.
    """

    __slots__ = ("address", "copied", "nbytes", "root", "uses", "written")

    def __init__(self, address: int, nbytes: int) -> None:
        self.address = address
        self.nbytes = nbytes
        self.written: np.ndarray | None = None
        self.root: weakref.ref[Any] | None = None
        self.copied: tuple[int, int] | None = None
        self.uses: dict[int, int] = {}

    def forget(self) -> None:
        """Take nothing in the block as written."""
        self.written = np.zeros(-(-self.nbytes // CELL), np.uint8)
        if beyond := self.nbytes % CELL:  # the last cell also speaks for bytes past the end
            self.written[-1] = _ALL & ~((1 << beyond) - 1)


class Pool:
    """Hands out the device's memory and keeps the account.  The names are those of ``cupy.cuda.MemoryPool``."""

    def __init__(self, limit: int = 0) -> None:
        self._limit = limit
        self._used = 0
        self._blocks: dict[int, Allocation] = {}  # by id() of the array that owns the memory
        self._lock = threading.RLock()  # a collection inside `allocate` may give blocks back

    def set_limit(self, size: int) -> None:
        """Allow ``size`` bytes in use at one time; 0 for no limit."""
        self._limit = size

    def get_limit(self) -> int:
        """The limit in bytes, 0 for none."""
        return self._limit

    def used_bytes(self) -> int:
        """Bytes in use."""
        return self._used

    def total_bytes(self) -> int:
        """Bytes taken from the system: those in use, because nothing is kept for later."""
        return self._used

    def free_bytes(self) -> int:
        """Bytes kept for later: none."""
        return 0

    def free_all_blocks(self) -> None:
        """Nothing is kept for later, so there is nothing to free."""

    def allocate(self, nbytes: int) -> tuple[np.ndarray, int, Allocation]:
        """A new block: the array that owns its memory, where in that array the block begins, and its record.

        Raises:
            OutOfMemoryError: the limit does not allow it.
        """
        with self._lock:
            if self._limit and self._used + nbytes > self._limit:
                gc.collect()  # arrays in reference cycles count as used until then
                if self._used + nbytes > self._limit:
                    raise OutOfMemoryError(
                        f"the simulated GPU is out of memory: asked for {nbytes:,} bytes; {self._used:,} of "
                        f"{self._limit:,} are in use in {len(self._blocks)} allocations "
                        "(RAWGRAD_EMULATED_MEMORY sets the limit)"
                    )
            margin = min(max(nbytes, SMALLEST_MARGIN), LARGEST_MARGIN)
            memory = np.empty(nbytes + ALIGNMENT + 2 * margin, np.uint8)
            start = margin + -(memory.ctypes.data + margin) % ALIGNMENT
            block = Allocation(memory.ctypes.data + start, nbytes)
            self._blocks[id(memory)] = block
            self._used += nbytes
            weakref.finalize(memory, self._free, id(memory)).atexit = False
            return memory, start, block

    def _free(self, key: int) -> None:
        with self._lock:
            self._used -= self._blocks.pop(key).nbytes

    def block_of(self, array: Any) -> Allocation | None:
        """The block on which ``array`` stands; None if it is not from here."""
        owner = self.owner_of(array)
        return None if owner is None else self._blocks[id(owner)]

    def owner_of(self, array: Any) -> Any:
        """The array that owns the memory of ``array``, found along its chain of bases; None if it is not from here."""
        while isinstance(array, np.ndarray):
            if id(array) in self._blocks:
                return array
            array = _numpy_base(array)
        return None


def _limit() -> int:
    text = os.environ.get("RAWGRAD_EMULATED_MEMORY", "0")
    try:
        limit = int(text)
    except ValueError:
        limit = -1
    if limit < 0:
        raise ArgumentError(f"RAWGRAD_EMULATED_MEMORY must be a number of bytes; got {text!r}")
    return limit


pool = Pool(_limit())


class _Allocator(threading.local):
    """What new arrays of a thread get their memory from."""

    def __init__(self) -> None:
        self.allocate: Any = pool.allocate


allocator = _Allocator()


def written_map(array: Any) -> tuple[np.ndarray | None, int]:
    """What was written into the allocation under ``array``.

    Returns:
        The map of the whole allocation, of dtype uint8, to be read and updated in place, or None if
        everything was written; and how many bytes into the allocation the first element of ``array``
        lies.
    """
    block = pool.block_of(array)
    if block is None:
        return None, 0
    return block.written, array.ctypes.data - block.address


def mark_written(array: Any) -> None:
    """Take everything in the allocation under ``array`` as written."""
    block = pool.block_of(array)
    if block is not None:
        block.written = None


def first_unwritten(array: np.ndarray) -> tuple[int, ...] | None:
    """The index of the first element of ``array`` of which a byte was never written; None if there is none."""
    written, offset = written_map(array)
    if written is None or not array.size:
        return None
    if (written == _ALL).all():
        mark_written(array)
        return None
    bits = np.unpackbits(written, bitorder="little").reshape(-1, 8)[:, :CELL].reshape(-1)
    of_elements = np.lib.stride_tricks.as_strided(
        bits[offset:], (*array.shape, array.itemsize), (*array.strides, 1), writeable=False
    ).all(-1)
    if of_elements.all():
        return None
    return tuple(int(i) for i in np.unravel_index(int(of_elements.argmin()), array.shape))
