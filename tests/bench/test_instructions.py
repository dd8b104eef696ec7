"""The compiled kernels execute as many instructions as recorded, and the guard notices when they do not."""

from __future__ import annotations

import json
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from rawgrad.bench import instructions
from rawgrad.bench.cli import main
from rawgrad.kernels._errors import BackendError, DataError

_counts: list[Future[dict[str, int]]] = []


def begin_ahead(items: list[pytest.Item], pool: ThreadPoolExecutor) -> None:
    """Valgrind is slow, and needs nothing of this process."""
    if any(item.name == "test_the_kernels_execute_what_is_recorded" for item in items) and not instructions.problem():
        _counts.append(pool.submit(instructions.count))


def test_the_kernels_execute_what_is_recorded():
    if reason := instructions.problem():
        pytest.skip(f"instructions cannot be counted here: {reason}")
    changed = instructions.moved(_counts[0].result(), instructions.recorded(instructions.RECORD))
    assert not changed, "\n".join([*changed, f"`{instructions.ANEW}` records the counts anew"])


def test_every_operation_with_a_compiled_kernel_is_counted():
    folders = {path.parent.name for path in instructions.RECORD.parents[2].glob("kernels/*/numba_cpu.py")}
    assert {case.operation for case in instructions.cases()} == folders
    names = [f"{case.function}, {case.shape}" for case in instructions.cases()]
    assert len(set(names)) == len(names)


DUMP = """\
desc: Trigger: Client Request: 12
summary: 1000

ob=(1) ???
fl=(1) ???
fn=(1) 0x0000000004f9e330
0 57
+3 5
cob=(2) /lib/libpython.so
cfn=(2) PyArg_UnpackTuple
calls=1 2823
0 226
* 28

ob=(2)
fn=(2)
7 800
cob=(1)
cfn=(1)
calls=2 0
8 90
-1 40

ob=(1)
fn=(3) 0x1
0 10
totals: 1000
"""


def test_of_a_dump_what_belongs_to_no_file_is_counted_without_what_it_calls():
    assert instructions.of_compiled_code(DUMP) == ("12", 57 + 5 + 28 + 10)


def test_without_valgrind_a_request_does_nothing():
    if instructions.problem():
        pytest.skip("the request is x86-64's")
    request = instructions.Requests()
    assert [request(number) for number in (instructions._RUNNING, instructions._ZERO)] == [0, 0]


@pytest.mark.parametrize(
    "same, now, noticed",
    [
        *((True, 1030, True), (True, 1010, False), (True, 970, True), (True, 990, False)),
        *((False, 1200, False), (False, 1300, True), (False, 500, False)),
    ],
)
def test_what_counts_as_moved(same, now, noticed):
    compiler = instructions.compiler() if same else {"numba": "0"}
    said = instructions.moved({"gemm, a": now}, {"compiler": compiler, "counts": {"gemm, a": 1000}})
    assert bool(said) == noticed
    assert all("gemm, a" in line and "1,000" in line for line in said)


def test_kernels_that_came_and_went_are_named():
    said = instructions.moved({"new": 5}, {"compiler": instructions.compiler(), "counts": {"old": 7}})
    assert said == ["new: 5, and was not recorded", "old: recorded, and is no more"]


def test_the_command_compares_or_records(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(instructions, "RECORD", tmp_path / "counts.json")
    monkeypatch.setattr(instructions, "count", lambda: {"gemm, a": 1000})
    assert main(["instructions"]) == 0
    assert "there is no record here" in capsys.readouterr().out
    assert main(["instructions", "--out", str(tmp_path / "counts.json")]) == 0
    assert instructions.recorded(tmp_path / "counts.json")["target"]["RAWGRAD_VECTOR_BYTES"] == "32"
    assert main(["instructions"]) == 0
    monkeypatch.setattr(instructions, "count", lambda: {"gemm, a": 1100})
    capsys.readouterr()
    assert main(["instructions"]) == 1
    said = capsys.readouterr().out
    assert "| gemm, a | 1,100 | +10.00% |" in said and "gemm, a: 1,100 in place of 1,000 (+10.0%)" in said


def test_where_it_cannot_count_it_says_why(monkeypatch):
    monkeypatch.setattr(instructions.shutil, "which", lambda name: None)
    monkeypatch.setattr(instructions.platform, "machine", lambda: "x86_64")
    with pytest.raises(BackendError, match=r"bench instructions: valgrind is not installed"):
        instructions.count()
    monkeypatch.setattr(instructions.platform, "machine", lambda: "arm64")
    with pytest.raises(BackendError, match=r"this is arm64"):
        instructions.count()


def test_what_is_no_record_is_refused(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps({"kind": "reading", "counts": {}}))
    with pytest.raises(DataError, match=r"a\.json must be a record of kind 'instructions'"):
        instructions.recorded(tmp_path / "a.json")
