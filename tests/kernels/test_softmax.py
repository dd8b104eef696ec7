"""Softmax and log-softmax against their definitions, complex-step derivatives and torch."""

from __future__ import annotations

import math

import numpy as np
import pytest
from _derivative import complex_step
from _layouts import LAYOUTS, untouched
from _tolerance import assert_accurate, assert_within
from _versions import every_version
from hypothesis import given
from hypothesis import strategies as st

from rawgrad.kernels import softmax as ops
from rawgrad.kernels._dispatch import backend as use_backend
from rawgrad.kernels._errors import ArgumentError, DtypeError, ShapeError

FORWARD = {"softmax": ops.softmax_forward, "log_softmax": ops.log_softmax_forward}
BACKWARD = {"softmax": ops.softmax_backward, "log_softmax": ops.log_softmax_backward}
VERSIONS = every_version("softmax", "softmax_forward")  # the other three functions have the same


@pytest.fixture
def pinned(backend, version):
    """``backend`` with ``version``."""
    with use_backend(backend.name, **({"softmax": version} if version else {})):
        yield backend


def definition(name, axis):
    def of(x):
        e = np.exp(x)
        y = e / e.sum(axis=axis, keepdims=True)
        return y if name == "softmax" else np.log(y)

    return of


# one element; one row; odd; an axis of length one; the middle axis; last of 4; empty batch; empty axis
SIZES = [((1,), 0), ((5,), -1), ((3, 7), 1), ((3, 1), 1), ((2, 5, 3), 1), ((2, 3, 2, 4), -1), ((0, 4), 1), ((4, 0), 1)]


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("name", FORWARD)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("shape", "axis"), SIZES, ids=str)
def test_agrees_with_the_definition(pinned, name, dtype, layout, shape, axis):
    backend = pinned
    rng = np.random.default_rng(0)
    host_x, host_grad = rng.uniform(-4, 4, (2, *shape)).astype(dtype)
    x, grad = backend.put(host_x, layout), backend.put(host_grad, layout)
    f = definition(name, axis)
    with untouched(x):
        y = FORWARD[name](x, axis)
    assert_accurate(backend.get(y), f, host_x)
    with untouched(grad, y):
        dx = BACKWARD[name](grad, y, axis)
    assert_accurate(backend.get(dx), lambda x, g: complex_step(f, x, g), host_x, host_grad, scale=np.abs(host_grad))


def derivative(name, axis):
    """The gradient by its equation; complex steps would take too long for long rows."""

    def of(x, grad):
        y = definition("softmax", axis)(x)
        if name == "softmax":
            return y * (grad - (grad * y).sum(axis=axis, keepdims=True))
        return grad - y * grad.sum(axis=axis, keepdims=True)

    return of


# Where a tile ends, or one kind of team gives way to the next: 16 elements; 512 and 4096 in float32, 256 and 2048 in
# float64; a row of three tiles.  Multiples of 4 and of 2 can be read by 16 bytes.  Then rows whose elements lie apart:
# 8 threads for each of 32 neighbours, and blocks that hold several outer indices.
LONG = [
    *[((3, length), 1) for length in (15, 16, 17, 255, 256, 257, 511, 512, 513, 2047, 2048, 2049, 4095, 4096, 4097)],
    *[((1, 9000), 1), ((33, 4), 1), ((129, 3), 1)],
    *[((2, length, inner), 1) for length, inner in ((7, 31), (8, 32), (9, 33), (100, 2), (3, 130))],
]


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("name", FORWARD)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("shape", "axis"), LONG, ids=str)
def test_rows_of_every_length(pinned, name, dtype, shape, axis):
    backend = pinned
    rng = np.random.default_rng(1)
    host_x, host_grad = rng.uniform(-4, 4, (2, *shape)).astype(dtype)
    grad = backend.put(host_grad)
    # The same numbers twice: at a multiple of 16 bytes, and one number after one.
    for x in (backend.put(host_x), backend.put(np.append(dtype(0), host_x))[1:].reshape(shape)):
        y = FORWARD[name](x, axis)
        assert_accurate(backend.get(y), definition(name, axis), host_x)
        dx = BACKWARD[name](grad, y, axis)
        assert_accurate(backend.get(dx), derivative(name, axis), host_x, host_grad, scale=np.abs(host_grad))


# Vectors of kernels/softmax/numba_cpu.py hold 2 to 16 numbers: one below, at and one above what fills 1, 2 and 8 of
# them, which a row keeps in registers, and steps of 4 of longer rows.  Then 2, 4 and 8 columns, which are a row
# together if a vector holds more; and columns that are a vector, or fill one in part; 1, 4 and 5 vectors of them.
VECTORS = [
    *[((3, length), 1) for length in (*range(1, 10), 31, 32, 33, 63, 64, 65, 127, 128, 129, 191, 192, 193, 500)],
    *[((3, length, inner), 1) for inner in (2, 4, 8) for length in (1, 3, 8, 9, 70)],
    *[((2, 5, inner), 1) for inner in (1, 3, 15, 16, 17, 63, 64, 65, 80, 129)],
    *[((5, 2, 3), 0), ((2, 3, 4, 2), 2), ((20, 300), 0)],
]


@pytest.mark.parametrize("name", FORWARD)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_vectors_filled_in_part(backend, name, dtype):
    rng = np.random.default_rng(3)
    for shape, axis in VECTORS:
        host_x, host_grad = rng.uniform(-4, 4, (2, *shape)).astype(dtype)
        y = FORWARD[name](backend.put(host_x), axis)
        assert_accurate(backend.get(y), definition(name, axis), host_x)
        dx = BACKWARD[name](backend.put(host_grad), y, axis)
        assert_accurate(backend.get(dx), derivative(name, axis), host_x, host_grad, scale=np.abs(host_grad))


# Parts of kernels/softmax/numba_cpu.py: 16384 elements.  At one and above it, several, the
# last one short; lines longer than a part; rows, columns, few columns.
@pytest.mark.backends("numba")
@pytest.mark.parametrize("name", FORWARD)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_bits_of_each_softmax_alone_for_any_number_of_threads(backend, name, dtype):
    from rawgrad.kernels._jit import get_num_threads, set_num_threads

    rng, threads = np.random.default_rng(5), get_num_threads()
    for shape in [(256, 64), (257, 64), (2500, 10), (3, 20011), (3, 41, 300), (700, 11, 4)]:
        x, grad = rng.standard_normal((2, *shape)).astype(dtype)
        y = np.stack([FORWARD[name](row, 0) for row in x])
        dx = np.stack([BACKWARD[name](*pair, 0) for pair in zip(grad, y, strict=True)])
        for count in {1, threads}:
            set_num_threads(count)
            try:
                np.testing.assert_array_equal(FORWARD[name](x, 1), y)
                np.testing.assert_array_equal(BACKWARD[name](grad, y, 1), dx)
            finally:
                set_num_threads(threads)


def test_probabilities_too_small_for_their_dtype(backend):
    """Down to the least positive number, and 0 below it."""
    for dtype, least in ((np.float32, -149), (np.float64, -1074)):
        n = np.arange(0, least - 6, -1)
        y = backend.get(
            ops.softmax_forward(backend.put(np.stack([np.zeros(n.size), n * math.log(2)]).astype(dtype)), 0)
        )
        exact = np.exp2(n.astype(np.longdouble)) / (1 + np.exp2(n.astype(np.longdouble)))
        eps = np.finfo(dtype).eps  # of n log 2, where it is rounded
        assert (np.abs(y[1] - exact) <= exact * -least * eps + 2.0**least).all()


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(("shape", "axis"), [((3, 5000), 1), ((3, 300), 1), ((3, 20, 2), 1), ((3, 20, 3), 1)])
def test_a_maximum_that_comes_late(pinned, shape, axis):
    """Whatever a running maximum has met before: -inf alone, the least number, or nothing near the largest one."""
    backend = pinned
    for before in (-np.inf, float(np.finfo(np.float64).min), -1e4):
        x, expected = np.full(shape, before), np.zeros(shape)
        x[0, -2:], expected[0, -2:] = 0, 0.5
        x[1, shape[1] // 2], expected[1, shape[1] // 2] = 1e4, 1
        x[2], expected[2] = -np.inf, np.nan
        np.testing.assert_array_equal(backend.get(ops.softmax_forward(backend.put(x), axis)), expected)
        expected = np.stack([x[0] - np.log(2), x[1] - 1e4, np.full_like(x[2], np.nan)])
        np.testing.assert_allclose(backend.get(ops.log_softmax_forward(backend.put(x), axis)), expected, rtol=4e-16)


# Version 1 reads a row twice, version 2 holds up to 4096 float32 of it; rows whose elements lie apart are read twice.
@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(
    ("shape", "readings"), [((5, 10), 1), ((3, 1000), 1), ((2, 5000), 1 + 904 / 5000), ((2, 9, 7), 2)]
)
def test_traffic_is_what_each_version_promises(pinned, version, shape, readings):
    backend = pinned
    if backend.name != "emulated":
        pytest.skip("only the emulator counts bytes")
    from rawgrad.kernels._emulator.runtime import record_launches

    x, grad = (backend.put(a.astype(np.float32)) for a in np.random.default_rng(2).random((2, *shape)))
    if version == "v1_plain":
        readings = 2
    with record_launches() as launches:
        y = ops.softmax_forward(x, 1)
        ops.softmax_backward(grad, y, 1)
    for launch, read in zip(launches, (x.nbytes, grad.nbytes + y.nbytes), strict=True):
        assert launch.traffic.global_read == round(readings * read)
        assert launch.traffic.distinct_read == read
        assert launch.traffic.global_written == launch.traffic.distinct_written == y.nbytes


@pytest.mark.parametrize("version", VERSIONS)
def test_small_terms_are_not_lost_beside_large_ones(pinned, version):
    """31 terms of 0.49 times the last place of the one that comes after them: what is added after it is lost.

    Version 1 adds in runs of 32, where none is; runs of another length lose hundreds.
    """
    backend = pinned
    if version != "v1_plain":
        pytest.skip("of the order in which one thread of version 1 adds")
    eps = float(np.finfo(np.float32).eps)
    row = np.tile(np.append(np.full(31, math.log(0.49 * eps)), 0), 31).astype(np.float32)
    exact = 1 / np.exp(row.astype(np.float64)).sum()
    y = backend.get(ops.softmax_forward(backend.put(row[None]), 1))[0, 31]
    assert abs(y / exact - 1) < 4 * eps


def test_worked_values(backend):
    """Programs P2: softmax(3, 1, -3) = .88 .12 0."""
    y = backend.get(ops.softmax_forward(backend.put(np.array([3.0, 1.0, -3.0])), 0))
    np.testing.assert_allclose(y, [0.87887824, 0.11894324, 0.00217852], atol=5e-9)
    y = backend.get(ops.log_softmax_forward(backend.put(np.log([1.0, 2.0, 5.0])), 0))
    np.testing.assert_allclose(y, np.log([0.125, 0.25, 0.625]), rtol=1e-15)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_huge_and_not_finite(backend, dtype):
    inf, nan = np.inf, np.nan
    rows = [[1e30, 1e30, -1e30], [1e4, 0, -1e4], [-inf, 0, 0], [-inf] * 3, [inf, 0, 0], [nan, 0, 0]]
    x = backend.put(np.array(rows, dtype))
    expected = [[0.5, 0.5, 0], [1, 0, 0], [0, 0.5, 0.5], [nan] * 3, [nan] * 3, [nan] * 3]
    np.testing.assert_array_equal(backend.get(ops.softmax_forward(x, 1)), np.array(expected, dtype))
    half = -np.log(dtype(2))
    expected = [[half, half, -2 * dtype(1e30)], [0, -1e4, -2e4], [-inf, half, half], [nan] * 3, [nan] * 3, [nan] * 3]
    np.testing.assert_array_equal(backend.get(ops.log_softmax_forward(x, 1)), np.array(expected, dtype))


@pytest.mark.parametrize("name", FORWARD)
def test_agrees_with_torch(backend, name):
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(4)
    host_x, host_grad = 20 * rng.standard_normal((2, 4, 5, 6))
    tensor = torch.tensor(host_x, requires_grad=True)
    expected = getattr(torch, name)(tensor, 1)
    (expected_dx,) = torch.autograd.grad(expected, tensor, torch.tensor(host_grad))
    y = FORWARD[name](backend.put(host_x), 1)
    dx = BACKWARD[name](backend.put(host_grad), y, 1)
    assert_within(backend.get(y), expected.detach().numpy(), 4e-14)
    assert_within(backend.get(dx), expected_dx.numpy(), 4e-14)


@given(st.data())
def test_properties(backend, data):
    """Probabilities add up to one, a constant along the axis changes nothing, gradients add up to zero."""
    shape = tuple(data.draw(st.lists(st.integers(1, 5), min_size=1, max_size=4)))
    axis = data.draw(st.integers(-len(shape), len(shape) - 1))
    rng = np.random.default_rng(data.draw(st.integers(0, 1000)))
    host = rng.integers(-50, 50, shape) / 8  # so that adding 64 is exact
    y = ops.softmax_forward(backend.put(host), axis)
    np.testing.assert_allclose(backend.get(y).sum(axis=axis), 1, rtol=1e-14)
    np.testing.assert_array_equal(backend.get(ops.softmax_forward(backend.put(host + 64), axis)), backend.get(y))
    log_y = ops.log_softmax_forward(backend.put(host), axis)
    np.testing.assert_allclose(np.exp(backend.get(log_y)), backend.get(y), rtol=1e-13)
    grad = backend.put(rng.standard_normal(shape))
    for dx in (ops.softmax_backward(grad, y, axis), ops.log_softmax_backward(grad, log_y, axis)):
        np.testing.assert_allclose(backend.get(dx).sum(axis=axis), 0, atol=1e-13)


@pytest.mark.parametrize("name", FORWARD)
def test_refusals(backend, name):
    x = backend.put(np.ones((2, 3)))
    with pytest.raises(ArgumentError, match=rf"{name}: axis must be in \[-2, 2\).*got 2"):
        FORWARD[name](x, 2)
    with pytest.raises(ArgumentError, match=r"axis must be an integer; got 1\.0"):
        FORWARD[name](x, 1.0)
    with pytest.raises(ShapeError, match=f"{name}: x must have at least one dimension"):
        FORWARD[name](backend.put(np.array(1.0)), 0)
    with pytest.raises(DtypeError, match=f"{name}: x must be float32 or float64; got int64"):
        FORWARD[name](backend.put(np.ones(3, np.int64)), 0)
    with pytest.raises(ShapeError, match=rf"{name}_backward: grad must have shape \(2, 3\); got \(3,\)"):
        BACKWARD[name](backend.put(np.ones(3)), x, 0)
