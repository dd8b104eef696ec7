"""``rawgrad emulate``: a CUDA kernel of a user's file, run on the simulated GPU under all checks."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np

from ..kernels._dispatch import BACKENDS
from ..kernels._emulator.trial import Outcome, Trial, choose_kernel
from ..kernels._errors import ArgumentError, BackendError


def emulate(options: argparse.Namespace) -> int:
    """Run the trial that the command's options describe, and print what came of it.

    Returns:
        0 if nothing is wrong, 1 if there are findings.

    Raises:
        BackendError: there is no C++ compiler.
        ArgumentError, DataError, LaunchError: what was asked for cannot be launched.
    """
    if reason := BACKENDS["emulated"].problem():
        raise BackendError(f"emulate: kernels cannot be run here: {reason}")
    if not 1 <= options.orders <= 100:
        raise ArgumentError(f"emulate: --orders must be from 1 to 100; got {options.orders}")
    instance = choose_kernel(options.file, options.kernel)
    grid, block = _sizes("--grid", options.grid), _sizes("--block", options.block)
    trial = Trial.prepare(instance, options.arg, grid, block, options.shared, options.seed)
    wanted = _results(trial, options.out)
    start = time.perf_counter()
    outcome = trial.run(options.orders)
    print(_report(trial, outcome, options.orders, time.perf_counter() - start))
    for name, target in wanted.items():
        _deliver(trial, outcome, name, target)
    return 1 if outcome.findings else 0


def _sizes(option: str, text: str | None) -> tuple[int, ...] | None:
    if text is None:
        return None
    parts = text.lower().replace("x", ",").split(",")
    if not 1 <= len(parts) <= 3 or not all(part.strip().isdigit() for part in parts):
        raise ArgumentError(f"emulate: {option} takes X, X,Y or X,Y,Z; got {text!r}")
    return tuple(map(int, parts))


def _results(trial: Trial, wanted: list[str]) -> dict[str, str]:
    """Which arrays are to be shown, and the file into which each goes; "" to print it."""
    results = {}
    for text in wanted:
        name, _, target = text.partition("=")
        if not hasattr(trial.arguments.get(name), "get"):
            arrays = ", ".join(name for name, value in trial.arguments.items() if hasattr(value, "get"))
            raise ArgumentError(f"emulate: --out takes the name of an array ({arrays}); got {name!r}")
        if target and Path(target).suffix != ".npy":
            raise ArgumentError(f"emulate: --out {name}=FILE saves a file .npy; got {target!r}")
        results[name] = target
    return results


def _report(trial: Trial, outcome: Outcome, orders: int, seconds: float) -> str:
    lines = [f"{trial.instance.expression}, grid {trial.grid}, block {trial.block}"]
    lines += [f"  {name} = {said}" for name, said in trial.said.items()]
    count = len(outcome.findings)
    several = "in one order of threads" if orders == 1 else f"in {orders} orders of threads"
    lines.append("")
    if count:
        lines.append(f"{count} finding{'s' if count > 1 else ''} {several}, {seconds:.2g} s")
        for number, finding in enumerate(outcome.findings, 1):
            lines.append(f"{number}. " + finding.text.replace("\n", "\n   "))
    else:
        lines.append(f"no findings {several}, {seconds:.2g} s")
        lines += [f"but nothing has written {name}{list(index)}" for name, index in outcome.unfinished.items()]
    return "\n".join([*lines, "", *_traffic(outcome)])


def _traffic(outcome: Outcome) -> list[str]:
    """What the launch moved, beside what it must have moved at least."""
    t = outcome.traffic
    rows = [
        ("global memory, read", t.global_read, t.distinct_read),
        ("global memory, written", t.global_written, t.distinct_written),
        ("shared memory, read", t.shared_read, None),
        ("shared memory, written", t.shared_written, None),
    ]
    lines = [f"{'bytes' if outcome.complete else 'bytes until the fault':24}{'moved':>14}{'distinct':>14}"]
    for name, moved, distinct in rows:
        if moved or distinct is not None:
            row = f"{name:24}{moved:14,}" + (f"{distinct:14,}" if distinct is not None else "")
            lines.append(row + (f"   {moved / distinct:.1f} times each" if distinct else ""))
    lines += [f"{name:24}{value:14,}" for name, value in (("barriers", t.barriers), ("atomics", t.atomics)) if value]
    return lines


def _deliver(trial: Trial, outcome: Outcome, name: str, target: str) -> None:
    """Print an array, or save it."""
    if name in outcome.unfinished:
        print(f"\n{name} is not shown: nothing has written its element {list(outcome.unfinished[name])}")
        return
    values: Any = trial.arguments[name].get()
    if not target:
        print(f"\n{name} =\n{np.array2string(values, threshold=200)}")
        return
    np.save(target, values)
    print(f"\n{name} is in {target}")
