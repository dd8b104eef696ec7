"""The embedded default: a small CNN on the digits that come with scikit-learn; nothing is downloaded."""

from __future__ import annotations

from .options import Options
from .training import Result, Task, train

TASK = Task("small_cnn", data="digits", optimizer="adam", lr=0.002, schedule="cosine", epochs=20, batch_size=32)


def run(options: Options) -> Result:
    """Train on 1,257 images of 8x8 pixels, test on 270."""
    return train(TASK, options)
