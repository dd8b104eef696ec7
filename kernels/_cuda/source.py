"""CUDA sources as text: headers inlined, and the signatures of their kernels.

A launch is typed by what the ``.cu`` file itself declares; nothing is declared a second time in Python.
The part of C++ that is understood is the part that our kernels use: a ``__global__`` function, perhaps
a template, whose parameters are numbers, pointers, or structs of ``int``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from .._errors import LaunchError

HEADERS = Path(__file__).parent

_INCLUDE = re.compile(r'^[ \t]*#[ \t]*include[ \t]+"([^"]+\.cuh)"[^\n]*$', re.MULTILINE)
_COMMENT = re.compile(r"//[^\n]*|/\*.*?\*/", re.DOTALL)
_STRUCT = re.compile(r"struct\s+(\w+)\s*\{([^{}]*)\}")
#: Words around a parameter that do not change its type.
_QUALIFIERS = re.compile(r"\b(__restrict__|__restrict|__grid_constant__|const|volatile|struct)\b")


@dataclass(frozen=True)
class Parameter:
    """One parameter of a kernel.

    Attributes:
        name: as in the source.
        type: its C type without ``const`` and ``*``: ``float``, ``T``, ``unsigned char``, a struct's name.
        pointer: whether it is a pointer (to an array on the device).
        constant: whether what it points to is ``const``.
    """

    name: str
    type: str
    pointer: bool
    constant: bool


@dataclass(frozen=True)
class Signature:
    """A kernel as its source declares it; ``templates`` are its template parameters, in order."""

    name: str
    templates: tuple[str, ...]
    parameters: tuple[Parameter, ...]


@dataclass(frozen=True)
class Source:
    """One ``.cu`` file.

    Attributes:
        path: the file.
        text: its text with the headers of ``kernels/_cuda`` in place of their includes, and ``#line``
            directives, so that a compiler names the file and line that a reader finds.
        signatures: the ``__global__`` functions by name.
        structs: for each struct made of ``int`` alone, the names of its members.
    """

    path: Path
    text: str
    signatures: dict[str, Signature]
    structs: dict[str, tuple[str, ...]]


def read_source(path: Path) -> Source:
    """Read and understand the ``.cu`` file ``path``; again if it has changed.

    Raises:
        LaunchError: the file or a header does not exist, or a kernel's declaration is not understood.
    """
    try:
        state = path.stat()
    except OSError as error:
        raise LaunchError(f"{path} cannot be read: {error.strerror}") from None
    return _read(path, state.st_mtime_ns, state.st_size)


@lru_cache(maxsize=256)
def _read(path: Path, _modified: int, _size: int) -> Source:
    text = _inlined(path, set())
    plain = _COMMENT.sub(" ", text)
    structs = {}
    for name, body in _STRUCT.findall(plain):
        members = [field.strip() for line in re.findall(r"\bint\s+([^;]+);", body) for field in line.split(",")]
        if members and not re.sub(r"\bint\s+[^;]+;", "", body).strip():
            structs[name] = tuple(members)
    own = _COMMENT.sub(lambda comment: " " + "\n" * comment[0].count("\n"), path.read_text())
    return Source(path, text, _signatures(own, path), structs)


def _inlined(path: Path, seen: set[Path]) -> str:
    """The text of ``path``; each header is put in once, at its first include."""

    def header(match: re.Match[str]) -> str:
        found = HEADERS / match[1]
        if not found.is_file():
            found = path.parent / match[1]  # a user's own header beside the source
        if not found.is_file():
            raise LaunchError(f"{path}: header {match[1]!r} is neither in {HEADERS} nor beside the source")
        after = text.count("\n", 0, match.end()) + 2
        if found in seen:
            return ""
        seen.add(found)
        return f'#line 1 "{found}"\n{_inlined(found, seen)}\n#line {after} "{path}"'

    text = path.read_text()
    return _INCLUDE.sub(header, re.sub(r"#pragma once", "", text))


def _signatures(text: str, path: Path) -> dict[str, Signature]:
    found = {}
    for match in re.finditer(r"\b__global__\b", text):
        templates = _templates_before(text[: match.start()])
        rest = text[match.end() :]
        # void, __launch_bounds__(...) and extern "C" may come in any order; the name is what the
        # parameter list follows.
        position = 0
        while True:
            word = re.compile(r"\s*(\w+)\s*").match(rest, position)
            if word is None:
                raise LaunchError(f"{path}: this kernel's declaration is not understood: {rest[:80].strip()!r}")
            position = word.end()
            if word[1] == "__launch_bounds__":
                position = _closing(rest, position, path) + 1
            elif word[1] != "void" and rest[position : position + 1] == "(":
                break
        end = _closing(rest, position, path)
        parameters = tuple(_parameter(p, path) for p in _split(rest[position + 1 : end]))
        found[word[1]] = Signature(word[1], templates, parameters)
    return found


def _templates_before(text: str) -> tuple[str, ...]:
    """The names of the template parameters, if ``text`` ends with ``template <...>``."""
    if not text.rstrip().endswith(">"):
        return ()
    match = re.search(r"template\s*<([^;{}]*)>\s*$", text)
    if match is None:
        return ()
    start = match[1].rfind("template")
    inner = match[1] if start < 0 else match[1][start:].partition("<")[2]
    return tuple(re.split(r"\s+", p.partition("=")[0].strip())[-1] for p in _split(inner))


def _closing(text: str, opening: int, path: Path) -> int:
    """Where the parenthesis that opens at ``opening`` closes."""
    depth = 0
    for position in range(opening, len(text)):
        depth += {"(": 1, ")": -1}.get(text[position], 0)
        if depth == 0:
            return position
    raise LaunchError(f"{path}: a parenthesis is not closed: {text[opening : opening + 80].strip()!r}")


def _split(text: str) -> list[str]:
    """The parts of a list between commas, but not those inside brackets."""
    parts, depth, start = [], 0, 0
    for position, character in enumerate(text):
        depth += (character in "(<[{") - (character in ")>]}")
        if character == "," and depth == 0:
            parts.append(text[start:position])
            start = position + 1
    return [part.strip() for part in (*parts, text[start:]) if part.strip()]


def _parameter(text: str, path: Path) -> Parameter:
    constant = bool(re.search(r"\bconst\b", text.partition("*")[0]))
    words = _QUALIFIERS.sub(" ", text).replace("*", " * ").split()
    if len(words) < 2 or words.count("*") > 1 or not re.fullmatch(r"\w+", words[-1]):
        raise LaunchError(f"{path}: this parameter is not understood: {text!r}")
    kind = " ".join(word for word in words[:-1] if word != "*")
    return Parameter(words[-1], kind, "*" in words, constant)
