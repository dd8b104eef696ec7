"""Compiles ``.cu`` files, and the emulator's own runtime, with the host's C++ compiler.

A *unit* is one source with some instances of its kernels.  It is compiled with ``-fsanitize=thread``,
which puts a call before every load and store, and with those parts of ``-fsanitize=undefined`` that find
what a GPU would do otherwise; it is linked with the emulator's runtime in the place of the sanitizers'.
Libraries are cached by a digest of everything that goes into them.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from .._cache import cache_folder
from .._cuda.source import HEADERS
from .._errors import BackendError, LaunchError
from .host_code import device_code, shared_names

_HERE = Path(__file__).parent
_RUNTIME_SOURCES = (
    *("scheduler.cpp", "collectives.cpp", "memory.cpp", "hooks.cpp", "async.cpp", "cluster.cpp", "wgmma.cpp"),
)
_RUNTIME_HEADERS = ("runtime.h", "state.h", "cells.h", "async.h")
_KERNEL_HEADERS = ("device.h", "intrinsics.h")
_RUNTIME_FLAGS = ("-std=c++17", "-O2", "-fPIC", "-shared")
_SANITIZERS = "thread,bounds-strict,alignment,integer-divide-by-zero,shift-exponent,float-cast-overflow"
_FLAGS = (
    *("-std=c++17", "-O1", "-g1", "-gdwarf-4", "-fPIC", "-DRAWGRAD_EMULATED", f"-fsanitize={_SANITIZERS}"),
    "-Werror=uninitialized",  # a register that nothing set, which nothing shows at run time; also what only may be so
    "-fstack-clash-protection",  # a stack that overflows meets its guard page
)
#: What GCC has only from this version on, and what can be done without.
_NEWER_FLAGS = {
    "--param=tsan-instrument-func-entry-exit=0": 11,  # saves calls that mean nothing here
    "-ftrivial-auto-var-init=pattern": 12,  # a variable that nothing set holds the same nonsense every time
}
#: Without -fsanitize: the sanitizers' own runtimes stay out.  What is missing is an error now, not at loading.
_LINK_FLAGS = ("-shared", "-Wl,-z,defs", *(f"-Wl,--wrap={f}" for f in ("memcpy", "memmove", "memset", "__assert_fail")))
_INCLUDE = re.compile(r'^[ \t]*#[ \t]*include[ \t]*"([^"]+)"', re.MULTILINE)


def compiler() -> str | None:
    """The C++ compiler: ``$CXX`` if set, else g++ or c++ as found."""
    named = os.environ.get("CXX")
    return shutil.which(named) if named else shutil.which("g++") or shutil.which("c++")


@cache
def problem() -> str | None:
    """Why nothing can be emulated here, or None if it can."""
    found = compiler()
    if found is None:
        named = os.environ.get("CXX")
        which = f"{named}, which the variable CXX names," if named else "g++ (or one that the variable CXX names)"
        return f"it needs a C++ compiler: {which} was not found"
    try:
        said = subprocess.run([found, "--version"], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        return f"the C++ compiler {found} does not run: {error}"
    if "Free Software Foundation" not in said:
        return f"it needs GCC's C++ compiler; {found} is {said.splitlines()[0] if said else 'another one'}"
    return None


@cache
def _compiler_version() -> str:
    return subprocess.run([str(compiler()), "--version"], capture_output=True, text=True, check=True).stdout


@cache
def _flags() -> tuple[str, ...]:
    """How kernels are compiled."""
    version = re.search(r"\) (\d+)\.\d+", _compiler_version())
    major = int(version[1]) if version else 0
    return (*_FLAGS, *(flag for flag, since in _NEWER_FLAGS.items() if major >= since))


def _digest(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:24]


def _run(command: Sequence[str], what: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        raise LaunchError(f"{what} does not compile:\n" + "\n".join(lines[:40]))


@cache
def runtime_library() -> Path:
    """The emulator's runtime, compiled."""
    if reason := problem():
        raise BackendError(f"backend 'emulated' cannot run here: {reason}")
    texts = [(_HERE / name).read_text() for name in (*_RUNTIME_SOURCES, *_RUNTIME_HEADERS)]
    target = cache_folder("emulator") / f"runtime-{_digest(_compiler_version(), *_RUNTIME_FLAGS, *texts)}.so"
    if not target.exists():
        with tempfile.TemporaryDirectory(dir=target.parent) as folder:
            made = Path(folder) / target.name
            sources = [str(_HERE / name) for name in _RUNTIME_SOURCES]
            _run([str(compiler()), *_RUNTIME_FLAGS, "-o", str(made), *sources], "the emulator's runtime")
            made.replace(target)
    return target


@dataclass(frozen=True)
class Unit:
    """A compiled unit.

    Attributes:
        library: the loaded library.
        path: its file, for debug information.
        entries: for each name expression the number of its entry point.
        base: the address at which the library was loaded.
        end: where its image ends.
        statics: (name, address, size) of each ``__shared__`` variable.
    """

    library: ctypes.CDLL
    path: Path
    entries: dict[str, int]
    base: int
    end: int
    statics: tuple[tuple[str, int, int], ...]


_units: dict[Path, Unit] = {}


def unit(path: Path, expressions: Sequence[str]) -> Unit:
    """The unit of source ``path`` with the kernels ``expressions``, compiled if it has not been.

    Raises:
        LaunchError: the source does not compile; the message is the compiler's, with line and reason.
    """
    file = build(path, expressions)  # again, since the source may have been changed
    if file not in _units:
        _units[file] = _load(tuple(expressions), file)
    return _units[file]


def build(path: Path, expressions: Sequence[str]) -> Path:
    """Compile a unit into the cache, if it is not there; the library's path."""
    runtime = runtime_library()
    text = _translation_unit(path, expressions)
    parts = (
        runtime.name,
        *_flags(),
        *_LINK_FLAGS,
        text,
        *_headers(path),
        *((_HERE / name).read_text() for name in _KERNEL_HEADERS),
    )
    target = cache_folder("emulator") / f"{path.stem}-{_digest(*parts)}.so"
    if target.exists():
        return target
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        source, compiled, made = (Path(folder) / f"{path.stem}{suffix}" for suffix in (".cpp", ".o", ".so"))
        source.write_text(text)
        command = [str(compiler()), *_flags(), "-I", str(_HERE), "-I", str(HEADERS), "-I", str(path.parent.resolve())]
        _run([*command, "-c", str(source), "-o", str(compiled)], str(path))
        link = [str(compiler()), *_LINK_FLAGS, "-o", str(made), str(compiled), str(runtime)]
        _run([*link, f"-Wl,-rpath,{runtime.parent}"], str(path))
        layout = made.with_suffix(".json")
        layout.write_text(json.dumps(_layout(made, shared_names(text))))
        layout.replace(target.with_suffix(".json"))
        made.replace(target)
    return target


def _headers(path: Path) -> list[str]:
    """The texts of all files that ``path`` includes by ``"name"``, and that those include."""
    texts: dict[Path, str] = {}
    waiting = [path]
    while waiting:
        including = waiting.pop()
        for name in _INCLUDE.findall(including.read_text()):
            for folder in (including.parent, HEADERS, path.parent):
                found = folder / name
                if found.is_file() and found not in texts:
                    texts[found] = found.read_text()
                    waiting.append(found)
    return [texts[key] for key in sorted(texts)]


def _translation_unit(path: Path, expressions: Sequence[str]) -> str:
    """The source with an entry point for each kernel instance."""
    entries = "".join(
        f'extern "C" UNWATCHED void rawgrad_entry_{i}(const unsigned char* a) {{ rawgrad_emulator::enter({e}, a); }}\n'
        f'extern "C" size_t rawgrad_bytes_{i}() {{ return rawgrad_emulator::argument_bytes({e}); }}\n'
        for i, e in enumerate(expressions)
    )
    return f'#include "device.h"\n#line 1 "{path}"\n{device_code(path)}\n#line 1 "entries"\n{entries}'


def _layout(library: Path, shared: set[str]) -> dict[str, object]:
    """What must be known of a library: offsets of one entry point, of its end and of the variables ``shared``."""
    rows, end = [], 0
    for line in _said("nm", "--format=sysv", "--defined-only", str(library)).splitlines():
        fields = [field.strip() for field in line.split("|")]
        if len(fields) == 7 and re.fullmatch("[0-9a-f]+", fields[1]):
            rows.append((fields[0], int(fields[1], 16), int(fields[4] or "0", 16), fields[6]))
            end = max(end, rows[-1][1] + rows[-1][2])
    entry = next(address for name, address, _, _ in rows if name == "rawgrad_entry_0")
    variables = [row for row in rows if row[3] == ".bss" and row[2]]
    names = _said("c++filt", *(row[0] for row in variables)).splitlines() if variables else []
    statics = [
        (name.rpartition("::")[2], address, size)
        for name, (_, address, size, _) in zip(names, variables, strict=True)
        if name.rpartition("::")[2] in shared
    ]
    return {"entry": entry, "end": end, "statics": statics}


def _said(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def _load(expressions: tuple[str, ...], file: Path) -> Unit:
    library = ctypes.CDLL(str(file))
    layout = json.loads(file.with_suffix(".json").read_text())
    entry = ctypes.cast(library.rawgrad_entry_0, ctypes.c_void_p).value or 0
    base = entry - layout["entry"]
    statics = tuple((name, base + address, size) for name, address, size in layout["statics"])
    return Unit(library, file, {e: i for i, e in enumerate(expressions)}, base, base + layout["end"], statics)
