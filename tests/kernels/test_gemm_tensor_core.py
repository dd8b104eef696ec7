"""gemm on tensor cores by ``mma.sync``: rounding of the factors, tiles, slices of K, the choice of a version."""

from __future__ import annotations

import numpy as np
import pytest
from _gemm import FLAGS, SPLITS, magnitude, product, random, rounded
from _layouts import untouched
from _tolerance import assert_accurate
from _versions import skip_unless_there

from rawgrad.kernels._dispatch import precision
from rawgrad.kernels._errors import ArgumentError, BackendError
from rawgrad.kernels.gemm import gemm, geometry
from rawgrad.kernels.gemm.cost import TENSOR_CORES, slices

pytestmark = pytest.mark.operation("gemm")


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
