"""``rawgrad.cuda`` where there is no GPU that rawgrad can use."""

from __future__ import annotations

import pytest

from rawgrad import DeviceError, backends, cuda


def test_available_exactly_if_the_backend_runs() -> None:
    assert cuda.is_available() is (backends()["cuda"] is None)


@pytest.mark.skipif(cuda.is_available(), reason="there is a GPU here")
def test_synchronize_is_refused_without_a_gpu() -> None:
    with pytest.raises(DeviceError, match="device 'cuda' is not available here; available: 'cpu'"):
        cuda.synchronize()
