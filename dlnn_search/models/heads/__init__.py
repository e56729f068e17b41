"""What stands at a network's end: its outputs, their loss, and what they say.

A head is chosen by the config (classes have one, clocks a union of them) and carries everything
that training and evaluation must know of it: they call its methods and never ask which it is.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Literal, Protocol, TypeVar

import keras
import numpy as np
from numpy.typing import NDArray

from dlnn_search import metrics
from dlnn_search.config import (
    ClockNet,
    Clocks,
    Config,
    Joint,
    OneRegression,
    OneSoftmax,
    Regression,
    SinCos,
    SoftLabels,
    TwoSoftmax,
)
from dlnn_search.config.model import Branch, DenseBlock
from dlnn_search.metrics import HOURS, MINUTES, MINUTES_ON_DIAL, clock_metrics

#: A Keras tensor, symbolic or not: Keras has no type stubs.
Tensor = Any
#: The network's outputs by name, each of shape (n, width).
Outputs = Mapping[str, Tensor]
OutputActivation = Literal["softmax", "sigmoid", "linear"]


class Layers(Protocol):
    """Makes layers with the config's seeds and precision; `build` owns the counting."""

    def dense(self, blocks: Sequence[DenseBlock], x: Tensor) -> Tensor:
        """Append dense blocks, (batch, features) -> (batch, units)."""

    def output(self, width: int, activation: OutputActivation, name: str, x: Tensor) -> Tensor:
        """Append an output layer, (batch, features) -> (batch, width), float32."""


class Head(Protocol):
    """The end of a network.

    Attributes:
        names: Of the outputs, in the order in which a list of them is read.
        guessing_loss: The loss of a network that has learnt nothing but how many classes there
            are; the scale by which divergence is judged.
    """

    @property
    def names(self) -> tuple[str, ...]: ...

    @property
    def guessing_loss(self) -> float: ...

    def attach(self, layers: Layers, x: Tensor) -> Outputs:
        """Append the output layers to a trunk, (batch, features) -> one tensor a name."""

    def targets(self, labels: NDArray[np.uint8]) -> NDArray[np.int32]:
        """Return what the loss starts from, one row a label: shape (n, len(names)).

        Whole numbers even where the loss compares with curves or angles: it looks those up in a
        constant table, so that an image's label stays 4 or 8 bytes on its way into a batch.
        """

    def losses(self, targets: Tensor, outputs: Outputs) -> Tensor:
        """Return the weighted loss of each image, shape (n,), float32.

        Args:
            targets: As from `targets`, (n, len(names)), int32.
            outputs: Of the network, (n, width) each.
        """

    def read(self, outputs: Outputs) -> Tensor:
        """Return one answer an image, shape (n,), int64: its class, or minutes since 12:00.

        A part of a graph, too: an exported model reads as this program does.
        """

    def decode(self, outputs: Mapping[str, NDArray[np.float32]]) -> NDArray[np.int64]:
        """Return what `read` does, of arrays and as an array."""

    def metrics(
        self, labels: NDArray[np.uint8], outputs: Mapping[str, NDArray[np.float32]]
    ) -> dict[str, float]:
        """Return the metrics of these outputs by their names in `dlnn_search.metrics`."""


def likeliest(scores: Tensor) -> Tensor:
    """Return the class with the highest score, the first among equals, (n, classes) -> (n,)."""
    return keras.ops.cast(keras.ops.argmax(scores, axis=-1), "int64")


@dataclass(frozen=True)
class ClassHead:
    """One softmax of the classes with cross-entropy (keras-team/keras, examples/mnist_*.py)."""

    n_classes: int
    names: tuple[str, ...] = ("output",)

    @property
    def guessing_loss(self) -> float:
        return math.log(self.n_classes)

    def attach(self, layers: Layers, x: Tensor) -> Outputs:
        return {"output": layers.output(self.n_classes, "softmax", "output", x)}

    def targets(self, labels: NDArray[np.uint8]) -> NDArray[np.int32]:
        return labels.astype(np.int32)[:, None]

    def losses(self, targets: Tensor, outputs: Outputs) -> Tensor:
        return keras.losses.sparse_categorical_crossentropy(targets[:, 0], outputs["output"])

    def read(self, outputs: Outputs) -> Tensor:
        return likeliest(outputs["output"])

    def decode(self, outputs: Mapping[str, NDArray[np.float32]]) -> NDArray[np.int64]:
        return np.asarray(self.read(outputs))

    def metrics(
        self, labels: NDArray[np.uint8], outputs: Mapping[str, NDArray[np.float32]]
    ) -> dict[str, float]:
        return {"accuracy": metrics.accuracy(labels, self.decode(outputs))}


#: The mean way round from any guess to all hours, and to all minutes: a quarter of the circle.
GUESSED_DIAL_ERROR = MINUTES_ON_DIAL / 4
GUESSED_MINUTE_ERROR = MINUTES / 4
#: Below about this length a vector has no direction that its loss could rely on.
_SHORT = 0.1


def bumps(centres: NDArray[np.float64], n_bins: int, width: float) -> NDArray[np.float32]:
    """Return circular soft labels: von Mises densities at the bins' centres, summing to 1.

    With the concentration 1 / width^2 (width in radians), a von Mises distribution is close to a
    normal one of that deviation wrapped round the circle, and needs no sum over the turns.

    Args:
        centres: Of the bumps, in turns of the circle, shape (k,). Bin b stands at b / n_bins.
        n_bins: Of the circle.
        width: Standard deviation, in turns.

    Returns:
        Shape (k, n_bins), float32.
    """
    angles = 2 * math.pi * (np.arange(n_bins) / n_bins - centres[:, None])  # (k, n_bins)
    density = np.exp((np.cos(angles) - 1) / (2 * math.pi * width) ** 2)
    labels: NDArray[np.float32] = (density / density.sum(axis=1, keepdims=True)).astype(np.float32)
    return labels


def way_round(difference: Tensor, period: float) -> Tensor:
    """Return the shortest way round a circle, in [0, period / 2].

    Its slope is 1 or -1 everywhere but where the points meet (0), those opposite included.
    """
    half = period / 2
    return keras.ops.abs(keras.ops.mod(difference + half, period) - half)


def expected_way(true: Tensor, probabilities: Tensor) -> Tensor:
    """Return the mean way round from the truth under a distribution over a circle's classes.

    Args:
        true: Classes, shape (n,), int32.
        probabilities: Shape (n, classes).

    Returns:
        In classes, shape (n,), float32.
    """
    n_classes = probabilities.shape[-1]
    classes = np.arange(n_classes, dtype=np.float32)
    apart = classes - keras.ops.cast(true, "float32")[:, None]  # (n, classes)
    return keras.ops.sum(probabilities * way_round(apart, n_classes), axis=-1)


def expected_error(targets: Tensor, times: Tensor, minutes: Tensor) -> tuple[Tensor, Tensor]:
    """Return the expected common sense error and the expected error of the minute hand.

    The second alone can teach the minute while the hour is unknown: over all hours, every minute
    is as wrong as any other.

    Args:
        targets: Hours and minutes, shape (n, 2), int32.
        times: Probabilities, shape (n, 720).
        minutes: Probabilities, shape (n, 60).

    Returns:
        Both in minutes, shape (n,), float32.
    """
    time = targets[:, 0] * MINUTES + targets[:, 1]
    return expected_way(time, times), expected_way(targets[:, 1], minutes)


def product(hours: Tensor, minutes: Tensor) -> Tensor:
    """Return the distribution over all times, (n, 12) and (n, 60) -> (n, 720)."""
    return keras.ops.reshape(hours[:, :, None] * minutes[:, None, :], (-1, HOURS * MINUTES))


def directions(n_steps: int) -> NDArray[np.float32]:
    """Return (sine, cosine) of the angles of all steps of a circle, shape (n_steps, 2)."""
    angles = 2 * math.pi * np.arange(n_steps) / n_steps
    return np.stack([np.sin(angles), np.cos(angles)], axis=1).astype(np.float32)


def angle_between(true: Tensor, found: Tensor) -> Tensor:
    """Return the angle between a direction and a vector of any length.

    The gradient of an angle grows beyond all bounds as the vector shrinks, and the centre has
    none. So a vector much shorter than 0.1 counts as what it says, nothing: a right angle, the
    mean of all guesses. The gradient stays below 25 for a radian everywhere.

    Args:
        true: (sine, cosine), shape (n, 2).
        found: Same order and shape, of any length.

    Returns:
        Radians, shape (n,), in [0, pi].
    """
    ops = keras.ops
    dot = ops.sum(true * found, axis=-1)
    cross = true[:, 0] * found[:, 1] - true[:, 1] * found[:, 0]
    squared = ops.sum(ops.square(found), axis=-1)
    trust = 1 - ops.exp(-squared / _SHORT**2)
    # Both sides of a `where` are differentiated: the one not taken must be finite, too.
    centre = squared < 1e-12
    angle = ops.abs(ops.arctan2(cross, ops.where(centre, ops.ones_like(dot), dot)))
    return trust * angle + (1 - trust) * (math.pi / 2)


class Spec(Protocol):
    """A head as the config has it."""

    @property
    def branches(self) -> tuple[Branch, ...]: ...


SpecT = TypeVar("SpecT", bound=Spec)


@dataclass(frozen=True)
class ClockHead(ABC, Generic[SpecT]):
    """One output named `time`, or two named `hour` and `minute`.

    Targets are minutes since 12:00, shape (n, 1), or hours and minutes, shape (n, 2).
    """

    spec: SpecT

    @property
    @abstractmethod
    def guessing_loss(self) -> float:
        """See `Head`."""

    @abstractmethod
    def losses(self, targets: Tensor, outputs: Outputs) -> Tensor:
        """See `Head`."""

    @abstractmethod
    def read(self, outputs: Outputs) -> Tensor:
        """See `Head`."""

    def decode(self, outputs: Mapping[str, NDArray[np.float32]]) -> NDArray[np.int64]:
        return np.asarray(self.read(outputs))

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(branch.name for branch in self.spec.branches)

    @property
    def activation(self) -> OutputActivation:
        """Of the outputs."""
        return "softmax"

    def attach(self, layers: Layers, x: Tensor) -> Outputs:
        # All branches before all outputs: the order of the report's Figure 5.
        ends = [layers.dense(branch.blocks, x) for branch in self.spec.branches]
        return {
            branch.name: layers.output(branch.width, self.activation, branch.name, end)
            for branch, end in zip(self.spec.branches, ends, strict=True)
        }

    def targets(self, labels: NDArray[np.uint8]) -> NDArray[np.int32]:
        wide = labels.astype(np.int32)
        return wide if len(self.spec.branches) == 2 else times_of(wide)[:, None]

    def metrics(
        self, labels: NDArray[np.uint8], outputs: Mapping[str, NDArray[np.float32]]
    ) -> dict[str, float]:
        return clock_metrics(times_of(labels.astype(np.int32)), self.decode(outputs))


def times_of(labels: NDArray[np.int32]) -> NDArray[np.int32]:
    """Return minutes since 12:00, shape (n,), of hours and minutes, shape (n, 2)."""
    times: NDArray[np.int32] = labels[:, 0] * MINUTES + labels[:, 1]
    return times


def head_of(config: Config) -> Head:
    """Return the head that a config's network ends in."""
    if not isinstance(config.data, Clocks):
        return ClassHead(config.data.n_classes)
    from dlnn_search.models.heads import dials

    assert isinstance(config.model, ClockNet)
    match config.model.head:
        case TwoSoftmax() as spec:
            return dials.TwoSoftmaxHead(spec)
        case OneSoftmax() as spec:
            return dials.OneSoftmaxHead(spec)
        case SoftLabels() as spec:
            return dials.SoftLabelsHead(spec)
        case Joint() as spec:
            return dials.JointHead(spec)
        case Regression() as spec:
            return dials.RegressionHead(spec)
        case OneRegression() as spec:
            return dials.OneRegressionHead(spec)
        case SinCos() as spec:
            return dials.SinCosHead(spec)


def by_name(head: Head, outputs: Tensor) -> dict[str, Tensor]:
    """Return a network's outputs by name, whichever of Keras's three forms they come in."""
    if isinstance(outputs, Mapping):
        return {name: outputs[name] for name in head.names}
    if not isinstance(outputs, list | tuple):
        outputs = [outputs]
    return dict(zip(head.names, outputs, strict=True))
