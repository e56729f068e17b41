"""What stands at a network's end: its outputs, their loss, and what they say.

A head is chosen by the config (digits have one, clocks a union of them) and carries everything
that training and evaluation must know of it: they call its methods and never ask which it is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import keras
import numpy as np
from numpy.typing import NDArray

from dlnn_search import metrics
from dlnn_search.config import ClockNet, Config, TwoSoftmax
from dlnn_search.config.model import DenseBlock
from dlnn_search.metrics import HOURS, MINUTES
from dlnn_search.models.shapes import N_DIGIT_CLASSES

#: A Keras tensor, symbolic or not: Keras has no type stubs.
Tensor = Any
#: The network's outputs by name, each of shape (n, classes).
Outputs = Mapping[str, Tensor]


class Layers(Protocol):
    """Makes layers with the config's seeds and precision; `build` owns the counting."""

    def dense(self, blocks: Sequence[DenseBlock], x: Tensor) -> Tensor:
        """Append dense blocks, (batch, features) -> (batch, units)."""

    def softmax(self, n_classes: int, name: str, x: Tensor) -> Tensor:
        """Append an output layer, (batch, features) -> (batch, n_classes), float32."""


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
        """Return what the loss compares with, one row a label: shape (n, len(names))."""

    def losses(self, targets: Tensor, outputs: Outputs) -> Tensor:
        """Return the weighted loss of each image, shape (n,), float32.

        Args:
            targets: As from `targets`, (n, len(names)), int32.
            outputs: Of the network, (n, classes) each.
        """

    def decode(self, outputs: Mapping[str, NDArray[np.float32]]) -> NDArray[np.int64]:
        """Return one answer an image, shape (n,): its class, or minutes since 12:00."""

    def metrics(
        self, labels: NDArray[np.uint8], outputs: Mapping[str, NDArray[np.float32]]
    ) -> dict[str, float]:
        """Return the metrics of these outputs by their names in `dlnn_search.metrics`."""


def head_of(config: Config) -> Head:
    """Return the head that a config's network ends in."""
    if isinstance(config.model, ClockNet):
        return HourAndMinute(config.model.head)
    return Digit()


def by_name(head: Head, outputs: Tensor) -> dict[str, Tensor]:
    """Return a network's outputs by name, whichever of Keras's three forms they come in."""
    if isinstance(outputs, Mapping):
        return {name: outputs[name] for name in head.names}
    if not isinstance(outputs, list | tuple):
        outputs = [outputs]
    return dict(zip(head.names, outputs, strict=True))


@dataclass(frozen=True)
class Digit:
    """One softmax of ten classes with cross-entropy (keras-team/keras, examples/mnist_*.py)."""

    names: tuple[str, ...] = ("output",)
    guessing_loss: float = math.log(N_DIGIT_CLASSES)

    def attach(self, layers: Layers, x: Tensor) -> Outputs:
        return {"output": layers.softmax(N_DIGIT_CLASSES, "output", x)}

    def targets(self, labels: NDArray[np.uint8]) -> NDArray[np.int32]:
        return labels.astype(np.int32)[:, None]

    def losses(self, targets: Tensor, outputs: Outputs) -> Tensor:
        return _cross_entropy(targets[:, 0], outputs["output"])

    def decode(self, outputs: Mapping[str, NDArray[np.float32]]) -> NDArray[np.int64]:
        return np.argmax(outputs["output"], axis=-1)

    def metrics(
        self, labels: NDArray[np.uint8], outputs: Mapping[str, NDArray[np.float32]]
    ) -> dict[str, float]:
        return {"accuracy": metrics.accuracy(labels, self.decode(outputs))}


@dataclass(frozen=True)
class HourAndMinute:
    """Two softmaxes with weighted cross-entropies (report, section 4.5 and Figure 5)."""

    spec: TwoSoftmax
    names: tuple[str, ...] = ("hour", "minute")

    @property
    def guessing_loss(self) -> float:
        return self.spec.hour_weight * math.log(HOURS) + self.spec.minute_weight * math.log(MINUTES)

    def attach(self, layers: Layers, x: Tensor) -> Outputs:
        # Both branches before both outputs: the order of Figure 5.
        hour, minute = layers.dense(self.spec.hour, x), layers.dense(self.spec.minute, x)
        return {
            "hour": layers.softmax(HOURS, "hour", hour),
            "minute": layers.softmax(MINUTES, "minute", minute),
        }

    def targets(self, labels: NDArray[np.uint8]) -> NDArray[np.int32]:
        return labels.astype(np.int32)

    def losses(self, targets: Tensor, outputs: Outputs) -> Tensor:
        hour = _cross_entropy(targets[:, 0], outputs["hour"])
        minute = _cross_entropy(targets[:, 1], outputs["minute"])
        return self.spec.hour_weight * hour + self.spec.minute_weight * minute

    def decode(self, outputs: Mapping[str, NDArray[np.float32]]) -> NDArray[np.int64]:
        hour, minute = np.argmax(outputs["hour"], -1), np.argmax(outputs["minute"], -1)
        return hour * MINUTES + minute

    def metrics(
        self, labels: NDArray[np.uint8], outputs: Mapping[str, NDArray[np.float32]]
    ) -> dict[str, float]:
        time = self.decode(outputs)
        hour, minute = labels[:, 0].astype(np.int64), labels[:, 1].astype(np.int64)
        error = metrics.common_sense_error(hour * MINUTES + minute, time)
        return {
            "common_sense_error": float(np.mean(error)),
            "hour_accuracy": metrics.accuracy(hour, time // MINUTES),
            "minute_accuracy": metrics.accuracy(minute, time % MINUTES),
        }


_cross_entropy: Callable[[Tensor, Tensor], Tensor] = keras.losses.sparse_categorical_crossentropy
