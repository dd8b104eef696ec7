"""The ``rawgrad`` command: train, report, compare, evaluate, trace, predict, replay, programs, data, emulate, doctor.

Each subcommand is a :class:`Command`: its options, and a function of them that gives the exit code.
What a subcommand does lives in a module of its own, imported when it runs.  ``rawgrad bench`` belongs
to the bench; ``__main__.py`` sends it there.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NoReturn

from ..engine.stopping import Terminated, terminable
from ..kernels._devices import device_named
from ..kernels._dispatch import BACKENDS, PRECISIONS, backend_of, current_choice
from ..kernels._dispatch import backend as use_backend
from ..kernels._errors import ArgumentError, DataError
from ..kernels._threads import get_num_threads, most_threads, set_num_threads
from .options import Options
from .programs import DEFAULT, PROGRAMS, overview


@dataclass(frozen=True)
class Command:
    """A subcommand.

    Attributes:
        summary: one line for ``rawgrad --help``.
        declare: adds its options to a parser.
        run: does it; gives the exit code.
        examples: of its use: command and what it does.
    """

    summary: str
    declare: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], int]
    examples: tuple[tuple[str, str], ...] = ()


def main(argv: Sequence[str]) -> int:
    """Run the command line ``argv``; 0 if all went well, 2 for a refusal, 130 for an interrupt, 143 for SIGTERM.

    Raises:
        RawgradError: what was asked for cannot be done; its message is one to show.
    """
    arguments = list(argv)
    try:
        code = _run(arguments)
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # `rawgrad programs | head`: nobody reads on, which is no error of ours
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except OSError as error:  # a full disk, a folder that may not be written
        raise DataError(f"{error.filename or 'system'}: {error.strerror or error}") from error


def _run(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(_help())
        return 0
    if arguments[0] in ("-V", "--version"):
        print(f"rawgrad {version()}")
        return 0
    name, *rest = arguments
    if name not in COMMANDS:
        raise ArgumentError(_unknown_command(name))
    command = COMMANDS[name]
    parser = _Parser(
        prog=f"rawgrad {name}",
        description=command.summary[0].upper() + command.summary[1:] + ".",
        epilog=_table("examples:", command.examples),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    command.declare(parser)
    try:
        options, unknown = parser.parse_known_args(rest)
    except SystemExit as end:  # --help was printed
        return int(end.code or 0)
    if unknown:
        known = [option for action in parser._actions for option in action.option_strings]
        what = "option" if unknown[0].startswith("-") else "argument"
        raise ArgumentError(
            f"{name}: unknown {what} {unknown[0]}{_did_you_mean(unknown[0].partition('=')[0], known)}; "
            f"see `rawgrad {name} --help`"
        )
    options.arguments = rest
    return command.run(options)


class _Parser(argparse.ArgumentParser):
    """Refuses with an error of ours, which the caller shows in one line."""

    def error(self, message: str) -> NoReturn:
        raise ArgumentError(f"{self.prog.removeprefix('rawgrad ')}: {message}; see `{self.prog} --help`")


def _did_you_mean(word: str, known: Iterable[str]) -> str:
    close = get_close_matches(word.lower().replace("_", "-"), list(known), 1, 0.6)
    return f" (did you mean {close[0]}?)" if close else ""


def _unknown_command(name: str) -> str:
    if name in PROGRAMS:
        return f"{name!r} is a program: `rawgrad train {name}` runs it"
    if name.startswith("-"):
        return f"there is no option {name}{_did_you_mean(name, ['--help', '--version'])}; see `rawgrad --help`"
    return f"there is no command {name!r}{_did_you_mean(name, [*COMMANDS, 'bench'])}; see `rawgrad --help`"


def version() -> str:
    """rawgrad's version; asked of the root package, which is loaded, since imports go down only."""
    return str(sys.modules[__name__.partition(".")[0]].__version__)


def _table(title: str, rows: Sequence[tuple[str, str]]) -> str:
    width = max((len(left) for left, _ in rows), default=0)
    return "\n".join([title, *(f"  {left:{width}}  {right}".rstrip() for left, right in rows)])


def _help() -> str:
    commands = [(name, command.summary) for name, command in COMMANDS.items()]
    commands.append(("bench", "measure kernels and training steps beside other libraries"))
    return "\n\n".join(
        (
            "usage: rawgrad COMMAND [OPTION ...]\n       rawgrad --help | --version",
            "rawgrad trains and uses small networks on kernels that it wrote itself.",
            _table("commands (`rawgrad COMMAND --help` explains each):", commands),
            _table(
                "examples:",
                (
                    ("rawgrad train", "a digit classifier in under a minute, without a download"),
                    ("rawgrad train mnist-cnn --data-dir DIR", "99 % on MNIST"),
                    ("rawgrad predict photo.png", "which digit is that?"),
                    ("rawgrad programs", "everything that can be trained"),
                    ("rawgrad doctor", "what runs on this machine, and why the rest does not"),
                ),
            ),
        )
    )


# ---- train ------------------------------------------------------------------------------------


def _declare_train(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("program", nargs="?", default=DEFAULT, metavar="PROGRAM", help=f"see `rawgrad programs` (default: {DEFAULT})")
    add("--out", type=Path, metavar="DIR", help="folder for weights, records and pictures (default: runs/PROGRAM)")
    _add_data_dir(parser)
    _add_place(parser)
    add("--epochs", type=int, metavar="N", help="passes over the training images")
    add("--steps", type=int, metavar="N", help="stop after so many batches in all")
    _add_limit(parser)
    add("--batch-size", type=int, metavar="N", help="images in a batch")
    add("--lr", type=float, metavar="X", help="learning rate, then kept constant")
    add("--optimizer", metavar="O", help="sgd, momentum, adagrad, rmsprop or adam")
    add("--weight-decay", type=float, metavar="X", help="L2 penalty: X times each parameter is added to its gradient")
    add("--seed", type=int, default=0, metavar="N", help="of everything random (default: 0)")
    add("--seeds", type=int, default=1, metavar="N", help="repeat with so many seeds, for programs with a known curve")
    add("--threads", type=int, metavar="N", help="threads of the kernels on the CPU (default: all)")
    add("--workers", type=int, default=0, metavar="N", help="readers that make batches ahead of time (default: none)")
    add("--prefetch", type=int, metavar="N", help="batches that they may be ahead (default: 2, or 1 more than readers)")
    add(
        "--resume",
        action="store_true",
        help="go on where the run was left, bit for bit; afresh if there is none",
    )
    add("--save-every", type=int, metavar="N", help="lose N steps at most if the run is killed (default: an epoch)")
    add("--watch", action="store_true", help="look inside now and then, for `rawgrad report` (docs/watching.md)")
    add("--watch-every", type=int, metavar="N", help="so many steps apart (default: about 40 times in the run)")
    add("--tensorboard", action="store_true", help="the same for TensorBoard, into the folder tensorboard of the run")
    add(
        "--capture",
        action=argparse.BooleanOptionalAction,
        help="on a GPU: start a whole step by one call (docs/graphs.md; default: if it can be)",
    )
    add("--accumulate", type=int, default=1, metavar="N", help="batches whose gradients make one step (default: 1)")
    add("--clip-norm", type=float, metavar="X", help="the greatest norm of all gradients together")
    add("--precision", choices=PRECISIONS, metavar="P", help=f"of products on a GPU: {', '.join(PRECISIONS)}")
    add("--patience", type=int, metavar="N", help="end after N epochs without a smaller loss on the validation set")
    add("--quiet", action="store_true", help="print the last line only")
    add("--json", action="store_true", help="print one JSON object a line, for scripts")


def _add_place(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", metavar="D", help="where to compute: cpu, cuda (default: the backend's, else cpu)")
    _add_backend(parser)


def _add_backend(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--backend", metavar="B", help="whose kernels run (default: RAWGRAD_BACKEND, else the device's first)"
    )


@contextmanager
def _place(options: argparse.Namespace) -> Iterator[str]:
    """The device that the options (or ``RAWGRAD_BACKEND``) mean, while the backend that they name is active.

    Raises:
        BackendError, DeviceError: it is not there; the message says what to do.
        ArgumentError: the backend is one of another device.
    """
    with ExitStack() as stack:
        if options.backend is not None:
            stack.enter_context(use_backend(options.backend))
            its_own = BACKENDS[options.backend].device
            if options.device not in (None, its_own):
                raise ArgumentError(
                    f"backend {options.backend!r} computes on device {its_own!r}; got --device {options.device}"
                )
        else:
            chosen = [device for device, _ in current_choice().backends]
            its_own = chosen[0] if len(chosen) == 1 else "cpu"
        device = options.device or its_own
        device_named(device)
        yield device


def _add_limit(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--limit", type=int, metavar="N", help="take the first N images of each split only, to try something quickly"
    )


def _add_data_dir(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--data-dir", type=Path, metavar="DIR",
        help="where MNIST is: its four IDX files or mnist.json.gz (default: RAWGRAD_DATA, the cache, a download)",
    )  # fmt: skip


def _train(options: argparse.Namespace) -> int:
    name = options.program
    if name not in PROGRAMS:
        raise ArgumentError(
            f"train: there is no program {name!r}{_did_you_mean(name, PROGRAMS)}; `rawgrad programs` lists them"
        )
    out = Path("runs", name) if options.out is None else options.out
    if out.exists() and not out.is_dir():
        raise ArgumentError(f"train: --out must be a folder; {out} is a file")
    if options.threads is not None and options.threads < 1:
        raise ArgumentError(f"train: --threads must be at least 1; got {options.threads}")
    settings = Options(
        out=out,
        **{
            key: getattr(options, key)
            for key in (
                "data_dir", "epochs", "steps", "limit", "batch_size", "lr", "optimizer", "weight_decay", "seed",
                "seeds", "resume", "save_every", "quiet", "workers", "prefetch", "capture", "accumulate", "clip_norm",
                "precision", "patience", "json", "watch", "watch_every", "tensorboard",
            )
        },
    )  # fmt: skip
    start = time.time()
    with ExitStack() as stack:
        settings = settings.but(device=stack.enter_context(_place(options)))
        if options.threads is not None:
            stack.enter_context(_threads(options.threads))
        stack.enter_context(terminable())
        try:
            result = PROGRAMS[name].run(settings)
        except (KeyboardInterrupt, Terminated) as end:
            what, code = ("terminated", 143) if isinstance(end, Terminated) else ("interrupted", 130)
            print(f"\nrawgrad: {what}; {_how_to_resume(options.arguments, out, str(end))}", file=sys.stderr)
            return code
    settings.say(_what_next(name, out, start))
    if not settings.json:
        print(result)
    return 0


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """Let what computes on the CPU use ``count`` threads: the compiled kernels, or with backend ``numpy`` its BLAS.

    Raises:
        ArgumentError: the compiled kernels cannot use as many.
    """
    if backend_of("cpu") != "numba":
        import numpy  # noqa: F401  so that there is a BLAS to limit
        from threadpoolctl import threadpool_limits

        with threadpool_limits(count, user_api="blas"):
            yield
        return
    before, most = get_num_threads(), most_threads()
    if count > most:
        raise ArgumentError(
            f"train: --threads must be at most {most}, the processors that this process may use, unless "
            f"RAWGRAD_THREADS says more; got {count}"
        )
    set_num_threads(count)
    try:
        yield
    finally:
        set_num_threads(before)


def _fresh(out: Path, name: str, start: float) -> list[Path]:
    """The files called ``name`` below ``out`` that were written since ``start``, oldest first."""
    times = {path: path.stat().st_mtime for path in out.rglob(name)}
    return sorted((path for path, at in times.items() if at >= start - 1), key=times.__getitem__)


def _how_to_resume(arguments: list[str], out: Path, saved: str) -> str:
    if not any(next(out.rglob(name), None) for name in ("checkpoints/*.safetensors", "training.safetensors")):
        return "no epoch was finished, so nothing was saved"
    again = [argument for argument in arguments if argument != "--resume"]
    saved = saved or f"what was finished is in {out}"
    return f"{saved}. To go on:\n  {shlex.join(['rawgrad', 'train', *again, '--resume'])}"


def _what_next(name: str, out: Path, start: float) -> str:
    weights = _fresh(out, "weights.safetensors", start)
    if not weights:
        return "next: `rawgrad programs` lists what else there is"
    run = shlex.quote(str(weights[-1].parent))
    steps = [f"`rawgrad predict PICTURE --weights {run}` reads a digit", f"`rawgrad evaluate {run}` shows its mistakes"]
    if name == DEFAULT:
        steps.append("`rawgrad train mnist-cnn` is the larger sister")
    return f"next: {', '.join(steps)}"


# ---- evaluate, trace, predict -----------------------------------------------------------------


def _declare_evaluate(parser: argparse.ArgumentParser) -> None:
    _add_model(parser, "model", nargs="?")
    _add_data_dir(parser)
    _add_place(parser)
    parser.add_argument(
        "--split", default="test", choices=("train", "validation", "test"), help="which images (default: test)"
    )
    _add_limit(parser)
    parser.add_argument(
        "--pictures", type=int, nargs="?", const=10_000, metavar="N",
        help="write the first N images (default: 10,000) out as PNG, scaled, inverted and shifted, and read them back",
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
    with _place(options) as device:
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
    _add_data_dir(parser)
    _add_place(parser)
    parser.add_argument("--images", type=int, default=100, metavar="N", help="the first N test images (default: 100)")
    parser.add_argument(
        "--train", action="store_true", help="in training mode: dropout drops, batch norm takes the batch"
    )


def _trace(options: argparse.Namespace) -> int:
    from .evaluating import trace

    if options.images < 1:
        raise ArgumentError(f"trace: --images must be at least 1; got {options.images}")
    with _place(options) as device:
        reader = _reader(options.model, device)
        print(trace(reader, reader.load_data("test", options.data_dir), options.images, options.train))
    return 0


def _declare_predict(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "images", nargs="+", metavar="IMAGE",
        help="PNG or JPEG of one digit, any size and colours; a folder: all such files below it; -: standard input",
    )  # fmt: skip
    _add_model(parser, "--weights")
    _add_place(parser)
    parser.add_argument("--json", action="store_true", help="print a list with one object for each picture")


def _predict(options: argparse.Namespace) -> int:
    from .predicting import predict

    with _place(options) as device:
        return predict(_reader(options.weights, device), options.images, options.json)


# ---- replay -----------------------------------------------------------------------------------


def _declare_replay(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", type=Path, metavar="RUN_OR_FILE", help="the folder of a run, or the file it saved")
    _add_place(parser)


def _replay(options: argparse.Namespace) -> int:
    from .replaying import again

    with _place(options) as device:
        return again(options.path, device)


# ---- report, compare --------------------------------------------------------------------------


def _declare_report(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("run", type=Path, metavar="RUN", help="the folder of a run")
    add("--out", type=Path, metavar="FILE.html", help="the page (default: report.html in the run)")
    add("--picture", type=Path, metavar="FILE.png", help="six panels of it (default: beside the page)")
    _add_data_dir(parser)


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


# ---- emulate ----------------------------------------------------------------------------------


def _declare_emulate(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("file", type=Path, metavar="FILE.cu", help="CUDA C++; host code in it is ignored")
    add("--kernel", metavar="K", help="name, or 'name<float, 16>' for a template (default: the only kernel)")
    add("--grid", metavar="X[,Y[,Z]]", help="blocks (default: a thread for each element of the largest array)")
    add("--block", metavar="X[,Y[,Z]]", help="threads in a block (default: its __launch_bounds__, else 256)")
    add("--shared", type=int, default=0, metavar="BYTES", help="dynamic shared memory")
    add(
        "--arg", action="append", default=[], metavar="NAME=VALUE",
        help="an argument: n=1000, x=float32[64,32] (random), y=empty:[n], zeros:, ones:, arange:, values:1,2,3, "
        "x=file.npy, bias=null, size=(3,4) for a struct of ints",
    )  # fmt: skip
    add("--out", action="append", default=[], metavar="NAME[=FILE.npy]", help="print an array afterwards, or save it")
    add("--orders", type=int, default=3, metavar="N", help="compare so many orders of threads (default: 3)")
    add("--seed", type=int, default=0, metavar="N", help="of random arrays (default: 0)")


def _emulate(options: argparse.Namespace) -> int:
    from .emulating import emulate

    return emulate(options)


# ---- programs, data, doctor -------------------------------------------------------------------


def _programs(options: argparse.Namespace) -> int:
    print(overview())
    return 0


def _declare_data(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "source", nargs="?", default="digits", metavar="SOURCE",
        help="digits, mnist, or a folder with one folder of pictures per class (default: digits)",
    )  # fmt: skip
    parser.add_argument("--out", type=Path, metavar="PICTURE", help="draw samples into this picture (.png, .pdf, .svg)")
    parser.add_argument("--samples", type=int, metavar="N", help="how many to show (default: 8, in a picture 60)")
    _add_data_dir(parser)


def _data(options: argparse.Namespace) -> int:
    from .inspecting import inspect_data

    return inspect_data(options.source, options.data_dir, options.out, options.samples)


def _declare_doctor(parser: argparse.ArgumentParser) -> None:
    _add_backend(parser)
    _add_data_dir(parser)


def _doctor(options: argparse.Namespace) -> int:
    from .doctor import report

    with ExitStack() as stack:
        if options.backend is not None:
            stack.enter_context(use_backend(options.backend))
        print(report(version(), options.data_dir))
    return 0


COMMANDS: dict[str, Command] = {
    "train": Command(
        "run one of the programs: train, report each epoch, save, test",
        _declare_train,
        _train,
        (
            ("rawgrad train", f"{DEFAULT}: {PROGRAMS[DEFAULT].summary}"),
            ("rawgrad train mnist-cnn --data-dir DIR", "MNIST to 99 %; DIR holds the four IDX files"),
            ("rawgrad train mnist-cnn --optimizer sgd --seeds 5", "five runs, and the band of their losses"),
            ("rawgrad train mnist-cnn --resume", "go on where an interrupted run stopped, bit for bit"),
            (
                "rawgrad train --backend emulated --steps 3 --limit 20",
                "the CUDA kernels under all checks, without a GPU",
            ),
        ),
    ),
    "evaluate": Command(
        "test a trained network: accuracy, loss, confusion matrix, worst classes and mistakes",
        _declare_evaluate,
        _evaluate,
        (
            ("rawgrad evaluate runs/digits-cnn", "on the test images that its data set has"),
            ("rawgrad evaluate runs/digits-cnn --out mistakes.png", "and draw the worst mistakes"),
            ("rawgrad evaluate runs/mnist-cnn --pictures", "on pictures of them, scaled, inverted, shifted"),
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
    "programs": Command(
        "list every program with its command", lambda parser: None, _programs, (("rawgrad programs", ""),)
    ),
    "data": Command(
        "look at a data set before training on it: the machine's check, and samples for the eye",
        _declare_data,
        _data,
        (
            ("rawgrad data", "the bundled digits"),
            ("rawgrad data mnist --out sheet.png", "MNIST, with a picture of 60 samples"),
            ("rawgrad data my-pictures/", "a folder with one folder of pictures per class"),
        ),
    ),
    "emulate": Command(
        "run a CUDA kernel on a simulated GPU under all checks: races, bounds, barriers, bytes moved",
        _declare_emulate,
        _emulate,
        (
            ("rawgrad emulate scale.cu", "its only kernel, on random numbers"),
            ("rawgrad emulate scale.cu --arg n=1000 --arg x=[n] --arg y=empty:[n] --out y", "and what it writes"),
            ("rawgrad emulate tiles.cu --kernel 'transpose<float, 16>' --grid 4,4 --block 16,16", "a template"),
        ),
    ),
    "doctor": Command(
        "say what runs here: versions, processor, threads, backends, devices, data",
        _declare_doctor,
        _doctor,
        (("rawgrad doctor", ""), ("rawgrad doctor --backend emulated", "as it is with this backend chosen")),
    ),
}
