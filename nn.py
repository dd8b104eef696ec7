"""``rawgrad.nn``: modules, layers, losses and initialisations."""

from .engine import init
from .engine.layers import *  # noqa: F403
from .engine.layers import __all__ as _layers
from .engine.losses import BCEWithLogitsLoss, CrossEntropyLoss, L1Loss, MSELoss, NLLLoss
from .engine.module import Module, Parameter
from .engine.summary import summary
from .engine.trace import trace

__all__ = [
    "BCEWithLogitsLoss",
    "CrossEntropyLoss",
    "L1Loss",
    "MSELoss",
    "Module",
    "NLLLoss",
    "Parameter",
    "init",
    "summary",
    "trace",
    *_layers,
]
