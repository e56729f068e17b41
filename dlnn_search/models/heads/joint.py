"""The head that reads hour and minute together."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import cached_property

import keras
import numpy as np
from numpy.typing import NDArray

from dlnn_search.config import Joint
from dlnn_search.metrics import HOURS, MINUTES, MINUTES_ON_DIAL
from dlnn_search.models.heads.circle import (
    GUESSED_DIAL_ERROR,
    GUESSED_MINUTE_ERROR,
    bumps,
    expected_error,
)
from dlnn_search.models.heads.clock import ClockHead
from dlnn_search.models.heads.head import Outputs, Tensor, likeliest
from dlnn_search.models.heads.softmax import soft_cross_entropy

#: Probabilities below this count as this: one bin that a network rules out must not outvote all.
_FLOOR = 1e-7


class JointHead(ClockHead[Joint]):
    """A softmax of minutes and one of the hour hand's directions, read as one time.

    **Reading.** Each time t has soft labels: a bump q_hour(t) around t / 720 of a turn, and
    q_minute(t) around its minute. Read is the time whose labels are nearest to the outputs p:

        argmax over t of  sum(q_hour(t) log p_hour) + sum(q_minute(t) log p_minute) + H(t)

    where H(t) is the labels' entropy, so that the sum is -KL(q(t) || p), at most 0, and 0 only
    for the time that the outputs were trained to describe. It is log p_hour(t) + log p_minute(t)
    with the bins around t weighted as its label weights them, which needs no bin to fall on t.
    All 720 sums are two matrix products.

    **Why.** Twelve times share a minute, and the hour hand stands 60 minutes apart in them: to
    choose among them it must be right to half an hour only, where a softmax of hours must be
    right to a minute at the full hour. And a hand that is sure can overrule a minute that wavers
    between two values far apart. The outputs are weighted alike in reading: both are log
    probabilities. The loss's weights only say what is learnt first.

    **Loss.** Cross-entropy against the labels; or `common_sense`, the expected errors under the
    softmax of those 720 sums and under the minutes.
    """

    @property
    def guessing_loss(self) -> float:
        if self.spec.loss == "common_sense":
            hour, minute = GUESSED_DIAL_ERROR, GUESSED_MINUTE_ERROR
        else:
            hour, minute = math.log(self.spec.hour_bins), math.log(MINUTES)
        return self.spec.hour_weight * hour + self.spec.minute_weight * minute

    @cached_property
    def hour_labels(self) -> NDArray[np.float32]:
        """What the hour hand is trained to say at each time, shape (720, hour_bins)."""
        turns = np.arange(MINUTES_ON_DIAL) / MINUTES_ON_DIAL
        return bumps(turns, self.spec.hour_bins, self.spec.hour_width / MINUTES_ON_DIAL)

    @cached_property
    def minute_labels(self) -> NDArray[np.float32]:
        """What the minute is trained to say, shape (60, 60)."""
        return bumps(np.arange(MINUTES) / MINUTES, MINUTES, self.spec.minute_width / MINUTES)

    def losses(self, targets: Tensor, outputs: Outputs) -> Tensor:
        if self.spec.loss == "common_sense":
            times = keras.ops.softmax(self._fit(*self._logs(outputs)))
            hour, minute = expected_error(targets, times, outputs["minute"])
        else:
            time = targets[:, 0] * MINUTES + targets[:, 1]
            hour = soft_cross_entropy(self.hour_labels, time, outputs["hour"])
            minute = soft_cross_entropy(self.minute_labels, targets[:, 1], outputs["minute"])
        return self.spec.hour_weight * hour + self.spec.minute_weight * minute

    def read(self, outputs: Outputs) -> Tensor:
        return likeliest(self._fit(*self._logs(outputs)))

    def _logs(self, outputs: Outputs) -> Iterator[Tensor]:
        return (keras.ops.log(keras.ops.maximum(outputs[name], _FLOOR)) for name in self.names)

    def _fit(self, log_hour: Tensor, log_minute: Tensor) -> Tensor:
        """Return how well each time fits, (n, hour_bins) and (n, 60) -> (n, 720), at most 0."""
        by_hand, by_minute, entropy = self._tables
        return log_hour @ by_hand + log_minute @ by_minute + entropy

    @cached_property
    def _tables(self) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
        # A minute's row stands for its twelve times: t is the minute t mod 60.
        by_hand, by_minute = self.hour_labels.T, np.tile(self.minute_labels.T, HOURS)
        entropy = -sum(
            np.sum(table * np.log(np.maximum(table, _FLOOR)), axis=0)
            for table in (by_hand, by_minute)
        )
        return by_hand, by_minute, np.asarray(entropy, np.float32)
