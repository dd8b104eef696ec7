"""Where compiled kernels are kept between runs.

``RAWGRAD_CACHE`` names the folder; without it, ``rawgrad`` in the user's cache folder
(``XDG_CACHE_HOME`` or ``~/.cache``).  If it cannot be written to, a temporary folder serves this
process alone.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from functools import cache
from pathlib import Path


@cache
def cache_folder(name: str) -> Path:
    """The folder for compiled kernels of the kind ``name``, made if need be."""
    own = os.environ.get("RAWGRAD_CACHE")
    try:
        root = Path(own) if own else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "rawgrad"
        folder = root / name
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except (OSError, RuntimeError):  # a user without a home is a RuntimeError
        temporary = tempfile.TemporaryDirectory(prefix="rawgrad-")
        _temporary.append(temporary)
        return Path(temporary.name)


def is_temporary(folder: Path) -> bool:
    """Whether ``folder`` is one that ends with this process."""
    return any(Path(temporary.name) == folder for temporary in _temporary)


def prune(folder: Path, days: float = 90) -> None:
    """Remove what lies in ``folder`` and was made more than ``days`` ago, when sources or tools were others."""
    oldest = time.time() - days * 86400
    try:
        for entry in folder.iterdir():
            if entry.stat().st_mtime < oldest:
                shutil.rmtree(entry, ignore_errors=True) if entry.is_dir() else entry.unlink(missing_ok=True)
    except OSError:
        pass  # another process removes the same, or the folder does not exist yet


_temporary: list[tempfile.TemporaryDirectory[str]] = []  # removed when the process ends
