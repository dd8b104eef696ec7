"""What subcommands of ``rawgrad`` are made of: their parts, and options that several of them have."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

from ..kernels._devices import device_named
from ..kernels._dispatch import BACKENDS, current_choice
from ..kernels._dispatch import backend as use_backend
from ..kernels._errors import ArgumentError


@dataclass(frozen=True)
class Command:
    """A subcommand.

    Attributes:
        summary: one line for ``rawgrad --help``.
        declare: adds its options to a parser.
        run: does it; gives the exit code.
        examples: of its use: command and what it does.
    """

    summary: str
    declare: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], int]
    examples: tuple[tuple[str, str], ...] = ()


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """What to append to a refusal of ``word``: the nearest of the known words, or nothing."""
    close = get_close_matches(word.lower().replace("_", "-"), list(known), 1, 0.6)
    return f" (did you mean {close[0]}?)" if close else ""


def version() -> str:
    """rawgrad's version; asked of the root package, which is loaded, since imports go down only."""
    return str(sys.modules[__name__.partition(".")[0]].__version__)


def add_place(parser: argparse.ArgumentParser) -> None:
    """``--device`` and ``--backend``; see :func:`place`."""
    parser.add_argument("--device", metavar="D", help="where to compute: cpu, cuda (default: the backend's, else cpu)")
    add_backend(parser)


def add_backend(parser: argparse.ArgumentParser) -> None:
    """``--backend``."""
    parser.add_argument(
        "--backend", metavar="B", help="whose kernels run (default: RAWGRAD_BACKEND, else the device's first)"
    )


@contextmanager
def place(options: argparse.Namespace) -> Iterator[str]:
    """The device that the options (or ``RAWGRAD_BACKEND``) mean, while the backend that they name is active.

    Raises:
        BackendError, DeviceError: it is not there; the message says what to do.
        ArgumentError: the backend is one of another device.
    """
    with ExitStack() as stack:
        if options.backend is not None:
            stack.enter_context(use_backend(options.backend))
            its_own = BACKENDS[options.backend].device
            if options.device not in (None, its_own):
                raise ArgumentError(
                    f"backend {options.backend!r} computes on device {its_own!r}; got --device {options.device}"
                )
        else:
            chosen = [device for device, _ in current_choice().backends]
            its_own = chosen[0] if len(chosen) == 1 else "cpu"
        device = options.device or its_own
        device_named(device)
        yield device


def add_limit(parser: argparse.ArgumentParser) -> None:
    """``--limit``."""
    parser.add_argument(
        "--limit", type=int, metavar="N", help="take the first N images of each split only, to try something quickly"
    )


def add_data_dir(parser: argparse.ArgumentParser) -> None:
    """``--data-dir``."""
    parser.add_argument(
        "--data-dir", type=Path, metavar="DIR",
        help="where MNIST is: its four IDX files or mnist.json.gz (default: RAWGRAD_DATA, the cache, a download)",
    )  # fmt: skip
