"""Tensor maps for a GPU: encoded by the driver, which CuPy has loaded already."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Any

from .._errors import BackendError, LaunchError
from .._tensor_map import MAP_ALIGNMENT, MAP_BYTES, SWIZZLES

if TYPE_CHECKING:
    from .._tensor_map import TensorMap

#: CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_L2_PROMOTION_L2_128B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE.
_NO_INTERLEAVE, _PROMOTION, _ZEROS = 0, 2, 0


@cache
def _encoder() -> Callable[..., int]:
    try:
        encode: Any = ctypes.CDLL("libcuda.so.1").cuTensorMapEncodeTiled
    except (OSError, AttributeError) as error:
        raise BackendError(f"tensor maps need a driver of CUDA 12 or newer: {error}") from None
    pointer, number = ctypes.c_void_p, ctypes.c_int
    encode.argtypes = (pointer, number, ctypes.c_uint32, pointer, *[pointer] * 4, *[number] * 4)
    return encode


def encoded(tensor: TensorMap, address: int) -> bytes:
    """The driver's 128 bytes for ``tensor``, whose array begins at ``address``.

    Raises:
        LaunchError: the driver refuses it.
    """
    rank = tensor.array.ndim
    sizes = (ctypes.c_uint64 * rank)(*reversed(tensor.sizes))
    strides = (ctypes.c_uint64 * (rank - 1))(*tensor.strides())
    box = (ctypes.c_uint32 * rank)(*reversed(tensor.box))
    steps = (ctypes.c_uint32 * rank)(*[1] * rank)
    room = ctypes.create_string_buffer(MAP_BYTES + MAP_ALIGNMENT)
    begin = -ctypes.addressof(room) % MAP_ALIGNMENT
    status = _encoder()(
        *(ctypes.addressof(room) + begin, tensor.type_code(), rank, tensor.aligned(address)),
        *(sizes, strides, box, steps),
        *(_NO_INTERLEAVE, SWIZZLES[tensor.swizzle], _PROMOTION, _ZEROS),
    )
    if status:
        raise LaunchError(f"the driver refuses a tensor map (error {status}): sizes {tensor.sizes}, box {tensor.box}")
    return room.raw[begin : begin + MAP_BYTES]
