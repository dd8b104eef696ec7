"""The short forms of the trials; ``docs/checkpoints.md`` has the counts of the long ones."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from rawgrad.kernels._dispatch import BACKENDS


@pytest.mark.parametrize(
    ("name", "options", "counts"),
    [
        ("flip", ["--values", "1"], {"unnoticed": []}),
        # in a process of its own, which has no threads and may be forked
        ("kill", ["--trials", "30", "--longest", "0.15"], {"kills": 30, "bad": []}),
        ("resume", ["--trials", "12"], {"trials": {"numpy": 4, "numba": 4, "emulated": 4}, "different": []}),
    ],
)
def test_none_fails(name, options, counts):
    if name == "resume" and (problem := BACKENDS["emulated"].problem()):
        pytest.skip(problem)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    command = [sys.executable, str(Path(__file__).parent / f"{name}_trials.py"), *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=180, env=environment)
    assert done.returncode == 0 and done.stderr == "", done.stdout + done.stderr
    found = json.loads(done.stdout)
    assert {key: found[key] for key in counts} == counts
