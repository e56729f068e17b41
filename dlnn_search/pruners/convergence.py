"""When a search has converged: what more trials can be expected to gain is below its noise.

Sources: Makarova et al., Automatic Termination for Hyperparameter Optimization, AutoML 2022, for
the criterion (stop when the expected gain falls below the noise of evaluation); Hosking and
Wallis, Parameter and Quantile Estimation for the Generalized Pareto Distribution, Technometrics
1987, for the gain of a record. That paper's Gaussian process would tie the criterion to one
sampler; records and their excess ask nothing of it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dlnn_search.errors import StudyError
from dlnn_search.metrics import loss_sign

#: How the reason of such a stop begins, in the study's row.
CONVERGED = "Converged: "

Values = NDArray[np.float64]

#: The gain is the largest that was expected after each of the last trials: one estimate may err.
PATIENCE = 5
#: Of the trials, the last ones, which tell what the next ones will be like: the first ones were
#: drawn before the sampler had learnt anything.
RECENT = 0.5
#: Of these, the best ones that the tail is fitted to, and at least so many.
TAIL, MIN_TAIL = 0.5, 5
#: The shape of a tail is uncertain with few values: beyond these its mean excess is not one.
SHAPES = (-0.5, 0.5)
#: Of a curve, the last epochs, which tell how much the metric wobbles.
LAST, MIN_EPOCHS = 0.5, 4


@dataclass(frozen=True)
class Converged:
    """Stops a study that has converged: `Study(stop_when_converged=Converged())`.

    Attributes:
        min_trials: Complete ones, before which it is not asked.
        noises: Stop when the expected gain is below so many times the noise.

    Raises:
        StudyError: If these cannot be meant.
    """

    min_trials: int = 20
    noises: float = 1.0

    def __post_init__(self) -> None:
        if self.min_trials < 10:
            raise StudyError(
                f"Expected at least 10 trials before a study may stop, got {self.min_trials}."
            )
        if not self.noises > 0:
            raise StudyError(f"Expected noises above 0, got {self.noises}.")


@dataclass(frozen=True)
class Outlook:
    """What more trials can be expected to gain, in the metric's unit.

    Attributes:
        gain: Of the best, by the next `n_next` trials.
        noise: Of one trial's value.
        n_next: As many again as there were.
    """

    gain: float
    noise: float
    n_next: int

    def is_converged(self, rule: Converged) -> bool:
        """Whether going on is expected to bring nothing that could be told from noise."""
        return self.gain < rule.noises * self.noise


def outlook(
    values: Sequence[float],
    direction: str,
    curves: Sequence[Sequence[float]],
    seed_values: Sequence[float] = (),
) -> Outlook | None:
    """Return what a search can still be expected to gain.

    The chance that the best of the next k trials beats the best of the n before is k / (n + k),
    if all are alike; by how much is the mean excess of the values' tail over the best.

    Args:
        values: Of the complete trials, in their order.
        direction: `minimize` or `maximize`.
        curves: The metric by epoch of the best few trials.
        seed_values: Of the best config with other seeds, if it was confirmed.

    Returns:
        The outlook; None where there are too few values to tell, or no noise is known.
    """
    noise = _noise(curves, seed_values)
    if noise is None:
        return None
    good = -loss_sign(direction) * np.asarray(values, np.float64)  # the higher the better
    if len(good) < 2 * MIN_TAIL + PATIENCE:
        return None
    gains = [_expected_gain(good[: len(good) - back]) for back in range(PATIENCE)]
    return Outlook(max(gains), noise, len(good))


def _expected_gain(good: Values) -> float:
    """Return what as many trials again can be expected to gain, the higher being the better."""
    n_recent = max(2 * MIN_TAIL, math.ceil(RECENT * len(good)))
    # Where the best is an older one, it is that one which has to be beaten.
    record = len(good) / (n_recent + len(good))
    return record * _mean_excess(good[-n_recent:], float(good.max()))


def _mean_excess(values: Values, best: float) -> float:
    """Return by how much a value that beats the best does, by a generalised Pareto tail."""
    n_tail = max(MIN_TAIL, math.ceil(TAIL * len(values)))
    ordered = np.sort(values)[::-1]
    limit = ordered[min(n_tail, len(ordered) - 1)]
    excess = np.sort(ordered[:n_tail] - limit)
    mean = float(excess.mean())
    if mean <= 0:
        return 0.0
    # Probability-weighted moments; the plotting positions are Hosking and Wallis's.
    position = (np.arange(1, n_tail + 1) - 0.35) / n_tail
    weighted = float(np.mean((1 - position) * excess))
    spread = mean - 2 * weighted
    shape = float(np.clip(2 - mean / spread, *SHAPES)) if spread > 0 else SHAPES[1]
    scale = mean * (1 - shape)
    over = float((scale + shape * (best - limit)) / (1 - shape))
    # A tail that ends below the best says that nothing can be gained; the distance between the
    # best two says that a little can.
    gap = float(ordered[0] - ordered[1])
    return max(over, gap / 2, 0.0)


def _noise(curves: Sequence[Sequence[float]], seed_values: Sequence[float]) -> float | None:
    """Return the spread over seeds, where that is known, else the median wobble of the curves."""
    if len(seed_values) > 2:
        return float(np.std(seed_values, ddof=1))
    wobbles = []
    for curve in curves:
        last = np.asarray(curve[-max(MIN_EPOCHS, math.ceil(LAST * len(curve))) :], np.float64)
        if len(last) >= MIN_EPOCHS:
            # Second differences: a curve that still falls evenly does not wobble. Of white noise
            # their variance is six times its own.
            wobbles.append(float(np.sqrt(np.mean(np.diff(last, 2) ** 2) / 6)))
    return float(np.median(wobbles)) if wobbles else None
