"""``rawgrad train``: its options, and what it says before and after."""

from __future__ import annotations

import argparse
import shlex
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from ..engine.stopping import Terminated, terminable
from ..kernels._dispatch import PRECISIONS, backend_of
from ..kernels._errors import ArgumentError
from ..kernels._threads import get_num_threads, most_threads, set_num_threads
from .options import Options
from .programs import DEFAULT, PROGRAMS
from .subcommand import Command, add_data_dir, add_limit, add_place, did_you_mean, place


def _declare_train(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("program", nargs="?", default=DEFAULT, metavar="PROGRAM", help=f"see `rawgrad programs` (default: {DEFAULT})")
    add("--out", type=Path, metavar="DIR", help="folder for weights, records and pictures (default: runs/PROGRAM)")
    add_data_dir(parser)
    add_place(parser)
    add("--epochs", type=int, metavar="N", help="passes over the training images")
    add("--steps", type=int, metavar="N", help="stop after so many batches in all")
    add_limit(parser)
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


def _train(options: argparse.Namespace) -> int:
    name = options.program
    if name not in PROGRAMS:
        raise ArgumentError(
            f"train: there is no program {name!r}{did_you_mean(name, PROGRAMS)}; `rawgrad programs` lists them"
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
        settings = settings.but(device=stack.enter_context(place(options)))
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


TRAIN = Command(
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
)
