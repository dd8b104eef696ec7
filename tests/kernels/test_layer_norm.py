"""Layer normalisation: its definition with complex-step derivatives, hand-worked values and torch."""

from __future__ import annotations

import math

import numpy as np
import pytest
from _derivative import complex_step
from _layouts import LAYOUTS, untouched
from _norms import (
    assert_equations,
    assert_same_bits,
    assert_same_bits_for_any_threads,
    each_version,
    pinned,
    problem,
    traffic,
)
from _tolerance import assert_accurate, assert_within
from hypothesis import given
from hypothesis import strategies as st

from rawgrad.kernels import layer_norm as ops
from rawgrad.kernels._dispatch import backend as use_backend
from rawgrad.kernels._errors import ArgumentError, DtypeError, ShapeError

EPS = 1e-3
VERSIONS = pytest.mark.parametrize("version", each_version("layer_norm"))


def definition(x, weight, bias, ndim):
    """One row after the other, by the textbook."""
    rows = x.shape[: x.ndim - ndim]
    y = np.empty(x.shape, np.result_type(x, *(a for a in (weight, bias) if a is not None)))
    for row in np.ndindex(rows):
        count = x.real.dtype.type(x[row].size)
        mean = x[row].sum() / count
        y[row] = (x[row] - mean) / np.sqrt(((x[row] - mean) ** 2).sum() / count + x.real.dtype.type(EPS))
        y[row] = y[row] * (1 if weight is None else weight) + (0 if bias is None else bias)
    return y


def data(shape, ndim, dtype, affine):
    rng = np.random.default_rng(13)
    row = shape[len(shape) - ndim :]
    x, grad = rng.standard_normal(shape) * 2 + 1, rng.standard_normal(shape)
    weight, bias = (rng.uniform(0.5, 2, row), rng.standard_normal(row)) if affine else (None, None)
    return [None if a is None else a.astype(dtype) for a in (x, weight, bias, grad)]


# a row and nothing else; rows of one element; odd; two normalized dimensions; all of them; no rows
SIZES = [((5,), 1), ((3, 1), 1), ((4, 7), 1), ((2, 3, 5), 1), ((2, 2, 3, 4), 2), ((2, 3, 2), 3), ((0, 3), 1)]


@pytest.mark.parametrize("affine", [True, False], ids=["affine", "plain"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("shape", "ndim"), SIZES, ids=str)
@VERSIONS
def test_forward_and_backward_agree_with_the_definition(backend, version, affine, dtype, layout, shape, ndim):
    host = data(shape, ndim, dtype, affine)
    x, weight, bias, grad = (None if a is None else backend.put(a, layout) for a in host)
    with untouched(x, weight, bias, grad), pinned(backend, "layer_norm", version):
        y, mean, rstd = ops.layer_norm_forward(x, weight, bias, ndim, EPS)
        dx, dweight, dbias = ops.layer_norm_backward(grad, x, weight, mean, rstd, ndim)
    axes = tuple(range(len(shape) - ndim, len(shape)))
    assert_accurate(backend.get(y), definition, *host[:3], ndim, scale=8.0)
    assert_accurate(backend.get(mean), lambda x: np.asarray(x.mean(axis=axes)), host[0], scale=2.0)
    scale = 4.0 * math.sqrt(host[0].size) * float(np.max(backend.get(rstd), initial=1.0))

    def of_x(x, w, b, g):
        return complex_step(lambda moved: definition(moved, w, b, ndim), x, g)

    def of_weight(x, w, b, g):
        w = np.ones(x.shape[x.ndim - ndim :], x.dtype) if w is None else w
        return complex_step(lambda moved: definition(x, moved, b, ndim), w, g)

    rows = tuple(range(len(shape) - ndim))
    assert_accurate(backend.get(dx), of_x, *host, scale=scale)
    assert_accurate(backend.get(dweight), of_weight, *host, scale=scale)
    assert_accurate(backend.get(dbias), lambda x, w, b, g: g.sum(axis=rows), *host, scale=scale)


# How many numbers a warp or a block holds depends on the dtype: with float32 128 512 1024 2048 4096 8192, with
# float64 half as many; forward 16384 (8192) as well.  Rows of one below, of exactly so many, and of one more; 1024 is
# also where the plain version gives a row to a block.
ROWS = [(3, size + more) for size in (64, 128, 256, 512, 1024, 2048, 4096, 8192) for more in (-1, 0, 1)]
ROWS += [(1, 16384 + more) for more in (-1, 0, 1)]
# Eight warps share a block.  dw and db are gathered over slices: the plain version's are 64 rows and blocks of 32
# columns; the other's 4 rows of a block, 8 of its warps, and more from 4097 rows on, since 512 slices are the most.
MANY_ROWS = [(7, 4), (8, 4), (9, 3), (63, 31), (64, 32), (65, 33), (4, 600), (5, 600), (8, 600), (9, 600), (4097, 2)]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shape", [*ROWS, *MANY_ROWS], ids=str)
@VERSIONS
def test_agrees_with_the_equations_at_the_edges_of_tiles(backend, version, dtype, shape):
    p = problem(shape, over=(1,), sums=(0,), dtype=dtype)
    x, weight, bias, grad = (backend.put(a) for a in (p.x, p.weight[0], p.bias[0], p.grad))
    with pinned(backend, "layer_norm", version):
        y, mean, rstd = ops.layer_norm_forward(x, weight, bias, 1, EPS)
        gradients = ops.layer_norm_backward(grad, x, weight, mean, rstd, 1)
    assert_equations(p, *(backend.get(a) for a in (y, mean, rstd, *gradients)))


# The rows of a warp that holds eight vectors of each thread: one below, exactly, one more; of two blocks of 8 warps.
@pytest.mark.backends("emulated", "cuda")
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("more", [-1, 0, 1])
def test_many_rows_are_held_by_warps(backend, dtype, more, monkeypatch):
    from rawgrad.kernels.layer_norm import cuda

    D = 4096 // np.dtype(dtype).itemsize + more
    p = problem((9, D), over=(1,), sums=(0,), dtype=dtype)
    x, weight, bias, grad = (backend.put(a) for a in (p.x, p.weight[0], p.bias[0], p.grad))
    assert cuda._forward_holder(x, 1023, D) != cuda._BY_WARPS == cuda._forward_holder(x, 1024, D - more)
    monkeypatch.setattr(cuda, "_MANY_ROWS", 9)
    assert (cuda._forward_holder(x, 9, D) == cuda._BY_WARPS) == (more <= 0)
    y, mean, rstd = ops.layer_norm_forward(x, weight, bias, 1, EPS)
    gradients = ops.layer_norm_backward(grad, x, weight, mean, rstd, 1)
    assert_equations(p, *(backend.get(a) for a in (y, mean, rstd, *gradients)))


# A vector for each of 256 threads is 1024 float32 or 512 float64, for each of 512 twice as many: the first row so long,
# one below, exactly so and one more.  Fewer rows than a ring of three (two) holds, slices of seven rows and of three.
AHEAD = [(np.float32, shape) for shape in ((1, 513), (2, 1023), (10, 1024), (10, 1025), (3, 2047), (8, 2048))]
AHEAD += [(np.float64, shape) for shape in ((10, 257), (1, 511), (3, 512), (10, 513), (10, 1024))]


@pytest.mark.backends("emulated", "cuda")
@pytest.mark.parametrize(("dtype", "shape"), AHEAD, ids=str)
def test_rows_are_asked_for_ahead(backend, dtype, shape, monkeypatch):
    from rawgrad.kernels.layer_norm import cuda

    monkeypatch.setattr(cuda, "_MIN_ROWS", 7)
    p = problem(shape, over=(1,), sums=(0,), dtype=dtype)

    def run(put):
        x, weight, bias, grad = (put(a) for a in (p.x, p.weight[0], p.bias[0], p.grad))
        y, mean, rstd = ops.layer_norm_forward(x, weight, bias, 1, EPS)
        return y, mean, rstd, *ops.layer_norm_backward(grad, x, weight, mean, rstd, 1)

    with use_backend(backend.name, layer_norm="v3_ahead"):
        assert_equations(p, *(backend.get(a) for a in run(backend.put)))
        assert_same_bits(run, backend)


@VERSIONS
def test_a_large_mean_leaves_the_variance_its_digits(backend, version):
    """E[x²] - mean² would lose them all: 4096² is 2^24, where float32 counts in twos."""
    rng = np.random.default_rng(15)
    host = (4096 + rng.standard_normal((4, 300))).astype(np.float32)
    with pinned(backend, "layer_norm", version):
        _, _, rstd = ops.layer_norm_forward(backend.put(host), None, None, 1, 0.0)
    assert_accurate(backend.get(rstd), lambda x: 1 / x.std(axis=1), host)


@pytest.mark.parametrize("shape", [(20, 12), (3, 600), (2, 5000)], ids=str)
@VERSIONS
def test_same_bits_in_every_run_and_at_every_address(backend, version, shape):
    p = problem(shape, over=(1,), sums=(0,), dtype=np.float32)

    def run(put):
        x, weight, bias, grad = (put(a) for a in (p.x, p.weight[0], p.bias[0], p.grad))
        y, mean, rstd = ops.layer_norm_forward(x, weight, bias, 1, EPS)
        return y, mean, rstd, *ops.layer_norm_backward(grad, x, weight, mean, rstd, 1)

    with pinned(backend, "layer_norm", version):
        assert_same_bits(run, backend)


# On the CPU a sum goes on in float64 after 16384 numbers, parts have as many or more (and 8 rows or more backward),
# short rows are taken by as many as have 4096 numbers, and vectors hold 4, 8 or 16 float32 and half as many float64.
ON_THE_CPU = [(2, 16383), (3, 16384), (2, 16385), (1, 40000), (64, 512), (65, 512), (63, 529), (70, 3), (34, 1025)]
ON_THE_CPU += [(5, size + more) for size in (4, 8, 16, 32) for more in (-1, 0, 1)]


@pytest.mark.backends("numpy", "numba")
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shape", ON_THE_CPU, ids=str)
def test_agrees_with_the_equations_at_the_edges_of_parts(backend, dtype, shape):
    p = problem(shape, over=(1,), sums=(0,), dtype=dtype)
    x, weight, bias, grad = (backend.put(a) for a in (p.x, p.weight[0], p.bias[0], p.grad))
    y, mean, rstd = ops.layer_norm_forward(x, weight, bias, 1, EPS)
    gradients = ops.layer_norm_backward(grad, x, weight, mean, rstd, 1)
    assert_equations(p, *(backend.get(a) for a in (y, mean, rstd, *gradients)))


@pytest.mark.backends("numba")
@pytest.mark.parametrize("shape", [(20, 12), (333, 129), (4, 20000), (1, 50000)], ids=str)
def test_same_bits_for_any_number_of_threads(backend, shape):
    p = problem(shape, over=(1,), sums=(0,), dtype=np.float32)

    def run():
        y, mean, rstd = ops.layer_norm_forward(p.x, p.weight[0], p.bias[0], 1, EPS)
        return y, mean, rstd, *ops.layer_norm_backward(p.grad, p.x, p.weight[0], mean, rstd, 1)

    assert_same_bits_for_any_threads(run)


@pytest.mark.parametrize(("shape", "threads", "slices"), [((9, 600), 256, 3), ((9, 300), 32, 2)], ids=str)
def test_traffic_of_rows_in_registers(backend, shape, threads, slices):
    """x and g are read once. Each row reads weight and bias again, and each of its threads mean and rstd."""
    with use_backend(backend.name, layer_norm="v2_registers"):
        forward, backward = of_both_passes(backend, shape)
    R, D = shape
    assert forward == [(3 * R * D, R * D + 2 * R)]
    assert backward == [(3 * R * D + 2 * threads * R, R * D + 2 * slices * D), (2 * slices * D, 2 * D)]


@pytest.mark.parametrize(("shape", "threads"), [((9, 600), 256), ((9, 1100), 512)], ids=str)
def test_traffic_of_rows_asked_for_ahead(backend, shape, threads):
    """Backward x and g are read once, and three blocks read weight once each.  It is the default."""
    (R, D), slices = shape, 3
    _, backward = of_both_passes(backend, shape)
    assert backward == [(2 * R * D + slices * D + 2 * threads * R, R * D + 2 * slices * D), (2 * slices * D, 2 * D)]


def of_both_passes(backend, shape):
    """What each launch of the forward pass, and of the backward pass, reads and writes."""
    p = problem(shape, over=(1,), sums=(0,), dtype=np.float32)
    x, weight, bias, grad = (backend.put(a) for a in (p.x, p.weight[0], p.bias[0], p.grad))
    saved = [backend.put(np.ones(shape[0], np.float32))] * 2
    return (
        traffic(backend, lambda: ops.layer_norm_forward(x, weight, bias, 1, EPS)),
        traffic(backend, lambda: ops.layer_norm_backward(grad, x, weight, *saved, 1)),
    )


def test_one_of_32_threads_adds_up_their_sums_of_a_column(backend):
    if backend.name != "emulated":
        pytest.skip("only the emulator counts bytes")
    from rawgrad.kernels._emulator.runtime import record_launches

    x = backend.put(np.random.default_rng(0).standard_normal((9, 40)).astype(np.float32))
    _, mean, rstd = ops.layer_norm_forward(x, None, None, 1, EPS)
    with record_launches() as launches:
        ops.layer_norm_backward(x, x, None, mean, rstd, 1)
    assert launches[-1].traffic.shared_read == 2 * 64 * 32 * 4  # of dw and db, two blocks of 32 columns each


@VERSIONS
def test_hand_worked(backend, version):
    x = backend.put(np.array([[1.0, 3.0], [-2.0, 8.0]]))  # means 2 and 3, deviations 1 and 5
    weight, bias = backend.put(np.array([2.0, 3.0])), backend.put(np.array([10.0, 20.0]))
    with pinned(backend, "layer_norm", version):
        y, mean, rstd = ops.layer_norm_forward(x, weight, bias, 1, 0)
    np.testing.assert_array_equal(backend.get(mean), [2, 3])
    np.testing.assert_array_equal(backend.get(rstd), [1, 0.2])
    np.testing.assert_allclose(backend.get(y), [[8, 23], [8, 23]], rtol=1e-15)


def test_agrees_with_torch(backend):
    torch = pytest.importorskip("torch")
    host = data((3, 4, 5, 6), 2, np.float64, True)
    x, w, b = (torch.tensor(a, requires_grad=True) for a in host[:3])
    y = torch.nn.functional.layer_norm(x, (5, 6), w, b, eps=1e-5)
    expected = [y.detach(), *torch.autograd.grad(y, (x, w, b), torch.tensor(host[3]))]
    put = [backend.put(a) for a in host]
    forward, mean, rstd = ops.layer_norm_forward(*put[:3], 2, 1e-5)
    actual = [forward, *ops.layer_norm_backward(put[3], put[0], put[1], mean, rstd, 2)]
    for a, e in zip(actual, expected, strict=True):
        assert_within(backend.get(a), e.numpy(), 2e-14)


@given(st.lists(st.integers(1, 4), max_size=3), st.integers(2, 6), st.integers(0, 999))
def test_properties(backend, rows, D, seed):
    """Mean 0 and variance 1 in each row; dx has sum 0 and is orthogonal to xhat."""
    rng = np.random.default_rng(seed)
    host = rng.standard_normal((*rows, D))
    y, mean, rstd = ops.layer_norm_forward(backend.put(host), None, None, 1, 0.0)
    np.testing.assert_allclose(backend.get(y).mean(axis=-1), 0, atol=1e-12)
    np.testing.assert_allclose(backend.get(y).var(axis=-1), 1, rtol=1e-12)
    grad = backend.put(rng.standard_normal(host.shape))
    dx = backend.get(ops.layer_norm_backward(grad, backend.put(host), None, mean, rstd, 1)[0])
    atol = 1e-12 * (1 + float(backend.get(rstd).max()))
    np.testing.assert_allclose(dx.sum(axis=-1), 0, atol=atol)
    np.testing.assert_allclose((dx * backend.get(y)).sum(axis=-1), 0, atol=atol)


@VERSIONS
def test_nan_and_infinity_stay_in_their_row(backend, version):
    x = backend.put(np.array([[np.nan, 1.0], [np.inf, 1.0], [3.0, 1.0]]))
    with pinned(backend, "layer_norm", version):
        y, mean, rstd = ops.layer_norm_forward(x, None, None, 1, 0.0)
        dx, _, _ = ops.layer_norm_backward(x, x, None, mean, rstd, 1)
    np.testing.assert_array_equal(backend.get(mean), [np.nan, np.inf, 2])
    np.testing.assert_array_equal(backend.get(y), [[np.nan] * 2, [np.nan] * 2, [1, -1]])
    np.testing.assert_array_equal(np.isnan(backend.get(dx)), [[True] * 2, [True] * 2, [False] * 2])


def test_refusals(backend):
    put = backend.put
    x, row = put(np.ones((2, 3))), put(np.ones(3))
    for ndim in (0, 3, 1.0):
        with pytest.raises(
            ArgumentError, match=r"layer_norm: normalized_ndim must be in \[1, 2\] for x of shape \(2, 3\)"
        ):
            ops.layer_norm_forward(x, None, None, ndim, EPS)
    with pytest.raises(ShapeError, match=r"normalized dimensions of x must not be empty; got shape \(2, 0\)"):
        ops.layer_norm_forward(put(np.ones((2, 0))), None, None, 1, EPS)
    with pytest.raises(ShapeError, match=r"layer_norm: weight must have shape \(3,\); got \(2,\)"):
        ops.layer_norm_forward(x, put(np.ones(2)), None, 1, EPS)
    with pytest.raises(DtypeError, match="one dtype; x is float64, bias is float32"):
        ops.layer_norm_forward(x, row, put(np.ones(3, np.float32)), 1, EPS)
    with pytest.raises(ArgumentError, match="layer_norm: eps must be finite and >= 0; got -1"):
        ops.layer_norm_forward(x, row, row, 1, -1)
    with pytest.raises(ShapeError, match=r"layer_norm_backward: mean must have shape \(2,\); got \(3,\)"):
        ops.layer_norm_backward(x, x, row, row, row, 1)
    with pytest.raises(ShapeError, match=r"layer_norm_backward: grad must have shape \(2, 3\); got \(3,\)"):
        ops.layer_norm_backward(row, x, row, row, row, 1)
