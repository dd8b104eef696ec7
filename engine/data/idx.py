"""IDX, the file format of MNIST: a big-endian header, then a big-endian array.

Layout, by byte offset::

    0  two zero bytes
    2  element type: 08 uint8, 09 int8, 0B int16, 0C int32, 0D float32, 0E float64
    3  number of dimensions D
    4  D sizes, each an unsigned 32-bit integer
       then the elements in C order, and nothing after them

The header is not believed: what it promises is held against the size of the file and against a cap
before memory is taken, and a gzipped file is unpacked no further than one byte past the promise.

Source: Y. LeCun, C. Cortes and C. Burges, "The MNIST database of handwritten digits", 1998.
"""

from __future__ import annotations

import gzip
import math
import os
import struct
import zlib
from pathlib import Path
from typing import BinaryIO

import numpy as np

from ...kernels._errors import DataError

#: The largest array, in bytes, that is read unless a caller allows more.
MAX_BYTES = 2**30
#: What reading a damaged gzip stream raises.
GZIP_ERRORS = (EOFError, gzip.BadGzipFile, zlib.error)

_DTYPES = {0x08: "u1", 0x09: "i1", 0x0B: "i2", 0x0C: "i4", 0x0D: "f4", 0x0E: "f8"}
_CHUNK = 2**20
#: Deflate cannot unpack a byte to more than this (zlib's documentation: 1032 to 1).
_DEFLATE_LIMIT = 1040


def read_idx(path: str | os.PathLike[str], *, max_bytes: int = MAX_BYTES) -> np.ndarray:
    """The array in the IDX file ``path``, gzipped or not (told by its first bytes, not its name).

    Args:
        path: the file.
        max_bytes: the largest array, in bytes, to accept.

    Returns:
        An array of the file's shape and element type, in the machine's byte order.

    Raises:
        DataError: the file cannot be read, is damaged or truncated, has bytes after its array, or
            promises more than ``max_bytes``.  The message gives the offset in the unpacked file.
    """
    path = Path(path)
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            packed = file.read(2) == b"\x1f\x8b"
            file.seek(0)
            if packed:
                with gzip.GzipFile(fileobj=file) as stream:
                    return _read(stream, path, max_bytes, None, size * _DEFLATE_LIMIT)
            return _read(file, path, max_bytes, size, size)
    except OSError as error:
        raise DataError(f"read_idx: {path} cannot be read: {error.strerror or error}") from error


def _read(stream: BinaryIO | gzip.GzipFile, path: Path, max_bytes: int, exact: int | None, most: int) -> np.ndarray:
    """Parse ``stream``, which holds ``exact`` bytes if that is known, and never more than ``most``."""

    def fail(offset: int, expected: str, came: str) -> DataError:
        return DataError(f"read_idx: {path}, byte {offset}: expected {expected}; got {came}")

    def read(offset: int, count: int, what: str) -> bytearray:
        data = bytearray()  # grows with what is really there
        while len(data) < count:
            try:
                chunk = stream.read(min(_CHUNK, count - len(data)))
            except GZIP_ERRORS as error:
                raise fail(offset + len(data), f"{what} in a sound gzip stream", str(error)) from error
            if not chunk:
                raise fail(offset + len(data), f"{count - len(data)} more bytes of {what}", "the end of the file")
            data += chunk
        return data

    magic = read(0, 4, "magic number")
    if magic[:2] != b"\0\0":
        raise fail(0, "two zero bytes", f"0x{magic[:2].hex()}")
    if magic[2] not in _DTYPES:
        raise fail(2, "an element type of 08, 09, 0B, 0C, 0D or 0E", f"{magic[2]:02X}")
    if not 1 <= magic[3] <= 32:
        raise fail(3, "1 to 32 dimensions", str(magic[3]))
    dtype = np.dtype(">" + _DTYPES[magic[2]])
    header = 4 + 4 * magic[3]
    shape = struct.unpack(f">{magic[3]}I", read(4, header - 4, "sizes"))

    promised = math.prod(shape) * dtype.itemsize
    # A size of zero must not hide absurd others: NumPy refuses those too.
    if math.prod(max(n, 1) for n in shape) * dtype.itemsize > max_bytes:
        raise fail(4, f"an array of at most max_bytes={max_bytes} bytes", f"shape {shape} of {dtype.newbyteorder('=')}")
    if header + promised > most or (exact is not None and exact != header + promised):
        came = f"a file of {exact} bytes" if exact is not None else f"a gzip file that can unpack to at most {most}"
        raise fail(4, f"{header + promised} bytes in all for shape {shape}", came)
    data = read(header, promised, "elements")
    try:
        more = stream.read(1)  # in a gzip stream, also checks the checksum
    except GZIP_ERRORS as error:
        raise fail(header + promised, "the end of a sound gzip stream", str(error)) from error
    if more:
        raise fail(header + promised, "the end of the file", "more bytes")
    return np.frombuffer(data, dtype).reshape(shape).astype(dtype.newbyteorder("="), copy=False)
