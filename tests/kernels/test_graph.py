"""Capture on the simulated GPU itself: what is noted, what a replay does, and what it finds out."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from rawgrad.kernels import _faults, _graph
from rawgrad.kernels._devices import device_named
from rawgrad.kernels._dispatch import BACKENDS, backend
from rawgrad.kernels._emulator import streams
from rawgrad.kernels._emulator.arrays import EmulatedArray
from rawgrad.kernels._emulator.memory import pool
from rawgrad.kernels._emulator.module import MODULE as xp
from rawgrad.kernels._emulator.runtime import record_launches
from rawgrad.kernels._errors import CaptureError, LaunchError
from rawgrad.kernels._faults import NO_FAULT, fault_flag, watch, watch_again
from rawgrad.kernels._graph import DeviceGraph
from rawgrad.kernels.activation import activation_forward


@pytest.fixture
def graph() -> Iterator[DeviceGraph]:
    with backend("emulated"):
        yield DeviceGraph(device_named("cuda"))


def array(*values: float) -> Any:
    return xp.array(np.array(values, np.float32))


#: Each takes a = [3, 1, 2] and b = [5, 7, 9] and may write into a; in the end a and what it returns are compared.
OPERATIONS: dict[str, Callable[[Any, Any], Any]] = {
    "ufunc": lambda a, b: a + b * 2,
    "ufunc with out": lambda a, b: xp.add(a, b, out=a),
    "in place": lambda a, b: a.__iadd__(b),
    "reduction": lambda a, b: a.sum() + b.max(),
    "method with out": lambda a, b: b.sum(out=a[0]),
    "function": lambda a, b: xp.concatenate([a, b]),
    "where": lambda a, b: xp.where(a > 1, a, b),
    "copy": lambda a, b: a.copy(),
    "array": lambda a, b: xp.array(a, dtype=np.float64),
    "astype": lambda a, b: a.astype(np.int64),
    "fill": lambda a, b: a.fill(4),
    "sort": lambda a, b: a.sort(),
    "assignment": lambda a, b: a.__setitem__(slice(1), b[2]),
    "assignment by index": lambda a, b: a.__setitem__(xp.arange(2), b[:2]),
    "assignment by mask": lambda a, b: a.__setitem__(a > 1, 0),
    "indexing": lambda a, b: b[a.astype(np.int64)],
    "take": lambda a, b: b.take(a.astype(np.int64)),
    "at": lambda a, b: xp.add.at(a, xp.zeros(3, np.int64), b),
    "views": lambda a, b: a.reshape(3, 1).T[0, ::-1] + b,
    "write through a view": lambda a, b: a[::-1].__setitem__(slice(2), b[1:]),
    "copyto": lambda a, b: xp.copyto(a, b),
    "constants": lambda a, b: xp.full(2, 3.5) + xp.zeros(2),
    "empty, then filled": lambda a, b: _filled(b),
    "kernel": lambda a, b: activation_forward(a - b, "relu"),
}


def _filled(b: Any) -> Any:
    new = xp.empty_like(b)
    new[...] = b
    return new


@pytest.mark.parametrize("name", OPERATIONS)
def test_replays_do_what_the_operation_does(graph: DeviceGraph, name: str) -> None:
    if name == "kernel" and (problem := BACKENDS["emulated"].problem()):
        pytest.skip(problem)
    operation = OPERATIONS[name]

    def run(a: Any, b: Any, replay: Callable[[], Any]) -> list[Any]:
        found = []
        for step in range(3):
            b += step
            result = replay()
            found += [a.get(), result.get() if isinstance(result, EmulatedArray) else None]
        return found

    a, b = array(3, 1, 2), array(5, 7, 9)
    expected = run(a, b, lambda: operation(a, b))
    a, b = array(3, 1, 2), array(5, 7, 9)
    with graph.recording():
        result = operation(a, b)
    np.testing.assert_array_equal(a.get(), [3, 1, 2])  # nothing ran

    def replay() -> Any:
        graph.launch()
        return result

    np.testing.assert_equal(run(a, b, replay), expected)


def test_results_are_unknown_until_a_replay(graph: DeviceGraph) -> None:
    a = array(1)
    with graph.recording():
        b = a + 1
    with pytest.raises(LaunchError, match="nothing has written its element"):
        b.get()
    graph.launch()
    assert b.item() == 2


def test_a_freed_array_is_caught(graph: DeviceGraph) -> None:
    a, kept = array(1, 2), array(3, 4)
    with graph.recording():
        result = kept + 1
        kept += a
    graph.launch()
    assert result.tolist() == [4, 5] and kept.tolist() == [4, 6]
    del a
    with pytest.raises(CaptureError, match=r"an array of shape \(2,\) and dtype float32 .* was freed since"):
        graph.launch()


def test_memory_of_the_capture_stays_until_the_graph_goes() -> None:
    with backend("emulated"):
        graph = DeviceGraph(device_named("cuda"))
    a = array(*range(100))
    used = pool.used_bytes()
    with graph.own_stream():
        (a + 1).sum()
    assert pool.used_bytes() == used  # a warm-up keeps nothing
    with graph.recording():
        total = (a + 1).sum()
    assert pool.used_bytes() == used + a.nbytes + total.nbytes
    graph.launch()
    assert total.item() == 5050
    del graph, total
    gc.collect()
    assert pool.used_bytes() == used


def test_a_replay_that_reads_what_it_has_not_written_is_caught(graph: DeviceGraph) -> None:
    if problem := BACKENDS["emulated"].problem():
        pytest.skip(problem)
    with graph.recording():
        unwritten = xp.empty(8, np.float32)
        activation_forward(unwritten, "relu")
        unwritten.fill(1)  # too late
    for _ in range(2):
        with pytest.raises(LaunchError, match="read of what nothing wrote"):
            graph.launch()


def test_launches_are_noted_and_run_again(graph: DeviceGraph) -> None:
    if problem := BACKENDS["emulated"].problem():
        pytest.skip(problem)
    a = array(-1, 2)
    with record_launches() as noted, graph.recording():
        activation_forward(a, "relu")
    with record_launches() as run:
        graph.launch()
        graph.launch()
    assert noted == [] and len(run) == 2 and run[0].kernel == run[1].kernel


@pytest.mark.parametrize(
    "read",
    [
        lambda a: a.get(),
        lambda a: a.item(),
        lambda a: bool(a),
        lambda a: float(a),
        lambda a: str(a),
        lambda a: a.set(np.ones(1, np.float32)),
        lambda a: xp.array([1.0]),
        lambda a: xp.concatenate([a] * 9),
        lambda a: a[a > 0],
        lambda a: a.nonzero(),
        lambda a: xp.cuda.runtime.deviceSynchronize(),
        lambda a: xp.cuda.get_current_stream().synchronize(),
    ],
)
def test_nothing_passes_between_host_and_device(graph: DeviceGraph, read: Callable[[Any], Any]) -> None:
    a = array(1)
    with pytest.raises(CaptureError), graph.recording():
        read(a)
    assert not graph.is_captured and streams.recording() is None and _graph.under_way == 0


def test_the_protocol_of_streams() -> None:
    with pytest.raises(CaptureError, match="the default stream cannot be captured"):
        streams.Stream.null.begin_capture()
    stream = streams.Stream(non_blocking=True)
    with pytest.raises(CaptureError, match="not being captured"):
        stream.end_capture()
    stream.begin_capture()
    with pytest.raises(CaptureError, match="captured already"):
        stream.begin_capture()
    assert stream.is_capturing()
    assert array(1).item() == 1  # another stream
    stream.end_capture().launch()
    assert not stream.is_capturing()


def test_what_is_set_up_once_runs_outside(graph: DeviceGraph) -> None:
    with graph.recording():
        with _graph.outside():
            counter = xp.zeros(1, np.int64)
        counter += 1
    for expected in (1, 2, 3):
        graph.launch()
        assert counter.item() == expected
    with _graph.outside():
        assert counter.item() == 3


def test_an_allocator_is_for_its_block_alone() -> None:
    own, before = streams.MemoryPool(), pool.used_bytes()
    with streams.using_allocator(own.malloc):
        kept = array(1)
        with streams.using_allocator():
            other = array(2)
    assert kept.item() + other.item() == 3 and pool.used_bytes() == before + 8


def test_a_fault_flag_outlasts_the_next_replay_and_is_the_graph_s_alone(
    graph: DeviceGraph, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_faults, "_free_flags", {})
    lowered, a = array(7), array(0)
    with pytest.raises(ZeroDivisionError), graph.recording():
        watch(fault_flag(a), IndexError)
        _ = 1 / 0
    assert graph.watches == []
    with graph.recording():
        flag = fault_flag(a)
        xp.add(flag, 0, out=flag)
        watch(flag, IndexError)
    flag[...] = lowered.astype(np.int64)
    graph.launch()
    assert flag.item() == 7
    with pytest.raises(IndexError, match="7"):
        watch_again(graph.watches)
    watch_again(graph.watches)
    assert flag.item() == NO_FAULT and not any(flag is other for other in (fault_flag(a), fault_flag(a)))
