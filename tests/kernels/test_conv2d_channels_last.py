"""conv2d of arrays whose memory is (N, H, W, C): on tensor cores as it lies there, otherwise from copies."""

from __future__ import annotations

import numpy as np
import pytest
from _conv2d import PRECISIONS, check_rounding
from _layouts import LAYOUTS
from _versions import skip_unless_there

from rawgrad.kernels._dispatch import precision
from rawgrad.kernels._errors import BackendError
from rawgrad.kernels._layout import is_channels_last
from rawgrad.kernels.conv2d import (
    conv2d_backward_bias,
    conv2d_backward_input,
    conv2d_backward_weight,
    conv2d_forward,
    geometry,
    reference,
    tiles,
)

pytestmark = pytest.mark.operation("conv2d")


# Why each: fewer terms and positions than one tile has; 20 channels in one panel, columns not filled, a tile of
# positions from two images, and more than one tile of taps and channels; two panels, filters of two blocks and an odd
# one; classes of dx, one of them without taps, and singles where 9 channels are no fours; groups, dilation, more than
# one tile of positions; an image of three channels, and 7 x 7 taps; no images.
@pytest.mark.parametrize(("name", "bits"), PRECISIONS)
@pytest.mark.parametrize(
    ("x_shape", "weight_shape", "options"),
    [
        ((1, 4, 2, 3), (8, 4, 1, 1), ()),
        ((2, 20, 6, 13), (12, 20, 3, 3), (1, 1)),
        ((1, 36, 3, 3), (65, 36, 1, 3), (1, (0, 1))),
        ((1, 9, 8, 9), (33, 9, 2, 1), (2, 1)),
        ((2, 24, 9, 8), (16, 12, 3, 2), ((2, 1), 1, (1, 2), 2)),
        ((1, 3, 9, 11), (8, 3, 7, 7), (2, 3)),
        ((0, 8, 4, 4), (8, 8, 3, 3), (1, 1)),
    ],
)
def test_channels_last(backend, name, bits, x_shape, weight_shape, options):
    version = f"v6_channels_last_{name}"
    skip_unless_there(backend.name, "conv2d", "conv2d_forward", version)
    check_rounding(backend, name, bits, geometry(x_shape, weight_shape, *options), "channels_last", version)


@pytest.mark.parametrize("layout", ["C", "step"])
def test_other_layouts_are_copied_first(backend, layout):
    skip_unless_there(backend.name, "conv2d", "conv2d_forward", "v6_channels_last_tf32")
    g = geometry((2, 8, 3, 4), (8, 8, 3, 3), 1, 1)
    check_rounding(backend, "tf32", 10, g, layout, "v6_channels_last_tf32")


def test_positions_are_worked_out_again_and_again(backend, monkeypatch):
    """A slice of 300 positions: dw works out those of eight tiles at once, here three times."""
    skip_unless_there(backend.name, "conv2d", "conv2d_forward", "v6_channels_last_tf32")
    monkeypatch.setattr(tiles, "slices", lambda units, *_: (1, units))
    g = geometry((3, 4, 10, 10), (8, 4, 1, 2), 1, (0, 1))
    check_rounding(backend, "tf32", 10, g, "channels_last", "v6_channels_last_tf32")


def test_nan_and_infinity_travel(backend):
    """To the windows that hold them; not to filters and positions beside them that only fill a tile."""
    skip_unless_there(backend.name, "conv2d", "conv2d_forward", "v6_channels_last_tf32")
    x = np.zeros((2, 8, 5, 5), np.float32)
    x[0, 3, 0, 0], x[1, 7, 4, 4] = np.nan, np.inf
    weight = np.ones((9, 8, 2, 2), np.float32)
    device_x, device_weight = backend.put(x, "channels_last"), backend.put(weight)
    g = geometry(x.shape, weight.shape)
    grad = np.zeros(g.y_shape, np.float32)
    grad[0, 8, 1, 1] = np.inf
    device_grad = backend.put(grad, "channels_last")
    ones = backend.put(np.ones(g.y_shape, np.float32), "channels_last")
    for name, _ in PRECISIONS:
        with precision(name):
            y = backend.get(conv2d_forward(device_x, device_weight))
            dx = backend.get(conv2d_backward_input(device_grad, device_weight, g))
            dw = backend.get(conv2d_backward_weight(device_x, ones, g))
        np.testing.assert_array_equal(y, reference.conv2d_forward(x, weight, None, g, None, None))
        np.testing.assert_array_equal(dx, reference.conv2d_backward_input(grad, weight, g, None, None))
        np.testing.assert_array_equal(dw, reference.conv2d_backward_weight(x, np.ones_like(grad), g, None, None))


def test_without_channels_y_is_the_bias(backend):
    skip_unless_there(backend.name, "conv2d", "conv2d_forward", "v6_channels_last_tf32")
    g = geometry((1, 0, 3, 3), (2, 0, 2, 2))
    x, weight, grad = (backend.put(np.ones(s, np.float32)) for s in (g.x_shape, g.weight_shape, g.y_shape))
    version, bias = "v6_channels_last_tf32", np.array([1.0, 2.0], np.float32)
    y = conv2d_forward(x, weight, backend.put(bias), version=version)
    np.testing.assert_array_equal(backend.get(y), np.broadcast_to(bias[:, None, None], g.y_shape))
    assert conv2d_backward_input(grad, weight, g, version=version).shape == g.x_shape
    assert conv2d_backward_weight(x, grad, g, version=version).shape == g.weight_shape
    g = geometry((1, 8, 3, 3), (0, 8, 2, 2))
    weight, grad = (backend.put(np.ones(s, np.float32)) for s in (g.weight_shape, g.y_shape))
    dx = conv2d_backward_input(grad, weight, g, version=version)
    np.testing.assert_array_equal(backend.get(dx), np.zeros(g.x_shape))


def test_nothing_is_copied_but_the_weights(backend, monkeypatch):
    """What is allocated are results, weights in another order, and partial sums; what is read, the arrays once."""
    if backend.name != "emulated":
        pytest.skip("only the emulator counts bytes and allocations")
    from rawgrad.kernels._emulator.memory import allocator
    from rawgrad.kernels._emulator.runtime import record_launches

    g = geometry((2, 16, 9, 8), (12, 16, 3, 3), 1, 1)
    x, grad = (backend.put(np.ones(s, np.float32), "channels_last") for s in (g.x_shape, g.y_shape))
    weight, size = backend.put(np.ones(g.weight_shape, np.float32)), 4 * np.prod(g.weight_shape)
    allocated, allocate = [], allocator.allocate
    monkeypatch.setattr(allocator, "allocate", lambda nbytes: (allocated.append(nbytes), allocate(nbytes))[1])

    def counted(call):
        allocated.clear()
        with precision("tf32"), record_launches() as launches:
            result = call()
        return result, launches, list(allocated)

    y, (launch,), sizes = counted(lambda: conv2d_forward(x, weight, padding=1))
    assert launch.kernel.startswith("conv2d_forward_v6_channels_last") and is_channels_last(y)
    assert sorted(sizes) == sorted([size, y.nbytes])
    assert launch.traffic.distinct_read == x.nbytes + size and launch.traffic.distinct_written == y.nbytes
    as_it_lies = backend.put(np.ones(g.weight_shape, np.float32), "channels_last")
    assert counted(lambda: conv2d_forward(x, as_it_lies, padding=1))[2] == [y.nbytes]

    dx, (launch,), sizes = counted(lambda: conv2d_backward_input(grad, weight, g))
    assert launch.kernel.startswith("conv2d_backward_input_v6_channels_last") and is_channels_last(dx)
    assert sorted(sizes) == sorted([size, dx.nbytes])
    assert launch.traffic.distinct_read == grad.nbytes + size and launch.traffic.distinct_written == dx.nbytes

    dw, (launch, adding), sizes = counted(lambda: conv2d_backward_weight(x, grad, g))
    slices, _ = tiles.slices(9, 144, 2, dw.size)
    assert launch.kernel.startswith("conv2d_backward_weight_v6_channels_last") and "sum_slices" in adding.kernel
    assert sorted(sizes) == [size, slices * size] and dw.flags.c_contiguous
    assert launch.traffic.distinct_read == x.nbytes + grad.nbytes
    inside = 2 * (3 * 9 - 2) * (3 * 8 - 2)  # what is under a tap at a position and not in the padding, of one channel
    assert launch.traffic.global_read == 4 * 16 * inside + 2 * grad.nbytes  # 144 taps and channels are two tiles

    db, (launch,), sizes = counted(lambda: conv2d_backward_bias(grad))
    assert launch.kernel.startswith("conv2d_backward_bias_channels_last") and sizes == [db.nbytes]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", ["float32", "tf32"])
def test_any_layout_meets_any_other(backend, layout, name):
    """The first array decides who computes, and where the result lies; the others may lie as they like."""
    g = geometry((2, 8, 5, 4), (12, 8, 3, 3), 1, 1)
    rng = np.random.default_rng(0)
    x, weight, grad, gate = (
        rng.integers(-3, 4, s).astype(np.float32) for s in (g.x_shape, g.weight_shape, g.y_shape, g.y_shape)
    )
    lasting = {key: backend.put(a, "channels_last") for key, a in (("x", x), ("grad", grad))}
    other = {key: backend.put(a, layout) for key, a in (("x", x), ("w", weight), ("grad", grad), ("y", gate))}
    out = [backend.put(np.full(s, np.nan, np.float32), layout) for s in (g.y_shape, g.x_shape, g.weight_shape, (12,))]
    with precision(name):
        results = (
            conv2d_forward(lasting["x"], other["w"], padding=1),
            conv2d_forward(lasting["x"], other["w"], padding=1, out=out[0]),
            conv2d_backward_input(lasting["grad"], other["w"], g, y=other["y"]),
            conv2d_backward_input(lasting["grad"], other["w"], g, y=other["y"], out=out[1]),
            conv2d_backward_weight(lasting["x"], other["grad"], g, y=other["y"]),
            conv2d_backward_weight(other["x"], lasting["grad"], g, y=other["y"], out=out[2]),
            conv2d_backward_bias(lasting["grad"], y=other["y"]),
            conv2d_backward_bias(lasting["grad"], y=other["y"], out=out[3]),
        )
    assert all(results[2 * i + 1] is out[i] for i in range(4))
    if backend.name == "emulated":
        assert is_channels_last(results[0]) == is_channels_last(results[2]) == (name == "tf32")
    for i, expected in enumerate(
        (
            reference.conv2d_forward(x, weight, None, g, None, None),
            reference.conv2d_backward_input(grad, weight, g, gate, None),
            reference.conv2d_backward_weight(x, grad, g, gate, None),
            reference.conv2d_backward_bias(grad, gate, None),
        )
    ):  # whole numbers, so that sums are exact
        np.testing.assert_array_equal(backend.get(results[2 * i]), expected)
        np.testing.assert_array_equal(backend.get(results[2 * i + 1]), expected)


# Fewer channels than a block has columns, and more; a slice for each block, and several.
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shape", [(2, 5, 3, 4), (3, 33, 40, 20)])
def test_bias(backend, shape, dtype):
    rng = np.random.default_rng(0)
    grad, y = rng.integers(-3, 4, shape).astype(dtype), rng.standard_normal(shape).astype(dtype)
    with precision("tf32"):
        db = conv2d_backward_bias(backend.put(grad, "channels_last"), y=backend.put(y, "channels_last"))
    np.testing.assert_array_equal(backend.get(db), np.where(y > 0, grad, 0).sum(axis=(0, 2, 3)))


def test_same_bits_every_time(backend):
    skip_unless_there(backend.name, "conv2d", "conv2d_forward", "v6_channels_last_tf32")
    rng = np.random.default_rng(0)
    g = geometry((2, 12, 12, 12), (20, 12, 3, 3), 1, 1)
    x, weight, grad = (
        backend.put(rng.standard_normal(s).astype(np.float32), "channels_last")
        for s in (g.x_shape, g.weight_shape, g.y_shape)
    )

    def bits():
        results = (
            conv2d_forward(x, weight, padding=1),
            conv2d_backward_input(grad, weight, g),
            conv2d_backward_weight(x, grad, g),
            conv2d_backward_bias(grad),
        )
        return [backend.get(r).tobytes() for r in results]

    with precision("tf32"):
        first = bits()
        assert all(bits() == first for _ in range(2))  # the emulator changes the order of threads and blocks


def test_a_replay_orders_the_weights_again(backend):
    """Their copies belong to a captured step: a replay sees weights that have changed since."""
    if backend.name != "emulated":
        pytest.skip("captures on the simulated device")
    from rawgrad.kernels._graph import DeviceGraph

    g = geometry((1, 8, 4, 4), (8, 8, 3, 3), 1, 1)
    x, grad = (backend.put(np.ones(s, np.float32), "channels_last") for s in (g.x_shape, g.y_shape))
    weight = backend.put(np.ones(g.weight_shape, np.float32))
    graph = DeviceGraph(backend.device)
    with precision("tf32"):
        with graph.recording():
            y, dx = conv2d_forward(x, weight, padding=1), conv2d_backward_input(grad, weight, g)
        for factor in (1, 2):
            weight *= factor
            graph.launch()
            np.testing.assert_array_equal(backend.get(y), backend.get(conv2d_forward(x, weight, padding=1)))
            np.testing.assert_array_equal(backend.get(dx), backend.get(conv2d_backward_input(grad, weight, g)))


def test_by_name_refuses_float64(backend):
    skip_unless_there(backend.name, "conv2d", "conv2d_forward", "v6_channels_last_tf32")
    x, weight = (backend.put(np.zeros(s)) for s in ((1, 8, 4, 4), (8, 8, 3, 3)))
    with pytest.raises(BackendError, match="conv2d: the tensor cores' tf32 takes float32; got float64"):
        conv2d_forward(x, weight, version="v6_channels_last_tf32")
