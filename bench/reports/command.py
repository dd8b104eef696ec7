"""``rawgrad bench report``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from ...kernels._errors import DataError
from . import gather, others, pages, pictures
from .content import NO_GPU, report
from .gather import Machine
from .goals import goal_of

_OUT = Path("runs/bench-report")
#: Inches and dots an inch of the picture for README.
_PICTURE_WIDTH, _PICTURE_DPI = 7.0, 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="rawgrad bench report",
        description="Tables (Markdown, and one HTML page that needs no other file) and pictures of result files: "
        "rawgrad's time over each peer's, a roofline, training by batch size, versions of each kernel. Of a row that "
        "is in several files the newest is shown.",
    )
    parser.add_argument(
        "files", nargs="*", type=Path, metavar="FILE", help="result files (default: all in bench/results/)"
    )
    parser.add_argument("--out", type=Path, metavar="FOLDER", help=f"where the report goes (default: {_OUT})")
    parser.add_argument(
        "--picture",
        type=Path,
        metavar="FILE.png",
        help="draw only rawgrad's time over PyTorch's on the CPU: rows that have a goal and whole training steps",
    )
    return parser


def _picture(machines: Sequence[Machine], path: Path) -> None:
    """The picture that README shows, from the machine that was measured last.

    Raises:
        DataError: no CPU was measured beside PyTorch.
    """
    cpus = [m for m in machines if not m.gpu and any("torch" in one.over_peers for one in m.shown)]
    if not cpus:
        raise DataError("bench report: --picture needs a record of a CPU with torch as a peer; there is none")
    newest = max(cpus, key=lambda machine: machine.newest.date)
    shown = [
        one
        for one in newest.shown
        if goal_of(one.row, False)
        or (one.row.name.startswith("train_step_") and one.row.threads == max(newest.threads))
    ]
    title = f"{newest.name}, {newest.newest.machine.get('cpu')}, {newest.newest.date[:10]}"
    made = pictures.over_peer(newest, shown, "torch", _PICTURE_WIDTH, title)
    pictures.png(made, path, _PICTURE_DPI)


def main(argv: Sequence[str] | None = None) -> int:
    """Write the report, or the picture alone."""
    options = _parser().parse_args(argv)
    if options.picture is not None and options.picture.suffix != ".png":
        raise DataError(f"bench report: --picture must be a .png file; got {options.picture}")
    records = gather.read(options.files or gather.recorded())
    machines = gather.machines(records)
    if not machines and (options.picture is not None or not others.newest(records)):
        raise DataError("bench report: at least one file must have rows; got only records of another kind")
    target = options.picture or options.out or _OUT
    try:
        if options.picture is not None:
            target.parent.mkdir(parents=True, exist_ok=True)
            _picture(machines, target)
            print(f"written: {target}")
            return 0
        target.mkdir(parents=True, exist_ok=True)
        blocks = list(report(records, machines))
        (target / "report.md").write_text(pages.markdown(blocks, target), encoding="utf-8")
        (target / "report.html").write_text(pages.page(blocks), encoding="utf-8")
    except OSError as error:
        raise DataError(f"bench report: {target} cannot be written: {error.strerror or error}") from error
    if not any(machine.gpu for machine in machines):
        print(NO_GPU)
    rows = sum(len(machine.shown) for machine in machines)
    failed = sum(one.row.failed is not None for machine in machines for one in machine.shown)
    print(f"{rows} rows of {len(records)} files" + (f", {failed} of them failed" if failed else ""))
    print(f"written: {target / 'report.md'}, {target / 'report.html'}")
    return 0
