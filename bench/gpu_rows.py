"""The rows of the bench on an NVIDIA GPU, beside cuBLAS and cuDNN: through CuPy, PyTorch eager and PyTorch compiled.

Single kernels are the works of :mod:`.kernels` with their inputs on the GPU, timed by CUDA events.  Before
each turn a kernel that only waits holds the stream until the host has queued the turn's calls, so that the
figure is the GPU's time and not the host's.  Training steps are timed as a user sees them: by the host's clock
with the GPU waited for at the end of each turn.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Protocol

import numpy as np

from ..kernels._cuda.table import versions_of
from ..kernels._devices import device_named
from ..kernels._dispatch import backend, current_choice, precision
from ..kernels._dtypes import BFLOAT16
from ..kernels._launch import architecture
from . import kernels, optimizer_step, programs, shapes
from .harness import OURS, Clock, Contestant, Work, WrongResult, assert_close, measure
from .peers import Library, detail, library
from .results import Missing, Row

#: At most so many calls are queued at once; a stream takes about a thousand launches.
_QUEUED = 100
_ROUNDS = 10
#: Seconds of a turn: by events, which resolve a microsecond, and by the host's clock.
_MIN_ROUND, _MIN_ROUND_BY_CLOCK = 0.002, 0.05
CUPY, TORCH, COMPILED = "cupy", "torch", "torch compiled"
#: With torch's own capture: its compiler replays CUDA graphs.
REPLAYED = "torch compiled, CUDA graphs"


class Timer(Protocol):
    """Times what is queued on the GPU's stream."""

    def seconds(self, queue: Callable[[], None], host_seconds: float) -> float:
        """The GPU's time for what ``queue()`` queues, which takes the host about ``host_seconds``."""
        ...


_HOLD = """
extern "C" __global__ void hold(long long nanoseconds) {
  long long start, now;
  asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(start));
  do asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(now)); while (now - start < nanoseconds);
}
"""


class EventTimer:
    """CUDA events on CuPy's current stream, which is also PyTorch's unless one of them was told otherwise."""

    def __init__(self) -> None:
        cupy = device_named("cuda").array_module
        self._hold = cupy.RawKernel(_HOLD, "hold")
        self._events = [cupy.cuda.Event() for _ in range(2)]
        self._between = cupy.cuda.get_elapsed_time

    def seconds(self, queue: Callable[[], None], host_seconds: float) -> float:
        start, end = self._events
        self._hold((1,), (1,), (np.int64(1e9 * (1.5 * host_seconds + 1e-4)),))
        start.record()
        queue()
        end.record()
        end.synchronize()
        return float(self._between(start, end)) / 1e3


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


def _cache_of_gpu() -> int:
    """Bytes of the GPU's L2 cache; 64 MiB where CuPy does not tell (the simulated GPU)."""
    runtime = device_named("cuda").array_module.cuda.runtime
    if not hasattr(runtime, "getDeviceProperties"):
        return 64 * 2**20
    return int(runtime.getDeviceProperties(runtime.getDevice())["l2CacheSize"])


def on_gpu(
    work: Work, timer: Timer, versions: Sequence[tuple[str, str]] = (), compiled: bool = False, bf16: bool = False
) -> Work:
    """``work`` with every contestant's inputs on the GPU, past its cache, and timed there.

    Args:
        work: for the CPU, from :mod:`.kernels`.
        timer: times the turns.
        versions: (operation, version) of ours that take part beside the default.
        compiled: whether ``torch.compile`` takes part.
        bf16: whether float32 inputs become bfloat16.
    """
    device = device_named("cuda")
    contestants: list[Contestant] = []
    for one in work.contestants:
        if one.name == TORCH:
            sets = [tuple(_bf16(t.cuda()) if bf16 else t.cuda() for t in arguments) for arguments in one.inputs]
            inputs = _past_cache(sets, lambda t: t.clone())
            host: Callable[[Any], np.ndarray] = lambda t: (t.float() if bf16 else t).cpu().numpy()  # noqa: E731
        else:
            sets = [tuple(device.from_host(_bf16(a) if bf16 else a) for a in arguments) for arguments in one.inputs]
            inputs, host = _past_cache(sets, lambda a: a.copy()), device.to_host
        name = CUPY if one.name == "numpy" else one.name
        detail = one.detail if name == TORCH else f"backend {current_choice().for_device('cuda') or 'cuda'}"
        calls = [(name, one.call, detail)]
        if one.name == TORCH and compiled:
            calls.append((COMPILED, _compiled(one.call), one.detail))
        if one.name == OURS:
            calls += [(f"{OURS} {version}", _pinned(one.call, op, version), version) for op, version in versions]
        for called, call, said in calls:
            result = partial(_result, call, inputs[0], host)
            contestants.append(GpuContestant(called, call, inputs, said, result, timer=timer))
    if bf16:  # 1 % of the largest: the inputs are rounded, and so is the result
        of_halves: dict[str, Any] = {"dtype": "bfloat16", "bytes": work.bytes // 2}
        of_halves["check"] = lambda result, right: assert_close(result, right, 1e-2)
        return replace(work, contestants=contestants, **of_halves)
    return replace(work, contestants=contestants)


def _bf16(array: Any) -> Any:
    """``array``, of NumPy or torch, in bfloat16 if it is in float32."""
    if isinstance(array, np.ndarray):
        return array.astype(BFLOAT16) if array.dtype == np.float32 else array
    return array.bfloat16() if array.is_floating_point() else array


def _past_cache(sets: list[tuple[Any, ...]], copy: Callable[[Any], Any]) -> list[tuple[Any, ...]]:
    """Copies of ``sets`` until they are together twice the GPU's cache."""
    size = sum(a.nbytes for arguments in sets for a in arguments)
    missing = min(256, -(-2 * _cache_of_gpu() // max(1, size))) - 1
    return sets + [tuple(map(copy, arguments)) for _ in range(missing) for arguments in sets]


def _result(call: Callable[..., Any], arguments: tuple[Any, ...], host: Callable[[Any], np.ndarray]) -> list[Any]:
    value = call(*arguments)
    return [host(part) for part in (value if isinstance(value, tuple) else (value,))]


def _pinned(call: Callable[..., Any], operation: str, version: str) -> Callable[..., Any]:
    name = current_choice().for_device("cuda") or "cuda"

    def pinned(*arguments: Any) -> Any:
        with backend(name, **{operation: version}):
            return call(*arguments)

    return pinned


def _compiled(call: Callable[..., Any], mode: str = "default") -> Callable[..., Any]:
    import torch

    compiled: Callable[..., Any] = torch.compile(call, mode=mode)
    return compiled


def _compiled_network(program: programs.Program, mode: str, lib: Library) -> Any:
    return _compiled(program.network(lib), mode)


def _versions(operation: str, function: str) -> list[tuple[str, str]]:
    """The versions of ours that compute in float32 exactly."""
    rounding = ("tensor_core", "channels_last", "wgmma")
    names = versions_of(operation, function, _here())
    return [(operation, name) for name in names if not any(r in name for r in rounding)]


def _here() -> int:
    """Of the GPU: 90 for sm_90."""
    return architecture(device_named("cuda").array_module.zeros(1))


@dataclass(frozen=True)
class GpuRow:
    """How a row is made, and how it is timed."""

    name: str
    build: Callable[[Timer, Sequence[str]], Work]
    by_events: bool = True


def _gemm(name: str, shape: shapes.Gemm, timer: Timer, peers: Sequence[str]) -> Work:
    who = [OURS, *(["numpy"] if CUPY in peers else []), *([TORCH] if TORCH in peers else [])]
    return on_gpu(kernels.gemm_work(name, shape, who), timer, _versions("gemm", "gemm"))


def _gemm_tf32(name: str, shape: shapes.Gemm, timer: Timer, peers: Sequence[str]) -> Work:
    """Both round the factors to 10 bits of fraction on the tensor cores."""
    names = versions_of("gemm", "gemm", _here())
    versions = [("gemm", version) for version in names if version.endswith("_tf32") or "wgmma" in version]
    work = kernels.gemm_work(name, shape, [OURS, *([TORCH] if TORCH in peers else [])])
    return _in_tf32(on_gpu(work, timer, versions))


def _in_tf32(work: Work) -> Work:
    """``work`` with all contestants in tf32."""
    for one in work.contestants:
        one.call = _torch_tf32(one.call) if one.name == TORCH else _our_tf32(one.call)
        one.result = partial(_result, one.call, one.inputs[0], _host_of(one.name))
    return replace(work, check=lambda result, right: assert_close(result, right, 2e-3))


def _gemm_bf16(name: str, shape: shapes.Gemm, timer: Timer, peers: Sequence[str]) -> Work:
    """Matrices of bfloat16."""
    versions = [("gemm", version) for version in versions_of("gemm", "gemm", _here(), halves=True)]
    work = kernels.gemm_work(name, shape, [OURS, *([TORCH] if TORCH in peers else [])])
    return on_gpu(work, timer, versions, bf16=True)


def _softmax_cross_entropy_bf16(
    name: str, shape: shapes.SoftmaxCrossEntropy, timer: Timer, peers: Sequence[str]
) -> Work:
    work = kernels.softmax_cross_entropy_work(name, shape, [OURS, *([TORCH] if TORCH in peers else [])])
    versions = _versions("softmax_cross_entropy", "softmax_cross_entropy_forward")
    return on_gpu(work, timer, versions, COMPILED in peers, bf16=True)


def _host_of(name: str) -> Callable[[Any], np.ndarray]:
    return (lambda t: t.cpu().numpy()) if name == TORCH else device_named("cuda").to_host


def _our_tf32(call: Callable[..., Any]) -> Callable[..., Any]:
    def rounded(*arguments: Any) -> Any:
        with precision("tf32"):
            return call(*arguments)

    return rounded


def _torch_tf32(call: Callable[..., Any]) -> Callable[..., Any]:
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


def _with_torch(
    work: Callable[[Sequence[str]], Work],
    operation: str,
    function: str,
    timer: Timer,
    peers: Sequence[str],
    compiled: bool = False,
) -> Work:
    who = [OURS, *([TORCH] if TORCH in peers else [])]
    return on_gpu(work(who), timer, _versions(operation, function), compiled and COMPILED in peers)


def _conv2d(name: str, shape: shapes.Conv2d, gradient: bool, timer: Timer, peers: Sequence[str]) -> Work:
    work = partial(kernels.conv2d_work, name, shape, gradient)
    return _with_torch(work, "conv2d", "conv2d_forward", timer, peers)


def _conv2d_tf32(name: str, shape: shapes.Conv2d, channels_last: bool, timer: Timer, peers: Sequence[str]) -> Work:
    """On tensor cores, x and the gradient NCHW in memory, or NHWC; then torch has its weights likewise."""
    names = [n for n in versions_of("conv2d", "conv2d_forward", _here()) if n.endswith("_tf32")]
    versions = [("conv2d", version) for version in names if ("channels_last" in version) == channels_last]
    work = kernels.conv2d_work(name, shape, True, [OURS, *([TORCH] if TORCH in peers else [])])
    work = on_gpu(work, timer, versions)
    if channels_last:
        for one in work.contestants:
            lying = _torch_channels_last if one.name == TORCH else _our_channels_last
            one.inputs = [lying(*arguments) for arguments in one.inputs]
        work = replace(work, layout="NHWC")
    return _in_tf32(work)


def _our_channels_last(x: Any, weight: Any, bias: Any, grad: Any) -> tuple[Any, ...]:
    """Activations in this order; weights as layers have them."""
    x, grad = (a.transpose(0, 2, 3, 1).copy().transpose(0, 3, 1, 2) for a in (x, grad))
    return x, weight, bias, grad


def _torch_channels_last(x: Any, weight: Any, bias: Any, grad: Any) -> tuple[Any, ...]:
    import torch

    x, weight, grad = (a.contiguous(memory_format=torch.channels_last) for a in (x, weight, grad))
    return x, weight, bias, grad


def _adam(name: str, sizes: Sequence[int], timer: Timer, peers: Sequence[str]) -> Work:
    """A step over tensors of these sizes: ours, its versions, and torch's fused one."""
    values, count = optimizer_step.numbers(sizes), sum(sizes)
    sets = min(256, -(-2 * _cache_of_gpu() // (4 * 4 * count)))
    contestants: list[Contestant] = []
    for who in (OURS, *([TORCH] if TORCH in peers else [])):
        lib = library(who, "cuda")
        inputs = [(optimizer_step.optimizer(lib, values),) for _ in range(sets)]
        ways: list[tuple[str, Any, str]] = [(who, lambda function: function, detail(who))]
        if who == OURS:
            versions = [version for _, version in _versions("adam", "adam_step")]
            ways += [(f"{OURS} {v}", partial(_pinned, operation="adam", version=v), v) for v in versions]
        for called, way, said in ways:
            result = partial(way(optimizer_step.result), lib, values)
            contestants.append(GpuContestant(called, way(lambda one: one.step()), inputs, said, result, timer=timer))
    return Work(
        name,
        f"Adam over {count:,} numbers in {len(sizes)} tensors",
        contestants,
        reference=lambda: optimizer_step.reference(values),
        reference_name="rawgrad's NumPy reference in float64, three steps",
        check=lambda found, right: assert_close(found, right, 1e-6),
        flops=optimizer_step.OPERATIONS * count,
        bytes=optimizer_step.BYTES * count,
    )


def _train_step(name: str, batch: int, timer: Timer, peers: Sequence[str]) -> Work:
    who = [OURS, *([TORCH] if TORCH in peers else [])]
    work = programs.train_step(name, batch, who, "cuda")
    program = programs.PROGRAMS[name]
    contestants = [*work.contestants, programs.captured(program, batch)]
    for called, mode in ((COMPILED, "default"), (REPLAYED, "reduce-overhead")) if COMPILED in peers else ():
        compiled = replace(program, network=partial(_compiled_network, program, mode))
        one = programs.contestant(library(TORCH, "cuda"), compiled, batch)
        one.name, one.reset = called, None  # another network each turn would be compiled again
        contestants.append(one)
    return replace(work, contestants=contestants)


def _rows() -> Iterator[GpuRow]:
    first, second = shapes.p5_convolutions(100)
    general = shapes.Conv2d(16, 64, 32, 32, 64, 3, 3, 1, shapes.Pad(1, 1, 1, 1))
    square, thin = shapes.Gemm(4096, 4096, 4096), shapes.Gemm(100, 980, 10)
    pool, loss = shapes.p5_pools(100)[0], shapes.SoftmaxCrossEntropy
    for name, size in (("gemm_4096", square), ("gemm_1024", shapes.Gemm(1024, 1024, 1024)), ("gemm_100x980x10", thin)):
        yield GpuRow(name, partial(_gemm, name, size))
    yield GpuRow("gemm_4096_tf32", partial(_gemm_tf32, "gemm_4096_tf32", square))
    for n in (1024, 4096, 8192):
        yield GpuRow(f"gemm_{n}_bf16", partial(_gemm_bf16, f"gemm_{n}_bf16", shapes.Gemm(n, n, n)))
    for name, shape, gradient in (
        ("conv2d_64x64_3x3_on_32", general, True),
        ("conv2d_p5_layer1", first, False),
        ("conv2d_p5_layer2", second, True),
    ):
        yield GpuRow(name, partial(_conv2d, name, shape, gradient))
    ring, none = shapes.Pad(1, 1, 1, 1), shapes.Pad(0, 0, 0, 0)
    for name, shape in (
        ("conv2d_64x64_3x3_on_56_tf32", shapes.Conv2d(32, 64, 56, 56, 64, 3, 3, 1, ring)),
        ("conv2d_128x128_3x3_on_28_tf32", shapes.Conv2d(32, 128, 28, 28, 128, 3, 3, 1, ring)),
        ("conv2d_128x128_3x3_stride2_on_56_tf32", shapes.Conv2d(32, 128, 56, 56, 128, 3, 3, 2, ring)),
        ("conv2d_256x64_1x1_on_56_tf32", shapes.Conv2d(32, 256, 56, 56, 64, 1, 1, 1, none)),
    ):
        for called, channels_last in ((name, False), (f"{name}_nhwc", True)):
            yield GpuRow(called, partial(_conv2d_tf32, called, shape, channels_last))
    work = partial(kernels.max_pool2d_work, "max_pool2d_p5_layer1", pool)
    build = partial(_with_torch, work, "max_pool2d", "max_pool2d_forward")
    yield GpuRow("max_pool2d_p5_layer1", build)
    for N, C in ((256, 32000), (512, 131072), (512, 10)):
        name = f"softmax_cross_entropy_{N}x{C}"
        of = partial(kernels.softmax_cross_entropy_work, name, loss(N, C))
        function = "softmax_cross_entropy_forward"
        yield GpuRow(name, partial(_with_torch, of, "softmax_cross_entropy", function, compiled=True))
    name = "softmax_cross_entropy_2048x32000_bf16"  # 262 MB of traffic
    yield GpuRow(name, partial(_softmax_cross_entropy_bf16, name, loss(2048, 32000)))
    for name, sizes in (("adam_1M_in_8", (125_000,) * 8), ("adam_100M", (60_000_000, 30_000_000, 10_000_000))):
        yield GpuRow(name, partial(_adam, name, sizes))
    steps = ("p5", 100), ("p5", 512), ("p9", 100), ("p9_dropout", 100), ("p10", 100), ("p10_dropout", 100)
    for program, batch in steps:
        name = f"train_step_{program}_batch{batch}"
        yield GpuRow(name, partial(_train_step, program, batch), by_events=False)


#: The most telling ones first: the time may not suffice for all.
_FIRST = ("gemm_4096", "conv2d_64x64_3x3_on_32", "train_step_p5_batch100", "softmax_cross_entropy_256x32000")
ROWS = {row.name: row for row in sorted(_rows(), key=lambda row: row.name not in _FIRST)}


def waiting_clock() -> int:
    """Nanoseconds, when the GPU has finished its work."""
    device_named("cuda").synchronize()
    return time.perf_counter_ns()


def measured(row: GpuRow, timer: Timer, peers: Sequence[str], say: Callable[[str], None]) -> Row:
    """Measure ``row``; a contestant other than ours that is wrong or fails is named to ``say`` and left out.

    Raises:
        RawgradError: ours fails, or is wrong.
    """
    work = row.build(timer, peers)
    reference = work.reference()
    kept, missing = list[Contestant](), list[Missing]()
    for one in work.contestants:
        try:
            work.check(one.checked_result(), reference)
            one.result = lambda: None  # checked; the harness need not do it again
            kept.append(one)
        except (Exception, AssertionError) as error:
            if one.name == OURS:
                raise WrongResult(f"{work.name}: {one.name}: {error}") from error
            reason = f"{type(error).__name__}: {str(error).partition(chr(10))[0][:200]}"
            missing.append(Missing(one.name, reason))
            say(f"{work.name}: without {one.name}: {reason}")
    work = replace(work, contestants=kept, reference=lambda: None, check=lambda result, right: None)
    if row.by_events:
        done = measure(work, rounds=_ROUNDS, min_round=_MIN_ROUND, settle=0.0)
    else:
        done = measure(work, rounds=_ROUNDS, min_round=_MIN_ROUND_BY_CLOCK, settle=0.0, clock=waiting_clock)
    return replace(done, missing=missing)
