"""A program's network in evaluation mode, no graph built: how many images a second it judges, how soon it judges one.

As in :mod:`.programs`, one text serves every library, from the same weights on the same images.  Before anything is
timed, each contestant's outputs in float64 and in float32 must be those of rawgrad's NumPy reference in float64.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np

from ..kernels._dispatch import backend
from . import programs
from .harness import OURS, Contestant, Work, assert_close
from .peers import Library, detail, library

#: Batches whose outputs are compared before timing.
_PROVED = 2
#: By dtype, how far an output may be off, as a share of the largest.  Seen: 1e-15 and 5e-7.
_TOLERANCES: dict[type[np.floating], float] = {np.float64: 1e-12, np.float32: 1e-5}


def _judge(lib: Library, network: Any, images: Any) -> Any:
    with lib.no_grad():
        return network(images)


def outputs(lib: Library, program: programs.Program, batch: int, dtype: type[np.floating]) -> list[np.ndarray]:
    """Of the first batches, as host arrays."""
    training = programs.Training(lib, program, dtype, deterministic=True)
    inputs = [training.put(*one)[0] for one in programs.batches(program, batch)[:_PROVED]]
    return [np.array(lib.host(_judge(lib, training.network, images))) for images in inputs]


def contestant(lib: Library, program: programs.Program, batch: int) -> Contestant:
    """One library's network."""
    training = programs.Training(lib, program, deterministic=True)
    return Contestant(
        lib.name,
        partial(_judge, lib, training.network),
        [training.put(*one)[:1] for one in programs.batches(program, batch)],
        detail(lib.name),
        result=lambda: [outputs(lib, program, batch, dtype) for dtype in _TOLERANCES],
    )


def _reference(program: programs.Program, batch: int) -> list[np.ndarray]:
    with backend("numpy"):
        return outputs(library(OURS), program, batch, np.float64)


def check(results: Sequence[Sequence[np.ndarray]], reference: Sequence[np.ndarray]) -> None:
    """The outputs in each dtype of ``_TOLERANCES``."""
    for result, (dtype, share) in zip(results, _TOLERANCES.items(), strict=True):
        assert_close(result, reference, share, f"{dtype.__name__} outputs")


def forward(name: str, batch: int, contestants: Sequence[str]) -> Work:
    """The row of one program at one batch."""
    program = programs.PROGRAMS[name]
    return Work(
        name=f"forward_{name}_batch{batch}",
        description=f"{program.description}: forward alone at batch {batch}, evaluation mode, no graph",
        contestants=[programs.by_name(who, partial(contestant, program=program, batch=batch)) for who in contestants],
        reference=lambda: _reference(program, batch),
        reference_name=f"rawgrad's NumPy reference in float64, {_PROVED} batches",
        check=check,
        layout="NC" if program.flat else "NCHW",
        flops=program.step(batch).forward_flops(),
    )
