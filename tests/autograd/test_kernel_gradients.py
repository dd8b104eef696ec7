"""Gradients through the CUDA kernels against central differences in float64, on device ``cuda``.

``test_devices.py`` holds every row of the table to the values that the CPU gives; here are a few rows
for each operation that has kernels of its own, since differences take hundreds of launches each.
"""

from __future__ import annotations

import importlib
import pkgutil
from typing import Any

import cases
import pytest
from cases import CASES
from gradient_report import check

from rawgrad import autograd as ag
from rawgrad import kernels
from rawgrad.kernels._dispatch import Operation

pytestmark = pytest.mark.backends("emulated", "cuda")

CHOSEN = (
    "matmul-2-d 2-d",
    "matmul-2-d 3-d",  # one matrix for a batch of others
    "matmul-transposed 11",
    "linear-tanh",  # an activation fused into the product
    "linear-relu, dropout",
    "linear_layers",
    "linear_layers-dropout",
    "conv2d",
    "conv2d-strides, padding, dilation",
    "conv2d-groups",
    "conv2d-relu",
    "conv2d-relu, groups, no bias",
    "conv2d_relu_pool",
    "conv2d_relu_pool-overlapping windows, no bias",
    "max_pool2d",
    "max_pool2d-overlapping, padded",
    "adjoints-MaxPool2dGather",
    "avg_pool2d",
    "avg_pool2d-padded",
    "relu-functional",
    "leaky_relu-negative_slope 0.2",
    "elu-alpha 1.5",
    "gelu-functional",
    "gelu-approximate tanh",
    "silu-functional",
    "softplus-beta 2.0, threshold 1.5",
    "sigmoid-functional",
    "tanh-functional",
    "softmax-last",
    "softmax-middle",
    "log_softmax-last",
    "log_softmax-middle",
    "cross_entropy-labels, mean",
    "cross_entropy-probabilities, mean",
    "cross_entropy-labels, none",
    "cross_entropy-positions",
    "batch_norm-scaled and shifted",
    "batch_norm-4-d",
    "batch_norm-running statistics",
    "layer_norm-scaled and shifted",
    "group_norm-scaled and shifted",
    "dropout",
    "embedding-indices 3-d",
)
NAMED = {case.name: case for case in CASES}
#: Operations that nothing is differentiated through.
STEPS = {"adagrad", "adam", "rmsprop", "sgd"}


@pytest.fixture(autouse=True)
def constants_there(backend: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cases, "constants_on", backend.device.name)


@pytest.mark.parametrize("name", CHOSEN)
def test_gradients_agree_with_differences(backend: Any, name: str) -> None:
    first, second = check(NAMED[name], backend.device.name)
    assert first, str(first)
    assert second, str(second)
    assert first.compared > 0 and second.compared > 0


def test_every_kernel_function_is_reached(backend: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: set[str] = set()
    find = Operation._kernel

    def spy(self: Operation, function: str, device: str, version: str | None) -> Any:
        assert device == backend.device.name
        seen.add(function)
        return find(self, function, device, version)

    monkeypatch.setattr(Operation, "_kernel", spy)
    monkeypatch.setattr(Operation, "passed", lambda *_: None)  # which would not ask for the kernel
    for name in CHOSEN:
        inputs = NAMED[name].tensors(backend.device.name)
        with ag.no_grad():
            NAMED[name].function(*inputs)
        NAMED[name].function(*inputs).sum().backward()
        first = ag.grad(NAMED[name].function(*inputs).sum(), inputs, create_graph=True)
        if any(g.requires_grad for g in first):
            sum((g * g).sum() for g in first).backward()
    functions: set[str] = set()
    for package in pkgutil.iter_modules(kernels.__path__):
        if not package.name.startswith("_") and package.name not in STEPS:
            reference = importlib.import_module(f"{kernels.__name__}.{package.name}.reference")
            functions |= {name for name, value in vars(reference).items() if is_kernel(reference, name, value)}
    # The random words are no function of anything; with running statistics batch norm is plain arithmetic.
    assert functions - seen == {"philox", "batch_norm_inference"}


def is_kernel(module: Any, name: str, value: Any) -> bool:
    return not name.startswith("_") and getattr(value, "__module__", None) == module.__name__
