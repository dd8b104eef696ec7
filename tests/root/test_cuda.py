"""``rawgrad.cuda`` where there is a GPU, where there is none, and where one is simulated."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from rawgrad import DeviceError, backends, cuda
from rawgrad.kernels._dispatch import BACKENDS, Choice, reset_choice, set_choice


@pytest.fixture
def simulated() -> Iterator[None]:
    token = set_choice(Choice().with_backend(BACKENDS["emulated"], {}))
    yield
    reset_choice(token)


def test_not_available_if_the_backend_does_not_run() -> None:
    assert not (cuda.is_available() and backends()["cuda"])


@pytest.mark.skipif(cuda.is_available(), reason="there is a GPU here")
def test_synchronize_is_refused_without_a_gpu() -> None:
    with pytest.raises(DeviceError, match=r"device 'cuda' is not available here: .*rawgrad.backend\(\"emulated\"\)"):
        cuda.synchronize()


@pytest.mark.gpu
def test_a_gpu_is_available_and_can_be_waited_for(request: pytest.FixtureRequest) -> None:
    if not cuda.is_available():
        (pytest.fail if request.config.getoption("--require-gpu") else pytest.skip)("there is no GPU here")
    cuda.synchronize()


def test_the_simulated_gpu_can_be_waited_for(simulated: None) -> None:
    cuda.synchronize()
    assert cuda.is_available() is (backends()["emulated"] is None)
