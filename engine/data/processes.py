"""Readers that are processes, for reading that holds the interpreter lock.

Each is spawned, never forked, and answers to a thread of the prefetcher that waits for it; so order,
bounds and errors are the prefetcher's, as with threads.  A batch comes through shared memory: *blocks*
without a name (``memfd_create``; elsewhere a file that is removed at once), whose descriptors pass
through the socket between the two.  What has no name cannot be left behind, whoever is killed.

The process makes blocks and writes into those that are free; the parent says with each order which
are free again, because no array refers to them any more (``buffers.py``).
"""

from __future__ import annotations

import mmap
import os
import pickle
import signal
import tempfile
import threading
import traceback
from collections.abc import Callable, Iterable
from multiprocessing import get_context, reduction
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

import numpy as np

from ...kernels._errors import ArgumentError, DataError
from .assemble import Assembler, mapped
from .buffers import countable, fits, is_alone, shaped
from .dataset import raw_array
from .prefetch import Stopped, Ticket, never

#: Smaller arrays are sent as they are.
_SMALL = 4096
#: Blocks of one process that may hold batches in use, each a descriptor; whoever keeps more gets copies.
_LENT = 32
#: Free blocks of one process that are kept.
_KEPT = 16
#: Seconds that a process which was asked to end is waited for, before it is made to.
_PATIENCE = 0.04


class _Place(NamedTuple):
    """Stands in a message for an array that lies in a block."""

    block: int
    shape: tuple[int, ...]
    dtype: str


def packed(assembler: Assembler) -> bytes:
    """``assembler`` for :class:`Remote`."""
    try:
        return bytes(reduction.ForkingPickler.dumps(assembler))
    except Exception as error:  # whatever the data set's own pickling raises
        raise ArgumentError(
            "DataLoader: with processes, the data set, its transforms and collate_fn must be such that pickle takes "
            f"them: functions and classes of a module, no lambdas; {type(error).__name__}: {error}"
        ) from error


class Remote:
    """A reader process, as the thread sees it that speaks to it.

    Args:
        assembler: :func:`packed`.
    """

    def __init__(self, assembler: bytes) -> None:
        self._assembler = assembler
        self._process: Any = None
        self._socket: Any = None
        self._blocks: dict[int, np.ndarray] = {}
        self._lent: set[int] = set()
        self._starting = threading.Lock()
        self._ended = False

    @property
    def pid(self) -> int | None:
        """The process; None before it started."""
        return None if self._process is None else self._process.pid

    def _start(self) -> None:
        with self._starting:
            if self._ended:
                raise Stopped
            context = get_context("spawn")
            self._socket, theirs = context.Pipe()
            self._process = context.Process(
                target=_serve, args=(theirs, self._assembler), name="rawgrad reader process", daemon=True
            )
            # An interrupt of the terminal goes to all its processes; this one is to end with its parent.
            before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
            try:
                self._process.start()
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, before)
                theirs.close()

    def __call__(self, ticket: Ticket, stopped: Callable[[], bool]) -> Any:
        """The batch, from the process.

        Raises:
            DataError: the process died.
            BaseException: what was raised there, with its traceback as a note.
        """
        if self._process is None:
            self._start()
        free = [block for block in self._lent if is_alone(self._blocks, block)]
        self._lent.difference_update(free)
        dropped = free[max(0, _KEPT - (len(self._blocks) - len(self._lent) - len(free))) :]
        for block in dropped:
            del self._blocks[block]
        try:
            self._socket.send(((ticket.indices, ticket.epoch), free, dropped))
            while (answer := self._socket.recv())[0] == "block":
                self._map(*answer[1:])
        except (EOFError, OSError) as error:
            if stopped() or self._ended:
                raise Stopped from None
            raise DataError(self._death(ticket)) from error
        if answer[0] == "error":
            raise _error(self.pid, *answer[1:])
        ticket.missing += answer[2]
        return mapped_places(answer[1], self._array)

    def _map(self, block: int, size: int) -> None:
        descriptor = reduction.recv_handle(self._socket)
        try:
            self._blocks[block] = _flat(descriptor, size)
        finally:
            os.close(descriptor)

    def _array(self, place: _Place) -> np.ndarray:
        self._lent.add(place.block)
        array: np.ndarray = shaped(self._blocks[place.block], place.shape, place.dtype)
        return array if len(self._lent) <= _LENT else array.copy()

    def _death(self, ticket: Ticket) -> str:
        self._process.join(1)
        code = self._process.exitcode
        how = f"by {signal.Signals(-code).name}" if code is not None and code < 0 else f"with exit code {code}"
        shown = ", ".join(map(str, ticket.indices[:5])) + (", …" if len(ticket.indices) > 5 else "")
        return f"DataLoader: reader process {self.pid} died {how} at batch {ticket.number}, samples {shown}"

    def ask_to_end(self) -> None:
        """Let the process end, and none start."""
        with self._starting:
            self._ended = True
        if self._process is not None and self._process.is_alive():
            self._process.terminate()

    def wait_for_end(self) -> None:
        """After :meth:`ask_to_end`: wait for the process, and do not let it take long."""
        if self._process is not None:
            self._process.join(_PATIENCE)
            if self._process.is_alive():
                self._process.kill()
                self._process.join()


def end(remotes: Iterable[Remote]) -> None:
    """End these processes."""
    remotes = list(remotes)
    for remote in remotes:
        remote.ask_to_end()
    for remote in remotes:
        remote.wait_for_end()


def mapped_places(value: Any, change: Callable[[_Place], Any]) -> Any:
    """A message with each :class:`_Place` in it changed."""
    if isinstance(value, _Place):
        return change(value)
    if isinstance(value, dict):
        return {key: mapped_places(member, change) for key, member in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(mapped_places(member, change) for member in value))
    if isinstance(value, tuple | list):
        return type(value)(mapped_places(member, change) for member in value)
    return value


def _error(pid: int | None, pickled: bytes | None, text: str, trace: str) -> BaseException:
    error = DataError(f"DataLoader: a reader raised {text}") if pickled is None else pickle.loads(pickled)
    error.add_note(f"In reader process {pid}:\n{trace}")
    assert isinstance(error, BaseException)
    return error


def _flat(descriptor: int, size: int) -> np.ndarray:
    flat: np.ndarray = countable(np.frombuffer(mmap.mmap(descriptor, size), np.uint8))
    return flat


# ---- in the process ---------------------------------------------------------------------------


class _Blocks:
    """The blocks of a process."""

    def __init__(self, socket: Connection) -> None:
        self._socket = socket
        self._all: dict[int, np.ndarray] = {}
        self._free: list[int] = []
        self._taken: list[int] = []  # by the batch under way
        self._last = 0

    def begin(self, free: list[int], dropped: list[int]) -> None:
        """A new batch: these blocks may be written again, of which those are not kept."""
        self._free += [block for block in free if block not in dropped]
        self._taken = []
        for block in dropped:
            del self._all[block]

    def empty(self, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
        """An array in a free block, or in a new one."""
        probe = np.empty(shape, dtype) if np.prod(shape) * np.dtype(dtype).itemsize < _SMALL else None
        if probe is not None:
            return probe
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        block = next((block for block in self._free if fits(self._all[block], size)), None)
        if block is None:
            block = self._new(size)
        else:
            self._free.remove(block)
        self._taken.append(block)
        array: np.ndarray = shaped(self._all[block], shape, dtype)
        return array

    def _new(self, size: int) -> int:
        self._last += 1
        if hasattr(os, "memfd_create"):
            descriptor = os.memfd_create("rawgrad batch")
        else:
            with tempfile.TemporaryFile() as file:
                descriptor = os.dup(file.fileno())
        try:
            os.ftruncate(descriptor, size)
            self._all[self._last] = _flat(descriptor, size)
            self._socket.send(("block", self._last, size))
            reduction.send_handle(self._socket, descriptor, os.getppid())
        finally:
            os.close(descriptor)
        return self._last

    def placed(self, value: Any) -> Any:
        """What is sent for an array or a Tensor of a batch."""
        array = raw_array(value)
        if type(array) is not np.ndarray or array.nbytes < _SMALL or array.dtype.hasobject:
            return array
        block = next((b for b in self._taken if array.base is self._all[b] and array.flags.c_contiguous), None)
        if block is None or array.ctypes.data != self._all[block].ctypes.data:
            into = self.empty(array.shape, array.dtype)
            into[...] = array
            block = self._taken[-1]
        return _Place(block, array.shape, array.dtype.str)


def _serve(socket: Connection, assembler: bytes) -> None:
    """What a reader process does until its parent ends or ends it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    make: Assembler | None = None
    blocks = _Blocks(socket)
    while True:
        try:
            (indices, epoch), free, dropped = socket.recv()
            blocks.begin(free, dropped)
            try:
                make = make or pickle.loads(assembler)
                missing: list[tuple[int, str]] = []
                batch = make(indices, epoch, blocks.empty, never, missing)
                socket.send(("batch", mapped(batch, blocks.placed), missing))
            except ConnectionError:
                raise
            except BaseException as error:
                socket.send(("error", _pickled(error), f"{type(error).__name__}: {error}", traceback.format_exc()))
        except (EOFError, ConnectionError):
            return  # the parent is gone


def _pickled(error: BaseException) -> bytes | None:
    """``error`` for the parent; None if it does not survive that."""
    try:
        data = pickle.dumps(error)
        return data if type(pickle.loads(data)) is type(error) else None
    except Exception:
        return None
