"""What max_pool2d and avg_pool2d share: the number of windows, which inputs a tap meets, tiles of CUDA kernels."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from ._contracts import MAX_ELEMENTS
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


#: CUDA kernels count elements of a row, a column and a window by 32-bit sums that stay below twice this.
MAX_EXTENT = 2**30


def check_32_bits(operation: str, g: Any) -> None:
    """Refuse a geometry whose positions do not fit into 32 bits.

    Raises:
        ShapeError: the output has 2^31 elements or more, or a window, with its stride, reaches beyond 2^30.
    """
    if math.prod(g.y_shape) > MAX_ELEMENTS:
        raise ShapeError(f"{operation}: y of shape {g.y_shape} has more than {MAX_ELEMENTS} elements")
    dilation = getattr(g, "dilation", (1, 1))
    axes = zip((g.H, g.W), (g.P, g.Q), (g.R, g.S), g.stride, g.padding, dilation, strict=True)
    reach = [max(size + padding, (n - 1) * s + k * d) + s for size, n, k, s, padding, d in axes]
    if max(*reach, g.R * g.S * max(dilation)) > MAX_EXTENT:
        raise ShapeError(
            f"{operation}: windows of {g.R}x{g.S} with stride {g.stride} over {g.H}x{g.W} reach beyond {MAX_EXTENT}"
        )


class Tile(NamedTuple):
    """What one block owns in a CUDA kernel that stages what its tile shares: neighbouring planes, rows, columns."""

    planes: int
    height: int
    width: int

    def blocks(self, planes: int, height: int, width: int) -> int:
        """How many such tiles cover so many planes of height x width."""
        return -(-planes // self.planes) * -(-height // self.height) * -(-width // self.width)


def staged_tile(
    planes: int,
    size: tuple[int, int],
    staged: tuple[Callable[[int], int], Callable[[int], int]],
    capacity: int,
    elements: int = 1024,
) -> Tile | None:
    """The tile of at most ``elements`` elements for a block that stages at most ``capacity`` others.

    Rows are long, up to 64 elements, so that neighbouring threads find neighbours in memory; then as many
    rows as fit, then, of small planes, several.  Tiles of a plane are about equally large.

    Args:
        planes, size: there are so many planes of height x width.
        staged: how many rows, and how many columns, a tile of a given height, and width, needs.
        capacity: how many elements can be staged.

    Returns:
        None if even a tile of one element needs more.
    """
    rows, columns = staged
    height, width = size
    widths = [w for w in range(1, min(width, 64) + 1) if rows(1) * columns(w) <= capacity]
    if not widths:
        return None
    w = _even(width, widths[-1])
    heights = [h for h in range(1, min(height, elements // w) + 1) if rows(h) * columns(w) <= capacity]
    h = _even(height, heights[-1])
    together = min(planes, capacity // (rows(h) * columns(w)), elements // (h * w)) if (h, w) == size else 1
    return Tile(max(together, 1), h, w)


def _even(total: int, at_most: int) -> int:
    """The size of parts of ``total`` that are about equal, none larger than ``at_most``, and as few as possible."""
    parts = -(-total // at_most)
    return -(-total // parts)
