"""Subcommands of ``rawgrad`` on runs and trained networks: report, compare, evaluate, trace, predict, replay.

What they do lives in modules of its own, imported when it runs.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from ..kernels._errors import ArgumentError
from .subcommand import Command, add_data_dir, add_limit, add_place, place


def _declare_evaluate(parser: argparse.ArgumentParser) -> None:
    _add_model(parser, "model", nargs="?")
    add_data_dir(parser)
    add_place(parser)
    parser.add_argument(
        "--split", default="test", choices=("train", "validation", "test"), help="which images (default: test)"
    )
    add_limit(parser)
    parser.add_argument(
        "--pictures", type=int, nargs="?", const=10_000, metavar="N",
        help="write the first N images (default: 10,000) out as PNG, scaled, inverted, shifted and more, and read them",
    )  # fmt: skip
    parser.add_argument(
        "--folder", type=Path, metavar="DIR",
        help="read pictures instead: DIR holds one folder for each class, 0 to 9, with PNG or JPEG files",
    )  # fmt: skip
    parser.add_argument(
        "--out", type=Path, metavar="PICTURE", help="draw confusion matrix and worst mistakes (.png, .pdf, .svg)"
    )


def _add_model(parser: argparse.ArgumentParser, name: str, **options: Any) -> None:
    parser.add_argument(
        name, type=Path, metavar="RUN_OR_WEIGHTS", **options,
        help="the folder of a run, or a file of weights (default: the newest in runs/mnist-cnn, else runs/digits-cnn)",
    )  # fmt: skip


def _reader(path: Path | None, device: str) -> Any:
    from .reading import Reader, find_weights

    reader = Reader(find_weights() if path is None else path, device)
    if path is None or (path.is_dir() and path != reader.path.parent):
        print(f"model: {reader.path}", file=sys.stderr)
    return reader


def _evaluate(options: argparse.Namespace) -> int:
    from .evaluating import draw_report, evaluate, evaluate_folder, evaluate_pictures
    from .pictures import check_path
    from .predicting import say
    from .training import limited

    for name in ("pictures", "limit"):
        if (value := getattr(options, name)) is not None and value < 1:
            raise ArgumentError(f"evaluate: --{name} must be at least 1; got {value}")
    if options.pictures is not None and (options.out is not None or options.folder is not None):
        other = "--out" if options.out is not None else "--folder"
        raise ArgumentError(f"evaluate: --pictures only counts what is read right; it does not go with {other}")
    if options.out is not None:
        check_path("evaluate", options.out)
    left_out = 0
    with place(options) as device:
        reader = _reader(options.model, device)
        if options.folder is not None:
            report, left_out = evaluate_folder(reader, options.folder, options.limit)
        else:
            data = limited(reader.load_data(options.split, options.data_dir), options.limit)
            if options.pictures is not None:
                evaluate_pictures(reader, data, options.pictures)
                return 0
            report = evaluate(reader, data)
    if options.out is not None:
        draw_report(report, options.out)
        print(f"drawn into {options.out}\n")
    say(str(report))
    if left_out:
        print(f"rawgrad: {left_out} of {left_out + report.count} could not be read and are left out", file=sys.stderr)
    return 2 if left_out else 0


def _declare_trace(parser: argparse.ArgumentParser) -> None:
    _add_model(parser, "model", nargs="?")
    add_data_dir(parser)
    add_place(parser)
    parser.add_argument("--images", type=int, default=100, metavar="N", help="the first N test images (default: 100)")
    parser.add_argument(
        "--train", action="store_true", help="in training mode: dropout drops, batch norm takes the batch"
    )


def _trace(options: argparse.Namespace) -> int:
    from .evaluating import trace

    if options.images < 1:
        raise ArgumentError(f"trace: --images must be at least 1; got {options.images}")
    with place(options) as device:
        reader = _reader(options.model, device)
        print(trace(reader, reader.load_data("test", options.data_dir), options.images, options.train))
    return 0


def _declare_predict(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "images", nargs="+", metavar="IMAGE",
        help="PNG or JPEG of one digit, any size and colours; a folder: all such files below it; -: standard input",
    )  # fmt: skip
    _add_model(parser, "--weights")
    add_place(parser)
    parser.add_argument("--json", action="store_true", help="print a list with one object for each picture")


def _predict(options: argparse.Namespace) -> int:
    from .predicting import predict

    with place(options) as device:
        return predict(_reader(options.weights, device), options.images, options.json)


# ---- replay -----------------------------------------------------------------------------------


def _declare_replay(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", type=Path, metavar="RUN_OR_FILE", help="the folder of a run, or the file it saved")
    add_place(parser)


def _replay(options: argparse.Namespace) -> int:
    from .replaying import again

    with place(options) as device:
        return again(options.path, device)


# ---- report, compare --------------------------------------------------------------------------


def _declare_report(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("run", type=Path, metavar="RUN", help="the folder of a run")
    add("--out", type=Path, metavar="FILE.html", help="the page (default: report.html in the run)")
    add("--picture", type=Path, metavar="FILE.png", help="six panels of it (default: beside the page)")
    add_data_dir(parser)


def _report(options: argparse.Namespace) -> int:
    from .reporting import report

    return report(options.run, options.out, options.picture, options.data_dir)


def _declare_compare(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="folders of runs, at least two")
    parser.add_argument(
        "--out", type=Path, default=Path("compare.png"), metavar="PICTURE",
        help="the picture, .png, .pdf or .svg (default: compare.png)",
    )  # fmt: skip


def _compare(options: argparse.Namespace) -> int:
    from .comparing import compare

    return compare(options.runs, options.out)


#: By name.
ON_RUNS: dict[str, Command] = {
    "report": Command(
        "show a run: one HTML file with curves, weights, gradients, digits, mistakes; and a picture of it",
        _declare_report,
        _report,
        (
            ("rawgrad report runs/digits-cnn", "writes report.html and report.png into it"),
            ("rawgrad train --watch", "before: keeps what can be seen on the way only"),
        ),
    ),
    "compare": Command(
        "draw several runs in one picture, with a table of their figures and of what differs",
        _declare_compare,
        _compare,
        (("rawgrad compare runs/one runs/other --out both.png", ""),),
    ),
    "evaluate": Command(
        "test a trained network: accuracy, loss, confusion matrix, worst classes and mistakes",
        _declare_evaluate,
        _evaluate,
        (
            ("rawgrad evaluate runs/digits-cnn", "on the test images that its data set has"),
            ("rawgrad evaluate runs/digits-cnn --out mistakes.png", "and draw the worst mistakes"),
            ("rawgrad evaluate runs/mnist-cnn --pictures", "on them as pictures, scaled, shifted, photographed"),
            ("rawgrad evaluate runs/mnist-cnn --folder scans/", "on your own, in scans/0/ to scans/9/"),
        ),
    ),
    "trace": Command(
        "show what goes into each layer of a trained network and comes out: shape, range, NaN, time",
        _declare_trace,
        _trace,
        (("rawgrad trace runs/digits-cnn", "on a batch of the test images that its data set has"),),
    ),
    "predict": Command(
        "read the digit in each picture, with the probability of each class",
        _declare_predict,
        _predict,
        (
            ("rawgrad predict seven.png photo.jpg", "dark on light or light on dark, in any place"),
            ("rawgrad predict seven.png --weights runs/digits-cnn", "with a certain network"),
            ("rawgrad predict scans/", "every picture below a folder"),
            ("rawgrad predict - --json < seven.png", "for scripts"),
        ),
    ),
    "replay": Command(
        "do the step again at which a training met NaN or infinity, and say where they come from",
        _declare_replay,
        _replay,
        (("rawgrad replay runs/mnist-cnn", "layer by layer, then the operation"),),
    ),
}
