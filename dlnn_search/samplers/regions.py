"""Regions: the part of the space that a stage draws from, and where the best lies on its edge."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import numpy as np
import optuna
from optuna.distributions import IntDistribution
from optuna.trial import FrozenTrial

from dlnn_search.optuna_version import storage_of, study_id_of
from dlnn_search.samplers.observations import Axis, Floats, Numeric, Outcomes

#: Attributes of Optuna's study: the region of the stage that begins with a trial of that number.
REGION_ATTRIBUTE = "coarse_to_fine:from_trial:"
#: How far a region reaches beyond the elite on either side, by stage from the second on, as a
#: share of the axis; the last holds for all later ones.
MARGINS = (0.25, 0.15, 0.1)
#: Added to every choice's count of elite trials, shared out among the choices.
SMOOTHING = 2.0
MIN_ELITES = 3


@dataclass(frozen=True)
class Span:
    """A part of one axis: `low` to `high` as places, or odds of the choices.

    Attributes:
        odds: Empty for numbers; else one a choice, none 0, 1 in all.
    """

    low: float = 0.0
    high: float = 1.0
    odds: tuple[float, ...] = ()


@dataclass(frozen=True)
class Region:
    """Where a stage draws.

    Attributes:
        stage: From 1.
        first: The number of the stage's first trial.
        n_finished: Trials that had finished when it was computed.
        spans: By parameter; one that is missing is open over its whole range.
    """

    stage: int
    first: int
    n_finished: int
    spans: Mapping[str, Span]

    def span(self, axis: Axis) -> Span:
        """Return an axis's part, the whole of it where the region knows none that fits."""
        span = self.spans.get(axis.name)
        if span is None or len(span.odds) != axis.n_choices:
            n = axis.n_choices
            return Span(odds=(1 / n,) * n if n else ())
        return span

    def as_json(self, axes: Sequence[Axis]) -> dict[str, Any]:
        """Return plain data, with values in place of places."""
        parameters: dict[str, Any] = {}
        for axis in axes:
            span = self.spans.get(axis.name)
            if span is None:
                continue
            if span.odds:
                choices = [str(axis.value(i)) for i in range(axis.n_choices)]
                parameters[axis.name] = {"choices": choices, "odds": list(span.odds)}
            else:
                ends = {"low": axis.value(span.low), "high": axis.value(span.high)}
                parameters[axis.name] = ends
        return {
            "stage": self.stage,
            "first_trial": self.first,
            "finished_trials": self.n_finished,
            "parameters": parameters,
        }


def read_region(stored: Mapping[str, Any], axes: Sequence[Axis]) -> Region:
    """Return a region from its plain data."""
    spans = {}
    for axis in axes:
        part = stored["parameters"].get(axis.name)
        if part is None:
            continue
        if "odds" in part:
            spans[axis.name] = Span(odds=tuple(part["odds"]))
        elif not axis.n_choices:
            spans[axis.name] = Span(*axis.between(part["low"], part["high"]))
    return Region(stored["stage"], stored["first_trial"], stored["finished_trials"], spans)


def narrowed(stage: int, first: int, observed: Outcomes) -> Region:
    """Return the region around the best trials so far.

    Per number: from the lowest to the highest of the elite (the best √n of n finished trials),
    and a margin that gets finer by the stage. An irrelevant parameter's elite is spread, so it
    stays wide. Per choice: odds by how often the elite took it. Nothing is known of parameters
    that fewer than two of the elite have.
    """
    elite = observed.best(max(MIN_ELITES, math.ceil(math.sqrt(len(observed)))))
    margin = MARGINS[min(stage - 2, len(MARGINS) - 1)]
    spans = {}
    for i, axis in enumerate(observed.axes):
        column = observed.places[elite, i]
        column = column[~np.isnan(column)]
        if len(column) < 2:
            continue
        if n := axis.n_choices:
            counts = np.bincount(column.astype(int), minlength=n) + SMOOTHING / n
            spans[axis.name] = Span(odds=tuple(float(odds) for odds in counts / counts.sum()))
        else:
            low, high = float(column.min()) - margin, float(column.max()) + margin
            spans[axis.name] = Span(max(0.0, low), min(1.0, high))
    return Region(stage, first, len(observed), spans)


def stored_regions(study: optuna.Study) -> list[dict[str, Any]]:
    """Return the regions that a study's stages were drawn from, as stored, in order."""
    stored = storage_of(study).get_study_system_attrs(study_id_of(study))
    found = [region for key, region in stored.items() if key.startswith(REGION_ATTRIBUTE)]
    return sorted(found, key=lambda region: int(region["first_trial"]))


def draw(axis: Axis, span: Span, uniform: Floats) -> Floats:
    """Return places within a span from uniform numbers in [0, 1)."""
    if span.odds:
        odds = np.cumsum(span.odds)
        chosen = np.searchsorted(odds, uniform * odds[-1], side="right")
        return np.asarray(np.minimum(chosen, len(odds) - 1), dtype=float)
    return axis.snapped(span.low + uniform * (span.high - span.low))


#: Below that many complete trials the best one's place in the space is luck.
MIN_TRIALS = 5
#: The outermost part of a range, as a share of its scale, that counts as its end; a grid's last
#: value always does.
END_SHARE = 0.03
#: One lucky trial is no proof: the median of the elite must be this near, too.
ELITE_SHARE = 0.2
MIN_ELITES, MAX_ELITES = 3, 12
#: So much of the range is added beyond the end, on its scale.
WIDER_SHARE = 0.5
#: A range of many decades is not opened to numbers that nobody meant.
MAX_FACTOR = 10.0
#: A share that ends so near to 1 (all is dropped, all is smoothed) has nothing beyond.
HIGHEST_SHARE = 0.95
#: A grid's sums are rounded: 0.3 - 3 * 0.1 is not 0.
N_DECIMALS = 12


@dataclass(frozen=True)
class Edge:
    """A parameter whose best value is an end of its range.

    Attributes:
        side: `lower` or `upper`.
        value: The best trial's.
        low: The declared range, with `high`.
        wider: The range that would leave room on that side.
        n_others: How many trials come after the best one in the elite.
        n_near: How many of these lie at the same end.
    """

    parameter: str
    side: str
    value: float
    low: float
    high: float
    wider: tuple[float, float]
    n_others: int
    n_near: int

    def words(self) -> str:
        """Return the finding and what to do, as one sentence."""
        low, high = self.wider
        company = f", as {self.n_near} of the next {self.n_others} do" if self.n_near else ""
        return (
            f"The best trial lies on the edge of {self.parameter} ({self.value:.4g}, {self.side} "
            f"end of {self.low:.4g} to {self.high:.4g}){company}: widen it to {low:.4g} to "
            f"{high:.4g}, in a copy of the study."
        )


def n_elites(n_complete: int) -> int:
    """Return how many of the best trials are looked at: about the root of all of them."""
    return min(MAX_ELITES, max(MIN_ELITES, math.ceil(math.sqrt(n_complete))))


def find_edges(best: Sequence[FrozenTrial], n_complete: int) -> list[Edge]:
    """Return the parameters whose best value lies at an end that can be moved.

    A range that ends where nothing may lie beyond (no layer at all, a share of more than 1) has
    no edge there.

    Args:
        best: A study's complete trials, best first; `n_elites` of them suffice.
        n_complete: How many complete ones it has.
    """
    if n_complete < MIN_TRIALS or not best:
        return []
    winner, *others = best[: n_elites(n_complete)]
    edges = []
    for name, distribution in winner.distributions.items():
        if not isinstance(distribution, Numeric) or _n_values(distribution) <= 2:
            continue  # of two values each is an end
        axis = Axis(name, distribution)
        places = [axis.place(trial.params[name]) for trial in others if name in trial.params]
        place = axis.place(winner.params[name])
        for side, of_end, of_best, of_others in (
            ("lower", axis.place(distribution.low), place, places),
            ("upper", 1 - axis.place(distribution.high), 1 - place, [1 - at for at in places]),
        ):
            end = max(END_SHARE, of_end + 1e-9)
            is_there = of_best <= end and median([of_best, *of_others]) <= max(ELITE_SHARE, end)
            wider = _wider(distribution, side) if is_there else None
            if wider is not None:
                low, high = float(distribution.low), float(distribution.high)
                n_near = sum(at <= end for at in of_others)
                value = float(winner.params[name])
                edges.append(Edge(name, side, value, low, high, wider, len(others), n_near))
    return edges


def _n_values(distribution: Numeric) -> float:
    if distribution.single():
        return 1
    if distribution.step is None:
        return math.inf
    return 1 + (distribution.high - distribution.low) // distribution.step


def _wider(distribution: Numeric, side: str) -> tuple[float, float] | None:
    """Return the range with one end moved; None where that end is a natural bound."""
    low, high = float(distribution.low), float(distribution.high)
    if side == "lower":
        moved = _lower(distribution, low, high)
        return (moved, high) if moved is not None and moved < low else None
    moved = _upper(distribution, low, high)
    return (low, moved) if moved is not None and moved > high else None


def _lower(distribution: Numeric, low: float, high: float) -> float | None:
    if distribution.log:
        moved = low / _factor(low, high)
        if isinstance(distribution, IntDistribution):
            return max(1.0, math.floor(moved))
        return _short(moved)
    moved = low - WIDER_SHARE * (high - low)
    if isinstance(distribution, IntDistribution):
        if low >= 1:  # a number of something: at most halved, and never none at all
            moved = max(moved, 1.0, low / 2)
        elif low == 0:
            return None
    elif low >= 0:
        moved = max(moved, 0.0)
    if distribution.step is None:
        return _short(moved)
    n_steps = math.floor((low - moved) / distribution.step + 1e-9)
    # Where no step of the grid has room there may still be smaller values.
    moved = low - n_steps * distribution.step if n_steps else math.ceil(moved)
    return round(moved, N_DECIMALS)


def _upper(distribution: Numeric, low: float, high: float) -> float | None:
    is_whole = isinstance(distribution, IntDistribution)
    is_share = not is_whole and low >= 0 and high <= 1
    if is_share and high >= HIGHEST_SHARE:
        return None
    moved = high * _factor(low, high) if distribution.log else high + WIDER_SHARE * (high - low)
    if is_share:  # it comes nearer to 1, not to it
        moved = min(moved, (high + 1) / 2)
    if distribution.log and is_whole:
        return float(math.ceil(moved))
    if distribution.step is None:
        return _short(moved)
    steps = (moved - high) / distribution.step
    n_steps = math.floor(steps + 1e-9) if is_share else max(1, math.ceil(steps - 1e-9))
    return round(high + n_steps * distribution.step, N_DECIMALS)


def _factor(low: float, high: float) -> float:
    factor: float = (high / low) ** WIDER_SHARE
    return min(MAX_FACTOR, factor)


def _short(value: float) -> float:
    return float(f"{value:.2g}")
