"""The libraries that rawgrad is compared with, each behind the few names that a program needs.

rawgrad's names are torch's, so one program text serves both: it takes a :class:`Library` and uses
its ``nn``, ``functional`` and ``optim``.  A peer is imported when it is first asked for.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from typing import Any

import numpy as np

from ..kernels._dispatch import backend_of
from ..kernels._errors import BackendError
from ..kernels._threads import set_num_threads
from .harness import OURS

#: Import name of each peer that may be absent, and what installs it.
PEERS = {"torch": "pip install torch"}


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
    if name not in PEERS:
        return f"there is no such peer; there are: {', '.join(PEERS)}"
    if importlib.util.find_spec(name) is None:
        return f"it is not installed; {PEERS[name]}"
    return None


def available() -> list[str]:
    """The peers that are installed here."""
    return [name for name in PEERS if problem(name) is None]


def detail(name: str) -> str:
    """Version of a contestant, and for rawgrad the backend, for the record."""
    if name == OURS:
        return f"{_root().__version__}, backend {backend_of('cpu')}"
    return version(name)


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
    else:
        import torch

        modules, tensor = (torch.nn, torch.nn.functional, torch.optim, torch.no_grad), torch.from_numpy
    if device == "cpu":
        return Library(name, *modules, tensor, lambda t: t.detach().numpy())
    return Library(name, *modules, lambda a: tensor(a).to(device), lambda t: t.detach().cpu().numpy(), device)


def set_threads(count: int, ours: bool = True) -> None:
    """Give each contestant ``count`` threads, for the rest of the process.  Import the peers before.

    That is NumPy's BLAS and each OpenMP (threadpoolctl), torch's own pool, and the compiled kernels if ``ours``
    take part.  These are loaded first: they would leave BLAS one thread, which is no handicap for NumPy as a peer.

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
