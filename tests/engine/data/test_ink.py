"""Photographs: uneven light, noise, pale ink, specks; and paper on which there is nothing."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image, ImageDraw

from rawgrad.engine.data import prepare_digit
from rawgrad.engine.data.ink import ink_of
from rawgrad.kernels._errors import DataError

HEIGHT, WIDTH = 300, 400


def two() -> np.ndarray:
    """A 2 in strokes of 14 pixels, 140 high, not in the middle of the sheet: (H, W) of 0 to 1."""
    sheet = Image.new("L", (WIDTH, HEIGHT))
    draw = ImageDraw.Draw(sheet)
    draw.arc((160, 80, 250, 170), 180, 40, 255, 14)
    draw.line((240, 150, 165, 215), 255, 14)
    draw.line((160, 213, 256, 213), 255, 14)
    return np.asarray(sheet, np.float64) / 255


TWO = two()
CLEAN = prepare_digit(TWO)[0]


def light(shade: float, angle: float) -> np.ndarray:
    """Light on a sheet: 1 in one corner, ``1 - shade`` in the opposite one, (H, W)."""
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH]
    along = np.cos(angle) * x / WIDTH + np.sin(angle) * y / HEIGHT
    return 1 - shade * (along - along.min()) / np.ptp(along)


def photograph(ink: np.ndarray, pen=(20, 30, 110), paper=(245, 240, 230), shade=0.0, noise=0.0, specks=0) -> io.BytesIO:
    """A JPEG file of ``ink`` (H, W) on paper."""
    rng = np.random.default_rng(0)
    picture = np.array(paper) + (np.array(pen) - np.array(paper)) * ink[:, :, None]
    for _ in range(specks):
        y, x = rng.integers(0, HEIGHT - 4), rng.integers(0, WIDTH - 4)
        picture[y : y + 3, x : x + 3] = pen
    picture = picture * light(shade, rng.uniform(0, 6))[:, :, None] + rng.normal(0, noise, (HEIGHT, WIDTH, 1))
    file = io.BytesIO()
    Image.fromarray(np.clip(picture, 0, 255).astype(np.uint8)).save(file, "JPEG", quality=75)
    file.seek(0)
    return file


@pytest.mark.parametrize("settings", [
    {},
    {"noise": 8},
    {"noise": 20},
    {"shade": 0.4},
    {"shade": 0.6},
    {"shade": 0.4, "noise": 8},
    {"pen": (240, 240, 235), "paper": (40, 70, 50), "shade": 0.3, "noise": 6},  # chalk on a board
    {"pen": (150, 150, 150), "shade": 0.2, "noise": 6},  # a pencil
    {"specks": 5},
    {"specks": 5, "shade": 0.3, "noise": 8},
], ids=str)  # fmt: skip
def test_a_photograph_gives_what_the_drawing_gives(settings):
    result = prepare_digit(photograph(TWO, **settings))[0]
    nearest = min(np.abs(np.roll(result, (y, x), (0, 1)) - CLEAN).mean() for y in (-1, 0, 1) for x in (-1, 0, 1))
    assert nearest < 0.025  # a fifth of the pixels are ink; a digit one pixel off in size has 0.05


@pytest.mark.parametrize("shade", [0, 0.3, 0.6])
@pytest.mark.parametrize("noise", [0, 1, 3, 20])
def test_paper_alone_is_no_digit(shade, noise):
    with pytest.raises(DataError, match="without anything on its background"):
        prepare_digit(photograph(np.zeros_like(TWO), shade=shade, noise=noise))


def test_a_detached_stroke_is_no_speck():
    """The bar of a 5 that does not touch the rest: a tenth of the ink."""
    sheet = Image.new("L", (200, 200))
    draw = ImageDraw.Draw(sheet)
    draw.arc((60, 90, 140, 170), 230, 130, 255, 10)
    draw.line((95, 40, 130, 40), 255, 6)
    ink = ink_of(np.asarray(sheet, np.float32)[:, :, None] / 255, None, "5")
    assert ink[40, 110] > 0.9
    result = prepare_digit(sheet)[0]
    rows = np.flatnonzero((result > 0.15).any(1))
    assert rows[-1] - rows[0] >= 18 and result[rows[0] : rows[0] + 2].sum() > 2  # its end may be too faint to count


def test_a_speck_is_left_out_on_clean_paper():
    sheet = np.round(255 * TWO).astype(np.uint8)
    sheet[20:23, 30:33] = 255
    assert np.abs(prepare_digit(sheet)[0] - CLEAN).max() < 1e-6


def test_faint_writing_beside_a_strong_speck():
    """Which is full ink until it is left out."""
    sheet = np.round(0.2 * 255 * TWO).astype(np.uint8)
    sheet[20:23, 30:33] = 255
    assert np.abs(prepare_digit(sheet)[0] - CLEAN).max() < 0.03


def test_hairlines_in_noise():
    """Thinner than the squares over which noise is averaged, and hardly stronger than it."""
    rng = np.random.default_rng(0)
    sheet = np.full((100, 100), 200.0)
    sheet[20:80, 50] = 60
    result = prepare_digit(np.clip(sheet + rng.normal(0, 9, sheet.shape), 0, 255).astype(np.uint8))[0]
    rows = np.flatnonzero((result > 0.15).any(1))
    assert result.max() == 1 and 18 <= rows[-1] - rows[0] + 1 <= 21 and result[:, :11].max() < 0.05


def test_nothing_is_a_speck_in_a_small_picture():
    sheet = np.zeros((28, 28), np.float32)
    sheet[5:25, 10:14], sheet[5, 18] = 1, 1
    assert ink_of(sheet[:, :, None], None, "i")[5, 18] == 1


def test_even_paper_is_taken_as_it_is():
    """No surface is fitted where the border is of one colour: what is drawn up to it stays exact."""
    picture = np.full((64, 64, 1), 0.75, np.float32)
    picture[20:50, 30:40] = 0.25
    picture[40:64, 30:40] = 0.25
    ink = ink_of(picture, None, "1")
    assert set(np.unique(ink)) == {0.0, 1.0} and ink.sum() == 44 * 10
