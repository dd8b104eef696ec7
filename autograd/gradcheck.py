"""Checking gradients against central differences, in float64.

Two ways, since each sees what the other may miss.  *Element by element*: the Jacobian from the
backward pass against (f(x + εe) - f(x - εe)) / 2ε for each input element.  *Random directions*
(cheap for any size): ⟨v, J u⟩ from differences against ⟨Jᵀ v, u⟩ from the backward pass, for
random u and v.

The inputs must lie away from kinks (0 of ReLU, ties of a maximum), where there is no derivative.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..kernels._devices import device_of
from ..kernels._errors import DtypeError, GradientError
from .differentiation import grad
from .graph import enable_grad, no_grad
from .tensor import Tensor

_ELEMENTWISE_LIMIT = 4096  # elements of a Jacobian that is computed whole


@dataclass
class Report:
    """The outcome of a gradient check; true if it passed.

    Attributes:
        passed: whether every comparison held.
        compared: how many numbers were compared.
        worst: a sentence on the comparison that used most of its tolerance.
        budget_used: that share; above 1 the check failed.
    """

    passed: bool = True
    compared: int = 0
    worst: str = "nothing was compared"
    budget_used: float = 0.0

    def __bool__(self) -> bool:
        return self.passed

    def __str__(self) -> str:
        verdict = "passed" if self.passed else "FAILED"
        return f"gradient check {verdict}: {self.compared} numbers, worst: {self.worst}"

    def compare(self, what: str, analytic: np.ndarray, numeric: np.ndarray, atol: float, rtol: float) -> None:
        """Record a comparison; allowed is ``atol + rtol · max(|numeric|)``."""
        analytic, numeric = np.asarray(analytic), np.asarray(numeric)
        if not analytic.size:
            return
        self.compared += analytic.size
        allowed = atol + rtol * float(np.max(np.abs(numeric), initial=0.0, where=np.isfinite(numeric)))
        share = np.abs(analytic - numeric) / allowed
        share = np.where(np.isfinite(share), share, np.inf)
        at = np.unravel_index(int(np.argmax(share)), share.shape)
        if self.budget_used <= share[at]:
            self.budget_used = float(share[at])
            place = f" at {tuple(int(i) for i in at)}" if at else ""
            self.worst = (
                f"{what}{place}: backward pass {float(analytic[at]):.10g}, differences {float(numeric[at]):.10g}, "
                f"{100 * self.budget_used:.3g} % of the tolerance {allowed:.3g}"
            )
        self.passed = self.passed and bool(share[at] <= 1)


def _outputs(result: Any) -> list[Tensor]:
    several = list(result) if isinstance(result, list | tuple) else [result]
    return [t for t in several if isinstance(t, Tensor) and t.dtype.kind == "f"]


def _host(tensor: Tensor) -> np.ndarray:
    return device_of(tensor.array).to_host(tensor.array)


def gradcheck(
    function: Callable[..., Any],
    inputs: Tensor | Sequence[Any],
    *,
    eps: float = 1e-6,
    atol: float = 1e-7,
    rtol: float = 1e-5,
    directions: int = 4,
    raise_exception: bool = True,
) -> Report:
    """Check the gradients that the backward pass gives for ``function``.

    Args:
        function: takes ``inputs``, gives one tensor or several.
        inputs: tensors and anything else; the float64 tensors that require gradients are checked.
        eps: half the step of the differences, relative to max(1, |x|) in the elementwise check.
        atol, rtol: allowed is ``atol + rtol · max(|differences|)`` per Jacobian.
        directions: how many random directions are tried.
        raise_exception: raise instead of returning a failed report.

    Returns:
        A :class:`Report`, true if the check passed.

    Raises:
        DtypeError: an input to be checked is not float64.
        GradientError: the check failed, or there is nothing to check.
    """
    arguments = [inputs] if isinstance(inputs, Tensor) else list(inputs)
    checked = [i for i, x in enumerate(arguments) if isinstance(x, Tensor) and x.requires_grad]
    if not checked:
        raise GradientError("gradcheck: no input requires gradients")
    for i in checked:
        if arguments[i].dtype != np.float64:
            raise DtypeError(f"gradcheck: input {i} must be float64; got {arguments[i].dtype}")
    leaves = [arguments[i].detach().clone().requires_grad_() for i in checked]

    def call(values: Sequence[Tensor]) -> list[Tensor]:
        full = list(arguments)
        for i, value in zip(checked, values, strict=True):
            full[i] = value
        return _outputs(function(*full))

    with enable_grad():
        outputs = call(leaves)
    if not any(output.requires_grad for output in outputs):
        raise GradientError("gradcheck: no floating output depends on an input that requires gradients")

    def pull_back(cotangents: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Jᵀ v, one array per checked input."""
        pairs = [(o, v) for o, v in zip(outputs, cotangents, strict=True) if o.requires_grad]
        like = [Tensor(o.array_module.asarray(v)) for o, v in pairs]
        found = grad([o for o, _ in pairs], leaves, like, retain_graph=True, allow_unused=True)
        return [np.zeros(leaf.shape) if g is None else _host(g) for leaf, g in zip(leaves, found, strict=True)]

    def moved(steps: Sequence[np.ndarray]) -> list[np.ndarray]:
        with no_grad():
            shifted = [
                Tensor(leaf.array + leaf.array_module.asarray(step)) for leaf, step in zip(leaves, steps, strict=True)
            ]
            return [_host(o).copy() for o in call(shifted)]

    report = Report()
    _check_directions(report, leaves, outputs, pull_back, moved, directions, eps, atol, rtol)
    _check_elements(report, leaves, outputs, pull_back, moved, eps, atol, rtol)
    if raise_exception and not report:
        raise GradientError(str(report))
    return report


def _check_directions(
    report: Report,
    leaves: Any,
    outputs: Any,
    pull_back: Any,
    moved: Any,
    directions: int,
    eps: float,
    atol: float,
    rtol: float,
) -> None:
    rng = np.random.default_rng(20240607)
    for number in range(directions):
        us = [rng.standard_normal(leaf.shape) for leaf in leaves]
        vs = [rng.standard_normal(output.shape) for output in outputs]
        analytic = sum(float((g * u).sum()) for g, u in zip(pull_back(vs), us, strict=True))
        up, down = (moved([sign * eps * u for u in us]) for sign in (1, -1))
        numeric = sum(float((v * (a - b)).sum()) for v, a, b in zip(vs, up, down, strict=True)) / (2 * eps)
        report.compare(f"direction {number}", np.asarray(analytic), np.asarray(numeric), atol, rtol)


def _check_elements(
    report: Report, leaves: Any, outputs: Any, pull_back: Any, moved: Any, eps: float, atol: float, rtol: float
) -> None:
    total_out = sum(output.numel() for output in outputs)
    for number, leaf in enumerate(leaves):
        if leaf.numel() * total_out > _ELEMENTWISE_LIMIT or not leaf.numel():
            continue
        values = _host(leaf)
        numeric = [np.empty((*leaf.shape, *output.shape)) for output in outputs]
        for index in np.ndindex(*leaf.shape):
            step = [np.zeros(other.shape) for other in leaves]
            h = eps * max(1.0, abs(float(values[index])))
            step[number][index] = h
            up, down = moved(step), moved([-s for s in step])
            for which, (a, b) in enumerate(zip(up, down, strict=True)):
                numeric[which][index] = (a - b) / (2 * h)
        for which, output in enumerate(outputs):
            analytic = np.empty((*leaf.shape, *output.shape))
            for index in np.ndindex(*output.shape):
                vs = [np.zeros(other.shape) for other in outputs]
                vs[which][index] = 1.0
                analytic[(..., *index)] = pull_back(vs)[number]
            what = f"d(output {which})/d(input {number})"
            report.compare(what, analytic, numeric[which], atol, rtol)


def gradgradcheck(
    function: Callable[..., Any],
    inputs: Tensor | Sequence[Any],
    *,
    eps: float = 1e-6,
    atol: float = 1e-7,
    rtol: float = 1e-5,
    directions: int = 4,
    raise_exception: bool = True,
) -> Report:
    """:func:`gradcheck` of the gradients of ``function``, with respect to its inputs and to dL/d(output)."""
    arguments = [inputs] if isinstance(inputs, Tensor) else list(inputs)
    checked = [i for i, x in enumerate(arguments) if isinstance(x, Tensor) and x.requires_grad]
    if not checked:
        raise GradientError("gradgradcheck: no input requires gradients")
    with no_grad():
        shapes = [output.shape for output in _outputs(function(*arguments))]
    rng = np.random.default_rng(20240608)
    xp = arguments[checked[0]].array_module
    cotangents = [Tensor(xp.asarray(rng.standard_normal(shape)), requires_grad=True) for shape in shapes]

    def gradients(*values: Any) -> tuple[Tensor, ...]:
        own, vs = values[: len(arguments)], values[len(arguments) :]
        # The differences call this under no_grad, with plain tensors: gradients need a tape all the same.
        with enable_grad():
            own = tuple(x if i not in checked or x.requires_grad else x.requires_grad_() for i, x in enumerate(own))
            outputs = _outputs(function(*own))
            pairs = [(o, v) for o, v in zip(outputs, vs, strict=True) if o.requires_grad]
            wanted = [own[i] for i in checked]
            found = grad([o for o, _ in pairs], wanted, [v for _, v in pairs], create_graph=True, allow_unused=True)
            return tuple(x * 0 if g is None else g for x, g in zip(wanted, found, strict=True))

    return gradcheck(
        gradients,
        [*arguments, *cotangents],
        eps=eps,
        atol=atol,
        rtol=rtol,
        directions=directions,
        raise_exception=raise_exception,
    )


def numerical_gradient(function: Callable[[], Any], parameters: Sequence[Tensor], h: float = 1e-4) -> list[Tensor]:
    """dL/dp for every element of every parameter by central differences: two evaluations an element.

    Args:
        function: evaluates the loss L (a tensor of one element) with the parameters as they are.
        parameters: tensors, shifted in place one element at a time and put back.
        h: half the step.

    Returns:
        A tensor of the shape and dtype of each parameter.
    """
    gradients = []
    with no_grad():
        for parameter in parameters:
            flat = parameter.array.reshape(-1)
            if not parameter.array_module.may_share_memory(flat, parameter.array):
                raise GradientError("numerical_gradient: the parameters must be contiguous")
            found = np.empty(flat.size, parameter.dtype)
            for i in range(flat.size):
                kept = flat[i].copy()
                flat[i] = kept + h
                up = float(function())
                flat[i] = kept - h
                down = float(function())
                flat[i] = kept
                found[i] = (up - down) / (2 * h)
            gradients.append(Tensor(parameter.array_module.asarray(found.reshape(parameter.shape))))
    return gradients
