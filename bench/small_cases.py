"""Every kind of case at a small size: what tests, and counts on the emulator, go through."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from . import cases, shapes
from .cases import BACKWARD, BOTH, FORWARD, Case

_PAD = shapes.Pad(1, 1, 1, 1)
_ALL, _EACH = (FORWARD, BACKWARD, BOTH), (FORWARD, BACKWARD)
_MAKES: list[tuple[Callable[..., Case], Any, tuple[str, ...]]] = [
    (cases.conv2d_case, shapes.Conv2d(2, 4, 7, 6, 6, 3, 2, 2, _PAD, groups=2), _ALL),
    (cases.linear_case, shapes.Linear(3, 5, 2), _EACH),
    (cases.max_pool2d_case, shapes.MaxPool2d(2, 3, 7, 6, 3, 2, 1), _ALL),
    (cases.avg_pool2d_case, shapes.AvgPool2d(2, 3, 7, 6, 3, 2, 1), _EACH),
    (cases.softmax_case, shapes.Softmax(5, 7), _EACH),
    (cases.activation_case, shapes.Activation(5, 7, kind="relu"), _EACH),
    (cases.activation_case, shapes.Activation(5, 7, kind="gelu"), _EACH),
    (cases.activation_case, shapes.Activation(5, 7, kind="sigmoid"), _EACH),
    (cases.batch_norm_case, shapes.BatchNorm(2, 3, 4, 5), _EACH),
    (cases.layer_norm_case, shapes.LayerNorm(5, 7), _EACH),
    (cases.group_norm_case, shapes.GroupNorm(2, 6, 4, 5, groups=3), _EACH),
    (cases.embedding_case, shapes.Embedding(7, 5, 3), _EACH),
]
CASES: dict[str, Callable[[], Case]] = {
    "gemm": partial(cases.gemm_case, shapes.Gemm(3, 5, 2)),
    "conv2d first layer": partial(cases.conv2d_case, shapes.Conv2d(2, 1, 7, 7, 4, 5, 5), BOTH, False),
    "softmax_cross_entropy": partial(cases.softmax_cross_entropy_case, shapes.SoftmaxCrossEntropy(5, 4)),
    "dropout": partial(cases.dropout_case, shapes.Dropout(50, 40)),
    **{
        f"{make.__name__.removesuffix('_case')} {getattr(shape, 'kind', '')} {kind}": partial(make, shape, kind)
        for make, shape, kinds in _MAKES
        for kind in kinds
    },
}
