"""What the emulator found wrong with a launch, in words.

The structures mirror those of state.h.
"""

from __future__ import annotations

import ctypes
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

KINDS = (
    "race in shared memory",
    "race in global memory",
    "access outside every buffer",
    "index outside its array",
    "misaligned access",
    "write into a const argument",
    "read of what nothing wrote",
    "access to what an asynchronous copy has not delivered yet",
    "barrier that not all threads reach",
    "warp operation that not all of its lanes reach",
    "value taken from a lane that takes no part",
    "asynchronous copy that is never waited for",
    "more shared memory than there is",
    "undefined arithmetic",
    "assertion that does not hold",
    "local variables that overflow the stack",
    "thread that does not end",
    "mbarrier used against its rules",
    "wait for an mbarrier that never ends",
    "write into what the asynchronous proxy may still read",
    "accumulators touched while a wgmma is under way",
    "written by a thread, used by the asynchronous proxy without a fence between",
    "shared memory of a block that may not be running",
)
#: Not found by a launch but by comparing several: see orders.py.
ORDER_KIND = "result that depends on the order of threads"

#: Headers of the emulator: what is inlined from there is no place in a kernel.
_OWN = ("/_emulator/device.h", "/_emulator/intrinsics.h")
#: What a thread does to an mbarrier, by the kind of finding.
_OF_MBARRIERS = {
    "mbarrier used against its rules": "uses it",
    "wait for an mbarrier that never ends": "waits",
}
_DOES = ("reads", "writes", "updates atomically")
_DID = ("read", "wrote", "updated atomically")
_GLOBAL, _SHARED, _LOCAL, _NOWHERE = range(4)


class RawParty(ctypes.Structure):
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
        ("first", RawParty),
        ("second", RawParty),
        ("has_second", ctypes.c_int32),
        ("buffer", ctypes.c_int32),
        ("offset", ctypes.c_int64),
        ("address", ctypes.c_uint64),
        ("bytes", ctypes.c_int64),
        ("limit", ctypes.c_int64),
        ("count", ctypes.c_int32),
        ("operation", ctypes.c_char_p),
        ("detail", ctypes.c_char * 160),
        ("times", ctypes.c_uint64),
        ("step", ctypes.c_uint64),
        ("foreign", ctypes.c_int32),
        ("owner", ctypes.c_uint32 * 3),
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
        element = offset // self.itemsize
        text = f"{self.name} ({self.dtype}{list(self.shape)}), element {element}"
        if offset < 0:
            return f"{text}, {-offset} bytes before its begin"
        if offset >= self.nbytes:
            return f"{text}, {offset - self.nbytes} bytes behind its end"
        if len(self.shape) > 1 and self.nbytes == np.prod(self.shape) * self.itemsize:
            text += f" = {[int(i) for i in np.unravel_index(element, self.shape)]}"
        return text


@dataclass(frozen=True)
class Symbols:
    """What is needed to say where something lies: a kernel's library and the memory of a launch.

    Attributes:
        library: the file, and ``base`` the address at which it was loaded, to find source lines.
        ranges: the memory of the launch's arguments.
        statics: (name, address, size) of the ``__shared__`` variables.
    """

    library: Path
    base: int
    ranges: Sequence[Range]
    statics: Sequence[tuple[str, int, int]]

    def shared(self, address: int, offset: int) -> tuple[str, int]:
        """The place in shared memory at ``address``, which is ``offset`` bytes into the block's; and its byte."""
        for name, begin, size in self.statics:
            if begin <= address < begin + size:
                return f"shared variable {name}, byte {address - begin}", address - begin
        return f"byte {offset} of shared memory", offset

    def anywhere(self, address: int) -> str:
        """An address that is in no buffer."""
        if address < 4096:
            return "the null pointer" + (f" and {address} bytes" if address else "")
        for name, begin, size in self.statics:
            if begin - 4096 < address < begin + size + 4096:
                far = address - begin - size
                return f"shared variable {name}, " + (
                    f"{far} bytes behind its end" if far >= 0 else f"{begin - address} bytes before its begin"
                )
        return f"address {address:#x}, which is no argument's"


@dataclass(frozen=True)
class Party:
    """What one thread did.

    Attributes:
        block, thread: its indices, x y z.
        does: "reads", "writes", "updates atomically", "waits", …
        place: "file:line" of the instruction, "" if unknown.
        source: the text of that line.
        through: "file:line" of the functions, if any, into which the instruction was inlined.
    """

    block: tuple[int, int, int]
    thread: tuple[int, int, int]
    does: str
    place: str
    source: str
    through: tuple[str, ...] = ()

    @property
    def who(self) -> str:
        return f"thread {self.thread} of block {self.block}"

    @property
    def where(self) -> str:
        """``file:line  source``, and from where that was called."""
        text = f"{self.place or 'an unknown place'}" + (f"  {self.source}" if self.source else "")
        return text + "".join(f"\n  called from {place}" for place in self.through)


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong.

    Attributes:
        kind: one of :data:`KINDS`, or :data:`ORDER_KIND`.
        text: all that is known about it, over several lines.
        parties: the thread that was caught; then, where there is one, the thread it met.
        argument: the kernel's argument whose memory it is about, "" if none.
        element: the element of the argument, or the byte of shared memory; -1 if it is about no memory.
        times: how often this instruction was caught at it.
    """

    kind: str
    text: str
    parties: tuple[Party, ...]
    argument: str
    element: int
    times: int

    @property
    def places(self) -> tuple[str, ...]:
        """ "file:line" of each party."""
        return tuple(party.place for party in self.parties)


def describe(raw: RawFinding, symbols: Symbols) -> Finding:
    """``raw`` in words."""
    kind = KINDS[raw.kind]
    first, second = _party(raw.first, _DOES, symbols), _party(raw.second, _DID, symbols)
    operation, detail = (raw.operation or b"").decode(), raw.detail.decode(errors="replace")
    title, lines = kind, []
    argument, element = "", -1
    if kind in ("barrier that not all threads reach", "warp operation that not all of its lanes reach"):
        lines.append(f"{first.who} waits in {operation} at {first.where}")
        if raw.has_second:
            more = f", and {raw.count - 1} more elsewhere" if raw.count > 1 else ""
            lines.append(f"{second.who} " + (f"is at {second.where}" if second.place else "has returned") + more)
    elif kind == "value taken from a lane that takes no part":
        lines.append(f"{first.who} takes the value of lane {raw.count} in {operation} at {first.where}")
    elif kind == "asynchronous copy that is never waited for":
        lines.append(f"{first.who} returns while its copy of {raw.bytes} bytes may be under way, at {first.where}")
    elif kind == "more shared memory than there is":
        lines.append(f"{first.who} needs {raw.bytes:,} bytes, there are {raw.limit:,}, at {first.where}")
    elif kind == "local variables that overflow the stack":
        lines.append(f"{first.who} needs more than the {raw.limit:,} bytes that the emulator has, at {first.where}")
    elif kind == "thread that does not end":
        if raw.limit:
            lines.append(
                f"{first.who} has made {raw.limit:,} accesses without a barrier or a warp operation, at {first.where}"
            )
            lines.append("does it wait for another thread in a loop?  Threads run one after the other here")
        else:
            lines.append(f"{first.who} computes for seconds without any access, at {first.where}")
    elif kind.startswith("accumulators"):
        lines.append(f"{first.who} at {first.where}")
        if raw.has_second:
            lines.append(f"{second.who} began the wgmma at {second.where}")
    elif raw.space == _NOWHERE and raw.address == 0 and kind != "access outside every buffer":
        lines.append(f"{first.who} at {first.where}")
    else:
        where, argument, element = _memory(raw, symbols)
        title += f": {where}"
        does = f"{first.does} {raw.bytes} bytes"
        if kind == "misaligned access":
            does = f"needs an address that is a multiple of {raw.limit}"
        elif kind in _OF_MBARRIERS:
            does = _OF_MBARRIERS[kind]
        elif kind.startswith("written by a thread") and not raw.has_second:
            does = "begins a copy that ends on it"
        lines.append(f"{first.who} {does} at {first.where}")
        if raw.has_second == 2:
            lines.append(f"threads of several blocks {second.does} it, one of them at {second.where}")
        elif raw.has_second and kind.startswith("written by a thread"):
            lines.append(f"{second.who} {second.does} it at {second.where}")
        elif raw.has_second and kind.startswith("write into what the asynchronous"):
            lines.append(f"{second.who} began what reads it at {second.where}")
        elif raw.has_second and kind.startswith("race"):
            lines.append(f"{second.who} {second.does} it at {second.where}")
            lines.append("nothing orders the two")
        elif raw.has_second:
            lines.append(f"{second.who} began the copy at {second.where}")
    if detail:
        lines.append(detail)
    if raw.times > 1:
        lines.append(f"(seen {raw.times} times)")
    parties = (first, second) if raw.has_second else (first,)
    return Finding(kind, "\n".join((title, *lines)), parties, argument, element, raw.times)


def _memory(raw: RawFinding, symbols: Symbols) -> tuple[str, str, int]:
    """The memory that a finding is about, in words; the argument, and the element or byte."""
    if raw.space == _GLOBAL and raw.buffer >= 0:
        of = symbols.ranges[raw.buffer]
        where = of.at(raw.offset)
        if 0 <= raw.offset < of.nbytes < raw.offset + raw.bytes:
            where += f", of which {raw.offset + raw.bytes - of.nbytes} bytes lie behind its end"
        return where, of.name, raw.offset // of.itemsize
    if raw.space == _SHARED:
        where, byte = symbols.shared(raw.address, raw.offset)
        if raw.foreign:
            where += f" of block {tuple(raw.owner)}"
        if raw.limit and KINDS[raw.kind] == "access outside every buffer":
            where += f", of which the block has {raw.limit} bytes"
        return where, "", byte
    if raw.space == _LOCAL:
        return f"the local variables of thread number {raw.offset} of the block", "", -1
    return symbols.anywhere(raw.address), "", -1


def _party(raw: RawParty, verbs: Sequence[str], symbols: Symbols) -> Party:
    frames = _frames(symbols.library, raw.caller - symbols.base - 1) if raw.caller else []
    if raw.file:
        frames = [(raw.file.decode(), raw.line), *frames[1:]]
    places = [f"{_short(file)}:{line}" for file, line in frames]
    source = _source_line(*frames[0]) if frames else ""
    block, thread = tuple(raw.block), tuple(raw.thread)
    return Party(block, thread, verbs[raw.access], places[0] if places else "", source, tuple(places[1:]))


def _source_line(file: str, line: int) -> str:
    try:
        return Path(file).read_text().splitlines()[line - 1].strip()
    except (OSError, IndexError):
        return ""


def _short(file: str) -> str:
    """``file`` without the folders above the package or the working directory."""
    path = Path(file).resolve()
    for root in (Path(__file__).resolve().parents[2], Path.cwd()):
        if path.is_relative_to(root):
            return str(path.relative_to(root))
    return str(path)


@lru_cache(maxsize=4096)
def _frames(library: Path, offset: int) -> list[tuple[str, int]]:
    """Source file and line of an instruction, then of the calls that were inlined; without the emulator's own."""
    command = ["addr2line", "-i", "-e", str(library), hex(offset)]
    try:
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    except (OSError, subprocess.CalledProcessError):
        return []
    places = []
    for place in said:
        file, _, line = place.partition(" ")[0].rpartition(":")
        if line.isdigit() and int(line) and not file.endswith(_OWN) and Path(file).name != "entries":
            places.append((file, int(line)))
    return places
