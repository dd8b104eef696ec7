"""Kernels with planted faults (planted/*.cu) on the emulator: how they are launched and what must be found."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from rawgrad.kernels import _launch
from rawgrad.kernels._devices import Device, device_named
from rawgrad.kernels._dispatch import backend as use_backend
from rawgrad.kernels._emulator.findings import Finding
from rawgrad.kernels._emulator.orders import BACKWARD, FORWARD, SHUFFLED
from rawgrad.kernels._emulator.runtime import EmulatedRuntime
from rawgrad.kernels._errors import LaunchError
from rawgrad.kernels._launch import Kernel

PLANTED = Path(__file__).parent / "planted"

ORDERS = {"forward": FORWARD, "backward": BACKWARD, "shuffled": SHUFFLED, "shuffled otherwise": SHUFFLED + 1}


@dataclass
class Gpu:
    """The simulated device, and its runtime under a fixed order of threads."""

    device: Device
    runtime: EmulatedRuntime

    def array(self, values: Any, dtype: Any = None) -> Any:
        return self.device.from_host(np.asarray(values, dtype))

    def empty(self, shape: Any, dtype: Any = np.float32) -> Any:
        return self.device.array_module.empty(shape, dtype)

    def findings(self, file: str, name: str, grid: Any, block: Any, *arguments: Any, shared: int = 0) -> tuple:
        """Launch a planted kernel; what is found."""
        kernel = planted(file, name)
        try:
            kernel(grid, block, *arguments, shared=shared)
        except LaunchError as error:
            assert f"{name}, grid" in str(error)
            assert error.findings, error
            assert all(finding.text.replace("\n", "\n   ") in str(error) for finding in error.findings)
            return error.findings
        return ()


_kernels: dict[tuple[str, str], Any] = {}


def planted(file: str, name: str, **templates: Any) -> Any:
    """The kernel ``name`` of planted/``file``.cu, kept out of the list of those that are shipped."""
    path = PLANTED / f"{file}.cu"
    if (file, name) not in _kernels:
        _kernels[file, name] = Kernel(path, name, **templates)
        del _launch.KERNELS[path, name]
    return _kernels[file, name] if templates else _kernels[file, name][()]


def gpu_under(order: int) -> Iterator[Gpu]:
    with use_backend("emulated"):
        device = device_named("cuda")
        runtime = _launch.runtime_of(device.array_module.zeros(1))
        assert isinstance(runtime, EmulatedRuntime)
        before = runtime.order, runtime.patience
        runtime.order = order
        yield Gpu(device, runtime)
        runtime.order, runtime.patience = before


def line(file: str, marker: str) -> str:
    """ "file:line" of the line of planted/``file``.cu that ends with the comment ``marker``."""
    lines = (PLANTED / f"{file}.cu").read_text().splitlines()
    found = [i for i, text in enumerate(lines, 1) if text.endswith(f"// {marker}")]
    assert len(found) == 1, f"{marker} stands in {len(found)} lines"
    return f"tests/kernels/planted/{file}.cu:{found[0]}"


@dataclass(frozen=True)
class Case:
    """A planted kernel.  Its last parameter says whether the fault is mended.

    Attributes:
        arguments: of the device, the others.
        result: of the mended kernel: the index of an argument, and what it must hold then.
        kind: of what is found without mending, or None if only the mended kernel is of interest.
        about: what the finding must name: an argument and element, a shared variable and byte.
        parties: for each party, in any order: the marker of its line; the thread that it must be, or None for any;
            and what it does.
    """

    file: str
    name: str
    arguments: Callable[[Gpu], Sequence[Any]]
    result: tuple[int, Any]
    kind: str | None
    about: str
    parties: Sequence[tuple[str, tuple[int, ...] | None, str]]
    grid: Any = 1
    block: Any = 32
    shared: int = 0
    blocks: Sequence[tuple[int, int, int]] | None = None
    also: Sequence[str] = field(default=())  # kinds that may be found besides


def name_of(case: Case) -> str:
    return f"{case.file}-{case.name}"


def check(gpu: Gpu, case: Case) -> None:
    """The planted fault is found, as ``case`` says; mended, there is none, and the result is right."""
    arguments = case.arguments(gpu)
    found = gpu.findings(case.file, case.name, case.grid, case.block, *arguments, 0, shared=case.shared)
    assert {finding.kind for finding in found} - set(case.also) == {case.kind}
    mismatches = [why for finding in found if finding.kind == case.kind and (why := mismatch(case, finding))]
    assert len(mismatches) < sum(finding.kind == case.kind for finding in found), "\n".join(mismatches)

    arguments = case.arguments(gpu)
    assert gpu.findings(case.file, case.name, case.grid, case.block, *arguments, 1, shared=case.shared) == ()
    index, expected = case.result
    np.testing.assert_array_equal(arguments[index].get(), expected)


def mismatch(case: Case, finding: Finding) -> str:
    """What of ``case`` the finding does not say; "" if it says all."""
    if case.about not in finding.text:
        return f"{case.about!r} is not in:\n{finding.text}"
    blocks = case.blocks or [None] * len(case.parties)
    for (marker, thread, does), block in zip(case.parties, blocks, strict=True):
        where = line(case.file, marker)
        for party in finding.parties:
            said = where in (party.place, *party.through)
            if said and does in ("", *([party.does, past(party.does)])) and thread in (None, party.thread):
                if block not in (None, party.block):
                    continue
                assert where in finding.text
                break
        else:
            return f"no party {marker}, {thread} of {block}, {does}, in:\n{finding.text}"
    return ""


def past(does: str) -> str:
    """The other tense."""
    return {"read": "reads", "wrote": "writes", "updated atomically": "updates atomically"}.get(does, does)
