"""Tensors of float16 and bfloat16: torch's promotion, float32 inside, rounded once; gradients go back through casts."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import numpy as np
import pytest
from _tolerance import assert_within

import rawgrad as rg
from rawgrad import functional as F
from rawgrad import nn, optim
from rawgrad.autograd import Tensor
from rawgrad.kernels._dtypes import BFLOAT16, HALVES
from rawgrad.kernels._errors import ArgumentError, DtypeError

pytestmark = pytest.mark.backends("numba", "emulated", "cuda")
NAMES = [str(dtype) for dtype in HALVES]
EPS = {"float16": 2.0**-10, "bfloat16": 2.0**-7}


@pytest.fixture
def there(backend: Any) -> Any:
    """Makes tensors on the device of the backend under test."""

    def make(values: Any, dtype: Any = "float32", requires_grad: bool = False) -> Tensor:
        return rg.tensor(values, dtype=dtype, device=backend.device.name, requires_grad=requires_grad)

    return make


def host(x: Tensor) -> np.ndarray:
    """The values as float64."""
    return x.detach().to("cpu").numpy().astype(np.float64)


def test_names_and_casts(there: Any) -> None:
    x = there([0.1, 70000.0, 1.0 + 2.0**-8])
    assert x.to("bfloat16").dtype == x.bfloat16().dtype == BFLOAT16 and x.half().dtype == np.float16
    np.testing.assert_array_equal(host(x.bfloat16()), [0.10009765625, 70144, 1.0])  # ties to even
    np.testing.assert_array_equal(host(x.half()), [0.0999755859375, np.inf, 1.00390625])
    assert x.half().to("bfloat16").float().dtype == np.float32
    assert repr(there([0.5, 2.0], "bfloat16").cpu()) == "tensor([0.5, 2. ], dtype=bfloat16)"
    for make in (rg.zeros, rg.ones, rg.randn, rg.rand):
        assert make(3, dtype="bfloat16").dtype == BFLOAT16
    y = rg.tensor([1.5, -2.0], dtype=BFLOAT16, requires_grad=True)
    for twin in (copy.deepcopy(y), pickle.loads(pickle.dumps(y))):
        assert twin.dtype == BFLOAT16 and twin.tolist() == [1.5, -2.0] and twin.requires_grad
    assert y[0].item() == 1.5 and type(y[0].item()) is float


def test_a_cast_hands_the_gradient_back_in_its_own_dtype(there: Any) -> None:
    x = there([1.0, 2.0, 3.0], requires_grad=True)
    (x.to("bfloat16") * there([0.1, 0.2, 0.3], "bfloat16")).sum().backward()
    assert x.grad is not None and x.grad.dtype == np.float32
    np.testing.assert_array_equal(host(x.grad), np.float32([0.1, 0.2, 0.3]).astype(BFLOAT16).astype(np.float64))


PAIRS = [(a, b) for a in NAMES for b in (*NAMES, "float32", "float64", "int8", "int64", "bool")]


@pytest.mark.parametrize(("a", "b"), PAIRS)
def test_promotion_is_torchs(there: Any, a: str, b: str) -> None:
    torch = pytest.importorskip("torch")
    for shape_a, shape_b in (((2,), (2,)), ((2,), ()), ((), (2,))):
        ours = there(np.ones(shape_a), a) + there(np.ones(shape_b), b)
        theirs = torch.ones(shape_a, dtype=getattr(torch, a)) + torch.ones(shape_b, dtype=getattr(torch, b))
        assert str(ours.dtype) == str(theirs.dtype).removeprefix("torch."), (shape_a, shape_b)


SCALARS = {
    "x + 257": lambda x: x + 257,
    "0.1 - x": lambda x: 0.1 - x,
    "x * 0.1": lambda x: x * 0.1,
    "x / 3": lambda x: x / 3,
    "1 / x": lambda x: 1 / x,
    "x ** 2": lambda x: x**2,
    "x % 0.7": lambda x: x % 0.7,
    "x * True": lambda x: x * True,
    "clamp": lambda x: x.clamp(0.3, 1.7),
    "x // 0.25": lambda x: x // 0.25,
}


@pytest.mark.parametrize("dtype", NAMES)
@pytest.mark.parametrize("name", SCALARS)
def test_scalars_do_not_widen_and_are_not_rounded(there: Any, dtype: str, name: str) -> None:
    """The result is that of float32, rounded once, as torch's is."""
    values = np.arange(1, 60) / 16
    y = SCALARS[name](there(values, dtype))
    assert str(y.dtype) == dtype
    expected = host(SCALARS[name](there(values, dtype).float()).to(dtype))
    np.testing.assert_array_equal(host(y), expected)


@pytest.mark.parametrize("dtype", NAMES)
def test_sums_are_float32s(there: Any, dtype: str) -> None:
    """In the dtype itself a sum of ones would end at 256 or 2048, and one of 70,000 overflow float16."""
    ones = there(np.ones((3000, 2)), dtype, requires_grad=True)
    assert ones.sum().dtype == ones.dtype and host(ones.sum(0)).tolist() == [3000 if dtype == "float16" else 3008] * 2
    assert host(there(np.ones(70000), dtype).mean()) == 1
    assert host(ones.cumsum(0)[2999, 1]) == (3000 if dtype == "float16" else 3008)
    x = there(np.arange(8) + 200, dtype)
    assert host(x.var()) == 6 and host(x.amax()) == 207 and host(x.argmax()) == 7
    assert host((there(np.full(4, 300.0), dtype)).norm()) == 600  # 300² is beyond float16
    bias = there([0.0, 0.0], dtype, requires_grad=True)
    (ones + bias).sum().backward()
    assert bias.grad is not None and host(bias.grad).tolist() == [3000 if dtype == "float16" else 3008] * 2
    table = there([[1.0, 2.0]], dtype, requires_grad=True)
    table[there(np.zeros(3000), "int64")].sum().backward()
    assert table.grad is not None and host(table.grad).tolist() == [[3000 if dtype == "float16" else 3008] * 2]


def gradients(there: Any, dtype: str, given: list[np.ndarray], **options: Any) -> tuple[Tensor, list[np.ndarray]]:
    """Loss of a linear layer, and the gradients; the gradient by the loss is 3."""
    x, w, b = (there(a, dtype, requires_grad=True) for a in given)
    loss = F.cross_entropy(F.linear(x, w, b, activation="relu"), there([0, 3, 1, 3, 2], "int64"), **options)
    (loss * 3.0).sum().backward()
    return loss, [host(t.grad) for t in (x, w, b) if t.grad is not None and t.grad.dtype == t.dtype]


@pytest.mark.parametrize("dtype", NAMES)
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_linear_and_cross_entropy(there: Any, dtype: str, reduction: str) -> None:
    """Against float64 on the same numbers, per sum of products: h, and what is made of it, are rounded."""
    rng = np.random.default_rng(0)
    given = [np.asarray(rng.standard_normal(s).astype(dtype), np.float64) for s in ((5, 24), (4, 24), (4,))]
    loss, found = gradients(there, dtype, given, reduction=reduction)
    exact_loss, exact = gradients(there, "float64", given, reduction=reduction)
    assert loss.dtype == np.float32
    x, w, b = given
    # The logits are rounded to y (1 + eps/2), which moves softmax by as much as y; h is rounded twice.
    share = 3 / (5 if reduction == "mean" else 1) * EPS[dtype] * (2 + np.abs(x @ w.T + b).max())
    h = np.full((5, 4), share)
    for result, expected, budget in zip(found, exact, (h @ abs(w), h.T @ abs(x), h.sum(0)), strict=True):
        assert_within(result, expected, budget)
    assert_within(host(loss), host(exact_loss), EPS[dtype] * np.abs(x @ w.T + b).max() * 2)


def test_gradients_of_gradients(there: Any) -> None:
    x, w = there([[1.0, 2.0], [3.0, -1.0]], "bfloat16", True), there([[0.5, 1.0], [2.0, -1.0]], "bfloat16", True)

    def second(x: Tensor, w: Tensor) -> Tensor:
        loss = F.cross_entropy(F.linear(x, w), there([0, 1], "int64"))
        (first,) = rg.autograd.grad(loss, [x], create_graph=True)
        (found,) = rg.autograd.grad((first * first).sum(), [w])
        return found

    found = second(x, w)
    assert found is not None and found.dtype == BFLOAT16
    exact = host(second(x.detach().double().requires_grad_(), w.detach().double().requires_grad_()))
    np.testing.assert_allclose(host(found), exact, rtol=0.1, atol=0.02 * np.abs(exact).max())


def test_what_has_no_kernels_for_halves_says_what_to_do(there: Any) -> None:
    x = there(np.ones((2, 3, 4, 4)), "bfloat16", requires_grad=True)
    for name, call in {
        "activation": lambda: x.tanh(),
        "softmax": lambda: x.softmax(1),
        "dropout": lambda: F.dropout(x),
        "max_pool2d": lambda: F.max_pool2d(x, 2),
        "layer_norm": lambda: F.layer_norm(x, (4,)),
        "conv2d": lambda: F.conv2d(x, there(np.ones((1, 3, 1, 1)), "bfloat16")),
    }.items():
        with pytest.raises(DtypeError, match=rf'{name}.*got bfloat16; .* convert by \.to\("float32"\) first'):
            call()
    with pytest.raises(DtypeError, match="gemm: all arguments must have one dtype; a is bfloat16, b is float32"):
        F.linear(x, there(np.ones((2, 4))))
    with pytest.raises(ArgumentError, match="precision must be one of"):
        rg.precision("bfloat16")
    weight = there(np.ones(3), "bfloat16", requires_grad=True)
    weight.grad = there(np.ones(3), "bfloat16")
    with pytest.raises(DtypeError, match=r'sgd.*params\[0\] .* got bfloat16; .* convert by \.to\("float32"\) first'):
        optim.SGD([weight], lr=0.1).step()


@pytest.mark.parametrize("dtype", NAMES)
def test_weights_in_float32_and_products_in_halves(there: Any, dtype: str) -> None:
    """The usual way to train: the optimizer keeps float32, which each step casts."""
    rng = np.random.default_rng(1)
    labels = rng.integers(0, 3, 40)
    x = there(np.eye(3)[labels] + 0.1 * rng.standard_normal((40, 3)), dtype)
    w, b = there(np.zeros((3, 3)), requires_grad=True), there(np.zeros(3), requires_grad=True)
    step = optim.SGD([w, b], lr=1.0)
    losses = []
    for _ in range(8):
        loss = F.cross_entropy(F.linear(x, w.to(dtype), b.to(dtype)), there(labels, "int64"))
        step.zero_grad()
        loss.backward()
        step.step()
        losses.append(loss.item())
    assert w.dtype == w.grad.dtype == np.float32 and losses[0] == pytest.approx(np.log(3), rel=1e-6)
    assert losses == sorted(losses, reverse=True) and losses[-1] < 0.4


@pytest.mark.backends("numba")
def test_to_and_from_torch(there: Any) -> None:
    torch = pytest.importorskip("torch")
    assert rg.from_dlpack(torch.ones(2, dtype=torch.float16)).dtype == np.float16
    with pytest.raises(DtypeError, match="from_dlpack: NumPy does not take this Tensor"):
        rg.from_dlpack(torch.ones(2, dtype=torch.bfloat16))
    with pytest.raises(BufferError):  # which the protocol asks for
        torch.from_dlpack(there([1.0], "bfloat16"))


def test_a_module_in_halves(there: Any, backend: Any) -> None:
    layer = nn.Linear(4, 3, device=backend.device.name)
    weight = host(layer.weight)
    layer.bfloat16()
    np.testing.assert_array_equal(host(layer.weight), weight.astype(BFLOAT16).astype(np.float64))
    y = layer(there(np.ones((2, 4)), "bfloat16"))
    assert (
        y.dtype == BFLOAT16 and layer.half().weight.dtype == np.float16 and layer.to("float32").bias.dtype == np.float32
    )
    assert nn.Linear(2, 2, dtype="bfloat16").weight.dtype == BFLOAT16
