"""Where compiled kernels are kept between runs.

``RAWGRAD_CACHE`` names the folder; without it, ``rawgrad`` in the user's cache folder
(``XDG_CACHE_HOME`` or ``~/.cache``).  If it cannot be written to, a temporary folder serves this
process alone.
"""

from __future__ import annotations

import os
import tempfile
from functools import cache
from pathlib import Path


@cache
def cache_folder(name: str) -> Path:
    """The folder for compiled kernels of the kind ``name``, made if need be."""
    own = os.environ.get("RAWGRAD_CACHE")
    root = Path(own) if own else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "rawgrad"
    folder = root / name
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except OSError:
        temporary = tempfile.TemporaryDirectory(prefix="rawgrad-")
        _temporary.append(temporary)
        return Path(temporary.name)


_temporary: list[tempfile.TemporaryDirectory[str]] = []  # removed when the process ends
