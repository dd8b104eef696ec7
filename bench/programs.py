"""One training step of P5, P8, P9 and P10: forward, loss, backward, optimizer step.

One text serves every library, since rawgrad's names are torch's.  All start from the same weights,
which NumPy draws, and see the same batches.  Before anything is timed, each contestant trains a few
steps from those weights in float64 and in float32, and its losses and the change of every parameter
must agree with the same steps of rawgrad's NumPy reference in float64.  Each timed turn starts from
those weights again, so that every round is the same work.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np

from ..autograd.capture import graphed
from ..kernels._dispatch import backend
from . import shapes
from .harness import OURS, Contestant, Work, assert_close
from .kernels import REFERENCE
from .peers import Library, detail, library

CAPTURED = f"{OURS} captured"
#: Batches that the steps take in turn, and how many are compared before timing.
_BATCHES = 8
_PROVED_STEPS = 4
#: By dtype: how far losses may be off, as a share of the largest, and the change of a parameter, as a
#: share of its norm.  Seen: 1e-15 and 1e-13 in float64, 3e-7 and 1e-4 in float32.  There the bound is
#: wide because a ReLU whose input is all rounding error may open in one library and not in the other,
#: which was seen to move changes by 3e-3; what is exact is proved in float64.
_TOLERANCES: dict[type[np.floating], tuple[float, float]] = {np.float64: (1e-12, 1e-9), np.float32: (1e-4, 2e-2)}
#: Seconds of a step from which on the NumPy reference takes no part.
_PATIENCE = 0.5
_IMAGE = 28
_CLASSES = 10


@dataclass(frozen=True)
class Program:
    """A program's network and its training.

    Attributes:
        description: for the record.
        network: makes the network of one library.
        optimizer: makes the optimizer of one library for its parameters.
        step: the sizes, at a batch.
        flat: whether images come as 784 numbers instead of (1, 28, 28).
    """

    description: str
    network: Callable[[Library], Any]
    optimizer: Callable[[Library, Any], Any]
    step: Callable[[int], shapes.Step]
    flat: bool = False


def p5_network(lib: Library) -> Any:
    """P5's: two 5×5 convolutions of 20 channels, each with ReLU and pooling; one linear layer."""
    nn, layers = lib.nn, []
    for conv in shapes.p5_convolutions(1):
        layers += [nn.Conv2d(conv.C, conv.K, conv.R, padding=conv.pad.top), nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(980, _CLASSES))


def _p8_network(lib: Library) -> Any:
    return lib.nn.Sequential(lib.nn.Linear(shapes.P9_WIDTHS[0], _CLASSES))


def _p9_network(lib: Library, dropout: float = 0.0) -> Any:
    nn, layers = lib.nn, []
    widths = shapes.P9_WIDTHS
    for a, b in pairwise(widths[:-1]):
        layers += [nn.Linear(a, b), nn.ReLU(), *([nn.Dropout(dropout)] if dropout else [])]
    return nn.Sequential(*layers, nn.Linear(*widths[-2:]))


def _p10_network(lib: Library, channels: tuple[int, int, int], first_filter: int, dropout: float = 0.0) -> Any:
    nn, layers = lib.nn, []
    for conv in shapes.p10_convolutions(1, channels, first_filter):
        layers += [nn.ZeroPad2d(tuple(conv.pad)), nn.Conv2d(conv.C, conv.K, conv.R, stride=conv.stride), nn.ReLU()]
    layers += [nn.Flatten(), nn.Linear(49 * channels[2], 200), nn.ReLU(), *([nn.Dropout(dropout)] if dropout else [])]
    return nn.Sequential(*layers, nn.Linear(200, _CLASSES))


def _sgd(lib: Library, parameters: Any) -> Any:
    return lib.optim.SGD(parameters, lr=0.01)


def _adam(lib: Library, parameters: Any) -> Any:
    return lib.optim.Adam(parameters, lr=0.003)


PROGRAMS = {
    "p5": Program("CNN 20-20, softmax cross-entropy, SGD", p5_network, _sgd, shapes.p5),
    "p8": Program("784-10, Adam", _p8_network, _adam, shapes.p8, flat=True),
    "p9": Program("784-200-100-60-30-10, ReLU, Adam", _p9_network, _adam, shapes.p9, flat=True),
    "p9_dropout": Program(
        "784-200-100-60-30-10, ReLU, dropout 0.25, Adam",
        lambda lib: _p9_network(lib, 0.25),
        _adam,
        shapes.p9,
        flat=True,
    ),
    "p10": Program(
        "CNN 4-8-12, linear 200, Adam",
        lambda lib: _p10_network(lib, *shapes.SMALL_P10),
        _adam,
        lambda batch: shapes.p10(batch, *shapes.SMALL_P10),
    ),
    "p10_dropout": Program(
        "CNN 6-12-24, linear 200 with dropout 0.25, Adam",
        lambda lib: _p10_network(lib, *shapes.LARGE_P10, 0.25),
        _adam,
        lambda batch: shapes.p10(batch, *shapes.LARGE_P10),
    ),
}


def batches(program: Program, batch: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Images like MNIST's (values in [0, 1), four fifths of them 0) and labels, the same in every run."""
    draw = np.random.default_rng(2024)
    shape = (batch, _IMAGE**2) if program.flat else (batch, 1, _IMAGE, _IMAGE)
    return [
        (
            (draw.random(shape) * (draw.random(shape) < 0.2)).astype(np.float32),
            draw.integers(0, _CLASSES, batch),
        )
        for _ in range(_BATCHES)
    ]


def initial_weights(parameter_shapes: Sequence[tuple[int, ...]]) -> list[np.ndarray]:
    """Weights of variance 2 / inputs (He et al., 2015) and small positive biases, the same in every run."""
    draw = np.random.default_rng(7)
    return [
        (draw.normal(0, np.sqrt(2 / np.prod(shape[1:])), shape) if len(shape) > 1 else draw.random(shape) / 10).astype(
            np.float32
        )
        for shape in parameter_shapes
    ]


class Training:
    """A network in training, in one library.

    Args:
        dtype: of parameters and images.
        deterministic: leaves dropout out, whose masks differ from library to library.
        weights: the first ones, by default :func:`initial_weights`.

    Attributes:
        network, optimizer: the library's.
    """

    def __init__(
        self,
        lib: Library,
        program: Program,
        dtype: type[np.floating] = np.float32,
        *,
        deterministic: bool = False,
        weights: Sequence[np.ndarray] | None = None,
    ) -> None:
        self._lib = lib
        self._dtype = dtype
        self.network = program.network(lib).to(lib.device)
        if dtype is np.float64:
            self.network.double()
        if deterministic:
            self.network.eval()  # no layer of these programs but dropout knows the difference
        self._parameters = list(self.network.parameters())
        if weights is None:
            weights = initial_weights([tuple(p.shape) for p in self._parameters])
        for parameter, values in zip(self._parameters, weights, strict=True):
            parameter.data = lib.tensor(values.astype(dtype)).data
        self.optimizer = program.optimizer(lib, self._parameters)

    def put(self, images: np.ndarray, labels: np.ndarray) -> tuple[Any, Any]:
        """A batch as the library's tensors."""
        return self._lib.tensor(images.astype(self._dtype)), self._lib.tensor(labels)

    def step(self, images: Any, labels: Any) -> Any:
        """One training step; gives the loss, a tensor."""
        loss = self._lib.functional.cross_entropy(self.network(images), labels)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return loss

    def weights(self) -> list[np.ndarray]:
        """A copy of every parameter."""
        return [np.array(self._lib.host(parameter)) for parameter in self._parameters]


@dataclass(frozen=True)
class Trace:
    """What some training steps did: their losses, and how each parameter changed."""

    losses: list[float]
    changes: list[np.ndarray]


#: Makes of a training step one that is started in another way; takes how many calls may come before.
_Way = Callable[[Callable[..., Any], int], Callable[..., Any]]


def _as_it_is(step: Callable[..., Any], warmup: int) -> Callable[..., Any]:
    return step


def trace(lib: Library, program: Program, batch: int, dtype: type[np.floating], way: _Way = _as_it_is) -> Trace:
    """The first steps, with dropout left out."""
    training = Training(lib, program, dtype, deterministic=True)
    before, step = training.weights(), way(training.step, 1)
    losses = [float(step(*training.put(*one)).item()) for one in batches(program, batch)[:_PROVED_STEPS]]
    return Trace(losses, [after - start for start, after in zip(before, training.weights(), strict=True)])


def traces(lib: Library, program: Program, batch: int, way: _Way = _as_it_is) -> list[Trace]:
    """What :func:`check` takes: the same steps in each dtype."""
    return [trace(lib, program, batch, dtype, way) for dtype in _TOLERANCES]


def _reference(program: Program, batch: int) -> Trace:
    with backend("numpy"):
        return trace(library(OURS), program, batch, np.float64)


def check(results: Sequence[Trace], reference: Trace) -> None:
    """The traces of each dtype of ``_TOLERANCES``: losses one by one, changes of each parameter by their norm.

    By the norm, since Adam's first steps are about ±lr whatever the gradient's size: where a
    gradient is all rounding error, so is the sign of the step, in every library.
    """
    for result, (dtype, (loss_share, change_share)) in zip(results, _TOLERANCES.items(), strict=True):
        assert_close(np.array(result.losses), np.array(reference.losses), loss_share, f"{dtype.__name__} losses")
        for i, (one, other) in enumerate(zip(result.changes, reference.changes, strict=True)):
            what = f"the change of {dtype.__name__} parameter {i}"
            assert one.shape == other.shape, f"{what} must have shape {other.shape}; got {one.shape}"
            off = np.linalg.norm(one - other) / np.linalg.norm(other)
            assert off <= change_share, (
                f"{what} must be the reference's within {change_share:g} of its norm; got {off:.3g}"
            )


def contestant(lib: Library, program: Program, batch: int) -> Contestant:
    """One library's training, from the same weights in each turn."""
    training = Training(lib, program)

    def reset() -> None:
        nonlocal training
        training = Training(lib, program)

    return Contestant(
        lib.name,
        lambda images, labels: training.step(images, labels),
        [training.put(*one) for one in batches(program, batch)],
        detail(lib.name),
        result=lambda: traces(lib, program, batch),
        reset=reset,
    )


def _in_numpy(call: Callable[..., Any]) -> Callable[..., Any]:
    def reference(*arguments: Any) -> Any:
        with backend("numpy"):
            return call(*arguments)

    return reference


def by_name(who: str, make: Callable[[Library], Contestant], device: str = "cpu") -> Contestant:
    """The contestant ``who`` that ``make`` makes of a library; the reference's is rawgrad's on its NumPy kernels."""
    if who != REFERENCE:
        return make(library(who, device))
    with backend("numpy"):
        one = make(library(OURS))
    assert one.result is not None
    return replace(
        one,
        name=who,
        detail=detail(who),
        call=_in_numpy(one.call),
        result=_in_numpy(one.result),
        reset=one.reset and _in_numpy(one.reset),
        patience=_PATIENCE,
    )


def captured(program: Program, batch: int) -> Contestant:
    """Ours on the GPU with the step captured and replayed.

    It trains on from turn to turn, since a capture at the head of each would be timed too.
    """
    lib = library(OURS, "cuda")
    training = Training(lib, program)
    inputs = [training.put(*one) for one in batches(program, batch)]
    step = graphed(training.step)
    return Contestant(CAPTURED, step, inputs, detail(OURS), result=lambda: traces(lib, program, batch, graphed))


def train_step(name: str, batch: int, contestants: Sequence[str], device: str = "cpu") -> Work:
    """The row of one program at one batch."""
    work = work_of(PROGRAMS[name], f"train_step_{name}_batch{batch}", batch, contestants, device)
    left_out = ", dropout left out" if "dropout" in name else ""
    return replace(work, reference_name=work.reference_name + left_out)


def work_of(program: Program, name: str, batch: int, contestants: Sequence[str], device: str = "cpu") -> Work:
    """A training step of any program, called ``name``."""
    return Work(
        name=name,
        description=f"{program.description}: forward, loss, backward, update at batch {batch}",
        contestants=[by_name(c, partial(contestant, program=program, batch=batch), device) for c in contestants],
        reference=lambda: _reference(program, batch),
        reference_name=f"rawgrad's NumPy reference in float64, {_PROVED_STEPS} steps",
        check=check,
        layout="NC" if program.flat else "NCHW",
        flops=program.step(batch).flops(),
    )
