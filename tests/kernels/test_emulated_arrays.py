"""The arrays of the simulated GPU: they compute as NumPy's do, and refuse what CuPy's refuse."""

from __future__ import annotations

import copy
import gc
import inspect
import os
import pickle
import re
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from rawgrad.kernels._emulator import streams
from rawgrad.kernels._emulator.arrays import METHODS, EmulatedArray, mark_written, written_map
from rawgrad.kernels._emulator.memory import Pool, pool
from rawgrad.kernels._emulator.module import DEVICE, NAMES
from rawgrad.kernels._emulator.module import MODULE as xp
from rawgrad.kernels._errors import ArgumentError, DeviceError, LaunchError, OutOfMemoryError

HOST = np.arange(24, dtype=np.float32).reshape(2, 3, 4) - 7


@pytest.fixture
def x() -> Any:
    return xp.array(HOST)


def same(array: Any, expected: Any) -> None:
    """``array`` is on the device and holds exactly ``expected``."""
    assert type(array) is EmulatedArray
    assert array.dtype == expected.dtype and array.shape == expected.shape
    np.testing.assert_array_equal(array.get(), expected)


# ---- it computes as NumPy does, and everything stays on the device

COMPUTED = {
    "operators": lambda m, x: -(x + 1) * x / 3 - x % 2 + x**2,
    "comparisons": lambda m, x: (x > 0) & ~(x == 3) | (x != x),
    "matmul": lambda m, x: x[0] @ x[1].T,
    "ufuncs": lambda m, x: m.maximum(m.exp(m.minimum(x, 1.0)), m.sqrt(m.abs(x))) + m.sin(x),
    "isfinite": lambda m, x: m.isfinite(x / x),
    "sum": lambda m, x: x.sum(axis=(0, 2), keepdims=True),
    "sum of all": lambda m, x: x.sum(),
    "max": lambda m, x: x.max(axis=1),
    "argmax": lambda m, x: x.argmax(axis=2),
    "argmin of all": lambda m, x: x.argmin(),
    "any": lambda m, x: (x > 15).any(),
    "std": lambda m, x: x.std(axis=0, ddof=1),
    "cumsum": lambda m, x: m.cumsum(x, axis=1),
    "reshape": lambda m, x: x.reshape(3, 8).transpose(1, 0)[::-2],
    "permuted": lambda m, x: m.moveaxis(x, 0, -1) + x.transpose((1, 2, 0)),
    "joined": lambda m, x: m.concatenate([x, m.stack([x[0], x[1]])], axis=2),
    "where": lambda m, x: m.where(x > 0, x, 0.0),
    "clip": lambda m, x: m.clip(x, -2, 3),
    "flip": lambda m, x: m.flip(x, (0, 2)),
    "broadcast": lambda m, x: m.broadcast_to(x[:, :1], (2, 3, 4)) + x,
    "triangle": lambda m, x: m.tril(x, -1),
    "round": lambda m, x: m.round(x / 3),
    "filled": lambda m, x: m.full((2, 3), 5.0, np.float64) + m.zeros((2, 1)) + m.ones(3) + m.arange(3),
    "like": lambda m, x: m.ones_like(x) + m.zeros_like(x, np.float64),
    "astype": lambda m, x: x.astype(np.int64).astype(np.uint8),
    "take": lambda m, x: x.take(m.asarray([2, 0]), axis=1),
    "repeat": lambda m, x: x.repeat(2, axis=0).ravel(),
    "element": lambda m, x: x[1, 2, 3] * 1,
    "slices": lambda m, x: x[..., None, 1::2],
    "integers": lambda m, x: x[m.asarray([0, -1, 0]), 1, m.asarray([3, 2, 1])],
    "mask": lambda m, x: x[x > 3],
    "mask of rows": lambda m, x: x[:, m.asarray([True, False, True])],
    "NumPy's functions": lambda m, x: np.sum(x, axis=0) + np.where(x[0] > 0, 1.0, x[1]),
}


@pytest.mark.parametrize("compute", COMPUTED.values(), ids=COMPUTED)
def test_computes_what_numpy_computes(compute: Any, x: Any) -> None:
    with np.errstate(all="ignore"):  # the device gives no warnings
        expected = np.asarray(compute(np, HOST))
    same(compute(xp, x), expected)


def test_results_without_dimensions_are_arrays(x: Any) -> None:
    for result in (x.sum(), x[0, 0, 0], x.max(), x[0, 0, 0] + 1, xp.sum(x), next(iter(x[0, 0]))):
        assert type(result) is EmulatedArray and result.shape == ()
    assert float(x.sum()) == HOST.sum() and bool(x.any()) and int(x.argmax()) == 23
    assert x[0, 0, 1].item() == -6 and x[0].tolist() == HOST[0].tolist() and x.tobytes() == HOST.tobytes()


def test_writes_reach_the_memory_of_views(x: Any) -> None:
    row, element = x[0], x[1, 1, 1]
    x += 1
    x[0, 1] = 5.0
    element[...] = -1
    row[2] = x[1, 0]
    row[xp.asarray([0])] *= 2
    expected = HOST + 1
    expected[0, 1], expected[1, 1, 1] = 5, -1
    expected[0, 2] = expected[1, 0]
    expected[0, 0] *= 2
    same(x, expected)
    x.fill(3)
    x[0].set(HOST[1])
    x[1].sort()
    xp.add.at(x, (0, xp.asarray([1, 1])), 1.0)
    same(x[0], HOST[1] + np.array([[0], [2], [0]], np.float32))
    xp.exp(x, out=x)
    xp.copyto(x[1], x[0])
    same(x[1], x[0].get())


def test_views_know_the_array_they_are_of(x: Any) -> None:
    assert x.base is None and (x + 1).base is None and x.copy().base is None
    for view in (x[0], x[0, 1], x.T, x.reshape(-1), x[0][1:], xp.broadcast_to(x, (2, 2, 3, 4)), xp.flip(x, (0,))):
        assert view.base is x and xp.may_share_memory(view, x)
    assert x.astype(np.float32, copy=False) is x and xp.asarray(x) is x and xp.ascontiguousarray(x) is x
    view, other = x[0], x[1]
    del x
    gc.collect()
    assert view.base is not None and view.base is other.base


def test_integer_indices_out_of_range_wrap_round_as_in_cupy() -> None:
    v = xp.arange(5)
    same(v[xp.asarray([5, 7, -6])], np.array([0, 2, 4]))
    same(v.take(xp.asarray([5, 7, -6])), np.array([0, 2, 4]))
    m = xp.array(np.arange(6).reshape(2, 3))
    same(m[..., None, xp.asarray([3, 4])], np.array([[[0, 1]], [[3, 4]]]))
    m[xp.asarray([2]), 0] = 9
    same(m[:, 0], np.array([9, 3]))
    with pytest.raises(IndexError):
        _ = v[5]
    with pytest.raises(IndexError):
        _ = v[xp.asarray([True, False])]


# ---- what it refuses

REFUSED = {
    "host operand": lambda x: x + np.ones(4, np.float32),
    "host operand on the left": lambda x: np.ones(4, np.float32) * x,
    "host operand without dimensions": lambda x: x + np.array(1.0),
    "list": lambda x: np.add(x, [1.0, 2.0, 3.0, 4.0]),
    "in place": lambda x: x.__iadd__(np.ones(4, np.float32)),
    "into the host": lambda x: np.add(x, x, out=HOST.copy()),
    "out": lambda x: xp.exp(HOST, out=x),
    "host index": lambda x: x[np.array([0])],
    "host assignment": lambda x: x.__setitem__(0, HOST[0]),
    "list assignment": lambda x: x.__setitem__((0, 0), [1.0, 2.0, 3.0, 4.0]),
    "function": lambda x: xp.concatenate([x, HOST]),
    "NumPy's function": lambda x: np.concatenate([x, HOST]),
    "where": lambda x: xp.where(HOST > 0, x, x),
    "where, one condition for all": lambda x: xp.where(True, x, x),
    "host alone": lambda x: xp.exp(HOST),
    "add.at": lambda x: xp.add.at(x, 0, HOST[0]),
    "method": lambda x: x.clip(HOST, None),
    "__array__": lambda x: x.__array__(),
    "an unknown function": lambda x: np.linalg.norm(x),
    "a keyword that CuPy lacks": lambda x: x.sum(initial=1.0),
    "a keyword that ufuncs of CuPy lack": lambda x: np.add(x, x, where=x > 0),
    "reduction by a ufunc": lambda x: np.add.reduce(x),
    "as an index": lambda x: [1, 2][x[0, 0, 0].astype(np.int64)],
    "membership": lambda x: 3 in x,
    "view of NumPy's class": lambda x: x.view(np.ndarray),
}


@pytest.mark.parametrize("refused", REFUSED.values(), ids=REFUSED)
def test_refuses_what_cupy_refuses(refused: Any, x: Any) -> None:
    with pytest.raises(TypeError):
        refused(x)
    same(x, HOST)


def test_refusals_name_both_places(x: Any) -> None:
    with pytest.raises(TypeError, match=r"add: an array on device 'cuda' \(simulated\) does not mix with one on the h"):
        _ = x + HOST


@pytest.mark.parametrize("name", ["resize", "setflags", "getfield", "to_device", "dot", "flat", "__array_interface__"])
def test_lacks_what_cupy_lacks_or_rawgrad_does_not_use(name: str, x: Any) -> None:
    assert not hasattr(x, name)


def test_the_module_has_what_rawgrad_uses_and_no_more() -> None:
    assert all(callable(getattr(xp, name)) or name == "cuda" for name in NAMES)
    with pytest.raises(AttributeError, match="rawgrad does not use 'linalg' on a GPU"):
        _ = xp.linalg


@pytest.mark.parametrize("value", [["a"], [None], np.array(["2020-01-01"], "datetime64[D]")])
def test_only_numbers_live_on_a_gpu(value: Any) -> None:
    with pytest.raises(ValueError, match="Unsupported dtype"):
        xp.array(value)


def test_overlapping_writes_are_refused(x: Any) -> None:
    """NumPy copies first; CuPy's threads read what others have written."""
    row = x[0, 0]
    with pytest.raises(ValueError, match="overlap"):
        row[1:] = row[:-1]
    square = x[0, :, :3]
    with pytest.raises(ValueError, match="overlap"):
        square += square.T
    row[...] = row
    row += row
    row[:2] = row[2:]
    same(row, np.array([-10, -8, -10, -8], np.float32))


def test_shares_memory_with_nobody(x: Any) -> None:
    for attempt in (x.__dlpack__, x.__dlpack_device__, lambda: np.from_dlpack(x)):
        with pytest.raises(BufferError, match="simulated GPU|DLPack"):
            attempt()
    assert not hasattr(x, "__cuda_array_interface__")
    assert xp.from_dlpack(x) is x
    with pytest.raises(DeviceError, match=r"ndarray cannot share its memory with device 'cuda' \(simulated\)"):
        xp.from_dlpack(HOST)


def test_copies_and_pickles(x: Any) -> None:
    for other in (copy.copy(x), copy.deepcopy(x), pickle.loads(pickle.dumps(x)), x.copy(), xp.array(x)):
        same(other, HOST)
        assert not xp.may_share_memory(other, x)


def test_to_the_host_and_back(x: Any) -> None:
    host = DEVICE.to_host(DEVICE.from_host(HOST[:, ::-1].transpose(2, 0, 1)))
    assert type(host) is np.ndarray and host.flags.c_contiguous
    np.testing.assert_array_equal(host, HOST[:, ::-1].transpose(2, 0, 1))
    pinned = np.frombuffer(xp.cuda.alloc_pinned_memory(HOST.nbytes), np.float32).reshape(HOST.shape)
    assert x.get(out=pinned) is pinned
    np.testing.assert_array_equal(pinned, HOST)
    with pytest.raises(ValueError, match=r"set: expected a host array of shape \(2, 3, 4\) and dtype float32; got"):
        x.set(HOST.astype(np.float64))
    assert repr(x[0, 0]) == "EmulatedArray(array([-7., -6., -5., -4.], dtype=float32))"


def test_memory_begins_where_a_gpus_does() -> None:
    arrays = [xp.empty(n, np.uint8) for n in (1, 3, 7, 0)] + [xp.ones(3) + 1, xp.array([1.0])]
    assert all(a.data.ptr == a.ctypes.data and a.data.ptr % 256 == 0 for a in arrays)


@pytest.mark.parametrize("order", ["C", "F"])
def test_results_keep_the_order_of_memory(order: str) -> None:
    host = np.asarray(HOST, order=order)
    assert xp.array(host).strides == host.strides
    assert (xp.array(host) + 1).strides == host.strides == xp.empty_like(xp.array(host)).strides
    last = xp.array(HOST).transpose(0, 2, 1)
    assert (last + 1).strides == last.strides == xp.empty_like(last).strides
    assert xp.empty_like(last, np.float64).strides == tuple(2 * s for s in last.strides)


# ---- what nothing wrote


def test_reading_what_nothing_wrote_is_refused() -> None:
    e = xp.empty((2, 3), np.float32)
    for show in (e.get, e.tolist, e.tobytes, e[1, 2].item, lambda: float(e[0, 0]), lambda: bool(e[0, 0])):
        with pytest.raises(LaunchError, match="nothing has written"):
            show()
    message = r"shape \(2, 3\) and dtype float32 on device 'cuda' \(simulated\) .* its element \(0, 0\)"
    with pytest.raises(LaunchError, match=message):
        DEVICE.to_host(e)
    assert "nan" in repr(e)


def test_the_map_says_which_bytes_a_kernel_wrote() -> None:
    e = xp.empty((3, 5), np.float32)
    written, offset = written_map(e)
    assert written is not None and written.shape == (15,) and offset == 0 and not written.any()
    again, offset = written_map(e.T[3:, 1:])
    assert again is written and offset == 4 * (5 + 3)
    reverse, offset = written_map(e[::-1])
    assert reverse is written and offset == 4 * 10
    written[5:10] = 15  # a kernel writes row 1
    e[1].get()
    e[::2][:0].get()
    with pytest.raises(LaunchError, match=r"its element \(0, 1\)"):
        e.T[2:, 1:].get()
    written[10:] = 15
    written[0] = 7  # three of the four bytes of element (0, 0)
    e[::-1][:2].get()
    with pytest.raises(LaunchError, match=r"element \(2, 0\)"):
        e[::-1].get()
    written[:5] = 15
    e.get()
    assert written_map(e) == (None, 0)


@pytest.mark.parametrize("dtype", [np.uint8, np.bool_, np.int16, np.float64])
def test_the_map_of_other_sizes(dtype: Any) -> None:
    e = xp.empty(7, dtype)
    written, _ = written_map(e)
    assert written is not None and len(written) == -(-e.nbytes // 4)
    bits = np.unpackbits(written[:, None], axis=1, bitorder="little")[:, :4].reshape(-1)
    assert bits[: e.nbytes].sum() == 0 and bits[e.nbytes :].all()
    bits[: 5 * e.itemsize] = 1
    written[:] = np.packbits(bits.reshape(-1, 4), axis=1, bitorder="little")[:, 0]
    e[:5].get()
    with pytest.raises(LaunchError, match=r"its element \(2,\)"):
        e[3:].get()


WRITES = {
    "assignment": lambda e: e.__setitem__(0, 1.0),
    "fill": lambda e: e.fill(2.0),
    "set": lambda e: e.set(np.zeros((2, 2))),
    "in place": lambda e: e.__iadd__(1.0),
    "out": lambda e: xp.exp(xp.zeros((2, 2)), out=e),
    "out of a method": lambda e: xp.zeros((2, 2)).sum(axis=0, out=e[0]),
    "add.at": lambda e: xp.add.at(e, 0, 1.0),
    "copyto": lambda e: xp.copyto(e, 1.0),
    "sort": lambda e: e.sort(),
    "said so": lambda e: mark_written(e[0]),
}


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
def test_writes_from_python_drop_the_map(write: Any) -> None:
    e = xp.empty((2, 2))
    write(e)
    assert written_map(e[1])[0] is None
    e.get()


def test_only_empty_forgets() -> None:
    for array in (xp.zeros(3), xp.ones(3), xp.full(3, 1.0), xp.array([1.0]), xp.empty(3) + 1, xp.empty(0)):
        assert not array.size or written_map(array)[0] is None
        array.get()
    assert written_map(xp.empty_like(xp.zeros((2, 2)).T))[0] is not None
    assert (xp.empty((2, 2), np.float32).view(np.uint8) == 255).all()


# ---- memory


@pytest.fixture
def limited() -> Iterator[int]:
    gc.collect()
    before = pool.used_bytes()
    pool.set_limit(before + 4096)
    yield before
    pool.set_limit(0)


def test_memory_is_counted_until_the_last_view_is_gone(limited: int) -> None:
    a = xp.zeros(256, np.float32)
    b = a[3:]
    assert pool.used_bytes() == pool.total_bytes() == limited + 1024
    del a
    assert pool.used_bytes() == limited + 1024
    del b
    assert pool.used_bytes() == limited


def test_out_of_memory_names_the_request_and_the_state(limited: int) -> None:
    kept = xp.empty(3072, np.uint8)
    message = rf"asked for 2,048 bytes; {limited + 3072:,} of {limited + 4096:,} are in use in \d+ allocations"
    for attempt in (lambda: xp.empty(512, np.float32), lambda: xp.zeros(256)):
        with pytest.raises(OutOfMemoryError, match=message):
            attempt()
    with pytest.raises(MemoryError):
        xp.empty(2048, np.uint8)
    del kept
    xp.empty(4096, np.uint8)


def test_memory_in_reference_cycles_is_found(limited: int) -> None:
    cycle: list[Any] = [xp.empty(4096, np.uint8)]
    cycle.append(cycle)
    del cycle
    assert xp.zeros(4096, np.uint8).nbytes == pool.used_bytes() - limited


def test_the_environment_sets_the_limit() -> None:
    code = (
        "from rawgrad.kernels._emulator.module import MODULE as xp\n"
        "a = xp.zeros(1000, 'uint8')\n"
        "try: xp.zeros(1, 'uint8')\n"
        "except MemoryError as error: print(error)"
    )
    environment = {**os.environ, "RAWGRAD_EMULATED_MEMORY": "1000"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert "asked for 1 bytes; 1,000 of 1,000 are in use in 1 allocations" in done.stdout


def test_a_limit_that_is_no_number_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from rawgrad.kernels._emulator import memory

    for text in ("8G", "-1"):
        monkeypatch.setenv("RAWGRAD_EMULATED_MEMORY", text)
        with pytest.raises(ArgumentError, match=re.escape(repr(text))):
            memory._limit()
    assert Pool(5).get_limit() == 5 and Pool().free_bytes() == 0


# ---- streams


def test_streams_nest_and_events_are_recorded_first() -> None:
    default = xp.cuda.get_current_stream()
    assert default.ptr == 0 and default == xp.cuda.Stream.null
    first, second = xp.cuda.Stream(non_blocking=True), xp.cuda.Stream()
    assert len({first, second, default}) == 3
    event = xp.cuda.Event()
    with pytest.raises(LaunchError, match="never recorded"):
        first.wait_event(event)
    with pytest.raises(LaunchError, match="never recorded"):
        event.synchronize()
    with first:
        with second as inner:
            assert inner is second is xp.cuda.get_current_stream()
            event.record()
        assert xp.cuda.get_current_stream() is first
        first.wait_event(event)
        first.wait_event(second.record())
    assert xp.cuda.get_current_stream() is default
    event.synchronize()
    first.synchronize()
    assert first.done and event.done
    with pytest.raises(LaunchError, match="not the current one"):
        first.__exit__(None, None, None)
    xp.cuda.runtime.deviceSynchronize()


# ---- the lists, against the real CuPy


def test_cupy_has_the_names_methods_and_arguments() -> None:
    cupy = pytest.importorskip("cupy")
    assert [name for name in NAMES if not hasattr(cupy, name)] == []
    assert hasattr(cupy.add, "at")
    for name, arguments in METHODS.items():
        method = getattr(cupy.ndarray, name)
        # Compiled methods carry their signature in the first line of their docstring.
        signature = method.__doc__.partition("\n")[0] if "(self" in (method.__doc__ or "") else ""
        signature = signature or str(inspect.signature(method))
        missing = [a for a in arguments.split() if not re.search(rf"\b{re.escape(a.strip('*'))}\b", signature)]
        assert missing == [], f"{name}: {signature}"
    ours = {name for name in vars(EmulatedArray) if not name.startswith("_")}
    absent = {name for name in ours if isinstance(vars(EmulatedArray)[name], property)} - {"base", "data"}
    assert [name for name in ours - absent - {"PLACE", "MODULE"} if not hasattr(cupy.ndarray, name)] == []
    for name in streams.__all__:
        twin, real = getattr(streams, name), getattr(cupy.cuda, name)
        public = [member for member in vars(twin) if not member.startswith("_")] if isinstance(twin, type) else []
        assert [m for m in public if not hasattr(real, m)] == [], name
    public = [
        name for name in vars(Pool) if not name.startswith("_") and name not in ("allocate", "block_of", "owner_of")
    ]
    assert [name for name in public if not hasattr(cupy.cuda.MemoryPool, name)] == []
