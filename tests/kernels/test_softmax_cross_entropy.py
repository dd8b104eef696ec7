"""Softmax cross-entropy: hand-worked values, the definition with complex steps, and torch's semantics."""

from __future__ import annotations

import math

import numpy as np
import pytest
from _derivative import complex_step
from _layouts import LAYOUTS, untouched
from _tolerance import assert_accurate, assert_within
from _versions import every_version, skip_unless_there
from hypothesis import given
from hypothesis import strategies as st

from rawgrad.kernels import softmax_cross_entropy as ops
from rawgrad.kernels._dtypes import BFLOAT16, HALVES, kind_of
from rawgrad.kernels._errors import ArgumentError, BackendError, DeviceError, DtypeError, IndexRangeError, ShapeError

cross_entropy = ops.softmax_cross_entropy_forward
VERSIONS = every_version("softmax_cross_entropy", "softmax_cross_entropy_forward")


def losses(z, target, weight, ignore_index, smoothing):
    """Loss of each example and its share in the divisor of the mean, one example after the other."""
    N, C = z.shape
    real = z.real.dtype.type
    loss, share = np.zeros(N, z.dtype), np.zeros(N, z.real.dtype)
    for n in range(N):
        if target.ndim == 1 and target[n] == ignore_index:
            continue
        t = (np.arange(C) == target[n]).astype(z.real.dtype) if target.ndim == 1 else target[n]
        share[n] = 1 if weight is None or target.ndim == 2 else weight[target[n]]
        t = t * real(1 - smoothing) + real(smoothing / C)
        log_p = z[n] - np.log(np.exp(z[n]).sum())
        loss[n] = -(log_p * t * (1 if weight is None else weight)).sum()
    return loss, share


def reduced(z, target, weight, ignore_index, smoothing, reduction):
    loss, share = losses(z, target, weight, ignore_index, smoothing)
    if reduction == "none":
        return loss
    return loss.sum() / share.sum() if reduction == "mean" else loss.sum()


def derivative(z, *arguments):
    # row i of the gradient under "none" is that of loss[i], which only row i of z moves
    grad = np.ones(len(z), z.dtype) if arguments[-1] == "none" else np.ones((), z.dtype)
    return complex_step(lambda moved: reduced(moved, *arguments), z, grad)


def make_target(rng, kind, N, C, dtype):
    if kind == "probabilities":
        t = rng.random((N, C))
        return (t / t.sum(axis=1, keepdims=True)).astype(dtype)
    labels = rng.integers(0, C, N)
    if kind == "labels with ignored":
        labels[::3] = -100
    return labels


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("reduction", ops.REDUCTIONS)
@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("kind", ["labels", "labels with ignored", "probabilities"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_loss_and_gradient_agree_with_the_definition(backend, version, reduction, smoothing, weighted, kind, dtype):
    rng = np.random.default_rng(5)
    for N, C in [(1, 1), (1, 4), (5, 3), (7, 10)]:  # one example of one class; one example; odd; digits
        z = rng.uniform(-4, 4, (N, C)).astype(dtype)
        target = make_target(rng, kind, N, C, dtype)
        if kind == "labels with ignored":
            target[-1] = C - 1  # one that counts
        weight = rng.uniform(0.5, 2, C).astype(dtype) if weighted else None
        put = [None if a is None else backend.put(a) for a in (z, target, weight)]
        with untouched(*put):
            loss, grad = cross_entropy(
                *put[:2], weight=put[2], label_smoothing=smoothing, reduction=reduction, version=version
            )
        arguments = (z, target, weight, -100, smoothing, reduction)
        # log p comes from logits of up to 4 and grad from probabilities and targets of up to 1: their places count
        largest = 2 * (N if reduction == "sum" else 1)
        assert_accurate(backend.get(loss), reduced, *arguments, scale=4.0 * largest)
        assert_accurate(backend.get(grad), derivative, *arguments, scale=2.0)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("integer", [np.int8, np.uint8, np.int32, np.int64, np.uint64])
def test_strides_and_label_dtypes(backend, layout, integer):
    rng = np.random.default_rng(6)
    z, labels, weight = rng.standard_normal((6, 5)), rng.integers(0, 5, 6), rng.random(5)
    plain = cross_entropy(backend.put(z), backend.put(labels), weight=backend.put(weight), reduction="none")
    put = [backend.put(a, layout) for a in (z, labels.astype(integer), weight)]
    with untouched(*put):
        strided = cross_entropy(put[0], put[1], weight=put[2], reduction="none")
    for actual, expected in zip(strided, plain, strict=True):
        assert_within(backend.get(actual), backend.get(expected), 1e-15)


def whole_rows(z, target, weight, smoothing):
    """Losses and gradients as :func:`losses` has them, for all examples at once; the gradient by its equation."""
    C = z.shape[1]
    real = z.dtype.type
    t = (np.arange(C) == target[:, None]).astype(z.dtype) if target.ndim == 1 else target
    t = (t * real(1 - smoothing) + real(smoothing / C)) * (real(1) if weight is None else weight)
    z = z - z.max(axis=1, keepdims=True)
    log_p = z - np.log(np.exp(z).sum(axis=1, keepdims=True))
    return -(t * log_p).sum(axis=1), np.exp(log_p) * t.sum(axis=1, keepdims=True) - t


# Where a tile ends, or one kind of team gives way to the next: 16 classes; 512, 1024, 2048 and 4096 in float32, half
# as many in float64; then rows of three tiles.  Multiples of 4 and of 2 classes can be read by 16 bytes, others cannot.
@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("kind", ["labels", "probabilities", "labels, smoothed, weighted"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("aligned", [True, False])
def test_rows_of_every_length(backend, version, kind, dtype, aligned):
    rng = np.random.default_rng(8)
    tile = 16384 // np.dtype(dtype).itemsize
    smoothing = 0.1 if "smoothed" in kind else 0.0
    ends = [n + more for n in (16, tile // 8, tile) for more in (-1, 0, 1)]
    for C in (*ends, tile // 4, tile // 4 + 1, tile // 2, tile // 2 + 1, 2 * tile + 8):
        z = rng.uniform(-4, 4, (2, C)).astype(dtype)
        target = make_target(rng, kind if kind == "probabilities" else "labels", 2, C, dtype)
        weight = rng.uniform(0.5, 2, C).astype(dtype) if "weighted" in kind else None
        put = [None if a is None else backend.put(a) for a in (z, target, weight)]
        if not aligned:  # the same numbers, but one number after a multiple of 16 bytes
            put[0] = backend.put(np.append(dtype(0), z))[1:].reshape(2, C)
        with untouched(*put):
            loss, grad = cross_entropy(
                *put[:2], weight=put[2], label_smoothing=smoothing, reduction="none", version=version
            )
        arguments = (z, target, weight, smoothing)
        assert_accurate(backend.get(loss), lambda *a: whole_rows(*a)[0], *arguments, scale=2 * np.log(C) + 4)
        assert_accurate(backend.get(grad), lambda *a: whole_rows(*a)[1], *arguments, scale=2.0)


# A vector holds eight halves, and a team of four a row of 32: at and beyond that; at and beyond a warp's tile; three
# tiles of a block.  Multiples of 8 classes are read by 16 bytes, unless they begin elsewhere (a negative number).
@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("kind", ["labels", "probabilities", "labels, smoothed, weighted"])
@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_halves_are_rounded_once(backend, version, kind, dtype):
    rng = np.random.default_rng(12)
    smoothing = 0.1 if "smoothed" in kind else 0.0
    for signed in (1, 32, -32, 33, 512, -520, 8201, 8208):
        C, aligned = abs(signed), signed > 0
        z = rng.uniform(-4, 4, (3, C)).astype(dtype)
        target = make_target(rng, kind if kind == "probabilities" else "labels", 3, C, dtype)
        weight = rng.uniform(0.5, 2, C).astype(dtype) if "weighted" in kind else None
        put = [None if a is None else backend.put(a) for a in (z, target, weight)]
        if not aligned:
            put[0] = backend.put(np.append(dtype.type(0), z))[1:].reshape(3, C)
        options = {"weight": put[2], "label_smoothing": smoothing, "version": version}
        if backend.name == "numba_cuda":
            with pytest.raises(BackendError, match=f"in Numba it is for float32 and float64; got {dtype}"):
                cross_entropy(*put[:2], **options)
            return
        with untouched(*put):
            loss, grad = cross_entropy(*put[:2], reduction="none", **options)
            mean, _ = cross_entropy(*put[:2], **options)
        assert loss.dtype == mean.dtype == np.float32 and grad.dtype == dtype
        arguments = (z, target, weight, smoothing)
        scale = 2 * np.log(C) + 4
        floats = [a.astype(np.float32) if kind_of(a.dtype) == "f" else a for a in (z, target)]
        of_mean = (*floats, None if weight is None else weight.astype(np.float32), -100, smoothing, "mean")
        assert_accurate(backend.get(loss), lambda *a: whole_rows(*a)[0], *arguments, scale=scale)
        assert_accurate(backend.get(mean), reduced, *of_mean, scale=scale)
        assert_accurate(backend.get(grad), lambda *a: whole_rows(*a)[1], *arguments, scale=2.0)


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_a_bad_half_spoils_its_row_alone(backend, dtype):
    if backend.name == "numba_cuda":
        pytest.skip("in Numba it is for float32 and float64")
    z = np.zeros((4, 10), dtype)
    z[1, 3], z[2, 9], z[3] = np.nan, np.inf, dtype.type(60000)  # e^z would overflow
    loss, grad = cross_entropy(backend.put(z), backend.put(np.zeros(4, int)), reduction="none")
    assert_within(backend.get(loss), np.array([math.log(10), np.nan, np.nan, math.log(10)]), 1e-6)
    grad = backend.get(grad).astype(np.float32)
    assert np.isnan(grad[[1, 2]]).all() and np.isfinite(grad[[0, 3]]).all()


# Blocks own 32 or 128 examples of few classes, or 1: at and above each.
@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("N", [32, 33, 128, 129])
def test_many_examples(backend, version, N):
    check_mean(backend, version, N)


# The labels of 1024 examples are one block's, and the losses of 4096, whatever the version.  On the CPU 5461 examples
# of 3 classes are one part's, and the labels of 16384.
@pytest.mark.parametrize("N", [1024, 1025, 4096, 4097, 5461, 5462, 16384, 16385])
def test_very_many_examples(backend, N):
    check_mean(backend, None, N)


def check_mean(backend, version, N):
    rng = np.random.default_rng(9)
    z, labels = rng.uniform(-4, 4, (N, 3)).astype(np.float32), rng.integers(0, 3, N)
    labels[rng.random(N) < 0.3] = -100
    weight = rng.uniform(0.5, 2, 3).astype(np.float32)
    loss, grad = cross_entropy(backend.put(z), backend.put(labels), weight=backend.put(weight), version=version)

    def mean(z, weight):
        counted = labels >= 0
        return whole_rows(z[counted], labels[counted], weight, 0.0)[0].sum() / weight[labels[counted]].sum()

    assert_accurate(backend.get(loss), mean, z, weight)

    def gradient(z, weight):
        expected = np.zeros(z.shape, z.dtype)
        counted = labels >= 0
        expected[counted] = whole_rows(z[counted], labels[counted], weight, 0.0)[1]
        return expected / weight[labels[counted]].sum()

    assert_accurate(backend.get(grad), gradient, z, weight)


# Vectors of kernels/softmax_cross_entropy/numba_cpu.py hold 2 to 16 numbers: one below, at and one above what fills 1
# and 8 of them, which stay in registers, and steps of 4 of longer rows.
@pytest.mark.parametrize("kind", ["labels", "labels, smoothed", "probabilities"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_vectors_filled_in_part(backend, kind, dtype):
    rng = np.random.default_rng(10)
    smoothing = 0.1 if "smoothed" in kind else 0.0
    for C in (1, 2, 3, 4, 5, 7, 8, 9, 31, 32, 33, 63, 64, 65, 127, 128, 129, 191, 192, 193, 500):
        z = rng.uniform(-4, 4, (4, C)).astype(dtype)
        target = make_target(rng, "probabilities" if kind == "probabilities" else "labels", 4, C, dtype)
        if kind != "probabilities":
            target[:2] = 0, C - 1
        loss, grad = cross_entropy(backend.put(z), backend.put(target), label_smoothing=smoothing, reduction="none")
        arguments = (z, target, None, smoothing)
        assert_accurate(backend.get(loss), lambda *a: whole_rows(*a)[0], *arguments, scale=2 * np.log(C) + 4)
        assert_accurate(backend.get(grad), lambda *a: whole_rows(*a)[1], *arguments, scale=2.0)


# Parts of kernels/softmax_cross_entropy/numba_cpu.py: 16384 logits; 16384 labels.
@pytest.mark.backends("numba")
@pytest.mark.parametrize("kind", ["labels with ignored", "labels with ignored, smoothed", "probabilities"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_bits_of_each_example_alone_for_any_number_of_threads(backend, kind, dtype):
    from rawgrad.kernels._jit import get_num_threads, set_num_threads

    rng, threads = np.random.default_rng(11), get_num_threads()
    options = {"label_smoothing": 0.1 if "smoothed" in kind else 0.0}
    for N, C in [(300, 100), (2000, 50), (3, 20011)]:
        z, weight = rng.standard_normal((N, C)).astype(dtype), rng.random(C).astype(dtype)
        target = make_target(rng, kind.partition(",")[0], N, C, dtype)
        alone = [
            cross_entropy(z[n : n + 1], target[n : n + 1], weight=weight, reduction="none", **options) for n in range(N)
        ]
        sums = []
        for count in {1, threads}:
            set_num_threads(count)
            try:
                loss, grad = cross_entropy(z, target, weight=weight, reduction="none", **options)
                sums.append(cross_entropy(z, target, weight=weight, reduction="mean", **options))
            finally:
                set_num_threads(threads)
            np.testing.assert_array_equal(loss, np.concatenate([one[0] for one in alone]))
            np.testing.assert_array_equal(grad, np.concatenate([one[1] for one in alone]))
        for loss, grad in sums:
            np.testing.assert_array_equal(loss, sums[0][0])
            np.testing.assert_array_equal(grad, sums[0][1])


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("C", [16, 100, 5000, 20000])
def test_a_maximum_that_comes_late(backend, version, C):
    """Whatever a running maximum has met before: -inf alone, the least numbers, or nothing near the largest one."""
    for before in (-np.inf, float(np.finfo(np.float64).min), -1e4):
        z = np.full((3, C), before)
        z[0, -2:] = 0
        z[1, C // 2] = 1e4
        z[2, 0], z[2, -1] = 3, 4
        labels = np.array([C - 1, C // 2, C - 1])
        loss, grad = cross_entropy(backend.put(z), backend.put(labels), reduction="none", version=version)
        expected = np.zeros((3, C))
        p = 1 / (1 + math.exp(-1))
        expected[0, -2:] = 0.5, -0.5
        expected[2, 0], expected[2, -1] = 1 - p, p - 1
        assert_within(backend.get(loss), np.array([math.log(2), 0, -math.log(p)]), 4e-16)
        assert_within(backend.get(grad), expected, 4e-16)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("C", [10, 300, 5000, 20000])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_one_bad_logit_spoils_its_row_alone(backend, version, C, bad):
    for place in (0, C // 2, C - 1):
        z = np.zeros((3, C))
        z[1, place] = bad
        loss, grad = cross_entropy(
            backend.put(z), backend.put(np.zeros(3, np.int64)), reduction="none", version=version
        )
        assert_within(backend.get(loss), np.array([math.log(C), np.nan, math.log(C)]), 1e-14)
        assert np.isnan(backend.get(grad)[1]).all() and np.isfinite(backend.get(grad)[[0, 2]]).all()


# Readings of a row: version 1 makes two; the others hold up to 4096 float32 of it and read the rest again, but for the
# logits of v4, of which a block holds 64 KB.  The default is v4 on a GPU that has clusters, where it holds more.
@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("C", [10, 1000, 4096, 5000])
@pytest.mark.parametrize("dtype", [np.float32, BFLOAT16], ids=["float32", "bfloat16"])
def test_traffic_is_what_each_version_promises(backend, version, C, dtype):
    if backend.name != "emulated":
        pytest.skip("only the emulator counts bytes")
    from rawgrad.kernels._emulator.runtime import record_launches

    rng = np.random.default_rng(15)
    z, t = (backend.put(a.astype(dtype)) for a in rng.random((2, 3, C)))
    with record_launches() as launches:
        loss, grad = cross_entropy(z, t, reduction="none", version=version)
    (launch,) = launches
    again = C if version == "v1_plain" else max(C - 4096, 0)
    in_cluster = version == "v4_cluster" or (version is None and C > 4096)
    assert ("v4_cluster" in launch.kernel) == in_cluster
    of_z = 0 if in_cluster else again
    assert launch.traffic.global_read == z.nbytes * (C + of_z) // C + t.nbytes * (C + again) // C
    assert launch.traffic.distinct_read == z.nbytes + t.nbytes
    assert launch.traffic.global_written == loss.nbytes + grad.nbytes


# Bytes of a row as it is shared by one, two, four and eight blocks of 64 KB, just so and not; and more than they keep.
@pytest.mark.parametrize(
    ("dtype", "C", "blocks", "again"),
    [
        (np.float32, 16384, 1, 0),
        (np.float32, 16388, 2, 0),
        (np.float32, 32769, 4, 0),  # not by 16 bytes
        (np.float64, 32770, 8, 0),
        (BFLOAT16, 65536, 2, 0),
        (BFLOAT16, 65537, 4, 0),
        (np.float32, 8 * 16384 + 40, 8, 7 * 8),  # each block has eight numbers more, but not the last
    ],
)
def test_clusters_read_a_long_row_once(backend, dtype, C, blocks, again):
    skip_unless_there(backend.name, "softmax_cross_entropy", "softmax_cross_entropy_forward", "v4_cluster")
    rng = np.random.default_rng(20)
    z = rng.standard_normal((2, C)).astype(dtype)
    labels = np.array([C - 1, 16385 % C])  # in the last block and, of most, in another one than the first
    given = backend.put(z), backend.put(labels)
    if backend.name == "emulated":
        from rawgrad.kernels._emulator.runtime import record_launches

        with record_launches() as launches:
            loss, grad = cross_entropy(*given, reduction="none")
        launch = next(launch for launch in launches if "forward" in launch.kernel)
        assert f", {blocks}, " in launch.kernel and launch.grid[0] == 2 * blocks
        classes = 2 * blocks * 256 * 4  # each thread reads its example's
        assert launch.traffic.global_read == z.nbytes + 2 * again * z.itemsize + classes
        assert launch.traffic.global_written == grad.nbytes + loss.nbytes
    else:
        loss, grad = cross_entropy(*given, reduction="none")
    arguments = (z, labels, None, 0.0)
    assert_accurate(backend.get(loss), lambda *a: whole_rows(*a)[0], *arguments, scale=2 * np.log(C) + 4)
    assert_accurate(backend.get(grad), lambda *a: whole_rows(*a)[1], *arguments, scale=2.0)


# Two blocks of float32; 20002 is no multiple of 16 bytes.
@pytest.mark.parametrize("kind", ["probabilities, weighted", "labels, smoothed, weighted", "labels, smoothed"])
@pytest.mark.parametrize("C", [20000, 20002])
def test_clusters_share_targets_and_weights(backend, kind, C):
    skip_unless_there(backend.name, "softmax_cross_entropy", "softmax_cross_entropy_forward", "v4_cluster")
    rng = np.random.default_rng(21)
    z, weight = rng.uniform(-4, 4, (3, C)).astype(np.float32), rng.uniform(0.5, 2, C).astype(np.float32)
    target = make_target(rng, kind.partition(",")[0], 3, C, np.float32)
    smoothing = 0.1 if "smoothed" in kind else 0.0
    weight = weight if "weighted" in kind else None
    *given, put_weight = (None if a is None else backend.put(a) for a in (z, target, weight))
    options = {"weight": put_weight, "label_smoothing": smoothing, "reduction": "none"}
    loss, grad = cross_entropy(*given, **options, version="v4_cluster")
    arguments = (z, target, weight, smoothing)
    assert_accurate(backend.get(loss), lambda *a: whole_rows(*a)[0], *arguments, scale=2 * np.log(C) + 4)
    assert_accurate(backend.get(grad), lambda *a: whole_rows(*a)[1], *arguments, scale=2.0)


@pytest.mark.parametrize("version", VERSIONS)
def test_labels_alone_read_the_weights_of_their_classes_alone(backend, version):
    if backend.name != "emulated":
        pytest.skip("only the emulator counts bytes")
    from rawgrad.kernels._emulator.runtime import record_launches

    for C in (40, 5000):
        z, w = backend.put(np.ones((2, C), np.float32)), backend.put(np.ones(C, np.float32))
        with record_launches() as launches:
            cross_entropy(z, backend.put(np.array([1, 3])), weight=w, reduction="none", version=version)
        (launch,) = (launch for launch in launches if "forward" in launch.kernel)
        assert launch.traffic.distinct_read == z.nbytes + 2 * 4 + 2 * 4  # classes, and their weights


def test_hand_worked(backend):
    """Two classes of equal logits cost log 2; programs P2: labels [1, 2] on two rows that give them .6 and .1."""
    loss, grad = cross_entropy(backend.put(np.zeros((1, 2))), backend.put(np.array([1])))
    assert float(backend.get(loss)) == pytest.approx(math.log(2), rel=1e-15)
    np.testing.assert_allclose(backend.get(grad), [[0.5, -0.5]], rtol=1e-15)
    p = np.array([[0.3, 0.6, 0.1], [0.2, 0.7, 0.1]])
    loss, grad = cross_entropy(backend.put(np.log(p)), backend.put(np.array([1, 2])), reduction="none")
    np.testing.assert_allclose(backend.get(loss), [0.51082562, 2.30258509], atol=5e-9)
    np.testing.assert_allclose(backend.get(grad), [[0.3, -0.4, 0.1], [0.2, 0.7, -0.9]], rtol=1e-14)
    weight = backend.put(np.array([1.0, 3.0, 1.0]))  # the mean is weighted: (3 · .5108 + 1 · 2.3026) / 4
    loss, _ = cross_entropy(backend.put(np.log(p)), backend.put(np.array([1, 2])), weight=weight)
    assert float(backend.get(loss)) == pytest.approx((3 * 0.510825623765991 + 2.302585092994046) / 4, rel=1e-14)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_huge_and_not_finite_logits(backend, version, dtype):
    inf, nan = np.inf, np.nan
    rows = [[1e4, -1e4], [-1e4, 1e4], [1e30, 1e30], [0, -inf], [-inf, 0], [-inf, -inf], [inf, 0], [nan, 0]]
    labels = backend.put(np.zeros(len(rows), np.int64))
    loss, grad = cross_entropy(backend.put(np.array(rows, dtype)), labels, reduction="none", version=version)
    assert_within(backend.get(loss), np.array([0, 2e4, math.log(2), 0, inf, nan, nan, nan]), np.finfo(dtype).eps)
    expected = [[0, 0], [-1, 1], [-0.5, 0.5], [0, 0], [-1, 1], [nan, nan], [nan, nan], [nan, nan]]
    np.testing.assert_array_equal(backend.get(grad), np.array(expected, dtype))


@pytest.mark.parametrize("version", VERSIONS)
def test_ignored_examples_count_for_nothing(backend, version):
    """Even if their logits are not finite; an ignore_index may be a class or lie outside all."""
    z = np.array([[0.0, 0.0], [np.nan, np.inf], [0.0, np.log(3)]])
    for ignore_index, labels in [(-100, [0, -100, 1]), (7, [0, 7, 1]), (255, np.array([0, 255, 1], np.uint8))]:
        for smoothing, expected in [(0.0, (math.log(2) + math.log(4 / 3)) / 2), (1.0, None)]:
            loss, grad = cross_entropy(
                backend.put(z),
                backend.put(np.array(labels)),
                ignore_index=ignore_index,
                label_smoothing=smoothing,
                version=version,
            )
            if expected is not None:
                assert float(backend.get(loss)) == pytest.approx(expected, rel=1e-14)
                np.testing.assert_allclose(backend.get(grad)[[0, 2]], [[-0.25, 0.25], [0.125, -0.125]], rtol=1e-14)
            np.testing.assert_array_equal(backend.get(grad)[1], 0)
    loss, grad = cross_entropy(
        backend.put(z), backend.put(np.array([0, 1, 1])), ignore_index=1, reduction="none", version=version
    )
    np.testing.assert_allclose(backend.get(loss), [math.log(2), 0, 0], rtol=1e-15)
    np.testing.assert_array_equal(backend.get(grad), [[-0.5, 0.5], [0, 0], [0, 0]])


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("N", [0, 3])
def test_nothing_counts(backend, version, weighted, smoothing, N):
    """An empty batch, or one in which all is ignored: mean NaN, sum 0, no gradient."""
    z, labels = backend.put(np.ones((N, 4))), backend.put(np.full(N, -100))
    weight = backend.put(np.ones(4)) if weighted else None
    for reduction, expected in [("mean", np.nan), ("sum", 0.0), ("none", np.zeros(N))]:
        loss, grad = cross_entropy(
            z, labels, weight=weight, label_smoothing=smoothing, reduction=reduction, version=version
        )
        np.testing.assert_array_equal(backend.get(loss), expected)
        np.testing.assert_array_equal(backend.get(grad), np.zeros((N, 4)))


@pytest.mark.parametrize("reduction", ops.REDUCTIONS)
@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("ignore_index", [-100, 2, 1000])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("probabilities", [False, True])
def test_agrees_with_torch(backend, reduction, smoothing, ignore_index, weighted, probabilities):
    torch = pytest.importorskip("torch")
    if probabilities and ignore_index >= 0:
        return  # refused by both
    rng = np.random.default_rng(7)
    for rows in ({}, {0: [1e4, -1e4, 1e4, 0, -1e4], 3: [0, -np.inf, 0, 1, 2], 5: [np.inf, 0, 0, 0, 0]}):
        z = 3 * rng.standard_normal((7, 5))
        for n, row in rows.items():
            z[n] = row
        target = rng.random((7, 5)) if probabilities else rng.choice([0, 1, 3, 4], 7)
        if not probabilities:
            target[2] = ignore_index
        weight = rng.random(5) if weighted else None
        tensor = torch.tensor(z, requires_grad=True)
        expected = torch.nn.functional.cross_entropy(
            tensor,
            torch.tensor(target),
            weight=None if weight is None else torch.tensor(weight),
            ignore_index=ignore_index,
            label_smoothing=smoothing,
            reduction=reduction,
        )
        (expected_grad,) = torch.autograd.grad(expected.sum(), tensor)
        loss, grad = cross_entropy(
            backend.put(z),
            backend.put(target),
            weight=None if weight is None else backend.put(weight),
            ignore_index=ignore_index,
            label_smoothing=smoothing,
            reduction=reduction,
        )
        expected = expected.detach().numpy()
        magnitude = np.max(np.abs(expected), initial=1.0, where=np.isfinite(expected))
        assert_within(backend.get(loss), expected, 4e-15 * magnitude)
        assert_within(backend.get(grad), expected_grad.numpy(), 4e-15)


@given(st.integers(1, 6), st.integers(1, 6), st.integers(0, 999), st.booleans())
def test_properties(backend, N, C, seed, by_labels):
    """The gradient of each row adds up to 0; one-hot probabilities are labels; a constant changes nothing."""
    rng = np.random.default_rng(seed)
    z, labels = rng.integers(-40, 40, (N, C)) / 8, rng.integers(0, C, N)
    target = labels if by_labels else np.eye(C)[labels]
    loss, grad = cross_entropy(backend.put(z), backend.put(target), reduction="sum")
    np.testing.assert_allclose(backend.get(grad).sum(axis=1), 0, atol=1e-14)
    for other_z, other_target in [(z, np.eye(C)[labels] if by_labels else labels), (z + 64, target)]:
        other_loss, other_grad = cross_entropy(backend.put(other_z), backend.put(other_target), reduction="sum")
        assert_within(backend.get(other_loss), backend.get(loss), 1e-13)
        assert_within(backend.get(other_grad), backend.get(grad), 1e-15)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0, 3, 5], r"labels in \[0, 3\) or ignore_index=-100; got 3 at position 1"),
        ([-1, 3, 0], "got -1 at position 0"),
        ([-100, 2, -99], "got -99 at position 2"),
        (np.array([2, 1, 2**64 - 1], np.uint64), f"got {2**64 - 1} at position 2"),
    ],
)
def test_labels_out_of_range(backend, labels, message):
    with pytest.raises(IndexRangeError, match=f"softmax_cross_entropy: target must hold .*{message}"):
        cross_entropy(backend.put(np.ones((3, 3))), backend.put(np.array(labels)))
        backend.synchronize()


def test_the_first_label_out_of_range_is_named(backend):
    """Among more labels than one block, or one part, checks; and what came before and after is not blamed."""
    N = 33000
    z, labels = backend.put(np.ones((N, 2))), np.zeros(N, np.int64)
    for position in (32999, 16390, 2999, 1030, 5):
        labels[position] = position
        cross_entropy(z, backend.put(np.zeros(N, np.int64)))
        with pytest.raises(IndexRangeError, match=f"got {position} at position {position}"):
            cross_entropy(z, backend.put(labels))
            backend.synchronize()
        backend.synchronize()


def test_an_ignore_index_that_no_label_can_have(backend):
    """-1 is not the label 2**64 - 1, nor 255 as an 8-bit number, whatever their bits."""
    z = backend.put(np.zeros((1, 2)))
    for label in (np.array([2**64 - 1], np.uint64), np.array([255], np.uint8)):
        with pytest.raises(IndexRangeError, match=f"got {label[0]} at position 0"):
            cross_entropy(z, backend.put(label), ignore_index=-1)
            backend.synchronize()
    loss, _ = cross_entropy(z, backend.put(np.array([1], np.int8)), ignore_index=2**70, reduction="sum")
    assert float(backend.get(loss)) == pytest.approx(math.log(2), rel=1e-15)


def test_refusals(backend):
    put = backend.put
    z, labels = put(np.ones((3, 4))), put(np.zeros(3, np.int64))
    with pytest.raises(ShapeError, match=r"logits must have 2 dimensions \(N, C\); got shape \(3,\)"):
        cross_entropy(put(np.ones(3)), labels)
    with pytest.raises(ShapeError, match="at least one class"):
        cross_entropy(put(np.ones((3, 0))), labels)
    with pytest.raises(ShapeError, match=r"target must have shape \(N\) = \(3,\); got \(4,\)"):
        cross_entropy(z, put(np.zeros(4, np.int64)))
    with pytest.raises(ShapeError, match=r"target must have shape \(N, C\) = \(3, 4\); got \(3, 5\)"):
        cross_entropy(z, put(np.ones((3, 5))))
    with pytest.raises(ShapeError, match=r"weight must have shape \(C\) = \(4,\); got \(3,\)"):
        cross_entropy(z, labels, weight=put(np.ones(3)))
    with pytest.raises(DtypeError, match="target must have an integer dtype; got float64"):
        cross_entropy(z, put(np.zeros(3)))
    with pytest.raises(DtypeError, match="target must be float32, float64, float16 or bfloat16; got int64"):
        cross_entropy(z, put(np.ones((3, 4), np.int64)))
    with pytest.raises(DtypeError, match="one dtype; logits is float64, weight is float32"):
        cross_entropy(z, labels, weight=put(np.ones(4, np.float32)))
    with pytest.raises(DeviceError, match="target: expected an array"):
        cross_entropy(z, [0, 1, 2])
    with pytest.raises(ArgumentError, match="reduction must be 'mean', 'sum' or 'none'; got 'average'"):
        cross_entropy(z, labels, reduction="average")
    for smoothing in (-0.1, 1.5, math.nan):
        with pytest.raises(ArgumentError, match=r"label_smoothing must be in \[0, 1\]"):
            cross_entropy(z, labels, label_smoothing=smoothing)
    with pytest.raises(ArgumentError, match="ignore_index must be negative for probabilities; got 2"):
        cross_entropy(z, put(np.ones((3, 4))), ignore_index=2)
