"""The checks find every fault that was put in, and none that was not."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from rawgrad.engine.data import Digits, ImageFolder, Subset, TensorDataset, check_data, sample_sheet, sample_text
from rawgrad.kernels._errors import ArgumentError, DataError


def sound(count=40, seed=0):
    images = np.random.default_rng(seed).random((count, 1, 4, 4)).astype(np.float32)
    return images, np.arange(count) % 4


def problems(images, labels, **options):
    return check_data(TensorDataset(images, labels), **options).problems


def test_nothing_wrong():
    report = check_data({"train": TensorDataset(*sound()), "test": TensorDataset(*sound(20, 1))})
    assert report.problems == []
    train, test = report.splits
    assert (train.name, train.count, train.shapes, train.dtypes) == ("train", 40, {(1, 4, 4): 40}, {"float32": 40})
    assert test.histogram == {0: 5, 1: 5, 2: 5, 3: 5}
    images, _ = sound()
    assert train.low == images.min() and train.high == images.max()
    assert train.mean == pytest.approx(images.astype(np.float64).mean(), rel=1e-12)
    assert "No problems found." in str(report) and "1x4x4" in str(report)


def test_bundled_digits_are_sound():
    assert check_data(Digits.splits()).problems == []


def test_values():
    images, labels = sound()
    images[3, 0, 1, 1] = np.nan
    images[4, 0, 1, 2] = np.inf
    assert problems(images, labels) == ["data: 2 values are NaN or infinite"]
    assert check_data(TensorDataset(images, labels)).splits[0].high <= 1
    images, labels = sound()
    images[0, 0, 0, 0] = 255
    assert "values must be from 0 to 1; found" in problems(images, labels)[0]
    assert problems(images, labels, value_range=None) == []
    assert "all values are 0" in problems(np.zeros((1, 2, 2)), np.zeros(1, int))[0]


def test_labels():
    images, labels = sound()
    labels[7] = 9
    assert problems(images, labels, classes=4) == ["data: labels must be from 0 to 3; found [9]"]
    assert problems(images, labels) == ["data: no samples of class 4, 5, 6, 7, 8"]
    assert problems(images, labels - 1, classes=9)[0] == "data: labels must be from 0 to 8; found [-1]"
    assert problems(images, labels + 0.5) == ["data: labels are not whole numbers"]


def test_copies():
    images, labels = sound()
    other, other_labels = sound(12, 1)
    other[5], other[6] = images[31], images[2]
    splits = {"train": TensorDataset(images, labels), "test": TensorDataset(other, other_labels)}
    assert check_data(splits).problems == [
        "test: 2 samples have the same image as one in train: 5 = train 31, 6 = train 2"
    ]
    images[8] = images[4]  # with the same label: not wrong
    assert problems(images, labels) == []
    images[9] = images[4]
    assert problems(images, labels) == ["data: 1 samples have the image of another but not its label: 9 = 4"]


def test_copies_far_apart():
    images, labels = sound(2500)
    images[2400] = images[3]
    assert problems(images, (labels + (np.arange(2500) == 2400)) % 4) == [
        "data: 1 samples have the image of another but not its label: 2400 = 3"
    ]


def test_splits_that_differ():
    images, labels = sound()
    splits = {
        "train": TensorDataset(images, labels),
        "test": TensorDataset(images[:, :, :2].astype(np.float64), labels),
        "none": Subset(TensorDataset(images, labels), []),
    }
    assert check_data(splits).problems == [
        "none: no samples",
        "the splits differ in shapes: train (1, 4, 4), test (1, 2, 4)",
        "the splits differ in dtypes: train float32, test float64",
    ]


def test_pictures(tmp_path):
    for name in ("a", "b", "c"):
        (tmp_path / name).mkdir()
    Image.new("L", (4, 4), 9).save(tmp_path / "a" / "1.png")
    Image.new("L", (5, 4), 200).save(tmp_path / "a" / "2.png")
    (tmp_path / "b" / "1.png").write_bytes(b"no picture")
    found = check_data(ImageFolder(tmp_path)).problems
    assert len(found) == 3
    assert found[0].startswith("data: 1 samples cannot be read; the first is 2: image:")
    assert found[1] == "data: images of more than one shape: (1, 4, 4) (1 times), (1, 4, 5) (1 times)"
    assert found[2] == "data: no samples of class 1, 2"


def test_the_report_prints_its_problems():
    images, labels = sound()
    images[0, 0, 0, 0] = np.nan
    text = str(check_data({"train": TensorDataset(images, labels)}, classes=5))
    assert "2 problems:" in text and "  - train: 1 values are NaN" in text and "no samples of class 4" in text
    with pytest.raises(ArgumentError):
        check_data({})


@pytest.mark.parametrize("count", [1, 7, 1000])
def test_sample_sheet(tmp_path, count):
    path = tmp_path / "sheet.png"
    sample_sheet(TensorDataset(*sound()), path, count=count, columns=5)
    with Image.open(path) as picture:
        rows = -(-min(count, 40) // 5)
        assert picture.size == (540, int(1.1 * rows * 120))
        assert np.asarray(picture.convert("L")).std() > 10


def test_sample_text():
    images = np.zeros((2, 1, 3, 3), np.float32)
    images[0, 0, 1] = 1
    images[1, 0, :, 1] = 0.5
    lines = sample_text(TensorDataset(images, np.array([7, 2])), count=2).splitlines()
    assert lines[0].split() == ["7", "#0", "2", "#1"]
    second = lines[0].index("2")
    assert [line[:6] for line in lines[2:3]] == ["@@@@@@"]
    assert [line[second + 2 : second + 4] for line in lines[1:4]] == ["++"] * 3
    assert sample_text(TensorDataset(images[:0], np.zeros(0))) == "(no samples)"


def test_samples_that_cannot_be_drawn(tmp_path):
    with pytest.raises(DataError, match=r"must have shape.*got \(4,\)"):
        sample_sheet(TensorDataset(np.zeros((3, 4)), np.zeros(3)), tmp_path / "x.png")
    with pytest.raises(DataError, match="must have samples"):
        sample_sheet(TensorDataset(np.zeros((0, 4, 4)), np.zeros(0)), tmp_path / "x.png")
    with pytest.raises(ArgumentError, match="count must be"):
        sample_text(TensorDataset(*sound()), count=0)
