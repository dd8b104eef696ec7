"""Which kernel it was: the names of the last launches, for errors that arrive later.

A GPU runs behind the host.  A kernel that reads where it must not, or never ends, shows as an error of
whatever is called next, and of everything after it: the process has lost the GPU.  So that error names
the kernels launched last.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

from .._errors import LaunchError

#: Errors that a kernel causes and that stay: ECC, illegal address, timeout, assert, stack, instruction,
#: misaligned address, address space, program counter, launch failure.  CUDA's driver and runtime number them alike.
_OF_KERNELS = {214, 700, 702, 710, 714, 715, 716, 717, 718, 719}

#: Names of the kernels launched last, the newest at the end.
recent: deque[str] = deque(maxlen=8)


@contextmanager
def faults_named() -> Iterator[None]:
    """Turn an error that some kernel caused into a :class:`LaunchError` with the names of the last launches."""
    try:
        yield
    except RuntimeError as error:  # CuPy's errors of driver and runtime are such, with a number
        if getattr(error, "status", None) not in _OF_KERNELS:
            raise
        raise LaunchError(f"{_suspects()}: {error}") from error


def launch_error(name: str, error: Exception, configuration: str) -> LaunchError:
    """The error of a refused launch of kernel ``name``: its own, or an earlier kernel's that shows only now."""
    if getattr(error, "status", None) in _OF_KERNELS:
        return LaunchError(f"{name} was not launched: {_suspects()}: {error}")
    return LaunchError(f"{name} was not launched with {configuration}: {error}")


def _suspects() -> str:
    if os.environ.get("RAWGRAD_DEBUG") and recent:
        return f"{recent[-1]} failed on the GPU"
    last = ", ".join(reversed(recent)) or "none of rawgrad's"
    return (
        f"a kernel launched earlier failed, and this process has lost the GPU; last launched, newest first: {last} "
        "(RAWGRAD_DEBUG=1 waits for each and names the one)"
    )
