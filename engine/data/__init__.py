"""Data sets and the way from them to batches.

``dataset.py`` says what a data set is, ``loader.py`` gives batches of one, ``assemble.py`` makes them,
``prefetch.py`` makes them ahead of time, ``checks.py`` looks for what is wrong with a data set;
``idx.py``, ``mnist.py``, ``digits.py`` and ``images.py`` read files.
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

__all__ = [
    "MNIST",
    "DataLoader",
    "DataReport",
    "Dataset",
    "Digits",
    "ImageFolder",
    "SplitReport",
    "Subset",
    "TensorDataset",
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
