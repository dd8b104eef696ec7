"""``rawgrad bench`` on planted rows, and memory."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from rawgrad.bench import cli, harness, memory, results, rows
from rawgrad.bench.harness import Contestant, Work
from rawgrad.kernels import _jit
from rawgrad.kernels._errors import ArgumentError, RawgradError


def planted(value):
    def build(who):
        return Work(
            name="planted",
            description="adds",
            contestants=[Contestant(name, lambda: np.float64(value)) for name in who],
            reference=lambda: np.float64(1),
            reference_name="one",
            check=lambda result, right: harness.assert_close(result, right, 1e-6),
            flops=1,
        )

    return rows.RowSpec("planted", build, ("numpy",))


@pytest.fixture
def rows_planted(monkeypatch):
    monkeypatch.setattr(rows, "ROWS", {"right": planted(1), "wrong": planted(2)})
    monkeypatch.setattr(rows, "USUAL", ("right", "wrong"))
    monkeypatch.setattr(harness.time, "sleep", lambda _: None)


QUICK = ("--no-memory", "--no-limits", "--rounds", "3", "--min-round", "0.0001", "--threads", "1")


def test_a_row_is_printed_and_written(rows_planted, tmp_path, capsys):
    path = tmp_path / "out.json"
    assert cli.main(["right", *QUICK, "--out", str(path)]) == 0
    report = results.read(path)
    (row,) = report.rows
    assert [entry.name for entry in row.entries] == ["rawgrad", "numpy"]
    assert row.threads == 1 and all(len(entry.round_seconds) == 3 for entry in row.entries)
    assert report.machine["cores"] >= 1 and report.versions["numpy"] == np.__version__
    out = capsys.readouterr().out
    assert "| planted" in out and str(path) in out


def test_an_operation_stands_for_all_of_its_rows(rows_planted):
    assert rows.named(["planted"]) == ["right", "wrong"]
    assert rows.named(["wrong", "planted"]) == ["wrong", "right", "wrong"]


def test_a_wrong_result_fails_the_command_and_is_recorded_beside_the_others(rows_planted, tmp_path, capsys):
    path = tmp_path / "out.json"
    assert cli.main([*QUICK, "--out", str(path)]) == 1
    right, wrong = results.read(path).rows
    assert right.failed is None and right.missing == []
    assert wrong.name == "wrong" and wrong.entries == [] and wrong.threads == 1
    assert wrong.failed.startswith("planted: rawgrad gives a wrong result: result[] must be 1")
    said = capsys.readouterr()
    assert "wrong: planted: rawgrad gives a wrong result: result[] must be 1" in said.err
    assert "| wrong | failed: planted: rawgrad gives a wrong result" in said.out


def test_a_wrong_result_is_never_timed(rows_planted, monkeypatch):
    def turn(*_):
        raise AssertionError("timed")

    monkeypatch.setattr(Contestant, "turn", turn)
    assert cli.main(["wrong", *QUICK]) == 1


def test_a_peer_that_is_not_installed_is_recorded_as_missing(monkeypatch, tmp_path):
    monkeypatch.setattr(rows, "ROWS", {"right": dataclasses.replace(planted(1), peers=("numpy", "torch"))})
    monkeypatch.setattr(harness.time, "sleep", lambda _: None)
    find = cli.peers.importlib.util.find_spec
    monkeypatch.setattr(cli.peers.importlib.util, "find_spec", lambda name: None if name == "torch" else find(name))
    assert cli.main(["right", *QUICK, "--out", str(tmp_path / "out.json")]) == 0
    (row,) = results.read(tmp_path / "out.json").rows
    (missing,) = row.missing
    assert missing.name == "torch" and missing.reason.startswith("it is not installed")


def test_quick_measures_its_rows_in_few_rounds_and_stops_in_time(rows_planted, monkeypatch, tmp_path):
    monkeypatch.setattr(rows, "QUICK", ("right", "wrong"))
    monkeypatch.setattr(rows, "ROWS", {"right": planted(1), "wrong": planted(2), "other": planted(1)})
    small = ["--quick", "--no-limits", "--min-round", "0.0001", "--threads", "1", "--out", str(tmp_path / "out.json")]
    assert cli.main(small) == 1  # one is wrong
    right, wrong = results.read(tmp_path / "out.json").rows
    assert all(len(entry.round_seconds) == cli._QUICK_ROUNDS and entry.memory is None for entry in right.entries)
    assert "wrong result" in wrong.failed
    monkeypatch.setattr(cli, "_QUICK_SECONDS", -1.0)
    assert cli.main(small) == 1
    assert [row.failed for row in results.read(tmp_path / "out.json").rows] == ["the time of --quick was up"] * 2
    monkeypatch.undo()
    operations = {spec.operation for name, spec in rows.ROWS.items() if name in rows.QUICK}
    assert set(rows.QUICK) <= set(rows.ROWS)
    assert operations > {"train_step", "conv2d", "gemm", "max_pool2d", "softmax_cross_entropy"}


def test_the_usual_rows_are_the_default_and_all_is_asked_for(rows_planted, monkeypatch, capsys):
    monkeypatch.setattr(rows, "USUAL", ("right",))
    assert cli.main([*QUICK]) == 0
    assert cli.main([*QUICK, "--all"]) == 1  # the wrong one too
    monkeypatch.undo()
    assert set(rows.USUAL) <= set(rows.ROWS)


def test_an_unknown_row_is_refused_before_anything_is_measured(rows_planted, capsys):
    with pytest.raises(ArgumentError, match="got 'left'"):
        cli.main(["right", "left", *QUICK])
    assert "planted" not in capsys.readouterr().out


@pytest.mark.parametrize(
    "options", [["--rounds", "0"], ["--threads", "-1"], ["--rounds", "many"], ["--min-round", "0"]]
)
def test_wrong_options_are_refused(options, capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main(options)
    assert caught.value.code == 2
    assert options[0] in capsys.readouterr().err


def test_list_names_every_row(capsys):
    assert cli.main(["--list"]) == 0
    out = capsys.readouterr().out
    for name in rows.ROWS:
        assert name in out


def test_memory_counts_what_the_work_holds():
    size = 64 * 2**20

    def hold():
        np.ones(size, np.uint8).sum()

    used = memory.of_this_process(lambda: planted_call(hold))
    assert used.peak == used.baseline + used.work
    # On top of the array: what NumPy needs to sum it.  With ru_maxrss an earlier peak may hide it.
    if used.method == "VmHWM":
        assert size * 0.95 <= used.work <= size * 1.25


def planted_call(call, inputs=((),)):
    work = planted(1).build(["rawgrad"])
    work.contestants[0].call, work.contestants[0].inputs = call, inputs
    return work


@pytest.fixture
def proc():
    if not Path("/proc/self/clear_refs").exists():
        pytest.skip("no /proc here")


SIZE = 32 * 2**20


def test_memory_of_a_step_counts_model_inputs_and_what_the_step_makes(proc):
    def build():
        model = np.ones(SIZE, np.uint8)  # touched
        inputs = [(np.ones(SIZE, np.uint8),) for _ in range(5)]  # of which two are kept
        return planted_call(lambda x: (model.sum(), np.ones(SIZE, np.uint8).sum()), inputs)

    used = memory.of_this_process(build)
    assert used.step == pytest.approx(4 * SIZE, rel=0.1)
    assert used.steady >= used.step and used.peak >= used.step


def test_memory_of_a_step_leaves_out_what_only_the_first_calls_need(proc):
    calls, loaded = [], []

    def call():
        if not calls:
            loaded.append(np.ones(SIZE, np.uint8))  # stays, as code does
            np.ones(2 * SIZE, np.uint8).sum()  # a compiler at work
        calls.append(1)

    used = memory.of_this_process(lambda: planted_call(call))
    assert used.work >= 2.9 * SIZE
    assert used.step < 0.2 * SIZE
    assert used.steady < used.peak - SIZE


def test_memory_of_a_step_counts_the_workspaces_of_our_kernels(proc):
    used = memory.of_this_process(lambda: planted_call(lambda: _jit.workspace("planted", SIZE, np.dtype("u1")).fill(1)))
    assert used.step == pytest.approx(SIZE, rel=0.1)


def test_without_proc_the_step_is_missing_and_the_record_says_why(monkeypatch):
    def missing(field):
        raise OSError

    monkeypatch.setattr(memory, "_resident", missing)
    used = memory.of_this_process(lambda: planted_call(lambda: None))
    assert used.steady is None and used.step is None
    assert used.method == "ru_maxrss, since /proc is missing" and used.peak >= used.baseline > 0


def test_memory_of_a_child_that_fails_is_an_error_with_its_words():
    with pytest.raises(RawgradError, match=r"(?s)memory of rawgrad at nonsense failed: .*got 'nonsense'"):
        memory.measure("nonsense", "rawgrad", 1)


def test_memory_is_measured_in_a_child():
    used = memory.measure("gemm_100x980x10", "rawgrad", 1)
    assert used.peak >= used.baseline > 10 * 2**20
    assert used.method.startswith(("VmHWM", "ru_maxrss"))
