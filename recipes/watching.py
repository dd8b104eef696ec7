"""Watching a run, where that is wished: into its folder, and into TensorBoard."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self

import numpy as np

from ..autograd import Tensor
from ..autograd import functional as F
from ..engine.data import DataLoader
from ..engine.data.dataset import batch_method
from ..engine.metrics import confusion_matrix
from ..engine.module import Module
from ..engine.train import Callback, Kept, Looks, Outcome, SeenDigits, TensorBoard, Watched, Watcher, predictions_of
from ..engine.train.watching import digits_of, highest
from .options import Options
from .pictures import draw_confusion, draw_digits, errors_first

#: How often it is looked, if nothing else is said, in a whole run.
LOOKS = 40


class Watching:
    """What a run needs to be watched; nothing, if nobody wants to.

    Args:
        options: what is wished.
        loss_name: of the task, which says what its predictions mean.
        steps: of the whole run.
    """

    def __init__(self, options: Options, loss_name: str, steps: int) -> None:
        self.looks = Looks(options.out / "watch")
        self._read = reader_of(loss_name)
        self.callbacks: list[Callback] = []
        self._board = TensorBoard(options.out / "tensorboard") if options.tensorboard else None
        if options.watch or options.watch_every or options.tensorboard:
            told: list[Watched] = [Kept(self.looks), *([self._board] if self._board else [])]
            every = options.watch_every or max(1, round(steps / LOOKS))
            self.callbacks.append(Watcher(told, every, read=self._read))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._board is not None:
            self._board.close()

    def begin(self, step: int) -> None:
        """Forget what was seen of another run, or after the ``step`` from which this one goes on."""
        self.looks.keep_until(step)

    def test(self, model: Module, split: Any) -> None:
        """Show how ``model`` does on the test images."""
        if not self.callbacks:
            return
        outcome = outcome_of(model, split, self._read)
        self.looks.save_outcome(outcome)
        if self._board is not None:
            step = max(self.looks.steps(), default=0)
            self._board.picture("digits/test", _pixels(draw_test_digits, outcome), step)
            self._board.picture("confusion_matrix", _pixels(draw_the_confusion, outcome), step)


def reader_of(loss_name: str) -> Any:
    """Gives the classes that predictions mean: (N, K) scores, or for ``"mse of the label"`` (N, 1) numbers."""
    return _rounded if loss_name == "mse of the label" else highest


def _rounded(predictions: np.ndarray) -> np.ndarray | None:
    return np.rint(np.nan_to_num(predictions[:, 0], nan=-1)).astype(np.int64)


def outcome_of(model: Module, split: Any, read: Any, classes: Sequence[str] | None = None, digits: int = 50) -> Outcome:
    """How ``model`` does on all of ``split``, with the first ``digits`` of the order in which mistakes come first."""
    device = next(iter(model.parameters())).device
    names = list("0123456789") if classes is None else list(classes)
    outputs, truth = predictions_of(model, DataLoader(split, 500, device=device))
    found = read(outputs)
    if outputs.shape[1] > 1:
        scores = Tensor(outputs.astype(np.float64))
        losses = F.cross_entropy(scores, Tensor(truth), reduction="none").numpy()
        chances = F.softmax(scores, 1).numpy()[np.arange(len(found)), found]
    else:
        losses, chances = (outputs[:, 0] - truth) ** 2, None
    first = errors_first(truth, found, losses)[:digits]
    whole = batch_method(split)
    assert whole is not None
    shown = digits_of(whole(first)[0], truth[first], outputs[first], read)
    assert shown is not None
    inside = (found >= 0) & (found < len(names))
    return Outcome(
        confusion_matrix(found[inside], truth[inside], len(names)),
        SeenDigits(shown.images, shown.truth, shown.read, None if chances is None else chances[first]),
        len(truth),
        int((found == truth).sum()),
        names,
    )


def draw_test_digits(axes: Any, outcome: Outcome, columns: int = 10) -> None:
    """Draw the test digits, errors first."""
    d = outcome.digits
    draw_digits(axes, d.images / 255, d.truth, d.read, d.probabilities, outcome.classes, columns=columns)


def draw_the_confusion(axes: Any, outcome: Outcome) -> None:
    """Draw the confusion matrix."""
    draw_confusion(axes, outcome.confusion, outcome.classes)


def _pixels(draw: Any, outcome: Outcome) -> np.ndarray:
    """A drawing as (H, W, 3) uint8."""
    from .curves import figure

    made, (axes,) = figure(columns=1, height=5.5)
    draw(axes, outcome)
    made.canvas.draw()
    return np.array(made.canvas.buffer_rgba())[..., :3]
