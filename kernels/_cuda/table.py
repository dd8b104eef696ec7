"""What every shipped kernel instance takes of a GPU, for each architecture: the compile table.

``python -m rawgrad.kernels._cuda.table docs/compile-table.md`` writes it.  It needs NVRTC and no GPU.
"""

from __future__ import annotations

import hashlib
import importlib
import os
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from .._errors import BackendError
from .._launch import KERNELS, Kernel, ceil_div, runs_on
from .nvrtc import Compiled, Nvrtc, Resources, compiled, required
from .source import read_source, without_comments

_FOLDER = Path(__file__).parents[1]


@dataclass(frozen=True)
class Limits:
    """What a multiprocessor (SM) has, and what one block may have of it.

    Source: NVIDIA, *CUDA C++ Programming Guide*, "Technical Specifications per Compute Capability".
    """

    blocks: int
    warps: int
    shared_bytes: int
    shared_bytes_of_block: int
    registers: int = 65536


LIMITS = {
    "sm_80": Limits(32, 64, 164 * 1024, 163 * 1024),
    "sm_86": Limits(16, 48, 100 * 1024, 99 * 1024),
    "sm_89": Limits(24, 48, 100 * 1024, 99 * 1024),
    "sm_90": Limits(32, 64, 228 * 1024, 227 * 1024),
    "sm_100": Limits(32, 64, 228 * 1024, 227 * 1024),
}
# The same for all of these.  Sources: the same guide (32 threads; 1 KB that the system takes of each block's
# shared memory), and the occupancy calculator's cuda_occupancy.h (units of allocation, four parts of an SM).
_WARP = 32
_PARTS = 4
_REGISTER_UNIT = 256  # of a warp
_SHARED_UNIT = 128
_SHARED_OF_SYSTEM = 1024


@dataclass(frozen=True)
class Occupancy:
    """How many blocks of one kernel an SM holds at once, how many warps, and which share of the most that is."""

    blocks: int
    warps: int
    share: float


def occupancy(resources: Resources, threads: int, architecture: str, dynamic_shared: int = 0) -> Occupancy:
    """The occupancy of a kernel on an SM of ``architecture`` that runs nothing else.

    Args:
        resources: what ptxas reports of the kernel.
        threads: in a block.
        architecture: a key of :data:`LIMITS`, perhaps with an ``a`` at its end.
        dynamic_shared: bytes that a launch adds.
    """
    limits = LIMITS[architecture.removesuffix("a")]
    warps = ceil_div(threads, _WARP)
    of_warp = ceil_div(max(1, resources.registers) * _WARP, _REGISTER_UNIT) * _REGISTER_UNIT
    by_registers = limits.registers // _PARTS // of_warp * _PARTS // warps
    shared = resources.shared_bytes + dynamic_shared + _SHARED_OF_SYSTEM
    by_shared = limits.shared_bytes // (ceil_div(shared, _SHARED_UNIT) * _SHARED_UNIT)
    blocks = min(limits.blocks, limits.warps // warps, by_registers, by_shared)
    return Occupancy(blocks, blocks * warps, blocks * warps / limits.warps)


@dataclass(frozen=True)
class Work:
    """What is compiled together: some instances of one kernel, for one architecture."""

    kernel: Kernel
    expressions: tuple[str, ...]
    architecture: str


def shipped_kernels() -> list[Kernel]:
    """Every kernel that a launcher of ours declares."""
    for launcher in sorted(_FOLDER.glob("*/cuda.py")):
        importlib.import_module(f"{__package__.rpartition('.')[0]}.{launcher.parent.name}.cuda")
    ours = [kernel for (path, _), kernel in KERNELS.items() if path.is_relative_to(_FOLDER)]
    return sorted(ours, key=lambda kernel: (kernel.path, kernel.name))


def versions_of(operation: str, function: str, here: int | None = None, halves: bool | None = False) -> list[str]:
    """The names of the versions of a launcher's function, if it has several; those that run on sm_``here`` if given.

    Args:
        halves: whether for arrays of float16 and bfloat16; None for all.
    """
    launcher = importlib.import_module(f"{__package__.rpartition('.')[0]}.{operation}.cuda")
    only = getattr(launcher, "ARCHITECTURES", {})
    names = list(getattr(launcher, "VERSIONS", {}).get(function, {}))
    if halves is not None and (for_halves := getattr(launcher, "FOR_HALVES", ())):
        names = [n for n in names if (n in for_halves if halves else n not in launcher.ONLY_FOR_HALVES)]
    return [n for n in names if here is None or n not in only or any(runs_on(one, here) for one in only[n])]


def works(kernels: Iterable[Kernel]) -> Iterator[Work]:
    """All that is to be compiled of ``kernels``, in the units in which launches compile it."""
    for kernel in kernels:
        units = dict.fromkeys(tuple(kernel.unit(instance.expression)) for instance in kernel.instances())
        for architecture in kernel.architectures:
            for unit in units:
                yield Work(kernel, unit, architecture)


def cores() -> int:
    """How many of them this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def compiled_here(path: Path, expressions: Sequence[str], architecture: str) -> Compiled:
    """As :func:`.nvrtc.compiled` by this process's own NVRTC: for other processes, which cannot be handed one."""
    return compiled(required(), path, expressions, architecture)


def compile_all(nvrtc: Nvrtc, kernels: Sequence[Kernel]) -> dict[Work, Compiled]:
    """Compile every instance of ``kernels`` for every architecture, on all cores; what was compiled before is kept."""
    every = list(works(kernels))
    with ThreadPoolExecutor(cores()) as pool:  # NVRTC runs outside of Python's lock
        made = pool.map(lambda w: compiled(nvrtc, w.kernel.path, w.expressions, w.architecture), every)
        return dict(zip(every, made, strict=True))


_HEAD = """# What the kernels take of a GPU

Every instance of every CUDA kernel, compiled by {nvrtc} for each architecture it is shipped for: threads of a block (as
`__launch_bounds__` says), bytes of static shared memory of a block, and for each architecture

`registers of a thread · blocks on an SM (share of the warps it can hold)`

where the blocks follow from registers, shared memory and threads. A spill would stand beside them in bold; the test
`tests/kernels/test_nvrtc.py` fails on any, and holds this page up to date. Written by

```
python -m rawgrad.kernels._cuda.table docs/compile-table.md
```

Of a few kernels (most are `conv2d_*_v4_direct`) NVRTC 12.9 makes one of two codes, a register or so apart, by the
addresses that the system gave its memory; with address randomisation off (`setarch -R`), one process makes always the
same. So the test holds this page to the sources, by their digests, and to the threads, shared memory, blocks and spills
that the compiler reports there and then; the registers are those of one compilation.

What an SM has (CUDA C++ Programming Guide, "Technical Specifications per Compute Capability"); a block besides its own
shared memory costs 1 KB, registers are given to warps in units of 256, from one of four parts of the SM:

| | {architectures} |
|---|{bars}|
| blocks | {blocks} |
| warps | {warps} |
| shared memory, KB | {shared} |
| of it for one block, KB | {of_block} |
| registers | {registers} |

{summary}
"""


def source_line(path: Path) -> str:
    """What the page says of a ``.cu`` file: a digest of its code and its headers', without comments and spaces."""
    text = re.sub(r"^#line .*$", "", read_source(path).text, flags=re.MULTILINE)  # where the checkout is
    code = " ".join(without_comments(text).split())
    return f"The source and its headers: `{hashlib.sha256(code.encode()).hexdigest()[:16]}`."


def document(nvrtc: Nvrtc, made: dict[Work, Compiled]) -> str:
    """The page, in Markdown."""
    by_file: dict[Path, dict[str, dict[str, Resources]]] = {}
    for work, result in made.items():
        of_file = by_file.setdefault(work.kernel.path, {})
        for expression, resources in result.resources.items():
            of_file.setdefault(expression, {})[work.architecture] = resources
    columns = list(dict.fromkeys(work.architecture.removesuffix("a") for work in made))
    limits = [LIMITS[name] for name in columns]

    def row(values: Iterable[object]) -> str:
        return " | ".join(map(str, values))

    instances = [of for of_file in by_file.values() for of in of_file.values()]
    spilling = sum(any(r.spills for r in of.values()) for of in instances)
    summary = (
        f"{len({work.kernel.name for work in made})} kernels in {len(by_file)} files, {len(instances)} instances, "
        f"{sum(map(len, instances))} compilations; {spilling or 'none'} of the instances spills. Most registers: "
        f"{max(r.registers for of in instances for r in of.values())} of 255."
    )
    text = _HEAD.format(
        nvrtc=nvrtc,
        architectures=row(columns),
        bars="|".join("---:" for _ in columns),
        blocks=row(limit.blocks for limit in limits),
        warps=row(limit.warps for limit in limits),
        shared=row(limit.shared_bytes // 1024 for limit in limits),
        of_block=row(limit.shared_bytes_of_block // 1024 for limit in limits),
        registers=row(limit.registers for limit in limits),
        summary=summary,
    )
    for path, of_file in by_file.items():
        columns = list(dict.fromkeys(name for of in of_file.values() for name in of))
        text += f"\n## {path.stem}\n\n{source_line(path)}\n\n| instance | threads | shared | {row(columns)} |\n"
        text += f"|---|---:|---:|{'|'.join('---:' for _ in columns)}|\n"
        for expression, of in of_file.items():
            any_one = next(iter(of.values()))
            shared = " / ".join(map(str, dict.fromkeys(r.shared_bytes for r in of.values())))
            shared += " + dynamic" if any_one.dynamic_shared else ""
            cells = [_cell(of[name], name) if name in of else "" for name in columns]
            text += f"| `{expression}` | {any_one.max_threads or '–'} | {shared} | {row(cells)} |\n"
    return text


def _cell(resources: Resources, architecture: str) -> str:
    text = str(resources.registers)
    if resources.max_threads and not resources.dynamic_shared:
        found = occupancy(resources, resources.max_threads, architecture)
        text += f" · {found.blocks} ({100 * found.share:.0f} %)"
    if resources.spills:
        text += f" **spills {resources.spill_stores} + {resources.spill_loads}**"
    return text


@cache
def version_in(document: str) -> str:
    """The compiler that a page was written with: ``NVRTC 12.9``."""
    found = re.search(r"NVRTC \d+\.\d+", document)
    return found[0] if found else ""


def main(arguments: Sequence[str]) -> int:
    """Write the page."""
    if len(arguments) != 1:
        print("python -m rawgrad.kernels._cuda.table FILE.md", file=sys.stderr)
        return 2
    try:
        nvrtc = required()
    except BackendError as error:
        print(error, file=sys.stderr)
        return 1
    made = compile_all(nvrtc, shipped_kernels())
    Path(arguments[0]).write_text(document(nvrtc, made))
    for text in sorted({f"{w.kernel.name} {w.architecture}: {text}" for w, c in made.items() for text in c.warnings}):
        print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
