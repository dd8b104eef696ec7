"""Ctrl-C and SIGTERM as a wish: what is under way is finished and saved first.

A process that is asked to end has some time for that; Ctrl-C a second time means at once.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any

_WISHES = (signal.SIGINT, signal.SIGTERM)


class Interrupted(KeyboardInterrupt):
    """Ctrl-C, after what was under way was finished; its text says what is saved."""


class Terminated(SystemExit):
    """SIGTERM, as :class:`Interrupted`; a program that does not catch it ends with 143, as one that was killed so."""

    def __init__(self, text: str = "") -> None:
        super().__init__(128 + signal.SIGTERM)
        self.text = text

    def __str__(self) -> str:
        return self.text


class Stopping:
    """A ``with`` block in which the first Ctrl-C or SIGTERM is noted, and the second ends what is under way.

    Only in the main thread, where Python has its signals; elsewhere nothing is ever noted.  A signal that is
    ignored (``nohup``) stays so.

    Attributes:
        signal: the number of the one that came; None before.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Stopping:
        if threading.current_thread() is threading.main_thread():
            for number in _WISHES:
                # None: a handler that was not set by Python, and could not be put back
                if signal.getsignal(number) not in (signal.SIG_IGN, None):
                    self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before.clear()

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.signal is not None:
            raise Interrupted if number == signal.SIGINT else Terminated
        self.signal = number
        again = "Ctrl-C again" if number == signal.SIGINT else f"{signal.Signals(number).name} again"
        # Not print(): the program may be in the middle of one.
        os.write(2, f"\nfinishing this step and saving it; {again} ends at once\n".encode())

    def raised(self, text: str) -> BaseException:
        """What to raise for the signal that came, now that all is saved."""
        return Terminated(text) if self.signal == signal.SIGTERM else Interrupted(text)


@contextmanager
def terminable() -> Iterator[None]:
    """A ``with`` block in which SIGTERM raises :class:`Terminated`, so that all that was begun ends properly."""

    def end(number: int, frame: FrameType | None) -> None:
        raise Terminated

    in_main = threading.current_thread() is threading.main_thread()
    if not in_main or signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
