"""The code blocks of README.md and docs/*.md run as they stand.

All ``python`` blocks of a page that need the same are one program, in the page's order.  Each ``sh`` block that begins
with ``rawgrad`` is a test, and the blocks of a page run in its order in one folder, empty at first.  A
comment on the line before a block says what it needs:

* ``<!-- needs: mnist -->``: the genuine files, which the block finds as ``data/mnist``; a visible skip
  where ``RAWGRAD_DATA`` is not set;
* ``<!-- needs: compiler -->``: the emulator's C++ compiler; a visible skip where there is none;
* ``<!-- skip: reason -->``: not run, for this reason.

README's first two ``sh`` blocks, which install, are run by ``.ci/run``.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

from rawgrad.kernels._dispatch import BACKENDS

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, the comment before it, the line of its first code and the code."""

    language: str
    note: str
    line: int
    code: str


def blocks(text: str) -> list[Block]:
    """The fenced blocks of a page, in order."""
    found = []
    lines = text.splitlines()
    number = 0
    while number < len(lines):
        if opening := re.fullmatch(r"(```+)(\w*)\s*", lines[number]):
            end = lines.index(opening[1], number + 1)
            note = re.fullmatch(r"<!--\s*((?:needs|skip):.*?)\s*-->", lines[number - 1]) if number else None
            code = "\n".join(lines[number + 1 : end])
            found.append(Block(opening[2], note[1] if note else "", number + 2, code))
            number = end
        number += 1
    return found


def meet(note: str, folder: Path) -> None:
    """Bring what a block needs into ``folder``, or skip visibly."""
    kind, _, rest = note.partition(":")
    if kind == "skip":
        pytest.skip(rest.strip())
    if kind == "needs":
        assert rest.strip() in ("mnist", "compiler"), f"unknown need: {rest}"
        if rest.strip() == "compiler":
            if problem := BACKENDS["emulated"].problem():
                pytest.skip(f"backend 'emulated' cannot run here: {problem}")
        elif not os.environ.get("RAWGRAD_DATA"):
            pytest.skip("needs the genuine MNIST files: set RAWGRAD_DATA to the folder that holds mnist/")
        elif not (folder / "data").exists():
            (folder / "data").symlink_to(os.environ["RAWGRAD_DATA"])


def run(command: list[str], folder: Path) -> None:
    """Run ``command`` in ``folder``; what it printed is in the failure's message."""
    environment = {**os.environ, "MPLBACKEND": "Agg"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, f"exit code {done.returncode}\n{done.stdout}\n{done.stderr}"


def identify(value: Path | Block) -> str:
    return str(value.relative_to(ROOT)) if isinstance(value, Path) else f"line-{value.line}"


def python_programs(page: Path) -> Iterator[Block]:
    """The page's python blocks: those of one need as one program; each that is skipped by itself."""
    found = [block for block in blocks(page.read_text()) if block.language == "python"]
    notes = dict.fromkeys(block.note for block in found if not block.note.startswith("skip"))
    for note in notes:
        together = [block for block in found if block.note == note]
        lines: list[str] = []
        for block in together:  # at its own line number, so that a traceback points into the page
            lines += [""] * (block.line - 1 - len(lines))
            lines += block.code.splitlines()
        yield Block("python", note, together[0].line, "\n".join(lines))
    yield from (block for block in found if block.note.startswith("skip"))


PYTHON = [(page, block) for page in PAGES for block in python_programs(page)]
SHELL = [
    (page, block)
    for page in PAGES
    for block in [b for b in blocks(page.read_text()) if b.language == "sh"][2 if page.name == "README.md" else 0 :]
    if block.code.startswith("rawgrad")
]


@pytest.mark.parametrize(("page", "block"), PYTHON, ids=identify)
def test_python_blocks(page: Path, block: Block, tmp_path: Path) -> None:
    meet(block.note, tmp_path)
    program = tmp_path / f"{page.stem}.py"
    program.write_text(block.code + "\n")
    run([sys.executable, str(program)], tmp_path)


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path], Path]:
    """The one folder in which the shell blocks of a page run."""
    return cache(lambda page: tmp_path_factory.mktemp(page.stem))


@pytest.mark.parametrize(("page", "block"), SHELL, ids=identify)
def test_shell_blocks(page: Path, block: Block, folder_of: Callable[[Path], Path]) -> None:
    folder = folder_of(page)
    meet(block.note, folder)
    script = f'rawgrad() {{ "{sys.executable}" -m rawgrad "$@"; }}\n{block.code}\n'
    run(["bash", "-euo", "pipefail", "-c", script], folder)


def test_the_reader_of_pages() -> None:
    page = """text
```sh
a
```
<!-- needs: mnist -->
```python
b

c
```
```
plain
```
<!-- skip: slow -->
````sh
```
````
"""
    assert blocks(page) == [
        Block("sh", "", 3, "a"),
        Block("python", "needs: mnist", 7, "b\n\nc"),
        Block("", "", 12, "plain"),
        Block("sh", "skip: slow", 16, "```"),
    ]


def test_readme_opens_with_the_two_command_lines() -> None:
    first, second = [block.code for block in blocks((ROOT / "README.md").read_text()) if block.language == "sh"][:2]
    assert first.count("\n") == second.count("\n") == 0
    assert first.endswith("rawgrad train")
    assert second.endswith("pytest")
