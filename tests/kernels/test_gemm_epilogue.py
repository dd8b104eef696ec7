"""What follows a product in the same kernel: bias, activation, dropout, the gradient of what lies below."""

from __future__ import annotations

import numpy as np
import pytest
from _gemm import DTYPES, KEY, OFFSET, activated, ended, fitting, random
from _layouts import untouched
from _tolerance import assert_accurate
from _versions import every_version, skip_unless_there

from rawgrad.kernels._dtypes import BFLOAT16
from rawgrad.kernels.dropout import philox
from rawgrad.kernels.gemm import BY_OUTPUT, gemm
from rawgrad.kernels.gemm.cost import HALF_WAYS

pytestmark = pytest.mark.operation("gemm")


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
