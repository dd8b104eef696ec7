"""What rawgrad must reach on two cores of a CPU, row by row."""

from __future__ import annotations

from dataclasses import dataclass

from ..results import Row


@dataclass(frozen=True)
class Goal:
    """Of a row.

    Attributes:
        peer: with whom it is compared.
        times: the peer's time over rawgrad's, at least.
        fraction: of the machine's limit, at least; None where that is no goal.
    """

    peer: str
    times: float
    fraction: float | None = None

    @property
    def most(self) -> float:
        """rawgrad's time over the peer's, at most."""
        return 1 / self.times


_STEP = Goal("torch", 2.0)
#: Threads of the rows that these goals are for.
_THREADS = 2
_CPU = {
    **{f"train_step_{name}_batch100": _STEP for name in ("p5", "p9", "p9_dropout", "p10", "p10_dropout")},
    "train_step_p5_batch512": _STEP,
    "conv2d_p5_layer1": Goal("torch", 2.0, 0.5),
    "conv2d_p5_layer2": Goal("torch", 2.0, 0.5),
    "conv2d_64x64_3x3_on_32": Goal("torch", 1.2),
    "max_pool2d_p5_layer1": Goal("torch", 3.0),
    "max_pool2d_p5_layer2": Goal("torch", 3.0),
    "softmax_cross_entropy_512x10": Goal("torch", 2.0),
    "softmax_cross_entropy_256x32000": Goal("torch", 2.0),
    "gemm_1024": Goal("numpy", 0.95),
    "gemm_100x980x10": Goal("torch", 2.0),
    "time_to_accuracy": Goal("torch", 2.0),
}


def goal_of(row: Row, gpu: bool) -> Goal | None:
    """The goal of ``row``, measured on a ``gpu`` or not; None where there is none."""
    return None if gpu or row.threads != _THREADS else _CPU.get(row.name)
