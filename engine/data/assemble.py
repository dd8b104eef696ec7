"""From indices to a batch: samples taken one by one and collated, or rows of whole arrays at once."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...kernels._devices import device_of
from ...kernels._errors import DataError, DtypeError, ShapeError
from .buffers import Empty
from .dataset import batch_method, raw_array
from .prefetch import Stopped, never
from .transforms import Draws

BROKEN = ("stop", "skip", "replace")
#: So many samples in a row may be broken before replacing gives up.
_TRIES = 100
#: Streams of draws: those of samples and those of batches.
_OF_SAMPLES, _OF_BATCHES = 1, 2


class Nothing:
    """The class itself stands for a batch of which every sample was skipped."""


@dataclass
class Assembler:
    """Makes batches of ``dataset``; a worker process gets a copy of it.

    Attributes:
        dataset: has ``__len__`` and ``__getitem__``, perhaps ``batch`` or ``batch_into``.
        collate_fn: makes a batch from a list of samples; None: :func:`collate`.
        sample_transform: applied to the first member of each sample, before they are collated.
        transform: applied to the first member of the batch; a dict of transforms to members of a dict.
        seed: of their draws.
        broken: what to do where a sample raises DataError or OSError, one of :data:`BROKEN`.
    """

    dataset: Any
    collate_fn: Callable[[list[Any]], Any] | None = None
    sample_transform: Any = None
    transform: Any = None
    seed: int = 0
    broken: str = "stop"

    def __call__(
        self,
        indices: np.ndarray,
        epoch: int = 0,
        empty: Empty | None = None,
        stopped: Callable[[], bool] = never,
        missing: list[tuple[int, str]] | None = None,
    ) -> Any:
        """The batch of the samples ``indices``, its arrays not yet Tensors; :class:`Nothing` if all are skipped.

        Args:
            indices: (n,) valid integers.
            epoch: decides the draws of transforms.
            empty: makes the batch's arrays, where they are made here.
            stopped: whether the batch is not wanted any more; asked before each sample.
            missing: samples that were skipped or replaced are added, with the reason of each.
        """
        whole = self._whole()
        if whole is not None:
            batch = whole(indices, empty)
        else:
            samples, present = [], []
            for index in indices:
                if stopped():
                    raise Stopped
                found = self._sample(int(index), [] if missing is None else missing)
                if found is not None:
                    present.append(index)
                    samples.append(self._changed(*found, epoch, index))
            if not samples:
                return Nothing
            indices = np.array(present)
            batch = collate(samples, empty) if self.collate_fn is None else self.collate_fn(samples)
        if self.transform is None:
            return batch
        return _applied(self.transform, batch, Draws(self.seed, epoch, indices, _OF_BATCHES))

    def _whole(self) -> Callable[..., Any] | None:
        return batch_method(self.dataset) if self.collate_fn is None and self.sample_transform is None else None

    def _sample(self, index: int, missing: list[tuple[int, str]]) -> tuple[Any] | None:
        """The sample or the one that replaces it, in a tuple; None if it is skipped."""
        if self.broken == "stop":
            return (self.dataset[index],)
        for further in range(_TRIES):
            try:
                return (self.dataset[(index + further) % len(self.dataset)],)
            except (DataError, OSError) as error:
                if not further:
                    missing.append((index, f"{type(error).__name__}: {error}"))
                if self.broken == "skip":
                    return None
        raise DataError(f"DataLoader: none of the {_TRIES} samples from {index} on can be read: {missing[-1][1]}")

    def _changed(self, sample: Any, epoch: int, index: int) -> Any:
        if self.sample_transform is None:
            return sample
        draws = Draws(self.seed, epoch, np.array([index]), _OF_SAMPLES)
        return _applied(self.sample_transform, sample, draws, alone=True)


def _applied(transform: Any, value: Any, draws: Draws, alone: bool = False) -> Any:
    """``value``, a batch or with ``alone`` a sample, its first member changed."""
    if isinstance(transform, Mapping):
        return {**value, **{key: _applied(one, value[key], draws, alone) for key, one in transform.items()}}
    if isinstance(value, tuple | list):
        members = [_applied(transform, value[0], draws, alone), *value[1:]]
        return type(value)(*members) if hasattr(value, "_fields") else type(value)(members)
    array = raw_array(value)
    return transform(array[None], draws)[0] if alone else transform(array, draws)


def _holds_array(value: Any) -> bool:
    return raw_array(value) is not None


def mapped(value: Any, change: Callable[[Any], Any], chosen: Callable[[Any], bool] = _holds_array) -> Any:
    """A batch with what is ``chosen`` in it, arrays and Tensors, changed; dicts, tuples, lists keep their structure."""
    if isinstance(value, Mapping):
        return {key: mapped(member, change, chosen) for key, member in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(mapped(member, change, chosen) for member in value))
    if isinstance(value, tuple | list):
        return type(value)(mapped(member, change, chosen) for member in value)
    return change(value) if chosen(value) else value


def collate(samples: list[Any], empty: Empty | None = None) -> Any:
    """One batch from ``samples``, each of the same structure; see :class:`~.loader.DataLoader`.

    Args:
        samples: at least one.
        empty: makes the arrays of the batch from a shape and a dtype, where the samples' are of the host.

    Raises:
        ShapeError, DtypeError: arrays of one place differ.
        DataError: structures differ, or a sample holds something that cannot be put into a batch.
    """
    return _collate(samples, "", empty)


def _collate(samples: list[Any], place: str, empty: Empty | None) -> Any:
    first = samples[0]
    if isinstance(first, Mapping):
        _same(samples, place, "keys", lambda sample: sorted(map(str, sample)) if isinstance(sample, Mapping) else None)
        return {key: _collate([sample[key] for sample in samples], f"{place}[{key!r}]", empty) for key in first}
    if isinstance(first, tuple | list):
        _same(samples, place, "length", lambda sample: len(sample) if isinstance(sample, tuple | list) else None)
        members = [_collate(list(group), f"{place}[{i}]", empty) for i, group in enumerate(zip(*samples, strict=True))]
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
    stack = device_of(arrays[0]).array_module.stack
    if empty is None or type(arrays[0]) is not np.ndarray or arrays[0].dtype.hasobject:
        return stack(arrays)
    return stack(arrays, out=empty((len(arrays), *arrays[0].shape), arrays[0].dtype))


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
