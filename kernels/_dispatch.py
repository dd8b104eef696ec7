"""Which kernels run: backends, the active choice, and the way from an operation to its code.

``device`` says where arrays live, a *backend* says whose kernels run on them.  Each operation is a
folder ``kernels/<operation>/`` whose ``__init__.py`` checks the arguments and then calls
:meth:`Operation.run`; a backend implements it by a module of a fixed name in that folder
(``reference.py`` for ``numpy``, ``numba_cpu.py`` for ``numba``, …).  So a new backend of an
operation is a new file, and nothing is registered anywhere.

What is asked for by name runs or raises :class:`BackendError` with the reason.  The default is the
first backend of the device, in the order of :data:`BACKENDS`, that runs here and implements the
operation.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
import os
import time
from collections.abc import Callable, Mapping
from contextvars import ContextVar, Token
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from ._errors import ArgumentError, BackendError
from ._layout import contiguous

_KERNELS = Path(__file__).parent
_log = logging.getLogger("rawgrad")


@dataclass(frozen=True)
class Backend:
    """A family of kernels.

    Attributes:
        name: the name users type.
        device: the device whose arrays it takes.
        module: the file in an operation's folder that implements it, without ``.py``.
        requires: import names that must be installed.
        summary: one line for ``rawgrad doctor``.
        probe: the module of ours whose function ``problem()`` says what else is missing, or None.
        by_name_only: never the default, since it is there for proof and not for speed.
    """

    name: str
    device: str
    module: str
    requires: tuple[str, ...]
    summary: str
    probe: str | None = None
    by_name_only: bool = False

    def problem(self) -> str | None:
        """Why this backend cannot run here, or None if it can."""
        return _problem(self.name)

    def implements(self, operation: str) -> bool:
        """Whether ``kernels/<operation>/`` holds this backend's module."""
        return (_KERNELS / operation / f"{self.module}.py").is_file()


#: In order of preference per device: the first that runs here is the default.
BACKENDS: dict[str, Backend] = {
    backend.name: backend
    for backend in (
        Backend("numba", "cpu", "numba_cpu", ("numba",), "compiled, parallel CPU kernels", "_threads"),
        Backend("numpy", "cpu", "reference", (), "the reference: what each kernel must compute"),
        Backend("cuda", "cuda", "cuda", ("cupy",), "CUDA C++ kernels on an NVIDIA GPU", "_cuda.device"),
        Backend("numba_cuda", "cuda", "numba_cuda", ("numba",), "some of them in Numba-CUDA", "_cuda.simulator", True),
        Backend("emulated", "cuda", "cuda", (), "the CUDA C++ kernels on a simulated GPU", "_emulator.build", True),
    )
}


@cache
def _problem(name: str) -> str | None:
    backend = BACKENDS[name]
    if not any(backend.implements(folder.name) for folder in _KERNELS.iterdir() if folder.is_dir()):
        return "this version of rawgrad has no kernels for it yet"
    missing = [module for module in backend.requires if importlib.util.find_spec(module) is None]
    if missing:
        return f"not installed: {', '.join(missing)}"
    return importlib.import_module(f".{backend.probe}", __package__).problem() if backend.probe else None


@dataclass(frozen=True)
class Choice:
    """What was asked for: a backend per device, pinned versions per operation, and a precision.

    Hashable, so that it can be part of a cache key; recorded in every graph node.
    """

    backends: tuple[tuple[str, str], ...] = ()
    pins: tuple[tuple[str, str], ...] = ()
    precision: str = "float32"

    def for_device(self, device: str) -> str | None:
        return dict(self.backends).get(device)

    def pin_of(self, operation: str) -> str | None:
        return dict(self.pins).get(operation)

    def with_backend(self, backend: Backend, pins: Mapping[str, str]) -> Choice:
        return replace(
            self,
            backends=tuple(sorted({**dict(self.backends), backend.device: backend.name}.items())),
            pins=tuple(sorted({**dict(self.pins), **pins}.items())),
        )


def known_backend(name: str) -> Backend:
    """The backend called ``name``; :class:`BackendError` if there is none."""
    try:
        return BACKENDS[name]
    except (KeyError, TypeError):
        raise BackendError(f"backend {name!r} does not exist; there are: {', '.join(BACKENDS)}") from None


def _checked_backend(name: str) -> Backend:
    backend = known_backend(name)
    if problem := backend.problem():
        raise BackendError(f"backend {name!r} cannot run here: {problem}")
    return backend


@cache
def _process_choice() -> Choice:
    """The choice that ``RAWGRAD_BACKEND`` makes for the whole process."""
    name = os.environ.get("RAWGRAD_BACKEND", "")
    return Choice().with_backend(_checked_backend(name), {}) if name else Choice()


_active: ContextVar[Choice | None] = ContextVar("rawgrad_backend", default=None)


def current_choice() -> Choice:
    """The choice that is active in this context (thread, task)."""
    return _active.get() or _process_choice()


def set_choice(choice: Choice) -> Token[Choice | None]:
    """Make ``choice`` active; hand the token to :func:`reset_choice` to undo it."""
    return _active.set(choice)


def reset_choice(token: Token[Choice | None]) -> None:
    _active.reset(token)


class _Setting:
    """A choice that takes effect at once and, as a context manager, ends with the block."""

    def __init__(self, choice: Choice) -> None:
        self._token = _active.set(choice)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        _active.reset(self._token)


class backend(_Setting):
    """Choose whose kernels run: a call, or a context manager.

    ``backend("numpy")`` takes effect at once and stays; ``with backend("numpy"):`` ends with the
    block.  The choice belongs to the current context (thread or task) and holds for the device of
    that backend; each graph node records it and uses it for its backward pass.
    ``RAWGRAD_BACKEND=numpy`` does it for a whole process.

    Args:
        name: one of :func:`backends`.
        pins: versions to pin, by operation: ``backend("cuda", gemm="v3_register_tile")``.

    Raises:
        BackendError: the backend does not exist or cannot run here (with the reason), or a pin
            names an operation that does not exist.
    """

    def __init__(self, name: str, **pins: str) -> None:
        chosen = _checked_backend(name)
        for operation in pins:
            if not (_KERNELS / operation / "__init__.py").is_file():
                raise BackendError(f"cannot pin a version of {operation!r}: there is no such operation")
        super().__init__(current_choice().with_backend(chosen, pins))


#: What :class:`precision` takes.
PRECISIONS = ("float32", "float32_split", "tf32", "bf16", "fp16")


class precision(_Setting):
    """Allow float32 matrix products a lower precision: a call, or a context manager, like :class:`backend`.

    On a GPU whose tensor cores do it, both factors are rounded on their way to the multiplication, to

    =================  ===========================================================
    ``float32``        nothing: the default
    ``float32_split``  nothing, but as the sum of three numbers that tensor cores
                       take, where that is faster: the accuracy of float32, other
                       bits; docs/kernels/gemm.md has its error and its range
    ``tf32``           10 bits of fraction, the range of float32
    ``bf16``           7 bits of fraction, the range of float32
    ``fp16``           10 bits of fraction; beyond 65504 infinity, below 6e-8 zero
    =================  ===========================================================

    and the products are summed in float32; arrays stay float32.  It is a permission: kernels that do not
    use it, and the backends of the CPU, compute as exactly as ever.  float64 is not touched.

    Raises:
        ArgumentError: the name is not one of these.
    """

    def __init__(self, name: str) -> None:
        if name not in PRECISIONS:
            raise ArgumentError(f"precision must be one of {', '.join(PRECISIONS)}; got {name!r}")
        super().__init__(replace(current_choice(), precision=name))


def backends() -> dict[str, str | None]:
    """Every backend, with None if it runs here and otherwise the reason why it does not."""
    return {name: known.problem() for name, known in BACKENDS.items()}


def backend_of(device: str) -> str | None:
    """The backend whose kernels run on ``device``: the one that was asked for, else the default where it has them."""
    able = (name for name, known in BACKENDS.items() if known.device == device and not known.by_name_only)
    return current_choice().for_device(device) or next((name for name in able if not BACKENDS[name].problem()), None)


def _signature(function: str, arrays: tuple[Any, ...], options: tuple[Any, ...]) -> Any:
    """What the checks of a call look at, and the active choice."""
    kinds = [None if array is None else (type(array), array.dtype, array.shape) for array in arrays]
    return function, current_choice(), options, *kinds


#: Of how many signatures an operation remembers that they passed: shapes may change with every call.
_SIGNATURES = 4096


@dataclass
class Operation:
    """One operation: the folder ``kernels/<name>/`` and the way to its implementations.

    Kernels are handed out by :meth:`run`, :meth:`passed` and :meth:`passes` alone; a profile replaces these three.

    Args:
        package: ``__name__`` of the operation's package.
    """

    package: str
    name: str = field(init=False)
    _cache: dict[tuple[Choice, str, str, str | None], Callable[..., Any]] = field(init=False, default_factory=dict)
    _passed: dict[Any, Callable[..., Any]] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        self.name = self.package.rpartition(".")[2]

    def run(self, function: str, device: str, *arguments: Any, version: str | None = None) -> Any:
        """Call ``function`` of the implementation that the active choice gives for ``device``.

        The arguments must have been checked; every backend of an operation takes the same ones.
        """
        return self._kernel(function, device, version)(*arguments)

    def _kernel(self, function: str, device: str, version: str | None) -> Callable[..., Any]:
        key = (current_choice(), device, function, version)
        kernel = self._cache.get(key)
        if kernel is None:
            kernel = self._cache[key] = self._resolve(*key)
        return kernel

    # Checks look at types, dtypes, shapes and options alone.  Where they take as long as a small kernel does, what
    # has passed them once is remembered by these.

    def passed(self, function: str, arrays: tuple[Any, ...], *options: Any) -> Callable[..., Any] | None:
        """The kernel for a call with such arrays (or None) and these options, if one like it has passed the checks."""
        try:
            return self._passed.get(_signature(function, arrays, options))
        except (AttributeError, TypeError):  # no array, or no option: the checks will say so
            return None

    def passes(
        self, function: str, arrays: tuple[Any, ...], *options: Any, device: str, version: str | None = None
    ) -> Callable[..., Any]:
        """Remember that calls of this kind pass the checks, and give the kernel."""
        kernel = self._kernel(function, device, version)
        if len(self._passed) >= _SIGNATURES:
            self._passed.clear()
        self._passed[_signature(function, arrays, options)] = kernel
        return kernel

    def module(self, name: str) -> Any:
        """The module that implements backend ``name`` for this operation."""
        chosen = _checked_backend(name)
        if not chosen.implements(self.name):
            raise BackendError(f"backend {name!r} does not implement {self.name}")
        try:
            return importlib.import_module(f"{self.package}.{chosen.module}")
        except ImportError as error:  # installed, but at odds with what else is: Numba refuses some versions of NumPy
            raise BackendError(f"backend {name!r} cannot run here: {error}") from error

    def _resolve(self, choice: Choice, device: str, function: str, version: str | None) -> Callable[..., Any]:
        name = self.backend_for(device, choice)
        module = self.module(name)
        kernel = default = getattr(module, function)
        every: dict[str, dict[str, Callable[..., Any]]] = getattr(module, "VERSIONS", {})
        versions = every.get(function, {})
        pin = choice.pin_of(self.name)
        if version is None and (pin in versions or not any(pin in names for names in every.values())):
            version = pin  # a pin that another function of the operation has does not concern this one
        if version is not None:
            if version not in versions:
                known = ", ".join(versions) or "none: it has a single one"
                raise BackendError(f"{function}: backend {name!r} has no version {version!r}; versions: {known}")
            kernel = versions[version]
        if name != "numpy":
            kernel = contiguous(kernel, default, "carray" if name == "numba" else "c_contiguous")
        return _logged(kernel, function, name, version) if os.environ.get("RAWGRAD_DEBUG") else kernel

    def backend_for(self, device: str, choice: Choice | None = None) -> str:
        """The backend whose kernels run on ``device`` under ``choice``, by default the active one.

        Raises:
            BackendError: none is asked for, and none that runs here has this operation.
        """
        chosen = (choice or current_choice()).for_device(device)
        if chosen is not None:
            return chosen
        for name, known in BACKENDS.items():
            eligible = known.device == device and known.implements(self.name) and not known.by_name_only
            if eligible and not known.problem():
                return name
        raise BackendError(f"{self.name}: no backend that runs here takes arrays of device {device!r}{_hint(device)}")


def _hint(device: str) -> str:
    """What could be asked for by name on ``device``."""
    names = [
        n for n, known in BACKENDS.items() if known.device == device and known.by_name_only and not known.problem()
    ]
    return f"; ask for backend {' or '.join(map(repr, names))} by name" if names else ""


def _logged(kernel: Callable[..., Any], function: str, backend_name: str, version: str | None) -> Callable[..., Any]:
    """``kernel``, writing one line per call to the log (``RAWGRAD_DEBUG=1``)."""
    if not _log.handlers:
        _log.addHandler(logging.StreamHandler())
        _log.setLevel(logging.DEBUG)

    def call(*arguments: Any) -> Any:
        start = time.perf_counter()
        result = kernel(*arguments)
        milliseconds = 1e3 * (time.perf_counter() - start)
        shapes = " ".join(str(tuple(a.shape)) for a in arguments if hasattr(a, "shape"))
        _log.debug("%s %s %s %s %.3f ms", function, backend_name, version or "default", shapes, milliseconds)
        return result

    return call
