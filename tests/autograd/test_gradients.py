"""Gradients of all orders that are promised, of every operation in the table of ``cases.py``."""

from __future__ import annotations

import importlib
import pkgutil
from typing import Any

import numpy as np
import pytest
from cases import CASES, Case
from gradient_report import check

from rawgrad import autograd as ag
from rawgrad.autograd import Function, Tensor, function, functions
from rawgrad.autograd import functional as F


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_gradients_agree_with_differences(case: Case, gradient_reports: dict) -> None:
    first, second = gradient_reports[case] = check(case)
    assert first, str(first)
    assert second, str(second)
    assert first.compared > 0 and second.compared > 0


def test_names_are_unique() -> None:
    names = [case.name for case in CASES]
    assert len(set(names)) == len(names)


def concrete(base: type) -> set[type]:
    """Every Function below ``base`` that is no base of another, or is used as well."""
    found = set()
    for kind in base.__subclasses__():
        if not (kind.__name__.startswith("_") and kind.__subclasses__()):
            found.add(kind)
        found |= concrete(kind)
    return found


def test_every_function_is_reached_by_a_case(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: set[type] = set()
    record = function._record

    def spy(node: Any, *rest: Any) -> None:
        seen.add(node.function)
        record(node, *rest)

    monkeypatch.setattr(function, "_record", spy)
    for case in CASES:
        inputs = case.tensors()
        results = case.function(*inputs)
        for result in results if isinstance(results, tuple) else (results,):
            cotangent = Tensor(np.ones(result.shape), requires_grad=True)
            first = ag.grad(result, inputs, cotangent, create_graph=True, allow_unused=True)
            again = [g for g in first if g is not None and g.requires_grad]
            if again:
                ag.backward([(g * g).sum() for g in again])
    for module in pkgutil.iter_modules(functions.__path__):
        importlib.import_module(f"{functions.__name__}.{module.name}")
    ours = {kind for kind in concrete(Function) if kind.__module__.startswith("rawgrad.autograd.")}
    missing = {kind.__name__ for kind in ours - seen}
    # Move needs a second device (test_devices.py); to Cast, differences see only rounding (test_tensor.py).
    assert missing == {"Cast", "Move"}


def test_every_public_operation_has_a_case() -> None:
    covered = {case.operation for case in CASES}
    assert set(F.__all__) - covered == {"one_hot"}  # integers in, integers out
    methods = (
        "sum mean var std prod amax amin logsumexp cumsum norm exp log sqrt abs sin cos tanh sigmoid clamp pow maximum "
        "minimum reshape view flatten permute transpose squeeze expand split chunk flip masked_fill"
    )
    assert set(methods.split()) <= covered


# ---- values where differences cannot go: kinks and edges, after torch's conventions


def torch_gradient(expression: Any, *values: Any) -> list[np.ndarray]:
    torch = pytest.importorskip("torch")
    tensors = [torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in values]
    expression(*tensors).sum().backward()
    return [t.grad.numpy() for t in tensors]


def our_gradient(expression: Any, *values: Any) -> list[np.ndarray]:
    tensors = [Tensor(np.array(v, np.float64), requires_grad=True) for v in values]
    expression(*tensors).sum().backward()
    return [t.grad.numpy() for t in tensors]


nan = float("nan")
inf = float("inf")
KINKS = {
    "relu": (lambda x: x.relu(), [0.0, -0.0, 1.0, -1.0, nan, inf, -inf]),
    "abs": (lambda x: x.abs(), [0.0, -0.0, 2.0, -inf]),  # at NaN torch gives 0; here NaN travels
    "maximum": (lambda a, b: a.maximum(b), [1.0, 1.0, 0.0, nan, 1.0, nan], [1.0, 0.0, 1.0, 1.0, nan, nan]),
    "minimum": (lambda a, b: a.minimum(b), [1.0, 1.0, 0.0, nan, 1.0, nan], [1.0, 0.0, 1.0, 1.0, nan, nan]),
    "amax ties": (lambda x: x.amax(1), [[1.0, 3.0, 3.0], [2.0, 2.0, 2.0]]),
    "amin ties": (lambda x: x.amin(0), [[1.0, 3.0, 3.0], [1.0, 2.0, 3.0]]),
    "amax of NaN": (lambda x: x.amax(1), [[1.0, nan, 3.0]]),
    "clamp on the bounds": (lambda x: x.clamp(-1.0, 1.0), [-1.0, 1.0, 0.0, 2.0, -inf, inf, nan]),
    "sqrt at 0": (lambda x: x.sqrt(), [0.0, 4.0, inf]),
    "log at 0": (lambda x: x.log(), [0.0, -0.0, inf]),
    "pow at 0": (lambda x: x**2.0 + x**1.0 + x**0.0, [0.0, 2.0]),
    "pow half at 0": (lambda x: x**0.5, [0.0, 4.0]),
    "pow of tensors": (lambda a, b: a**b, [0.0, 0.0, 0.0, 2.0, 1.0], [0.0, 1.0, 2.0, 0.0, 3.0]),
    "norm at 0": (lambda x: x.norm(2, 1), [[0.0, 0.0], [3.0, 4.0]]),
    "1-norm at 0": (lambda x: x.norm(1, 1), [[0.0, 0.0], [3.0, 0.0]]),
    "3-norm at 0": (lambda x: x.norm(3, 1), [[0.0, 0.0], [3.0, 0.0]]),
    "1.5-norm at 0": (lambda x: x.norm(1.5, 1), [[0.0, 0.0], [3.0, 0.0]]),
    "half-norm": (lambda x: x.norm(0.5, 1), [[3.0, 1.0], [3.0, 4.0]]),
    "std at 0": (lambda x: x.std(1), [[2.0, 2.0], [3.0, 4.0]]),
    "prod of zeros": (lambda x: x.prod(1), [[0.0, 2.0, 3.0], [0.0, 0.0, 3.0], [1.0, 2.0, 3.0]]),
    "logsumexp of infinities": (lambda x: x.logsumexp(1), [[inf, 1.0], [1.0, -inf], [-1e300, 1e300]]),
    "softmax of infinities": (lambda x: x.softmax(1), [[-inf, 1.0], [0.0, 800.0]]),
    "div by 0": (lambda a, b: a / b, [1.0, 0.0, -1.0], [0.0, 0.0, 0.0]),
    "leaky_relu": (lambda x: x.relu() - 0.1 * (-x).relu(), [0.0, 1.0, -1.0]),
}


@pytest.mark.parametrize("name", KINKS)
def test_kinks_follow_torch(name: str) -> None:
    expression, *values = KINKS[name]
    for ours, theirs in zip(our_gradient(expression, *values), torch_gradient(expression, *values), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-12)


def test_padding_row_of_an_embedding_gets_no_gradient() -> None:
    weight = Tensor(np.arange(6.0).reshape(3, 2), requires_grad=True)
    F.embedding(Tensor(np.array([1, 2, 1, 0])), weight, padding_idx=-2).sum().backward()
    np.testing.assert_array_equal(weight.grad.numpy(), [[1, 1], [0, 0], [1, 1]])


# ---- the checker itself


def test_gradcheck_finds_a_wrong_gradient_and_names_the_entry() -> None:
    class Wrong(Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Any:
            ctx.save_for_backward(x)
            return x.array**2

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> Any:
            (x,) = ctx.saved_tensors
            slope = np.array([2.0, 2.0, 2.001])
            return grad * x * Tensor(slope)

    x = Tensor(np.array([1.0, -2.0, 3.0]), requires_grad=True)
    report = ag.gradcheck(Wrong.apply, [x], directions=0, raise_exception=False)
    assert not report
    assert report.budget_used > 1
    assert "d(output 0)/d(input 0) at (2, 2)" in report.worst and "6.003" in report.worst
    with pytest.raises(ag.function.GradientError, match="FAILED"):
        ag.gradcheck(Wrong.apply, [x])


def test_gradgradcheck_finds_a_wrong_second_derivative() -> None:
    class Cube(Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Any:
            ctx.save_for_backward(x)
            return x.array**3

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> Any:
            (x,) = ctx.saved_tensors
            return grad * 3 * x.detach() * x  # right, but its derivative misses a factor of 2

    x = Tensor(np.array([1.0, -2.0]), requires_grad=True)
    assert ag.gradcheck(Cube.apply, [x])
    assert not ag.gradgradcheck(Cube.apply, [x], raise_exception=False)


def test_gradcheck_refuses_what_it_cannot_check() -> None:
    with pytest.raises(ag.function.DtypeError, match="input 0 must be float64"):
        ag.gradcheck(lambda x: x, [Tensor(np.ones(2, np.float32), requires_grad=True)])
    with pytest.raises(ag.function.GradientError, match="no input requires"):
        ag.gradcheck(lambda x: x, [Tensor(np.ones(2))])
    with pytest.raises(ag.function.GradientError, match="depends"):
        ag.gradcheck(lambda x: x.detach(), [Tensor(np.ones(2), requires_grad=True)])
    with pytest.raises(ag.function.GradientError, match="no input requires"):
        ag.gradgradcheck(lambda x: x, [Tensor(np.ones(2))])


def test_gradcheck_leaves_inputs_alone() -> None:
    x = Tensor(np.array([1.0, 2.0]), requires_grad=True)
    ag.gradcheck(lambda t: t * t, [x])
    assert x.grad is None
    np.testing.assert_array_equal(x.detach().numpy(), [1, 2])


def test_numerical_gradient_of_a_quadratic_is_exact() -> None:
    x = Tensor(np.array([[3.0, 4.0]]), requires_grad=True)
    w = Tensor(np.array([2.0]), requires_grad=True)
    found = ag.numerical_gradient(lambda: (x * x).sum() * w.sum(), [x, w])
    np.testing.assert_allclose(found[0].numpy(), [[12, 16]], rtol=1e-9)
    np.testing.assert_allclose(found[1].numpy(), [25], rtol=1e-9)
    np.testing.assert_array_equal(x.detach().numpy(), [[3, 4]])  # put back exactly
