"""The versions of a kernel as parameters of tests.

::

    @pytest.mark.parametrize("version", every_version("gemm", "gemm"))
    def test_agrees(backend, version): ...

A version belongs to some backends; conftest.py drops the combinations that do not exist.
"""

from __future__ import annotations

import importlib

from rawgrad.kernels._cuda.table import versions_of
from rawgrad.kernels._devices import device_named
from rawgrad.kernels._dispatch import BACKENDS
from rawgrad.kernels._launch import runtime_of


class Version(str):
    """The name of a version of ``function`` of ``operation``, on those backends that have it."""

    operation: str
    function: str

    def belongs_to(self, backend: str) -> bool:
        """Whether this backend has the version."""
        return self in versions(backend, self.operation, self.function)

    def runs_here(self) -> bool:
        """Whether it is made for the GPU of the active backend."""
        return self in _versions_here(self.operation, self.function)


def versions(backend: str, operation: str, function: str) -> list[str | None]:
    """None, for the default, and the name of every version of ``function`` on ``backend``."""
    known = BACKENDS[backend]
    if not known.implements(operation):
        return [None]
    module = importlib.import_module(f"rawgrad.kernels.{operation}.{known.module}")
    return [None, *getattr(module, "VERSIONS", {}).get(function, {})]


def every_version(operation: str, function: str) -> list[Version | None]:
    """None, for the default, and the versions of all backends together, for a ``parametrize``."""
    names = {name for backend in BACKENDS for name in versions(backend, operation, function) if name}
    found: list[Version | None] = [None]
    for name in sorted(names):
        version = Version(name)
        version.operation, version.function = operation, function
        found.append(version)
    return found


def skip_unless_there(backend: str, operation: str, function: str, version: str | None) -> None:
    """Skip a test whose version belongs to another backend or GPU (one that was not made by :func:`every_version`)."""
    import pytest

    if version not in versions(backend, operation, function):
        pytest.skip(f"{backend} has no version {version!r} of {function}")
    if version and BACKENDS[backend].module == "cuda" and version not in _versions_here(operation, function):
        pytest.skip(f"{version!r} of {function} is not for this GPU")


def _versions_here(operation: str, function: str) -> list[str]:
    runtime = runtime_of(device_named("cuda").array_module.zeros(1))
    return versions_of(operation, function, runtime.architecture(), halves=None)
