"""Contestants on an NVIDIA GPU, made of the cases of :mod:`.cases`, and how their calls are timed there.

Calls are timed by CUDA events.  Before each turn a kernel that only waits holds the stream until the host has queued
the turn's calls, so that the figure is the GPU's time and not the host's.  Inputs rotate past the GPU's cache.

Beside our default stand the versions of its kernel, and for short work its call captured in a CUDA graph and
replayed: what a captured training step pays for it (the row ``empty_kernel`` has what that costs at least).
JAX has a stream of its own and is timed by the host's clock, with the GPU waited for at the end of a turn.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Protocol

import numpy as np

from ..autograd.capture import Graph
from ..kernels._cuda.table import versions_of
from ..kernels._devices import device_named
from ..kernels._dispatch import backend, current_choice, precision
from ..kernels._launch import architecture
from . import kernels
from .cases import Case, several
from .formulas import LigerFormulas
from .harness import OURS, Clock, Contestant, Work
from .peers import COMPILED, detail, rival
from .results import Missing
from .rivals import TorchRival, Way

#: At most so many calls are queued at once; a stream takes about a thousand launches.
_QUEUED = 100
CUPY, TORCH, LIGER, JAX = "cupy", "torch", "liger", "jax"
#: Our default call, replayed; up to so many bytes, and with so many sets of inputs at most.
REPLAYED = f"{OURS} replayed"
_SHORT, _GRAPHS = 256 * 10**6, 64


class Timer(Protocol):
    """Times what is queued on the GPU's stream."""

    def seconds(self, queue: Callable[[], None], host_seconds: float) -> float:
        """The GPU's time for what ``queue()`` queues, which takes the host about ``host_seconds``."""
        ...

    def empty(self) -> None:
        """Launch a kernel that does nothing."""
        ...


_SOURCE = """
extern "C" __global__ void hold(long long nanoseconds) {
  long long start, now;
  asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(start));
  do asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(now)); while (now - start < nanoseconds);
}
extern "C" __global__ void empty() {}
"""


class EventTimer:
    """CUDA events on CuPy's current stream, which is also PyTorch's unless one of them was told otherwise."""

    def __init__(self) -> None:
        cupy = device_named("cuda").array_module
        self._hold, self._empty = (cupy.RawKernel(_SOURCE, name) for name in ("hold", "empty"))
        self._events = [cupy.cuda.Event() for _ in range(2)]
        self._between = cupy.cuda.get_elapsed_time

    def seconds(self, queue: Callable[[], None], host_seconds: float) -> float:
        """Between the two events."""
        start, end = self._events
        self._hold((1,), (1,), (np.int64(1e9 * (1.5 * host_seconds + 1e-4)),))
        start.record()
        queue()
        end.record()
        end.synchronize()
        return float(self._between(start, end)) / 1e3

    def empty(self) -> None:
        """One thread."""
        self._empty((1,), (1,), ())


@dataclass
class GpuContestant(Contestant):
    """A contestant whose turns a :class:`Timer` times."""

    timer: Timer | None = None
    _host: float = field(default=1e-4, init=False, repr=False)  # seconds for queueing one call

    def turn(self, calls: int, clock: Clock, settle: float) -> float:
        """The GPU's seconds per call; as in the base class a tenth of the calls comes first, not timed."""
        assert self.timer is not None
        opening = 1 + calls // 10
        sets = [self.inputs[(self._calls + i) % len(self.inputs)] for i in range(opening + calls)]
        self._calls += len(sets)
        start = clock()
        for arguments in sets[:opening]:
            self.call(*arguments)
        self._host = (clock() - start) / opening / 1e9
        total = 0.0
        for first in range(opening, len(sets), _QUEUED):
            some = sets[first : first + _QUEUED]
            total += self.timer.seconds(partial(self._queue, some), self._host * len(some))
        return total / calls

    def _queue(self, sets: Sequence[tuple[Any, ...]]) -> None:
        for arguments in sets:
            self.call(*arguments)


@dataclass
class WaitingContestant(Contestant):
    """A contestant that is timed by the host's clock; ``wait`` waits for the last result of a turn."""

    wait: Callable[[Any], Any] = lambda result: None

    def timed(self, sets: Sequence[tuple[Any, ...]], clock: Clock) -> float:
        """Nanoseconds for all of ``sets``."""
        result, start = None, clock()
        for arguments in sets:
            result = self.call(*arguments)
        self.wait(result)
        return clock() - start


def cache_of_gpu() -> int:
    """Bytes of the GPU's L2 cache; 64 MiB where CuPy does not tell (the simulated GPU)."""
    runtime = device_named("cuda").array_module.cuda.runtime
    if not hasattr(runtime, "getDeviceProperties"):
        return 64 * 2**20
    return int(runtime.getDeviceProperties(runtime.getDevice())["l2CacheSize"])


def sets_past_cache(bytes_of_one: int) -> int:
    """How many sets of inputs are together twice the GPU's cache, at most 256."""
    return min(256, max(1, -(-2 * cache_of_gpu() // max(1, bytes_of_one))))


def our_backend() -> str:
    """The backend of the GPU's kernels: ``cuda``, or in tests ``emulated``."""
    return current_choice().for_device("cuda") or "cuda"


def here() -> int:
    """Of the GPU: 90 for sm_90."""
    return architecture(device_named("cuda").array_module.zeros(1))


def versions_of_operation(operation: str, function: str) -> list[str]:
    """The versions of ours that compute in float32 exactly, on this GPU."""
    rounding = ("tensor_core", "channels_last", "wgmma")
    return [n for n in versions_of(operation, function, here()) if not any(r in n for r in rounding)]


def versions(case: Case, rounding: str | None = None) -> list[str]:
    """The versions of ours for a case: in float32 those that do not round, else those that round like ``rounding``."""
    if case.itemsize == 2:
        return versions_of(case.operation, case.function, here(), halves=True)
    if rounding is None:
        return versions_of_operation(case.operation, case.function)
    names = versions_of(case.operation, case.function, here())
    return [n for n in names if n.endswith(f"_{rounding}") or "wgmma" in n]


def pinned(call: Callable[..., Any], operation: str, version: str) -> Callable[..., Any]:
    """``call`` with that version of ours."""
    name = our_backend()

    def with_version(*arguments: Any) -> Any:
        with backend(name, **{operation: version}):
            return call(*arguments)

    return with_version


def in_tf32(call: Callable[..., Any]) -> Callable[..., Any]:
    """``call`` of ours in tf32."""

    def rounded(*arguments: Any) -> Any:
        with precision("tf32"):
            return call(*arguments)

    return rounded


def torch_in_tf32(call: Callable[..., Any]) -> Callable[..., Any]:
    """``call`` of torch's in tf32."""

    def rounded(*arguments: Any) -> Any:
        import torch

        libraries: list[Any] = [torch.backends.cuda.matmul, torch.backends.cudnn]
        before = [one.allow_tf32 for one in libraries]
        for one in libraries:
            one.allow_tf32 = True
        try:
            return call(*arguments)
        finally:
            for one, allowed in zip(libraries, before, strict=True):
                one.allow_tf32 = allowed

    return rounded


@dataclass(frozen=True)
class Setting:
    """How a case is done.

    Attributes:
        tf32: whether float32 is rounded for tensor cores.
        channels_last: whether images lie as (N, H, W, C) in memory; torch's weights too.
        compiled: whether PyTorch compiled takes part: where it fuses something.
    """

    tf32: bool = False
    channels_last: bool = False
    compiled: bool = False


def _our_layout(array: Any) -> Any:
    return array.transpose(0, 2, 3, 1).copy().transpose(0, 3, 1, 2) if array.ndim == 4 else array


def _torch_layout(array: Any) -> Any:
    import torch

    return array.contiguous(memory_format=torch.channels_last) if array.ndim == 4 else array


def _host_result(call: Callable[..., Any], arguments: tuple[Any, ...], host: Callable[[Any], Any]) -> list[Any]:
    return [np.asarray(host(part)) for part in several(call(*arguments))]


def _is_product(case: Case) -> bool:
    return case.operation == case.function == "gemm" and not case.wrt


class Maker:
    """Makes the contestants of one case.

    Args:
        peers: who may take part, of those that are here.
    """

    def __init__(self, case: Case, setting: Setting, timer: Timer, peers: Sequence[str]) -> None:
        self._case, self._setting, self._timer, self._peers = case, setting, timer, peers
        self.sets = kernels.inputs_of(case, sets_past_cache)

    def _timed(self, name: str, call: Any, sets: Any, said: str, host: Callable[[Any], Any]) -> Contestant:
        return GpuContestant(name, call, sets, said, partial(_host_result, call, sets[0], host), timer=self._timer)

    def _ours(self) -> Iterator[Contestant]:
        device, case, setting = device_named("cuda"), self._case, self._setting
        lay = _our_layout if setting.channels_last else lambda array: array
        drawn = [tuple(device.from_host(a) for a in one) for one in self.sets]
        weight = 1 if case.operation == "conv2d" else None  # a layer's weights lie as always
        drawn = [tuple(a if i == weight else lay(a) for i, a in enumerate(one)) for one in drawn]
        prepared = [case.ours.prepare(*one) for one in drawn]
        call = in_tf32(case.ours.call) if setting.tf32 else case.ours.call
        yield self._timed(OURS, call, prepared, f"backend {our_backend()}", device.to_host)
        names = versions(case, "tf32" if setting.tf32 else None)
        for version in names:
            if setting.tf32 and case.operation == "conv2d" and ("channels_last" in version) != setting.channels_last:
                continue
            yield self._timed(
                f"{OURS} {version}", pinned(call, case.operation, version), prepared, version, device.to_host
            )
        if case.bytes < _SHORT:
            yield self._replayed(call, prepared[:_GRAPHS], device.to_host)
        if CUPY in self._peers and case.dtype in ("float32", "float64") and not setting.tf32 and _is_product(case):
            yield self._timed(CUPY, lambda a, b: a @ b, drawn, "cuBLAS", device.to_host)

    def _replayed(self, call: Callable[..., Any], sets: Sequence[Any], host: Callable[[Any], Any]) -> Contestant:
        """A graph for each set; made at the first call, which is not timed."""
        graphs: list[tuple[Graph, Any]] = []

        def replay(i: int) -> Any:
            if not graphs:
                graphs.extend(captured(partial(call, *one)) for one in sets)
            graph, result = graphs[i]
            graph.replay()
            return result

        numbers = [(i,) for i in range(len(sets))]
        return self._timed(REPLAYED, replay, numbers, f"backend {our_backend()}, a CUDA graph", host)

    def _peer(self, who: str) -> Contestant:
        case, setting = self._case, self._setting
        lay = _torch_layout if setting.channels_last else lambda array: array
        if who == LIGER:
            other: Any = TorchRival("cuda", formulas=LigerFormulas())
        else:
            other = rival(who, "cuda")
        way: Way = case.way(other)
        call = torch_in_tf32(way.call) if setting.tf32 else way.call
        sets = [way.prepare(*(lay(other.put(a)) for a in one)) for one in self.sets]
        said = detail("liger_kernel" if who == LIGER else who)
        if who == JAX:
            result = partial(_host_result, call, sets[0], other.host)
            return WaitingContestant(who, call, sets, f"{said}, host's clock", result, wait=other.wait)
        return self._timed(who, call, sets, said, other.host)

    def contestants(self) -> tuple[list[Contestant], list[Missing]]:
        """All of them, and those peers that could not be made, with the reason."""
        found, missing = [*self._ours()], list[Missing]()
        for who in (TORCH, COMPILED, LIGER, JAX):
            if who not in self._peers or (who == COMPILED and not self._setting.compiled):
                continue
            if who == LIGER and not LigerFormulas.does(self._case.operation):
                continue
            if who == JAX and (self._setting.tf32 or self._setting.channels_last):
                continue
            try:
                found.append(self._peer(who))
            except Exception as error:
                missing.append(Missing(who, f"{type(error).__name__}: {str(error).partition(chr(10))[0][:200]}"))
        return found, missing


def captured(call: Callable[[], Any]) -> tuple[Graph, Any]:
    """``call`` in a CUDA graph, and the arrays into which each replay writes."""
    graph = Graph()
    with graph.warm_up():
        call()
    with graph.capture():
        result = call()
    return graph, result


def on_gpu(name: str, case: Case, timer: Timer, peers: Sequence[str], setting: Setting = Setting()) -> Work:
    """The case as a row of the GPU."""
    maker = Maker(case, setting, timer, peers)
    contestants, missing = maker.contestants()
    if setting.tf32:  # factors have 10 bits of fraction
        case = replace(case, tolerance=2e-3)
    return Work(
        name,
        case.description,
        contestants,
        reference=lambda: kernels.right_of(case, maker.sets[0]),
        reference_name="rawgrad's NumPy reference in float64",
        check=case.checked,
        dtype=case.dtype,
        layout="NHWC" if setting.channels_last else case.layout,
        flops=case.flops,
        bytes=case.bytes,
        missing=missing,
    )


def waiting_clock() -> int:
    """Nanoseconds, when the GPU has finished its work."""
    device_named("cuda").synchronize()
    return time.perf_counter_ns()
