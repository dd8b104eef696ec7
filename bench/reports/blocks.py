"""What a report is made of: headings, texts, tables and pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from . import pictures


@dataclass(frozen=True)
class Heading:
    """Of a section (level 2) or of a part of it (3)."""

    text: str
    level: int = 2


@dataclass(frozen=True)
class Text:
    """A paragraph; what stands between backticks is code."""

    text: str


@dataclass(frozen=True)
class Listing:
    """Lines, each with a dot before it."""

    lines: Sequence[str]


@dataclass(frozen=True)
class Table:
    """Cells, as many in each line as in the head."""

    head: Sequence[str]
    lines: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Picture:
    """A picture, which is drawn when a page is made.

    Attributes:
        name: of its file.
        title: says what it shows, to those who do not see it too.
        draw: makes the figure.
        legend: a numbered list below it.
    """

    name: str
    title: str
    draw: pictures.Draw
    legend: Sequence[str] = field(default=())


Block = Heading | Text | Listing | Table | Picture
