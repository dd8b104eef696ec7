"""``rawgrad bench profile``: so many steps, the best of the limits seen, the timeline written."""

from __future__ import annotations

import json

import pytest

from rawgrad.bench import cli, roofline
from rawgrad.bench import profile as bench_profile
from rawgrad.bench.results import Rates
from rawgrad.kernels._errors import DataError

QUICK = ("p8", "--batch", "2", "--steps", "11", "--threads", "1")


def test_the_table_with_the_best_of_the_limits_seen(monkeypatch, capsys):
    seen = [Rates(1e9, 8e9), Rates(2e9, 4e9)]
    monkeypatch.setattr(roofline, "rates", lambda dtype, threads: seen.pop())
    assert cli.main(["profile", *QUICK]) == 0
    title, head, _, *rows, _, _, limits = capsys.readouterr().out.splitlines()
    assert title == "p8: 784-10, Adam; batch 2, 11 steps, backend numba, 1 thread"
    assert head.endswith("of the limit")
    assert {row.split()[0]: row.split()[2] for row in rows[:-1]} == {
        "gemm": "11", "softmax_cross_entropy_forward": "11", "linear_backward": "11", "adam_step": "11",
    }  # fmt: skip
    assert rows[-1].startswith("outside kernels")
    assert limits == (
        "limits, as measured before and after: 2 GB/s copied, 8 GFLOP/s of multiply-adds in float32"
    )  # not of one look alone
    assert seen == []


def test_limits_that_are_given_and_the_timeline(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(roofline, "rates", lambda dtype, threads: pytest.fail("measured"))
    path = tmp_path / "trace.json"
    assert bench_profile.main([*QUICK, "--limits", "10", "200", "--shapes", "--trace", str(path)]) == 0
    out = capsys.readouterr().out
    assert "limits, as given: 10 GB/s copied, 200 GFLOP/s" in out and "(2, 784) (10, 784) (10,)" in out
    spans = [event for event in json.loads(path.read_text())["traceEvents"] if event["ph"] == "X"]
    assert len(spans) == 44
    with pytest.raises(DataError, match="bench profile: .*nowhere"):
        bench_profile.main([*QUICK, "--no-limits", "--trace", str(tmp_path / "nowhere" / "x.json")])
    assert "outside kernels" in capsys.readouterr().out  # what was measured is told all the same


@pytest.mark.parametrize("options", [["p11"], ["--steps", "0"], ["--limits", "0", "1"], ["--limits", "1"]])
def test_wrong_options_are_refused(options, capsys):
    with pytest.raises(SystemExit) as caught:
        bench_profile.main(options)
    assert caught.value.code == 2 and "rawgrad bench profile: error: argument" in capsys.readouterr().err
