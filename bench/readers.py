"""The readers of the prefetcher's bench: a file behind a slow pipe, and a folder of PNG pictures.

Each gives whole batches, to rawgrad by ``batch_into`` (in memory that it is given) and to PyTorch by
``dataset[list]``, by the same code.
"""

from __future__ import annotations

import subprocess
import sys
import threading
import weakref
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import numpy as np

from ..engine.data import Dataset
from ..engine.data.buffers import Empty
from ..kernels._errors import RawgradError

#: Sends pieces of a file when they are asked for ("offset length" in a line), no faster than so many bytes a
#: second.  A program of its own, so that waiting for it is waiting for a pipe and for nothing else.
_SLOW = """
import os, sys, time
file, rate = open(sys.argv[1], "rb"), float(sys.argv[2])
for line in sys.stdin:
    offset, length = map(int, line.split())
    file.seek(offset)
    due = time.monotonic()
    while length:
        piece = file.read(min(length, 8192))
        length -= len(piece)
        due += len(piece) / rate
        time.sleep(max(0, due - time.monotonic()))
        while piece:
            piece = piece[os.write(1, piece):]
"""
PIXELS = 784


class Whole(Dataset):
    """Samples that are read many at a time, in new memory or, by ``batch_into``, where they are put."""

    samples: int

    def __len__(self) -> int:
        return self.samples

    def __getitem__(self, indices: Any) -> tuple[np.ndarray, np.ndarray]:
        return self.batch(np.atleast_1d(indices))

    def batch(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The samples in [0, 1], and their indices."""
        return self.batch_into(indices, np.empty)

    def batch_into(self, indices: np.ndarray, empty: Empty) -> tuple[np.ndarray, np.ndarray]:
        """The same, made by ``empty(shape, dtype)``."""
        bytes_ = self.read(indices)
        x = np.divide(bytes_, np.float32(255), out=empty(bytes_.shape, np.float32))
        return x, indices.astype(np.int64)

    def read(self, indices: np.ndarray) -> np.ndarray:
        """The samples, from 0 to 255."""
        raise NotImplementedError


class Pipe(Whole):
    """Rows of 784 bytes from a file, through pipes that each let ``rate`` bytes a second through.

    Samples that are asked for together must follow one another in the file.

    Args:
        path, samples: the file, and how many rows it has.
        rate: bytes a second.
        pipes: how many batches can be on their way at a time.
    """

    _opening = threading.Lock()

    def __init__(self, path: Path, samples: int, rate: float, pipes: int = 1) -> None:
        self.path, self.samples, self.rate, self.pipes = path, samples, rate, pipes
        self._free: SimpleQueue[Any] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_free": None}  # each process has pipes of its own

    def _opened(self) -> Any:
        command = [sys.executable, "-ISc", _SLOW, str(self.path), str(self.rate)]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        weakref.finalize(self, _stop, process)
        return process

    def read(self, indices: np.ndarray) -> np.ndarray:
        """(n, 784) uint8."""
        with self._opening:
            if self._free is None:
                self._free = SimpleQueue()
                for _ in range(self.pipes):
                    self._free.put(self._opened())
        size, process = PIXELS * len(indices), self._free.get()
        try:
            process.stdin.write(f"{PIXELS * indices[0]} {size}\n".encode())
            process.stdin.flush()
            data = process.stdout.read(size)
        finally:
            self._free.put(process)
        if len(data) != size:
            raise RawgradError(f"bench: the pipe of {self.path} ended early")
        return np.frombuffer(data, np.uint8).reshape(-1, PIXELS)


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.communicate()  # closes both ends


class Pictures(Whole):
    """Grey PNG pictures ``0.png``, ``1.png``, … of a folder."""

    def __init__(self, folder: Path, samples: int) -> None:
        self.folder, self.samples = folder, samples

    def read(self, indices: np.ndarray) -> np.ndarray:
        """(n, H, W) uint8."""
        from PIL import Image

        images = []
        for index in indices:
            with Image.open(self.folder / f"{index}.png", formats=["PNG"]) as picture:
                images.append(np.asarray(picture))
        return np.stack(images)


def write_rows(path: Path, samples: int) -> None:
    """What :class:`Pipe` reads."""
    path.write_bytes(np.random.default_rng(0).integers(0, 256, samples * PIXELS, np.uint8).tobytes())


def write_pictures(folder: Path, samples: int, side: int) -> None:
    """What :class:`Pictures` reads: smooth pictures with some noise, so that they pack as photographs do."""
    from PIL import Image

    draw = np.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)
    slope = np.add.outer(np.arange(side), np.arange(side)) * (200 / (2 * side))
    for index in range(samples):
        pixels = slope + 20 * np.sin(np.arange(side) / (5 + index % 7)) + draw.integers(0, 24, (side, side))
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / f"{index}.png")
