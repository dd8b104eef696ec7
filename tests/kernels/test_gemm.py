"""gemm against its definition, hand-worked products, SciPy's BLAS and torch."""

from __future__ import annotations

import numpy as np
import pytest
from _layouts import LAYOUTS, untouched
from _tolerance import assert_accurate
from _versions import every_version, skip_unless_there
from hypothesis import given
from hypothesis import strategies as st

from rawgrad.kernels._dispatch import Operation, precision
from rawgrad.kernels._dtypes import BFLOAT16, HALVES
from rawgrad.kernels._emulator.runtime import record_launches
from rawgrad.kernels._errors import ArgumentError, BackendError, DeviceError, DtypeError, ShapeError
from rawgrad.kernels.activation import activation_backward
from rawgrad.kernels.dropout import dropout_forward, philox
from rawgrad.kernels.gemm import (
    ACTIVATIONS,
    BY_OUTPUT,
    Layer,
    gemm,
    geometry,
    hopper,
    linear_backward,
    linear_layers_backward,
)
from rawgrad.kernels.gemm.cost import DEPTH, HALF_WAYS, TENSOR_CORES, WAYS, choose, predicted, slices

DTYPES = [np.float32, np.float64]


def product(a, b, bias=None, transpose_a=False, transpose_b=False):
    """The definition: every element a sum of products, in the dtype of the arguments."""
    a = np.swapaxes(a, -1, -2) if transpose_a else a
    b = np.swapaxes(b, -1, -2) if transpose_b else b
    y = (a[..., :, :, None] * b[..., None, :, :]).sum(axis=-2, dtype=a.dtype)  # (..., M, K, N) summed over K
    return y if bias is None else y + bias


def magnitude(a, b, bias=None, *flags):
    return product(abs(a), abs(b), None if bias is None else abs(bias), *flags).astype(np.float64)


def activated(kind):
    from scipy import special

    functions = {
        "relu": lambda z: np.maximum(z, 0),
        "gelu": lambda z: z / 2 * (1 + special.erf(z / np.sqrt(z.dtype.type(2)))),
        "silu": lambda z: z * special.expit(z),
        "sigmoid": special.expit,
        "tanh": np.tanh,
    }
    return lambda *arguments: functions[kind](product(*arguments))


def random(shape, dtype=np.float32, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def fitting(version, *arrays):
    """``arrays`` of small integers in a dtype that the version takes: float16 where it is for halves alone."""
    return [array.astype(np.float16) if version in HALF_WAYS else array for array in arrays]


def test_worked_by_hand(backend):
    a = backend.put(np.array([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]))
    b = backend.put(np.array([[1.0, 0.0], [-1.0, 2.0], [0.5, 1.0]]))
    bias = backend.put(np.array([-10.0, 100.0]))
    np.testing.assert_array_equal(backend.get(gemm(a, b)), [[0.5, 7.0], [2.0, 16.0]])
    np.testing.assert_array_equal(backend.get(gemm(a, b, bias)), [[-9.5, 107.0], [-8.0, 116.0]])
    np.testing.assert_array_equal(backend.get(gemm(a, b, bias, activation="relu")), [[0.0, 107.0], [0.0, 116.0]])
    np.testing.assert_array_equal(
        backend.get(gemm(a, a, transpose_a=True)), [[17.0, 22.0, 27.0], [22.0, 29.0, 36.0], [27.0, 36.0, 45.0]]
    )
    np.testing.assert_array_equal(backend.get(gemm(a, a, transpose_b=True)), [[14.0, 32.0], [32.0, 77.0]])


@st.composite
def products(draw):
    """Shapes of a, b and bias before transposition; sizes from empty to just beyond a vector's width."""
    M, N, K = (draw(st.sampled_from([0, 1, 2, 3, 5, 17])) for _ in range(3))
    batch = tuple(draw(st.lists(st.sampled_from([0, 1, 2, 3]), max_size=2)))
    batch_of_a = tuple(1 if draw(st.booleans()) else n for n in batch)[draw(st.integers(0, len(batch))) :]
    batch_of_b = batch[draw(st.integers(0, len(batch))) :]
    flags = draw(st.booleans()), draw(st.booleans())
    a = (*batch_of_a, *((K, M) if flags[0] else (M, K)))
    b = (*batch_of_b, *((N, K) if flags[1] else (K, N)))
    return a, b, (N,) if draw(st.booleans()) else None, flags


@given(
    products(),
    st.sampled_from(DTYPES),
    st.tuples(*[st.sampled_from(list(LAYOUTS))] * 3),
    st.sampled_from([None, None, *ACTIVATIONS]),
    st.integers(0, 2**32 - 1),
)
def test_agrees_with_the_definition(backend, shapes, dtype, layouts, activation, seed):
    a_shape, b_shape, bias_shape, flags = shapes
    rng = np.random.default_rng(seed)
    host = [None if s is None else rng.standard_normal(s).astype(dtype) for s in (a_shape, b_shape, bias_shape)]
    a, b, bias = (None if h is None else backend.put(h, layout) for h, layout in zip(host, layouts, strict=True))
    with untouched(a, b, bias):
        y = gemm(a, b, bias, transpose_a=flags[0], transpose_b=flags[1], activation=activation)
    assert y.dtype == dtype
    definition = product if activation is None else activated(activation)
    assert_accurate(backend.get(y), definition, *host, *flags, scale=magnitude(*host, *flags))


# 257 and 300 are no multiples of any tile; with K = 4096 lost digits would show.
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("M", "N", "K"), [(257, 33, 300), (3, 5, 4096), (64, 64, 64)])
@pytest.mark.parametrize("flags", [(False, False), (True, False), (False, True), (True, True)])
def test_large_products_keep_their_digits(backend, dtype, M, N, K, flags):
    from scipy.linalg import blas

    a = random((K, M) if flags[0] else (M, K), dtype)
    b = random((N, K) if flags[1] else (K, N), dtype, seed=1)
    y = backend.get(gemm(backend.put(a), backend.put(b), transpose_a=flags[0], transpose_b=flags[1]))

    def one_after_the_other(a, b):
        sums = np.zeros((M, N), a.dtype)
        for left, right in zip(a if flags[0] else a.T, b.T if flags[1] else b, strict=True):
            sums += np.multiply.outer(left, right)
        return sums

    assert_accurate(y, one_after_the_other, a, b)
    multiply = blas.dgemm if dtype == np.float64 else blas.sgemm
    assert_accurate(multiply(1.0, a, b, trans_a=flags[0], trans_b=flags[1]), one_after_the_other, a, b)


# Tiles have sides of 16, 64 and 128 and depths of 16: one below, at and above; 1 is all edge.
@pytest.mark.parametrize("version", every_version("gemm", "gemm"))
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("M", "N", "K"),
    [(1, 1, 1), (15, 17, 16), (16, 16, 15), (63, 65, 17), (64, 64, 32), (65, 63, 33), (4, 128, 8), (129, 127, 34)],
)
def test_every_version_at_the_edges_of_its_tiles(backend, version, dtype, M, N, K):
    if version is not None and ("tensor_core" in version or "wgmma" in version):
        pytest.skip("rounds its factors; see test_tensor_cores")
    if version in HALF_WAYS:
        pytest.skip("takes halves alone; see test_halves")
    if version is not None and "split" in version and dtype == np.float64:
        pytest.skip("takes float32 alone; see test_tensor_cores_refuse_float64")
    for flags in ((False, False), (True, False), (False, True), (True, True)):
        a = random((2, *((K, M) if flags[0] else (M, K))), dtype)
        b = random((2, *((N, K) if flags[1] else (K, N))), dtype, seed=1)
        bias = random((N,), dtype, seed=2)
        arguments = backend.put(a), backend.put(b), backend.put(bias)
        with untouched(*arguments):
            y = gemm(*arguments, transpose_a=flags[0], transpose_b=flags[1], version=version)
        assert_accurate(backend.get(y), product, a, b, bias, *flags, scale=magnitude(a, b, bias, *flags))


# v5 has tiles of 128 x 128, 128 x 64 and half of both, 8 deep, three of them under way; v6 of 16 x 16, whose warps take
# chunks of 8, one after the other: with K = 300 every warp takes some, four of them five, the last not whole.
@pytest.mark.parametrize("version", ["v5_warp_tile_narrow", "v5_warp_tile_wide", "v6_warps_share_k", "v7_split_k"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("M", "N", "K"), [(128, 128, 24), (129, 127, 25), (127, 132, 7), (20, 36, 300), (8, 4, 0)])
def test_larger_tiles_and_shared_sums(backend, version, dtype, M, N, K):
    skip_unless_there(backend.name, "gemm", "gemm", version)
    for flags in ((False, False), (True, False), (False, True), (True, True)):
        a = random((K, M) if flags[0] else (M, K), dtype)
        b = random((N, K) if flags[1] else (K, N), dtype, seed=1)
        arguments = backend.put(a), backend.put(b)
        with untouched(*arguments):
            y = gemm(*arguments, transpose_a=flags[0], transpose_b=flags[1], version=version)
        assert_accurate(backend.get(y), product, a, b, None, *flags, scale=magnitude(a, b, None, *flags))


# Slices of equal length and not, of one chunk of 8; bias and activation come once, after the last.
@pytest.mark.parametrize("version", ["v5_warp_tile_wide", "v6_warps_share_k"])
@pytest.mark.parametrize(("K", "splits", "launched"), [(64, 4, 4), (70, 3, 3), (24, 5, 3), (8, 2, 1)])
def test_slices_of_K_are_added_in_their_order(backend, version, K, splits, launched, monkeypatch):
    skip_unless_there(backend.name, "gemm", "gemm", version)
    monkeypatch.setattr("rawgrad.kernels.gemm.cuda._MAX_Z", 3)
    monkeypatch.setattr("rawgrad.kernels.gemm.cuda.choose", lambda *arguments: (version, splits))
    a, b = np.rint(2 * random((2, 18, K))), np.rint(2 * random((2, K, 20), seed=1))  # small integers: exact everywhere
    bias = np.rint(random((20,), seed=2))
    assert slices(K, splits)[0] == launched
    arguments = [backend.put(host) for host in (a, b, bias)]
    for activation in (None, "relu", "tanh"):
        y = backend.get(gemm(*arguments, activation=activation))
        expected = a @ b + bias
        if activation is None:
            np.testing.assert_array_equal(y, expected)
        else:
            assert_accurate(y, activated(activation), a, b, bias)
    x = random((18, K))
    ones = gemm(backend.put(x), backend.put(np.ones((K, 1), np.float32)))
    if version == "v5_warp_tile_wide":  # within a slice k ascends, and then the slices do
        length = slices(K, splits)[1]
        sums = [np.cumsum(x[:, k : k + length], axis=1)[:, -1] for k in range(0, K, length)]
        np.testing.assert_array_equal(backend.get(ones)[:, 0], np.cumsum(sums, axis=0)[-1])


def test_slices_cover_K():
    for K in (0, 1, 7, 8, 9, 31, 32, 1000, 4097):
        for wanted in (1, 2, 3, 5, 32):
            count, length = slices(K, wanted)
            assert length % DEPTH == 0 and (count - 1) * length < max(1, K) <= max(1, count * length)
            assert count <= wanted


# Why each: the grid fills an H100 by large tiles; by smaller ones; not by any, so that K is cut or warps share it; a
# row of 2²¹ columns, where small tiles would need more blocks along an axis than there are.
@pytest.mark.parametrize(
    ("sizes", "version", "cut"),
    [
        ((4096, 4096, 4096), "v5_warp_tile_wide", False),
        ((2048, 2048, 2048), "v5_warp_tile_wide", False),
        ((1024, 1024, 1024), "v5_warp_tile_narrow", False),
        ((256, 256, 16384), "v5_warp_tile", True),
        ((100, 10, 980), "v6_warps_share_k", False),
        ((10, 980, 100), "v6_warps_share_k", False),
        ((100, 100, 980), "v6_warps_share_k", False),
        ((1, 2**21, 64), "v", False),
    ],
)
def test_what_the_model_chooses_for_an_h100(sizes, version, cut):
    name, splits = choose(*sizes, 1, 4, 132)
    assert name.startswith(version) and (splits > 1) == cut
    assert -(-sizes[1] // WAYS[name].columns) <= 65535


def test_the_model_cuts_K_only_as_far_as_the_workspace_goes():
    for M, N, K, batch in ((64, 64, 2**20, 1), (128, 128, 65536, 300), (8192, 8192, 65536, 1)):
        splits = choose(M, N, K, batch, 4, 132)[1]
        assert splits == 1 or batch * M * N * splits <= 2**26
    assert choose(64, 64, 2**20, 1, 4, 132)[1] > 1


def test_more_processors_never_take_longer():
    for name, way in WAYS.items():
        times = [predicted(way, 1000, 1000, 1000, 1, 4, processors, 1) for processors in (1, 8, 66, 108, 132, 264)]
        assert times == sorted(times, reverse=True) and times[0] > 10 * times[-1], name


@pytest.mark.parametrize("version", every_version("gemm", "gemm"))
def test_every_version_ends_with_the_activation(backend, version):
    a, b = np.rint(random((20, 3))), np.rint(random((3, 24), seed=1))  # small integers: exact everywhere
    bias = np.rint(random((24,), seed=2)) / 2
    a, b, bias = fitting(version, a, b, bias)
    arguments = [backend.put(host) for host in (a, b, bias)]
    np.testing.assert_array_equal(backend.get(gemm(*arguments, version=version)), product(a, b, bias))
    for activation in ACTIVATIONS:
        y = backend.get(gemm(*arguments, activation=activation, version=version))
        assert_accurate(y, activated(activation), a, b, bias)


#: Dropout with a seed beyond 2**63 and an offset beyond 2**32: both halves of both count.
KEY = {"p": 0.3, "seed": 2**63 + 5}
OFFSET = np.array([2**33 + 3], np.uint64)


def ended(backend, y, dropout=True, gradient=None, saved=None):
    """What follows an activation, by the kernels that do one thing each; halves in float32, rounded once."""
    dtype = y.dtype
    y = y.astype(np.float32) if dtype in HALVES else y
    if dropout:
        y = backend.get(dropout_forward(backend.put(y), KEY["p"], KEY["seed"], backend.put(OFFSET)))
    if gradient is not None:
        y = backend.get(activation_backward(backend.put(y), backend.put(saved.astype(y.dtype)), gradient))
    return y.astype(dtype)


# 70 x 33: tiles of all versions end within it, rows are no whole Philox blocks, and pairs of columns fall into two of
# them; two products.  Of halves, small integers over 64 as `saved`: what is multiplied in float32 is exact.
@pytest.mark.parametrize("version", every_version("gemm", "gemm"))
def test_every_version_ends_with_dropout_and_a_gradient(backend, version):
    a, b = np.rint(random((2, 70, 5))), np.rint(random((2, 5, 33), seed=1))  # small integers: exact everywhere
    bias, saved = np.rint(random((33,), seed=2)), np.rint(20 * random((2, 70, 33), seed=3)) / 64
    host = fitting(version, a, b, bias, saved)
    saved = host[3]
    arguments, put_saved = [backend.put(x) for x in host[:3]], backend.put(saved)
    key = {**KEY, "offset": backend.put(OFFSET)}
    plain = backend.get(gemm(*arguments, version=version))
    relu = backend.get(gemm(*arguments, activation="relu", version=version))
    with untouched(*arguments, put_saved):
        y = gemm(*arguments, activation="relu", **key, version=version)
        assert backend.get(y).tobytes() == ended(backend, relu).tobytes()
        for gradient in BY_OUTPUT:
            given = {"gradient": gradient, "saved": put_saved, "version": version}
            y = gemm(*arguments, **given)
            assert backend.get(y).tobytes() == ended(backend, plain, False, gradient, saved).tobytes()
        y = gemm(*arguments, **key, **given)
        assert backend.get(y).tobytes() == ended(backend, plain, True, gradient, saved).tobytes()
    dropped = backend.get(y) == 0
    assert 0.2 < dropped.mean() < 0.4 + (plain == 0).mean()


# Every start of a row within a Philox block; a vector of four columns lies in two of them.
@pytest.mark.parametrize("N", [1, 2, 3, 4, 5, 6, 7])
def test_words_of_a_row_begin_anywhere(backend, N):
    a, b = random((9, 3)), random((3, N), seed=1)
    arguments = backend.put(a), backend.put(b)
    y = gemm(*arguments, **KEY, offset=backend.put(OFFSET))
    assert backend.get(y).tobytes() == ended(backend, backend.get(gemm(*arguments))).tobytes()


def test_the_least_word_that_is_kept(backend):
    ones, offset = backend.put(np.ones((2, 1))), backend.put(OFFSET)
    for word in map(int, backend.get(philox(7, offset, 4))):
        kept, dropped = (
            backend.get(gemm(ones, ones, transpose_b=True, p=p, seed=7, offset=offset)) > 0
            for p in (word / 2**32, (word + 1) / 2**32)
        )
        assert (kept != dropped).sum() == 1


def test_all_and_nothing_is_dropped(backend):
    a, b, offset = backend.put(random((4, 3))), backend.put(random((3, 5), seed=1)), backend.put(OFFSET)
    assert backend.get(gemm(a, b, p=0.0, offset=offset)).tobytes() == backend.get(gemm(a, b)).tobytes()
    b[0, 0] = np.nan
    np.testing.assert_array_equal(backend.get(gemm(a, b, p=1.0, offset=offset)), np.zeros((4, 5), np.float32))


# K in slices of v5 and v6 in float32, of v14 in bfloat16: what follows comes once, after the last.
@pytest.mark.parametrize("version", ["v5_warp_tile_wide", "v6_warps_share_k", "v14_half_cp_async_64"])
def test_what_follows_comes_after_the_last_slice(backend, version, monkeypatch):
    skip_unless_there(backend.name, "gemm", "gemm", version)
    monkeypatch.setattr("rawgrad.kernels.gemm.cuda.choose", lambda *arguments: (version, 3))
    monkeypatch.setattr("rawgrad.kernels.gemm.cuda.architecture", lambda array: 80)
    dtype = BFLOAT16 if version in HALF_WAYS else np.float32
    a, b = np.rint(random((2, 18, 70))), np.rint(random((2, 70, 21), seed=1))  # small integers: exact everywhere
    saved = np.rint(20 * random((2, 18, 21), seed=3)) / 64
    a, b, saved = (x.astype(dtype) for x in (a, b, saved))
    arguments = backend.put(a), backend.put(b)
    plain = backend.get(gemm(*arguments))
    y = gemm(*arguments, **KEY, offset=backend.put(OFFSET), gradient="tanh", saved=backend.put(saved))
    assert backend.get(y).tobytes() == ended(backend, plain, True, "tanh", saved).tobytes()


# What waits at the end of a product lies where the next one's tiles come (v14), or is written again by the next (v10 to
# v13).
@pytest.mark.parametrize("version", [*HALF_WAYS, "v10_wgmma_tma", "v12_wgmma_cluster", "v13_wgmma_persistent_4"])
def test_what_follows_each_of_many_products(backend, version, monkeypatch):
    skip_unless_there(backend.name, "gemm", "gemm", version)
    monkeypatch.setattr("rawgrad.kernels.gemm.cuda._MAX_Z", 2)
    a, b = np.rint(random((5, 70, 96))), np.rint(random((5, 96, 40), seed=1))  # small integers: exact everywhere
    a, b = fitting(version, a, b)
    arguments = backend.put(a), backend.put(b)
    y = gemm(*arguments, **KEY, offset=backend.put(OFFSET), version=version)
    plain = backend.get(gemm(*arguments, version=version))
    assert backend.get(y).tobytes() == ended(backend, plain).tobytes()


# The operands of the twins' backend and of the CPU's are composed of kernels that others have tested; here all of them
# are held to the definition.
@pytest.mark.parametrize("dtype", DTYPES)
def test_what_follows_agrees_with_its_definition(backend, dtype):
    a, b, bias = random((5, 4), dtype), random((4, 6), dtype, seed=1), random((6,), dtype, seed=2)
    saved = random((5, 6), dtype, seed=3)
    kept = (philox(KEY["seed"], OFFSET, 30) >= np.ceil(KEY["p"] * 2**32)).reshape(5, 6)

    def definition(a, b, bias, saved):
        return np.where(kept, activated("sigmoid")(a, b, bias) / (1 - KEY["p"]), 0) * (1 - saved * saved)

    y = gemm(
        *(backend.put(x) for x in (a, b, bias)),
        activation="sigmoid",
        **KEY,
        offset=backend.put(OFFSET),
        gradient="tanh",
        saved=backend.put(saved),
    )
    scale = 10 * (1 + saved.astype(np.float64) ** 2)
    assert_accurate(backend.get(y), definition, a, b, bias, saved, scale=scale)


@pytest.mark.parametrize("version", every_version("gemm", "gemm"))
def test_every_version_broadcasts_batches(backend, version):
    # One matrix for all products, one each, and the two patterns mixed.
    for a_shape, b_shape in [
        ((4, 3), (5, 3, 2)),
        ((5, 4, 3), (3, 2)),
        ((5, 4, 3), (5, 3, 2)),
        ((3, 1, 4, 3), (2, 3, 2)),
    ]:
        a, b = np.rint(3 * random(a_shape)), np.rint(3 * random(b_shape, seed=1))  # small integers: exact everywhere
        a, b = fitting(version, a, b)
        y = backend.get(gemm(backend.put(a), backend.put(b), version=version))
        np.testing.assert_array_equal(y, a @ b)


@pytest.mark.parametrize("version", every_version("gemm", "gemm"))
# One, two and three tiles deep, of 16 and of 32: the last lies in either stage.
@pytest.mark.parametrize("K", [16, 32, 48, 96])
def test_blocks_go_on_to_further_products(backend, version, K, monkeypatch):
    """More products than a grid has layers, which takes 65,535 of them: the limit is lowered."""
    if backend.device.name == "cpu":
        pytest.skip("the CPU has no grids")
    monkeypatch.setattr("rawgrad.kernels.gemm.cuda._MAX_Z", 2)
    a, b = np.rint(3 * random((5, 70, K))), np.rint(3 * random((5, K, 40), seed=1))  # small integers: exact everywhere
    a, b = fitting(version, a, b)
    y = backend.get(gemm(backend.put(a), backend.put(b), version=version))
    np.testing.assert_array_equal(y, a @ b)


def rounded(x, bits):
    """``x`` to nearest with ``bits`` bits of fraction; ties go as they like: random numbers have none."""
    fraction, exponent = np.frexp(x.astype(np.float64))
    return np.ldexp(np.rint(fraction * 2 ** (bits + 1)) / 2 ** (bits + 1), exponent).astype(np.float32)


#: Precisions of the tensor cores, with the bits of fraction that they keep.
BITS = {"tf32": 10, "bf16": 7, "fp16": 10}
#: The versions that round to one of them, without its name, and None for the default.
ROUNDING = [
    None,
    "v4_tensor_core",
    "v8_tensor_core_pipelined_64",
    "v8_tensor_core_pipelined_128",
    "v15_tensor_core_split_k",
]
SPLITS = ["v9_bf16_split_64", "v9_bf16_split_128", "v15_float32_split_k"]
FLAGS = [(False, False), (True, False), (False, True), (True, True)]


# Around the tiles' sides of 64 and 128 and their depths of 16 and 32; lengths that are multiples of 4, whose rows are
# read 16 bytes at once, and others; one number; an empty sum.
@pytest.mark.parametrize("version", ROUNDING)
@pytest.mark.parametrize("name", BITS)
@pytest.mark.parametrize(
    ("M", "N", "K"), [(64, 64, 16), (65, 63, 17), (15, 130, 40), (132, 60, 68), (129, 127, 33), (3, 1, 1), (2, 3, 0)]
)
def test_tensor_cores(backend, version, name, M, N, K):
    """They round both factors, and nothing else: products are exact, sums are float32's."""
    version = version and f"{version}_{name}"
    skip_unless_there(backend.name, "gemm", "gemm", version or f"v4_tensor_core_{name}")
    for flags in FLAGS:
        a = random((K, M) if flags[0] else (M, K))
        b = random((N, K) if flags[1] else (K, N), seed=1)
        bias = random((N,), seed=2)
        arguments = backend.put(a), backend.put(b), backend.put(bias)
        with precision("float32" if version else name), untouched(*arguments):
            y = backend.get(gemm(*arguments, transpose_a=flags[0], transpose_b=flags[1], version=version))
        given = rounded(a, BITS[name]), rounded(b, BITS[name]), bias
        assert_accurate(y, product, *given, *flags, scale=magnitude(*given, *flags))
        if K > 1:
            exact = product(a.astype(np.float64), b.astype(np.float64), bias.astype(np.float64), *flags)
            assert np.abs(y - exact).max() > 2.0**-20, "nothing was rounded"


# More than eight blocks along M, so that there are two bands of them, and several along N.
@pytest.mark.parametrize("version", ["v4_tensor_core_bf16", "v8_tensor_core_pipelined_64_bf16", "v9_bf16_split_64"])
@pytest.mark.parametrize(("M", "N"), [(64 * 9 + 1, 65), (64 * 8, 129), (64 * 17, 1)])
def test_every_block_of_a_large_result_is_written_once(backend, version, M, N):
    skip_unless_there(backend.name, "gemm", "gemm", version)
    a, b = np.rint(3 * random((M, 5))), np.rint(3 * random((5, N), seed=1))  # small integers: exact everywhere
    y = backend.get(gemm(backend.put(a), backend.put(b), version=version))
    np.testing.assert_array_equal(y, a @ b)


@pytest.mark.parametrize("version", [*(f"{v}_bf16" for v in ROUNDING[1:]), *SPLITS])
def test_a_matrix_that_starts_between_vectors(backend, version):
    """Its rows are multiples of 16 bytes, but it starts 4 bytes behind one; or the other does, or both."""
    skip_unless_there(backend.name, "gemm", "gemm", version)
    M, N, K = 68, 72, 36
    a, b = np.rint(3 * random((1 + M * K,))), np.rint(3 * random((1 + K * N,), seed=1))
    for skip_a, skip_b in ((0, 0), (1, 0), (0, 1), (1, 1)):
        part_a, part_b = slice(skip_a, skip_a + M * K), slice(skip_b, skip_b + K * N)
        y = gemm(backend.put(a)[part_a].reshape(M, K), backend.put(b)[part_b].reshape(K, N), version=version)
        np.testing.assert_array_equal(backend.get(y), a[part_a].reshape(M, K) @ b[part_b].reshape(K, N))


@pytest.mark.parametrize("name", [*BITS, "float32_split"])
# Slices of equal length and not, of one tile (16 or 32 deep), and more of them than there are tiles.
@pytest.mark.parametrize(("K", "splits"), [(128, 4), (70, 2), (40, 5)])
def test_slices_of_K_on_tensor_cores(backend, name, K, splits, monkeypatch):
    skip_unless_there(backend.name, "gemm", "gemm", SPLITS[0])
    from rawgrad.kernels.gemm import cuda

    version = SPLITS[0] if name == "float32_split" else f"v8_tensor_core_pipelined_64_{name}"
    monkeypatch.setattr(cuda, "_MAX_Z", 3)
    monkeypatch.setattr(cuda, "choose", lambda *arguments: (version, splits))
    monkeypatch.setattr(cuda, "architecture", lambda array: 80)
    a, b = np.rint(2 * random((2, 18, K))), np.rint(2 * random((2, K, 20), seed=1))  # small integers: exact everywhere
    bias = np.rint(random((20,), seed=2))
    launched = []
    empty = cuda.empty
    monkeypatch.setattr(cuda, "empty", lambda like, shape: launched.append(shape) or empty(like, shape))
    with precision(name):
        y = gemm(*(backend.put(host) for host in (a, b, bias)), activation="relu")
    np.testing.assert_array_equal(backend.get(y), np.maximum(a @ b + bias, 0))
    assert launched == [(2, slices(K, splits, TENSOR_CORES[version].depth)[0], 18, 20)]


# Why each: large tiles fill the grid; small ones would not fill it either, so K is cut; there is too little K to cut.
@pytest.mark.parametrize(
    ("sizes", "side", "cut"),
    [
        ((4096, 4096, 4096), 128, False),
        ((256, 256, 16384), 128, True),
        ((100, 10, 980), 64, True),
        ((100, 980, 10), 64, False),
    ],
)
def test_what_the_model_chooses_on_tensor_cores(backend, sizes, side, cut, monkeypatch):
    skip_unless_there(backend.name, "gemm", "gemm", SPLITS[0])
    from rawgrad.kernels.gemm import cuda

    monkeypatch.setattr(cuda, "multiprocessors", lambda _: 132)
    M, N, K = sizes
    a, b = backend.device.array_module.empty((1, 1), np.float32), geometry((M, K), (K, N), False, False)
    for name in BITS:
        with precision(name):
            plan = cuda._default(b, a)(a, a, (False, False))
        assert (plan.tile, plan.kernel.values.count(side), plan.splits > 1) == (side, 1, cut)


def untied(shape, seed=0):
    """Random numbers that lie half way between no two of fewer digits: which way ties go is not said everywhere."""
    return (random(shape, seed=seed).view(np.uint32) | np.uint32(1)).view(np.float32)


# A step is 32 deep and the ring has four stages: one step, a part of one, more than the ring holds.  Tiles are 64 x
# 128 and 128 x 256.
@pytest.mark.parametrize(
    ("M", "N", "K"), [(64, 128, 32), (65, 129, 33), (15, 130, 40), (3, 1, 1), (2, 3, 0), (70, 9, 300), (129, 257, 36)]
)
@pytest.mark.parametrize("version", ["v10_wgmma_tma", "v11_wgmma_two"])
@pytest.mark.parametrize("flags", [(False, False), (True, False), (False, True), (True, True)])
def test_wgmma_rounds_both_factors_to_tf32(backend, version, M, N, K, flags):
    """As test_tensor_cores.  With k fastest and rows of 16 bytes the matrices are taken as they are, else copied."""
    check_wgmma(backend, version, (2, M, K), (N, K), flags)


CLUSTERS = ["v12_wgmma_cluster", "v13_wgmma_persistent_2", "v13_wgmma_persistent_4"]


# Blocks have 128 x 256, clusters two of them below each other, or 2 x 2.  (64, 128): blocks without work.  (129, 257):
# all four blocks have some, and odd rows are written number by number.  (257, 10, 300): a second cluster, more steps
# than the ring holds.  One a for all products, or one b.
@pytest.mark.parametrize(
    ("a", "b"),
    [((64, 32), (2, 128, 32)), ((2, 129, 36), (257, 36)), ((257, 300), (10, 300)), ((2, 3), (1, 3)), ((3, 0), (4, 0))],
)
@pytest.mark.parametrize("version", CLUSTERS)
def test_clusters_share_what_they_fetch(backend, version, a, b):
    check_wgmma(backend, version, a, b, (False, True))


SLICES = [f"v16_wgmma_cluster_slices_{n}" for n in (2, 4, 8)]


# Tiles of 64 x 128, steps of 32: one step, so that all slices but the first are empty; slices that end before others;
# more steps than the ring holds, in each of 2 slices, then of 4; edges in the rows that a block writes; an empty sum.
@pytest.mark.parametrize(
    ("a", "b"),
    [((64, 32), (2, 128, 32)), ((2, 65, 300), (129, 300)), ((33, 600), (7, 600)), ((2, 3), (1, 3)), ((3, 0), (4, 0))],
)
@pytest.mark.parametrize("version", SLICES)
def test_the_blocks_of_a_cluster_have_slices(backend, version, a, b):
    check_wgmma(backend, version, a, b, (False, True))


@pytest.mark.parametrize("version", SLICES)
def test_clusters_of_slices_go_on_to_further_products(backend, version, monkeypatch):
    """One to four layers of clusters for five products: the next one's copies come where the sums were."""
    monkeypatch.setattr("rawgrad.kernels.gemm.cuda._MAX_Z", 8)
    check_wgmma(backend, version, (5, 9, 330), (10, 330), (False, True))


# (300, 300): of 2 x 2 tiles of clusters of two, or 2 x 1 of four, in two products, each cluster has several; the ring
# goes on from one to the next.  (2100, 257): nine of them below each other, one more than a band has.
@pytest.mark.parametrize(("batch", "M", "N", "K"), [(2, 300, 300, 33), (1, 2100, 257, 1)])
@pytest.mark.parametrize("version", CLUSTERS[1:])
def test_a_persistent_cluster_takes_tile_after_tile(backend, version, batch, M, N, K, monkeypatch):
    monkeypatch.setattr(hopper, "at_once", lambda size, processors: 3 if size == 2 else 1)
    check_wgmma(backend, version, (batch, M, K), (N, K), (False, True))


# As test_clusters_share_what_they_fetch; a step is 64 deep, and rows are pieces of 8: an odd K is copied.
@pytest.mark.parametrize("version", [*CLUSTERS, "v16_wgmma_cluster_slices_4"])
@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize(("M", "N", "K"), [(64, 128, 64), (129, 257, 72), (257, 10, 301), (3, 4, 0)])
def test_clusters_take_halves(backend, version, dtype, M, N, K):
    """Products are exact, sums are float32's, and y is rounded once."""
    skip_unless_there(backend.name, "gemm", "gemm", version)
    a, b, bias = random((2, M, K), dtype), random((N, K), dtype, seed=1), random((N,), dtype, seed=2)
    y = gemm(*map(backend.put, (a, b, bias)), transpose_b=True, activation="relu", version=version)
    assert y.dtype == dtype
    floats = [x.astype(np.float32) for x in (a, b, bias)]
    scale = magnitude(*floats, False, True)
    assert_accurate(backend.get(y), activated("relu"), a, b, bias, False, True, scale=scale)


def check_wgmma(backend, version, a_shape, b_shape, flags):
    """``version`` on a of shape (.., M, K) and b of shape (.., N, K), stored as ``flags`` say."""
    skip_unless_there(backend.name, "gemm", "gemm", version)
    N, K = b_shape[-2:]
    a, b = untied(a_shape), untied(b_shape, seed=1)
    a = np.ascontiguousarray(np.swapaxes(a, -1, -2)) if flags[0] else a
    b = b if flags[1] else np.ascontiguousarray(np.swapaxes(b, -1, -2))
    bias = random((N,), seed=2)
    arguments = backend.put(a), backend.put(b), backend.put(bias)
    with untouched(*arguments):
        y = gemm(*arguments, transpose_a=flags[0], transpose_b=flags[1], version=version)
    given = rounded(a, 10), rounded(b, 10), bias
    assert_accurate(backend.get(y), product, *given, *flags, scale=magnitude(*given, *flags))
    if K > 1:
        exact = product(a.astype(np.float64), b.astype(np.float64), bias.astype(np.float64), *flags)
        assert np.abs(backend.get(y) - exact).max() > 2.0**-20, "nothing was rounded"


def test_wgmma_takes_what_is_empty_and_what_is_not_aligned(backend):
    skip_unless_there(backend.name, "gemm", "gemm", "v10_wgmma_tma")
    empty = gemm(backend.put(random((0, 5))), backend.put(random((5, 3))), version="v10_wgmma_tma")
    assert empty.shape == (0, 3)
    host = np.rint(3 * random((1 + 6 * 8,)))
    a = backend.put(host)[1:].reshape(6, 8)  # begins 4 bytes behind a multiple of 16
    y = gemm(a, backend.put(np.eye(8, dtype=np.float32)), version="v10_wgmma_tma")
    np.testing.assert_array_equal(backend.get(y), host[1:].reshape(6, 8))


@pytest.mark.parametrize("version", [*CLUSTERS, *SLICES])
def test_a_result_that_begins_between_two_pairs(backend, version):
    """Two neighbouring results are written at once only where they begin at a multiple of 8 bytes."""
    skip_unless_there(backend.name, "gemm", "gemm", version)
    host = np.rint(3 * random((6, 8)))
    out = backend.put(np.zeros(1 + 6 * 8, np.float32))
    gemm(
        backend.put(host),
        backend.put(np.eye(8, dtype=np.float32)),
        activation="relu",
        version=version,
        out=out[1:].reshape(6, 8),
    )
    np.testing.assert_array_equal(backend.get(out), [0, *np.maximum(host, 0).reshape(-1)])


@pytest.mark.parametrize(("processors", "clusters"), [(132, (66, 32)), (114, (57, 28)), (3, (1, 1))])
def test_persistent_clusters_are_as_many_as_run_at_once(processors, clusters):
    """An H100's 132 or 114 multiprocessors stand in groups of 16 and 18: four times four in each."""
    wide = geometry((20000, 8), (8, 20000), False, False)
    two, four = (hopper.VERSIONS[name] for name in CLUSTERS[1:])
    assert [two.grid(wide, 1, 65535, processors), four.grid(wide, 1, 65535, processors)] == [
        (2, 1, clusters[0]),
        (2, 2, clusters[1]),
    ]
    small = geometry((300, 8), (8, 10), False, False)  # two tiles for clusters of either size
    assert [v.grid(small, 1, 65535, processors)[2] for v in (two, four)] == [min(2, clusters[0]), min(2, clusters[1])]


# Why each: large tiles, clusters of four; halves alike; a sum in the slices of a cluster; a factor that had to be
# copied, for which the product is too small; float32 and float64 without the permission; other precisions; another GPU.
@pytest.mark.parametrize(
    ("sizes", "dtype", "asked", "flags", "gpu", "name"),
    [
        ((4096, 4096, 4096), np.float32, "tf32", (False, True), 90, "v13_wgmma_persistent_4"),
        ((4096, 4096, 4096), BFLOAT16, "float32", (False, True), 90, "v13_wgmma_persistent_4"),
        ((100, 16, 992), np.float32, "tf32", (False, True), 90, "v16_wgmma_cluster_slices_8"),
        ((100, 16, 992), np.float16, "float32", (False, True), 90, "v16_wgmma_cluster_slices_8"),
        ((100, 16, 990), np.float16, "float32", (False, True), 90, None),
        ((100, 16, 992), np.float32, "tf32", (False, False), 90, None),
        ((4096, 4096, 4096), np.float32, "tf32", (True, False), 90, "v13_wgmma_persistent_4"),
        ((4096, 4096, 4096), np.float32, "float32", (False, True), 90, None),
        ((4096, 4096, 4096), np.float64, "tf32", (False, True), 90, None),
        ((4096, 4096, 4096), np.float32, "bf16", (False, True), 90, None),
        ((4096, 4096, 4096), np.float32, "float32_split", (False, True), 90, None),
        ((4096, 4096, 4096), np.float32, "tf32", (False, True), 100, None),
        ((4096, 4096, 4096), BFLOAT16, "float32", (False, True), 80, None),
    ],
)
def test_hopper_takes_what_the_model_says(backend, sizes, dtype, asked, flags, gpu, name, monkeypatch):
    skip_unless_there(backend.name, "gemm", "gemm", "v10_wgmma_tma")
    from rawgrad.kernels.gemm import cuda

    class Enough(Exception):
        """What runs is known."""

    def stop(*arguments):
        raise Enough(arguments[0] if isinstance(arguments[0], hopper.Version) else None)

    monkeypatch.setattr(cuda, "architecture", lambda array: gpu)
    monkeypatch.setattr(cuda, "multiprocessors", lambda array: 132)
    monkeypatch.setattr(hopper, "multiprocessors", lambda array: 132)
    monkeypatch.setattr(cuda, "wgmma", stop)
    monkeypatch.setattr(cuda, "result", stop)
    M, N, K = sizes
    module = backend.device.array_module
    a, b = module.empty((K, M) if flags[0] else (M, K), dtype), module.empty((N, K) if flags[1] else (K, N), dtype)
    with precision(asked), pytest.raises(Enough) as caught:
        gemm(a, b, transpose_a=flags[0], transpose_b=flags[1])
    assert caught.value.args[0] == (None if name is None else hopper.VERSIONS[name])


def test_precision_is_a_permission(backend):
    a, b = random((20, 30)), random((30, 20), seed=1)
    with precision("tf32"):
        doubles = gemm(backend.put(a.astype(np.float64)), backend.put(b.astype(np.float64)))
        if backend.device.name == "cpu":
            assert_accurate(backend.get(gemm(backend.put(a), backend.put(b))), product, a, b)
        with precision("float32"):
            assert_accurate(backend.get(gemm(backend.put(a), backend.put(b))), product, a, b)
    assert_accurate(backend.get(doubles), product, a.astype(np.float64), b.astype(np.float64))
    with pytest.raises(ArgumentError, match="one of float32, float32_split, tf32, bf16, fp16; got 'half'"):
        precision("half")


@pytest.mark.parametrize(
    "version",
    [
        "v4_tensor_core_tf32",
        "v8_tensor_core_pipelined_64_tf32",
        SPLITS[0],
        "v10_wgmma_tma",
        "v15_tensor_core_split_k_tf32",
    ],
)
def test_tensor_cores_refuse_float64(backend, version):
    skip_unless_there(backend.name, "gemm", "gemm", version)
    a = backend.put(np.ones((2, 2)))
    with pytest.raises(BackendError, match=r"(tf32|split into bf16) takes float32; got float64"):
        gemm(a, a, version=version)


@pytest.mark.parametrize(
    "version", [f"{version}_{name}" for version in ROUNDING[1:] for name in BITS] + ["v10_wgmma_tma"]
)
def test_nan_and_infinity_reach_the_tensor_cores(backend, version):
    skip_unless_there(backend.name, "gemm", "gemm", version)
    a = np.array([[1, 2], [np.nan, 1], [np.inf, 1], [-np.inf, 1], [1e30, 1]], np.float32)
    a.view(np.uint32)[1, 0] = 0x7F800001  # a NaN that rounding, taken for a number's, would make infinite
    b = np.ones((2, 3), np.float32)
    y = backend.get(gemm(backend.put(a), backend.put(b), version=version))
    large = np.inf if "fp16" in version else rounded(np.float32([1e30]), 7 if "bf16" in version else 10)[0]
    np.testing.assert_array_equal(y[:, 0], np.float32([3, np.nan, np.inf, -np.inf, large]))


@pytest.mark.parametrize("version", ROUNDING[1:])
def test_fp16_at_the_ends_of_its_range(backend, version):
    """From 65520 on, half way to what would come after its largest number, infinity; below 2^-14 steps of 2^-24."""
    skip_unless_there(backend.name, "gemm", "gemm", f"{version}_fp16")
    below, step = np.nextafter(np.float32(65520), np.float32(0)), 2.0**-24
    given = [65504, below, 65520, 65536, -65520, 1024 * step, 1023.5 * step, 1023.25 * step, 0.5 * step, 0.75 * step]
    expected = [65504, 65504, np.inf, np.inf, -np.inf, 1024 * step, 1024 * step, 1023 * step, 0, step]
    b = backend.put(np.ones((1, 1), np.float32))
    y = backend.get(gemm(backend.put(np.float32([given]).T), b, version=f"{version}_fp16"))
    np.testing.assert_array_equal(y[:, 0], np.float32(expected))


# ---- halves

HALF_VERSIONS = [None, *HALF_WAYS]


def skip_where_numba_is(backend):
    if backend.name == "numba_cuda":
        pytest.skip("in Numba it is for float32 and float64")


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


# ---- float32 in parts


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


def test_agrees_with_torch(backend):
    torch = pytest.importorskip("torch")
    a, b, bias = random((4, 1, 7, 5), np.float64), random((3, 5, 6), np.float64, 1), random((6,), np.float64, 2)
    y = gemm(backend.put(a), backend.put(b), backend.put(bias), activation="gelu")
    expected = torch.nn.functional.gelu(torch.tensor(a) @ torch.tensor(b) + torch.tensor(bias)).numpy()
    np.testing.assert_allclose(backend.get(y), expected, rtol=1e-13, atol=1e-14)


def test_the_gradients_of_the_docstring_are_adjoints(backend):
    """<g, a b> = <g b^T, a> = <a^T g, b>."""
    a, b, g = random((6, 4), np.float64), random((4, 5), np.float64, 1), random((6, 5), np.float64, 2)
    device_a, device_b, device_g = backend.put(a), backend.put(b), backend.put(g)
    inner = np.vdot(g, backend.get(gemm(device_a, device_b)))
    np.testing.assert_allclose(np.vdot(backend.get(gemm(device_g, device_b, transpose_b=True)), a), inner, rtol=1e-13)
    np.testing.assert_allclose(np.vdot(backend.get(gemm(device_a, device_g, transpose_a=True)), b), inner, rtol=1e-13)


def test_an_empty_sum_is_zero_and_then_the_bias_and_the_activation(backend):
    a, b = backend.put(np.zeros((2, 0))), backend.put(np.zeros((0, 3)))
    bias = backend.put(np.array([-1.0, 0.0, 2.0]))
    np.testing.assert_array_equal(backend.get(gemm(a, b)), np.zeros((2, 3)))
    np.testing.assert_array_equal(backend.get(gemm(a, b, bias)), [[-1.0, 0.0, 2.0]] * 2)
    np.testing.assert_array_equal(backend.get(gemm(a, b, bias, activation="relu")), [[0.0, 0.0, 2.0]] * 2)


def test_nan_and_infinity_stay_in_their_row(backend):
    a, b = np.ones((3, 2)), np.ones((2, 2))
    a[1, 0], a[2, 1] = np.nan, -np.inf
    y = backend.get(gemm(backend.put(a), backend.put(b)))
    np.testing.assert_array_equal(y, [[2.0, 2.0], [np.nan, np.nan], [-np.inf, -np.inf]])
    y = backend.get(gemm(backend.put(a), backend.put(b), activation="relu"))
    np.testing.assert_array_equal(y, [[2.0, 2.0], [np.nan, np.nan], [0.0, 0.0]])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_out_takes_the_result(backend, layout):
    a, b, bias = random((3, 4)), random((4, 5)), random((5,))
    arguments = backend.put(a), backend.put(b), backend.put(bias)
    out = backend.put(np.full((3, 5), np.nan, np.float32), layout)
    for activation in (None, "tanh"):
        assert gemm(*arguments, activation=activation, out=out) is out
        np.testing.assert_array_equal(backend.get(out), backend.get(gemm(*arguments, activation=activation)))


def test_same_bits_every_time(backend):
    a, b = backend.put(random((129, 300))), backend.put(random((300, 65)))
    first = backend.get(gemm(a, b)).tobytes()
    assert all(backend.get(gemm(a, b)).tobytes() == first for _ in range(3))


def test_geometry():
    assert geometry((5, 1, 2, 3), (4, 6, 3), transpose_b=True) == ((5, 4), 2, 6, 3)


def zeros(*shape, dtype=np.float32):
    return np.zeros(shape, dtype)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: gemm(zeros(3), zeros(3, 2)),
            ShapeError,
            r"gemm: a must have at least 2 dimensions \(..., M, K\); got shape \(3,\)",
        ),
        (
            lambda: gemm(zeros(2, 3), zeros(3), transpose_b=True),
            ShapeError,
            r"gemm: b must have at least 2 dimensions \(..., N, K\); got shape \(3,\)",
        ),
        (
            lambda: gemm(zeros(2, 3), zeros(2, 3)),
            ShapeError,
            r"gemm: a and b must have the same K; got K=3 in a of shape \(2, 3\) and K=2 in b of shape \(2, 3\)",
        ),
        (lambda: gemm(zeros(2, 2, 3), zeros(3, 3, 2)), ShapeError, r"gemm: the batch dimensions .* must broadcast"),
        (
            lambda: gemm(zeros(2, 3), zeros(3, 4), zeros(3)),
            ShapeError,
            r"bias must have shape \(N\) = \(4,\); got \(3,\)",
        ),
        (lambda: gemm(zeros(2, 3), zeros(3, 4, dtype=np.float64)), DtypeError, "a is float32, b is float64"),
        (
            lambda: gemm(zeros(2, 3, dtype=np.int32), zeros(3, 4)),
            DtypeError,
            "a must be float32, float64, float16 or bfloat16; got",
        ),
        (
            lambda: gemm(zeros(2, 3), zeros(3, 4), gradient="gelu", saved=zeros(2, 4)),
            ArgumentError,
            "gemm: gradient must be one of relu, sigmoid, tanh or None; got 'gelu'",
        ),
        (
            lambda: gemm(zeros(2, 3), zeros(3, 4), gradient="relu"),
            ArgumentError,
            "gemm: gradient='relu' needs saved, the result of that activation; got None",
        ),
        (
            lambda: gemm(zeros(2, 3), zeros(3, 4), gradient="relu", saved=zeros(2, 3)),
            ShapeError,
            r"gemm: saved must have shape \(2, 4\); got \(2, 3\)",
        ),
        (
            lambda: gemm(zeros(2, 3), zeros(3, 4), p=-0.1, offset=OFFSET),
            ArgumentError,
            r"gemm: p must be a probability in \[0, 1\]; got -0.1",
        ),
        (lambda: gemm(zeros(2, 3), zeros(3, 4), p=0.1), ArgumentError, "gemm: p=0.1 needs dropout's offset; got None"),
        (
            lambda: gemm(zeros(2, 3), zeros(3, 4), p=0.1, seed=-1, offset=OFFSET),
            ArgumentError,
            r"gemm: seed must be an integer in \[0, 2\*\*64\); got -1",
        ),
        (
            lambda: gemm(zeros(2, 3), zeros(3, 4), p=0.1, offset=OFFSET.astype(np.int64)),
            DtypeError,
            "gemm: offset must be uint64; got int64",
        ),
        (
            lambda: gemm(zeros(2, 3), zeros(3, 4), activation="sine"),
            ArgumentError,
            "gemm: activation must be one of relu, .* or None; got 'sine'",
        ),
    ],
)
def test_refusals(call, error, message):
    with pytest.raises(error, match=message):
        call()


# Why each: at and beyond the sizes up to which dot products are taken, with few rows or few columns; panels that end
# early in either direction, a sum in several blocks; products so small that nothing is launched.
@pytest.mark.backends("numpy", "numba")
@pytest.mark.parametrize("transposed", [(False, False), (False, True), (True, False), (True, True)])
@pytest.mark.parametrize(
    ("M", "N", "K"),
    [
        (256, 256, 17),
        (257, 256, 17),
        (24, 300, 16),
        (25, 300, 15),
        (300, 24, 33),
        (300, 25, 33),
        (30, 70, 600),
        (260, 2100, 40),
        (3, 2, 1),
    ],
)
def test_sizes_at_the_edges_of_ways(backend, M, N, K, transposed):
    rng = np.random.default_rng(0)
    a = rng.integers(-3, 4, (K, M) if transposed[0] else (M, K)).astype(np.float32)
    b = rng.integers(-3, 4, (N, K) if transposed[1] else (K, N)).astype(np.float32)
    bias = rng.integers(-3, 4, N).astype(np.float32)
    flags = {"transpose_a": transposed[0], "transpose_b": transposed[1]}
    expected = (a.T if transposed[0] else a) @ (b.T if transposed[1] else b) + bias  # whole numbers: exact
    np.testing.assert_array_equal(gemm(a, b, bias, **flags), expected)
    np.testing.assert_array_equal(gemm(a, b, bias, activation="relu", **flags), np.maximum(expected, 0))


# Blocks of y are cut for the number of threads: with many of them some blocks are small, and some threads have none.
@pytest.mark.backends("numba")
def test_the_same_bits_for_any_number_of_threads(backend, monkeypatch):
    for M, N, K in ((200, 300, 700), (100, 10, 980), (10, 100, 980), (600, 500, 64), (30, 90, 200)):
        a, b = random((M, K)), random((K, N), seed=1)
        found = set()
        for threads in (1, 2, 3, 7, 16, 64):
            monkeypatch.setattr("rawgrad.kernels.gemm.numba_cpu.get_num_threads", lambda threads=threads: threads)
            result = gemm(a, b)
            found.add(result.tobytes() + gemm(a, np.ascontiguousarray(b.T), transpose_b=True).tobytes())
            np.testing.assert_allclose(result, a @ b, rtol=1e-4, atol=1e-3)
        assert len(found) == 1


# ---- the gradients of y = activation(a bᵀ + bias)


def slopes(grad, y, kind):
    """dL/d(the argument of the activation)."""
    if kind is None:
        return grad
    return {"relu": lambda: grad * (y > 0), "sigmoid": lambda: grad * y * (1 - y), "tanh": lambda: grad * (1 - y * y)}[
        kind
    ]()


@given(
    st.tuples(*[st.sampled_from([0, 1, 2, 3, 17, 70])] * 3),
    st.sampled_from(DTYPES),
    st.tuples(*[st.sampled_from(list(LAYOUTS))] * 4),
    st.sampled_from([None, *BY_OUTPUT]),
    st.tuples(*[st.booleans()] * 3),
    st.integers(0, 2**32 - 1),
)
def test_linear_backward_agrees_with_its_definition(backend, sizes, dtype, layouts, activation, wanted, seed):
    M, N, K = sizes
    rng = np.random.default_rng(seed)
    host = [rng.standard_normal(shape).astype(dtype) for shape in ((M, N), (M, K), (N, K), (M, N))]
    grad, a, b, y = (backend.put(h, layout) for h, layout in zip(host, layouts, strict=True))
    with untouched(grad, a, b, y):
        results = linear_backward(grad, a, b, y, activation=activation, wanted=wanted)
    definitions = [
        lambda grad, a, b, y: product(slopes(grad, y, activation), b),
        lambda grad, a, b, y: product(slopes(grad, y, activation), a, None, True),
        lambda grad, a, b, y: slopes(grad, y, activation).sum(axis=0, dtype=grad.dtype),
    ]
    for result, definition, asked in zip(results, definitions, wanted, strict=True):
        assert (result is not None) == asked
        if asked:
            assert result.dtype == dtype
            scale = definition(*map(abs, host[:3]), 0.5 * np.ones_like(host[3])) + 1
            assert_accurate(backend.get(result), definition, *host, scale=scale.astype(np.float64))


@pytest.mark.parametrize("dtype", [*DTYPES, *HALVES])
@pytest.mark.parametrize("wanted", [(True, True, True), (True, True, False), (False, False, True)])
@pytest.mark.parametrize("activation", [None, "relu", "tanh"])
def test_linear_backward_goes_through_dropout(backend, dtype, wanted, activation):
    """As without dropout, of what dropout makes of the gradient; halves are rounded once, after the slope."""
    if dtype in HALVES:
        skip_where_numba_is(backend)
    grad, y, a, b = random((9, 7)), random((9, 7), seed=1), random((9, 3), seed=2), random((7, 3), seed=3)
    grad, y, a, b = (x.astype(dtype) for x in (grad, y, a, b))
    device = [backend.put(x) for x in (grad, a, b, y, OFFSET)]
    with untouched(*device):
        found = linear_backward(*device, activation=activation, **KEY, wanted=wanted)
    h = backend.put(ended(backend, grad, True, activation, y))
    expected = linear_backward(h, *device[1:3], wanted=wanted)
    for gradient, other, asked in zip(found, expected, wanted, strict=True):
        assert (gradient is not None) == asked
        if asked:
            assert gradient.dtype == dtype
            assert backend.get(gradient).tobytes() == backend.get(other).tobytes()


# ---- the gradients of several layers

#: A layer that nothing follows; those after it by name.
STACKS = {
    "relu and dropout": [Layer("relu", 0.3, 7), Layer("relu", 0.5, 2**63 + 1), Layer()],
    "sigmoid": [Layer("sigmoid"), Layer("tanh"), Layer("relu")],
    "dropout at the end": [Layer(None, 0.25, 3), Layer(), Layer("relu", 0.1, 4)],
    "one": [Layer("tanh")],
}


def stacked(backend, layers, dtype, seed=0):
    """A batch of 6 through linear layers of 5, 9, 4 and 7 features: the arguments of linear_layers_backward."""
    rng = np.random.default_rng(seed)
    sizes = (5, 9, 4, 7)[: len(layers) + 1]
    x = backend.put(rng.standard_normal((6, sizes[0])).astype(dtype))
    inputs, weights, offsets = [], [], []
    for i, layer in enumerate(layers):
        inputs.append(x)
        weights.append(backend.put(rng.standard_normal((sizes[i + 1], sizes[i])).astype(dtype)))
        offsets.append(backend.put(np.array([i], np.uint64)))
        bias = backend.put(rng.standard_normal(sizes[i + 1]).astype(dtype))
        x = gemm(x, weights[i], bias, transpose_b=True, **layer._asdict(), offset=offsets[i])
    return backend.put(rng.standard_normal((6, sizes[-1])).astype(dtype)), inputs, weights, x, offsets


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", STACKS)
def test_gradients_of_layers_are_those_of_one_after_the_other(backend, dtype, name):
    layers = STACKS[name]
    grad, inputs, weights, y, offsets = stacked(backend, layers, dtype)
    with untouched(grad, *inputs, *weights, y, *offsets):
        found = linear_layers_backward(grad, inputs, weights, y, offsets, layers=layers)
    assert len(found) == 1 + 2 * len(layers)
    for i in range(len(layers) - 1, -1, -1):
        result = y if i + 1 == len(layers) else inputs[i + 1]
        grad, dw, db = linear_backward(grad, inputs[i], weights[i], result, offsets[i], **layers[i]._asdict())
        for gradient, other in ((found[1 + i], dw), (found[1 + len(layers) + i], db)):
            assert backend.get(gradient).tobytes() == backend.get(other).tobytes()
    assert backend.get(found[0]).tobytes() == backend.get(grad).tobytes()


# Each alone, so that layers below the last that is wanted are not gone through; nothing; a gradient in the middle.
@pytest.mark.parametrize(
    "wanted", [*np.eye(7, dtype=bool).tolist(), [False] * 7, [False, False, True, True] + [False] * 3]
)
def test_layers_give_what_is_wanted(backend, wanted):
    layers = STACKS["relu and dropout"]
    arguments = stacked(backend, layers, np.float32)
    every = linear_layers_backward(*arguments, layers=layers)
    found = linear_layers_backward(*arguments, layers=layers, wanted=wanted)
    for gradient, other, asked in zip(found, every, wanted, strict=True):
        assert (gradient is not None) == asked
        assert not asked or backend.get(gradient).tobytes() == backend.get(other).tobytes()


@pytest.mark.backends("emulated")
def test_what_lies_between_two_layers_is_not_written(backend):
    """With biases, each layer takes two products and a sum of columns; the last layer's gradient is its own."""
    layers = [Layer("relu", 0.3, 7), Layer("relu", 0.5, 8), Layer()]
    arguments = stacked(backend, layers, np.float32)
    with record_launches() as launches:
        linear_layers_backward(*arguments, layers=layers)
    kernels = [launch.kernel.partition("<")[0] for launch in launches]
    assert sorted(set(kernels)) == ["gemm_column_sums", "gemm_v6_warps_share_k"]
    assert kernels.count("gemm_column_sums") == 3 and len(kernels) == 9
    sums = [launch for launch in launches if launch.kernel.startswith("gemm_column_sums")]
    assert all(launch.traffic.global_written == 4 * n for launch, n in zip(sums, (7, 4, 9), strict=True))


@pytest.mark.backends("numpy")
@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"layers": [Layer("tanh", 0.5), Layer()]}, ArgumentError, "the gradient of tanh needs its result before drop"),
        ({"layers": [Layer("relu", 1.5), Layer()]}, ArgumentError, r"p must be a probability in \[0, 1\]; got 1.5"),
        ({"layers": [Layer("gelu"), Layer()]}, ArgumentError, "activation must be one of relu, sigmoid, tanh or None"),
        (
            {"layers": [Layer("relu", 0.5), Layer()], "offsets": [None, None]},
            ArgumentError,
            "p=0.5 needs dropout's off",
        ),
        (
            {"layers": [Layer(), Layer("relu")], "y": None},
            ArgumentError,
            "activation='relu' of the last layer needs its",
        ),
        ({"layers": [Layer()]}, ArgumentError, "there must be as many inputs, weights, offsets and layers"),
        ({"layers": []}, ArgumentError, "there must be as many inputs, weights, offsets and layers"),
        ({"wanted": [True] * 4}, ArgumentError, "1 \\+ 2 times as many booleans in wanted; got 2, 2, 2, 2 and 4"),
        ({"grad": zeros(6, 5)}, ShapeError, r"grad must have shape \(M, N\) = \(6, 4\); got \(6, 5\)"),
        ({"y": zeros(6, 5), "layers": [Layer(), Layer("relu")]}, ShapeError, r"y must have shape \(M, N\) = \(6, 4"),
        ({"inputs": [zeros(6, 5), zeros(6, 8)]}, ShapeError, r"inputs\[1\] must have shape \(M, K\) = \(6, 9\); got"),
        ({"inputs": [zeros(5), zeros(6, 9)]}, ShapeError, r"inputs\[0\] must have 2 dimensions"),
        ({"weights": [zeros(9, 5), zeros(4, 8)]}, ShapeError, r"weights\[1\] must have shape \(N, K\) = \(4, 9\)"),
        ({"weights": [zeros(9, 5), zeros(4)]}, ShapeError, r"weights\[1\] must have 2 dimensions"),
        ({"weights": [zeros(9, 5), zeros(4, 9, dtype=np.float64)]}, DtypeError, r"weights\[1\] is float64"),
    ],
)
def test_refusals_of_layers(change, error, message):
    good = {
        "grad": zeros(6, 4), "inputs": [zeros(6, 5), zeros(6, 9)], "weights": [zeros(9, 5), zeros(4, 9)],
        "y": zeros(6, 4), "offsets": [OFFSET, OFFSET], "layers": [Layer("relu", 0.5), Layer()],
    }  # fmt: skip
    for _ in range(2):  # a call that was refused is refused again
        linear_layers_backward(**good)
        with pytest.raises(error, match="linear_layers_backward: .*" + message):
            linear_layers_backward(**{**good, **change})


def test_linear_backward_by_hand(backend):
    grad = backend.put(np.array([[1.0, 2.0], [3.0, 4.0]]))
    a, b = backend.put(np.array([[1.0, 0.0, 2.0], [0.0, 1.0, 1.0]])), backend.put(np.ones((2, 3)))
    y = backend.put(np.array([[0.0, 5.0], [1.0, 1.0]]))
    da, db, dbias = map(backend.get, linear_backward(grad, a, b, y, activation="relu"))
    np.testing.assert_array_equal(da, [[2.0, 2.0, 2.0], [7.0, 7.0, 7.0]])
    np.testing.assert_array_equal(db, [[0.0, 3.0, 3.0], [2.0, 4.0, 8.0]])
    np.testing.assert_array_equal(dbias, [3.0, 6.0])


def test_linear_backward_lets_nan_and_infinity_through(backend):
    grad, y = np.ones((3, 70), np.float32), np.ones((3, 70), np.float32)
    y[0, 0], y[1, 3], grad[2, 69] = np.nan, -np.inf, np.inf
    a, b = np.ones((3, 2), np.float32), np.ones((70, 2), np.float32)
    results = linear_backward(*map(backend.put, (grad, a, b, y)), activation="relu")
    expected = np.full(70, 3.0), np.full(3, np.inf)
    expected[0][3], expected[0][69], expected[1][:2] = 2.0, np.inf, [70, 69]
    np.testing.assert_array_equal(backend.get(results[2]), expected[0])
    np.testing.assert_array_equal(backend.get(results[0])[:, 0], expected[1])


@pytest.mark.backends("numpy")
@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"activation": "gelu"}, ArgumentError, "linear_backward: activation must be one of relu, sigmoid, tanh or"),
        ({"y": None, "activation": "tanh"}, ArgumentError, "linear_backward: activation='tanh' needs the result y"),
        (
            {"wanted": (True, True)},
            ArgumentError,
            r"linear_backward: wanted must be three booleans; got",
        ),
        ({"b": np.ones((4, 2))}, ShapeError, r"linear_backward: b must have shape \(N, K\) = \(4, 3\); got \(4, 2\)"),
        (
            {"grad": np.ones((2, 5))},
            ShapeError,
            r"linear_backward: grad must have shape \(M, N\) = \(2, 4\); got \(2, 5",
        ),
        ({"y": np.ones((2, 5)), "activation": "relu"}, ShapeError, r"linear_backward: y must have shape \(M, N\) = "),
        ({"a": np.ones(3)}, ShapeError, "linear_backward: a must have 2 dimensions"),
        ({"a": np.ones((2, 3), np.float32)}, DtypeError, "linear_backward: all arguments must have one dtype"),
    ],
)
def test_linear_backward_refusals(change, error, message):
    good = {"grad": np.ones((2, 4)), "a": np.ones((2, 3)), "b": np.ones((4, 3)), "y": np.ones((2, 4))}
    for _ in range(2):  # a call that was refused is refused again
        linear_backward(**good)
        with pytest.raises(error, match=message):
            linear_backward(**{**good, **change})


# ---- what has passed the checks once


@pytest.mark.backends("numpy")
def test_another_signature_is_checked_again():
    a, b = random((3, 4)), random((4, 5))
    for _ in range(3):
        assert gemm(a, b).shape == (3, 5)
        for wrong, error in (((a, b.astype(np.float64)), DtypeError), ((a, b.T), ShapeError), ((a, [1]), DeviceError)):
            with pytest.raises(error):
                gemm(*wrong)
        with pytest.raises(ArgumentError):
            gemm(a, b, activation=["relu"])
        with pytest.raises(ArgumentError):
            gemm(a, b, activation="swish")
        with pytest.raises(ShapeError):
            gemm(a, b, out=random((5, 3)))


def test_signatures_are_forgotten_in_time(monkeypatch):
    monkeypatch.setattr("rawgrad.kernels._dispatch._SIGNATURES", 3)
    operation = Operation("rawgrad.kernels.gemm")
    for n in range(10):
        operation.passes("gemm", (random((n, n)),), device="cpu")
        assert len(operation._passed) <= 3


# 600 rows are summed in three slices of 200; 33 columns take two blocks; without `keep` h is not written.
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", [None, *BY_OUTPUT])
@pytest.mark.parametrize("wanted", [(True, True, True), (False, False, True)])
def test_sums_of_long_columns(backend, dtype, activation, wanted):
    rng = np.random.default_rng(3)
    grad, y = (rng.standard_normal((600, 33)).astype(dtype) for _ in range(2))
    a, b = rng.standard_normal((600, 3)).astype(dtype), rng.standard_normal((33, 3)).astype(dtype)
    device = [backend.put(host) for host in (grad, a, b, y)]
    with untouched(*device):
        found = linear_backward(*device, activation=activation, wanted=wanted)
    assert_accurate(
        backend.get(found[2]), lambda grad, y: slopes(grad, y, activation).sum(axis=0, dtype=grad.dtype), grad, y
    )
    if wanted[0]:
        assert_accurate(backend.get(found[0]), lambda g, y, b: product(slopes(g, y, activation), b), grad, y, b)


def test_nan_and_infinity_stay_in_their_column(backend):
    grad = np.ones((40, 4), np.float32)
    grad[3, 1], grad[5, 2], grad[6, 3] = np.nan, np.inf, np.nan
    y = np.ones((40, 4), np.float32)
    y[6, 3], y[7, 0] = 0, np.nan  # a slope of 0 hides its NaN; that of a NaN is 1, as in the reference
    arguments = [backend.put(host) for host in (grad, np.ones((40, 2), np.float32), np.ones((4, 2), np.float32), y)]
    sums = linear_backward(*arguments, activation="relu", wanted=(False, False, True))[2]
    np.testing.assert_array_equal(backend.get(sums), np.float32([40, np.nan, np.inf, 39]))
