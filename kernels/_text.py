"""Numbers and tables as text."""

from __future__ import annotations

from collections.abc import Collection, Sequence


def duration(seconds: float) -> str:
    """``"1.23 ms"``: three digits, in seconds, milli- or microseconds."""
    for unit, factor in (("s", 1.0), ("ms", 1e3)):
        if seconds * factor >= 1:
            return f"{seconds * factor:.3g} {unit}"
    return f"{seconds * 1e6:.3g} µs"


def quantity(number: float) -> str:
    """``"1.23 M"``: three digits and the SI prefix; a unit may follow."""
    for prefix, factor in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= factor:
            return f"{number / factor:.3g} {prefix}"
    return f"{number:.3g} "


def aligned(rows: Sequence[Sequence[str]], right: Collection[int] = ()) -> list[str]:
    """The lines of a table: a head, a rule, the other ``rows``, a rule.

    Args:
        rows: the head and then the others, each with as many cells.
        right: the columns that end, and do not begin, below each other.
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    forms = [f"{{:{'>' if i in right else '<'}{width}}}" for i, width in enumerate(widths)]
    head, *others = ("  ".join(forms).format(*row) for row in rows)
    rule = "-" * len(head)
    return [head, rule, *others, rule]
