"""What is measured: the shapes of the programs, of networks like ResNet and GPT, and odd ones, with their cost.

A multiplication and an addition are two operations; comparisons, roots, exponentials and the like count one each.
Bytes are the least that must travel to and from memory: each pass (forward, backward) reads every input once and
writes every output once.  Both are properties of the work, the same for every contestant.

``layers.py``    a layer's sizes, and the formulas of its operations and bytes
``networks.py``  which sizes of each operation are measured
``programs.py``  the layers of the programs, and their training steps

Letters as in the operations' contracts: N batch, C K channels in and out, H W and P Q height and width in and out,
R S filter height and width.
"""

from .layers import (
    CODE,
    FLOAT,
    LABEL,
    Activation,
    AvgPool2d,
    BatchNorm,
    Conv2d,
    Dropout,
    Embedding,
    Gemm,
    GroupNorm,
    LayerNorm,
    Linear,
    MaxPool2d,
    Pad,
    Softmax,
    SoftmaxCrossEntropy,
    Update,
)
from .programs import (
    LARGE_P10,
    P9_WIDTHS,
    SMALL_P10,
    Step,
    p5,
    p5_convolutions,
    p5_pools,
    p8,
    p9,
    p10,
    p10_convolutions,
)

__all__ = [
    "CODE",
    "FLOAT",
    "LABEL",
    "LARGE_P10",
    "P9_WIDTHS",
    "SMALL_P10",
    "Activation",
    "AvgPool2d",
    "BatchNorm",
    "Conv2d",
    "Dropout",
    "Embedding",
    "Gemm",
    "GroupNorm",
    "LayerNorm",
    "Linear",
    "MaxPool2d",
    "Pad",
    "Softmax",
    "SoftmaxCrossEntropy",
    "Step",
    "Update",
    "p5",
    "p5_convolutions",
    "p5_pools",
    "p8",
    "p9",
    "p10",
    "p10_convolutions",
]
