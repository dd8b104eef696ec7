"""rawgrad: a small reverse-mode autograd engine that runs its own hand-written kernels.

::

    import rawgrad as rg
    from rawgrad import nn, optim, data, functional as F

Names are resolved when they are first used (PEP 562), so that ``import rawgrad`` is quick and
leaves every optional package alone.  Nothing is registered here.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

#: Where each public name lives.
_HOMES = {
    ".autograd": (
        "Function",
        "Tensor",
        "arange",
        "as_tensor",
        "enable_grad",
        "eye",
        "from_dlpack",
        "from_numpy",
        "full",
        "full_like",
        "gradcheck",
        "gradgradcheck",
        "is_grad_enabled",
        "linspace",
        "manual_seed",
        "no_grad",
        "ones",
        "ones_like",
        "rand",
        "randint",
        "randn",
        "randperm",
        "tensor",
        "zeros",
        "zeros_like",
    ),
    ".kernels._dispatch": ("backend", "backends", "precision"),
    ".kernels._errors": (
        "ArgumentError",
        "BackendError",
        "CaptureError",
        "CheckpointError",
        "DataError",
        "DeviceError",
        "DtypeError",
        "GradientError",
        "IndexRangeError",
        "LaunchError",
        "NonFiniteError",
        "OutOfMemoryError",
        "RawgradError",
        "ShapeError",
    ),
    ".kernels._profile": ("profile",),
    ".kernels._threads": ("get_num_threads", "set_num_threads"),
}
_PAGES = ("autograd", "cuda", "data", "functional", "nn", "optim", "train")
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

if TYPE_CHECKING:
    from . import autograd as autograd
    from . import cuda as cuda
    from . import data as data
    from . import functional as functional
    from . import nn as nn
    from . import optim as optim
    from . import train as train
    from .autograd import Function as Function
    from .autograd import Tensor as Tensor
    from .autograd import arange as arange
    from .autograd import as_tensor as as_tensor
    from .autograd import enable_grad as enable_grad
    from .autograd import eye as eye
    from .autograd import from_dlpack as from_dlpack
    from .autograd import from_numpy as from_numpy
    from .autograd import full as full
    from .autograd import full_like as full_like
    from .autograd import gradcheck as gradcheck
    from .autograd import gradgradcheck as gradgradcheck
    from .autograd import is_grad_enabled as is_grad_enabled
    from .autograd import linspace as linspace
    from .autograd import manual_seed as manual_seed
    from .autograd import no_grad as no_grad
    from .autograd import ones as ones
    from .autograd import ones_like as ones_like
    from .autograd import rand as rand
    from .autograd import randint as randint
    from .autograd import randn as randn
    from .autograd import randperm as randperm
    from .autograd import tensor as tensor
    from .autograd import zeros as zeros
    from .autograd import zeros_like as zeros_like
    from .kernels._dispatch import backend as backend
    from .kernels._dispatch import backends as backends
    from .kernels._dispatch import precision as precision
    from .kernels._errors import ArgumentError as ArgumentError
    from .kernels._errors import BackendError as BackendError
    from .kernels._errors import CaptureError as CaptureError
    from .kernels._errors import CheckpointError as CheckpointError
    from .kernels._errors import DataError as DataError
    from .kernels._errors import DeviceError as DeviceError
    from .kernels._errors import DtypeError as DtypeError
    from .kernels._errors import GradientError as GradientError
    from .kernels._errors import IndexRangeError as IndexRangeError
    from .kernels._errors import LaunchError as LaunchError
    from .kernels._errors import NonFiniteError as NonFiniteError
    from .kernels._errors import OutOfMemoryError as OutOfMemoryError
    from .kernels._errors import RawgradError as RawgradError
    from .kernels._errors import ShapeError as ShapeError
    from .kernels._profile import profile as profile
    from .kernels._threads import get_num_threads as get_num_threads
    from .kernels._threads import set_num_threads as set_num_threads

__all__ = ["__version__", *_PAGES, *_HOME_OF]


def __getattr__(name: str) -> Any:
    if name in _PAGES:
        return import_module(f".{name}", __name__)
    home = _HOME_OF.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(home, __name__), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
