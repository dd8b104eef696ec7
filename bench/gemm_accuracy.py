"""The error of float32 matrix products against float64: plain sums, and sums on tensor cores of numbers in parts.

``python -m rawgrad.bench.gemm_accuracy`` prints the table of docs/kernels/gemm.md.  Two columns come from the kernels,
run on the emulator (backend ``emulated``).  It multiplies and adds in two roundings where a GPU does it in one, and
its tensor cores round where real ones cut off; so two more columns compute in NumPy what a GPU does of either kind.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import numpy as np

from ..kernels._devices import device_named
from ..kernels._dispatch import backend
from ..kernels.gemm import gemm

Product = Callable[[np.ndarray, np.ndarray], np.ndarray]
M, N = 32, 32


def normal(rng: np.random.Generator, K: int) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of the normal distribution."""
    return rng.standard_normal((M, K)), rng.standard_normal((K, N))


def positive(rng: np.random.Generator, K: int) -> tuple[np.ndarray, np.ndarray]:
    """Numbers between 0 and 1: sums grow and nothing cancels."""
    return rng.random((M, K)), rng.random((K, N))


def many_sizes(rng: np.random.Generator, K: int) -> tuple[np.ndarray, np.ndarray]:
    """Each number times a power of ten of its own, from -8 to 8."""
    a, b = normal(rng, K)
    return a * 10 ** rng.uniform(-8, 8, a.shape), b * 10 ** rng.uniform(-8, 8, b.shape)


def cancelling(rng: np.random.Generator, K: int) -> tuple[np.ndarray, np.ndarray]:
    """The second half of the sum is the first with the other sign, and a thousandth more."""
    a, b = normal(rng, K)
    half = K // 2
    a[:, half : 2 * half] = -a[:, :half] * 1.001
    b[half : 2 * half] = b[:half]
    return a, b


INPUTS = {"normal": normal, "0 to 1": positive, "10⁻⁸ to 10⁸": many_sizes, "cancelling": cancelling}


def of_version(version: str) -> Product:
    """The product by a version of the kernel, on the emulator."""

    def product(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        with backend("emulated"):
            device = device_named("cuda")
            return device.to_host(gemm(device.from_host(a), device.from_host(b), version=version))

    return product


def fused(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """One fused multiply-add after the other, as float32 units outside of the tensor cores do it."""
    y = np.zeros((a.shape[0], b.shape[1]), np.float32)
    for column, line in zip(a.T.astype(np.float64), b.astype(np.float64), strict=True):
        y = (np.multiply.outer(column, line) + y).astype(np.float32)
    return y


def parts(x: np.ndarray) -> list[np.ndarray]:
    """``x`` as a sum of three numbers in bf16."""
    found = []
    for _ in range(3):
        bits = x.view(np.uint32).astype(np.uint64)
        part = ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16 << 16).astype(np.uint32).view(np.float32)
        found.append(part)
        x = x - part
    return found


def cut_off(x: np.ndarray) -> np.ndarray:
    """float64 to float32, towards zero."""
    near = x.astype(np.float32)
    return np.where(np.abs(near) > np.abs(x), np.nextafter(near, np.float32(0)), near)


def split_and_cut_off(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """As v9 does it, with tensor cores that cut off after each multiplication of 16 by 16."""
    y = np.zeros((a.shape[0], b.shape[1]), np.float32)
    of_a, of_b = parts(a), parts(b)
    for k in range(0, a.shape[1], 16):
        step = np.zeros_like(y)
        for order in (2, 1, 0):
            for i in range(order + 1):
                left, right = of_a[i][:, k : k + 16], of_b[order - i][k : k + 16]
                step = cut_off(step + left.astype(np.float64) @ right.astype(np.float64))
        y = y + step
    return y


PRODUCTS: dict[str, Product] = {
    "v3_register_tile": of_version("v3_register_tile"),
    "fused": fused,
    "v9_bf16_split": of_version("v9_bf16_split_64"),
    "split, cut off": split_and_cut_off,
}


def errors(a: np.ndarray, b: np.ndarray) -> list[float]:
    """For each way the largest error, in units of 2⁻²⁴ times the sum of absolute products."""
    a, b = a.astype(np.float32), b.astype(np.float32)
    exact = a.astype(np.float64) @ b.astype(np.float64)
    unit = np.abs(a).astype(np.float64) @ np.abs(b).astype(np.float64) * 2.0**-24
    return [float(np.max(np.abs(product(a, b) - exact) / unit)) for product in PRODUCTS.values()]


def document() -> str:
    """The table, in Markdown."""
    rng = np.random.default_rng(0)
    text = f"| numbers | K | {' | '.join(PRODUCTS)} |\n|---|---:|{'---:|' * len(PRODUCTS)}\n"
    for name, inputs in INPUTS.items():
        for K in (16, 256, 4096):
            text += f"| {name} | {K} | {' | '.join(f'{error:.2f}' for error in errors(*inputs(rng, K)))} |\n"
    return text


if __name__ == "__main__":
    sys.stdout.write(document())
