"""The CuPy side of a launch, with a stand-in for CuPy and the driver that records what it is asked to do.

No GPU is simulated here and no kernel runs: what is tested is what reaches ``cuLaunchKernel``, and what
becomes of its errors.  Tests at the end hold the stand-in to the real CuPy, where that is installed.
"""

from __future__ import annotations

import ctypes
import gc
import importlib.util
import inspect
import os
import subprocess
import sys
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

import rawgrad as rg
from rawgrad.kernels import _devices, _faults, _launch
from rawgrad.kernels._cuda import device as cuda_device
from rawgrad.kernels._cuda import faults, nvrtc
from rawgrad.kernels._devices import device_of
from rawgrad.kernels._errors import BackendError, DeviceError, IndexRangeError, LaunchError
from rawgrad.kernels._faults import NO_FAULT, fault_flag, watch
from rawgrad.kernels._launch import FLOATS, Kernel, Packed

SOURCE = """
#include "common.cuh"
struct Window { int R, S, stride; };

template <class T>
__global__ void __launch_bounds__(256) mixed(const T* __restrict__ x, T* y, int n, bool flag, double alpha,
    Window window, unsigned char code, long long step, T scale, const int* labels, float last) { y[0] = x[0]; }

template <class T>
__global__ void other(T* y) { y[0] = 1; }
"""


class Mixed(ctypes.Structure):
    """The parameters of ``mixed<double>`` as a C compiler lays them out."""

    _fields_ = [
        ("x", ctypes.c_void_p),
        ("y", ctypes.c_void_p),
        ("n", ctypes.c_int),
        ("flag", ctypes.c_bool),
        ("alpha", ctypes.c_double),
        ("window", ctypes.c_int * 3),
        ("code", ctypes.c_ubyte),
        ("step", ctypes.c_longlong),
        ("scale", ctypes.c_double),
        ("labels", ctypes.c_void_p),
        ("last", ctypes.c_float),
    ]


class StandInError(RuntimeError):
    """For CUDADriverError and CUDARuntimeError: an error with CUDA's number."""

    def __init__(self, status: int) -> None:
        super().__init__(f"CUDA error {status}")
        self.status = status


class StandInCompileException(Exception):
    """For cupy.cuda.compiler.CompileException."""

    def get_message(self) -> str:
        return str(self.args[0])


class StandIn:
    """For cupy.ndarray; its values are on the host, its address is made up."""

    def __init__(self, host: Any, address: int = 0, gpu: int = 0) -> None:
        self.host = np.asarray(host)
        self.dtype, self.shape, self.strides = self.host.dtype, self.host.shape, self.host.strides
        self.size, self.nbytes, self.itemsize, self.flags = (
            self.host.size,
            self.host.nbytes,
            self.host.itemsize,
            self.host.flags,
        )
        self.data = SimpleNamespace(ptr=address or self.host.ctypes.data, device_id=gpu)

    def get(self) -> np.ndarray:
        if waiting_errors:
            raise waiting_errors[0]
        return self.host.copy()


StandIn.__module__, StandIn.__qualname__ = "cupy", "ndarray"
waiting_errors: list[Exception] = []  # what the next waits find


@dataclass
class Launch:
    """One call of launchKernel, its buffer read as the driver reads it."""

    function: int
    grid: tuple[int, ...]
    block: tuple[int, ...]
    shared: int
    stream: int
    arguments: bytes


@dataclass
class World:
    """What the stand-in was asked to do, and what it is to answer."""

    launches: list[Launch] = field(default_factory=list)
    modules: list[Any] = field(default_factory=list)
    attributes: list[tuple[int, int, int]] = field(default_factory=list)
    cubins: list[bytes] = field(default_factory=list)
    waits: list[int] = field(default_factory=list)
    refusal: Exception | None = None  # of launches and attributes
    compile_error: Exception | None = None
    gpu: int = 0
    stream: int = 0x5000
    capability: str = "80"


def _launch_kernel(world: World, f: int, *rest: int) -> None:
    *sizes, shared, stream, params, extra = rest
    assert len(sizes) == 6 and params == 0
    if world.refusal is not None:
        raise world.refusal
    pointers = (ctypes.c_void_p * 5).from_address(extra)
    # CU_LAUNCH_PARAM_BUFFER_POINTER, CU_LAUNCH_PARAM_BUFFER_SIZE and CU_LAUNCH_PARAM_END of cuda.h
    assert (pointers[0], pointers[2], pointers[4]) == (1, 2, None)
    length = ctypes.c_size_t.from_address(pointers[3] or 0).value
    arguments = ctypes.string_at(pointers[1] or 0, length)
    world.launches.append(Launch(f, tuple(sizes[:3]), tuple(sizes[3:]), shared, stream, arguments))


def _set_attribute(world: World, *call: int) -> None:
    if world.refusal is not None:
        raise world.refusal
    world.attributes.append(call)  # type: ignore[arg-type]


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    """The stand-in in the place of CuPy."""
    world = World()

    class RawModule:
        def __init__(self, **options: Any) -> None:
            self.options = options
            world.modules.append(self)

        def get_function(self, name: str) -> Any:
            if world.compile_error is not None:
                raise world.compile_error
            number = self.options["name_expressions"].index(name)
            return SimpleNamespace(kernel=SimpleNamespace(ptr=1000 * world.modules.index(self) + number))

    class Module:
        def load(self, cubin: bytes) -> None:
            world.cubins.append(cubin)

        def get_function(self, name: str) -> Any:
            assert name.encode() in world.cubins[-1], "the symbol is not in the code"
            return SimpleNamespace(ptr=77)

    def wait(*stream: int) -> None:
        world.waits.append(*stream or (0,))
        if waiting_errors:
            raise waiting_errors[0]

    def module(name: str, **members: Any) -> Any:
        made = ModuleType(name)
        made.__spec__ = SimpleNamespace(name=name, submodule_search_locations=[])  # type: ignore[assignment]
        made.__dict__.update(members)
        monkeypatch.setitem(sys.modules, name, made)
        return made

    cuda = SimpleNamespace(
        driver=SimpleNamespace(
            CUDADriverError=StandInError,
            launchKernel=lambda *call: _launch_kernel(world, *call),
            funcSetAttribute=lambda *call: _set_attribute(world, *call),
        ),
        runtime=SimpleNamespace(
            CUDARuntimeError=StandInError,
            getDeviceCount=lambda: 2,
            getDevice=lambda: world.gpu,
            getDeviceProperties=lambda number: {"name": b"Stand-in", "multiProcessorCount": 7},
            deviceSynchronize=wait,
            streamSynchronize=wait,
        ),
        Device=lambda number: SimpleNamespace(compute_capability=world.capability),
        get_current_stream=lambda: SimpleNamespace(ptr=world.stream),
        compiler=SimpleNamespace(CompileException=StandInCompileException),
        function=SimpleNamespace(Module=Module),
        nvrtc=SimpleNamespace(getVersion=lambda: (12, 9)),
        memory=SimpleNamespace(OutOfMemoryError=MemoryError),
        get_allocator=lambda: None,
        set_allocator=lambda allocator: None,
    )
    module(
        "cupy",
        __version__="0.0",
        ndarray=StandIn,
        array=StandIn,
        full=lambda size, value, dtype: StandIn(np.full(size, value, dtype)),
        concatenate=lambda arrays: StandIn(np.concatenate([a.host for a in arrays])),
        RawModule=RawModule,
        cuda=cuda,
    )

    def forget() -> None:
        for table in (_devices._by_type, _launch._runtimes, _faults._free_flags):
            table.pop(StandIn, None)  # type: ignore[attr-defined]
        for key in [key for key in _faults._watched if key[0] is StandIn]:
            del _faults._watched[key]
        cuda_device.problem.cache_clear()
        cuda_device._device.cache_clear()
        faults.recent.clear()
        waiting_errors.clear()

    monkeypatch.delenv("RAWGRAD_DEBUG", raising=False)
    forget()
    yield world
    forget()


@pytest.fixture
def source(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "mixed.cu"
    path.write_text(SOURCE)
    yield path
    for key in [key for key in _launch.KERNELS if key[0] == path]:
        del _launch.KERNELS[key]  # the compile table is of shipped kernels


def _call(kernel: Kernel, dtype: Any = np.float64, grid: Any = (3, 2), shared: int = 0) -> Callable[[], None]:
    x, y = StandIn(np.zeros((2, 3), dtype), 0x7F0000001000), StandIn(np.zeros(4, dtype), 0x7F0000002000)
    window = (5, (3, 2))
    bound = kernel[dtype].bind(
        grid, (8, 4), x, y, -7, True, 0.1, window, 200, 2**40, 1.5, None, np.float32(0.3), shared=shared
    )
    assert bound is not None
    return bound


def test_the_driver_gets_the_arguments_as_c_lays_them_out(world: World, source: Path) -> None:
    _call(Kernel(source, "mixed", T=FLOATS))()
    (launch,) = world.launches
    assert (launch.grid, launch.block, launch.shared, launch.stream) == ((3, 2, 1), (8, 4, 1), 0, 0x5000)
    assert len(launch.arguments) == Mixed.last.offset + 4
    got = Mixed.from_buffer_copy(launch.arguments.ljust(ctypes.sizeof(Mixed), b"\0"))
    assert (got.x, got.y, got.labels) == (0x7F0000001000, 0x7F0000002000, None)
    assert (got.n, got.flag, got.alpha, got.code, got.step, got.scale) == (-7, True, 0.1, 200, 2**40, 1.5)
    assert list(got.window) == [5, 3, 2] and got.last == np.float32(0.3)


def test_a_packed_struct_travels_as_its_bytes(world: World, tmp_path: Path) -> None:
    path = tmp_path / "packed.cu"
    path.write_text(
        "struct List { float* of[2]; int n; };\n__global__ void packed(int first, List list, int last) {}\n"
    )
    array = StandIn(np.zeros(1, np.float32))
    Kernel(path, "packed")[()](1, 32, 7, Packed(b"0123456789abcdef" + b"\x05\0\0\0\0\0\0\0", [array]), 9)
    del _launch.KERNELS[path, "packed"]
    expected = b"\x07\0\0\0\0\0\0\0" + b"0123456789abcdef" + b"\x05\0\0\0\0\0\0\0" + b"\x09\0\0\0"
    assert world.launches[0].arguments == expected


def test_a_bound_launch_is_made_again_on_the_stream_that_is_current_then(world: World, source: Path) -> None:
    bound = _call(Kernel(source, "mixed", T=FLOATS))
    for stream in (0x11, 0x22):
        world.stream = stream
        bound()
    assert [launch.stream for launch in world.launches] == [0x11, 0x22]
    assert world.launches[0].arguments == world.launches[1].arguments


def test_a_bound_launch_keeps_its_arrays_alive(world: World, source: Path) -> None:
    array = StandIn(np.zeros(1, np.float32))
    bound = Kernel(source, "other", T=FLOATS)[np.dtype(np.float32)].bind(1, 32, array)
    there = weakref.ref(array)
    del array
    gc.collect()
    assert there() is not None and bound is not None
    del bound
    gc.collect()
    assert there() is None


def test_no_blocks_launch_nothing(world: World, source: Path) -> None:
    Kernel(source, "other", T=FLOATS)[np.dtype(np.float32)]((0, 3), 32, StandIn(np.zeros(1, np.float32)))
    assert world.launches == []


def test_a_unit_is_compiled_once_from_one_text(world: World, source: Path) -> None:
    kernel = Kernel(source, "mixed", T=FLOATS)
    _call(kernel)()
    _call(kernel)()
    (module,) = world.modules
    assert module.options["name_expressions"] == ["mixed<double>"]
    assert module.options["options"] == nvrtc.OPTIONS and "-std=c++17" in nvrtc.OPTIONS
    code = module.options["code"]
    assert 'include "common.cuh"' not in code and "block_shared" in code  # CuPy's cache does not see into headers
    _call(kernel, np.float32)()
    assert len(world.modules) == 2
    assert [launch.function for launch in world.launches] == [0, 0, 1000]


def test_much_dynamic_shared_memory_is_asked_for_once(world: World, source: Path) -> None:
    kernel = Kernel(source, "mixed", T=FLOATS)
    for shared in (48 * 1024, 100_000, 100_000, 60_000, 163_840):
        _call(kernel, shared=shared)()
    # CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES is 8
    assert world.attributes == [(0, 8, 100_000), (0, 8, 163_840)]
    assert [launch.shared for launch in world.launches] == [48 * 1024, 100_000, 100_000, 60_000, 163_840]
    world.refusal = StandInError(1)
    with pytest.raises(LaunchError, match=r"mixed<double>: this GPU has no 300,000 bytes of shared memory"):
        _call(kernel, shared=300_000)


def test_each_gpu_gets_its_own_copy_and_no_array_of_another(world: World, source: Path) -> None:
    kernel = Kernel(source, "other", T=FLOATS)
    instance = kernel[np.dtype(np.float32)]
    instance(1, 32, StandIn(np.zeros(1, np.float32)))
    world.gpu = 1
    with pytest.raises(DeviceError, match=r"other<float>: y is on GPU 0; the current one is 1"):
        instance(1, 32, StandIn(np.zeros(1, np.float32)))
    instance(1, 32, StandIn(np.zeros(1, np.float32), gpu=1))
    assert [launch.function for launch in world.launches] == [0, 1000]


def test_a_source_that_does_not_compile_is_shown(world: World, source: Path) -> None:
    line = SOURCE.splitlines().index("__global__ void other(T* y) { y[0] = 1; }") + 1
    # as CUDA 12.0 and older say it: the line is named, not shown
    world.compile_error = StandInCompileException(
        f'{source}({line}): error: identifier "q" is undefined\n\n1 error detected in the compilation of "x.cu".\n'
    )
    with pytest.raises(LaunchError) as raised:
        Kernel(source, "other", T=FLOATS)[np.dtype(np.float32)](1, 32, StandIn(np.zeros(1, np.float32)))
    text = str(raised.value)
    assert f"{source} does not compile for sm_80" in text
    assert f'{source}({line}): error: identifier "q" is undefined\n    __global__ void other(T* y) {{' in text


def test_a_refused_launch_names_kernel_and_configuration(world: World, source: Path) -> None:
    bound = _call(Kernel(source, "mixed", T=FLOATS), shared=1024)
    world.refusal = StandInError(701)
    message = r"mixed<double> was not launched with grid \(3, 2, 1\), block \(8, 4, 1\), 1024 bytes of dynamic shared"
    with pytest.raises(LaunchError, match=message):
        bound()
    assert not faults.recent


def test_a_fault_of_an_earlier_launch_is_named_by_the_next_launch(world: World, source: Path) -> None:
    first, second = (Kernel(source, name, T=FLOATS)[np.dtype(np.float32)] for name in ("other", "mixed"))
    first(1, 32, StandIn(np.zeros(1, np.float32)))
    _call(second.kernel)()
    world.refusal = StandInError(700)
    with pytest.raises(LaunchError, match=r"mixed<float> was not launched: a kernel launched earlier failed") as raised:
        _call(second.kernel, np.float32)()
    assert "newest first: mixed<double>, other<float> (RAWGRAD_DEBUG=1" in str(raised.value)
    assert isinstance(raised.value.__cause__, StandInError)


@pytest.mark.parametrize("check", ["to_host", "synchronize"])
def test_a_fault_is_named_where_the_host_waits(world: World, source: Path, check: str) -> None:
    array = StandIn(np.zeros(1, np.float32))
    Kernel(source, "other", T=FLOATS)[np.dtype(np.float32)](1, 32, array)
    waiting_errors.append(StandInError(719))
    with pytest.raises(LaunchError, match=r"a kernel launched earlier failed.* newest first: other<float>"):
        device_of(array).to_host(array) if check == "to_host" else rg.cuda.synchronize()
    waiting_errors[:] = [StandInError(900)]  # not a kernel's fault: it stays what it is
    with pytest.raises(StandInError):
        device_of(array).to_host(array) if check == "to_host" else rg.cuda.synchronize()


def test_debug_waits_for_each_launch_and_names_the_guilty_one(
    world: World, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAWGRAD_DEBUG", "1")
    mixed = _call(Kernel(source, "mixed", T=FLOATS))
    other = Kernel(source, "other", T=FLOATS)[np.dtype(np.float32)]
    other(1, 32, StandIn(np.zeros(1, np.float32)))
    assert world.waits == [0x5000]
    waiting_errors.append(StandInError(716))
    with pytest.raises(LaunchError, match=r"^mixed<double> failed on the GPU: CUDA error 716"):
        mixed()


class TestWatch:
    """Bad data that kernels meet is reported when the host next waits for that stream."""

    @staticmethod
    def lower(flag: StandIn, position: int) -> None:
        flag.host[0] = min(flag.host[0], position)

    def test_at_the_next_copy_to_the_host(self, world: World) -> None:
        like = StandIn(np.zeros(2, np.float32))
        good, bad = fault_flag(like), fault_flag(like)
        watch(good, lambda position: AssertionError("nothing was wrong with this one"))
        watch(bad, lambda position: IndexRangeError(f"label {position} is out of range"))
        self.lower(bad, 5)
        with pytest.raises(IndexRangeError, match="label 5"):
            device_of(like).to_host(like)
        assert device_of(like).to_host(like) is not None
        again = fault_flag(like)
        assert again is good and again.host[0] == NO_FAULT  # the lowered one is not used again

    def test_not_before_its_own_stream_is_waited_for(self, world: World) -> None:
        like = StandIn(np.zeros(2, np.float32))
        flag = fault_flag(like)
        self.lower(flag, 1)
        world.stream = 0x11
        watch(flag, lambda position: IndexRangeError("bad"))
        world.stream = 0x22
        device_of(like).to_host(like)
        with pytest.raises(IndexRangeError, match="bad"):
            rg.cuda.synchronize()
        rg.cuda.synchronize()

    def test_the_oldest_speaks_and_many_are_not_kept(self, world: World) -> None:
        like = StandIn(np.zeros(2, np.float32))
        flags = [fault_flag(like) for _ in range(_faults._MAX_WATCHED + 1)]
        for flag in flags[3:]:
            self.lower(flag, 1)
        with pytest.raises(IndexRangeError, match="number 3"):
            for i, flag in enumerate(flags):
                watch(flag, lambda position, i=i: IndexRangeError(f"number {i}"))  # type: ignore[misc]
        assert not any(kind is StandIn for kind, _ in _faults._watched)


def test_a_gpu_for_which_a_kernel_is_not_made_is_named(world: World, source: Path) -> None:
    array = StandIn(np.zeros(1, np.float32))
    for capability, made_for in (("75", _launch.ARCHITECTURES), ("100", ("sm_90a",)), ("80", ("sm_90a",))):
        _launch._runtimes.pop(StandIn, None)
        world.capability = capability
        with pytest.raises(BackendError, match=rf"other is for sm_\w+.*; this GPU is sm_{capability}"):
            Kernel(source, "other", made_for, T=FLOATS)[np.dtype(np.float32)](1, 32, array)


def test_each_gpu_says_how_many_multiprocessors_it_has(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    array = StandIn(np.zeros(1, np.float32))
    assert _launch.multiprocessors(array) == 7
    asked: list[int] = []
    runtime: Any = _launch.runtime_of(array)
    monkeypatch.setattr(
        runtime._cupy.cuda.runtime, "getDeviceProperties", lambda n: asked.append(n) or {"multiProcessorCount": 9}
    )
    assert _launch.multiprocessors(array) == 7 and asked == []
    world.gpu = 1
    assert [_launch.multiprocessors(array) for _ in range(2)] == [9, 9] and asked == [1]


@pytest.mark.skipif(nvrtc.find(12) is None, reason=f"NVRTC of CUDA 12: {nvrtc.problem()}")
def test_only_an_architecture_that_cupy_cannot_name_goes_through_nvrtc(world: World, source: Path) -> None:
    array = StandIn(np.zeros(1, np.float32))
    world.capability = "90"
    Kernel(source, "other", ("sm_80", "sm_90a"), T=FLOATS)[np.dtype(np.float32)](1, 32, array)
    assert world.modules == [] and world.launches[0].function == 77
    assert world.cubins[0].startswith(b"\x7fELF")
    _launch._runtimes.pop(StandIn)
    world.capability = "100"
    Kernel(source, "other", ("sm_80", "sm_90a"), T=FLOATS)[np.dtype(np.float32)](1, 32, array)
    assert len(world.modules) == 1 and len(world.cubins) == 1


def test_our_cuda_module_does_not_hide_nvidias_package(tmp_path: Path) -> None:
    """A program started in the folder of rawgrad, where ``import cuda`` alone would find our cuda.py."""
    checkout = Path(cuda_device.__file__).parents[2]
    packages = tmp_path / "packages"
    (packages / "cuda" / "pathfinder").mkdir(parents=True)  # like NVIDIA's a package without __init__.py
    (packages / "cuda" / "pathfinder" / "__init__.py").write_text("found = True\n")
    (packages / "cuda" / "later.py").write_text("found = True\n")
    (packages / "cupy").mkdir()
    (packages / "cupy" / "__init__.py").write_text(
        "from types import SimpleNamespace\nimport cuda.pathfinder\n__version__ = '0'\n"
        "cuda = SimpleNamespace(runtime=SimpleNamespace(getDeviceCount=lambda: 0, CUDARuntimeError=OSError))\n"
    )
    (packages / "rawgrad").symlink_to(checkout)
    code = (
        "import sys; assert '' in sys.path\n"
        "import rawgrad\n"
        "print(rawgrad.backends()['cuda'])\n"
        "import cuda.later\n"  # as CuPy does when it first needs a library
        "print(cuda.__path__, cuda.later.found)\n"
        "assert '' in sys.path and rawgrad.cuda.is_available() is False\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(packages), "RAWGRAD_BACKEND": ""}
    done = subprocess.run([sys.executable, "-c", code], cwd=checkout, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "CuPy 0 finds no NVIDIA GPU" in done.stdout
    assert f"{packages / 'cuda'}" in done.stdout and "True" in done.stdout


@pytest.fixture
def real_cupy() -> Any:
    if importlib.util.find_spec("cupy") is None:
        pytest.skip("CuPy is not installed; the stand-in is not compared with it")
    with cuda_device.own_folder_hidden():
        return importlib.import_module("cupy")


def test_the_stand_in_has_the_names_of_the_real_cupy(real_cupy: Any) -> None:
    driver, runtime = real_cupy.cuda.driver, real_cupy.cuda.runtime
    launch = driver.launchKernel.__doc__.partition("(")[2].partition(")")[0]
    assert [p.split()[-1] for p in launch.split(", ")] == (
        "f grid_dim_x grid_dim_y grid_dim_z block_dim_x block_dim_y block_dim_z shared_mem_bytes stream "
        "kernel_params extra".split()
    )
    assert "int attribute, int value" in driver.funcSetAttribute.__doc__
    for error in (driver.CUDADriverError, runtime.CUDARuntimeError):
        assert issubclass(error, RuntimeError)
    assert issubclass(real_cupy.cuda.runtime.CUDARuntimeError, RuntimeError)
    assert real_cupy.cuda.compiler.CompileException("message", "source", "name", ()).get_message() == "message"
    assert hasattr(real_cupy.cuda.function.Module, "load") and hasattr(real_cupy.cuda.function.Function, "ptr")
    assert hasattr(real_cupy.RawKernel, "kernel")
    for name in ("getDevice", "deviceSynchronize", "streamSynchronize", "getDeviceProperties"):
        assert hasattr(real_cupy.cuda.runtime, name)
    for name in ("get_current_stream", "Device", "get_allocator", "set_allocator", "nvrtc"):
        assert hasattr(real_cupy.cuda, name)
    assert "getVersion" in dir(real_cupy.cuda.nvrtc)


def test_the_options_are_those_that_cupy_adds(real_cupy: Any) -> None:
    """So that the compile table is about the code that runs."""
    from cupy.cuda import compiler

    text = inspect.getsource(compiler)
    for option in nvrtc._AS_CUPY:
        assert f"'{option}'" in text
