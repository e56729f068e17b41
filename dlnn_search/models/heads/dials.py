"""Heads that give numbers: shares of a turn, or directions of the hands."""

from __future__ import annotations

import math

import keras
import numpy as np

from dlnn_search.config import OneRegression, Regression, SinCos
from dlnn_search.metrics import HOURS, MINUTES, MINUTES_ON_DIAL
from dlnn_search.models.heads.circle import (
    GUESSED_DIAL_ERROR,
    GUESSED_MINUTE_ERROR,
    angle_between,
    directions,
    way_round,
)
from dlnn_search.models.heads.clock import ClockHead
from dlnn_search.models.heads.head import OutputActivation, Outputs, Tensor


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
