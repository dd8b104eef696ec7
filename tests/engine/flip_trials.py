"""Change every byte of a small checkpoint, and cut it off at every place: each damage must be noticed.

``python tests/engine/flip_trials.py --values 255`` tries every other value for every byte, prints one line of JSON and
fails if one is read as if nothing had happened, or ends in another error than ours.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from rawgrad import nn, ones, optim
from rawgrad.engine.checkpoint import Checkpoints
from rawgrad.engine.weights import load_state, parsed
from rawgrad.kernels._errors import CheckpointError


def small(folder):
    """A checkpoint of a layer and its optimizer; gives the path."""
    model = nn.Linear(3, 2)
    optimizer = optim.Adam(model.parameters())
    model(ones(1, 3)).sum().backward()
    optimizer.step()
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "table": np.arange(6.0).reshape(2, 3)}
    with Checkpoints(folder, settings={"name": "small", "lr": 0.01}) as checkpoints:
        checkpoints.save(state, step=3, score=0.25, wait=True)
        return checkpoints.load().path


def noticed(path, content):
    """Whether a file with ``content`` is refused; an error of another kind goes through."""
    try:
        parsed(path, bytes(content), "state")
    except CheckpointError:
        return True
    return False


def trials(values):
    """What came of it; ``unnoticed`` is empty if all went well."""
    begun, unnoticed = time.monotonic(), []
    flips = sorted({1 + 37 * i % 255 for i in range(values)})
    with tempfile.TemporaryDirectory() as name:
        path = small(Path(name))
        content = path.read_bytes()
        load_state(path)
    assert not noticed(path, content)
    for position in range(len(content)):
        for flip in flips:
            changed = bytearray(content)
            changed[position] ^= flip
            if not noticed(path, changed):
                unnoticed.append([position, content[position], changed[position]])
    for size in range(len(content)):
        if not noticed(path, content[:size]):
            unnoticed.append([size, "cut off"])
    return {
        "bytes": len(content),
        "changed": len(content) * len(flips),
        "cut_off": len(content),
        "unnoticed": unnoticed,
        "seconds": round(time.monotonic() - begun, 1),
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--values", type=int, default=1, metavar="N", help="other values of each byte: 1 to 255")
    result = trials(parser.parse_args().values)
    print(json.dumps(result))
    sys.exit(bool(result["unnoticed"]))
