"""A parameter's own scale: every value a place between 0 and 1, or the number of its choice."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.trial import TrialState, create_trial

Numeric = FloatDistribution | IntDistribution
Floats = NDArray[np.float64]

#: More values than that are as good as a continuum.
MAX_CELLS = 10_000


@dataclass(frozen=True)
class Axis:
    """One parameter's scale.

    Numbers lie in [0, 1], even steps where even steps (or even ratios, on a log scale) matter;
    values of a grid lie in the middle of cells of equal width. Choices are their numbers.
    """

    name: str
    distribution: BaseDistribution

    @property
    def n_choices(self) -> int:
        """How many choices a categorical parameter has; 0 for numbers."""
        distribution = self.distribution
        if isinstance(distribution, CategoricalDistribution):
            return len(distribution.choices)
        return 0

    @property
    def n_cells(self) -> int:
        """How many values a grid of even steps has; 0 for a continuum and for choices."""
        distribution = self.distribution
        if isinstance(distribution, CategoricalDistribution):
            return 0
        assert isinstance(distribution, Numeric)
        if distribution.single():
            return 1
        if distribution.log or distribution.step is None:
            return 0
        steps = round((distribution.high - distribution.low) / distribution.step)
        return steps + 1 if steps < MAX_CELLS else 0

    def place(self, value: Any) -> float:
        """Return a value's place, in [0, 1], or its choice's number."""
        distribution = self.distribution
        if isinstance(distribution, CategoricalDistribution):
            return float(distribution.to_internal_repr(value))
        assert isinstance(distribution, Numeric)
        cells = self.n_cells
        if cells == 1:
            return 0.5
        if cells:
            assert distribution.step is not None
            cell = round((value - distribution.low) / distribution.step)
            # Bounds may have been others when the value was drawn.
            return float((min(max(cell, 0), cells - 1) + 0.5) / cells)
        low, high = self._ends()
        if distribution.log:
            low, high, value = math.log(low), math.log(high), math.log(value)
        if low == high:  # neighbours, whose logarithms are one number
            return 0.5
        return float(min(max((value - low) / (high - low), 0.0), 1.0))

    def value(self, place: float) -> Any:
        """Return the value at a place: the nearest one of a grid."""
        distribution = self.distribution
        if isinstance(distribution, CategoricalDistribution):
            return distribution.choices[int(place)]
        assert isinstance(distribution, Numeric)
        cells = self.n_cells
        place = min(max(float(place), 0.0), 1.0)
        if cells:
            value = distribution.low + min(int(place * cells), cells - 1) * (distribution.step or 0)
        else:
            low, high = self._ends()
            if distribution.log:
                value = math.exp(math.log(low) + place * (math.log(high) - math.log(low)))
            else:
                value = low + place * (high - low)
        if distribution.step is not None:
            steps = round((value - distribution.low) / distribution.step)
            value = distribution.low + steps * distribution.step
        if isinstance(distribution, IntDistribution):
            return int(min(max(value, distribution.low), distribution.high))
        return float(min(max(value, distribution.low), distribution.high))

    def between(self, low: Any, high: Any) -> tuple[float, float]:
        """Return the places from a value to another, both of them whole cells of a grid."""
        if cells := self.n_cells:
            return self.place(low) - 0.5 / cells, self.place(high) + 0.5 / cells
        if self._counts_by_ratio:
            first, last = (math.log(end) for end in self._ends())
            width = last - first
            start, end = math.log(low - 0.5) - first, math.log(high + 0.5) - first
            return max(start / width, 0.0), min(end / width, 1.0)
        return self.place(low), self.place(high)

    def snapped(self, places: Floats) -> Floats:
        """Return places moved to the middle of their cells, where the parameter is a grid."""
        if cells := self.n_cells:
            return (np.minimum(np.floor(places * cells), cells - 1) + 0.5) / cells
        if self._counts_by_ratio:
            assert isinstance(self.distribution, IntDistribution)
            low, high = (math.log(end) for end in self._ends())
            values = np.rint(np.exp(low + places * (high - low)))
            values = np.clip(values, self.distribution.low, self.distribution.high)
            return (np.log(values) - low) / (high - low)
        return places

    @property
    def _counts_by_ratio(self) -> bool:
        return isinstance(self.distribution, IntDistribution) and self.distribution.log

    def _ends(self) -> tuple[float, float]:
        assert isinstance(self.distribution, Numeric)
        if isinstance(self.distribution, IntDistribution):
            # Half a step beyond, so that rounding gives the ends their share.
            half = 0.5 * self.distribution.step
            return self.distribution.low - half, self.distribution.high + half
        return self.distribution.low, self.distribution.high


def fits(value: Any, distribution: BaseDistribution) -> bool:
    """Whether a parameter may have a value."""
    try:
        create_trial(  # it checks that
            state=TrialState.RUNNING, params={"value": value}, distributions={"value": distribution}
        )
    except (ValueError, TypeError):
        return False
    return True


def hull(known: BaseDistribution, seen: BaseDistribution) -> BaseDistribution:
    """Return a distribution that holds both: a space may ask for other bounds each time.

    Where they are not of one kind, the one that was seen last counts.
    """
    if known == seen or type(known) is not type(seen) or isinstance(seen, CategoricalDistribution):
        return seen
    assert isinstance(known, Numeric) and isinstance(seen, Numeric)
    if known.log != seen.log or known.step != seen.step:
        return seen
    low, high = min(known.low, seen.low), max(known.high, seen.high)
    if isinstance(seen, IntDistribution):
        return IntDistribution(int(low), int(high), log=seen.log, step=seen.step)
    if seen.step is not None:
        high = low + round((high - low) / seen.step) * seen.step
    return FloatDistribution(low, high, log=seen.log, step=seen.step)
