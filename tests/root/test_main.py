"""The command's entry: who gets the arguments, and how an error ends."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from types import ModuleType

import pytest

import rawgrad
from rawgrad.__main__ import main


@pytest.fixture
def room(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, Callable[[Sequence[str]], int]], None]:
    """Put a function in the place of a room's `main`."""

    def put(module: str, function: Callable[[Sequence[str]], int]) -> None:
        stand_in = ModuleType(module)
        stand_in.main = function  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, module, stand_in)

    return put


def test_bench_goes_to_the_bench_and_all_else_to_the_recipes(room, monkeypatch) -> None:
    calls = []
    room("rawgrad.bench.cli", lambda argv: calls.append(("bench", list(argv))) or 3)
    room("rawgrad.recipes.command", lambda argv: calls.append(("recipes", list(argv))) or 4)
    assert main(["bench", "--list"]) == 3
    assert main(["train", "bench"]) == 4
    assert main([]) == 4
    monkeypatch.setattr(sys, "argv", ["rawgrad", "doctor"])
    assert main() == 4
    assert calls == [
        ("bench", ["--list"]),
        ("recipes", ["train", "bench"]),
        ("recipes", []),
        ("recipes", ["doctor"]),
    ]


def test_a_refusal_is_one_line_and_an_interrupt_no_traceback(room, capsys) -> None:
    def refuse(argv: Sequence[str]) -> int:
        raise rawgrad.DataError("idx: magic must be 2051; got 7")

    def interrupt(argv: Sequence[str]) -> int:
        raise KeyboardInterrupt

    def defect(argv: Sequence[str]) -> int:
        raise ZeroDivisionError

    room("rawgrad.recipes.command", refuse)
    assert main([]) == 2
    assert capsys.readouterr().err == "rawgrad: error: idx: magic must be 2051; got 7\n"
    room("rawgrad.recipes.command", interrupt)
    assert main([]) == 130
    assert capsys.readouterr().err == "rawgrad: interrupted\n"
    room("rawgrad.recipes.command", defect)
    with pytest.raises(ZeroDivisionError):  # a defect of ours keeps its traceback
        main([])
