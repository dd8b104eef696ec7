"""Where and from what a figure was measured: machine, versions, commit, command."""

from __future__ import annotations

import importlib
import os
import platform
import re
import shlex
import subprocess
import sys
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from ..kernels._dispatch import backends

_PACKAGES = ("numpy", "scipy", "numba", "cupy-cuda12x", "cupy-cuda13x", "torch", "threadpoolctl")


def usable_cores() -> int:
    """The processors that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _text(path: str) -> str | None:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return None


def _cpu_model() -> str:
    for line in (_text("/proc/cpuinfo") or "").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _quota() -> float | None:
    """Cores that the control group allows on average (cgroup 2 or 1); None without a limit."""
    limit = (_text("/sys/fs/cgroup/cpu.max") or "max").split()
    if limit[0] == "max":
        first = "/sys/fs/cgroup/cpu/cpu.cfs_"
        limit = [_text(f"{first}quota_us") or "-1", _text(f"{first}period_us") or "1"]
    return None if int(limit[0]) < 0 else int(limit[0]) / int(limit[1])


def _last_level_cache() -> int | None:
    """Bytes of the largest cache that processor 0 uses, or None where the system does not tell."""
    sizes = [_text(str(p)) or "" for p in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size")]
    scale = {"K": 2**10, "M": 2**20}
    return max((int(size[:-1]) * scale[size[-1]] for size in sizes if size[-1:] in scale), default=None)


def _clocks() -> dict[str, Any]:
    """MHz: what the processors run at now, on average, and the most they may; the governor; None where not told."""
    now = [float(line.partition(":")[2]) for line in (_text("/proc/cpuinfo") or "").splitlines() if "cpu MHz" in line]
    scaling = "/sys/devices/system/cpu/cpu0/cpufreq/"
    most = _text(f"{scaling}cpuinfo_max_freq")  # kHz
    return {
        "mhz": round(sum(now) / len(now)) if now else None,
        "max_mhz": round(int(most) / 1000) if most and most.isdecimal() else None,
        "governor": _text(f"{scaling}scaling_governor"),
    }


def _gpu_driver() -> str | None:
    """The version of NVIDIA's driver, as the system tells it without a library; None without one."""
    found = re.search(r"\b\d+\.\d+(?:\.\d+)?\b", _text("/proc/driver/nvidia/version") or "")
    return found[0] if found else None


def machine() -> dict[str, Any]:
    """CPU model, cores (present, usable, quota), clocks, last-level cache and memory in bytes, system, GPU driver."""
    return {
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "usable_cores": usable_cores(),
        "core_quota": _quota(),
        "clocks": _clocks(),
        "last_level_cache": _last_level_cache(),
        "memory": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "system": platform.platform(),
        "gpu_driver": _gpu_driver(),
    }


def cache_bytes() -> int:
    """Bytes to walk past so that nothing is found in a cache: the last-level cache, or 32 MiB."""
    return _last_level_cache() or 32 * 2**20


def versions() -> dict[str, Any]:
    """Python, rawgrad and the packages that matter (None where absent), backends, loaded thread pools."""
    root = importlib.import_module(__package__.rpartition(".")[0])
    found: dict[str, Any] = {"python": platform.python_version(), "rawgrad": root.__version__}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    found["backends"] = [name for name, problem in backends().items() if problem is None]
    from threadpoolctl import threadpool_info

    found["pools"] = [
        " ".join(filter(None, (p["user_api"], p["internal_api"], p["version"], p.get("architecture"))))
        + f": {p['num_threads']} threads"
        for p in threadpool_info()
    ]
    return found


def _git(*arguments: str) -> str | None:
    command = ["git", "-C", str(Path(__file__).parent), *arguments]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def commit() -> tuple[str | None, bool | None]:
    """The commit of this checkout and whether its files differ from it, results apart; None outside of git."""
    here = Path(__file__).parents[1].resolve()
    top = _git("rev-parse", "--show-toplevel")
    if top is None or Path(top).resolve() != here:  # installed, perhaps inside somebody else's repository
        return None, None
    return _git("rev-parse", "HEAD"), bool(
        _git("status", "--porcelain", "--", str(here), f":(exclude){here}/bench/results")
    )


def command_line() -> str:
    """The command that started this process, with the variables that change how it computes."""
    prefixes = ("RAWGRAD_", "OMP_", "OPENBLAS_", "MKL_")
    settings = [f"{name}={value}" for name, value in sorted(os.environ.items()) if name.startswith(prefixes)]
    script, spec = Path(sys.argv[0]), getattr(sys.modules["__main__"], "__spec__", None)
    program = [script.name]
    if spec is not None and spec.name.rpartition(".")[2] == script.stem:  # python -m
        program = ["python", "-m", spec.name.removesuffix(".__main__")]
    return shlex.join([*settings, *program, *sys.argv[1:]])


def now() -> str:
    """The date and time in UTC, to the second (ISO 8601)."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def provenance() -> dict[str, Any]:
    """All of the above, as a record of results begins."""
    of, dirty = commit()
    return {
        "date": now(),
        "command": command_line(),
        "commit": of,
        "dirty": dirty,
        "machine": machine(),
        "versions": versions(),
    }
