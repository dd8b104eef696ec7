"""The NVIDIA GPU: whether it can be used, waiting for it, steps captured to be replayed, and kernels of your own."""

from __future__ import annotations

from .autograd.capture import Graph, graphed
from .kernels._gpu import is_available, synchronize
from .kernels._launch import Kernel
from .kernels._tensor_map import TensorMap

__all__ = ["Graph", "Kernel", "TensorMap", "graphed", "is_available", "synchronize"]
