"""Activations against their definitions, complex-step derivatives, hand-worked values and torch."""

from __future__ import annotations

import math
from contextlib import nullcontext

import numpy as np
import pytest
from _derivative import complex_step
from _layouts import LAYOUTS, untouched
from _tolerance import assert_accurate, assert_within
from _versions import every_version, skip_unless_there
from hypothesis import given
from hypothesis import strategies as st

from rawgrad.kernels import activation
from rawgrad.kernels._dispatch import backend as use_backend
from rawgrad.kernels._errors import ArgumentError, DeviceError, DtypeError, ShapeError


def erf(x):
    return np.vectorize(math.erf, otypes=[np.float64])(x).astype(x.dtype)


def gelu_tanh(x):
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def gelu(x):
    return 0.5 * x * (1 + erf(x / math.sqrt(2)))


def gelu_derivative(x, grad):  # Φ(x) + x φ(x)
    return grad * (0.5 * (1 + erf(x / math.sqrt(2))) + x * np.exp(-0.5 * x * x) / math.sqrt(2 * math.pi))


def from_complex_step(f):
    return lambda x, grad: grad * (f(x + 1e-20j).imag / x.dtype.type(1e-20))


def piecewise(positive, negative):
    return lambda x: np.where(x.real > 0, positive(x), negative(x))


ELU = {a: piecewise(lambda x: x, lambda x, a=a: a * (np.exp(x) - 1)) for a in (1.0, 0.3)}
LEAKY = {a: piecewise(lambda x: x, lambda x, a=a: a * x) for a in (0.01, 0.0, 1.5)}
# kind, options, definition, derivative
CASES = [
    ("relu", {}, piecewise(lambda x: x, lambda x: 0 * x), None),
    ("leaky_relu", {}, LEAKY[0.01], None),
    ("leaky_relu", {"negative_slope": 0.0}, LEAKY[0.0], None),
    ("leaky_relu", {"negative_slope": 1.5}, LEAKY[1.5], None),  # steeper on the left
    ("elu", {}, ELU[1.0], None),
    ("elu", {"alpha": 0.3}, ELU[0.3], None),
    ("sigmoid", {}, lambda x: 1 / (1 + np.exp(-x)), None),
    ("tanh", {}, lambda x: 1 - 2 / (np.exp(2 * x) + 1), None),
    ("silu", {}, lambda x: x / (1 + np.exp(-x)), None),
    ("gelu", {}, gelu, gelu_derivative),
    ("gelu", {"approximate": "none"}, gelu, gelu_derivative),
    ("gelu", {"approximate": "tanh"}, gelu_tanh, None),
    ("softplus", {}, lambda x: np.log(1 + np.exp(x)), None),
    ("softplus", {"beta": 3.0, "threshold": 40.0}, lambda x: np.log(1 + np.exp(3 * x)) / 3, None),
]
IDS = [" ".join([kind, *map(str, options.values())]) for kind, options, *_ in CASES]
every_case = pytest.mark.parametrize(("kind", "options", "definition", "derivative"), CASES, ids=IDS)
every_kernel = pytest.mark.parametrize("version", every_version("activation", "activation_forward"))
# no dimensions; one element; prime; a vector length and one more; 4-D; empty batch
SHAPES = [(), (1,), (7,), (33,), (2, 3, 5, 4), (0, 3)]


def pinned(backend, version):
    """Forward and backward, whose versions have the same names, run this version; None is the default."""
    skip_unless_there(backend.name, "activation", "activation_forward", version)
    return use_backend(backend.name, activation=version) if version else nullcontext()


def saved_for(kind, x, y):
    return y if activation.saves(kind) == "output" else x


@every_case
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@every_kernel
def test_forward_and_backward_agree_with_the_definition(
    backend, version, kind, options, definition, derivative, dtype, shape
):
    with pinned(backend, version):
        check_definition(backend, kind, options, definition, derivative, dtype, shape)


def check_definition(backend, kind, options, definition, derivative, dtype, shape):
    rng = np.random.default_rng(1)
    host_x = rng.uniform(-6, 6, shape).astype(dtype)
    host_grad = rng.standard_normal(shape).astype(dtype)
    x, grad = backend.put(host_x), backend.put(host_grad)
    with untouched(x):
        y = activation.activation_forward(x, kind, **options)
    assert_accurate(backend.get(y), definition, host_x)
    saved = saved_for(kind, x, y)
    with untouched(grad, saved):
        dx = activation.activation_backward(grad, saved, kind, **options)
    assert_accurate(backend.get(dx), derivative or from_complex_step(definition), host_x, host_grad)


# One below, at and one above: a block of v1 (256 elements), blocks of v2 (512 doubles, 1024 floats) and of v3 (twice
# as many).
@every_kernel
@pytest.mark.parametrize("n", [255, 256, 257, 511, 512, 513, 1023, 1024, 1025, 2047, 2048, 2049])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_sizes_at_the_edges_of_blocks(backend, version, n, dtype):
    with pinned(backend, version):
        check_definition(backend, "relu", {}, *CASES[0][2:], dtype, (n,))


# One below, at and one above: a vector of 2 to 16 elements; a part of 16384; four of them, which one thread does alone
# where the kind is cheap.
LENGTHS = [*range(10), 15, 16, 17, 31, 33, 16383, 16384, 16385, 32769, 65535, 65536, 65537, 81925]


@pytest.mark.backends("numba")
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@every_case
def test_bits_depend_on_neither_place_nor_threads(backend, kind, options, definition, derivative, dtype):
    from rawgrad.kernels._jit import get_num_threads, set_num_threads

    n, threads = LENGTHS[-1], get_num_threads()
    rng = np.random.default_rng(6)
    x, grad = rng.uniform(-6, 6, n).astype(dtype), rng.standard_normal(n).astype(dtype)
    pieces = [slice(i, i + 1000) for i in range(0, n, 1000)]
    y = np.concatenate([activation.activation_forward(x[at], kind, **options) for at in pieces])
    saved = saved_for(kind, x, y)
    dx = np.concatenate([activation.activation_backward(grad[at], saved[at], kind, **options) for at in pieces])
    room = np.empty(n + 20, dtype)
    for length in LENGTHS:
        for count in {1, threads}:
            room[:] = 7
            set_num_threads(count)
            try:
                activation.activation_forward(x[:length], kind, out=room[:length], **options)
                back = activation.activation_backward(grad[:length], saved[:length], kind, **options)
            finally:
                set_num_threads(threads)
            assert room[:length].tobytes() == y[:length].tobytes(), (length, count)
            assert np.all(room[length:] == 7), f"{kind} wrote beyond the end of {length} elements"
            assert back.tobytes() == dx[:length].tobytes(), (length, count)


@every_kernel
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("off", ["x", "out", "grad", "saved"])
def test_arrays_that_do_not_start_at_16_bytes(backend, version, dtype, off):
    host = np.random.default_rng(4).standard_normal((4, 38)).astype(dtype)  # one more than 9 vectors of 4, before cut
    put = {name: backend.put(row)[1:] if name == off else backend.put(row[1:]) for name, row in
           zip(("x", "out", "grad", "saved"), host, strict=True)}  # fmt: skip
    with pinned(backend, version):
        y = activation.activation_forward(put["x"], "leaky_relu", out=put["out"])
        dx = activation.activation_backward(put["grad"], put["saved"], "leaky_relu")
    assert y is put["out"]
    x, _, grad, saved = host[:, 1:]
    np.testing.assert_array_equal(backend.get(y), np.where(x > 0, x, dtype(0.01) * x))
    np.testing.assert_array_equal(backend.get(dx), np.where(saved > 0, grad, dtype(0.01) * grad))


@every_case
@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_strides_give_the_same_bits(backend, kind, options, definition, derivative, layout):
    rng = np.random.default_rng(2)
    host_x, host_grad = rng.uniform(-6, 6, (2, 2, 3, 4, 5)).astype(np.float32)
    x, grad = backend.put(host_x, layout), backend.put(host_grad, layout)
    y = activation.activation_forward(x, kind, **options)
    plain = activation.activation_forward(backend.put(host_x), kind, **options)
    np.testing.assert_allclose(backend.get(y), backend.get(plain), rtol=4e-7, atol=1e-7)
    out = backend.put(np.full_like(host_x, np.nan), layout)
    assert activation.activation_forward(x, kind, out=out, **options) is out
    np.testing.assert_array_equal(backend.get(out), backend.get(y))
    dx = activation.activation_backward(grad, saved_for(kind, x, y), kind, **options)
    plain = activation.activation_backward(
        backend.put(host_grad), backend.put(backend.get(saved_for(kind, x, y))), kind, **options
    )
    np.testing.assert_allclose(backend.get(dx), backend.get(plain), rtol=1e-5, atol=1e-6)


def test_hand_worked(backend):
    def at(kind, x, **options):
        return float(backend.get(activation.activation_forward(backend.put(np.array(x)), kind, **options)))

    assert at("sigmoid", 0.0) == 0.5
    assert at("sigmoid", math.log(3)) == pytest.approx(0.75, rel=1e-15)
    assert at("silu", math.log(3)) == pytest.approx(0.75 * math.log(3), rel=1e-15)
    assert at("elu", -math.log(2), alpha=3) == pytest.approx(-1.5, rel=1e-15)
    assert at("softplus", 0.0, beta=2) == pytest.approx(math.log(2) / 2, rel=1e-15)
    assert at("softplus", 21.0) == 21.0  # beyond the threshold it is exactly linear, as in torch
    assert at("softplus", 21.0, threshold=30) == pytest.approx(21 + math.exp(-21), rel=1e-15)
    assert at("gelu", 1.0) == pytest.approx(0.8413447460685429, rel=1e-15)  # Φ(1)
    assert at("leaky_relu", -3.0, negative_slope=0.25) == -0.75
    x = backend.put(np.array([1.5, 0.5]))  # z = 3 and 1
    slopes = activation.activation_backward(backend.put(np.ones(2)), x, "softplus", beta=2, threshold=2.5)
    assert backend.get(slopes).tolist() == [1.0, pytest.approx(1 / (1 + math.exp(-1)), rel=1e-15)]


def test_at_the_borders_between_pieces(backend):
    """softplus at its threshold is not beyond it, and elu at 0 has the slope of its left piece."""
    at, ones = {"beta": 2, "threshold": 2}, backend.put(np.ones(2))
    x = backend.put(np.array([1.0, 1 + 1e-15]))
    y = backend.get(activation.activation_forward(x, "softplus", **at)).tolist()
    assert y == [pytest.approx(math.log1p(math.exp(2)) / 2, rel=1e-15), 1 + 1e-15]
    slopes = backend.get(activation.activation_backward(ones, x, "softplus", **at)).tolist()
    assert slopes == [pytest.approx(1 / (1 + math.exp(-2)), rel=1e-15), 1.0]
    y = activation.activation_forward(backend.put(np.array([0.0, 1e-300])), "elu", alpha=0.25)
    assert backend.get(activation.activation_backward(ones, y, "elu", alpha=0.25)).tolist() == [0.25, 1.0]


@every_kernel
def test_zeros_pass_the_cuda_kernels_as_they_are(backend, version):
    """−0 is not less than 0, so nothing is done to it; nor does 0 meet a slope that is infinite in float32."""
    if backend.device.name != "cuda":
        pytest.skip("of the two zeros the other backends may give either, and they multiply by the slope")
    zeros = np.array([0, -0.0] * 3, np.float32)
    with pinned(backend, version):
        for kind, options in (("relu", {}), ("leaky_relu", {"negative_slope": 1e39}), ("elu", {"alpha": 1e39})):
            y = backend.get(activation.activation_forward(backend.put(zeros), kind, **options))
            np.testing.assert_array_equal(y.view(np.int32), zeros.view(np.int32))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    ("kind", "options", "values", "slopes"),
    [  # at -inf, -1e30, 1e30, inf, NaN
        ("relu", {}, [0, 0, 1e30, np.inf, np.nan], [0, 0, 1, 1, 1]),
        ("leaky_relu", {"negative_slope": 0.5}, [-np.inf, -5e29, 1e30, np.inf, np.nan], [0.5, 0.5, 1, 1, 0.5]),
        ("elu", {}, [-1, -1, 1e30, np.inf, np.nan], [0, 0, 1, 1, np.nan]),
        ("sigmoid", {}, [0, 0, 1, 1, np.nan], [0, 0, 0, 0, np.nan]),
        ("tanh", {}, [-1, -1, 1, 1, np.nan], [0, 0, 0, 0, np.nan]),
        ("silu", {}, [np.nan, 0, 1e30, np.inf, np.nan], [np.nan, 0, 1, np.nan, np.nan]),
        ("gelu", {}, [np.nan, 0, 1e30, np.inf, np.nan], [0, 0, 1, 1, np.nan]),
        ("gelu", {"approximate": "tanh"}, [np.nan, 0, 1e30, np.inf, np.nan], [0, 0, 1, 1, np.nan]),
        ("softplus", {}, [0, 0, 1e30, np.inf, np.nan], [0, 0, 1, 1, np.nan]),
    ],
)
@every_kernel
def test_huge_and_not_finite(backend, version, kind, options, values, slopes, dtype):
    host = np.array([-np.inf, -1e30, 1e30, np.inf, np.nan] * 5, dtype)  # 25: vector loops and their remainder
    x = backend.put(host)
    with pinned(backend, version):
        y = activation.activation_forward(x, kind, **options)
        dx = activation.activation_backward(backend.put(np.ones_like(host)), saved_for(kind, x, y), kind, **options)
    np.testing.assert_array_equal(backend.get(y), np.array(values * 5, dtype))
    np.testing.assert_array_equal(backend.get(dx), np.array(slopes * 5, dtype))


@every_kernel
def test_traffic_is_each_array_once(backend, version):
    if backend.name != "emulated":
        pytest.skip("only the emulator counts bytes")
    from rawgrad.kernels._emulator.runtime import record_launches

    x = backend.put(np.ones(1027, np.float32))
    with pinned(backend, version), record_launches() as launches:
        y = activation.activation_forward(x, "gelu")
        activation.activation_backward(x, y, "gelu")
    forward, backward = (launch.traffic for launch in launches)
    assert (forward.global_read, forward.global_written) == (x.nbytes, x.nbytes)
    assert (backward.global_read, backward.global_written) == (2 * x.nbytes, x.nbytes)


def test_large_arrays_take_two_vectors_for_a_thread(backend, monkeypatch):
    if backend.name != "emulated":
        pytest.skip("only the emulator records launches")
    from rawgrad.kernels._emulator.runtime import record_launches
    from rawgrad.kernels.activation import cuda

    monkeypatch.setattr(cuda, "_LARGE", 4 * 2048)
    for n, kernel in ((2047, "v2_vector"), (2048, "v3_ahead")):
        with record_launches() as launches:
            activation.activation_forward(backend.put(np.ones(n, np.float32)), "relu")
        assert kernel in launches[0].kernel


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("kind", ["sigmoid", "silu", "gelu", "softplus"])
def test_gradients_far_out_keep_their_digits(backend, kind, dtype):
    """Nothing is lost in a sum with 1, and nothing overflows where e^-x does."""
    x = np.array([-80.0, -30.0, -12.0], dtype)
    exact = {  # e^x is small: s = e^x / (1 + e^x), and the rest follows
        "sigmoid": lambda v: math.exp(v) / (1 + math.exp(v)) ** 2,
        "silu": lambda v: (1 + v / (1 + math.exp(v))) * math.exp(v) / (1 + math.exp(v)),
        "gelu": lambda v: math.erfc(-v / math.sqrt(2)) / 2 + v * math.exp(-v * v / 2) / math.sqrt(2 * math.pi),
        "softplus": lambda v: math.exp(v) / (1 + math.exp(v)),
    }[kind]
    on_device = backend.put(x)
    y = activation.activation_forward(on_device, kind)
    dx = activation.activation_backward(backend.put(np.ones_like(x)), saved_for(kind, on_device, y), kind)
    eps, tiny = float(np.finfo(dtype).eps), float(np.finfo(dtype).tiny)
    # the exponents' roundings grow by their size: v for e^v, v²/2 for e^(-v²/2)
    room = [4 + abs(v) if kind != "gelu" else 4 + v * v for v in x.tolist()]
    for value, v, ulps in zip(backend.get(dx).tolist(), x.tolist(), room, strict=True):
        assert abs(value - exact(v)) <= 4 * ulps * eps * abs(exact(v)) + tiny, (v, value, exact(v))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_small_values_keep_their_digits(backend, dtype):
    x = np.array([-20.0, -8.0, -3.0], dtype)
    y = activation.activation_forward(backend.put(x), "sigmoid")
    eps = np.finfo(dtype).eps
    np.testing.assert_allclose(backend.get(y), [math.exp(v) / (1 + math.exp(v)) for v in x.tolist()], rtol=4 * eps)
    y = activation.activation_forward(backend.put(x), "softplus")
    np.testing.assert_allclose(backend.get(y), [math.log1p(math.exp(v)) for v in x.tolist()], rtol=4 * eps)
    x = np.array([-1e-20, -1e-30], dtype)
    np.testing.assert_array_equal(backend.get(activation.activation_forward(backend.put(x), "elu")), x)
    x = np.array([-5.0, -3.0], dtype)
    y = activation.activation_forward(backend.put(x), "gelu")
    np.testing.assert_allclose(
        backend.get(y), [v * math.erfc(-v / math.sqrt(2)) / 2 for v in x.tolist()], rtol=40 * eps
    )


def test_relu_drops_infinite_gradients_of_dropped_inputs(backend):
    y = backend.put(np.array([0.0, 2.0, 0.0, 3.0]))
    grad = backend.put(np.array([np.inf, np.inf, np.nan, np.nan]))
    dx = activation.activation_backward(grad, y, "relu")
    np.testing.assert_array_equal(backend.get(dx), [0.0, np.inf, 0.0, np.nan])


@every_case
def test_agrees_with_torch(backend, kind, options, definition, derivative):
    torch = pytest.importorskip("torch")
    name = {"sigmoid": torch.sigmoid, "tanh": torch.tanh}.get(kind) or getattr(torch.nn.functional, kind)
    host = np.random.default_rng(3).uniform(-12, 12, 500)
    tensor = torch.tensor(host, requires_grad=True)
    expected = name(tensor, **options)
    (expected_grad,) = torch.autograd.grad(expected.sum(), tensor)
    x = backend.put(host)
    y = activation.activation_forward(x, kind, **options)
    dx = activation.activation_backward(backend.put(np.ones(500)), saved_for(kind, x, y), kind, **options)
    assert_within(backend.get(y), expected.detach().numpy(), 1e-14)
    assert_within(backend.get(dx), expected_grad.numpy(), 2e-14)


@given(st.integers(-40, 40).map(lambda n: n / 2), st.sampled_from(["sigmoid", "softplus", "silu", "tanh"]))
def test_symmetries(backend, value, kind):
    """s(x) + s(-x) = 1, softplus(x) - softplus(-x) = x = silu(x) - silu(-x), tanh is odd."""
    x = np.array([value, -value])
    plus, minus = backend.get(activation.activation_forward(backend.put(x), kind)).tolist()
    difference = {"sigmoid": plus + minus - 1, "tanh": plus + minus}.get(kind, plus - minus - value)
    assert abs(difference) <= 1e-14 if kind != "softplus" else abs(difference) <= 3e-9  # e^-20, cut off there


def test_complex_step_knows_a_derivative():
    """The tests' own tool: d(x²)/dx = 2x, d(sum of products)/dx."""
    x, grad = np.array([1.0, -3.0]), np.array([1.0, 10.0])
    np.testing.assert_array_equal(complex_step(lambda z: z * z, x, grad), [2.0, -60.0])
    np.testing.assert_array_equal(complex_step(lambda z: z[0] * z[1], x, np.array(2.0)), [-6.0, 2.0])


def test_refusals(backend):
    x = backend.put(np.ones(3))
    forward, backward = activation.activation_forward, activation.activation_backward
    with pytest.raises(ArgumentError, match=r"activation: kind must be one of relu, .*; got 'swish'"):
        forward(x, "swish")
    with pytest.raises(ArgumentError, match="kind must be one of"):
        activation.saves(None)
    with pytest.raises(ArgumentError, match=r"alpha must be an option of relu \(none\); got alpha=1"):
        forward(x, "relu", alpha=1)
    with pytest.raises(ArgumentError, match="approximate must be 'none' or 'tanh'; got 'fast'"):
        forward(x, "gelu", approximate="fast")
    for bad in (-0.1, math.nan, math.inf, "0.1", None):
        with pytest.raises(ArgumentError, match="negative_slope must be finite and >= 0"):
            forward(x, "leaky_relu", negative_slope=bad)
    with pytest.raises(ArgumentError, match="beta must be finite and positive; got 0"):
        forward(x, "softplus", beta=0)
    with pytest.raises(DtypeError, match="activation: x must be float32 or float64; got int64"):
        forward(backend.put(np.arange(3)), "relu")
    with pytest.raises(DeviceError, match="activation: x: expected an array"):
        forward([1.0], "relu")
    with pytest.raises(ShapeError, match=r"grad must have shape \(3,\); got \(2,\)"):
        backward(backend.put(np.ones(2)), x, "relu")
    with pytest.raises(DtypeError, match="one dtype; grad is float32, saved is float64"):
        backward(backend.put(np.ones(3, np.float32)), x, "relu")
    with pytest.raises(ArgumentError, match="out overlaps"):
        forward(x, "relu", out=x)
    with pytest.raises(ShapeError, match="out must have shape"):
        forward(x, "relu", out=backend.put(np.ones(4)))
