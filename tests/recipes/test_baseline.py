"""The baseline: what it reports is so, its optimum is the optimum, its curves are the curves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from rawgrad.autograd import functional as F
from rawgrad.engine.data import TensorDataset
from rawgrad.recipes import baseline
from rawgrad.recipes.options import Options


def split(rng: np.random.Generator, count: int) -> Any:
    """Pictures whose mean brightness tells the label, more or less."""
    labels = rng.integers(0, 10, count)
    noise = rng.uniform(0, 0.3, (count, 1, 28, 28))
    images = (noise + 0.05 * labels[:, None, None, None]).astype(np.float32)
    made = TensorDataset(images, labels)
    made.images, made.labels = images, labels
    made.frame, made.classes = {}, tuple("0123456789")
    return made


@pytest.fixture
def data(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    splits = {name: split(rng, count) for name, count in (("train", 1500), ("validation", 100), ("test", 500))}
    monkeypatch.setattr(baseline, "load_data", lambda task, options: splits)
    return splits


def test_the_run_reports_what_its_weights_do_and_leaves_the_pictures(data: dict[str, Any], tmp_path: Path) -> None:
    from safetensors.numpy import load_file

    found = baseline.run(Options(out=tmp_path, quiet=True, epochs=2, lr=0.001))
    weights = load_file(tmp_path / "weights.safetensors")
    weight, bias = (next(v for k, v in weights.items() if k.endswith(end)) for end in ("weight", "bias"))
    answers = data["test"].images.reshape(500, -1) @ weight.ravel() + bias
    labels = data["test"].labels
    assert found.fits["trained model"].mse == pytest.approx(float(((answers - labels) ** 2).mean()), rel=1e-4)
    assert found.result.test.accuracy == pytest.approx(found.fits["trained model"].accuracy, abs=0.0021)
    for digit, (mean, spread) in enumerate(found.answers):
        chosen = answers[labels == digit]
        assert (mean, spread) == (pytest.approx(chosen.mean(), rel=1e-3), pytest.approx(chosen.std(), rel=1e-3))
    constant = data["train"].labels.mean()
    assert found.fits["always the mean label"].mse == pytest.approx(((labels - constant) ** 2).mean())
    assert found.fits["least squares"].mse < found.fits["trained model"].mse

    record = json.loads((tmp_path / "baseline.json").read_text())
    assert record["fits"]["trained model"]["mse"] == found.fits["trained model"].mse
    for name in ("sigmoid.png", "minus-log.png", "errors.png", "curves.png"):
        with Image.open(tmp_path / name) as picture:
            assert picture.width > 500
            assert np.asarray(picture.convert("L")).std() > 10, f"{name} is blank"


def test_least_squares_is_scikit_learns_ridge() -> None:
    from sklearn.linear_model import Ridge

    rng = np.random.default_rng(1)
    images, asked, labels = rng.uniform(size=(50, 1, 4, 4)), rng.uniform(size=(20, 1, 4, 4)), rng.integers(0, 10, 50)
    ridge = Ridge(alpha=3.0).fit(images.reshape(50, 16), labels)
    expected = ridge.predict(asked.reshape(20, 16))
    np.testing.assert_allclose(baseline.least_squares(images, labels, asked, 3.0), expected, rtol=1e-9)


def test_curves_are_the_formulas() -> None:
    x = np.linspace(-4, 4, 9)
    y, slope = baseline.with_slope(F.sigmoid, x)
    np.testing.assert_allclose(y, 1 / (1 + np.exp(-x)), rtol=1e-14)
    np.testing.assert_allclose(slope, np.exp(-x) / (1 + np.exp(-x)) ** 2, rtol=1e-13)
    share = np.array([0.1, 0.6, 1.0])
    y, slope = baseline.with_slope(lambda v: -v.log(), share)
    np.testing.assert_allclose(y, [2.302585093, 0.510825624, 0], atol=1e-9)
    np.testing.assert_allclose(slope, -1 / share, rtol=1e-14)
