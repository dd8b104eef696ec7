"""What the emulator found wrong with a launch, in words.

The structures mirror those of state.h.
"""

from __future__ import annotations

import ctypes
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

KINDS = (
    "race in shared memory",
    "race in global memory",
    "access outside every buffer",
    "misaligned access",
    "write into a const argument",
    "read of what nothing wrote",
    "read of what an asynchronous copy has not delivered yet",
    "barrier that not all threads reach",
    "warp operation that not all of its lanes reach",
    "value taken from a lane that takes no part",
    "asynchronous copies that are never waited for",
    "more shared memory than the launch gives",
)
_SPACES = ("global", "shared", "nowhere")
_DOES = ("reads", "writes", "updates atomically")
_DID = ("read", "wrote", "updated atomically")


class Party(ctypes.Structure):
    _fields_ = (
        ("block", ctypes.c_uint32 * 3),
        ("thread", ctypes.c_uint32 * 3),
        ("access", ctypes.c_int32),
        ("line", ctypes.c_int32),
        ("file", ctypes.c_char_p),
        ("caller", ctypes.c_void_p),
    )


class RawFinding(ctypes.Structure):
    _fields_ = (
        ("kind", ctypes.c_int32),
        ("space", ctypes.c_int32),
        ("first", Party),
        ("second", Party),
        ("has_second", ctypes.c_int32),
        ("buffer", ctypes.c_int32),
        ("offset", ctypes.c_int64),
        ("address", ctypes.c_uint64),
        ("bytes", ctypes.c_int32),
        ("count", ctypes.c_int32),
        ("operation", ctypes.c_char_p),
        ("times", ctypes.c_uint64),
    )


@dataclass(frozen=True)
class Range:
    """Memory that a launch may touch: the array of one argument, or of several that overlap."""

    name: str
    address: int
    nbytes: int
    dtype: str
    shape: tuple[int, ...]
    itemsize: int

    def at(self, offset: int) -> str:
        """Where ``offset`` bytes from the start are."""
        array = f"{self.name} ({self.dtype}{list(self.shape)})"
        if offset < 0:
            return f"{-offset} bytes before {array}"
        if offset >= self.nbytes:
            return f"{offset - self.nbytes} bytes behind the end of {array}"
        return f"{array}, element {offset // self.itemsize}"


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong.

    Attributes:
        kind: one of :data:`KINDS`.
        text: all that is known about it, over several lines.
        places: "file:line" of each thread's instruction.
        times: how often this instruction was caught at it.
    """

    kind: str
    text: str
    places: tuple[str, ...]
    times: int


def describe(
    raw: RawFinding, library: Path, base: int, ranges: Sequence[Range], statics: Callable[[int], str]
) -> Finding:
    """``raw`` in words.

    Args:
        library, base: the kernels' library and where it was loaded, to find source lines.
        ranges: the memory of the launch's arguments.
        statics: the name of the ``__shared__`` variable at an address, or "".
    """
    kind = KINDS[raw.kind]
    first, second = _place(raw.first, library, base), _place(raw.second, library, base)
    who, other = _thread(raw.first), _thread(raw.second)
    operation = (raw.operation or b"").decode()
    lines = [kind]
    if kind in ("barrier that not all threads reach", "warp operation that not all of its lanes reach"):
        lines.append(f"{who} waits in {operation} at {first}")
        where = f"is at {second}" if raw.second.file else "has returned"
        more = f", and {raw.count - 1} more elsewhere" if raw.count > 1 else ""
        lines.append(f"{other} {where}{more}")
    elif kind == "value taken from a lane that takes no part":
        lines.append(f"{who} takes the value of lane {raw.count} in {operation} at {first}")
    elif kind == "asynchronous copies that are never waited for":
        lines.append(f"{who} returns with copies under way")
    elif kind == "more shared memory than the launch gives":
        lines.append(f"{who} asks for {raw.bytes} bytes; the launch gives {raw.offset}")
    else:
        where = ranges[raw.buffer].at(raw.offset) if raw.buffer >= 0 else ""
        if _SPACES[raw.space] == "shared":
            where = statics(raw.address) or f"byte {raw.offset} of shared memory"
        elif not where:
            where = "the null pointer" if raw.address < 4096 else f"address {raw.address:#x}"
        lines[0] += f": {where}"
        lines.append(f"{who} {_DOES[raw.first.access]} {raw.bytes} bytes at {first}")
        if raw.has_second == 2:
            lines.append(f"threads of several blocks {_DID[raw.second.access]} it, one of them at {second}")
        elif raw.has_second:
            lines.append(f"{other} {_DID[raw.second.access]} it at {second}; nothing orders the two")
    if raw.times > 1:
        lines.append(f"(seen {raw.times} times)")
    places = (first, second) if raw.has_second else (first,)
    return Finding(kind, "\n".join(lines), tuple(p.partition(" ")[0] for p in places), raw.times)


def _thread(party: Party) -> str:
    return f"thread ({', '.join(map(str, party.thread))}) of block ({', '.join(map(str, party.block))})"


def _place(party: Party, library: Path, base: int) -> str:
    """``file:line  source`` of what a thread did."""
    if party.file:
        return _with_source(party.file.decode(), party.line)
    if party.caller:
        return _with_source(*_line_of(library, party.caller - base - 1))
    return "an unknown place"


def _with_source(file: str, line: int) -> str:
    try:
        text = Path(file).read_text().splitlines()[line - 1].strip()
    except (OSError, IndexError):
        text = ""
    return f"{_short(file)}:{line}" + (f"  {text}" if text else "")


def _short(file: str) -> str:
    """``file`` without the folders above the package or the working directory."""
    path = Path(file).resolve()
    for root in (Path(__file__).resolve().parents[2], Path.cwd()):
        if path.is_relative_to(root):
            return str(path.relative_to(root))
    return str(path)


@lru_cache(maxsize=4096)
def _line_of(library: Path, offset: int) -> tuple[str, int]:
    """Source file and line of an instruction: the innermost that is not the emulator's own."""
    command = ["addr2line", "-i", "-e", str(library), hex(offset)]
    try:
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split("\n")
    except (OSError, subprocess.CalledProcessError):
        return "??", 0
    places = []
    for place in filter(None, said):
        file, _, line = place.split(" ")[0].rpartition(":")
        places.append((file, int(line) if line.isdigit() else 0))
    own = [place for place in places if not place[0].endswith("/_emulator/device.h")]
    return (own or places or [("??", 0)])[0]
