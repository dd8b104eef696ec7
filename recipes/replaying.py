"""``rawgrad replay``: the one step again at which a training met NaN or infinity."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..engine.train import Replay
from ..kernels._errors import CheckpointError
from .networks import build
from .training import LOSSES


def find(path: Path) -> Path:
    """``path``, or the newest of such files in it if it is the folder of a run.

    Raises:
        CheckpointError: there is none.
    """
    if not path.is_dir():
        return path
    found = sorted(path.rglob("nonfinite-step-*.safetensors"), key=lambda file: file.stat().st_mtime)
    if not found:
        raise CheckpointError(f"{path}: no nonfinite-step-*.safetensors in this folder: no step met NaN or infinity")
    return found[-1]


def again(path: Path, device: str) -> int:
    """Print what the step shows, layer by layer, and where NaN or infinity comes from; 1 if this time it does not."""
    saved = Replay(find(path))
    try:
        task = saved.settings["task"]
        network, arguments, (loss, _) = task["network"], task["arguments"], LOSSES[task["loss"]]
    except (KeyError, TypeError) as error:
        raise CheckpointError(f"{saved.path}: is not of a run of `rawgrad train`: {error!r}") from None
    model = build(network, arguments).to(device)
    print(f"{saved.path}\nthen: {saved.message}\n")

    def show(inputs: Any) -> None:
        print(model.trace(inputs), "\n", sep="")

    found = saved(model, loss, before=show)
    print(f"now: {found or 'neither NaN nor infinity: on another backend or device, sums round differently'}")
    return 0 if found else 1
