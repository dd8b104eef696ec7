"""From indices to a batch: samples taken one by one and collated, or rows of whole arrays at once."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from ...kernels._devices import device_of
from ...kernels._errors import DataError, DtypeError, ShapeError
from .buffers import Empty
from .dataset import batch_method, raw_array
from .prefetch import Stopped


class Assembler:
    """Makes batches of ``dataset``; a worker process gets a copy of it.

    Args:
        dataset: has ``__len__`` and ``__getitem__``, perhaps ``batch`` or ``batch_into``.
        collate_fn: makes a batch from a list of samples; None: :func:`collate`.
    """

    def __init__(self, dataset: Any, collate_fn: Callable[[list[Any]], Any] | None) -> None:
        self.dataset, self.collate_fn = dataset, collate_fn

    def __call__(self, indices: np.ndarray, empty: Empty | None, stopped: Callable[[], bool]) -> Any:
        """The batch of the samples ``indices``, its arrays not yet Tensors.

        Args:
            indices: (n,) valid integers.
            empty: makes its arrays, where they are made here.
            stopped: whether the batch is not wanted any more; asked before each sample.
        """
        whole = batch_method(self.dataset) if self.collate_fn is None else None
        if whole is not None:
            return whole(indices, empty)
        samples = []
        for index in indices:
            if stopped():
                raise Stopped
            samples.append(self.dataset[int(index)])
        return collate(samples, empty) if self.collate_fn is None else self.collate_fn(samples)


def mapped(value: Any, change: Callable[[Any], Any]) -> Any:
    """A batch with each array and Tensor in it changed; dicts, tuples and lists keep their structure."""
    if isinstance(value, Mapping):
        return {key: mapped(member, change) for key, member in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(mapped(member, change) for member in value))
    if isinstance(value, tuple | list):
        return type(value)(mapped(member, change) for member in value)
    return value if raw_array(value) is None else change(value)


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
