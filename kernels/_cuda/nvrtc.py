"""Compiling CUDA sources with NVRTC alone: for any architecture, on any Linux machine, without a GPU or CuPy.

NVRTC is NVIDIA's compiler as a shared library.  The wheel ``nvidia-cuda-nvrtc-cu12`` (CUDA 12) or
``nvidia-cuda-nvrtc`` (CUDA 13) holds it, and nothing else of CUDA is needed.  What ptxas says about each
kernel, registers, shared memory, spills, becomes :class:`Resources`.

Source of the calls: NVIDIA, *NVRTC User Guide*.
"""

from __future__ import annotations

import base64
import ctypes
import hashlib
import importlib.util
import json
import os
import re
import sys
import tempfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

from .._cache import cache_folder
from .._errors import BackendError, LaunchError
from .source import read_source

#: Ours; ``-lineinfo`` lets compute-sanitizer and profilers name source lines, and changes no code.
OPTIONS = ("-std=c++17", "-lineinfo")
#: What CuPy adds of its own, always and after ours; here too, so that both make the same machine code.
#: With ``-ftz`` float32 results too small to be normal numbers become zero.
_AS_CUPY = ("-ftz=true", "--device-as-default-execution-space")
_REPORT = "--ptxas-options=-v"
#: A message about a source line in the log, ``file(line): error: …``; warnings of ours have the same form.
_AT_LINE = re.compile(r"^(?P<file>.+?)\((?P<line>\d+)\): (?P<kind>(?:catastrophic )?error|warning)\b")
#: ptxas ignores what was asked of it: a bar to performance that makes no error (setmaxnreg, C7508).
_ADVICE = re.compile(r"\bC7\d{3}\b")


@dataclass(frozen=True)
class Resources:
    """What one kernel instance takes, as ptxas reports it.

    Attributes:
        registers: of a thread.
        shared_bytes: static shared memory of a block.
        stack_bytes: local memory of a thread, without spills' share known apart.
        spill_stores, spill_loads: bytes that did not fit into registers, written and read.
        max_threads: threads in a block by ``__launch_bounds__``; 0 if the source does not say.
        dynamic_shared: whether it uses dynamic shared memory, whose size a launch says.
    """

    registers: int
    shared_bytes: int
    stack_bytes: int
    spill_stores: int
    spill_loads: int
    max_threads: int = 0
    dynamic_shared: bool = False

    @property
    def spills(self) -> bool:
        """Whether anything did not fit into registers."""
        return bool(self.spill_stores or self.spill_loads)


@dataclass(frozen=True)
class Compiled:
    """Kernel instances as machine code for one architecture.

    Attributes:
        cubin: the code.
        names: for each name expression its symbol in the code.
        resources: for each name expression what it takes.
        warnings: what the compiler said that is neither an error nor a count.
    """

    cubin: bytes
    names: dict[str, str]
    resources: dict[str, Resources]
    warnings: tuple[str, ...]


class Nvrtc:
    """One NVRTC library.

    Args:
        path: the file, or a name that the loader finds.

    Raises:
        OSError: it cannot be loaded.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = path
        self._library = library = ctypes.CDLL(str(path))
        library.nvrtcGetErrorString.restype = ctypes.c_char_p
        program, text, size = ctypes.c_void_p, ctypes.c_char_p, ctypes.POINTER(ctypes.c_size_t)
        library.nvrtcAddNameExpression.argtypes = (program, text)
        library.nvrtcCompileProgram.argtypes = (program, ctypes.c_int, ctypes.POINTER(text))
        library.nvrtcGetLoweredName.argtypes = (program, text, ctypes.POINTER(text))
        library.nvrtcDestroyProgram.argtypes = (ctypes.POINTER(program),)
        for what in ("ProgramLog", "CUBIN", "PTX"):
            getattr(library, f"nvrtcGet{what}Size").argtypes = (program, size)
            getattr(library, f"nvrtcGet{what}").argtypes = (program, text)
        major, minor = ctypes.c_int(), ctypes.c_int()
        self._check(library.nvrtcVersion(ctypes.byref(major), ctypes.byref(minor)))
        #: (major, minor)
        self.version = (major.value, minor.value)

    def __str__(self) -> str:
        """``NVRTC 12.9``."""
        return "NVRTC {}.{}".format(*self.version)

    def architectures(self) -> list[int]:
        """Those for which it compiles: 80 for sm_80, …"""
        count = ctypes.c_int()
        self._check(self._library.nvrtcGetNumSupportedArchs(ctypes.byref(count)))
        numbers = (ctypes.c_int * count.value)()
        self._check(self._library.nvrtcGetSupportedArchs(numbers))
        return list(numbers)

    def compile(self, path: Path, expressions: Sequence[str], architecture: str) -> Compiled:
        """Compile instances of the kernels of the ``.cu`` file ``path``.

        Args:
            path: the source; its headers are those of ``kernels/_cuda``.
            expressions: what to instantiate: ``["gemm_v1_plain<float, false, true>", …]``.
            architecture: ``"sm_90"``, ``"sm_90a"``, …

        Raises:
            LaunchError: it does not compile; the message has the compiler's lines, each with the source line.
        """
        options = (*OPTIONS, *_AS_CUPY, _REPORT, f"-arch={architecture}")
        text = read_source(path).text
        library, program = self._library, ctypes.c_void_p()
        self._check(library.nvrtcCreateProgram(ctypes.byref(program), text.encode(), path.name.encode(), 0, None, None))
        try:
            for expression in expressions:
                self._check(library.nvrtcAddNameExpression(program, expression.encode()))
            array = (ctypes.c_char_p * len(options))(*map(str.encode, options))
            failed = library.nvrtcCompileProgram(program, len(options), array)
            log = self._output(program, "ProgramLog").rstrip(b"\0").decode(errors="replace")
            if failed:
                log = log or library.nvrtcGetErrorString(failed).decode()
                raise compile_error(path, f"for {architecture} by {self}", log)
            names = {}
            for expression in expressions:
                symbol = ctypes.c_char_p()
                self._check(library.nvrtcGetLoweredName(program, expression.encode(), ctypes.byref(symbol)))
                assert symbol.value is not None
                names[expression] = symbol.value.decode()
            found = _resources(log, self._output(program, "PTX").decode(errors="replace"))
            return Compiled(
                self._output(program, "CUBIN"), names, {e: found[names[e]] for e in expressions}, _warnings(log)
            )
        finally:
            library.nvrtcDestroyProgram(ctypes.byref(program))

    def _output(self, program: ctypes.c_void_p, what: str) -> bytes:
        size = ctypes.c_size_t()
        self._check(getattr(self._library, f"nvrtcGet{what}Size")(program, ctypes.byref(size)))
        buffer = ctypes.create_string_buffer(size.value)
        self._check(getattr(self._library, f"nvrtcGet{what}")(program, buffer))
        return buffer.raw

    def _check(self, status: int) -> None:
        if status:
            raise LaunchError(f"{self.path}: {self._library.nvrtcGetErrorString(status).decode()}")


def compiled(nvrtc: Nvrtc, path: Path, expressions: Sequence[str], architecture: str) -> Compiled:
    """As ``nvrtc.compile``, but kept on disk between runs, by a digest of all that goes into it.

    Of a few kernels NVRTC 12.9 makes one of two codes, by the addresses that the system gave its memory.
    """
    parts = (*expressions, architecture, str(nvrtc), *OPTIONS, *_AS_CUPY, read_source(path).text, _OWN_TEXT)
    digest = hashlib.sha256("\0".join(parts).encode()).hexdigest()[:24]
    target = cache_folder("nvrtc") / f"{path.stem}-{architecture}-{digest}.json"
    try:
        kept = json.loads(target.read_text())
        resources = {expression: Resources(**values) for expression, values in kept["resources"].items()}
        cubin = zlib.decompress(base64.b64decode(kept["cubin"]))
        return Compiled(cubin, kept["names"], resources, tuple(kept["warnings"]))
    except (OSError, ValueError, KeyError, TypeError, zlib.error):
        pass  # not there, or damaged: compile
    made = nvrtc.compile(path, expressions, architecture)
    text = json.dumps(
        {
            "cubin": base64.b64encode(zlib.compress(made.cubin)).decode(),
            "names": made.names,
            "resources": {expression: asdict(values) for expression, values in made.resources.items()},
            "warnings": made.warnings,
        }
    )
    handle, temporary = tempfile.mkstemp(dir=target.parent)
    with os.fdopen(handle, "w") as file:
        file.write(text)
    Path(temporary).replace(target)  # whole or not at all, also when two processes compile the same
    return made


_OWN_TEXT = Path(__file__).read_text()  # the reading of logs is part of what is kept


@cache
def find(major: int | None = None) -> Nvrtc | None:
    """NVRTC, of CUDA ``major`` if given; the newest of a wheel, else the one that the system's loader knows.

    None if there is none.
    """
    wheels = sorted(_in_wheels(), key=lambda path: int(path.name.rpartition(".")[2]), reverse=True)
    roots = [os.environ.get(name) for name in ("CUDA_PATH", "CUDA_HOME")] + ["/usr/local/cuda"]
    toolkits = [path for root in roots if root for path in sorted(Path(root).glob("lib64/libnvrtc.so.*"), reverse=True)]
    places: tuple[Path | str, ...] = (*wheels, "libnvrtc.so.13", "libnvrtc.so.12", *toolkits)
    for place in places:
        try:
            nvrtc = Nvrtc(place)
        except OSError:
            continue
        if major is None or nvrtc.version[0] == major:
            return nvrtc
    return None


def _in_wheels() -> Iterator[Path]:
    spec = importlib.util.find_spec("nvidia")  # a namespace package: the wheels share its folder
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        for inner in ("cuda_nvrtc/lib", "cu*/lib"):
            yield from (path for path in Path(folder).glob(f"{inner}/libnvrtc.so.*") if path.suffix[1:].isdigit())


def problem() -> str | None:
    """Why nothing can be compiled by NVRTC here, or None if it can."""
    if find() is not None:
        return None
    if not sys.platform.startswith("linux"):
        return "NVRTC is looked for on Linux only"
    return "NVRTC was not found; `pip install nvidia-cuda-nvrtc-cu12` brings it, and nothing else of CUDA"


def required(major: int | None = None) -> Nvrtc:
    """As :func:`find`, but :class:`BackendError` if there is none."""
    nvrtc = find(major)
    if nvrtc is None:
        of = f" of CUDA {major}" if major else ""
        raise BackendError(f"this needs NVRTC{of}: {problem() or 'only one of another CUDA is installed'}")
    return nvrtc


def compile_error(path: Path, how: str, log: str) -> LaunchError:
    """The refusal of a source that does not compile, from the compiler's log.

    Warnings and counts are left out.  Older compilers name a line without showing it, so it is added.
    """
    lines = [line for line in log.splitlines() if line.strip()]
    kept: list[str] = []
    dropping = False
    for i, line in enumerate(lines):
        found = _AT_LINE.match(line)
        if found is not None:
            dropping = found["kind"] == "warning"
        elif line.startswith(("ptxas info", "nvrtc: warning", "Remark:")):
            dropping = True
        elif not line.startswith((" ", "\t")):
            dropping = False
        if dropping:
            continue
        kept.append(line)
        shown = i + 1 < len(lines) and lines[i + 1].startswith((" ", "\t"))
        if found is not None and not shown and (text := _line_of(Path(found["file"]), int(found["line"]))):
            kept.append(f"    {text}")
    return LaunchError(f"{path} does not compile {how}:\n" + "\n".join(kept[:60]))


def _line_of(path: Path, number: int) -> str:
    try:
        return path.read_text().splitlines()[number - 1].strip()
    except (OSError, IndexError):
        return ""  # not a file of ours: the compiler's own names


def _resources(log: str, ptx: str) -> dict[str, Resources]:
    """For each symbol what ptxas reports, and what the PTX says of its block and its shared memory."""
    blocks: dict[str, int] = {}
    dynamic: set[str] = set()
    for part in ptx.split(".entry ")[1:]:
        symbol = re.split(r"\W", part, maxsplit=1)[0]
        bounds = re.search(r"^\.maxntid (\d+)(?:, (\d+))?(?:, (\d+))?", part, re.MULTILINE)
        if bounds:
            blocks[symbol] = int(bounds[1]) * int(bounds[2] or 1) * int(bounds[3] or 1)
        if "rawgrad_dynamic_shared" in part:
            dynamic.add(symbol)
    found = {}
    for part in log.split("Compiling entry function '")[1:]:
        symbol = part.partition("'")[0]

        def number(pattern: str, text: str = part) -> int:
            match = re.search(pattern, text)
            return int(match[1]) if match else 0

        found[symbol] = Resources(
            registers=number(r"Used (\d+) registers"),
            shared_bytes=number(r"(\d+) bytes smem"),
            stack_bytes=number(r"(\d+) bytes stack frame"),
            spill_stores=number(r"(\d+) bytes spill stores"),
            spill_loads=number(r"(\d+) bytes spill loads"),
            max_threads=blocks.get(symbol, 0),
            dynamic_shared=symbol in dynamic,
        )
    return found


def _warnings(log: str) -> tuple[str, ...]:
    """The log's lines that are no counts, such as ``… warning: variable "x" was declared but never referenced``."""
    return tuple(line.strip() for line in log.splitlines() if _is_warning(line))


def _is_warning(line: str) -> bool:
    found = _AT_LINE.match(line)
    return "ptxas warning" in line or bool(_ADVICE.search(line)) or (found is not None and found["kind"] == "warning")
