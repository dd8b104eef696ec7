"""How many threads the compiled CPU kernels use.

Nothing here imports Numba, so that a program may ask and choose before the first kernel is loaded.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ._errors import ArgumentError

#: When this process began to load compiled code: sources that are newer may differ from what it loaded.
started = time.time()
_SPINS = "GOMP_SPINCOUNT"
#: The variables in which MPI launchers say how many ranks share this machine: Open MPI's, MPICH's, Slurm's.
_RANKS = ("OMPI_COMM_WORLD_LOCAL_SIZE", "MPI_LOCALNRANKS", "SLURM_NTASKS_PER_NODE")


def processors() -> int:
    """How many processors this process may run on: its affinity."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # macOS
        return os.cpu_count() or 1


def quota(root: Path = Path("/sys/fs/cgroup")) -> int | None:
    """The control group's limit in whole processors, rounded up; None without one."""
    try:
        limit, period = (root / "cpu.max").read_text().split()  # version 2
    except (OSError, ValueError):
        try:
            limit = (root / "cpu/cpu.cfs_quota_us").read_text().strip()  # version 1
            period = (root / "cpu/cpu.cfs_period_us").read_text().strip()
        except (OSError, ValueError):
            return None
    if not (limit.isdecimal() and period.isdecimal() and int(period)):
        return None  # "max", -1
    return max(-(-int(limit) // int(period)), 1)


def limits() -> dict[str, int]:
    """What bounds the number of threads, by its name; the smallest decides.

    The processors that the process may run on (its affinity); its control group's quota; its share of them,
    if the other ranks of an MPI job share this machine; and one in a worker of a process pool, whose
    processes are the parallel thing there.  ``RAWGRAD_THREADS`` takes the place of all of them.

    Raises:
        ArgumentError: ``RAWGRAD_THREADS`` is not an integer of at least 1.
    """
    asked = os.environ.get("RAWGRAD_THREADS", "")
    if asked:
        if not (asked.isdecimal() and int(asked) >= 1):
            raise ArgumentError(f"RAWGRAD_THREADS must be an integer of at least 1; got {asked!r}")
        return {"RAWGRAD_THREADS": int(asked)}
    found = {"processors that this process may use": processors()}
    if (of_group := quota()) is not None:
        found["the control group's quota"] = of_group
    for name in _RANKS:
        ranks = os.environ.get(name, "")
        if ranks.isdecimal() and int(ranks) > 1:
            found[f"the share of one of {ranks} ranks ({name})"] = max(min(found.values()) // int(ranks), 1)
            break
    if multiprocessing.parent_process() is not None:
        found["a worker of a process pool"] = 1
    return found


def available_threads() -> int:
    """How many threads kernels use by default: the least of :func:`limits`."""
    return min(limits().values())


def most_threads() -> int:
    """How many threads Numba starts; it decides when it is imported."""
    if "numba" in sys.modules:
        return int(sys.modules["numba"].config.NUMBA_NUM_THREADS)
    given = os.environ.get("NUMBA_NUM_THREADS", "")
    return int(given) if given.isdecimal() and int(given) else processors()


@contextmanager
def short_waits() -> Iterator[None]:
    """Threads that GNU's OpenMP starts inside sleep once they have waited for about 50 µs.

    By itself it lets them spin for milliseconds.  Where other processes want the cores too, a thread that has
    been suspended is then waited for by one that will not let it run, and a step takes many times as long.
    Kernels of a training step mostly follow each other sooner; docs/cpu-kernels.md has what more would gain and cost.
    ``OMP_WAIT_POLICY`` and ``GOMP_SPINCOUNT`` have the last word; OpenMP reads them when it is loaded.
    """
    if "OMP_WAIT_POLICY" in os.environ or _SPINS in os.environ:
        yield
        return
    os.environ[_SPINS] = "1000"
    try:
        yield
    finally:
        del os.environ[_SPINS]


def problem() -> str | None:
    """Why Numba's kernels cannot run here, or None."""
    return "NUMBA_DISABLE_JIT is set" if os.environ.get("NUMBA_DISABLE_JIT", "0") != "0" else None


#: The number in force; 0 until it is settled.
count = 0


def set_num_threads(number: int) -> None:
    """Let CPU kernels use ``number`` threads, in the whole process, from their next call on.

    Results do not depend on it.  It concerns the compiled kernels (backend ``numba``); those of backend
    ``numpy`` use what BLAS uses.

    Raises:
        ArgumentError: ``number`` is below 1, or above the processors that this process may use (or
            ``RAWGRAD_THREADS``, where that is more when the program starts).
    """
    global count
    most = most_threads()
    if isinstance(number, bool) or not isinstance(number, int) or not 1 <= number <= most:
        raise ArgumentError(
            f"set_num_threads: the number must be an integer from 1 to {most}; got {number!r} "
            "(RAWGRAD_THREADS, set before the program starts, allows more)"
        )
    count = number


def get_num_threads() -> int:
    """How many threads CPU kernels use.

    Raises:
        ArgumentError: ``RAWGRAD_THREADS`` is not an integer of at least 1, or more than Numba can start.
    """
    global count
    count = count or _at_first()
    return count


def _at_first() -> int:
    number, most = available_threads(), most_threads()
    if number > most and os.environ.get("RAWGRAD_THREADS"):
        raise ArgumentError(
            f"RAWGRAD_THREADS is {number}, but Numba starts at most {most} threads in this program: it was "
            f"imported before rawgrad's kernels, or NUMBA_NUM_THREADS says so; set NUMBA_NUM_THREADS={number} too"
        )
    return min(number, most)


def _let_numba_start(asked: str) -> None:
    """Have Numba start as many threads as ``RAWGRAD_THREADS`` asks for, if that is more than there are processors.

    Its variable is the one way to say so, and stays, since Numba looks at it again whenever it compiles.
    """
    if asked.isdecimal() and int(asked) > processors() and "numba" not in sys.modules:
        os.environ.setdefault("NUMBA_NUM_THREADS", asked)


_let_numba_start(os.environ.get("RAWGRAD_THREADS", ""))
