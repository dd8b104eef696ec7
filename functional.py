"""``rawgrad.functional``, as ``F``: operations on tensors."""

from __future__ import annotations

from .autograd.functional import *  # noqa: F403
from .autograd.functional import __all__ as __all__
