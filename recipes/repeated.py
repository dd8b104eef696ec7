"""Programs whose curve is known: run over several seeds and compared with the figures."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np

from .curves import Band, Named, bands, draw
from .options import Options
from .training import Result, Task, load_data, train


@dataclass
class Repeated:
    """The runs of a task over several seeds, and the bands of their losses."""

    results: list[Result]
    bands: list[Band]

    def __str__(self) -> str:
        accuracies = np.array([100 * result.test.accuracy for result in self.results])
        return (
            f"test accuracy {np.median(accuracies):.2f} % (median of {len(accuracies)} seeds, "
            f"{accuracies.min():.2f} … {accuracies.max():.2f})"
        )


def run(task: Task, options: Options, named: Sequence[Named], title: str) -> Result | Repeated:
    """Train once, or with ``--seeds N`` over N seeds, each in a folder of its own; print the bands.

    Args:
        task: what to train.
        options: with ``seeds`` above 1, seeds ``seed``, ``seed + 1``, …
        named: the stretches of steps whose figures are known.
        title: of the picture.
    """
    if options.seeds == 1:
        return train(task, options)
    data = load_data(task, options)
    results = []
    for seed in range(options.seed, options.seed + options.seeds):
        results.append(train(task, options.but(out=options.out / f"seed-{seed}", seed=seed), data))
        options.say(f"seed {seed}: {results[-1]}")
    found = bands([result.history for result in results], named)
    for band in found:
        options.say(str(band))
    draw({f"seed {r.options.seed}": r.history for r in results}, options.out / "curves.png", title)
    report = {
        "task": asdict(results[0].task),
        "test": {r.options.seed: asdict(r.test) for r in results},
        "bands": [{**asdict(band), "holds": band.holds} for band in found],
    }
    (options.out / "bands.json").write_text(json.dumps(report, indent=2) + "\n")
    return Repeated(results, found)
