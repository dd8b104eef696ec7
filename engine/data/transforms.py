"""Changes of images on their way into a batch: normalise, pad, crop, flip, shift, rotate.

A transform is called as ``transform(images, draws)`` with images (N, C, H, W) and gives images; a
function of yours of that form is one too.  What is random in it comes from ``draws``, which knows the
samples, so what happens to a sample depends on nothing but (seed, epoch, sample, place of the
transform): not on the batch that it is in, nor on who reads it.  The same transform can therefore be
applied to whole batches (``DataLoader(transform=...)``) or, where pictures differ in size, to each
sample before batches are made (``sample_transform=...``), with the same result.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ...kernels._contracts import pair
from ...kernels._errors import ArgumentError, ShapeError
from ...kernels.dropout.reference import _rounds as philox_rounds

Transform = Callable[[np.ndarray, "Draws"], np.ndarray]

#: Streams of transforms inside one: the k-th has the number ``_INSIDE * own + k + 1``.
_INSIDE = 64
_STREAM_BITS = 24


class Draws:
    """Random numbers for some samples: Philox4x32-10 of (seed, epoch, stream, sample), so no state.

    Args:
        seed: the loader's.
        epoch: from 0.
        indices: (N,), the samples by their place in the data set.
        stream: tells draws for different purposes apart.
    """

    def __init__(self, seed: int, epoch: int, indices: np.ndarray, stream: int = 0) -> None:
        self.seed, self.epoch, self.indices, self.number = seed, epoch, np.asarray(indices), stream

    def stream(self, number: int) -> Draws:
        """Other draws for the same samples: those of the ``number``-th transform inside this one."""
        return Draws(self.seed, self.epoch, self.indices, (_INSIDE * self.number + number + 1) % 2**_STREAM_BITS)

    def uniform(self, count: int = 1) -> np.ndarray:
        """Numbers in [0, 1): (N, count) float64, at most 1,024 a sample; the same at each call."""
        blocks = -(-count // 4)
        # The default generator counts its offsets from 0: with the highest bit set these are never among them.
        offset = 2**63 | (self.epoch << _STREAM_BITS | self.number) % 2**63
        counters = (self.indices.astype(np.uint64)[:, None] << np.uint64(8)) + np.arange(blocks, dtype=np.uint64)
        words = np.empty((counters.size, 4), np.uint32)
        philox_rounds(words, counters.reshape(-1), self.seed % 2**64, offset)
        return words.reshape(len(self.indices), 4 * blocks)[:, :count] / 2.0**32

    def integers(self, low: Any, high: Any, count: int = 1) -> np.ndarray:
        """Whole numbers from ``low`` to ``high`` - 1: (N, count) int64."""
        return (low + np.floor(self.uniform(count) * (np.asarray(high) - low))).astype(np.int64)


class Compose:
    """One transform after the other, each with draws of its own."""

    def __init__(self, transforms: Sequence[Transform]) -> None:
        self.transforms = list(transforms)

    def __call__(self, images: np.ndarray, draws: Draws) -> np.ndarray:
        """All of them."""
        for number, transform in enumerate(self.transforms):
            images = transform(images, draws.stream(number))
        return images


class Normalize:
    """``(images - mean) / std``, in the images' dtype.

    Args:
        mean, std: numbers, or one of each channel.
    """

    def __init__(self, mean: float | Sequence[float], std: float | Sequence[float]) -> None:
        self.mean, self.std = np.asarray(mean, np.float64), np.asarray(std, np.float64)
        if not (self.std > 0).all():
            raise ArgumentError(f"Normalize: std must be above 0; got {std}")

    def __call__(self, images: np.ndarray, draws: Draws) -> np.ndarray:
        """Floating images alone."""
        if images.dtype.kind != "f":
            raise ArgumentError(f"Normalize: images must be floating; got {images.dtype}")
        mean, std = (value.reshape(-1, 1, 1).astype(images.dtype) for value in (self.mean, self.std))
        result: np.ndarray = (images - mean) / std
        return result


class Pad:
    """Margins of one value.

    Args:
        padding: pixels on each side, or (left, right, top, bottom) as in ``nn.ZeroPad2d``.
        value: what is there.
    """

    def __init__(self, padding: int | tuple[int, int, int, int], value: float = 0.0) -> None:
        self.padding = (padding,) * 4 if isinstance(padding, int) else tuple(padding)
        self.value = value
        if len(self.padding) != 4 or min(self.padding) < 0:
            raise ArgumentError(f"Pad: padding must be one number or four, none negative; got {padding}")

    def __call__(self, images: np.ndarray, draws: Draws) -> np.ndarray:
        """(N, C, H + top + bottom, W + left + right)."""
        left, right, top, bottom = self.padding
        n, c, h, w = images.shape
        result = np.full((n, c, h + top + bottom, w + left + right), self.value, images.dtype)
        result[:, :, top : top + h, left : left + w] = images
        return result


class RandomCrop:
    """A part of each image, at a random place.

    Args:
        size: of the part, one number or (height, width).
        padding, value: margins before that, as in :class:`Pad`.
    """

    def __init__(self, size: int | tuple[int, int], padding: Any = 0, value: float = 0.0) -> None:
        self.size = pair(type(self).__name__, "size", size, 1)
        self.pad = Pad(padding, value) if padding else None

    def __call__(self, images: np.ndarray, draws: Draws) -> np.ndarray:
        """(N, C, height, width)."""
        if self.pad is not None:
            images = self.pad(images, draws)
        room = np.array(images.shape[2:]) - self.size
        if room.min() < 0:
            raise ShapeError(
                f"{type(self).__name__}: images must be at least {self.size[0]}x{self.size[1]}; got {images.shape[2:]}"
            )
        top, left = self.place(room, draws).T
        windows = np.lib.stride_tricks.sliding_window_view(images, self.size, (2, 3))
        result: np.ndarray = windows[np.arange(len(images)), :, top, left]
        return result

    def place(self, room: np.ndarray, draws: Draws) -> np.ndarray:
        """The upper left corner of each part, (N, 2)."""
        return draws.integers(0, room + 1, 2)


class CenterCrop(RandomCrop):
    """The middle of each image."""

    def place(self, room: np.ndarray, draws: Draws) -> np.ndarray:
        """The same for all."""
        return np.broadcast_to(room // 2, (len(draws.indices), 2))


class RandomShift:
    """Moves each image by up to so many pixels, down and across; what comes in from outside is ``value``."""

    def __init__(self, pixels: int | tuple[int, int], value: float = 0.0) -> None:
        down, across = self.pixels = pair("RandomShift", "pixels", pixels, 0)
        self.pad = Pad((across, across, down, down), value)

    def __call__(self, images: np.ndarray, draws: Draws) -> np.ndarray:
        """Of the same shape."""
        return RandomCrop(images.shape[2:])(self.pad(images, draws), draws)


class RandomHorizontalFlip:
    """Mirrors an image, left to right, with probability ``p``."""

    axis = 3

    def __init__(self, p: float = 0.5) -> None:
        if not 0 <= p <= 1:
            raise ArgumentError(f"{type(self).__name__}: p must be from 0 to 1; got {p}")
        self.p = p

    def __call__(self, images: np.ndarray, draws: Draws) -> np.ndarray:
        """Of the same shape."""
        chosen = draws.uniform()[:, 0] < self.p
        result = images.copy()
        result[chosen] = np.flip(images[chosen], self.axis)
        return result


class RandomVerticalFlip(RandomHorizontalFlip):
    """Mirrors an image, top to bottom, with probability ``p``."""

    axis = 2


class RandomRotation:
    """Turns each image about its middle by a random angle, interpolating linearly.

    Args:
        degrees: the angle is from -degrees to degrees, or between two numbers; positive is
            counter-clockwise.
        value: what comes in from outside.
    """

    def __init__(self, degrees: float | tuple[float, float], value: float = 0.0) -> None:
        self.degrees = (-degrees, degrees) if isinstance(degrees, int | float) else tuple(degrees)
        self.value = value
        if len(self.degrees) != 2 or self.degrees[0] > self.degrees[1]:
            raise ArgumentError(f"RandomRotation: degrees must be one number, or two in order; got {degrees}")

    def __call__(self, images: np.ndarray, draws: Draws) -> np.ndarray:
        """Of the same shape; floating images alone."""
        from scipy.ndimage import affine_transform

        if images.dtype.kind != "f":
            raise ArgumentError(f"RandomRotation: images must be floating; got {images.dtype}")
        low, high = self.degrees
        angles = np.radians(low + (high - low) * draws.uniform()[:, 0])
        middle = (np.array(images.shape[2:]) - 1) / 2
        result = np.empty_like(images, order="C")
        for image, into, angle in zip(images, result, angles, strict=True):
            # From a place in the result to one in the image; rows count downwards.
            turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
            for plane, out in zip(image, into, strict=True):
                # "grid-constant" since "constant" takes what lies an ulp outside for lost.
                affine_transform(
                    plane, turn, middle - turn @ middle, output=out, order=1, mode="grid-constant", cval=self.value
                )
        return result
