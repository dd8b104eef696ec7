"""Peak memory of one contestant, measured in a process of its own.

The child imports only what this contestant needs, and reads its resident memory at three moments.
What is resident are pages that were really touched, of whatever allocator: ``tracemalloc`` would see
NumPy's arrays and not torch's.

1. *First calls.*  Model and inputs are made; what is resident now is the baseline.  The kernel forgets
   the peak so far, the work runs a few times, and the peak is read (``VmHWM``).  It holds whatever
   these calls load and compile.
2. *Nothing.*  Model and inputs are dropped, free memory goes back to the system.  What is left is the
   library with all of its code.
3. *Steady state.*  Model and inputs are made anew, a few calls are not looked at, the kernel forgets
   its peak again, and the peak of some more calls is read.  Less what is left in 2, that is what the
   step needs: model, inputs, gradients, optimizer state, activations and workspaces.

Rows whose inputs rotate past the caches keep two sets of them here.  Where there is no ``/proc``
(macOS), the peak of the first calls is ``ru_maxrss``, which cannot forget the peak of the imports, so
that the work's part is then a lower bound; and 3 is missing.
"""

from __future__ import annotations

import ctypes
import gc
import json
import resource
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from . import child
from .harness import OURS, Contestant, Work
from .results import Memory

_CALLS = 4
_STEADY_CALLS = 12
_SETS = 2

Build = Callable[[], Work]


def _resident(field: str) -> int:
    """``VmRSS`` or ``VmHWM`` of this process in bytes."""
    for line in Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines():
        if line.startswith(f"{field}:"):
            return 1024 * int(line.split()[1])
    raise OSError(f"no {field} in /proc/self/status")


def _forget_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def _greatest() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _give_back() -> None:
    """Free what nobody holds, and give it back to the system, where the C library has a way to."""
    workspaces = getattr(sys.modules.get("rawgrad.kernels._jit"), "_workspaces", None)
    if workspaces is not None:  # our kernels keep theirs between calls: they belong to the step
        workspaces.__dict__.clear()
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def _contestant(build: Build) -> Contestant:
    """The only contestant of the work, made afresh, with few inputs."""
    (one,) = build().contestants
    one.inputs, one.result = one.inputs[:_SETS], None  # which may hold them all
    if one.reset is not None:
        one.reset()
    _give_back()
    return one


def _run(contestant: Contestant, calls: int) -> None:
    for i in range(calls):
        contestant.call(*contestant.inputs[i % len(contestant.inputs)])


def _first_calls(build: Build) -> Memory:
    one = _contestant(build)
    try:
        baseline = _resident("VmRSS")
        _forget_peak()
        method = "VmHWM"
    except OSError:
        baseline = _greatest()
        method = "ru_maxrss, since /proc is missing"
    _run(one, _CALLS)
    peak = _greatest() if method != "VmHWM" else _resident("VmHWM")
    return Memory(peak, baseline, max(0, peak - baseline), method)


def of_this_process(build: Build) -> Memory:
    """Run the work that ``build`` makes, of a single contestant, in this process and report its memory."""
    first = _first_calls(build)
    if first.method != "VmHWM":
        return first
    _give_back()
    nothing = _resident("VmRSS")
    one = _contestant(build)
    _run(one, _CALLS)
    _forget_peak()
    _run(one, _STEADY_CALLS)
    steady = _resident("VmHWM")
    return Memory(first.peak, first.baseline, first.work, first.method, steady, max(0, steady - nothing))


def measure(row: str, contestant: str, threads: int) -> Memory:
    """The memory of ``contestant`` at the row of that name, in a child process.

    Raises:
        RawgradError: the child failed; the message holds the end of what it said.
    """
    process = child.start("memory", row, contestant, str(threads))
    out, said = process.communicate()
    if process.returncode:
        raise child.failed(f"measuring the memory of {contestant} at {row}", said)
    return Memory(**json.loads(out.splitlines()[-1]))


def _main(row: str, contestant: str, threads: str) -> None:
    from . import peers, rows

    peers.plan_threads(int(threads))
    if contestant in (OURS, *peers.PEERS):
        peers.library(contestant)  # imported before it is told the number of threads
    peers.set_threads(int(threads), contestant == OURS)
    print(json.dumps(asdict(of_this_process(lambda: rows.build(row, [contestant])))))


if __name__ == "__main__":
    _main(*sys.argv[1:])
