"""P10: convolutions with strides instead of pooling; a small one, then a larger one with dropout."""

from __future__ import annotations

from .options import Options
from .several import Several
from .several import run as run_several
from .training import Task

_SMALL = Task("strided_cnn", optimizer="adam", lr=0.0031, schedule="decay to a floor", epochs=20)
_LARGE = Task(
    "strided_cnn", {"channels": (6, 12, 24), "first": 6, "dropout": 0.25},
    optimizer="adam", lr=0.0031, schedule="decay to a floor", epochs=20,
)  # fmt: skip
SIZES = {"4-8-12 channels": _SMALL, "6-12-24 channels, dropout": _LARGE}


def run(options: Options) -> Several:
    """28 -> 28 -> 14 -> 7, linear 200, linear 10; 10,000 steps each."""
    return run_several(SIZES, options, "P10, convolutions with strides")
