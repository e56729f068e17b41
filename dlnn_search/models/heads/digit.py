"""The head of MNIST and Fashion-MNIST."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import keras
import numpy as np
from numpy.typing import NDArray

from dlnn_search import metrics
from dlnn_search.models.heads.head import Layers, Outputs, Tensor
from dlnn_search.models.shapes import N_DIGIT_CLASSES


@dataclass(frozen=True)
class DigitHead:
    """One softmax of ten classes with cross-entropy (keras-team/keras, examples/mnist_*.py)."""

    names: tuple[str, ...] = ("output",)
    guessing_loss: float = math.log(N_DIGIT_CLASSES)

    def attach(self, layers: Layers, x: Tensor) -> Outputs:
        return {"output": layers.output(N_DIGIT_CLASSES, "softmax", "output", x)}

    def targets(self, labels: NDArray[np.uint8]) -> NDArray[np.int32]:
        return labels.astype(np.int32)[:, None]

    def losses(self, targets: Tensor, outputs: Outputs) -> Tensor:
        return keras.losses.sparse_categorical_crossentropy(targets[:, 0], outputs["output"])

    def decode(self, outputs: Mapping[str, NDArray[np.float32]]) -> NDArray[np.int64]:
        classes: NDArray[np.int64] = np.argmax(outputs["output"], axis=-1)
        return classes

    def metrics(
        self, labels: NDArray[np.uint8], outputs: Mapping[str, NDArray[np.float32]]
    ) -> dict[str, float]:
        return {"accuracy": metrics.accuracy(labels, self.decode(outputs))}
