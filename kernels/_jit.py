"""Compiling CPU kernels with Numba, and keeping what was compiled.

A kernel is a function under ``@in_parts`` (it computes one part of the work, and is called for all of them) or
``@serial`` (called from kernels, or where there is nothing to share).  Where a sum is shared
among parts, their number depends on shapes alone, so results have the same bits for any number of threads.  None of
them reorders arithmetic: no fast-math.  All release the GIL.  Kernels are called from Python, by any thread.

The one loop over parts calls any function by its address, and is compiled once for all kernels: a ``prange`` in each
would make Numba compile its body, and whatever that calls, several times over.

What was compiled is kept in :func:`._cache.cache_folder`, in a folder per module and digest of the
sources and constants that its code came from, so that no kernel can outlive a change of a function that it
calls (Numba's own cache, which looks at one file, lets it).  One file holds one function for one signature
and processor, with a checksum, and appears whole: processes that compile the same thing at once do no harm.

The kernels own all threads (:mod:`._threads` says how many), so BLAS is limited to one when this module is
loaded: two thread pools that take turns slow each other down fourfold.
"""

from __future__ import annotations

from . import _threads  # isort: skip  (before Numba is imported, which then decides how many threads it starts)

import functools
import hashlib
import inspect
import logging
import os
import pickle
import platform
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

import llvmlite
import numba
import numpy as np
from llvmlite import ir
from numba.core import caching, cgutils, compiler, serialize, types
from numba.extending import intrinsic
from numba.np.ufunc.parallel import get_thread_id, threading_layer
from threadpoolctl import threadpool_limits

from ._cache import cache_folder, is_temporary, prune
from ._simd import vector_bytes
from ._threads import get_num_threads as get_num_threads
from ._threads import set_num_threads as set_num_threads

_config: Any = numba.config
_log = logging.getLogger("rawgrad")

# ---- threads

threadpool_limits(1, user_api="blas")
with _threads.short_waits():
    numba.set_num_threads(get_num_threads())  # starts them


class _Told(threading.local):
    """What Numba was told in this Python thread: it keeps the number of threads for each of them."""

    count = 0


_told = _Told()
#: The threading layer ``workqueue``, which Numba has where there is no OpenMP, takes calls of one Python thread at a
#: time; the others take any.
_one_at_a_time = threading.RLock() if threading_layer() == "workqueue" else None


# ---- compiling


def in_parts(function: Callable[..., Any]) -> Any:
    """Compile ``function(part, slot, *arguments)``, to be called as ``kernel(parts, *arguments)``.

    It runs for each part from 0 to parts - 1, in any order and at the same time, where ``slot`` is a number below
    :func:`thread_slots` that no other part has at that time.  With one part, or one thread, there is no launch;
    ``kernel.here(parts, *arguments)`` has none either, for little work.
    """
    part = serial(function)
    names = ", ".join(list(inspect.signature(function).parameters)[2:])
    code = function.__code__
    source = (
        f"def {function.__name__}(_launcher, _parts, {names}):\n    _for_parts(_part, _launcher, _parts, ({names},))"
    )
    scope: dict[str, Any] = {"_for_parts": _for_parts, "_part": part, "__name__": function.__module__}
    exec(compile(source, code.co_filename, "exec"), scope)
    entry = scope[function.__name__]
    entry.__qualname__ = f"{part.py_func.__qualname__}.launch"
    kernel: Any = numba.njit(nogil=True, error_model="numpy")(entry)
    kernel._cache = _Cache(entry, {"parts of": (code.co_firstlineno, *_closed_over(function))})

    @functools.wraps(function)
    def launch(parts: int, *arguments: Any) -> None:
        if parts == 1 or _threads.count == 1:
            kernel(0, parts, *arguments)
            return
        if _told.count != _threads.count:
            numba.set_num_threads(_threads.count)
            _told.count = _threads.count
        shared = _threads.count << _THREADS | parts
        if _one_at_a_time is None:
            kernel(_launcher(), shared, *arguments)
        else:
            with _one_at_a_time:
                kernel(_launcher(), shared, *arguments)

    launch.here = functools.partial(kernel, 0)  # type: ignore[attr-defined]
    return launch


#: The number of threads among which parts are shared stands above so many bits of the number of parts: what Numba
#: was told is known under an address that changes from process to process, and code with such is not kept on the disk.
_THREADS = 32
_PART = ir.FunctionType(ir.VoidType(), [ir.IntType(64), ir.IntType(64), ir.IntType(64)])  # part, slot, arguments


@intrinsic
def _for_parts(typing_context: Any, part: Any, launcher: Any, parts: Any, arguments: Any) -> Any:
    """Call ``part(i, slot, *arguments)`` for i < parts: by the function at the address ``launcher``, or here if 0."""
    kinds = types.int64, types.int64, *(types.unliteral(kind) for kind in arguments.types)
    part.dispatcher.compile(kinds)
    compiled = part.dispatcher.overloads[kinds]

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, values: Any) -> ir.Value:
        _, address, count, packed = values
        # The arguments travel in a struct, whose address any function can take.
        elements = cgutils.unpack_tuple(builder, packed)
        struct = cgutils.alloca_once(builder, ir.LiteralStructType([element.type for element in elements]))
        for i, element in enumerate(elements):
            builder.store(element, cgutils.gep_inbounds(builder, struct, 0, i))
        one = ir.Function(builder.module, _PART, builder.module.get_unique_name("part_of"))
        one.linkage = "internal"
        inside = ir.IRBuilder(one.append_basic_block())
        there = inside.inttoptr(one.args[2], struct.type)
        loaded = [inside.load(cgutils.gep_inbounds(inside, there, 0, i)) for i in range(len(elements))]
        context.active_code_library.add_linking_library(compiled.library)
        callee = context.declare_function(builder.module, compiled.fndesc)
        restype = compiled.signature.return_type
        context.call_conv.call_function(inside, callee, restype, kinds, [*one.args[:2], *loaded])
        inside.ret_void()

        data, zero = builder.ptrtoint(struct, ir.IntType(64)), ir.Constant(ir.IntType(64), 0)
        with builder.if_else(builder.icmp_signed("==", address, zero)) as (here, launched):
            with here, cgutils.for_range(builder, count) as loop:
                builder.call(one, [loop.index, zero, data])
            with launched:
                launch = builder.inttoptr(address, _PART.as_pointer())
                builder.call(launch, [count, builder.ptrtoint(one, ir.IntType(64)), data])
        return context.get_dummy_value()

    return types.void(part, types.int64, types.int64, arguments), generate


@intrinsic
def _call_part(typing_context: Any, function: Any, part: Any, slot: Any, data: Any) -> Any:
    """Call the function at an address."""

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, values: Any) -> ir.Value:
        builder.call(builder.inttoptr(values[0], _PART.as_pointer()), values[1:])
        return context.get_dummy_value()

    return types.void(*[types.int64] * 4), generate


@functools.cache
def _launcher() -> int:
    """The address of the one loop that launches parts."""
    _launch.compile((types.int64,) * 3)
    (compiled,) = _launch.overloads.values()
    return int(compiled.library.get_pointer_to_function(compiled.fndesc.llvm_cfunc_wrapper_name))


def serial(function: Callable[..., Any]) -> Any:
    """Compile ``function`` to be called by kernels, or by itself where there is nothing to share."""
    return _compiled(function)


def _compiled(function: Callable[..., Any], **options: Any) -> Any:
    constants = _closed_over(function)
    if constants:
        # Numba makes symbols of the name, the types of arguments and a number that it counts up in each process.
        # Of two variants of a kernel, compiled by two processes, a third one would load the first in place of both.
        function.__qualname__ += "_" + hashlib.sha256(repr(constants).encode()).hexdigest()[:16]
    dispatcher = numba.njit(nogil=True, error_model="numpy", **options)(function)
    dispatcher._cache = _Cache(function, options)
    return dispatcher


def _closed_over(function: Any) -> tuple[Any, ...]:
    """What ``function`` closes over: numbers, strings, and compiled functions of its module with what is theirs."""
    found: list[Any] = []
    for value in (cell.cell_contents for cell in function.__closure__ or ()):
        inner = getattr(value, "py_func", None)
        if inner is not None and inner.__module__ == function.__module__:
            found.append((inner.__qualname__, inner.__code__.co_firstlineno, *_closed_over(inner)))
            continue
        assert isinstance(value, int | float | str | bool | None), (
            f"{function.__qualname__} closes over more than constants, by which its code could be found again"
        )
        found.append(value)
    return tuple(found)


class _Cache(caching._Cache):
    """What Numba asks for compiled code, and gives it to.  Whatever is wrong with a file: the kernel is compiled."""

    def __init__(self, function: Any, options: dict[str, Any]) -> None:
        self._function: FunctionType = function
        self._options = options
        self._enabled = True

    @property
    def cache_path(self) -> str:
        return str(_folder(self._function.__module__) or "")

    def _file(self, signature: Any, codegen: Any) -> Path | None:
        """Where the code for ``signature`` is kept; None if it is not."""
        code, module = self._function.__code__, self._function.__module__
        source = Path(getattr(sys.modules.get(module), "__file__", None) or "")
        if not self._enabled or not source.is_file() or source.name != Path(code.co_filename).name:
            return None  # typed at a prompt, in a notebook's cell, by exec: there is no source to know it by
        folder = _folder(module)
        cells = _closed_over(self._function)
        about = (self._function.__qualname__, code.co_firstlineno, cells, self._options, signature)
        key = repr((*about, codegen.magic_tuple())).encode()
        name = f"{self._function.__name__}-{hashlib.sha256(key).hexdigest()[:32]}.bin"
        return folder / name if folder else None

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        target_context.refresh()
        file = self._file(sig, target_context.codegen())
        if file is not None:
            try:
                return compiler.CompileResult._rebuild(target_context, *pickle.loads(_read(file)))
            except FileNotFoundError:
                pass
            except Exception as error:  # whatever goes wrong
                _log.warning("rawgrad: %s cannot be used and is replaced: %s", file, error)
        _announce()
        return None

    def save_overload(self, sig: Any, data: Any) -> None:
        file = self._file(sig, data.codegen)
        if file is None:
            return
        if data.library.has_dynamic_globals:  # an address in this process, which the code holds
            _log.debug("%s cannot be kept: it holds addresses of this process", self._function.__qualname__)
            return
        try:
            _write(file, serialize.dumps(data._reduce()))
        except OSError as error:  # a full disk: the code runs, and is compiled again next time
            _log.warning("rawgrad: cannot keep a compiled kernel in %s: %s", file.parent, error)

    def enable(self) -> None:
        self._enabled = True

    def disable(self) -> None:
        self._enabled = False

    def flush(self) -> None:
        """Nothing is held back."""


def _read(file: Path) -> bytes:
    """What :func:`_write` wrote; ValueError if it is anything else: a wrong bit would be run."""
    data = file.read_bytes()
    checksum, content = data[:32], data[32:]
    if hashlib.sha256(content).digest() != checksum:
        raise ValueError("it is damaged")
    return content


def _write(file: Path, content: bytes) -> None:
    with tempfile.NamedTemporaryFile(dir=file.parent, delete=False) as new:
        try:
            new.write(hashlib.sha256(content).digest() + content)
            new.flush()
            os.replace(new.name, file)
        except OSError:
            os.unlink(new.name)
            raise


@functools.cache
def _announce() -> None:
    """Say, once per process, why the first use of a kernel takes long."""
    folder = cache_folder("numba")
    where = "for this process alone: no cache folder can be written to" if is_temporary(folder) else f"kept in {folder}"
    _log.warning("rawgrad: compiling kernels for this processor as they are needed; %s", where)


@functools.cache
def _folder(module: str) -> Path | None:
    """Where what ``module`` compiles is kept; None if nothing is."""
    try:
        digest = _digest(sys.modules[module])
        if digest is None:
            return None
        parent = cache_folder("numba") / (module.rpartition(".numba_cpu")[0].rpartition(".")[2] or module)
        folder = parent / digest[:16]
        if not folder.is_dir():
            prune(parent)
        folder.mkdir(parents=True, exist_ok=True)
        return folder
    except OSError as error:
        _log.warning("rawgrad: compiled kernels cannot be kept: %s", error)
        return None


def _digest(module: ModuleType) -> str | None:
    """Of all that decides what ``module`` compiles to; None if its sources may not be what was loaded."""
    modules: dict[str, ModuleType] = {}
    _follow(module, modules)
    digest = hashlib.sha256(repr(_facts()).encode())
    for name in sorted(modules):
        file = Path(modules[name].__file__ or "")
        if file.stat().st_ctime > _threads.started:
            _log.debug("%s is not kept: %s was changed since this process started", module.__name__, file)
            return None
        digest.update(file.read_bytes() + b"\0" + repr(sorted(_constants(modules[name]))).encode())
    return digest.hexdigest()


def _facts() -> tuple[Any, ...]:
    """What compiled code depends on beside its sources."""
    switches = ("OPT", "BOUNDSCHECK", "LOOP_VECTORIZE", "SLP_VECTORIZE", "ENABLE_AVX", "DEBUGINFO_DEFAULT")
    settings = [str(getattr(_config, name, None)) for name in switches]
    return numba.__version__, llvmlite.__version__, sys.version, platform.machine(), vector_bytes(), *settings


def _follow(module: ModuleType, found: dict[str, ModuleType]) -> None:
    """Add to ``found`` the module, those whose names it imports and that may be in its compiled code, and theirs.

    That is whatever is rawgrad's, of the same package or in the same folder; what others install has versions.
    """
    found[module.__name__] = module
    package, folder = module.__name__.partition(".")[0], Path(module.__file__ or "").parent
    for name, value in list(vars(module).items()):
        of = value.__name__ if isinstance(value, ModuleType) else getattr(value, "__module__", None)
        other = sys.modules.get(of) if isinstance(of, str) else None
        file = getattr(other, "__file__", None)
        if other is None or not file or other.__name__ in found:
            continue
        ours = other.__name__.startswith(f"{__package__}.")
        if ours and other.__name__ == f"{module.__name__}.{name}":
            continue  # a part of our package, which holds it as soon as anything imports it
        if ours or other.__name__.partition(".")[0] == package or Path(file).parent == folder:
            _follow(other, found)


def _constants(module: ModuleType) -> list[tuple[str, str]]:
    """The module's numbers and strings in capital letters: some are computed, or imported from elsewhere."""
    kinds = (int, float, bool, str, tuple)
    return [(name, repr(value)) for name, value in vars(module).items() if name.isupper() and type(value) in kinds]


_LINE = 64  # bytes of a cache line


def _taking(typing_context: Any, counters: Any, position: Any) -> Any:
    """``counters[position] += 1``, atomically; gives what was there before."""

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, values: Any) -> ir.Value:
        array = context.make_array(signature.args[0])(context, builder, values[0])
        place = builder.gep(array.data, [values[1]])
        return builder.atomic_rmw("add", place, ir.Constant(ir.IntType(64), 1), "monotonic")

    return types.int64(counters, types.int64), generate


_take: Any = intrinsic(_taking)


def _launch_parts(shared: int, function: int, data: int) -> None:
    """Call a part for each number below ``parts``, shared among threads as :data:`_THREADS` says.

    Each thread has parts of its own, the same ones in each launch of as many, whose data may be in its cache; when it
    has done them it helps the others.  So one that is slow, or was not given its core, is waited for by one part.
    """
    threads, parts = shared >> _THREADS, shared & ((1 << _THREADS) - 1)
    apart = _LINE // 8  # counters on cache lines of their own
    counters = np.empty(threads * apart, np.int64)
    for thread in range(threads):
        counters[thread * apart] = parts * thread // threads
    for thread in numba.prange(threads):
        slot = get_thread_id()
        for other in range(threads):
            whose = (thread + other) % threads
            end = parts * (whose + 1) // threads
            while True:
                part = _take(counters, whose * apart)
                if part >= end:
                    break
                _call_part(function, part, slot, data)  # type: ignore[call-arg]


_launch = _compiled(_launch_parts, parallel=True)


def thread_slots() -> int:
    """One more than the largest ``numba.get_thread_id()``: a kernel's threads need as many workspaces."""
    return int(_config.NUMBA_NUM_THREADS)


_workspaces = threading.local()


def workspace(name: str, size: int, dtype: Any) -> Any:
    """An array of ``size`` elements that holds anything, for the calling thread until it asks for ``name`` again.

    Fresh memory costs more than what most kernels do with it, so each place grows to the largest size asked for.
    It begins with a cache line: a vector that lies across two lines takes two loads.
    """
    places: dict[Any, Any] = _workspaces.__dict__
    key = name, dtype
    array = places.get(key)
    if array is None or array.size < size:
        surplus = _LINE // dtype.itemsize
        array = np.empty(size + surplus, dtype)
        start = -array.ctypes.data % _LINE // dtype.itemsize
        array = places[key] = array[start : start + size]
    return array[:size]
