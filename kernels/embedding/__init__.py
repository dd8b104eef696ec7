"""Embedding: rows of a table, chosen by indices.

Legend: V rows (the vocabulary), D elements per row; w (V, D) the table; i (...) indices of any shape;
y (..., D); g = dL/dy.

Forward::

    y[..., :] = w[i[...], :]

Backward; rows that were chosen several times add up, in the order of the indices::

    dL/dw[v, :] = sum over all places with i = v of g[..., :],  0 for v = padding_idx

Source: Bengio et al., "A neural probabilistic language model", 2003.

Checks: ranks, shapes, dtypes; indices in [0, V), negative ones are refused.
Backends: ``numpy`` (reference.py), ``numba`` (numba_cpu.py), ``cuda`` and ``emulated`` (cuda.py, embedding.cu).
"""

from __future__ import annotations

from typing import Any

from .._contracts import check_integer, check_rank, check_shape, common_device, common_float
from .._dispatch import Operation
from .._errors import ArgumentError, IndexRangeError, ShapeError

_operation = Operation(__name__)


def range_error(operation: str, position: tuple[int, ...], index: int, rows: int) -> IndexRangeError:
    """What backends raise for the first index outside [0, rows)."""
    return IndexRangeError(f"{operation}: indices must be in [0, {rows}); got {index} at position {position}")


def embedding_forward(weight: Any, indices: Any) -> Any:
    """The rows of ``weight`` that ``indices`` choose.

    Args:
        weight: (V, D), float32 or float64.
        indices: any shape, any integer dtype, in [0, V).

    Returns:
        (..., D), the dtype of ``weight``.

    Raises:
        IndexRangeError: an index is out of range; the message names the first one and its position.
        ShapeError, DtypeError, DeviceError, BackendError.
    """
    device = common_device("embedding", weight=weight, indices=indices)
    common_float("embedding", weight=weight)
    check_integer("embedding", indices=indices)
    check_rank("embedding", "weight", weight, "V D")
    return _operation.run("embedding_forward", device, weight, indices)


def embedding_backward(grad: Any, indices: Any, num_embeddings: int, padding_idx: int | None = None) -> Any:
    """dL/dw of shape (num_embeddings, D) from ``grad`` = dL/dy (..., D).

    Args:
        grad: float32 or float64.
        indices: those of the forward pass.
        num_embeddings: V.
        padding_idx: the row whose gradient stays 0, in [-V, V), or None.
    """
    name = "embedding_backward"
    device = common_device(name, grad=grad, indices=indices)
    common_float(name, grad=grad)
    check_integer(name, indices=indices)
    if not grad.ndim:
        raise ShapeError(f"{name}: grad must have at least one dimension (..., D); got shape ()")
    check_shape(name, "grad", grad, (*indices.shape, grad.shape[-1]))
    if num_embeddings < 0:
        raise ArgumentError(f"{name}: num_embeddings must be at least 0; got {num_embeddings!r}")
    if padding_idx is not None:
        if not -num_embeddings <= padding_idx < num_embeddings:
            raise ArgumentError(
                f"{name}: padding_idx must be in [{-num_embeddings}, {num_embeddings}); got {padding_idx!r}"
            )
        padding_idx %= num_embeddings
    return _operation.run(name, device, grad, indices, num_embeddings, padding_idx)
