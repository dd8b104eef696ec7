"""Text files that stay on disk: mapped into memory, read where they are asked for."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from ...kernels._errors import ArgumentError, DataError, IndexRangeError
from .buffers import Empty
from .dataset import Dataset

_CHUNK = 2**24


class _Mapped(Dataset):
    """A file as bytes; a copy in another process maps it anew."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._open()

    def _open(self) -> None:
        try:
            if self.path.stat().st_size == 0:
                raise DataError(f"text: {self.path} is empty")
            self._bytes = np.memmap(self.path, np.uint8, "r")
        except OSError as error:
            raise DataError(f"text: {self.path} cannot be read: {error.strerror or error}") from error

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "_bytes"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._open()


class TextWindows(_Mapped):
    """Windows of a text, byte by byte, for a model that predicts the next one.

    ``dataset[i]`` is (input, target), both (length,) int64: the bytes from ``i * stride`` on, and those
    one place further.

    Args:
        path: the file.
        length: bytes of a window.
        stride: from one window to the next; ``length`` if None.

    Raises:
        DataError: the file cannot be read, or has not ``length + 1`` bytes.
    """

    def __init__(self, path: str | os.PathLike[str], length: int, stride: int | None = None) -> None:
        self.length, self.stride = length, length if stride is None else stride
        if min(self.length, self.stride) < 1:
            raise ArgumentError(f"TextWindows: length and stride must be at least 1; got {length} and {stride}")
        super().__init__(path)
        if len(self._bytes) <= length:
            raise DataError(f"text: {path} must have at least {length + 1} bytes; it has {len(self._bytes)}")

    def __len__(self) -> int:
        return (len(self._bytes) - 1 - self.length) // self.stride + 1

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        if not 0 <= index < len(self):
            raise IndexRangeError(f"TextWindows: index must be from 0 to {len(self) - 1}; got {index}")
        window = np.asarray(self._bytes[index * self.stride : index * self.stride + self.length + 1], np.int64)
        return window[:-1], window[1:]

    def batch_into(self, indices: np.ndarray, empty: Empty) -> tuple[np.ndarray, np.ndarray]:
        """Inputs and targets, each (n, length), of valid indices."""
        inputs, targets = (empty((len(indices), self.length), np.int64) for _ in range(2))
        for row, start in enumerate(indices * self.stride):
            inputs[row] = self._bytes[start : start + self.length]
            targets[row] = self._bytes[start + 1 : start + self.length + 1]
        return inputs, targets


class TextLines(_Mapped):
    """The lines of a text, each a ``str`` without its end; where they begin is all that is kept in memory.

    Args:
        path: the file.
        encoding: how bytes become characters.

    Raises:
        DataError: the file cannot be read; a line is not of this encoding (when it is asked for).
    """

    def __init__(self, path: str | os.PathLike[str], encoding: str = "utf-8") -> None:
        super().__init__(path)
        self.encoding = encoding
        size = len(self._bytes)
        ends = [
            start + np.flatnonzero(np.asarray(self._bytes[start : start + _CHUNK]) == ord("\n"))
            for start in range(0, size, _CHUNK)
        ]
        stops = np.concatenate([*ends, [size] if self._bytes[-1] != ord("\n") else []]).astype(np.int64)
        self._starts = np.concatenate([[0], stops + 1])

    def __len__(self) -> int:
        return len(self._starts) - 1

    def __getitem__(self, index: int) -> str:
        if not 0 <= index < len(self):
            raise IndexRangeError(f"TextLines: index must be from 0 to {len(self) - 1}; got {index}")
        line = bytes(self._bytes[self._starts[index] : self._starts[index + 1] - 1])
        try:
            return line.decode(self.encoding).removesuffix("\r")
        except UnicodeDecodeError as error:
            raise DataError(f"text: {self.path}, line {index + 1}: {error}") from error
