"""The NVIDIA GPU: whether it can be used, waiting for it, and kernels of your own."""

from __future__ import annotations

from .kernels._gpu import is_available, synchronize
from .kernels._launch import Kernel

__all__ = ["Kernel", "is_available", "synchronize"]
