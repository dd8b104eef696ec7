"""Group normalisation: its definition with complex-step derivatives, hand-worked values and torch."""

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

from rawgrad.kernels import group_norm as ops
from rawgrad.kernels._dispatch import backend as use_backend
from rawgrad.kernels._errors import ArgumentError, DtypeError, ShapeError

EPS = 1e-3
VERSIONS = pytest.mark.parametrize("version", each_version("group_norm"))


def definition(x, groups, weight, bias):
    """One group of one example after the other, by the textbook."""
    y = np.empty(x.shape, np.result_type(x, *(a for a in (weight, bias) if a is not None)))
    width = x.shape[1] // groups
    for n in range(x.shape[0]):
        for first in range(0, x.shape[1], width):
            group = x[n, first : first + width]
            count = x.real.dtype.type(group.size)
            mean = group.sum() / count
            var = ((group - mean) ** 2).sum() / count
            y[n, first : first + width] = (group - mean) / np.sqrt(var + x.real.dtype.type(EPS))
        for c in range(x.shape[1]):
            y[n, c] *= 1 if weight is None else weight[c]
            y[n, c] += 0 if bias is None else bias[c]
    return y


def data(shape, dtype, affine):
    rng = np.random.default_rng(14)
    x, grad = rng.standard_normal(shape) * 2 + 1, rng.standard_normal(shape)
    weight, bias = (rng.uniform(0.5, 2, shape[1]), rng.standard_normal(shape[1])) if affine else (None, None)
    return [None if a is None else a.astype(dtype) for a in (x, weight, bias, grad)]


# no positions; one group; instance norm; two groups of three, odd; rank 5; empty batch
SIZES = [((2, 4), 2), ((2, 3, 4), 1), ((2, 3, 2, 3), 3), ((2, 6, 3, 1), 2), ((1, 4, 1, 2, 3), 2), ((0, 4, 2, 2), 2)]


@pytest.mark.parametrize("affine", [True, False], ids=["affine", "plain"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("shape", "groups"), SIZES, ids=str)
@VERSIONS
def test_forward_and_backward_agree_with_the_definition(backend, version, affine, dtype, layout, shape, groups):
    host = data(shape, dtype, affine)
    x, weight, bias, grad = (None if a is None else backend.put(a, layout) for a in host)
    with untouched(x, weight, bias, grad), pinned(backend, "group_norm", version):
        y, mean, rstd = ops.group_norm_forward(x, groups, weight, bias, EPS)
        dx, dweight, dbias = ops.group_norm_backward(grad, x, groups, weight, mean, rstd)
    assert mean.shape == rstd.shape == (shape[0], groups)
    assert_accurate(backend.get(y), definition, host[0], groups, *host[1:3], scale=8.0)
    scale = 4.0 * math.sqrt(host[0].size) * float(np.max(backend.get(rstd), initial=1.0))

    def of_x(x, w, b, g):
        return complex_step(lambda moved: definition(moved, groups, w, b), x, g)

    def of_weight(x, w, b, g):
        w = np.ones(x.shape[1], x.dtype) if w is None else w
        return complex_step(lambda moved: definition(x, groups, moved, b), w, g)

    axes = (0, *range(2, len(shape)))
    assert_accurate(backend.get(dx), of_x, *host, scale=scale)
    assert_accurate(backend.get(dweight), of_weight, *host, scale=scale)
    assert_accurate(backend.get(dbias), lambda x, w, b, g: g.sum(axis=axes), *host, scale=scale)


# (N, G, W, L): a warp holds sets of W L = 512 float32 numbers (256 float64), a block those of 4096 (2048), longer
# ones are cut into slabs of as many.  Sets one below, exactly there and one above; 7, 8, 9 sets are one and two
# blocks of warps; in the backward pass channels shorter than a warp (31, and 1) belong to a thread each.
EDGES = [(7, 1, 3, 85), (4, 2, 8, 32), (3, 3, 1, 257), (3, 3, 7, 73), (2, 4, 16, 32), (1, 7, 27, 19), (2, 1, 23, 89)]
EDGES += [(1, 2, 2, 1024), (1, 1, 3, 683), (1, 1, 63, 65), (1, 2, 4, 1024), (1, 1, 17, 241), (2, 1, 129, 31)]
# the same for the channels of sets longer than a slab: 255, 256, 257; 511, 512, 513; 2049, 4096, 4097
EDGES += [(1, 1, 17, n) for n in (255, 256, 257)] + [(1, 1, 9, n) for n in (511, 512, 513)]
EDGES += [(1, 2, 1, 4096), (1, 2, 2, 2049), (1, 1, 2, 4097), (1, 1, 4200, 1)]
EDGES += [(1, 1, 3, 45000)]  # 33 or 66 slabs: more than the lanes of the warp that merges them


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("sizes", EDGES, ids=str)
@VERSIONS
def test_agrees_with_the_equations_at_the_edges_of_slabs(backend, version, dtype, sizes):
    with pinned(backend, "group_norm", version):
        assert_agrees_with_the_equations(backend, dtype, sizes)


def assert_agrees_with_the_equations(backend, dtype, sizes):
    N, G, W, L = sizes
    p = problem(sizes, over=(2, 3), sums=(0, 3), dtype=dtype)
    x, grad = (backend.put(a.reshape(N, G * W, L)) for a in (p.x, p.grad))
    weight, bias = (backend.put(a.reshape(-1)) for a in (p.weight, p.bias))
    y, mean, rstd = ops.group_norm_forward(x, G, weight, bias, EPS)
    gradients = ops.group_norm_backward(grad, x, G, weight, mean, rstd)
    assert_equations(p, *(backend.get(a) for a in (y, mean, rstd, *gradients)))


@pytest.mark.parametrize("shape", [(5, 4, 60), (2, 4, 3000)], ids=str)
@VERSIONS
def test_a_large_mean_leaves_the_variance_its_digits(backend, version, shape):
    """E[x²] - mean² would lose them all: 4096² is 2^24, where float32 counts in twos."""
    rng = np.random.default_rng(15)
    host = (4096 + rng.standard_normal(shape)).astype(np.float32)
    with pinned(backend, "group_norm", version):
        _, _, rstd = ops.group_norm_forward(backend.put(host), 2, None, None, 0.0)
    assert_accurate(backend.get(rstd), lambda x: 1 / x.reshape(shape[0], 2, -1).std(axis=2), host)


# one slab, of a warp and of a block; long sets of channels of one slab and of several
@pytest.mark.parametrize("sizes", [(5, 2, 2, 12), (2, 1, 4, 600), (2, 1, 20, 300), (1, 1, 2, 5000)], ids=str)
@VERSIONS
def test_same_bits_in_every_run_and_at_every_address(backend, version, sizes):
    N, G, W, L = sizes
    p = problem(sizes, over=(2, 3), sums=(0, 3), dtype=np.float32)

    def run(put):
        x, grad = (put(a.reshape(N, G * W, L)) for a in (p.x, p.grad))
        weight, bias = (put(a.reshape(-1)) for a in (p.weight, p.bias))
        y, mean, rstd = ops.group_norm_forward(x, G, weight, bias, EPS)
        return y, mean, rstd, *ops.group_norm_backward(grad, x, G, weight, mean, rstd)

    with pinned(backend, "group_norm", version):
        assert_same_bits(run, backend)


# On the CPU a sum goes on in float64 after 16384 numbers, and below 32768 there is one part; without positions a set
# is a row with weights of its own.
ON_THE_CPU = [(2, 1, 1, 16383), (1, 2, 2, 16384), (1, 1, 2, 16385), (5, 4, 2, 820), (33, 2, 8, 64), (70, 3, 5, 33)]
ON_THE_CPU += [(300, 3, 40, 1), (17, 4, 16, 1), (2, 2, 8200, 1)]
ON_THE_CPU += [(2, 2, 3, size + more) for size in (4, 8, 16, 32) for more in (-1, 0, 1)]


@pytest.mark.backends("numpy", "numba")
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("sizes", ON_THE_CPU, ids=str)
def test_agrees_with_the_equations_at_the_edges_of_parts(backend, dtype, sizes):
    assert_agrees_with_the_equations(backend, dtype, sizes)


@pytest.mark.backends("numba")
@pytest.mark.parametrize("sizes", [(5, 2, 2, 12), (20, 2, 5, 200), (1, 2, 2, 20000), (300, 3, 40, 1)], ids=str)
def test_same_bits_for_any_number_of_threads(backend, sizes):
    N, G, W, L = sizes
    p = problem(sizes, over=(2, 3), sums=(0, 3), dtype=np.float32)
    x, grad = (a.reshape(N, G * W, L) for a in (p.x, p.grad))
    weight, bias = p.weight.reshape(-1), p.bias.reshape(-1)

    def run():
        y, mean, rstd = ops.group_norm_forward(x, G, weight, bias, EPS)
        return y, mean, rstd, *ops.group_norm_backward(grad, x, G, weight, mean, rstd)

    assert_same_bits_for_any_threads(run)


@pytest.mark.parametrize(("sizes", "threads"), [((2, 5, 2, 40), 32), ((2, 1, 5, 300), 256)], ids=str)
def test_traffic_of_sets_of_one_slab(backend, sizes, threads):
    """x and g are read once; every four numbers read weight and bias of their channel, each thread mean and rstd."""
    N, G, W, L = sizes
    C, size = G * W, math.prod(sizes)
    x, c = backend.put(np.ones((N, C, L), np.float32)), backend.put(np.ones(C, np.float32))
    of_set = backend.put(np.ones((N, G), np.float32))
    assert traffic(backend, lambda: ops.group_norm_forward(x, G, c, c, EPS)) == [(size + size // 2, size + 2 * N * G)]
    assert traffic(backend, lambda: ops.group_norm_backward(x, x, G, c, of_set, of_set)) == [
        (2 * size + size // 4 + 2 * threads * N * G + N * C, size + 2 * N * C),
        (2 * N * C, 2 * C),
    ]


# What 1, 2, 4 and 8 blocks keep, just so and one more: forward 16384 float32 each, backward 12288, of float64 half as
# many; of multiples of 16 bytes and not.
@pytest.mark.backends("emulated", "cuda")
@pytest.mark.parametrize(
    ("dtype", "sizes", "blocks"),
    [
        (np.float32, (1, 2, 2, 6144), (1, 1)),
        (np.float32, (1, 2, 2, 8192), (1, 2)),
        (np.float32, (2, 1, 5, 3277), (2, 2)),
        (np.float64, (1, 1, 2, 8193), (4, 4)),
        (np.float32, (1, 1, 3, 32768), (8, 8)),
        (np.float32, (1, 1, 2, 65536), (8, None)),
        (np.float32, (1, 1, 1, 131073), (None, None)),
    ],
    ids=str,
)
def test_clusters_keep_long_sets(backend, dtype, sizes, blocks, monkeypatch):
    skip_unless_there(backend.name, "group_norm", "group_norm_forward", "v3_cluster")
    from rawgrad.kernels.group_norm import cuda

    monkeypatch.setattr(cuda, "_ENOUGH_BLOCKS", 1)
    N, G, W, L = sizes
    kept = cuda._KEPT, cuda._KEPT_BACKWARD
    assert tuple(cuda._cluster(np.empty(0, dtype), N * G, W * L, size) for size in kept) == blocks
    assert_agrees_with_the_equations(backend, dtype, sizes)


# Eight blocks keep a set; a share is a multiple of 4 float32 or 2 float64.  Channels that lie across two shares; a
# share of one number and empty ones; one channel in all shares; no channel cut, and a share for each; one that begins
# in a share, fills the next and ends where a third begins; parts of warps, warps and blocks add up a channel, and those
# of a last round have none.
SHARED = [(2, 1, 7, 3), (1, 2, 1, 29), (1, 1, 40, 1), (1, 1, 8, 8), (2, 1, 3, 12), (1, 1, 5, 9), (1, 1, 300, 2)]
SHARED += [(1, 1, 9, n) for n in (31, 32, 33)] + [(1, 1, 70, 31)] + [(1, 1, 3, n) for n in (1023, 1024, 1025)]


@pytest.mark.backends("emulated", "cuda")
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("sizes", SHARED, ids=str)
def test_channels_lie_across_the_shares_of_a_cluster(backend, dtype, sizes, monkeypatch):
    skip_unless_there(backend.name, "group_norm", "group_norm_backward", "v3_cluster")
    from rawgrad.kernels.group_norm import cuda

    monkeypatch.setattr(cuda, "_SLAB_BYTES", 1)  # so that clusters share what a slab holds
    N, G, W, L = sizes
    assert cuda._cluster(np.empty(0, dtype), N * G, W * L, cuda._KEPT_BACKWARD) == 8
    assert_agrees_with_the_equations(backend, dtype, sizes)


def test_traffic_of_longer_sets(backend):
    """Twice x, and twice g; besides, a few numbers for each slab, each channel and each thread."""
    N, G, W, L, slabs = 2, 2, 10, 600, 2
    C, sets, size = G * W, N * G, N * G * W * L
    x, c = backend.put(np.ones((N, C, L), np.float32)), backend.put(np.ones(C, np.float32))
    of_set = backend.put(np.ones((N, G), np.float32))
    with use_backend(backend.name, group_norm="v2_slabs"):
        assert traffic(backend, lambda: ops.group_norm_forward(x, G, c, c, EPS)) == [
            (size, 3 * slabs * sets),
            (4 * slabs * sets, 2 * sets),
            (size + size // 2 + 2 * 256 * slabs * sets, size),
        ]
        assert traffic(backend, lambda: ops.group_norm_backward(x, x, G, c, of_set, of_set)) == [
            (2 * size + 2 * 256 * N * C, 2 * N * C),
            (3 * N * C, 2 * sets),
            (2 * size + size // 4 + 4 * 256 * slabs * sets, size),
            (2 * N * C, 2 * C),
        ]


def test_traffic_of_sets_in_clusters(backend):
    """Once x, and once g; every four numbers read weight and bias of their channel.  It is the default."""
    skip_unless_there(backend.name, "group_norm", "group_norm_forward", "v3_cluster")
    N, G, W, L, blocks = 2, 2, 10, 600, 2
    C, sets, size = G * W, N * G, N * G * W * L
    x, c = backend.put(np.ones((N, C, L), np.float32)), backend.put(np.ones(C, np.float32))
    of_set = backend.put(np.ones((N, G), np.float32))
    forward = traffic(backend, lambda: ops.group_norm_forward(x, G, c, c, EPS))
    assert forward == [(size + size // 2, size + 2 * sets)]
    assert traffic(backend, lambda: ops.group_norm_backward(x, x, G, c, of_set, of_set)) == [
        (2 * size + size // 4 + 2 * 256 * blocks * sets + N * C, size + 2 * N * C),
        (2 * N * C, 2 * C),
    ]


@VERSIONS
def test_hand_worked(backend, version):
    x = backend.put(np.array([[1.0, 3.0, -2.0, 8.0]]))  # means 2 and 3, deviations 1 and 5
    weight, bias = backend.put(np.array([1.0, 2.0, 3.0, 4.0])), backend.put(np.array([0.0, 0.0, 10.0, 10.0]))
    with pinned(backend, "group_norm", version):
        y, mean, rstd = ops.group_norm_forward(x, 2, weight, bias, 0)
    np.testing.assert_array_equal(backend.get(mean), [[2, 3]])
    np.testing.assert_array_equal(backend.get(rstd), [[1, 0.2]])
    np.testing.assert_allclose(backend.get(y), [[-1, 2, 7, 14]], rtol=1e-15)


@pytest.mark.parametrize("groups", [1, 2, 3, 6])
def test_agrees_with_torch(backend, groups):
    torch = pytest.importorskip("torch")
    host = data((3, 6, 4, 5), np.float64, True)
    x, w, b = (torch.tensor(a, requires_grad=True) for a in host[:3])
    y = torch.nn.functional.group_norm(x, groups, w, b, eps=1e-5)
    expected = [y.detach(), *torch.autograd.grad(y, (x, w, b), torch.tensor(host[3]))]
    put = [backend.put(a) for a in host]
    forward, mean, rstd = ops.group_norm_forward(put[0], groups, *put[1:3], 1e-5)
    actual = [forward, *ops.group_norm_backward(put[3], put[0], groups, put[1], mean, rstd)]
    for a, e in zip(actual, expected, strict=True):
        assert_within(backend.get(a), e.numpy(), 4e-14)


@given(st.integers(1, 3), st.integers(1, 3), st.integers(1, 3), st.integers(2, 5), st.integers(0, 999))
def test_properties(backend, N, groups, width, positions, seed):
    """Mean 0 and variance 1 in each group; dx has sum 0 and is orthogonal to xhat there."""
    rng = np.random.default_rng(seed)
    host = rng.standard_normal((N, groups * width, positions))
    y, mean, rstd = ops.group_norm_forward(backend.put(host), groups, None, None, 0.0)
    grad = backend.put(rng.standard_normal(host.shape))
    dx = ops.group_norm_backward(grad, backend.put(host), groups, None, mean, rstd)[0]
    y, dx = (backend.get(a).reshape(N, groups, -1) for a in (y, dx))
    atol = 1e-12 * (1 + float(backend.get(rstd).max()))
    np.testing.assert_allclose(y.mean(axis=2), 0, atol=1e-12)
    np.testing.assert_allclose(y.var(axis=2), 1, rtol=1e-12)
    np.testing.assert_allclose(dx.sum(axis=2), 0, atol=atol)
    np.testing.assert_allclose((dx * y).sum(axis=2), 0, atol=atol)


@pytest.mark.parametrize("positions", [1, 2100])  # one slab of float64, and three
@VERSIONS
def test_nan_and_infinity_stay_in_their_group(backend, version, positions):
    host = np.repeat([[[np.nan], [1.0], [3.0], [1.0]], [[3.0], [1.0], [1.0], [np.inf]]], positions, axis=2)
    x = backend.put(host)
    with pinned(backend, "group_norm", version):
        y, mean, rstd = ops.group_norm_forward(x, 2, None, None, 0.0)
        dx, _, _ = ops.group_norm_backward(x, x, 2, None, mean, rstd)
    np.testing.assert_array_equal(backend.get(mean), [[np.nan, 2], [2, np.inf]])
    spread = np.broadcast_to(np.array([[[np.nan], [np.nan], [1], [-1]], [[1], [-1], [np.nan], [np.nan]]]), host.shape)
    np.testing.assert_array_equal(backend.get(y), spread)
    np.testing.assert_array_equal(np.isnan(backend.get(dx)), np.isnan(spread))


@VERSIONS
def test_a_warp_adds_up_a_channel_of_32(backend, version):
    """In pairs, so that ones are not lost beside 2^24, as they would be one after the other."""
    if backend.device.name != "cuda":
        pytest.skip("of the order of sums in the CUDA kernels")
    host = np.ones((1, 2, 32), np.float32)
    host[0, :, 0] = 2.0**24
    with pinned(backend, "group_norm", version):
        zeros = backend.put(np.zeros((1, 1), np.float32))
        _, _, dbias = ops.group_norm_backward(backend.put(host), backend.put(host), 1, None, zeros, zeros)
    assert (np.abs(backend.get(dbias) - (2.0**24 + 31)) <= 2).all()


def test_refusals(backend):
    put = backend.put
    x, c = put(np.ones((2, 4, 3))), put(np.ones(4))
    for groups in (0, 3, 8, 2.0):
        with pytest.raises(ArgumentError, match="group_norm: groups must be a divisor of the 4 channels of x; got"):
            ops.group_norm_forward(x, groups, None, None, EPS)
    with pytest.raises(
        ShapeError, match=r"group_norm: x must have at least 2 dimensions \(N, C, \.\.\.\); got shape \(4,\)"
    ):
        ops.group_norm_forward(c, 1, None, None, EPS)
    with pytest.raises(ShapeError, match=r"groups of x must not be empty; got shape \(2, 4, 0\)"):
        ops.group_norm_forward(put(np.ones((2, 4, 0))), 2, None, None, EPS)
    with pytest.raises(ShapeError, match=r"group_norm: bias must have shape \(C\) = \(4,\); got \(3,\)"):
        ops.group_norm_forward(x, 2, c, put(np.ones(3)), EPS)
    with pytest.raises(DtypeError, match="one dtype; x is float64, weight is float32"):
        ops.group_norm_forward(x, 2, put(np.ones(4, np.float32)), c, EPS)
    with pytest.raises(ArgumentError, match="group_norm: eps must be finite and >= 0; got nan"):
        ops.group_norm_forward(x, 2, c, c, math.nan)
    with pytest.raises(
        ShapeError, match=r"group_norm_backward: mean must have shape \(N, groups\) = \(2, 2\); got \(4,\)"
    ):
        ops.group_norm_backward(x, x, 2, c, c, c)
