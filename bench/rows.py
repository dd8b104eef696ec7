"""The rows that ``rawgrad bench`` knows, by name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from ..kernels._errors import ArgumentError
from . import kernels, overhead, programs, shapes
from .harness import OURS, Work
from .peers import available, problem
from .results import Missing

Builder = Callable[[Sequence[str]], Work]


@dataclass(frozen=True)
class RowSpec:
    """How a row is made.

    Attributes:
        operation: the kernel operation it measures, ``train_step``, or ``overhead``.
        build: makes the work for these contestants.
        peers: who can do the same work, installed or not.
    """

    operation: str
    build: Builder
    peers: tuple[str, ...] = ("torch",)


def _train_steps() -> dict[str, RowSpec]:
    sizes = [(name, 100) for name in programs.PROGRAMS] + [("p5", 512)]
    return {
        f"train_step_{name}_batch{batch}": RowSpec("train_step", partial(programs.train_step, name, batch))
        for name, batch in sizes
    }


def _overhead() -> dict[str, RowSpec]:
    return {
        f"overhead_{name}_batch{batch}": RowSpec(
            "overhead", partial(overhead.overhead, name, batch), ("torch", overhead.OUTSIDE)
        )
        for name in ("p8", "p9")
        for batch in (100, 1)
    }


def _gemm() -> dict[str, RowSpec]:
    sizes = {"gemm_1024": shapes.Gemm(1024, 1024, 1024), "gemm_100x980x10": shapes.Gemm(100, 980, 10)}
    return {
        name: RowSpec("gemm", partial(kernels.gemm_work, name, shape), ("numpy", "torch"))
        for name, shape in sizes.items()
    }


def _conv2d() -> dict[str, RowSpec]:
    first, second = shapes.p5_convolutions(100)
    general = shapes.Conv2d(16, 64, 32, 32, 64, 3, 3, 1, shapes.Pad(1, 1, 1, 1))
    return {  # the program's input needs no gradient
        name: RowSpec("conv2d", partial(kernels.conv2d_work, name, shape, input_gradient))
        for name, shape, input_gradient in (
            ("conv2d_p5_layer1", first, False),
            ("conv2d_p5_layer2", second, True),
            ("conv2d_64x64_3x3_on_32", general, True),
        )
    }


def _max_pool2d() -> dict[str, RowSpec]:
    sizes = zip(("max_pool2d_p5_layer1", "max_pool2d_p5_layer2"), shapes.p5_pools(100), strict=True)
    return {name: RowSpec("max_pool2d", partial(kernels.max_pool2d_work, name, shape)) for name, shape in sizes}


def _softmax_cross_entropy() -> dict[str, RowSpec]:
    sizes = {f"softmax_cross_entropy_{N}x{C}": shapes.SoftmaxCrossEntropy(N, C) for N, C in ((512, 10), (256, 32000))}
    return {
        name: RowSpec("softmax_cross_entropy", partial(kernels.softmax_cross_entropy_work, name, shape))
        for name, shape in sizes.items()
    }


ROWS: dict[str, RowSpec] = {
    **_train_steps(),
    **_overhead(),
    **_conv2d(),
    **_max_pool2d(),
    **_softmax_cross_entropy(),
    **_gemm(),
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
)

#: What takes minutes and runs in processes of its own: only by name.
TRAININGS = ("time_to_accuracy",)


def named(names: Sequence[str]) -> list[str]:
    """The rows of these names; the name of an operation stands for all of its rows.

    Raises:
        ArgumentError: there is none of a name; the message lists those there are.
    """
    found: list[str] = []
    for name in names:
        found += [name] if name in TRAININGS else of_operation(name) or [_known(name)]
    return found


def _known(name: str) -> str:
    if name not in ROWS:
        raise ArgumentError(f"bench: row must be one of {', '.join([*ROWS, *TRAININGS])}; got {name!r}")
    return name


def spec(name: str) -> RowSpec:
    """The row ``name``.

    Raises:
        ArgumentError: there is none; the message lists those there are.
    """
    return ROWS[_known(name)]


def contestants(name: str) -> list[str]:
    """rawgrad and those peers of the row that are installed here."""
    installed = {"numpy", overhead.OUTSIDE, *available()}
    return [OURS, *(peer for peer in spec(name).peers if peer in installed)]


def missing(name: str) -> list[Missing]:
    """The peers of row ``name`` that are not installed here, each with its reason."""
    here = contestants(name)
    return [Missing(peer, problem(peer) or "it takes no part") for peer in spec(name).peers if peer not in here]


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
