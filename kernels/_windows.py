"""What max_pool2d and avg_pool2d share: the number of windows, and which inputs a tap meets."""

from __future__ import annotations

from collections.abc import Iterator

from ._errors import ArgumentError, ShapeError

Region = tuple[slice, slice]


def window_counts(
    operation: str,
    size: tuple[int, int],
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
    ceil_mode: bool,
) -> tuple[int, int]:
    """The output size (P, Q) for an input of ``size`` = (H, W), as in torch.

    In ``ceil_mode`` a last window that hangs over the end counts too, if it starts inside the input
    or the padding before it.

    Raises:
        ArgumentError: the padding exceeds half of the kernel.
        ShapeError: the input is empty or smaller than one window.
    """
    if any(p > k // 2 for p, k in zip(padding, kernel, strict=True)):
        raise ArgumentError(
            f"{operation}: padding must be at most half of kernel_size {kernel}, rounded down; got {padding}"
        )
    counts = []
    for n, k, s, p, d in zip(size, kernel, stride, padding, dilation, strict=True):
        room = n + 2 * p - d * (k - 1) - 1
        count = (room + (s - 1 if ceil_mode else 0)) // s + 1
        if ceil_mode and (count - 1) * s >= n + p:
            count -= 1
        counts.append(count if n else 0)
    P, Q = counts
    if P < 1 or Q < 1:
        raise ShapeError(
            f"{operation}: a window of {kernel[0]}x{kernel[1]} with dilation {dilation} does not fit into x of "
            f"{size[0]}x{size[1]} with padding {padding}"
        )
    return P, Q


def taps(
    size: tuple[int, int],
    counts: tuple[int, int],
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
) -> Iterator[tuple[int, Region, Region]]:
    """For each tap of the window that meets the input at all: (r S + s, windows, inputs).

    ``windows`` selects the outputs (p, q) whose tap (r, s) lies inside the input, ``inputs`` the
    elements (p sh + r dh - ph, q sw + s dw - pw) that it meets there; both have one shape.
    """
    for r in range(kernel[0]):
        vertical = _inside(r * dilation[0] - padding[0], stride[0], size[0], counts[0])
        for s in range(kernel[1]):
            horizontal = _inside(s * dilation[1] - padding[1], stride[1], size[1], counts[1])
            if vertical and horizontal:
                yield r * kernel[1] + s, (vertical[0], horizontal[0]), (vertical[1], horizontal[1])


def _inside(offset: int, stride: int, size: int, count: int) -> tuple[slice, slice] | None:
    """The windows i of ``count`` with 0 <= i stride + offset < size, and those positions."""
    first = max(0, -(offset // stride))  # the least i with i stride + offset >= 0
    last = min(count - 1, (size - 1 - offset) // stride)
    if last < first:
        return None
    return slice(first, last + 1), slice(first * stride + offset, last * stride + offset + 1, stride)
