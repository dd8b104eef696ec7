"""Layouts: backends whose kernels take C-contiguous arrays alone get copies of all others."""

from __future__ import annotations

import functools
import inspect
import logging
from collections.abc import Callable
from operator import attrgetter
from typing import Any

from ._devices import is_array, known_arrays

_log = logging.getLogger("rawgrad")
#: What an argument may be beside arrays and lists of them.
_NUMBERS = frozenset((int, float, bool, str, type(None)))
_LISTS = frozenset((list, tuple))


def any_strides(kernel: Callable[..., Any]) -> Callable[..., Any]:
    """Mark a launcher's function, or a version of it, that looks at strides itself: it is called with what came."""
    kernel.any_strides = True  # type: ignore[attr-defined]
    return kernel


def contiguous(kernel: Callable[..., Any], like: Callable[..., Any], flag: str) -> Callable[..., Any]:
    """``kernel`` for arguments of any strides: what is not C-contiguous is copied, and logged.

    Inputs are copied before the call.  For an ``out`` that is not C-contiguous the kernel makes its own
    result, which is then copied there.  Arrays in lists, which optimizer steps overwrite, are copied back
    afterwards.

    Args:
        kernel: a launcher's function, or a version of it.
        like: the launcher's function; its signature says which argument is called ``out``.
        flag: what an array's ``flags`` must say: ``c_contiguous``, or ``carray``, which asks for alignment
            and permission to write too (compiled code is made for one kind of array).

    Returns:
        A function of the same arguments; ``kernel`` itself if it takes :func:`any_strides`.
    """
    if getattr(kernel, "any_strides", False):
        return kernel
    ready = attrgetter("flags." + flag)
    names = tuple(inspect.signature(like).parameters)
    place = names.index("out") if "out" in names else -1

    @functools.wraps(like)
    def call(*arguments: Any) -> Any:
        for argument in arguments:  # on the way of every call, nearly always to find nothing to do
            kind = type(argument)
            if kind in _NUMBERS:
                continue
            if kind in known_arrays:
                if not ready(argument):
                    break
            elif kind in _LISTS:
                if argument and is_array(argument[0]) and not all(map(ready, argument)):
                    break
            elif is_array(argument) and not ready(argument):
                break
        else:
            return kernel(*arguments)
        return with_copies(arguments)

    def with_copies(arguments: tuple[Any, ...]) -> Any:
        changed = list(arguments)
        copies: list[tuple[Any, Any]] = []
        for i, argument in enumerate(arguments):
            new: Any
            if type(argument) in _LISTS and argument and is_array(argument[0]):
                new = [a if ready(a) else _copied(like, a) for a in argument]
                copies += [(old, copy) for old, copy in zip(argument, new, strict=True) if old is not copy]
            elif is_array(argument) and not ready(argument):
                new = None if i == place else _copied(like, argument)
            else:
                continue
            changed[i] = new
        value = kernel(*changed)
        for old, copy in copies:
            old[...] = copy
        if place >= 0 and changed[place] is not arguments[place]:
            arguments[place][...] = value[0] if isinstance(value, tuple) else value
            value = (arguments[place], *value[1:]) if isinstance(value, tuple) else arguments[place]
        return value

    return call


def _copied(kernel: Callable[..., Any], array: Any) -> Any:
    _say(kernel.__name__, array)
    return array.copy()


def _say(name: str, array: Any) -> None:
    _log.debug("%s: copying a %s array of strides %s", name, tuple(array.shape), array.strides)


# ---- channels last: shape (N, C, H, W), and in memory (N, H, W, C), as torch.channels_last has it


def is_channels_last(array: Any) -> bool:
    """Whether the memory of ``array`` is in this order, and not in the order of its shape too."""
    return not array.flags.c_contiguous and fits_channels_last(array)


def fits_channels_last(array: Any) -> bool:
    """Whether the memory of ``array`` is in this order; with one channel, or one place, it may be in both."""
    return bool(array.transpose(0, 2, 3, 1).flags.c_contiguous)


def channels_last(name: str, array: Any) -> Any:
    """The C-contiguous (N, H, W, C) on the memory of ``array``, or on that of a copy, which is logged for ``name``."""
    view = array.transpose(0, 2, 3, 1)
    if view.flags.c_contiguous:
        return view
    _say(name, array)
    return view.copy()
