"""gemm against its definition, hand-worked products, SciPy's BLAS and torch."""

from __future__ import annotations

import numpy as np
import pytest
from _gemm import DTYPES, OFFSET, activated, fitting, magnitude, product, random, zeros
from _layouts import LAYOUTS, untouched
from _tolerance import assert_accurate
from _versions import every_version, skip_unless_there
from hypothesis import given
from hypothesis import strategies as st

from rawgrad.kernels._dispatch import Operation
from rawgrad.kernels._errors import ArgumentError, DeviceError, DtypeError, ShapeError
from rawgrad.kernels.gemm import ACTIVATIONS, gemm, geometry
from rawgrad.kernels.gemm.cost import DEPTH, HALF_WAYS, WAYS, choose, predicted, slices


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
# early in either direction, a sum in several blocks; products so small that nothing is launched; the tiles of few rows.
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
        *((M, N, 300) for M in (1, 2, 3, 4) for N in (33, 300)),
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
