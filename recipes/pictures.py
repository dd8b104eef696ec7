"""Pictures of what a network reads: the confusion matrix, and a sheet of digits with the wrong ones on red.

Both draw arrays into axes of matplotlib (``curves.figure`` makes some without a display), of any size: what is
written gets smaller with them.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..kernels._errors import ArgumentError, ShapeError

#: Endings of the pictures that can be drawn.
ENDINGS = (".png", ".pdf", ".svg")

_BLUE, _RED = np.array([0.10, 0.32, 0.60]), np.array([0.80, 0.10, 0.10])
_WRONG = np.array([1.0, 0.72, 0.70])  # the paper of a digit that was read wrong
#: The width of a character of matplotlib's font, and of a line, in sizes of the font.
_CHARACTER, _LINE = 0.64, 1.25
_SMALLEST, _LARGEST = 3.0, 11.0  # points


def check_path(command: str, path: Path) -> None:
    """Refuse a path that no picture can be drawn into, before anything is computed.

    Raises:
        ArgumentError: its ending is none of :data:`ENDINGS`, or its folder does not exist.
    """
    check_ending(command, path)
    if not path.parent.is_dir():
        raise ArgumentError(f"{command}: --out must lie in a folder that exists; there is no {path.parent}")


def check_ending(command: str, path: Path) -> None:
    """Refuse what is no name of a picture.

    Raises:
        ArgumentError: its ending is none of :data:`ENDINGS`.
    """
    if path.suffix not in ENDINGS:
        raise ArgumentError(f"{command}: --out must end with {', '.join(ENDINGS)}; got {path}")


def errors_first(truth: np.ndarray, read: np.ndarray, losses: np.ndarray) -> np.ndarray:
    """The order in which mistakes come first, and of equals the highest loss.

    Args:
        truth, read: the true classes and those that were read, (N,).
        losses: of each, (N,); NaN counts as the highest.

    Returns:
        (N,) int64, indices.
    """
    truth, read, losses = (np.asarray(values) for values in (truth, read, losses))
    _same_length("errors_first", truth, read=read, losses=losses)
    return np.lexsort((-np.nan_to_num(losses.astype(np.float64), nan=np.inf), truth == read))


def draw_confusion(axes: Any, matrix: np.ndarray, classes: Sequence[str] | None = None) -> None:
    """Draw a confusion matrix: true classes down, what they were read as across.

    Right answers are blue, by their share of the row; mistakes are red, by their share of the row beside the
    largest such share, so that few can be seen too.  At the right stands how much of each row was read right.

    Args:
        axes: matplotlib's.
        matrix: (K, K) whole numbers, as ``confusion_matrix`` gives them.
        classes: the K names; by default 0, 1, ….
    """
    matrix = np.asarray(matrix)
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or not matrix.size:
        raise ShapeError(f"draw_confusion: matrix must have shape (K, K), K at least 1; got {matrix.shape}")
    count = len(matrix)
    names = [str(i) for i in range(count)] if classes is None else [str(name) for name in classes]
    if len(names) != count:
        raise ArgumentError(f"draw_confusion: classes must be {count} names; got {len(names)}")
    totals = matrix.sum(1)
    shares = matrix / np.maximum(totals, 1)[:, None]  # (K, K)
    mistakes = shares * (1 - np.eye(count))
    strength = np.where(np.eye(count), shares, mistakes / max(mistakes.max(), 1e-30))
    strength = np.where(matrix, 0.12 + 0.88 * strength, 0)[:, :, None]
    ink = np.where(np.eye(count)[:, :, None], _BLUE, _RED)
    axes.imshow(1 - strength * (1 - ink))

    longest = max(len(str(matrix.max())), 3)
    size = min(_points(axes, count + 2, count + 1) / max(_CHARACTER * longest + 0.4, 2), _LARGEST)
    if size >= _SMALLEST:
        for row, column in zip(*np.nonzero(matrix), strict=True):
            colour = "white" if strength[row, column, 0] > 0.5 else "black"
            axes.text(column, row, matrix[row, column], ha="center", va="center", color=colour, fontsize=size)
        for row in np.flatnonzero(totals):
            axes.text(count - 0.4, row, f"{100 * shares[row, row]:.1f} %", va="center", fontsize=0.8 * size)
    every = max(1, round(_SMALLEST * 2 / max(size, 0.1)))  # of very many names only some
    ticks = range(0, count, every)
    labels, size = [names[i] for i in ticks], max(size, 2 * _SMALLEST)
    turn = 90 if max(map(len, labels)) > 4 else 0
    axes.set_xticks(ticks, labels, fontsize=size, rotation=turn)
    axes.set_yticks(ticks, labels, fontsize=size)
    axes.set_xlabel("read as", fontsize=size)
    axes.set_ylabel("true class", fontsize=size)
    axes.tick_params(length=0)
    axes.set_xticks(np.arange(1, count) - 0.5, minor=True)
    axes.set_yticks(np.arange(1, count) - 0.5, minor=True)
    axes.grid(which="minor", color="0.9", linewidth=0.5)
    axes.tick_params(which="minor", length=0)


def draw_digits(
    axes: Any,
    images: np.ndarray,
    truth: np.ndarray,
    read: np.ndarray,
    probabilities: np.ndarray | None = None,
    classes: Sequence[str] | None = None,
    *,
    columns: int = 10,
) -> None:
    """Draw digits in rows, dark on light, each with its class below; those that were read wrong on red.

    Below a wrong one stand its true class, what it was read as, and the probability of that: "4→9", "87 %".

    Args:
        axes: matplotlib's.
        images: (N, H, W) or (N, 1, H, W), ink 1 on paper 0; what lies outside is clipped.
        truth, read: the true classes and those that were read, (N,) integers.
        probabilities: of the classes that were read, (N,).
        classes: names by class; by default its number.
        columns: digits in a row.
    """
    images, truth, read = np.asarray(images), np.asarray(truth), np.asarray(read)
    if images.ndim == 4 and images.shape[1] == 1:
        images = images[:, 0]
    if images.ndim != 3 or not images[:1].size:
        raise ShapeError(f"draw_digits: images must have shape (N, H, W) or (N, 1, H, W), N >= 1; got {images.shape}")
    _same_length("draw_digits", images, truth=truth, read=read)
    if probabilities is not None:
        _same_length("draw_digits", images, probabilities=np.asarray(probabilities))
    if columns < 1:
        raise ArgumentError(f"draw_digits: columns must be at least 1; got {columns}")

    def name(index: Any) -> str:
        return str(classes[index]) if classes is not None and 0 <= index < len(classes) else str(index)

    captions = []
    for i, (true, found) in enumerate(zip(truth.tolist(), read.tolist(), strict=True)):
        sure = "" if probabilities is None else f"\n{100 * float(probabilities[i]):.0f} %"
        captions.append(name(true) if true == found else f"{name(true)}→{name(found)}{sure}")
    count, (height, width) = len(images), images.shape[1:]
    rows, lines = -(-count // columns), max(caption.count("\n") for caption in captions) + 1
    longest = max(len(line) for caption in captions for line in caption.split("\n"))
    letter = min(0.25, 1 / (_CHARACTER * longest))  # in widths of a digit
    high = height / width
    across, down = 1.12, high + _LINE * lines * letter + 0.1
    size = _points(axes, across * columns, down * rows) * letter
    wrong = truth != read
    papers = np.where(wrong[:, None, None, None], _WRONG, 1.0)  # (N, 1, 1, 3)
    pixels = papers * (1 - np.clip(np.nan_to_num(images), 0, 1)[..., None])  # (N, H, W, 3)
    for i in range(count):
        left, top = across * (i % columns), down * (i // columns)
        axes.imshow(pixels[i], extent=(left, left + 1, top + high, top))
        if size >= _SMALLEST:
            axes.text(
                left + 0.5, top + high + 0.02, captions[i], ha="center", va="top", fontsize=min(size, _LARGEST),
                color=_RED if wrong[i] else "0.35", linespacing=1.0,
            )  # fmt: skip
    axes.set(xlim=(-0.06, across * columns - 0.06), ylim=(down * rows, -0.06), aspect="equal")
    axes.axis("off")


def _points(axes: Any, across: float, down: float) -> float:
    """How long a unit is, in points, if ``across`` times ``down`` of them, all square, fill ``axes``.

    Where a layout is still to come, nearly: it will give the axes most of their share of the figure.
    """
    spec, box = axes.get_subplotspec(), axes.get_position()
    wide, high = box.width, box.height
    if spec is not None and axes.figure.get_layout_engine() is not None:
        grid = spec.get_gridspec()
        wide, high = 0.93 * len(spec.colspan) / grid.ncols, 0.93 * len(spec.rowspan) / grid.nrows
    width, height = axes.figure.get_size_inches() * 72
    return float(min(wide * width / across, high * height / down))


def _same_length(operation: str, first: np.ndarray, **others: np.ndarray) -> None:
    for name, values in others.items():
        if values.shape != first.shape[:1]:
            raise ShapeError(f"{operation}: {name} must have shape {first.shape[:1]}; got {values.shape}")
