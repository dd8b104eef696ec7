"""Break a training off after random batches, go on, and compare every bit with a training in one piece.

``python tests/engine/resume_trials.py --trials 200`` prints one line of JSON and fails if a bit differs.  Each trial
draws a backend, one to three places to break off, and for each part of the way whether there are readers (threads or
processes); on the simulated GPU also whether the step is captured.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from _runs import STEPS, How, bits, run

BACKENDS = ("numpy", "numba", "emulated")


def drawn(draw, backend):
    workers = draw.choice([0, 0, 1, 3])
    processes = workers == 1 and draw.random() < 0.2
    return How(backend, workers, processes, backend == "emulated" and draw.random() < 0.7)


def trial(draw, backend, folder):
    """Run in parts; gives where it was broken off and what is at the end."""
    stops = sorted(draw.sample(range(1, STEPS), draw.choice([1, 1, 2, 3])))
    for number, stop in enumerate([*stops, STEPS]):
        # An interval now and then: files in the middle of what is compared must change nothing either.
        every = draw.choice([None, None, 1, 4])
        run(folder, drawn(draw, backend), resume=number > 0, max_steps=stop, save_every=every)
    return stops, bits(folder)


def trials(count, seed=0, backends=BACKENDS):
    """What came of it, as a dict; ``different`` is empty if all went well."""
    draw, done, places, different, begun = random.Random(seed), Counter(), set(), [], time.monotonic()
    whole = {}
    with tempfile.TemporaryDirectory() as name:
        for backend in backends:
            run(Path(name, backend), How(backend))
            whole[backend] = bits(Path(name, backend))
        for number in range(count):
            backend = backends[number % len(backends)]
            stops, found = trial(draw, backend, Path(name, str(number)))
            done[backend] += 1
            places.update(stops)
            if found != whole[backend]:
                names = [key for key in whole[backend] if found.get(key) != whole[backend][key]]
                different.append([number, backend, stops, names])
    return {
        "trials": dict(done),
        "broken_off_after": len(places),
        "of_steps": STEPS - 1,
        "compared": f"{sum(map(len, whole[backends[0]].values()))} bytes",
        "different": different,
        "seconds": round(time.monotonic() - begun, 1),
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--trials", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--backends", nargs="+", default=BACKENDS, choices=BACKENDS)
    options = parser.parse_args()
    result = trials(options.trials, options.seed, options.backends)
    print(json.dumps(result))
    sys.exit(bool(result["different"]))
