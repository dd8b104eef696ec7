"""gemm by wgmma and TMA: clusters, persistent blocks, slices within a cluster, the choice of a version."""

from __future__ import annotations

import numpy as np
import pytest
from _gemm import activated, magnitude, product, random, rounded
from _layouts import untouched
from _tolerance import assert_accurate
from _versions import skip_unless_there

from rawgrad.kernels._dispatch import precision
from rawgrad.kernels._dtypes import BFLOAT16, HALVES
from rawgrad.kernels.gemm import gemm, geometry, hopper

pytestmark = pytest.mark.operation("gemm")


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
