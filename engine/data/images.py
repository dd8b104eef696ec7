"""Pictures from files: one picture, folders of classes, and a digit made ready for a network.

Pillow does the decoding; it is imported when the first picture is read.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ...kernels._contracts import pair
from ...kernels._errors import ArgumentError, DataError, IndexRangeError
from .dataset import Dataset
from .ink import FAINT, ink_of

#: Formats that are read, by Pillow's names, and the file names that :class:`ImageFolder` takes.
FORMATS = ("PNG", "JPEG")
EXTENSIONS = (".png", ".jpg", ".jpeg")
#: The largest picture, in pixels, that is decoded unless a caller allows more.
MAX_PIXELS = 2**26


def load_image(
    path: str | os.PathLike[str], size: int | tuple[int, int] | None = None, *, max_pixels: int = MAX_PIXELS
) -> np.ndarray:
    """The picture in ``path`` as grey values: 0 is black, 1 is white.

    The camera's orientation (EXIF) is obeyed; what is transparent is laid on white; of an animation
    the first picture counts.

    Args:
        path: a PNG or JPEG of any colour mode.
        size: resize to this height and width (one number for both), averaging where it shrinks.
        max_pixels: refuse larger pictures, before they are decoded.

    Returns:
        (1, H, W) float32 in [0, 1].

    Raises:
        DataError: not a picture of these formats, damaged, or too large.
    """
    grey = _opened(path, max_pixels, _grey)
    if size is not None:
        height, width = pair("load_image", "size", size, 1)
        if grey.shape != (height, width):
            grey = _resized(grey, (height, width), (0.0, 0.0, *grey.shape))
    return np.ascontiguousarray(grey[None])


def prepare_digit(
    image: Any,
    size: int = 28,
    *,
    fill: float = 20 / 28,
    centre: float = 14.5 / 28,
    max_pixels: int = MAX_PIXELS,
) -> np.ndarray:
    """A picture of one digit as MNIST would have it: light ink on black, normalised in size and place.

    The paper is the colour that prevails along the border; ink is what departs from it, measured
    along the line in colour space on which it departs most, so dark on light, light on dark and
    coloured digits come out alike.  Uneven light is evened out, noise and specks are left out (see
    ``ink.py``).  The ink's longer side becomes ``fill`` of ``size`` and its centre
    of mass goes to ``centre`` of ``size``, as MNIST's makers did (they took the middle of pixel 14),
    or as near to it as leaves the whole digit in the picture.  A square picture whose ink already
    has that proportion keeps its own scale, so an MNIST digit comes back as it was.  Another data
    set's convention is in its ``frame``: ``prepare_digit(image, **Digits.frame)``.

    Args:
        image: a path, an open binary file, a Pillow picture, or an array: (H, W), (1, H, W) or
            (H, W, 3 or 4), uint8 from 0 to 255 or floating from 0 to 1.
        size: the side of the result, in pixels.
        fill: the ink's longer side as a share of ``size``.
        centre: where the centre of mass goes, down and across, as a share of ``size``.
        max_pixels: refuse larger pictures.

    Returns:
        (1, size, size) float32 in [0, 1], ink 1.

    Raises:
        DataError: no picture, or one in which nothing stands out from the background.
    """
    if isinstance(size, bool) or not isinstance(size, int | np.integer) or size < 1:
        raise ArgumentError(f"prepare_digit: size must be an integer of at least 1; got {size!r}")
    rgb, alpha = _opened(image, max_pixels, _colours)
    ink = ink_of(rgb, alpha, _name(image))  # (H, W), 0 to 1
    height, width = ink.shape
    rows, columns = (np.flatnonzero((ink > FAINT).any(axis)) for axis in (1, 0))
    longest = max(rows[-1] - rows[0], columns[-1] - columns[0]) + 1
    if not 0 < fill <= 1:
        raise ArgumentError(f"prepare_digit: fill must be above 0 and at most 1; got {fill!r}")
    if not 0 <= centre <= 1:
        raise ArgumentError(f"prepare_digit: centre must be from 0 to 1; got {centre!r}")
    box = size * fill
    # How many pixels of the picture make one of the result.
    scale = max(height, width) / size
    framed = height == width and 0.88 < longest / scale / box < 1.12
    if not framed:
        scale = longest / box

    mass = ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].astype(np.float64)
    side = scale * size
    top, left = (
        _begin(mass.sum(1 - axis), at[0], side, centre, scale, framed) for axis, at in ((0, rows), (1, columns))
    )
    result = _resized(ink, (size, size), (top, left, top + side, left + side))
    return (result / max(result.max(), np.float32(1e-6)))[None]


#: Pictures of digits with twice this many pixels a side, or more, are shrunk before anything else.
_SIDE = 560


def _begin(mass: np.ndarray, first: int, side: float, centre: float, scale: float, framed: bool) -> float:
    """Where along an axis the result begins, in pixels of the picture (pixel i reaches from i to i+1).

    Args:
        mass: the ink at each pixel from ``first`` on.
        side, centre: of the result, how long it is and where its centre of mass shall be, as a share.
        scale: how many pixels make one of the result.
        framed: whether the picture keeps its own scale.
    """
    begin = first + float((mass * (np.arange(len(mass)) + 0.5)).sum() / mass.sum()) - centre * side
    if framed:
        # Whole pixels keep a sharp picture sharp; a digit in its place stays there even if its centre
        # was rounded the other way.
        begin = 0.0 if abs(begin) < 0.55 * scale else scale * round(begin / scale)
    else:
        begin = first + scale * round((begin - first) / scale)  # the ink's edge on the edge of a pixel
    last = first + len(mass) - side  # beginning here, the result ends with the ink
    return min(max(begin, last), float(first)) if last <= first else begin


def _resized(grey: np.ndarray, size: tuple[int, int], box: tuple[float, float, float, float]) -> np.ndarray:
    """The part ``box`` (top, left, bottom, right; may reach outside, where zeros are) as (H, W) = ``size``."""
    from PIL import Image

    height, width = grey.shape
    before = [max(0, int(np.ceil(-start))) for start in box[:2]]
    after = [max(0, int(np.ceil(end - extent))) for end, extent in zip(box[2:], (height, width), strict=True)]
    top, left, bottom, right = (value + before[i % 2] for i, value in enumerate(box))
    padded = np.pad(grey, list(zip(before, after, strict=True)))
    bottom, right = min(bottom, padded.shape[0]), min(right, padded.shape[1])
    picture = Image.fromarray(np.ascontiguousarray(padded, np.float32))
    resized = picture.resize(size[::-1], Image.Resampling.BICUBIC, box=(left, top, right, bottom))
    return np.clip(np.asarray(resized, np.float32), 0, 1)


# ---- decoding ---------------------------------------------------------------------------------


def _opened(source: Any, max_pixels: int, read: Callable[[Any], Any]) -> Any:
    """``read(picture)`` of the upright Pillow picture that a path, picture or array gives."""
    from PIL import Image, UnidentifiedImageError

    name = _name(source)
    if isinstance(source, np.ndarray):
        source = Image.fromarray(_bytes(source))
    if isinstance(source, Image.Image):
        return read(_upright(source, name, max_pixels))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # max_pixels judges
            with Image.open(source, formats=FORMATS) as picture:
                return read(_upright(picture, name, max_pixels))
    except DataError:
        raise
    except UnidentifiedImageError as error:
        raise DataError(f"image: {name} must be a picture ({' or '.join(FORMATS)}); got something else") from error
    except Image.DecompressionBombError as error:
        raise DataError(f"image: {name} must have at most max_pixels={max_pixels} pixels; {error}") from error
    except OSError as error:
        raise DataError(f"image: {name} cannot be read: {error.strerror or error}") from error
    except Exception as error:  # a damaged file makes Pillow raise whatever its decoder met
        raise DataError(f"image: {name} is damaged: {error}") from error


def _name(source: Any) -> str:
    """What a message calls a source: its path, an open file's name, or "the picture"."""
    if isinstance(source, str | os.PathLike):
        return os.fspath(source)
    name = getattr(source, "name", None)
    return name if isinstance(name, str) else "the picture"


def _upright(picture: Any, name: str, max_pixels: int) -> Any:
    from PIL import ImageOps

    if not 0 < picture.width * picture.height <= max_pixels:
        raise DataError(
            f"image: {name} must have 1 to max_pixels={max_pixels} pixels; got {picture.width}x{picture.height}"
        )
    picture.load()
    return ImageOps.exif_transpose(picture)


def _bytes(array: np.ndarray) -> np.ndarray:
    """A user's array as uint8 of shape (H, W) or (H, W, 3 or 4)."""
    shape = array.shape
    if array.ndim == 3 and shape[0] == 1:
        array = array[0]
    if not (array.ndim == 2 or (array.ndim == 3 and shape[2] in (3, 4))) or array.size == 0:
        raise DataError(f"image: an array must have shape (H, W), (1, H, W) or (H, W, 3 or 4); got {shape}")
    if array.dtype == np.uint8:
        return np.ascontiguousarray(array)
    if array.dtype.kind != "f" or not ((array >= 0) & (array <= 1)).all():
        raise DataError(
            f"image: an array must be uint8, or floating with values from 0 to 1; got {array.dtype} "
            f"from {array.min()} to {array.max()}"
        )
    return np.ascontiguousarray(np.rint(array * 255).astype(np.uint8))


def _grey(picture: Any) -> np.ndarray:
    """The picture on white, (H, W) float32 in [0, 1]."""
    if picture.mode.startswith("I"):  # 16 bits of grey, which Pillow's own conversion would clip
        return np.asarray(picture, np.float32) / np.float32(65535)
    if picture.has_transparency_data:
        from PIL import Image

        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
    return np.asarray(picture.convert("L"), np.float32) / np.float32(255)


def _colours(picture: Any) -> tuple[np.ndarray, np.ndarray | None]:
    """The picture as (H, W, 1 or 3) and its opacity (H, W), None if opaque; float32 in [0, 1].

    Pictures of at least twice :data:`_SIDE` pixels a side are shrunk first, by averaging: that is still
    far more than a digit needs, and bounds time and memory.
    """
    deep = picture.mode.startswith("I")
    if not deep:
        grey = picture.mode in ("1", "L") and not picture.has_transparency_data
        picture = picture.convert("L" if grey else "RGBA" if picture.has_transparency_data else "RGB")
    if (factor := max(picture.size) // _SIDE) > 1 and not deep:
        picture = picture.reduce(factor)
    pixels = np.asarray(picture, np.float32) / np.float32(65535 if deep else 255)
    if pixels.ndim == 2:
        return pixels[:, :, None], None
    alpha = pixels[:, :, 3] if pixels.shape[2] == 4 else None
    return pixels[:, :, :3], None if alpha is None or (alpha == 1).all() else alpha


# ---- a folder of classes ----------------------------------------------------------------------


def pictures_below(folder: Path) -> list[Path]:
    """The pictures at any depth below ``folder``, by their names' endings, sorted; hidden ones are left out."""
    return [
        path
        for path in sorted(folder.rglob("*"))
        if path.suffix.lower() in EXTENSIONS
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
        and path.is_file()
    ]


class ImageFolder(Dataset):
    """Pictures sorted into one folder per class; each is read when it is asked for.

    ``dataset[i]`` is (image, class index), the image (1, H, W) float32 in [0, 1].

    Args:
        root: the folder that holds the class folders; pictures may lie at any depth below those.
        transform: a function applied to each image.
        size: resize each picture to this height and width, which batches need.

    Attributes:
        classes: the class folders' names, sorted.
        class_to_idx: the index of each class.
        samples: (path, class index) of each picture, by class, then by path.
        targets: the class index of each picture.

    Raises:
        DataError: ``root`` is no folder, or has no class folders.
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        transform: Callable[[np.ndarray], Any] | None = None,
        *,
        size: int | tuple[int, int] | None = None,
    ) -> None:
        self.root, self.transform = Path(root), transform
        self.size = None if size is None else pair("ImageFolder", "size", size, 1)
        if not self.root.is_dir():
            raise DataError(f"ImageFolder: root must be a folder; got {root}")
        self.classes = sorted(p.name for p in self.root.iterdir() if p.is_dir() and not p.name.startswith("."))
        if not self.classes:
            raise DataError(f"ImageFolder: root must hold one folder per class; {root} holds none")
        self.class_to_idx = {name: index for index, name in enumerate(self.classes)}
        self.samples = [
            (path, index) for name, index in self.class_to_idx.items() for path in pictures_below(self.root / name)
        ]
        self.targets = [index for _, index in self.samples]

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        if not -len(self) <= index < len(self):
            raise IndexRangeError(f"ImageFolder: index must be below {len(self)}; got {index}")
        path, target = self.samples[index]
        image = load_image(path, self.size)
        return (image if self.transform is None else self.transform(image)), target
