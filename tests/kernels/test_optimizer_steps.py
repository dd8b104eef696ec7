"""A property of every optimizer step: how the elements are cut into arrays changes nothing.

A step over a list of arrays of any shapes and layouts must give, element by element, what the same
step gives over all their elements in one flat array: of small arrays; of arrays about as long as what a
block of a GPU works on; of arrays that do not start at a multiple of 16 bytes; and of very many.
"""

from __future__ import annotations

import itertools
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from _layouts import LAYOUTS
from _steps import put_lr, put_step
from _versions import skip_unless_there
from hypothesis import given
from hypothesis import strategies as st

from rawgrad.kernels import adagrad, adam, rmsprop, sgd
from rawgrad.kernels._dispatch import backend as use_backend

shapes = st.lists(st.lists(st.integers(0, 5), max_size=4).map(tuple), min_size=1, max_size=4)
layouts = st.sampled_from(sorted(LAYOUTS))
dtypes = st.sampled_from([np.float32, np.float64])

#: One below, at and one above CHUNK of kernels/_tensor_list.py, and two chunks and a bit; arrays without elements
#: first, between and last; too few elements for a vector, and a vector with some left over.
AROUND_CHUNKS = [(0,), (2047,), (2048,), (0, 3), (2049,), (4101,), (1,), (3,), (7,), (0,)]
#: One more array than one launch takes (ROOMS[-1] there), of which a few have elements, the last one too.
MANY = [(3,) if i % 16 == 0 else (0,) for i in range(321)]

#: More than ALONE of kernels/_simd_steps.py, so several parts; one below, at and one above PART, where they begin
#: and further on; arrays that end in the middle of a vector, and one that is cut several times.
AROUND_PARTS = [(4095,), (4096,), (4097,), (1,), (0,), (63,), (65,), (3, 5), (20001,), (8192,)]

#: Calls a step: (params, grads, first state, second state, lr, step).
Step = Callable[[Any, Any, Any, Any, Any, Any], None]


def put(backend: Any, array: np.ndarray, how: str) -> Any:
    """``array`` on the device in one of the layouts, or "off": one element behind a multiple of 16 bytes."""
    if how != "off":
        return backend.put(array, how)
    return backend.put(np.concatenate([np.zeros(1, array.dtype), array.ravel()]))[1:].reshape(array.shape)


def check(backend: Any, run: Step, sizes: list[tuple[int, ...]], how: str, dtype: Any, steps: int = 2) -> None:
    rng = np.random.default_rng(sum(map(sum, sizes)))
    cut = {name: [np.asarray(rng.standard_normal(s), dtype) for s in sizes] for name in "pg"}
    cut |= {name: [np.asarray(rng.random(s), dtype) for s in sizes] for name in "mv"}  # states are not negative
    flat = {name: [np.concatenate([array.ravel() for array in arrays])] for name, arrays in cut.items()}
    results = []
    for arrays, layout in ((cut, how), (flat, "C")):
        on_device = {name: [put(backend, array, layout) for array in arrays[name]] for name in "pgmv"}
        for t in range(2, 2 + steps):
            run(*(on_device[name] for name in "pgmv"), put_lr(backend), put_step(backend, t))
        results.append({n: np.concatenate([backend.get(a).ravel() for a in on_device[n]]) for n in "pgmv"})
    for name in "pgmv":
        np.testing.assert_array_equal(results[0][name], results[1][name], err_msg=name)


def check_long(backend: Any, run: Step, dtype: Any) -> None:
    for how in ("C", "off"):
        check(backend, run, AROUND_CHUNKS, how, dtype, steps=1)
    check(backend, run, MANY, "C", dtype, steps=1)


def _sgd(p: Any, g: Any, m: Any, v: Any, lr: Any, step: Any) -> None:
    sgd.sgd_step(p, g, m, lr, step, momentum=0.9, dampening=0.1, weight_decay=0.01)


def _adagrad(p: Any, g: Any, m: Any, v: Any, lr: Any, step: Any) -> None:
    adagrad.adagrad_step(p, g, v, lr, step, lr_decay=0.1, weight_decay=0.01)


def _rmsprop(p: Any, g: Any, m: Any, v: Any, lr: Any, step: Any) -> None:
    rmsprop.rmsprop_step(p, g, v, m, None, lr, momentum=0.9, weight_decay=0.01)


def _adam(p: Any, g: Any, m: Any, v: Any, lr: Any, step: Any) -> None:
    adam.adam_step(p, g, m, v, lr, step, weight_decay=0.01)


def _adamw(p: Any, g: Any, m: Any, v: Any, lr: Any, step: Any) -> None:
    adam.adam_step(p, g, m, v, lr, step, weight_decay=0.01, decoupled=True)


long = pytest.mark.parametrize("dtype", [np.float32, np.float64])


@pytest.mark.operation("sgd")
@given(shapes, layouts, dtypes)
def test_sgd(backend: Any, sizes: list[tuple[int, ...]], layout: str, dtype: Any) -> None:
    check(backend, _sgd, sizes, layout, dtype)


@pytest.mark.operation("adagrad")
@given(shapes, layouts, dtypes)
def test_adagrad(backend: Any, sizes: list[tuple[int, ...]], layout: str, dtype: Any) -> None:
    check(backend, _adagrad, sizes, layout, dtype)


@pytest.mark.operation("rmsprop")
@given(shapes, layouts, dtypes)
def test_rmsprop(backend: Any, sizes: list[tuple[int, ...]], layout: str, dtype: Any) -> None:
    check(backend, _rmsprop, sizes, layout, dtype)


@pytest.mark.operation("adam")
@given(shapes, layouts, dtypes, st.booleans())
def test_adam(backend: Any, sizes: list[tuple[int, ...]], layout: str, dtype: Any, decoupled: bool) -> None:
    check(backend, _adamw if decoupled else _adam, sizes, layout, dtype)


@pytest.mark.operation("sgd")
@long
def test_sgd_over_long_lists(backend: Any, dtype: Any) -> None:
    check_long(backend, _sgd, dtype)


@pytest.mark.operation("adagrad")
@long
def test_adagrad_over_long_lists(backend: Any, dtype: Any) -> None:
    check_long(backend, _adagrad, dtype)


@pytest.mark.operation("rmsprop")
@long
def test_rmsprop_over_long_lists(backend: Any, dtype: Any) -> None:
    check_long(backend, _rmsprop, dtype)


@pytest.mark.operation("adam")
@long
def test_adam_over_long_lists(backend: Any, dtype: Any) -> None:
    check_long(backend, _adam, dtype)


def _nesterov(p: Any, g: Any, m: Any, v: Any, lr: Any, step: Any) -> None:
    sgd.sgd_step(p, g, m, lr, step, momentum=0.9, nesterov=True)


def _sgd_plain(p: Any, g: Any, m: Any, v: Any, lr: Any, step: Any) -> None:
    sgd.sgd_step(p, g, None, lr, step)


def _centered(p: Any, g: Any, m: Any, v: Any, lr: Any, step: Any) -> None:
    rmsprop.rmsprop_step(p, g, v, None, m, lr)


every_step = pytest.mark.parametrize("run", [_sgd, _nesterov, _adagrad, _rmsprop, _centered, _adam, _adamw])


def _rmsprop_centered(p: Any, g: Any, m: Any, v: Any, lr: Any, step: Any) -> None:
    sums = [array + 1 for array in v]  # s - m^2 > 0
    rmsprop.rmsprop_step(p, g, sums, m, v, lr, alpha=0.9, momentum=0.9)


@pytest.mark.backends("emulated", "cuda")
@pytest.mark.parametrize("run", [_sgd, _sgd_plain, _nesterov, _adagrad, _rmsprop_centered, _adamw])
@long
def test_versions_give_the_same_bits(backend: Any, run: Step, dtype: Any) -> None:
    """Which loads are asked for early makes no difference; the arrays are those of check_long, and the first step."""
    operation = next(name for name in ("sgd", "nesterov", "adagrad", "rmsprop", "adam") if name in run.__name__)
    operation = "sgd" if operation == "nesterov" else operation
    rng = np.random.default_rng(19)
    arrays = [[np.asarray(rng.random(s), dtype) for s in AROUND_CHUNKS] for _ in "pgmv"]
    for how, t in (("C", 1), ("off", 2)):
        found = []
        for version in ("v1_tensor_list", "v2_loads_first"):
            skip_unless_there(backend.name, operation, f"{operation}_step", version)
            given = [[put(backend, array, how) for array in of_list] for of_list in arrays]
            with use_backend(backend.name, **{operation: version}):
                run(*given, put_lr(backend), put_step(backend, t))
            found.append([backend.get(array) for array in itertools.chain(*given)])
        for one, other in zip(*found, strict=True):
            np.testing.assert_array_equal(one, other)


@pytest.mark.backends("numba")
@every_step
@long
@pytest.mark.parametrize("how", ["C", "off"])
def test_parts(backend: Any, run: Step, dtype: Any, how: str) -> None:
    check(backend, run, AROUND_PARTS, how, dtype, steps=1)


def after_a_step(run: Step, dtype: Any) -> list[list[np.ndarray]]:
    rng = np.random.default_rng(18)
    arrays = [[np.asarray(rng.random(s), dtype) for s in AROUND_PARTS] for _ in "pgmv"]
    run(*arrays, np.array([0.1]), np.array([2]))
    return arrays


@pytest.mark.backends("numba")
@every_step
def test_bits_are_those_of_one_thread(backend: Any, run: Step) -> None:
    from rawgrad.kernels._jit import get_num_threads, set_num_threads

    threads = get_num_threads()
    expected = after_a_step(run, np.float32)
    set_num_threads(1)
    try:
        actual = after_a_step(run, np.float32)
    finally:
        set_num_threads(threads)
    for a, e in zip(itertools.chain(*actual), itertools.chain(*expected), strict=True):
        np.testing.assert_array_equal(a, e)


@pytest.mark.backends("numba")
@pytest.mark.parametrize("run", [_sgd, _nesterov, _adagrad, _rmsprop, _centered])
@long
def test_bits_are_those_of_the_reference(backend: Any, run: Step, dtype: Any) -> None:
    """Every product and sum is rounded, in the same order; Adam multiplies where the reference divides."""
    actual = after_a_step(run, dtype)
    with use_backend("numpy"):
        expected = after_a_step(run, dtype)
    for a, e in zip(itertools.chain(*actual), itertools.chain(*expected), strict=True):
        np.testing.assert_array_equal(a, e)


@given(st.lists(st.integers(0, 40_000), max_size=6), st.integers(2, 5))
def test_the_parts_cover_every_element_once(sizes: list[int], lists: int) -> None:
    from rawgrad.kernels._simd_steps import ALONE, GRAIN, PART, _table

    parts, array = _table(tuple(sizes), lists)
    table = array.tolist()
    begins = table[: parts + 1]
    assert begins[0] == parts + 1 and begins[-1] == len(table)
    elements = []
    covered = dict.fromkeys(range(len(sizes)), 0)
    for begin, end in itertools.pairwise(begins):
        pieces = [table[k : k + 3] for k in range(begin, end, 3)]
        for array, start, size in pieces:
            assert size > 0 and start == covered[array] and start % GRAIN == 0
            covered[array] += size
        elements.append(sum(size for _, _, size in pieces))
    assert [covered[array] for array in range(len(sizes))] == sizes
    if sum(sizes) * lists <= ALONE:
        assert parts == min(sum(sizes), 1)
    else:
        assert parts == -(-sum(sizes) // PART) and all(abs(n - PART) < GRAIN for n in elements[:-1])


@pytest.mark.operation("sgd")
def test_a_dtype_that_is_equal_but_another_object(backend: Any) -> None:
    """As arrays have that came by pickle."""
    dtype = pickle.loads(pickle.dumps(np.dtype(np.float32)))
    assert dtype is not np.dtype(np.float32)
    param, grad = (backend.put(np.asarray([value], dtype)) for value in (1.0, 2.0))
    other = backend.put(np.ones(1, np.float32))
    sgd.sgd_step([param, other], [grad, other], None, put_lr(backend, lr=0.25), put_step(backend, 1))
    assert backend.get(param)[0] == 0.5


def check_infinite(backend: Any, run: Step) -> None:
    """Without decay a parameter is no part of its gradient: one that is infinite leaves the states alone."""
    states = []
    for value in (1.0, np.inf):
        arrays = [[backend.put(np.full(5, v))] for v in (value, 2.0, 3.0, 4.0)]
        run(*arrays, put_lr(backend), put_step(backend, 2))
        states.append([backend.get(a[0]) for a in arrays])
    np.testing.assert_array_equal(states[1][0], np.full(5, np.inf))
    for finite, infinite in zip(states[0][1:], states[1][1:], strict=True):
        np.testing.assert_array_equal(finite, infinite)
        assert np.isfinite(finite).all()


@pytest.mark.operation("sgd")
def test_sgd_without_decay(backend: Any) -> None:
    check_infinite(backend, lambda p, g, m, v, lr, step: sgd.sgd_step(p, g, m, lr, step, momentum=0.5))


@pytest.mark.operation("adagrad")
def test_adagrad_without_decay(backend: Any) -> None:
    check_infinite(backend, lambda p, g, m, v, lr, step: adagrad.adagrad_step(p, g, v, lr, step))


@pytest.mark.operation("rmsprop")
def test_rmsprop_without_decay(backend: Any) -> None:
    check_infinite(backend, lambda p, g, m, v, lr, step: rmsprop.rmsprop_step(p, g, v, m, None, lr, momentum=0.5))


@pytest.mark.operation("adam")
def test_adam_without_decay(backend: Any) -> None:
    check_infinite(backend, lambda p, g, m, v, lr, step: adam.adam_step(p, g, m, v, lr, step))


def check_traffic(backend: Any, run: Step, reads: int, writes: int, scalars: int) -> None:
    """One launch for 70 arrays, each element moved once.

    Args:
        reads, writes: how many arrays of a parameter's size are read and written.
        scalars: bytes of lr and step, which every block reads.
    """
    if backend.name != "emulated":
        pytest.skip("only the emulator counts bytes")
    from rawgrad.kernels._emulator.runtime import record_launches

    sizes = [5000, *range(69)]
    arrays = [[backend.put(np.ones(n, np.float32)) for n in sizes] for _ in "pgmv"]
    lr, step = put_lr(backend), put_step(backend, 2)
    with record_launches() as launches:
        run(*arrays, lr, step)
    (launch,) = launches
    bytes_of_list = 4 * sum(sizes)
    assert launch.traffic.global_read == reads * bytes_of_list + launch.grid[0] * scalars
    assert launch.traffic.distinct_read == reads * bytes_of_list + scalars
    assert launch.traffic.global_written == launch.traffic.distinct_written == writes * bytes_of_list


@pytest.mark.operation("sgd")
def test_traffic_of_sgd(backend: Any) -> None:
    check_traffic(backend, _sgd, reads=3, writes=2, scalars=16)


@pytest.mark.operation("adagrad")
def test_traffic_of_adagrad(backend: Any) -> None:
    check_traffic(backend, _adagrad, reads=3, writes=2, scalars=16)


@pytest.mark.operation("rmsprop")
def test_traffic_of_rmsprop(backend: Any) -> None:
    check_traffic(backend, _rmsprop, reads=4, writes=3, scalars=8)


@pytest.mark.operation("adam")
def test_traffic_of_adam(backend: Any) -> None:
    check_traffic(backend, _adam, reads=4, writes=3, scalars=16)


@pytest.mark.operation("rmsprop")
def test_all_five_lists_of_many_arrays(backend: Any) -> None:
    """The largest argument that any step has: RMSProp with averages of the gradients and with momentum."""

    def run(p: Any, g: Any, m: Any, v: Any, lr: Any, step: Any) -> None:
        averages = [0 * x for x in m]
        rmsprop.rmsprop_step(p, g, v, m, averages, lr, momentum=0.9)
        for average, grad in zip(averages, g, strict=True):
            np.testing.assert_allclose(backend.get(average), 0.01 * backend.get(grad), rtol=1e-14)

    check(backend, run, MANY, "C", np.float64, steps=1)
