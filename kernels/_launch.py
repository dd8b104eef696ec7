"""Launching the kernels of ``.cu`` files, on a GPU through CuPy or on the emulator.

A launcher (``kernels/<operation>/cuda.py``) declares its kernels once::

    _PLAIN = Kernel(__file__, "gemm_v1_plain", T=FLOATS, TRANSPOSE_A=BOOLS, TRANSPOSE_B=BOOLS)

and launches an instance of the template with arrays and numbers in the order of the source's
parameters::

    _PLAIN[a.dtype, False, True](grid, block, a, b, None, y, M, N, K)

The types come from the ``.cu`` file.  A pointer takes a C-contiguous array of that dtype on the device,
or None for a null pointer; a struct of ints takes a tuple, nested as it may be; numbers are checked for
their range.  Which runtime runs it follows from the type of the arrays, so one launcher serves both.
"""

from __future__ import annotations

import itertools
import math
import re
import struct
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn, Protocol

import numpy as np

from ._cuda.source import Parameter, Source, read_source
from ._devices import device_of, is_array
from ._dtypes import FLOATS as FLOATS
from ._dtypes import HALVES, is_half, wide
from ._errors import ArgumentError, BackendError, DeviceError, DtypeError, LaunchError, ShapeError
from ._tensor_map import MAP_ALIGNMENT, MAP_BYTES, TensorMap

BOOLS = (False, True)
#: sm_100 is Blackwell, sm_90 Hopper, sm_89 Ada, sm_86 and sm_80 Ampere.
ARCHITECTURES = ("sm_80", "sm_86", "sm_89", "sm_90", "sm_100")

Grid = int | tuple[int, ...]
_INTEGERS = (int, np.integer)
_LISTS = (list, tuple)
#: What CUDA takes: blocks of a grid, and threads of a block along x, y, z and in all.
_GRID, _BLOCK, _MOST_THREADS = (2**31 - 1, 65535, 65535), (1024, 1024, 64), 1024
#: Blocks of a cluster that every GPU with clusters takes.
_MOST_IN_CLUSTER = 8

#: C type -> (NumPy dtype, struct format)
_TYPES: dict[str, tuple[np.dtype, str]] = {
    name: (np.dtype(dtype), code)
    for names, dtype, code in (
        (("float",), np.float32, "f"),
        (("double",), np.float64, "d"),
        (("Fp16",), HALVES[0], "H"),
        (("Bf16",), HALVES[1], "H"),
        (("bool",), np.bool_, "?"),
        (("signed char", "char", "int8_t"), np.int8, "b"),
        (("unsigned char", "uint8_t"), np.uint8, "B"),
        (("short", "int16_t"), np.int16, "h"),
        (("unsigned short", "uint16_t"), np.uint16, "H"),
        (("int", "int32_t"), np.int32, "i"),
        (("unsigned", "unsigned int", "uint32_t"), np.uint32, "I"),
        (("long long", "long", "long long int", "int64_t"), np.int64, "q"),
        (("unsigned long long", "unsigned long", "size_t", "uint64_t"), np.uint64, "Q"),
    )
    for name in names
}
#: A pointer to what numbers of a type are computed with in (_cuda/half.cuh).
_WIDE = re.compile(r"Wide<(\w+)>")
#: A pointer to one of CUDA's vector types takes an array of its components' dtype.
_VECTOR = re.compile(r"(float|double|u?char|u?short|u?int|u?longlong)[1-4]")
_COMPONENTS = {"uchar": np.uint8, "ushort": np.uint16, "uint": np.uint32, "longlong": np.int64, "ulonglong": np.uint64}
_C_NAMES = {dtype: name for name, (dtype, _) in reversed(_TYPES.items())}


class Packed(NamedTuple):
    """A struct argument that is already bytes, with the arrays to which its pointers point.

    It is laid out as C does and aligned to 8 bytes.  ``constant`` if the arrays may only be read.
    """

    data: bytes
    arrays: Sequence[Any]
    constant: bool = False


class Operand(NamedTuple):
    """An array that a launch may touch; ``constant`` if it may only read it."""

    name: str
    array: Any
    constant: bool


class Runtime(Protocol):
    """What runs kernels: :class:`._cuda.runtime.CudaRuntime` or :class:`._emulator.runtime.EmulatedRuntime`."""

    synchronous: bool  # whether a launch has ended when it returns

    def load(self, kernel: Kernel, expression: str) -> Any:
        """Compile the instance ``expression`` of ``kernel`` and give a handle for :meth:`bind`."""
        ...

    def address(self, array: Any) -> int:
        """The device address of an array's first element."""
        ...

    def tensor_map(self, tensor: TensorMap) -> bytes:
        """The 128 bytes that a kernel takes for ``tensor``."""
        ...

    def bind(
        self,
        handle: Any,
        grid: tuple[int, ...],
        block: tuple[int, ...],
        shared: int,
        arguments: bytes,
        operands: Sequence[Operand],
    ) -> Callable[[], None]:
        """What starts the kernel on the stream that is current then; it may touch the ``operands`` and nothing else."""
        ...

    def stream(self) -> int:
        """Which stream is current; only to be compared."""
        ...

    def architecture(self) -> int:
        """Ten times the compute capability: 80, 90, …"""
        ...

    def multiprocessors(self) -> int:
        """How many of them run blocks side by side."""
        ...


def runtime_of(array: Any) -> Runtime:
    """The runtime on which kernels that take ``array`` run; :class:`DeviceError` if there is none."""
    try:
        return _runtimes[type(array)]
    except KeyError:
        return _first_runtime(array)


_runtimes: dict[type, Runtime] = {}


def _first_runtime(array: Any) -> Runtime:
    device = device_of(array)
    if device.name != "cuda":
        raise DeviceError(f"CUDA kernels take arrays on device 'cuda'; got one on {device.name!r}")
    runtime: Runtime
    if device.array_type.__module__.partition(".")[0] == "cupy":
        from ._cuda.runtime import CudaRuntime

        runtime = CudaRuntime()
    else:
        from ._emulator.runtime import EmulatedRuntime

        runtime = EmulatedRuntime()
    return _runtimes.setdefault(type(array), runtime)


def architecture(array: Any) -> int:
    """Ten times the compute capability of the GPU that holds ``array``; the emulator says 90."""
    return runtime_of(array).architecture()


def multiprocessors(array: Any) -> int:
    """How many multiprocessors (SMs) the GPU has that holds ``array``; the emulator says 132, as an H100."""
    return runtime_of(array).multiprocessors()


def empty(like: Any, shape: tuple[int, ...] | int, dtype: Any = None) -> Any:
    """A new C-contiguous array on the device of ``like``; by default of its dtype."""
    return device_of(like).array_module.empty(shape, like.dtype if dtype is None else dtype)


def result(out: Any, like: Any, shape: tuple[int, ...], dtype: Any = None) -> Any:
    """``out``, or if it is None a new array on the device of ``like``."""
    return empty(like, shape, dtype) if out is None else out


def ceil_div(a: int, b: int) -> int:
    """a / b rounded up."""
    return -(-a // b)


class Kernel:
    """A ``__global__`` function of a ``.cu`` file, with the template arguments that are shipped.

    Args:
        launcher: a source; or ``__file__`` of a Python launcher, whose source is ``<folder>/<folder>.cu`` beside it.
        name: the function.
        architectures: for which it is compiled.
        templates: for each template parameter, in the order of the source, the values that it may
            take: dtypes, booleans or integers.

    The source is read at the first launch; :class:`LaunchError` then says if it has no such kernel, or other
    template parameters.
    """

    def __init__(
        self, launcher: str | Path, name: str, architectures: tuple[str, ...] = ARCHITECTURES, **templates: Any
    ) -> None:
        path = Path(launcher).absolute()
        if path.suffix in (".py", ".pyc"):
            path = path.parent / f"{path.parent.name}.cu"
        self.path = path
        self.name = name
        self.architectures = architectures
        self.templates = {key: tuple(values) for key, values in templates.items()}
        self._instances: dict[Any, Instance] = {}
        KERNELS[path, name] = self

    @property
    def source(self) -> Source:
        """The file, read when it is first needed."""
        return read_source(self.path)

    def instances(self) -> list[Instance]:
        """Every instance that is shipped."""
        return [self[combination] for combination in itertools.product(*self.templates.values())]

    def unit(self, expression: str) -> list[str]:
        """The name expressions that are compiled together with ``expression``: those of its first argument."""
        first = _first_argument(expression)
        every = [instance.expression for instance in self.instances()]
        return [e for e in every if _first_argument(e) == first]

    def __getitem__(self, templates: Any) -> Instance:
        try:
            return self._instances[templates]
        except (KeyError, TypeError):
            pass
        values = templates if isinstance(templates, tuple) else (templates,)
        try:  # what is equal to a shipped value, as 1 is to True and np.float32 to its dtype, stands for it
            values = tuple(
                choices[choices.index(v)] for v, choices in zip(values, self.templates.values(), strict=True)
            )
        except (ValueError, TypeError):
            raise LaunchError(
                f"{self.name}: no instance for template arguments {values}; shipped are {self.templates}"
            ) from None
        instance = self._instances.get(values) or Instance(self, values)
        self._instances[values] = self._instances[templates] = instance
        return instance

    def __call__(self, grid: Grid, block: Grid, *arguments: Any, shared: int = 0) -> None:
        """Launch a kernel that is no template; see :class:`Instance`."""
        self[()](grid, block, *arguments, shared=shared)

    def __repr__(self) -> str:
        return f"<Kernel {self.name} of {self.path.name}>"


#: Every kernel that has been declared, by source and name.
KERNELS: dict[tuple[Path, str], Kernel] = {}


def _first_argument(expression: str) -> str:
    return re.split(r"[<,>]", expression + "<", maxsplit=2)[1].strip()


def _spelled(value: Any) -> str:
    """A template argument in C++."""
    if isinstance(value, bool):
        return str(value).lower()
    return str(value) if isinstance(value, int) else _C_NAMES[np.dtype(value)]


class _Slot(NamedTuple):
    """How one argument is checked and packed: one of dtype, number and members is given, or none for a tensor map."""

    parameter: Parameter
    dtype: np.dtype | None  # of the array, for a pointer
    number: np.dtype | None  # for a number
    members: tuple[str, ...] | None  # for a struct of ints; () for one that comes packed
    code: str  # struct format; "" for what comes packed
    limits: tuple[float, float] = (0, 0)  # of a number


class _Plan(NamedTuple):
    """How all arguments are checked and packed; made once, so that a launch does little more than compare.

    Places are positions among the arguments.
    """

    slots: list[_Slot]
    pointers: list[tuple[int, str, bool, np.dtype]]  # place, name, constant, dtype
    numbers: list[tuple[int, Any, float, float]]  # place, the type that it has nearly always, smallest, largest
    structs: list[int]  # places, from the last to the first
    maps: list[int]  # places of tensor maps
    code: str  # struct format, with _PACKED for each struct that comes packed
    packing: struct.Struct | None  # of `code`, if each value is one argument


class Instance:
    """One instance of a kernel: callable with ``(grid, block, *arguments)``.

    Attributes:
        kernel: the template, or plain function.
        expression: its name in C++, ``gemm_v1_plain<float, false, true>``.
        cluster: blocks of a cluster along x, y, z, as ``__cluster_dims__`` says; without it (1, 1, 1).
    """

    def __init__(self, kernel: Kernel, values: tuple[Any, ...]) -> None:
        self.kernel = kernel
        self.values = values
        arguments = ", ".join(map(_spelled, values))
        self.expression = f"{kernel.name}<{arguments}>" if values else kernel.name
        self.cluster = (1, 1, 1)  # until the source has been read
        self._plan: _Plan | None = None
        self._handles: dict[type, tuple[Runtime, Any]] = {}

    def __repr__(self) -> str:
        return f"<{self.expression}>"

    @property
    def slots(self) -> Sequence[_Slot]:
        """What each argument must be."""
        return (self._plan or self._understand()).slots

    def __call__(self, grid: Grid, block: Grid, *arguments: Any, shared: int = 0) -> None:
        """Launch.

        Args:
            grid, block: numbers of blocks, and of threads in each; (x, y, z) or fewer.
            arguments: in the order of the source's parameters.
            shared: bytes of dynamic shared memory.

        Raises:
            DeviceError, DtypeError, ShapeError, ArgumentError: an argument does not fit.
            LaunchError: compiling or launching failed, or the emulator found a fault.
        """
        bound = self.bind(grid, block, *arguments, shared=shared)
        if bound is not None:
            bound()

    def bind(self, grid: Grid, block: Grid, *arguments: Any, shared: int = 0) -> Callable[[], None] | None:
        """Check and pack everything now; what is returned launches again and again, without checks.

        None if the grid has no blocks: there is nothing to do.
        """
        plan = self._plan or self._understand()
        if len(arguments) != len(plan.slots):
            names = ", ".join(slot.parameter.name for slot in plan.slots)
            raise ArgumentError(f"{self.kernel.name} takes {len(plan.slots)} arguments ({names}); got {len(arguments)}")
        operands = [
            Operand(name, arguments[place], constant)
            for place, name, constant, _ in plan.pointers
            if arguments[place] is not None
        ]
        if plan.structs:
            operands = self._with_packed(plan, arguments)
        if plan.maps:
            operands += [self._mapped(plan.slots[place], arguments[place]) for place in plan.maps]
        if not operands:
            raise ArgumentError(f"{self.kernel.name}: no array given, so there is no device to run on")
        kind = type(operands[0].array)
        runtime, handle = self._handles.get(kind) or self._load(kind, operands[0])

        values: list[Any] = list(arguments)
        for place, _, _, dtype in plan.pointers:
            argument = arguments[place]
            if argument is None:
                values[place] = 0
            elif type(argument) is kind and argument.dtype == dtype and argument.flags.c_contiguous:
                values[place] = runtime.address(argument)
            else:
                self._refuse(plan.slots[place], argument, kind)
        for place in plan.maps:
            if type(values[place].array) is not kind:
                self._refuse(plan.slots[place], values[place].array, kind)
            values[place] = runtime.tensor_map(values[place])
        for place, usual, smallest, largest in plan.numbers:
            argument = values[place]
            if type(argument) is not usual or not smallest <= argument <= largest:
                values[place] = self._number(plan.slots[place], argument)
        packing = plan.packing or self._spread(plan, values)
        blocks, threads = self._triple("grid", grid), self._triple("block", block)
        if 0 in blocks:
            return None
        self._check_sizes(blocks, threads, shared)
        return runtime.bind(handle, blocks, threads, shared, packing.pack(*values), operands)

    def _understand(self) -> _Plan:
        source = self.kernel.source
        name = self.kernel.name
        if name not in source.signatures:
            raise LaunchError(f"{source.path} has no kernel {name!r}; it has {', '.join(source.signatures)}")
        signature = source.signatures[name]
        if signature.templates != tuple(self.kernel.templates):
            raise LaunchError(
                f"{name}: the source's template parameters are {signature.templates}, declared were "
                f"{tuple(self.kernel.templates)}"
            )
        bound = dict(zip(signature.templates, self.values, strict=True))
        if signature.cluster:
            self.cluster = self._cluster(signature.cluster, bound)
        self._plan = _plan([_slot(parameter, bound, source) for parameter in signature.parameters])
        return self._plan

    def _cluster(self, said: tuple[str, ...], bound: dict[str, Any]) -> tuple[int, int, int]:
        """The cluster that the source declares, by numbers or template parameters."""
        sides = [int(side) if side.isdigit() else bound.get(side) for side in said]
        if not 1 <= len(sides) <= 3 or not all(type(side) is int and side > 0 for side in sides):
            raise LaunchError(
                f"{self.kernel.name}: __cluster_dims__({', '.join(said)}) must have one to three sides, numbers or "
                "template parameters that are integers"
            )
        if math.prod(sides) > _MOST_IN_CLUSTER:  # type: ignore[arg-type]
            raise LaunchError(f"{self.kernel.name}: a cluster has at most {_MOST_IN_CLUSTER} blocks; got {sides}")
        x, y, z = (*sides, 1, 1)[:3]
        return x, y, z  # type: ignore[return-value]

    def _mapped(self, slot: _Slot, argument: Any) -> Operand:
        """The array behind a tensor map."""
        if not isinstance(argument, TensorMap):
            raise ArgumentError(
                f"{self.kernel.name}: {slot.parameter.name} must be a TensorMap; got {type(argument).__name__}"
            )
        return Operand(slot.parameter.name, argument.array, not argument.writes)

    def _with_packed(self, plan: _Plan, arguments: tuple[Any, ...]) -> list[Operand]:
        """The arrays among the arguments, those of packed structs included, in the order of the parameters."""
        found: list[Operand] = []
        for slot, argument in zip(plan.slots, arguments, strict=True):
            parameter = slot.parameter
            if slot.dtype is not None and argument is not None:
                found.append(Operand(parameter.name, argument, parameter.constant))
            elif slot.dtype is None and isinstance(argument, Packed):
                constant = argument.constant
                found += [Operand(f"{parameter.name}[{i}]", a, constant) for i, a in enumerate(argument.arrays)]
        return found

    def _spread(self, plan: _Plan, values: list[Any]) -> struct.Struct:
        """Put in the place of each struct its members, or its bytes; gives the format of them all."""
        code = plan.code
        for place in plan.structs:  # from the last, so that the places before it stay
            slot, argument = plan.slots[place], values[place]
            if slot.members:
                values[place : place + 1] = self._members(slot, argument)
            elif isinstance(argument, Packed):
                values[place] = argument.data
                before, _, after = code.rpartition(_PACKED)
                code = f"{before}0Q{len(argument.data)}s{after}"
            else:
                raise ArgumentError(
                    f"{self.kernel.name}: {slot.parameter.name} is a {slot.parameter.type} and must come packed; "
                    f"got {type(argument).__name__}"
                )
        return _struct(code)

    def _load(self, kind: type, first: Operand) -> tuple[Runtime, Any]:
        if not is_array(first.array):
            raise DtypeError(f"{self.kernel.name}: {first.name} must be an array; got {kind.__name__}")
        try:
            runtime = runtime_of(first.array)
        except DeviceError as error:
            raise DeviceError(f"{self.kernel.name}: {error}") from None
        here, names = runtime.architecture(), self.kernel.architectures
        if not any(runs_on(name, here) for name in names):
            raise BackendError(f"{self.kernel.name} is for {', '.join(names)}; this GPU is sm_{here}")
        pair = self._handles[kind] = (runtime, runtime.load(self.kernel, self.expression))
        return pair

    def _members(self, slot: _Slot, argument: Any) -> list[int]:
        """The members of a struct of ints."""
        members = slot.members or ()
        values = list(_flat(argument))
        if len(values) != len(members) or isinstance(argument, Packed):
            raise ArgumentError(
                f"{self.kernel.name}: {slot.parameter.name} has members {', '.join(members)}; got {argument!r}"
            )
        for member, value in zip(members, values, strict=True):
            if not isinstance(value, _INTEGERS) or not -(2**31) <= value < 2**31:
                where = f"{self.kernel.name}: {slot.parameter.name}.{member}"
                raise ArgumentError(f"{where} must be a number that fits int32; got {value!r}")
        return values

    def _number(self, slot: _Slot, argument: Any) -> Any:
        """``argument`` as the number that the slot takes; no integer is cut off, nothing finite becomes infinite."""
        dtype = slot.number
        assert dtype is not None
        kind, (smallest, largest) = dtype.kind, slot.limits
        if kind == "b":
            if isinstance(argument, bool | np.bool_):
                return bool(argument)
        elif isinstance(argument, _INTEGERS) and smallest <= argument <= largest:
            return int(argument)
        elif kind == "f" and isinstance(argument, float | np.floating):
            value = float(argument)
            if smallest <= value <= largest or not math.isfinite(value):
                return value
        raise ArgumentError(
            f"{self.kernel.name}: {slot.parameter.name} must be a number that fits {dtype}; got {argument!r}"
        )

    def _refuse(self, slot: _Slot, argument: Any, kind: type[Any]) -> NoReturn:
        where = f"{self.kernel.name}: {slot.parameter.name}"
        came = type(argument).__name__
        if not is_array(argument):
            raise DtypeError(f"{where} must be an array; got {came}")
        if type(argument) is not kind:
            raise DeviceError(f"{where} is a {came} where the other arrays are {kind.__name__}s")
        if argument.dtype != slot.dtype:
            raise DtypeError(f"{where} must be {slot.dtype}; got {argument.dtype}")
        raise ShapeError(
            f"{where} must be C-contiguous; got strides {argument.strides} for shape {tuple(argument.shape)}"
        )

    def _triple(self, what: str, sizes: Grid) -> tuple[int, int, int]:
        """(x, y, z) of a grid or a block."""
        given = sizes if isinstance(sizes, _LISTS) else (sizes,)
        if 1 <= len(given) <= 3:
            x, y, z = (*given, 1, 1)[:3]
            if type(x) is type(y) is type(z) is int:
                return x, y, z
            if isinstance(x, _INTEGERS) and isinstance(y, _INTEGERS) and isinstance(z, _INTEGERS):
                return int(x), int(y), int(z)
        raise LaunchError(f"{self.kernel.name}: {what} must be one to three integers; got {sizes!r}")

    def _check_sizes(self, grid: tuple[int, int, int], block: tuple[int, int, int], shared: int) -> None:
        (x, y, z), (i, j, k) = grid, block
        if (
            0 < x <= _GRID[0] and 0 < y <= _GRID[1] and 0 < z <= _GRID[2]
            and 0 < i and 0 < j and 0 < k <= _BLOCK[2] and i * j * k <= _MOST_THREADS
            and isinstance(shared, int) and shared >= 0
        ):  # fmt: skip
            if any(size % side for size, side in zip(grid, self.cluster, strict=True)):
                raise LaunchError(f"{self.kernel.name}: grid {grid} is no multiple of its cluster {self.cluster}")
            return
        for what, sizes, limits in (("grid", grid, _GRID), ("block", block, _BLOCK)):
            if any(not 0 < size <= limit for size, limit in zip(sizes, limits, strict=True)):
                wrong = f"exceeds {limits}" if min(sizes) > 0 else "must be positive"
                raise LaunchError(f"{self.kernel.name}: {what} {sizes} {wrong}")
        if i * j * k > _MOST_THREADS:
            raise LaunchError(f"{self.kernel.name}: a block has at most {_MOST_THREADS} threads; got {block}")
        raise LaunchError(f"{self.kernel.name}: dynamic shared memory must be a number of bytes; got {shared!r}")


def runs_on(architecture: str, here: int) -> bool:
    """Whether code for ``"sm_90"`` runs on sm_``here``; code for ``"sm_90a"`` runs on sm_90 alone."""
    number = architecture.removeprefix("sm_")
    return int(number[:-1]) == here if number.endswith("a") else int(number) <= here


def _slot(parameter: Parameter, bound: dict[str, Any], source: Source) -> _Slot:
    within = _WIDE.fullmatch(parameter.type)
    if parameter.type in bound:
        dtype: np.dtype | None = np.dtype(bound[parameter.type])
    elif within and within[1] in bound:
        dtype = wide(np.dtype(bound[within[1]]))
    else:
        vector = _VECTOR.fullmatch(parameter.type) if parameter.pointer else None
        name = vector[1] if vector else parameter.type
        dtype = _TYPES[name][0] if name in _TYPES else np.dtype(_COMPONENTS[name]) if name in _COMPONENTS else None
    if dtype is not None and parameter.pointer:
        return _Slot(parameter, dtype, None, None, "P")
    if dtype is not None and is_half(dtype):
        raise LaunchError(f"{source.path}: {parameter.name} is a {parameter.type}; numbers are handed over as float")
    if dtype is not None:
        return _Slot(parameter, None, dtype, None, _TYPES[_C_NAMES[dtype]][1], _limits(dtype))
    if parameter.pointer:
        raise LaunchError(f"{source.path}: {parameter.name} points to {parameter.type!r}, which is no known type")
    if parameter.type == "TensorMap":
        return _Slot(parameter, None, None, None, _MAP)
    members = source.structs.get(parameter.type, ())
    return _Slot(parameter, None, None, members, f"{len(members)}i" if members else _PACKED)


def _plan(slots: list[_Slot]) -> _Plan:
    pointers: list[tuple[int, str, bool, np.dtype]] = []
    numbers: list[tuple[int, Any, float, float]] = []
    structs: list[int] = []
    maps: list[int] = []
    code = "@"
    for place, slot in enumerate(slots):
        if slot.code == _MAP:
            if _PACKED in code:
                raise LaunchError(f"{slot.parameter.name}: a tensor map must come before structs that come packed")
            code += f"{-struct.calcsize(code) % MAP_ALIGNMENT}x{MAP_BYTES}s"
            maps.append(place)
            continue
        code += slot.code
        if slot.dtype is not None:
            pointers.append((place, slot.parameter.name, slot.parameter.constant, slot.dtype))
        elif slot.number is not None:
            numbers.append((place, _USUAL[slot.number.kind], *slot.limits))
        else:
            structs.insert(0, place)
    return _Plan(slots, pointers, numbers, structs, maps, code, None if structs else _struct(code))


#: The type of Python's numbers for each kind of dtype.
_USUAL: dict[str, type] = {"f": float, "b": bool, "i": int, "u": int}


def _limits(dtype: np.dtype) -> tuple[float, float]:
    """The smallest and the largest number of ``dtype``."""
    if dtype.kind == "b":
        return 0, 1
    about: Any = np.finfo(dtype) if dtype.kind == "f" else np.iinfo(dtype)
    one = float if dtype.kind == "f" else int
    return one(about.min), one(about.max)


#: Stands in a struct format for what comes packed, until its size is known.
_PACKED = "*"
#: The code of a tensor map, whose place depends on what stands before it.
_MAP = "map"


def _flat(values: Any) -> Iterator[Any]:
    for value in values if isinstance(values, tuple | list) else (values,):
        if isinstance(value, tuple | list):
            yield from _flat(value)
        else:
            yield value


_structs: dict[str, struct.Struct] = {}


def _struct(code: str) -> struct.Struct:
    known = _structs.get(code)
    if known is None:
        known = _structs[code] = struct.Struct(code)
    return known
