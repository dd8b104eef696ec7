"""P9: five fully connected layers, improved in four steps of one change each; 10,000 steps a run."""

from __future__ import annotations

from dataclasses import replace

from .options import Options
from .several import Several
from .several import run as run_several
from .training import Task

HIDDEN = (200, 100, 60, 30)
_SIGMOID = Task("mlp", {"hidden": HIDDEN}, optimizer="adam", lr=0.003, epochs=20)
_RELU = replace(_SIGMOID, arguments={"hidden": HIDDEN, "activation": "relu", "start": "truncated normal"})
_DECAY = replace(_RELU, lr=0.0031, schedule="decay to a floor")
_DROPOUT = replace(_DECAY, arguments={**_RELU.arguments, "dropout": 0.25})
LADDER = {"1 sigmoid": _SIGMOID, "2 relu": _RELU, "3 learning-rate decay": _DECAY, "4 dropout": _DROPOUT}


def run(options: Options) -> Several:
    """784-200-100-60-30-10: sigmoid; ReLU; then a decaying learning rate; then dropout (keep 0.75)."""
    return run_several(LADDER, options, "P9, five layers")
