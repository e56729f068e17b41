"""Networks as plain data: lists of blocks, and the head of a clock network."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from dlnn_search.config.base import Frozen

ActivationName = Literal[
    "relu", "tanh", "sigmoid", "linear", "elu", "selu", "gelu", "silu", "mish", "leaky_relu"
]
InitializerName = Literal[
    "glorot_uniform",
    "glorot_normal",
    "standard_normal",
    "lecun_uniform",
    "lecun_normal",
    "he_uniform",
    "he_normal",
]
"""`standard_normal` is N(0, 1), whatever the layer's size (report, section 2.2)."""


class _Weighted(Frozen):
    activation: ActivationName = "relu"
    initializer: InitializerName = "glorot_uniform"
    l1: float = Field(0.0, ge=0)
    l2: float = Field(0.0, ge=0)


class Dense(_Weighted):
    """A fully connected layer."""

    kind: Literal["dense"] = "dense"
    units: int = Field(ge=1, le=65_536)


class Conv(_Weighted):
    """A two-dimensional convolution."""

    kind: Literal["conv"] = "conv"
    filters: int = Field(ge=1, le=4_096)
    kernel: int = Field(3, ge=1, le=31)
    stride: int = Field(1, ge=1, le=8)
    padding: Literal["valid", "same"] = "valid"


class Pool(Frozen):
    """Pooling over non-overlapping squares."""

    kind: Literal["pool"] = "pool"
    of: Literal["max", "average"] = "max"
    size: int = Field(2, ge=2, le=8)


class BatchNorm(Frozen):
    """Batch normalisation."""

    kind: Literal["batch_norm"] = "batch_norm"
    momentum: float = Field(0.99, ge=0, lt=1)


class Dropout(Frozen):
    """Dropout of single values."""

    kind: Literal["dropout"] = "dropout"
    rate: float = Field(ge=0, lt=1)


class Activation(Frozen):
    """An activation of its own, for convolution -> normalisation -> activation."""

    kind: Literal["activation"] = "activation"
    function: ActivationName = "relu"


DenseBlock = Annotated[Dense | BatchNorm | Dropout | Activation, Field(discriminator="kind")]
ConvBlock = Annotated[Conv | Pool | BatchNorm | Dropout | Activation, Field(discriminator="kind")]
Join = Literal["flatten", "average"]
"""How a trunk's feature maps become a vector: all values, or each map's mean."""


class Mlp(Frozen):
    """Flatten, then any dense blocks, then a softmax over the classes."""

    kind: Literal["mlp"] = "mlp"
    blocks: tuple[DenseBlock, ...] = ()


class Cnn(Frozen):
    """Any convolutional blocks, then any dense blocks, then a softmax over the classes."""

    kind: Literal["cnn"] = "cnn"
    blocks: tuple[ConvBlock, ...]
    join: Join = "flatten"
    dense: tuple[DenseBlock, ...] = ()


class TwoSoftmax(Frozen):
    """One softmax of 12 hours and one of 60 minutes, each behind dense blocks of its own.

    The weights of the two losses, 6 and 4, are the report's (section 4.5).
    """

    kind: Literal["two_softmax"] = "two_softmax"
    hour: tuple[DenseBlock, ...] = ()
    minute: tuple[DenseBlock, ...] = ()
    hour_weight: float = Field(6.0, gt=0)
    minute_weight: float = Field(4.0, gt=0)


class ClockNet(Frozen):
    """A convolutional trunk, dense blocks shared by hour and minute, and a head."""

    kind: Literal["clock_net"] = "clock_net"
    blocks: tuple[ConvBlock, ...]
    join: Join = "flatten"
    dense: tuple[DenseBlock, ...] = ()
    normalize: bool = False
    """Bring each picture to mean 0 and deviation 1 inside the model, else scale to [0, 1]."""
    head: TwoSoftmax = TwoSoftmax()


Model = Annotated[Mlp | Cnn | ClockNet, Field(discriminator="kind")]
