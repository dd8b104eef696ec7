"""Batches from a data set, in an order that depends on nothing but (seed, epoch), made ahead of time if asked."""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from types import TracebackType
from typing import Any

import numpy as np

from ...kernels._devices import Device, device_named, device_of
from ...kernels._errors import ArgumentError, CheckpointError, DataError
from .assemble import BROKEN, Assembler, Nothing, collate, mapped
from .buffers import Buffers, Empty
from .dataset import batch_method, check_whole, checked_indices, in_memory, random_order, raw_array
from .prefetch import Make, Order, Prefetcher, Synchronous, Ticket
from .processes import Remote, end, packed
from .ring import Ring
from .timing import Step, Timing

__all__ = ["DataLoader", "collate"]

#: Batches of arrays in memory that take less to make than this many nanoseconds are made by training itself:
#: to hand one over from another thread costs about as much, and the interpreter lock more at times.  From
#: where on a reader pays, ``python -m rawgrad.bench.prefetch`` measures ("the hand-over"): 0.1 ms on two idle
#: cores, and this is three times that, since a busy machine is not to be slower with readers either.
_HAND_OVER = 300_000
#: So many batches are tried, after which readers are started if even the fastest took longer.
_TRIED = 3
#: Readers of one loader; each is a thread at least.
_MOST_WORKERS = 1024
#: Arrays of a batch for which buffers are kept.
_MEMBERS = 4


class DataLoader:
    """Iterate over ``dataset`` in batches of Tensors.

    Each ``for`` loop over the loader is one epoch.  The order of an epoch is a function of (seed,
    epoch) alone; :attr:`epoch` counts up at the end of each, and also when a loop that was left
    early is followed by another.  :meth:`state_dict` may be taken between any two batches, and the
    first loop after :meth:`load_state_dict` goes on with the next batch.

    A data set with a method ``batch(indices)`` (TensorDataset, MNIST, Digits, a Subset of one) gives
    whole batches by indexing its arrays; from others the samples are taken one by one and collated:
    arrays are stacked, numbers become int64, float32 or bool tensors, tuples, lists and dicts are
    collated member by member, strings stay a list.

    With ``num_workers`` readers make batches ahead of time (``prefetch.py``); which batches come does not
    depend on it.  They end with the loop: after its last batch, when it is left early, by an exception
    too, with :meth:`close`, and at the end of a ``with`` block.

    Args:
        dataset: has ``__len__`` and ``__getitem__``.
        batch_size: samples in a batch; the last one has what is left.
        shuffle: a new random order each epoch, instead of the data set's own.
        sampler: an iterable of indices that gives the order instead; it must have a length, and
            its ``set_epoch``, if it has one, is called before each epoch.
        num_workers: how many readers make batches ahead of time; with 0 each is made when it is asked
            for.  Arrays in memory whose batches are made in no time get no readers, whatever is said here.
        collate_fn: makes a batch from a list of samples; what it returns is passed on, its arrays
            turned into Tensors.
        drop_last: leave out a last batch that is not full.
        prefetch: how many batches may be made ahead of time at most; None: 2, or one more than there are
            workers.  Without workers it has no effect.
        device: where the Tensors shall be; None leaves them where the data set has them.
        seed: of the shuffling; None takes that of the default generator (``rg.manual_seed``) as it
            is when the loader is made.

        timeout: seconds after which waiting for one batch is an error; None: never, but it is told.

        processes: the workers are processes instead of threads: for reading that is Python's own work and
            so holds the interpreter lock.  They are spawned, get a pickled copy of the data set, and stay
            for the next loop after one that came to its end.

        resident: keep the whole data set on the GPU, if it takes at most half of what is free there, and
            take its rows there; else it goes the way of the others.

        transform: changes the images of a batch, its first member (``transforms.py``); for batches that
            are dicts, a dict of transforms.  Its draws depend on (seed, epoch, sample) alone.
        sample_transform: the same, of each sample before a batch is made of them.
        broken: what to do where a sample cannot be read (it raises DataError or OSError): ``"stop"``,
            ``"skip"`` it, so that the batch is smaller (one without any is left out), or ``"replace"`` it by the
            next that can be read.

    Attributes:
        missing: samples that were skipped or replaced so far, with the reason of each.
        epoch: the epoch under way, or between two loops the next one; the first is 0.

    Raises:
        ArgumentError: an option outside its domain.
    """

    def __init__(
        self,
        dataset: Any,
        batch_size: int = 1,
        shuffle: bool = False,
        *,
        sampler: Any = None,
        num_workers: int = 0,
        collate_fn: Callable[[list[Any]], Any] | None = None,
        drop_last: bool = False,
        prefetch: int | None = None,
        device: str | None = None,
        seed: int | None = None,
        timeout: float | None = None,
        processes: bool = False,
        resident: bool = False,
        transform: Any = None,
        sample_transform: Any = None,
        broken: str = "stop",
    ) -> None:
        if not hasattr(dataset, "__len__") or not (hasattr(dataset, "__getitem__") or batch_method(dataset)):
            kind = type(dataset).__qualname__
            raise ArgumentError(f"DataLoader: dataset must have a length and samples by index; got {kind}")
        check_whole("DataLoader", "batch_size", batch_size, 1)
        check_whole("DataLoader", "num_workers", num_workers, 0, _MOST_WORKERS)
        if prefetch is None:
            prefetch = max(2, num_workers + 1)
        check_whole("DataLoader", "prefetch", prefetch, 0)
        if seed is not None:
            check_whole("DataLoader", "seed", seed)
        if timeout is not None and not (isinstance(timeout, int | float) and timeout > 0):
            raise ArgumentError(f"DataLoader: timeout must be seconds above 0, or None; got {timeout!r}")
        if sampler is not None and shuffle:
            raise ArgumentError("DataLoader: shuffle must be False when a sampler gives the order; got True")
        if sampler is not None and not hasattr(sampler, "__len__"):
            kind = type(sampler).__qualname__
            raise ArgumentError(f"DataLoader: sampler must be indices with a length, read again each epoch; got {kind}")
        self.dataset, self.batch_size, self.shuffle, self.sampler = dataset, int(batch_size), bool(shuffle), sampler
        self.num_workers, self.prefetch, self.drop_last = int(num_workers), int(prefetch), bool(drop_last)
        self.collate_fn, self.timeout, self.processes = collate_fn, timeout, bool(processes)
        self.device = None if device is None else device_named(device)
        if broken not in BROKEN:
            raise ArgumentError(f"DataLoader: broken must be one of {', '.join(map(repr, BROKEN))}; got {broken!r}")
        self.transform, self.sample_transform, self.broken = transform, sample_transform, broken
        self.missing: dict[int, str] = {}
        self.resident = bool(resident)
        if self.resident and (self._to_host or not self._whole):
            reason = (
                "without a GPU" if self._to_host else "for a data set without batch(), with a collate_fn or a transform"
            )
            raise ArgumentError(f"DataLoader: resident must be False {reason}; got True")
        self._resident: Any = None  # the whole data set on the device
        self.seed = _default_seed() if seed is None and (shuffle or transform or sample_transform) else int(seed or 0)
        self.epoch = 0
        self._next_batch = 0
        self._resumed = False
        self._passes: weakref.WeakSet[Pass] = weakref.WeakSet()
        self._cheap: bool | None = None
        self._last: tuple[list[Step], int, int] | None = None
        self._idle: list[Remote] = []  # processes that wait for the next loop
        weakref.finalize(self, end, self._idle)

    def __len__(self) -> int:
        """Batches in an epoch."""
        samples = len(self.dataset if self.sampler is None else self.sampler)
        return samples // self.batch_size if self.drop_last else -(-samples // self.batch_size)

    def set_epoch(self, epoch: int) -> None:
        """Make the next loop epoch ``epoch``, from its beginning."""
        check_whole("DataLoader", "epoch", epoch, 0)
        self.epoch, self._next_batch, self._resumed = int(epoch), 0, False

    def __iter__(self) -> Pass:
        if not self._resumed and self._next_batch:  # the loop before this was left early
            self.epoch, self._next_batch = self.epoch + 1, 0
        self._resumed = False
        begun = Pass(self, self.epoch, self._next_batch)
        self._passes.add(begun)
        return begun

    def close(self) -> None:
        """End every loop under way, and all readers; the loader can be used again."""
        for begun in list(self._passes):
            begun.close()
        end(self._idle)
        self._idle.clear()

    def __enter__(self) -> DataLoader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def timing(self) -> Timing:
        """The times of the last loop, over or not; printed, they say what held the run back.

        Raises:
            ArgumentError: there was no loop yet.
        """
        if self._last is None:
            raise ArgumentError("DataLoader: timing is there once a loop has begun; there was none yet")
        steps, readers, epoch = self._last
        quick = not readers and self._is_cheap() is not False and _quickest(steps) < _HAND_OVER
        return Timing(steps, readers, epoch, quick=quick)

    def _is_cheap(self) -> bool | None:
        """Whether training had better make the batches itself; None if that must be tried."""
        if self._cheap is None and not (self._whole and in_memory(self.dataset) and self._to_host):
            self._cheap = False
        return self._cheap

    @property
    def _to_host(self) -> bool:
        return self.device is None or self.device.array_type is np.ndarray

    @property
    def _whole(self) -> bool:
        """Whether a batch is rows of arrays, as they are."""
        plain = self.collate_fn is None and self.transform is None and self.sample_transform is None
        return plain and batch_method(self.dataset) is not None

    def _source(
        self, orders: Iterator[Order], epoch: int, tried: bool
    ) -> tuple[Synchronous | Prefetcher, Ring | None, list[Remote]]:
        """What makes the batches of a pass, what brings them to the device, and the processes that do it.

        Args:
            orders: the batches.
            epoch: theirs.
            tried: whether a few were made without readers already, and took too long.
        """
        if self.resident and self._fits():
            return Synchronous(orders, _finished(self._gatherer(epoch), self.device, None)), None, []
        assembler = Assembler(
            self.dataset, self.collate_fn, self.sample_transform, self.transform, self.seed, self.broken
        )
        if not (self.num_workers and self.prefetch) or (not tried and self._is_cheap() is not False):
            return Synchronous(orders, _finished(_assembling(assembler, None), self.device, None)), None, []
        in_use = _MEMBERS * (self.prefetch + self.num_workers + 2)
        ring = None
        if self.device is not None and not self._to_host:
            ring = Ring(self.device, self.prefetch + 2, in_use)
        remotes: list[Remote] = []
        if self.processes:
            data = packed(assembler) if len(self._idle) < self.num_workers else b""
            remotes = [self._idle.pop() if self._idle else Remote(data) for _ in range(self.num_workers)]
            makes: Sequence[Make] = remotes
        else:
            empty = Buffers(_bytes, in_use).empty if ring is None else ring.empty
            makes = [_assembling(assembler, empty)] * self.num_workers
        return Prefetcher(
            orders, [_finished(make, self.device, ring) for make in makes], self.prefetch, timeout=self.timeout,
            interrupt=partial(end, remotes), settle=None if ring is None else ring.close,
        ), ring, remotes  # fmt: skip

    def _fits(self) -> bool:
        """Whether the whole data set is on the device, or takes at most half of what is free there."""
        assert self.device is not None
        if self._resident is None and len(self.dataset):
            sizes: list[int] = []
            mapped(self._all(1), lambda array: sizes.append(raw_array(array).nbytes))
            free, _ = self.device.array_module.cuda.runtime.memGetInfo()
            if sum(sizes) * len(self.dataset) <= free // 2:
                self._resident = mapped(self._all(len(self.dataset)), partial(_there, self.device))
        return self._resident is not None

    def _all(self, count: int) -> Any:
        method = batch_method(self.dataset)
        assert method is not None
        return method(np.arange(count))

    def _gatherer(self, epoch: int) -> Make:
        """What makes batches of a resident data set: the order goes to the device once, and rows are taken there."""
        order = _there(self.device, self._order(epoch))

        def make(ticket: Ticket, stopped: Callable[[], bool]) -> Any:
            first = ticket.number * self.batch_size
            chosen = order[first : first + len(ticket.indices)]
            return mapped(self._resident, lambda array: array[chosen])

        return make

    def _order(self, epoch: int) -> np.ndarray:
        if self.sampler is not None:
            if hasattr(self.sampler, "set_epoch"):
                self.sampler.set_epoch(epoch)
            return checked_indices("DataLoader: sampler", list(self.sampler), len(self.dataset))
        if self.shuffle:
            return random_order(self.seed, epoch, len(self.dataset))
        return np.arange(len(self.dataset))

    def indices(self, batch: int, epoch: int | None = None) -> np.ndarray:
        """Which samples batch number ``batch`` of an epoch has, (B,) int64; by default of the one under way.

        What ``broken`` leaves out or replaces is still among them.

        Raises:
            ArgumentError: there is no such batch.
        """
        if not 0 <= batch < len(self):
            raise ArgumentError(f"DataLoader: batch must be from 0 to {len(self) - 1}; got {batch}")
        order = self._order(self.epoch if epoch is None else epoch)
        return order[batch * self.batch_size : (batch + 1) * self.batch_size]

    def state_dict(self) -> dict[str, Any]:
        """Where the loader stands: everything that :meth:`load_state_dict` needs to go on."""
        finished = self._next_batch >= len(self)  # the last batch is out, the loop not yet over
        return {
            "epoch": self.epoch + 1 if finished and self._next_batch else self.epoch,
            "batch": 0 if finished else self._next_batch,
            "seed": self.seed,
            **self._shape(),
        }

    def _shape(self) -> dict[str, Any]:
        """What must be the same for a position to mean the same samples."""
        return {
            "samples": len(self.dataset),
            "batch_size": self.batch_size,
            "shuffle": self.shuffle,
            "drop_last": self.drop_last,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from ``state``: the next loop starts with the batch after the last one that was taken.

        Raises:
            CheckpointError: the state is incomplete, or of a loader with other samples or options.
        """
        for key in ("epoch", "batch", "seed", *self._shape()):
            if key not in state:
                raise CheckpointError(
                    f"DataLoader: state must have the entry {key!r}; it has {sorted(map(str, state))}"
                )
        for key, here in self._shape().items():
            if state[key] != here:
                raise CheckpointError(f"DataLoader: {key} must be {here} as in this loader; the state has {state[key]}")
        epoch, batch, seed = (state[key] for key in ("epoch", "batch", "seed"))
        if not all(isinstance(number, int) for number in (epoch, batch, seed)):
            raise CheckpointError(f"DataLoader: epoch, batch and seed must be integers; the state has {dict(state)}")
        if epoch < 0 or not 0 <= batch <= len(self):
            raise CheckpointError(f"DataLoader: batch must be from 0 to {len(self)}; the state has {batch}")
        if seed != self.seed:  # the processes that wait draw with the old one
            end(self._idle)
            self._idle.clear()
        self.epoch, self._next_batch, self.seed, self._resumed = epoch, batch, seed, True


class Pass:
    """One epoch under way: what ``iter(loader)`` gives."""

    def __init__(self, loader: DataLoader, epoch: int, first: int) -> None:
        self._loader, self._epoch = loader, epoch
        orders = _orders(loader._order(epoch), loader.batch_size, range(first, len(loader)), epoch)
        self._source, self._ring, self._remotes = loader._source(orders, epoch, False)
        self._steps = self._source.steps  # of all sources, one after the other
        loader._last = self._steps, self._source.readers, epoch
        self._trying = bool(loader.num_workers and loader.prefetch and loader._is_cheap() is None)
        self._over = False
        self._missing: dict[int, str] = {}
        self._fruitless = first == 0  # the whole epoch so far

    def __iter__(self) -> Pass:
        return self

    def __next__(self) -> Any:
        if self._over:
            raise StopIteration
        try:
            batch = self._take()
            while batch is Nothing:
                batch = self._take()
            self._fruitless = False
            return batch
        except StopIteration:
            loader = self._loader
            loader.epoch, loader._next_batch = self._epoch + 1, 0
            if not self._over:
                self._over = True
                idle = self._remotes[:]
                self._remotes.clear()  # closing is not to end them
                self._source.close()
                loader._idle += idle
                self._tell_missing()
            raise
        except BaseException:
            self.close()
            raise

    def _take(self) -> Any:
        """The next batch, counted."""
        loader, ring = self._loader, self._ring
        if ring is None:
            ticket, batch = self._source.take()
        else:
            ring.release()
            ticket, batch = self._source.take()
            ring.deliver(ticket.copied)
        # Counted before it is handed out: a state saved in the loop's body means "this one is done".
        loader.epoch, loader._next_batch = self._epoch, ticket.number + 1
        if ticket.missing:
            self._missing.update(ticket.missing)
            loader.missing.update(ticket.missing)
        if self._trying:
            self._judge()
        return batch

    def _tell_missing(self) -> None:
        if not self._missing:
            return
        done = "skipped" if self._loader.broken == "skip" else "replaced"
        first = "; ".join(f"{index}: {reason}" for index, reason in list(self._missing.items())[:3])
        if self._fruitless:
            raise DataError(f"DataLoader: no sample of epoch {self._epoch} can be read; {first}")
        count = f"{len(self._missing)} samples of epoch {self._epoch}"
        warnings.warn(f"DataLoader: {count} could not be read and were {done}: {first}", RuntimeWarning, stacklevel=3)

    def _judge(self) -> None:
        """After a few batches made without readers: go on like this, or with readers."""
        if len(self._steps) >= _TRIED:
            self._trying = False
            self._loader._cheap = _quickest(self._steps) < _HAND_OVER
            if not self._loader._cheap:
                self._source, self._ring, self._remotes = self._loader._source(self._source.orders, self._epoch, True)
                self._source.steps = self._steps
                self._loader._last = self._steps, self._source.readers, self._epoch

    def close(self) -> None:
        """End the loop, with its readers; there are no more batches."""
        self._over = True
        self._source.close()


def _quickest(steps: Sequence[Step]) -> int:
    """Nanoseconds that it took to make the batch that took least."""
    return min((step.ended - step.begun for step in steps), default=0)


def _orders(order: np.ndarray, size: int, numbers: range, epoch: int) -> Iterator[Order]:
    return ((number, order[number * size : (number + 1) * size], epoch) for number in numbers)


def _assembling(assembler: Assembler, empty: Empty | None) -> Make:
    """What assembles the batch of a ticket in this process."""

    def make(ticket: Ticket, stopped: Callable[[], bool]) -> Any:
        return assembler(ticket.indices, ticket.epoch, empty, stopped, ticket.missing)

    return make


def _finished(make: Make, device: Device | None, ring: Ring | None) -> Make:
    """``make`` and all else that is done to a batch before training takes it: the way to the device, Tensors."""

    def make_and_finish(ticket: Ticket, stopped: Callable[[], bool]) -> Any:
        batch = make(ticket, stopped)
        if ring is not None:
            batch, ticket.copied = ring.load(batch)
        return mapped(batch, partial(_as_tensor, device))

    return make_and_finish


def _as_tensor(device: Device | None, value: Any) -> Any:
    """An array of a batch as a Tensor on ``device``; a Tensor that is there already as it is."""
    from ...autograd import Tensor

    array = _there(device, value)
    return value if array is getattr(value, "array", None) else Tensor(array)


def _there(device: Device | None, value: Any) -> Any:
    """The raw array of ``value`` on ``device``; None leaves it where it is."""
    array = raw_array(value)
    here = device_of(array)
    return array if device is None or here is device else device.from_host(here.to_host(array))


def _bytes(size: int) -> np.ndarray:
    return np.empty(size, np.uint8)


def _default_seed() -> int:
    from ...autograd.random import default_generator

    return int(default_generator.seed)
