"""Which pixels of a picture are ink: paper found and made even, noise and specks left out."""

from __future__ import annotations

import numpy as np

from ...kernels._errors import DataError

#: Ink fainter than this, of 1, does not count for a digit's extent.
FAINT = 0.15

_WEIGHTS = np.array([0.299, 0.587, 0.114], np.float32)  # luma of red, green, blue (ITU-R BT.601)
#: The least difference between ink and paper, of the full range, that is taken for writing.
_CONTRAST = 0.06
#: Paper that varies by less along the border is of one colour (a level and a half of 255).
_EVEN = 1.5 / 255
#: Noise below this, of full ink, needs no care.
_CLEAN = 0.01
#: The strongest ink must be so many times the noise.
_OUTSTANDING = 10
#: A piece with less of the ink than this, beside the largest piece, is a speck.
_SPECK = 0.02
#: Pictures of fewer pixels a side have no specks: a pixel or two may be a part of the digit.
_SMALL = 57


def ink_of(rgb: np.ndarray, alpha: np.ndarray | None, name: str) -> np.ndarray:
    """How much ink lies on each pixel of a picture.

    The paper is what prevails along the border; where that varies, as light does on a photograph, it is followed
    by a surface of second order and evened out.  Ink is what departs from the paper, measured along the line in
    colour space on which the picture departs most.  Of a noisy picture only what stands out in a smoothed one
    counts, and of any that is large enough only pieces that are no specks.

    Args:
        rgb: (H, W, 1 or 3) float32 in [0, 1].
        alpha: the opacity (H, W), or None.
        name: of the picture, for messages.

    Returns:
        (H, W) float32 in [0, 1].

    Raises:
        DataError: nothing stands out.
    """
    if alpha is not None:
        rgb = _laid_on_paper(rgb, alpha, name)
    nothing = DataError(f"prepare_digit: {name} must show a digit; got a picture without anything on its background")
    departure = _departure(rgb)  # (H, W, 1 or 3)
    strength = np.square(departure).sum(2)
    # The mean departure, the strong ones counting most: its direction is the line from paper to ink.
    direction = (departure * (strength * strength)[:, :, None]).sum((0, 1), dtype=np.float64)
    line = (direction / max(np.sqrt(np.square(direction).sum()), 1e-30)).astype(np.float32)
    ink = departure @ line
    if not ink.max() > _CONTRAST:
        raise nothing
    ink /= _peak(ink)
    if max(ink.shape) < _SMALL:
        return _cleared(ink)
    noisy = _noise(ink) > _CLEAN
    kept, dropped = _pieces(ink, noisy)
    if not kept.any():
        raise nothing
    if noisy:
        from scipy import ndimage

        ink = ndimage.uniform_filter(ink, 3)
        return _cleared(ink / _peak(ink * kept)) * kept
    if dropped.any():  # which may have been the strongest
        ink[dropped] = 0
        ink /= _peak(ink)
    return _cleared(ink)


def _peak(ink: np.ndarray) -> float:
    """What full ink comes to, without a few hot pixels."""
    return float(np.percentile(ink[ink >= ink.max() / 2], 90))


def _noise(ink: np.ndarray) -> float:
    """How far from 0 paper is, in the median; 0 on clean paper."""
    return float(np.median(np.abs(_border(ink))))


def _cleared(ink: np.ndarray) -> np.ndarray:
    """``ink`` without the grain of the paper, clipped to [0, 1]."""
    grain = min(0.2, 3 * _noise(ink))
    return np.clip((ink - grain) / (1 - grain), 0, 1)


def _laid_on_paper(rgb: np.ndarray, alpha: np.ndarray, name: str) -> np.ndarray:
    """The picture, opaque: on its own paper, or as its opacity if that alone draws the digit."""
    seen = alpha > alpha.max() / 2
    levels = (rgb[:, :, 0] if rgb.shape[2] == 1 else np.minimum(rgb @ _WEIGHTS, np.float32(1)))[seen]
    if levels.size == 0:
        raise DataError(f"prepare_digit: {name} must show a digit; got a picture that is all transparent")
    if levels.std() < _CONTRAST:
        return alpha[:, :, None]
    paper = np.median(rgb[seen], axis=0)
    return np.asarray(rgb * alpha[:, :, None] + paper * (1 - alpha[:, :, None]))


def _border(array: np.ndarray) -> np.ndarray:
    """The pixels along the border, (M, …): the first row, the last, the first column, the last."""
    return np.concatenate([array[0], array[-1], array[1:-1, 0], array[1:-1, -1]])


def _departure(rgb: np.ndarray) -> np.ndarray:
    """By how much each pixel departs from the paper, (H, W, 1 or 3)."""
    border = _border(rgb)
    paper = np.median(border, axis=0)
    spread = np.median(np.abs(border - paper))
    if spread <= _EVEN or min(rgb.shape[:2]) < 3:
        return rgb - paper
    height, width = rgb.shape[:2]
    y, x = np.meshgrid(np.linspace(-1, 1, height), np.linspace(-1, 1, width), indexing="ij")
    terms = np.stack([np.ones_like(x), x, y, x * x, x * y, y * y], 2)  # (H, W, 6)
    along = _border(terms)
    good = np.ones(len(border), bool)
    for _ in range(4):  # least squares without what lies far off, such as ink that reaches the border
        surface = np.linalg.lstsq(along[good], border[good], rcond=None)[0]  # (6, 1 or 3)
        off = np.abs(border - along @ surface).max(1)
        good = off <= max(4 * np.median(off), _EVEN)
    light = (terms @ surface).astype(np.float32)
    if light.min() > 0.1:  # more light on the paper is more light on the ink
        return rgb * (paper / light) - paper
    return rgb - light


def _pieces(ink: np.ndarray, noisy: bool) -> tuple[np.ndarray, np.ndarray]:
    """Where writing is, and where specks are, each with a margin: (H, W) bool.

    Args:
        ink: (H, W), about 0 on paper, 1 where it is full.
        noisy: whether to look at means over squares instead of pixels.
    """
    from scipy import ndimage

    width = 1
    if noisy:  # a digit's lines are seldom thinner than that
        width = max(3, max(ink.shape) // 100)
        ink = ndimage.uniform_filter(ink, width)
    noise = _noise(ink)
    labels, count = ndimage.label(ink > np.clip(8 * noise, FAINT, 0.5), np.ones((3, 3)))
    mass = np.bincount(labels.ravel(), weights=ink.ravel(), minlength=count + 1)
    mass[0] = 0
    # Noise alone reaches up to eight times its median, which writing leaves far behind.
    writing = (mass > _SPECK * mass.max()) & bool(ink.max() > _OUTSTANDING * noise)
    specks = ~writing
    specks[0] = False
    margin = 2 * width + 1
    return tuple(  # type: ignore[return-value]
        ndimage.maximum_filter(chosen[labels], margin) if chosen.any() else np.zeros(ink.shape, bool)
        for chosen in (writing, specks)
    )
