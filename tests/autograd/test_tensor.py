"""Tensors against torch: values, dtypes, broadcasting, indexing, reductions, products; and their manners."""

from __future__ import annotations

import math
import pickle
import warnings
from typing import Any

import numpy as np
import pytest

import rawgrad as rg
from rawgrad import autograd as ag
from rawgrad.autograd import Tensor
from rawgrad.autograd import functional as F
from rawgrad.kernels._errors import ArgumentError, DtypeError, GradientError, IndexRangeError, ShapeError

nan, inf = float("nan"), float("inf")


@pytest.fixture(scope="module")
def torch() -> Any:
    return pytest.importorskip("torch")


def same(ours: Any, theirs: Any, rtol: float = 1e-6) -> None:
    """Equal values, shape and dtype."""
    host = ours.detach().numpy()
    other = theirs.detach().numpy()
    assert host.dtype == other.dtype and host.shape == other.shape, (
        f"{host.dtype}{host.shape} {other.dtype}{other.shape}"
    )
    np.testing.assert_allclose(host, other, rtol=rtol, atol=1e-7)


# ---- promotion

DTYPES = ("bool", "uint8", "int32", "int64", "float32", "float64")
OPERATIONS = {
    "add": lambda a, b: a + b,
    "mul": lambda a, b: a * b,
    "div": lambda a, b: a / b,
    "less": lambda a, b: a < b,
    "where": None,
    "maximum": None,
}


def operand(kind: str, dtype: str, make: Any) -> Any:
    values = {"tensor": [1, 0, 3], "0-dim": 1}[kind]
    return make(np.array(values).astype(dtype))


@pytest.mark.parametrize("second", ("tensor", "0-dim"))
@pytest.mark.parametrize("first", ("tensor", "0-dim"))
@pytest.mark.parametrize("name", OPERATIONS)
def test_promotion_of_tensors(torch: Any, name: str, first: str, second: str) -> None:
    for left in DTYPES:
        for right in DTYPES:
            a, b = operand(first, left, Tensor), operand(second, right, Tensor)
            ta, tb = operand(first, left, torch.as_tensor), operand(second, right, torch.as_tensor)
            if name == "where":
                ours, theirs = F.where(a == a, a, b), torch.where(ta == ta, ta, tb)
            elif name == "maximum":
                ours, theirs = a.maximum(b), ta.maximum(tb)
            else:
                ours, theirs = OPERATIONS[name](a, b), OPERATIONS[name](ta, tb)
            same(ours, theirs)


@pytest.mark.parametrize("scalar", [True, 2, 2.5], ids=str)
@pytest.mark.parametrize("kind", ("tensor", "0-dim"))
def test_promotion_with_scalars(torch: Any, kind: str, scalar: Any) -> None:
    for dtype in DTYPES:
        a, ta = operand(kind, dtype, Tensor), operand(kind, dtype, torch.as_tensor)
        for function in (
            lambda x, s: x + s,
            lambda x, s: s * x,
            lambda x, s: x / s,
            lambda x, s: s / (x + 1),
            lambda x, s: x > s,
            lambda x, s: s == x,
        ):
            same(function(a, scalar), function(ta, scalar))
        # NumPy scalars count as Python's, whatever their width and side.
        for numpy_scalar in (np.float32(2.5), np.float64(2.5), np.int64(2), np.int8(2), np.bool_(True)):
            same(a + numpy_scalar, ta + numpy_scalar.item())
            same(numpy_scalar * a, numpy_scalar.item() * ta)
            assert isinstance(numpy_scalar * a, Tensor) and isinstance(numpy_scalar < a, Tensor)


def test_numpy_arrays_leave_arithmetic_to_the_tensor() -> None:
    x = Tensor(np.array([1.0, 2.0], np.float32), requires_grad=True)
    array = np.array([3.0, 4.0], np.float32)
    for y in (array * x, x * array, array + x, array @ x, array - x, array / x, array**x):
        assert isinstance(y, Tensor) and y.requires_grad
    assert isinstance(array < x, Tensor) and isinstance(array == x, Tensor)
    (array * x).sum().backward()
    np.testing.assert_array_equal(x.grad.numpy(), array)


@pytest.mark.parametrize("dtype", DTYPES)
def test_unary_functions(torch: Any, dtype: str) -> None:
    values = np.array([0, 1, 2, 5]).astype(dtype)
    for name in "exp log log1p sqrt sin cos tanh sigmoid isnan isfinite isinf".split():
        same(getattr(Tensor(values), name)(), getattr(torch.tensor(values), name)())
    if dtype != "bool":
        for name in "abs sign floor ceil round square neg".split():
            same(getattr(Tensor(values), name)(), getattr(torch.tensor(values), name)())
        same(Tensor(values) // 2, torch.tensor(values) // 2)
        same(Tensor(values) % 2, torch.tensor(values) % 2)
        same(Tensor(values) ** 2, torch.tensor(values) ** 2)
        same(Tensor(values).clamp(1, 3), torch.tensor(values).clamp(1, 3))
    same(Tensor(values).clamp(1.5), torch.tensor(values).clamp(1.5)) if "float" in dtype else None


def test_booleans_and_bits(torch: Any) -> None:
    a, b = np.array([True, True, False]), np.array([True, False, False])
    for function in (
        lambda x, y: x & y, lambda x, y: x | y, lambda x, y: x ^ y, lambda x, y: ~x, lambda x, y: x == y,
        lambda x, y: x != y, lambda x, y: x.all() | y.any(),
    ):  # fmt: skip
        same(function(Tensor(a), Tensor(b)), function(torch.tensor(a), torch.tensor(b)))
    with pytest.raises(DtypeError, match="booleans cannot be subtracted"):
        _ = Tensor(a) - Tensor(b)
    with pytest.raises(DtypeError, match="booleans cannot be negated"):
        _ = -Tensor(a)
    with pytest.raises(DtypeError, match="bitwise_and"):
        _ = Tensor(a) & 1.5


def test_remainder_has_the_sign_of_the_divisor(torch: Any) -> None:
    x = np.array([-3.5, -1.0, 0.0, 2.0, 5.5])
    for divisor in (2, -2, 1.5):
        same(Tensor(x) % divisor, torch.tensor(x) % divisor)
        same(Tensor(x) // divisor, torch.tensor(x) // divisor)


@pytest.mark.parametrize(
    "shapes", [((3, 1), (1, 4)), ((2, 3), (3,)), ((), (2, 2)), ((0, 3), (1, 3)), ((5, 1, 2), (4, 1)), ((1,), ())]
)
def test_broadcasting(torch: Any, shapes: Any) -> None:
    rng = np.random.default_rng(0)
    values = [rng.standard_normal(shape) for shape in shapes]
    ours, theirs = ([make(v) for v in values] for make in (Tensor, torch.tensor))
    for x in (*ours, *theirs):
        x.requires_grad_()
    a, b = ours[0] * ours[1] + ours[0], theirs[0] * theirs[1] + theirs[0]
    same(a, b)
    a.sum().backward()
    b.sum().backward()
    for x, y in zip(ours, theirs, strict=True):
        same(x.grad, y.grad)


def test_shapes_that_do_not_broadcast() -> None:
    with pytest.raises(ShapeError, match=r"add: shapes \(2, 3\) and \(4,\) do not broadcast"):
        _ = Tensor(np.ones((2, 3))) + Tensor(np.ones(4))


# ---- NaN and infinity travel, and nothing warns


def test_special_values(torch: Any) -> None:
    a = np.array([nan, inf, -inf, 0.0, 1.0, -0.0, 1e308])
    b = np.array([1.0, inf, inf, 0.0, nan, 0.0, 1e308])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for function in (
            lambda x, y: x + y, lambda x, y: x - y, lambda x, y: x * y, lambda x, y: x / y, lambda x, y: x**y,
            lambda x, y: x.maximum(y), lambda x, y: x.minimum(y), lambda x, y: x % y, lambda x, y: x.exp(),
            lambda x, y: x.log(), lambda x, y: x.sqrt(), lambda x, y: x.sin(), lambda x, y: x.clamp(-1, 1),
            lambda x, y: x.sum(), lambda x, y: x.cumsum(0), lambda x, y: x.amax(), lambda x, y: x[1:].amin(),
            lambda x, y: x[1:].prod(), lambda x, y: x.mean(), lambda x, y: y[1:3].logsumexp(0), lambda x, y: x < y,
            lambda x, y: x == y, lambda x, y: x.relu(), lambda x, y: x.argmax(), lambda x, y: x[1:].norm(),
            lambda x, y: x.float(), lambda x, y: x.square(),
            lambda x, y: x.var(), lambda x, y: x // y,
        ):  # fmt: skip
            same(function(Tensor(a), Tensor(b)), function(torch.tensor(a), torch.tensor(b)))


# ---- indexing

INDICES = {
    "integer": 1,
    "negative": -1,
    "slice": slice(1, 3),
    "steps": (slice(None, None, 2), slice(1, None, 2)),
    "None": (None, 0, None),
    "ellipsis": (..., 0),
    "ellipsis in the middle": (0, ..., slice(1, 2)),
    "mask": np.arange(24).reshape(4, 3, 2) % 3 == 0,
    "mask of rows": np.array([True, False, True, True]),
    "mask then slice": (np.array([True, False, True, True]), slice(1, None)),
    "list": [0, 2, 2],
    "integers": np.array([3, 0, 0, -1]),
    "matrix": np.array([[1, 2], [0, 0]]),
    "pairs": (np.array([0, 3]), np.array([2, 1])),
    "apart": (np.array([0, 3]), slice(None), np.array([1, 1])),
    "middle": (slice(None), np.array([2, 0, 2])),
    "broadcast": (np.array([[0], [3]]), np.array([1, 2])),
    "empty slice": slice(2, 2),
    "nothing": (),
    "empty list": np.zeros(0, np.int64),
}


def as_index(index: Any, make: Any) -> Any:
    if isinstance(index, tuple):
        return tuple(as_index(part, make) for part in index)
    return make(index) if isinstance(index, np.ndarray) else index


@pytest.mark.parametrize("name", INDICES)
def test_indexing(torch: Any, name: str) -> None:
    index = INDICES[name]
    values = np.arange(24.0).reshape(4, 3, 2)
    x, tx = Tensor(values, requires_grad=True), torch.tensor(values, requires_grad=True)
    y, ty = x[as_index(index, Tensor)], tx[as_index(index, torch.tensor)]
    same(y, ty)
    same(x[index], ty)  # arrays as they come
    (y * y).sum().backward()
    (ty * ty).sum().backward()
    same(x.grad, tx.grad)
    for written in (7.0, np.float64(7)):
        a, b = Tensor(values.copy()), torch.tensor(values.copy())
        a[as_index(index, Tensor)] = written
        b[as_index(index, torch.tensor)] = written
        same(a, b)


def test_negative_steps(torch: Any) -> None:  # which torch itself refuses
    values = np.arange(12.0).reshape(3, 4)
    x = Tensor(values, requires_grad=True)
    y = x[::-1, 3:0:-2]
    np.testing.assert_array_equal(y.detach().numpy(), values[::-1, 3:0:-2])
    (y * Tensor(np.arange(6.0).reshape(3, 2))).sum().backward()
    expected = np.zeros((3, 4))
    expected[::-1, 3:0:-2] = np.arange(6.0).reshape(3, 2)
    np.testing.assert_array_equal(x.grad.numpy(), expected)


def test_an_index_written_after_use_is_noticed() -> None:
    x, index = Tensor(np.arange(3.0), requires_grad=True), Tensor(np.array([0, 1]))
    y = x[index].sum()
    index[0] = 2
    with pytest.raises(GradientError, match="modified in place"):
        y.backward()


def test_indices_that_are_refused() -> None:
    x = Tensor(np.zeros((3, 2)))
    with pytest.raises(IndexRangeError, match=r"indexing a tensor of shape \(3, 2\): index 5"):
        _ = x[5]
    with pytest.raises(IndexRangeError, match="too many indices"):
        _ = x[0, 0, 0]
    with pytest.raises(DtypeError, match="integers or booleans; got float64"):
        _ = x[Tensor(np.array([1.0]))]
    with pytest.raises(IndexRangeError):
        _ = x["a"]
    with pytest.raises(ShapeError, match="could not broadcast"):
        x[0] = Tensor(np.ones(3))
    with pytest.raises(IndexRangeError):
        x[7] = 1.0


def test_views_share_memory_and_copies_do_not() -> None:
    x = Tensor(np.arange(6.0).reshape(2, 3))
    for view in (
        x[0],
        x[:, 1:],
        x.T,
        x.reshape(3, 2),
        x.view(6),
        x.unsqueeze(0),
        x.expand(4, 2, 3),
        x.detach(),
        x.data,
    ):
        assert np.shares_memory(view.array, x.array)
    for copied in (x[[0]], x.clone(), x + 0, x.flip(0), x.T.reshape(6), rg.tensor(x), x.double().clone()):
        assert not np.shares_memory(copied.array, x.array)
    with pytest.raises(ShapeError, match=r"cannot be seen as \(6,\) without a copy; use reshape"):
        x.T.view(6)
    assert x.T.contiguous().is_contiguous() and x.contiguous() is x


# ---- reductions


@pytest.mark.parametrize("dim", [None, 0, -1, (0, 2), (2, 1, 0), (1,)], ids=str)
@pytest.mark.parametrize("keepdim", [False, True])
def test_reductions(torch: Any, dim: Any, keepdim: bool) -> None:
    values = np.random.default_rng(1).standard_normal((2, 3, 4))
    x, tx = Tensor(values), torch.tensor(values)
    every = tuple(range(3)) if dim is None else dim
    for name in ("sum", "mean", "amax", "amin", "logsumexp", "var", "std", "norm"):
        arguments = {"dim": every if name in ("amax", "amin", "logsumexp") else dim, "keepdim": keepdim}
        theirs = torch.linalg.vector_norm(tx, dim=dim, keepdim=keepdim) if name == "norm" else None
        same(getattr(x, name)(**arguments), getattr(tx, name)(**arguments) if theirs is None else theirs)
    if isinstance(dim, int):
        for name in ("prod", "argmax", "argmin", "all", "any"):
            mask = name in ("all", "any")
            same(getattr(x > 0 if mask else x, name)(dim, keepdim), getattr(tx > 0 if mask else tx, name)(dim, keepdim))
        same(x.cumsum(dim), tx.cumsum(dim))
    for correction in (0, 0.5):
        same(x.var(every, correction=correction), tx.var(every, correction=correction))
    for p in (0, 1, 3, 0.5, inf, -inf):
        same(x.norm(p, dim, keepdim), torch.linalg.vector_norm(tx, p, dim, keepdim))


@pytest.mark.parametrize("dtype", DTYPES)
def test_dtypes_of_reductions(torch: Any, dtype: str) -> None:
    values = np.array([[1, 0, 3], [2, 2, 1]]).astype(dtype)
    x, tx = Tensor(values), torch.tensor(values)
    for name in ("sum", "prod", "amax", "amin", "max", "min", "all", "any"):
        if dtype == "uint8" and name in ("all", "any"):  # torch keeps uint8 there, for history's sake
            continue
        same(getattr(x, name)(), getattr(tx, name)())
    if dtype != "bool":
        same(x.argmax(1), tx.argmax(1))
        same(x.cumsum(0), tx.cumsum(0))
    if "float" not in dtype:
        with pytest.raises(DtypeError, match="mean: takes floating tensors"):
            x.mean()


def test_reductions_over_nothing(torch: Any) -> None:
    x, tx = Tensor(np.zeros((0, 3))), torch.zeros((0, 3), dtype=torch.float64)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for name in ("sum", "prod", "mean"):
            same(getattr(x, name)(), getattr(tx, name)())
            same(getattr(x, name)(0), getattr(tx, name)(0))
        same(x.all(), tx.all())
        same(x.any(0), tx.any(0))
        same(x.amax(1), tx.amax(1))
        assert math.isnan(Tensor(np.ones(1)).var().item())
    for reduce in (x.amax, x.amin, x.argmax, x.max, lambda: x.logsumexp((0, 1))):
        with pytest.raises(ShapeError, match="nothing to reduce over"):
            reduce()


def test_first_of_equal_extrema() -> None:
    x = Tensor(np.array([[1.0, 3.0, 3.0], [nan, 5.0, nan]]))
    assert x.argmax(1).tolist() == [1, 0] and x.argmin(1).tolist() == [0, 0] and x.argmax().item() == 3


def test_dimensions_that_are_refused() -> None:
    x = Tensor(np.zeros((2, 3)))
    with pytest.raises(IndexRangeError, match=r"sum: dim must be in \[-2, 1\]; got 2"):
        x.sum(2)
    with pytest.raises(ArgumentError, match="names a dimension twice"):
        x.sum((0, -2))
    with pytest.raises(ArgumentError, match="dim must be an integer; got 1.5"):
        x.sum(1.5)
    assert Tensor(np.array(2.0)).sum(0).item() == 2 and Tensor(np.array(2.0)).amax(-1).item() == 2


# ---- products


@pytest.mark.parametrize(
    "shapes",
    [
        ((3,), (3,)), ((3,), (3, 2)), ((2, 3), (3,)), ((2, 3), (3, 4)), ((5, 2, 3), (3, 4)), ((5, 2, 3), (5, 3, 4)),
        ((5, 1, 2, 3), (4, 3, 2)), ((3,), (4, 3, 2)), ((4, 2, 3), (3,)), ((0, 3), (3, 2)), ((2, 0), (0, 3)),
        ((0, 2, 3), (3, 4)), ((0, 2, 3), (0, 3, 4)), ((2, 3, 0), (0, 4)), ((1, 1), (1, 1)), ((2, 0, 3), (3, 4)),
        ((0,), (0,)), ((2, 3), (7, 3, 2)),
    ],
    ids=str,
)  # fmt: skip
def test_matmul(torch: Any, shapes: Any) -> None:
    rng = np.random.default_rng(2)
    values = [rng.standard_normal(shape) for shape in shapes]
    a, b = (Tensor(v, requires_grad=True) for v in values)
    ta, tb = (torch.tensor(v, requires_grad=True) for v in values)
    y, ty = a @ b, ta @ tb
    same(y, ty)
    (y * y).sum().backward()
    (ty * ty).sum().backward()
    same(a.grad, ta.grad)
    same(b.grad, tb.grad)


def test_matmul_that_does_not_fit() -> None:
    with pytest.raises(ShapeError, match=r"last size of the first tensor \(2, 3\) .* second \(4, 2\): 3 != 4"):
        _ = Tensor(np.ones((2, 3))) @ Tensor(np.ones((4, 2)))
    with pytest.raises(ShapeError, match="at least one dimension"):
        _ = Tensor(np.ones(())) @ Tensor(np.ones(2))
    with pytest.raises(ShapeError, match="broadcast"):
        _ = Tensor(np.ones((2, 2, 2))) @ Tensor(np.ones((3, 2, 2)))
    with pytest.raises(TypeError):
        _ = Tensor(np.ones(2)) @ "a"
    with pytest.raises(ShapeError, match="mm: takes two matrices"):
        F.mm(Tensor(np.ones(2)), Tensor(np.ones((2, 2))))
    with pytest.raises(ShapeError, match="bmm"):
        F.bmm(Tensor(np.ones((1, 2, 2))), Tensor(np.ones((2, 2, 2))))


# ---- shape


def test_shape_functions(torch: Any) -> None:
    values = np.arange(24.0).reshape(2, 3, 1, 4)
    x, tx = Tensor(values), torch.tensor(values)
    for function in (
        lambda t: t.reshape(4, -1), lambda t: t.reshape((2, 12)), lambda t: t.view(24), lambda t: t.flatten(),
        lambda t: t.flatten(1, 2), lambda t: t.flatten(2), lambda t: t.permute(3, 0, 2, 1), lambda t: t.squeeze(),
        lambda t: t.transpose(0, -1), lambda t: t.squeeze(2), lambda t: t.squeeze(0), lambda t: t.squeeze((1, 2)),
        lambda t: t.unsqueeze(-1), lambda t: t.unsqueeze(0), lambda t: t.expand(5, -1, 3, 2, 4), lambda t: t.flip(0, 3),
        lambda t: t.split(2, 1)[1], lambda t: t.split([1, 3], -1)[1], lambda t: t.chunk(3, 3)[-1], lambda t: t.mT,
        lambda t: t[0, 0, 0].expand(2, 4), lambda t: t.reshape(6, 4).t(), lambda t: t[:, :, 0].tril(1)
        if hasattr(t, "tril") else F.tril(t[:, :, 0], 1),            lambda t: t[0:0],
    ):  # fmt: skip
        same(function(x), function(tx))
    same(F.cat([x, x[:, :1]], 1), torch.cat([tx, tx[:, :1]], 1))
    same(F.stack([x, x + 1], -2), torch.stack([tx, tx + 1], -2))
    same(F.pad(x, (1, 2, 0, 0, -1, 1), value=5.0), torch.nn.functional.pad(tx, (1, 2, 0, 0, -1, 1), value=5.0))
    same(F.cat([x.float(), x]), torch.cat([tx.float(), tx]))
    same(F.cat([x.long(), x.float()]), torch.cat([tx.long(), tx.float()]))
    assert [len(p) for p in Tensor(np.zeros(7)).chunk(3)] == [len(p) for p in torch.zeros(7).chunk(3)]
    assert [len(p) for p in Tensor(np.zeros(0)).split(3)] == [len(p) for p in torch.zeros(0).split(3)]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: x.reshape(4), r"shape \(2, 3\) has 6 elements, the new shape \(4,\) has 4"),
        (lambda x: x.reshape(-1, 4), r"do not fill \(-1, 4\)"),
        (lambda x: x.reshape(-1, -1), "at most one size may be -1"),
        (lambda x: x.permute(0, 0), "each of the 2 dimensions once"),
        (lambda x: x.expand(2, 4), r"shape \(2, 3\) does not expand to \(2, 4\)"),
        (lambda x: x.expand(-1, 2, 3), "new dimension cannot be -1"),
        (lambda x: F.cat([x, x.T]), r"tensor 0 has shape \(2, 3\), tensor 1 has \(3, 2\)"),
        (lambda x: F.cat([]), "at least one tensor"),
        (lambda x: F.stack([x, x.T]), "must have one shape"),
        (lambda x: x.split([1, 3]), "must add up to the size 2"),
        (lambda x: x.split(0), "at least 1"),
        (lambda x: x.chunk(0), "at least 1"),
        (lambda x: F.pad(x, (1,)), "pairs"),
        (lambda x: F.pad(x, (-2, -2)), "cuts more off"),
        (lambda x: F.tril(x[0]), "at least 2 dimensions"),
    ],
)
def test_shapes_that_are_refused(call: Any, message: str) -> None:
    with pytest.raises((ShapeError, ArgumentError), match=message):
        call(Tensor(np.zeros((2, 3))))


# ---- losses and layers in functional form, against torch


def test_functional_against_torch(torch: Any) -> None:
    rng = np.random.default_rng(3)
    x, w, b = rng.standard_normal((4, 6)), rng.standard_normal((5, 6)), rng.standard_normal(5)
    images, filters = rng.standard_normal((2, 4, 6, 5)), rng.standard_normal((6, 2, 3, 2))
    labels, probabilities = np.array([0, 5, -100, 2]), rng.random((4, 6))
    weights = rng.random(6)
    tf = torch.nn.functional

    def both(function: Any, *arrays: np.ndarray) -> None:
        ours = [Tensor(a, requires_grad=a.dtype.kind == "f") for a in arrays]
        theirs = [torch.tensor(a, requires_grad=a.dtype.kind == "f") for a in arrays]
        y, ty = function(F, *ours), function(tf, *theirs)
        same(y, ty, 1e-9)
        (y * y).sum().backward()
        (ty * ty).sum().backward()
        for a, ta in zip(ours, theirs, strict=True):
            if ta.grad is not None:
                same(a.grad, ta.grad, 1e-9)

    both(lambda f, x, w, b: f.linear(x, w, b), x, w, b)
    both(lambda f, x, w: f.conv2d(x, w, None, (2, 1), 1, 1, 2), images, filters)
    both(lambda f, x: f.max_pool2d(x, 3, 2, 1, ceil_mode=True), images)
    both(lambda f, x: f.avg_pool2d(x, 3, 2, 1, True, False), images)
    both(lambda f, x, g, s: f.batch_norm(x, None, None, g, s, True), images, weights[:4], b[:4])
    both(lambda f, x, g, s: f.layer_norm(x, (6,), g, s), x, weights, x[0])
    both(lambda f, x, g, s: f.group_norm(x, 2, g, s), images, weights[:4], b[:4])
    both(lambda f, x, i: f.embedding(i, x, padding_idx=2), w, np.array([[1, 2], [4, 1]]))
    for reduction in ("mean", "sum", "none"):
        both(lambda f, x, t, r=reduction: f.cross_entropy(x, t, label_smoothing=0.1, reduction=r), x, labels)
        both(lambda f, x, t, r=reduction: f.cross_entropy(x, t, reduction=r), x, probabilities)
        both(lambda f, x, t, r=reduction: f.nll_loss(x, t, reduction=r), x, labels)
        both(lambda f, x, t, r=reduction: f.mse_loss(x, t, reduction=r), x, probabilities)
        both(lambda f, x, t, r=reduction: f.l1_loss(x, t, reduction=r), x, probabilities)
        both(lambda f, x, t, r=reduction: f.binary_cross_entropy_with_logits(x, t, reduction=r), x, probabilities)
    both(lambda f, x, t: f.cross_entropy(x, t), images[:, :, :2, :3], np.arange(12).reshape(2, 2, 3) % 4)
    both(lambda f, x, t: f.cross_entropy(x, t), images, images)
    both(lambda f, x: f.cosine_similarity(x, x[:1], dim=1), x)
    for name in ("relu", "gelu", "silu", "softplus", "elu", "leaky_relu", "sigmoid", "tanh"):
        both(lambda f, x, n=name: getattr(f, n)(x), x)
    both(lambda f, x: f.softmax(x, -1), x)
    both(lambda f, x: f.log_softmax(x, 0), x)
    same(F.one_hot(Tensor(np.array([[1, 0]])), 3), tf.one_hot(torch.tensor([[1, 0]]), 3))
    same(F.one_hot(Tensor(np.array([1, 4]))), tf.one_hot(torch.tensor([1, 4])))


def test_batch_norm_moves_its_running_statistics_as_torch_does(torch: Any) -> None:
    x = np.random.default_rng(4).standard_normal((5, 3, 2))
    mean, var = np.array([0.0, 1.0, -1.0]), np.array([1.0, 2.0, 3.0])
    ours, theirs = [Tensor(mean.copy()), Tensor(var.copy())], [torch.tensor(mean), torch.tensor(var)]
    F.batch_norm(Tensor(x), *ours, training=True, momentum=0.3)
    torch.nn.functional.batch_norm(torch.tensor(x), *theirs, training=True, momentum=0.3)
    for a, b in zip(ours, theirs, strict=True):
        same(a, b)
    same(F.batch_norm(Tensor(x), *ours), torch.nn.functional.batch_norm(torch.tensor(x), *theirs))


# ---- manners


def test_what_tensor_takes() -> None:
    assert rg.tensor([1.5, 2]).dtype == np.float32 and rg.tensor([1, 2]).dtype == np.int64
    assert rg.tensor(True).dtype == np.bool_ and rg.tensor(2.0).shape == ()
    assert rg.tensor(np.float64(2.0)).dtype == np.float64 and rg.tensor(np.ones(2)).dtype == np.float64
    assert rg.tensor([rg.tensor(1.0), 2.0]).tolist() == [1, 2]
    array = np.ones(2)
    assert rg.tensor(array).array is not array and Tensor(array).array is array
    assert rg.tensor([1], dtype=np.float64, requires_grad=True).requires_grad
    with pytest.raises(ShapeError, match="do not form an array"):
        rg.tensor([[1], [1, 2]])
    with pytest.raises(DtypeError, match="got dtype"):
        rg.tensor(["a"])
    with pytest.raises(DtypeError, match="booleans, integers or floats"):
        rg.tensor(np.ones(2, complex))
    with pytest.raises(DtypeError, match="is not a dtype"):
        rg.tensor([1], dtype="number")


def test_one_element() -> None:
    x = rg.tensor([[2.5]])
    assert (x.item(), float(x), int(x), bool(x)) == (2.5, 2.5, 2, True)
    assert f"{x:.3f}" == "2.500" and f"{x}" == "tensor([[2.5]])"
    assert [10, 20, 30][rg.tensor(1)] == 20
    with pytest.raises(DtypeError, match="only integer tensors"):
        _ = [1][rg.tensor(0.0)]
    pair = rg.tensor([1.0, 2.0])
    for call in (bool, float, pair.__class__.item, lambda t: f"{t:.2f}"):
        with pytest.raises((ShapeError, ArgumentError), match=r"shape \(2,\)"):
            call(pair)


def test_length_and_iteration() -> None:
    x = rg.tensor([[1.0, 2.0], [3.0, 4.0]])
    assert len(x) == 2 and [row.tolist() for row in x] == [[1, 2], [3, 4]]
    a, b = x
    assert b.tolist() == [3, 4] and a.shape == (2,)
    assert 3.0 in x.flatten().tolist() and x.size() == (2, 2) and x.size(-1) == 2 and x.dim() == 2 and x.numel() == 4
    for call in (len, iter):
        with pytest.raises(ShapeError, match="no dimensions"):
            call(rg.tensor(1.0))


def test_tensors_are_hashed_by_identity() -> None:
    a, b = rg.tensor([1.0]), rg.tensor([1.0])
    assert len({a, b, a}) == 2 and {a: 1}[a] == 1
    assert (a == b).item() is True and (a != b).item() is False
    for other in ("text", None, object()):
        assert (a == other) is False and (a != other) is True


def test_repr() -> None:
    x = Tensor(np.array([1.0, 2.0], np.float32), requires_grad=True)
    assert repr(x) == "tensor([1., 2.], requires_grad=True)"
    assert repr(x * 2) == "tensor([2., 4.], grad_fn=<Mul>)"
    assert repr(Tensor(np.ones((1, 2)))) == "tensor([[1., 1.]], dtype=float64)"
    assert repr(rg.tensor([True])) == "tensor([ True])" and repr(rg.tensor(3)) == "tensor(3)"
    assert "..." in repr(rg.zeros(2000))
    assert x.grad_fn is None and x.is_leaf and not (x * 2).is_leaf


def test_array_protocol() -> None:
    x = Tensor(np.arange(3.0))
    assert np.shares_memory(np.asarray(x), x.array)
    assert np.asarray(x, dtype=np.float32).dtype == np.float32
    assert not np.shares_memory(np.array(x), x.array)
    assert np.stack([x, x]).shape == (2, 3)
    with pytest.raises(ValueError):
        np.array(x, dtype=np.float32, copy=False)
    with pytest.raises(GradientError, match=r"use tensor.detach\(\) first"):
        np.asarray(x.requires_grad_())
    with pytest.raises(GradientError, match="detach"):
        x.numpy()


def test_dlpack_with_numpy_and_torch(torch: Any) -> None:
    x = Tensor(np.arange(6.0).reshape(2, 3))
    there = torch.from_dlpack(x)
    there[0, 0] = 42
    assert x[0, 0].item() == 42 and there.dtype == torch.float64
    assert np.shares_memory(np.from_dlpack(x), x.array)
    source = torch.arange(4, dtype=torch.float32)
    back = ag.from_dlpack(source)
    back[1] = 7.0
    assert source[1].item() == 7 and back.dtype == np.float32 and back.device == "cpu"
    assert ag.from_dlpack(np.ones(2)).shape == (2,)
    with pytest.raises(GradientError, match="__dlpack__"):
        torch.from_dlpack(Tensor(np.ones(1), requires_grad=True))


def test_from_numpy_shares_and_checks() -> None:
    array = np.zeros(2)
    ag.from_numpy(array)[0] = 3
    assert array[0] == 3
    with pytest.raises(DtypeError, match="expected a NumPy array"):
        ag.from_numpy([1.0])
    with pytest.raises(DtypeError):
        ag.from_numpy(np.array(["a"]))


def test_pickle() -> None:
    x = Tensor(np.arange(3.0), requires_grad=True)
    y = pickle.loads(pickle.dumps(x))
    assert y.requires_grad and y.dtype == np.float64 and y.tolist() == [0, 1, 2]
    with pytest.raises(GradientError, match="only leaf tensors can be pickled"):
        pickle.dumps(x * 2)


def test_casts_carry_gradients_in_their_own_dtype() -> None:
    x = Tensor(np.array([1.5, -2.5]), requires_grad=True)
    y = x.to(np.float32)
    assert y.dtype == np.float32 and x.to(np.float64) is x and x.to("float64") is x
    (y * y).sum().backward()
    assert x.grad.dtype == np.float64
    np.testing.assert_array_equal(x.grad.numpy(), [3, -5])
    assert x.long().tolist() == [1, -2] and x.int().dtype == np.int32 and x.bool().dtype == np.bool_
    assert not x.long().requires_grad
    assert x.to(rg.tensor([1])).dtype == np.int64 and x.float().double().dtype == np.float64


def test_in_place_methods(torch: Any) -> None:
    values = np.array([1.0, -2.0, 3.0])
    for method, argument in (
        ("add_", 2.0), ("sub_", 1.0), ("mul_", 3.0), ("div_", 2.0), ("pow_", 2.0), ("fill_", 4.0), ("clamp_", 0.0),
    ):  # fmt: skip
        x, tx = Tensor(values.copy()), torch.tensor(values.copy())
        array = x.array
        assert getattr(x, method)(argument) is x and x.array is array
        same(x, getattr(tx, method)(argument))
    x = Tensor(values.copy())
    assert x.add_(1.0, alpha=2).tolist() == [3, 0, 5] and x.zero_().tolist() == [0, 0, 0]
    assert x.copy_(np.float32(2)).tolist() == [2, 2, 2] and x.relu_().tolist() == [2, 2, 2]


def test_creation(torch: Any) -> None:
    same(rg.zeros(2, 3), torch.zeros(2, 3))
    same(rg.ones((2, 0)), torch.ones((2, 0)))
    same(ag.full((2,), 3), torch.full((2,), 3))
    same(ag.full((2,), 3.0), torch.full((2,), 3.0))
    same(rg.arange(5), torch.arange(5))
    same(rg.arange(1, 2, 0.25), torch.arange(1, 2, 0.25))
    same(rg.arange(5, 0, -2), torch.arange(5, 0, -2))
    same(ag.linspace(0, 1, 5), torch.linspace(0, 1, 5))
    same(ag.eye(2, 3), torch.eye(2, 3))
    same(ag.zeros_like(rg.arange(3)), torch.zeros_like(torch.arange(3)))
    same(ag.ones_like(rg.arange(3), dtype=np.float64), torch.ones_like(torch.arange(3), dtype=torch.float64))
    for call, message in (
        (lambda: rg.zeros(-1), "at least 0"),
        (lambda: rg.zeros(1.5), "must be integers"),
        (lambda: rg.arange(0, 1, 0), "step must not be 0"),
        (lambda: ag.randint(3, 3, (1,)), "high must be above low"),
    ):
        with pytest.raises(ArgumentError, match=message):
            call()
    with pytest.raises(DtypeError, match="randn: dtype must be floating"):
        rg.randn(2, dtype=np.int64)


def test_results_of_no_dimensions_stay_arrays() -> None:
    x = Tensor(np.array(2.0))
    for y in (x + 1, x * x, x.exp(), x.sum(), x**2, -x, x.clone(), x[None][0], x / 3, x.clamp(0, 1), x.maximum(x)):
        assert type(y.array) is np.ndarray and y.shape == ()
