"""The head of pictures of classes: MNIST, Fashion-MNIST, a study's own data."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import keras
import numpy as np
from numpy.typing import NDArray

from dlnn_search import metrics
from dlnn_search.models.heads.head import Layers, Outputs, Tensor, likeliest


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
