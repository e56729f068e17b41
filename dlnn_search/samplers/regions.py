"""Regions: the part of the space that a stage of coarse-to-fine draws from."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import optuna

from dlnn_search.optuna_version import storage_of, study_id_of
from dlnn_search.samplers.axes import Axis, Floats
from dlnn_search.samplers.observations import Outcomes

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
