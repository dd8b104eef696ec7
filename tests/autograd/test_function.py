"""``rg.Function`` as users write it, the unit gradient, backends in nodes, anomaly mode."""

from __future__ import annotations

import importlib
import types
from typing import Any

import numpy as np
import pytest

import rawgrad as rg
from rawgrad import autograd as ag
from rawgrad.autograd import Function, Tensor, graph
from rawgrad.autograd import functional as F
from rawgrad.autograd.functions import softmax_cross_entropy
from rawgrad.kernels import _dispatch
from rawgrad.kernels._errors import DtypeError, GradientError, NonFiniteError


def leaf(*values: Any) -> Tensor:
    return Tensor(np.array(values, np.float64), requires_grad=True)


class Cube(rg.Function):  # the example of the module's docstring
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * x * x

    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        return 3 * x * x * grad


def test_the_example() -> None:
    assert "class Cube(rg.Function)" in (importlib.import_module("rawgrad.autograd.function").__doc__ or "")
    x = leaf(2.0, -1.0)
    y = Cube.apply(x)
    np.testing.assert_array_equal(y.detach().numpy(), [8, -1])
    y.sum().backward()
    np.testing.assert_array_equal(x.grad.numpy(), [12, 3])
    assert ag.gradcheck(Cube.apply, [leaf(1.5, -0.5)])
    assert ag.gradgradcheck(Cube.apply, [leaf(1.5, -0.5)])
    assert repr(y.grad_fn) == "<Cube>"


class Split(Function):
    """Several outputs of which one carries no gradient; keyword arguments; attributes of ctx."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, flag: Any, *, scale: float = 1.0) -> Any:
        ctx.scale = scale
        sign = np.sign(x.array)
        ctx.mark_non_differentiable(sign)
        return x.array * scale, sign, x.array.sum()

    @staticmethod
    def backward(ctx: Any, doubled: Tensor, sign: Tensor, total: Tensor) -> Any:
        assert not sign.array.any()
        return doubled * ctx.scale + total, None


def test_several_outputs() -> None:
    x = leaf(2.0, -1.0)
    scaled, sign, total = Split.apply(x, "flag", scale=3.0)
    assert scaled.requires_grad and total.requires_grad and not sign.requires_grad and sign.is_leaf
    assert total.shape == ()
    (scaled * leaf(1.0, 10.0).detach()).sum().backward(retain_graph=True)  # total gets zeros
    np.testing.assert_array_equal(x.grad.numpy(), [3, 30])
    x.grad = None
    (scaled.sum() + total * 5).backward()
    np.testing.assert_array_equal(x.grad.numpy(), [8, 8])


def test_integer_outputs_carry_no_gradient() -> None:
    class Rank(Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Any:
            return np.argsort(x.array), x.array * 1

        @staticmethod
        def backward(ctx: Any, ranks: Tensor, values: Tensor) -> Any:
            return values

    ranks, values = Rank.apply(leaf(2.0, 1.0))
    assert not ranks.requires_grad and values.requires_grad


def returning(value: Any) -> type[Function]:
    class Returns(Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor, y: Tensor) -> Any:
            return x.array + y.array

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> Any:
            return value

    return Returns


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (np.ones(2), "must return one gradient .* each of the 2 arguments of forward; it returned 1"),
        ((np.ones(2), None, np.ones(2)), "it returned 3"),
        ((np.ones(3), None), r"gradient of differentiable argument 0 must have its shape \(2,\); got \(3,\)"),
        ((None, np.ones((1, 2))), r"argument 1 must have its shape \(2,\); got \(1, 2\)"),
    ],
)
def test_gradients_that_do_not_fit(value: Any, message: str) -> None:
    x, y = leaf(1.0, 2.0), leaf(1.0, 2.0)
    with pytest.raises(GradientError, match=message):
        returning(value).apply(x, y).sum().backward()
    assert x.grad is None and y.grad is None


def test_none_means_no_gradient_and_trailing_nones_are_ignored() -> None:
    x, y = leaf(1.0, 2.0), leaf(1.0, 2.0)
    returning([np.array([3.0, 4.0]), None, None]).apply(x, y).sum().backward()
    np.testing.assert_array_equal(x.grad.numpy(), [3, 4])
    assert y.grad is None


def test_gradients_take_the_dtype_of_what_they_belong_to() -> None:
    x = Tensor(np.ones(2, np.float32), requires_grad=True)
    (x.double() * 2).sum().backward()
    assert x.grad.dtype == np.float32
    x.grad = None
    returning((np.ones(2), None)).apply(x, Tensor(np.ones(2, np.float32))).sum().backward()
    assert x.grad.dtype == np.float32


def test_forward_or_backward_that_is_missing() -> None:
    class Nothing(Function):
        pass

    class NoBackward(Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Any:
            return x

    with pytest.raises(GradientError, match="forward must be overridden"):
        Nothing.apply(leaf(1.0))
    with pytest.raises(GradientError, match="NoBackward has no backward"):
        NoBackward.apply(leaf(1.0)).backward()


def test_what_may_be_saved() -> None:
    class Saves(Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor, thing: Any) -> Any:
            ctx.save_for_backward(x, None, thing)
            return x.array * 2

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> Any:
            _, none, thing = ctx.saved_tensors
            assert none is None and isinstance(thing, Tensor)
            return grad * thing, None

    x = leaf(1.0)
    Saves.apply(x, np.array([5.0])).backward()
    assert x.grad.item() == 5
    with pytest.raises(DtypeError, match="save_for_backward takes tensors, arrays or None; got str"):
        Saves.apply(x, "text")


def test_needs_input_grad_says_what_is_wanted() -> None:
    seen = []

    class Asks(Function):
        @staticmethod
        def forward(ctx: Any, *args: Any) -> Any:
            seen.append(ctx.needs_input_grad)
            return args[0].array * 1

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> Any:
            return grad, None, None

    x, constant = leaf(1.0), Tensor(np.ones(1))
    Asks.apply(x, constant, 3)
    Asks.apply(constant, x.detach(), 3)
    with rg.no_grad():
        Asks.apply(x, constant, 3)
    assert seen == [(True, False, False), (False, False, False), (False, False, False)]


def test_an_input_returned_as_it_is_becomes_a_view_of_it() -> None:
    class Identity(Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Any:
            return x

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> Any:
            return grad * 10

    x = leaf(1.0)
    y = Identity.apply(x)
    assert y is not x and y.grad_fn is not None and x.is_leaf
    y.backward()
    assert x.grad.item() == 10
    z = x * 1
    view = Identity.apply(z)
    with pytest.raises(GradientError, match="shares its memory"):
        view.add_(1)


# ---- the unit gradient


def logits() -> tuple[Tensor, Tensor, np.ndarray]:
    values = np.array([[1.0, 2.0, 0.5], [0.1, -1.0, 2.0]])
    p = np.exp(values) / np.exp(values).sum(1, keepdims=True)
    p[0, 2] -= 1
    p[1, 0] -= 1
    return Tensor(values, requires_grad=True), Tensor(np.array([2, 0])), p / 2


def test_fused_cross_entropy_hands_on_the_gradient_it_has(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    kernel = softmax_cross_entropy.softmax_cross_entropy_forward

    def spy(*args: Any, **kwargs: Any) -> Any:
        loss, gradient = kernel(*args, **kwargs)
        made.append(gradient)
        return loss, gradient

    monkeypatch.setattr(softmax_cross_entropy, "softmax_cross_entropy_forward", spy)
    x, target, expected = logits()
    hidden = x * 1
    arrived = []
    hidden.register_hook(lambda g: arrived.append(g.array))
    F.cross_entropy(hidden, target).backward()
    assert arrived[0] is made[0]  # the very array: neither scaled nor copied
    np.testing.assert_allclose(x.grad.numpy(), expected, rtol=1e-12)


def test_cross_entropy_stays_right_when_its_graph_is_used_again() -> None:
    x, target, expected = logits()
    loss = F.cross_entropy(x, target)
    loss.backward(retain_graph=True)
    x.grad.array *= 0
    x.grad = None
    loss.backward(retain_graph=True)
    np.testing.assert_allclose(x.grad.numpy(), expected, rtol=1e-12)
    x.grad = None
    (loss * 3).backward(retain_graph=True)
    np.testing.assert_allclose(x.grad.numpy(), 3 * expected, rtol=1e-12)
    x.grad = None
    loss.backward(Tensor(np.array(-2.0)))
    np.testing.assert_allclose(x.grad.numpy(), -2 * expected, rtol=1e-12)


def test_a_loss_used_twice_has_no_unit_gradient() -> None:
    x, target, expected = logits()
    loss = F.cross_entropy(x, target)
    (loss + loss).backward()
    np.testing.assert_allclose(x.grad.numpy(), 2 * expected, rtol=1e-12)
    x.grad = None
    loss = F.cross_entropy(x, target)
    loss.register_hook(lambda g: g * 5)
    loss.backward()
    np.testing.assert_allclose(x.grad.numpy(), 5 * expected, rtol=1e-12)


# ---- backends


def test_each_node_runs_its_backward_on_the_backend_of_its_forward(monkeypatch: pytest.MonkeyPatch) -> None:
    from rawgrad.kernels.gemm import _operation, reference

    calls: list[str] = []

    def counting(name: str) -> types.SimpleNamespace:
        def gemm(*args: Any) -> Any:
            calls.append(name)
            return reference.gemm(*args)

        return types.SimpleNamespace(gemm=gemm)

    second = _dispatch.Backend("second", "cpu", "reference", (), "a double of the reference")
    monkeypatch.setitem(_dispatch.BACKENDS, "second", second)
    monkeypatch.setattr(_operation, "_cache", {})
    modules = {name: counting(name) for name in ("second", "numpy")}
    monkeypatch.setattr(_operation, "module", modules.__getitem__, raising=False)

    x, w = Tensor(np.ones((2, 3)), True), Tensor(np.ones((3, 3)), True)
    with rg.backend("numpy"):
        with rg.backend("second"):
            y = x @ w
        z = y @ w
        assert calls == ["second", "numpy"]
        z.sum().backward()
        assert calls == ["second", "numpy", "numpy", "numpy", "second", "second"]
        assert _dispatch.current_choice().for_device("cpu") == "numpy"


# ---- anomaly mode


def line_of(function: Any, marker: str) -> int:
    code = function.__code__
    with open(code.co_filename, encoding="utf-8") as source:
        lines = source.readlines()
    return next(n for n, text in enumerate(lines, 1) if n >= code.co_firstlineno and marker in text)


def test_anomaly_in_the_forward_pass_names_function_and_line() -> None:
    x = leaf(1.0, 0.0, -1.0)
    with pytest.raises(NonFiniteError) as caught, ag.detect_anomaly():
        _ = x.log()  # here
    message = str(caught.value)
    line = line_of(test_anomaly_in_the_forward_pass_names_function_and_line, "# here")
    assert message.startswith("Log: output 0 of shape (3,) has 2 of 3 values that are NaN or infinite")
    assert f"test_function.py:{line}: _ = x.log()" in message
    assert isinstance(caught.value, ArithmeticError)


def test_anomaly_in_the_backward_pass_names_the_line_of_the_forward() -> None:
    x = leaf(4.0, 0.0)
    with ag.detect_anomaly():
        root = x.sqrt()  # here
        loss = (root * 2).sum()
        with pytest.raises(NonFiniteError) as caught:
            loss.backward()
    line = line_of(test_anomaly_in_the_backward_pass_names_the_line_of_the_forward, "# here")
    assert str(caught.value).startswith("backward of Sqrt: gradient 0 of shape (2,) has 1 of 2 values")
    assert f"test_function.py:{line}: root = x.sqrt()" in str(caught.value)
    assert x.grad is None


def test_anomaly_names_the_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graph, "layer_path", lambda: "encoder.conv1")
    with ag.detect_anomaly(), pytest.raises(NonFiniteError, match=r"Exp in layer encoder\.conv1: output 0"):
        leaf(1e4).exp()
    with ag.detect_anomaly():
        y = leaf(0.0).sqrt()
    monkeypatch.setattr(graph, "layer_path", lambda: "")
    with ag.detect_anomaly(), pytest.raises(NonFiniteError, match=r"backward of Sqrt in layer encoder\.conv1"):
        y.backward()


def test_anomaly_finds_the_layer_of_a_real_model() -> None:
    from rawgrad import nn

    class Root(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.sqrt()

    model = nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.ReLU(), Root()))
    model[0].weight.data.fill_(-1.0)
    with ag.detect_anomaly(), pytest.raises(NonFiniteError, match=r"backward of Sqrt in layer 1\.1: gradient 0"):
        model(Tensor(np.ones((1, 2), np.float32))).sum().backward()


def test_anomaly_in_a_second_backward_pass_names_the_forward_line_too() -> None:
    x = leaf(0.0)
    with ag.detect_anomaly():
        y = x**1.5  # here
        (first,) = ag.grad(y, x, create_graph=True)
        with pytest.raises(NonFiniteError, match=r"backward of Pow: .* y = x\*\*1\.5"):
            first.backward()


def test_values_inside_a_backward_may_be_infinite_if_the_gradient_is_not() -> None:
    x = leaf(0.0, 4.0)
    with ag.detect_anomaly():
        ag.grad(x.std(), x)
        equal = leaf(2.0, 2.0)
        (g,) = ag.grad(equal.std(), equal)
    np.testing.assert_array_equal(g.numpy(), [0, 0])


def test_anomaly_says_when_the_forward_was_not_traced() -> None:
    y = leaf(0.0).sqrt()
    with ag.detect_anomaly(), pytest.raises(NonFiniteError, match=r"backward of Sqrt: .*ran outside detect_anomaly"):
        y.backward()


def test_anomaly_is_off_by_default_and_for_integers() -> None:
    assert np.isinf(leaf(0.0).log().item())
    with ag.detect_anomaly():
        assert ag.is_anomaly_enabled()
        _ = Tensor(np.arange(3)) + 1
    assert not ag.is_anomaly_enabled()


# ---- random draws


def test_generator_state() -> None:
    first = rg.manual_seed(7)
    assert first is ag.default_generator and first.get_state() == (7, 0)
    a = rg.randn(3)
    state = first.get_state()
    assert state == (7, 1)
    b = rg.randn(3)
    assert (a != b).all()
    first.set_state(state)
    assert (rg.randn(3) == b).all()
    rg.manual_seed(7)
    assert (rg.randn(3) == a).all()
    own = ag.Generator(7)
    assert (ag.randn(3, generator=own) == a).all() and own.offset == 1
    # A draw depends on (seed, offset) alone, not on how much the draw before took.
    own.manual_seed(7)
    ag.randn(1000, generator=own)
    assert (ag.randn(3, generator=own) == b).all()


@pytest.mark.parametrize("seed", [-1, 2**64, 1.5, True, "7"])
def test_seeds_that_are_refused(seed: Any) -> None:
    with pytest.raises(rg.ArgumentError, match=r"manual_seed: the seed must be an integer in \[0, 2\*\*64\)"):
        ag.Generator().manual_seed(seed)


def test_draws_have_their_distributions() -> None:
    rg.manual_seed(1)
    normal, uniform = ag.randn(20000), ag.rand(20000)
    whole, order = ag.randint(-2, 3, (20000,)), ag.randperm(1000)
    assert abs(normal.mean().item()) < 0.03 and abs(normal.std().item() - 1) < 0.03
    assert abs(uniform.mean().item() - 0.5) < 0.01 and 0 <= uniform.min().item() and uniform.max().item() < 1
    assert sorted(set(whole.tolist())) == [-2, -1, 0, 1, 2] and abs(whole.float().mean().item()) < 0.05
    assert sorted(order.tolist()) == list(range(1000)) and order.tolist() != list(range(1000))
    assert normal.dtype == uniform.dtype == np.float32 and whole.dtype == order.dtype == np.int64


def test_a_dropout_mask_is_a_function_of_seed_and_offset() -> None:
    x = Tensor(np.ones((50, 40)), requires_grad=True)
    generator = ag.Generator(11)
    first = F.dropout(x, 0.3, generator=generator)
    second = F.dropout(x, 0.3, generator=generator)
    assert (first != second).any()
    generator.set_state((11, 0))
    again = F.dropout(x, 0.3, generator=generator)
    assert (first == again).all()
    kept = (first != 0).float().mean().item()
    assert abs(kept - 0.7) < 0.04
    np.testing.assert_allclose(np.unique(first.detach().numpy()), [0, 1 / 0.7])
    first.sum().backward()  # the same mask on the way back
    np.testing.assert_array_equal(x.grad.numpy(), first.detach().numpy())


def test_dropout_at_the_ends() -> None:
    x = leaf(1.0, 2.0)
    state = ag.default_generator.get_state()
    assert F.dropout(x, 0.0) is x and F.dropout(x, 0.9, training=False) is x
    assert ag.default_generator.get_state() == state  # nothing was drawn
    assert not F.dropout(x, 1.0).detach().numpy().any()
    with pytest.raises(rg.ArgumentError, match=r"dropout: p must be a number in \[0, 1\]; got 1.5"):
        F.dropout(x, 1.5)
