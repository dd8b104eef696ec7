"""Sizes, operations and bytes, counted by hand or by brute force."""

from __future__ import annotations

import itertools

import pytest

from rawgrad.bench import shapes
from rawgrad.bench.shapes import Conv2d, Gemm, MaxPool2d, Pad, SoftmaxCrossEntropy


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
