"""The short form of stress.py: loaders opened and closed in every bad way leave nothing behind."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

STRESS = Path(__file__).with_name("stress.py")


@pytest.mark.parametrize("seed", [1, 2])
def test_nothing_is_left(seed):
    """In a process of its own, whose threads and files are counted; on a busy machine ending may take longer."""
    command = [sys.executable, str(STRESS), "--cycles", "30", "--seed", str(seed), "--closing", "1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and done.stderr == "", done.stdout + done.stderr
