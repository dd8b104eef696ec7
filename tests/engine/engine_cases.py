"""Tables of layers, losses and optimizers, for the tests against torch and for those of devices."""

from __future__ import annotations

import numpy as np

# (constructor, input shape, what must still be said of our repr to get torch's of today)
LAYERS = {
    "linear": (lambda lib: lib.Linear(5, 3), (4, 5)),
    "linear, no bias, rank 3": (lambda lib: lib.Linear(5, 3, bias=False), (2, 4, 5)),
    "conv2d": (lambda lib: lib.Conv2d(2, 4, 3, padding=1), (2, 2, 7, 5)),
    "conv2d, all options": (
        lambda lib: lib.Conv2d(4, 6, (3, 2), stride=(2, 1), padding=(1, 2), dilation=(1, 2), groups=2, bias=False),
        (2, 4, 9, 8),
    ),
    "max_pool2d": (lambda lib: lib.MaxPool2d(2), (2, 3, 6, 7)),
    "max_pool2d, all options": (lambda lib: lib.MaxPool2d(3, 2, 1, 2, ceil_mode=True), (2, 3, 9, 8)),
    "avg_pool2d": (lambda lib: lib.AvgPool2d(2), (2, 3, 6, 7)),
    "avg_pool2d, all options": (
        lambda lib: lib.AvgPool2d((3, 2), (2, 1), (1, 0), ceil_mode=True, count_include_pad=False),
        (2, 3, 8, 5),
    ),
    "avg_pool2d, divisor": (lambda lib: lib.AvgPool2d(2, divisor_override=3), (2, 3, 6, 7)),
    "zero_pad2d": (lambda lib: lib.ZeroPad2d((1, 2, 3, 0)), (2, 1, 3, 4)),
    "zero_pad2d, one number": (lambda lib: lib.ZeroPad2d(2), (2, 1, 3, 4)),
    "relu": (lambda lib: lib.ReLU(), (3, 4)),
    "leaky_relu": (lambda lib: lib.LeakyReLU(0.2), (3, 4)),
    "elu": (lambda lib: lib.ELU(0.7), (3, 4)),
    "sigmoid": (lambda lib: lib.Sigmoid(), (3, 4)),
    "tanh": (lambda lib: lib.Tanh(), (3, 4)),
    "gelu": (lambda lib: lib.GELU(), (3, 4)),
    "gelu, tanh": (lambda lib: lib.GELU(approximate="tanh"), (3, 4)),
    "silu": (lambda lib: lib.SiLU(), (3, 4)),
    "softplus": (lambda lib: lib.Softplus(beta=2.0, threshold=3.0), (3, 4)),
    "softmax": (lambda lib: lib.Softmax(dim=1), (3, 4, 2)),
    "log_softmax": (lambda lib: lib.LogSoftmax(dim=-1), (3, 4)),
    "batch_norm2d": (lambda lib: lib.BatchNorm2d(3, eps=1e-3, momentum=0.3), (4, 3, 5, 2)),
    "batch_norm2d, mean of all batches": (lambda lib: lib.BatchNorm2d(3, momentum=None), (4, 3, 5, 2)),
    "batch_norm2d, plain": (lambda lib: lib.BatchNorm2d(3, affine=False, track_running_stats=False), (4, 3, 5, 2)),
    "batch_norm1d": (lambda lib: lib.BatchNorm1d(3), (6, 3)),
    "batch_norm1d, rank 3": (lambda lib: lib.BatchNorm1d(3), (6, 3, 4)),
    "layer_norm": (lambda lib: lib.LayerNorm(4), (2, 3, 4)),
    "layer_norm, two dimensions": (lambda lib: lib.LayerNorm((3, 4), eps=1e-3, bias=False), (2, 3, 4)),
    "layer_norm, plain": (lambda lib: lib.LayerNorm([4], elementwise_affine=False), (2, 3, 4)),
    "group_norm": (lambda lib: lib.GroupNorm(2, 4), (2, 4, 3, 3)),
    "group_norm, plain": (lambda lib: lib.GroupNorm(1, 4, affine=False), (2, 4, 3)),
    "flatten": (lambda lib: lib.Flatten(), (2, 3, 4)),
    "flatten, inner": (lambda lib: lib.Flatten(0, 1), (2, 3, 4)),
    "identity": (lambda lib: lib.Identity(), (2, 3)),
}  # fmt: skip

LOSSES = {
    "cross_entropy": (lambda lib, t, o: lib.CrossEntropyLoss(**o), "labels", {}),
    "cross_entropy, weighted, smoothed": (
        lambda lib, t, o: lib.CrossEntropyLoss(weight=t(np.array([0.2, 1.0, 3.0, 0.5])), ignore_index=1,
                                               label_smoothing=0.1, **o), "labels", {}),
    "cross_entropy, probabilities": (lambda lib, t, o: lib.CrossEntropyLoss(**o), "probabilities", {}),
    "nll": (lambda lib, t, o: lib.NLLLoss(weight=t(np.array([0.2, 1.0, 3.0, 0.5])), **o), "labels", {}),
    "mse": (lambda lib, t, o: lib.MSELoss(**o), "values", {}),
    "l1": (lambda lib, t, o: lib.L1Loss(**o), "values", {}),
    "bce": (lambda lib, t, o: lib.BCEWithLogitsLoss(**o), "probabilities", {}),
    "bce, weighted": (
        lambda lib, t, o: lib.BCEWithLogitsLoss(weight=t(np.array([1.0, 2.0, 0.0, 3.0])),
                                                pos_weight=t(np.array([0.5, 2.0, 1.0, 1.0])), **o),
        "probabilities", {}),
}  # fmt: skip


def target_of(kind, stream):
    """A target for predictions (6, 4); ``stream`` draws it."""
    return {
        "labels": np.array([0, 3, 1, 2, 2, 0]),
        "probabilities": stream.dirichlet(np.ones(4), size=6),
        "values": stream.normal(size=(6, 4)),
    }[kind]


OPTIMIZERS = {
    "sgd": (lambda o, p: o.SGD(p, lr=0.1)),
    "sgd, default lr": (lambda o, p: o.SGD(p)),
    "sgd, momentum": (lambda o, p: o.SGD(p, lr=0.1, momentum=0.9)),
    "sgd, dampening, decay": (lambda o, p: o.SGD(p, lr=0.1, momentum=0.9, dampening=0.3, weight_decay=0.1)),
    "sgd, nesterov": (lambda o, p: o.SGD(p, lr=0.1, momentum=0.8, nesterov=True, weight_decay=0.1)),
    "adagrad": (lambda o, p: o.Adagrad(p)),
    "adagrad, all": (
        lambda o, p: o.Adagrad(p, 0.1, lr_decay=0.2, weight_decay=0.1, initial_accumulator_value=0.5, eps=1e-3)
    ),
    "rmsprop": (lambda o, p: o.RMSprop(p)),
    "rmsprop, all": (
        lambda o, p: o.RMSprop(p, 0.02, alpha=0.9, eps=1e-4, weight_decay=0.1, momentum=0.7, centered=True)
    ),
    "adam": (lambda o, p: o.Adam(p)),
    "adam, all": (lambda o, p: o.Adam(p, 0.1, betas=(0.7, 0.9), eps=1e-3, weight_decay=0.1)),
    "adamw": (lambda o, p: o.AdamW(p)),
    "adamw, all": (lambda o, p: o.AdamW(p, 0.1, betas=(0.7, 0.9), eps=1e-3, weight_decay=0.3)),
}
SHAPES = [(3, 4), (), (5,)]
# Which parameters have a gradient in each step: step counts part, in all ways.
PATTERN = [(1, 1, 1), (1, 0, 1), (1, 1, 0), (0, 0, 0), (1, 1, 1), (0, 1, 1), (1, 1, 1)]


def gradients(step):
    stream = np.random.default_rng(100 + step)
    return [stream.normal(size=shape) for shape in SHAPES]


def starts():
    stream = np.random.default_rng(7)
    return [stream.normal(size=shape) for shape in SHAPES]
