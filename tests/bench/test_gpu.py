"""The GPU run without a GPU: its stages with stand-in commands, its rows and launches on the emulator."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from rawgrad.bench import (
    cases,
    gpu,
    gpu_contestants,
    gpu_limits,
    gpu_rows,
    harness,
    programs,
    results,
    rivals,
    shapes,
    traffic,
)
from rawgrad.bench.gpu import Outcome, Stage
from rawgrad.bench.harness import WrongResult
from rawgrad.bench.small_cases import CASES
from rawgrad.kernels._cuda import device as cuda_device
from rawgrad.kernels._cuda import nvrtc
from rawgrad.kernels._dispatch import BACKENDS, backend
from rawgrad.kernels._errors import ArgumentError
from rawgrad.kernels._layout import is_channels_last
from rawgrad.kernels.gemm import hopper

ROOT = Path(gpu.__file__).parents[1]


@pytest.fixture
def emulated() -> Iterator[None]:
    if problem := BACKENDS["emulated"].problem():
        pytest.skip(f"backend 'emulated' cannot run here: {problem}")
    with backend("emulated"):
        yield


class HostTimer:
    """In the place of CUDA events: the host's clock, and a note of what was asked."""

    def __init__(self) -> None:
        self.host_seconds: list[float] = []

    def seconds(self, queue: Callable[[], None], host_seconds: float) -> float:
        self.host_seconds.append(host_seconds)
        start = time.perf_counter()
        queue()
        return time.perf_counter() - start

    def empty(self) -> None:
        pass


def _python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


@pytest.mark.parametrize(
    ("code", "outcome", "note"),
    [
        ("print('one'); print('12 passed')", "passed", "12 passed"),
        ("import sys; print('oh no'); sys.exit(3)", "failed", "exit code 3: oh no"),
        ("raise SystemExit", "passed", ""),
    ],
)
def test_a_stage_tells_by_its_exit_code_and_last_line(tmp_path: Path, code: str, outcome: str, note: str) -> None:
    found = gpu.run(Stage("one", _python(code), 60), tmp_path, dict(os.environ))
    assert (found.stage, found.outcome, found.note) == ("one", outcome, note)
    assert (tmp_path / "one.log").exists()


def test_a_stage_out_of_time_is_ended_with_its_children(tmp_path: Path) -> None:
    code = (
        "import subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(100)'])\n"
        "print(child.pid, flush=True); time.sleep(100)\n"
    )
    found = gpu.run(Stage("slow", _python(code), 5), tmp_path, dict(os.environ))
    assert found.outcome == "out of time" and 5 <= found.seconds < 60
    child = Path(f"/proc/{found.note}")
    for _ in range(100):  # it may stay a zombie until the system has cleaned up
        if not child.exists() or "\nState:\tZ" in (child / "status").read_text():
            return
        time.sleep(0.05)
    pytest.fail("the stage's child still runs")


def test_all_stages_run_whatever_happens_and_the_table_comes_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made = [
        Stage("doctor", _python("print('fine')"), 60),
        Stage("tests", _python("import sys; print('1 failed'); sys.exit(1)"), 60),
        Stage("memcheck", ["none"], 60, "compute-sanitizer is not on the PATH"),
        Stage("bench", _python("print('a table')"), 60),
    ]
    monkeypatch.setattr(gpu, "stages", lambda folder, share: made)
    assert gpu.everything(tmp_path / "out", 1.0) == gpu.FAILED
    said = capsys.readouterr().out
    last = said.splitlines()[-5:]
    assert "\n  1 failed\n" in said and "\na table\n" in said and "\n  fine\n" not in said
    assert [line.split()[:2] for line in last] == [
        ["stage", "outcome"],
        ["doctor", "passed"],
        ["tests", "failed"],
        ["memcheck", "skipped"],
        ["bench", "passed"],
    ]
    kept = [Outcome(**one) for one in json.loads((tmp_path / "out" / "summary.json").read_text())]
    assert [o.outcome for o in kept] == ["passed", "failed", "skipped", "passed"]
    assert kept[2].note == "compute-sanitizer is not on the PATH"
    made[1] = Stage("tests", _python("print('2 passed')"), 60)
    assert gpu.everything(tmp_path / "out", 1.0) == gpu.OK


def test_the_budgets_are_below_nine_minutes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu.shutil, "which", lambda name: f"/somewhere/{name}")
    found = gpu.stages(tmp_path)
    assert sum(stage.seconds for stage in found) <= 9 * 60
    assert [stage.name for stage in found] == "doctor load tests memcheck racecheck synccheck bench".split()
    assert not any(stage.missing for stage in found)
    monkeypatch.setattr(gpu.shutil, "which", lambda name: None)
    assert [s.name for s in gpu.stages(tmp_path) if s.missing] == ["memcheck", "racecheck", "synccheck"]
    assert sum(stage.seconds for stage in gpu.stages(tmp_path, 0.5)) == pytest.approx(
        sum(stage.seconds for stage in found) / 2
    )


def test_without_a_gpu_it_says_so_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gpu, "problem", lambda: "CuPy is not installed")
    for arguments in (["somewhere"], ["--only", "load"], ["--only", "launch"], ["--only", "bench", "somewhere"]):
        assert gpu.main(arguments) == 2
        assert capsys.readouterr().out == "no GPU: CuPy is not installed\n"
    for arguments in ([], ["--only", "bench"]):
        with pytest.raises(SystemExit):
            gpu.main(arguments)
        assert "name a folder" in capsys.readouterr().err


@pytest.mark.skipif(cuda_device.problem() is None, reason="there is a GPU here: the script would run for minutes")
def test_the_script_finds_rawgrad_from_anywhere(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHON": sys.executable}
    done = subprocess.run(
        ["bash", str(ROOT / "tests/gpu.sh"), "out"], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == gpu.NO_GPU and done.stdout.startswith("no GPU: ") and done.stdout.count("\n") == 1
    assert done.stderr == "" and list(tmp_path.iterdir()) == []


def test_every_version_is_launched_once(emulated: None, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = [case for case in traffic.cases() if case.function in ("activation_forward", "max_pool2d_forward")]
    assert len(chosen) == 2
    monkeypatch.setattr(traffic, "cases", lambda: chosen)
    said: list[str] = []
    assert gpu.launch(said.append, "emulated") == 0
    count = sum(1 + len(gpu.table.versions_of(case.operation, case.function)) for case in chosen)
    assert count > 3 and said == [f"{count} of {count} launches without an error"]

    def broken(x: np.ndarray) -> np.ndarray:
        raise gpu.RawgradError("no")

    monkeypatch.setattr(traffic, "cases", lambda: [replace(chosen[0], call=broken), chosen[1]])
    assert gpu.launch(said.append, "emulated") > 0
    assert f"{chosen[0].function} default: no" in said


def test_every_instance_is_loaded(emulated: None, monkeypatch: pytest.MonkeyPatch) -> None:
    kernels_of_dropout = [kernel for kernel in gpu.table.shipped_kernels() if kernel.path.stem == "dropout"]
    monkeypatch.setattr(gpu.table, "shipped_kernels", lambda: kernels_of_dropout)
    said: list[str] = []
    assert gpu.load(said.append, "emulated") == 0
    count = sum(len(kernel.instances()) for kernel in kernels_of_dropout)
    assert count > 1 and said == [f"{count} of {count} instances loaded for sm_90"]


def test_versions_for_other_gpus_are_left_out(emulated: None, monkeypatch: pytest.MonkeyPatch) -> None:
    case = next(case for case in traffic.cases() if case.operation == "gemm")
    monkeypatch.setattr(traffic, "cases", lambda: [case])
    every, on_an_a100 = (gpu.table.versions_of("gemm", "gemm", here) for here in (90, 80))
    assert {name for name in every if name not in on_an_a100} == set(hopper.VERSIONS)
    monkeypatch.setenv("RAWGRAD_EMULATED_ARCH", "80")
    said: list[str] = []
    assert gpu.launch(said.append, "emulated") == 0
    assert said == [f"{1 + len(on_an_a100)} of {1 + len(on_an_a100)} launches without an error"]


#: A pass of each operation: its kernels' own tests have the others.
SOME = [
    *("gemm", "conv2d  backward", "linear  backward", "max_pool2d  backward", "avg_pool2d  forward", "dropout"),
    *("softmax  forward", "activation gelu backward", "batch_norm  forward", "layer_norm  backward"),
    *("group_norm  backward", "embedding  forward"),
]


def made(case: cases.Case, **setting: bool) -> gpu_rows.GpuRow:
    return gpu_rows._row("small", case, gpu_contestants.Setting(**setting), case.operation, "float32")


class TestRows:
    """A row's work, put on the simulated GPU."""

    @pytest.fixture
    def row(self, monkeypatch: pytest.MonkeyPatch) -> gpu_rows.GpuRow:
        monkeypatch.setattr(gpu_contestants, "cache_of_gpu", lambda: 2000)
        monkeypatch.setattr(gpu_rows, "_ROUNDS", 2)
        monkeypatch.setattr(gpu_rows, "_MIN_ROUND", 1e-4)
        return made(cases.gemm_case(shapes.Gemm(17, 5, 9)))

    def test_ours_its_versions_and_cupy(self, emulated: None, row: gpu_rows.GpuRow) -> None:
        timer, said = HostTimer(), list[str]()
        found = gpu_rows.measured(row, timer, [gpu_rows.CUPY], said.append)
        names = [entry.name for entry in found.entries]
        assert names[0] == "rawgrad" and "cupy" in names and "rawgrad v1_plain" in names and len(names) >= 6
        assert "rawgrad replayed" in names
        assert not any("tensor_core" in name for name in names) and said == []
        assert {ratio.peer for ratio in found.ratios} == set(names[1:])
        assert all(entry.seconds.median > 0 for entry in found.entries)
        assert all(seconds > 0 for seconds in timer.host_seconds)

    def test_rows_of_bfloat16(self, emulated: None, row: gpu_rows.GpuRow) -> None:
        product, loss = shapes.Gemm(17, 5, 9, 2), shapes.SoftmaxCrossEntropy(3, 20, 2)
        of_halves = sorted(gpu.table.versions_of("gemm", "gemm", 90, halves=True))
        assert len(of_halves) > 4 and {"v13_wgmma_persistent_4", "v14_half_cp_async_64"} < set(of_halves)
        for case, names in (
            (cases.gemm_case(product), of_halves),
            (
                cases.softmax_cross_entropy_case(loss),
                ["v1_plain", "v2_smem_tile", "v3_register_tile", "v4_cluster"],
            ),
        ):
            said: list[str] = []
            found = gpu_rows.measured(made(case), HostTimer(), [], said.append)
            expected = sorted(["rawgrad", "rawgrad replayed", *(f"rawgrad {name}" for name in names)])
            assert sorted(entry.name for entry in found.entries) == expected
            assert found.dtype == "bfloat16" and said == []
            (ours, *_) = made(case).build(HostTimer(), []).contestants
            assert next(str(a.dtype) for a in ours.inputs[0] if a.ndim == 2) == "bfloat16"

    def test_rows_of_both_layouts(self, emulated: None, row: gpu_rows.GpuRow) -> None:
        shape = shapes.Conv2d(2, 8, 4, 5, 8, 3, 3, 1, shapes.Pad(1, 1, 1, 1))
        for channels_last, version in ((False, "v5_tensor_core_tf32"), (True, "v6_channels_last_tf32")):
            row = made(cases.conv2d_case(shape), tf32=True, channels_last=channels_last)
            said: list[str] = []
            found = gpu_rows.measured(row, HostTimer(), [], said.append)
            names = [entry.name for entry in found.entries]
            assert names == ["rawgrad", f"rawgrad {version}", "rawgrad replayed"] and said == []
            assert found.layout == ("NHWC" if channels_last else "NCHW")
            (ours, *_) = row.build(HostTimer(), []).contestants
            assert all(is_channels_last(arguments[0]) == channels_last for arguments in ours.inputs)

    @pytest.mark.parametrize("name", SOME)
    def test_every_pass_and_version_is_right_also_replayed(self, emulated: None, name: str) -> None:
        case = CASES[name]()
        work = gpu_contestants.on_gpu("small", case, HostTimer(), [])
        names = [one.name for one in work.contestants]
        versions = gpu_contestants.versions(case)
        assert names == ["rawgrad", *(f"rawgrad {version}" for version in versions), "rawgrad replayed"]
        for one in work.contestants:
            one.inputs = one.inputs[:2]
        harness.validate(work)

    @pytest.mark.parametrize("name", ["gemm", "conv2d  backward", "layer_norm  backward", "softmax_cross_entropy"])
    def test_torch_stands_beside(self, emulated: None, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
        """Its tensors stay on the CPU here; all else is as on a GPU."""
        pytest.importorskip("torch")
        monkeypatch.setattr(gpu_contestants, "rival", lambda who, device: rivals.TorchRival())
        case = CASES[name]()
        for setting in ({}, {"tf32": True, "channels_last": True})[: 2 if case.operation == "conv2d" else 1]:
            work = gpu_contestants.on_gpu("small", case, HostTimer(), ["torch"], gpu_contestants.Setting(**setting))
            (one,) = [one for one in work.contestants if one.name == "torch"]
            assert work.missing == []
            work.check(one.checked_result(), work.reference())
            if setting:
                assert one.inputs[0][1].is_contiguous(memory_format=sys.modules["torch"].channels_last)

    def test_a_peer_that_cannot_be_made_is_named(self, emulated: None, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(*_: object) -> None:
            raise RuntimeError("no GPU for it\nand more")

        monkeypatch.setattr(gpu_contestants, "rival", refuse)
        work = gpu_contestants.on_gpu("small", CASES["gemm"](), HostTimer(), ["torch"])
        (missing,) = work.missing
        assert (missing.name, missing.reason) == ("torch", "RuntimeError: no GPU for it")
        assert work.contestants[0].name == "rawgrad"

    def test_the_limits_are_what_the_timer_says(self, emulated: None) -> None:
        class Steady(HostTimer):
            def seconds(self, queue: Callable[[], None], host_seconds: float) -> float:
                queue()
                return 0.5

        sides = dict.fromkeys(gpu_limits.SIDES, 16)
        limits = gpu_limits.GpuLimits(Steady(), [], 1024, sides)
        for precision in sides:
            assert limits.rates(precision) == (2 * 1024 / 0.5, 2 * 16**3 / 0.5)
        source, target = limits._copy.args[::-1]  # type: ignore[union-attr]
        assert source is not target and source.nbytes == 1024

    def test_a_row_tells_its_fraction_of_the_limit(self, emulated: None, row: gpu_rows.GpuRow) -> None:
        limits = gpu_limits.GpuLimits(HostTimer(), [], 1024, dict.fromkeys(gpu_limits.SIDES, 16))
        found = gpu_rows.measured(row, HostTimer(), [], [].append, limits)
        assert found.limits is not None and all(entry.fraction and entry.fraction > 0 for entry in found.entries)

    def test_an_empty_kernel_is_launched_and_replayed(self, emulated: None) -> None:
        timer, count = HostTimer(), list[int]()
        timer.empty = lambda: count.append(1)  # type: ignore[method-assign]
        work = gpu_rows._empty_kernel("empty", timer, [])
        assert [one.name for one in work.contestants] == ["rawgrad", "rawgrad replayed"]
        for one in work.contestants:
            one.call()
        assert len(count) == 3 * gpu_rows._LAUNCHES  # once queued; in a warm-up and in the capture

    def test_peers_by_the_hosts_clock_are_waited_for_once_a_turn(self) -> None:
        waited: list[object] = []
        one = gpu_contestants.WaitingContestant("jax", lambda x: x + 1, [(1,), (2,)], wait=waited.append)
        one.turn(5, time.perf_counter_ns, 0.0)
        assert len(waited) == 1

    def test_inputs_are_past_the_cache(self, emulated: None, row: gpu_rows.GpuRow) -> None:
        work = row.build(HostTimer(), [])
        (ours, *_) = work.contestants
        size = 4 * (17 * 5 + 5 * 9)
        assert len(ours.inputs) * size >= 2 * 2000
        assert len({id(a) for arguments in ours.inputs for a in arguments}) == 2 * len(ours.inputs)

    def test_a_wrong_peer_is_named_and_left_out_but_not_ours(self, emulated: None, row: gpu_rows.GpuRow) -> None:
        def spoiled(which: str) -> gpu_rows.GpuRow:
            def build(timer: gpu_rows.Timer, peers: list[str]) -> harness.Work:
                work = row.build(timer, peers)
                (one,) = [c for c in work.contestants if c.name == which]
                right = one.checked_result()
                one.result = lambda: [right[0] + 1]
                return work

            return gpu_rows.GpuRow("small", build)  # type: ignore[arg-type]

        said: list[str] = []
        found = gpu_rows.measured(spoiled("rawgrad v1_plain"), HostTimer(), [], said.append)
        assert "rawgrad v1_plain" not in [entry.name for entry in found.entries]
        assert said[0].startswith("small: without rawgrad v1_plain: AssertionError: result[0]")
        with pytest.raises(WrongResult, match="small: rawgrad: "):
            gpu_rows.measured(spoiled("rawgrad"), HostTimer(), [], said.append)

    def test_turns_queue_few_calls_at_once(self) -> None:
        timer, calls = HostTimer(), list[int]()
        one = gpu_contestants.GpuContestant("x", calls.append, [(1,), (2,)], timer=timer)
        one.turn(250, time.perf_counter_ns, 0.0)
        assert len(timer.host_seconds) == 3 and len(calls) == 250 + 26
        assert calls[:4] == [1, 2, 1, 2]

    def test_a_step_of_the_optimizer_is_right_in_every_version(self, emulated: None) -> None:
        work = gpu_rows._update("w", shapes.Update("adam", (5, 2100)), HostTimer(), [])
        assert [one.name for one in work.contestants] == ["rawgrad", "rawgrad v1_tensor_list", "rawgrad v2_loads_first"]
        right = work.reference()
        for one in work.contestants:
            work.check(one.checked_result(), right)
            one.call(*one.inputs[0])
        with pytest.raises(AssertionError):
            work.check([part + np.float32(1e-4) for part in right], right)
        assert {"adam_1M_in_8", "adam_100M"} <= set(gpu_rows.ROWS)

    def test_a_training_step_is_right_on_the_device(self, emulated: None) -> None:
        harness.validate(programs.train_step("p9", 2, ["rawgrad"], "cuda"))

    def test_a_captured_training_step_is_right_and_beside_the_other(self, emulated: None) -> None:
        work = gpu_rows._train_step("p9", 2, HostTimer(), [])
        assert [one.name for one in work.contestants] == ["rawgrad", "rawgrad captured"]
        captured = work.contestants[1]
        work.check(captured.checked_result(), work.reference())
        for arguments in captured.inputs[:5]:
            captured.call(*arguments)
        assert captured.call.graph.is_captured and captured.reset is None
        of = ("p5", "p9", "p9_dropout", "p10", "p10_dropout")
        assert {f"train_step_{name}_batch100" for name in of} <= set(gpu_rows.ROWS)

    def test_rows_have_the_names_of_their_works(self) -> None:
        assert {"gemm_4096", "conv2d_p5_layer2", "train_step_p5_batch100"} <= set(gpu_rows.ROWS)
        assert all(name == row.name for name, row in gpu_rows.ROWS.items())
        folders = {path.parent.name for path in ROOT.glob("kernels/*/*.cu")}
        assert {row.operation for row in gpu_rows.ROWS.values()} == folders | {"train_step", "launch"}
        assert {row.precision for row in gpu_rows.ROWS.values()} == set(gpu_limits.SIDES)

    def test_rows_are_chosen_by_name_and_operation(self) -> None:
        assert list(gpu_rows.named([])) == list(gpu_rows.ROWS)
        chosen = gpu_rows.named(["dropout", "gemm_4096"])
        assert list(chosen) == ["dropout_8192x4096", "gemm_4096"]
        with pytest.raises(ArgumentError, match=r"row must be one of --list, .*near: gemm.*; got 'gem_4096'"):
            gpu_rows.named(["gem_4096"])


def test_a_row_that_fails_is_recorded_as_failed_and_the_missing_are_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, a_row: Callable[..., results.Row]
) -> None:
    def measured(row: gpu_rows.GpuRow, *_: object) -> results.Row:
        if row.name == "wrong":
            raise WrongResult("wrong: rawgrad: off by 3")
        return a_row(name=row.name, missing=[results.Missing("rawgrad v1_plain", "AssertionError: off")])

    monkeypatch.setattr(gpu_rows, "ROWS", {name: gpu_rows.GpuRow(name, None) for name in ("wrong", "right")})  # type: ignore[arg-type]
    monkeypatch.setattr(gpu_rows, "measured", measured)
    monkeypatch.setattr(gpu_rows, "EventTimer", HostTimer)
    monkeypatch.setattr(gpu_rows, "GpuLimits", lambda *_: None)
    monkeypatch.setattr(gpu, "gpu", lambda: {"name": "Made Up"})
    monkeypatch.setattr(gpu.peers, "problem", lambda name: "it is not installed")
    said: list[str] = []
    assert gpu.bench(tmp_path, 60, say=said.append) == 1
    (path,) = tmp_path.iterdir()
    wrong, right = results.read(path).rows
    assert wrong.failed == "WrongResult: wrong: rawgrad: off by 3" and not wrong.entries
    assert right.missing is not None and [one.name for one in right.missing] == ["rawgrad v1_plain", "torch", "jax"]
    assert said[0].startswith("without torch: it is not installed")
    assert said[-1] == "1 of 2 rows measured, 1 failed"


def test_the_stream_is_held_until_the_calls_are_queued(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A stand-in for CuPy notes the order; the time is what its events say."""
    happened: list[object] = []

    class Event:
        def record(self) -> None:
            happened.append(("record", self))

        def synchronize(self) -> None:
            happened.append(("wait", self))

    def raw_kernel(code: str, name: str) -> Callable[..., None]:
        assert f"void {name}(" in code
        return lambda grid, block, arguments: happened.append(arguments[0])

    cuda = SimpleNamespace(Event=Event, get_elapsed_time=lambda start, end: 2.5)  # milliseconds
    module = SimpleNamespace(cuda=cuda, RawKernel=raw_kernel)
    monkeypatch.setattr(gpu_contestants, "device_named", lambda name: SimpleNamespace(array_module=module))
    timer = gpu_rows.EventTimer()
    assert timer.seconds(lambda: happened.append("calls"), 0.01) == 0.0025
    hold, start, calls, end, wait = happened
    if nvrtc.find() is not None:  # the waiting kernel itself
        (tmp_path / "hold.cu").write_text(gpu_contestants._SOURCE)
        assert set(nvrtc.required().compile(tmp_path / "hold.cu", ["hold", "empty"], "sm_90").names) == {
            "hold",
            "empty",
        }
    assert isinstance(hold, np.int64) and hold >= 15_000_000 and calls == "calls"
    assert start == ("record", timer._events[0]) and end == ("record", timer._events[1]) and wait == ("wait", end[1])
