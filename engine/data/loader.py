"""Batches from a data set, in an order that depends on nothing but (seed, epoch)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from ...kernels._devices import device_named, device_of
from ...kernels._errors import ArgumentError, CheckpointError, DataError, DtypeError, ShapeError
from .dataset import batch_method, checked_indices, random_order, raw_array


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

    Args:
        dataset: has ``__len__`` and ``__getitem__``.
        batch_size: samples in a batch; the last one has what is left.
        shuffle: a new random order each epoch, instead of the data set's own.
        sampler: an iterable of indices that gives the order instead; it must have a length, and
            its ``set_epoch``, if it has one, is called before each epoch.
        num_workers: must be 0 for now: batches are made when they are asked for.
        collate_fn: makes a batch from a list of samples; what it returns is passed on, its arrays
            turned into Tensors.
        drop_last: leave out a last batch that is not full.
        prefetch: how many batches to have ready ahead of time; without workers it has no effect.
        device: where the Tensors shall be; None leaves them where the data set has them.
        seed: of the shuffling; None takes that of the default generator (``rg.manual_seed``) as it
            is when the loader is made.

    Attributes:
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
        prefetch: int = 2,
        device: str | None = None,
        seed: int | None = None,
    ) -> None:
        _check_integer("batch_size", batch_size, 1)
        _check_integer("num_workers", num_workers, 0)
        _check_integer("prefetch", prefetch, 0)
        if num_workers:
            raise ArgumentError(
                "DataLoader: num_workers must be 0 in this version, which reads data in the training process; "
                f"got {num_workers}"
            )
        if sampler is not None and shuffle:
            raise ArgumentError("DataLoader: shuffle must be False when a sampler gives the order; got True")
        self.dataset, self.batch_size, self.shuffle, self.sampler = dataset, int(batch_size), bool(shuffle), sampler
        self.num_workers, self.prefetch, self.drop_last = 0, int(prefetch), bool(drop_last)
        self.collate_fn = collate_fn
        self.device = None if device is None else device_named(device)
        self.seed = _default_seed() if seed is None and shuffle else int(seed or 0)
        self.epoch = 0
        self._next_batch = 0
        self._resumed = False

    def __len__(self) -> int:
        """Batches in an epoch."""
        samples = len(self.dataset if self.sampler is None else self.sampler)
        return samples // self.batch_size if self.drop_last else -(-samples // self.batch_size)

    def set_epoch(self, epoch: int) -> None:
        """Make the next loop epoch ``epoch``, from its beginning."""
        _check_integer("epoch", epoch, 0)
        self.epoch, self._next_batch, self._resumed = int(epoch), 0, False

    def __iter__(self) -> Iterator[Any]:
        if not self._resumed and self._next_batch:  # the loop before this was left early
            self.epoch, self._next_batch = self.epoch + 1, 0
        self._resumed = False
        return self._pass(self.epoch, self._next_batch)

    def _pass(self, epoch: int, first: int) -> Iterator[Any]:
        order = self._order(epoch)
        whole = batch_method(self.dataset) if self.collate_fn is None else None
        for number in range(first, len(self)):
            indices = order[number * self.batch_size : (number + 1) * self.batch_size]
            if whole is not None:
                batch = whole(indices)
            else:
                samples = [self.dataset[int(index)] for index in indices]
                batch = collate(samples) if self.collate_fn is None else self.collate_fn(samples)
            # Counted before it is handed out: a state saved in the loop's body means "this one is done".
            self.epoch, self._next_batch = epoch, number + 1
            yield self._delivered(batch)
        self.epoch, self._next_batch = epoch + 1, 0

    def _order(self, epoch: int) -> np.ndarray:
        if self.sampler is not None:
            if hasattr(self.sampler, "set_epoch"):
                self.sampler.set_epoch(epoch)
            return checked_indices("DataLoader: sampler", list(self.sampler), len(self.dataset))
        if self.shuffle:
            return random_order(self.seed, epoch, len(self.dataset))
        return np.arange(len(self.dataset))

    def _delivered(self, value: Any) -> Any:
        """``value`` with each array as a Tensor on the loader's device."""
        if isinstance(value, Mapping):
            return {key: self._delivered(member) for key, member in value.items()}
        if isinstance(value, tuple) and hasattr(value, "_fields"):
            return type(value)(*map(self._delivered, value))
        if isinstance(value, tuple | list):
            return type(value)(self._delivered(member) for member in value)
        array = raw_array(value)
        if array is None:
            return value
        here = device_of(array)
        if self.device is not None and here is not self.device:
            return _tensor(self.device.from_host(here.to_host(array)))
        return _tensor(array) if array is value else value

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
        self.epoch, self._next_batch, self.seed, self._resumed = epoch, batch, seed, True


def collate(samples: list[Any]) -> Any:
    """One batch from ``samples``, each of the same structure; see :class:`DataLoader`.

    Raises:
        ShapeError, DtypeError: arrays of one place differ.
        DataError: structures differ, or a sample holds something that cannot be put into a batch.
    """
    return _collate(samples, "")


def _collate(samples: list[Any], place: str) -> Any:
    first = samples[0]
    if isinstance(first, Mapping):
        _same(samples, place, "keys", lambda sample: sorted(map(str, sample)) if isinstance(sample, Mapping) else None)
        return {key: _collate([sample[key] for sample in samples], f"{place}[{key!r}]") for key in first}
    if isinstance(first, tuple | list):
        _same(samples, place, "length", lambda sample: len(sample) if isinstance(sample, tuple | list) else None)
        members = [_collate(list(group), f"{place}[{i}]") for i, group in enumerate(zip(*samples, strict=True))]
        return type(first)(*members) if hasattr(first, "_fields") else type(first)(members)
    if isinstance(first, str):
        return samples
    if isinstance(first, bool | int | float) and not isinstance(first, np.generic):
        _same(samples, place, "type", type)
        dtype = "bool" if isinstance(first, bool) else "int64" if isinstance(first, int) else "float32"
        return np.array(samples, dtype)
    if isinstance(first, np.generic):
        _same(samples, place, "type", type)
        return np.array(samples)
    arrays = [raw_array(sample) for sample in samples]
    if any(array is None for array in arrays):
        kind = next(type(s).__qualname__ for s, a in zip(samples, arrays, strict=True) if a is None)
        raise DataError(f"DataLoader: sample{place} must be an array, a number, a string or made of these; got {kind}")
    _same(arrays, place, "shape", lambda array: tuple(array.shape), ShapeError)
    _same(arrays, place, "dtype", lambda array: array.dtype, DtypeError)
    return device_of(arrays[0]).array_module.stack(arrays)


def _same(
    samples: list[Any], place: str, what: str, value: Callable[[Any], Any], kind: type[Exception] = DataError
) -> None:
    """All of ``samples`` must have the ``value`` of the first."""
    expected = value(samples[0])
    for position, sample in enumerate(samples):
        if (came := value(sample)) != expected:
            raise kind(
                f"DataLoader: sample{place} must have one {what} all through a batch; number 0 has {expected}, "
                f"number {position} has {came}"
            )


def _check_integer(name: str, value: Any, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
        raise ArgumentError(f"DataLoader: {name} must be an integer of at least {least}; got {value!r}")


def _tensor(array: Any) -> Any:
    from ...autograd import Tensor

    return Tensor(array)


def _default_seed() -> int:
    from ...autograd.random import default_generator

    return int(default_generator.seed)
