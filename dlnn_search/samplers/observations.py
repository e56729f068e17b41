"""What is known of a study's finished trials, each value on its parameter's own scale."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.trial import FrozenTrial, TrialState, create_trial

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


#: A user attribute of a trial that has another's result, since their configs are the same: that
#: one's number. Its end says nothing new.
DUPLICATE_ATTRIBUTE = "duplicate_of"
#: A system attribute: parameters, by name, that the space refused before it took the trial's own.
INFEASIBLE_ATTRIBUTE = "infeasible"

#: A pruned trial counts as no better than this quantile of the complete ones: it was stopped for
#: being worse, but at an epoch whose value would not compare.
PRUNED_QUANTILE = 0.5


@dataclass(frozen=True)
class Outcomes:
    """Finished trials in the order in which they finished.

    Attributes:
        axes: Every parameter that any of them has.
        places: Shape (n, len(axes)); NaN where a trial has no such parameter.
        losses: Shape (n,), lower is better whatever the study's direction; inf for failures, and
            for what the space refused.
    """

    axes: tuple[Axis, ...]
    places: Floats
    losses: Floats

    def __len__(self) -> int:
        return len(self.losses)

    def first(self, n: int) -> Outcomes:
        """Return the first n that finished."""
        return Outcomes(self.axes, self.places[:n], self.losses[:n])

    def best(self, n: int) -> NDArray[np.intp]:
        """Return the numbers of the best n rows that did not fail, best first."""
        order = np.argsort(self.losses, kind="stable")[:n]
        return order[np.isfinite(self.losses[order])]


class Observations:
    """The trials of one study: finished ones are read once."""

    def __init__(self, maximize: bool) -> None:
        self._sign = -1.0 if maximize else 1.0
        self._seen: set[int] = set()
        self._n_refused: dict[int, int] = {}
        self._trials: list[FrozenTrial] = []
        self._distributions: dict[str, BaseDistribution] = {}
        self._axes: tuple[Axis, ...] = ()
        self._places: Floats = np.empty((0, 0))
        self._losses: Floats = np.empty(0)
        self._pruned: NDArray[np.bool_] = np.empty(0, dtype=bool)

    @property
    def axes(self) -> tuple[Axis, ...]:
        """Every parameter of the finished trials, in the order in which they came up."""
        return self._axes

    def is_of(self, trials: Sequence[FrozenTrial]) -> bool:
        """Whether it was read from these trials: another study may have got a deleted one's id."""
        if not self._trials:
            return True
        known = self._trials[-1]
        return known.number < len(trials) and (
            trials[known.number].datetime_start == known.datetime_start
        )

    def read(self, trials: Sequence[FrozenTrial]) -> None:
        """Take in the trials that finished since the last look."""
        unseen = [trial for trial in trials if trial.number not in self._seen]
        finished = [trial for trial in unseen if trial.state.is_finished()]
        self._seen.update(trial.number for trial in finished)
        fresh = [trial for trial in finished if _tells_something(trial)]
        fresh += [refused for trial in unseen for refused in self._refused(trial)]
        if not fresh:
            return
        fresh.sort(key=_finished)
        # Clocks of several machines differ: what is read later may have finished earlier.
        in_order = not self._trials or _finished(self._trials[-1]) < _finished(fresh[0])
        self._trials.extend(fresh)
        same_axes = self._note(fresh)
        if not (in_order and same_axes):
            self._trials.sort(key=_finished)
            fresh = self._trials
            self._places = np.empty((0, len(self._axes)))
            self._losses, self._pruned = np.empty(0), np.empty(0, dtype=bool)
        self._places = np.concatenate([self._places, self.rows(fresh)])
        self._losses = np.append(self._losses, [self._loss(trial) for trial in fresh])
        self._pruned = np.append(self._pruned, [t.state == TrialState.PRUNED for t in fresh])

    def rows(self, trials: Sequence[FrozenTrial]) -> Floats:
        """Return trials' places, shape (n, len(axes)); NaN where one has no such parameter."""
        rows = [
            [
                axis.place(trial.params[axis.name]) if axis.name in trial.params else math.nan
                for axis in self._axes
            ]
            for trial in trials
        ]
        return np.array(rows, dtype=float).reshape(len(rows), len(self._axes))

    def outcomes(self, until: FrozenTrial | None = None) -> Outcomes:
        """Return what is known, or was known when the trial `until` began."""
        n = len(self._trials)
        if until is not None and until.datetime_start is not None:
            n = bisect_left(self._trials, (until.datetime_start, until.number), key=_finished)
        losses, pruned = self._losses[:n], self._pruned[:n]
        complete = losses[~pruned & np.isfinite(losses)]
        if len(complete) and pruned.any():
            floor = np.quantile(complete, PRUNED_QUANTILE)
            losses = np.where(pruned, np.maximum(losses, floor), losses)
        return Outcomes(self._axes, self._places[:n], losses)

    def _refused(self, trial: FrozenTrial) -> list[FrozenTrial]:
        """Return what the space refused since the last look, as trials that failed."""
        refused = trial.system_attrs.get(INFEASIBLE_ATTRIBUTE, ())
        fresh = refused[self._n_refused.get(trial.number, 0) :]
        if fresh:
            self._n_refused[trial.number] = len(refused)
        return [
            FrozenTrial(
                number=trial.number,
                trial_id=-1,
                state=TrialState.FAIL,
                value=None,
                params=params,
                distributions={},  # a parameter that no trial has is no axis
                datetime_start=trial.datetime_start,
                datetime_complete=trial.datetime_start,
                user_attrs={},
                system_attrs={},
                intermediate_values={},
            )
            for params in fresh
            if params
        ]

    def _loss(self, trial: FrozenTrial) -> float:
        value = math.inf
        if trial.state == TrialState.COMPLETE and trial.values:
            value = self._sign * trial.values[0]
        elif trial.state == TrialState.PRUNED:
            reported = [self._sign * v for v in trial.intermediate_values.values()]
            value = min((v for v in reported if math.isfinite(v)), default=math.inf)
        return value if math.isfinite(value) else math.inf

    def _note(self, trials: Sequence[FrozenTrial]) -> bool:
        """Note the trials' parameters; return whether all were known as they are."""
        before = dict(self._distributions)
        for trial in trials:
            for name, distribution in trial.distributions.items():
                known = self._distributions.get(name)
                if known is not distribution:
                    wider = distribution if known is None else hull(known, distribution)
                    self._distributions[name] = wider
        if before == self._distributions:
            return True
        self._axes = tuple(Axis(name, d) for name, d in self._distributions.items())
        return False


def _finished(trial: FrozenTrial) -> tuple[datetime, int]:
    return trial.datetime_complete or datetime.max, trial.number


def is_duplicate(trial: FrozenTrial) -> bool:
    """Whether a trial has another's result: the one filter for Optuna's trials."""
    return DUPLICATE_ATTRIBUTE in trial.user_attrs


def _tells_something(trial: FrozenTrial) -> bool:
    """Whether a trial's end has to do with its parameters, and says something new of them.

    Killed workers say nothing, and a duplicate what is known.
    """
    failed_by_itself = trial.state == TrialState.FAIL and (
        trial.user_attrs.get("failure") in ("lost", "bug")
    )
    return bool(trial.params) and not failed_by_itself and not is_duplicate(trial)
