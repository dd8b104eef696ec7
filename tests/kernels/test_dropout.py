"""Dropout: Random123's known answers, Philox in plain integers, and the statistics of the masks."""

from __future__ import annotations

import math

import numpy as np
import pytest
from _layouts import LAYOUTS, untouched
from _versions import every_version
from hypothesis import given
from hypothesis import strategies as st

from rawgrad.kernels import dropout as ops
from rawgrad.kernels._errors import ArgumentError, DtypeError, ShapeError


def offset_of(backend, value):
    return backend.put(np.array([value], np.uint64))


def philox_block(counter, key):
    """Philox4x32-10 in Python's integers, from the paper: the S-box of two multiplications, ten times."""
    c, k = list(counter), list(key)
    for _ in range(10):
        a, b = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [(b >> 32) ^ c[1] ^ k[0], b % 2**32, (a >> 32) ^ c[3] ^ k[1], a % 2**32]
        k = [(k[0] + 0x9E3779B9) % 2**32, (k[1] + 0xBB67AE85) % 2**32]
    return c


# Random123's kat_vectors, "philox4x32 10": counter, key, answer
KNOWN = [
    ([0] * 4, [0] * 2, [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
    ([0xFFFFFFFF] * 4, [0xFFFFFFFF] * 2, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
    (
        [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
        [0xA4093822, 0x299F31D0],
        [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
    ),
]


@pytest.mark.parametrize(("counter", "key", "answer"), KNOWN)
def test_known_answers(backend, counter, key, answer):
    assert philox_block(counter, key) == answer
    seed, offset = key[0] + (key[1] << 32), offset_of(backend, counter[2] + (counter[3] << 32))
    words = backend.get(ops.philox(seed, offset, 4, first_block=counter[0] + (counter[1] << 32)))
    assert words.dtype == np.uint32
    assert words.tolist() == answer


@given(
    st.integers(0, 2**64 - 1),
    st.integers(0, 2**64 - 1),
    st.integers(0, 21),
    st.integers(0, 10) | st.integers(2**32 - 3, 2**32 + 3) | st.integers(2**64 - 3, 2**64 - 1),
)
def test_words_of_any_key_and_length(backend, seed, offset, n, first_block):
    """Lengths that are no multiple of four; blocks whose number passes 2**32 and wraps at 2**64."""
    expected = []
    for block in range(first_block, first_block + 6):
        block %= 2**64
        counter = [block % 2**32, block >> 32, offset % 2**32, offset >> 32]
        expected += philox_block(counter, [seed % 2**32, seed >> 32])
    words = backend.get(ops.philox(seed, offset_of(backend, offset), n, first_block=first_block))
    assert words.tolist() == expected[:n]


def test_long_sequences_are_made_of_the_same_blocks(backend):
    """Where a backend computes in chunks or by many threads: 100,003 words, looked at here and there."""
    words = backend.get(ops.philox(7, offset_of(backend, 9), 100_003))
    assert words.shape == (100_003,)
    for i in [0, 16_383, 16_384, 32_768, 65_535, 65_536, 99_999, 100_002]:
        assert words[i] == philox_block([i // 4, 0, 9, 0], [7, 0])[i % 4]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("p", [0.25, 0.5, 1 / 3, 0.9])
@pytest.mark.parametrize("layout", LAYOUTS)
# the last ones: one below, at and one above a block of 256 threads with four elements each
@pytest.mark.parametrize("shape", [(), (1,), (5,), (2, 3, 5, 7), (0, 4), (1023,), (1024,), (1025,)], ids=str)
def test_mask_and_scale_follow_the_definition(backend, dtype, p, layout, shape):
    host = np.random.default_rng(8).standard_normal(shape).astype(dtype)
    x, offset = backend.put(host, layout), offset_of(backend, 3)
    with untouched(x, offset):
        y = ops.dropout_forward(x, p, 11, offset)
    expected = np.zeros(host.size, dtype)
    for i, value in enumerate(host.ravel()):
        word = philox_block([i // 4, 0, 3, 0], [11, 0])[i % 4]
        if word >= math.ceil(p * 2**32):
            expected[i] = value * dtype(1 / (1 - p))
    assert backend.get(y).dtype == dtype
    np.testing.assert_array_equal(backend.get(y), expected.reshape(shape))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("n", [3, 4, 9])
def test_arrays_that_do_not_start_at_16_bytes(backend, dtype, n):
    host = np.random.default_rng(9).standard_normal(n + 1).astype(dtype)
    off = ops.dropout_forward(backend.put(host)[1:], 0.5, 11, offset_of(backend, 3))
    at = ops.dropout_forward(backend.put(host[1:]), 0.5, 11, offset_of(backend, 3))
    words = [w for b in range(3) for w in philox_block([b, 0, 3, 0], [11, 0])][:n]
    np.testing.assert_array_equal(backend.get(off), np.where(np.array(words) >= 2**31, 2 * host[1:], 0))
    np.testing.assert_array_equal(backend.get(off), backend.get(at))


# One below, at and one above: a block; what a vector of 16, 32 or 64 bytes holds; a part of 16384 words; several
LENGTHS = [0, 1, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 47, 63, 64, 65, 16383, 16384, 16385, 32767, 32768, 49193]


# One below, at and one above what a block of v2 owns, and a block of v1; less than a vector; arrays that begin at a
# multiple of 16 bytes and not.
@pytest.mark.backends("emulated", "cuda")
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_versions_give_the_same_bits(backend, dtype, monkeypatch):
    from rawgrad.kernels.dropout import cuda

    offset = backend.put(np.array([5], np.uint64))
    for n in (0, 1, 3, 4, 1023, 1024, 1025, 2047, 2048, 2049, 5000):
        for start in (0, 1):
            x = backend.put(np.random.default_rng(n).standard_normal(n + 1).astype(dtype))[start : n + start]
            one, two = (ops.dropout_forward(x, 0.3, 7, offset, version=v) for v in ("v1_vector", "v2_ahead"))
            np.testing.assert_array_equal(backend.get(one), backend.get(two))
    monkeypatch.setattr(cuda, "_LARGE", 5000)  # the default changes over there
    np.testing.assert_array_equal(backend.get(ops.dropout_forward(x, 0.3, 7, offset)), backend.get(two))


# A block of four that is stored as vectors, and three elements that are not.
@pytest.mark.parametrize("version", every_version("dropout", "dropout_forward"))
def test_the_least_word_that_is_kept(backend, version):
    ones, offset = backend.put(np.ones(7, np.float32)), offset_of(backend, 3)
    words = [int(word) for word in backend.get(ops.philox(7, offset, 7))]
    for place, word in enumerate(words):
        kept, dropped = (
            backend.get(ops.dropout_forward(ones, p / 2**32, 7, offset, version=version)) > 0 for p in (word, word + 1)
        )
        assert kept[place] and not dropped[place]


@pytest.mark.backends("numba")
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_bits_of_the_reference_for_any_number_of_threads(backend, dtype):
    from rawgrad.kernels._jit import get_num_threads, set_num_threads
    from rawgrad.kernels.dropout import reference

    seed, offset, first_block, threads = 2**64 - 5, np.array([2**63 + 9], np.uint64), 2**64 - 1000, get_num_threads()
    x = np.random.default_rng(10).standard_normal(LENGTHS[-1]).astype(dtype)
    y = reference.dropout_forward(x, 0.3, seed, offset)
    words = reference.philox(seed, offset, x.size, first_block)
    for length in LENGTHS:
        for count in {1, threads}:
            set_num_threads(count)
            try:
                ours = ops.dropout_forward(x[:length], 0.3, seed, offset)
                drawn = ops.philox(seed, offset, length, first_block=first_block)
            finally:
                set_num_threads(threads)
            np.testing.assert_array_equal(ours, y[:length])
            np.testing.assert_array_equal(drawn, words[:length])


def test_probabilities_next_to_none_and_all(backend):
    """ceil(p 2^32) is 1 and 2^32 there: p > 0 drops the word 0 alone, p just below 1 drops every word."""
    x = backend.put(np.ones(41))
    for p, expected in [(5e-324, 1.0), (1 - 2**-53, 0.0)]:
        y = ops.dropout_forward(x, p, 11, offset_of(backend, 3))
        np.testing.assert_array_equal(backend.get(y), np.full(41, expected))


def test_traffic_is_each_array_once(backend):
    if backend.name != "emulated":
        pytest.skip("only the emulator counts bytes")
    from rawgrad.kernels._emulator.runtime import record_launches

    x, offset = backend.put(np.ones(4100, np.float32)), offset_of(backend, 3)
    with record_launches() as launches:
        ops.dropout_forward(x, 0.5, 11, offset)
        words = ops.philox(11, offset, 4100)
    forward, philox = (launch.traffic for launch in launches)
    assert (forward.distinct_read, forward.global_written) == (x.nbytes + offset.nbytes, x.nbytes)
    assert (philox.distinct_read, philox.global_written) == (offset.nbytes, words.nbytes)


@pytest.mark.parametrize("p", [0.1, 0.5, 0.75])
def test_mean_and_variance(backend, p):
    """Of y for x = 1: mean 1, variance p/(1-p); neighbours and other offsets are uncorrelated. Five sigma."""
    n = 200_000
    x = backend.put(np.ones(n))
    y = backend.get(ops.dropout_forward(x, p, 1234, offset_of(backend, 0)))
    sigma = math.sqrt(p / (1 - p))
    assert abs(y.mean() - 1) < 5 * sigma / math.sqrt(n)
    kept = (y != 0) - (1 - p)  # mean 0, variance p (1 - p)
    assert abs(y.var() / sigma**2 - 1) < 5 * abs(1 - 2 * p) / math.sqrt(n * p * (1 - p)) + 1e-4
    other = (backend.get(ops.dropout_forward(x, p, 1234, offset_of(backend, 1))) != 0) - (1 - p)
    for a, b in [(kept[1:], kept[:-1]), (kept[4:], kept[:-4]), (kept, other)]:
        assert abs((a * b).mean()) < 5 * p * (1 - p) / math.sqrt(n)


def test_a_word_at_the_threshold_is_kept(backend):
    """p = word 0 / 2**32 keeps element 0; the next larger p drops it. Also where four words are used at once."""
    word = philox_block([0, 0, 0, 0], [1, 0])[0]
    for n in (1, 4):
        for p, kept in [(word / 2**32, True), (np.nextafter(word / 2**32, 1), False)]:
            y = ops.dropout_forward(backend.put(np.ones(n)), p, 1, offset_of(backend, 0))
            assert bool(backend.get(y)[0]) is kept


def test_none_and_all(backend):
    host = np.array([1.0, -2.0, np.nan, np.inf, 0.0])
    x = backend.put(host)
    y = ops.dropout_forward(x, 0, 5, offset_of(backend, 0))
    np.testing.assert_array_equal(backend.get(y), host)
    assert y is not x and not np.shares_memory(backend.get(y), backend.get(x))
    np.testing.assert_array_equal(backend.get(ops.dropout_forward(x, 1, 5, offset_of(backend, 0))), np.zeros(5))


def test_nan_and_infinity_travel_where_kept(backend):
    host = np.resize([np.nan, np.inf, -np.inf, 1e308], 64)
    kept = backend.get(ops.dropout_forward(backend.put(np.ones(64)), 0.5, 5, offset_of(backend, 2))) != 0
    y = backend.get(ops.dropout_forward(backend.put(host), 0.5, 5, offset_of(backend, 2)))
    np.testing.assert_array_equal(y, np.where(kept, np.resize([np.nan, np.inf, -np.inf, np.inf], 64), 0.0))


def test_refusals(backend):
    x, offset = backend.put(np.ones(3)), offset_of(backend, 0)
    for p in (-0.1, 1.1, math.nan):
        with pytest.raises(ArgumentError, match=r"dropout: p must be a probability in \[0, 1\]; got"):
            ops.dropout_forward(x, p, 0, offset)
    for seed in (-1, 2**64, 1.0, True):
        with pytest.raises(ArgumentError, match=r"dropout: seed must be an integer in \[0, 2\*\*64\); got"):
            ops.dropout_forward(x, 0.5, seed, offset)
    with pytest.raises(DtypeError, match="dropout: offset must be uint64; got int64"):
        ops.dropout_forward(x, 0.5, 0, backend.put(np.array([0])))
    with pytest.raises(ShapeError, match=r"dropout: offset must have one element; got shape \(2,\)"):
        ops.dropout_forward(x, 0.5, 0, backend.put(np.zeros(2, np.uint64)))
    with pytest.raises(DtypeError, match="dropout: x must be float32 or float64; got int64"):
        ops.dropout_forward(backend.put(np.ones(3, np.int64)), 0.5, 0, offset)
    with pytest.raises(ArgumentError, match="philox: n must be in"):
        ops.philox(0, offset, -1)
    with pytest.raises(ArgumentError, match="philox: first_block must be in"):
        ops.philox(0, offset, 4, first_block=2**64)
