"""Tensor maps: what TMA cannot do is refused, and the driver is asked for what was said."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rawgrad.kernels import _launch
from rawgrad.kernels._cuda import tensor_map
from rawgrad.kernels._devices import device_named
from rawgrad.kernels._dispatch import BACKENDS
from rawgrad.kernels._dispatch import backend as use_backend
from rawgrad.kernels._errors import ArgumentError, BackendError, DtypeError, LaunchError, ShapeError
from rawgrad.kernels._launch import Kernel
from rawgrad.kernels._tensor_map import TensorMap

PROBLEM = BACKENDS["emulated"].problem()
needs_emulator = pytest.mark.skipif(PROBLEM is not None, reason=f"backend 'emulated' cannot run here: {PROBLEM}")


def array(*shape: int, dtype: Any = np.float32) -> np.ndarray:
    return np.zeros(shape, dtype)


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        ((array(4, 8), (4, 8)), {"to_tf32": True, "swizzle": 64}, ArgumentError, "with swizzle 64, rows .* 32 bytes"),
        ((array(4, 8), (4, 8)), {"swizzle": 48}, ArgumentError, "with swizzle 48"),
        ((array(4, 8), (4, 2)), {}, ArgumentError, "with swizzle 0, rows of a box cannot have 8 bytes"),
        ((array(4, 8), (4, 300)), {}, ArgumentError, "a box has 2 sides of 1 to 256"),
        ((array(4, 8), (8,)), {}, ArgumentError, "a box has 2 sides"),
        ((array(4, 9), (4, 4)), {}, ShapeError, "rows must be a multiple of 16 bytes; got 9 of 4 bytes"),
        ((array(8), (8,)), {}, ShapeError, "2 to 5 dimensions"),
        ((array(8, 4).T, (4, 4)), {}, ShapeError, "C-contiguous"),
        ((array(0, 8), (4, 8)), {}, ShapeError, "must have elements"),
        ((array(4, 8), (4, 8)), {"columns": 9}, ShapeError, r"in the array; got \(4, 9\)"),
        ((array(4, 8, dtype=np.float64), (4, 8)), {"to_tf32": True}, DtypeError, "tf32 is made of float32: float64"),
        ((array(4, 8, dtype=np.complex64), (4, 8)), {}, DtypeError, "no such element: complex64"),
    ],
)
def test_what_tma_cannot_do_is_refused(arguments: Any, options: Any, error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        TensorMap(*arguments, **options)


def test_the_driver_is_asked_for_what_was_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """In its own order: the fastest dimension first, strides without the first."""
    asked: dict[str, Any] = {}

    def encode(room: int, code: int, rank: int, address: int, *rest: Any) -> int:
        sizes, strides, box, steps, *modes = rest
        asked.update(code=code, rank=rank, address=address, sizes=[*sizes], strides=[*strides])
        asked.update(box=[*box], steps=[*steps], modes=modes, aligned=room % 64 == 0)
        ctypes.memmove(room, bytes(range(128)), 128)
        return 0

    monkeypatch.setattr(tensor_map, "_encoder", lambda: encode)
    tensor = TensorMap(array(3, 5, 12), (1, 4, 8), 32, columns=10, to_tf32=True)
    assert tensor_map.encoded(tensor, 4096) == bytes(range(128))
    assert asked == {
        "code": 11, "rank": 3, "address": 4096, "sizes": [10, 5, 3], "strides": [48, 240], "box": [8, 4, 1],
        "steps": [1, 1, 1], "modes": [0, 1, 2, 0], "aligned": True,
    }  # fmt: skip
    with pytest.raises(ArgumentError, match="must begin at a multiple of 16 bytes; got 0x1004"):
        tensor_map.encoded(tensor, 4100)
    monkeypatch.setattr(tensor_map, "_encoder", lambda: lambda *_: 1)
    with pytest.raises(LaunchError, match=r"refuses a tensor map \(error 1\)"):
        tensor_map.encoded(tensor, 4096)


def test_a_machine_without_a_driver_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(tensor_map.ctypes, "CDLL", missing)
    with pytest.raises(BackendError, match=r"need a driver of CUDA 12 or newer: libcuda.so.1"):
        tensor_map._encoder.__wrapped__()


@needs_emulator
def test_a_kernel_takes_maps_at_any_place(tmp_path: Path) -> None:
    """A map begins at a multiple of 64 bytes among the arguments, whatever stands before it."""
    source = tmp_path / "takes.cu"
    source.write_text(
        '#include "tma.cuh"\n'
        "struct Shared { alignas(128) float of[32]; Barrier barrier; };\n"
        "__global__ void takes(int n, const __grid_constant__ TensorMap x, bool twice, double by,\n"
        "                      const __grid_constant__ TensorMap z, float* y) {\n"
        "  Shared& s = block_shared<Shared>();\n"
        "  init_barrier(s.barrier, 1);\n  fence_barrier_init();\n  arrive_expect(s.barrier, 128);\n"
        "  load_box(s.of, twice ? z : x, n, 0, s.barrier);\n  wait(s.barrier, 0);\n"
        "  for (int i = 0; i < 32; ++i) y[i] = s.of[i] * by;\n}\n"
    )
    with use_backend("emulated"):
        kernel = Kernel(source, "takes", ("sm_90a",))
        del _launch.KERNELS[source, "takes"]
        device = device_named("cuda")
        x, y = device.from_host(np.arange(64, dtype=np.float32)[None]), device.array_module.empty(32, np.float32)
        maps = TensorMap(x, (1, 32)), TensorMap(x + x, (1, 32))
        kernel(1, 1, 4, maps[0], False, 0.5, maps[1], y)
        np.testing.assert_array_equal(y.get(), np.arange(4, 36) / 2)
        kernel(1, 1, 4, maps[0], True, 0.5, maps[1], y)
        np.testing.assert_array_equal(y.get(), np.arange(4, 36))
        with pytest.raises(ArgumentError, match="takes: x must be a TensorMap; got int"):
            kernel(1, 1, 4, 7, True, 0.5, maps[1], y)
        with pytest.raises(LaunchError, match="the tensor map has 3 dimensions, the copy 2"):
            kernel(1, 1, 4, TensorMap(x[None], (1, 1, 32)), False, 0.5, maps[1], y)


@needs_emulator
def test_code_for_sm_90a_needs_that_gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    source = tmp_path / "plain.cu"
    source.write_text("__global__ void plain(int* y) { y[0] = 1; }\n")
    with use_backend("emulated"):
        y = device_named("cuda").array_module.empty(1, np.int32)
        for said in ("80", "100"):
            monkeypatch.setenv("RAWGRAD_EMULATED_ARCH", said)
            with pytest.raises(BackendError, match=f"plain is for sm_90a; this GPU is sm_{said}"):
                Kernel(source, "plain", ("sm_90a",))(1, 1, y)
        monkeypatch.delenv("RAWGRAD_EMULATED_ARCH")
        Kernel(source, "plain", ("sm_90a",))(1, 1, y)
        assert y.get().tolist() == [1]
        del _launch.KERNELS[source, "plain"]
