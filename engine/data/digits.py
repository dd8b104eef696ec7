"""Digits: the 1,797 real handwritten digits of 8×8 pixels that come with scikit-learn.

Source: E. Alpaydin and C. Kaynak, "Optical Recognition of Handwritten Digits", UCI, 1998 (its test
part).  There is no official split of these; ours is stratified and always the same.
"""

from __future__ import annotations

from types import MappingProxyType

import numpy as np

from ...kernels._errors import ArgumentError
from .dataset import SPLIT_STREAM, TensorDataset, random_order

#: Samples of each split.
COUNTS = {"train": 1257, "validation": 270, "test": 270}
_SEED = 1797


class Digits(TensorDataset):
    """One split of the bundled digits; ``digits[i]`` is (image, label).

    Args:
        split: ``"train"`` (1,257 samples), ``"validation"`` (270) or ``"test"`` (270); each has each
            digit in the same proportion.
        raw: leave pixels at 0 to 16 instead of scaling them to [0, 1].

    Attributes:
        images: (N, 1, 8, 8) float32, in [0, 1], or whole numbers 0 to 16 if ``raw``.
        labels: (N,) int64, 0 to 9; ``targets`` is another name for them.
        classes: the names of the ten classes.
        frame: how :func:`~rawgrad.data.prepare_digit` has to frame a picture to be like these.
        split: which split this is.

    Raises:
        ArgumentError: there is no such split.
    """

    classes = tuple("0123456789")
    frame = MappingProxyType({"size": 8, "fill": 1.0, "centre": 0.5})

    def __init__(self, split: str = "train", *, raw: bool = False) -> None:
        if split not in COUNTS:
            raise ArgumentError(f"Digits: split must be one of {', '.join(map(repr, COUNTS))}; got {split!r}")
        from sklearn.datasets import load_digits

        pixels, labels = load_digits(return_X_y=True)
        first = sum(list(COUNTS.values())[: list(COUNTS).index(split)])
        chosen = stratified_order(labels, _SEED)[first : first + COUNTS[split]]
        self.images = pixels[chosen].reshape(-1, 1, 8, 8).astype(np.float32)
        if not raw:
            self.images /= np.float32(16)
        self.labels = self.targets = labels[chosen].astype(np.int64)
        self.split = split
        super().__init__(self.images, self.labels)

    @classmethod
    def splits(cls, *, raw: bool = False) -> dict[str, Digits]:
        """All three splits by name."""
        return {split: cls(split, raw=raw) for split in COUNTS}


def stratified_order(labels: np.ndarray, seed: int) -> np.ndarray:
    """A random order of the samples in which every long stretch has the classes in equal proportion.

    The members of a class, in random order, take places evenly spaced over the whole; the places of
    all classes are then sorted.

    Args:
        labels: (N,) integers.
        seed: the same seed gives the same order.

    Returns:
        (N,) int64, a permutation.
    """
    shuffled = random_order(seed, SPLIT_STREAM, len(labels))
    place = np.empty(len(labels))
    for label in np.unique(labels):
        members = shuffled[labels[shuffled] == label]
        place[members] = (np.arange(len(members)) + 0.5) / len(members)
    return shuffled[np.argsort(place[shuffled], kind="stable")]
