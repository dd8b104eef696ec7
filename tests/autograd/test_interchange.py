"""Arrays of other libraries, in and out: DLPack and ``__cuda_array_interface__``.

There is no GPU here, so CuPy and the other library are stand-ins that implement the two protocols and
write down what was asked of them; the bytes are the host's.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import rawgrad as rg
from rawgrad.autograd import Tensor
from rawgrad.kernels import _devices
from rawgrad.kernels._devices import Device
from rawgrad.kernels._dispatch import BACKENDS, Choice, reset_choice, set_choice
from rawgrad.kernels._emulator.arrays import EmulatedArray
from rawgrad.kernels._emulator.module import ArrayModule
from rawgrad.kernels._errors import DeviceError, DtypeError, GradientError

CUDA, MANAGED, PINNED, METAL = (2, 0), (13, 0), (3, 0), (8, 0)


class CupyStandIn(EmulatedArray):
    """An array that answers the protocols as one of CuPy's does."""

    PLACE = "the stand-in for CuPy"

    def __dlpack__(self, **options: Any) -> Any:
        return "capsule", options

    def __dlpack_device__(self) -> Any:
        return CUDA

    @property
    def __cuda_array_interface__(self) -> Any:
        return {
            "shape": self.shape,
            "typestr": self.dtype.str,
            "data": (self.data.ptr, False),
            "version": 3,
            "stream": 7,
        }


class CupyModuleStandIn(ArrayModule):
    """Makes such arrays, also from what another library exports; writes down how it got them."""

    def __init__(self) -> None:
        super().__init__(CupyStandIn)
        self.taken: list[Any] = []

    def from_dlpack(self, array: Any) -> Any:
        self.taken.append(array.__dlpack__(stream=7))
        return self.array(array.host)

    def asarray(self, a: Any, dtype: Any = None) -> Any:
        if not isinstance(a, Exporter):
            return super().asarray(a, dtype)
        self.taken.append(a.__cuda_array_interface__)
        return self.array(a.host, dtype)


class Exporter:
    """An array of another library on a GPU."""

    def __init__(self, host: Any, device: tuple[int, int] = CUDA) -> None:
        self.host, self._device = np.asarray(host), device

    def __dlpack__(self, *, stream: Any = None, **options: Any) -> Any:
        return f"capsule for stream {stream}"

    def __dlpack_device__(self) -> Any:
        return self._device

    @property
    def __cuda_array_interface__(self) -> Any:
        return {"version": 3}


class PinnedExporter:
    """An array in memory of the host that the GPU can reach."""

    def __init__(self, host: np.ndarray) -> None:
        self._host = host

    def __dlpack__(self, **options: Any) -> Any:
        return self._host.__dlpack__()

    def __dlpack_device__(self) -> Any:
        return PINNED


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> Iterator[CupyModuleStandIn]:
    """The device "cuda" with the stand-in for CuPy behind it."""
    stand_in = CupyModuleStandIn()
    device = Device("cuda", CupyStandIn, stand_in, "a stand-in")
    _devices.register_device(device)
    monkeypatch.setattr(_devices, "_cuda", lambda: device)
    yield stand_in
    del _devices._by_type[CupyStandIn]


@pytest.fixture
def simulated() -> Iterator[None]:
    token = set_choice(Choice().with_backend(BACKENDS["emulated"], {}))
    yield
    reset_choice(token)


def test_dlpack_out_hands_the_consumers_stream_on(module: CupyModuleStandIn) -> None:
    x = rg.tensor([1.0, 2.0], device="cuda")
    assert x.__dlpack__(stream=5, max_version=(1, 0)) == ("capsule", {"stream": 5, "max_version": (1, 0)})
    assert x.__dlpack__() == ("capsule", {"stream": None})
    assert x.__dlpack_device__() == CUDA
    with pytest.raises(GradientError, match="use tensor.detach"):
        x.requires_grad_().__dlpack__()


def test_dlpack_in_leaves_the_streams_to_cupy(module: CupyModuleStandIn) -> None:
    for kind in (CUDA, MANAGED):
        x = rg.from_dlpack(Exporter([1.0, 2.0], kind))
        assert x.device == "cuda" and type(x.array) is CupyStandIn and x.tolist() == [1, 2]
    assert module.taken == ["capsule for stream 7"] * 2


def test_dlpack_in_from_the_host() -> None:
    host = np.arange(3.0)
    for source in (host, PinnedExporter(host)):
        x = rg.from_dlpack(source)
        assert x.device == "cpu" and np.shares_memory(x.numpy(), host)
    y = Tensor(host)
    assert rg.from_dlpack(y).array is y.array


def test_dlpack_in_refuses_what_it_cannot_take() -> None:
    with pytest.raises(DeviceError, match="Exporter lives on a device of DLPack's kind 8"):
        rg.from_dlpack(Exporter([1.0], METAL))
    with pytest.raises(DtypeError, match="expected an array with __dlpack__; got list"):
        rg.from_dlpack([1.0])


def test_the_cuda_array_interface_out(module: CupyModuleStandIn) -> None:
    x = rg.tensor([[1.0, 2.0]], device="cuda")
    interface = x.__cuda_array_interface__
    assert interface["version"] == 3 and interface["stream"] == 7 and interface["shape"] == (1, 2)
    assert interface["data"] == (x.array.data.ptr, False) and interface["typestr"] == "<f4"
    with pytest.raises(GradientError, match="__cuda_array_interface__"):
        _ = x.requires_grad_().__cuda_array_interface__


def test_the_cuda_array_interface_in(module: CupyModuleStandIn) -> None:
    x = rg.tensor(Exporter([[1.5, 2.5]]), device="cuda")
    assert x.device == "cuda" and type(x.array) is CupyStandIn and x.dtype == np.float64 and x.tolist() == [[1.5, 2.5]]
    assert rg.as_tensor(Exporter([3])).device == "cuda"
    assert rg.tensor(Exporter([1.5]), dtype=np.float32, device="cpu").device == "cpu"
    assert module.taken == [{"version": 3}] * 3


def test_only_memory_of_a_gpu_has_the_interface(simulated: None) -> None:
    assert not hasattr(rg.zeros(2), "__cuda_array_interface__")
    assert not hasattr(rg.zeros(2, device="cuda"), "__cuda_array_interface__")
    with pytest.raises(AttributeError, match=r"this tensor is on 'cuda' \(simulated\)"):
        _ = rg.zeros(2, device="cuda").__cuda_array_interface__


def test_the_simulated_gpu_shares_no_memory(simulated: None) -> None:
    x = rg.zeros(2, device="cuda")
    for share in (np.from_dlpack, lambda x: x.__dlpack__(), lambda x: x.__dlpack_device__()):
        with pytest.raises(BufferError, match="simulated GPU"):
            share(x)
    assert rg.from_dlpack(x).array is x.array
    for take in (rg.from_dlpack, rg.tensor, rg.as_tensor):
        with pytest.raises(DeviceError, match=r"Exporter .*device 'cuda' \(simulated\)"):
            take(Exporter([1.0]))


def test_without_a_gpu_the_refusal_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def none() -> Device:
        raise DeviceError("device 'cuda' is not available here: no GPU")

    monkeypatch.setattr(_devices, "_cuda", none)
    for take in (rg.from_dlpack, rg.tensor):
        with pytest.raises(DeviceError, match="'cuda' is not available here"):
            take(Exporter([1.0]))
