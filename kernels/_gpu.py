"""What a program asks of the GPU as a whole; public as ``rawgrad.cuda``."""

from __future__ import annotations

from ._devices import device_named
from ._dispatch import BACKENDS, current_choice
from ._errors import DeviceError


def is_available() -> bool:
    """Whether ``device="cuda"`` can be used, arrays and kernels, with the backend that is active.

    That is an NVIDIA GPU that CuPy sees, or the simulated one while the backend ``emulated`` is
    active.  If not, ``rawgrad.backends()`` and ``rawgrad doctor`` say why.
    """
    if BACKENDS[current_choice().for_device("cuda") or "cuda"].problem() is not None:
        return False
    try:
        device_named("cuda")
    except DeviceError:
        return False
    return True


def synchronize() -> None:
    """Wait until the GPU has finished all work given to it.

    Raises:
        DeviceError: there is no GPU here that rawgrad can use, and none is simulated.
        LaunchError: a kernel failed; the last ones launched are named.
        RawgradError: a kernel met bad data, a label out of range for example.
    """
    device_named("cuda").synchronize()
