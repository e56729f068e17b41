"""What a prediction is worth: plain NumPy functions, and numbers as people read them."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

HOURS = 12
MINUTES = 60
MINUTES_ON_DIAL = HOURS * MINUTES
#: A larger error means a wrong hour, or minutes on the other half of the dial.
GROSS_ERROR_MINUTES = 30.0

#: Whether more or less of a metric is better; a study may optimise any of these.
DIRECTIONS: dict[str, str] = {
    "loss": "minimize",
    "accuracy": "maximize",
    "common_sense_error": "minimize",
    "hour_accuracy": "maximize",
    "minute_accuracy": "maximize",
    "minute_error": "minimize",
    "median_error": "minimize",
    "p95_error": "minimize",
    "gross_errors": "minimize",
}
#: Metrics that are minutes on the dial; every other one has no unit.
IN_MINUTES = frozenset({"common_sense_error", "minute_error", "median_error", "p95_error"})


#: What a network reaches that knows nothing of the picture: any fixed time, or one at random. The
#: distance on the dial is then even over 0 to 360 minutes, that of minutes over 0 to 30.
_CHANCE_ON_CLOCKS: dict[str, float] = {
    "common_sense_error": 180.0,
    "median_error": 180.0,
    "p95_error": 342.0,
    "minute_error": 15.0,
    "hour_accuracy": 1 / HOURS,
    "minute_accuracy": 1 / MINUTES,
    "gross_errors": 1 - (2 * GROSS_ERROR_MINUTES + 1) / MINUTES_ON_DIAL,
}


def chance_of(metric: str, n_classes: int | None = None) -> float | None:
    """Return what guessing reaches in a metric.

    Args:
        metric: One of `DIRECTIONS`.
        n_classes: Of equally frequent labels, for `accuracy`.

    Returns:
        In the metric's unit; None where it depends on the network, as a loss does.
    """
    if metric == "accuracy":
        return None if n_classes is None else 1 / n_classes
    return _CHANCE_ON_CLOCKS.get(metric)


#: The largest value that a metric which is no share can have; a loss has none.
_LARGEST: dict[str, float] = {
    "loss": math.inf,
    "train_loss": math.inf,
    "common_sense_error": MINUTES_ON_DIAL / 2,
    "median_error": MINUTES_ON_DIAL / 2,
    "p95_error": MINUTES_ON_DIAL / 2,
    "minute_error": MINUTES / 2,
}


def bounds_of(metric: str) -> tuple[float, float]:
    """Return the least and the largest value that a metric can have, in its unit."""
    return 0.0, _LARGEST.get(metric, 1.0)


def perfect_of(metric: str) -> float:
    """Return what no model beats in a metric."""
    return 1.0 if DIRECTIONS[metric] == "maximize" else 0.0


def direction_of(metric: str) -> str:
    """Return `minimize` or `maximize`; the training loss is no metric that a study optimises."""
    return "minimize" if metric == "train_loss" else DIRECTIONS[metric]


def is_better(value: float, than: float | None, direction: str) -> bool:
    """Whether `value` beats `than` (None: nothing to beat); NaN never does."""
    if math.isnan(value):
        return False
    if than is None:
        return True
    return value < than if direction == "minimize" else value > than


def loss_sign(direction: str) -> int:
    """Return what a value is multiplied with so that less is better: 1, or -1 to maximise."""
    return 1 if direction == "minimize" else -1


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
    return _way_round(time_true, time_pred, MINUTES_ON_DIAL)


def minute_error(time_true: ArrayLike, time_pred: ArrayLike) -> NDArray[np.float64]:
    """Return how far the minute hand is off, whatever the hour, in minutes.

    Args:
        time_true: Minutes since 12:00, shape (n,).
        time_pred: Same units and shape.

    Returns:
        Minutes, shape (n,), float64, in [0, 30].

    Raises:
        ValueError: If the shapes differ.
    """
    return _way_round(time_true, time_pred, MINUTES)


def clock_metrics(time_true: ArrayLike, time_pred: ArrayLike) -> dict[str, float]:
    """Return all metrics of read clocks by name.

    Args:
        time_true: Whole minutes since 12:00, shape (n,), in [0, 720).
        time_pred: Same units and shape; wrapped modulo 720.

    Returns:
        In minutes: the mean, median and 95th percentile of the common sense error
        (`common_sense_error`, `median_error`, `p95_error`), and the mean of `minute_error`.
        As shares in [0, 1]: `hour_accuracy` and `minute_accuracy`, exactly right; and
        `gross_errors`, over 30 minutes off, which a wrong hour brings and a wrong minute hardly.

    Raises:
        ValueError: If the shapes differ, or there is no time at all.
    """
    true, pred = _same_shape(time_true, time_pred)
    if not true.size:
        raise ValueError("Expected at least one time to measure, got none.")
    true, pred = (times.astype(np.float64) % MINUTES_ON_DIAL for times in (true, pred))
    error = common_sense_error(true, pred)
    return {
        "common_sense_error": float(np.mean(error)),
        "hour_accuracy": accuracy(true // MINUTES, pred // MINUTES),
        "minute_accuracy": accuracy(true % MINUTES, pred % MINUTES),
        "minute_error": float(np.mean(minute_error(true, pred))),
        "median_error": float(np.median(error)),
        "p95_error": float(np.percentile(error, 95)),
        "gross_errors": float(np.mean(error > GROSS_ERROR_MINUTES)),
    }


def _way_round(true: ArrayLike, pred: ArrayLike, period: int) -> NDArray[np.float64]:
    """Return the shortest way between two points of a circle of this circumference."""
    true, pred = _same_shape(true, pred)
    apart = np.abs(true.astype(np.float64) - pred.astype(np.float64)) % period
    way: NDArray[np.float64] = np.minimum(apart, period - apart)
    return way


def _same_shape(
    true: ArrayLike, pred: ArrayLike
) -> tuple[NDArray[np.generic], NDArray[np.generic]]:
    true, pred = np.asarray(true), np.asarray(pred)
    if true.shape != pred.shape:
        raise ValueError(
            f"Expected predictions of the shape of the truth {true.shape}, got {pred.shape}."
        )
    return true, pred


def duration(seconds: float) -> str:
    """Return `45 s`, `3 min 05 s`, `2 h 10 min` or `3 d 4 h`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    if whole < 86_400:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole // 86_400} d {whole % 86_400 // 3600} h"


def metric_value(metric: str, value: float) -> str:
    """Return a metric's value with its unit, to four digits."""
    if metric in IN_MINUTES:
        return f"{value:.2f} min"
    return f"{value:.4f}"


def metric_unit(metric: str) -> str:
    """Return ` (min)` for a metric that has a unit, for an axis or a column."""
    return " (min)" if metric in IN_MINUTES else ""


def metric_name(metric: str) -> str:
    """Return a metric's name in words."""
    return metric.replace("_", " ")


def count_words(n: int, thing: str) -> str:
    """Return `1 seed` or `3 seeds`."""
    return f"{n} {thing}" if n == 1 else f"{n} {thing}s"
