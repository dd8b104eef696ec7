"""Compiling CPU kernels with Numba, and keeping what was compiled.

A kernel is a function under ``@parallel`` (it has a ``prange``, over parts whose number depends on shapes
alone, so that results have the same bits for any number of threads) or ``@serial`` (called from kernels).
Neither reorders arithmetic: no fast-math.  Both release the GIL.

What was compiled is kept in :func:`._cache.cache_folder`, in a folder per operation and digest of the
sources that its code came from, so that no kernel can outlive a change of a function that it calls
(Numba's own cache, which looks at one file, lets it).  One file holds one function for one signature and
processor, and appears whole: processes that compile the same thing at once do no harm.

Threads: as many as the process may use, see :func:`available_threads`; ``RAWGRAD_THREADS`` says otherwise.
The kernels own all of them, so BLAS is limited to one when this module is loaded: two thread pools that
take turns slow each other down fourfold.
"""

from __future__ import annotations

import functools
import hashlib
import logging
import multiprocessing
import os
import pickle
import platform
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

import llvmlite
import numba
from numba.core import caching, compiler, serialize
from numba.np.ufunc.parallel import threading_layer
from threadpoolctl import threadpool_limits

from ._cache import cache_folder, prune
from ._errors import ArgumentError

_config: Any = numba.config
_log = logging.getLogger("rawgrad")
#: How modules are called whose functions end up in compiled code.
_HOLD_COMPILED_CODE = ("_jit", "_simd", "numba_cpu")

# ---- threads


def available_threads() -> int:
    """How many threads kernels use by default.

    The processors that the process may run on (its affinity), no more than its control group's quota, and
    shared with the other ranks of an MPI job on this machine; one in a worker of a process pool, whose
    processes are the parallel thing there.
    """
    try:
        count = len(os.sched_getaffinity(0))
    except AttributeError:  # macOS
        count = os.cpu_count() or 1
    count = min(count, _quota() or count)
    for ranks in ("OMPI_COMM_WORLD_LOCAL_SIZE", "MPI_LOCALNRANKS", "SLURM_NTASKS_PER_NODE"):
        if os.environ.get(ranks, "").isdecimal():
            count //= max(int(os.environ[ranks]), 1)
            break
    return 1 if multiprocessing.parent_process() is not None else max(count, 1)


def _quota(root: Path = Path("/sys/fs/cgroup")) -> int | None:
    """The control group's limit in whole processors, rounded up; None without one."""
    try:
        limit, period = (root / "cpu.max").read_text().split()
    except (OSError, ValueError):
        try:
            limit = (root / "cpu/cpu.cfs_quota_us").read_text().strip()
            period = (root / "cpu/cpu.cfs_period_us").read_text().strip()
        except OSError:
            return None
    return max(-(-int(limit) // int(period)), 1) if limit.isdecimal() and period.isdecimal() else None


def _wanted_threads() -> int:
    asked = os.environ.get("RAWGRAD_THREADS", "")
    if not asked:
        return available_threads()
    if not asked.isdecimal() or int(asked) < 1:
        raise ArgumentError(f"RAWGRAD_THREADS must be an integer of at least 1; got {asked!r}")
    return int(asked)


def set_num_threads(count: int) -> None:
    """Let the kernels that this Python thread calls use ``count`` threads.

    Raises:
        ArgumentError: ``count`` is below 1 or above what the process started with.
    """
    most = _config.NUMBA_NUM_THREADS
    if isinstance(count, bool) or not isinstance(count, int) or not 1 <= count <= most:
        raise ArgumentError(f"set_num_threads: count must be an integer from 1 to {most}; got {count!r}")
    numba.set_num_threads(count)


def get_num_threads() -> int:
    """How many threads the kernels that this Python thread calls use."""
    return int(numba.get_num_threads())


def _start() -> None:
    """Settle the number of threads before Numba starts them, and BLAS's."""
    threadpool_limits(1, user_api="blas")
    count = _wanted_threads()
    try:
        _config.NUMBA_NUM_THREADS = count
        numba.set_num_threads(count)
    except (RuntimeError, ValueError):  # the program had started Numba's threads already
        numba.set_num_threads(min(count, _config.NUMBA_NUM_THREADS))


_start()
_one_at_a_time = threading.RLock()


def problem() -> str | None:
    """Why Numba's kernels cannot run here, or None."""
    return None


def guarded(kernel: Callable[..., Any]) -> Callable[..., Any]:
    """``kernel``, for the threading layer in use: ``workqueue`` takes calls of one Python thread at a time."""
    if threading_layer() != "workqueue":
        return kernel

    @functools.wraps(kernel)
    def call(*arguments: Any) -> Any:
        with _one_at_a_time:
            return kernel(*arguments)

    return call


# ---- compiling


def parallel(function: Callable[..., Any]) -> Any:
    """Compile ``function``, which has a ``prange``, on its first call with arguments of each kind."""
    return _compiled(function, parallel=True)


def serial(function: Callable[..., Any]) -> Any:
    """Compile ``function`` to be called by kernels, or by itself where there is nothing to share."""
    return _compiled(function)


def _compiled(function: Callable[..., Any], **options: Any) -> Any:
    dispatcher = numba.njit(nogil=True, error_model="numpy", **options)(function)
    dispatcher._cache = _Cache(function)
    return dispatcher


class _Cache(caching._Cache):
    """What Numba asks for compiled code, and gives it to."""

    def __init__(self, function: Any) -> None:
        self._function: FunctionType = function
        self._enabled = True

    @property
    def cache_path(self) -> str:
        return str(_folder(self._function.__module__))

    def _file(self, signature: Any, magic: Any) -> Path:
        cells = tuple(cell.cell_contents for cell in self._function.__closure__ or ())
        assert all(isinstance(value, int | float | str | bool | None) for value in cells), (
            f"{self._function.__qualname__} closes over more than constants, by which its code could be found again"
        )
        code = self._function.__code__
        key = repr((self._function.__qualname__, code.co_firstlineno, cells, signature, magic))
        return _folder(self._function.__module__) / (
            f"{self._function.__name__}-{hashlib.sha256(key.encode()).hexdigest()[:32]}.bin"
        )

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        target_context.refresh()
        if self._enabled:
            file = self._file(sig, target_context.codegen().magic_tuple())
            try:
                return compiler.CompileResult._rebuild(target_context, *pickle.loads(file.read_bytes()))
            except FileNotFoundError:
                pass
            except Exception as error:  # whatever a damaged file raises: it is compiled anew, and replaced
                _log.warning("rawgrad: %s cannot be used and is replaced: %s", file, error)
        _announce()
        return None

    def save_overload(self, sig: Any, data: Any) -> None:
        if not self._enabled:
            return
        file = self._file(sig, data.codegen.magic_tuple())
        try:
            with tempfile.NamedTemporaryFile(dir=file.parent, delete=False) as new:
                new.write(serialize.dumps(data._reduce()))
            os.replace(new.name, file)
        except OSError as error:  # a full disk: the code runs, and is compiled again next time
            _log.warning("rawgrad: cannot keep a compiled kernel in %s: %s", file.parent, error)

    def enable(self) -> None:
        self._enabled = True

    def disable(self) -> None:
        self._enabled = False

    def flush(self) -> None:
        """Nothing is held back."""


@functools.cache
def _announce() -> None:
    """Say, once per process, why the first use of a kernel takes long."""
    _log.warning("rawgrad: compiling kernels for this processor as they are needed; kept in %s", cache_folder("numba"))


@functools.cache
def _folder(module: str) -> Path:
    """Where what ``module`` compiles is kept."""
    digest = hashlib.sha256()
    for fact in (numba.__version__, llvmlite.__version__, sys.version, platform.machine()):
        digest.update(fact.encode() + b"\0")
    for file in sorted(_sources(sys.modules[module], set())):
        digest.update(file.read_bytes() + b"\0")
    operation = module.rpartition(".numba_cpu")[0].rpartition(".")[2] or module.rpartition(".")[2]
    parent = cache_folder("numba") / operation
    folder = parent / digest.hexdigest()[:16]
    if not folder.is_dir():
        prune(parent)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _sources(module: ModuleType, found: set[Path]) -> set[Path]:
    """The file of ``module``, and those of the modules with compiled code whose names it imports, and theirs."""
    found.add(Path(module.__file__ or ""))
    for value in list(vars(module).values()):
        name = value.__name__ if isinstance(value, ModuleType) else getattr(value, "__module__", None)
        if isinstance(name, str) and name.rpartition(".")[2].startswith(_HOLD_COMPILED_CODE):
            other = sys.modules[name]
            if Path(other.__file__ or "") not in found:
                _sources(other, found)
    return found


@serial
def address(array: Any) -> int:
    """Where the elements of ``array`` begin; a fifth of the time of ``array.ctypes.data``."""
    return array.ctypes.data
