"""``rawgrad predict``: the digits in files, in folders of files, and in what comes through standard input."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..engine.data.images import FORMATS, pictures_below
from ..kernels._errors import ArgumentError, DataError
from .reading import Reader

#: What stands for standard input.
STANDARD_INPUT = "-"
#: The largest file, in bytes, that is taken from there.
MAX_BYTES = 2**28


@dataclass(frozen=True)
class Source:
    """A picture to be read.

    Attributes:
        name: as the user calls it.
        picture: what :meth:`Reader.read` takes, or why there is nothing to read.
        listed: whether it was found in a folder, not named.
    """

    name: str
    picture: Any
    listed: bool = False


def sources(names: Sequence[str]) -> Iterator[Source]:
    """The pictures that ``names`` mean: files, folders (all pictures below), and "-" for standard input.

    Raises:
        ArgumentError: standard input is wanted twice, is a terminal, or is closed.
    """
    if names.count(STANDARD_INPUT) > 1:
        raise ArgumentError(f"predict: standard input ({STANDARD_INPUT}) can be read once only")
    if STANDARD_INPUT in names and (sys.stdin is None or sys.stdin.isatty()):
        raise ArgumentError(
            f"predict: {STANDARD_INPUT} reads a picture from standard input, which is "
            f"{'closed' if sys.stdin is None else 'a terminal'}; `rawgrad predict - < digit.png` gives it a file"
        )
    for name in names:
        if name == STANDARD_INPUT:
            yield _from_standard_input()
        elif Path(name).is_dir():
            found = pictures_below(Path(name))
            if not found:
                yield Source(name, DataError(f"predict: {name} must hold pictures ({' or '.join(FORMATS)}); got none"))
            yield from (Source(str(path), path, True) for path in found)
        else:
            yield Source(name, Path(name))


def _from_standard_input() -> Source:
    data = sys.stdin.buffer.read(MAX_BYTES + 1)
    name = "standard input"
    if not data:
        return Source(STANDARD_INPUT, DataError(f"predict: {name} must be a picture; got nothing"))
    if len(data) > MAX_BYTES:
        return Source(STANDARD_INPUT, DataError(f"predict: {name} must have at most {MAX_BYTES} bytes; got more"))
    picture = io.BytesIO(data)
    picture.name = name
    return Source(STANDARD_INPUT, picture)


def predict(reader: Reader, names: Sequence[str], as_json: bool) -> int:
    """Read every picture and print what it says; what cannot be read is said on stderr, and the rest read.

    A picture that was named gets a line for each class, one that was found in a folder a single line.

    Returns:
        0, or 2 if something could not be read.

    Raises:
        CheckpointError: the network itself is broken.
    """
    rows: list[dict[str, Any]] = []
    refused = 0
    for source in sources(names):
        try:
            if isinstance(source.picture, DataError):
                raise source.picture
            reading = reader.read(source.picture)
        except DataError as error:
            refused += 1
            print(f"rawgrad: error: {error}", file=sys.stderr)
            rows.append({"image": source.name, "error": str(error)})
            continue
        rows.append({"image": source.name, **reading.described()})
        if not as_json:
            say(f"{source.name}: {reading.line()}" if source.listed else f"{source.name}: {reading}\n")
    if as_json:
        print(json.dumps(rows, indent=2))
    if refused and len(rows) > 1:
        print(f"rawgrad: {refused} of {len(rows)} could not be read", file=sys.stderr)
    return 2 if refused else 0


def say(text: str) -> None:
    """Print ``text``, with "?" for what the terminal cannot show, such as a file's name that is no text."""
    try:
        print(text, flush=True)
    except UnicodeEncodeError:
        encoding = sys.stdout.encoding
        print(text.encode(encoding, "replace").decode(encoding), flush=True)
