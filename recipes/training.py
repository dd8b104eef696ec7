"""Training a network on digits: data, loss, optimizer, saving, resuming and reporting.

A program says *what* in a :class:`Task`; :func:`train` does it.  A run leaves in its folder

``weights.safetensors``  the model, with all that ``predict`` needs
``training.safetensors``  what ``--resume`` needs, written after each epoch
``steps.csv``, ``epochs.csv``  every loss, accuracy and learning rate
``result.json``  the settings and the final figures
``curves.png``  the picture of the above
"""

from __future__ import annotations

import csv
import json
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, astuple, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from ..autograd import Tensor, default_generator, manual_seed
from ..autograd import functional as F
from ..engine.data import MNIST, DataLoader, Digits, Subset
from ..engine.data.dataset import batch_method
from ..engine.metrics import accuracy
from ..engine.module import Module
from ..engine.optim import SGD, Adagrad, Adam, Optimizer, RMSprop, lr_scheduler
from ..engine.train import Epoch, Evaluation, History, Step, evaluate, fit, predictions_of
from ..engine.weights import ModelInfo, load_state, load_weights, save_state, save_weights
from ..kernels._devices import device_named
from ..kernels._errors import ArgumentError, CheckpointError
from .networks import build
from .options import Options


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

OPTIMIZERS: dict[str, Callable[[Any, float], Optimizer]] = {
    "sgd": lambda p, lr: SGD(p, lr=lr),
    "momentum": lambda p, lr: SGD(p, lr=lr, momentum=0.9),
    "adagrad": lambda p, lr: Adagrad(p, lr=lr),
    "rmsprop": lambda p, lr: RMSprop(p, lr=lr),
    "adam": lambda p, lr: Adam(p, lr=lr),
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

    def overridden(self, options: Options) -> Task:
        """This task with what the user set; a learning rate of the user's own is kept constant."""
        task = self
        if options.optimizer is not None and options.optimizer not in OPTIMIZERS:
            raise ArgumentError(f"optimizer must be one of {', '.join(OPTIMIZERS)}; got {options.optimizer!r}")
        for name in ("optimizer", "lr", "epochs", "batch_size"):
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
        CheckpointError: ``--resume`` met a state of another task.
    """
    task = task.overridden(options)
    data = load_data(task, options) if data is None else data
    options.out.mkdir(parents=True, exist_ok=True)
    manual_seed(options.seed)
    model = build(task.network, task.arguments).to(options.device)
    optimizer = OPTIMIZERS[task.optimizer](model.parameters(), task.lr)
    loaders = {
        name: DataLoader(
            split, task.batch_size if name == "train" else 500, shuffle=name == "train", device=options.device,
            seed=options.seed, num_workers=options.workers, prefetch=options.prefetch,
        )
        for name, split in data.items()
    }  # fmt: skip
    schedule = None
    if task.schedule is not None:
        schedule = SCHEDULES[task.schedule](optimizer, task.epochs * len(loaders["train"]))
    loss, score = LOSSES[task.loss]
    run = _Run(task, options, model, optimizer, schedule, loaders["train"])
    first_epoch = run.resume() if options.resume else 0
    options.say(
        f"{task.network}: {sum(p.numel() for p in model.parameters()):,} parameters, {len(data['train']):,} training "
        f"images, {task.optimizer} lr {task.lr:g}, batches of {task.batch_size}, {task.epochs} epochs"
    )
    warn_if_slow(model, task, options, loaders)
    with ExitStack() as reading:  # however this ends, readers end too
        for loader in loaders.values():
            reading.enter_context(loader)
        start = time.perf_counter()
        fit(
            model, loaders["train"], loss, optimizer, epochs=task.epochs, max_steps=options.steps,
            first_epoch=first_epoch, validation=loaders["validation"], score=score, schedule=schedule,
            on_step=run.history.steps.append, on_epoch=run.epoch_done, progress=not options.quiet,
            capture=options.capture,
        )  # fmt: skip
        seconds = time.perf_counter() - start
        test = evaluate(model, loaders["test"], loss, score)
    if run.timing and not options.workers:
        options.say(f"the last epoch: {run.timing}")
    result = Result(task, options, run.history, test, seconds)
    run.save_weights(test.accuracy)
    _write_records(result)
    options.say(f"saved in {options.out}")
    return result


class _Run:
    """The pieces of a run under way: recorded, saved after each epoch, resumed."""

    def __init__(
        self, task: Task, options: Options, model: Module, optimizer: Optimizer, schedule: Any, loader: DataLoader
    ) -> None:
        self.task, self.options, self.model, self.optimizer = task, options, model, optimizer
        self.schedule, self.loader, self.history = schedule, loader, History()
        self.timing = ""  # what held the last epoch back
        self._path = options.out / "training.safetensors"

    def epoch_done(self, epoch: Epoch) -> None:
        self.options.say(str(epoch))
        self.timing = self.loader.timing.sentence()
        if self.options.workers:
            self.options.say(f"           {self.timing}")
        self.history.epochs.append(epoch)
        whole = len(self.history.steps) == (epoch.epoch + 1) * len(self.loader)
        if not whole:  # stopped in its middle by --steps: the next run begins with this epoch
            return
        state = {
            "task": _described(self.task),
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": None if self.schedule is None else self.schedule.state_dict(),
            "generator": default_generator.get_state(),
            "seed": self.options.seed,
            "limit": self.options.limit,
            "epoch": epoch.epoch + 1,
            "steps": _table(self.history.steps),
            "epochs": _table(self.history.epochs),
        }
        save_state(self._path, state)
        self.save_weights(None)

    def save_weights(self, test_accuracy: float | None) -> None:
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
        save_weights(self.options.out / "weights.safetensors", self.model, info)

    def resume(self) -> int:
        """Take over the saved state, if there is one; gives the epoch to begin with."""
        if not self._path.exists():
            self.options.say(f"nothing to resume in {self.options.out}: starting afresh")
            return 0
        state = load_state(self._path)
        # More epochs may be asked for than at first; with a schedule that depends on their number, not.
        free = {"epochs"} if self.task.schedule != "cosine" else set()
        saved, wanted = dict(state["task"]), _described(self.task)
        for name in sorted(set(wanted) - free):
            if saved.get(name) != wanted[name]:
                raise CheckpointError(
                    f"{self._path}: cannot resume: {name} was {saved.get(name)!r} and is now {wanted[name]!r}; "
                    "use the old setting or another --out"
                )
        for name in ("seed", "limit"):
            if state.get(name) != getattr(self.options, name):
                raise CheckpointError(f"{self._path}: cannot resume: the {name} was {state.get(name)}")
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.schedule is not None:
            self.schedule.load_state_dict(state["schedule"])
        default_generator.set_state(state["generator"])
        self.loader.set_epoch(state["epoch"])
        self.history.steps += [Step(int(s), int(e), *rest) for s, e, *rest in state["steps"].tolist()]
        self.history.epochs += [Epoch(int(e), *rest) for e, *rest in state["epochs"].tolist()]
        self.options.say(f"resuming after epoch {state['epoch']}")
        return int(state["epoch"])


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


def _table(records: list[Any]) -> np.ndarray:
    """The numbers of steps or epochs, a row each, in the order of their fields."""
    return np.array([list(vars(record).values()) for record in records], np.float64)


def _described(task: Task) -> dict[str, Any]:
    """The task as it comes back from a file: through JSON."""
    return dict(json.loads(json.dumps(asdict(task))))


def _write_records(result: Result) -> None:
    out, history = result.options.out, result.history
    for name, kind, rows in (("steps", Step, history.steps), ("epochs", Epoch, history.epochs)):
        with open(out / f"{name}.csv", "w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow([f.name for f in fields(kind)])
            writer.writerows([[f"{v:.7g}" if isinstance(v, float) else v for v in astuple(row)] for row in rows])
    figures = {
        "task": asdict(result.task),
        "seed": result.options.seed,
        "test": asdict(result.test),
        "images_per_second": result.images_per_second,
        "seconds": result.seconds,
    }
    (out / "result.json").write_text(json.dumps(figures, indent=2) + "\n")
    from .curves import draw

    draw({str(out.name): history}, out / "curves.png")


def load_model(path: Path, device: str = "cpu") -> tuple[Module, ModelInfo]:
    """The model in a file of weights (or in the folder of a run) on ``device``, ready to predict."""
    path = path / "weights.safetensors" if path.is_dir() else path
    _, info = load_weights(path)
    model = build(info.architecture, info.arguments).to(device)
    load_weights(path, model)
    return model.eval(), info
