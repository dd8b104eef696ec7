"""Whether the Numba twins run here: on an NVIDIA GPU, or in Numba's simulator.  Asking does not import Numba.

Numba decides when it is imported: with ``NUMBA_ENABLE_CUDASIM=1`` its CUDA kernels are run as Python
functions, with a Python thread for each thread of a block.  The arrays are then those of the simulated
GPU of :mod:`kernels._emulator`; its C++ compiler is not needed.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from functools import cache
from pathlib import Path

from . import device

_HOW = "NUMBA_ENABLE_CUDASIM=1, set before the process starts, runs it in Numba's simulator"


def simulated() -> bool:
    """Whether the twins run in Numba's simulator in this process."""
    loaded = getattr(sys.modules.get("numba"), "config", None)
    return _asked() if loaded is None else bool(loaded.ENABLE_CUDASIM)


def _asked() -> bool:
    return os.environ.get("NUMBA_ENABLE_CUDASIM", "0").strip() not in ("", "0")


@cache
def problem() -> str | None:
    """Why the twins cannot run here, or None if they can."""
    if simulated():
        return (
            None
            if _has_simulator()
            else "NUMBA_ENABLE_CUDASIM is set, but the Numba that is installed has no simulator"
        )
    if _asked():
        return "NUMBA_ENABLE_CUDASIM was set after Numba had been imported; set it before the process starts"
    missing = [name for name in ("numba_cuda", "cupy") if importlib.util.find_spec(name) is None]
    reason = f"not installed: {', '.join(missing)}" if missing else device.problem()
    return reason and f"{reason}; {_HOW}"


def _has_simulator() -> bool:
    """Numba's own CUDA target has one, and so has the package numba-cuda, which takes its place."""
    found = [importlib.util.find_spec(name) for name in ("numba", "numba_cuda")]
    folders = [Path(folder) for spec in found if spec for folder in spec.submodule_search_locations or ()]
    return any((folder / rest / "cuda" / "simulator").is_dir() for folder in folders for rest in ("", "numba"))
