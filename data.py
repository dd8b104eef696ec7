"""Data sets, loaders and checks: the public page of ``engine/data``."""

from __future__ import annotations

from .engine.data import *  # noqa: F403
from .engine.data import __all__ as __all__
