"""Heads that read a clock: by classes, by hour and minute together, or by numbers."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import cached_property

import keras
import numpy as np
from numpy.typing import NDArray

from dlnn_search.config import (
    Joint,
    OneRegression,
    OneSoftmax,
    Regression,
    SinCos,
    SoftLabels,
    TwoSoftmax,
)
from dlnn_search.metrics import HOURS, MINUTES, MINUTES_ON_DIAL
from dlnn_search.models.heads import (
    GUESSED_DIAL_ERROR,
    GUESSED_MINUTE_ERROR,
    ClockHead,
    OutputActivation,
    Outputs,
    Tensor,
    angle_between,
    bumps,
    directions,
    expected_error,
    expected_way,
    likeliest,
    product,
    way_round,
)


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


class RegressionHead(ClockHead[Regression]):
    """Hour and minute as shares of their circles (report, section 4.1).

    Squared errors know of no circle: 0 and 59 minutes are as far apart as can be, so near the
    full hour the network settles between them. The loss `common_sense` goes the shorter way
    round, for the hour (12 hours are 720 minutes) and the minute apart, as the report's own did
    (section 4.3).
    """

    @property
    def activation(self) -> OutputActivation:
        return self.spec.output

    @property
    def guessing_loss(self) -> float:
        if self.spec.loss == "common_sense":
            hour, minute = GUESSED_DIAL_ERROR, GUESSED_MINUTE_ERROR
        else:
            hour, minute = _variance(HOURS), _variance(MINUTES)
        return self.spec.hour_weight * hour + self.spec.minute_weight * minute

    def losses(self, targets: Tensor, outputs: Outputs) -> Tensor:
        shares = keras.ops.cast(targets, "float32") / np.array([HOURS, MINUTES], np.float32)
        hour = outputs["hour"][:, 0] - shares[:, 0]
        minute = outputs["minute"][:, 0] - shares[:, 1]
        if self.spec.loss == "common_sense":
            hour = MINUTES_ON_DIAL * way_round(hour, 1.0)
            minute = MINUTES * way_round(minute, 1.0)
        else:
            hour, minute = keras.ops.square(hour), keras.ops.square(minute)
        return self.spec.hour_weight * hour + self.spec.minute_weight * minute

    def read(self, outputs: Outputs) -> Tensor:
        hour = _step_of(outputs["hour"][:, 0], HOURS)
        return hour * MINUTES + _step_of(outputs["minute"][:, 0], MINUTES)


class OneRegressionHead(ClockHead[OneRegression]):
    """The time as a share of the dial (report, section 4.2)."""

    @property
    def activation(self) -> OutputActivation:
        return self.spec.output

    @property
    def guessing_loss(self) -> float:
        guessed = {"mse": _variance(MINUTES_ON_DIAL), "common_sense": GUESSED_DIAL_ERROR}
        return guessed[self.spec.loss]

    def losses(self, targets: Tensor, outputs: Outputs) -> Tensor:
        share = keras.ops.cast(targets[:, 0], "float32") / MINUTES_ON_DIAL
        off = outputs["time"][:, 0] - share
        if self.spec.loss == "common_sense":
            return MINUTES_ON_DIAL * way_round(off, 1.0)
        return keras.ops.square(off)

    def read(self, outputs: Outputs) -> Tensor:
        return _step_of(outputs["time"][:, 0], MINUTES_ON_DIAL)


class SinCosHead(ClockHead[SinCos]):
    """The hands' directions, (sine, cosine) each: the circle has no seam.

    The loss `mse` compares coordinates, `common_sense` the angles in minutes (720 and 60 to the
    turn). The hour hand is read with the minute known, so it needs to be right to half an hour.
    """

    @property
    def activation(self) -> OutputActivation:
        return "linear"

    @property
    def guessing_loss(self) -> float:
        if self.spec.loss == "common_sense":
            hour, minute = GUESSED_DIAL_ERROR, GUESSED_MINUTE_ERROR
        else:
            hour, minute = 0.5, 0.5  # of the centre: the mean of a sine's square
        return self.spec.hour_weight * hour + self.spec.minute_weight * minute

    def losses(self, targets: Tensor, outputs: Outputs) -> Tensor:
        time = targets[:, 0] * MINUTES + targets[:, 1]
        hour = keras.ops.take(directions(MINUTES_ON_DIAL), time, axis=0)  # (n, 2)
        minute = keras.ops.take(directions(MINUTES), targets[:, 1], axis=0)
        if self.spec.loss == "common_sense":
            turn = 2 * math.pi
            hour = MINUTES_ON_DIAL / turn * angle_between(hour, outputs["hour"])
            minute = MINUTES / turn * angle_between(minute, outputs["minute"])
        else:
            hour = keras.ops.mean(keras.ops.square(outputs["hour"] - hour), axis=-1)
            minute = keras.ops.mean(keras.ops.square(outputs["minute"] - minute), axis=-1)
        return self.spec.hour_weight * hour + self.spec.minute_weight * minute

    def read(self, outputs: Outputs) -> Tensor:
        minute = _nearest(_turns(outputs["minute"]) * MINUTES, MINUTES)
        hand = _turns(outputs["hour"]) * MINUTES_ON_DIAL
        from_full_hour = hand - keras.ops.cast(minute, "float64")
        return _nearest(from_full_hour / MINUTES, HOURS) * MINUTES + minute


def _turns(directions: Tensor) -> Tensor:
    """Return the angles of (sine, cosine), shape (n, 2), in turns, shape (n,), float64."""
    exact = keras.ops.cast(directions, "float64")
    return keras.ops.arctan2(exact[:, 0], exact[:, 1]) / (2 * math.pi)


def _step_of(shares: Tensor, n_steps: int) -> Tensor:
    """Return the step of a circle that is nearest to each share of it: 1.0 is step 0 again."""
    # In float32 a share next to the middle between two of 720 steps would fall to either.
    exact = keras.ops.cast(shares, "float64")
    return _nearest(keras.ops.clip(exact, 0, 1) * n_steps, n_steps)


def _nearest(steps: Tensor, n_steps: int) -> Tensor:
    # An output that is no number is read as 0: its loss is no number either, and ends training.
    nearest = keras.ops.floor(keras.ops.nan_to_num(steps) + 0.5)
    return keras.ops.cast(keras.ops.mod(nearest, n_steps), "int64")


def _variance(n_steps: int) -> float:
    """Return the squared error of the best constant, the steps being equally likely."""
    return float(np.var(np.arange(n_steps) / n_steps))
