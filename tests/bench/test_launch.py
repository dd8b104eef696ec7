"""The cost of a launch is measured on the real path, up to a runtime that does nothing."""

from __future__ import annotations

import pytest

from rawgrad.bench import launch
from rawgrad.kernels import _devices, _launch


def test_every_part_has_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_devices, "_by_type", dict(_devices._by_type))
    monkeypatch.setattr(_devices, "_by_name", dict(_devices._by_name))
    monkeypatch.setattr(_launch, "_runtimes", dict(_launch._runtimes))
    monkeypatch.setattr(launch, "_microseconds", lambda call: (call(), 1.0)[1])
    rows = launch.rows()
    assert len(rows) == 3 and all(time == 1.0 for _, time in rows)
