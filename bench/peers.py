"""The libraries that rawgrad is compared with, each behind the few names that a program needs.

rawgrad's names are torch's, so one program text serves both: it takes a :class:`Library` and uses
its ``nn``, ``functional`` and ``optim``.  A peer is imported when it is first asked for.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from typing import Any

import numpy as np

from ..kernels._dispatch import backend_of
from ..kernels._errors import ArgumentError, BackendError
from ..kernels._threads import set_num_threads
from ..recipes import machine
from . import rivals
from .harness import OURS

#: Import name of each peer that may be absent, and what installs it.
PEERS = {"torch": "pip install torch"}
#: The same of those that take part in rows of single kernels alone.
KERNEL_PEERS = {"jax": "pip install jax", "tinygrad": "pip install tinygrad"}
#: PyTorch once more, with ``torch.compile``; only where it is asked for, since compiling takes seconds a row.
COMPILED = "torch compiled"


@dataclass(frozen=True)
class Library:
    """One deep-learning library.

    Attributes:
        name: ``rawgrad`` or ``torch``.
        nn, functional, optim: its modules of these names.
        no_grad: makes a context in which no graph is built.
        tensor: a tensor of a NumPy array's values, on ``device``.
        host: the NumPy array of a tensor's values.
        device: where it works.
    """

    name: str
    nn: Any
    functional: Any
    optim: Any
    no_grad: Callable[[], Any]
    tensor: Callable[[np.ndarray], Any]
    host: Callable[[Any], np.ndarray]
    device: str = "cpu"


def problem(name: str) -> str | None:
    """Why the peer ``name`` cannot be had here, or None if it can."""
    if name == COMPILED:
        return _compiled_problem()
    known = PEERS | KERNEL_PEERS
    if name not in known:
        return f"there is no such peer; there are: {', '.join(known)}"
    if importlib.util.find_spec(name) is None:
        return f"it is not installed; {known[name]}"
    if name == "tinygrad" and shutil.which(os.environ.get("CC", "clang")) is None:
        return "it compiles its kernels for the CPU with clang, which is not on the PATH"
    return None


def _compiled_problem() -> str | None:
    """Why PyTorch cannot compile here, or None if it can."""
    if reason := problem("torch"):
        return reason
    if not any(map(shutil.which, (os.environ.get("CXX", "g++"), "clang++"))):
        return "torch.compile needs a C++ compiler, and there is none on the PATH"
    return None


def available() -> list[str]:
    """The peers that are installed here and do whole programs."""
    return [name for name in PEERS if problem(name) is None]


def detail(name: str) -> str:
    """Version of a contestant, and for rawgrad the backend, for the record."""
    if name.startswith(OURS):
        return f"{_root().__version__}, backend {name.removeprefix(OURS).strip() or backend_of('cpu')}"
    return version(name.partition(" ")[0])


def _root() -> Any:
    return importlib.import_module(__package__.rpartition(".")[0])


@cache
def library(name: str, device: str = "cpu") -> Library:
    """rawgrad or a peer, imported, working on ``device``.

    Raises:
        BackendError: the peer is unknown or not installed; the message says what installs it.
    """
    if name == OURS:
        root = _root()
        modules, tensor = (root.nn, root.functional, root.optim, root.no_grad), root.tensor
    elif reason := problem(name):
        raise BackendError(f"bench: peer {name!r} cannot run here: {reason}")
    elif name != "torch":
        raise BackendError(f"bench: peer {name!r} does single kernels only, no programs")
    else:
        import torch

        modules, tensor = (torch.nn, torch.nn.functional, torch.optim, torch.no_grad), torch.from_numpy
    if device == "cpu":
        return Library(name, *modules, tensor, lambda t: t.detach().numpy())
    return Library(name, *modules, lambda a: tensor(a).to(device), lambda t: t.detach().cpu().numpy(), device)


@cache
def rival(name: str, device: str = "cpu") -> rivals.Rival:
    """A peer, or SciPy, that does single kernels, imported, working on ``device`` (``"cpu"``, ``"cuda"``).

    Raises:
        BackendError: it cannot run here; the message says why.
    """
    if name == "scipy":
        return rivals.ScipyRival()
    if reason := problem(name):
        raise BackendError(f"bench: peer {name!r} cannot run here: {reason}")
    if name == "jax":
        return rivals.JaxRival(_planned[0], device)
    if name == "tinygrad":
        return rivals.TinygradRival(_planned[0], device.upper())
    return rivals.TorchRival(device, name == COMPILED)


#: The number of threads that JAX and tinygrad get when they are imported: they do not change it later.
_planned = [machine.usable_cores()]


def plan_threads(count: int) -> None:
    """Say that :func:`set_threads` will be called with ``count``, before any peer is imported.

    Raises:
        ArgumentError: a peer that keeps its first number of threads has another one.
    """
    if count != _planned[0] and (loaded := [name for name in ("jax", "tinygrad") if name in sys.modules]):
        raise ArgumentError(
            f"bench: threads must be {_planned[0]}, with which {' and '.join(loaded)} began; got {count}"
        )
    _planned[0] = count


def set_threads(count: int, ours: bool = True) -> None:
    """Give each contestant ``count`` threads, for the rest of the process.  Import the peers before.

    That is NumPy's BLAS and each OpenMP (threadpoolctl), torch's own pool, and the compiled kernels if ``ours``
    take part.  These are loaded first: they would leave BLAS one thread, which is no handicap for NumPy as a peer.
    JAX and tinygrad have theirs from :func:`plan_threads`.

    Raises:
        ArgumentError: the compiled kernels cannot use as many.
    """
    from threadpoolctl import threadpool_limits

    if ours and backend_of("cpu") == "numba":
        set_num_threads(count)
        importlib.import_module("..kernels._jit", __package__)
    threadpool_limits(limits=count)
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(count)
