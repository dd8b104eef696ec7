"""Open and close a loader again and again, in every bad way, and count what is left.

``python tests/engine/data/stress.py --cycles 1000`` prints one line of JSON and fails if anything leaked, hung or
took long to close.  A cycle opens a loader, takes some batches and ends in one of these ways, drawn at random:

=============  ==============================================================================
whole          the loop comes to its end
break          it is left early
close          the loader is closed from a ``with`` block
dropped        the iterator is dropped between two batches
body           the loop's body raises
reader         reading a sample raises
transform      a transform raises
collate        ``collate_fn`` raises
interrupt      a signal raises KeyboardInterrupt at whatever point the program is at
copy           the copy to the (simulated) GPU raises
killed         a reader process is killed
=============  ==============================================================================

Counted are threads, processes, open files, mapped shared memory and the simulated GPU's memory.
"""

from __future__ import annotations

import argparse
import faulthandler
import gc
import json
import multiprocessing
import os
import random
import signal
import sys
import threading
import time
import warnings
from collections import Counter
from pathlib import Path

import numpy as np

from rawgrad import backend
from rawgrad.engine.data import DataLoader, ring
from rawgrad.kernels._errors import DataError

sys.path.insert(0, str(Path(__file__).parent))  # the processes get it too
from _reading import Reading

WAYS = "whole break close dropped body reader transform collate interrupt copy killed".split()
#: How many seconds ending may take.
CLOSING = 0.1


class Planted(Exception):
    """What is raised on purpose."""


def fails(*_):
    raise Planted


def interrupted(*_):
    raise KeyboardInterrupt


def held():
    """Threads, processes, open files, pieces of shared memory, bytes on the simulated GPU."""
    from rawgrad.kernels._emulator.memory import pool

    maps = Path("/proc/self/maps")
    shared = sum("memfd:" in line for line in maps.read_text().splitlines()) if maps.exists() else 0
    files = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
    return threading.active_count(), len(multiprocessing.active_children()), files, shared, pool.used_bytes()


def loader(way, draw):
    options = {"num_workers": draw.randint(1, 4), "prefetch": draw.randint(1, 6), "shuffle": True, "seed": 1}
    at, what = (draw.randrange(24), "fail") if way == "reader" else (-1, "")
    data = Reading(24, at, what, pause=draw.choice([0, 0.002, 0.02]))
    if way == "transform":
        options["transform"] = fails
    if way == "collate":
        options["collate_fn"] = fails
    if way == "copy" or (way not in ("killed", "transform", "collate") and draw.random() < 0.2):
        options["device"] = "cuda"
    if way == "killed" or (way != "copy" and draw.random() < 0.03):
        options |= {"processes": True, "num_workers": draw.randint(1, 2)}
    return DataLoader(data, 2, **options)


def cycle(way, draw):
    """One loader; gives the seconds that its end took."""
    stop, ended = draw.randrange(1, 10), [0.0]
    loading = loader(way, draw)
    if way == "interrupt":
        signal.setitimer(signal.ITIMER_REAL, draw.uniform(1e-4, 0.02))
    try:
        with loading:
            iterator = iter(loading)
            for number, batch in enumerate(iterator):
                assert batch is not None
                ended[0] = time.perf_counter()
                if number < stop:
                    continue
                if way == "break":
                    break
                if way == "close":
                    loading.close()
                if way == "body":
                    raise Planted
                if way == "dropped":
                    del iterator
                    break
                if way == "killed":
                    victims = multiprocessing.active_children()
                    if victims:  # none is left where batches were ready that all of them had read before
                        os.kill(draw.choice(victims).pid, signal.SIGKILL)
    except (Planted, ZeroDivisionError, KeyboardInterrupt):
        assert way in ("body", "reader", "transform", "collate", "interrupt", "copy")
    except DataError as error:
        assert way == "killed" and "died by SIGKILL" in str(error)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    return time.perf_counter() - ended[0] if ended[0] and way in ("break", "close", "dropped", "body") else 0.0


def run(cycles, seed=0, closing=CLOSING, ways=WAYS):
    """What came of it, as a dict; ``leaks`` is empty if all went well."""
    draw, done, slowest, leaks = random.Random(seed), Counter(), {}, []
    before_alarm = signal.signal(signal.SIGALRM, interrupted)
    begun = time.monotonic()
    set_ = ring.Ring.load
    try:
        with backend("emulated"), warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            for way in ("whole", "copy"):  # what is made once for all: a helper of multiprocessing, a device
                list(DataLoader(Reading(4), 2, num_workers=1, processes=way == "whole", device="cuda"))
            gc.collect()
            np.dot(np.ones((2, 2)), np.ones((2, 2)))
            nothing = held()
            for number in range(cycles):
                way = draw.choice(ways)
                faulthandler.dump_traceback_later(60, exit=True)  # a hang ends the program, with all stacks
                ring.Ring.load = fails if way == "copy" else set_
                try:
                    seconds = cycle(way, draw)
                except KeyboardInterrupt:  # after the last batch, before the alarm was off
                    seconds = 0.0
                done[way] += 1
                slowest[way] = max(slowest.get(way, 0.0), seconds)
                until = time.monotonic() + 3
                while (left := held()) != nothing and time.monotonic() < until:
                    gc.collect()
                    time.sleep(0.005)
                if left != nothing:
                    leaks.append([number, way, list(nothing), list(left)])
                    nothing = left
    finally:
        faulthandler.cancel_dump_traceback_later()
        signal.signal(signal.SIGALRM, before_alarm)
        ring.Ring.load = set_
    late = {way: seconds for way, seconds in slowest.items() if seconds > closing}
    return {
        "cycles": dict(sorted(done.items())),
        "seconds": round(time.monotonic() - begun, 1),
        "slowest_end_ms": {way: round(1e3 * seconds, 1) for way, seconds in sorted(slowest.items()) if seconds},
        "late": late,
        "leaks": leaks,
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--cycles", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--closing", type=float, default=CLOSING, help="seconds that ending may take")
    options = parser.parse_args()
    found = run(options.cycles, options.seed, options.closing)
    print(json.dumps(found))
    sys.exit(bool(found["leaks"] or found["late"]))
