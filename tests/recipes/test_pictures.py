"""The confusion matrix and the sheet of digits: what is written where, in which colour, and that it fits."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from rawgrad.kernels._errors import ArgumentError, ShapeError
from rawgrad.recipes.curves import figure
from rawgrad.recipes.pictures import draw_confusion, draw_digits, errors_first

MATRIX = np.array([[5, 0, 1], [0, 0, 0], [1, 2, 997]])


def drawn(draw, *arguments, size=(4.0, 4.0), **options):
    """The axes after ``draw`` and layout."""
    made, (axes,) = figure(1)
    made.set_size_inches(*size)
    draw(axes, *arguments, **options)
    made.draw_without_rendering()
    return axes


def extents(texts):
    return [text.get_window_extent() for text in texts]


class TestConfusion:
    def test_counts_stand_where_they_belong(self):
        axes = drawn(draw_confusion, MATRIX, ["a", "b", "c"])
        cells = {text.get_position(): text.get_text() for text in axes.texts if "%" not in text.get_text()}
        assert cells == {(0, 0): "5", (2, 0): "1", (0, 2): "1", (1, 2): "2", (2, 2): "997"}  # (column, row)
        shares = {text.get_position()[1]: text.get_text() for text in axes.texts if "%" in text.get_text()}
        assert shares == {0: "83.3 %", 2: "99.7 %"}  # none for a class without images
        assert [label.get_text() for label in axes.get_xticklabels()] == ["a", "b", "c"]
        assert (axes.get_ylabel(), axes.get_xlabel()) == ("true class", "read as")

    def test_right_is_blue_and_wrong_is_red_however_rare(self):
        colours = np.asarray(drawn(draw_confusion, MATRIX).images[0].get_array())
        red, green, blue = np.moveaxis(colours, 2, 0)
        assert (blue > red)[[0, 2], [0, 2]].all()
        wrong = np.array([[0, 2], [2, 0], [2, 1]]).T
        assert (red > blue)[tuple(wrong)].all() and (green < 0.95)[tuple(wrong)].all()
        assert red[2, 0] > 0.9 > green[2, 0]  # one in a thousand is seen
        assert green[0, 2] < green[2, 1] < green[2, 0]  # the larger the share, the stronger
        assert (colours[MATRIX == 0] == 1).all()

    @pytest.mark.parametrize("inches", [2.5, 4, 8])
    @pytest.mark.parametrize("most", [9, 1135, 99999])
    def test_numbers_fit_into_their_cells(self, inches, most):
        axes = drawn(draw_confusion, np.full((10, 10), most), size=(inches, inches))
        cell = axes.get_window_extent().width / 10
        numbers = [text for text in axes.texts if "%" not in text.get_text()]
        assert len(numbers) == 100 or (inches, most) == (2.5, 99999)  # too small to be read: left out
        assert all(box.width < cell and box.height < cell for box in extents(numbers))

    def test_a_hundred_classes_are_drawn_without_numbers(self):
        axes = drawn(draw_confusion, np.eye(100, dtype=int))
        assert not axes.texts
        labels = [box for box in extents(axes.get_xticklabels()) if box.width]
        assert all(left.x1 < right.x0 for left, right in pairwise(labels))

    def test_what_is_no_matrix_is_refused(self):
        _, (axes,) = figure(1)
        for matrix in (np.zeros((2, 3)), np.zeros(4), np.zeros((0, 0))):
            with pytest.raises(ShapeError, match=r"matrix must have shape \(K, K\)"):
                draw_confusion(axes, matrix)
        with pytest.raises(ArgumentError, match="classes must be 3 names; got 1"):
            draw_confusion(axes, MATRIX, ["a"])


class TestDigits:
    IMAGES = np.linspace(0, 1, 3 * 8 * 8, dtype=np.float32).reshape(3, 1, 8, 8)

    def test_captions_and_paper(self):
        axes = drawn(draw_digits, self.IMAGES, [7, 4, 1], [7, 9, 1], [0.5, 0.874, 1.0])
        assert [text.get_text() for text in axes.texts] == ["7", "4→9\n87 %", "1"]
        for image, digit, wrong in zip(axes.images, self.IMAGES[:, 0], (False, True, False), strict=True):
            pixels = np.asarray(image.get_array())
            assert np.allclose(pixels[..., 0], 1 - digit)  # ink is dark
            assert (pixels[0, 0, 1] < 0.8 * pixels[0, 0, 0]) == wrong
        axes = drawn(draw_digits, self.IMAGES[:, 0], [0, 1, 1], [1, 1, -1], classes=["cat", "dog"])
        assert [text.get_text() for text in axes.texts] == ["cat→dog", "dog", "dog→-1"]

    @pytest.mark.parametrize(("count", "columns", "size"), [(60, 10, (6, 6)), (7, 3, (2, 4)), (1, 10, (5, 2))])
    @pytest.mark.parametrize("names", [None, ["seventeen"] * 10])
    def test_captions_stay_in_their_place(self, count, columns, size, names):
        images = np.zeros((count, 28, 28))
        axes = drawn(draw_digits, images, np.zeros(count, int), np.arange(count) % 2, np.ones(count), names,
                     size=size, columns=columns)  # fmt: skip
        digits, captions = [image.get_window_extent() for image in axes.images], extents(axes.texts)
        assert len(digits) == count and len({round(box.y0) for box in digits}) == -(-count // columns)
        for digit, caption in zip(digits, captions, strict=False):
            assert caption.x0 >= digit.x0 - 0.06 * digit.width and caption.x1 <= digit.x1 + 0.06 * digit.width
        assert sum(box.overlaps(other) for box in digits for other in captions) == 0
        assert sum(box.overlaps(other) for box in captions for other in captions) == len(captions)

    def test_what_does_not_fit_together_is_refused(self):
        _, (axes,) = figure(1)
        with pytest.raises(ShapeError, match="images must have shape"):
            draw_digits(axes, np.zeros((2, 3, 8, 8)), [0, 1], [0, 1])
        with pytest.raises(ShapeError, match="images must have shape"):
            draw_digits(axes, np.zeros((0, 8, 8)), [], [])
        for arguments in (([0], [0, 1, 2]), ([0, 1, 2], [0]), ([0, 1, 2], [0, 1, 2], [0.5])):
            with pytest.raises(ShapeError, match=r"must have shape \(3,\); got \(1,\)"):
                draw_digits(axes, self.IMAGES, *arguments)
        with pytest.raises(ArgumentError, match="columns must be at least 1"):
            draw_digits(axes, self.IMAGES, [0, 1, 2], [0, 1, 2], columns=0)


def test_errors_come_first_and_the_worst_of_them_before_the_rest():
    losses = np.array([0.1, 5.0, 0.9, np.nan, 2.0, 3.0])
    assert errors_first([0, 1, 2, 3, 4, 5], [0, 2, 2, 4, 4, 6], losses).tolist() == [3, 1, 5, 4, 2, 0]
    assert errors_first([], [], []).tolist() == []
    with pytest.raises(ShapeError, match="losses must have shape"):
        errors_first([0, 1], [0, 1], [0.5])
