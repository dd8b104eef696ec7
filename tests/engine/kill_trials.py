"""Kill a training that saves, at random moments, and look at what is left.

``python tests/engine/kill_trials.py --trials 1000`` prints one line of JSON and fails if after any ``kill -9`` the
folder does not load, more than one interval of steps is lost, or a bit of the weights differs from those of a
training that was never killed.  Each process goes on from what the one before left, until the training is over;
then another begins.

Two kills of three come at a random moment, the third a random moment after a save was begun, so that many come
while a file is being written; ``partial_files`` counts those that left one half written.  What a kill cannot show is
what a loss of power would: what the system has not brought to the disk yet is not lost with a process.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import mmap
import os
import random
import signal
import struct
import sys
import tempfile
import time
import traceback
import warnings
from pathlib import Path

os.environ["OPENBLAS_NUM_THREADS"] = os.environ["OMP_NUM_THREADS"] = "1"  # what is forked must have no threads

import rawgrad as rg
from rawgrad import data, nn, optim
from rawgrad import functional as F
from rawgrad.engine import checkpoint, weights
from rawgrad.engine.checkpoint import Checkpoints
from rawgrad.engine.train import fit
from rawgrad.kernels._errors import CheckpointError

#: An epoch is longer than the interval, so that the interval decides what is lost.
STEPS, BATCH, SAMPLES = 600, 8, 1000
EVERY = 20


class Watched:
    """Two numbers that the training writes and its parent reads: steps done, saves begun."""

    def __init__(self):
        self._memory = mmap.mmap(-1, 16)

    def __getitem__(self, place):
        return struct.unpack_from("q", self._memory, 8 * place)[0]

    def __setitem__(self, place, value):
        struct.pack_into("q", self._memory, 8 * place, value)


def training(checkpoints, watched, every, on_step=lambda model: None):
    """The training, from where it is to its end."""
    rg.manual_seed(1)
    split = data.Subset(data.Digits.splits()["train"], range(SAMPLES))
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 24), nn.ReLU(), nn.Dropout(0.2), nn.Linear(24, 10))
    optimizer = optim.Adam(model.parameters(), lr=0.003)

    def done(step):
        watched[0] = step.step + 1
        on_step(model)

    fit(
        model, data.DataLoader(split, BATCH, shuffle=True, seed=5), F.cross_entropy, optimizer, epochs=10**6,
        max_steps=STEPS, schedule=optim.lr_scheduler.ExponentialLR(optimizer, 0.999), on_step=done, progress=False,
        checkpoints=checkpoints, save_every=every, resume=None if checkpoints is None else checkpoints.load(),
    )  # fmt: skip


def digest(state):
    """Of all weights, by name."""
    whole = hashlib.sha256()
    for name, value in sorted(state.items()):
        whole.update(name.encode() + weights._host(value).tobytes())
    return whole.hexdigest()


def expected():
    """The digest of the weights after each step of a training that is left alone; the first is of none."""
    found = [""]
    training(None, Watched(), None, lambda model: found.append(digest(model.state_dict())))
    return found


def child(folder, watched, every):
    """Train in a process of its own; gives its number."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        write = checkpoint.write_packed

        def told(*arguments):
            watched[1] += 1
            write(*arguments)

        checkpoint.write_packed = told
        with Checkpoints(folder) as checkpoints:
            training(checkpoints, watched, every)
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def killed(draw, folder, watched, every, longest):
    """Let it train for a while and kill it; gives whether it was over before that."""
    watched[1] = 0
    pid = child(folder, watched, every)
    if draw.random() < 1 / 3:
        saves, until = draw.randint(1, 6), time.monotonic() + longest
        while watched[1] < saves and time.monotonic() < until:
            time.sleep(2e-4)
        time.sleep(draw.uniform(0, 0.01))
    else:
        time.sleep(draw.uniform(0, longest))
    os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    if os.WIFEXITED(status):
        assert os.WEXITSTATUS(status) == 0, "the training failed"
        return True
    return False


def trials(count, seed=0, every=EVERY, longest=0.3):
    """What came of it; ``bad`` is empty if all went well."""
    draw, watched, begun, bad = random.Random(seed), Watched(), time.monotonic(), []
    lost, partial, over, empty = [], 0, 0, 0
    with rg.backend("numpy"), tempfile.TemporaryDirectory() as name, warnings.catch_warnings():
        warnings.simplefilter("error")  # what is damaged and passed over would be told by one
        right = expected()
        folder, number = Path(name, "0"), 0
        watched[0] = start = 0
        while number < count:
            if killed(draw, folder, watched, every, longest):
                over += 1
                folder, watched[0], start = Path(name, f"after {number}, {over}"), 0, 0
                continue
            number += 1
            partial += bool(folder.is_dir() and list(folder.glob(".*.partial")))
            done = max(watched[0], start)
            try:
                with Checkpoints(folder) as checkpoints:
                    found = checkpoints.load()
            except (CheckpointError, RuntimeWarning) as error:
                bad.append([number, f"does not load: {error}"])
                continue
            step = 0 if found is None else found.step
            empty += found is None
            lost.append(done - step)
            if done - step > every or step < start:
                bad.append([number, f"loads step {step}; {done} were done, {start} known before"])
            elif found is not None and digest(found.state["model"]) != right[step]:
                bad.append([number, f"the weights of step {step} differ"])
            start = watched[0] = step
    return {
        "kills": number,
        "save_every": every,
        "most_steps_lost": max(lost),
        "mean_steps_lost": round(sum(lost) / len(lost), 1),
        "partial_files": partial,
        "before_the_first_save": empty,
        "trainings_over": over,
        "bad": bad,
        "seconds": round(time.monotonic() - begun, 1),
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--trials", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--save-every", type=int, default=EVERY)
    parser.add_argument("--longest", type=float, default=0.3, help="seconds that a process lives at most")
    options = parser.parse_args()
    result = trials(options.trials, options.seed, options.save_every, options.longest)
    print(json.dumps(result))
    sys.exit(bool(result["bad"]))
