"""The learning rate over a training: warm-up, cosine, plateau.

A function of the optimiser's count of steps, computed inside the compiled step, and of the
curve so far: a resumed training has the rate that an uninterrupted one would have.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from dlnn_search.config import Training

#: A TensorFlow tensor, symbolic or not.
Tensor = Any

PLATEAU_FACTOR = 0.5


class Rate(keras.optimizers.schedules.LearningRateSchedule):
    """The learning rate of each step of one training.

    Args:
        training: Names the rate, the schedule and the warm-up.
        steps_of_epochs: How many steps each epoch has, shape (epochs,); those of a curriculum
            have other numbers of pictures.

    Attributes:
        factor: What a plateau leaves of the rate, set before each epoch.
    """

    def __init__(self, training: Training, steps_of_epochs: Sequence[int]) -> None:
        assert training.learning_rate is not None  # filled in by the config
        ends = np.concatenate([[0], np.cumsum(steps_of_epochs)])
        self._rate = training.learning_rate
        self._cosine = training.schedule == "cosine"
        self._n_steps = int(ends[-1])
        self._n_warm = float(np.interp(training.warmup_epochs, np.arange(len(ends)), ends))
        self.factor = keras.Variable(1.0, trainable=False, name="plateau")

    def __call__(self, step: Tensor) -> Tensor:
        """Return the rate of the step before which there were `step` others, float32."""
        count = tf.cast(tf.convert_to_tensor(step), tf.float32)
        rate = self._rate * self.factor.value
        if self._n_warm:
            rate *= tf.minimum(1.0, (count + 1.0) / self._n_warm)
        if self._cosine:
            done = (count - self._n_warm) / (self._n_steps - self._n_warm)
            rate *= 0.5 * (1.0 + tf.cos(math.pi * tf.clip_by_value(done, 0.0, 1.0)))
        return rate


def plateau_factor(values: Sequence[float], direction: str, patience: int) -> float:
    """Return what is left of the rate after epochs with these values of the monitored metric.

    Args:
        values: One an epoch, from the first.
        direction: `minimize` or `maximize`.
        patience: Epochs without a better value than the best so far, after each of which the
            rate is halved and counting begins anew.
    """
    sign = 1.0 if direction == "minimize" else -1.0
    factor, best, waited = 1.0, math.inf, 0
    for value in values:
        waited += 1
        if sign * value < best:
            best, waited = sign * value, 0
        elif waited == patience:
            factor, waited = factor * PLATEAU_FACTOR, 0
    return factor
