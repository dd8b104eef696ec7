"""CUDA sources as text: headers inlined, and the signatures of their kernels.

A launch is typed by what the ``.cu`` file itself declares; nothing is declared a second time in Python.
The part of C++ that is understood is the part that our kernels use: a ``__global__`` function, perhaps
a template, whose parameters are numbers, pointers, or structs of ``int``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from .._errors import LaunchError

HEADERS = Path(__file__).parent

_INCLUDE = re.compile(r'^[ \t]*#[ \t]*include[ \t]+"([^"]+\.cuh)"[^\n]*$', re.MULTILINE)
#: A comment, or a string, in which there is none.
_COMMENT = re.compile(r'"(?:\\.|[^"\\\n])*"|//[^\n]*|/\*.*?\*/', re.DOTALL)
_DIRECTIVE = re.compile(r"^[ \t]*#(?:[^\n]*\\\n)*[^\n]*", re.MULTILINE)
_STRUCT = re.compile(r"struct\s+(\w+)\s*\{([^{}]*)\}")
#: A word of a declaration, as in ``extern "C" void``.
_WORD = re.compile(r'\s*(?:"C"\s*)?(\w+)\s*')
#: Attributes of a kernel that take arguments; a parenthesis follows them as it follows the kernel's name.
_ATTRIBUTES = ("__launch_bounds__", "__cluster_dims__", "__block_size__", "__maxnreg__", "__attribute__")
#: Words around a parameter that do not change its type.
_QUALIFIERS = re.compile(r"\b(__restrict__|__restrict|__grid_constant__|const|volatile|struct)\b")
#: Integer types are made of these, in any order.
_INTEGER_WORDS = {"signed", "unsigned", "char", "short", "int", "long"}


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
    """A kernel as its source declares it.

    Attributes:
        templates: its template parameters, in order.
        cluster: what ``__cluster_dims__`` says, as it stands there; () without.
    """

    name: str
    templates: tuple[str, ...]
    parameters: tuple[Parameter, ...]
    cluster: tuple[str, ...] = ()


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
    structs = {name: _int_members(body) for name, body in _STRUCT.findall(_declarations(text))}
    own = _DIRECTIVE.sub("", _declarations(path.read_text()))
    return Source(path, text, _signatures(own, path), {name: members for name, members in structs.items() if members})


def without_comments(text: str) -> str:
    """The code alone."""
    return _COMMENT.sub(lambda found: found[0] if found[0][0] == '"' else " ", text)


def _declarations(text: str) -> str:
    """Without comments; without what stands in strings, too, but for the C of ``extern "C"``."""
    return _COMMENT.sub(lambda found: found[0] if found[0] == '"C"' else '""' if found[0][0] == '"' else " ", text)


def _int_members(body: str) -> tuple[str, ...]:
    """The members of a struct, ``a`` or ``a[0]``; () if anything in it is not an int."""
    members: list[str] = []
    for declaration in re.sub(r"\bstatic\b[^;]*;", "", body).split(";"):
        if not declaration.strip():
            continue
        ints = re.fullmatch(r"\s*(?:const\s+)?(?:int|int32_t)\s(.+)", declaration, re.DOTALL)
        for field in ints[1].split(",") if ints else ("*",):
            name = re.fullmatch(r"\s*(\w+)\s*(?:\[\s*(\d+)\s*\]\s*)?(?:=.*)?", field, re.DOTALL)
            if name is None:
                return ()
            members += [f"{name[1]}[{i}]" for i in range(int(name[2]))] if name[2] else [name[1]]
    return tuple(members)


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
    found: dict[str, Signature] = {}
    for match in re.finditer(r"\b__global__\b", text):
        before = re.split(r"[;{}]", text[: match.start()])[-1]
        templates, cluster = _templates(before), _cluster(before, path)
        rest = text[match.end() :]
        # void, attributes and extern "C" may come in any order; the name is what the parameter list follows.
        position, name = 0, ""
        while not (name and rest[position : position + 1] in ("(", "<")):
            word = _WORD.match(rest, position)
            if word is None:
                raise LaunchError(f"{path}: this kernel's declaration is not understood: {rest[:80].strip()!r}")
            position, name = word.end(), word[1]
            if name in _ATTRIBUTES:
                cluster = cluster or _cluster(rest[word.start() :], path) if name == "__cluster_dims__" else cluster
                position, name = _closing(rest, position, path) + 1, ""
        if rest[position] == "<":
            continue  # a specialisation or an instantiation of what is declared elsewhere
        end = _closing(rest, position, path)
        listed = rest[position + 1 : end].strip()
        parameters = tuple(_parameter(p, path) for p in _split(listed)) if listed != "void" else ()
        signature = found.setdefault(name, Signature(name, templates, parameters, cluster))
        if _shape(signature) != _shape(Signature(name, templates, parameters)):
            raise LaunchError(f"{path}: kernel {name!r} is declared twice, with different parameters")
    return found


def _cluster(text: str, path: Path) -> tuple[str, ...]:
    """The arguments of the first ``__cluster_dims__`` in ``text``."""
    word = re.search(r"\b__cluster_dims__\s*\(", text)
    return tuple(_split(text[word.end() : _closing(text, word.end() - 1, path)])) if word else ()


def _shape(signature: Signature) -> object:
    """What two declarations of one kernel agree in."""
    return len(signature.templates), [(p.type, p.pointer, p.constant) for p in signature.parameters]


def _templates(declaration: str) -> tuple[str, ...]:
    """The names of the template parameters in what stands before ``__global__``."""
    opening = re.search(r"\btemplate\s*<", declaration)
    if opening is None:
        return ()
    inner = declaration[opening.end() :]
    inner = inner[: next((position for position, _, level in _levels(inner) if level < 0), None)]
    return tuple(re.split(r"[\s.]+", p.partition("=")[0].strip())[-1] for p in _split(inner))


def _levels(text: str) -> Iterator[tuple[int, str, int]]:
    """Each token with its position and how many brackets are open behind it; in ``(N > 2)`` and ``1 << 4`` are none."""
    level = parentheses = 0
    for token in re.finditer(r"<<|<=|>=|->|.", text, re.DOTALL):
        change = (token[0] in "([{") - (token[0] in ")]}")
        parentheses += change
        level += change
        if parentheses == 0:
            level += (token[0] == "<") - (token[0] == ">")
        yield token.start(), token[0], level


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
    parts, start = [], 0
    for position, token, level in _levels(text):
        if token == "," and level == 0:
            parts.append(text[start:position])
            start = position + 1
    return [part.strip() for part in (*parts, text[start:]) if part.strip()]


def _parameter(text: str, path: Path) -> Parameter:
    text = text.partition("=")[0]  # a default argument is none for a launch
    constant = bool(re.search(r"\bconst\b", text.partition("*")[0]))
    words = _QUALIFIERS.sub(" ", text).replace("*", " * ").split()
    name = words[-1] if words else ""
    kind = [word for word in words[:-1] if word != "*"]
    named = re.fullmatch(r"[A-Za-z_]\w*", name) and name not in _INTEGER_WORDS | {"float", "double", "bool"}
    if not kind or not named or words.count("*") > 1 or re.search(r"[&(\[]", " ".join(kind)):
        raise LaunchError(f"{path}: this parameter is not understood: {text.strip()!r}")
    return Parameter(name, _one_spelling(kind), "*" in words, constant)


def _one_spelling(kind: list[str]) -> str:
    """A type under the name that :mod:`kernels._launch` knows: ``long unsigned int`` is ``unsigned long``."""
    if not _INTEGER_WORDS.issuperset(kind):
        return " ".join(kind)
    size = (
        "char" if "char" in kind else "short" if "short" in kind else " ".join(["long"] * kind.count("long")) or "int"
    )
    sign = "unsigned " if "unsigned" in kind else "signed " if size == "char" and "signed" in kind else ""
    return sign + size
