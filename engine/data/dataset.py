"""Data sets: a length and samples by index; tensors as a data set; parts of one; random splits.

A data set that can give many samples at once says so by a method ``batch(indices)``, which returns
what collating ``[self[i] for i in indices]`` would; the loader then never goes sample by sample.
One that can also put them where it is told has ``batch_into(indices, empty)`` instead, and makes its
arrays by ``empty(shape, dtype)``: in buffers that are used again, shared with another process, or pinned.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from ...kernels._devices import device_of, is_array
from ...kernels._errors import ArgumentError, IndexRangeError, ShapeError
from .buffers import Empty

#: The stream of :func:`random_order` that splits use; a loader uses its epoch's number.
SPLIT_STREAM = 2**64 - 1


class Dataset:
    """Base of data sets: subclasses give ``__len__`` and ``__getitem__``."""

    def __getitem__(self, index: int) -> Any:
        raise NotImplementedError(f"{type(self).__name__} must define __getitem__")

    def __len__(self) -> int:
        raise NotImplementedError(f"{type(self).__name__} must define __len__")

    def __iter__(self) -> Iterator[Any]:
        return (self[index] for index in range(len(self)))


def raw_array(value: Any) -> Any:
    """The raw array of a Tensor, ``value`` itself if it is an array, None if it is neither."""
    if is_array(value):
        return value
    array = getattr(value, "array", None)
    return array if is_array(array) else None


def take(array: Any, indices: Any, empty: Empty | None = None) -> Any:
    """The rows ``indices`` of ``array``, copied, on the array's own device.

    Args:
        array: (N, …).
        indices: (n,) integers, of the host or of the array's device.
        empty: makes the result, where ``array`` lies on the host; the indices must then be valid.
    """
    device = device_of(array)
    if device.name != "cpu":
        return array[device.from_host(indices) if isinstance(indices, np.ndarray) else indices]
    if empty is None or not array.flags.c_contiguous or array.dtype.hasobject:
        return array[indices]  # np.take would first copy all of an array with gaps
    out = empty((len(indices), *array.shape[1:]), array.dtype)
    # "clip" since "raise" fills a copy of `out` first; nothing is clipped.
    return np.take(array, indices, axis=0, out=out, mode="clip")


class TensorDataset(Dataset):
    """Samples are the rows of tensors or arrays of one length: ``dataset[i] == (a[i], b[i], …)``.

    Args:
        tensors: each of shape (N, …), Tensors or arrays; kept, not copied.

    Raises:
        ArgumentError: nothing was given, or something that is no array.
        ShapeError: the lengths differ.
    """

    def __init__(self, *tensors: Any) -> None:
        if not tensors:
            raise ArgumentError("TensorDataset: at least one tensor must be given; got none")
        # A memory map is an array of the host like others; that it is on disk, its base still says.
        self.tensors = tensors = tuple(t.view(np.ndarray) if isinstance(t, np.memmap) else t for t in tensors)
        self.arrays = tuple(raw_array(tensor) for tensor in tensors)
        for position, (tensor, array) in enumerate(zip(tensors, self.arrays, strict=True)):
            if array is None:
                kind = type(tensor).__qualname__
                raise ArgumentError(f"TensorDataset: argument {position} must be a Tensor or an array; got {kind}")
            if array.ndim == 0:
                raise ShapeError(f"TensorDataset: argument {position} must have at least 1 dimension; got none")
            if len(array) != len(self.arrays[0]):
                raise ShapeError(
                    f"TensorDataset: all arguments must have one length; argument 0 has {len(self.arrays[0])}, "
                    f"argument {position} has {len(array)}"
                )

    def __len__(self) -> int:
        return len(self.arrays[0])

    def __getitem__(self, index: int) -> tuple[Any, ...]:
        return tuple(tensor[index] for tensor in self.tensors)

    def batch(self, indices: np.ndarray) -> tuple[Any, ...]:
        """The samples ``indices`` (integers, any order) as one array per tensor."""
        return tuple(take(array, indices) for array in self.arrays)

    def batch_into(self, indices: np.ndarray, empty: Empty | None) -> tuple[Any, ...]:
        """:meth:`batch` of valid indices, in arrays of the host that ``empty(shape, dtype)`` gives."""
        return tuple(take(array, indices, empty) for array in self.arrays)


class Subset(Dataset):
    """The samples ``indices`` of ``dataset``, in that order.

    Raises:
        IndexRangeError: an index lies outside ``dataset``.
    """

    def __init__(self, dataset: Any, indices: Sequence[int] | np.ndarray) -> None:
        self.dataset = dataset
        self.indices = checked_indices("Subset", indices, len(dataset))

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Any:
        return self.dataset[int(self.indices[index])]


def checked_indices(operation: str, indices: Any, length: int) -> np.ndarray:
    """``indices`` as an int64 array, each from 0 to ``length`` - 1."""
    array = np.asarray(indices)
    if array.size == 0:
        return np.zeros(0, np.int64)
    if array.ndim != 1 or array.dtype.kind not in "iu":
        raise ArgumentError(
            f"{operation}: indices must be a sequence of integers; got shape {array.shape} of {array.dtype}"
        )
    wrong = np.flatnonzero((array < 0) | (array >= length))
    if wrong.size:
        raise IndexRangeError(
            f"{operation}: indices must be from 0 to {length - 1}; got {array[wrong[0]]} at position {wrong[0]}"
        )
    return array.astype(np.int64)


def check_whole(operation: str, name: str, value: Any, least: int | None = None, most: int | None = None) -> None:
    """Refuse what is no whole number, or outside its bounds."""
    whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
    if not whole or (least is not None and value < least) or (most is not None and value > most):
        bounds = f"of at least {least}" if most is None else f"from {least} to {most}"
        raise ArgumentError(
            f"{operation}: {name} must be an integer{'' if least is None else f' {bounds}'}; got {value!r}"
        )


def batch_method(dataset: Any) -> Callable[..., Any] | None:
    """A function of (indices, empty=None) that gives many samples of ``dataset`` at once, or None if it has none.

    A subclass that changes ``__getitem__`` and inherits ``batch`` is asked sample by sample, since
    the inherited method knows nothing of the change.
    """
    if type(dataset) is Subset:
        parent = batch_method(dataset.dataset)
        return None if parent is None else lambda indices, empty=None: parent(dataset.indices[indices], empty)
    for kind in type(dataset).__mro__:
        if "batch_into" in vars(kind):
            return lambda indices, empty=None: dataset.batch_into(indices, np.empty if empty is None else empty)
        if "batch" in vars(kind):
            return lambda indices, empty=None: dataset.batch(indices)
        if "__getitem__" in vars(kind):
            return None
    return None


def in_memory(dataset: Any) -> bool:
    """Whether all samples are rows of arrays of the host, none of them mapped from a file."""
    while type(dataset) is Subset:
        dataset = dataset.dataset
    arrays = getattr(dataset, "arrays", ())
    return isinstance(dataset, TensorDataset) and all(
        type(array) is np.ndarray and not isinstance(array.base, np.memmap) for array in arrays
    )


def random_order(seed: int, stream: int, length: int) -> np.ndarray:
    """A random permutation of ``range(length)``, a pure function of its three arguments.

    Sorts ``length`` raw words of Philox4x64 keyed by (seed, stream).  NumPy keeps the words of its
    bit generators the same for ever (NEP 19) but not ``Generator.permutation``, and a resumed run
    must find its old order under a newer NumPy too.

    Returns:
        (length,) int64.
    """
    key = np.array([seed % 2**64, stream % 2**64], np.uint64)
    # The default generator has keys of this form too, and begins at counter 0: stay out of its way.
    counter = np.array([0, 0, 0, 1], np.uint64)
    words = np.random.Philox(key=key, counter=counter).random_raw(length)
    return np.argsort(words, kind="stable").astype(np.int64)


def random_split(
    dataset: Any, lengths: Sequence[int | float], generator: Any = None, *, seed: int | None = None
) -> list[Subset]:
    """Cut ``dataset`` at random into parts that do not overlap.

    Args:
        lengths: sample counts that add up to ``len(dataset)``, or fractions that add up to 1; then
            each part gets the floor of its share, and what is left goes one by one to the first
            parts.
        generator: a NumPy Generator, or one of rawgrad's; the default one if ``seed`` is None too.
        seed: instead of ``generator``: the same seed gives the same parts.

    Raises:
        ArgumentError: the lengths do not add up, or are negative, or both sources are given.
    """
    total = len(dataset)
    if not lengths or any(not isinstance(n, int | float | np.number) or not n >= 0 for n in lengths):
        raise ArgumentError(f"random_split: lengths must be counts or fractions, none negative; got {list(lengths)}")
    if all(isinstance(n, int | np.integer) for n in lengths) and sum(lengths) == total:
        counts = [int(n) for n in lengths]
    elif math.isclose(sum(lengths), 1.0, rel_tol=0, abs_tol=1e-9):
        counts = [math.floor(total * share) for share in lengths]
        for extra in range(total - sum(counts)):
            counts[extra % len(counts)] += 1
    else:
        raise ArgumentError(
            f"random_split: lengths must add up to the {total} samples, or, as fractions, to 1; got {list(lengths)}"
        )
    if generator is not None and seed is not None:
        raise ArgumentError("random_split: generator and seed must not both be given")
    if seed is None:
        seed = _draw_seed(generator)
    order = random_order(seed, SPLIT_STREAM, total)
    ends = np.cumsum(counts)
    return [Subset(dataset, order[end - count : end]) for count, end in zip(counts, ends, strict=True)]


def _draw_seed(generator: Any) -> int:
    if generator is None:
        from ...autograd.random import default_generator

        generator = default_generator
    if not isinstance(generator, np.random.Generator):
        generator = generator.numpy()
    return int(generator.integers(2**63))
