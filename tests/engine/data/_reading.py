"""Data sets for reader processes, which import them from here, and a look at what a process holds."""

from __future__ import annotations

import os
import signal
import time

import numpy as np

from rawgrad.engine.data import Dataset

IMAGES = np.random.default_rng(0).random((12, 2, 5, 7), np.float32)


class Pictures(Dataset):
    """IMAGES one by one, with their index."""

    def __len__(self):
        return len(IMAGES)

    def __getitem__(self, index):
        return IMAGES[index], index


class Unhappy(Exception):
    """Of two arguments, so that it does not survive pickling."""

    def __init__(self, one, other):
        super().__init__(one)


class Reading(Dataset):
    """``n`` samples (1024 × 2 floats, index), each after a ``pause``; at one index something happens."""

    def __init__(self, n=20, at=-1, what="", pause=0.0):
        self.n, self.at, self.what, self.pause = n, at, what, pause

    def __len__(self):
        return self.n

    def __getitem__(self, index):
        if index == self.at:
            getattr(self, self.what)()
        if self.pause:
            time.sleep(self.pause)
        return np.full((1024, 2), index, np.float32), index

    def fail(self):
        raise ZeroDivisionError("in the reader")

    def fail_oddly(self):
        raise Unhappy("one", "other")

    def die(self):
        os.kill(os.getpid(), signal.SIGKILL)

    def leave(self):
        os._exit(3)

    def sleep(self):
        time.sleep(30)


class Growing(Dataset):
    """60 samples, each larger than the one before."""

    def __len__(self):
        return 60

    def __getitem__(self, index):
        return np.full(1024 * (index + 1), index, np.float32)


def total(samples):
    """A collate_fn whose arrays are its own."""
    return {"sum": np.sum([x for x, _ in samples], 0).T, "names": [str(y) for _, y in samples]}


def descriptors():
    """How many files this process has open."""
    return len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
