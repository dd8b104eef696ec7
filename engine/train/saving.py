"""Saving a run now and then, and ending it when that is wished."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from types import TracebackType
from typing import Any

from ..checkpoint import Checkpoints, Interval, states_of
from ..stopping import Stopping
from .records import Epoch, Progress


def worth(epoch: Epoch) -> float:
    """The score of a checkpoint: the accuracy, or else minus the loss, on the validation set if there is one."""
    validated = epoch.validation_loss == epoch.validation_loss
    accuracy, loss = (epoch.validation_accuracy, epoch.validation_loss) if validated else (epoch.accuracy, epoch.loss)
    return accuracy if accuracy == accuracy else -loss


class Saver:
    """Saves a run of :func:`fit` and ends it when that is wished; without a folder it does nothing."""

    def __init__(
        self, checkpoints: Checkpoints | None, every: int | None, parts: Mapping[str, Any], at: Progress
    ) -> None:
        self._checkpoints, self._parts, self._at = checkpoints, parts, at
        self._interval = None if checkpoints is None or every is None else Interval(checkpoints, every, at.step)
        self._stopping = Stopping()

    def __enter__(self) -> Saver:
        if self._checkpoints is not None:
            self._stopping.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is None and self._checkpoints is not None:
                self._checkpoints.wait()
                self._stop_if_wished()
        finally:
            self._stopping.__exit__(kind, error, trace)

    def before_step(self) -> None:
        """Wait if the disk is too far behind."""
        if self._interval is not None:
            self._interval.before(self._at.step)

    def after_step(self) -> None:
        """Save if it is time, and end if that is wished."""
        if self._stopping.signal is not None:
            self.save()
            self._stop_if_wished()
        if self._interval is not None and self._interval.due(self._at.step):
            self.save()

    def watched(self, batches: Iterable[Any]) -> Iterable[Any]:
        """``batches``, which are left early if the run is to end; before them is a good place to go on."""
        if self._checkpoints is None:
            return batches
        return self._watched(batches)

    def _watched(self, batches: Iterable[Any]) -> Iterator[Any]:
        for batch in batches:
            if self._stopping.signal is not None:
                self.save()
                self._stop_if_wished()
            yield batch

    def save(self, score: float | None = None) -> None:
        """Save, if there is a folder."""
        if self._checkpoints is not None:
            self._checkpoints.save(states_of(self._parts), step=self._at.step, score=score)

    def _stop_if_wished(self) -> None:
        if self._checkpoints is not None and self._stopping.signal is not None:
            self._checkpoints.wait()
            raise self._stopping.raised(f"step {self._at.step} is saved in {self._checkpoints.folder}")
