"""avg_pool2d against its definition, hand-worked cases, SciPy and torch."""

from __future__ import annotations

import numpy as np
import pytest
from _layouts import LAYOUTS, untouched
from _tolerance import assert_accurate
from _versions import every_version, skip_unless_there
from hypothesis import given
from hypothesis import strategies as st

from rawgrad.kernels._errors import ArgumentError, DtypeError, ShapeError
from rawgrad.kernels._windows import MAX_EXTENT, check_32_bits
from rawgrad.kernels.avg_pool2d import avg_pool2d_backward, avg_pool2d_forward, geometry, reference

DTYPES = [np.float32, np.float64]
#: Forward and backward have versions of the same names.
VERSIONS = every_version("avg_pool2d", "avg_pool2d_forward")


def windows(g):
    """For each output (p, q) its taps inside the input, and its divisor, counted one by one."""
    for p, q in np.ndindex(g.P, g.Q):
        inside, counted = [], 0
        for r, s in np.ndindex(g.R, g.S):
            h, w = p * g.stride[0] + r - g.padding[0], q * g.stride[1] + s - g.padding[1]
            if 0 <= h < g.H and 0 <= w < g.W:
                inside.append((h, w))
            in_padding = h < g.H + g.padding[0] and w < g.W + g.padding[1]
            counted += in_padding if g.count_include_pad else (h, w) in inside
        yield p, q, inside, g.divisor_override or counted


def forward(x, g):
    y = np.zeros(g.y_shape, x.dtype)
    for p, q, inside, divisor in windows(g):
        for h, w in inside:
            y[:, :, p, q] += x[:, :, h, w]
        y[:, :, p, q] /= x.dtype.type(divisor)
    return y


def backward(grad, g):
    dx = np.zeros(g.x_shape, grad.dtype)
    for p, q, inside, divisor in windows(g):
        for h, w in inside:
            dx[:, :, h, w] += grad[:, :, p, q] / grad.dtype.type(divisor)
    return dx


def options(g, ceil_mode):
    return {
        "stride": g.stride,
        "padding": g.padding,
        "ceil_mode": ceil_mode,
        "count_include_pad": g.count_include_pad,
        "divisor_override": g.divisor_override,
    }


def test_worked_by_hand(backend):
    x = backend.put(np.array([[[[1.0, 2.0, 3.0], [4.0, 5.0, 6.0], [7.0, 8.0, 9.0]]]]))

    def pool(size, **options):
        return backend.get(avg_pool2d_forward(x, size, **options))[0, 0].tolist()

    assert pool(2) == [[3.0]]
    assert pool(2, stride=1) == [[3.0, 4.0], [6.0, 7.0]]
    assert pool(2, ceil_mode=True) == [[3.0, 4.5], [7.5, 9.0]]  # what hangs over does not count
    assert pool(2, padding=1) == [[0.25, 1.25], [2.75, 7.0]]  # the padding does
    assert pool(2, padding=1, count_include_pad=False) == [[1.0, 2.5], [5.5, 7.0]]
    assert pool(2, divisor_override=2) == [[6.0]]

    grad = backend.put(np.array([[[[4.0, 8.0], [12.0, 16.0]]]]))
    dx = avg_pool2d_backward(grad, geometry((1, 1, 3, 3), 2, 1))
    np.testing.assert_array_equal(backend.get(dx), [[[[1.0, 3.0, 2.0], [4.0, 10.0, 6.0], [3.0, 7.0, 4.0]]]])


@st.composite
def poolings(draw):
    kernel = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    stride = draw(st.integers(1, 5)), draw(st.integers(1, 5))
    padding = draw(st.integers(0, kernel[0] // 2)), draw(st.integers(0, kernel[1] // 2))
    H, W = (max(1, k - 2 * p) + draw(st.integers(0, 6)) for k, p in zip(kernel, padding, strict=True))
    x_shape = draw(st.integers(0, 2)), draw(st.integers(1, 3)), H, W
    ceil_mode = draw(st.booleans())
    divisor = draw(st.sampled_from([None, None, 1, 3, -2]))
    return geometry(x_shape, kernel, stride, padding, ceil_mode, draw(st.booleans()), divisor), ceil_mode


layouts = st.sampled_from(list(LAYOUTS))


@pytest.mark.parametrize("version", VERSIONS)
@given(poolings(), st.sampled_from(DTYPES), st.tuples(layouts, layouts), st.integers(0, 2**32 - 1))
def test_agrees_with_the_definition(backend, version, pooling, dtype, layouts, seed):
    skip_unless_there(backend.name, "avg_pool2d", "avg_pool2d_forward", version)
    g, ceil_mode = pooling
    rng = np.random.default_rng(seed)
    x, grad = rng.standard_normal(g.x_shape).astype(dtype), rng.standard_normal(g.y_shape).astype(dtype)
    device_x, device_grad = backend.put(x, layouts[0]), backend.put(grad, layouts[1])
    with untouched(device_x, device_grad):
        y = avg_pool2d_forward(device_x, (g.R, g.S), **options(g, ceil_mode), version=version)
        dx = avg_pool2d_backward(device_grad, g, version=version)
    assert y.dtype == dx.dtype == dtype
    assert_accurate(backend.get(y), forward, x, g, scale=forward(abs(x), g))
    assert_accurate(backend.get(dx), backward, grad, g, scale=backward(abs(grad), g))


def assert_same_bits(backend, g, ceil_mode=False, dtype=np.float32, version=None, offset=0):
    """y and dx as from the reference, which sums over the taps in the same order.

    Args:
        offset: every array starts so many elements behind the start of its memory.
    """

    if backend.name == "numpy":
        pytest.skip("the reference itself")

    def put(array):
        device = backend.put(np.concatenate([np.zeros(offset, array.dtype), array.reshape(-1)]))
        return device[offset:].reshape(array.shape)

    rng = np.random.default_rng(0)
    x, grad = rng.standard_normal(g.x_shape).astype(dtype), rng.standard_normal(g.y_shape).astype(dtype)
    grad.reshape(-1)[::7] = -0.0
    y = avg_pool2d_forward(put(x), (g.R, g.S), **options(g, ceil_mode), version=version)
    dx = avg_pool2d_backward(put(grad), g, version=version)
    for actual, expected in (
        (y, reference.avg_pool2d_forward(x, g, None)),
        (dx, reference.avg_pool2d_backward(grad, g, None)),
    ):
        np.testing.assert_array_equal(backend.get(actual), expected)
        assert backend.get(actual).tobytes() == expected.tobytes()  # a sum of -0 is 0


# Why each: strips are of 4 outputs (or 8 elements of dx) and tiles at most 64 wide and 1024 large, so one
# below, at and above; rests of a row or column that no window covers; as many planes as a tile takes
# and one more; blocks of 256 threads, one below, at and above; windows of every specialised size, with and
# without padding, and more general ones; global average pooling; tiles of unequal size side by side in both
# directions; tiles that fill shared memory to the last element, of x and of windows.
@pytest.mark.parametrize(
    ("x_shape", "kernel", "stride", "padding", "ceil_mode"),
    [
        *[((1, 2, 4, w), 2, 2, 0, False) for w in (6, 7, 8, 9, 10, 15, 16, 17)],
        ((1, 2, 5, 16), 2, 2, 0, False),
        ((1, 2, 5, 16), 2, 2, 1, False),
        ((1, 1, 5, 17), 2, 2, 1, True),
        ((1, 2, 9, 17), 3, 2, 1, False),
        ((1, 1, 9, 19), 3, 2, 0, True),
        ((1, 2, 5, 11), (2, 3), 1, (1, 1), False),
        *[((1, 1, 3, w), (1, 2), 1, 0, False) for w in (64, 65, 66, 130)],
        *[((1, 1, 33 + d, 63), (2, 1), 2, 0, False) for d in (-2, 0, 2)],
        *[((1, c, 12, 12), (3, 2), (2, 3), (1, 0), False) for c in (34, 42, 43)],
        *[((1, c, 2, 2), 2, 2, 0, False) for c in (255, 256, 257)],
        ((2, 40, 7, 7), 7, None, 0, False),
        ((1, 2, 74, 140), 2, 2, 0, False),
        ((1, 2, 32, 128), 2, 2, 0, False),
        ((1, 2, 48, 64), (17, 1), 1, 0, False),
        ((1, 2, 8, 8), 1, 3, 0, False),
    ],
)
@pytest.mark.parametrize("version", VERSIONS)
def test_same_bits_as_the_reference_at_the_edges_of_tiles(
    backend, version, x_shape, kernel, stride, padding, ceil_mode
):
    skip_unless_there(backend.name, "avg_pool2d", "avg_pool2d_forward", version)
    for include, divisor in ((True, None), (False, None), (True, -3)):
        g = geometry(x_shape, kernel, stride, padding, ceil_mode, include, divisor)
        for dtype in DTYPES:
            assert_same_bits(backend, g, ceil_mode, dtype, version)


# Why each: vectors are of 2 to 16 windows, so one below, at and above one and two of them, with steps of 1, 2 and
# more, which have code of their own, as have rows of a single window; windows of both unrolled sizes and of another.
@pytest.mark.parametrize("step", [1, 2, 3])
@pytest.mark.parametrize("kernel", [2, 3, (1, 4)])
def test_same_bits_as_the_reference_at_the_edges_of_vectors(backend, kernel, step):
    for columns in (1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 32, 33):
        for padding in (0, (0, 1)):
            x_shape = 1, 2, 5, max(columns * step, 4)
            assert_same_bits(backend, geometry(x_shape, kernel, step, padding))
            assert_same_bits(backend, geometry(x_shape, kernel, step, padding), dtype=np.float64)


# Why each: kernels cut planes, or several of them, or rows of one, into parts of 16384 elements; windows of each kind
# that has code of its own; windows that reach over several parts.
PARTS = pytest.mark.parametrize(
    ("x_shape", "kernel", "stride", "padding", "ceil_mode"),
    [
        ((2, 30, 28, 28), 2, 2, 0, False),
        ((2, 30, 29, 27), 3, 2, 1, True),
        ((1, 1, 200, 300), 3, 2, 1, False),
        ((1, 1, 200, 300), 2, 2, 0, False),
        ((1, 3, 150, 120), 3, 1, 1, False),
        ((1, 1, 33000, 1), (2, 1), 1, 0, False),
        ((1, 1, 1, 33000), (1, 3), (1, 3), 0, False),
        ((50, 30, 5, 5), 5, None, 0, False),
        ((1, 30, 40, 50), (5, 3), (2, 3), (2, 1), True),
        ((1, 1, 260, 140), (70, 2), (1, 2), (35, 0), False),
    ],
)


@PARTS
def test_same_bits_as_the_reference_of_several_parts(backend, x_shape, kernel, stride, padding, ceil_mode):
    if backend.name != "numba":
        pytest.skip("the emulator takes long, and has parts of another size")
    g = geometry(x_shape, kernel, stride, padding, ceil_mode)
    for dtype in (np.float32, np.float64):
        assert_same_bits(backend, g, ceil_mode, dtype)


@PARTS
def test_same_bits_for_any_number_of_threads(backend, x_shape, kernel, stride, padding, ceil_mode):
    if backend.name != "numba":
        pytest.skip("no other backend has threads")
    from rawgrad.kernels._jit import get_num_threads, set_num_threads

    g = geometry(x_shape, kernel, stride, padding, ceil_mode)
    x = np.random.default_rng(0).standard_normal(x_shape).astype(np.float32)

    def results():
        y = avg_pool2d_forward(x, (g.R, g.S), **options(g, ceil_mode))
        return [y.tobytes(), avg_pool2d_backward(y, g).tobytes()]

    threads = get_num_threads()
    expected = results()
    try:
        set_num_threads(1)
        assert results() == expected
    finally:
        set_num_threads(threads)


@pytest.mark.parametrize("offset", [1, 2, 4])
@pytest.mark.parametrize("kernel", [2, 3])
def test_arrays_may_start_anywhere(backend, kernel, offset):
    """Some of these starts allow loads of 16 bytes, others not."""
    g = geometry((1, 2, 6, 24), kernel, 2)
    for dtype in DTYPES:
        assert_same_bits(backend, g, dtype=dtype, offset=offset)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("x_shape", [(1, 1, 65, 64), (1, 1, 92, 92)])
def test_windows_too_large_for_any_tile(backend, version, x_shape):
    """65 x 64 elements are more than v2 stages forward, 46 x 46 windows over one element backward."""
    skip_unless_there(backend.name, "avg_pool2d", "avg_pool2d_forward", version)
    kernel, stride = ((65, 64), None) if x_shape[2] == 65 else (46, 1)
    assert_same_bits(backend, geometry(x_shape, kernel, stride), version=version)


def test_what_does_not_fit_into_32_bits_is_refused():
    check_32_bits("avg_pool2d", geometry((1, 1, 4, 4), 2, MAX_EXTENT - 4))
    with pytest.raises(ShapeError, match=r"avg_pool2d: windows of 2x2 with stride \(.*\) over 4x4 reach beyond"):
        check_32_bits("avg_pool2d", geometry((1, 1, 4, 4), 2, MAX_EXTENT))


@pytest.mark.parametrize(("version", "backward"), [("v1_plain", 4), ("v3_register_tile", 1)])
def test_traffic_of_windows_that_do_not_overlap(backend, version, backward):
    """v3 reads everything once; v1 reads x once, but the gradient of each window once for each of its 4 elements."""
    if backend.name != "emulated":
        pytest.skip("only the emulator counts bytes")
    from rawgrad.kernels._emulator.runtime import record_launches

    g = geometry((2, 3, 8, 16), 2)
    x = backend.put(np.random.default_rng(0).standard_normal(g.x_shape).astype(np.float32))
    with record_launches() as launches:
        y = avg_pool2d_forward(x, 2, version=version)
        dx = avg_pool2d_backward(y, g, version=version)
    up, down = (launch.traffic for launch in launches)
    assert (up.global_read, up.global_written) == (x.nbytes, y.nbytes)
    assert (down.global_read, down.global_written) == (backward * y.nbytes, dx.nbytes)


def test_traffic_of_strips_under_overlapping_windows(backend):
    """Of each of its three rows a strip of 4 windows reads 9 elements, not 12; all strips lie inside."""
    if backend.name != "emulated":
        pytest.skip("only the emulator counts bytes")
    from rawgrad.kernels._emulator.runtime import record_launches

    x = backend.put(np.random.default_rng(0).standard_normal((1, 2, 9, 33)).astype(np.float32))
    with record_launches() as launches:
        y = avg_pool2d_forward(x, 3, stride=2, version="v3_register_tile")
    assert y.shape == (1, 2, 4, 16)
    assert launches[0].traffic.global_read == y.size // 4 * 3 * 9 * x.itemsize


@given(poolings(), st.integers(0, 2**32 - 1))
def test_backward_is_the_adjoint_of_forward(backend, pooling, seed):
    g, ceil_mode = pooling
    rng = np.random.default_rng(seed)
    x, grad = rng.standard_normal(g.x_shape), rng.standard_normal(g.y_shape)
    y = backend.get(avg_pool2d_forward(backend.put(x), (g.R, g.S), **options(g, ceil_mode)))
    dx = backend.get(avg_pool2d_backward(backend.put(grad), g))
    np.testing.assert_allclose(np.vdot(dx, x), np.vdot(grad, y), rtol=0, atol=1e-13 * (1 + np.abs(grad).sum()))


def test_agrees_with_scipy(backend):
    from scipy.ndimage import uniform_filter

    x = np.random.default_rng(0).standard_normal((3, 2, 13, 11))
    y = avg_pool2d_forward(backend.put(x), 3, stride=2, padding=1)
    everywhere = uniform_filter(x, (1, 1, 3, 3), mode="constant")
    np.testing.assert_allclose(backend.get(y), everywhere[:, :, ::2, ::2], rtol=1e-13, atol=1e-15)


# Why each: plain; overlap with padding; gaps; a rest; a rest that counts; a window that torch drops;
# the window as large as the input (global average).
@pytest.mark.parametrize(
    ("size", "kernel", "stride", "padding", "ceil_mode"),
    [
        ((28, 28), 2, None, 0, False),
        ((9, 8), 3, 1, 1, False),
        ((9, 8), 2, (3, 4), 0, False),
        ((10, 9), 3, 2, 0, False),
        ((10, 9), (3, 4), 2, (1, 2), True),
        ((5, 5), 2, 3, 1, True),
        ((4, 6), (4, 6), None, 0, False),
    ],
)
@pytest.mark.parametrize(("include", "divisor"), [(True, None), (False, None), (True, 7)])
def test_agrees_with_torch(backend, size, kernel, stride, padding, ceil_mode, include, divisor):
    torch = pytest.importorskip("torch")
    x = np.random.default_rng(0).standard_normal((2, 3, *size))
    tensor = torch.tensor(x, requires_grad=True)
    expected = torch.nn.functional.avg_pool2d(tensor, kernel, stride, padding, ceil_mode, include, divisor)
    grad = np.random.default_rng(1).standard_normal(tuple(expected.shape))
    expected.backward(torch.tensor(grad))

    g = geometry(x.shape, kernel, stride, padding, ceil_mode, include, divisor)
    y = avg_pool2d_forward(backend.put(x), kernel, **options(g, ceil_mode))
    np.testing.assert_allclose(backend.get(y), expected.detach().numpy(), rtol=1e-13, atol=1e-15)
    dx = avg_pool2d_backward(backend.put(grad), g)
    np.testing.assert_allclose(backend.get(dx), tensor.grad.numpy(), rtol=1e-13, atol=1e-15)


def test_nan_and_infinity_reach_exactly_the_windows_that_hold_them(backend):
    x = np.ones((1, 1, 2, 6), np.float32)
    x[0, 0, 0, 0], x[0, 0, 1, 3], x[0, 0, 0, 4:] = np.nan, np.inf, (np.inf, -np.inf)
    y = avg_pool2d_forward(backend.put(x), 2)
    np.testing.assert_array_equal(backend.get(y), [[[[np.nan, np.inf, np.nan]]]])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_out_takes_the_result(backend, layout):
    rng = np.random.default_rng(0)
    g = geometry((2, 3, 7, 6), 3, 2, 1)
    x, grad = backend.put(rng.standard_normal(g.x_shape)), backend.put(rng.standard_normal(g.y_shape))
    out = backend.put(np.full(g.y_shape, np.nan), layout)
    assert avg_pool2d_forward(x, 3, stride=2, padding=1, out=out) is out
    np.testing.assert_array_equal(backend.get(out), backend.get(avg_pool2d_forward(x, 3, stride=2, padding=1)))
    out = backend.put(np.full(g.x_shape, np.nan), layout)
    assert avg_pool2d_backward(grad, g, out=out) is out
    np.testing.assert_array_equal(backend.get(out), backend.get(avg_pool2d_backward(grad, g)))


def zeros(*shape, dtype=np.float32):
    return np.zeros(shape, dtype)


X = zeros(2, 3, 8, 8)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: avg_pool2d_forward(zeros(8, 8), 2),
            ShapeError,
            r"avg_pool2d: x must have 4 dimensions \(N, C, H, W\)",
        ),
        (lambda: avg_pool2d_forward(X, (2, 9)), ShapeError, "a window of 2x9 .* does not fit into x of 8x8"),
        (lambda: avg_pool2d_forward(X, 2, padding=2), ArgumentError, "padding must be at most half of kernel_size"),
        (
            lambda: avg_pool2d_forward(X, 2.0),
            ArgumentError,
            "kernel_size must be an integer or a pair of integers; got 2.0",
        ),
        (lambda: avg_pool2d_forward(X, 2, divisor_override=0), ArgumentError, "an integer other than 0; got 0"),
        (lambda: avg_pool2d_forward(X, 2, divisor_override=1.5), ArgumentError, "an integer other than 0; got 1.5"),
        (lambda: avg_pool2d_forward(X.astype(np.int8), 2), DtypeError, "x must be float32 or float64; got int8"),
        (
            lambda: avg_pool2d_backward(zeros(2, 3, 4, 3), geometry(X.shape, 2)),
            ShapeError,
            r"avg_pool2d_backward: grad must have shape \(N, C, P, Q\) = \(2, 3, 4, 4\); got \(2, 3, 4, 3\)",
        ),
    ],
)
def test_refusals(call, error, message):
    with pytest.raises(error, match=message):
        call()
