"""The repository as the structure tests see it: its files, its modules, a Python of its own."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path, PurePosixPath

import pytest

ROOT = Path(__file__).resolve().parents[2]
#: Folders that are no part of the import package.
OUTSIDE = (".ci", "tests", "docs")


@pytest.fixture(scope="session")
def root() -> Path:
    """The top of the checkout."""
    return ROOT


@pytest.fixture(scope="session")
def files() -> list[PurePosixPath]:
    """All files that git tracks or would add, relative to the root."""
    if not (ROOT / ".git").exists():
        pytest.skip("needs a git checkout, to know which files are the project's")
    command = ["git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(command, capture_output=True, check=True, text=True).stdout.split("\0")
    return sorted({PurePosixPath(name) for name in names if name and (ROOT / name).is_file()})


@pytest.fixture(scope="session")
def package_files(files: list[PurePosixPath]) -> list[PurePosixPath]:
    """What the wheel must hold: all files of the rooms but measured results, and the root's own modules."""
    return [
        path
        for path in files
        if path.parts[0] not in OUTSIDE
        and path.parts[:2] != ("bench", "results")
        and (len(path.parts) > 1 or path.suffix == ".py" or path.name == "py.typed")
    ]


@pytest.fixture(scope="session")
def sources(package_files: list[PurePosixPath]) -> dict[PurePosixPath, ast.Module]:
    """The syntax tree of every module of the package, by its path."""
    return {path: ast.parse((ROOT / path).read_text(), str(path)) for path in package_files if path.suffix == ".py"}


@pytest.fixture(scope="session")
def python() -> Callable[..., str]:
    """Run a piece of Python in a process of its own and give what it printed."""

    def run(code: str, *arguments: str, cwd: Path | None = None) -> str:
        done = subprocess.run(
            [sys.executable, "-c", code, *arguments],
            capture_output=True,
            text=True,
            cwd=cwd,
            env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
        )
        assert done.returncode == 0, f"exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    return run
