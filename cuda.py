"""The NVIDIA GPU: whether it can be used, and waiting for it.

``rawgrad doctor`` prints, for every backend, why it does not run here.
"""

from __future__ import annotations

from .kernels._devices import device_named
from .kernels._dispatch import BACKENDS

__all__ = ["is_available", "synchronize"]


def is_available() -> bool:
    """Whether arrays can live on an NVIDIA GPU here and rawgrad has kernels that run on them."""
    return BACKENDS["cuda"].problem() is None


def synchronize() -> None:
    """Wait until the GPU has finished all work given to it.

    Raises:
        DeviceError: there is no GPU here that rawgrad can use.
    """
    device_named("cuda").array_module.cuda.runtime.deviceSynchronize()
