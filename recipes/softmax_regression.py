"""P8: one linear layer, loss summed over the batch, plain SGD: 10,000 steps."""

from __future__ import annotations

from .options import Options
from .training import Result, Task, train

TASK = Task("mlp", loss="summed cross entropy", lr=0.003, epochs=20)


def run(options: Options) -> Result:
    """784-10; 20 epochs of 500 batches are the 10,000 steps."""
    return train(TASK, options)
