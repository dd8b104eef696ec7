"""The ``rawgrad`` command: train, report, compare, evaluate, trace, predict, replay, programs, data, emulate, doctor.

Each subcommand is a :class:`.subcommand.Command`: its options, and a function of them that gives the exit code.
What a subcommand does lives in a module of its own, imported when it runs.  ``rawgrad bench`` belongs
to the bench; ``__main__.py`` sends it there.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import NoReturn

from ..kernels._dispatch import backend as use_backend
from ..kernels._errors import ArgumentError, DataError
from .programs import PROGRAMS, overview
from .run_commands import ON_RUNS
from .subcommand import Command, add_backend, add_data_dir, did_you_mean, version
from .train_command import TRAIN


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
            f"{name}: unknown {what} {unknown[0]}{did_you_mean(unknown[0].partition('=')[0], known)}; "
            f"see `rawgrad {name} --help`"
        )
    options.arguments = rest
    return command.run(options)


class _Parser(argparse.ArgumentParser):
    """Refuses with an error of ours, which the caller shows in one line."""

    def error(self, message: str) -> NoReturn:
        raise ArgumentError(f"{self.prog.removeprefix('rawgrad ')}: {message}; see `{self.prog} --help`")


def _unknown_command(name: str) -> str:
    if name in PROGRAMS:
        return f"{name!r} is a program: `rawgrad train {name}` runs it"
    if name.startswith("-"):
        return f"there is no option {name}{did_you_mean(name, ['--help', '--version'])}; see `rawgrad --help`"
    return f"there is no command {name!r}{did_you_mean(name, [*COMMANDS, 'bench'])}; see `rawgrad --help`"


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
    add_data_dir(parser)


def _data(options: argparse.Namespace) -> int:
    from .inspecting import inspect_data

    return inspect_data(options.source, options.data_dir, options.out, options.samples)


def _declare_doctor(parser: argparse.ArgumentParser) -> None:
    add_backend(parser)
    add_data_dir(parser)


def _doctor(options: argparse.Namespace) -> int:
    from .doctor import report

    with ExitStack() as stack:
        if options.backend is not None:
            stack.enter_context(use_backend(options.backend))
        print(report(version(), options.data_dir))
    return 0


COMMANDS: dict[str, Command] = {
    "train": TRAIN,
    **ON_RUNS,
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
