"""float32 products on tensor cores, from factors cut into parts: as accurate as float32's own."""

from __future__ import annotations

import numpy as np
import pytest
from _gemm import SPLITS, magnitude, product, random
from _versions import skip_unless_there

from rawgrad.kernels._dispatch import precision
from rawgrad.kernels.gemm import gemm, geometry

pytestmark = pytest.mark.operation("gemm")


def test_parts_are_taken_where_they_pay(backend, monkeypatch):
    """The permission is used on GPUs with quick tensor cores, for what fills tiles, and for float32 alone."""
    skip_unless_there(backend.name, "gemm", "gemm", SPLITS[0])
    from rawgrad.kernels.gemm import cuda

    def chosen(M, N, dtype=np.float32):
        a, b = backend.put(np.ones((M, 3), dtype)), backend.put(np.ones((3, N), dtype))
        return cuda._default(geometry(a.shape, b.shape), a)(a, b, (False, False)).kernel.kernel.name

    for gpu, splits in ((80, True), (86, False), (89, False), (90, True), (100, False)):
        monkeypatch.setattr(cuda, "architecture", lambda _array, gpu=gpu: gpu)
        with precision("float32_split"):
            assert chosen(40, 40) == ("gemm_v9_bf16_split" if splits else chosen(40, 40, np.float64))
            assert "split" not in chosen(16, 40) + chosen(40, 16) + chosen(40, 40, np.float64)
        assert "split" not in chosen(40, 40)


@pytest.mark.parametrize("version", SPLITS)
@pytest.mark.parametrize("K", [1, 16, 400])
@pytest.mark.parametrize("decades", [0, 8])
def test_parts_are_as_accurate_as_float32(backend, version, K, decades):
    """Against float64, in units of the absolute products: not less than sums of float32 products, one by one."""
    skip_unless_there(backend.name, "gemm", "gemm", version)
    rng = np.random.default_rng(0)
    a, b = (
        (10 ** rng.uniform(-decades, decades, s) * rng.standard_normal(s)).astype(np.float32)
        for s in ((40, K), (K, 40))
    )
    exact, unit = a.astype(np.float64) @ b.astype(np.float64), magnitude(a, b) * 2.0**-24

    def error(version):
        return np.max(np.abs(backend.get(gemm(backend.put(a), backend.put(b), version=version)) - exact) / unit)

    # One product is rounded once, by at most 1, and what is left out of it is at most as much.
    assert error(version) <= (2 if K == 1 else error("v1_plain"))


@pytest.mark.parametrize("version", SPLITS)
def test_parts_hold_all_digits(backend, version):
    """Numbers times 1: from 2^-103 to the largest one exactly, and below with an error of at most 2^-126."""
    skip_unless_there(backend.name, "gemm", "gemm", version)
    rng = np.random.default_rng(0)
    numbers = np.ldexp(rng.uniform(1, 2, 200) * rng.choice([-1, 1], 200), rng.integers(-103, 128, 200))
    largest, least = np.finfo(np.float32).max, np.float32(2.0**-103)
    ends = [largest, -largest, 2.0**128 - 2.0**119, np.nextafter(np.float32(2.0**128 - 2.0**119), np.float32(0)), least]
    exact = np.float32([*numbers, *ends, np.nextafter(least, np.float32(1)), 0.0])
    one = backend.put(np.ones((1, 1), np.float32))
    for x in (exact[:-7], exact):  # alone, and beside what cannot be split
        np.testing.assert_array_equal(backend.get(gemm(backend.put(x[:, None]), one, version=version))[:, 0], x)
        np.testing.assert_array_equal(backend.get(gemm(one, backend.put(x[None]), version=version))[0], x)
    for end in exact[-7:]:  # each alone: whether it can be split is asked of all that a block holds
        assert backend.get(gemm(backend.put(end.reshape(1, 1)), one, version=version))[0, 0] == end
    tiny = np.float32(np.ldexp(rng.uniform(1, 2, 200), rng.integers(-140, -103, 200)))
    y = backend.get(gemm(backend.put(tiny[:, None]), one, version=version))[:, 0]
    assert np.max(np.abs(y.astype(np.float64) - tiny)) <= 2.0**-126


@pytest.mark.parametrize("version", SPLITS)
@pytest.mark.parametrize("k", [0, 15, 16, 40])  # in the first tile, in the second, in the last
@pytest.mark.parametrize("of_a", [True, False])
def test_what_has_no_parts(backend, version, k, of_a):
    """An infinity times 1 is infinite though 1's second part is 0; times 0 it is NaN; other rows are not touched."""
    skip_unless_there(backend.name, "gemm", "gemm", version)
    a = np.rint(3 * random((70, 41)))
    b = np.rint(3 * random((41, 66), seed=1))
    factor = a if of_a else b.T
    factor[:5, k] = [np.inf, -np.inf, np.nan, np.finfo(np.float32).max, 2.0**127]
    factor.view(np.uint32)[5, k] = 0x7F800001  # a NaN that lies in its lowest bit alone
    (b if of_a else a.T)[k] = np.resize([1, 0, -2, 3], 66 if of_a else 70)
    with np.errstate(invalid="ignore", over="ignore"):
        expected = product(a, b)
    y = backend.get(gemm(backend.put(a), backend.put(b), version=version))
    affected = expected[:6] if of_a else expected[:, :6].T
    assert np.isnan(affected[0]).any() and np.isinf(affected[0]).any() and np.isnan(affected[2:6:3]).all()
    finite = np.isfinite(expected)
    np.testing.assert_array_equal(y[~finite], expected[~finite])
    np.testing.assert_allclose(y[finite], expected[finite], rtol=1e-6)
