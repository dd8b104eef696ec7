"""Peak memory of one contestant, measured in a process of its own.

The child imports only what this contestant needs, makes its model and inputs, and notes its
resident memory: the baseline.  Then it has the kernel forget the peak so far, runs the work a few
times, and reads the peak (``VmHWM``).  So the figure counts pages that were really touched, of
whatever allocator: ``tracemalloc`` would see NumPy's arrays and not torch's.  Where there is no
``/proc/self/clear_refs`` (macOS), the peak is ``ru_maxrss``, which cannot forget the peak of the
imports, so that the work's part is then a lower bound.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

from ..kernels._errors import RawgradError
from .harness import OURS, Work
from .results import Memory

_CALLS = 4


def _resident(field: str) -> int:
    """``VmRSS`` or ``VmHWM`` of this process in bytes."""
    for line in Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines():
        if line.startswith(f"{field}:"):
            return 1024 * int(line.split()[1])
    raise OSError(f"no {field} in /proc/self/status")


def _greatest() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def of_this_process(work: Work) -> Memory:
    """Run the only contestant of ``work`` in this process and report its memory."""
    (contestant,) = work.contestants
    if contestant.reset is not None:
        contestant.reset()
    try:
        baseline = _resident("VmRSS")
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
        method = "VmHWM"
    except OSError:
        baseline = _greatest()
        method = "ru_maxrss"
    for i in range(_CALLS):
        contestant.call(*contestant.inputs[i % len(contestant.inputs)])
    peak = _resident("VmHWM") if method == "VmHWM" else _greatest()
    return Memory(peak, baseline, max(0, peak - baseline), method)


def measure(row: str, contestant: str, threads: int) -> Memory:
    """The memory of ``contestant`` at the row of that name, in a child process.

    Raises:
        RawgradError: the child failed; the message holds the end of what it said.
    """
    command = [sys.executable, "-m", f"{__package__}.memory", row, contestant, str(threads)]
    # Wherever this process found the package (an editable install, a path set by hand), so does the child.
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    child = subprocess.run(command, capture_output=True, text=True, env=environment)
    if child.returncode:
        said = child.stderr[-2000:].strip()
        raise RawgradError(f"bench: measuring the memory of {contestant} at {row} failed: {said}")
    return Memory(**json.loads(child.stdout.splitlines()[-1]))


if __name__ == "__main__":
    from . import peers, rows

    _row, _contestant, _threads = sys.argv[1:]
    _work = rows.build(_row, [_contestant])
    peers.set_threads(int(_threads), _contestant == OURS)
    print(json.dumps(asdict(of_this_process(_work))))
