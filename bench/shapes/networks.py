"""Which sizes of each operation are measured, by a short name: of networks like ResNet and GPT, and odd ones.

They are scaled down, in batch or in vocabulary, until a pass takes two cores some milliseconds; the GPU's rows have
sizes of their own beside them.  Odd sizes are divisible by nothing that a kernel would like.
"""

from __future__ import annotations

from .layers import (
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


def _ring(width: int) -> Pad:
    return Pad(width, width, width, width)


#: ResNet-50's kinds of convolutions at batch 4, ResNeXt's groups, MobileNet's depthwise one.
CONV2D = {
    "resnet_stem": Conv2d(4, 3, 224, 224, 64, 7, 7, 2, _ring(3)),
    "resnet_3x3": Conv2d(4, 64, 56, 56, 64, 3, 3, 1, _ring(1)),
    "resnet_3x3_stride2": Conv2d(4, 128, 56, 56, 128, 3, 3, 2, _ring(1)),
    "resnet_1x1": Conv2d(4, 256, 56, 56, 64, 1, 1),
    "resnet_1x1_stride2": Conv2d(4, 256, 56, 56, 512, 1, 1, 2),
    "groups32": Conv2d(4, 128, 28, 28, 128, 3, 3, 1, _ring(1), 32),
    "depthwise": Conv2d(4, 64, 56, 56, 64, 3, 3, 1, _ring(1), 64),
    "odd": Conv2d(3, 17, 31, 29, 23, 5, 3, 1, _ring(1)),
}

#: GPT's attention over 512 tokens of 64 channels, a square, odd ones, a vector.
GEMM = {
    "attention_scores": Gemm(512, 64, 512),
    "attention_values": Gemm(512, 512, 64),
    "odd": Gemm(257, 513, 129),
    "vector": Gemm(1, 1024, 1024),
}

#: A GPT-2 layer over 512 tokens, with bias: into the MLP, out of it.
LINEAR = {"gpt_mlp_in": Linear(512, 768, 3072), "gpt_mlp_out": Linear(512, 3072, 768)}

MAX_POOL2D = {
    "resnet_stem": MaxPool2d(4, 64, 112, 112, 3, 2, 1),
    "odd": MaxPool2d(3, 17, 31, 29, 3, 3),
}

#: DenseNet's transition, ResNet's last one, an odd one.
AVG_POOL2D = {
    "densenet_2x2": AvgPool2d(8, 64, 56, 56, 2, 2),
    "resnet_global": AvgPool2d(64, 512, 7, 7, 7, 7),
    "odd": AvgPool2d(3, 17, 31, 29, 3, 2, 1),
}

#: GPT-2's vocabulary; ImageNet's classes.
SOFTMAX_CROSS_ENTROPY = {"64x50257": SoftmaxCrossEntropy(64, 50257), "256x1000": SoftmaxCrossEntropy(256, 1000)}

#: Attention of 12 heads over 256 tokens; ImageNet's classes; an odd one.
SOFTMAX = {"attention": Softmax(12 * 256, 256), "256x1000": Softmax(256, 1000), "odd": Softmax(123, 1027)}

#: A GPT-2 MLP over 512 tokens; what a ResNet has after its first layer.
ACTIVATION = {
    "gelu_gpt_mlp": Activation(512, 3072, kind="gelu"),
    "relu_gpt_mlp": Activation(512, 3072, kind="relu"),
    "relu_resnet": Activation(4 * 64, 56 * 56, kind="relu"),
    "sigmoid_odd": Activation(123, 1027, kind="sigmoid"),
}

DROPOUT = {"gpt_mlp": Dropout(512, 3072), "odd": Dropout(123, 1027)}

BATCH_NORM = {
    "resnet_56": BatchNorm(8, 64, 56, 56),
    "resnet_7": BatchNorm(32, 512, 7, 7),
    "odd": BatchNorm(5, 17, 31, 29),
}

LAYER_NORM = {"gpt_768": LayerNorm(1024, 768), "odd": LayerNorm(123, 1027)}

GROUP_NORM = {"resnet_56": GroupNorm(8, 64, 56, 56, groups=32), "odd": GroupNorm(5, 18, 31, 29, groups=3)}

#: GPT-2's tokens out of a fifth of its vocabulary.
EMBEDDING = {"gpt": Embedding(1024, 10_000, 768), "odd": Embedding(1237, 517, 123)}

#: A million numbers in the 8 tensors of a small network, in the 160 of a deep one, ten million in few.
UPDATE_SIZES = {
    "1M_in_8": (125_000,) * 8,
    "1M_in_160": (12_000, 64, 64) * 40 + (12_500,) * 40,
    "10M": (6_000_000, 3_000_000, 1_000_000),
}


def update(kind: str, name: str) -> Update:
    """A step of that kind over the sizes of that name."""
    return Update(kind, UPDATE_SIZES[name])
