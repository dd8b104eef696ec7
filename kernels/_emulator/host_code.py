"""What the host's compiler reads of a ``.cu`` file: its device code, in plain C++.

A file from a tutorial also holds ``main``, ``cudaMalloc`` and ``<<<...>>>``.  None of that can run here, so
it is cut: every function or class outside the device code that calls the CUDA runtime or launches
something, and whatever calls those.  Other host code stays, since kernels may use it (``constexpr``
functions, constants, types).  What is cut leaves its line breaks behind, so all line numbers stay.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from .._errors import LaunchError

_COMMENT_OR_STRING = re.compile(r'//[^\n]*|/\*.*?\*/|"(?:\\.|[^"\\\n])*"|\'(?:\\.|[^\'\\\n])+\'', re.DOTALL)
_DIRECTIVE = re.compile(r"^[ \t]*#(?:\\\n|[^\n])*", re.MULTILINE)
_DIRECTIVE_OR_REST = re.compile(rf"(?P<directive>{_DIRECTIVE.pattern})|[^\n]", re.MULTILINE)
_DEVICE = re.compile(r"\b__(global|device|constant|shared|managed)__\b")
_RUNTIME = re.compile(r"<<<|\bmain\s*\(|\b(cuda[A-Z]|cublas|cudnn|curand|cusparse|thrust::)\w*")
#: Headers of CUDA that a source may include; as much of them as is emulated is in device.h.
_CUDA_HEADER = re.compile(
    r"^[ \t]*#[ \t]*include[ \t]*[<\"]"
    r"(cuda(_runtime(_api)?)?\.h|device_\w+\.h|vector_\w+\.h|math_constants\.h|sm_\w+\.h|curand\w*\.h|cublas\w*\.h)[>\"]",
    re.MULTILINE,
)
_DYNAMIC_SHARED = re.compile(
    r"\b(?:extern\s+(?:volatile\s+)?__shared__|__shared__\s+extern)\s+(?P<type>[^;=]*?)\b(?P<name>\w+)\s*\[\s*\]"
    r"(?P<sizes>(?:\s*\[[^\]]*\])*)\s*;"
)
_ALIGNMENT = re.compile(r"(__align__|alignas)\s*\((?:[^()]|\([^()]*\))*\)")
_SHARED = re.compile(r"\b__shared__\b([^;]*);")


def device_code(path: Path) -> str:
    """The text of ``path`` without its host code and CUDA's own headers.

    Raises:
        LaunchError: a kernel launches another one, which cannot be emulated.
    """
    text = path.read_text()
    bare = _without_words(text)
    items = list(_items(bare))
    cut: set[tuple[int, int]] = set()
    uses: set[str] = set()  # of what was cut, as patterns
    while True:
        before = len(cut)
        for begin, end in items:
            item = bare[begin:end]
            if (begin, end) in cut:
                continue
            if _DEVICE.search(item):
                if "<<<" in item:
                    line = bare.count("\n", 0, begin + item.index("<<<")) + 1
                    raise LaunchError(f"{path}:{line}: a kernel that launches another kernel cannot be emulated")
                continue
            if _RUNTIME.search(item) or any(re.search(use, item) for use in uses):
                cut.add((begin, end))
                uses |= _uses(item)
        if len(cut) == before:
            break
    for begin, end in cut:
        text = text[:begin] + _DIRECTIVE_OR_REST.sub(_blank_rest, text[begin:end]) + text[end:]
    return _DYNAMIC_SHARED.sub(_pointer, _CUDA_HEADER.sub("//", text))


def _blank_rest(match: re.Match[str]) -> str:
    """What is cut leaves preprocessor lines and line breaks behind."""
    return match["directive"] or " "


def _pointer(match: re.Match[str]) -> str:
    """Dynamic shared memory as a pointer to where it begins."""
    kind, sizes = _ALIGNMENT.sub("", match["type"]).strip(), match["sizes"]
    lines = "\n" * match[0].count("\n")
    return (
        f"{kind} (* const {match['name']}){sizes} = "
        f"reinterpret_cast<{kind} (*){sizes}>(rawgrad_emulator::dynamic_shared());{lines}"
    )


def shared_names(text: str) -> set[str]:
    """The names of the ``__shared__`` variables that ``text`` declares."""
    names = set()
    for declared in _SHARED.findall(_without_words(text)):
        while (shorter := re.sub(r"<[^<>]*>|\([^()]*\)|\[[^\[\]]*\]", " ", declared)) != declared:
            declared = shorter
        names |= {words[-1] for part in declared.split(",") if (words := part.split())}
    return names


def _without_words(text: str) -> str:
    """``text`` with blanks for comments, strings and preprocessor lines; every place stays where it is."""

    def blank(match: re.Match[str]) -> str:
        return re.sub(r"[^\n]", " ", match[0])

    return _DIRECTIVE.sub(blank, _COMMENT_OR_STRING.sub(blank, text))


def _items(bare: str) -> Iterator[tuple[int, int]]:
    """Begin and end of each declaration outside functions and classes; namespaces are looked into."""
    begin, depth, namespaces = 0, 0, 0
    for match in re.finditer(r"[;{}()]", bare):
        character, at = match[0], match.start()
        if character in "({":
            head = bare[begin:at]
            if depth == 0 and character == "{" and re.search(r"(\bnamespace\b[\w\s:]*|\bextern\s*)$", head):
                begin, namespaces = match.end(), namespaces + 1
            else:
                depth += 1
        elif depth == 0 and character == "}":
            begin, namespaces = match.end(), namespaces - 1
        else:
            depth -= character in ")}"
            if depth == 0 and character in ";}":
                yield begin, match.end()
                begin = match.end()


def _uses(item: str) -> set[str]:
    """Patterns that find uses of the function or class that ``item`` defines."""
    head = item.partition("{")[0]
    if kind := re.search(r"\b(?:struct|class)\s+(\w+)", head):
        return {rf"\b{kind[1]}\b"}
    function = re.search(r"(\w+)\s*\(", head)
    return {rf"\b{function[1]}\s*[(<]"} if function else set()
