"""``rawgrad.optim``: optimizers, learning-rate schedules and gradient clipping."""

from .engine.optim import (
    SGD,
    Adagrad,
    Adam,
    AdamW,
    GradScaler,
    Optimizer,
    RMSprop,
    clip_grad_norm_,
    clip_grad_value_,
    lr_scheduler,
)

__all__ = [
    "SGD",
    "Adagrad",
    "Adam",
    "AdamW",
    "GradScaler",
    "Optimizer",
    "RMSprop",
    "clip_grad_norm_",
    "clip_grad_value_",
    "lr_scheduler",
]
