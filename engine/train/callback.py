"""What may be added to a training from outside: callbacks, and the run as they see it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ..module import Module
from ..optim.lr_scheduler import LRScheduler
from ..optim.optimizer import Optimizer
from .evaluation import Evaluation, LossFunction, Score
from .records import Epoch, History, Progress, Step


class Training:
    """A run of :func:`fit`, while it is under way.

    Attributes:
        model, optimizer, schedule, loader, validation: as they were given.
        loss_function, score: likewise.
        epochs, max_steps: where it is to end.
        progress: where it stands; ``progress.history`` is what it did.
        batches: (inputs, targets) of the step under way: one, or as many as are accumulated.
        predictions: of these, once they are there; one tensor for each.
        scaled: whether the loss is scaled, so that gradients may overflow.
        stopped: why it ends before its time; None as long as it does not.
    """

    def __init__(
        self,
        model: Module,
        loader: Any,
        loss_function: LossFunction,
        optimizer: Optimizer,
        score: Score,
        schedule: LRScheduler | None,
        validation: Any,
        epochs: int,
        max_steps: int | None,
    ) -> None:
        self.model, self.loader, self.loss_function, self.optimizer = model, loader, loss_function, optimizer
        self.score, self.schedule, self.validation = score, schedule, validation
        self.epochs, self.max_steps = epochs, max_steps
        self.progress = Progress()
        self.batches: list[tuple[Any, Any]] = []
        self.predictions: list[Any] = []
        self.scaled = False
        self.stopped: str | None = None

    @property
    def history(self) -> History:
        """All steps and epochs so far."""
        return self.progress.history

    def steps_left(self) -> bool:
        """Whether ``max_steps`` allows another one."""
        return self.max_steps is None or self.progress.step < self.max_steps

    def stop(self, reason: str) -> None:
        """End the run after the step, or after the epoch if it is at its end; ``reason`` is kept in ``stopped``."""
        self.stopped = self.stopped or reason


class Callback:
    """Something that is told what a training does; subclass it, and say what you want to know.

    Callbacks are called in the order in which they were given.  What they raise ends the training.

    One that has a ``name`` is part of the checkpoints: it must have ``state_dict`` and ``load_state_dict``, and goes
    on where it was.
    """

    #: Under which its state is saved; without one it has none.
    name: str | None = None

    def on_start(self, training: Training) -> None:
        """Before the first step; what was saved is there already."""

    def on_batch(self, training: Training) -> None:
        """Before a step: ``training.batches`` are known."""

    def on_loss(self, training: Training, loss: Any) -> None:
        """Within a step, after the forward pass of each batch.  A captured step does not call it."""

    def on_gradients(self, training: Training) -> None:
        """Within a step, before the optimizer's.  A captured step does not call it."""

    def on_step(self, training: Training, step: Step) -> None:
        """After a step and its record, before it is saved."""

    def on_validation(self, training: Training, found: Evaluation) -> None:
        """After the validation set was evaluated."""

    def on_epoch(self, training: Training, epoch: Epoch) -> None:
        """After an epoch and its record, before it is saved."""

    def on_end(self, training: Training, error: BaseException | None) -> None:
        """At the end, also at a bad one; ``error`` is what was raised."""

    def looks_inside(self) -> bool:
        """Whether it wants to be called within a step, which a captured step does not do."""
        return any(getattr(type(self), hook) is not getattr(Callback, hook) for hook in ("on_loss", "on_gradients"))

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs of it."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what :meth:`state_dict` gave."""


class Calling(Callback):
    """Plain functions of the records: ``on_step`` and ``on_epoch`` of :func:`fit`."""

    def __init__(self, on_step: Callable[[Step], None] | None, on_epoch: Callable[[Epoch], None] | None) -> None:
        self._on_step, self._on_epoch = on_step, on_epoch

    def on_step(self, training: Training, step: Step) -> None:
        if self._on_step is not None:
            self._on_step(step)

    def on_epoch(self, training: Training, epoch: Epoch) -> None:
        if self._on_epoch is not None:
            self._on_epoch(epoch)
