"""What every head promises, and what it may ask of the maker of layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, Protocol

import keras
import numpy as np
from numpy.typing import NDArray

from dlnn_search.config.model import DenseBlock

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
