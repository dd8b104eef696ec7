"""How good a trained network is: on images of its data set, and on pictures made of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ..autograd import Tensor
from ..autograd import functional as F
from ..engine.metrics import confusion_matrix
from .reading import Reader, share_read
from .training import arrays_of, limited


@dataclass(frozen=True)
class Report:
    """The result of :func:`evaluate`; printing it shows all of it.

    Attributes:
        count: images.
        right: images read right.
        loss: mean over the images; ``loss_name`` says of what.
        confusion: (K, K), how often each true class (row) was read as each (column).
        outside: images that a network with one output gave a number that is no class.
        classes: their names.
    """

    count: int
    right: int
    loss: float
    loss_name: str
    confusion: np.ndarray
    outside: int
    classes: list[str]

    @property
    def accuracy(self) -> float:
        """The share of images read right."""
        return self.right / self.count if self.count else float("nan")

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
        lines += ["", f"{self.loss_name} {self.loss:.4f}"]
        lines += [f"accuracy {100 * self.accuracy:.2f} % ({self.right:,} of {self.count:,} images)"]
        return "\n".join(lines)


def evaluate(reader: Reader, data: Any) -> Report:
    """Read all images of ``data``, a split of the data set that the network was trained on, or a part of one."""
    images, labels = arrays_of(data)
    outputs = reader.outputs(images)
    digits = reader.digits(outputs)
    scores, truth = Tensor(outputs.astype(np.float64)), Tensor(labels)
    if reader.gives_number:
        name, loss = "squared error", F.mse_loss(scores, Tensor(labels[:, None].astype(np.float64)))
    else:
        name, loss = "cross-entropy", F.cross_entropy(scores, truth)
    classes = reader.info.classes
    inside = (digits >= 0) & (digits < len(classes))
    return Report(
        count=len(labels),
        right=int((digits == labels).sum()),
        loss=loss.item(),
        loss_name=name,
        confusion=confusion_matrix(digits[inside], labels[inside], len(classes)),
        outside=int((~inside).sum()),
        classes=classes,
    )


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
