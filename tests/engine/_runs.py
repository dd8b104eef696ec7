"""A small training with all that has a state: dropout, batch norm, Adam, a schedule, shuffling, random shifts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

import rawgrad as rg
from rawgrad import data, nn, optim
from rawgrad import functional as F
from rawgrad.engine.checkpoint import Checkpoints
from rawgrad.engine.train import fit
from rawgrad.engine.weights import pack

SAMPLES, BATCH, EPOCHS = 40, 6, 3
STEPS = EPOCHS * -(-SAMPLES // BATCH)


class Pictures(data.Dataset):
    """Digits that are read one by one, so that readers have something to do."""

    def __init__(self, samples=SAMPLES):
        split = data.Digits.splits()["train"]
        self.images, self.labels = split.batch(np.arange(samples))

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        return self.images[index], int(self.labels[index])


@dataclass(frozen=True)
class How:
    """What must not change the bits, but for the backend."""

    backend: str = "numpy"
    workers: int = 0
    processes: bool = False
    capture: bool = False

    @property
    def device(self):
        return "cpu" if self.backend in ("numpy", "numba") else "cuda"


def network():
    return nn.Sequential(
        nn.Flatten(), nn.Linear(64, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, 10)
    )


def run(folder, how=How(), resume=False, samples=SAMPLES, **options):
    """One training in ``folder``; gives the record."""
    with rg.backend(how.backend), Checkpoints(folder) as checkpoints:
        rg.manual_seed(7)
        model = network().to(how.device)
        optimizer = optim.Adam(model.parameters(), lr=0.01)
        pictures = Pictures(samples)
        with data.DataLoader(
            pictures, BATCH, shuffle=True, seed=3, device=how.device, transform=data.RandomShift(1),
            num_workers=how.workers, processes=how.processes,
        ) as loader, data.DataLoader(pictures, 20, device=how.device) as validation:  # fmt: skip
            steps = EPOCHS * len(loader)
            return fit(
                model, loader, F.cross_entropy, optimizer, epochs=options.pop("epochs", EPOCHS), validation=validation,
                schedule=optim.lr_scheduler.CosineAnnealingLR(optimizer, steps), capture=how.capture, progress=False,
                checkpoints=checkpoints, resume=checkpoints.load() if resume else None, **options,
            )  # fmt: skip


def bits(folder: Path):
    """All that the newest checkpoint in ``folder`` holds, but for what tells the time."""
    with Checkpoints(folder) as checkpoints:
        return bits_of(checkpoints.load())


def bits_of(checkpoint):
    state = {**checkpoint.state, "progress": dict(checkpoint.state["progress"])}
    for name in ("seconds", "waiting"):
        state["progress"].pop(name)
    state["progress"]["epochs"] = state["progress"]["epochs"][:, :5]  # seconds and samples in a second follow
    packed = pack(state)
    return {"numbers": repr(packed.skeleton).encode(), **{n: a.tobytes() for n, a in packed.arrays.items()}}
