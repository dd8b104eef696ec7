"""Nothing above the kernels assumes NumPy: everything runs on a device that refuses to mix with the host.

The device is a fake one whose kernels are the references, then the simulated GPU with the emulated
kernels, and where there is one an NVIDIA GPU.
"""

from __future__ import annotations

import copy
import pickle
from collections.abc import Iterator
from typing import Any

import cases
import numpy as np
import pytest
from _fake_device import registered
from cases import CASES, Case

import rawgrad as rg
from rawgrad import autograd as ag
from rawgrad.autograd import Tensor
from rawgrad.autograd import functional as F
from rawgrad.kernels._errors import DeviceError, IndexRangeError

pytestmark = pytest.mark.backends("fake", "emulated", "cuda")


@pytest.fixture(autouse=True)
def fake_device() -> Iterator[None]:
    with registered():
        yield


class There:
    """Makes tensors on the device of the backend under test."""

    def __init__(self, backend: Any) -> None:
        self.device: str = backend.device.name
        self.array_type: type = backend.device.array_type

    def __call__(self, values: Any, dtype: Any = np.float32, requires_grad: bool = False) -> Tensor:
        return rg.tensor(np.array(values, dtype), device=self.device, requires_grad=requires_grad)


@pytest.fixture
def there(backend: Any) -> There:
    return There(backend)


def host(x: Tensor) -> np.ndarray:
    return x.to("cpu").numpy()


def run(case: Case, device: str) -> list[np.ndarray]:
    """The results, the gradients and the gradients of the gradients of a case."""
    inputs = case.tensors(device)
    results = case.function(*inputs)
    results = list(results) if isinstance(results, tuple) else [results]
    assert all(r.device == device and type(r.array) is type(inputs[0].array) for r in results)
    total = sum((r * r).sum() for r in results)
    first = [g for g in ag.grad(total, inputs, create_graph=True, allow_unused=True) if g is not None]
    if any(g.requires_grad for g in first):
        ag.backward([sum((g * g).sum() for g in first)])
    second = [x.grad for x in inputs if x.grad is not None]
    assert all(g.device == device for g in first + second)
    return [t.detach().to(device="cpu").numpy() for t in (*results, *first, *second)]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_operations_run_on_another_device(there: There, case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = run(case, "cpu")
    monkeypatch.setattr(cases, "constants_on", there.device)
    for found, here in zip(run(case, there.device), expected, strict=True):
        np.testing.assert_allclose(found, here, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    "mix",
    [
        lambda a, b: a + b,
        lambda a, b: b - a,
        lambda a, b: a @ b,
        lambda a, b: a == b,
        lambda a, b: a.maximum(b),
        lambda a, b: F.where(a > 0, a, b),
        lambda a, b: F.where(b > 0, a, a),
        lambda a, b: F.cat([a, b]),
        lambda a, b: F.stack([a, b]),
        lambda a, b: F.linear(a, b),
        lambda a, b: a + b.numpy(),
        lambda a, b: b.numpy() * a,
        lambda a, b: a[b.long()],
        lambda a, b: a.__setitem__(0, b[0]),
        lambda a, b: a.add_(b),
        lambda a, b: F.cross_entropy(a, b.long()[0]),
        lambda a, b: F.embedding(b.long(), a),
        lambda a, b: F.mse_loss(a, b),
        lambda a, b: a.clamp(min=b),
    ],
)
def test_mixing_devices_is_refused(there: There, mix: Any) -> None:
    ones = np.ones((2, 2), np.float32)
    with pytest.raises(DeviceError, match=f"'{there.device}'.*'cpu'|'cpu'.*'{there.device}'"):
        mix(there(ones), Tensor(ones))


def test_scalars_come_from_anywhere(there: There) -> None:
    x = there([1.0, 2.0])
    for y in (x * 2, 2 * x, x * np.float64(2), np.float32(2) * x, x / 0.5, x + x.sum() - 3 + x):
        assert y.device == there.device and type(y.array) is there.array_type and y.dtype == np.float32


def test_moving_there_and_back_carries_gradients(there: There) -> None:
    x = Tensor(np.array([1.0, 2.0]), requires_grad=True)
    y = x.to(there.device)
    assert y.device == there.device and y.to(there.device) is y
    (y * y).sum().to("cpu").backward()
    assert x.grad.device == "cpu"
    np.testing.assert_array_equal(x.grad.numpy(), [2, 4])
    assert y.to("cpu", dtype=np.float32).dtype == np.float32


def test_leaving_a_device_is_explicit(there: There) -> None:
    x = there([1.0, 2.0])
    with pytest.raises(DeviceError, match=rf"this tensor is on '{there.device}'; use tensor.to\('cpu'\) first"):
        x.numpy()
    with pytest.raises(DeviceError):
        np.asarray(x)
    assert x.tolist() == [1, 2] and x.sum().item() == 3 and float(x[0]) == 1.0
    assert repr(x) == f"tensor([1., 2.], device='{there.device}')"
    with pytest.raises(DeviceError, match="'nowhere' is not available here; available: 'cpu'"):
        x.to(device="nowhere")


def test_factories_and_copies(there: There) -> None:
    device = there.device
    for x in (
        rg.zeros(2, 3, device=device),
        ag.ones_like(there([[1.0]])),
        ag.full((2,), 3.5, device=device),
        rg.arange(5, device=device),
        ag.linspace(0, 1, 3, device=device),
        ag.eye(2, device=device),
        rg.randn(3, device=device),
        ag.randperm(4, device=device),
        copy.deepcopy(there([1.0])),
        pickle.loads(pickle.dumps(there([1.0]))),
        there([1.0]).clone(),
    ):
        assert x.device == device and type(x.array) is there.array_type
    rg.manual_seed(5)
    drawn = rg.randn(4, device=device)
    rg.manual_seed(5)
    np.testing.assert_array_equal(host(drawn), rg.randn(4).numpy())


def test_indexing_takes_host_indices_that_are_no_tensors(there: There) -> None:
    x = there([[1.0, 2.0], [3.0, 4.0]], requires_grad=True)
    y = x[[1, 0, 1]] + x[np.array([0, 0, 1])] + x[there([1, 1, 1], np.int64)]
    y.sum().backward()
    np.testing.assert_array_equal(host(x.grad), [[3, 3], [6, 6]])


def test_a_training_step_of_a_small_network(there: There) -> None:
    def losses(device: str) -> list[float]:
        rng = np.random.default_rng(0)

        def tensor(*shape: int, scale: float = 1.0) -> Tensor:
            return rg.tensor(rng.standard_normal(shape).astype(np.float32) * scale, device=device)

        x, target = tensor(4, 1, 8, 8), rg.tensor(np.array([0, 2, 1, 2]), device=device)
        shapes = ((3, 1, 3, 3), (3,), (3,), (3,), (5, 27), (5,))
        parameters = [tensor(*shape, scale=0.3).requires_grad_() for shape in shapes]
        rg.manual_seed(1)
        found = []
        for _ in range(3):
            w, b, gain, shift, v, c = parameters
            h = F.batch_norm(F.conv2d(x, w, b), None, None, gain, shift, training=True)
            h = F.dropout(F.max_pool2d(F.relu(h), 2), 0.2).flatten(1)
            loss = F.cross_entropy(F.linear(h, v, c, activation="tanh"), target)
            for p in parameters:
                p.grad = None
            loss.backward()
            with rg.no_grad():
                for p in parameters:
                    p -= 0.1 * p.grad
            found.append(loss.item())
        return found

    found = losses(there.device)
    assert found[2] < found[0]
    np.testing.assert_allclose(found, losses("cpu"), rtol=1e-6)


# ---- what a GPU does not see to by itself


@pytest.mark.parametrize(
    ("index", "message"),
    [
        (lambda i, mask: i(4), "index 4 is out of bounds for axis 0 with size 4"),
        (lambda i, mask: i(0, -5, 9), "index -5 is out of bounds for axis 0 with size 4"),
        (lambda i, mask: (..., i(3)), "index 3 is out of bounds for axis 2 with size 3"),
        (lambda i, mask: (None, 1, i(0), None, i(1, -4)), "index -4 is out of bounds for axis 2 with size 3"),
        (lambda i, mask: (mask, i(2)), "index 2 is out of bounds for axis 1 with size 2"),
        (lambda i, mask: (i(1), ..., i(7)), "index 7 is out of bounds for axis 2 with size 3"),
    ],
)
def test_indices_out_of_range_are_refused(there: There, index: Any, message: str) -> None:
    x = there(np.zeros((4, 2, 3)))
    part = index(lambda *values: there(values, np.int8), there([True, False, False, False], np.bool_))
    with pytest.raises(IndexRangeError, match=rf"indexing a tensor of shape \(4, 2, 3\): {message}"):
        _ = x[part]
    with pytest.raises(IndexRangeError, match=message):
        x[part] = 1.0
    assert not x.array.any()


@pytest.mark.parametrize(
    "index",
    [
        lambda i: i([1, -1, 1]),
        lambda i: i([[0, 3], [-4, 3]]),
        lambda i: i([]),
        lambda i: (slice(None), i([1, 1, -1])),
        lambda i: (i([3, 3, 0]), slice(1), i([2, 2, 0])),
        lambda i: (..., i([-1, 2, 2])),
    ],
)
@pytest.mark.parametrize("dtype", [np.float64, np.float16])
def test_elements_picked_several_times_add_up(there: There, index: Any, dtype: Any) -> None:
    values = np.arange(24.0).reshape(4, 2, 3).astype(dtype)
    x = there(values, dtype, requires_grad=True)
    picked = x[index(lambda numbers: there(numbers, np.int64))]
    weights = np.arange(1.0, picked.numel() + 1).reshape(picked.shape).astype(dtype)
    (picked * there(weights, dtype)).sum().backward()
    expected = np.zeros_like(values)
    np.add.at(expected, index(lambda numbers: np.array(numbers, np.int64)), weights)
    np.testing.assert_array_equal(host(x.grad), expected)


def test_a_tensor_may_be_written_from_its_own_elements(there: There) -> None:
    """The device's arrays refuse such a write, whose order is not defined there."""
    x, expected = there(np.arange(9.0).reshape(3, 3)), np.arange(9.0).reshape(3, 3)
    x[1:] = x[:-1]
    expected[1:] = expected[:-1].copy()
    x.copy_(x.transpose(0, 1))
    expected[...] = expected.T.copy()
    x[:, 0].add_(x[0])
    expected[:, 0] += expected[0]
    x[...] = x
    np.testing.assert_array_equal(host(x), expected)


def test_one_condition_for_all_elements(there: There) -> None:
    x = there([1.0, 2.0], requires_grad=True)
    y = F.where(True, x, 0.0) + F.where(False, x, 5.0)
    y.sum().backward()
    assert y.tolist() == [6, 7] and x.grad.tolist() == [1, 1]


def test_labels_of_any_integer_dtype(there: There) -> None:
    logits = np.random.default_rng(0).standard_normal((3, 300)).astype(np.float32)
    x = there(logits, requires_grad=True)
    loss = F.nll_loss(x.log_softmax(1), there([0, 255, 7], np.uint8), ignore_index=-100)
    expected = F.cross_entropy(Tensor(logits), Tensor(np.array([0, 255, 7])))
    assert loss.item() == pytest.approx(expected.item())
    for gradient in ag.grad(F.cross_entropy(x, there([0, 255, 7], np.uint8)), x, create_graph=True):
        (again,) = ag.grad((gradient * gradient).sum(), x)
        assert np.isfinite(host(again)).all()
