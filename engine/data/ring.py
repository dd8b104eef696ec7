"""From host to GPU while the GPU computes: pinned buffers, a stream of their own, slots used in turn.

A reader assembles a batch in pinned memory, from which the GPU copies by itself.  It then takes a
free *slot*, memory on the device, and gives the copy to the side stream, which works beside the
stream of training.  Two events per batch keep the two from getting at each other's memory:

======  ==========================================  ==============================================
event   recorded                                    waited for
======  ==========================================  ==============================================
ready   on the side stream, after the copy          by training's stream, before it uses the batch;
                                                    by the host, before the pinned buffer is refilled
free    on training's stream, when nothing refers   by the side stream, before it copies into the
        to the batch any more                       slot again
======  ==========================================  ==============================================

Nobody waits for either on the host, except a reader that would else overrun the pinned buffers.
"""

from __future__ import annotations

import threading
from collections import deque
from typing import Any

import numpy as np

from ...kernels._devices import Device, device_of
from .assemble import mapped
from .buffers import Buffers, countable, fits, is_alone, shaped
from .dataset import raw_array
from .prefetch import Stopped


class Copy:
    """A batch on its way to the device: its events, and the pinned arrays that it is copied from."""

    def __init__(self, cuda: Any) -> None:
        self._cuda = cuda
        self.begun, self.ready = cuda.Event(), cuda.Event()
        self.pinned: list[np.ndarray] = []

    def seconds(self) -> float:
        """How long the copy took; waits for its end."""
        self.ready.synchronize()
        return float(self._cuda.get_elapsed_time(self.begun, self.ready)) / 1000


class Ring:
    """The slots and the pinned buffers of one pass.

    Args:
        device: a GPU, or the simulated one.
        batches: how many may be in use at a time: those ahead, the one taken and the one before.
        pinned: how many pinned buffers are kept.
    """

    def __init__(self, device: Device, batches: int, pinned: int) -> None:
        self._device, self._batches = device, batches
        self._xp = device.array_module
        self._cuda = self._xp.cuda
        self._number = self._cuda.runtime.getDevice()  # which of several GPUs; each thread has its own
        self._side = self._cuda.Stream(non_blocking=True)
        self._training = self._cuda.get_current_stream()
        self._pinned = Buffers(self._pinned_bytes, pinned)
        self.empty = self._pinned.empty  #: makes arrays in pinned memory
        self._lock = threading.Lock()
        # A slot is an entry of each of these lists: its memory, its event, whether a batch has it.
        self._slots: list[Any] = []
        self._free: list[Any] = []
        self._taken: list[bool] = []
        self._under_way: deque[Copy] = deque()
        self._closed = False

    def _pinned_bytes(self, size: int) -> np.ndarray:
        return np.frombuffer(self._cuda.alloc_pinned_memory(size), np.uint8, count=size)

    # ---- in a reader's thread

    def load(self, batch: Any) -> tuple[Any, Copy]:
        """``batch`` on the device, once the event ``ready`` of the copy has happened."""
        self._cuda.runtime.setDevice(self._number)
        copy = Copy(self._cuda)
        batch = mapped(batch, self._as_pinned)
        pairs: list[tuple[Any, np.ndarray]] = []
        with self._lock:
            if self._closed:
                raise Stopped
            with self._side:
                new = not self._slots
                batch = mapped(batch, lambda array: self._placed(array, pairs))
                if new:  # the first batch says how large slots are: make those of all the others too
                    for target, _ in pairs * (self._batches - 1):
                        self._new_slot(target.nbytes)
                copy.begun.record(self._side)
                for target, source in pairs:
                    target.set(source, stream=self._side)
                    copy.pinned.append(source)
                copy.ready.record(self._side)
            self._under_way.append(copy)
        self._let_go()
        return batch, copy

    def _as_pinned(self, value: Any) -> Any:
        array = raw_array(value)
        if type(array) is not np.ndarray:  # the data set's arrays are on a device already
            return value
        if array.flags.c_contiguous and self._pinned.owns(array):
            return array
        pinned = self.empty(array.shape, array.dtype)
        pinned[...] = array
        return pinned

    def _placed(self, value: Any, pairs: list[tuple[Any, np.ndarray]]) -> Any:
        """The slot for one array of the host; the side stream has been told to wait until it is free."""
        if type(value) is not np.ndarray:
            array = raw_array(value)
            here = device_of(array)
            return value if here is self._device else self._device.from_host(here.to_host(array))
        free = [
            position
            for position, flat in enumerate(self._slots)
            if not self._taken[position] and fits(flat, value.nbytes)
        ]
        position = free[0] if free else self._new_slot(value.nbytes)
        self._taken[position] = True
        self._side.wait_event(self._free[position])
        target = shaped(self._slots[position], value.shape, value.dtype)
        if value.size:
            pairs.append((target, value))
        return target

    def _new_slot(self, size: int) -> int:
        # The memory comes from training's pool, so what used it before is in training's stream.
        with self._training:
            self._slots.append(countable(self._xp.empty(max(size, 1), np.uint8)))
        self._free.append(self._training.record())
        self._taken.append(False)
        return len(self._slots) - 1

    def _let_go(self) -> None:
        """Forget the pinned arrays of copies that are done, and do not let too many be under way."""
        while self._under_way and (self._under_way[0].ready.done or len(self._under_way) > self._batches):
            try:
                copy = self._under_way.popleft()
            except IndexError:  # another reader did it
                return
            copy.ready.synchronize()
            copy.pinned.clear()

    # ---- in training's thread

    def release(self) -> None:
        """Slots whose batch nobody refers to any more are free once training has done what it was given so far."""
        self._training = self._cuda.get_current_stream()
        with self._lock:
            for position in range(len(self._slots)):
                if self._taken[position] and is_alone(self._slots, position):
                    self._free[position].record(self._training)
                    self._taken[position] = False

    def deliver(self, copy: Copy) -> None:
        """Let training's stream wait for the copy."""
        self._training.wait_event(copy.ready)

    def close(self) -> None:
        """Wait for the copies under way, so that their memory can be given back."""
        with self._lock:
            self._closed = True
            self._side.synchronize()
            self._under_way.clear()
            self._slots.clear()
