"""Single kernels on the CPU: the contestants of a case, and the cases that are rows.

Inputs rotate past the caches.  A peer that cannot do a case, or fails at it, is left out and named with the reason.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from ..kernels._dispatch import backend
from . import cases, shapes
from .cases import BACKWARD, BOTH, FORWARD, Arrays, Call, Case, several
from .harness import OURS, Contestant, Work, sets_past_cache
from .peers import COMPILED, detail, rival
from .results import Missing
from .rivals import Way
from .shapes import networks

#: Our NumPy reference, as a contestant.
REFERENCE = f"{OURS} numpy"
#: Seconds of a call from which on these take no part: a row must not take minutes for them.
_PATIENCE = 0.5


def inputs_of(case: Case, count: Callable[[int], int] | None = None) -> list[Arrays]:
    """Sets of inputs: the first drawn, the others its numbers moved along.

    Args:
        count: how many, from the bytes of one; by default as many as are past the CPU's caches.
    """
    dtype = np.dtype(case.dtype)
    drawn = case.draw(np.random.default_rng(0))
    first = tuple(a.astype(dtype) if a.dtype == np.float32 else a for a in drawn)
    sets = (count or sets_past_cache)(sum(a.nbytes for a in first))
    return [first, *(tuple(np.roll(a, 1 + i) for a in first) for i in range(sets - 1))]


def right_of(case: Case, inputs: Arrays) -> Any:
    """The right result for ``inputs``, by the NumPy reference in float64."""
    wide = [a if a.dtype.kind in "iu" else a.astype(np.float64) for a in inputs]
    if case.right is not None:
        return case.right(*wide)
    with backend("numpy"):
        return several(case.ours.call(*case.ours.prepare(*wide)))


def _in_numpy(way: Way) -> Way:
    def within(call: Call) -> Call:
        def reference(*arguments: Any) -> Any:
            with backend("numpy"):
                return call(*arguments)

        return reference

    return Way(within(way.call), within(way.prepare))


def _contestant(case: Case, who: str, inputs: Sequence[Arrays]) -> Contestant:
    sets: list[tuple[Any, ...]] = [*inputs]
    host: Callable[[Any], np.ndarray] = np.asarray
    if who == OURS:
        way = case.ours
    elif who == REFERENCE:
        way = _in_numpy(case.ours)
    elif who == "numpy":
        way = Way(lambda a, b: a @ b)  # the one operation that NumPy has
    else:
        other = rival(who)
        way, host = case.way(other), other.host
        sets = [tuple(map(other.put, one)) for one in inputs]
    arguments = [way.prepare(*one) for one in sets]

    def result() -> list[np.ndarray]:
        return [np.asarray(host(part)) for part in several(way.call(*arguments[0]))]

    patience = float("inf") if who in (OURS, "torch") else _PATIENCE
    return Contestant(who, way.call, arguments, detail(who), result, patience=patience)


def work(name: str, case: Case, who: Sequence[str]) -> Work:
    """The case as a row, for these contestants.

    Raises:
        RawgradError: rawgrad itself cannot do it.
    """
    inputs = inputs_of(case)
    contestants, missing = list[Contestant](), list[Missing]()
    for one in who:
        try:
            contestants.append(_contestant(case, one, inputs))
            if one != OURS:
                contestants[-1].checked_result()  # compiled here, if at all
        except Exception as error:
            if one == OURS:
                raise
            contestants = [c for c in contestants if c.name != one]
            missing.append(Missing(one, f"{type(error).__name__}: {str(error).partition(chr(10))[0][:200]}"))
    return Work(
        name=name,
        description=case.description,
        contestants=contestants,
        reference=lambda: right_of(case, inputs[0]),
        reference_name="rawgrad's NumPy reference in float64",
        check=case.checked,
        dtype=case.dtype,
        layout=case.layout,
        flops=case.flops,
        bytes=case.bytes,
        missing=missing,
    )


@dataclass(frozen=True)
class KernelRow:
    """A case that is a row of the CPU.

    Attributes:
        operation: the folder in ``kernels/``.
        make: makes the case.
        peers: who can do it.
    """

    operation: str
    make: Callable[[], Case]
    peers: tuple[str, ...]


#: Those that do everything.
_LIBRARIES = ("torch", COMPILED, "jax", "tinygrad")
_PASSES = (FORWARD, BACKWARD)


def _scipy(name: str, kind: str) -> tuple[str, ...]:
    """SciPy, if it does it."""
    return (
        ("scipy",) if kind == FORWARD and name.startswith(("softmax", "activation_gelu", "activation_sigmoid")) else ()
    )


def _programs() -> Iterator[tuple[str, KernelRow]]:
    """The layers of P5, and the products, pools and losses of the goals."""
    first, second = shapes.p5_convolutions(100)
    general = shapes.Conv2d(16, 64, 32, 32, 64, 3, 3, 1, shapes.Pad(1, 1, 1, 1))
    for name, conv, gradient in (
        ("conv2d_p5_layer1", first, False),  # the program's input needs no gradient
        ("conv2d_p5_layer2", second, True),
        ("conv2d_64x64_3x3_on_32", general, True),
    ):
        yield name, KernelRow("conv2d", partial(cases.conv2d_case, conv, BOTH, gradient), _LIBRARIES)
    for name, pool in zip(("max_pool2d_p5_layer1", "max_pool2d_p5_layer2"), shapes.p5_pools(100), strict=True):
        yield name, KernelRow("max_pool2d", partial(cases.max_pool2d_case, pool), _LIBRARIES)
    losses = {f"{N}x{C}": shapes.SoftmaxCrossEntropy(N, C) for N, C in ((512, 10), (256, 32000))}
    for name, loss in (losses | networks.SOFTMAX_CROSS_ENTROPY).items():
        make = partial(cases.softmax_cross_entropy_case, loss)
        yield f"softmax_cross_entropy_{name}", KernelRow("softmax_cross_entropy", make, _LIBRARIES)
    products = {"1024": shapes.Gemm(1024, 1024, 1024), "100x980x10": shapes.Gemm(100, 980, 10)}
    for name, product in (products | networks.GEMM).items():
        yield f"gemm_{name}", KernelRow("gemm", partial(cases.gemm_case, product), ("numpy", *_LIBRARIES))


def _networks() -> Iterator[tuple[str, KernelRow]]:
    """Of networks like ResNet and GPT, and odd ones: each pass a row."""
    makes: tuple[tuple[str, str, Any, Any], ...] = (
        ("conv2d", "conv2d", cases.conv2d_case, networks.CONV2D),
        ("gemm", "gemm_linear", cases.linear_case, networks.LINEAR),
        ("max_pool2d", "max_pool2d", cases.max_pool2d_case, networks.MAX_POOL2D),
        ("avg_pool2d", "avg_pool2d", cases.avg_pool2d_case, networks.AVG_POOL2D),
        ("softmax", "softmax", cases.softmax_case, networks.SOFTMAX),
        ("activation", "activation", cases.activation_case, networks.ACTIVATION),
        ("batch_norm", "batch_norm", cases.batch_norm_case, networks.BATCH_NORM),
        ("layer_norm", "layer_norm", cases.layer_norm_case, networks.LAYER_NORM),
        ("group_norm", "group_norm", cases.group_norm_case, networks.GROUP_NORM),
        ("embedding", "embedding", cases.embedding_case, networks.EMBEDDING),
    )
    for operation, prefix, make, of in makes:
        slow = operation in ("conv2d", "gemm", "max_pool2d", "avg_pool2d")  # in NumPy
        for name, shape in of.items():
            for kind in _PASSES:
                called = f"{prefix}_{name}_{kind}"
                peers = (*(() if slow else (REFERENCE,)), *_scipy(called, kind), *_LIBRARIES)
                yield called, KernelRow(operation, partial(make, shape, kind), peers)
    for name, shape in networks.DROPOUT.items():
        yield f"dropout_{name}", KernelRow("dropout", partial(cases.dropout_case, shape), _LIBRARIES)


#: Rows that are there in float64 too, with as many bytes as that has.
_ALSO_FLOAT64 = (
    "gemm_1024",
    "conv2d_p5_layer2",
    "max_pool2d_p5_layer1",
    "softmax_attention_forward",
    "activation_gelu_gpt_mlp_forward",
    "layer_norm_gpt_768_forward",
    "layer_norm_gpt_768_backward",
    "batch_norm_resnet_56_forward",
    "batch_norm_resnet_56_backward",
)


def _in_float64(row: KernelRow) -> KernelRow:
    make = row.make
    assert isinstance(make, partial)
    shape, *others = make.args
    return replace(row, make=partial(make.func, replace(shape, itemsize=8), *others))


def named() -> dict[str, KernelRow]:
    """Every row of a single kernel, by name."""
    found = dict([*_programs(), *_networks()])
    return found | {f"{name}_float64": _in_float64(found[name]) for name in _ALSO_FLOAT64}
