"""Imports go down only, name the package in one way, and load nothing that was not asked for."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath

import rawgrad

#: The rooms, lowest floor first, and what each may import besides itself.
MAY_IMPORT = {
    "kernels": (),
    "autograd": ("kernels",),
    "engine": ("autograd", "kernels"),
    "recipes": ("engine", "autograd", "kernels"),
    "bench": ("recipes", "engine", "autograd", "kernels"),
    "root": ("bench", "recipes", "engine", "autograd", "kernels"),
}
#: Absent from a fresh `import rawgrad`, and from one that has touched every public name.
LAZY = ("numba", "cupy", "scipy", "sklearn", "matplotlib", "PIL", "tqdm", "torch")
#: Import name of a distribution, where the two differ.
IMPORT_NAME = {"scikit-learn": "sklearn", "pillow": "PIL"}
#: Used where they are installed: backends, peers, extras.
OPTIONAL = {"numba_cuda", "cupy", "torch", "tensorboardX", "jax", "tinygrad", "liger_kernel"}

Sources = dict[PurePosixPath, ast.Module]


def room_of(path: PurePosixPath) -> str:
    return path.parts[0] if len(path.parts) > 1 else "root"


def collected(path: PurePosixPath) -> bool:
    """Whether pytest imports the file, and so the root under the checkout's name too."""
    return room_of(path) == "bench" and path.name.startswith("bench_")


def imports(path: PurePosixPath, tree: ast.Module) -> Iterator[tuple[int, bool, str]]:
    """(line, whether relative, absolute dotted name) of everything that the module imports, at any depth."""
    package = ("rawgrad", *path.parts[:-1])
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, False, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            stem = ".".join([*base, *([node.module] if node.module else [])])
            yield from ((node.lineno, node.level > 0, f"{stem}.{alias.name}") for alias in node.names)


def test_the_walk_sees_every_form_of_import() -> None:
    tree = ast.parse("import a.b\ndef f():\n    from ..autograd import tensor\nfrom .. import nn\nfrom . import x\n")
    assert sorted(imports(PurePosixPath("engine/layers/y.py"), tree)) == [
        (1, False, "a.b"),
        (3, True, "rawgrad.engine.autograd.tensor"),
        (4, True, "rawgrad.engine.nn"),
        (5, True, "rawgrad.engine.layers.x"),
    ]


def test_imports_go_down_only(sources: Sources) -> None:
    wrong = []
    for path, tree in sources.items():
        room = room_of(path)
        allowed = {room, *MAY_IMPORT[room]}
        for line, _, name in imports(path, tree):
            top, _, rest = name.partition(".")
            head = rest.partition(".")[0]
            target = head if head in MAY_IMPORT else "root"
            if top == "rawgrad" and target not in allowed:
                wrong.append(f"{path}:{line}: {room} may not import {name}; it may import {sorted(allowed)}")
    assert not wrong, "\n".join(wrong)


def test_rooms_import_relatively_and_collected_files_absolutely(root: Path, sources: Sources) -> None:
    tests = {p.relative_to(root): ast.parse(p.read_text(), str(p)) for p in sorted((root / "tests").rglob("*.py"))}
    bare = {*MAY_IMPORT, "nn", "optim", "functional", "train"} - {"root"}
    wrong = []
    for path, tree in [*sources.items(), *((PurePosixPath(p), t) for p, t in tests.items())]:
        for line, relative, name in imports(path, tree):
            absolute_only = collected(path) or path.parts[0] == "tests"
            if relative and absolute_only:
                wrong.append(f"{path}:{line}: pytest collects this file; import {name} absolutely")
            elif not relative and not absolute_only and name.partition(".")[0] == "rawgrad":
                wrong.append(f"{path}:{line}: import {name} relatively")
            elif not relative and name.partition(".")[0] in bare:
                wrong.append(f"{path}:{line}: {name} is a second name of rawgrad.{name}")
    assert not wrong, "\n".join(wrong)


def test_third_party_imports_are_declared(root: Path, sources: Sources) -> None:
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    bench = project["optional-dependencies"]["bench"]

    def import_names(requirements: list[str]) -> set[str]:
        names = {re.split(r"[^\w-]", requirement)[0] for requirement in requirements}
        return {IMPORT_NAME.get(name, name.replace("-", "_")) for name in names}

    base = import_names(project["dependencies"]) | OPTIONAL | sys.stdlib_module_names | {"rawgrad"}
    wrong = []
    for path, tree in sources.items():
        known = base | import_names(bench) if room_of(path) == "bench" else base
        for line, relative, name in imports(path, tree):
            if not relative and name.partition(".")[0] not in known:
                wrong.append(f"{path}:{line}: {name} is not among the dependencies in pyproject.toml")
    assert not wrong, "\n".join(wrong)


def test_import_rawgrad_loads_nothing_else(python: Callable[..., str]) -> None:
    loaded = python("import sys, rawgrad; print(*sys.modules)").split()
    ours = {name for name in loaded if name.partition(".")[0] == "rawgrad"}
    assert ours == {"rawgrad"}
    assert not {*LAZY, "numpy"} & set(loaded)


def test_public_names_leave_the_heavy_packages_alone(python: Callable[..., str]) -> None:
    loaded = python("import sys, rawgrad as rg\nfor name in rg.__all__: getattr(rg, name)\nprint(*sys.modules)").split()
    assert "rawgrad.nn" in loaded
    assert not set(LAZY) & set(loaded)


def test_no_module_is_loaded_under_two_names(
    root: Path, files: list[PurePosixPath], python: Callable[..., str]
) -> None:
    """Collect every test and every bench row in a process of its own, then look at what got loaded."""
    code = """if True:
        import collections, os, sys, pytest
        root = os.path.realpath(sys.argv[1])
        code = pytest.main(["--collect-only", "-q", "-p", "no:cacheprovider", "--rootdir", root,
                            os.path.join(root, "tests"), os.path.join(root, "bench")])
        assert code == 0, f"collection failed: {code}"
        names = collections.defaultdict(set)
        for name, module in list(sys.modules.items()):
            path = os.path.realpath(getattr(module, "__file__", None) or os.devnull)
            if path.startswith(root + os.sep):
                names[os.path.relpath(path, root)].add(name)
        print("LOADED")
        for path, all_names in names.items():
            print(path, *sorted(all_names), sep="\\t")
    """
    lines = python(code, str(root), cwd=root).partition("LOADED\n")[2].splitlines()
    names = {path: found for path, *found in (line.split("\t") for line in lines) if PurePosixPath(path) in files}
    assert len(names) > 10
    # pytest also imports the packages that lead to the files in bench/; both register nothing.
    twice = {path: found for path, found in names.items() if len(found) > 1}
    assert set(twice) <= {"__init__.py", "bench/__init__.py"}, twice


def test_packages_that_pytest_imports_a_second_time_hold_no_state(sources: Sources) -> None:
    bench = sources[PurePosixPath("bench/__init__.py")]
    assert ast.get_docstring(bench)
    assert len(bench.body) == 1, "bench/__init__.py must be a docstring alone"
    imported = {name for line, _, name in imports(PurePosixPath("__init__.py"), runtime_part(sources))}
    assert imported <= {"__future__.annotations", "importlib.import_module", "typing.TYPE_CHECKING", "typing.Any"}


def runtime_part(sources: Sources) -> ast.Module:
    """The root's `__init__` without what only type checkers see."""
    tree = sources[PurePosixPath("__init__.py")]
    return ast.Module([node for node in tree.body if not is_type_checking(node)], [])


def is_type_checking(node: ast.stmt) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def test_type_checkers_see_the_names_that_exist(sources: Sources) -> None:
    [block] = filter(is_type_checking, sources[PurePosixPath("__init__.py")].body)
    seen = [alias.name for node in ast.walk(block) if isinstance(node, ast.ImportFrom) for alias in node.names]
    assert sorted([*seen, "__version__"]) == sorted(rawgrad.__all__)
