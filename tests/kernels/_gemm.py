"""What the tests of gemm share: the definition, roundings, arrays that a version takes."""

from __future__ import annotations

import numpy as np
import pytest

from rawgrad.kernels._dtypes import HALVES
from rawgrad.kernels.activation import activation_backward
from rawgrad.kernels.dropout import dropout_forward
from rawgrad.kernels.gemm.cost import HALF_WAYS

DTYPES = [np.float32, np.float64]


def product(a, b, bias=None, transpose_a=False, transpose_b=False):
    """The definition: every element a sum of products, in the dtype of the arguments."""
    a = np.swapaxes(a, -1, -2) if transpose_a else a
    b = np.swapaxes(b, -1, -2) if transpose_b else b
    y = (a[..., :, :, None] * b[..., None, :, :]).sum(axis=-2, dtype=a.dtype)  # (..., M, K, N) summed over K
    return y if bias is None else y + bias


def magnitude(a, b, bias=None, *flags):
    return product(abs(a), abs(b), None if bias is None else abs(bias), *flags).astype(np.float64)


def activated(kind):
    from scipy import special

    functions = {
        "relu": lambda z: np.maximum(z, 0),
        "gelu": lambda z: z / 2 * (1 + special.erf(z / np.sqrt(z.dtype.type(2)))),
        "silu": lambda z: z * special.expit(z),
        "sigmoid": special.expit,
        "tanh": np.tanh,
    }
    return lambda *arguments: functions[kind](product(*arguments))


def random(shape, dtype=np.float32, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def fitting(version, *arrays):
    """``arrays`` of small integers in a dtype that the version takes: float16 where it is for halves alone."""
    return [array.astype(np.float16) if version in HALF_WAYS else array for array in arrays]


#: Dropout with a seed beyond 2**63 and an offset beyond 2**32: both halves of both count.
KEY = {"p": 0.3, "seed": 2**63 + 5}


OFFSET = np.array([2**33 + 3], np.uint64)


def ended(backend, y, dropout=True, gradient=None, saved=None):
    """What follows an activation, by the kernels that do one thing each; halves in float32, rounded once."""
    dtype = y.dtype
    y = y.astype(np.float32) if dtype in HALVES else y
    if dropout:
        y = backend.get(dropout_forward(backend.put(y), KEY["p"], KEY["seed"], backend.put(OFFSET)))
    if gradient is not None:
        y = backend.get(activation_backward(backend.put(y), backend.put(saved.astype(y.dtype)), gradient))
    return y.astype(dtype)


def rounded(x, bits):
    """``x`` to nearest with ``bits`` bits of fraction; ties go as they like: random numbers have none."""
    fraction, exponent = np.frexp(x.astype(np.float64))
    return np.ldexp(np.rint(fraction * 2 ** (bits + 1)) / 2 ** (bits + 1), exponent).astype(np.float32)


SPLITS = ["v9_bf16_split_64", "v9_bf16_split_128", "v15_float32_split_k"]


FLAGS = [(False, False), (True, False), (False, True), (True, True)]


def skip_where_numba_is(backend):
    if backend.name == "numba_cuda":
        pytest.skip("in Numba it is for float32 and float64")


def zeros(*shape, dtype=np.float32):
    return np.zeros(shape, dtype)


def slopes(grad, y, kind):
    """dL/d(the argument of the activation)."""
    if kind is None:
        return grad
    return {"relu": lambda: grad * (y > 0), "sigmoid": lambda: grad * y * (1 - y), "tanh": lambda: grad * (1 - y * y)}[
        kind
    ]()
