"""Reverse-mode differentiation: tensors, the tape, and the operations on them.

Read in this order: ``tensor.py`` (what a tensor is), ``function.py`` (how an operation gets onto
the tape), ``graph.py`` (the tape and the backward pass), then any file of ``functions/``.
"""

from .tensor import Tensor, as_dtype  # first: the Functions need the class  # isort: skip
from .creation import (
    arange,
    as_tensor,
    eye,
    from_dlpack,
    from_numpy,
    full,
    full_like,
    linspace,
    ones,
    ones_like,
    rand,
    randint,
    randn,
    randperm,
    tensor,
    zeros,
    zeros_like,
)
from .differentiation import backward, grad
from .function import Function
from .gradcheck import Report, gradcheck, gradgradcheck, numerical_gradient
from .graph import (
    detect_anomaly,
    enable_grad,
    is_anomaly_enabled,
    is_grad_enabled,
    no_grad,
)
from .random import Generator, default_generator, manual_seed

__all__ = [
    "Function", "Generator", "Report", "Tensor", "arange", "as_dtype", "as_tensor", "backward", "default_generator",
    "detect_anomaly", "enable_grad", "eye", "from_dlpack", "from_numpy", "full", "full_like", "grad", "gradcheck",
    "gradgradcheck", "is_anomaly_enabled", "is_grad_enabled", "linspace", "manual_seed", "no_grad",
    "numerical_gradient", "ones", "ones_like", "rand", "randint", "randn", "randperm", "tensor", "zeros",
    "zeros_like",
]  # fmt: skip
