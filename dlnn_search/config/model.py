"""Networks as plain data: lists of blocks, and the head of a clock network."""

from __future__ import annotations

from typing import Annotated, Literal, NamedTuple

from pydantic import Field

from dlnn_search.config.data import Frozen, OwnPart
from dlnn_search.metrics import HOURS, MINUTES, MINUTES_ON_DIAL

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


class Branch(NamedTuple):
    """One output of a clock network, behind dense blocks of its own.

    Attributes:
        name: Of the output.
        blocks: Between the shared part of the network and the output.
        width: How many values the output has for each image.
    """

    name: str
    blocks: tuple[DenseBlock, ...]
    width: int


class _OneOutput(Frozen):
    time: tuple[DenseBlock, ...] = ()


class _TwoOutputs(Frozen):
    """Two branches, weighted 6 to 4 as in the report (sections 4.3 and 4.5).

    60 minutes hang on the hour, and there are five times as many minutes to choose from.
    """

    hour: tuple[DenseBlock, ...] = ()
    minute: tuple[DenseBlock, ...] = ()
    hour_weight: float = Field(6.0, gt=0)
    minute_weight: float = Field(4.0, gt=0)


ClassLoss = Literal["cross_entropy", "common_sense"]
"""`common_sense`: the expected way round the dial under the network's probabilities, minutes.

It knows that 3:59 is next to 4:01, and cross-entropy does not. But alone it is slow to teach
the minute: on upright rendered dials that cross-entropy read without a mistake after 6 epochs,
two softmaxes were 13 minutes off with it, and `Joint` 5. The report's own version "failed to
converge" (section 4.3).
"""
ValueLoss = Literal["mse", "common_sense"]
"""`mse`: mean squared error; `common_sense`: the way round the dial to what is read, minutes."""


class TwoSoftmax(_TwoOutputs):
    """One softmax of 12 hours and one of 60 minutes, each behind dense blocks of its own.

    Source: report, section 4.5 and Figure 5.
    """

    kind: Literal["two_softmax"] = "two_softmax"
    loss: ClassLoss = "cross_entropy"

    @property
    def branches(self) -> tuple[Branch, ...]:
        return Branch("hour", self.hour, HOURS), Branch("minute", self.minute, MINUTES)


class OneSoftmax(_OneOutput):
    """One softmax of all 720 times (report, section 4.2: "did not show improvements")."""

    kind: Literal["one_softmax"] = "one_softmax"
    loss: ClassLoss = "cross_entropy"

    @property
    def branches(self) -> tuple[Branch, ...]:
        return (Branch("time", self.time, MINUTES_ON_DIAL),)


class SoftLabels(_TwoOutputs):
    """Two softmaxes trained to put some probability beside the true hour and minute.

    The labels are discretised von Mises bumps around the true hour and the true minute, so that
    11 and 0, or 59 and 0, are as near as any neighbours. The hour's bump stands on the hour
    itself, not on the hour hand: at 4:00 the hand's would name 3 and 4 alike, and a softmax of
    hours that is read alone could not tell. `Joint` is the head that uses the hand.
    """

    kind: Literal["soft_labels"] = "soft_labels"
    hour_width: float = Field(0.5, ge=0.05, le=3)
    """Standard deviation of the hour's bump, hours."""
    minute_width: float = Field(1.0, ge=0.25, le=15)
    """Standard deviation of the minute's bump, minutes."""

    @property
    def branches(self) -> tuple[Branch, ...]:
        return Branch("hour", self.hour, HOURS), Branch("minute", self.minute, MINUTES)


class Joint(_TwoOutputs):
    """A softmax over the minutes and one over where the hour hand points, read as one time.

    Both are trained on circular soft labels. What is read is the time whose labels fit both
    outputs best, so hour and minute always agree: the hour hand moves continuously, and with the
    minute known its angle needs to be right only to half an hour (15 degrees) to name the hour.
    Read apart, an hour is wrong as soon as the hand, near the full hour, seems to be on the
    other side of a numeral. Such mistakes are most of what is left of the best models' error;
    the report shows one (0:59 read as 1:59, section 4.5) and proposes to "merge the branches".
    """

    kind: Literal["joint"] = "joint"
    hour_bins: int = Field(144, ge=HOURS, le=MINUTES_ON_DIAL)
    """Directions of the hour hand that the hour's softmax tells apart; 144 are 5 minutes each."""
    hour_width: float = Field(15.0, ge=2, le=60)
    """Standard deviation of the hour hand's bump, minutes (2 minutes are a degree)."""
    minute_width: float = Field(1.0, ge=0.25, le=15)
    """Standard deviation of the minute's bump, minutes."""
    loss: ClassLoss = "cross_entropy"

    @property
    def branches(self) -> tuple[Branch, ...]:
        return Branch("hour", self.hour, self.hour_bins), Branch("minute", self.minute, MINUTES)


class Regression(_TwoOutputs):
    """The hour as h / 12 and the minute as m / 60, two numbers in [0, 1).

    Source: report, section 4.1 ("decimals between 0 and 1").
    """

    kind: Literal["regression"] = "regression"
    output: Literal["sigmoid", "linear"] = "sigmoid"
    """A linear output is clipped to [0, 1] when it is read, not when it is trained."""
    loss: ValueLoss = "mse"

    @property
    def branches(self) -> tuple[Branch, ...]:
        return Branch("hour", self.hour, 1), Branch("minute", self.minute, 1)


class OneRegression(_OneOutput):
    """The time as t / 720, one number in [0, 1). Source: report, section 4.2."""

    kind: Literal["one_regression"] = "one_regression"
    output: Literal["sigmoid", "linear"] = "sigmoid"
    """A linear output is clipped to [0, 1] when it is read, not when it is trained."""
    loss: ValueLoss = "mse"

    @property
    def branches(self) -> tuple[Branch, ...]:
        return (Branch("time", self.time, 1),)


class SinCos(_TwoOutputs):
    """The hour hand's and the minute hand's direction, each as (sine, cosine) of its angle.

    The angles are 2 pi t / 720 and 2 pi m / 60, clockwise from 12. The minute is read from its
    own hand, the hour is the one that brings the hour hand nearest to where it points.
    """

    kind: Literal["sin_cos"] = "sin_cos"
    loss: ValueLoss = "mse"

    @property
    def branches(self) -> tuple[Branch, ...]:
        return Branch("hour", self.hour, 2), Branch("minute", self.minute, 2)


ClockHead = Annotated[
    TwoSoftmax | OneSoftmax | SoftLabels | Joint | Regression | OneRegression | SinCos,
    Field(discriminator="kind"),
]


class Contrast(Frozen):
    """Make dark pixels darker, the darkest most: the hands and digits stand out.

    From a pixel below the threshold, `strength` times what it lacks to the threshold is
    subtracted, down to 0; brighter pixels stay as they are.

    Source: report, section 4.4 and Figure 4, which give no numbers.
    """

    threshold: float = Field(150.0, gt=0, le=255)
    """Gray level from which on a pixel stays as it is; 150 is below the real dials, near 200, and
    above their hands, near 60, and numerals."""
    strength: float = Field(1.0, ge=0, le=100)


class ClockNet(Frozen):
    """A convolutional trunk, dense blocks shared by hour and minute, and a head."""

    kind: Literal["clock_net"] = "clock_net"
    blocks: tuple[ConvBlock, ...]
    join: Join = "flatten"
    dense: tuple[DenseBlock, ...] = ()
    contrast: Contrast | None = None
    """Darken dark pixels inside the model, before anything else."""
    normalize: bool = False
    """Bring each picture to mean 0 and deviation 1 inside the model, else scale to [0, 1]."""
    head: ClockHead = TwoSoftmax()


class OwnModel(OwnPart):
    """A network of the study's own builder, for pictures of classes."""

    kind: Literal["own"] = "own"


Model = Annotated[Mlp | Cnn | ClockNet | OwnModel, Field(discriminator="kind")]
