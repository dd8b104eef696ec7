"""Transforms of images: what each does, and that it does it to a sample whatever batch that is in."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from rawgrad.engine.data import (
    CenterCrop,
    Compose,
    DataLoader,
    Draws,
    Normalize,
    Pad,
    RandomCrop,
    RandomHorizontalFlip,
    RandomRotation,
    RandomShift,
    RandomVerticalFlip,
    TensorDataset,
)
from rawgrad.kernels._errors import ArgumentError, ShapeError
from rawgrad.kernels.dropout import philox

sys.path.insert(0, str(Path(__file__).parent))  # the processes get it too
from _reading import IMAGES, Pictures

LABELS = np.arange(12)
ALL = Compose(
    [
        RandomShift(2, value=0.5),
        RandomRotation(30),
        RandomHorizontalFlip(),
        RandomVerticalFlip(0.3),
        RandomCrop((4, 5), padding=1),
        Normalize([0.1, 0.2], [0.3, 0.4]),
    ]
)


def draws(count=12, seed=1, epoch=0):
    return Draws(seed, epoch, np.arange(count))


class TestDraws:
    def test_of_a_sample_alone_and_among_others(self):
        together = draws(300).stream(3).uniform(6)
        assert together.shape == (300, 6) and 0 <= together.min() and together.max() < 1
        for index in (0, 7, 255, 299):
            alone = Draws(1, 0, np.array([index])).stream(3).uniform(6)
            assert alone.tolist() == [together[index].tolist()]

    def test_they_are_philox_words(self):
        # Sample 2 counts its blocks from 2 · 256 on, under the offset of epoch 5 and stream 3.
        offset = np.array([2**63 | 5 << 24 | 3], np.uint64)
        words = philox(9, offset, 8, first_block=2 * 256)
        assert Draws(9, 5, np.array([2]), 3).uniform(8).tolist() == [(words / 2.0**32).tolist()]

    def test_seed_epoch_and_stream_tell_them_apart(self):
        several = [Draws(*key).uniform() for key in ((1, 0, LABELS), (2, 0, LABELS), (1, 1, LABELS), (1, 0, LABELS, 1))]
        inner = [draws().stream(0).stream(1).uniform(), draws().stream(1).stream(0).uniform()]
        assert len({values.tobytes() for values in several + inner}) == 6

    def test_they_are_uniform(self):
        values = draws(4000).uniform(5)
        counts = np.histogram(values, 20, (0, 1))[0]
        assert abs(counts - 1000).max() < 5 * np.sqrt(1000)
        assert abs(np.corrcoef(values.T) - np.eye(5)).max() < 5 / np.sqrt(4000)
        assert sorted(set(draws(200).integers(-1, 2).ravel().tolist())) == [-1, 0, 1]


def test_a_sample_alone_is_changed_as_in_a_batch():
    before = IMAGES.copy()
    together = ALL(IMAGES, draws())
    assert together.shape == (12, 2, 4, 5) and together.dtype == np.float32
    for index in range(12):
        alone = ALL(IMAGES[index : index + 1], Draws(1, 0, np.array([index])))
        assert np.array_equal(alone[0], together[index])
    assert np.array_equal(IMAGES, before)  # untouched


def test_normalize():
    x = Normalize((1, 2), (4, 5))(IMAGES, draws())
    np.testing.assert_allclose(x[:, 1], (IMAGES[:, 1] - 2) / 5, rtol=1e-6)
    with pytest.raises(ArgumentError, match="std must be above 0"):
        Normalize(0, 0)
    with pytest.raises(ArgumentError, match="floating; got uint8"):
        Normalize(0, 1)(np.zeros((1, 1, 2, 2), np.uint8), draws(1))


def test_pad():
    x = Pad((1, 2, 3, 4), 9)(IMAGES, draws())
    assert x.shape == (12, 2, 5 + 3 + 4, 7 + 1 + 2)
    assert np.array_equal(x[:, :, 3:-4, 1:-2], IMAGES) and (x[:, :, :3] == 9).all() and (x[:, :, :, 0] == 9).all()
    with pytest.raises(ArgumentError, match="none negative"):
        Pad(-1)


def test_crop():
    assert np.array_equal(CenterCrop((3, 3))(IMAGES, draws()), IMAGES[:, :, 1:4, 2:5])
    crop, places = RandomCrop((4, 5)), set()
    for image, part in zip(IMAGES, crop(IMAGES, draws()), strict=True):
        found = [(i, j) for i in range(2) for j in range(3) if np.array_equal(image[:, i : i + 4, j : j + 5], part)]
        assert len(found) == 1
        places.add(found[0])
    assert len(places) >= 4  # of 6
    with pytest.raises(ShapeError, match=r"at least 6x2; got \(5, 7\)"):
        RandomCrop((6, 2))(IMAGES, draws())


def test_shift():
    x = RandomShift((1, 2), value=7)(IMAGES, draws())
    assert x.shape == IMAGES.shape
    moved = set()
    for image, other in zip(IMAGES, x, strict=True):
        wide = np.pad(image, ((0, 0), (1, 1), (2, 2)), constant_values=7)
        found = [(i, j) for i in range(3) for j in range(5) if np.array_equal(wide[:, i : i + 5, j : j + 7], other)]
        assert len(found) == 1
        moved.add(found[0])
    assert len(moved) >= 5  # of 15


def test_flip():
    for flip, axis in ((RandomHorizontalFlip, 2), (RandomVerticalFlip, 1)):
        assert np.array_equal(flip(1.0)(IMAGES, draws()), np.flip(IMAGES, axis + 1))
        assert np.array_equal(flip(0.0)(IMAGES, draws()), IMAGES)
        x = flip()(IMAGES, draws())
        mirrored = [np.array_equal(np.flip(image, axis), other) for image, other in zip(IMAGES, x, strict=True)]
        assert 2 <= sum(mirrored) <= 10
    with pytest.raises(ArgumentError, match="from 0 to 1; got 2"):
        RandomHorizontalFlip(2)


def test_each_transform_of_several_has_draws_of_its_own():
    twice = Compose([RandomHorizontalFlip(), RandomHorizontalFlip()])(IMAGES, draws())
    assert not np.array_equal(twice, IMAGES)  # the same draws would turn all of them back


def test_rotation():
    square = IMAGES[:, :, :5, :5]
    for degrees, turns in ((90, 1), (180, 2), (-90, 3), (0, 0)):  # counter-clockwise, as np.rot90 turns
        x = RandomRotation((degrees, degrees))(square, draws())
        np.testing.assert_allclose(x, np.rot90(square, turns, (2, 3)), atol=1e-6)
    x = RandomRotation(20)(square, draws())
    assert len({image.tobytes() for image in x}) == 12 and x.dtype == np.float32
    # What turns out of the picture is lost, what comes in is `value`, the middle stays.
    x = RandomRotation((45, 45), value=5)(square, draws())
    assert (x[:, :, 0, 0] > 4).all() and np.allclose(x[:, :, 2, 2], square[:, :, 2, 2])
    with pytest.raises(ArgumentError, match="two in order"):
        RandomRotation((2, 1))


def batches(**options):
    loader = DataLoader(options.pop("dataset", Pictures()), 5, shuffle=True, seed=1, **options)
    return [[(x.numpy().tobytes(), y.numpy().tolist()) for x, y in loader] for _ in range(2)]


def test_through_the_loader():
    expected = batches(transform=ALL)
    assert expected[0] != expected[1]  # each epoch has its own draws
    arrays = TensorDataset(IMAGES, LABELS)
    assert expected == batches(dataset=arrays, transform=ALL) == batches(dataset=arrays, transform=ALL, num_workers=2)
    assert expected == batches(transform=ALL, num_workers=3)
    assert expected != batches(sample_transform=ALL)  # its own stream
    assert batches(sample_transform=ALL) == batches(sample_transform=ALL, num_workers=2)
    assert batches(sample_transform=ALL, transform=ALL, num_workers=1, processes=True) == batches(
        sample_transform=ALL, transform=ALL
    )


def test_processes_take_over_the_seed_of_a_state():
    options = {"num_workers": 1, "processes": True, "transform": ALL}
    with DataLoader(Pictures(), 5, seed=1, **options) as loader, DataLoader(Pictures(), 5, seed=2, **options) as other:
        state = loader.state_dict()
        first = [x.numpy().tobytes() for x, _ in loader]
        assert first != [x.numpy().tobytes() for x, _ in other]
        other.load_state_dict(state)
        assert first == [x.numpy().tobytes() for x, _ in other]


def test_members_of_dicts_and_bare_arrays():
    class Named(Pictures):
        def __getitem__(self, index):
            return {"a": IMAGES[index], "b": IMAGES[index]}

    flip = RandomHorizontalFlip(1.0)
    for options in ({"transform": {"b": flip}}, {"sample_transform": {"b": flip}}):
        (batch,) = DataLoader(Named(), 12, **options)
        assert np.array_equal(batch["a"].numpy(), IMAGES) and np.array_equal(batch["b"].numpy(), IMAGES[..., ::-1])
    (batch,) = DataLoader(list(IMAGES), 12, transform=lambda images, draws: images + draws.indices[:, None, None, None])
    np.testing.assert_array_equal(batch.numpy(), IMAGES + LABELS[:, None, None, None])
