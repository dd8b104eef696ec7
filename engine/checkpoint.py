"""A folder of checkpoints: written beside training, whole or not at all, the last few and the best kept.

A checkpoint is one file of :func:`~rawgrad.engine.weights.save_state`, ``000012-step-3400.safetensors``: the number
counts the saves of the folder, so that the highest is the newest.  :meth:`Checkpoints.save` copies the state and
leaves the rest (digests, writing, flushing, renaming, removing what is too old) to a thread that lives for
this one save.  It is no daemon: an interpreter that ends waits for it.

Whoever holds the folder has a lock on it (flock), which the system takes back when the process ends, however
it ends.
"""

from __future__ import annotations

import json
import os
import re
import socket
import sys
import threading
import time
import warnings
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from ..kernels._errors import ArgumentError, CheckpointError
from .weights import DamagedError, OtherFormatError, Packed, load_described, pack, read_about, sweep, write_packed

_NAME = re.compile(r"(\d{6,})-step-(\d+)\.safetensors")
_LOCK = ".lock"


@dataclass(frozen=True)
class Checkpoint:
    """What :meth:`Checkpoints.load` gives.

    Attributes:
        path: the file.
        step: the steps that were done.
        score: what it was given when it was saved; more is better.
        settings: of the run that saved it.
        state: as it was saved, arrays as NumPy arrays.
    """

    path: Path
    step: int
    score: float | None
    settings: dict[str, Any]
    state: Any


@dataclass(frozen=True)
class _File:
    number: int
    step: int
    path: Path
    score: float | None


class Checkpoints:
    """A folder of checkpoints, held by one process.

    ::

        parts = {"model": model, "optimizer": optimizer, "loader": loader, "random": rg.manual_seed(0)}
        with Checkpoints("runs/mine/checkpoints") as checkpoints:
            last = checkpoints.load()
            if last is not None:
                restore(last, parts)
            ...
            checkpoints.save(states_of(parts), step=step)

    Without :meth:`load`, what is in the folder is another run's, and is removed after the first save.

    Args:
        folder: is made if it is not there.
        keep: so many of the last are kept.
        keep_best: and so many of those with the highest scores.
        settings: of the run; in every file, given back by :meth:`load`.
        say: is told of damaged files that were passed over; by default a warning is given.
        on_saved: called with each checkpoint once it is on the disk, in the thread that wrote it.

    Attributes:
        on_disk: the steps of the newest whole checkpoint of this run; 0 before there is one.
        begun: those of the newest that was begun.

    Raises:
        CheckpointError: another process holds the folder, or it cannot be written in.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        keep: int = 3,
        keep_best: int = 1,
        settings: Mapping[str, Any] | None = None,
        say: Callable[[str], None] | None = None,
        on_saved: Callable[[Checkpoint], None] | None = None,
    ) -> None:
        for name, value, least in (("keep", keep, 1), ("keep_best", keep_best, 0)):
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ArgumentError(f"Checkpoints: {name} must be an integer of at least {least}; got {value!r}")
        self.folder, self.keep, self.keep_best = Path(folder), keep, keep_best
        self.settings = dict(settings or {})
        self.on_disk = self.begun = 0
        self._say = say or (lambda text: warnings.warn(text, RuntimeWarning, stacklevel=4))
        self._on_saved = on_saved
        self._writer: threading.Thread | None = None
        self._error: BaseException | None = None
        self._lock = _locked(self.folder)
        try:
            sweep(self.folder)
            self._others: list[_File] = _files(self.folder)  # not known to be of this run
        except OSError as error:
            self.close()
            raise CheckpointError(f"{self.folder}: cannot be read: {error.strerror}") from error
        self._files: list[_File] = []
        self._last = max((file.number for file in self._others), default=0)

    def save(self, state: Any, *, step: int, score: float | None = None, wait: bool = False) -> None:
        """Copy ``state`` and have it written; a save that is under way is waited for.

        Args:
            state: as for :func:`~rawgrad.engine.weights.save_state`.
            step: how many steps were done.
            score: more is better; None or NaN is never the best.
            wait: return when it is on the disk.

        Raises:
            CheckpointError: this save (with ``wait``) or the one before could not be written; what was on the
                disk is still there.
        """
        packed = pack({"settings": self.settings, "state": state})
        self.wait()
        self._last += 1
        score = None if score is None or score != score else float(score)
        path = self.folder / f"{self._last:06d}-step-{step}.safetensors"
        file = _File(self._last, int(step), path, score)
        self.begun = file.step
        self._writer = threading.Thread(target=self._write, args=(file, packed), name="rawgrad checkpoint")
        self._writer.start()
        if wait:
            self.wait()

    def _write(self, file: _File, packed: Packed) -> None:
        try:
            about = {"step": file.step, "score": file.score, "time": time.time()}
            write_packed(file.path, packed, about)
            self._files.append(file)
            self.on_disk = file.step
            self._prune()
            if self._on_saved is not None:
                saved = packed.state()
                self._on_saved(Checkpoint(file.path, file.step, file.score, saved["settings"], saved["state"]))
        except BaseException as error:
            self._error = error
            if not threading.main_thread().is_alive():  # the interpreter is ending: nobody will ask
                print(f"rawgrad: error: {self._explained(error)}", file=sys.stderr)

    def _prune(self) -> None:
        """Remove all but the last and the best."""
        scored = sorted((f for f in self._files if f.score is not None), key=lambda f: (f.score, -f.number))
        kept = self._files[-self.keep :] + scored[max(0, len(scored) - self.keep_best) :]
        for file in [*self._others, *(file for file in self._files if file not in kept)]:
            file.path.unlink(missing_ok=True)
        self._others = []
        self._files = [file for file in self._files if file in kept]

    @property
    def writing(self) -> bool:
        """Whether a save is under way."""
        return self._writer is not None and self._writer.is_alive()

    def wait(self) -> None:
        """Wait for the save that is under way, if there is one.

        Raises:
            CheckpointError: it could not be written.
        """
        if self._writer is not None:
            self._writer.join()
            self._writer = None
        if self._error is not None:
            error, self._error = self._error, None
            raise CheckpointError(self._explained(error)) from error

    def _explained(self, error: BaseException) -> str:
        reason = (error.strerror if isinstance(error, OSError) else None) or f"{type(error).__name__}: {error}"
        left = f"the last one there is {self._files[-1].path.name}" if self._files else "there is none yet"
        return f"{self.folder}: a checkpoint of step {self.begun} could not be written: {reason}; {left}"

    def load(self) -> Checkpoint | None:
        """The newest whole checkpoint, which from now on is this run's; None if the folder has none.

        A damaged one is passed over, which is told, and renamed to ``….damaged``.

        Raises:
            CheckpointError: none of those that are there is whole, or the newest whole one is of another format.
        """
        self.wait()
        self._files += self._others
        self._others = []
        reasons = []
        while self._files:
            newest = self._files[-1]
            try:
                found = _read(newest.path)
            except OtherFormatError:
                raise
            except CheckpointError as error:
                reasons.append(str(error))
                self._files.pop()
                if isinstance(error, DamagedError):
                    # Out of the way, so that it does not count among the last.
                    with suppress(OSError):
                        newest.path.replace(newest.path.with_suffix(".damaged"))
                continue
            for reason in reasons:
                self._say(f"{reason}; going back to {newest.path.name}")
            self.on_disk = self.begun = found.step
            return found
        if reasons:
            raise CheckpointError(f"{self.folder}: none of its checkpoints is whole: " + "; ".join(reasons))
        return None

    def best(self) -> Checkpoint | None:
        """The whole checkpoint with the highest score, the oldest of several; None if none has a score."""
        self.wait()
        scored = [f for f in (*self._others, *self._files) if f.score is not None]
        for file in sorted(scored, key=lambda f: (-f.score, f.number)):  # type: ignore[operator]
            try:
                return _read(file.path)
            except DamagedError as error:
                self._say(str(error))
        return None

    def close(self) -> None:
        """Wait for the save that is under way, and let others have the folder.

        Raises:
            CheckpointError: it could not be written.
        """
        try:
            self.wait()
        finally:
            if self._lock is not None:
                os.close(self._lock)
                self._lock = None

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.close()
        except CheckpointError:
            if error is None:  # else that one is on its way already, and is no worse
                raise


class Interval:
    """When to save, so that the newest checkpoint is never more than ``every`` steps behind::

        interval = Interval(checkpoints, 100)
        for images, labels in loader:
            interval.before(step)
            ...
            step += 1
            if interval.due(step):
                checkpoints.save(...)

    A save takes its time, and training goes on meanwhile.  So it is begun as many steps before the interval is
    over as the last ones took; if it takes longer, training waits.

    Args:
        checkpoints: where.
        every: how many steps may be lost.
        start: the step that training starts with: all before it is on the disk, or can be had again.
    """

    def __init__(self, checkpoints: Checkpoints, every: int, start: int = 0) -> None:
        if isinstance(every, bool) or not isinstance(every, int) or every < 1:
            raise ArgumentError(f"Interval: every must be an integer of at least 1; got {every!r}")
        self._checkpoints, self._every, self._start = checkpoints, every, start
        self._ahead = every // 2  # steps before the end of the interval with which a save is begun
        self._under_way = False

    def before(self, done: int) -> None:
        """Called with the number of steps done before another one: waits if that would be too many.

        Raises:
            CheckpointError: the save that was waited for could not be written.
        """
        if done + 1 - max(self._checkpoints.on_disk, self._start) > self._every and self._checkpoints.writing:
            self._checkpoints.wait()
            self._ahead = self._every // 2

    def due(self, done: int) -> bool:
        """Whether to save now that ``done`` steps are done.

        Raises:
            CheckpointError: the last save could not be written.
        """
        begun = max(self._checkpoints.begun, self._start)
        if self._checkpoints.writing and done - begun < self._every:
            self._under_way = True
            return False
        self._checkpoints.wait()  # raises what the writer met
        if self._under_way:
            self._ahead = min(self._every // 2, max(done - begun, self._ahead // 2))
        due = done - begun >= self._every - self._ahead
        self._under_way = due
        return due


# ---------------------------------------------------------------- the state of many things


def states_of(parts: Mapping[str, Any]) -> dict[str, Any]:
    """The ``state_dict()`` of each part by its name; None for a part that is None."""
    return {name: None if part is None else part.state_dict() for name, part in parts.items()}


def restore(checkpoint: Checkpoint, parts: Mapping[str, Any]) -> None:
    """Give each part its state back, by ``load_state_dict``; all of them or, on an error, none.

    Raises:
        CheckpointError: the state is of another model, optimizer or schedule, or a part is missing; the message
            names the file and the part.
    """
    state = checkpoint.state
    if not isinstance(state, Mapping):
        raise CheckpointError(f"{checkpoint.path}: must hold states by name; it holds {type(state).__name__}")
    for name, part in parts.items():
        if (state.get(name) is None) != (part is None):
            here, there = ("without", "with") if part is None else ("with", "without")
            raise CheckpointError(f"{checkpoint.path}: is of a run {there} {name}; this one is {here}")
    before = {name: pack(part.state_dict()).state() for name, part in parts.items() if part is not None}
    done = []
    try:
        for name in before:
            done.append(name)
            parts[name].load_state_dict(state[name])
    except BaseException as error:
        for changed in reversed(done):
            parts[changed].load_state_dict(before[changed])
        if isinstance(error, CheckpointError | ArgumentError | KeyError | TypeError | ValueError):
            kind = "" if isinstance(error, CheckpointError) else f"{type(error).__name__}: "
            raise CheckpointError(f"{checkpoint.path}: its {done[-1]} does not fit: {kind}{error}") from error
        raise


# ---------------------------------------------------------------- the folder


def _files(folder: Path) -> list[_File]:
    """The checkpoints in ``folder``, oldest first."""
    found = []
    for path in folder.iterdir():
        if match := _NAME.fullmatch(path.name):
            try:
                score = read_about(path).get("score")
            except CheckpointError:  # told when it is loaded
                score = None
            found.append(_File(int(match[1]), int(match[2]), path, score))
    return sorted(found, key=lambda file: file.number)


def newest(folder: str | Path) -> Checkpoint | None:
    """The newest whole checkpoint in ``folder``, to be looked at; whoever trains there goes on.

    Raises:
        CheckpointError: none of those that are there is whole.
    """
    reasons = []
    for file in reversed(_files(Path(folder))):
        try:
            return _read(file.path)
        except CheckpointError as error:  # damaged, or removed meanwhile
            reasons.append(str(error))
    if reasons:
        raise CheckpointError(f"{folder}: none of its checkpoints is whole: " + "; ".join(reasons))
    return None


def _read(path: Path) -> Checkpoint:
    saved, about = load_described(path)
    try:
        return Checkpoint(path, int(about["step"]), about["score"], saved["settings"], saved["state"])
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise CheckpointError(f"{path}: is no checkpoint of a folder: {error!r}") from None


def _locked(folder: Path) -> int | None:
    """A lock on ``folder`` for as long as the file is open; None where the system has no locks.

    The file is never removed: whoever waits to lock it must find the same one.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise CheckpointError(f"{folder}: cannot be written in: {error.strerror}") from error
    try:
        import fcntl

        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.ftruncate(lock, 0)
        holder = {"process": os.getpid(), "host": socket.gethostname(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}
        os.write(lock, json.dumps(holder).encode())
    except ImportError:  # no POSIX system
        os.close(lock)
        return None
    except BlockingIOError:
        holder = _holder(lock)
        os.close(lock)
        raise CheckpointError(
            f"{folder}: in use by {holder}; wait until that has ended, or use another folder"
        ) from None
    except OSError as error:  # a disk that is full, a file system without locks
        os.close(lock)
        raise CheckpointError(f"{folder}: cannot be locked: {error.strerror}") from error
    return lock


def _holder(lock: int) -> Any:
    try:
        known = json.loads(os.pread(lock, 1000, 0))
        return f"process {known['process']} on {known['host']} since {known['since']}"
    except (ValueError, KeyError, TypeError, OSError):
        return "another process"
