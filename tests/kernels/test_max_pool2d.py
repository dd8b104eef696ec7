"""max_pool2d against its definition, hand-worked cases, SciPy and torch; the results are exact."""

from __future__ import annotations

import numpy as np
import pytest
from _layouts import LAYOUTS, untouched
from _versions import every_version, skip_unless_there
from hypothesis import given
from hypothesis import strategies as st

from rawgrad.kernels._errors import ArgumentError, DtypeError, ShapeError
from rawgrad.kernels._windows import MAX_EXTENT, check_32_bits, staged_tile
from rawgrad.kernels.max_pool2d import (
    geometry,
    max_pool2d_backward,
    max_pool2d_forward,
    max_pool2d_gather,
    reference,
)

NAN, INF = np.nan, np.inf
#: Forward and backward have versions of the same names.
VERSIONS = every_version("max_pool2d", "max_pool2d_forward")


def windows(g):
    """For each output (p, q) the list of (code, h, w) of the taps that lie inside the input."""
    for p, q in np.ndindex(g.P, g.Q):
        inside = []
        for r, s in np.ndindex(g.R, g.S):
            h = p * g.stride[0] + r * g.dilation[0] - g.padding[0]
            w = q * g.stride[1] + s * g.dilation[1] - g.padding[1]
            if 0 <= h < g.H and 0 <= w < g.W:
                inside.append((r * g.S + s, h, w))
        yield p, q, inside


def expected_forward(x, g):
    """y, and the code of the maximum; -1 where the window has no tap inside the input."""
    y, codes = np.full(g.y_shape, -INF, x.dtype), np.full(g.y_shape, -1)
    for p, q, inside in windows(g):
        for n, c in np.ndindex(g.N, g.C):
            best = None
            for code, h, w in inside:
                value = x[n, c, h, w]
                if best is None or value > best or (np.isnan(value) and not np.isnan(best)):
                    best = y[n, c, p, q] = value
                    codes[n, c, p, q] = code
    return y, codes


def expected_backward(grad, codes, g):
    dx = np.zeros(g.x_shape, grad.dtype)
    for p, q, inside in windows(g):
        for n, c in np.ndindex(g.N, g.C):
            for code, h, w in inside:
                if code == codes[n, c, p, q]:
                    dx[n, c, h, w] += grad[n, c, p, q]
    return dx


def expected_gather(x, codes, g):
    y = np.zeros(g.y_shape, x.dtype)
    for p, q, inside in windows(g):
        for n, c in np.ndindex(g.N, g.C):
            for code, h, w in inside:
                if code == codes[n, c, p, q]:
                    y[n, c, p, q] = x[n, c, h, w]
    return y


def options(g, ceil_mode):
    return {"stride": g.stride, "padding": g.padding, "dilation": g.dilation, "ceil_mode": ceil_mode}


def test_worked_by_hand(backend):
    x = backend.put(
        np.array([[[[1.0, 5.0, 2.0, 0.0], [3.0, 4.0, 8.0, 8.0], [-1.0, -2.0, 7.0, 6.0], [-3.0, -4.0, 5.0, 7.0]]]])
    )
    y, codes = max_pool2d_forward(x, 2)
    np.testing.assert_array_equal(backend.get(y), [[[[5.0, 8.0], [-1.0, 7.0]]]])
    np.testing.assert_array_equal(backend.get(codes), [[[[1, 2], [0, 0]]]])  # both ties go to the first
    assert backend.get(codes).dtype == np.uint8
    g = geometry((1, 1, 4, 4), 2)
    grad = backend.put(np.array([[[[1.0, 2.0], [3.0, 4.0]]]]))
    np.testing.assert_array_equal(
        backend.get(max_pool2d_backward(grad, codes, g)),
        [[[[0.0, 1.0, 0.0, 0.0], [0.0, 0.0, 2.0, 0.0], [3.0, 0.0, 4.0, 0.0], [0.0, 0.0, 0.0, 0.0]]]],
    )
    np.testing.assert_array_equal(backend.get(max_pool2d_gather(x, codes, g)), backend.get(y))


def test_overlapping_windows_share_their_maximum(backend):
    x = backend.put(np.array([[[[0.0, 9.0, 1.0, 2.0]]]]))
    y, codes = max_pool2d_forward(x, (1, 2), stride=1)
    np.testing.assert_array_equal(backend.get(y), [[[[9.0, 9.0, 2.0]]]])
    np.testing.assert_array_equal(backend.get(codes), [[[[1, 0, 1]]]])
    grad = backend.put(np.array([[[[1.0, 10.0, 100.0]]]]))
    dx = max_pool2d_backward(grad, codes, geometry((1, 1, 1, 4), (1, 2), 1))
    np.testing.assert_array_equal(backend.get(dx), [[[[0.0, 11.0, 0.0, 100.0]]]])


def test_the_first_nan_wins_and_infinity_is_a_number(backend):
    rows = [[1.0, NAN, NAN], [NAN, INF, 5.0], [-INF, -INF, -INF], [-INF, 2.0, -INF], [INF, INF, 0.0], [-0.0, 0.0, -1.0]]
    y, codes = max_pool2d_forward(backend.put(np.array(rows).reshape(6, 1, 1, 3)), (1, 3))
    np.testing.assert_array_equal(backend.get(y).ravel(), [NAN, NAN, -INF, 2.0, INF, 0.0])
    np.testing.assert_array_equal(backend.get(codes).ravel(), [1, 0, 0, 1, 0, 0])


def test_padding_never_wins(backend):
    """Not even against -infinity, so that the gradient reaches an element of the input."""
    x = backend.put(np.full((1, 1, 1, 2), -INF))
    y, codes = max_pool2d_forward(x, (1, 2), padding=(0, 1), stride=1)
    np.testing.assert_array_equal(backend.get(y), [[[[-INF, -INF, -INF]]]])
    np.testing.assert_array_equal(backend.get(codes), [[[[1, 0, 0]]]])
    grad = backend.put(np.array([[[[1.0, 2.0, 4.0]]]]))
    dx = max_pool2d_backward(grad, codes, geometry((1, 1, 1, 2), (1, 2), 1, (0, 1)))
    np.testing.assert_array_equal(backend.get(dx), [[[[3.0, 4.0]]]])


def test_a_window_without_input_is_minus_infinity_and_its_gradient_goes_nowhere(backend):
    x = backend.put(np.full((1, 1, 1, 4), 7.0))  # the taps of the only window are at -1 and 4
    y, codes = max_pool2d_forward(x, (1, 2), padding=(0, 1), dilation=5)
    g = geometry((1, 1, 1, 4), (1, 2), None, (0, 1), 5)
    np.testing.assert_array_equal(backend.get(y), [[[[-INF]]]])
    np.testing.assert_array_equal(
        backend.get(max_pool2d_backward(backend.put(np.ones((1, 1, 1, 1))), codes, g)), [[[[0.0] * 4]]]
    )
    np.testing.assert_array_equal(backend.get(max_pool2d_gather(x, codes, g)), [[[[0.0]]]])


@st.composite
def poolings(draw):
    kernel = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    stride = draw(st.integers(1, 5)), draw(st.integers(1, 5))  # up to beyond the window
    dilation = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    padding = draw(st.integers(0, kernel[0] // 2)), draw(st.integers(0, kernel[1] // 2))
    H, W = (
        max(1, d * (k - 1) + 1 - 2 * p) + draw(st.integers(0, 6))
        for d, k, p in zip(dilation, kernel, padding, strict=True)
    )
    ceil_mode = draw(st.booleans())
    x_shape = draw(st.integers(0, 2)), draw(st.integers(1, 3)), H, W
    return geometry(x_shape, kernel, stride, padding, dilation, ceil_mode), ceil_mode


@pytest.mark.parametrize("version", VERSIONS)
@given(
    poolings(),
    st.sampled_from([np.float32, np.float64]),
    st.tuples(*[st.sampled_from(list(LAYOUTS))] * 3),
    st.integers(0, 2**32 - 1),
)
def test_agrees_with_the_definition(backend, version, pooling, dtype, layouts, seed):
    skip_unless_there(backend.name, "max_pool2d", "max_pool2d_forward", version)
    g, ceil_mode = pooling
    rng = np.random.default_rng(seed)
    # Few values, so that there are many ties; whole numbers, so that sums are exact.
    x = rng.choice([-INF, -2.0, -1.0, 0.0, 1.0, 2.0, INF, NAN], g.x_shape).astype(dtype)
    grad = rng.integers(-9, 9, g.y_shape).astype(dtype)
    device_x, device_grad = backend.put(x, layouts[0]), backend.put(grad, layouts[1])
    with untouched(device_x):
        y, codes = max_pool2d_forward(device_x, (g.R, g.S), **options(g, ceil_mode), version=version)
    expected_y, expected_codes = expected_forward(x, g)
    assert y.dtype == dtype
    assert codes.dtype == np.uint8
    np.testing.assert_array_equal(backend.get(y), expected_y)
    seen = expected_codes >= 0
    np.testing.assert_array_equal(backend.get(codes)[seen], expected_codes[seen])

    device_codes = LAYOUTS[layouts[2]](codes)
    with untouched(device_x, device_grad, device_codes):
        dx = max_pool2d_backward(device_grad, device_codes, g, version=version)
        gathered = max_pool2d_gather(device_x, device_codes, g)
    assert dx.dtype == gathered.dtype == dtype
    np.testing.assert_array_equal(backend.get(dx), expected_backward(grad, expected_codes, g))
    np.testing.assert_array_equal(backend.get(gathered), expected_gather(x, expected_codes, g))


def assert_same_bits(backend, g, ceil_mode=False, dtype=np.float32, version=None, offset=0):
    """y, codes (those of windows without input too), dx and the gathered elements as from the reference.

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
    expected_y, expected_codes = reference.max_pool2d_forward(x, g, None)
    y, codes = max_pool2d_forward(put(x), (g.R, g.S), **options(g, ceil_mode), version=version)
    dx = max_pool2d_backward(put(grad), put(backend.get(codes)), g, version=version)
    gathered = max_pool2d_gather(put(x), put(backend.get(codes)), g)
    for actual, expected in (
        (y, expected_y),
        (codes, expected_codes),
        (dx, reference.max_pool2d_backward(grad, expected_codes, g, None)),
        (gathered, reference.max_pool2d_gather(x, expected_codes, g, None)),
    ):
        np.testing.assert_array_equal(backend.get(actual), expected)
        assert backend.get(actual).tobytes() == expected.tobytes()  # a sum of -0 is 0


# Why each: strips are of 4 outputs (or 8 elements of dx) and tiles at most 64 wide and 1024 large, so one
# below, at and above; rests of a row or column that no window covers; as many planes as a tile takes
# and one more; blocks of 256 threads, one below, at and above; windows of every specialised size, with and
# without padding, and more general ones; codes of four bytes; tiles of unequal size side by side in both
# directions; tiles that fill shared memory to the last element, of x and of windows; a window whose taps all
# lie in the padding.
@pytest.mark.parametrize(
    ("x_shape", "kernel", "stride", "padding", "dilation", "ceil_mode"),
    [
        *[((1, 2, 4, w), 2, 2, 0, 1, False) for w in (6, 7, 8, 9, 10, 15, 16, 17)],
        ((1, 2, 5, 16), 2, 2, 0, 1, False),
        ((1, 2, 5, 16), 2, 2, 1, 1, False),
        ((1, 1, 5, 17), 2, 2, 1, 1, True),
        ((1, 2, 9, 17), 3, 2, 1, 1, False),
        ((1, 1, 9, 19), 3, 2, 0, 1, True),
        ((1, 2, 5, 11), (2, 3), 1, (1, 1), 1, False),
        *[((1, 1, 3, w), (1, 2), 1, 0, 1, False) for w in (64, 65, 66, 130)],
        *[((1, 1, 33 + d, 63), (2, 1), 2, 0, 1, False) for d in (-2, 0, 2)],
        *[((1, c, 12, 12), (3, 2), (2, 3), (1, 0), 1, False) for c in (34, 42, 43)],
        *[((1, c, 2, 2), 2, 2, 0, 1, False) for c in (255, 256, 257)],
        ((2, 1, 7, 260), (1, 258), 1, 0, 1, False),
        ((1, 2, 74, 140), 2, 2, 0, 1, False),
        ((1, 2, 32, 128), 2, 2, 0, 1, False),
        ((1, 2, 48, 64), (17, 1), 1, 0, 1, False),
        ((1, 1, 12, 20), 3, 2, 1, 3, True),
        ((1, 2, 8, 8), 1, 3, 0, 1, False),
        ((1, 2, 1, 4), (1, 2), 2, (0, 1), 5, False),
    ],
)
@pytest.mark.parametrize("version", VERSIONS)
def test_same_bits_as_the_reference_at_the_edges_of_tiles(
    backend, version, x_shape, kernel, stride, padding, dilation, ceil_mode
):
    skip_unless_there(backend.name, "max_pool2d", "max_pool2d_forward", version)
    g = geometry(x_shape, kernel, stride, padding, dilation, ceil_mode)
    for dtype in (np.float32, np.float64):
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
    ("x_shape", "kernel", "stride", "padding", "dilation", "ceil_mode"),
    [
        ((2, 30, 28, 28), 2, 2, 0, 1, False),
        ((2, 30, 29, 27), 3, 2, 1, 1, True),
        ((1, 1, 200, 300), 3, 2, 1, 1, False),
        ((1, 1, 200, 300), 2, 2, 0, 1, False),
        ((1, 3, 150, 120), 3, 1, 1, 1, False),
        ((1, 1, 33000, 1), (2, 1), 1, 0, 1, False),
        ((1, 1, 1, 33000), (1, 3), (1, 3), 0, 1, False),
        ((50, 30, 5, 5), 5, None, 0, 1, False),
        ((1, 30, 40, 50), (5, 3), (2, 3), (2, 1), (2, 1), True),
        ((1, 1, 260, 140), (9, 2), (1, 2), (4, 0), (3, 5), False),
    ],
)


@PARTS
def test_same_bits_as_the_reference_of_several_parts(backend, x_shape, kernel, stride, padding, dilation, ceil_mode):
    if backend.name != "numba":
        pytest.skip("the emulator takes long, and has parts of another size")
    g = geometry(x_shape, kernel, stride, padding, dilation, ceil_mode)
    for dtype in (np.float32, np.float64):
        assert_same_bits(backend, g, ceil_mode, dtype)


@PARTS
def test_same_bits_for_any_number_of_threads(backend, x_shape, kernel, stride, padding, dilation, ceil_mode):
    if backend.name != "numba":
        pytest.skip("no other backend has threads")
    from rawgrad.kernels._jit import get_num_threads, set_num_threads

    g = geometry(x_shape, kernel, stride, padding, dilation, ceil_mode)
    x = np.random.default_rng(0).standard_normal(x_shape).astype(np.float32)

    def results():
        y, codes = max_pool2d_forward(x, (g.R, g.S), **options(g, ceil_mode))
        grad = y + 1
        return [a.tobytes() for a in (y, codes, max_pool2d_backward(grad, codes, g), max_pool2d_gather(-x, codes, g))]

    threads = get_num_threads()
    expected = results()
    try:
        set_num_threads(1)
        assert results() == expected
    finally:
        set_num_threads(threads)


@pytest.mark.parametrize("offset", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("kernel", [2, 3])
def test_arrays_may_start_anywhere(backend, kernel, offset):
    """Some of these starts allow loads of 16 bytes of x or 4 of codes, others not."""
    g = geometry((1, 2, 6, 24), kernel, 2)
    for dtype in (np.float32, np.float64):
        assert_same_bits(backend, g, dtype=dtype, offset=offset)


@pytest.mark.parametrize("version", VERSIONS)
def test_windows_too_large_for_any_tile(backend, version):
    """Two rows of 114 elements, 64 apart, are more than v2 stages; so are the windows that share an element."""
    skip_unless_there(backend.name, "max_pool2d", "max_pool2d_forward", version)
    assert_same_bits(backend, geometry((1, 1, 114, 114), 2, 1, 0, 64), version=version)


def test_what_does_not_fit_into_32_bits_is_refused():
    check_32_bits("max_pool2d", geometry((1, 1, 4, 4), 2, MAX_EXTENT - 4))
    with pytest.raises(ShapeError, match=r"max_pool2d: windows of 2x2 with stride \(.*\) over 4x4 reach beyond"):
        check_32_bits("max_pool2d", geometry((1, 1, 4, 4), 2, MAX_EXTENT))
    with pytest.raises(ShapeError, match=r"y of shape \(1, 536870912, 2, 2\) has more than 2147483647 elements"):
        check_32_bits("max_pool2d", geometry((1, 2**29, 1, 1), 2, 1, 1))


@given(st.integers(0, 50), st.tuples(*[st.integers(1, 200)] * 2), st.integers(1, 3), st.integers(0, 40))
def test_tiles_fill_but_do_not_exceed_what_can_be_staged(planes, size, step, reach):
    def staged(n):
        return (n - 1) * step + reach + 1

    capacity = 1000
    tile = staged_tile(planes, size, (staged, staged), capacity)
    if tile is None:
        assert staged(1) ** 2 > capacity
        return
    together, height, width = tile
    used = together * staged(height) * staged(width)
    assert 1 <= height <= size[0]
    assert 1 <= width <= min(size[1], 64)
    assert used <= capacity
    assert together * height * width <= 1024
    if together > 1:
        assert (height, width) == size
    if (height, width) == size and together < planes:  # one more plane would be too much
        assert used + used // together > capacity or (together + 1) * height * width > 1024
    assert tile.blocks(planes, *size) == -(-planes // together) * -(-size[0] // height) * -(-size[1] // width)


@pytest.mark.parametrize(("version", "forward", "backward"), [("v1_plain", 1, 4), ("v3_register_tile", 1, 1)])
def test_traffic_of_windows_that_do_not_overlap(backend, version, forward, backward):
    """v3 reads everything once; v1 reads x once, but the code of each window once for each of its 4 elements."""
    if backend.name != "emulated":
        pytest.skip("only the emulator counts bytes")
    from rawgrad.kernels._emulator.runtime import record_launches

    g = geometry((2, 3, 8, 16), 2)
    x = backend.put(np.random.default_rng(0).standard_normal(g.x_shape).astype(np.float32))
    with record_launches() as launches:
        y, codes = max_pool2d_forward(x, 2, version=version)
        dx = max_pool2d_backward(y, codes, g, version=version)
    up, down = (launch.traffic for launch in launches)
    assert up.global_read == forward * x.nbytes
    assert up.global_written == y.nbytes + codes.nbytes
    assert down.global_read == y.nbytes + backward * codes.nbytes
    assert down.global_written == dx.nbytes


def test_traffic_of_strips_under_overlapping_windows(backend):
    """Of each of its three rows a strip of 4 windows reads 9 elements, not 12; all strips lie inside."""
    if backend.name != "emulated":
        pytest.skip("only the emulator counts bytes")
    from rawgrad.kernels._emulator.runtime import record_launches

    x = backend.put(np.random.default_rng(0).standard_normal((1, 2, 9, 33)).astype(np.float32))
    with record_launches() as launches:
        y, _ = max_pool2d_forward(x, 3, stride=2, version="v3_register_tile")
    assert y.shape == (1, 2, 4, 16)
    assert launches[0].traffic.global_read == y.size // 4 * 3 * 9 * x.itemsize


@pytest.mark.parametrize("version", ["v1_plain", "v2_smem_tile", "v3_register_tile"])
def test_backward_reads_no_codes_of_windows_between_whose_taps_a_row_lies(backend, version):
    """With a dilation of 2 a row of x meets the taps of every other window; v3 reads a code once for 4 elements."""
    if backend.name != "emulated":
        pytest.skip("only the emulator counts bytes")
    from rawgrad.kernels._emulator.runtime import record_launches

    g = geometry((1, 2, 9, 16), 3, stride=1, dilation=2)
    x = backend.put(np.random.default_rng(0).standard_normal(g.x_shape).astype(np.float32))
    y, codes = max_pool2d_forward(x, 3, stride=1, dilation=2)
    with record_launches() as launches:
        max_pool2d_backward(y, codes, g, version=version)
    (launch,) = launches
    owned = 4 if version == "v3_register_tile" else 1
    down = sum((h - p) % 2 == 0 and 0 <= h - p <= 4 for h in range(g.H) for p in range(g.P))
    across = sum(w - 4 <= q <= w + owned - 1 for w in range(0, g.W, owned) for q in range(g.Q))
    read = y.nbytes + g.N * g.C * down * across * codes.itemsize
    assert (launch.traffic.shared_read if version == "v2_smem_tile" else launch.traffic.global_read) == read


@given(poolings(), st.integers(0, 2**32 - 1))
def test_gather_is_the_adjoint_of_backward(backend, pooling, seed):
    """<v, backward(g)> = <gather(v), g>, exactly, since all are whole numbers."""
    g, ceil_mode = pooling
    rng = np.random.default_rng(seed)
    x, v, grad = (rng.integers(-9, 9, s).astype(np.float64) for s in (g.x_shape, g.x_shape, g.y_shape))
    _, codes = max_pool2d_forward(backend.put(x), (g.R, g.S), **options(g, ceil_mode))
    dx = backend.get(max_pool2d_backward(backend.put(grad), codes, g))
    assert np.vdot(v, dx) == np.vdot(backend.get(max_pool2d_gather(backend.put(v), codes, g)), grad)


def test_agrees_with_scipy(backend):
    from scipy.ndimage import maximum_filter

    x = np.random.default_rng(0).standard_normal((3, 2, 13, 11)).astype(np.float32)
    y, _ = max_pool2d_forward(backend.put(x), 3, stride=2, padding=1)
    everywhere = maximum_filter(x, (1, 1, 3, 3), mode="constant", cval=-INF)
    np.testing.assert_array_equal(backend.get(y), everywhere[:, :, ::2, ::2])


# Why each: the tutorial's 2x2; overlap; gaps; a rest with and without ceil_mode; torch drops the
# window that would start in the padding behind; dilation; a window as large as the input.
@pytest.mark.parametrize(
    ("size", "kernel", "stride", "padding", "dilation", "ceil_mode"),
    [
        ((28, 28), 2, None, 0, 1, False),
        ((9, 8), 3, 1, 1, 1, False),
        ((9, 8), 2, (3, 4), 0, 1, False),
        ((10, 9), 3, 2, 0, 1, False),
        ((10, 9), 3, 2, 0, 1, True),
        ((10, 10), 2, 3, 1, 1, True),
        ((5, 5), 2, 3, 1, 1, True),
        ((12, 11), (2, 3), (2, 1), (1, 0), (3, 2), False),
        ((12, 11), (2, 3), 2, 1, (3, 2), True),
        ((4, 6), (4, 6), 1, 0, 1, False),
    ],
)
def test_agrees_with_torch(backend, size, kernel, stride, padding, dilation, ceil_mode):
    torch = pytest.importorskip("torch")
    x = np.random.default_rng(0).integers(-3, 3, (2, 3, *size)).astype(np.float64)  # with ties
    tensor = torch.tensor(x, requires_grad=True)
    expected = torch.nn.functional.max_pool2d(tensor, kernel, stride, padding, dilation, ceil_mode)
    grad = np.random.default_rng(1).integers(-9, 9, tuple(expected.shape)).astype(np.float64)
    expected.backward(torch.tensor(grad))

    g = geometry(x.shape, kernel, stride, padding, dilation, ceil_mode)
    y, codes = max_pool2d_forward(backend.put(x), kernel, **options(g, ceil_mode))
    np.testing.assert_array_equal(backend.get(y), expected.detach().numpy())
    np.testing.assert_array_equal(backend.get(max_pool2d_backward(backend.put(grad), codes, g)), tensor.grad.numpy())


@pytest.mark.parametrize(
    ("size", "kernel", "stride", "padding", "plain", "rounded_up"),
    [
        (5, 2, 2, 0, 2, 3),  # the third window starts at 4, the last element
        (4, 2, 2, 0, 2, 2),  # no rest
        (5, 2, 3, 1, 2, 2),  # a third would start at 5, exactly behind the input
        (4, 2, 3, 1, 2, 2),  # a third would start at 5, in the padding behind
        (6, 2, 3, 1, 3, 3),
        (7, 3, 4, 0, 2, 2),
        (6, 3, 4, 0, 1, 2),
    ],
)
def test_number_of_windows(size, kernel, stride, padding, plain, rounded_up):
    for ceil_mode, count in ((False, plain), (True, rounded_up)):
        g = geometry((1, 1, size, size), kernel, stride, padding, 1, ceil_mode)
        assert (g.P, g.Q) == (count, count)


@pytest.mark.parametrize(("kernel", "dtype"), [((16, 16), np.uint8), ((1, 257), np.int32), ((257, 1), np.int32)])
def test_codes_of_large_windows(backend, kernel, dtype):
    x = np.zeros((1, 1, *kernel), np.float32)
    x[0, 0, -1, -1] = 1.0
    y, codes = max_pool2d_forward(backend.put(x), kernel)
    assert (float(backend.get(y)[0, 0, 0, 0]), int(backend.get(codes)[0, 0, 0, 0])) == (1.0, kernel[0] * kernel[1] - 1)
    assert codes.dtype == dtype
    g = geometry(x.shape, kernel)
    np.testing.assert_array_equal(backend.get(max_pool2d_backward(y, codes, g)), x)


def test_gradients_that_are_not_finite_go_only_where_they_belong(backend):
    x = backend.put(np.array([[[[1.0, 2.0, 4.0, 3.0]]]]))
    _, codes = max_pool2d_forward(x, (1, 2))
    grad = backend.put(np.array([[[[NAN, INF]]]]))
    dx = max_pool2d_backward(grad, codes, geometry((1, 1, 1, 4), (1, 2)))
    np.testing.assert_array_equal(backend.get(dx), [[[[0.0, NAN, INF, 0.0]]]])


@pytest.mark.parametrize(("kernel", "code"), [((1, 4), 4), ((1, 4), 255), ((1, 258), 258), ((1, 258), -1)])
def test_codes_that_name_no_tap_touch_nothing(backend, kernel, code):
    """A code of another operation is a mistake, but none that may reach into foreign memory."""
    if backend.name != "numba":
        pytest.skip("NumPy raises IndexError")
    g = geometry((1, 1, 1, 258), kernel)
    codes = np.full(g.y_shape, code, g.code_dtype)
    assert not max_pool2d_backward(np.ones(g.y_shape), codes, g).any()
    assert not max_pool2d_gather(np.ones(g.x_shape), codes, g).any()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_out_takes_the_result(backend, layout):
    rng = np.random.default_rng(0)
    g = geometry((2, 3, 7, 6), 3, 2, 1)
    x, grad = backend.put(rng.standard_normal(g.x_shape)), backend.put(rng.standard_normal(g.y_shape))
    y, codes = max_pool2d_forward(x, 3, stride=2, padding=1)
    out = backend.put(np.full(g.y_shape, NAN), layout)
    y_in_out, codes_again = max_pool2d_forward(x, 3, stride=2, padding=1, out=out)
    assert y_in_out is out
    np.testing.assert_array_equal(backend.get(out), backend.get(y))
    np.testing.assert_array_equal(backend.get(codes_again), backend.get(codes))
    for call, shape in ((lambda **o: max_pool2d_backward(grad, codes, g, **o), g.x_shape),
                        (lambda **o: max_pool2d_gather(x, codes, g, **o), g.y_shape)):  # fmt: skip
        out = backend.put(np.full(shape, NAN), layout)
        assert call(out=out) is out
        np.testing.assert_array_equal(backend.get(out), backend.get(call()))


def zeros(*shape, dtype=np.float32):
    return np.zeros(shape, dtype)


X = zeros(2, 3, 8, 8)
G = geometry(X.shape, 2)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: max_pool2d_forward(zeros(3, 8, 8), 2),
            ShapeError,
            r"max_pool2d: x must have 4 dimensions \(N, C, H, W\)",
        ),
        (
            lambda: max_pool2d_forward(X, 9),
            ShapeError,
            r"max_pool2d: a window of 9x9 with dilation \(1, 1\) does not fit into x of 8x8 with padding \(0, 0\)",
        ),
        (lambda: max_pool2d_forward(zeros(2, 3, 0, 8), 2, padding=1), ShapeError, "does not fit into x of 0x8"),
        (
            lambda: max_pool2d_forward(X, 3, padding=2),
            ArgumentError,
            r"padding must be at most half of kernel_size \(3, 3\), rounded down; got \(2, 2\)",
        ),
        (lambda: max_pool2d_forward(X, 0), ArgumentError, "kernel_size must be integers of at least 1; got 0"),
        (lambda: max_pool2d_forward(X, 2, stride=(1, 0)), ArgumentError, "stride must be integers of at least 1"),
        (lambda: max_pool2d_forward(X.astype(int), 2), DtypeError, "x must be float32 or float64; got int64"),
        (
            lambda: max_pool2d_backward(zeros(2, 3, 4, 3), zeros(2, 3, 4, 4, dtype=np.uint8), G),
            ShapeError,
            r"max_pool2d_backward: grad must have shape \(N, C, P, Q\) = \(2, 3, 4, 4\); got \(2, 3, 4, 3\)",
        ),
        (
            lambda: max_pool2d_backward(zeros(2, 3, 4, 4), zeros(2, 3, 4, 4, dtype=np.int64), G),
            DtypeError,
            "codes must be uint8 for a window of 2x2; got int64",
        ),
        (
            lambda: max_pool2d_gather(X, zeros(2, 3, 4, 3, dtype=np.uint8), G),
            ShapeError,
            "gather: codes must have shape",
        ),
        (lambda: max_pool2d_forward(X, 1, out=X), ArgumentError, "max_pool2d: out overlaps an input in memory"),
    ],
)
def test_refusals(call, error, message):
    with pytest.raises(error, match=message):
        call()
