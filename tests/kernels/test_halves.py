"""Numbers of 16 bits in kernels: every one of them to float and back, and what lies between them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from rawgrad.kernels import _launch
from rawgrad.kernels._contracts import common_float
from rawgrad.kernels._dtypes import BFLOAT16, FLOAT16, HALVES, halves_in_float32, kind_of, wide
from rawgrad.kernels._errors import DtypeError, LaunchError
from rawgrad.kernels._launch import Kernel

SOURCE = Path(__file__).parent / "planted/halves.cu"
on_a_gpu = pytest.mark.backends("emulated", "cuda")


@pytest.fixture(scope="module")
def kernels() -> Iterator[tuple[Kernel, Kernel]]:
    yield Kernel(SOURCE, "widen", S=HALVES), Kernel(SOURCE, "narrow", S=HALVES)
    for name in ("widen", "narrow"):
        del _launch.KERNELS[SOURCE, name]


def every(dtype):
    """All 65536 numbers of ``dtype``."""
    return np.arange(2**16, dtype=np.uint16).view(dtype)


@on_a_gpu
@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_every_half_is_widened_exactly(backend, kernels, dtype):
    stored = every(dtype)
    one, eight = (backend.put(np.zeros(2**16, np.float32)) for _ in range(2))
    kernels[0][dtype](256, 256, backend.put(stored), one, eight)
    expected = stored.astype(np.float32)
    np.testing.assert_array_equal(backend.get(one), expected)
    np.testing.assert_array_equal(backend.get(eight), expected)
    np.testing.assert_array_equal(np.signbit(backend.get(one)[expected == 0]), [False, True])


# Each half, the middle between it and the next one, and the floats beside that middle; then what becomes infinite.
@on_a_gpu
@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_floats_are_rounded_to_the_nearest_half_and_ties_to_even(backend, kernels, dtype):
    magnitudes = every(dtype)[: 2**15]
    finite = magnitudes[np.isfinite(magnitudes.astype(np.float32))].astype(np.float64)
    middles = ((finite[:-1] + finite[1:]) / 2).astype(np.float32)
    largest = np.float32(finite[-1] + (finite[-1] - finite[-2]) / 2)  # rounds to infinity
    edges = [largest, np.nextafter(largest, np.float32(0)), np.inf, np.nan, np.finfo(np.float32).max]
    values = [finite.astype(np.float32), middles, np.nextafter(middles, np.float32(0)), np.float32(edges)]
    values.append(np.nextafter(middles, np.float32(np.inf)))
    floats = np.concatenate([sign * np.concatenate(values) for sign in (np.float32(1), np.float32(-1))])
    floats = np.concatenate([floats, np.zeros(-len(floats) % 256, np.float32)])
    one, eight = (backend.put(np.zeros(len(floats), dtype)) for _ in range(2))
    kernels[1][dtype](len(floats) // 256, 256, backend.put(floats), one, eight)
    with np.errstate(over="ignore"):
        expected = floats.astype(dtype).astype(np.float32)
    for found in (one, eight):
        found = backend.get(found).astype(np.float32)
        np.testing.assert_array_equal(found, expected)
        numbers = ~np.isnan(expected)
        np.testing.assert_array_equal(np.signbit(found[numbers]), np.signbit(expected[numbers]))


@pytest.mark.backends("emulated")
def test_a_half_is_no_number_to_hand_over(backend, tmp_path):
    path = tmp_path / "number.cu"
    path.write_text('#include "half.cuh"\n__global__ void set(Bf16* x, Bf16 value) { *x = value; }\n')
    kernel = Kernel(path, "set")
    try:
        with pytest.raises(LaunchError, match="value is a Bf16; numbers are handed over as float"):
            kernel(1, 1, backend.put(np.zeros(1, BFLOAT16)), 1.0)
    finally:
        del _launch.KERNELS[path, "set"]


def test_kinds_and_widths():
    assert [kind_of(np.dtype(t)) for t in (BFLOAT16, FLOAT16, np.float64, np.int8, np.bool_)] == list("fffib")
    assert [wide(np.dtype(t)) for t in (BFLOAT16, FLOAT16, np.float64)] == [np.float32, np.float32, np.float64]


def test_operations_without_kernels_for_halves_say_what_to_do():
    for dtype in HALVES:
        x = np.zeros(2, dtype)
        with pytest.raises(DtypeError, match=rf'op: x must be float32 or float64; got {dtype}; .* \.to\("float32"\)'):
            common_float("op", x=x)
        assert common_float("op", halves=True, x=x) == dtype
        with pytest.raises(DtypeError, match=f"op: all arguments must have one dtype; x is {dtype}, y is float32"):
            common_float("op", halves=True, x=x, y=np.zeros(2, np.float32))
    with pytest.raises(DtypeError, match="op: x must be float32, float64, float16 or bfloat16; got int64$"):
        common_float("op", halves=True, x=np.zeros(2, np.int64))


def test_what_is_computed_in_float32_is_rounded_once():
    seen = []

    @halves_in_float32(slice(1))
    def function(x, scale, out):
        seen.append((x.dtype, out))
        return x * np.float32(scale), x

    x = np.array([1, 65504], FLOAT16)
    first, second = function(x, 1.5, None)
    assert first.dtype == FLOAT16 and second.dtype == np.float32 and seen == [(np.float32, None)]
    np.testing.assert_array_equal(first, [1.5, np.inf])

    @halves_in_float32()
    def alone(x, out=None):
        assert out is None
        return x + np.float32(2.0**-11)

    out = np.zeros(2, FLOAT16)
    assert alone(x, out) is out
    np.testing.assert_array_equal(out, [1, 65504])
    assert alone(np.zeros(2, np.float64)).dtype == np.float64
