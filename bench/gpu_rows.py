"""The rows of the bench on an NVIDIA GPU, beside cuBLAS and cuDNN (through CuPy and PyTorch), PyTorch, Liger, JAX.

Single kernels are the cases of :mod:`.cases`, with contestants from :mod:`.gpu_contestants`.  Training steps are
timed as a user sees them: by the host's clock with the GPU waited for at the end of each turn.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from ..kernels._errors import ArgumentError
from . import cases, optimizer_step, programs, shapes
from .cases import BACKWARD, BOTH, FORWARD, Case
from .gpu_contestants import (
    CUPY,
    JAX,
    LIGER,
    REPLAYED,
    TORCH,
    EventTimer,
    GpuContestant,
    Setting,
    Timer,
    captured,
    on_gpu,
    pinned,
    sets_past_cache,
    versions_of_operation,
    waiting_clock,
)
from .gpu_limits import GpuLimits
from .harness import OURS, Contestant, Work, WrongResult, measure
from .peers import COMPILED, Library, detail, library
from .results import Missing, Row
from .rows import choices
from .shapes import networks

__all__ = [
    "COMPILED",
    "CUPY",
    "JAX",
    "LIGER",
    "ROWS",
    "TORCH",
    "EventTimer",
    "GpuLimits",
    "GpuRow",
    "measured",
    "named",
]

_ROUNDS = 10
#: Seconds of a turn: by events, which resolve a microsecond, and by the host's clock.
_MIN_ROUND, _MIN_ROUND_BY_CLOCK = 0.002, 0.05
#: With torch's own capture: its compiler replays CUDA graphs.
_COMPILED_GRAPHS = "torch compiled, CUDA graphs"
#: Launches in the graph of an empty kernel.
_LAUNCHES = 100


@dataclass(frozen=True)
class GpuRow:
    """How a row is made, and how it is timed.

    Attributes:
        operation: the folder in ``kernels/``, ``train_step``, or ``launch``.
        build: makes the work with a timer, for these peers.
        by_events: whether by CUDA events; else by the host's clock.
        precision: of the products that its limit is taken from.
    """

    name: str
    build: Callable[[Timer, Sequence[str]], Work]
    by_events: bool = True
    operation: str = ""
    precision: str = "float32"


def _compiled_network(program: programs.Program, mode: str, lib: Library) -> Any:
    import torch

    return torch.compile(program.network(lib), mode=mode)


def _update(name: str, update: shapes.Update, timer: Timer, peers: Sequence[str]) -> Work:
    """An optimizer's step: ours, its versions, and torch's fused one."""
    values, operation = optimizer_step.numbers(update.sizes), optimizer_step.OPERATIONS[update.kind]
    sets = sets_past_cache(update.bytes())
    contestants: list[Contestant] = []
    for who in (OURS, *([TORCH] if TORCH in peers else [])):
        lib = library(who, "cuda")
        inputs = [(optimizer_step.optimizer(lib, update.kind, values),) for _ in range(sets)]
        ways: list[tuple[str, Any, str]] = [(who, lambda function: function, detail(who))]
        if who == OURS:
            names = versions_of_operation(operation, f"{operation}_step")
            ways += [(f"{OURS} {v}", partial(pinned, operation=operation, version=v), v) for v in names]
        for called, way, said in ways:
            result = partial(way(optimizer_step.result), lib, update.kind, values)
            contestants.append(GpuContestant(called, way(lambda one: one.step()), inputs, said, result, timer=timer))
    return optimizer_step.figures(name, update, contestants, values)


def _train_step(name: str, batch: int, timer: Timer, peers: Sequence[str]) -> Work:
    who = [OURS, *([TORCH] if TORCH in peers else [])]
    work = programs.train_step(name, batch, who, "cuda")
    program = programs.PROGRAMS[name]
    contestants = [*work.contestants, programs.captured(program, batch)]
    for called, mode in ((COMPILED, "default"), (_COMPILED_GRAPHS, "reduce-overhead")) if COMPILED in peers else ():
        compiled = replace(program, network=partial(_compiled_network, program, mode))
        one = programs.contestant(library(TORCH, "cuda"), compiled, batch)
        one.name, one.reset = called, None  # another network each turn would be compiled again
        contestants.append(one)
    return replace(work, contestants=contestants)


def _empty_kernel(name: str, timer: Timer, peers: Sequence[str]) -> Work:
    """What a launch costs the GPU: one after the other, and in a graph."""

    def many() -> None:
        for _ in range(_LAUNCHES):
            timer.empty()

    graphs: list[Any] = []

    def replay() -> None:
        if not graphs:
            graphs.append(captured(many)[0])
        graphs[0].replay()

    nothing: Any = lambda: None  # noqa: E731
    return Work(
        name,
        f"a kernel that does nothing, {_LAUNCHES} times: queued on a stream, and replayed from a CUDA graph",
        [GpuContestant(who, call, result=nothing, timer=timer) for who, call in ((OURS, many), (REPLAYED, replay))],
        reference=nothing,
        reference_name="none: it has no result",
        check=lambda result, right: None,
    )


def _row(name: str, case: Case | Callable[[], Case], setting: Setting, operation: str, precision: str) -> GpuRow:
    def build(timer: Timer, peers: Sequence[str]) -> Work:
        return on_gpu(name, case() if callable(case) else case, timer, peers, setting)

    return GpuRow(name, build, operation=operation, precision=precision)


_RING, _NONE = shapes.Pad(1, 1, 1, 1), shapes.Pad(0, 0, 0, 0)
_PLAIN, _TF32, _FUSING = Setting(), Setting(tf32=True), Setting(compiled=True)


def _products() -> Iterator[GpuRow]:
    sizes = {f"{n}": shapes.Gemm(n, n, n) for n in (4096, 1024)} | {"100x980x10": shapes.Gemm(100, 980, 10)}
    sizes["odd"] = networks.GEMM["odd"]
    for name, shape in sizes.items():
        yield _row(f"gemm_{name}", cases.gemm_case(shape), _PLAIN, "gemm", "float32")
    yield _row("gemm_4096_tf32", cases.gemm_case(shapes.Gemm(4096, 4096, 4096)), _TF32, "gemm", "tf32")
    yield _row("gemm_2048_float64", cases.gemm_case(shapes.Gemm(2048, 2048, 2048, 8)), _PLAIN, "gemm", "float64")
    for n in (1024, 4096, 8192):
        yield _row(f"gemm_{n}_bf16", cases.gemm_case(shapes.Gemm(n, n, n, 2)), _PLAIN, "gemm", "bfloat16")
    linear = shapes.Linear(8192, 768, 3072)
    for kind in (FORWARD, BACKWARD):
        for precision, itemsize in (("float32", 4), ("bfloat16", 2)):
            name = f"gemm_linear_gpt_mlp_in_{kind}{'_bf16' if itemsize == 2 else ''}"
            yield _row(name, cases.linear_case(replace(linear, itemsize=itemsize), kind), _PLAIN, "gemm", precision)


def _convolutions() -> Iterator[GpuRow]:
    first, second = shapes.p5_convolutions(100)
    general = shapes.Conv2d(16, 64, 32, 32, 64, 3, 3, 1, _RING)
    for name, shape, gradient in (
        ("conv2d_64x64_3x3_on_32", general, True),
        ("conv2d_p5_layer1", first, False),
        ("conv2d_p5_layer2", second, True),
    ):
        yield _row(name, cases.conv2d_case(shape, BOTH, gradient), _PLAIN, "conv2d", "float32")
    for name, shape in (
        ("conv2d_64x64_3x3_on_56_tf32", shapes.Conv2d(32, 64, 56, 56, 64, 3, 3, 1, _RING)),
        ("conv2d_128x128_3x3_on_28_tf32", shapes.Conv2d(32, 128, 28, 28, 128, 3, 3, 1, _RING)),
        ("conv2d_128x128_3x3_stride2_on_56_tf32", shapes.Conv2d(32, 128, 56, 56, 128, 3, 3, 2, _RING)),
        ("conv2d_256x64_1x1_on_56_tf32", shapes.Conv2d(32, 256, 56, 56, 64, 1, 1, 1, _NONE)),
    ):
        for called, channels_last in ((name, False), (f"{name}_nhwc", True)):
            setting = Setting(tf32=True, channels_last=channels_last)
            yield _row(called, cases.conv2d_case(shape), setting, "conv2d", "tf32")
    for name, shape in networks.CONV2D.items():
        larger = shape if name == "odd" else replace(shape, N=16)
        for kind in (FORWARD, BACKWARD):
            yield _row(f"conv2d_{name}_{kind}", cases.conv2d_case(larger, kind), _PLAIN, "conv2d", "float32")


#: Sizes whose forward pass moves 256 MB or more, but for odd ones.
_LARGE: tuple[tuple[str, Callable[..., Case], dict[str, Any]], ...] = (
    (
        "max_pool2d",
        cases.max_pool2d_case,
        {"resnet_stem": shapes.MaxPool2d(64, 64, 112, 112, 3, 2, 1), "2x2": shapes.MaxPool2d(128, 64, 80, 80, 2, 2)},
    ),
    (
        "avg_pool2d",
        cases.avg_pool2d_case,
        {
            "densenet_2x2": shapes.AvgPool2d(256, 64, 56, 56, 2, 2),
            "resnet_global": shapes.AvgPool2d(2048, 512, 7, 7, 7, 7),
        },
    ),
    (
        "softmax",
        cases.softmax_case,
        {"attention": shapes.Softmax(65536, 512), "vocabulary": shapes.Softmax(1024, 32000),
         "odd": networks.SOFTMAX["odd"]},
    ),
    (
        "activation",
        cases.activation_case,
        {kind: shapes.Activation(8192, 4096, kind=kind) for kind in ("relu", "gelu", "sigmoid")},
    ),
    ("batch_norm", cases.batch_norm_case, {"resnet_56": shapes.BatchNorm(64, 256, 56, 56)}),
    (
        "layer_norm",
        cases.layer_norm_case,
        {"gpt_768": shapes.LayerNorm(49152, 768), "4096": shapes.LayerNorm(8192, 4096),
         "odd": networks.LAYER_NORM["odd"]},
    ),
    ("group_norm", cases.group_norm_case, {"resnet_56": shapes.GroupNorm(64, 256, 56, 56, groups=32)}),
    ("embedding", cases.embedding_case, {"gpt": shapes.Embedding(49152, 50257, 768)}),
)  # fmt: skip


def _of_bandwidth() -> Iterator[GpuRow]:
    pool = shapes.p5_pools(100)[0]
    yield _row("max_pool2d_p5_layer1", cases.max_pool2d_case(pool), _PLAIN, "max_pool2d", "float32")
    for operation, make, of in _LARGE:
        setting = _PLAIN if operation.endswith("pool2d") or operation == "embedding" else _FUSING
        for name, shape in of.items():
            for kind in (FORWARD, BACKWARD):
                yield _row(f"{operation}_{name}_{kind}", partial(make, shape, kind), setting, operation, "float32")
    dropout = partial(cases.dropout_case, shapes.Dropout(8192, 4096))
    yield _row("dropout_8192x4096", dropout, _FUSING, "dropout", "float32")
    for N, C, itemsize in ((256, 32000, 4), (512, 131072, 4), (512, 10, 4), (2048, 32000, 2)):
        case = cases.softmax_cross_entropy_case(shapes.SoftmaxCrossEntropy(N, C, itemsize))
        precision, suffix = ("bfloat16", "_bf16") if itemsize == 2 else ("float32", "")
        name = f"softmax_cross_entropy_{N}x{C}{suffix}"  # in bfloat16 262 MB of traffic
        yield _row(name, case, _FUSING, "softmax_cross_entropy", precision)


def _updates() -> Iterator[GpuRow]:
    sizes = networks.UPDATE_SIZES | {"100M": (60_000_000, 30_000_000, 10_000_000)}
    for kind, operation in optimizer_step.OPERATIONS.items():
        for name in ("1M_in_8", "1M_in_160", "100M") if kind == "adam" else ("1M_in_160", "10M"):
            called = f"{kind}_{name}"
            yield GpuRow(called, partial(_update, called, shapes.Update(kind, sizes[name])), operation=operation)


def _steps() -> Iterator[GpuRow]:
    steps = ("p5", 100), ("p5", 512), ("p9", 100), ("p9_dropout", 100), ("p10", 100), ("p10_dropout", 100)
    for program, batch in steps:
        name = f"train_step_{program}_batch{batch}"
        yield GpuRow(name, partial(_train_step, program, batch), by_events=False, operation="train_step")


def _rows() -> Iterator[GpuRow]:
    yield GpuRow("empty_kernel", partial(_empty_kernel, "empty_kernel"), operation="launch")
    for rows in (_products(), _convolutions(), _of_bandwidth(), _updates(), _steps()):
        yield from rows


#: The most telling ones first: the time may not suffice for all.
_FIRST = (
    "empty_kernel",
    "gemm_4096",
    "gemm_8192_bf16",
    "conv2d_64x64_3x3_on_32",
    "train_step_p5_batch100",
    "softmax_cross_entropy_256x32000",
    "layer_norm_4096_forward",
    "adam_100M",
)
_LAST = ("_odd", "_backward")


def _place(row: GpuRow) -> tuple[bool, bool]:
    """First those of :data:`_FIRST`; last the odd ones, and backward passes."""
    return row.name not in _FIRST, any(part in row.name for part in _LAST)


ROWS = {row.name: row for row in sorted(_rows(), key=_place)}


def named(names: Sequence[str]) -> dict[str, GpuRow]:
    """The rows of these names; that of an operation stands for all of its rows, and none for every row.

    Raises:
        ArgumentError: there is none of a name; the message lists those there are.
    """
    found: dict[str, GpuRow] = {}
    for name in names or ROWS:
        of_it = {n: row for n, row in ROWS.items() if name in (n, row.operation)}
        if not of_it:
            operations = [*dict.fromkeys(row.operation for row in ROWS.values())]
            raise ArgumentError(f"bench: row must be {choices(name, ROWS, operations)}; got {name!r}")
        found |= of_it
    return found


def measured(
    row: GpuRow,
    timer: Timer,
    peers: Sequence[str],
    say: Callable[[str], None],
    limits: GpuLimits | None = None,
) -> Row:
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
    for absent in (*work.missing, *missing):
        say(f"{work.name}: without {absent.name}: {absent.reason}")
    missing = [*work.missing, *missing]
    work = replace(work, contestants=kept, reference=lambda: None, check=lambda result, right: None, missing=missing)
    rates = None if limits is None else partial(limits.rates, row.precision)
    if row.by_events:
        return measure(work, rounds=_ROUNDS, min_round=_MIN_ROUND, settle=0.0, rates=rates)
    return measure(work, rounds=_ROUNDS, min_round=_MIN_ROUND_BY_CLOCK, settle=0.0, clock=waiting_clock, rates=rates)
