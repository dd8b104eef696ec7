"""P14: a look at a data set, the machine's and the human's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..engine.data import MNIST, Digits, ImageFolder, check_data, sample_sheet, sample_text
from ..kernels._errors import DataError
from .pictures import check_path


def splits_of(source: str, data_dir: Path | None) -> dict[str, Any]:
    """The splits of ``"digits"``, of ``"mnist"`` (from ``data_dir``), or of a folder.

    A folder is MNIST if its files are in it, and else has one folder of pictures per class.
    """
    if source == "digits":
        return dict(Digits.splits())
    if source == "mnist":
        return dict(MNIST.splits(data_dir, download=data_dir is None))
    folder = Path(source)
    if not folder.exists():
        raise DataError(f"data: SOURCE must be digits, mnist or a folder; there is no {source}")
    try:
        return dict(MNIST.splits(folder))
    except DataError as mnist:
        if folder.is_file() or any(folder.glob("**/*-ubyte*")):
            raise
        try:
            return {"all": ImageFolder(folder)}
        except DataError as pictures:
            raise DataError(f"data: {source} is no data set: {pictures}") from mnist


def inspect_data(source: str, data_dir: Path | None, out: Path | None, samples: int | None) -> int:
    """Print the machine's check and a few samples, or draw more of them into ``out``.

    Returns:
        0, or 1 if the check found problems.
    """
    if out is not None:
        check_path("data", out)
    splits = splits_of(source, data_dir)
    report = check_data(splits)
    first = next(iter(splits.values()))
    # What cannot be read is in the report; the eye gets the rest.
    shown = _Readable(first, {index for index, _ in report.splits[0].unreadable})
    if len(shown):
        if out is None:
            print(sample_text(shown, count=8 if samples is None else samples))
        else:
            sample_sheet(shown, out, count=60 if samples is None else samples)
            print(f"samples drawn into {out}\n")
    print(report)
    return 1 if report.problems else 0


class _Readable:
    """A data set without certain samples."""

    def __init__(self, dataset: Any, without: set[int]) -> None:
        self.dataset, self.indices = dataset, [i for i in range(len(dataset)) if i not in without]
        if hasattr(dataset, "classes"):
            self.classes = dataset.classes

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Any:
        return self.dataset[self.indices[index]]
