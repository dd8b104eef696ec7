"""What ``rawgrad bench`` says of how far it is."""

from __future__ import annotations

import os
import sys

import pytest

from rawgrad.bench.progress import Progress, expected


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


def test_what_is_left_follows_what_was_seen(capsys):
    clock = Clock()
    progress = Progress({"a": 10.0, "b": 30.0, "c": 60.0}, clock)
    progress.begin("a")
    clock.now = 20.0  # twice as long as expected
    progress.end("a")
    progress.begin("b")
    assert progress.left == 180.0
    clock.now = 40.0
    progress.end("b")
    progress.begin("c")
    assert progress.left == 60.0
    assert capsys.readouterr().err.splitlines() == [
        "[1/3] a …, about 1 min 40 s left",
        "[2/3] b …, about 3 min 00 s left",
        "[3/3] c …, about 1 min 00 s left",
    ]


def test_on_a_terminal_it_is_one_line(monkeypatch):
    shown, terminal = os.openpty()  # which does not tell its size
    with open(terminal, "w") as stderr:
        monkeypatch.setattr(sys, "stderr", stderr)
        progress = Progress({"first": 10.0, "second": 20.0}, Clock())
        progress.begin("first")
        progress.say("said")
        progress.end("first")
        progress.begin("second")
        progress.close()
        said = os.read(shown, 10_000).decode()
    os.close(shown)
    assert "\r0/2" in said and "| first, about 30 s left" in said
    assert "\r1/2" in said and "| second, about 20 s left" in said
    assert "said\r\n" in said and said.count("\n") == 1


def test_what_a_row_takes_grows_with_what_is_asked():
    little = expected(2, 7, 0.05, memory=False, limits=False)
    assert little < expected(3, 7, 0.05, memory=False, limits=False)
    assert little < expected(2, 20, 0.1, memory=False, limits=False)
    assert little < expected(2, 7, 0.05, memory=False, limits=True) < expected(2, 7, 0.05, memory=True, limits=True)
    assert 6 * expected(3, 7, 0.05, memory=False, limits=True) == pytest.approx(60, rel=0.5)  # a quick run
