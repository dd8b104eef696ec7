"""P6: P5 with three learning rates, and with five optimizers."""

from __future__ import annotations

from dataclasses import replace

from .curves import draw
from .mnist_cnn import SGD
from .options import Options
from .several import Several
from .several import run as run_several

RATES = {f"sgd lr {lr:g}": replace(SGD, lr=lr) for lr in (0.1, 0.01, 0.001)}
OPTIMIZERS = {name: replace(SGD, optimizer=name) for name in ("momentum", "adagrad", "adam", "rmsprop")}


def run(options: Options) -> Several:
    """Seven runs (SGD at 0.01 serves both), one picture for the rates and one for the optimizers."""
    found = run_several({**RATES, **OPTIMIZERS}, options, "P6")
    histories = {name: result.history for name, result in found.results.items()}
    draw({name: histories[name] for name in RATES}, options.out / "learning-rates.png", "P6, learning rates of SGD")
    optimizers = {"sgd": histories["sgd lr 0.01"], **{name: histories[name] for name in OPTIMIZERS}}
    draw(optimizers, options.out / "optimizers.png", "P6, optimizers at lr 0.01")
    return found
