"""Trying out a kernel of a ``.cu`` file that has no launcher; what to launch is said in words.

``rawgrad emulate`` is made of this.  Arguments come as texts, by the names of the kernel's parameters::

    n=1000                          a number; a struct of ints as n=(3, 4)
    x=float32[64, 32]               an array of random numbers; also float32[n, m], with other arguments' values
    x=[64, 32]   x=1024             the same of the type that the kernel takes
    y=empty:[1024]                  nothing is written in it; so with zeros, ones, arange, random
    x=values:1, 2.5, 3              these numbers
    x=file.npy                      what NumPy has saved
    bias=null                       no array

What is not said follows from the rest where that is obvious: see :meth:`Trial.prepare`.
"""

from __future__ import annotations

import ast
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import numpy as np

from .._cuda.source import read_source
from .._devices import device_named
from .._dispatch import backend
from .._dtypes import kind_of
from .._errors import ArgumentError, DataError, LaunchError
from .._launch import _TYPES, Instance, Kernel, _Slot, ceil_div
from .findings import Finding
from .memory import first_unwritten
from .orders import compare_orders
from .runtime import Traffic, record_launches

MAKERS = ("random", "zeros", "ones", "arange", "empty", "values")
#: For a kernel with one integer, of which nothing is said: a multiple of no block, so that guards are tried.
DEFAULT_SIZE = 1000
#: Bytes.  Beyond that, memory and patience end.
LARGEST_ARRAY = 1 << 30
_DEFAULT_BLOCK = 256
_ARRAY = re.compile(
    r"(?:(?P<maker>[a-z]+):)?\s*(?P<dtype>[a-z]\w*)?\s*\[(?P<sizes>[^\[\]]*)\]|(?:(?P<m>[a-z]+):)?(?P<n>\d+)"
)


@dataclass(frozen=True)
class Outcome:
    """What came of a trial.

    Attributes:
        findings: what is wrong; none if all is well.
        traffic: of the first launch, and whether it came to its end.
        unfinished: for each array of results of which something was never written, the first such index.
    """

    findings: tuple[Finding, ...]
    traffic: Traffic
    complete: bool
    unfinished: dict[str, tuple[int, ...]]


def choose_kernel(path: Path, wanted: str | None) -> Instance:
    """The kernel ``wanted`` of the file ``path``: its name, for a template with arguments, ``scale<float, 16>``.

    Without a name the only kernel of the file; without template arguments float for types, false for flags.

    Raises:
        DataError: there is no such file.
        LaunchError: it has no kernel, or one that is not understood.
        ArgumentError: it has no such kernel or several, or the template's arguments do not fit.
    """
    if not path.is_file():
        raise DataError(f"emulate: there is no file {path}")
    name, _, written = (wanted or "").partition("<")
    name = name.strip()
    signatures = read_source(path.absolute()).signatures
    if not signatures:
        raise LaunchError(f"{path} has no __global__ function")
    if not name:
        if len(signatures) > 1:
            raise ArgumentError(f"emulate: {path.name} has the kernels {', '.join(signatures)}; choose one by --kernel")
        name = next(iter(signatures))
    if name not in signatures:
        close = get_close_matches(name, signatures, 1)
        hint = f" (did you mean {close[0]}?)" if close else ""
        raise ArgumentError(f"emulate: {path.name} has no kernel {name!r}{hint}; it has {', '.join(signatures)}")
    parameters = signatures[name].templates
    text = path.read_text()
    given = [part.strip() for part in written.rstrip().removesuffix(">").split(",")] if written.strip() else []
    given += [_default_template(text, p, name) for p in parameters[len(given) :]]
    if len(given) != len(parameters):
        raise ArgumentError(f"emulate: {name} has {len(parameters)} template parameters; got {', '.join(given)}")
    values = tuple(_template_value(argument, name) for argument in given)
    kernel = Kernel(path, name, **{p: (value,) for p, value in zip(parameters, values, strict=True)})
    return kernel[values]


def _default_template(text: str, parameter: str, name: str) -> str:
    if re.search(rf"\b(class|typename)\s+{parameter}\b", text):
        return "float"
    if re.search(rf"\bbool\s+{parameter}\b", text):
        return "false"
    raise ArgumentError(f"emulate: {name} is a template; say its {parameter} by --kernel '{name}<...>'")


def _template_value(text: str, name: str) -> Any:
    if text in ("true", "false"):
        return text == "true"
    if re.fullmatch(r"-?\d+", text):
        return int(text)
    if text in _TYPES:
        return _TYPES[text][0]
    raise ArgumentError(
        f"emulate: {name}: template argument {text!r} is neither a number nor one of {', '.join(_TYPES)}"
    )


@dataclass(frozen=True)
class Trial:
    """A launch that is ready.

    Attributes:
        instance: the kernel.
        grid, block: x, y, z or fewer.
        shared: bytes of dynamic shared memory.
        arguments: by name; arrays are on the simulated GPU.
        said: each argument in words.
    """

    instance: Instance
    grid: tuple[int, ...]
    block: tuple[int, ...]
    shared: int
    arguments: dict[str, Any]
    said: dict[str, str]

    @classmethod
    def prepare(
        cls,
        instance: Instance,
        given: Iterable[str],
        grid: tuple[int, ...] | None = None,
        block: tuple[int, ...] | None = None,
        shared: int = 0,
        seed: int = 0,
    ) -> Trial:
        """Make the arguments.

        Args:
            given: ``name=value`` for each argument that is said; see the head of this file.
            grid: by default as many blocks as give each element of the largest array a thread, in whole clusters.
            block: by default what the kernel's ``__launch_bounds__`` says, else 256 threads.
            seed: of the random numbers.

        What is not given: the only integer is 1000; arrays have as many elements as the only integer, or
        one called n or N, says; an array that the kernel may write is empty, and one that is const random.

        Raises:
            ArgumentError, DataError: an argument is missing, not known or not understood.
        """
        slots = instance.slots
        texts = _by_name(instance, given)
        numbers = {
            slot.parameter.name: _number(instance, slot, texts.get(slot.parameter.name))
            for slot in slots
            if slot.dtype is None
        }
        size = _size(slots, numbers)
        rng = np.random.default_rng(seed)
        arguments, said = dict[str, Any](), dict[str, str]()
        with backend("emulated"):
            module = device_named("cuda").array_module
            for slot in slots:
                name = slot.parameter.name
                if slot.dtype is None:
                    arguments[name] = numbers[name]
                    said[name] = str(numbers[name])
                else:
                    text = texts.get(name) or _default_array(slot, size, instance)
                    arguments[name], said[name] = _array(name, text, slot.dtype, numbers, rng, module)
        if block is None:
            block = (_launch_bounds(instance) or _DEFAULT_BLOCK,)
        if grid is None:
            if len(block) > 1:
                raise ArgumentError("emulate: a block of several dimensions needs --grid too")
            largest = max((a.size for a in arguments.values() if hasattr(a, "size")), default=1)
            x, y, z = instance.cluster
            clusters = max(ceil_div(largest, math.prod(block) * x * y * z), 1)
            grid = (clusters * x, y, z) if y * z > 1 else (clusters * x,)
        return cls(instance, grid, block, shared, arguments, said)

    def run(self, orders: int = 3) -> Outcome:
        """Launch under so many orders of threads and blocks, from the same contents each time.

        Raises:
            LaunchError: the source does not compile; or another refusal of a launch.
        """
        findings: tuple[Finding, ...] = ()
        with backend("emulated"), record_launches() as records, compare_orders(range(orders)):
            try:
                self.instance(self.grid, self.block, *self.arguments.values(), shared=self.shared)
            except LaunchError as error:
                findings = error.findings
                if not findings:
                    raise
        unfinished = {}
        for slot in self.instance.slots:
            array = self.arguments[slot.parameter.name]
            missing = None if slot.dtype is None or array is None else first_unwritten(array)
            if missing is not None and not slot.parameter.constant:
                unfinished[slot.parameter.name] = missing
        return Outcome(findings, records[0].traffic, records[0].complete, unfinished)


def _launch_bounds(instance: Instance) -> int | None:
    """The threads that the kernel's ``__launch_bounds__`` allows, None if it has none."""
    name, text = instance.kernel.name, instance.kernel.path.read_text()
    found = re.search(rf"__global__[^;{{]*?__launch_bounds__\s*\(([^;{{]*?)[,)][^;{{]*?\b{name}\s*\(", text)
    if found is None:
        return None
    known = dict(zip(instance.kernel.templates, instance.values, strict=True))
    bounds = re.sub(r"[A-Za-z_]\w*", lambda word: str(known.get(word[0], word[0])), found[1].strip())
    if not re.fullmatch(r"[\d\s*/+-]+", bounds):
        raise ArgumentError(f"emulate: say --block; __launch_bounds__({found[1]}) of {name} is not understood")
    return int(eval(bounds.replace("/", "//")))


def _by_name(instance: Instance, given: Iterable[str]) -> dict[str, str]:
    """The texts of the arguments, each of which must be a parameter of the kernel."""
    known = [slot.parameter.name for slot in instance.slots]
    texts: dict[str, str] = {}
    for text in given:
        name, equals, value = text.partition("=")
        name = name.strip()
        if not equals:
            raise ArgumentError(f"emulate: --arg takes NAME=VALUE; got {text!r}")
        if name not in known:
            close = get_close_matches(name, known, 1)
            hint = f" (did you mean {close[0]}?)" if close else ""
            takes = ", ".join(known)
            raise ArgumentError(f"emulate: {instance.kernel.name} has no argument {name!r}{hint}; it takes {takes}")
        if name in texts:
            raise ArgumentError(f"emulate: argument {name} is given twice")
        texts[name] = value.strip()
    return texts


def _number(instance: Instance, slot: _Slot, text: str | None) -> Any:
    """The number or struct that ``text`` means, or what it is if nothing is said."""
    value = _said_number(instance, slot, text)
    instance._number(slot, value) if slot.number is not None else instance._members(slot, value)
    return value


def _said_number(instance: Instance, slot: _Slot, text: str | None) -> Any:
    name, slots = slot.parameter.name, instance.slots
    if slot.parameter.type == "TensorMap":
        raise ArgumentError(
            f"emulate: argument {name} is a TensorMap; a kernel that takes one is launched from Python, see docs/gpu.md"
        )
    if text is None:
        kind = "struct" if slot.number is None else slot.number.kind
        integers = [s for s in slots if s.number is not None and s.number.kind in "iu"]
        if kind in "iu" and len(integers) == 1:
            return DEFAULT_SIZE
        if kind == "b":
            return False
        example = {"struct": "(1, 2)", "f": "1.0"}.get(kind, str(DEFAULT_SIZE))
        raise ArgumentError(f"emulate: argument {name} ({slot.parameter.type}) is not given: --arg {name}={example}")
    try:
        if slot.number is None:
            return ast.literal_eval(text if text.startswith("(") else f"({text},)")
        if slot.number.kind == "b":
            return {"true": True, "1": True, "false": False, "0": False}[text.lower()]
        return float(text) if slot.number.kind == "f" else int(text, 0)
    except (ValueError, KeyError, SyntaxError):
        raise ArgumentError(f"emulate: argument {name} is a {slot.parameter.type}; got {text!r}") from None


def _size(slots: Iterable[_Slot], numbers: Mapping[str, Any]) -> int | None:
    """How many elements an array has of which nothing is said; None if that is not obvious."""
    integers = [s.parameter.name for s in slots if s.number is not None and s.number.kind in "iu"]
    called_n = [name for name in integers if name in ("n", "N")]
    chosen = integers if len(integers) == 1 else called_n
    return int(numbers[chosen[0]]) if len(chosen) == 1 else None


def _default_array(slot: _Slot, size: int | None, instance: Instance) -> str:
    name = slot.parameter.name
    if size is None:
        raise ArgumentError(
            f"emulate: the size of {name} is not given: --arg {name}={slot.dtype}[{DEFAULT_SIZE}], or empty:"
            f"{slot.dtype}[{DEFAULT_SIZE}] for an array of results, or null"
        )
    return f"{'random' if slot.parameter.constant else 'empty'}:[{size}]"


def _array(
    name: str, text: str, dtype: np.dtype, numbers: Mapping[str, Any], rng: np.random.Generator, module: Any
) -> tuple[Any, str]:
    """The array that ``text`` describes, on the simulated GPU, and what it is in words."""
    if text in ("null", "nullptr"):
        return None, "null"
    if text.endswith(".npy"):
        try:
            loaded = np.load(text, allow_pickle=False)
        except (OSError, ValueError) as error:
            raise DataError(f"emulate: argument {name}: {text} is no array that NumPy can read: {error}") from error
        return module.array(np.ascontiguousarray(loaded)), f"{text}, {loaded.dtype}{list(loaded.shape)}"
    if text.startswith("values:"):
        values = text.removeprefix("values:").strip("[] ").split(",")
        try:
            return module.array(np.array([float(v) for v in values]).astype(dtype)), f"{dtype}[{len(values)}] as given"
        except ValueError:
            raise ArgumentError(f"emulate: argument {name}: values: takes numbers; got {text!r}") from None
    match = _ARRAY.fullmatch(text)
    maker = (match["maker"] or match["m"] or "random") if match else ""
    if match is None or maker not in MAKERS:
        raise ArgumentError(
            f"emulate: argument {name} is an array of {dtype}: give [1000], [n, 3], zeros:[1000], empty:[1000], "
            f"arange:[1000], values:1,2,3, a file .npy or null; got {text!r}"
        )
    if match["dtype"]:
        try:
            dtype = np.dtype(match["dtype"])
        except TypeError:
            raise ArgumentError(f"emulate: argument {name}: {match['dtype']!r} is no dtype") from None
    sizes = (match["n"] or match["sizes"]).split(",")
    shape = tuple(_dimension(name, size.strip(), numbers) for size in sizes)
    said = f"{maker} {dtype}{list(shape)}"
    if math.prod(shape) * dtype.itemsize > LARGEST_ARRAY:
        raise ArgumentError(f"emulate: argument {name}: {dtype}{list(shape)} has more than {LARGEST_ARRAY:,} bytes")
    if maker == "empty":
        return module.empty(shape, dtype), said
    count = math.prod(shape)
    made = {
        "zeros": lambda: np.zeros(count),
        "ones": lambda: np.ones(count),
        "arange": lambda: np.arange(count),
        "random": lambda: rng.standard_normal(count) if kind_of(dtype) == "f" else rng.integers(0, 2, count),
    }[maker]()
    return module.array(made.astype(dtype).reshape(shape)), said


def _dimension(name: str, text: str, numbers: Mapping[str, Any]) -> int:
    size = int(text) if text.isdigit() else numbers.get(text)
    if isinstance(size, int) and not isinstance(size, bool) and size >= 0:
        return size
    raise ArgumentError(f"emulate: argument {name}: {text!r} is neither a size nor an integer argument")
