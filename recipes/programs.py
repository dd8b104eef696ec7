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
        Program("mnist-mlp-mse", "P3", "784-10-10-1 that gives the label as a number, MSE; --seeds 5 for its band"),
        Program("mnist-cnn-mse", "P4", "CNN that gives the label as a number, MSE; --seeds 5 for its band"),
        Program("mnist-cnn", "P5", "CNN with softmax cross-entropy; Adam to 99 %, or --optimizer sgd --seeds 5"),
        Program("learning-rates", "P6", "P5 with three learning rates and five optimizers, in one picture"),
        Program("softmax-regression", "P8", "one linear layer, 10,000 steps of SGD"),
        Program("five-layer", "P9", "784-200-100-60-30-10: sigmoid, ReLU, decay, dropout; four runs in one picture"),
        Program("convnet", "P10", "convolutions with strides, small, then larger with dropout"),
    )
}
DEFAULT = "digits-cnn"


def find(name: str) -> Program:
    """The program ``name``."""
    if name not in PROGRAMS:
        raise ArgumentError(f"there is no program {name!r}; `rawgrad programs` lists them: {', '.join(PROGRAMS)}")
    return PROGRAMS[name]
