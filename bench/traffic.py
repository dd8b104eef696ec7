"""How many bytes each CUDA kernel moves, counted on the emulator, beside the least that it could move.

The floor of a piece of work is every input read once and every output written once.  The emulator counts
what the threads ask of global memory; a GPU's caches serve part of it, so the truth lies between the
distinct bytes and the asked ones.  Neither depends on the machine, so the table is the same everywhere.

``python -m rawgrad.bench.traffic docs/traffic.md`` writes the table.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..kernels import (
    activation,
    adagrad,
    adam,
    avg_pool2d,
    batch_norm,
    conv2d,
    dropout,
    embedding,
    gemm,
    group_norm,
    layer_norm,
    max_pool2d,
    rmsprop,
    sgd,
    softmax,
    softmax_cross_entropy,
)
from ..kernels._devices import device_named
from ..kernels._dispatch import BACKENDS, backend, precision
from ..kernels._dtypes import BFLOAT16, is_half
from ..kernels._layout import is_channels_last

Call = Callable[..., Any]


@dataclass(frozen=True)
class Case:
    """One function of an operation at one shape.

    Attributes:
        operation: the folder in ``kernels/``.
        function: what is called.
        shape: in words.
        call: takes the device arrays of ``arrays``; gives an array, a tuple of arrays, or None.
        arrays: host arrays, lists of them allowed.
        in_place: bytes that are written into the arrays given.
    """

    operation: str
    function: str
    shape: str
    call: Call
    arrays: tuple[Any, ...]
    in_place: int = 0

    def halves(self) -> bool:
        """Whether the arrays are of float16 or bfloat16."""
        return any(is_half(array.dtype) for array in _flat(self.arrays))

    def channels_last(self) -> bool:
        """Whether an array is."""
        return any(array.ndim == 4 and is_channels_last(array) for array in _flat(self.arrays))


@dataclass(frozen=True)
class Row:
    """What one version of a case moved, in bytes."""

    case: Case
    version: str
    launches: int
    floor: int
    asked: int
    distinct: int
    shared: int


def _flat(arrays: Any) -> Iterator[Any]:
    for array in arrays:
        if isinstance(array, list | tuple):
            yield from _flat(array)
        elif array is not None:
            yield array


def cases() -> list[Case]:
    """Every kernel once, at shapes that fill a few blocks."""
    random = np.random.default_rng(0)

    def normal(*shape: int) -> np.ndarray:
        return random.standard_normal(shape, dtype=np.float32)

    x, weight, bias, grad = normal(4, 20, 14, 14), normal(20, 20, 5, 5), normal(20), normal(4, 20, 14, 14)
    g = conv2d.geometry(x.shape, weight.shape, padding=2)
    conv = "20→20, 5×5 on 14×14, batch 4"
    image, pooled = normal(4, 20, 28, 28), normal(4, 20, 14, 14)
    halves = max_pool2d.geometry(image.shape, 2)
    means = avg_pool2d.geometry(image.shape, 2)
    pool = "2×2 on (4, 20, 28, 28)"
    codes = random.integers(0, 4, pooled.shape).astype(np.uint8)
    logits, labels = normal(512, 10), random.integers(0, 10, 512)
    long_logits, long_labels = normal(8, 4096), random.integers(0, 4096, 8)
    plane = normal(64, 1024)
    table, tokens = normal(512, 64), random.integers(0, 512, 1024)
    chosen = normal(1024, 64)
    channel = [normal(20) for _ in range(2)]
    statistics = [np.zeros(20, np.float32), np.ones(20, np.float32)]
    row = [normal(1024) for _ in range(2)]
    row_statistics = [np.zeros(64, np.float32), np.ones(64, np.float32)]
    group_statistics = [np.zeros((4, 2), np.float32), np.ones((4, 2), np.float32)]
    tensors = [(20, 1, 5, 5), (20,), (20, 20, 5, 5), (20,), (100, 980), (100,), (10, 100), (10,)]
    many = [[normal(*shape) for shape in tensors] for _ in range(2)]
    positive = [[np.abs(normal(*shape)) for shape in tensors] for _ in range(2)]
    total = sum(a.nbytes for a in many[0])
    rate, step, offset = np.array([0.01]), np.array([3]), np.array([0], np.uint64)
    steps = "8 tensors of P5"

    def pick(a: int, b: int, c: int) -> str:
        return f"({a}, {c}) @ ({c}, {b})"

    a, b = normal(128, 96), normal(96, 160)
    found = [
        Case("gemm", "gemm", pick(128, 160, 96), lambda a, b: gemm.gemm(a, b), (a, b)),
        Case(
            "gemm",
            "gemm",
            f"{pick(128, 160, 96)}, bfloat16",
            lambda a, b: gemm.gemm(a, b),
            (a.astype(BFLOAT16), b.astype(BFLOAT16)),
        ),
        Case(
            "conv2d",
            "conv2d_forward",
            conv,
            lambda x, w, b: conv2d.conv2d_forward(x, w, b, padding=2),
            (x, weight, bias),
        ),
        Case(
            "conv2d",
            "conv2d_backward_input",
            conv,
            lambda g_, w: conv2d.conv2d_backward_input(g_, w, g),
            (grad, weight),
        ),
        Case(
            "conv2d", "conv2d_backward_weight", conv, lambda x, g_: conv2d.conv2d_backward_weight(x, g_, g), (x, grad)
        ),
        Case("conv2d", "conv2d_backward_bias", conv, conv2d.conv2d_backward_bias, (grad,)),
        Case(
            "conv2d",
            "conv2d_forward",
            f"{conv}, channels last",
            lambda x, w, b: conv2d.conv2d_forward(x, w, b, padding=2),
            (_lasting(x), weight, bias),
        ),
        Case(
            "conv2d",
            "conv2d_backward_input",
            f"{conv}, channels last",
            lambda g_, w: conv2d.conv2d_backward_input(g_, w, g),
            (_lasting(grad), weight),
        ),
        Case(
            "conv2d",
            "conv2d_backward_weight",
            f"{conv}, channels last",
            lambda x, g_: conv2d.conv2d_backward_weight(x, g_, g),
            (_lasting(x), _lasting(grad)),
        ),
        Case(
            "conv2d",
            "conv2d_backward_bias",
            f"{conv}, channels last, tf32",
            _bias_in_tf32,
            (_lasting(grad),),
        ),
        Case("max_pool2d", "max_pool2d_forward", pool, lambda x: max_pool2d.max_pool2d_forward(x, 2), (image,)),
        Case(
            "max_pool2d",
            "max_pool2d_backward",
            pool,
            lambda g_, c: max_pool2d.max_pool2d_backward(g_, c, halves),
            (pooled, codes),
        ),
        Case("avg_pool2d", "avg_pool2d_forward", pool, lambda x: avg_pool2d.avg_pool2d_forward(x, 2), (image,)),
        Case(
            "avg_pool2d", "avg_pool2d_backward", pool, lambda g_: avg_pool2d.avg_pool2d_backward(g_, means), (pooled,)
        ),
        *(
            Case(
                "softmax_cross_entropy",
                "softmax_cross_entropy_forward",
                f"{z.shape}, labels{kind}",
                softmax_cross_entropy.softmax_cross_entropy_forward,
                (z, y),
            )
            for z, y, kind in (
                (logits, labels, ""),
                (long_logits, long_labels, ""),
                (long_logits.astype(BFLOAT16), long_labels, ", bfloat16"),
            )
        ),
        Case("softmax", "softmax_forward", "(64, 1024)", lambda x: softmax.softmax_forward(x, 1), (plane,)),
        Case(
            "softmax",
            "softmax_backward",
            "(64, 1024)",
            lambda g_, y: softmax.softmax_backward(g_, y, 1),
            (plane, plane),
        ),
        Case(
            "activation",
            "activation_forward",
            "(64, 1024) relu",
            lambda x: activation.activation_forward(x, "relu"),
            (plane,),
        ),
        Case(
            "activation",
            "activation_backward",
            "(64, 1024) relu",
            lambda g_, y: activation.activation_backward(g_, y, "relu"),
            (plane, plane),
        ),
        Case(
            "dropout",
            "dropout_forward",
            "(64, 1024)",
            lambda x, o: dropout.dropout_forward(x, 0.5, 1, o),
            (plane, offset),
        ),
        Case("embedding", "embedding_forward", "1024 of (512, 64)", embedding.embedding_forward, (table, tokens)),
        Case(
            "embedding",
            "embedding_backward",
            "1024 of (512, 64)",
            lambda g_, i: embedding.embedding_backward(g_, i, 512),
            (chosen, tokens),
        ),
        Case(
            "batch_norm",
            "batch_norm_forward",
            "(4, 20, 28, 28)",
            lambda x, w, b: batch_norm.batch_norm_forward(x, w, b, 1e-5),
            (image, *channel),
        ),
        Case(
            "batch_norm",
            "batch_norm_backward",
            "(4, 20, 28, 28)",
            batch_norm.batch_norm_backward,
            (image, image, channel[0], *statistics),
        ),
        Case(
            "batch_norm",
            "batch_norm_forward",
            "(1024, 64)",
            lambda x, w, b: batch_norm.batch_norm_forward(x, w, b, 1e-5),
            (chosen, row[0][:64], row[1][:64]),
        ),
        Case(
            "batch_norm",
            "batch_norm_backward",
            "(1024, 64)",
            batch_norm.batch_norm_backward,
            (chosen, chosen, row[0][:64], *row_statistics),
        ),
        Case(
            "layer_norm",
            "layer_norm_forward",
            "(64, 1024)",
            lambda x, w, b: layer_norm.layer_norm_forward(x, w, b, 1, 1e-5),
            (plane, *row),
        ),
        Case(
            "layer_norm",
            "layer_norm_backward",
            "(64, 1024)",
            lambda g_, x, w, m, r: layer_norm.layer_norm_backward(g_, x, w, m, r, 1),
            (plane, plane, row[0], *row_statistics),
        ),
        Case(
            "group_norm",
            "group_norm_forward",
            "(4, 20, 28, 28), 2 groups",
            lambda x, w, b: group_norm.group_norm_forward(x, 2, w, b, 1e-5),
            (image, *channel),
        ),
        Case(
            "group_norm",
            "group_norm_backward",
            "(4, 20, 28, 28), 2 groups",
            lambda g_, x, w, m, r: group_norm.group_norm_backward(g_, x, 2, w, m, r),
            (image, image, channel[0], *group_statistics),
        ),
        Case("sgd", "sgd_step", steps, lambda p, g_, *r: sgd.sgd_step(p, g_, None, *r), (*many, rate, step), total),
        Case(
            "adagrad",
            "adagrad_step",
            steps,
            adagrad.adagrad_step,
            (*many, positive[0], rate, step),
            2 * total,
        ),
        Case(
            "rmsprop",
            "rmsprop_step",
            steps,
            lambda p, g_, s, r: rmsprop.rmsprop_step(p, g_, s, None, None, r),
            (*many, positive[0], rate),
            2 * total,
        ),
        Case("adam", "adam_step", steps, adam.adam_step, (*many, *positive, rate, step), 3 * total),
    ]
    return found


def _lasting(array: np.ndarray) -> np.ndarray:
    """The same numbers, (N, H, W, C) in memory."""
    return array.transpose(0, 2, 3, 1).copy().transpose(0, 3, 1, 2)


def _bias_in_tf32(grad: Any) -> Any:
    """It has one version, and a kernel of its own where a lower precision is allowed."""
    with precision("tf32"):
        return conv2d.conv2d_backward_bias(grad)


def measure(case: Case) -> list[Row]:
    """The rows of a case: the default, and each version; of channels-last arrays those that take them uncopied."""
    from ..kernels._cuda.table import versions_of
    from ..kernels._emulator.runtime import record_launches

    lasting = case.channels_last()
    names = versions_of(case.operation, case.function, halves=case.halves())
    versions = [name for name in names if not _same_as_another(name) and ("channels_last" in name) == lasting]
    rows = []
    for version in versions if lasting and versions else (None, *versions):
        pins = {case.operation: version} if version else {}
        with backend("emulated", **pins):
            device = device_named("cuda")
            given = [_put(array, device) for array in case.arrays]
            with record_launches() as records:
                results = case.call(*given)
        made = _flat(results if isinstance(results, tuple) else (results,))
        floor = sum(a.nbytes for a in _flat(case.arrays)) + sum(a.nbytes for a in made) + case.in_place
        traffic = [record.traffic for record in records]
        rows.append(
            Row(
                case,
                version or "default",
                len(records),
                floor,
                sum(t.global_read + t.global_written for t in traffic),
                sum(t.distinct_read + t.distinct_written for t in traffic),
                sum(t.shared_read + t.shared_written for t in traffic),
            )
        )
    return rows


def _same_as_another(version: str) -> bool:
    """Versions for fp16 move what those for bf16 do, and where rounding comes last, that is what tf32 does."""
    return version.endswith("_fp16") or version in ("v4_tensor_core_bf16", "v6_channels_last_bf16")


def _put(array: Any, device: Any) -> Any:
    return [device.from_host(a) for a in array] if isinstance(array, list) else device.from_host(array)


def table(rows: Sequence[Row]) -> str:
    """The rows in Markdown."""
    lines = [
        "# Bytes that the CUDA kernels move",
        "",
        f"Written by `python -m rawgrad.bench.traffic docs/traffic.md`, which runs every kernel on the emulator "
        f"(backend `emulated`: {BACKENDS['emulated'].summary}) and counts. float32 unless it says otherwise.",
        "",
        "- **floor**: every input read once, every output written once.",
        "- **distinct**: bytes of global memory that were touched at all, per launch; more than the floor where a",
        "  version writes partial results and reads them again, less where it need not touch all of an input.",
        "- **asked**: what the threads asked of global memory together; caches serve part of the difference.",
        "- **shared**: what they moved to and from shared memory.",
        "",
        "| function | shape | version | launches | floor KiB | distinct / floor | asked / floor | shared / floor |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        ratios = " | ".join(f"{part / row.floor:.2f}" for part in (row.distinct, row.asked, row.shared))
        case, floor = row.case, f"{row.floor / 1024:.1f}"
        lines.append(f"| `{case.function}` | {case.shape} | {row.version} | {row.launches} | {floor} | {ratios} |")
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str]) -> int:
    """Write the table to the file named."""
    if len(arguments) != 1:
        print("usage: python -m rawgrad.bench.traffic FILE.md", file=sys.stderr)
        return 2
    rows = [row for case in cases() for row in measure(case)]
    Path(arguments[0]).write_text(table(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
