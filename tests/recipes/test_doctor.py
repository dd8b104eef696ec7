"""The report's parts on CPU kernels and CUDA, with a stand-in for NVIDIA's driver; the rest is in test_command.py."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import pytest

from rawgrad.kernels import _threads
from rawgrad.kernels._cuda import nvrtc
from rawgrad.kernels._dispatch import BACKENDS, Backend
from rawgrad.kernels._simd import vector_bytes
from rawgrad.recipes import doctor


class StandInDriver:
    """For libcuda.so.1: a driver of CUDA 13.0 with an H100 and a V100, as `cuDeviceGetAttribute` & co. tell it."""

    version, start, gpus = 13000, 0, [(b"NVIDIA H100", 80 * 2**30, 9, 0), (b"Tesla V100", 16 * 2**30, 7, 0)]

    def cuInit(self, flags: int) -> int:
        assert flags == 0
        return self.start

    def cuDriverGetVersion(self, place: Any) -> int:
        return self._put(place, self.version)

    def cuDeviceGetCount(self, place: Any) -> int:
        return self._put(place, len(self.gpus))

    def cuDeviceGetName(self, place: Any, size: int, number: int) -> int:
        assert len(self.gpus[number][0]) < size
        place.value = self.gpus[number][0]
        return 0

    def cuDeviceTotalMem_v2(self, place: Any, number: int) -> int:
        return self._put(place, self.gpus[number][1])

    def cuDeviceGetAttribute(self, place: Any, attribute: int, number: int) -> int:
        return self._put(place, self.gpus[number][{75: 2, 76: 3}[attribute]])

    @staticmethod
    def _put(place: Any, value: int) -> int:
        place._obj.value = value
        return 0


def rows() -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for name, text in doctor._cuda():
        found.setdefault(name, []).append(text)
    return found


def test_driver_gpus_and_the_extra_that_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = StandInDriver()
    monkeypatch.setattr(doctor, "_libcuda", lambda: driver)
    monkeypatch.setattr(doctor, "_version_of", lambda package: None)
    said = rows()
    assert said["driver"] == ["for CUDA 13.0 and older"]
    assert said["GPU"] == [
        "NVIDIA H100, sm_90, 80 GiB",
        "Tesla V100, sm_70, 16 GiB; too old: rawgrad's kernels are for sm_80 and newer",
    ]
    assert said["CuPy"] == ["not installed; `pip install rawgrad[cuda13]` brings it"]
    driver.version, driver.gpus = 12090, []
    said = rows()
    assert said["driver"] == ["for CUDA 12.9 and older"] and said["GPU"] == ["none"]
    assert said["CuPy"] == ["not installed; `pip install rawgrad[cuda12]` brings it"]
    driver.start = 100
    assert rows()["driver"] == ["for CUDA 12.9 and older; it does not start (error 100)"]


def test_without_a_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> ctypes.CDLL:
        raise OSError("libcuda.so.1: cannot open shared object file")

    monkeypatch.setattr(doctor, "_libcuda", missing)
    monkeypatch.setattr(doctor, "_version_of", {"cupy-cuda13x": "14.2.0"}.get)
    said = rows()
    assert said["driver"] == ["no NVIDIA driver: libcuda.so.1 was not found"] and "GPU" not in said
    assert said["CuPy"] == ["cupy-cuda13x 14.2.0"]
    monkeypatch.setattr(doctor, "_version_of", lambda package: None)
    assert "`pip install rawgrad[cuda12]`, or [cuda13]" in rows()["CuPy"][0]


def test_what_compiles_and_where_it_is_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "emulator").mkdir()
    (tmp_path / "emulator" / "one.so").write_bytes(b"x" * 3_000_000)
    monkeypatch.setattr(doctor, "cache_folder", lambda name: tmp_path / name)
    monkeypatch.setattr(doctor.build, "problem", lambda: "it needs a C++ compiler: none was found")
    monkeypatch.setattr(nvrtc, "find", lambda: None)
    said = rows()
    assert said["cache"] == [f"{tmp_path}, 3 MB of compiled kernels; RAWGRAD_CACHE names another"]
    assert said["C++ compiler"] == ["no emulator: it needs a C++ compiler: none was found"]
    assert "pip install nvidia-cuda-nvrtc-cu12" in said["NVRTC"][0] or "Linux only" in said["NVRTC"][0]


def test_the_report_has_the_part() -> None:
    text = doctor.report("1.2.3")
    part = text.partition("\nCUDA\n")[2].partition("\ndata\n")[0]
    names = [line.split("  ")[1] for line in part.splitlines()]
    assert [name for name in ("driver", "CuPy", "NVRTC", "C++ compiler", "cache") if name in names] == [
        name for name in names if name != "GPU"
    ]
    assert "broken" not in part


def test_the_compiled_kernels(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    folder = tmp_path / "numba" / "gemm" / "0123"
    folder.mkdir(parents=True)
    for name in ("a.bin", "b.bin", "c.tmp"):
        (folder / name).write_bytes(b"x" * 600_000)
    monkeypatch.setattr(doctor, "cache_folder", lambda name: tmp_path / name)
    monkeypatch.setattr(_threads, "limits", lambda: {"processors that this process may use": 8, "quota": 3})
    monkeypatch.setattr(_threads, "count", 2)
    said = dict(doctor._cpu_kernels())
    assert said["threads"].startswith("2 (processors that this process may use 8, quota 3); RAWGRAD_THREADS or ")
    assert said["started by"] in (
        f"{layer}, {_threads.most_threads()} at most" for layer in ("omp", "tbb", "workqueue")
    )
    assert said["vectors"] == f"{vector_bytes()} bytes: {vector_bytes() // 4} numbers of float32"
    assert said["cache"] == f"{tmp_path}/numba, 2 functions, 1.2 MB"
    monkeypatch.setattr(doctor, "is_temporary", lambda folder: True)
    assert dict(doctor._cpu_kernels())["cache"].endswith("; for this process alone: no folder can be written to")


def test_without_compiled_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Backend, "problem", lambda self: "not installed: numba")
    assert doctor._cpu_kernels() == [("numba", "does not run: not installed: numba")]
    assert "numba" in BACKENDS


def test_what_rawgrad_needs_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_version_of", lambda package: None if package == "numba" else "1.0")
    assert ("numba", "NOT INSTALLED") in doctor._versions("1.2.3")
    text = doctor.report("1.2.3")
    assert "broken" not in text.partition("\nCPU kernels\n")[2].partition("\ndevices\n")[0]
    monkeypatch.setenv("RAWGRAD_THREADS", "many")  # a wrong setting is shown, and the rest of the report with it
    text = doctor.report("1.2.3")
    assert "broken         ArgumentError: RAWGRAD_THREADS must be an integer of at least 1; got 'many'" in text
    assert "\nCUDA\n" in text
