"""Runs kernels on an NVIDIA GPU through CuPy; the other half of :mod:`kernels._launch`.

A unit is compiled by CuPy's RawModule, which keeps it on disk between runs.  Only for an architecture
whose name CuPy cannot ask for (``sm_90a``) NVRTC is called directly.  A launch packs nothing: it hands
``cuLaunchKernel`` the argument buffer as it is, on CuPy's current stream.

A GPU reports most faults of a kernel later than its launch: see :mod:`.faults`.  With ``RAWGRAD_DEBUG=1`` each
launch waits for its end, so that the guilty one is known.
"""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any

from .. import _graph
from .._errors import DeviceError, LaunchError
from . import nvrtc
from .device import own_folder_hidden
from .faults import faults_named, launch_error, recent
from .source import read_source
from .tensor_map import encoded

if TYPE_CHECKING:
    from pathlib import Path

    from .._launch import Kernel, Operand
    from .._tensor_map import TensorMap

#: CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
_MAX_DYNAMIC_SHARED = 8
#: More dynamic shared memory than this must be asked for, once per function.
_SHARED_WITHOUT_ASKING = 48 * 1024
#: CU_LAUNCH_PARAM_BUFFER_POINTER, its value, CU_LAUNCH_PARAM_BUFFER_SIZE, where its value stands, END; the size.
_EXTRA = "PPPPPN"
_SIZE_AT, _ARGUMENTS_AT = 5 * struct.calcsize("P"), struct.calcsize(_EXTRA)


@cache
def _buffer_of(size: int) -> tuple[Callable[[], Any], struct.Struct]:
    """For ``size`` bytes of arguments: what makes a buffer for all of the above, and its format."""
    whole = struct.Struct(f"{_EXTRA}{size}s")
    return ctypes.c_char * whole.size, whole


@dataclass
class _Function:
    """A kernel instance on one GPU."""

    pointer: int
    module: Any  # keeps the code loaded
    shared: int = _SHARED_WITHOUT_ASKING


@dataclass
class _Handle:
    """A kernel instance, loaded on each GPU when it is first launched there."""

    kernel: Kernel
    expression: str
    functions: dict[int, _Function] = field(default_factory=dict)


class CudaRuntime:
    """Runs kernels on the GPU that is current in CuPy."""

    synchronous = False

    def __init__(self) -> None:
        with own_folder_hidden():
            import cupy
        self._cupy = cupy
        self._driver = cupy.cuda.driver
        self._current_device: Callable[[], int] = cupy.cuda.runtime.getDevice
        self._current_stream: Callable[[], Any] = cupy.cuda.get_current_stream
        self._architectures: dict[int, int] = {}
        self._multiprocessors: dict[int, int] = {}
        self._modules: dict[tuple[Path, tuple[str, ...], int], Any] = {}
        self._wait = bool(os.environ.get("RAWGRAD_DEBUG"))

    def architecture(self) -> int:
        """Of the current GPU."""
        number = self._current_device()
        known = self._architectures.get(number)
        if known is None:
            known = self._architectures[number] = int(self._cupy.cuda.Device(number).compute_capability)
        return known

    def multiprocessors(self) -> int:
        """Of the current GPU."""
        number = self._current_device()
        known = self._multiprocessors.get(number)
        if known is None:
            properties = self._cupy.cuda.runtime.getDeviceProperties(number)
            known = self._multiprocessors[number] = int(properties["multiProcessorCount"])
        return known

    def stream(self) -> int:
        """CuPy's current stream."""
        return self._current_stream().ptr

    def address(self, array: Any) -> int:
        """Where the array's first element lies on the GPU."""
        return array.data.ptr

    def tensor_map(self, tensor: TensorMap) -> bytes:
        """The driver's 128 bytes."""
        return encoded(tensor, self.address(tensor.array))

    def load(self, kernel: Kernel, expression: str) -> _Handle:
        """Compile the instance with its unit, for the current GPU."""
        handle = _Handle(kernel, expression)
        self._on(self._current_device(), handle)
        return handle

    def bind(
        self,
        handle: _Handle,
        grid: tuple[int, ...],
        block: tuple[int, ...],
        shared: int,
        arguments: bytes,
        operands: Sequence[Operand],
    ) -> Callable[[], None]:
        """What starts the kernel on the stream that is current then."""
        number = self._current_device()
        name = handle.expression
        for operand in operands:
            if operand.array.data.device_id != number:
                raise DeviceError(
                    f"{name}: {operand.name} is on GPU {operand.array.data.device_id}; the current one is {number}"
                )
        function = handle.functions.get(number) or self._on(number, handle)
        if shared > function.shared:
            try:
                self._driver.funcSetAttribute(function.pointer, _MAX_DYNAMIC_SHARED, shared)
            except self._driver.CUDADriverError as error:
                raise LaunchError(f"{name}: this GPU has no {shared:,} bytes of shared memory for a block") from error
            function.shared = shared

        # One buffer: what cuLaunchKernel reads as `extra`, then the size, then the arguments.
        size = len(arguments)
        make, whole = _buffer_of(size)
        buffer = make()
        base = ctypes.addressof(buffer)
        whole.pack_into(buffer, 0, 1, base + _ARGUMENTS_AT, 2, base + _SIZE_AT, 0, size, arguments)
        dimensions = (function.pointer, *grid, *block, shared)
        start, refused, current_stream = self._driver.launchKernel, self._driver.CUDADriverError, self._current_stream
        wait = self._cupy.cuda.runtime.streamSynchronize if self._wait else None
        alive = (buffer, operands, function)  # as long as it may be launched

        def launch(alive: Any = alive) -> None:
            stream = current_stream().ptr
            try:
                start(*dimensions, stream, 0, base)
            except refused as error:
                how = f"grid {grid}, block {block}, {shared} bytes of dynamic shared memory"
                raise launch_error(name, error, how) from error
            recent.append(name)
            if wait is not None and _graph.current() is None:  # captured work does not run yet
                with faults_named():
                    wait(stream)

        return launch

    def _on(self, number: int, handle: _Handle) -> _Function:
        """The instance on GPU ``number``, which is the current one."""
        kernel, expression = handle.kernel, handle.expression
        unit = tuple(kernel.unit(expression))
        key = (kernel.path, unit, number)
        module = self._modules.get(key)
        exact = f"sm_{self.architecture()}a"
        if module is None:
            make = self._through_nvrtc if exact in kernel.architectures else self._through_cupy
            module = self._modules[key] = make(kernel.path, unit, exact)
        found = handle.functions[number] = _Function(module(expression), module)
        return found

    def _through_cupy(self, path: Path, unit: tuple[str, ...], _: str) -> Callable[[str], int]:
        """From an expression to its function's address; compiled by CuPy."""
        module = self._cupy.RawModule(
            code=read_source(path).text, options=nvrtc.OPTIONS, name_expressions=list(unit), backend="nvrtc"
        )

        def pointer(expression: str) -> int:
            try:
                return module.get_function(expression).kernel.ptr
            except self._cupy.cuda.compiler.CompileException as error:
                raise nvrtc.compile_error(path, f"for sm_{self.architecture()}", error.get_message()) from error

        return pointer

    def _through_nvrtc(self, path: Path, unit: tuple[str, ...], architecture: str) -> Callable[[str], int]:
        """The same for an architecture that CuPy does not ask for, by the NVRTC of CuPy's CUDA."""
        library = nvrtc.required(self._cupy.cuda.nvrtc.getVersion()[0])
        made = nvrtc.compiled(library, path, unit, architecture)
        module = self._cupy.cuda.function.Module()
        module.load(made.cubin)
        return lambda expression: module.get_function(made.names[expression]).ptr
