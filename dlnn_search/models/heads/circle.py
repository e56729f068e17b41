"""Distances, errors and labels on a circle, where the last value is next to the first."""

from __future__ import annotations

import math

import keras
import numpy as np
from numpy.typing import NDArray

from dlnn_search.metrics import HOURS, MINUTES, MINUTES_ON_DIAL
from dlnn_search.models.heads.head import Tensor

#: The mean way round from any guess to all hours, and to all minutes: a quarter of the circle.
GUESSED_DIAL_ERROR = MINUTES_ON_DIAL / 4
GUESSED_MINUTE_ERROR = MINUTES / 4
#: Below about this length a vector has no direction that its loss could rely on.
_SHORT = 0.1


def bumps(centres: NDArray[np.float64], n_bins: int, width: float) -> NDArray[np.float32]:
    """Return circular soft labels: von Mises densities at the bins' centres, summing to 1.

    With the concentration 1 / width^2 (width in radians), a von Mises distribution is close to a
    normal one of that deviation wrapped round the circle, and needs no sum over the turns.

    Args:
        centres: Of the bumps, in turns of the circle, shape (k,). Bin b stands at b / n_bins.
        n_bins: Of the circle.
        width: Standard deviation, in turns.

    Returns:
        Shape (k, n_bins), float32.
    """
    angles = 2 * math.pi * (np.arange(n_bins) / n_bins - centres[:, None])  # (k, n_bins)
    density = np.exp((np.cos(angles) - 1) / (2 * math.pi * width) ** 2)
    labels: NDArray[np.float32] = (density / density.sum(axis=1, keepdims=True)).astype(np.float32)
    return labels


def way_round(difference: Tensor, period: float) -> Tensor:
    """Return the shortest way round a circle, in [0, period / 2].

    Its slope is 1 or -1 everywhere but where the points meet (0), those opposite included.
    """
    half = period / 2
    return keras.ops.abs(keras.ops.mod(difference + half, period) - half)


def expected_way(true: Tensor, probabilities: Tensor) -> Tensor:
    """Return the mean way round from the truth under a distribution over a circle's classes.

    Args:
        true: Classes, shape (n,), int32.
        probabilities: Shape (n, classes).

    Returns:
        In classes, shape (n,), float32.
    """
    n_classes = probabilities.shape[-1]
    classes = np.arange(n_classes, dtype=np.float32)
    apart = classes - keras.ops.cast(true, "float32")[:, None]  # (n, classes)
    return keras.ops.sum(probabilities * way_round(apart, n_classes), axis=-1)


def expected_error(targets: Tensor, times: Tensor, minutes: Tensor) -> tuple[Tensor, Tensor]:
    """Return the expected common sense error and the expected error of the minute hand.

    The second alone can teach the minute while the hour is unknown: over all hours, every minute
    is as wrong as any other.

    Args:
        targets: Hours and minutes, shape (n, 2), int32.
        times: Probabilities, shape (n, 720).
        minutes: Probabilities, shape (n, 60).

    Returns:
        Both in minutes, shape (n,), float32.
    """
    time = targets[:, 0] * MINUTES + targets[:, 1]
    return expected_way(time, times), expected_way(targets[:, 1], minutes)


def product(hours: Tensor, minutes: Tensor) -> Tensor:
    """Return the distribution over all times, (n, 12) and (n, 60) -> (n, 720)."""
    return keras.ops.reshape(hours[:, :, None] * minutes[:, None, :], (-1, HOURS * MINUTES))


def directions(n_steps: int) -> NDArray[np.float32]:
    """Return (sine, cosine) of the angles of all steps of a circle, shape (n_steps, 2)."""
    angles = 2 * math.pi * np.arange(n_steps) / n_steps
    return np.stack([np.sin(angles), np.cos(angles)], axis=1).astype(np.float32)


def angle_between(true: Tensor, found: Tensor) -> Tensor:
    """Return the angle between a direction and a vector of any length.

    The gradient of an angle grows beyond all bounds as the vector shrinks, and the centre has
    none. So a vector much shorter than 0.1 counts as what it says, nothing: a right angle, the
    mean of all guesses. The gradient stays below 25 for a radian everywhere.

    Args:
        true: (sine, cosine), shape (n, 2).
        found: Same order and shape, of any length.

    Returns:
        Radians, shape (n,), in [0, pi].
    """
    ops = keras.ops
    dot = ops.sum(true * found, axis=-1)
    cross = true[:, 0] * found[:, 1] - true[:, 1] * found[:, 0]
    squared = ops.sum(ops.square(found), axis=-1)
    trust = 1 - ops.exp(-squared / _SHORT**2)
    # Both sides of a `where` are differentiated: the one not taken must be finite, too.
    centre = squared < 1e-12
    angle = ops.abs(ops.arctan2(cross, ops.where(centre, ops.ones_like(dot), dot)))
    return trust * angle + (1 - trust) * (math.pi / 2)
