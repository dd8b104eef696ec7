"""Two result files beside each other: what moved by more than the noise of both."""

from __future__ import annotations

import dataclasses

import pytest

from rawgrad.bench import cli, compare, results
from rawgrad.bench.compare import FASTER, SAME, SLOWER, UNJUDGED, compared
from rawgrad.bench.results import Entry, Ratio, Report, Spread
from rawgrad.kernels._errors import DataError

MACHINE = {"cpu": "a CPU", "cores": 2}


@pytest.fixture
def report(a_row):
    """Makes a report of rows, each given by its name and the seconds of its contestants."""

    def make(machine=None, versions=None, **times):
        rows = []
        for name, seconds in times.items():
            entries = [Entry(who, "", 1, Spread.of(values), list(values), None) for who, values in seconds.items()]
            ratios = [
                Ratio(who, Spread.of([theirs / ours for theirs, ours in zip(values, seconds["rawgrad"], strict=True)]))
                for who, values in seconds.items()
                if who != "rawgrad"
            ]
            rows.append(a_row(name=name, entries=entries, ratios=ratios))
        return Report(
            results.SCHEMA, "2026", "c", "f" * 40, False, machine or MACHINE, versions or {"numpy": "2"}, rows
        )

    return make


def around(middle, width=0.01):
    """Five rounds whose interquartile range is ``width`` of the middle."""
    return [middle * (1 + width * step) for step in (-1, -0.5, 0, 0.5, 1)]


def only(found):
    (figure,) = found.figures
    return figure


@pytest.mark.parametrize(
    ("factor", "width", "verdict"),
    [
        (1.0, 0.01, SAME),
        (1.20, 0.01, SLOWER),
        (0.80, 0.01, FASTER),
        (1.20, 0.15, SAME),  # ranges of 0.15 and 0.18
        (1.40, 0.15, SLOWER),
        (1.04, 0.001, SAME),  # by less than --least
        (1.06, 0.001, SLOWER),
    ],
)
def test_in_seconds_a_move_is_more_than_both_ranges_and_than_the_least(report, factor, width, verdict):
    a, b = report(row={"rawgrad": around(1.0, width)}), report(row={"rawgrad": around(factor, width)})
    figure = only(compared(a, b))
    assert (figure.measure, figure.verdict) == ("seconds", verdict)
    assert figure.change == pytest.approx(factor - 1)
    assert compared(a, b).slower == (verdict == SLOWER)


def test_where_both_have_the_peer_its_time_is_the_measure(report):
    a = report(row={"rawgrad": around(1.0), "torch": [2.0] * 5})
    slowed_down = report(machine={"cpu": "slow"}, row={"rawgrad": around(3.0), "torch": [6.0] * 5})
    figure = only(compared(a, slowed_down))  # all of it three times as slow
    assert (figure.measure, figure.verdict, figure.before) == ("time over torch's", SAME, "0.5")
    worse = report(machine={"cpu": "slow"}, row={"rawgrad": around(3.0), "torch": [4.0] * 5})
    assert only(compared(a, worse)).verdict == SLOWER


def test_a_peer_that_moves_alone_is_no_move_of_ours(report):
    a = report(row={"rawgrad": around(1.0), "torch": [2.0] * 5})
    b = report(row={"rawgrad": around(1.0), "torch": [1.0] * 5})
    figure = only(compared(a, b))
    assert figure.verdict == UNJUDGED and "it was torch that moved" in figure.why


def test_each_common_peer_is_a_figure_and_rawgrad_otherwise_is_none(report):
    times = {"rawgrad": around(1.0), "torch": [2.0] * 5, "numpy": [3.0] * 5, "rawgrad outside kernels": [0.5] * 5}
    b = {**times}
    del b["numpy"]
    assert [f.measure for f in compared(report(row=times), report(row=times)).figures] == [
        "time over torch's",
        "time over numpy's",
    ]
    assert only(compared(report(row=times), report(row=b))).measure == "time over torch's"


def test_on_another_machine_seconds_are_not_judged(report):
    a, b = report(row={"rawgrad": around(1.0)}), report(machine={"cpu": "other"}, row={"rawgrad": around(2.0)})
    found = compared(a, b)
    assert only(found).verdict == UNJUDGED and "another machine" in only(found).why
    assert found.differences[0] == "machine: cpu: a CPU before, other after"


def test_few_rounds_and_noise_are_not_judged(report):
    a, b = report(row={"rawgrad": [1.0, 1.0]}), report(row={"rawgrad": [2.0, 2.0]})
    assert only(compared(a, b)).why == "fewer than 3 rounds"
    a, b = report(row={"rawgrad": around(1.0)}), report(row={"rawgrad": around(2.0)})
    b.rows[0] = dataclasses.replace(b.rows[0], noisy=True)
    assert only(compared(a, b)).verdict == UNJUDGED and "after" in only(compared(a, b)).why


def test_a_row_that_fails_now_is_slower_and_says_why(report):
    good, bad = report(row={"rawgrad": around(1.0)}), report()
    bad.rows.append(results.not_timed("row", "wrong by 3", 2))
    assert only(compared(good, bad)).verdict == SLOWER and only(compared(good, bad)).why == "wrong by 3"
    assert only(compared(bad, good)).verdict == FASTER
    assert only(compared(bad, bad)).verdict == UNJUDGED


def test_rows_of_one_file_are_named_and_threads_tell_rows_apart(report):
    a = report(both={"rawgrad": around(1.0)}, old={"rawgrad": around(1.0)}, other={"rawgrad": around(1.0)})
    b = report(both={"rawgrad": around(1.0)}, new={"rawgrad": around(1.0)}, other={"rawgrad": around(1.0)})
    b.rows[2] = dataclasses.replace(b.rows[2], threads=1)
    found = compared(a, b)
    assert only(found).row == "both"
    assert found.only_before == ["old (2 threads)", "other (2 threads)"]
    assert found.only_after == ["new (2 threads)", "other (1 thread)"]
    with pytest.raises(DataError, match="none is in both"):
        compared(report(old={"rawgrad": around(1.0)}), report(new={"rawgrad": around(1.0)}))


def test_the_command_says_what_moved_and_its_code_tells(report, tmp_path, capsys):
    a, b = tmp_path / "a.json", tmp_path / "b.json"
    results.write(report(row={"rawgrad": around(1.0)}, other={"rawgrad": around(1.0)}), a)
    slower = report(
        versions={"numpy": "3"}, row={"rawgrad": around(1.5)}, other={"rawgrad": around(1.0)}, more={"rawgrad": [1.0]}
    )
    results.write(slower, b)
    assert cli.main(["compare", str(a), str(b)]) == 1
    out = capsys.readouterr().out
    assert out.index("* version: numpy: 2 before, 3 after") < out.index(
        "| row | seconds | 1 s | 1.5 s | +50.0% | slower |"
    )
    assert "only after: more (2 threads)" in out and "1 slower, 0 faster, 1 within the noise, 0 not judged" in out
    assert cli.main(["compare", str(b), str(a)]) == 0
    assert "| +0.0% | within the noise |" in capsys.readouterr().out
    assert cli.main(["compare", str(a), str(b), "--least", "0.6"]) == 0
    with pytest.raises(DataError, match="cannot be read"):
        cli.main(["compare", str(a), str(tmp_path / "c.json")])


def test_every_line_of_the_table_has_as_many_cells():
    figures = [compare.Moved("r", "", "ok", "failed", None, SLOWER, "two\nlines | and a bar")]
    assert len({line.replace("\\|", "").count("|") for line in compare.table(figures).splitlines()}) == 1
