"""P1: the network that took two weeks for 70.1 %: in seconds, its gradients checked, its accuracy explained."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass
from itertools import chain, combinations
from pathlib import Path
from typing import Any

import numpy as np

from ..autograd import Tensor, no_grad, numerical_gradient
from ..engine.data import MNIST
from ..kernels._errors import ArgumentError
from .curves import figure, smoothed
from .options import Options
from .sigmoid_network import FIXES, H, Network, Setting, Trained, TrainingData, fixed, train

STEPS = 10_000
#: What the largest difference to backpropagation may be, relative to the largest gradient of the parameter,
#: beyond the rounding of the differences themselves.
TOLERANCE = 1e-6


@dataclass(frozen=True)
class Check:
    """Backpropagation against central differences, for one parameter.

    Attributes:
        elements: how many were compared: all.
        gradient: the largest in magnitude.
        difference: the largest in magnitude.
        rounding: what the rounding of two losses may add to a difference quotient.
    """

    elements: int
    gradient: float
    difference: float
    rounding: float

    @property
    def agrees(self) -> bool:
        """Whether the largest difference is within 1e-6 of the largest gradient, and rounding."""
        return self.difference <= TOLERANCE * self.gradient + self.rounding


@dataclass
class Explained:
    """All that P1 shows.

    Attributes:
        described: the network as described, one run per seed.
        frozen: the same (first seed) with the first layer left as it was drawn.
        ablation: for every set of fixes, joined by " + ", its run.
        checks: by setting and parameter, see :func:`check_gradients`.
        step_seconds: what one step by numerical gradients took.
    """

    described: dict[int, Trained]
    frozen: Trained
    ablation: dict[str, Trained]
    checks: dict[str, dict[str, Check]]
    step_seconds: float

    @property
    def verdict(self) -> str:
        """Whether the gradients agree, and the largest difference."""
        checks = [check for checks in self.checks.values() for check in checks.values()]
        worst = max(check.difference for check in checks)
        return f"gradients {'agree' if all(check.agrees for check in checks) else 'DIFFER'}, at most by {worst:.1e}"

    def __str__(self) -> str:
        accuracies = [100 * run.accuracy for run in self.described.values()]
        best = max(self.ablation, key=lambda name: self.ablation[name].accuracy)
        seconds = float(np.median([run.seconds for run in self.described.values()]))
        return (
            f"test accuracy {np.median(accuracies):.2f} % as described, by backpropagation in {seconds:.0f} s; "
            f"{100 * self.ablation[best].accuracy:.2f} % with {best}; {self.verdict}"
        )


def run(options: Options) -> Explained:
    """Train as described (``--seeds N``: N times), check all gradients, fix the four suspects in all combinations."""
    for name in ("epochs", "optimizer"):
        if getattr(options, name) is not None:
            raise ArgumentError(f"numerical-gradient: --{name} has no meaning here: plain SGD, so many --steps")
    for name in ("resume", "save_every", "watch", "watch_every", "tensorboard"):
        if getattr(options, name):
            which = name.replace("_", "-")
            raise ArgumentError(f"numerical-gradient: --{which} has no meaning here: a run takes seconds")
    data = load_data(options)
    options.out.mkdir(parents=True, exist_ok=True)
    settings: dict[str, Any] = {
        "steps": options.steps or STEPS, "batch_size": options.batch_size or 100, "device": options.device,
    }  # fmt: skip
    start = Setting() if options.lr is None else Setting(lr=options.lr)

    described = {}
    for seed in range(options.seed, options.seed + options.seeds):
        described[seed] = train(start, data, seed=seed, **settings)
        options.say(f"as described, seed {seed}: {_line(described[seed])}")
    frozen = train(start, data, seed=options.seed, frozen=("W1", "b1"), **settings)
    options.say(f"first layer left as drawn: {_line(frozen)}")
    explain(described[options.seed], options)

    checks, step_seconds = {}, 0.0
    for name, setting in {"as described": start, "all fixed": fixed(list(FIXES), start)}.items():
        network, x, target = first_batch(setting, data, options.seed, settings["batch_size"], options.device)
        began = time.perf_counter()
        checks[name] = check_gradients(network, x, target)
        step_seconds = step_seconds or time.perf_counter() - began
        _print_checks(f"gradients, {name}", checks[name], options)
    quick = described[options.seed].seconds / settings["steps"]
    options.say(
        f"one step by numerical gradients takes {step_seconds:.1f} s, {STEPS:,} would take "
        f"{STEPS * step_seconds / 86400:.1f} days; by backpropagation {1000 * quick:.2f} ms and {STEPS * quick:.1f} s"
    )

    ablation = {"nothing fixed": described[options.seed]}
    for names in chain.from_iterable(combinations(FIXES, size) for size in range(1, len(FIXES) + 1)):
        ablation[" + ".join(names)] = train(fixed(names, start), data, seed=options.seed, **settings)
        options.say(f"{' + '.join(names):55s} {_line(ablation[' + '.join(names)])}")

    explained = Explained(described, frozen, ablation, checks, step_seconds)
    _record(explained, options.out / "result.json")
    draw(explained, options.out / "ablation.png")
    options.say(f"picture: {options.out / 'ablation.png'}")
    return explained


def load_data(options: Options) -> TrainingData:
    """Raw pixels; the 60,000 images to draw from are MNIST's training and validation images together."""
    splits = MNIST.splits(options.data_dir, raw=True, download=options.data_dir is None)
    both = splits["train"], splits["validation"]
    images, labels = np.concatenate([s.data for s in both]), np.concatenate([s.labels for s in both])
    test, n = splits["test"], options.limit
    return TrainingData(images[:n], labels[:n], test.data[:n], test.labels[:n])


def first_batch(
    setting: Setting, data: TrainingData, seed: int, batch_size: int, device: str
) -> tuple[Network, Tensor, Tensor]:
    """A fresh network, and a batch (x, one-hot target) for it."""
    network = Network(setting, np.random.default_rng([seed, 0]), device=device)
    x = Tensor(setting.pixels(data.images[:batch_size])).to(device)
    return network, x, Tensor(np.eye(10)[data.labels[:batch_size]]).to(device)


def check_gradients(network: Network, x: Tensor, target: Tensor, h: float = H) -> dict[str, Check]:
    """Backpropagation against central differences for every element of every parameter.

    The weights of the first layer are multiplied by the inputs, so theirs is the step h / max|x|: no
    weighted sum moves by more than h.  (At raw pixels, h = 1e-4 moves it by 0.0255, and the third-order
    term of the differences is then far above the rounding errors.)

    Args:
        network: in float64.
        x, target: (N, 784) and one-hot (N, 10).
        h: half the step.
    """
    for parameter in network.parameters.values():
        parameter.grad = None
    loss = network.loss(x, target)
    loss.backward()
    checks = {}
    for name, parameter in network.parameters.items():
        step = h / max(1.0, float(x.abs().amax())) if name == "W1" else h
        [numeric] = numerical_gradient(lambda: network.loss(x, target), [parameter], step)
        assert parameter.grad is not None
        with no_grad():
            gradient, difference = (float(v.abs().amax()) for v in (parameter.grad, parameter.grad - numeric))
        rounding = 4 * float(np.finfo(np.float64).eps) * abs(loss.item()) / step
        checks[name] = Check(parameter.numel(), gradient, difference, rounding)
    return checks


def explain(trained: Trained, options: Options) -> None:
    """Say in numbers what holds the network back."""
    for layer, share in enumerate(trained.saturation, 1):
        options.say(f"hidden layer {layer}: {100 * share:.1f} % of its sigmoids start with a slope below 0.01")
    for name, moved in trained.moved.items():
        if name[0] == "W":
            pull = trained.pull[name]
            options.say(f"{name}: norm of the first gradient {pull:.3g}; moved by {100 * moved:.1f} % of its norm")


def _line(trained: Trained) -> str:
    loss = np.mean(trained.losses[-200:])
    return f"test accuracy {100 * trained.accuracy:.2f} %, loss {loss:.3f}, {trained.seconds:.1f} s"


def _print_checks(title: str, checks: dict[str, Check], options: Options) -> None:
    options.say(f"{title}: {sum(check.elements for check in checks.values()):,} parameters, float64")
    for name, check in checks.items():
        options.say(
            f"  {name}  {check.elements:6,}  largest gradient {check.gradient:.3g}, largest difference "
            f"{check.difference:.1e} (relative {check.difference / (check.gradient or 1):.1e}): "
            f"{'agree' if check.agrees else 'DIFFER'}"
        )


def _record(explained: Explained, path: Path) -> None:
    def described(trained: Trained) -> dict[str, Any]:
        steps, losses = smoothed(trained.losses)
        return {
            "setting": asdict(trained.network.setting),
            "accuracy": trained.accuracy,
            "accuracies": dict(zip(trained.checked, trained.accuracies, strict=True)),
            "losses": dict(zip((float(s) for s in steps), (round(float(v), 5) for v in losses), strict=True)),
            "saturation": trained.saturation,
            "pull": trained.pull,
            "moved": trained.moved,
            "seconds": trained.seconds,
        }

    record = {
        "described": {seed: described(trained) for seed, trained in explained.described.items()},
        "first layer left as drawn": described(explained.frozen),
        "ablation": {name: described(trained) for name, trained in explained.ablation.items()},
        "checks": {
            name: {parameter: {**asdict(check), "agrees": check.agrees} for parameter, check in checks.items()}
            for name, checks in explained.checks.items()
        },
        "seconds of a step by numerical gradients": explained.step_seconds,
    }
    path.write_text(json.dumps(record, indent=1) + "\n")


def draw(explained: Explained, path: Path) -> None:
    """The course of the described run and of the single fixes; the final accuracy of all combinations."""
    made, (left, right) = figure(2, 5.0)
    shown = {"nothing fixed": "as described", **{name: name for name in FIXES}, " + ".join(FIXES): "all four"}
    for number, (name, label) in enumerate(shown.items()):
        trained = explained.ablation[name]
        left.plot(trained.checked, 100 * np.array(trained.accuracies), label=label, color=f"C{number}")
    frozen = explained.frozen
    left.plot(frozen.checked, 100 * np.array(frozen.accuracies), ":", label="first layer left as drawn", color="black")
    left.axhline(70.1, color="grey", linewidth=0.8, linestyle="--", label="the tutorial's 70.1 %")
    left.set(xlabel="step", ylabel="test accuracy, %", ylim=(0, 100), title="one fix at a time")
    left.legend(fontsize=8)
    ordered = sorted(explained.ablation, key=lambda name: explained.ablation[name].accuracy)
    values = [100 * explained.ablation[name].accuracy for name in ordered]
    bars = right.barh(ordered, values, color=["C3" if "initialisation" in name else "C0" for name in ordered])
    right.bar_label(bars, fmt="%.1f", fontsize=8, padding=2)
    right.axvline(70.1, color="grey", linewidth=0.8, linestyle="--")
    right.set(xlabel="test accuracy, %", xlim=(0, 108), title="every combination; red: with initialisation")
    right.tick_params(axis="y", labelsize=8)
    left.grid(alpha=0.3)
    made.savefig(path, dpi=110)
