"""What is seen of a training now and then, and the folder in which it is kept."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ...kernels._errors import CheckpointError
from ..weights import load_state, save_state, sweep
from .distributions import Distribution, from_table, table

_NAME = re.compile(r"step-(\d{6,})\.safetensors")


@dataclass(frozen=True)
class SeenDigits:
    """Some inputs that are pictures, and what they were read as.

    Attributes:
        images: (n, H, W) uint8, 255 where the input is greatest.
        truth, read: (n,) int64, the true classes and those that were read.
        probabilities: (n,) of the classes that were read; None where there is no such thing.
    """

    images: np.ndarray
    truth: np.ndarray
    read: np.ndarray
    probabilities: np.ndarray | None = None

    def state_dict(self) -> dict[str, Any]:
        """To be saved."""
        return dict(vars(self))

    @staticmethod
    def of(state: Mapping[str, Any]) -> SeenDigits:
        """From what :meth:`state_dict` gave.

        Raises:
            CheckpointError: it is something else.
        """
        try:
            found = SeenDigits(**state)
            sizes = {len(values) for values in vars(found).values() if values is not None}
            whole = found.images.ndim == 3 and found.images.dtype == np.uint8 and len(sizes) == 1
        except (TypeError, AttributeError) as error:
            raise CheckpointError(f"not digits and what they were read as: {error!r}") from None
        if not whole:
            raise CheckpointError(f"not digits and what they were read as: {found.images.shape}, {sizes} of them")
        return found


@dataclass(frozen=True)
class Look:
    """What is seen of a training after a step.

    Attributes:
        step: steps done.
        epoch: of the last of them, from 0.
        distributions: by kind and name: ``"weights"`` and ``"biases"`` as the step left them, ``"gradients"`` as it
            used them, ``"activations"`` as the layers then gave them, in evaluation mode, for the first inputs of
            the step.  Weights and biases also have one of all together, ``"all"``.
        digits: the first inputs of the step, and what they were read as before it; None if they are no pictures.
    """

    step: int
    epoch: int
    distributions: dict[str, dict[str, Distribution]]
    digits: SeenDigits | None


@dataclass(frozen=True)
class Outcome:
    """How a trained network did on the test set.

    Attributes:
        confusion: (K, K) int64, how often each true class (row) was read as each (column).
        digits: mistakes first, of equals the highest loss.
        count, right: inputs, and those read right.
        classes: their names.
    """

    confusion: np.ndarray
    digits: SeenDigits
    count: int
    right: int
    classes: list[str]


class Looks:
    """A folder of looks: ``step-000100.safetensors`` for each, and ``test.safetensors``.

    Each file is written whole or not at all, and what was changed in one is noticed.

    Args:
        folder: is made when something is saved.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)

    def save(self, look: Look) -> None:
        """Keep a look; one of the same step is replaced."""
        self._save(f"step-{look.step:06d}", {
            "step": look.step, "epoch": look.epoch,
            "distributions": {kind: table(found) for kind, found in look.distributions.items()},
            "digits": None if look.digits is None else look.digits.state_dict(),
        })  # fmt: skip

    def save_outcome(self, outcome: Outcome) -> None:
        """Keep what came out of the test."""
        self._save("test", {**vars(outcome), "digits": outcome.digits.state_dict()})

    def _save(self, name: str, state: dict[str, Any]) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        save_state(self.folder / f"{name}.safetensors", state)

    def steps(self) -> list[int]:
        """After which steps there are looks."""
        return sorted(self._files())

    def load(self, step: int) -> Look:
        """The look after so many steps.

        Raises:
            CheckpointError: there is none, or it is damaged.
        """
        path = self._files().get(step, self.folder / f"step-{step:06d}.safetensors")
        state = load_state(path)
        try:
            kinds = {str(kind): from_table(saved) for kind, saved in state["distributions"].items()}
            digits = None if state["digits"] is None else SeenDigits.of(state["digits"])
            return Look(int(state["step"]), int(state["epoch"]), kinds, digits)
        except (KeyError, TypeError, ValueError, AttributeError, CheckpointError) as error:
            raise CheckpointError(f"{path}: is not a look at a training: {error}") from None

    def outcome(self) -> Outcome | None:
        """What came out of the test, if it was kept.

        Raises:
            CheckpointError: it is damaged.
        """
        path = self.folder / "test.safetensors"
        if not path.exists():
            return None
        state = load_state(path)
        try:
            found = Outcome(**{**state, "digits": SeenDigits.of(state["digits"])})
            if found.confusion.shape != (len(found.classes),) * 2 or not 0 <= found.right <= found.count:
                raise CheckpointError(f"{found.confusion.shape}, {found.right} of {found.count} right")
            return found
        except (KeyError, TypeError, AttributeError, CheckpointError) as error:
            raise CheckpointError(f"{path}: is not what came out of a test: {error}") from None

    def keep_until(self, step: int) -> None:
        """Remove what was seen after so many steps, and the test: a run goes on from there."""
        if not self.folder.is_dir():
            return
        sweep(self.folder)
        for seen, path in self._files().items():
            if seen > step:
                path.unlink()
        (self.folder / "test.safetensors").unlink(missing_ok=True)

    def _files(self) -> dict[int, Path]:
        found = ((_NAME.fullmatch(path.name), path) for path in self.folder.glob("step-*.safetensors"))
        return {int(match[1]): path for match, path in found if match}


def thinned(steps: Sequence[int], most: int) -> list[int]:
    """At most ``most`` of ``steps``, evenly spread, the first and the last among them."""
    if len(steps) <= most:
        return list(steps)
    return [steps[i] for i in np.linspace(0, len(steps) - 1, most).round().astype(int).tolist()]
