"""Fitted exponents, on series whose exponent is known, and the measurement on a clock that moves by itself."""

from __future__ import annotations

import json
from functools import partial

import numpy as np
import pytest

from rawgrad.bench import growth, harness, peers
from rawgrad.bench.cli import main
from rawgrad.bench.harness import Contestant, Work, WrongResult
from rawgrad.kernels._errors import ArgumentError, DataError


def test_a_power_is_found_again():
    sizes = [2, 8, 32]
    assert growth.fitted(sizes, [3 * n**1.7 for n in sizes]) == (pytest.approx(1.7), pytest.approx(3))
    one = growth.series("batch", "", Contestant("rawgrad", print), sizes, [[3 * n**p for n in sizes] for p in (1, 2)])
    assert (one.exponent.low, one.exponent.high) == (pytest.approx(1), pytest.approx(2))


def test_how_far_off_the_line_tells_what_is_no_power():
    """Times 4, 2, 4 lie around a level line at their geometric mean."""
    one = growth.series("batch", "", Contestant("rawgrad", print), [1, 2, 4], [[4.0, 2.0, 4.0]])
    assert one.exponent.median == pytest.approx(0) and one.off == pytest.approx(1 - 2 / 32 ** (1 / 3))


@pytest.mark.parametrize("who", ["rawgrad numpy", "torch"])  # compiling for these sizes would take long
@pytest.mark.parametrize("axis", ["channels", "depth"])
def test_the_networks_that_grow_are_right(axis, who):
    if who == "torch":
        pytest.importorskip("torch")
    harness.validate(growth.axes()[axis].build(4, [who]))


class Clock:
    """A clock that only calls move, by their size squared."""

    def __init__(self, wrong_from=100):
        self.now, self.wrong_from = 0, wrong_from

    def __call__(self):
        return self.now

    def build(self, size, who):
        def call():
            self.now += 1000 * size**2
            return np.float64(size < self.wrong_from)

        def check(result, right):
            harness.assert_close(result, right, 1e-6)

        return Work("w", "", [Contestant(name, call) for name in who], lambda: np.float64(1), "", check)


@pytest.fixture
def threads(monkeypatch):
    asked = []
    monkeypatch.setattr(peers, "set_threads", asked.append)
    monkeypatch.setattr(harness.gc, "collect", lambda: 0)  # before each turn, of all that other tests left
    return asked


@pytest.mark.parametrize("grows", [False, True])
def test_the_exponent_of_what_is_measured(threads, grows):
    clock = Clock()
    axis = growth.Axis("calls", (1, 2, 4), clock.build, grows)
    options = {"threads": 7, "rounds": 2, "min_round": 1e-5, "settle": 0.0, "clock": clock}
    found = growth.measure("size", axis, ["rawgrad", "torch"], **options)
    assert [one.contestant for one in found] == ["rawgrad", "torch"]
    for one in found:
        assert one.exponent.q1 == one.exponent.q3 == pytest.approx(2) and one.off == pytest.approx(0, abs=1e-9)
        assert [spread.median for spread in one.seconds] == pytest.approx([1e-6, 4e-6, 16e-6])
    assert set(threads) == ({1, 2, 4} if grows else {7})


def test_a_wrong_result_at_any_size_is_no_measurement(threads):
    clock = Clock(wrong_from=4)
    axis = growth.Axis("calls", (1, 2, 4), clock.build)
    with pytest.raises(WrongResult, match="rawgrad gives a wrong result"):
        growth.measure("size", axis, ["rawgrad"], threads=1, settle=0.0, clock=clock)


def test_the_command_prints_and_records(threads, monkeypatch, tmp_path, capsys):
    clock = Clock()
    monkeypatch.setattr(growth, "axes", lambda: {"size": growth.Axis("calls", (1, 2, 4), clock.build)})
    monkeypatch.setattr(growth, "measure", partial(growth.measure, settle=0.0, clock=clock))
    file = tmp_path / "growth.json"
    assert main(["growth", "--rounds", "2", "--min-round", "1e-5", "--out", str(file)]) == 0
    assert "| size | rawgrad | 2.00 | 2.00 – 2.00 | 0% | 1, 2, 4 | 1 µs, 4 µs, 16 µs |" in capsys.readouterr().out
    content = json.loads(file.read_text())
    assert content["kind"] == "growth" and content["machine"]["clocks"]
    assert growth.of_content(content, "it")[0].sizes == [1, 2, 4]
    content["series"][0]["sizes"] = "many"
    with pytest.raises(DataError, match=r"it: series\[0\]: sizes must be of type"):
        growth.of_content(content, "it")
    with pytest.raises(ArgumentError, match="axis must be one of size; got 'width'"):
        main(["growth", "width"])
