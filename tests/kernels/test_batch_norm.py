"""Batch normalisation: its definition with complex-step derivatives, hand-worked values and torch."""

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
from _versions import skip_unless_there
from hypothesis import given
from hypothesis import strategies as st

from rawgrad.kernels import batch_norm as ops
from rawgrad.kernels._dispatch import backend as use_backend
from rawgrad.kernels._errors import ArgumentError, DeviceError, DtypeError, ShapeError

EPS = 1e-3
# v4_columns is for shapes of its own, and has tests of its own.
VERSIONS = pytest.mark.parametrize("version", [v for v in each_version("batch_norm") if v != "v4_columns"])


def definition(x, weight, bias, eps=EPS):
    """One channel after the other, by the textbook."""
    y = np.empty(x.shape, np.result_type(x, *(a for a in (weight, bias) if a is not None)))
    for c in range(x.shape[1]):
        channel = x[:, c]
        mean = channel.sum() / channel.real.dtype.type(channel.size)
        var = ((channel - mean) ** 2).sum() / channel.real.dtype.type(channel.size)
        y[:, c] = (channel - mean) / np.sqrt(var + channel.real.dtype.type(eps))
        y[:, c] *= 1 if weight is None else weight[c]
        y[:, c] += 0 if bias is None else bias[c]
    return y


def data(shape, dtype, affine):
    rng = np.random.default_rng(11)
    x, grad = rng.standard_normal(shape) * 2 + 1, rng.standard_normal(shape)
    weight, bias = (rng.uniform(0.5, 2, shape[1]), rng.standard_normal(shape[1])) if affine else (None, None)
    return [None if a is None else a.astype(dtype) for a in (x, weight, bias, grad)]


# one value per channel; rank 2; rank 3, odd; images; one channel; rank 5
SHAPES = [(1, 3), (6, 2), (3, 2, 5), (2, 3, 3, 2), (4, 1, 2, 2), (2, 2, 2, 1, 3)]


@pytest.mark.parametrize("affine", [True, False], ids=["affine", "plain"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@VERSIONS
def test_forward_and_backward_agree_with_the_definition(backend, version, affine, dtype, layout, shape):
    host_x, host_w, host_b, host_g = data(shape, dtype, affine)
    x, weight, bias, grad = (None if a is None else backend.put(a, layout) for a in (host_x, host_w, host_b, host_g))
    with untouched(x, weight, bias, grad), pinned(backend, "batch_norm", version):
        y, mean, rstd = ops.batch_norm_forward(x, weight, bias, EPS)
        dx, dweight, dbias = ops.batch_norm_backward(grad, x, weight, mean, rstd)
    axes = (0, *range(2, len(shape)))
    assert_accurate(backend.get(y), definition, host_x, host_w, host_b, scale=8.0)
    assert_accurate(backend.get(mean), lambda x: x.mean(axis=axes), host_x)
    assert_accurate(backend.get(rstd), lambda x: 1 / np.sqrt(x.var(axis=axes) + x.dtype.type(EPS)), host_x)
    # a sum of M products of size about 1 in each place; rstd is at most 1/sqrt(eps)
    scale = 4.0 * math.sqrt(host_x.size) * float(np.max(backend.get(rstd)))

    def of_x(x, w, b, g):
        return complex_step(lambda moved: definition(moved, w, b), x, g)

    def of_weight(x, w, b, g):
        w = np.ones(x.shape[1], x.dtype) if w is None else w
        return complex_step(lambda moved: definition(x, moved, b), w, g)

    host = host_x, host_w, host_b, host_g
    assert_accurate(backend.get(dx), of_x, *host, scale=scale)
    assert_accurate(backend.get(dweight), of_weight, *host, scale=scale)
    assert_accurate(backend.get(dbias), lambda x, w, b, g: g.sum(axis=axes), *host, scale=scale)


# A warp holds channels of 512 float32 numbers (256 float64), a block those of 4096 (2048), longer ones are cut into
# slabs of as many.  M = N L numbers one below, exactly there and one above, in one run or in several, of
# lengths that are multiples of a vector's (4 or 2) and not; 7, 8, 9 channels are one and two blocks of warps.
EDGES = [(1, 7, 255), (2, 8, 128), (1, 9, 257), (1, 9, 511), (2, 8, 256), (3, 7, 171), (23, 2, 89), (2, 3, 1024)]
EDGES += [(1, 2, 2049), (5, 2, 819), (2, 3, 2048), (17, 2, 241), (3, 2, 1368), (3, 3, 2731), (4099, 3, 1)]
LONG = (2, 1, 70001)  # 35 or 69 slabs: more than the lanes of the warp that merges them


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shape", [*EDGES, LONG], ids=str)
@VERSIONS
def test_agrees_with_the_equations_at_the_edges_of_slabs(backend, version, dtype, shape):
    p = problem(shape, over=(0, 2), sums=(0, 2), dtype=dtype)
    x, weight, bias, grad = (backend.put(a) for a in (p.x, p.weight.reshape(-1), p.bias.reshape(-1), p.grad))
    with pinned(backend, "batch_norm", version):
        y, mean, rstd = ops.batch_norm_forward(x, weight, bias, EPS)
        gradients = ops.batch_norm_backward(grad, x, weight, mean, rstd)
        repeated = ops.batch_norm_inference(x, mean, 1 / (rstd * rstd) - p.x.dtype.type(EPS), weight, bias, EPS)
    assert_equations(p, *(backend.get(a) for a in (y, mean, rstd, *gradients)))
    # var from rstd: some rounding, times |x - mean| rstd w, which is below 20
    assert_within(backend.get(repeated), backend.get(y), 40 * float(np.finfo(dtype).eps))


@pytest.mark.parametrize("shape", [(5, 3, 60), (5, 3, 2000)], ids=str)
@VERSIONS
def test_a_large_mean_leaves_the_variance_its_digits(backend, version, shape):
    """E[x²] - mean² would lose them all: 4096² is 2^24, where float32 counts in twos."""
    rng = np.random.default_rng(15)
    host = (4096 + rng.standard_normal(shape)).astype(np.float32)
    with pinned(backend, "batch_norm", version):
        _, _, rstd = ops.batch_norm_forward(backend.put(host), None, None, 0.0)
    assert_accurate(backend.get(rstd), lambda x: 1 / x.std(axis=(0, 2)), host)


@pytest.mark.parametrize("shape", [(5, 9, 12), (2, 3, 600), (2, 2, 2500)], ids=str)
@VERSIONS
def test_same_bits_in_every_run_and_at_every_address(backend, version, shape):
    p = problem(shape, over=(0, 2), sums=(0, 2), dtype=np.float32)

    def run(put):
        x, weight, bias, grad = (put(a) for a in (p.x, p.weight.reshape(-1), p.bias.reshape(-1), p.grad))
        y, mean, rstd = ops.batch_norm_forward(x, weight, bias, EPS)
        inference = ops.batch_norm_inference(x, mean, rstd, weight, bias, EPS)
        return y, mean, rstd, inference, *ops.batch_norm_backward(grad, x, weight, mean, rstd)

    with pinned(backend, "batch_norm", version):
        assert_same_bits(run, backend)


# On the CPU a sum goes on in float64 after 16384 numbers; below 32768 numbers there is one part; 16 channels or more
# are not cut, fewer are, by runs (5000 of them in blocks of 3) or within one; columns come in units of 16.
ON_THE_CPU = [(7, 15, 400), (7, 16, 400), (7, 17, 400), (8, 3, 5000), (2, 2, 16385), (1, 3, 40000), (1025, 15, 1)]
ON_THE_CPU += [(1024, 16, 1), (2050, 31, 1), (1023, 32, 1), (1100, 33, 1), (70, 500, 1), (4, 8191, 1), (4, 8192, 1)]
ON_THE_CPU += [(3, 2, size + more) for size in (4, 8, 16, 32, 64) for more in (-1, 0, 1)]


@pytest.mark.backends("numpy", "numba")
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shape", ON_THE_CPU, ids=str)
def test_agrees_with_the_equations_at_the_edges_of_parts(backend, dtype, shape):
    p = problem(shape, over=(0, 2), sums=(0, 2), dtype=dtype)
    x, weight, bias, grad = (backend.put(a) for a in (p.x, p.weight.reshape(-1), p.bias.reshape(-1), p.grad))
    y, mean, rstd = ops.batch_norm_forward(x, weight, bias, EPS)
    gradients = ops.batch_norm_backward(grad, x, weight, mean, rstd)
    assert_equations(p, *(backend.get(a) for a in (y, mean, rstd, *gradients)))
    repeated = ops.batch_norm_inference(x, mean, 1 / (rstd * rstd) - p.x.dtype.type(EPS), weight, bias, EPS)
    assert_within(backend.get(repeated), backend.get(y), 40 * float(np.finfo(dtype).eps))


@pytest.mark.backends("numba")
@pytest.mark.parametrize("shape", [(5, 9, 12), (7, 15, 400), (7, 33, 400), (300, 133), (1, 1, 70000)], ids=str)
def test_same_bits_for_any_number_of_threads(backend, shape):
    over = (0, *range(2, len(shape)))
    p = problem(shape, over=over, sums=over, dtype=np.float32)
    weight, bias = p.weight.reshape(-1), p.bias.reshape(-1)

    def run():
        y, mean, rstd = ops.batch_norm_forward(p.x, weight, bias, EPS)
        inference = ops.batch_norm_inference(p.x, mean, rstd, weight, bias, EPS)
        return y, mean, rstd, inference, *ops.batch_norm_backward(p.grad, p.x, weight, mean, rstd)

    assert_same_bits_for_any_threads(run)


@pytest.mark.parametrize(("shape", "threads"), [((2, 9, 120), 32), ((2, 3, 600), 256)], ids=str)
def test_traffic_of_channels_of_one_slab(backend, shape, threads):
    """x and g are read once; each thread of a channel reads its weight and so on."""
    C, size = shape[1], math.prod(shape)
    x, c = backend.put(np.ones(shape, np.float32)), backend.put(np.ones(shape[1], np.float32))
    forward = traffic(backend, lambda: ops.batch_norm_forward(x, c, c, EPS))
    assert forward == [(size + 2 * threads * C, size + 2 * C)]
    backward = traffic(backend, lambda: ops.batch_norm_backward(x, x, c, c, c))
    assert backward == [(2 * size + 3 * threads * C, size + 2 * C)]


def test_traffic_of_longer_channels(backend):
    """Twice x, and twice g; besides, a few numbers for each slab and each thread."""
    shape, slabs = (4, 3, 2500), 3
    C, size = shape[1], math.prod(shape)
    x, c = backend.put(np.ones(shape, np.float32)), backend.put(np.ones(shape[1], np.float32))
    with use_backend(backend.name, batch_norm="v2_slabs"):
        assert traffic(backend, lambda: ops.batch_norm_forward(x, c, c, EPS)) == [
            (size, 3 * slabs * C),
            (4 * slabs * C, 2 * C),
            (size + 4 * 256 * slabs * C, size),
        ]
        assert traffic(backend, lambda: ops.batch_norm_backward(x, x, c, c, c)) == [
            (2 * size + 2 * 256 * slabs * C, 2 * slabs * C),
            (2 * slabs * C, 2 * C),
            (2 * size + 5 * 256 * slabs * C, size),
        ]


def test_traffic_of_channels_in_clusters(backend):
    """Once x, and once g; besides, a few numbers for each thread of a channel's four blocks.  It is the default."""
    skip_unless_there(backend.name, "batch_norm", "batch_norm_forward", "v3_cluster")
    shape, blocks = (4, 3, 2500), 4
    C, size = shape[1], math.prod(shape)
    x, c = backend.put(np.ones(shape, np.float32)), backend.put(np.ones(shape[1], np.float32))
    for_threads = 256 * blocks * C
    forward = traffic(backend, lambda: ops.batch_norm_forward(x, c, c, EPS))
    assert forward == [(size + 2 * for_threads, size + 2 * C)]
    backward = traffic(backend, lambda: ops.batch_norm_backward(x, x, c, c, c))
    assert backward == [(2 * size + 3 * for_threads, size + 2 * C)]


# What 1, 2, 4 and 8 blocks keep, just so and one more: forward 16384 float32 each, backward 12288, of float64 half as
# many; in one run and in several, of multiples of 16 bytes and not.
@pytest.mark.backends("emulated", "cuda")
@pytest.mark.parametrize(
    ("dtype", "shape", "blocks"),
    [
        (np.float32, (1, 2, 16384), (1, 2)),
        (np.float32, (1, 1, 16385), (2, 2)),
        (np.float32, (3, 1, 8192), (2, 2)),
        (np.float32, (5, 1, 4916), (2, 4)),
        (np.float32, (3, 1, 32768), (8, 8)),
        (np.float64, (2, 1, 32768), (8, None)),
        (np.float32, (1, 1, 131073), (None, None)),
    ],
    ids=str,
)
def test_clusters_keep_long_channels(backend, dtype, shape, blocks, monkeypatch):
    skip_unless_there(backend.name, "batch_norm", "batch_norm_forward", "v3_cluster")
    from rawgrad.kernels.batch_norm import cuda

    monkeypatch.setattr(cuda, "_ENOUGH_BLOCKS", 1)
    p = problem(shape, over=(0, 2), sums=(0, 2), dtype=dtype)
    x, weight, bias, grad = (backend.put(a) for a in (p.x, p.weight.reshape(-1), p.bias.reshape(-1), p.grad))
    M = shape[0] * shape[2]
    assert (cuda._cluster(x, M, cuda._KEPT), cuda._cluster(x, M, cuda._KEPT_BACKWARD)) == blocks
    y, mean, rstd = ops.batch_norm_forward(x, weight, bias, EPS)
    gradients = ops.batch_norm_backward(grad, x, weight, mean, rstd)
    assert_equations(p, *(backend.get(a) for a in (y, mean, rstd, *gradients)))


# Rows that 1, 2, 4 and 8 blocks keep, just so and one more: forward 512 of float32 each, backward 384, of float64 half
# as many.  A cluster has 32, 16, 10 or 4 channels of 1, 2, 3 or 7 positions: just all that there are, or one less, or
# there are several clusters.  Positions that are not few.
COLUMNS = [
    (np.float32, (384, 32, 1), (1, 1)),
    (np.float32, (385, 5, 7), (1, 2)),
    (np.float32, (513, 17, 2), (2, 2)),
    (np.float32, (1025, 1, 3), (4, 4)),
    (np.float32, (4096, 2, 1), (8, None)),
    (np.float32, (4097, 1, 1), (None, None)),
    (np.float32, (70, 3, 8), (None, None)),
    (np.float64, (192, 33, 1), (1, 1)),
    (np.float64, (257, 31, 3), (2, 2)),
    (np.float64, (70, 3, 4), (None, None)),
]


@pytest.mark.backends("emulated", "cuda")
@pytest.mark.parametrize(("dtype", "shape", "blocks"), COLUMNS, ids=str)
def test_clusters_keep_neighbouring_columns(backend, dtype, shape, blocks, monkeypatch):
    skip_unless_there(backend.name, "batch_norm", "batch_norm_forward", "v4_columns")
    from rawgrad.kernels.batch_norm import cuda

    monkeypatch.setattr(cuda, "_ENOUGH_BLOCKS", 1)
    x = backend.put(np.empty(shape, dtype))
    assert (cuda._columns(x, cuda._KEPT), cuda._columns(x, cuda._KEPT_BACKWARD)) == blocks
    assert_columns(backend, dtype, shape)


# Eight blocks have multiples of 4 float32 rows or 2 float64: shares of one row, of none, and all equal.
@pytest.mark.backends("emulated", "cuda")
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shape", [(9, 11, 3), (17, 3, 1), (64, 40, 1)], ids=str)
def test_rows_lie_across_the_blocks_of_a_cluster(backend, dtype, shape, monkeypatch):
    skip_unless_there(backend.name, "batch_norm", "batch_norm_forward", "v4_columns")
    from rawgrad.kernels.batch_norm import cuda

    monkeypatch.setattr(cuda, "_FEWEST_ROWS", 1)
    assert cuda._columns(backend.put(np.empty(shape, dtype)), cuda._KEPT) == 8
    assert_columns(backend, dtype, shape)


def assert_columns(backend, dtype, shape):
    """By v4_columns the results are those of the equations, with the same bits at every address."""
    p = problem(shape, over=(0, 2), sums=(0, 2), dtype=dtype)

    def run(put):
        x, weight, bias, grad = (put(a) for a in (p.x, p.weight.reshape(-1), p.bias.reshape(-1), p.grad))
        y, mean, rstd = ops.batch_norm_forward(x, weight, bias, EPS)
        return y, mean, rstd, *ops.batch_norm_backward(grad, x, weight, mean, rstd)

    with use_backend(backend.name, batch_norm="v4_columns"):
        assert_equations(p, *(backend.get(a) for a in run(backend.put)))
        assert_same_bits(run, backend)


def test_columns_keep_the_digits_of_the_variance_and_need_no_weights(backend):
    """As the other versions, of numbers of a large mean; NaN stays in its channel."""
    skip_unless_there(backend.name, "batch_norm", "batch_norm_forward", "v4_columns")
    host = (4096 + np.random.default_rng(15).standard_normal((600, 5))).astype(np.float32)
    host[7, 2] = np.nan
    x = backend.put(host)
    y, mean, rstd = ops.batch_norm_forward(x, None, None, 0.0)
    dx, _, _ = ops.batch_norm_backward(x, x, None, mean, rstd)
    others = [0, 1, 3, 4]
    assert_accurate(backend.get(rstd)[others], lambda x: 1 / x.std(axis=0), host[:, others])
    assert np.isnan(backend.get(y)[:, 2]).all() and np.isnan(backend.get(dx)[:, 2]).all()
    assert np.isfinite(backend.get(y)[:, others]).all() and np.isfinite(backend.get(dx)[:, others]).all()


def test_traffic_of_columns(backend):
    """Once x, and once g; besides, a few numbers for each thread of eight blocks with a column.  It is the default."""
    skip_unless_there(backend.name, "batch_norm", "batch_norm_forward", "v4_columns")
    shape = (600, 40, 2)
    C, size = shape[1], math.prod(shape)
    x, c = backend.put(np.ones(shape, np.float32)), backend.put(np.ones(C, np.float32))
    for_threads = 8 * 8 * C * shape[2]
    forward = traffic(backend, lambda: ops.batch_norm_forward(x, c, c, EPS))
    assert forward == [(size + 2 * for_threads, size + 2 * C)]
    backward = traffic(backend, lambda: ops.batch_norm_backward(x, x, c, c, c))
    assert backward == [(2 * size + 3 * for_threads, size + 2 * C)]


@VERSIONS
def test_an_empty_batch_has_gradients_of_zero(backend, version):
    x, weight = backend.put(np.zeros((0, 3, 2))), backend.put(np.ones(3))
    with pinned(backend, "batch_norm", version):
        dx, dweight, dbias = ops.batch_norm_backward(x, x, weight, weight, weight)
    assert dx.shape == (0, 3, 2)
    np.testing.assert_array_equal(backend.get(dweight), [0, 0, 0])
    np.testing.assert_array_equal(backend.get(dbias), [0, 0, 0])


@VERSIONS
def test_hand_worked(backend, version):
    x = backend.put(np.array([[1.0, 5.0], [3.0, 5.0]]))  # means 2 and 5, variances 1 and 0
    weight, bias, ones = (backend.put(np.array(a)) for a in ([2.0, 3.0], [10.0, 20.0], [1.0, 1.0]))
    with pinned(backend, "batch_norm", version):
        y, mean, rstd = ops.batch_norm_forward(x, weight, bias, 0)
        inference = ops.batch_norm_inference(x, ones, backend.put(np.array([0.0, 12.0])), None, None, 4.0)
    np.testing.assert_array_equal(backend.get(mean), [2, 5])
    np.testing.assert_array_equal(backend.get(rstd), [1, np.inf])
    np.testing.assert_array_equal(backend.get(y), [[8, np.nan], [12, np.nan]])  # 0/0: eps is there for this
    np.testing.assert_array_equal(backend.get(inference), [[0, 1], [1, 1]])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", [*SHAPES, (0, 3, 2, 2)], ids=str)
@VERSIONS
def test_inference(backend, version, dtype, layout, shape):
    host_x, host_w, host_b, _ = data(shape, dtype, True)
    rng = np.random.default_rng(12)
    host_mean, host_var = rng.standard_normal(shape[1]).astype(dtype), rng.uniform(0.1, 3, shape[1]).astype(dtype)

    def expected(x, mean, var, w, b):
        wide = (slice(None), *[None] * (x.ndim - 2))
        return (x - mean[wide]) / np.sqrt(var + x.dtype.type(EPS))[wide] * w[wide] + b[wide]

    host = host_x, host_mean, host_var, host_w, host_b
    put = [backend.put(a, layout) for a in host]
    with untouched(*put), pinned(backend, "batch_norm", version):
        y = ops.batch_norm_inference(*put, EPS)
    assert_accurate(backend.get(y), expected, *host, scale=8.0)


@pytest.mark.parametrize("shape", [(5, 3), (4, 3, 6, 5)], ids=str)
def test_agrees_with_torch(backend, shape):
    torch = pytest.importorskip("torch")
    host = data(shape, np.float64, True)
    x, w, b = (torch.tensor(a, requires_grad=True) for a in host[:3])
    y = torch.nn.functional.batch_norm(x, None, None, w, b, training=True, eps=1e-5)
    expected = [y.detach(), *torch.autograd.grad(y, (x, w, b), torch.tensor(host[3]))]
    put = [backend.put(a) for a in host]
    forward, mean, rstd = ops.batch_norm_forward(*put[:3], 1e-5)
    actual = [forward, *ops.batch_norm_backward(put[3], put[0], put[1], mean, rstd)]
    for a, e in zip(actual, expected, strict=True):
        assert_within(backend.get(a), e.numpy(), 4e-14)


@given(st.integers(2, 5), st.integers(1, 4), st.lists(st.integers(1, 4), max_size=3), st.integers(0, 999))
def test_properties(backend, N, C, positions, seed):
    """Mean 0 and variance 1; shifting and scaling x changes nothing; dx has sum 0 and is orthogonal to xhat."""
    rng = np.random.default_rng(seed)
    host = rng.standard_normal((N, C, *positions))
    axes = (0, *range(2, host.ndim))
    y, mean, rstd = ops.batch_norm_forward(backend.put(host), None, None, 0.0)
    np.testing.assert_allclose(backend.get(y).mean(axis=axes), 0, atol=1e-12)
    np.testing.assert_allclose(backend.get(y).var(axis=axes), 1, rtol=1e-12)
    other, _, _ = ops.batch_norm_forward(backend.put(host * 4 + 32), None, None, 0.0)
    largest = float(backend.get(rstd).max())  # rounding of host * 4 + 32 is seen through rstd
    np.testing.assert_allclose(backend.get(other), backend.get(y), atol=1e-13 * (1 + largest))
    grad = backend.put(rng.standard_normal(host.shape))
    dx = backend.get(ops.batch_norm_backward(grad, backend.put(host), None, mean, rstd)[0])
    np.testing.assert_allclose(dx.sum(axis=axes), 0, atol=1e-12 * (1 + largest))
    np.testing.assert_allclose((dx * backend.get(y)).sum(axis=axes), 0, atol=1e-12 * (1 + largest))


@pytest.mark.parametrize("positions", [2, 2100])  # one slab of float64, and three
@VERSIONS
def test_nan_and_infinity_stay_in_their_channel(backend, version, positions):
    host = np.ones((2, 3, positions))
    host[0, 0, 0], host[1, 1, 1], host[0, 2] = np.nan, np.inf, 3.0
    with pinned(backend, "batch_norm", version):
        y, mean, rstd = ops.batch_norm_forward(backend.put(host), None, None, 0.0)
        dx, _, _ = ops.batch_norm_backward(backend.put(host), backend.put(host), None, mean, rstd)
    np.testing.assert_array_equal(backend.get(mean), [np.nan, np.inf, 2])
    assert np.isnan(backend.get(y)[:, :2]).all()
    np.testing.assert_array_equal(backend.get(y)[:, 2], [[1] * positions, [-1] * positions])
    assert np.isnan(backend.get(dx)[:, :2]).all() and np.isfinite(backend.get(dx)[:, 2]).all()


def test_refusals(backend):
    put = backend.put
    x, c = put(np.ones((2, 3, 4))), put(np.ones(3))
    with pytest.raises(
        ShapeError, match=r"batch_norm: x must have 2 to 5 dimensions \(N, C, \.\.\.\); got shape \(3,\)"
    ):
        ops.batch_norm_forward(c, None, None, EPS)
    with pytest.raises(ShapeError, match=r"at least one value per channel; got shape \(0, 3, 4\)"):
        ops.batch_norm_forward(put(np.ones((0, 3, 4))), None, None, EPS)
    with pytest.raises(ShapeError, match=r"batch_norm: weight must have shape \(C\) = \(3,\); got \(4,\)"):
        ops.batch_norm_forward(x, put(np.ones(4)), c, EPS)
    with pytest.raises(DtypeError, match="one dtype; x is float64, bias is float32"):
        ops.batch_norm_forward(x, c, put(np.ones(3, np.float32)), EPS)
    for eps in (-1e-5, math.nan, math.inf):
        with pytest.raises(ArgumentError, match="batch_norm: eps must be finite and >= 0"):
            ops.batch_norm_forward(x, c, c, eps)
    with pytest.raises(ShapeError, match=r"batch_norm_inference: var must have shape \(C\) = \(3,\); got \(1,\)"):
        ops.batch_norm_inference(x, c, put(np.ones(1)), c, c, EPS)
    with pytest.raises(ShapeError, match=r"batch_norm_backward: grad must have shape \(2, 3, 4\); got \(2, 3\)"):
        ops.batch_norm_backward(put(np.ones((2, 3))), x, c, c, c)
    with pytest.raises(DeviceError, match="batch_norm: x: expected an array"):
        ops.batch_norm_forward([[1.0]], None, None, EPS)
