"""Kinds of numbers that the bench's commands take as options."""

from __future__ import annotations

import argparse
import math


def positive(text: str) -> int:
    """A count of at least one."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1; got {number}")
    return number


def share(text: str) -> float:
    """Between 0 and 1, neither included."""
    number = float(text)
    if not 0 < number < 1:
        raise argparse.ArgumentTypeError(f"must be between 0 and 1; got {number:g}")
    return number


def rate(text: str) -> float:
    """Finite and above 0."""
    number = float(text)
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"must be positive; got {number:g}")
    return number
