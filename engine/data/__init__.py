"""Data sets and the way from them to batches.

``dataset.py`` says what a data set is, ``loader.py`` gives batches of one, ``assemble.py`` makes them,
``prefetch.py`` makes them ahead of time, by threads or by ``processes.py``, and ``ring.py`` brings them to
a GPU; ``transforms.py`` changes images on the way, ``sampler.py`` splits an order over ranks.
``checks.py`` looks for what is wrong with a data set; ``idx.py``, ``mnist.py``, ``digits.py``, ``images.py``
and ``text.py`` read files.
"""

from __future__ import annotations

from .assemble import collate
from .checks import DataReport, SplitReport, check_data, sample_sheet, sample_text
from .dataset import Dataset, Subset, TensorDataset, random_split
from .digits import Digits
from .idx import read_idx
from .images import ImageFolder, load_image, prepare_digit
from .loader import DataLoader
from .mnist import MNIST, download_mnist, find_mnist
from .sampler import DistributedSampler
from .text import TextLines, TextWindows
from .timing import Timing
from .transforms import (
    CenterCrop,
    Compose,
    Draws,
    Normalize,
    Pad,
    RandomCrop,
    RandomHorizontalFlip,
    RandomRotation,
    RandomShift,
    RandomVerticalFlip,
)

__all__ = [
    "MNIST",
    "CenterCrop",
    "Compose",
    "DataLoader",
    "DataReport",
    "Dataset",
    "Digits",
    "DistributedSampler",
    "Draws",
    "ImageFolder",
    "Normalize",
    "Pad",
    "RandomCrop",
    "RandomHorizontalFlip",
    "RandomRotation",
    "RandomShift",
    "RandomVerticalFlip",
    "SplitReport",
    "Subset",
    "TensorDataset",
    "TextLines",
    "TextWindows",
    "Timing",
    "check_data",
    "collate",
    "download_mnist",
    "find_mnist",
    "load_image",
    "prepare_digit",
    "random_split",
    "read_idx",
    "sample_sheet",
    "sample_text",
]
