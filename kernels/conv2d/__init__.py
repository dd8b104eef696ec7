"""Two-dimensional convolution (cross-correlation, as in every deep-learning library).

Legend::

    N batch          C input channels    H W  input height, width
    G groups         K output channels   R S  filter height, width
                                         P Q  output height, width
    stride (sh, sw)  padding (ph, pw): zeros before, (ah, aw): zeros after, usually the same  dilation (dh, dw)

Output size::

    P = (H + ph + ah - dh (R - 1) - 1) // sh + 1        Q likewise

Forward, with x zero outside its bounds, and c running over the C/G channels of k's group::

    y[n,k,p,q] = b[k] + sum_{c,r,s} w[k,c,r,s] x[n,c, p sh + r dh - ph, q sw + s dw - pw]

Backward, with g = dL/dy::

    dL/dx[n,c,h,w]  = sum over k and all (p,r) with p sh + r dh - ph = h, (q,s) likewise
                      of w[k,c,r,s] g[n,k,p,q]
    dL/dw[k,c,r,s]  = sum_{n,p,q} g[n,k,p,q] x[n,c, p sh + r dh - ph, q sw + s dw - pw]
    dL/db[k]        = sum_{n,p,q} g[n,k,p,q]

All three passes are linear in each argument and each is a derivative of the others, so the set is
closed under differentiation.

Fused with the ReLU that usually follows, ``activation="relu"``: y becomes max(y, 0), and a backward pass that is given
this y takes for g the gradient in front of the ReLU::

    g[n,k,p,q] = 0 where y[n,k,p,q] <= 0, else dL/dy[n,k,p,q]

and with pooling too, its backward pass made of these and max_pool2d's::

    conv2d_relu_pool = max_pool2d(max(y, 0))

Source: Dumoulin and Visin, "A guide to convolution arithmetic for deep learning", 2016.

Backends: ``numpy`` (reference.py); ``numba`` (numba_cpu.py); ``cuda`` and ``emulated`` (cuda.py, conv2d*.cu);
``numba_cuda`` (numba_cuda.py, twins of some versions).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

from .._contracts import check_out, check_rank, check_shape, common_device, common_float, pair
from .._dispatch import Operation
from .._errors import ArgumentError, ShapeError
from ..max_pool2d import Geometry as PoolGeometry

_operation = Operation(__name__)

#: Kinds of :mod:`..activation` that may follow the convolution.
ACTIVATIONS = ("relu",)

Padding = int | tuple[int | tuple[int, int], int | tuple[int, int]]


class Geometry(NamedTuple):
    """All sizes of one convolution, in the letters of the legend; the padding after follows from P and Q."""

    N: int
    C: int
    H: int
    W: int
    K: int
    R: int
    S: int
    P: int
    Q: int
    G: int
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]

    @property
    def paddings(self) -> tuple[tuple[int, int], tuple[int, int]]:
        """The zeros (above, below) and (left, right) of the input that windows reach."""

        def sides(size: int, taps: int, count: int, stride: int, before: int, dilation: int) -> tuple[int, int]:
            return before, max((count - 1) * stride + dilation * (taps - 1) + 1 - size - before, 0)

        (sh, sw), (ph, pw), (dh, dw) = self.stride, self.padding, self.dilation
        return sides(self.H, self.R, self.P, sh, ph, dh), sides(self.W, self.S, self.Q, sw, pw, dw)

    @property
    def x_shape(self) -> tuple[int, int, int, int]:
        return self.N, self.C, self.H, self.W

    @property
    def weight_shape(self) -> tuple[int, int, int, int]:
        return self.K, self.C // self.G, self.R, self.S

    @property
    def y_shape(self) -> tuple[int, int, int, int]:
        return self.N, self.K, self.P, self.Q

    @property
    def operations(self) -> int:
        """Of each pass: a multiplication and an addition for each element of y and each tap that it has."""
        return 2 * self.N * self.K * self.P * self.Q * (self.C // self.G) * self.R * self.S


def geometry(
    x_shape: tuple[int, ...],
    weight_shape: tuple[int, ...],
    stride: int | tuple[int, int] = 1,
    padding: Padding = 0,
    dilation: int | tuple[int, int] = 1,
    groups: int = 1,
) -> Geometry:
    """Check the sizes of a convolution against each other and give them all, P and Q included.

    Args:
        padding: each of (vertical, horizontal) may be a pair (before, after).

    Raises:
        ShapeError: channels do not match, or the filter does not fit into the padded input.
        ArgumentError: an option is outside its domain.
    """
    stride = pair("conv2d", "stride", stride, 1)
    before, after = _sides(padding)
    dilation = pair("conv2d", "dilation", dilation, 1)
    if not isinstance(groups, int) or isinstance(groups, bool) or groups < 1:
        raise ArgumentError(f"conv2d: groups must be an integer of at least 1; got {groups!r}")
    return _geometry(tuple(x_shape), tuple(weight_shape), stride, before, after, dilation, groups)


def _sides(padding: Padding) -> tuple[tuple[int, int], tuple[int, int]]:
    """The padding (vertical, horizontal) before, and after."""
    try:
        if not isinstance(padding, int) and any(isinstance(axis, tuple | list) for axis in padding):
            both = [(axis, axis) if isinstance(axis, int) else axis for axis in padding]
            (above, below), (left, right) = (pair("conv2d", "padding", axis, 0) for axis in both)
            return (above, left), (below, right)
    except (TypeError, ValueError):
        pass  # neither; pair says what it must be
    same = pair("conv2d", "padding", padding, 0)  # type: ignore[arg-type]
    return same, same


@lru_cache(maxsize=1024)
def _geometry(
    x_shape: tuple[int, ...],
    weight_shape: tuple[int, ...],
    stride: tuple[int, int],
    padding: tuple[int, int],
    after: tuple[int, int],
    dilation: tuple[int, int],
    groups: int,
) -> Geometry:
    (N, C, H, W), (K, C_of_group, R, S) = x_shape, weight_shape
    if C % groups or K % groups:
        raise ShapeError(f"conv2d: groups={groups} must divide the {C} channels of x and the {K} filters of weight")
    if C_of_group != C // groups:
        fix = f"; this weight takes an x of {C_of_group * groups} channels" if C_of_group else ""
        raise ShapeError(
            f"conv2d: weight must have shape (K, C/groups, R, S) = ({K}, {C // groups}, {R}, {S}) to match x of shape "
            f"{x_shape} with groups={groups}; got {weight_shape}{fix}"
        )
    if R < 1 or S < 1:
        raise ShapeError(f"conv2d: weight must have a filter of at least 1x1; got shape {weight_shape}")
    P, Q = (
        (size + p + a - d * (taps - 1) - 1) // s + 1
        for size, p, a, d, taps, s in zip((H, W), padding, after, dilation, (R, S), stride, strict=True)
    )
    if P < 1 or Q < 1:
        raise ShapeError(
            f"conv2d: the filter {R}x{S} with dilation {dilation} does not fit into x of {H}x{W} with "
            f"padding {padding if padding == after else tuple(zip(padding, after, strict=True))}"
        )
    return Geometry(N, C, H, W, K, R, S, P, Q, groups, stride, padding, dilation)


def conv2d_forward(
    x: Any,
    weight: Any,
    bias: Any = None,
    *,
    stride: int | tuple[int, int] = 1,
    padding: Padding = 0,
    dilation: int | tuple[int, int] = 1,
    groups: int = 1,
    activation: str | None = None,
    out: Any = None,
    version: str | None = None,
) -> Any:
    """The convolution of ``x`` with ``weight``, plus ``bias``, through ``activation``.

    Args:
        x: (N, C, H, W), float32 or float64, any strides.  On a GPU, where a lower precision is allowed, channels-last
            arrays (in memory (N, H, W, C)) are taken as they lie.
        weight: (K, C/groups, R, S), the dtype of ``x``.
        bias: (K,) or None.
        stride, padding, dilation: in elements; one integer or (vertical, horizontal); each of the
            padding's may be a pair (before, after).
        activation: "relu" or None.
        out: array of the result's shape and dtype to write into.
        version: the version of the kernel to run, by name.

    Returns:
        (N, K, P, Q), the dtype of ``x``; channels-last where ``x`` was taken so, else C-contiguous.

    Raises:
        ShapeError, DtypeError, DeviceError, ArgumentError, BackendError.
    """
    device = common_device("conv2d", x=x, weight=weight, bias=bias)
    dtype = common_float("conv2d", x=x, weight=weight, bias=bias)
    check_rank("conv2d", "x", x, "N C H W")
    check_rank("conv2d", "weight", weight, "K C/groups R S")
    g = geometry(x.shape, weight.shape, stride, padding, dilation, groups)
    if bias is not None:
        check_shape("conv2d", "bias", bias, (g.K,), "K")
    if activation is not None and activation not in ACTIVATIONS:
        raise ArgumentError(f"conv2d: activation must be {' or '.join(ACTIVATIONS)} or None; got {activation!r}")
    check_out("conv2d", out, g.y_shape, dtype, device, x, weight, bias)
    return _operation.run("conv2d_forward", device, x, weight, bias, g, activation, out, version=version)


def conv2d_relu_pool_forward(
    x: Any, weight: Any, bias: Any, g: Geometry, p: PoolGeometry, *, version: str | None = None
) -> tuple[Any, Any]:
    """The largest value of each window of max(conv2d(x, weight) + bias, 0), and where in its window it is.

    Args:
        x, weight, bias: as in :func:`conv2d_forward`.
        g: the :func:`geometry` of the convolution.
        p: :func:`.max_pool2d.geometry` of the pooling, for an input of ``g.y_shape``.
        version: as in :func:`conv2d_forward`.

    Returns:
        y (N, K, p.P, p.Q), the dtype of ``x``, and codes of that shape, as ``max_pool2d_forward`` gives.
    """
    device = common_device("conv2d_relu_pool", x=x, weight=weight, bias=bias)
    common_float("conv2d_relu_pool", x=x, weight=weight, bias=bias)
    check_shape("conv2d_relu_pool", "x", x, g.x_shape, "N C H W")
    check_shape("conv2d_relu_pool", "weight", weight, g.weight_shape, "K C/groups R S")
    if bias is not None:
        check_shape("conv2d_relu_pool", "bias", bias, (g.K,), "K")
    if p.x_shape != g.y_shape:
        raise ShapeError(f"conv2d_relu_pool: p must pool the convolution's {g.y_shape}; it is of {p.x_shape}")
    return _operation.run("conv2d_relu_pool_forward", device, x, weight, bias, g, p, version=version)


def conv2d_backward_input(
    grad: Any, weight: Any, g: Geometry, *, y: Any = None, out: Any = None, version: str | None = None
) -> Any:
    """dL/dx of shape (N, C, H, W) from ``grad`` = dL/dy (N, K, P, Q) and ``weight`` (K, C/G, R, S).

    Args:
        g: the :func:`geometry` of the forward pass.
        y: what the forward pass returned, if with ``activation="relu"``.
        out, version: as in :func:`conv2d_forward`.
    """
    device = common_device("conv2d_backward_input", grad=grad, weight=weight, y=y)
    dtype = common_float("conv2d_backward_input", grad=grad, weight=weight, y=y)
    _check_gradient("conv2d_backward_input", grad, y, g.y_shape)
    check_shape("conv2d_backward_input", "weight", weight, g.weight_shape, "K C/groups R S")
    check_out("conv2d_backward_input", out, g.x_shape, dtype, device, grad, weight, y)
    return _operation.run("conv2d_backward_input", device, grad, weight, g, y, out, version=version)


def conv2d_backward_weight(
    x: Any, grad: Any, g: Geometry, *, y: Any = None, out: Any = None, version: str | None = None
) -> Any:
    """dL/dw of shape (K, C/G, R, S) from ``x`` (N, C, H, W) and ``grad`` = dL/dy (N, K, P, Q).

    Args:
        g, y, out, version: as in :func:`conv2d_backward_input`.
    """
    device = common_device("conv2d_backward_weight", x=x, grad=grad, y=y)
    dtype = common_float("conv2d_backward_weight", x=x, grad=grad, y=y)
    check_shape("conv2d_backward_weight", "x", x, g.x_shape, "N C H W")
    _check_gradient("conv2d_backward_weight", grad, y, g.y_shape)
    check_out("conv2d_backward_weight", out, g.weight_shape, dtype, device, x, grad, y)
    return _operation.run("conv2d_backward_weight", device, x, grad, g, y, out, version=version)


def conv2d_backward_bias(grad: Any, *, y: Any = None, out: Any = None, version: str | None = None) -> Any:
    """dL/db of shape (K,) from ``grad`` = dL/dy (N, K, P, Q): its sum over N, P and Q.

    Args:
        y, out, version: as in :func:`conv2d_backward_input`.
    """
    device = common_device("conv2d_backward_bias", grad=grad, y=y)
    dtype = common_float("conv2d_backward_bias", grad=grad, y=y)
    check_rank("conv2d_backward_bias", "grad", grad, "N K P Q")
    _check_gradient("conv2d_backward_bias", grad, y, grad.shape)
    check_out("conv2d_backward_bias", out, (grad.shape[1],), dtype, device, grad, y)
    return _operation.run("conv2d_backward_bias", device, grad, y, out, version=version)


def conv2d_backward_parameters(
    x: Any, grad: Any, g: Geometry, *, y: Any = None, version: str | None = None
) -> tuple[Any, Any]:
    """Both of :func:`conv2d_backward_weight` and :func:`conv2d_backward_bias`, where a backend can by one reading.

    Args:
        x, grad, g, y: as in :func:`conv2d_backward_weight`.
        version: one of that function's.
    """
    device = common_device("conv2d_backward_parameters", x=x, grad=grad, y=y)
    common_float("conv2d_backward_parameters", x=x, grad=grad, y=y)
    check_shape("conv2d_backward_parameters", "x", x, g.x_shape, "N C H W")
    _check_gradient("conv2d_backward_parameters", grad, y, g.y_shape)
    return _operation.run("conv2d_backward_parameters", device, x, grad, g, y, version=version)


def operations(function: str, arguments: tuple[Any, ...]) -> int:
    """Operations of the products in a call of ``function``, whose ``arguments`` are as backends get them."""
    return sum(g.operations for g in arguments if isinstance(g, Geometry))


def one_after_the_other(weight: Callable[..., Any], bias: Callable[..., Any]) -> Callable[..., tuple[Any, Any]]:
    """``conv2d_backward_parameters`` of a backend that computes the two gradients by two kernels."""

    def conv2d_backward_parameters(x: Any, grad: Any, g: Geometry, y: Any) -> tuple[Any, Any]:
        return weight(x, grad, g, y, None), bias(grad, y, None)

    return conv2d_backward_parameters


def _check_gradient(operation: str, grad: Any, y: Any, shape: tuple[int, ...]) -> None:
    check_shape(operation, "grad", grad, shape, "N K P Q")
    if y is not None:
        check_shape(operation, "y", y, shape, "N K P Q")
