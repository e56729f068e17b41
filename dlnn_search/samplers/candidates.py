"""Where a draw may fall: places of a region, of which one is taken, and contests of choices."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from dlnn_search.samplers.observations import Axis, Floats, Outcomes
from dlnn_search.samplers.regions import Region, Span, draw

Rng = np.random.Generator

#: Places drawn evenly from the region, and beside its best trials.
N_EVEN = 256
N_BESIDE = 256
#: Then the most promising are tried on all sides, ever nearer.
REFINEMENTS = (0.1, 0.03)
N_PROMISING = 8
N_AROUND = 16
N_PARENTS = 5
#: About so many parameters change in a step from a parent.
N_CHANGED = 3.0

#: Trials whose parameters are looked at to learn which hang on which.
LOOK_BACK = 300


class Drawer:
    """Draws places of one region.

    Args:
        axes: The columns of every array of places.
        region: No place outside of it is drawn.
        activity: Which parameters a place has.
    """

    def __init__(
        self, axes: tuple[Axis, ...], region: Region, activity: Activity, rng: Rng
    ) -> None:
        self._axes = axes
        self._spans = [region.span(axis) for axis in axes]
        self._activity = activity
        self._rng = rng

    def even(self, n: int) -> Floats:
        """Return n places, evenly spread over the region, each axis by itself."""
        places = np.empty((n, len(self._axes)))
        for i, (axis, span) in enumerate(zip(self._axes, self._spans, strict=True)):
            strata = (self._rng.permutation(n) + self._rng.random(n)) / n
            places[:, i] = draw(axis, span, strata)
        return self._activity.masked(places)

    def beside(self, parents: Floats, n: int, reach: tuple[float, float]) -> Floats:
        """Return n places a step away from parents, in a few parameters each.

        Args:
            parents: Shape (n_parents, len(axes)); what they lack is drawn from the region.
            reach: The shortest and the longest step's deviation, as shares of a span.
        """
        rng, n_axes = self._rng, len(self._axes)
        base = parents[rng.integers(len(parents), size=n)]
        steps = np.exp(rng.uniform(math.log(reach[0]), math.log(reach[1]), size=n))
        changed = rng.random((n, n_axes)) < min(1.0, N_CHANGED / n_axes)
        changed[np.arange(n), rng.integers(n_axes, size=n)] = True
        for i, (axis, span) in enumerate(zip(self._axes, self._spans, strict=True)):
            drawn = draw(axis, span, rng.random(n))
            column = np.where(np.isnan(base[:, i]), drawn, base[:, i])
            if span.odds:
                column = np.where(changed[:, i], drawn, column)
            else:
                width = span.high - span.low
                least = 1.0 / axis.n_cells if axis.n_cells else 0.0
                step = rng.standard_normal(n) * np.maximum(steps * width, least)
                column = np.where(changed[:, i], _reflected(column + step, span), column)
                # A grid's span ends between two cells, and the end itself counts to the next one.
                inside = 1e-9 if axis.n_cells else 0.0
                column = axis.snapped(np.clip(column, span.low + inside, span.high - inside))
            base[:, i] = column
        return self._activity.masked(base)


def _reflected(places: Floats, span: Span) -> Floats:
    """Fold what fell over an end back in, so that ends are not drawn more than the rest."""
    places = np.where(places < span.low, 2 * span.low - places, places)
    return np.where(places > span.high, 2 * span.high - places, places)


@dataclass(frozen=True)
class _Rule:
    """A parameter that only some values of another bring up."""

    child: int
    parent: int
    absent: frozenset[float]


class Activity:
    """Which parameters a place has, learned from the trials: a space does not say it.

    A parameter that some trials lack is taken to hang on the first other one (a choice, or a
    number of few values) that tells those trials from the rest without exception. What a failed
    trial lacks proves nothing: it may have failed before it asked.
    """

    def __init__(self, observed: Outcomes) -> None:
        self._rules: list[_Rule] = []
        places = observed.places[-LOOK_BACK:]
        is_known = ~np.isnan(places)
        ended = np.isfinite(observed.losses[-LOOK_BACK:])
        missing = ~is_known & ended[:, None]
        for child in np.flatnonzero(missing.any(axis=0)):
            for parent, axis in enumerate(observed.axes):
                if parent == child or not (axis.n_choices or 0 < axis.n_cells <= 32):
                    continue
                column, known = places[:, parent], is_known[:, parent]
                without = set(column[known & missing[:, child]].tolist())
                having = set(column[known & is_known[:, child]].tolist())
                if without and having and not without & having:
                    self._rules.append(_Rule(int(child), parent, frozenset(without)))
                    break

    def parents(self) -> list[int]:
        """Return the numbers of the parameters that others hang on."""
        return sorted({rule.parent for rule in self._rules})

    def filled(self, observed: Outcomes) -> Outcomes:
        """Return trials with what failed ones had not asked for yet: drawn evenly, always alike.

        So a failure counts whatever the rest would have been. With gaps, the model would believe
        in it for the middle of the rest alone, and try the same again beside it.
        """
        gaps = np.isnan(observed.places) & np.isinf(observed.losses)[:, None]
        failed = gaps.any(axis=1)
        if not failed.any():
            return observed
        whole = Region(1, 0, 0, {})
        uniform = np.random.default_rng(0).random(gaps.shape)
        places = observed.places.copy()
        for i, axis in enumerate(observed.axes):
            gap = gaps[:, i]
            places[gap, i] = draw(axis, whole.span(axis), uniform[gap, i])
        places[failed] = self.masked(places[failed])
        return Outcomes(observed.axes, places, observed.losses)

    def masked(self, places: Floats) -> Floats:
        """Return places without the parameters that they would not have."""
        for _ in range(2):  # a parent may be another's child
            for rule in self._rules:
                column = places[:, rule.parent]
                absent = np.isin(column, list(rule.absent)) | np.isnan(column)
                places[absent, rule.child] = np.nan
        return places


def untried(places: Floats, tried: Floats) -> NDArray[np.bool_]:
    """Return which places equal none of those tried, shape (n,)."""
    known = {row.tobytes() for row in np.nan_to_num(tried, nan=-1.0)}
    return np.array([row.tobytes() not in known for row in np.nan_to_num(places, nan=-1.0)])


@dataclass(frozen=True)
class Contest:
    """One choice that a trial makes the best of.

    A choice that brings up parameters of its own shows its worth only when they are tuned, which
    nobody does who compares its first trials with the tuned ones of another. So for a contest each
    choice's trials are judged by that choice's own standard, and improve on its own best.

    Attributes:
        parent: The number of the parameter's axis.
        choice: The number of the choice.

    Source: a bandit over choices with a model of each, as in Nguyen et al., Bayesian Optimization
    for Categorical and Category-Specific Continuous Inputs, AAAI 2020; here one model learns from
    all, since what is good for one choice is often good for another.
    """

    parent: int
    choice: int

    def region(self, region: Region, observed: Outcomes) -> Region:
        """Return a region cut down to the choice."""
        axis = observed.axes[self.parent]
        odds = tuple(float(i == self.choice) for i in range(axis.n_choices))
        return replace(region, spans={**region.spans, axis.name: Span(odds=odds)})

    def rivals(self, observed: Outcomes) -> NDArray[np.bool_]:
        """Return which trials took the choice, shape (n,)."""
        return np.asarray(observed.places[:, self.parent] == self.choice)


def draw_contest(
    observed: Outcomes, activity: Activity, rng: np.random.Generator
) -> Contest | None:
    """Draw a choice evenly, of a parameter that all trials have and that others hang on.

    Returns:
        None where there is none: choices without parameters of their own need no such care.
    """
    parents = [
        i
        for i in activity.parents()
        if observed.axes[i].n_choices and not np.isnan(observed.places[:, i]).any()
    ]
    if not parents:
        return None
    parent = parents[int(rng.integers(len(parents)))]
    return Contest(parent, int(rng.integers(observed.axes[parent].n_choices)))


def own_scores(losses: Floats, choices: Floats) -> Floats:
    """Return each trial's score among those of its own choice, higher is better."""
    from dlnn_search.samplers.surrogate import scores

    found = np.empty(len(losses))
    for choice in np.unique(choices):
        same = np.flatnonzero(choices == choice)
        found[same] = scores(losses[same])
    return found
