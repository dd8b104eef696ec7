"""P5: two convolutions with pooling and a linear layer, softmax cross-entropy."""

from __future__ import annotations

from .curves import Named
from .options import Options
from .repeated import Repeated
from .repeated import run as run_repeated
from .training import Result, Task

TASK = Task("cnn", optimizer="adam", lr=0.002, schedule="cosine", epochs=6)
SGD = Task("cnn", optimizer="sgd", lr=0.01, epochs=5)
NAMED = (
    Named("first ten steps", 0, 10, 2.36),
    Named("last epoch", -500, None, 0.10),
)


def run(options: Options) -> Result | Repeated:
    """Adam to over 99 %; with ``--optimizer sgd`` five epochs of plain SGD, and ``--seeds 5`` its bands."""
    if options.optimizer == "sgd":
        return run_repeated(SGD, options, NAMED, "P5, CNN with softmax cross-entropy")
    return run_repeated(TASK, options, (), "P5 with Adam")
