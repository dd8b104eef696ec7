"""Training a network on digits: data, loss, optimizer, saving, resuming and reporting.

A program says *what* in a :class:`Task`; :func:`train` does it.  A run leaves in its folder

``weights.safetensors``  the model, with all that ``predict`` needs
``checkpoints/``  what ``--resume`` needs: the last three and the best, see ``docs/checkpoints.md``
``steps.csv``, ``epochs.csv``  every loss, accuracy and learning rate
``result.json``  the settings, the final figures, and where they come from
``watch/``, ``tensorboard/``  what was seen on the way, if that was wished: see ``docs/watching.md``
``curves.png``  the picture of the above
"""

from __future__ import annotations

import csv
import json
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ..autograd import Tensor, manual_seed
from ..autograd import functional as F
from ..engine.checkpoint import Checkpoint, Checkpoints
from ..engine.data import MNIST, DataLoader, Digits, Subset
from ..engine.data.dataset import batch_method
from ..engine.metrics import accuracy
from ..engine.module import Module
from ..engine.optim import SGD, Adagrad, Adam, Optimizer, RMSprop, lr_scheduler
from ..engine.train import (
    Callback,
    Checks,
    EarlyStopping,
    Epoch,
    Evaluation,
    History,
    JSONLines,
    NonFiniteGuard,
    Step,
    Training,
    evaluate,
    fit,
    predictions_of,
)
from ..engine.weights import ModelInfo, load_state, load_weights, save_weights, sweep
from ..kernels._devices import device_named
from ..kernels._dispatch import backend_of
from ..kernels._errors import ArgumentError, CheckpointError
from . import machine
from .networks import build
from .options import Options
from .watching import Watching


def _label_mse(predictions: Tensor, labels: Tensor) -> Tensor:
    return F.mse_loss(predictions, labels.unsqueeze(1).to(dtype=predictions.dtype))


def _rounded_accuracy(predictions: Tensor, labels: Tensor) -> float:
    return float((predictions.detach().round().squeeze(1) == labels).float().mean())


#: Loss of (predictions, labels), and the share of right answers.
LOSSES: dict[str, tuple[Callable[[Any, Any], Tensor], Callable[[Any, Any], float]]] = {
    "cross entropy": (F.cross_entropy, accuracy),
    "summed cross entropy": (lambda p, t: F.cross_entropy(p, t, reduction="sum"), accuracy),
    "mse of the label": (_label_mse, _rounded_accuracy),
}

#: By name, of parameters, learning rate and, if it is not 0, weight decay (an L2 penalty).
OPTIMIZERS: dict[str, Callable[..., Optimizer]] = {
    "sgd": lambda p, lr, decay=0.0: SGD(p, lr=lr, weight_decay=decay),
    "momentum": lambda p, lr, decay=0.0: SGD(p, lr=lr, momentum=0.9, weight_decay=decay),
    "adagrad": lambda p, lr, decay=0.0: Adagrad(p, lr=lr, weight_decay=decay),
    "rmsprop": lambda p, lr, decay=0.0: RMSprop(p, lr=lr, weight_decay=decay),
    "adam": lambda p, lr, decay=0.0: Adam(p, lr=lr, weight_decay=decay),
}

#: Schedules by name, of an optimizer and the number of all steps.
SCHEDULES: dict[str, Callable[[Optimizer, int], lr_scheduler.LRScheduler]] = {
    "cosine": lambda optimizer, steps: lr_scheduler.CosineAnnealingLR(optimizer, steps),
    # lr = 0.0001 + 0.003 e^(-step / 2000), for an optimizer that starts with 0.0031
    "decay to a floor": lambda optimizer, steps: lr_scheduler.ExponentialDecayToFloor(optimizer, 1e-4, 2000),
}


@dataclass(frozen=True)
class Task:
    """What to train, on what, and how.

    Attributes:
        network, arguments: see ``networks.py``.
        data: ``"mnist"`` or ``"digits"``.
        loss: one of :data:`LOSSES`.
        optimizer, lr: one of :data:`OPTIMIZERS`, and its learning rate.
        schedule: one of :data:`SCHEDULES`, or None for a constant learning rate.
        epochs, batch_size: as they say.
        weight_decay: λ of the L2 penalty λ/2 Σ p² over all parameters, which is not counted in the loss.
    """

    network: str
    arguments: dict[str, Any] = field(default_factory=dict)
    data: str = "mnist"
    loss: str = "cross entropy"
    optimizer: str = "sgd"
    lr: float = 0.01
    schedule: str | None = None
    epochs: int = 5
    batch_size: int = 100
    weight_decay: float = 0.0

    def overridden(self, options: Options) -> Task:
        """This task with what the user set; a learning rate of the user's own is kept constant."""
        task = self
        if options.optimizer is not None and options.optimizer not in OPTIMIZERS:
            raise ArgumentError(f"optimizer must be one of {', '.join(OPTIMIZERS)}; got {options.optimizer!r}")
        for name in ("optimizer", "lr", "epochs", "batch_size", "weight_decay"):
            if (value := getattr(options, name)) is not None:
                task = replace(task, **{name: value})
        return replace(task, schedule=None) if options.lr is not None else task


@dataclass
class Result:
    """What came out of a run."""

    task: Task
    options: Options
    history: History
    test: Evaluation
    seconds: float

    @property
    def images_per_second(self) -> float:
        """The median over the epochs of the training throughput."""
        return float(np.median([epoch.samples_per_second for epoch in self.history.epochs] or [float("nan")]))

    def __str__(self) -> str:
        return (
            f"test accuracy {100 * self.test.accuracy:.2f} % ({self.test.count} images), "
            f"training {self.images_per_second:,.0f} images/s"
        )


#: Options that a resumed run must have too, and what they were before they were saved.
_SAME: dict[str, Any] = {"accumulate": 1, "clip_norm": None, "precision": None}
#: Data sets by the name that a task gives them.
DATA: dict[str, Any] = {"digits": Digits, "mnist": MNIST}


def load_data(task: Task, options: Options) -> dict[str, Any]:
    """The splits train, validation and test of the task's data, cut to ``options.limit``."""
    if task.data == "digits":
        splits: dict[str, Any] = dict(Digits.splits())
    else:
        splits = dict(MNIST.splits(options.data_dir, download=options.data_dir is None))
    return {name: limited(split, options.limit) for name, split in splits.items()}


def limited(split: Any, limit: int | None) -> Any:
    """The first ``limit`` images of a split, or all of it."""
    return split if limit is None or limit >= len(split) else Subset(split, range(limit))


def arrays_of(split: Any) -> tuple[np.ndarray, np.ndarray]:
    """All images and labels of a split, or of a part of one."""
    whole = batch_method(split)
    assert whole is not None
    images, labels = whole(np.arange(len(split)))
    return images, labels


def train(task: Task, options: Options, data: dict[str, Any] | None = None) -> Result:
    """Train, report each epoch, save, test.

    Args:
        task: what to do.
        options: what the user set.
        data: the splits, if they are loaded already.

    Raises:
        DataError: the data are not there, or are not what they should be.
        CheckpointError: another process trains in the folder; ``--resume`` met a state of another task.
    """
    task = task.overridden(options)
    data = load_data(task, options) if data is None else data
    with ExitStack() as stack:  # however this ends, readers end too, and the folder is given back
        run = _Run(task, options)
        stack.enter_context(run.checkpoints)
        manual_seed(options.seed)
        model = build(task.network, task.arguments).to(options.device)
        optimizer = OPTIMIZERS[task.optimizer](model.parameters(), task.lr, task.weight_decay)
        loaders = {
            name: DataLoader(
                split, task.batch_size if name == "train" else 500, shuffle=name == "train", device=options.device,
                seed=options.seed, num_workers=options.workers, prefetch=options.prefetch,
            )
            for name, split in data.items()
        }  # fmt: skip
        for loader in loaders.values():
            stack.enter_context(loader)
        schedule, steps = None, task.epochs * -(-len(loaders["train"]) // options.accumulate)
        if task.schedule is not None:
            schedule = SCHEDULES[task.schedule](optimizer, steps)
        loss, score = LOSSES[task.loss]
        found = run.found(loaders["train"])
        steps = min(steps, options.steps or steps)
        watching = stack.enter_context(Watching(options, loss_name=task.loss, steps=steps))
        watching.begin(0 if found is None else found.step)
        options.say(
            f"{task.network}: {sum(p.numel() for p in model.parameters()):,} parameters, {len(data['train']):,} "
            f"training images, {task.optimizer} lr {task.lr:g}, batches of {task.batch_size}, {task.epochs} epochs"
            + (f", weight decay {task.weight_decay:g}" if task.weight_decay else "")
        )
        warn_if_slow(model, task, options, loaders)
        start = time.perf_counter()
        history = fit(
            model, loaders["train"], loss, optimizer, epochs=task.epochs, max_steps=options.steps,
            validation=loaders["validation"], score=score, schedule=schedule,
            on_epoch=partial(run.epoch_done, loaders["train"]), progress=not (options.quiet or options.json),
            capture=options.capture, accumulate=options.accumulate, clip_norm=options.clip_norm,
            precision=options.precision, callbacks=[*run.callbacks, *watching.callbacks],
            checkpoints=run.checkpoints, save_every=options.save_every, resume=found,
        )  # fmt: skip
        seconds = time.perf_counter() - start
        test = evaluate(model, loaders["test"], loss, score)
        if run.timing and not options.workers:
            options.say(f"the last epoch: {run.timing}")
        result = Result(task, options, history, test, seconds)
        run.save_weights(model, test.accuracy)
        watching.test(model, data["test"])
        _write_records(result, run.checkpoints.settings)
    if run.lines is not None:
        run.lines.write("result", out=str(options.out), accuracy=test.accuracy, loss=test.loss, images=test.count)
    options.say(f"saved in {options.out}")
    return result


class _Run:
    """A run's folder: who holds it, what is saved there, and what is taken over from there."""

    def __init__(self, task: Task, options: Options) -> None:
        self.task, self.options = task, options
        self.checkpoints = Checkpoints(
            options.out / "checkpoints",
            settings={
                "task": _described(task),
                "seed": options.seed,
                "limit": options.limit,
                **{name: getattr(options, name) for name in _SAME},
                "device": device_named(options.device).description or options.device,
                "backend": backend_of(options.device),
            },
            say=_tell,
            on_saved=self._saved,
        )
        sweep(options.out)
        self.timing = ""  # what held the last epoch back
        self.lines = JSONLines() if options.json else None
        guard = NonFiniteGuard(options.out, self.checkpoints.settings)
        checks = Checks(lambda trouble: _tell(f"note: {trouble}"))
        self.callbacks: list[Callback] = [guard, checks] if self.lines is None else [guard, checks, self.lines]
        if options.patience is not None:
            self.callbacks.append(_Stopping(options))

    def epoch_done(self, loader: DataLoader, epoch: Epoch) -> None:
        self.options.say(str(epoch))
        self.timing = loader.timing.sentence()
        if self.options.workers:
            self.options.say(f"           {self.timing}")

    def _saved(self, checkpoint: Checkpoint) -> None:
        if checkpoint.score is not None:  # after an epoch
            self.save_weights(checkpoint.state["model"], None)

    def save_weights(self, model: Module | dict[str, Any], test_accuracy: float | None) -> None:
        frame = DATA[self.task.data].frame
        side = frame["size"]
        info = ModelInfo(
            architecture=self.task.network,
            arguments=self.task.arguments,
            input_size=(1, side, side),
            normalization={"scale": 1 / (16 if side == 8 else 255), "frame": dict(frame)},
            classes=list("0123456789"),
            extra={"loss": self.task.loss, "test_accuracy": test_accuracy},
        )
        save_weights(self.options.out / "weights.safetensors", model, info)

    def found(self, loader: DataLoader) -> Checkpoint | None:
        """What there is to go on with, if that is wished.

        Raises:
            CheckpointError: it is of another task, or damaged.
        """
        options, here = self.options, self.checkpoints.settings
        if not options.resume:
            return None
        found = self.checkpoints.load() or _of_first_format(options.out / "training.safetensors", loader)
        if found is None:
            options.say(f"nothing to resume in {options.out}: starting afresh")
            return None
        try:
            saved, progress = found.settings, found.state["progress"]
            task, step, epoch, batch = saved["task"], progress["step"], progress["epoch"], progress["batch"]
            task.get("network"), saved.get("seed")
        except (KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(f"{found.path}: is not of a run of `rawgrad train`: {error!r}") from None
        task = {"weight_decay": 0.0, **task}  # what runs had before it could be set
        # More epochs may be asked for than at first; with a schedule that depends on their number, not.
        free = {"epochs"} if self.task.schedule != "cosine" else set()
        for name in sorted(set(here["task"]) - free):
            if task.get(name) != here["task"][name]:
                raise CheckpointError(
                    f"{found.path}: cannot resume: {name} was {task.get(name)!r} and is now {here['task'][name]!r}; "
                    "use the old setting or another --out"
                )
        for name in ("seed", "limit", *_SAME):
            if saved.get(name, _SAME.get(name)) != here[name]:
                raise CheckpointError(f"{found.path}: cannot resume: the {name} was {saved.get(name)}")
        for name in ("device", "backend"):
            if saved.get(name, here[name]) != here[name]:
                _tell(
                    f"note: the run began on {name} {saved[name]!r} and is now on {here[name]!r}: it goes on from the "
                    "same state, but not bit for bit"
                )
        options.say(f"resuming after {f'step {step}, in epoch {epoch + 1}' if batch else f'epoch {epoch}'}")
        return found


class _Stopping(EarlyStopping):
    """Says why it ended the run."""

    def __init__(self, options: Options) -> None:
        super().__init__(patience=options.patience or 1)
        self._say = options.say

    def on_end(self, training: Training, error: BaseException | None) -> None:
        if training.stopped and error is None:
            self._say(f"ended early: {training.stopped}")


def _tell(text: str) -> None:
    print(f"rawgrad: {text}", file=sys.stderr)


def _of_first_format(path: Path, loader: DataLoader) -> Checkpoint | None:
    """The state that was saved after an epoch in one file, before there were checkpoints; None if there is none."""
    if not path.exists():
        return None
    old = load_state(path)
    try:
        epoch, (seed, offset) = old["epoch"], old["generator"]
        progress = {
            "step": len(old["steps"]), "epoch": epoch, "batch": 0, "losses": [0.0, 0], "scores": [0.0, 0],
            "seconds": 0.0, "steps": old["steps"], "epochs": old["epochs"],
        }  # fmt: skip
        state = {
            **{name: old[name] for name in ("model", "optimizer", "schedule")},
            "random": {"seed": seed, "offset": offset},
            "loader": {**loader.state_dict(), "epoch": epoch, "batch": 0},
            "progress": progress,
        }
        settings = {name: old[name] for name in ("task", "seed", "limit")}
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: is not of a run of `rawgrad train`: {error!r}") from None
    return Checkpoint(path, progress["step"], None, settings, state)


def warn_if_slow(model: Module, task: Task, options: Options, loaders: dict[str, DataLoader]) -> None:
    """On the simulated GPU, say on stderr how long the run may take, if that is more than a minute."""
    if device_named(options.device).description != "simulated":
        return
    images = {name: len(loader.dataset) for name, loader in loaders.items()}
    in_epoch = len(loaders["train"])
    whole, rest = divmod(min(task.epochs * in_epoch, options.steps or sys.maxsize), in_epoch)
    trained = whole * images["train"] + min(rest * task.batch_size, images["train"])
    evaluated = (whole + (rest > 0)) * images["validation"] + images["test"]
    passes = 3 * trained + evaluated  # training takes a forward pass and two like it on the way back
    if passes < 100:
        return
    seconds = passes * seconds_per_image(model, loaders["test"].dataset, options.device)
    if seconds > 60:
        limit = "" if options.limit else "; --limit N takes only the first N images of each split"
        print(
            f"note: the simulated GPU checks every load and store; training on {trained:,} images and evaluating "
            f"{evaluated:,} may take {_duration(seconds)}{limit}",
            file=sys.stderr,
        )


def seconds_per_image(model: Module, split: Any, device: str) -> float:
    """How long ``model`` takes for an image of a small batch, measured when its kernels are compiled."""
    predictions_of(model, DataLoader(limited(split, 1), device=device))
    few = limited(split, 8)
    start = time.perf_counter()
    predictions_of(model, DataLoader(few, len(few), device=device))
    return (time.perf_counter() - start) / len(few)


def _duration(seconds: float) -> str:
    for unit, size in (("day", 86400), ("hour", 3600)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}s"
    return f"{max(seconds / 60, 1):.0f} minute{'s' if seconds >= 90 else ''}"


def _described(task: Task) -> dict[str, Any]:
    """The task as it comes back from a file: through JSON."""
    return dict(json.loads(json.dumps(asdict(task))))


def _write_records(result: Result, settings: dict[str, Any]) -> None:
    out, history = result.options.out, result.history
    for name, kind, rows in (("steps", Step, history.steps), ("epochs", Epoch, history.epochs)):
        columns = [f.name for f in fields(kind) if f.name != "metrics"]
        with open(out / f"{name}.csv", "w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(columns)
            writer.writerows([[_cell(getattr(row, column)) for column in columns] for row in rows])
    figures = {
        **settings,
        "test": asdict(result.test),
        "images_per_second": result.images_per_second,
        "seconds": result.seconds,
        "made": machine.provenance(),
    }
    (out / "result.json").write_text(json.dumps(figures, indent=2) + "\n")
    from .curves import draw

    draw({str(out.name): history}, out / "curves.png")


def _cell(value: float) -> str | float:
    return f"{value:.7g}" if isinstance(value, float) else value


def load_model(path: Path, device: str = "cpu") -> tuple[Module, ModelInfo]:
    """The model in a file of weights (or in the folder of a run) on ``device``, ready to predict."""
    path = path / "weights.safetensors" if path.is_dir() else path
    _, info = load_weights(path)
    model = build(info.architecture, info.arguments).to(device)
    load_weights(path, model)
    return model.eval(), info
