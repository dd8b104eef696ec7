"""Sizes, operations and bytes, counted by hand or by brute force."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from rawgrad import profile
from rawgrad.bench import kernels, shapes
from rawgrad.bench.shapes import Conv2d, Gemm, MaxPool2d, Pad, SoftmaxCrossEntropy
from rawgrad.bench.small_cases import CASES
from rawgrad.kernels._devices import device_named
from rawgrad.kernels._dispatch import BACKENDS, backend


def count_conv2d(c: Conv2d) -> tuple[int, int, int]:
    """P, Q and the multiplications of one forward pass, zeros included, by walking the filter over the image."""
    rows = range(-c.pad.top, c.H + c.pad.bottom - c.R + 1, c.stride)
    columns = range(-c.pad.left, c.W + c.pad.right - c.S + 1, c.stride)
    products = sum(c.R * c.S for _ in itertools.product(range(c.N), range(c.K), range(c.C), rows, columns))
    return len(rows), len(columns), products


@pytest.mark.parametrize(
    "conv",
    [
        Conv2d(2, 3, 7, 6, 4, 3, 2),
        Conv2d(1, 1, 5, 5, 2, 5, 5),  # one output position
        Conv2d(2, 2, 8, 8, 3, 5, 5, 2, Pad(1, 2, 1, 2)),  # P10's uneven padding
        Conv2d(1, 2, 6, 9, 1, 2, 3, 3, Pad(0, 1, 2, 0)),
    ],
)
def test_conv2d(conv):
    P, Q, products = count_conv2d(conv)
    assert (conv.P, conv.Q) == (P, Q)
    outputs = conv.N * conv.K * P * Q
    assert conv.flops_forward() == 2 * products + outputs
    # Each product of the forward pass appears once in each gradient.
    assert conv.flops_backward(input_gradient=False) == 2 * products + outputs
    assert conv.flops_backward() == 4 * products + outputs


def test_conv2d_bytes_by_hand():
    conv = Conv2d(2, 1, 4, 4, 3, 2, 2)  # x 32, weight 12, bias 3, y 2*3*3*3 = 54
    assert conv.bytes_forward() == 4 * (32 + 12 + 3 + 54)
    assert conv.bytes_backward(input_gradient=False) == 4 * (54 + 32 + 12 + 3)
    assert conv.bytes_backward() == 4 * (54 + 32 + 12 + 3 + 12 + 32)


def test_max_pool2d_by_hand():
    pool = MaxPool2d(1, 2, 4, 6, 2, 2)  # x 48, y 2*2*3 = 12
    assert (pool.P, pool.Q) == (2, 3)
    assert pool.flops() == 12 * 3 + 12
    assert pool.bytes() == (48 * 4 + 12 * 4 + 12) + (12 * 4 + 12 + 48 * 4)
    overlapping = MaxPool2d(1, 1, 7, 7, 3, 2)
    assert (overlapping.P, overlapping.Q) == (3, 3)


def test_gemm_and_softmax_cross_entropy_by_hand():
    assert Gemm(2, 3, 5).flops() == 2 * 30
    assert Gemm(2, 3, 5).bytes() == 4 * (6 + 15 + 10)
    assert SoftmaxCrossEntropy(4, 10).flops() == 240
    assert SoftmaxCrossEntropy(4, 10).bytes() == 4 * 40 * 2 + 4 * 8


def test_p10_keeps_28_28_14_7():
    for channels, first_filter in (shapes.SMALL_P10, shapes.LARGE_P10):
        layers = shapes.p10_convolutions(3, channels, first_filter)
        assert [(c.H, c.P) for c in layers] == [(28, 28), (28, 14), (14, 7)]
        assert [(c.W, c.Q) for c in layers] == [(28, 28), (28, 14), (14, 7)]
        assert tuple(c.K for c in layers) == channels


@pytest.mark.parametrize(
    ("step", "parameters"),
    [
        (shapes.p5(100), 20 * 25 + 20 + 20 * 500 + 20 + 980 * 10 + 10),
        (shapes.p9(100), 157_000 + 20_100 + 6_060 + 1_830 + 310),
        (shapes.p10(100, *shapes.SMALL_P10), 104 + 808 + 1_548 + 588 * 200 + 200 + 2_010),
        (shapes.p10(100, *shapes.LARGE_P10), 222 + 1_812 + 4_632 + 1_176 * 200 + 200 + 2_010),
    ],
)
def test_steps_have_the_programs_parameters(step, parameters):
    assert step.parameters() == parameters


def test_a_step_without_convolutions_by_hand():
    step = shapes.Step((), (Gemm(2, 3, 5), Gemm(2, 5, 1)))
    assert step.flops() == 2 * 60 + 3 * 20  # the first layer's input needs no gradient


def test_p5_first_layer_needs_no_gradient_of_its_input():
    first, second = shapes.p5_convolutions(100)
    linear = Gemm(100, 980, 10)
    assert shapes.p5(100).flops() == (
        first.flops_forward() + first.flops_backward(False)
        + second.flops_forward() + second.flops_backward()
        + 3 * linear.flops()
    )  # fmt: skip


class Counted:
    """A number that counts what is done with it; a comparison is an operation like any other."""

    done = 0

    def __init__(self, value: float) -> None:
        self.value = float(value)

    def _with(self, value: float) -> Counted:
        Counted.done += 1
        return Counted(value)

    def __add__(self, other: Counted | float) -> Counted:
        return self._with(self.value + _value(other))

    def __sub__(self, other: Counted | float) -> Counted:
        return self._with(self.value - _value(other))

    def __mul__(self, other: Counted | float) -> Counted:
        return self._with(self.value * _value(other))

    def __truediv__(self, other: Counted | float) -> Counted:
        return self._with(self.value / _value(other))

    def larger(self, other: Counted | float) -> Counted:
        return self._with(max(self.value, _value(other)))

    def function(self) -> Counted:
        """exp, erf, a root, a reciprocal: which does not matter here."""
        return self._with(0.5)


def _value(number: Counted | float) -> float:
    return number.value if isinstance(number, Counted) else number


def total(numbers):
    first, *others = numbers
    for other in others:
        first = first + other
    return first


def softmax_forward(row):
    largest = row[0]
    for x in row[1:]:
        largest = largest.larger(x)
    powers = [(x - largest).function() for x in row]
    whole = total(powers).function()  # 1 / sum
    return [power * whole for power in powers]


def softmax_backward(y, grad):
    inner = total([a * b for a, b in zip(y, grad, strict=True)])
    return [a * (b - inner) for a, b in zip(y, grad, strict=True)]


def normalise(row, weight, bias):
    mean = total(row) * (1 / len(row))
    centred = [x - mean for x in row]
    scale = (total([c * c for c in centred]) * (1 / len(row)) + 1e-5).function()
    return [(x - mean) * scale * w + b for x, w, b in zip(row, weight, bias, strict=True)]


def normalise_backward(grad, row, mean, scale, weight):
    """As :class:`shapes.LayerNorm` says; the sums over rows begin at 0."""
    normal = [(x - mean) * scale for x in row]
    sums = [Counted(0) + g * n for g, n in zip(grad, normal, strict=True)]
    sums += [Counted(0) + g for g in grad]
    weighted = [g * w for g, w in zip(grad, weight, strict=True)]
    a, b = total(weighted), total([g * n for g, n in zip(weighted, normal, strict=True)])
    return sums, [(g - a - n * b) * scale for g, n in zip(weighted, normal, strict=True)]


def gelu(x):
    return x * 0.5 * ((x * 0.7).function() + 1)


def gelu_backward(x, grad):
    cdf = ((x * 0.7).function() + 1) * 0.5
    density = (x * x * -0.5).function() * 0.4
    return grad * (cdf + x * density)


def adam(p, g, m, v):
    m, v = m * 0.9 + g * 0.1, v * 0.99 + (g * 0.01) * g
    return p - m * 0.001 / (v.function() * 1.1 + 1e-8)


def counted(work, *rows: int) -> int:
    """Operations of ``work`` on so many numbers each."""
    Counted.done = 0
    work(*([Counted(i + 1) for i in range(n)] for n in rows))
    return Counted.done


N = 50
#: By name: what the formula says, and what the definition does, for rows of N numbers.
DEFINITIONS = {
    "softmax": (shapes.Softmax(1, N).flops_forward(), counted(softmax_forward, N)),
    "softmax backward": (shapes.Softmax(1, N).flops_backward(), counted(softmax_backward, N, N)),
    "layer_norm": (shapes.LayerNorm(1, N).flops_forward(), counted(normalise, N, N, N)),
    "layer_norm backward": (
        shapes.LayerNorm(1, N).flops_backward(),
        counted(lambda g, x, w: normalise_backward(g, x, Counted(1), Counted(2), w), N, N, N),
    ),
    "gelu": (shapes.Activation(1, N, kind="gelu").flops_forward(), counted(lambda row: [*map(gelu, row)], N)),
    "gelu backward": (
        shapes.Activation(1, N, kind="gelu").flops_backward(),
        counted(lambda x, g: [*map(gelu_backward, x, g)], N, N),
    ),
    "sigmoid": (
        shapes.Activation(1, N, kind="sigmoid").flops_forward(),
        counted(lambda row: [((x * -1).function() + 1).function() for x in row], N),
    ),
    "avg_pool2d": (
        shapes.AvgPool2d(1, 1, 5, 10, 5, 5).flops_forward(),
        counted(lambda a, b: [total(a) * 0.04, total(b) * 0.04], 25, 25),
    ),
    "sgd": (shapes.Update("sgd", (N,)).flops(), counted(lambda p, g: [a - b * 0.1 for a, b in zip(p, g)], N, N)),  # noqa: B905
    "adam": (shapes.Update("adam", (N,)).flops(), counted(lambda *a: [*map(adam, *a)], N, N, N, N)),
}


@pytest.mark.parametrize("name", DEFINITIONS)
def test_operations_are_those_of_the_definition(name):
    """But for the few that there are once a row, and a sum's first number."""
    stated, done = DEFINITIONS[name]
    assert abs(stated - done) <= 8, f"the formula says {stated}, the definition does {done}"


@pytest.mark.parametrize("name", CASES)
def test_bytes_are_those_of_the_arrays(name):
    """Of all arrays that our kernels are given and make, as the profile counts them; products likewise."""
    case = CASES[name]()
    (inputs,) = kernels.inputs_of(case, lambda size: 1)
    with backend("numpy"):
        arguments = case.ours.prepare(*inputs)
        with profile() as found:
            results = kernels.several(case.ours.call(*arguments))
    rows = found.rows()
    said = sum(row.bytes for row in rows)
    loss = results[0].nbytes if case.operation == "softmax_cross_entropy" else 0  # a number
    # Both gradients of a convolution's parameters read dL/dy: a pass reads it once.  The profile has that in each.
    again = inputs[-1].nbytes if case.operation == "conv2d" and case.wrt and len(inputs) == 4 and 0 in case.wrt else 0
    assert case.bytes == said - loss - again
    products = sum(row.operations for row in rows)
    assert products <= case.flops or not products


#: Cases whose kernels write partial results, or read an input once for each of two gradients.
_TOUCH_MORE = ("conv2d", "softmax_cross_entropy", "linear  backward", "layer_norm", "group_norm", "embedding  backward")


@pytest.mark.parametrize("name", [name for name in CASES if "both" not in name])
def test_bytes_are_what_the_kernels_touch_on_the_emulator(name):
    if problem := BACKENDS["emulated"].problem():
        pytest.skip(f"backend 'emulated' cannot run here: {problem}")
    from rawgrad.kernels._emulator.runtime import record_launches

    case = CASES[name]()
    (inputs,) = kernels.inputs_of(case, lambda size: 1)
    with backend("emulated"):
        device = device_named("cuda")
        arguments = case.ours.prepare(*(device.from_host(a) for a in inputs))
        with record_launches() as records:
            case.ours.call(*arguments)
    touched = sum(r.traffic.distinct_read + r.traffic.distinct_written for r in records)
    if name == "embedding  forward":  # the emulator counts a row that is chosen twice once
        touched += (inputs[1].size - np.unique(inputs[1]).size) * inputs[0][0].nbytes
    if name.startswith(_TOUCH_MORE):
        assert touched >= case.bytes
    else:
        assert touched == case.bytes


def test_networks_shapes_are_theirs():
    from rawgrad.bench.shapes import networks

    stem, pooled = networks.CONV2D["resnet_stem"], networks.MAX_POOL2D["resnet_stem"]
    assert (stem.P, stem.Q) == (pooled.H, pooled.W) == (112, 112) and (pooled.P, pooled.Q) == (56, 56)
    assert networks.CONV2D["groups32"].weight_shape == (128, 4, 3, 3)
    assert networks.CONV2D["depthwise"].weight_shape == (64, 1, 3, 3)
    assert (networks.AVG_POOL2D["resnet_global"].P, networks.AVG_POOL2D["resnet_global"].Q) == (1, 1)
    assert all(abs(sum(sizes) - 10**6) < 10**5 for name, sizes in networks.UPDATE_SIZES.items() if "1M" in name)
