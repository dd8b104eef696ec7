"""P2: the values that the tutorials work out by hand, computed with rawgrad and shown beside them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal

import numpy as np

from ..autograd import Tensor, numerical_gradient
from ..autograd import functional as F
from ..engine.optim import SGD
from .options import Options

Values = tuple[float, ...]

PREDICTION = (0.1, 0.7, 0.2)
RIGHT, WRONG = (0.0, 1.0, 0.0), (1.0, 0.0, 0.0)


def _tensor(values: float | Sequence[float] | Sequence[Values], requires_grad: bool = False) -> Tensor:
    return Tensor(np.asarray(values, np.float64), requires_grad)


def _values(result: Tensor) -> Values:
    return tuple(float(v) for v in np.atleast_1d(result.detach().numpy()))


def squared_error(prediction: Values, target: Values) -> Values:
    """½ Σ (y - t)²."""
    return _values(0.5 * F.mse_loss(_tensor(prediction), _tensor(target), reduction="sum"))


def cross_entropy(prediction: Values, target: Values) -> Values:
    """-Σ t ln y; softmax(ln y) = y where y adds up to 1, so ln y are its logits."""
    return _values(F.cross_entropy(_tensor([prediction]).log(), _tensor([target])))


def cross_entropy_by_labels(predictions: list[Values], labels: list[int]) -> Values:
    """The mean of -ln y[label] over the rows."""
    return _values(F.cross_entropy(_tensor(predictions).log(), Tensor(np.array(labels))))


def softmax(scores: Values) -> Values:
    """eˣ / Σ eˣ."""
    return _values(F.softmax(_tensor(scores), 0))


def minus_log(share: float) -> Values:
    """-ln y."""
    return _values(-_tensor(share).log())


def slope(function: Callable[[Tensor], Tensor], at: Values) -> Values:
    """The gradient of ``function`` at a point, by the backward pass."""
    x = _tensor(at, requires_grad=True)
    function(x).sum().backward()
    assert x.grad is not None
    return _values(x.grad)


def differences(function: Callable[[Tensor], Tensor], at: Values) -> Values:
    """The same by central differences, h = 1e-4."""
    x = _tensor(at)
    [found] = numerical_gradient(lambda: function(x).sum(), [x])
    return _values(found)


def descent(start: Values, lr: float, steps: int) -> Values:
    """Where gradient descent on :func:`bowl` ends."""
    x = _tensor(start, requires_grad=True)
    optimizer = SGD([x], lr=lr)
    for _ in range(steps):
        optimizer.zero_grad()
        bowl(x).backward()
        optimizer.step()
    return _values(x)


def line(x: Tensor) -> Tensor:
    """2x + 1."""
    return 2 * x + 1


def bowl(x: Tensor) -> Tensor:
    """x0² + x1²."""
    return (x**2).sum()


@dataclass(frozen=True)
class Worked:
    """One row: what it is, the value as printed in the tutorial (each number to its digits), and how we get it."""

    name: str
    printed: str
    compute: Callable[[], Values]

    def agrees(self, found: Values) -> bool:
        """Whether ``found`` rounds to what is printed; what is printed as a whole number is meant exactly."""
        printed = self.printed.split()
        if len(found) != len(printed):
            return False
        return all(abs(f - float(p)) <= _allowed(p) for f, p in zip(found, printed, strict=True))


def _allowed(printed: str) -> float:
    """Half a unit of the last digit; 1e-9 for a whole number."""
    exponent = int(Decimal(printed).as_tuple().exponent)
    return 1e-9 if exponent == 0 else 0.5 * 10.0**exponent * (1 + 1e-9)


ROWS = (
    Worked("squared error of .1 .7 .2 for 0 1 0", "0.07", lambda: squared_error(PREDICTION, RIGHT)),
    Worked("squared error of .1 .7 .2 for 1 0 0", "0.67", lambda: squared_error(PREDICTION, WRONG)),
    Worked("cross-entropy of .1 .7 .2 for 0 1 0", "0.35667", lambda: cross_entropy(PREDICTION, RIGHT)),
    Worked("cross-entropy of .1 .7 .2 for 1 0 0", "2.30259", lambda: cross_entropy(PREDICTION, WRONG)),
    Worked("cross-entropy of two such rows, labels 1 2", "0.98306",
           lambda: cross_entropy_by_labels([PREDICTION, PREDICTION], [1, 2])),
    Worked("softmax of 3 1 -3", "0.88 0.12 0.00", lambda: softmax((3.0, 1.0, -3.0))),
    Worked("-ln 0.6", "0.51", lambda: minus_log(0.6)),
    Worked("-ln 0.1", "2.30", lambda: minus_log(0.1)),
    Worked("derivative of 2x + 1", "2", lambda: slope(line, (5.0,))),
    Worked("… by central differences", "2", lambda: differences(line, (5.0,))),
    Worked("gradient of x0² + x1² at 3 4", "6 8", lambda: slope(bowl, (3.0, 4.0))),
    Worked("… by central differences", "6 8", lambda: differences(bowl, (3.0, 4.0))),
    Worked("100 steps of descent, lr 0.1, from -3 4", "-6.11e-10 8.15e-10", lambda: descent((-3.0, 4.0), 0.1, 100)),
)  # fmt: skip


@dataclass
class Compared:
    """How many of the values agree."""

    agreeing: int
    rows: int

    def __str__(self) -> str:
        return f"{self.agreeing} of {self.rows} worked values agree"


def run(options: Options) -> Compared:
    """Print the table; no option changes it."""
    options.say(f"{'':46s} {'tutorial':>20s}   rawgrad")
    agreeing = 0
    for row in ROWS:
        found = row.compute()
        agreeing += row.agrees(found)
        verdict = "" if row.agrees(found) else "   DIFFERS"
        options.say(f"{row.name:46s} {row.printed:>20s}   {' '.join(f'{v:.6g}' for v in found)}{verdict}")
    return Compared(agreeing, len(ROWS))
