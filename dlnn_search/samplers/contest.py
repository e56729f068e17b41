"""A contest of choices: each gets its due, however poor its few trials look beside the others."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from dlnn_search.samplers.axes import Floats
from dlnn_search.samplers.candidates import Activity
from dlnn_search.samplers.observations import Outcomes
from dlnn_search.samplers.regions import Region, Span


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
