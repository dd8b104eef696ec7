"""P4: the CNN of P5 with a single output that gives the label as a number."""

from __future__ import annotations

from .curves import Named
from .options import Options
from .repeated import Repeated
from .repeated import run as run_repeated
from .training import Result, Task

# The layers' own initialisation: with larger first outputs the squared error at this learning rate kills every ReLU.
TASK = Task("cnn", {"outputs": 1, "start": None}, loss="mse of the label", lr=0.01, epochs=5)
NAMED = (
    Named("first ten steps", 0, 10, 16.6),
    Named("last epoch", -500, None, 2.3),
)


def run(options: Options) -> Result | Repeated:
    """Squared error, plain SGD; ``--seeds 5`` prints the bands of its curve."""
    return run_repeated(TASK, options, NAMED, "P4, CNN with MSE")
