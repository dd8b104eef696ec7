"""The rows that ``rawgrad bench`` knows, by name."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import partial

from ..kernels._errors import ArgumentError
from . import forward, kernels, optimizer_step, overhead, programs
from .harness import OURS, Work
from .peers import COMPILED, problem
from .results import Missing

Builder = Callable[[Sequence[str]], Work]


@dataclass(frozen=True)
class RowSpec:
    """How a row is made.

    Attributes:
        operation: the kernel operation it measures, ``train_step``, ``forward`` or ``overhead``.
        build: makes the work for these contestants.
        peers: who can do the same work, installed or not.
        memory: whether peak memory is measured; that of a single kernel says little.
    """

    operation: str
    build: Builder
    peers: tuple[str, ...] = ("torch",)
    memory: bool = True


#: Who does whole programs, and the programs with their batches; at batch 1 it is the latency that counts.
_PROGRAM = ("torch", kernels.REFERENCE)
_SIZES = [*((name, 100) for name in programs.PROGRAMS), ("p5", 512), *((p, 1) for p in ("p5", "p8", "p9", "p10"))]


def _train_steps() -> dict[str, RowSpec]:
    return {
        f"train_step_{name}_batch{batch}": RowSpec("train_step", partial(programs.train_step, name, batch), _PROGRAM)
        for name, batch in _SIZES
    }


def _forward() -> dict[str, RowSpec]:
    return {
        f"forward_{name}_batch{batch}": RowSpec("forward", partial(forward.forward, name, batch), _PROGRAM)
        for name, batch in _SIZES
        if "dropout" not in name  # in evaluation mode it does nothing
    }


def _overhead() -> dict[str, RowSpec]:
    return {
        f"overhead_{name}_batch{batch}": RowSpec(
            "overhead", partial(overhead.overhead, name, batch), ("torch", overhead.OUTSIDE)
        )
        for name in ("p8", "p9")
        for batch in (100, 1)
    }


def _updates() -> dict[str, RowSpec]:
    return {
        name: RowSpec(
            optimizer_step.OPERATIONS[update.kind],
            partial(optimizer_step.work, name, update),
            (kernels.REFERENCE, "torch", "jax"),
            memory=False,
        )
        for name, update in optimizer_step.named().items()
    }


#: Of single kernels, those whose peak memory is measured: the goals'.
_WITH_MEMORY = (
    "conv2d_p5_layer1",
    "conv2d_p5_layer2",
    "conv2d_64x64_3x3_on_32",
    "max_pool2d_p5_layer1",
    "max_pool2d_p5_layer2",
    "softmax_cross_entropy_512x10",
    "softmax_cross_entropy_256x32000",
    "gemm_1024",
    "gemm_100x980x10",
)


def _kernels() -> dict[str, RowSpec]:
    def build(name: str, row: kernels.KernelRow, who: Sequence[str]) -> Work:
        return kernels.work(name, row.make(), who)

    return {
        name: RowSpec(row.operation, partial(build, name, row), row.peers, memory=name in _WITH_MEMORY)
        for name, row in kernels.named().items()
    }


ROWS: dict[str, RowSpec] = {
    **_train_steps(),
    **_forward(),
    **_overhead(),
    **_kernels(),
    **_updates(),
}


def of_operation(operation: str) -> list[str]:
    """The names of the rows that measure ``operation``."""
    return [name for name, spec in ROWS.items() if spec.operation == operation]


#: Those of ``rawgrad bench --quick``: a whole step, and one row of each operation that matters, dearest first.
QUICK = (
    "train_step_p5_batch100",
    "conv2d_p5_layer2",
    "gemm_1024",
    "max_pool2d_p5_layer1",
    "softmax_cross_entropy_256x32000",
    "train_step_p9_batch100",
    "layer_norm_gpt_768_backward",
    "adam_1M_in_160",
)

#: Those of ``rawgrad bench`` alone: training steps, and every operation, in the sizes that matter most.
USUAL = (
    "train_step_p5_batch100",
    "train_step_p9_batch100",
    "train_step_p10_batch100",
    "train_step_p5_batch1",
    "forward_p5_batch100",
    "forward_p5_batch1",
    "conv2d_p5_layer2",
    "conv2d_64x64_3x3_on_32",
    "conv2d_resnet_3x3_stride2_forward",
    "gemm_1024",
    "gemm_100x980x10",
    "gemm_linear_gpt_mlp_in_forward",
    "max_pool2d_p5_layer1",
    "avg_pool2d_densenet_2x2_forward",
    "softmax_cross_entropy_512x10",
    "softmax_cross_entropy_256x32000",
    "softmax_attention_forward",
    "activation_gelu_gpt_mlp_forward",
    "activation_relu_resnet_backward",
    "dropout_gpt_mlp",
    "batch_norm_resnet_56_forward",
    "batch_norm_resnet_56_backward",
    "layer_norm_gpt_768_forward",
    "layer_norm_gpt_768_backward",
    "group_norm_resnet_56_forward",
    "embedding_gpt_forward",
    "embedding_gpt_backward",
    "sgd_1M_in_160",
    "adagrad_1M_in_160",
    "rmsprop_1M_in_160",
    "adam_1M_in_160",
    "adam_10M",
)

#: What takes minutes and runs in processes of its own: only by name.
TRAININGS = ("time_to_accuracy", "import", "first_step")


def named(names: Sequence[str]) -> list[str]:
    """The rows of these names; the name of an operation stands for all of its rows.

    Raises:
        ArgumentError: there is none of a name; the message lists those there are.
    """
    found: list[str] = []
    for name in names:
        found += [name] if name in TRAININGS else of_operation(name) or [_known(name)]
    return found


def operations() -> list[str]:
    """Whose rows there are."""
    return [*dict.fromkeys(spec.operation for spec in ROWS.values())]


def choices(name: str, rows: Iterable[str], operations: Sequence[str], others: Sequence[str] = ()) -> str:
    """In words what could have been meant by ``name``."""
    near = get_close_matches(name, [*rows, *operations, *others], 4, 0.5)
    known = f"one of --list, or an operation of {', '.join([*operations, *others])}"
    return f"{known} (near: {', '.join(near)})" if near else known


def _known(name: str) -> str:
    if name not in ROWS:
        raise ArgumentError(f"bench: row must be {choices(name, ROWS, operations(), TRAININGS)}; got {name!r}")
    return name


def spec(name: str) -> RowSpec:
    """The row ``name``.

    Raises:
        ArgumentError: there is none; the message lists those there are.
    """
    return ROWS[_known(name)]


def _asked(name: str, compiled: bool) -> list[str]:
    """The peers of the row; ``torch.compile`` only if ``compiled``."""
    return [peer for peer in spec(name).peers if compiled or peer != COMPILED]


def contestants(name: str, compiled: bool = False) -> list[str]:
    """rawgrad and those peers of the row that are installed here."""
    always = {"numpy", "scipy", kernels.REFERENCE, overhead.OUTSIDE}
    return [OURS, *(peer for peer in _asked(name, compiled) if peer in always or problem(peer) is None)]


def missing(name: str, compiled: bool = False) -> list[Missing]:
    """The peers of row ``name`` that are not installed here, each with its reason."""
    here = contestants(name, compiled)
    return [Missing(one, problem(one) or "it takes no part") for one in _asked(name, compiled) if one not in here]


def build(name: str, who: Sequence[str] | None = None) -> Work:
    """The work of row ``name`` for the contestants ``who``, by default all that are here.

    Raises:
        ArgumentError: no such row, or a contestant that does not do it.
        BackendError: a peer that is not installed.
    """
    who = contestants(name) if who is None else who
    known = (OURS, *spec(name).peers)
    for one in who:
        if one not in known:
            raise ArgumentError(f"bench: contestant of {name} must be one of {', '.join(known)}; got {one!r}")
    return spec(name).build(who)
