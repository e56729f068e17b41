"""Heads that name classes: hours and minutes, or all 720 times."""

from __future__ import annotations

import math
from functools import cached_property

import keras
import numpy as np
from numpy.typing import NDArray

from dlnn_search.config import OneSoftmax, SoftLabels, TwoSoftmax
from dlnn_search.metrics import HOURS, MINUTES, MINUTES_ON_DIAL
from dlnn_search.models.heads.circle import (
    GUESSED_DIAL_ERROR,
    GUESSED_MINUTE_ERROR,
    bumps,
    expected_error,
    expected_way,
    product,
)
from dlnn_search.models.heads.clock import ClockHead
from dlnn_search.models.heads.head import Outputs, Tensor, likeliest


class TwoSoftmaxHead(ClockHead[TwoSoftmax]):
    """Two softmaxes, each read alone (report, section 4.5 and Figure 5).

    The loss `common_sense` takes hour and minute as independent and adds the expected error of
    the time (weighted as the hour) and that of the minute hand (as the minute).
    """

    @property
    def guessing_loss(self) -> float:
        if self.spec.loss == "common_sense":
            hour, minute = GUESSED_DIAL_ERROR, GUESSED_MINUTE_ERROR
        else:
            hour, minute = math.log(HOURS), math.log(MINUTES)
        return self.spec.hour_weight * hour + self.spec.minute_weight * minute

    def losses(self, targets: Tensor, outputs: Outputs) -> Tensor:
        if self.spec.loss == "common_sense":
            times = product(outputs["hour"], outputs["minute"])
            hour, minute = expected_error(targets, times, outputs["minute"])
        else:
            entropy = keras.losses.sparse_categorical_crossentropy
            hour = entropy(targets[:, 0], outputs["hour"])
            minute = entropy(targets[:, 1], outputs["minute"])
        return self.spec.hour_weight * hour + self.spec.minute_weight * minute

    def read(self, outputs: Outputs) -> Tensor:
        return _read_apart(outputs)


class OneSoftmaxHead(ClockHead[OneSoftmax]):
    """One softmax of 720 times (report, section 4.2)."""

    @property
    def guessing_loss(self) -> float:
        guessed = {"cross_entropy": math.log(MINUTES_ON_DIAL), "common_sense": GUESSED_DIAL_ERROR}
        return guessed[self.spec.loss]

    def losses(self, targets: Tensor, outputs: Outputs) -> Tensor:
        if self.spec.loss == "common_sense":
            return expected_way(targets[:, 0], outputs["time"])
        return keras.losses.sparse_categorical_crossentropy(targets[:, 0], outputs["time"])

    def read(self, outputs: Outputs) -> Tensor:
        return likeliest(outputs["time"])


class SoftLabelsHead(ClockHead[SoftLabels]):
    """Two softmaxes with cross-entropy against circular soft labels, each read alone."""

    @property
    def guessing_loss(self) -> float:
        return self.spec.hour_weight * math.log(HOURS) + self.spec.minute_weight * math.log(MINUTES)

    @cached_property
    def hour_labels(self) -> NDArray[np.float32]:
        """What an hour is trained to say, shape (12, 12)."""
        return bumps(np.arange(HOURS) / HOURS, HOURS, self.spec.hour_width / HOURS)

    @cached_property
    def minute_labels(self) -> NDArray[np.float32]:
        """What a minute is trained to say, shape (60, 60)."""
        return bumps(np.arange(MINUTES) / MINUTES, MINUTES, self.spec.minute_width / MINUTES)

    def losses(self, targets: Tensor, outputs: Outputs) -> Tensor:
        hour = soft_cross_entropy(self.hour_labels, targets[:, 0], outputs["hour"])
        minute = soft_cross_entropy(self.minute_labels, targets[:, 1], outputs["minute"])
        return self.spec.hour_weight * hour + self.spec.minute_weight * minute

    def read(self, outputs: Outputs) -> Tensor:
        return _read_apart(outputs)


def soft_cross_entropy(labels: NDArray[np.float32], rows: Tensor, outputs: Tensor) -> Tensor:
    """Return the cross-entropy of outputs, (n, classes), against these rows of a label table."""
    return keras.losses.categorical_crossentropy(keras.ops.take(labels, rows, axis=0), outputs)


def _read_apart(outputs: Outputs) -> Tensor:
    return likeliest(outputs["hour"]) * MINUTES + likeliest(outputs["minute"])
