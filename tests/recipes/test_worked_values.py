"""The worked values, each held to what it is by hand, and the table that shows them."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from rawgrad.recipes import worked_values
from rawgrad.recipes.options import Options
from rawgrad.recipes.worked_values import PREDICTION, RIGHT, ROWS, WRONG, Worked


def close(expected: float) -> object:
    return pytest.approx(expected, rel=1e-12, abs=1e-15)


def test_squared_error() -> None:
    assert worked_values.squared_error(PREDICTION, RIGHT) == (close(0.5 * (0.01 + 0.09 + 0.04)),)
    assert worked_values.squared_error(PREDICTION, WRONG) == (close(0.5 * (0.81 + 0.49 + 0.04)),)


def test_cross_entropy() -> None:
    assert worked_values.cross_entropy(PREDICTION, RIGHT) == (close(-math.log(0.7)),)
    assert worked_values.cross_entropy(PREDICTION, WRONG) == (close(-math.log(0.1)),)
    by_labels = worked_values.cross_entropy_by_labels([PREDICTION, PREDICTION], [1, 2])
    assert by_labels == (close(-(math.log(0.7) + math.log(0.2)) / 2),)


def test_softmax_and_logarithm() -> None:
    powers = [math.exp(v) for v in (3, 1, -3)]
    assert worked_values.softmax((3.0, 1.0, -3.0)) == tuple(close(p / sum(powers)) for p in powers)
    assert worked_values.minus_log(0.6) == (close(-math.log(0.6)),)
    assert worked_values.minus_log(0.1) == (close(math.log(10)),)


def test_slopes_by_backward_pass_and_by_differences() -> None:
    assert worked_values.slope(worked_values.line, (5.0,)) == (2.0,)
    assert worked_values.slope(worked_values.bowl, (3.0, 4.0)) == (6.0, 8.0)
    assert worked_values.differences(worked_values.line, (5.0,)) == pytest.approx((2.0,), abs=1e-9)
    assert worked_values.differences(worked_values.bowl, (3.0, 4.0)) == pytest.approx((6.0, 8.0), abs=1e-9)


def test_descent_shrinks_by_a_fifth_each_step() -> None:
    # x - 0.1 · 2x = 0.8 x
    found = worked_values.descent((-3.0, 4.0), 0.1, 100)
    assert found == pytest.approx((-3 * 0.8**100, 4 * 0.8**100), rel=1e-12)
    assert found == pytest.approx((-6.11e-10, 8.15e-10), rel=1e-3)


def test_every_row_agrees(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    result = worked_values.run(Options(out=tmp_path))
    printed = capsys.readouterr().out
    assert str(result) == "13 of 13 worked values agree"
    assert "DIFFERS" not in printed
    for row in ROWS:
        assert f"{row.name:46s} {row.printed:>20s}" in printed


def test_a_wrong_value_is_shown(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worked_values, "ROWS", (Worked("one", "0.36", lambda: (0.3661,)),))
    assert str(worked_values.run(Options(out=tmp_path))) == "0 of 1 worked values agree"
    assert "DIFFERS" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("printed", "found", "agrees"),
    [
        ("0.67", (0.674,), True),  # rounds to it
        ("0.67", (0.676,), False),
        ("2", (2.1,), False),  # a whole number is meant exactly
        ("6.11e-10", (6.114e-10,), True),
        ("6.11e-10", (6.12e-10,), False),
        ("6 8", (6.0,), False),  # one of two is missing
        ("6", (float("nan"),), False),
    ],
)
def test_agreement_is_to_the_printed_digits(printed: str, found: tuple[float, ...], agrees: bool) -> None:
    assert Worked("", printed, lambda: found).agrees(found) is agrees
