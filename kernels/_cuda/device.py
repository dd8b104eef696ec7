"""The NVIDIA GPU as a device: CuPy, asked for when it is first needed."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from .._devices import TO_HOST, WAITING, Device, register_device
from .._errors import DeviceError, OutOfMemoryError
from .._faults import check_faults
from .._graph import refuse
from .faults import faults_named

_OTHERWISE = 'rawgrad.backend("emulated") or RAWGRAD_BACKEND=emulated runs the same kernels on a simulated GPU'


@contextmanager
def own_folder_hidden() -> Iterator[None]:
    """Import NVIDIA's packages in here, also where Python was started in the folder of rawgrad itself.

    That folder is then on ``sys.path`` (by its name, or as ``""``), and its ``cuda.py`` would be taken for
    NVIDIA's package ``cuda``, of which CuPy and Numba import parts, some only when they are first needed.
    The package stays in ``sys.modules``, where those later imports look first.
    """
    here = Path(__file__).resolve().parents[2]
    before = sys.path[:]
    sys.path[:] = [folder for folder in before if Path(folder).resolve() != here]
    try:
        if "cuda" not in sys.modules and importlib.util.find_spec("cuda") is not None:
            importlib.import_module("cuda")
        yield
    finally:
        sys.path[:] = before


@cache
def problem() -> str | None:
    """Why no NVIDIA GPU can be used here, or None if one can.  Loads CuPy if it is installed."""
    if importlib.util.find_spec("cupy") is None:
        return "CuPy is not installed; `pip install rawgrad[cuda12]` (or [cuda13], as the driver has it) brings it"
    try:
        with own_folder_hidden():
            import cupy
    except Exception as error:  # whatever a broken or doubled installation raises
        return f"CuPy does not load: {type(error).__name__}: {error}"
    try:
        count = cupy.cuda.runtime.getDeviceCount()
    except cupy.cuda.runtime.CUDARuntimeError as error:
        return f"CuPy {cupy.__version__} finds no NVIDIA driver that it can use: {error}"
    return None if count else f"CuPy {cupy.__version__} finds no NVIDIA GPU"


def cupy_device() -> Device:
    """The device of CuPy's arrays.

    Raises:
        DeviceError: there is no GPU, or no CuPy; the message says which.
    """
    reason = problem()
    if reason is not None:
        raise DeviceError(f"device 'cuda' is not available here: {reason}; {_OTHERWISE}")
    return _device()


class CupyDevice(Device):
    """CuPy's GPU, where waiting for an array is the moment at which faults of earlier kernels show."""

    def to_host(self, array: Any) -> np.ndarray:
        """A NumPy copy of ``array``, when all work on CuPy's current stream has ended.

        Raises:
            LaunchError: a kernel failed meanwhile; the last ones launched are named.
            RawgradError: a kernel met bad data (``kernels._launch.watch``).
        """
        refuse(*TO_HOST)
        with faults_named():
            host: np.ndarray = array.get()
        check_faults(self.array_type)
        return host

    def allocator(self, pool: Any) -> Any:
        """What takes memory from ``pool``, where the default pool keeps too much for itself from that."""
        return explaining(pool.malloc, self.array_module, sharing=True)

    def synchronize(self) -> None:
        """Wait for all work on the current GPU; raises what :meth:`to_host` raises."""
        refuse(*WAITING)
        with faults_named():
            self.array_module.cuda.runtime.deviceSynchronize()
        check_faults(self.array_type, every_stream=True)


@cache
def _device() -> Device:
    import cupy

    name = cupy.cuda.runtime.getDeviceProperties(cupy.cuda.runtime.getDevice())["name"].decode()
    device = CupyDevice("cuda", cupy.ndarray, cupy, f"CuPy on {name}")
    allocate = cupy.cuda.get_allocator()
    cupy.cuda.set_allocator(explaining(allocate, cupy))
    register_device(device)
    return device


def explaining(allocate: Any, cupy: Any, sharing: bool = False) -> Any:
    """CuPy's allocator, raising :class:`OutOfMemoryError` with the request and the state of pool and GPU.

    Args:
        sharing: it is that of another pool than the default one, which then gives up what it does not use.
    """

    def malloc(size: int) -> Any:
        pool = cupy.get_default_memory_pool()
        try:
            try:
                return allocate(size)
            except cupy.cuda.memory.OutOfMemoryError:
                if not sharing:
                    raise
                pool.free_all_blocks()
                return allocate(size)
        except cupy.cuda.memory.OutOfMemoryError as error:
            free, total = cupy.cuda.runtime.memGetInfo()
            limit = f" (limited to {pool.get_limit():,})" if pool.get_limit() else ""
            raise OutOfMemoryError(
                f"the GPU is out of memory: asked for {size:,} bytes; CuPy's pool uses {pool.used_bytes():,} and holds "
                f"{pool.total_bytes():,}{limit}; of the GPU's {total:,} bytes {free:,} are free"
            ) from error

    return malloc
