"""P7: a digit read from a picture; and how well that goes, by the pictures that the test digits make.

:func:`read` takes anything that :func:`~rawgrad.data.prepare_digit` takes and needs nothing but a file
of weights.  :func:`share_read` writes test digits out as pictures (PNG, in memory) in all of
:data:`VARIANTS` and reads them back.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..autograd import Tensor, no_grad
from ..autograd import functional as F
from ..engine.data import MNIST, Digits, prepare_digit
from ..engine.module import Module
from ..engine.weights import ModelInfo
from ..kernels._errors import CheckpointError
from .training import load_model

#: Where ``predict`` and ``evaluate`` look for a model that was not named, best first.
PLACES = (Path("runs/mnist-cnn"), Path("runs/digits-cnn"))
_BATCH = 500


@dataclass(frozen=True)
class Reading:
    """What a network makes of one picture.

    Attributes:
        digit: the name of its class.
        probabilities: of each class by name; empty for a network that gives the label as a number.
        value: that number, None for other networks.
    """

    digit: str
    probabilities: dict[str, float]
    value: float | None = None

    def described(self) -> dict[str, Any]:
        """For JSON: ``digit``, and ``probabilities`` or ``value``."""
        rest = {"probabilities": self.probabilities} if self.value is None else {"value": self.value}
        return {"digit": self.digit, **rest}

    def line(self) -> str:
        """The digit and the class that comes next, or the number, in one line."""
        if self.value is not None:
            return f"{self.digit}  (the network gave {self.value:.3f})"
        rest = sorted(((p, name) for name, p in self.probabilities.items() if name != self.digit), reverse=True)
        other = f", else {rest[0][1]} ({100 * rest[0][0]:.1f} %)" if rest else ""
        return f"{self.digit}  ({100 * self.probabilities[self.digit]:.1f} %){other}"

    def __str__(self) -> str:
        if self.value is not None:
            return self.line()
        lines = [f"{self.digit}  ({100 * self.probabilities[self.digit]:.1f} %)"]
        for name, p in self.probabilities.items():
            lines.append(f"  {name}  {100 * p:5.1f} %  {'█' * round(30 * p)}".rstrip())
        return "\n".join(lines)


class Reader:
    """A trained network that reads digits from pictures.

    Args:
        path: a file of weights, or the folder of a run.
        device: where to compute.

    Attributes:
        path: the file.
        device: where the network is.
        model, info: the network in evaluation mode, and its description.
        data: the data set that it was trained on, :class:`MNIST` or :class:`Digits`.

    Raises:
        CheckpointError: no such file, or not weights of a network that reads digits.
    """

    def __init__(self, path: Path, device: str = "cpu") -> None:
        self.path = newest_weights(path) if path.is_dir() else path
        self.device = device
        self.model: Module
        self.info: ModelInfo
        self.model, self.info = load_model(self.path, device)
        kinds: tuple[Any, ...] = (MNIST, Digits)
        sizes = {(1, kind.frame["size"], kind.frame["size"]): kind for kind in kinds}
        if self.info.input_size not in sizes:
            known = " or ".join(map(str, sizes))
            raise CheckpointError(f"{self.path}: input_size must be {known} to read digits; got {self.info.input_size}")
        self.data = sizes[self.info.input_size]

    @property
    def gives_number(self) -> bool:
        """Whether the network has one output, the label as a number."""
        return str(self.info.extra.get("loss", "")).startswith("mse")

    def load_data(self, split: str = "test", data_dir: Path | None = None) -> Any:
        """A split of :attr:`data`."""
        if self.data is Digits:
            return Digits(split)
        return MNIST(data_dir, split, download=data_dir is None)

    def prepared(self, picture: Any) -> np.ndarray:
        """The picture (path, open file, Pillow picture, array) as the network wants it: (1, S, S) float32."""
        return prepare_digit(picture, **self.data.frame)

    def outputs(self, images: np.ndarray) -> np.ndarray:
        """The network's outputs (N, classes or 1) for prepared images (N, 1, S, S), both on the host.

        Raises:
            CheckpointError: they are not one for each class (or one number), or not all finite.
        """
        parts = (images[i : i + _BATCH] for i in range(0, len(images), _BATCH))
        with no_grad():
            found = np.concatenate([self.model(Tensor(part).to(self.device)).to("cpu").numpy() for part in parts])
        wanted = 1 if self.gives_number else len(self.info.classes)
        if found.shape != (len(images), wanted):
            raise CheckpointError(
                f"{self.path}: the network must give {wanted} numbers for each image, as its classes say; "
                f"got an array of shape {found.shape} for {len(images)}"
            )
        if not np.isfinite(found).all():
            raise CheckpointError(
                f"{self.path}: the network must give finite numbers; got NaN or infinity: its training went wrong, "
                "and a smaller --lr may save it"
            )
        return found

    def digits(self, outputs: np.ndarray) -> np.ndarray:
        """The index of the class that each row of ``outputs`` means, (N,) int64.

        For a network that gives a number it is the nearest integer, which need not be a class.
        """
        if self.gives_number:
            return np.rint(outputs[:, 0]).astype(np.int64)
        return outputs.argmax(1)

    def read(self, picture: Any) -> Reading:
        """Read one picture.

        Raises:
            DataError: it is no picture, or shows nothing.
            CheckpointError: the network's outputs cannot be read as digits, see :meth:`outputs`.
        """
        outputs = self.outputs(self.prepared(picture)[None])
        digit = self.info.classes[int(np.clip(self.digits(outputs)[0], 0, len(self.info.classes) - 1))]
        if self.gives_number:
            return Reading(digit, {}, float(outputs[0, 0]))
        shares = F.softmax(Tensor(outputs.astype(np.float64)), 1).numpy()[0]
        return Reading(digit, dict(zip(self.info.classes, map(float, shares), strict=True)))


def newest_weights(folder: Path) -> Path:
    """The newest weights in the folder of a run, or in a folder of runs."""
    found = sorted(folder.rglob("weights.safetensors"), key=lambda path: path.stat().st_mtime)
    if not found:
        raise CheckpointError(
            f"{folder}: no weights.safetensors in this folder; expected one that `rawgrad train` made"
        )
    return found[-1]


def find_weights(places: Sequence[Path] = PLACES) -> Path:
    """The newest weights in the first of ``places`` that has any."""
    for place in places:
        if any(place.rglob("weights.safetensors")):
            return newest_weights(place)
    looked = ", ".join(map(str, places))
    raise CheckpointError(
        f"no trained model found in {looked}: `rawgrad train` makes one in under a minute; "
        "or name a file of weights or the folder of a run"
    )


# ---- test digits as pictures ------------------------------------------------------------------


def _scaled(side: int) -> Callable[[np.ndarray, np.random.Generator], np.ndarray]:
    def scaled(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        from PIL import Image

        return np.asarray(Image.fromarray(pixels).resize((side, side), Image.Resampling.BICUBIC))

    return scaled


def _inverted(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return 255 - pixels


def _shifted(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The ink at a random place of the frame."""
    rows, columns = (np.flatnonzero(pixels.any(axis)) for axis in (1, 0))
    ink = pixels[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    top, left = (int(rng.integers(room + 1)) for room in np.subtract(pixels.shape, ink.shape))
    moved = np.zeros_like(pixels)
    moved[top : top + ink.shape[0], left : left + ink.shape[1]] = ink
    return moved


def _photographed(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Dark on paper, somewhere on a sheet of 120 x 120, in light that falls to half across it, with noise."""
    side, sheet = 84, np.zeros((120, 120))
    top, left = (int(rng.integers(len(sheet) - side + 1)) for _ in range(2))
    sheet[top : top + side, left : left + side] = _scaled(side)(pixels, rng) / 255.0
    y, x = np.mgrid[-1:1:120j, -1:1:120j]
    turn = rng.uniform(0, 2 * np.pi)
    light = 0.75 + 0.25 * (np.cos(turn) * x + np.sin(turn) * y) / np.sqrt(2)
    noisy = (235 - 175 * sheet) * light + rng.normal(0, 6, sheet.shape)
    return np.clip(noisy, 0, 255).astype(np.uint8)


#: What is done to a digit's pixels (H, W) uint8, light on black, before it is written out.
VARIANTS: dict[str, Callable[[np.ndarray, np.random.Generator], np.ndarray]] = {
    "unchanged": lambda pixels, rng: pixels,
    "scaled to 20 x 20": _scaled(20),
    "scaled to 56 x 56": _scaled(56),
    "scaled to 150 x 150": _scaled(150),
    "inverted": _inverted,
    "shifted": _shifted,
    "shifted, scaled to 100 x 100, inverted": lambda p, rng: _inverted(_scaled(100)(_shifted(p, rng), rng), rng),
    "photographed: uneven light, noise": _photographed,
}


def as_file(pixels: np.ndarray, kind: str = "PNG") -> io.BytesIO:
    """Grey ``pixels`` (H, W) uint8 as a picture file in memory."""
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    file.seek(0)
    return file


def share_read(
    reader: Reader, pixels: np.ndarray, labels: np.ndarray, *, kind: str = "PNG", seed: int = 0
) -> Iterator[tuple[str, float]]:
    """For each of :data:`VARIANTS`, its name and the share of digits read right.

    Args:
        reader: reads.
        pixels: test digits (N, H, W) uint8 from 0 to 255, light on black.
        labels: their classes (N,).
        kind: ``"PNG"`` or ``"JPEG"``.
        seed: of the shifts.
    """
    for name, change in VARIANTS.items():
        rng = np.random.default_rng(seed)
        images = np.stack([reader.prepared(as_file(change(digit, rng), kind)) for digit in pixels])
        yield name, float(np.mean(reader.digits(reader.outputs(images)) == labels))
