"""What is in the tree is in the package list and in the wheel, and nothing else is."""

from __future__ import annotations

import ast
import shutil
import subprocess
import sys
import tomllib
import zipfile
from email.parser import Parser
from pathlib import Path, PurePosixPath

import rawgrad

TOP_LEVEL = {
    *(".ci", ".gitignore", "LICENSE", "README.md", "pyproject.toml", "py.typed"),
    *("__init__.py", "__main__.py", "cuda.py", "data.py", "functional.py", "nn.py", "optim.py", "train.py"),
    *("autograd", "bench", "docs", "engine", "kernels", "recipes", "tests"),
}


def test_top_level_holds_only_the_known_names(files: list[PurePosixPath]) -> None:
    found = {path.parts[0] for path in files}
    assert found <= TOP_LEVEL, f"not a name of the house: {sorted(found - TOP_LEVEL)}"


def test_no_file_is_empty_or_huge(root: Path, files: list[PurePosixPath]) -> None:
    sizes = {str(path): (root / path).stat().st_size for path in files}
    assert [path for path, size in sizes.items() if size == 0 and not path.endswith("py.typed")] == []
    assert [path for path, size in sizes.items() if size > 2_000_000] == []


def test_package_list_equals_the_folders(root: Path, package_files: list[PurePosixPath]) -> None:
    listed = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    folders = {".".join(("rawgrad", *path.parts[:-1])) for path in package_files if path.name == "__init__.py"}
    assert listed == sorted(folders)


def test_every_module_is_in_a_package(package_files: list[PurePosixPath]) -> None:
    packages = {path.parent for path in package_files if path.name == "__init__.py"}
    assert [str(path) for path in package_files if path.suffix == ".py" and path.parent not in packages] == []


def test_tests_are_no_packages(files: list[PurePosixPath]) -> None:
    """pytest names a file in a package after the checkout's folder; our tests must not depend on that."""
    assert [str(path) for path in files if path.parts[0] == "tests" and path.name == "__init__.py"] == []


def test_pages_only_re_export(sources: dict[PurePosixPath, ast.Module]) -> None:
    for page in ("cuda.py", "data.py", "functional.py", "nn.py", "optim.py", "train.py"):
        docstring, *rest = sources[PurePosixPath(page)].body
        assert isinstance(docstring, ast.Expr)
        for node in rest:
            is_all = isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"
            assert is_all or isinstance(node, ast.ImportFrom), f"{page}:{node.lineno}: a page only re-exports"


def test_wheel_holds_exactly_the_package(
    root: Path, files: list[PurePosixPath], package_files: list[PurePosixPath], tmp_path: Path
) -> None:
    checkout = tmp_path / "some-other-name"
    for path in files:
        (checkout / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(root / path, checkout / path)
    build = "import sys; from setuptools import build_meta; build_meta.build_wheel(sys.argv[1])"
    done = subprocess.run(
        [sys.executable, "-c", build, str(tmp_path)], cwd=checkout, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    [wheel] = tmp_path.glob("*.whl")
    assert wheel.name == f"rawgrad-{rawgrad.__version__}-py3-none-any.whl"

    with zipfile.ZipFile(wheel) as archive:
        info = f"rawgrad-{rawgrad.__version__}.dist-info"
        held = {name for name in archive.namelist() if not name.startswith(info)}
        metadata = Parser().parsestr(archive.read(f"{info}/METADATA").decode())
        entry_points = archive.read(f"{info}/entry_points.txt").decode()
        assert f"{info}/licenses/LICENSE" in archive.namelist()
        wanted = {f"rawgrad/{path}" for path in package_files}
        assert held == wanted, f"missing: {sorted(wanted - held)}; not ours: {sorted(held - wanted)}"
        changed = [p for p in package_files if archive.read(f"rawgrad/{p}") != (root / p).read_bytes()]
        assert changed == []
    assert "rawgrad = rawgrad.__main__:main" in entry_points
    assert metadata["License-Expression"] == "MIT"
    assert metadata["Requires-Python"] == ">=3.11"
