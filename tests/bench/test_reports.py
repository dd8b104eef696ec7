"""Reports: which rows are shown, what the tables say, and pages that need no other file."""

from __future__ import annotations

import dataclasses
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from rawgrad.bench import cli, growth, results, rows
from rawgrad.bench.harness import Contestant
from rawgrad.bench.reports import content, gather, goals, others, pages, pictures
from rawgrad.bench.results import Entry, Limits, Missing, Ratio, Report, Spread
from rawgrad.kernels._errors import DataError

CPU = {"cpu": "a CPU", "cores": 2, "usable_cores": 2}
GEMM = {"flops": 2 * 1024**3, "bytes": 3 * 2**22}
GPU = {**CPU, "gpu": {"name": "NVIDIA Made-Up", "architecture": "sm_90"}}


def entry(name, middle, fraction=None):
    seconds = [middle * factor for factor in (0.98, 0.99, 1.0, 1.01, 1.02)]
    return Entry(name, "", 1, Spread.of(seconds), seconds, None, fraction)


@pytest.fixture
def row(a_row):
    """Makes a row from the seconds of its contestants."""

    def make(name, times, **changes):
        entries = [entry(who, seconds) for who, seconds in times.items()]
        ratios = [Ratio(who, Spread.of([s / times["rawgrad"]] * 5)) for who, s in times.items() if who != "rawgrad"]
        return a_row(**{"name": name, "entries": entries, "ratios": ratios, "limits": None, "missing": [], **changes})

    return make


def a_report(*made, date="2026-11-22T06:00:00+00:00", machine=CPU):
    command = "rawgrad bench --out x.json"
    return Report(results.SCHEMA, date, command, "f" * 40, False, machine, {"numpy": "2.4", "torch": "2.13"}, [*made])


@pytest.fixture
def machines(tmp_path):
    """Writes reports and gives what a report makes of them."""

    def make(*reports):
        paths = []
        for number, one in enumerate(reports):
            paths.append(tmp_path / "in" / f"{number}.json")
            results.write(one, paths[-1])
        return gather.machines(gather.read(paths))

    return make


@pytest.fixture
def both(row):
    """A report of a CPU and one of a GPU, with everything that a row can be."""
    limits = Limits(5e10, 4.8e11, 0.001)
    cpu = [
        row("train_step_p5_batch100", {"rawgrad": 0.007, "torch": 0.018}, flops=10**9, limits=limits),
        row("train_step_p5_batch512", {"rawgrad": 0.032, "torch": 0.1}, noisy=True, load_of_others=0.3),
        row("gemm_1024", {"rawgrad": 0.008, "numpy": 0.0085, "torch": 0.007}, limits=limits, **GEMM),
        row("max_pool2d_p5_layer1", {"rawgrad": 6e-4}, missing=[Missing("torch", "it is not installed")]),
        results.not_timed("conv2d_p5_layer2", "conv2d_p5_layer2: rawgrad gives a wrong result: <1> | 2", 2),
        row("overhead_p8_batch1", {"rawgrad": 1e-4, "torch": 2e-4, "rawgrad outside kernels": 9e-5}, threads=1),
    ]
    versions = {"rawgrad v10_last": 1e-5, "rawgrad v1_plain": 9e-5, "rawgrad v2_smem_tile": 4e-5}
    gpu = [
        row("gemm_1024", {"rawgrad": 1e-5, **versions, "torch": 1.1e-5}, threads=1, **GEMM),
        row("train_step_p5_batch100", {"rawgrad": 1e-3, "rawgrad captured": 1e-4, "torch compiled": 2e-3}, threads=1),
        row("train_step_p5_batch512", {"rawgrad": 1.5e-3, "torch": 3e-3}, threads=1),
    ]
    return a_report(*cpu), a_report(*gpu, machine=GPU)


class Page(HTMLParser):
    """Notes what a page has and whether its elements are closed."""

    VOID = ("meta", "br")

    def __init__(self, text):
        super().__init__()
        self.open, self.count, self.links, self.ids = [], {}, [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.count[tag] = self.count.get(tag, 0) + 1
        self.links += [value for key, value in attributes if key in ("src", "href", "xlink:href")]
        self.ids += [value for key, value in attributes if key == "id"]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def table_of(machine):
    """The cells of the machine's rows, by row and column."""
    table = next(block for block in content._machine(machine) if isinstance(block, content.Table))
    return {line[0].strip("`"): dict(zip(table.head, line, strict=True)) for line in table.lines}


def test_of_each_row_the_newest_is_shown_machine_by_machine(machines, row):
    old = a_report(row("gemm_1024", {"rawgrad": 2.0}), row("only_old", {"rawgrad": 1.0}), date="2026-01-01")
    new = a_report(row("gemm_1024", {"rawgrad": 1.0}), row("gemm_1024", {"rawgrad": 5.0}, threads=1), date="2026-02-01")
    other = a_report(row("gemm_1024", {"rawgrad": 7.0}), machine={"usable_cores": 16}, date="2026-03-01")
    gpu = a_report(row("gemm_1024", {"rawgrad": 9.0}), machine=GPU, date="2025-01-01")
    found = {m.name: m for m in machines(new, old, gpu, other)}
    assert list(found) == ["CPU, 16 cores", "CPU, 2 cores", "NVIDIA Made-Up"]
    two = found["CPU, 2 cores"].shown
    assert [(s.row.name, s.row.threads, s.ours.seconds.median) for s in two] == [
        ("gemm_1024", 2, 1.0),
        ("gemm_1024", 1, 5.0),
        ("only_old", 2, 1.0),
    ]
    assert found["NVIDIA Made-Up"].gpu and not found["CPU, 16 cores"].gpu


def test_the_table_says_what_is_ahead_noisy_failed_missing_and_short(machines, both):
    cpu, gpu = machines(*both)
    cells = table_of(cpu)
    step = cells["train_step_p5_batch100"]
    assert (step["rawgrad"], step["PyTorch"]) == ("7 ms", "18 ms")
    assert step["rawgrad's time over PyTorch's"] == "0.39 (0.39 – 0.39)"
    assert step["goal"] == "≤ 0.50 of PyTorch's: reached" and step["note"] == ""
    assert cells["train_step_p5_batch512"]["note"] == "noisy: others used 30%"
    assert cells["gemm_1024"]["goal"] == "≤ 1.05 of NumPy's: reached"
    assert cells["max_pool2d_p5_layer1"]["goal"] == "≤ 0.33 of PyTorch's: not measured"
    assert cells["max_pool2d_p5_layer1"]["note"] == "PyTorch missing"
    failed = cells["conv2d_p5_layer2"]
    assert failed["note"].startswith("failed: conv2d_p5_layer2: rawgrad gives a wrong result") and not failed["rawgrad"]
    assert failed["goal"].count("not measured") == 2
    assert cells["overhead_p8_batch1"]["note"] == "90% of rawgrad's step is outside kernels"
    assert not any("goal" in one for one in table_of(gpu).values())  # these goals are the CPU's
    said = [block.text for block in content._machine(cpu) if isinstance(block, content.Text)]
    assert "Missing: PyTorch in `max_pool2d_p5_layer1`: it is not installed" in said


def test_a_goal_that_is_missed_is_short(machines, row):
    (cpu,) = machines(a_report(row("train_step_p9_batch100", {"rawgrad": 1.0, "torch": 1.4})))
    assert table_of(cpu)["train_step_p9_batch100"]["goal"] == "≤ 0.50 of PyTorch's: short"


def test_every_goal_is_of_a_row_and_a_contestant_that_there_is():
    for name, goal in goals._CPU.items():
        assert name in rows.TRAININGS or goal.peer in rows.spec(name).peers, name


def test_the_page_needs_no_other_file_and_has_every_picture(machines, both, tmp_path, capsys):
    machines(*both)
    paths = [str(path) for path in sorted((tmp_path / "in").iterdir())]
    assert cli.main(["report", *paths, "--out", str(tmp_path / "out")]) == 0
    assert capsys.readouterr().out.startswith("9 rows of 2 files, 1 of them failed\nwritten: ")
    text = (tmp_path / "out" / "report.html").read_text()
    page = Page(text)
    # CPU: over torch, over numpy, roofline; GPU: over torch, over torch compiled, roofline, a ladder; by batch.
    assert page.count["svg"] == 8 and page.count["figure"] == 8
    assert all(link.startswith("#") for link in page.links) and "url(http" not in text and "@import" not in text
    assert "<metadata" not in text and "<?xml" not in text and "<!DOCTYPE svg" not in text
    assert len(page.ids) == len(set(page.ids))
    assert 'name="viewport"' in text and "prefers-color-scheme: dark" in text
    assert pictures.INK not in text[text.index("<body") :] and "currentColor" in text
    assert "wrong result: &lt;1&gt; | 2" in text and "class=failed" in text and "class=noisy" in text
    assert content.NO_GPU not in text
    written = (tmp_path / "out" / "report.md").read_text()
    assert r"wrong result: <1> \| 2" in written
    images = set(re.findall(r"!\[.*?\]\((.*?)\)", written))
    assert images == {path.name for path in (tmp_path / "out").glob("*.png")} and len(images) == 8
    tables = [block for block in written.split("\n\n") if block.startswith("|")]
    for table in tables:
        assert len({line.replace(r"\|", "").count("|") for line in table.strip().splitlines()}) == 1
    assert len(tables) == 5  # a table each, the GPU's versions, and of each what rawgrad does in other ways


def test_versions_stand_from_the_plainest_up(machines, both):
    _, gpu = machines(*both)
    shown = next(one for one in gpu.shown if one.row.name == "gemm_1024")
    assert list(shown.versions) == ["v1_plain", "v2_smem_tile", "v10_last"]
    made = pictures.ladder(shown)
    labels = [label.get_text() for label in made.axes[0].get_yticklabels()]
    assert labels == ["v1_plain", "v2_smem_tile", "v10_last", "rawgrad", "torch"]
    assert [bar.get_width() for bar in made.axes[0].patches] == pytest.approx([90, 40, 10, 10, 11])  # µs
    table = [block for block in content._machine(gpu) if isinstance(block, content.Table)][1]
    assert [line[1::3] for line in table.lines] == [
        ["v1_plain", "9.00"],
        ["v2_smem_tile", "4.00"],
        ["v10_last", "1.00"],
        ["rawgrad", "1.00"],
    ]


def test_bars_go_from_one_to_the_median_best_on_top_and_goals_are_marked(machines, both):
    cpu, _ = machines(*both)
    made = pictures.over_peer(cpu, [s for s in cpu.shown if s.outside is None], "torch")
    (axes,) = made.axes
    labels = [label.get_text() for label in axes.get_yticklabels()]
    assert labels == ["conv2d P5 layer 2", "gemm 1024", "step P5, batch 100", "step P5, batch 512 (noisy)"]
    bars = [(bar.get_x(), bar.get_x() + bar.get_width(), bar.get_hatch()) for bar in axes.patches]
    assert bars == [
        (1, pytest.approx(8 / 7), None),
        (pytest.approx(7 / 18), 1, None),
        (pytest.approx(0.32), 1, "////"),
    ]
    marks = [line.get_xdata()[0] for line in axes.lines if line.get_color() == pictures.MARK]
    assert marks == [0.5, 0.5]
    assert [text.get_text() for text in axes.texts] == ["failed", "1.14 (1 / 0.9)", "0.39 (1 / 2.6)", "0.32 (1 / 3.1)"]
    (axes,) = pictures.over_peer(cpu, cpu.shown, "numpy").axes  # which has no convolution, so none that failed
    assert [label.get_text() for label in axes.get_yticklabels()] == ["gemm 1024"]


def test_the_roofline_has_each_row_that_states_operations_and_bytes(machines, both):
    cpu, gpu = machines(*both)
    assert [one.row.name for one in cpu.shown if pictures.on_roofline(one)] == ["gemm_1024"]
    (axes,) = pictures.roofline([one for one in cpu.shown if pictures.on_roofline(one)]).axes
    roof, *points = axes.lines
    intensity = 2 * 1024**3 / (3 * 2**22)
    assert roof.get_ydata().max() == 480 and np.allclose(roof.get_ydata()[0], roof.get_xdata()[0] * 50)
    assert [(p.get_xdata()[0], p.get_ydata()[0]) for p in points] == [
        (intensity, pytest.approx(2 * 1024**3 / seconds / 1e9)) for seconds in (0.008, 0.0085, 0.007)
    ]
    (axes,) = pictures.roofline([one for one in gpu.shown if pictures.on_roofline(one)]).axes
    assert len(axes.lines) == 2  # no roof, since no limits were measured; rawgrad and torch, no versions


def test_by_batch_the_gpu_is_beside_the_cpu(machines, both):
    cpu, gpu = machines(*both)
    assert pictures.batches(cpu) == {
        ("p5", "rawgrad"): [(100, pytest.approx(100 / 0.007)), (512, pytest.approx(16000))]
    }
    assert pictures.batches(gpu)["p5", "rawgrad captured"] == [(100, pytest.approx(1e6))]
    labels = [text.get_text() for text in pictures.by_batch([cpu, gpu]).legends[0].get_texts()]
    assert labels == ["P5", "CPU, 2 cores", "NVIDIA Made-Up", "NVIDIA Made-Up, captured"]


def test_without_a_gpu_the_report_says_so(machines, both, tmp_path, capsys):
    machines(both[0])
    out = tmp_path / "out"
    assert cli.main(["report", str(tmp_path / "in" / "0.json"), "--out", str(out)]) == 0
    assert content.NO_GPU in capsys.readouterr().out
    assert content.NO_GPU in (out / "report.html").read_text() and content.NO_GPU in (out / "report.md").read_text()


def test_rows_that_failed_alone_make_a_report(machines, tmp_path):
    machines(a_report(results.not_timed("gemm_1024", "off", 2)))
    assert cli.main(["report", str(tmp_path / "in" / "0.json"), "--out", str(tmp_path / "out")]) == 0
    page = Page((tmp_path / "out" / "report.html").read_text())
    assert "svg" not in page.count and page.count["table"] == 1


def test_records_of_another_kind_are_named(machines, both, tmp_path):
    machines(both[0])
    other = tmp_path / "in" / "other.json"
    other.write_text(json.dumps({"kind": "reading", "date": "2026", "command": "c", "dirty": True, "commit": "abc"}))
    assert cli.main(["report", str(tmp_path / "in" / "0.json"), str(other), "--out", str(tmp_path / "out")]) == 0
    text = (tmp_path / "out" / "report.md").read_text()
    assert "`other.json` (about reading, not shown): 2026, commit abc with changes, `c`" in text
    assert "`0.json` (6 of 6 rows shown)" in text
    with pytest.raises(DataError, match="at least one file must have rows"):
        cli.main(["report", str(other), "--out", str(tmp_path / "none")])
    assert not (tmp_path / "none").exists()


def test_every_committed_record_of_another_kind_is_shown():
    read = gather.read(gather.recorded())
    assert not [r.path.name for r in read if r.report is None and others.blocks_of(r) is None]


def test_growth_is_shown_with_a_picture_and_without_any_row(tmp_path):
    def along(contestant, exponent):
        rounds = [[1e-3 * n**exponent for n in (1, 2, 4)]] * 2
        return growth.series("depth", "a step", Contestant(contestant, print, detail="1"), (1, 2, 4), rounds)

    told = {"kind": "growth", "date": "2026-11-22", "command": "c", "machine": CPU, "rounds": 2, "threads": 2}
    series = [dataclasses.asdict(along(*one)) for one in (("rawgrad", 0.5), ("torch", 1.5))]
    file = tmp_path / "growth.json"
    results.write({**told, "series": series, "others_share": 0.5}, file)
    old = tmp_path / "old.json"
    results.write({**told, "series": series[:1], "date": "2026-11-21"}, old)
    assert cli.main(["report", str(file), str(old), "--out", str(tmp_path / "out")]) == 0
    text = (tmp_path / "out" / "report.md").read_text()
    assert "![a step](growth-depth.png)" in text and (tmp_path / "out" / "growth-depth.png").is_file()
    assert "| depth | torch | 1.50 | 1.50 – 1.50 | 0% | 1, 2, 4 | 1 ms, 2.83 ms, 8 ms |" in text
    assert "noisy: others used 50%" in text
    assert "`growth.json` (about growth):" in text and "`old.json` (about growth, not shown):" in text
    (axes,) = pictures.growing([along("rawgrad", 0.5), along("torch", 1.5)]).axes
    points, line = axes.lines[:2]
    assert list(points.get_ydata()) == pytest.approx(list(line.get_ydata()))
    with pytest.raises(DataError, match="at least one file must have rows"):
        cli.main(["report", str(file), "--picture", str(tmp_path / "p.png")])


def test_rawgrad_in_other_ways_has_a_table(machines, row, tmp_path):
    ways = {"rawgrad": 1.0, "torch": 3.0, "rawgrad, first run": 20.0, "rawgrad numpy": 2.0}
    machines(a_report(row("first_step", ways), row("forward_p5_batch1", {"rawgrad": 1e-4}, threads=2)))
    assert cli.main(["report", str(tmp_path / "in" / "0.json"), "--out", str(tmp_path / "out")]) == 0
    text = (tmp_path / "out" / "report.md").read_text()
    assert "| `first_step` | 2 | first run | 20 s | 19.8 s – 20.2 s | 20.00 |" in text
    assert "| `first_step` | 2 | numpy | 2 s |" in text
    assert "(batches-forward.png)" in text and "(batches.png)" not in text


def test_rows_of_another_cpu_are_noted_and_times_of_nothing_refused(machines, row, tmp_path):
    old = a_report(row("gemm_1024", {"rawgrad": 2.0}), date="2026-01-01", machine={**CPU, "cpu": "an old CPU"})
    (cpu,) = machines(old, a_report(row("gemm_100x980x10", {"rawgrad": 1.0})))
    assert {name: line.get("note") for name, line in table_of(cpu).items()} == {
        "gemm_1024": "on an old CPU",
        "gemm_100x980x10": "",
    }
    with pytest.raises(DataError, match=r"gemm_1024: seconds must be positive; not so: \['rawgrad'\]"):
        machines(a_report(row("gemm_1024", {"rawgrad": 0.0})))


def test_pictures_stay_in_their_folder(machines, row, tmp_path):
    versions = {"rawgrad": 1.0, "rawgrad v1_plain": 2.0, "../peer, one": 3.0}
    machines(a_report(row("../../gemm", versions, dtype="../f32", **GEMM)))
    out = tmp_path / "a" / "b" / "out"
    assert cli.main(["report", str(tmp_path / "in" / "0.json"), "--out", str(out)]) == 0
    assert {path.name for path in out.glob("*.png")} == {
        "cpu-2-cores-peer-one.png",
        "cpu-2-cores-roofline-f32-2.png",
        "cpu-2-cores-ladder-gemm.png",
    }
    assert {path.name for path in tmp_path.rglob("*.*")} == {path.name for path in out.iterdir()} | {"0.json"}


def test_labels_are_short_and_tell_threads_where_they_differ(machines, row):
    names = ["train_step_p9_dropout_batch100", "conv2d_p5_layer2", "layer_norm_p5", "conv2d_64x64_3x3_on_32"]
    made = [row(name, {"rawgrad": 1.0}) for name in names]
    (cpu,) = machines(a_report(*made, row("gemm_1024", {"rawgrad": 1.0}, threads=1)))
    assert {one.row.name: cpu.label(one) for one in cpu.shown} == {
        names[0]: "step P9 dropout, batch 100",
        names[1]: "conv2d P5 layer 2",
        names[2]: "layer norm P5",
        names[3]: "conv2d 64x64 3x3 on 32",
        "gemm_1024": "gemm 1024, 1 thread",
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [("{", "must be a JSON file"), ('{"kind": 3}', "must tell its kind, date and command"), ("{}", "must have schema")],
)
def test_what_is_no_result_file_is_refused(tmp_path, text, message):
    path = tmp_path / "x.json"
    path.write_text(text)
    with pytest.raises(DataError, match=message):
        cli.main(["report", str(path), "--out", str(tmp_path / "out")])


def test_an_installed_rawgrad_without_records_says_what_to_do(tmp_path):
    with pytest.raises(DataError, match=r"no result files in .*; name some \(rawgrad bench --out FILE\)"):
        gather.recorded(tmp_path)


def test_where_nothing_can_be_written_that_is_said(machines, both, tmp_path):
    machines(both[0])
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"file cannot be written"):
        cli.main(["report", str(tmp_path / "in" / "0.json"), "--out", str(tmp_path / "file")])


def test_the_records_of_this_checkout_make_a_report_and_the_picture_for_readme(tmp_path, capsys):
    assert cli.main(["report", "--picture", str(tmp_path / "measured.png")]) == 0
    path = tmp_path / "measured.png"
    assert [p.name for p in tmp_path.iterdir()] == ["measured.png"]
    assert path.stat().st_size < 200_000
    with Image.open(path) as image:
        assert image.width >= 800 and image.getpixel((2, 2))[:3] == (255, 255, 255)
    with pytest.raises(DataError, match=r"--picture must be a \.png file"):
        cli.main(["report", "--picture", str(tmp_path / "measured.svg")])


def test_a_picture_without_torch_is_refused(machines, row, tmp_path):
    machines(a_report(row("gemm_1024", {"rawgrad": 1.0, "numpy": 2.0})))
    with pytest.raises(DataError, match="needs a record of a CPU with torch as a peer"):
        cli.main(["report", str(tmp_path / "in" / "0.json"), "--picture", str(tmp_path / "x.png")])


def test_code_and_emphasis_are_marked_and_the_rest_is_escaped():
    assert pages._inline("`a<b` & *c d*, 2 * 3 * 4") == "<code>a&lt;b</code> &amp; <em>c d</em>, 2 * 3 * 4"


def test_a_picture_is_the_same_when_it_is_drawn_again(machines, both):
    cpu, _ = machines(*both)
    one, other = (pictures.svg(pictures.over_peer(cpu, cpu.shown, "torch"), "name") for _ in range(2))
    assert one == other
