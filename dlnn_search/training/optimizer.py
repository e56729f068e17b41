"""The optimiser of a config, its rate over a training, its update one operation a variable."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from dlnn_search.config import Training
from dlnn_search.metrics import loss_sign

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


class Climb(keras.optimizers.schedules.LearningRateSchedule):
    """From `low` to `high` by the same factor each step: the rates of a range test."""

    def __init__(self, low: float, high: float, n_steps: int) -> None:
        self._low = low
        self._log_factor = np.log(high / low) / (n_steps - 1)

    def __call__(self, step: Tensor) -> Tensor:
        done = tf.cast(tf.convert_to_tensor(step), tf.float32)
        return self._low * tf.exp(self._log_factor * done)


def plateau_factor(values: Sequence[float], direction: str, patience: int) -> float:
    """Return what is left of the rate after epochs with these values of the monitored metric.

    Args:
        values: One an epoch, from the first.
        direction: `minimize` or `maximize`.
        patience: Epochs without a better value than the best so far, after each of which the
            rate is halved and counting begins anew.
    """
    sign = loss_sign(direction)
    factor, best, waited = 1.0, math.inf, 0
    for value in values:
        waited += 1
        if sign * value < best:
            best, waited = sign * value, 0
        elif waited == patience:
            factor, waited = factor * PLATEAU_FACTOR, 0
    return factor


def make_optimizer(
    training: Training, rate: Rate | Climb | None = None
) -> keras.optimizers.Optimizer:
    """Return the optimiser that a config names.

    Args:
        training: Names it.
        rate: Its learning rate at each step; None: the config's, all along.

    Constants that a config does not name are the papers' and Keras's: RMSprop rho 0.9, Adam beta
    0.9 and 0.999, Adadelta rho 0.95, all with epsilon 1e-7.
    """
    common: dict[str, Any] = {
        "learning_rate": training.learning_rate if rate is None else rate,
        "weight_decay": training.weight_decay or None,
    }
    optimizer: keras.optimizers.Optimizer
    match training.optimizer:
        case "rmsprop":
            optimizer = _RmsProp(rho=0.9, momentum=training.momentum, **common)
        case "sgd":
            optimizer = _Sgd(momentum=training.momentum, **common)
        case "adam" | "adamw":
            # With the decay decoupled from the gradient Adam is AdamW.
            optimizer = _Adam(**common)
        case "adadelta":
            optimizer = _Adadelta(rho=0.95, **common)
    if training.precision == "mixed_float16":
        # Gradients below 6e-8 would vanish in float16; bfloat16 has float32's range.
        return keras.optimizers.LossScaleOptimizer(optimizer)
    return optimizer


class _Adam(keras.optimizers.Adam):
    def update_step(self, gradient: Tensor, variable: Tensor, learning_rate: Tensor) -> None:
        step = tf.cast(self.iterations + 1, variable.dtype)
        slot = self._get_variable_index(variable)
        tf.raw_ops.ResourceApplyAdam(
            var=_handle(variable),
            m=_handle(self._momentums[slot]),
            v=_handle(self._velocities[slot]),
            beta1_power=tf.pow(tf.cast(self.beta_1, variable.dtype), step),
            beta2_power=tf.pow(tf.cast(self.beta_2, variable.dtype), step),
            lr=tf.cast(learning_rate, variable.dtype),
            beta1=self.beta_1,
            beta2=self.beta_2,
            epsilon=self.epsilon,
            grad=gradient,
        )


class _RmsProp(keras.optimizers.RMSprop):
    def build(self, variables: Any) -> None:
        if self.built:
            return
        super().build(variables)
        if not self.momentum:
            # The kernel always keeps the last step, which without momentum nobody reads.
            self._momentums = self.add_optimizer_variables(variables, "last_step")

    def update_step(self, gradient: Tensor, variable: Tensor, learning_rate: Tensor) -> None:
        slot = self._get_variable_index(variable)
        tf.raw_ops.ResourceApplyRMSProp(
            var=_handle(variable),
            ms=_handle(self._velocities[slot]),
            mom=_handle(self._momentums[slot]),
            lr=tf.cast(learning_rate, variable.dtype),
            rho=self.rho,
            momentum=self.momentum,
            epsilon=self.epsilon,
            grad=gradient,
        )


class _Sgd(keras.optimizers.SGD):
    def update_step(self, gradient: Tensor, variable: Tensor, learning_rate: Tensor) -> None:
        rate = tf.cast(learning_rate, variable.dtype)
        if not self.momentum:
            tf.raw_ops.ResourceApplyGradientDescent(
                var=_handle(variable), alpha=rate, delta=gradient
            )
            return
        tf.raw_ops.ResourceApplyKerasMomentum(
            var=_handle(variable),
            accum=_handle(self.momentums[self._get_variable_index(variable)]),
            lr=rate,
            grad=gradient,
            momentum=self.momentum,
        )


class _Adadelta(keras.optimizers.Adadelta):
    def update_step(self, gradient: Tensor, variable: Tensor, learning_rate: Tensor) -> None:
        slot = self._get_variable_index(variable)
        tf.raw_ops.ResourceApplyAdadelta(
            var=_handle(variable),
            accum=_handle(self._accumulated_grads[slot]),
            accum_update=_handle(self._accumulated_delta_vars[slot]),
            lr=tf.cast(learning_rate, variable.dtype),
            rho=self.rho,
            epsilon=self.epsilon,
            grad=gradient,
        )


def _handle(variable: Tensor) -> Tensor:
    # Keras passes weights as TensorFlow's variables and keeps its slots as its own.
    return (variable.value if isinstance(variable, keras.Variable) else variable).handle
