"""The largest value of each window.

Legend::

    N batch   C channels   H W input height, width   R S window height, width   P Q output height, width
    stride (sh, sw)   padding (ph, pw): -infinity on both sides   dilation (dh, dw)

Output size::

    P = (H + 2 ph - dh (R - 1) - 1) // sh + 1        Q likewise

or the division rounded up with ``ceil_mode``, less one if the last window would then start beyond
the input and the padding before it.

Forward, over the taps (r, s) that lie inside the input::

    y[n,c,p,q]     = max_{r,s} x[n,c, p sh + r dh - ph, q sw + s dw - pw]
    codes[n,c,p,q] = r S + s of that maximum; of equals the first

A NaN is larger than everything, and of several the first counts.  A window with no tap inside the
input (dilation makes it possible) gives -infinity, and its gradient goes nowhere.

Backward, with g = dL/dy: each g[n,c,p,q] is added to the dL/dx of the element that its code names.
The adjoint of that, ``max_pool2d_gather``, takes the elements that the codes name.

Source: Riesenhuber and Poggio, "Hierarchical models of object recognition in cortex", 1999; the
rules for sizes are torch's.

Backends: ``numpy`` (reference.py), ``numba`` (numba_cpu.py), ``cuda`` and ``emulated`` (cuda.py, max_pool2d.cu);
``numba_cuda`` (numba_cuda.py, twins of some versions).
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from .._contracts import check_out, check_rank, check_shape, common_device, common_float, pair
from .._dispatch import Operation
from .._errors import DtypeError
from .._windows import window_counts

_operation = Operation(__name__)


class Geometry(NamedTuple):
    """All sizes of one pooling, in the letters of the legend."""

    N: int
    C: int
    H: int
    W: int
    R: int
    S: int
    P: int
    Q: int
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]

    @property
    def x_shape(self) -> tuple[int, int, int, int]:
        return self.N, self.C, self.H, self.W

    @property
    def y_shape(self) -> tuple[int, int, int, int]:
        return self.N, self.C, self.P, self.Q

    @property
    def code_dtype(self) -> np.dtype:
        """uint8 where it can count the R S taps, else int32."""
        return np.dtype(np.uint8 if self.R * self.S <= 256 else np.int32)


def geometry(
    x_shape: tuple[int, ...],
    kernel_size: int | tuple[int, int],
    stride: int | tuple[int, int] | None = None,
    padding: int | tuple[int, int] = 0,
    dilation: int | tuple[int, int] = 1,
    ceil_mode: bool = False,
) -> Geometry:
    """Check the sizes of a pooling against each other and give them all, P and Q included.

    Raises:
        ShapeError: the window does not fit into the padded input.
        ArgumentError: an option is outside its domain.
    """
    kernel = pair("max_pool2d", "kernel_size", kernel_size, 1)
    return _geometry(
        tuple(x_shape),
        kernel,
        kernel if stride is None else pair("max_pool2d", "stride", stride, 1),
        pair("max_pool2d", "padding", padding, 0),
        pair("max_pool2d", "dilation", dilation, 1),
        bool(ceil_mode),
    )


@lru_cache(maxsize=1024)
def _geometry(
    x_shape: tuple[int, int, int, int],
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
    ceil_mode: bool,
) -> Geometry:
    counts = window_counts("max_pool2d", x_shape[2:], kernel, stride, padding, dilation, ceil_mode)
    return Geometry(*x_shape, *kernel, *counts, stride, padding, dilation)


def max_pool2d_forward(
    x: Any,
    kernel_size: int | tuple[int, int],
    *,
    stride: int | tuple[int, int] | None = None,
    padding: int | tuple[int, int] = 0,
    dilation: int | tuple[int, int] = 1,
    ceil_mode: bool = False,
    out: Any = None,
    version: str | None = None,
) -> tuple[Any, Any]:
    """The largest value of each window of ``x``, and where in its window it is.

    Args:
        x: (N, C, H, W), float32 or float64, any strides.
        kernel_size, stride, padding, dilation: in elements; one integer or (vertical, horizontal);
            a stride of None is ``kernel_size``, the padding is at most half of it.
        ceil_mode: count a last window that hangs over the end of the input.
        out: array of y's shape and dtype to write into.
        version: the version of the kernel to run, by name.

    Returns:
        y (N, C, P, Q), the dtype of ``x``, and codes (N, C, P, Q), uint8 if R S <= 256 else int32.

    Raises:
        ShapeError, DtypeError, DeviceError, ArgumentError, BackendError.
    """
    device = common_device("max_pool2d", x=x)
    dtype = common_float("max_pool2d", x=x)
    check_rank("max_pool2d", "x", x, "N C H W")
    g = geometry(x.shape, kernel_size, stride, padding, dilation, ceil_mode)
    check_out("max_pool2d", out, g.y_shape, dtype, device, x)
    return _operation.run("max_pool2d_forward", device, x, g, out, version=version)


def max_pool2d_backward(grad: Any, codes: Any, g: Geometry, *, out: Any = None, version: str | None = None) -> Any:
    """dL/dx of shape (N, C, H, W) from ``grad`` = dL/dy (N, C, P, Q) and the forward pass' ``codes``.

    Args:
        g: the :func:`geometry` of the forward pass.
        out, version: as in :func:`max_pool2d_forward`.
    """
    device = common_device("max_pool2d_backward", grad=grad, codes=codes)
    dtype = common_float("max_pool2d_backward", grad=grad)
    check_shape("max_pool2d_backward", "grad", grad, g.y_shape, "N C P Q")
    _check_codes("max_pool2d_backward", codes, g)
    check_out("max_pool2d_backward", out, g.x_shape, dtype, device, grad, codes)
    return _operation.run("max_pool2d_backward", device, grad, codes, g, out, version=version)


def max_pool2d_gather(x: Any, codes: Any, g: Geometry, *, out: Any = None, version: str | None = None) -> Any:
    """The elements of ``x`` (N, C, H, W) that ``codes`` name, (N, C, P, Q): the adjoint of the backward pass.

    Args:
        g: the :func:`geometry` of the forward pass.
        out, version: as in :func:`max_pool2d_forward`.
    """
    device = common_device("max_pool2d_gather", x=x, codes=codes)
    dtype = common_float("max_pool2d_gather", x=x)
    check_shape("max_pool2d_gather", "x", x, g.x_shape, "N C H W")
    _check_codes("max_pool2d_gather", codes, g)
    check_out("max_pool2d_gather", out, g.y_shape, dtype, device, x, codes)
    return _operation.run("max_pool2d_gather", device, x, codes, g, out, version=version)


def _check_codes(operation: str, codes: Any, g: Geometry) -> None:
    check_shape(operation, "codes", codes, g.y_shape, "N C P Q")
    if codes.dtype != g.code_dtype:
        raise DtypeError(f"{operation}: codes must be {g.code_dtype} for a window of {g.R}x{g.S}; got {codes.dtype}")
