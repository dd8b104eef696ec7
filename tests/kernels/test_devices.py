"""Which device an array lives on, and which of two devices "cuda" is."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from rawgrad.kernels import _devices
from rawgrad.kernels._contracts import common_device
from rawgrad.kernels._cuda import device as cuda_device
from rawgrad.kernels._devices import Device, device_named, device_of, is_array
from rawgrad.kernels._dispatch import BACKENDS, Choice, reset_choice, set_choice
from rawgrad.kernels._errors import DeviceError, OutOfMemoryError
from rawgrad.kernels._graph import DeviceGraph, outside


@pytest.fixture
def simulated() -> Iterator[Device]:
    """The simulated GPU, as the active choice of the backend `emulated` gives it."""
    token = set_choice(Choice().with_backend(BACKENDS["emulated"], {}))
    yield device_named("cuda")
    reset_choice(token)


class StandIn:
    """An array of the stand-in for CuPy below: it has a size, and is of the class `cupy.ndarray`."""

    def __init__(self, host: np.ndarray) -> None:
        self.host, self.size = host, host.size


StandIn.__module__, StandIn.__qualname__ = "cupy", "ndarray"


class StandInError(Exception):
    """For CUDARuntimeError."""


class StandInOutOfMemory(MemoryError):
    """For cupy.cuda.memory.OutOfMemoryError."""


@pytest.fixture
def cupy(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A stand-in for CuPy with just what is asked of it before the first kernel; no GPU is simulated."""

    def count() -> int:
        if isinstance(module.devices, Exception):
            raise module.devices
        return module.devices

    def allocate(size: int) -> str:
        if size > 100:
            raise StandInOutOfMemory(f"Out of memory allocating {size} bytes")
        return f"{size} bytes"

    module: Any = ModuleType("cupy")
    module.__spec__ = SimpleNamespace(name="cupy")
    module.__version__, module.ndarray, module.array, module.devices = "0.0", StandIn, StandIn, 1
    module.get_default_memory_pool = lambda: SimpleNamespace(
        used_bytes=lambda: 1000, total_bytes=lambda: 3000, get_limit=lambda: module.limit
    )
    module.limit, module.allocator = 0, allocate
    module.cuda = SimpleNamespace(
        runtime=SimpleNamespace(
            CUDARuntimeError=StandInError,
            getDeviceCount=count,
            getDevice=lambda: 0,
            getDeviceProperties=lambda number: {"name": b"Stand-in 100"},
            memGetInfo=lambda: (2000, 80_000_000_000),
        ),
        memory=SimpleNamespace(OutOfMemoryError=StandInOutOfMemory),
        get_allocator=lambda: module.allocator,
        set_allocator=lambda new: setattr(module, "allocator", new),
    )
    monkeypatch.setitem(sys.modules, "cupy", module)
    cuda_device.problem.cache_clear()
    cuda_device._device.cache_clear()
    yield module
    _devices._by_type.pop(StandIn, None)
    cuda_device.problem.cache_clear()
    cuda_device._device.cache_clear()


def test_the_choice_says_which_device_cuda_is(simulated: Device, cupy: Any) -> None:
    assert str(simulated) == "'cuda' (simulated)" and simulated.name == "cuda"
    assert device_of(simulated.from_host(np.zeros(2))) is simulated
    token = set_choice(Choice())
    real = device_named("cuda")
    reset_choice(token)
    assert real.array_module is cupy and str(real) == "'cuda' (CuPy on Stand-in 100)"
    assert device_named("cuda") is simulated
    assert device_of(StandIn(np.zeros(2))) is real
    assert device_of(simulated.from_host(np.zeros(2))) is simulated


@pytest.mark.parametrize("ask", [device_of, lambda array: is_array(array) and device_of(array)])
def test_arrays_of_cupy_are_known_before_anyone_asked_for_the_gpu(ask: Callable[..., Device], cupy: Any) -> None:
    array = StandIn(np.zeros(3))
    assert StandIn not in _devices._by_type
    assert ask(array).array_type is StandIn
    assert StandIn in _devices._by_type


def test_two_devices_of_one_name_do_not_mix(simulated: Device, cupy: Any) -> None:
    ours, theirs = simulated.from_host(np.zeros(2)), StandIn(np.zeros(2))
    assert common_device("gemm", a=ours, b=None, c=ours) == common_device("gemm", a=theirs) == "cuda"
    message = r"gemm: .*; a is on 'cuda' \(simulated\), b on 'cuda' \(CuPy on Stand-in 100\)"
    with pytest.raises(DeviceError, match=message):
        common_device("gemm", a=ours, b=theirs)
    with pytest.raises(DeviceError, match=r"gemm: .*; a is on 'cpu', b on 'cuda' \(simulated\)"):
        common_device("gemm", a=np.zeros(2), b=ours)


def test_a_missing_gpu_is_explained(cupy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def message() -> str:
        cuda_device.problem.cache_clear()
        with pytest.raises(DeviceError, match="device 'cuda' is not available here: ") as raised:
            device_named("cuda")
        assert 'rawgrad.backend("emulated")' in str(raised.value) and "RAWGRAD_BACKEND=emulated" in str(raised.value)
        return str(raised.value)

    cupy.devices = 0
    assert "CuPy 0.0 finds no NVIDIA GPU" in message()
    cupy.devices = StandInError("cudaErrorInsufficientDriver")
    assert "finds no NVIDIA driver that it can use: cudaErrorInsufficientDriver" in message()
    monkeypatch.setitem(sys.modules, "cupy", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    assert "CuPy does not load: ModuleNotFoundError" in message()
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "CuPy is not installed; `pip install rawgrad[cuda12]`" in message()


def test_out_of_memory_names_the_request_and_the_state_of_the_pool(cupy: Any) -> None:
    assert device_named("cuda").array_module is cupy
    assert cupy.allocator(5) == "5 bytes"
    message = r"asked for 12,345 bytes; CuPy's pool uses 1,000 and holds 3,000; of the GPU's 80,000,000,000 bytes 2,000"
    with pytest.raises(OutOfMemoryError, match=message) as raised:
        cupy.allocator(12345)
    assert isinstance(raised.value.__cause__, StandInOutOfMemory)
    cupy.limit = 4000
    with pytest.raises(MemoryError, match=r"holds 3,000 \(limited to 4,000\);"):
        cupy.allocator(12345)


def test_a_graph_is_captured_on_a_stream_and_in_a_pool_of_its_own(cupy: Any) -> None:
    """What CuPy is asked, in order; its default pool makes room where the graph's finds none."""
    said: list[Any] = []

    class Stream:
        def __init__(self, non_blocking: bool = False) -> None:
            self.name = "own" if non_blocking else "null"

        def __enter__(self) -> None:
            said.append(f"enter {self.name}")

        def __exit__(self, *error: object) -> None:
            said.append(f"leave {self.name}")

        def __getattr__(self, call: str) -> Callable[..., Any]:
            def answer(*given: Any) -> Any:
                said.append(f"{self.name}.{call}")
                return SimpleNamespace(launch=lambda stream: said.append(f"launch on {stream.name}"))

            return answer

    @contextmanager
    def using_allocator(allocate: Any) -> Iterator[None]:
        said.append(allocate)
        yield
        said.append("default allocator")

    def malloc(size: int) -> int:
        if "made room" not in said:
            raise StandInOutOfMemory("full")
        return size

    null = Stream()
    cupy.cuda.Stream, cupy.cuda.get_current_stream, cupy.cuda.using_allocator = Stream, lambda: null, using_allocator
    cupy.cuda.MemoryPool = lambda: SimpleNamespace(malloc=malloc)
    cupy.cuda.runtime.deviceSynchronize = lambda: said.append("wait")
    cupy.get_default_memory_pool = lambda: SimpleNamespace(free_all_blocks=lambda: said.append("made room"))
    graph = DeviceGraph(device_named("cuda"))
    with graph.recording(), outside():
        pass
    graph.launch()
    allocate = said[3]
    assert said == [
        "wait", "null.record", "own.wait_event", allocate, "enter own", "own.begin_capture", "enter null", "leave null",
        "own.end_capture", "leave own", "default allocator", "own.record", "null.wait_event", "launch on null",
    ]  # fmt: skip
    assert allocate(5) == 5 and said[-1] == "made room"


def test_an_unknown_device_is_refused() -> None:
    for name in ("tpu", None, ["cpu"]):
        with pytest.raises(DeviceError, match="is not available here; available: 'cpu'"):
            device_named(name)  # type: ignore[arg-type]
    with pytest.raises(DeviceError, match=r"expected an array of a known device, got builtins\.list"):
        device_of([1.0])
    assert not is_array([1.0]) and is_array(np.zeros(1))


def test_our_own_folder_is_hidden_while_nvidias_packages_load(monkeypatch: pytest.MonkeyPatch) -> None:
    """`python -m` puts the working folder on sys.path; our cuda.py must not be taken for NVIDIA's `cuda`."""
    here = cuda_device.__file__.rpartition("/kernels/")[0]
    monkeypatch.setattr(sys, "path", ["elsewhere", here, *sys.path])
    before = list(sys.path)
    with cuda_device.own_folder_hidden():
        assert here not in sys.path and "elsewhere" in sys.path
    assert sys.path == before


def test_neither_device_is_loaded_before_it_is_asked_for() -> None:
    code = (
        "import sys, rawgrad as rg\n"
        "rg.zeros(2) + 1\n"
        "try: rg.cuda.synchronize()\n"
        "except rg.DeviceError: pass\n"
        "print(*sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not [name for name in done.stdout.split() if name.startswith("rawgrad.kernels._emulator")]
