"""IDX files: every element type, gzipped or not; damaged ones get a DataError and no memory."""

from __future__ import annotations

import gzip
import struct
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rawgrad.engine.data import read_idx
from rawgrad.kernels._errors import DataError

# Two rows of three, spelled out byte by byte.
HEADER = b"\0\0%c\x02" + b"\0\0\0\x02" + b"\0\0\0\x03"
HAND_WORKED = {
    "uint8": (HEADER % 0x08 + bytes([0, 1, 2, 127, 128, 255]), [[0, 1, 2], [127, 128, 255]]),
    "int8": (HEADER % 0x09 + bytes([0, 1, 2, 127, 128, 255]), [[0, 1, 2], [127, -128, -1]]),
    "int16": (HEADER % 0x0B + b"\0\x01\x01\0\xff\xff\x80\0\x7f\xff\0\0", [[1, 256, -1], [-32768, 32767, 0]]),
    "int32": (
        HEADER % 0x0C + b"\0\0\0\x01\0\x01\0\0\xff\xff\xff\xfe\x80\0\0\0\0\0\0\0\x7f\xff\xff\xff",
        [[1, 65536, -2], [-(2**31), 0, 2**31 - 1]],
    ),
    "float32": (
        HEADER % 0x0D + bytes.fromhex("3f800000 c0000000 00000000 7f800000 3e800000 bf000000"),
        [[1, -2, 0], [np.inf, 0.25, -0.5]],
    ),
    "float64": (
        HEADER % 0x0E
        + bytes.fromhex("3ff0000000000000 c000000000000000 0000000000000000")
        + bytes.fromhex("7ff0000000000000 3fd0000000000000 bfe0000000000000"),
        [[1, -2, 0], [np.inf, 0.25, -0.5]],
    ),
}
SOUND = HAND_WORKED["int16"][0]


def written(tmp_path, data, name="file"):
    path = tmp_path / name
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("dtype", HAND_WORKED)
def test_every_element_type(tmp_path, dtype, packed):
    data, expected = HAND_WORKED[dtype]
    array = read_idx(written(tmp_path, gzip.compress(data) if packed else data))
    assert array.dtype == np.dtype(dtype) and array.dtype.isnative
    assert array.tolist() == expected
    array[0, 0] = 5  # the result may be written to


@pytest.mark.parametrize("shape", [(0,), (1,), (4, 0, 2), (1, 1, 1, 1)])
def test_empty_and_size_one(tmp_path, shape):
    data = struct.pack(f">HBB{len(shape)}I", 0, 8, len(shape), *shape) + b"\x07" * int(np.prod(shape))
    array = read_idx(written(tmp_path, data))
    assert array.shape == shape and (array == 7).all()


@pytest.mark.parametrize(
    ("data", "offset", "words"),
    [
        (b"", 0, ["magic", "end of the file"]),
        (SOUND[:3], 3, ["magic", "end of the file"]),
        (b"\0\x01" + SOUND[2:], 0, ["two zero bytes", "0x0001"]),
        (b"\0\0\x0a" + SOUND[3:], 2, ["element type", "0A"]),
        (b"\0\0\x08\0", 3, ["dimensions", "0"]),
        (b"\0\0\x08\xff" + bytes(1020), 3, ["dimensions", "255"]),
        (SOUND[:9], 9, ["sizes", "end of the file"]),
        (SOUND[:-1], 4, ["24 bytes in all", "(2, 3)", "23 bytes"]),
        (SOUND + b"\0", 4, ["24 bytes in all", "25 bytes"]),
        # Sizes of zero do not excuse absurd ones.
        (b"\0\0\x08\x03" + b"\xff" * 8 + bytes(4), 4, ["at most max_bytes"]),
    ],
)
def test_damage_is_named(tmp_path, data, offset, words):
    path = written(tmp_path, data, "some-name")
    with pytest.raises(DataError, match=f"byte {offset}:") as caught:
        read_idx(path)
    assert str(path) in str(caught.value)
    assert all(word in str(caught.value) for word in words)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (gzip.compress(SOUND[:-1]), ["byte 23", "1 more bytes of elements"]),
        (gzip.compress(SOUND + b"\0"), ["byte 24", "more bytes"]),
        (gzip.compress(SOUND)[:-9], ["sound gzip stream"]),
        (gzip.compress(SOUND)[:-8] + b"\0\0\0\0" + gzip.compress(SOUND)[-4:], ["byte 24", "CRC"]),
        (gzip.compress(SOUND) + b"junk", ["byte 24", "sound gzip stream"]),
        (b"\x1f\x8b", ["sound gzip stream"]),
    ],
)
def test_damaged_gzip_is_named(tmp_path, data, words):
    with pytest.raises(DataError) as caught:
        read_idx(written(tmp_path, data))
    assert all(word in str(caught.value) for word in words)


def test_missing_file_and_folder(tmp_path):
    for path in (tmp_path / "nothing", tmp_path):
        with pytest.raises(DataError, match="cannot be read"):
            read_idx(path)


def peak_of(call):
    tracemalloc.start()
    try:
        with pytest.raises(DataError) as caught:
            call()
        return tracemalloc.get_traced_memory()[1], str(caught.value)
    finally:
        tracemalloc.stop()


LYING = struct.pack(">HBBII", 0, 8, 2, 20_000, 50_000)  # a billion bytes


@pytest.mark.parametrize("packed", [False, True])
def test_a_lying_header_takes_no_memory(tmp_path, packed):
    data = gzip.compress(LYING + b"\0" * 100) if packed else LYING + b"\0" * 100
    path = written(tmp_path, data)
    peak, message = peak_of(lambda: read_idx(path))
    assert peak < 2**20
    assert "1000000012 bytes in all" in message


def test_the_cap(tmp_path):
    path = written(tmp_path, gzip.compress(struct.pack(">HBBI", 0, 8, 1, 1000) + b"\0" * 1000))
    assert read_idx(path, max_bytes=1000).shape == (1000,)
    with pytest.raises(DataError, match="max_bytes=999 "):
        read_idx(path, max_bytes=999)


def test_a_gzip_bomb_is_unpacked_no_further_than_promised(tmp_path):
    path = written(tmp_path, gzip.compress(struct.pack(">HBBI", 0, 8, 1, 1000) + b"\0" * 200_000_000, 1))
    peak, message = peak_of(lambda: read_idx(path))
    assert peak < 4 * 2**20
    assert "byte 1008: expected the end of the file" in message


@settings(max_examples=150)
@given(data=st.data())
def test_fuzzed_files_only_raise_data_errors(tmp_path, data):
    sound, _ = HAND_WORKED[data.draw(st.sampled_from(sorted(HAND_WORKED)))]
    packed = data.draw(st.booleans())
    damaged = bytearray(gzip.compress(sound) if packed else sound)
    for _ in range(data.draw(st.integers(0, 3))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] ^= data.draw(st.integers(1, 255))
    damaged = damaged[: data.draw(st.integers(0, len(damaged)))]
    path = written(tmp_path, bytes(damaged))
    try:
        array = read_idx(path, max_bytes=2**20)
    except DataError:
        return
    assert array.nbytes <= 2**20
    # What was read writes back to the same file: nothing was lost, nothing made up.
    codes = {"u1": 8, "i1": 9, "i2": 11, "i4": 12, "f4": 13, "f8": 14}
    rebuilt = struct.pack(f">HBB{array.ndim}I", 0, codes[array.dtype.str[1:]], array.ndim, *array.shape)
    rebuilt += array.astype(array.dtype.newbyteorder(">")).tobytes()
    assert rebuilt == (gzip.decompress(bytes(damaged)) if damaged[:2] == b"\x1f\x8b" else bytes(damaged))
