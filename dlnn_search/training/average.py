"""Weight averaging: a model that follows the trained one, smoother and mostly better.

Source: Polyak and Juditsky, Acceleration of Stochastic Approximation by Averaging, 1992; with
an exponential decay and its start as in TensorFlow's `tf.train.ExponentialMovingAverage`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import keras
import numpy as np
import tensorflow as tf

#: A TensorFlow tensor, symbolic or not.
Tensor = Any


class Average:
    """The exponential moving average of a model's weights, updated inside the compiled step.

    Batch normalisation's statistics are averaged along: they belong to the weights of the same
    steps, and the last ones would not fit the averaged weights.

    Args:
        model: To follow; the average begins as its weights.
        decay: Share of the average that a step keeps, once there were many steps. At step t it
            is at most (1 + t) / (10 + t): else the random initial weights would weigh on short
            trainings.
    """

    def __init__(self, model: keras.Model, decay: float) -> None:
        self._model = model
        self._decay = decay
        # Whole numbers, such as a count of a layer of the user's, have no average.
        self._followed = [w for w in model.weights if w.dtype.startswith(("float", "bfloat"))]
        self.variables = [
            keras.Variable(np.asarray(weight), trainable=False, name="average")
            for weight in self._followed
        ]

    def follow(self, n_before: Tensor) -> None:
        """Take in the weights after a step.

        Args:
            n_before: Steps before it, a scalar integer tensor.
        """
        count = tf.cast(n_before, tf.float32)
        decay = tf.minimum(self._decay, (1.0 + count) / (10.0 + count))
        for average, weight in zip(self.variables, self._followed, strict=True):
            # average -= (1 - decay) * (average - weight), in one kernel but for the difference.
            tf.raw_ops.ResourceApplyGradientDescent(
                var=average.value.handle,
                alpha=tf.cast(1.0 - decay, average.dtype),
                delta=average.value - weight.value,
            )

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Let the model have the averaged weights inside, and its own again afterwards."""
        own = [np.array(weight) for weight in self._followed]
        try:
            for weight, average in zip(self._followed, self.variables, strict=True):
                weight.assign(average)
            yield
        finally:
            for weight, array in zip(self._followed, own, strict=True):
                weight.assign(array)
