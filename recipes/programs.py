"""All programs: name, row of ``docs/programs.md``, and what it shows."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import Any

from ..kernels._errors import ArgumentError
from .options import Options


@dataclass(frozen=True)
class Program:
    """One program.

    Attributes:
        name: as typed after ``rawgrad train``.
        row: its row in ``docs/programs.md``, empty for what is not from there.
        summary: one line.
        data: what it reads: ``"digits"``, ``"mnist"`` or nothing.
    """

    name: str
    row: str
    summary: str
    data: str = "mnist"

    def run(self, options: Options) -> Any:
        """Run it; the module is imported only now."""
        return import_module(f".{self.name.replace('-', '_')}", __package__).run(options)


PROGRAMS: dict[str, Program] = {
    program.name: program
    for program in (
        Program("digits-cnn", "", "a small CNN on scikit-learn's bundled digits; the default", "digits"),
        Program("numerical-gradient", "P1", "784-50-100-10 with sigmoids: all its gradients checked, 70 % explained"),
        Program("worked-values", "P2", "losses, softmax, derivatives and descent, beside the values by hand", ""),
        Program("mnist-mlp-mse", "P3", "784-10-10-1 that gives the label as a number, MSE; --seeds 5 for its band"),
        Program("mnist-cnn-mse", "P4", "CNN that gives the label as a number, MSE; --seeds 5 for its band"),
        Program("mnist-cnn", "P5", "CNN with softmax cross-entropy; Adam to 99 %, or --optimizer sgd --seeds 5"),
        Program("learning-rates", "P6", "P5 with three learning rates and five optimizers, in one picture"),
        Program("softmax-regression", "P8", "one linear layer, 10,000 steps of SGD"),
        Program("five-layer", "P9", "784-200-100-60-30-10: sigmoid, ReLU, decay, dropout; four runs in one picture"),
        Program("convnet", "P10", "convolutions with strides, small, then larger with dropout"),
        Program("overfitting", "P15", "few images, some labels wrong: learnt by heart, or not with L2", "digits"),
        Program("baseline", "P18", "the house-price model on digits, why it is poor, and three curves"),
    )
}
DEFAULT = "digits-cnn"


def find(name: str) -> Program:
    """The program ``name``."""
    if name not in PROGRAMS:
        raise ArgumentError(f"there is no program {name!r}; `rawgrad programs` lists them: {', '.join(PROGRAMS)}")
    return PROGRAMS[name]


#: Rows of ``docs/programs.md`` that are no single program: the command for them, or what there is so far.
OTHER_ROWS: dict[str, tuple[str, str]] = {
    "P7": ("rawgrad predict IMAGE ...", "files, folders, standard input; `rawgrad evaluate --pictures` tries 10,000"),
    "P11": (
        "rawgrad train ... --watch",
        "a live view: `rawgrad report RUN` shows it in one HTML file, --tensorboard in TensorBoard",
    ),
    "P12": ("", "not in this version: a character language model"),
    "P13": (
        "rawgrad train ... --workers N",
        "asynchronous reading; `python -m rawgrad.bench.prefetch` measures it beside a synchronous loop and PyTorch's",
    ),
    "P14": ("rawgrad data [mnist]", "data checks: the machine's, and samples for the eye"),
    "P16": (
        "rawgrad train ... --resume",
        "goes on from any batch, bit for bit; --save-every N for what a kill may cost",
    ),
    "P17": ("", "not in this version: training on several devices"),
}


def overview() -> str:
    """A table of all rows P1 to P18: row, command, summary."""
    rows = [(p.row, f"rawgrad train {p.name}", p.summary) for p in PROGRAMS.values()]
    rows += [(row, command or "-", summary) for row, (command, summary) in OTHER_ROWS.items()]
    rows.sort(key=lambda row: int(row[0][1:] or 0))  # stable; what is from nowhere comes first
    width = max(len(command) for _, command, _ in rows)
    return "\n".join(f"{row:4} {command:{width}}  {summary}" for row, command, summary in rows)
