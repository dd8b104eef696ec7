"""Runs kernels on the simulated GPU; the other half of :mod:`kernels._launch` is :mod:`kernels._cuda.runtime`.

A launch checks every access of every thread and raises :class:`LaunchError` with what it found.  The
threads of a block, and the blocks, take their turns in an order that changes from launch to launch
(forward, backward, shuffled), so that a result which depends on it does not stay the same by luck.
"""

from __future__ import annotations

import ctypes
import itertools
import math
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from .._errors import ArgumentError, LaunchError
from .arrays import written_map
from .build import Unit, runtime_library, unit
from .copies import clocks
from .findings import Finding, Range, RawFinding, Symbols, describe
from .graphs import Place
from .orders import BACKWARD, FORWARD, SHUFFLED, compared_orders, run_orders
from .streams import get_current_stream, recording

if TYPE_CHECKING:
    from .._launch import Kernel, Operand
    from .._tensor_map import TensorMap

_Triple = ctypes.c_uint32 * 3
#: Shared memory of a block of an H100; GPUs before it have less.
_MOST_SHARED = 232448
_MOST_BLOCKS = 2**31 - 1

#: The runtime has one launch at a time, whichever Python thread asks.
_launching = threading.Lock()


@dataclass(frozen=True)
class Traffic:
    """What a launch moved, in bytes.

    Attributes:
        global_read, global_written: by all threads together, as they asked for it.
        distinct_read, distinct_written: the same without repetition: what must move at least, if caches
            were perfect.
        shared_read, shared_written: to and from shared memory.
        atomics: number of atomic operations.
        barriers: number of barriers that blocks passed.
    """

    global_read: int
    global_written: int
    shared_read: int
    shared_written: int
    atomics: int
    distinct_read: int
    distinct_written: int
    barriers: int


@dataclass(frozen=True)
class LaunchRecord:
    """One launch on the emulator; ``complete`` is False if a fault ended it early."""

    kernel: str
    grid: tuple[int, ...]
    block: tuple[int, ...]
    traffic: Traffic
    seconds: float
    complete: bool = True


_records: ContextVar[list[LaunchRecord] | None] = ContextVar("rawgrad_emulator_records", default=None)


@contextmanager
def record_launches() -> Iterator[list[LaunchRecord]]:
    """Collect a :class:`LaunchRecord` for every launch inside the block."""
    records: list[LaunchRecord] = []
    token = _records.set(records)
    try:
        yield records
    finally:
        _records.reset(token)


@cache
def _library() -> ctypes.CDLL:
    library = ctypes.CDLL(str(runtime_library()))
    address, size = ctypes.c_void_p, ctypes.c_size_t
    numbers = (ctypes.c_uint32, ctypes.c_int, ctypes.c_uint64)
    library.rawgrad_launch.argtypes = (address, ctypes.c_char_p, _Triple, _Triple, _Triple, *numbers)
    library.rawgrad_findings.restype = ctypes.POINTER(RawFinding)
    library.rawgrad_barriers.restype = ctypes.c_uint64
    library.rawgrad_buffer.argtypes = (address, size, ctypes.c_int, ctypes.c_int, address, size)
    library.rawgrad_image.argtypes = (address, address)
    library.rawgrad_static_shared.argtypes = (address, size)
    library.rawgrad_traffic.argtypes = (ctypes.POINTER(ctypes.c_uint64),)
    return library


@dataclass(frozen=True)
class _Handle:
    """A compiled kernel instance."""

    name: str
    unit: Unit
    entry: Any
    argument_bytes: int
    cluster: tuple[int, int, int]


class EmulatedRuntime:
    """Runs kernels on this machine's CPU, one thread after the other, under all checks."""

    synchronous = True

    def __init__(self) -> None:
        self._turn = itertools.cycle((FORWARD, BACKWARD, SHUFFLED))
        #: One of FORWARD, BACKWARD, SHUFFLED or above (other shuffles) for all launches; None to change.
        self.order: int | None = None
        #: A thread that makes so many accesses (some seconds' worth) without a barrier counts as endless.
        self.patience = 2**27

    def architecture(self) -> int:
        """That of an H100: the newest whose instructions are emulated, those of ``sm_90a`` included.

        RAWGRAD_EMULATED_ARCH sets another; kernels for sm_90a are then refused, as on such a GPU.
        """
        said = os.environ.get("RAWGRAD_EMULATED_ARCH", "90")
        if not said.isdigit():
            raise ArgumentError(f"RAWGRAD_EMULATED_ARCH must be a number such as 80; got {said!r}")
        return int(said)

    def multiprocessors(self) -> int:
        """Those of an H100, so that shapes get the versions that they get there; blocks run one after the other."""
        return 132

    def address(self, array: Any) -> int:
        """Where the array's first element lies, in host memory."""
        return array.ctypes.data

    def tensor_map(self, tensor: TensorMap) -> bytes:
        """The plain description."""
        return tensor.description(self.address(tensor.array))

    def load(self, kernel: Kernel, expression: str) -> _Handle:
        """Compile the instance with its unit."""
        compiled = unit(kernel.path, kernel.unit(expression))
        number = compiled.entries[expression]
        size = getattr(compiled.library, f"rawgrad_bytes_{number}")
        size.restype = ctypes.c_size_t
        entry = getattr(compiled.library, f"rawgrad_entry_{number}")
        (instance,) = (one for one in kernel.instances() if one.expression == expression)
        return _Handle(expression, compiled, entry, size(), instance.cluster)

    def stream(self) -> int:
        """The same for all: a launch has ended when it returns."""
        return 0

    def bind(
        self,
        handle: _Handle,
        grid: tuple[int, ...],
        block: tuple[int, ...],
        shared: int,
        arguments: bytes,
        operands: Sequence[Operand],
    ) -> Callable[[], None]:
        """What runs :meth:`launch` with these arguments."""
        return lambda: self.launch(handle, grid, block, shared, arguments, operands)

    def launch(
        self,
        handle: _Handle,
        grid: tuple[int, ...],
        block: tuple[int, ...],
        shared: int,
        arguments: bytes,
        operands: Sequence[Operand],
    ) -> None:
        """Run all blocks of the grid, or note the launch in a capture; :class:`LaunchError` says what was wrong."""
        if len(arguments) != handle.argument_bytes:
            raise LaunchError(
                f"{handle.name}: its arguments take {handle.argument_bytes} bytes, packed were {len(arguments)}; "
                "a struct differs from the source's"
            )
        if math.prod(grid) > _MOST_BLOCKS:
            raise LaunchError(f"{handle.name}: the emulator runs at most {_MOST_BLOCKS} blocks; got a grid of {grid}")
        if not 0 <= shared <= _MOST_SHARED:
            raise LaunchError(f"{handle.name}: a block has at most {_MOST_SHARED} bytes of shared memory; got {shared}")

        graph = recording()
        if graph is not None:
            places = [(operand, Place(operand.array)) for operand in operands]
            named = [(operand._replace(array=None), place) for operand, place in places]
            graph.add(
                lambda: self.launch(
                    handle, grid, block, shared, arguments, [one._replace(array=place.array()) for one, place in named]
                )
            )
            return

        if clocks.following:
            for operand in operands:
                clocks.used(operand.array, get_current_stream().ptr)

        def once(order: int) -> list[Finding]:
            return self._once(handle, grid, block, shared, order, arguments, operands)

        orders = compared_orders()
        if orders:
            findings = run_orders(orders, once, operands)
        else:
            findings = once(next(self._turn) if self.order is None else self.order)
        if findings:
            raise emulation_error(handle.name, grid, block, findings)

    def _once(
        self,
        handle: _Handle,
        grid: tuple[int, ...],
        block: tuple[int, ...],
        shared: int,
        order: int,
        arguments: bytes,
        operands: Sequence[Operand],
    ) -> list[Finding]:
        """Run the kernel under one order; what was found."""
        library = _library()
        how = (shared, order, self.patience)
        with _launching:
            ranges = self._register(library, handle.unit, operands)
            start = time.perf_counter()
            sizes = _Triple(*grid), _Triple(*block), _Triple(*handle.cluster)
            found = library.rawgrad_launch(handle.entry, arguments, *sizes, *how)
            seconds = time.perf_counter() - start
            raw = library.rawgrad_findings()[: max(found, 0)]
            traffic, complete = _traffic(library), bool(library.rawgrad_complete())
            symbols = Symbols(handle.unit.path, handle.unit.base, ranges, handle.unit.statics)
            findings = [describe(finding, symbols) for finding in raw]
        if found < 0:
            raise LaunchError(f"{handle.name}: no memory for the stacks of {block} threads")
        records = _records.get()
        if records is not None:
            records.append(LaunchRecord(handle.name, grid, block, traffic, seconds, complete))
        return findings

    def _register(self, library: ctypes.CDLL, of: Unit, operands: Sequence[Operand]) -> list[Range]:
        """Tell the runtime what the launch may touch, in order of address; overlapping arrays are joined."""
        library.rawgrad_image(of.base, of.end)
        for _, address, size in of.statics:
            library.rawgrad_static_shared(address, size)
        joined: list[tuple[Range, bool, Any]] = []
        given = sorted((o for o in operands if o.array.nbytes), key=lambda o: self.address(o.array))
        for operand in given:
            array, begin = operand.array, self.address(operand.array)
            shape, dtype = tuple(array.shape), str(array.dtype)
            here = Range(operand.name, begin, array.nbytes, dtype, shape, array.itemsize)
            if joined and begin < joined[-1][0].address + joined[-1][0].nbytes:
                last, constant, first_array = joined.pop()
                end = max(last.address + last.nbytes, begin + array.nbytes)
                name = last.name if operand.name == last.name else f"{last.name}, {operand.name}"
                here = Range(name, last.address, end - last.address, last.dtype, last.shape, last.itemsize)
                joined.append((here, constant and operand.constant, first_array))
            else:
                joined.append((here, operand.constant, array))
        for here, constant, array in joined:
            written, offset = written_map(array)
            pointer = 0 if written is None else written.ctypes.data
            cell = min(4, here.itemsize)
            library.rawgrad_buffer(here.address, here.nbytes, constant, cell, pointer, offset)
        return [here for here, _, _ in joined]


def _traffic(library: ctypes.CDLL) -> Traffic:
    counts = (ctypes.c_uint64 * 8)()
    library.rawgrad_traffic(counts)
    names = ("global_read", "global_written", "shared_read", "shared_written", "atomics", "distinct_read")
    named = dict(zip((*names, "distinct_written"), counts, strict=False))
    return Traffic(**named, barriers=int(library.rawgrad_barriers()))


def emulation_error(
    kernel: str, grid: tuple[int, ...], block: tuple[int, ...], findings: Sequence[Finding]
) -> LaunchError:
    """The error that carries ``findings``, also as its attribute of that name."""
    count = f"{len(findings)} findings" if len(findings) > 1 else "1 finding"
    texts = [f"{i}. " + f.text.replace("\n", "\n   ") for i, f in enumerate(findings, 1)]
    error = LaunchError(f"{kernel}, grid {grid}, block {block}: {count} of the emulator\n" + "\n".join(texts))
    error.findings = tuple(findings)
    return error
