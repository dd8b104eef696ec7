"""The mean of each window.

Legend::

    N batch   C channels   H W input height, width   R S window height, width   P Q output height, width
    stride (sh, sw)   padding (ph, pw): zeros on both sides

Output size::

    P = (H + 2 ph - R) // sh + 1        Q likewise

or the division rounded up with ``ceil_mode``, less one if the last window would then start beyond
the input and the padding before it.

Forward, over the taps (r, s) that lie inside the input::

    y[n,c,p,q] = 1 / d[p,q] sum_{r,s} x[n,c, p sh + r - ph, q sw + s - pw]

where d counts the taps inside the input and, with ``count_include_pad``, those in its padding (not
those that hang over the padding in ``ceil_mode``); ``divisor_override`` replaces d.

Backward, with g = dL/dy: dL/dx[n,c,h,w] is the sum of g[n,c,p,q] / d[p,q] over the windows that hold (h, w).
The pass is linear and its adjoint is the forward pass.

Source: LeCun et al., "Gradient-based learning applied to document recognition", 1998; the rules for
sizes and divisors are torch's.

Backends: ``numpy`` (reference.py), ``numba`` (numba_cpu.py), ``cuda`` and ``emulated`` (cuda.py, avg_pool2d.cu).
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

from .._contracts import check_out, check_rank, check_shape, common_device, common_float, pair
from .._dispatch import Operation
from .._errors import ArgumentError
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
    count_include_pad: bool
    divisor_override: int | None

    @property
    def x_shape(self) -> tuple[int, int, int, int]:
        return self.N, self.C, self.H, self.W

    @property
    def y_shape(self) -> tuple[int, int, int, int]:
        return self.N, self.C, self.P, self.Q


def geometry(
    x_shape: tuple[int, ...],
    kernel_size: int | tuple[int, int],
    stride: int | tuple[int, int] | None = None,
    padding: int | tuple[int, int] = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Geometry:
    """Check the sizes of a pooling against each other and give them all, P and Q included.

    Raises:
        ShapeError: the window does not fit into the padded input.
        ArgumentError: an option is outside its domain.
    """
    kernel = pair("avg_pool2d", "kernel_size", kernel_size, 1)
    divisor = divisor_override
    if divisor is not None and (not isinstance(divisor, int) or isinstance(divisor, bool) or divisor == 0):
        raise ArgumentError(f"avg_pool2d: divisor_override must be an integer other than 0; got {divisor!r}")
    return _geometry(
        tuple(x_shape),
        kernel,
        kernel if stride is None else pair("avg_pool2d", "stride", stride, 1),
        pair("avg_pool2d", "padding", padding, 0),
        bool(ceil_mode),
        bool(count_include_pad),
        divisor_override,
    )


@lru_cache(maxsize=1024)
def _geometry(
    x_shape: tuple[int, int, int, int],
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
    ceil_mode: bool,
    count_include_pad: bool,
    divisor_override: int | None,
) -> Geometry:
    counts = window_counts("avg_pool2d", x_shape[2:], kernel, stride, padding, (1, 1), ceil_mode)
    return Geometry(*x_shape, *kernel, *counts, stride, padding, count_include_pad, divisor_override)


def avg_pool2d_forward(
    x: Any,
    kernel_size: int | tuple[int, int],
    *,
    stride: int | tuple[int, int] | None = None,
    padding: int | tuple[int, int] = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
    out: Any = None,
    version: str | None = None,
) -> Any:
    """The mean of each window of ``x``.

    Args:
        x: (N, C, H, W), float32 or float64, any strides.
        kernel_size, stride, padding: in elements; one integer or (vertical, horizontal); a stride
            of None is ``kernel_size``, the padding is at most half of it.
        ceil_mode: count a last window that hangs over the end of the input.
        count_include_pad: whether the zeros of the padding count as elements.
        divisor_override: divide by this integer instead of the number of elements.
        out: array of the result's shape and dtype to write into.
        version: the version of the kernel to run, by name.

    Returns:
        (N, C, P, Q), the dtype of ``x``.

    Raises:
        ShapeError, DtypeError, DeviceError, ArgumentError, BackendError.
    """
    device = common_device("avg_pool2d", x=x)
    dtype = common_float("avg_pool2d", x=x)
    check_rank("avg_pool2d", "x", x, "N C H W")
    g = geometry(x.shape, kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override)
    check_out("avg_pool2d", out, g.y_shape, dtype, device, x)
    return _operation.run("avg_pool2d_forward", device, x, g, out, version=version)


def avg_pool2d_backward(grad: Any, g: Geometry, *, out: Any = None, version: str | None = None) -> Any:
    """dL/dx of shape (N, C, H, W) from ``grad`` = dL/dy (N, C, P, Q).

    Args:
        g: the :func:`geometry` of the forward pass.
        out, version: as in :func:`avg_pool2d_forward`.
    """
    device = common_device("avg_pool2d_backward", grad=grad)
    dtype = common_float("avg_pool2d_backward", grad=grad)
    check_shape("avg_pool2d_backward", "grad", grad, g.y_shape, "N C P Q")
    check_out("avg_pool2d_backward", out, g.x_shape, dtype, device, grad)
    return _operation.run("avg_pool2d_backward", device, grad, g, out, version=version)
