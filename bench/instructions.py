"""How many instructions each compiled CPU kernel executes in one call, counted by callgrind.

Times are too noisy to notice in CI that a kernel became a little slower; a count of instructions is not.  For it to
be the same on every x86-64 processor, kernels are compiled for one that all have (:data:`TARGET`, with AVX2, which
valgrind knows), for its vectors of 32 bytes, and run in one thread.  What Python, NumPy and the C library do around
them is not counted: callgrind tells for each instruction which file it is from, and that of compiled code is none.

The kernels are compiled by a process of their own into the cache of compiled kernels, then a second process runs them
under valgrind.  That one tells callgrind where a piece of work begins and ends (valgrind's "client requests", which
are instructions without an effect).  Each kernel was called before, so that what happens once is not counted.

``rawgrad bench instructions`` counts, and compares with ``bench/results/instructions.json``.  A count may differ from
the recorded one by :data:`BOUND`, both ways, since a record that is too high would let the kernel grow again.  Where
Python, Numba or LLVM are others than those of the record, the kernels consist of other instructions: there a count
may grow by :data:`OTHER_COMPILER`, or fall.
"""

from __future__ import annotations

import argparse
import ctypes
import mmap
import platform
import re
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from ..kernels import activation, conv2d, max_pool2d
from ..kernels._dispatch import BACKENDS
from ..kernels._errors import BackendError, DataError
from ..recipes import machine
from . import child, results, traffic

#: The processor that kernels are compiled for, and what of it they may use.
TARGET = {
    "NUMBA_CPU_NAME": "haswell",
    "NUMBA_CPU_FEATURES": "+avx,+avx2,+bmi,+bmi2,+f16c,+fma,+lzcnt,+movbe,+popcnt,+sse4.1,+sse4.2,+ssse3",
    "RAWGRAD_VECTOR_BYTES": "32",
    "RAWGRAD_THREADS": "1",
    "RAWGRAD_BACKEND": "numba",
}
#: A count may differ from the recorded one by this share.
BOUND = 0.02
#: Where the compiler is another one, it may be larger by this share.
OTHER_COMPILER = 0.25
#: Of an installed rawgrad there is none.
RECORD = Path(__file__).parent / "results/instructions.json"
KIND = "instructions"
ANEW = "rawgrad bench instructions --out bench/results/instructions.json"


def cases() -> list[traffic.Case]:
    """What is counted: the cases of :mod:`.traffic` that the compiled kernels take as they are, and some more."""
    random = np.random.default_rng(1)

    def normal(*shape: int) -> np.ndarray:
        return random.standard_normal(shape, dtype=np.float32)

    image, few, general, filters = normal(4, 1, 28, 28), normal(20, 1, 5, 5), normal(1, 64, 8, 8), normal(64, 64, 3, 3)
    first, halves = conv2d.geometry(image.shape, few.shape, padding=2), max_pool2d.geometry((4, 20, 28, 28), 2)
    g = conv2d.geometry(general.shape, filters.shape, padding=1)
    bias, grad, plane = normal(20), normal(*general.shape), normal(64, 1024)
    own = [
        traffic.Case(
            "conv2d", "conv2d_relu_pool_forward", "1→20, 5×5 on 28×28, batch 4",
            lambda x, w, b: conv2d.conv2d_relu_pool_forward(x, w, b, first, halves), (image, few, bias),
        ),
        *(
            traffic.Case("conv2d", function, "64→64, 3×3 on 8×8", call, arrays)
            for function, call, arrays in (
                ("conv2d_forward", lambda x, w: conv2d.conv2d_forward(x, w, None, padding=1), (general, filters)),
                ("conv2d_backward_input", lambda d, w: conv2d.conv2d_backward_input(d, w, g), (grad, filters)),
                ("conv2d_backward_weight", lambda x, d: conv2d.conv2d_backward_weight(x, d, g), (general, grad)),
            )
        ),
        traffic.Case(
            "activation", "activation_forward", "(64, 1024) gelu",
            lambda x: activation.activation_forward(x, "gelu"), (plane,),
        ),
    ]  # fmt: skip
    return [case for case in (*traffic.cases(), *own) if not case.halves() and not case.channels_last()]


# ---- in the process that runs the kernels

#: ``callgrind.h``: its requests begin at the letters of the tool.
_BASE = ord("C") << 24 | ord("T") << 16
_RUNNING, _ZERO, _DUMP, _START = 0x1001, _BASE + 1, _BASE + 3, _BASE + 4
#: ``valgrind.h``: rdi rotated by 128 bits in four steps, then rbx exchanged with itself, is a request to valgrind whose
#: number and arguments rax points to; the answer comes in rdx.  Elsewhere it does nothing.
_REQUEST = bytes.fromhex("4889f8 31d2 48c1c703 48c1c70d 48c1c73d 48c1c733 4887db 4889d0 c3")


class Requests:
    """Tells valgrind something: ``requests(number, argument)`` gives its answer, 0 where there is no valgrind."""

    def __init__(self) -> None:
        self._code = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
        self._code.write(_REQUEST)
        self._words = ctypes.c_uint64 * 6
        address = ctypes.addressof(ctypes.c_char.from_buffer(self._code))
        self._call = ctypes.CFUNCTYPE(ctypes.c_uint64, ctypes.POINTER(ctypes.c_uint64))(address)

    def __call__(self, number: int, argument: int = 0) -> int:
        return int(self._call(self._words(number, argument)))


def _run() -> None:
    """Call every case once, which compiles it; under valgrind then once more, counted."""
    request, everything = Requests(), cases()
    for case in everything:
        case.call(*case.arrays)
    if not request(_RUNNING):
        return
    request(_START)
    for number, case in enumerate(everything):
        name = ctypes.create_string_buffer(str(number).encode())
        request(_ZERO)
        case.call(*case.arrays)
        request(_DUMP, ctypes.addressof(name))


# ---- in the process that asks


def problem() -> str | None:
    """Why instructions cannot be counted here; None if they can."""
    if platform.machine() not in ("x86_64", "AMD64"):
        return f"they are counted for x86-64; this is {platform.machine()}"
    if shutil.which("valgrind") is None:
        return "valgrind is not installed; apt install valgrind"
    if reason := BACKENDS["numba"].problem():
        return reason
    from llvmlite import binding

    features = binding.get_host_cpu_features()
    if lacking := [name for name in TARGET["NUMBA_CPU_FEATURES"].replace("+", "").split(",") if not features.get(name)]:
        return f"the kernels are compiled for a processor with {', '.join(lacking)}, which this one lacks"
    return None


def compiler() -> dict[str, str]:
    """What decides which instructions a kernel is compiled to, beside its source."""
    python = ".".join(platform.python_version_tuple()[:2])
    return {"python": python, **{package: version(package) for package in ("numba", "llvmlite")}}


def of_compiled_code(dump: str) -> tuple[str, int]:
    """From what callgrind wrote: the name it was asked to write under, and the instructions that no file holds."""
    names: dict[str, str] = {}
    name, here, counted, of_a_call = "", "", 0, False
    for line in dump.splitlines():
        if line.startswith("desc: Trigger: Client Request:"):
            name = line.rpartition(":")[2].strip()
        elif found := re.match(r"(c?ob)=(\(\d+\))(?: (.*))?", line):
            names.setdefault(found[2], found[3])
            if found[1] == "ob":
                here = names[found[2]]
        elif line.startswith("calls="):
            of_a_call = True  # the next line has what was executed in there
        elif re.match(r"[\d+*-]", line):
            if here == "???" and not of_a_call:
                counted += int(line.split()[1])
            of_a_call = False
    return name, counted


def count() -> dict[str, int]:
    """Instructions of one call of each case, by function and shape.

    Raises:
        BackendError: they cannot be counted here (:func:`problem`).
        RawgradError: a process failed; the message holds the end of what it said.
    """
    if reason := problem():
        raise BackendError(f"bench instructions: {reason}")
    with tempfile.TemporaryDirectory(prefix="rawgrad-instructions-") as folder:
        out = Path(folder) / "callgrind"
        watch = ("valgrind", "--tool=callgrind", "--instr-atstart=no", f"--callgrind-out-file={out}")
        for before in ((), watch):
            process = child.start("instructions", before=before, **TARGET)
            _, said = process.communicate()
            if process.returncode:
                what = f"running the kernels{' under valgrind' if before else ''} (exit code {process.returncode})"
                raise child.failed(what, said)
        parts = dict(of_compiled_code(part.read_text(errors="replace")) for part in out.parent.glob("callgrind.*"))
    return {f"{case.function}, {case.shape}": parts[str(number)] for number, case in enumerate(cases())}


def recorded(path: Path) -> dict[str, Any]:
    """The record.

    Raises:
        DataError: it cannot be read, or is none.
    """
    content = results.content_of(path)
    counts, by = content.get("counts"), content.get("compiler")
    if content.get("kind") != KIND or not isinstance(counts, dict) or not isinstance(by, dict):
        raise DataError(f"bench instructions: {path} must be a record of kind {KIND!r} with counts and compiler")
    return content


def record(counts: Mapping[str, int]) -> dict[str, Any]:
    """A record of ``counts``."""
    target = {name: value for name, value in TARGET.items() if not name.startswith("RAWGRAD_B")}
    return {**machine.provenance(), "kind": KIND, "compiler": compiler(), "target": target, "counts": dict(counts)}


def moved(counts: Mapping[str, int], before: Mapping[str, Any]) -> list[str]:
    """In words, what is not as in the record ``before``: nothing, if all is well."""
    same = before["compiler"] == compiler()
    most = 1 + (BOUND if same else OTHER_COMPILER)
    said = []
    for name, now in counts.items():
        old = before["counts"].get(name)
        if old is None:
            said.append(f"{name}: {now:,}, and was not recorded")
        elif now > most * old or (same and now < old * (1 - BOUND)):
            said.append(f"{name}: {now:,} in place of {old:,} ({now / old - 1:+.1%})")
    return said + [f"{name}: recorded, and is no more" for name in before["counts"] if name not in counts]


def _table(counts: Mapping[str, int], before: Mapping[str, int]) -> str:
    lines = ["| kernel | instructions of a call | change |", "|---|---|---|"]
    for name, now in counts.items():
        change = f"{now / before[name] - 1:+.2%}" if name in before else ""
        lines.append(f"| {name} | {now:,} | {change} |")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """``rawgrad bench instructions``: 1 if a count is not as recorded."""
    parser = argparse.ArgumentParser(
        prog="rawgrad bench instructions",
        description="Count the instructions of one call of each compiled CPU kernel, in one thread and for a processor "
        "with AVX2, under valgrind, and compare with those recorded.",
    )
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the counts as JSON, and compare nothing")
    options = parser.parse_args(argv)
    before = recorded(RECORD) if options.out is None and RECORD.is_file() else None
    counts = count()
    print(_table(counts, before["counts"] if before else {}))
    if options.out is not None:
        results.write(record(counts), options.out)
        print(f"\nwritten: {options.out}")
        return 0
    if before is None:
        print("\nnothing to compare with: there is no record here")
        return 0
    if before["compiler"] != compiler():
        print(f"\nrecorded with {before['compiler']}; here {compiler()}")
    changed = moved(counts, before)
    if changed:
        print("", *changed, f"`{ANEW}` records the counts anew", sep="\n")
    return 1 if changed else 0


if __name__ == "__main__":
    _run()
