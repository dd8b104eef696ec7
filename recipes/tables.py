"""Numbers and settings as they are shown."""

from __future__ import annotations

import math
from typing import Any


def duration(seconds: float) -> str:
    """12.3 s, 4:05 min, 1:02:03 h."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02} h" if hours else f"{minutes}:{rest:02} min"


def number(value: float, form: str, unit: str = "") -> str:
    """A number in a form of ``format``; nothing for NaN."""
    return "" if math.isnan(value) else f"{value:{form}}{unit}"


def shown(value: Any) -> str:
    """A setting; one of several parts in one line."""
    if isinstance(value, dict):
        return ", ".join(f"{name} {shown(each)}" for name, each in value.items()) or "none"
    if isinstance(value, list | tuple):
        return ("-" if all(isinstance(each, int | float) for each in value) else ", ").join(map(shown, value))
    return "none" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
