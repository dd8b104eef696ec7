"""``rawgrad replay``: from a learning rate that is too large to the layer that overflows."""

from __future__ import annotations

from pathlib import Path

import pytest

from rawgrad.__main__ import main

Capture = pytest.CaptureFixture[str]
#: Weights that overflow in the second step.
WILD = ["--lr", "1e20", "--optimizer", "sgd", "--limit", "100", "--quiet"]


@pytest.mark.filterwarnings("ignore:divide by zero")
def test_from_the_error_to_the_layer(tmp_path: Path, capsys: Capture) -> None:
    assert main(["train", *WILD, "--out", str(tmp_path / "r")]) == 2
    said = capsys.readouterr().err
    assert said.startswith("rawgrad: error: step 1, batch 1 of epoch 0 (samples ") and "BatchNorm in layer 4: " in said
    assert f"saved in {tmp_path / 'r' / 'nonfinite-step-1.safetensors'}" in said
    for place in (tmp_path, tmp_path / "r", tmp_path / "r" / "nonfinite-step-1.safetensors"):
        assert main(["replay", str(place)]) == 0
        shown = capsys.readouterr().out
        assert "then: step 1, batch 1 of epoch 0 " in shown and "NaN or infinity came out of 4 (BatchNorm2d)" in shown
        assert "now: BatchNorm in layer 4: output 0" in shown


def test_a_healthy_run_has_nothing_to_replay(tmp_path: Path, capsys: Capture) -> None:
    assert main(["train", "--steps", "2", "--limit", "100", "--quiet", "--out", str(tmp_path)]) == 0
    assert main(["replay", str(tmp_path)]) == 2
    assert "no step met NaN or infinity" in capsys.readouterr().err
    assert main(["replay", str(tmp_path / "weights.safetensors")]) == 2
    assert "expected 'state'" in capsys.readouterr().err
    assert main(["replay", str(tmp_path / "missing")]) == 2
