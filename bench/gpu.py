"""Everything that only a GPU can show, in one go: ``tests/gpu.sh FOLDER`` (``docs/gpu.md`` tells about it).

Stages run one after the other, each in a process of its own with a budget of time; one that fails or runs
out of time does not stop the next.  A table comes last; logs, ``summary.json`` and the bench's result file
go into FOLDER.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ..kernels._cuda import table
from ..kernels._cuda.device import problem
from ..kernels._devices import device_named
from ..kernels._dispatch import backend
from ..kernels._errors import RawgradError
from ..kernels._launch import Kernel, runtime_of
from ..recipes import machine
from . import gpu_rows, peers, results, traffic

_ROOT = Path(__file__).parents[1]
_ME = [sys.executable, "-m", "rawgrad.bench.gpu"]
#: So many lines of the log of a stage that failed are printed.
_SHOWN = 30
#: Exit codes: nothing failed, something did, there is no GPU.
OK, FAILED, NO_GPU = 0, 1, 2


@dataclass(frozen=True)
class Stage:
    """One part of the run.

    Attributes:
        name: also its log's.
        command: what it runs.
        seconds: its budget.
        missing: why it cannot run here, or None.
    """

    name: str
    command: Sequence[str]
    seconds: float
    missing: str | None = None


@dataclass(frozen=True)
class Outcome:
    """What became of a stage: ``passed``, ``failed``, ``out of time`` or ``skipped``; ``note`` says more."""

    stage: str
    outcome: str
    seconds: float
    note: str


def stages(folder: Path, share: float = 1.0) -> list[Stage]:
    """The stages; their budgets add up to less than nine minutes, times ``share``.

    Args:
        folder: where the bench puts its result file.
        share: of the usual budgets.
    """
    sanitizer = shutil.which("compute-sanitizer")
    without = None if sanitizer else "compute-sanitizer is not on the PATH; it comes with the CUDA toolkit"
    pytest_missing = None if importlib.util.find_spec("pytest") else "pytest is not installed"
    tests = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--require-gpu", "-m", "gpu"]
    tests += ["-W", "default"]  # what another CuPy or NumPy warns of is no failure here
    tests += [str(_ROOT / "tests" / room) for room in ("kernels", "autograd")]
    found = [
        Stage("doctor", [sys.executable, "-m", "rawgrad", "doctor"], 30),
        Stage("load", [*_ME, "--only", "load"], 60),
        Stage("tests", tests, 180, pytest_missing),
    ]
    for tool, seconds in (("memcheck", 45), ("racecheck", 45), ("synccheck", 30)):
        command = [str(sanitizer), "--tool", tool, "--error-exitcode", "9"]
        if tool == "memcheck":  # calls of libraries that look whether something is there, and it is not
            command += ["--report-api-errors", "no"]
        command += [*_ME, "--only", "launch"]
        found.append(Stage(tool, command, seconds, without))
    limit = 140 * share
    found.append(Stage("bench", [*_ME, "--only", "bench", "--seconds", f"{limit - 15:.0f}", str(folder)], 140))
    return [Stage(s.name, s.command, s.seconds * share, s.missing) for s in found]


def run(stage: Stage, folder: Path, environment: dict[str, str]) -> Outcome:
    """Run a stage; what it prints goes to ``<folder>/<stage>.log``."""
    if stage.missing:
        return Outcome(stage.name, "skipped", 0.0, stage.missing)
    start, log = time.monotonic(), folder / f"{stage.name}.log"
    with log.open("w") as file:
        process = subprocess.Popen(
            stage.command, stdout=file, stderr=subprocess.STDOUT, env=environment, start_new_session=True, cwd=folder
        )
        try:
            code: int | None = process.wait(stage.seconds)
        except subprocess.TimeoutExpired:
            code = None
            os.killpg(process.pid, signal.SIGKILL)  # with what it started; the group is its own
            process.wait()
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    note = lines[-1][:160] if lines else ""
    outcome = {0: "passed", None: "out of time"}.get(code, "failed")
    if code not in (0, None):
        note = f"exit code {code}: {note}"
    return Outcome(stage.name, outcome, time.monotonic() - start, note)


def load(say: Callable[[str], None] = print, name: str = "cuda") -> int:
    """Compile and load every shipped instance on this GPU; the number of those that fail."""
    with backend(name):
        device = device_named("cuda")
        runtime = runtime_of(device.array_module.zeros(1))
        architecture = runtime.architecture()
        units: dict[tuple[Kernel, tuple[str, ...]], None] = {}
        for kernel in table.shipped_kernels():
            if _made_for(kernel.architectures, architecture):
                units |= {(kernel, tuple(kernel.unit(i.expression))): None for i in kernel.instances()}

        def failed(unit: tuple[Kernel, tuple[str, ...]]) -> list[str]:
            found = []
            for expression in unit[1]:
                try:
                    runtime.load(unit[0], expression)
                except RawgradError as error:
                    found.append(f"{expression}: {error}")
            return found

        with ThreadPoolExecutor(table.cores()) as pool:  # compilers run outside of Python's lock
            failures = [text for texts in pool.map(failed, units) for text in texts]
        count = sum(len(expressions) for _, expressions in units)
    for text in failures:
        say(text)
    say(f"{count - len(failures)} of {count} instances loaded for sm_{architecture}")
    return len(failures)


def _made_for(architectures: Sequence[str], here: int) -> bool:
    return any(name == f"sm_{here}a" or (name[3:].isdigit() and int(name[3:]) <= here) for name in architectures)


def launch(say: Callable[[str], None] = print, name: str = "cuda") -> int:
    """Launch every version of every operation once at a small shape; the number of those that fail.

    For compute-sanitizer.  Each array gets memory of its own from the driver, not from CuPy's pool, so that an
    access outside of it is seen.
    """
    failed = count = 0
    if name == "cuda":
        import cupy

        cupy.cuda.set_allocator(None)
    with backend(name):
        here = runtime_of(device_named("cuda").array_module.zeros(1)).architecture()
    for case in traffic.cases():
        for version in (None, *table.versions_of(case.operation, case.function, here, case.halves())):
            pins = {case.operation: version} if version else {}
            count += 1
            try:
                with backend(name, **pins):
                    device = device_named("cuda")
                    case.call(*(_put(array, device) for array in case.arrays))
                    device.synchronize()
            except RawgradError as error:
                failed += 1
                say(f"{case.function} {version or 'default'}: {error}")
    say(f"{count - failed} of {count} launches without an error")
    return failed


def _put(array: Any, device: Any) -> Any:
    return [device.from_host(a) for a in array] if isinstance(array, list) else device.from_host(array)


def contestants() -> tuple[list[str], dict[str, str]]:
    """The peers that are here, and why the others are not."""
    who, without = [gpu_rows.CUPY], dict[str, str]()
    if reason := peers.problem(gpu_rows.TORCH):
        without[gpu_rows.TORCH] = f"{reason} (with it come cuBLAS, cuDNN and compiled PyTorch)"
    else:
        import torch

        if not torch.cuda.is_available():
            without[gpu_rows.TORCH] = "it was built without CUDA, or for another driver"
        else:
            who.append(gpu_rows.TORCH)
            # The peer at its best in float32: no rounding for tensor cores, the fastest algorithm tried out.
            torch.backends.cudnn.allow_tf32, torch.backends.cudnn.benchmark = False, True
            for peer, package in ((gpu_rows.COMPILED, "triton"), (gpu_rows.LIGER, "liger_kernel")):
                if importlib.util.find_spec(package) is None:
                    without[peer] = f"{package} is not installed"
                else:
                    who.append(peer)
    if reason := peers.problem(gpu_rows.JAX):
        without[gpu_rows.JAX] = reason
    else:
        try:
            peers.rival(gpu_rows.JAX, "cuda")
            who.append(gpu_rows.JAX)
        except Exception as error:
            without[gpu_rows.JAX] = f"it finds no GPU: {str(error).partition(chr(10))[0][:200]}"
    return who, without


def bench(folder: Path, seconds: float, names: Sequence[str] = (), say: Callable[[str], None] = print) -> int:
    """Measure what fits into ``seconds`` of the rows of these names; the number of rows that failed.

    Writes the result file row by row.
    """
    begin, chosen = time.monotonic(), gpu_rows.named(names)
    who, without = contestants()
    for peer, reason in without.items():
        say(f"without {peer}: {reason}")
    absent = [results.Missing(peer, reason) for peer, reason in without.items()]
    timer = gpu_rows.EventTimer()
    limits = gpu_rows.GpuLimits(timer, who)
    rows: list[results.Row] = []
    failed = 0
    for name, row in chosen.items():
        if time.monotonic() - begin > seconds:
            say(f"{name}: not measured, the time is up")
            continue
        try:
            done = gpu_rows.measured(row, timer, who, say, limits)
            rows.append(replace(done, missing=[*(done.missing or []), *absent]))
        except Exception as error:  # the next row may do
            failed += 1
            say(f"{name}: FAILED: {type(error).__name__}: {error}")
            rows.append(results.not_timed(name, f"{type(error).__name__}: {error}"))
        write_results(rows, folder, "-".join(names))
    say(results.markdown(rows))
    say(f"{len(rows) - failed} of {len(chosen)} rows measured, {failed} failed")
    return failed


def gpu() -> dict[str, Any]:
    """The GPU and its software, for the record."""
    import cupy

    runtime = cupy.cuda.runtime
    properties = runtime.getDeviceProperties(runtime.getDevice())
    return {
        "name": properties["name"].decode(),
        "architecture": f"sm_{properties['major']}{properties['minor']}",
        "memory": int(properties["totalGlobalMem"]),
        "l2_cache": int(properties["l2CacheSize"]),
        "multiprocessors": int(properties["multiProcessorCount"]),
        "driver": runtime.driverGetVersion(),
        "runtime": runtime.runtimeGetVersion(),
    }


def write_results(rows: Sequence[results.Row], folder: Path, part: str = "") -> Path:
    """Write a result file named for the day, the GPU, and the part of the bench that it is."""
    origin = machine.provenance()
    origin["machine"]["gpu"] = gpu()
    report = results.Report(results.SCHEMA, **origin, rows=list(rows))
    kind = "-".join(origin["machine"]["gpu"]["name"].lower().split())
    path = folder / f"{origin['date'][:10]}-gpu-{kind}{'-' if part else ''}{part[:80]}.json"
    results.write(report, path)
    return path


def summary(outcomes: Sequence[Outcome]) -> str:
    """The table that is printed last."""
    lines = [f"{'stage':10} {'outcome':12} {'s':>5}  note", *(_line(o) for o in outcomes)]
    return "\n".join(lines)


def _line(one: Outcome) -> str:
    return f"{one.stage:10} {one.outcome:12} {one.seconds:5.0f}  {one.note}"


def everything(folder: Path, share: float) -> int:
    """All stages; an exit code."""
    folder.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    outcomes = []
    for stage in stages(folder.resolve(), share):
        print(f"{stage.name} … ({stage.seconds:.0f} s at most)", flush=True)
        outcomes.append(run(stage, folder.resolve(), environment))
        print(_line(outcomes[-1]), flush=True)
        if outcomes[-1].outcome in ("failed", "out of time"):
            lines = (folder / f"{stage.name}.log").read_text(errors="replace").splitlines()[-_SHOWN:]
            print("\n".join(f"  {line[:200]}" for line in lines), flush=True)
        (folder / "summary.json").write_text(json.dumps([asdict(o) for o in outcomes], indent=1) + "\n")
    for path in sorted(folder.glob("bench.log")):
        print(path.read_text(errors="replace"))
    print(summary(outcomes))
    return FAILED if any(o.outcome in ("failed", "out of time") for o in outcomes) else OK


def main(argv: Sequence[str] | None = None) -> int:
    """Run the stages, or one part of them."""
    parser = argparse.ArgumentParser(prog="tests/gpu.sh", description=__doc__.partition("\n")[0])
    parser.add_argument("folder", nargs="?", type=Path, help="where logs and results go")
    parser.add_argument("--only", choices=("load", "launch", "bench"), help="one part, in this process")
    parser.add_argument("--seconds", type=float, default=125.0, help="of --only bench (default: %(default)s)")
    parser.add_argument("--share", type=float, default=1.0, help="of the usual budgets (default: %(default)s)")
    parser.add_argument("--rows", nargs="+", default=[], metavar="ROW", help="of --only bench: rows, or operations")
    parser.add_argument("--list", action="store_true", help="list the rows of the bench and stop")
    options = parser.parse_args(argv)
    if options.list:
        print("\n".join(f"{row.operation:24} {name}" for name, row in gpu_rows.ROWS.items()))
        return OK
    if options.folder is None and options.only in (None, "bench"):
        parser.error("name a folder for logs and results")
    if reason := problem():
        print(f"no GPU: {reason}")
        return NO_GPU
    if options.only == "load":
        return FAILED if load() else OK
    if options.only == "launch":
        return FAILED if launch() else OK
    if options.only == "bench":
        return FAILED if bench(options.folder, options.seconds, options.rows) else OK
    return everything(options.folder, options.share)


if __name__ == "__main__":
    sys.exit(main())
