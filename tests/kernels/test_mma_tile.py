"""Tiles of tensor cores in shared memory: every number has a place, and no access asks one bank twice."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from rawgrad.kernels import _launch
from rawgrad.kernels._devices import device_named
from rawgrad.kernels._dispatch import BACKENDS, backend
from rawgrad.kernels._launch import BOOLS, Kernel

PROBLEM = BACKENDS["emulated"].problem()
pytestmark = pytest.mark.skipif(PROBLEM is not None, reason=str(PROBLEM))

SOURCE = Path(__file__).parent / "planted/tiles.cu"
BANKS = 32


@pytest.fixture(scope="module")
def places() -> Iterator[Kernel]:
    yield Kernel(SOURCE, "places", BYTES=(2, 4), ROWS=(64, 128), DEPTH=(16, 32), ALONG_K=BOOLS)
    del _launch.KERNELS[SOURCE, "places"]


def distinct(words: np.ndarray) -> bool:
    """Whether the words of each row of ``words`` lie in banks of their own."""
    banks = np.sort(words.reshape(len(words), -1) % BANKS, axis=1)
    assert banks.shape[1] <= BANKS
    return bool((np.diff(banks, axis=1) > 0).all())


# Every tile of gemm_tensor_core.cu, and those that are twice as deep or half as deep.
@pytest.mark.parametrize("along_k", BOOLS)
@pytest.mark.parametrize("depth", [16, 32])
@pytest.mark.parametrize("rows", [64, 128])
@pytest.mark.parametrize("size", [2, 4])
def test_no_access_asks_a_bank_twice(places: Kernel, size: int, rows: int, depth: int, along_k: bool) -> None:
    with backend("emulated"):
        device = device_named("cuda")
        array = device.from_host(np.full(rows * depth, -1, np.int32))
        places[size, rows, depth, along_k](1, 64, array)
        words = device.to_host(array).reshape((rows, depth) if along_k else (depth, rows))

    slow, fast = words.shape
    counts = np.bincount(words.ravel())
    np.testing.assert_array_equal(counts, np.full(rows * depth * size // 4, 4 // size))  # all words, none twice
    chunks = words.reshape(slow, -1, 16 // size)  # 16 bytes side by side
    offsets = np.arange(16 // size) * size // 4
    np.testing.assert_array_equal(chunks, chunks[..., :1] + offsets)
    assert (chunks[..., 0] % 4 == 0).all()

    # Stores: a thread puts four numbers down, 8 bytes that half a warp stores at once or 16 that a quarter does.
    width = size  # in words
    stored = words.reshape(-1, 4)[:, :: 4 // width]
    assert distinct(stored.reshape(-1, BANKS))

    if size == 4 and not along_k:  # read one by one: number g of line t
        blocks = words.reshape(slow // 4, 4, fast // 8, 8).swapaxes(1, 2)
        assert distinct(blocks.reshape(-1, 4 * 8))
    else:  # ldmatrix: the same chunk of eight lines
        lines = chunks[..., :: 4 // size].reshape(slow // 8, 8, -1, 4).swapaxes(1, 2)
        assert distinct(lines.reshape(-1, 8 * 4))
