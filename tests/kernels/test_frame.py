"""The frame itself: a tolerance that passes everything would make every kernel test worthless."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from _layouts import LAYOUTS, untouched
from _tolerance import assert_accurate, assert_within


def mean_square(x: np.ndarray) -> np.ndarray:
    return (x * x).sum(axis=1) / x.dtype.type(x.shape[1])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_another_order_of_summation_passes_and_lost_digits_do_not(dtype):
    x = np.random.default_rng(0).standard_normal((5, 1000)).astype(dtype)
    other_order = (x[:, ::-1] ** 2).mean(axis=1)
    assert_accurate(other_order, mean_square, x)
    with pytest.raises(AssertionError, match=r"worst at \(2,\).*times the budget.*1 of 5 elements"):
        wrong = other_order.copy()
        wrong[2] *= 1 + 100 * np.finfo(dtype).eps
        assert_accurate(wrong, mean_square, x)


def test_nan_and_infinity_must_be_at_the_same_places():
    exact = np.array([1.0, np.nan, np.inf, -np.inf])
    assert_within(exact.astype(np.float32), exact, 0.0)
    for wrong in ([np.nan, np.nan, np.inf, -np.inf], [1, 0, np.inf, -np.inf], [1, np.nan, -np.inf, -np.inf]):
        with pytest.raises(AssertionError, match="worst at"):
            assert_within(np.array(wrong, np.float32), exact, 1e9)
    with pytest.raises(AssertionError, match="shape"):
        assert_within(np.ones(3), np.ones((3, 1)), 1.0)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", [(), (3,), (2, 3), (2, 3, 4, 5), (0, 3, 2, 2)])
def test_layouts_keep_values(layout, shape):
    x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    y = LAYOUTS[layout](x)
    assert y.dtype == x.dtype
    np.testing.assert_array_equal(y, x)


def test_layouts_have_their_strides():
    x = np.zeros((2, 3, 4, 5), np.float32)
    assert LAYOUTS["channels_last"](x).strides == (240, 4, 60, 12)
    assert LAYOUTS["negative"](x).strides == tuple(-s for s in x.strides)
    assert not LAYOUTS["step"](x).flags.c_contiguous


def test_untouched_notices_a_write():
    x = np.zeros((2, 2))
    with untouched(x, None):
        x.sum()
    with pytest.raises(AssertionError, match="wrote into its input"), untouched(x.T):
        x[0, 1] = 1


@pytest.mark.operation("conv2d")
def test_backend_fixture_activates_the_backend(backend):
    from rawgrad.kernels._dispatch import current_choice

    assert current_choice().for_device(backend.device.name) == backend.name
    np.testing.assert_array_equal(backend.get(backend.put([1.0, 2.0])), [1.0, 2.0])


GHOST = """
from rawgrad.kernels._dispatch import BACKENDS, Backend
BACKENDS["ghost"] = Backend("ghost", "cuda", "reference", ("no_such_package",), "")
"""


def run_with_ghost(tmp_path: Path, *options: str) -> str:
    """What pytest prints about the test above on the reference, and on a backend that cannot run."""
    (tmp_path / "ghost_backend.py").write_text(GHOST)
    tests = Path(__file__).parent
    path = os.pathsep.join(p for p in (str(tmp_path), os.environ.get("PYTHONPATH")) if p)
    plugins = ["-p", "ghost_backend", "-p", "no:cacheprovider"]
    result = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-rs", *plugins, "--import-mode=importlib", *options),
            f"{tests / 'test_frame.py'}::test_backend_fixture_activates_the_backend",
        ],
        cwd=tests.parent.parent,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
    )
    return result.stdout + result.stderr


@pytest.mark.parametrize(
    ("options", "outcome"), [([], "1 passed, 1 skipped"), (["--require-gpu"], "1 passed, 1 error")]
)
def test_a_backend_that_cannot_run_is_seen(tmp_path, options, outcome):
    said = run_with_ghost(tmp_path, "-k", "numpy or ghost", *options)
    assert outcome in re.sub(r", \d+ deselected", "", said), said
    assert "backend 'ghost' cannot run here: not installed: no_such_package" in said


def test_the_mark_gpu_selects_the_backends_that_need_one(tmp_path):
    collected = re.findall(
        r"activates_the_backend\[(\w+)\]", run_with_ghost(tmp_path, "--collect-only", "-q", "-m", "gpu")
    )
    assert "ghost" in collected and not {"numpy", "emulated"} & set(collected)
