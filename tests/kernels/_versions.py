"""The versions of a kernel that a backend has, for tests that run each of them."""

from __future__ import annotations

import importlib

from rawgrad.kernels._dispatch import BACKENDS


def versions(backend: str, operation: str, function: str) -> list[str | None]:
    """None, for the default, and the name of every version of ``function`` on ``backend``."""
    known = BACKENDS[backend]
    if not known.implements(operation):
        return [None]
    module = importlib.import_module(f"rawgrad.kernels.{operation}.{known.module}")
    return [None, *getattr(module, "VERSIONS", {}).get(function, {})]


def every_version(operation: str, function: str) -> list[str | None]:
    """The versions of all backends together, for a ``parametrize``; see :func:`skip_unless_there`."""
    names: dict[str | None, None] = {None: None}
    for name in BACKENDS:
        names.update(dict.fromkeys(versions(name, operation, function)))
    return list(names)


def skip_unless_there(backend: str, operation: str, function: str, version: str | None) -> None:
    """Skip a test whose version belongs to another backend."""
    import pytest

    if version not in versions(backend, operation, function):
        pytest.skip(f"{backend} has no version {version!r} of {function}")
