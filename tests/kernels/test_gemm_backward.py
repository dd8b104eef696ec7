"""The gradients of a linear layer, and of several in a row."""

from __future__ import annotations

import numpy as np
import pytest
from _gemm import DTYPES, KEY, OFFSET, ended, product, random, skip_where_numba_is, slopes, zeros
from _layouts import LAYOUTS, untouched
from _tolerance import assert_accurate
from hypothesis import given
from hypothesis import strategies as st

from rawgrad.kernels._dtypes import HALVES
from rawgrad.kernels._emulator.runtime import record_launches
from rawgrad.kernels._errors import ArgumentError, DtypeError, ShapeError
from rawgrad.kernels.gemm import BY_OUTPUT, Layer, gemm, linear_backward, linear_layers_backward

pytestmark = pytest.mark.operation("gemm")


@given(
    st.tuples(*[st.sampled_from([0, 1, 2, 3, 17, 70])] * 3),
    st.sampled_from(DTYPES),
    st.tuples(*[st.sampled_from(list(LAYOUTS))] * 4),
    st.sampled_from([None, *BY_OUTPUT]),
    st.tuples(*[st.booleans()] * 3),
    st.integers(0, 2**32 - 1),
)
def test_linear_backward_agrees_with_its_definition(backend, sizes, dtype, layouts, activation, wanted, seed):
    M, N, K = sizes
    rng = np.random.default_rng(seed)
    host = [rng.standard_normal(shape).astype(dtype) for shape in ((M, N), (M, K), (N, K), (M, N))]
    grad, a, b, y = (backend.put(h, layout) for h, layout in zip(host, layouts, strict=True))
    with untouched(grad, a, b, y):
        results = linear_backward(grad, a, b, y, activation=activation, wanted=wanted)
    definitions = [
        lambda grad, a, b, y: product(slopes(grad, y, activation), b),
        lambda grad, a, b, y: product(slopes(grad, y, activation), a, None, True),
        lambda grad, a, b, y: slopes(grad, y, activation).sum(axis=0, dtype=grad.dtype),
    ]
    for result, definition, asked in zip(results, definitions, wanted, strict=True):
        assert (result is not None) == asked
        if asked:
            assert result.dtype == dtype
            scale = definition(*map(abs, host[:3]), 0.5 * np.ones_like(host[3])) + 1
            assert_accurate(backend.get(result), definition, *host, scale=scale.astype(np.float64))


@pytest.mark.parametrize("dtype", [*DTYPES, *HALVES])
@pytest.mark.parametrize("wanted", [(True, True, True), (True, True, False), (False, False, True)])
@pytest.mark.parametrize("activation", [None, "relu", "tanh"])
def test_linear_backward_goes_through_dropout(backend, dtype, wanted, activation):
    """As without dropout, of what dropout makes of the gradient; halves are rounded once, after the slope."""
    if dtype in HALVES:
        skip_where_numba_is(backend)
    grad, y, a, b = random((9, 7)), random((9, 7), seed=1), random((9, 3), seed=2), random((7, 3), seed=3)
    grad, y, a, b = (x.astype(dtype) for x in (grad, y, a, b))
    device = [backend.put(x) for x in (grad, a, b, y, OFFSET)]
    with untouched(*device):
        found = linear_backward(*device, activation=activation, **KEY, wanted=wanted)
    h = backend.put(ended(backend, grad, True, activation, y))
    expected = linear_backward(h, *device[1:3], wanted=wanted)
    for gradient, other, asked in zip(found, expected, wanted, strict=True):
        assert (gradient is not None) == asked
        if asked:
            assert gradient.dtype == dtype
            assert backend.get(gradient).tobytes() == backend.get(other).tobytes()


#: A layer that nothing follows; those after it by name.
# ---- of several layers

STACKS = {
    "relu and dropout": [Layer("relu", 0.3, 7), Layer("relu", 0.5, 2**63 + 1), Layer()],
    "sigmoid": [Layer("sigmoid"), Layer("tanh"), Layer("relu")],
    "dropout at the end": [Layer(None, 0.25, 3), Layer(), Layer("relu", 0.1, 4)],
    "one": [Layer("tanh")],
}


def stacked(backend, layers, dtype, seed=0):
    """A batch of 6 through linear layers of 5, 9, 4 and 7 features: the arguments of linear_layers_backward."""
    rng = np.random.default_rng(seed)
    sizes = (5, 9, 4, 7)[: len(layers) + 1]
    x = backend.put(rng.standard_normal((6, sizes[0])).astype(dtype))
    inputs, weights, offsets = [], [], []
    for i, layer in enumerate(layers):
        inputs.append(x)
        weights.append(backend.put(rng.standard_normal((sizes[i + 1], sizes[i])).astype(dtype)))
        offsets.append(backend.put(np.array([i], np.uint64)))
        bias = backend.put(rng.standard_normal(sizes[i + 1]).astype(dtype))
        x = gemm(x, weights[i], bias, transpose_b=True, **layer._asdict(), offset=offsets[i])
    return backend.put(rng.standard_normal((6, sizes[-1])).astype(dtype)), inputs, weights, x, offsets


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", STACKS)
def test_gradients_of_layers_are_those_of_one_after_the_other(backend, dtype, name):
    layers = STACKS[name]
    grad, inputs, weights, y, offsets = stacked(backend, layers, dtype)
    with untouched(grad, *inputs, *weights, y, *offsets):
        found = linear_layers_backward(grad, inputs, weights, y, offsets, layers=layers)
    assert len(found) == 1 + 2 * len(layers)
    for i in range(len(layers) - 1, -1, -1):
        result = y if i + 1 == len(layers) else inputs[i + 1]
        grad, dw, db = linear_backward(grad, inputs[i], weights[i], result, offsets[i], **layers[i]._asdict())
        for gradient, other in ((found[1 + i], dw), (found[1 + len(layers) + i], db)):
            assert backend.get(gradient).tobytes() == backend.get(other).tobytes()
    assert backend.get(found[0]).tobytes() == backend.get(grad).tobytes()


# Each alone, so that layers below the last that is wanted are not gone through; nothing; a gradient in the middle.
@pytest.mark.parametrize(
    "wanted", [*np.eye(7, dtype=bool).tolist(), [False] * 7, [False, False, True, True] + [False] * 3]
)
def test_layers_give_what_is_wanted(backend, wanted):
    layers = STACKS["relu and dropout"]
    arguments = stacked(backend, layers, np.float32)
    every = linear_layers_backward(*arguments, layers=layers)
    found = linear_layers_backward(*arguments, layers=layers, wanted=wanted)
    for gradient, other, asked in zip(found, every, wanted, strict=True):
        assert (gradient is not None) == asked
        assert not asked or backend.get(gradient).tobytes() == backend.get(other).tobytes()


@pytest.mark.backends("emulated")
def test_what_lies_between_two_layers_is_not_written(backend):
    """With biases, each layer takes two products and a sum of columns; the last layer's gradient is its own."""
    layers = [Layer("relu", 0.3, 7), Layer("relu", 0.5, 8), Layer()]
    arguments = stacked(backend, layers, np.float32)
    with record_launches() as launches:
        linear_layers_backward(*arguments, layers=layers)
    kernels = [launch.kernel.partition("<")[0] for launch in launches]
    assert sorted(set(kernels)) == ["gemm_column_sums", "gemm_v6_warps_share_k"]
    assert kernels.count("gemm_column_sums") == 3 and len(kernels) == 9
    sums = [launch for launch in launches if launch.kernel.startswith("gemm_column_sums")]
    assert all(launch.traffic.global_written == 4 * n for launch, n in zip(sums, (7, 4, 9), strict=True))


@pytest.mark.backends("numpy")
@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"layers": [Layer("tanh", 0.5), Layer()]}, ArgumentError, "the gradient of tanh needs its result before drop"),
        ({"layers": [Layer("relu", 1.5), Layer()]}, ArgumentError, r"p must be a probability in \[0, 1\]; got 1.5"),
        ({"layers": [Layer("gelu"), Layer()]}, ArgumentError, "activation must be one of relu, sigmoid, tanh or None"),
        (
            {"layers": [Layer("relu", 0.5), Layer()], "offsets": [None, None]},
            ArgumentError,
            "p=0.5 needs dropout's off",
        ),
        (
            {"layers": [Layer(), Layer("relu")], "y": None},
            ArgumentError,
            "activation='relu' of the last layer needs its",
        ),
        ({"layers": [Layer()]}, ArgumentError, "there must be as many inputs, weights, offsets and layers"),
        ({"layers": []}, ArgumentError, "there must be as many inputs, weights, offsets and layers"),
        ({"wanted": [True] * 4}, ArgumentError, "1 \\+ 2 times as many booleans in wanted; got 2, 2, 2, 2 and 4"),
        ({"grad": zeros(6, 5)}, ShapeError, r"grad must have shape \(M, N\) = \(6, 4\); got \(6, 5\)"),
        ({"y": zeros(6, 5), "layers": [Layer(), Layer("relu")]}, ShapeError, r"y must have shape \(M, N\) = \(6, 4"),
        ({"inputs": [zeros(6, 5), zeros(6, 8)]}, ShapeError, r"inputs\[1\] must have shape \(M, K\) = \(6, 9\); got"),
        ({"inputs": [zeros(5), zeros(6, 9)]}, ShapeError, r"inputs\[0\] must have 2 dimensions"),
        ({"weights": [zeros(9, 5), zeros(4, 8)]}, ShapeError, r"weights\[1\] must have shape \(N, K\) = \(4, 9\)"),
        ({"weights": [zeros(9, 5), zeros(4)]}, ShapeError, r"weights\[1\] must have 2 dimensions"),
        ({"weights": [zeros(9, 5), zeros(4, 9, dtype=np.float64)]}, DtypeError, r"weights\[1\] is float64"),
    ],
)
def test_refusals_of_layers(change, error, message):
    good = {
        "grad": zeros(6, 4), "inputs": [zeros(6, 5), zeros(6, 9)], "weights": [zeros(9, 5), zeros(4, 9)],
        "y": zeros(6, 4), "offsets": [OFFSET, OFFSET], "layers": [Layer("relu", 0.5), Layer()],
    }  # fmt: skip
    for _ in range(2):  # a call that was refused is refused again
        linear_layers_backward(**good)
        with pytest.raises(error, match="linear_layers_backward: .*" + message):
            linear_layers_backward(**{**good, **change})


def test_linear_backward_by_hand(backend):
    grad = backend.put(np.array([[1.0, 2.0], [3.0, 4.0]]))
    a, b = backend.put(np.array([[1.0, 0.0, 2.0], [0.0, 1.0, 1.0]])), backend.put(np.ones((2, 3)))
    y = backend.put(np.array([[0.0, 5.0], [1.0, 1.0]]))
    da, db, dbias = map(backend.get, linear_backward(grad, a, b, y, activation="relu"))
    np.testing.assert_array_equal(da, [[2.0, 2.0, 2.0], [7.0, 7.0, 7.0]])
    np.testing.assert_array_equal(db, [[0.0, 3.0, 3.0], [2.0, 4.0, 8.0]])
    np.testing.assert_array_equal(dbias, [3.0, 6.0])


def test_linear_backward_lets_nan_and_infinity_through(backend):
    grad, y = np.ones((3, 70), np.float32), np.ones((3, 70), np.float32)
    y[0, 0], y[1, 3], grad[2, 69] = np.nan, -np.inf, np.inf
    a, b = np.ones((3, 2), np.float32), np.ones((70, 2), np.float32)
    results = linear_backward(*map(backend.put, (grad, a, b, y)), activation="relu")
    expected = np.full(70, 3.0), np.full(3, np.inf)
    expected[0][3], expected[0][69], expected[1][:2] = 2.0, np.inf, [70, 69]
    np.testing.assert_array_equal(backend.get(results[2]), expected[0])
    np.testing.assert_array_equal(backend.get(results[0])[:, 0], expected[1])


@pytest.mark.backends("numpy")
@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"activation": "gelu"}, ArgumentError, "linear_backward: activation must be one of relu, sigmoid, tanh or"),
        ({"y": None, "activation": "tanh"}, ArgumentError, "linear_backward: activation='tanh' needs the result y"),
        (
            {"wanted": (True, True)},
            ArgumentError,
            r"linear_backward: wanted must be three booleans; got",
        ),
        ({"b": np.ones((4, 2))}, ShapeError, r"linear_backward: b must have shape \(N, K\) = \(4, 3\); got \(4, 2\)"),
        (
            {"grad": np.ones((2, 5))},
            ShapeError,
            r"linear_backward: grad must have shape \(M, N\) = \(2, 4\); got \(2, 5",
        ),
        ({"y": np.ones((2, 5)), "activation": "relu"}, ShapeError, r"linear_backward: y must have shape \(M, N\) = "),
        ({"a": np.ones(3)}, ShapeError, "linear_backward: a must have 2 dimensions"),
        ({"a": np.ones((2, 3), np.float32)}, DtypeError, "linear_backward: all arguments must have one dtype"),
    ],
)
def test_linear_backward_refusals(change, error, message):
    good = {"grad": np.ones((2, 4)), "a": np.ones((2, 3)), "b": np.ones((4, 3)), "y": np.ones((2, 4))}
    for _ in range(2):  # a call that was refused is refused again
        linear_backward(**good)
        with pytest.raises(error, match=message):
            linear_backward(**{**good, **change})


# 600 rows are summed in three slices of 200; 33 columns take two blocks; without `keep` h is not written.
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", [None, *BY_OUTPUT])
@pytest.mark.parametrize("wanted", [(True, True, True), (False, False, True)])
def test_sums_of_long_columns(backend, dtype, activation, wanted):
    rng = np.random.default_rng(3)
    grad, y = (rng.standard_normal((600, 33)).astype(dtype) for _ in range(2))
    a, b = rng.standard_normal((600, 3)).astype(dtype), rng.standard_normal((33, 3)).astype(dtype)
    device = [backend.put(host) for host in (grad, a, b, y)]
    with untouched(*device):
        found = linear_backward(*device, activation=activation, wanted=wanted)
    assert_accurate(
        backend.get(found[2]), lambda grad, y: slopes(grad, y, activation).sum(axis=0, dtype=grad.dtype), grad, y
    )
    if wanted[0]:
        assert_accurate(backend.get(found[0]), lambda g, y, b: product(slopes(g, y, activation), b), grad, y, b)


def test_nan_and_infinity_stay_in_their_column(backend):
    grad = np.ones((40, 4), np.float32)
    grad[3, 1], grad[5, 2], grad[6, 3] = np.nan, np.inf, np.nan
    y = np.ones((40, 4), np.float32)
    y[6, 3], y[7, 0] = 0, np.nan  # a slope of 0 hides its NaN; that of a NaN is 1, as in the reference
    arguments = [backend.put(host) for host in (grad, np.ones((40, 2), np.float32), np.ones((4, 2), np.float32), y)]
    sums = linear_backward(*arguments, activation="relu", wanted=(False, False, True))[2]
    np.testing.assert_array_equal(backend.get(sums), np.float32([40, np.nan, np.inf, 39]))
