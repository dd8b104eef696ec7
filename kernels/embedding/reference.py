"""Embedding in NumPy."""

from __future__ import annotations

import numpy as np

from . import range_error


def _check_range(operation: str, indices: np.ndarray, rows: int) -> None:
    outside = (indices < 0) | (indices >= rows)
    if np.count_nonzero(outside):
        position = np.unravel_index(outside.argmax(), outside.shape)
        raise range_error(operation, tuple(map(int, position)), int(indices[position]), rows)


def embedding_forward(weight: np.ndarray, indices: np.ndarray) -> np.ndarray:
    _check_range("embedding", indices, len(weight))
    return weight.take(indices, axis=0)  # weight[indices] would be a view for a single index


def embedding_backward(
    grad: np.ndarray, indices: np.ndarray, num_embeddings: int, padding_idx: int | None
) -> np.ndarray:
    _check_range("embedding_backward", indices, num_embeddings)
    D = grad.shape[-1]
    dweight = np.zeros((num_embeddings, D), grad.dtype)
    if grad.size:
        flat = indices.reshape(-1)
        order = np.argsort(flat, kind="stable")
        chosen, first = np.unique(flat[order], return_index=True)
        with np.errstate(all="ignore"):
            dweight[chosen] = np.add.reduceat(grad.reshape(-1, D)[order], first, axis=0)
    if padding_idx is not None:
        dweight[padding_idx] = 0
    return dweight
