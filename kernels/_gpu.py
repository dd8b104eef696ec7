"""What a program asks of the GPU as a whole; public as ``rawgrad.cuda``."""

from __future__ import annotations

from ._devices import device_named
from ._dispatch import BACKENDS


def is_available() -> bool:
    """Whether arrays can live on an NVIDIA GPU here and rawgrad has kernels that run on them.

    If not, ``rawgrad.backends()["cuda"]`` and ``rawgrad doctor`` say why.
    """
    return BACKENDS["cuda"].problem() is None


def synchronize() -> None:
    """Wait until the GPU has finished all work given to it.

    Raises:
        DeviceError: there is no GPU here that rawgrad can use.
    """
    device_named("cuda").array_module.cuda.runtime.deviceSynchronize()
