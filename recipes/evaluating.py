"""How good a network is on its data set, a folder of pictures, or digits made into pictures; what its layers do."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ..autograd import Tensor
from ..autograd import functional as F
from ..engine.data import ImageFolder
from ..engine.metrics import confusion_matrix
from ..engine.trace import Trace
from ..kernels._errors import DataError
from .pictures import draw_confusion, draw_digits, errors_first
from .reading import Reader, share_read
from .training import arrays_of, limited


@dataclass(frozen=True)
class Report:
    """The result of :func:`evaluate`; printing it shows what it comes to.

    Attributes:
        images: as the network got them, (N, 1, S, S) float32.
        truth: the true class of each image, (N,) int64.
        read: the class that was read, (N,) int64; a network with one output may give a number that is none.
        losses: of each image, (N,) float64; ``loss_name`` says what they are.
        probabilities: of the class that was read, (N,) float64; None for a network with one output.
        classes: their names.
        names: of the images; empty: they are numbered.
    """

    images: np.ndarray
    truth: np.ndarray
    read: np.ndarray
    losses: np.ndarray
    loss_name: str
    probabilities: np.ndarray | None
    classes: list[str]
    names: list[str] = field(default_factory=list)

    @property
    def count(self) -> int:
        """Images."""
        return len(self.truth)

    @property
    def right(self) -> int:
        """Images read right."""
        return int((self.read == self.truth).sum())

    @property
    def accuracy(self) -> float:
        """The share of images read right."""
        return self.right / self.count if self.count else float("nan")

    @property
    def loss(self) -> float:
        """The mean over the images."""
        return float(self.losses.mean()) if self.count else float("nan")

    @property
    def _inside(self) -> np.ndarray:
        return (self.read >= 0) & (self.read < len(self.classes))

    @property
    def outside(self) -> int:
        """Images that a network with one output gave a number that is no class."""
        return int((~self._inside).sum())

    @cached_property
    def confusion(self) -> np.ndarray:
        """(K, K) int64, how often each true class (row) was read as each (column)."""
        return confusion_matrix(self.read[self._inside], self.truth[self._inside], len(self.classes))

    @cached_property
    def order(self) -> np.ndarray:
        """Mistakes first, the highest loss before the others: (N,) int64, indices of the images."""
        return errors_first(self.truth, self.read, self.losses)

    def mistakes(self, count: int = 5) -> list[str]:
        """One line for each of the ``count`` mistakes of the highest loss."""
        lines = []
        for index in map(int, self.order[: min(count, self.count - self.right)]):
            name = self.names[index] if self.names else f"image {index}"
            sure = "" if self.probabilities is None else f" ({100 * self.probabilities[index]:.1f} %)"
            found = int(self.read[index])
            found_name = self.classes[found] if 0 <= found < len(self.classes) else str(found)
            lines.append(f"{name}: {self.classes[self.truth[index]]} read as {found_name}{sure}")
        return lines

    def worst(self, count: int = 3) -> list[str]:
        """One line for each of the ``count`` classes of which the smallest share was read right."""
        totals = self.confusion.sum(1)
        shares = np.where(totals, self.confusion.diagonal() / np.maximum(totals, 1), np.inf)
        lines = []
        for index in np.argsort(shares, kind="stable")[:count]:
            if shares[index] >= 1:  # without mistakes, or without images
                break
            wrong = self.confusion[index].copy()
            wrong[index] = 0
            taken = [f"{self.classes[j]} ({wrong[j]}x)" for j in np.argsort(-wrong, kind="stable")[:2] if wrong[j]]
            lines.append(
                f"{self.classes[index]}: {100 * shares[index]:.2f} % of {totals[index]} right, "
                f"taken for {', '.join(taken)}"
            )
        return lines

    def __str__(self) -> str:
        cells = [["", *self.classes]] + [
            [name, *(str(n) if n else "." for n in row)]
            for name, row in zip(self.classes, self.confusion.tolist(), strict=True)
        ]
        width = max(len(cell) for row in cells for cell in row) + 1
        lines = ["confusion matrix: true class down, read as across"]
        lines += ["".join(cell.rjust(width) for cell in row) for row in cells]
        if self.outside:
            lines.append(f"not in it: {self.outside} images for which the number was no class")
        if worst := self.worst():
            lines += ["", "worst classes", *(f"  {line}" for line in worst)]
        if mistakes := self.mistakes():
            lines += ["", "worst mistakes", *(f"  {line}" for line in mistakes)]
        lines += ["", f"{self.loss_name} {self.loss:.4f}"]
        lines += [f"accuracy {100 * self.accuracy:.2f} % ({self.right:,} of {self.count:,} images)"]
        return "\n".join(lines)


def evaluate(reader: Reader, data: Any) -> Report:
    """Read all images of ``data``, a split of the data set that the network was trained on, or a part of one."""
    return evaluate_arrays(reader, *arrays_of(data))


def evaluate_arrays(reader: Reader, images: np.ndarray, labels: np.ndarray, names: list[str] | None = None) -> Report:
    """Read ``images``, prepared for the network, and compare with the truth.

    Args:
        reader: reads.
        images: (N, 1, S, S) float32.
        labels: (N,) int64.
        names: of the images, if they have any.
    """
    outputs = reader.outputs(images)
    read = reader.digits(outputs)
    scores, probabilities = Tensor(outputs.astype(np.float64)), None
    if reader.gives_number:
        name, losses = "squared error", np.square(outputs[:, 0].astype(np.float64) - labels)
    else:
        name, losses = "cross-entropy", F.cross_entropy(scores, Tensor(labels), reduction="none").numpy()
        probabilities = F.softmax(scores, 1).numpy()[np.arange(len(read)), read]
    return Report(images, labels, read, losses, name, probabilities, reader.info.classes, names or [])


def evaluate_folder(reader: Reader, folder: Path, limit: int | None = None) -> tuple[Report, int]:
    """Read the pictures in ``folder``, which holds one folder for each class, or the first ``limit`` of them.

    What cannot be read is said on stderr and left out.

    Returns:
        the report of the rest, and how many were left out.

    Raises:
        DataError: there are no such folders, others too, or nothing in them that can be read.
    """
    found, classes = ImageFolder(folder), reader.info.classes
    if others := [name for name in found.classes if name not in classes]:
        raise DataError(
            f"evaluate: {folder} must hold one folder of pictures per class, named {', '.join(classes)}; "
            f"got one named {others[0]!r}"
        )
    images, labels, names = [], [], []
    samples = found.samples[:limit]
    for path, index in samples:
        try:
            images.append(reader.prepared(path))
        except DataError as error:
            print(f"rawgrad: error: {error}", file=sys.stderr)
            continue
        labels.append(classes.index(found.classes[index]))
        names.append(str(path))
    if not images:
        raise DataError(f"evaluate: {folder} must hold pictures of digits; got none that can be read")
    return evaluate_arrays(reader, np.stack(images), np.array(labels), names), len(samples) - len(images)


def draw_report(report: Report, path: Path, *, most: int = 60) -> None:
    """Draw the confusion matrix and the ``most`` worst images, mistakes first, into ``path`` (.png, .pdf or .svg)."""
    from .curves import figure

    made, (left, right) = figure(2, 6.5)
    draw_confusion(left, report.confusion, report.classes)
    shown = report.order[:most]
    sure = None if report.probabilities is None else report.probabilities[shown]
    draw_digits(right, report.images[shown], report.truth[shown], report.read[shown], sure, report.classes)
    wrong = report.count - report.right
    heading = f"the worst {most} of {wrong:,} mistakes" if wrong > most else f"{wrong} mistakes, then what came close"
    left.set_title(f"{100 * report.accuracy:.2f} % of {report.count:,} images read right", fontsize=10)
    right.set_title(f"{heading} (true→read, how sure)", fontsize=10)
    made.savefig(path, dpi=110)


def evaluate_pictures(reader: Reader, data: Any, count: int) -> None:
    """Print, for each way of making a picture of a digit, the share of the first ``count`` read right."""
    images, labels = arrays_of(limited(data, count))
    pixels = np.rint(255 * images[:, 0]).astype(np.uint8)
    print(f"{len(pixels):,} pictures of each kind", flush=True)
    shares = []
    for name, share in share_read(reader, pixels, labels):
        shares.append(share)
        print(f"{name:40} {100 * share:6.2f} % read right", flush=True)
    print(f"{'worst':40} {100 * min(shares):6.2f} %")


def trace(reader: Reader, data: Any, count: int, training: bool = False) -> Trace:
    """What goes through each layer for the first ``count`` images of ``data``; see :func:`rawgrad.nn.trace`.

    Args:
        reader: has the network.
        data: as in :func:`evaluate`.
        count: images.
        training: whether in training mode.
    """
    images, _ = arrays_of(limited(data, count))
    batch = Tensor(images).to(reader.device)
    reader.model.train(training)
    try:
        reader.model.trace(batch)  # first calls compile kernels
        return reader.model.trace(batch)
    finally:
        reader.model.eval()
