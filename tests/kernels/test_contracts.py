"""The checks that every operation makes, and what their refusals say."""

from __future__ import annotations

import numpy as np
import pytest

from rawgrad.kernels import _devices, _errors
from rawgrad.kernels._contracts import (
    check_integer,
    check_out,
    check_rank,
    check_shape,
    common_device,
    common_float,
    deliver,
    pair,
)
from rawgrad.kernels._devices import Device, device_named, device_of, is_array, register_device
from rawgrad.kernels._errors import ArgumentError, DeviceError, DtypeError, RawgradError, ShapeError
from rawgrad.kernels.gemm import gemm


class OtherArray(np.ndarray):
    """An array of a device that these tests register."""


@pytest.fixture
def other_device(monkeypatch):
    monkeypatch.setattr(_devices, "_by_name", dict(_devices._by_name))
    monkeypatch.setattr(_devices, "_by_type", dict(_devices._by_type))
    register_device(Device("other", OtherArray, np))


def test_every_error_is_ours_and_the_kind_a_caller_would_catch():
    kinds = {
        "ShapeError": ValueError,
        "DtypeError": TypeError,
        "DeviceError": ValueError,
        "ArgumentError": ValueError,
        "IndexRangeError": IndexError,
        "BackendError": RuntimeError,
        "LaunchError": RuntimeError,
        "DataError": ValueError,
        "CheckpointError": ValueError,
    }
    for name, builtin in kinds.items():
        assert issubclass(getattr(_errors, name), RawgradError)
        assert issubclass(getattr(_errors, name), builtin)


def test_an_error_names_its_layer():
    error = ShapeError("conv2d: x must be larger")
    assert str(error) == "conv2d: x must be larger"
    error.layer = "encoder.conv1"
    assert str(error) == "conv2d: x must be larger [in layer encoder.conv1]"


def test_devices():
    x = np.zeros(2)
    assert device_of(x).name == "cpu"
    assert device_named("cpu") is device_of(x)
    assert device_of(x).to_host(x) is x
    copy = device_of(x).from_host(x)
    assert copy is not x
    assert not np.shares_memory(copy, x)
    assert is_array(x)
    assert not any(is_array(v) for v in ([1.0], 1.0, np.float32(1), None))
    for name in ("tpu", None, []):
        with pytest.raises(DeviceError, match=r"device .* is not available here; available: 'cpu'"):
            device_named(name)
    with pytest.raises(DeviceError, match=r"expected an array of a known device, got builtins\.list"):
        device_of([1.0])


def test_common_device(other_device):
    x, other = np.zeros(3), np.zeros(3).view(OtherArray)
    assert common_device("op", x=x, bias=None) == "cpu"
    assert common_device("op", bias=None, x=other) == "other"
    with pytest.raises(DeviceError, match="op: all arguments must be on one device; x is on 'cpu', weight on 'other'"):
        common_device("op", x=x, bias=None, weight=other)
    with pytest.raises(DeviceError, match=r"op: weight: expected an array of a known device, got builtins\.list"):
        common_device("op", x=x, weight=[1.0])
    with pytest.raises(DeviceError, match=r"got numpy\.ma"):
        common_device("op", x=np.ma.zeros(3))
    with pytest.raises(ArgumentError, match="op: no array given"):
        common_device("op", x=None)


def test_more_elements_than_32_bits_count_are_refused():
    huge = np.broadcast_to(np.float32(0), (2**16, 2**15))  # 2**31 elements, 4 bytes
    with pytest.raises(ShapeError, match="gemm: a has 2147483648 elements; at most 2147483647 are supported"):
        gemm(huge, np.zeros((2**15, 1), np.float32))


def test_common_float():
    single, double = np.zeros(2, np.float32), np.zeros(2)
    assert common_float("op", x=single, bias=None) == np.float32
    assert common_float("op", x=double) == np.float64
    with pytest.raises(DtypeError, match="op: all arguments must have one dtype; x is float32, bias is float64"):
        common_float("op", x=single, bias=double)
    for wrong in ("float16", "int64", "complex64", "bool", ">f4"):
        with pytest.raises(DtypeError, match="op: x must be float32 or float64; got"):
            common_float("op", x=np.zeros(2, wrong))


def test_check_integer():
    check_integer("op", target=np.zeros(2, np.uint8), index=np.zeros(2, np.int64))
    for wrong in ("float32", "bool"):
        with pytest.raises(DtypeError, match=f"op: target must have an integer dtype; got {wrong}"):
            check_integer("op", target=np.zeros(2, wrong))


def test_check_rank_and_shape():
    x = np.zeros((2, 3))
    check_rank("op", "x", x, "N C")
    check_shape("op", "x", x, (2, 3))
    with pytest.raises(ShapeError, match=r"op: x must have 3 dimensions \(N, C, L\); got shape \(2, 3\)"):
        check_rank("op", "x", x, "N C L")
    with pytest.raises(ShapeError, match=r"op: x must have shape \(N, C\) = \(3, 2\); got \(2, 3\)"):
        check_shape("op", "x", x, (3, 2), "N C")
    with pytest.raises(ShapeError, match=r"op: x must have shape \(2,\); got \(2, 3\)"):
        check_shape("op", "x", x, (2,))


def test_check_out(other_device):
    x = np.zeros((4, 4), np.float32)
    good = np.zeros((2, 2), np.float32)
    check_out("op", None, (2, 2), x.dtype, "cpu", x)
    check_out("op", good, (2, 2), x.dtype, "cpu", x, None)
    with pytest.raises(ShapeError, match=r"op: out must have shape \(2, 2\); got \(4,\)"):
        check_out("op", np.zeros(4, np.float32), (2, 2), x.dtype, "cpu", x)
    with pytest.raises(DtypeError, match="op: out must be float32 like the result; got float64"):
        check_out("op", np.zeros((2, 2)), (2, 2), x.dtype, "cpu", x)
    with pytest.raises(DeviceError, match="op: out must be on 'cpu' like the inputs; it is on 'other'"):
        check_out("op", good.view(OtherArray), (2, 2), x.dtype, "cpu", x)
    with pytest.raises(ArgumentError, match="op: out overlaps an input in memory"):
        check_out("op", x[1:3, 1:3], (2, 2), x.dtype, "cpu", x)


def test_an_overlapping_out_is_refused_before_anything_is_written():
    a = np.arange(16.0).reshape(4, 4)
    before = a.copy()
    with pytest.raises(ArgumentError, match="gemm: out overlaps an input in memory"):
        gemm(a, np.eye(4), out=a.T)
    with pytest.raises(ArgumentError, match="gemm: out overlaps an input in memory"):
        gemm(np.eye(4), a[::-1], out=a)
    np.testing.assert_array_equal(a, before)


def test_deliver():
    result, out = np.ones(3), np.zeros(3)
    assert deliver(result, None) is result
    assert deliver(result, out) is out
    np.testing.assert_array_equal(out, 1.0)


def test_pair():
    assert pair("op", "stride", 2, 1) == (2, 2)
    assert pair("op", "stride", (np.int64(2), 3), 1) == (2, 3)
    assert pair("op", "stride", [2, 3], 1) == (2, 3)
    assert all(type(n) is int for n in pair("op", "stride", np.int32(2), 1))
    for wrong in (1.5, None, (1,), (1, 2, 3)):
        with pytest.raises(ArgumentError, match="op: stride must be an integer or a pair of integers; got"):
            pair("op", "stride", wrong, 1)
    for wrong in (0, -1, (1, 0), (1.0, 1), ("1", 1), True, (True, 1), "ab"):
        with pytest.raises(ArgumentError, match="op: stride must be integers of at least 1; got"):
            pair("op", "stride", wrong, 1)
