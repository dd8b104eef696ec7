"""Two looks at a data set before training on it: the machine's and the human's.

:func:`check_data` counts and measures, and says what looks wrong; :func:`sample_sheet` and
:func:`sample_text` draw samples with their labels, for what no machine notices.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ...kernels._devices import device_of
from ...kernels._errors import ArgumentError, DataError
from .dataset import batch_method, raw_array

_BATCH = 1000
_SHADES = " .:-=+*#%@"


@dataclass
class SplitReport:
    """What was found in one split.

    Attributes:
        name: ``"train"``, …
        count: samples that could be read.
        shapes, dtypes: how many images there are of each shape (without the batch) and dtype.
        low, high, mean: of all finite pixels; NaN if there are none.
        not_finite: pixels that are NaN or infinite.
        histogram: samples per label; None if the labels are not whole numbers.
        unreadable: index and error of each sample that could not be read.
    """

    name: str
    count: int = 0
    shapes: dict[tuple[int, ...], int] = field(default_factory=dict)
    dtypes: dict[str, int] = field(default_factory=dict)
    low: float = float("nan")
    high: float = float("nan")
    mean: float = float("nan")
    not_finite: int = 0
    histogram: dict[int, int] | None = field(default_factory=dict)
    unreadable: list[tuple[int, str]] = field(default_factory=list)


@dataclass
class DataReport:
    """The result of :func:`check_data`; printing it shows a table and the problems.

    Attributes:
        splits: one report each.
        problems: one sentence for each thing that looks wrong.
    """

    splits: list[SplitReport]
    problems: list[str]

    def __str__(self) -> str:
        rows: list[tuple[str, ...]] = [("split", "samples", "shape", "dtype", "lowest", "highest", "mean", "NaN/inf")]
        for s in self.splits:
            shape = " ".join("x".join(map(str, shape)) or "scalar" for shape in s.shapes)
            numbers = (f"{s.low:.4g}", f"{s.high:.4g}", f"{s.mean:.4g}", f"{s.not_finite:,}")
            rows.append((s.name, f"{s.count:,}", shape or "-", " ".join(s.dtypes) or "-", *numbers))
        lines = _table(rows)
        if labels := sorted({label for s in self.splits for label in s.histogram or {}}):
            rows = [("label", *(s.name for s in self.splits))]
            for label in labels:
                rows.append((str(label), *(f"{(s.histogram or {}).get(label, 0):,}" for s in self.splits)))
            lines += ["", *_table(rows)]
        if self.problems:
            lines += ["", f"{len(self.problems)} problem{'s' if len(self.problems) > 1 else ''}:"]
            lines += [f"  - {problem}" for problem in self.problems]
        else:
            lines += ["", "No problems found."]
        return "\n".join(lines)


def _table(rows: list[tuple[str, ...]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join([row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True))])
        for row in rows
    ]


def check_data(
    splits: Any, *, classes: int | None = None, value_range: tuple[float, float] | None = (0.0, 1.0)
) -> DataReport:
    """Look for what is wrong with a data set of (image, label) samples.

    Checked are: that every sample can be read; one shape and dtype throughout; no NaN, no infinity,
    values within ``value_range`` and not all the same; labels whole numbers from 0 to classes - 1,
    each class present in each split; no image twice in different splits, and none twice in one
    split with different labels.

    Args:
        splits: a data set, or several by name: ``{"train": …, "test": …}``.
        classes: how many there are; None: ``dataset.classes`` if it has them, else the largest
            label plus 1.
        value_range: lowest and highest value allowed, None for any.
    """
    named: Mapping[str, Any] = splits if isinstance(splits, Mapping) else {"data": splits}
    if not named:
        raise ArgumentError("check_data: splits must be a data set or a dictionary of some; got an empty one")
    reports: list[SplitReport] = []
    problems: list[str] = []
    if classes is None:
        classes = next((len(data.classes) for data in named.values() if hasattr(data, "classes")), None)
    seen: dict[bytes, tuple[str, int, Any]] = {}  # digest of an image: where it was first, and its label
    for name, dataset in named.items():
        report = SplitReport(name)
        reports.append(report)
        problems += _check_split(report, dataset, value_range, seen)
    for what in ("shapes", "dtypes"):
        firsts = {s.name: next(iter(getattr(s, what))) for s in reports if getattr(s, what)}
        if len(set(firsts.values())) > 1:
            listed = ", ".join(f"{name} {value}" for name, value in firsts.items())
            problems.append(f"the splits differ in {what}: {listed}")
    if classes is None:
        classes = 1 + max((label for s in reports for label in s.histogram or {}), default=-1)
    for s in reports:
        if s.histogram is None:
            continue
        if wrong := [label for label in s.histogram if not 0 <= label < classes]:
            problems.append(f"{s.name}: labels must be from 0 to {classes - 1}; found {sorted(wrong)[:10]}")
        if s.count and (empty := [label for label in range(classes) if not s.histogram.get(label)]):
            problems.append(f"{s.name}: no samples of class {', '.join(map(str, empty[:20]))}")
    return DataReport(reports, problems)


def _check_split(
    report: SplitReport, dataset: Any, value_range: tuple[float, float] | None, seen: dict[bytes, tuple[str, int, Any]]
) -> list[str]:
    name = report.name
    problems: list[str] = []
    total, finite = 0.0, 0
    lows: list[float] = []
    highs: list[float] = []
    copies: dict[str, list[str]] = {}
    for first, images, labels in _chunks(dataset, report.unreadable):
        for image, label in zip(images, labels, strict=True):
            report.count += 1
            shape, dtype = tuple(image.shape), str(image.dtype)
            report.shapes[shape] = report.shapes.get(shape, 0) + 1
            report.dtypes[dtype] = report.dtypes.get(dtype, 0) + 1
            digest = hashlib.blake2b(repr((shape, dtype)).encode() + image.tobytes(), digest_size=16).digest()
            where, index, before = seen.setdefault(digest, (name, first, label))
            if where != name:
                copies.setdefault(f"have the same image as one in {where}", []).append(f"{first} = {where} {index}")
            elif index != first and not np.array_equal(before, label):
                copies.setdefault("have the image of another but not its label", []).append(f"{first} = {index}")
            first += 1
            if report.histogram is not None:
                if np.size(label) != 1 or np.asarray(label).dtype.kind not in "iub":
                    report.histogram = None
                else:
                    key = int(label)
                    report.histogram[key] = report.histogram.get(key, 0) + 1
        for values in [images] if isinstance(images, np.ndarray) else images:
            good = values[np.isfinite(values)] if values.dtype.kind == "f" else values.reshape(-1)
            report.not_finite += values.size - good.size
            if good.size:
                lows.append(float(good.min()))
                highs.append(float(good.max()))
                total += float(good.sum(dtype=np.float64))
                finite += good.size
    if finite:
        report.low, report.high, report.mean = min(lows), max(highs), total / finite

    if report.unreadable:
        index, error = report.unreadable[0]
        problems.append(f"{name}: {len(report.unreadable):,} samples cannot be read; the first is {index}: {error}")
    if not report.count:
        problems.append(f"{name}: no samples")
    for what, kinds in (("shape", report.shapes), ("dtype", report.dtypes)):
        if len(kinds) > 1:
            listed = ", ".join(f"{kind} ({count:,} times)" for kind, count in list(kinds.items())[:5])
            problems.append(f"{name}: images of more than one {what}: {listed}")
    if report.not_finite:
        problems.append(f"{name}: {report.not_finite:,} values are NaN or infinite")
    if value_range is not None and finite and not (value_range[0] <= report.low and report.high <= value_range[1]):
        problems.append(
            f"{name}: values must be from {value_range[0]:g} to {value_range[1]:g}; "
            f"found {report.low:g} to {report.high:g}"
        )
    if finite > 1 and report.low == report.high:
        problems.append(f"{name}: all values are {report.low:g}")
    if report.histogram is None:
        problems.append(f"{name}: labels are not whole numbers")
    for what, pairs in copies.items():
        more = ", …" if len(pairs) > 3 else ""
        problems.append(f"{name}: {len(pairs):,} samples {what}: {', '.join(pairs[:3])}{more}")
    return problems


def _chunks(dataset: Any, unreadable: list[tuple[int, str]]) -> Iterator[tuple[int, Any, Any]]:
    """The data set piece by piece on the host: index of the first sample, images, labels."""
    whole = batch_method(dataset)
    if whole is not None:
        for first in range(0, len(dataset), _BATCH):
            images, labels = whole(np.arange(first, min(first + _BATCH, len(dataset))))
            yield first, _host(images), _host(labels)
        return
    for index in range(len(dataset)):
        try:
            image, label = dataset[index]
        except (DataError, OSError) as error:
            unreadable.append((index, str(error)))
        else:
            yield index, [_host(image)], [_host(label)]


def _host(value: Any) -> np.ndarray:
    array = raw_array(value)
    return np.asarray(value) if array is None else device_of(array).to_host(array)


# ---- the human's look -------------------------------------------------------------------------


def _picked(dataset: Any, count: int) -> list[int]:
    """Up to ``count`` indices spread evenly over the data set."""
    if isinstance(count, bool) or not isinstance(count, int | np.integer) or count < 1:
        raise ArgumentError(f"samples: count must be an integer of at least 1; got {count!r}")
    return [int(i) for i in np.unique(np.linspace(0, len(dataset) - 1, min(count, len(dataset))).round())]


def _picture(sample: Any) -> tuple[np.ndarray, str]:
    """The image of ``sample`` as (H, W) or (H, W, 3) in [0, 1] by its own extremes, and its label."""
    image, label = (_host(part) for part in sample)
    if image.ndim == 3 and image.shape[0] in (1, 3):
        image = image[0] if image.shape[0] == 1 else image.transpose(1, 2, 0)
    if image.ndim not in (2, 3):
        raise DataError(f"samples: an image must have shape (H, W), (1, H, W) or (3, H, W); got {image.shape}")
    image = np.nan_to_num(image.astype(np.float64), posinf=0.0, neginf=0.0)
    top = max(image.max(), 1.0) if image.min() >= 0 else np.abs(image).max()
    return np.clip(image / top, 0, 1), str(label[()]) if label.ndim == 0 else str(label.tolist())


def sample_sheet(dataset: Any, path: str | os.PathLike[str], *, count: int = 60, columns: int = 10) -> None:
    """Draw ``count`` samples of ``dataset``, spread evenly over it, with their labels, into ``path``.

    Args:
        dataset: of (image, label), images (H, W), (1, H, W) or (3, H, W).
        path: the picture to write; its ending (.png, .pdf, .svg) says the format.
        count: samples to draw.
        columns: samples in a row.

    Raises:
        DataError: samples are not such images, or there are none.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    indices = _picked(dataset, count)
    if not indices:
        raise DataError("sample_sheet: the data set must have samples; got none")
    rows = -(-len(indices) // columns)
    figure = Figure(figsize=(0.9 * columns, 1.1 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    names = getattr(dataset, "classes", None)
    cells = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axes in cells:
        axes.axis("off")
    for axes, index in zip(cells, indices, strict=False):
        image, label = _picture(dataset[index])
        if names is not None and label.isdigit() and int(label) < len(names):
            label = names[int(label)]
        axes.imshow(image, cmap="gray_r" if image.ndim == 2 else None, vmin=0, vmax=1)
        axes.set_title(f"{label}  #{index}", fontsize=7)
    figure.savefig(path, dpi=120)


def sample_text(dataset: Any, *, count: int = 8, width: int = 100) -> str:
    """``count`` samples of ``dataset``, spread evenly over it, drawn in characters with their labels.

    Args:
        dataset: as in :func:`sample_sheet`.
        count: samples to draw.
        width: characters in a line.
    """
    blocks: list[list[str]] = []
    for index in _picked(dataset, count):
        image, label = _picture(dataset[index])
        if image.ndim == 3:
            image = image.mean(2)
        step = -(-image.shape[1] // 32)  # a wide picture is thinned
        image = image[::step, ::step]
        if image.shape[0] > 16:  # characters are about twice as high as wide
            image = image[: len(image) // 2 * 2].reshape(-1, 2, image.shape[1]).mean(1)
        else:
            image = image.repeat(2, axis=1)
        shades = np.minimum((image * len(_SHADES)).astype(int), len(_SHADES) - 1)
        wide = max(shades.shape[1], len(label) + 12)
        drawn = ("".join(_SHADES[shade] for shade in row).ljust(wide) for row in shades)
        blocks.append([f"{label}  #{index}".ljust(wide), *drawn])
    if not blocks:
        return "(no samples)"
    per_line = max(1, width // (max(len(block[0]) for block in blocks) + 2))
    lines: list[str] = []
    for start in range(0, len(blocks), per_line):
        group = blocks[start : start + per_line]
        height = max(map(len, group))
        padded = [block + [" " * len(block[0])] * (height - len(block)) for block in group]
        lines += ["  ".join(parts).rstrip() for parts in zip(*padded, strict=True)] + [""]
    return "\n".join(lines)
