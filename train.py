"""The training loop, callbacks and checkpoints: the public page of ``engine/train``."""

from __future__ import annotations

from .engine.train import *  # noqa: F403
from .engine.train import __all__ as __all__
