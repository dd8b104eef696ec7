"""Processes of their own for what must not share one: memory, and time from a process's start."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

from ..kernels._errors import RawgradError

#: So many characters of the end of what a child said are repeated when it fails.
_SHOWN = 2000


def start(
    module: str, *arguments: str, stderr: Any = subprocess.PIPE, before: Sequence[str] = (), **variables: str
) -> subprocess.Popen[str]:
    """Start the bench's ``module`` with ``arguments``, and these environment ``variables``, its output in pipes.

    ``before`` is a command that is given the whole, and runs it.
    """
    return process([*before, sys.executable, "-m", f"{__package__}.{module}", *arguments], stderr, **variables)


def process(command: Sequence[str], stderr: Any = subprocess.PIPE, **variables: str) -> subprocess.Popen[str]:
    """Start ``command`` with these environment ``variables``, its output in pipes."""
    # Wherever this process found the package (an editable install, a path set by hand), so does the child.
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path), **variables}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=stderr, text=True, env=environment)


def failed(what: str, said: str) -> RawgradError:
    """The error of a child that failed at ``what``, with the end of what it ``said``."""
    return RawgradError(f"bench: {what} failed: {said[-_SHOWN:].strip()}")
