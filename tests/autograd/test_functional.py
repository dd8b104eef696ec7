"""What is no tensor is refused by name, in every public function."""

from __future__ import annotations

import inspect

import numpy as np
import pytest

from rawgrad import nn
from rawgrad.autograd import Tensor
from rawgrad.autograd import functional as F
from rawgrad.kernels._errors import ArgumentError, RawgradError

#: Functions whose first argument is a list of tensors, or that belong to Tensor as well.
_ELSEWHERE = {"cat", "stack", "split", "chunk", "where", "matmul"}


@pytest.mark.parametrize("name", sorted(set(F.__all__) - _ELSEWHERE))
def test_an_array_is_no_tensor(name: str) -> None:
    function = getattr(F, name)
    required = [p for p in inspect.signature(function).parameters.values() if p.default is p.empty]
    arguments = [np.zeros((2, 2), np.float32) for _ in required]
    with pytest.raises(RawgradError, match=rf"{name}: \w+ must be a tensor; got numpy.ndarray; rg.tensor"):
        function(*arguments)


def test_in_a_model_the_layer_is_named() -> None:
    with pytest.raises(RawgradError, match=r"conv2d: input must be a tensor.*\[in layer 0\]"):
        nn.Sequential(nn.Conv2d(1, 2, 3))(np.zeros((1, 1, 4, 4), np.float32))


@pytest.mark.parametrize("p", ["half", None, -0.1, 1.1, float("nan")])
def test_dropout_takes_a_probability(p: object) -> None:
    with pytest.raises(ArgumentError, match=r"dropout: p must be a number in \[0, 1\]"):
        F.dropout(Tensor(np.zeros(2, np.float32)), p)  # type: ignore[arg-type]
