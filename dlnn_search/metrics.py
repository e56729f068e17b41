"""What a prediction is worth: plain NumPy functions, computed on validation while training."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

HOURS = 12
MINUTES = 60
MINUTES_ON_DIAL = HOURS * MINUTES

#: Whether more or less of a metric is better; a study may optimise any of these.
DIRECTIONS: dict[str, str] = {
    "loss": "minimize",
    "accuracy": "maximize",
    "common_sense_error": "minimize",
    "hour_accuracy": "maximize",
    "minute_accuracy": "maximize",
}


def accuracy(label_true: ArrayLike, label_pred: ArrayLike) -> float:
    """Return the share of labels that are right, in [0, 1].

    Args:
        label_true: Class indices, shape (n,).
        label_pred: Class indices, shape (n,).

    Raises:
        ValueError: If the shapes differ.
    """
    true, pred = _same_shape(label_true, label_pred)
    return float(np.mean(true == pred))


def common_sense_error(time_true: ArrayLike, time_pred: ArrayLike) -> NDArray[np.float64]:
    """Return the shortest way round a 12-hour dial, in minutes.

    Args:
        time_true: Minutes since 12:00, shape (n,), in [0, 720).
        time_pred: Same units and shape; wrapped modulo 720.

    Returns:
        Minutes, shape (n,), float64, in [0, 360].

    Raises:
        ValueError: If the shapes differ.

    Source: report, section 4.1 ("common sense error").
    """
    true, pred = _same_shape(time_true, time_pred)
    apart = np.abs(true.astype(np.float64) - pred.astype(np.float64)) % MINUTES_ON_DIAL
    error: NDArray[np.float64] = np.minimum(apart, MINUTES_ON_DIAL - apart)
    return error


def _same_shape(
    true: ArrayLike, pred: ArrayLike
) -> tuple[NDArray[np.generic], NDArray[np.generic]]:
    true, pred = np.asarray(true), np.asarray(pred)
    if true.shape != pred.shape:
        raise ValueError(
            f"Expected predictions of the shape of the truth {true.shape}, got {pred.shape}."
        )
    return true, pred
