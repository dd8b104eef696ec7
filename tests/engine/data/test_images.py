"""Pictures: every mode and turn, what is no picture, folders of classes, digits made ready."""

from __future__ import annotations

import io
import os
import struct
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from rawgrad.engine.data import MNIST, DataLoader, Digits, ImageFolder, load_image, prepare_digit
from rawgrad.kernels._errors import ArgumentError, DataError, IndexRangeError, ShapeError

GREY = np.array([[0, 51, 102], [153, 204, 255]], np.uint8)
EXPECTED = np.array([[0, 0.2, 0.4], [0.6, 0.8, 1]], np.float32)


def saved(tmp_path, picture, name="picture.png", **options):
    path = tmp_path / name
    (Image.fromarray(picture) if isinstance(picture, np.ndarray) else picture).save(path, **options)
    return path


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "LA", "P", "I;16"])
def test_every_mode(tmp_path, mode):
    picture = Image.fromarray(GREY.astype(np.uint16) * 257 if mode == "I;16" else GREY)
    image = load_image(saved(tmp_path, picture if mode == "I;16" else picture.convert(mode)))
    assert image.shape == (1, 2, 3) and image.dtype == np.float32
    assert np.abs(image[0] - EXPECTED).max() < 1e-6


def test_black_and_white_and_jpeg(tmp_path):
    bits = np.array([[0, 1], [1, 0]], bool)
    assert load_image(saved(tmp_path, Image.fromarray(bits)))[0].tolist() == [[0, 1], [1, 0]]
    for mode in ("L", "RGB", "CMYK"):
        flat = Image.new("L", (16, 8), 128).convert(mode)
        image = load_image(saved(tmp_path, flat, "p.jpg", quality=95))
        assert image.shape == (1, 8, 16) and np.abs(image - 128 / 255).max() < 0.02


def test_colours_by_their_luma(tmp_path):
    colours = np.array([[[255, 0, 0], [0, 255, 0], [0, 0, 255]]], np.uint8)
    # ITU-R BT.601: 0.299, 0.587, 0.114, here to the nearest 1/255.
    assert np.abs(load_image(saved(tmp_path, colours))[0] - [[0.299, 0.587, 0.114]]).max() < 1 / 255


def test_transparent_is_laid_on_white(tmp_path):
    rgba = np.array([[[0, 0, 0, 0], [0, 0, 0, 255], [0, 0, 0, 51]]], np.uint8)
    assert np.abs(load_image(saved(tmp_path, rgba))[0] - [[1, 0, 0.8]]).max() < 1e-6


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(tmp_path, orientation):
    # How each orientation of EXIF 2.3 (tag 0x0112) has to be turned to stand upright.
    turn = {
        1: lambda a: a,
        2: np.fliplr,
        3: lambda a: np.rot90(a, 2),
        4: np.flipud,
        5: np.transpose,
        6: lambda a: np.rot90(a, -1),
        7: lambda a: np.rot90(a, 2).T,
        8: lambda a: np.rot90(a, 1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = load_image(saved(tmp_path, GREY, exif=exif))
    assert np.abs(image[0] - turn(EXPECTED)).max() < 1e-6


def test_resizing(tmp_path):
    path = saved(tmp_path, np.kron(np.array([[0, 255], [255, 0]], np.uint8), np.ones((40, 40), np.uint8)))
    assert load_image(path, 20).shape == (1, 20, 20) and load_image(path, (3, 5)).shape == (1, 3, 5)
    image = load_image(path, 8)[0]
    assert np.abs(image[:3, :3]).max() < 0.05 and np.abs(image[:3, 5:] - 1).max() < 0.05
    assert abs(image.mean() - 0.5) < 1e-3
    assert 0 <= image.min() and image.max() <= 1
    with pytest.raises(ArgumentError, match="size must be"):
        load_image(path, 0)


# ---- what is no picture -----------------------------------------------------------------------


@pytest.mark.parametrize("data", [b"", b"hello", b"\x89PNG\r\n\x1a\n", b"GIF89a" + bytes(50), b"%!PS\n"])
def test_not_a_picture(tmp_path, data):
    path = tmp_path / "picture.png"
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"picture\.png"):
        load_image(path)
    with pytest.raises(DataError, match=r"picture\.png"):
        prepare_digit(path)


def test_missing_and_folder(tmp_path):
    for path in (tmp_path / "missing.png", tmp_path):
        with pytest.raises(DataError, match="cannot be read"):
            load_image(path)


def test_truncated(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (50, 50)).astype(np.uint8)
    for name in ("p.png", "p.jpg"):
        path = saved(tmp_path, noise, name)
        path.write_bytes(path.read_bytes()[:1200])
        with pytest.raises(DataError, match="truncated"):
            load_image(path)


def png_claiming(width, height):
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("side", [9_000, 10_000, 100_000])
def test_a_lying_size_takes_no_memory(tmp_path, side):
    path = tmp_path / "bomb.png"
    path.write_bytes(png_claiming(side, side))
    tracemalloc.start()
    try:
        with pytest.raises(DataError, match="max_pixels"):
            load_image(path)
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


def test_the_cap_can_be_moved(tmp_path):
    path = saved(tmp_path, GREY)
    load_image(path, max_pixels=6)
    with pytest.raises(DataError, match="max_pixels=5 pixels; got 3x2"):
        load_image(path, max_pixels=5)


@settings(max_examples=150)
@given(data=st.data())
def test_fuzzed_pictures_only_raise_data_errors(tmp_path_factory, data):
    kind = data.draw(st.sampled_from(["PNG", "JPEG"]))
    picture = Image.fromarray(np.random.default_rng(1).integers(0, 256, (9, 11, 3)).astype(np.uint8))
    if kind == "PNG":
        picture = picture.convert(data.draw(st.sampled_from(["L", "RGB", "P", "1"])))
    exif = Image.Exif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    picture.save(buffer, kind, exif=exif)
    damaged = bytearray(buffer.getvalue())
    for _ in range(data.draw(st.integers(1, 3))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] ^= data.draw(st.integers(1, 255))
    path = tmp_path_factory.mktemp("fuzz") / "picture"
    path.write_bytes(damaged[: data.draw(st.integers(0, len(damaged)) | st.just(len(damaged)))])
    try:
        image = load_image(path, max_pixels=10_000)
        assert image.size <= 10_000 and np.isfinite(image).all()
        prepare_digit(path, max_pixels=10_000)
    except DataError:
        pass


# ---- folders of classes -----------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "classes"
    for name, value in (("cat", 51), ("ant", 102), ("bee", 153)):
        (root / name / "deeper").mkdir(parents=True)
        Image.new("L", (4, 3), value).save(root / name / "a.png")
    Image.new("L", (8, 6), 204).save(root / "bee" / "deeper" / "b.PNG")
    (root / "bee" / "notes.txt").write_text("no picture")
    (root / ".hidden").mkdir()
    return root


def test_image_folder(folder):
    dataset = ImageFolder(folder)
    assert dataset.classes == ["ant", "bee", "cat"] and dataset.class_to_idx == {"ant": 0, "bee": 1, "cat": 2}
    assert dataset.targets == [0, 1, 1, 2] and len(dataset) == 4
    image, label = dataset[2]
    assert image.shape == (1, 6, 8) and np.allclose(image, 0.8) and label == 1
    (images, labels), *_ = DataLoader(ImageFolder(folder, size=(3, 4)), 4)
    assert images.shape == (4, 1, 3, 4) and labels.numpy().tolist() == [0, 1, 1, 2]
    assert np.allclose(images.numpy()[:, 0, 0, 0], [0.4, 0.6, 0.8, 0.2])
    with pytest.raises(ShapeError, match="one shape"):
        list(DataLoader(dataset, 4))
    assert ImageFolder(folder, lambda image: image.mean())[0][0] == pytest.approx(0.4)


def test_image_folder_refuses(folder, tmp_path):
    with pytest.raises(DataError, match="must be a folder"):
        ImageFolder(tmp_path / "nothing")
    with pytest.raises(DataError, match="one folder per class"):
        ImageFolder(folder / "cat" / "deeper")
    with pytest.raises(IndexRangeError):
        ImageFolder(folder)[4]
    (folder / "cat" / "a.png").write_bytes(b"no")
    dataset = ImageFolder(folder)  # read only when it is asked for
    with pytest.raises(DataError, match=r"a\.png"):
        dataset[3]


# ---- digits made ready ------------------------------------------------------------------------


def drawn():
    """A 2 as MNIST has them: 20 pixels high, its centre of mass in pixel (14, 14)."""
    digit = np.zeros((28, 28), np.float32)
    digit[4:7, 8:20] = 1
    for row in range(7, 21):
        left = 18 - (row - 7) * 10 // 14
        digit[row, left : left + 3] = 0.9
    digit[21:24, 8:22] = 1
    return digit


DIGIT = drawn()


def test_the_drawing_is_as_mnist_would_have_it():
    rows, _ = np.nonzero(DIGIT)
    assert rows.max() - rows.min() + 1 == 20
    for axis in (0, 1):
        assert abs((np.arange(28) * DIGIT.sum(1 - axis)).sum() / DIGIT.sum() - 14) < 0.35


def as_bytes(array):
    return np.rint(255 * array).astype(np.uint8)


def test_a_digit_in_place_comes_back_as_it_is():
    result = prepare_digit(DIGIT)
    assert result.shape == (1, 28, 28) and result.dtype == np.float32
    assert np.abs(result[0] - DIGIT).max() < 0.01


@pytest.mark.parametrize("move", [(0, 0), (-3, 2), (4, -4), (2, 4)])
@pytest.mark.parametrize("factor", [1, 2, 5])
@pytest.mark.parametrize("inverted", [False, True])
def test_scaled_inverted_shifted(tmp_path, move, factor, inverted):
    picture = np.kron(as_bytes(np.roll(DIGIT, move, (0, 1))), np.ones((factor, factor), np.uint8))
    result = prepare_digit(saved(tmp_path, 255 - picture if inverted else picture))
    # Exact where nothing is shrunk; a cubic filter answers hard edges one pixel apart with up to a quarter.
    assert np.abs(result[0] - DIGIT).max() < (0.01 if factor == 1 else 0.25)
    assert np.abs(result[0] - DIGIT).mean() < 0.02


def test_anywhere_on_a_large_sheet():
    sheet = np.full((300, 500), 240, np.uint8)
    sheet[40:152, 330:442] -= (200 * np.kron(DIGIT, np.ones((4, 4)))).astype(np.uint8)
    result = prepare_digit(sheet)[0]
    assert np.abs(result - DIGIT).mean() < 0.03
    tight = prepare_digit(sheet[52:140, 358:422])[0]  # cut close to the ink
    assert np.abs(tight - result).mean() < 0.03


@pytest.mark.parametrize(
    ("ink", "paper"),
    [
        ((200, 0, 0), (255, 255, 255)),
        ((255, 255, 0), (0, 0, 128)),
        ((255, 0, 0), (0, 130, 0)),  # the same luma: only the colour tells
        ((120, 120, 120), (150, 150, 150)),
    ],
)
def test_colours(ink, paper):
    blend = np.array(paper) + (np.array(ink) - np.array(paper)) * DIGIT[:, :, None]
    assert np.abs(prepare_digit(np.rint(blend).astype(np.uint8))[0] - DIGIT).max() < 0.05


@pytest.mark.parametrize("colour", [0, 255])
def test_drawn_by_opacity(tmp_path, colour):
    rgba = np.full((28, 28, 4), colour, np.uint8)
    rgba[:, :, 3] = as_bytes(DIGIT)
    assert np.abs(prepare_digit(saved(tmp_path, rgba))[0] - DIGIT).max() < 0.01


def test_paper_with_transparent_corners(tmp_path):
    rgba = np.zeros((40, 40, 4), np.uint8)
    rgba[6:34, 6:34] = np.concatenate(
        [np.repeat(255 - as_bytes(DIGIT)[:, :, None], 3, 2), np.full((28, 28, 1), 255)], 2
    )
    assert np.abs(prepare_digit(saved(tmp_path, rgba))[0] - DIGIT).mean() < 0.03


def as_the_makers_did(ink):
    """MNIST's definition, bare: the ink (H, W), whose longer side is a multiple of 20, fitted into 20 x 20 by means
    over squares (that is anti-aliasing), and moved by whole pixels so that the centre of mass is in pixel (14, 14).

    Source: LeCun, Cortes, Burges, "The MNIST database": "size normalized to fit in a 20x20 pixel box while
    preserving their aspect ratio […] grey levels as a result of the anti-aliasing […] centered in a 28x28 image by
    computing the center of mass of the pixels, and translating the image so as to position this point at the center".
    """
    step = max(ink.shape) // 20
    padded = np.pad(ink, [(0, -extent % step) for extent in ink.shape])
    small = padded.reshape(padded.shape[0] // step, step, padded.shape[1] // step, step).mean((1, 3))
    field = np.zeros((60, 60))
    field[20 : 20 + small.shape[0], 20 : 20 + small.shape[1]] = small
    mass = [(np.arange(60) * field.sum(1 - axis)).sum() / field.sum() for axis in (0, 1)]
    top, left = (round(centre) - 14 for centre in mass)
    tie = max(abs(abs(centre - round(centre)) - 0.5) < 0.04 for centre in mass)
    return field[top : top + 28, left : left + 28], tie


def strokes(seed):
    """A few thick lines, (H, W) of 0 and 1, without a margin, the longer side 200 pixels."""
    rng = np.random.default_rng(seed)
    sheet = Image.new("L", (400, 400))
    points = [tuple(map(int, rng.integers(60, 340, 2))) for _ in range(5)]
    ImageDraw.Draw(sheet).line(points, fill=255, width=24, joint="curve")
    ink = sheet.crop(sheet.getbbox())
    ink = ink.resize([max(1, round(200 * side / max(ink.size))) for side in ink.size], Image.Resampling.NEAREST)
    return (np.asarray(ink) > 127).astype(np.float64)


@pytest.mark.parametrize("on_dark", [False, True])
def test_it_is_what_the_makers_of_mnist_did(on_dark):
    compared = 0
    for seed in range(20):
        ink = strokes(seed)
        expected, tie = as_the_makers_did(ink)
        if tie:  # the centre of mass lies between two pixels: the other one is as good
            continue
        compared += 1
        rng = np.random.default_rng(seed)
        sheet = np.pad(ink, [tuple(map(int, rng.integers(20, 300, 2))) for _ in range(2)])
        result = prepare_digit(as_bytes(0.1 + 0.8 * (sheet if on_dark else 1 - sheet)))[0].astype(np.float64)
        extents = [np.ptp(np.flatnonzero((result > 0.15).any(axis))) + 1 for axis in (0, 1)]
        assert max(extents) == 20
        for axis in (0, 1):
            assert abs((np.arange(28) * result.sum(1 - axis)).sum() / result.sum() - 14) < 0.55
        # A cubic filter is sharper than a mean: at an edge by up to a fifth.
        assert np.abs(result - expected).max() < 0.25 and np.abs(result - expected).mean() < 0.015
    assert compared >= 15


def test_other_sizes():
    assert prepare_digit(DIGIT, 8).shape == (1, 8, 8)
    small = prepare_digit(np.kron(DIGIT, np.ones((10, 10))), 8, fill=1.0)[0]
    assert (small.max(1) > 0.2).all()  # from the first row to the last
    with pytest.raises(ArgumentError, match="size must be"):
        prepare_digit(DIGIT, 0)
    with pytest.raises(ArgumentError, match="centre must be"):
        prepare_digit(DIGIT, centre=2)
    with pytest.raises(ArgumentError, match="fill must be"):
        prepare_digit(DIGIT, fill=1.5)


@pytest.mark.parametrize("value", [0, 128, 255])
def test_an_empty_sheet_is_no_digit(tmp_path, value):
    with pytest.raises(DataError, match="the picture must show a digit; got a picture without anything"):
        prepare_digit(np.full((30, 40), value, np.uint8))
    path = saved(tmp_path, np.full((30, 40), value, np.uint8), "a.png")
    with pytest.raises(DataError, match=r"prepare_digit: .*a\.png must show a digit"):
        prepare_digit(path)
    with open(path, "rb") as file, pytest.raises(DataError, match=r"prepare_digit: .*a\.png must show a digit"):
        prepare_digit(file)
    with pytest.raises(DataError, match="all transparent"):
        prepare_digit(Image.new("RGBA", (9, 9), (value, value, value, 0)))


@pytest.mark.parametrize(
    "array",
    [
        np.zeros(5),
        np.zeros((2, 3, 5)),
        np.zeros((0, 3)),
        np.full((4, 4), 2.0),
        np.full((4, 4), np.nan),
        np.ones((4, 4), int),
    ],
)
def test_arrays_that_are_no_pictures(array):
    with pytest.raises(DataError, match="an array must"):
        prepare_digit(array)


def test_inputs_stay_untouched():
    picture = as_bytes(DIGIT)[::-1]
    before = picture.copy()
    prepare_digit(picture)
    assert np.array_equal(picture, before)


GENUINE = Path(os.environ.get("RAWGRAD_DATA", "no such folder"))


@pytest.mark.mnist
@pytest.mark.skipif(not (GENUINE / "mnist").is_dir(), reason="RAWGRAD_DATA names no folder with mnist/")
def test_genuine_digits_are_as_the_makers_say():
    """Which is what :func:`prepare_digit` aims at: longer side 20, centre of mass in pixel (14, 14)."""
    pixels = MNIST(GENUINE, "test").data.astype(np.float64)
    ink = np.stack([(pixels > 0).any(axis) for axis in (1, 2)])
    longest = (28 - ink.argmax(2) - ink[:, :, ::-1].argmax(2)).max(0)
    assert (longest == 20).mean() > 0.999
    for axis in (1, 2):
        mass = (pixels.sum(3 - axis) * np.arange(28)).sum(1) / pixels.sum((1, 2))
        assert np.abs(mass - 14).max() < 0.502


@pytest.mark.mnist
@pytest.mark.skipif(not (GENUINE / "mnist").is_dir(), reason="RAWGRAD_DATA names no folder with mnist/")
def test_genuine_digits_come_back():
    test = MNIST(GENUINE, "test")
    rng = np.random.default_rng(0)
    for index in range(0, 10_000, 50):
        pixels, original = test.data[index], test.images[index, 0]
        assert np.abs(prepare_digit(pixels)[0] - original).mean() < 0.004
        rows, columns = (np.flatnonzero(pixels.any(axis)) for axis in (1, 0))  # no ink is pushed out
        move = [rng.integers(-min(4, r[0]), min(4, 27 - r[-1]) + 1) for r in (rows, columns)]
        moved = np.roll(pixels, move, (0, 1))
        large = Image.fromarray(255 - moved).resize((140, 140), Image.Resampling.BICUBIC)
        # A centre of mass half way between two pixels may be rounded either way: then one pixel off.
        result = prepare_digit(large)[0]
        errors = [np.abs(np.roll(result, (y, x), (0, 1)) - original).mean() for y in (-1, 0, 1) for x in (-1, 0, 1)]
        assert min(errors) < 0.03


def test_bundled_digits_come_back():
    """Enlarged on a larger sheet and framed again, they are still nearest to digits of their class."""
    train, test = Digits("train"), Digits("test")
    known = train.images.reshape(-1, 64)

    def right(images):
        distances = np.square(known).sum(1) - 2 * images.reshape(-1, 64) @ known.T
        return (train.labels[distances.argmin(1)] == test.labels).mean()

    sheets = 255 - np.pad(as_bytes(test.images[:, 0]).repeat(10, 1).repeat(10, 2), ((0, 0), (20, 9), (7, 31)))
    framed = np.stack([prepare_digit(sheet, **Digits.frame) for sheet in sheets])
    assert framed.shape == test.images.shape
    assert right(test.images) > 0.97 and right(framed) > 0.93
