"""Embedding: one row after the other, and torch."""

from __future__ import annotations

import numpy as np
import pytest
from _layouts import LAYOUTS, untouched
from _tolerance import assert_accurate
from hypothesis import given
from hypothesis import strategies as st

from rawgrad.kernels import embedding as ops
from rawgrad.kernels._errors import ArgumentError, DtypeError, IndexRangeError, ShapeError


def rows(weight, indices):
    return np.array([weight[i] for i in indices.ravel().tolist()], weight.dtype).reshape(
        *indices.shape, weight.shape[1]
    )


def summed(grad, indices, num_embeddings, padding_idx=None):
    result = np.zeros((num_embeddings, grad.shape[-1]), grad.dtype)
    for position in np.ndindex(indices.shape):
        if indices[position] != padding_idx:
            result[indices[position]] += grad[position]
    return result


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("integer", [np.int64, np.int32, np.uint8])
@pytest.mark.parametrize("layout", LAYOUTS)
# V, D, shape of the indices: a single index; one row; many repeats; three dimensions; none; no columns
@pytest.mark.parametrize(
    ("V", "D", "shape"), [(7, 5, ()), (1, 3, (4,)), (3, 2, (50,)), (9, 4, (2, 3, 5)), (5, 2, (0,)), (4, 0, (3,))]
)
def test_forward_and_backward(backend, dtype, integer, layout, V, D, shape):
    rng = np.random.default_rng(9)
    host_w, host_i = rng.standard_normal((V, D)).astype(dtype), rng.integers(0, V, shape).astype(integer)
    host_g = rng.standard_normal((*shape, D)).astype(dtype)
    weight, indices, grad = (backend.put(a, layout) for a in (host_w, host_i, host_g))
    with untouched(weight, indices, grad):
        y = ops.embedding_forward(weight, indices)
        dweight = ops.embedding_backward(grad, indices, V)
    np.testing.assert_array_equal(backend.get(y), rows(host_w, host_i))
    assert y.dtype == dtype and not np.shares_memory(backend.get(y), backend.get(weight))
    assert_accurate(backend.get(dweight), summed, host_g, host_i, V, scale=1.0 + host_i.size)


# Elements of a row, by 16 bytes and not, at the edges of what a warp moves at once: 32 of them, or 128 (64 in float64)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("D", [1, 31, 32, 33, 64, 66, 128, 132])
@pytest.mark.parametrize("aligned", [True, False])
def test_rows_of_every_length(backend, dtype, D, aligned):
    rng = np.random.default_rng(12)
    host_w, host_i = rng.standard_normal((9, D)).astype(dtype), rng.integers(0, 9, 20)
    host_g = rng.standard_normal((20, D)).astype(dtype)
    weight, indices, grad = (backend.put(a) for a in (host_w, host_i, host_g))
    if not aligned:  # the same numbers, but one number after a multiple of 16 bytes
        weight = backend.put(np.append(dtype(0), host_w))[1:].reshape(9, D)
        grad = backend.put(np.append(dtype(0), host_g))[1:].reshape(20, D)
    np.testing.assert_array_equal(backend.get(ops.embedding_forward(weight, indices)), host_w[host_i])
    assert_accurate(backend.get(ops.embedding_backward(grad, indices, 9)), summed, host_g, host_i, 9)


# One, two and three digits of 8 bits; places at the edges of a tile of 2048 that is sorted at once, and several tiles.
@pytest.mark.parametrize(("V", "n"), [(255, 2047), (256, 2048), (257, 2049), (300, 5000), (70000, 300)])
def test_repeated_rows_add_up_in_the_order_of_the_indices(backend, V, n):
    rng = np.random.default_rng(13)
    host_i, host_g = rng.integers(0, V, n), rng.standard_normal((n, 1)).astype(np.float32)
    host_i[-1] = V - 1
    dweight = backend.get(ops.embedding_backward(backend.put(host_g), backend.put(host_i), V))
    assert_accurate(dweight, summed, host_g, host_i, V)
    if backend.name != "numpy":  # up to 64 one after the other, so even the last bit tells the order
        np.testing.assert_array_equal(dweight, summed(host_g, host_i, V))


def test_several_rows_chosen_very_often(backend):
    """Neighbours in the table, whose places the same warps share one row after the other."""
    rng = np.random.default_rng(17)
    host_i, host_g = rng.integers(0, 3, 600), rng.standard_normal((600, 5)).astype(np.float32)
    dweight = ops.embedding_backward(backend.put(host_g), backend.put(host_i), 3)
    assert_accurate(backend.get(dweight), summed, host_g, host_i, 3)


# More tiles than a test of the whole backward pass has keys for: one, as many as threads, one more, a third turn.
@pytest.mark.parametrize("tiles", [1, 255, 256, 257, 600])
def test_where_the_keys_of_each_tile_begin(backend, tiles):
    if backend.device.name != "cuda":
        pytest.skip("a kernel of the CUDA backend's own")
    from rawgrad.kernels.embedding import cuda

    host = np.random.default_rng(16).integers(0, 9, (3, tiles)).astype(np.uint32)
    counts, totals = backend.put(host), backend.put(np.zeros(3, np.uint32))
    cuda._SCAN[()](3, 256, counts, tiles, totals)
    np.testing.assert_array_equal(backend.get(counts), host.cumsum(axis=1) - host)
    np.testing.assert_array_equal(backend.get(totals), host.sum(axis=1))


@pytest.mark.parametrize("tiles", [255, 256, 257, 512])
def test_no_turn_without_tiles(backend, tiles):
    """A block waits twice for every 256 tiles."""
    if backend.name != "emulated":
        pytest.skip("only the emulator counts barriers")
    from rawgrad.kernels._emulator.runtime import record_launches
    from rawgrad.kernels.embedding import cuda

    counts, totals = backend.put(np.ones((3, tiles), np.uint32)), backend.put(np.zeros(3, np.uint32))
    with record_launches() as launches:
        cuda._SCAN[()](3, 256, counts, tiles, totals)
    assert launches[0].traffic.barriers == 3 * 2 * -(-tiles // 256)


# Every 256 keys of a tile of 2048 wait three times for each other, and the whole block three times before.
@pytest.mark.parametrize("n", [1, 255, 256, 257, 512, 2048, 2049, 2304])
def test_no_turn_without_keys(backend, n):
    if backend.name != "emulated":
        pytest.skip("only the emulator counts barriers")
    from rawgrad.kernels._emulator.runtime import record_launches

    indices, grad = backend.put(np.arange(n) % 7), backend.put(np.ones((n, 2), np.float32))
    with record_launches() as launches:
        ops.embedding_backward(grad, indices, 7)
    (scan,) = (launch for launch in launches if "scan" in launch.kernel)
    (scatter,) = (launch for launch in launches if "scatter" in launch.kernel)
    tiles, turns = -(-n // 2048), -(-n // 256)
    assert scan.traffic.barriers == 2 * 256  # digits, each with one turn of at most 256 tiles
    assert scatter.traffic.barriers == 3 * tiles + 3 * turns


# A warp owns each of 8 neighbours, and all warps share those that are chosen more than 64 times: here the first of the
# next eight, and the last of the table.
def test_rows_chosen_often_are_written_once(backend):
    if backend.name != "emulated":
        pytest.skip("only the emulator counts bytes")
    from rawgrad.kernels._emulator.runtime import record_launches

    host_i = np.repeat([3, 8, 16], [64, 65, 90])
    host_g = np.random.default_rng(18).integers(-9, 9, (len(host_i), 3)).astype(np.float32)
    with record_launches() as launches:
        dweight = ops.embedding_backward(backend.put(host_g), backend.put(host_i), 17)
    np.testing.assert_array_equal(backend.get(dweight), summed(host_g, host_i, 17))
    assert launches[-1].traffic.global_written == dweight.nbytes


@pytest.mark.parametrize("D", [3, 40])
def test_a_row_chosen_as_often_as_one_warp_adds_up(backend, D):
    """64 times, one after the other, so that every bit tells the order on a GPU."""
    rng = np.random.default_rng(19)
    host_i, host_g = np.full(66, 5), rng.standard_normal((66, D)).astype(np.float32)
    host_i[7], host_i[33] = 6, 0
    dweight = backend.get(ops.embedding_backward(backend.put(host_g), backend.put(host_i), 9))
    assert_accurate(dweight, summed, host_g, host_i, 9)
    if backend.device.name == "cuda":
        np.testing.assert_array_equal(dweight, summed(host_g, host_i, 9))


# Parts of kernels/embedding/numba_cpu.py.  Backward, they are 128 columns wide (64 in float64): one below, at and one
# above, several; with ranges of rows that are uneven, or more than there are rows.  Forward, 16384 elements long.
@pytest.mark.backends("numba")
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    ("V", "D", "n"),
    [(6, 127, 129), (7, 128, 128), (9, 129, 127), (2, 63, 261), (3, 65, 252), (50, 640, 26), (5, 1, 16385)],
)
def test_bits_of_a_plain_loop_for_any_number_of_threads(backend, dtype, V, D, n):
    from rawgrad.kernels._jit import get_num_threads, set_num_threads

    rng = np.random.default_rng(19)
    w, g = (rng.standard_normal((length, D)).astype(dtype) for length in (V, n))
    indices, threads = rng.integers(0, V, n), get_num_threads()
    for count in (1, threads):
        set_num_threads(count)
        try:
            np.testing.assert_array_equal(ops.embedding_forward(w, indices), rows(w, indices))
            np.testing.assert_array_equal(ops.embedding_backward(g, indices, V), summed(g, indices, V))
            np.testing.assert_array_equal(ops.embedding_backward(g, indices, V, 1), summed(g, indices, V, 1))
        finally:
            set_num_threads(threads)


def test_indices_beyond_int64(backend):
    weight, indices = backend.put(np.ones((4, 3))), backend.put(np.array([0, 2**64 - 1], np.uint64))
    with pytest.raises(IndexRangeError, match=rf"indices must be in \[0, 4\); got {2**64 - 1} at position \(1,\)"):
        ops.embedding_forward(weight, indices)
        backend.synchronize()


# 64 places are added by one warp, more by eight
@pytest.mark.parametrize("n", [64, 65, 71, 513, 3000])
@pytest.mark.parametrize("D", [3, 40])
def test_a_row_chosen_very_often(backend, n, D):
    rng = np.random.default_rng(14)
    host_i, host_g = np.full(n, 5), rng.standard_normal((n, D)).astype(np.float32)
    host_i[7], host_i[n // 2] = 6, 0
    dweight = ops.embedding_backward(backend.put(host_g), backend.put(host_i), 9)
    assert_accurate(backend.get(dweight), summed, host_g, host_i, 9)


def test_traffic_is_each_row_once(backend):
    """Forward, the chosen rows are read once each and all of y is written; the sum reads each row of g once."""
    if backend.name != "emulated":
        pytest.skip("only the emulator counts bytes")
    from rawgrad.kernels._emulator.runtime import record_launches

    rng = np.random.default_rng(15)
    weight, grad = (backend.put(rng.standard_normal((n, 40)).astype(np.float32)) for n in (300, 500))
    host_i = rng.integers(0, 300, 500).astype(np.int32)
    indices = backend.put(host_i)
    with record_launches() as launches:
        ops.embedding_forward(weight, indices)
        dweight = ops.embedding_backward(grad, indices, 300)
    forward, total = launches[0].traffic, launches[-1].traffic
    pieces = 40 // 4  # of 16 bytes; each is moved by a thread, which reads its index
    assert forward.global_read == grad.nbytes + pieces * indices.nbytes
    assert forward.distinct_read == len(np.unique(host_i)) * 40 * 4 + indices.nbytes
    assert forward.global_written == grad.nbytes
    assert total.distinct_read == grad.nbytes + 4 * (len(host_i) + 300 + 1)  # and the places, and where rows begin
    assert total.global_written == dweight.nbytes


def test_the_first_index_out_of_range_is_named(backend):
    """Also where rows have no elements, and among more places than one block has; nothing else is blamed."""
    indices = np.zeros(3000, np.int64)
    for D in (0, 2):
        weight, grad = backend.put(np.ones((4, D))), backend.put(np.ones((3000, D)))
        for position in (2999, 1030, 5):
            indices[position] = 4 + position
            ops.embedding_forward(weight, backend.put(np.zeros(3000, np.int64)))
            message = rf"got {4 + position} at position \({position},\)"
            with pytest.raises(IndexRangeError, match=message):
                ops.embedding_forward(weight, backend.put(indices))
                backend.synchronize()
            with pytest.raises(IndexRangeError, match=message):
                ops.embedding_backward(grad, backend.put(indices), 4)
                backend.synchronize()
        indices[:] = 0


@pytest.mark.parametrize("padding_idx", [2, -5, None])
def test_agrees_with_torch(backend, padding_idx):
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(10)
    host_w, host_i, host_g = rng.standard_normal((7, 3)), rng.integers(0, 7, (4, 6)), rng.standard_normal((4, 6, 3))
    tensor = torch.tensor(host_w, requires_grad=True)
    y = torch.nn.functional.embedding(torch.tensor(host_i), tensor, padding_idx=padding_idx)
    (expected,) = torch.autograd.grad(y, tensor, torch.tensor(host_g))
    actual = ops.embedding_backward(backend.put(host_g), backend.put(host_i), 7, padding_idx)
    np.testing.assert_allclose(backend.get(actual), expected.numpy(), atol=4e-15)


def test_hand_worked(backend):
    grad = backend.put(np.array([[1.0, 2.0], [10.0, 20.0], [100.0, 200.0]]))
    indices = backend.put(np.array([2, 0, 2]))
    expected = [[10, 20], [0, 0], [101, 202]]
    np.testing.assert_array_equal(backend.get(ops.embedding_backward(grad, indices, 3)), expected)
    expected[2] = [0, 0]
    np.testing.assert_array_equal(backend.get(ops.embedding_backward(grad, indices, 3, 2)), expected)


@given(st.integers(1, 6), st.lists(st.integers(0, 5), max_size=30))
def test_backward_is_the_adjoint(backend, D, chosen):
    """<g, embedding(w)> = <backward(g), w> in integers, so exactly."""
    rng = np.random.default_rng(len(chosen))
    indices = np.array(chosen, np.int64)
    weight = rng.integers(-9, 9, (6, D)).astype(np.float64)
    grad = rng.integers(-9, 9, (len(chosen), D)).astype(np.float64)
    y = backend.get(ops.embedding_forward(backend.put(weight), backend.put(indices)))
    dweight = backend.get(ops.embedding_backward(backend.put(grad), backend.put(indices), 6))
    assert (grad * y).sum() == (dweight * weight).sum()


def test_nan_and_infinity_travel_in_their_row_only(backend):
    grad = backend.put(np.array([[np.nan], [1.0], [np.inf], [-np.inf], [2.0]]))
    dweight = ops.embedding_backward(grad, backend.put(np.array([0, 1, 2, 2, 1])), 4)
    np.testing.assert_array_equal(backend.get(dweight), [[np.nan], [3.0], [np.nan], [0.0]])


def test_refusals(backend):
    weight = backend.put(np.ones((4, 3)))
    for bad, value, position in [([[0, 1], [4, 9]], 4, r"\(1, 0\)"), ([0, -1], -1, r"\(1,\)"), (7, 7, r"\(\)")]:
        indices = backend.put(np.array(bad))
        message = rf"indices must be in \[0, 4\); got {value} at position {position}"
        with pytest.raises(IndexRangeError, match=f"embedding: {message}"):
            ops.embedding_forward(weight, indices)
            backend.synchronize()
        grad = backend.put(np.ones((*np.shape(bad), 3)))
        with pytest.raises(IndexRangeError, match=f"embedding_backward: {message}"):
            ops.embedding_backward(grad, indices, 4)
            backend.synchronize()
    indices = backend.put(np.array([0, 1]))
    with pytest.raises(DtypeError, match="indices must have an integer dtype; got float64"):
        ops.embedding_forward(weight, backend.put(np.ones(2)))
    with pytest.raises(ShapeError, match=r"weight must have 2 dimensions \(V, D\); got shape \(3,\)"):
        ops.embedding_forward(backend.put(np.ones(3)), indices)
    with pytest.raises(ShapeError, match=r"grad must have shape \(2, 3\); got \(4, 3\)"):
        ops.embedding_backward(weight, indices, 4)
    with pytest.raises(ArgumentError, match=r"padding_idx must be in \[-4, 4\); got 4"):
        ops.embedding_backward(backend.put(np.ones((2, 3))), indices, 4, 4)
