"""Compiles ``.cu`` files, and the emulator's own runtime, with the host's C++ compiler.

A *unit* is one source with some instances of its kernels.  It is compiled with ``-fsanitize=thread``,
which puts a call before every load and store, and linked with the emulator's runtime in the place of
the sanitizer's.  Libraries are cached by a digest of everything that goes into them.
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
from .._cuda.source import HEADERS, read_source
from .._errors import BackendError, LaunchError

_HERE = Path(__file__).parent
_RUNTIME_SOURCES = ("scheduler.cpp", "memory.cpp")
_RUNTIME_HEADERS = ("runtime.h", "state.h")
_STANDARD = "-std=c++17"
#: Headers of CUDA that a user's source may include; what they declare is in device.h.
_CUDA_INCLUDE = re.compile(
    r"^[ \t]*#[ \t]*include[ \t]*<(cuda|device_|vector_types|math_constants)[^>]*>", re.MULTILINE
)
_EXTERN_SHARED = re.compile(
    r"extern\s+__shared__\s+(?:__align__\s*\(\s*\w+\s*\)\s+)?([\w:<> ]+?)\s+(\w+)\s*\[\s*\]\s*;"
)
_INCLUDE_CUH = re.compile(r'^[ \t]*#[ \t]*include[ \t]+"([^"]+)"', re.MULTILINE)


def compiler() -> str | None:
    """The C++ compiler: ``$CXX`` if set, else g++ or c++ as found."""
    named = os.environ.get("CXX")
    return shutil.which(named) if named else shutil.which("g++") or shutil.which("c++")


@cache
def problem() -> str | None:
    """Why nothing can be emulated here, or None if it can."""
    found = compiler()
    if found is None:
        return "it needs a C++ compiler: g++ (or one that the variable CXX names) was not found"
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
    target = cache_folder("emulator") / f"runtime-{_digest(_compiler_version(), *texts)}.so"
    if not target.exists():
        with tempfile.TemporaryDirectory(dir=target.parent) as folder:
            made = Path(folder) / target.name
            command = [str(compiler()), _STANDARD, "-O2", "-fPIC", "-shared", "-o", str(made)]
            _run([*command, *(str(_HERE / name) for name in _RUNTIME_SOURCES)], "the emulator's runtime")
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
        statics: (name, address, size) of each function-local ``__shared__`` variable.
    """

    library: ctypes.CDLL
    path: Path
    entries: dict[str, int]
    base: int
    end: int
    statics: tuple[tuple[str, int, int], ...]


_units: dict[tuple[Path, tuple[str, ...]], Unit] = {}


def unit(path: Path, expressions: Sequence[str]) -> Unit:
    """The unit of source ``path`` with the kernels ``expressions``, compiled if it has not been.

    Raises:
        LaunchError: the source does not compile; the message is the compiler's, with line and reason.
    """
    key = (path, tuple(expressions))
    if key not in _units:
        _units[key] = _load(path, key[1], build(path, key[1]))
    return _units[key]


def build(path: Path, expressions: Sequence[str]) -> Path:
    """Compile a unit into the cache, if it is not there; the library's path."""
    runtime = runtime_library()
    text = _translation_unit(path, expressions)
    headers = [read_source(path).text, (_HERE / "device.h").read_text()]
    target = cache_folder("emulator") / f"{path.stem}-{_digest(runtime.name, text, *headers)}.so"
    if target.exists():
        return target
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        source, compiled, made = (Path(folder) / f"{path.stem}{suffix}" for suffix in (".cpp", ".o", ".so"))
        source.write_text(text)
        command = [str(compiler()), _STANDARD, "-O1", "-g1", "-fPIC", "-w", "-DRAWGRAD_EMULATED", "-fsanitize=thread"]
        command += ["-I", str(_HERE), "-I", str(HEADERS), "-I", str(path.parent.resolve())]
        _run([*command, "-c", str(source), "-o", str(compiled)], str(path))
        # Without -fsanitize: the sanitizer's own runtime stays out.
        link = [str(compiler()), "-shared", "-o", str(made), str(compiled), str(runtime)]
        _run([*link, f"-Wl,-rpath,{runtime.parent}"], str(path))
        made.with_suffix(".json").write_text(json.dumps(_symbols(made)))
        made.with_suffix(".json").replace(target.with_suffix(".json"))
        made.replace(target)
    return target


def _translation_unit(path: Path, expressions: Sequence[str]) -> str:
    """The source with an entry point for each kernel instance."""
    text = path.read_text()
    text = _CUDA_INCLUDE.sub("//", text)
    # Dynamic shared memory begins where the arena does.
    text = _EXTERN_SHARED.sub(r"\1* const \2 = reinterpret_cast<\1*>(rawgrad_emulator::dynamic_shared());", text)
    entries = "".join(
        f'extern "C" UNWATCHED void rawgrad_entry_{i}(const unsigned char* a) {{ rawgrad_emulator::enter({e}, a); }}\n'
        f'extern "C" size_t rawgrad_bytes_{i}() {{ return rawgrad_emulator::argument_bytes({e}); }}\n'
        for i, e in enumerate(expressions)
    )
    return f'#include "device.h"\n#line 1 "{path}"\n{text}\n#line 1 "entries"\n{entries}'


def _symbols(library: Path) -> dict[str, object]:
    """What must be known of a library's layout: offsets relative to where it is loaded."""
    lines = subprocess.run(["nm", "-S", "--defined-only", str(library)], capture_output=True, text=True, check=True)
    statics, entry, end = [], 0, 0
    for line in lines.stdout.splitlines():
        fields = line.split()
        address = int(fields[0], 16)
        size = int(fields[1], 16) if len(fields) == 4 else 0
        end = max(end, address + size)
        name, kind = fields[-1], fields[-2]
        if name == "rawgrad_entry_0":
            entry = address
        if name.startswith("_ZZ") and kind in "bBdDuV" and size:  # a static variable inside a function
            statics.append((_variable(name), address, size))
    return {"entry": entry, "end": end, "statics": statics}


def _variable(mangled: str) -> str:
    said = subprocess.run(["c++filt", mangled], capture_output=True, text=True).stdout.strip()
    return said.rpartition("::")[2] or mangled


def _load(path: Path, expressions: tuple[str, ...], file: Path) -> Unit:
    library = ctypes.CDLL(str(file))
    layout = json.loads(file.with_suffix(".json").read_text())
    entry = ctypes.cast(library.rawgrad_entry_0, ctypes.c_void_p).value or 0
    base = entry - layout["entry"]
    statics = tuple((name, base + address, size) for name, address, size in layout["statics"])
    return Unit(library, file, {e: i for i, e in enumerate(expressions)}, base, base + layout["end"], statics)
