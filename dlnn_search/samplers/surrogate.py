"""A Gaussian process over mixed parameters: what the finished trials say of one not yet tried."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_solve, cholesky, solve_triangular
from scipy.optimize import minimize
from scipy.special import log_ndtr

from dlnn_search.samplers.observations import Axis, Floats

#: In single or double precision.
Array = NDArray[Any]

#: Prior of the length scales, which keeps them sensible while there are few trials: log-normal,
#: longer in more dimensions, where points lie farther apart.
#: Source: Hvarfner et al., Vanilla Bayesian Optimization Performs Great in High Dimensions, 2024.
LENGTH_MEDIAN = 0.2
LENGTH_SPREAD = 1.0
NOISE_MEDIAN = 0.03
NOISE_SPREAD = 1.5
SCALE_SPREAD = 0.5
MAX_STEPS = 30
JITTER = 1e-6
#: Beyond it, differences would overflow.
MAX_LOSS = 1e150
#: Below it single precision tells nothing.
MIN_VARIANCE = 1e-6
#: A failure's, in steps from the median to the best tenth, where nothing worse finished.
FAILED_SCORE = -1.5


@dataclass(frozen=True)
class Kernel:
    """Matérn-5/2's parameters.

    Attributes:
        lengths: One an axis, in its own unit; a choice differs from another by 1.
        scale: The prior's variance, of standardised scores.
        noise: The variance that no parameter explains.
    """

    lengths: Floats
    scale: float
    noise: float

    def covariance(self, points: Array, others: Array) -> Array:
        """Return covariances without noise, shape (len(points), len(others))."""
        squares = (points * points).sum(1)[:, None] + (others * others).sum(1)[None, :]
        squares -= 2 * (points @ others.T)
        np.maximum(squares, 0, out=squares)
        squares *= 5
        distance = np.sqrt(squares)
        squares /= 3
        squares += distance
        squares += 1
        np.negative(distance, out=distance)
        squares *= np.exp(distance, out=distance)
        squares *= points.dtype.type(self.scale)
        return np.asarray(squares)


class Encoding:
    """Places as points between which distances can be taken: choices become corners."""

    def __init__(self, axes: tuple[Axis, ...]) -> None:
        self._axes = axes
        # Which axis each column of a point belongs to.
        self.owner = np.array(
            [i for i, axis in enumerate(axes) for _ in range(axis.n_choices or 1)], dtype=int
        )

    def points(self, places: Floats) -> Floats:
        """Return points, shape (n, columns); a parameter that a trial lacks is in the middle."""
        columns = []
        for i, axis in enumerate(self._axes):
            column = places[:, i]
            if axis.n_choices:
                # Two different corners are 1 apart; the middle is for who has no such parameter.
                known = ~np.isnan(column)
                corners = np.full((len(column), axis.n_choices), np.sqrt(0.5) / axis.n_choices)
                corners[known] = np.sqrt(0.5) * (column[known, None] == np.arange(axis.n_choices))
                columns.append(corners)
            else:
                columns.append(np.where(np.isnan(column), 0.5, column)[:, None])
        return np.concatenate(columns, axis=1)

    def scaled(self, points: Floats, kernel: Kernel) -> Floats:
        """Return points in units of the kernel's lengths."""
        return np.asarray(points / kernel.lengths[self.owner])


def scores(losses: Floats) -> Floats:
    """Return losses as standardised scores, higher is better.

    Even steps above the median, so that a valley keeps its shape and its bottom can be told from
    its walls; below it ever smaller ones, so that diverged trials do not flatten the rest. (Scores
    by rank, which look at nothing but the order, bend every bottom to a cusp: measured, much
    worse.) Failed trials, of infinite loss, are as bad as the worst, and clearly bad.
    """
    failed = np.isinf(losses)
    if failed.all():
        return np.full(len(losses), FAILED_SCORE)
    worst = np.max(losses[~failed])
    known = np.clip(np.where(failed, worst, losses), -MAX_LOSS, MAX_LOSS)
    median, good = np.quantile(known, [0.5, 0.1])
    width = median - good if median > good else max(float(np.ptp(known)), 1e-12)
    steps = (median - known) / width
    bent = np.where(steps > 0, steps, -np.log1p(np.maximum(-steps, 0.0)))
    bent[failed] = min(bent.min(), FAILED_SCORE)
    return np.asarray((bent - bent.mean()) / max(float(bent.std()), 1e-9))


def fit_kernel(encoding: Encoding, places: Floats, targets: Floats) -> Kernel:
    """Return the kernel of the highest posterior, by gradient from the prior's median."""
    points = encoding.points(places)
    n, n_axes = len(points), encoding.owner.max() + 1
    squares = np.zeros((n_axes, n, n))
    for column, owner in enumerate(encoding.owner):
        squares[owner] += (points[:, None, column] - points[None, :, column]) ** 2
    mean = np.concatenate(
        [
            np.full(n_axes, np.log(LENGTH_MEDIAN * np.sqrt(n_axes))),
            [0.0, np.log(NOISE_MEDIAN)],
        ]
    )
    spread = np.concatenate([np.full(n_axes, LENGTH_SPREAD), [SCALE_SPREAD, NOISE_SPREAD]])
    flat = squares.reshape(n_axes, -1)

    def loss(theta: Floats) -> tuple[float, Floats]:
        inverse_squares = np.exp(-2 * theta[:n_axes])
        scale, noise = np.exp(theta[n_axes]), np.exp(theta[n_axes + 1])
        distance2 = (inverse_squares @ flat).reshape(n, n)
        distance = np.sqrt(5 * distance2)
        decay = np.exp(-distance)
        correlation = (1 + distance + distance * distance / 3) * decay
        covariance = scale * correlation
        covariance[np.diag_indices(n)] += noise + JITTER
        lower = cholesky(covariance, lower=True, check_finite=False)
        inverse = cho_solve((lower, True), np.eye(n), check_finite=False)
        weights = inverse @ targets
        residual = (theta - mean) / spread
        value = 0.5 * targets @ weights + np.log(np.diag(lower)).sum() + 0.5 * residual @ residual
        outer = inverse - np.outer(weights, weights)
        slope = (outer * ((5 / 6) * scale * (1 + distance) * decay)).reshape(-1)
        gradient = np.empty_like(theta)
        gradient[:n_axes] = (flat @ slope) * inverse_squares
        gradient[n_axes] = 0.5 * scale * np.sum(outer * correlation)
        gradient[n_axes + 1] = 0.5 * noise * np.trace(outer)
        return float(value), gradient + residual / spread

    bounds = [(m - 4 * s, m + 4 * s) for m, s in zip(mean, spread, strict=True)]
    found = minimize(
        loss, mean, jac=True, method="L-BFGS-B", bounds=bounds, options={"maxiter": MAX_STEPS}
    )
    theta = found.x if np.all(np.isfinite(found.x)) else mean
    return Kernel(
        np.exp(theta[:n_axes]), float(np.exp(theta[n_axes])), float(np.exp(theta[n_axes + 1]))
    )


class Surrogate:
    """A Gaussian process conditioned on trials.

    Args:
        targets: Scores of `places`, shape (n,).
        rivals: Which of them are to be improved on, at least one, shape (n,).
        pending: Places of trials that run just now: where one runs, another learns little, so
            they take away uncertainty and leave the mean as it is.
    """

    def __init__(
        self,
        encoding: Encoding,
        kernel: Kernel,
        places: Floats,
        targets: Floats,
        rivals: NDArray[np.bool_],
        pending: Floats,
    ) -> None:
        self._encoding = encoding
        self._kernel = kernel
        known = encoding.scaled(encoding.points(places), kernel)
        covariance = kernel.covariance(known, known)
        lower = self._factor(covariance)
        weights = cho_solve((lower, True), targets, check_finite=False)
        #: The best mean among the trials themselves: a lucky value does not count as the best.
        self.best = float(np.max((covariance @ weights)[rivals]))
        if len(pending):
            known = np.concatenate([known, encoding.scaled(encoding.points(pending), kernel)])
            lower = self._factor(kernel.covariance(known, known))
        # Hundreds of places a draw are asked about: in single precision, twice as fast.
        self._known = known.astype(np.float32)
        self._weights = np.zeros(len(known), dtype=np.float32)
        self._weights[: len(weights)] = weights
        whitening = solve_triangular(lower, np.eye(len(known)), lower=True, check_finite=False)
        self._whitening = whitening.T.astype(np.float32)

    def log_improvement(self, places: Floats) -> Floats:
        """Return the logarithm of the expected improvement on the best, shape (n,)."""
        points = self._encoding.scaled(self._encoding.points(places), self._kernel)
        across = self._kernel.covariance(points.astype(np.float32), self._known)
        mean = (across @ self._weights).astype(float)
        white = across @ self._whitening
        variance = self._kernel.scale - np.einsum("ij,ij->i", white, white).astype(float)
        deviation = np.sqrt(np.maximum(variance, MIN_VARIANCE))
        return np.asarray(_log_expected_excess((mean - self.best) / deviation) + np.log(deviation))

    def _factor(self, covariance: Floats) -> Floats:
        covariance = covariance + (self._kernel.noise + JITTER) * np.eye(len(covariance))
        return np.asarray(cholesky(covariance, lower=True, check_finite=False))


def _log_expected_excess(z: Floats) -> Floats:
    """Return log E[max(0, z + N(0, 1))], exact enough far below 0, where it underflows.

    Source: Ament et al., Unexpected Improvements to Expected Improvement, NeurIPS 2023.
    """
    z = np.asarray(z)
    log_density = -0.5 * z * z - 0.5 * np.log(2 * np.pi)
    near = np.maximum(z, -5.0)
    plain = np.log(
        np.maximum(
            np.exp(-0.5 * near * near) / np.sqrt(2 * np.pi) + near * np.exp(log_ndtr(near)), 1e-300
        )
    )
    far = log_density - 2 * np.log(np.maximum(-z, 1.0))
    return np.asarray(np.where(z > -5.0, plain, far))
