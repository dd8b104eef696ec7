"""What a user may set for any program, on the command line or in Python."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..kernels._errors import ArgumentError


@dataclass(frozen=True)
class Options:
    """Settings of a run; None means the program's own.

    Attributes:
        out: folder for what the run leaves (weights, records, pictures).
        data_dir: where MNIST is; otherwise it is looked for, see ``rawgrad.data.find_mnist``.
        device: ``"cpu"`` or ``"cuda"``.
        epochs, steps: where to stop, whichever comes first.
        limit: take only so many images, the first ones, of each split.
        batch_size, lr, optimizer, weight_decay: override the program's.
        seed: of initialisation, shuffling and dropout.
        seeds: how many seeds to run, counted up from ``seed``, where a program has a curve to repeat.
        resume: continue from the state in ``out``, bit for bit; starts afresh where there is none.
        save_every: what is saved is never more than so many steps behind; None: it is saved after each epoch.
        quiet: print only the last line.
        workers: how many readers make batches ahead of time; 0: training makes them itself.
        prefetch: how many batches they may be ahead; None: two, or one more than there are readers.
        watch: look at weights, gradients, activations and digits now and then, for ``rawgrad report``.
        watch_every: so many steps apart; None: about forty times in the run.
        tensorboard: show all of it in TensorBoard, from the folder ``tensorboard`` of the run.
        capture: on a GPU, capture the training step and replay it (``docs/graphs.md``); None: if it can be.
        accumulate: batches whose gradients make one step.
        clip_norm: the greatest norm of all gradients together.
        precision: what matrix products may use on a GPU, see :class:`rawgrad.precision`.
        patience: epochs without a smaller loss on the validation set after which a run ends.
        json: print one JSON object a line, and nothing else.
    """

    out: Path
    data_dir: Path | None = None
    device: str = "cpu"
    epochs: int | None = None
    steps: int | None = None
    limit: int | None = None
    batch_size: int | None = None
    lr: float | None = None
    optimizer: str | None = None
    weight_decay: float | None = None
    seed: int = 0
    seeds: int = 1
    resume: bool = False
    save_every: int | None = None
    quiet: bool = False
    workers: int = 0
    prefetch: int | None = None
    watch: bool = False
    watch_every: int | None = None
    tensorboard: bool = False
    capture: bool | None = None
    accumulate: int = 1
    clip_norm: float | None = None
    precision: str | None = None
    patience: int | None = None
    json: bool = False

    def __post_init__(self) -> None:
        counts = ("epochs", "steps", "limit", "batch_size", "seeds", "prefetch", "save_every", "accumulate", "patience")
        for name in (*counts, "watch_every"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ArgumentError(f"--{name.replace('_', '-')} must be at least 1; got {value}")
        if self.clip_norm is not None and not self.clip_norm > 0:
            raise ArgumentError(f"--clip-norm must be positive; got {self.clip_norm:g}")
        if self.workers < 0:
            raise ArgumentError(f"--workers must be at least 0; got {self.workers}")
        if self.prefetch is not None and not self.workers:
            raise ArgumentError("--prefetch must come with --workers of at least 1: nobody else reads ahead")

    def but(self, **changes: Any) -> Options:
        """These options with some changed."""
        return replace(self, **changes)

    def say(self, text: str = "") -> None:
        """Print ``text`` unless the run is to be quiet."""
        if not (self.quiet or self.json):
            print(text, flush=True)
