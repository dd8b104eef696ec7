"""The NVIDIA GPU: whether it can be used, and waiting for it."""

from __future__ import annotations

from .kernels._gpu import is_available, synchronize

__all__ = ["is_available", "synchronize"]
