"""The bundled digits: nothing lost, the split fixed and stratified."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from rawgrad.engine.data import Digits
from rawgrad.kernels._errors import ArgumentError


def test_the_splits_are_all_of_the_digits():
    from sklearn.datasets import load_digits

    splits = Digits.splits(raw=True)
    assert {name: len(split) for name, split in splits.items()} == {"train": 1257, "validation": 270, "test": 270}
    rows = [
        (image.tobytes(), int(label))
        for split in splits.values()
        for image, label in zip(split.images.reshape(-1, 64), split.labels, strict=True)
    ]
    pixels, labels = load_digits(return_X_y=True)
    assert sorted(rows) == sorted((p.tobytes(), int(y)) for p, y in zip(pixels.astype(np.float32), labels, strict=True))


def test_stratified():
    totals = np.array([178, 182, 177, 183, 181, 182, 181, 179, 174, 180])  # counted once by hand
    for split in Digits.splits().values():
        counts = np.bincount(split.labels, minlength=10)
        assert (abs(counts - totals * len(split) / 1797) < 1.5).all()


def test_scaling_and_types():
    scaled, raw = Digits("test"), Digits("test", raw=True)
    assert scaled.images.shape == (270, 1, 8, 8) and scaled.images.dtype == np.float32
    assert scaled.labels.dtype == np.int64 and scaled.targets is scaled.labels
    assert raw.images.max() == 16 and np.array_equal(scaled.images * 16, raw.images)
    image, label = scaled[3]
    assert np.array_equal(image, scaled.images[3]) and label == scaled.labels[3]


def test_the_split_never_changes():
    digest = hashlib.sha256(b"".join(Digits(s).labels.tobytes() for s in ("train", "validation", "test"))).hexdigest()
    assert digest == "960246231a8e5a4994a82af89df5fbed5faf22f4766959c8bc5f53e2333bce0d"


def test_unknown_split():
    with pytest.raises(ArgumentError, match="'train', 'validation', 'test'; got 'val'"):
        Digits("val")
