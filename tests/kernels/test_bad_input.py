"""What is wrong with a call is refused before a kernel is launched, and what is only unusual is handled.

The judge is the reference: a call that has been changed in one place must end on device ``cuda`` as it
ends on the CPU, in the same refusal, or in the same values.  The table has every kernel function.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from _layouts import LAYOUTS

from rawgrad import kernels
from rawgrad.kernels import _launch
from rawgrad.kernels._dispatch import backend as use_backend
from rawgrad.kernels._errors import (
    ArgumentError,
    DeviceError,
    DtypeError,
    IndexRangeError,
    RawgradError,
    ShapeError,
)
from rawgrad.kernels.activation import activation_backward, activation_forward
from rawgrad.kernels.adagrad import adagrad_step
from rawgrad.kernels.adam import adam_step
from rawgrad.kernels.avg_pool2d import avg_pool2d_backward, avg_pool2d_forward
from rawgrad.kernels.avg_pool2d import geometry as avg_geometry
from rawgrad.kernels.batch_norm import batch_norm_backward, batch_norm_forward, batch_norm_inference
from rawgrad.kernels.conv2d import (
    conv2d_backward_bias,
    conv2d_backward_input,
    conv2d_backward_parameters,
    conv2d_backward_weight,
    conv2d_forward,
    conv2d_relu_pool_forward,
    geometry,
)
from rawgrad.kernels.dropout import dropout_forward, philox
from rawgrad.kernels.embedding import embedding_backward, embedding_forward
from rawgrad.kernels.gemm import Layer, gemm, linear_backward, linear_layers_backward
from rawgrad.kernels.group_norm import group_norm_backward, group_norm_forward
from rawgrad.kernels.layer_norm import layer_norm_backward, layer_norm_forward
from rawgrad.kernels.max_pool2d import geometry as max_geometry
from rawgrad.kernels.max_pool2d import max_pool2d_backward, max_pool2d_forward, max_pool2d_gather
from rawgrad.kernels.rmsprop import rmsprop_step
from rawgrad.kernels.sgd import sgd_step
from rawgrad.kernels.softmax import log_softmax_backward, log_softmax_forward, softmax_backward, softmax_forward
from rawgrad.kernels.softmax_cross_entropy import softmax_cross_entropy_forward

pytestmark = pytest.mark.backends("numba", "emulated", "cuda")


@dataclass(frozen=True)
class Call:
    """A call of a kernel function: arrays (or lists of them) and options, by name."""

    function: Callable[..., Any]
    arrays: dict[str, Any]
    options: dict[str, Any]

    def places(self) -> list[tuple[str, int | None]]:
        """Where there is an array: the argument, and the position if it is a list."""
        found: list[tuple[str, int | None]] = []
        for name, value in self.arrays.items():
            found += [(name, i) for i in range(len(value))] if isinstance(value, list) else [(name, None)]
        return found

    def at(self, place: tuple[str, int | None]) -> Any:
        name, position = place
        return self.arrays[name] if position is None else self.arrays[name][position]

    def with_array(self, place: tuple[str, int | None], array: Any) -> Call:
        name, position = place
        value = array
        if position is not None:
            value = [*self.arrays[name]]
            value[position] = array
        return replace(self, arrays={**self.arrays, name: value})

    def on(self, put: Callable[[np.ndarray], Any]) -> Call:
        """The call with a new copy of each array, by ``put``."""
        arrays = {n: [put(a) for a in v] if isinstance(v, list) else put(v) for n, v in self.arrays.items()}
        return replace(self, arrays=arrays)

    def run(self) -> list[Any]:
        """What it returns, and for a step the lists that it changed."""
        result = self.function(**self.arrays, **self.options)
        if result is None:
            return [array for value in self.arrays.values() if isinstance(value, list) for array in value]
        return list(result) if isinstance(result, tuple) else [result]


def calls(n: int = 2) -> dict[str, Call]:
    """One call of each kernel function, with ``n`` samples."""
    rng = np.random.default_rng(0)

    def f(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape).astype(np.float32)

    def positive(*shape: int) -> np.ndarray:
        return rng.uniform(0.5, 1.5, shape).astype(np.float32)

    def integers(high: int, *shape: int, dtype: Any = np.int64) -> np.ndarray:
        return rng.integers(0, high, shape).astype(dtype)

    def call(function: Callable[..., Any], arrays: dict[str, Any], **options: Any) -> None:
        found[function.__name__] = Call(function, arrays, options)

    found: dict[str, Call] = {}
    lr, step, offset = np.array([0.1]), np.array([3]), np.array([5], np.uint64)
    pooled, convolved = (n, 2, 4, 6), geometry((n, 2, 5, 4), (3, 2, 2, 3))
    average, largest = avg_geometry(pooled, 2), max_geometry(pooled, 2)
    call(activation_forward, {"x": f(n, 5)}, kind="gelu")
    call(activation_backward, {"grad": f(n, 5), "saved": f(n, 5)}, kind="gelu")
    call(avg_pool2d_forward, {"x": f(*pooled)}, kernel_size=2)
    call(avg_pool2d_backward, {"grad": f(n, 2, 2, 3)}, g=average)
    call(batch_norm_forward, {"x": f(n, 3, 4), "weight": f(3), "bias": f(3)}, eps=1e-5)
    call(
        batch_norm_inference,
        {"x": f(n, 3, 4), "mean": f(3), "var": positive(3), "weight": f(3), "bias": f(3)},
        eps=1e-5,
    )
    call(
        batch_norm_backward,
        {"grad": f(n, 3, 4), "x": f(n, 3, 4), "weight": f(3), "mean": f(3), "rstd": positive(3)},
    )
    call(conv2d_forward, {"x": f(n, 2, 5, 4), "weight": f(3, 2, 2, 3), "bias": f(3)}, activation="relu")
    call(conv2d_backward_input, {"grad": f(n, 3, 4, 2), "weight": f(3, 2, 2, 3), "y": f(n, 3, 4, 2)}, g=convolved)
    call(conv2d_backward_weight, {"x": f(n, 2, 5, 4), "grad": f(n, 3, 4, 2), "y": f(n, 3, 4, 2)}, g=convolved)
    call(conv2d_backward_parameters, {"x": f(n, 2, 5, 4), "grad": f(n, 3, 4, 2), "y": f(n, 3, 4, 2)}, g=convolved)
    call(conv2d_backward_bias, {"grad": f(n, 3, 4, 2), "y": f(n, 3, 4, 2)})
    call(
        conv2d_relu_pool_forward,
        {"x": f(n, 2, 5, 4), "weight": f(3, 2, 2, 3), "bias": f(3)},
        g=convolved,
        p=max_geometry(convolved.y_shape, 2),
    )
    call(dropout_forward, {"x": f(n, 5), "offset": offset}, p=0.3, seed=7)
    call(philox, {"offset": offset}, seed=7, n=4 * n + 1)
    call(embedding_forward, {"weight": f(4, 3), "indices": integers(4, n, 3)})
    call(embedding_backward, {"grad": f(n, 3, 3), "indices": integers(4, n, 3)}, num_embeddings=4)
    call(
        gemm,
        {"a": f(n, 3), "b": f(3, 4), "bias": f(4), "saved": f(n, 4), "offset": offset},
        activation="relu", p=0.3, seed=7, gradient="sigmoid",
    )  # fmt: skip
    call(
        linear_backward,
        {"grad": f(n, 4), "a": f(n, 3), "b": f(4, 3), "y": f(n, 4), "offset": offset},
        activation="tanh", p=0.3, seed=7,
    )  # fmt: skip
    call(
        linear_layers_backward,
        {"grad": f(n, 4), "inputs": [f(n, 3), f(n, 5)], "weights": [f(5, 3), f(4, 5)], "y": f(n, 4),
         "offsets": [offset, offset]},
        layers=(Layer(None, 0.3, 7), Layer("relu", 0.1, 8)),
    )  # fmt: skip
    call(group_norm_forward, {"x": f(n, 4, 3), "weight": f(4), "bias": f(4)}, groups=2, eps=1e-5)
    call(
        group_norm_backward,
        {"grad": f(n, 4, 3), "x": f(n, 4, 3), "weight": f(4), "mean": f(n, 2), "rstd": positive(n, 2)},
        groups=2,
    )
    call(layer_norm_forward, {"x": f(n, 4), "weight": f(4), "bias": f(4)}, normalized_ndim=1, eps=1e-5)
    call(
        layer_norm_backward,
        {"grad": f(n, 4), "x": f(n, 4), "weight": f(4), "mean": f(n), "rstd": positive(n)},
        normalized_ndim=1,
    )
    call(max_pool2d_forward, {"x": f(*pooled)}, kernel_size=2)
    call(max_pool2d_backward, {"grad": f(n, 2, 2, 3), "codes": integers(4, n, 2, 2, 3, dtype=np.uint8)}, g=largest)
    call(max_pool2d_gather, {"x": f(*pooled), "codes": integers(4, n, 2, 2, 3, dtype=np.uint8)}, g=largest)
    call(softmax_forward, {"x": f(n, 5)}, axis=1)
    call(softmax_backward, {"grad": f(n, 5), "y": positive(n, 5)}, axis=1)
    call(log_softmax_forward, {"x": f(n, 5)}, axis=1)
    call(log_softmax_backward, {"grad": f(n, 5), "y": f(n, 5)}, axis=1)
    call(softmax_cross_entropy_forward, {"logits": f(n, 4), "target": integers(4, n), "weight": positive(4)})

    def arrays(make: Callable[..., np.ndarray] = f) -> list[np.ndarray]:
        return [make(n, 3), make(5)]

    steps = {"lr": lr, "step": step}
    call(adagrad_step, {"params": arrays(), "grads": arrays(), "sums": arrays(positive), **steps})
    call(
        adam_step,
        {"params": arrays(), "grads": arrays(), "exp_avgs": arrays(), "exp_avg_sqs": arrays(positive), **steps},
    )
    call(
        rmsprop_step,
        {
            "params": arrays(),
            "grads": arrays(),
            "square_avgs": arrays(positive),
            "momentum_buffers": arrays(),
            "grad_avgs": arrays(),
            "lr": lr,
        },
        momentum=0.5,
    )
    call(sgd_step, {"params": arrays(), "grads": arrays(), "momentum_buffers": arrays(), **steps}, momentum=0.5)
    return found


CALLS = calls()
WITH_OUT = [name for name, call in CALLS.items() if "out" in inspect.signature(call.function).parameters]


@contextmanager
def no_launch(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nothing may be launched inside."""

    def refuse(self: _launch.Instance, *arguments: Any, **options: Any) -> None:
        raise AssertionError(f"{self.expression} was launched")

    with monkeypatch.context() as patch:
        patch.setattr(_launch.Instance, "__call__", refuse)
        yield


def put(array: np.ndarray) -> np.ndarray:
    return array.copy()


def judged(call: Call) -> list[np.ndarray] | RawgradError:
    """How ``call``, on host arrays, ends with the reference: in values or in a refusal."""
    with use_backend("numpy"), np.errstate(all="ignore"):
        try:
            return call.on(put).run()
        except RawgradError as error:
            return error


def assert_ends_alike(backend: Any, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    expected, there = judged(call), call.on(backend.put)
    if isinstance(expected, IndexRangeError):  # only the kernel sees the indices
        with pytest.raises(IndexRangeError) as caught:
            there.run()
            backend.synchronize()
        assert str(caught.value) == str(expected)
        return
    if isinstance(expected, RawgradError):
        with no_launch(monkeypatch), pytest.raises(type(expected)) as caught:
            there.run()
        assert str(caught.value) == str(expected)
        return
    found = there.run()
    assert len(found) == len(expected)
    for array, wanted in zip(found, expected, strict=True):
        given = backend.get(array)
        assert (given.dtype, given.shape) == (wanted.dtype, wanted.shape)
        # loose, since agreement is for the operation's own tests; NaN and infinity must be in their places
        np.testing.assert_allclose(given, wanted, rtol=1e-4, atol=1e-5)


def test_every_kernel_function_is_in_the_table() -> None:
    public: set[str] = set()
    for package in pkgutil.iter_modules(kernels.__path__):
        if not package.name.startswith("_"):
            module = importlib.import_module(f"{kernels.__name__}.{package.name}.reference")
            public |= {n for n, v in vars(module).items() if getattr(v, "__module__", "") == module.__name__}
    assert {name for name in public if not name.startswith("_")} == CALLS.keys()


@pytest.mark.parametrize("name", CALLS)
def test_the_calls_themselves_are_right(backend: Any, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not isinstance(judged(CALLS[name]), RawgradError)
    assert_ends_alike(backend, CALLS[name], monkeypatch)


@pytest.mark.parametrize("name", CALLS)
def test_shapes(backend: Any, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    call = CALLS[name]
    for place in call.places():
        array = call.at(place)
        changed = [array[None], array.reshape(-1), np.stack([array, array])]
        for axis in range(array.ndim):
            changed += [np.concatenate([array, array], axis), array.take(range(array.shape[axis] - 1), axis)]
        for other in changed:
            assert_ends_alike(backend, call.with_array(place, other), monkeypatch)


@pytest.mark.parametrize("name", CALLS)
def test_dtypes(backend: Any, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    call = CALLS[name]
    for place in call.places():
        for dtype in (np.float16, np.float32, np.float64, np.int32, np.int64, np.uint8, np.bool_, np.complex64):
            assert_ends_alike(backend, call.with_array(place, call.at(place).astype(dtype)), monkeypatch)


@pytest.mark.parametrize("name", CALLS)
def test_float64_all_through(backend: Any, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def widened(array: np.ndarray) -> np.ndarray:
        return array.astype(np.float64) if array.dtype == np.float32 else array

    assert_ends_alike(backend, CALLS[name].on(widened), monkeypatch)


@pytest.mark.backends("emulated", "cuda")
@pytest.mark.parametrize("name", [name for name, call in CALLS.items() if len(call.places()) > 1])
def test_an_array_of_the_host_among_those_of_the_device(
    backend: Any, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    call = CALLS[name]
    there = call.on(backend.put)
    for place in call.places():
        for mixed in (there.with_array(place, call.at(place)), call.with_array(place, there.at(place))):
            with no_launch(monkeypatch), pytest.raises(DeviceError) as caught:
                mixed.run()
            said = str(caught.value)
            assert "'cpu'" in said and str(backend.device) in said, said
            assert place[0] in said, said


@pytest.mark.parametrize("name", CALLS)
def test_what_is_no_array(backend: Any, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    there = CALLS[name].on(backend.put)
    for place in there.places():
        for wrong in ([[1.0]], 1.0):
            with no_launch(monkeypatch), pytest.raises(RawgradError):
                there.with_array(place, wrong).run()


@pytest.mark.parametrize("name", CALLS)
def test_strides(backend: Any, name: str) -> None:
    call = CALLS[name]
    expected = [backend.get(array) for array in call.on(backend.put).run()]
    for place in call.places():
        for layout in LAYOUTS:
            there = call.on(backend.put)
            strided = there.with_array(place, backend.put(call.at(place), layout))
            for array, wanted in zip(strided.run(), expected, strict=True):
                assert backend.get(array).tobytes() == wanted.tobytes(), (place, layout)


@pytest.mark.parametrize("name", WITH_OUT)
def test_where_results_go(backend: Any, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    there = CALLS[name].on(backend.put)
    expected = backend.get(there.run()[0])

    def into(out: Any) -> list[Any]:
        return replace(there, options={**there.options, "out": out}).run()

    for layout in LAYOUTS:
        out = backend.put(np.zeros_like(expected), layout)
        assert into(out)[0] is out
        assert backend.get(out).tobytes() == expected.tobytes(), layout
    wrong = {
        DeviceError: [] if backend.device.name == "cpu" else expected.copy(),
        DtypeError: backend.put(expected.astype(np.float64)),
        ShapeError: backend.put(expected[None]),
        ArgumentError: [a for a in there.arrays.values() if a.shape == expected.shape and a.dtype == expected.dtype],
    }
    for error, outs in wrong.items():
        for out in outs if isinstance(outs, list) else [outs]:
            with no_launch(monkeypatch), pytest.raises(error, match="out "):
                into(out)


@pytest.mark.parametrize("name", CALLS)
def test_what_is_not_finite(backend: Any, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    call = CALLS[name]
    for place in call.places():
        array = call.at(place)
        if array.dtype == np.float32:
            for value in (np.nan, np.inf, -np.inf):
                changed = array.copy()
                changed.flat[array.size // 2] = value
                assert_ends_alike(backend, call.with_array(place, changed), monkeypatch)


@pytest.mark.parametrize("name", CALLS)
def test_no_samples(backend: Any, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert_ends_alike(backend, calls(0)[name], monkeypatch)


@pytest.mark.parametrize("name", CALLS)
def test_one_sample(backend: Any, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert_ends_alike(backend, calls(1)[name], monkeypatch)
