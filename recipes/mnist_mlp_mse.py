"""P3: a small network that gives the label as a number, trained with the squared error."""

from __future__ import annotations

from .curves import Named
from .options import Options
from .repeated import Repeated
from .repeated import run as run_repeated
from .training import Result, Task

TASK = Task("mlp", {"hidden": (10, 10), "outputs": 1}, loss="mse of the label", lr=0.01, epochs=5)
NAMED = (
    Named("first ten steps", 0, 10, 20.6),
    Named("last epoch", -500, None, 2.5),
)


def run(options: Options) -> Result | Repeated:
    """784-10-10-1 with sigmoids, plain SGD; ``--seeds 5`` prints the bands of its curve."""
    return run_repeated(TASK, options, NAMED, "P3, MLP with MSE")
