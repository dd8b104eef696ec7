"""The random state: a seed and an offset, nothing else.

Every draw takes the next offset, and (seed, offset) alone decides what is drawn (Philox, a
counter-based generator: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011).  So a
dropout mask is the same on every backend, and two integers are all that a resumed run needs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ..kernels import _graph
from ..kernels._devices import device_named
from ..kernels._errors import ArgumentError, CheckpointError

#: Refused in a capture, and what to do instead.
_ON_HOST = "random numbers were drawn on the host", "draw them before, into a tensor that the step reads"


class Generator:
    """A source of random draws.

    Args:
        seed: 0 <= seed < 2**64.

    Attributes:
        seed: as given.
        offset: how many draws were made.
    """

    def __init__(self, seed: int = 0) -> None:
        self.manual_seed(seed)

    def manual_seed(self, seed: int) -> Generator:
        """Start again with ``seed`` at offset 0."""
        if isinstance(seed, bool) or not isinstance(seed, int | np.integer) or not 0 <= seed < 2**64:
            raise ArgumentError(f"manual_seed: the seed must be an integer in [0, 2**64); got {seed!r}")
        self.seed, self.offset = int(seed), 0
        return self

    def _next(self) -> int:
        self.offset += 1
        return self.offset - 1

    def numpy(self) -> np.random.Generator:
        """A NumPy generator for the next draw: Philox4x64 with the key (seed, offset)."""
        _graph.refuse(*_ON_HOST)
        return np.random.Generator(np.random.Philox(key=np.array([self.seed, self._next()], np.uint64)))

    def offset_array(self, device: str) -> Any:
        """The next draw's offset as a one-element uint64 array, as the kernels take it.

        In a capture it is computed on the device, so that each replay draws anew.
        """
        graph = _graph.current() if _graph.under_way else None
        if graph is not None and device == graph.device.name:
            return graph.draw(self)
        _graph.refuse(*_ON_HOST)
        return device_named(device).from_host(np.array([self._next()], np.uint64))

    def get_state(self) -> tuple[int, int]:
        """(seed, offset)."""
        return self.seed, self.offset

    def set_state(self, state: tuple[int, int]) -> None:
        """Continue where :meth:`get_state` was taken."""
        seed, offset = state
        self.manual_seed(seed)
        self.offset = int(offset)

    def state_dict(self) -> dict[str, int]:
        """The same under names, as models and optimizers have it."""
        return {"seed": self.seed, "offset": self.offset}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where :meth:`state_dict` was taken.

        Raises:
            CheckpointError: it is no state of a generator.
        """
        try:
            seed, offset = (state[name] for name in ("seed", "offset"))
            if not isinstance(offset, int) or not 0 <= offset < 2**64:
                raise ArgumentError(f"the offset must be an integer in [0, 2**64); got {offset!r}")
            self.manual_seed(seed).offset = offset
        except (KeyError, TypeError, ArgumentError) as error:
            raise CheckpointError(f"Generator: not the state of a generator: {error}") from None


default_generator = Generator(0)


def manual_seed(seed: int) -> Generator:
    """Seed everything random in rawgrad: initialisation, dropout, ``randn``; gives the generator."""
    return default_generator.manual_seed(seed)
