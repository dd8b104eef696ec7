"""Result files: what is written is what is read, and what is no result file is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rawgrad.bench import results
from rawgrad.bench.results import Entry, Limits, Memory, Rates, Report, Row, Run, Spread
from rawgrad.kernels._errors import DataError
from rawgrad.recipes import machine


def a_report(*rows: Row) -> Report:
    return Report(results.SCHEMA, machine.now(), "rawgrad bench", None, None, {"cores": 2}, {"numpy": "2"}, list(rows))


def test_quartiles_of_known_numbers():
    assert Spread.of([5.0, 1.0, 2.0, 4.0, 3.0]) == Spread(3.0, 2.0, 4.0, 1.0, 5.0)
    assert Spread.of([7.0]) == Spread(7.0, 7.0, 7.0, 7.0, 7.0)


def test_written_is_read(tmp_path, a_row):
    report = a_report(a_row(), a_row(name="other", load_of_others=None, ratios=[]))
    path = tmp_path / "deep" / "file.json"
    results.write(report, path)
    assert results.read(path) == report
    assert [p.name for p in path.parent.iterdir()] == ["file.json"]


def test_a_row_that_failed_and_who_was_missing_are_kept(tmp_path, a_row):
    wrong = results.not_timed("gemm", "torch gives a wrong result: 1 | 2\nis off", 2)
    report = a_report(wrong, a_row(missing=[results.Missing("jax", "it is not installed")]))
    results.write(report, tmp_path / "file.json")
    assert results.read(tmp_path / "file.json") == report
    lines = results.markdown(report.rows).splitlines()
    assert lines[2].startswith("| gemm | failed: torch gives a wrong result: 1 \\| 2 is off |")
    assert len({line.replace("\\|", "").count("|") for line in lines}) == 1


def test_a_file_of_schema_2_is_read_and_nobody_knows_who_was_missing(tmp_path, a_row):
    path = tmp_path / "file.json"
    results.write(a_report(a_row()), path)
    content = json.loads(path.read_text())
    content["schema"] = 2
    del content["rows"][0]["failed"], content["rows"][0]["missing"]
    path.write_text(json.dumps(content))
    assert results.read(path).rows == [a_row()]


def test_runs_are_kept(tmp_path, a_row):
    runs = [Run(0, 41.5, 1800, 0.9903), Run(1, 38.0, 1650, 0.99)]
    entry = Entry("rawgrad", "0.1", 1, Spread.of([41.5, 38.0]), [41.5, 38.0], None, runs=runs)
    report = a_report(a_row(entries=[entry], limits=None))
    results.write(report, tmp_path / "file.json")
    assert results.read(tmp_path / "file.json") == report


def test_a_file_of_schema_1_is_read_and_what_it_lacks_is_none(tmp_path, a_row):
    path = tmp_path / "file.json"
    results.write(a_report(a_row()), path)
    content = json.loads(path.read_text())
    content["schema"] = 1
    for key in ("limits", "failed", "missing"):
        del content["rows"][0][key]
    for entry in content["rows"][0]["entries"]:
        del entry["fraction"], entry["runs"]
    memory = content["rows"][0]["entries"][1]["memory"]
    del memory["steady"], memory["step"]
    path.write_text(json.dumps(content))
    (row,) = results.read(path).rows
    assert row.limits is None and row.entries[0].fraction is None
    assert row.entries[1].memory == Memory(300 * 2**20, 100 * 2**20, 200 * 2**20, "VmHWM")
    assert "| – / 200 / 300 |" in results.markdown([row])
    content["rows"][0] |= {"failed": None, "missing": None}
    content["schema"] = results.SCHEMA  # in which these keys must be there
    path.write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"missing \['limits'\]"):
        results.read(path)


def test_the_limit_is_the_longer_of_two_times_at_the_best_rates_seen():
    seen = [Rates(1e9, 8e9), Rates(2e9, 4e9)]
    assert Limits.of(seen, flops=4_000_000_000, bytes=0) == Limits(2e9, 8e9, 0.5)
    assert Limits.of(seen, flops=4_000_000_000, bytes=3_000_000_000) == Limits(2e9, 8e9, 1.5)


def test_a_failed_write_leaves_the_old_file(tmp_path, a_row):
    path = tmp_path / "file.json"
    results.write(a_report(), path)
    old = path.read_bytes()
    broken = a_row(load_of_others=float("nan"))  # is not JSON
    with pytest.raises(ValueError, match="not JSON compliant"):
        results.write(a_report(broken), path)
    assert path.read_bytes() == old
    assert [p.name for p in tmp_path.iterdir()] == ["file.json"]


def test_an_interrupted_write_leaves_the_old_file(tmp_path, monkeypatch, a_row):
    path = tmp_path / "file.json"
    results.write(a_report(), path)
    old = path.read_bytes()

    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(results.os, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        results.write(a_report(a_row()), path)
    assert path.read_bytes() == old
    assert [p.name for p in tmp_path.iterdir()] == ["file.json"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.update(schema=99), r"must have schema 3; got 99"),
        (lambda c: c.pop("schema"), r"must have schema 3; got None"),
        (lambda c: c.update(schema=[1]), r"must have schema 3; got \[1\]"),
        (lambda c: c.update(kind="reading"), r"must be a table of rows; got a record of kind 'reading'"),
        (lambda c: c.pop("machine"), r"missing \['machine'\], unknown \[\]"),
        (lambda c: c["rows"][0].update(colour=1), r"rows\[0\] must .* keys; missing \[\], unknown \['colour'\]"),
        (lambda c: c["rows"][0].update(noisy=1), r"rows\[0\]: noisy must be of type"),
        (lambda c: c["rows"][0].update(threads=True), r"rows\[0\]: threads must be of type"),
        (lambda c: c["rows"][0]["entries"][1]["seconds"].update(q1="x"), r"entries\[1\]: seconds: q1 must be of type"),
        (lambda c: c["rows"][0]["entries"][1]["seconds"].update(q1=float("nan")), r"seconds: q1 must be .*; got nan"),
        (lambda c: c["rows"][0]["entries"].insert(0, 3), r"rows\[0\]: entries\[0\] must be an object \(Entry\); got 3"),
    ],
)
def test_other_content_is_refused_with_its_place(tmp_path, change, message, a_row):
    path = tmp_path / "file.json"
    results.write(a_report(a_row()), path)
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    with pytest.raises(DataError, match=message):
        results.read(path)


@pytest.mark.parametrize("text", ["", "{", "[]", "\x00"])
def test_no_json_object_is_refused(tmp_path, text):
    path = tmp_path / "file.json"
    path.write_text(text)
    with pytest.raises(DataError, match="bench results"):
        results.read(path)


def test_a_file_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"nosuch\.json cannot be read: No such file"):
        results.read(tmp_path / "nosuch.json")


def test_every_recorded_file_can_be_read():
    for path in sorted((Path(results.__file__).parent / "results").glob("*.json")):
        content = json.loads(path.read_text())
        assert content["commit"], f"{path}: a figure needs the commit that it belongs to"
        if "kind" in content:
            assert content["kind"] in ("checkpoints", "growth", "instructions", "reading"), path
            assert {"date", "command", "dirty", "machine", "versions"} < set(content), path
        else:
            assert results.read(path).rows, path


def test_the_table(a_row):
    lines = results.markdown([a_row(), a_row(name="loud", noisy=True)]).splitlines()
    assert len(lines) == 2 + 4
    ours = [cell.strip() for cell in lines[2].strip("|").split("|")]
    theirs = [cell.strip() for cell in lines[3].strip("|").split("|")]
    assert ours == ["train_step_p5_batch100", "rawgrad", "11 ms", "10.5 ms – 11.5 ms", "10 ms", "1", "", "", "", ""]
    assert theirs[-3:] == ["25 %", "40 / 200 / 300", "2.00 (1.90 – 2.10)"]
    assert theirs[5] == "0.5"  # 11 MFLOP in 22 ms
    assert lines[4].startswith("| loud (noisy) | rawgrad |")
    assert len({line.count("|") for line in lines}) == 1


@pytest.mark.parametrize(
    ("seconds", "text"), [(2.5, "2.5 s"), (0.1234, "123 ms"), (12.34e-3, "12.3 ms"), (1e-6, "1 µs"), (5e-9, "5 ns")]
)
def test_times_are_short(seconds, text, a_row):
    row = a_row(entries=[Entry("rawgrad", "", 1, Spread.of([seconds]), [seconds], None)], ratios=[])
    assert f"| {text} |" in results.markdown([row])
