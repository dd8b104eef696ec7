"""Readers that are processes, for reading that holds the interpreter lock.

Each is spawned, never forked, and answers to a thread of the prefetcher that waits for it; so order,
bounds and errors are the prefetcher's, as with threads.  A batch comes through shared memory: *blocks*
without a name (``memfd_create``; elsewhere a file that is removed at once), whose descriptors pass
through the socket between the two.  What has no name cannot be left behind, whoever is killed.

In the process they are buffers like those of threads (``buffers.py``), made and used again by the same
rule; it also keeps those that the parent uses, until that says, with an order, that no array of its own
refers to them any more.
"""

from __future__ import annotations

import math
import mmap
import os
import pickle
import signal
import tempfile
import threading
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from multiprocessing import current_process, get_context, reduction, resource_tracker
from multiprocessing.connection import Connection
from typing import Any
from weakref import WeakValueDictionary

import numpy as np

from ...kernels._errors import ArgumentError, DataError
from .assemble import Assembler, mapped
from .buffers import Buffers, countable, is_alone, shaped
from .dataset import raw_array
from .prefetch import Stopped, Ticket, never

#: Smaller arrays are sent as they are.
_SMALL = 4096
#: Blocks of one process that may hold batches in use, each a descriptor; whoever keeps more gets copies.
_LENT = 32
#: Blocks that a process keeps, in use or free.
_KEPT = _LENT + 16
#: Of reader processes.
_NAME = "rawgrad reader process"
#: What they need of a program.
_GUARD = (
    'with processes, a program must be a file and begin to read under `if __name__ == "__main__":`, since each '
    "reader process imports it first"
)
#: Seconds that a process which was asked to end is waited for, before it is made to.
_PATIENCE = 0.04


@dataclass(frozen=True)
class _Place:
    """Stands in a message for an array that lies in a block."""

    block: int
    shape: tuple[int, ...]
    dtype: str


def packed(assembler: Assembler) -> bytes:
    """``assembler`` for :class:`Remote`.

    Raises:
        ArgumentError: pickle does not take it.
        SystemExit: in a reader process that imports the program; the program's own process then says why.
    """
    if current_process().name == _NAME and getattr(current_process(), "_inheriting", False):
        raise SystemExit(1)
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
        self._answered = False  # it has begun to work
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
            self._process = context.Process(target=_serve, args=(theirs, self._assembler), name=_NAME, daemon=True)
            resource_tracker.ensure_running()  # to start it with the process would allow interrupts again
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
        ticket.where = f"reader process {self.pid}"
        free = [block for block in self._lent if is_alone(self._blocks, block)]
        self._lent.difference_update(free)
        try:
            self._socket.send((ticket.indices, ticket.epoch, free))
            while (answer := self._socket.recv())[0] == "block":
                self._map(*answer[1:])
        except (EOFError, OSError):
            raise (Stopped if stopped() or self._ended else DataError(self._death(ticket))) from None
        self._answered = True
        if answer[0] == "error":
            raise _error(self.pid, *answer[1:])
        _, batch, missing, kept = answer
        ticket.missing += missing
        batch = mapped(batch, self._array, lambda member: isinstance(member, _Place))
        if len(kept) < len(self._blocks):
            self._blocks = {block: self._blocks[block] for block in kept}
        return batch

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
        said = f"DataLoader: {ticket.where} died {how} at batch {ticket.number}, {ticket.samples}"
        return said if self._answered else f"{said}, before it began; {_GUARD}"

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
    """The blocks of a process: buffers (``buffers.py``) whose memory the parent sees too.

    Those that the parent uses are referred to by ``_lent``, and so not free.
    """

    def __init__(self, socket: Connection) -> None:
        self._socket = socket
        self._buffers = Buffers(self._new, _KEPT)
        self._numbers: WeakValueDictionary[int, np.ndarray] = WeakValueDictionary()  # all that there are
        self._lent: dict[int, np.ndarray] = {}
        self._last = 0

    @property
    def kept(self) -> list[int]:
        """The blocks that there are."""
        return list(self._numbers)

    def take_back(self, free: list[int]) -> None:
        """The parent does not use these any more."""
        for block in free:
            del self._lent[block]

    def empty(self, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
        """An array in a block, unless it is small."""
        small = math.prod(shape) * np.dtype(dtype).itemsize < _SMALL
        array: np.ndarray = np.empty(shape, dtype) if small else self._buffers.empty(shape, dtype)
        return array

    def _new(self, size: int) -> np.ndarray:
        self._last += 1
        if hasattr(os, "memfd_create"):
            descriptor = os.memfd_create("rawgrad batch")
        else:
            with tempfile.TemporaryFile() as file:
                descriptor = os.dup(file.fileno())
        try:
            os.ftruncate(descriptor, size)
            self._numbers[self._last] = flat = _flat(descriptor, size)
            self._socket.send(("block", self._last, size))
            reduction.send_handle(self._socket, descriptor, os.getppid())
        finally:
            os.close(descriptor)
        return flat

    def placed(self, value: Any) -> Any:
        """What is sent for an array or a Tensor of a batch."""
        array = raw_array(value)
        if type(array) is not np.ndarray or array.nbytes < _SMALL or array.dtype.hasobject:
            return array
        block = self._block_of(array)
        if block is None:
            inside = self.empty(array.shape, array.dtype)
            inside[...] = array
            return self.placed(inside)
        self._lent[block] = self._numbers[block]
        return _Place(block, array.shape, array.dtype.str)

    def _block_of(self, array: np.ndarray) -> int | None:
        """The block that ``array`` is the beginning of."""
        for block, flat in self._numbers.items():
            if array.base is flat and array.flags.c_contiguous and array.ctypes.data == flat.ctypes.data:
                return block
        return None


def _serve(socket: Connection, assembler: bytes) -> None:
    """What a reader process does until its parent ends or ends it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    make: Assembler | None = None
    blocks = _Blocks(socket)
    while True:
        try:
            indices, epoch, free = socket.recv()
            blocks.take_back(free)
            try:
                make = make or pickle.loads(assembler)
                missing: list[tuple[int, str]] = []
                batch = mapped(make(indices, epoch, blocks.empty, never, missing), blocks.placed)
                socket.send(("batch", batch, missing, blocks.kept))
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
