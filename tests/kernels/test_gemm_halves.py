"""gemm of float16 and bfloat16 arrays."""

from __future__ import annotations

import numpy as np
import pytest
from _gemm import FLAGS, activated, magnitude, product, random, skip_where_numba_is, slopes
from _layouts import untouched
from _tolerance import assert_accurate
from _versions import skip_unless_there

from rawgrad.kernels._dispatch import precision
from rawgrad.kernels._dtypes import BFLOAT16, HALVES
from rawgrad.kernels._errors import BackendError
from rawgrad.kernels.gemm import BY_OUTPUT, gemm, linear_backward
from rawgrad.kernels.gemm.cost import HALF_WAYS, choose, slices

pytestmark = pytest.mark.operation("gemm")


HALF_VERSIONS = [None, *HALF_WAYS]


# Tiles have sides of 64, 128 and 256 and are 32 deep, three of them under way: one number; whole tiles; edges on all
# sides, in lengths that are multiples of 8, of which 16 bytes are copied at once, of 2, and odd; more tiles than are
# under way; few results of a long sum, whose K is cut where the version is not chosen; an empty sum.
@pytest.mark.parametrize("version", HALF_VERSIONS)
@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize(
    ("M", "N", "K"), [(1, 1, 1), (64, 64, 32), (65, 63, 33), (264, 136, 40), (15, 130, 160), (8, 4, 520), (2, 3, 0)]
)
def test_halves(backend, version, dtype, M, N, K):
    """Products are exact, sums are float32's, and y is rounded once."""
    skip_unless_there(backend.name, "gemm", "gemm", version)
    skip_where_numba_is(backend)
    for flags in FLAGS:
        a = random((K, M) if flags[0] else (M, K), dtype)
        b = random((N, K) if flags[1] else (K, N), dtype, seed=1)
        bias = random((N,), dtype, seed=2)
        arguments = backend.put(a), backend.put(b), backend.put(bias)
        with untouched(*arguments):
            y = gemm(*arguments, transpose_a=flags[0], transpose_b=flags[1], version=version)
        assert y.dtype == dtype
        floats = [x.astype(np.float32) for x in (a, b, bias)]
        assert_accurate(backend.get(y), product, a, b, bias, *flags, scale=magnitude(*floats, *flags))


@pytest.mark.parametrize("version", list(HALF_WAYS))
def test_halves_that_start_between_vectors(backend, version):
    """As test_a_matrix_that_starts_between_vectors; and a result whose pairs do not start at multiples of 4 bytes."""
    skip_unless_there(backend.name, "gemm", "gemm", version)
    M, N, K = 72, 80, 40
    a, b = (np.rint(3 * random((2 + n,), seed=n)).astype(np.float16) for n in (M * K, K * N))
    for skips in (
        (0, 0, 0),
        (2, 0, 0),
        (0, 1, 1),
        (1, 2, 0),
    ):  # numbers: those behind a multiple of 4 bytes go by pairs
        of_a, of_b = a[skips[0] :][: M * K].reshape(M, K), b[skips[1] :][: K * N].reshape(K, N)
        put_a, put_b = backend.put(a)[skips[0] :][: M * K], backend.put(b)[skips[1] :][: K * N]
        out = backend.put(np.zeros(M * N + 1, np.float16))[skips[2] :][: M * N].reshape(M, N)
        y = gemm(put_a.reshape(M, K), put_b.reshape(K, N), out=out, version=version)
        np.testing.assert_array_equal(backend.get(y), of_a.astype(np.float32) @ of_b)


# Slices of whole tiles, and not; of a single chunk of 8.  Three layers of the grid for eight slices of two products.
@pytest.mark.parametrize("version", list(HALF_WAYS))
@pytest.mark.parametrize(("K", "splits", "launched"), [(128, 4, 4), (70, 3, 3), (24, 5, 3), (8, 2, 1)])
def test_slices_of_halves_are_added_in_float32(backend, version, K, splits, launched, monkeypatch):
    skip_unless_there(backend.name, "gemm", "gemm", version)
    monkeypatch.setattr("rawgrad.kernels.gemm.cuda._MAX_Z", 3)
    monkeypatch.setattr("rawgrad.kernels.gemm.cuda.choose", lambda *arguments: (version, splits))
    monkeypatch.setattr("rawgrad.kernels.gemm.cuda.architecture", lambda array: 80)
    assert slices(K, splits)[0] == launched
    a, b, bias = (random(s, BFLOAT16, seed=K) for s in ((2, 18, K), (2, K, 20), (20,)))
    y = gemm(*map(backend.put, (a, b, bias)), activation="relu")
    floats = [x.astype(np.float32) for x in (a, b, bias)]
    assert_accurate(backend.get(y), activated("relu"), a, b, bias, scale=magnitude(*floats))


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_halves_overflow_and_keep_nan(backend, dtype):
    skip_where_numba_is(backend)
    largest = 65504 if dtype == np.float16 else 3.3895313892515355e38
    a = np.array([[1, 2], [np.nan, 1], [np.inf, -1], [largest, largest], [largest, -largest]]).astype(dtype)
    y = backend.get(gemm(backend.put(a), backend.put(np.ones((2, 9), dtype))))
    np.testing.assert_array_equal(y[:, 8].astype(np.float32), np.float32([3, np.nan, np.inf, np.inf, 0]))


# With an activation h is rounded before it is multiplied.  Eighths times sixteenths: h has one value, in whatever order
# it is computed, and some have more digits than bfloat16.  600 rows are summed in slices.
@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("activation", [None, *BY_OUTPUT])
@pytest.mark.parametrize(
    ("M", "wanted"), [(600, (True, True, True)), (17, (True, False, False)), (3, (False, False, True))]
)
def test_linear_backward_of_halves(backend, dtype, activation, M, wanted):
    skip_where_numba_is(backend)
    rng, N, K = np.random.default_rng(4), 33, 24
    grad, y = rng.integers(-64, 65, (M, N)) / 16, rng.integers(0, 9, (M, N)) / 8
    h = slopes(grad, y, activation).astype(dtype)
    a, b = random((M, K), dtype), random((N, K), dtype, seed=1)
    put = [backend.put(x.astype(dtype)) for x in (grad, a, b, y)]
    with untouched(*put):
        found = linear_backward(*put, activation=activation, wanted=wanted)
    for result, definition, other, asked in zip(
        found,
        (product, lambda h, a: product(h, a, None, True), lambda h, _: h.sum(axis=0, dtype=h.dtype)),
        (b, a, a),
        wanted,
        strict=True,
    ):
        assert (result is not None) == asked
        if asked:
            assert result.dtype == dtype
            scale = definition(abs(h.astype(np.float64)), abs(other.astype(np.float64)))
            assert_accurate(backend.get(result), definition, h, other, scale=scale)


def test_versions_take_halves_or_nothing_else(backend):
    half, single = backend.put(np.ones((2, 2), BFLOAT16)), backend.put(np.ones((2, 2), np.float32))
    if backend.name == "numba_cuda":
        with pytest.raises(BackendError, match="take bfloat16; the other versions do not"):
            gemm(half, half)
        return
    skip_unless_there(backend.name, "gemm", "gemm", "v14_half_cp_async_64")
    for version in ("v1_plain", "v8_tensor_core_pipelined_64_bf16"):
        with pytest.raises(BackendError, match="v14_half_cp_async_64 take bfloat16; the other versions do not"):
            gemm(half, half, version=version)
    with pytest.raises(BackendError, match="gemm: this version takes float16 and bfloat16; got float32"):
        gemm(single, single, version="v14_half_cp_async_64")
    with precision("tf32"):  # says nothing about halves
        np.testing.assert_array_equal(backend.get(gemm(half, half)).astype(np.float32), np.full((2, 2), 2))


def test_what_the_model_chooses_for_halves():
    """Large tiles where they fill an H100, small ones where they do not, and slices of K where those do not either."""
    ways = tuple(HALF_WAYS)
    assert choose(4096, 4096, 4096, 1, 2, 132, ways) == ("v14_half_cp_async_256", 1)
    assert choose(1024, 1024, 1024, 1, 2, 132, ways) == ("v14_half_cp_async_128", 1)
    assert choose(512, 512, 512, 1, 2, 132, ways)[0] == "v14_half_cp_async_64"
    assert choose(64, 64, 16384, 1, 2, 132, ways)[1] > 1
    splits = choose(8192, 128, 2**20, 1, 2, 132, ways)[1]
    assert splits * 8192 * 128 * 4 <= 2**28  # bytes of the slices, in float32
