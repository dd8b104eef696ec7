"""MNIST: 70,000 handwritten digits of 28×28 pixels, from IDX files or ``mnist.json.gz``.

The split is 50,000 for training, 10,000 for validation (the last of the original 60,000) and
10,000 for testing.

Source: Y. LeCun, C. Cortes and C. Burges, "The MNIST database of handwritten digits", 1998.
"""

from __future__ import annotations

import gzip
import hashlib
import http.client
import json
import os
import sys
import tempfile
import urllib.error
import urllib.request
from pathlib import Path
from types import MappingProxyType
from typing import BinaryIO

import numpy as np

from ...kernels._errors import ArgumentError, DataError
from .dataset import TensorDataset
from .idx import GZIP_ERRORS, read_idx

#: The four IDX files and the SHA-256 of each, unpacked.
FILES = {
    "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}
JSON_FILE = "mnist.json.gz"
MIRROR = "https://ossci-datasets.s3.amazonaws.com/mnist/"
#: Samples of each split; the IDX "train" files hold the first two.
COUNTS = {"train": 50_000, "validation": 10_000, "test": 10_000}
PIXELS = 28 * 28

_CHUNK = 2**20
#: White space is skipped in pieces of this many bytes.
_GLANCE = 1024
#: Larger than any of the four files, unpacked (47,040,016 bytes).
_LARGEST = 50_000_000
#: Where below a given folder the files are looked for; the last is torchvision's habit.
_SUBFOLDERS = ("", "mnist", "MNIST/raw")

Split = tuple[np.ndarray, np.ndarray]  # images (N, 28, 28) uint8, labels (N,) uint8


class MNIST(TensorDataset):
    """One split of MNIST; ``mnist[i]`` is (image, label).

    Args:
        root: the folder (or its subfolder ``mnist``) with the four IDX files, gzipped or not, or
            with ``mnist.json.gz``; or that JSON file itself.  None: :func:`find_mnist` looks.
        split: ``"train"``, ``"validation"`` or ``"test"``.
        raw: leave pixels at 0 to 255 instead of scaling them to [0, 1].
        download: with ``root`` None, fetch the files if they are nowhere on this machine.

    Attributes:
        images: (N, 1, 28, 28) float32, in [0, 1], or whole numbers 0 to 255 if ``raw``.
        labels: (N,) int64, 0 to 9; ``targets`` is another name for them, as in torch.
        data: (N, 28, 28) uint8, the pixels as stored, as in torch.
        classes: the names of the ten classes.
        frame: how :func:`~rawgrad.data.prepare_digit` has to frame a picture to be like these.
        split: which split this is.

    Raises:
        DataError: the files are missing, damaged, or not MNIST.
        ArgumentError: there is no such split.
    """

    classes = tuple("0123456789")
    frame = MappingProxyType({"size": 28, "fill": 20 / 28, "centre": 14.5 / 28})

    def __init__(
        self,
        root: str | os.PathLike[str] | None = None,
        split: str = "train",
        *,
        raw: bool = False,
        download: bool = False,
    ) -> None:
        if split not in COUNTS:
            raise ArgumentError(f"MNIST: split must be one of {', '.join(map(repr, COUNTS))}; got {split!r}")
        self._fill(_load(_located(root, download), [split])[split], split, raw)

    def _fill(self, arrays: Split, split: str, raw: bool) -> None:
        self.data, labels = arrays
        self.images = self.data[:, None].astype(np.float32)  # (N, 1, 28, 28)
        if not raw:
            self.images /= np.float32(255)
        self.labels = self.targets = labels.astype(np.int64)
        self.split = split
        super().__init__(self.images, self.labels)

    @classmethod
    def splits(
        cls, root: str | os.PathLike[str] | None = None, *, raw: bool = False, download: bool = False
    ) -> dict[str, MNIST]:
        """All three splits by name, reading each file once; the arguments are those of the class."""
        loaded = _load(_located(root, download), list(COUNTS))
        splits = {}
        for split in COUNTS:
            splits[split] = cls.__new__(cls)
            splits[split]._fill(loaded[split], split, raw)
        return splits


def cache_folder() -> Path:
    """The folder in which downloaded MNIST files are kept: ``rawgrad/mnist`` in the user's cache."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    default = Path.home() / ("Library/Caches" if sys.platform == "darwin" else ".cache")
    return (Path(base) if base else default) / "rawgrad" / "mnist"


def find_mnist(data_dir: str | os.PathLike[str] | None = None, *, download: bool = False) -> Path:
    """The folder that holds the four IDX files or ``mnist.json.gz``.

    Looks in ``data_dir``, then in the folder that the environment variable ``RAWGRAD_DATA`` names,
    then in :func:`cache_folder`; in each also in the subfolder ``mnist``.

    Args:
        data_dir: where to look first; may be the JSON file itself.
        download: fetch the files into the cache folder if they are nowhere.

    Raises:
        DataError: they are nowhere; the message says which files to put where.
    """
    places = [Path(place) for place in (data_dir, os.environ.get("RAWGRAD_DATA")) if place] + [cache_folder()]
    for place in places:
        if (found := _below(place)) is not None:
            return found
    if download:
        return download_mnist()
    looked = "".join(f"\n  {place}: {_missing(place)}" for place in places)
    raise DataError(f"MNIST: the data set was not found. Looked in{looked}\n{_advice()}")


def _located(root: str | os.PathLike[str] | None, download: bool) -> Path:
    """A folder or file that was named is the only one to be looked at."""
    if root is None:
        return find_mnist(download=download)
    if (found := _below(Path(root))) is not None:
        return found
    raise DataError(f"MNIST: not found in {root}: {_missing(Path(root))}\n{_advice()}")


def _below(place: Path) -> Path | None:
    if place.name.endswith((".json", ".json.gz")) and place.is_file():
        return place
    folders = [place / sub for sub in _SUBFOLDERS]
    for folder in folders:
        if all(_spelling(folder, name) for name in FILES):
            return folder
    return next((folder for folder in folders if (folder / JSON_FILE).is_file()), None)


def _spelling(folder: Path, name: str) -> Path | None:
    """The IDX file ``name`` in ``folder`` as it is spelled there: packed or not, ``.`` for ``-``."""
    stems = (name, name.replace("-idx", ".idx"))
    return next((path for stem in stems for end in ("", ".gz") if (path := folder / (stem + end)).is_file()), None)


def _missing(place: Path) -> str:
    if not place.exists():
        return "does not exist"
    if not place.is_dir():
        return "is no folder and no mnist.json.gz"
    present = [sum(_spelling(place / sub, name) is not None for name in FILES) for sub in _SUBFOLDERS]
    folder = place / _SUBFOLDERS[present.index(max(present))]
    missing = [name for name in FILES if not _spelling(folder, name)]
    return f"no {JSON_FILE}, and missing {', '.join(missing)}"


def _advice() -> str:
    return (
        f"Put these four files, gzipped (.gz) or not, into one folder: {', '.join(FILES)}; or {JSON_FILE} alone.\n"
        "Name that folder by --data-dir or by the environment variable RAWGRAD_DATA, "
        f"or let the folder be {cache_folder()}.\n"
        f"With a network rawgrad fetches them itself (download=True), from {MIRROR}."
    )


# ---- reading ----------------------------------------------------------------------------------


def _load(place: Path, splits: list[str]) -> dict[str, Split]:
    if place.is_file() or not all(_spelling(place, name) for name in FILES):
        return read_mnist_json(place if place.is_file() else place / JSON_FILE)
    loaded: dict[str, Split] = {}
    if "test" in splits:
        loaded["test"] = _read_pair(place, "t10k", COUNTS["test"])
    if "train" in splits or "validation" in splits:
        images, labels = _read_pair(place, "train", COUNTS["train"] + COUNTS["validation"])
        cut = COUNTS["train"]
        loaded["train"] = images[:cut], labels[:cut]
        loaded["validation"] = images[cut:], labels[cut:]
    return loaded


def _read_pair(folder: Path, prefix: str, count: int) -> Split:
    arrays = []
    for name, shape in ((f"{prefix}-images-idx3-ubyte", (count, 28, 28)), (f"{prefix}-labels-idx1-ubyte", (count,))):
        path = _spelling(folder, name)
        assert path is not None  # _below has seen it
        array = read_idx(path, max_bytes=_LARGEST)
        if array.dtype != np.uint8 or array.shape != shape:
            raise DataError(f"MNIST: {path} must hold uint8 of shape {shape}; got {array.dtype} of shape {array.shape}")
        arrays.append(array)
    wrong = np.flatnonzero(arrays[1] > 9)
    if wrong.size:
        label = arrays[1][wrong[0]]
        raise DataError(f"MNIST: {path}, byte {8 + wrong[0]}: label {wrong[0]} must be from 0 to 9; got {label}")
    return arrays[0], arrays[1]


def read_mnist_json(path: str | os.PathLike[str], *, max_bytes: int = 2**30) -> dict[str, Split]:
    """MNIST from JSON, gzipped or not: ``[[images, labels], [images, labels], [images, labels]]``.

    The three pairs are train, validation and test; an image is a list of 784 numbers, either whole
    ones from 0 to 255, or multiples of 1/255 or of 1/256 from 0 to 1 (both are in circulation).
    The text is read piece by piece, so it never lies in memory as a whole.

    Args:
        path: the file.
        max_bytes: refuse a file that unpacks to more.

    Returns:
        By split: images (N, 28, 28) uint8 and labels (N,) uint8.

    Raises:
        DataError: not such a file; the message names the entry and the offset in the unpacked text.
    """
    path = Path(path)
    try:
        with open(path, "rb") as file:
            packed = file.read(2) == b"\x1f\x8b"
            file.seek(0)
            return _parse_json(_Scanner(gzip.GzipFile(fileobj=file) if packed else file, path, max_bytes))
    except OSError as error:
        raise DataError(f"MNIST: {path} cannot be read: {error.strerror or error}") from error


def _parse_json(scan: _Scanner) -> dict[str, Split]:
    splits: dict[str, Split] = {}
    scan.token(b"[", "the list of three splits")
    for split, count in COUNTS.items():
        if splits:
            scan.token(b",", f"a comma before the {split} split")
        scan.token(b"[", f"the pair of images and labels of the {split} split")
        scan.token(b"[", f"the {split} images")
        values = np.empty((count, PIXELS), np.float32)
        for index in range(count):
            if index:
                scan.token(b",", f"a comma before {split} image {index} of {count}")
            values[index] = scan.numbers(f"{split} image {index}", PIXELS, 255)
        scan.token(b"]", f"the end of the {count} {split} images")
        scan.token(b",", f"a comma before the {split} labels")
        labels = scan.numbers(f"{split} labels", count, 9)
        wrong = np.flatnonzero(labels != np.floor(labels))
        if wrong.size:
            raise scan.fail(
                scan.offset, f"{split} labels, entry {wrong[0]}: a whole number from 0 to 9", labels[wrong[0]]
            )
        scan.token(b"]", f"the end of the {split} split")
        splits[split] = _as_pixels(values, split, scan.path).reshape(-1, 28, 28), labels.astype(np.uint8)
    scan.token(b"]", "the end of the list of three splits")
    scan.end()
    return splits


def _as_pixels(values: np.ndarray, split: str, path: Path) -> np.ndarray:
    """``values`` as the uint8 pixels they stand for; nothing is rounded but the last digits of decimals."""
    worst = 0
    for scale in (1.0,) if values.size and values.max() > 1 else (255.0, 256.0):
        pixels = np.rint(values * np.float32(scale))
        error = np.abs(values * np.float32(scale) - pixels)
        worst = int(error.argmax()) if error.size else 0
        if not error.size or (error.flat[worst] <= 0.05 and pixels.max() <= 255):
            return pixels.astype(np.uint8)
    raise DataError(
        f"MNIST: {path}, {split} image {worst // PIXELS}, number {worst % PIXELS}: expected whole numbers from 0 to "
        f"255, or multiples of 1/255 or 1/256 from 0 to 1; got {values.flat[worst]}"
    )


class _Scanner:
    """Reads JSON of a known structure piece by piece; ``offset`` counts unpacked bytes."""

    def __init__(self, stream: BinaryIO | gzip.GzipFile, path: Path, max_bytes: int) -> None:
        self.stream, self.path, self.max_bytes = stream, path, max_bytes
        self.text = b""  # what was read and not yet used up
        self.start = 0  # offset of text[0]
        self.position = 0  # the next byte in text

    @property
    def offset(self) -> int:
        return self.start + self.position

    def fail(self, offset: int, expected: str, came: object) -> DataError:
        return DataError(f"MNIST: {self.path}, byte {offset}: expected {expected}; got {came}")

    def more(self) -> bool:
        """Read on, dropping what was used; False at the end of the file."""
        self.text, self.start, self.position = self.text[self.position :], self.offset, 0
        end = self.start + len(self.text)
        try:
            chunk = self.stream.read(_CHUNK)
        except GZIP_ERRORS as error:
            raise self.fail(end, "a sound gzip stream", error) from error
        if end + len(chunk) > self.max_bytes:
            raise self.fail(end, f"a file that unpacks to at most max_bytes={self.max_bytes} bytes", "more")
        self.text += chunk
        return bool(chunk)

    def peek(self) -> bytes:
        """The next byte that is no white space, ``b""`` at the end of the file."""
        while True:
            rest = len(self.text) - self.position
            stripped = len(self.text[self.position : self.position + _GLANCE].lstrip(b" \t\r\n"))
            self.position += min(_GLANCE, rest) - stripped
            if stripped:
                return self.text[self.position : self.position + 1]
            if self.position == len(self.text) and not self.more():
                return b""

    def token(self, expected: bytes, what: str) -> None:
        came = self.peek()
        if came != expected:
            raise self.fail(self.offset, f"{expected.decode()!r} ({what})", _shown(came))
        self.position += 1

    def end(self) -> None:
        if came := self.peek():
            raise self.fail(self.offset, "the end of the file", _shown(came))

    def numbers(self, what: str, count: int, most: float) -> np.ndarray:
        """The next list: exactly ``count`` numbers, each from 0 to ``most``."""
        self.token(b"[", what)
        self.position -= 1
        limit = 40 * count + 1024  # no number needs more text; bounds what is parsed at once
        while (stop := self.text.find(b"]", self.position)) < 0:
            if len(self.text) - self.position > limit or not self.more():
                break
        if stop < 0 or stop - self.position > limit:
            here = self.offset if stop >= 0 or len(self.text) - self.position > limit else self.start + len(self.text)
            raise self.fail(here, f"{what}: a list of {count} numbers that ends with ']'", "none within reach")
        text = self.text[self.position : stop + 1]
        if strange := text.translate(None, b"0123456789+-.eE, \t\r\n[]"):
            at = self.offset + text.find(strange[:1])
            raise self.fail(at, f"{what}: numbers", _shown(strange[:1]))
        try:
            values = np.asarray(json.loads(text), np.float64)
        except json.JSONDecodeError as error:
            raise self.fail(self.offset + error.pos, f"{what}: a list of numbers", error.msg) from error
        except (ValueError, OverflowError, RecursionError) as error:
            raise self.fail(self.offset, f"{what}: a list of numbers from 0 to {most}", error) from error
        if values.shape != (count,):
            raise self.fail(self.offset, f"{what}: {count} numbers", len(values))
        wrong = np.flatnonzero(~((values >= 0) & (values <= most)))
        if wrong.size:
            raise self.fail(
                self.offset, f"{what}, number {wrong[0]}: a value from 0 to {most}", f"{values[wrong[0]]:g}"
            )
        self.position = stop + 1
        return values


def _shown(byte: bytes) -> str:
    return repr(byte.decode("latin-1")) if byte else "the end of the file"


# ---- downloading ------------------------------------------------------------------------------


def download_mnist(
    folder: str | os.PathLike[str] | None = None, *, mirror: str = MIRROR, timeout: float = 30.0
) -> Path:
    """Fetch the four IDX files into ``folder`` and check their SHA-256.

    Each file is unpacked while it arrives, into a temporary file that takes its final name only
    after the check, so that the folder never holds half a file.  Files already there are kept.

    Args:
        folder: where to keep them; :func:`cache_folder` if None.
        mirror: the address before the file names.
        timeout: seconds to wait for the server to say anything.

    Returns:
        The folder.

    Raises:
        DataError: no network, or what came is not the file; the message says what to do by hand.
    """
    target = cache_folder() if folder is None else Path(folder)
    for name, digest in FILES.items():
        if _spelling(target, name) is None:
            address = f"{mirror.rstrip('/')}/{name}.gz"
            try:
                target.mkdir(parents=True, exist_ok=True)
                _fetch(address, target / name, digest, timeout)
            except (OSError, http.client.HTTPException, ValueError, *GZIP_ERRORS) as error:
                reason = error.reason if isinstance(error, urllib.error.URLError) else error
                if isinstance(error, urllib.error.HTTPError):
                    error.close()  # it is the server's answer, too
                raise DataError(f"MNIST: {address} could not be fetched: {reason or error}\n{_advice()}") from error
    return target


def _fetch(address: str, path: Path, digest: str, timeout: float) -> None:
    check = hashlib.sha256()
    size = 0
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.name, suffix=".part")
    try:
        with os.fdopen(handle, "wb") as file:
            with urllib.request.urlopen(address, timeout=timeout) as answer, gzip.GzipFile(fileobj=answer) as stream:
                while chunk := stream.read(_CHUNK):
                    size += len(chunk)
                    if size > _LARGEST:
                        raise ValueError(f"it unpacks to more than {_LARGEST} bytes")
                    check.update(chunk)
                    file.write(chunk)
            if check.hexdigest() != digest:
                raise ValueError(f"its SHA-256, unpacked, must be {digest}; got {check.hexdigest()}")
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    finally:
        Path(temporary).unlink(missing_ok=True)
