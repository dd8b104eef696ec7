"""A training in TensorBoard, by tensorboardX."""

from __future__ import annotations

import math
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from ...kernels._errors import ArgumentError
from ..metrics import RunningAverage
from .callback import Training
from .distributions import Distribution
from .looks import Look, SeenDigits
from .records import Epoch, Step
from .watching import Watched

#: The paper of a digit that was read wrong, as red, green, blue.
WRONG = (255, 184, 178)


class TensorBoard(Watched):
    """Writes what TensorBoard shows: curves, distributions, digits.

    It can be a callback of its own, and then writes the curves alone, or one that a :class:`Watcher` tells.  A run
    that goes on hides what was written of later steps.  Curves of training are means over ``every`` steps.

    Close it at the end, best by ``with``.

    Args:
        folder: to be named by ``tensorboard --logdir``; is made if it is not there.
        every: steps between two points of the curves of training.

    Raises:
        ArgumentError: tensorboardX is not installed; ``every`` is none.
        OSError: the folder cannot be written in.
    """

    def __init__(self, folder: str | Path, every: int = 10) -> None:
        if type(every) is not int or every < 1:
            raise ArgumentError(f"TensorBoard: every must be an integer of at least 1; got {every!r}")
        try:
            import tensorboardX  # noqa: F401
        except ImportError as error:
            raise ArgumentError(
                f"TensorBoard: needs tensorboardX, which cannot be imported ({error}); "
                "`pip install 'rawgrad[tensorboard]'` or `pip install tensorboardX` brings it"
            ) from None
        self.folder, self.every = Path(folder), every
        self.folder.mkdir(parents=True, exist_ok=True)
        self._writer: Any = None
        self._since: dict[str, RunningAverage] = {}
        self._step = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Write what is still to be written."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def on_start(self, training: Training) -> None:
        self._open(training.progress.step)

    def _open(self, step: int) -> Any:
        if self._writer is None:
            from tensorboardX import SummaryWriter

            # The suffix keeps a file of the same second from being written over.
            number = len(list(self.folder.glob("events.out.tfevents.*")))
            self._writer = SummaryWriter(
                str(self.folder), purge_step=step + 1, max_queue=1000, filename_suffix=f".{number}"
            )
        return self._writer

    def on_step(self, training: Training, step: Step) -> None:
        samples = sum(len(inputs) for inputs, _ in training.batches)
        for name, value in (("loss", step.loss), ("accuracy", step.accuracy)):
            if math.isfinite(value) or name == "loss":
                self._since.setdefault(name, RunningAverage()).update(value, samples)
        self._step = step.step + 1
        if self._step == 1 or self._step % self.every == 0:
            self._curves()
            self._scalar("learning_rate", step.lr)

    def _curves(self) -> None:
        for name, mean in self._since.items():
            self._scalar(f"{name}/train", mean.value)
        self._since = {}

    def on_epoch(self, training: Training, epoch: Epoch) -> None:
        if self._since:
            self._curves()
        for name, value in (("loss", epoch.validation_loss), ("accuracy", epoch.validation_accuracy)):
            if value == value:
                self._scalar(f"{name}/validation", value)
        for name, value in epoch.metrics.items():
            self._scalar(f"{name}/validation", value)
        self._scalar("speed/samples_per_second", epoch.samples_per_second)
        if epoch.waiting == epoch.waiting:
            self._scalar("speed/share_of_waiting", epoch.waiting / max(epoch.seconds, 1e-9))
        self._writer.flush()

    def _scalar(self, name: str, value: float) -> None:
        self._open(self._step).add_scalar(name, value, self._step)

    def on_look(self, training: Training, look: Look) -> None:
        for kind, distributions in look.distributions.items():
            for name, found in distributions.items():
                self._histogram(f"{kind}/{name.replace(' ', '_')}", found, look.step)
        if look.digits is not None:
            self.picture("digits/step", sheet(look.digits), look.step)

    def _histogram(self, name: str, found: Distribution, step: int) -> None:
        seen = found.seen - found.not_finite
        if not seen:
            return
        squares = seen * (found.std**2 + found.mean**2)
        limits = found.edges[1:].tolist()
        self._open(step).add_histogram_raw(
            name, float(found.quantiles[0]), float(found.quantiles[-1]), seen, seen * found.mean, squares,
            limits, found.histogram.tolist(), step,
        )  # fmt: skip

    def picture(self, name: str, pixels: np.ndarray, step: int) -> None:
        """Show a picture, (H, W, 3) uint8."""
        self._open(step).add_image(name, pixels, step, dataformats="HWC")

    def on_end(self, training: Training, error: BaseException | None) -> None:
        if self._writer is not None:
            self._writer.flush()


def sheet(digits: SeenDigits, columns: int = 10) -> np.ndarray:
    """Digits side by side, dark on light, those that were read wrong on red, (H, W, 3) uint8."""
    paper = np.where((digits.truth != digits.read)[:, None], WRONG, 255).astype(np.uint16)[:, None, None]
    pixels = (paper * (255 - digits.images[..., None]) // 255).astype(np.uint8)  # (n, H, W, 3)
    count, height, width, _ = pixels.shape
    rows = -(-count // columns)
    whole = np.full((rows, height + 1, columns, width + 1, 3), 255, np.uint8)
    for i in range(count):
        whole[i // columns, :height, i % columns, :width] = pixels[i]
    return whole.reshape(rows * (height + 1), columns * (width + 1), 3)
