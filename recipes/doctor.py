"""What runs on this machine, and why the rest does not.  Nothing here may fail: each look stands alone."""

from __future__ import annotations

import ctypes
import importlib
import importlib.util
import os
import platform
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed
from pathlib import Path
from typing import Any

import numpy as np

from ..engine.data import find_mnist
from ..kernels import _threads
from ..kernels._cache import cache_folder, is_temporary
from ..kernels._cuda import nvrtc
from ..kernels._devices import device_named
from ..kernels._dispatch import BACKENDS, backend, current_choice
from ..kernels._emulator import build
from ..kernels._errors import RawgradError
from ..kernels.gemm import gemm

_NEEDED = (
    "numpy",
    "scipy",
    "scikit-learn",
    "ml_dtypes",
    "safetensors",
    "pillow",
    "matplotlib",
    "tqdm",
    "threadpoolctl",
    "numba",
)
_OPTIONAL = {
    "cupy": "NVIDIA GPUs",
    "numba_cuda": "NVIDIA GPUs by Numba",
    "torch": "a peer in tests and benchmarks",
    "mpi4py": "training on several processes",
    "tensorboardX": "`rawgrad train --tensorboard`",
}

Rows = list[tuple[str, str]]


def report(version: str, data_dir: Path | None = None) -> str:
    """The whole report, one line for each thing.

    Args:
        version: rawgrad's.
        data_dir: where to look for MNIST first.
    """
    looks: dict[str, Callable[[], Rows]] = {
        "versions": lambda: _versions(version),
        "processor": _processor,
        "CPU kernels": _cpu_kernels,
        "devices": _devices,
        "backends": _backends,
        "CUDA": _cuda,
        "data": lambda: _data(data_dir),
        "optional packages": _optional,
    }
    lines: list[str] = []
    for title, look in looks.items():
        try:
            rows = look()
        except Exception as error:  # a doctor reports what is broken
            rows = [("broken", f"{type(error).__name__}: {error}")]
        lines += [title, *(f"  {name:14} {text}" for name, text in rows)]
    return "\n".join(lines)


def _version_of(package: str) -> str | None:
    try:
        return installed(package)
    except PackageNotFoundError:
        return None


def _versions(version: str) -> Rows:
    place = Path(__file__).resolve().parents[1]
    python = f"{platform.python_version()} ({platform.python_implementation()}) on {platform.platform()}"
    needed = ((package, _version_of(package) or "NOT INSTALLED") for package in _NEEDED)
    return [("rawgrad", f"{version} in {place}"), ("Python", python), *needed]


def _processor() -> Rows:
    from threadpoolctl import threadpool_info

    model = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
        model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), model)
    except OSError:
        pass  # not Linux
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    rows = [("CPU", model), ("cores", f"{usable} usable of {os.cpu_count()}")]
    for pool in threadpool_info():
        if pool["user_api"] == "blas":
            kind = pool.get("architecture")
            name = f"{pool['internal_api']} {pool['version']}{f' ({kind})' if kind else ''}"
            rows.append(
                ("BLAS", f"{name}, {pool['num_threads']} threads; 1 beside compiled kernels, which have them all")
            )
    return rows if len(rows) > 2 else [*rows, ("BLAS", "none that threadpoolctl knows")]


def _cpu_kernels() -> Rows:
    """Of backend ``numba``: threads and why so many, vectors, and what is compiled already."""
    if problem := BACKENDS["numba"].problem():
        return [("numba", f"does not run: {problem}")]
    from ..kernels._simd import vector_bytes

    numba: Any = importlib.import_module("numba")
    numba.get_num_threads()  # starts them, so that there is a layer

    bounds = ", ".join(f"{name} {count}" for name, count in _threads.limits().items())
    folder = cache_folder("numba")
    sizes = [file.stat().st_size for file in folder.rglob("*.bin")]
    kept = f"{folder}, {len(sizes)} functions, {sum(sizes) / 1e6:.1f} MB"
    return [
        (
            "threads",
            f"{_threads.get_num_threads()} ({bounds}); RAWGRAD_THREADS or `rawgrad train --threads N` sets them",
        ),
        ("started by", f"{numba.threading_layer()}, {_threads.most_threads()} at most"),
        ("vectors", f"{vector_bytes()} bytes: {vector_bytes() // 4} numbers of float32"),
        ("cache", f"{kept}{'; for this process alone: no folder can be written to' if is_temporary(folder) else ''}"),
    ]


def _devices() -> Rows:
    rows = []
    for name in dict.fromkeys(known.device for known in BACKENDS.values()):
        try:
            rows.append((name, f"available: {device_named(name).description}".removesuffix(": ")))
        except RawgradError as error:
            rows.append((name, str(error).removeprefix(f"device {name!r} is ")))
    return rows


def _backends() -> Rows:
    """Each backend that says it can run multiplies two matrices to prove it."""
    rows, taken = [], set()
    for name, known in BACKENDS.items():
        problem = known.problem()
        if problem is None and known.implements("gemm"):
            try:
                with backend(name):  # of two devices called "cuda" the active backend names one
                    device = device_named(known.device)
                    product = device.to_host(gemm(*(device.from_host(np.full((2, 2), v)) for v in (2.0, 3.0))))
                problem = None if (product == 12).all() else f"its product is wrong: {product.tolist()}"
            except Exception as error:  # whatever a broken installation raises
                problem = f"{type(error).__name__}: {error}"
        if problem is not None:
            rows.append((name, f"{known.device}: does not run: {problem}"))
            continue
        default = known.device not in taken and not known.by_name_only
        chosen = current_choice().for_device(known.device) == name
        marks = [mark for mark, holds in (("the default", default), ("chosen", chosen)) if holds]
        rows.append((name, f"{known.device}: {', '.join(['runs', *marks])}; {known.summary}"))
        taken |= {known.device} if default else set()
    return rows


def _cuda() -> Rows:
    """What the backends `cuda` and `emulated` rest on, each with what installs it."""
    driver, gpus, extra = _driver()
    package = next((name for name in ("cupy-cuda12x", "cupy-cuda13x", "cupy") if _version_of(name)), None)
    nvrtc_found, nvrtc_missing = nvrtc.find(), nvrtc.problem()
    compiler, folder = build.compiler(), cache_folder("emulator").parent
    used = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    return [
        ("driver", driver),
        *(("GPU", gpu) for gpu in gpus),
        ("CuPy", f"{package} {_version_of(package)}" if package else f"not installed; {extra}"),
        ("NVRTC", nvrtc_missing or f"{nvrtc_found and nvrtc_found.path}, {nvrtc_found}"),
        ("C++ compiler", f"no emulator: {build.problem()}" if build.problem() else f"{compiler}, for the emulator"),
        ("cache", f"{folder}, {used / 1e6:.0f} MB of compiled kernels; RAWGRAD_CACHE names another"),
    ]


def _libcuda() -> ctypes.CDLL:
    return ctypes.CDLL("libcuda.so.1")


def _driver() -> tuple[str, list[str], str]:
    """What the NVIDIA driver says of itself and of its GPUs, and which extra of rawgrad fits it.

    Asked without CuPy, which may be missing or be of the wrong CUDA.  Source of the calls and numbers: NVIDIA,
    *CUDA Driver API*.
    """
    either = "`pip install rawgrad[cuda12]`, or [cuda13] for a driver of CUDA 13, brings it"
    try:
        library = _libcuda()
    except OSError:
        return "no NVIDIA driver: libcuda.so.1 was not found", [], either
    status, version, count = library.cuInit(0), ctypes.c_int(), ctypes.c_int()
    library.cuDriverGetVersion(ctypes.byref(version))
    major = version.value // 1000
    said = f"for CUDA {major}.{version.value % 1000 // 10} and older"
    extra = f"`pip install rawgrad[cuda{13 if major >= 13 else 12}]` brings it"
    if status:
        return f"{said}; it does not start (error {status})", [], extra
    library.cuDeviceGetCount(ctypes.byref(count))
    gpus = []
    for number in range(count.value):
        name, memory, of_architecture = ctypes.create_string_buffer(100), ctypes.c_size_t(), []
        library.cuDeviceGetName(name, len(name), number)
        library.cuDeviceTotalMem_v2(ctypes.byref(memory), number)
        for attribute in (75, 76):  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, _MINOR
            value = ctypes.c_int()
            library.cuDeviceGetAttribute(ctypes.byref(value), attribute, number)
            of_architecture.append(value.value)
        architecture = 10 * of_architecture[0] + of_architecture[1]
        made = "" if architecture >= 80 else "; too old: rawgrad's kernels are for sm_80 and newer"
        gpus.append(f"{name.value.decode()}, sm_{architecture}, {memory.value / 2**30:.0f} GiB{made}")
    return said, gpus or ["none"], extra


def _data(data_dir: Path | None) -> Rows:
    try:
        mnist = f"found in {find_mnist(data_dir)}"
    except RawgradError as error:
        mnist = "\n".join([line if i == 0 else f"    {line.strip()}" for i, line in enumerate(str(error).splitlines())])
    return [("digits", "bundled with scikit-learn"), ("MNIST", mnist)]


def _optional() -> Rows:
    rows = []
    for name, use in _OPTIONAL.items():
        if importlib.util.find_spec(name) is None:
            rows.append((name, f"not installed ({use})"))
        else:
            rows.append((name, f"{_version_of(name.replace('_', '-')) or 'installed'} ({use})"))
    return rows
